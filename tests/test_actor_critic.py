"""PPO and IMPALA: targets against naive sums, gradients by hand, and the promise with recurrent state on board."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import daskrl
from daskrl.algorithms import IMPALA, PPO
from daskrl.algorithms.actor_critic import RunningMoments, Trajectories, flat, greedy, log_prob, sample
from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.impala import vtrace
from daskrl.algorithms.networks import LSTM, initialise
from daskrl.algorithms.ppo import gae
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.errors import ConfigError, UnsupportedSpaceError
from tests.naive import GAMMA, LAMBDA, LANES, STEPS, naive_vtrace, tensors
from tests.oracles import Sampled


def random_round(seed: int) -> dict[str, np.ndarray]:
    """Rewards, endings and values of a round; some episodes are terminated, some truncated."""
    random = np.random.default_rng(seed)
    shape = (STEPS, LANES)
    terminated = random.random(shape) < 0.15
    truncated = (random.random(shape) < 0.15) & ~terminated
    value = random.normal(size=shape)
    ended = terminated | truncated
    # The next value is the value of the next row, but of its own last observation where an episode was cut.
    following = np.concatenate([value[1:], random.normal(size=(1, LANES))])
    following = np.where(ended, random.normal(size=shape), following)
    return {
        "reward": random.normal(size=shape),
        "discount": np.where(terminated, 0.0, GAMMA),
        "ended": ended,
        "value": value,
        "next_value": following,
        "log_rho": random.normal(size=shape),
    }


# -- targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_an_advantage_is_the_sum_of_decayed_td_errors_to_the_end_of_the_episode(seed):
    arrays = random_round(seed)
    found = gae(*tensors(arrays, "reward", "discount", "ended", "value", "next_value"), GAMMA * LAMBDA)  # type: ignore[call-arg]
    for lane in range(LANES):
        for t in range(STEPS):
            expected, weight = 0.0, 1.0
            for k in range(t, STEPS):
                delta = (
                    arrays["reward"][k, lane]
                    + arrays["discount"][k, lane] * arrays["next_value"][k, lane]
                    - arrays["value"][k, lane]
                )
                expected += weight * delta
                weight *= GAMMA * LAMBDA
                if arrays["ended"][k, lane]:
                    break
            assert float(found[t, lane]) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_an_advantage_bootstraps_from_a_truncated_end_and_not_from_a_terminated_one():
    one = torch.ones(1, 2, dtype=torch.float64)
    discount = torch.tensor([[0.0, GAMMA]], dtype=torch.float64)  # terminated, truncated
    found = gae(one, discount, torch.ones(1, 2, dtype=torch.bool), 2 * one, 5 * one, GAMMA * LAMBDA)
    np.testing.assert_allclose(found.numpy(), [[1 - 2, 1 + GAMMA * 5 - 2]], rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rho_clip", "c_clip", "lambda_"), [(1.0, 1.0, 1.0), (2.0, 0.5, 0.9)])
def test_vtrace_targets_are_the_printed_sums(seed, rho_clip, c_clip, lambda_):
    arrays = random_round(seed)
    names = ("log_rho", "reward", "discount", "ended", "value", "next_value")
    found = vtrace(*tensors(arrays, *names), rho_clip=rho_clip, c_clip=c_clip, lambda_=lambda_)
    target, advantage = naive_vtrace(arrays, rho_clip, c_clip, lambda_)
    np.testing.assert_allclose(found.value.numpy(), target, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.advantage.numpy(), advantage, rtol=1e-10, atol=1e-12)


def test_vtrace_of_the_acting_policy_itself_is_the_n_step_return():
    arrays = random_round(0)
    arrays["log_rho"][:] = 0
    arrays["ended"][:] = False
    arrays["discount"][:] = GAMMA
    arrays["next_value"] = np.concatenate([arrays["value"][1:], arrays["next_value"][-1:]])
    found = vtrace(*tensors(arrays, "log_rho", "reward", "discount", "ended", "value", "next_value"))
    expected = arrays["next_value"][-1]
    for t in range(STEPS - 1, -1, -1):
        expected = arrays["reward"][t] + GAMMA * expected
        np.testing.assert_allclose(found.value[t].numpy(), expected, rtol=1e-10)


# -- sampling ---------------------------------------------------------------------------------------------


def test_discrete_actions_are_drawn_as_often_as_they_are_probable():
    probability = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    distribution = torch.distributions.Categorical(probs=probability.expand(20_000, 4), validate_args=False)
    drawn = np.bincount(sample(distribution, np.random.default_rng(0)), minlength=4) / 20_000
    assert drawn[1] == 0
    np.testing.assert_allclose(drawn, probability[0].numpy(), atol=0.01)
    assert greedy(distribution)[0] == 2


def test_continuous_actions_have_the_mean_and_deviation_of_the_policy():
    normal = torch.distributions.Normal(torch.tensor([[1.0, -2.0]]).expand(20_000, 2), torch.tensor([0.5, 2.0]))
    distribution = torch.distributions.Independent(normal, 1)
    drawn = sample(distribution, np.random.default_rng(0))
    np.testing.assert_allclose(drawn.mean(axis=0), [1, -2], atol=0.05)
    np.testing.assert_allclose(drawn.std(axis=0), [0.5, 2], atol=0.05)
    np.testing.assert_array_equal(greedy(distribution)[0], [1, -2])


def test_the_stored_log_probability_is_that_of_the_action():
    setup = Setup(spec_of(spaces.Box(-1, 1, (3,)), spaces.Discrete(4)), Schedule())
    algorithm = PPO()
    policy = initialise(algorithm.policy(setup), np.random.default_rng(0))
    observation = {"observation": np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)}
    with torch.inference_mode():
        action, extra = algorithm.act(policy, Moment(observation, np.random.default_rng(2)))
        logits = policy(
            {"observation": torch.from_numpy(observation["observation"])},
        )[0].logits
    expected = torch.log_softmax(logits, 1)[torch.arange(5), torch.from_numpy(action)]
    np.testing.assert_allclose(extra["behavior_log_prob"], expected.numpy(), rtol=1e-6)


# -- parts ------------------------------------------------------------------------------------------------


def test_moments_of_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(3, 2, size=(1000, 4))
    moments = RunningMoments(4)
    for part in np.split(values, [1, 10, 500]):
        moments.add(part)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.deviation, values.std(axis=0), rtol=1e-6)


@pytest.mark.parametrize("often", [0.0, 0.1, 0.5, 1.0])
def test_an_lstm_is_a_cell_step_by_step_that_forgets_where_an_episode_begins(often):
    lstm, random = initialise(LSTM(3, 5), np.random.default_rng(0)), np.random.default_rng(1)
    cell = torch.nn.LSTMCell(3, 5)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in lstm.layer.state_dict().items()})
    x = torch.from_numpy(random.standard_normal((9, 4, 3)).astype(np.float32))
    state = torch.from_numpy(random.standard_normal((4, 2, 5)).astype(np.float32))
    begins = torch.from_numpy(random.random((9, 4)) < often)
    outputs, after = lstm(x, state, begins)
    h, c = state[:, 0], state[:, 1]
    expected = []
    for t in range(9):
        goes_on = (~begins[t]).float()[:, None]
        h, c = cell(x[t], (h * goes_on, c * goes_on))
        expected.append(torch.stack([h, c], dim=1))
    torch.testing.assert_close(outputs, torch.stack(expected)[:, :, 0])
    torch.testing.assert_close(after.last, expected[-1])
    step, lane = torch.nonzero(begins[1:], as_tuple=True)  # steps before one at which an episode begins
    torch.testing.assert_close(after.at(step, lane), torch.stack(expected)[step, lane])


@pytest.mark.parametrize("lstm", [0, 6])
def test_next_values_are_those_of_the_observation_after_each_step_also_where_an_episode_is_cut_off(lstm):
    spec = spec_of(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    setup = Setup(spec, Schedule(1, 4, 9, 0))
    network = initialise(PPO(lstm=lstm, hidden=(8, 8)).policy(setup), np.random.default_rng(0))
    random = np.random.default_rng(2)
    shape = (9, 4)
    rows = torch.from_numpy(random.standard_normal((10, 4, 3)).astype(np.float32))
    ended = torch.from_numpy(random.random(shape) < 0.3)
    terminated = ended & torch.from_numpy(random.random(shape) < 0.5)
    last = torch.from_numpy(random.standard_normal((9, 4, 3)).astype(np.float32))
    following = torch.where(ended[:, :, None], last, rows[1:])
    begins = torch.cat([torch.zeros(1, 4, dtype=torch.bool), ended[:-1]])
    zeros = torch.zeros(shape)
    state = torch.from_numpy(random.standard_normal((4, 2, lstm)).astype(np.float32)) if lstm else None
    round_ = Trajectories(
        {"observation": rows[:-1]}, {"observation": following}, zeros.long(), zeros, 0.9 * (~terminated).float(), ended,
        begins, zeros, state,
    )  # fmt: skip
    _, _, got = round_.evaluated(SimpleNamespace(online=network, uncompiled=lambda module: module))
    with torch.no_grad():
        for lane in range(4):
            now = None if state is None else state[lane : lane + 1]
            for t in range(9):
                if begins[t, lane] and now is not None:
                    now = torch.zeros_like(now)
                _, _, after = network({"observation": rows[t, lane : lane + 1]}, now)
                now = None if after is None else after.last
                _, value, _ = network({"observation": following[t, lane : lane + 1]}, now)
                if not terminated[t, lane]:
                    torch.testing.assert_close(got[t, lane], value[0])
    assert got.isfinite().all()


def test_ppo_moves_the_probability_of_good_actions_up_and_no_further_than_the_clip():
    setup = Setup(spec_of(spaces.Box(-1, 1, (1,)), spaces.Discrete(2)), Schedule(1, 1, 8, 0))
    algorithm = PPO(entropy_coef=0.0, value_coef=0.0, normalise_advantage=False, learning_rate=0.05, max_grad_norm=None)
    learner = algorithm.learner(setup, np.random.default_rng(0))
    observation = {"observation": torch.zeros(8, 1, 1)}
    with torch.no_grad():
        before = learner.online({"observation": torch.zeros(8, 1)})[0].log_prob(torch.zeros(8, dtype=torch.int64))
    round_ = Trajectories(
        observation, observation, torch.zeros(8, 1, dtype=torch.int64), torch.zeros(8, 1), torch.zeros(8, 1),
        torch.zeros(8, 1, dtype=torch.bool), torch.zeros(8, 1, dtype=torch.bool), before[:, None], None,
    )  # fmt: skip
    for _ in range(50):
        advantage = torch.ones(8, 1)
        loss = algorithm.loss(learner, round_, advantage, advantage, None, torch.arange(8))
        learner.minimise(loss)
    with torch.no_grad():
        after = learner.online({"observation": torch.zeros(8, 1)})[0].log_prob(torch.zeros(8, dtype=torch.int64))
    ratio = float((after - before).exp()[0])
    assert ratio > 1.2  # the surrogate is flat beyond the clip: the gradient is then exactly 0
    learner.flat_online.gradient.zero_()
    algorithm.loss(learner, round_, torch.ones(8, 1), torch.ones(8, 1), None, torch.arange(8)).backward()
    assert float(learner.flat_online.gradient.abs().max()) == 0.0


def one_update(algorithm: PPO, behavior_log_prob: list[float], advantage: list[float]) -> tuple[torch.Tensor, Any]:
    """The loss of some steps that all took action 0, and the gradient of all parameters."""
    count = len(advantage)
    setup = Setup(spec_of(spaces.Box(-1, 1, (1,)), spaces.Discrete(2)), Schedule(1, 1, count, 0))
    learner = algorithm.learner(setup, np.random.default_rng(0))
    observation, never = {"observation": torch.zeros(count, 1, 1)}, torch.zeros(count, 1, dtype=torch.bool)
    round_ = Trajectories(
        observation, observation, torch.zeros(count, 1, dtype=torch.int64), torch.zeros(count, 1),
        torch.zeros(count, 1), never, never, torch.tensor(behavior_log_prob)[:, None], None,
    )  # fmt: skip
    wanted = torch.tensor(advantage)[:, None]
    loss = algorithm.loss(learner, round_, wanted, torch.zeros(count, 1), None, torch.arange(count))
    loss.backward()
    return loss.detach(), learner.flat_online.gradient.clone()


POLICY_ONLY = PPO(entropy_coef=0.0, value_coef=0.0, normalise_advantage=False)


@pytest.mark.parametrize("before", [-30.0, -1000.0, -1e30])
def test_a_probability_ratio_beyond_any_float_leaves_loss_and_gradient_finite(before):
    """log 0.5 - (-1000) is the logarithm of a ratio that is infinite as a float32; the clip of 1.2 counts."""
    loss, gradient = one_update(POLICY_ONLY, [before, math.log(0.5)], [1.0, 1.0])
    assert float(loss) == pytest.approx(-(1.2 + 1.0) / 2, rel=0.01)  # the first policy is nearly even
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0  # of the other step
    loss, gradient = one_update(POLICY_ONLY, [before, math.log(0.5)], [-1.0, 1.0])
    assert float(loss) == pytest.approx(math.exp(20) / 2, rel=0.01)  # a bad action counts with any ratio up to exp(20)
    assert gradient.isfinite().all()


def test_a_probability_ratio_within_what_floats_hold_is_used_bit_for_bit():
    random = np.random.default_rng(0)
    before = random.uniform(-20, 5, 64).astype(np.float32)
    advantage = random.normal(size=64).astype(np.float32)
    loss, gradient = one_update(POLICY_ONLY, before.tolist(), advantage.tolist())

    class Printed(PPO):
        """Equation 7 as it is printed."""

        def loss(self, learner: Any, round_: Any, advantage: Any, target: Any, lanes: Any, rows: Any) -> Any:
            distribution, _, _ = learner.online({"observation": round_.observation["observation"][:, 0]})
            ratio = torch.exp(log_prob(distribution, round_.action[:, 0]) - round_.behavior_log_prob[:, 0])
            return -torch.minimum(ratio * advantage[:, 0], ratio.clamp(0.8, 1.2) * advantage[:, 0]).mean()

    expected = one_update(Printed(), before.tolist(), advantage.tolist())
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])


def test_vtrace_truncates_a_ratio_beyond_any_float():
    arrays = random_round(0)
    names = ("log_rho", "reward", "discount", "ended", "value", "next_value")
    arrays["log_rho"][:] = 1000.0
    found = vtrace(*tensors(arrays, *names))
    arrays["log_rho"][:] = 0.0
    expected = vtrace(*tensors(arrays, *names))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_advantage_of_a_minibatch_of_one_is_not_normalised():
    """Less its mean it would be 0, over a deviation that is not defined."""
    normalising = PPO(entropy_coef=0.0, value_coef=0.0)
    loss, gradient = one_update(normalising, [math.log(0.5)], [3.0])
    assert float(loss) == pytest.approx(-3.0, rel=0.01)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


# -- whole runs -------------------------------------------------------------------------------------------


class Hidden(gymnasium.ObservationWrapper):  # type: ignore[type-arg]
    """CartPole without its velocities."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[[0, 2]]


def stacked() -> Any:
    """PPO that is shown stacks of frames reaching back beyond the round."""
    return PPO(epochs=2, batch_size=16)


CASES: dict[str, tuple[Any, Any, int]] = {
    "ppo": (lambda: PPO(epochs=2, batch_size=16), "CartPole-v1", 0),
    "ppo, box, normalised": (
        lambda: PPO(epochs=2, batch_size=16, normalise_observation=True, normalise_reward=True), "Pendulum-v1", 0,
    ),
    "ppo, lstm": (lambda: PPO(epochs=2, batch_size=16, lstm=8), Hidden, 0),
    "ppo, 12 stacked frames": (stacked, "CartPole-v1", 0),
    "impala": (lambda: IMPALA(batch_lanes=2, normalise_reward=True), "CartPole-v1", 2),
    "impala, lstm": (lambda: IMPALA(batch_lanes=2, lstm=8), Hidden, 1),
}  # fmt: skip


def start(store: Path, case: str) -> daskrl.Run:
    make, env, lag = CASES[case]
    return daskrl.train(
        make(), env, store=store, env_steps=10 * 64, seed=3, streams=2, envs_per_stream=4, fragment_steps=8, lag=lag,
        checkpoint_every=3, weights_every=2, recheck_every=4, progress=False,
        frame_stack=12 if make is stacked else None,
    )  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_a_run_stopped_and_resumed_is_the_one_never_stopped(tmp_path, case):
    whole = start(tmp_path / "whole", case).wait()
    run = start(tmp_path / "stopped", case)
    env = CASES[case][1]
    for at in (2, 5, 7):
        for report in run:
            if report.weights_version == at:
                break
        run = daskrl.resume(tmp_path / "stopped", env=env if callable(env) else None, progress=False)
    run.wait()
    assert run.store.digest() == whole.store.digest()
    assert whole.report is not None
    assert whole.report.learner_updates > 0


def test_the_recurrent_state_of_a_fragment_is_where_the_one_before_left_it(tmp_path):
    store = start(tmp_path / "run", "ppo, lstm").wait().store
    fragments = {(f["stream"], f["round"]): store.read(f) for f in store.fragments()}
    for (stream, round_), columns in fragments.items():
        if round_ == 0:
            assert not columns["recurrent_state.lstm"][0].any()
            continue
        before = fragments[stream, round_ - 1]
        np.testing.assert_array_equal(columns["recurrent_state.lstm"][0], before["recurrent_state.lstm"][1])
        ended = before["terminated"][-1] | before["truncated"][-1]
        assert not before["recurrent_state.lstm"][1][ended].any()


def test_the_learner_computes_the_log_probabilities_that_acting_stored(tmp_path):
    """At lag 0 the policy learned from is the one that acted: ratios begin at 1, with an LSTM only if its state is."""
    told = tmp_path / "differences"  # what an algorithm keeps stays with its copy

    class Watching(PPO):
        def loss(self, learner: Any, round_: Any, advantage: Any, target: Any, lanes: Any, rows: Any) -> Any:
            if learner.updates % 4 == 0:  # the first update of a round
                some = round_.lanes(lanes)
                with torch.no_grad():
                    distribution, _, _ = learner.online(flat(some.observation), some.state, some.begins)
                    learned = log_prob(distribution, some.action.flatten(0, 1))
                with told.open("a") as file:
                    file.write(f"{float((learned - some.behavior_log_prob.flatten()).abs().max())}\n")
            return super().loss(learner, round_, advantage, target, lanes, rows)

    algorithm = Watching(epochs=1, batch_size=16, lstm=8)
    daskrl.train(
        algorithm, Hidden, store=tmp_path / "run", env_steps=10 * 64, streams=2, envs_per_stream=4, fragment_steps=8,
        progress=False, recheck_every=0,
    ).wait()  # fmt: skip
    differences = [float(line) for line in told.read_text().splitlines()]
    assert len(differences) == 10
    assert max(differences) < 1e-5


def test_ppo_refuses_a_lag_and_names_what_fits(tmp_path):
    with pytest.raises(ConfigError, match=r"expected 0, got 1. Type lag=0, or use IMPALA"):
        daskrl.train(PPO(), "CartPole-v1", store=tmp_path / "run", env_steps=100, lag=1)
    assert not (tmp_path / "run").exists()


def test_an_lstm_without_hidden_layers_is_refused_before_anything_is_made(tmp_path):
    for algorithm in (PPO(lstm=8, hidden=()), IMPALA(lstm=8, hidden=())):
        with pytest.raises(ConfigError, match=r"hidden: expected at least one size with lstm = 8, got \(\)"):
            daskrl.train(algorithm, "CartPole-v1", store=tmp_path / "run", env_steps=100)
    assert not (tmp_path / "run").exists()


def test_an_lstm_behind_images_needs_no_hidden_layers():
    frames = spec_of(spaces.Box(0, 255, (84, 84), np.uint8), spaces.Discrete(2))
    setup = Setup(frames, Schedule(lag=0))
    algorithm = PPO(lstm=8, hidden=())
    algorithm.check(setup)
    algorithm.policy(setup)


def test_a_run_whose_last_minibatch_is_one_transition_learns(tmp_path):
    run = daskrl.train(
        PPO(epochs=1, batch_size=2), "CartPole-v1", store=tmp_path / "run", env_steps=12, streams=1, envs_per_stream=1,
        fragment_steps=3, progress=False, recheck_every=0,
    ).wait()  # fmt: skip
    assert run.report is not None
    assert run.report.learner_updates == 4 * 2
    assert np.isfinite(run.report.loss)


def test_a_space_that_is_neither_discrete_nor_a_box_is_refused():
    setup = Setup(spec_of(spaces.Box(-1, 1, (3,)), spaces.MultiBinary(4)), Schedule(lag=0))
    with pytest.raises(UnsupportedSpaceError, match=r"Discrete space or a Box of floats.*multi_binary"):
        PPO().check(setup)


NORMALISED = {
    "without axes": spaces.Box(-1, 9, (), np.float32),
    "float64 without axes": spaces.Box(-1, 9, (), np.float64),
    "bits": spaces.Box(0, 1, (4,), np.bool_),
    "one bit": spaces.Box(0, 1, (), np.bool_),
    "bytes": spaces.Box(0, 255, (3,), np.uint8),
    "uint16": spaces.Box(0, 60_000, (3,), np.uint16),
    "float16": spaces.Box(-9, 9, (2,), np.float16),
    "int8": spaces.Box(-9, 9, (2, 3), np.int8),
    "discrete": spaces.Discrete(4),
    "multi-binary": spaces.MultiBinary(3),
    "a dict with a picture and a mask": spaces.Dict(
        {
            "a": spaces.Box(0, 1, ()),
            "b": spaces.Box(0, 1, (3,), np.bool_),
            "c": spaces.Tuple((spaces.Discrete(2), spaces.Box(-5, 5, (1,), np.int64))),
            "picture": spaces.Box(0, 255, (12, 12), np.uint8),
            "action_mask": spaces.Box(1, 1, (2,), np.int8),
        }
    ),
}


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("name", NORMALISED)
def test_observations_of_any_box_are_normalised_by_what_was_learned_from(name, frames, tmp_path):
    space = NORMALISED[name]
    run = daskrl.train(
        daskrl.IMPALA(normalise_observation=True, hidden=(8,)), lambda: Sampled(space), store=tmp_path / "run",
        env_steps=96, streams=2, envs_per_stream=2, fragment_steps=8, frame_stack=frames, progress=False,
    ).wait()  # fmt: skip
    assert len(daskrl.evaluate(run.store, episodes=2, env=run.source.factory).returns) == 2
    _, weights = run.store.weights()
    not_scaled = ("observation.picture", "observation.action_mask")
    scaled = [leaf for leaf in run.store.spec.observation if leaf.kind == "box" and leaf.name not in not_scaled]
    means = [weights[f"normalise.means.{i}"] for i in range(len(scaled))]
    assert f"normalise.means.{len(scaled)}" not in weights
    assert [value.shape for value in means] == [leaf.shape for leaf in scaled]
    for leaf, mean in zip(scaled, means, strict=True):
        stored = [run.store.read(record)[leaf.name][:-1] for record in run.store.fragments()]
        if frames == 1:
            expected = np.concatenate(stored).reshape(-1, *leaf.shape).astype(np.float64).mean(axis=0)
            np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
