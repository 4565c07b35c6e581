"""From what was typed to objects: algorithms, environments and their arguments, versions of the weights."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any

from daskrl.code import modules
from daskrl.errors import ConfigError
from daskrl.names import did_you_mean


def algorithm_class(name: str) -> Any:
    """An algorithm's class by its name, or ``module:Class`` or ``FILE.py:Class`` of the user's own."""
    from daskrl.algorithms import by_name

    if ":" not in name and not modules.is_file(name):
        return by_name(name)
    found = modules.imported(name)
    if not isinstance(found, type):
        raise ConfigError(f"--algorithm {name}: expected a class with the methods of daskrl.Algorithm, got {found!r}.")
    return found


def made(algorithm: str, settings: dict[str, Any]) -> Any:
    try:
        return algorithm_class(algorithm)(**settings)
    except ConfigError:
        raise
    except TypeError as error:  # a value of another type than the setting's
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ConfigError(f"--algorithm {algorithm} cannot be made with {given}: {error}.") from None


def settings(algorithm: str, pairs: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` strings as keyword arguments of an algorithm."""
    from daskrl.algorithms.described import parameters

    known = set(parameters(algorithm_class(algorithm)))
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in known:
            raise ConfigError(
                f"--set {pair}: expected NAME=VALUE with NAME one of {', '.join(sorted(known))}."
                f"{did_you_mean(name, known)}"
            )
        settings[name] = value(text)
    return settings


def environment(env: str) -> Any:
    """A callable by its name; or the id of an environment: ``module:Id`` is left to Gymnasium."""
    name, wanted = modules.split(env)
    if modules.is_file(name):
        if not wanted:
            raise modules.no_such_name(modules.module(name), name, wanted)
        return _of_file(name, wanted)
    if not wanted:
        return env
    try:
        found = getattr(modules.module(name), wanted, None)
    except ImportError:
        return env
    return found if callable(found) else env


def _of_file(file: str, wanted: str) -> Any:
    """A callable of a file, or an id that it registers."""
    import gymnasium

    module = modules.module(file)
    found = getattr(module, wanted, None)
    if callable(found):
        return found
    if wanted in gymnasium.registry:
        return wanted
    raise modules.no_such_name(module, file, wanted)


def played_in(env: str | None, pairs: list[str] | None) -> dict[str, Any]:
    found, kwargs = with_keywords(None if env is None else environment(env), keywords(pairs))
    return {"env": found, "env_kwargs": kwargs}


def keywords(pairs: list[str] | None) -> dict[str, Any]:
    """``NAME=VALUE`` strings as keyword arguments of an environment."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--env-kwargs {pair}: expected NAME=VALUE, e.g. --env-kwargs size=3.")
        found[name] = value(text)
    return found


def with_keywords(env: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A callable that has its arguments, or an id and those that are for ``gymnasium.make``."""
    return (functools.partial(env, **kwargs), {}) if callable(env) and kwargs else (env, kwargs)


def again(store: str, env: str | None, algorithm: str | None, env_kwargs: list[str] | None = None) -> dict[str, Any]:
    """``env`` and ``algorithm`` of a run that was made with the user's own."""
    from daskrl.identity import stored_settings
    from daskrl.store.store import Store

    result: dict[str, Any] = {}
    kwargs = keywords(env_kwargs)
    if env is not None:
        found = environment(env)
        kept = Store.open(store).config.environment.get("id")
        if kept is None or found != kept:  # an id that the file of the run's registers is all that is needed
            same = isinstance(found, str) and kept is not None and found.rpartition(":")[2] == kept.rpartition(":")[2]
            found = found if callable(found) or same else modules.imported(env)
            result["env"], kwargs = with_keywords(found, kwargs)
    if kwargs:
        raise ConfigError(
            "--env-kwargs go with --env MODULE:FUNCTION; those of an id are in the store. Add --env, or leave them out."
        )
    if algorithm is not None:
        result["algorithm"] = made(algorithm, stored_settings(Store.open(store), algorithm_class(algorithm)))
    return result


def initial(init: str | None) -> dict[str, Any]:
    """``STORE``, ``STORE@VERSION`` or a file, as `daskrl.train` takes it."""
    if init is None or Path(init).exists():
        return {"init": init}
    path, at, version = init.rpartition("@")
    if not at:
        return {"init": init}
    return {"init": path, "init_version": weights_version(version)}


def weights_version(text: str | None) -> int | str | None:
    """A version of the weights, as it was typed."""
    if text is None or text == "best":
        return text
    if not text.isdecimal():
        raise ConfigError(f"version: expected a number or 'best', got {text!r}.")
    return int(text)


def value(text: str) -> Any:
    """What was typed as a Python literal; a word is a string."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text  # where it should not be one, whoever takes it says so
