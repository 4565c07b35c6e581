"""Averages, intervals, paired tests and seeds needed, beside hand and naive loops, and what rliable does."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.stats
from rliable import library, metrics

from daskrl.study import statistics

RNG = np.random.default_rng(0)
COLUMNS = [RNG.normal(size=7), RNG.normal(size=7), RNG.normal(size=4)]  # the third environment has fewer runs


def together(*columns: np.ndarray) -> np.ndarray:
    return np.array([statistics.iqm(np.concatenate([column.ravel() for column in columns]))])


@pytest.mark.parametrize("count", range(1, 30))
def test_the_interquartile_mean_is_scipys_trimmed_mean_and_rliables(count: int) -> None:
    scores = RNG.normal(size=count)
    assert statistics.iqm(scores) == pytest.approx(scipy.stats.trim_mean(scores, 0.25), rel=1e-12)
    assert statistics.iqm(scores) == pytest.approx(metrics.aggregate_iqm(scores[:, None]), rel=1e-12)


def test_of_up_to_three_runs_nothing_is_left_out_of_four_the_ends_are() -> None:
    assert statistics.iqm(np.array([1.0, 2.0, 9.0])) == 4.0
    assert metrics.aggregate_iqm(np.array([[1.0], [2.0], [9.0]])) == 4.0
    assert statistics.iqm(np.array([9.0, 1.0, 2.0, 3.0])) == 2.5
    assert math.isnan(statistics.iqm(np.zeros(0)))


def test_averages_by_hand() -> None:
    # The first environment: mean 2, below 3 by 1.25 on average. The second: mean 5, below 3 by 0.5.
    columns = np.array([0.0, 1.0, 3.0, 4.0]), np.array([2.0, 8.0])
    iqm, mean, median, gap = statistics.aggregates(3.0)(*columns)
    assert iqm == 2.5  # of 0 1 2 3 4 8 without 0 and 8
    assert mean == 3.5
    assert median == 2.5
    assert gap == 0.875


def test_averages_of_as_many_runs_everywhere_are_rliables() -> None:
    scores = RNG.normal(size=(9, 3))
    iqm, mean, _, gap = statistics.aggregates(1.0)(*scores.T)
    assert iqm == pytest.approx(metrics.aggregate_iqm(scores), rel=1e-12)
    assert mean == pytest.approx(metrics.aggregate_mean(scores), rel=1e-12)
    assert gap == pytest.approx(metrics.aggregate_optimality_gap(scores), rel=1e-12)


def test_a_profile_counts_scores_above_a_threshold_and_is_rliables() -> None:
    columns = np.array([1.0, 2.0, 2.0, 3.0]), np.array([5.0])
    found = statistics.exceeding(np.array([0.0, 2.0, 3.0, 5.0]))(*columns)
    assert found.tolist() == [1.0, 0.625, 0.5, 0.0]  # (1/4 + 1) / 2 above 2: what equals it does not count
    scores, thresholds = RNG.normal(size=(8, 3)), np.linspace(-2, 2, 41)
    expected = library.score_distributions(scores, thresholds)
    assert statistics.exceeding(thresholds)(*scores.T) == pytest.approx(expected, abs=1e-12)


def test_the_probability_of_improvement_counts_ties_half_and_is_rliables() -> None:
    a, b = [np.array([1.0, 3.0])], [np.array([1.0, 2.0])]
    assert statistics.probability_of_improvement(a, b) == 0.625  # 1 against 1 a tie, against 2 lost, 3 above both
    x, y = RNG.integers(0, 4, (6, 2)).astype(float), RNG.integers(0, 4, (5, 2)).astype(float)
    expected = metrics.probability_of_improvement(x, y)
    assert statistics.probability_of_improvement(list(x.T), list(y.T)) == pytest.approx(expected, rel=1e-12)


def test_an_interval_is_that_of_a_naive_bootstrap_with_the_same_draws() -> None:
    draws, resampled = statistics.state("a", "b"), []
    for _ in range(300):
        resampled.append(statistics.iqm(np.concatenate([c[draws.randint(len(c), size=len(c))] for c in COLUMNS])))
    value, low, high = statistics.bootstrap(COLUMNS, together, statistics.state("a", "b"), reps=300)
    assert value[0] == statistics.iqm(np.concatenate(COLUMNS))
    assert [low[0], high[0]] == pytest.approx(np.percentile(resampled, [2.5, 97.5]), rel=1e-12)


@pytest.fixture
def restored() -> Iterator[None]:
    """NumPy's global state, as it was."""
    before = np.random.get_state()  # noqa: NPY002
    yield
    np.random.set_state(before)  # noqa: NPY002


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS[:1]], ids=["three environments", "one"])
def test_an_interval_is_rliables_bit_for_bit_where_the_global_state_is_ours(columns: list[np.ndarray]) -> None:
    _, low, high = statistics.bootstrap(columns, together, statistics.state("x"), reps=200)
    np.random.set_state(statistics.state("x").get_state())  # noqa: NPY002
    scores = {"x": [column[:, None] for column in columns]}
    _, expected = library.get_interval_estimates(scores, together, reps=200)
    assert [low[0], high[0]] == expected["x"][:, 0].tolist()


@pytest.mark.usefixtures("restored")
def test_rliable_takes_a_random_state_and_draws_from_the_global_one() -> None:
    scores = COLUMNS[0][:, None]
    with pytest.raises(TypeError, match="must be a RandomState"):
        library.StratifiedBootstrap(scores, random_state=3)
    with pytest.raises(TypeError, match="must be a RandomState"):
        library.StratifiedBootstrap(scores, random_state=np.random.default_rng(3))

    def interval() -> list[float]:
        state = np.random.RandomState(3)
        with pytest.warns(FutureWarning):  # of arch
            _, ends = library.get_interval_estimates({"x": scores}, together, reps=50, random_state=state)
        assert state.randint(10**6) == np.random.RandomState(3).randint(10**6)  # nothing was drawn from it
        return ends["x"].ravel().tolist()

    np.random.seed(0)  # noqa: NPY002
    first, second = interval(), interval()
    assert first != second
    np.random.seed(0)  # noqa: NPY002
    assert interval() == first


@pytest.mark.usefixtures("restored")
def test_rliables_intervals_of_one_method_change_when_another_joins() -> None:
    found = []
    for scores in ({"x": COLUMNS[0][:, None]}, {"other": COLUMNS[1][:, None], "x": COLUMNS[0][:, None]}):
        np.random.seed(0)  # noqa: NPY002
        found.append(library.get_interval_estimates(scores, together, reps=50)[1]["x"].tolist())
    assert found[0] != found[1]


def test_an_environment_with_one_run_leaves_no_interval_where_rliable_gives_one_without_width() -> None:
    value, low, high = statistics.bootstrap([COLUMNS[0], np.array([4.0])], together, statistics.state("x"), reps=50)
    assert value[0] == statistics.iqm(np.append(COLUMNS[0], 4.0))
    assert np.isnan([low[0], high[0]]).all()
    _, ends = library.get_interval_estimates({"x": np.array([[4.0]])}, together, reps=50)
    assert ends["x"].ravel().tolist() == [4.0, 4.0]


def test_numpys_global_state_is_neither_read_nor_changed() -> None:
    def state() -> Any:
        kind, keys, *others = np.random.get_state()  # noqa: NPY002
        return kind, np.asarray(keys).tobytes(), others

    before = state()
    first = statistics.estimates(COLUMNS, together, statistics.state("x"), reps=50)
    assert state() == before
    np.random.rand()  # noqa: NPY002
    assert statistics.estimates(COLUMNS, together, statistics.state("x"), reps=50) == first
    assert state() != before  # what was drawn here


def test_each_purpose_and_each_group_draws_for_itself() -> None:
    keys = [("paired", "a", "b"), ("paired", "b", "a"), ("paired", "ab"), ("aggregates", "a")]
    assert len({statistics.state(*key).randint(2**31) for key in keys}) == len(keys)
    # NumPy promises not to change what a RandomState gives: intervals in a paper can be computed again.
    assert statistics.state("aggregates", "a").randint(2**31, size=3).tolist() == [678699235, 79409336, 1263969848]


def signed_ranks(differences: np.ndarray) -> float:
    """The exact two-sided p: all signs are as likely; what is at least as far from the middle counts, in both tails."""
    given = differences[differences != 0]
    ranks = scipy.stats.rankdata(np.abs(given))
    drawn = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product([0, 1], repeat=len(ranks))
    ]
    seen = ranks[given > 0].sum()
    tail = min(np.mean([d >= seen for d in drawn]), np.mean([d <= seen for d in drawn]))
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 0.0625),  # 2 of 32 signs
        ([1, 2, 3, 4, -5], 0.625),  # 10 of 32 signs give a sum of ranks up to 5
        ([0, 0, 1, 2, 3, 4, 5, 6], 0.03125),  # zeros are left out
        ([1, 1, 1, -1, 2, 2, 3], None),  # ties
        ([5], 1.0),
        ([-3, -3, -3, -3, -3, -3], 0.03125),
    ],
)
def test_the_signed_rank_test_is_exact_for_few_pairs_ties_and_zeros_included(differences: list, p: float) -> None:
    given = np.array(differences, float)
    found = statistics.paired_test(given)
    assert found.p == pytest.approx(signed_ranks(given))
    assert p is None or found.p == pytest.approx(p)
    assert found.method == "exact"
    assert found.least == 2 / 2 ** np.count_nonzero(given)


def test_the_signed_rank_test_of_many_pairs_says_that_it_approximates() -> None:
    many = RNG.normal(0.2, 1, 60)
    found = statistics.paired_test(many)
    assert found.method == "normal approximation"
    ranks = scipy.stats.rankdata(np.abs(many))
    seen, middle = ranks[many > 0].sum(), 60 * 61 / 4
    z = (abs(seen - middle) - 0.5) / math.sqrt(60 * 61 * 121 / 24)
    assert found.p == pytest.approx(2 * scipy.stats.norm.sf(z))
    tied = statistics.paired_test(np.repeat([1.0, -2.0, 3.0, 4.0], 5))
    assert tied.method == "normal approximation"


def test_differences_of_zero_only_have_no_p() -> None:
    found = statistics.paired_test(np.zeros(5))
    assert math.isnan(found.p)
    assert math.isnan(statistics.paired_test(np.zeros(0)).p)


def test_holms_p_values_by_hand() -> None:
    # Sorted 0.01 0.02 0.04: times 3, 2 and 1 gives 0.03 0.04 0.04.
    assert statistics.holm([0.04, math.nan, 0.01, 0.02])[0::2] == pytest.approx([0.04, 0.03])
    assert statistics.holm([0.02, 0.04, 0.01]) == pytest.approx([0.04, 0.04, 0.03])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert math.isnan(statistics.holm([0.1, math.nan])[1])


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (-0.5, 34), (5.0, 6)])
def test_the_seeds_needed_are_those_of_published_tables_of_the_paired_t_test(effect: float, seeds: int) -> None:
    # G*Power 3.1, "difference between two dependent means", two tails, alpha 0.05, power 0.8. The last would be 3,
    # with which no signed-rank test gives 0.05.
    assert statistics.seeds_needed([np.array([effect - 1, effect, effect + 1])]) == seeds


def test_several_environments_need_fewer_seeds_each() -> None:
    # A seed's mean of four environments has half the standard deviation: as for an effect of 1.
    one = np.array([-0.5, 0.5, 1.5])
    assert statistics.seeds_needed([one]) == 34
    assert statistics.seeds_needed([one] * 4) == 10


def test_seeds_needed_where_nothing_can_be_said() -> None:
    assert math.isnan(statistics.seeds_needed([]))
    assert math.isnan(statistics.seeds_needed([np.array([1.0, 2.0]), np.array([1.0])]))
    assert statistics.seeds_needed([np.array([1.0, -1.0])]) == math.inf
    assert statistics.seeds_needed([np.zeros(4)]) == math.inf
    assert statistics.seeds_needed([np.ones(4)]) == 6
    assert statistics.seeds_needed([np.array([1e-5 - 1, 1e-5 + 1])]) == pytest.approx(2 * 7.8489e10, rel=1e-4)


def test_differences_that_differ_in_the_last_digits_only_are_the_same() -> None:
    given = np.array([0.3 - 0.2, 0.2 - 0.1, 0.1 + 0.2 - 0.3])
    assert len(set(given.tolist())) == 3
    assert statistics.rounded(given, 0.3).tolist()[2] == 0
    assert len(set(statistics.rounded(given, 0.3).tolist())) == 2
    assert statistics.rounded(np.zeros(2), 0.0).tolist() == [0, 0]
