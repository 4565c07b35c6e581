"""Runs on a real Slurm: whatever happens to its jobs, the digest of one process, and nothing left in the queue."""

from __future__ import annotations

import shutil
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, Security

import daskrl
from daskrl import clusters
from daskrl.cli.studyfile import StudyFile
from daskrl.errors import ConfigError
from daskrl.pools import election
from daskrl.study.log import StudyLog
from daskrl.study.table import digest as digest_of_study
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
    learner = {"queue": "gpu", "cores": 2, "job_extra_directives": ["--gres=gpu:1"]}
    return clusters.slurm(
        queue="cpu", memory="1GB", log_directory=str(place / "logs"), scheduler_options={"host": "127.0.0.1"},
        **{"learner": learner, **job},
    )  # fmt: skip


def job_of(partition: str) -> str:
    return next(job for job, where in slurm.jobs().items() if where == partition)


def nothing_is_left() -> bool:
    """Wait until Slurm has ended what was cancelled; it says so by itself within ``KillWait``."""
    slurm.until(lambda: not slurm.jobs("COMPLETING"), "the cancelled jobs have ended")
    return not slurm.jobs("RUNNING,PENDING,SUSPENDED")


def test_scripts_are_there_before_anything_is_submitted(place: Path) -> None:
    with cluster(place, account="lab", walltime="02:00:00") as made:
        before = set(slurm.jobs("all"))
        script = made.job_script()
        assert set(slurm.jobs("all")) <= before
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


SITE = """
system: slurm
job: {{queue: cpu, memory: 1GB, log_directory: {place}/logs, scheduler_options: {{host: 127.0.0.1}}}}
learner: {{queue: gpu, cores: 2, job_extra_directives: ["--gres=gpu:1"]}}
adapt: {{minimum: 2, maximum: 2, interval: 1, patience: 600}}
"""
TRAIN = (
    "train CartPole-v1 --store run --cluster site.yaml --resume --seed 3 --streams 2 --envs-per-stream 2 "
    "--fragment-steps 8 --episodes 0 --checkpoint-every 1000 --env-steps {steps} -s hidden=16, -s batch_size=8 "
    "-s learning_starts=32 -s replay_ratio=2.0 -s window=160"
)
STEPS = 8000  # 250 rounds


@pytest.fixture(scope="module")
def unattended_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the run that the batch job carries out, in one process."""
    algorithm = daskrl.DQN(hidden=(16,), batch_size=8, learning_starts=32, replay_ratio=2.0, window=160)
    run = daskrl.train(
        algorithm, "CartPole-v1", store=tmp_path_factory.mktemp("one") / "run", seed=3, streams=2, envs_per_stream=2,
        fragment_steps=8, env_steps=STEPS, progress=False,
    )  # fmt: skip
    return run.wait().store.digest()


def submit(place: Path, here: Path, *options: str) -> str:
    """The recipe's script, with a small run in it; the job's id."""
    recipe = (Path(__file__).parents[1] / "cluster" / "train.sbatch").read_text()
    command, rest = recipe.index("daskrl train"), recipe.index(" &\ndriver=")
    mine = f"{sys.executable} -m daskrl.cli {TRAIN.format(steps=STEPS)}"
    (here / "site.yaml").write_text(SITE.format(place=place))
    (here / "train.sbatch").write_text(recipe[:command] + mine + recipe[rest:])
    options = ("--partition=cpu", "--mem=1G", f"--chdir={here}", f"--output={here}/driver.log", *options)
    return slurm.call("sbatch", "--parsable", *options, str(here / "train.sbatch")).strip()


def wait_for_version(store: Path, version: int) -> None:
    """Until the run that another process drives has learned so much."""

    def learned() -> bool:
        assert slurm.jobs("RUNNING,PENDING,CONFIGURING,COMPLETING"), (store.parent / "driver.log").read_text()
        if not (store / ".commits").exists():
            return False
        return any(record["version"] >= version for record in daskrl.Store.open(store).records("learn"))

    slurm.until(learned, f"version {version} of {store}")


def state(job: str, field: str) -> str:
    fields = dict(part.partition("=")[::2] for part in slurm.call("scontrol", "show", "job", job).split())
    return fields[field]


def wait_for_state(job: str, *wanted: str) -> None:
    slurm.until(lambda: state(job, "JobState") in wanted, f"job {job} is {' or '.join(wanted)}")


def requeue(job: str) -> None:
    """Slurm's own: it stops the job's processes, and starts the job again."""
    slurm.call("scontrol", "requeue", job)


def near_walltime(job: str) -> None:
    """What Slurm does two minutes before the walltime; the script then requeues itself."""
    slurm.call("scancel", "--batch", "--signal=TERM", job)


@pytest.mark.parametrize("event", [requeue, near_walltime], ids=lambda event: event.__name__)
def test_a_batch_job_submits_its_own_workers_and_goes_on_where_it_was_started_again(
    place: Path, tmp_path: Path, unattended_digest: str, event: Callable[[str], None]
) -> None:
    job = submit(place, tmp_path)
    wait_for_version(tmp_path / "run", 20)
    first = slurm.jobs()
    assert sorted(first.values()) == ["cpu", "cpu", "cpu", "gpu"]  # the driver, two rollout jobs, the learner
    event(job)
    wait_for_state(job, "PENDING")
    log = (tmp_path / "driver.log").read_text()
    assert not daskrl.resume(tmp_path / "run").finished
    if event is near_walltime:
        assert "Stopped by a signal; everything learned is kept" in log
        (made,) = daskrl.Store.open(tmp_path / "run").records("checkpoint")
        *_, learned = daskrl.Store.open(tmp_path / "run").records("learn")
        assert made["version"] == learned["version"]
    # Slurm itself waits two minutes. A start in the second in which the job was stopped is refused ("already killed").
    slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now+3")
    wait_for_state(job, "COMPLETED", "FAILED")
    assert (state(job, "ExitCode"), state(job, "Restarts")) == ("0:0", "1"), (tmp_path / "driver.log").read_text()
    assert daskrl.Store.open(tmp_path / "run").digest() == unattended_digest
    assert set(slurm.jobs()) <= set(first)  # a driver that ends cancels its jobs
    if event is requeue:  # one that is killed cannot: workers without a scheduler end after a minute
        slurm.until(lambda: not slurm.jobs(), "the first driver's workers have ended")
    assert nothing_is_left()


STUDY = """
path = "study"
env = "CartPole-v1"
env_steps = 2_000
seeds = 6
score = {kind = "greedy", episodes = 2}
streams = 2
envs_per_stream = 2
fragment_steps = 8
checkpoint_every = 1000

[algorithm]
name = "dqn"
hidden = [16]
batch_size = 8
learning_starts = 32
replay_ratio = 2.0
window = 160

[space]
learning_rate = [1e-4, 1e-3]
"""


@pytest.fixture(scope="module")
def study_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the study that the batch job carries out, in one process, never stopped."""
    place = tmp_path_factory.mktemp("study")
    (place / "study.toml").write_text(STUDY.replace('"study"', f'"{place}/study"'))
    return StudyFile(str(place / "study.toml")).study().run(progress=False).digest()


def finished(study: Path) -> int:
    return sum("error" not in record for record in StudyLog.open(study).results.values()) if study.exists() else 0


@pytest.mark.parametrize("event", [requeue, near_walltime], ids=lambda event: event.__name__)
def test_a_study_is_one_batch_job_that_goes_on_where_it_was_started_again(
    place: Path, tmp_path: Path, study_digest: str, event: Callable[[str], None]
) -> None:
    recipe = (Path(__file__).parents[1] / "cluster" / "study.sbatch").read_text()
    command, rest = recipe.index("daskrl study"), recipe.index(" &\ndriver=")
    mine = f"{sys.executable} -m daskrl.cli study run study.toml --cluster site.yaml --resume"
    (tmp_path / "study.sbatch").write_text(recipe[:command] + mine + recipe[rest:])
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "site.yaml").write_text(SITE.format(place=place))
    options = ("--partition=cpu", "--mem=1G", f"--chdir={tmp_path}", f"--output={tmp_path}/driver.log")
    job = slurm.call("sbatch", "--parsable", *options, str(tmp_path / "study.sbatch")).strip()
    study = tmp_path / "study"

    def begun() -> bool:
        assert state(job, "JobState") in ("PENDING", "CONFIGURING", "RUNNING"), (tmp_path / "driver.log").read_text()
        return finished(study) >= 2

    slurm.until(begun, "two runs of the study are finished")
    event(job)
    wait_for_state(job, "PENDING")
    before = finished(study)
    assert before < 12
    if event is near_walltime:
        log = (tmp_path / "driver.log").read_text()
        assert "Stopped by a signal; everything committed is kept. Type: daskrl study run study.toml" in log
    seconds = {key: record["seconds"] for key, record in StudyLog.open(study).results.items()}
    slurm.call("scontrol", "update", f"jobid={job}", "StartTime=now+3")
    wait_for_state(job, "COMPLETED", "FAILED")
    assert (state(job, "ExitCode"), state(job, "Restarts")) == ("0:0", "1"), (tmp_path / "driver.log").read_text()
    ended = StudyLog.open(study)
    assert digest_of_study(ended) == study_digest
    assert {key: ended.results[key]["seconds"] for key in seconds} == seconds  # none of them was run again
    slurm.until(lambda: not slurm.jobs(), "the first driver's workers have ended")
    assert nothing_is_left()


def test_a_queue_that_never_starts_the_learner_is_said_and_it_learns_beside_the_driver_where_that_was_asked_for(
    place: Path, tmp_path: Path, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(election, "SAY_AFTER", 0.0)
    learner = {"queue": "gpu", "cores": 2, "job_extra_directives": ["--begin=now+1hour"]}
    with cluster(place, learner=learner) as made, Client(made) as client:
        clusters.adapt(made, 1, 1, interval=1, patience=600)
        client.wait_for_workers(1, timeout=120)
        run = start(tmp_path / "run", client=client)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=r"0 s without the learner's worker")  # and so the run ends
            with pytest.raises(UserWarning, match=r"its job waits .* The run is waiting on"):
                run.wait()
        assert not run.store.fragments()
        resumed = daskrl.resume(tmp_path / "run", client=client, learner_timeout=0.0, progress=False)
        with pytest.warns(UserWarning, match="it learns beside the driver"):
            assert resumed.wait().store.digest() == digest
    assert nothing_is_left()


def test_a_client_without_the_clusters_certificate_is_refused(place: Path) -> None:
    with cluster(place) as made:
        address, port = made.scheduler_address, made.scheduler_address.rpartition(":")[2]
        assert address.startswith("tls://")
        for security, wrong in ((None, f"tcp://127.0.0.1:{port}"), (Security.temporary(), address)):
            with pytest.raises((OSError, ValueError)):
                Client(wrong, security=security, timeout="2s")
        with Client(address, security=made.security) as client:
            assert client.scheduler_info()["address"] == address
        listening = made.scheduler.http_server._sockets.values()
        assert {socket_.getsockname()[0] for socket_ in listening} == {"127.0.0.1"}


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
    before = set(slurm.jobs("all"))
    with pytest.raises(ConfigError, match=message):
        clusters.slurm(scheduler_options={"host": "127.0.0.1"}, **settings)
    assert set(slurm.jobs("all")) <= before  # no job was sent; Slurm forgets old ones meanwhile
