"""Searches that stop runs early: at rungs, settings are compared, and only some go on.

A rung is a number of env steps. A run that stops there waits in its store; where it is promoted it goes on from that,
with the bits of a run that never waited.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError
from daskrl.study.search import WAIT, Ask, Asked, Grid, Told, Wait, comparable, to_json
from daskrl.study.space import Space

Rungs = int | Sequence[int]
Decide = Callable[[list[int], list[Any]], tuple[bool, Any]]


@dataclass(frozen=True)
class _Rungs:
    """What searches with rungs have in common.

    Parameters
    ----------
    inner : where settings come from: `Grid`, `Random`, `daskrl.study.Optuna`, which is told of the runs that stopped.
    rungs : env steps at which settings are compared, below those of the study; or the first of them, each other being
        ``reduction`` times the one before.
    width : how many asks may be without a result at a time. An ask is a setting with all its environments and seeds.
    """

    inner: Any = field(default_factory=Grid)
    rungs: Rungs = 1_000
    reduction: int = 3
    width: int = 8

    def __post_init__(self) -> None:
        require_integer("width", plain(self.width), 1)
        require_integer("reduction", plain(self.reduction), 2)
        if isinstance(self.inner, type) or not callable(getattr(self.inner, "setting", None)):
            raise ConfigError(
                f"inner: expected daskrl.study.Grid(), Random(settings=20) or Optuna('tpe', settings=20), got "
                f"{self.inner!r:.200}."
            )
        rungs = plain(self.rungs)
        if isinstance(rungs, int):
            require_integer("rungs", rungs, 1)
            return
        object.__setattr__(self, "rungs", tuple(plain(rung) for rung in self.rungs))  # type: ignore[union-attr]
        for rung in self.rungs:  # type: ignore[union-attr]
            require_integer("rungs", rung, 1)
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)):  # type: ignore[arg-type]
            raise ConfigError(f"rungs: expected rising env steps, as (1_000, 3_000, 9_000), got {self.rungs!r}.")

    def check(self, space: Space, env_steps: int) -> None:
        self.inner.check(space, env_steps)
        first = self.rungs if isinstance(self.rungs, int) else self.rungs[0]
        last = first if isinstance(self.rungs, int) else self.rungs[-1]
        if last >= env_steps:
            raise ConfigError(
                f"rungs: expected env steps below the {env_steps:,} of a run, got {last:,}: no run would stop early."
            )

    def ladder(self, env_steps: int) -> tuple[int, ...]:
        """The rungs, and all env steps of a run at the end."""
        if not isinstance(self.rungs, int):
            return (*self.rungs, env_steps)
        found = [self.rungs]
        while found[-1] * self.reduction < env_steps:
            found.append(found[-1] * self.reduction)
        return (*found, env_steps)

    @property
    def packages(self) -> list[str]:
        """Whose versions decide which settings there are."""
        return [*getattr(self.inner, "packages", ())]

    def to_json(self) -> dict[str, Any]:
        """What a study keeps of it."""
        said = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return {"kind": type(self).__name__, **said, "inner": to_json(self.inner), "stops": self.stops}

    @property
    def stops(self) -> str:
        """Why a run stops at a rung, for the table."""
        raise NotImplementedError

    def _fresh(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | None:
        """A setting that was not tried, up to the first rung."""
        number = 1 + max((ask.number for ask in asked if isinstance(ask, Ask)), default=-1)
        found: Ask | None = self.inner.setting(number, space, env_steps, seed, asked, told)
        return found and dataclasses.replace(found, env_steps=self.ladder(env_steps)[0])


def _promoted(ask: Ask, ladder: Sequence[int]) -> Ask:
    return Ask(ask.number, ask.setting, ladder[ladder.index(ask.env_steps) + 1])


def _on(asked: Asked, told: Told, rung: int) -> list[tuple[Ask, int, float]]:
    """Of a rung the asks whose results count, the best first, those that failed left out; equals by their number.

    Each with its place among all asks, and what it is compared by.
    """
    places = [
        place for place, ask in enumerate(asked) if isinstance(ask, Ask) and ask.env_steps == rung and place in told
    ]
    levels = comparable([told[place] for place in places])
    found = [
        (ask, place, level)
        for place, level in zip(places, levels, strict=True)
        if isinstance(ask := asked[place], Ask) and not math.isnan(level)
    ]
    return sorted(found, key=lambda each: (-each[2], each[0].number))


def _unknown(asked: Asked, told: Told) -> bool:
    return any(isinstance(ask, Ask) and place not in told for place, ask in enumerate(asked))


@dataclass(frozen=True)
class ASHA(_Rungs):
    """Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020, Alg. 2).

        search=daskrl.study.ASHA(daskrl.study.Random(100), rungs=1_000, reduction=3)

    Each ask promotes the best setting of the highest rung that has one among the best ``1 / reduction`` of the results
    there, or tries a new setting up to the first rung. Which results an ask knows is fixed by ``width``, so the
    promotions are the same on any pool. At the end, when no new setting is left and nothing can be promoted, the best
    of the highest rung goes on all the same, so that one gets to all env steps; all others stopped where they are.

    With several environments settings are compared by the mean over environments of their ranks in that rung, see
    `daskrl.study.search.comparable`. A setting of which a run failed is not promoted.

    Parameters
    ----------
    inner, rungs, reduction, width : where settings come from; env steps of the rungs, or the first of them; which
        share, ``1 / reduction``, goes on; how many asks may be without a result.
    """

    @property
    def stops(self) -> str:
        return f"not among the best 1/{self.reduction}"

    def next(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | Wait | None:
        ladder = self.ladder(env_steps)
        for rung, above in reversed(list(itertools.pairwise(ladder))):
            gone = {ask.number for ask in asked if isinstance(ask, Ask) and ask.env_steps == above}
            here = sum(
                isinstance(ask, Ask) and ask.env_steps == rung and place in told for place, ask in enumerate(asked)
            )
            for ask, _, _ in _on(asked, told, rung)[: here // self.reduction]:
                if ask.number not in gone:
                    return _promoted(ask, ladder)
        if fresh := self._fresh(space, env_steps, seed, asked, told):
            return fresh
        if _unknown(asked, told):
            return WAIT
        top = max((ask.env_steps for ask in asked if isinstance(ask, Ask)), default=env_steps)
        best = _on(asked, told, top)  # of few settings no share goes on: the best does, so that one gets to the end
        return _promoted(best[0][0], ladder) if best and top < env_steps else None


@dataclass(frozen=True)
class SuccessiveHalving(_Rungs):
    """Successive halving in step (Karnin et al. 2013; Jamieson and Talwalkar, AISTATS 2016).

    All settings go to the first rung; when all are there the best ``1 / reduction`` of them, at least one, go on to the
    next, and so on. Settings are compared as by `ASHA`, which it takes its parameters from.
    """

    @property
    def stops(self) -> str:
        return f"not among the best 1/{self.reduction}"

    def next(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | Wait | None:
        ladder = self.ladder(env_steps)
        begun = all(not isinstance(ask, Ask) or ask.env_steps == ladder[0] for ask in asked)
        if begun and (ask := self._fresh(space, env_steps, seed, asked, told)):
            return ask
        if _unknown(asked, told) and not self._filling(asked, told, ladder):
            return WAIT
        for rung, above in itertools.pairwise(ladder):
            here = sum(isinstance(ask, Ask) and ask.env_steps == rung for ask in asked)
            best = _on(asked, told, rung)[: max(1, here // self.reduction)]
            gone = {ask.number for ask in asked if isinstance(ask, Ask) and ask.env_steps == above}
            for ask, _, _ in best:
                if ask.number not in gone:
                    return _promoted(ask, ladder)
        return None

    def _filling(self, asked: Asked, told: Told, ladder: Sequence[int]) -> bool:
        """Whether the highest rung that runs are on is not full yet: all results of the one below are known."""
        top = max(ask.env_steps for ask in asked if isinstance(ask, Ask))
        if top == ladder[0]:
            return False
        below = ladder[ladder.index(top) - 1]
        here = sum(isinstance(ask, Ask) and ask.env_steps == below for ask in asked)
        there = sum(isinstance(ask, Ask) and ask.env_steps == top for ask in asked)
        return there < min(len(_on(asked, told, below)), max(1, here // self.reduction))


class Decisions:
    """Which asks go on, each decided once, from the results of the asks up to it: later ones change nothing.

    Those of a search are kept from one call to the next, as far as both have the same results.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, str]] = []
        self._found: list[tuple[bool, Any]] = []

    def goes_on(
        self, asked: Asked, told: Told, decide: Callable[[list[int], list[Any]], tuple[bool, Any]]
    ) -> list[int]:
        """The places of the asks that go on.

        Parameters
        ----------
        decide : from the places of the asks up to one, and what was decided and noted for those before.
        """
        places = [place for place in sorted(told) if isinstance(asked[place], Ask)]
        seen = [(place, _number(asked[place]), repr(getattr(told[place], "each", told[place]))) for place in places]
        same = next((i for i, (a, b) in enumerate(zip(seen, self._seen, strict=False)) if a != b), None)
        same = min(len(seen), len(self._seen)) if same is None else same
        del self._found[same:]
        for count in range(same, len(places)):
            self._found.append(decide(places[: count + 1], self._found))
        self._seen = seen
        return [place for place, (on, _) in zip(places, self._found, strict=True) if on]


def _number(ask: Any) -> int:
    return int(ask.number)


@dataclass(frozen=True)
class Deciding(_Rungs):
    """Decides at each rung at once whether a setting goes on; settings that do come before new ones."""

    @functools.cached_property
    def _decisions(self) -> Decisions:
        return Decisions()

    def next(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | Wait | None:
        ladder = self.ladder(env_steps)
        tried = {(ask.number, ask.env_steps) for ask in asked if isinstance(ask, Ask)}

        def decide(places: list[int], before: list[Any]) -> tuple[bool, Any]:
            ask = asked[places[-1]]
            assert isinstance(ask, Ask)
            if ask.env_steps >= env_steps or math.isnan(told[places[-1]]):
                return False, None
            return self._goes_on(space, env_steps, asked, told, places, before)

        for place in self._decisions.goes_on(asked, told, decide):
            ask = asked[place]
            assert isinstance(ask, Ask)
            above = _promoted(ask, ladder)
            if (above.number, above.env_steps) not in tried:
                return above
        return self._fresh(space, env_steps, seed, asked, told) or (WAIT if _unknown(asked, told) else None)

    def _goes_on(
        self, space: Space, env_steps: int, asked: Asked, told: Told, places: list[int], before: list[Any]
    ) -> tuple[bool, Any]:
        raise NotImplementedError


@dataclass(frozen=True)
class MedianStopping(Deciding):
    """The median stopping rule (Golovin et al., Google Vizier: A Service for Black-Box Optimization, KDD 2017, 3.2.2).

    At a rung a setting stops where its best score so far is worse than the median of the other settings' running
    averages up to that rung: means over its rungs. Other settings are those whose asks for this rung come before; each
    setting is decided on once, when its result is there.

    With several environments scores are first replaced by mean ranks within each rung, see
    `daskrl.study.search.comparable`.

    Parameters
    ----------
    inner, rungs, reduction, width : as of `ASHA`; ``reduction`` only spaces the rungs.
    startup : other settings that must be at a rung before any stops there.
    """

    startup: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("startup", plain(self.startup), 1)

    @property
    def stops(self) -> str:
        return "worse than the median"

    def _goes_on(
        self, space: Space, env_steps: int, asked: Asked, told: Told, places: list[int], before: list[Any]
    ) -> tuple[bool, Any]:
        mine = asked[places[-1]]
        assert isinstance(mine, Ask)
        counted = {place: told[place] for place in places}
        found: dict[int, list[float]] = {}  # setting -> scores at its rungs up to this one
        for rung in self.ladder(env_steps):
            for ask, _, level in _on(asked, counted, rung) if rung <= mine.env_steps else []:
                found.setdefault(ask.number, []).append(level)
        own = max(found.pop(mine.number))
        here = {ask.number for ask, _, _ in _on(asked, counted, mine.env_steps)}
        others = sorted(sum(levels) / len(levels) for number, levels in found.items() if number in here)
        if len(others) < self.startup:
            return True, None
        middle = len(others) // 2
        median = others[middle] if len(others) % 2 else (others[middle - 1] + others[middle]) / 2
        return own >= median, None
