"""Dask clusters for runs. Any cluster will do; these have the learner's worker set apart and first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskrl.names import lazily

if TYPE_CHECKING:
    from daskrl.clusters.jobs import SYSTEMS, adapt, from_file, htcondor, job_scripts, local, lsf, mpi, pbs, sge, slurm

__all__ = ["SYSTEMS", "adapt", "from_file", "htcondor", "job_scripts", "local", "lsf", "mpi", "pbs", "sge", "slurm"]

__getattr__, __dir__ = lazily(__name__, {"daskrl.clusters.jobs": __all__})
