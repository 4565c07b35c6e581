"""Rainbow: C51 with all that made DQN better, under one name."""

from __future__ import annotations

from dataclasses import dataclass

from daskrl.algorithms.c51 import C51
from daskrl.names import suggests


@suggests
@dataclass(frozen=True)
class Rainbow(C51):
    """Rainbow (Hessel et al. 2018, https://arxiv.org/abs/1710.02298): a combination, with nothing of its own.

    `C51` with double Q-learning, dueling streams, three-step returns, prioritised replay and noisy layers. Any of
    them is switched off by its setting, as in the paper's ablations (figure 3).

    The network and the optimizer are for small problems. The paper's own, for Atari: ``atoms=51, v_min=-10,
    v_max=10, reward_clip=1, hidden=(512,), batch_size=32, replay_ratio=8, learning_rate=6.25e-5,
    learning_starts=20_000, target_update=2000, window=1_000_000``, and ``priority_beta_updates`` all updates of the
    run. (Its Adam has ``eps=1.5e-4``, this one 1e-8.)
    """

    hidden: tuple[int, ...] = (128, 128)
    dueling: bool = True
    n_step: int = 3
    priority_alpha: float | None = 0.5
    noisy: bool = True
    epsilon_start: float = 0.0
    epsilon_end: float = 0.0
