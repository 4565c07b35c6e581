"""Dask clusters for runs. Any cluster will do; these have the learner's worker set apart and first."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import math
import os
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskrl import extras
from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError
from daskrl.pools.demand import LEARNER
from daskrl.pools.workers import (
    LOG_LENGTH,
    LOGGED,
    LOOPBACK,
    PRELOAD,
    PRELOAD_VARIABLE,
    THREADS,
    forking_nanny,
    held,
    nanny_options,
    quiet,
)

if TYPE_CHECKING:
    from dask_jobqueue.core import JobQueueCluster
    from distributed import Adaptive, Client, SpecCluster
    from distributed.deploy.cluster import Cluster


# Deaths of workers that Dask forgives a task: where nodes are taken away, a death says little of what ran there.
_ALLOWED_FAILURES = 30


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
    from distributed import Scheduler, SpecCluster

    workers = plain(workers)
    require_integer("workers", workers, 1)
    if dashboard:
        with extras.needed("dashboard", "Dask's dashboard needs bokeh"):
            importlib.import_module("bokeh")
    rollout, learner = (
        {
            "cls": forking_nanny(),
            "options": {"host": "127.0.0.1", **nanny_options(threads, learner=learns, watched=dashboard)},
        }
        for threads, learns in ((1, False), (learner_threads, True))
    )
    # The learner goes first: scale() takes the last ones away.
    spec: dict[Any, Any] = {LEARNER: learner, **dict(enumerate([rollout] * workers))}
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": "127.0.0.1", "port": 0, "dashboard": dashboard, "dashboard_address": LOOPBACK,
            "allowed_failures": _ALLOWED_FAILURES,
        },
    }  # fmt: skip
    settings: dict[str, Any] = {"silence_logs": 40, **options}

    class Local(SpecCluster):
        def _update_worker_status(self, op: str, msg: Any) -> None:
            # SpecCluster closes for good a worker that was away for 15 s. Ours have nannies that start them again,
            # which takes longer on a busy machine; with all of them gone, a run would wait for ever.
            super(SpecCluster, self)._update_worker_status(op, msg)  # type: ignore[no-untyped-call]

        async def _close(self) -> None:
            try:
                await super()._close()  # type: ignore[no-untyped-call]
            finally:
                logs.close()

    logs = held({LOG_LENGTH: LOGGED})  # read for every connection to the scheduler, which is in this process
    try:
        with held(quiet(dashboard)):  # read when the scheduler and the nannies start
            return Local(workers=spec, scheduler=scheduler, worker=rollout, **settings)  # type: ignore[no-untyped-call]
    except BaseException:
        logs.close()
        raise


def slurm(*, learner: Mapping[str, Any] | None = None, **job: Any) -> JobQueueCluster:
    """A cluster of jobs on Slurm: a learner's, and any number of rollout jobs beside it. Needs ``daskrl[jobqueue]``.

    Nothing is submitted yet: look at ``print(cluster.job_script())``, and then have `adapt` submit the jobs and submit
    those again that ended or were taken away. Connections are encrypted and both sides have to show a certificate of
    this cluster (TLS); the dashboard is on loopback.

    Parameters
    ----------
    learner : what the learner's job has different from the others, e.g. ``{"queue": "gpu", "cores": 8, "walltime":
        "12:00:00", "job_extra_directives": ["--gres=gpu:1"]}``. None for no such job: it learns beside the driver.
    job : of every job, as for ``dask_jobqueue.SLURMCluster``, e.g. ``queue="cpu", account="lab", memory="4GB",
        walltime="01:00:00", interface="ib0", log_directory="logs"``. One core and one process unless said. A worker
        takes nothing more about six minutes before its walltime, and leaves once it is idle, a minute later at the
        latest; what it was at then runs again elsewhere.

    Raises
    ------
    ConfigError
        The system's commands are not there, or a setting is unknown.
    """
    return _jobs("SLURMCluster", learner, job)


def pbs(*, learner: Mapping[str, Any] | None = None, **job: Any) -> JobQueueCluster:
    """`slurm`, for PBS: settings as for ``dask_jobqueue.PBSCluster``."""
    return _jobs("PBSCluster", learner, job)


def sge(*, learner: Mapping[str, Any] | None = None, **job: Any) -> JobQueueCluster:
    """`slurm`, for SGE: settings as for ``dask_jobqueue.SGECluster``."""
    return _jobs("SGECluster", learner, job)


def lsf(*, learner: Mapping[str, Any] | None = None, **job: Any) -> JobQueueCluster:
    """`slurm`, for LSF: settings as for ``dask_jobqueue.LSFCluster``; a walltime has hours and minutes."""
    return _jobs("LSFCluster", learner, job)


def htcondor(*, learner: Mapping[str, Any] | None = None, **job: Any) -> JobQueueCluster:
    """`slurm`, for HTCondor: settings as for ``dask_jobqueue.HTCondorCluster``; needs ``disk``, has no walltime."""
    return _jobs("HTCondorCluster", learner, job)


@contextlib.contextmanager
def mpi(**options: Any) -> Iterator[Client]:
    """A cluster of the processes that ``mpirun`` started, for as long as the block lasts. Needs ``daskrl[mpi]``.

    Rank 1 alone enters the block, with a client. Rank 0 is the scheduler, rank 2 learns, the others roll out; when the
    block is left, they end. Connections are encrypted, with a certificate made for this cluster. MPI ends all processes
    when one of them dies: resume then.

    Parameters
    ----------
    options : given to ``dask_mpi.initialize``, e.g. ``interface="ib0"``.

    Raises
    ------
    ConfigError
        Fewer than four processes.
    """
    from distributed import Client, Security

    with extras.needed("mpi", "MPI needs dask-mpi, mpi4py and cryptography"):
        importlib.import_module("cryptography")  # what Dask makes certificates with
        from dask_mpi import initialize, send_close_signal
        from mpi4py import MPI
    rank, size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    if size < 4:
        raise ConfigError(
            f"expected 4 processes or more (the scheduler's, the driver's, the learner's, and rollouts'), got {size}. "
            "Type: mpirun -n 4 daskrl train ... --cluster mpi"
        )
    certificate = MPI.COMM_WORLD.bcast(Security.temporary().get_tls_config_for_role("client") if rank == 0 else None)
    roles = [f"distributed.comm.tls.{role}" for role in ("scheduler", "worker", "client")]
    secured = held(
        {
            "distributed.comm.tls.ca-file": certificate["ca_file"], "distributed.comm.require-encryption": True,
            **{f"{role}.{name}": certificate[name] for role in roles for name in ("cert", "key")},
            "distributed.scheduler.allowed-failures": _ALLOWED_FAILURES, LOG_LENGTH: LOGGED, **quiet(),
        }
    )  # fmt: skip
    worker = {"dashboard_address": LOOPBACK, "resources": {LEARNER: 1} if rank == 2 else {}}
    settings: dict[str, Any] = {
        "dashboard": False, "dashboard_address": LOOPBACK, "memory_limit": 0, "protocol": "tls", **options,
        "worker_options": {**worker, **options.get("worker_options", {})},
    }  # fmt: skip
    try:
        drives = initialize(exit=False, **settings)
    except BaseException:
        traceback.print_exc()
        MPI.COMM_WORLD.Abort(1)  # the others would wait for ever
    if not drives:
        sys.exit()
    try:
        with Client() as client:
            client.wait_for_workers(size - 2)  # one that is still on its way would not be told of the end
            yield client
    finally:
        send_close_signal()
        secured.close()


SYSTEMS = {"slurm": slurm, "pbs": pbs, "sge": sge, "lsf": lsf, "htcondor": htcondor}
_KINDS = {
    "slurm": "SLURMCluster", "pbs": "PBSCluster", "sge": "SGECluster", "lsf": "LSFCluster",
    "htcondor": "HTCondorCluster",
}  # fmt: skip

# Settings of jobs that are no text. YAML 1.1 reads 12:00:00 as 43200, 0123 as 83, on as True: all others stay as they
# are written.
_NO_TEXT = frozenset(
    {
        "cores", "processes", "ncpus", "mem", "job_cpu", "death_timeout", "nanny", "use_stdin", "scheduler_options",
        "security", "n_workers", "silence_logs", "asynchronous",
    }
)  # fmt: skip
_LINES = ("worker_extra_args", "job_script_prologue", "job_extra_directives", "job_directives_skip")


def from_file(path: str | os.PathLike[str]) -> tuple[JobQueueCluster, dict[str, Any]]:
    """The cluster that a site file describes, and what to give to `adapt`. Nothing is submitted yet.

    A site file is YAML with ``system`` (slurm, pbs, sge, lsf or htcondor), and any of ``job`` (settings of every job),
    ``learner`` (what the learner's job has different; ``learner: null`` for no such job: it learns beside the driver)
    and ``adapt`` (``minimum``, ``maximum``, ...). ``cluster/`` has one for each system. The name of a system alone
    stands for a file with nothing else, and takes the rest from Dask's own configuration. Settings of jobs that are
    text need no quotes: ``walltime: 12:00:00``, ``account: 0123``.

    Raises
    ------
    ConfigError
        No such file, a key or setting that is unknown, a value that `adapt` cannot take, or the system's commands are
        not there.
    """
    name, site = _described(path)
    try:
        return SYSTEMS[site["system"]](learner=site["learner"], **site["job"]), site["adapt"]
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def job_scripts(path: str | os.PathLike[str]) -> str:
    """The scripts of the jobs that a site file describes, as `from_file` reads it. Anywhere: nothing is started.

    Neither the batch system's commands need be there, nor the network and the directories that the file names.

    Raises
    ------
    ConfigError
        No such file, or a key or setting that is unknown.
    """
    name, site = _described(path)
    _jobqueue()  # here: it sets a signal handler, which only the main thread may

    async def made() -> str:
        from distributed.core import Status

        with tempfile.TemporaryDirectory() as somewhere:  # dask-jobqueue makes the directory of the logs at once
            settings = [{**site["job"]}, *([{**site["learner"]}] if site["learner"] is not None else [])]
            renamed: dict[str, str] = {}
            for i, part in enumerate(settings):
                if part.get("log_directory") is not None:
                    place = f"{somewhere}/{i}"
                    renamed[place], part["log_directory"] = str(part["log_directory"]), place
            learner = settings[1] if len(settings) == 2 else None
            cluster = _jobs(_KINDS[site["system"]], learner, settings[0], asynchronous=True)
            script: str = cluster.job_script()  # type: ignore[no-untyped-call]
            cluster.status = Status.closed  # it never began
        for place, asked in renamed.items():
            script = script.replace(place, asked)
        return script

    try:
        with ThreadPoolExecutor(1) as thread:  # Jupyter has a loop of its own in this one
            return thread.submit(asyncio.run, made()).result()
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _described(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """A site file's name and its keys, all of them there and checked."""
    name = os.fspath(path)
    site: dict[str, Any] = {"system": name} if name in SYSTEMS else _site(Path(name))
    _known(name, site, ["system", "job", "learner", "adapt"])
    if site.get("system") not in SYSTEMS:
        raise ConfigError(f"{name}: system: expected one of {', '.join(SYSTEMS)}, got {site.get('system')!r}.")
    for part in ("job", "learner", "adapt"):
        if not isinstance(site.setdefault(part, {}), dict) and (part, site[part]) != ("learner", None):
            raise ConfigError(f"{name}: {part}: expected settings, one to a line, got {site[part]!r}.")
    _known(f"{name}: adapt", site["adapt"], [*inspect.signature(adapt).parameters][1:])
    given = inspect.signature(adapt).bind(None, **site["adapt"])
    given.apply_defaults()
    try:
        _bounds(*given.args[1:], **given.kwargs)
    except ConfigError as error:
        raise ConfigError(f"{name}: adapt: {error}") from error
    options = site["job"].get("scheduler_options", {})
    if not isinstance(options, dict):
        raise ConfigError(f"{name}: job: scheduler_options: expected settings, one to a line, got {options!r}.")
    _known(f"{name}: job: scheduler_options", options, _of_scheduler())
    return name, site


def _site(path: Path) -> dict[str, Any]:
    """What a site file holds."""
    with extras.needed("jobqueue", "site files need PyYAML"):
        import yaml  # type: ignore[import-untyped]

    class AsWritten(yaml.SafeLoader):  # type: ignore[misc]
        """Reads every value as its text, but nothing as None."""

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] in ("null", "merge")]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        text = path.read_text()
        site, written = yaml.safe_load(text), yaml.load(text, Loader=AsWritten)
    except OSError as error:
        raise ConfigError(f"{path}: expected {', '.join(SYSTEMS)}, or a site file, but {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(site, dict):
        raise ConfigError(f"{path}: expected keys such as system: slurm, got {site!r}.")
    for part in ("job", "learner"):
        if isinstance(site.get(part), dict):
            kept = {str(name): value for name, value in site[part].items() if name in _NO_TEXT}
            site[part] = {name: kept.get(name, value) for name, value in written[part].items()}
    return site


def _known(where: str, given: Mapping[str, Any], known: list[str]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}. Expected any of {', '.join(known)}.")


def _of_scheduler() -> list[str]:
    """Names of what a scheduler can be given. Dask itself fails on others late, and without their name."""
    from distributed import Scheduler
    from distributed.core import Server

    taken = {**inspect.signature(Scheduler).parameters, **inspect.signature(Server).parameters}
    return sorted(name for name in taken if name != "kwargs")


def _bounds(minimum: int, maximum: int, *, interval: object, patience: object, drain_timeout: object) -> None:
    """Raise `ConfigError` unless `adapt` can take them."""
    require_integer("minimum", minimum, 0)
    require_integer("maximum", maximum, max(1, minimum))
    for name, value in (("interval", interval), ("patience", patience), ("drain_timeout", drain_timeout)):
        if value is None and name != "drain_timeout":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigError(f"{name}: expected seconds > 0, got {value!r}.")


def _jobqueue() -> Any:
    """The module dask_jobqueue."""
    with extras.needed("jobqueue", "batch systems need dask-jobqueue and cryptography"):
        importlib.import_module("cryptography")  # what Dask makes certificates with
        if sys.modules.get("dask_jobqueue") is not None:
            return sys.modules["dask_jobqueue"]
        handler = signal.getsignal(signal.SIGINT)
        try:
            import dask_jobqueue  # 0.9 takes Ctrl-C for itself: Jupyter could not interrupt any more
        finally:
            signal.signal(signal.SIGINT, handler)
    return dask_jobqueue


def _jobs(
    kind: str, learner: Mapping[str, Any] | None, job: Mapping[str, Any], *, asynchronous: bool = False
) -> JobQueueCluster:
    """A cluster of jobs, its scheduler running; with ``asynchronous``, to be looked at only, and from a coroutine."""
    from distributed import Security
    from distributed.core import Status

    base = getattr(_jobqueue(), kind)
    command = base.job_cls.submit_command.split()[0]
    if not asynchronous and shutil.which(command) is None:
        raise ConfigError(
            f"{command} is not on the path of {os.uname().nodename}, so no job can be submitted from here. Run this "
            "where it is, on a login node or in a job, or use daskrl.clusters.local(). The scripts alone are shown "
            "anywhere: daskrl jobs FILE."
        )
    private = Path.home() / ".cache" / "daskrl"  # must be shared by the nodes, as home directories are
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    given = {
        "shared_temp_directory": str(private), **_job(kind, job),
        "security": job.get("security") or Security.temporary(),
        "scheduler_options": {
            "dashboard_address": LOOPBACK, "allowed_failures": _ALLOWED_FAILURES,
            **job.get("scheduler_options", {}),
        },
    }  # fmt: skip

    class Jobs(base):  # type: ignore[misc, valid-type]
        """Jobs of two kinds, submitted again where the batch system refused one."""

        refused = ""  # what it said last

        def __enter__(self) -> Jobs:
            super().__enter__()
            if LEARNER in self.worker_spec and LEARNER not in self.workers:
                self.close()
                raise ConfigError(f"{command} refused the learner's job: {self.refused}")
            return self

        async def _correct_state_internal(self) -> None:
            try:
                await super()._correct_state_internal()
            except (OSError, RuntimeError, ValueError) as error:
                refused = [name for name, made in self.workers.items() if made.status == Status.created]
                if not refused:
                    raise
                for name in refused:  # Dask would take it for submitted, and never try again
                    self._created.discard(self.workers.pop(name))
                said = str(error).rpartition("stderr:")[2].strip()
                if said != self.refused:
                    self.refused = said
                    warnings.warn(
                        f"{command} refused {len(refused)} of the jobs: {said}. clusters.adapt tries again.",
                        stacklevel=2,
                    )

        async def _close(self) -> None:
            try:
                await super()._close()
            finally:
                logs.close()

        def job_script(self) -> str:
            scripts = {"of each rollout job": super().job_script()}
            if LEARNER in self.worker_spec:
                made = self.job_cls("tls://<scheduler>", name=LEARNER, **self.worker_spec[LEARNER]["options"])
                scripts["of the learner's job"] = made.job_script()
            return "\n".join(f"# {what}\n{script}" for what, script in scripts.items())

    # Read for every connection to the scheduler, which is in this process.
    logs = held({} if asynchronous else {LOG_LENGTH: LOGGED})
    try:
        cluster = Jobs(**given, **({"asynchronous": True} if asynchronous else {}))
        if learner is not None:
            options = cluster.new_spec["options"]
            own = _job(kind, {**job, **learner}, learns=True)
            own = {name: value for name, value in own.items() if name in options or name in learner}
            # First: scale() takes the last ones away. It is submitted with the others.
            cluster.worker_spec = {LEARNER: {"cls": cluster.job_cls, "options": {**options, **own}}}
            cluster.job_script()  # fails where a setting is unknown
    except BaseException as error:
        logs.close()
        if isinstance(error, TypeError | ValueError):
            raise ConfigError(f"{kind}: {error}") from error
        raise
    return cluster


def _job(kind: str, job: Mapping[str, Any], *, learns: bool = False) -> dict[str, Any]:
    """Settings of a job for dask-jobqueue: one process, its threads fixed, leaving before the walltime."""
    settings = {"cores": 1, "memory": "4GB", **job, "processes": 1}
    settings.pop("scheduler_options", None)
    for name in _LINES:
        if isinstance(settings.get(name), str):  # a block of text, of which lists are made of letters
            lines = [line.strip() for line in settings[name].splitlines()]
            settings[name] = [line for line in lines if line and not line.startswith("#")]
    arguments = ["--no-dashboard", "--dashboard-address", LOOPBACK, *(settings.get("worker_extra_args") or [])]
    if kind != "HTCondorCluster":
        settings.setdefault("walltime", "01:00" if kind == "LSFCluster" else "01:00:00")
        seconds = seconds_of(settings["walltime"], minutes_first=kind == "SLURMCluster")
        arguments += ["--lifetime", f"{max(seconds - 300, seconds // 2)}s"]
        arguments += ["--lifetime-stagger", f"{min(120, seconds // 20)}s"]  # they do not all leave at once
    threads = 1
    if learns:
        arguments += ["--resources", f"{LEARNER}=1", "--nthreads", "1"]
        threads = settings["cores"]
    settings["worker_extra_args"] = arguments
    exports = [f"export {name}={threads}" for name in THREADS]
    exports.append(f"export {PRELOAD_VARIABLE}={PRELOAD}")
    settings["job_script_prologue"] = [*exports, *(settings.get("job_script_prologue") or [])]
    return settings


def seconds_of(walltime: object, *, minutes_first: bool) -> int:
    """Of ``HH:MM:SS`` or ``D-HH:MM:SS``; of ``MM:SS`` as Slurm reads it, elsewhere ``HH:MM``."""
    if not isinstance(walltime, str):
        raise ConfigError(f"walltime: expected text such as '01:00:00', got {walltime!r}.")
    days, dash, clock = walltime.rpartition("-")
    try:
        parts = [*map(int, clock.split(":"))]
        if minutes_first and not dash:
            parts = [0, *parts] if len(parts) < 3 else parts
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    except ValueError:
        raise ConfigError(f"walltime: expected e.g. '01:00:00', got {walltime!r}.") from None


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
    keeps a number and has jobs that ended submitted again. ``daskrl.pools.demand`` says how the number comes about.

    Parameters
    ----------
    cluster : any whose own ``adapt`` takes ``Adaptive=``, as those of ``distributed`` and dask-jobqueue do.
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

    from daskrl.pools.scaling import LearnerDemand, install

    _bounds(minimum, maximum, interval=interval, patience=patience, drain_timeout=drain_timeout)
    adapts = inspect.signature(cluster.adapt).parameters.values()
    if not any(parameter.name == "Adaptive" or parameter.kind is parameter.VAR_KEYWORD for parameter in adapts):
        raise ConfigError(
            f"{type(cluster).__name__} decides by itself how it scales: expected a cluster whose adapt() takes "
            "Adaptive=, as LocalCluster and dask-jobqueue's do. Set its size with cluster.scale()."
        )
    batch = hasattr(cluster, "job_script")
    interval = interval or (15.0 if batch else 1.0)
    patience = patience or (120.0 if batch else 10.0)
    with Client(cluster, set_as_default=False) as client:
        install(client)
    return cluster.adapt(
        Adaptive=LearnerDemand, minimum=minimum, maximum=maximum, interval=f"{interval}s",
        wait_count=max(1, round(patience / interval)), drain_timeout=drain_timeout,
    )  # fmt: skip
