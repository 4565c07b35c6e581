"""Batches of a round that are drawn before its updates are those that are drawn one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import daskrl
from daskrl.algorithms.base import Setup
from daskrl.algorithms.replay import ReplayLearner, ReplaySettings
from daskrl.algorithms.torch_learner import adam
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.replay import samplers
from daskrl.replay.window import Batch
from tests.played import BOX, DISCRETE, played, setup

SETTINGS: dict[str, Any] = {"hidden": (8,), "learning_starts": 0, "replay_ratio": 5.0, "window": 128}
FRAMES = Setup(spec_of(spaces.Box(0, 255, (8, 6), np.uint8), DISCRETE), Schedule(2, 2, 8), frame_stack=3)
WHOLE = 1 << 20  # bytes: all batches of a round


def one_by_one(algorithm: ReplaySettings) -> ReplaySettings:
    kind = type(algorithm)
    return type("OneByOne", (kind,), {"draws_ahead": lambda self: False})(**vars(algorithm))


def stacked(seed: int) -> list[dict[str, np.ndarray]]:
    random, fragments = np.random.default_rng(seed), played(seed)
    for fragment in fragments:
        fragment["observation"] = random.integers(0, 256, (11, 2, 8, 6), np.uint8)
        fragment["final_observation"] = random.integers(0, 256, (16, 8, 6), np.uint8)
    return fragments


class Learned:
    """A learner after some rounds.

    Attributes
    ----------
    drawn, gathered : how many transitions were drawn and gathered at a time.
    bits : of all it learned, of its last batch, and of what its generator draws next.
    """

    def __init__(self, algorithm: ReplaySettings, given: Setup | None = None, *, together: int | None = None) -> None:
        given = given if given is not None else setup()
        self.learner: ReplayLearner = algorithm.learner(given, np.random.default_rng(1))  # type: ignore[attr-defined]
        if together is not None:  # as on a GPU
            self.learner.together = together
        self.drawn: list[int] = []
        self.gathered: list[int] = []
        self._count(self.learner.sampler, "draw", self.drawn, lambda items, size, *more: size)
        self._count(self.learner.window, "gather", self.gathered, lambda at, *more: len(at))
        action = DISCRETE if given.action.kind == "discrete" else BOX
        random = np.random.default_rng(2)
        for seed in range(5):
            fragments = stacked(seed) if given is FRAMES else played(seed, action)
            for fragment in fragments:
                fragment["recurrent_state.lstm"] = np.full((1, 2, 2, 4), seed, np.float32)
            self.learner.append(fragments)
            self.learner.learn(random)
        learned = {**self.learner.state(), **self.learner.last_batch(), "next": random.random(1)}
        self.bits: Mapping[str, bytes] = {name: value.tobytes() for name, value in learned.items()}

    def _count(self, of: Any, name: str, sizes: list[int], size: Any) -> None:
        method = getattr(of, name)

        def counted(*arguments: Any) -> Any:
            sizes.append(size(*arguments))
            return method(*arguments)

        setattr(of, name, counted)


@pytest.mark.parametrize("together", [None, WHOLE])
@pytest.mark.parametrize("batch_size", [5, 16, 40])
@pytest.mark.parametrize("algorithm", [daskrl.DQN, daskrl.C51, daskrl.QRDQN], ids=lambda kind: kind.__name__)
def test_drawn_before_a_round_they_give_the_same_bits(algorithm: Any, batch_size: int, together: int | None) -> None:
    ahead = algorithm(**SETTINGS, batch_size=batch_size, n_step=2)
    got, expected = Learned(ahead, together=together), Learned(one_by_one(ahead))
    updates = 5 * 32 * 5 // batch_size
    assert got.learner.updates == updates
    assert expected.drawn == expected.gathered == [batch_size] * updates
    assert len(got.drawn) == 5
    assert len(got.gathered) == (updates if together is None else 5)
    assert got.bits == expected.bits


@pytest.mark.parametrize("n_step", [1, 3])
def test_stacked_frames_give_the_same_bits(n_step: int) -> None:
    algorithm = daskrl.DQN(**SETTINGS, batch_size=7, n_step=n_step)
    got = Learned(algorithm, FRAMES, together=WHOLE)
    assert len(got.gathered) == 5
    assert got.bits == Learned(one_by_one(algorithm), FRAMES).bits


def test_together_they_are_no_larger_than_said() -> None:
    algorithm = daskrl.DQN(**{**SETTINGS, "replay_ratio": 7.0}, batch_size=10)  # 22 or 23 updates a round
    frames = 4 * 48  # bytes: three of an observation and the newest of the next
    got = Learned(algorithm, FRAMES, together=5 * 16 * frames + 1)
    assert [size // 16 for size in got.gathered[:5]] == [5, 5, 5, 5, 2]  # batches, with what lies between two
    assert got.bits == Learned(one_by_one(algorithm), FRAMES).bits
    assert Learned(algorithm, FRAMES, together=2 * 16 * frames - 1).gathered == [10] * got.learner.updates


def test_each_is_aligned_as_one_by_itself() -> None:
    offsets = []

    @dataclass(frozen=True)
    class Looks(daskrl.DQN):
        def update(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
            offsets.extend(value.data_ptr() % 64 for value in batch.observation.values())
            return super().update(learner, batch)

    Learned(Looks(**SETTINGS, batch_size=7), together=WHOLE)
    assert set(offsets) == {0}


@pytest.mark.parametrize(
    "algorithm",
    [
        daskrl.DQN(priority_alpha=0.5, **SETTINGS), daskrl.C51(noisy=True, **SETTINGS), daskrl.Rainbow(**SETTINGS),
        daskrl.SAC(**SETTINGS, batch_size=16), daskrl.TD3(**SETTINGS, batch_size=16),
    ],
    ids=["prioritised", "noisy", "rainbow", "sac", "td3"],
)  # fmt: skip
def test_what_depends_on_the_updates_between_is_drawn_one_by_one(algorithm: ReplaySettings) -> None:
    box = isinstance(algorithm, daskrl.SAC | daskrl.TD3)
    got = Learned(algorithm, setup(BOX) if box else None, together=WHOLE)
    assert got.learner.updates >= 10
    assert got.drawn == got.gathered == [algorithm.batch_size] * got.learner.updates


def test_a_sampler_of_its_own_is_asked_for_every_batch() -> None:
    class Weighted(samplers.Uniform):
        updates = 0

        def draw(self, window: Any, batch_size: int, random: np.random.Generator, beta: float) -> Any:
            return super().draw(window, batch_size, random, beta)[0], np.full(batch_size, 0.5, np.float32)

        def update(self, positions: Any, td_error: np.ndarray) -> None:
            Weighted.updates += len(td_error)

    class Draws(ReplayLearner):
        def draw_from(self, items: samplers.Sampled) -> None:
            super().draw_from(items)
            self.sampler = Weighted()

    got = Learned(with_learner(Draws), together=WHOLE)
    assert got.drawn == [7] * got.learner.updates
    assert Weighted.updates == 7 * got.learner.updates
    assert got.bits["online"] != Learned(daskrl.DQN(**SETTINGS, batch_size=7)).bits["online"]


def with_learner(kind: type[ReplayLearner]) -> ReplaySettings:
    @dataclass(frozen=True)
    class Own(daskrl.DQN):
        def learner(self, setup: Setup, random: np.random.Generator) -> ReplayLearner:
            networks = {"online": self.policy(setup), "target": self.policy(setup)}
            learner = kind(self, setup, random, self.update, **networks)
            learner.optimize(adam(self.learning_rate))
            return learner

    return Own(**SETTINGS, batch_size=7)


class Halves(ReplayLearner):
    """Halves the rewards of what it gathers."""

    def gather(self, positions: Any, weight: Any) -> Batch:
        batch: Batch = super().gather(positions, weight)
        batch.reward.mul_(0.5)
        return batch


class SetsIt(ReplayLearner):
    def learn(self, random: np.random.Generator) -> float | None:
        def halved(positions: Any, weight: Any) -> Batch:
            batch = self.window.gather(positions, weight)
            batch.reward.mul_(0.5)
            return batch

        self.gather = halved  # type: ignore[method-assign]
        return super().learn(random)


R2D2 = daskrl.R2D2(
    hidden=(8,), lstm=4, learning_starts=0, window=160, batch_size=2, burn_in=0, unroll=1, replay_ratio=4.0,
    priority_alpha=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "algorithm", [with_learner(Halves), with_learner(SetsIt), R2D2], ids=["method", "attribute", "r2d2"]
)
def test_a_gather_of_its_own_is_called_for_every_batch(algorithm: ReplaySettings) -> None:
    got = Learned(algorithm, together=WHOLE)
    assert got.learner.updates > 8
    assert got.bits == Learned(one_by_one(algorithm)).bits
    if algorithm is not R2D2:
        assert got.bits["online"] == Learned(with_learner(Halves)).bits["online"]
        assert got.bits["online"] != Learned(daskrl.DQN(**SETTINGS, batch_size=7)).bits["online"]


def test_a_batch_can_be_gathered_after_several_were_together() -> None:
    learner = Learned(daskrl.DQN(**SETTINGS, batch_size=7), together=WHOLE).learner
    positions = learner.window.positions(np.arange(7))
    reward = learner.gather(positions, None).reward.clone()
    assert torch.equal(reward, learner.window.gather(positions).reward)


def test_learning_ends_with_the_first_loss_that_is_no_number() -> None:
    @dataclass(frozen=True)
    class Diverges(daskrl.DQN):
        def update(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
            loss, td_error = super().update(learner, batch)
            return (loss * math.nan if learner.updates == 9 else loss), td_error

    algorithm = Diverges(**SETTINGS, batch_size=7)
    learners = []
    for made in (algorithm, one_by_one(algorithm)):
        learner: ReplayLearner = made.learner(setup(), np.random.default_rng(1))  # type: ignore[attr-defined]
        learner.together = WHOLE
        learner.append(played(0))
        loss = learner.learn(np.random.default_rng(2))
        assert loss is not None
        assert math.isnan(loss)
        assert learner.updates == 10
        learners.append(learner.last_batch())
    assert {name: x.tobytes() for name, x in learners[0].items()} == {
        name: x.tobytes() for name, x in learners[1].items()
    }
