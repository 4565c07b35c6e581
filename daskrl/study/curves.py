"""Learning curves of settings: over their seeds the interquartile mean at the same env steps, with its band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl.analysis.curve import LearningCurve, learning_curve
from daskrl.errors import DaskrlError
from daskrl.records import Array
from daskrl.store.storage import Storage
from daskrl.store.store import Store
from daskrl.study import statistics

POINTS = 101  # of a curve, evenly over the env steps
REPS = 500  # resamples of a band


@dataclass(frozen=True)
class Curve:
    """What the seeds of one setting learned in one environment.

    Attributes
    ----------
    label : of the setting.
    seeds : runs that the curve is of.
    env_steps : ``[P]`` where each of these runs has a return.
    value : ``[P]`` the interquartile mean over runs of the mean return of the newest episodes.
    low, high : ``[P]`` the ends of its 95 % bootstrap interval, point by point; NaN for one run.
    """

    label: str
    environment: str
    seeds: int
    env_steps: Array
    value: Array
    low: Array
    high: Array


def curves(
    runs: Storage, rows: Sequence[Mapping[str, Any]], labels: Mapping[int, str], *, episodes: int = 100
) -> tuple[list[Curve], list[str]]:
    """The curves of some settings, by environment, and the runs whose store cannot be read.

    Parameters
    ----------
    runs : where the stores are.
    rows : of the study's table. Those of finished runs count.
    labels : number of a setting -> its label, of the settings that are wanted, in their order.
    episodes : how many the mean return is of.
    """
    read: dict[tuple[str, int], list[tuple[LearningCurve, int]]] = {}
    missing: list[str] = []
    wanted = [row for row in rows if row["state"] == "finished" and row["setting"] in labels]
    # Of a population a run has a row for each round; the one that was taken furthest has them all.
    for row in {row["run"]: row for row in sorted(wanted, key=lambda row: int(row["env_steps"]))}.values():
        trial = row["run"].rpartition("/")[2]
        try:
            curve = learning_curve(Store.open(runs.folder(trial)))
        except (DaskrlError, OSError):
            missing.append(row["run"])
            continue
        read.setdefault((row["environment"], row["setting"]), []).append((curve, row["env_steps"]))
    furthest = {name: max(steps for key, of in read.items() if key[0] == name for _, steps in of) for name, _ in read}
    made = []
    for environment in furthest:
        grid = np.linspace(0, furthest[environment], POINTS)
        for setting, label in labels.items():
            if (environment, setting) in read:
                values = np.array(
                    [on_grid(curve, steps, grid, episodes) for curve, steps in read[environment, setting]]
                )
                made.append(_averaged(label, environment, grid, values))
    return made, missing


def on_grid(curve: LearningCurve, env_steps: int, grid: Array, episodes: int) -> Array:
    """``[P]`` the mean return of the newest episodes at each point; NaN before the first, and beyond the run's end."""
    newest = np.searchsorted(curve.env_steps, grid, side="right") - 1
    if not len(curve.env_steps):
        return np.full(len(grid), np.nan)
    values: Array = np.where((newest >= 0) & (grid <= env_steps), curve.smoothed(episodes)[newest], np.nan)
    return values


def _averaged(label: str, environment: str, grid: Array, values: Array) -> Curve:
    """The curve of ``[runs, P]`` values, where each run has one."""
    there = ~np.isnan(values).any(axis=0)
    columns = values[:, there]
    draws = statistics.state("curve", environment, label)
    value, low, high = statistics.bootstrap([columns], _iqm, draws, reps=REPS) if there.any() else (np.zeros(0),) * 3
    return Curve(label, environment, len(values), grid[there], value, low, high)


def _iqm(values: Array) -> Array:
    """`daskrl.study.statistics.iqm` of each column."""
    cut = len(values) // 4
    return np.asarray(np.sort(values, axis=0)[cut : len(values) - cut].mean(axis=0))
