"""What can go wrong with a run, as values: a plan for `daskrl.testing.chaos` is a list of them."""

from __future__ import annotations

from dataclasses import dataclass

from daskrl.config import require_integer
from daskrl.errors import ConfigError


@dataclass(frozen=True)
class Fault:
    """A fault: what all kinds of faults have.

    Parameters
    ----------
    at : the version of the weights that has just been published when it happens; where two are published at once, the
        later one.
    """

    at: int

    def __post_init__(self) -> None:
        require_integer("at", self.at, 0)


@dataclass(frozen=True)
class WorkerFault(Fault):
    """A fault of a worker's process.

    Parameters
    ----------
    learner : to the worker with the resource ``learner`` or ``GPU``; else to one of the others, drawn with the seed.
    """

    learner: bool = False


@dataclass(frozen=True)
class Kill(WorkerFault):
    """SIGKILL. A nanny, if there is one, starts another worker in its place."""


@dataclass(frozen=True)
class TimedFault(WorkerFault):
    """A fault that ends after some seconds.

    Parameters
    ----------
    seconds : it lasts.
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"seconds: expected a number > 0, got {self.seconds!r}.")


@dataclass(frozen=True)
class Stop(TimedFault):
    """SIGSTOP, and SIGCONT after some seconds: a worker that answers nothing and is not gone.

    It ends by the clock and not by a version: the learner waits for the fragments of a stopped worker, so none might
    come. Dask gives a worker up that was silent for ``distributed.scheduler.worker-ttl``, by default 5 minutes.
    """


@dataclass(frozen=True)
class Slow(WorkerFault):
    """SIGSTOP and SIGCONT in turn, so that the process runs for only a part of the time.

    Parameters
    ----------
    factor : it runs for one in ``factor`` parts of the time.
    for_versions : until that many more versions are published.
    """

    factor: float = 10.0
    for_versions: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("for_versions", self.for_versions, 1)
        if not 1 < self.factor <= 1000:
            raise ConfigError(f"factor: expected a number > 1 and at most 1000, got {self.factor!r}.")


@dataclass(frozen=True)
class Partition(TimedFault):
    """The network of a worker cut for some seconds: it reaches nothing, and nothing reaches it, but it goes on.

    The worker must be in a network namespace of its own (``ip netns exec NAME dask worker ...``), whose links are taken
    down and up again; that needs root, ``ip`` and ``nsenter``. It ends by the clock, as `Stop`. Dask gives a connection
    up after ``distributed.comm.timeouts.tcp``, by default 30 s, and the worker with it; what it was at runs elsewhere.
    """


@dataclass(frozen=True)
class FillDisk(Fault):
    """Leave no byte free beside the store until that stops the run; then make room, and resume.

    Parameters
    ----------
    limit : bytes. The file system must not be larger, so that none is filled that others need.
    """

    limit: int = 64 << 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("limit", self.limit, 1)
