"""What rooms hand to one another: arrays, and the records of the commit log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """What is known after a version of the weights was published.

    Attributes
    ----------
    weights_version : rounds learned.
    env_steps : transitions committed.
    learner_updates : gradient updates made.
    episode_return : mean return of the newest 100 finished episodes; None before the first.
    episodes : finished episodes.
    loss : mean loss of the round; None before the first update.
    policy_lag : rounds between the newest committed fragment and the weights it acted with.
    replay_ratio : how often a transition was learned from, in the mean so far: gradient updates x transitions in each,
        per transition.
    workers : workers running rollouts now; 0 in-process.
    seconds : since this driver started.
    time_left : seconds to go at this driver's pace; None at first.
    evaluation_version : the newest version that was evaluated (``evaluate_every``); None before the first.
    evaluation_return : the mean return of its greedy episodes.
    best_version : the version with the highest such mean.
    best_return : its mean.
    """

    weights_version: int
    env_steps: int
    learner_updates: int
    episode_return: float | None
    episodes: int
    loss: float | None
    policy_lag: int
    replay_ratio: float
    workers: int
    seconds: float
    time_left: float | None
    evaluation_version: int | None = None
    evaluation_return: float | None = None
    best_version: int | None = None
    best_return: float | None = None
