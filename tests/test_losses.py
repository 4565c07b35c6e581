"""What an update minimises, against naive loops in float64, and the numbers that change while a run goes on.

Each loss is compared in its value and in its slope along directions of the weights: the slope of the naive loss is a
difference of two of its values with the targets held, so that a gradient through a target is found, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import daskrl
from daskrl.algorithms import C51, IMPALA, PPO, QRDQN, SAC, TD3
from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.q_learning import QLearning
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.replay.window import Batch
from tests.examples import example
from tests.played import BOX, DISCRETE, played, setup

SCHEDULE = Schedule(streams=2, envs_per_stream=2, fragment_steps=8)
SIZE = 24  # of a batch

Weights = Mapping[str, np.ndarray]


def learner_of(algorithm: Any, given: Setup | None = None) -> Any:
    """A learner of which all weights differ, of the target from the online network's, too."""
    learner = algorithm.learner(given or setup(), np.random.default_rng(0))
    random = np.random.default_rng(1)
    for flat in filter(None, (learner.flat_online, learner.flat_target)):
        flat.weights.copy_(torch.from_numpy(random.normal(0, 0.7, len(flat.weights)).astype(np.float32)))
    learner.random = np.random.default_rng(2)
    return learner


def float64(module: nn.Module) -> Weights:
    return {name: p.detach().double().numpy().copy() for name, p in module.named_parameters()}


def batch_of(weighted: bool, reward: float = 2.0) -> Batch:
    random = np.random.default_rng(3)

    def tensor(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.tensor(random.normal(0, scale, shape), dtype=torch.float32)

    return Batch(
        observation={"observation": tensor(SIZE, 3, scale=2.0)},
        action=torch.tensor(random.integers(0, 4, SIZE)),
        reward=tensor(SIZE, scale=reward),
        discount=torch.tensor(random.choice([0, 0.9, 0.81], SIZE), dtype=torch.float32),
        next_observation={"observation": tensor(SIZE, 3, scale=2.0)},
        weight=torch.tensor(random.uniform(0.1, 1, SIZE), dtype=torch.float32) if weighted else None,
        positions=np.arange(SIZE),
    )


def rows_of(batch: Batch) -> list[tuple[np.ndarray, int, float, float, np.ndarray, float]]:
    """``(observation, action, reward, discount, next observation, weight)`` of each transition, in float64."""
    return [
        (
            batch.observation["observation"][i].double().numpy(),
            int(batch.action[i]),
            float(batch.reward[i]),
            float(batch.discount[i]),
            batch.next_observation["observation"][i].double().numpy(),
            1.0 if batch.weight is None else float(batch.weight[i]),
        )
        for i in range(len(batch.action))
    ]


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def naive_mlp(weights: Weights, part: str, x: np.ndarray, between: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The layers of one part of a network in turn."""
    arrays = [value for name, value in weights.items() if name.startswith(f"{part}.")]
    for i in range(0, len(arrays), 2):
        x = arrays[i] @ (between(x) if i else x) + arrays[i + 1]
    return x


def naive_q(weights: Weights, x: np.ndarray, atoms: int = 1) -> np.ndarray:
    """``[A, atoms]``, with dueling streams where there is one of values."""
    advantage = naive_mlp(weights, "advantage", x, relu).reshape(-1, atoms)
    if not any(name.startswith("value.") for name in weights):
        return advantage
    return naive_mlp(weights, "value", x, relu) + advantage - advantage.mean(axis=0)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def require_equal(learner: Any, loss: torch.Tensor, naive: Callable[[Weights], float]) -> None:
    """Loss and slope are those of the naive loss of weights."""
    weights, random = float64(learner.online), np.random.default_rng(9)
    assert loss.item() == pytest.approx(naive(weights), rel=1e-5, abs=1e-6)
    learner.flat_online.gradient.zero_()
    loss.backward()
    for _ in range(3):
        direction = {name: random.normal(size=value.shape) for name, value in weights.items()}
        ahead, behind = (naive({n: w + h * direction[n] for n, w in weights.items()}) for h in (1e-6, -1e-6))
        slope = sum(float((p.grad.double().numpy() * direction[n]).sum()) for n, p in learner.online.named_parameters())
        assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-3, abs=1e-4)


def require_choices_differ(chosen: list[tuple[int, int]]) -> None:
    """Else the online network's best action was always the target's, and nothing told double Q-learning."""
    assert any(one != other for one, other in chosen)


# -- DQN ---------------------------------------------------------------------------------------------------


def naive_huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5


def naive_dqn(algorithm: Any, learner: Any, batch: Batch) -> tuple[Callable[[Weights], float], list[float]]:
    """The loss as a function of the online weights, targets held; and the TD errors."""
    online, target = float64(learner.online), float64(learner.target)
    wanted, chosen = [], []
    for _, _, reward, discount, following, _ in rows_of(batch):
        q, q_target = naive_q(online, following)[:, 0], naive_q(target, following)[:, 0]
        chosen.append((int(q.argmax()), int(q_target.argmax())))
        wanted.append(reward + discount * q_target[chosen[-1][0 if algorithm.double else 1]])
    require_choices_differ(chosen)

    def errors(weights: Weights) -> list[float]:
        rows = zip(rows_of(batch), wanted, strict=True)
        return [goal - naive_q(weights, row[0])[row[1], 0] for row, goal in rows]

    def loss(weights: Weights) -> float:
        rows = zip(rows_of(batch), errors(weights), strict=True)
        return sum(row[5] * naive_huber(error) for row, error in rows) / len(wanted)

    return loss, errors(online)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("options", [{}, {"double": False}, {"dueling": True}], ids=["double", "not double", "dueling"])
def test_dqns_loss_is_the_huber_loss_of_its_td_errors(options: dict[str, Any], weighted: bool) -> None:
    algorithm = daskrl.DQN(hidden=(6, 5), **options)
    learner, batch = learner_of(algorithm), batch_of(weighted)
    loss, td_error = algorithm.loss(learner, batch)
    naive, errors = naive_dqn(algorithm, learner, batch)
    assert min(np.abs(errors)) < 1 < max(np.abs(errors))  # both parts of the Huber loss
    np.testing.assert_allclose(td_error.numpy(), errors, rtol=1e-4, atol=1e-5)
    require_equal(learner, loss, naive)


def exact(fragments: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The same numbers in float64."""
    return [{n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in f.items()} for f in fragments]


def last_observation(fragment: Mapping[str, np.ndarray], step: int, env: int) -> np.ndarray:
    """Of the episode that ended there: they lie in the order of the endings, by time and then by environment."""
    endings = np.argwhere(fragment["terminated"] | fragment["truncated"]).tolist()
    found: np.ndarray = fragment["final_observation"][endings.index([step, env])]
    return found


def test_dqns_td_errors_are_those_of_a_walk_over_n_steps() -> None:
    algorithm = daskrl.DQN(hidden=(6, 5), n_step=3, discount=0.9)
    learner = learner_of(algorithm)
    learner.append(played(4))
    fragments = exact(played(4))
    online, target = float64(learner.online), float64(learner.target)
    expected, ends = [], {"terminated": 0, "truncated": 0, "neither": 0}
    for t in range(8 - 2):
        for stream, env in np.ndindex(2, 2):
            fragment, total, factor, following = fragments[stream], 0.0, 1.0, None
            for k in range(t, t + 3):
                total += factor * fragment["reward"][k, env]
                factor *= 0.9
                if fragment["terminated"][k, env] or fragment["truncated"][k, env]:
                    following = last_observation(fragment, k, env)
                    break
            ending = "neither" if following is None else "terminated" if fragment["terminated"][k, env] else "truncated"
            ends[ending] += 1
            following = fragment["observation"][k + 1, env] if following is None else following
            bootstrap = naive_q(target, following)[naive_q(online, following).argmax(), 0]
            bootstrap *= not fragment["terminated"][k, env]
            q = naive_q(online, fragment["observation"][t, env])[fragment["action"][t, env], 0]
            expected.append(total + factor * bootstrap - q)
    assert min(ends.values()) > 0, ends
    _, found = algorithm.loss(learner, learner.window.gather(learner.window.positions(np.arange(len(expected)))))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_the_example_of_cql_adds_how_much_all_actions_are_worth_beside_the_one_taken(weighted: bool) -> None:
    algorithm = example("discrete_cql").DiscreteCQL(hidden=(6, 5), alpha=0.7)
    learner, batch = learner_of(algorithm), batch_of(weighted)
    loss, td_error = algorithm.loss(learner, batch)
    of_dqn, errors = naive_dqn(algorithm, learner, batch)

    def naive(weights: Weights) -> float:
        total = 0.0
        for observation, action, *_ in rows_of(batch):
            q = [float(value) for value in naive_q(weights, observation)[:, 0]]
            total += math.log(sum(math.exp(value) for value in q)) - q[action]
        return of_dqn(weights) + 0.7 * total / SIZE

    np.testing.assert_allclose(td_error.numpy(), errors, rtol=1e-4, atol=1e-5)
    require_equal(learner, loss, naive)


# -- C51 and QR-DQN ----------------------------------------------------------------------------------------


def naive_shares(value: float, support: list[float]) -> dict[int, float]:
    """What of a probability at some value goes to which atom: all to one, or shared by its two neighbours."""
    if value <= support[0]:
        return {0: 1.0}
    if value >= support[-1]:
        return {len(support) - 1: 1.0}
    above = next(i for i, atom in enumerate(support) if atom >= value)
    width = support[above] - support[above - 1]
    return {above: (value - support[above - 1]) / width, above - 1: (support[above] - value) / width}


def drawn_noise(weights: Weights, random: np.random.Generator) -> dict[str, np.ndarray]:
    """The noise of each noisy layer, of its inputs and then of its outputs, drawn in the layers' order."""
    noise = {}
    for name in [name for name in weights if name.endswith("mu.weight")]:
        drawn = random.standard_normal(sum(weights[name].shape), np.float32).astype(np.float64)
        noise[name.removesuffix("mu.weight")] = np.sign(drawn) * np.abs(drawn) ** 0.5
    return noise


def under_noise(weights: Weights, noise: Mapping[str, np.ndarray]) -> Weights:
    """The weights of plain layers that noisy ones amount to."""
    plain = {}
    for layer, eps in noise.items():
        inputs = weights[f"{layer}mu.weight"].shape[1]
        both = np.outer(eps[inputs:], eps[:inputs])
        plain[f"{layer}weight"] = weights[f"{layer}mu.weight"] + weights[f"{layer}sigma.weight"] * both
        plain[f"{layer}bias"] = weights[f"{layer}mu.bias"] + weights[f"{layer}sigma.bias"] * eps[inputs:]
    return plain if noise else weights


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize(
    "options",
    [{}, {"double": False}, {"dueling": True}, {"noisy": True, "dueling": True}],
    ids=["double", "not double", "dueling", "noisy and dueling"],
)
def test_c51s_loss_is_the_divergence_from_the_projected_distribution(options: dict[str, Any], weighted: bool) -> None:
    algorithm = C51(hidden=(6, 5), atoms=7, v_min=-3.0, v_max=3.0, **options)
    learner, batch = learner_of(algorithm), batch_of(weighted)
    loss, priority = algorithm.loss(learner, batch)

    support = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]
    online, target = float64(learner.online), float64(learner.target)
    random = np.random.default_rng(2)  # the learner's: every call of a network draws noise of its own
    noises = {
        part: drawn_noise(weights, random)
        for part, weights in (("target", target), ("judge", online), ("learned", online))
    }

    def p(weights: Weights, part: str, x: np.ndarray) -> np.ndarray:
        return softmax(naive_q(under_noise(weights, noises[part]), x, atoms=7))  # [A, K]

    projected, chosen = [], []
    for _, _, reward, discount, following, _ in rows_of(batch):
        p_target = p(target, "target", following)
        chosen.append(tuple(int((x @ support).argmax()) for x in (p(online, "judge", following), p_target)))
        wanted = [0.0] * 7
        for atom, probability in zip(support, p_target[chosen[-1][0 if algorithm.double else 1]], strict=True):
            for place, share in naive_shares(reward + discount * atom, support).items():
                wanted[place] += probability * share
        projected.append(wanted)
    require_choices_differ(chosen)

    def divergences(weights: Weights) -> list[float]:
        found = []
        for (observation, action, *_), wanted in zip(rows_of(batch), projected, strict=True):
            learned = p(weights, "learned", observation)[action]
            pairs = zip(wanted, learned.tolist(), strict=True)
            found.append(sum(m * (math.log(m) - math.log(q)) for m, q in pairs if m > 0))
        return found

    def naive(weights: Weights) -> float:
        rows = zip(rows_of(batch), divergences(weights), strict=True)
        return sum(row[5] * divergence for row, divergence in rows) / SIZE

    np.testing.assert_allclose(priority.numpy(), divergences(online), rtol=1e-4, atol=1e-5)
    require_equal(learner, loss, naive)


@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
@pytest.mark.parametrize("options", [{}, {"double": False, "kappa": 0.5}, {"dueling": True}])
def test_qr_dqns_loss_is_the_quantile_huber_loss_of_every_pair(options: dict[str, Any], weighted: bool) -> None:
    algorithm = QRDQN(hidden=(6, 5), quantiles=5, **options)
    learner, batch = learner_of(algorithm), batch_of(weighted)
    loss, priority = algorithm.loss(learner, batch)

    online, target = float64(learner.online), float64(learner.target)
    samples, chosen = [], []
    for _, _, reward, discount, following, _ in rows_of(batch):
        theta, theta_target = naive_q(online, following, atoms=5), naive_q(target, following, atoms=5)
        chosen.append((int(theta.mean(axis=1).argmax()), int(theta_target.mean(axis=1).argmax())))
        best = theta_target[chosen[-1][0 if algorithm.double else 1]]
        samples.append([reward + discount * float(value) for value in best])
    require_choices_differ(chosen)

    def losses(weights: Weights) -> list[float]:
        found = []
        for (observation, action, *_), wanted in zip(rows_of(batch), samples, strict=True):
            total = 0.0
            for i, theta in enumerate(naive_q(weights, observation, atoms=5)[action].tolist()):
                for sample in wanted:
                    u, kappa = sample - theta, algorithm.kappa
                    huber = 0.5 * u**2 if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                    total += abs((2 * i + 1) / 10 - (1 if u < 0 else 0)) * huber / 5
            found.append(total)
        return found

    def naive(weights: Weights) -> float:
        return sum(row[5] * one for row, one in zip(rows_of(batch), losses(weights), strict=True)) / SIZE

    np.testing.assert_allclose(priority.numpy(), losses(online), rtol=1e-4, atol=1e-5)
    require_equal(learner, loss, naive)


# -- PPO and IMPALA ----------------------------------------------------------------------------------------


def naive_policy(weights: Weights, x: np.ndarray, action: Any) -> tuple[float, float, float]:
    """The log-probability of an action, the entropy, and the value."""
    outputs = naive_mlp(weights, "actor", x, np.tanh)
    value = float(naive_mlp(weights, "critic", x, np.tanh)[0])
    if "log_std" not in weights:
        p = softmax(outputs)
        return math.log(p[int(action)]), -sum(q * math.log(q) for q in p.tolist()), value
    log_prob = entropy = 0.0
    for mean, log_std, taken in zip(outputs, weights["log_std"], np.ravel(action), strict=True):
        variance = math.exp(2 * log_std)
        log_prob += -((taken - mean) ** 2) / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)
        entropy += 0.5 * math.log(2 * math.pi * math.e * variance)
    return log_prob, entropy, value


def on_policy(algorithm: Any, action: spaces.Space[Any], skip: int = 0) -> tuple[Any, list[dict[str, np.ndarray]]]:
    """A learner and its round, which another policy acted, not far away: some ratios are within the clip, some not."""
    learner, fragments = learner_of(algorithm, setup(action, lag=algorithm.lag)), played(6, action)
    weights, random = float64(learner.online), np.random.default_rng(6)
    for fragment in fragments:
        for t, env in np.ndindex(8, 2):
            log_prob, _, _ = naive_policy(weights, fragment["observation"][t, env], fragment["action"][t, env])
            fragment["behavior_log_prob"][t, env] = log_prob + random.normal(0, 0.4)
    learner.skip(skip)
    learner.append(fragments)
    return learner, exact(fragments)


def naive_next(weights: Weights, fragment: Mapping[str, np.ndarray], t: int, env: int) -> float:
    """The value of what follows a step, a truncated episode's last observation where it ended; 0 after termination."""
    if fragment["terminated"][t, env]:
        return 0.0
    cut = fragment["truncated"][t, env]
    following = last_observation(fragment, t, env) if cut else fragment["observation"][t + 1, env]
    return float(naive_mlp(weights, "critic", following, np.tanh)[0])


def naive_ppo(
    algorithm: PPO, weights: Weights, rows: list[tuple[np.ndarray, Any, float, float, float]], clip: float
) -> float:
    """Equation 9 with its sign turned, over rows of (observation, action, log-probability then, advantage, target)."""
    advantages = [row[3] for row in rows]
    if algorithm.normalise_advantage:
        mean = sum(advantages) / len(rows)
        deviation = math.sqrt(sum((a - mean) ** 2 for a in advantages) / (len(rows) - 1))
        advantages = [(a - mean) / deviation for a in advantages]
    surrogate = values = entropies = 0.0
    for (observation, action, before, _, target), advantage in zip(rows, advantages, strict=True):
        log_prob, entropy, value = naive_policy(weights, observation, action)
        ratio = math.exp(log_prob - before)
        surrogate += min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage)
        values += (value - target) ** 2
        entropies += entropy
    total = surrogate - algorithm.value_coef * values + algorithm.entropy_coef * entropies
    return -total / len(rows)


ACTIONS = pytest.mark.parametrize("action", [DISCRETE, BOX], ids=["discrete", "box"])


@ACTIONS
@pytest.mark.parametrize("normalise", [False, True])
def test_ppos_loss_is_equation_9(action: spaces.Space[Any], normalise: bool) -> None:
    algorithm = PPO(hidden=(6, 5), entropy_coef=0.3, value_coef=0.7, normalise_advantage=normalise)
    learner, fragments = on_policy(algorithm, action)
    random = np.random.default_rng(7)
    advantage, target = random.normal(0.5, 2, (8, 4)), random.normal(size=(8, 4))
    order = random.permutation(32)[:20]  # a minibatch: numbers of transitions, by time and then by lane
    rows = []
    for number in order:
        t, lane = divmod(int(number), 4)
        fragment, env = fragments[lane // 2], lane % 2
        columns = (fragment[name][t, env] for name in ("observation", "action", "behavior_log_prob"))
        rows.append((*columns, advantage[t, lane], target[t, lane]))
    beyond = [math.exp(naive_policy(float64(learner.online), x, a)[0] - before) for x, a, before, *_ in rows]
    assert min(beyond) < 0.8
    assert max(beyond) > 1.2
    as_tensors = (torch.tensor(x, dtype=torch.float32) for x in (advantage, target))
    loss = algorithm.loss(learner, learner.round, *as_tensors, None, torch.from_numpy(order))  # type: ignore[call-arg]
    require_equal(learner, loss, lambda weights: naive_ppo(algorithm, weights, rows, clip=0.2))


@ACTIONS
def test_ppos_update_minimises_equation_9_with_advantages_and_targets_of_the_round(action: spaces.Space[Any]) -> None:
    algorithm = PPO(
        hidden=(6, 5), entropy_coef=0.3, value_coef=0.7, epochs=1, batch_size=32, discount=0.9, gae_lambda=0.7,
    )  # fmt: skip
    learner, fragments = on_policy(algorithm, action)
    weights, rows, ends = float64(learner.online), [], set()
    for fragment in fragments:
        for t, env in np.ndindex(8, 2):
            advantage, factor = 0.0, 1.0
            for k in range(t, 8):
                value = float(naive_mlp(weights, "critic", fragment["observation"][k, env], np.tanh)[0])
                delta = fragment["reward"][k, env] + 0.9 * naive_next(weights, fragment, k, env) - value
                advantage += factor * delta
                factor *= 0.9 * 0.7
                if fragment["terminated"][k, env] or fragment["truncated"][k, env]:
                    ends.add("terminated" if fragment["terminated"][k, env] else "truncated")
                    break
            columns = [fragment[name][t, env] for name in ("observation", "action", "behavior_log_prob")]
            value = float(naive_mlp(weights, "critic", columns[0], np.tanh)[0])
            rows.append((*columns, advantage, advantage + value))
    assert ends == {"terminated", "truncated"}
    loss = learner.learn(np.random.default_rng(0))
    assert learner.updates == 1
    assert loss == pytest.approx(naive_ppo(algorithm, weights, rows, clip=0.2), rel=1e-5)


def test_ppos_clip_falls_with_the_learning_rate() -> None:
    algorithm = PPO(hidden=(6, 5), clip=0.4, clip_anneal=True, anneal_steps=320)
    learner, fragments = on_policy(algorithm, DISCRETE, skip=5)  # rounds of 32 transitions
    assert learner.learning_rate == pytest.approx(3e-4 / 2)
    advantage = np.random.default_rng(7).normal(size=(8, 4))
    rows = [
        (*(fragments[lane // 2][name][t, lane % 2] for name in ("observation", "action", "behavior_log_prob")),
         advantage[t, lane], 0.0)
        for t, lane in np.ndindex(8, 4)
    ]  # fmt: skip
    given = torch.tensor(advantage, dtype=torch.float32)
    loss = algorithm.loss(learner, learner.round, given, torch.zeros(8, 4), None, torch.arange(32))
    require_equal(learner, loss, lambda weights: naive_ppo(algorithm, weights, rows, clip=0.2))


@ACTIONS
@pytest.mark.parametrize(("rho_clip", "c_clip", "lambda_"), [(1.0, 1.0, 1.0), (1.5, 0.8, 0.9)])
def test_impalas_loss_is_the_sum_of_its_three_terms(
    action: spaces.Space[Any], rho_clip: float, c_clip: float, lambda_: float
) -> None:
    algorithm = IMPALA(
        hidden=(6, 5), entropy_coef=0.3, value_coef=0.7, discount=0.9, rho_clip=rho_clip, c_clip=c_clip,
        vtrace_lambda=lambda_,
    )  # fmt: skip
    learner, fragments = on_policy(algorithm, action)
    base, chosen = float64(learner.online), [3, 0, 2]  # lanes
    targets, advantages, ends = {}, {}, set()
    for lane in chosen:
        fragment, env = fragments[lane // 2], lane % 2
        ended = (fragment["terminated"] | fragment["truncated"])[:, env]
        ratio, value, following = [], [], []
        for t in range(8):
            log_prob, _, v = naive_policy(base, fragment["observation"][t, env], fragment["action"][t, env])
            ratio.append(math.exp(log_prob - fragment["behavior_log_prob"][t, env]))
            value.append(v)
            following.append(naive_next(base, fragment, t, env))
            if ended[t]:
                ends.add("terminated" if fragment["terminated"][t, env] else "truncated")
        for s in range(8):
            total, traces = value[s], 1.0
            for t in range(s, 8):
                delta = min(ratio[t], rho_clip) * (fragment["reward"][t, env] + 0.9 * following[t] - value[t])
                total += traces * delta
                traces *= 0.9 * lambda_ * min(ratio[t], c_clip)
                if ended[t]:
                    break
            targets[lane, s] = total
        for s in range(8):
            after = following[s] if s == 7 or ended[s] else targets[lane, s + 1]
            advantages[lane, s] = min(ratio[s], rho_clip) * (fragment["reward"][s, env] + 0.9 * after - value[s])
    assert ends == {"terminated", "truncated"}

    def naive(weights: Weights) -> float:
        total = 0.0
        for (lane, t), target in targets.items():
            fragment, env = fragments[lane // 2], lane % 2
            log_prob, entropy, value = naive_policy(
                weights, fragment["observation"][t, env], fragment["action"][t, env]
            )
            total += -advantages[lane, t] * log_prob + 0.7 * (value - target) ** 2 - 0.3 * entropy
        return total / len(targets)

    require_equal(learner, algorithm.loss(learner, learner.round.lanes(torch.tensor(chosen))), naive)


# -- what changes while a run goes on ----------------------------------------------------------------------


def moved_by(learner: Any, update: Callable[[], Any]) -> float:
    """The largest change of a weight: in Adam's first step, the learning rate."""
    before = learner.flat_online.weights.clone()
    update()
    return float((learner.flat_online.weights - before).abs().max())


LINEAR = {"learning_rate": 1e-2, "learning_rate_end": 2e-3, "learning_rate_updates": 400}


@pytest.mark.parametrize(("updates", "expected"), [(0, 1e-2), (100, 8e-3), (200, 6e-3), (400, 2e-3), (900, 2e-3)])
@pytest.mark.parametrize("kind", [daskrl.DQN, C51, QRDQN, SAC, TD3])
def test_the_learning_rate_of_an_update_falls_linearly_with_the_updates(
    kind: Any, updates: int, expected: float
) -> None:
    algorithm = kind(hidden=(6, 5), **LINEAR)
    assert algorithm.learning_rate_after(updates) == pytest.approx(expected)
    box = kind in (SAC, TD3)
    learner, batch = learner_of(algorithm, setup(BOX) if box else None), batch_of(weighted=False)
    if box:
        batch.action = torch.zeros(SIZE, 2)
    learner.updates = updates
    assert moved_by(learner, lambda: algorithm.update(learner, batch)) == pytest.approx(expected, rel=1e-3)


def test_the_learning_rate_stays_where_no_end_is_given() -> None:
    assert [daskrl.DQN(learning_rate=0.3).learning_rate_after(updates) for updates in (0, 10**9)] == [0.3, 0.3]


@pytest.mark.parametrize(
    ("rounds", "anneal_steps", "expected"),
    [(0, 320, 1e-2), (4, 320, 6e-3), (9, 320, 1e-3), (10, 320, 0.0), (25, 320, 0.0), (25, None, 1e-2)],
)
@pytest.mark.parametrize("kind", [PPO, IMPALA])
def test_the_learning_rate_of_a_round_falls_to_zero_over_the_transitions_before_it(
    kind: Any, rounds: int, anneal_steps: int | None, expected: float
) -> None:
    options = {"epochs": 1, "batch_size": 32} if kind is PPO else {"batch_lanes": 4}
    algorithm = kind(hidden=(6, 5), learning_rate=1e-2, anneal_steps=anneal_steps, **options)
    learner, _ = on_policy(algorithm, DISCRETE, skip=rounds)  # of 32 transitions
    moved = moved_by(learner, lambda: learner.learn(np.random.default_rng(0)))
    assert learner.updates == 1
    assert moved == pytest.approx(expected, rel=1e-2, abs=1e-9)


@pytest.mark.parametrize(("updates", "expected"), [(0, 0.4), (50, 0.7), (75, 0.85), (100, 1.0), (1000, 1.0)])
def test_beta_rises_linearly_to_one_with_the_updates_and_is_what_batches_are_drawn_with(
    updates: int, expected: float
) -> None:
    algorithm = daskrl.DQN(
        hidden=(6,), learning_starts=0, batch_size=8, replay_ratio=0.25, priority_alpha=0.6, priority_beta=0.4,
        priority_beta_updates=100,
    )  # fmt: skip
    learner, betas = learner_of(algorithm), []
    draw = learner.sampler.draw

    def spy(items: Any, batch_size: int, random: np.random.Generator, beta: float) -> Any:
        betas.append(beta)
        return draw(items, batch_size, random, beta)

    learner.sampler.draw = spy
    learner.updates = updates
    learner.append(played(4))
    learner.learn(np.random.default_rng(0))
    assert betas == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("env_steps", "expected"), [(0, 0.9), (250, 0.7), (500, 0.5), (1000, 0.1), (5000, 0.1)]
)  # fmt: skip
@pytest.mark.parametrize("kind", [daskrl.DQN, QLearning])
def test_epsilon_falls_linearly_and_is_the_share_of_random_actions(kind: Any, env_steps: int, expected: float) -> None:
    algorithm = kind(epsilon_start=0.9, epsilon_end=0.1, epsilon_steps=1000)
    assert algorithm.epsilon(env_steps) == pytest.approx(expected)
    count = 20_000
    if kind is QLearning:
        given = Setup(spec_of(spaces.Discrete(2), DISCRETE), SCHEDULE)
        policy = algorithm.policy(given)
        policy.values[:, 2] = 1.0
        observation = np.zeros(count, np.uint8)
    else:
        policy = learner_of(algorithm).online
        observation = np.ones((count, 3), np.float32)
    moments = [
        Moment({"observation": observation}, np.random.default_rng(0), env_steps, greedy) for greedy in (True, False)
    ]
    with torch.inference_mode():
        greedy, explored = (algorithm.act(policy, moment) for moment in moments)
    assert len(set(greedy.tolist())) == 1
    # Of four actions taken at random, one is the best one, too.
    assert (explored != greedy).mean() == pytest.approx(expected * 3 / 4, abs=0.01)


@pytest.mark.parametrize(
    ("max_grad_norm", "expected"),
    [(None, [3.0, -4.0]), (10.0, [3.0, -4.0]), (5.0, [3.0, -4.0]), (1.0, [0.6, -0.8]), (0.5, [0.3, -0.4])],
)
def test_a_gradient_longer_than_the_norm_given_is_scaled_down_to_it(
    max_grad_norm: float | None, expected: list[float]
) -> None:
    learner = learner_of(daskrl.DQN(hidden=()))
    learner.optimize(lambda weights: torch.optim.SGD(weights, lr=1.0))
    parameter = learner.online.advantage[0].bias
    before = parameter.detach().clone()
    learner.minimise(3 * parameter[0] - 4 * parameter[1], max_grad_norm=max_grad_norm, learning_rate=0.1)
    moved = (before - parameter.detach()).tolist()
    assert moved == pytest.approx([0.1 * expected[0], 0.1 * expected[1], 0, 0], rel=1e-4, abs=1e-7)


def test_the_norm_is_that_of_the_part_that_is_optimized() -> None:
    learner = learner_of(SAC(hidden=(5,)), setup(BOX))
    critics, actor = learner.online.critics.one[-1].bias, learner.online.actor.head[-1].bias
    learner.optimize(lambda weights: torch.optim.SGD(weights, lr=1.0), learner.online.critics, "critics")
    before = critics.item()
    learner.minimise(2 * critics.sum() + 100 * actor.sum(), "critics", max_grad_norm=1.0)
    assert before - critics.item() == pytest.approx(1.0, rel=1e-5)


# -- running means and deviations --------------------------------------------------------------------------


def test_observations_are_normalised_by_the_moments_of_all_rounds_learned() -> None:
    algorithm = IMPALA(hidden=(6, 5), normalise_observation=True, batch_lanes=4)
    learner = algorithm.learner(setup(), np.random.default_rng(0))
    x = np.random.default_rng(1).normal(0, 40, (50, 3))
    seen: list[list[float]] = []
    for seed in range(3):
        with torch.no_grad():
            found = learner.online.normalise({"observation": torch.tensor(x, dtype=torch.float32)})["observation"]
        rows = np.array(seen)
        mean = rows.mean(axis=0) if seen else np.zeros(3)
        deviation = np.sqrt(((rows - mean) ** 2).mean(axis=0)) if seen else np.ones(3)
        expected = np.clip((x - mean) / deviation, -10, 10)
        assert 0 < (np.abs(expected) == 10).mean() < 1
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)

        fragments = played(seed)
        for fragment in fragments:
            fragment["observation"][:] = (1 + seed) * fragment["observation"] * [1, 2, 3] + [seed, 5, -2]
            seen.extend(fragment["observation"][:-1].reshape(-1, 3).tolist())  # the last one is the next round's first
        learner.append(fragments)
        learner.learn(np.random.default_rng(0))
    assert len(seen) == 3 * 32


def test_rewards_are_divided_by_the_running_deviation_of_discounted_returns() -> None:
    algorithm = PPO(hidden=(6, 5), normalise_reward=True, discount=0.9)
    learner = algorithm.learner(setup(lag=0), np.random.default_rng(0))
    running, returns, clipped = [0.0] * 4, [], 0
    for seed in range(4):
        fragments = played(seed, odds=0.1)
        if seed == 3:
            fragments[0]["reward"][2, 1], fragments[0]["terminated"][2, 1] = -1e4, True
        for t, lane in np.ndindex(8, 4):
            fragment, env = fragments[lane // 2], lane % 2
            running[lane] = 0.9 * running[lane] + float(fragment["reward"][t, env])
            returns.append(running[lane])
            if fragment["terminated"][t, env] or fragment["truncated"][t, env]:
                running[lane] = 0.0
        mean = sum(returns) / len(returns)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in returns) / len(returns))
        reward = np.concatenate([fragment["reward"] for fragment in fragments], axis=1)
        expected = np.clip(reward / deviation, -10, 10)
        clipped += int((np.abs(expected) == 10).sum())
        learner.append(fragments)
        np.testing.assert_allclose(learner.last_batch()["reward"], expected, rtol=1e-5, atol=1e-7)
    assert clipped == 1
