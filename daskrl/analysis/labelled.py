"""The transitions of a replay as labelled arrays of xarray, which Dask reads where and when they are computed."""

from __future__ import annotations

import dataclasses
import math
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import extras
from daskrl.analysis.catalog import Damage
from daskrl.analysis.rows import Kind, Part, block
from daskrl.analysis.scan import Table
from daskrl.errors import ConfigError, DamagedError
from daskrl.records import Array

if TYPE_CHECKING:
    import xarray

_CHUNK = 1 << 24  # bytes of a chunk of the widest column, about
_AXES = ("fragment", "time", "env")
_WITHIN = ("episode", "step")  # coordinates of each transition
_EACH = ("stream", "weights_version", "policy_lag", "wall_time")  # coordinates of each fragment


def dataset(
    table: Table, columns: Sequence[str] | None, fragments_per_chunk: int | None, damaged: Collection[tuple[str, int]],
    memory: int,
) -> xarray.Dataset:  # fmt: skip
    """See `daskrl.Replay.to_xarray`.

    Parameters
    ----------
    damaged : (run, slot) of fragments that are known not to be whole.
    memory : bytes that coordinates may take in memory.
    """
    with extras.needed("analysis", "to_xarray needs xarray and dask"):
        import dask.array
        import xarray
        from dask.delayed import delayed
    parts = [_whole(part, damaged) for part in table.parts]
    _require_alike(parts)
    one, of = parts[0].catalog, table.kinds
    names = [
        name for name in (table.default if columns is None else table.columns(columns))
        if name not in (*_WITHIN, *_EACH, "run", "worker", "fragment", "time", "env")
    ]  # fmt: skip
    lengths = [len(part.rows) for part in parts]
    shape = (sum(lengths), one.fragment_steps, one.envs)
    widest = max((of[name].nbytes for name in names), default=1)
    at_once = fragments_per_chunk or max(1, _CHUNK // (widest * one.size))
    pieces = _pieces(parts, lengths, at_once)

    def lazy(kind: Kind) -> Any:
        """A column of all rows, read piece by piece."""
        read, began = delayed(_read), f"replay-{kind.name}-{uuid.uuid4().hex}"
        arrays = []
        for number, some in enumerate(pieces):
            size = (sum(len(part.rows) for part in some), *shape[1:], *kind.shape)
            task = read(some, kind.name, dask_key_name=f"{began}-{number}")
            arrays.append(dask.array.from_delayed(task, size, kind.dtype))  # type: ignore[no-untyped-call]
        if not arrays:
            return np.empty((*shape, *kind.shape), kind.dtype)
        return dask.array.concatenate(arrays)  # type: ignore[no-untyped-call]

    def each(value: Callable[[Part], Any]) -> Any:
        return "fragment", np.concatenate([value(part) for part in parts])

    coordinates: dict[str, Any] = {
        "fragment": each(lambda part: part.catalog.slot[part.rows]),
        "time": np.arange(shape[1]),
        "env": np.arange(shape[2]),
        "run": each(lambda part: np.full(len(part.rows), part.catalog.label, object)),
        "worker": each(lambda part: np.array(part.catalog.workers, object)[part.catalog.worker[part.rows]]),
        "stream": each(lambda part: part.catalog.stream[part.rows]),
        "weights_version": each(lambda part: part.catalog.weights_version[part.rows]),
        "policy_lag": each(lambda part: (part.catalog.round - part.catalog.weights_version)[part.rows]),
        "wall_time": each(lambda part: part.catalog.wall_time[part.rows]),
    }
    for name in _WITHIN:
        coordinates[name] = (_AXES, lazy(of[name]))
    if pieces and math.prod(shape) * 8 <= memory:  # so that groupby knows the groups
        coordinates["episode"] = (_AXES, np.concatenate([_read(some, "episode") for some in pieces]))
    made = xarray.Dataset(
        {name: ((*_AXES, *_dims(of[name])), lazy(of[name])) for name in names},
        coordinates,
        {"runs": [part.catalog.label for part in parts]},
    )
    return made if one.envs == 0 or parts[0].envs is None else made.isel(env=np.flatnonzero(parts[0].envs))


def _whole(part: Part, damaged: Collection[tuple[str, int]]) -> Part:
    slots = part.catalog.slot[part.rows].tolist()
    keep = np.array([(part.catalog.label, slot) not in damaged for slot in slots], np.bool_)
    return dataclasses.replace(part, rows=part.rows[keep])


def _require_alike(parts: Sequence[Part]) -> None:
    if any(part.episodes is not None for part in parts):
        raise ConfigError(
            "to_xarray has whole fragments, and this view has some episodes. Leave out of(episodes=) and select with "
            ".where(dataset.episode == NUMBER), or use transitions()."
        )
    sizes = {(part.catalog.fragment_steps, part.catalog.envs) for part in parts}
    if len(sizes) > 1:
        said = ", ".join(f"{part.catalog.label}: {part.catalog.fragment_steps} x {part.catalog.envs}" for part in parts)
        raise ConfigError(
            f"to_xarray: expected runs of one fragment_steps and envs_per_stream, got {said:.400}. Choose some: "
            ".of(runs=)"
        )


def _pieces(parts: Sequence[Part], lengths: Sequence[int], at_once: int) -> list[list[Part]]:
    """The fragments of all runs in a row, so many to a chunk; Zarr wants all chunks but the last alike."""
    ends = np.cumsum(lengths)
    pieces = []
    for low in range(0, int(ends[-1]), at_once):
        some = []
        for part, end, length in zip(parts, ends.tolist(), lengths, strict=True):
            begin = end - length
            first, last = max(low, begin) - begin, min(low + at_once, end) - begin
            if first < last:
                some.append(part.only(slice(first, last)))
        pieces.append(some)
    return pieces


def _dims(kind: Kind) -> tuple[str, ...]:
    return tuple(f"{kind.name.removeprefix('next_')}_{axis}" for axis in range(len(kind.shape)))


def _read(parts: Sequence[Part], name: str) -> Array:
    """In a task: one column of some fragments, ``[F, T, N, ...]``."""
    made = []
    for part in parts:
        catalog = part.catalog
        found = block(_every(part), part.rows, [name], _refuse)
        made.append(found.values[name].reshape(-1, catalog.fragment_steps, catalog.envs, *found.values[name].shape[1:]))
    return np.concatenate(made) if len(made) > 1 else made[0]


def _every(part: Part) -> Part:
    return Part(part.catalog, part.rows)


def _refuse(damage: Damage) -> None:
    raise DamagedError(
        f"{damage.problem} Arrays have no gaps: call check() of the replay first, and to_xarray() leaves out what is "
        "damaged."
    )
