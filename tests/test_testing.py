"""The tests that algorithms inherit: built-in and own ones pass them, and each kind of fault is found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import daskrl
from daskrl.algorithms.base import Moment, Setup, Weights, require_box
from daskrl.algorithms.replay import ReplayLearner
from daskrl.algorithms.torch_learner import adam
from daskrl.envs.source import source as source_of
from daskrl.records import Array
from daskrl.tasks.playing import finished, play_steps
from daskrl.testing import AlgorithmTests, Corridor, Reach
from tests.examples import example

DiscreteCQL = example("discrete_cql").DiscreteCQL

QUICK: dict[str, Any] = {
    "hidden": (64,), "learning_starts": 200, "epsilon_steps": 2000, "window": 2048, "target_update": 250,
}  # fmt: skip


class TestDQN(AlgorithmTests):
    def make(self) -> Any:
        return daskrl.DQN(**QUICK)


class TestDQNWithEveryOptionOn(AlgorithmTests):
    def make(self) -> Any:
        return daskrl.DQN(**QUICK, n_step=3, priority_alpha=0.6, dueling=True, learning_rate_end=1e-4)


class TestDiscreteCQL(AlgorithmTests):
    def make(self) -> Any:
        return DiscreteCQL(**QUICK, alpha=0.01)  # values here are below 1


# -- an algorithm without a framework, for continuous actions ------------------------------------------------


@dataclass(frozen=True)
class Regression:
    """Acts by the best of some actions under a quadratic model of the next reward, by least squares."""

    noise: float = 0.3

    def check(self, setup: Setup) -> None:
        require_box(setup, "Regression")

    def policy(self, setup: Setup) -> dict[str, Any]:
        leaf = setup.action
        return {"model": np.zeros(6), "actions": np.linspace(leaf.low[0], leaf.high[0], 61)}

    def load(self, policy: dict[str, Any], weights: Weights) -> None:
        policy["model"] = weights["model"]

    def act(self, policy: dict[str, Any], moment: Moment) -> Array:
        observation, actions = moment.observation["observation"], policy["actions"]
        value = features(observation[:, None], actions[None]) @ policy["model"]  # [N, 61]
        best = actions[value.argmax(axis=1)][:, None]
        if moment.greedy:
            return best.astype(np.float32)
        return (best + self.noise * moment.random.standard_normal(best.shape)).astype(np.float32)

    def learner(self, setup: Setup, random: np.random.Generator) -> RegressionLearner:
        return RegressionLearner()


def features(observation: Array, action: Array) -> Array:
    """``[..., 6]`` of the distance to the target and the action."""
    distance = observation[..., 1] - observation[..., 0]
    distance, action = np.broadcast_arrays(distance, action)
    columns = [np.ones_like(action), distance, action, distance**2, action**2, distance * action]
    return np.stack(columns, axis=-1).astype(np.float64)


class RegressionLearner:
    memory = 0

    def __init__(self) -> None:
        self.updates, self.model = 0, np.zeros(6)
        self.left, self.right = 1e-3 * np.eye(6), np.zeros(6)
        self.round: Sequence[Mapping[str, Array]] = ()

    def skip(self, rounds: int) -> None: ...

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        self.round = fragments

    def learn(self, random: np.random.Generator) -> float:
        for fragment in self.round:
            action = np.clip(fragment["action"][..., 0], -1, 2)  # as the environment took it
            x = features(fragment["observation"][:-1], action).reshape(-1, 6)
            self.left = self.left + x.T @ x
            self.right = self.right + x.T @ fragment["reward"].reshape(-1)
        self.model = np.linalg.solve(self.left, self.right)  # type: ignore[assignment]
        self.updates += 1
        return float(np.abs(self.model).mean())

    def weights(self) -> Weights:
        return {"model": self.model}

    def state(self) -> Mapping[str, Array]:
        return {"left": self.left, "right": self.right, "model": self.model, "updates": np.array(self.updates)}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.left, self.right, self.model = state["left"], state["right"], state["model"]
        self.updates = int(state["updates"])


class TestWithoutAFramework(AlgorithmTests):
    env, env_steps, score = Reach, 2048, -1.5

    def make(self) -> Any:
        return Regression()


class Rows(list):  # type: ignore[type-arg]
    """Fragments as a learner staged them."""


class StagingLearner(RegressionLearner):
    def stage(self, fragments: Sequence[Mapping[str, Array]]) -> Rows:
        return Rows(fragments)

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        assert isinstance(fragments, Rows)
        super().append(fragments)


class Staging(Regression):
    def learner(self, setup: Setup, random: np.random.Generator) -> RegressionLearner:
        return StagingLearner()


class TestALearnerThatStages(AlgorithmTests):
    env, env_steps, score = Reach, 2048, -1.5

    def make(self) -> Any:
        return Staging()


# -- faults --------------------------------------------------------------------------------------------------


class GlobalRandom(daskrl.DQN):
    """Draws from NumPy's global generator."""

    def act(self, policy: Any, moment: Moment) -> Array:
        best = super().act(policy, dataclasses.replace(moment, greedy=True))
        return best if moment.greedy else np.where(np.random.random(len(best)) < 0.5, 0, best)  # noqa: NPY002


class GlobalDropout(daskrl.DQN):
    """Learns with torch's global generator."""

    def loss(self, learner: ReplayLearner, batch: Any) -> Any:
        loss, td_error = super().loss(learner, batch)
        return loss * torch.rand(()), td_error


class OwnRandom(daskrl.DQN):
    """Draws from a generator that nobody seeded."""

    def act(self, policy: Any, moment: Moment) -> Array:
        return super().act(policy, dataclasses.replace(moment, random=np.random.default_rng()))


class SameRandom(daskrl.DQN):
    """Draws the same numbers in every stream and round."""

    def act(self, policy: Any, moment: Moment) -> Array:
        return super().act(policy, dataclasses.replace(moment, random=np.random.default_rng(0)))


class NeverGreedy(daskrl.DQN):
    """Explores in evaluations, too."""

    def act(self, policy: Any, moment: Moment) -> Array:
        return super().act(policy, dataclasses.replace(moment, greedy=False))


class Scribbles(daskrl.DQN):
    """Scales observations where they are."""

    def act(self, policy: Any, moment: Moment) -> Array:
        moment.observation["observation"][...] *= 0.5
        return super().act(policy, moment)


class BeyondTheLast(daskrl.DQN):
    """Counts actions from 1."""

    def act(self, policy: Any, moment: Moment) -> Array:
        return super().act(policy, moment) + 1


class Forgets(ReplayLearner):
    """Leaves the optimizer out of its checkpoints."""

    def state(self) -> dict[str, Array]:
        return {name: value for name, value in super().state().items() if not name.startswith("optimizer")}


class ForgetsTheTarget(ReplayLearner):
    """Takes the online network for the target when it is restored."""

    def restore(self, state: Mapping[str, Array]) -> None:
        super().restore({**state, "target": state["online"]})


class Aliases(ReplayLearner):
    """Publishes views of what it learns."""

    def weights(self) -> Weights:
        return {name: value.detach().numpy() for name, value in self.online.named_parameters()}


class Pickles(ReplayLearner):
    """Saves what is not an array."""

    def state(self) -> Any:
        return {**super().state(), "optimizer": self.optimizers[""][0].state_dict()}


class GlobalInit(ReplayLearner):
    """Begins with weights drawn from torch's global generator."""

    def __init__(self, *given: Any, online: Any, **others: Any) -> None:
        super().__init__(*given, online=online, **others)  # type: ignore[misc]
        self.flat_online.weights.copy_(torch.rand_like(self.flat_online.weights))


@dataclass(frozen=True)
class With(daskrl.DQN):
    """DQN with another learner."""

    kind: type[ReplayLearner] = ReplayLearner

    def learner(self, setup: Setup, random: np.random.Generator) -> ReplayLearner:
        learner = self.kind(self, setup, random, self.update, online=self.policy(setup), target=self.policy(setup))
        learner.optimize(adam(self.learning_rate))
        return learner


@dataclass(frozen=True)
class Heavy(daskrl.DQN):
    """Carries a table with it."""

    table: Any = None


def suite(algorithm: Any) -> AlgorithmTests:
    class Suite(AlgorithmTests):
        def make(self) -> Any:
            return algorithm

    return Suite()


# What each fault is found by, and what it says.
FAULTS = [
    (
        GlobalRandom(**QUICK),
        "test_global_random_states_are_left_alone",
        "act draws from the global generator of numpy.random:",
    ),
    (GlobalRandom(**QUICK), "test_acting_follows_from_weights_observations_and_the_generator", "asked again"),
    (
        GlobalDropout(**QUICK),
        "test_global_random_states_are_left_alone",
        "learn draws from the global generator of torch:",
    ),
    (OwnRandom(**QUICK), "test_acting_follows_from_weights_observations_and_the_generator", "asked again"),
    (SameRandom(**QUICK), "test_exploring_draws_from_the_generator", "explore alike"),
    (NeverGreedy(**QUICK), "test_greedy_acting_does_not_depend_on_the_generator", "nothing where greedy"),
    (Scribbles(**QUICK), "test_acting_leaves_observations_and_weights_as_they_are", "writes to the observation"),
    (BeyondTheLast(**QUICK), "test_actions_fit_the_action_space", "below 3"),
    (
        With(**QUICK, kind=Forgets),
        "test_a_learner_lost_and_restored_from_a_checkpoint_goes_on_to_the_same_weights",
        "state.. lacks",
    ),
    (
        With(**QUICK, kind=ForgetsTheTarget),
        "test_a_learner_lost_and_restored_from_a_checkpoint_goes_on_to_the_same_weights",
        "state.. lacks",
    ),
    (With(**QUICK, kind=Forgets), "test_a_run_stopped_and_resumed_has_the_digest_of_one_never_stopped", "differ"),
    (With(**QUICK, kind=Aliases), "test_what_was_published_or_saved_is_not_written_to_again", "return a copy"),
    (
        With(**QUICK, kind=Pickles),
        "test_weights_and_state_are_numeric_arrays_with_the_same_names_and_shapes_at_every_version",
        "is a dict",
    ),
    (With(**QUICK, kind=GlobalInit), "test_first_weights_follow_from_the_generator", "draw them from"),
    (Heavy(**QUICK, table=np.zeros(100_000)), "test_it_reaches_workers_as_a_few_bytes", "keep arrays"),
    (daskrl.DQN(**{**QUICK, "learning_rate": 1e-9}), "test_it_learns", "below 0.9"),
    (
        daskrl.DQN(learning_starts=10_000),
        "test_a_learner_lost_and_restored_from_a_checkpoint_goes_on_to_the_same_weights",
        "no update in 4096 steps",
    ),
]


@pytest.mark.parametrize(("algorithm", "test", "says"), FAULTS)
def test_each_fault_is_found_by_its_test(algorithm: Any, test: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        getattr(suite(algorithm), test)()


# -- the toys ------------------------------------------------------------------------------------------------


def mean(env: Any, act: Any) -> float:
    found = source_of(env)
    played = finished(play_steps(found.factory, found.spec, act, episodes=300, seed=1, frame_stack=1))
    return float(np.mean([episode[1] for episode in played]))


def test_the_corridor_is_worth_what_it_says() -> None:
    random = np.random.default_rng(0)
    assert mean(Corridor, lambda o, _: 2 * (o["observation"][:, 1] > 0)) == pytest.approx(0.97, abs=0.005)
    assert mean(Corridor, lambda o, _: random.integers(0, 3, 16)) == pytest.approx(-0.2, abs=0.15)
    assert mean(Corridor, lambda o, _: np.full(16, 2)) < 0.3


def test_reaching_is_worth_what_it_says() -> None:
    random = np.random.default_rng(0)

    def towards(observation: Any, _: Any, low: float = -1.0, high: float = 2.0) -> Array:
        point, target = observation["observation"].T
        return np.clip(5 * (target - point), low, high)[:, None].astype(np.float32)

    assert mean(Reach, towards) == pytest.approx(-0.9, abs=0.15)
    assert mean(Reach, lambda o, _: random.uniform(-1, 2, (16, 1))) == pytest.approx(-7, abs=1.0)
    assert mean(Reach, lambda o, s: towards(o, s, high=1.0)) < mean(Reach, towards) - 0.2


def test_all_tests_can_be_called_without_pytest() -> None:
    class Few(AlgorithmTests):
        def make(self) -> Any:
            return daskrl.DQN(**QUICK)

        def test_it_learns(self) -> None: ...

        def test_a_run_stopped_and_resumed_has_the_digest_of_one_never_stopped(self) -> None: ...

    names = Few().run()
    assert "test_it_learns" in names
    assert len(names) == 13


def test_an_environment_can_be_a_function_of_the_test_class() -> None:
    class Numbered(TestDQN):
        def env() -> Any:  # type: ignore[misc]
            return Corridor(numbered=True)

    Numbered().test_actions_fit_the_action_space()
    Numbered().test_it_learns()
