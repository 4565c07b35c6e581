"""Harm by plan: every fault once, on real processes over TCP, and the digest is that of one process."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster

import daskrl
from daskrl import clusters, errors, testing
from daskrl.pools.workers import forking_nanny, nanny_options
from daskrl.testing import FillDisk, Kill, Partition, Slow, Stop, chaos, plan_of_kills, victims
from daskrl.testing import harm as module
from tests.promise import STEPS, Once, Troubled, mounted, start


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return start(tmp_path_factory.mktemp("reference") / "run").wait().store.digest()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One learner's worker and two rollout workers, whose nannies restart what is killed."""
    with clusters.local(2) as cluster, Client(cluster) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB of its own."""
    with mounted(tmp_path / "disk", "8m") as disk:
        yield disk


def whole(report: testing.ChaosReport, digest: str) -> None:
    """Nothing was lost, nothing came twice, and the bits are those of one process."""
    assert report.digest == digest
    assert (report.expected, report.committed) == (STEPS, STEPS)
    assert (report.duplicated, report.lost) == (0, 0)


def stopped(client: Client) -> list[str]:
    """Names of the workers that stand still, and of threads that would stop them."""
    processes = victims.Workers(client, 0)
    found = [*processes.for_(Kill(at=0, learner=True)), *processes.for_(Kill(at=0))]
    assert found
    states = {p.name: Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split()[0] for p in found}
    processes.close()
    slowing = [thread.name for thread in threading.enumerate() if thread.name.startswith("daskrl slows")]
    return [name for name, state in states.items() if state == "T"] + slowing


def test_sigkill_to_a_rollout_worker_and_to_the_learner(client: Client, digest: str, tmp_path: Path) -> None:
    plan = [Kill(at=6, learner=True), Kill(at=2)]
    report = chaos(start(tmp_path / "run", client=client), plan, seed=5)
    whole(report, digest)
    rollout, learner = report.harms
    assert (rollout.fault, learner.fault) == (Kill(at=2), Kill(at=6, learner=True))
    assert rollout.version >= 2
    assert learner.version >= 6
    assert re.fullmatch(r"[01] \(\d+\)", rollout.victim)
    assert re.fullmatch(r"learner \(\d+\)", learner.victim)
    assert learner.learned_again >= 1  # the weights that streams act with next were on it only
    assert rollout.learned_again == 0
    assert None not in (rollout.seconds, learner.seconds, report.pace)
    assert report.seed == 5


def test_a_stopped_and_a_slow_worker_hold_the_run_up_and_change_nothing(
    client: Client, digest: str, tmp_path: Path
) -> None:
    plan = [
        Stop(at=2, seconds=0.3), Stop(at=4, seconds=0.3, learner=True),
        Slow(at=6, factor=4, for_versions=2), Slow(at=8, factor=4, for_versions=2, learner=True),
    ]  # fmt: skip
    report = chaos(start(tmp_path / "run", client=client), plan)
    whole(report, digest)
    assert [harm.fault for harm in report.harms] == plan
    assert [harm.learned_again + harm.rolled_out_again for harm in report.harms] == [0] * 4  # nobody was given up
    assert not stopped(client)


def test_a_disk_that_fills_up_stops_the_run_which_then_goes_on(
    client: Client, digest: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    lock = daskrl.Store.lock
    monkeypatch.setattr(daskrl.Store, "lock", lambda store: taken.append(store) or lock(store))
    report = chaos(start(small_disk / "run", client=client), [FillDisk(at=4)])
    whole(report, digest)
    assert len(taken) == 2  # the run was stopped and resumed
    assert report.harms[0].victim == str(small_disk)
    assert report.harms[0].seconds is not None
    assert [path.name for path in small_disk.iterdir()] == ["run"]


def test_a_disk_filled_by_somebody_else_stops_the_run_for_good(client: Client, small_disk: Path) -> None:
    run = start(small_disk / "run", client=client)
    for report in run:
        if report.weights_version == 2:
            break
    module.fill_disk(small_disk / "ballast")
    with pytest.raises(errors.StoreFullError):
        chaos(run, [Kill(at=11)])


def test_faults_of_one_version_happen_together(client: Client, digest: str, tmp_path: Path) -> None:
    report = chaos(start(tmp_path / "run", client=client), [Kill(at=3), Kill(at=3), Kill(at=3, learner=True)])
    whole(report, digest)
    assert len({harm.version for harm in report.harms}) == 1
    assert len({harm.victim for harm in report.harms}) == 3


def test_a_run_that_stops_at_an_error_leaves_nobody_slow(client: Client, tmp_path: Path) -> None:
    once = Once(tmp_path / "raised")

    def jam() -> None:
        raise RuntimeError("the motor is jammed")

    run = start(tmp_path / "run", lambda: Troubled(70, once, jam), client=client)
    with pytest.raises(errors.EnvironmentRaisedError, match="jammed"):
        chaos(run, [Slow(at=0, factor=2, for_versions=12)])
    assert not stopped(client)


def test_a_plan_of_nothing_carries_the_run_out(client: Client, digest: str, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client)
    report = chaos(run, [])
    whole(report, digest)
    assert report.harms == ()
    assert run.finished


def test_the_victims_follow_from_the_seed(client: Client) -> None:
    def drawn(seed: int) -> list[str]:
        workers = victims.Workers(client, seed)
        names = [workers.draw(Kill(at=0)).name for _ in range(8)]
        workers.close()
        return names

    client.wait_for_workers(3, timeout=60)
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert set(drawn(1)) == {"0", "1"}


# -- what cannot work -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "parts"),
    [
        ([Kill(at=12)], ("Kill(at=12", "versions 0 to 12", "at=0 to at=11", "env_steps")),
        ([Kill(at=1), FillDisk(at=40)], ("FillDisk(at=40", "at=11")),
        ([Kill], ("plan", "Kill, Stop, Slow, Partition and FillDisk")),
        ([FillDisk(at=3, limit=1)], ("FillDisk(at=3", "limit=1", "mount -t tmpfs")),
    ],
    ids=["at the end", "beyond the end", "a class", "a large disk"],
)
def test_a_plan_that_cannot_work_is_refused_before_anything_is_queued(
    client: Client, tmp_path: Path, plan: list[Any], parts: tuple[str, ...]
) -> None:
    refused(start(tmp_path / "run", client=client), plan, *parts)


def refused(run: Any, plan: list[Any], *parts: str) -> None:
    with pytest.raises(errors.ConfigError) as raised:
        chaos(run, plan)
    assert not [part for part in parts if part not in str(raised.value)], str(raised.value)
    assert run.report is None
    assert run.store.log.head() == 1


@pytest.fixture
def network() -> Iterator[tuple[list[str], str, str]]:
    """A network namespace: what runs a command in it, and the addresses of this side and of that."""
    name = f"daskrl{os.getpid()}"
    here, there = "10.213.7.1", "10.213.7.2"
    inside = ["ip", "netns", "exec", name]
    made = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name],
        ["ip", "addr", "add", f"{here}/30", "dev", f"{name}h"],
        ["ip", "link", "set", f"{name}h", "up"],
        [*inside, "ip", "addr", "add", f"{there}/30", "dev", "eth0"],
        [*inside, "ip", "link", "set", "lo", "up"],
        [*inside, "ip", "link", "set", "eth0", "up"],
        [*inside, "ip", "route", "add", "default", "via", here],
    ]
    try:
        for command in made:
            if shutil.which("ip") is None or subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("making a network namespace needs root and iproute2")
        yield inside, here, there
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def reached(address: tuple[str, int], within: float) -> bool:
    try:
        socket.create_connection(address, timeout=within).close()
    except OSError:
        return False
    return True


def test_a_worker_that_is_cut_off_holds_the_run_up_and_changes_nothing(
    network: tuple[list[str], str, str], digest: str, tmp_path: Path
) -> None:
    inside, here, there = network
    scheduler = {"cls": Scheduler, "options": {"host": here, "port": 0, "dashboard": False}}
    learner = {"cls": forking_nanny(), "options": {"host": here, **nanny_options(1, learner=True)}}
    with SpecCluster(workers={"learner": learner}, scheduler=scheduler) as cluster, Client(cluster) as client:
        worker = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--host", there]
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", "far", "--local-directory", tmp_path]
        process = subprocess.Popen([*inside, *worker, *options], stderr=subprocess.DEVNULL)
        try:
            client.wait_for_workers(2, timeout=120)
            workers = victims.Workers(client, 0)
            far = workers.draw(Partition(at=0))
            address = there, int(address_of(client, "far").rpartition(":")[2])
            assert (far.name, reached(address, 30)) == ("far", True)
            with victims.Network(far) as held:
                routes = held.ip("route", "show")
                with held.cut():
                    assert not reached(address, 0.3)
                assert reached(address, 30)
                assert held.ip("route", "show") == routes
            workers.close()
            report = chaos(start(tmp_path / "run", client=client), [Partition(at=3, seconds=0.5)])
        finally:
            process.terminate()
            process.wait()
    whole(report, digest)
    assert report.harms[0].victim.startswith("far ")
    assert report.harms[0].rolled_out_again == 0  # Dask had not given it up
    assert "Partition(at=3, learner=False, seconds=0.5)" in str(report)


def address_of(client: Client, name: str) -> str:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return next(address for address, info in workers.items() if info["name"] == name)


def test_a_partition_needs_a_worker_in_a_network_of_its_own(client: Client, tmp_path: Path) -> None:
    refused(start(tmp_path / "run", client=client), [Partition(at=1)], "network namespace", "ip netns exec")


def test_a_run_without_a_client_is_refused(tmp_path: Path) -> None:
    refused(start(tmp_path / "run"), [Kill(at=1)], "no client", "daskrl.clusters.local(2)", "client=client")


@pytest.mark.parametrize(
    ("processes", "plan", "missing"),
    [(True, [Kill(at=1, learner=True)], "with the resource learner"), (False, [Stop(at=1)], "a process of its own")],
    ids=["no learner's worker", "threads"],
)
def test_a_kind_of_victim_that_does_not_exist_is_refused(
    tmp_path: Path, processes: bool, plan: list[Any], missing: str
) -> None:
    options = {"threads_per_worker": 1, "dashboard_address": None, "processes": processes}
    with LocalCluster(n_workers=1, **options) as cluster, Client(cluster) as client:
        refused(start(tmp_path / "run", client=client), plan, missing, "daskrl.clusters.local(2)")


def test_a_resumed_run_takes_faults_at_versions_to_come_only(client: Client, tmp_path: Path) -> None:
    start(tmp_path / "run", env_steps=5 * 128).wait()
    run = daskrl.resume(tmp_path / "run", env_steps=8 * 128, client=client, progress=False)
    with pytest.raises(errors.ConfigError, match="at=6 to at=7"):
        chaos(run, [Kill(at=5)])
    assert chaos(run, [Kill(at=6)]).harms[0].version >= 6
    with pytest.raises(errors.ConfigError, match="no version that others follow"):
        chaos(run, [Kill(at=7)])


def test_workers_that_do_not_come_back_are_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(victims, "PATIENCE", 0.0)
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        workers = victims.Workers(client, 0)
        with pytest.raises(errors.DaskrlError, match="nannies"):
            workers.draw(Kill(at=0, learner=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Kill(at=-1),
        lambda: Stop(at=1, seconds=0),
        lambda: Partition(at=1, seconds=0),
        lambda: Slow(at=1, factor=1),
        lambda: Slow(at=1, for_versions=0),
        lambda: FillDisk(at=1, limit=0),
        lambda: plan_of_kills(0, 12, 12),
        lambda: plan_of_kills(0, 1, 12, learner_share=2),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any) -> None:
    with pytest.raises(errors.ConfigError, match=r"expected|at most"):
        make()


# -- numbers ----------------------------------------------------------------------------------------------


def test_a_plan_of_kills_follows_from_its_seed_and_has_one_at_each_version() -> None:
    plan = plan_of_kills(3, 100, 400, learner_share=0.25)
    assert plan == plan_of_kills(3, 100, 400, learner_share=0.25)
    assert plan != plan_of_kills(4, 100, 400, learner_share=0.25)
    moments = [kill.at for kill in plan]
    assert moments == sorted(set(moments))
    assert (len(moments), min(moments) >= 1, max(moments) <= 399) == (100, True, True)
    assert 10 < sum(kill.learner for kill in plan) < 40
    assert not any(kill.learner for kill in plan_of_kills(0, 11, 12, learner_share=0))


def test_time_lost_is_counted_from_the_fault_to_the_last_version_that_it_can_have_held_up() -> None:
    # A second a version; a fault at version 3 takes 4 s, at version 5, which was under way already, another 2.
    times = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 8.0), (5, 9.0), (6, 12.0), (7, 13.0), (8, 14.0)]
    assert module.time_lost(times, [(3, 3, 3.0)], 1) == (1.0, [(5.0, 6.0)])
    # Half a second was spent on doing the harm.
    assert module.time_lost(times, [(3, 3, 3.5)], 1) == (1.0, [(4.5, 5.5)])
    # A second fault at version 5 begins where the first is counted to.
    assert module.time_lost(times, [(3, 3, 3.0), (5, 5, 9.0)], 1) == (1.0, [(5.0, 4.0), (3.0, 2.0)])
    # Two versions at once; a fault that lasts; one at the end; and no version without a fault.
    assert module.time_lost([(0, 0.0), (2, 4.0), (3, 7.0)], [(2, 2, 4.0)], 0) == (2.0, [(3.0, 1.0)])
    assert module.time_lost(times, [(3, 4, 3.0)], 1)[1] == [(5.0, 6.0)]
    assert module.time_lost(times, [(8, 8, 14.0)], 1)[1] == [(None, None)]
    assert module.time_lost(times[:3], [(0, 0, 0.0)], 1) == (None, [(1.0, None)])


def test_the_report_is_a_table_for_people() -> None:
    harm = testing.Harm(Kill(at=4), 5, "1 (77)", 0.1, 2.5, None, 3, 0)
    report = testing.ChaosReport((harm,), 9, 20.0, 0.25, 100, 100, 0, 0, "abc")
    assert str(report).splitlines() == [
        "fault                      version  victim  waited, s  next, s  lost, s  rolled out again  learned again",
        "Kill(at=4, learner=False)  5        1 (77)  0.10       2.50     -        3                 0",
        "20.0 s, 0.25 s a version without faults; seed 9",
        "transitions: 100 of 100 committed, 0 lost, 0 duplicated",
        "digest: abc",
    ]
