"""A study whose processes are killed at the worst moments: nothing is lost, done twice or given up."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import pytest
from distributed import Client, WorkerPlugin
from gymnasium.envs.classic_control import CartPoleEnv

import daskrl
from daskrl import clusters
from daskrl.errors import StoreLockedError
from daskrl.store import pack as packing
from daskrl.store.places import place
from daskrl.study import Study, outcomes
from daskrl.study.log import StudyLog
from tests.studies import small

COLUMNS = ["setting", "seed", "state", "score", "digest"]


def make(path: Path | str, **changed: Any) -> Study:
    return small(path, **{"env_steps": 128, **changed})


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with clusters.local(1) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that nobody disturbed."""
    return make(tmp_path_factory.mktemp("study") / "here").run(progress=False)


class Killed(BaseException):
    """Nothing of daskrl catches it, as nothing catches a SIGKILL."""


@pytest.fixture
def counted(tmp_path: Path) -> tuple[Any, Any]:
    """A score, and how often it scored which run."""

    def score(store: daskrl.Store) -> float:
        with (tmp_path / "scored").open("a") as file:
            file.write(store.run_id + "\n")
        return daskrl.evaluate(store, episodes=2).mean

    return score, lambda: sorted(Counter((tmp_path / "scored").read_text().split()).values())


def test_a_run_whose_process_is_killed_once_it_is_scored_is_not_scored_again(
    here: Study, tmp_path: Path, counted: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    score, times = counted
    study = make(tmp_path / "study", score=score)
    append = StudyLog.append

    def die(store: daskrl.Store) -> None:
        raise Killed

    def append_or_die(log: StudyLog, records: Any) -> None:
        if len(list((tmp_path / "study" / "runs").glob("*.zip"))) == 2:
            raise Killed
        append(log, records)

    with monkeypatch.context() as patch:  # while the first run is packed
        patch.setattr(packing, "pack", die)
        with pytest.raises(Killed):
            study.run(progress=False)
    with monkeypatch.context() as patch:  # before the study's log has what came of the second
        patch.setattr(StudyLog, "append", append_or_die)
        with pytest.raises(Killed):
            make(tmp_path / "study", score=score).run(progress=False)
    study = make(tmp_path / "study", score=score).run(progress=False)
    assert study.table()[COLUMNS].equals(here.table()[COLUMNS])
    assert times() == [1, 1, 1, 1]
    assert len(list((tmp_path / "study" / "runs").iterdir())) == 4


def test_what_is_kept_of_a_run_counts_for_the_score_that_gave_it_and_only_if_it_is_whole(tmp_path: Path) -> None:
    storage = place(tmp_path)
    record: Any = {"kind": "trial", "trial": "abc", "env_steps": 64, "score": 1.5, "seconds": 0.1, "worker": "here"}
    outcomes.keep(storage, record, "greedy")
    assert outcomes.kept(storage, "abc", 64, "greedy") == record
    for other in (("abc", 64, "auc"), ("abd", 64, "greedy"), ("abc", 128, "greedy")):
        assert outcomes.kept(storage, *other) is None
    file = tmp_path / ".scored" / "64.json"
    file.write_bytes(file.read_bytes().replace(b"1.5", b"2.5"))
    assert outcomes.kept(storage, "abc", 64, "greedy") is None


def test_what_came_of_a_run_is_not_lost_with_its_worker(
    here: Study, tmp_path: Path, counted: tuple[Any, Any], client: Client
) -> None:
    score, times = counted
    client.register_plugin(KilledAfter(str(tmp_path / "killed")), name="killed-after")
    try:
        study = make(tmp_path / "study", score=score).run(client, progress=False)
    finally:
        client.unregister_worker_plugin("killed-after")
    assert (tmp_path / "killed").exists()
    assert study.table()[COLUMNS].equals(here.table()[COLUMNS])
    assert times() == [1, 1, 1, 1]


class KilledAfter(WorkerPlugin):
    """The worker that first has the result of a run is killed with it."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def transition(self, key: Any, start: str, finish: str, **given: Any) -> None:
        if finish == "memory" and key[0] == "study" and not os.path.exists(self.mark):
            with open(self.mark, "x"):
                os.kill(os.getpid(), signal.SIGKILL)


class Deadly(CartPoleEnv):
    """Its process is killed after 160 steps, five times."""

    steps = 0

    def step(self, action: Any) -> Any:
        Deadly.steps += 1
        marks = Path(os.environ["DEADLY"])
        if Deadly.steps == 160 and len(list(marks.iterdir())) < 5:
            (marks / uuid.uuid4().hex).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def deadly() -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TimeLimit(Deadly(), 500)


def test_a_run_that_gets_on_is_not_given_up_however_often_it_loses_its_worker(tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    with (
        mock.patch.dict(os.environ, {"DEADLY": str(tmp_path / "marks")}),
        clusters.local(1) as cluster,
        Client(cluster) as client,
    ):
        cluster.scheduler.allowed_failures = 0  # each death comes back to the study
        study = make(tmp_path / "study", env=deadly, seeds=1, env_steps=512, space={}).run(client, progress=False)
    assert study.table().state.tolist() == ["finished"]
    assert len(list((tmp_path / "marks").iterdir())) == 5


def test_a_run_that_another_process_packs_meanwhile_is_no_failed_run(here: Study, tmp_path: Path) -> None:
    packed = tmp_path / "packed"

    def score(store: daskrl.Store) -> float:
        if not packed.exists():
            packed.touch()
            daskrl.pack(str(store.storage))  # as a worker does that its driver lost
            store.read(store.fragments()[0])
        return daskrl.evaluate(store, episodes=2).mean

    study = make(tmp_path / "study", score=score)
    with pytest.raises(StoreLockedError, match="by another process"):
        study.run(progress=False)
    assert study.run(progress=False).table()[COLUMNS].equals(here.table()[COLUMNS])


def test_runs_that_another_process_has_hold_up_no_others(
    here: Study, tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(tmp_path / "study")
    held = []
    for run in here.table().run[:2]:  # as many as there are workers
        (tmp_path / "study" / run).parent.mkdir(exist_ok=True)
        shutil.copy(f"{here.log.storage}/{run}.zip", tmp_path / "study" / f"{run}.zip")
        held.append(daskrl.unpack(tmp_path / "study" / run))
        held[-1].lock()
    others, append = threading.Event(), StudyLog.append

    def appended(log: StudyLog, records: Any) -> None:
        append(log, records)
        if len(log.results) == 2:
            others.set()

    monkeypatch.setattr(StudyLog, "append", appended)
    carrying = threading.Thread(target=study.run, args=(client,), kwargs={"progress": False})
    carrying.start()
    try:
        assert others.wait(120)
        assert {f"runs/{trial}" for trial, _ in study.log.results} == set(here.table().run[2:])
    finally:
        for store in held:
            store.unlock()
        carrying.join()
    assert study.table()[COLUMNS].equals(here.table()[COLUMNS])


def test_a_run_that_is_one_task_learns_little_again(tmp_path: Path) -> None:
    study = make(tmp_path / "study", seeds=1, space={}, env_steps=640).run(progress=False, pack=False)
    learned = daskrl.Store.open(tmp_path / "study" / study.table().run[0]).records("learn")
    # A round is 64 env steps, and 256 of them at most are learned again.
    assert [record["version"] for record in learned if record["checkpoint"]] == [4, 8, 10]
