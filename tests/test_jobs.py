"""Batch jobs that the batch system refuses for a while, or for good: what is said, and that it is tried again."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from daskrl import clusters
from daskrl.errors import ConfigError

SBATCH = """#!/bin/sh
echo tried >> {place}/tried
if [ $(wc -l < {place}/tried) -le 3 ]; then echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi
echo submitted > {place}/submitted
echo "Submitted batch job 7"
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A batch system that refuses three times, and tells a pipe of each job that it takes."""
    pytest.importorskip("dask_jobqueue")
    os.mkfifo(tmp_path / "submitted")
    for name, text in {"sbatch": SBATCH.format(place=tmp_path), "scancel": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_jobs_that_were_refused_are_submitted_again_and_the_reason_is_said_once(place: Path) -> None:
    cluster = clusters.slurm(scheduler_options={"host": "127.0.0.1"})
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            clusters.adapt(cluster, 1, 1, interval=0.1)
            assert (place / "submitted").read_text() == "submitted\n"  # waits until there is one
        (message,) = {str(warning.message) for warning in said if "refused" in str(warning.message)}
        assert "sbatch refused 1 of the jobs: sbatch: error: QOSMaxSubmitJobPerUserLimit" in message
    finally:
        cluster.close()


def test_a_learners_job_that_is_refused_at_once_is_one_message(place: Path) -> None:
    cluster = clusters.slurm(scheduler_options={"host": "127.0.0.1"}, learner={"queue": "gpu"})
    refused = pytest.raises(ConfigError, match=r"sbatch refused the learner's job: .*QOSMaxSubmitJobPerUserLimit")
    with pytest.warns(UserWarning, match="refused"), refused, cluster:
        pass
    assert cluster.status.name == "closed"
    assert cluster.status.name == "closed"


def test_nothing_of_a_job_listens_beyond_loopback_but_its_encrypted_port(place: Path) -> None:
    for given in ({}, {"security": None}):
        cluster = clusters.slurm(scheduler_options={"host": "127.0.0.1"}, learner={"queue": "gpu"}, **given)
        try:
            script = cluster.job_script()
            assert script.count("--dashboard-address 127.0.0.1:0") == 2
            assert cluster.scheduler_address.startswith("tls://")
        finally:
            cluster.close()
