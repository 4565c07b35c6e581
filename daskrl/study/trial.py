"""One run of a study as one task: in-process on a worker, from wherever its store stands.

The task is a pure function of (what was prepared, what is committed in the run's store), so it may run twice, anywhere.
Import-light: the scheduler unpickles the task function.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict, cast

from daskrl.store.storage import Storage
from daskrl.study.handing import Begins, begun, hand_on, require_begun
from daskrl.study.outcomes import keep, kept

if TYPE_CHECKING:
    from distributed import Client

    from daskrl.prepared import Prepared
    from daskrl.records import ArithmeticRecord, Joined, Record
    from daskrl.run import Run
    from daskrl.store.store import Store
    from daskrl.study.scores import Score

_AGAIN = 256
"""Env steps that a run which is one task learns again at most, where its worker is lost; no less than a round.

A checkpoint takes about as long as one or two updates, so one for so many steps costs half a percent.
"""


class TrialRecord(TypedDict):
    """A run of the study is over, for the env steps that it was asked."""

    kind: Literal["trial"]
    trial: str
    env_steps: int
    score: float | None
    digest: NotRequired[str]
    handed: NotRequired[str]
    transitions: NotRequired[int]
    episodes: NotRequired[int]
    learner_updates: NotRequired[int]
    return_last_100: NotRequired[float | None]
    promise: NotRequired[list[str]]
    error: NotRequired[str]
    trace: NotRequired[str]
    seconds: float
    worker: str
    queued: NotRequired[float]


@dataclass(frozen=True)
class Job:
    """What a task is to do.

    Attributes
    ----------
    trial : what the run is known by, see `trial_key`.
    place : of the run's store.
    pack : whether the run is packed into one file once it is there.
    given : the run and its score, for other processes packed by `packed`; the seed is the job's own.
    arithmetic : what the runs of the study compute with.
    judged : what the score is known by, see `daskrl.study.outcomes`.
    begins : what the run begins with, where it is not drawn.
    hands_to : where it leaves what other runs may begin with, once it is over; None for nowhere.
    ready : since when it could be carried out, on the clock of the process that made it.
    """

    trial: str
    place: Storage
    seed: int
    env_steps: int
    arithmetic: ArithmeticRecord
    pack: bool
    given: bytes | tuple[Prepared, Score] = field(repr=False)
    judged: str = ""
    begins: Begins | None = None
    hands_to: Storage | None = None
    ready: float = field(default_factory=time.monotonic)


class Busy(TypedDict):
    """Another process has the run's store: a worker that its driver lost goes on with it."""

    kind: Literal["busy"]


class Refused(TypedDict):
    """This worker computes otherwise than the study's runs do; another one has to do the job."""

    kind: Literal["refused"]
    worker: str
    reason: str


class Stopped(TypedDict):
    """Somebody stopped the run before it reached its env steps: it goes on where it stands, when it is asked to."""

    kind: Literal["stopped"]


Outcome = TrialRecord | Busy | Refused | Stopped


def trial_key(prepared: Prepared, begins: Begins | None = None) -> str:
    """What a run of a study is known by: its config (with the seed and hashes of sources), versions of packages, and
    the run that it begins with.
    """
    decides = [prepared.config.to_json(), prepared.versions, *([] if begins is None else [begins.identity])]
    said = json.dumps(decides, sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:20]


def packed(prepared: Prepared, score: Score) -> bytes:
    """A run and its score for other processes. What was defined outside installed packages goes by value."""
    from daskrl.tasks import session

    factory, algorithm = prepared.source.factory, prepared.algorithm
    return session.by_value((prepared, score), type(algorithm), factory, score)


@functools.lru_cache(maxsize=64)
def _unpacked(data: bytes) -> tuple[Prepared, Score]:
    import cloudpickle

    from daskrl.tasks import session

    found: tuple[Prepared, Score] = session.offered(data) or cloudpickle.loads(data)
    return found


def carry_out(job: Job, began: Callable[[Run], None] = lambda run: None) -> Outcome:
    """Bring a run to its env steps, from wherever it stands, and score it. A run that fails is a record, too.

    Parameters
    ----------
    began : as of `spread_out`.

    Raises
    ------
    StoreFullError, StoreUnreachableError
        No run can go on. Nothing is lost.
    """
    from daskrl.tasks import children

    children.allow()  # as environments may have: a process that runs tasks must be allowed to
    return spread_out(job, None, began)


def spread_out(job: Job, client: Client | None, began: Callable[[Run], None] = lambda run: None) -> Outcome:
    """The same from this process, with the run's tasks spread over the workers of a client.

    Parameters
    ----------
    began : is told of the run before it goes on, so that it can be stopped.
    """
    from daskrl.errors import StoreFullError, StoreLockedError, StoreUnreachableError, WorkerMismatchError
    from daskrl.store.pack import pack
    from daskrl.store.packed import Packed

    start = time.monotonic()
    prepared, score = _unpacked(job.given) if isinstance(job.given, bytes) else job.given
    store: Store | None = None
    looked = False
    try:
        prepared, store = opened(prepared.with_seed(job.seed), job)
        looked = True
        # Whoever scored it may have been lost before the study's log had the record.
        there = None if store is None else kept(store.storage, job.trial, job.env_steps, job.judged)
        record = cast("TrialRecord | None", there)
        if store is None or record is None:
            store = carried_on(prepared, store, job, client, began)
            record = record_of(store, prepared, score, job, start)
            if "error" not in record and not isinstance(store.storage, Packed):
                keep(store.storage, record, job.judged)
        if job.pack and "error" not in record:
            pack(store)
        return record
    except StoreLockedError:
        return {"kind": "busy"}
    except StoppedError:
        return {"kind": "stopped"}
    except WorkerMismatchError as error:
        return {"kind": "refused", "worker": _worker(), "reason": str(error)}
    except (StoreFullError, StoreUnreachableError):
        raise
    except Exception as error:
        if looked and _moved(job, store):
            return {"kind": "busy"}
        return failed(job, error, time.monotonic() - start)


def _moved(job: Job, store: Store | None) -> bool:
    """Whether another process made, packed or unpacked the run meanwhile: files went while they were read.

    A worker that its driver lost scores and packs a run beside the one that was sent the run again.
    """
    from daskrl.store.places import found
    from daskrl.store.store import Store

    if store is None:
        return Store.exists(job.place)
    return found(job.place) != store.storage


class StoppedError(Exception):
    """Somebody stopped the run before it reached its env steps."""


def opened(prepared: Prepared, job: Job) -> tuple[Prepared, Store | None]:
    """The run as it is in its store, and that; the run as it is to be, and None, where it was not begun.

    Raises
    ------
    StoreMismatchError
        Another run is there.
    """
    from daskrl.errors import DaskrlError
    from daskrl.store.store import Store

    if not Store.exists(job.place):
        return (prepared if job.begins is None else begun(prepared, job.begins)), None
    try:
        store = Store.open(job.place)
    except (DaskrlError, OSError):  # its files went at this moment, as it was packed
        store = Store.open(job.place)
    if job.begins is not None:
        prepared = require_begun(store, prepared, job.begins)
    _require_same(store, prepared)
    return prepared, store


def carried_on(
    prepared: Prepared, store: Store | None, job: Job, client: Client | None, began: Callable[[Run], None]
) -> Store:
    """Carry the run on to the job's env steps, from where its store stands; it is made where there is none."""
    from daskrl.run import Run
    from daskrl.store.pack import unpack
    from daskrl.store.packed import Packed

    if store is None:
        store = dataclasses.replace(prepared, env_steps=job.env_steps).create(job.place)
    else:
        if isinstance(store.storage, Packed):
            there = store.published() == prepared.config.schedule.rounds(job.env_steps)
            if there and store.budget()["env_steps"] == job.env_steps:
                return store  # whoever carried it on was lost before its record was committed
        store = unpack(store)
    _ready(store, prepared, job)
    options = prepared.options
    if client is None:
        options = dataclasses.replace(options, checkpoint_every=often(prepared))
    run = Run(store, prepared.algorithm, prepared.source, options, job.env_steps, client, progress=False)
    began(run)
    run.wait()
    if not run.finished:
        raise StoppedError(str(store.storage))
    return store


def often(prepared: Prepared) -> int:
    """Rounds between two checkpoints of a run that is one task: as the options say, or sooner.

    A worker that is lost takes with it what was learned since, and the rounds of a small run are few.
    """
    steps = prepared.config.schedule.round_steps
    return min(prepared.options.checkpoint_every, max(1, _AGAIN // steps))


def _ready(store: Store, prepared: Prepared, job: Job) -> None:
    """Commit what the run computes with and how far it is to go, where its store does not have it."""
    from daskrl.errors import StoreMismatchError

    steps = store.budget()["env_steps"]
    if steps > job.env_steps:
        raise StoreMismatchError(
            f"{store.storage} was taken to {steps:,} env steps, beyond the {job.env_steps:,} that are to be scored."
        )
    if steps == job.env_steps and store.progress().arithmetic is not None:
        return  # to take the lock is to read the whole log
    progress = store.lock()
    try:
        records: list[Record] = []
        steps = store.budget()["env_steps"]
        if progress.arithmetic is None:
            versions = {
                name: job.arithmetic["versions"].get(name, prepared.versions[name]) for name in prepared.versions
            }
            records.append({**job.arithmetic, "versions": versions})
        if steps < job.env_steps:
            options = dataclasses.asdict(prepared.options)
            records.append({"kind": "budget", "env_steps": job.env_steps, "options": options})
        if records:
            store.commit(records)
    finally:
        store.unlock()


def _require_same(store: Store, prepared: Prepared) -> None:
    from daskrl.errors import StoreMismatchError

    if json.dumps(store.config.to_json(), sort_keys=True) != json.dumps(prepared.config.to_json(), sort_keys=True):
        raise StoreMismatchError(f"{store.storage} holds another run than this one of the study. Move it elsewhere.")


def record_of(store: Store, prepared: Prepared, score: Score, job: Job, began: float) -> TrialRecord:
    """The record of a run that reached its env steps, with an error where its score is no number."""
    import math

    from daskrl.study.scores import scored

    said = store.summary()
    number = scored(score, store, prepared.algorithm, prepared.source)
    promise = said["promise"]
    record: TrialRecord = {
        **_of(job, time.monotonic() - began),
        "score": number if math.isfinite(number) else None,
        "digest": store.digest(),
        "transitions": said["env_steps"],
        "episodes": said["episodes"],
        "learner_updates": said["learner_updates"],
        "return_last_100": said["return_last_100"],
    }
    if job.hands_to is not None:
        record["handed"] = hand_on(store, prepared.algorithm, job.trial, job.env_steps, job.hands_to)
    if promise != "kept":
        record["promise"] = promise
    if not math.isfinite(number):
        none = "" if said["episodes"] else (
            f" None of its episodes ended in {said['env_steps']:,} env steps of {prepared.setup.schedule.lanes:,} "
            "environments: choose later rungs, more env_steps or fewer environments."
        )  # fmt: skip
        record["error"] = f"the score is {number}: expected a finite number.{none} Look at the run in {store.storage}"
    return record


def failed(job: Job, error: BaseException, seconds: float) -> TrialRecord:
    """The record of a run that failed."""
    trace = "".join(traceback.format_exception(error))[-8000:]
    return {**_of(job, seconds), "error": f"{type(error).__name__}: {error}", "trace": trace}


def _of(job: Job, seconds: float) -> TrialRecord:
    """What each record has."""
    return {
        "kind": "trial", "trial": job.trial, "env_steps": job.env_steps, "score": None, "seconds": seconds,
        "worker": _worker(),
    }  # fmt: skip


def _worker() -> str:
    with contextlib.suppress(ImportError, ValueError):
        from distributed import get_worker

        return str(get_worker().address)
    return "in-process"


def introduce(packages: list[str], device: str) -> ArithmeticRecord:
    """What this process computes with: the first to be asked says what all runs of a study compute with."""
    from daskrl.tasks import fingerprint, session

    joined: Joined = {"versions": session.versions(packages), "free": {}, "used": 0}
    return fingerprint.reference({**session.fingerprinted(), **joined}, device)
