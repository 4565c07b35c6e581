"""Where else a run's reports may go: each sink passes them on and writes their numbers elsewhere.

    for report in sinks.tensorboard(run, "runs/cartpole-tensorboard"):
        ...

Sinks take each other's place of a run (``sinks.mlflow(sinks.prometheus(run))``), also with `daskrl.watch(run)` inside.
The step is ``env_steps``; a number that is not known yet is left out. Where a sink is given the run itself, or another
sink of it, ``learner_busy``, ``learner_waiting``, ``fragments_per_second`` and ``env_steps_per_second`` of
`daskrl.watching.figures.Figures` are added, read from the store once a second at most.

What cannot be set up is an error before the run begins. What cannot be written later is one warning; the run goes on,
and later reports are tried again, the next one ten seconds after a failure or later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from daskrl import extras
from daskrl.errors import ConfigError
from daskrl.names import suggests
from daskrl.records import Report
from daskrl.watching.watch import Reader
from daskrl.watching.watched import Watched

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

    def __init__(self, run: Watched | None, reports: Iterator[Report]) -> None:
        self.run, self._reports = run, reports

    def __next__(self) -> Report:
        return next(self._reports)

    def close(self) -> None:
        self._reports.close()  # type: ignore[attr-defined]


def numbers(report: Report) -> dict[str, float]:
    """What is known of a report, by name; without its step."""
    return {name: float(value) for name, value in _given(report).items() if name != "env_steps"}


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

        with _ended(run, lambda status: tried(client.set_terminated, id_, status)):
            yield from _each(reports, write, tried)

    return Passed(run, passed())


# What W&B takes for a run that finished, failed, or was killed.
_EXIT_CODES = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}


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
    """Log the numbers to a run of Weights & Biases, with the settings of the `daskrl.Run`. Needs ``daskrl[wandb]``.

    A `daskrl.Run` that is resumed goes on in its W&B run. Offline, each part is a directory of its own with the same
    id, and ``wandb sync`` puts them together. W&B's own active run is left alone. W&B uploads by itself, and where its
    server is away it tries again, at the end also while the run waits (its setting ``WANDB_MODE=offline`` never does).

    Parameters
    ----------
    reports : a run, or another sink of it.
    project, entity, name : of the W&B run; W&B makes up a name by default.
    run_id : of the W&B run; that of the `daskrl.Run` by default.
    mode : ``"online"``, ``"offline"`` or ``"disabled"``; W&B's own setting (``WANDB_MODE``) by default.
    directory : of W&B's own files; its own setting (``WANDB_DIR``) by default.
    """
    with extras.needed("wandb", "sinks.wandb needs wandb"):
        import wandb as library
    if mode not in (None, "online", "offline", "disabled"):
        raise ConfigError(f"mode: expected 'online', 'offline' or 'disabled', got {mode!r}.")
    run, tried = _run(reports), _Tried("wandb")

    def passed() -> Iterator[Report]:
        counted = _Counted(run)
        with _set_up(f"project: cannot begin a run of {project!r} in Weights & Biases"):
            if directory is not None:
                os.makedirs(directory, exist_ok=True)  # W&B takes a temporary one else
            begun = library.init(
                project=project, entity=entity, name=name, id=run_id or (None if run is None else run.store.run_id),
                resume="allow", reinit="create_new", mode=cast("Any", mode), dir=directory,
                config=None if run is None else run.store.config.to_json(),
                settings=library.Settings(console="off"),
            )  # fmt: skip

        def write(report: Report) -> None:
            begun.log(counted(report), step=report.env_steps, commit=True)

        with _ended(run, lambda status: tried(begun.finish, _EXIT_CODES[status])):
            yield from _each(reports, write, tried)

    return Passed(run, passed())


# A row's columns. A file that another daskrl began keeps its own.
_COLUMNS = ("env_steps", *(field.name for field in dataclasses.fields(Report) if field.name != "env_steps"), *_PACE)
_RUN_COLUMN = "run_id"


@suggests
def csv(reports: Iterable[Report], path: str | os.PathLike[str]) -> Passed:
    """Write a row for each report to a CSV file, as soon as it is there; a number that is not known yet is left empty.

    A run that is resumed goes on in the same file, and so may other runs: the column ``run_id`` says whose a row is.
    Versions of a run that the file has already are not written again. Of a row that was cut off, when its process was
    killed or the disk was full, nothing is left.

    Parameters
    ----------
    reports : a run, or another sink of it.
    path : of the file; it is made with its folder if there is none.

    Raises
    ------
    ConfigError
        The file is not to be written, or holds something else. When the first report is asked for.
    """
    run, tried = _run(reports), _Tried("csv")
    id_, place = "" if run is None else run.store.run_id, os.fspath(path)

    def passed() -> Iterator[Report]:
        counted = _Counted(run)
        with _set_up(f"path: cannot write a CSV file at {place}"):
            table = _Table(place, (*_COLUMNS, _RUN_COLUMN))
            known = {row["weights_version"] for row in table.rows if id_ and row.get(_RUN_COLUMN) == id_}

        def write(report: Report) -> None:
            if str(report.weights_version) not in known:
                table.append({**counted(report), **_given(report), _RUN_COLUMN: id_})

        yield from _each(reports, write, tried)

    return Passed(run, passed())


class _Table:
    """A CSV file that rows are appended to, whole ones only.

    Attributes
    ----------
    columns : of the file; those of one that is there already, if all of them are known.
    rows : that were there.
    """

    def __init__(self, path: str, columns: Sequence[str]) -> None:
        import csv

        self.path, self.columns, self.rows = path, columns, list[dict[str, str]]()
        self._torn_at: int | None = None
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            header = self._line(columns)
            if not whole and header.encode().startswith(text):  # new, or cut off in its first line
                file.truncate(0)
                file.write(header.encode())
                return
            read = csv.DictReader(io.StringIO(whole.decode(), newline=""))
            if not read.fieldnames or not {"env_steps", "weights_version"} <= {*read.fieldnames} <= {*columns}:
                found = whole.split(b"\n", 1)[0].decode(errors="replace")
                raise ConfigError(f"expected the columns {header.strip()}, got {found[:200]!r}. Choose another file.")
            self.columns, self.rows = read.fieldnames, list(read)
            file.truncate(len(whole))

    def append(self, values: Mapping[str, object]) -> None:
        """Add a row. What an earlier one left that could not be written whole goes first."""
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None
        row = self._line([values.get(name, "") for name in self.columns]).encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            end = os.fstat(file).st_size
            self._torn_at = end
            while row:
                row = row[os.write(file, row) :]
            self._torn_at = None
        finally:
            os.close(file)

    def _line(self, values: Sequence[object]) -> str:
        import csv

        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()


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


def _given(report: Report) -> dict[str, float | int]:
    """What is known of a report as it stands in it, integers as integers."""
    return {name: value for name, value in dataclasses.asdict(report).items() if value is not None}


@contextlib.contextmanager
def _ended(run: Watched | None, end: Callable[[str], None]) -> Iterator[None]:
    """Whatever ends the reports, ``end`` is told: FINISHED, KILLED where the run was stopped or left, or FAILED."""
    status = "FINISHED"
    try:
        yield
        if run is not None and not run.finished:
            status = "KILLED"
    except (GeneratorExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    except BaseException:
        status = "FAILED"
        raise
    finally:
        end(status)


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


def _each(reports: Iterable[Report], write: Callable[[Report], None], tried: _Tried) -> Iterator[Report]:
    """Write and pass on each report; a run is stopped where whoever takes them stops."""
    iterator: Any = iter(reports)
    with contextlib.closing(iterator) if hasattr(iterator, "close") else contextlib.nullcontext():
        for report in iterator:
            if not tried.pausing:
                tried(write, report)
            yield report
