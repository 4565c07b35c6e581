"""Optuna's samplers and pruners as they are, in an order of their own: neither workers nor kills decide what they say.

Nothing of Optuna's lives on from one ask to the next. For each a fresh study in memory is filled with the trials that
count, in order; a fresh sampler, whose seed is derived from the study's seed and the setting's number, is asked once.
What a sampler writes down for later (the state of CMA-ES, generations, the place in a Sobol sequence) is kept in the
study's log, next to the ask.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daskrl import extras, seeding
from daskrl.codec import encoded
from daskrl.config import require_integer
from daskrl.errors import ConfigError
from daskrl.study.search import Ask, Asked, Told, Wait, comparable
from daskrl.study.space import Range, Setting, Space, same

SAMPLERS = {
    "tpe": "TPESampler", "cmaes": "CmaEsSampler", "qmc": "QMCSampler", "gp": "GPSampler", "random": "RandomSampler",
    "nsgaii": "NSGAIISampler", "bruteforce": "BruteForceSampler",
}  # fmt: skip
"""What samplers are called for short."""

_PACKAGES = {"CmaEsSampler": ["cmaes"], "QMCSampler": ["scipy"], "GPSampler": ["scipy"]}
_NAME = "daskrl"  # of all studies: the brackets of Hyperband go by it


def imported() -> Any:
    """Optuna, or a `ConfigError` that says how to install it."""
    with extras.needed("study", "this search needs Optuna"):
        return importlib.import_module("optuna")


@dataclass(frozen=True)
class Optuna:
    """Settings that a sampler of Optuna's suggests, by the scores of those before.

        search=daskrl.study.Optuna("tpe", settings=50)
        search=daskrl.study.Optuna(functools.partial(optuna.samplers.TPESampler, multivariate=True), settings=50)

    Setting ``number`` is suggested from the results of the settings up to ``number - width``; those between count as
    running. With several environments a sampler is told the mean over environments of the ranks (see
    `daskrl.study.search.comparable`): their scores have no common scale, and what a sampler goes by is an order.

    Parameters
    ----------
    sampler : a class of `optuna.samplers`, a `functools.partial` of one, a function of a seed that makes one, or
        ``"tpe"``, ``"cmaes"``, ``"qmc"``, ``"gp"``, ``"random"``, ``"nsgaii"``, ``"bruteforce"``.
    settings : how many.
    width : how many settings may be without a result at a time. It decides what is suggested, so choose it once; a pool
        has at most ``width`` times environments times seeds runs to do at a time.
    """

    sampler: Any = "tpe"
    settings: int = 20
    width: int = 8

    def __post_init__(self) -> None:
        require_integer("settings", self.settings, 1)
        require_integer("width", self.width, 1)
        sampler = self.sampler
        if isinstance(sampler, str) and sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise ConfigError(f"sampler: expected a class of Optuna's, or one of {known}, got {sampler!r}.")
        if not isinstance(sampler, str) and not callable(sampler):
            name = type(sampler).__name__
            raise ConfigError(
                f"sampler: expected what makes a sampler, since each suggestion has a seed of its own; got an instance "
                f"of {name}. Type: Optuna(optuna.samplers.{name}), or functools.partial(optuna.samplers.{name}, ...)"
            )
        if isinstance(sampler, functools.partial) and "seed" in sampler.keywords:
            raise ConfigError("sampler: its seed is derived from study_seed and the setting. Leave seed= out.")

    def check(self, space: Space, env_steps: int) -> None:
        if not space.axes:
            raise ConfigError("space: there is nothing to suggest. Give settings, as {'n_step': Range(1, 5)}.")
        sampler = self._made(0, 0)
        if getattr(sampler, "_constraints_func", None) is not None:
            raise ConfigError("sampler: constraints_func looks at Optuna's trials, which are made again for each ask.")

    def next(self, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | Wait | None:
        return self.setting(len(asked), space, env_steps, seed, asked, told)

    def setting(self, number: int, space: Space, env_steps: int, seed: int, asked: Asked, told: Told) -> Ask | None:
        """Setting ``number`` of the study; see `daskrl.study.search.Inner`."""
        if number >= self.settings:
            return None
        with quiet() as optuna:
            study = new_study(optuna, self._made(seed, number))
            before = _fill(optuna, study, space, env_steps, asked, told)
            trial = study.ask()
            found = _suggested(trial, space)
            storage = study._storage
            of_trial = storage.get_trial(trial._trial_id).system_attrs
            of_study = storage.get_study_system_attrs(study._study_id)
        changed = {name: value for name, value in of_study.items() if before.get(name) != value}
        note = {name: value for name, value in (("trial", of_trial), ("study", changed)) if value}
        return Ask(number, found, env_steps, json.loads(json.dumps(note)))

    @property
    def packages(self) -> list[str]:
        """Whose versions decide what is suggested."""
        return ["optuna", *_PACKAGES.get(type(_base(self._made(0, 0))).__name__, [])]

    def to_json(self) -> dict[str, Any]:
        """What a study keeps of it."""
        return {"kind": "Optuna", **described("sampler", self.sampler), "settings": self.settings, "width": self.width}

    def _made(self, seed: int, number: int) -> Any:
        optuna = imported()
        made = self._of_seed(optuna, seed, number)
        if isinstance(_base(made), optuna.samplers.QMCSampler | optuna.samplers.GridSampler):  # one order: one seed
            made = self._of_seed(optuna, seed, 0)
        if not isinstance(made, optuna.samplers.BaseSampler):
            raise ConfigError(f"sampler: expected a sampler of Optuna's to be made from a seed, got {made!r:.200}.")
        return made

    def _of_seed(self, optuna: Any, seed: int, number: int) -> Any:
        derived = int(seeding.sequence(seed, "study", number).generate_state(1)[0])
        sampler = getattr(optuna.samplers, SAMPLERS[self.sampler]) if isinstance(self.sampler, str) else self.sampler
        made = sampler.func if isinstance(sampler, functools.partial) else sampler
        if not isinstance(made, type):
            return sampler(derived)
        if "seed" not in inspect.signature(made).parameters:
            raise ConfigError(
                f"sampler: {made.__name__} takes no seed. Give a function of a seed: "
                f"Optuna(lambda seed: {made.__name__}(..., optuna.samplers.TPESampler(seed=seed)))"
            )
        return sampler(seed=derived)


def described(name: str, what: Any) -> dict[str, Any]:
    """What decides how a sampler or a pruner behaves, for a study's log."""
    if isinstance(what, str):
        return {name: SAMPLERS[what]}
    from daskrl.code.captured import Captured

    known = f"{getattr(what, '__module__', '')}".startswith("optuna.") and isinstance(what, type)
    return {name: what.__name__ if known else Captured({name: what}).table}


def _base(sampler: Any) -> Any:
    return getattr(sampler, "_base_sampler", sampler)


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """Optuna, silent: a sampler that is made for each ask would say each time that it falls back to another."""
    optuna = imported()
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.ERROR))
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(before)


def new_study(optuna: Any, sampler: Any = None) -> Any:
    """A study of Optuna's, in memory."""
    made: Any = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(), study_name=_NAME, direction="maximize", sampler=sampler
    )
    return made


def _fill(optuna: Any, study: Any, space: Space, env_steps: int, asked: Asked, told: Told) -> dict[str, Any]:
    """Add the trials that were asked for, a setting each, in order; what the study's own attributes are then."""
    of_setting: dict[int, list[int]] = {}  # its asks
    for place, ask in enumerate(asked):
        if isinstance(ask, Ask):
            of_setting.setdefault(ask.number, []).append(place)
    levels = _levels(asked, told)
    attributes: dict[str, Any] = {}
    for number in sorted(of_setting):
        asks = [asked[place] for place in of_setting[number]]
        first, last = asks[0], asks[-1]
        assert isinstance(first, Ask)
        assert isinstance(last, Ask)
        known = {
            ask.env_steps: levels[place]
            for place, ask in zip(of_setting[number], asks, strict=True)
            if isinstance(ask, Ask) and place in levels
        }
        scores = {step: score for step, score in known.items() if not math.isnan(score)}
        failed, running = len(scores) < len(known), len(known) < len(asks)
        whole = last.env_steps >= env_steps
        states = optuna.trial.TrialState
        state = states.FAIL if failed else states.RUNNING if running else states.COMPLETE if whole else states.PRUNED
        reports = scores if len(asks) > 1 or not whole else {}
        attributes.update(first.note.get("study", {}))
        study.add_trial(
            trial_of(optuna, space, first.setting, state, reports, first.note.get("trial", {}),
                     None if failed or running else scores[last.env_steps])
        )  # fmt: skip
    for name, value in attributes.items():
        study._storage.set_study_system_attr(study._study_id, name, value)
    return attributes


def trial_of(
    optuna: Any, space: Space, setting: Setting, state: Any, reports: Mapping[int, float],
    attributes: Mapping[str, Any], value: float | None,
) -> Any:  # fmt: skip
    """A trial of Optuna's."""
    axes = {name: distribution(optuna, space.axes[name]) for name in setting}
    params = {name: _label(space.axes[name], value) for name, value in setting.items()}
    return optuna.trial.create_trial(
        state=state, value=value, params=params, distributions=axes, system_attrs=dict(attributes),
        intermediate_values=dict(reports),
    )  # fmt: skip


def _levels(asked: Asked, told: Told) -> dict[int, float]:
    """Results as a sampler is told them: comparable among those of equal env steps."""
    at: dict[int, list[int]] = {}
    for place in sorted(told):
        ask = asked[place]
        if isinstance(ask, Ask):
            at.setdefault(ask.env_steps, []).append(place)
    return {
        place: level
        for places in at.values()
        for place, level in zip(places, comparable([told[place] for place in places]), strict=True)
    }


def distribution(optuna: Any, axis: Any) -> Any:
    """What a setting may be, in Optuna's words."""
    if isinstance(axis, list):
        return optuna.distributions.CategoricalDistribution(_labels(axis))
    if isinstance(axis, Range):
        kind = optuna.distributions.IntDistribution if axis.integers else optuna.distributions.FloatDistribution
        return kind(axis.low, axis.high, log=axis.log)
    return axis


def _labels(values: Sequence[Any]) -> list[Any]:
    """Values as Optuna takes them: as they are where that can be, else what says each."""
    plain = all(isinstance(value, str | int | float | bool | None) for value in values)
    if plain and len({*values}) == len(values):
        return list(values)
    return [json.dumps(encoded(value, "space"), sort_keys=True) for value in values]


def _label(axis: Any, value: Any) -> Any:
    if not isinstance(axis, list):
        return value
    return _labels(axis)[next(place for place, other in enumerate(axis) if same(other, value))]


def _suggested(trial: Any, space: Space) -> Setting:
    found: dict[str, Any] = {}
    for name, axis in space.axes.items():
        if not space.holds(name, found):
            continue
        if isinstance(axis, list):
            labels = _labels(axis)
            found[name] = axis[labels.index(trial.suggest_categorical(name, labels))]
            continue
        asked = distribution(imported(), axis)
        suggest = trial.suggest_int if type(asked).__name__ == "IntDistribution" else trial.suggest_float
        step = {} if asked.step is None else {"step": asked.step}
        found[name] = suggest(name, asked.low, asked.high, log=asked.log, **step)
    return found
