"""Every built-in algorithm passes the tests that algorithms inherit (DQN's are in test_testing.py).

Each learns a toy problem, resumes to the same bits, and draws from the generators that it is given alone.
"""

from __future__ import annotations

from typing import Any

from daskrl.algorithms import BUILT_IN, C51, DQN, IMPALA, PPO, QRDQN, R2D2, SAC, TD3, QLearning, Rainbow
from daskrl.testing import AlgorithmTests, Corridor, Reach

REPLAY: dict[str, Any] = {"hidden": (32,), "learning_starts": 200, "window": 2048, "replay_ratio": 8.0}
QUICK: dict[str, Any] = {**REPLAY, "epsilon_steps": 2000}
RETURNS: dict[str, Any] = {"atoms": 21, "v_min": -1.5, "v_max": 1.5}
TO_REACH: dict[str, Any] = {**REPLAY, "batch_size": 32, "learning_rate": 2e-3, "discount": 0.9}


class TestQLearning(AlgorithmTests):
    def env() -> Any:  # type: ignore[misc]
        return Corridor(numbered=True)

    def make(self) -> Any:
        return QLearning(epsilon_steps=2000)


class TestC51(AlgorithmTests):
    def make(self) -> Any:
        return C51(**QUICK, **RETURNS)


class TestQRDQN(AlgorithmTests):
    def make(self) -> Any:
        return QRDQN(**{**QUICK, "hidden": (64,), "replay_ratio": 16.0}, quantiles=10, n_step=3)


class TestRainbow(AlgorithmTests):
    def make(self) -> Any:
        return Rainbow(**REPLAY, **RETURNS)


class TestR2D2(AlgorithmTests):
    env_steps = 6000

    def make(self) -> Any:
        settings = {**QUICK, "replay_ratio": 2.0, "learning_rate": 1e-3}
        return R2D2(**settings, lstm=32, n_step=3, target_update=50)


class TestPPO(AlgorithmTests):
    def make(self) -> Any:
        return PPO(learning_rate=3e-3, epochs=4, entropy_coef=0.01)


class TestPPOWithAnLSTM(AlgorithmTests):
    def make(self) -> Any:
        return PPO(learning_rate=3e-3, epochs=2, entropy_coef=0.01, lstm=16, hidden=(32,))


class TestIMPALA(AlgorithmTests):
    def make(self) -> Any:
        return IMPALA(learning_rate=3e-3, batch_lanes=2)


class TestSAC(AlgorithmTests):
    env, env_steps, score = Reach, 6000, -1.5

    def make(self) -> Any:
        return SAC(**TO_REACH, temperature=0.1)


class TestTD3(AlgorithmTests):
    env, env_steps, score = Reach, 6000, -1.5

    def make(self) -> Any:
        return TD3(**TO_REACH, exploration_noise=0.3, target_share=0.01)


def test_every_built_in_algorithm_is_here_or_in_test_testing() -> None:
    here = {type(tests().make()) for name, tests in globals().items() if name.startswith("Test")}
    assert here == set(BUILT_IN.values()) - {DQN}
