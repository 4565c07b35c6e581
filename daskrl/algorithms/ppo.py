"""PPO: several passes over each round, near the policy that acted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from daskrl.algorithms.actor_critic import (
    ActorCritic,
    RoundLearner,
    Trajectories,
    backwards,
    entropy,
    flat,
    log_prob,
)
from daskrl.algorithms.base import Setup
from daskrl.algorithms.torch_learner import adam
from daskrl.config import require_range
from daskrl.errors import ConfigError
from daskrl.names import suggests
from daskrl.replay.window import to_device

_LOG_RATIO = 20.0  # largest logarithm of a probability ratio that counts; a float32 overflows at 88


@suggests
@dataclass(frozen=True)
class PPO(ActorCritic):
    """Proximal policy optimisation (Schulman et al. 2017, https://arxiv.org/abs/1707.06347).

    Maximises the clipped surrogate ``min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A)`` (equation 7) with
    advantages of GAE. For a Discrete space or a Box, also with an LSTM. The schedule is synchronous (``lag=0``), and
    a round of ``streams x envs_per_stream`` environments times ``fragment_steps`` is what is learned from.

    Parameters
    ----------
    gae_lambda : lambda of generalised advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438,
        equation 16).
    clip : how far the ratio of an action's probabilities, now and when it was taken, counts beyond 1.
    clip_anneal : ``clip`` falls with the learning rate.
    epochs : passes over a round.
    batch_size : transitions in one update; with an LSTM, whole environments of about as many.
    normalise_advantage : advantages are shifted and scaled to mean 0 and deviation 1 in each minibatch of more than one
        transition.
    """

    gae_lambda: float = 0.95
    clip: float = 0.2
    clip_anneal: bool = False
    epochs: int = 10
    batch_size: int = 64
    normalise_advantage: bool = True

    lag = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "epochs")
        require_range(self, ">= 2", "batch_size")
        require_range(self, "in [0, 1]", "gae_lambda")
        require_range(self, "> 0", "clip")
        if self.clip_anneal and self.anneal_steps is None:
            raise ConfigError("clip_anneal: it falls with the learning rate, which does not; give anneal_steps too.")

    def check(self, setup: Setup) -> None:
        super().check(setup)
        if setup.schedule.lag != 0:
            raise ConfigError(
                f"lag: PPO learns from the policy that acted, so expected 0, got {setup.schedule.lag}. Type lag=0, or "
                "use IMPALA, which corrects for the lag."
            )

    def transitions_per_update(self, setup: Setup) -> float:
        schedule = setup.schedule
        return schedule.round_steps / self._parts(schedule.fragment_steps, schedule.lanes)

    def updates_after(self, env_steps: int, setup: Setup) -> int:
        """Updates made in all once ``env_steps`` transitions, which are whole rounds, are in."""
        schedule = setup.schedule
        each = self.epochs * self._parts(schedule.fragment_steps, schedule.lanes)
        return env_steps // schedule.round_steps * each

    def _parts(self, steps: int, lanes: int) -> int:
        """Minibatches of one round."""
        if self.lstm:
            return max(1, lanes // max(1, self.batch_size // steps))
        return max(1, round(steps * lanes / self.batch_size))

    def learner(self, setup: Setup, random: np.random.Generator) -> RoundLearner:
        learner = RoundLearner(self, setup, random, self.update)
        learner.optimize(adam(self.learning_rate, eps=1e-5))
        return learner

    def update(self, learner: RoundLearner, round_: Trajectories, random: np.random.Generator) -> float:
        with torch.no_grad():
            _, value, following = round_.evaluated(learner)
            advantage = gae(
                round_.reward, round_.discount, round_.ended, value, following, self.discount * self.gae_lambda
            )  # [T, L]
            target = advantage + value
        total, made = torch.zeros((), device=learner.device), 0
        for _ in range(self.epochs):
            for lanes, rows in self._minibatches(round_, random):
                loss = self.loss(learner, round_, advantage, target, lanes, rows)
                learner.minimise(loss, max_grad_norm=self.max_grad_norm, learning_rate=learner.learning_rate)
                learner.count_update()
                total, made = total + loss.detach(), made + 1
        return float(total) / made

    def _minibatches(
        self, round_: Trajectories, random: np.random.Generator
    ) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
        """Which environments or, without an LSTM, which of the T * L transitions are in each minibatch."""
        steps, lanes = round_.reward.shape
        order = random.permutation(lanes if self.lstm else steps * lanes)
        parts = [to_device(part, round_.reward.device) for part in np.array_split(order, self._parts(steps, lanes))]
        return [(part, None) if self.lstm else (None, part) for part in parts]

    def loss(
        self,
        learner: RoundLearner,
        round_: Trajectories,
        advantage: torch.Tensor,
        target: torch.Tensor,
        lanes: torch.Tensor | None,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """Equation 9: the clipped surrogate, the value loss and the entropy bonus of one minibatch."""
        columns = (round_.action, round_.behavior_log_prob, advantage, target)
        if lanes is not None:
            some = round_.lanes(lanes)
            distribution, value, _ = learner.online(flat(some.observation), some.state, some.begins)
            action, before, advantage, target = (c.index_select(1, lanes).flatten(0, 1) for c in columns)
        else:
            assert rows is not None
            observation = {name: x.index_select(0, rows) for name, x in flat(round_.observation).items()}
            distribution, value, _ = learner.online(observation)
            action, before, advantage, target = (c.flatten(0, 1).index_select(0, rows) for c in columns)
        if self.normalise_advantage and len(advantage) > 1:  # one alone has no deviation
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clip = self.clip * (learner.learning_rate / self.learning_rate if self.clip_anneal else 1.0)
        # An infinite ratio would have a gradient of NaN, also where the clip leaves it out of the loss.
        ratio = torch.exp((log_prob(distribution, action) - before).clamp(max=_LOG_RATIO))
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
        value_loss = torch.nn.functional.mse_loss(value, target)
        return -surrogate + self.value_coef * value_loss - self.entropy_coef * entropy(distribution)


def gae(
    reward: torch.Tensor,
    discount: torch.Tensor,
    ended: torch.Tensor,
    value: torch.Tensor,
    next_value: torch.Tensor,
    decay: float,
) -> torch.Tensor:
    """Generalised advantage estimates ``[T, L]`` (Schulman et al. 2016, equation 16).

    ``A_t = delta_t + decay * A_{t+1}`` with ``delta_t = r_t + discount_t V(s_{t+1}) - V(s_t)``, the sum ending where an
    episode does; a truncated one bootstraps from the value of its last observation.

    Parameters
    ----------
    discount : 0 at termination, else gamma. decay : gamma * lambda.
    """
    delta = reward + discount * next_value - value
    keep = decay * (~ended).to(delta.dtype)
    return backwards(delta, keep)
