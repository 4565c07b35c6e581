"""Batches of runs that answer a question: what is tried, in which order, and what the results say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskrl.names import lazily

if TYPE_CHECKING:
    from daskrl.study.population import Population
    from daskrl.study.pruned import Pruned
    from daskrl.study.rungs import ASHA, MedianStopping, SuccessiveHalving
    from daskrl.study.samplers import Optuna
    from daskrl.study.scores import AreaUnderCurve, Greedy, StepsTo
    from daskrl.study.search import Grid, Random
    from daskrl.study.space import Range, When
    from daskrl.study.study import Study

__all__ = [
    "ASHA", "AreaUnderCurve", "Greedy", "Grid", "MedianStopping", "Optuna", "Population", "Pruned", "Random", "Range",
    "StepsTo", "Study", "SuccessiveHalving", "When",
]  # fmt: skip

__getattr__, __dir__ = lazily(
    __name__,
    {
        "daskrl.study.population": ["Population"],
        "daskrl.study.pruned": ["Pruned"],
        "daskrl.study.rungs": ["ASHA", "MedianStopping", "SuccessiveHalving"],
        "daskrl.study.samplers": ["Optuna"],
        "daskrl.study.scores": ["AreaUnderCurve", "Greedy", "StepsTo"],
        "daskrl.study.search": ["Grid", "Random"],
        "daskrl.study.space": ["Range", "When"],
        "daskrl.study.study": ["Study"],
    },
)
