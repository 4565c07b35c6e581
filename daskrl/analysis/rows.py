"""Transitions out of fragments: what each column is computed from, many fragments at a time.

Rows are in the order in which fragments are stored, by slot; within a fragment by time, then by environment. So the
rows of one episode are in the order of its steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from daskrl.analysis import reading
from daskrl.analysis.catalog import Catalog
from daskrl.envs.spaces import final_name
from daskrl.errors import ConfigError
from daskrl.names import did_you_mean
from daskrl.records import Array

# Those that are given only to who asks for them: where a transition is from.
WHERE = ("stream", "env", "fragment", "time", "worker", "wall_time")
_ENDINGS = ("terminated", "truncated")
_NEED_ENDINGS = ("episode", "step")


@dataclass(frozen=True)
class Kind:
    """What a column of transitions holds.

    Attributes
    ----------
    dtype, shape : of one value.
    texts : whether the values are codes of texts.
    each : whether the value is the same in all rows of a fragment.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    texts: bool = False
    each: bool = False

    @property
    def nbytes(self) -> int:
        """Of one value."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


def kinds(part: Part) -> dict[str, Kind]:
    """The columns of the transitions of a run, in their order: first those that all are given."""
    store = part.catalog.store
    stack = (store.config.frame_stack,) if part.stacked and store.config.frame_stack > 1 else ()
    made: list[Kind] = [Kind("run", "int32", texts=True), Kind("episode", "int64"), Kind("step", "int64")]
    made += [Kind(leaf.name, leaf.dtype, (*stack, *leaf.shape)) for leaf in store.spec.observation]
    made += [Kind(leaf.name, leaf.dtype, leaf.shape) for leaf in store.spec.action]
    made += [Kind("reward", "float32")]
    made += [Kind(next_name(leaf.name), leaf.dtype, (*stack, *leaf.shape)) for leaf in store.spec.observation]
    made += [
        Kind("terminated", "bool"), Kind("truncated", "bool"), Kind("discount", "float32"),
        Kind("weights_version", "int64", each=True), Kind("policy_lag", "int64", each=True),
    ]  # fmt: skip
    known = {kind.name for kind in made}
    made += [
        Kind(column.name, column.dtype)
        for column in store.columns.values()
        if column.dims == ("time", "env") and column.name not in known
    ]
    made += [
        Kind("stream", "int64", each=True), Kind("env", "int64"), Kind("fragment", "int64", each=True),
        Kind("time", "int64"), Kind("worker", "int32", texts=True), Kind("wall_time", "float64", each=True),
    ]  # fmt: skip
    return {kind.name: kind for kind in made}


def next_name(observation: str) -> str:
    """``observation.key`` -> ``next_observation.key``."""
    return f"next_{observation}"


@dataclass(frozen=True)
class Part:
    """The transitions of one run that a view has.

    Attributes
    ----------
    rows : of the catalog, the lowest slot first.
    envs : ``[N]`` which environments of each stream; None for all.
    episodes : the numbers of the episodes, sorted; None for all.
    stacked : whether observations are all the frames that the algorithm saw as one, ``[K, ...]``.
    """

    catalog: Catalog
    rows: Array
    envs: Array | None = None
    episodes: Array | None = None
    stacked: bool = False

    @property
    def most(self) -> int:
        """Transitions, before those of other environments and episodes are left out."""
        return len(self.rows) * self.catalog.size

    def only(self, rows: slice) -> Part:
        """Some of the fragments, with what a task needs of them alone."""
        of = self.rows[rows]
        return replace(self, catalog=self.catalog.only(of), rows=np.arange(len(of)))


@dataclass(frozen=True)
class Each:
    """A column with one value for all rows of a fragment: ``of[codes]``, which groups and filters go through faster."""

    codes: Array
    of: Array

    def __getitem__(self, rows: Array) -> Each:
        return Each(self.codes[rows], self.of)

    def all(self) -> Array:
        """The value of each row."""
        found: Array = self.of[self.codes]
        return found


MOST_AT_ONCE = 1 << 16
"""Fragments in one block: codes of `Each` are ``uint16``."""


@dataclass(frozen=True)
class Block:
    """Some rows.

    Attributes
    ----------
    catalog : of their run.
    kept : which rows of the fragments these are; None where all are there.
    values : column -> ``[B, *shape]``; of texts their codes; `Each` where that was asked for.
    """

    catalog: Catalog
    kept: Array | None
    values: dict[str, Any]
    count: int


def nbytes_of(part: Part, names: Sequence[str]) -> int:
    """Bytes of one fragment's rows of some columns, and of what they are computed from, about."""
    of = kinds(part)
    return part.catalog.size * (2 * sum(of[name].nbytes for name in names) + 16)


def block(
    part: Part, rows: Array, names: Sequence[str], report: reading.Report, kept: Array | None = None,
    coded: bool = False,
) -> Block:  # fmt: skip
    """The rows of some fragments.

    Parameters
    ----------
    kept : which of their rows; all that the part has by default.
    coded : whether what is the same in all rows of a fragment is given as `Each`.
    """
    catalog = part.catalog
    needed, count = _needed(part, names, kept), len(rows) * catalog.size
    arrays, good = reading.read(catalog, rows, needed, report)
    if not good.all():
        mask = np.repeat(good, catalog.size)
        kept = np.flatnonzero(mask) if kept is None else kept[mask[kept]]
    made = _Columns(part, rows, arrays, coded)
    kept = _selected(part, made, kept)
    values = {name: made.column(name) for name in names}
    if kept is not None:
        values = {name: column[kept] for name, column in values.items()}
        count = len(kept)
    return Block(catalog, kept, values, count)


def _needed(part: Part, names: Sequence[str], kept: Array | None) -> list[str]:
    """The stored columns that some columns are computed from."""
    stored, needed = part.catalog.store.columns, dict[str, None]()
    for name in names:
        of_next = name.removeprefix("next_")
        if name != of_next and of_next in stored:
            needed |= dict.fromkeys((of_next, final_name(of_next), *_ENDINGS))
        elif name in stored:
            needed[name] = None
            if part.stacked and name.startswith("observation"):
                needed |= dict.fromkeys(_ENDINGS)
        elif name == "discount":
            needed["terminated"] = None
        elif name in _NEED_ENDINGS:
            needed |= dict.fromkeys(_ENDINGS)
    if part.episodes is not None and kept is None:
        needed |= dict.fromkeys(_ENDINGS)
    return list(needed)


def _selected(part: Part, made: _Columns, kept: Array | None) -> Array | None:
    """Which rows of the fragments a part has, of those that were asked for; None for all."""
    masks = []
    if part.envs is not None:
        masks.append(np.broadcast_to(part.envs, made.shape).reshape(-1))
    if part.episodes is not None and "terminated" in made.arrays:
        masks.append(np.isin(made.column("episode"), part.episodes))
    for mask in masks:
        kept = np.flatnonzero(mask) if kept is None else kept[mask[kept]]
    return kept


class _Columns:
    """Columns of some fragments, computed from stored ones."""

    def __init__(self, part: Part, rows: Array, arrays: dict[str, Array], coded: bool) -> None:
        self.coded = coded
        self.catalog, self.rows, self.arrays = part.catalog, rows, arrays
        catalog = part.catalog
        self.frames = catalog.store.config.frame_stack
        self.stacked = part.stacked and self.frames > 1
        self.shape = (len(rows), catalog.fragment_steps, catalog.envs)
        self._ended: Array | None = None
        self._fragment: Array | None = None
        self._counted: tuple[Array, Array] | None = None

    def column(self, name: str) -> Any:
        """``[F * T * N, *shape]``."""
        catalog, rows = self.catalog, self.rows
        of_next = name.removeprefix("next_")
        if name in ("terminated", "truncated"):
            return self._flat(self.arrays[name])
        if name in {leaf.name for leaf in catalog.store.spec.observation}:
            if self.stacked:
                return self._stack(name)
            newest = self.frames - 1
            return self._flat(self.arrays[name][:, newest : newest + catalog.fragment_steps])
        if name != of_next and of_next in catalog.store.columns:
            return self._next(of_next)
        if name in catalog.store.columns:
            return self._flat(self.arrays[name])
        if name == "episode":
            local, _ = self._counts()
            lane = catalog.stream[rows][:, None] * catalog.envs + np.arange(catalog.envs)
            return self._flat(local * catalog.lanes + lane[:, None, :])
        if name == "step":
            return self._flat(self._counts()[1])
        if name == "discount":
            settings = catalog.store.config.algorithm.get("settings", {})
            value = settings.get("discount", 1.0) if isinstance(settings, dict) else 1.0
            return np.where(self._flat(self.arrays["terminated"]), np.float32(0), np.float32(value))
        if name == "run":
            return np.zeros(math.prod(self.shape), np.int32)
        if name == "env":
            return self._flat(np.broadcast_to(np.arange(catalog.envs), self.shape))
        if name == "time":
            return self._flat(np.broadcast_to(np.arange(catalog.fragment_steps)[:, None], self.shape))
        if name == "policy_lag":
            return self._each(catalog.round[rows] - catalog.weights_version[rows])
        if name == "worker":
            return np.repeat(catalog.worker[rows], catalog.size)
        return self._each(getattr(catalog, {"fragment": "slot"}.get(name, name))[rows])

    def _flat(self, values: Array) -> Array:
        return values.reshape(-1, *values.shape[3:])

    def _each(self, values: Array) -> Array | Each:
        """Of each fragment, for each of its rows."""
        if not self.coded:
            return np.repeat(values, self.catalog.size)
        if self._fragment is None:
            self._fragment = np.repeat(np.arange(len(self.rows), dtype=np.uint16), self.catalog.size)
        return Each(self._fragment, values)

    @property
    def ended(self) -> Array:
        if self._ended is None:
            self._ended = self.arrays["terminated"] | self.arrays["truncated"]
        return self._ended

    def _counts(self) -> tuple[Array, Array]:
        """``[F, T, N]`` the number of each row's episode among those of its environment, and its step."""
        if self._counted is None:
            first, age = self.catalog.first_episode[self.rows], self.catalog.episode_step[self.rows]
            self._counted = counts(self.ended, first, age)
        return self._counted

    def _next(self, name: str) -> Array:
        catalog = self.catalog
        following = self._flat(self.arrays[name][:, self.frames :].copy())
        ended = self.ended.reshape(len(self.rows), -1)
        fragment, place = np.nonzero(ended)
        many = ended.sum(1)
        rank = np.arange(len(fragment)) - np.repeat(np.cumsum(many) - many, many)
        following[fragment * catalog.size + place] = self.arrays[final_name(name)][fragment, rank]
        if self.stacked:
            return np.concatenate([self._stack(name)[:, 1:], following[:, None]], axis=1)
        return following

    def _stack(self, name: str) -> Array:
        """``[F * T * N, K, *shape]`` the frames of each observation, oldest first; FORMAT.md, section 3."""
        fragments, steps, envs = self.shape
        began = latest_start(self.ended)
        first = np.where(began > 0, began + self.frames - 1, 0)[..., None]  # no frame of an episode before
        frame = np.maximum(np.arange(steps)[:, None, None] + np.arange(self.frames), first)
        place = np.arange(fragments)[:, None, None, None], frame, np.arange(envs)[:, None]
        return self._flat(self.arrays[name][place])


def counts(ended: Array, first_episode: Array, episode_step: Array) -> tuple[Array, Array]:
    """The number of each row's episode among those of its environment, and its step in that episode, from 0.

    Parameters
    ----------
    ended : ``[F, T, N]`` whether the episode ended with the row.
    first_episode, episode_step : ``[F, N]`` of the first rows.

    Returns
    -------
    Both ``[F, T, N]``.
    """
    before = np.zeros(ended.shape, np.int64)
    np.cumsum(ended[:, :-1], axis=1, out=before[:, 1:])
    step = np.arange(ended.shape[1])[:, None] - latest_start(ended)
    step += np.where(before == 0, episode_step[:, None, :], 0)
    before += first_episode[:, None, :]
    return before, step


def latest_start(ended: Array) -> Array:
    """``[F, T, N]`` the step within its fragment that each row's episode began at, 0 where that was before."""
    began = np.zeros(ended.shape, np.int64)
    began[:, 1:] = np.where(ended[:, :-1], np.arange(1, ended.shape[1])[:, None], 0)
    return np.maximum.accumulate(began, axis=1, out=began)


def require_columns(given: Sequence[str], known: Sequence[str], of: str = "transitions") -> None:
    """Raise `ConfigError` for a column that there is not."""
    for name in given:
        if name not in known:
            raise ConfigError(
                f"columns of {of}: expected some of {', '.join(known)}; got {name!r}.{did_you_mean(str(name), known)}"
            )
