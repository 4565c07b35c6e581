"""A page in Dask's dashboard, ``/daskrl``: every run on the scheduler, beside Dask's own pages.

A driver puts the page on the scheduler, as a plugin. It counts the records that it commits and tells the page the
figures, once a second at most. The page keeps the newest figures of each run, and makes HTML of them when somebody
looks. The scheduler reads no store: it need not see the file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


class Page(SchedulerPlugin):
    """The runs that drivers told of. Of the runs without a driver the newest ten stay.

    Attributes
    ----------
    runs : by the run's id; the run that a driver took up last is the last.
    served : whether the scheduler has a dashboard, and this page in it.
    """

    name = "daskrl-page"
    idempotent = True  # each driver brings a page, and the first stays

    def __init__(self) -> None:
        self.served = False
        self.runs: dict[str, Shown] = {}
        self._others: list[str] = []  # Dask's pages

    async def start(self, scheduler: Scheduler) -> None:
        """Let drivers tell of their runs, and serve the page where there is a dashboard."""
        scheduler.handlers.update(daskrl_page=lambda: self.served, daskrl_tell=self.tell)
        with contextlib.suppress(Exception):  # runs can do without
            self._serve(scheduler)

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """A client is gone, and with it every run that it drove."""
        for shown in self.runs.values():
            if shown.client == client:
                shown.client = None
        self._forget()

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
        shown = Shown(title, Figures(**json.loads(figures)), client)
        if client is not None and run in self.runs and self.runs[run].client is None:
            del self.runs[run]  # resumed
        self.runs[run] = shown
        self._forget()

    def _forget(self) -> None:
        ended = [run for run, shown in self.runs.items() if shown.client is None]
        for run in ended[:-_KEPT]:
            del self.runs[run]

    def html(self, now: float) -> str:
        """The page: runs that go on first, and the newest of them first."""
        newest_first = [*reversed(self.runs.values())]
        runs = sorted(newest_first, key=lambda shown: shown.client is None)
        links = "".join(f'<li><a href="{other}">{other.title()}</a></li>' for other in self._others)
        content = "<hr>".join(shown.html(now) for shown in runs) or "<p>no run</p>"
        return (
            f'<!DOCTYPE html><html><head><meta charset="utf-8"><meta http-equiv="refresh" content="{_REFRESH}">'
            '<title>daskrl</title><link rel="stylesheet" href="statics/css/base.css"></head><body>'
            f'<div class="navbar"><ul>{links}</ul></div>'
            f'<div class="content" style="font-size:13px">{content}</div></body></html>'
        )


# -- in the driver ----------------------------------------------------------------------------------------


def install(client: Client) -> None:
    """Put the page on the client's scheduler, unless it is there."""
    client.register_plugin(Page())


class _Teller:
    """Counts what a driver commits, and tells the scheduler what comes of it."""

    def __init__(self, client: Client, run: Watched) -> None:
        store = run.store
        self.client, self.run, self.title = client, store.run_id, f"{run_title(store.config)}: {store.storage}"
        self.tally = Tally(store.config.schedule, run.transitions_per_update)
        for record in store.records():
            self.tally.take(record)
        self._told, self._telling = time.monotonic(), Future[None]()
        self._telling.set_result(None)
        client.sync(self._tell, client.id, self._figures(), callback_timeout=_PATIENCE)

    def take(self, records: Sequence[Record]) -> None:
        for record in records:
            self.tally.take(record)
        now = time.monotonic()
        if now - self._told >= _EVERY and self._telling.done():
            self._told = now
            # Not waited for: a scheduler that is slow must not be felt.
            telling = self._tell(self.client.id, self._figures())
            loop = self.client.loop.asyncio_loop  # type: ignore[union-attr]
            self._telling = asyncio.run_coroutine_threadsafe(telling, loop)

    def end(self) -> None:
        with contextlib.suppress(Exception):
            self._telling.result(_PATIENCE)  # else it may come after the last
        if self.client.status == "running":
            self.client.sync(self._tell, None, self._figures(), callback_timeout=_PATIENCE)

    def _figures(self) -> str:
        return json.dumps(self.tally.figures().to_json())

    async def _tell(self, client: str | None, figures: str) -> None:
        scheduler = self.client.scheduler
        assert scheduler is not None
        await scheduler.daskrl_tell(run=self.run, client=client, title=self.title, figures=figures)


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
                install(client)
                if client.sync(client.scheduler.daskrl_page, callback_timeout=_PATIENCE):
                    self._teller = _Teller(client, run)

    def committed(self, run: Watched, records: Sequence[Record]) -> None:
        if self._teller is not None:
            with contextlib.suppress(Exception):
                self._teller.take(records)

    def end(self, run: Watched, error: BaseException | None) -> None:
        if self._teller is not None:
            with contextlib.suppress(Exception):
                self._teller.end()
