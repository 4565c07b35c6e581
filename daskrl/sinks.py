"""Where else a run's reports may go: each sink passes them on and writes their numbers elsewhere.

    for report in sinks.tensorboard(run, "runs/cartpole-tensorboard"):
        ...

Sinks take each other's place of a run (``sinks.mlflow(sinks.prometheus(run))``), also below `daskrl.watch`'s reports.
The step is ``env_steps``; a number that is not known yet is left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from daskrl.errors import ConfigError
from daskrl.train import Report


def numbers(report: Report) -> dict[str, float]:
    """What is known of a report, by name; without its step."""
    values = dataclasses.asdict(report)
    return {name: float(value) for name, value in values.items() if value is not None and name != "env_steps"}


def tensorboard(reports: Iterable[Report], directory: str | os.PathLike[str]) -> Iterator[Report]:
    """Write scalars for TensorBoard. Needs ``daskrl[tensorboard]``.

    Parameters
    ----------
    reports : a run, or another sink of it.
    directory : of the event files; a run that is resumed goes on in the same.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None

    def passed() -> Iterator[Report]:
        with SummaryWriter(os.fspath(directory)) as writer:

            def write(report: Report) -> None:
                for name, value in numbers(report).items():
                    writer.add_scalar(name, value, report.env_steps)
                writer.flush()

            yield from _each(reports, write)

    return passed()


def mlflow(
    reports: Iterable[Report],
    experiment: str = "daskrl",
    *,
    tracking_uri: str | None = None,
    name: str | None = None,
    run_id: str | None = None,
) -> Iterator[Report]:
    """Log metrics to an MLflow run, which ends as finished, or as failed or killed where the reports do.

    Needs ``daskrl[mlflow]``. MLflow's own active run is left alone.

    Parameters
    ----------
    reports : a run, or another sink of it.
    experiment : is made if there is none of that name.
    tracking_uri : MLflow's own setting (``MLFLOW_TRACKING_URI``) by default.
    name : of the MLflow run; MLflow makes one up by default.
    run_id : an MLflow run to go on with, for a run that is resumed.
    """
    try:
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise _missing("mlflow") from None

    def passed() -> Iterator[Report]:
        client, id_ = MlflowClient(tracking_uri), run_id
        if id_ is None:
            found = client.get_experiment_by_name(experiment)
            place = client.create_experiment(experiment) if found is None else found.experiment_id
            id_ = client.create_run(place, run_name=name).info.run_id
        else:
            client.update_run(id_, "RUNNING")

        def write(report: Report) -> None:
            now = int(time.time() * 1000)
            metrics = [Metric(key, value, now, report.env_steps) for key, value in numbers(report).items()]
            client.log_batch(id_, metrics=metrics)

        status = "FINISHED"
        try:
            yield from _each(reports, write)
        except (GeneratorExit, KeyboardInterrupt):
            status = "KILLED"
            raise
        except BaseException:
            status = "FAILED"
            raise
        finally:
            client.set_terminated(id_, status)

    return passed()


def prometheus(reports: Iterable[Report], port: int = 8000, address: str = "127.0.0.1") -> Iterator[Report]:
    """Serve the newest numbers as gauges ``daskrl_...`` for Prometheus, until the reports end.

    Needs ``daskrl[prometheus]``. The page is neither encrypted nor protected: an address other than loopback shows it
    to whoever reaches it.

    Parameters
    ----------
    reports : a run, or another sink of it.
    port, address : where to listen: ``http://127.0.0.1:8000/metrics``.
    """
    try:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server
    except ImportError:
        raise _missing("prometheus") from None

    def passed() -> Iterator[Report]:
        registry = CollectorRegistry()
        gauges: dict[str, Gauge] = {}

        def write(report: Report) -> None:
            for name, value in {**numbers(report), "env_steps": report.env_steps}.items():
                if name not in gauges:  # a gauge is 0 from the start, which is no loss and no return
                    gauges[name] = Gauge(f"daskrl_{name}", f"{name} of daskrl.Report", registry=registry)
                gauges[name].set(value)

        try:
            server, thread = start_http_server(port, address, registry)
        except OSError as error:
            raise ConfigError(f"port: cannot listen at {address}:{port}: {error.strerror}. Choose another.") from error
        try:
            yield from _each(reports, write)
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    return passed()


def _each(reports: Iterable[Report], write: Callable[[Report], None]) -> Iterator[Report]:
    """Write and pass on each report; a run is stopped where whoever takes them stops."""
    iterator: Any = iter(reports)
    with contextlib.closing(iterator) if hasattr(iterator, "close") else contextlib.nullcontext():
        for report in iterator:
            write(report)
            yield report


def _missing(extra: str) -> ConfigError:
    return ConfigError(f"sinks.{extra} needs a package that is not installed. Type: pip install 'daskrl[{extra}]'")
