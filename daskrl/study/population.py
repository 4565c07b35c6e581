"""Population based training: policies that learn side by side, of which the worst copy the best (Jaderberg et al. 2017,
https://arxiv.org/abs/1711.09846).

A population is asked in rounds. After each every member has a score, and who copies whom, and with which settings it
goes on, is a pure function of the scores of that round and of numbers derived from (study seed, round, member).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl import seeding
from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError
from daskrl.study.search import WAIT, Ask, Asked, Segment, Told, Wait, comparable, drawn
from daskrl.study.space import ALGORITHM, Range, Setting, Space, values_of

_ALWAYS_KEPT = (ALGORITHM, "frame_stack")  # weights of one do not fit the other
_OF_REPLAY = ("streams", "envs_per_stream", "fragment_steps")  # the replay of one does not fit the other


@dataclass(frozen=True)
class Population:
    """Members that learn side by side; every so many env steps the worst go on from where the best are.

        study = daskrl.Study("studies/pbt", algorithm=daskrl.PPO, env="CartPole-v1", seeds=1, env_steps=100_000,
                             space={"learning_rate": Range(1e-5, 1e-2, log=True)},
                             search=daskrl.study.Population(members=8, interval=10_000))

    A round is ``interval`` env steps of every member; then each is scored (`daskrl.study.Greedy` is the score to
    use: the others look at the member's present run alone). A member that goes on unchanged goes on in its own store,
    to the bits of a run never paused. One of the worst copies one of the best, drawn at random: its run is over, and a
    new one begins with the other's weights and what its checkpoint holds (critics, running moments), and with its
    settings, perturbed. Targets are copies of what is learned. Schedules by env steps (epsilon) go on, those by
    updates begin anew, as do priorities and visit counts; episodes begin anew. Of off-policy algorithms the window is
    empty, so that nothing is learned until ``learning_starts``, unless ``share_replay`` is set. All members are of
    one round at a time, which is run on as many workers as there are; a member with several environments or seeds of
    the study has a run for each, one score for all, and each run copies that of its environment and seed.

    Parameters
    ----------
    members : how many.
    interval : env steps of a round; the study's ``env_steps``, a member's in all, are a multiple. A run takes whole
        rounds of its schedule, so choose a multiple of ``streams * envs_per_stream * fragment_steps``.
    exploit : the share of the members that is replaced, and of those that are copied; at least one member, at most
        half. Members that failed are replaced in any case.
    factors : numbers of a range are multiplied by one of these, drawn at random, and stay in the range; of a list the
        next value down or up is taken.
    resample : the chance that a setting is drawn anew instead.
    optimizer : copy what optimizers keep (running averages of gradients), too.
    share_replay : a copy also begins with the newest rounds of the other's replay, as many as its window takes: a
        member learns from fragments that another one took. Off-policy algorithms only.
    keep : settings that are copied as they are, as sizes of networks have to be: weights of one size do not fit
        another. ``algorithm`` and ``frame_stack`` always are, and the shape of the schedule with ``share_replay``.
    """

    members: int = 8
    interval: int = 10_000
    exploit: float = 0.2
    factors: tuple[float, ...] = (0.8, 1.2)
    resample: float = 0.25
    optimizer: bool = True
    share_replay: bool = False
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("members", 2), ("interval", 1)):
            object.__setattr__(self, name, plain(getattr(self, name)))
            require_integer(name, getattr(self, name), least)
        given: Any = self.keep
        object.__setattr__(self, "keep", (given,) if isinstance(given, str) else tuple(given))
        object.__setattr__(self, "factors", tuple(plain(factor, "float") for factor in self.factors))
        for name, value, below in (("exploit", self.exploit, 0.5), ("resample", self.resample, 1.0)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= below:
                raise ConfigError(f"{name}: expected a share from 0 to {below:g}, got {value!r}.")
        if not self.factors or not all(math.isfinite(factor) and factor > 0 for factor in self.factors):
            raise ConfigError(f"factors: expected positive numbers, as (0.8, 1.2), got {self.factors!r}.")

    @property
    def width(self) -> int:
        """A round of asks is followed by one less that ask nothing: the next round is decided by all scores of it."""
        return self.members

    def check(self, space: Space, env_steps: int) -> None:
        if not space.axes:
            raise ConfigError("space: there is nothing in which members differ. Give settings, as for Random.")
        if env_steps % self.interval:
            whole = max(1, round(env_steps / self.interval)) * self.interval
            raise ConfigError(
                f"env_steps: expected a multiple of interval={self.interval}, got {env_steps}. Type {whole}."
            )
        unknown = [name for name in self.keep if name not in space.axes]
        if unknown:
            raise ConfigError(f"keep: {unknown[0]!r} is not in the space, which has {', '.join(space.axes)}.")

    def check_algorithms(self, algorithms: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for one that has no replay that could be shared."""
        without = [label for label, algorithm in algorithms.items() if not hasattr(algorithm, "window")]
        if self.share_replay and without:
            raise ConfigError(
                f"share_replay: {without[0]} learns from no replay: it has no window. Leave share_replay out."
            )

    def next(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | Wait | None:
        round_, member = divmod(len(asked), 2 * self.members - 1)
        if round_ * self.interval >= env_steps:
            return None
        if member >= self.members:
            return WAIT if (round_ + 1) * self.interval < env_steps else None
        if not round_:
            return Ask(member, drawn(space, seed, member), self.interval, segment=Segment(member, 0, 0))
        first = (round_ - 1) * (2 * self.members - 1)
        before = [ask for ask in asked[first : first + self.members] if isinstance(ask, Ask)]
        parent = self.chosen([told[first + place] for place in range(self.members)], seed, round_, member)
        if parent is None:
            return None
        if parent == member:
            mine = before[member]
            assert mine.segment is not None
            return dataclasses.replace(
                mine,
                env_steps=mine.env_steps + self.interval,
                segment=dataclasses.replace(mine.segment, round=round_),
            )
        number = 1 + max(ask.number for ask in asked if isinstance(ask, Ask))
        setting = self.explored(
            space, before[parent].setting, seeding.generator(seed, "study", round_, member, key=_EXPLORE)
        )
        segment = Segment(
            member, round_, round_, first + parent, round_ * self.interval, self.optimizer, self.share_replay
        )  # fmt: skip
        return Ask(number, setting, self.interval, segment=segment)

    def chosen(self, scores: Sequence[float], seed: int, round_: int, member: int) -> int | None:
        """The member from which one goes on in a round: itself, or one of the best; None where all have failed.

        Parameters
        ----------
        scores : of all members after the round before; NaN of those that failed, which are the worst. Of equal ones
            the member that comes first is the better one. Of several environments ranks count, see
            `daskrl.study.search.comparable`.
        """
        scores = comparable(scores)
        order = sorted(range(len(scores)), key=lambda one: (math.isnan(scores[one]), -scores[one], one))
        count = min(max(1, math.floor(len(scores) * self.exploit + 0.5)), len(scores) // 2) if self.exploit else 0
        best = [one for one in order[: max(1, count)] if not math.isnan(scores[one])]
        if not best:
            return None
        worst = order[len(order) - count :]
        if not math.isnan(scores[member]) and (member not in worst or member in best):
            return member
        return best[int(seeding.generator(seed, "study", round_, member, key=_EXPLOIT).integers(len(best)))]

    def explored(self, space: Space, setting: Setting, random: np.random.Generator) -> Setting:
        """The settings of a copy: those of the other, perturbed or drawn anew, in the space's order.

        For each a number is drawn that decides whether it is drawn anew, then the new value, or the way it moves.
        """
        kept = {*self.keep, *_ALWAYS_KEPT, *(_OF_REPLAY if self.share_replay else ())}
        found: dict[str, Any] = {}
        for name in space.axes:
            if not space.holds(name, found):
                continue
            values = values_of(space.axes[name])
            if name in kept and name in setting:
                found[name] = setting[name]
            elif name not in setting or random.random() < self.resample:
                found[name] = _drawn(values, random)
            else:
                factor = self.factors[int(random.integers(len(self.factors)))]
                found[name] = moved(values, setting[name], factor)
        return found


_EXPLOIT, _EXPLORE = "exploit", "explore"


def _drawn(values: Any, random: np.random.Generator) -> Any:
    return values[int(random.integers(len(values)))] if isinstance(values, list) else values.draw(random)


def moved(values: Any, value: Any, factor: float) -> Any:
    """A value times a factor, within its range, integers by 1 at least; of a list its neighbour on that side.

    The ends of a list stay.
    """
    way = (factor > 1) - (factor < 1)
    if isinstance(values, list):
        place = next(place for place, one in enumerate(values) if type(one) is type(value) and one == value)
        return values[min(max(place + way, 0), len(values) - 1)]
    step = getattr(values, "step", 1 if isinstance(values, Range) and values.integers else None)
    if step is None:
        return float(min(max(value * factor, values.low), values.high))
    last = math.floor((values.high - values.low) / step + 1e-9)
    now = round((value - values.low) / step)
    then = round((value * factor - values.low) / step)
    if then == now:
        then += way
    return values.low + step * min(max(then, 0), last)
