"""TD3: a deterministic actor with twin critics, learned from replay."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from daskrl.algorithms.base import Moment, Setup, require_box
from daskrl.algorithms.continuous import Actor, Critics, Observation, squared_error
from daskrl.algorithms.networks import normals, tensors
from daskrl.algorithms.replay import ReplayLearner, ReplaySettings
from daskrl.algorithms.torch_learner import adam
from daskrl.config import require_range
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.replay.window import Batch


@suggests
@dataclass(frozen=True)
class TD3(ReplaySettings):
    """Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477).

    Acts in a bounded ``Box``, by a tanh rescaled to the bounds. The first ``learning_starts`` transitions act
    uniformly at random. All noise is in units of half the distance between the bounds.

    Parameters
    ----------
    hidden : sizes of the hidden layers of actor and critics, after the convolutions where there are any.
    target_share : the targets move this share of the way to the networks (Polyak averaging; the paper's tau).
    policy_delay : updates of the critics for each one of the actor and the targets.
    exploration_noise : standard deviation of the Gaussian noise on actions.
    target_noise, target_noise_clip : standard deviation of the noise on the target's actions, and its bound.
    max_grad_norm : each gradient is scaled down to this norm; None leaves it.

    Examples
    --------
    Pendulum-v1, which takes minutes on one core (seed 1: a mean return of -143 over 100 greedy episodes)::

        algorithm = TD3(discount=0.98, batch_size=128, replay_ratio=128, learning_starts=500)
        run = daskrl.train(algorithm, "Pendulum-v1", store="pendulum", env_steps=20_000, seed=1,
                           streams=1, envs_per_stream=4, fragment_steps=16)
    """

    batch_size: int = 256
    replay_ratio: float = 256.0
    window: int = 1_000_000
    hidden: tuple[int, ...] = (256, 256)
    target_share: float = 0.005
    policy_delay: int = 2
    exploration_noise: float = 0.1
    target_noise: float = 0.2
    target_noise_clip: float = 0.5
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "hidden", "policy_delay")
        require_range(self, "in (0, 1]", "target_share")
        require_range(self, ">= 0", "exploration_noise", "target_noise", "target_noise_clip")
        require_range(self, "> 0", "max_grad_norm")

    def check(self, setup: Setup) -> None:
        require_box(setup, type(self).__name__)
        super().check(setup)

    def policy(self, setup: Setup) -> Actor:
        return Actor(setup, self.encoder(setup), self.hidden, outputs=1)

    def act(self, policy: Actor, moment: Moment) -> Array:
        count = len(next(iter(moment.observation.values())))
        if moment.env_steps < self.learning_starts and not moment.greedy:
            return policy.bounds.box(moment.random.uniform(-1, 1, (count, policy.bounds.size)))
        action = torch.tanh(policy(tensors(moment.observation)))  # [N, D]
        if not moment.greedy:
            action = action + self.exploration_noise * normals(moment.random)(*action.shape)
        return policy.bounds.box(action.numpy())

    def outputs(self, policy: Actor, observation: Observation, state: Observation) -> tuple[torch.Tensor, Observation]:
        """Actions within the bounds, ``[N, *leaf]``."""
        return policy.bounds.box_of(torch.tanh(policy(observation))), {}

    def learner(self, setup: Setup, random: np.random.Generator) -> ReplayLearner:
        online, target = Networks(self, setup), Networks(self, setup)
        learner = ReplayLearner(self, setup, random, self.update, online=online, policy=online.actor, target=target)
        for name, part in online.named_children():
            learner.optimize(adam(self.learning_rate), part, name)
        return learner

    def update_kind(self, updates: int) -> Hashable:
        return (updates + 1) % self.policy_delay == 0

    def update(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One update (algorithm 1): the critics' loss, and the TD error of each transition ``[B]``."""
        how = {"max_grad_norm": self.max_grad_norm, "learning_rate": learner.learning_rate}
        critic_loss, td_error = self.critic_loss(learner, batch)
        learner.minimise(critic_loss, "critics", **how)
        if (learner.updates + 1) % self.policy_delay == 0:
            learner.minimise(self.actor_loss(learner, batch), "actor", **how)
            learner.follow(self.target_share)
        return critic_loss.detach(), td_error

    def critic_loss(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The critics' loss, the squared error, and the TD error ``[B]``.

        The target is ``G + discount * min_i q_target_i(s', a')`` (algorithm 1; section 4.2) with ``G`` the n-step
        return and ``a' = pi_target(s') + clip(noise)`` (algorithm 1; section 5.3).
        """
        online, target = _networks(learner)
        with torch.no_grad():
            action_t = target.action(batch.next_observation)  # [B, D]
            smoothing = self.target_noise * learner.normal(*action_t.shape)
            smoothing.clamp_(-self.target_noise_clip, self.target_noise_clip)
            action_t = (action_t + smoothing).clamp_(-1, 1)
            v_t = target.critics(batch.next_observation, action_t).amin(dim=0)  # [B]
            wanted = batch.reward + batch.discount * v_t
        q_tm1 = online.critics(batch.observation, online.actor.bounds.unit(batch.action))  # [2, B]
        return squared_error(q_tm1, wanted, batch.weight)

    def actor_loss(self, learner: ReplayLearner, batch: Batch) -> torch.Tensor:
        """The actor's loss, ``-q_1(s, pi(s))``: its gradient is the deterministic policy gradient (algorithm 1)."""
        online, _ = _networks(learner)
        return -online.critics.first(batch.observation, online.action(batch.observation)).mean()


class Networks(nn.Module):
    """All that TD3 learns, and its target."""

    def __init__(self, settings: TD3, setup: Setup) -> None:
        super().__init__()
        self.actor = settings.policy(setup)
        self.critics = Critics(setup, settings.encoder(setup), settings.hidden)

    def action(self, observation: Observation) -> torch.Tensor:
        """``[B, D]`` in ``[-1, 1]``."""
        return torch.tanh(self.actor(observation))


def _networks(learner: ReplayLearner) -> tuple[Networks, Networks]:
    assert isinstance(learner.online, Networks)
    assert isinstance(learner.target, Networks)
    return learner.online, learner.target
