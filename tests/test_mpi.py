"""The processes that mpirun starts are a cluster: a scheduler, a driver, a learner, and rollouts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import daskrl

MPIRUN = Path(sys.executable).with_name("mpirun")  # of the package mpich

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="needs mpirun: pip install mpich")

STEPS = "--streams 2 --envs-per-stream 2 --fragment-steps 8 --seed 3 --env-steps 640 --episodes 0"


def mpirun(processes: int, *typed: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(MPIRUN), "-n", str(processes), sys.executable, "-m", "daskrl.cli", *typed, "--cluster", "mpi"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_a_run_under_mpirun_has_the_digest_of_one_process_and_all_processes_end(tmp_path: Path) -> None:
    small = daskrl.DQN(hidden=(16,), batch_size=8, learning_starts=32, replay_ratio=2.0, window=160)
    shape = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 8, "env_steps": 640}
    alone = daskrl.train(small, "CartPole-v1", store=tmp_path / "alone", seed=3, progress=False, **shape).wait()

    settings = "-s hidden=16, -s batch_size=8 -s learning_starts=32 -s replay_ratio=2.0 -s window=160"
    typed = ["train", "CartPole-v1", "--store", "run", *STEPS.split(), *settings.split()]
    done = mpirun(5, *typed, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("promise") == 1  # the driver's table, and nobody else's
    run = daskrl.Store.open(tmp_path / "run")
    assert run.digest() == alone.store.digest()


LISTENING = """
from daskrl import clusters
with clusters.mpi() as client:
    found = client.run(lambda dask_worker: dask_worker.http_server.address)
    found["scheduler"] = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.http_server.address)
    print(*found.values())
"""


def test_what_is_not_encrypted_listens_on_loopback_only(tmp_path: Path) -> None:
    done = subprocess.run(
        [str(MPIRUN), "-n", "4", sys.executable, "-c", LISTENING], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["127.0.0.1"] * 3, done.stderr


def test_an_error_ends_all_processes(tmp_path: Path) -> None:
    done = mpirun(4, "train", "CartPool-v1", "--store", "run", *STEPS.split(), cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("UnknownEnvironmentError: 'CartPool-v1'") == 1
    assert not (tmp_path / "run").exists()


def test_too_few_processes_are_said_with_what_to_type(tmp_path: Path) -> None:
    done = mpirun(2, "train", "CartPole-v1", "--store", "run", *STEPS.split(), cwd=tmp_path)
    assert done.returncode != 0
    assert "expected 4 processes or more" in done.stderr
    assert "mpirun -n 4 daskrl train ... --cluster mpi" in done.stderr
