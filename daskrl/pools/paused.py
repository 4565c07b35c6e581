"""Workers that Dask has paused for want of memory: they are there and take no tasks. Which these are, what to say.

A task that is pinned to a paused worker waits for as long as the pause lasts. So the task moves to another worker, or
the run says why it waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RUNNING, PAUSED = "running", "paused"
_PAUSES = 0.8  # distributed.worker.memory.pause
_STOPPED = (PAUSED, "closing_gracefully", "closing", "stopping")  # of Dask's statuses; any other takes tasks

MORE_MEMORY = (
    "give each worker more (memory_limit= of LocalCluster, --memory-limit of dask worker, memory: of jobs), put fewer "
    "streams on it (more workers, or fewer threads for each), make fragments smaller (fragment_steps, envs_per_stream "
    "of a new run), or look for what grows in the environment"
)
MORE_FOR_LEARNER = "give it more (--memory-limit of dask worker, memory: of the learner's job)"


def smaller_run(window: bool) -> str:
    """A run whose learner needs less memory; ``window``: whether the algorithm has one."""
    less = "a smaller window (-s window=...)" if window else "smaller rounds (streams, envs_per_stream, fragment_steps)"
    return f"begin a run with {less}"


@dataclass(frozen=True)
class Memory:
    """Bytes of a worker's process, as Dask counts them; None where that is not known.

    Attributes
    ----------
    used : by the process.
    limit : that Dask has for it.
    managed : of ``used``, what Dask holds of results: of weights.
    """

    used: int | None = None
    limit: int | None = None
    managed: int | None = None

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> Memory:
        """From what the scheduler says of a worker."""
        metrics = info.get("metrics") or {}
        return cls(metrics.get("memory"), info.get("memory_limit") or None, metrics.get("managed_bytes"))

    def __str__(self) -> str:
        if self.used is None or not self.limit:
            return "its memory is not known"
        held = "" if self.managed is None else f", {size(self.managed)} of it for results that Dask holds"
        return f"{size(self.used)} used of {size(self.limit)} ({self.used / self.limit:.0%}){held}"


UNKNOWN = Memory()


@dataclass(frozen=True)
class Pause:
    """A worker that Dask has paused, and what that means to a run.

    Attributes
    ----------
    learns : it is the learner's.
    instead : the name of the worker that now learns; where it does not learn, whether others take its streams.
    window : whether the algorithm has one.
    """

    name: str
    address: str
    memory: Memory
    learns: bool
    instead: str | bool
    window: bool = True

    def __str__(self) -> str:
        if not self.learns:
            meanwhile = (
                "Its streams go on on other workers; it gets rollouts again once Dask has it running."
                if self.instead
                else "There is no other worker for its streams: the run waits until Dask has it running."
            )
        elif self.instead:
            meanwhile = f"Worker {self.instead} learns on."
        else:
            meanwhile = "Nothing is learned until Dask has it running; rollouts go on as far as they have weights."
        advice = f"{MORE_FOR_LEARNER}, or {smaller_run(self.window)}" if self.learns else MORE_MEMORY
        who = f"the learner's worker {self.name}" if self.learns else f"worker {self.name}"
        return (
            f"Dask has paused {who} ({self.address}), as it is short of memory: {self.memory}. {meanwhile} Where that "
            f"comes again, {advice}."
        )


def takes_tasks(status: str) -> bool:
    """Whether Dask runs new tasks on a worker of this status."""
    return status not in _STOPPED


def pauses_at(memory: Memory) -> int | None:
    """Bytes at which Dask pauses a worker, as it does unless it is told otherwise; None where it has no limit."""
    return None if memory.limit is None else int(_PAUSES * memory.limit)


def why_stopped(workers: Iterable[tuple[str, str, Memory]]) -> str:
    """Of workers that take no tasks, each with its name, status and memory: a clause that says so."""
    return "; ".join(
        f"Dask has paused worker {name}, short of memory: {memory}"
        if status == PAUSED
        else f"worker {name} is {status.replace('_', ' ')}"
        for name, status, memory in workers
    )


def size(count: float) -> str:
    """Bytes, as people read them: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError
