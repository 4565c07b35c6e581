"""The settings a study tries: names, and what each may be."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl.codec import encoded
from daskrl.config import plain
from daskrl.errors import ConfigError
from daskrl.names import did_you_mean

ALGORITHM = "algorithm"
ENVIRONMENT = "env."
"""Before the name of an argument of the environment."""

# Settings of a run that are no settings of its algorithm: arguments of `daskrl.train`.
OF_THE_RUN = ("streams", "envs_per_stream", "fragment_steps", "lag", "frame_stack", "torch_threads")

Setting = Mapping[str, Any]
"""A point of a space: name -> value."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included: integers where both are.

    Parameters
    ----------
    log : drawn evenly in the logarithm.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        low, high = plain(self.low, "float"), plain(self.high, "float")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high))
        if not numbers or not low <= high or (self.log and not low > 0):
            above = " with low > 0" if self.log else ""
            raise ConfigError(f"Range: expected finite numbers low <= high{above}, got low={low!r}, high={high!r}.")

    @property
    def integers(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def draw(self, random: np.random.Generator) -> int | float:
        """A number of the range. One number is drawn from ``random``."""
        share = random.random()
        low, high = (self.low - 0.5, self.high + 0.5) if self.integers else (self.low, self.high)
        if self.log:
            found = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            found = low + share * (high - low)
        if self.integers:
            return int(min(max(round(found), self.low), self.high))
        return float(min(max(found, self.low), self.high))


@dataclass(frozen=True)
class When:
    """A setting that is there only where others have certain values.

        space = {"algorithm": [...], "n_step": When({"algorithm": "DQN"}, [1, 3])}

    Parameters
    ----------
    others : name -> value, or a list of values any of which will do. The names stand before this one in the space.
    values : as of any setting: a list, a `Range`, a distribution of Optuna's.
    """

    others: Mapping[str, Any]
    values: Any

    def holds(self, setting: Setting) -> bool:
        for name, wanted in self.others.items():
            among = wanted if isinstance(wanted, list | tuple) else [wanted]
            if name not in setting or not any(same(setting[name], value) for value in among):
                return False
        return True


def same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are one: ``True`` is not ``1``."""
    return type(one) is type(other) and bool(one == other)


class Space:
    """Names of settings, in their order, and what each may be.

    Parameters
    ----------
    given : name -> a list of values (tried all, in a grid), a `Range`, a distribution of Optuna's, or `When` with one
        of these.

    Raises
    ------
    ConfigError
        A setting may be nothing, or is of no kind that there is; the message names the setting.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        if not isinstance(given, Mapping):
            raise ConfigError(f"space: expected a dict, as {{'learning_rate': [1e-4, 1e-3]}}, got {given!r:.200}.")
        self.axes: dict[str, Any] = {}
        self.conditions: dict[str, When] = {}
        for name, what in given.items():
            if not isinstance(name, str):
                raise ConfigError(f"space: expected names of settings, got {name!r}.")
            if isinstance(what, When):
                unknown = [other for other in what.others if other not in self.axes]
                if unknown:
                    raise ConfigError(
                        f"space: {name} goes by {unknown[0]!r}, which does not stand before it. Put that first."
                    )
                self.conditions[name] = what
            self.axes[name] = _axis(name, what.values if isinstance(what, When) else what)

    @property
    def is_grid(self) -> bool:
        """Whether every setting has a list of values."""
        return all(isinstance(axis, list) for axis in self.axes.values())

    def holds(self, name: str, setting: Setting) -> bool:
        """Whether a setting is there, next to those before it."""
        return name not in self.conditions or self.conditions[name].holds(setting)

    def grid(self) -> Iterator[Setting]:
        """Every combination, the last name's values first."""

        def rest(names: list[str], setting: dict[str, Any]) -> Iterator[Setting]:
            if not names:
                yield setting
                return
            first, *others = names
            if not self.holds(first, setting):
                yield from rest(others, setting)
                return
            for value in self.axes[first]:
                yield from rest(others, {**setting, first: value})

        return rest(list(self.axes), {})

    def draw(self, random: np.random.Generator) -> Setting:
        """A random point; of a list each value is as likely."""
        setting: dict[str, Any] = {}
        for name, axis in self.axes.items():
            if not self.holds(name, setting):
                continue
            if isinstance(axis, list):
                setting[name] = axis[int(random.integers(len(axis)))]
            elif isinstance(axis, Range):
                setting[name] = axis.draw(random)
            else:
                setting[name] = _of_optuna(axis).draw(random)
        return setting

    def to_json(self) -> dict[str, Any]:
        """What a study says of its space."""
        found: dict[str, Any] = {}
        for name, axis in self.axes.items():
            if isinstance(axis, list):
                said: Any = encoded(axis, f"space: {name}")
            elif isinstance(axis, Range):
                said = {"range": dataclasses.asdict(axis)}
            else:
                said = {"optuna": {"kind": type(axis).__name__, **axis._asdict()}}
            if name in self.conditions:
                others = encoded({**self.conditions[name].others}, f"space: {name}")
                said = {"when": others, "values": said}
            found[name] = said
        return found


def _axis(name: str, what: Any) -> list[Any] | Range | Any:
    if isinstance(what, np.ndarray):
        what = what.tolist()
    if isinstance(what, range | tuple):
        what = list(what)
    if isinstance(what, list):
        if not what:
            raise ConfigError(f"space: {name} has no values. Give it some, or leave it out.")
        values = [value.item() if isinstance(value, np.generic) else value for value in what]
        kinds = [json.dumps(encoded(value, f"space: {name}"), sort_keys=True) for value in values]
        twice = [value for value, said in zip(values, kinds, strict=True) if kinds.count(said) > 1]
        if twice:
            raise ConfigError(f"space: {name} has {twice[0]!r} twice.")
        return values
    if isinstance(what, Range):
        return what
    if type(what).__module__.startswith("optuna."):
        choices = getattr(what, "choices", None)
        return list(choices) if choices is not None else what
    raise ConfigError(
        f"space: {name}: expected a list of values, a daskrl.study.Range, or a distribution of Optuna's, got "
        f"{what!r:.200}. For one value alone, give it to the algorithm, or type {name}=[{what!r:.50}]"
    )


def values_of(axis: Any) -> Any:
    """What a setting may be: a list, or what has ``low``, ``high``, ``draw`` and, where there are steps, ``step``."""
    return axis if isinstance(axis, list | Range) else _of_optuna(axis)


def _of_optuna(distribution: Any) -> Any:
    step = getattr(distribution, "step", None)
    if step in (None, 1) and not (step == 1 and isinstance(distribution.low, float)):
        return Range(distribution.low, distribution.high, distribution.log)
    return _Steps(distribution.low, distribution.high, step)


@dataclass(frozen=True)
class _Steps:
    low: float
    high: float
    step: float

    def draw(self, random: np.random.Generator) -> int | float:
        count = math.floor((self.high - self.low) / self.step + 1e-9)
        return self.low + self.step * int(random.integers(count + 1))


def key(setting: Setting) -> str:
    """What a setting is known by: its JSON."""
    return json.dumps({name: encoded(value, name) for name, value in setting.items()}, sort_keys=True)


def shown(setting: Setting) -> str:
    """A setting for people."""
    return ", ".join(f"{name}={value!r}" for name, value in setting.items()) or "as given"


def split(setting: Setting) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Of a setting what is its algorithm's, what is the run's, and what the environment is made with."""
    algorithm, run, env = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    for name, value in setting.items():
        if name.startswith(ENVIRONMENT):
            env[name.removeprefix(ENVIRONMENT)] = value
        elif name in OF_THE_RUN:
            run[name] = value
        elif name != ALGORITHM:
            algorithm[name] = value
    return algorithm, run, env


def require_names(space: Space, settings: Mapping[str, Sequence[str]]) -> None:
    """Raise `ConfigError` for a name that no algorithm has, and that is none of the run or the environment.

    Parameters
    ----------
    settings : of each algorithm, by what the study calls it, the names of its settings.
    """
    for name in space.axes:
        if name in (ALGORITHM, *OF_THE_RUN) or name.startswith(ENVIRONMENT):
            continue
        having = [label for label, names in settings.items() if name in names]
        if not having:
            known = sorted({*itertools.chain(*settings.values()), *OF_THE_RUN})
            raise ConfigError(
                f"space: no algorithm of this study has a setting {name!r}.{did_you_mean(name, known)} "
                + " ".join(f"{label} has {', '.join(names)}." for label, names in settings.items())
                + f" Of the run there are {', '.join(OF_THE_RUN)}; env.NAME is an argument of the environment."
            )
        condition = space.conditions.get(name)
        for label in settings:
            if label not in having and (condition is None or condition.holds({ALGORITHM: label})):
                raise ConfigError(
                    f"space: {label} has no setting {name!r}; {', '.join(having)} has. Type: "
                    f"{name!r}: daskrl.study.When({{'algorithm': {having[0]!r}}}, [...])"
                )
