"""Actions: what an algorithm chose for each leaf of the space, as it is stored and as the environment takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from daskrl.envs.spaces import Leaf, assembler, by_leaf, value_at
from daskrl.errors import ConfigError
from daskrl.records import Array

Action = Array | Mapping[str, Array]
"""Of N environments: ``[N, *leaf]`` where the action has one leaf, else leaf name -> ``[N, *leaf]``.

The numbers of a ``Discrete`` are counted from 0, all others are as their space has them.
"""


class _Part:
    """One leaf of an action space, of which the environment has ``space``."""

    def __init__(self, leaf: Leaf, space: Any) -> None:
        self.leaf, self.dtype = leaf, np.dtype(space.dtype)
        self._discrete = leaf.kind == "discrete"
        # Of the space itself: a leaf has no bounds where one of them is infinite.
        bounded = isinstance(space, gymnasium.spaces.Box) and (space.bounded_below.any() or space.bounded_above.any())
        self._bounds = (space.low, space.high) if bounded else None

    def stored(self, chosen: Array) -> Array:
        if self._discrete:
            chosen = chosen.astype(np.int64) + self.leaf.start[0]
        return chosen.astype(self.leaf.dtype)

    def taken(self, value: Any) -> Any:
        """A stored value as its space samples it: a NumPy integer of a Discrete, else an array, a Box's bounds kept."""
        if self._discrete:
            return self.dtype.type(value)
        if self._bounds is not None:
            value = np.clip(value, *self._bounds)
        return np.asarray(value, self.dtype)

    def each(self, chosen: Array) -> list[Any]:
        """What each environment takes."""
        taken = self.taken
        if self._discrete:
            return [taken(value) for value in chosen.astype(np.int64) + self.leaf.start[0]]
        return [taken(value) for value in chosen.astype(self.leaf.dtype)]


class _Room:
    """Arrays for several leaves that are written to as one array is for one leaf."""

    def __init__(self, rows: Iterable[tuple[Leaf, Array]]) -> None:
        self.rows = {leaf.name: values for leaf, values in rows}

    def __setitem__(self, t: int, action: Mapping[str, Array]) -> None:
        for name, rows in self.rows.items():
            rows[t] = action[name]


class Actions:
    """How the actions of ``count`` environments of one space are given to them, recorded and taken again.

    Attributes
    ----------
    given : what an algorithm chose (see `Action`) -> what each environment takes. Of several leaves, what does not fit
        is a `ConfigError`.
    """

    def __init__(self, leaves: Sequence[Leaf], space: gymnasium.Space[Any], count: int) -> None:
        self._leaves, self._count = tuple(leaves), count
        self._parts = [_Part(leaf, value_at(space, leaf)) for leaf in leaves]
        self._assemble = assembler(leaves)
        self.given: Callable[[Any], Sequence[Any] | Array] = self._one() if len(leaves) == 1 else self._several

    def _one(self) -> Callable[[Array], Sequence[Any] | Array]:
        """`given` of an action with one leaf: chosen once, for it is called at every step."""
        part, assemble = self._parts[0], self._assemble
        if part.leaf.path:
            return lambda action: [assemble((value,)) for value in part.each(action)]
        if part.leaf.kind != "discrete":
            return part.each
        start, dtype = part.leaf.start[0], part.dtype
        if start == 0:
            return lambda action: action.astype(dtype, copy=False)
        return lambda action: (action.astype(np.int64) + start).astype(dtype)

    def _several(self, action: Mapping[str, Array]) -> Sequence[Any]:
        require_fits(self._leaves, action, self._count)
        return [
            self._assemble(values)
            for values in zip(*(part.each(action[part.leaf.name]) for part in self._parts), strict=True)
        ]

    def taken(self, values: Sequence[Any]) -> Any:
        """What an environment takes, of the stored value of each leaf."""
        return self._assemble([part.taken(value) for part, value in zip(self._parts, values, strict=True)])

    def room(self, action: Action, steps: int) -> Any:
        """Where what an algorithm chooses in some steps is written to, ``room[t] = action``; see `columns`.

        Parameters
        ----------
        action : the first step's.
        """
        if len(self._leaves) > 1 or isinstance(action, Mapping):
            require_fits(self._leaves, action, self._count)
        rows = [np.empty((steps, *values.shape), values.dtype) for _, values in by_leaf(self._leaves, action)]
        return rows[0] if len(rows) == 1 else _Room(zip(self._leaves, rows, strict=True))

    def columns(self, room: Any) -> dict[str, Array]:
        """What was written to some `room`, as it is stored."""
        chosen = by_leaf(self._leaves, room.rows if isinstance(room, _Room) else room)
        return {leaf.name: part.stored(rows) for part, (leaf, rows) in zip(self._parts, chosen, strict=True)}

    def recorded(self, stored: Mapping[str, Array], lane: int) -> Callable[[int], Any]:
        """Step -> what an environment takes, of the columns of a fragment."""
        rows = [np.array(stored[leaf.name][:, lane]) for leaf in self._leaves]  # an environment may change what it gets
        return lambda t: self.taken([values[t] for values in rows])

    def not_finite(self, action: Action, env: int) -> tuple[str, Array] | None:
        """The first leaf of which an environment's action is NaN or infinite, and that action."""
        for leaf, values in by_leaf(self._leaves, action):
            if values.dtype.kind == "f" and not np.isfinite(values[env]).all():
                return leaf.name, values[env]
        return None


def require_fits(leaves: Sequence[Leaf], action: object, count: int) -> None:
    """Raise `ConfigError`, which names the leaf, unless an action is one that ``count`` environments can take."""
    names = [leaf.name for leaf in leaves]
    if len(names) == 1:
        if isinstance(action, Mapping):
            raise ConfigError(f"act: expected one array {_expected(leaves[0], count)}, got a mapping: {list(action)}.")
    elif not isinstance(action, Mapping) or set(action) != set(names):
        got = sorted(map(str, action)) if isinstance(action, Mapping) else type(action).__name__
        raise ConfigError(
            f"act: this environment's action has {len(names)} leaves. Expected a mapping with an array for each, "
            f"{{{', '.join(repr(name) for name in names)}}}, got {got}."
        )
    for leaf, values in by_leaf(leaves, action):
        _require_leaf(leaf, values, count)


def _require_leaf(leaf: Leaf, values: object, count: int) -> None:
    expected = f"act: {leaf.name}: expected {_expected(leaf, count)}"
    if not isinstance(values, np.ndarray):
        raise ConfigError(f"{expected}, got {type(values).__name__}.")
    floats = leaf.kind == "box" and np.dtype(leaf.dtype).kind == "f"
    if values.shape != (count, *leaf.shape) or values.dtype.kind not in ("biuf" if floats else "biu"):
        raise ConfigError(f"{expected}, got {values.dtype}{list(values.shape)}.")
    if leaf.sizes:
        low = np.zeros((), np.int64) if leaf.kind == "discrete" else np.reshape(leaf.start, leaf.shape)
        outside = (values < low) | (values >= low + np.reshape(leaf.sizes, leaf.shape))
        if outside.any():
            raise ConfigError(f"{expected}, got {values[outside][0]}.")


def _expected(leaf: Leaf, count: int) -> str:
    floats = leaf.kind == "box" and np.dtype(leaf.dtype).kind == "f"
    said = f"{'floats' if floats else 'integers'} {[count, *leaf.shape]}"
    if leaf.kind == "discrete":
        return f"{said} from 0 to {leaf.sizes[0] - 1}"
    if leaf.kind == "multi_discrete":
        return (
            f"{said} from {list(leaf.start)} to {[low + n - 1 for low, n in zip(leaf.start, leaf.sizes, strict=True)]}"
        )
    return said
