"""What learners that use torch share: networks as flat vectors, optimizers, and their state by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from daskrl import networks
from daskrl.algorithms.base import Setup, Weights
from daskrl.networks import Flat
from daskrl.spaces import Array

MakeOptimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]


class TorchLearner:
    """Networks and optimizers of a learner.

    Parameters
    ----------
    random : the first weights are drawn from it.
    online : what is learned. ``policy``, itself or a part of it, is what is published.
    target : a slowly following copy of ``follows`` (``online`` by default), where there is one.

    Attributes
    ----------
    online, target : the networks; ``flat_online``, ``flat_target`` hold their parameters.
    updates : gradient updates made so far.
    """

    def __init__(
        self,
        setup: Setup,
        random: np.random.Generator,
        online: nn.Module,
        *,
        policy: nn.Module | None = None,
        target: nn.Module | None = None,
        follows: nn.Module | None = None,
    ) -> None:
        networks.deterministic(setup.device)
        self.setup, self.device = setup, torch.device(setup.device)
        networks.initialise(online, random)
        self.online, self.policy = online, policy if policy is not None else online
        self.flat_online = Flat(online.to(self.device), self.device)
        self.target, self.flat_target = target, None
        self._follows = self.flat_online.part(follows if follows is not None else online)
        if target is not None:
            self.flat_target = Flat(target.to(self.device), self.device)
            self.follow()
        self._optimizers: dict[str, tuple[torch.optim.Optimizer, torch.Tensor, torch.Tensor, list[nn.Parameter]]] = {}
        self.updates = 0

    def optimize(self, make: MakeOptimizer, part: nn.Module | None = None, name: str = "") -> None:
        """Have an optimizer for the online network or a part of it; ``name`` it where there are several."""
        module = part if part is not None else self.online
        where = self.flat_online.part(module)
        weights, gradient = self.flat_online.weights[where], self.flat_online.gradient[where]
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._optimizers[name] = (make([weights]), weights, gradient, parameters)

    def minimise(
        self,
        loss: torch.Tensor,
        name: str = "",
        *,
        max_grad_norm: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """One step of an optimizer on the gradient of ``loss`` with respect to its part, and to nothing else."""
        optimizer, weights, gradient, parameters = self._optimizers[name]
        gradient.zero_()
        loss.backward(inputs=parameters)
        if max_grad_norm is not None:
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_(torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0))
        if learning_rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        weights.grad = gradient
        optimizer.step()

    def follow(self, share: float = 1.0) -> None:
        """Move the target this share of the way to the online network (Polyak averaging; 1 copies it)."""
        assert self.flat_target is not None
        source, target = self.flat_online.weights[self._follows], self.flat_target.weights
        if share == 1.0:
            target.copy_(source)
        else:
            target.lerp_(source, share)

    def weights(self) -> Weights:
        return networks.named(self.policy)

    def state(self) -> dict[str, Array]:
        tensors = {"online": self.flat_online.weights}
        if self.flat_target is not None:
            tensors["target"] = self.flat_target.weights
        for name, (optimizer, *_) in self._optimizers.items():
            for key, value in optimizer.state_dict()["state"].get(0, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        arrays = {name: np.array(value.detach().cpu().numpy()) for name, value in tensors.items()}
        return {**arrays, "updates": np.array(self.updates)}

    def restore(self, state: Mapping[str, Array]) -> None:
        def tensor(name: str) -> torch.Tensor:
            return torch.tensor(state[name])

        self.flat_online.weights.copy_(tensor("online"))
        if self.flat_target is not None:
            self.flat_target.weights.copy_(tensor("target"))
        self.updates = int(state["updates"])
        for name, (optimizer, *_) in self._optimizers.items():
            prefix = f"optimizer.{name}."
            kept = {key.removeprefix(prefix): tensor(key) for key in state if key.startswith(prefix)}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": {0: kept} if kept else {}, "param_groups": groups})


def adam(learning_rate: float, eps: float = 1e-8, **given: Any) -> MakeOptimizer:
    """Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980) in one fused operation."""
    return lambda weights: torch.optim.Adam(weights, lr=learning_rate, eps=eps, fused=True, **given)
