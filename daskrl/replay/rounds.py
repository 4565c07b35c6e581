"""Sources of the rounds that a learner learns: `Rounds`, those of a run's store, those in memory; read ahead.

A learner is given a source of rounds, and knows nothing else of where transitions are kept. `CommittedRounds` are the
rounds of a run, also while the run goes on; `RoundsInMemory` are any rounds. A source of your own has the two methods
and two attributes of `Rounds`, and its tests inherit `daskrl.testing.RoundsTests`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np

from daskrl.arithmetic import aligned, aligned_all
from daskrl.errors import ConfigError, StoreError
from daskrl.records import Array, ReadFragment
from daskrl.store.layout import Layout

Fragments = Sequence[Mapping[str, Array]]
"""One round: the columns of one fragment of every stream, in the streams' order, to be read only.

Each has the columns of the store (``observation`` ``[T + K, N, ...]`` under K stacked frames, ``action``, ``reward``,
``terminated``, ``truncated`` ``[T, N, ...]``, and those that the algorithm adds; ``final_observation`` where an episode
was truncated), ``episode_step`` ``[N]`` (steps taken in each environment's episode when the fragment began), and
``continues`` (False where the environments do not stand where the fragment before left them). Arrays begin at multiples
of 64 bytes (`daskrl.arithmetic.aligned`): bits may depend on it.
"""


class Rounds(Protocol):
    """Rounds of transitions in order, numbered from 0: what a learner learns.

    In the learner's process. Both methods are called by any thread, also by two at once, and any number of times. A
    round that is there stays as it is: whoever reads it again, also after a restart, reads the same bytes.

    Attributes
    ----------
    before : rounds that the learner's memory begins with, and that are not learned. They are numbered from ``-before``
        to -1. 0 for most.
    cut : others came before the first of these, and are not here. So what its first frames are stacked with is missing.
    """

    @property
    def before(self) -> int: ...

    @property
    def cut(self) -> bool: ...

    def count(self) -> int:
        """How many rounds there are from round 0 on. It may grow while a run goes on, and never falls."""

    def read(self, rounds: range) -> Iterator[Fragments]:
        """Some rounds, the lowest first; each is read when it is asked for.

        The iterator is used by one thread at a time, not always the same, and may be left before its end.

        Raises
        ------
        DaskrlError
            One of them is not there, or not what was written.
        """


class CommittedRounds:
    """The rounds of a run, as they are committed in its store; before them those that its memory began with.

    Parameters
    ----------
    head : commits that exist at least, of which rounds are read; more are made known by `reach`.
    """

    def __init__(self, layout: Layout, head: int) -> None:
        self.layout, self.head = layout, head
        self._first = layout.first_replay()
        self._begun_with = dataclasses.replace(layout, storage=layout.storage.folder(".init"))

    @property
    def before(self) -> int:
        return len(self._first)

    @property
    def cut(self) -> bool:
        return bool(self._first) and self._first[0][0]["round"] > 0

    def reach(self, head: int) -> None:
        """So many commits exist by now. From any thread."""
        self.head = max(self.head, head)

    def count(self) -> int:
        committed: dict[int, int] = {}
        for record in self.layout.log.backwards(self.head):
            if record["kind"] == "fragment":  # of a stream, rounds come in order
                committed.setdefault(record["stream"], record["round"] + 1)
                if len(committed) == self.layout.config.schedule.streams:
                    return min(committed.values())
        return 0

    def read(self, rounds: range) -> Iterator[Fragments]:
        schedule = self.layout.config.schedule

        def slots(round_: int) -> list[int]:
            return [schedule.slot(stream, round_) for stream in range(schedule.streams)]

        if rounds and rounds[0] < -self.before:
            raise StoreError(f"{self.layout.storage} has rounds from {-self.before} on, not {rounds[0]}.")
        # In one pass over the log, however many rounds.
        records = self.layout.find([slot for round_ in rounds if round_ >= 0 for slot in slots(round_)], self.head)
        for round_ in rounds:
            if round_ < 0:
                yield [read_committed(self._begun_with, record) for record in self._first[round_ + self.before]]
                continue
            fragments = [read_committed(self.layout, records[slot]) for slot in slots(round_)]
            if round_ == 0 and (self.layout.config.init or {}).get("replay"):
                for fragment in fragments:  # its episodes are not those of the run that the memory begins with
                    fragment["continues"] = aligned(np.asarray(False))
            yield fragments


def read_committed(layout: Layout, record: ReadFragment) -> dict[str, Array]:
    """One fragment of a run as `Fragments` has it, checked."""
    fragment = layout.read_transitions(record)
    fragment["episode_step"] = np.asarray(record["episode_step"])
    fragment["continues"] = np.asarray(record["continues"])
    return aligned_all(fragment)


class RoundsInMemory:
    """Rounds that are given, as of a data set.

    Parameters
    ----------
    rounds : from round 0 on.
    before, cut : what the learner's memory begins with; see `Rounds`.
    """

    def __init__(self, rounds: Sequence[Fragments], before: Sequence[Fragments] = (), cut: bool = False) -> None:
        self._all = [[aligned_all(fragment) for fragment in fragments] for fragments in (*before, *rounds)]
        self.before, self.cut = len(before), cut

    def count(self) -> int:
        return len(self._all) - self.before

    def read(self, rounds: range) -> Iterator[Fragments]:
        for round_ in rounds:
            if not -self.before <= round_ < self.count():
                raise ConfigError(f"expected a round from {-self.before} to {self.count() - 1}, got {round_}.")
            yield self._all[round_ + self.before]


Source = TypeVar("Source", bound=Rounds)


class RoundReader(Generic[Source]):
    """Reads the rounds of a source in order: the next one in a thread of its own, while one is learned.

    Parameters
    ----------
    prepare : called with each round, in the thread that read it; what it returns is given in its place.

    Attributes
    ----------
    begun : the rounds that `begin` was told of and `read` has not given yet.
    """

    def __init__(self, rounds: Source, prepare: Callable[[Fragments], Fragments] = lambda fragments: fragments) -> None:
        self.rounds, self._prepare = rounds, prepare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daskrl-reader")
        self.begun: dict[int, Future[Fragments]] = {}

    def begin(self, round_: int) -> None:
        """Begin to read a round that is wanted next. It may fail: `read` then reads it again. From any thread."""
        if round_ >= 0 and round_ not in self.begun:
            self.begun[round_] = self._thread.submit(self._one, round_)

    def read(self, rounds: range) -> Iterator[Fragments]:
        """Some rounds in order. The first are not read again where `begin` was told of them."""
        for passed in [round_ for round_ in list(self.begun) if round_ < rounds.start]:
            del self.begun[passed]
        begun: list[Future[Fragments]] = []
        while rounds.start + len(begun) in rounds and rounds.start + len(begun) in self.begun:
            begun.append(self.begun.pop(rounds.start + len(begun)))
        unread = rounds.start + len(begun)
        following, ahead = self.rounds.read(range(unread, rounds.stop)), None
        for round_ in rounds:
            future = begun.pop(0) if begun else ahead
            if future is None:
                taken = [self._next(following)]
            elif future.exception() is None:
                taken = [future.result()]
            elif round_ < unread:
                taken = [self._one(round_)]
            else:  # the error ended the iterator, too
                following = self.rounds.read(range(round_, rounds.stop))
                taken = [self._next(following)]
            future = None
            ahead = self._thread.submit(self._next, following) if unread <= round_ + 1 < rounds.stop else None
            yield taken.pop()  # not kept here while it is learned

    def _one(self, round_: int) -> Fragments:
        return self._next(self.rounds.read(range(round_, round_ + 1)))

    def _next(self, rounds: Iterator[Fragments]) -> Fragments:
        return self._prepare(next(rounds))
