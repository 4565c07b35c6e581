"""What the benchmarks compute themselves, beside what they time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("_table", "_told", "kills", "tasks", "learning"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def _state() -> Any:
    kind, keys, *others = np.random.get_state()  # noqa: NPY002
    return kind, keys.tobytes(), others  # type: ignore[attr-defined]


def test_two_calls_give_the_same_intervals_whatever_else_is_in_the_table(benchmarks: None) -> None:
    from learning import aggregate  # type: ignore[import-not-found]

    scores = {"one": [1.0, 2.0, 4.0, 8.0], "other": [3.0, 5.0, 9.0, 1.0]}
    before = _state()
    first = aggregate(scores, reps=200)
    np.random.rand()  # noqa: NPY002
    second = aggregate({"other": scores["other"], "more": [0.0, 1.0, 2.0, 7.0], "one": scores["one"]}, reps=200)
    assert {name: second[name] for name in first} == first
    assert _state() != before  # what was drawn here, and nothing else


def test_what_kills_cost_by_hand(benchmarks: None) -> None:
    from _told import Task, cost  # type: ignore[import-not-found]

    def task(pid: int, *times: float | None, **said: Any) -> Any:
        began, first, lasting, scoring, ended = ((at, at / 2) if at is not None else None for at in times)
        return Task("a", 64, pid, began, lasting, first, scoring, ended, **said)

    tasks = [
        task(1, 0.0, 1.0, 7.0, None, None),  # killed at 10: 3 are destroyed
        task(2, 12.0, None, None, None, None),  # killed at 14, before it got on: 2 are destroyed
        task(3, 20.0, 24.0, 28.0, 30.0, 32.0, kind="trial", seconds=12.0),  # 4 until it got on; its result counts
        task(4, 33.0, None, None, None, 34.0, kind="busy"),  # 1 for nothing
        task(5, 36.0, 38.0, None, 38.0, 40.0, kind="trial", seconds=4.0),  # 2 to get on, 2 for a result that was there
    ]
    died = {1: (10.0, 5.0), 2: (14.0, 7.0)}
    of_clock, of_processor = (cost(tasks, died, {12.0}, clock) for clock in (0, 1))
    assert of_clock == type(of_clock)(work=10 + 2 + 12 + 1 + 4, destroyed=5.0, regained=6.0, doubled=3.0)
    assert of_processor.work == of_clock.work / 2
    assert of_processor.percent == of_clock.percent == 100 * 14 / 29
    assert cost(tasks[:1], {1: (7.0, 3.5)}, set(), 0).percent == 0.0


def test_a_plan_of_kills_is_spread_over_the_commits_and_has_its_share_of_drivers(benchmarks: None) -> None:
    from kills import plan_of, size_of  # type: ignore[import-not-found]

    plan = plan_of(3, 100, 5000, 0.2)
    assert plan == plan_of(3, 100, 5000, 0.2) != plan_of(4, 100, 5000, 0.2)
    assert sum(kill.driver for kill in plan) == 20
    assert all(i * 47.49 <= kill.after <= 1 + (i + 1) * 47.49 for i, kill in enumerate(plan))
    assert 30 < sum(kill.moment == "commit" for kill in plan) < 70
    assert size_of(200 * 12_000, 20_000) == (24, 20_000)
    assert size_of(10 * 2_000, 20_000) == (1, 4_000)
