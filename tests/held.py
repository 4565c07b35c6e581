"""Environments that hold values, for other processes to hold them again: ``python tests/held.py`` prints the tables."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import functools
import json
import pathlib
import random
import types
from typing import Any

import gymnasium
import numpy as np
import pandas
import torch

from daskrl.code.captured import Captured

REWARD = 1.0
WEIGHTS = {"distance": 0.5, "time": [1, 2, 3]}
SETTINGS = types.SimpleNamespace(scale=2.0, store="runs/1")


class Mode(enum.Enum):
    EASY = "easy"
    HARD = "hard"


@dataclasses.dataclass
class Config:
    size: int = 3
    goals: tuple[int, ...] = (1, 2)
    names: list[str] = dataclasses.field(default_factory=lambda: ["a"])


CONFIG = Config()


def reward_of(distance: float) -> float:
    return -REWARD * distance * WEIGHTS["distance"]  # type: ignore[operator]


class Base(gymnasium.Env[Any, Any]):
    bonus = 0.5
    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.count += 1
        reward = reward_of(float(action)) + self.bonus + SETTINGS.scale
        return np.full(1, self.count % 9, np.float32), reward, self.count >= 5, False, {}


class Scaled(Base):
    """A reward scale, or whatever else is held."""

    def __init__(self, held: Any = 1.0) -> None:
        self.held = held

    def step(self, action: Any) -> Any:
        observation, reward, over, cut, info = super().step(action)
        scale = self.held if isinstance(self.held, float) else 1.0
        return observation, reward * scale, over, cut, info


class Maker:
    """A callable object."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __call__(self) -> Scaled:
        return Scaled(self.held)

    def build(self) -> Scaled:
        return Scaled(self.held)

    @classmethod
    def of_class(cls) -> Scaled:
        return Scaled()


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


def in_closure(held: Any) -> Any:
    return lambda: Scaled(held)


def in_default(held: Any) -> Any:
    def make(value: Any = held) -> Scaled:
        return Scaled(value)

    return make


def in_keyword_default(held: Any) -> Any:
    def make(*, value: Any = held) -> Scaled:
        return Scaled(value)

    return make


def in_partial(held: Any) -> Any:
    return functools.partial(Scaled, held)


def in_keyword(held: Any) -> Any:
    return functools.partial(Scaled, held=held)


def in_instance(held: Any) -> Any:
    return Maker(held)


def in_method(held: Any) -> Any:
    return Maker(held).build


def in_nested(held: Any) -> Any:
    inner = functools.partial(in_closure(held))
    return lambda: [inner][0]()


def in_decorator(held: Any) -> Any:
    def scaled(function: Any) -> Any:
        @functools.wraps(function)
        def made() -> Scaled:
            env: Scaled = function()
            env.held = held
            return env

        return made

    return scaled(Scaled)


def in_attribute(held: Any) -> Any:
    def make() -> Scaled:
        return Scaled(make.held)  # type: ignore[attr-defined]

    make.held = held  # type: ignore[attr-defined]
    return make


def in_class(held: Any) -> Any:
    class Own(Scaled):
        value = held

        def __init__(self) -> None:
            super().__init__(self.value)

    return Own


def in_cached(held: Any) -> Any:
    @functools.lru_cache
    def make() -> Scaled:
        return Scaled(held)

    return make


PLACES = {name: made for name, made in list(globals().items()) if name.startswith("in_")}


class Plain:
    """No repr but its address."""

    def __init__(self, scale: float) -> None:
        self.scale = scale


def in_object(scale: float) -> Any:
    return functools.partial(Scaled, Plain(scale))


def in_frame(last: float) -> Any:
    """An environment of gym-anytrading on a frame in which one number differs."""
    import gym_anytrading  # type: ignore[import-untyped]  # noqa: F401 - registers stocks-v0

    columns = ["Open", "High", "Low", "Close"]
    df = pandas.DataFrame({name: np.linspace(1, 2, 40) + i for i, name in enumerate(columns)})
    df.iloc[20, 3] += last
    return lambda: gymnasium.make("stocks-v0", df=df, window_size=5, frame_bound=(5, 40))


def _torch() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())


def _large(middle: float) -> Any:
    array = np.zeros(100_000)
    array[50_000] = middle
    return array


# A value, and another of its kind that must be told from it.
def _by_type(value: Any) -> Any:
    @functools.singledispatch
    def of(x: Any) -> Any:
        return None

    of.register(int, lambda x: value)
    return of


VALUES: dict[str, tuple[Any, Any]] = {
    "float": (1.0, 5.0),
    "int or float": (1, 1.0),
    "int or bool": (1, True),
    "sign of zero": (0.0, -0.0),
    "str": ("a", "b"),
    "long str": ("a" * 999, "a" * 998 + "b"),
    "bytes": (b"a", b"b"),
    "None": (None, 0),
    "large int": (1 << 5000, 1 << 5001),
    "complex": (1j, 2j),
    "tuple": ((1, (2, [3])), (1, (2, [4]))),
    "list or tuple": ([1, 2], (1, 2)),
    "dict": ({"a": {0: 1}}, {"a": {0: 2}}),
    "order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "set": ({"a", "b", "c", "d", "e"}, {"a", "b", "c", "d", "f"}),
    "frozenset": (frozenset("abcdef"), frozenset("abcdeg")),
    "range": (range(3), range(4)),
    "slice": (slice(3), slice(4)),
    "array": (np.arange(3), np.arange(1, 4)),
    "dtype of an array": (np.arange(3), np.arange(3.0)),
    "shape of an array": (np.zeros((2, 3)), np.zeros((3, 2))),
    "middle of a large array": (_large(0.0), _large(1e-9)),
    "array of objects": (np.array([1, {"a": 2}], object), np.array([1, {"a": 3}], object)),
    "structured array": (np.array([(1, 2.0)], "i4,f8"), np.array([(1, 3.0)], "i4,f8")),
    "masked array": (np.ma.masked_array([1, 2], [True, False]), np.ma.masked_array([1, 2], [False, False])),
    "numpy scalar": (np.float32(1), np.float64(1)),
    "float or numpy scalar": (1.0, np.float64(1)),
    "tensor": (torch.arange(3), torch.arange(1, 4)),
    "tensor of bfloat16": (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([2.0], dtype=torch.bfloat16)),
    "large tensor": (torch.zeros(999), torch.ones(999)),
    "module": (_torch(), torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh())),
    "frame": (pandas.DataFrame({"a": [1.0, 2], "b": ["x", "y"]}), pandas.DataFrame({"a": [1.0, 2], "b": ["x", "z"]})),
    "index of a frame": (pandas.DataFrame({"a": [1]}, index=[0]), pandas.DataFrame({"a": [1]}, index=[1])),
    "dates of a frame": (
        pandas.DataFrame({"a": [1]}, index=pandas.to_datetime(["2024-01-01"])),
        pandas.DataFrame({"a": [1]}, index=pandas.to_datetime(["2024-01-02"])),
    ),
    "timestamp": (pandas.Timestamp("2024-01-01"), pandas.Timestamp("2024-01-02")),
    "time zone of a timestamp": (
        pandas.Timestamp("2024-01-01", tz="UTC"),
        pandas.Timestamp("2024-01-01", tz="Europe/Berlin"),
    ),
    "timedelta of pandas": (pandas.Timedelta(days=1), pandas.Timedelta(days=2)),
    "no time": (pandas.NaT, None),
    "time zone of a frame's dates": (
        pandas.DataFrame({"a": pandas.to_datetime(["2024-01-01"]).tz_localize("UTC")}),
        pandas.DataFrame({"a": pandas.to_datetime(["2024-01-01"]).tz_localize("Europe/Berlin")}),
    ),
    "categories": (pandas.Series(["a", "b"], dtype="category"), pandas.Series(["a", "c"], dtype="category")),
    "enum": (Mode.EASY, Mode.HARD),
    "dataclass": (Config(3), Config(4)),
    "dataclass, deep": (Config(names=["b"]), Config(names=["c"])),
    "slots": (Slotted(1, 2), Slotted(1, 3)),
    "namespace": (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
    "path": (pathlib.Path("a"), pathlib.Path("b")),
    "date": (datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1)),
    "timedelta": (datetime.timedelta(1), datetime.timedelta(2)),
    "generator of numpy": (np.random.default_rng(1), np.random.default_rng(2)),
    "generator of Python": (random.Random(1), random.Random(2)),
    "deque": (collections.deque([1], 3), collections.deque([1], 4)),
    "ordered dict": (collections.OrderedDict(a=1), collections.OrderedDict(a=2)),
    "default dict": (collections.defaultdict(int, a=1), collections.defaultdict(float, a=1)),
    "function": (reward_of, in_closure),
    "lambda": (lambda x: x + 1, lambda x: x + 2),
    "function of the library": (np.sin, np.cos),
    "built-in function": (len, max),
    "class": (Config, Slotted),
    "function by a key with an address": ({reward_of: lambda: 1}, {reward_of: lambda: 2}),
    "function by type": (_by_type(1), _by_type(2)),
    "method": (Maker(1).build, Maker(2).build),
    "space": (gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Box(0, 2, (2,))),
    "wrapper": (Scaled(1.0), Scaled(2.0)),
}  # fmt: skip


def table(name: str) -> dict[str, str]:
    return Captured({"make": in_closure(VALUES[name][0])}).table


if __name__ == "__main__":
    print(json.dumps({name: table(name) for name in VALUES}))
