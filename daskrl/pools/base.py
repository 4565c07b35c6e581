"""What the loop asks of whatever runs its tasks: the plan of a run, its outcomes, and the interface of a pool.

`daskrl.pools.local` runs tasks in this process, `daskrl.pools.dask` on the workers of a Dask cluster.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from daskrl.algorithms.base import Algorithm, Setup, transitions_per_update
from daskrl.config import Options
from daskrl.envs.source import EnvironmentFactory
from daskrl.errors import WorkerMismatchError
from daskrl.pools import paused
from daskrl.records import ArithmeticRecord, Introduction, Record, Result, VersionsRecord, WrittenFile
from daskrl.schedule import Evaluate, Learn, Recheck, Rollout, Task
from daskrl.store.layout import Layout

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A finished task and its record."""

    task: Task
    record: Result


@dataclass(frozen=True)
class Plan:
    """What a pool must know of a run."""

    layout: Layout
    algorithm: Algorithm
    factory: EnvironmentFactory
    options: Options
    arithmetic: ArithmeticRecord | None = None

    @property
    def transitions_per_update(self) -> float:
        """What replay ratios are counted with."""
        config = self.layout.config
        return transitions_per_update(self.algorithm, Setup(self.layout.spec, config.schedule, config.frame_stack))


class Pool(Protocol):
    """Called by the driver's loop only, from one thread.

    Attributes
    ----------
    held : key of a learner -> versions of its weights that rollouts can be given now, for each learner of the run.
    in_flight : tasks submitted and not given back.
    arithmetic : record of what the run computes with, once known.
    promise_off : why the promise no longer holds; the driver commits and clears it.
    notes : other records for the driver to commit and clear.
    """

    promise_off: list[str]
    notes: list[Record]

    @property
    def held(self) -> Mapping[str, set[int]]: ...

    @property
    def in_flight(self) -> set[Task]: ...

    @property
    def arithmetic(self) -> ArithmeticRecord | None: ...

    def submit_rollouts(self, ready: Sequence[Rollout], head: int) -> None:
        """Start as many as there is room for."""

    def submit_learns(
        self, ready: Sequence[Learn], head: int, keep: Callable[[int], tuple[bool, bool]], learner: str = ""
    ) -> None:
        """Start as many of a learner's as there is room for; ``keep(version)``: write (weights, checkpoint)."""

    def submit_recheck(self, task: Recheck, head: int) -> None:
        """Start the recheck of a fragment."""

    def submit_evaluations(self, due: Sequence[Evaluate], kept: Mapping[int, WrittenFile], urgent: bool) -> None:
        """Go on with as many of a learner's as there is room for; ``kept``: version of its weights -> the file.

        Each outcome is a short while of playing, and the evaluation is to be gone on with until its record is whole. A
        rollout goes first: only where a slot has none to do, or it is ``urgent``, is there room.
        """

    def submit_checkpoint(self, kept: int, learner: str = "") -> None:
        """Have a learner write where it stands, if it published weights: after ``kept``, the weights too."""

    def wait(self) -> list[Outcome]:
        """Block until something happened; what finished, possibly nothing."""

    def release(self, needed: set[int], learner: str = "") -> None:
        """Forget a learner's weights but those versions."""

    def want(self, slots: int) -> None:
        """Ask for that many rollout slots, of a cluster that scales."""

    def workers(self) -> int:
        """Workers that run rollouts now."""

    def wake(self) -> None:
        """Make `wait` return. From any thread."""

    def close(self) -> None:
        """Stop; what is in flight is given up."""


def warn_of_window(plan: Plan, info: Introduction, device: str, limit: int | None = None) -> None:
    """Say that a learner's window does not fit, before it fills the memory and the process is killed.

    Parameters
    ----------
    info : what the learner's process said when it joined.
    limit : bytes at which Dask pauses it, if it does.
    """
    needs = getattr(plan.algorithm, "window_bytes", None)
    free = info["free"].get(device)
    if needs is None or free is None:
        return
    where = f"on {info['host']}, where the learner runs"
    if device == "cuda":
        where = f"on the GPU of {info['host']}, where the learner runs"
    elif limit is not None and limit - info["used"] < free:
        free, where = limit - info["used"], f"on {info['host']} before Dask pauses the learner's worker"
    config = plan.layout.config
    needed = needs(Setup(plan.layout.spec, config.schedule, config.frame_stack))
    if needed <= free:
        return
    smaller, window = "a smaller window", getattr(plan.algorithm, "window", 0)
    round_steps = config.schedule.round_steps
    fits = int(0.9 * window * max(0, free) / needed) // round_steps * round_steps
    if fits:
        smaller += f": window={fits}, on the command line -s window={fits}"
    warnings.warn(
        f"the window takes {paused.size(needed)} once it is full, and {paused.size(max(0, free))} are free {where}: "
        f"the run may be killed on the way. Give the learner more memory, or start a new run with {smaller}.",
        stacklevel=3,
    )


def take_note(notes: list[Record], note: VersionsRecord, who: str) -> None:
    """Say that others than the run's versions take part with the run's bits, and have it committed."""
    _LOG.warning("%s has %s, and the run's bits: it takes part.", who, ", ".join(note["alike"]))
    notes.append(note)


def refuse_or_warn(problem: str, strict: bool) -> str:
    if strict:
        raise WorkerMismatchError(
            f"{problem} Or go on without the promise: strict=False (--no-strict); the store will say so."
        )
    warnings.warn(f"{problem} Going on without the promise.", stacklevel=3)
    return problem
