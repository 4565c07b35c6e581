"""Names that are mistyped, and numbers as people type them, in Python and on the command line."""

# mypy: disable-error-code="call-arg, call-overload"
from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import daskrl
from daskrl import sinks
from daskrl.algorithms import BUILT_IN
from daskrl.errors import ConfigError, UnknownNameError
from daskrl.names import did_you_mean
from tests.promise import start


class Plain(daskrl.DQN):  # type: ignore[misc, valid-type]
    """A subclass with an ``__init__`` of its own."""

    def __init__(self, mine: int = 1, **settings: Any) -> None:
        object.__setattr__(self, "mine", mine)
        super().__init__(**settings)


@dataclass(frozen=True)
class Mine(daskrl.PPO):  # type: ignore[misc, valid-type]
    """A dataclass of somebody else's."""

    mine: int = 3


@pytest.mark.parametrize(
    ("call", "who", "meant"),
    [
        (lambda: daskrl.DQN(learning_rat=1e-3), "DQN", "learning_rate"),
        (lambda: daskrl.QLearning(learningRate=0.1), "QLearning", "learning_rate"),
        (lambda: daskrl.PPO(normalize_observation=True), "PPO", "normalise_observation"),
        (lambda: daskrl.SAC(gamma=0.9), "SAC", "discount"),
        (lambda: daskrl.TD3(buffer_size=10), "TD3", "window"),
        (lambda: Plain(learning_rat=1e-3), "DQN", "learning_rate"),
        (lambda: Mine(epoch=1), "Mine", "epochs"),
        (lambda: Mine(mien=1), "Mine", "mine"),
        (lambda: dataclasses.replace(daskrl.DQN(), n_steps=3), "DQN", "n_step"),
        (lambda: daskrl.Schedule(stream=3), "Schedule", "streams"),
        (lambda: daskrl.train(daskrl.DQN(), "CartPole-v1", store="never", env_step=9), "train", "env_steps"),
        (lambda: daskrl.train(daskrl.DQN(), "CartPole-v1", store="never", env_steps=9, fragment_step=1), "train",
         "fragment_steps"),
        (lambda: daskrl.train(daskrl.DQN(), "CartPole-v1", store="never", total_timesteps=9), "train", "env_steps"),
        (lambda: daskrl.resume("never", env_step=9), "resume", "env_steps"),
        (lambda: daskrl.evaluate("never", episode=9), "evaluate", "episodes"),
        (lambda: daskrl.reproduce("never", fragments=9), "reproduce", "fragment"),
        (lambda: daskrl.watch("never", intervall=9), "watch", "interval"),
        (lambda: daskrl.learning_curve(stores="never"), "learning_curve", "store"),
        (lambda: sinks.tensorboard([], dirctory="never"), "tensorboard", "directory"),
        (lambda: sinks.mlflow([], experimnt="never"), "mlflow", "experiment"),
        (lambda: sinks.prometheus([], ports=1), "prometheus", "port"),
    ],
)  # fmt: skip
def test_a_mistyped_argument_is_an_error_with_the_one_that_may_be_meant(
    call: Callable[[], Any], who: str, meant: str
) -> None:
    with pytest.raises(UnknownNameError, match=rf"^{who} has no argument '\w+'\. Did you mean {meant}\?") as raised:
        call()
    assert isinstance(raised.value, TypeError)
    assert isinstance(raised.value, ConfigError)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_algorithm_suggests_and_looks_and_pickles_as_before(name: str) -> None:
    cls = BUILT_IN[name]
    with pytest.raises(UnknownNameError, match=f"{cls.__name__} has no argument 'discuont'. Did you mean discount"):
        cls(discuont=0.5)
    assert list(inspect.signature(cls).parameters) == [field.name for field in dataclasses.fields(cls)]
    made = cls(discount=0.5)
    assert pickle.loads(pickle.dumps(made)) == cloudpickle.loads(cloudpickle.dumps(made)) == made
    assert dataclasses.replace(made, discount=0.25).discount == 0.25


def test_settings_of_a_subclass_are_known() -> None:
    assert (Plain(2, n_step=3).mine, Plain(mine=2, n_step=3).n_step) == (2, 3)  # type: ignore[attr-defined]
    assert (Mine(mine=2).mine, cloudpickle.loads(cloudpickle.dumps(Mine(mine=2))).mine) == (2, 2)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("DQNN", "DQN"), ("dqn", "DQN"), ("QrDqn", "QRDQN"), ("q_learning", "QLearning"), ("trian", "train")],
)
def test_a_mistyped_attribute_of_the_package_is_an_error_with_the_one_that_may_be_meant(name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'\. Did you mean {meant}\?"):
        getattr(daskrl, name)


def test_a_mistyped_algorithm_is_an_error_with_the_one_that_may_be_meant() -> None:
    from daskrl.algorithms import by_name

    with pytest.raises(ConfigError, match=r"got 'qrdqnn'\. Did you mean qr-dqn\?"):
        by_name("qrdqnn")


@pytest.mark.parametrize("name", ["clusters", "sinks", "testing", "envs", "networks"])
def test_what_the_readme_names_is_there_without_an_import_of_its_own(name: str) -> None:
    assert getattr(daskrl, name).__name__.endswith(name)


def test_what_is_far_from_all_names_is_given_no_other() -> None:
    assert did_you_mean("colour", ["discount", "window"]) == ""
    assert did_you_mean("gamma", ["window"]) == ""


# -- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (32, (32,)),
        (32.0, (32,)),
        (np.int64(32), (32,)),
        ([32, 16.0], (32, 16)),
        (np.array([32, 16]), (32, 16)),
        ((), ()),
    ],
)
@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"q-learning"}))
def test_one_number_a_list_or_an_array_is_a_tuple_of_integers(name: str, given: Any, taken: tuple[int, ...]) -> None:
    if name == "r2d2" and not taken:
        pytest.skip("it needs a layer before its LSTM")
    made = BUILT_IN[name](hidden=given)
    assert made.hidden == taken
    assert all(type(size) is int for size in made.hidden)


@pytest.mark.parametrize("given", [1e6, np.float64(1e6), np.int32(10**6)])
def test_a_float_that_is_an_integer_is_one(given: Any) -> None:
    made = daskrl.DQN(window=given, learning_rate_updates=given)
    assert made == daskrl.DQN(window=1_000_000, learning_rate_updates=1_000_000)
    assert type(made.window) is int
    assert daskrl.PPO(anneal_steps=given) == daskrl.PPO(anneal_steps=10**6)
    assert daskrl.Schedule(streams=given) == daskrl.Schedule(streams=10**6)


@pytest.mark.parametrize("given", [64.5, float("inf"), float("nan"), "64", True])
def test_what_is_no_integer_is_refused_as_it_was_given(given: Any) -> None:
    for setting in ("window", "hidden"):
        with pytest.raises(ConfigError, match=f"{setting}: expected an integer.*, got {given!r}"):
            daskrl.DQN(**{setting: given})
    with pytest.raises(ConfigError, match=f"streams: expected an integer >= 1, got {given!r}"):
        daskrl.Schedule(streams=given)


def test_numbers_of_a_run_may_be_floats_and_numpys_and_the_run_is_the_same(tmp_path: Path) -> None:
    seed = np.arange(8)[7]
    whole = start(tmp_path / "whole", env_steps=256).wait()
    other = start(
        tmp_path / "other", env_steps=2.56e2, seed=seed, streams=4.0, checkpoint_every=np.int64(3), recheck_every=2.56e2
    ).wait()
    assert other.store.config.to_json() == whole.store.config.to_json()
    assert other.store.digest() == whole.store.digest()
    more = daskrl.resume(other.store.root, env_steps=5.12e2, progress=False)
    assert (more.env_steps, type(more.env_steps)) == (512, int)
    played = daskrl.evaluate(other.store, episodes=2.0, seed=seed)
    assert played == daskrl.evaluate(other.store, episodes=2, seed=7)
