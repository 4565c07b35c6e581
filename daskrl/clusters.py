"""Dask clusters for runs. Any cluster will do; these have the learner's worker set apart and first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from daskrl.config import require_integer

if TYPE_CHECKING:
    from distributed import SpecCluster


# A terminal sends Ctrl-C to every process of ours; the driver's is the one that answers it.
_IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"

# Dask keeps the last 1000 messages of every connection and events of every topic, and in them the arguments of tasks:
# over a long run tens of megabytes, of use to nobody but Dask's own developers.
_LOG_LENGTH, _LOGGED = "distributed.admin.low-level-log-length", 20

# What Dask samples and checks many times a second takes a few percent of every core from what its tasks compute.
# Placement is the driver's: there is nothing to steal.
_QUIET = {"distributed.admin.tick.interval": "1s", "distributed.scheduler.work-stealing": False}
# Of use only to who looks at the dashboard.
_UNWATCHED = {"distributed.admin.system-monitor.interval": "10s", "distributed.worker.profile.enabled": False}


def local(workers: int = 2, *, learner_threads: int = 1, dashboard: bool = False, **options: Any) -> SpecCluster:
    """A cluster on this machine: one learner's worker and ``workers`` rollout workers, a process each.

    Parameters
    ----------
    workers : rollout workers, of one thread each. ``cluster.scale(n + 1)`` changes it while a run goes on.
    learner_threads : ``OMP_NUM_THREADS`` of the learner's worker; give the run the same ``torch_threads``.
    dashboard : serve Dask's dashboard, on loopback; needs ``daskrl[dashboard]``. Dask then also profiles the workers,
        which costs them some percent.
    options : given to ``distributed.SpecCluster``.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    require_integer("workers", workers, 1)
    dask.config.set({_LOG_LENGTH: _LOGGED})
    quiet = _QUIET if dashboard else {**_QUIET, **_UNWATCHED}
    common = {
        "nthreads": 1, "host": "127.0.0.1", "dashboard": False, "silence_logs": 40, "memory_limit": 0,
        "preload": [_IGNORE_CTRL_C], "config": {**quiet, _LOG_LENGTH: _LOGGED},
    }  # fmt: skip
    rollout = {"cls": Nanny, "options": {**common, "env": _environment(1)}}
    learner = {
        "cls": Nanny,
        "options": {**common, "env": _environment(learner_threads), "resources": {"learner": 1}},
    }
    # The learner goes first: scale() takes the last ones away.
    spec = dict(enumerate([learner, *[rollout] * workers]))
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": "127.0.0.1", "port": 0, "dashboard": dashboard, "dashboard_address": "127.0.0.1:0",
            "allowed_failures": 30,
        },
    }  # fmt: skip
    settings: dict[str, Any] = {"silence_logs": 40, **options}

    class Local(SpecCluster):
        def _update_worker_status(self, op: str, msg: Any) -> None:
            # SpecCluster closes for good a worker that was away for 15 s. Ours have nannies that start them again,
            # which takes longer on a busy machine; with all of them gone, a run would wait for ever.
            super(SpecCluster, self)._update_worker_status(op, msg)  # type: ignore[no-untyped-call]

    with dask.config.set(quiet):  # read when the scheduler and the nannies start
        return Local(workers=spec, scheduler=scheduler, worker=rollout, **settings)  # type: ignore[no-untyped-call]


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return {**kept, **dict.fromkeys(names, str(threads))}
