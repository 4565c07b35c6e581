"""What a study asks for next: a pure function of what it asked before, and of results in logical order.

A study is a sequence of asks, each a setting and how many env steps its runs go. Ask ``j`` is decided from the asks
before and from the results of asks ``0 .. j - width``, whichever others are known: neither workers nor kills decide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from daskrl import seeding
from daskrl.config import require_integer
from daskrl.errors import ConfigError
from daskrl.study.space import Setting, Space


@dataclass(frozen=True)
class Segment:
    """Of a population: whose turn it is, and what the member's run began with.

    Attributes
    ----------
    member, round : whose, and which.
    began : the round in which the run that the member goes on with began.
    parent : the ask whose runs it began with, each with that of its environment and seed, as they stood when that ask
        was over; None where weights were drawn.
    before : env steps that the member took before that run.
    optimizer, replay : began with those of the parent, too.
    """

    member: int
    round: int
    began: int
    parent: int | None = None
    before: int = 0
    optimizer: bool = False
    replay: bool = False

    def seed(self, study_seed: int, seed: int) -> int:
        """The seed of the member's run that stands for ``seed`` of the study: no two runs of a population share one."""
        drawn = seeding.sequence(study_seed, "study", seed, self.member, self.began, key="run").generate_state(1)
        return int(drawn[0]) >> 1


@dataclass(frozen=True)
class Ask:
    """A setting, and how far its runs go.

    Attributes
    ----------
    number : of the setting, in the order in which settings were first asked for.
    note : what the search keeps for later asks, as JSON; the log has it.
    segment : of a population.
    """

    number: int
    setting: Setting
    env_steps: int
    note: Mapping[str, Any] = field(default_factory=dict)
    segment: Segment | None = None


class Wait:
    """In the place of an ask: nothing is worth asking until more results are known."""


WAIT = Wait()


class Result(float):
    """The score of a setting: the mean over environments of the mean over seeds. NaN where a run failed.

    Attributes
    ----------
    each : the mean over seeds, of each environment in order.
    """

    each: tuple[float, ...]

    def __new__(cls, each: Sequence[float]) -> Result:
        made = super().__new__(cls, np.mean(each))
        made.each = tuple(map(float, each))
        return made


Asked = Sequence[Ask | Wait]
Told = Mapping[int, float]
"""Ask -> the `Result` of its setting so far; a number alone is that of one environment."""


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


class Inner(Search, Protocol):
    """A search that gives settings one after the other: others may stop the runs of these early."""

    def setting(self, number: int, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | None:
        """Setting ``number``, for all env steps of the study; None where there is none any more.

        Parameters
        ----------
        asked, told : as of `next`. A setting may be there several times, each time with more env steps.
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
        return self.setting(len(asked), space, env_steps, seed, asked, told)

    def setting(self, number: int, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | None:
        """See `Inner`."""
        settings = _grid(space)
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
        return self.setting(len(asked), space, env_steps, seed, asked, told)

    def setting(self, number: int, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | None:
        """See `Inner`."""
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


def mean_score(scores: Sequence[Sequence[float]]) -> Result:
    """The score of a setting, out of those of each environment's seeds."""
    return Result([float(np.mean(of_seeds)) for of_seeds in scores])


def comparable(results: Sequence[float]) -> list[float]:
    """Numbers that say in which order results of equal env steps are; more is better, NaN where a run failed.

    Of one environment these are the scores. Scores of several have no common scale: a mean of returns would go by the
    environment whose returns are largest, and a range to normalise by is not known before all is run. So each result
    counts the mean over environments of its rank there, from 0 (the worst) to 1; equals share theirs.
    """
    each = [getattr(result, "each", (float(result),)) for result in results]
    if not each or len(each[0]) == 1:
        return [float(result) for result in results]
    ranked = [place for place, scores in enumerate(each) if not any(map(math.isnan, scores))]
    levels = [math.nan] * len(each)
    table = np.array([each[place] for place in ranked]).reshape(len(ranked), len(each[0]))
    below = (table[:, None] > table[None]).sum(1) + ((table[:, None] == table[None]).sum(1) - 1) / 2
    for place, ranks in zip(ranked, below, strict=True):
        levels[place] = float(ranks.mean() / max(len(ranked) - 1, 1))
    return levels


def to_json(search: Search) -> dict[str, Any]:
    """What a study keeps of its search."""
    own: Any = getattr(search, "to_json", None)
    said: dict[str, Any] = own() if own else {"kind": type(search).__name__, **dataclasses.asdict(search)}  # type: ignore[call-overload]
    return said
