"""Grids of numbers: which are convolved, along which axes, and how their values are scaled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import daskrl
from daskrl import networks
from daskrl.algorithms.base import Setup
from daskrl.config import Schedule
from daskrl.envs import spaces as leaves
from daskrl.envs.planes import planes
from daskrl.envs.source import MinAtarReset
from daskrl.envs.spaces import Leaf, SpaceSpec, spec_of
from daskrl.errors import ConfigError

DISCRETE = spaces.Discrete(2)


def leaf_of(space: spaces.Box) -> Leaf:
    return spec_of(space, DISCRETE).observation[0]


def bits(*shape: int) -> Leaf:
    return leaf_of(spaces.Box(0, 1, shape, np.bool_))


@pytest.mark.parametrize(
    ("shape", "image", "channels_last"),
    [
        ((8, 8, 111), (111, 8, 8), True),  # PettingZoo's chess
        ((111, 8, 8), (111, 8, 8), False),
        ((10, 10, 4), (4, 10, 10), True),
        ((4, 10, 10), (4, 10, 10), False),
        ((3, 84, 96), (3, 84, 96), False),
        ((84, 96, 3), (3, 84, 96), True),
        ((10, 10, 10), (10, 10, 10), True),  # MinAtar's Seaquest
        ((10, 9, 10), (10, 10, 9), True),
        ((84, 84), (1, 84, 84), False),
    ],
)
def test_the_channels_axis_is_the_one_unlike_the_two_others_and_else_the_shorter_of_first_and_last(
    shape: tuple[int, ...], image: tuple[int, int, int], channels_last: bool
) -> None:
    found = planes(bits(*shape))
    assert found is not None
    assert (found.image, found.channels_last) == (image, channels_last)
    assert networks.Convolutions(bits(*shape), 1).image == image


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (7, 7, 3), np.uint8),  # MiniGrid's
        spaces.Box(0, 1, (8, 2, 8), np.uint8),
        spaces.Box(0, 1, (3, 3, 84), np.uint8),
        spaces.Box(0, 255, (128,), np.uint8),
        spaces.Box(0, 1, (2, 8, 8, 8), np.uint8),
        spaces.Box(-np.inf, np.inf, (84, 84, 3), np.float32),
        spaces.Box(-1e10, 1e10, (84, 84, 3), np.float32),
        spaces.Box(0, 1, (30, 8), np.float32),
        spaces.Box(0, 2**31 - 1, (10, 10, 2), np.int32),
    ],
    ids=lambda space: f"{space.dtype} {space.shape}",
)
def test_what_is_small_without_a_scale_or_a_table_is_a_vector(space: spaces.Box) -> None:
    assert planes(leaf_of(space)) is None
    encoder = networks.Encoder(spec_of(space, DISCRETE), 2)
    assert encoder.out_features == 2 * np.prod(space.shape)


def ranges(shape: tuple[int, ...], axis: int, low: list[int], high: list[int], dtype: Any) -> spaces.Box:
    """A Box whose bounds differ along one axis."""
    along = [1] * len(shape)
    along[axis] = len(low)
    bounds = (np.broadcast_to(np.reshape(bound, along), shape).astype(dtype) for bound in (low, high))
    return spaces.Box(*bounds, dtype=dtype)  # type: ignore[call-overload]


SCALED = {
    "a picture": spaces.Box(0, 255, (10, 9, 3), np.uint8),
    "a picture, channels first": spaces.Box(0, 255, (3, 10, 9), np.uint8),
    "a picture without colours": spaces.Box(0, 255, (10, 9), np.uint8),
    "a 16-bit picture": spaces.Box(0, 65_535, (10, 9, 1), np.uint16),
    "bits": spaces.Box(0, 1, (10, 10, 2), np.bool_),
    "bits as bytes": spaces.Box(0, 1, (10, 10, 2), np.uint8),
    "stones": spaces.Box(-1, 1, (9, 9), np.int8),
    "kinds": spaces.Box(3, 11, (10, 10, 2), np.int64),
    "float32": spaces.Box(-2, 6, (2, 10, 10), np.float32),
    "float64": spaces.Box(0, 1, (10, 10, 2), np.float64),
    "planes of their own ranges": ranges((10, 9, 3), 2, [0, 0, -5], [1, 10, 15], np.int16),
    "the same, channels first": ranges((3, 10, 9), 0, [0, 0, -5], [1, 10, 15], np.int16),
    "rows of their own ranges": ranges((8, 9), 0, list(range(8)), [100] * 8, np.uint8),
    "a plane that is always the same": ranges((10, 9, 2), 2, [7, 0], [7, 10], np.uint8),
}


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", SCALED)
def test_values_are_scaled_by_the_bounds_of_their_own_element(name: str, frames: int) -> None:
    space = SCALED[name]
    space.seed(0)  # type: ignore[attr-defined]
    convolutions = networks.Convolutions(leaf_of(space), frames)
    stack = np.stack([[space.sample() for _ in range(frames)] for _ in range(2)])  # type: ignore[attr-defined]  # [B, K, *leaf]
    passed: list[torch.Tensor] = []
    convolutions.layers[0].register_forward_hook(lambda _, given, __: passed.append(given[0]))
    with torch.no_grad():
        convolutions(torch.from_numpy(stack if frames > 1 else stack[:, 0]))
    low, high = space.low.astype(float), space.high.astype(float)  # type: ignore[attr-defined]
    expected = (stack - low) / np.where(high > low, high - low, 1)
    if name not in ("a picture, channels first", "the same, channels first", "float32") and len(space.shape) == 3:  # type: ignore[attr-defined]
        expected = np.moveaxis(expected, -1, -3)
    assert passed[0].shape == (2, *convolutions.image)
    np.testing.assert_allclose(passed[0].numpy(), expected.reshape(passed[0].shape), rtol=1e-6, atol=1e-6)
    assert passed[0].min() >= 0
    assert passed[0].max() <= 1


@pytest.mark.parametrize(
    ("space", "channels", "image"),
    [
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), "last", (3, 7, 7)),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), "first", (7, 7, 3)),
        (spaces.Box(0, 1, (10, 10, 10), np.bool_), "first", (10, 10, 10)),
        (spaces.Box(-np.inf, np.inf, (3, 20, 10), np.float32), "first", (3, 20, 10)),
        (spaces.Box(0, 255, (84, 84), np.uint8), "last", (1, 84, 84)),
        (spaces.Box(0, 255, (7, 7, 2), np.uint8), "first", None),
        (spaces.Box(0, 255, (84, 84, 3), np.uint8), "none", None),
        (spaces.Box(0, 255, (84, 84), np.uint8), "none", None),
        (spaces.Box(-1, 1, (30, 9), np.float32), "last", None),
    ],
)
def test_a_setting_says_which_axis_is_the_channels_and_whether_anything_is_convolved(
    space: spaces.Box, channels: str, image: tuple[int, int, int] | None
) -> None:
    found = planes(leaf_of(space), channels)
    assert (found.image if found else None) == image


ALGORITHMS: list[Any] = [
    daskrl.DQN, daskrl.C51, daskrl.QRDQN, daskrl.Rainbow, daskrl.R2D2, daskrl.PPO, daskrl.IMPALA, daskrl.SAC, daskrl.TD3
]  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_with_an_encoder_has_the_setting(algorithm: Any) -> None:
    action = spaces.Box(-1, 1, (1,)) if algorithm in (daskrl.SAC, daskrl.TD3) else DISCRETE
    setup = Setup(spec_of(spaces.Box(0, 255, (12, 12, 3), np.uint8), action), Schedule())
    convolved = {
        channels: [m for m in algorithm(channels=channels).policy(setup).modules() if isinstance(m, torch.nn.Conv2d)]
        for channels in ("auto", "last", "first", "none")
    }
    assert [convolved[channels][0].in_channels for channels in ("auto", "last", "first")] == [3, 3, 12]
    assert not convolved["none"]
    with pytest.raises(ConfigError, match="channels: expected one of auto, first, last, none, got 'middle'"):
        algorithm(channels="middle")


def test_normalisation_and_hidden_sizes_follow_what_is_convolved() -> None:
    setup = Setup(spec_of(spaces.Box(0, 255, (12, 12, 3), np.uint8), DISCRETE), Schedule(lag=0))
    plain = daskrl.PPO(normalise_observation=True).policy(setup)
    as_vector = daskrl.PPO(normalise_observation=True, channels="none").policy(setup)
    assert list(plain.normalise.shapes) == []
    assert list(as_vector.normalise.shapes) == ["observation"]
    assert [m.out_features for m in as_vector.actor if isinstance(m, torch.nn.Linear)] == [64, 64, 2]
    with pytest.raises(ConfigError, match="hidden: expected at least one size"):
        daskrl.PPO(lstm=4, hidden=(), channels="none").check(setup)
    daskrl.PPO(lstm=4, hidden=()).check(setup)


def test_a_module_of_the_users_own_is_told_that_a_leaf_is_a_vector() -> None:
    with pytest.raises(ConfigError, match=r"observation of shape \(7, 7, 3\) .* channels='first' or channels='last'"):
        networks.Convolutions(leaf_of(spaces.Box(0, 255, (7, 7, 3), np.uint8)), 1)


@pytest.mark.parametrize(
    ("space", "low", "high", "varies"),
    [
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), (0.0,), (255.0,), ()),
        (ranges((84, 84, 2), 2, [0, 0], [1, 9], np.uint8), (0.0, 0.0), (1.0, 9.0), (2,)),
        (ranges((2, 84, 84), 0, [0, 0], [1, 9], np.uint8), (0.0, 0.0), (1.0, 9.0), (0,)),
        (spaces.Box(np.array([[0, 1], [2, 3]]), np.array([[9, 9], [9, 9]]), dtype=np.int64),
         (0.0, 1.0, 2.0, 3.0), (9.0, 9.0, 9.0, 9.0), (0, 1)),
        (spaces.Box(-1, 1, (4,)), (), (), ()),
        (spaces.Box(-np.inf, 1, (9, 9)), (), (), ()),
    ],
)  # fmt: skip
def test_a_store_has_the_bounds_of_planes_once_and_not_of_each_element(
    space: spaces.Box, low: tuple[float, ...], high: tuple[float, ...], varies: tuple[int, ...]
) -> None:
    spec = spec_of(spaces.Dict({"a": space}), DISCRETE)
    leaf = spec.observation[0]
    assert (leaf.low, leaf.high, leaf.varies) == (low, high, varies)
    kept = json.loads(json.dumps(spec.to_json()))
    kept["observation"][0]["key_of_a_later_version"] = 1
    assert SpaceSpec.from_json(kept) == spec
    if low:
        bounds = leaf.bounds()
        assert bounds is not None
        for bound, full in zip(bounds, (space.low, space.high), strict=True):
            np.testing.assert_array_equal(np.broadcast_to(bound, space.shape), full)


class Spot(gymnasium.Env[Any, Any]):
    """One square of a 10 x 10 board is set, in one of two planes: the action is to say in which half it is."""

    action_space: Any = spaces.Discrete(2)

    def __init__(self, dtype: Any = np.uint8, high: int = 1) -> None:
        self.observation_space = spaces.Box(0, high, (10, 10, 2), dtype)

    def _observation(self) -> Any:
        row, self.column, plane = (int(self.np_random.integers(n)) for n in (10, 10, 2))
        board = np.zeros((10, 10, 2), self.observation_space.dtype)
        board[row, self.column, plane] = 1
        return board

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        reward = float(int(action) == self.column // 5) / 10
        return self._observation(), reward, self.count == 10, False, {}


class Push(Spot):
    """The same, where the action is a push to the left or to the right."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return super().step(action[0] > 0)


SMALL: dict[str, Any] = {"streams": 2, "envs_per_stream": 4, "fragment_steps": 16, "progress": False}
LEARNS = daskrl.DQN(
    discount=0.0, hidden=(32,), learning_starts=128, replay_ratio=8.0, batch_size=32, learning_rate=2e-3,
    epsilon_steps=1000,
)  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_grid_of_zeros_and_ones_is_learned_when_it_is_declared_as_bytes(seed: int, tmp_path: Path) -> None:
    run = daskrl.train(LEARNS, Spot, store=tmp_path / "run", env_steps=1536, seed=seed, **SMALL).wait()
    assert daskrl.evaluate(run.store, episodes=10, env=Spot).mean > 0.95


TINY: dict[str, Any] = {"hidden": (8,), "learning_starts": 64, "batch_size": 8, "replay_ratio": 1.0, "window": 512}
RUNS: dict[str, tuple[Any, type[Spot]]] = {
    "dqn": (daskrl.DQN(**TINY), Spot),
    "r2d2": (daskrl.R2D2(**{**TINY, "lstm": 4, "n_step": 2}), Spot),
    "ppo": (daskrl.PPO(epochs=1, normalise_observation=True), Spot),
    "impala": (daskrl.IMPALA(convolutions="impala"), Spot),
    "sac": (daskrl.SAC(**TINY), Push),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_grid_of_zeros_and_ones_is_learned_to_the_same_bits_whatever_its_dtype(name: str, tmp_path: Path) -> None:
    algorithm, game = RUNS[name]

    def weights(dtype: Any) -> Any:
        store = tmp_path / np.dtype(dtype).name
        return (
            daskrl.train(algorithm, lambda: game(dtype), store=store, env_steps=384, **SMALL).wait().store.weights()[1]
        )

    expected = weights(np.bool_)
    for dtype in (np.uint8, np.int8, np.int64, np.float32):
        got = weights(dtype)
        assert all(np.array_equal(got[part], expected[part]) for part in expected)


def test_minatar_declared_as_bytes_is_learned_to_the_bits_of_minatar(tmp_path: Path) -> None:
    def as_bytes() -> Any:
        env = gymnasium.make("MinAtar/Breakout-v1")
        space = spaces.Box(0, 1, env.observation_space.shape, np.uint8)  # type: ignore[arg-type]
        return gymnasium.wrappers.TransformObservation(MinAtarReset(env), lambda x: x.astype(np.uint8), space)

    algorithm = daskrl.DQN(**{**TINY, "replay_ratio": 4.0})
    stores = [
        daskrl.train(algorithm, env, store=tmp_path / name, env_steps=768, **SMALL).wait().store
        for name, env in (("bits", "MinAtar/Breakout-v1"), ("bytes", as_bytes))
    ]
    bits_, bytes_ = (store.weights()[1] for store in stores)
    assert stores[0].read(stores[0].fragments()[0])["observation"].dtype == np.bool_
    assert stores[1].read(stores[1].fragments()[0])["observation"].dtype == np.uint8
    assert all(np.array_equal(bits_[part], bytes_[part]) for part in bits_)


def test_a_store_without_bounds_goes_on_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(name: str, env_steps: int) -> Any:
        return daskrl.train(RUNS["dqn"][0], Spot, store=tmp_path / name, env_steps=env_steps, **SMALL).wait().store

    new = train("new", 512)
    with monkeypatch.context() as older:
        older.setattr(leaves, "ranged", lambda leaf, space: leaf)
        whole, _ = train("whole", 512), train("part", 256)
    again = daskrl.resume(tmp_path / "part", env=Spot, env_steps=512, progress=False).wait()
    assert again.store.spec.observation[0].low == ()
    assert again.store.digest() == whole.digest() != new.digest()
    own, other = (daskrl.evaluate(again.store, episodes=3, env=env) for env in (Spot, lambda: Spot()))
    assert own.returns == other.returns  # another environment of the same spaces


def test_bounds_that_changed_are_another_space_but_those_a_store_has_not_are_none() -> None:
    bits_, kinds = (spec_of(spaces.Box(0, high, (10, 10, 2), np.uint8), DISCRETE) for high in (1, 2))
    assert bits_.is_stored_as(bits_)
    assert not kinds.is_stored_as(bits_)
    kept = bits_.to_json()
    for leaf in kept["observation"]:
        del leaf["low"], leaf["high"], leaf["varies"]
    older = SpaceSpec.from_json(kept)
    assert bits_.is_stored_as(older)
    assert kinds.is_stored_as(older)
    assert not spec_of(spaces.Box(0, 1, (10, 10, 3), np.uint8), DISCRETE).is_stored_as(older)
