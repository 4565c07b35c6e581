"""The index columns ``fragment.*``: the commit log once more, as arrays for readers without it."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import numpy as np

from daskrl.config import RunConfig
from daskrl.errors import DamagedError
from daskrl.records import Array, FragmentRecord
from daskrl.store.columns import Column, decode, encode
from daskrl.store.storage import Storage, Tag

INDEX_ROWS = 4096  # fragments in one chunk of an index column
INDEX_EVERY = 256  # commits between two writes of the index columns


def index_columns(config: RunConfig) -> list[Column]:
    rows, env = (INDEX_ROWS,), (INDEX_ROWS, config.schedule.envs_per_stream)
    named: list[tuple[str, str, tuple[int, ...]]] = [
        ("stream", "int32", rows),
        ("round", "int64", rows),
        ("weights_version", "int64", rows),
        ("environment_seed", "int64", env),
        ("first_episode", "int64", env),
        ("episode_step", "int64", env),
        ("continues", "bool", rows),
        ("wall_time", "float64", rows),
        ("worker", "int32", rows),
    ]
    dims = ("fragment", "env")
    return [IndexColumn(f"fragment.{name}", dtype, shape, dims[: len(shape)]) for name, dtype, shape in named]


class IndexColumn(Column):
    """A column whose chunk is many fragments of one row each: the fragment axis is its own."""

    def chunk_name(self, slot: int) -> str:
        return ".".join(["c", str(slot), *("0" for _ in self.shape[1:])])


def fill(dtype: str) -> Any:
    return {"i": -1, "f": np.nan, "b": False}[np.dtype(dtype).kind]


class Index:
    """The rows of the index columns as their driver knows them: counted in from the log, and written now and then.

    Parameters
    ----------
    known : the driver's notes of what it wrote, see `Storage.rewrite`.
    """

    def __init__(self, storage: Storage, config: RunConfig, known: dict[str, Tag]) -> None:
        self.storage, self.columns, self._known = storage, index_columns(config), known
        self._blocks: dict[int, dict[str, Array]] = {}  # number of a chunk -> its rows by column
        self._written: set[int] = set()
        self._workers: dict[str, int] = {}

    def take(self, record: FragmentRecord) -> None:
        """Note one committed fragment."""
        block, row = divmod(record["slot"], INDEX_ROWS)
        if block not in self._blocks:
            self._blocks[block] = {column.name: self._rows(column, block) for column in self.columns}
            if len(self._blocks) > 2:  # rounds are committed in order, a few at a time: older blocks are full
                self.flush()
                self._blocks = {number: rows for number, rows in self._blocks.items() if number >= block - 1}
        rows = self._blocks[block]
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

    def _rows(self, column: Column, block: int) -> Array:
        if block in self._written:  # written and dropped by this driver, and now a straggler comes
            key = f"{column.name}/{column.chunk_name(block)}"
            return decode(column, self.storage.get(key), self.storage.where(key)).copy()
        return np.full(column.shape, fill(column.dtype), column.dtype)

    def flush(self) -> None:
        """Write the rows that are held."""
        self._written.update(self._blocks)

        def write(item: tuple[Column, int]) -> None:
            column, block = item
            data = encode(column, self._blocks[block][column.name])
            self.storage.rewrite(f"{column.name}/{column.chunk_name(block)}", data, self._known)

        deque(self.storage.at_once(write, [(column, b) for b in self._blocks for column in self.columns]), maxlen=0)
        key = "fragment.worker/zarr.json"
        metadata = metadata_of(self.storage, key)
        if metadata["attributes"].get("workers") != list(self._workers):
            metadata["attributes"]["workers"] = list(self._workers)
            self.storage.rewrite(key, json.dumps(metadata, indent=2).encode(), self._known)


def metadata_of(storage: Storage, key: str) -> dict[str, Any]:
    """The ``zarr.json`` of an array; raises `DamagedError` naming it."""
    try:
        metadata: dict[str, Any] = json.loads(storage.get(key))
        if metadata["node_type"] != "array" or not isinstance(metadata["shape"][0], int):
            raise ValueError
        metadata["attributes"] = dict(metadata["attributes"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        raise DamagedError(f"{storage.where(key)} is missing, or is not the metadata of a zarr array.") from None
    return metadata
