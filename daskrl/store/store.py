"""The store of one run: a zarr v3 group that plain zarr and xarray read, a commit log, and files of weights.

See FORMAT.md for the format. This is the only module that imports zarr, and it does so only to make the
arrays, to grow them, and to hand them to readers; tasks write and read chunks through `daskrl.store.columns`.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import numpy as np

from daskrl import extras
from daskrl.arithmetic import aligned_all
from daskrl.config import Options, RunConfig, Schedule, known_keys, plain, require_integer
from daskrl.envs.spaces import Leaf, SpaceSpec
from daskrl.errors import ConfigError, DamagedError, StoreError, StoreLockedError, StoreMismatchError
from daskrl.records import (
    ArithmeticRecord,
    Array,
    BudgetRecord,
    CheckpointRecord,
    EvaluationRecord,
    FragmentRecord,
    InitRecord,
    LearnRecord,
    PromiseOffRecord,
    ReadFragment,
    Record,
)
from daskrl.schedule import Rechecks
from daskrl.shown import html_table
from daskrl.store import snapshot
from daskrl.store.columns import Column, columns, crc32c, decode, encode, read_fragment, read_transitions
from daskrl.store.index import INDEX_EVERY, INDEX_ROWS, IndexColumn, fill, index_columns
from daskrl.store.initial import Initial
from daskrl.store.late import LateError, content, patiently
from daskrl.store.log import CommitLog, Segment
from daskrl.store.places import Place, place
from daskrl.store.posix import Posix
from daskrl.store.progress import Evaluated, Progress
from daskrl.store.storage import Storage, Tag
from daskrl.store.weights import older_weights

if TYPE_CHECKING:
    import xarray
    import zarr


FORMAT = "daskrl.replay"
FORMAT_VERSION = 1
_ATTRIBUTES = ("format", "format_version", "run_id", "created", "config", "spec", "columns", "versions")
_ENVIRONMENT = {"kind", "id", "kwargs", "name", "source_sha256", "packages", "captured"}
_ALGORITHM = {"name", "settings", "source_sha256", "packages", "captured"}
_GROW = 1024  # slots added by one resize
# Each folder that is no array is an empty group, so that zarr does not warn of it when it lists the members.
_EMPTY_GROUP = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()


@dataclass(frozen=True)
class Layout:
    """What a task needs to read and write fragments: no zarr, no open files.

    Attributes
    ----------
    patience : seconds to wait for a committed file that is not seen yet; on Dask's workers, see `daskrl.store.late`.
    """

    storage: Storage
    config: RunConfig
    spec: SpaceSpec
    columns: Mapping[str, Column]
    run_id: str
    patience: float = 0.0

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


class Store:
    """A run and all it wrote. Open one with `Store.open`; `daskrl.train` makes them.

    Reading never needs a lock, and a store being written may be read at any time.
    """

    def __init__(self, storage: Storage, attributes: Mapping[str, Any]) -> None:
        self.storage = storage
        self.attributes = dict(attributes)
        self.config = RunConfig.from_json(attributes["config"])
        self.spec = SpaceSpec.from_json(attributes["spec"])
        self.columns = {
            data["name"]: Column(
                **{**known_keys(Column, data), "shape": tuple(data["shape"]), "dims": tuple(data["dims"])}
            )
            for data in attributes["columns"]
        }
        self.log = CommitLog(storage)
        self._lock = storage.lock()
        self._known: dict[str, Tag] = {}  # what this driver wrote, see `Storage.rewrite`
        self._head = 0
        self._capacity = 0
        self._index: dict[int, dict[str, Array]] = {}
        self._indexed: set[int] = set()
        self._workers: dict[str, int] = {}
        self._written = self._seen = self._nothing()  # what is committed, as the driver and as readers know it

    def _nothing(self) -> Progress:
        return Progress([0] * self.config.schedule.streams)

    # -- making and opening -------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Place,
        config: RunConfig,
        spec: SpaceSpec,
        *,
        extras: Mapping[str, str] | None = None,
        state: Mapping[str, tuple[int, ...]] | None = None,
        env_steps: int,
        options: Options,
        versions: Mapping[str, str],
        overwrite: bool = False,
        initial: Initial | None = None,
    ) -> Store:
        """Make an empty store; it is there complete or not at all.

        Parameters
        ----------
        path : a directory, or a URL like ``s3://BUCKET/PREFIX``.
        initial : what the run begins with, where ``config.init`` says so.

        Raises
        ------
        StoreMismatchError
            There is something at that path.
        StoreUnreachableError
            There is no such bucket, no permission, or no answer.
        """
        storage = place(path)
        layout = columns(spec, config.schedule, config.frame_stack, extras, state)
        attributes = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "run_id": uuid.uuid4().hex,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "config": config.to_json(),
            "spec": spec.to_json(),
            "columns": [vars(column) for column in layout.values()],
            "versions": dict(versions),
        }
        attributes = json.loads(json.dumps(attributes))
        with storage.making(overwrite) as making:
            _create_arrays(making, attributes, layout, config)
            for name in (".commits", ".weights", ".checkpoints"):
                making.put(f"{name}/zarr.json", _EMPTY_GROUP)
            begun: list[Record] = [
                {"kind": "created", "attributes_crc32c": _attributes_crc32c(attributes)},
                {"kind": "budget", "env_steps": env_steps, "options": vars(options)},
            ]
            if initial is not None:
                making.put(".init/zarr.json", _EMPTY_GROUP)
                arrays, replay = write_checked(making, ".init/weights.safetensors", initial.to_bytes()), None
                if initial.replay is not None:
                    initial.replay.copy(making.folder(".init"))
                    replay = write_checked(making, ".init/replay.json", initial.replay.to_bytes())
                begun.append({"kind": "init", "arrays": arrays, "replay": replay})
            CommitLog(making).append(0, begun)
        return cls(storage, attributes)

    @staticmethod
    def exists(path: Place) -> bool:
        """Whether there is a store."""
        return place(path).holds_store()

    @classmethod
    def open(cls, path: Place) -> Store:
        """Open a store for reading.

        Raises
        ------
        ConfigError
            ``path`` is no path.
        StoreMismatchError
            There is no store at ``path``, or its format is not one this version reads.
        DamagedError
            Its attributes are not those it was made with.
        """
        storage = place(path)
        try:
            attributes = json.loads(storage.get("zarr.json"))["attributes"]
            format_, version = attributes["format"], attributes["format_version"]
        except (FileNotFoundError, NotADirectoryError):
            raise StoreMismatchError(
                f"{storage} is not a daskrl store: it has no zarr.json. Type: daskrl train ENV --store {path}"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise StoreMismatchError(
                f"{storage} is not a daskrl store: its zarr.json has no daskrl attributes."
            ) from None
        if format_ != FORMAT or version != FORMAT_VERSION:
            raise StoreMismatchError(
                f"{storage} has format {format_!r} version {version!r}; this daskrl reads {FORMAT!r} version "
                f"{FORMAT_VERSION}. Install the daskrl it was written with: {attributes.get('versions')}."
            )
        for record in CommitLog(storage).read(0):
            if record["kind"] == "created" and record["attributes_crc32c"] != _attributes_crc32c(attributes):
                raise DamagedError(
                    f"{storage.where('zarr.json')} does not hold the attributes the store was made with."
                )
        return cls(storage, attributes)

    @property
    def root(self) -> Path:
        """The directory of a store in a file system.

        Raises
        ------
        StoreError
            It is in an object store.
        """
        if not isinstance(self.storage, Posix):
            raise StoreError(f"{self.storage} is no directory.")
        return self.storage.root

    @property
    def layout(self) -> Layout:
        return Layout(self.storage, self.config, self.spec, self.columns, self.run_id)

    @property
    def run_id(self) -> str:
        return str(self.attributes["run_id"])

    # -- writing: the driver only -------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """Segments committed, as the driver knows them."""
        return self._head

    def lock(self) -> Progress:
        """Become the one driver of this store and find out how far it is.

        Raises
        ------
        StoreLockedError
            Another driver has it.
        DamagedError
            A commit is missing or damaged.
        """
        self._lock.acquire()
        try:
            self.storage.tidy()
            self._known = {}
            self._head = self.log.head()
            self._index, self._indexed, self._workers = {}, set(), {}
            self._written = self._nothing()
            schedule = self.config.schedule
            progress = Progress([0] * schedule.streams, rechecks=Rechecks(schedule, self.config.recheck_every))
            self._capacity = self.array_length()

            def take(segment: Segment) -> None:
                for record in segment.records:
                    if record["kind"] == "fragment":
                        if record["round"] != progress.committed[record["stream"]]:
                            raise DamagedError(
                                f"{self.storage}: the commits of stream {record['stream']} are out of order."
                            )
                        self._index_record(record)
                    progress.take(record)
                self._written.take_commit(segment)

            for segment in self.log.segments(0, self._head):
                take(segment)
            if self._lock.took_over:
                self._shut_out(take)
            progress.due.clear()  # by the driver that committed them
            self.flush_index()
            return progress
        except BaseException:
            self._lock.release()
            raise

    def _shut_out(self, take: Callable[[Segment], None]) -> None:
        """Commit that another driver has the store now, so that one believed dead cannot commit any more."""
        while True:
            try:
                take(self.log.append(self._head, [{"kind": "driver"}]))
                self._head += 1
                return
            except StoreLockedError:  # it was not dead, and this is its last commit: it knows by now, or with its next
                take(self.log.segment(self._head))
                self._head += 1

    def unlock(self) -> None:
        """Write what is buffered of the index and let another driver have the store."""
        try:
            if self._lock.held:
                self.flush_index()
                snapshot.save(self.log, self.run_id, self._written)
        finally:
            self._lock.release()

    def commit(self, records: Sequence[Record]) -> None:
        """Commit some records, all of them or none. Growing the arrays comes first."""
        fragments = [record for record in records if record["kind"] == "fragment"]
        if fragments:
            needed = max(record["slot"] for record in fragments) + 1
            if needed > self._capacity:
                self._grow(-(-needed // _GROW) * _GROW)
        self._lock.require()
        self._written.take_commit(self.log.append(self._head, records))
        self._head += 1
        for record in fragments:
            self._index_record(record)
        if self._head % INDEX_EVERY == 0:
            self.flush_index()
            snapshot.save(self.log, self.run_id, self._written)

    def array_length(self) -> int:
        """Slots every array has now; a driver killed while growing them leaves some longer than others."""

        def length(key: str) -> int:
            return int(_array_metadata(self.storage, key)["shape"][0])

        return min(self.storage.at_once(length, self._arrays()))

    def _arrays(self) -> list[str]:
        names = [*self.columns, *(column.name for column in index_columns(self.config))]
        return [f"{name}/zarr.json" for name in names]

    def _grow(self, slots: int) -> None:
        # Only the shape changes, so the array's zarr.json is rewritten in one atomic step.
        def grow(key: str) -> None:
            metadata = _array_metadata(self.storage, key)
            metadata["shape"][0] = max(slots, metadata["shape"][0])
            self.storage.rewrite(key, json.dumps(metadata, indent=2).encode(), self._known)

        deque(self.storage.at_once(grow, self._arrays()), maxlen=0)
        self._capacity = slots

    def _index_record(self, record: FragmentRecord) -> None:
        block, row = divmod(record["slot"], INDEX_ROWS)
        if block not in self._index:
            self._index[block] = {column.name: self._index_rows(column, block) for column in index_columns(self.config)}
            if len(self._index) > 2:  # rounds are committed in order, a few at a time: older blocks are full
                self.flush_index()
                self._index = {number: rows for number, rows in self._index.items() if number >= block - 1}
        rows = self._index[block]
        worker = self._workers.setdefault(record["worker"], len(self._workers))
        for name, value in (
            ("stream", record["stream"]),
            ("round", record["round"]),
            ("weights_version", record["weights_version"]),
            ("environment_seed", record["environment_seed"]),
            ("first_episode", record["first_episode"]),
            ("episode_step", record["episode_step"]),
            ("continues", record["continues"]),
            ("wall_time", record["wall_time"]),
            ("worker", worker),
        ):
            rows[f"fragment.{name}"][row] = value

    def _index_rows(self, column: Column, block: int) -> Array:
        if block in self._indexed:  # written and dropped by this driver, and now a straggler comes
            key = f"{column.name}/{column.chunk_name(block)}"
            return decode(column, self.storage.get(key), self.storage.where(key)).copy()
        return np.full(column.shape, fill(column.dtype), column.dtype)

    def flush_index(self) -> None:
        """Write the buffered rows of the ``fragment.*`` columns. They repeat the log, for readers without it."""
        self._indexed.update(self._index)

        def write(item: tuple[Column, int]) -> None:
            column, block = item
            data = encode(column, self._index[block][column.name])
            self.storage.rewrite(f"{column.name}/{column.chunk_name(block)}", data, self._known)

        written = [(column, block) for block in self._index for column in index_columns(self.config)]
        deque(self.storage.at_once(write, written), maxlen=0)
        key = "fragment.worker/zarr.json"
        metadata = _array_metadata(self.storage, key)
        if metadata["attributes"].get("workers") != list(self._workers):
            metadata["attributes"]["workers"] = list(self._workers)
            self.storage.rewrite(key, json.dumps(metadata, indent=2).encode(), self._known)

    # -- reading ------------------------------------------------------------------------------------------

    @overload
    def records(self, kind: Literal["fragment"]) -> Iterator[FragmentRecord]: ...
    @overload
    def records(self, kind: Literal["learn"]) -> Iterator[LearnRecord]: ...
    @overload
    def records(self, kind: Literal["checkpoint"]) -> Iterator[CheckpointRecord]: ...
    @overload
    def records(self, kind: Literal["evaluation"]) -> Iterator[EvaluationRecord]: ...
    @overload
    def records(self, kind: Literal["arithmetic"]) -> Iterator[ArithmeticRecord]: ...
    @overload
    def records(self, kind: Literal["budget"]) -> Iterator[BudgetRecord]: ...
    @overload
    def records(self, kind: Literal["promise_off"]) -> Iterator[PromiseOffRecord]: ...
    @overload
    def records(self, kind: str | None = None) -> Iterator[Record]: ...
    def records(self, kind: str | None = None) -> Iterator[Any]:
        """Every committed record, oldest first; of one kind if given."""
        for record in self.log.forwards():
            if kind is None or record["kind"] == kind:
                yield record

    def progress(self) -> Progress:
        """How far the run is, by what is committed now; not to be changed.

        It reads what is new since it was called, or since the snapshot (`daskrl.store.snapshot`), which it writes anew
        where many commits came and this process may.
        """
        seen, known = self._seen.copy(), self._seen.commits
        if not known or not snapshot.belongs(seen, self.log):
            seen = snapshot.load(self.log, self.run_id, self.config.schedule.streams) or self._nothing()
            known = seen.commits
        for segment in self.log.segments(known):
            seen.take_commit(segment)
        if seen.commits - known >= snapshot.WORTH:
            snapshot.save(self.log, self.run_id, seen)
        self._seen = seen
        return seen

    def whole(self) -> tuple[Progress, list[FragmentRecord]]:
        """The progress, and the record of every committed fragment by slot, out of one pass over the whole log."""
        progress, by_slot = self._nothing(), dict[int, FragmentRecord]()
        for segment in self.log.segments():
            progress.take_commit(segment)
            by_slot.update((record["slot"], record) for record in segment.records if record["kind"] == "fragment")
        return progress, [by_slot[slot] for slot in sorted(by_slot)]

    def fragments(self) -> list[FragmentRecord]:
        """The record of every committed fragment, by slot."""
        return self.whole()[1]

    def read(self, record: ReadFragment, only: tuple[str, ...] | None = None) -> dict[str, Array]:
        """The columns of one committed fragment, checked against its record."""
        return read_fragment(self.storage, self.columns, record, only)

    def unknown_keys(self) -> list[str]:
        """What the attributes say that this daskrl does not know, as ``config.schedule.NAME``: of a later version."""
        config, spec = self.attributes["config"], self.attributes["spec"]
        known: list[tuple[str, Mapping[str, Any], set[str]]] = [
            ("config", config, _names(RunConfig)),
            ("config.schedule", config["schedule"], _names(Schedule)),
            ("config.environment", config["environment"], _ENVIRONMENT),
            ("config.algorithm", config["algorithm"], _ALGORITHM),
            ("spec", spec, _names(SpaceSpec)),
            *((f"spec.{side}", leaf, _names(Leaf)) for side in ("observation", "action") for leaf in spec[side]),
            *(("columns", column, _names(Column)) for column in self.attributes["columns"]),
        ]
        return sorted({f"{where}.{name}" for where, data, names in known for name in data if name not in names})

    def budget(self) -> BudgetRecord:
        """The newest ``budget`` record: how many env steps the run is to take, and its options."""
        budget = self.progress().budget
        assert budget is not None  # in commit 0
        return budget

    def promise_off(self) -> list[str]:
        """Why this run may differ from another of the same config; empty while the promise holds."""
        return [record["reason"] for record in self.progress().off]

    def weights_versions(self) -> list[int]:
        """Versions of the weights kept on disk, oldest first."""
        return sorted(self.progress().kept)

    def evaluations(self) -> list[EvaluationRecord]:
        """The evaluations made while the run went on (``evaluate_every``), by version; see FORMAT.md."""
        return sorted(self.records("evaluation"), key=lambda record: record["version"])

    def best(self) -> Evaluated | None:
        """The version with the highest mean return of those evaluated as the run went on; of equal ones the earliest.

        None where none was. ``Store.weights("best")`` has its weights.
        """
        return self.progress().best

    def published(self) -> int:
        """The newest version of the weights that was published, kept on disk or not; -1 before version 0."""
        return self.progress().published

    def weights(self, version: int | str | None = None) -> tuple[int, dict[str, Array]]:
        """One stored version of the weights, the newest by default; ``"best"`` is that of `best`.

        A warning says where the newest one published is not kept: of a run that goes on, or whose driver was killed.

        Returns
        -------
        version, and name -> array.
        """
        progress = self.progress()
        kept, published = progress.kept, progress.published
        if version == "best":
            best = progress.best
            if best is None:
                raise ConfigError(
                    f"{self.storage}: version 'best': no version was evaluated. Train with evaluate_every= "
                    f"(--evaluate-every), or name one of {sorted(kept)}."
                )
            version = best.version
        if version is None:
            version = max(kept, default=-1)
            if -1 < version < published:
                warnings.warn(f"{self.storage}: {older_weights(version, published)}", stacklevel=2)
        if not kept:
            raise ConfigError(
                f"{self.storage} has no weights yet: the run has to go on. Type: daskrl resume {self.storage}"
            )
        if version not in kept:
            raise ConfigError(f"{self.storage} keeps weights versions {sorted(kept)}, not {version}.")
        assert isinstance(version, int)
        return version, read_weights(self.storage, kept[version])

    # `daskrl.analysis.policies.policy`, put here by that module: it knows the algorithms, the store does not.
    policy: ClassVar[Callable[..., Any]]

    def digest(self) -> str:
        """SHA-256 over every committed transition and the newest weights.

        Wall-clock times and worker names are not part of it. It reads everything, so damage is found.

        Raises
        ------
        DamagedError
            Names the file.
        """
        sha = hashlib.sha256()
        progress, fragments = self.whole()
        for record, values in zip(fragments, self.storage.at_once(self.read, fragments), strict=True):
            sha.update(f"fragment {record['round']} {record['stream']} {record['weights_version']}\n".encode())
            for name in sorted(values):
                sha.update(f"{name} {values[name].dtype.str} {values[name].shape}\n".encode())
                sha.update(np.ascontiguousarray(values[name]).tobytes())
        for older in sorted(progress.kept)[:-1]:
            read_checked(self.storage, progress.kept[older])
        if progress.kept:
            newest = max(progress.kept)
            weights = read_weights(self.storage, progress.kept[newest])
            sha.update(f"weights {newest}\n".encode())
            for name in sorted(weights):
                sha.update(f"{name} {weights[name].dtype.str} {weights[name].shape}\n".encode())
                sha.update(weights[name].tobytes())
        return sha.hexdigest()

    def summary(self) -> dict[str, Any]:
        """What the store holds and how far its run is: what ``daskrl info --json`` prints, all of it for JSON.

        Returns
        -------
        store : its directory or URL.
        environment, algorithm, seed : what was run.
        begun_with : where the first weights came from; only of a run that was given some.
        env_steps, fragments, episodes : committed.
        env_steps_budget : what the run is to take.
        return_last_100 : mean return of the newest 100 episodes; None before the first.
        weights_version, learner_updates : the newest that were published.
        stored_weights, newest_stored_weights : versions of the weights kept on disk; the newest of them, or None.
        promise : ``"kept"``, or why it is off.
        versions : of the packages the run was made with.
        config : every setting, see `daskrl.config.RunConfig`.
        """
        schedule, progress = self.config.schedule, self.progress()
        stored, best = sorted(progress.kept), progress.best
        return {
            "store": str(self.storage),
            "environment": self.config.environment.get("id") or self.config.environment["name"],
            "algorithm": self.config.algorithm["name"],
            "seed": self.config.seed,
            **({} if self.config.init is None else {"begun_with": dict(self.config.init)}),
            "env_steps": progress.fragments * schedule.fragment_steps * schedule.envs_per_stream,
            "env_steps_budget": None if progress.budget is None else progress.budget["env_steps"],
            "fragments": progress.fragments,
            "episodes": progress.episodes,
            "return_last_100": float(np.mean(progress.returns)) if progress.returns else None,
            "weights_version": progress.published,
            "learner_updates": progress.learner_updates,
            "stored_weights": stored,
            "newest_stored_weights": max(stored, default=None),
            **({} if best is None else {"best_version": best.version, "best_return": best.mean}),
            "promise": [record["reason"] for record in progress.off] or "kept",
            "versions": self.attributes["versions"],
            "config": json.loads(json.dumps(self.config.to_json())),
        }

    def rows(self) -> dict[str, Any]:
        """The `summary` for people: without every setting, and what is newer than the newest weights kept in words."""
        rows = self.summary()
        rows.pop("config")
        newest = rows.pop("newest_stored_weights")
        if newest is not None and newest < rows["weights_version"]:
            rows["newest_weights"] = older_weights(newest, rows["weights_version"])
        return rows

    def zarr(self) -> zarr.Group:
        """The store as a read-only zarr group."""
        import zarr

        return zarr.open_group(self.storage.zarr(), mode="r")

    def to_xarray(self, fragments_per_chunk: int = 64) -> xarray.Dataset:
        """The store as a lazy ``xarray.Dataset``, cut to the fragments committed so far.

        Needs ``daskrl[analysis]``. A slot below the last committed one that is itself not committed yet (a live run)
        reads as zeros; ``fragment.round`` is -1 there. ``.to_zarr(PATH)`` writes it, each chunk of Dask as one of
        Zarr; netCDF takes no nested attributes: ``.drop_attrs().to_netcdf(PATH)``. Without daskrl it is
        ``xarray.open_zarr(STORE, consolidated=False)``: metadata are not consolidated, which xarray else warns of.

        Parameters
        ----------
        fragments_per_chunk : of the Dask arrays.
        """
        fragments_per_chunk = plain(fragments_per_chunk)
        require_integer("fragments_per_chunk", fragments_per_chunk, 1)
        with extras.needed("analysis", "to_xarray needs xarray"):
            import xarray

        length = self.progress().slots
        data = xarray.open_zarr(self.storage.zarr(), consolidated=False, chunks=None)
        cut: xarray.Dataset = data.isel(fragment=slice(0, length)).chunk({"fragment": fragments_per_chunk})
        return cut.drop_encoding()  # how the store's chunks lie, which is not how these do

    def __repr__(self) -> str:
        return f"<daskrl.Store {self.storage} ({self.config.environment.get('id', 'callable')})>"

    def _repr_html_(self) -> str:
        return html_table("daskrl store", self.rows())


def _names(cls: Any) -> set[str]:
    return {field.name for field in fields(cls)}


def _attributes_crc32c(attributes: Mapping[str, Any]) -> int:
    kept = {name: attributes.get(name) for name in _ATTRIBUTES}
    return crc32c(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode())


def _array_metadata(storage: Storage, key: str) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = json.loads(storage.get(key))
        if metadata["node_type"] != "array" or not isinstance(metadata["shape"][0], int):
            raise ValueError
        metadata["attributes"] = dict(metadata["attributes"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        raise DamagedError(f"{storage.where(key)} is missing, or is not the metadata of a zarr array.") from None
    return metadata


def write_checked(storage: Storage, name: str, data: bytes) -> list[Any]:
    """Write a file of the store and return ``[name, nbytes, crc32c]`` for its commit record."""
    storage.put(name, data)
    return [name, len(data), crc32c(data)]


def read_checked(storage: Storage, written: Sequence[Any], patience: float = 0.0) -> bytes:
    """Read a file that `write_checked` wrote; raises `DamagedError` naming it."""
    name, nbytes, crc = written
    where = storage.where(name)
    data = patiently(lambda: content(storage, name, where, nbytes=nbytes), storage, name, patience)
    if len(data) != nbytes or crc32c(data) != crc:
        raise DamagedError(f"{where} is not the file that was committed: size or CRC-32C differs.")
    return data


def read_weights(storage: Storage, written: Sequence[Any], patience: float = 0.0) -> dict[str, Array]:
    """The arrays of a file of weights, by name; raises `DamagedError` naming it."""
    from safetensors.numpy import load

    return aligned_all(load(read_checked(storage, written, patience)))


def _create_arrays(
    storage: Storage, attributes: Mapping[str, Any], layout: Mapping[str, Column], config: RunConfig
) -> None:
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    # In memory: on disk zarr would make hard links, which not every file system has.
    made: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(made), attributes=dict(attributes), zarr_format=3)

    def create(column: Column, shape: tuple[int, ...], chunks: tuple[int, ...], dims: tuple[str, ...]) -> None:
        is_index = isinstance(column, IndexColumn)
        group.create_array(
            column.name,
            shape=shape,
            chunks=chunks,
            dtype=column.dtype,
            serializer=BytesCodec(),
            compressors=[ZstdCodec(level=0), Crc32cCodec()] if column.compressed else [Crc32cCodec()],
            fill_value=fill(column.dtype) if is_index else np.zeros((), column.dtype)[()],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=dims,
        )

    for column in layout.values():
        create(column, (_GROW, *column.shape), (1, *column.shape), ("fragment", *column.dims))
    for column in index_columns(config):
        create(column, (_GROW, *column.shape[1:]), column.shape, column.dims)
    for name, metadata in made.items():
        storage.put(name, metadata.to_bytes())


def opened(store: Any) -> Store:
    """A store by its path, itself, or a `daskrl.Run`'s."""
    store = getattr(store, "store", store)
    return store if isinstance(store, Store) else Store.open(store)
