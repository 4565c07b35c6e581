"""Where else a run's reports may go: each sink passes them on and writes their numbers elsewhere.

    for report in sinks.tensorboard(run, "runs/cartpole-tensorboard"):
        ...

Sinks take each other's place of a run (``sinks.mlflow(sinks.prometheus(run))``), also with `daskrl.watch(run)` inside.
The step is ``env_steps``; a number that is not known yet is left out. Where a sink is given the run itself, or another
sink of it, ``learner_busy``, ``learner_waiting``, ``fragments_per_second`` and ``env_steps_per_second`` of
`daskrl.figures.Figures` are added, read from the store once a second at most.

What cannot be set up is an error before the run begins. What cannot be written later is one warning; the run goes on,
and later reports are tried again, the next one ten seconds after a failure or later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from daskrl import extras
from daskrl.errors import ConfigError
from daskrl.names import suggests
from daskrl.train import Report, Run
from daskrl.watch import Reader

_PACE = ("learner_busy", "learner_waiting", "fragments_per_second", "env_steps_per_second")
_READ_EVERY = 1.0  # seconds between two looks at the store
_PAUSE = 10.0  # seconds without a try after one that failed: reports do not wait, each, for a server that is away
_RUN_TAG = "daskrl.run_id"  # of an MLflow run


class Passed(Iterator[Report]):
    """Reports on their way through a sink. Closed, it stops their run.

    Attributes
    ----------
    run : that they are of; None where that is not known.
    """

    def __init__(self, run: Run | None, reports: Iterator[Report]) -> None:
        self.run, self._reports = run, reports

    def __next__(self) -> Report:
        return next(self._reports)

    def close(self) -> None:
        self._reports.close()  # type: ignore[attr-defined]


def numbers(report: Report) -> dict[str, float]:
    """What is known of a report, by name; without its step."""
    values = dataclasses.asdict(report)
    return {name: float(value) for name, value in values.items() if value is not None and name != "env_steps"}


@suggests
def tensorboard(reports: Iterable[Report], directory: str | os.PathLike[str]) -> Passed:
    """Write scalars for TensorBoard. Needs ``daskrl[tensorboard]``.

    Parameters
    ----------
    reports : a run, or another sink of it.
    directory : of the event files; a run that is resumed goes on in the same.
    """
    with extras.needed("tensorboard", "sinks.tensorboard needs tensorboard"):
        from torch.utils.tensorboard import FileWriter
        from torch.utils.tensorboard.summary import scalar
    run, tried = _run(reports), _Tried("tensorboard")

    def passed() -> Iterator[Report]:
        counted = _Counted(run)
        with _set_up(f"directory: cannot write events for TensorBoard in {os.fspath(directory)}"):
            writer = FileWriter(os.fspath(directory))
        whole = True

        def write(report: Report) -> None:
            nonlocal writer, whole
            if not whole:  # what follows half an event is not read: go on in another file
                with contextlib.suppress(Exception):
                    writer.close()
                writer = FileWriter(os.fspath(directory))
            whole = False
            for name, value in counted(report).items():
                writer.add_summary(scalar(name, value), report.env_steps)
            writer.flush()
            whole = True

        try:
            yield from _each(reports, write, tried)
        finally:
            tried(writer.close)

    return Passed(run, passed())


@suggests
def mlflow(
    reports: Iterable[Report],
    experiment: str = "daskrl",
    *,
    tracking_uri: str | None = None,
    name: str | None = None,
    run_id: str | None = None,
    resume: bool = False,
) -> Passed:
    """Log metrics to an MLflow run, which ends as finished, or as failed or killed where the reports do.

    A `daskrl.Run` that was stopped is killed. Needs ``daskrl[mlflow]``. MLflow's own active run is left alone. MLflow
    itself tries for minutes to reach a server (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``), and reports wait for it.

    Parameters
    ----------
    reports : a run, or another sink of it.
    experiment : is made if there is none of that name.
    tracking_uri : MLflow's own setting (``MLFLOW_TRACKING_URI``) by default.
    name : of the MLflow run; MLflow makes one up by default.
    run_id : an MLflow run to go on with, for a run that is resumed.
    resume : go on with the newest MLflow run of the experiment that is of the same `daskrl.Run`, if there is one: it
        has the tag ``daskrl.run_id``.
    """
    with extras.needed("mlflow", "sinks.mlflow needs MLflow"):
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient
    run, tried = _run(reports), _Tried("mlflow")

    def begin(client: MlflowClient) -> str:
        """Make an MLflow run, or find the one to go on with."""
        id_, tags = run_id, {} if run is None else {_RUN_TAG: run.store.run_id}
        if id_ is None:
            found = client.get_experiment_by_name(experiment)
            place = client.create_experiment(experiment) if found is None else found.experiment_id
            if resume and tags:
                same = client.search_runs([place], f"tags.`{_RUN_TAG}` = '{tags[_RUN_TAG]}'", max_results=1)
                id_ = same[0].info.run_id if same else None
            if id_ is None:
                return str(client.create_run(place, run_name=name, tags=tags).info.run_id)
        client.update_run(id_, "RUNNING")
        return id_

    def passed() -> Iterator[Report]:
        counted = _Counted(run)
        with _set_up(f"experiment: cannot begin a run of {experiment!r} in MLflow"):
            client = MlflowClient(tracking_uri)
            id_ = begin(client)

        def write(report: Report) -> None:
            now = int(time.time() * 1000)
            metrics = [Metric(key, value, now, report.env_steps) for key, value in counted(report).items()]
            client.log_batch(id_, metrics=metrics)

        status = "FINISHED"
        try:
            yield from _each(reports, write, tried)
            if run is not None and not run.finished:
                status = "KILLED"
        except (GeneratorExit, KeyboardInterrupt):
            status = "KILLED"
            raise
        except BaseException:
            status = "FAILED"
            raise
        finally:
            tried(client.set_terminated, id_, status)

    return Passed(run, passed())


@suggests
def prometheus(reports: Iterable[Report], port: int = 8000, address: str = "127.0.0.1") -> Passed:
    """Serve the newest numbers as gauges ``daskrl_...`` for Prometheus, until the reports end.

    Needs ``daskrl[prometheus]``. The page is neither encrypted nor protected: an address other than loopback shows it
    to whoever reaches it.

    Parameters
    ----------
    reports : a run, or another sink of it.
    port, address : where to listen: ``http://127.0.0.1:8000/metrics``.
    """
    if not 0 < port < 2**16:
        raise ConfigError(f"port: expected a port from 1 to 65535, got {port!r}.")
    with extras.needed("prometheus", "sinks.prometheus needs prometheus-client"):
        from prometheus_client import CollectorRegistry, Gauge, start_http_server
    run, tried = _run(reports), _Tried("prometheus")

    def passed() -> Iterator[Report]:
        counted = _Counted(run)
        registry = CollectorRegistry()
        gauges: dict[str, Gauge] = {}

        def write(report: Report) -> None:
            for name, value in {**counted(report), "env_steps": report.env_steps}.items():
                if name not in gauges:  # a gauge is 0 from the start, which is no loss and no return
                    gauges[name] = Gauge(f"daskrl_{name}", f"{name} of a daskrl run", registry=registry)
                gauges[name].set(value)

        try:
            server, thread = start_http_server(port, address, registry)
        except OSError as error:
            raise ConfigError(f"port: cannot listen at {address}:{port}: {error.strerror}. Choose another.") from error
        try:
            yield from _each(reports, write, tried)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    return Passed(run, passed())


def _run(reports: Iterable[Report]) -> Run | None:
    """The run that reports are of, where that is known."""
    if isinstance(reports, Run):
        return reports
    return reports.run if isinstance(reports, Passed) else None


class _Counted:
    """The numbers of a report, and of its run's store where that is known."""

    def __init__(self, run: Run | None) -> None:
        self._reader = None if run is None else Reader(run.store, run.algorithm)
        self._pace: dict[str, float] = {}
        self._read = -math.inf

    def __call__(self, report: Report) -> dict[str, float]:
        if self._reader is not None and time.monotonic() - self._read >= _READ_EVERY:
            figures = self._reader.read()
            self._pace = {name: value for name in _PACE if (value := getattr(figures, name)) is not None}
            self._read = time.monotonic()
        return {**numbers(report), **self._pace}


class _Tried:
    """Calls that may fail: the first that does is a warning.

    Attributes
    ----------
    pausing : whether one failed just now.
    """

    def __init__(self, sink: str) -> None:
        self._sink, self._warned, self._until = sink, False, -math.inf

    @property
    def pausing(self) -> bool:
        return time.monotonic() < self._until

    def __call__(self, call: Callable[..., object], *given: object) -> None:
        try:
            call(*given)
        except Exception as error:
            self._until = time.monotonic() + _PAUSE
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"sinks.{self._sink} could not write: {type(error).__name__}: {error}. The run goes on, and later "
                    "reports are tried again.",
                    stacklevel=2,
                )


@contextlib.contextmanager
def _set_up(what: str) -> Iterator[None]:
    """Whatever goes wrong before the run begins."""
    try:
        yield
    except Exception as error:
        raise ConfigError(f"{what}: {type(error).__name__}: {error}") from error


def _each(reports: Iterable[Report], write: Callable[[Report], None], tried: _Tried) -> Iterator[Report]:
    """Write and pass on each report; a run is stopped where whoever takes them stops."""
    iterator: Any = iter(reports)
    with contextlib.closing(iterator) if hasattr(iterator, "close") else contextlib.nullcontext():
        for report in iterator:
            if not tried.pausing:
                tried(write, report)
            yield report
