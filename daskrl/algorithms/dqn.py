"""DQN: deep Q-learning from replay, with the options that Rainbow showed to matter most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from daskrl.algorithms.base import Algorithm, LearnerState, Observation
from daskrl.config import require_integer
from daskrl.errors import ConfigError, UnsupportedSpaceError
from daskrl.networks import QNetwork
from daskrl.spaces import Array, SpaceSpec
from daskrl.window import Batch


@dataclass(frozen=True)
class DQN(Algorithm):
    """Deep Q-network (Mnih et al. 2015, https://doi.org/10.1038/nature14236).

    Learns ``q(s, a)`` by regression on ``G + discount * q_target(s', a*)`` with the Huber loss, ``G`` the
    n-step return and ``a*`` the best action at ``s'``.

    Parameters
    ----------
    double : ``a*`` is the online network's best action, not the target network's (van Hasselt et al. 2016,
        https://arxiv.org/abs/1509.06461, equation 4).
    dueling : separate value and advantage streams (Wang et al. 2016, https://arxiv.org/abs/1511.06581).
    hidden : sizes of the hidden layers, after the convolutions where the observation is an image.
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
        object.__setattr__(self, "hidden", tuple(self.hidden))
        require_integer("target_update", self.target_update, 1)
        require_integer("epsilon_steps", self.epsilon_steps, 0)
        for name in ("epsilon_start", "epsilon_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected a number in [0, 1], got {getattr(self, name)!r}.")

    def check(self, spec: SpaceSpec) -> None:
        if len(spec.action) != 1 or spec.action[0].kind != "discrete":
            kinds = ", ".join(f"{leaf.name}: {leaf.kind}{list(leaf.shape)}" for leaf in spec.action)
            raise UnsupportedSpaceError(
                f"DQN acts in a Discrete action space, this environment has {kinds}. Wrap it so that it has a "
                "fixed list of actions, or use an algorithm for that space."
            )

    def network(self, spec: SpaceSpec, frame_stack: int) -> nn.Module:
        return QNetwork(spec, frame_stack, spec.action[0].sizes[0], self.hidden, self.dueling)

    def epsilon(self, env_steps: int) -> float:
        """The chance of a random action after ``env_steps`` transitions."""
        done = min(1.0, env_steps / self.epsilon_steps) if self.epsilon_steps else 1.0
        return self.epsilon_start + done * (self.epsilon_end - self.epsilon_start)

    def act(
        self, network: nn.Module, observation: Observation, random: np.random.Generator, env_steps: int
    ) -> tuple[Array, Mapping[str, Array]]:
        q = network(observation)  # [N, A]
        explore = random.random(len(q)) < self.epsilon(env_steps)
        anything = random.integers(0, q.shape[1], size=len(q))
        return np.where(explore, anything, q.argmax(dim=1).numpy()), {}

    def greedy(self, network: nn.Module, observation: Observation) -> Array:
        action: Array = network(observation).argmax(dim=1).numpy()
        return action

    def update(self, state: LearnerState, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        assert state.target is not None
        with torch.no_grad():
            q_t = state.target.module(batch.next_observation)  # [B, A]
            if self.double:
                a_t = state.online.module(batch.next_observation).argmax(dim=1, keepdim=True)  # [B, 1]
                v_t = q_t.gather(1, a_t).squeeze(1)  # [B]
            else:
                v_t = q_t.amax(dim=1)
            target = batch.reward + batch.discount * v_t
        q_tm1 = state.online.module(batch.observation).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # [B]
        if batch.weight is None:
            loss = nn.functional.smooth_l1_loss(q_tm1, target)
        else:
            loss = (batch.weight * nn.functional.smooth_l1_loss(q_tm1, target, reduction="none")).mean()
        state.minimise(loss, self.max_grad_norm)
        if state.updates % self.target_update == 0:
            state.target.weights.copy_(state.online.weights)
        return loss.detach(), (target - q_tm1).detach()
