"""The zarr arrays of a store: made empty, and grown by its driver, which changes nothing but their shape."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from daskrl.config import RunConfig
from daskrl.store.columns import Column
from daskrl.store.index import IndexColumn, fill, index_columns, metadata_of
from daskrl.store.storage import Storage, Tag

GROW = 1024  # slots added by one resize


def create(storage: Storage, attributes: Mapping[str, Any], layout: Mapping[str, Column], config: RunConfig) -> None:
    """Put the metadata of the group and of its arrays, of one block of slots each."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    # In memory: on disk zarr would make hard links, which not every file system has.
    made: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(made), attributes=dict(attributes), zarr_format=3)

    def add(column: Column, shape: tuple[int, ...], chunks: tuple[int, ...], dims: tuple[str, ...]) -> None:
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
        add(column, (GROW, *column.shape), (1, *column.shape), ("fragment", *column.dims))
    for column in index_columns(config):
        add(column, (GROW, *column.shape[1:]), column.shape, column.dims)
    for name, metadata in made.items():
        storage.put(name, metadata.to_bytes())


def length(storage: Storage, names: Iterable[str]) -> int:
    """Slots every array has now; a driver killed while growing them leaves some longer than others."""

    def one(key: str) -> int:
        return int(metadata_of(storage, key)["shape"][0])

    return min(storage.at_once(one, _keys(names)))


def grow(storage: Storage, names: Iterable[str], needed: int, known: dict[str, Tag]) -> int:
    """Have room for ``needed`` slots in every array; returns how many they have then.

    Only the shape changes, so that the ``zarr.json`` of an array is rewritten in one atomic step.

    Parameters
    ----------
    known : the driver's notes of what it wrote, see `Storage.rewrite`.
    """
    slots = -(-needed // GROW) * GROW

    def one(key: str) -> None:
        metadata = metadata_of(storage, key)
        metadata["shape"][0] = max(slots, metadata["shape"][0])
        storage.rewrite(key, json.dumps(metadata, indent=2).encode(), known)

    deque(storage.at_once(one, _keys(names)), maxlen=0)
    return slots


def _keys(names: Iterable[str]) -> list[str]:
    return [f"{name}/zarr.json" for name in names]
