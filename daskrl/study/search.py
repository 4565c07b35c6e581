"""What a study asks for next: a pure function of what it asked before, and of results in logical order.

A study is a sequence of asks, each a setting and how many env steps its runs go. Ask ``j`` is decided from the asks
before and from the results of asks ``0 .. j - width``, whichever others are known: neither workers nor kills decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from daskrl import seeding
from daskrl.config import require_integer
from daskrl.errors import ConfigError
from daskrl.study.space import Setting, Space


@dataclass(frozen=True)
class Ask:
    """A setting, and how far its runs go.

    Attributes
    ----------
    number : of the setting, in the order in which settings were first asked for.
    """

    number: int
    setting: Setting
    env_steps: int


class Wait:
    """In the place of an ask: nothing is worth asking until more results are known."""


WAIT = Wait()

Asked = Sequence[Ask | Wait]
Told = Mapping[int, float]
"""Ask -> the score of its setting so far: the mean over environments of the mean over seeds. NaN where one failed."""


class Search(Protocol):
    """What decides. A frozen dataclass: its fields are what a study keeps of it.

    Attributes
    ----------
    width : how many asks may be without a result at a time; None where no result decides anything.
    """

    @property
    def width(self) -> int | None: ...

    def check(self, space: Space, env_steps: int) -> None:
        """Raise `ConfigError` where this search cannot work."""

    def next(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | Wait | None:
        """Ask ``len(asked)``; None where there is none any more.

        Parameters
        ----------
        env_steps : of a run of the study.
        seed : of the study: what is random is derived from it and the number of the ask.
        told : results of the asks that count, those up to ``len(asked) - width``.
        """


@dataclass(frozen=True)
class Grid:
    """Every combination of the space's lists."""

    width = None

    def check(self, space: Space, env_steps: int) -> None:
        for name, axis in space.axes.items():
            if not isinstance(axis, list):
                raise ConfigError(
                    f"space: {name} is a range, and a grid takes lists. Give values, or type "
                    "search=daskrl.study.Random(settings=20)"
                )

    def next(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | Wait | None:
        settings = _grid(space)
        number = len(asked)
        return Ask(number, settings[number], env_steps) if number < len(settings) else None


def _grid(space: Space) -> list[Setting]:
    found: list[Setting] | None = getattr(space, "_settings", None)
    if found is None:
        found = list(space.grid())
        space._settings = found  # type: ignore[attr-defined]
    return found


@dataclass(frozen=True)
class Random:
    """So many settings drawn at random, each by its number: a larger study begins with the settings of a smaller one.

    Parameters
    ----------
    settings : how many.
    """

    settings: int

    width = None

    def __post_init__(self) -> None:
        require_integer("settings", self.settings, 1)

    def check(self, space: Space, env_steps: int) -> None:
        if not space.axes:
            raise ConfigError(
                "space: there is nothing to draw. Give settings, as {'learning_rate': Range(1e-4, 1e-2)}."
            )

    def next(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | Wait | None:
        number = len(asked)
        return Ask(number, drawn(space, seed, number), env_steps) if number < self.settings else None


def drawn(space: Space, seed: int, number: int) -> Setting:
    """Setting ``number`` of a study, drawn at random."""
    return space.draw(seeding.generator(seed, "study", number))


def search_of(given: Any, space: Space) -> Search:
    """What a study was given for ``search``."""
    if given is None or given == "grid":
        if space.is_grid:
            return Grid()
        if given is None:
            raise ConfigError(
                "search: the space has ranges, so how many settings are to be drawn? Type: "
                "search=daskrl.study.Random(settings=20)"
            )
        return Grid()
    if isinstance(given, type) or not dataclasses.is_dataclass(given) or not callable(getattr(given, "next", None)):
        raise ConfigError(
            f"search: expected daskrl.study.Grid(), Random(settings=20), or another of that room, got {given!r:.200}."
        )
    return given  # type: ignore[return-value]


def decidable(search: Search, number: int, complete: int) -> bool:
    """Whether ask ``number`` can be decided: all results that count are there.

    Parameters
    ----------
    complete : how many of the first asks have their result.
    """
    return search.width is None or complete > number - search.width


def counting(search: Search, number: int, told: Told) -> Told:
    """Of the results that are there those that count for ask ``number``."""
    if search.width is None:
        return {}
    return {ask: score for ask, score in told.items() if ask <= number - search.width}


def mean_score(scores: Sequence[Sequence[float]]) -> float:
    """The score of a setting: the mean over environments of the mean over seeds."""
    return float(np.mean([np.mean(of_seeds) for of_seeds in scores]))
