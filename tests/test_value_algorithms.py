"""Q-learning, C51, QR-DQN and Rainbow: their rules against naive loops and hand cases, and their runs' promise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import daskrl
from daskrl import DQN, IMPALA, PPO, R2D2, SAC, TD3, networks
from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.c51 import C51, DistributionNetwork, NoisyLinear, of_action, project, signed_root
from daskrl.algorithms.q_learning import QLearner, QLearning, Table
from daskrl.algorithms.qr_dqn import QRDQN, quantile_huber_loss
from daskrl.algorithms.rainbow import Rainbow
from daskrl.config import Schedule
from daskrl.envs.spaces import SpaceSpec, spec_of
from daskrl.errors import ConfigError, UnsupportedSpaceError
from tests.naive import naive_projection

SCHEDULE = Schedule(streams=2, envs_per_stream=2, fragment_steps=8)
BOX = spec_of(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(4))


def setup(spec: SpaceSpec = BOX, schedule: Schedule = SCHEDULE, frame_stack: int = 1) -> Setup:
    return Setup(spec, schedule, frame_stack)


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


# -- the categorical projection ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("atoms", "low", "high"), [(51, -10.0, 10.0), (101, -100.0, 100.0), (7, 0.0, 3.0), (2, -1.0, 4.0)]
)
def test_the_projection_is_that_of_a_loop_over_the_atoms(atoms: int, low: float, high: float) -> None:
    random = np.random.default_rng(atoms)
    p = random.dirichlet(np.ones(atoms), 64)
    reward = random.normal(0, high, 64)  # some far beyond the ends
    discount = random.choice([0.0, 0.9, 0.97, 1.0], 64)
    support = torch.linspace(low, high, atoms)
    result = project(*(torch.from_numpy(x).float() for x in (p, reward, discount)), support)  # type: ignore[call-arg]
    expected = naive_projection(p, reward, discount, np.linspace(low, high, atoms))
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(result.sum(dim=1).numpy(), 1, atol=1e-5)
    assert (result >= 0).all()


@pytest.mark.parametrize(
    ("p", "reward", "discount", "expected"),
    [
        pytest.param([0.1, 0.2, 0.3, 0.4], 1.0, 0.0, [0, 0, 1, 0], id="termination at an atom"),
        pytest.param([0.1, 0.2, 0.3, 0.4], 0.25, 0.0, [0, 0.75, 0.25, 0], id="termination between two"),
        pytest.param([0.1, 0.2, 0.3, 0.4], 0.0, 1.0, [0.1, 0.2, 0.3, 0.4], id="nothing changes"),
        pytest.param([0.1, 0.2, 0.3, 0.4], 1.0, 1.0, [0, 0.1, 0.2, 0.7], id="one atom up, clipped at the top"),
        pytest.param([0.1, 0.2, 0.3, 0.4], -2.0, 1.0, [0.6, 0.4, 0, 0], id="two down, clipped at the bottom"),
        pytest.param([0, 0, 0, 1], 9.0, 0.5, [0, 0, 0, 1], id="far beyond the top"),
        pytest.param([0, 0, 0, 1], -9.0, 0.5, [1, 0, 0, 0], id="far beyond the bottom"),
        pytest.param([1, 0, 0, 1], 0.0, 0.5, [0.5, 0.5, 1, 0], id="halved towards 0"),
    ],
)  # fmt: skip
def test_the_projection_by_hand(p: list[float], reward: float, discount: float, expected: list[float]) -> None:
    support = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    result = project(tensor(p), torch.tensor([reward]), torch.tensor([discount]), support)
    np.testing.assert_allclose(result[0].numpy(), expected, atol=1e-7)


def test_the_values_of_one_action_are_those_of_its_row() -> None:
    values = torch.arange(24).view(2, 3, 4)
    assert of_action(values, torch.tensor([2, 0])).tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]


# -- quantile regression ----------------------------------------------------------------------------------


def naive_quantile_huber(theta: np.ndarray, target: np.ndarray, kappa: float) -> list[float]:
    losses = []
    for quantiles, samples in zip(theta.tolist(), target.tolist(), strict=True):
        total = 0.0
        for i, quantile in enumerate(quantiles):
            tau = (2 * i + 1) / (2 * len(quantiles))
            for sample in samples:
                u = sample - quantile
                huber = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                total += abs(tau - (1 if u < 0 else 0)) * huber / len(samples)
        losses.append(total)
    return losses


@pytest.mark.parametrize("kappa", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("quantiles", "samples"), [(1, 1), (5, 5), (4, 7)])
def test_the_quantile_loss_is_that_of_a_loop(quantiles: int, samples: int, kappa: float) -> None:
    random = np.random.default_rng(samples)
    theta, target = random.normal(0, 2, (8, quantiles)), random.normal(0, 2, (8, samples))
    result = quantile_huber_loss(torch.from_numpy(theta), torch.from_numpy(target), kappa)
    np.testing.assert_allclose(result.numpy(), naive_quantile_huber(theta, target, kappa), rtol=1e-5)


def test_the_quantile_loss_by_hand() -> None:
    # tau = 1/4, 3/4. u = [[1, -3], [0, -4]]; Huber: [[.5, 2.5], [0, 3.5]]; |tau - 1{u < 0}|: [[1/4, 3/4], [-, 1/4]].
    loss = quantile_huber_loss(tensor([0, 1]), tensor([1, -3]), kappa=1.0)
    assert loss.tolist() == [(0.25 * 0.5 + 0.75 * 2.5) / 2 + 0.25 * 3.5 / 2]


def test_least_quantile_loss_is_at_the_quantiles_of_the_samples() -> None:
    samples = torch.from_numpy(np.random.default_rng(0).exponential(10, (1, 2000))).float()
    theta = torch.zeros(1, 5, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=0.2)
    for _ in range(500):
        optimizer.zero_grad()
        quantile_huber_loss(theta, samples, kappa=0.01).sum().backward()
        optimizer.step()
    expected = np.quantile(samples.numpy(), [0.1, 0.3, 0.5, 0.7, 0.9])
    np.testing.assert_allclose(theta.detach().numpy()[0], expected, rtol=0.05, atol=0.1)


# -- noisy layers -----------------------------------------------------------------------------------------


def named(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def noisy_layer() -> NoisyLinear:
    layer = NoisyLinear(3, 2, 0.5)
    networks.initialise(layer, np.random.default_rng(0))
    networks.uniform(layer.sigma.weight, 1.0, np.random.default_rng(1))
    networks.uniform(layer.sigma.bias, 1.0, np.random.default_rng(2))
    return layer


def test_a_noisy_layer_is_its_noisy_matrix_times_the_input() -> None:
    layer, x = noisy_layer(), np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    drawn = np.random.default_rng(4).standard_normal(5, np.float32)
    eps = np.sign(drawn) * np.sqrt(np.abs(drawn))
    weights = named(layer)
    w = weights["mu.weight"] + weights["sigma.weight"] * np.outer(eps[3:], eps[:3])
    b = weights["mu.bias"] + weights["sigma.bias"] * eps[3:]
    with torch.no_grad():
        result = layer(torch.from_numpy(x), networks.normals(np.random.default_rng(4)))
    np.testing.assert_allclose(result.numpy(), x @ w.T + b, rtol=1e-5, atol=1e-6)


def test_the_root_of_noise_is_numpys_to_the_last_bit() -> None:
    drawn = np.random.default_rng(5).standard_normal(1000, np.float32)
    root = np.copysign(np.sqrt(np.abs(drawn)), drawn)
    assert signed_root(torch.from_numpy(drawn)).numpy().tobytes() == root.tobytes()


def test_a_noisy_layer_without_a_generator_has_its_mean_weights() -> None:
    layer, x = noisy_layer(), torch.randn(5, 3)
    assert torch.equal(layer(x, None), layer.mu(x))


def test_noise_begins_at_sigma_over_the_root_of_the_inputs() -> None:
    layer = NoisyLinear(16, 2, 0.4)
    networks.initialise(layer, np.random.default_rng(0))
    assert {x for p in layer.sigma.parameters() for x in p.view(-1).tolist()} == {float(np.float32(0.1))}
    assert max(float(p.detach().abs().max()) for p in layer.mu.parameters()) <= 0.25


def test_acting_with_noise_is_a_function_of_the_weights_and_the_generator_and_changes_neither_policy() -> None:
    rainbow = Rainbow(hidden=(16,), noise=20.0)
    learner = rainbow.learner(setup(), np.random.default_rng(0))
    one, other = rainbow.policy(setup()), rainbow.policy(setup())
    observation = {"observation": np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)}

    def actions(policy: Any, seed: int, greedy: bool = False) -> list[int]:
        with torch.inference_mode():
            return rainbow.act(policy, Moment(observation, np.random.default_rng(seed), greedy=greedy)).tolist()

    for policy in (one, other):
        rainbow.load(policy, learner.weights())
    first = actions(one, 5)
    assert actions(one, 6) != first
    assert actions(one, 5) == first == actions(other, 5)
    assert actions(one, 5, greedy=True) == actions(other, 6, greedy=True)
    assert all(np.array_equal(named(one)[name], value) for name, value in learner.weights().items())


def test_greedy_actions_are_those_of_a_network_whose_noise_is_zero() -> None:
    rainbow = Rainbow(hidden=(16,), noise=20.0)
    policy, silent = rainbow.policy(setup()), rainbow.policy(setup())
    networks.initialise(policy, np.random.default_rng(0))
    weights = named(policy)
    networks.load_named(silent, {n: np.zeros_like(v) if "sigma" in n else v for n, v in weights.items()})
    observation = {"observation": np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)}
    with torch.inference_mode():
        greedy = rainbow.act(policy, Moment(observation, np.random.default_rng(2), greedy=True))
        noiseless = rainbow.act(silent, Moment(observation, np.random.default_rng(2)))
    assert greedy.tolist() == noiseless.tolist()


# -- networks and settings --------------------------------------------------------------------------------


def test_dueling_streams_add_up_for_each_atom() -> None:
    network = DistributionNetwork(networks.Encoder(BOX, 1), 4, 6, [8], dueling=True)
    networks.initialise(network, np.random.default_rng(0))
    x = {"observation": torch.randn(5, 3)}
    with torch.no_grad():
        result, features = network(x), network.encoder(x)
        assert network.value is not None
        value, advantage = network.value(features, None), network.advantage(features, None).view(5, 4, 6)
    assert result.shape == (5, 4, 6)
    torch.testing.assert_close(result, value[:, None] + advantage - advantage.mean(dim=1, keepdim=True))
    torch.testing.assert_close(result.mean(dim=1), value)


def test_the_action_value_of_c51_is_the_mean_of_its_distribution() -> None:
    c51 = C51(hidden=(), atoms=3, v_min=-1.0, v_max=3.0)
    policy = c51.policy(setup())
    networks.load_named(
        policy,
        {
            "advantage.layers.0.weight": np.zeros((12, 3), np.float32),
            "advantage.layers.0.bias": np.log(np.float32([[1, 1, 2], [4, 0.5, 0.5], [1, 1, 1], [1, 2, 1]])).ravel(),
        },
    )
    with torch.inference_mode():
        q = c51.q(policy, Moment({"observation": np.zeros((1, 3), np.float32)}, np.random.default_rng(0)))
    np.testing.assert_allclose(q.numpy(), [[1.5, -0.4, 1.0, 1.0]], rtol=1e-6, atol=1e-6)


def test_rainbow_is_c51_with_every_option_on() -> None:
    own, plain = daskrl.algorithms.base.settings(Rainbow()), daskrl.algorithms.base.settings(C51())
    changed = {name: value for name, value in own.items() if value != plain[name]}
    assert changed.items() >= {"dueling": True, "n_step": 3, "priority_alpha": 0.5, "noisy": True}.items()
    assert Rainbow().double
    assert Rainbow().epsilon(0) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: C51(v_min=1.0, v_max=1.0), "v_max: expected a number > v_min"),
        (lambda: C51(atoms=1), "atoms: expected an integer >= 2"),
        (lambda: Rainbow(noise=-1.0), "noise: expected a number >= 0"),
        (lambda: QRDQN(quantiles=0), "quantiles: expected an integer >= 1"),
        (lambda: QRDQN(kappa=0.0), "kappa: expected a number > 0"),
        (lambda: QLearning(learning_rate=1.5), "learning_rate: expected a number in"),
        (lambda: QLearning(learning_rate_decay=-1.0), "learning_rate_decay: expected a number >= 0"),
        (lambda: QLearning(epsilon_end=2.0), "epsilon_end: expected a number in"),
        (lambda: QLearning(initial_value=math.inf), "initial_value: expected a finite number"),
        (lambda: QLearning(epsilon_start="1"), "epsilon_start: expected a finite number, got '1'"),
        (lambda: DQN(hidden="64"), r"hidden: expected an integer or a tuple of them, e.g. 64 or \(64, 64\), got '64'"),
        (lambda: DQN(hidden=(64.5,)), r"hidden: expected an integer or a tuple of them, .* got \(64.5,\)"),
        (lambda: DQN(hidden=(0, 64)), r"hidden: expected integers >= 1, got \(0, 64\)"),
        (lambda: DQN(double="false"), "double: expected True or False, got 'false'"),
        (lambda: DQN(double=1), "double: expected True or False, got 1"),
        (lambda: DQN(batch_size=8.5), "batch_size: expected an integer, got 8.5"),
        (lambda: DQN(batch_size=True), "batch_size: expected an integer, got True"),
        (lambda: DQN(learning_rate="1e-3"), "learning_rate: expected a finite number, got '1e-3'"),
        (lambda: DQN(learning_rate=True), "learning_rate: expected a finite number, got True"),
        (lambda: DQN(replay_ratio=math.inf), "replay_ratio: expected a finite number, got inf"),
        (lambda: DQN(max_grad_norm=-1), "max_grad_norm: expected a number > 0, got -1"),
        (lambda: DQN(reward_clip=0), "reward_clip: expected a number > 0, got 0"),
        (lambda: DQN(priority_alpha=-2), "priority_alpha: expected a number >= 0, got -2"),
        (lambda: DQN(priority_beta=3), r"priority_beta: expected a number in \[0, 1\], got 3"),
        (lambda: DQN(precision=16), "precision: expected a string, got 16"),
        (lambda: C51(v_min=-math.inf), "v_min: expected a finite number, got -inf"),
        (lambda: R2D2(rescale=0), "rescale: expected a number > 0, got 0"),
        (lambda: R2D2(priority_eta=3), r"priority_eta: expected a number in \[0, 1\], got 3"),
        (lambda: PPO(entropy_coef=None), "entropy_coef: expected a finite number, got None"),
        (lambda: PPO(max_grad_norm=math.nan), "max_grad_norm: expected a finite number or None, got nan"),
        (lambda: PPO(value_coef=-1), "value_coef: expected a number >= 0, got -1"),
        (lambda: PPO(clip_anneal=True), "clip_anneal: .* give anneal_steps too"),
        (lambda: IMPALA(vtrace_lambda=3), r"vtrace_lambda: expected a number in \[0, 1\], got 3"),
        (lambda: SAC(target_entropy="auto"), "target_entropy: expected a finite number or None, got 'auto'"),
        (lambda: TD3(max_grad_norm=0), "max_grad_norm: expected a number > 0, got 0"),
    ],
)
def test_settings_without_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_numpys_numbers_and_lists_are_taken_as_pythons() -> None:
    made = DQN(batch_size=np.int64(8), learning_rate=np.float64(0.5), double=np.bool_(False), hidden=[8, 4])
    assert made == DQN(batch_size=8, learning_rate=0.5, double=False, hidden=(8, 4))
    assert [type(value) for value in (made.batch_size, made.learning_rate, made.double)] == [int, float, bool]


def test_settings_of_a_type_of_its_own_are_an_algorithms_business() -> None:
    @dataclass(frozen=True)
    class Own(DQN):
        pair: complex = 1j
        share: float | None = None

    assert Own(pair="anything").pair == "anything"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="share: expected a finite number or None, got 'half'"):
        Own(share="half")  # type: ignore[arg-type]


# -- Q-learning -------------------------------------------------------------------------------------------

TWO = spaces.Discrete(2)
LINE = spec_of(spaces.Discrete(4), TWO)


def fragment(
    observation: list[list[int]],
    action: list[list[int]],
    reward: list[list[float]],
    terminated: list[list[int]],
    truncated: list[list[int]],
    final: list[int] | None = None,
) -> dict[str, np.ndarray]:
    """Columns as the learner gets them, ``[time][env]``; last observations only if given."""
    made = {
        "observation": np.array(observation, np.uint8),
        "action": np.array(action, np.uint8),
        "reward": np.array(reward, np.float32),
        "terminated": np.array(terminated, np.bool_),
        "truncated": np.array(truncated, np.bool_),
        "episode_step": np.zeros(len(action[0]), np.int64),
        "continues": np.array(True),
    }
    if final is not None:
        made["final_observation"] = np.array(final, np.uint8)
    return made  # type: ignore[return-value]


def q_learner(values: list[list[float]], spec: SpaceSpec = LINE, **settings: Any) -> QLearner:
    algorithm = QLearning(**{"learning_rate": 0.5, "learning_rate_decay": 0.0, "discount": 0.5, **settings})
    learner = algorithm.learner(Setup(spec, SCHEDULE), np.random.default_rng(0))
    learner.table.values[:] = values
    return learner


def learned(learner: QLearner, *fragments: dict[str, np.ndarray]) -> list[list[float]]:
    learner.append(fragments)
    learner.learn(np.random.default_rng(0))
    values: list[list[float]] = learner.weights()["q"].tolist()
    return values


def test_one_q_learning_update_by_hand() -> None:
    learner = q_learner([[1, 2], [3, 4], [0, 0], [0, 0]])
    # Q(0, 1) = 2 + 0.5 (1 + 0.5 * 4 - 2)
    assert learned(learner, fragment([[0], [1]], [[1]], [[1.0]], [[0]], [[0]])) == [[1, 2.5], [3, 4], [0, 0], [0, 0]]
    assert learner.updates == 1


def test_a_termination_does_not_bootstrap_and_a_truncation_does_from_its_last_observation() -> None:
    values = [[0.0, 0.0], [8.0, 0.0], [16.0, 0.0], [32.0, 0.0]]
    ended = fragment([[0], [1]], [[1]], [[1.0]], [[1]], [[0]])  # its last observation is not read
    assert learned(q_learner(values), ended)[0] == [0, 0.5]
    both = fragment([[0], [1]], [[1]], [[1.0]], [[1]], [[1]])
    assert learned(q_learner(values), both)[0] == [0, 0.5]
    # Two endings before it: the truncated one's last observation is the third, state 3 and not state 1.
    cut = fragment(
        [[0, 1], [1, 1], [1, 1]], [[0, 0], [0, 1]], [[0, 0], [0, 1]], [[1, 1], [0, 0]], [[0, 0], [0, 1]], [2, 2, 3, 0]
    )
    assert learned(q_learner(values), cut)[1][1] == 0.5 * (1 + 0.5 * 32)


def test_transitions_are_learned_by_time_then_by_stream_then_by_environment() -> None:
    # All are of (0, 0), terminate, and with a rate of 1 the last one counts; with 1/2 each halves those before.
    def stream(*rewards: list[float]) -> dict[str, np.ndarray]:
        ones = [[1] * len(row) for row in rewards]
        zeros = [[0] * len(row) for row in rewards]
        return fragment([[0, 0]] * (len(rewards) + 1), zeros, list(rewards), ones, zeros)

    learner = q_learner([[0.0, 0.0]] * 4)
    result = learned(learner, stream([1, 2], [5, 6]), stream([3, 4], [7, 8]))[0][0]
    expected = 0.0
    for reward in range(1, 9):
        expected += 0.5 * (reward - expected)
    assert result == expected
    assert learner.updates == 8


def test_an_update_reads_what_the_one_before_it_wrote() -> None:
    learner = q_learner([[0.0, 0.0]] * 4, learning_rate=1.0)
    walk = fragment([[1, 0], [0, 1]], [[0, 0]], [[4.0, 1.0]], [[1, 0]], [[0, 0]])
    assert learned(learner, walk)[0][0] == 1 + 0.5 * 4


def test_with_full_decay_a_value_is_the_mean_of_its_targets() -> None:
    learner = q_learner([[100.0, 0.0]] * 4, learning_rate=1.0, learning_rate_decay=1.0)
    rewards = [3.0, 5.0, 10.0, 6.0]
    ends = [[1]] * 4
    learned(learner, fragment([[0]] * 5, [[0]] * 4, [[r] for r in rewards], ends, [[0]] * 4))
    assert learner.table.values[0, 0] == pytest.approx(6.0, rel=1e-15)
    assert learner.visits[0].tolist() == [4, 0]


def test_a_state_is_the_combination_of_all_parts_of_an_observation_counted_from_their_starts() -> None:
    space = spaces.Tuple([spaces.Discrete(3, start=5), spaces.MultiDiscrete([[2], [4]])])
    table = Table(spec_of(space, spaces.Discrete(2)), 0.0)
    assert table.values.shape == (24, 2)
    every = [(a, b, c) for a in range(3) for b in range(2) for c in range(4)]
    parts = np.array(every)
    observation = {"observation.0": parts[:, 0] + 5, "observation.1": parts[:, 1:].reshape(-1, 2, 1)}
    assert table.rows(observation).tolist() == list(range(24))
    in_time = {name: value.reshape(6, 4, *value.shape[1:]) for name, value in observation.items()}
    assert table.rows(in_time).tolist() == np.arange(24).reshape(6, 4).tolist()


def test_actions_are_counted_from_the_start_of_their_space() -> None:
    spec = spec_of(spaces.Discrete(4), spaces.Discrete(2, start=3))
    learner = q_learner([[0.0, 0.0]] * 4, spec)
    assert learned(learner, fragment([[2], [1]], [[4]], [[1.0]], [[1]], [[0]]))[2] == [0, 0.5]


def test_among_equal_values_acting_takes_any_and_greedy_acting_the_first() -> None:
    algorithm = QLearning(epsilon_start=0.0, epsilon_end=0.0)
    policy = algorithm.policy(Setup(LINE, SCHEDULE))
    observation = {"observation": np.zeros(100, np.uint8)}
    assert 30 < algorithm.act(policy, Moment(observation, np.random.default_rng(0))).sum() < 70
    assert algorithm.act(policy, Moment(observation, np.random.default_rng(0), greedy=True)).sum() == 0
    policy.values[0] = [0, 1]
    assert algorithm.act(policy, Moment(observation, np.random.default_rng(0))).all()


def test_q_learning_says_what_to_use_where_a_table_does_not_fit() -> None:
    def check(observation: Any, action: Any = TWO, **options: Any) -> None:
        QLearning().check(Setup(spec_of(observation, action), SCHEDULE, **options))

    check(spaces.Tuple([spaces.Discrete(32), spaces.Discrete(11), spaces.Discrete(2)]))
    with pytest.raises(UnsupportedSpaceError, match=r"observation: box\[3\]. Use dqn"):
        check(spaces.Box(-1, 1, (3,)))
    with pytest.raises(UnsupportedSpaceError, match="a table of 1,000,000 states and 2 actions"):
        check(spaces.MultiDiscrete([100, 100, 100]))
    with pytest.raises(UnsupportedSpaceError, match="Use sac, td3"):
        check(spaces.Discrete(3), spaces.Box(-1, 1, (2,)))
    with pytest.raises(ConfigError, match="frame_stack: QLearning sees one frame, got 4"):
        check(spaces.Discrete(3), frame_stack=4)


class Chain(gymnasium.Env[Any, Any]):
    """Five states in a row; to the right of the last is the end and a reward of 1. Never terminates on the left."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Discrete(5), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(5))
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.state += 1 if action == 1 else -1
        ends = self.state == 5
        self.state = min(max(self.state, 0), 4)
        return self.state, float(ends), ends, False, {}


def test_q_learning_finds_the_exact_values_of_a_chain(tmp_path: Path) -> None:
    algorithm = QLearning(learning_rate=1.0, learning_rate_decay=0.0, discount=0.5, epsilon_end=1.0)
    chain = lambda: gymnasium.wrappers.TimeLimit(Chain(), 7)  # noqa: E731
    run = daskrl.train(algorithm, chain, store=tmp_path / "run", env_steps=3000, seed=1, progress=False)
    _, weights = run.wait().store.weights()
    right = [0.5 ** (4 - state) for state in range(5)]
    left = [0.5 * right[max(0, state - 1)] for state in range(5)]
    assert weights["q"].tolist() == [list(pair) for pair in zip(left, right, strict=True)]
    assert daskrl.evaluate(run.store, episodes=20, env=chain).mean == 1


# -- whole runs -------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "hidden": (16,), "learning_starts": 32, "batch_size": 8, "replay_ratio": 2.0, "window": 256, "target_update": 5,
}  # fmt: skip
RUNS = {
    "q-learning on a lake": (QLearning(learning_rate_decay=0.01), "FrozenLake-v1"),
    "q-learning on a hand of cards": (QLearning(), "Blackjack-v1"),
    "c51": (C51(atoms=11, v_min=0.0, v_max=20.0, **SMALL), "CartPole-v1"),
    "c51, all options but noise": (
        C51(atoms=11, v_max=20.0, double=False, dueling=True, n_step=3, priority_alpha=0.6, **SMALL), "CartPole-v1",
    ),
    "qr-dqn": (QRDQN(quantiles=9, **SMALL), "CartPole-v1"),
    "qr-dqn, all options": (
        QRDQN(quantiles=9, double=False, dueling=True, n_step=3, priority_alpha=0.6, **SMALL), "CartPole-v1",
    ),
    "rainbow": (Rainbow(atoms=11, v_min=0.0, v_max=20.0, **SMALL), "CartPole-v1"),
    "rainbow on a lake": (Rainbow(atoms=11, v_min=0.0, v_max=1.0, **SMALL), "FrozenLake-v1"),
}  # fmt: skip


def start(store: Path, algorithm: Any, env: str) -> daskrl.Run:
    return daskrl.train(
        algorithm, env, store=store, env_steps=12 * 32, seed=3, streams=2, envs_per_stream=2, fragment_steps=8,
        checkpoint_every=2, weights_every=3, client=None, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stopped_and_resumed_ends_as_one_never_stopped(name: str, tmp_path: Path) -> None:
    algorithm, env = RUNS[name]
    whole = start(tmp_path / "whole", algorithm, env).wait().store
    assert whole.summary()["learner_updates"] > 50
    assert np.isfinite([record["loss"] for record in whole.records("learn") if record["loss"] is not None]).all()

    run = start(tmp_path / "stopped", algorithm, env)
    for stop in (3, 8):
        for report in run:
            if report.weights_version >= stop:
                break
        run = daskrl.resume(tmp_path / "stopped", progress=False)
    assert not run.finished
    assert run.wait().store.digest() == whole.digest()
    evaluated = [daskrl.evaluate(store, episodes=2) for store in (whole, run.store)]
    assert evaluated[0] == evaluated[1]
