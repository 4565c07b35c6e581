"""Workers that are started on this machine: a process each, its threads fixed, there in a moment.

Python and torch take seconds to start. One process beside this one, Python's fork server, imports once what tasks need,
and each worker is a fork of it. A worker that was lost is back as fast.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from daskrl.pools.demand import LEARNER

if TYPE_CHECKING:
    from distributed import Client, Nanny

# A terminal sends Ctrl-C to every process of ours; the driver's is the one that answers it.
_IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
# What a task raises the driver raises again, for whoever waits for the run, and it says when the scheduler is lost. A
# worker would print it all too, the latter also when a cluster is closed in the middle of a heartbeat.
_SAY_NO_ERROR_TWICE = (
    "import logging; logging.getLogger('distributed.worker').addFilter(lambda record: not str(record.msg)."
    "startswith(('Compute Failed', 'Failed to communicate with scheduler during heartbeat')))"
)

# Dask keeps the last 1000 messages of every connection and events of every topic, and in them the arguments of tasks:
# over a long run tens of megabytes, of use to nobody but Dask's own developers.
LOG_LENGTH, LOGGED = "distributed.admin.low-level-log-length", 20

# What Dask samples and checks many times a second takes a few percent of every core from what its tasks compute.
# Placement is the driver's: there is nothing to steal.
QUIET = {"distributed.admin.tick.interval": "1s", "distributed.scheduler.work-stealing": False}
# Of use only to who looks at the dashboard.
UNWATCHED = {"distributed.admin.system-monitor.interval": "10s", "distributed.worker.profile.enabled": False}

LOOPBACK = "127.0.0.1:0"  # where what Dask serves over HTTP listens: it is neither encrypted nor protected

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

PRELOAD = "daskrl.tasks.preload"
# Of `dask worker`. Its option --preload would have the nanny import it all too.
PRELOAD_VARIABLE = "DASK_DISTRIBUTED__WORKER__PRELOAD"
_FORKED = {"distributed.worker.multiprocessing-method": "forkserver"}


_HELD: dict[str, tuple[int, Any, Any]] = {}  # key -> how many hold it, what it was, what it is meanwhile
_HOLDING = threading.Lock()


def held(settings: Mapping[str, Any]) -> contextlib.ExitStack:
    """Set Dask's configuration, which is the whole process's, until what is returned is closed, or left.

    What several hold, at the same time and in any order, the last puts back; unless somebody set it meanwhile.
    """
    import dask

    stack = contextlib.ExitStack()
    for key, value in settings.items():
        with _HOLDING:
            count, before, _ = _HELD.get(key, (0, dask.config.get(key, None), None))
            _HELD[key] = count + 1, before, value
            dask.config.set({key: value})
        stack.callback(_let_go, key)
    return stack


def _let_go(key: str) -> None:
    import dask

    with _HOLDING:
        count, before, meanwhile = _HELD.pop(key)
        if count > 1:
            _HELD[key] = count - 1, before, meanwhile
        elif dask.config.get(key, None) == meanwhile:
            dask.config.set({key: before})


@functools.cache
def forking_nanny() -> type[Nanny]:
    """The class of a nanny whose worker is a fork of the fork server."""
    from distributed import Nanny
    from distributed.utils import get_mp_context

    class ForkingNanny(Nanny):
        async def instantiate(self) -> Any:
            with held(_FORKED):
                get_mp_context()  # has imports of its own, the first time
                multiprocessing.get_context("forkserver").set_forkserver_preload(["distributed", PRELOAD])
                return await super().instantiate()

    return ForkingNanny


def quiet(watched: bool = False) -> dict[str, Any]:
    """Dask's configuration where nobody, or somebody, looks at the dashboard."""
    return QUIET if watched else {**QUIET, **UNWATCHED}


def nanny_options(threads: int, *, learner: bool, watched: bool = False) -> dict[str, Any]:
    """Of a nanny whose worker runs one task at a time, with so many threads for its arithmetic."""
    return {
        "nthreads": 1, "dashboard": False, "dashboard_address": LOOPBACK, "silence_logs": 40, "memory_limit": 0,
        "preload": [_IGNORE_CTRL_C, _SAY_NO_ERROR_TWICE, PRELOAD],
        "config": {**quiet(watched), LOG_LENGTH: LOGGED}, "env": {**os.environ, **dict.fromkeys(THREADS, str(threads))},
        "resources": {LEARNER: 1} if learner else {},
    }  # fmt: skip


def learner_beside(client: Client, name: str, threads: int, reached_from: str) -> Nanny:
    """A worker beside this process for learners, on a scheduler elsewhere. ``client.sync(nanny.close)`` ends it.

    It listens where the scheduler is reached from here, on loopback if that is where the scheduler is.

    Parameters
    ----------
    name : of the worker.
    threads : of its arithmetic.
    reached_from : address of a worker that will fetch weights from it.

    Raises
    ------
    OSError, RuntimeError
        It did not come up, or is not reached.
    """
    from distributed.comm.addressing import get_address_host
    from distributed.utils import get_ip

    scheduler: str = client.scheduler_info(n_workers=0)["address"]
    host = get_ip(get_address_host(scheduler))

    async def start() -> Nanny:
        made: Nanny = await forking_nanny()(
            scheduler, name=name, host=host, security=client.security, **nanny_options(threads, learner=True)
        )
        return made

    nanny: Nanny = client.sync(start)
    address, reached = nanny.worker_address, False
    try:
        reached = client.run(_reaches, address, workers=[reached_from])[reached_from]
    finally:
        if not reached:
            client.sync(nanny.close)
    if not reached:
        raise RuntimeError(f"{reached_from} does not reach it at {address}")
    return nanny


async def _reaches(address: str, dask_worker: Any) -> bool:
    """On a worker: whether it can fetch what another one has."""
    try:
        await dask_worker.rpc(address).identity()
    except OSError:
        return False
    return True
