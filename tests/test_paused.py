"""Workers that Dask pauses for want of memory, in processes: the run goes on, says why, and its digest stays."""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from distributed import Client, LocalCluster

import daskrl
from daskrl import clusters
from daskrl.pools import demand, election
from daskrl.records import Report
from daskrl.watching import bar
from daskrl.watching.callbacks import passed
from tests.promise import Once, start


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with clusters.local(2) as cluster, Client(cluster) as made:
        yield made


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return start(tmp_path_factory.mktemp("one") / "run").wait().store.digest()


def put(client: Client, status: str, *addresses: str) -> None:
    """Have workers do what they do when their memory runs out, or is there again."""

    def change(dask_worker: Any) -> None:
        from distributed.core import Status

        dask_worker.status = Status[status]

    client.run(change, workers=list(addresses))


def addresses(client: Client) -> tuple[list[str], list[str]]:
    """Of the rollout workers, and of the learner's."""
    found = client.scheduler_info(n_workers=-1)["workers"]
    return [a for a in found if not found[a]["resources"]], [a for a in found if found[a]["resources"]]


def pids(store: daskrl.Store, rounds: range) -> set[str]:
    return {record["worker"] for record in store.fragments() if record["round"] in rounds}


def test_a_run_goes_on_beside_a_worker_that_stays_paused(client: Client, tmp_path: Path, digest: str) -> None:
    (first, second), _ = addresses(client)
    run = start(tmp_path / "run", client=client)

    def carry_out() -> None:
        for report in run:
            if report.weights_version == 3:
                put(client, "paused", first)

    with pytest.warns(UserWarning, match="Dask has paused worker .* Its streams go on on other workers"):
        carry_out()
    put(client, "running", first)
    assert run.store.digest() == digest
    (other,) = client.run(os.getpid, workers=[second]).values()
    assert {worker.rpartition(":")[2] for worker in pids(run.store, range(9, 12))} == {str(other)}


def test_workers_that_are_all_paused_are_said_and_the_run_goes_on_when_they_are_back(
    client: Client, tmp_path: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(election, "SAY_AFTER", 0.0)
    everyone = [address for some in addresses(client) for address in some]
    said: list[str] = []

    def show(message: Any, *others: Any, **more: Any) -> None:
        said.append(str(message))
        if "without a worker that takes tasks" in said[-1]:
            put(client, "running", *everyone)

    run = start(tmp_path / "run", client=client)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        for report in run:
            if report.weights_version == 3:
                put(client, "paused", *everyone)
    assert run.store.digest() == digest
    (why,) = [message for message in said if "without a worker that takes tasks" in message]
    assert why.count("Dask has paused worker") == 3
    assert "The run waits" in why


class Said:
    """Stands in for tqdm's bar."""

    n = initial = 0

    def __init__(self) -> None:
        self.said: list[Any] = []

    def set_description(self, text: str) -> None:
        pass

    def set_postfix(self, said: dict[str, Any]) -> None:
        self.said.append(said["workers"])

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("client", "said"), [(None, "in-process"), ("a client", 0)], ids=["in-process", "cluster"])
def test_a_cluster_all_of_whose_workers_are_paused_is_not_shown_as_a_run_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Any, said: Any
) -> None:
    made = Said()
    monkeypatch.setattr(bar, "tqdm", lambda: lambda **options: made)
    run = start(tmp_path / "run")
    run.client = client
    report = Report(1, 128, 0, None, 0, None, 1, 0.0, 0, 1.0, None)
    assert list(passed([report], bar.Bar("CartPole-v1", 1000, True), run)) == [report]
    assert made.said == [said]


class Hoarder(gymnasium.Wrapper):  # type: ignore[type-arg]
    """CartPole; the first that has made 100 steps keeps so much that its worker is paused, and waits for that."""

    def __init__(self, once: Once, paused: str) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.once, self.paused, self.steps = once, paused, 0
        self.hoard: Any = None

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 100 and self.once():
            self.hoard = np.ones(400 << 20, np.uint8)
            Path(self.paused).read_text()  # a pipe
        return super().step(action)


def limit(dask_worker: Any) -> None:
    """Have it paused once it takes 200 MiB more than now."""
    importlib.import_module("daskrl.tasks.preload")  # a worker has it all before it is measured
    used = dask_worker.monitor.get_process_memory()
    dask_worker.memory_manager.memory_limit = int(
        (used + (200 << 20)) / dask_worker.memory_manager.memory_pause_fraction
    )


def test_a_worker_whose_environment_fills_its_memory_is_paused_and_comes_back_once_its_streams_have_moved(
    tmp_path: Path,
) -> None:
    once, pipe = Once(tmp_path / "once"), str(tmp_path / "paused")
    os.mkfifo(pipe)

    def env() -> Any:
        return Hoarder(once, pipe)

    back, paused = threading.Event(), list[str]()

    def changed(event: Any) -> None:
        if event[1]["status"] == "paused":
            paused.append(event[1]["worker"])
            threading.Thread(target=Path(pipe).write_text, args=("",)).start()
        elif event[1]["status"] == "running" and event[1]["worker"] in paused:
            back.set()

    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": "8GiB"}
    with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        client.subscribe_topic(demand.STATUS, changed)
        client.run(limit)
        run = start(tmp_path / "run", env, client=client)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run.wait()
            assert back.wait(120)
    messages = [str(warning.message) for warning in said]
    (message,) = [message for message in messages if "Dask has paused" in message]
    assert "MiB used of" in message
    assert "what grows in the environment" in message
    (tmp_path / "once").touch()
    assert run.store.digest() == start(tmp_path / "alone", env).wait().store.digest()


def test_the_only_worker_comes_back_once_it_dropped_what_was_at_work_when_it_was_paused(tmp_path: Path) -> None:
    once, pipe = Once(tmp_path / "once"), str(tmp_path / "paused")
    os.mkfifo(pipe)

    def env() -> Any:
        return Hoarder(once, pipe)

    def show(message: Any, *others: Any, **more: Any) -> None:
        if "Dask has paused" in str(message):  # the worker has been asked to drop what it keeps: the rest is at work
            threading.Thread(target=Path(pipe).write_text, args=("",)).start()

    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None, "memory_limit": "8GiB"}
    with LocalCluster(n_workers=1, resources={"learner": 1}, **options) as cluster, Client(cluster) as client:
        client.run(limit)
        run = start(tmp_path / "run", env, client=client)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            run.wait()
    (tmp_path / "once").touch()
    assert run.store.digest() == start(tmp_path / "alone", env).wait().store.digest()


class Unclosed(gymnasium.Wrapper):  # type: ignore[type-arg]
    """CartPole that cannot be closed once it was played."""

    played = False

    def step(self, action: Any) -> Any:
        self.played = True
        return super().step(action)

    def close(self) -> None:
        if self.played:
            raise OSError("its window is gone")


def test_a_worker_whose_environments_fail_to_close_is_said_to_be_paused_all_the_same(
    client: Client, tmp_path: Path
) -> None:
    (first, _), _ = addresses(client)
    options: dict[str, Any] = {"client": client, "recheck_every": 0}
    run = start(tmp_path / "run", lambda: Unclosed(gymnasium.make("CartPole-v1")), **options)
    said = threading.Event()

    def show(message: Any, *others: Any, **more: Any) -> None:
        if "Dask has paused worker" in str(message):
            said.set()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        for report in run:
            if report.weights_version == 3:
                put(client, "paused", first)
                assert said.wait(60)
                break
    put(client, "running", first)
