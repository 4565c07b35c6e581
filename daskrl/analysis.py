"""Looking at a run from its store."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import extras
from daskrl.names import suggests
from daskrl.spaces import Array
from daskrl.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LearningCurve:
    """Finished training episodes, in the order of the transitions they ended at.

    Attributes
    ----------
    env_steps : ``[E]`` transitions of the whole run when the episode ended, all streams taken to be in step.
    episode_return, length : ``[E]``.
    """

    env_steps: Array
    episode_return: Array
    length: Array

    def smoothed(self, episodes: int = 100) -> Array:
        """``[E]`` mean return of the newest ``episodes`` episodes at each one."""
        total = np.cumsum(np.insert(self.episode_return, 0, 0.0))
        index = np.arange(1, len(self.episode_return) + 1)
        low = np.maximum(0, index - episodes)
        smooth: Array = (total[index] - total[low]) / (index - low)
        return smooth


@suggests
def learning_curve(store: str | os.PathLike[str] | Store) -> LearningCurve:
    """The training episodes of a run. Independent of the workers it ran on."""
    opened = store if isinstance(store, Store) else Store.open(store)
    schedule = opened.config.schedule
    rows = []
    for record in opened.fragments():
        # Where each environment's current episode began, counted from the start of the fragment.
        began = [-steps for steps in record["episode_step"]]
        for env, episode_return, length in record["episodes"]:
            began[env] += length
            steps = record["round"] * schedule.round_steps + began[env] * schedule.lanes
            rows.append((steps, episode_return, length))
    rows.sort(key=lambda row: row[0])
    table = np.array(rows, np.float64).reshape(-1, 3)
    return LearningCurve(table[:, 0].astype(np.int64), table[:, 1], table[:, 2].astype(np.int64))


def plot_learning_curve(store: str | os.PathLike[str] | Store, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the returns of training episodes and their mean over 100 episodes.

    Parameters
    ----------
    ax : axes to draw in; by default those of a new pyplot figure, which Jupyter shows by itself. Needs
        ``daskrl[plot]``.
    style : given to the line of the mean.
    """
    opened = store if isinstance(store, Store) else Store.open(store)
    curve = learning_curve(opened)
    if ax is None:
        with extras.needed("plot", "plots need matplotlib"):
            from matplotlib import pyplot
        _, ax = pyplot.subplots(figsize=(7, 4), layout="constrained")
    name = opened.config.environment.get("id") or opened.config.environment["name"]
    ax.scatter(curve.env_steps, curve.episode_return, s=6, alpha=0.5, color="0.6", linewidths=0, label="episode")
    settings = {"color": "C0", "label": "mean of 100 episodes", **style}
    ax.plot(curve.env_steps, curve.smoothed(), **settings)
    ax.set(
        xlabel="env steps", ylabel="return",
        title=f"{opened.config.algorithm['name']} on {name}, seed {opened.config.seed}",
    )  # fmt: skip
    ax.grid(alpha=0.3)
    ax.legend(loc="best")
    return ax


def save_learning_curve(store: str | os.PathLike[str] | Store, path: str | os.PathLike[str]) -> None:
    """Draw the learning curve into a file; needs ``daskrl[plot]``, but no screen."""
    with extras.needed("plot", "plots need matplotlib"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    plot_learning_curve(store, figure.subplots())
    figure.savefig(path, dpi=120)
