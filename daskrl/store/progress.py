"""How far a run is, counted from its commit records one after the other."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from daskrl.records import Record
from daskrl.schedule import Due, Rechecks


class Evaluated(NamedTuple):
    """A version of the weights and its mean return over the greedy episodes of its evaluation."""

    version: int
    mean: float


@dataclass
class Progress:
    """How far a run is: all that the schedule needs to know.

    Attributes
    ----------
    committed : rounds committed of each stream.
    published : newest weights version whose learning is committed; -1 before version 0.
    learner_updates : made up to that version.
    episodes : episodes that ended.
    returns : of the newest 100 of them.
    loss : mean loss of the newest version that had updates.
    kept : versions whose weights are kept on disk, and their files.
    evaluated : versions that were evaluated, and the mean return; None where that failed.
    limited : of those, how many episodes did not end, but were cut.
    arithmetic : what the run computes with, once its first learner is known.
    rechecks, due : what says which fragments are to be run again, and those that are.
    environment_off : whether the promise does not hold for what the environment does.
    out_of_bounds : whether an observation outside the bounds of its space was recorded.
    """

    committed: list[int]
    published: int = -1
    learner_updates: int = 0
    episodes: int = 0
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    arithmetic: Record | None = None
    loss: float | None = None
    kept: dict[int, list[Any]] = field(default_factory=dict)
    evaluated: dict[int, float | None] = field(default_factory=dict)
    limited: dict[int, int] = field(default_factory=dict)
    rechecks: Rechecks | None = None
    due: list[Due] = field(default_factory=list)
    environment_off: bool = False
    out_of_bounds: bool = False

    @property
    def evaluation(self) -> Evaluated | None:
        """The newest version that was evaluated."""
        found = [version for version, mean in self.evaluated.items() if mean is not None]
        return Evaluated(max(found), self.evaluated[max(found)] or 0.0) if found else None

    @property
    def best(self) -> Evaluated | None:
        """The version with the highest mean return of those evaluated; of equal ones the earliest."""
        found = [(-mean, version) for version, mean in self.evaluated.items() if mean is not None]
        return Evaluated(min(found)[1], -min(found)[0]) if found else None

    def take(self, record: Record) -> None:
        """Count one committed record in; of a stream, rounds come in order."""
        if record["kind"] == "fragment":
            self.committed[record["stream"]] += 1
            self.episodes += len(record["episodes"])
            self.returns.extend(episode[1] for episode in record["episodes"])
            self.out_of_bounds |= bool(record.get("out_of_bounds"))
            self.due.extend(self.rechecks.take(record) if self.rechecks is not None else ())
        elif record["kind"] == "promise_off":
            self.environment_off |= bool(record.get("environment"))
        elif record["kind"] == "learn":
            self.published = record["version"]
            self.learner_updates = record["learner_updates"]
            self.loss = record["loss"]
        elif record["kind"] == "evaluation":
            self.evaluated[record["version"]] = float(np.mean(record["returns"])) if record["returns"] else None
            self.limited[record["version"]] = record.get("limited", 0)
        elif record["kind"] == "arithmetic":
            self.arithmetic = record
        take_weights(self.kept, record)


def take_weights(kept: dict[int, list[Any]], record: Record) -> None:
    """Note the weights that a record of a version, or of a stop, says are on disk."""
    if record["kind"] in ("learn", "checkpoint") and record.get("weights"):
        kept.setdefault(record["version"], record["weights"])
