"""What a study wrote down: an append-only log in the format of a run's, anywhere a store may lie.

A study's directory holds ``study.json`` (what the study is, for people and messages), the log ``.commits/``, and
its runs ``runs/HASH``. The log is the only truth; FORMAT.md says what its records are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

from daskrl.codec import decoded
from daskrl.errors import DamagedError, StoreLockedError, StoreMismatchError
from daskrl.records import ArithmeticRecord, DriverRecord, Record
from daskrl.store.finding import STUDY, holds_study
from daskrl.store.log import CommitLog
from daskrl.store.places import Place, place
from daskrl.store.storage import Lock, Storage
from daskrl.study.trial import TrialRecord

FORMAT = "daskrl-study"
FORMAT_VERSION = 1


class StudyRecord(TypedDict):
    """What the study is, and what it was warned of; the newest counts."""

    kind: Literal["study"]
    definition: dict[str, Any]
    warned: NotRequired[list[str]]


class AskRecord(TypedDict):
    """What was asked for, in order; ``asked`` is None where nothing was until more results are known."""

    kind: Literal["ask"]
    ask: int
    asked: Asked | None


class Asked(TypedDict):
    """A setting, how far its runs go, and which they are: ``[environment, seed, hash]``; what the search keeps; of a
    population its segment.
    """

    number: int
    setting: dict[str, Any]
    env_steps: int
    trials: list[list[Any]]
    note: NotRequired[dict[str, Any]]
    segment: NotRequired[dict[str, Any]]


def setting_of(asked: Asked) -> dict[str, Any]:
    """The setting of an ask."""
    return {name: decoded(value) for name, value in asked["setting"].items()}


class RetryRecord(TypedDict):
    """Failed runs are to be tried again: their records count no more."""

    kind: Literal["retry"]
    trials: list[str]


class ConfirmedRecord(TypedDict):
    """The winner was run again from unseen seeds; the newest counts.

    ``digest`` is that of the table whose winner it is, ``setting`` the winner's number, ``study`` where its runs are,
    ``found`` the `daskrl.study.winner.Optimism`.
    """

    kind: Literal["confirmed"]
    digest: str
    setting: int
    study: str
    found: dict[str, Any]


Entry = StudyRecord | AskRecord | TrialRecord | RetryRecord | ConfirmedRecord | ArithmeticRecord | DriverRecord


def study_record(definition: Mapping[str, Any], warned: Sequence[str]) -> StudyRecord:
    """The record that makes a study, or extends it."""
    record: StudyRecord = {"kind": "study", "definition": dict(definition)}
    if warned:
        record["warned"] = list(warned)
    return record


class StudyLog:
    """Of one study: its records, and the lock of its one driver.

    Attributes
    ----------
    definition : the newest.
    warned : sentences, of that definition.
    arithmetic : what runs compute with; None before the first.
    asks : of that definition, in order.
    results : hash of a run, and env steps that it was taken to -> its record.
    confirmed : what the winner gave from unseen seeds, last; None where it was not run there.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage, self._log = storage, CommitLog(storage)
        self._lock: Lock | None = None
        self._forget()

    def _forget(self) -> None:
        self._head = 0
        self.definition: dict[str, Any] = {}
        self.warned: list[str] = []
        self.arithmetic: ArithmeticRecord | None = None
        self.asks: list[Asked | None] = []
        self.results: dict[tuple[str, int], TrialRecord] = {}
        self.confirmed: ConfirmedRecord | None = None

    @staticmethod
    def exists(path: Place) -> bool:
        """Whether there is a study."""
        return holds_study(place(path))

    @classmethod
    def make(cls, path: Place, definition: Mapping[str, Any], warned: Sequence[str] = ()) -> StudyLog:
        """Make a study, complete or not at all.

        Raises
        ------
        StoreMismatchError
            There is something else at that path.
        """
        storage = place(path)
        if storage.holds_store():
            raise StoreMismatchError(f"{storage} holds a run, not a study. Choose another directory for the study.")
        with storage.making(False) as making:
            said = {"format": FORMAT, "format_version": FORMAT_VERSION, **definition}
            making.put(STUDY, json.dumps(said, indent=1).encode())
            making.make_folder(".commits")
            CommitLog(making).append(0, cast("list[Record]", [study_record(definition, warned)]))
        return cls.open(storage)

    @classmethod
    def open(cls, path: Place) -> StudyLog:
        """Read a study's log.

        Raises
        ------
        StoreMismatchError
            There is no study, or one of a later format.
        """
        storage = place(path)
        try:
            said = json.loads(storage.get(STUDY))
        except FileNotFoundError:
            what = "holds a run: daskrl.Store.open" if storage.holds_store() else "holds no study"
            raise StoreMismatchError(f"{storage} {what}. Expected the directory of a daskrl.Study.") from None
        except ValueError as error:
            raise DamagedError(f"{storage.where(STUDY)} cannot be read as JSON: {error}.") from None
        if said.get("format") != FORMAT or said.get("format_version") != FORMAT_VERSION:
            raise StoreMismatchError(
                f"{storage} is of format {said.get('format')!r} {said.get('format_version')!r}; this daskrl reads "
                f"{FORMAT!r} {FORMAT_VERSION}."
            )
        log = cls(storage)
        log.refresh()
        return log

    def refresh(self) -> None:
        """Read what was added since."""
        for segment in self._log.segments(self._head):
            self._head += 1
            self._take(cast("Iterable[Entry]", segment.records))

    def _take(self, records: Iterable[Entry]) -> None:
        for record in records:
            if record["kind"] == "trial":
                self.results[record["trial"], record["env_steps"]] = record
            elif record["kind"] == "study":
                self.definition, self.warned = record["definition"], record.get("warned", [])
                self.asks.clear()
            elif record["kind"] == "ask":
                del self.asks[record["ask"] :]
                self.asks.append(record["asked"])
            elif record["kind"] == "confirmed":
                self.confirmed = record
            elif record["kind"] == "arithmetic":
                self.arithmetic = record
            elif record["kind"] == "retry":
                gone = set(record["trials"])
                failed = [key for key, kept in self.results.items() if key[0] in gone and "error" in kept]
                for key in failed:
                    del self.results[key]

    def lock(self) -> None:
        """Become the study's one driver; raises `StoreLockedError` where there is another."""
        lock = self.storage.lock()
        lock.acquire()
        self._lock = lock
        try:
            self._forget()  # what was decided and never committed too
            self.refresh()
            while lock.took_over:  # who had the study before is believed dead, and must not commit any more
                try:
                    self.append([{"kind": "driver"}])
                    break
                except StoreLockedError:  # that was not dead, and this is its last commit
                    self.refresh()
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def append(self, records: Sequence[Entry]) -> None:
        """Commit some records, all of them or none."""
        assert self._lock is not None
        self._lock.require()
        self._log.append(self._head, cast("list[Record]", list(records)))
        self._head += 1
        self._take(records)
