"""A study in an object store, on a real SeaweedFS: the table of a study in a directory, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

import daskrl
from daskrl import clusters
from daskrl.errors import ConfigError
from daskrl.store import finding
from daskrl.store.places import place
from daskrl.study import Study
from tests import objects
from tests.studies import small
from tests.typed import Here

pytestmark = pytest.mark.s3

UNDER = f"s3://{objects.BUCKET}/experiments"

# The driver that dies before it commits the fourth time: the study, what it computes with, and one time results.
DRIVER = """
import os, signal, sys
from distributed import Client
from daskrl.store import lease, log
from tests.studies import small

append, calls, lease.SECONDS = log.CommitLog.append, [], 2.0

def counted(self, number, records):
    calls.append(number)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return append(self, number, records)

if __name__ == "__main__":
    log.CommitLog.append = counted
    small(sys.argv[2]).run(Client(sys.argv[1]), progress=False)
"""


@pytest.fixture(scope="module", autouse=True)
def reached(s3: objects.SeaweedFS) -> Iterator[None]:
    """What a process needs to reach the server, in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study in a directory, in this process."""
    return small(tmp_path_factory.mktemp("study") / "lr").run(progress=False)


@pytest.fixture(scope="module")
def there(reached: None, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study in a bucket, on two workers, after its driver was killed and another one went on."""
    script = tmp_path_factory.mktemp("driver") / "driver.py"
    script.write_text(DRIVER)
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    with clusters.local(2) as cluster, Client(cluster) as client:
        call = [sys.executable, str(script), cluster.scheduler_address, f"{UNDER}/lr"]
        assert subprocess.run(call, env={**os.environ, **path}, check=False).returncode == -signal.SIGKILL
        study = small(f"{UNDER}/lr")
        assert 1 <= study.summary()["finished"] < 4
        return study.run(client, progress=False)


def test_a_study_whose_driver_was_killed_has_the_table_of_one_in_a_directory(plain: Study, there: Study) -> None:
    assert there.digest() == plain.digest()
    assert small(f"{UNDER}/lr").digest() == plain.digest()
    assert all(worker.startswith("tcp://") for worker in there.table().worker)


def test_each_finished_run_is_one_object_and_opens_as_it_did(plain: Study, there: Study) -> None:
    names = place(f"{UNDER}/lr").names("runs")
    assert sorted(names) == sorted(f"{run[5:]}.zip" for run in plain.table().run)
    for row in plain.table().itertuples():
        assert daskrl.Store.open(f"{UNDER}/lr/{row.run}").digest() == row.digest


def test_runs_and_studies_below_a_bucket_are_found_by_a_pattern(there: Study) -> None:
    daskrl.train(
        daskrl.PPO(hidden=(8,)), "CartPole-v1", store=f"{UNDER}/alone/ppo", env_steps=32, seed=3, streams=1,
        envs_per_stream=2, fragment_steps=16, progress=False,
    ).wait()  # fmt: skip
    of_study, bucket = [f"{UNDER}/lr/{run}" for run in there.table().run], f"s3://{objects.BUCKET}"
    for pattern in (f"{UNDER}/**", UNDER, f"{bucket}/exp*/**"):
        assert daskrl.runs(pattern).path.tolist() == [f"{UNDER}/alone/ppo", *of_study]
    for pattern in (f"{bucket}/exp*/*", f"{UNDER}/l?/runs/*", f"{UNDER}/lr"):
        assert daskrl.runs(pattern).path.tolist() == of_study
    found = daskrl.runs(f"{UNDER}/**")
    assert found.packed.tolist() == [False, *[True] * 4]
    assert found.algorithm.tolist() == ["PPO", *["DQN"] * 4]
    assert set(found.state) == {"finished"}
    assert daskrl.runs(f"{UNDER}/alone/ppo").seed.tolist() == [3]
    assert daskrl.runs(f"s3://{objects.BUCKET}/nothing/**").empty
    assert finding.runs(f"{UNDER}/**") == sorted([*of_study, f"{UNDER}/alone/ppo"])
    with pytest.raises(ConfigError, match="runs in memory are found by their own URL"):
        daskrl.runs("memory://a/**")


def test_the_command_line_shows_a_study_in_a_bucket(there: Study, here: Here) -> None:
    shown = json.loads(here("study", "show", f"{UNDER}/lr", "--json", cwd=Path.cwd()).stdout)
    assert shown["digest"] == there.digest()
    newest = json.loads(here("info", f"{UNDER}/lr", "--json", cwd=Path.cwd()).stdout)
    assert {row["run"] for row in newest["newest"]} == {*there.table().run}
    listed = json.loads(here("info", f"{UNDER}/**", "--json", cwd=Path.cwd()).stdout)
    assert [row["study"] for row in listed if row["study"]] == [f"{UNDER}/lr"] * 4
