"""Environments by name: making them, and saying what they are: id, packages, source."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import linecache
import os
import sysconfig
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import gymnasium
import numpy as np

from daskrl import extras
from daskrl.errors import ConfigError, UnknownEnvironmentError
from daskrl.isolation import remembers, same_object
from daskrl.spaces import SpaceSpec, spec_of

Environment = gymnasium.Env[Any, Any]
EnvironmentFactory = Callable[[], Environment]

# Packages that register their environments on import.
_REGISTERED_BY = {"ALE": "ale_py", "MinAtar": "minatar"}


def atari(id: str, **kwargs: Any) -> Environment:
    """An ALE game with the standard preprocessing, one 84x84 grayscale frame an observation.

    Up to 30 no-ops after reset, frames in fours with the last two max-pooled, sticky actions as the id sets
    them (0.25 for ``ALE/*-v5``). Episodes end with the game, not with a life (Machado et al. 2018,
    https://arxiv.org/abs/1709.06009, sections 4 and 5). Frames are stacked by ``frame_stack``; rewards are
    stored as they are and clipped by the learner (``reward_clip``).
    """
    env = gymnasium.make(id, frameskip=1, disable_env_checker=True, **kwargs)
    return gymnasium.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84)


class MinAtarReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Start each MinAtar episode alike: its sticky actions otherwise repeat the last one of the episode before."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = super().reset(seed=seed, options=options)
        self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return result


class ActionMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Makes ``info["action_mask"]`` part of the observation: ``{"observation": ..., "action_mask": [A] of bits}``.

    Algorithms for discrete actions, but for Q-learning's table, then take and learn only from actions that may be
    taken. An environment whose observation is a Dict with the key ``action_mask`` needs no wrapper.
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, gymnasium.spaces.Discrete), "ActionMask needs a Discrete action space"
        mask = gymnasium.spaces.MultiBinary(int(env.action_space.n))
        self.observation_space = gymnasium.spaces.Dict({"observation": env.observation_space, "action_mask": mask})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(observation, info), reward, terminated, truncated, info

    def _with_mask(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        if "action_mask" not in info:
            raise KeyError(
                f"ActionMask: expected info['action_mask'], got the keys {sorted(info)}. Leave ActionMask out."
            )
        return {"observation": observation, "action_mask": np.asarray(info["action_mask"], np.int8)}


def _make(id: str, kwargs: Mapping[str, Any]) -> Environment:
    _register(id)
    if id.startswith("ALE/"):
        return atari(id, **kwargs)
    env = _unordered(gymnasium.make(id, disable_env_checker=True, **kwargs))
    return MinAtarReset(env) if id.startswith("MinAtar/") else env


def _unordered(env: Environment) -> Environment:
    """Without Gymnasium's check that ``reset`` comes before ``step``, a call in every step: streams see to that."""
    if isinstance(env, gymnasium.wrappers.OrderEnforcing):
        return env.env
    if isinstance(env, gymnasium.Wrapper):
        env.env = _unordered(env.env)
    return env


def _register(id: str) -> None:
    package = _REGISTERED_BY.get(id.partition("/")[0])
    if package is not None:
        module = importlib.import_module(package)
        if package == "minatar":
            module = importlib.import_module("minatar.gym")
            if id not in gymnasium.registry:
                module.register_envs()


@dataclass(frozen=True)
class EnvironmentSource:
    """How a run names its environment, and the function that makes one.

    Attributes
    ----------
    remembers : how a wrapper that is known to keep something beyond an episode breaks the promise; else None.
    """

    identity: Mapping[str, Any]
    factory: EnvironmentFactory
    spec: SpaceSpec
    default_frame_stack: int = 1
    remembers: str | None = None

    @property
    def name(self) -> str:
        return str(self.identity.get("id") or self.identity["name"])


def source(env: str | EnvironmentFactory, **kwargs: Any) -> EnvironmentSource:
    """Resolve an environment id, ``module:Id`` or callable, and look at its spaces by making one, and a second.

    Parameters
    ----------
    env : a Gymnasium id, ``module:Id``, or a callable without arguments that returns a ``gymnasium.Env``.
    kwargs : given to ``gymnasium.make``; only with an id.

    Raises
    ------
    UnknownEnvironmentError
        The id is not registered, its module or package is missing, or the callable returns something else.
    UnsupportedSpaceError
        A space has no fixed numeric shape.
    ConfigError
        Two calls gave the same environment, or two that hold the same one.
    """
    factory: EnvironmentFactory
    if isinstance(env, str):
        identity: dict[str, Any] = {"kind": "id", "id": env, "kwargs": dict(kwargs)}
        factory = functools.partial(_make, env, dict(kwargs))
    elif callable(env):
        if kwargs:
            raise ConfigError(f"env_kwargs {sorted(kwargs)} go with an id; bind them: lambda: make(...).")
        identity = {"kind": "callable", "name": _name(env), "source_sha256": source_sha256(env)}
        factory = env
    else:
        raise ConfigError(
            f"env: expected a Gymnasium id ('CartPole-v1'), 'module:Id' or a callable that returns an "
            f"environment, got {env!r}."
        )
    probe = _probe(env, factory)
    _require_own_objects(probe, factory)
    identity["packages"] = _packages(probe)
    try:
        return EnvironmentSource(
            identity=identity,
            factory=factory,
            spec=spec_of(probe.observation_space, probe.action_space),
            default_frame_stack=4 if isinstance(env, str) and env.startswith("ALE/") else 1,
            remembers=remembers(probe),
        )
    finally:
        probe.close()


def _require_own_objects(probe: Environment, factory: EnvironmentFactory) -> None:
    """Make a second environment, which must have no environment in common with the first."""
    try:
        other = factory()
    except Exception:  # there may be room for one alone; where a run needs more it says so
        return
    problem = same_object(probe, other) if isinstance(other, gymnasium.Env) else None
    if problem is not None:  # nothing is closed: it is the user's own object
        raise ConfigError(problem)
    other.close()


def _packages(env: Environment) -> list[str]:
    """The installed packages, besides Gymnasium, whose versions may decide what an environment does."""
    module = type(env.unwrapped).__module__
    for prefix, imported in (("gymnasium.envs.box2d", "Box2D"), ("gymnasium.envs.mujoco", "mujoco")):
        if module.startswith(prefix):
            return sorted(set(_distributions().get(imported, [])))
    found = _distributions().get(module.partition(".")[0], [])
    return sorted(set(found) - {"daskrl", "gymnasium"})


def _distributions() -> Mapping[str, list[str]]:
    """Top-level modules, and the installed packages that each is of."""
    return _distributions_since(os.stat(sysconfig.get_path("purelib")).st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _distributions_since(changed: int) -> Mapping[str, list[str]]:
    """Looked up again where packages were installed meanwhile: it takes longer than all else that starts a run."""
    return metadata.packages_distributions()


def _probe(env: object, factory: EnvironmentFactory) -> Environment:
    try:
        made = factory()
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        extra = extras.of_environment(error)
        hint = (
            "Install the package that has it, or name its directory: export PYTHONPATH=DIR"
            if extra is None
            else extras.install(extra)
        )
        raise UnknownEnvironmentError(f"{env!r} cannot be made: {str(error).rstrip('.')}. {hint}") from error
    except gymnasium.error.Error as error:
        raise UnknownEnvironmentError(
            f"{env!r} is not an environment Gymnasium can make: {error} Expected a registered id, module:Id, or a "
            "callable. For a list type: python -c 'import gymnasium; gymnasium.pprint_registry()'"
        ) from error
    except Exception as error:
        raise ConfigError(f"{env!r} raised {type(error).__name__} when it was made: {error}") from error
    if not isinstance(made, gymnasium.Env):
        raise UnknownEnvironmentError(
            f"{env!r} must return a gymnasium.Env, returned {type(made).__name__}. Vector environments are "
            "made by daskrl (envs_per_stream); return a single one."
        )
    return made


def _name(obj: object) -> str:
    return str(getattr(obj, "__qualname__", None) or type(obj).__qualname__)


def source_sha256(obj: Any) -> str:
    """A hash of what a callable or class says: its source where there is one, else its compiled code."""
    if isinstance(obj, functools.partial):
        text = repr((source_sha256(obj.func), obj.args, sorted(obj.keywords.items())))
    else:
        if not (inspect.isclass(obj) or inspect.isroutine(obj)):
            obj = type(obj)
        try:
            text = textwrap.dedent(_source(obj)).strip()
        except (OSError, TypeError):
            code = getattr(obj, "__code__", None)
            if code is None:
                raise ConfigError(
                    f"{obj!r} has neither source nor Python code, so a resumed run could not check that it is "
                    "the same. Wrap it in a function."
                ) from None
            text = repr((code.co_code, code.co_names, [c for c in code.co_consts if not inspect.iscode(c)]))
    return hashlib.sha256(text.encode()).hexdigest()


def _source(obj: Any) -> str:
    try:
        return inspect.getsource(obj)
    except (OSError, TypeError):
        # Python does not find a class of a notebook cell; its methods know in which cell they were written.
        for value in vars(obj).values() if inspect.isclass(obj) else ():
            if inspect.isfunction(value) and value.__module__ == obj.__module__:
                cell = "".join(linecache.getlines(inspect.unwrap(value).__code__.co_filename))
                for node in ast.walk(ast.parse(cell)):
                    if isinstance(node, ast.ClassDef) and node.name == obj.__name__:
                        return ast.get_source_segment(cell, node) or ""
        raise
