"""Optuna's samplers in a study: what they suggest is the same on any pool, after any kill, whatever arrives first."""

from __future__ import annotations

import functools
import importlib.metadata
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from distributed import Client, LocalCluster

import daskrl
from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.study import Greedy, Optuna, Range, Study, When
from daskrl.study.search import Ask, Result, comparable
from daskrl.study.space import Space
from tests.asks import carried, killed, played

optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE: dict[str, Any] = {"learning_rate": Range(1e-5, 1e-1, log=True), "n_step": Range(1, 9)}
MULTIVARIATE = functools.partial(optuna.samplers.TPESampler, n_startup_trials=4, multivariate=True)
SAMPLERS = {
    "tpe": functools.partial(optuna.samplers.TPESampler, n_startup_trials=4),
    "multivariate": MULTIVARIATE,
    "cmaes": functools.partial(optuna.samplers.CmaEsSampler, popsize=3),
    "qmc": "qmc",
    "nsgaii": functools.partial(optuna.samplers.NSGAIISampler, population_size=4),
    "grid": lambda seed: optuna.samplers.GridSampler(
        {"learning_rate": [1e-4, 1e-3, 1e-2], "n_step": [1, 2, 3, 4, 5]}, seed=seed
    ),
    "fixed": lambda seed: optuna.samplers.PartialFixedSampler({"n_step": 2}, optuna.samplers.QMCSampler(seed=seed)),
}


def bowl(setting: dict[str, Any], env_steps: int) -> float:
    return -((math.log10(setting["learning_rate"]) + 3) ** 2) - (setting["n_step"] - 4) ** 2 / 8


def of_run(prepared: Any, seed: int, env_steps: int) -> float:
    return bowl(vars(prepared.algorithm), env_steps) + seed


@pytest.mark.parametrize("name", SAMPLERS)
def test_suggestions_depend_neither_on_workers_nor_on_arrival_nor_on_kills(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"space": SPACE, "search": Optuna(SAMPLERS[name], settings=12, width=4), "seeds": 2}
    one = carried(monkeypatch, tmp_path / "one", of_run, **given)
    assert len(one.table()) == 24
    assert one.table().score.notna().all()
    for order, workers in enumerate((3, 8)):
        many = carried(monkeypatch, tmp_path / f"many {order}", of_run, workers=workers, order=order, **given)
        assert many.digest() == one.digest()
        assert [ask["setting"] for ask in many.log.asks] == [ask["setting"] for ask in one.log.asks]
    again, deaths = killed(monkeypatch, tmp_path / "killed", of_run, workers=5, lives=2, **given)
    assert deaths > 5
    assert again.digest() == one.digest()


@pytest.mark.parametrize("name", ["tpe", "cmaes", "nsgaii"])
def test_a_sampler_learns_from_results(name: str) -> None:
    found = played(Optuna(SAMPLERS[name], settings=40, width=2), SPACE, bowl, 100)
    scores = [bowl(dict(ask.setting), 100) for ask in found]
    assert sum(scores[-10:]) / 10 > sum(scores[:4]) / 4
    blind = played(Optuna(SAMPLERS[name], settings=40, width=40), SPACE, bowl, 100)
    assert [ask.setting for ask in blind[:2]] == [ask.setting for ask in found[:2]]
    assert [ask.setting for ask in blind] != [ask.setting for ask in found]


def test_one_ask_at_a_time_from_one_sampler_made_anew_is_what_optuna_itself_suggests() -> None:
    """The oracle: Optuna's own loop, whose sampler is made anew with that seed before each ask."""
    from daskrl import seeding

    asked = played(Optuna(MULTIVARIATE, settings=12, width=1), SPACE, bowl, 100, seed=5)
    study = optuna.create_study(direction="maximize")
    for number in range(12):
        seed = int(seeding.sequence(5, "study", number).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=4, multivariate=True, seed=seed)
        trial = study.ask()
        setting = {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True),
                   "n_step": trial.suggest_int("n_step", 1, 9)}  # fmt: skip
        assert asked[number].setting == setting
        study.tell(trial, bowl(setting, 100))


@pytest.mark.parametrize(
    ("name", "made"),
    [("cmaes", functools.partial(optuna.samplers.CmaEsSampler, popsize=3)),
     ("nsgaii", functools.partial(optuna.samplers.NSGAIISampler, population_size=4)),
     ("qmc", optuna.samplers.QMCSampler)],
)  # fmt: skip
def test_samplers_that_write_down_a_state_go_on_from_it_as_in_one_study_of_optunas(name: str, made: Any) -> None:
    from daskrl import seeding

    asked = played(Optuna(SAMPLERS[name], settings=14, width=1), SPACE, bowl, 100)
    study = optuna.create_study(direction="maximize")
    for number in range(14):
        place = 0 if name == "qmc" else number
        study.sampler = made(seed=int(seeding.sequence(0, "study", place).generate_state(1)[0]))
        trial = study.ask()
        setting = {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True),
                   "n_step": trial.suggest_int("n_step", 1, 9)}  # fmt: skip
        assert asked[number].setting == setting
        study.tell(trial, bowl(setting, 100))


def test_a_sobol_sequence_goes_on_and_a_grid_of_optunas_has_each_point_once() -> None:
    sobol = [ask.setting for ask in played(Optuna("qmc", settings=17, width=3), {"a": Range(0.0, 1.0)}, _zero, 100)]
    assert sorted(int(setting["a"] * 16) for setting in sobol[1:]) == [*range(16)]  # the first is drawn at random
    grid = played(Optuna(SAMPLERS["grid"], settings=15, width=3), SPACE, bowl, 100)
    points = {(ask.setting["learning_rate"], ask.setting["n_step"]) for ask in grid}
    assert points == {(rate, steps) for rate in (1e-4, 1e-3, 1e-2) for steps in (1, 2, 3, 4, 5)}


def _zero(setting: dict[str, Any], env_steps: int) -> float:
    return 0.0


def test_a_setting_whose_run_failed_is_told_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(prepared: Any, seed: int, env_steps: int) -> float:
        return math.nan if prepared.algorithm.n_step < 5 else of_run(prepared, seed, env_steps)

    given = {"space": SPACE, "search": Optuna(MULTIVARIATE, settings=24, width=2)}
    study = carried(monkeypatch, tmp_path / "one", half, **given)
    assert study.digest() == carried(monkeypatch, tmp_path / "two", half, workers=2, order=3, **given).digest()
    assert {*study.table().state} == {"finished", "failed"}
    assert (study.table().n_step[study.table().state == "failed"] < 5).all()


def test_a_setting_that_is_suggested_again_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"space": {"n_step": [1, 2]}, "search": Optuna("random", settings=9, width=6)}
    one = carried(monkeypatch, tmp_path / "one", lambda p, seed, steps: float(p.algorithm.n_step), **given)
    assert len(one.log.asks) == 9
    assert sorted(one.table().n_step) == [1, 2]
    many = carried(monkeypatch, tmp_path / "many", lambda p, *_: float(p.algorithm.n_step), workers=5, order=1, **given)
    assert many.digest() == one.digest()


def test_optunas_distributions_lists_of_anything_and_conditions_are_suggested() -> None:
    space = {
        "hidden": [(8,), (8, 8), (16,)],
        "double": [True, 1, "1", None],
        "tau": optuna.distributions.FloatDistribution(0.0, 1.0, step=0.25),
        "target": optuna.distributions.IntDistribution(10, 1000, log=True),
        "kind": optuna.distributions.CategoricalDistribution(["a", "b"]),
        "only_a": When({"kind": "a"}, optuna.distributions.IntDistribution(0, 30, step=10)),
    }
    found = [
        ask.setting for ask in played(Optuna(MULTIVARIATE, settings=40, width=2), space, lambda s, _: s["tau"], 100)
    ]
    assert {setting["hidden"] for setting in found} <= {(8,), (8, 8), (16,)}
    assert {type(setting["double"]) for setting in found} >= {bool, int, str}
    assert {setting["tau"] for setting in found} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert all(isinstance(setting["target"], int) and 10 <= setting["target"] <= 1000 for setting in found)
    for setting in found:
        assert ("only_a" in setting) == (setting["kind"] == "a")
        assert setting.get("only_a", 0) in (0, 10, 20, 30)


def test_scores_of_several_environments_count_by_their_ranks() -> None:
    # Ranks in the first: 0, 1, 2; in the second 2, 1, 0 with shared places. By hand, of two steps between three.
    results = [Result([-500.0, 1.0]), Result([-100.0, 0.5]), Result([-90.0, 0.5]), Result([math.nan, 9.0])]
    levels = comparable(results)
    assert levels[:3] == [(0 + 2) / 2 / 2, (1 + 0.5) / 2 / 2, (2 + 0.5) / 2 / 2]
    assert math.isnan(levels[3])
    assert comparable([1.0, Result([2.0])]) == [1.0, 2.0]
    assert comparable([]) == []
    assert comparable([Result([1.0, 2.0])]) == [0.0]


def test_a_sampler_of_a_study_in_several_environments_is_told_an_order() -> None:
    space, search = Space(SPACE), Optuna(MULTIVARIATE, settings=20, width=1)

    def asked(scale: float) -> list[Any]:
        found: list[Any] = []
        told: dict[int, float] = {}
        for number in range(20):
            ask = search.next(space, 100, 0, found, told)
            assert isinstance(ask, Ask)
            told[number] = Result([bowl(dict(ask.setting), 100), scale * ask.setting["n_step"]])
            found.append(ask)
        return [ask.setting for ask in found]

    assert asked(1.0) == asked(1e6)  # another unit of one environment changes nothing


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        (optuna.samplers.TPESampler(), r"Type: Optuna\(optuna.samplers.TPESampler\)"),
        (functools.partial(optuna.samplers.TPESampler, seed=1), "Leave seed= out"),
        ("tpee", "one of tpe, cmaes"),
        (optuna.samplers.PartialFixedSampler, "a function of a seed"),
        (lambda seed: seed, "expected a sampler of Optuna's"),
        (functools.partial(optuna.samplers.TPESampler, constraints_func=print), "constraints_func"),
        (3, "an instance of int"),
    ],
)
def test_what_makes_no_sampler_is_refused_with_what_to_type(sampler: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        Study(
            tmp_path / "study", algorithm=daskrl.DQN, env="CartPole-v1", space=SPACE, env_steps=64,
            search=Optuna(sampler, settings=3),
        )  # fmt: skip
    assert not (tmp_path / "study").exists()


def test_a_study_keeps_the_versions_of_what_suggests_and_its_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"space": SPACE, "search": Optuna("cmaes", settings=2, width=1)}
    study = carried(monkeypatch, tmp_path / "study", of_run, **given)
    versions = study.log.definition["versions"]
    assert versions["optuna"] == optuna.__version__
    assert "cmaes" in versions
    assert study.log.arithmetic["versions"] == {}  # of the workers, which need neither
    for changed in (Optuna("tpe", settings=2, width=1), Optuna("cmaes", settings=2, width=2)):
        with pytest.raises(StoreMismatchError, match="search"):
            carried(monkeypatch, tmp_path / "study", of_run, space=SPACE, search=changed)
    more = carried(monkeypatch, tmp_path / "study", of_run, space=SPACE, search=Optuna("cmaes", settings=4, width=1))
    assert len(more.table()) == 4
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "optuna" else version(name))
    with pytest.raises(StoreMismatchError, match=r"versions.optuna: 0.0 .study: 5"):
        carried(monkeypatch, tmp_path / "study", of_run, **given)


def test_real_workers_and_one_process_get_the_same_suggestions(tmp_path: Path) -> None:
    def make(name: str) -> Study:
        return Study(
            tmp_path / name, algorithm=daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=16, window=1024),
            env="CartPole-v1", space=SPACE, seeds=1, env_steps=128, score=Greedy(2), streams=2, envs_per_stream=2,
            fragment_steps=16, search=Optuna(MULTIVARIATE, settings=8, width=3),
        )  # fmt: skip

    here = make("here").run(progress=False)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        there = make("there").run(client, progress=False)
    assert there.digest() == here.digest()
    assert len({*here.table().learning_rate}) == 8
