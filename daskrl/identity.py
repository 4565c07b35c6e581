"""Is it the same run? How a run names its environment and algorithm, and what is compared when it goes on."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any

from daskrl.algorithms.base import Algorithm, Setup, settings
from daskrl.arithmetic import pinned, undrawn
from daskrl.code import modules
from daskrl.code.captured import Captured, differences
from daskrl.codec import NotStoredError, decoded, encoded
from daskrl.config import RunConfig
from daskrl.envs import source as sources
from daskrl.envs.source import EnvironmentSource
from daskrl.errors import ConfigError, StoreMismatchError, UnknownEnvironmentError
from daskrl.store.store import Store

_OBJECT = "$object"  # in place of a setting that no store can keep: whoever resumes the run gives it again


def require_same_run(store: Store, config: RunConfig, algorithm: Algorithm, source: EnvironmentSource) -> None:
    """Raise `StoreMismatchError` unless a run of ``config`` is the one in the store."""
    require_known_keys(store)
    given, kept = json.loads(json.dumps(config.to_json())), json.loads(json.dumps(store.config.to_json()))
    for one in (given, kept):  # the bits alone: where they came from may be another place now
        one["init"] = one["init"] and {key: one["init"].get(key) for key in ("sha256", "replay")}
    differs = [
        *(f"{name}: {given[name]!r} (store: {kept[name]!r})" for name in given
          if name not in ("environment", "algorithm") and given[name] != kept[name]),
        *_environment_differs(store.config.environment, config.environment, None, source),
        *_algorithm_differs(store.config.algorithm, config.algorithm, algorithm),
    ]  # fmt: skip
    if differs:
        raise StoreMismatchError(
            f"{store.storage} holds another run; it differs in {_listed(differs)}. Give the same settings, or choose "
            "another store=."
        )


def require_known_keys(store: Store) -> None:
    """Raise `StoreMismatchError` where the store says what this daskrl does not know: it may decide bits."""
    unknown = store.unknown_keys()
    if unknown:
        made = store.attributes.get("versions", {}).get("daskrl")
        raise StoreMismatchError(
            f"{store.storage} was made with what this daskrl does not know: {', '.join(unknown)}. It may decide what "
            f"the run computes, so this daskrl reads and evaluates the run, but does not go on with it. Type: pip "
            f"install 'daskrl>={made}'"
        )


def require_same_spec(store: Store, source: EnvironmentSource) -> None:
    if not source.spec.is_stored_as(store.spec):
        raise StoreMismatchError(
            f"{store.storage} holds {store.spec}, the environment {source.name!r} has {source.spec}. It has changed "
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

    from daskrl.algorithms.networks import require_flat

    with pinned():
        algorithm.check(setup)
        with undrawn():
            policy = algorithm.policy(setup)
    if isinstance(policy, nn.Module):
        require_flat(policy)


def algorithm_identity(algorithm: Algorithm) -> dict[str, Any]:
    """How the store names an algorithm.

    Raises
    ------
    ConfigError
        It holds a value that no other process can compare.
    """
    cls = type(algorithm)
    built_in = cls.__module__.startswith("daskrl.algorithms.")
    kept: dict[str, Any] = {}
    held: dict[str, Any] = {} if built_in else {cls.__name__: cls}
    for name, value in settings(algorithm).items():
        try:
            kept[name] = _as_list(encoded(value, f"{cls.__name__}.{name}"), _annotations(cls).get(name, ""))
        except NotStoredError:
            kept[name] = {_OBJECT: f"{type(value).__module__}.{type(value).__qualname__}"}
            held[f"{cls.__name__}.{name}"] = value
    held |= {f"{cls.__name__}.{name}": value for name, value in _hidden(algorithm).items() if name not in kept}
    captured = Captured(held)
    captured.ran()
    return {
        "name": cls.__name__,
        "settings": kept,
        "source_sha256": None if built_in else sources.source_sha256(cls),
        "packages": sorted(getattr(algorithm, "packages", ())),
        "captured": captured.table,
    }


def _hidden(algorithm: object) -> dict[str, Any]:
    """The attributes that are no settings, but for what `functools.cached_property` keeps."""
    return {name: value for name, value in getattr(algorithm, "__dict__", {}).items() if name.startswith("_")}


def _annotations(cls: type) -> dict[str, str]:
    if not dataclasses.is_dataclass(cls):
        return {}
    return {field.name: getattr(field.type, "__name__", str(field.type)) for field in dataclasses.fields(cls)}


def _as_list(value: Any, annotation: str) -> Any:
    """JSON has lists where fields are declared tuples: that says enough."""
    return (
        value["$tuple"] if annotation.startswith("tuple") and isinstance(value, dict) and "$tuple" in value else value
    )


def _environment_differs(
    kept: Mapping[str, Any],
    given: Mapping[str, Any],
    env: sources.EnvironmentFactory | None,
    source: EnvironmentSource,
) -> list[str]:
    """What differs between two names of environments. A store of an older daskrl says less, and less is compared."""
    if given["kind"] != kept["kind"] or given.get("id") != kept.get("id"):
        return [f"environment: {_named(given)} (store: {_named(kept)})"]
    if kept["kind"] == "id":
        old, new = kept["kwargs"], given["kwargs"]
        if "captured" not in kept:
            new = json.loads(json.dumps({name: decoded(value) for name, value in new.items()}, default=str))
        differs = [f"env_kwargs {text}" for text in _values_differ(old, new)]
    else:
        sha256 = given["source_sha256"]
        if "captured" not in kept and env is not None:
            sha256 = sources.old_source_sha256(env)
        same = sha256 == kept["source_sha256"]
        differs = [] if same else [f"the source of {given['name']!r} is not that of the {kept['name']!r}"]
    if "captured" in kept and (held := differences(given["captured"], kept["captured"])):
        differs += differences(sources.captured_in_use(source), kept["captured"]) if not differs else held
    return differs


def _named(environment: Mapping[str, Any]) -> str:
    return repr(environment.get("id") or environment["name"])


def _values_differ(kept: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Values that differ, or are of other types: 1, 1.0 and True are three."""

    def said(values: Mapping[str, Any], name: str) -> str:
        return _shown(values[name]) if name in values else "not there"

    return [
        f"{name}: {said(given, name)} (store: {said(kept, name)})"
        for name in {**given, **kept}
        if name not in kept or name not in given or json.dumps(kept[name]) != json.dumps(given[name])
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict) and _OBJECT in value:
        return f"a {value[_OBJECT]}"
    text = repr(decoded(value))
    return text if len(text) <= 200 else f"{text[:200]}…"


def _algorithm_differs(kept: Mapping[str, Any], given: Mapping[str, Any], algorithm: Any) -> list[str]:
    """The same of algorithms: settings that the store is too old for count only where they are not at their default."""
    cls, old = type(algorithm), "captured" not in kept
    fields: tuple[dataclasses.Field[Any], ...] = ()
    if dataclasses.is_dataclass(algorithm):
        fields = dataclasses.fields(algorithm)
    defaults = {field.name: field.default for field in fields}
    count = [
        name
        for name in given["settings"]
        if name in kept["settings"]
        or (getattr(algorithm, name) != defaults[name] if name in defaults else not old)
    ]  # fmt: skip
    new = {name: _plain(getattr(algorithm, name)) if old else given["settings"][name] for name in count}
    differs = _values_differ(_comparable(kept["settings"], cls), _comparable(new, cls))
    if given["name"] != kept["name"] or given["source_sha256"] != kept["source_sha256"]:
        differs.append(f"the source of {given['name']} (store: {kept['name']})")
    if not old:
        differs += differences(given["captured"], kept["captured"])
    if given["packages"] != list(kept.get("packages", ())):
        differs.append(f"packages: {given['packages']} (store: {kept.get('packages')})")
    return differs


def _comparable(values: Mapping[str, Any], cls: type) -> dict[str, Any]:
    """Settings of which 1 and 1.0 are the same where they are declared float."""
    floats = {name for name, annotation in _annotations(cls).items() if annotation.startswith("float")}
    return {name: float(v) if name in floats and type(v) is int else v for name, v in values.items()}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _listed(differs: list[str]) -> str:
    most = 8
    return "; ".join(differs[:most]) + (f"; and {len(differs) - most} more" if len(differs) > most else "")


def same_environment(store: Store, env: sources.EnvironmentFactory | str | None) -> EnvironmentSource:
    """The environment of the run in the store, given again where it is no id.

    Raises
    ------
    StoreMismatchError
        It is another one.
    """
    kept = store.config.environment
    if kept["kind"] == "id":
        source = _same_id(store, env)
        require_same_spec(store, source)
    elif env is None:
        name = kept["name"].rpartition(".")[2].replace("<lambda>", "...")
        raise StoreMismatchError(
            f"{store.storage} was made with the callable {kept['name']!r}. Nothing is pickled in a store, so give it "
            f"again: daskrl.resume({str(store.storage)!r}, env={name}), or on the command line "
            f"{modules.option('env', kept['name'])}"
        )
    else:
        source = sources.source(env)
    differs = _environment_differs(kept, {**source.identity, "id": kept["id"]} if "id" in kept else source.identity,
                                   None if isinstance(env, str) else env, source)  # fmt: skip
    if differs:
        raise StoreMismatchError(
            f"env: {source.name!r} is not what the store {store.storage} was made with; what differs: "
            f"{_listed(differs)}. Give the same code and the same values, or start a new run."
        )
    require_same_spec(store, source)
    return source


def _same_id(store: Store, env: sources.EnvironmentFactory | str | None) -> EnvironmentSource:
    kept = store.config.environment
    bare = kept["id"].rpartition(":")[2]
    if env is not None and (not isinstance(env, str) or env.rpartition(":")[2] != bare):
        raise StoreMismatchError(f"{store.storage} was made with the environment {kept['id']!r}; leave env= out.")
    kwargs = {name: decoded(value) for name, value in kept["kwargs"].items()}
    try:
        return sources.source(env or kept["id"], **kwargs)
    except UnknownEnvironmentError as error:
        if env is not None or ":" in kept["id"] or "entry_point" not in kept.get("captured", {}):
            raise
        raise UnknownEnvironmentError(
            f"{error} Where the run was made, it was registered. Register it here, too, or name the module that does: "
            f"env='MODULE:{bare}', or on the command line --env MODULE:{bare}"
        ) from error


def stored_settings(store: Store, cls: type) -> dict[str, Any]:
    """The settings of the run's algorithm as its class takes them; not those that no store can keep."""
    kept, annotations = store.config.algorithm, _annotations(cls)
    found = {}
    for name, value in kept["settings"].items():
        if isinstance(value, dict) and _OBJECT in value:
            continue
        made = decoded(value)
        is_tuple = annotations.get(name, "").startswith("tuple") or "captured" not in kept
        found[name] = tuple(made) if isinstance(made, list) and is_tuple else made
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return found
    return {name: value for name, value in found.items() if name in parameters}


def same_algorithm(store: Store, algorithm: Algorithm | None) -> Algorithm:
    """The algorithm of the run in the store, given again where it is the user's own.

    Raises
    ------
    StoreMismatchError
        It is another one.
    """
    from daskrl.algorithms import by_class_name

    kept = store.config.algorithm
    if algorithm is None:
        if kept["source_sha256"] is not None:
            raise StoreMismatchError(
                f"{store.storage} was made with your own algorithm {kept['name']!r}. Nothing is pickled in a store, so "
                f"give it again: daskrl.resume({str(store.storage)!r}, algorithm={kept['name']}(...)), or on the "
                f"command line {modules.option('algorithm', kept['name'])}"
            )
        cls = by_class_name(kept["name"])
        algorithm = cls(**stored_settings(store, cls))
    require_algorithm(algorithm)
    differs = _algorithm_differs(kept, algorithm_identity(algorithm), algorithm)
    if differs:
        raise StoreMismatchError(f"algorithm: differs from the one this store was made with in {_listed(differs)}.")
    return algorithm
