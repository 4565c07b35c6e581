"""Watching a run by its committed records: in a terminal, in Jupyter, also of a run that another process drives.

Nothing here touches the run. `Reader` tallies the records of a store, the rest shows what they say.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from daskrl.algorithms.base import Algorithm, Setup, transitions_per_update
from daskrl.errors import ConfigError, DamagedError, DaskrlError, StoreMismatchError
from daskrl.identity import same_algorithm
from daskrl.names import suggests
from daskrl.records import Report
from daskrl.shown import shown
from daskrl.store.pack import where_now
from daskrl.store.store import Store
from daskrl.watching.callbacks import Callback, passed
from daskrl.watching.figures import Figures, Points, Tally, halves, page, rows, run_title
from daskrl.watching.watched import Watched

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_EVERY = 10.0  # seconds between two lines of text
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:-=+*%#"

# -- reading ----------------------------------------------------------------------------------------------


class Reader:
    """Tallies a store, also one that is being written.

    Parameters
    ----------
    store : of the run.
    algorithm : the run's, where it is not daskrl's own: the replay ratio is counted with it.
    """

    def __init__(self, store: Store, algorithm: Algorithm | None = None) -> None:
        config, per_update = store.config, None
        with contextlib.suppress(StoreMismatchError):  # not daskrl's own, and not given
            setup = Setup(store.spec, config.schedule, config.frame_stack)
            per_update = transitions_per_update(algorithm or same_algorithm(store, None), setup)
        self.store, self.tally = store, Tally(config.schedule, per_update)
        self._segments = 0

    @property
    def title(self) -> str:
        return run_title(self.store.config)

    def read(self) -> Figures:
        """Count in what was committed since the last time.

        Raises
        ------
        StoreMismatchError
            The store is gone, or holds another run.
        DamagedError
            A commit fails its checksum.
        """
        try:
            try:
                self.store.layout.require_same_run()
            except (OSError, DamagedError):
                where_now(self.store)  # a run may be packed when it ends
        except (OSError, DamagedError, StoreMismatchError):
            raise StoreMismatchError(
                f"{self.store.storage} was deleted, or holds another run now. Open it again."
            ) from None
        for records in self.store.log.since(self._segments):
            for record in records:
                self.tally.take(record)
            self._segments += 1
        return self.tally.figures()


def follow(reader: Reader, interval: float) -> Iterator[Figures]:
    """The figures every ``interval`` seconds, until the run is finished."""
    if not interval > 0:
        raise ConfigError(f"interval: expected seconds > 0, got {interval!r}.")
    while not (figures := reader.read()).finished:
        yield figures
        time.sleep(interval)
    yield figures


# -- showing ----------------------------------------------------------------------------------------------


def line(figures: Figures) -> str:
    """The figures in one line."""
    said = rows(figures, figures.newest or 0.0)
    evaluated = f"evaluation {said['evaluation']}, best {said['best']}, " if "evaluation" in said else ""
    return (
        f"{said['env steps']} env steps, return {said['return']}, {evaluated}loss {said['loss']}, "
        f"lag {said['policy lag']}, replay {said['replay ratio']}, {said['rollout workers']} workers, "
        f"learner busy {said['learner busy']}, {said['env steps/s']} env steps/s, to go {said['to go']}"
    )


def sampled(points: Points, count: int) -> list[float]:
    """The curve's value at ``count`` places evenly apart, each that of the newest point there."""
    low, high = points[0][0], points[-1][0]
    values, at = [], 0
    for number in range(count):
        x = low + (high - low) * (number + 1) / count
        while at + 1 < len(points) and points[at + 1][0] <= x:
            at += 1
        values.append(points[at][1])
    return values


def bars(values: Sequence[float], low: float, high: float, height: int = 1, blocks: str = _BLOCKS) -> list[str]:
    """Values from ``low`` to ``high`` as ``height`` lines of text, the upper one first; none is all blank."""
    levels = len(blocks) - 1
    filled = [1 + round((height * levels - 1) * (v - low) / (high - low)) if high > low else levels for v in values]
    return [
        "".join(blocks[min(max(level - below * levels, 0), levels)] for level in filled)
        for below in reversed(range(height))
    ]


def terminal(figures: Figures, title: str, now: float, width: int = 60, blocks: str = _BLOCKS) -> RenderableType:
    """The figures for a terminal of 24 lines: two curves drawn in text, ``width`` wide, and a table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(title, style="bold")]
    if figures.learning_curve:
        values = sampled(figures.learning_curve, width)
        low, high = min(values), max(values)
        parts.append(Text("\n".join(bars(values, low, high, 4, blocks)), style="blue"))
        parts.append(Text(f"learning curve, {shown(low)} to {shown(high)}"))
    if figures.workers_over_time:
        values = sampled(figures.workers_over_time, width)
        parts.append(Text("\n".join(bars(values, 0, max(values), 1, blocks)), style="blue"))
        parts.append(Text(f"workers over time, at most {max(values):.0f}"))
    table = Table(show_header=False)
    for left, right in halves(list(rows(figures, now).items())):
        table.add_row(*(Text(text) for text in (*left, *right)))
    return Group(*parts, table)


def show(reader: Reader, interval: float | None) -> None:
    """Show a run in the terminal: every ``interval`` seconds until it is finished, or once for None."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    blocks = _BLOCKS if console.encoding.startswith("utf") else _ASCII

    def drawn(figures: Figures) -> RenderableType:
        width = max(10, min(72, console.width - 2))
        return terminal(figures, f"{reader.title}: {reader.store.storage}", time.time(), width, blocks)

    if interval is None:
        console.print(drawn(reader.read()))
        return
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        for figures in follow(reader, interval):
            live.update(drawn(figures), refresh=True)


# -- notebooks and scripts --------------------------------------------------------------------------------


@overload
def watch(run: Watched, *, interval: float = 1.0) -> Iterator[Report]: ...
@overload
def watch(run: str | os.PathLike[str] | Store, *, interval: float = 1.0) -> Iterator[Figures]: ...
@suggests
def watch(run: Watched | str | os.PathLike[str] | Store, *, interval: float = 1.0) -> Iterator[Any]:
    """Carry a run on, or follow one that another process drives, beside a display that is kept up to date.

    In Jupyter that is one output with curves and a table in it, in the place of the run's progress bar; else lines of
    text, and on a terminal nothing but that bar. ``for report in daskrl.watch(run): ...`` is left like ``for report in
    run``.

    Parameters
    ----------
    run : a `Run`, whose reports are passed on; or the store of a run that is driven elsewhere, whose `Figures` come
        until it is finished.
    interval : seconds between two updates, 1 or more.

    Raises
    ------
    StoreMismatchError
        There is no store at that path.
    """
    if not interval >= 1:
        raise ConfigError(f"interval: expected seconds >= 1, got {interval!r}.")
    if isinstance(run, Watched):
        return _carried_on(run, interval)
    return _followed(Reader(run if isinstance(run, Store) else Store.open(run)), interval)


def _carried_on(run: Watched, interval: float) -> Iterator[Report]:
    reader = Reader(run.store, run.algorithm)
    display = _display(reader.title, bar=True)
    reports = run.reports(progress=run.progress and not display.instead_of_bar)
    # Beside the reports, not in the run's own callbacks: Jupyter shows what this thread writes, and the run goes on.
    return passed(reports, _Showing(reader, display, interval), run)


class _Showing(Callback):
    """Keeps a display up to date."""

    def __init__(self, reader: Reader, display: _Display, interval: float) -> None:
        self._reader, self._display, self._interval = reader, display, interval
        self._last = -math.inf

    def reported(self, run: Watched, report: Report) -> None:
        if time.monotonic() - self._last >= max(self._interval, self._display.least):
            self._display.show(self._reader.read())
            self._last = time.monotonic()

    def end(self, run: Watched, error: BaseException | None) -> None:
        with contextlib.suppress(DaskrlError):  # what stopped the run says more
            self._display.show(self._reader.read())


def _followed(reader: Reader, interval: float) -> Iterator[Figures]:
    display = _display(reader.title, bar=False)
    for figures in follow(reader, max(interval, display.least)):
        display.show(figures)
        yield figures


class _Display(NamedTuple):
    """Where figures are shown.

    Attributes
    ----------
    least : seconds between two updates.
    instead_of_bar : whether it takes the place of the run's progress bar.
    """

    show: Callable[[Figures], None]
    least: float
    instead_of_bar: bool


def _display(title: str, bar: bool) -> _Display:
    """An output of the notebook's cell, else lines on standard error; nothing on a terminal that has a bar."""
    if in_a_kernel():
        from IPython.display import HTML, DisplayHandle

        handle = DisplayHandle()  # type: ignore[no-untyped-call]
        showing = handle.display

        def show(figures: Figures) -> None:
            nonlocal showing
            showing(HTML(page(figures, title, time.time())))  # type: ignore[no-untyped-call]
            showing = handle.update

        return _Display(show, 1.0, True)
    if bar and sys.stderr.isatty():
        return _Display(lambda figures: None, 1.0, False)
    return _Display(lambda figures: print(line(figures), file=sys.stderr, flush=True), _LINE_EVERY, False)


def in_a_kernel() -> bool:
    """Whether this is a notebook's process: what is displayed is shown in the cell."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")
