"""Dask clusters for runs. Any cluster will do; these have the learner's worker set apart and first."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from daskrl.config import require_integer

if TYPE_CHECKING:
    from distributed import Adaptive, SpecCluster
    from distributed.deploy.cluster import Cluster


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


def adapt(
    cluster: Cluster,
    minimum: int = 1,
    maximum: int = 8,
    *,
    interval: float | None = None,
    patience: float | None = None,
    drain_timeout: float = 600.0,
) -> Adaptive:
    """Let the rollout workers of a cluster follow what the learners of its runs can use.

    While a learner waits for rounds, workers are added; while streams wait for weights, some are taken away, those that
    hold least first. They are drained before they close, and the learner's worker is never closed. ``minimum=maximum``
    keeps a number and has jobs that ended submitted again. ``daskrl.demand`` says how the number comes about.

    Parameters
    ----------
    cluster : any of Dask's that can scale.
    minimum, maximum : rollout workers; a learner's worker comes on top.
    interval : seconds between decisions; by default 1, on a batch system 15.
    patience : seconds that fewer workers have to be enough before some are closed, or taken out of a queue; by default
        10, on a batch system 120.
    drain_timeout : seconds that a worker may take to finish its rollouts before it is closed all the same. They then
        run again elsewhere.

    Returns
    -------
    What acts; ``.stop()`` leaves the workers as they are.
    """
    from distributed import Client

    from daskrl.scaling import LearnerDemand, install

    require_integer("minimum", minimum, 0)
    require_integer("maximum", maximum, max(1, minimum))
    batch = hasattr(cluster, "job_script")
    interval = interval or (15.0 if batch else 1.0)
    patience = patience or (120.0 if batch else 10.0)
    with Client(cluster, set_as_default=False) as client:
        install(client)
    return cluster.adapt(
        Adaptive=LearnerDemand, minimum=minimum, maximum=maximum, interval=f"{interval}s",
        wait_count=max(1, round(patience / interval)), drain_timeout=drain_timeout,
    )  # fmt: skip


def _environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return {**kept, **dict.fromkeys(names, str(threads))}
