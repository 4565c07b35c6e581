"""A small run of every built-in algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daskrl
from daskrl.algorithms import by_name

SMALL: dict[str, Any] = {"hidden": (16,), "learning_starts": 64, "batch_size": 8, "replay_ratio": 2.0, "window": 640}


CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "q-learning": ({}, "FrozenLake-v1", 1),
    "dqn": ({**SMALL, "priority_alpha": 0.6, "n_step": 3}, "CartPole-v1", 1),
    "c51": ({**SMALL, "atoms": 11}, "CartPole-v1", 1),
    "qr-dqn": ({**SMALL, "quantiles": 5}, "CartPole-v1", 2),
    "rainbow": ({**SMALL, "atoms": 11}, "CartPole-v1", 1),
    "r2d2": ({**SMALL, "lstm": 8, "n_step": 3}, "CartPole-v1", 1),
    "ppo": ({"epochs": 2, "batch_size": 32, "lstm": 8, "normalise_reward": True}, "CartPole-v1", 0),
    "impala": ({"normalise_observation": True, "lstm": 8, "batch_lanes": 4}, "CartPole-v1", 2),
    "sac": (SMALL, "Pendulum-v1", 1),
    "td3": (SMALL, "Pendulum-v1", 1),
}


TORCH = [name for name in CASES if name != "q-learning"]


def train(store: Path, name: str, env_steps: int, **settings: Any) -> daskrl.Run:
    given, env, lag = CASES[name]
    return daskrl.train(
        by_name(name)(**{**given, **settings}), env, store=store, env_steps=env_steps, seed=5, streams=2,
        envs_per_stream=2, fragment_steps=16, lag=lag, checkpoint_every=3, progress=False,
    ).wait()  # fmt: skip
