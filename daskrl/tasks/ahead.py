"""On the learner's Dask worker: while a version is learned, the round of the one that waits behind it is read."""

from __future__ import annotations

import re
from typing import Any

from distributed import WorkerPlugin, get_worker

from daskrl.tasks import learner
from daskrl.tasks.session import Published

_KEY = re.compile(r"learn-(\d+)-(\d+)-([0-9a-f]+)-\d+")


def prefix(version: int, head: int) -> str:
    """What the key of a `learn` task begins with; the session's token and a number follow."""
    return f"learn-{version}-{head}"


def learn(token: str, version: int, head: int, device: str, keep: bool, checkpoint: bool) -> Published:
    """`daskrl.tasks.learner.learn`, on a worker that from now on reads ahead."""
    worker = get_worker()
    if ReadAhead.name not in worker.plugins:
        worker.loop.add_callback(worker.plugin_add, ReadAhead(), ReadAhead.name)
    return learner.learn(token, version, head, device, keep, checkpoint)


class ReadAhead(WorkerPlugin):
    """Is told of tasks that have come and wait for their turn: the learner's worker runs one at a time."""

    name = "daskrl-read-ahead"

    def transition(self, key: Any, start: str, finish: str, **others: Any) -> None:
        found = _KEY.fullmatch(str(key)) if finish == "ready" else None
        if found is not None:
            learner.read_ahead(found[3], int(found[1]), int(found[2]))
