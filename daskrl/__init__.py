"""Elastic batch experimentation for reinforcement learning on Dask.

The same seed gives the same replay and the same weights, bit for bit, in one process or on a worker pool that
grows, shrinks and loses workers. The main loop is `daskrl.loop.drive`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# These import no torch: workers and the scheduler import this package, and the scheduler never needs torch.
from daskrl.algorithms.base import Algorithm
from daskrl.analysis.curve import learning_curve, plot_learning_curve
from daskrl.analysis.evaluate import Evaluation, evaluate
from daskrl.analysis.policies import Policy, PolicyState
from daskrl.analysis.reproduce import reproduce
from daskrl.config import Schedule
from daskrl.names import did_you_mean
from daskrl.records import Report
from daskrl.run import Run, resume, train
from daskrl.store.store import Store
from daskrl.watching.watch import watch

if TYPE_CHECKING:
    from daskrl.algorithms import C51, DQN, IMPALA, PPO, QRDQN, R2D2, SAC, TD3, QLearning, Rainbow

__version__ = "0.1.0"

__all__ = [
    "C51",
    "DQN",
    "IMPALA",
    "PPO",
    "QRDQN",
    "R2D2",
    "SAC",
    "TD3",
    "Algorithm",
    "Evaluation",
    "Policy",
    "PolicyState",
    "QLearning",
    "Rainbow",
    "Report",
    "Run",
    "Schedule",
    "Store",
    "evaluate",
    "learning_curve",
    "plot_learning_curve",
    "reproduce",
    "resume",
    "train",
    "watch",
]


# Modules of what only some need.
_MODULES = {
    "algorithms": "algorithms",
    "clusters": "clusters",
    "envs": "envs",
    "networks": "algorithms.networks",
    "sinks": "watching.sinks",
    "testing": "testing",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"daskrl.{_MODULES[name]}")
    algorithms = importlib.import_module("daskrl.algorithms")
    if name in algorithms.__all__:
        return getattr(algorithms, name)
    raise AttributeError(
        f"module 'daskrl' has no attribute {name!r}.{did_you_mean(name, [*__all__, *_MODULES])}", name=name
    )
