"""Spaces as flat, named columns.

A space is a list of *leaves*. ``Box``, ``Discrete``, ``MultiDiscrete`` and ``MultiBinary`` are one leaf;
``Dict`` and ``Tuple`` have one leaf for each of theirs, named ``observation.key`` or ``observation.0``.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from daskrl.errors import UnsupportedSpaceError
from daskrl.names import require_key
from daskrl.records import Array

ACTION_MASK = "observation.action_mask"
"""The leaf that says which actions of a discrete space may be taken: ``[A]``, 0 for those that may not. One of zeros
alone says nothing."""


@dataclass(frozen=True)
class Leaf:
    """One array-valued part of a space.

    Attributes
    ----------
    name : column name in the store, e.g. ``"observation"`` or ``"observation.camera"``.
    kind : ``"box"``, ``"discrete"``, ``"multi_discrete"`` or ``"multi_binary"``.
    shape : shape of one value; ``()`` for ``Discrete``.
    dtype : NumPy name of the dtype stored.
    sizes : number of values of each element (``Discrete``: one number; ``MultiDiscrete``: ``nvec``, flattened).
    start : first value of each element of ``sizes``.
    path : the keys leading from the root of the space to this leaf.
    low, high : bounds of each element of an action's ``Box``, flattened; of an observation's ``Box`` of two or three
        axes those along the axes of ``varies`` alone. Empty where one is infinite, and elsewhere.
    varies : the axes along which the bounds of an observation are not all the same.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    path: tuple[str | int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    varies: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Leaf:
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items()}
        return cls(**{key: value for key, value in values.items() if key in known})

    @property
    def flat_size(self) -> int:
        """Length of the vector a network sees: one-hot for discrete values, else the number of elements."""
        if self.kind in ("discrete", "multi_discrete"):
            return sum(self.sizes)
        return math.prod(self.shape)

    def bounds(self) -> tuple[Array, Array] | None:
        """``low`` and ``high`` of an observation, each with as many axes as ``shape`` and broadcast against it."""
        if not self.low:
            return None
        shape = [n if axis in self.varies else 1 for axis, n in enumerate(self.shape)]
        return np.reshape(self.low, shape), np.reshape(self.high, shape)


@dataclass(frozen=True)
class SpaceSpec:
    """What a run must know about an environment: the leaves of its observation and its action."""

    observation: tuple[Leaf, ...]
    action: tuple[Leaf, ...]

    @property
    def one_action(self) -> Leaf:
        """The leaf of an action that has one; raises `UnsupportedSpaceError` where it has several."""
        if len(self.action) != 1:
            names = ", ".join(leaf.name for leaf in self.action)
            raise UnsupportedSpaceError(
                f"expected an action of one leaf, this environment's has {len(self.action)}: {names}. Make it one in a "
                "wrapper (gymnasium.wrappers.TransformAction), or let the algorithm act in each of spec.action."
            )
        return self.action[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "observation": [leaf.to_json() for leaf in self.observation],
            "action": [leaf.to_json() for leaf in self.action],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SpaceSpec:
        return cls(
            observation=tuple(Leaf.from_json(leaf) for leaf in data["observation"]),
            action=tuple(Leaf.from_json(leaf) for leaf in data["action"]),
        )

    def is_stored_as(self, stored: SpaceSpec) -> bool:
        """Whether these are the spaces of a store. One made before bounds of observations were stored has none."""
        older = [leaf.name for leaf in stored.observation if not leaf.low]
        unbounded = (
            replace(leaf, low=(), high=(), varies=()) if leaf.name in older else leaf for leaf in self.observation
        )
        return replace(self, observation=tuple(unbounded)) == stored


def _leaves(space: spaces.Space[Any], name: str, path: tuple[str | int, ...]) -> Iterator[Leaf]:
    if path and name.startswith("action") and isinstance(space, spaces.Dict | spaces.Tuple) and not space.spaces:
        raise UnsupportedSpaceError(f"{name}: an empty {type(space).__name__} in an action. Leave it out in a wrapper.")
    if isinstance(space, spaces.Dict):
        for key, sub in space.spaces.items():
            if not isinstance(key, str) or not key or "/" in key or "." in key:
                raise UnsupportedSpaceError(
                    f"{name}: a Dict key must be a non-empty string without '.' and '/', got {key!r}. "
                    "Rename it in a gymnasium wrapper."
                )
            yield from _leaves(sub, f"{name}.{key}", (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, sub in enumerate(space.spaces):
            yield from _leaves(sub, f"{name}.{index}", (*path, index))
    elif isinstance(space, spaces.Discrete):
        n, start = int(space.n), int(space.start)
        small = start >= 0 and start + n <= 256
        yield Leaf(name, "discrete", (), "uint8" if small else "int64", (n,), (start,), path)
    elif isinstance(space, spaces.MultiDiscrete):
        nvec = tuple(int(n) for n in np.ravel(space.nvec))
        start_ = tuple(int(n) for n in np.ravel(getattr(space, "start", np.zeros_like(space.nvec))))
        dtype = np.dtype(space.dtype).name
        yield Leaf(name, "multi_discrete", tuple(space.nvec.shape), dtype, nvec, start_, path)
    elif isinstance(space, spaces.MultiBinary):
        yield Leaf(name, "multi_binary", tuple(space.shape), "bool", (), (), path)
    elif isinstance(space, spaces.Box):
        if space.dtype is None or space.dtype.kind not in "biuf":
            raise UnsupportedSpaceError(f"{name}: a Box of dtype {space.dtype} cannot be stored.")
        yield Leaf(name, "box", tuple(int(n) for n in space.shape), space.dtype.name, (), (), path)
    else:
        raise UnsupportedSpaceError(
            f"{name}: {type(space).__name__} spaces are not supported; expected Box, Discrete, "
            "MultiDiscrete, MultiBinary, or a Dict or Tuple of these. Convert it in a gymnasium wrapper, e.g. "
            f"gymnasium.wrappers.{'FlattenObservation' if name.startswith('observation') else 'TransformAction'}."
        )


def spec_of(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> SpaceSpec:
    """Flatten the two spaces of an environment into leaves.

    Raises
    ------
    UnsupportedSpaceError
        For ``Text``, ``Graph``, ``Sequence`` and other spaces without a fixed numeric shape, and for empty ones.
    """
    return SpaceSpec(
        observation=tuple(ranged(leaf, observation_space) for leaf in _some_leaves(observation_space, "observation")),
        action=tuple(_bounded(leaf, action_space) for leaf in _some_leaves(action_space, "action")),
    )


def _bounded(leaf: Leaf, space: spaces.Space[Any]) -> Leaf:
    """A leaf of an action with the bounds of its ``Box``, where all of them are finite."""
    space = value_at(space, leaf)
    if not isinstance(space, spaces.Box) or not space.is_bounded():
        return leaf
    return replace(leaf, low=_numbers(space.low), high=_numbers(space.high))


def ranged(leaf: Leaf, space: spaces.Space[Any]) -> Leaf:
    """A leaf of an observation with the bounds of its ``Box``, where it may be planes and all of them are finite.

    Of an image of 84 x 84 x 4 that is one number, or four, and not 28,224 in every store.
    """
    space = value_at(space, leaf)
    if leaf.kind != "box" or len(leaf.shape) not in (2, 3) or not isinstance(space, spaces.Box):
        return leaf
    if not space.is_bounded():
        return leaf
    both = (space.low, space.high)
    varies = tuple(
        axis for axis in range(len(leaf.shape)) if any((bound != bound.take([0], axis)).any() for bound in both)
    )
    some = tuple(slice(None) if axis in varies else slice(1) for axis in range(len(leaf.shape)))
    return replace(leaf, low=_numbers(space.low[some]), high=_numbers(space.high[some]), varies=varies)


def _numbers(values: Array) -> tuple[float, ...]:
    return tuple(float(x) for x in np.ravel(values))


def _some_leaves(space: spaces.Space[Any], name: str) -> tuple[Leaf, ...]:
    leaves = tuple(_leaves(space, name, ()))
    for leaf in leaves:
        if 0 in leaf.shape:
            raise UnsupportedSpaceError(f"{leaf.name}: a space of shape {leaf.shape} has no values to store.")
    if not leaves:
        raise UnsupportedSpaceError(f"{name}: an empty {type(space).__name__} space has no values to store.")
    return leaves


def value_at(value: Any, leaf: Leaf) -> Any:
    """The part of a (nested) value that belongs to a leaf."""
    for key in leaf.path:
        value = value[key]
    return value


def by_leaf(leaves: Sequence[Leaf], action: Any) -> list[tuple[Leaf, Any]]:
    """The leaves of an action, each with its part: of one leaf all of it, of several by the leaf's name."""
    return [(leaves[0], action)] if len(leaves) == 1 else [(leaf, action[leaf.name]) for leaf in leaves]


def assembler(leaves: Sequence[Leaf]) -> Callable[[Sequence[Any]], Any]:
    """A function that makes a (nested) value of those of its leaves, in their order: `value_at` the other way."""
    return _assembler([leaf.path for leaf in leaves], 0, 0)


def _assembler(paths: Sequence[tuple[str | int, ...]], depth: int, first: int) -> Callable[[Sequence[Any]], Any]:
    """Of the leaves from the ``first`` on, whose paths have the same first ``depth`` keys."""
    if len(paths[0]) == depth:
        return operator.itemgetter(first)
    parts = []
    for key, group in itertools.groupby(paths, operator.itemgetter(depth)):
        below = list(group)
        parts.append((key, _assembler(below, depth + 1, first)))
        first += len(below)
    if isinstance(parts[0][0], str):
        return lambda values: {key: part(values) for key, part in parts}
    return lambda values: tuple(part(values) for _, part in parts)


def state_name(state: str) -> str:
    """``lstm`` -> ``recurrent_state.lstm``."""
    return f"recurrent_state.{state}"


def final_name(observation: str) -> str:
    """``observation.key`` -> ``final_observation.key``."""
    return f"final_{observation}"


def agent_column(column: str, agent: str = "") -> str:
    """The column of one of several agents: ``agent.left.reward``; of the agent "", which is alone, ``reward``."""
    require_key("agent", agent)
    return f"agent.{agent}.{column}" if agent else column
