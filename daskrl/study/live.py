"""A study while it runs: a bar of runs, and a table of settings in Jupyter and in Dask's dashboard."""

from __future__ import annotations

import contextlib
import html
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daskrl.study import table as tables
from daskrl.study import words
from daskrl.study.log import StudyLog
from daskrl.watching.bar import tqdm
from daskrl.watching.watch import in_a_kernel

if TYPE_CHECKING:
    from distributed import Client

_EVERY = 1.0  # seconds between two tables, at least
_SHARE = 20  # times as long as a table takes, at least, are the seconds to the next
_MOST = 20  # settings in the table


class Live:
    """The bar, and the table.

    Parameters
    ----------
    shows : are given the table as HTML.

    Attributes
    ----------
    over : whether nothing is left to run; its driver says so.
    """

    def __init__(self, log: StudyLog, bar: Any, shows: Sequence[Callable[[str], None]]) -> None:
        self._log, self._bar, self._shows = log, bar, shows
        self._next = 0.0
        self.over = False

    @property
    def n(self) -> int:
        """Runs that are over."""
        return int(self._bar.n)

    def update(self, runs: int) -> None:
        """So many more runs are over."""
        self._bar.update(runs)
        if time.monotonic() >= self._next:
            self.show()

    def show(self) -> None:
        """Show the table as it is now."""
        if self._shows:
            began = time.monotonic()
            table = page(self._log)
            for show in self._shows:
                show(table)
            ended = time.monotonic()
            self._next = ended + max(_EVERY, _SHARE * (ended - began))


def page(log: StudyLog) -> str:
    """How far each setting is, those with the best mean score first, as HTML; every value escaped."""
    of: dict[int, list[dict[str, Any]]] = {}
    rows = tables.rows(log)
    for row in rows:
        of.setdefault(row["setting"], []).append(row)
    shown = []
    for setting, mine in of.items():
        states = [row["state"] for row in mine]
        scores = [row["score"] for row in mine if row["score"] is not None]
        mean = sum(scores) / len(scores) if scores else None
        values = {name: mine[0][name] for name in log.definition["space"]}
        said = {"setting": str(setting), **{name: str(value) for name, value in values.items()}}
        said |= {state: f"{states.count(state):,}" for state in ("finished", "failed", "waiting")}
        shown.append((mean, {**said, "mean score": "" if mean is None else words.number(mean)}))
    shown.sort(key=lambda each: -float("inf") if each[0] is None else each[0], reverse=True)
    over = sum(row["state"] != "waiting" for row in rows)
    title = f"{log.storage.name}: {over:,} of {len(rows):,} runs asked for are over"
    more = f"<p>and {len(shown) - _MOST:,} more settings</p>" if len(shown) > _MOST else ""
    table = words.html_table([said for _, said in shown[:_MOST]]) if shown else ""
    return f"<div><strong>{html.escape(title)}</strong>{table}{more}</div>"


@contextlib.contextmanager
def live(log: StudyLog, total: int | None, shown: bool, client: Client | None = None) -> Iterator[Live]:
    """The bar of a study, and the table.

    Parameters
    ----------
    shown : whether there is a bar, and in Jupyter the table.
    client : of Dask, in whose dashboard the table is in any case.
    """
    shows, telling = [_display()] if shown and in_a_kernel() else [], None
    if client is not None:
        from daskrl.watching.dashboard import StudyTelling

        telling = StudyTelling(client, str(log.storage))
        shows.append(telling.show)
    with tqdm()(total=total, unit="run", disable=None if shown else True) as bar:
        bar.set_description(log.storage.name)
        made = Live(log, bar, shows)
        try:
            yield made
        finally:
            made.show()
            if telling is not None:
                telling.end(made.over)


def _display() -> Callable[[str], None]:
    """An output of the notebook's cell, shown in the same place again and again."""
    from IPython.display import HTML, DisplayHandle

    handle = DisplayHandle()  # type: ignore[no-untyped-call]
    showing = handle.display

    def show(text: str) -> None:
        nonlocal showing
        showing(HTML(text))  # type: ignore[no-untyped-call]
        showing = handle.update

    return show
