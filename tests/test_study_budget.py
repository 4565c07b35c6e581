"""What a study may take decides how far it comes, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daskrl.errors import ConfigError
from daskrl.study import ASHA
from daskrl.study.budget import Budget
from tests.asks import carried

SPACE = {"n_step": [*range(1, 9)]}


def of_run(prepared: Any, seed: int, env_steps: int) -> float:
    return float(prepared.algorithm.n_step) + seed


def result(trial: str, seconds: float, updates: int) -> Any:
    return {"trial": trial, "seconds": seconds, "learner_updates": updates}


def test_worker_hours_are_of_all_results_and_updates_of_each_run_as_far_as_it_came() -> None:
    # Run a stopped at a rung with 30 updates and went on to 50; run b has 20, run c failed.
    results = [result("a", 1800, 30), result("a", 900, 50), result("b", 900, 20), {"trial": "c", "seconds": 0}]
    assert Budget(worker_hours=1.0).spent(results)
    assert not Budget(worker_hours=1.01).spent(results)
    assert Budget(updates=70).spent(results)
    assert not Budget(updates=71).spent(results)
    assert not Budget().spent(results)
    assert Budget(seconds=10, began=-1e9).spent([])
    assert not Budget(seconds=1e9).spent(results)


@pytest.mark.parametrize("search", [None, ASHA(rungs=100, reduction=2, width=2)])
def test_a_study_that_ran_out_goes_on_and_comes_to_the_results_it_has_without_a_budget(
    search: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"space": SPACE, "search": search, "seeds": 2}
    whole = carried(monkeypatch, tmp_path / "whole", of_run, **given)
    budgets = [{"worker_hours": hours / 3600} for hours in (3, 6, 10, 11)] + [{}]  # each run is a second here
    finished = []
    for spending in budgets:
        study = carried(monkeypatch, tmp_path / "study", of_run, spending=spending, workers=2, **given)
        finished.append(len(study.log.results))
        assert study.log.results.keys() <= whole.log.results.keys()
        assert all(study.log.results[key]["score"] == whole.log.results[key]["score"] for key in study.log.results)
    assert finished[0] == 4  # two were in the air when the third second was spent
    assert finished[1] > 4
    assert finished == sorted(finished)
    assert finished[-2] < finished[-1]
    assert study.digest() == whole.digest()


@pytest.mark.parametrize("changed", [{"seconds": 0}, {"worker_hours": -1}, {"updates": float("nan")}])
def test_a_budget_of_nothing_is_refused(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changed))}: expected a number above 0"):
        carried(monkeypatch, tmp_path / "study", of_run, space=SPACE, spending=changed)
