"""Which transitions of the window an update learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from daskrl.errors import DivergedError
from daskrl.records import Array
from daskrl.replay.window import Positions


class Sampled(Protocol):
    """The items that a sampler draws from: rows of ``lanes`` items each, in a ring.

    A `Window`, or an index of its sequences.

    Attributes
    ----------
    ring : positions there are.
    """

    ring: int

    @property
    def first(self) -> int:
        """The oldest row that may be drawn from."""

    @property
    def stop(self) -> int:
        """The row after the newest that may be drawn from."""

    def __len__(self) -> int:
        """Items that may be drawn."""

    def positions(self, index: Positions) -> Positions:
        """Positions of the ``index``-th items, counted from the oldest."""

    def positions_of_rows(self, first: int, stop: int) -> Positions:
        """Positions of all items of some rows."""


class Sampler(Protocol):
    """Draws positions; told of every row that becomes available and every row that leaves.

    Called by the learner only: ``appended`` once after each round, then ``draw`` and ``update`` in turns. A
    sampler keeps no randomness; it is given the generator of the version being learned.
    """

    def appended(self, window: Sampled, before: tuple[int, int]) -> None:
        """A round was added; rows ``[before[0], before[1])`` could be sampled until then."""

    def draw(
        self, window: Sampled, batch_size: int, random: np.random.Generator, beta: float
    ) -> tuple[Positions, Array | None]:
        """Positions ``[B]`` and their importance weights ``[B]`` (None: all 1)."""

    def update(self, positions: Positions, td_error: Array) -> None:
        """The absolute TD errors ``[B]`` of the positions drawn last.

        Raises
        ------
        DivergedError
            One is NaN or infinite. The learner task adds the version, the last good checkpoint and the batch.
        """

    def state(self) -> dict[str, Array]:
        """Everything that cannot be worked out again from the window, for a checkpoint."""

    def restore(self, state: Mapping[str, Array]) -> None:
        """Take back what `state` returned; the window holds the same rows as then."""


class Uniform:
    """Every transition alike."""

    def appended(self, window: Sampled, before: tuple[int, int]) -> None:
        pass

    def draw(
        self, window: Sampled, batch_size: int, random: np.random.Generator, beta: float
    ) -> tuple[Positions, Array | None]:
        return window.positions(random.integers(0, len(window), size=batch_size)), None

    def update(self, positions: Positions, td_error: Array) -> None:
        pass

    def state(self) -> dict[str, Array]:
        return {}

    def restore(self, state: Mapping[str, Array]) -> None:
        pass


class SumTree:
    """A tree of sums over integer priorities, ``_FAN`` children a node, all operations vectorised.

    Integers make the sums exact: a tree that was updated a million times and one rebuilt from its leaves are
    the same, bit for bit, and nothing drifts. It ends in a level of up to ``_TOP`` sums, which are added up anew
    at each draw: a few microseconds, where another level would cost ten and more.

    Parameters
    ----------
    leaves : how many. Their values are ``>= 0``.
    """

    _FAN = 32
    _TOP = 4096

    def __init__(self, leaves: int) -> None:
        self.levels: list[Array] = []
        size = leaves
        while True:
            padded = -(-size // self._FAN) * self._FAN
            self.levels.append(np.zeros(padded, np.int64))
            if padded <= self._TOP:
                break
            size = padded // self._FAN
        self._rows = [level.reshape(-1, self._FAN) for level in self.levels]  # children of each node above

    @property
    def leaves(self) -> Array:
        return self.levels[0]

    def sums(self) -> Array:
        """Of all leaves up to the end of each node of the last level; `find` needs them."""
        sums: Array = self.levels[-1].cumsum()
        return sums

    def set(self, index: Positions, value: Array | int) -> None:
        """Set some leaves. Of an index given twice, the last value counts."""
        self.levels[0][index] = value
        node = index
        for rows, level in zip(self._rows, self.levels[1:], strict=False):
            node = node // self._FAN
            level[node] = rows.take(node, 0).sum(1)

    def find(self, mass: Array, sums: Array) -> Positions:
        """The leaf under each of some masses in ``[0, sums[-1])``; ``sums`` as `sums` gave them."""
        node: Positions = sums.searchsorted(mass, "right")
        mass = mass - (sums - self.levels[-1]).take(node)
        first = np.arange(0, len(mass) * self._FAN, self._FAN)
        for rows in self._rows[-2::-1]:
            # The children of all nodes in one row of sums: one search finds the child under each mass.
            children = rows.take(node, 0).ravel()  # [B * FAN]
            sums = children.cumsum()
            before = sums - children
            mass = mass + before.take(first)
            child = sums.searchsorted(mass, "right")
            mass = mass - before.take(child)
            node = node * self._FAN + (child - first)
        return node

    def rebuild(self, leaves: Array) -> None:
        """Take all leaves anew."""
        self.levels[0][: len(leaves)] = leaves
        for rows, level in zip(self._rows, self.levels[1:], strict=False):
            level[: len(rows)] = rows.sum(1)


class Prioritized:
    """Proportional prioritised replay (Schaul et al. 2016, https://arxiv.org/abs/1511.05952).

    ``P(i) = p_i**alpha / sum_k p_k**alpha`` with ``p_i = |td_i| + epsilon`` (equation 1), stratified over the
    batch; importance weights ``(N P(i))**-beta / max_j w_j`` (section 3.4). A new transition gets the largest
    priority seen so far.
    """

    _SCALE = 1 << 20  # of an integer priority
    _LARGEST = 1 << 36  # far beyond any sensible TD error, and sums over whole batches still fit 63 bits

    def __init__(self, size: int, *, alpha: float = 0.6, epsilon: float = 1e-6) -> None:
        self.alpha, self.epsilon = alpha, epsilon
        self.tree = SumTree(size)
        self.largest = self._SCALE

    def appended(self, window: Sampled, before: tuple[int, int]) -> None:
        self.tree.set(window.positions_of_rows(before[0], min(window.first, before[1])), 0)
        self.tree.set(window.positions_of_rows(max(before[1], window.first), window.stop), self.largest)

    def draw(
        self, window: Sampled, batch_size: int, random: np.random.Generator, beta: float
    ) -> tuple[Positions, Array | None]:
        sums = self.tree.sums()
        total = int(sums[-1])
        step = total / batch_size
        mass = (np.arange(batch_size) + random.random(batch_size)) * step
        positions = self.tree.find(np.minimum(mass.astype(np.int64), total - 1), sums)
        probability = self.tree.leaves[positions] / total
        weight = (len(window) * probability) ** -beta
        return positions, (weight / weight.max()).astype(np.float32)

    def update(self, positions: Positions, td_error: Array) -> None:
        priority = (np.abs(td_error).astype(np.float64) + self.epsilon) ** self.alpha
        if not math.isfinite(priority.max()):  # NaN if one is
            raise DivergedError("a TD error is NaN or infinite")  # the learner task says the rest
        scaled = np.minimum(np.maximum(priority * self._SCALE, 1), self._LARGEST).astype(np.int64)
        self.largest = max(self.largest, int(scaled.max()))
        self.tree.set(positions, scaled)

    def state(self) -> dict[str, Array]:
        return {
            "leaves": self.tree.leaves.copy(),
            "largest": np.array(self.largest, np.int64),
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        self.tree.rebuild(state["leaves"])
        self.largest = int(state["largest"])


def make(size: int, priority_alpha: float | None, **settings: Any) -> Sampler:
    """`Prioritized` with an exponent, `Uniform` without."""
    if priority_alpha is None:
        return Uniform()
    return Prioritized(size, alpha=priority_alpha, **settings)
