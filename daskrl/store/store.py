"""The store of one run: a zarr v3 group that plain zarr and xarray read, a commit log, and files of weights.

See FORMAT.md for the format. This is the only module that imports zarr, and it does so only to make the
arrays, to grow them, and to hand them to readers; tasks write and read chunks through `daskrl.store.columns`.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import numpy as np

from daskrl import extras
from daskrl.config import Options, RunConfig, known_keys, plain, require_integer
from daskrl.envs.spaces import SpaceSpec
from daskrl.errors import ConfigError, StoreError
from daskrl.records import (
    ArithmeticRecord,
    Array,
    BudgetRecord,
    CheckpointRecord,
    EvaluationRecord,
    FragmentRecord,
    LearnRecord,
    PromiseOffRecord,
    ReadFragment,
    Record,
)
from daskrl.shown import html_table
from daskrl.store import arrays, attributes, snapshot
from daskrl.store.columns import Column, columns, read_fragment
from daskrl.store.driver import Driver
from daskrl.store.files import EMPTY_GROUP, read_checked, write_checked
from daskrl.store.initial import Initial
from daskrl.store.layout import Layout
from daskrl.store.log import CommitLog
from daskrl.store.places import Place, found, to_make
from daskrl.store.posix import Posix
from daskrl.store.progress import Evaluated, Progress
from daskrl.store.storage import Storage
from daskrl.store.weights import older_weights, read_weights

if TYPE_CHECKING:
    import xarray
    import zarr


# Each folder that is no array is an empty group, so that zarr does not warn of it when it lists the members.


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
        self._driver = Driver(self.layout)
        self._seen = self._nothing()  # by readers

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
        storage = to_make(path, overwrite)
        layout = columns(spec, config.schedule, config.frame_stack, extras, state)
        said = attributes.made(config, spec, layout.values(), versions)
        with storage.making(overwrite) as making:
            arrays.create(making, said, layout, config)
            for name in (".commits", ".weights", ".checkpoints"):
                making.put(f"{name}/zarr.json", EMPTY_GROUP)
            begun: list[Record] = [
                {"kind": "created", "attributes_crc32c": attributes.checksum(said)},
                {"kind": "budget", "env_steps": env_steps, "options": vars(options)},
            ]
            if initial is not None:
                making.put(".init/zarr.json", EMPTY_GROUP)
                weights, replay = write_checked(making, ".init/weights.safetensors", initial.to_bytes()), None
                if initial.replay is not None:
                    initial.replay.copy(making.folder(".init"))
                    replay = write_checked(making, ".init/replay.json", initial.replay.to_bytes())
                begun.append({"kind": "init", "arrays": weights, "replay": replay})
            CommitLog(making).append(0, begun)
        return cls(storage, said)

    @staticmethod
    def exists(path: Place) -> bool:
        """Whether there is a store."""
        return found(path).holds_store()

    @classmethod
    def open(cls, path: Place) -> Store:
        """Open a store for reading, also of a run that was packed: by the path it had, or by that of its pack.

        Raises
        ------
        ConfigError
            ``path`` is no path.
        StoreMismatchError
            There is no store at ``path``, or its format is not one this version reads.
        DamagedError
            Its attributes are not those it was made with.
        """
        storage = found(path)
        return cls(storage, attributes.read(storage, path))

    def lie_in(self, storage: Storage) -> None:
        """Be read from another place from now on: it was packed, or unpacked (`daskrl.store.pack`)."""
        self.storage, self.log = storage, CommitLog(storage)
        self._driver = Driver(self.layout)

    @property
    def root(self) -> Path:
        """The directory of a store in a file system; raises `StoreError` where it is in an object store, or packed."""
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
        """Commits made, as the driver knows them."""
        return self._driver.head

    def lock(self) -> Progress:
        """Become the one driver of this store and find out how far it is.

        Raises
        ------
        StoreLockedError
            Another driver has it.
        DamagedError
            A commit is missing or damaged.
        """
        return self._driver.begin()

    def unlock(self) -> None:
        """Write what is buffered of the index and let another driver have the store."""
        self._driver.end()

    def commit(self, records: Sequence[Record]) -> None:
        """Commit some records, all of them or none. Growing the arrays comes first."""
        self._driver.commit(records)

    def array_length(self) -> int:
        """Slots every array has now."""
        return self._driver.array_length()

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
        return attributes.unknown_keys(self.attributes)

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


def opened(store: Any) -> Store:
    """A store by its path, itself, or a `daskrl.Run`'s."""
    store = getattr(store, "store", store)
    return store if isinstance(store, Store) else Store.open(store)
