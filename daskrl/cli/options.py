"""Options that several commands have: how each is typed, and what its help says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def _help(text: str) -> Parameter:
    return Parameter(help=" ".join(text.split()))


StorePath = Annotated[str, _help("Directory of the run.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
SummaryAsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print the summary as JSON.")]

# -- a user's own, once more -----------------------------------------------------------------------------

Env = Annotated[str | None, _help("""
    Again the module:function or FILE.py:function the run was made with, where it was one.
""")]  # fmt: skip
Keywords = Annotated[list[str] | None, Parameter(
    name="--env-kwargs", negative="", help="Again the arguments of that function, NAME=VALUE, any number of times.",
)]  # fmt: skip
OwnAlgorithm = Annotated[str | None, _help("""
    Again the module:Class or FILE.py:Class the run was made with, where it was your own.
""")]  # fmt: skip
Version = Annotated[str | None, _help("""
    Weights version, or best: that with the highest mean return of those evaluated while the run went on
    (--evaluate-every). The newest kept by default, with a warning where a newer one was published.
""")]  # fmt: skip

# -- where a run is carried out ---------------------------------------------------------------------------

Workers = Annotated[int | None, _help("""
    Rollout workers of a Dask cluster on this machine, beside one for the learner; 0 runs in this process. 2 unless
    said. With --cluster, the most there may be.
""")]  # fmt: skip
Scheduler = Annotated[str | None, _help("Address of a running Dask scheduler to use instead.")]
Cluster = Annotated[str | None, _help("""
    slurm, pbs, sge, lsf, htcondor, or a site file: submit jobs that do the work. See daskrl jobs. Or mpi: the processes
    that mpirun started do it.
""")]  # fmt: skip

# -- where the numbers of a run go ------------------------------------------------------------------------

Episodes = Annotated[int, _help("Greedy episodes played for the table at the end; 0 for none.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Sinks:
    """The sinks asked for."""

    tensorboard: Annotated[Path | None, _help("""
        Directory for TensorBoard, which gets the numbers of the run as it goes on. Needs daskrl[tensorboard].
    """)] = None  # fmt: skip
    mlflow: Annotated[str | None, _help("""
        MLflow experiment that gets them; a run that is resumed goes on in its MLflow run. Needs daskrl[mlflow].
    """)] = None  # fmt: skip
    prometheus: Annotated[int | None, _help("""
        Port of this machine, on loopback, that serves them to Prometheus. Needs daskrl[prometheus].
    """)] = None  # fmt: skip
    csv: Annotated[Path | None, _help("""
        CSV file that gets a row of them for each version of the weights; a run that is resumed goes on in it.
    """)] = None  # fmt: skip
    wandb: Annotated[str | None, _help("""
        Weights & Biases project that gets them; a run that is resumed goes on in its W&B run. Needs daskrl[wandb].
    """)] = None  # fmt: skip


NO_SINKS = Sinks()
