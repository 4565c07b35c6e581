"""Real environments of every kind: rebuilt and run twice to the same bits, and an algorithm that acts in each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import daskrl
from daskrl.algorithms import by_name

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
