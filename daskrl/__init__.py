"""Elastic batch experimentation for reinforcement learning on Dask.

The same seed gives the same replay and the same weights, bit for bit, in one process or on a worker pool that
grows, shrinks and loses workers. The main loop is `daskrl.loop.drive`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskrl.names import lazily

# Nothing else is imported before somebody asks for it: the command line's help, the scheduler and each worker import
# this package, and none of them needs all of it.
if TYPE_CHECKING:
    from daskrl import algorithms as algorithms
    from daskrl import clusters as clusters
    from daskrl import envs as envs
    from daskrl import errors as errors
    from daskrl import study as study
    from daskrl import testing as testing
    from daskrl.algorithms import C51, DQN, IMPALA, PPO, QRDQN, R2D2, SAC, TD3, QLearning, Rainbow
    from daskrl.algorithms import networks as networks
    from daskrl.algorithms.base import Algorithm
    from daskrl.analysis.curve import learning_curve, plot_learning_curve
    from daskrl.analysis.evaluate import Evaluation, evaluate
    from daskrl.analysis.policies import Policy, PolicyState
    from daskrl.analysis.replay import Replay
    from daskrl.analysis.reproduce import reproduce
    from daskrl.config import Schedule
    from daskrl.records import Report
    from daskrl.run import Run, resume, train
    from daskrl.store.pack import pack, unpack
    from daskrl.store.store import Store
    from daskrl.study.listing import runs
    from daskrl.study.study import Study
    from daskrl.watching import sinks as sinks
    from daskrl.watching.callbacks import Callback
    from daskrl.watching.watch import watch

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
    "Callback",
    "Evaluation",
    "Policy",
    "PolicyState",
    "QLearning",
    "Rainbow",
    "Replay",
    "Report",
    "Run",
    "Schedule",
    "Store",
    "Study",
    "evaluate",
    "learning_curve",
    "pack",
    "plot_learning_curve",
    "reproduce",
    "resume",
    "runs",
    "train",
    "unpack",
    "watch",
]

# Modules of what only some need, by the names that they have here.
_MODULES = {
    "algorithms": "daskrl.algorithms",
    "clusters": "daskrl.clusters",
    "envs": "daskrl.envs",
    "errors": "daskrl.errors",
    "networks": "daskrl.algorithms.networks",
    "sinks": "daskrl.watching.sinks",
    "study": "daskrl.study",
    "testing": "daskrl.testing",
}

__getattr__, __dir__ = lazily(
    __name__,
    {
        "daskrl.algorithms": ["C51", "DQN", "IMPALA", "PPO", "QRDQN", "R2D2", "SAC", "TD3", "QLearning", "Rainbow"],
        "daskrl.algorithms.base": ["Algorithm"],
        "daskrl.analysis.curve": ["learning_curve", "plot_learning_curve"],
        "daskrl.analysis.evaluate": ["Evaluation", "evaluate"],
        "daskrl.analysis.policies": ["Policy", "PolicyState", "Store"],  # which gives a store its method `policy`
        "daskrl.analysis.replay": ["Replay"],
        "daskrl.analysis.reproduce": ["reproduce"],
        "daskrl.config": ["Schedule"],
        "daskrl.records": ["Report"],
        "daskrl.store.pack": ["pack", "unpack"],
        "daskrl.run": ["Run", "resume", "train"],
        "daskrl.study.listing": ["runs"],
        "daskrl.study.study": ["Study"],
        "daskrl.watching.callbacks": ["Callback"],
        "daskrl.watching.watch": ["watch"],
    },
    _MODULES,
)
