"""The page in Dask's dashboard: fetched over HTTP while real runs go on, and where there is no dashboard."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import dask
import pytest
from distributed import Client, Scheduler, SpecCluster, performance_report

import daskrl
from daskrl import clusters
from daskrl.watching.callbacks import Told
from daskrl.watching.dashboard import Page, Telling, install
from daskrl.watching.figures import Tally
from daskrl.watching.watch import Reader
from tests.promise import start
from tests.studies import small
from tests.watched import budget, fragment, learned, tally


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with clusters.local(1, dashboard=True) as cluster, Client(cluster) as made:
        yield made


def scheduler_alone(**options: Any) -> SpecCluster:
    """A cluster without workers."""
    settings = {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0", **options}
    return SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": settings}, silence_logs=40)


def fetched(client: Client, page: str = "daskrl") -> str:
    with urlopen(client.dashboard_link.replace("status", page)) as answer:
        return str(answer.read().decode())


def title(run: daskrl.Run) -> str:
    return f"<strong>DQN on CartPole-v1, seed {run.store.config.seed}: {run.store.root}"


def kept(client: Client, run: daskrl.Run) -> Any:
    """The figures of a run that the scheduler has, which is in this process."""
    page: Page = client.cluster.scheduler.plugins[Page.name]
    return as_json(page.runs[run.store.run_id].figures)


def as_json(figures: Any) -> Any:
    return json.loads(json.dumps(figures.to_json()))


def telling(client: Client | None, run: daskrl.Run) -> Told:
    """What a driver with that client tells of the run."""
    run.client = client
    return Told(run, [Telling()])


FIGURES = json.dumps(Tally(daskrl.Schedule(2, 1, 10, 1)).figures().to_json())


def told(page: Page, run: int, client: str | None = "client") -> None:
    page.tell(f"{run}", client, f"run {run}.", FIGURES)


# -- of a run ---------------------------------------------------------------------------------------------


def test_a_run_is_on_the_page_while_it_goes_on_and_when_it_is_finished(client: Client, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client)
    for _ in run:
        assert f"{title(run)}</strong>" in fetched(client)
    text = fetched(client)
    assert f"{title(run)}</strong>" in text
    for said in ("finished", "1,536 of 1,536", "policy lag", "rollout workers", "learner busy", "learner waiting",
                 "fragments/s", "ended", "return, mean of 100 episodes"):  # fmt: skip
        assert said in text
    assert kept(client, run) == as_json(Reader(run.store).read())


def test_a_run_that_was_stopped_says_so_until_it_is_resumed(client: Client, tmp_path: Path) -> None:
    run = start(tmp_path / "run", client=client)
    for report in run:
        if report.weights_version == 3:
            break
    assert f"{title(run)} (stopped)</strong>" in fetched(client)
    resumed = daskrl.resume(tmp_path / "run", client=client, progress=False)
    for _ in resumed:
        assert f"{title(run)}</strong>" in fetched(client)
    assert fetched(client).count(title(run)) == 1
    assert kept(client, run) == as_json(Reader(run.store).read())  # what the first driver committed included


def test_two_runs_at_once_are_both_there(client: Client, tmp_path: Path) -> None:
    runs = [start(tmp_path / str(seed), seed=seed, client=client) for seed in (1, 2)]
    for _ in zip(*runs, strict=False):
        text = fetched(client)
        assert all(title(run) in text for run in runs)


def test_markup_in_a_title_is_shown_and_not_obeyed(client: Client, tmp_path: Path) -> None:
    start(tmp_path / "<script>run&", client=client, env_steps=1).wait()
    text = fetched(client)
    assert "/&lt;script&gt;run&amp;</strong>" in text
    assert "<script" not in text


def test_a_performance_report_names_the_tasks(client: Client, tmp_path: Path) -> None:
    with performance_report(filename=tmp_path / "report.html"):
        start(tmp_path / "run", client=client, env_steps=256).wait()
    report = (tmp_path / "report.html").read_text()
    assert '"rollout"' in report
    assert '"learn"' in report


# -- of a study -------------------------------------------------------------------------------------------


def test_a_study_is_on_the_page_while_it_goes_on_and_when_it_was_stopped_and_finished(
    client: Client, tmp_path: Path
) -> None:
    link, seen = client.dashboard_link.replace("status", "daskrl"), tmp_path / "seen"

    def score(store: daskrl.Store) -> float:
        with urlopen(link) as answer:
            seen.write_bytes(answer.read())
        return 7.5

    path = tmp_path / "<b>lr"
    study = small(path, score=score)
    page = f"<p>{html.escape(str(path))} (%s)</p><div><strong>&lt;b&gt;lr: %s runs asked for are over</strong>"
    study.run(client, progress=False, updates=1)  # and no run is begun once one has updates
    assert f"<p>{html.escape(str(path))} (goes on)</p><div><strong>&lt;b&gt;lr: " in seen.read_text()
    finished = study.summary()["finished"]
    assert 1 <= finished < 4
    assert page % ("stopped", f"{finished} of 4") in fetched(client)
    study.run(client, progress=False)
    text = fetched(client)
    assert page % ("finished", "4 of 4") in text
    assert text.count(html.escape(str(path))) == 1
    table = text[text.index("runs asked for are over") :]
    assert table.count("<td style='text-align:left'>7.5</td>") == 2
    assert "0.0001" in table


def test_of_studies_without_a_driver_ten_stay_and_those_that_go_on_stand_first() -> None:
    page = Page()
    for study in range(14):
        page.tell_study(f"study {study}", "one" if study == 3 else None, "", False)
    told(page, 1)
    text = page.html(0.0)
    assert [study for study in range(14) if f"study {study} (" in text] == [3, *range(4, 14)]
    assert text.index("study 3 (goes on)") < text.index("run 1.") < text.index("study 13 (stopped)")
    page.remove_client(None, "one")  # type: ignore[arg-type]
    assert "study 3 (" not in page.html(0.0)  # it is the oldest of eleven


# -- on the scheduler -------------------------------------------------------------------------------------


def test_the_page_and_those_of_dask_have_links_to_each_other() -> None:
    with scheduler_alone(dashboard=True) as cluster, Client(cluster) as client:
        install(client)
        install(client)
        text = fetched(client)
        assert "no run" in text
        assert text.count('href="status"') == 1
        assert '<meta http-equiv="refresh" content="2">' in text
        assert fetched(client, "status").count('href="daskrl"') == 1


def test_the_page_is_below_the_prefix_of_the_dashboard() -> None:
    with scheduler_alone(dashboard=True, http_prefix="/some/where") as cluster, Client(cluster) as client:
        install(client)
        assert "no run" in fetched(client, "some/where/daskrl")
        assert fetched(client, "some/where/statics/css/base.css")  # as the page refers to it


def test_without_bokeh_the_page_is_there_and_has_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = "distributed.scheduler.http.routes"
    monkeypatch.setitem(sys.modules, "distributed.dashboard.scheduler", None)
    with (
        dask.config.set({routes: [*dask.config.get(routes)]}),  # Dask adds to the list
        scheduler_alone(dashboard=True) as cluster,
        Client(cluster) as client,
    ):
        install(client)
        assert "Dask needs bokeh" in fetched(client, "status")
        text = fetched(client)
        assert "no run" in text
        assert 'href="status"' not in text


def test_without_a_dashboard_there_is_no_page_and_nobody_is_told(tmp_path: Path) -> None:
    with scheduler_alone(dashboard=False) as cluster, Client(cluster) as client:
        run = start(tmp_path / "run")
        with telling(client, run) as told:
            told.committed([])
        with pytest.raises(HTTPError, match="404"):
            fetched(client)
        with pytest.raises(KeyError):
            kept(client, run)


def test_runs_of_a_client_that_is_gone_are_stopped() -> None:
    page = Page()
    told(page, 1, "one")
    told(page, 2, "other")
    page.remove_client(None, "one")  # type: ignore[arg-type]
    text = page.html(0.0)
    assert "run 1. (stopped)<" in text
    assert "run 2.<" in text
    assert text.index("run 2.") < text.index("run 1.")


def test_runs_that_go_on_are_all_kept_and_ten_of_the_others() -> None:
    page = Page()
    for run in range(20):
        told(page, run)
    for run in range(20, 40):
        told(page, run, None)
    told(page, 39)  # resumed
    text = page.html(0.0)
    shown = [run for run in range(40) if f"run {run}.<" in text or f"run {run}. (stopped)<" in text]
    assert shown == [*range(20), *range(30, 40)]
    assert text.index("run 39.") < text.index("run 19.") < text.index("run 0.") < text.index("run 38.")


def test_a_worker_that_waits_for_weights_is_not_taken_for_one_that_is_gone() -> None:
    counted = tally(budget(1000))
    for round_ in range(5):
        for stream in (0, 1):
            counted.take(fragment(stream, round_, round_ * 50.0, round_ * 50.0 + 5.0))
        counted.take(learned(round_ + 1, 40.0))
    assert counted.figures().workers_over_time[-2:] == ((100.0, 1), (205.0, 1))  # from when on the pace was known


# -- in the driver ----------------------------------------------------------------------------------------


def test_a_scheduler_that_is_lost_is_no_matter_of_the_run(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    records = list(run.store.records())
    with scheduler_alone(dashboard=True) as cluster, Client(cluster) as client:
        with telling(client, run) as told:
            told.committed(records)
        assert kept(client, run)
        with telling(client, run) as told:
            cluster.close()
            told.committed(records)
    with telling(client, run) as told:
        told.committed(records)
    with telling(None, run) as told:
        told.committed(records)
