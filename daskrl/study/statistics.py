"""Numbers from scores, without tables and pictures: averages, bootstrap intervals, paired tests, seeds needed.

Scores come in columns: one array for each environment, of any lengths, higher is better. The intervals are those of
rliable's stratified bootstrap (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264, section 3), bit for bit, for the
same state of the generator. They are drawn by arch, which rliable's is made of, because rliable 1.2 draws from NumPy's
global state whatever ``random_state`` it is given: other threads draw from that state too.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from daskrl import extras
from daskrl.records import Array
from daskrl.seeding import sequence

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # of the paired test, two-sided
POWER = 0.80  # with which a difference is to be found
FEW = 5  # seeds, below which a conclusion is warned of

_NAN = float("nan")
NEEDS = "statistics need arch and SciPy"


class Estimate(NamedTuple):
    """A value and the ends of its interval; the ends are NaN where there is none."""

    value: float = _NAN
    low: float = _NAN
    high: float = _NAN


class PairedTest(NamedTuple):
    """A two-sided Wilcoxon signed-rank test of paired differences.

    Attributes
    ----------
    p : the probability of differences at least as one-sided, were the two the same; NaN without a difference other
        than zero.
    least : the lowest ``p`` that so many pairs can give: 2 / 2^n, 0.0625 for five of them.
    method : "exact" or "normal approximation".
    """

    p: float
    least: float
    method: str


def require() -> None:
    """Raise `ConfigError` where a library is missing, before anything is computed."""
    with extras.needed("study", NEEDS):
        importlib.import_module("arch.bootstrap")
        importlib.import_module("scipy.stats")


def iqm(scores: Array) -> float:
    """The interquartile mean: the mean without the lowest and the highest quarter of the scores, rounded down.

    What rliable's ``aggregate_iqm`` is, in a thirtieth of its time. Of fewer than four scores nothing is left out, so
    that it is their mean.
    """
    ordered = np.sort(scores, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean()) if ordered.size else _NAN


def state(what: str, *keys: str) -> np.random.RandomState:
    """The generator of one purpose and one group, or pair: equal tables give equal intervals, whatever else is there.

    NumPy keeps the numbers of a ``RandomState`` for ever, those of its ``Generator`` it does not.
    """
    return np.random.RandomState(np.random.MT19937(sequence(0, "statistics", key=json.dumps([what, *keys]))))


def bootstrap(
    columns: Sequence[Array], statistic: Callable[..., Array], draws: np.random.RandomState, *, reps: int
) -> tuple[Array, Array, Array]:
    """``[K]`` statistics and the ends of their 95 % percentile intervals, from resampling within each column.

    The ends are NaN where a column has one score: it would be the same in each resample, and the interval would have
    less width than it should, or none. Resamples see no spread where there is none in the scores, as where all are the
    same, or where all of A are above all of B: an interval without width says that, and nothing of certainty.

    Parameters
    ----------
    columns : of scores, an array ``[n]`` for each environment.
    statistic : of as many columns, gives ``[K]``.
    draws : where resamples come from.
    reps : resamples.
    """
    value = np.asarray(statistic(*columns), np.float64)
    if min((len(column) for column in columns), default=0) < 2:
        none = np.full_like(value, _NAN)
        return value, none, none
    with extras.needed("study", NEEDS):
        from arch.bootstrap import IndependentSamplesBootstrap
    resampled = IndependentSamplesBootstrap(*columns, seed=draws)
    low, high = resampled.conf_int(statistic, reps=reps, method="percentile", size=LEVEL)
    return value, low, high


def estimates(
    columns: Sequence[Array], statistic: Callable[..., Array], draws: np.random.RandomState, *, reps: int
) -> tuple[Estimate, ...]:
    """`bootstrap`, with an `Estimate` for each of the statistics."""
    found = bootstrap(columns, statistic, draws, reps=reps)
    return tuple(Estimate(*map(float, each)) for each in zip(*found, strict=True))


def aggregates(best: float) -> Callable[..., Array]:
    """A function of columns that gives ``[4]``: interquartile mean, mean, median and optimality gap.

    The interquartile mean and the median are of all scores together. The mean and the gap are means of those of the
    environments, so that each environment counts the same. The gap is how far scores lie below ``best``, those above it
    taken as ``best``. rliable's median is that of the environments' means, which for one environment is the mean.
    """

    def of(*columns: Array) -> Array:
        ordered = np.sort(np.concatenate(columns))
        size, cut = ordered.size, ordered.size // 4
        middle = (ordered[(size - 1) // 2] + ordered[size // 2]) / 2
        mean = sum(column.mean() for column in columns) / len(columns)
        reached = sum(np.minimum(column, best).mean() for column in columns) / len(columns)
        return np.array([ordered[cut : size - cut].mean(), mean, middle, best - reached])

    return of


def exceeding(thresholds: Array) -> Callable[..., Array]:
    """A function of columns that gives the performance profile: ``[T]`` shares of scores above each threshold.

    Each environment counts the same.
    """

    def of(*columns: Array) -> Array:
        above = [1 - np.searchsorted(np.sort(column), thresholds, side="right") / len(column) for column in columns]
        return np.asarray(np.mean(above, axis=0))

    return of


def probability_of_improvement(a: Sequence[Array], b: Sequence[Array]) -> float:
    """How likely a score of A is above one of B in the same environment, ties counted half.

    Environments count the same. The Mann-Whitney statistic over the number of pairs. rliable's own asks SciPy for a
    p-value as well, which nobody reads and which takes nearly all of its time.
    """
    return float(np.mean([(np.sign(x[:, None] - y[None, :]).mean() + 1) / 2 for x, y in zip(a, b, strict=True)]))


def means(*columns: Array) -> Array:
    """``[2]`` mean and interquartile mean of differences; in the mean each environment counts the same."""
    return np.array([sum(column.mean() for column in columns) / len(columns), iqm(np.concatenate(columns))])


def paired_test(differences: Array) -> PairedTest:
    """The Wilcoxon signed-rank test (``scipy.stats.wilcoxon``) of paired differences of all environments together.

    Exact for up to 50 pairs without ties, and by all signs for up to 13 pairs with ties; for more, the normal
    approximation, corrected for ties and continuity. Differences of zero are left out (Wilcoxon's way).
    """
    with extras.needed("study", NEEDS):
        from scipy import stats
    given = differences[differences != 0]
    if not given.size:
        return PairedTest(_NAN, _NAN, "exact")
    ties = len(np.unique(np.abs(given))) < given.size
    exact = given.size <= (13 if ties else 50)
    how = stats.PermutationMethod(n_resamples=np.inf) if exact and ties else "exact" if exact else "asymptotic"
    found = stats.wilcoxon(given, method=how, correction=not exact)
    return PairedTest(
        min(1.0, float(found.pvalue)), 2.0 ** (1 - given.size), "exact" if exact else "normal approximation"
    )


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted so that all of them together err with the probability of one (Holm 1979)."""
    known = sorted((value, index) for index, value in enumerate(p) if not math.isnan(value))
    adjusted, highest = list(p), 0.0
    for rank, (value, index) in enumerate(known):
        highest = adjusted[index] = max(highest, min(1.0, value * (len(known) - rank)))
    return adjusted


def seeds_needed(columns: Sequence[Array]) -> float:
    """Seeds in each environment with which differences like these would be found in four of five studies.

    The least ``n`` at which the paired t-test has a power of 0.80 at alpha 0.05, two-sided: the noncentral t
    distribution with ``n - 1`` degrees of freedom and noncentrality ``d sqrt(n)``, where ``d`` is the mean difference
    over the standard deviation of a seed's (Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, 2.3
    and 2.5; what G*Power computes). Of several environments ``d`` is that of their mean, taking their differences as
    independent. And no fewer than the signed-rank test needs to give a p of 0.05 at all, which is six pairs; where
    differences are normal, that test needs about 5 % more seeds than the t-test.

    An estimate of few pairs is as uncertain as they are: a plan, no result. Infinite where the mean difference is
    zero; NaN where an environment has fewer than two pairs.

    Parameters
    ----------
    columns : of paired differences, an array for each environment.
    """
    if min((len(column) for column in columns), default=0) < 2:
        return _NAN
    mean = float(np.mean([column.mean() for column in columns]))
    spread = math.sqrt(sum(float(column.var(ddof=1)) for column in columns)) / len(columns)
    if mean == 0:
        return math.inf
    least = math.ceil((1 + math.log2(1 / ALPHA)) / len(columns))
    with extras.needed("study", NEEDS):
        from scipy import stats
    if spread == 0:
        return float(least)
    effect = abs(mean) / spread
    # The normal distribution's answer is never above the t distribution's, and a few below it.
    normal = math.ceil(((stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER)) / effect) ** 2)
    if normal > 10**6:
        return float(normal)
    n = max(2, normal)
    while _power(n, effect) < POWER:
        n += 1
    return float(max(n, least))


def _power(n: int, effect: float) -> float:
    from scipy import stats

    edge, shift = stats.t.ppf(1 - ALPHA / 2, n - 1), effect * math.sqrt(n)
    with np.errstate(divide="ignore"):  # SciPy 1.15 and older warn
        return float(stats.nct.sf(edge, n - 1, shift) + stats.nct.cdf(-edge, n - 1, shift))


def rounded(differences: Array, scale: float) -> Array:
    """Differences without the last digits of their arithmetic, so that equal ones are ties, and none is 1e-17.

    Parameters
    ----------
    scale : the largest absolute score that they are differences of.
    """
    return np.round(differences / scale, 12) * scale if scale > 0 else differences
