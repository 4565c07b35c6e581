"""What the core of a pool has done: a worker as it knows it, and the instructions that it gives. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from daskrl.errors import DaskrlError
from daskrl.pools import paused
from daskrl.records import Fingerprint, Introduction, VersionsRecord


@dataclass(eq=False)
class Worker:
    """A Dask worker, as all runs of a client know it. Another one at the same address is another object.

    Attributes
    ----------
    learner_resource : whether it is meant for learners.
    status : Dask's.
    draining : it is about to be closed.
    fingerprint : what its process computes, once it has said.
    asked : its process has been asked for that.
    """

    address: str
    name: str
    threads: int
    learner_resource: bool
    status: str = paused.RUNNING
    memory: paused.Memory = paused.UNKNOWN
    draining: bool = False
    fingerprint: Fingerprint | None = None
    asked: bool = False

    @property
    def takes_tasks(self) -> bool:
        return paused.takes_tasks(self.status)


@dataclass(frozen=True)
class Introduce:
    """Ask the worker's process what it computes; for no run in particular."""

    worker: Worker


@dataclass(frozen=True)
class Join:
    """Ask the worker to take part in the run."""

    worker: Worker


@dataclass(frozen=True)
class GiveUp:
    """The worker is gone: so is what was on it."""

    address: str


@dataclass(frozen=True)
class Ease:
    """Have the worker, which Dask paused, let go of what it keeps for the run."""

    address: str


@dataclass(frozen=True)
class TakeBackLearns:
    """Another worker learns for this one, which takes no tasks."""

    address: str
    learner: str = ""


@dataclass(frozen=True)
class CheckWindow:
    """This worker is to learn: say so if the window does not fit there."""

    info: Introduction
    device: str
    limit: int | None


@dataclass(frozen=True)
class LearnBeside:
    """Start a process beside the driver for learners, which this worker must reach; tell `Election.beside_is`."""

    reached_from: str


@dataclass(frozen=True)
class EndBeside:
    """End that process."""


@dataclass(frozen=True)
class Say:
    """Warn the user."""

    text: str


@dataclass(frozen=True)
class Note:
    """Commit a record of who takes part with other versions."""

    record: VersionsRecord
    who: str


@dataclass(frozen=True)
class Break:
    """The promise does not hold for this reason: the run ends, or goes on without it."""

    problem: str


@dataclass(frozen=True)
class Fail:
    """The run cannot go on."""

    error: DaskrlError


Instruction = (
    Introduce | Join | GiveUp | Ease | TakeBackLearns | CheckWindow
    | LearnBeside | EndBeside | Say | Note | Break | Fail
)  # fmt: skip
Addressed = list[tuple[str, Instruction]]
"""Instructions, each with the run that is to carry it out: ``""`` where any may."""
