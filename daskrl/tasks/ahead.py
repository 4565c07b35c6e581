"""On a learner's Dask worker: while a version is learned, the round of the one that waits behind it is read."""

from __future__ import annotations

from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from daskrl.tasks import learner
from daskrl.tasks.session import Published

READ_AHEAD = "daskrl_read_ahead"
"""The annotation of a `learn` task that says what to read while the task waits: ``[token, version, head, learner]``."""


def learn(token: str, version: int, head: int, device: str, keep: bool, checkpoint: bool, key: str = "") -> Published:
    """`daskrl.tasks.learner.learn`, on a worker that from now on reads ahead."""
    worker = get_worker()
    if ReadAhead.name not in worker.plugins:
        worker.loop.add_callback(worker.plugin_add, ReadAhead(), ReadAhead.name)
    return learner.learn(token, version, head, device, keep, checkpoint, key)


class ReadAhead(WorkerPlugin):
    """Reads for tasks that have come and wait for their turn: a learner's worker runs one task at a time."""

    name = "daskrl-read-ahead"

    def setup(self, worker: Worker) -> None:
        self.tasks = worker.state.tasks

    def transition(self, key: Any, start: str, finish: str, **others: Any) -> None:
        task = self.tasks.get(key) if finish == "ready" else None
        if task is not None and READ_AHEAD in (annotations := task.annotations or {}):
            learner.read_ahead(*annotations[READ_AHEAD])
