"""Environments that fail on cue. Importable as a module: ``environments:Walk-v0``, ``environments:walk``.

An environment given to a run travels by value, so what a test wants to change on the way is a file: a fault
lasts as long as the file ``while_exists`` is there.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Walk(gymnasium.Env[Any, Any]):
    """A walk of 4 to 19 steps on a line; each step costs the distance from the middle.

    Parameters
    ----------
    fault : what happens at step ``at`` of an episode: ``"raise"``, ``"nan_reward"``, ``"inf_reward"``,
        ``"nan_observation"``, ``"huge_reward"``, ``"hang"`` or ``"drift"`` (no step is ever the same again).
    while_exists : the fault lasts while this file exists; None is always.
    """

    def __init__(self, fault: str | None = None, at: int = 12, while_exists: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.fault, self.at, self.while_exists = fault, at, while_exists

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.length = int(self.np_random.integers(4, 20))
        self.count, self.position = 0, float(self.np_random.normal())
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.position += 0.1 * (2 * int(action) - 1) + 0.1 * float(self.np_random.normal())
        observation, reward = self._observation(), -abs(self.position)
        fault = self.fault if self.count == self.at else None
        if fault is not None and self.while_exists is not None and not Path(self.while_exists).exists():
            fault = None
        if fault == "raise":
            raise RuntimeError("the motor is jammed")
        if fault == "hang":
            threading.Event().wait()
        if fault == "drift":
            self.position += int.from_bytes(os.urandom(4), "little") / 2**32
        if fault == "nan_observation":
            observation = np.full(2, np.nan, np.float32)
        reward = {"nan_reward": np.nan, "inf_reward": np.inf, "huge_reward": 3e38}.get(fault or "", reward)
        ended = self.count >= self.length
        return observation, reward, ended and self.length % 2 == 0, ended and self.length % 2 == 1, {}

    def _observation(self) -> Any:
        return np.array([self.position, self.count / 20], np.float32)


def walk() -> Walk:
    """The walk without faults, as a callable."""
    return Walk()


class TextWalk(Walk):
    """An observation that has no fixed numeric shape."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(8)


class PushedWalk(Walk):
    """A continuous action, in which DQN cannot act."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


for _id, _class in (("Walk-v0", Walk), ("TextWalk-v0", TextWalk), ("PushedWalk-v0", PushedWalk)):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=_class)


class Picky(gymnasium.Env[Any, Any]):
    """Takes nothing but what its action space might have sampled, to the type, and does arithmetic on it."""

    def __init__(self, action: spaces.Space[Any]) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._compare(action, self.action_space.sample())
        assert self.action_space.contains(action)
        self.count += 1
        return np.full(2, self.count, np.float32), 1.0, self.count == 7, False, {}

    def _compare(self, taken: Any, sampled: Any) -> None:
        assert type(taken) is type(sampled), (taken, sampled)
        if isinstance(taken, dict):
            for key in sampled:
                self._compare(taken[key], sampled[key])
        elif isinstance(taken, tuple):
            for one, other in zip(taken, sampled, strict=True):
                self._compare(one, other)
        else:
            assert taken.dtype == sampled.dtype
            assert taken.shape == sampled.shape
            taken.item() if taken.shape == () else taken.tolist()
