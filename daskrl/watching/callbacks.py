"""Hooks of a run: callbacks are told what happens in it, so that nobody has to replace its methods."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from daskrl.errors import ConfigError
from daskrl.records import Record, Report
from daskrl.schedule import Task
from daskrl.watching.watched import Watched


class Callback:
    """Is told what happens in a run: inherit this class, and override the methods for what you want to be told of.

        class Slowest(daskrl.Callback):
            def committed(self, run, records):
                self.seconds = max([self.seconds, *(r["seconds"] for r in records if r["kind"] == "fragment")])

        daskrl.train(..., callbacks=[Slowest()])

    Clauses of the contract:

    - **Who calls.** The process that drives the run, never a worker; with a client it is a thread of its own. One call
      comes at a time, of one callback after the other as they were given, and the run waits for each of them.
    - **In which order.** For each loop over the run `begin`, then `submitted`, `committed` and `reported` as it goes,
      then `end`, of the last callback first. A loop over a run that has nothing left to do calls nothing. A run that
      is gone on with, in this process or in another, begins again.
    - **What a callback may do.** Anything but write to the run's store; it may call ``run.stop()``. It changes no bit
      of the run: a record is committed before a callback is told of it, and what is random is derived from the seed.
    - **Errors.** An exception ends the loop as ``run.stop()`` does, with a checkpoint, and whoever loops over the run
      gets it. After it, callbacks are told of nothing but the `end`, and of that each one that began. What should not
      end a run is caught by the callback itself.

    The ``run`` is the `daskrl.Run`, with its ``store``, ``algorithm`` and others.
    """

    def begin(self, run: Any) -> None:
        """The run's store is locked by this process, and nothing is submitted yet."""

    def submitted(self, run: Any, tasks: Set[Task]) -> None:
        """Tasks of `daskrl.schedule` were given to the workers: ``Rollout``, ``Learn``, ``Evaluate``.

        A task whose worker was lost is submitted again.
        """

    def committed(self, run: Any, records: Sequence[Record]) -> None:
        """These records are part of the run from here on. ``FORMAT.md`` describes the kinds."""

    def reported(self, run: Any, report: Report) -> None:
        """A new version of the weights, or an evaluation, is committed; ``report`` is what a loop over the run gets."""

    def end(self, run: Any, error: BaseException | None) -> None:
        """The loop is over; the store is locked still.

        Parameters
        ----------
        error : what ended it; None where the run reached its end, was stopped, or its loop was left (``run.finished``
            says which).
        """


class Told:
    """Several callbacks as one: within ``with told:`` they have begun, and after it they have ended.

    Parameters
    ----------
    run : given to each of them; None where reports are of no run that is known.

    Attributes
    ----------
    error : the exception of a callback that ends the loop.
    """

    def __init__(self, run: Watched | None, callbacks: Iterable[Callback]) -> None:
        self._run: Any = run
        self._callbacks = list(callbacks)
        self._begun: list[Callback] = []
        # A look at all that is in flight for each turn of the loop is only taken where somebody wants to know.
        self._of_tasks = any(type(callback).submitted is not Callback.submitted for callback in self._callbacks)
        self.error: BaseException | None = None

    def __enter__(self) -> Told:
        try:
            for callback in self._callbacks:
                with self._noted():
                    callback.begin(self._run)
                self._begun.append(callback)
        except BaseException as error:
            self._end(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        left = isinstance(error, GeneratorExit | KeyboardInterrupt) and self._run is not None
        self._end(None if left else error)

    @contextlib.contextmanager
    def submitting(self, in_flight: Set[Task]) -> Iterator[None]:
        """Around submissions: tells which tasks are in flight afterwards that were not."""
        before = {*in_flight} if self._of_tasks else in_flight
        yield
        if self._of_tasks and (new := frozenset(in_flight - before)):
            self._tell("submitted", new)

    def committed(self, records: Sequence[Record]) -> None:
        if self._callbacks:  # copies: the run goes on with its own
            self._tell("committed", _copied(records))

    def reported(self, report: Report) -> None:
        self._tell("reported", report)

    def _tell(self, what: str, given: object) -> None:
        if self.error is None:
            with self._noted():
                for callback in self._callbacks:
                    getattr(callback, what)(self._run, given)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.error = error
            raise

    def _end(self, error: BaseException | None) -> None:
        """Tell all of them; the first exception is what is raised, unless another is on its way."""
        raised: BaseException | None = None
        while self._begun:
            callback = self._begun.pop()
            try:
                callback.end(self._run, error)
            except BaseException as another:
                if error is not None:
                    error.add_note(f"And {type(callback).__name__}.end raised {type(another).__name__}: {another}")
                raised = raised or another
        if raised is not None and error is None:
            raise raised


def _copied(value: Any) -> Any:
    """A copy of a value of JSON."""
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list | tuple) else value


def passed(reports: Iterable[Report], callback: Callback, run: Watched | None) -> Iterator[Report]:
    """Pass reports on and tell a callback of them, in the thread of whoever takes them: the run does not wait for it.

    The callback begins before the run does, and hears neither of tasks nor of records. The run is stopped where whoever
    takes the reports stops.
    """
    with Told(run, [callback]) as told:
        iterator: Any = iter(reports)
        with contextlib.closing(iterator) if hasattr(iterator, "close") else contextlib.nullcontext():
            for report in iterator:
                told.reported(report)
                yield report


def require_callbacks(callbacks: Iterable[Callback]) -> list[Callback]:
    """A list of them.

    Raises
    ------
    ConfigError
        Something among them is no `Callback`, e.g. a class of them, or a function.
    """
    if isinstance(callbacks, Callback):
        raise ConfigError(f"callbacks: expected a list of them, got one alone. Type: callbacks=[{callbacks!r}]")
    found = list(callbacks)
    for callback in found:
        if not isinstance(callback, Callback):
            raise ConfigError(f"callbacks: expected objects of classes that inherit daskrl.Callback, got {callback!r}.")
    return found
