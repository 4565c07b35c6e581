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
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict

from daskrl.store.storage import Storage
from daskrl.study.handing import Begins, begun, hand_on, require_begun

if TYPE_CHECKING:
    from distributed import Client

    from daskrl.prepared import Prepared
    from daskrl.records import ArithmeticRecord, Joined, Record
    from daskrl.run import Run
    from daskrl.store.store import Store
    from daskrl.study.scores import Score


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
    begins : what the run begins with, where it is not drawn.
    hands_to : where it leaves what other runs may begin with, once it is over; None for nowhere.
    """

    trial: str
    place: Storage
    seed: int
    env_steps: int
    arithmetic: ArithmeticRecord
    pack: bool
    given: bytes | tuple[Prepared, Score] = field(repr=False)
    begins: Begins | None = None
    hands_to: Storage | None = None


class Busy(TypedDict):
    """Another process has the run's store: a worker that its driver lost goes on with it."""

    kind: Literal["busy"]


class Refused(TypedDict):
    """This worker computes otherwise than the study's runs do; another one has to do the job."""

    kind: Literal["refused"]
    worker: str
    reason: str


Outcome = TrialRecord | Busy | Refused


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


def carry_out(job: Job) -> Outcome:
    """Bring a run to its env steps, from wherever it stands, and score it. A run that fails is a record, too.

    Raises
    ------
    StoreFullError, StoreUnreachableError
        No run can go on. Nothing is lost.
    """
    from daskrl.tasks import children

    children.allow()  # as environments may have: a process that runs tasks must be allowed to
    return spread_out(job, None)


def spread_out(job: Job, client: Client | None, began: Callable[[Run], None] = lambda run: None) -> Outcome:
    """The same from this process, with the run's tasks spread over the workers of a client.

    Parameters
    ----------
    began : is told of the run before it goes on, so that it can be stopped.
    """
    from daskrl.errors import StoreFullError, StoreLockedError, StoreUnreachableError, WorkerMismatchError
    from daskrl.store.pack import pack

    start = time.monotonic()
    prepared, score = _unpacked(job.given) if isinstance(job.given, bytes) else job.given
    try:
        store = carried_on(prepared.with_seed(job.seed), job, client, began)
        record = record_of(store, prepared, score, job, start)
        if job.pack and "error" not in record:
            pack(store)
        return record
    except StoreLockedError:
        return {"kind": "busy"}
    except WorkerMismatchError as error:
        return {"kind": "refused", "worker": _worker(), "reason": str(error)}
    except (StoreFullError, StoreUnreachableError):
        raise
    except Exception as error:
        return failed(job, error, time.monotonic() - start)


class StoppedError(Exception):
    """Somebody stopped the run before it reached its env steps."""


def carried_on(prepared: Prepared, job: Job, client: Client | None, began: Callable[[Run], None]) -> Store:
    """Make the run's store or open it, and carry the run on to the job's env steps."""
    from daskrl.errors import StoreMismatchError
    from daskrl.run import Run
    from daskrl.store.pack import unpack
    from daskrl.store.packed import Packed
    from daskrl.store.store import Store

    if Store.exists(job.place):
        store = Store.open(job.place)
        if job.begins is not None:
            prepared = require_begun(store, prepared, job.begins)
        _require_same(store, prepared)
        rounds = prepared.config.schedule.rounds(job.env_steps)
        there = store.budget()["env_steps"] == job.env_steps and store.published() == rounds
        if isinstance(store.storage, Packed) and there:
            return store  # whoever carried it on was lost before its record was committed
        store = unpack(store)
    else:
        made = prepared if job.begins is None else begun(prepared, job.begins)
        store = dataclasses.replace(made, env_steps=job.env_steps).create(job.place)
    progress = store.lock()
    try:
        records: list[Record] = []
        if progress.arithmetic is None:
            versions = {
                name: job.arithmetic["versions"].get(name, prepared.versions[name]) for name in prepared.versions
            }
            records.append({**job.arithmetic, "versions": versions})
        steps = store.budget()["env_steps"]
        if steps > job.env_steps:
            raise StoreMismatchError(
                f"{store.storage} was taken to {steps:,} env steps, beyond the {job.env_steps:,} that are to be scored."
            )
        if steps < job.env_steps:
            options = dataclasses.asdict(prepared.options)
            records.append({"kind": "budget", "env_steps": job.env_steps, "options": options})
        if records:
            store.commit(records)
    finally:
        store.unlock()
    run = Run(store, prepared.algorithm, prepared.source, prepared.options, job.env_steps, client, progress=False)
    began(run)
    run.wait()
    if not run.finished:
        raise StoppedError(str(store.storage))
    return store


def _require_same(store: Store, prepared: Prepared) -> None:
    from daskrl.errors import StoreMismatchError

    if json.dumps(store.config.to_json(), sort_keys=True) != json.dumps(prepared.config.to_json(), sort_keys=True):
        raise StoreMismatchError(f"{store.storage} holds another run than this one of the study. Move it elsewhere.")


def record_of(store: Store, prepared: Prepared, score: Score, job: Job, began: float) -> TrialRecord:
    """The record of a run that reached its env steps."""
    import math

    from daskrl.study.scores import scored

    said = store.summary()
    number = scored(score, store, prepared.algorithm, prepared.source)
    promise = said["promise"]
    record: TrialRecord = {
        "kind": "trial",
        "trial": job.trial,
        "env_steps": job.env_steps,
        "score": number if math.isfinite(number) else None,
        "digest": store.digest(),
        "transitions": said["env_steps"],
        "episodes": said["episodes"],
        "learner_updates": said["learner_updates"],
        "return_last_100": said["return_last_100"],
        "seconds": time.monotonic() - began,
        "worker": _worker(),
    }
    if job.hands_to is not None:
        record["handed"] = hand_on(store, prepared.algorithm, job.trial, job.env_steps, job.hands_to)
    if promise != "kept":
        record["promise"] = promise
    if not math.isfinite(number):
        record["error"] = f"the score is {number}: expected a finite number. Look at the run in {store.storage}"
    return record


def failed(job: Job, error: BaseException, seconds: float) -> TrialRecord:
    """The record of a run that failed."""
    return {
        "kind": "trial",
        "trial": job.trial,
        "env_steps": job.env_steps,
        "score": None,
        "error": f"{type(error).__name__}: {error}",
        "trace": "".join(traceback.format_exception(error))[-8000:],
        "seconds": seconds,
        "worker": _worker(),
    }


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
