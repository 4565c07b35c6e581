"""Learning from batches of the window: settings, and the learner that DQN, SAC and their like share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from daskrl.algorithms import networks
from daskrl.algorithms.base import Setup, Weights, linear
from daskrl.algorithms.torch_learner import TorchLearner, TorchSettings
from daskrl.config import require_range
from daskrl.errors import ConfigError
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.replay import samplers
from daskrl.replay.window import Batch, Positions, Window, action_columns, check_capacity, needed_bytes, to_device

_WARM_UP = 3  # updates of a kind before one is recorded
_TOGETHER = 1 << 26  # bytes of observations that a GPU gathers at once, where batches are drawn ahead
_APART = 16  # each such batch begins at a multiple of so many transitions: aligned as one by itself, and so its bits

Update = Callable[["ReplayLearner", Any], tuple[torch.Tensor, torch.Tensor | None]]
"""One update of a learner from a `daskrl.replay.window.Batch`, or whatever its ``gather`` returns: the loss
(scalar), and the TD error ``[B]`` of each transition, or what else priorities are made of, or None."""


@suggests
@dataclass(frozen=True)
class ReplaySettings(TorchSettings):
    """Settings of learning from replay, besides those of `TorchSettings`.

    Parameters
    ----------
    discount : gamma.
    n_step : steps of the n-step return.
    batch_size : transitions in one update.
    learning_rate : of the optimizer.
    learning_rate_end, learning_rate_updates : the learning rate falls linearly to the first over so many updates; None
        keeps it.
    replay_ratio : gradient updates x batch_size for each transition.
    learning_starts : transitions before the first update.
    window : newest transitions an update may draw from.
    priority_alpha : exponent of prioritised replay; None draws uniformly.
    priority_beta : exponent of the importance weights of prioritised replay, rising linearly to 1.
    priority_beta_updates : updates over which ``priority_beta`` rises.
    reward_clip : the learner sees rewards in ``[-reward_clip, reward_clip]``; None leaves them.
    cuda_graphs : on a GPU each kind of update is recorded once and replayed from then on, with the same bits in a
        fraction of the time. Not for R2D2, whose updates are all different. An update of your own may depend only on
        the batch, the networks, ``learner.normal``, ``learner.learning_rate`` as ``minimise`` is given it, and its
        ``update_kind``; a ``gather`` of your own gives the same batch again, written over.
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
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "n_step", "batch_size", "window", "learning_rate_updates")
        require_range(self, ">= 0", "learning_starts", "priority_alpha", "priority_beta_updates")
        require_range(self, "> 0", "learning_rate", "learning_rate_end", "replay_ratio", "reward_clip")
        require_range(self, "in [0, 1]", "discount", "priority_beta")

    def check(self, setup: Setup) -> None:
        """Raise `ConfigError` unless the window can be sampled, and updates recorded if they shall be."""
        check_capacity(self.window, self.n_step, setup.schedule, setup.frame_stack)
        if self.cuda_graphs and self.update_kind(0) is None:
            raise ConfigError(
                f"cuda_graphs: {type(self).__name__} does not say which of its updates are alike. Leave it out, or "
                "give the class a method update_kind(updates)."
            )

    def window_bytes(self, setup: Setup) -> int:
        """Bytes that the window takes where the learner computes, once it is full."""
        return needed_bytes(
            setup.spec, setup.schedule, capacity=self.window, frame_stack=setup.frame_stack, n_step=self.n_step
        )

    def update_kind(self, updates: int) -> Hashable:
        """Which kind of update follows after some: those of a kind are the same operations. None: not recorded."""
        return None

    def draws_ahead(self) -> bool:
        """Whether the batches of a round may be drawn before its updates, where all transitions are drawn alike.

        Batches drawn ahead take less time, and are the same batches if updates draw no numbers from ``learner.normal``
        and ``learner.random``. Numbers that an update draws would come after the numbers of all batches of the round:
        an algorithm whose updates draw numbers returns False, also where its base class returns True.
        """
        return False

    def load(self, policy: nn.Module, weights: Weights) -> None:
        networks.load_named(policy, weights)

    def transitions_per_update(self, setup: Setup) -> float:
        """How many transitions an update learns from."""
        return self.batch_size

    def updates_after(self, env_steps: int, setup: Setup) -> int:
        """Updates made in all once ``env_steps`` transitions are in: a number fixed by the settings."""
        learned = max(0, env_steps - self.learning_starts) * self.replay_ratio
        return int(learned / self.transitions_per_update(setup))

    def learning_rate_after(self, updates: int) -> float:
        """The optimizer's learning rate after some updates."""
        if self.learning_rate_end is None:
            return self.learning_rate
        return linear(self.learning_rate, self.learning_rate_end, self.learning_rate_updates, updates)

    def beta(self, updates: int) -> float:
        """The importance exponent after some updates."""
        return linear(self.priority_beta, 1.0, self.priority_beta_updates, updates)


@dataclass
class Kind:
    """Updates of one kind, and the CUDA graph that makes them (https://docs.pytorch.org/docs/stable/notes/cuda.html).

    Attributes
    ----------
    made : updates made so far.
    graph : None until there is one.
    batch : what it learns from.
    result : what its update returns, written over by each replay.
    normal : standard normal numbers it uses, in order. They are drawn before a replay.
    unused : while it is recorded, those it did not use yet; else None.
    optimizers : names of those whose learning rate it uses.
    """

    made: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    batch: Any = None
    result: tuple[torch.Tensor, torch.Tensor | None] | None = None
    normal: list[torch.Tensor] = field(default_factory=list)
    unused: Iterator[torch.Tensor] | None = None
    optimizers: list[str] = field(default_factory=list)


class ReplayLearner(TorchLearner):
    """Adds each round to a window and makes the updates due, each from a batch drawn from it.

    Parameters
    ----------
    settings : see `ReplaySettings`; an algorithm that derives from it is its own settings.
    update : called for each batch. It calls ``minimise``, and ``follow`` where there is a target.
    online, others : see `TorchLearner`.

    Attributes
    ----------
    random : the generator of the round being learned; every draw of an update comes from it.
    items : what is drawn from and what its positions mean to `gather`: the window's transitions.
    batch : what the newest update learned from, as `gather` made it; None before the first.
    together : bytes of batches that are gathered at once; 0 has each batch gathered by itself, as on a CPU.
    graphs : whether updates are CUDA graphs.
    kinds : by what ``settings.update_kind`` says of an update, its graph.
    recording : the kind of which an update is warmed up or recorded now; None otherwise.
    """

    random: np.random.Generator
    items: samplers.Sampled

    def __init__(
        self,
        settings: ReplaySettings,
        setup: Setup,
        random: np.random.Generator,
        update: Update,
        online: nn.Module,
        **others: Any,
    ) -> None:
        super().__init__(settings, setup, random, online, **others)
        self.settings, self.update = settings, update
        self.window = Window(
            setup.spec,
            setup.schedule,
            capacity=settings.window,
            frame_stack=setup.frame_stack,
            n_step=settings.n_step,
            discount=settings.discount,
            reward_clip=settings.reward_clip,
            device=self.device,
        )
        self.draw_from(self.window)
        self.batch: Any = None
        self.graphs = settings.cuda_graphs and self.device.type == "cuda"  # each reads the memory of one batch
        self.together = 0 if self.graphs or self.device.type == "cpu" else _TOGETHER
        self.kinds: dict[Hashable, Kind] = {}
        self.recording: Kind | None = None
        self.memory = self.window.window_rows // setup.schedule.fragment_steps

    def skip(self, rounds: int) -> None:
        self.window.skip(rounds)

    def draw_from(self, items: samplers.Sampled) -> None:
        """Have a new sampler, of these."""
        self.items = items
        self.sampler = samplers.make(items.ring, self.settings.priority_alpha)

    def stage(self, fragments: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
        return self.window.stage(fragments)

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        before = (self.items.first, self.items.stop)
        self.window.append(fragments)
        self.sampler.appended(self.items, before)

    def gather(self, positions: Positions, weight: Array | None) -> Any:
        """The batch at some positions. It may be written over by the next."""
        out = self.batch if self.batch is not None and self.batch.memory else None  # a part of several has none
        return self.window.gather(positions, weight, out)

    def learn(self, random: np.random.Generator) -> float | None:
        self.random = random
        settings, steps = self.settings, self.setup.schedule.round_steps
        rounds = self.window.rounds
        due = settings.updates_after(rounds * steps, self.setup)
        due -= settings.updates_after((rounds - 1) * steps, self.setup)
        if not due or not len(self.items):
            return None
        total = torch.zeros((), device=self.device)
        for positions, weight, batch in self.batches(due):
            self.batch = batch
            loss, td_error = self._make_update()
            self.count_update()
            total = total + loss
            if self.device.type == "cpu" and not math.isfinite(loss):  # on a GPU that would wait for every update
                break
            if weight is not None and td_error is not None:
                self.sampler.update(positions, td_error.cpu().numpy())
        return float(total) / due

    def batches(self, updates: int) -> Iterator[tuple[Positions, Array | None, Any]]:
        """Of each of some updates the positions, their weights, and the batch. It may be written over by the next."""
        settings, size = self.settings, self.settings.batch_size
        if settings.draws_ahead() and type(self.sampler) is samplers.Uniform:
            drawn, _ = self.sampler.draw(self.items, updates * size, self.random, 0.0)
            ahead = drawn.reshape(updates, size)
            for positions, batch in zip(ahead, self._gathered(ahead), strict=True):
                yield positions, None, batch
            return
        for _ in range(updates):
            positions, weight = self.sampler.draw(self.items, size, self.random, settings.beta(self.updates))
            yield positions, weight, self.gather(positions, weight)

    def _gathered(self, positions: Positions) -> Iterator[Any]:
        """The batches at some positions ``[U, B]``. A GPU gathers several at once, as starting that takes long."""
        size = positions.shape[1]
        apart = -(-size // _APART) * _APART
        many = self.together // max(1, apart * self.window.observation_bytes)
        if many < 2 or getattr(self.gather, "__func__", None) is not ReplayLearner.gather:
            yield from (self.gather(one, None) for one in positions)
            return
        padded = np.pad(positions, ((0, 0), (0, apart - size)), "edge")
        for some in (padded[first : first + many] for first in range(0, len(padded), many)):
            batches = self.window.gather(some.ravel())
            for first in range(0, some.size, apart):
                yield batches.rows(slice(first, first + size))

    # -- one update ---------------------------------------------------------------------------------------

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal numbers of the round's generator, float32 on the device."""
        kind = self.recording
        if kind is not None and kind.unused is not None:
            return next(kind.unused)
        numbers = to_device(self.random.standard_normal(shape, np.float32), self.device)
        if kind is not None:
            kind.normal.append(numbers)
        return numbers

    def set_learning_rate(self, name: str, learning_rate: float) -> None:
        kind = self.recording
        if kind is None or kind.unused is None:
            super().set_learning_rate(name, learning_rate)
            return
        groups = self.optimizers[name][0].param_groups
        if learning_rate != self.learning_rate or not all(isinstance(group["lr"], torch.Tensor) for group in groups):
            raise ConfigError(
                "cuda_graphs: expected minimise(..., learning_rate=learner.learning_rate) and an optimizer whose "
                "learning rate is a tensor, as daskrl.algorithms.torch_learner.adam makes it. Use them, or leave "
                "cuda_graphs out."
            )
        kind.optimizers.append(name)

    def _make_update(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The next update, from the newest batch."""
        which = self.settings.update_kind(self.updates) if self.graphs else None
        if which is None:
            return self._update()
        kind = self.kinds.setdefault(which, Kind())
        kind.made += 1
        if kind.made <= _WARM_UP:
            return self._warm_up(kind)
        for numbers in kind.normal:
            numbers.copy_(self.normal(*numbers.shape))
        if kind.graph is None:
            self._record(kind)
        for name in kind.optimizers:
            self.set_learning_rate(name, self.learning_rate)
        assert kind.graph is not None
        assert kind.result is not None
        if kind.batch is not self.batch:
            raise ConfigError("cuda_graphs: expected gather to write over the batch it gave before, got another one.")
        kind.graph.replay()
        return kind.result

    def _update(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        with self.precision():
            return self.update(self, self.batch)

    def _warm_up(self, kind: Kind) -> tuple[torch.Tensor, torch.Tensor | None]:
        """An update without a graph, on a stream of its own as torch asks for before one is recorded."""
        stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(here)
        kind.normal.clear()
        self.recording = kind
        try:
            with torch.cuda.stream(stream):
                return self._update()
        finally:
            self.recording = None
            here.wait_stream(stream)

    def _record(self, kind: Kind) -> None:
        """Record an update; it is not made."""
        self.recording, kind.unused, graph = kind, iter(kind.normal), torch.cuda.CUDAGraph()
        groups = [group for optimizer, *_ in self.optimizers.values() for group in optimizer.param_groups]
        try:
            for group in groups:
                group["capturable"] = True
            # Other threads go on meanwhile; the next round's has memory pinned.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                kind.result = self._update()
        finally:
            self.recording = kind.unused = None
            for group in groups:  # else Adam warns at its next step outside a graph
                group["capturable"] = False
        kind.graph, kind.batch = graph, self.batch

    def last_batch(self) -> dict[str, Array]:
        """What the newest update learned from, to be looked at.

        On a CPU a round ends with the first update whose loss is not finite, and this is its batch. On a GPU looking at
        every loss would wait for each, so without priorities it is the round's last batch.
        """
        batch: Batch = self.batch
        tensors = {**action_columns(batch.action), "reward": batch.reward, "discount": batch.discount}
        for kind, observation in (("", batch.observation), ("next_", batch.next_observation)):
            tensors.update({f"{kind}{name}": value for name, value in observation.items()})
        return {name: value.cpu().numpy() for name, value in tensors.items()}

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return self.settings.learning_rate_after(self.updates)

    def state(self) -> dict[str, Array]:
        kept = {f"sampler.{name}": value for name, value in self.sampler.state().items()}
        return {**super().state(), **kept}

    def restore(self, state: Mapping[str, Array]) -> None:
        super().restore(state)
        self.kinds.clear()  # the optimizers' state is elsewhere now
        self.sampler.restore({n.removeprefix("sampler."): v for n, v in state.items() if n.startswith("sampler.")})
