"""Groups of runs side by side: what stands in the table, the picture and the warnings."""

from __future__ import annotations

import math
import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st

from daskrl import errors
from daskrl.study import statistics
from daskrl.study.compare import Comparison, compare
from daskrl.study.statistics import Estimate

mpl.use("agg")
RNG = np.random.default_rng(0)
SCALE = {"A": (0.0, 100.0), "B": (-50.0, 50.0)}


def runs(scores: dict[Any, list[float]], environment: str = "A", column: str = "n_step") -> list[dict[str, Any]]:
    """Rows of a table: setting -> the scores of seeds 0, 1, ..."""
    return [
        {"environment": environment, "seed": seed, column: setting, "score": score}
        for setting, each in scores.items()
        for seed, score in enumerate(each)
    ]


def drawn(settings: list[Any], seeds: int = 6, environments: str = "AB") -> pandas.DataFrame:
    return pandas.DataFrame(
        [
            row
            for environment in environments
            for row in runs({setting: list(RNG.normal(10 * setting, 9, seeds)) for setting in settings}, environment)
        ]
    )


def quietly(*given: Any, reps: int = 50, **named: Any) -> Comparison:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return compare(*given, reps=reps, **named)


def test_a_table_of_two_groups_by_hand() -> None:
    table = runs({1: [0, 1, 2, 3, 4, 100], 3: [10, 11, 12, 13, 14, 15]})
    found = compare(table, "n_step", reps=50).table()
    assert found["n_step"].tolist() == [1, 3]
    assert found["runs"].tolist() == [6, 6]
    assert found["seeds"].tolist() == [6, 6]
    assert found["failed"].tolist() == [0, 0]
    assert found["iqm"].tolist() == [2.5, 12.5]  # of four scores each
    assert found["mean"].tolist() == pytest.approx([110 / 6, 12.5])
    assert found["median"].tolist() == [2.5, 12.5]
    assert found["optimality_gap"].tolist() == pytest.approx([100 - 110 / 6, 87.5])  # to the highest seen
    assert (found["iqm_low"] < found["iqm"]).all()
    assert (found["iqm_high"] > found["iqm"]).all()


def test_differences_are_those_of_runs_with_the_same_environment_and_seed_a_minus_b() -> None:
    table = runs({1: [1, 2, 3, 4, 5, 6], 3: [3, 3, 6, 8, 10, 20]})
    (pair,) = compare(table, "n_step", reps=50).pairs
    assert (pair.a, pair.b) == ("n_step=1", "n_step=3")
    assert (pair.pairs, pair.seeds) == (6, 6)
    assert pair.difference.value == pytest.approx(-29 / 6)  # of -2 -1 -3 -4 -5 -14
    assert pair.difference_iqm.value == pytest.approx(-3.5)  # of -2 -3 -4 -5
    assert pair.difference.low < pair.difference.value < pair.difference.high
    assert pair.test.p == 2 / 2**6
    assert pair.p_holm == pair.test.p
    # Of 36 pairs of runs A is above in 3+4, 4 and 5+6 above both threes; 3 and 6 tie.
    above = sum((a > b) + (a == b) / 2 for a in [1, 2, 3, 4, 5, 6] for b in [3, 3, 6, 8, 10, 20])
    assert pair.improvement.value == pytest.approx(above / 36)
    # d = 4.83 / 4.71: the t-test needs 10, four more.
    assert pair.seeds_needed == 10
    assert pair.still_needed == "4"


def test_equal_tables_give_equal_intervals_whatever_the_order_of_rows_and_columns() -> None:
    table = drawn([1, 2, 3])
    first = compare(table, "n_step", reps=50)
    for order in (table.index[::-1], RNG.permutation(len(table))):
        again = table.loc[order, ["score", "n_step", "seed", "environment"]]
        assert compare(again, "n_step", reps=50) == first
    assert compare(table.to_dict("records"), "n_step", reps=50) == first
    assert repr(compare(table, "n_step", reps=50)) == repr(first)


def test_a_group_has_the_same_numbers_whichever_other_groups_there_are() -> None:
    table = drawn([1, 2, 3])
    whole = compare(table, "n_step", normalise=SCALE, reps=50)
    part = compare(table[table.n_step != 2], "n_step", normalise=SCALE, reps=50)
    pandas.testing.assert_frame_equal(
        whole.table().query("n_step != 2").reset_index(drop=True), part.table(), check_exact=True
    )
    (pair,) = part.pairs
    (same,) = (each for each in whole.pairs if (each.a, each.b) == (pair.a, pair.b))
    assert (same.difference, same.difference_iqm, same.improvement) == (
        pair.difference,
        pair.difference_iqm,
        pair.improvement,
    )
    missing = table.astype({"n_step": object})
    missing.loc[missing.n_step == 2, "n_step"] = None
    floats = missing.astype({"n_step": float})  # as pandas has integers of which some are missing
    assert floats.n_step.dtype == float
    found = compare(floats, "n_step", normalise=SCALE, reps=50)
    assert [group.label for group in found.groups] == ["n_step=None", "n_step=1", "n_step=3"]
    assert found.groups[1:] == part.groups


def test_intervals_are_of_resamples_within_each_environment() -> None:
    table = drawn([1])
    (group,) = compare(table, "n_step", normalise=None, reps=60).groups
    columns = [np.sort(table.score[table.environment == name]) for name in "AB"]
    draws, resampled = statistics.state("aggregates", '{"n_step": "1"}'), []
    for _ in range(60):
        resampled.append(np.concatenate([column[draws.randint(6, size=6)] for column in columns]))
    expected = np.percentile([np.sort(each)[3:9].mean() for each in resampled], [2.5, 97.5])
    assert group.iqm[1:] == pytest.approx(expected, rel=1e-12)
    expected = np.percentile([np.median(each) for each in resampled], [2.5, 97.5])
    assert group.median[1:] == pytest.approx(expected, rel=1e-12)


def test_scores_of_several_environments_are_put_on_one_scale() -> None:
    table = runs({1: [0, 5], 3: [10, 10]}, "A") + runs({1: [-100, -90], 3: [-60, -80]}, "B")
    ranged = quietly(table, "n_step")
    # A: 0 0.5 | 1 1. B: 0 0.25 | 1 0.5.
    assert ranged.table()["mean"].tolist() == [0.1875, 0.875]
    assert ranged.table()["optimality_gap"].tolist() == [0.8125, 0.125]
    assert "the lowest and the highest seen" in ranged.scale
    given = quietly(table, "n_step", normalise={"A": (0, 20), "B": (-100, 0)})
    # A: 0 0.25 | 0.5 0.5. B: 0 0.1 | 0.4 0.2.
    assert given.table()["mean"].tolist() == pytest.approx([0.0875, 0.4])
    assert "A 0 and 20, B -100 and 0" in given.scale
    as_they_are = quietly(table, "n_step", normalise=None)
    assert as_they_are.table()["mean"].tolist() == pytest.approx([(2.5 - 95) / 2, (10 - 70) / 2])
    assert quietly(runs({1: [4, 4], 3: [4, 4]}), "n_step", normalise="range").table()["mean"].tolist() == [1, 1]


def test_one_run_has_no_interval_and_says_so() -> None:
    with pytest.warns(errors.FewSeedsWarning) as said:
        found = compare(runs({1: [4.0], 3: [5.0]}), "n_step", reps=50)
    (warning,) = said
    assert "n_step=1: 1, which gives no interval" in str(warning.message)
    assert "seeds=range(5)" in str(warning.message)
    row = found.table().iloc[0]
    assert row["iqm"] == 4
    assert math.isnan(row["iqm_low"])
    assert math.isnan(found.pairs[0].improvement.low)
    assert math.isnan(found.pairs[0].difference.low)
    assert found.pairs[0].still_needed == "unknown: one pair"
    assert "4 [no interval]" in repr(found)
    assert "4 [no interval]" in found._repr_html_()


def test_several_settings_of_one_seed_have_no_interval_either() -> None:
    table = pandas.DataFrame(
        [{"environment": "A", "seed": 0, "n_step": 1, "double": d, "score": s} for d, s in enumerate([1, 2, 3])]
    )
    found = quietly(table, "n_step")
    assert found.groups[0].iqm == Estimate(2.0)
    assert (found.groups[0].runs, found.groups[0].seeds) == (3, 1)


def test_fewer_than_five_seeds_are_warned_of_in_the_text_and_the_page_too_and_five_are_not() -> None:
    with pytest.warns(errors.FewSeedsWarning, match=r"fewer than 5 seeds .*n_step=1: 4\)") as said:
        found = compare(runs({1: [1, 2, 3, 4], 3: [1, 2, 3, 4, 5]}), "n_step", reps=50)
    assert str(said[0].message) in repr(found)
    assert "4 (few)" in repr(found)
    assert "fewer than 5 seeds" in found._repr_html_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare(runs({1: [1, 2, 3, 4, 5], 3: [2, 2, 3, 4, 5]}), "n_step", reps=50)
    assert found.notes == ()


def test_few_pairs_of_many_seeds_are_warned_of() -> None:
    table = runs({1: [1, 2, 3, 4, 5, 6]}) + [{**row, "seed": row["seed"] + 4} for row in runs({3: [1, 2, 3, 4, 5, 6]})]
    with pytest.warns(errors.FewSeedsWarning, match="n_step=1 against n_step=3: 2 in pairs"):
        found = compare(table, "n_step", reps=50)
    assert found.pairs[0].pairs == 2
    assert len(found.pairs[0].unpaired) == 8
    assert "8 without a partner in the other group (n_step=1: A seed 0, " in repr(found)
    assert "and 2 more" in repr(found)


def test_groups_without_a_seed_in_common_have_no_paired_difference() -> None:
    table = runs({1: [1, 2, 3, 4, 5]}) + [{**row, "seed": row["seed"] + 5} for row in runs({3: [1, 2, 3, 4, 5]})]
    found = quietly(table, "n_step")
    assert found.pairs[0].pairs == 0
    assert math.isnan(found.pairs[0].difference.value)
    assert found.pairs[0].improvement.value == 0.5
    assert found.pairs[0].still_needed == "unknown: no pairs"


def test_groups_without_an_environment_in_common_have_nothing_to_say_of_each_other() -> None:
    found = quietly(runs({1: [1, 2, 3]}, "A") + runs({3: [1, 2, 3]}, "B"), "n_step")
    assert math.isnan(found.pairs[0].improvement.value)
    assert "n_step=1 has no scores in B" in repr(found)
    assert "n_step=3 has no scores in A" in repr(found)


def test_groups_that_are_the_same_differ_in_nothing() -> None:
    found = quietly(runs({1: [1, 2, 3, 4, 5], 3: [1, 2, 3, 4, 5]}), "n_step")
    (pair,) = found.pairs
    assert pair.difference == (0, 0, 0)
    assert pair.improvement.value == 0.5
    assert math.isnan(pair.test.p)
    assert pair.still_needed == "no difference seen"
    assert "no difference seen" in repr(found)


def test_scores_that_never_differ_have_an_interval_without_width_which_is_said() -> None:
    found = quietly(runs({1: [500] * 6}), "n_step")
    assert found.groups[0].iqm == (500, 500, 500)
    assert "500 [no width]" in repr(found)


def test_failed_runs_are_counted_named_and_left_out_with_a_warning() -> None:
    table = runs({1: [1, 2, math.nan, 4, 5, 6], 3: [2, 3, 4, 5, 6, math.inf]})
    with pytest.warns(errors.FewSeedsWarning, match="4 in pairs"), pytest.warns(errors.FailedTrialsWarning) as said:
        found = compare(table, "n_step", reps=50)
    (lost,) = (str(one.message) for one in said if one.category is errors.FailedTrialsWarning)
    assert lost.startswith("2 runs failed (1 of n_step=1: A seed 2; 1 of n_step=3: A seed 5): left out")
    assert found.table()["failed"].tolist() == [1, 1]
    assert found.table()["runs"].tolist() == [5, 5]
    assert found.table()["mean"].tolist() == [3.6, 4.0]
    assert found.pairs[0].pairs == 4
    assert [(label, str(place)) for label, place in found.pairs[0].unpaired] == [
        ("n_step=1", "A seed 5"),
        ("n_step=3", "A seed 2"),
    ]
    assert lost in repr(found)
    assert "2 runs failed" in found._repr_html_()


def test_failed_runs_may_count_as_the_lowest_score_of_their_environment() -> None:
    table = runs({1: [1, 2, None, 4, 5, 6], 3: [2, 3, 4, 5, 6, 7]}, "A")
    table += runs({1: [10, 20, 30, 40, 50, 60], 3: [20, None, 40, 50, 60, 70]}, "B")
    found = compare(table, "n_step", failed="lowest", normalise=None, reps=50)
    assert found.table()["failed"].tolist() == [1, 1]
    assert found.table()["runs"].tolist() == [12, 12]
    assert found.table()["mean"].tolist() == pytest.approx([(19 / 6 + 35) / 2, (27 / 6 + 250 / 6) / 2])
    assert found.pairs[0].pairs == 12
    assert "counted as the lowest score" in repr(found)


def test_a_group_whose_runs_all_failed_stays_in_the_table() -> None:
    with pytest.warns(errors.FewSeedsWarning, match="n_step=1: 0"), pytest.warns(errors.FailedTrialsWarning):
        found = compare(runs({1: [math.nan] * 5, 3: [2, 3, 4, 5, 6]}), "n_step", reps=50)
    assert found.table()["failed"].tolist() == [5, 0]
    assert found.table()["runs"].tolist() == [0, 5]
    assert math.isnan(found.table()["iqm"][0])
    found.plot()
    assert quietly(runs({1: [math.nan] * 2}), "n_step", failed="lowest").table()["runs"].tolist() == [0]


def test_runs_without_a_score_yet_have_not_failed() -> None:
    table = pandas.DataFrame(runs({1: [1, 2, 3, 4, 5, math.nan, math.nan, math.nan]}))
    table["state"] = ["finished"] * 5 + ["running", "failed", "finished"]
    found = quietly(table, "n_step", failed="lowest")
    assert found.table()[["runs", "failed", "unfinished"]].values.tolist() == [[7, 2, 1]]
    assert "1 run of n_step=1 without a score yet" in repr(found)


def test_partners_have_the_same_values_of_other_settings_and_seeds_stay_the_unit() -> None:
    rows = [
        {"environment": "A", "seed": seed, "n_step": n, "double": double, "score": 10 * double + n * seed}
        for seed in range(5)
        for n in (1, 3)
        for double in (0, 1)
        if not (seed == 4 and n == 3 and double == 1)  # which lacks its score
    ]
    plain = quietly(rows, "n_step").pairs[0]
    assert plain.difference.value == pytest.approx(np.mean([0, -2, -4, -6, 4 + 5 - 12]))  # the last one is unfair
    fair = quietly(rows, "n_step", settings=["double"])
    (pair,) = fair.pairs
    assert pair.difference.value == pytest.approx(np.mean([0, -2, -4, -6, -8]))
    assert (pair.pairs, pair.seeds) == (5, 5)
    assert "n_step=1: A seed 4 double=1" in repr(fair)


def test_unequal_numbers_of_runs_and_of_budgets_are_said() -> None:
    table = pandas.DataFrame(runs({1: [1, 2, 3]}, "A") + runs({1: [1, 2]}, "B"))
    table["env_steps"] = [1000] * 4 + [500]
    found = repr(quietly(table, "n_step"))
    assert "n_step=1 has not as many runs in each environment (A 3, B 2)" in found
    assert "Runs of different env_steps are compared: 500, 1,000." in found


def test_rows_that_are_in_the_table_twice_are_said() -> None:
    rows = runs({1: [1, 2, 3]})
    assert "2 rows are in the table already" in repr(quietly(rows + rows[:2], "n_step"))
    assert "already" not in repr(quietly(rows + [{**row, "n_step": (1, 2)} for row in rows], "n_step"))


@settings_(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_table_gives_what_loops_give_in_any_order(data: st.DataObject) -> None:
    numbers = st.one_of(st.none(), st.just(math.nan), st.integers(-3, 3), st.floats(-1e3, 1e3, width=32))
    runs_ = st.tuples(st.sampled_from([1, 3]), st.sampled_from("AB"), st.integers(0, 6))
    found = data.draw(st.dictionaries(runs_, numbers, min_size=1))
    rows = [
        {"n_step": n, "environment": name, "seed": seed, "score": score} for (n, name, seed), score in found.items()
    ]
    first = quietly(rows, "n_step", reps=3, normalise=None)
    again = quietly(data.draw(st.permutations(rows)), "n_step", reps=3, normalise=None)
    doubled = [{**row, "score": None if row["score"] is None else 2 * row["score"]} for row in rows]
    twice = quietly(doubled, "n_step", reps=3, normalise=None)
    assert repr(again) == repr(first)
    pandas.testing.assert_frame_equal(again.table(), first.table(), check_exact=True)
    pandas.testing.assert_frame_equal(again.pair_table(), first.pair_table(), check_exact=True)
    scored = {run: float(score) for run, score in found.items() if score is not None and not math.isnan(score)}
    for group in first.groups:
        n = group.settings["n_step"]
        mine = {run[1:]: score for run, score in scored.items() if run[0] == n}
        assert group.runs == len(mine)
        assert group.failed == sum(run[0] == n for run in found) - len(mine)
        if mine:
            assert group.iqm.value == pytest.approx(scipy.stats.trim_mean(list(mine.values()), 0.25), abs=1e-9)
            assert group.median.value == pytest.approx(np.median(list(mine.values())), abs=1e-9)
    for one, two in zip(first.groups, twice.groups, strict=True):
        for name in ("iqm", "mean", "median", "optimality_gap"):
            np.testing.assert_array_equal(2 * np.array(getattr(one, name)), getattr(two, name))
    for pair in first.pairs:
        both = [(name, seed) for n, name, seed in scored if n == 1 and (3, name, seed) in scored]
        each = [
            [scored[1, *place] - scored[3, *place] for place in both if place[0] == name]
            for name in sorted({name for name, _ in both})
        ]
        assert pair.pairs == len(both)
        assert pair.seeds == min(map(len, each), default=0)
        assert len(pair.unpaired) == len(scored) - 2 * len(both)
        if both:
            assert pair.difference.value == pytest.approx(np.mean([np.mean(part) for part in each]), abs=1e-9)
        won = []
        for name in "AB":
            scores = [[score for run, score in scored.items() if run[:2] == (n, name)] for n in (1, 3)]
            if all(scores):
                won.append(np.mean([(a > b) + (a == b) / 2 for a in scores[0] for b in scores[1]]))
        if won:
            assert pair.improvement.value == pytest.approx(np.mean(won), abs=1e-9)
        else:
            assert math.isnan(pair.improvement.value)


def test_several_columns_make_the_groups_and_values_may_be_anything() -> None:
    values = [(True, (64, 64)), (False, (64, 64)), (True, "small"), (True, None), (1, 2.5), (1, {"a": 1})]
    rows = [
        {"environment": "A", "seed": seed, "double": double, "hidden": hidden, "score": seed}
        for double, hidden in values
        for seed in range(2)
    ]
    labels = [group.label for group in quietly(rows, ["double", "hidden"]).groups]
    assert len(set(labels)) == 6
    assert labels[0] == "double=False, hidden=(64, 64)"
    assert labels == [group.label for group in quietly(rows[::-1], ["double", "hidden"]).groups]


def test_three_groups_have_three_pairs_whose_p_values_are_adjusted() -> None:
    found = quietly(drawn([1, 2, 3]), "n_step")
    assert [(pair.a[-1], pair.b[-1]) for pair in found.pairs] == [("1", "2"), ("1", "3"), ("2", "3")]
    assert [pair.p_holm for pair in found.pairs] == statistics.holm([pair.test.p for pair in found.pairs])
    assert found.pair_table()["p"].tolist() == [pair.test.p for pair in found.pairs]
    assert set(found.pair_table()["test"]) == {"Wilcoxon signed-rank, exact"}
    assert quietly(drawn([1, 2, 3]), "n_step", pairs=False).pairs == ()


def test_many_groups_are_compared_in_pairs_where_that_is_asked_for() -> None:
    table = drawn(list(range(13)), seeds=2, environments="A")
    found = quietly(table, "n_step", reps=2)
    assert found.pairs == ()
    assert "13 groups are not compared in pairs: pairs=True." in repr(found)
    assert len(quietly(table, "n_step", reps=2, pairs=True).pairs) == 78
    assert quietly(table, "n_step", reps=2, pairs=False).notes == found.notes[:-1]


def test_a_profile_falls_from_all_runs_to_none() -> None:
    found = quietly(runs({1: [0, 50, 50, 100], 3: [60, 70, 80, 90]}), "n_step").profile_table()
    one = found[found.n_step == 1].set_index("threshold")["share"]
    assert one[0] == 0.75
    assert one[49] == 0.75
    assert one[50] == 0.25
    assert one[100] == 0
    assert found[found.n_step == 3]["share"].is_monotonic_decreasing
    assert (found["low"] <= found["share"]).all()
    assert (found["share"] <= found["high"]).all()


def test_the_picture_has_a_colour_for_each_group_labels_with_units_and_n_in_the_legend() -> None:
    found = quietly(runs({1: [0, 1, 2, 3, 4, math.nan], 3: [1, 2, 3]}), "n_step")
    means, profiles = found.plot()
    assert means.get_xlabel() == "interquartile mean of the score"
    assert profiles.get_ylabel() == "runs with a score above τ [%]"
    assert [tick.get_text() for tick in means.get_yticklabels()] == ["n_step=1", "n_step=3"]
    named = quietly(runs({1: [0, 1]}), "n_step", normalise="range", unit="return").plot()
    assert named[0].get_xlabel() == "interquartile mean of the normalised return"
    (legend,) = means.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "n_step=1 (n = 5 runs, 5 seeds, 1 failed)",
        "n_step=3 (n = 3 runs, 3 seeds, few)",
    ]
    colors = [line.get_color() for line in profiles.get_lines()]
    assert len(set(colors)) == 2
    assert colors == [line.get_color() for line in means.get_lines()]
    _, ax = mpl.pyplot.subplots()
    assert found.plot(ax) == (ax,)
    assert len(ax.get_legend().get_texts()) == 2
    _, axes = mpl.pyplot.subplots(1, 2)
    assert found.plot(axes) == tuple(axes)
    with pytest.raises(errors.ConfigError, match="expected matplotlib's Axes"):
        found.plot("here")
    mpl.pyplot.close("all")


def test_names_in_the_page_are_escaped() -> None:
    found = quietly(runs({"<b>": [1, 2]}, column="net"), "net")
    assert "<b>" not in found._repr_html_()
    assert "net=&lt;b&gt;" in found._repr_html_()


@pytest.mark.parametrize(
    ("table", "named", "said"),
    [
        ([], {"by": "n_step"}, r"expected the columns environment, seed, score, got none"),
        (runs({1: [1]}), {"by": "nstep"}, r"by: the table has no column 'nstep'\. Did you mean n_step\?"),
        (runs({1: [1]}), {"by": []}, r"by: expected a column"),
        (runs({1: [1]}), {"by": "n_step", "settings": ["duble"]}, "settings: the table has no column 'duble'"),
        (pandas.DataFrame(runs({1: [1]}))[:0], {"by": "n_step"}, "a row for each run, got none"),
        ([{"environment": "A", "seed": 0}], {"by": "seed"}, "expected the columns environment, seed, score, got"),
        (runs({1: [1]}), {"by": "n_step", "normalise": {"B": (0, 1)}}, r"expected \(low, high\) of A, got none of A"),
        (runs({1: [1]}), {"by": "n_step", "normalise": {"A": (1, 1)}}, "two different numbers"),
        (runs({1: [1]}), {"by": "n_step", "normalise": "minmax"}, '"auto", "range", None or'),
        (runs({1: [1]}), {"by": "n_step", "failed": "drop"}, '"leave out" or "lowest"'),
        (runs({1: [1]}), {"by": "n_step", "reps": 0}, "reps"),
    ],
)
def test_what_cannot_be_compared_is_said(table: Any, named: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.ConfigError, match=said):
        compare(table, **named)
