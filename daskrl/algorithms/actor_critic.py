"""What PPO and IMPALA share: the network, sampling from it, and a learner that sees each round once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from daskrl.algorithms import networks
from daskrl.algorithms.base import Moment, Setup, Weights, is_float_box, shown, what_fits
from daskrl.algorithms.networks import (
    LSTM,
    Encoder,
    Normalise,
    States,
    convolved,
    masked,
    mlp,
    orthogonal,
    require_mask,
    tensors,
)
from daskrl.algorithms.torch_learner import TorchLearner, TorchSettings
from daskrl.config import require_range
from daskrl.errors import ConfigError, UnsupportedSpaceError
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.replay.window import Window, action_columns, each_leaf, to_device

Distribution = torch.distributions.Distribution


@suggests
@dataclass(frozen=True)
class ActorCritic(TorchSettings):
    """Settings of methods that learn a policy and its values from each round once, besides `TorchSettings`.

    Parameters
    ----------
    discount : gamma.
    learning_rate : of Adam.
    anneal_steps : the learning rate falls linearly to 0 over that many transitions; None keeps it.
    entropy_coef, value_coef : weights of the entropy bonus and of the value loss.
    max_grad_norm : the gradient is scaled down to this norm; None leaves it.
    hidden : sizes of the hidden layers of policy and values, each with its own; where something is convolved,
        one layer of 512 instead.
    lstm : features of an LSTM between observations and heads; 0 for none.
    normalise_observation : observations that are not convolved are shifted and scaled by the running mean and deviation
        of the rounds learned, and clipped to [-10, 10].
    normalise_reward : rewards are divided by the running deviation of discounted returns (Engstrom et al. 2020,
        https://arxiv.org/abs/2005.12729, section 3), and clipped to [-10, 10].
    reward_clip : the learner sees rewards in ``[-reward_clip, reward_clip]``; None leaves them.
    """

    discount: float = 0.99
    learning_rate: float = 3e-4
    anneal_steps: int | None = None
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    max_grad_norm: float | None = 0.5
    hidden: tuple[int, ...] = (64, 64)
    lstm: int = 0
    normalise_observation: bool = False
    normalise_reward: bool = False
    reward_clip: float | None = None

    columns: ClassVar[Mapping[str, str]] = {"behavior_log_prob": "float32"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "hidden", "anneal_steps")
        require_range(self, ">= 0", "lstm", "entropy_coef", "value_coef")
        require_range(self, "> 0", "learning_rate", "max_grad_norm", "reward_clip")
        require_range(self, "in [0, 1]", "discount")

    def check(self, setup: Setup) -> None:
        """Raise `UnsupportedSpaceError` or `ConfigError` unless the run can work.

        Actions are one ``Discrete`` or one ``Box`` of floats.
        """
        leaves = setup.spec.action
        box = is_float_box(leaves)
        if not box and (len(leaves) != 1 or leaves[0].kind != "discrete"):
            raise UnsupportedSpaceError(
                f"{type(self).__name__} acts in a Discrete space or a Box of floats, this environment has "
                f"{shown(leaves)}. {what_fits(leaves)}"
            )
        if not box:
            require_mask(setup.spec)
        if self.lstm and not self.hidden and not convolved(setup.spec, self.channels):
            raise ConfigError(f"hidden: expected at least one size with lstm = {self.lstm}, got ().")

    def recurrent_state(self, setup: Setup) -> dict[str, tuple[int, ...]]:
        return {"lstm": (2, self.lstm)} if self.lstm else {}

    def policy(self, setup: Setup) -> ActorCriticNetwork:
        return ActorCriticNetwork(
            setup, self.encoder(setup), self.hidden, self.lstm, self.normalise_observation, self.channels
        )

    def load(self, policy: nn.Module, weights: Weights) -> None:
        networks.load_named(policy, weights)

    def act(self, policy: ActorCriticNetwork, moment: Moment) -> tuple[Array, Mapping[str, Array]]:
        state = torch.tensor(moment.state["lstm"]) if self.lstm else None
        distribution, _, after = policy(tensors(moment.observation), state)
        if after is not None:
            moment.state["lstm"][...] = after.last.numpy()
        action = greedy(distribution) if moment.greedy else sample(distribution, moment.random)
        return action, {"behavior_log_prob": log_prob(distribution, torch.from_numpy(action)).numpy()}

    def outputs(
        self, policy: ActorCriticNetwork, observation: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Log-probabilities ``[N, A]``, or the means of a Box's actions ``[N, *leaf]``."""
        distribution, _, after = policy(observation, state.get("lstm"))
        if isinstance(distribution, Categorical):
            decided: torch.Tensor = distribution.logits
        else:
            assert isinstance(distribution, Independent)
            decided = distribution.base_dist.loc
        return decided, {} if after is None else {"lstm": after.last}

    def learning_rate_after(self, env_steps: int) -> float:
        """The learning rate after ``env_steps`` transitions."""
        if self.anneal_steps is None:
            return self.learning_rate
        return self.learning_rate * max(0.0, 1 - env_steps / self.anneal_steps)


def sample(distribution: Distribution, random: np.random.Generator) -> Array:
    """Actions ``[N]`` or ``[N, *leaf]`` drawn with a NumPy generator: torch's global one is not ours."""
    if isinstance(distribution, Categorical):
        cumulated = distribution.probs.numpy().astype(np.float64).cumsum(axis=1)  # [N, A]
        drawn = random.random((len(cumulated), 1)) * cumulated[:, -1:]
        chosen: Array = (cumulated <= drawn).sum(axis=1)
        return chosen
    assert isinstance(distribution, Independent)
    normal = distribution.base_dist
    mean, deviation = normal.loc.numpy(), normal.scale.numpy()
    drawn = random.standard_normal(mean.shape, dtype=np.float32)
    action: Array = mean + deviation * drawn
    return action


def greedy(distribution: Distribution) -> Array:
    """The most probable actions."""
    if isinstance(distribution, Categorical):
        best: Array = distribution.logits.argmax(dim=1).numpy()
        return best
    assert isinstance(distribution, Independent)
    mean: Array = distribution.base_dist.loc.numpy().copy()
    return mean


def log_prob(distribution: Distribution, action: torch.Tensor) -> torch.Tensor:
    """The log of each action's probability, or density ``[N]``."""
    result: torch.Tensor = distribution.log_prob(action)
    return result


def entropy(distribution: Distribution) -> torch.Tensor:
    """The mean entropy, a scalar."""
    result: torch.Tensor = distribution.entropy().mean()
    return result


class ActorCriticNetwork(nn.Module):
    """A policy and the values of its states.

    ``forward(observation [T * B, ...], state [B, 2, H], begins [T, B])``; without an LSTM the last two are left out.
    T is 1 where ``begins`` is left out.

    Returns
    -------
    the distribution of actions of T * B steps, values ``[T * B]``, and recurrent states, or None without an LSTM.
    """

    def __init__(
        self, setup: Setup, encoder: Encoder, hidden: Sequence[int], lstm: int, normalise: bool, channels: str = "auto"
    ) -> None:
        super().__init__()
        action = setup.action
        self.discrete = action.kind == "discrete"
        self.shape = action.shape
        outputs = action.sizes[0] if self.discrete else math.prod(action.shape)
        self.normalise = Normalise(setup.spec, channels) if normalise else None
        self.encoder, features = encoder, encoder.out_features
        heads = tuple(hidden)
        self.shared: nn.Module = nn.Identity()
        if convolved(setup.spec, channels):
            self.shared, features = nn.Sequential(nn.Linear(features, 512), nn.ReLU()), 512
            heads = ()
        elif lstm:
            self.shared, features = nn.Sequential(nn.Linear(features, hidden[0]), nn.Tanh()), hidden[0]
            heads = tuple(hidden[1:])
        self.lstm = LSTM(features, lstm) if lstm else None
        if lstm:
            features = lstm
        self.actor = mlp(features, heads, outputs, nn.Tanh)
        self.critic = mlp(features, heads, 1, nn.Tanh)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(outputs))

    def initialise(self, random: np.random.Generator) -> None:
        """Orthogonal weights and zero biases, the policy's last layer small (Engstrom et al. 2020, section 3)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                orthogonal(module.weight, math.sqrt(2), random)
                module.bias.zero_()  # type: ignore[union-attr]
            elif isinstance(module, nn.LSTM):
                for parameter in module.parameters():
                    if parameter.dim() == 2:
                        orthogonal(parameter, 1.0, random)
                    else:
                        parameter.zero_()
        orthogonal(self.actor[-1].weight, 0.01, random)  # type: ignore[arg-type]
        orthogonal(self.critic[-1].weight, 1.0, random)  # type: ignore[arg-type]
        if self.log_std is not None:
            self.log_std.zero_()

    def forward(
        self,
        observation: Mapping[str, torch.Tensor],
        state: torch.Tensor | None = None,
        begins: torch.Tensor | None = None,
    ) -> tuple[Distribution, torch.Tensor, States | None]:
        if self.normalise is not None:
            observation = self.normalise(observation)
        features = self.shared(self.encoder(observation))
        after = None
        if self.lstm is not None:
            assert state is not None
            steps = 1 if begins is None else len(begins)
            outputs, after = self.lstm(features.view(steps, -1, features.shape[1]), state, begins)
            features = outputs.flatten(0, 1)
        head, value = self.actor(features).float(), self.critic(features).squeeze(1).float()
        distribution: Distribution
        if self.log_std is None:
            # Not -inf: its entropy would be NaN.
            distribution = Categorical(logits=masked(head, observation, -1e9), validate_args=False)
        else:
            mean = head.view(-1, *self.shape)
            normal = Normal(mean, self.log_std.exp().view(self.shape).expand_as(mean), validate_args=False)
            distribution = Independent(normal, len(self.shape), validate_args=False)
        return distribution, value, after


@dataclass
class Trajectories:
    """One round: T steps of L environments, all streams side by side, on the learner's device.

    Attributes
    ----------
    observation, next_observation : leaf name -> ``[T, L, ...]``; the next one is an episode's last where it ended.
    action : ``[T, L]`` int64 counted from 0, or ``[T, L, *leaf]`` float32.
    reward, discount : ``[T, L]`` float32; the discount is 0 at termination, else gamma.
    ended : ``[T, L]`` bool, an episode's last step. begins : ``[T, L]`` bool, its first.
    behavior_log_prob : ``[T, L]`` float32, of the actions under the weights acted with.
    state : ``[L, 2, H]`` the recurrent state before the first step, or None.
    """

    observation: Mapping[str, torch.Tensor]
    next_observation: Mapping[str, torch.Tensor]
    action: Any  # as in `Batch`
    reward: torch.Tensor
    discount: torch.Tensor
    ended: torch.Tensor
    begins: torch.Tensor
    behavior_log_prob: torch.Tensor
    state: torch.Tensor | None

    def lanes(self, index: torch.Tensor) -> Trajectories:
        """Some of the environments."""

        def some(value: torch.Tensor) -> torch.Tensor:
            return value.index_select(1, index)

        return Trajectories(
            observation={name: some(value) for name, value in self.observation.items()},
            next_observation={name: some(value) for name, value in self.next_observation.items()},
            action=each_leaf(self.action, some),
            reward=some(self.reward),
            discount=some(self.discount),
            ended=some(self.ended),
            begins=some(self.begins),
            behavior_log_prob=some(self.behavior_log_prob),
            state=None if self.state is None else self.state.index_select(0, index),
        )

    def evaluated(self, learner: TorchLearner) -> tuple[Distribution, torch.Tensor, torch.Tensor]:
        """The distributions of all T * L steps, values ``[T, L]``, and next values ``[T, L]``, as constants."""
        shape, network = self.reward.shape, learner.online
        distribution, value, after = network(
            flat(self.observation), self.state, self.begins if self.state is not None else None
        )
        value = value.view(shape)
        with torch.no_grad():
            following = value.roll(-1, dims=0)  # of the step after
            # What follows the last step, and what a truncated episode ended at, are no steps of the round.
            alone = self.ended & (self.discount > 0)
            alone[-1] = True
            step, lane = alone.nonzero(as_tuple=True)
            observation = {name: x[step, lane] for name, x in self.next_observation.items()}
            state = None if after is None else after.at(step, lane)
            _, last, _ = learner.uncompiled(network)(observation, state)
            following[step, lane] = last
        return distribution, value, following


def flat(observation: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``[T, L, ...]`` to ``[T * L, ...]``."""
    return {name: value.flatten(0, 1) for name, value in observation.items()}


def backwards(delta: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """``x_t = delta_t + keep_t x_{t+1}``, nothing following the last step. All ``[T, L]``, without gradient."""
    x, factor = delta.cpu().numpy().copy(), keep.cpu().numpy()  # a fifth of the time of as many operations of torch
    for t in range(len(x) - 2, -1, -1):
        x[t] += factor[t] * x[t + 1]
    return to_device(x, delta.device)


Update = Callable[["RoundLearner", Trajectories, np.random.Generator], float]
"""The updates of one round, each counted by ``learner.count_update``; their mean loss."""


class RoundLearner(TorchLearner):
    """Learns from each round once.

    Parameters
    ----------
    settings : see `ActorCritic`.
    update : called once for each round.

    Attributes
    ----------
    round : the newest round; None before the first.
    """

    def __init__(self, settings: ActorCritic, setup: Setup, random: np.random.Generator, update: Update) -> None:
        super().__init__(settings, setup, random, settings.policy(setup))
        self.settings, self.update = settings, update
        schedule = setup.schedule
        # The first stacks of a round are made of frames from the rounds before.
        self.memory = -(-(setup.frame_stack - 1) // schedule.fragment_steps)
        self.window = Window(
            setup.spec, schedule, capacity=(1 + self.memory) * schedule.round_steps, frame_stack=setup.frame_stack,
            n_step=1, discount=settings.discount, reward_clip=settings.reward_clip, device=self.device,
        )  # fmt: skip
        self._observed = {
            leaf.name: RunningMoments(leaf.flat_size) for leaf in networks.normalised(setup.spec, settings.channels)
        }
        self._returned, self._return = RunningMoments(1), np.zeros(schedule.lanes)
        self.round: Trajectories | None = None

    def skip(self, rounds: int) -> None:
        self.window.skip(rounds)

    @property
    def learning_rate(self) -> float:
        """The learning rate of this round's updates."""
        return self.settings.learning_rate_after((self.window.rounds - 1) * self.setup.schedule.round_steps)

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        def side_by_side(name: str) -> Array:
            return np.concatenate([fragment[name] for fragment in fragments], axis=1)

        self.window.append(fragments)
        schedule = self.setup.schedule
        steps, lanes = schedule.fragment_steps, schedule.lanes
        rows = self.window.rows
        batch = self.window.gather(self.window.positions_of_rows(rows - steps, rows))
        ended = side_by_side("terminated") | side_by_side("truncated")
        begins = np.concatenate([np.concatenate([f["episode_step"] == 0 for f in fragments])[None], ended[:-1]])

        def grid(value: torch.Tensor) -> torch.Tensor:
            return value.view(steps, lanes, *value.shape[1:])

        def tensor(value: Array) -> torch.Tensor:
            return torch.tensor(value, device=self.device)

        reward = grid(batch.reward)
        if self.settings.normalise_reward:
            reward = tensor(self._scaled(reward.cpu().numpy(), ended))
        state = None
        if self.settings.lstm:
            state = tensor(np.concatenate([fragment["recurrent_state.lstm"][0] for fragment in fragments]))
        self.round = Trajectories(
            {name: grid(value) for name, value in batch.observation.items()},
            {name: grid(value) for name, value in batch.next_observation.items()},
            each_leaf(batch.action, grid),
            reward,
            grid(batch.discount),
            tensor(ended),
            tensor(begins),
            tensor(side_by_side("behavior_log_prob")),
            state,
        )

    def _scaled(self, reward: Array, ended: Array) -> Array:
        """Rewards over the running deviation of discounted returns."""
        returns = np.empty(reward.shape)
        for t in range(len(reward)):
            self._return = self._return * self.settings.discount + reward[t]
            returns[t] = self._return
            self._return = np.where(ended[t], 0.0, self._return)
        self._returned.add(returns.reshape(-1, 1))
        return np.clip(reward / self._returned.deviation, -10, 10).astype(np.float32)

    def learn(self, random: np.random.Generator) -> float | None:
        assert self.round is not None
        with self.precision():
            loss = self.update(self, self.round, random)
        normalise = self.online.normalise
        if isinstance(normalise, Normalise):  # after learning: the round was acted with what it was so far
            for name, moments in self._observed.items():
                values = self.round.observation[name]
                moments.add(values.reshape(-1, moments.mean.size).cpu().numpy())
                normalise.set(name, moments.mean, moments.deviation)
        return loss

    def begin_with(self, weights: Weights, others: Mapping[str, Array]) -> None:
        """See `TorchLearner`. Running moments go on, too: without a checkpoint as if they were those of one round."""
        super().begin_with(weights, others)
        if "returned.count" in others:
            self._returned.restore("returned", others)
        normalise = self.online.normalise
        if not isinstance(normalise, Normalise):
            return
        for place, name in enumerate(normalise.shapes):
            moments = self._observed[name]
            if f"observed.{name}.count" in others:
                moments.restore(f"observed.{name}", others)
            else:
                mean, deviation = (
                    part[place].detach().cpu().numpy() for part in (normalise.means, normalise.deviations)
                )
                moments.assume(self.setup.schedule.round_steps, mean.ravel(), deviation.ravel())

    def last_batch(self) -> dict[str, Array]:
        """The round learned last, to be looked at; each array is ``[T, L, ...]``."""
        assert self.round is not None
        columns = ("reward", "discount", "ended", "behavior_log_prob")
        tensors = {**self.round.observation, **action_columns(self.round.action)}
        tensors |= {name: getattr(self.round, name) for name in columns}
        return {name: value.cpu().numpy() for name, value in tensors.items()}

    def state(self) -> dict[str, Array]:
        kept = {"return": self._return.copy(), **self._returned.state("returned")}
        for name, moments in self._observed.items():
            kept.update(moments.state(f"observed.{name}"))
        return {**super().state(), **kept}

    def restore(self, state: Mapping[str, Array]) -> None:
        super().restore(state)
        self._return = np.array(state["return"])
        self._returned.restore("returned", state)
        for name, moments in self._observed.items():
            moments.restore(f"observed.{name}", state)


class RunningMoments:
    """Running mean and variance of vectors, in float64 (Chan et al. 1979: moments of parts are put together)."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(size), np.zeros(size)

    def add(self, values: Array) -> None:
        """Count some vectors ``[B, size]`` in."""
        values = values.astype(np.float64)
        count, mean = len(values), values.mean(axis=0)
        squares = ((values - mean) ** 2).sum(axis=0)
        total, off = self.count + count, mean - self.mean
        self.squares = self.squares + squares + off**2 * (self.count * count / total)
        self.mean = self.mean + off * (count / total)
        self.count = total

    def assume(self, count: int, mean: Array, deviation: Array) -> None:
        """Be the moments of so many vectors."""
        self.count, self.mean = count, mean.astype(np.float64)
        self.squares = np.maximum(0.0, deviation.astype(np.float64) ** 2 - 1e-8) * count

    @property
    def deviation(self) -> Array:
        """At least 1e-4."""
        return np.sqrt(self.squares / max(1, self.count) + 1e-8)

    def state(self, name: str) -> dict[str, Array]:
        values: dict[str, Any] = {"count": self.count, "mean": self.mean, "squares": self.squares}
        return {f"{name}.{key}": np.array(value) for key, value in values.items()}

    def restore(self, name: str, state: Mapping[str, Array]) -> None:
        self.count = int(state[f"{name}.count"])
        self.mean, self.squares = np.array(state[f"{name}.mean"]), np.array(state[f"{name}.squares"])
