"""Looking at a run from its store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import extras
from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError, UnknownNameError
from daskrl.names import did_you_mean, suggests
from daskrl.records import Array
from daskrl.store.store import Store
from daskrl.store.store import opened as opened_store
from daskrl.watching.figures import run_title

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
        """``[E]`` mean return of the newest ``episodes`` episodes at each one, or of those there are by then."""
        episodes = plain(episodes)
        require_integer("episodes", episodes, 1)
        total = np.cumsum(np.insert(self.episode_return, 0, 0.0))
        index = np.arange(1, len(self.episode_return) + 1)
        low = np.maximum(0, index - episodes)
        smooth: Array = (total[index] - total[low]) / (index - low)
        return smooth


@suggests
def learning_curve(store: str | os.PathLike[str] | Store) -> LearningCurve:
    """The training episodes of a run. Independent of the workers it ran on."""
    opened = opened_store(store)
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


def plot_learning_curve(
    store: str | os.PathLike[str] | Store | Sequence[str | os.PathLike[str] | Store],
    ax: Axes | None = None,
    *,
    episodes: int = 100,
    labels: Sequence[str] | None = None,
    **style: Any,
) -> Axes:
    """Draw the returns of training episodes, faintly, and the mean of the newest ones at each.

    Of several runs, given together or one after the other with the same ``ax``, each has a colour and a label.

    Parameters
    ----------
    store : of a run, or those of several.
    ax : axes to draw in; by default those of a new pyplot figure, which Jupyter shows by itself. Needs
        ``daskrl[plot]``.
    episodes : how many the mean is of.
    labels : of each run in the legend; by default what it is, with its directory where that is the same for two.
    style : given to the lines of the means, as matplotlib's ``color`` or ``linewidth``.
    """
    stores = [opened_store(one) for one in (store if isinstance(store, list | tuple) else [store])]
    if labels is None and "label" in style:
        labels = [style.pop("label")] * len(stores)
    if labels is not None and (isinstance(labels, str) or len(labels) != len(stores)):
        raise ConfigError(f"labels: expected {len(stores)} of them, one for each run, got {labels!r}.")
    episodes = plain(episodes)
    require_integer("episodes", episodes, 1)
    if not stores:
        raise ConfigError("store: expected that of a run, or those of several, got none.")
    if ax is not None and not callable(getattr(ax, "get_lines", None)):
        raise ConfigError(f"ax: expected matplotlib's Axes, got {ax!r:.200}. Several runs are given as a list.")
    if ax is None:
        with extras.needed("plot", "plots need matplotlib"):
            from matplotlib import pyplot
        _, ax = pyplot.subplots(figsize=(7, 4), layout="constrained")
    titles = [run_title(opened.config) for opened in stores]
    taken = [*(line.get_label() for line in ax.get_lines()), *titles]
    for number, opened in enumerate(stores):
        curve, label = learning_curve(opened), titles[number]
        if labels is not None:
            label = labels[number]
        elif taken.count(label) > 1:
            label = f"{label} ({opened.storage.typed})"
        try:
            (line,) = ax.plot(
                curve.env_steps, curve.smoothed(episodes), **{"label": label, "gid": titles[number], **style}
            )
        except AttributeError as error:  # no property of a line
            meant = "".join(did_you_mean(name, ("ax", "episodes", "labels")) for name in style)
            raise UnknownNameError(f"plot_learning_curve: {str(error).rstrip('.')}.{meant}") from error
        color = line.get_color()
        ax.scatter(curve.env_steps, curve.episode_return, s=6, alpha=0.25, color=color, linewidths=0, zorder=1)
    of = [line.get_gid() for line in ax.get_lines()]
    if len(of) == 1:
        ax.set_title(titles[0])
    elif ax.get_title() in of:  # it was that of the first run, drawn alone
        ax.set_title("")
    ax.set(xlabel="env steps", ylabel="return")
    ax.grid(alpha=0.3)
    ax.legend(loc="best", title=f"mean of {episodes} episodes" if episodes > 1 else None)
    return ax


def save_learning_curve(store: str | os.PathLike[str] | Store, path: str | os.PathLike[str]) -> None:
    """Draw the learning curve into a file; needs ``daskrl[plot]``, but no screen."""
    with extras.needed("plot", "plots need matplotlib"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    plot_learning_curve(store, figure.subplots())
    figure.savefig(path, dpi=120)
