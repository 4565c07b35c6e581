"""Updates per second of each algorithm's learner against the bare PyTorch loop of the same updates.

The learner is the one that runs train, its whole `learn`: drawing, gathering, priorities and all else that goes with
its updates; PPO's and IMPALA's also `append` the round, and count it into its updates. The bare loop makes the same
updates (networks of the same architecture, losses, clipping, fused Adam, targets) as one writes them by hand in one
file, on one batch or round that never changes (R2D2's: on eight): it neither draws nor gathers, and priorities it has
none. Numbers below 1e-38, which Adam keeps of units that are never active and which x86 is slow at, the processor takes
for 0 in the bare loop; a learner sees to them itself.

The data are random, with episodes that terminate every 250 steps and are never truncated, of which the bare loops make
use. R2D2 and IMPALA learn from their own number of sequences, the others from ``--batches`` transitions in an update.

    python tests/benchmarks/learner.py [--algorithms DQN SAC ...] [--batches 64 256] [--rounds R]
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _table import interleaved, parser, show, verdict
from gymnasium import spaces
from sampling import filled
from torch import nn
from torch.nn import functional

from daskrl import C51, DQN, IMPALA, PPO, QRDQN, R2D2, SAC, TD3, Rainbow
from daskrl.algorithms.actor_critic import ActorCriticNetwork, RoundLearner, Trajectories, entropy, flat
from daskrl.algorithms.base import Setup
from daskrl.algorithms.networks import normals
from daskrl.algorithms.r2d2 import SequenceLearner, Sequences
from daskrl.algorithms.replay import ReplayLearner
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.records import Array
from daskrl.replay.window import Batch

Loop = Iterator[torch.Tensor]
"""A bare loop: every step is one update, and gives its loss."""
Loss = Callable[[nn.Module, nn.Module, Batch], torch.Tensor]
"""Of an online and a target network, on a batch: the loss of each transition ``[B]``."""


# -- the bare loops ---------------------------------------------------------------------------------------------------


def adam(module: nn.Module, learning_rate: float, eps: float = 1e-8) -> torch.optim.Adam:
    on_gpu = next(module.parameters()).device.type == "cuda"
    return torch.optim.Adam(module.parameters(), lr=learning_rate, eps=eps, fused=True, capturable=on_gpu)


def step(optimizer: torch.optim.Adam, loss: torch.Tensor, max_grad_norm: float | None) -> torch.Tensor:
    """One step on the gradient of the optimizer's own parameters."""
    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    loss.backward(inputs=parameters)
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return loss.detach()


def weighed(losses: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    return losses.mean() if weight is None else (weight * losses).mean()


def q_learning(algorithm: DQN, learner: ReplayLearner, batch: Batch, random: np.random.Generator) -> Loop:
    """DQN, C51, QR-DQN and Rainbow: what differs is the loss of a transition."""
    online, target = deepcopy(learner.online), deepcopy(learner.target)
    if algorithm.compiled:
        online.compile()
        target.compile()
    optimizer = adam(online, algorithm.learning_rate)
    make = {DQN: dqn_loss, C51: c51_loss, QRDQN: qr_dqn_loss, Rainbow: c51_loss}[type(algorithm)]
    loss: Loss = make(algorithm, batch, random)
    for update in itertools.count(1):
        made = step(optimizer, weighed(loss(online, target, batch), batch.weight), algorithm.max_grad_norm)
        if update % algorithm.target_update == 0:
            target.load_state_dict(online.state_dict())
        yield made


def dqn_loss(algorithm: DQN, batch: Batch, random: np.random.Generator) -> Loss:
    action = batch.action.unsqueeze(1)

    def loss(online: nn.Module, target: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            q_t = target(batch.next_observation)  # [B, A]
            if algorithm.double:
                v_t = q_t.gather(1, online(batch.next_observation).argmax(dim=1, keepdim=True)).squeeze(1)
            else:
                v_t = q_t.amax(dim=1)
            wanted = batch.reward + batch.discount * v_t
        q = online(batch.observation).gather(1, action).squeeze(1)
        return functional.smooth_l1_loss(q, wanted, reduction="none")

    return loss


def c51_loss(algorithm: C51, batch: Batch, random: np.random.Generator) -> Loss:
    """The networks draw the noise of their layers, where they are noisy, from ``random``."""
    normal = normals(random)
    z, rows = torch.linspace(algorithm.v_min, algorithm.v_max, algorithm.atoms), torch.arange(len(batch.action))
    distance = (algorithm.v_max - algorithm.v_min) / (algorithm.atoms - 1)

    def loss(online: nn.Module, target: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            p_t = target(batch.next_observation, normal).softmax(dim=2)  # [B, A, K]
            judge = online(batch.next_observation, normal).softmax(dim=2) if algorithm.double else p_t
            p = p_t[rows, (judge @ z).argmax(dim=1)]  # [B, K]
            value = batch.reward[:, None] + batch.discount[:, None] * z
            place = ((value - algorithm.v_min) / distance).clamp_(0, algorithm.atoms - 1)
            low = place.floor().clamp_(max=algorithm.atoms - 2)
            upper, index = p * (place - low), low.long()
            wanted = torch.zeros_like(p).scatter_add_(1, index, p - upper).scatter_add_(1, index + 1, upper)
        log_p = online(batch.observation, normal)[rows, batch.action].log_softmax(dim=1)
        return functional.kl_div(log_p, wanted, reduction="none").sum(dim=1)

    return loss


def qr_dqn_loss(algorithm: QRDQN, batch: Batch, random: np.random.Generator) -> Loss:
    rows, count = torch.arange(len(batch.action)), algorithm.quantiles
    tau = ((torch.arange(count) + 0.5) / count)[:, None]  # [K, 1]

    def loss(online: nn.Module, target: nn.Module, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            theta_t = target(batch.next_observation)  # [B, A, K]
            judge = online(batch.next_observation) if algorithm.double else theta_t
            best = theta_t[rows, judge.mean(dim=2).argmax(dim=1)]
            wanted = batch.reward[:, None] + batch.discount[:, None] * best
        theta = online(batch.observation)[rows, batch.action]
        pairs = torch.broadcast_tensors(theta[:, :, None], wanted[:, None, :])  # [B, K, K]
        huber = functional.huber_loss(*pairs, reduction="none", delta=algorithm.kappa)
        return ((tau - (pairs[1] < pairs[0]).float()).abs_() * huber).mean(dim=2).sum(dim=1)

    return loss


class UnrolledLSTM(nn.Module):
    """`torch.nn.LSTM`, over all steps up to the next at which an episode begins.

    In place of `daskrl.networks.LSTM` in a bare loop's network. Of the states it gives only the last, ``[B, 2, H]``.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(
        self, features: torch.Tensor, state: torch.Tensor, begins: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        h, c = state.movedim(1, 0).unsqueeze(1).contiguous()  # [1, B, H] each
        stops = [] if begins is None else begins.any(dim=1).nonzero().flatten().tolist()
        outputs = []
        for first, stop in itertools.pairwise(sorted({0, *stops, len(features)})):
            if first in stops:
                goes_on = (~begins[first]).float()[:, None]
                h, c = h * goes_on, c * goes_on
            output, (h, c) = self.lstm(features[first:stop], (h, c))
            outputs.append(output)
        return torch.cat(outputs), torch.stack((h[0], c[0]), dim=1)


def unrolled(network: nn.Module) -> nn.Module:
    """A copy of a network, with an `UnrolledLSTM` where it has an LSTM."""
    network = deepcopy(network)
    if getattr(network, "lstm", None) is not None:
        network.lstm = UnrolledLSTM(network.lstm.layer)
    return network


def r2d2(algorithm: R2D2, learner: SequenceLearner, batch: Sequences, random: np.random.Generator) -> Loop:
    """On as many batches as the learner takes in a call: an update's time depends on how many episodes begin in one."""
    online, target = unrolled(learner.online), unrolled(learner.target)
    optimizer = adam(online, algorithm.learning_rate, algorithm.adam_eps)
    warm, steps, n = learner.burn_in, learner.unroll, algorithm.n_step
    batches = [
        learner.gather(*learner.sampler.draw(learner.items, algorithm.batch_size, random, 0.4)) for _ in range(UPDATES)
    ]
    for update, batch in zip(itertools.count(1), itertools.cycle(batches)):
        early, late = (
            {name: x[part] for name, x in batch.observation.items()} for part in (slice(warm), slice(warm, None))
        )
        begins, action = batch.begins, batch.action.unsqueeze(2)
        with torch.no_grad():
            state, state_t = (network.unroll(early, batch.state, begins[:warm])[1] for network in (online, target))
            q_t, _ = target.unroll(late, state_t, begins[warm:])  # [T + n, B, A]
        q, _ = online.unroll(late, state, begins[warm:])
        with torch.no_grad():
            v_t = q_t[n:].gather(2, q[n:].argmax(dim=2, keepdim=True)).squeeze(2)  # [T, B]
            wanted = algorithm.h(batch.reward + batch.discount * algorithm.h_inverse(v_t))
        losses = 0.5 * (wanted - q[:steps].gather(2, action).squeeze(2)).square().mean(dim=0)  # [B]
        made = step(optimizer, weighed(losses, batch.weight), algorithm.max_grad_norm)
        if update % algorithm.target_update == 0:
            target.load_state_dict(online.state_dict())
        yield made


def sac(algorithm: SAC, learner: ReplayLearner, batch: Batch, random: np.random.Generator) -> Loop:
    online, target = deepcopy(learner.online), deepcopy(learner.target)
    actor, critics, log_alpha = online.actor, online.critics, online.temperature.log_alpha
    follow = list(target.parameters()), list(critics.parameters()), algorithm.target_share
    optimizers = [adam(part, algorithm.learning_rate) for part in (critics, actor, online.temperature)]
    taken = actor.bounds.unit(batch.action)
    wanted_entropy = -taken.shape[1] if algorithm.target_entropy is None else algorithm.target_entropy

    def sample(observation: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = actor(observation).chunk(2, dim=1)
        log_std = log_std.clamp(-20, 2)
        normal = torch.randn_like(mean)
        u = mean + log_std.exp() * normal
        log_normal = -0.5 * (normal.square() + math.log(2 * math.pi)) - log_std
        log_slope = 2 * (math.log(2) - u - functional.softplus(-2 * u))
        return torch.tanh(u), (log_normal - log_slope).sum(dim=1)

    while True:
        alpha = log_alpha.detach().exp()
        with torch.no_grad():
            action_t, log_prob_t = sample(batch.next_observation)
            v_t = target(batch.next_observation, action_t).amin(dim=0) - alpha * log_prob_t
            wanted = batch.reward + batch.discount * v_t
        q = critics(batch.observation, taken)  # [2, B]
        critic_loss = step(optimizers[0], functional.mse_loss(q, wanted.expand_as(q)), algorithm.max_grad_norm)
        action, log_prob = sample(batch.observation)
        q = critics(batch.observation, action).amin(dim=0)
        step(optimizers[1], (alpha * log_prob - q).mean(), algorithm.max_grad_norm)
        step(optimizers[2], -log_alpha.exp() * (log_prob.detach().mean() + wanted_entropy), algorithm.max_grad_norm)
        with torch.no_grad():
            torch._foreach_lerp_(*follow)
        yield critic_loss


def td3(algorithm: TD3, learner: ReplayLearner, batch: Batch, random: np.random.Generator) -> Loop:
    online, target = deepcopy(learner.online), deepcopy(learner.target)
    actor, critics = online.actor, online.critics
    follow = list(target.parameters()), list(online.parameters()), algorithm.target_share
    optimizers = [adam(part, algorithm.learning_rate) for part in (critics, actor)]
    taken, bound = actor.bounds.unit(batch.action), algorithm.target_noise_clip
    for update in itertools.count(1):
        with torch.no_grad():
            action_t = torch.tanh(target.actor(batch.next_observation))
            smoothing = (algorithm.target_noise * torch.randn_like(action_t)).clamp_(-bound, bound)
            v_t = target.critics(batch.next_observation, (action_t + smoothing).clamp_(-1, 1)).amin(dim=0)
            wanted = batch.reward + batch.discount * v_t
        q = critics(batch.observation, taken)  # [2, B]
        critic_loss = step(optimizers[0], 2 * functional.mse_loss(q, wanted.expand_as(q)), algorithm.max_grad_norm)
        if update % algorithm.policy_delay == 0:
            q = critics.first(batch.observation, torch.tanh(actor(batch.observation)))
            step(optimizers[1], -q.mean(), algorithm.max_grad_norm)
            with torch.no_grad():
                torch._foreach_lerp_(*follow)
        yield critic_loss


def evaluated(network: ActorCriticNetwork, some: Trajectories) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The distributions of all steps, values ``[T, L]``, and next values ``[T, L]``, as constants.

    As nothing is truncated, the next value is that of the row after; where an episode ends its discount is 0.
    """
    distribution, value, after = network(flat(some.observation), some.state, some.begins)
    value = value.view_as(some.reward)
    with torch.no_grad():
        _, last, _ = network({name: rows[-1] for name, rows in some.next_observation.items()}, after)
        return distribution, value, torch.cat((value[1:], last[None]))


def backwards(delta: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """``x[t] = delta[t] + keep[t] x[t + 1]``."""
    following, found = torch.zeros_like(delta[0]), []
    for one, factor in zip(delta.flip(0), keep.flip(0), strict=True):
        following = torch.addcmul(one, factor, following)
        found.append(following)
    return torch.stack(found[::-1])


def ppo(algorithm: PPO, learner: RoundLearner, round_: Trajectories, random: np.random.Generator) -> Loop:
    network = unrolled(learner.online)
    optimizer = adam(network, algorithm.learning_rate, eps=1e-5)
    steps, lanes = round_.reward.shape

    def items(value: torch.Tensor) -> torch.Tensor:
        """What minibatches draw from, ``[T, items, ...]``: whole environments for an LSTM, else transitions."""
        return value if algorithm.lstm else value.flatten(0, 1).unsqueeze(0)

    observation = {name: items(value) for name, value in round_.observation.items()}
    count = lanes if algorithm.lstm else steps * lanes
    size = algorithm.batch_size // (steps if algorithm.lstm else 1)
    while True:
        with torch.no_grad():
            _, value, following = evaluated(network, round_)
            delta = round_.reward + round_.discount * following - value
            gae = backwards(delta, algorithm.discount * algorithm.gae_lambda * (~round_.ended).float())
        columns = [items(x) for x in (round_.action, round_.behavior_log_prob, gae, gae + value, round_.begins)]
        for _ in range(algorithm.epochs):
            for part in torch.randperm(count).split(size):
                action, before, advantage, target, begins = (column.index_select(1, part) for column in columns)
                some = {name: x.index_select(1, part).flatten(0, 1) for name, x in observation.items()}
                state = None if round_.state is None else round_.state.index_select(0, part)
                distribution, value, _ = network(some, state, begins)
                advantage = advantage.flatten()
                if algorithm.normalise_advantage:
                    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                ratio = (distribution.log_prob(action.flatten(0, 1)) - before.flatten()).exp()
                clipped = ratio.clamp(1 - algorithm.clip, 1 + algorithm.clip)
                loss = algorithm.value_coef * functional.mse_loss(value, target.flatten())
                loss = loss - torch.minimum(ratio * advantage, clipped * advantage).mean()
                loss = loss - algorithm.entropy_coef * entropy(distribution)
                yield step(optimizer, loss, algorithm.max_grad_norm)


def impala(algorithm: IMPALA, learner: RoundLearner, round_: Trajectories, random: np.random.Generator) -> Loop:
    network = unrolled(learner.online)
    optimizer = adam(network, algorithm.learning_rate, eps=1e-5)
    while True:
        for part in torch.randperm(round_.reward.shape[1]).split(algorithm.batch_lanes):
            some = round_.lanes(part)
            distribution, value, following = evaluated(network, some)
            log_prob = distribution.log_prob(some.action.flatten(0, 1)).view_as(value)
            with torch.no_grad():
                ratio = (log_prob - some.behavior_log_prob).exp()
                rho, c = (
                    ratio.clamp(max=algorithm.rho_clip),
                    algorithm.vtrace_lambda * ratio.clamp(max=algorithm.c_clip),
                )
                delta = rho * (some.reward + some.discount * following - value)
                target = value + backwards(delta, some.discount * c * (~some.ended).float())
                after = torch.cat((target[1:], following[-1:]))
                advantage = rho * (some.reward + some.discount * after - value)
            loss = algorithm.value_coef * functional.mse_loss(value, target) - (advantage * log_prob).mean()
            loss = loss - algorithm.entropy_coef * entropy(distribution)
            yield step(optimizer, loss, algorithm.max_grad_norm)


# -- the comparison ---------------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[Any, Callable[..., Loop]]] = {
    "DQN": (DQN(double=False), q_learning),
    "DQN double": (DQN(), q_learning),
    "DQN prioritised": (DQN(priority_alpha=0.6), q_learning),
    "C51": (C51(), q_learning),
    "QR-DQN": (QRDQN(), q_learning),
    "Rainbow": (Rainbow(), q_learning),
    "R2D2": (R2D2(), r2d2),
    "SAC": (SAC(), sac),
    "TD3": (TD3(), td3),
    "PPO": (PPO(), ppo),
    "PPO LSTM": (PPO(lstm=64), ppo),
    "IMPALA": (IMPALA(), impala),
    "IMPALA LSTM": (IMPALA(lstm=64), impala),
}
UPDATES = 8  # that learning from replay makes in one call: even, as TD3's are of two kinds


def rounds(algorithm: Any, setup: Setup, transitions: int, random: np.random.Generator) -> list[list[dict[str, Array]]]:
    """Rounds of random fragments, with the columns that the algorithm adds."""
    made: list[list[dict[str, Array]]] = []
    window = SimpleNamespace(
        spec=setup.spec, schedule=setup.schedule, frame_stack=setup.frame_stack, append=made.append
    )
    filled(window, transitions, random)
    for fragment in itertools.chain.from_iterable(made):
        shape = fragment["reward"].shape
        fragment["behavior_log_prob"] = np.full(shape, np.log(0.5), np.float32)
        if getattr(algorithm, "lstm", 0):
            fragment["recurrent_state.lstm"] = np.zeros((1, shape[1], 2, algorithm.lstm), np.float32)
    return made


def ours(algorithm: Any, setup: Setup, random: np.random.Generator) -> tuple[Any, Any, Callable[[], object]]:
    """A learner, a batch or round of it, and what makes its updates."""
    learner = algorithm.learner(setup, random)
    if isinstance(learner, RoundLearner):
        following = itertools.cycle(rounds(algorithm, setup, 8 * setup.schedule.round_steps, random))
        learner.append(next(following))

        def learn() -> None:
            learner.append(next(following))
            learner.learn(random)

        return learner, learner.round, learn

    for fragments in rounds(algorithm, setup, algorithm.window, random):
        learner.append(fragments)
    batch = learner.gather(*learner.sampler.draw(learner.items, algorithm.batch_size, random, 0.4))
    return learner, batch, lambda: learner.learn(random)


def prepared(algorithm: Any, size: int, schedule: Schedule) -> tuple[Any, int]:
    """An algorithm that learns from ``size`` transitions in an update if it can, and how many they are."""
    if isinstance(algorithm, IMPALA):
        return algorithm, algorithm.batch_lanes * schedule.fragment_steps
    steps = 1
    if isinstance(algorithm, R2D2):
        size, steps = algorithm.batch_size, algorithm.unroll * schedule.fragment_steps
    if isinstance(algorithm, PPO):
        return replace(algorithm, batch_size=size), size
    due = UPDATES * size * steps / schedule.round_steps
    return replace(algorithm, batch_size=size, replay_ratio=due, window=100_000), size * steps


def flushed(loop: Loop, updates: int) -> None:
    """Some updates of a bare loop, in which the processor takes numbers below 1e-38 for 0."""
    torch.set_flush_denormal(True)
    try:
        for _ in range(updates):
            next(loop)
    finally:
        torch.set_flush_denormal(False)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--algorithms", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    arguments.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    arguments.add_argument("--rounds", type=int, default=25)
    given = arguments.parse_args()
    random = np.random.default_rng(0)
    schedule = Schedule(streams=8, envs_per_stream=4, fragment_steps=32)
    discrete, box = (
        Setup(spec_of(spaces.Box(-1, 1, (features,)), action), schedule)
        for features, action in ((4, spaces.Discrete(2)), (17, spaces.Box(-1, 1, (6,))))
    )
    rows: dict[tuple[str, int], list[str]] = {}
    torch.set_num_threads(1)
    for name, size in itertools.product(given.algorithms, given.batches):
        kind, bare = ROWS[name]
        algorithm, transitions = prepared(kind, size, schedule)
        if (name, transitions) in rows:
            continue
        learner, batch, learn = ours(algorithm, box if isinstance(kind, SAC | TD3) else discrete, random)
        loop = bare(algorithm, learner, batch, random)
        learn()
        updates = learner.updates
        calls = {"learner": learn, "bare": partial(flushed, loop, updates)}
        seconds = interleaved(calls, rounds=given.rounds, clock=time.process_time)
        per_second = [f"{updates / seconds[who]:,.0f}" for who in calls]
        ratio = seconds["bare"] / seconds["learner"]
        rows[name, transitions] = [name, str(transitions), *per_second, verdict(ratio, 0.9)]
    show(
        "Updates per second on one torch thread, networks as each algorithm has them by default",
        ["", "transitions", "learner", "bare PyTorch", "learner / bare"],
        list(rows.values()),
        packages=["torch"],
        note="CartPole's spaces; SAC's and TD3's observations are 17 numbers, their actions 6.",
    )


if __name__ == "__main__":
    main()
