"""Weights as they travel between processes: one vector of bytes, and where each array is in it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from daskrl.arithmetic import ALIGNMENT, aligned, zeros
from daskrl.records import Array

Places = tuple[tuple[str, str, tuple[int, ...], int], ...]
"""``(name, dtype, shape, offset)`` of each of some arrays in one vector of bytes."""


def pack(arrays: Mapping[str, Array]) -> tuple[Places, Array]:
    """Named arrays as one vector of bytes, in the order of their names, and where each of them is.

    What travels as one array does so in a tenth of the time. It is a copy.
    """
    rows, size = [], 0
    for name in sorted(arrays):
        value = np.asarray(arrays[name])
        rows.append((name, value.dtype.str, value.shape, size))
        size += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
    flat = zeros((size,), np.uint8)
    for name, _, _, offset in rows:
        value = np.ascontiguousarray(arrays[name])
        flat[offset : offset + value.nbytes] = value.reshape(-1).view(np.uint8)
    return tuple(rows), flat


def unpack(table: Places, flat: Array) -> dict[str, Array]:
    """The arrays that `pack` was given, as views that begin at multiples of 64 bytes, wherever ``flat`` begins."""
    flat = aligned(flat)
    return {
        name: np.frombuffer(flat, dtype, math.prod(shape), offset).reshape(shape)
        for name, dtype, shape, offset in table
    }
