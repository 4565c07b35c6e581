"""Evaluation: greedy, deterministic, and of any version of the weights that is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import daskrl
from daskrl import errors
from daskrl.algorithms.base import Moment, Setup
from tests import environments
from tests.walks import SETTINGS, start


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Run:
    return start(tmp_path_factory.mktemp("evaluate") / "run", weights_every=4).wait()


def test_the_same_seed_gives_the_same_returns_and_another_seed_others(run: daskrl.Run) -> None:
    once, again = (daskrl.evaluate(run.store.root, episodes=20, seed=5) for _ in range(2))
    assert once == again
    other = daskrl.evaluate(run.store, episodes=20, seed=6)
    assert other.returns != once.returns
    assert len(once.returns) == len(once.lengths) == 20
    assert once.mean == pytest.approx(sum(once.returns) / 20)
    assert once.median == pytest.approx(sorted(once.returns)[9] / 2 + sorted(once.returns)[10] / 2)


def test_every_version_kept_can_be_evaluated_and_one_that_is_not_is_refused_with_those_that_are(
    run: daskrl.Run,
) -> None:
    assert run.store.weights_versions() == [0, 4, 8, 10]
    for version in run.store.weights_versions():
        assert daskrl.evaluate(run.store, episodes=2, version=version).weights_version == version
    assert daskrl.evaluate(run.store, episodes=2).weights_version == 10
    with pytest.raises(errors.ConfigError, match=r"keeps weights versions \[0, 4, 8, 10\], not 5"):
        daskrl.evaluate(run.store, version=5)


def test_a_store_before_its_first_version_says_that_there_is_none(tmp_path: Path) -> None:
    fresh = start(tmp_path / "run")
    with pytest.raises(errors.ConfigError, match="has no weights yet"):
        daskrl.evaluate(fresh.store)


def test_returns_are_those_of_a_plain_loop_over_the_environment(run: daskrl.Run) -> None:
    """An episode of one evaluated environment, against the loop that anybody would write."""
    from daskrl import seeding

    _, weights = run.store.weights()
    policy = run.algorithm.policy(Setup(run.store.spec, run.store.config.schedule))
    run.algorithm.load(policy, weights)
    env = environments.Walk()
    observation, _ = env.reset(seed=seeding.environment_seed(8, 0, 0, 0, "evaluate_environment"))
    total, length, ended = 0.0, 0, False
    while not ended:
        with torch.inference_mode():
            moment = Moment({"observation": observation[None]}, np.random.default_rng(0), greedy=True)
            action = int(run.algorithm.act(policy, moment)[0])
        observation, reward, terminated, truncated, _ = env.step(action)
        total, length, ended = total + reward, length + 1, terminated or truncated
    played = daskrl.evaluate(run.store, episodes=1, seed=8)
    assert played.lengths == (length,)
    np.testing.assert_allclose(played.returns, [total], rtol=1e-12)


def test_the_threads_of_the_process_neither_matter_nor_change(run: daskrl.Run) -> None:
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(daskrl.evaluate(run.store, episodes=5))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert results[0] == results[1]


def test_more_episodes_than_are_played_at_once_are_each_played_once(run: daskrl.Run) -> None:
    many = daskrl.evaluate(run.store, episodes=40, seed=5)
    assert len(many.returns) == 40
    assert len(set(many.returns)) == 40  # each from a seed of its own


def test_the_runs_own_algorithm_and_environment_are_given_again(tmp_path: Path) -> None:
    class Mine(daskrl.DQN):  # type: ignore[misc, valid-type]
        pass

    store = tmp_path / "run"
    start(store, env=environments.walk, algorithm=Mine(**SETTINGS), env_steps=32).wait()
    with pytest.raises(errors.StoreMismatchError, match="env=walk"):
        daskrl.evaluate(store, episodes=1)
    with pytest.raises(errors.StoreMismatchError, match="Mine"):
        daskrl.evaluate(store, episodes=1, env=environments.walk)
    result = daskrl.evaluate(store, episodes=1, env=environments.walk, algorithm=Mine(**SETTINGS))
    assert result.weights_version == 1


@pytest.mark.parametrize(("given", "name"), [({"episodes": 0}, "episodes"), ({"seed": -1}, "seed")])
def test_a_wrong_number_is_refused(run: daskrl.Run, given: dict[str, int], name: str) -> None:
    with pytest.raises(errors.ConfigError, match=name):
        daskrl.evaluate(run.store, **given)
