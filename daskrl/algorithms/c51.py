"""C51: learns the distribution of the return instead of its mean; and the network of distributional methods."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.dqn import DQN, Observation
from daskrl.algorithms.networks import Encoder, Normal, masked, normals, tensors, uniform
from daskrl.algorithms.replay import ReplayLearner
from daskrl.config import require_range
from daskrl.errors import ConfigError
from daskrl.names import suggests
from daskrl.replay.window import Batch


@suggests
@dataclass(frozen=True)
class C51(DQN):
    """Categorical DQN (Bellemare et al. 2017, https://arxiv.org/abs/1707.06887).

    Learns the probabilities of K returns ``z_i`` for each action: those of ``G + discount * z_i`` at ``(s', a*)``,
    projected onto the ``z_i`` (algorithm 1), are what they are drawn to, by their Kullback-Leibler divergence: the
    cross-entropy less what does not depend on the weights. Priorities are the divergences, as in Rainbow.

    Parameters
    ----------
    atoms : K, in how many values the return's distribution is held.
    v_min, v_max : the least and the largest ``z_i``. Returns beyond them are taken for them.
    noisy : noisy layers behind the encoder (Fortunato et al. 2018, https://arxiv.org/abs/1706.10295), which explore
        by themselves: set ``epsilon_start`` and ``epsilon_end`` to 0.
    noise : sigma_0, their noise at first.
    """

    atoms: int = 101
    v_min: float = -100.0
    v_max: float = 100.0
    noisy: bool = False
    noise: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 2", "atoms")
        require_range(self, ">= 0", "noise")
        if not self.v_min < self.v_max:
            raise ConfigError(f"v_max: expected a number > v_min = {self.v_min!r}, got {self.v_max!r}.")

    def policy(self, setup: Setup) -> nn.Module:
        noise = self.noise if self.noisy else None
        return DistributionNetwork(self.encoder(setup), setup.actions, self.atoms, self.hidden, self.dueling, noise)

    def draws_ahead(self) -> bool:
        return not self.noisy

    def support(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The returns ``z``, ``[K]``."""
        return torch.linspace(self.v_min, self.v_max, self.atoms, device=device)

    def q(self, policy: nn.Module, moment: Moment) -> torch.Tensor:
        logits = policy(tensors(moment.observation), None if moment.greedy else normals(moment.random))  # [N, A, K]
        q: torch.Tensor = logits.softmax(dim=2) @ self.support()
        return q

    def values(self, policy: nn.Module, observation: Observation) -> torch.Tensor:
        values: torch.Tensor = policy(observation, None).softmax(dim=2) @ self.support()
        return values

    def loss(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean divergence of a batch, and that of each transition ``[B]``.

        Algorithm 1 of Bellemare et al. (2017): ``KL(m || p(s, a))``, ``m`` the distribution of ``G + discount * z`` at
        ``(s', a*)`` under the target network, projected onto ``z``. ``a*`` has the largest mean.
        """
        assert learner.target is not None
        support, normal = self.support(learner.device), learner.normal  # every call draws noise of its own
        with torch.no_grad():
            p_t = learner.target(batch.next_observation, normal).softmax(dim=2)  # [B, A, K]
            judge = p_t
            if self.double:
                judge = learner.online(batch.next_observation, normal).softmax(dim=2)
            with torch.autocast(learner.device.type, enabled=False):
                q_t = judge @ support  # [B, A]
            a_t = masked(q_t, batch.next_observation).argmax(dim=1)  # [B]
            target = project(of_action(p_t, a_t), batch.reward, batch.discount, support)  # [B, K]
        logits = of_action(learner.online(batch.observation, normal), batch.action)  # [B, K]
        divergence = nn.functional.kl_div(logits.log_softmax(dim=1), target, reduction="none").sum(dim=1)  # [B]
        loss = divergence if batch.weight is None else batch.weight * divergence
        return loss.mean(), divergence.detach()


def project(p: torch.Tensor, reward: torch.Tensor, discount: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    """The distribution of ``reward + discount * z``, as probabilities of the values of ``z`` themselves.

    Each value's probability is shared by its two neighbours in the support, and the nearer gets more; beyond the ends
    the last one gets it all (Bellemare et al. 2017, equation 7 and algorithm 1).

    Parameters
    ----------
    p : probabilities of the support's values, ``[B, K]``.
    reward, discount : ``[B]``.
    support : values at equal distances, ``[K]``.

    Returns
    -------
    ``[B, K]``
    """
    atoms = len(support)
    distance = (support[-1] - support[0]) / (atoms - 1)
    value = reward[:, None] + discount[:, None] * support  # [B, K]
    place = ((value - support[0]) / distance).clamp(0, atoms - 1)  # [B, K]
    low = place.floor().clamp(max=atoms - 2)  # the last value is the upper neighbour of the one before it
    upper = p * (place - low)
    rows = torch.arange(0, p.numel(), atoms, device=p.device)[:, None]
    index = (rows + low.to(torch.int64)).view(-1)
    projected = torch.zeros_like(p).view(-1)
    projected.index_add_(0, index, (p - upper).view(-1))
    projected.index_add_(0, index + 1, upper.view(-1))
    return projected.view(p.shape)


def of_action(values: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """What belongs to one action of each transition. ``[B, A, K], [B] -> [B, K]``."""
    return values[torch.arange(len(action), device=action.device), action]


class DistributionNetwork(nn.Module):
    """K numbers for each action of a discrete space. ``{leaf: [B, ...]} -> [B, A, K]``.

    Parameters
    ----------
    dueling : value and advantage streams, for each of the K (Wang et al. 2016, https://arxiv.org/abs/1511.06581,
        equation 9).
    noise : sigma_0 of noisy layers; None for plain ones.
    """

    def __init__(
        self,
        encoder: Encoder,
        actions: int,
        atoms: int,
        hidden: Sequence[int],
        dueling: bool,
        noise: float | None = None,
    ) -> None:
        super().__init__()
        self.atoms = atoms
        self.encoder, features = encoder, encoder.out_features
        self.advantage = Layers([features, *hidden, actions * atoms], noise)
        self.value = Layers([features, *hidden, atoms], noise) if dueling else None

    def forward(self, observation: Mapping[str, torch.Tensor], normal: Normal | None = None) -> torch.Tensor:
        features = self.encoder(observation)
        advantage: torch.Tensor = self.advantage(features, normal).float()
        advantage = advantage.view(features.shape[0], -1, self.atoms)
        if self.value is None:
            return advantage
        value: torch.Tensor = self.value(features, normal).float()
        return value.unsqueeze(1) + advantage - advantage.mean(dim=1, keepdim=True)


class Layers(nn.Module):
    """Linear layers, noisy or not, with ReLU between them. ``[B, sizes[0]] -> [B, sizes[-1]]``."""

    def __init__(self, sizes: Sequence[int], noise: float | None) -> None:
        super().__init__()
        self.noisy = noise is not None
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) if noise is None else NoisyLinear(inputs, outputs, noise)
            for inputs, outputs in itertools.pairwise(sizes)
        )

    def forward(self, x: torch.Tensor, normal: Normal | None) -> torch.Tensor:
        for number, layer in enumerate(self.layers):
            x = nn.functional.relu(x) if number else x
            x = layer(x, normal) if self.noisy else layer(x)
        return x


class NoisyLinear(nn.Module):
    """A linear layer whose weights are noisy (Fortunato et al. 2018, https://arxiv.org/abs/1706.10295).

    ``w = mu_w + sigma_w * eps_out eps_in^T`` and ``b = mu_b + sigma_b * eps_out`` (equations 9 to 11), ``eps`` being
    ``f(x) = sgn(x) |x|**0.5`` of normal numbers. The noise is drawn at every call and kept nowhere.

    Parameters
    ----------
    noise : sigma_0; sigma is ``sigma_0 * inputs**-0.5`` at first (section 3.2).
    """

    def __init__(self, inputs: int, outputs: int, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.mu, self.sigma = nn.Linear(inputs, outputs), nn.Linear(inputs, outputs)

    def initialise(self, random: np.random.Generator) -> None:
        scale = self.mu.in_features**-0.5
        for parameter in self.mu.parameters():
            uniform(parameter, scale, random)
        for parameter in self.sigma.parameters():
            parameter.fill_(self.noise * scale)

    def forward(self, x: torch.Tensor, normal: Normal | None) -> torch.Tensor:
        """``[B, inputs] -> [B, outputs]``, with one noise for all rows; without any where ``normal`` is None."""
        mean: torch.Tensor = self.mu(x)
        if normal is None:
            return mean
        eps = signed_root(normal(self.mu.in_features + self.mu.out_features))
        eps_in, eps_out = eps.split([self.mu.in_features, self.mu.out_features])
        # The same as the noisy matrix times x, without making the matrix.
        noise: torch.Tensor = self.sigma(x * eps_in) * eps_out
        return mean + noise


def signed_root(x: torch.Tensor) -> torch.Tensor:
    """``sgn(x) |x|**0.5``. On a CPU by NumPy, whose root is the same on all of them; torch's is a library's."""
    if x.device.type != "cpu":
        return x.abs().sqrt_().copysign_(x)
    values = x.numpy()
    return torch.from_numpy(np.copysign(np.sqrt(np.abs(values)), values))
