"""Environments by name: making them, and saying what they are: id, packages, source."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import os
import re
import sysconfig
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from daskrl import extras
from daskrl.code.captured import CHANGES, Captured, changing
from daskrl.code.source import compiled, is_own_module, source_of_class, written
from daskrl.codec import NotStoredError, decoded, encoded_arguments
from daskrl.envs.isolation import in_new_worlds, remembers, same_object
from daskrl.envs.spaces import SpaceSpec, spec_of
from daskrl.errors import ConfigError, UnknownEnvironmentError

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvCreator

Environment = gymnasium.Env[Any, Any]
EnvironmentFactory = Callable[[], Environment]

# Namespaces of ids whose environments are made in a way of their own, and the modules that register them.
_NAMESPACES = {"ALE": "ale_py", "MinAtar": "minatar.gym"}


def atari(
    id: str,
    obs_type: str = "grayscale",
    frameskip: int = 4,
    sound_obs: bool = False,
    spec: EnvSpec | None = None,
    **kwargs: Any,
) -> Environment:
    """An ALE game with the standard preprocessing, one 84x84 grayscale frame an observation.

    Up to 30 no-ops after reset, frames in fours with the last two max-pooled, sticky actions as the id sets
    them (0.25 for ``ALE/*-v5``, none for ``*-v4``). Episodes end with the game, not with a life (Machado et al. 2018,
    https://arxiv.org/abs/1709.06009, sections 4 and 5). Frames are stacked by ``frame_stack``; rewards are
    stored as they are and clipped by the learner (``reward_clip``).

    Parameters
    ----------
    id : with or without ``ale_py:``. Those of ``*NoFrameskip-v4`` and ``*-v4`` are preprocessed alike.
    obs_type : ``"rgb"`` keeps the colours, 84x84x3; ``"ram"`` is the console's memory after the same frames, 128 bytes.
    frameskip : frames of one step.
    spec : what to make in place of what is registered.
    kwargs : what else ALE's environment takes: ``mode``, ``difficulty``, ``repeat_action_probability``,
        ``full_action_space``, ``render_mode``, ``continuous`` (a Box of actions; without no-ops, which ALE has none of
        then), ....

    Raises
    ------
    ConfigError
        For a range of frameskips and for sound, which the preprocessing has no place for.
    """
    takes: dict[str, tuple[Any, bool]] = {
        "obs_type": (obs_type, obs_type in ("grayscale", "rgb", "ram")),
        "frameskip": (frameskip, isinstance(frameskip, int | np.integer) and frameskip >= 1),
        "sound_obs": (sound_obs, not sound_obs),
    }
    for name, (value, taken) in takes.items():
        if not taken:
            raise ConfigError(
                f"env_kwargs {name}={value!r}: ALE's games are preprocessed: obs_type is 'grayscale', 'rgb' or 'ram', "
                "frameskip one number >= 1, and there is no sound. Give such, or a function that makes the environment "
                f"as you want it: lambda: gymnasium.make({id!r}, {name}={value!r})"
            )
    screen = "rgb" if obs_type == "rgb" else "grayscale"
    env = gymnasium.make(spec or id, frameskip=1, disable_env_checker=True, obs_type=screen, **kwargs)
    env = gymnasium.wrappers.AtariPreprocessing(
        env,
        noop_max=0 if kwargs.get("continuous") else 30,
        frame_skip=int(frameskip),
        screen_size=84,
        grayscale_obs=screen == "grayscale",
    )
    return Ram(env) if obs_type == "ram" else env


class Ram(gymnasium.Wrapper[Any, Any, Any, Any]):
    """The memory of an Atari console in place of its screen."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self.ale: Any = env.unwrapped.ale  # type: ignore[attr-defined]
        self.observation_space = gymnasium.spaces.Box(0, 255, (self.ale.getRAMSize(),), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        return self.ale.getRAM(), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.env.step(action)
        return self.ale.getRAM(), reward, terminated, truncated, info


class MinAtarReset(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Start each MinAtar episode alike: its sticky actions otherwise repeat the last one of the episode before."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = super().reset(seed=seed, options=options)
        self.env.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return result


class ActionMask(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Makes ``info["action_mask"]`` part of the observation: ``{"observation": ..., "action_mask": [A] of bits}``.

    Algorithms for discrete actions, but for Q-learning's table, then take and learn only from actions that may be
    taken. An environment whose observation is a Dict with the key ``action_mask`` needs no wrapper. A step that ends an
    episode may come without a mask, as no action follows; it is all zeros then, and counts as none: where the episode
    is truncated, the value of its last observation is that of the best of all actions.
    """

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        assert isinstance(env.action_space, gymnasium.spaces.Discrete), "ActionMask needs a Discrete action space"
        mask = gymnasium.spaces.MultiBinary(int(env.action_space.n))
        self.observation_space = gymnasium.spaces.Dict({"observation": env.observation_space, "action_mask": mask})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(observation, info, False), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        seen = self._with_mask(observation, info, bool(terminated or truncated))
        return seen, reward, terminated, truncated, info

    def _with_mask(self, observation: Any, info: dict[str, Any], over: bool) -> dict[str, Any]:
        mask = info.get("action_mask")
        if mask is None and not over:
            raise KeyError(
                f"ActionMask: expected info['action_mask'], got the keys {sorted(info)}. Leave ActionMask out."
            )
        if mask is None:
            mask = np.zeros(self.observation_space["action_mask"].shape)  # type: ignore[index]
        return {"observation": observation, "action_mask": np.asarray(mask, np.int8)}


def _make(id: str, kwargs: Mapping[str, Any], spec: EnvSpec | None) -> Environment:
    package = _register(id)
    if package == "ale_py":
        return atari(id, spec=spec, **kwargs)
    env = _unordered(gymnasium.make(spec or id, disable_env_checker=True, **kwargs))
    return MinAtarReset(env) if package == "minatar" else in_new_worlds(env)


def _unordered(env: Environment) -> Environment:
    """Without Gymnasium's check that ``reset`` comes before ``step``, a call in every step: streams see to that."""
    if isinstance(env, gymnasium.wrappers.OrderEnforcing):
        return env.env
    if isinstance(env, gymnasium.Wrapper):
        env.env = _unordered(env.env)
    return env


def _register(id: str) -> str:
    """Have an id registered that is ALE's or MinAtar's, whichever way it is written; the package that it is of."""
    given, _, name = id.rpartition(":")
    module = _NAMESPACES.get(name.partition("/")[0])
    if module is not None:
        imported = importlib.import_module(module)
        if module == "minatar.gym" and name not in gymnasium.registry:
            imported.register_envs()
        return module.partition(".")[0]
    older = re.fullmatch(r"\w+-v[04]", name) is not None and name not in gymnasium.registry
    if given == "ale_py" or (older and importlib.util.find_spec("ale_py") is not None):
        importlib.import_module("ale_py")
    registered = gymnasium.registry.get(name)
    return "" if registered is None else str(registered.entry_point).partition(".")[0]


def _canonical(id: str) -> str:
    """An id without the module that it is of anyway: ``ale_py:ALE/Pong-v5`` is the environment ``ALE/Pong-v5``."""
    given, _, name = id.rpartition(":")
    return name if given and given in ("ale_py", "minatar", "minatar.gym") else id


@dataclass(frozen=True)
class Registered:
    """Makes the environment of an id, also in a process where nobody registered it: it has what the registry says.

    Attributes
    ----------
    spec : as registered when the run began; its entry point is the object itself where it is the user's own.
    wrappers : what the registry says is put around it, with arguments, where one of them is the user's own: a spec
        names them by module, which workers may not have.
    """

    id: str
    kwargs: Mapping[str, Any]
    spec: EnvSpec
    wrappers: tuple[tuple[EnvCreator, Mapping[str, Any]], ...] = ()

    def __call__(self) -> Environment:
        env = _make(self.id, copy.deepcopy(dict(self.kwargs)), self.spec)
        for wrapper, kwargs in self.wrappers:
            env = wrapper(env=env, **copy.deepcopy(dict(kwargs)))
        return env


@dataclass(frozen=True)
class EnvironmentSource:
    """How a run names its environment, and the function that makes one.

    Attributes
    ----------
    remembers : how what is known to keep something beyond an episode breaks the promise; else None.
    named : what ``identity["captured"]`` is the table of, by name.
    """

    identity: Mapping[str, Any]
    factory: EnvironmentFactory
    spec: SpaceSpec
    default_frame_stack: int = 1
    remembers: str | None = None
    named: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.identity.get("id") or self.identity["name"])


def arguments(env_kwargs: Any) -> dict[str, Any]:
    """``env_kwargs`` as `source` takes them.

    Raises
    ------
    ConfigError
        They are no arguments by name, or one of them is daskrl's own to set.
    """
    given = {} if env_kwargs is None else env_kwargs
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"env_kwargs: expected a dict of names and values, as {{'size': 3}}, got {given!r:.200}.")
    for name in ("id", "disable_env_checker"):
        if name in given:
            raise ConfigError(
                f"env_kwargs {name}: daskrl gives it to gymnasium.make itself. Leave it out; an environment that takes "
                f"an argument of this name is made in a function: env=lambda: MyEnvironment({name}=...)"
            )
    return dict(given)


def source(env: str | EnvironmentFactory, /, **kwargs: Any) -> EnvironmentSource:
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
        Two calls gave the same environment, or two that hold the same one; a store cannot keep one of ``kwargs``; or
        the callable holds a value that no other process can compare.
    """
    factory: EnvironmentFactory
    if isinstance(env, str):
        env = _canonical(env)
        identity: dict[str, Any] = {"kind": "id", "id": env, "kwargs": _stored(env, kwargs)}
        kwargs = {name: decoded(value) for name, value in identity["kwargs"].items()}  # what a resumed run has
        probe = _probe(env, functools.partial(_make, env, copy.deepcopy(kwargs), None))
        factory = _carried(env, kwargs, gymnasium.registry[probe.unwrapped.spec.id])  # type: ignore[union-attr]
        named = _of_registry(factory)
        held = Captured(named)
    elif callable(env):
        if kwargs:
            raise ConfigError(f"env_kwargs {sorted(kwargs)} go with an id; bind them: lambda: make(...).")
        named = {_name(env).rpartition(".")[2].strip("<>"): env}
        held = Captured(named)
        identity = {"kind": "callable", "name": _name(env), "source_sha256": source_sha256(env)}
        factory = env
        probe = _probe(env, factory)
    else:
        raise ConfigError(
            f"env: expected a Gymnasium id ('CartPole-v1'), 'module:Id' or a callable that returns an "
            f"environment, got {env!r}."
        )
    held.ran(*_classes(probe))
    _require_own_objects(probe, factory)
    again = Captured(named, lenient=True)
    again.ran(*_classes(probe))
    identity.update(packages=_packages(probe), captured=changing(held.table, again.table))
    try:
        return EnvironmentSource(
            identity=identity,
            factory=factory,
            spec=spec_of(probe.observation_space, probe.action_space),
            remembers=remembers(probe),
            default_frame_stack=4 if isinstance(env, str) and _shows_a_screen(probe) else 1,
            named=named,
        )
    finally:
        probe.close()


def captured_in_use(source: EnvironmentSource) -> dict[str, str]:
    """``identity["captured"]``, with what resets and steps of an environment change as state, too: a shared buffer.

    Only where two tables differ: this makes an environment and plays a few steps.
    """
    env, tables = source.factory(), []

    def look() -> None:
        held = Captured(source.named, lenient=True)
        held.ran(*_classes(env))
        tables.append(held.table)

    look()
    with contextlib.suppress(Exception):  # what an environment raises is said where it is stepped in earnest
        space = copy.deepcopy(env.action_space)
        space.seed(0)
        env.reset(seed=0)
        look()
        for _ in range(3):
            env.step(space.sample())
            look()
    with contextlib.suppress(Exception):
        env.close()
    state = [changing(before, after) for before, after in itertools.pairwise(tables)]
    found: dict[str, str] = dict(source.identity["captured"])
    for table in state:
        found.update({name: text for name, text in table.items() if text == CHANGES})
    return found


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


def _shows_a_screen(env: Environment) -> bool:
    return isinstance(env, gymnasium.wrappers.AtariPreprocessing)


def _stored(env: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return encoded_arguments(kwargs, "env_kwargs")
    except NotStoredError as error:
        given = ", ".join(f"{name}={name}" for name in kwargs)
        raise NotStoredError(
            f"{error} Give a callable that has the values, and nothing is kept but their hash: "
            f"lambda: gymnasium.make({env!r}, {given})"
        ) from None


def _carried(id: str, kwargs: Mapping[str, Any], spec: EnvSpec) -> Registered:
    """A registered environment as workers are given it: with what is the user's own itself, not its name."""
    if isinstance(spec.entry_point, str) and _is_own(spec.entry_point):
        spec = dataclasses.replace(spec, entry_point=_creator(spec.entry_point))
    wrappers = spec.additional_wrappers
    if not any(_is_own(wrapper.entry_point) for wrapper in wrappers):
        return Registered(id, kwargs, spec)
    made = tuple((_creator(wrapper.entry_point), wrapper.kwargs or {}) for wrapper in wrappers)
    return Registered(id, kwargs, dataclasses.replace(spec, additional_wrappers=()), made)


def _creator(entry_point: str) -> EnvCreator:
    return cast("EnvCreator", load_env_creator(entry_point))


def _is_own(entry_point: str) -> bool:
    return is_own_module(entry_point.partition(":")[0])


def _of_registry(registered: Registered) -> dict[str, Any]:
    """What the registry says that decides what an environment does."""
    spec = registered.spec
    return {
        "entry_point": spec.entry_point,
        "registered.kwargs": spec.kwargs,
        "registered.max_episode_steps": spec.max_episode_steps,
        "registered.additional_wrappers": registered.wrappers or spec.additional_wrappers,
    }


def _classes(env: Environment) -> list[type]:
    """Of an environment and its wrappers."""
    classes: list[type] = [type(env)]
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        classes.append(type(env))
    return classes


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
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{env!r} raised {type(error).__name__} when it was made: {error}") from error
    if not isinstance(made, gymnasium.Env):
        raise UnknownEnvironmentError(
            f"{env!r} must return a gymnasium.Env, returned {type(made).__name__}. Vector environments are "
            "made by daskrl (envs_per_stream); return a single one."
        )
    return made


def _name(obj: object) -> str:
    while isinstance(obj, functools.partial):
        obj = obj.func
    return str(getattr(obj, "__qualname__", None) or type(obj).__qualname__)


def source_sha256(obj: Any) -> str:
    """A hash of what a callable or class says: its source where there is one, else its compiled code.

    Values that it holds are no part of it, see `daskrl.code.captured`.
    """
    if isinstance(obj, functools.partial):
        return source_sha256(obj.func)
    if not (inspect.isclass(obj) or inspect.isroutine(obj)):
        obj = type(obj)
    try:
        text = textwrap.dedent(source_of_class(obj) if inspect.isclass(obj) else inspect.getsource(obj)).strip()
    except (OSError, TypeError):
        text = _compiled(obj)
    return hashlib.sha256(text.encode()).hexdigest()


def old_source_sha256(obj: Any) -> str:
    """The same as stores without ``captured`` have it: the arguments of a partial by their ``repr``."""
    if not isinstance(obj, functools.partial):
        return source_sha256(obj)
    text = repr((old_source_sha256(obj.func), obj.args, sorted(obj.keywords.items())))
    return hashlib.sha256(text.encode()).hexdigest()


def _compiled(obj: Any) -> str:
    if inspect.isclass(obj):  # made by a call, perhaps with no function of its own: its bases are among the values
        return repr(sorted((function.__name__, compiled(function.__code__)) for function in written(obj)))
    code = getattr(obj, "__code__", None)
    if code is None:
        raise ConfigError(
            f"{obj!r} has neither source nor Python code, so a resumed run could not check that it is "
            "the same. Wrap it in a function."
        )
    return repr((code.co_code, code.co_names, [c for c in code.co_consts if not inspect.iscode(c)]))
