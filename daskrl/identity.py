"""Is it the same run? How a run names its environment and algorithm, and what is compared when it goes on."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from daskrl import modules, sources
from daskrl.algorithms.base import Algorithm, Setup, settings
from daskrl.arithmetic import pinned
from daskrl.config import RunConfig
from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.store import Store


def require_same_run(store: Store, config: RunConfig) -> None:
    given, kept = json.loads(json.dumps(config.to_json())), json.loads(json.dumps(store.config.to_json()))
    for one in (given, kept):  # the bits alone: where they came from may be another place now
        one["init"] = one["init"] and {key: one["init"].get(key) for key in ("sha256", "replay")}
    differs = [f"{name}: {given[name]!r} (store: {kept[name]!r})" for name in given if given[name] != kept[name]]
    if differs:
        raise StoreMismatchError(
            f"{store.root} holds another run; it differs in {'; '.join(differs)}. Give the same settings, or choose "
            "another store=."
        )


def require_same_spec(store: Store, source: sources.EnvironmentSource) -> None:
    if not source.spec.is_stored_as(store.spec):
        raise StoreMismatchError(
            f"{store.root} holds {store.spec}, the environment {source.name!r} has {source.spec}. It has changed "
            "since; install the version the run was made with."
        )


def require_algorithm(algorithm: object) -> None:
    if isinstance(algorithm, type):
        raise ConfigError(f"algorithm: expected an instance, got the class; type {algorithm.__name__}().")
    missing = [n for n in ("check", "policy", "load", "act", "learner") if not callable(getattr(algorithm, n, None))]
    if missing:
        raise ConfigError(
            f"algorithm: expected e.g. daskrl.DQN(), or an object with the methods of daskrl.Algorithm; {algorithm!r} "
            f"has no {', '.join(missing)}."
        )


def try_algorithm(algorithm: Algorithm, setup: Setup) -> None:
    """Try what workers will do, small, so that settings that cannot work fail here."""
    from torch import nn

    from daskrl.networks import require_flat

    with pinned():
        algorithm.check(setup)
        policy = algorithm.policy(setup)
    if isinstance(policy, nn.Module):
        require_flat(policy)


def algorithm_identity(algorithm: Algorithm) -> dict[str, Any]:
    cls = type(algorithm)
    return {
        "name": cls.__name__,
        "settings": json.loads(json.dumps(settings(algorithm), default=str)),
        "source_sha256": None if cls.__module__.startswith("daskrl.algorithms.") else sources.source_sha256(cls),
        "packages": sorted(getattr(algorithm, "packages", ())),
    }


def identity_in(store: Store, algorithm: Any) -> dict[str, Any]:
    """Without settings that the store is too old for and that are left at their default."""
    identity, kept = algorithm_identity(algorithm), store.config.algorithm["settings"]
    defaults: dict[str, Any] = {}
    if dataclasses.is_dataclass(algorithm):
        defaults = {field.name: field.default for field in dataclasses.fields(algorithm)}
    identity["settings"] = {
        name: value
        for name, value in identity["settings"].items()
        if name in kept or name not in defaults or value != defaults[name]
    }
    return identity


def same_environment(store: Store, env: sources.EnvironmentFactory | None) -> sources.EnvironmentSource:
    kept = store.config.environment
    if kept["kind"] == "id":
        if env is not None:
            raise StoreMismatchError(f"{store.root} was made with the environment {kept['id']!r}; leave env= out.")
        source = sources.source(kept["id"], **kept["kwargs"])
    elif env is None:
        name = kept["name"].rpartition(".")[2].replace("<lambda>", "...")
        raise StoreMismatchError(
            f"{store.root} was made with the callable {kept['name']!r}. Nothing is pickled in a store, so give it "
            f"again: daskrl.resume({str(store.root)!r}, env={name}), or on the command line "
            f"{modules.option('env', kept['name'])}"
        )
    else:
        source = sources.source(env)
        if source.identity.get("source_sha256") != kept["source_sha256"]:
            raise StoreMismatchError(
                f"env: the source of {source.name!r} is not that of the {kept['name']!r} this store was made with. "
                "Give the same code, or start a new run."
            )
    require_same_spec(store, source)
    return source


def stored_settings(store: Store) -> dict[str, Any]:
    """The settings of the run's algorithm as it takes them: JSON has lists where they have tuples."""
    kept = store.config.algorithm["settings"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}


def same_algorithm(store: Store, algorithm: Algorithm | None) -> Algorithm:
    from daskrl.algorithms import by_class_name

    kept = store.config.algorithm
    if algorithm is None:
        if kept["source_sha256"] is not None:
            raise StoreMismatchError(
                f"{store.root} was made with your own algorithm {kept['name']!r}. Nothing is pickled in a store, so "
                f"give it again: daskrl.resume({str(store.root)!r}, algorithm={kept['name']}(...)), or on the command "
                f"line {modules.option('algorithm', kept['name'])}"
            )
        made: Algorithm = by_class_name(kept["name"])(**stored_settings(store))
        return made
    require_algorithm(algorithm)
    given = identity_in(store, algorithm)
    if given != dict(kept):
        names = sorted({*given["settings"], *kept["settings"]})
        differs = [
            f"{name}: {given['settings'].get(name)!r} (store: {kept['settings'].get(name)!r})"
            for name in names
            if given["settings"].get(name) != kept["settings"].get(name)
        ]
        what = "; ".join(differs) if differs else f"the source of {given['name']} (store: {kept['name']})"
        raise StoreMismatchError(f"algorithm: differs from the one this store was made with in {what}.")
    return algorithm
