"""What observations pass through: convolutions, and modules of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import daskrl
from daskrl import networks
from daskrl.algorithms.base import Setup
from daskrl.config import Schedule
from daskrl.envs.source import source
from daskrl.envs.spaces import spec_of
from daskrl.errors import ConfigError

FRAMES = spec_of(spaces.Box(0, 255, (84, 84), np.uint8), spaces.Discrete(4))
SMALL = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 8}


def test_the_residual_network_is_that_of_the_paper() -> None:
    """Three sections of 5 convolutions: 84 -> 42 -> 21 -> 11, so 32 x 11 x 11 features."""
    encoder = networks.Encoder(FRAMES, 4, "impala")
    sizes = [tuple(parameter.shape) for parameter in encoder.parameters() if parameter.dim() == 4]
    assert sizes == [(16, 4, 3, 3), *[(16, 16, 3, 3)] * 4, (32, 16, 3, 3), *[(32, 32, 3, 3)] * 4, *[(32, 32, 3, 3)] * 5]
    assert encoder.out_features == 32 * 11 * 11


def test_a_section_adds_what_two_convolutions_make_of_its_input_to_it() -> None:
    torch.manual_seed(0)
    section, x = networks.Section(2, 3), torch.randn(1, 2, 5, 5)
    with torch.no_grad():
        got = section(x)
        first = nn.functional.conv2d(x, section.first.weight, section.first.bias, padding=1)
        padded = nn.functional.pad(first, (1, 1, 1, 1), value=-torch.inf)
        expected = torch.empty(1, 3, 3, 3)
        for i in range(3):
            for j in range(3):
                expected[:, :, i, j] = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].amax(dim=(2, 3))
        for block in section.blocks:
            inner = expected
            for layer in (block[1], block[3]):  # type: ignore[index]
                inner = nn.functional.conv2d(inner.clamp(min=0), layer.weight, layer.bias, padding=1)
            expected = expected + inner
    torch.testing.assert_close(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "algorithm",
    [
        daskrl.DQN(convolutions="impala", learning_starts=16, batch_size=4, replay_ratio=1.0),
        daskrl.PPO(convolutions="impala", epochs=1, batch_size=16),
    ],
    ids=["dqn", "ppo"],
)
def test_algorithms_learn_through_the_residual_network(algorithm: Any, tmp_path: Path) -> None:
    run = daskrl.train(
        algorithm, "MinAtar/Breakout-v1", store=tmp_path / "run", env_steps=96, seed=0, progress=False, **SMALL
    ).wait()
    before, learned = run.store.weights(0)[1], run.store.weights()[1]
    convolutions = [name for name in learned if "first.weight" in name]
    assert len(convolutions) == 3
    assert all(not np.array_equal(before[name], learned[name]) for name in convolutions)


def test_unknown_convolutions_are_named_before_anything_is_made() -> None:
    for algorithm in (daskrl.DQN, daskrl.PPO, daskrl.SAC):
        with pytest.raises(ConfigError, match="expected one of nature, impala, got 'resnet'"):
            algorithm(convolutions="resnet")


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((10, 10, 10), (10, 10, 10)),  # MinAtar's Seaquest
        ((10, 9, 10), (10, 10, 9)),
        ((10, 10, 4), (4, 10, 10)),
        ((4, 10, 10), (4, 10, 10)),
        ((3, 84, 96), (3, 84, 96)),
        ((84, 96, 3), (3, 84, 96)),
        ((84, 84), (1, 84, 84)),
    ],
)
def test_channels_are_the_smaller_of_the_first_and_last_axis_and_the_last_where_they_are_equal(
    shape: tuple[int, ...], image: tuple[int, int, int]
) -> None:
    spec = spec_of(spaces.Box(0, 1, shape, np.bool_), spaces.Discrete(2))
    assert networks.Convolutions(spec.observation[0], 1).image == image


@pytest.mark.parametrize("game", ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"])
def test_the_channels_of_a_minatar_game_are_convolved_over_its_board(game: str) -> None:
    leaf = source(f"MinAtar/{game}-v1").spec.observation[0]
    height, width, kinds = leaf.shape
    assert (height, width) == (10, 10)
    assert kinds in (4, 6, 7, 10)
    convolutions = networks.Convolutions(leaf, 1)
    board = torch.from_numpy(np.random.default_rng(0).random((5, *leaf.shape)) < 0.2)
    first = convolutions.layers[0]
    by_kind = torch.stack([board[..., kind].float() for kind in range(kinds)], dim=1)  # [B, C, H, W]
    with torch.no_grad():
        expected = nn.functional.conv2d(by_kind, first.weight, first.bias).relu()  # type: ignore[arg-type]
        torch.testing.assert_close(convolutions(board), expected.flatten(1))


class Squares(nn.Module):
    """A module of the user's own: observations beside their squares."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 16
        self.layer = nn.Linear(8, 16)

    def forward(self, observation: Any) -> torch.Tensor:
        x = observation["observation"].flatten(1)
        features: torch.Tensor = self.layer(torch.cat([x, x.square()], dim=1)).relu()
        return features


def encoder(self: Any, setup: Setup) -> Squares:
    return Squares()


@pytest.mark.parametrize("base", [daskrl.DQN, daskrl.C51, daskrl.QRDQN, daskrl.Rainbow, daskrl.R2D2, daskrl.PPO])
def test_any_module_takes_the_place_of_the_encoder(base: type[Any]) -> None:
    own = dataclass(frozen=True)(type("Own", (base,), {"encoder": encoder, "__annotations__": {}}))
    policy = own().policy(Setup(spec_of(spaces.Box(-1, 1, (4,)), spaces.Discrete(2)), Schedule()))
    assert isinstance(policy.encoder, Squares)


def test_a_run_with_a_module_of_the_users_own_resumes_to_the_same_bits(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Own(daskrl.DQN):
        def encoder(self, setup: Setup) -> Any:
            return Squares()

    algorithm = Own(learning_starts=64, hidden=(16,), replay_ratio=4.0)

    def train(name: str, env_steps: int) -> daskrl.Run:
        return daskrl.train(
            algorithm, "CartPole-v1", store=tmp_path / name, env_steps=env_steps, seed=0, progress=False, **SMALL
        ).wait()

    whole = train("whole", 640)
    train("part", 320)
    again = daskrl.resume(tmp_path / "part", algorithm=algorithm, env_steps=640, progress=False).wait()
    assert "encoder.layer.weight" in again.store.weights()[1]
    assert again.store.digest() == whole.store.digest()


def test_the_parameters_of_a_part_of_flat_networks_are_copied_by_name() -> None:
    both = nn.ModuleDict({"one": nn.Linear(3, 5), "other": networks.mlp(4, [7], 2)})
    flat = networks.Flat(both)
    for part in (both, both["one"], both["other"]):
        expected = {name: value.detach().numpy() for name, value in part.named_parameters()}
        got = flat.named(part)
        assert list(got) == list(expected)
        assert all(np.array_equal(got[name], expected[name]) for name in expected)
    before = {name: value.copy() for name, value in got.items()}
    flat.weights.fill_(9)
    assert all(np.array_equal(got[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), r"encoder\.part\.1 drops out with p = 0\.1"),
        (nn.TransformerEncoderLayer(4, 1, dropout=0.2), r"encoder\.part\..* drops out with p = 0\.2"),
        (nn.LSTM(4, 4, 2, dropout=0.3), r"encoder\.part drops out with p = 0\.3"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)), None),
    ],
    ids=["dropout", "transformer", "lstm", "none"],
)
def test_a_module_that_draws_from_torchs_generator_is_refused_before_anything_is_made(
    part: nn.Module, name: str | None, tmp_path: Path
) -> None:
    class Drops(nn.Module):
        out_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.part = part

        def forward(self, observation: Any) -> Any:
            return self.part(observation["observation"])

    @dataclass(frozen=True)
    class Own(daskrl.DQN):
        def encoder(self, setup: Setup) -> Any:
            return Drops()

    def train() -> None:
        daskrl.train(Own(window=1024), "CartPole-v1", store=tmp_path / "run", env_steps=640, **SMALL)

    if name is None:
        train()
    else:
        with pytest.raises(ConfigError, match=name):
            train()
        assert not (tmp_path / "run").exists()
