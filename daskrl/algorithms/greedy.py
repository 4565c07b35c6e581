"""Policies as torch modules for programs without daskrl: greedy actions, recurrent states as inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from daskrl.algorithms.base import Setup
from daskrl.records import Array


class GreedyModule(nn.Module):
    """What a policy decides by. ``forward(*observation, *state)``, a tensor for each of the names in ``inputs``.

    An observation's leaf is ``[B, *leaf]`` in the dtype of its space, ``[B, K, *leaf]`` under frame stacking with the
    newest frame last; a recurrent state is ``[B, *shape]`` float32, zeros at an episode's first step.

    Returns
    -------
    What the algorithm's method ``outputs`` gives: action values ``[B, A]`` (DQN, C51, QR-DQN, Rainbow, R2D2) or
    log-probabilities ``[B, A]`` (PPO and IMPALA in a Discrete space), of which the largest counts, counted from 0;
    means ``[B, *leaf]``, not clipped (PPO and IMPALA in a Box); actions ``[B, *leaf]`` (SAC, TD3). A recurrent policy
    gives the states after the step too: ``(output, *state)``.

    Attributes
    ----------
    network : as the algorithm made it, with the weights.
    inputs : the names of the arguments.
    states : those that are recurrent states.
    """

    def __init__(self, algorithm: Any, network: nn.Module, setup: Setup, states: Sequence[str]) -> None:
        super().__init__()
        self.network = network.eval()
        self.leaves = [leaf.name for leaf in setup.spec.observation]
        self.states = list(states)
        self._algorithm = algorithm

    @property
    def inputs(self) -> list[str]:
        return self.leaves + self.states

    def outputs(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """What is decided by, and the states after it."""
        if len(arguments) != len(self.inputs):
            raise TypeError(f"expected {len(self.inputs)} tensors, {', '.join(self.inputs)}; got {len(arguments)}")
        given = dict(zip(self.inputs, arguments, strict=True))
        observation = {name: given[name] for name in self.leaves}
        decided, after = self._algorithm.outputs(self.network, observation, {name: given[name] for name in self.states})
        return decided, tuple(after[name] for name in self.states)

    def forward(self, *arguments: torch.Tensor) -> Any:
        decided, after = self.outputs(*arguments)
        return (decided, *after) if after else decided


class ActingModule(nn.Module):
    """A `GreedyModule` that gives the action as the environment takes it first: ``(action, output, *state)``.

    Discrete actions are ``[B]`` int64 and begin at the space's start; a Box's are clipped to its bounds.
    """

    low: torch.Tensor | None
    high: torch.Tensor | None

    def __init__(self, greedy: GreedyModule, setup: Setup, bounds: tuple[Array, Array] | None) -> None:
        super().__init__()
        self.greedy, self.leaf = greedy, setup.action
        for name, bound in zip(("low", "high"), bounds or (None, None), strict=True):
            self.register_buffer(name, None if bound is None else torch.from_numpy(bound.copy()))

    def forward(self, *arguments: torch.Tensor) -> tuple[torch.Tensor, ...]:
        decided, after = self.greedy.outputs(*arguments)
        if self.leaf.kind == "discrete":
            action = decided.argmax(dim=1) + self.leaf.start[0]
        else:
            action = decided.to(getattr(torch, self.leaf.dtype))
            if self.low is not None:
                action = torch.clamp(action, self.low, self.high)
        return (action, decided, *after)


def tensors(arrays: Mapping[str, Array], names: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Some arrays in the order of names, copied."""
    return tuple(torch.tensor(arrays[name]) for name in names)
