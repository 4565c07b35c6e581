"""The promise: the same seed gives the same replay and the same weights, bit for bit, whatever happens.

Each test carries out the same small run another way and compares its digest with that of one process. Moments
of failure are scripted: a step of an environment, an update of the learner, the n-th commit.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster

import daskrl
from daskrl import clusters
from daskrl.errors import SchedulerLostError
from daskrl.pools.base import Plan
from daskrl.pools.connection import Connection
from daskrl.pools.local import InProcessPool
from daskrl.replay import rounds as replay
from daskrl.tasks import fingerprint, learner, rollout
from tests.promise import SETTINGS, STEPS, Once, Troubled, TroubledDQN, kill_self, same_transitions, start


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Store:
    """The run in one process, never disturbed."""
    return start(tmp_path_factory.mktemp("reference") / "run").wait().store


@pytest.fixture(scope="module")
def digest(reference: daskrl.Store) -> str:
    return reference.digest()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One learner's worker and two rollout workers, real processes over TCP; nannies restart what is killed."""
    with clusters.local(2) as cluster, Client(cluster) as made:
        yield made


def pids(client: Client, learns: bool) -> list[int]:
    """Process ids of the workers that learn, or of those that do not."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    chosen = [address for address, info in workers.items() if bool(info["resources"]) == learns]
    return list(client.run(os.getpid, workers=chosen).values())


def restore(client: Client) -> None:
    """Back to one learner's worker and two fresh rollout workers."""
    client.cluster.scale(1)
    client.cluster.sync(client.cluster._correct_state)  # before names are given again
    client.cluster.scale(3)
    client.wait_for_workers(3, timeout=60)


def test_the_same_seed_gives_the_same_run_twice_and_another_seed_another(
    reference: daskrl.Store, digest: str, tmp_path: Path
) -> None:
    again = start(tmp_path / "again").wait().store
    assert again.digest() == digest
    assert same_transitions(again, reference)
    assert start(tmp_path / "other", seed=8).wait().store.digest() != digest


def test_the_reference_run_learns_restores_and_ends_episodes(reference: daskrl.Store) -> None:
    summary = reference.summary()
    assert summary["env_steps"] == STEPS
    assert summary["learner_updates"] > 300
    assert summary["episodes"] > 20
    assert reference.weights_versions() == [0, 4, 8, 12]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_processes(workers: int, digest: str, tmp_path: Path) -> None:
    options = {"threads_per_worker": 1, "dashboard_address": None, "processes": True}
    with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
        with pytest.warns(UserWarning, match="it learns beside the driver"):
            assert start(tmp_path / "run", client=client).wait().store.digest() == digest
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == workers  # and is gone with its run


def test_threads(digest: str, tmp_path: Path) -> None:
    options = {"threads_per_worker": 2, "dashboard_address": None, "processes": False}
    with LocalCluster(n_workers=2, **options) as cluster, Client(cluster) as client:
        assert start(tmp_path / "run", client=client).wait().store.digest() == digest


def test_workers_join_and_leave_on_the_way(client: Client, digest: str, tmp_path: Path) -> None:
    seen = set()
    run = start(tmp_path / "run", client=client)
    try:
        for report in run:
            seen.add(report.workers)
            if report.weights_version == 1:
                client.cluster.scale(4)
                client.wait_for_workers(4, timeout=60)
            elif report.weights_version == 5:
                client.cluster.scale(2)
    finally:
        restore(client)
    assert run.store.digest() == digest
    assert len(seen) > 1


def test_a_worker_retired_by_dask(client: Client, digest: str, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client)
    for report in run:
        if report.weights_version == 3:
            workers = client.scheduler_info(n_workers=-1)["workers"]
            victim = next(address for address, info in workers.items() if not info["resources"])
            client.retire_workers([victim], close_workers=True)
    assert run.store.digest() == digest
    restore(client)


def test_sigkill_to_a_rollout_worker_in_the_middle_of_a_fragment(client: Client, digest: str, tmp_path: Path) -> None:
    once = Once(tmp_path / "killed")
    run = start(tmp_path / "run", lambda: Troubled(70, once, kill_self), client=client).wait()
    assert Path(once.path).exists()
    assert run.store.digest() == digest


def test_sigkill_to_the_learner_in_the_middle_of_a_round(client: Client, digest: str, tmp_path: Path) -> None:
    algorithm = TroubledDQN(**SETTINGS)
    object.__setattr__(algorithm, "kills", (5, 150, 310))
    object.__setattr__(algorithm, "once_in", str(tmp_path))
    run = start(tmp_path / "run", algorithm=algorithm, client=client).wait()
    assert {path.name for path in tmp_path.glob("update-*")} == {"update-5", "update-150", "update-310"}
    assert run.store.digest() == digest


def test_sigkill_to_learner_and_rollout_workers_at_once(client: Client, digest: str, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client)
    for report in run:
        if report.weights_version in (2, 7):
            client.wait_for_workers(3, timeout=60)
            for pid in [*pids(client, learns=True), pids(client, learns=False)[0]]:
                os.kill(pid, signal.SIGKILL)
    restore(client)
    assert run.store.digest() == digest


def test_sigkill_to_all_workers_at_once_on_a_machine_too_busy_to_restart_them_in_time(
    client: Client, digest: str, tmp_path: Path
) -> None:
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}):
        run = start(tmp_path / "run", client=client)
        for report in run:
            if report.weights_version == 4:
                for pid in client.run(os.getpid).values():
                    os.kill(pid, signal.SIGKILL)
        client.wait_for_workers(3, timeout=60)
    assert run.store.digest() == digest


def test_a_rollout_executed_twice_at_the_same_time(
    client: Client, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = []
    submit = Connection.submit

    def submit_twice(its: Any, topic: str, key: str, kind: int, address: str, function: Any, *args: Any) -> Any:
        if function is rollout.rollout:
            (roster,) = its.workers.rosters.values()
            others = [other for other in roster.slots() if other != address] or [address]
            twice.append(its.client.submit(function, *args, workers=others, pure=False, key=f"twice-{len(twice)}"))
        return submit(its, topic, key, kind, address, function, *args)

    monkeypatch.setattr(Connection, "submit", submit_twice)
    run = start(tmp_path / "run", client=client).wait()
    assert len(twice) >= 48
    assert run.store.digest() == digest


def test_two_executions_of_one_rollout_write_the_same_bytes(reference: daskrl.Store, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(reference.root, root)
    store = daskrl.Store.open(root)
    slot = 21
    record = store.fragments()[slot]
    chunk = root / "observation" / store.columns["observation"].chunk_name(slot)
    before = chunk.read_bytes()
    run = daskrl.resume(root, progress=False)
    plan = Plan(store.layout, run.algorithm, run.source.factory, run.options)
    pool = InProcessPool(plan)
    head = store.log.head()
    weights = learner.learn(pool.token, record["weights_version"], head, "cpu", False, False)
    barrier = threading.Barrier(2)

    def once() -> Any:
        barrier.wait()
        return rollout.rollout(pool.token, record["stream"], record["round"], head, weights)

    with ThreadPoolExecutor(2) as threads:
        results = [future.result() for future in [threads.submit(once), threads.submit(once)]]
    pool.close()
    assert [result["columns"] for result in results] == [record["columns"]] * 2
    assert chunk.read_bytes() == before


def test_ctrl_c_and_resume_in_process(digest: str, tmp_path: Path) -> None:
    once = Once(tmp_path / "interrupted")

    def interrupt() -> None:
        raise KeyboardInterrupt

    def make() -> Troubled:
        return Troubled(50, once, interrupt)

    run = start(tmp_path / "run", make)
    with pytest.raises(KeyboardInterrupt):
        run.wait()
    assert not run.finished
    assert daskrl.resume(tmp_path / "run", env=make, progress=False).wait().store.digest() == digest


def test_leaving_the_loop_and_resuming_on_other_workers(client: Client, digest: str, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client)
    for report in run:
        if report.weights_version == 4:
            break
    assert not run.finished
    for report in daskrl.resume(tmp_path / "run", progress=False):
        if report.weights_version == 8:
            break
    moved = tmp_path / "moved" / "elsewhere"
    moved.parent.mkdir()
    (tmp_path / "run").rename(moved)
    assert daskrl.resume(moved, client=client, progress=False).wait().store.digest() == digest


DRIVER = """
import os, signal, sys
from pathlib import Path
from daskrl.store import log
from tests.promise import start
import daskrl

def die():
    os.kill(os.getpid(), signal.SIGKILL)

count, moment, workers = int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
append, link, calls = log.CommitLog.append, os.link, []

def counted(self, number, records):
    calls.append(number)
    if len(calls) == count and moment == "before":
        die()
    if len(calls) == count and moment == "during":
        os.link = lambda a, b: die()
    segment = append(self, number, records)
    if len(calls) == count and moment == "after":
        die()
    return segment

if __name__ == "__main__":
    log.CommitLog.append = counted
    if workers:
        from distributed import Client
        from daskrl import clusters
        with clusters.local(workers) as cluster, Client(cluster) as client:
            start(Path(sys.argv[1]), client=client).wait()
    else:
        start(Path(sys.argv[1])).wait()
"""


def drive_and_die(store: Path, count: int, moment: str, workers: int) -> None:
    script = store.parent / "driver.py"
    script.write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, str(script), str(store), str(count), moment, str(workers)], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("count", "moment"), [(2, "before"), (5, "during"), (24, "after"), (50, "before"), (58, "after")]
)
def test_sigkill_to_the_driver_and_resume(count: int, moment: str, digest: str, tmp_path: Path) -> None:
    drive_and_die(tmp_path / "run", count, moment, workers=0)
    resumed = daskrl.resume(tmp_path / "run", progress=False)
    assert not resumed.finished
    assert resumed.wait().store.digest() == digest
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_sigkill_to_the_driver_of_a_cluster_and_resume(digest: str, tmp_path: Path) -> None:
    drive_and_die(tmp_path / "run", 20, "before", workers=2)
    assert daskrl.resume(tmp_path / "run", progress=False).wait().store.digest() == digest


def test_sigkill_to_the_scheduler_and_resume(digest: str, tmp_path: Path) -> None:
    with scheduler_and_workers(tmp_path, ["--resources learner=1", ""]) as (process, client):
        run = start(tmp_path / "run", client=client)

        def carry_on() -> None:
            for report in run:
                if report.weights_version == 3:
                    process.kill()

        with pytest.raises(SchedulerLostError, match="daskrl resume"):
            carry_on()
    assert not run.finished
    assert daskrl.resume(tmp_path / "run", progress=False).wait().store.digest() == digest


def test_a_worker_with_other_arithmetic_gets_no_rollouts_and_is_named(digest: str, tmp_path: Path) -> None:
    with scheduler_and_workers(
        tmp_path, ["--resources learner=1", "", "--name odd"], [{}, {}, {"ATEN_CPU_CAPABILITY": "default"}]
    ) as (_, client):
        with pytest.warns(UserWarning, match=r"worker odd .* other arithmetic.*ATEN_CPU_CAPABILITY=default"):
            run = start(tmp_path / "run", client=client).wait()
        odd = next(
            address for address, info in client.scheduler_info(n_workers=-1)["workers"].items() if info["name"] == "odd"
        )
        pid = client.run(os.getpid, workers=[odd])[odd]
        assert run.store.digest() == digest
        assert not run.store.promise_off()
        assert str(pid) not in {record["worker"].rpartition(":")[2] for record in run.store.fragments()}

        with pytest.warns(UserWarning, match="Going on without the promise"):
            accepted = start(tmp_path / "accepted", client=client, strict=False).wait()
        assert any("odd" in reason for reason in accepted.store.promise_off())
        assert str(pid) in {record["worker"].rpartition(":")[2] for record in accepted.store.fragments()}


def test_a_worker_with_other_packages_gets_no_rollouts_and_is_named() -> None:
    packages = {"torch": "2.13.0", "numpy": "2.0"}
    run: Any = {"versions": packages, "cpu": "x", "cuda": None, "settings": {}, "device": "cpu"}
    assert fingerprint.mismatch(run, run, learns=True) is None
    other: Any = {**run, "versions": {"torch": "2.12.0", "numpy": "2.0"}}
    problem = fingerprint.mismatch(other, run, learns=True)
    assert problem is not None
    assert "torch 2.12.0 (run: 2.13.0)" in problem


def test_restoring_the_learner_reads_the_window_and_the_rounds_since_the_checkpoint_only(
    reference: daskrl.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(reference.root, root)
    longer = daskrl.resume(root, env_steps=41 * 128, progress=False).wait()
    plan = Plan(longer.store.layout, longer.algorithm, longer.source.factory, longer.options)
    pool = InProcessPool(plan)
    rounds = []
    read = replay.read_committed
    monkeypatch.setattr(replay, "read_committed", lambda of, r: rounds.append(r["round"]) or read(of, r))
    (root / ".checkpoints" / "00000041.safetensors").unlink()  # it has the weights of 40
    head = longer.store.log.head()
    learner.learn(pool.token, 40, head, "cpu", False, False)
    pool.close()
    window = 640 // 128
    assert sorted(set(rounds)) == list(range(39 - window, 40))  # the checkpoint left stands at 39
    assert len(rounds) == 4 * (window + 1)


def test_weights_that_streams_still_need_are_kept_and_where_lost_not_learned_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned, read = [], []
    learn, read_fragment = learner.learn, replay.read_committed
    monkeypatch.setattr(learner, "learn", lambda t, version, *rest: learned.append(version) or learn(t, version, *rest))
    monkeypatch.setattr(replay, "read_committed", lambda of, r: read.append(r["round"]) or read_fragment(of, r))
    reference = start(tmp_path / "reference", lag=4).wait().store
    assert learned == list(range(13))  # none twice
    for report in start(tmp_path / "run", lag=4, checkpoint_every=1):
        if report.weights_version == 10:
            break
    read.clear()
    learned.clear()
    assert daskrl.resume(tmp_path / "run", progress=False).wait().store.digest() == reference.digest()
    assert learned == [6, 7, 11, 12]  # the weights of 6 to 9 are in the checkpoint of 10
    assert min(read) == 10 - 640 // 128  # the window behind it


def test_a_fragment_reproduced_while_the_run_goes_on_does_not_disturb_it(digest: str, tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    for report in run:
        if report.weights_version == 6:
            assert daskrl.reproduce(run.store, 26).differs == ()  # acted with version 5, which is not on disk
    assert run.store.digest() == digest


def test_a_client_that_is_not_the_default_one(digest: str, tmp_path: Path) -> None:
    options = {"threads_per_worker": 4, "dashboard_address": None, "processes": False}
    with LocalCluster(n_workers=1, **options) as cluster, Client(cluster, set_as_default=False) as client:
        assert start(tmp_path / "run", client=client).wait().store.digest() == digest


def test_a_larger_budget_gives_the_run_started_with_it(digest: str, tmp_path: Path) -> None:
    start(tmp_path / "run", env_steps=5 * 128).wait()
    longer = daskrl.resume(tmp_path / "run", env_steps=STEPS, progress=False).wait()
    assert longer.store.weights()[0] == 12
    # Version 5 was an end once and is kept; transitions and the newest weights are those of the longer run.
    assert longer.store.digest() == digest


class scheduler_and_workers:
    """A scheduler and workers as processes of their own, as on a real cluster."""

    def __init__(self, folder: Path, workers: list[str], environments: list[dict[str, str]] | None = None) -> None:
        self.folder, self.workers = folder, workers
        self.environments = environments or [{} for _ in workers]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> tuple[subprocess.Popen[bytes], Client]:
        file = self.folder / "scheduler.json"
        common = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        dask = [sys.executable, "-m", "dask"]
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
        self._run([*dask, "scheduler", *options], common)
        for arguments, environment in zip(self.workers, self.environments, strict=True):
            command = [*dask, "worker", "--scheduler-file", str(file), "--host", "127.0.0.1", "--nthreads", "1"]
            self._run([*command, "--no-dashboard", *arguments.split()], {**common, **environment})
        self.client = Client(scheduler_file=str(file))
        self.client.wait_for_workers(len(self.workers), timeout=60)
        return self.processes[0], self.client

    def _run(self, command: list[str], environment: dict[str, str]) -> None:
        output = (self.folder / "cluster.log").open("ab")
        self.processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))

    def __exit__(self, *_: object) -> None:
        self.client.close(timeout=1)
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


def test_options_are_not_part_of_the_result(digest: str, tmp_path: Path) -> None:
    run = start(tmp_path / "run", checkpoint_every=1, weights_every=1, rollout_timeout=60.0)
    assert dataclasses.asdict(run.options)["checkpoint_every"] == 1
    assert run.wait().store.digest() == digest
