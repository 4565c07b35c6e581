"""QR-DQN: learns quantiles of the return instead of its mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.c51 import DistributionNetwork, of_action
from daskrl.algorithms.dqn import DQN, Observation
from daskrl.algorithms.networks import masked, tensors
from daskrl.algorithms.replay import ReplayLearner
from daskrl.config import require_range
from daskrl.names import suggests
from daskrl.replay.window import Batch


@suggests
@dataclass(frozen=True)
class QRDQN(DQN):
    """Quantile regression DQN (Dabney et al. 2018, https://arxiv.org/abs/1710.10044).

    Learns K quantiles of the return of each action, by quantile regression on ``G + discount * theta_j(s', a*)``
    (algorithm 1). An action's value is their mean. Priorities are the losses.

    Parameters
    ----------
    quantiles : K, how many of the return are learned.
    kappa : up to this TD error the loss is quadratic.
    """

    quantiles: int = 50
    kappa: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "quantiles")
        require_range(self, "> 0", "kappa")

    def policy(self, setup: Setup) -> nn.Module:
        return DistributionNetwork(self.encoder(setup), setup.actions, self.quantiles, self.hidden, self.dueling)

    def q(self, policy: nn.Module, moment: Moment) -> torch.Tensor:
        theta: torch.Tensor = policy(tensors(moment.observation))  # [N, A, K]
        return theta.mean(dim=2)

    def values(self, policy: nn.Module, observation: Observation) -> torch.Tensor:
        theta: torch.Tensor = policy(observation)  # [N, A, K]
        return theta.mean(dim=2)

    def loss(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean quantile Huber loss of a batch, and that of each transition ``[B]``.

        Algorithm 1 and equations 9 and 10 of Dabney et al. (2018): the quantiles ``theta_i(s, a)`` fit the samples
        ``G + discount * theta_j(s', a*)`` of the target network, see `quantile_huber_loss`; ``a*`` has the best mean.
        """
        assert learner.target is not None
        with torch.no_grad():
            theta_t = learner.target(batch.next_observation)  # [B, A, K]
            judge = learner.online(batch.next_observation) if self.double else theta_t
            a_t = masked(judge.mean(dim=2), batch.next_observation).argmax(dim=1)  # [B]
            target = batch.reward[:, None] + batch.discount[:, None] * of_action(theta_t, a_t)  # [B, K]
        theta = of_action(learner.online(batch.observation), batch.action)  # [B, K]
        losses = quantile_huber_loss(theta, target, self.kappa)  # [B]
        loss = losses if batch.weight is None else batch.weight * losses
        return loss.mean(), losses.detach()


def quantile_huber_loss(theta: torch.Tensor, target: torch.Tensor, kappa: float) -> torch.Tensor:
    """How badly quantiles fit samples: ``sum_i mean_j |tau_i - 1{u_ij < 0}| L_kappa(u_ij)``, ``u_ij = t_j - theta_i``.

    Dabney et al. (2018), equations 9 and 10 and algorithm 1; ``tau_i = (2i - 1) / 2K`` (lemma 2).

    Parameters
    ----------
    theta : quantiles, ``[B, K]``.
    target : samples, ``[B, J]``.

    Returns
    -------
    ``[B]``
    """
    count = theta.shape[1]
    tau = (torch.arange(count, device=theta.device) + 0.5) / count  # [K]
    one, other = torch.broadcast_tensors(theta[:, :, None], target[:, None, :])  # [B, K, J]
    huber = nn.functional.huber_loss(one, other, reduction="none", delta=kappa)
    share = (tau[:, None] - (other < one).to(tau.dtype)).abs_()
    loss: torch.Tensor = (share * huber).mean(dim=2).sum(dim=1)
    return loss
