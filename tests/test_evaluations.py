"""Evaluation while a run trains: beside it, never in it. Same bits, and the returns that `daskrl.evaluate` gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

import daskrl
from daskrl import clusters, errors, schedule, sinks
from daskrl.cli import commands as cli
from daskrl.store.progress import Evaluated, Progress
from daskrl.tasks import evaluations
from daskrl.watching.figures import rows
from daskrl.watching.watch import Reader, line
from tests.promise import SETTINGS, Once, kill_self, start

EVALUATED: dict[str, Any] = {"evaluate_every": 5, "evaluate_episodes": 4, "weights_every": 100}


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return start(tmp_path_factory.mktemp("plain") / "run").wait().store.digest()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Run:
    made = start(tmp_path_factory.mktemp("evaluated") / "run", **EVALUATED)
    made.seen = list(made)  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with clusters.local(2) as made, Client(made) as client:
        yield client


def results(store: daskrl.Store) -> list[tuple[int, list[float], list[int]]]:
    return [(record["version"], record["returns"], record["lengths"]) for record in store.evaluations()]


def test_an_evaluation_is_what_evaluate_gives_of_that_version_and_changes_no_bit(run: daskrl.Run, digest: str) -> None:
    assert run.finished
    assert run.store.digest() == digest
    assert [record["version"] for record in run.store.evaluations()] == [0, 5, 10, 12]
    assert run.store.weights_versions() == [0, 5, 10, 12]
    for version, returns, lengths in results(run.store):
        alone = daskrl.evaluate(run.store, version=version, episodes=4)
        assert (list(alone.returns), list(alone.lengths)) == (returns, lengths)
    assert {record["limited"] for record in run.store.evaluations()} == {0}


def test_the_best_version_is_named_and_its_weights_are_kept(run: daskrl.Run, tmp_path: Path) -> None:
    means = {version: float(np.mean(returns)) for version, returns, _ in results(run.store)}
    best = run.store.best()
    assert best is not None
    assert best.mean == max(means.values())
    assert best.version == min(version for version, mean in means.items() if mean == best.mean)
    assert run.store.weights("best")[0] == best.version
    assert daskrl.evaluate(run.store, version="best", episodes=4).mean == best.mean
    begun = start(tmp_path / "run", init=run.store, init_version="best")
    assert begun.store.config.init is not None
    assert begun.store.config.init["version"] == best.version
    summary = run.store.summary()
    assert (summary["best_version"], summary["best_return"]) == tuple(best)


def test_of_equal_means_the_earliest_version_is_the_best_and_a_failed_evaluation_is_none() -> None:
    progress = Progress([0])
    for version, returns in ((0, [1.0]), (3, [4.0, 2.0]), (6, []), (9, [3.0])):
        progress.take({"kind": "evaluation", "version": version, "returns": returns})
    assert progress.best == Evaluated(3, 3.0)
    assert progress.evaluation == Evaluated(9, 3.0)
    assert Progress([0]).best is None


def test_reports_watch_and_sinks_have_the_newest_and_the_best(run: daskrl.Run) -> None:
    reports = run.seen  # type: ignore[attr-defined]
    assert reports[0].evaluation_return is None
    last, best = reports[-1], run.store.best()
    assert best is not None
    assert last.evaluation_version == 12
    assert last.evaluation_return == float(np.mean(run.store.evaluations()[-1]["returns"]))
    assert (last.best_version, last.best_return) == tuple(best)
    assert last.loss is not None
    assert sinks.numbers(last)["evaluation_return"] == last.evaluation_return
    assert "evaluation_return" not in sinks.numbers(reports[0])
    figures = Reader(run.store).read()
    assert figures.finished
    assert (figures.best_version, figures.best_return) == tuple(best)
    assert rows(figures, 0.0)["evaluation"].endswith("(version 12)")
    assert f"(version {best.version})" in rows(figures, 0.0)["best"]
    assert "best" in line(figures)


def test_a_run_that_is_not_evaluated_says_nothing_of_it(tmp_path: Path) -> None:
    run = start(tmp_path / "run", env_steps=128).wait()
    assert run.store.evaluations() == []
    assert run.store.best() is None
    assert "best_version" not in run.store.summary()
    assert "evaluation" not in rows(Reader(run.store).read(), 0.0)
    with pytest.raises(errors.ConfigError, match=r"no version was evaluated\. Train with evaluate_every="):
        daskrl.evaluate(run.store, version="best")


def test_however_often_it_is_interrupted_an_evaluation_gives_the_same(
    run: daskrl.Run, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "AT_A_TIME", -1.0)  # a step at a time
    other = start(tmp_path / "run", **EVALUATED).wait()
    assert results(other.store) == results(run.store)
    assert other.store.digest() == digest


def test_on_workers_the_evaluations_and_the_digest_are_those_of_one_process(
    run: daskrl.Run, digest: str, cluster: Client, tmp_path: Path
) -> None:
    other = start(tmp_path / "run", client=cluster, **EVALUATED).wait()
    assert other.finished
    assert results(other.store) == results(run.store)
    assert other.store.digest() == digest


class DyingWhenGreedy(daskrl.DQN):  # type: ignore[misc, valid-type]
    """DQN whose greedy policy kills its process, once for each name."""

    once_in: str = ""

    def act(self, policy: Any, moment: Any) -> Any:
        if moment.greedy and any(Once(f"{self.once_in}/{name}")() for name in "ab"):
            kill_self()
        return super().act(policy, moment)


def test_a_worker_lost_while_it_evaluates_is_made_up_for(
    run: daskrl.Run, digest: str, cluster: Client, tmp_path: Path
) -> None:
    algorithm = DyingWhenGreedy(**SETTINGS)
    object.__setattr__(algorithm, "once_in", str(tmp_path))
    other = start(tmp_path / "run", algorithm=algorithm, client=cluster, **EVALUATED).wait()
    assert (tmp_path / "b").exists()
    assert results(other.store) == results(run.store)
    assert other.store.digest() == digest


def test_evaluations_that_a_stopped_run_did_not_make_are_made_up_for(
    run: daskrl.Run, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "AT_A_TIME", -1.0)
    other = start(tmp_path / "run", **EVALUATED)
    for report in other:
        if report.weights_version == 10:
            break
    assert len(other.store.evaluations()) < 3
    monkeypatch.undo()
    again = daskrl.resume(tmp_path / "run", progress=False)
    assert not again.finished
    again.wait()
    assert again.store.digest() == digest
    assert results(again.store) == results(run.store)


def test_a_run_that_is_only_evaluated_any_more_is_not_finished_and_can_be_stopped(
    run: daskrl.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations, "AT_A_TIME", -1.0)
    other = start(tmp_path / "run", **EVALUATED)
    for report in other:
        if report.weights_version == 12:
            break
    assert not other.finished
    assert not Reader(other.store).read().finished
    monkeypatch.undo()
    assert other.wait().finished
    assert results(other.store) == results(run.store)


def test_asked_for_later_what_is_kept_is_evaluated(tmp_path: Path) -> None:
    made = start(tmp_path / "run").wait()
    assert made.store.weights_versions() == [0, 4, 8, 12]
    assert daskrl.resume(tmp_path / "run").finished
    more = daskrl.resume(tmp_path / "run", evaluate_every=8, evaluate_episodes=2, progress=False)
    assert not more.finished
    more.wait()
    assert [record["version"] for record in more.store.evaluations()] == [0, 8, 12]
    assert {len(record["returns"]) for record in more.store.evaluations()} == {2}
    assert daskrl.resume(tmp_path / "run").finished  # the options are kept


class Unplayable(daskrl.DQN):  # type: ignore[misc, valid-type]
    def act(self, policy: Any, moment: Any) -> Any:
        if moment.greedy:
            raise RuntimeError("nobody plays")
        return super().act(policy, moment)


def test_an_evaluation_that_fails_is_said_and_recorded_and_the_run_goes_on(digest: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"version 0 could not be evaluated, and the run goes on: .*nobody plays"):
        run = start(tmp_path / "run", algorithm=Unplayable(**SETTINGS), **EVALUATED).wait()
    assert run.finished
    assert run.store.digest() == digest
    assert all("nobody plays" in record["error"] for record in run.store.evaluations())
    assert run.store.best() is None
    assert rows(Reader(run.store, run.algorithm).read(), 0.0)["run"] == "finished"


def test_what_is_due_follows_from_what_is_committed_alone() -> None:
    def due(*given: Any) -> list[int]:
        return [task.version for task in schedule.evaluations_due(*given)]

    assert due(0, 12, 12, {0, 4, 8, 12}, ()) == []
    assert due(4, 12, 9, {0, 3, 4, 8, 12}, {0}) == [4, 8]
    assert due(5, 12, 12, {0, 5, 7, 12}, {0, 5}) == [12]  # the last one, too
    assert due(5, 20, 12, {0, 5, 12}, {0, 5}) == []  # 12 was the last of a smaller budget
    assert due(1, 3, 3, {0, 3}, ()) == [0, 3]  # 1 and 2 are not kept
    assert schedule.to_evaluate(4, 10, 8)
    assert schedule.to_evaluate(4, 10, 10)
    assert not schedule.to_evaluate(4, 10, 9)
    assert not schedule.to_evaluate(0, 10, 10)


@pytest.mark.parametrize(
    ("given", "name"), [({"evaluate_every": -1}, "evaluate_every"), ({"evaluate_episodes": 0}, "evaluate_episodes")]
)
def test_a_wrong_number_is_refused(tmp_path: Path, given: dict[str, int], name: str) -> None:
    with pytest.raises(errors.ConfigError, match=name):
        start(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_the_command_line_evaluates_as_it_goes_and_plays_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"{name}={value}" for name, value in SETTINGS.items()]
    store = tmp_path / "run"
    cli.train(
        "CartPole-v1", store=store, env_steps=512, workers=0, set_=settings, streams=4, envs_per_stream=2,
        fragment_steps=16, evaluate_every=2, evaluate_episodes=3, episodes=0, as_json=True,
    )  # fmt: skip
    summary = json.loads(capsys.readouterr().out)
    best = daskrl.Store.open(store).best()
    assert best is not None
    assert (summary["best_version"], summary["best_return"]) == tuple(best)
    cli.evaluate(store, version="best", episodes=3, as_json=True)
    played = json.loads(capsys.readouterr().out)
    assert (played["weights_version"], played["mean"]) == tuple(best)
    with pytest.raises(errors.ConfigError, match="expected a number or 'best', got 'worst'"):
        cli.evaluate(store, version="worst")
    cli.resume(store, workers=0, env_steps=640, evaluate_every=1, episodes=0, as_json=True)
    capsys.readouterr()
    assert [record["version"] for record in daskrl.Store.open(store).evaluations()] == [0, 2, 4, 5]
