"""Signals: what a run, and what is done after it, does when a batch system or a user wants it to stop."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from daskrl.cli.app import say

if TYPE_CHECKING:
    from daskrl.records import Report
    from daskrl.run import Run

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: to be tried again


def carry_out(run: Run, through: Callable[[Iterable[Report]], Iterable[Report]], command: str) -> None:
    came = False

    def stop() -> None:
        nonlocal came
        came = True
        run.stop()

    with at_signals(stop):
        try:
            for _ in through(run):
                pass
        except KeyboardInterrupt:
            say(f"\nInterrupted; everything committed is kept. Type: {command}")
            sys.exit(130)
    if not run.finished:
        say(f"Stopped by a signal; everything learned is kept. Type: {command}")
        sys.exit(STOPPED)
    if came:  # too late to stop the run
        leave_evaluation(command)


def leave_evaluation(command: str) -> NoReturn:
    say(f"Stopped by a signal; everything is learned, the evaluation is not finished. Type: {command}")
    sys.exit(STOPPED)


class _GivenUp(BaseException):  # no Exception: what environments raise is
    """A signal came while the run was shown."""


@contextlib.contextmanager
def given_up_at_signals(command: str) -> Iterator[None]:
    """What comes after a run is left at a signal, to be done again."""

    def give_up() -> None:
        raise _GivenUp

    try:
        with at_signals(give_up):
            yield
    except _GivenUp:
        leave_evaluation(command)


@contextlib.contextmanager
def at_signals(act: Callable[[], None]) -> Iterator[None]:
    """Batch systems send these some time before they kill. The second one does what it did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def handle(number: int, _: Any) -> None:
        signal.signal(number, before[signal.Signals(number)])
        act()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
