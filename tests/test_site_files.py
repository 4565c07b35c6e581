"""Site files: what a cluster's users write down once. What they get wrong is named before anything is submitted."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from daskrl import clusters
from daskrl.clusters import jobs
from daskrl.errors import ConfigError

SITES = Path(__file__).parents[1] / "cluster"
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "sge": "qsub", "lsf": "bsub", "htcondor": "condor_submit"}
OWN = {
    "slurm": ["#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=8", "#SBATCH -t 12:00:00"],
    "pbs": ["#PBS -q gpu", "#PBS -l select=1:ncpus=8:ngpus=1:mem=32gb", "#PBS -l walltime=12:00:00"],
    "sge": ["#$ -q gpu.q", "#$ -pe smp 8", "#$ -l h_vmem=4G,gpu=1", "#$ -l h_rt=12:00:00"],
    "lsf": ["#BSUB -q gpuq", "#BSUB -gpu num=1", "#BSUB -n 8", "#BSUB -W 12:00"],
    "htcondor": ["request_gpus = 1", "MY.DaskWorkerCores = 8"],
}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every system's command to submit with, each of which notes that it was called."""
    place = tmp_path / "bin"
    place.mkdir()
    for name in {*SUBMIT.values(), "squeue", "qstat", "bjobs", "condor_q"}:
        command = place / name
        command.write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/called\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=":")
    return tmp_path / "called"


@pytest.mark.parametrize("system", clusters.SYSTEMS)
def test_the_site_file_of_each_system_makes_scripts_of_two_kinds_and_submits_nothing(
    commands: Path, system: str
) -> None:
    file = SITES / f"{system}.yaml"
    site = yaml.safe_load(file.read_text())
    cluster, bounds = clusters.from_file(file)
    with closing(cluster):
        rollout, learner = cluster.job_script().split("# of the learner's job\n")
    assert site["system"] == system
    assert bounds == site["adapt"]
    assert "--resources learner=1" in learner
    assert "--resources" not in rollout
    assert rollout.count("distributed.cli.dask_worker") == learner.count("distributed.cli.dask_worker") == 1
    for line in OWN[system]:
        assert line in learner
        assert line not in rollout
    assert not commands.exists()


def test_the_name_of_a_system_stands_for_a_file_with_nothing_else(commands: Path) -> None:
    cluster, bounds = clusters.from_file("slurm")
    with closing(cluster):
        assert "# of the learner's job" in cluster.job_script()
    assert bounds == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "system: slurm\nqueue: cpu\n",
            r"site.yaml: unknown key 'queue'\. Expected any of system, job, learner, adapt",
        ),
        ("system: slurms\n", r"site.yaml: system: expected one of slurm, .*, got 'slurms'"),
        ("job: {queue: cpu}\n", r"site.yaml: system: expected one of slurm, .*, got None"),
        ("system: slurm\njob: cpu\n", r"site.yaml: job: expected settings, one to a line, got 'cpu'"),
        (
            "system: slurm\nadapt: {most: 3}\n",
            r"site.yaml: adapt: unknown key 'most'\. Expected any of minimum, maximum",
        ),
        ("system: slurm\njob: {quee: cpu}\n", r"site.yaml: SLURMCluster: .*unexpected keyword argument 'quee'"),
        ("system: slurm\nlearner: {gres: 1}\n", r"site.yaml: SLURMCluster: .*unexpected keyword argument 'gres'"),
        ("system: slurm\njob: {walltime: long}\n", r"site.yaml: walltime: expected e.g. '01:00:00', got 'long'"),
        ("system: slurm\nadapt: {minimum: few}\n", r"site.yaml: adapt: minimum: expected an integer >= 0, got 'few'"),
        ("system: slurm\nadapt: {maximum: 2.5}\n", r"site.yaml: adapt: maximum: expected an integer >= 1, got 2.5"),
        ("system: slurm\nadapt: {minimum: 9}\n", r"site.yaml: adapt: maximum: expected an integer >= 9, got 8"),
        ("system: slurm\nadapt: {interval: 15s}\n", r"site.yaml: adapt: interval: expected seconds > 0, got '15s'"),
        ("system: slurm\nadapt: {interval: 0}\n", r"site.yaml: adapt: interval: expected seconds > 0, got 0"),
        ("system: slurm\nadapt: {patience: -1.5}\n", r"site.yaml: adapt: patience: expected seconds > 0, got -1.5"),
        ("system: slurm\nadapt: {patience: .inf}\n", r"site.yaml: adapt: patience: expected seconds > 0, got inf"),
        (
            "system: slurm\nadapt: {drain_timeout: }\n",
            r"site.yaml: adapt: drain_timeout: expected seconds > 0, got None",
        ),
        ("system: slurm\nadapt: {drain_timeout: true}\n", r"site.yaml: adapt: drain_timeout: .* > 0, got True"),
        (
            "system: slurm\njob: {scheduler_options: {prot: 8786}}\n",
            r"site.yaml: job: scheduler_options: unknown key 'prot'\. Expected any of .* host, .* interface, .* port, ",
        ),
        (
            "system: slurm\njob: {scheduler_options: 8786}\n",
            r"site.yaml: job: scheduler_options: expected settings, one to a line, got 8786",
        ),
        ("system: slurm\nlearner: gpu\n", r"site.yaml: learner: expected settings, one to a line, got 'gpu'"),
        ("system: slurm\nadapt: null\n", r"site.yaml: adapt: expected settings, one to a line, got None"),
        ("system: [slurm\n", r"site.yaml is not YAML: .*line 2"),
        ("just text\n", r"site.yaml: expected keys such as system: slurm, got 'just text'"),
    ],
)
def test_what_is_wrong_in_a_site_file_is_named(commands: Path, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        clusters.from_file(file)
    assert not commands.exists()


def test_what_adapt_can_take_is_taken(commands: Path, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    options = "{host: 127.0.0.1, port: 0, dashboard_address: ':0', idle_timeout: 1h}"
    file.write_text(
        f"system: slurm\njob: {{scheduler_options: {options}}}\n"
        "adapt: {minimum: 0, maximum: 1, interval: 0.5, patience: , drain_timeout: 60}\n"
    )
    cluster, bounds = clusters.from_file(file)
    cluster.close()
    assert bounds == {"minimum": 0, "maximum": 1, "interval": 0.5, "patience": None, "drain_timeout": 60}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"interval": "15s"}, r"^interval: expected seconds > 0, got '15s'\.$"),
        ({"patience": 0}, r"^patience: expected seconds > 0, got 0\.$"),
        ({"drain_timeout": None}, r"^drain_timeout: expected seconds > 0, got None\.$"),
        ({"minimum": -1}, r"^minimum: expected an integer >= 0, got -1\.$"),
    ],
)
def test_adapt_names_a_value_it_cannot_take_before_it_asks_the_cluster(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clusters.adapt(None, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "learners"), [("learner: null\n", 0), ("learner: {}\n", 1), ("", 1)])
def test_no_learner_in_a_site_file_is_no_job_for_one(commands: Path, tmp_path: Path, text: str, learners: int) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(f"system: slurm\n{text}")
    cluster, _ = clusters.from_file(file)
    with closing(cluster):
        assert cluster.job_script().count("# of the learner's job") == learners
        assert len(cluster.worker_spec) == learners
    assert not commands.exists()


def test_a_site_file_that_is_not_there_is_named_beside_the_systems() -> None:
    with pytest.raises(ConfigError, match=r"slrum: expected slurm, pbs, .* or a site file, but No such file"):
        clusters.from_file("slrum")


@pytest.mark.parametrize(
    ("walltime", "slurm", "seconds"),
    [
        ("01:00:00", True, 3600), ("30", True, 1800), ("30:15", True, 1815), ("2-01", True, 49 * 3600),
        ("1-00:30", True, 86400 + 1800), ("1-02:03:04", True, 93784), ("01:30", False, 5400), ("02:00:00", False, 7200),
    ],
)  # fmt: skip
def test_walltimes_are_read_as_the_system_reads_them(walltime: str, slurm: bool, seconds: int) -> None:
    assert jobs.seconds_of(walltime, minutes_first=slurm) == seconds


# What YAML 1.1 makes of each: 43200, 83, 8, 100000.0, True, a date, 90.
WRITTEN = {
    "walltime": "12:00:00", "account": "0123", "job_mem": "010", "job_name": "1e5", "queue": "on",
    "log_directory": "2026-01-01", "interface": "1:30",
}  # fmt: skip
DIRECTIVES = ["#SBATCH -t 12:00:00", "#SBATCH -A 0123", "#SBATCH --mem=010", "#SBATCH -J 1e5", "#SBATCH -p on",
              "#SBATCH -e 2026-01-01/", "--interface 1:30"]  # fmt: skip


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("part", ["job", "learner"])
def test_text_needs_no_quotes_whatever_yaml_takes_it_for(tmp_path: Path, part: str, quote: str) -> None:
    file = tmp_path / "site.yaml"
    settings = "".join(f"  {name}: {quote}{value}{quote}\n" for name, value in WRITTEN.items())
    file.write_text(f"system: slurm\n{part}:\n{settings}  cores: 3\n")
    rollout, learner = clusters.job_scripts(file).split("# of the learner's job\n")
    script = learner if part == "learner" else rollout
    for expected in [*DIRECTIVES, "#SBATCH --cpus-per-task=3", "--lifetime 42900s"]:
        assert expected in script
    assert ("#SBATCH -A 0123" in rollout) == (part == "job")


def test_an_unquoted_walltime_goes_to_the_cluster_as_it_is_written(commands: Path, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text("system: lsf\njob: &job\n  walltime: 12:30\nlearner:\n  <<: *job\n  walltime: 1:30\n")
    cluster, _ = clusters.from_file(file)
    with closing(cluster):
        rollout, learner = cluster.job_script().split("# of the learner's job\n")
    assert "#BSUB -W 12:30\n" in rollout
    assert "#BSUB -W 1:30\n" in learner


@pytest.mark.parametrize("walltime", [43200, None, 1.5])
def test_a_walltime_that_is_no_text_is_refused_by_name(commands: Path, walltime: Any) -> None:
    with pytest.raises(ConfigError, match=rf"walltime: expected text such as '01:00:00', got {walltime!r}"):
        clusters.slurm(walltime=walltime)


def test_a_prologue_may_be_a_block_of_text(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(
        "system: htcondor\njob:\n  disk: 1GB\n  job_script_prologue: |\n    # ours\n    module load x\n\n    . y\n"
    )
    assert clusters.job_scripts(file).count("; module load x; . y; ") == 2


@pytest.mark.parametrize("system", clusters.SYSTEMS)
def test_job_scripts_are_shown_on_a_machine_without_the_batch_system(tmp_path: Path, system: str) -> None:
    # Nor with its network, nor with a place for its logs, which nobody may make here.
    (tmp_path / "file").touch()
    text = (SITES / f"{system}.yaml").read_text()
    for comment in ("# interface: ib0 ", "# job_script_prologue: ", "#   - module load", "#   - source "):
        assert comment in text
        text = text.replace(comment, comment.replace("# ", "", 1).replace("#   - ", "  - "))
    (tmp_path / "site.yaml").write_text(text.replace("log_directory: logs", f"log_directory: {tmp_path}/file/logs"))
    shown = subprocess.run(
        [sys.executable, "-m", "daskrl", "jobs", "site.yaml"], env={**os.environ, "PATH": ""}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.stderr == ""
    rollout, learner = shown.stdout.split("# of the learner's job\n")
    for script in (rollout, learner):
        assert 0 < script.find("module load python/3.11") < script.find("source /shared/venv/bin/activate")
        assert script.find("source /shared/venv/bin/activate") < script.find("distributed.cli.dask_worker")
        assert f"{tmp_path}/file/logs" in script
        assert "--interface ib0" in script
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "site.yaml"]


def test_without_dask_jobqueue_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "dask_jobqueue.py").write_text("raise ImportError\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    shown = subprocess.run(
        [sys.executable, "-m", "daskrl", "jobs", "slurm"], env={**os.environ, "PATH": "", "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode != 0
    assert "pip install 'daskrl[jobqueue]'" in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(("script", "command"), [("train.sbatch", "daskrl train"), ("study.sbatch", "daskrl study")])
def test_the_drivers_job_has_a_place_for_modules_before_it_starts(script: str, command: str) -> None:
    lines = (SITES / script).read_text().splitlines()
    starts = next(i for i, line in enumerate(lines) if line.startswith(command))
    assert {"# module load python/3.11", "# source /shared/venv/bin/activate"} <= set(lines[:starts])
