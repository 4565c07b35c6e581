"""What breaks the isolation of environments from each other, and of an episode from earlier episodes, by name.

Streams step their environments side by side, anywhere, and rebuild an episode from its seed and actions. Environments
that share an object, or that remember earlier episodes, give numbers that depend on where and how often they run.
"""

from __future__ import annotations

import enum
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np

from daskrl.errors import ConfigError

Environment = gymnasium.Env[Any, Any]

_DEEP, _MANY = 4, 2000  # attributes of attributes, and objects in all, that are looked at in one environment

# What gymnasium's wrappers keep from one episode to the next, and what does the same within daskrl. Its other wrappers
# start each episode anew (DelayObservation, FrameStackObservation, StickyAction, TimeLimit), or keep what no column
# holds (RecordEpisodeStatistics, RecordVideo).
_REMEMBERING: tuple[tuple[type[Any], str], ...] = (
    (
        gymnasium.wrappers.NormalizeObservation,
        "normalise_observation=True (-s normalise_observation=true) of daskrl.PPO and daskrl.IMPALA does it in the "
        "learner, for all environments alike; for others scale by numbers that stay as they are: "
        "gymnasium.wrappers.RescaleObservation, or TransformObservation",
    ),
    (
        gymnasium.wrappers.NormalizeReward,
        "normalise_reward=True (-s normalise_reward=true) of daskrl.PPO and daskrl.IMPALA does it in the learner, for "
        "all environments alike; for others reward_clip=1.0, or a factor that stays as it is: "
        "gymnasium.wrappers.TransformReward",
    ),
)

# Gymnasium's own that reset into the Box2D world of the episode before. LunarLander makes a new one; CarRacing, where
# nothing touches, gave the same bits in an old one.
_ONE_WORLD = ("gymnasium.envs.box2d.bipedal_walker",)


class NewWorld(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Starts each episode of BipedalWalker in a Box2D world of its own.

    A world in which bodies were made and destroyed gives other bits than a new one. The ids have it already; what a
    function makes needs it: ``daskrl.envs.NewWorld(gymnasium.make("BipedalWalker-v3"))``.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        game: Any = self.env.unwrapped
        game._destroy()
        game.world = type(game.world)(gravity=game.world.gravity)
        return super().reset(seed=seed, options=options)


def in_new_worlds(env: Environment) -> Environment:
    """An environment whose episodes begin alike, where that is known to need `NewWorld`."""
    return NewWorld(env) if type(env.unwrapped).__module__ in _ONE_WORLD else env


_LIVING: weakref.WeakValueDictionary[int, Environment] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def remembers(env: Environment) -> str | None:
    """How what is known to keep something beyond an episode breaks the promise, and what to use instead."""
    for wrapper in _chain(env):
        for kind, instead in _REMEMBERING:
            if isinstance(wrapper, kind) and wrapper.update_running_mean:
                return (
                    f"{type(wrapper).__name__} keeps statistics of all its episodes, each environment its own, so what "
                    f"an episode gives depends on those before it and on where they ran. Leave the wrapper out: "
                    f"{instead}."
                )
    game = type(env.unwrapped)
    if game.__module__ in _ONE_WORLD and not any(isinstance(wrapper, NewWorld) for wrapper in _chain(env)):
        return (
            f"{game.__name__} resets into the Box2D world of the episode before, which gives other bits than a new "
            "one. Give its id, or wrap it: daskrl.envs.NewWorld(gymnasium.make(...))."
        )
    return None


def _chain(env: Any) -> Iterator[Environment]:
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def claim(env: Environment) -> list[Environment]:
    """Take an environment, with those it is made of, as one of this process that is in use; give them to `release`.

    Raises
    ------
    ConfigError
        One of them is in use already: by another environment of this stream, of another one, or of an evaluation.
    """
    within = list(_environments(env))
    with _LOCK:
        for path, inner in within:
            if _LIVING.get(id(inner)) is inner:
                raise ConfigError(one_object(path, inner))
        for _, inner in within:
            _LIVING[id(inner)] = inner
    return [inner for _, inner in within]


def release(claimed: Sequence[Environment]) -> None:
    """Environments that were claimed are in use no more."""
    with _LOCK:
        for inner in claimed:
            _LIVING.pop(id(inner), None)


class Turns:
    """Whose turn it is to step: of environments of one kind that return the same array, one at a time.

    Threads of one process step environments side by side. Where two environments return the same array, list or dict,
    one of them would write to it before the other's result is copied. Until two of a class were seen, they take turns.
    """

    def __init__(self) -> None:
        self._all, self._lock = threading.Lock(), threading.Lock()
        self._shared = self._apart = False
        # Held, so that no other array can have the address of one of them.
        self._shown: weakref.WeakKeyDictionary[object, list[Any]] = weakref.WeakKeyDictionary()

    def turn(self, own: threading.Lock) -> threading.Lock:
        """The lock to hold while an environment steps and its result is copied: that of all, or a stream's ``own``."""
        return own if self._apart and not self._shared else self._all

    def saw(self, stream: object, observations: Sequence[Any], stepped: bool) -> None:
        """Note the newest observation of each environment of a stream, as they returned it."""
        with self._lock:
            self._shown[stream] = list(observations)
            if self._shared:
                return
            found: set[int] = set()
            for observation in itertools.chain(*self._shown.values()):
                addresses = set(_addresses(observation))
                self._shared |= not found.isdisjoint(addresses)
                found |= addresses
            self._apart |= stepped and sum(map(len, self._shown.values())) > 1

    def gone(self, stream: object) -> None:
        with self._lock:
            self._shown.pop(stream, None)

    def given_up(self) -> None:
        """An environment hangs, perhaps while it is its turn: others do not wait for it."""
        self._all = threading.Lock()


def _addresses(observation: Any) -> Iterator[int]:
    """Where the arrays and containers of an observation lie in memory; of a view, the array it is of."""
    if isinstance(observation, np.ndarray):
        while isinstance(observation.base, np.ndarray):
            observation = observation.base
        yield observation.__array_interface__["data"][0]
    elif isinstance(observation, dict | list | tuple):
        if not isinstance(observation, tuple):
            yield id(observation)
        for part in observation.values() if isinstance(observation, dict) else observation:
            yield from _addresses(part)


_TURNS: weakref.WeakKeyDictionary[type[Any], Turns] = weakref.WeakKeyDictionary()


def turns(env: Environment) -> Turns:
    """The `Turns` that all environments of a class in this process share."""
    with _LOCK:
        return _TURNS.setdefault(type(env.unwrapped), Turns())


def given_up() -> None:
    with _LOCK:
        for of_kind in _TURNS.values():
            of_kind.given_up()


def same_object(first: Environment, second: Environment) -> str | None:
    """What to say where two environments are the same object, or hold the same environment."""
    held = {id(inner) for _, inner in _environments(first)}
    return next((one_object(path, inner) for path, inner in _environments(second) if id(inner) in held), None)


def one_object(path: str, inner: Environment) -> str:
    return (
        f"env: two calls gave one object for two environments: {path}, a {type(inner).__name__}. A run steps many of "
        "them side by side, each from a seed of its own. Make the environment inside the function, without a cache or "
        "a global object: def make(): return gymnasium.make('CartPole-v1')"
    )


def in_common(envs: Sequence[Environment]) -> str:
    """A sentence on objects that several environments hold, which steps may change; empty where there are none.

    For messages: whether a step changes one of them, and whether that matters, only another run of it shows.
    """
    seen: dict[int, str] = {}
    named: dict[str, str] = {}
    for env in envs:
        mine: dict[int, str] = {}
        for path, value in _reachable(env, of_classes=True):
            if _may_change(value):
                mine.setdefault(id(value), f"{path.removeprefix('env.')} ({type(value).__name__})")
        named.update({shown: shown for key, shown in mine.items() if key in seen})
        seen.update(mine)
    return f" Its environments have in common: {', '.join(list(named)[:5])}." if named else ""


def _may_change(value: Any) -> bool:
    if isinstance(value, list | dict | set):
        return bool(value)
    return isinstance(value, np.ndarray | np.random.Generator | np.random.RandomState) or hasattr(value, "__dict__")


def _environments(env: Environment) -> Iterator[tuple[str, Environment]]:
    """An environment and those that it holds, however deep, each with where it is."""
    for path, value in _reachable(env, of_classes=False):
        if isinstance(value, gymnasium.Env):
            yield path, value


_NO_STATE = (
    enum.Enum,
    gymnasium.Space,
    gymnasium.envs.registration.EnvSpec,
    type,
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
)


def _reachable(env: Environment, *, of_classes: bool) -> Iterator[tuple[str, Any]]:
    """The objects an environment holds in attributes and containers, each once, with where it is.

    Parameters
    ----------
    of_classes : also what the classes of environments that are not gymnasium's hold for all of theirs.
    """
    waiting: deque[tuple[str, Any, int]] = deque([("env", env, 0), ("env.unwrapped", env.unwrapped, 0)])
    seen: set[int] = set()
    while waiting and len(seen) < _MANY:
        path, value, depth = waiting.popleft()
        if id(value) in seen or isinstance(value, _NO_STATE):
            continue
        if callable(value) and not isinstance(value, gymnasium.Env):
            continue
        seen.add(id(value))
        yield path, value
        if depth < _DEEP:
            below = depth if isinstance(value, gymnasium.Wrapper) else depth + 1
            parts = itertools.islice(_parts(value, of_classes), _MANY)
            waiting.extend((path + name, part, below) for name, part in parts)


def _parts(value: Any, of_classes: bool) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r:.40}]", part) for key, part in list(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif str(getattr(type(value), "__module__", "builtins")).partition(".")[0] not in ("builtins", "numpy", "torch"):
        try:
            held = dict(vars(value))
        except Exception:  # it has none, or pretends to be another object
            return
        yield from ((f".{name}", part) for name, part in held.items())
        if of_classes and isinstance(value, gymnasium.Env) and not type(value).__module__.startswith("gymnasium"):
            for cls in type(value).__mro__:
                if not cls.__module__.startswith(("gymnasium", "builtins", "typing")):
                    yield from ((f".{name}", part) for name, part in vars(cls).items() if name not in _OF_CLASSES)


_OF_CLASSES = ("metadata", "__dict__", "__weakref__", "__annotations__", "__orig_bases__", "__parameters__")
