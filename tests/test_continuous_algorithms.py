"""SAC and TD3: their losses against numbers worked out one transition at a time, and their promise on a small run."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

import daskrl
from daskrl import networks
from daskrl.algorithms import BUILT_IN, by_name
from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.continuous import Bounds
from daskrl.algorithms.replay import ReplayLearner
from daskrl.algorithms.sac import SAC, squashed
from daskrl.algorithms.td3 import TD3
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.errors import ConfigError, UnsupportedSpaceError
from daskrl.replay.window import Batch

SCHEDULE = Schedule(streams=2, envs_per_stream=2, fragment_steps=8)
OBSERVATION = spaces.Box(-np.inf, np.inf, (3,), np.float32)
LOW, HIGH = np.float32([-1, 2]), np.float32([3, 2.5])  # not symmetric, and not alike
ACTION = spaces.Box(LOW, HIGH, dtype=np.float32)
TINY: dict[str, Any] = {"hidden": (5, 4), "batch_size": 6, "replay_ratio": 6.0, "window": 256}
BOTH = pytest.mark.parametrize("kind", [SAC, TD3])


def setup(action: spaces.Space[Any] = ACTION, observation: spaces.Space[Any] = OBSERVATION, **others: Any) -> Setup:
    return Setup(spec_of(observation, action), SCHEDULE, **others)


def learner_of(algorithm: Any, given: Setup | None = None) -> ReplayLearner:
    learner = algorithm.learner(given or setup(), np.random.default_rng(0))
    learner.random = np.random.default_rng(1)
    if learner.target is not None:  # so that online and target are told apart
        networks.initialise(learner.target, np.random.default_rng(2))
    return learner


def batch_of(size: int = 6, weight: np.ndarray | None = None) -> Batch:
    random = np.random.default_rng(3)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.tensor(random.normal(size=shape), dtype=torch.float32)

    action = torch.tensor(random.uniform(LOW, HIGH, (size, 2)), dtype=torch.float32)
    discount = torch.tensor(random.choice([0, 0.9, 0.99], size), dtype=torch.float32)
    observation, following = {"observation": tensor(size, 3)}, {"observation": tensor(size, 3)}
    importance = None if weight is None else torch.from_numpy(weight)
    return Batch(observation, action, tensor(size), discount, following, importance, np.arange(size))


# -- naive arithmetic: one transition at a time, in float64 --------------------------------------------------


def naive_mlp(layers: Any, x: np.ndarray) -> np.ndarray:
    weights = [p.detach().double().numpy() for p in layers.parameters()]
    for i in range(0, len(weights), 2):
        x = weights[i] @ x + weights[i + 1]
        if i + 2 < len(weights):
            x = np.maximum(x, 0)
    return x


def naive_q(critics: Any, observation: np.ndarray, action: np.ndarray) -> list[float]:
    x = np.concatenate([observation, action])
    return [float(naive_mlp(critics.one, x)[0]), float(naive_mlp(critics.other, x)[0])]


def naive_sample(actor: Any, observation: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, float]:
    outputs = naive_mlp(actor.head, observation)
    mean, log_std = outputs[:2], outputs[2:]
    u = mean + np.exp(log_std) * normal
    density = np.exp(-(normal**2) / 2) / (math.sqrt(2 * math.pi) * np.exp(log_std))
    return np.tanh(u), float(np.sum(np.log(density) - np.log(1 - np.tanh(u) ** 2)))


def naive_unit(action: np.ndarray) -> np.ndarray:
    return 2 * (action - LOW) / (HIGH - LOW) - 1


def naive_target(learner: ReplayLearner, reward: float, discount: float, following: np.ndarray, normal: Any) -> float:
    """What both critics of a learner are to be for one transition."""
    settings, target, online = learner.settings, learner.target, learner.online
    if isinstance(settings, SAC):
        action, log_prob = naive_sample(online.actor, following, normal)
        alpha = math.exp(online.temperature.log_alpha.item())
        return reward + discount * (min(naive_q(target, following, action)) - alpha * log_prob)
    assert isinstance(settings, TD3)
    smoothing = np.clip(settings.target_noise * normal, -settings.target_noise_clip, settings.target_noise_clip)
    action = np.clip(np.tanh(naive_mlp(target.actor.head, following)) + smoothing, -1, 1)
    return reward + discount * min(naive_q(target.critics, following, action))


def naive_critic_loss(learner: ReplayLearner, batch: Batch) -> tuple[float, list[float]]:
    """The loss of a batch, and the TD error of each transition."""
    normals = np.random.default_rng(1).standard_normal((len(batch.action), 2), dtype=np.float32)
    total, errors = 0.0, []
    for i, normal in enumerate(normals):
        observation, following = (o["observation"][i].numpy() for o in (batch.observation, batch.next_observation))
        wanted = naive_target(learner, batch.reward[i].item(), batch.discount[i].item(), following, normal)
        q = naive_q(learner.online.critics, observation, naive_unit(batch.action[i].numpy()))
        weight = 1.0 if batch.weight is None else batch.weight[i].item()
        total += weight * sum((value - wanted) ** 2 for value in q) / len(normals)
        errors.append(sum(abs(value - wanted) for value in q) / 2)
    return total / (2 if isinstance(learner.settings, SAC) else 1), errors


# -- the losses ----------------------------------------------------------------------------------------------


def test_the_squashed_gaussians_log_density_is_that_of_its_change_of_variables():
    random = np.random.default_rng(0)
    mean, log_std, normal = (torch.tensor(random.uniform(-1.5, 1, (50, 3))) for _ in range(3))
    action, log_prob = squashed(mean, log_std, normal)
    oracle = TransformedDistribution(Normal(mean, log_std.exp()), TanhTransform(cache_size=1))
    u = mean + log_std.exp() * normal
    torch.testing.assert_close(action, torch.tanh(u))
    torch.testing.assert_close(log_prob, oracle.log_prob(torch.tanh(u)).sum(1))
    # ... and with the slope of tanh from a difference.
    slope = (torch.tanh(u + 1e-5) - torch.tanh(u - 1e-5)) / 2e-5
    numeric = Normal(mean, log_std.exp()).log_prob(u).sum(1) - slope.abs().log().sum(1)
    torch.testing.assert_close(log_prob, numeric, rtol=1e-4, atol=1e-4)


def test_the_squashed_gaussians_log_density_stays_finite_where_tanh_rounds_to_one():
    u = torch.tensor([[-60.0], [-20.0], [20.0], [60.0]])
    action, log_prob = squashed(u, torch.zeros(4, 1), torch.zeros(4, 1))
    assert action.abs().eq(1).all()
    expected = -0.5 * math.log(2 * math.pi) - (2 * math.log(2) - 2 * u.abs().squeeze(1))
    torch.testing.assert_close(log_prob, expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "algorithm",
    [
        SAC(temperature=0.3, **TINY),
        TD3(**TINY),
        TD3(target_noise=2.0, **TINY),  # often clipped
        TD3(target_noise=2.0, target_noise_clip=3.0, **TINY),  # often beyond the bounds
    ],
)
def test_the_critics_loss_is_what_a_naive_loop_works_out(algorithm, weighted):
    weight = np.float32([0.1, 1, 0.5, 0.7, 0.2, 0.9]) if weighted else None
    learner, batch = learner_of(algorithm), batch_of(weight=weight)
    loss, td_error = algorithm.critic_loss(learner, batch)
    expected, errors = naive_critic_loss(learner, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    if weighted:
        np.testing.assert_allclose(td_error.numpy(), errors, rtol=1e-4)
    else:
        assert td_error is None


def test_sacs_actor_maximises_the_smaller_critic_and_its_entropy():
    algorithm = SAC(temperature=0.3, **TINY)
    learner, batch = learner_of(algorithm), batch_of()
    loss, log_prob = algorithm.actor_loss(learner, batch)
    normals = np.random.default_rng(1).standard_normal((6, 2), dtype=np.float32)
    total = 0.0
    for i, normal in enumerate(normals):
        observation = batch.observation["observation"][i].numpy()
        action, density = naive_sample(learner.online.actor, observation, normal)
        assert log_prob[i].item() == pytest.approx(density, rel=1e-4)
        total += (0.3 * density - min(naive_q(learner.online.critics, observation, action))) / 6
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_td3s_actor_maximises_the_first_critic():
    learner, batch = learner_of(TD3(**TINY)), batch_of()
    values = [
        naive_q(learner.online.critics, x, np.tanh(naive_mlp(learner.online.actor.head, x)))[0]
        for x in batch.observation["observation"].numpy()
    ]
    assert learner.settings.actor_loss(learner, batch).item() == pytest.approx(-np.mean(values), rel=1e-4)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("target_entropy", "wanted"), [(None, -2.0), (0.7, 0.7)])
def test_the_temperature_rises_while_the_entropy_is_below_its_target_and_falls_above(target_entropy, wanted):
    algorithm = SAC(temperature=0.5, target_entropy=target_entropy, **TINY)
    for entropy, direction in ((wanted - 0.4, 1), (wanted + 0.4, -1)):
        learner = learner_of(algorithm)
        parameter = learner.online.temperature.log_alpha
        before = parameter.item()
        learner.minimise(algorithm.temperature_loss(learner, torch.full((6,), -entropy)), "temperature")
        # d/d(log alpha) of -alpha * (log_prob + target) = alpha * (entropy - target)
        assert parameter.grad.item() == pytest.approx(0.5 * (entropy - wanted), rel=1e-5)
        assert np.sign(parameter.item() - before) == direction


@BOTH
def test_a_terminated_transition_does_not_bootstrap_and_a_truncated_one_does_from_its_own_last_observation(kind):
    learner = learner_of(kind(discount=0.9, **TINY))
    random = np.random.default_rng(5)
    fragments = []
    for _ in range(2):
        fragments.append(
            {
                "observation": random.normal(size=(9, 2, 3)).astype(np.float32),
                "final_observation": random.normal(size=(16, 3)).astype(np.float32),
                "action": random.uniform(LOW, HIGH, (8, 2, 2)).astype(np.float32),
                "reward": random.normal(size=(8, 2)).astype(np.float32),
                "terminated": np.zeros((8, 2), np.bool_),
                "truncated": np.zeros((8, 2), np.bool_),
                "episode_step": np.zeros(2, np.int64),
                "continues": np.asarray(True),
            }
        )
    first = fragments[0]
    first["terminated"][1, 0] = first["truncated"][2, 1] = True
    learner.append(fragments)
    normal = np.random.default_rng(1).standard_normal((1, 2), dtype=np.float32)[0]
    cases = [  # step, environment, discount, next observation
        (1, 0, 0.0, first["final_observation"][0]),
        (2, 1, 0.9, first["final_observation"][1]),
        (3, 1, 0.9, first["observation"][4, 1]),
    ]
    for step, env, discount, following in cases:
        learner.random = np.random.default_rng(1)
        batch = learner.window.gather(np.array([step * SCHEDULE.lanes + env]))
        wanted = naive_target(learner, first["reward"][step, env], discount, following, normal)
        action = naive_unit(first["action"][step, env])
        q = naive_q(learner.online.critics, first["observation"][step, env], action)
        halves = 2 if kind is SAC else 1
        loss, _ = learner.settings.critic_loss(learner, batch)  # type: ignore[attr-defined]
        assert loss.item() == pytest.approx(sum((value - wanted) ** 2 for value in q) / halves, rel=1e-4)


# -- the updates ---------------------------------------------------------------------------------------------


def vector(module: torch.nn.Module) -> np.ndarray:
    return np.concatenate([parameter.detach().numpy().ravel() for parameter in module.parameters()])


def test_td3s_actor_and_targets_move_in_every_policy_delayth_update_only():
    learner, batch = learner_of(TD3(policy_delay=3, **TINY)), batch_of()
    moved = []
    for _ in range(7):
        before = [vector(module) for module in (learner.online.critics, learner.online.actor, learner.target)]
        learner.update(learner, batch)
        learner.count_update()
        after = [vector(module) for module in (learner.online.critics, learner.online.actor, learner.target)]
        moved.append([bool((one != other).any()) for one, other in zip(before, after, strict=True)])
    assert moved == [[True, i % 3 == 2, i % 3 == 2] for i in range(7)]


@pytest.mark.parametrize("algorithm", [SAC(target_share=0.1, **TINY), TD3(target_share=0.1, policy_delay=1, **TINY)])
def test_the_target_moves_its_share_of_the_way_after_each_update(algorithm):
    learner, batch = learner_of(algorithm), batch_of()
    followed = learner.online.critics if isinstance(algorithm, SAC) else learner.online
    for _ in range(3):
        before = vector(learner.target)
        learner.update(learner, batch)
        learner.count_update()
        np.testing.assert_allclose(vector(learner.target), 0.9 * before + 0.1 * vector(followed), rtol=1e-5, atol=1e-7)


def test_each_loss_of_sac_moves_its_own_network_alone():
    algorithm = SAC(**TINY)
    for moving in ("critics", "actor", "temperature"):
        learner, batch = learner_of(algorithm), batch_of()
        before = {name: vector(part) for name, part in learner.online.named_children()}
        loss = {
            "critics": lambda: algorithm.critic_loss(learner, batch)[0],  # noqa: B023
            "actor": lambda: algorithm.actor_loss(learner, batch)[0],  # noqa: B023
            "temperature": lambda: algorithm.temperature_loss(learner, torch.ones(6)),  # noqa: B023
        }[moving]()
        learner.minimise(loss, moving)
        changed = [name for name, part in learner.online.named_children() if (vector(part) != before[name]).any()]
        assert changed == [moving]


@BOTH
def test_the_actor_alone_is_published_and_acts_as_the_learners_does(kind):
    algorithm, given = kind(**TINY), setup()
    learner = learner_of(algorithm)
    learner.update(learner, batch_of())
    weights = learner.weights()
    assert sorted(weights) == sorted(name for name, _ in learner.online.actor.named_parameters())
    acting = algorithm.policy(given)
    algorithm.load(acting, weights)
    moment = Moment({"observation": np.ones((4, 3), np.float32)}, np.random.default_rng(0), greedy=True)
    with torch.inference_mode():
        np.testing.assert_array_equal(algorithm.act(acting, moment), algorithm.act(learner.online.actor, moment))


@BOTH
@pytest.mark.parametrize("options", [{"n_step": 3}, {"priority_alpha": 0.6}, {"max_grad_norm": 0.5}])
def test_updates_are_made_from_images_dicts_stacked_frames_and_actions_of_any_shape(kind, options):
    observation = spaces.Dict({"image": spaces.Box(0, 255, (10, 10), np.uint8), "goal": spaces.Discrete(3)})
    given = setup(spaces.Box(-2, 1, (2, 3), np.float64), observation, frame_stack=2)
    algorithm = kind(learning_starts=0, **{**TINY, **options})
    algorithm.check(given)
    learner = learner_of(algorithm, given)
    policy, random = algorithm.policy(given), np.random.default_rng(4)
    fragments = []
    for _ in range(2):
        look = {
            "observation.image": random.integers(0, 256, (10, 2, 10, 10)).astype(np.uint8),
            "observation.goal": random.integers(0, 3, (10, 2)).astype(np.uint8),
        }
        actions = []
        for t in range(8):
            stacks = {name: np.swapaxes(value[t : t + 2], 0, 1) for name, value in look.items()}
            with torch.inference_mode():
                actions.append(algorithm.act(policy, Moment(stacks, random)))
        fragments.append(
            {
                **look,
                **{f"final_{name}": np.zeros((16, *value.shape[2:]), value.dtype) for name, value in look.items()},
                "action": np.stack(actions),
                "reward": np.ones((8, 2), np.float32),
                "terminated": np.zeros((8, 2), np.bool_),
                "truncated": np.zeros((8, 2), np.bool_),
                "episode_step": np.zeros(2, np.int64),
                "continues": np.asarray(True),
            }
        )
    assert fragments[0]["action"].shape == (8, 2, 2, 3)
    assert fragments[0]["action"].dtype == np.float64
    learner.append(fragments)
    assert np.isfinite(learner.learn(np.random.default_rng(0)))
    assert learner.updates == 32


# -- acting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_actions_are_within_the_bounds_to_the_last_bit(dtype):
    low, high = np.array([-0.1, 0.3, -7, 5], dtype), np.array([0.7, 0.9, 0.1, 5], dtype)
    leaf = setup(spaces.Box(low, high, dtype=dtype)).action
    bounds = Bounds(leaf)
    unit = np.random.default_rng(0).uniform(-1.0001, 1.0001, (5000, 4)).astype(np.float32)
    unit[0], unit[1] = 1, -1
    action = bounds.box(unit)
    assert action.dtype == dtype
    assert (action >= low).all()
    assert (action <= high).all()
    np.testing.assert_allclose(action[0], high, rtol=1e-6)
    np.testing.assert_allclose(action[1], low, rtol=1e-6)
    back = bounds.unit(torch.from_numpy(action)).numpy()
    expected = np.where(high > low, unit.clip(-1, 1), 0)
    np.testing.assert_allclose(back, expected, atol=2e-2 if dtype == np.float16 else 1e-5)


@BOTH
@pytest.mark.parametrize("env_steps", [0, 1000])
@pytest.mark.parametrize("greedy", [False, True])
def test_actions_are_within_the_bounds_however_sure_or_noisy_the_policy_is(kind, env_steps, greedy):
    options = {"exploration_noise": 3.0} if kind is TD3 else {}
    algorithm, given = kind(**options, **TINY), setup()
    policy = networks.initialise(algorithm.policy(given), np.random.default_rng(0))
    random = np.random.default_rng(1)
    for scale in (1, 1000):
        observation = (random.normal(size=(500, 3)) * scale).astype(np.float32)
        with torch.inference_mode():
            action = algorithm.act(policy, Moment({"observation": observation}, random, env_steps, greedy))
        assert action.shape == (500, 2)
        assert action.dtype == np.float32
        assert ACTION.contains(action[0])
        assert (action >= LOW).all()
        assert (action <= HIGH).all()


@BOTH
def test_the_first_transitions_act_uniformly_at_random_and_whatever_the_weights(kind):
    algorithm, given = kind(learning_starts=100, **TINY), setup()
    observation = {"observation": np.zeros((4000, 3), np.float32)}

    def actions(weights: int, env_steps: int) -> np.ndarray:
        policy = networks.initialise(algorithm.policy(given), np.random.default_rng(weights))
        with torch.inference_mode():
            return algorithm.act(policy, Moment(observation, np.random.default_rng(9), env_steps))

    some = actions(0, 99)
    np.testing.assert_array_equal(some, actions(1, 0))
    np.testing.assert_allclose(some.mean(axis=0), (LOW + HIGH) / 2, atol=0.05)
    np.testing.assert_allclose(some.std(axis=0), (HIGH - LOW) / math.sqrt(12), rtol=0.05)
    assert (actions(0, 100) != actions(1, 100)).any()


@BOTH
def test_acting_draws_from_the_moment_alone_and_nothing_when_greedy(kind):
    algorithm, given = kind(learning_starts=0, **TINY), setup()
    policy = networks.initialise(algorithm.policy(given), np.random.default_rng(0))
    observation = {"observation": np.zeros((4, 3), np.float32)}

    def actions(seed: int, greedy: bool) -> np.ndarray:
        with torch.inference_mode():
            return algorithm.act(policy, Moment(observation, np.random.default_rng(seed), greedy=greedy))

    np.testing.assert_array_equal(actions(0, False), actions(0, False))
    assert (actions(0, False) != actions(1, False)).any()
    np.testing.assert_array_equal(actions(0, True), actions(1, True))


# -- what does not fit ---------------------------------------------------------------------------------------


UNBOUNDED = spaces.Box(-np.inf, np.inf, (2,), np.float32)
HALF_BOUNDED = spaces.Box(np.float32([0, 0]), np.float32([1, np.inf]))
ACTIONS = pytest.mark.parametrize(
    ("action", "shown", "fits"),
    [
        (spaces.Discrete(3), "action: discrete", {"dqn", "c51", "qr-dqn", "rainbow", "r2d2", "ppo", "impala"}),
        (ACTION, "action: box", {"sac", "td3", "ppo", "impala"}),
        (UNBOUNDED, "action: box", {"ppo", "impala"}),
        (HALF_BOUNDED, "action: box", {"ppo", "impala"}),
        (spaces.Box(0, 255, (2,), np.uint8), "action: box", set()),
        (spaces.MultiDiscrete([2, 3]), "action: multi_discrete", set()),
        (spaces.Dict({"a": ACTION, "b": ACTION}), "action.a: box", set()),
    ],
    ids=["discrete", "box", "unbounded", "bounded on one side", "integers", "multi-discrete", "dict"],
)


@ACTIONS
@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {"q-learning"}))  # whose observations are discrete, too
def test_a_space_that_does_not_fit_is_refused_with_the_names_of_all_that_do(name, action, shown, fits):
    given = dataclasses.replace(setup(action), schedule=Schedule(2, 2, 8, lag=0))
    if name in fits:
        by_name(name)().check(given)
        return
    with pytest.raises(UnsupportedSpaceError) as refused:
        by_name(name)().check(given)
    message = str(refused.value)
    assert shown in message
    named = re.search(r"[uU]se ((?:[a-z0-9-]+, )*[a-z0-9-]+ or [a-z0-9-]+)", message)
    assert fits == (set(re.split(", | or ", named[1])) if named else set())
    assert fits or "one Discrete or one Box of floats in a wrapper" in message


@BOTH
@pytest.mark.parametrize("action", [UNBOUNDED, HALF_BOUNDED], ids=["unbounded", "bounded on one side"])
def test_the_wrapper_that_gives_a_box_finite_bounds_is_named_and_does(kind, action):
    class Unbounded(gymnasium.Env[Any, Any]):
        observation_space, action_space = OBSERVATION, action

    with pytest.raises(UnsupportedSpaceError) as refused:
        kind(**TINY).check(setup(action))
    typed = re.search(r"gymnasium\.wrappers\.TransformAction\(.*\)\)", str(refused.value))
    names = {"gymnasium": gymnasium, "env": Unbounded(), "LOW": LOW, "HIGH": HIGH}
    bounded = eval(typed[0], names)
    kind(**TINY).check(setup(bounded.action_space))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SAC, {"target_share": 0}, "target_share: expected a number in \\(0, 1\\], got 0"),
        (SAC, {"temperature": 0}, "temperature: expected a number > 0, got 0"),
        (TD3, {"target_share": 1.5}, "target_share: expected a number in"),
        (TD3, {"policy_delay": 0}, "policy_delay: expected an integer >= 1, got 0"),
        (TD3, {"exploration_noise": -1}, "exploration_noise: expected a number >= 0, got -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(**options)


# -- the promise ---------------------------------------------------------------------------------------------


def start(algorithm: Any, store: Any) -> daskrl.Run:
    return daskrl.train(
        algorithm, "Pendulum-v1", store=store, env_steps=320, seed=3, client=None, progress=False,
        streams=2, envs_per_stream=2, fragment_steps=8, checkpoint_every=3, weights_every=2,
    )  # fmt: skip


SMALL: dict[str, Any] = {
    "hidden": (16,), "batch_size": 8, "replay_ratio": 8.0, "window": 128, "learning_starts": 32,
    "learning_rate_end": 1e-4, "learning_rate_updates": 200,
}  # fmt: skip


@pytest.mark.parametrize(
    "algorithm",
    [SAC(**SMALL), SAC(n_step=2, priority_alpha=0.5, **SMALL), TD3(policy_delay=3, **SMALL)],
    ids=["sac", "sac with priorities", "td3"],
)
def test_a_run_that_was_interrupted_and_resumed_has_the_digest_of_one_that_was_not(algorithm, tmp_path):
    whole = start(algorithm, tmp_path / "whole").wait()
    assert whole.report.learner_updates == 288
    interrupted = start(algorithm, tmp_path / "interrupted")
    for report in interrupted:
        if report.weights_version == 5:
            break
    resumed = daskrl.resume(tmp_path / "interrupted", progress=False).wait()
    assert resumed.store.digest() == whole.store.digest()
    for record in whole.store.fragments():
        action = whole.store.read(record)["action"]
        assert (np.abs(action) <= 2).all()
    evaluation = daskrl.evaluate(tmp_path / "whole", episodes=2)
    assert all(-2000 < value < 0 for value in evaluation.returns)
