"""What rooms hand to one another: arrays, the records of the commit log, and what tasks give back.

A record is a JSON object with a ``kind``; FORMAT.md, section 5, says what each key means. A later
daskrl may write kinds and keys that are not here: whoever reads records takes those it knows and no notice of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

WrittenFile = list[Any]
"""``[path, nbytes, crc32c]`` of a file of the store; the path is relative to it."""


def learner_of(record: LearnRecord | CheckpointRecord | EvaluationRecord | Republished | Evaluating) -> str:
    """The key of the learner that a record is of: "" where it names none, as of a run with one learner."""
    return record.get("learner", "")


class CreatedRecord(TypedDict):
    """The first of all: the store was made."""

    kind: Literal["created"]
    attributes_crc32c: int


class InitRecord(TypedDict):
    """What a run begins with, where its first weights are given."""

    kind: Literal["init"]
    arrays: WrittenFile
    replay: WrittenFile | None


class BudgetRecord(TypedDict):
    """How far the run is to go, and how it is carried out; the newest counts."""

    kind: Literal["budget"]
    env_steps: int
    options: dict[str, Any]


class ArithmeticRecord(TypedDict):
    """What the run computes with."""

    kind: Literal["arithmetic"]
    device: str
    device_name: str | None
    cpu: str
    cuda: str | None
    probes: NotRequired[dict[str, str]]
    versions: dict[str, str]
    settings: dict[str, Any]


class VersionsRecord(TypedDict):
    """A process of other versions than the run's, and of its bits, took part."""

    kind: Literal["versions"]
    who: str
    host: str | None
    versions: dict[str, str]
    alike: list[str]


class DriverRecord(TypedDict):
    """Another driver has the store from here on, where a lock alone does not keep the one before from committing."""

    kind: Literal["driver"]


class PlayedFragment(TypedDict):
    """The record of a fragment before it is written."""

    kind: Literal["fragment"]
    slot: int
    stream: int
    round: int
    weights_version: int
    continues: bool
    episodes: list[list[Any]]
    first_episode: list[int]
    episode_step: list[int]
    environment_seed: list[int]
    out_of_bounds: NotRequired[list[str]]


class FragmentRecord(PlayedFragment):
    """A fragment exists."""

    columns: dict[str, list[int]]
    wall_time: float
    seconds: float
    worker: str


class ReadFragment(TypedDict):
    """What is needed of a fragment's record to learn from it: all that is kept of another run's."""

    slot: int
    stream: int
    round: int
    episode_step: list[int]
    continues: bool
    columns: dict[str, list[int]]


class LearnRecord(TypedDict):
    """A version of the weights is published."""

    kind: Literal["learn"]
    version: int
    learner: NotRequired[str]
    learner_updates: int
    loss: float | None
    seconds: float
    updates: int
    device: str
    weights: WrittenFile | None
    checkpoint: WrittenFile | None


class CheckpointRecord(TypedDict):
    """A run was stopped on the way, and its learner wrote where it stood."""

    kind: Literal["checkpoint"]
    version: int
    learner: NotRequired[str]
    loss: float | None
    checkpoint: WrittenFile | None
    weights: NotRequired[WrittenFile | None]


class EvaluationRecord(TypedDict):
    """A version was evaluated while the run went on."""

    kind: Literal["evaluation"]
    version: int
    learner: NotRequired[str]
    returns: list[float]
    lengths: list[int]
    limited: NotRequired[int]
    max_episode_steps: NotRequired[int]
    seed: int
    seconds: float
    error: NotRequired[str]


class PromiseOffRecord(TypedDict):
    """From here on another run of the same config may differ."""

    kind: Literal["promise_off"]
    reason: str
    environment: NotRequired[bool]


Record = (
    CreatedRecord
    | InitRecord
    | BudgetRecord
    | ArithmeticRecord
    | VersionsRecord
    | DriverRecord
    | FragmentRecord
    | LearnRecord
    | CheckpointRecord
    | EvaluationRecord
    | PromiseOffRecord
)
"""What is committed."""


def checkpoints(
    records: Iterable[Record], learner: str = ""
) -> Iterator[tuple[LearnRecord | CheckpointRecord, WrittenFile]]:
    """Those of some records that name a checkpoint of a learner, and its file."""
    for record in records:
        if record["kind"] == "learn" or record["kind"] == "checkpoint":
            written = record.get("checkpoint")
            if written and learner_of(record) == learner:
                yield record, written


class Republished(TypedDict):
    """Weights that were lost, from a checkpoint: the `LearnRecord` of their version is committed already."""

    kind: Literal["republished"]
    version: int
    learner: NotRequired[str]


class Evaluating(TypedDict):
    """An evaluation was played for a short while, and is to be gone on with."""

    kind: Literal["evaluating"]
    version: int
    learner: NotRequired[str]


class RecheckResult(TypedDict):
    """A fragment was run a second time; ``problem`` says what differs and what to look for, None where nothing does."""

    kind: Literal["recheck"]
    slot: int
    problem: str | None


Result = FragmentRecord | LearnRecord | CheckpointRecord | EvaluationRecord | Republished | Evaluating | RecheckResult
"""What tasks give back: records to commit, and what a driver has to know and commits nothing of."""


class Fingerprint(TypedDict):
    """What a process computes with, whatever the run."""

    cpu: str
    cuda: str | None
    cuda_name: str | None
    probes: dict[str, str]
    settings: dict[str, Any]
    bytecode: str
    host: str
    pid: int


class Joined(TypedDict):
    """What a process has for one run: what it says when it joins.

    ``free`` is in bytes by device, None where there is no such device; ``used`` is what the process has.
    """

    versions: dict[str, str]
    free: Mapping[str, int | None]
    used: int


class Introduction(Fingerprint, Joined):
    """What a process would compute a run with."""


@dataclass(frozen=True)
class Report:
    """What is known after a version of the weights was published.

    Attributes
    ----------
    weights_version : rounds learned.
    env_steps : transitions committed.
    learner_updates : gradient updates made.
    episode_return : mean return of the newest 100 finished episodes; None before the first.
    episodes : finished episodes.
    loss : mean loss of the round; None before the first update.
    policy_lag : rounds between the newest committed fragment and the weights it acted with.
    replay_ratio : how often a transition was learned from, in the mean so far: gradient updates x transitions in each,
        per transition.
    workers : workers running rollouts now; 0 in-process.
    seconds : since this driver started.
    time_left : seconds to go at this driver's pace; None at first.
    evaluation_version : the newest version that was evaluated (``evaluate_every``); None before the first.
    evaluation_return : the mean return of its greedy episodes.
    best_version : the version with the highest such mean.
    best_return : its mean.
    """

    weights_version: int
    env_steps: int
    learner_updates: int
    episode_return: float | None
    episodes: int
    loss: float | None
    policy_lag: int
    replay_ratio: float
    workers: int
    seconds: float
    time_left: float | None
    evaluation_version: int | None = None
    evaluation_return: float | None = None
    best_version: int | None = None
    best_return: float | None = None
