"""The runs of a tidy table, sorted into groups, on one scale.

Nothing here depends on the order of rows, on the index of the table, or on whether a column of integers became one of
floats because a value is missing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from daskrl import extras
from daskrl.errors import ConfigError, UnknownNameError
from daskrl.names import did_you_mean
from daskrl.records import Array

Failed = Literal["leave out", "lowest"]
Normalise = Mapping[str, tuple[float, float]] | Literal["auto", "range"] | None
Scale = Mapping[str, tuple[float, float]]  # environment -> the scores that become 0 and 1

NEEDED = ("environment", "seed", "score")


@dataclass(frozen=True)
class Place:
    """What makes two runs of different groups a pair: the environment, the seed, and settings that are not compared."""

    environment: str
    seed: str
    settings: str = ""

    def __lt__(self, other: Place) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[str, int, str, str]:
        return self.environment, len(self.seed), self.seed, self.settings

    def __str__(self) -> str:
        return f"{self.environment} seed {self.seed}" + (f" {self.settings}" if self.settings else "")


@dataclass(frozen=True)
class Group:
    """The runs that have the same settings, in those columns that a comparison is by.

    Attributes
    ----------
    key : the settings as text, the same in every table: what the group's randomness is derived from.
    label : for people.
    settings : column -> value.
    scores : place -> the scores of the runs there, ascending; failed runs among them where they count as the lowest.
    failed : a place for each run without a score.
    unfinished : runs that have no score yet.
    """

    key: str
    label: str
    settings: Mapping[str, Any]
    scores: Mapping[Place, tuple[float, ...]]
    failed: tuple[Place, ...]
    unfinished: int

    @property
    def environments(self) -> tuple[str, ...]:
        """Those with scores, sorted."""
        return tuple(sorted({place.environment for place in self.scores}))

    @property
    def runs(self) -> int:
        return sum(map(len, self.scores.values()))

    @property
    def seeds(self) -> int:
        """The fewest in any environment: what a conclusion rests on."""
        seeds = {(place.environment, place.seed) for place in self.scores}
        return min(Counter(environment for environment, _ in seeds).values(), default=0)

    def columns(self, environments: Iterable[str] | None = None) -> list[Array]:
        """The scores of each environment, ascending."""
        wanted = self.environments if environments is None else environments
        return [
            np.sort([s for place, scores in self.scores.items() if place.environment == name for s in scores])
            for name in wanted
        ]


@dataclass(frozen=True)
class Groups:
    """All groups of a table.

    Attributes
    ----------
    by : the columns.
    groups : ordered by their settings.
    environments : of the table, sorted.
    scale : which scores of each environment became 0 and 1; None where scores are as they were.
    ranged : whether that is the range seen in this table.
    budgets : the different ``env_steps`` of runs with a score, where the table has that column.
    shorter : labels of what has only runs that were left out for having fewer ``env_steps``.
    repeated : rows that the table has already, equal in every column.
    """

    by: tuple[str, ...]
    groups: tuple[Group, ...]
    environments: tuple[str, ...]
    scale: Scale | None
    ranged: bool
    budgets: tuple[Any, ...]
    shorter: tuple[str, ...] = ()
    repeated: int = 0

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)


@dataclass(frozen=True)
class _Row:
    settings: tuple[Any, ...]
    place: Place
    score: float | None
    finished: bool
    budget: Any


def read(
    table: Any, by: str | Sequence[str], *, normalise: Normalise = "auto", failed: Failed = "leave out",
    settings: Sequence[str] = (), longest: bool = False, scale: Scale | None = None,
    lowest: Mapping[str, float] | None = None,
) -> Groups:  # fmt: skip
    """The groups of a table; see `daskrl.study.compare.compare` for what the arguments mean.

    Parameters
    ----------
    longest : whether runs with fewer ``env_steps`` than others are left out: they were stopped early.
    scale : instead of ``normalise``: that of another table.
    lowest : what failed runs count as, instead of the lowest score of this table, environment -> score on the scale.
    """
    columns = (by,) if isinstance(by, str) else tuple(by)
    others = tuple(name for name in ((settings,) if isinstance(settings, str) else settings) if name not in columns)
    if failed not in ("leave out", "lowest"):
        raise ConfigError(f'failed: expected "leave out" or "lowest", got {failed!r}.')
    rows, repeated = _rows(table, columns, others)
    shorter: tuple[str, ...] = ()
    if longest:
        rows, shorter = _longest(rows, columns)
    names = sorted({row.place.environment for row in rows})
    seen = _seen(rows)
    ranged = scale is None and (normalise == "range" or (normalise == "auto" and len(names) > 1))
    if scale is None:
        scale = _scale(normalise, names, seen, ranged)
    elif strange := [name for name in seen if name not in scale]:
        raise ConfigError(
            f"table: expected the environments {', '.join(scale)}, got {', '.join(sorted(strange))}, too."
        )
    scaled = _scaler(scale)
    worst = {name: scaled(name, low) for name, (low, _) in seen.items()} | dict(lowest or {})
    of: dict[str, list[_Row]] = {}
    for row in rows:
        of.setdefault(_text(row.settings), []).append(row)
    groups = []
    for mine in sorted(of.values(), key=lambda each: _order(each[0].settings)):
        values = mine[0].settings
        lost = tuple(sorted(row.place for row in mine if row.score is None and row.finished))
        found: dict[Place, list[float]] = {}
        for row in mine:
            if row.score is not None:
                found.setdefault(row.place, []).append(scaled(row.place.environment, row.score))
        for place in lost if failed == "lowest" else ():
            if place.environment in worst:
                found.setdefault(place, []).append(worst[place.environment])
        named = dict(zip(columns, values, strict=True))
        groups.append(
            Group(
                json.dumps({name: _text(value) for name, value in sorted(named.items())}),
                _labelled(columns, values),
                named,
                {place: tuple(sorted(found[place])) for place in sorted(found)},
                lost,
                sum(row.score is None and not row.finished for row in mine),
            )
        )
    budgets = {_text(row.budget): row.budget for row in rows if row.score is not None and row.budget is not None}
    sorted_budgets = tuple(sorted(budgets.values(), key=_order))
    return Groups(columns, tuple(groups), tuple(names), scale, ranged, sorted_budgets, shorter, repeated)


def lowest(groups: Groups) -> dict[str, float]:
    """Environment -> the lowest score of all groups, on their scale."""
    found: dict[str, float] = {}
    for group in groups:
        for place, scores in group.scores.items():
            found[place.environment] = min(found.get(place.environment, math.inf), scores[0])
    return found


def label(names: Sequence[str], values: Sequence[Any]) -> str:
    """What a group of these settings is called."""
    return _labelled(names, [_value(value) for value in values])


def _rows(table: Any, columns: tuple[str, ...], others: tuple[str, ...]) -> tuple[list[_Row], int]:
    """The rows of a table, and how many of them are there already."""
    with extras.needed("study", "comparisons need pandas"):
        import pandas
    frame = table if isinstance(table, pandas.DataFrame) else pandas.DataFrame(table)
    known = [str(name) for name in frame.columns]
    for name in (*NEEDED, *columns, *others):
        if name not in known:
            if name in columns or name in others:
                what, has = "by" if name in columns else "settings", ", ".join(known) or "no columns"
                meant = did_you_mean(name, known)
                raise UnknownNameError(f"{what}: the table has no column {name!r}.{meant} It has {has}.")
            raise ConfigError(f"table: expected the columns {', '.join(NEEDED)}, got {', '.join(known) or 'none'}.")
    if not columns:
        raise ConfigError(f"by: expected a column, or several, got none. The table has {', '.join(known)}.")
    if not len(frame):
        raise ConfigError("table: expected a row for each run, got none.")
    parts, rest = ([[_value(each) for each in frame[name]] for name in names] for names in (columns, others))
    apart = zip(*rest, strict=True) if rest else [()] * len(frame)
    budgets = frame["env_steps"].tolist() if "env_steps" in known else [None] * len(frame)
    states = frame["state"].tolist() if "state" in known else [None] * len(frame)
    rows = [
        _Row(
            mine, Place(str(environment), _shown(_value(seed)), _labelled(others, other)), _number(score),
            _value(state) in (None, "failed", "finished"), _value(budget),
        )
        for mine, other, environment, seed, score, state, budget in zip(
            zip(*parts, strict=True), apart, frame["environment"].tolist(), frame["seed"].tolist(),
            frame["score"].tolist(), states, budgets, strict=True,
        )
    ]  # fmt: skip
    return rows, int(frame.astype(str).duplicated().sum())


def _longest(rows: list[_Row], columns: tuple[str, ...]) -> tuple[list[_Row], tuple[str, ...]]:
    """The runs with the most env steps, and the labels of the settings that have none of these."""
    most = max((row.budget for row in rows if row.budget is not None), default=None)
    kept = [row for row in rows if row.budget == most]
    those = {_text(row.settings) for row in kept}
    dropped = {_text(row.settings): row.settings for row in rows if _text(row.settings) not in those}
    return kept, tuple(_labelled(columns, values) for values in sorted(dropped.values(), key=_order))


def _seen(rows: Iterable[_Row]) -> dict[str, tuple[float, float]]:
    """Environment -> the lowest and the highest score."""
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row.score is not None:
            low, high = found.get(row.place.environment, (math.inf, -math.inf))
            found[row.place.environment] = min(low, row.score), max(high, row.score)
    return found


def _scale(
    normalise: Normalise, names: Sequence[str], seen: Mapping[str, tuple[float, float]], ranged: bool
) -> Scale | None:
    if ranged:
        return seen
    if normalise is None or normalise == "auto":
        return None
    if not isinstance(normalise, Mapping):
        raise ConfigError(
            f'normalise: expected "auto", "range", None or {{environment: (low, high)}}, got {normalise!r:.200}.'
        )
    for name in names:
        ends = normalise.get(name)
        if ends is None:
            meant = did_you_mean(name, normalise)
            raise ConfigError(f"normalise: expected (low, high) of {', '.join(names)}, got none of {name}.{meant}")
        if len(ends) != 2 or ends[0] == ends[1] or not all(map(math.isfinite, ends)):
            raise ConfigError(f"normalise: expected two different numbers (low, high) of {name}, got {ends!r:.200}.")
    return {name: (float(normalise[name][0]), float(normalise[name][1])) for name in names}


def _scaler(scale: Scale | None) -> Callable[[str, float], float]:
    def scaled(environment: str, score: float) -> float:
        if scale is None:
            return score
        low, high = scale[environment]
        return (score - low) / (high - low) if high != low else 1.0  # all runs reached the highest score seen

    return scaled


def _number(score: Any) -> float | None:
    """A score; None where there is none, or where it is not finite."""
    try:
        number = float(score)
    except (TypeError, ValueError):  # None, or what pandas has for what is missing
        return None
    return number if math.isfinite(number) else None


def _value(value: Any) -> Any:
    """A value of a table's cell without NumPy's types; None for what is missing, and integers that became floats."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(_value(each) for each in value)
    if isinstance(value, Mapping):
        return {str(name): _value(value[name]) for name in sorted(value, key=str)}
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _text(value: Any) -> str:
    return json.dumps(value, default=repr, sort_keys=True)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _labelled(names: Sequence[str], values: Sequence[Any]) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in zip(names, values, strict=True))


def _order(settings: Any) -> tuple[Any, ...]:
    """How settings are sorted: what is missing first, numbers by size, all else by its text."""
    values = settings if isinstance(settings, tuple) else (settings,)
    return tuple(
        (0, 0.0, "") if value is None
        else (1, float(value), _text(value)) if isinstance(value, bool | int | float)
        else (2, 0.0, _text(value))
        for value in values
    )  # fmt: skip
