"""What a run has committed, as arrays: one pass over its log, which later passes go on from.

A part of the log that is damaged is left out and named; all else is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from daskrl.errors import DamagedError
from daskrl.records import Array, EvaluationRecord, FragmentRecord, LearnRecord, learner_of
from daskrl.store.log import Segment
from daskrl.store.store import Store

_FLUSH = 4096  # records that are held as Python's objects


@dataclass(frozen=True)
class Damage:
    """What cannot be read of a run.

    Attributes
    ----------
    run, file : of which run, and what messages call the file.
    fragment, column : of a chunk; None of other files.
    problem : a sentence.
    """

    run: str
    file: str
    fragment: int | None
    column: str | None
    problem: str


@dataclass(frozen=True)
class Catalog:
    """The committed fragments of one run, one row each in the order of slots, and what else its log says.

    Attributes
    ----------
    store : of the run.
    label : what tables call the run.
    commits : how many commits were looked at.
    slot, stream, round, weights_version : ``[F]``.
    continues : ``[F]`` whether the fragment goes on where the one before ended.
    wall_time, seconds : ``[F]`` when the fragment began, in seconds since 1970, and how long it took.
    worker : ``[F]`` index into ``workers``.
    first_episode, episode_step : ``[F, N]`` of each environment as the fragment began.
    nbytes, crc : ``[F, C]`` of each data column's chunk, in the order of ``store.columns``.
    ended_row, ended_env, ended_length, ended_return : ``[E]`` of each episode that ended, fragment after fragment and
        in the order of endings: the row of its fragment, its environment, its length and return as a whole.
    learned : the records of published versions, oldest first.
    evaluated : version -> mean return of its evaluation.
    kept : versions whose weights are kept.
    budget : env steps that the run is to have; None where no record says.
    damage : what of the log cannot be read.
    """

    store: Store
    label: str
    commits: int
    slot: Array
    stream: Array
    round: Array
    weights_version: Array
    continues: Array
    wall_time: Array
    seconds: Array
    worker: Array
    workers: tuple[str, ...]
    first_episode: Array
    episode_step: Array
    nbytes: Array
    crc: Array
    ended_row: Array
    ended_env: Array
    ended_length: Array
    ended_return: Array
    learned: tuple[LearnRecord, ...] = ()
    evaluated: Mapping[int, float] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    budget: int | None = None
    damage: tuple[Damage, ...] = ()

    def __len__(self) -> int:
        return len(self.slot)

    @property
    def fragment_steps(self) -> int:
        """T."""
        return self.store.config.schedule.fragment_steps

    @property
    def envs(self) -> int:
        """N."""
        return self.store.config.schedule.envs_per_stream

    @property
    def lanes(self) -> int:
        """Environments of all streams."""
        return self.store.config.schedule.lanes

    @property
    def size(self) -> int:
        """Transitions of one fragment."""
        return self.fragment_steps * self.envs

    @property
    def published(self) -> int:
        """The newest version of the weights; -1 before version 0."""
        return max((record["version"] for record in self.learned), default=-1)

    @property
    def finished(self) -> bool:
        """Whether the run has learned all that it was asked for."""
        return self.budget is not None and self.published >= self.store.config.schedule.rounds(self.budget)

    @property
    def newest(self) -> float:
        """When the newest fragment ended, in seconds since 1970; NaN without one."""
        return float((self.wall_time + self.seconds).max()) if len(self) else float("nan")

    def only(self, rows: Array) -> Catalog:
        """With some of the fragments, and without what is not needed to read them."""
        some = {name: getattr(self, name)[rows] for name in _OF_FRAGMENTS}
        none = {name: getattr(self, name)[:0] for name in _OF_ENDED}
        return dataclasses.replace(self, **some, **none, learned=(), damage=())

    def row_of(self, stream: Array, round_: Array) -> Array:
        """The rows of fragments, -1 where there is none."""
        wanted = round_ * self.store.config.schedule.streams + stream
        rows = np.searchsorted(self.slot, wanted)
        found = rows < len(self)
        found[found] = self.slot[rows[found]] == wanted[found]
        return np.where(found, rows, -1)


class _Pass:
    """Records as they are counted in: of fragments some as Python's objects, older ones as arrays."""

    def __init__(self, store: Store) -> None:
        self.columns = tuple(store.columns)
        self.held: list[FragmentRecord] = []
        self.workers: dict[str, int] = {}
        self.parts: list[dict[str, Array]] = []
        self.fragments = 0

    def take(self, record: FragmentRecord) -> None:
        self.held.append(record)
        if len(self.held) == _FLUSH:
            self.flush()

    def flush(self) -> None:
        held = self.held
        if not held:
            return
        part: dict[str, Array] = {
            name: np.array([record[name] for record in held], np.int64)
            for name in ("slot", "stream", "round", "weights_version", "first_episode", "episode_step")
        }
        part["continues"] = np.array([record["continues"] for record in held], np.bool_)
        for name in ("wall_time", "seconds"):
            part[name] = np.array([record[name] for record in held], np.float64)
        part["worker"] = np.array(
            [self.workers.setdefault(record["worker"], len(self.workers)) for record in held], np.int32
        )
        of_chunks = np.array([[record["columns"][name] for name in self.columns] for record in held], np.int64)
        part["nbytes"], part["crc"] = of_chunks[..., 0], of_chunks[..., 1].astype(np.uint32)
        ended = [(row, *episode) for row, record in enumerate(held, self.fragments) for episode in record["episodes"]]
        table = np.array(ended, np.float64).reshape(-1, 4)
        part["ended_row"], part["ended_env"] = table[:, 0].astype(np.int64), table[:, 1].astype(np.int32)
        part["ended_return"], part["ended_length"] = table[:, 2], table[:, 3].astype(np.int64)
        self.parts.append(part)
        self.fragments += len(held)
        self.held = []


_OF_FRAGMENTS = (
    "slot", "stream", "round", "weights_version", "first_episode", "episode_step", "continues", "wall_time", "seconds",
    "worker", "nbytes", "crc",
)  # fmt: skip
_OF_ENDED = ("ended_row", "ended_env", "ended_length", "ended_return")


def empty(store: Store, label: str) -> Catalog:
    """Of a log of which nothing was read yet."""
    envs, columns = store.config.schedule.envs_per_stream, len(store.columns)
    integers, floats = np.empty(0, np.int64), np.empty(0, np.float64)
    lanes = np.empty((0, envs), np.int64)
    return Catalog(
        store, label, 0, integers, integers, integers, integers, np.empty(0, np.bool_), floats, floats,
        np.empty(0, np.int32), (), lanes, lanes, np.empty((0, columns), np.int64), np.empty((0, columns), np.uint32),
        integers, np.empty(0, np.int32), integers, floats,
    )  # fmt: skip


def read(store: Store, label: str) -> Catalog:
    """All that the log of a run says, as far as it can be read."""
    return refreshed(empty(store, label))


def refreshed(before: Catalog) -> Catalog:
    """A catalog with what was committed since as well."""
    store = before.store
    new = _Pass(store)
    new.workers = {name: number for number, name in enumerate(before.workers)}
    learned, evaluated, kept = list(before.learned), dict(before.evaluated), set(before.kept)
    budget, damage, commits = before.budget, list(before.damage), before.commits
    for number, segment in _segments(store, before.commits):
        commits = number + 1
        if isinstance(segment, DamagedError):
            damage.append(Damage(before.label, store.log.where(number), None, None, str(segment)))
            continue
        for record in segment.records:
            if record["kind"] == "fragment":
                new.take(record)
            elif record["kind"] == "budget":
                budget = record["env_steps"]
            elif record["kind"] in ("learn", "checkpoint", "evaluation") and learner_of(record):
                continue  # of another learner
            elif record["kind"] == "evaluation":
                _take_evaluation(record, evaluated)
            elif record["kind"] == "learn" or record["kind"] == "checkpoint":
                if record["kind"] == "learn":
                    learned.append(record)
                if record.get("weights"):
                    kept.add(record["version"])
    new.flush()
    said: dict[str, Any] = {
        "learned": tuple(learned), "evaluated": evaluated, "kept": frozenset(kept), "budget": budget,
        "damage": tuple(damage), "commits": commits, "workers": tuple(new.workers),
    }  # fmt: skip
    return dataclasses.replace(before, **said, **_joined(before, new.parts))


def _take_evaluation(record: EvaluationRecord, evaluated: dict[int, float]) -> None:
    if record["returns"]:
        evaluated[record["version"]] = float(np.mean(record["returns"]))


def _joined(before: Catalog, parts: Sequence[Mapping[str, Array]]) -> dict[str, Any]:
    """The arrays of all parts as one, by slot: of streams that go on at their own pace slots are out of order."""
    if not parts:
        return {}
    joined = {
        name: np.concatenate([getattr(before, name), *(part[name] for part in parts)])
        for name in (*_OF_FRAGMENTS, *_OF_ENDED)
    }
    joined["ended_row"][len(before.ended_row) :] += len(before)
    order = np.argsort(joined["slot"], kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    rows = place[joined["ended_row"]]
    by_row = np.argsort(rows, kind="stable")
    made = {name: joined[name][order] for name in _OF_FRAGMENTS}
    made |= {name: joined[name][by_row] for name in _OF_ENDED}
    return {**made, "ended_row": rows[by_row]}


def _segments(store: Store, start: int) -> Iterator[tuple[int, Segment | DamagedError]]:
    """The commits from ``start`` on, each read or why it cannot be."""
    log = store.log
    head = max(log.numbers(start), default=start - 1) + 1

    def one(number: int) -> tuple[int, Segment | DamagedError]:
        try:
            return number, log.segment(number)
        except DamagedError as error:
            return number, error

    return store.storage.at_once(one, range(start, head))
