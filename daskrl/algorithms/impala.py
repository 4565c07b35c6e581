"""IMPALA: one pass over each round, corrected for the lag of the policy that acted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from daskrl.algorithms.actor_critic import ActorCritic, RoundLearner, Trajectories, backwards, entropy, log_prob
from daskrl.algorithms.base import Setup
from daskrl.algorithms.torch_learner import adam
from daskrl.config import require_range
from daskrl.errors import ConfigError
from daskrl.names import suggests
from daskrl.replay.window import to_device


@suggests
@dataclass(frozen=True)
class IMPALA(ActorCritic):
    """Importance weighted actor-learner (Espeholt et al. 2018, https://arxiv.org/abs/1802.01561).

    Policy gradient, values and entropy bonus (section 4.2) with V-trace targets, which correct for the policy having
    acted with older weights: any ``lag``. For a Discrete space or a Box, also with an LSTM. It sees observations; the
    paper's is given the last reward and action too, which a wrapper can add to them.

    Parameters
    ----------
    batch_lanes : environments in one update, each with all its steps of the round.
    rho_clip, c_clip : truncation of the importance weights.
    vtrace_lambda : further factor of the traces (remark 2).
    """

    learning_rate: float = 6e-4
    entropy_coef: float = 0.01
    max_grad_norm: float | None = 40.0
    batch_lanes: int = 8
    rho_clip: float = 1.0
    c_clip: float = 1.0
    vtrace_lambda: float = 1.0

    lag = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "batch_lanes")
        require_range(self, "in [0, 1]", "vtrace_lambda")
        if not self.rho_clip >= self.c_clip > 0:
            raise ConfigError(f"rho_clip, c_clip: expected rho_clip >= c_clip > 0, got {self.rho_clip}, {self.c_clip}.")

    def transitions_per_update(self, setup: Setup) -> float:
        return setup.schedule.round_steps / self._parts(setup.schedule.lanes)

    def updates_after(self, env_steps: int, setup: Setup) -> int:
        """Updates made in all once ``env_steps`` transitions, which are whole rounds, are in."""
        return env_steps // setup.schedule.round_steps * self._parts(setup.schedule.lanes)

    def _parts(self, lanes: int) -> int:
        """Updates of one round."""
        return max(1, lanes // self.batch_lanes)

    def learner(self, setup: Setup, random: np.random.Generator) -> RoundLearner:
        learner = RoundLearner(self, setup, random, self.update)
        learner.optimize(adam(self.learning_rate, eps=1e-5))
        return learner

    def update(self, learner: RoundLearner, round_: Trajectories, random: np.random.Generator) -> float:
        lanes = round_.reward.shape[1]
        parts = np.array_split(random.permutation(lanes), self._parts(lanes))
        total = torch.zeros((), device=learner.device)
        for part in parts:
            loss = self.loss(learner, round_.lanes(to_device(part, learner.device)))
            learner.minimise(loss, max_grad_norm=self.max_grad_norm, learning_rate=learner.learning_rate)
            learner.count_update()
            total = total + loss.detach()
        return float(total) / len(parts)

    def loss(self, learner: RoundLearner, some: Trajectories) -> torch.Tensor:
        """The three terms of section 4.2, each a mean over the steps of some environments.

        ``-rho_t (r_t + discount_t v_{t+1} - V(s_t)) log pi(a_t | s_t)``, ``value_coef`` times the squared error
        ``(V(s_t) - v_t)**2``, and minus ``entropy_coef`` times the policy's entropy; ``v_t`` are V-trace targets
        (equation 1), constants here.
        """
        distribution, value, following = some.evaluated(learner)
        learned = log_prob(distribution, some.action.flatten(0, 1)).view_as(value)
        with torch.no_grad():
            target = vtrace(
                learned - some.behavior_log_prob, some.reward, some.discount, some.ended, value, following,
                rho_clip=self.rho_clip, c_clip=self.c_clip, lambda_=self.vtrace_lambda,
            )  # fmt: skip
        policy_loss = -(target.advantage * learned).mean()
        value_loss = torch.nn.functional.mse_loss(value, target.value)
        return policy_loss + self.value_coef * value_loss - self.entropy_coef * entropy(distribution)


class VTrace(NamedTuple):
    """Targets of values and advantages of the policy gradient, each ``[T, L]``."""

    value: torch.Tensor
    advantage: torch.Tensor


def vtrace(
    log_rho: torch.Tensor,
    reward: torch.Tensor,
    discount: torch.Tensor,
    ended: torch.Tensor,
    value: torch.Tensor,
    next_value: torch.Tensor,
    *,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
    lambda_: float = 1.0,
) -> VTrace:
    """V-trace targets (Espeholt et al. 2018, equation 1 in the recursive form of remark 1). All ``[T, L]``.

    ``v_t = V_t + delta_t + discount_t c_t (v_{t+1} - V_{t+1})`` with ``delta_t = rho_t (r_t + discount_t V_{t+1} -
    V_t)``; the sum ends where an episode does, and a truncated one bootstraps from the value of its last observation.
    Advantages are ``rho_t (r_t + discount_t v_{t+1} - V_t)``.

    Parameters
    ----------
    log_rho : log of the ratio of the learned to the acting policy's probability of each action.
    discount : 0 at termination, else gamma.
    next_value : of the observation after each step, an episode's last one where it ended.
    """
    ratio = log_rho.exp()
    rho, c = ratio.clamp(max=rho_clip), lambda_ * ratio.clamp(max=c_clip)
    delta = rho * (reward + discount * next_value - value)
    trace = discount * c * (~ended).to(delta.dtype)
    beyond = backwards(delta, trace)  # v_t - V_t
    target = value + beyond
    # What follows an episode's last step, and the round's, has no target of its own here.
    after = next_value.clone()
    after[:-1] += torch.where(ended[:-1], torch.zeros_like(beyond[1:]), beyond[1:])
    return VTrace(target, rho * (reward + discount * after - value))
