"""What SAC and TD3 share: the bounds of actions, an actor, twin critics and their loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from daskrl.algorithms.base import Setup
from daskrl.algorithms.networks import Encoder, mlp
from daskrl.envs.spaces import Leaf
from daskrl.records import Array

Observation = Mapping[str, torch.Tensor]


class Bounds:
    """Between the values of a bounded ``Box`` and ``[-1, 1]``, in which networks act. D elements of an action.

    Parameters
    ----------
    leaf : the action.
    device : where `unit` computes.
    """

    def __init__(self, leaf: Leaf, device: str = "cpu") -> None:
        self.leaf, self.size = leaf, len(leaf.low)
        self.low, self.high = np.array(leaf.low), np.array(leaf.high)  # [D] float64
        self.middle, self.half = self.high / 2 + self.low / 2, self.high / 2 - self.low / 2
        self._middle = torch.tensor(self.middle, dtype=torch.float32, device=device)
        scale = np.where(self.half > 0, self.half, 1.0)  # an element that is always the same becomes 0
        self._scale = torch.tensor(scale, dtype=torch.float32, device=device)

    def box(self, unit: Array) -> Array:
        """``[N, D]`` in ``[-1, 1]`` as actions of the environment, ``[N, *leaf]``."""
        action = np.clip(self.middle + self.half * unit, self.low, self.high)
        return action.astype(self.leaf.dtype).reshape(-1, *self.leaf.shape)

    def box_of(self, unit: torch.Tensor) -> torch.Tensor:
        """`box` of a tensor, to the same bits."""
        middle, half, low, high = (torch.from_numpy(x) for x in (self.middle, self.half, self.low, self.high))
        action = torch.clamp(middle + half * unit.double(), low, high)
        return action.to(getattr(torch, self.leaf.dtype)).reshape(-1, *self.leaf.shape)

    def unit(self, action: torch.Tensor) -> torch.Tensor:
        """Stored actions ``[B, *leaf]`` as ``[B, D]`` float32 in ``[-1, 1]``."""
        return (action.reshape(len(action), -1).to(torch.float32) - self._middle) / self._scale


class Actor(nn.Module):
    """``{leaf: [B, ...]} -> [B, outputs * D]``, ``outputs`` numbers for each of the D elements of an action."""

    def __init__(self, setup: Setup, encoder: Encoder, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.bounds = Bounds(setup.action, setup.device)
        self.encoder = encoder
        self.head = mlp(encoder.out_features, hidden, outputs * self.bounds.size)

    def forward(self, observation: Observation) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.encoder(observation)).float()
        return outputs


class Critics(nn.Module):
    """Two estimates of ``q(s, a)`` behind one encoder. Actions are ``[B, D]`` in ``[-1, 1]``."""

    def __init__(self, setup: Setup, encoder: Encoder, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        inputs = encoder.out_features + len(setup.action.low)
        self.one, self.other = mlp(inputs, hidden, 1), mlp(inputs, hidden, 1)

    def forward(self, observation: Observation, action: torch.Tensor) -> torch.Tensor:
        """Both estimates, ``[2, B]``."""
        x = torch.cat((self.encoder(observation), action), dim=1)
        return torch.stack((self.one(x), self.other(x))).squeeze(2).float()

    def first(self, observation: Observation, action: torch.Tensor) -> torch.Tensor:
        """The first estimate alone, ``[B]``."""
        q: torch.Tensor = self.one(torch.cat((self.encoder(observation), action), dim=1))
        return q.squeeze(1).float()


def squared_error(
    q: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The mean squared error, summed over both critics, and the TD error ``[B]`` where priorities need it.

    Parameters
    ----------
    q : ``[2, B]``.
    target : ``[B]``.
    weight : importance weights ``[B]`` of prioritised replay, or None.
    """
    error = target - q  # [2, B]
    if weight is None:
        return error.square().mean(dim=1).sum(), None
    return (weight * error.square()).mean(dim=1).sum(), error.detach().abs().mean(dim=0)
