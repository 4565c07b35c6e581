"""Sinks: what was written is read back by the tool it was written for."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import daskrl
from daskrl import sinks
from daskrl.errors import ConfigError
from daskrl.watch import Reader
from tests.slurm import free_port

FIRST = daskrl.Report(
    weights_version=1, env_steps=100, learner_updates=0, episode_return=None, episodes=0, loss=None, policy_lag=1,
    replay_ratio=0.0, workers=2, seconds=0.5, time_left=None,
)  # fmt: skip
SECOND = dataclasses.replace(
    FIRST, weights_version=2, env_steps=200, learner_updates=25, episode_return=12.5, episodes=4, loss=0.25,
    replay_ratio=4.0, seconds=1.5, time_left=3.0,
)  # fmt: skip


def small(store: Path) -> daskrl.Run:
    """A run of ten rounds."""
    dqn = daskrl.DQN(hidden=(16,), batch_size=8, learning_starts=32, replay_ratio=2.0, window=160)
    return daskrl.train(
        dqn, "CartPole-v1", store=store, env_steps=320, progress=False, streams=2, envs_per_stream=2, fragment_steps=8
    )


def interrupted(error: type[BaseException]) -> Iterator[daskrl.Report]:
    yield FIRST
    raise error


def test_numbers_leave_out_what_is_not_known() -> None:
    assert sinks.numbers(FIRST) == {
        "weights_version": 1, "learner_updates": 0, "episodes": 0, "policy_lag": 1, "replay_ratio": 0, "workers": 2,
        "seconds": 0.5,
    }  # fmt: skip
    assert {*sinks.numbers(SECOND)} - {*sinks.numbers(FIRST)} == {"episode_return", "loss", "time_left"}


# -- TensorBoard ------------------------------------------------------------------------------------------


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(directory))
    read.Reload()
    return sorted((event.step, event.value) for event in read.Scalars(name))  # files of one second come in any order


def test_tensorboard_reads_each_number_at_its_env_steps(tmp_path: Path) -> None:
    assert list(sinks.tensorboard([FIRST, SECOND], tmp_path / "events")) == [FIRST, SECOND]
    assert scalars(tmp_path / "events", "learner_updates") == [(100, 0.0), (200, 25.0)]
    assert scalars(tmp_path / "events", "episode_return") == [(200, 12.5)]


def test_tensorboard_can_read_a_report_as_soon_as_it_was_passed_on(tmp_path: Path) -> None:
    passed = sinks.tensorboard([FIRST, SECOND], tmp_path)
    assert next(passed) == FIRST
    assert scalars(tmp_path, "workers") == [(100, 2.0)]


def test_tensorboard_of_a_resumed_run_goes_on_in_the_same_directory(tmp_path: Path) -> None:
    list(sinks.tensorboard([FIRST], tmp_path))
    list(sinks.tensorboard([SECOND], tmp_path))
    assert scalars(tmp_path, "weights_version") == [(100, 1.0), (200, 2.0)]


# -- Prometheus -------------------------------------------------------------------------------------------


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        found = re.findall(r"^(\w+) (\S+)$", page.read().decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_prometheus_serves_the_newest_numbers_while_the_run_goes_on() -> None:
    port = free_port()
    passed = sinks.prometheus([FIRST, SECOND], port=port)
    next(passed)
    served = metrics(port)
    assert (served["daskrl_env_steps"], served["daskrl_workers"]) == (100, 2)
    assert "daskrl_loss" not in served  # 0 would be a loss
    next(passed)
    served = metrics(port)
    assert (served["daskrl_env_steps"], served["daskrl_loss"], served["daskrl_episode_return"]) == (200, 0.25, 12.5)
    assert list(passed) == []
    with pytest.raises(urllib.error.URLError):
        metrics(port)


def test_prometheus_listens_on_loopback_only_and_says_when_the_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen at 127\.0\.0\.1:{port}"):
            next(sinks.prometheus([FIRST], port=port))


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_prometheus_names_a_port_that_there_is_not(port: int) -> None:
    with pytest.raises(ConfigError, match=f"port: expected a port from 1 to 65535, got {port}"):
        sinks.prometheus([FIRST], port=port)


def test_two_runs_of_one_process_are_served_at_two_ports() -> None:
    one, other = free_port(), free_port()
    first, second = sinks.prometheus([FIRST], port=one), sinks.prometheus([SECOND], port=other)
    next(first)
    next(second)
    assert (metrics(one)["daskrl_env_steps"], metrics(other)["daskrl_env_steps"]) == (100, 200)
    first.close()  # type: ignore[attr-defined]
    second.close()  # type: ignore[attr-defined]


# -- MLflow -----------------------------------------------------------------------------------------------


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an MLflow file store."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses one else
    return MlflowClient()


def test_mlflow_reads_each_number_at_its_env_steps(tracked: Any) -> None:
    assert list(sinks.mlflow([FIRST, SECOND], "poles", name="one")) == [FIRST, SECOND]
    (run,) = tracked.search_runs([tracked.get_experiment_by_name("poles").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    history = tracked.get_metric_history(run.info.run_id, "learner_updates")
    assert [(metric.step, metric.value) for metric in history] == [(100, 0.0), (200, 25.0)]
    assert [metric.step for metric in tracked.get_metric_history(run.info.run_id, "loss")] == [200]


def test_mlflow_goes_on_with_a_run(tracked: Any) -> None:
    list(sinks.mlflow([FIRST]))
    experiment = tracked.get_experiment_by_name("daskrl").experiment_id
    (run,) = tracked.search_runs([experiment])
    list(sinks.mlflow([SECOND], run_id=run.info.run_id))
    (run,) = tracked.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in tracked.get_metric_history(run.info.run_id, "workers")] == [100, 200]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ArithmeticError, "FAILED")])
def test_mlflow_says_how_a_run_ended(tracked: Any, error: type[BaseException], status: str) -> None:
    with pytest.raises(error):
        list(sinks.mlflow(interrupted(error)))
    (run,) = tracked.search_runs([tracked.get_experiment_by_name("daskrl").experiment_id])
    assert run.info.status == status


def test_mlflow_goes_on_with_the_run_of_the_same_training(tracked: Any, tmp_path: Path) -> None:
    run, other = small(tmp_path / "run"), small(tmp_path / "other")
    for report in sinks.mlflow(run, resume=True):
        if report.weights_version == 4:
            run.stop()
    experiment = tracked.get_experiment_by_name("daskrl").experiment_id
    (stopped,) = tracked.search_runs([experiment])
    assert stopped.info.status == "KILLED"
    list(sinks.mlflow(other, resume=True))
    list(sinks.mlflow(daskrl.resume(tmp_path / "run", progress=False), resume=True))
    runs = {found.info.run_id: found for found in tracked.search_runs([experiment])}
    assert len(runs) == 2
    assert {found.info.status for found in runs.values()} == {"FINISHED"}
    for id_, found in runs.items():
        assert found.data.tags["daskrl.run_id"] == (run if id_ == stopped.info.run_id else other).store.run_id
        versions = [metric.value for metric in tracked.get_metric_history(id_, "weights_version")]
        assert versions == list(range(11))


# -- all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sink", "module", "given"),
    [
        ("tensorboard", "torch.utils.tensorboard", ("events",)),
        ("mlflow", "mlflow.entities", ()),
        ("prometheus", "prometheus_client", ()),
    ],
)
def test_a_missing_package_is_named_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch, sink: str, module: str, given: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'daskrl\[{sink}\]'"):
        getattr(sinks, sink)([FIRST], *given)


def test_sinks_take_the_place_of_a_run_and_leaving_them_stops_it(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    port = free_port()
    for report in sinks.prometheus(sinks.tensorboard(daskrl.watch(run), tmp_path / "events"), port=port):
        if report.weights_version == 4:
            assert metrics(port)["daskrl_env_steps"] == report.env_steps
            break
    run.store.lock()  # nobody has it
    run.store.unlock()
    report = list(sinks.tensorboard(run, tmp_path / "events"))[-1]
    assert [value for _, value in scalars(tmp_path / "events", "weights_version")] == list(range(11))
    assert scalars(tmp_path / "events", "episode_return")[-1] == (320, pytest.approx(report.episode_return))
    assert len(os.listdir(tmp_path / "events")) == 2


# -- what goes wrong --------------------------------------------------------------------------------------


class Away:
    """Takes the place of a function, and fails while it is away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.away, self.calls = False, 0
        function = getattr(owner, name)

        def call(*given: Any, **named: Any) -> Any:
            self.calls += 1
            if self.away:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*given, **named)

        monkeypatch.setattr(owner, name, call)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_PAUSE", 0.0)


def reports(count: int) -> list[daskrl.Report]:
    return [dataclasses.replace(FIRST, env_steps=100 * number) for number in range(1, count + 1)]


def with_a_gap(passed: Iterator[daskrl.Report], place: Away) -> list[int]:
    """Take four reports, of which the second and the third cannot be written; what was passed on."""
    came = []
    for report in passed:
        came.append(report.env_steps)
        place.away = report.env_steps in (100, 200)
    return came


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_tensorboard_goes_on_in_another_file_after_the_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pause: None
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    disk = Away(monkeypatch, RecordWriter, "write")
    with pytest.warns(
        UserWarning, match=r"sinks\.tensorboard could not write: OSError: .*No space left.* The run goes on"
    ):
        assert with_a_gap(sinks.tensorboard(reports(4), tmp_path), disk) == [100, 200, 300, 400]
    assert [step for step, _ in scalars(tmp_path, "workers")] == [100, 400]


def test_mlflow_goes_on_after_its_server_was_away_and_warns_once(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, no_pause: None
) -> None:
    server = Away(monkeypatch, type(tracked), "log_batch")
    with pytest.warns(UserWarning, match=r"sinks\.mlflow could not write: .* The run goes on") as warned:
        assert with_a_gap(sinks.mlflow(reports(4)), server) == [100, 200, 300, 400]
    assert len([warning for warning in warned if "sinks.mlflow" in str(warning.message)]) == 1
    assert server.calls == 4
    (run,) = tracked.search_runs([tracked.get_experiment_by_name("daskrl").experiment_id])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in tracked.get_metric_history(run.info.run_id, "workers")] == [100, 400]


def test_a_sink_that_failed_is_left_alone_for_a_while(tracked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(sinks, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    server = Away(monkeypatch, type(tracked), "log_batch")
    server.away = True
    passed, tried = sinks.mlflow(reports(4)), []
    with pytest.warns(UserWarning, match="could not write"):
        next(passed)
    for after in (1.0, 8.0, 1.5):
        now[0] += after
        next(passed)
        tried.append(server.calls)
    assert tried == [1, 1, 2]
    assert next(passed, None) is None


def test_an_mlflow_run_that_cannot_be_ended_does_not_hide_how_the_reports_did(
    tracked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Away(monkeypatch, type(tracked), "set_terminated")
    server.away = True
    with pytest.warns(UserWarning, match="could not write"), pytest.raises(ArithmeticError):
        list(sinks.mlflow(interrupted(ArithmeticError)))
    assert server.calls == 1


def test_what_cannot_be_set_up_is_an_error_before_the_run_begins(tmp_path: Path, tracked: Any) -> None:
    def never() -> Iterator[daskrl.Report]:
        pytest.fail("the run began")
        yield

    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"directory: cannot write events for TensorBoard in .*file"):
        next(sinks.tensorboard(never(), tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"experiment: cannot begin a run of 'daskrl' in MLflow: .*nosuch"):
        next(sinks.mlflow(never(), tracking_uri="nosuch://server"))


# -- figures ----------------------------------------------------------------------------------------------


def test_a_run_in_sinks_has_the_shares_of_the_learner_and_the_pace_from_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "_READ_EVERY", 0.0)
    run, port = small(tmp_path / "run"), free_port()
    for report in sinks.tensorboard(sinks.prometheus(run, port=port), tmp_path / "events"):
        if report.weights_version == 10:
            served = metrics(port)
    figures = Reader(run.store, run.algorithm).read()
    for name in ("learner_busy", "learner_waiting", "fragments_per_second", "env_steps_per_second"):
        expected = getattr(figures, name)
        assert scalars(tmp_path / "events", name)[-1] == (320, pytest.approx(expected, rel=1e-6))
        assert served[f"daskrl_{name}"] == pytest.approx(expected)
    assert scalars(tmp_path / "events", "learner_busy")[0][0] > 0  # not known before the second round


def test_the_store_is_read_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, read = [1000.0], Away(monkeypatch, Reader, "read")
    run = small(tmp_path / "run").wait()
    monkeypatch.setattr(sinks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    counted = sinks._Counted(run)
    for after in (0.0, 0.4, 0.4, 0.4):
        now[0] += after
        assert counted(SECOND)["fragments_per_second"] > 0
    assert read.calls == 2
