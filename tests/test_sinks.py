"""Sinks: what was written is read back by the tool it was written for."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
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
from daskrl.watching.watch import Reader
from tests.read_back import logged, metrics, scalars, table
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


# -- Weights & Biases -------------------------------------------------------------------------------------


def test_wandb_reads_each_number_at_its_env_steps(offline: Path) -> None:
    import wandb

    assert list(sinks.wandb([FIRST, SECOND], "poles", name="one")) == [FIRST, SECOND]
    assert wandb.run is None  # the user's own is left alone
    (run,) = logged(offline)
    assert (run["project"], run["exit_code"]) == ("poles", 0)
    first, second = run["history"]
    assert {name: value for name, value in first.items() if not name.startswith("_")} == sinks.numbers(FIRST)
    assert {name: value for name, value in second.items() if not name.startswith("_")} == sinks.numbers(SECOND)
    assert (first["_step"], second["_step"]) == (100, 200)


def test_a_run_that_is_resumed_goes_on_in_its_wandb_run(offline: Path, tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    for report in sinks.wandb(run, "poles"):
        if report.weights_version == 4:
            run.stop()
    list(sinks.wandb(daskrl.resume(tmp_path / "run", progress=False), "poles"))
    stopped, finished = logged(offline)
    assert stopped["id"] == finished["id"] == run.store.run_id
    assert (stopped["exit_code"], finished["exit_code"]) == (255, 0)
    versions = [values["weights_version"] for part in (stopped, finished) for values in part["history"]]
    assert versions == list(range(11))
    assert stopped["config"]["algorithm"]["settings"]["hidden"] == [16]
    assert stopped["config"]["seed"] == 0


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 255), (ArithmeticError, 1)])
def test_wandb_says_how_a_run_ended(offline: Path, error: type[BaseException], code: int) -> None:
    with pytest.raises(error):
        list(sinks.wandb(interrupted(error)))
    (run,) = logged(offline)
    assert (run["exit_code"], len(run["history"])) == (code, 1)


def test_wandb_that_cannot_log_is_one_warning_and_the_run_goes_on(
    offline: Path, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    from wandb import Run

    service = Away(monkeypatch, Run, "log")
    with pytest.warns(UserWarning, match=r"sinks\.wandb could not write: OSError: .* The run goes on"):
        assert with_a_gap(sinks.wandb(reports(4)), service) == [100, 200, 300, 400]
    (run,) = logged(offline)
    assert [values["_step"] for values in run["history"]] == [100, 400]


def test_wandb_writes_where_it_is_told_and_says_what_it_cannot(tmp_path: Path, offline: Path) -> None:
    list(sinks.wandb([FIRST], directory=tmp_path / "other", mode="offline"))
    assert len(logged(tmp_path / "other" / "wandb")) == 1
    assert not offline.exists()
    with pytest.raises(ConfigError, match="mode: expected 'online', 'offline' or 'disabled', got 'ofline'"):
        sinks.wandb([FIRST], mode="ofline")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="project: cannot begin a run of 'daskrl' in Weights & Biases"):
        next(sinks.wandb([FIRST], directory=tmp_path / "file"))


# -- CSV --------------------------------------------------------------------------------------------------


def test_csv_has_a_row_for_each_report_as_soon_as_it_was_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "made" / "run.csv"
    passed = sinks.csv([FIRST, SECOND], path)
    assert next(passed) == FIRST
    assert [row["env_steps"] for row in table(path)] == ["100"]
    assert list(passed) == [SECOND]
    assert path.read_text() == (
        "env_steps,weights_version,learner_updates,episode_return,episodes,loss,policy_lag,replay_ratio,workers,seconds,"
        "time_left,evaluation_version,evaluation_return,best_version,best_return,"
        "learner_busy,learner_waiting,fragments_per_second,env_steps_per_second,run_id\n"
        "100,1,0,,0,,1,0.0,2,0.5,,,,,,,,,,\n"
        "200,2,25,12.5,4,0.25,1,4.0,2,1.5,3.0,,,,,,,,,\n"
    )


def test_pandas_reads_a_csv_file_with_types(tmp_path: Path) -> None:
    import pandas

    list(sinks.csv([FIRST, SECOND], tmp_path / "run.csv"))
    read = pandas.read_csv(tmp_path / "run.csv")
    assert read["env_steps"].tolist() == [100, 200]
    assert read["env_steps"].dtype == "int64"
    assert read["loss"].isna().tolist() == [True, False]


def test_csv_of_a_resumed_run_has_one_header_and_each_version_once_and_runs_may_share_it(
    tmp_path: Path, hurried: None
) -> None:
    path, run, other = tmp_path / "all.csv", small(tmp_path / "run"), small(tmp_path / "other")
    for report in sinks.csv(run, path):
        if report.weights_version == 4:
            break
    list(sinks.csv(other, path))
    whole = path.read_bytes()
    # As a process leaves it that was killed while it wrote a row, and one that wrote more than was known afterwards.
    path.write_bytes(whole + b"999,9")
    list(sinks.csv(daskrl.resume(tmp_path / "run", progress=False), path))
    assert path.read_bytes().startswith(whole)
    rows = table(path)
    for of in (run, other):
        mine = [row for row in rows if row["run_id"] == of.store.run_id]
        assert [row["weights_version"] for row in mine] == [str(version) for version in range(11)]
        assert float(mine[-1]["env_steps_per_second"]) > 0
    assert len(rows) == 22
    list(sinks.csv(again(run), path))
    assert len(table(path)) == 22


def again(run: daskrl.Run) -> sinks.Passed:
    """The reports of a run once more, as one gives them that was killed before it committed what it had written."""
    return sinks.Passed(run, (dataclasses.replace(FIRST, weights_version=version) for version in (3,)))


@pytest.mark.parametrize("cut", [1, 30, 260, 261, 270, 1000], ids=lambda cut: f"after {cut} bytes")
def test_a_csv_file_cut_off_anywhere_goes_on_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run.csv"
    list(sinks.csv([FIRST], path))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    list(sinks.csv([SECOND], path))
    rows = table(path)
    assert path.read_bytes().startswith(whole[: whole.index(b"\n") + 1])
    assert rows[-1]["env_steps"] == "200"
    assert all(row["run_id"] == "" for row in rows)  # every row is whole
    assert len(rows) == 1 + (cut >= len(whole))


def consume(passed: Iterator[daskrl.Report], full: dict[str, bool]) -> None:
    for report in passed:
        full["disk"] = report.env_steps in (100, 200)


def test_csv_goes_on_with_a_whole_row_after_the_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    path, write, full = tmp_path / "run.csv", os.write, {"disk": False}

    def half(file: int, data: bytes) -> int:
        if full["disk"]:
            write(file, data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    passed = sinks.csv(reports(4), path)
    monkeypatch.setattr(os, "write", half)
    with pytest.warns(UserWarning, match=r"sinks\.csv could not write: OSError: .*No space left.* The run goes on"):
        consume(passed, full)
    assert [row["env_steps"] for row in table(path)] == ["100", "400"]


def test_a_file_with_other_columns_is_left_alone_and_one_with_fewer_keeps_them(tmp_path: Path) -> None:
    thesis, fewer = tmp_path / "thesis.csv", tmp_path / "fewer.csv"
    for text in ("a,b\n1,2\n", "five years of work", "env_steps,weights_version,mine\n1,2,3\n", "\xff\n"):
        thesis.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError, match=r"path: cannot write a CSV file at .*thesis\.csv"):
            next(sinks.csv([FIRST], thesis))
        assert thesis.read_text(encoding="latin-1") == text
    fewer.write_text("weights_version,env_steps,loss\n1,100,\n")
    list(sinks.csv([SECOND], fewer))
    assert fewer.read_text() == "weights_version,env_steps,loss\n1,100,\n2,200,0.25\n"
    with pytest.raises(ConfigError, match="path: cannot write a CSV file"):
        next(sinks.csv([FIRST], tmp_path))


# -- all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sink", "module", "given"),
    [
        ("tensorboard", "torch.utils.tensorboard", ("events",)),
        ("mlflow", "mlflow.entities", ()),
        ("prometheus", "prometheus_client", ()),
        ("wandb", "wandb", ()),
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
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a sink never waits: a minute passes between two looks at it."""
    minutes = itertools.count(0, 60)
    monkeypatch.setattr(sinks, "time", SimpleNamespace(monotonic=lambda: next(minutes), time=time.time))


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurried: None
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

    disk = Away(monkeypatch, RecordWriter, "write")
    with pytest.warns(
        UserWarning, match=r"sinks\.tensorboard could not write: OSError: .*No space left.* The run goes on"
    ):
        assert with_a_gap(sinks.tensorboard(reports(4), tmp_path), disk) == [100, 200, 300, 400]
    assert [step for step, _ in scalars(tmp_path, "workers")] == [100, 400]


def test_mlflow_goes_on_after_its_server_was_away_and_warns_once(
    tracked: Any, monkeypatch: pytest.MonkeyPatch, hurried: None
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


class Kept(sinks.Sink):
    """A sink of one's own."""

    name = "kept"

    def open(self, run: Any) -> None:
        self.steps: list[int] = []

    def write(self, report: daskrl.Report, numbers: Any) -> None:
        assert "workers" in numbers
        self.steps.append(report.env_steps)

    def close(self, status: str) -> None:
        self.status = status


def test_a_sink_of_ones_own_has_three_methods(tmp_path: Path) -> None:
    sink, run = Kept(), small(tmp_path / "run")
    run.callbacks = [sink]
    assert [report.env_steps for report in run] == sink.steps
    assert sink.status == "FINISHED"


# -- figures ----------------------------------------------------------------------------------------------


def test_a_run_in_sinks_has_the_shares_of_the_learner_and_the_pace_from_its_store(
    tmp_path: Path, hurried: None
) -> None:
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
    monkeypatch.setattr(sinks, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    calls = []
    for _ in sinks.csv(small(tmp_path / "run"), tmp_path / "run.csv"):
        calls.append(read.calls)
        now[0] += 0.4
    assert calls[:7] == [1, 1, 1, 2, 2, 2, 3]
