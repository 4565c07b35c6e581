"""Callbacks are told of a run in one order, wherever it is carried out; they may end it and change none of its bits."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client

import daskrl
from daskrl import clusters, errors, sinks
from daskrl.schedule import Learn, Rollout
from tests.promise import start


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with clusters.local(1) as cluster, Client(cluster) as made:
        yield made


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return start(tmp_path_factory.mktemp("one") / "run").wait().store.digest()


class Noting(daskrl.Callback):
    """Notes what it is told, and does something then."""

    def __init__(self, what: str = "", does: Any = None) -> None:
        self.what, self.does = what, does
        self.told: list[tuple[str, Any]] = []
        self.threads: set[int] = set()
        self.runs: list[Any] = []

    def note(self, what: str, run: Any, given: Any = None) -> None:
        self.told.append((what, given))
        self.threads.add(threading.get_ident())
        self.runs.append(run)
        if what == self.what:
            self.does()

    def begin(self, run: Any) -> None:
        self.note("begin", run)

    def submitted(self, run: Any, tasks: Any) -> None:
        self.note("submitted", run, tasks)

    def committed(self, run: Any, records: Any) -> None:
        self.note("committed", run, records)

    def reported(self, run: Any, report: Any) -> None:
        self.note("reported", run, report)

    def end(self, run: Any, error: Any) -> None:
        self.note("end", run, error)

    def given(self, what: str) -> list[Any]:
        return [given for told, given in self.told if told == what]


def raising() -> None:
    raise LookupError("this callback has an error")


@pytest.mark.parametrize("where", ["in this process", "on workers"])
def test_a_callback_is_told_of_all_tasks_records_and_reports_between_its_begin_and_its_end(
    where: str, client: Client, digest: str, tmp_path: Path
) -> None:
    noting = Noting()
    run = start(tmp_path / "run", client=None if where == "in this process" else client, callbacks=[noting])
    before = len(list(run.store.records()))
    reports = list(run)
    names = [what for what, _ in noting.told]
    assert names[0] == "begin"
    assert names[-1] == "end"
    assert names.count("begin") == names.count("end") == 1
    assert noting.given("end") == [None]
    assert noting.given("reported") == reports
    assert [record for records in noting.given("committed") for record in records] == list(run.store.records())[before:]
    tasks = [task for tasks in noting.given("submitted") for task in tasks]
    rollouts = {(task.stream, task.round) for task in tasks if isinstance(task, Rollout)}
    assert rollouts == {(stream, round_) for stream in range(4) for round_ in range(12)}
    assert {task for task in tasks if isinstance(task, Learn)} == {Learn(version) for version in range(13)}
    assert len(tasks) == len(set(tasks))
    for number, (what, report) in enumerate(noting.told):  # the commit of a version, and then its report
        if what == "reported":
            told, records = noting.told[number - 1]
            assert told == "committed"
            assert report.weights_version in [r["version"] for r in records if r["kind"] == "learn"]
    assert len(noting.threads) == 1
    assert (threading.get_ident() in noting.threads) == (where == "in this process")
    assert {*noting.runs} == {run}
    assert run.store.digest() == digest


@pytest.mark.parametrize("what", ["begin", "submitted", "committed", "reported"])
@pytest.mark.parametrize("where", ["in this process", "on workers"])
def test_an_error_of_a_callback_ends_the_loop_which_can_be_gone_on_with(
    where: str, what: str, client: Client, digest: str, tmp_path: Path
) -> None:
    first, last = Noting(), Noting()

    def after_three_versions() -> None:
        if what == "begin" or len(bad.given("reported")) >= 3:
            raising()

    bad = Noting(what, after_three_versions)
    run = start(
        tmp_path / "run", client=None if where == "in this process" else client, callbacks=[first, bad, last],
        checkpoint_every=100,
    )  # fmt: skip
    with pytest.raises(LookupError, match="this callback has an error") as raised:
        run.wait()
    begun = [first] if what == "begin" else [first, bad, last]
    for noting in begun:
        assert noting.given("end") == [raised.value]
        assert noting.told[-1][0] == "end"
    if what == "begin":
        assert last.told == []
        assert [told for told, _ in bad.told] == ["begin"]
    else:
        assert bad.told[-2][0] == what  # and nothing after it
    if what in ("committed", "reported"):  # the learner has written where it stands
        published = max(record["version"] for record in run.store.records("learn"))
        assert [record["version"] for record in run.store.records("checkpoint")] == [published]
    run.callbacks.remove(bad)
    assert run.wait().store.digest() == digest
    assert first.given("end") == [raised.value, None]


def test_an_error_at_the_end_is_raised_when_everybody_was_told_and_is_a_note_on_another(tmp_path: Path) -> None:
    first, bad = Noting(), Noting("end", raising)
    run = start(tmp_path / "run", env_steps=128, callbacks=[first, bad])
    with pytest.raises(LookupError):
        run.wait()
    assert first.given("end") == [None]
    assert run.finished
    other = start(tmp_path / "other", env_steps=128, callbacks=[first, bad, Noting("reported", lambda: 1 / 0)])
    with pytest.raises(ZeroDivisionError) as raised:
        other.wait()
    assert raised.value.__notes__ == ["And Noting.end raised LookupError: this callback has an error"]
    assert first.given("end") == [None, raised.value]


@pytest.mark.parametrize("where", ["in this process", "on workers"])
def test_a_callback_that_changes_all_it_can_reach_changes_no_bit(
    where: str, client: Client, digest: str, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()

    class Meddling(daskrl.Callback):
        def begin(self, run: Any) -> None:
            self.meddle()

        def submitted(self, run: Any, tasks: Any) -> None:
            self.meddle()

        def committed(self, run: Any, records: Any) -> None:
            self.meddle()
            for record in records:
                record.clear()
            records.clear()

        def reported(self, run: Any, report: Any) -> None:
            self.meddle()

        def meddle(self) -> None:
            random.seed(1)
            np.random.seed(1)  # noqa: NPY002
            torch.manual_seed(1)
            torch.set_num_threads(2)
            torch.set_default_dtype(torch.float64)

    run = start(tmp_path / "run", client=None if where == "in this process" else client, callbacks=[Meddling()])
    try:
        assert run.wait().store.digest() == digest
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("where", ["in this process", "on workers"])
def test_a_callback_may_stop_the_run(where: str, client: Client, digest: str, tmp_path: Path) -> None:
    stopping = Noting()
    run = start(tmp_path / "run", client=None if where == "in this process" else client, callbacks=[stopping])
    stopping.what, stopping.does = "reported", run.stop
    run.wait()
    assert not run.finished
    assert stopping.given("end") == [None]
    noting = Noting()
    again = daskrl.resume(run.store.root, progress=False, callbacks=[noting])
    assert again.callbacks == [noting]
    assert again.wait().store.digest() == digest
    assert noting.given("end") == [None]


@pytest.mark.parametrize("where", ["in this process", "on workers"])
def test_a_loop_that_is_left_ends_without_an_error_and_the_next_one_begins_again(
    where: str, client: Client, tmp_path: Path
) -> None:
    noting, once = Noting(), Noting()
    run = start(tmp_path / "run", client=None if where == "in this process" else client, callbacks=[noting])
    for _ in run.reports(callbacks=[once]):
        break
    assert not run.finished
    run.wait()
    assert noting.given("end") == [None, None]
    assert once.given("end") == [None]
    run.wait()  # nothing is left to do
    assert [told for told, _ in noting.told].count("begin") == 2


def test_what_is_no_callback_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for given in ([Noting], [print], ["csv"]):
        with pytest.raises(
            errors.ConfigError, match=r"callbacks: expected objects of classes that inherit daskrl\.Call"
        ):
            start(tmp_path / "run", callbacks=given)
    with pytest.raises(errors.ConfigError, match="callbacks: expected a list of them, got one alone"):
        start(tmp_path / "run", callbacks=Noting())
    assert not (tmp_path / "run").exists()
    run = start(tmp_path / "run")
    run.callbacks.append("csv")  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigError, match="callbacks: expected objects"):
        run.wait()
    with pytest.raises(errors.ConfigError, match="callbacks: expected objects"):
        daskrl.resume(tmp_path / "run", callbacks=[print])  # type: ignore[list-item]


def test_a_sink_among_the_callbacks_writes_what_it_writes_around_the_reports(client: Client, tmp_path: Path) -> None:
    def columns(path: Path) -> list[list[str]]:
        rows = [line.split(",") for line in path.read_text().splitlines()]
        exact = [rows[0].index(name) for name in ("weights_version", "loss", "learner_updates")]
        return [[row[at] for at in exact] for row in rows]

    start(tmp_path / "run", client=client, callbacks=[sinks.CSVSink(tmp_path / "one.csv")]).wait()
    for _ in sinks.csv(start(tmp_path / "other"), tmp_path / "other.csv"):
        pass
    assert columns(tmp_path / "one.csv") == columns(tmp_path / "other.csv")
    assert len(columns(tmp_path / "one.csv")) == 1 + 13


def test_a_sink_that_cannot_be_set_up_ends_the_run_before_anything_is_queued(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    noting = Noting()
    run = start(tmp_path / "run", callbacks=[noting, sinks.CSVSink(tmp_path / "file" / "run.csv")])
    with pytest.raises(errors.ConfigError, match="path: cannot write a CSV file"):
        run.wait()
    assert [told for told, _ in noting.told] == ["begin", "end"]
