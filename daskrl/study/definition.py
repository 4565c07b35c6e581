"""What a study is: what it was given, checked, and as its log keeps it."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from daskrl.algorithms.base import Algorithm, settings
from daskrl.config import Options, plain, require_integer
from daskrl.envs import source as sources
from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.identity import algorithm_identity, require_algorithm
from daskrl.names import did_you_mean
from daskrl.prepared import Prepared, prepare
from daskrl.study import scores
from daskrl.study import search as searches
from daskrl.study.scores import Score
from daskrl.study.search import Ask, Search, Wait, search_of
from daskrl.study.space import ALGORITHM, OF_THE_RUN, Setting, Space, require_names, shown, split
from daskrl.tasks.session import versions

Environment = str | sources.EnvironmentFactory

# What all runs of a study may be given beside its space, of `daskrl.train`.
_SHAPE = (*OF_THE_RUN, "device", "recheck_every", "env_kwargs")
_OPTIONS = tuple(field.name for field in dataclasses.fields(Options))


@dataclass(frozen=True)
class Definition:
    """What was given.

    Attributes
    ----------
    algorithms, environments : label -> as given; of an algorithm an instance.
    shape, options : what all runs are given, by name, as `daskrl.train` takes it.
    """

    algorithms: Mapping[str, Algorithm]
    environments: Mapping[str, Environment]
    space: Space
    search: Search
    seeds: tuple[int, ...]
    env_steps: int
    score: Score
    study_seed: int
    shape: Mapping[str, Any]
    options: Options

    def _identities(self) -> dict[str, Mapping[str, Any]]:
        kwargs = sources.arguments(self.shape.get("env_kwargs"))
        return {label: sources.source(env, **kwargs).identity for label, env in self.environments.items()}

    def packages(self) -> list[str]:
        """What decides the bits of runs beside daskrl's own; what decides the search alone workers need not have."""
        found = {name for identity in self._identities().values() for name in identity["packages"]}
        found |= {name for algorithm in self.algorithms.values() for name in getattr(algorithm, "packages", ())}
        return sorted(found)

    def to_json(self) -> dict[str, Any]:
        """As the log keeps it: what decides which runs there are, and their bits."""
        said = {
            "algorithms": {label: algorithm_identity(algorithm) for label, algorithm in self.algorithms.items()},
            "environments": self._identities(),
            "space": self.space.to_json(),
            "search": searches.to_json(self.search),
            "seeds": list(self.seeds),
            "env_steps": self.env_steps,
            "score": scores.to_json(self.score),
            "study_seed": self.study_seed,
            "shape": {name: value for name, value in self.shape.items() if name != "env_kwargs"},
            "options": dataclasses.asdict(self.options),
            "versions": versions(sorted({*self.packages(), *getattr(self.search, "packages", ())})),
        }
        found: dict[str, Any] = json.loads(json.dumps(said, default=str))
        return found


def define(
    *,
    algorithm: Any,
    env: Any,
    space: Mapping[str, Any] | None,
    seeds: int | Iterable[int],
    env_steps: int,
    score: Any,
    search: Any,
    study_seed: int,
    given: Mapping[str, Any],
) -> Definition:
    """Check what a study was given, as far as that can be done without making its runs.

    Raises
    ------
    ConfigError
        Names what cannot work.
    """
    unknown = [name for name in given if name not in (*_SHAPE, *_OPTIONS)]
    if unknown:
        known = (*_SHAPE, *_OPTIONS)
        raise ConfigError(
            f"Study has no argument {unknown[0]!r}.{did_you_mean(unknown[0], known)} Expected any of "
            f"{', '.join(known)}; settings of the algorithm go into the algorithm or the space."
        )
    algorithms = _algorithms(algorithm)
    axes = dict(space or {})
    if len(algorithms) > 1:
        if ALGORITHM in axes:
            raise ConfigError("space: 'algorithm' is what algorithm= has. Leave it out of the space.")
        axes = {ALGORITHM: list(algorithms), **axes}
    checked = Space(axes)
    require_names(checked, {label: sorted(settings(one)) for label, one in algorithms.items()})
    both = [name for name in checked.axes if name in given]
    if both:
        raise ConfigError(f"{both[0]} is in the space and is given to all runs, too. Leave one of them out.")
    env_steps, study_seed = plain(env_steps), plain(study_seed)
    require_integer("env_steps", env_steps, 1)
    require_integer("study_seed", study_seed, 0)
    decided = search_of(search, checked)
    decided.check(checked, env_steps)
    suits = getattr(decided, "check_algorithms", None)
    if suits is not None:
        suits(algorithms)
    environments = _environments(env)
    alone = getattr(decided, "one_environment", None)
    if alone and len(environments) > 1:
        raise ConfigError(f"search: {type(decided).__name__} takes one environment, got {len(environments)}: {alone}.")
    return Definition(
        algorithms, environments, checked, decided, _seeds(seeds), env_steps, scores.score_of(score), study_seed,
        {name: value for name, value in given.items() if name in _SHAPE},
        Options(**{name: value for name, value in given.items() if name in _OPTIONS}),
    )  # fmt: skip


def _algorithms(given: Any) -> dict[str, Algorithm]:
    if isinstance(given, Mapping):
        labelled = dict(given)
    else:
        several = list(given) if isinstance(given, list | tuple) else [given]
        labelled = {}
        for one in several:
            label = one.__name__ if isinstance(one, type) else type(one).__name__
            if label in labelled:
                raise ConfigError(
                    f"algorithm: two are called {label}. Give names: algorithm={{'{label} a': ..., 'b': ...}}"
                )
            labelled[label] = one
    if not labelled:
        raise ConfigError("algorithm: expected e.g. daskrl.DQN, or several of them, got none.")
    made = {}
    for label, one in labelled.items():
        if isinstance(one, type):
            needed = [
                parameter.name for parameter in inspect.signature(one).parameters.values()
                if parameter.default is parameter.empty
                and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            ]  # fmt: skip
            if needed:
                raise ConfigError(
                    f"algorithm: {label} needs {', '.join(needed)}. Give an instance: {one.__name__}({needed[0]}=...)"
                )
            one = one()
        require_algorithm(one)
        made[str(label)] = one
    return made


def _environments(given: Any) -> dict[str, Environment]:
    if isinstance(given, Mapping):
        return {str(label): env for label, env in given.items()}
    several = list(given) if isinstance(given, list | tuple) else [given]
    if not several:
        raise ConfigError("env: expected a Gymnasium id, a callable, or several of them, got none.")
    found: dict[str, Environment] = {}
    for env in several:
        label = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
        if label in found:
            raise ConfigError(f"env: two are called {label!r}. Give names: env={{'a': ..., 'b': ...}}")
        found[label] = env
    return found


def _seeds(given: Any) -> tuple[int, ...]:
    given = plain(given)
    if isinstance(given, int) and not isinstance(given, bool):
        require_integer("seeds", given, 1)
        return tuple(range(given))
    try:
        seeds = tuple(plain(seed) for seed in given)
    except TypeError:
        raise ConfigError(f"seeds: expected a number of them, or integers as range(10), got {given!r}.") from None
    if not seeds:
        raise ConfigError("seeds: expected at least one, got none. Type: seeds=10")
    for seed in seeds:
        require_integer("seeds", seed, 0)
    if len(set(seeds)) < len(seeds):
        twice = next(seed for seed in seeds if seeds.count(seed) > 1)
        raise ConfigError(f"seeds: {twice} is there twice.")
    return seeds


class Preparing:
    """Makes the runs of a study's settings, each looked at once, whatever its seeds."""

    def __init__(self, definition: Definition) -> None:
        self._definition = definition
        self._sources: dict[str, sources.EnvironmentSource] = {}

    def prepared(self, setting: Setting, environment: str) -> Prepared:
        """The run of a setting in an environment, from the first seed.

        Raises
        ------
        ConfigError
            The setting cannot work; the message says which.
        """
        definition = self._definition
        of_algorithm, of_run, of_env = split(setting)
        label = setting.get(ALGORITHM, next(iter(definition.algorithms)))
        algorithm = with_settings(definition.algorithms[label], of_algorithm)
        shape = {**definition.shape, **of_run}
        kwargs = {**(shape.pop("env_kwargs", None) or {}), **of_env}
        source = self._source(environment, kwargs)
        return prepare(
            algorithm,
            source,
            env_steps=definition.env_steps,
            seed=definition.seeds[0],
            options=definition.options,
            **shape,
        )

    def try_some(self, most: int) -> None:
        """Prepare the first settings, so that what cannot work fails before there is a study.

        Raises
        ------
        ConfigError
            One cannot work, or there is none.
        """
        definition = self._definition
        asked: list[Ask | Wait] = []
        for _ in range(most if definition.search.width is None else 1):
            ask = definition.search.next(definition.space, definition.env_steps, definition.study_seed, asked, {})
            if not isinstance(ask, Ask):
                break
            asked.append(ask)
            for environment in definition.environments:
                try:
                    self.prepared(ask.setting, environment)
                except (ValueError, TypeError) as error:
                    error.add_note(f"The setting of the study is {shown(ask.setting)}, the environment {environment}.")
                    raise
        if not asked:
            raise ConfigError("space: there is nothing to try: no combination of its conditions holds.")

    def _source(self, environment: str, kwargs: Mapping[str, Any]) -> sources.EnvironmentSource:
        known = json.dumps([environment, kwargs], sort_keys=True, default=repr)
        if known not in self._sources:
            env = self._definition.environments[environment]
            self._sources[known] = sources.source(env, **sources.arguments(kwargs))
        return self._sources[known]


def with_settings(algorithm: Algorithm, changed: Mapping[str, Any]) -> Algorithm:
    """An algorithm with some of its settings changed."""
    if not changed:
        return algorithm
    one: Any = algorithm
    made: Algorithm
    if dataclasses.is_dataclass(one):
        made = dataclasses.replace(one, **changed)  # type: ignore[type-var,assignment]
    else:
        made = type(algorithm)(**{**settings(algorithm), **changed})
    return made


def require_same(kept: Mapping[str, Any], given: Mapping[str, Any], where: str) -> bool:
    """Whether a study is given a definition that goes on from the one it has: more seeds, a larger grid or budget.

    Raises
    ------
    StoreMismatchError
        It is another study; the message says what differs.
    """
    differs: list[str] = []
    larger = False
    for name in {**kept, **given}:
        old, new = kept.get(name), given.get(name)
        if old == new:
            continue
        if _goes_on(name, old, new):
            larger = True
            continue
        differs.append(_difference(name, old, new))
    if differs:
        raise StoreMismatchError(
            f"{where} is another study; it differs in {'; '.join(differs)}. Choose another directory, or give what it "
            "was made with. More seeds, more values in the space, and more env steps extend a study."
        )
    return larger


def _goes_on(name: str, old: Any, new: Any) -> bool:
    if name == "seeds":
        return set(old) <= set(new)
    if name == "env_steps":
        return bool(old < new)
    if name in ("environments", "algorithms"):
        return all(new.get(label) == identity for label, identity in old.items())
    if name == "space":
        return list(old) == list(new) and all(
            old[axis] == new[axis]
            or (isinstance(old[axis], list) and isinstance(new[axis], list) and all(v in new[axis] for v in old[axis]))
            for axis in old
        )
    if name == "search":
        apart = [{k: v for k, v in said.items() if k not in ("settings", "inner")} for said in (old, new)]
        inner = [said.get("inner", {}) for said in (old, new)]
        same = apart[0] == apart[1] and (inner[0] == inner[1] or _goes_on("search", *inner))
        return same and bool(old.get("settings", 0) <= new.get("settings", 0))
    return False


def _difference(name: str, old: Any, new: Any) -> str:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        parts = [
            f"{name}.{key}: {_short(new.get(key, 'not there'))} (study: {_short(old.get(key, 'not there'))})"
            for key in {**old, **new}
            if old.get(key, ...) != new.get(key, ...)
        ]
        return "; ".join(parts[:4]) + ("; ..." if len(parts) > 4 else "")
    return f"{name}: {_short(new)} (study: {_short(old)})"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 120 else f"{text[:120]}…"
