"""What several runs, and workers of several nodes, have in common: a scheduler, a learner, a file system."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from distributed import Client

import daskrl
from daskrl import clusters
from daskrl.errors import StoreLockedError, WorkerMismatchError
from daskrl.pools import demand
from daskrl.pools.members import Roster
from daskrl.pools.workers import learner_beside
from daskrl.tasks import fingerprint
from tests.promise import start


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with clusters.local(2) as cluster, Client(cluster) as made:
        yield made


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Of the run in one process, by seed."""
    return {seed: start(tmp_path_factory.mktemp("one") / "run", seed=seed).wait().store.digest() for seed in (7, 8)}


def rollout_worker(client: Client) -> str:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return next(address for address, info in workers.items() if not info["resources"])


def test_two_runs_share_a_scheduler_and_a_learner_and_each_has_its_own_digest(
    client: Client, tmp_path: Path, digests: dict[int, str]
) -> None:
    def carry_out(seed: int) -> str:
        run = start(tmp_path / str(seed), seed=seed, client=client)
        for report in run:
            if report.weights_version == 4 and seed == 7:
                (pid,) = client.run(os.getpid, workers=[rollout_worker(client)]).values()
                os.kill(pid, signal.SIGKILL)
        return run.store.digest()

    with ThreadPoolExecutor(2) as both:
        assert dict(zip(digests, both.map(carry_out, digests), strict=True)) == digests
    left = client.run_on_scheduler(lambda dask_scheduler: [key for key in dask_scheduler.tasks if "-" in str(key)])
    assert left == []
    plugins = client.run_on_scheduler(lambda dask_scheduler: [name for name in dask_scheduler.plugins if "rl" in name])
    assert sorted(plugins) == ["daskrl-demands", "daskrl-page"]
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["daskrl-demands"].asked) == {}


def count_fingerprints(path: str) -> None:
    """On a worker: whenever its process is fingerprinted, have a line in a file."""
    probes = fingerprint.probes

    def counting() -> Any:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        return probes()

    fingerprint.probes = counting


def test_two_runs_on_one_client_fingerprint_each_worker_once_and_learn_on_two(
    tmp_path: Path, digests: dict[int, str]
) -> None:
    both = threading.Barrier(2)

    def carry_out(seed: int) -> str:
        run = start(tmp_path / str(seed), seed=seed, client=client)
        for report in run:
            if report.weights_version == 2:
                both.wait(120)
        return run.store.digest()

    with clusters.local(2) as cluster, Client(cluster) as client, ThreadPoolExecutor(2) as threads:
        second = learner_beside(client, "a second learner", 1, rollout_worker(client))
        try:
            pids = client.run(os.getpid)
            client.run(count_fingerprints, str(tmp_path / "fingerprints"))
            assert dict(zip(digests, threads.map(carry_out, digests), strict=True)) == digests
            asked = [event for _, event in client.get_events(demand.ASKED)]
            assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.clients)) == 2  # Dask's, and this
        finally:
            client.sync(second.close)
    fingerprinted = Counter((tmp_path / "fingerprints").read_text().split())
    assert fingerprinted == Counter(map(str, pids.values()))
    assert len(pids) == 4
    learners = {event["run"]: event["learners"] for event in asked if event["learners"]}
    assert len({address for addresses in learners.values() for address in addresses}) == len(learners) == 2
    assert len({event["client"] for event in asked}) == 1


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole whose steps take so long that rollouts, and not the learner, are what a run waits for."""

    def step(self, action: Any) -> Any:
        time.sleep(0.003)
        return super().step(action)


def test_a_run_goes_on_while_one_that_began_later_catches_up(client: Client, tmp_path: Path) -> None:
    ahead, shape = 8, {"streams": 8, "envs_per_stream": 1, "client": client}
    algorithm, env = daskrl.DQN(hidden=(8,), learning_starts=10**6), lambda: Slow(gymnasium.make("CartPole-v1"))
    runs = [start(tmp_path / str(n), env, algorithm, env_steps=n * 8 * 16, **shape) for n in (ahead + 8, ahead)]
    began = threading.Event()

    def younger() -> None:
        for report in runs[1]:
            if report.weights_version == 1:
                began.set()

    with ThreadPoolExecutor(1) as thread:
        for report in runs[0]:
            if report.weights_version == ahead:  # it stands still while a report is looked at
                other = thread.submit(younger)
                assert began.wait(60)
        other.result()
    older, young = (sorted(record["wall_time"] for record in run.store.records("fragment")) for run in runs)
    meanwhile = sum(young[0] < at < young[-1] for at in older)  # of rounds that are all later than the other's
    assert meanwhile > 16  # of 64


def test_a_second_driver_of_one_store_is_refused_and_the_first_is_not_disturbed(
    client: Client, tmp_path: Path, digests: dict[int, str]
) -> None:
    run = start(tmp_path / "run")  # stands still while a report is looked at
    for report in run:
        if report.weights_version == 3:
            second = daskrl.resume(tmp_path / "run", client=client, progress=False)
            with pytest.raises(StoreLockedError):
                second.wait()
    assert run.store.digest() == digests[7]


def blind_worker(address: str, hidden: Path) -> subprocess.Popen[bytes]:
    """A worker with a file system of its own in the place of ``hidden``, as on a node that does not share it."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a file system of its own needs root")
    worker = f"{sys.executable} -m distributed.cli.dask_worker {address} --nthreads 1 --no-nanny --name blind"
    script = f"mount -t tmpfs none {hidden} && exec {worker} --no-dashboard"
    return subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stderr=subprocess.DEVNULL)


class Waits(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that begins when nobody holds a lock any more."""

    def __init__(self, lock: str) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.lock = lock

    def reset(self, **options: Any) -> Any:
        with open(self.lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        return super().reset(**options)


def test_a_worker_that_does_not_see_the_store_gets_no_rollouts_and_is_named(
    client: Client, tmp_path: Path, digests: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client.wait_for_workers(3, timeout=60)
    process = blind_worker(client.scheduler.address, tmp_path)
    try:
        client.wait_for_workers(4, timeout=60)
        named = r"worker blind .* gets no rollouts: it failed to join: .* does not see the driver's files in"
        lock, refuse = str(tmp_path / "lock"), Roster.not_joined
        held = os.open(lock, os.O_CREAT | os.O_WRONLY)
        run = start(tmp_path / "run", env=lambda: Waits(lock), client=client)  # which makes one to look at its spaces
        fcntl.flock(held, fcntl.LOCK_EX)

        def refuse_and_let_go(*args: Any) -> Any:
            os.close(held)
            return refuse(*args)

        monkeypatch.setattr(Roster, "not_joined", refuse_and_let_go)
        with pytest.warns(UserWarning, match=named):
            run.wait()
        assert run.store.digest() == digests[7]
        names = {record["worker"] for record in run.store.fragments()}
        assert "blind" not in names
    finally:
        process.terminate()
        process.wait()


def test_where_no_worker_sees_the_store_the_run_ends_before_its_first_task(tmp_path: Path) -> None:
    with clusters.local(1) as cluster, Client(cluster) as client:
        cluster.scale(0)
        cluster.sync(cluster._correct_state)
        process = blind_worker(client.scheduler.address, tmp_path)
        try:
            client.wait_for_workers(1, timeout=60)
            run = start(tmp_path / "run", client=client)
            with pytest.raises(WorkerMismatchError, match=r"no worker can take part .* where all nodes see it"):
                run.wait()
            assert not run.store.fragments()
        finally:
            process.terminate()
            process.wait()
