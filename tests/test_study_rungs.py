"""Runs that stop early: a fixed order of results decides which go on, and those are as runs that never waited."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from distributed import Client, LocalCluster

import daskrl
from daskrl.errors import ConfigError, EarlyRungsWarning
from daskrl.study import (
    ASHA,
    Greedy,
    MedianStopping,
    Optuna,
    Population,
    Pruned,
    Random,
    Range,
    Study,
    SuccessiveHalving,
)
from daskrl.study.log import StudyLog
from daskrl.study.search import WAIT, Result
from daskrl.study.space import Space
from daskrl.study.ties import doubts
from tests.asks import carried, killed, played

optuna.logging.set_verbosity(optuna.logging.ERROR)

# Scores known in advance: of setting s at its rungs. Ties, a failure, and settings that overtake others.
SCORES = {
    0: [3, 4, 1, 9], 1: [1, 9, 9, 9], 2: [5, 5, 6, 6], 3: [5, 7, 5, 5], 4: [2, 2, 2, 2], 5: [math.nan] * 4,
    6: [8, 1, 1, 1], 7: [7, 8, 8, 9], 8: [6, 3, 3, 3], 9: [4, 6, 7, 8], 10: [9, 9, math.nan, 0], 11: [0, 0, 0, 0],
}  # fmt: skip
LADDER = [100, 200, 400, 800]
SPACE: dict[str, Any] = {"n_step": [*range(1, 13)]}
MEDIAN = optuna.pruners.MedianPruner(n_startup_trials=2)
SEARCHES: dict[str, Any] = {
    "asha": ASHA(rungs=100, reduction=2, width=3),
    "halving": SuccessiveHalving(rungs=(100, 200, 400), reduction=2, width=3),
    "median": MedianStopping(rungs=100, reduction=2, width=3, startup=2),
    "pruned": Pruned(rungs=100, reduction=2, width=3, pruner=MEDIAN),
    "optunas halving": Pruned(
        rungs=100, reduction=2, width=3, pruner=optuna.pruners.SuccessiveHalvingPruner(100, reduction_factor=2)
    ),
    "hyperband": Pruned(rungs=100, reduction=2, width=3, pruner=optuna.pruners.HyperbandPruner(100, 800, 2)),
    "tpe": ASHA(Optuna("tpe", settings=12, width=3), rungs=100, reduction=2, width=3),
}


def known(setting: dict[str, Any], env_steps: int) -> float:
    return SCORES[setting["n_step"] - 1][LADDER.index(env_steps)]


def of_run(prepared: Any, seed: int, env_steps: int) -> float:
    return known({"n_step": prepared.algorithm.n_step}, env_steps)


def naive_asha(width: int, reduction: int = 2) -> list[tuple[int, int]]:
    """Setting and rung of each ask, by the paper's get_job over the table of scores; None waits."""
    asks: list[Any] = []
    new = 0
    while True:
        seen = [ask for ask in asks[: max(len(asks) - width + 1, 0)] if ask]
        for rung in (2, 1, 0):
            here = [s for s, r in seen if r == rung]
            good = sorted((s for s in here if SCORES[s][rung] == SCORES[s][rung]), key=lambda s: (-SCORES[s][rung], s))
            ready = [s for s in good[: len(here) // reduction] if (s, rung + 1) not in asks]
            if ready:
                asks.append((ready[0], rung + 1))
                break
        else:
            if new < 12:
                asks.append((new, 0))
                new += 1
            elif len(seen) < len([ask for ask in asks if ask]):
                asks.append(None)
            else:
                return [ask for ask in asks if ask]


def asked(search: Any) -> list[tuple[int, int]]:
    return [(ask.number, LADDER.index(ask.env_steps)) for ask in played(search, SPACE, known, 800)]


@pytest.mark.parametrize("width", [1, 2, 5, 12, 40])
def test_asha_promotes_as_the_papers_algorithm_does_over_scores_known_in_advance(width: int) -> None:
    assert asked(ASHA(rungs=100, reduction=2, width=width)) == naive_asha(width)


def test_successive_halving_by_hand() -> None:
    # 12 settings; the best 6 of 11 that did not fail: 10 6 7 8 2 3 (2 and 3 share a score); of these at 200 the best 3:
    # 10 (9), 7 (8), 3 (7); at 400 setting 10 failed and one goes on: 7.
    found = asked(SEARCHES["halving"])
    assert found[:12] == [(number, 0) for number in range(12)]
    assert found[12:] == [(10, 1), (6, 1), (7, 1), (8, 1), (2, 1), (3, 1), (10, 2), (7, 2), (3, 2), (7, 3)]


def test_the_median_rule_by_hand() -> None:
    # One ask at a time, at two rungs. Setting 0 and 1: no two others yet, both go on. Setting 2 (5): the median of the
    # running averages 3 and 1 is 2. Setting 3 (5): of 3, 1, 5 it is 3. Setting 4 (2) is worse than that of 3, 1, 5, 5.
    found = asked(MedianStopping(rungs=(100, 200), width=1, startup=2, reduction=2))
    assert found[:12] == [
        (0, 0),
        (0, 1),
        (0, 3),
        (1, 0),
        (1, 1),
        (1, 3),
        (2, 0),
        (2, 1),
        (2, 3),
        (3, 0),
        (3, 1),
        (3, 3),
    ]
    assert found[12:16] == [(4, 0), (5, 0), (6, 0), (6, 1)]
    # At 200 setting 6 has scored 8 at best; averages there are 3.5, 5, 5 and 6: it goes on, though it last scored 1.
    assert found[16] == (6, 3)
    assert (8, 1) in found
    assert (11, 1) not in found


def test_a_pruner_says_what_it_says_in_optunas_own_loop() -> None:
    """The oracle: one setting after the other, as `optimize` with one process has it."""
    for pruner in (MEDIAN, optuna.pruners.SuccessiveHalvingPruner(100, reduction_factor=2),
                   optuna.pruners.HyperbandPruner(100, 800, 2)):  # fmt: skip
        study = optuna.create_study(study_name="daskrl", direction="maximize", pruner=pruner)
        expected = []
        for number in range(12):
            trial = study.ask()
            for rung, steps in enumerate(LADDER):
                expected.append((number, rung))
                score = SCORES[number][rung]
                if score != score:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    break
                trial.report(score, steps)
                if rung < 3 and trial.should_prune():
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                study.tell(trial, SCORES[number][3])
        assert asked(Pruned(rungs=100, reduction=2, width=1, pruner=pruner)) == expected
        assert 12 < len(expected) < 48


@pytest.mark.parametrize("name", SEARCHES)
def test_what_goes_on_depends_neither_on_workers_nor_on_arrival_nor_on_kills(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"space": SPACE, "search": SEARCHES[name], "env_steps": 800}
    one = carried(monkeypatch, tmp_path / "one", of_run, **given)
    many = carried(monkeypatch, tmp_path / "many", of_run, workers=8, order=1, **given)
    assert many.digest() == one.digest()
    assert many.log.asks == one.log.asks
    again, deaths = killed(monkeypatch, tmp_path / "killed", of_run, workers=3, lives=3, **given)
    assert deaths > 3
    assert again.digest() == one.digest()


def test_the_table_has_each_run_once_as_far_as_it_was_taken_and_says_why_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = carried(monkeypatch, tmp_path / "study", of_run, space=SPACE, search=SEARCHES["halving"], env_steps=800)
    table = study.table().set_index("setting")
    assert table.env_steps.to_dict() == {
        0: 100, 1: 100, 2: 200, 3: 400, 4: 100, 5: 100, 6: 200, 7: 800, 8: 200, 9: 100, 10: 400, 11: 100,
    }  # fmt: skip
    assert table.score[7] == 9
    assert table.loc[[7, 2, 0], ["seconds", "queued"]].to_numpy().tolist() == [[4, 2], [2, 1], [1, 0.5]]  # at each rung
    assert table.stopped[7] is None
    assert table.stopped[3] == "at 400: not among the best 1/2"
    assert table.state[10] == "failed"
    assert table.stopped[10] is None
    assert "stopped" not in carried(monkeypatch, tmp_path / "grid", of_run, space=SPACE, env_steps=800).table()


def test_with_few_settings_one_gets_to_the_end() -> None:
    for search in (ASHA(rungs=100, reduction=4, width=2), SuccessiveHalving(rungs=100, reduction=4, width=2)):
        found = played(search, {"n_step": [1, 2, 3]}, lambda s, steps: s["n_step"], 3_200)
        assert [ask.env_steps for ask in found if ask.setting["n_step"] == 3] == [100, 400, 1600, 3200]
        assert len(found) == 6


def test_where_all_fail_a_search_ends() -> None:
    for name, search in SEARCHES.items():
        if name != "tpe":
            assert len(played(search, SPACE, lambda *_: math.nan, 800)) == 12


def test_settings_are_ranked_in_each_environment_so_that_no_unit_decides() -> None:
    space, search = Space({"n_step": [1, 2, 3]}), ASHA(rungs=100, reduction=3, width=1)

    def third(scale: float) -> Any:
        found: list[Any] = []
        for _ in range(3):
            found.append(search.next(space, 900, 0, found, dict.fromkeys(range(len(found)), Result([0, 0]))))
        # Ranks of the three: 2 + 1, 1 + 2 and 0 + 0. The first two share a place; the lower number goes on.
        told = {0: Result([3, 5 * scale]), 1: Result([2, 6 * scale]), 2: Result([1, 1 * scale])}
        return search.next(space, 900, 0, found, told)

    assert [third(scale).number for scale in (1.0, 1e6, 1e-6)] == [0, 0, 0]


def test_more_settings_and_env_steps_extend_a_search_with_rungs_and_run_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slope(prepared: Any, seed: int, env_steps: int) -> float:
        return -abs(math.log10(prepared.algorithm.learning_rate) + 3) * env_steps

    space = {"learning_rate": Range(1e-5, 1e-1, log=True)}

    def search(settings: int) -> ASHA:
        return ASHA(Random(settings), rungs=100, reduction=2, width=2)

    carried(monkeypatch, tmp_path / "study", slope, space=space, search=search(6), env_steps=300)
    more = carried(monkeypatch, tmp_path / "study", slope, space=space, search=search(9), env_steps=900)
    whole = carried(monkeypatch, tmp_path / "whole", slope, space=space, search=search(9), env_steps=900)
    assert more.digest() == whole.digest()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: ASHA(inner=ASHA()), "inner: expected daskrl.study.Grid"),
        (lambda: ASHA(rungs=()), "rungs: expected rising"),
        (lambda: ASHA(rungs=(200, 100)), "rungs: expected rising"),
        (lambda: ASHA(rungs=0), "rungs"),
        (lambda: ASHA(reduction=1), "reduction"),
        (lambda: ASHA(width=0), "width"),
        (lambda: MedianStopping(startup=0), "startup"),
        (lambda: Pruned(), r"pruner=optuna.pruners.MedianPruner\(\)"),
        (lambda: Pruned(pruner=optuna.pruners.WilcoxonPruner()), "equal problem instances"),
    ],
)
def test_a_search_that_cannot_be_is_refused(made: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made()


@pytest.mark.parametrize(
    ("search", "changed", "said"),
    [
        (ASHA(rungs=800), {}, "no run would stop early"),
        (Pruned(rungs=100, pruner=MEDIAN), {"env": ["CartPole-v1", "Acrobot-v1"]}, "takes one environment, got 2"),
        (ASHA(Random(3), rungs=100), {"space": {}}, "nothing to draw"),
    ],
)
def test_a_search_that_does_not_fit_the_study_is_refused_before_there_is_one(
    search: Any, changed: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"space": SPACE, "search": search, "env_steps": 800, **changed}
    with pytest.raises(ConfigError, match=said):
        carried(monkeypatch, tmp_path / "study", of_run, **given)
    assert not (tmp_path / "study").exists()


def make(path: Path, search: Any) -> Study:
    return Study(
        path, algorithm=daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=16, window=1024), env="CartPole-v1",
        space={"learning_rate": [1e-4, 1e-3, 1e-2, 1e-1]}, seeds=2, env_steps=256, score=Greedy(2), streams=2,
        envs_per_stream=2, fragment_steps=16, search=search,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::daskrl.errors.EarlyRungsWarning")
def test_a_run_that_waited_at_rungs_has_the_bits_of_one_that_never_did_here_and_on_workers(tmp_path: Path) -> None:
    asha = ASHA(rungs=64, reduction=2, width=2)
    here = make(tmp_path / "asha", asha).run(progress=False)
    whole = make(tmp_path / "grid", None).run(progress=False)
    table, others = here.table(), whole.table().set_index("run")
    assert {*table.env_steps} == {64, 128, 256}
    ended = table[table.env_steps == 256]
    assert len(ended) == 2
    for row in ended.itertuples():
        assert row.digest == others.digest[row.run]
        assert row.score == others.score[row.run]
    assert table.stopped.isna().sum() == 2
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        there = make(tmp_path / "there", asha).run(client, progress=False)
    assert there.digest() == here.digest()
    assert [ask is None for ask in there.log.asks] == [ask is None for ask in here.log.asks]


# Rounds of 2 x 2 x 16 = 64 transitions; the first that has updates is the one in which the 101st transition comes: the
# second. So a run has had updates in none after 64, and in two after 192; of three, after 256.
EARLY = (
    "rungs: after 64 and 192 env steps a run (learning_rate=0.001) has had updates in 0 and 2 rounds of 64 transitions "
    "(streams x envs_per_stream x fragment_steps), the first of them at 128. Settings hardly differ so early: choose "
    "rungs from 256 on, or smaller rounds."
)


def test_rungs_after_a_few_rounds_are_warned_of_when_the_study_is_made_and_in_all_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made() -> Study:
        return carried(
            monkeypatch, tmp_path / "study", lambda *_: 1.0, algorithm=daskrl.DQN(hidden=(8,), learning_starts=100),
            space={"learning_rate": [1e-3]}, search=ASHA(rungs=(64, 192, 256)), streams=2, envs_per_stream=2,
            fragment_steps=16, env_steps=640,
        )  # fmt: skip

    for _ in range(2):  # made, and opened again
        with pytest.warns(EarlyRungsWarning) as warned:
            study = made()
        assert [str(one.message) for one in warned] == [EARLY]
        assert doubts(study.log) == [EARLY]
        assert doubts(StudyLog.open(tmp_path / "study")) == [EARLY]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"search": ASHA(rungs=256)}, ""),
        ({"search": ASHA(rungs=256), "space": {"fragment_steps": [8, 32]}}, "256 env steps a run .fragment_steps=32"),
        ({"search": MedianStopping(Random(2), rungs=256), "space": {"learning_starts": Range(0, 600)}}, "after 256"),
        ({"search": SuccessiveHalving(rungs=128), "algorithm": daskrl.PPO(hidden=(8,))}, "2 rounds of 64 .*from 192"),
        ({"search": SuccessiveHalving(rungs=192), "algorithm": daskrl.PPO(hidden=(8,))}, ""),
        ({"search": Population(2, interval=128)}, "interval: after 128 env steps"),
        ({"search": ASHA(rungs=128), "env_steps": 200}, "choose more env_steps"),
        ({"search": Random(2)}, ""),
    ],
)
def test_which_rungs_are_early_rests_on_the_rounds_of_the_settings(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {
        "algorithm": daskrl.DQN(hidden=(8,), learning_starts=100), "env": "CartPole-v1", "streams": 2,
        "space": {"learning_rate": [1e-3, 1e-2]}, "seeds": 1, "env_steps": 640, "envs_per_stream": 2, **changed,
    }  # fmt: skip
    if "fragment_steps" not in given["space"]:
        given["fragment_steps"] = 16
    with warnings.catch_warnings(record=True) as warned:
        Study(tmp_path / "study", **given)
    assert len(warned) == bool(said)
    if said:
        assert re.search(said, str(warned[0].message))


def test_where_all_settings_of_a_rung_have_one_score_the_table_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alike_at_first(prepared: Any, seed: int, env_steps: int) -> float:
        return 9.0 if env_steps == 100 else prepared.algorithm.n_step + env_steps

    def table(scored: Any, name: str) -> tuple[Any, list[str]]:
        study = carried(
            monkeypatch, tmp_path / name, scored, space={"n_step": [1, 2, 3, 4]}, env_steps=800,
            search=SuccessiveHalving(rungs=(100, 200), reduction=2),
        )  # fmt: skip
        return study.table(), doubts(study.log)

    found, said = table(alike_at_first, "alike")
    assert found.env_steps.tolist() == [200, 800, 100, 100]  # of those alike the first two went on
    assert found.tied.tolist() == ["all 4 at 100"] * 4
    assert said == [
        "Settings that were compared had the same score (all 4 at 100 env steps): those of lower numbers count as "
        "better there, which says nothing of them."
    ]
    others, said = table(lambda prepared, *_: prepared.algorithm.n_step, "others")
    assert "tied" not in others
    assert said == []


def test_waiting_is_no_ask() -> None:
    search = ASHA(rungs=100, reduction=2, width=4)
    space = Space({"n_step": [1]})
    first = search.next(space, 800, 0, [], {})
    assert search.next(space, 800, 0, [first], {}) is WAIT
    assert search.next(space, 800, 0, [first, WAIT], {}) is WAIT
