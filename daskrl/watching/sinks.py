"""Where else a run's reports may go: each sink passes them on and writes their numbers elsewhere.

    for report in sinks.tensorboard(run, "runs/cartpole-tensorboard"):
        ...

    daskrl.train(..., callbacks=[sinks.TensorBoardSink("runs/cartpole-tensorboard")])

A sink stands where a run may stand (``sinks.mlflow(sinks.prometheus(run))``), also with `daskrl.watch(run)` inside.
The step is ``env_steps``; a number that is not known yet is left out. Where a sink is given the run itself, or another
sink of it, ``learner_busy``, ``learner_waiting``, ``fragments_per_second`` and ``env_steps_per_second`` of
`daskrl.watching.figures.Figures` are added, read from the store once a second at most.

A sink that cannot be set up is an error before the run begins. A sink that cannot write later warns once; the run goes
on, and the sink tries later reports again, ten seconds after a failure or later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, cast

from daskrl import extras
from daskrl.errors import ConfigError
from daskrl.names import suggests
from daskrl.records import Report
from daskrl.watching.callbacks import Callback, passed
from daskrl.watching.rows import RowFile
from daskrl.watching.watch import Reader
from daskrl.watching.watched import Watched

_PACE = ("learner_busy", "learner_waiting", "fragments_per_second", "env_steps_per_second")
_READ_EVERY = 1.0  # seconds between two looks at the store
_PAUSE = 10.0  # seconds without a try after one that failed: reports do not wait, each, for a server that is away
_RUN_TAG = "daskrl.run_id"  # of an MLflow run


class Sink(Callback):
    """Writes the numbers of a run's reports elsewhere.

    As one of the callbacks of a run (``daskrl.train(..., callbacks=[sinks.CSVSink("run.csv")])``) the process that
    drives the run calls the sink, and waits for it. Around the reports (`csv` and the other functions here) whoever
    takes the reports waits.
    """

    name: ClassVar[str]

    def begin(self, run: Watched | None) -> None:
        self._counted, self._tried = _Counted(run), _Tried(self.name)
        self.open(run)

    def reported(self, run: Watched | None, report: Report) -> None:
        if not self._tried.pausing:
            self._tried(lambda: self.write(report, self._counted(report)))

    def end(self, run: Watched | None, error: BaseException | None) -> None:
        status = "FINISHED" if run is None or error is not None or run.finished else "KILLED"
        if error is not None:
            status = "KILLED" if isinstance(error, GeneratorExit | KeyboardInterrupt) else "FAILED"
        self.close(status)

    @abstractmethod
    def open(self, run: Watched | None) -> None:
        """Set up what is written to; an error here is one of the run."""

    @abstractmethod
    def write(self, report: Report, numbers: Mapping[str, float]) -> None:
        """Write what a report says; an error here is a warning."""

    @abstractmethod
    def close(self, status: str) -> None:
        """No report follows. ``status``: FINISHED, KILLED where the run was stopped or left, or FAILED."""


class Passed(Iterator[Report]):
    """Reports on their way through a sink. Closed, it stops their run.

    Attributes
    ----------
    run : that they are of; None where that is not known.
    """

    def __init__(self, run: Watched | None, reports: Iterator[Report]) -> None:
        self.run, self._reports = run, reports

    def __next__(self) -> Report:
        return next(self._reports)

    def close(self) -> None:
        self._reports.close()  # type: ignore[attr-defined]


def _through(sink: Sink, reports: Iterable[Report]) -> Passed:
    run = _run(reports)
    return Passed(run, passed(reports, sink, run))


def numbers(report: Report) -> dict[str, float]:
    """What is known of a report, by name; without its step."""
    return {name: float(value) for name, value in _given(report).items() if name != "env_steps"}


class TensorBoardSink(Sink):
    """Write scalars for TensorBoard. Needs ``daskrl[tensorboard]``.

    Parameters
    ----------
    directory : of the event files; a run that is resumed goes on in the same.
    """

    name = "tensorboard"

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        with extras.needed("tensorboard", "sinks.tensorboard needs tensorboard"):
            from torch.utils.tensorboard import FileWriter
            from torch.utils.tensorboard.summary import scalar
        self._directory = os.fspath(directory)
        self._made: Any = FileWriter
        self._scalar: Any = scalar

    def open(self, run: Watched | None) -> None:
        with _set_up(f"directory: cannot write events for TensorBoard in {self._directory}"):
            self._writer = self._made(self._directory)
        self._whole = True

    def write(self, report: Report, numbers: Mapping[str, float]) -> None:
        if not self._whole:  # what follows half an event is not read: go on in another file
            with contextlib.suppress(Exception):
                self._writer.close()
            self._writer = self._made(self._directory)
        self._whole = False
        for name, value in numbers.items():
            self._writer.add_summary(self._scalar(name, value), report.env_steps)
        self._writer.flush()
        self._whole = True

    def close(self, status: str) -> None:
        self._tried(self._writer.close)


@suggests
def tensorboard(reports: Iterable[Report], directory: str | os.PathLike[str]) -> Passed:
    """Pass the reports of a run, or of another sink of it, through a `TensorBoardSink`, whose arguments these are."""
    return _through(TensorBoardSink(directory), reports)


class MLflowSink(Sink):
    """Log metrics to an MLflow run, which ends as finished, or as failed or killed where the reports do.

    A `daskrl.Run` that was stopped is killed. Needs ``daskrl[mlflow]``. MLflow's own active run is left alone. MLflow
    itself tries for minutes to reach a server (``MLFLOW_HTTP_REQUEST_MAX_RETRIES``), and reports wait for it.

    Parameters
    ----------
    experiment : is made if there is none of that name.
    tracking_uri : MLflow's own setting (``MLFLOW_TRACKING_URI``) by default.
    name : of the MLflow run; MLflow makes one up by default.
    run_id : an MLflow run to go on with, for a run that is resumed.
    resume : go on with the newest MLflow run of the experiment that is of the same `daskrl.Run`, if there is one: it
        has the tag ``daskrl.run_id``.
    """

    name = "mlflow"

    def __init__(
        self,
        experiment: str = "daskrl",
        *,
        tracking_uri: str | None = None,
        name: str | None = None,
        run_id: str | None = None,
        resume: bool = False,
    ) -> None:
        with extras.needed("mlflow", "sinks.mlflow needs MLflow"):
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        self._metric = Metric
        self._experiment, self._tracking_uri, self._made = experiment, tracking_uri, MlflowClient
        self._name, self._run_id, self._resume = name, run_id, resume

    def open(self, run: Watched | None) -> None:
        with _set_up(f"experiment: cannot begin a run of {self._experiment!r} in MLflow"):
            self._client = self._made(self._tracking_uri)
            self._id = self._begin({} if run is None else {_RUN_TAG: run.store.run_id})

    def _begin(self, tags: dict[str, str]) -> str:
        """Make an MLflow run, or find the one to go on with."""
        id_, client = self._run_id, self._client
        if id_ is None:
            found = client.get_experiment_by_name(self._experiment)
            place = client.create_experiment(self._experiment) if found is None else found.experiment_id
            if self._resume and tags:
                same = client.search_runs([place], f"tags.`{_RUN_TAG}` = '{tags[_RUN_TAG]}'", max_results=1)
                id_ = same[0].info.run_id if same else None
            if id_ is None:
                return str(client.create_run(place, run_name=self._name, tags=tags).info.run_id)
        client.update_run(id_, "RUNNING")
        return id_

    def write(self, report: Report, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(key, value, now, report.env_steps) for key, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, status: str) -> None:
        self._tried(self._client.set_terminated, self._id, status)


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
    """Pass the reports of a run, or of another sink of it, through an `MLflowSink`, whose arguments these are."""
    sink = MLflowSink(experiment, tracking_uri=tracking_uri, name=name, run_id=run_id, resume=resume)
    return _through(sink, reports)


# What W&B takes for a run that finished, failed, or was killed.
_EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}


class WandbSink(Sink):
    """Log the numbers to a run of Weights & Biases, with the settings of the `daskrl.Run`. Needs ``daskrl[wandb]``.

    A `daskrl.Run` that is resumed goes on in its W&B run. Offline, each part is a directory of its own with the same
    id, and ``wandb sync`` puts them together. W&B's own active run is left alone. W&B uploads by itself, and where its
    server is away it tries again, at the end also while the run waits (its setting ``WANDB_MODE=offline`` never does).

    Parameters
    ----------
    project, entity, name : of the W&B run; W&B makes up a name by default.
    run_id : of the W&B run; that of the `daskrl.Run` by default.
    mode : ``"online"``, ``"offline"`` or ``"disabled"``; W&B's own setting (``WANDB_MODE``) by default.
    directory : of W&B's own files; its own setting (``WANDB_DIR``) by default.
    """

    name = "wandb"

    def __init__(
        self,
        project: str = "daskrl",
        *,
        entity: str | None = None,
        name: str | None = None,
        run_id: str | None = None,
        mode: str | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        with extras.needed("wandb", "sinks.wandb needs wandb"):
            import wandb as library
        if mode not in (None, "online", "offline", "disabled"):
            raise ConfigError(f"mode: expected 'online', 'offline' or 'disabled', got {mode!r}.")
        self._library, self._run_id, self._directory = library, run_id, directory
        self._settings: dict[str, Any] = {
            "project": project, "entity": entity, "name": name, "mode": cast("Any", mode), "dir": directory,
        }  # fmt: skip

    def open(self, run: Watched | None) -> None:
        with _set_up(f"project: cannot begin a run of {self._settings['project']!r} in Weights & Biases"):
            if self._directory is not None:
                os.makedirs(self._directory, exist_ok=True)  # W&B takes a temporary one else
            self._begun = self._library.init(
                **self._settings,
                id=self._run_id or (None if run is None else run.store.run_id),
                config=None if run is None else run.store.config.to_json(),
                resume="allow",
                reinit="create_new",
                settings=self._library.Settings(console="off"),
            )

    def write(self, report: Report, numbers: Mapping[str, float]) -> None:
        self._begun.log(dict(numbers), step=report.env_steps, commit=True)

    def close(self, status: str) -> None:
        self._tried(self._begun.finish, _EXIT_CODES[status])


@suggests
def wandb(
    reports: Iterable[Report],
    project: str = "daskrl",
    *,
    entity: str | None = None,
    name: str | None = None,
    run_id: str | None = None,
    mode: str | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> Passed:
    """Pass the reports of a run, or of another sink of it, through a `WandbSink`, whose arguments these are."""
    sink = WandbSink(project, entity=entity, name=name, run_id=run_id, mode=mode, directory=directory)
    return _through(sink, reports)


# A row's columns. A file that another daskrl began keeps its own.
_COLUMNS = ("env_steps", *(field.name for field in dataclasses.fields(Report) if field.name != "env_steps"), *_PACE)
_RUN_COLUMN = "run_id"


class CSVSink(Sink):
    """Write a row for each report to a CSV file, as soon as it is there; a number that is not known yet is left empty.

    A run that is resumed goes on in the same file, and so may other runs: the column ``run_id`` says whose a row is.
    Versions of a run that the file has already are not written again. Of a row that was cut off, when its process was
    killed or the disk was full, nothing is left.

    Parameters
    ----------
    path : of the file; it is made with its folder if there is none.

    Raises
    ------
    ConfigError
        The file is not to be written, or holds something else. When the run begins.
    """

    name = "csv"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)

    def open(self, run: Watched | None) -> None:
        self._id = "" if run is None else run.store.run_id
        with _set_up(f"path: cannot write a CSV file at {self._path}"):
            self._file = RowFile(self._path, (*_COLUMNS, _RUN_COLUMN))
        rows = self._file.rows if self._id else []
        self._known = {row["weights_version"] for row in rows if row.get(_RUN_COLUMN) == self._id}

    def write(self, report: Report, numbers: Mapping[str, float]) -> None:
        if str(report.weights_version) not in self._known:
            self._file.append({**numbers, **_given(report), _RUN_COLUMN: self._id})

    def close(self, status: str) -> None:
        """Nothing is open between two rows."""


@suggests
def csv(reports: Iterable[Report], path: str | os.PathLike[str]) -> Passed:
    """Pass the reports of a run, or of another sink of it, through a `CSVSink`, whose arguments these are."""
    return _through(CSVSink(path), reports)


class PrometheusSink(Sink):
    """Serve the newest numbers as gauges ``daskrl_...`` for Prometheus, until the reports end.

    Needs ``daskrl[prometheus]``. The page is neither encrypted nor protected: an address other than loopback shows it
    to whoever reaches it.

    Parameters
    ----------
    port, address : where to listen: ``http://127.0.0.1:8000/metrics``.
    """

    name = "prometheus"

    def __init__(self, port: int = 8000, address: str = "127.0.0.1") -> None:
        if not 0 < port < 2**16:
            raise ConfigError(f"port: expected a port from 1 to 65535, got {port!r}.")
        with extras.needed("prometheus", "sinks.prometheus needs prometheus-client"):
            import prometheus_client
        self._port, self._address, self._library = port, address, prometheus_client

    def open(self, run: Watched | None) -> None:
        self._registry = self._library.CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        try:
            self._server, self._thread = self._library.start_http_server(self._port, self._address, self._registry)
        except OSError as error:
            raise ConfigError(
                f"port: cannot listen at {self._address}:{self._port}: {error.strerror}. Choose another."
            ) from error

    def write(self, report: Report, numbers: Mapping[str, float]) -> None:
        for name, value in {**numbers, "env_steps": report.env_steps}.items():
            if name not in self._gauges:  # a gauge is 0 from the start, which is no loss and no return
                self._gauges[name] = self._library.Gauge(
                    f"daskrl_{name}", f"{name} of a daskrl run", registry=self._registry
                )
            self._gauges[name].set(value)

    def close(self, status: str) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@suggests
def prometheus(reports: Iterable[Report], port: int = 8000, address: str = "127.0.0.1") -> Passed:
    """Pass the reports of a run, or of another sink of it, through a `PrometheusSink`, whose arguments these are."""
    return _through(PrometheusSink(port, address), reports)


def _given(report: Report) -> dict[str, float | int]:
    """The numbers of a report that are known, integers as integers."""
    return {name: value for name, value in dataclasses.asdict(report).items() if value is not None}


def _run(reports: Iterable[Report]) -> Watched | None:
    """The run that reports are of, where that is known."""
    if isinstance(reports, Watched):
        return reports
    return reports.run if isinstance(reports, Passed) else None


class _Counted:
    """The numbers of a report, and of its run's store where that is known."""

    def __init__(self, run: Watched | None) -> None:
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
