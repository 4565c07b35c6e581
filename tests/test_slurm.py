"""Runs on a real Slurm: whatever happens to its jobs, the digest of one process, and nothing left in the queue."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskrl import clusters
from daskrl.errors import ConfigError
from tests import slurm
from tests.promise import Once, Troubled, start

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not slurm.installed(), reason="needs slurmctld, slurmd and munged (Debian: slurm-wlm)"),
]


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[Path]:
    with slurm.running() as made:
        yield made


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return start(tmp_path_factory.mktemp("one") / "run").wait().store.digest()


def cluster(place: Path, **job: Any) -> Any:
    return clusters.slurm(
        queue="cpu", memory="1GB", log_directory=str(place / "logs"), scheduler_options={"host": "127.0.0.1"},
        learner={"queue": "gpu", "cores": 2, "job_extra_directives": ["--gres=gpu:1"]}, **job,
    )  # fmt: skip


def job_of(partition: str) -> str:
    return next(job for job, where in slurm.jobs().items() if where == partition)


def nothing_is_left() -> bool:
    """Wait until Slurm has ended what was cancelled; it says so by itself within ``KillWait``."""
    while slurm.jobs("COMPLETING"):
        pass
    return not slurm.jobs("RUNNING,PENDING,SUSPENDED")


def test_scripts_are_there_before_anything_is_submitted(place: Path) -> None:
    with cluster(place, account="lab", walltime="02:00:00") as made:
        before = slurm.jobs("all")
        script = made.job_script()
        assert slurm.jobs("all") == before
    rollout, learner = script.split("# of the learner's job\n")
    for line in ("#SBATCH -p cpu", "#SBATCH -t 02:00:00", "export OMP_NUM_THREADS=1", "--lifetime 6900s"):
        assert line in rollout
    for line in ("#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "export OMP_NUM_THREADS=2", "--resources learner=1"):
        assert line in learner
        assert line not in rollout
    assert script.count("#SBATCH -A lab") == 2


def scancel_a_rollout_job() -> None:
    slurm.call("scancel", job_of("cpu"))


def scancel_the_learners_job() -> None:
    slurm.call("scancel", job_of("gpu"))


def requeue_a_rollout_job() -> None:
    slurm.call("scontrol", "requeue", job_of("cpu"))


def drain_the_node_and_lose_a_job() -> None:
    node = socket.gethostname().partition(".")[0]
    slurm.call("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
    slurm.call("scancel", job_of("cpu"))


@pytest.mark.parametrize(
    "event",
    [scancel_a_rollout_job, scancel_the_learners_job, requeue_a_rollout_job, drain_the_node_and_lose_a_job],
    ids=lambda event: event.__name__,
)
def test_a_run_ends_with_the_digest_of_one_process(
    place: Path, tmp_path: Path, digest: str, event: Callable[[], None]
) -> None:
    with cluster(place) as made, Client(made) as client:
        clusters.adapt(made, 3, 3, interval=1, patience=600)
        client.wait_for_workers(4, timeout=120)
        assert sorted(slurm.jobs().values()) == ["cpu", "cpu", "cpu", "gpu"]
        happened = False
        run = start(tmp_path / "run", client=client)
        for report in run:
            if report.weights_version == 4:
                event()
                happened = True
        assert happened
        assert run.store.digest() == digest
    assert nothing_is_left()
    if event is drain_the_node_and_lose_a_job:
        slurm.call("scontrol", "update", f"nodename={socket.gethostname().partition('.')[0]}", "state=resume")


def test_a_worker_leaves_before_its_walltime_and_its_job_is_submitted_again(
    place: Path, tmp_path: Path, digest: str
) -> None:
    """One rollout hangs for good: the run goes on only because its worker leaves and another job takes over."""
    once = Once(tmp_path / "once")

    def hangs() -> Any:
        return Troubled(90, once, lambda: threading.Event().wait())

    with cluster(place, walltime="00:00:40") as made, Client(made) as client:
        clusters.adapt(made, 1, 1, interval=1, patience=600)
        client.wait_for_workers(2, timeout=120)
        first = set(slurm.jobs())
        assert start(tmp_path / "run", env=hangs, client=client).wait().store.digest() == digest
        assert set(slurm.jobs()) - first
    assert nothing_is_left()


def test_without_sbatch_the_error_says_where_to_run_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"sbatch is not on the path of .* login node"):
        clusters.slurm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"walltime": "an hour"}, "walltime: expected e.g. '01:00:00', got 'an hour'"),
        ({"quee": "cpu"}, "unexpected keyword argument 'quee'"),
        ({"learner": {"gres": "gpu:1"}}, "unexpected keyword argument 'gres'"),
    ],
)
def test_a_setting_that_is_not_known_is_named(settings: dict[str, Any], message: str) -> None:
    before = slurm.jobs("all")
    with pytest.raises(ConfigError, match=message):
        clusters.slurm(scheduler_options={"host": "127.0.0.1"}, **settings)
    assert slurm.jobs("all") == before
