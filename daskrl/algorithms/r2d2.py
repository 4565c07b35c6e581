"""R2D2: recurrent Q-learning on stored sequences, each begun from the recurrent state stored with it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.dqn import DQN, Observation
from daskrl.algorithms.networks import LSTM, Encoder, States, masked, mlp, tensors
from daskrl.algorithms.replay import ReplayLearner
from daskrl.algorithms.torch_learner import adam
from daskrl.config import require_range
from daskrl.errors import ConfigError
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.replay.window import Positions, Window, to_device

Index = np.ndarray[Any, np.dtype[np.int64]]


@suggests
@dataclass(frozen=True)
class R2D2(DQN):
    """Recurrent replay distributed DQN (Kapturowski et al. 2019, https://openreview.net/forum?id=r1lyTjAqYX).

    Sequences are whole fragments in a row of one environment: the first ``burn_in`` only bring the recurrent state up
    to date (section 3), the next ``unroll`` are learned from, and the sequence after begins one fragment later. The
    state each begins from is the one stored when it was acted. Targets are n-step double Q-learning under value
    rescaling (section 2.3); the loss is squared. ``batch_size`` counts sequences. The LSTM sees observations; the
    paper's is given the last reward and action too, which a wrapper can add to them.

    Parameters
    ----------
    burn_in, unroll : fragments that bring the recurrent state up to date, and that are learned from; each of
        ``fragment_steps`` steps.
    lstm : features of the LSTM, between one layer of ``hidden[0]`` and heads of the other ``hidden`` sizes.
    rescale : epsilon of the value rescaling; None leaves values as they are.
    priority_eta : a sequence's priority is ``eta * max + (1 - eta) * mean`` of its absolute TD errors.
    adam_eps : of Adam. With the paper's 1e-3 small problems learn slowly: their gradients are not much larger.
    """

    n_step: int = 5
    batch_size: int = 16
    learning_rate: float = 5e-4
    replay_ratio: float = 4.0
    hidden: tuple[int, ...] = (128,)
    dueling: bool = True
    priority_alpha: float | None = 0.9
    priority_beta: float = 0.6
    target_update: int = 200
    max_grad_norm: float | None = 40.0
    burn_in: int = 1
    unroll: int = 1
    lstm: int = 128
    rescale: float | None = 1e-3
    priority_eta: float = 0.9
    adam_eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, ">= 1", "unroll", "lstm")
        require_range(self, ">= 0", "burn_in")
        require_range(self, "> 0", "rescale", "adam_eps")
        require_range(self, "in [0, 1]", "priority_eta")
        if not self.hidden:
            raise ConfigError("hidden: expected at least one size, got ().")

    def check(self, setup: Setup) -> None:
        super().check(setup)
        steps, rounds = setup.schedule.fragment_steps, self.window // setup.schedule.round_steps
        if self.n_step > steps:
            raise ConfigError(f"n_step: expected at most fragment_steps = {steps} for R2D2, got {self.n_step}.")
        if rounds < self.burn_in + self.unroll + 1:
            raise ConfigError(
                f"window: {self.window} transitions are {rounds} rounds, too few for sequences of {self.burn_in} + "
                f"{self.unroll} fragments. Type window={(self.burn_in + self.unroll + 1) * setup.schedule.round_steps}."
            )

    def recurrent_state(self, setup: Setup) -> dict[str, tuple[int, ...]]:
        return {"lstm": (2, self.lstm)}

    def policy(self, setup: Setup) -> RecurrentQNetwork:
        return RecurrentQNetwork(self.encoder(setup), setup.actions, self.hidden, self.lstm, self.dueling)

    def q(self, policy: nn.Module, moment: Moment) -> torch.Tensor:
        q: torch.Tensor
        q, after = policy(tensors(moment.observation), torch.tensor(moment.state["lstm"]))
        moment.state["lstm"][...] = after.numpy()
        return q

    def outputs(
        self, policy: nn.Module, observation: Observation, state: Observation
    ) -> tuple[torch.Tensor, Observation]:
        q, after = policy(observation, state["lstm"])
        return masked(q, observation), {"lstm": after}

    def transitions_per_update(self, setup: Setup) -> float:
        return self.batch_size * self.unroll * setup.schedule.fragment_steps

    def learner(self, setup: Setup, random: np.random.Generator) -> SequenceLearner:
        learner = SequenceLearner(self, setup, random)
        learner.optimize(adam(self.learning_rate, self.adam_eps))
        return learner

    def update_kind(self, updates: int) -> Hashable:
        return None  # episodes end anywhere in sequences

    def update(self, learner: ReplayLearner, sequences: Sequences) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """One update: the loss, and the priority of each sequence before its exponent ``[B]``.

        Section 2.3 of the paper: half the squared error of n-step double Q-learning under value rescaling, in the mean
        over a sequence's steps, then weighted over sequences; priorities mix the largest and the mean absolute error.
        """
        assert isinstance(learner, SequenceLearner)
        td_error = self.td_errors(learner, sequences)  # [T, B]
        loss = 0.5 * td_error.square().mean(dim=0)  # [B]
        loss = loss.mean() if sequences.weight is None else (sequences.weight * loss).mean()
        learner.minimise(loss, max_grad_norm=self.max_grad_norm, learning_rate=learner.learning_rate)
        if (learner.updates + 1) % self.target_update == 0:
            learner.follow()
        error = td_error.detach().abs()
        return loss.detach(), self.priority_eta * error.amax(dim=0) + (1 - self.priority_eta) * error.mean(dim=0)

    def td_errors(self, learner: SequenceLearner, sequences: Sequences) -> torch.Tensor:
        """Differences of targets and values at the steps learned from, ``[T, B]`` (section 2.3).

        The target is ``h(G + discount * h_inverse(q_target(s_{t+n}, a*)))``, ``a*`` the online network's best action.
        """
        assert learner.target is not None
        warm = learner.burn_in
        observation, state, begins = sequences.observation, sequences.state, sequences.begins
        if warm:
            with torch.no_grad():
                early = {name: value[:warm] for name, value in observation.items()}
                states = [net.unroll(early, state, begins[:warm])[1].last for net in (learner.online, learner.target)]  # type: ignore[operator]
            observation = {name: value[warm:] for name, value in observation.items()}
        else:
            states = [state, state]
        q, after = learner.online.unroll(observation, states[0], begins[warm:])  # type: ignore[operator]
        with torch.no_grad():
            q_target, after_target = learner.target.unroll(observation, states[1], begins[warm:])  # type: ignore[operator]
            value = self._best(q, q_target, observation)  # [T + n, B], of each step's own observation
            steps = sequences.reward.shape[0]
            following = value[self.n_step : self.n_step + steps].clone()
            for lasts in sequences.truncated:  # few: the last observations of truncated episodes
                where = to_device(lasts.row, q.device), to_device(lasts.lane, q.device)
                q_last, _ = learner.uncompiled(learner.online)(lasts.observation, after.at(*where))
                q_last_target, _ = learner.uncompiled(learner.target)(lasts.observation, after_target.at(*where))
                following[lasts.step, lasts.lane] = self._best(q_last, q_last_target, lasts.observation)
            target = self.h(sequences.reward + sequences.discount * self.h_inverse(following))
        taken = q[:steps].gather(2, sequences.action.unsqueeze(2)).squeeze(2)  # [T, B]
        error: torch.Tensor = target - taken
        return error

    def _best(self, q: torch.Tensor, q_target: torch.Tensor, observation: Mapping[str, torch.Tensor]) -> torch.Tensor:
        q, q_target = masked(q, observation), masked(q_target, observation)
        if not self.double:
            return q_target.amax(dim=-1)
        return q_target.gather(-1, q.argmax(dim=-1, keepdim=True)).squeeze(-1)

    def h(self, x: torch.Tensor) -> torch.Tensor:
        """Value rescaling: ``sign(x) (sqrt(|x| + 1) - 1) + eps x`` (section 2.3; Pohlen et al. 2018)."""
        if self.rescale is None:
            return x
        return x.sign() * ((x.abs() + 1).sqrt() - 1) + self.rescale * x

    def h_inverse(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `h` (Pohlen et al. 2018, https://arxiv.org/abs/1805.11593, proposition A.2)."""
        if self.rescale is None:
            return x
        eps = self.rescale
        root = (1 + 4 * eps * (x.abs() + 1 + eps)).sqrt()
        return x.sign() * (((root - 1) / (2 * eps)).square() - 1)


class RecurrentQNetwork(nn.Module):
    """Action values of a discrete space, with a memory.

    ``forward(observation [B, ...], state [B, 2, H])`` is one step: values ``[B, A]``, the state after ``[B, 2, H]``.
    """

    def __init__(self, encoder: Encoder, actions: int, hidden: Sequence[int], lstm: int, dueling: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.shared = nn.Sequential(nn.Linear(encoder.out_features, hidden[0]), nn.ReLU())
        self.lstm = LSTM(hidden[0], lstm)
        self.advantage = mlp(lstm, hidden[1:], actions)
        self.value = mlp(lstm, hidden[1:], 1) if dueling else None

    def forward(
        self, observation: Mapping[str, torch.Tensor], state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, after = self.lstm(self.shared(self.encoder(observation)).unsqueeze(0), state)
        return self._values(outputs[0]), after.last

    def unroll(
        self, observation: Mapping[str, torch.Tensor], state: torch.Tensor, begins: torch.Tensor
    ) -> tuple[torch.Tensor, States]:
        """T steps: values ``[T, B, A]`` and recurrent states; ``begins`` ``[T, B]``."""
        flat = {name: value.flatten(0, 1) for name, value in observation.items()}
        features = self.shared(self.encoder(flat)).view(*begins.shape, -1)
        outputs, after = self.lstm(features, state, begins)
        return self._values(outputs), after

    def _values(self, features: torch.Tensor) -> torch.Tensor:
        advantage: torch.Tensor = self.advantage(features).float()
        if self.value is None:
            return advantage
        value: torch.Tensor = self.value(features).float()
        return value + advantage - advantage.mean(dim=-1, keepdim=True)


@dataclass
class Lasts:
    """Last observations of truncated episodes, and which steps' targets bootstrap from them. M of them.

    Attributes
    ----------
    observation : leaf name -> ``[M, ...]``.
    row, lane : ``[M]`` the step before, counted from the end of the burn-in, and the sequence.
    step : ``[M]`` the step whose target bootstraps from it.
    """

    observation: Mapping[str, torch.Tensor]
    row: Index
    lane: Index
    step: Index


@dataclass
class Sequences:
    """B sequences: W steps of burn-in, T that are learned from, n beyond.

    Attributes
    ----------
    observation : leaf name -> ``[W + T + n, B, ...]``.
    state : ``[B, 2, H]`` before the first step. begins : ``[W + T + n, B]`` bool, an episode's first step.
    action, reward, discount : ``[T, B]`` as in `daskrl.replay.window.Batch`.
    truncated : at most one `Lasts`; empty where no episode was truncated.
    weight : ``[B]`` importance weights, or None.
    """

    observation: Mapping[str, torch.Tensor]
    state: torch.Tensor
    begins: torch.Tensor
    action: torch.Tensor
    reward: torch.Tensor
    discount: torch.Tensor
    truncated: list[Lasts]
    weight: torch.Tensor | None


class SequenceIndex:
    """The sequences of a window, by the fragment they begin with: what samplers know of a window, a round a row."""

    def __init__(self, window: Window, fragments: int) -> None:
        self.window, self.fragments = window, fragments
        self.steps, self.lanes = window.schedule.fragment_steps, window.lanes
        self.rounds = window.ring_rows // self.steps
        self.ring = self.rounds * self.lanes

    @property
    def first(self) -> int:
        return -(-self.window.first // self.steps)

    @property
    def stop(self) -> int:
        complete = (self.window.rows - self.window.n_step + 1) // self.steps  # rounds whose n-step returns are all in
        return max(self.first, complete - self.fragments + 1)

    def __len__(self) -> int:
        return (self.stop - self.first) * self.lanes

    def positions(self, index: Positions) -> Positions:
        return (index + self.first * self.lanes) % self.ring

    def positions_of_rows(self, first: int, stop: int) -> Positions:
        return np.arange(first * self.lanes, stop * self.lanes, dtype=np.int64) % self.ring


class SequenceLearner(ReplayLearner):
    """Draws sequences instead of transitions, and keeps the recurrent state that each fragment began with."""

    settings: R2D2

    def __init__(self, settings: R2D2, setup: Setup, random: np.random.Generator) -> None:
        super().__init__(
            settings, setup, random, settings.update, online=settings.policy(setup), target=settings.policy(setup)
        )
        steps = setup.schedule.fragment_steps
        self.burn_in, self.unroll = settings.burn_in * steps, settings.unroll * steps
        self.index = SequenceIndex(self.window, settings.burn_in + settings.unroll)
        self.draw_from(self.index)
        self._states = np.zeros((self.index.rounds, self.index.lanes, 2, settings.lstm), np.float32)

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        self._states[self.window.rounds % self.index.rounds] = np.concatenate(
            [fragment["recurrent_state.lstm"][0] for fragment in fragments]
        )
        super().append(fragments)

    def last_batch(self) -> dict[str, Array]:
        one: Sequences = self.batch
        tensors = {
            "state": one.state, "begins": one.begins, "action": one.action, "reward": one.reward,
            "discount": one.discount, **one.observation,
        }  # fmt: skip
        return {name: value.cpu().numpy() for name, value in tensors.items()}

    def gather(self, positions: Positions, weight: Array | None = None) -> Sequences:
        """The sequences at some positions of the index."""
        settings, window, index = self.settings, self.window, self.index
        round_, lane = np.divmod(positions, index.lanes)
        length = self.burn_in + self.unroll + settings.n_step
        rows = (round_ * index.steps + np.arange(length)[:, None]) % window.ring_rows  # [W + T + n, B]
        where = rows * index.lanes + lane
        before, learned = window.steps(where[:-1]), slice(self.burn_in, self.burn_in + self.unroll)
        begins = np.concatenate([np.zeros((1, len(positions)), np.bool_), before.ended])
        return Sequences(
            observation=window.observations(where),
            state=torch.tensor(self._states[round_, lane], device=self.device),
            begins=torch.tensor(begins, device=self.device),
            action=before.action[learned],
            reward=before.reward[learned],
            discount=before.discount[learned],
            truncated=self._lasts(before.ended[self.burn_in :], before.terminated[self.burn_in :], before.final),
            weight=None if weight is None else torch.tensor(weight, device=self.device),
        )

    def _lasts(self, ended: Array, terminated: Array, final: Array) -> list[Lasts]:
        """Of each step learned from, the truncated end within its n steps, if that is how its episode ends."""
        n, alive = self.settings.n_step, np.ones((self.unroll, ended.shape[1]), np.bool_)
        found = []
        for k in range(n):
            ends = alive & ended[k : k + self.unroll]
            step, lane = np.nonzero(ends & ~terminated[k : k + self.unroll])
            found.append((step + k, lane, step))
            alive &= ~ends
        row, lane, step = (np.concatenate(parts) for parts in zip(*found, strict=True))
        if not len(row):
            return []
        return [Lasts(self.window.observations(final[self.burn_in + row, lane]), row, lane, step)]
