"""Playing greedy episodes: each once, from a seed of its own, and cut where it never ends."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import daskrl
from daskrl import errors, seeding
from daskrl.algorithms.base import Setup
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.shown import shown
from daskrl.tasks import evaluations, playing
from daskrl.watching.figures import rows
from daskrl.watching.watch import Reader
from tests.oracles import Scripted, length
from tests.typed import daskrl_


class Endless(gymnasium.Env[Any, Any]):
    """Every other episode never ends; the others do after 3 steps. Each step is worth 1."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Discrete(2), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.ends, self.count = seed % 2 == 0, 0
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return 0, 1.0, self.ends and self.count == 3, False, {}


def endless(episodes: int, seed: int) -> list[bool]:
    return [seeding.environment_seed(seed, 0, 0, i, "evaluate_environment") % 2 == 1 for i in range(episodes)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("playing") / "run"
    daskrl.train(daskrl.QLearning(), Endless, store=place, env_steps=64, streams=1, envs_per_stream=2,
                 fragment_steps=8, progress=False).wait()  # fmt: skip
    return place


def test_every_episode_is_played_once_from_a_seed_of_its_own() -> None:
    spec = spec_of(Scripted.observation_space, Scripted.action_space)
    widths = set()

    def policy(observation: Any, state: Any) -> Any:
        widths.add(len(observation["observation"]))
        return np.full(len(observation["observation"]), 1)

    played = sorted(
        playing.finished(playing.play_steps(Scripted, spec, policy, episodes=7, seed=3, frame_stack=1, lanes=3))
    )
    steps = [length(seeding.environment_seed(3, 0, 0, i, "evaluate_environment")) for i in range(7)]
    assert played == [(i, sum(10 * s + 1 for s in range(1, n + 1)), n, False) for i, n in enumerate(steps)]
    assert widths == {3}


def test_an_episode_that_does_not_end_is_cut_and_the_result_says_how_many_were(store: Path) -> None:
    cut = endless(20, seed=1)
    assert 0 < sum(cut) < 20
    result = daskrl.evaluate(store, env=Endless, episodes=20, max_episode_steps=50)
    assert result.lengths == tuple(50 if long else 3 for long in cut)
    assert result.returns == tuple(float(n) for n in result.lengths)
    assert result.limited == sum(cut)
    assert result.mean == np.mean(result.lengths)  # of all, and said so
    said = f"{sum(cut)} of 20, after 50 steps; the mean includes them"
    assert said in repr(result)
    assert said in result._repr_html_()
    assert result.to_json()["limited"] == sum(cut)
    assert result.to_json()["max_episode_steps"] == 50


def test_without_a_word_an_episode_is_cut_after_as_many_steps_as_a_game_of_the_ale_has(store: Path) -> None:
    result = daskrl.evaluate(store, env=Endless, episodes=2, seed=1)
    assert result.lengths == tuple(27_000 if long else 3 for long in endless(2, seed=1))
    assert 27_000 in result.lengths


def test_an_episode_that_ends_at_the_limit_is_not_cut(store: Path) -> None:
    result = daskrl.evaluate(store, env=Endless, episodes=20, max_episode_steps=3)
    assert set(result.lengths) == {3}
    assert result.limited == sum(endless(20, seed=1))
    assert daskrl.evaluate(store, env=Endless, episodes=20, max_episode_steps=2).limited == 20


def test_no_limit_is_none_and_zero_is_refused(store: Path) -> None:
    seed = next(seed for seed in range(100) if not any(endless(2, seed)))
    result = daskrl.evaluate(store, env=Endless, episodes=2, seed=seed, max_episode_steps=None)
    assert (result.lengths, result.limited, result.max_episode_steps) == ((3, 3), 0, None)
    assert "cut" not in repr(result)
    with pytest.raises(errors.ConfigError, match="max_episode_steps"):
        daskrl.evaluate(store, env=Endless, max_episode_steps=0)


def test_a_greedy_policy_that_walks_into_the_wall_for_ever_does_not_keep_the_command_line(tmp_path: Path) -> None:
    done = daskrl_(
        "train", "CliffWalking-v1", "--algorithm", "q-learning", "--store", "run", "--env-steps", "512",
        "--streams", "2", "--workers", "0", "--episodes", "2", "--json", cwd=tmp_path,
    )  # fmt: skip
    summary = json.loads(done.stdout)
    assert "greedy_return_2_episodes" in summary
    assert summary["cut_episodes"] == "2 of 2, after 27,000 steps; the mean includes them"
    typed = ("evaluate", "run", "--episodes", "3", "--max-episode-steps", "100")
    assert json.loads(daskrl_(*typed, "--json", cwd=tmp_path).stdout)["limited"] == 3
    assert "3 of 3, after 100 steps" in " ".join(daskrl_(*typed, cwd=tmp_path).stdout.split())


def test_given_weights_are_played_on_one_thread_without_a_store() -> None:
    algorithm = daskrl.QLearning()
    setup = Setup(spec_of(spaces.Discrete(2), spaces.Discrete(2)), Schedule())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        notes: list[tuple[int, int]] = []
        played = playing.play(
            algorithm, setup, Endless, {"q": np.zeros((2, 2))}, episodes=4, seed=1, limit=600,
            note=lambda over, steps: notes.append((over, steps)),
        )  # fmt: skip
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    cut = endless(4, seed=1)
    assert played == [(i, n, n, n == 600) for i, n in enumerate(600.0 if long else 3.0 for long in cut)]
    assert notes == [(4 - sum(cut), 256 * 4), (4 - sum(cut), 512 * 4)]


def test_an_evaluation_while_the_run_goes_on_shows_the_episodes_that_were_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "MAX_EPISODE_STEPS", 50)
    run = daskrl.train(daskrl.QLearning(), Endless, store=tmp_path / "run", env_steps=64, streams=1, envs_per_stream=2,
                       fragment_steps=8, progress=False, evaluate_every=2, evaluate_episodes=20).wait()  # fmt: skip
    cut = sum(endless(20, seed=evaluations.SEED))
    assert {record["limited"] for record in run.store.evaluations()} == {cut}
    figures = Reader(run.store).read()
    mean = (20 - cut) * 3 / 20 + cut * 50 / 20
    assert rows(figures, 0.0)["evaluation"] == f"{shown(mean)} (version 4, {cut} episodes cut)"
    assert rows(figures, 0.0)["best"] == f"{shown(mean)} (version 0, {cut} episodes cut)"


class SlowToMake(Endless):
    """Takes a fifth of the time that there is for a fragment to be made, and as long to be reset."""

    def __init__(self) -> None:
        super().__init__()
        threading.Event().wait(0.1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        threading.Event().wait(0.1 if seed is not None else 0)
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return 0, 1.0, False, True, {}


def test_an_evaluation_has_the_time_of_a_fragment_for_each_environment_that_it_makes(tmp_path: Path) -> None:
    run = daskrl.train(
        daskrl.QLearning(), SlowToMake, store=tmp_path / "run", env_steps=1, streams=1, envs_per_stream=1,
        fragment_steps=1, progress=False, evaluate_every=1, evaluate_episodes=8, rollout_timeout=0.5, recheck_every=0,
    ).wait()  # fmt: skip
    assert [len(record["returns"]) for record in run.store.evaluations()] == [8, 8]
