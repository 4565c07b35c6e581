"""Robotics, driving and trading: one environment of each, trained, and played beside random actions.

    pip install -c constraints.txt -e '.[mujoco,driving,trading]'
    python examples/real_environments.py robotics     # or driving, or trading

- robotics: SAC brings the tip of a two-link MuJoCo arm to a target (Reacher-v5).
- driving: DQN keeps a car fast and unhurt among others on a motorway (highway-env, with its authors' DQN settings).
- trading: PPO buys and sells a stock from day to day (gym-anytrading), and is played on later days than it learned
  from, beside holding the stock all along. The return is what the price rose between buying and selling; fees are left
  out, and one stock's history is no evidence of skill.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean
from typing import Any

import gymnasium
import numpy as np
from distributed import Client

import daskrl
from daskrl import clusters

Environment = str | Callable[[], gymnasium.Env]


def stocks(first: int, last: int) -> Callable[[], gymnasium.Env]:
    """Trade on the days from ``first`` to ``last``; an observation is by how many percent the price rose on 30 days."""

    def make() -> gymnasium.Env:
        env = gymnasium.make("gym_anytrading:stocks-v0", window_size=30, frame_bound=(first, last))
        percent = gymnasium.spaces.Box(-np.inf, np.inf, (30,), np.float32)
        return gymnasium.wrappers.TransformObservation(env, lambda day: day[:, 1] / day[:, 0] * 100, percent)

    return make


@dataclass
class Example:
    """An environment with what learns in it; it is played in ``unseen``, if that is another."""

    env: Environment
    algorithm: daskrl.Algorithm
    env_steps: int
    schedule: dict[str, int]
    unseen: Environment | None = None
    episodes: int = 20
    beside: dict[str, Callable[[gymnasium.Env], float]] = field(default_factory=dict)  # other returns to compare with


EXAMPLES = {
    "robotics": Example(
        env="Reacher-v5",
        algorithm=daskrl.SAC(learning_rate=1e-3, batch_size=128, replay_ratio=128, learning_starts=500),
        env_steps=20_000,
        schedule={"streams": 1, "envs_per_stream": 4, "fragment_steps": 16},
    ),
    "driving": Example(
        env="highway_env:highway-fast-v0",
        algorithm=daskrl.DQN(
            discount=0.8,
            learning_rate=5e-4,
            batch_size=32,
            replay_ratio=32,
            learning_starts=200,
            target_update=50,
            window=15_000,
            epsilon_steps=3000,
            epsilon_end=0.05,
        ),
        env_steps=10_000,
        schedule={"streams": 4, "envs_per_stream": 1, "fragment_steps": 10},
    ),
    "trading": Example(
        env=stocks(30, 1700),
        algorithm=daskrl.PPO(normalise_reward=True, entropy_coef=0.01),
        env_steps=200_000,
        schedule={"streams": 4, "envs_per_stream": 4, "fragment_steps": 128},
        unseen=stocks(1700, 2335),
        episodes=1,  # nothing in it is random
        beside={"holding": lambda env: env.unwrapped.prices[-1] - env.unwrapped.prices[30]},
    ),
}


def make(env: Environment) -> gymnasium.Env:
    return gymnasium.make(env) if isinstance(env, str) else env()


def random_return(env: gymnasium.Env, episodes: int) -> float:
    """Mean return of random actions."""
    env.action_space.seed(0)
    returns = []
    for episode in range(episodes):
        env.reset(seed=episode)
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    return mean(returns)


def main(arguments: list[str] | None = None) -> float:
    """Train and play; the mean greedy return."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=EXAMPLES)
    parser.add_argument("--workers", type=int, default=1, help="rollout workers; 0 runs in this process")
    parser.add_argument("--env-steps", type=int, default=None, help="another budget")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    example = EXAMPLES[given.example]

    settings: dict[str, Any] = {"env_steps": given.env_steps or example.env_steps, "seed": given.seed}
    with contextlib.ExitStack() as stack:
        if given.workers:
            cluster = stack.enter_context(clusters.local(given.workers))
            settings["client"] = stack.enter_context(Client(cluster))
        store = f"{tempfile.mkdtemp()}/{given.example}"
        run = daskrl.train(example.algorithm, example.env, store=store, **settings, **example.schedule).wait()

    played = example.unseen or example.env
    again = None if isinstance(played, str) else played
    greedy = daskrl.evaluate(run.store, episodes=example.episodes, env=again).mean
    print(f"greedy: {greedy:.2f}")
    print(f"random: {random_return(make(played), 20):.2f}")
    for name, of in example.beside.items():
        print(f"{name}: {of(make(played)):.2f}")
    print(f"digest {run.store.digest()}")
    return greedy


if __name__ == "__main__":
    main()
