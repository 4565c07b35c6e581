"""Checks of what environments return: a value is stored unchanged in its space's dtype, or refused with its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from daskrl.envs.spaces import Leaf, value_at
from daskrl.records import Array

Take = Callable[[int, Any], None]
"""Environment and what it returned for an observation: copied at once, for environments may use one array for all."""


_NUMBERS = (float, int, np.floating, np.integer, np.bool_)
_TRUTHS = (bool, np.bool_, type(None))


class RefusedError(ValueError):
    """A value that its column cannot hold. Whoever stepped the environment says which one, where and when."""


def as_stored(leaf: Leaf, value: Any) -> Array:
    """One value of a leaf, in the leaf's dtype and unchanged; only floating-point numbers are rounded to it.

    A number too large for it is refused, not made infinite.

    Raises
    ------
    RefusedError
        Another shape, a number that the dtype cannot hold, or one that a discrete space does not have.
    """
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise RefusedError(f"{leaf.name} is no array of shape {leaf.shape}: {error}") from error
    if given.shape != leaf.shape:
        raise RefusedError(f"{leaf.name} has shape {given.shape}, expected {leaf.shape}")
    dtype = np.dtype(leaf.dtype)
    if given.dtype == dtype or (given.dtype.kind == dtype.kind == "f"):
        with np.errstate(over="ignore"):
            stored = given.astype(dtype, copy=False)
        held = np.asarray(given.dtype == dtype or np.isfinite(stored) | ~np.isfinite(given))
    elif given.dtype.kind in "biuf":
        with np.errstate(invalid="ignore"):
            stored = given.astype(dtype)
            held = np.asarray(stored.astype(given.dtype) == given)
        if {given.dtype.kind, dtype.kind} == {"i", "u"}:  # two's complement comes back as it went
            held = held & ((stored < 0) == (given < 0))
    else:
        raise RefusedError(f"{leaf.name} is {value!r:.80} of {given.dtype}, its space says {dtype}")
    if not held.all():
        bad, where = _first(~held, given)
        raise RefusedError(f"{leaf.name} is {given.dtype}, its space says {dtype}, which cannot hold {bad!r}{where}")
    if leaf.kind in ("discrete", "multi_discrete"):
        start, sizes = np.reshape(leaf.start, leaf.shape), np.reshape(leaf.sizes, leaf.shape)
        outside = (given < start) | (given >= start + sizes)
        if outside.any():
            bad, where = _first(outside, given)
            low, size = (int(np.broadcast_to(x, leaf.shape)[outside][0]) for x in (start, sizes))
            raise RefusedError(f"{leaf.name} is {bad!r}{where}, its space has the values {low} to {low + size - 1}")
    return stored


def _first(bad: Array, given: Array) -> tuple[Any, str]:
    """The first value that is bad, and its place where the array has several."""
    place = tuple(int(i) for i in np.argwhere(bad)[0])
    return given[place].item(), f" at {list(place)}" if place else ""


def as_reward(value: Any) -> float:
    """A reward as a Python number.

    Raises
    ------
    RefusedError
        It is not one real number.
    """
    if isinstance(value, _NUMBERS):
        return float(value)
    given = np.asarray(value)
    if given.dtype.kind not in "biuf" or given.size != 1:
        raise RefusedError(f"reward is {value!r:.80}, expected one real number")
    return float(given.reshape(-1)[0])


def as_ending(name: str, value: Any) -> bool:
    """``terminated`` or ``truncated`` as True or False.

    Raises
    ------
    RefusedError
        It is neither, nor 0 or 1.
    """
    if isinstance(value, _TRUTHS):
        return bool(value)
    given = np.asarray(value)
    if given.dtype.kind not in "biuf" or given.size != 1 or not ((given == 0) | (given == 1)).all():
        raise RefusedError(f"{name} is {value!r:.80}, expected True or False")
    return bool(given.reshape(-1)[0])


def taker(rows: Sequence[tuple[Leaf, Array]]) -> Take:
    """What copies one environment's observation to its place in the rows ``[N, *leaf]`` of each leaf."""
    if len(rows) == 1 and not rows[0][0].path:
        return _leaf_taker(*rows[0])
    parts = [(leaf, _leaf_taker(leaf, row)) for leaf, row in rows]

    def take(env: int, value: Any) -> None:
        for leaf, take_leaf in parts:
            try:
                part = value_at(value, leaf)
            except (LookupError, TypeError):
                raise RefusedError(f"{leaf.name} is missing in {value!r:.200}") from None
            take_leaf(env, part)

    return take


def _leaf_taker(leaf: Leaf, row: Array) -> Take:
    # What is as its space says is copied without another look: this is done in every step of every environment.
    if leaf.kind == "discrete":
        low, high = leaf.start[0], leaf.start[0] + leaf.sizes[0]

        def take(env: int, value: Any) -> None:
            if type(value) in (int, np.int64) and low <= value < high:
                row[env] = value
            else:
                row[env] = as_stored(leaf, value)

        return take

    dtype, shape, array = row.dtype, leaf.shape, np.ndarray if leaf.kind != "multi_discrete" else None

    def take_array(env: int, value: Any) -> None:
        if type(value) is array and value.dtype is dtype and value.shape == shape:
            row[env] = value
        else:
            row[env] = as_stored(leaf, value)

    return take_array
