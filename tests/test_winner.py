"""The best setting of a search, and what of its lead is left on unseen seeds."""

from __future__ import annotations

import math
from typing import Any

import pandas
import pytest

from daskrl import errors
from daskrl.study.compare import compare
from daskrl.study.statistics import Estimate
from daskrl.study.winner import optimism, winner


def settings(scores: dict[Any, list[float]], environment: str = "A") -> list[dict[str, Any]]:
    """Rows of a table: number of the setting -> the scores of seeds 0, 1, ..."""
    return [
        {"environment": environment, "seed": seed, "setting": setting, "score": score}
        for setting, each in scores.items()
        for seed, score in enumerate(each)
    ]


def test_the_winner_has_the_highest_interquartile_mean_and_not_the_highest_mean() -> None:
    found = winner(settings({0: [1, 2, 3, 1000], 1: [5, 5, 5, 5], 2: [1, 1, 1, 1]}))
    assert found.settings == {"setting": 1}
    assert found.iqm == 5
    assert (found.runs, found.seeds, found.ties, found.left_out) == (4, 4, (), ())


def test_ties_go_to_the_higher_mean_and_then_to_the_first_setting() -> None:
    rows = settings({10: [0, 5, 5, 10], 9: [0, 5, 5, 10], 2: [0, 5, 5, 9]})
    for order in (rows, rows[::-1]):
        found = winner(order)
        assert found.settings == {"setting": 9}
        assert found.ties == ("setting=2", "setting=10")


def test_a_setting_does_not_win_by_the_runs_that_survived() -> None:
    rows = settings({0: [9, math.nan, math.nan, math.nan, math.nan], 1: [5, 5, 5, 5, 1]})
    assert winner(rows).settings == {"setting": 1}
    assert winner(rows, failed="leave out").settings == {"setting": 0}


def test_a_setting_that_was_not_tried_everywhere_does_not_win() -> None:
    rows = settings({0: [1, 1], 1: [9, 9]}, "A") + settings({0: [1, 1]}, "B")
    found = winner(rows)
    assert found.settings == {"setting": 0}
    assert found.left_out == ("setting=1",)
    with pytest.raises(errors.ConfigError, match="a score in each of A, B; none of the 2 has"):
        winner(settings({0: [1]}, "A") + settings({1: [1]}, "B"))


def test_runs_that_were_stopped_early_do_not_make_a_winner() -> None:
    table = pandas.DataFrame(settings({0: [9, 9, 1], 1: [5, 5, 5], 2: [8, 8, 8]}))
    table["env_steps"] = [100, 100, 900, 900, 900, 900, 100, 100, 100]
    found = winner(table)
    assert found.settings == {"setting": 1}
    assert found.left_out == ("setting=2",)
    assert winner(table.drop(columns="env_steps")).settings == {"setting": 2}
    with pytest.warns(errors.FewSeedsWarning):
        shown = optimism(table, unseen(settings({1: [5, 5, 5]})), failed="leave out", reps=5)
    assert "Could not win, without a score in each environment after all env steps: setting=2." in repr(shown)


def unseen(rows: list[dict[str, Any]], first: int = 100) -> list[dict[str, Any]]:
    return [{**row, "seed": row["seed"] + first} for row in rows]


def test_the_optimism_is_the_winners_score_in_the_search_minus_that_on_unseen_seeds() -> None:
    search = settings({0: [1, 2, 3, 4, 5, 6], 1: [4, 5, 6, 7, 8, 9]})
    test = unseen(settings({1: [3, 4, 5, 6, 7]}))
    found = optimism(search, test, reps=50)
    assert found.label == "setting=1"
    assert (found.search.value, found.test.value, found.optimism.value) == (6.5, 5.0, 1.5)
    assert found.optimism.low < 1.5 < found.optimism.high
    assert found.search == compare(search, "setting", reps=50).groups[1].iqm
    assert found.seeds == (6, 5)
    assert found.notes == ()
    assert "1.5 [" in repr(found)
    assert "1.5 [" in found._repr_html_()
    assert optimism(search[::-1], test[::-1], reps=50) == found


def test_a_test_is_on_the_scale_of_the_search_and_its_failed_runs_count_as_the_searchs_lowest_score() -> None:
    search = settings({0: [0, 10], 1: [10, 10]}, "A") + settings({0: [0, 0], 1: [100, 0]}, "B")
    test = unseen(settings({1: [5, math.nan]}, "A") + settings({1: [50, 50]}, "B"))
    with pytest.warns(errors.FewSeedsWarning, match="setting=1: 2 in the search, 2 unseen"):
        found = optimism(search, test, reps=50)
    assert found.search.value == 1.0  # of 1 1 1 0 without its ends
    assert found.test.value == 0.5  # of 0.5 0 0.5 0.5 without its ends


def test_a_test_of_one_seed_has_no_interval() -> None:
    search = settings({0: [1, 2, 3, 4, 5]})
    with pytest.warns(errors.FewSeedsWarning, match="5 in the search, 1 unseen"):
        found = optimism(search, unseen(settings({0: [2]})), reps=50)
    assert found.optimism == Estimate(1.0)
    assert not math.isnan(found.search.low)
    assert "[no interval]" in repr(found)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (settings({1: [1, 2, 3]}), "seeds that the search has not seen, got A seed 0, A seed 1, A seed 2"),
        (unseen(settings({0: [1]})), "expected runs of the winner, setting=1; the table has setting=0"),
        (unseen(settings({1: [1]}, "B")), "expected the environments of the search, A, got B"),
        (unseen(settings({1: [math.nan]})), None),
    ],
)
def test_a_test_that_tests_nothing_is_refused(test: list[dict[str, Any]], said: str | None) -> None:
    search = settings({0: [1, 1, 1], 1: [2, 2, 2]})
    if said is None:
        with pytest.raises(errors.ConfigError, match="expected runs of the winner"):
            optimism(search, test, failed="leave out")
        return
    with pytest.raises(errors.ConfigError, match=said):
        optimism(search, test)
