"""The columns of a store: what one fragment is made of, and how a column becomes the bytes of one chunk.

A chunk is one fragment of one column. Its bytes are what zarr would write (``bytes``, ``zstd`` except for floats,
``crc32c`` last), made here without zarr-python, which costs 1-2.5 ms a column whatever its size.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numcodecs.zstd import Zstd

from daskrl.config import Schedule
from daskrl.envs.spaces import Leaf, SpaceSpec, agent_column, final_name, state_name
from daskrl.errors import DamagedError, StoreError
from daskrl.records import Array, ReadFragment
from daskrl.store.files import crc32c
from daskrl.store.late import content, patiently
from daskrl.store.storage import Storage

_ZSTD = Zstd(level=0)
SUFFIX = 4  # bytes of the crc32c codec


@dataclass(frozen=True)
class Column:
    """One array of the store, without its leading fragment axis.

    Attributes
    ----------
    shape : shape of one fragment.
    dims : name of each axis of ``shape``.
    optional : a chunk whose values are all zero is not written (``final_observation`` without an ending).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    optional: bool = False

    @property
    def compressed(self) -> bool:
        """Floats hardly shrink; an optional column is mostly zeros."""
        return self.optional or np.dtype(self.dtype).kind != "f"

    def chunk_name(self, slot: int) -> str:
        return ".".join(["c", str(slot), *("0" for _ in self.shape)])


def columns(
    spec: SpaceSpec,
    schedule: Schedule,
    frame_stack: int,
    extras: Mapping[str, str] | None = None,
    state: Mapping[str, tuple[int, ...]] | None = None,
    agent: str = "",
) -> dict[str, Column]:
    """The data columns of a run, or of one of its agents.

    Parameters
    ----------
    extras : columns an algorithm adds, name -> dtype, each of shape ``(time, env)``.
    state : its recurrent state, name -> shape for one environment; kept as it was before and after the fragment.
    agent : whose they are, where a run has several; "" of a run with one.
    """
    steps, count = schedule.fragment_steps, schedule.envs_per_stream
    made: dict[str, Column] = {}

    def add(name: str, dtype: str, shape: tuple[int, ...], dims: tuple[str, ...], optional: bool = False) -> None:
        column = agent_column(name, agent)
        made[column] = Column(column, dtype, shape, dims, optional)

    def leaf_dims(leaf: Leaf) -> tuple[str, ...]:
        return tuple(f"{leaf.name}_{i}" for i in range(len(leaf.shape)))

    for leaf in spec.observation:
        rows = steps + frame_stack
        add(leaf.name, leaf.dtype, (rows, count, *leaf.shape), ("obs_time", "env", *leaf_dims(leaf)))
        shape = (steps * count, *leaf.shape)
        add(final_name(leaf.name), leaf.dtype, shape, ("final", *leaf_dims(leaf)), optional=True)
    for leaf in spec.action:
        add(leaf.name, leaf.dtype, (steps, count, *leaf.shape), ("time", "env", *leaf_dims(leaf)))
    time_env = ("time", "env")
    add("reward", "float32", (steps, count), time_env)
    add("terminated", "bool", (steps, count), time_env)
    add("truncated", "bool", (steps, count), time_env)
    for name, dtype in (extras or {}).items():
        add(name, dtype, (steps, count), time_env)
    for name, shape in (state or {}).items():
        column = state_name(name)
        add(column, "float32", (2, count, *shape), ("edge", "env", *(f"{column}_{i}" for i in range(len(shape)))))
    return made


def encode(column: Column, values: Array) -> bytes:
    """The bytes of one chunk, checksum included."""
    return b"".join(_encode(column, values))


def _encode(column: Column, values: Array) -> tuple[bytes | memoryview, bytes]:
    """The bytes of one chunk and those of its checksum. Floats are not copied."""
    if values.shape != column.shape or values.dtype != np.dtype(column.dtype):
        raise StoreError(
            f"column {column.name}: expected {column.dtype}{list(column.shape)}, "
            f"got {values.dtype}{list(values.shape)}."
        )
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    if column.compressed:
        body: bytes = _ZSTD.encode(data)
        return body, crc32c(body).to_bytes(SUFFIX, "little")
    return data.data, crc32c(data).to_bytes(SUFFIX, "little")


def decode(column: Column, data: bytes, where: str, crc: int | None = None) -> Array:
    """The values of one chunk; raises `DamagedError` as `decode_into` does. ``crc`` is None where no record says it."""
    return np.frombuffer(_checked(column, data, crc, lambda: where), column.dtype).reshape(column.shape)


def decode_into(column: Column, data: bytes, crc: int, out: Array, where: Callable[[], str]) -> None:
    """Decode one committed chunk into an array of its shape and type, which lies in one piece.

    Parameters
    ----------
    crc : what the commit record says.
    where : what messages call the chunk.

    Raises
    ------
    DamagedError
        The chunk is not the one that was committed.
    """
    out.reshape(-1).view(np.uint8)[:] = np.frombuffer(_checked(column, data, crc, where), np.uint8)


def _checked(column: Column, data: bytes, crc: int | None, where: Callable[[], str]) -> bytes | Array:
    """The bytes of a chunk's values."""
    body = np.frombuffer(data, np.uint8)[:-SUFFIX]
    found = int.from_bytes(data[-SUFFIX:], "little")
    if crc is not None and found != crc:
        raise DamagedError(f"{where()} is not the chunk that was committed: CRC-32C differs.")
    if len(data) < SUFFIX or crc32c(body) != found:
        raise DamagedError(f"{where()} fails its CRC-32C.")
    try:
        raw: bytes | Array = _ZSTD.decode(body) if column.compressed else body
    except RuntimeError as error:
        raise DamagedError(f"{where()} is not what its column's codecs write: {error}") from None
    size = math.prod(column.shape) * np.dtype(column.dtype).itemsize
    if len(raw) != size:
        raise DamagedError(f"{where()} holds {len(raw)} bytes, expected {size}.")
    return raw


def write_fragment(
    storage: Storage, layout: Mapping[str, Column], slot: int, fragment: Mapping[str, Array]
) -> dict[str, list[int]]:
    """Write the chunks of one fragment.

    Called by rollout tasks, on any process, more than once for the same slot: the same values give the same
    bytes in the same places.

    Returns
    -------
    column name -> ``[nbytes, crc32c]`` of its chunk; ``[0, 0]`` for an optional chunk that was not needed.
    """

    def write(item: tuple[str, Column, _Chunk | None]) -> tuple[str, list[int]]:
        name, column, chunk = item
        if chunk is not None:
            storage.put(f"{name}/{column.chunk_name(slot)}", *chunk)
        return name, _nbytes_and_crc(chunk)

    return dict(storage.at_once(write, _chunks(layout, fragment)))


def checksums(layout: Mapping[str, Column], fragment: Mapping[str, Array]) -> dict[str, list[int]]:
    """What `write_fragment` would return, without writing."""
    return {name: _nbytes_and_crc(chunk) for name, _, chunk in _chunks(layout, fragment)}


_Chunk = tuple[bytes | memoryview, bytes]


def _chunks(layout: Mapping[str, Column], fragment: Mapping[str, Array]) -> Iterator[tuple[str, Column, _Chunk | None]]:
    """Each column's name, column and encoded chunk; None for an optional chunk that is not needed."""
    ended = bool(fragment["terminated"].any() or fragment["truncated"].any())
    for name, column in layout.items():
        yield name, column, _encode(column, fragment[name]) if ended or not column.optional else None


def _nbytes_and_crc(chunk: _Chunk | None) -> list[int]:
    return [0, 0] if chunk is None else [len(chunk[0]) + SUFFIX, int.from_bytes(chunk[1], "little")]


def read_fragment(
    storage: Storage,
    layout: Mapping[str, Column],
    record: ReadFragment,
    only: tuple[str, ...] | None = None,
    patience: float = 0.0,
) -> dict[str, Array]:
    """Read the chunks of one committed fragment, checking each against its commit record.

    Parameters
    ----------
    record : the fragment's commit record.
    only : names of the columns wanted; all by default.
    patience : seconds to wait for a chunk that is not seen yet; see `daskrl.store.late`.

    Returns
    -------
    column name -> read-only array.

    Raises
    ------
    DamagedError
        A chunk is missing, or is not the one that was committed. Names the file.
    """

    def read(column: Column) -> Array:
        nbytes, crc = record["columns"][column.name]
        if column.optional and nbytes == 0:
            return np.broadcast_to(np.zeros((), column.dtype), column.shape)
        key = f"{column.name}/{column.chunk_name(record['slot'])}"
        where = f"{storage.where(key)} (fragment {record['slot']}, column {column.name})"
        look = functools.partial(content, storage, key, where, nbytes=nbytes)
        data = patiently(look, storage, key, patience)
        if len(data) != nbytes:
            raise DamagedError(f"{where} has {len(data)} bytes, {nbytes} were committed.")
        return decode(column, data, where, crc)

    wanted = [column for name, column in layout.items() if only is None or name in only]
    return dict(zip((column.name for column in wanted), storage.at_once(read, wanted), strict=True))


def read_transitions(
    storage: Storage, layout: Mapping[str, Column], record: ReadFragment, patience: float = 0.0
) -> dict[str, Array]:
    """What a learner needs of one committed fragment, checked as by `read_fragment`.

    Last observations are left out unless an episode was truncated: nothing follows a termination.
    """
    last = tuple(name for name, column in layout.items() if column.optional)
    fragment = read_fragment(storage, layout, record, tuple(name for name in layout if name not in last), patience)
    if (fragment["truncated"] & ~fragment["terminated"]).any():
        fragment.update(read_fragment(storage, layout, record, last, patience))
    return fragment
