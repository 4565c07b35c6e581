"""DQN: deep Q-learning from replay, with the options that Rainbow showed to matter most."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from daskrl.algorithms.base import Moment, Setup, linear, require_discrete
from daskrl.algorithms.networks import QNetwork, masked, require_mask, tensors
from daskrl.algorithms.replay import ReplayLearner, ReplaySettings
from daskrl.algorithms.torch_learner import adam
from daskrl.config import require_range
from daskrl.envs.spaces import ACTION_MASK
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.replay.window import Batch

Observation = Mapping[str, torch.Tensor]


@suggests
@dataclass(frozen=True)
class DQN(ReplaySettings):
    """Deep Q-network (Mnih et al. 2015, https://doi.org/10.1038/nature14236).

    Learns ``q(s, a)`` by regression on ``G + discount * q_target(s', a*)`` (algorithm 1 in its Methods) with the
    Huber loss, ``G`` the n-step return and ``a*`` the best action at ``s'``.

    Parameters
    ----------
    double : ``a*`` is the online network's best action, not the target network's (van Hasselt et al. 2016,
        https://arxiv.org/abs/1509.06461, equation 4).
    dueling : separate value and advantage streams (Wang et al. 2016, https://arxiv.org/abs/1511.06581).
    hidden : sizes of the hidden layers, after the convolutions where there are any.
    target_update : updates between two copies of the online to the target network.
    epsilon_start, epsilon_end, epsilon_steps : the chance of a random action falls linearly from the first
        to the second over that many transitions.
    max_grad_norm : the gradient is scaled down to this norm; None leaves it.
    """

    double: bool = True
    dueling: bool = False
    hidden: tuple[int, ...] = (256, 256)
    target_update: int = 128
    epsilon_start: float = 1.0
    epsilon_end: float = 0.04
    epsilon_steps: int = 8000
    max_grad_norm: float | None = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "hidden", "target_update")
        require_range(self, ">= 0", "epsilon_steps")
        require_range(self, "> 0", "max_grad_norm")
        require_range(self, "in [0, 1]", "epsilon_start", "epsilon_end")

    def check(self, setup: Setup) -> None:
        super().check(setup)
        require_discrete(setup, type(self).__name__)
        require_mask(setup.spec)

    def policy(self, setup: Setup) -> nn.Module:
        return QNetwork(self.encoder(setup), setup.actions, self.hidden, self.dueling)

    def q(self, policy: nn.Module, moment: Moment) -> torch.Tensor:
        """The action values to act by, ``[N, A]``."""
        values: torch.Tensor = policy(tensors(moment.observation))
        return values

    def outputs(
        self, policy: nn.Module, observation: Observation, state: Observation
    ) -> tuple[torch.Tensor, Observation]:
        """Action values ``[N, A]``, -inf for those that may not be taken."""
        return masked(self.values(policy, observation), observation), {}

    def values(self, policy: nn.Module, observation: Observation) -> torch.Tensor:
        """Action values of a greedy policy, ``[N, A]``."""
        values: torch.Tensor = policy(observation)
        return values

    def epsilon(self, env_steps: int) -> float:
        """The chance of a random action after ``env_steps`` transitions."""
        return linear(self.epsilon_start, self.epsilon_end, self.epsilon_steps, env_steps)

    def act(self, policy: nn.Module, moment: Moment) -> Array:
        q = self.q(policy, moment)  # [N, A]
        if ACTION_MASK in moment.observation:
            q = masked(q, {ACTION_MASK: torch.tensor(moment.observation[ACTION_MASK])})
        best: Array = q.argmax(dim=1).numpy()
        if moment.greedy:
            return best
        explore = moment.random.random(len(q)) < self.epsilon(moment.env_steps)
        if ACTION_MASK in moment.observation:
            anything = np.where(q.isinf(), -1.0, moment.random.random(q.shape)).argmax(axis=1)
        else:
            anything = moment.random.integers(0, q.shape[1], size=len(q))
        return np.where(explore, anything, best)

    def learner(self, setup: Setup, random: np.random.Generator) -> ReplayLearner:
        learner = ReplayLearner(self, setup, random, self.update, online=self.policy(setup), target=self.policy(setup))
        learner.optimize(adam(self.learning_rate))
        return learner

    def draws_ahead(self) -> bool:
        return True

    def update_kind(self, updates: int) -> Hashable:
        return (updates + 1) % self.target_update == 0

    def update(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One update: the loss and the TD error of each transition ``[B]``."""
        loss, td_error = self.loss(learner, batch)
        learner.minimise(loss, max_grad_norm=self.max_grad_norm, learning_rate=learner.learning_rate)
        if (learner.updates + 1) % self.target_update == 0:
            learner.follow()
        return loss.detach(), td_error

    def loss(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of a batch, and what its priorities are made of ``[B]``: here the TD errors.

        Algorithm 1 of Mnih et al. (2015, Methods): ``(G + discount * q_target(s', a*) - q(s, a))**2``, with the TD
        error clipped to [-1, 1] in the gradient. That is the gradient of the Huber loss, up to a factor of 2.
        """
        assert learner.target is not None
        with torch.no_grad():
            following = batch.next_observation
            q_t = masked(learner.target(following), following)  # [B, A]
            if self.double:
                a_t = masked(learner.online(following), following).argmax(dim=1, keepdim=True)  # [B, 1]
                v_t = q_t.gather(1, a_t).squeeze(1)  # [B]
            else:
                v_t = q_t.amax(dim=1)
            target = batch.reward + batch.discount * v_t
        q_tm1 = learner.online(batch.observation).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # [B]
        if batch.weight is None:
            loss = nn.functional.smooth_l1_loss(q_tm1, target)
        else:
            loss = (batch.weight * nn.functional.smooth_l1_loss(q_tm1, target, reduction="none")).mean()
        return loss, (target - q_tm1).detach()
