"""Rounds of random numbers, given to learners without a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from daskrl.algorithms.base import Setup
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of

OBSERVATION, DISCRETE = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(4)


BOX = spaces.Box(-1, 1, (2,), np.float32)


def setup(action: spaces.Space[Any] = DISCRETE, lag: int = 1) -> Setup:
    return Setup(spec_of(OBSERVATION, action), Schedule(2, 2, 8, lag))


def played(seed: int, action: spaces.Space[Any] = DISCRETE, odds: float = 0.25) -> list[dict[str, np.ndarray]]:
    """A round of two streams, in which some episodes are terminated and some truncated."""
    random, fragments = np.random.default_rng(seed), []
    for _ in range(2):
        ended, cut = random.random((8, 2)) < odds, random.random((8, 2)) < 0.5
        if isinstance(action, spaces.Discrete):
            actions: np.ndarray = random.integers(0, 4, (8, 2))
        else:
            actions = random.normal(size=(8, 2, 2)).astype(np.float32)
        fragments.append(
            {
                "observation": random.normal(size=(9, 2, 3)).astype(np.float32),
                "final_observation": random.normal(size=(16, 3)).astype(np.float32),
                "action": actions,
                "reward": random.normal(0, 2, (8, 2)).astype(np.float32),
                "terminated": ended & ~cut,
                "truncated": ended & cut,
                "episode_step": np.full(2, 3),
                "continues": np.asarray(True),
                "behavior_log_prob": random.normal(-1, 0.5, (8, 2)).astype(np.float32),
            }
        )
    return fragments
