"""The index columns ``fragment.*``: the commit log once more, as arrays for readers without it."""

from __future__ import annotations

from typing import Any

import numpy as np

from daskrl.config import RunConfig
from daskrl.store.columns import Column

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
