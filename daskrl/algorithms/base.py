"""What an algorithm is: frozen settings, and functions of settings and state.

To add one, write one file (or one class in a notebook cell): a frozen dataclass deriving from `Algorithm`
with the methods marked below. It must draw randomness only from the generators it is given, and keep nothing
on itself: both its acting and its learning run again on other machines.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from daskrl.config import require_integer
from daskrl.errors import ConfigError
from daskrl.networks import Flat
from daskrl.spaces import Array, SpaceSpec
from daskrl.window import Batch

Observation = Mapping[str, torch.Tensor]


@dataclass
class LearnerState:
    """What learning changes.

    Attributes
    ----------
    online : the network that is published.
    target : a slowly following copy, where the algorithm has one.
    optimizer : over ``online.weights``, one flat parameter.
    updates : gradient updates made so far.
    """

    online: Flat
    target: Flat | None
    optimizer: torch.optim.Optimizer
    updates: int = 0

    def minimise(self, loss: torch.Tensor, max_grad_norm: float | None = None) -> None:
        """One optimizer step on the gradient of ``loss``."""
        self.online.gradient.zero_()
        loss.backward()
        if max_grad_norm is not None:
            norm = torch.linalg.vector_norm(self.online.gradient)
            self.online.gradient.mul_(torch.clamp(max_grad_norm / (norm + 1e-6), max=1.0))
        self.online.weights.grad = self.online.gradient
        self.optimizer.step()
        self.updates += 1

    def state(self) -> dict[str, torch.Tensor]:
        """Everything, as named tensors, for a checkpoint."""
        tensors = {"online": self.online.weights, "updates": torch.tensor([self.updates])}
        if self.target is not None:
            tensors["target"] = self.target.weights
        for name, value in self.optimizer.state_dict()["state"].get(0, {}).items():
            tensors[f"optimizer.{name}"] = value
        return {name: value.detach().cpu() for name, value in tensors.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what `state` returned."""
        self.online.weights.copy_(tensors["online"])
        if self.target is not None:
            self.target.weights.copy_(tensors["target"])
        self.updates = int(tensors["updates"][0])
        kept = {
            name.removeprefix("optimizer."): value.clone()
            for name, value in tensors.items()
            if name.startswith("optimizer.")
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {0: kept} if kept else {}, "param_groups": groups})


@dataclass(frozen=True)
class Algorithm(ABC):
    """Base of all algorithms that learn from replay.

    Parameters
    ----------
    discount : gamma.
    n_step : steps of the n-step return.
    batch_size : transitions in one update.
    learning_rate : of the optimizer.
    learning_rate_end, learning_rate_updates : it falls linearly to this over that many updates; None keeps it.
    replay_ratio : gradient updates x batch_size for each transition.
    learning_starts : transitions before the first update.
    window : newest transitions an update may draw from.
    priority_alpha : exponent of prioritised replay; None draws uniformly.
    priority_beta : exponent of its importance weights, rising linearly to 1.
    priority_beta_updates : updates over which it rises.
    reward_clip : the learner sees rewards in ``[-reward_clip, reward_clip]``; None leaves them.
    """

    discount: float = 0.99
    n_step: int = 1
    batch_size: int = 64
    learning_rate: float = 1e-3
    learning_rate_end: float | None = None
    learning_rate_updates: int = 25_000
    replay_ratio: float = 32.0
    learning_starts: int = 1000
    window: int = 100_000
    priority_alpha: float | None = None
    priority_beta: float = 0.4
    priority_beta_updates: int = 100_000
    reward_clip: float | None = None

    columns: ClassVar[Mapping[str, str]] = {}
    """Columns `act` adds to the store: name -> dtype, each ``(time, env)``; e.g. ``behavior_log_prob``."""

    def __post_init__(self) -> None:
        for name, low in (("n_step", 1), ("batch_size", 1), ("learning_starts", 0), ("window", 1)):
            require_integer(name, getattr(self, name), low)
        for name in ("learning_rate", "replay_ratio"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a number > 0, got {getattr(self, name)!r}.")
        require_integer("learning_rate_updates", self.learning_rate_updates, 1)
        if self.learning_rate_end is not None and not self.learning_rate_end > 0:
            raise ConfigError(f"learning_rate_end: expected a number > 0 or None, got {self.learning_rate_end!r}.")
        if not 0 <= self.discount <= 1:
            raise ConfigError(f"discount: expected a number in [0, 1], got {self.discount!r}.")

    # -- to write -----------------------------------------------------------------------------------------

    @abstractmethod
    def check(self, spec: SpaceSpec) -> None:
        """Raise `UnsupportedSpaceError` unless the algorithm can act in these spaces. Driver, once."""

    @abstractmethod
    def network(self, spec: SpaceSpec, frame_stack: int) -> nn.Module:
        """A new network, float32, without buffers. Any process, any number of times."""

    @abstractmethod
    def act(
        self, network: nn.Module, observation: Observation, random: np.random.Generator, env_steps: int
    ) -> tuple[Array, Mapping[str, Array]]:
        """Actions ``[N, ...]`` (discrete ones counted from 0) and the values of `columns`, each ``[N]``.

        Rollout tasks, under ``torch.inference_mode``; once for each step, ``random`` being the fragment's own
        generator and ``env_steps`` the transitions that all streams took before this step.
        """

    @abstractmethod
    def greedy(self, network: nn.Module, observation: Observation) -> Array:
        """Actions ``[N, ...]`` without exploration, for evaluation."""

    @abstractmethod
    def update(self, state: LearnerState, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One update of ``state``. The loss (scalar) and the TD error of each transition ``[B]``, or None."""

    # -- to change where needed ---------------------------------------------------------------------------

    def learner(self, online: Flat, target: Flat) -> LearnerState:
        """The state before the first update; both networks hold version 0."""
        optimizer = torch.optim.Adam([online.weights], lr=self.learning_rate, eps=1e-8, fused=True)
        return LearnerState(online, target, optimizer)

    def updates_after(self, env_steps: int) -> int:
        """Updates made in all once ``env_steps`` transitions are in: a number fixed by the settings."""
        return int(max(0, env_steps - self.learning_starts) * self.replay_ratio / self.batch_size)

    def learning_rate_after(self, updates: int) -> float:
        """The optimizer's learning rate after some updates."""
        if self.learning_rate_end is None:
            return self.learning_rate
        done = min(1.0, updates / self.learning_rate_updates)
        return self.learning_rate + done * (self.learning_rate_end - self.learning_rate)

    def beta(self, updates: int) -> float:
        """The importance exponent after some updates."""
        done = min(1.0, updates / self.priority_beta_updates)
        return self.priority_beta + done * (1.0 - self.priority_beta)

    def settings(self) -> dict[str, Any]:
        """The settings as JSON."""
        return dataclasses.asdict(self)
