"""SAC: an actor that is rewarded for its entropy too, learned from replay."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from daskrl.algorithms.base import Moment, Setup, require_box
from daskrl.algorithms.continuous import Actor, Critics, Observation, squared_error
from daskrl.algorithms.networks import Normal, normals, tensors
from daskrl.algorithms.replay import ReplayLearner, ReplaySettings
from daskrl.algorithms.torch_learner import adam
from daskrl.config import require_range
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.replay.window import Batch


@suggests
@dataclass(frozen=True)
class SAC(ReplaySettings):
    """Soft actor-critic (Haarnoja et al. 2018, https://arxiv.org/abs/1812.05905); its defaults are the paper's.

    Acts in a bounded ``Box``, by the tanh of a Gaussian, rescaled to the bounds. The first ``learning_starts``
    transitions act uniformly at random. Greedily, the Gaussian's mean acts.

    Parameters
    ----------
    hidden : sizes of the hidden layers of actor and critics, after the convolutions where there are any.
    target_share : the critics' target moves this share of the way to the critics after each update (Polyak
        averaging; the paper's tau).
    temperature : alpha at first; it is learned from there.
    target_entropy : what alpha is to keep the policy's entropy at, measured in ``[-1, 1]``; None for minus the
        number of elements of an action.
    max_grad_norm : each gradient is scaled down to this norm; None leaves it.

    Examples
    --------
    Pendulum-v1, which takes minutes on one core (seed 1: a mean return of -140 over 100 greedy episodes)::

        algorithm = SAC(learning_rate=1e-3, batch_size=128, replay_ratio=128, learning_starts=500)
        run = daskrl.train(algorithm, "Pendulum-v1", store="pendulum", env_steps=20_000, seed=1,
                           streams=1, envs_per_stream=4, fragment_steps=16)
    """

    batch_size: int = 256
    learning_rate: float = 3e-4
    replay_ratio: float = 256.0
    window: int = 1_000_000
    hidden: tuple[int, ...] = (256, 256)
    target_share: float = 0.005
    temperature: float = 1.0
    target_entropy: float | None = None
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "hidden")
        require_range(self, "in (0, 1]", "target_share")
        require_range(self, "> 0", "temperature", "max_grad_norm")

    def check(self, setup: Setup) -> None:
        require_box(setup, type(self).__name__)
        super().check(setup)

    def policy(self, setup: Setup) -> Actor:
        return Actor(setup, self.encoder(setup), self.hidden, outputs=2)

    def act(self, policy: Actor, moment: Moment) -> Array:
        count = len(next(iter(moment.observation.values())))
        if moment.env_steps < self.learning_starts and not moment.greedy:
            return policy.bounds.box(moment.random.uniform(-1, 1, (count, policy.bounds.size)))
        mean, log_std = gaussian(policy(tensors(moment.observation)))  # [N, D] each
        if moment.greedy:
            return policy.bounds.box(torch.tanh(mean).numpy())
        action, _ = squashed(mean, log_std, normals(moment.random)(*mean.shape))
        return policy.bounds.box(action.numpy())

    def outputs(self, policy: Actor, observation: Observation, state: Observation) -> tuple[torch.Tensor, Observation]:
        """Actions within the bounds, ``[N, *leaf]``."""
        mean, _ = gaussian(policy(observation))
        return policy.bounds.box_of(torch.tanh(mean)), {}

    def critics(self, setup: Setup) -> Critics:
        return Critics(setup, self.encoder(setup), self.hidden)

    def learner(self, setup: Setup, random: np.random.Generator) -> ReplayLearner:
        online = Networks(self, setup)
        learner = ReplayLearner(
            self, setup, random, self.update,
            online=online, policy=online.actor, target=self.critics(setup), follows=online.critics,
        )  # fmt: skip
        for name, part in online.named_children():
            learner.optimize(adam(self.learning_rate), part, name)
        return learner

    def update_kind(self, updates: int) -> Hashable:
        return 0

    def update(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One update of each network (algorithm 1): the critics' loss, and the TD error of each transition ``[B]``."""
        how = {"max_grad_norm": self.max_grad_norm, "learning_rate": learner.learning_rate}
        critic_loss, td_error = self.critic_loss(learner, batch)
        learner.minimise(critic_loss, "critics", **how)
        actor_loss, log_prob = self.actor_loss(learner, batch)
        learner.minimise(actor_loss, "actor", **how)
        learner.minimise(self.temperature_loss(learner, log_prob.detach()), "temperature", **how)
        learner.follow(self.target_share)
        return critic_loss.detach(), td_error

    def critic_loss(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The critics' loss, half the squared error, and the TD error ``[B]`` (equations 3 and 5).

        The target is ``G + discount * (min_i q_target_i(s', a') - alpha * log pi(a' | s'))`` with ``a' ~ pi(s')``.
        ``G`` is the n-step return; it leaves out the entropies of the steps between.
        """
        online, target = _networks(learner)
        with torch.no_grad():
            action_t, log_prob_t = online.sample(batch.next_observation, learner.normal)  # [B, D], [B]
            q_t = target(batch.next_observation, action_t)  # [2, B]
            v_t = q_t.amin(dim=0) - online.temperature() * log_prob_t
            wanted = batch.reward + batch.discount * v_t  # [B]
        q_tm1 = online.critics(batch.observation, online.actor.bounds.unit(batch.action))  # [2, B]
        loss, td_error = squared_error(q_tm1, wanted, batch.weight)
        return loss / 2, td_error

    def actor_loss(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The actor's loss (equation 9), ``alpha * log pi(a | s) - min_i q_i(s, a)``, and ``log pi`` ``[B]``."""
        online, _ = _networks(learner)
        action, log_prob = online.sample(batch.observation, learner.normal)
        q = online.critics(batch.observation, action).amin(dim=0)  # [B]
        return (online.temperature().detach() * log_prob - q).mean(), log_prob

    def temperature_loss(self, learner: ReplayLearner, log_prob: torch.Tensor) -> torch.Tensor:
        """The temperature's loss (equation 18), ``-alpha * (log pi(a | s) + target_entropy)``. ``log_prob`` ``[B]``."""
        online, _ = _networks(learner)
        wanted = self.target_entropy if self.target_entropy is not None else -online.actor.bounds.size
        alpha: torch.Tensor = online.temperature()
        return -alpha * (log_prob.mean() + wanted)


class Networks(nn.Module):
    """All that SAC learns."""

    def __init__(self, settings: SAC, setup: Setup) -> None:
        super().__init__()
        self.actor = settings.policy(setup)
        self.critics = settings.critics(setup)
        self.temperature = Temperature(settings.temperature)

    def sample(self, observation: Observation, normal: Normal) -> tuple[torch.Tensor, torch.Tensor]:
        """Actions ``[B, D]`` in ``[-1, 1]`` and their log-densities ``[B]``."""
        mean, log_std = gaussian(self.actor(observation))
        return squashed(mean, log_std, normal(*mean.shape))


class Temperature(nn.Module):
    """alpha, learned by its logarithm."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(first)))

    def forward(self) -> torch.Tensor:
        return self.log_alpha.exp()


def gaussian(outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An actor's outputs ``[B, 2 D]`` as mean and log standard deviation, ``[B, D]`` each."""
    mean, log_std = outputs.chunk(2, dim=1)
    return mean, log_std.clamp(-20, 2)


def squashed(mean: torch.Tensor, log_std: torch.Tensor, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A sample ``a = tanh(u)``, ``u = mean + std * normal``, and its log-density (appendix C).

    ``log pi(a) = log N(u; mean, std) - sum_i log(1 - tanh(u_i)**2)``

    Returns
    -------
    action : ``[B, D]``. log_prob : ``[B]``.
    """
    u = mean + log_std.exp() * normal
    log_normal = -0.5 * (normal.square() + math.log(2 * math.pi)) - log_std
    # 1 - tanh(u)**2 = 4 / (exp(u) + exp(-u))**2, which does not vanish for large u.
    log_slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    return torch.tanh(u), (log_normal - log_slope).sum(dim=1)


def _networks(learner: ReplayLearner) -> tuple[Networks, Critics]:
    assert isinstance(learner.online, Networks)
    assert isinstance(learner.target, Critics)
    return learner.online, learner.target
