"""What a task needs of a store, as a small value that travels to its worker: no zarr, no open files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daskrl.config import RunConfig
from daskrl.envs.spaces import SpaceSpec
from daskrl.errors import DamagedError, StoreError, StoreMismatchError
from daskrl.names import require_keys
from daskrl.records import Array, FragmentRecord, InitRecord, ReadFragment
from daskrl.store.columns import Column, read_fragment, read_transitions
from daskrl.store.files import read_checked
from daskrl.store.late import LateError, content, patiently
from daskrl.store.log import CommitLog
from daskrl.store.storage import Storage


@dataclass(frozen=True)
class Layout:
    """What a task needs to read and write fragments.

    Attributes
    ----------
    patience : seconds to wait for a committed file that is not seen yet; on Dask's workers, see `daskrl.store.late`.
    agents : agent -> the learner whose weights it acts with, both by their keys. A run has one of each today, "".
    """

    storage: Storage
    config: RunConfig
    spec: SpaceSpec
    columns: Mapping[str, Column]
    run_id: str
    patience: float = 0.0
    agents: Mapping[str, str] = field(default_factory=lambda: {"": ""})

    def __post_init__(self) -> None:
        require_keys("agent", self.agents)
        require_keys("learner", self.agents.values())

    @property
    def learners(self) -> tuple[str, ...]:
        """The keys of the run's learners."""
        return tuple(dict.fromkeys(self.agents.values()))

    @property
    def log(self) -> CommitLog:
        return CommitLog(self.storage, self.patience)

    def require_same_run(self) -> None:
        """Called by tasks before they write: raise `StoreMismatchError` where another run took this one's place.

        A task may outlive its driver, and the run be overwritten meanwhile.
        """
        key, where = "zarr.json", self.storage.where("zarr.json")

        def look() -> dict[str, Any]:
            data = content(self.storage, key, where, "is missing.")
            try:
                found: dict[str, Any] = json.loads(data)["attributes"]
                return found
            except (ValueError, KeyError, TypeError):
                raise LateError(f"{where} cannot be read as JSON.") from None

        attributes = patiently(look, self.storage, key, self.patience)
        if attributes["run_id"] != self.run_id:
            raise StoreMismatchError(
                f"{self.storage} holds another run now; what was computed for the old one is dropped."
            )

    def read(self, record: ReadFragment, only: tuple[str, ...] | None = None) -> dict[str, Array]:
        """The columns of one committed fragment, checked."""
        return read_fragment(self.storage, self.columns, record, only, self.patience)

    def read_transitions(self, record: ReadFragment) -> dict[str, Array]:
        """What a learner needs of one committed fragment, checked."""
        return read_transitions(self.storage, self.columns, record, self.patience)

    def initial(self) -> bytes:
        """The file of the weights that the run began with, checked; see `daskrl.tasks.initial`."""
        return read_checked(self.storage, self._init()["arrays"], self.patience)

    def first_replay(self) -> list[list[ReadFragment]]:
        """The rounds of another run that the learner's memory begins with, a record for each stream; none for most."""
        written = self._init()["replay"] if (self.config.init or {}).get("replay") else None
        if written is None:
            return []
        records: list[ReadFragment] = json.loads(read_checked(self.storage, written, self.patience))
        streams = self.config.schedule.streams
        return [records[first : first + streams] for first in range(0, len(records), streams)]

    def _init(self) -> InitRecord:
        for record in self.log.read(0):
            if record["kind"] == "init":
                return record
        raise DamagedError(f"{self.log.where(0)} does not name what the run began with.")

    def find(self, slots: Sequence[int], head: int) -> dict[int, FragmentRecord]:
        """The commit records of some slots, searching back from segment ``head``."""
        wanted, found = set(slots), dict[int, FragmentRecord]()
        if wanted:
            for record in self.log.backwards(head):
                if record["kind"] == "fragment" and record["slot"] in wanted:
                    found[record["slot"]] = record
                    if len(found) == len(wanted):
                        break
            else:
                raise StoreError(f"fragments {sorted(wanted - set(found))} are not committed in {self.storage}.")
        return found
