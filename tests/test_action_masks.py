"""Actions that may not be taken are neither taken nor learned from, by any algorithm for discrete actions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import daskrl
from daskrl.algorithms import by_name
from daskrl.envs.source import ActionMask
from daskrl.errors import ConfigError, EnvironmentFailure, UnsupportedSpaceError


class Doors(gymnasium.Env):  # type: ignore[type-arg]
    """Of four actions those with the parity of the step may be taken; another one ends the process's patience."""

    observation_space = spaces.Box(0, 10, (2,), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self) -> None:
        self.count = 0

    def _mask(self) -> dict[str, Any]:
        return {"action_mask": np.array([(a + self.count) % 2 == 0 for a in range(4)], np.int8)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(2, np.float32), self._mask()

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if (action + self.count) % 2:
            raise ValueError(f"action {action} may not be taken at step {self.count}")
        self.count += 1
        return np.full(2, self.count, np.float32), float(action), self.count == 6, False, self._mask()


class Dead(Doors):
    """Truncated after six steps, where no action may be taken any more."""

    def _mask(self) -> dict[str, Any]:
        mask = super()._mask()
        return mask if self.count < 6 else {"action_mask": np.zeros(4, np.int8)}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, ended, _, info = super().step(action)
        return observation, reward, False, ended, info


class Maskless(Doors):
    """A step that ends the episode has no mask; others must have one."""

    truncates = False
    forgets = False

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, ended, _, info = super().step(action)
        info = {} if ended or (self.forgets and self.count == 3) else info
        return observation, reward, ended and not self.truncates, ended and self.truncates, info


class MasklessCut(Maskless):
    truncates = True


class Forgetful(Maskless):
    forgets = True


SMALL: dict[str, Any] = {"hidden": (8,), "learning_starts": 32, "batch_size": 8, "replay_ratio": 2.0, "window": 640}
SETTINGS: dict[str, dict[str, Any]] = {
    "dqn": SMALL, "c51": {**SMALL, "atoms": 11}, "qr-dqn": {**SMALL, "quantiles": 5}, "rainbow": {**SMALL, "atoms": 11},
    "r2d2": {**SMALL, "lstm": 4, "n_step": 2}, "ppo": {"epochs": 2, "batch_size": 16}, "impala": {},
}  # fmt: skip


@pytest.mark.parametrize("name", list(SETTINGS))
def test_no_forbidden_action_is_ever_taken(tmp_path: Path, name: str) -> None:
    algorithm = by_name(name)(**SETTINGS[name])
    run = daskrl.train(
        algorithm, lambda: ActionMask(Doors()), store=tmp_path / "run", env_steps=640, streams=2, envs_per_stream=2,
        fragment_steps=8, progress=False,
    ).wait()  # fmt: skip
    assert run.report is not None
    assert run.report.learner_updates > 0
    assert np.isfinite(run.report.loss)
    result = daskrl.evaluate(run.store, episodes=4, env=run.source.factory)
    assert result.lengths == (6,) * 4


@pytest.mark.parametrize("name", list(SETTINGS))
def test_an_episode_may_be_cut_off_where_no_action_may_be_taken(tmp_path: Path, name: str) -> None:
    run = daskrl.train(
        by_name(name)(**SETTINGS[name]), lambda: ActionMask(Dead()), store=tmp_path / "run", env_steps=640, streams=2,
        envs_per_stream=2, fragment_steps=8, progress=False,
    ).wait()  # fmt: skip
    assert run.report is not None
    assert run.report.learner_updates > 0
    assert np.isfinite(run.report.loss)


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("game", [Maskless, MasklessCut])
def test_a_step_that_ends_an_episode_needs_no_mask(tmp_path: Path, name: str, game: type[Maskless]) -> None:
    run = daskrl.train(
        by_name(name)(**SETTINGS[name]), lambda: ActionMask(game()), store=tmp_path / "run", env_steps=320, streams=2,
        envs_per_stream=2, fragment_steps=8, progress=False,
    ).wait()  # fmt: skip
    assert run.report is not None
    assert np.isfinite(run.report.loss)
    finals = [run.store.read(record)["final_observation.action_mask"] for record in run.store.fragments()]
    assert not np.concatenate(finals).any()


def test_every_other_step_needs_a_mask(tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentFailure, match=r"expected info\['action_mask'\], got the keys \[\]\. Leave ActionMask"
    ):
        daskrl.train(
            daskrl.DQN(), lambda: ActionMask(Forgetful()), store=tmp_path / "run", env_steps=64, progress=False
        ).wait()


def test_a_mask_that_forbids_everything_is_none() -> None:
    import torch

    from daskrl.algorithms.networks import masked
    from daskrl.envs.spaces import ACTION_MASK

    q = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0]])
    mask = {ACTION_MASK: torch.tensor([[0, 0, 0], [1, 0, 1]], dtype=torch.bool)}
    for low in (-np.inf, -1e9):
        assert masked(q, mask, low).tolist() == [[1, 5, 3], [1, low, 3]]


@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("shape", [(3,), (4, 1), (5,)], ids=str)
def test_a_mask_of_another_size_is_refused_before_anything_is_made(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    class Misfit(gymnasium.Wrapper):  # type: ignore[type-arg]
        """Masks of another shape than the actions."""

        def __init__(self) -> None:
            super().__init__(ActionMask(Doors()))
            mask = spaces.MultiBinary(shape)
            self.observation_space = spaces.Dict({"observation": Doors.observation_space, "action_mask": mask})

    said = rf"observation\.action_mask: expected shape \(4,\).*4 actions, got {re.escape(str(shape))}"
    with pytest.raises(ConfigError, match=said):
        daskrl.train(
            by_name(name)(**SETTINGS[name]), Misfit, store=tmp_path / "run", env_steps=640, streams=2,
            envs_per_stream=2, fragment_steps=8,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_mask_alone_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    class Blind(gymnasium.Wrapper):  # type: ignore[type-arg]
        def __init__(self) -> None:
            super().__init__(ActionMask(Doors()))
            self.observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(4)})

    for name in SETTINGS:
        with pytest.raises(ConfigError, match=r"observation\.action_mask: expected an observation beside it"):
            daskrl.train(
                by_name(name)(**SETTINGS[name]), Blind, store=tmp_path / "run", env_steps=640, streams=2,
                envs_per_stream=2, fragment_steps=8,
            )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_q_learning_says_that_it_has_no_masks(tmp_path: Path) -> None:
    def taxi() -> gymnasium.Env:  # type: ignore[type-arg]
        return ActionMask(gymnasium.make("Taxi-v4"))

    with pytest.raises(UnsupportedSpaceError, match=r"no action masks. Leave the mask out .*ActionMask.*, or use dqn"):
        daskrl.train(daskrl.QLearning(), taxi, store=tmp_path / "run", env_steps=9)
    assert not (tmp_path / "run").exists()


def test_an_environment_without_masks_is_told_to_leave_the_wrapper_out(tmp_path: Path) -> None:
    def unmasked() -> gymnasium.Env:  # type: ignore[type-arg]
        return ActionMask(gymnasium.make("CartPole-v1"))

    with pytest.raises(
        EnvironmentFailure, match=r"expected info\['action_mask'\], got the keys \[\]\. Leave ActionMask out"
    ):
        daskrl.train(daskrl.DQN(), unmasked, store=tmp_path / "run", env_steps=64, progress=False).wait()


def test_the_value_of_what_follows_is_that_of_the_best_action_that_may_be_taken() -> None:
    import torch

    from daskrl.algorithms.networks import masked
    from daskrl.envs.spaces import ACTION_MASK

    q = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0]])
    observation = {ACTION_MASK: torch.tensor([[1, 0, 1], [1, 1, 1]], dtype=torch.bool)}
    assert masked(q, observation).argmax(dim=1).tolist() == [2, 1]
    stacked = {ACTION_MASK: torch.tensor([[[1, 1, 1], [1, 0, 1]], [[0, 0, 0], [1, 1, 1]]], dtype=torch.bool)}
    assert masked(q, stacked).argmax(dim=1).tolist() == [2, 1]
    assert masked(q, {}) is q
