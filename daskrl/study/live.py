"""A study while it runs: a bar of runs, and in Jupyter a table of settings beside it."""

from __future__ import annotations

import contextlib
import html
import time
from collections.abc import Callable, Iterator
from typing import Any

from daskrl.study import table as tables
from daskrl.study import words
from daskrl.study.log import StudyLog
from daskrl.watching.bar import tqdm
from daskrl.watching.watch import in_a_kernel

_EVERY = 1.0  # seconds between two tables, at least
_SHARE = 20  # times as long as a table takes, at least, are the seconds to the next
_MOST = 20  # settings in the table


class Live:
    """The bar, and the table.

    Parameters
    ----------
    show : is given the table as HTML; None where there is no table.
    """

    def __init__(self, log: StudyLog, bar: Any, show: Callable[[str], None] | None) -> None:
        self._log, self._bar, self._show = log, bar, show
        self._next = 0.0

    @property
    def n(self) -> int:
        """Runs that are over."""
        return int(self._bar.n)

    def update(self, runs: int) -> None:
        """So many more runs are over."""
        self._bar.update(runs)
        if self._show is not None and time.monotonic() >= self._next:
            self.show()

    def show(self) -> None:
        """Show the table as it is now."""
        if self._show is not None:
            began = time.monotonic()
            self._show(page(self._log))
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
def live(log: StudyLog, total: int | None, shown: bool) -> Iterator[Live]:
    """The bar of a study, and in Jupyter the table; ``shown`` whether there is any."""
    with tqdm()(total=total, unit="run", disable=None if shown else True) as bar:
        bar.set_description(log.storage.name)
        made = Live(log, bar, _display() if shown and in_a_kernel() else None)
        try:
            yield made
        finally:
            made.show()


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
