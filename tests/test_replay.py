"""Batches of a round that are drawn before its updates are those that are drawn one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import daskrl
from daskrl.algorithms.base import Setup
from daskrl.algorithms.replay import Replay, ReplayLearner
from daskrl.config import Schedule
from daskrl.spaces import spec_of
from daskrl.window import Batch
from tests.test_losses import BOX, DISCRETE, played, setup

SETTINGS: dict[str, Any] = {"hidden": (8,), "learning_starts": 0, "replay_ratio": 5.0, "window": 128}
FRAMES = Setup(spec_of(spaces.Box(0, 255, (8, 6), np.uint8), DISCRETE), Schedule(2, 2, 8), frame_stack=3)


def one_by_one(algorithm: Replay) -> Replay:
    kind = type(algorithm)
    return type("OneByOne", (kind,), {"draws_ahead": lambda self: False})(**vars(algorithm))


def stacked(seed: int, frame_stack: int) -> list[dict[str, np.ndarray]]:
    random, fragments = np.random.default_rng(seed), played(seed)
    for fragment in fragments:
        fragment["observation"] = random.integers(0, 256, (8 + frame_stack, 2, 8, 6), np.uint8)
        fragment["final_observation"] = random.integers(0, 256, (16, 8, 6), np.uint8)
    return fragments


def learned(
    algorithm: Replay, monkeypatch: pytest.MonkeyPatch, given: Setup | None = None
) -> tuple[ReplayLearner, Mapping[str, np.ndarray], list[int]]:
    """A learner after some rounds, all it learned, and how many transitions were gathered at a time."""
    given = given if given is not None else setup()
    action = DISCRETE if given.action.kind == "discrete" else BOX
    learner: ReplayLearner = algorithm.learner(given, np.random.default_rng(1))
    sizes, gather = [], learner.window.gather
    monkeypatch.setattr(learner.window, "gather", lambda at, *more: sizes.append(len(at)) or gather(at, *more))
    random = np.random.default_rng(2)
    for seed in range(5):
        fragments = stacked(seed, 3) if given is FRAMES else played(seed, action)
        for fragment in fragments:
            fragment["recurrent_state.lstm"] = np.full((1, 2, 2, 4), seed, np.float32)
        learner.append(fragments)
        learner.learn(random)
    return learner, {**learner.state(), "next": random.random(1)}, sizes


@pytest.mark.parametrize("batch_size", [1, 7, 16, 40])
@pytest.mark.parametrize("algorithm", [daskrl.DQN, daskrl.C51, daskrl.QRDQN], ids=lambda kind: kind.__name__)
def test_drawn_before_a_round_they_give_the_same_bits(
    algorithm: Any, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = algorithm(**SETTINGS, batch_size=batch_size, n_step=2)
    learner, got, sizes = learned(ahead, monkeypatch)
    _, expected, one_at_a_time = learned(one_by_one(ahead), monkeypatch)
    assert learner.updates == 5 * 32 * 5 // batch_size
    assert one_at_a_time == [batch_size] * learner.updates
    assert len(sizes) < learner.updates
    assert {name: value.tobytes() for name, value in got.items()} == {
        name: value.tobytes() for name, value in expected.items()
    }
    last, before = learner.last_batch(), learned(one_by_one(ahead), monkeypatch)[0].last_batch()
    assert all(last[name].tobytes() == before[name].tobytes() for name in before)


def test_stacked_frames_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = daskrl.DQN(**SETTINGS, batch_size=7)
    _, got, sizes = learned(algorithm, monkeypatch, FRAMES)
    _, expected, _ = learned(one_by_one(algorithm), monkeypatch, FRAMES)
    assert len(sizes) < 5 * 32 * 5 // 7
    assert got["online"].tobytes() == expected["online"].tobytes()


def test_many_are_gathered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = daskrl.DQN(**{**SETTINGS, "replay_ratio": 150.0}, batch_size=100)
    _, got, sizes = learned(algorithm, monkeypatch)
    _, expected, _ = learned(one_by_one(algorithm), monkeypatch)
    assert sizes[:3] == [18 * 112, 18 * 112, 12 * 112]  # 100 and what lies between two
    assert got["online"].tobytes() == expected["online"].tobytes()


@pytest.mark.parametrize(
    "algorithm",
    [
        daskrl.DQN(priority_alpha=0.5, **SETTINGS), daskrl.C51(noisy=True, **SETTINGS), daskrl.Rainbow(**SETTINGS),
        daskrl.SAC(**SETTINGS), daskrl.TD3(**SETTINGS),
    ],
    ids=["prioritised", "noisy", "rainbow", "sac", "td3"],
)  # fmt: skip
def test_what_depends_on_the_updates_between_is_drawn_one_by_one(
    algorithm: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = isinstance(algorithm, daskrl.SAC | daskrl.TD3)
    learner, _, sizes = learned(algorithm, monkeypatch, setup(BOX) if box else None)
    assert sizes == [algorithm.batch_size] * learner.updates


class Own(ReplayLearner):
    """Halves the rewards of what it gathers."""

    def gather(self, positions: Any, weight: Any) -> Batch:
        batch: Batch = super().gather(positions, weight)
        batch.reward.mul_(0.5)
        return batch


@dataclass(frozen=True)
class OwnGather(daskrl.DQN):
    def learner(self, setup: Setup, random: np.random.Generator) -> ReplayLearner:
        networks = {"online": self.policy(setup), "target": self.policy(setup)}
        learner = Own(self, setup, random, self.update, **networks)
        learner.optimize(daskrl.algorithms.torch_learner.adam(self.learning_rate))
        return learner


@pytest.mark.parametrize(
    "algorithm",
    [
        OwnGather(**SETTINGS, batch_size=7),
        daskrl.R2D2(hidden=(8,), lstm=4, learning_starts=0, window=160, batch_size=2, burn_in=0, unroll=1,
                    replay_ratio=4.0, priority_alpha=None),
    ],
    ids=["own", "r2d2"],
)  # fmt: skip
def test_a_gather_of_its_own_is_called_for_every_batch(algorithm: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, got, _ = learned(algorithm, monkeypatch)
    _, expected, _ = learned(one_by_one(algorithm), monkeypatch)
    assert learner.updates > 8
    assert got["online"].tobytes() == expected["online"].tobytes()
    if isinstance(learner, Own):
        _, whole, _ = learned(daskrl.DQN(**SETTINGS, batch_size=7), monkeypatch)
        assert got["online"].tobytes() != whole["online"].tobytes()
