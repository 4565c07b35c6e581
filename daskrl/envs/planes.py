"""Which parts of an observation are planes, and so go through convolutions; and how their values are scaled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from daskrl.envs.spaces import Leaf
from daskrl.records import Array

CHANNELS = ("auto", "first", "last", "none")

_SMALLEST = 8  # rows and columns of what is convolved without being asked for
_FILTER = 3  # rows and columns of the smallest filter
_WIDEST = 65_535  # of bounds that say how large values are: those of 16-bit pictures


@dataclass(frozen=True)
class Planes:
    """A grid of numbers as convolutions take it.

    Attributes
    ----------
    channels_last : whether the last axis is the channels', to be moved to the front. Two axes are one channel.
    image : (channels, height, width) of one frame.
    low, scale : the networks see ``(x - low) * scale``, which is in [0, 1]. One number, or an array that is broadcast
        against ``image``.
    """

    channels_last: bool
    image: tuple[int, int, int]
    low: float | Array
    scale: float | Array


def planes(leaf: Leaf, channels: str = "auto") -> Planes | None:
    """How a leaf is convolved; None where it is a vector.

    A ``Box`` is convolved where its height and width are 8 or more, and

    - it has two axes (height and width) or three, of bits or integers, or three, of floats: two axes of floats are
      taken for a table; and
    - its bounds are finite and at most 65,535 apart: others, as those of ``int32`` itself, do not say how large its
      values are.

    Values are scaled to [0, 1] by these bounds, each plane by its own where they differ: a Box of ``uint8`` from 0 to
    255 is a picture, and divided by 255; one from 0 to 1 is a grid of bits, and stays as it is.

    Of three axes the channels' is the one whose length is not that of the two others. Where that is the middle one,
    all are as long, or no two are, it is the shorter of the first and the last, or the last where these are as long.

    Parameters
    ----------
    channels : ``"auto"`` is this rule. ``"first"`` and ``"last"`` say which axis of a Box of three is the channels',
        and have every such Box convolved whose height and width are 3 or more, whatever its dtype and bounds; where
        these do not say how large its values are, they are not scaled. ``"none"`` has nothing convolved.
    """
    if leaf.kind != "box" or channels == "none" or len(leaf.shape) not in (2, 3):
        return None
    asked = channels != "auto" and len(leaf.shape) == 3
    bounds = leaf.bounds()
    if bounds is None and not asked:
        return _without_bounds(leaf)
    last = channels == "last" if asked else _channels_last(leaf.shape)
    image = _image(leaf.shape, last)
    if min(image[1:]) < (_FILTER if asked else _SMALLEST):
        return None
    if bounds is None or np.max(bounds[1] - bounds[0]) > _WIDEST:
        return Planes(last, image, 0.0, 1.0) if asked else None
    if not asked and len(leaf.shape) == 2 and np.dtype(leaf.dtype).kind == "f":
        return None
    low, high = bounds
    extent = np.where(high > low, high - low, 1.0)
    return Planes(last, image, _as_convolved(low, last), _as_convolved(1 / extent, last))


def _channels_last(shape: tuple[int, ...]) -> bool:
    if len(shape) == 2:
        return False
    first, middle, last = shape
    if first == middle != last:
        return True
    if middle == last != first:
        return False
    return last <= first


def _image(shape: tuple[int, ...], channels_last: bool) -> tuple[int, int, int]:
    if len(shape) == 2:
        return (1, shape[0], shape[1])
    first, middle, last = shape
    return (last, first, middle) if channels_last else (first, middle, last)


def _as_convolved(values: Array, channels_last: bool) -> float | Array:
    """A single value as a number; several values with the axis of the channels in front."""
    if values.size == 1:
        return float(values.item())
    return np.moveaxis(values, -1, 0) if channels_last else values


def _without_bounds(leaf: Leaf) -> Planes | None:
    """As stores say nothing of bounds that were made before these were in them: their runs go on as they began."""
    if leaf.dtype not in ("uint8", "bool") or sum(n >= _SMALLEST for n in leaf.shape) < 2:
        return None
    last = len(leaf.shape) == 3 and leaf.shape[2] <= leaf.shape[0]
    return Planes(last, _image(leaf.shape, last), 0.0, 1 / 255 if leaf.dtype == "uint8" else 1.0)
