"""Records made by hand, and the figures that come of them: two streams of one environment, fragments of 10 steps."""

from __future__ import annotations

from typing import Any

from daskrl.config import Schedule
from daskrl.records import Record
from daskrl.watching.figures import Tally


def tally(*records: Record, per_update: float | None = 4.0) -> Tally:
    counted = Tally(Schedule(2, 1, 10, 1), per_update)
    for record in records:
        counted.take(record)
    return counted


def budget(env_steps: int) -> Any:
    return {"kind": "budget", "env_steps": env_steps}


def fragment(
    stream: int, round_: int, begin: float, end: float, worker: str = "a", returns: tuple[float, ...] = ()
) -> Any:
    return {
        "kind": "fragment", "stream": stream, "round": round_, "weights_version": max(0, round_ - 1),
        "wall_time": begin, "seconds": end - begin, "worker": worker, "episodes": [[0, r, 5] for r in returns],
    }  # fmt: skip


def learned(version: int, seconds: float, updates: int = 0, loss: float | None = None) -> Any:
    return {"kind": "learn", "version": version, "seconds": seconds, "learner_updates": updates, "loss": loss}
