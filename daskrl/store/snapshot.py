"""A snapshot beside the commit log: how far its first commits got. With it, opening a store costs what is new since.

The snapshot repeats the log, and the log is right where the two differ. Any process that may write makes a snapshot,
and anybody may delete it. A snapshot that is damaged, of another run, or of commits that this log does not have is
ignored. Readers that have to be certain (a driver, `Store.digest`) read the log. Each learner of a run has a
snapshot: versions and evaluations belong to one learner.
"""

from __future__ import annotations

import contextlib
import json

from daskrl.errors import DamagedError, StoreError
from daskrl.names import require_key
from daskrl.store.files import crc32c
from daskrl.store.log import CommitLog
from daskrl.store.progress import Progress

KEY = ".commits/snapshot.json"
VERSION = 1  # another number for each change of what `Progress` counts: an older one does not know all kinds of records
WORTH = 64  # commits that it spares; for fewer the log is read


def key_of(learner: str = "") -> str:
    """Where a store keeps the snapshot of a learner's progress."""
    require_key("learner", learner)
    return f".commits/snapshot.{learner}.json" if learner else KEY


def save(log: CommitLog, run_id: str, progress: Progress) -> None:
    """Write the snapshot of some commits for the learner of this progress, where that is allowed and there is room.

    Called by the driver and by readers, at any time: each one that is written is right, and the last stays.
    """
    if progress.commits < WORTH:
        return
    held = {"version": VERSION, "run_id": run_id, **progress.to_json()}
    if progress.learner:
        held["learner"] = progress.learner
    body = json.dumps(held, separators=(",", ":"), allow_nan=True).encode()
    with contextlib.suppress(OSError, StoreError):
        log.storage.put(key_of(progress.learner), b'{"crc32c":"%08x","snapshot":%s}\n' % (crc32c(body), body))


def load(log: CommitLog, run_id: str, streams: int, learner: str = "") -> Progress | None:
    """The progress that the snapshot of a learner has, if it is one of this log."""
    key = key_of(learner)
    try:
        data = log.storage.get(key)
        found = json.loads(data)
        held, begin, end = found["snapshot"], data.index(b"{", 1), data.rindex(b"}", 0, data.rindex(b"}")) + 1
        if crc32c(data[begin:end]) != int(found["crc32c"], 16):
            return None
        if held["version"] != VERSION or held["run_id"] != run_id or len(held["committed"]) != streams:
            return None
        if held.get("learner", "") != learner:
            return None
        progress = Progress.from_json(held, learner)
        return progress if belongs(progress, log) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def belongs(progress: Progress, log: CommitLog) -> bool:
    """Whether the newest commit that was counted in is in this log."""
    try:
        return log.segment(progress.commits - 1).crc32c == progress.newest_crc32c
    except DamagedError:
        return False
