"""A run that is asked to stop leaves a checkpoint of where it stands: whoever resumes learns nothing again."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import Client

import daskrl
from daskrl import clusters, errors
from daskrl.algorithms.replay import ReplayLearner
from daskrl.replay.window import Batch
from tests.promise import SETTINGS, Once, Troubled, records, start


class CountedDQN(daskrl.DQN):  # type: ignore[misc, valid-type]
    """DQN that makes a mark in a file for each gradient update, wherever it is made."""

    marks: str = ""

    def update(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        with Path(self.marks).open("a") as file:
            file.write(f"{learner.updates}\n")
        return super().update(learner, batch)


def counted(place: Path) -> CountedDQN:
    place.mkdir(exist_ok=True)
    algorithm = CountedDQN(**SETTINGS)
    object.__setattr__(algorithm, "marks", str(place / "marks"))
    return algorithm


def updates(place: Path) -> list[int]:
    return [int(line) for line in (place / "marks").read_text().splitlines()]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Client]:
    with clusters.local(2) as made, Client(made) as client:
        yield client


@pytest.fixture(params=["in-process", "cluster"])
def client(request: pytest.FixtureRequest) -> Any:
    return None if request.param == "in-process" else request.getfixturevalue("cluster")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[str, list[int]]]:
    """Digest and updates of the run, by lag."""
    found = {}
    for lag in (0, 1, 4):
        place = tmp_path_factory.mktemp("never")
        digest = start(place / "run", algorithm=counted(place), lag=lag, checkpoint_every=100).wait().store.digest()
        found[lag] = (digest, updates(place))
    return found


@pytest.mark.parametrize("lag", [0, 1, 4])
def test_a_run_stopped_twice_makes_each_update_once_and_has_the_digest_of_one_never_stopped(
    client: Any, tmp_path: Path, lag: int, never_stopped: dict[int, tuple[str, list[int]]]
) -> None:
    digest, once = never_stopped[lag]
    algorithm = counted(tmp_path)
    run = start(tmp_path / "run", algorithm=algorithm, lag=lag, client=client, checkpoint_every=100)
    for when in (4, 8):
        for report in run:
            if report.weights_version == when:
                run.stop()
        assert not run.finished
        *_, learned = run.store.records("learn")
        *_, made = run.store.records("checkpoint")
        assert made["version"] == learned["version"] >= when
        assert (tmp_path / "run" / made["checkpoint"][0]).exists()
        assert run.store.weights_versions()[-1] == made["version"]
        run = daskrl.resume(tmp_path / "run", algorithm=algorithm, client=client, progress=False)
    assert run.wait().store.digest() == digest
    assert updates(tmp_path) == once


def test_a_stop_from_another_thread_ends_a_loop_that_waits(client: Any, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client)
    seen = threading.Event()
    stopper = threading.Thread(target=lambda: (seen.wait(), run.stop()))
    stopper.start()
    for _ in run:
        seen.set()
    stopper.join()
    assert not run.finished or records(tmp_path / "run")[-1]["kind"] == "learn"


def test_a_stop_before_the_loop_ends_it_at_once_and_the_next_goes_on(client: Any, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client)
    run.stop()
    assert not run.wait().finished
    assert not run.store.fragments()
    assert run.wait().finished


def test_a_finished_run_has_no_checkpoint_of_a_stop(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    for report in run:
        if report.weights_version == 12:
            run.stop()
    assert run.finished
    assert {record["kind"] for record in records(tmp_path / "run")} == {
        "created",
        "budget",
        "arithmetic",
        "fragment",
        "learn",
    }


def bits(store: daskrl.Store, version: int | None = None) -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {name: array.tobytes() for name, array in store.weights(version)[1].items()}


@pytest.fixture(scope="module")
def every_version(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Store:
    return start(tmp_path_factory.mktemp("every") / "run", weights_every=1).wait().store


@pytest.mark.parametrize("how", ["stop", "break", "error"])
def test_the_weights_that_a_stopped_run_reached_are_those_of_a_run_that_keeps_every_version(
    client: Any, tmp_path: Path, every_version: daskrl.Store, how: str
) -> None:
    run = start(tmp_path / "run", client=client, weights_every=100)
    try:
        for report in run:
            if report.weights_version == 5:
                if how == "stop":
                    run.stop()
                elif how == "break":
                    break
                else:
                    raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    stopped = daskrl.Store.open(tmp_path / "run")
    reached = stopped.published()
    assert 5 <= reached < 12
    assert stopped.weights_versions() == [0, reached]
    assert bits(stopped) == bits(every_version, reached)
    evaluation = daskrl.evaluate(stopped, episodes=2)
    assert evaluation.weights_version == evaluation.published_version == reached
    digest = stopped.digest()
    assert digest == daskrl.Store.open(tmp_path / "run").digest()
    resumed = daskrl.resume(tmp_path / "run", client=client, progress=False).wait()
    assert resumed.store.digest() == every_version.digest()
    assert resumed.store.weights_versions() == [0, reached, 12]


def test_weights_that_are_kept_already_are_not_written_again_by_a_stop(client: Any, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client, weights_every=1)
    for report in run:
        if report.weights_version == 5:
            run.stop()
    (made,) = run.store.records("checkpoint")
    assert made["weights"] is None
    assert run.store.weights_versions() == list(range(made["version"] + 1))


def test_ctrl_c_in_the_midst_of_learning_keeps_the_version_before(tmp_path: Path, every_version: daskrl.Store) -> None:
    class Interrupted(daskrl.DQN):  # type: ignore[misc, valid-type]
        def update(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
            if learner.updates == 150 and Once(tmp_path / "once")():
                raise KeyboardInterrupt
            return super().update(learner, batch)

    run = start(tmp_path / "run", algorithm=Interrupted(**SETTINGS), weights_every=100)
    with pytest.raises(KeyboardInterrupt):
        run.wait()
    reached = run.store.published()
    assert reached > 0
    (made,) = run.store.records("checkpoint")
    assert (made["version"], made["checkpoint"]) == (reached, None)
    assert bits(run.store) == bits(every_version, reached)
    resumed = daskrl.resume(tmp_path / "run", algorithm=Interrupted(**SETTINGS), progress=False).wait()
    assert resumed.store.digest() == every_version.digest()


def test_an_environment_that_raises_keeps_nothing_more(tmp_path: Path) -> None:
    def trouble() -> None:
        raise ValueError("no")

    def make() -> Troubled:
        return Troubled(100, Once(tmp_path / "once"), trouble)

    run = start(tmp_path / "run", make, weights_every=100)
    with pytest.raises(errors.EnvironmentRaisedError):
        run.wait()
    assert not list(run.store.records("checkpoint"))


def test_older_weights_are_never_taken_without_a_word(
    client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on, and one whose driver was killed: the newest version published is not on disk."""
    from daskrl.cli import commands as cli

    store = tmp_path / "run"
    for report in start(store, client=client, weights_every=100):
        if report.weights_version == 5:
            with pytest.warns(UserWarning, match=r"version 0 is the newest kept, version \d+ the newest published"):
                live = daskrl.evaluate(store, episodes=2)
            assert live.weights_version == 0
            assert live.published_version is not None
            assert live.published_version >= 5
            assert "not the one evaluated" in repr(live)
            assert live.to_json()["published_version"] == live.published_version
            with warnings.catch_warnings():  # asked for by name
                warnings.simplefilter("error")
                assert daskrl.evaluate(store, episodes=2, version=0).returns == live.returns
            cli.info(store)
            said = " ".join(capsys.readouterr().out.replace("│", " ").split())
            assert "weights version 0 is the newest kept" in said
            cli.info(store, as_json=True)
            assert json.loads(capsys.readouterr().out)["newest_stored_weights"] == 0
            with pytest.warns(UserWarning, match="newest kept"):
                cli.evaluate(store, episodes=2)
            assert "newest version" in capsys.readouterr().out
            break
    cli.info(store)
    assert "newest kept" not in capsys.readouterr().out
