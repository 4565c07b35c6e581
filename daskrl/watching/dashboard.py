"""A page in Dask's dashboard, ``/daskrl``: every study and run on the scheduler, beside Dask's own pages.

A driver puts the page on the scheduler, as a plugin. It counts the records that it commits and tells the page the
figures, once a second at most. The page keeps the newest figures of each run, and makes HTML of them when somebody
looks; of a study it keeps the newest table. The scheduler reads no store: it need not see the file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from distributed import SchedulerPlugin

from daskrl.records import Record
from daskrl.watching.callbacks import Callback
from daskrl.watching.figures import Figures, Tally, page, run_title
from daskrl.watching.watched import Watched

if TYPE_CHECKING:
    from distributed import Client, Scheduler

_EVERY = 1.0  # seconds between two times that a driver tells its figures
_REFRESH = 2  # seconds between two times that a browser asks for the page
_PATIENCE = 5.0  # seconds that the first and the last word may take
_KEPT = 10  # runs without a driver that stay on the page


# -- on the scheduler -------------------------------------------------------------------------------------


@dataclass
class Shown:
    """A run on the page."""

    title: str
    figures: Figures
    client: str | None  # of the driver; None where it ended or was lost

    def html(self, now: float) -> str:
        stopped = self.client is None and not self.figures.finished
        return page(self.figures, f"{self.title} (stopped)" if stopped else self.title, now)


@dataclass
class ShownStudy:
    """A study on the page; ``table`` is HTML."""

    title: str
    table: str
    over: bool
    client: str | None

    def html(self, now: float) -> str:
        state = "finished" if self.over else "stopped" if self.client is None else "goes on"
        return f"<p>{html.escape(self.title)} ({state})</p>{self.table}"


Kept = TypeVar("Kept", Shown, ShownStudy)


class Page(SchedulerPlugin):
    """The studies and runs that drivers told of. Of those without a driver the newest ten of each stay.

    Attributes
    ----------
    runs : by the run's id; the run that a driver took up last is the last.
    studies : the same, by the study's place.
    served : whether the scheduler has a dashboard, and this page in it.
    """

    name = "daskrl-page"
    idempotent = True  # each driver brings a page, and the first stays

    def __init__(self) -> None:
        self.served = False
        self.runs: dict[str, Shown] = {}
        self.studies: dict[str, ShownStudy] = {}
        self._others: list[str] = []  # Dask's pages

    async def start(self, scheduler: Scheduler) -> None:
        """Let drivers tell of their runs, and serve the page where there is a dashboard."""
        scheduler.handlers.update(
            daskrl_page=lambda: self.served, daskrl_tell=self.tell, daskrl_tell_study=self.tell_study
        )
        with contextlib.suppress(Exception):  # runs can do without
            self._serve(scheduler)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client is gone, and with it every run and study that it drove."""
        everything: list[Shown | ShownStudy] = [*self.runs.values(), *self.studies.values()]
        for shown in everything:
            if shown.client == client:
                shown.client = None
        _forget(self.runs)
        _forget(self.studies)

    def _serve(self, scheduler: Scheduler) -> None:
        """Serve the page where Dask serves its dashboard, or says that bokeh is missing for it; else do nothing."""
        from distributed.http.scheduler.missing_bokeh import MissingBokeh
        from tornado import web

        http, write = scheduler.http_application, self.html

        class Handler(web.RequestHandler):
            def get(self) -> None:
                self.write(write(time.time()))

        bokeh = any("bokeh" in str(application).lower() for application in http.applications)
        if bokeh or any(rule.target is MissingBokeh for rule in http.wildcard_router.rules):
            http.add_application(web.Application([(r".*/daskrl", Handler)]))  # whatever --dashboard-prefix is
            self.served = True
        if bokeh:
            from distributed.dashboard.scheduler import template_variables

            self._others = template_variables(scheduler)["pages"]  # Dask's own list, so that they have the link too
            self._others.append("daskrl")

    def tell(self, run: str, client: str | None, title: str, figures: str) -> None:
        """Take a run's newest figures, as JSON; ``client`` is None when its driver ends."""
        _take(self.runs, run, Shown(title, Figures(**json.loads(figures)), client))

    def tell_study(self, study: str, client: str | None, table: str, over: bool) -> None:
        """Take a study's newest table, as HTML; ``client`` is None when its driver ends."""
        _take(self.studies, study, ShownStudy(study, table, over, client))

    def html(self, now: float) -> str:
        """The page: studies, then runs; those that go on first, and the newest of them first."""
        newest_first: list[Shown | ShownStudy] = [*reversed(self.studies.values())]
        newest_first += reversed(self.runs.values())
        runs = sorted(newest_first, key=lambda shown: (shown.client is None, isinstance(shown, Shown)))
        links = "".join(f'<li><a href="{other}">{other.title()}</a></li>' for other in self._others)
        content = "<hr>".join(shown.html(now) for shown in runs) or "<p>no run</p>"
        return (
            f'<!DOCTYPE html><html><head><meta charset="utf-8"><meta http-equiv="refresh" content="{_REFRESH}">'
            '<title>daskrl</title><link rel="stylesheet" href="statics/css/base.css"></head><body>'
            f'<div class="navbar"><ul>{links}</ul></div>'
            f'<div class="content" style="font-size:13px">{content}</div></body></html>'
        )


def _take(kept: dict[str, Kept], key: str, shown: Kept) -> None:
    if shown.client is not None and key in kept and kept[key].client is None:
        del kept[key]  # taken up again
    kept[key] = shown
    _forget(kept)


def _forget(kept: dict[str, Kept]) -> None:
    ended = [key for key, shown in kept.items() if shown.client is None]
    for key in ended[:-_KEPT]:
        del kept[key]


# -- in the driver ----------------------------------------------------------------------------------------


def install(client: Client) -> None:
    """Put the page on the client's scheduler, unless it is there."""
    client.register_plugin(Page())


def _served(client: Client) -> bool:
    """Put the page on the client's scheduler; whether it is served there."""
    install(client)
    return bool(client.sync(client.scheduler.daskrl_page, callback_timeout=_PATIENCE))  # type: ignore[union-attr]


class _Line:
    """From a driver to the page. What is said on the way is not waited for: a slow scheduler must not be felt.

    Parameters
    ----------
    handler : of the scheduler.
    """

    def __init__(self, client: Client, handler: str) -> None:
        self.client, self._handler = client, handler
        self._saying = Future[None]()
        self._saying.set_result(None)

    @property
    def free(self) -> bool:
        """Whether what was said last has arrived."""
        return self._saying.done()

    def first(self, **said: Any) -> None:
        self.client.sync(self._say, self.client.id, said, callback_timeout=_PATIENCE)

    def next(self, **said: Any) -> None:
        loop = self.client.loop.asyncio_loop  # type: ignore[union-attr]
        self._saying = asyncio.run_coroutine_threadsafe(self._say(self.client.id, said), loop)

    def last(self, **said: Any) -> None:
        with contextlib.suppress(Exception):
            self._saying.result(_PATIENCE)  # else it may come after the last
        if self.client.status == "running":
            self.client.sync(self._say, None, said, callback_timeout=_PATIENCE)

    async def _say(self, client: str | None, said: Mapping[str, Any]) -> None:
        await getattr(self.client.scheduler, self._handler)(client=client, **said)


class StudyTelling:
    """Puts a study on the scheduler's page. It does nothing where there is no page, or where the page is out of reach.

    Parameters
    ----------
    study : its place.
    """

    def __init__(self, client: Client, study: str) -> None:
        self._study, self._line, self._last = study, None, ""
        with contextlib.suppress(Exception):
            if client.scheduler is not None and _served(client):
                self._line = _Line(client, "daskrl_tell_study")

    def show(self, table: str) -> None:
        """Show this HTML from now on."""
        begins, self._last = not self._last, table
        if self._line is not None and self._line.free:
            with contextlib.suppress(Exception):
                say = self._line.first if begins else self._line.next
                say(study=self._study, table=table, over=False)

    def end(self, over: bool) -> None:
        """The driver ends; ``over``: nothing is left to run."""
        if self._line is not None:
            with contextlib.suppress(Exception):
                self._line.last(study=self._study, table=self._last, over=over)


class _Teller:
    """Counts what a driver commits, and tells the scheduler what comes of it."""

    def __init__(self, client: Client, run: Watched) -> None:
        store = run.store
        self.run, self.title = store.run_id, f"{run_title(store.config)}: {store.storage}"
        self.tally = Tally(store.config.schedule, run.transitions_per_update)
        for record in store.records():
            self.tally.take(record)
        self._told, self._line = time.monotonic(), _Line(client, "daskrl_tell")
        self._line.first(**self._said())

    def take(self, records: Sequence[Record]) -> None:
        for record in records:
            self.tally.take(record)
        now = time.monotonic()
        if now - self._told >= _EVERY and self._line.free:
            self._told = now
            self._line.next(**self._said())

    def end(self) -> None:
        self._line.last(**self._said())

    def _said(self) -> dict[str, str]:
        return {"run": self.run, "title": self.title, "figures": json.dumps(self.tally.figures().to_json())}


class Telling(Callback):
    """Puts a run on the scheduler's page, as it is committed.

    It does nothing where there is no page, and whatever goes wrong on the way to it is no matter of the run.
    """

    def __init__(self) -> None:
        self._teller: _Teller | None = None

    def begin(self, run: Watched) -> None:
        self._teller = None
        if (client := run.client) is not None and client.scheduler is not None:
            with contextlib.suppress(Exception):
                if _served(client):
                    self._teller = _Teller(client, run)

    def committed(self, run: Watched, records: Sequence[Record]) -> None:
        if self._teller is not None:
            with contextlib.suppress(Exception):
                self._teller.take(records)

    def end(self, run: Watched, error: BaseException | None) -> None:
        if self._teller is not None:
            with contextlib.suppress(Exception):
                self._teller.end()
