"""A run that is asked to stop leaves a checkpoint of where it stands: whoever resumes learns nothing again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed import Client

import daskrl
from daskrl import clusters
from daskrl.algorithms.replay import ReplayLearner
from daskrl.window import Batch
from tests.promise import SETTINGS, records, start


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
