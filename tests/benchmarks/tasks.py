"""What `learning.py` runs: each task's environment, budget and settings, and what it is compared with.

Settings of references are those of RL Zoo where it has some for the algorithm and environment, save that SAC and TD3
start to learn sooner. The budget is the same on both sides, and for learning from replay the number of updates and
their batch size are too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np


@dataclass(frozen=True)
class Problem:
    """An environment, a budget, and what counts as learned.

    Attributes
    ----------
    env : a Gymnasium id, or a name in ``ENVIRONMENTS``.
    target : mean return of greedy episodes that is wanted.
    training_target : mean return of the newest ``smoothing`` training episodes, exploration included, whose first
        time is the time to the score.
    """

    env: str
    env_steps: int
    target: float
    training_target: float
    smoothing: int = 100
    episodes: int = 100


@dataclass(frozen=True)
class Task:
    """One algorithm of daskrl on one problem.

    Attributes
    ----------
    settings, schedule : arguments of the algorithm, and of `daskrl.train`, that differ from the defaults.
    against : names in ``REFERENCES``; the first is the same algorithm where the other library has it.
    """

    problem: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, int] = field(default_factory=dict)
    against: tuple[str, ...] = ()
    seeds: int = 5


@dataclass(frozen=True)
class Reference:
    """One algorithm of SB3 or SB3-contrib on one problem.

    Attributes
    ----------
    settings : arguments of the algorithm. A pair ``("linear", x)`` falls from x to 0 over the run.
    """

    problem: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "MlpPolicy"
    envs: int = 1
    normalise: bool = False
    seeds: int = 5


class WithoutVelocity(gymnasium.ObservationWrapper[Any, Any, Any]):
    """CartPole's positions only, so that a policy without memory cannot tell where the pole is going."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gymnasium.spaces.Box)
        self.observation_space = gymnasium.spaces.Box(space.low[[0, 2]], space.high[[0, 2]], dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[[0, 2]]


def cartpole_without_velocity() -> gymnasium.Env[Any, Any]:
    return WithoutVelocity(gymnasium.make("CartPole-v1"))


ENVIRONMENTS = {"CartPole without velocities": cartpole_without_velocity}

PROBLEMS = {
    "taxi": Problem("Taxi-v4", 500_000, 7.0, 5.0, episodes=1000),
    "frozenlake": Problem("FrozenLake-v1", 400_000, 0.7, 0.5, episodes=1000),
    "cartpole": Problem("CartPole-v1", 50_000, 475, 400, 20),
    "cartpole-100k": Problem("CartPole-v1", 100_000, 475, 400, 20),
    "cartpole-200k": Problem("CartPole-v1", 200_000, 475, 400, 20),
    "no-velocity": Problem("CartPole without velocities", 100_000, 475, 400, 20),
    "acrobot": Problem("Acrobot-v1", 300_000, -100, -100),
    "lunarlander": Problem("LunarLander-v3", 500_000, 200, 180),
    "lunarlander-200k": Problem("LunarLander-v3", 200_000, 200, 100),
    "minatar-breakout": Problem("MinAtar/Breakout-v1", 200_000, 5, 3),
    "pendulum": Problem("Pendulum-v1", 20_000, -200, -200, 10),
    "halfcheetah": Problem("HalfCheetah-v5", 30_000, 1500, 1500, 5),
}

_SYNCHRONOUS_32 = {"streams": 2, "envs_per_stream": 4, "fragment_steps": 32}
_OFF_POLICY = {"streams": 1, "envs_per_stream": 4, "fragment_steps": 16}
_MINATAR: dict[str, Any] = {
    "batch_size": 32, "learning_rate": 2.5e-4, "window": 100_000, "replay_ratio": 8.0, "hidden": (128,),
    "learning_starts": 5000, "target_update": 250, "epsilon_steps": 100_000, "epsilon_end": 0.02,
}  # fmt: skip
_LUNARLANDER: dict[str, Any] = {
    "learning_rate": 5e-4, "learning_rate_end": 1e-5, "learning_rate_updates": 120_000, "batch_size": 128,
    "window": 300_000, "replay_ratio": 32.0, "target_update": 500, "epsilon_steps": 60_000, "epsilon_end": 0.02,
}  # fmt: skip
_LUNARLANDER_200K: dict[str, Any] = {  # the reference's settings; its target moves every 250 steps, an update is four
    "learning_rate": 6.3e-4, "batch_size": 64, "replay_ratio": 16.0, "window": 200_000, "target_update": 62,
    "epsilon_steps": 24_000, "epsilon_end": 0.1,
}  # fmt: skip
_CARTPOLE = {"n_step": 3, "learning_rate_end": 1e-4, "learning_rate_updates": 24_000}
_NOISY = {"epsilon_start": 0.0, "epsilon_end": 0.0}

TASKS = {
    "q-learning-taxi": Task("taxi", "q-learning", against=("optimum-taxi",)),
    "q-learning-frozenlake": Task(
        "frozenlake", "q-learning", {"learning_rate_decay": 0.02}, against=("optimum-frozenlake",)
    ),
    "cartpole": Task("cartpole", "dqn", _CARTPOLE, against=("sb3-dqn-cartpole",)),
    "c51-cartpole": Task("cartpole", "c51", _CARTPOLE, against=("sb3-qrdqn-cartpole", "sb3-dqn-cartpole")),
    "qr-dqn-cartpole": Task("cartpole", "qr-dqn", {**_CARTPOLE, "n_step": 1}, against=("sb3-qrdqn-cartpole",)),
    "rainbow-cartpole": Task(
        "cartpole", "rainbow", {"noise": 0.2, "learning_rate_end": 1e-4, "learning_rate_updates": 24_000},
        against=("sb3-qrdqn-cartpole", "sb3-dqn-cartpole"),
    ),
    "lunarlander": Task("lunarlander", "dqn", _LUNARLANDER, against=("sb3-dqn-lunarlander",)),
    "c51-lunarlander": Task(
        "lunarlander-200k", "c51", {**_LUNARLANDER_200K, "v_min": -400.0, "v_max": 400.0},
        against=("sb3-qrdqn-lunarlander", "sb3-dqn-lunarlander-200k"),
    ),
    "qr-dqn-lunarlander": Task(
        "lunarlander-200k", "qr-dqn", {**_LUNARLANDER_200K, "double": False, "max_grad_norm": None},
        against=("sb3-qrdqn-lunarlander",),
    ),
    "rainbow-lunarlander": Task(
        "lunarlander-200k", "rainbow", {**_LUNARLANDER_200K, **_NOISY, "v_min": -400.0, "v_max": 400.0},
        against=("sb3-qrdqn-lunarlander", "sb3-dqn-lunarlander-200k"), seeds=3,
    ),
    "minatar-breakout": Task("minatar-breakout", "dqn", {**_MINATAR, "n_step": 3}, against=("sb3-dqn-minatar",)),
    "c51-minatar-breakout": Task(
        "minatar-breakout", "c51", {**_MINATAR, "atoms": 51, "v_min": -1.0, "v_max": 10.0},
        against=("sb3-qrdqn-minatar", "sb3-dqn-minatar"),
    ),
    "qr-dqn-minatar-breakout": Task(
        "minatar-breakout", "qr-dqn", _MINATAR, against=("sb3-qrdqn-minatar",)
    ),
    "rainbow-minatar-breakout": Task(
        "minatar-breakout", "rainbow", {**_MINATAR, **_NOISY, "atoms": 51, "v_min": -1.0, "v_max": 10.0},
        against=("sb3-qrdqn-minatar", "sb3-dqn-minatar"), seeds=3,
    ),
    "r2d2-no-velocity": Task(
        "no-velocity", "r2d2",
        {
            "batch_size": 16, "replay_ratio": 32.0, "learning_rate": 1e-3, "learning_rate_end": 1e-4,
            "learning_rate_updates": 12_000, "target_update": 200, "epsilon_steps": 10_000, "epsilon_end": 0.02,
            "lstm": 64, "hidden": (64,),
        },
        {"fragment_steps": 16}, against=("sb3-recurrent-ppo-no-velocity",),
    ),
    "ppo-lstm-no-velocity": Task(
        "no-velocity", "ppo",
        {
            "discount": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3, "anneal_steps": 100_000, "clip_anneal": True,
            "epochs": 20, "batch_size": 256, "lstm": 64, "hidden": (64, 64), "normalise_observation": True,
            "normalise_reward": True,
        },
        _SYNCHRONOUS_32, against=("sb3-recurrent-ppo-no-velocity",), seeds=10,
    ),
    "ppo-cartpole": Task(
        "cartpole-100k", "ppo",
        {
            "discount": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3, "anneal_steps": 100_000, "clip_anneal": True,
            "epochs": 20, "batch_size": 256,
        },
        _SYNCHRONOUS_32, against=("sb3-ppo-cartpole",),
    ),
    "ppo-acrobot": Task(
        "acrobot", "ppo", {"gae_lambda": 0.94, "epochs": 4, "normalise_observation": True, "normalise_reward": True},
        {"streams": 4, "envs_per_stream": 4, "fragment_steps": 256}, against=("sb3-ppo-acrobot",),
    ),
    "ppo-lunarlander": Task(
        "lunarlander", "ppo", {"discount": 0.999, "gae_lambda": 0.98, "epochs": 4, "entropy_coef": 0.01},
        {"streams": 4, "envs_per_stream": 4, "fragment_steps": 1024}, against=("sb3-ppo-lunarlander",),
    ),
    "impala-cartpole": Task(
        "cartpole-200k", "impala",
        {
            "learning_rate": 1e-3, "anneal_steps": 200_000, "max_grad_norm": 0.5, "batch_lanes": 4,
            "normalise_observation": True, "normalise_reward": True,
        },
        {"streams": 2, "envs_per_stream": 8, "fragment_steps": 16}, against=("sb3-a2c-cartpole",),
    ),
    "impala-acrobot": Task(
        "acrobot", "impala", {"normalise_observation": True, "normalise_reward": True},
        {"streams": 4, "envs_per_stream": 4, "fragment_steps": 20}, against=("sb3-a2c-acrobot", "sb3-ppo-acrobot"),
    ),
    "impala-lunarlander": Task(
        "lunarlander", "impala",
        {
            "learning_rate": 1e-3, "anneal_steps": 500_000, "entropy_coef": 0.01, "max_grad_norm": 0.5,
            "batch_lanes": 2, "vtrace_lambda": 0.95, "normalise_observation": True, "normalise_reward": True,
        },
        {"streams": 2, "envs_per_stream": 4, "fragment_steps": 32},
        against=("sb3-a2c-lunarlander", "sb3-ppo-lunarlander"),
    ),
    "sac-pendulum": Task(
        "pendulum", "sac",
        {"learning_rate": 1e-3, "batch_size": 128, "replay_ratio": 128, "learning_starts": 500}, _OFF_POLICY,
        against=("sb3-sac-pendulum",),
    ),
    "td3-pendulum": Task(
        "pendulum", "td3",
        {"discount": 0.98, "batch_size": 128, "replay_ratio": 128, "learning_starts": 500, "hidden": (400, 300)},
        _OFF_POLICY, against=("sb3-td3-pendulum",),
    ),
    "sac-halfcheetah": Task("halfcheetah", "sac", {}, _OFF_POLICY, against=("sb3-sac-halfcheetah",), seeds=3),
    "td3-halfcheetah": Task(
        "halfcheetah", "td3", {"hidden": (400, 300)}, _OFF_POLICY, against=("sb3-td3-halfcheetah",), seeds=3
    ),
}  # fmt: skip

_SB3_DQN_CARTPOLE: dict[str, Any] = {
    "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000, "train_freq": 256,
    "gradient_steps": 128, "target_update_interval": 10, "exploration_fraction": 0.16, "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
}  # fmt: skip
_SB3_DQN_LUNARLANDER: dict[str, Any] = {
    "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 300_000, "learning_starts": 1000,
    "target_update_interval": 250, "train_freq": 4, "gradient_steps": 1, "exploration_fraction": 0.12,
    "exploration_final_eps": 0.1, "policy_kwargs": {"net_arch": [256, 256]},
}  # fmt: skip
_SB3_DQN_MINATAR: dict[str, Any] = {
    "learning_rate": 2.5e-4, "batch_size": 32, "buffer_size": 100_000, "learning_starts": 5000,
    "target_update_interval": 1000, "train_freq": 4, "gradient_steps": 1, "exploration_fraction": 0.5,
    "exploration_final_eps": 0.02, "policy_kwargs": {"features": "minatar", "net_arch": [128]},
}  # fmt: skip

REFERENCES = {
    "optimum-taxi": Reference("taxi", "optimum", seeds=1),
    "optimum-frozenlake": Reference("frozenlake", "optimum", seeds=1),
    "sb3-dqn-cartpole": Reference("cartpole", "DQN", _SB3_DQN_CARTPOLE),
    "sb3-qrdqn-cartpole": Reference(
        "cartpole", "QRDQN",
        {**_SB3_DQN_CARTPOLE, "policy_kwargs": {"net_arch": [256, 256], "n_quantiles": 10}},
    ),
    "sb3-dqn-lunarlander": Reference("lunarlander", "DQN", _SB3_DQN_LUNARLANDER, seeds=3),
    "sb3-dqn-lunarlander-200k": Reference("lunarlander-200k", "DQN", {**_SB3_DQN_LUNARLANDER, "batch_size": 64}),
    "sb3-qrdqn-lunarlander": Reference(
        "lunarlander-200k", "QRDQN",
        {**_SB3_DQN_LUNARLANDER, "batch_size": 64, "policy_kwargs": {"net_arch": [256, 256], "n_quantiles": 50}},
    ),
    "sb3-dqn-minatar": Reference("minatar-breakout", "DQN", _SB3_DQN_MINATAR),
    "sb3-qrdqn-minatar": Reference(
        "minatar-breakout", "QRDQN",
        {**_SB3_DQN_MINATAR, "policy_kwargs": {"features": "minatar", "net_arch": [128], "n_quantiles": 50}},
    ),
    "sb3-recurrent-ppo-no-velocity": Reference(
        "no-velocity", "RecurrentPPO",
        {
            "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20,
            "learning_rate": ("linear", 1e-3), "clip_range": ("linear", 0.2),
            "policy_kwargs": {
                "ortho_init": False, "activation": "ReLU", "lstm_hidden_size": 64, "enable_critic_lstm": True,
                "net_arch": [64],
            },
        },
        policy="MlpLstmPolicy", envs=8, normalise=True,
    ),
    "sb3-ppo-cartpole": Reference(
        "cartpole-100k", "PPO",
        {
            "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20,
            "learning_rate": ("linear", 1e-3), "clip_range": ("linear", 0.2),
        },
        envs=8,
    ),
    "sb3-ppo-acrobot": Reference(
        "acrobot", "PPO", {"n_steps": 256, "gae_lambda": 0.94, "n_epochs": 4}, envs=16, normalise=True
    ),
    "sb3-ppo-lunarlander": Reference(
        "lunarlander", "PPO",
        {"n_steps": 1024, "batch_size": 64, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.01},
        envs=16,
    ),
    "sb3-a2c-cartpole": Reference("cartpole-200k", "A2C", envs=8),
    "sb3-a2c-acrobot": Reference("acrobot", "A2C", envs=16, normalise=True),
    "sb3-a2c-lunarlander": Reference(
        "lunarlander", "A2C", {"gamma": 0.995, "learning_rate": ("linear", 8.3e-4), "ent_coef": 1e-5}, envs=8
    ),
    "sb3-sac-pendulum": Reference(
        "pendulum", "SAC", {"learning_rate": 1e-3, "learning_starts": 500, "batch_size": 128}
    ),
    "sb3-td3-pendulum": Reference(
        "pendulum", "TD3",
        {"gamma": 0.98, "buffer_size": 200_000, "learning_starts": 500, "noise": 0.1, "batch_size": 128},
    ),
    "sb3-sac-halfcheetah": Reference("halfcheetah", "SAC", {"learning_starts": 1000}, seeds=3),
    "sb3-td3-halfcheetah": Reference(
        "halfcheetah", "TD3", {"learning_starts": 1000, "noise": 0.1, "batch_size": 256}, seeds=3
    ),
}  # fmt: skip
