"""Actions reach environments as their spaces sample them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client
from gymnasium import spaces

import daskrl
from daskrl import clusters
from daskrl.envs.spaces import spec_of
from daskrl.envs.stream import Stream
from tests.environments import Picky

SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "discrete from 5": spaces.Discrete(3, start=5),
    "discrete from -2": spaces.Discrete(3, start=-2),
    "discrete of int32": spaces.Discrete(3, dtype=np.int32),
    "discrete of 1000": spaces.Discrete(1000, start=10),
    "in a dict": spaces.Dict({"a": spaces.Discrete(3, start=1)}),
    "in a tuple": spaces.Tuple((spaces.Discrete(3),)),
}
BOXES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "box without axes": spaces.Box(-1, 1, (), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (), np.float64),
    "box in a dict": spaces.Dict({"a": spaces.Box(-1, 1, (1,), np.float32)}),
}
SMALL: dict[str, Any] = {
    "env_steps": 96, "streams": 2, "envs_per_stream": 2, "fragment_steps": 6, "recheck_every": 1, "progress": False,
}  # fmt: skip
DQN = daskrl.DQN(hidden=(8,), learning_starts=16, batch_size=4, replay_ratio=1.0, window=96)


@pytest.mark.parametrize("name", [*SPACES, *BOXES])
def test_an_environment_gets_actions_as_its_space_samples_them(name: str, tmp_path: Path) -> None:
    """In training, in fragments run again, rebuilt when a run goes on, and in evaluation."""
    space = (SPACES | BOXES)[name]

    def make() -> Picky:
        return Picky(space)

    algorithm = DQN if name in SPACES else daskrl.PPO(hidden=(8,), epochs=1)
    run = daskrl.train(algorithm, make, store=tmp_path / "run", **SMALL).wait()
    assert daskrl.evaluate(run.store, episodes=2, env=make).lengths == (7, 7)
    again = daskrl.resume(tmp_path / "run", env=make, env_steps=192, progress=False).wait()
    assert len(again.store.fragments()) == 16


@pytest.mark.parametrize(
    "space", [spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3]), spaces.MultiDiscrete([[2], [3]])]
)
def test_actions_of_an_algorithm_of_ones_own_are_of_the_dtype_their_space_samples(space: spaces.Space[Any]) -> None:
    spec = spec_of(spaces.Box(-np.inf, np.inf, (2,), np.float32), space)
    made, again = (Stream.make(lambda: Picky(space), spec, seed=0, index=0, count=2, frame_stack=1) for _ in range(2))
    chosen = np.stack([space.sample() for _ in range(2)])
    stored, _ = made.rollout(lambda seen, state, t: (chosen, {}), 3)
    for env in range(2):
        again.retrace(env, stored, 0, "a rollout run again")


def test_workers_give_environments_numpys_integers_too(tmp_path: Path) -> None:
    def make() -> Picky:
        return Picky(spaces.Discrete(3, start=1))

    with clusters.local(1) as cluster, Client(cluster) as client:
        here = daskrl.train(DQN, make, store=tmp_path / "here", **SMALL).wait()
        there = daskrl.train(DQN, make, store=tmp_path / "there", client=client, **SMALL).wait()
    assert here.store.digest() == there.store.digest()


@pytest.mark.parametrize(
    "id",
    [
        "CartPole-v1", "MountainCar-v0", "Acrobot-v1", "FrozenLake-v1", "Taxi-v4", "CliffWalking-v1", "Blackjack-v1",
        "LunarLander-v3", "MinAtar/Breakout-v1", "MinAtar/Freeway-v1", "ALE/Pong-v5", "highway_env:highway-fast-v0",
    ],
)  # fmt: skip
def test_an_environment_does_with_numpys_integers_what_it_does_with_pythons(id: str) -> None:
    from daskrl.envs.source import source

    one, other = (source(id).factory() for _ in range(2))
    space: Any = one.action_space
    random = np.random.default_rng(0)
    for env in (one, other):
        env.reset(seed=4)
    for _ in range(60):
        action = random.integers(space.n)
        got, expected = one.step(np.int64(action)), other.step(int(action))
        assert np.asarray(got[0]).tobytes() == np.asarray(expected[0]).tobytes()
        assert got[1:4] == expected[1:4]
        if got[2] or got[3]:
            for env in (one, other):
                env.reset(seed=5)
