"""How far a run is, counted from its commit records one after the other."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from daskrl.records import (
    ArithmeticRecord,
    BudgetRecord,
    CheckpointRecord,
    EvaluationRecord,
    LearnRecord,
    PromiseOffRecord,
    Record,
    WrittenFile,
    learner_of,
)
from daskrl.schedule import Due, Rechecks
from daskrl.store.log import Segment


class Evaluated(NamedTuple):
    """A version of the weights and its mean return over the greedy episodes of its evaluation."""

    version: int
    mean: float


@dataclass
class Progress:
    """How far a run is: all that the schedule needs to know of its streams, and of one of its learners.

    A run of several learners has a progress for each, counted from the same records.

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
    budget : the newest record of how far the run is to go.
    off : the records that say why the promise does not hold.
    commits : whole commits counted in, by `take_commit`.
    newest_crc32c : of the newest of them.
    learner : the key of the learner that versions, updates, loss and evaluations are of; "" where a run has one.
    """

    committed: list[int]
    published: int = -1
    learner_updates: int = 0
    episodes: int = 0
    returns: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    arithmetic: ArithmeticRecord | None = None
    loss: float | None = None
    kept: dict[int, WrittenFile] = field(default_factory=dict)
    evaluated: dict[int, float | None] = field(default_factory=dict)
    limited: dict[int, int] = field(default_factory=dict)
    rechecks: Rechecks | None = None
    due: list[Due] = field(default_factory=list)
    environment_off: bool = False
    out_of_bounds: bool = False
    budget: BudgetRecord | None = None
    off: list[PromiseOffRecord] = field(default_factory=list)
    commits: int = 0
    newest_crc32c: int = 0
    learner: str = ""

    @property
    def fragments(self) -> int:
        """How many are committed."""
        return sum(self.committed)

    @property
    def slots(self) -> int:
        """One more than the highest slot of a committed fragment."""
        streams = len(self.committed)
        return max(((done - 1) * streams + stream + 1 for stream, done in enumerate(self.committed) if done), default=0)

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
        if record["kind"] == "learn" or record["kind"] == "checkpoint" or record["kind"] == "evaluation":
            if learner_of(record) == self.learner:
                self._take_of_learner(record)
        elif record["kind"] == "fragment":
            self.committed[record["stream"]] += 1
            self.episodes += len(record["episodes"])
            self.returns.extend(episode[1] for episode in record["episodes"])
            self.out_of_bounds |= bool(record.get("out_of_bounds"))
            self.due.extend(self.rechecks.take(record) if self.rechecks is not None else ())
        elif record["kind"] == "promise_off":
            self.environment_off |= bool(record.get("environment"))
            self.off.append(record)
        elif record["kind"] == "arithmetic":
            self.arithmetic = record
        elif record["kind"] == "budget":
            self.budget = record

    def _take_of_learner(self, record: LearnRecord | CheckpointRecord | EvaluationRecord) -> None:
        if record["kind"] == "evaluation":
            self.evaluated[record["version"]] = float(np.mean(record["returns"])) if record["returns"] else None
            self.limited[record["version"]] = record.get("limited", 0)
            return
        if record["kind"] == "learn":
            self.published = record["version"]
            self.learner_updates = record["learner_updates"]
            self.loss = record["loss"]
        if written := record.get("weights"):
            self.kept.setdefault(record["version"], written)

    def take_commit(self, segment: Segment) -> None:
        """Count in all records of the next commit."""
        for record in segment.records:
            self.take(record)
        self.commits += 1
        self.newest_crc32c = segment.crc32c

    def copy(self) -> Progress:
        """One that can be counted on without changing this one; without `rechecks`."""
        values = {name: copy.copy(getattr(self, name)) for name in _COUNTED}
        return Progress(**values, learner=self.learner)

    def to_json(self) -> dict[str, Any]:
        """All that was counted, without `rechecks` and what is due by them."""
        return {**{name: getattr(self, name) for name in _COUNTED}, "returns": list(self.returns)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], learner: str = "") -> Progress:
        """Raises KeyError, TypeError, ValueError or AttributeError where ``data`` is not from `to_json`."""
        values = {name: data[name] for name in _COUNTED}
        made = cls(**values, learner=learner)
        made.returns = deque(data["returns"], maxlen=cls([]).returns.maxlen)
        for name in ("kept", "evaluated", "limited"):
            setattr(made, name, {int(version): value for version, value in data[name].items()})
        return made


_COUNTED = tuple(one.name for one in fields(Progress) if one.name not in ("rechecks", "due", "learner"))
