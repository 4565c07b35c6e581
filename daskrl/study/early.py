"""Whether a search compares runs so early that they hardly differ: after few rounds in which anything was learned."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

from daskrl.algorithms.base import Setup, updates_after
from daskrl.config import Schedule
from daskrl.study.definition import Definition, Preparing, with_settings
from daskrl.study.search import drawn
from daskrl.study.space import ALGORITHM, Setting, shown, split

ROUNDS = 3
"""With updates, below which settings hardly differ."""

_SETTINGS = 64  # that are looked at: the first of a grid, or as many drawn
_SCHEDULE = tuple(field.name for field in dataclasses.fields(Schedule))


def early(definition: Definition, preparing: Preparing) -> str:
    """The sentence of the warning; empty where none is due."""
    name, levels = _compared(definition.search, definition.env_steps)
    if not levels:
        return ""
    space = definition.space
    settings = list(
        itertools.islice(space.grid(), _SETTINGS)
        if space.is_grid
        else (drawn(space, definition.study_seed, number) for number in range(_SETTINGS))
    )
    setup = preparing.prepared(settings[0], next(iter(definition.environments))).setup
    found = [(setting, *_begins(definition, setup, setting)) for setting in settings]
    setting, schedule, first = max(found, key=lambda one: _enough(one[1], one[2]))
    learned = {level: max(0, schedule.rounds(level) - first + 1) for level in levels}
    few = {level: rounds for level, rounds in learned.items() if rounds < ROUNDS}
    if not few:
        return ""
    enough = _enough(schedule, first)
    more = f"choose {name} from {enough:,} on" if enough < definition.env_steps else "choose more env_steps"
    return (
        f"{name}: after {_listed(few)} env steps a run ({shown(setting)}) has had updates in {_listed(few.values())} "
        f"rounds of {schedule.round_steps:,} transitions (streams x envs_per_stream x fragment_steps), the first "
        f"of them at {first * schedule.round_steps:,}. Settings hardly differ so early: {more}, or smaller rounds."
    )


def _compared(search: Any, env_steps: int) -> tuple[str, tuple[int, ...]]:
    """The argument by which a search says when it compares runs, and after how many env steps it does."""
    if hasattr(search, "ladder"):
        return "rungs", search.ladder(env_steps)[:-1]
    return ("interval", (search.interval,)) if hasattr(search, "interval") else ("", ())


def _enough(schedule: Schedule, first: int) -> int:
    """Transitions after which `ROUNDS` rounds have had updates."""
    return (first + ROUNDS - 1) * schedule.round_steps


def _begins(definition: Definition, setup: Setup, setting: Setting) -> tuple[Schedule, int]:
    """The schedule of a setting's runs, and the first round, from 1, that has updates."""
    of_algorithm, of_run, _ = split(setting)
    shape = {name: value for name, value in {**definition.shape, **of_run}.items() if name in _SCHEDULE}
    schedule = dataclasses.replace(setup.schedule, **shape)
    label = setting.get(ALGORITHM, next(iter(definition.algorithms)))
    try:
        algorithm = with_settings(definition.algorithms[label], of_algorithm)
        due = updates_after(algorithm, dataclasses.replace(setup, schedule=schedule))
        rounds = range(1, schedule.rounds(definition.env_steps) + 1)
        first = 1 + bisect.bisect_left(rounds, True, key=lambda count: due(count * schedule.round_steps) > 0)
    except (ValueError, TypeError):  # an algorithm that does not say, or a setting that cannot work: its run says so
        first = 1
    return schedule, first


def _listed(values: Iterable[int]) -> str:
    *others, last = [f"{value:,}" for value in values]
    return f"{', '.join(others)} and {last}" if others else last
