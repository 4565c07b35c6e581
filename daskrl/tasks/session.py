"""What a process keeps for a run between its tasks: a cache of what can be rebuilt, and nothing else.

Environments and algorithms reach a worker once, by value, when it joins; tasks then name the session.
Import-light on purpose: the scheduler unpickles task functions, and must not import torch.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import hashlib
import importlib.util
import os
import platform
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Generic, NamedTuple, TypeVar

import cloudpickle

from daskrl.algorithms.base import Algorithm, Setup
from daskrl.code import modules
from daskrl.config import Options, RunConfig
from daskrl.envs.source import Environment
from daskrl.envs.stream import Stream
from daskrl.errors import DamagedError, DaskrlError, StoreError
from daskrl.records import Array, Fingerprint, Introduction, Joined, LearnRecord, Republished
from daskrl.replay.rounds import CommittedRounds, RoundReader
from daskrl.store import late
from daskrl.store.layout import Layout
from daskrl.store.storage import Storage
from daskrl.tasks import children, memory
from daskrl.tasks.learner_state import LearnerState
from daskrl.tasks.playing import Playing
from daskrl.tasks.published import Places

_PROBED = 3.0  # seconds to look for the driver's file; where the store is not shared, each worker takes them

_DASKS_TRIM = "65536"  # MALLOC_TRIM_THRESHOLD_ as Dask's nannies set it unless they are told otherwise
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt

Published = tuple[LearnRecord | Republished, Places, Array]
"""What ``learn`` publishes: its record, which names its learner, and the weights as made by
`daskrl.tasks.published.pack`."""

Given = tuple[str, Layout, Algorithm, Callable[[], Environment], Options]
"""Token, layout, algorithm, factory and options: what a session is made of."""


Key = TypeVar("Key", bound=Hashable)
Live = TypeVar("Live")


class Kept(Generic[Key, Live]):
    """What tasks of this process leave for the next, by what each is of. What is taken is the taker's alone.

    Parameters
    ----------
    close : called with what another takes the place of, and with all that is left at the end.
    """

    def __init__(self, close: Callable[[Live], object]) -> None:
        self._close, self._live = close, dict[Key, Live]()
        self._lock, self._ended = threading.Lock(), False

    def take(self, key: Key) -> Live | None:
        with self._lock:
            return self._live.pop(key, None)

    def keep(self, key: Key, live: Live) -> None:
        """Of two tasks of the same that ran at one time, what the later left is kept; none after `end`."""
        with self._lock:
            dropped = live if self._ended else self._live.pop(key, None)
            if not self._ended:
                self._live[key] = live
        if dropped is not None:
            self._close(dropped)

    def let_go(self) -> None:
        """Close all that is kept."""
        with self._lock:
            dropped = list(self._live.values())
            self._live.clear()
        for live in dropped:  # which may take its time
            self._close(live)

    def end(self) -> None:
        """Close all that is kept, and whatever still comes."""
        with self._lock:
            self._ended = True
        self.let_go()


class At(NamedTuple):
    """Live environments of a stream, and the round they stand at."""

    round: int
    stream: Stream


@dataclass
class OfLearner:
    """What a process keeps of one learner of a run: where it learns, and where somebody acts with its weights.

    Attributes
    ----------
    state, reader : where the learner stands, and what reads for it, in the process that learns; else None. While it
        learns, the reader alone.
    published : weights version -> what was published, the newest few.
    policies : weights version -> policy that acts with it.
    """

    state: LearnerState[CommittedRounds] | None = None
    reader: RoundReader[CommittedRounds] | None = None
    published: dict[int, Published] = field(default_factory=dict)
    policies: dict[int, Any] = field(default_factory=dict)


@dataclass
class Session:
    """One run in one process.

    Attributes
    ----------
    streams : of each stream its live environments.
    evaluations : of each learner and version of its weights an evaluation on its way.
    learners : key -> what is kept of that learner, for each of the run.
    lock, learning : held for a moment around policies; held while any learner learns.
    """

    token: str
    layout: Layout
    algorithm: Algorithm
    factory: Callable[[], Environment]
    options: Options
    streams: Kept[int, At] = field(default_factory=lambda: Kept(lambda at: at.stream.close()))
    evaluations: Kept[tuple[str, int], Playing] = field(default_factory=lambda: Kept(Playing.close))
    learners: dict[str, OfLearner] = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)
    learning: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.learners = {key: OfLearner() for key in self.layout.learners}

    @property
    def config(self) -> RunConfig:
        return self.layout.config

    def setup(self, device: str = "cpu") -> Setup:
        """What the run tells its algorithm."""
        return Setup(self.layout.spec, self.config.schedule, self.config.frame_stack, device)

    def let_go(self) -> None:
        """Close all environments that are kept, and forget the policies."""
        with self.lock:
            for learner in self.learners.values():
                learner.policies.clear()
        self.streams.let_go()
        self.evaluations.let_go()

    def close(self) -> None:
        """Let go of everything, and of what a task that still runs would leave."""
        self.streams.end()
        self.evaluations.end()
        self.let_go()


BYTECODE = importlib.util.MAGIC_NUMBER.hex()  # of this Python's code: another minor version cannot run it

SESSIONS: dict[str, Session] = {}
OFFERED: dict[tuple[int, bytes], Given] = {}
_LOCK = threading.Lock()  # around it: tasks of one process run in several threads
_PACKING = threading.Lock()  # what cloudpickle takes by value is a setting of the whole process


class NotJoinedError(DaskrlError):
    """A task reached a process that does not know its session; the driver lets it join again."""


def get(token: str) -> Session:
    session = find(token)
    if session is None:
        raise NotJoinedError(f"process {os.getpid()} has not joined session {token}")
    return session


def find(token: str) -> Session | None:
    """The session, if this process has joined it."""
    with _LOCK:
        return SESSIONS.get(token)


def put(session: Session) -> None:
    """Start caching for a session. A session replaces older ones of the same store."""
    with _LOCK:
        older = [
            token
            for token, other in SESSIONS.items()
            if token != session.token and other.layout.storage == session.layout.storage
        ]
        replaced = [SESSIONS.pop(token) for token in older]
        SESSIONS.setdefault(session.token, session)
    for other in replaced:  # environments may take their time to close
        other.close()


def forget(token: str) -> None:
    """Drop what a session cached."""
    with _LOCK:
        session = SESSIONS.pop(token, None)
    if session is not None:
        session.close()


def ease(token: str) -> None:
    """Let go of a session's environments and policies, and give the memory back: they can be rebuilt elsewhere."""
    session = find(token)
    if session is None:
        return
    session.let_go()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def pickled(
    token: str, layout: Layout, algorithm: Algorithm, factory: Callable[[], Environment], options: Options
) -> bytes:
    """A session as bytes for other processes."""
    return by_value((token, layout, algorithm, factory, options), type(algorithm), factory)


def by_value(value: Any, *used: Any) -> bytes:
    """A value as bytes for other processes. What was defined outside installed packages goes by value.

    Parameters
    ----------
    used : the classes and functions in it that may have been: of an algorithm, an environment, a score.
    """
    entry_points = [getattr(getattr(obj, "spec", None), "entry_point", None) for obj in used]  # of an id
    names = {getattr(_unwrapped(obj), "__module__", None) for obj in (*used, *entry_points)}
    with _PACKING:
        names -= cloudpickle.list_registry_pickle_by_value()  # the user's own wish, to be left standing
        local = [module for name in names if name and (module := modules.local(name)) is not None]
        for module in local:
            cloudpickle.register_pickle_by_value(module)
        try:
            data: bytes = cloudpickle.dumps(value)
            return data
        finally:
            for module in local:
                cloudpickle.unregister_pickle_by_value(module)


def carries_code(payload: bytes) -> bool:
    """Whether a packed session has functions or classes in it by value, as bytecode."""
    return b"_make_function" in payload


def _unwrapped(obj: Any) -> Any:
    return getattr(obj, "func", obj) if not isinstance(obj, type) else obj


def offer(payload: bytes, given: Any) -> None:
    """Have workers that are threads of this process take what was packed as it is, until `withdraw`.

    Unpickling a class by value where it was defined replaces its methods, and the new ones do not see when a global of
    its module is changed (cloudpickle 3.1).
    """
    with _LOCK:
        OFFERED[_offer_key(payload)] = given


def withdraw(payload: bytes) -> None:
    with _LOCK:
        OFFERED.pop(_offer_key(payload), None)


def offered(payload: bytes) -> Any:
    """What was packed, where this process packed it; else None."""
    with _LOCK:
        return OFFERED.get(_offer_key(payload))


def _offer_key(payload: bytes) -> tuple[int, bytes]:
    return os.getpid(), hashlib.sha256(payload).digest()  # a process that was forked from this one is another


def join(payload: bytes, probe: str | None = None) -> Joined:
    """Take part in a run: the first task on every worker. Says what of this process the run must know.

    Parameters
    ----------
    probe : the key of an object of the driver's in the store, which this process must see, and be able to make one
        beside.
    """
    with _LOCK:
        given = OFFERED.get(_offer_key(payload))
    token, layout, algorithm, factory, options = given or cloudpickle.loads(payload)
    if probe is not None:
        children.allow()
        layout = dataclasses.replace(layout, patience=late.PATIENCE if layout.storage.late else 0.0)
        _require_shared(layout.storage, probe)
    return begin(Session(token, layout, algorithm, factory, options))


def begin(session: Session) -> Joined:
    """Take part in a run whose algorithm and environment this process has. Says what it has for the run."""
    _keep_freed_memory()
    put(session)
    return _joined(session.layout)


def _keep_freed_memory() -> None:
    """Undo Dask's default under which a process gives back what it frees at once.

    Every array would then be made of new pages, which takes longer than what many a network computes in it. The numbers
    are those that glibc, left alone, arrives at once an array of 32 MiB was freed.
    """
    if sys.platform != "linux" or os.environ.get("MALLOC_TRIM_THRESHOLD_") != _DASKS_TRIM:
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _require_shared(storage: Storage, probe: str) -> None:
    host = socket.gethostname()
    try:
        late.patiently(
            lambda: late.content(storage, probe, storage.where(probe)), storage, probe, _PROBED if storage.late else 0.0
        )
    except DamagedError:
        raise StoreError(
            f"{host} does not see the driver's files in {storage}. Put the store where all nodes see it, under one "
            "path or URL."
        ) from None
    mine = f"{probe.rpartition('/')[0]}/.{uuid.uuid4().hex}.partial"
    try:
        storage.put(mine, b"")
        storage.delete(mine)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{host} cannot write in {storage}: {error.strerror}.") from error


def introduction(layout: Layout) -> Introduction:
    """What this process would compute a run with."""
    return {**fingerprinted(), **_joined(layout)}


def _joined(layout: Layout) -> Joined:
    import torch

    return {
        "versions": versions(layout.config.packages),
        "free": {"cpu": memory.free(), "cuda": torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None},
        "used": memory.used(),
    }


def fingerprinted() -> Fingerprint:
    """What this process computes with, whatever the run."""
    import torch

    from daskrl.algorithms.networks import arithmetic_settings, fingerprint
    from daskrl.tasks.fingerprint import probes

    cuda = torch.cuda.is_available()
    return {
        "cpu": fingerprint("cpu"),
        "cuda": fingerprint("cuda") if cuda else None,
        "cuda_name": torch.cuda.get_device_name() if cuda else None,
        "probes": probes(),
        "settings": arithmetic_settings(),
        "bytecode": BYTECODE,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the packages that decide a run's bits: those of all runs, and those of its environment.

    numcodecs is one of them: checksums in commits are over compressed bytes.
    """
    found = {"python": platform.python_version()}
    for name in ("daskrl", "torch", "numpy", "gymnasium", "numcodecs", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
