"""Which task of one run goes to which worker, and what becomes of the tasks that were given out. No I/O.

The tasks given out are known by the keys of their futures. A method returns the keys of futures that are needed no
more, and the pool, which holds the futures, releases those.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from daskrl import schedule
from daskrl.errors import DaskrlError, EnvironmentFailure
from daskrl.pools import paused
from daskrl.pools.base import Outcome, Plan
from daskrl.records import Result
from daskrl.schedule import Checkpoint, Evaluate, Learn, Recheck, Rollout, Task

DEATHS = 10  # workers that may die under one task before it is taken for their killer

_FINISHED = (Rollout, Recheck, Evaluate)  # a worker that has begun one finishes it


@dataclass
class Flight:
    """A task that a worker was given.

    Attributes
    ----------
    weights : what makes the weights that it waits for.
    answered : it was made elsewhere meanwhile.
    """

    key: str
    task: Task
    address: str
    weights: tuple[Learn, ...] = ()
    answered: bool = False


class Placing:
    """The tasks of one run on its workers.

    Parameters
    ----------
    learners : keys of the run's learners.

    Attributes
    ----------
    held : key of a learner -> versions of its weights that rollouts can be given now.
    in_flight : tasks given out and not answered.
    flights : by key.
    taken_back : those that another worker may have, though their worker finishes them if it had begun.
    made : what was learned -> the flight whose result are its weights.
    homes : stream -> address of its worker.
    """

    def __init__(self, streams: int, learners: Collection[str] = ("",)) -> None:
        self.streams = streams
        self.held: dict[str, set[int]] = {key: set() for key in learners}
        self.in_flight: set[Task] = set()
        self.flights: dict[str, Flight] = {}
        self.taken_back: dict[str, Flight] = {}
        self.made: dict[Learn, Flight] = {}
        self.homes: dict[int, str] = {}
        self.deaths: Counter[Task] = Counter()
        self._evaluators: dict[Evaluate, str] = {}  # the worker that has begun it
        self._rechecks: dict[Recheck, int] = {}  # not answered -> commits when asked for

    # -- what goes where ----------------------------------------------------------------------------------

    def load(self) -> Counter[str]:
        """How many tasks each worker has that are neither a learner's nor a short while of an evaluation."""
        apart = (Learn, Evaluate)
        return Counter(f.address for f in self.flights.values() if not isinstance(f.task, apart))

    def rollouts(
        self, ready: Sequence[Rollout], slots: Mapping[str, int], others: Mapping[str, int]
    ) -> list[tuple[Rollout, str]]:
        """Those for which there is room, each with the worker it goes to: two for each of its threads.

        Parameters
        ----------
        slots : worker -> threads.
        others : worker -> streams of other runs there. Of two that are as good, streams go where there are fewer.
        """
        self.homes = schedule.homes(self.streams, slots, self.homes, others)
        load, placed = self.load(), []
        for task in ready:
            address = self.homes.get(task.stream)
            if address is not None and load[address] < 2 * slots[address]:
                load[address] += 1
                placed.append((task, address))
        return placed

    def learns(self, ready: Sequence[Learn], threads: int, learner: str = "") -> Sequence[Learn]:
        """Those of a learner for which its worker has room.

        Two in flight keep one thread busy; with more threads they would run at once, out of order.
        """
        room = 2 if threads == 1 else 1
        flying = sum(isinstance(f.task, Learn) and f.task.learner == learner for f in self.flights.values())
        return ready[: max(0, room - flying)]

    def acts_with(self, version: int) -> tuple[Learn, ...]:
        """What makes the weights of a version, of each learner."""
        return tuple([Learn(version, key) for key in self.held])

    def recheck(self, task: Recheck, head: int) -> None:
        """Have a recheck made, once there is a worker; `rechecks` says which."""
        self._rechecks[task] = head

    def rechecks(self, slots: Mapping[str, int]) -> list[tuple[Recheck, int, str]]:
        """Those that are on no worker, new ones and those that were lost with theirs: head, and where each goes."""
        flying = {flight.task for flight in self.flights.values()}
        placed = []
        for task, head in self._rechecks.items():
            if task in flying:
                continue
            if task.environment is None and not self.made.keys() >= set(self.acts_with(task.weights_version)):
                self.in_flight.discard(task)  # they may be learned again; `release` drops it where they will not
                continue
            self.in_flight.add(task)  # a run is not over before it is made
            if slots:
                home = self.homes.get(json.loads(task.record)["stream"])
                placed.append((task, head, min(slots, key=lambda address: (address == home, address))))
        return placed

    def evaluations(
        self, due: Sequence[Evaluate], slots: Mapping[str, int], others: Mapping[str, int], urgent: bool
    ) -> list[tuple[Evaluate, str]]:
        """Those for which there is room, each with the worker it goes to: the one that has begun it.

        Parameters
        ----------
        others : worker -> tasks of other runs there.
        """
        flying = {f.task: f.address for f in self.flights.values() if isinstance(f.task, Evaluate)}
        load = self.load() + Counter(others)
        room = [a for a in slots if a not in flying.values() and (urgent or load[a] < slots[a])]
        placed: list[tuple[Evaluate, str]] = []
        for task in due:
            home = self._evaluators.get(task)
            if task in flying or (home in slots and home not in room):
                continue  # it waits for the worker that has begun it
            if home not in slots:
                home = min(room, key=lambda address: (load[address] / slots[address], address), default=None)
            if home is None:
                break
            room.remove(home)
            self._evaluators[task] = home
            placed.append((task, home))
        return placed

    def newest(self, learner: str = "") -> tuple[Learn, str] | None:
        """The newest of a learner's weights that there are, or are being learned; and the key of what has them."""
        learning = {f.task: key for key, f in self.flights.items() if isinstance(f.task, Learn)}
        there = {**learning, **{task: f.key for task, f in self.made.items()}}
        return max(((task, key) for task, key in there.items() if task.learner == learner), default=None)

    def start(self, flight: Flight) -> None:
        """A worker was given a task."""
        self.flights[flight.key] = flight
        self.in_flight.add(flight.task)

    # -- what becomes of it -------------------------------------------------------------------------------

    def told(self, key: str, record: Result, stopped: Collection[str]) -> tuple[Outcome | None, list[str], str | None]:
        """A worker has told the record of a task.

        Parameters
        ----------
        stopped : workers that take no tasks.

        Returns
        -------
        The outcome, unless it is known already; keys of futures to release; and a worker that takes no tasks, and keeps
        the environments of what it had begun before.
        """
        flight, release = self.flights.pop(key, None), list[str]()
        if flight is None:
            flight = self.taken_back.pop(key)  # it had begun: its worker is done with it, and nobody else need be
            if flight.answered:
                return None, [], self._keeps(flight, stopped)
            release = [again.key for again in self.flights.values() if again.task == flight.task]
            for again in release:
                del self.flights[again]
        self.in_flight.discard(flight.task)
        if isinstance(flight.task, Learn):
            if flight.task in self.made:  # learned again elsewhere
                release.append(self.made[flight.task].key)
            self.made[flight.task] = flight
            self.held[flight.task.learner].add(flight.task.version)
        for other in self.taken_back.values():
            other.answered = other.answered or other.task == flight.task
        self.forget_answered(stopped)
        if isinstance(flight.task, Recheck):
            self._rechecks.pop(flight.task, None)
        if isinstance(flight.task, Evaluate) and record["kind"] == "evaluation":
            self._evaluators.pop(flight.task, None)
        return Outcome(flight.task, record), release, self._keeps(flight, stopped)

    def _keeps(self, flight: Flight, stopped: Collection[str]) -> str | None:
        """The worker of a task, if it was paused on the way: it keeps the environments of what it had begun before."""
        keeps = isinstance(flight.task, Rollout | Evaluate) and flight.address in stopped
        return flight.address if keeps else None

    def forget_answered(self, stopped: Collection[str]) -> None:
        """Of what was taken back and is answered, keep what a worker that takes no tasks may still be at."""
        self.taken_back = {
            key: flight
            for key, flight in self.taken_back.items()
            if not (flight.answered and flight.address not in stopped)
        }

    def silent(self, key: str) -> Flight:
        """A task is done and told nothing: the driver finds it ready again."""
        flight = self.flights.pop(key)
        self.in_flight.discard(flight.task)
        return flight

    def take_back(self, stopped: Collection[str], others: bool) -> list[str]:
        """What is on workers that take no tasks goes to others, if there are any: the driver finds it ready.

        Returns
        -------
        Keys of futures to release.
        """
        self.forget_answered(stopped)
        keys = [key for key, f in self.flights.items() if f.address in stopped and _goes(f.task, others)]
        return self._take_back(keys)

    def take_back_learns(self, address: str, learner: str = "") -> list[str]:
        """What a learner was to learn there is learned elsewhere; keys of futures to release."""
        there = {key: flight.task for key, flight in self.flights.items() if flight.address == address}
        return self._take_back([k for k, task in there.items() if isinstance(task, Learn) and task.learner == learner])

    def _take_back(self, keys: list[str]) -> list[str]:
        for key in keys:
            flight = self.flights.pop(key)
            self.in_flight.discard(flight.task)
            if isinstance(flight.task, _FINISHED):
                flight.answered = isinstance(flight.task, Evaluate)  # of which this was a short while
                self.taken_back[key] = flight
        return keys

    def left(self, address: str) -> tuple[list[str], list[Task]]:
        """A worker is gone: what was on it is given up, and the driver finds it ready again.

        Returns
        -------
        Keys of futures to release, and the tasks under which it died.
        """
        self.taken_back = {key: flight for key, flight in self.taken_back.items() if flight.address != address}
        # Weights may be on the worker that learned them only, and rollouts that wait for them would wait for ever.
        # It need not be where that learner is now: it moves when a worker with the resource joins.
        lost = {task: flight for task, flight in self.made.items() if flight.address == address}
        self.made = {task: flight for task, flight in self.made.items() if task not in lost}
        for task in lost:
            self.held[task.learner].discard(task.version)
        gone = [f for f in self.flights.values() if f.address == address or not lost.keys().isdisjoint(f.weights)]
        for flight in gone:
            del self.flights[flight.key]
            self.in_flight.discard(flight.task)
        died = [flight.task for flight in gone if flight.address == address]
        return [flight.key for flight in [*lost.values(), *gone]], died

    def died(self, task: Task) -> bool:
        """A worker died under a task; whether too many have."""
        self.deaths[task] += 1
        return self.deaths[task] > DEATHS

    def release(self, needed: set[int], learner: str = "") -> list[str]:
        """Of a learner's weights only these versions are needed on; keys of futures to release."""
        self.held[learner] &= needed
        released = [task for task in self.made if task.learner == learner and task.version not in needed]
        if released:
            in_use = {learned for flight in self.flights.values() for learned in flight.weights}
            in_use |= {Learn(task.weights_version, learner) for task in self._rechecks if task.environment is None}
            released = [task for task in released if task not in in_use]
        keys = [self.made.pop(task).key for task in released]
        for recheck in [task for task in self._rechecks if task.environment is None]:
            if recheck.weights_version not in needed and Learn(recheck.weights_version, learner) not in self.made:
                del self._rechecks[recheck]  # they were lost, and nobody learns them again
        for task in [task for task in self.deaths if task not in self.in_flight]:
            if len(self.deaths) > 1000:
                del self.deaths[task]
        return keys


def _goes(task: Task, others: bool) -> bool:
    """Whether a task is taken back from a worker that takes none."""
    match task:
        case Rollout() | Recheck():
            return others
        case Checkpoint() | Evaluate():
            return True
        case Learn():
            return False
        case _:
            assert_never(task)


def killer(plan: Plan, task: Rollout | Learn | Evaluate | Recheck) -> DaskrlError:
    """The error of a run in which too many workers died under a task."""
    store, shape, again = plan.layout.storage, plan.layout.config.schedule, ""
    match task:
        case Learn():
            smaller = paused.smaller_run(hasattr(plan.algorithm, "window"))
            whose = f" of learner {task.learner}" if task.learner else ""
            return DaskrlError(
                f"{DEATHS} workers died while they learned version {task.version}{whose}: the learner probably needs "
                f"more memory than its worker has. Everything committed is kept. Either {paused.MORE_FOR_LEARNER} and "
                f"type: daskrl resume {store} -- or {smaller}."
            )
        case Evaluate():
            return EnvironmentFailure(
                f"{DEATHS} workers died while they evaluated version {task.version}: its environment probably kills "
                "its process. Everything committed is kept. Resume the run without evaluations, evaluate_every=0 "
                "(--evaluate-every 0)."
            )
        case Rollout():
            slot = shape.slot(task.stream, task.round)
        case Recheck():
            slot, again = task.slot, " a second time"
        case _:
            assert_never(task)
    round_, stream = divmod(slot, shape.streams)
    return EnvironmentFailure(
        f"{DEATHS} workers died while they had fragment {slot} (stream {stream}, round {round_}){again}: its "
        f"environment probably kills its process. Type: daskrl reproduce {store} --fragment {slot}"
    )
