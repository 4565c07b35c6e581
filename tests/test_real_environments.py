"""Real environments of every kind: rebuilt and run twice to the same bits, and an algorithm that acts in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import daskrl
from daskrl import envs
from daskrl.algorithms import by_name
from daskrl.envs.source import source
from daskrl.errors import ConfigError

SMALL: dict[str, Any] = {"hidden": (8,), "learning_starts": 16, "batch_size": 8, "window": 320}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Acrobot-v1": ("", "dqn", SMALL),
    "LunarLander-v3": ("Box2D", "c51", {**SMALL, "atoms": 11}),
    "BipedalWalker-v3": ("Box2D", "sac", {**SMALL, "replay_ratio": 2.0}),
    "HalfCheetah-v5": ("mujoco", "td3", {**SMALL, "replay_ratio": 2.0}),
    "Reacher-v5": ("mujoco", "ppo", {"batch_size": 16, "epochs": 2}),
    "ALE/Pong-v5": ("ale_py", "impala", {}),
    "MinAtar/Breakout-v1": ("minatar", "qr-dqn", {**SMALL, "quantiles": 5}),
    "highway_env:highway-fast-v0": ("highway_env", "dqn", SMALL),
    "gym_anytrading:stocks-v0": ("gym_anytrading", "r2d2", {**SMALL, "lstm": 4, "n_step": 2}),
}


@pytest.mark.parametrize("env", list(CASES))
def test_a_run_is_rebuilt_to_the_same_bits(tmp_path: Path, env: str) -> None:
    package, name, settings = CASES[env]
    if package:
        pytest.importorskip(package)

    def start(store: Path) -> daskrl.Run:
        return daskrl.train(
            by_name(name)(**settings), env, store=store, env_steps=5 * 16, seed=1, streams=2, envs_per_stream=2,
            fragment_steps=4, recheck_every=4, checkpoint_every=2, weights_every=2, progress=False,
        )  # fmt: skip

    whole = start(tmp_path / "whole").wait()
    run = start(tmp_path / "stopped")
    for report in run:
        if report.weights_version == 3:
            break
    resumed = daskrl.resume(tmp_path / "stopped", progress=False).wait()
    assert resumed.store.digest() == whole.store.digest()
    assert whole.store.promise_off() == []
    assert daskrl.Store.open(tmp_path / "whole").summary()["learner_updates"] > 0


WORLDS = {"BipedalWalker-v3": 45, "BipedalWalkerHardcore-v3": 45, "LunarLander-v3": 60}


@pytest.mark.parametrize("env", list(WORLDS))
def test_an_episode_in_a_box2d_world_is_that_of_a_new_environment(env: str) -> None:
    pytest.importorskip("Box2D")
    factory = source(env).factory
    later = factory()
    for seed in range(4):
        new = factory()
        for now, then in zip(_episode(later, seed, WORLDS[env]), _episode(new, seed, WORLDS[env]), strict=True):
            np.testing.assert_array_equal(now, then)
        new.close()
    later.close()


def _episode(env: Any, seed: int, steps: int) -> list[Any]:
    observation, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    found = [observation]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        found += [observation, reward]
        if terminated or truncated:
            break
    return found


def test_a_function_that_makes_a_walker_is_told_what_to_wrap_it_in(tmp_path: Path) -> None:
    pytest.importorskip("Box2D")

    def bare() -> Any:
        return gymnasium.make("BipedalWalker-v3")

    def wrapped() -> Any:
        return gymnasium.wrappers.ClipReward(envs.NewWorld(bare()), -1, 1)

    run = {"store": tmp_path / "run", "env_steps": 16, "progress": False}
    with pytest.raises(ConfigError, match=r"BipedalWalker resets into .*daskrl\.envs\.NewWorld\(gymnasium\.make"):
        daskrl.train(by_name("sac")(hidden=(8,)), bare, **run)
    assert daskrl.train(by_name("sac")(hidden=(8,)), wrapped, **run).source.remembers is None
