"""What the scores of one group say, and what two groups say of each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl.records import Array
from daskrl.study import statistics
from daskrl.study.groups import Group, Place
from daskrl.study.statistics import Estimate, PairedTest


@dataclass(frozen=True)
class GroupSummary:
    """What the scores of one group say.

    Attributes
    ----------
    label, settings : of the group.
    runs : with a score, those that failed among them where they count as the lowest.
    seeds : the fewest in any environment.
    failed, unfinished : runs without a score.
    iqm, mean, median, optimality_gap : see `daskrl.study.statistics.aggregates`.
    profile : ``[T, 3]`` share of scores above each threshold, and the ends of its interval.
    """

    label: str
    settings: Mapping[str, Any]
    runs: int
    seeds: int
    failed: int
    unfinished: int
    iqm: Estimate
    mean: Estimate
    median: Estimate
    optimality_gap: Estimate
    profile: tuple[Estimate, ...]


@dataclass(frozen=True)
class PairSummary:
    """What two groups say of each other; differences are in score, A minus B.

    Attributes
    ----------
    a, b : labels of the groups.
    improvement : the probability that a run of A scores above one of B in the same environment, ties counted half.
    pairs : environments and seeds that both groups have. Where both have several runs there, partners have the same
        settings but for those compared, as far as the comparison knows of them; the mean of the differences counts.
    seeds : the fewest pairs in any environment.
    difference : the mean of the paired differences, environments counting the same.
    difference_iqm : the interquartile mean of the paired differences.
    test : of the paired differences.
    p_holm : the test's p, adjusted for all tests of the comparison (Holm 1979).
    seeds_needed : in each environment, to tell the two apart; see `daskrl.study.statistics.seeds_needed`.
    unpaired : (label, place) of runs that have no partner in the other group.
    """

    a: str
    b: str
    improvement: Estimate
    pairs: int
    seeds: int
    difference: Estimate
    difference_iqm: Estimate
    test: PairedTest
    p_holm: float
    seeds_needed: float
    unpaired: tuple[tuple[str, Place], ...]

    @property
    def still_needed(self) -> str:
        """The seeds that are still needed, in words."""
        if not self.pairs:
            return "unknown: no pairs"
        if math.isnan(self.seeds_needed):
            return "unknown: one pair"
        if math.isinf(self.seeds_needed):
            return "no difference seen"
        more = max(0, int(self.seeds_needed) - self.seeds)
        return "none" if not more else f"{more:,}" if more <= 10**6 else "over a million"


def of_group(group: Group, best: float, thresholds: Array, reps: int) -> GroupSummary:
    """The summary of a group; the optimality gap is that to ``best``."""
    columns = group.columns()
    averages: tuple[Estimate, ...] = (Estimate(),) * 4
    profile: tuple[Estimate, ...] = (Estimate(),) * len(thresholds)
    if columns:
        draws = statistics.state("aggregates", group.key)
        averages = statistics.estimates(columns, statistics.aggregates(best), draws, reps=reps)
        draws = statistics.state("profile", group.key)
        profile = statistics.estimates(columns, statistics.exceeding(thresholds), draws, reps=reps)
    if group.seeds < 2:  # of several settings: one seed says nothing of others
        averages, profile = _without_intervals(averages), _without_intervals(profile)
    iqm, mean, median, gap = averages
    return GroupSummary(
        group.label, group.settings, group.runs, group.seeds, len(group.failed), group.unfinished, iqm, mean, median,
        gap, profile,
    )  # fmt: skip


def of_iqm(group: Group, reps: int) -> Estimate:
    """The interquartile mean of a group, with the interval that `of_group` has."""
    draws = statistics.state("aggregates", group.key)
    (found,) = statistics.estimates(
        group.columns(), lambda *columns: np.array([statistics.iqm(np.concatenate(columns))]), draws, reps=reps
    )
    return found if group.seeds > 1 else Estimate(found.value)


def of_pair(a: Group, b: Group, reps: int) -> PairSummary:
    """The summary of two groups, whose p is not adjusted yet."""
    shared = sorted(set(a.environments) & set(b.environments))
    places = sorted(set(a.scores) & set(b.scores))
    unpaired = tuple(
        (one.label, place) for one, other in ((a, b), (b, a)) for place in one.scores if place not in other.scores
    )
    improvement = difference = difference_iqm = Estimate()
    if shared:
        columns = [*a.columns(shared), *b.columns(shared)]
        (improvement,) = statistics.estimates(
            columns, _improvement(len(shared)), statistics.state("improvement", a.key, b.key), reps=reps
        )
        if min(a.seeds, b.seeds) < 2:
            improvement = Estimate(improvement.value)
    found: dict[str, dict[str, list[float]]] = {}  # environment -> seed -> differences
    for place in places:
        seeds = found.setdefault(place.environment, {})
        seeds.setdefault(place.seed, []).append(float(np.mean(a.scores[place]) - np.mean(b.scores[place])))
    columns = [np.sort([np.mean(each) for each in seeds.values()]) for seeds in found.values()]
    if columns:
        difference, difference_iqm = statistics.estimates(
            columns, statistics.means, statistics.state("paired", a.key, b.key), reps=reps
        )
    size = max((abs(s) for one in (a, b) for place in places for s in one.scores[place]), default=0.0)
    columns = [statistics.rounded(column, size) for column in columns]
    test = statistics.paired_test(np.concatenate([*columns, np.zeros(0)]))
    counts = sum(map(len, columns)), min(map(len, columns), default=0)
    needed = statistics.seeds_needed(columns)
    return PairSummary(
        a.label, b.label, improvement, *counts, difference, difference_iqm, test, math.nan, needed, unpaired
    )


def _improvement(environments: int) -> Callable[..., Array]:
    def of(*columns: Array) -> Array:
        return np.array([statistics.probability_of_improvement(columns[:environments], columns[environments:])])

    return of


def _without_intervals(estimates: Iterable[Estimate]) -> tuple[Estimate, ...]:
    return tuple(Estimate(estimate.value) for estimate in estimates)
