"""Tasks on a Dask worker pool that grows and shrinks.

The pool takes the tasks of `daskrl.schedule` and gives back outcomes. It places rollouts itself, follows workers
that join and leave, and quietly drops what was on a worker that left: the driver finds the task ready again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import queue
import socket
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, assert_never

from daskrl import schedule
from daskrl.errors import ConfigError, DaskrlError, EnvironmentFailure, SchedulerLostError, WorkerMismatchError
from daskrl.pools import demand, paused, workers
from daskrl.pools.base import Outcome, Plan, note_versions, refuse_or_warn, warn_of_window
from daskrl.records import Introduction, Record, WrittenFile
from daskrl.schedule import Checkpoint, Evaluate, Learn, Recheck, Rollout, Task
from daskrl.tasks import evaluations, fingerprint, learner, rollout, session

if TYPE_CHECKING:
    from distributed import Client, Future, Nanny

_TRIM_EVERY = 1000  # submissions between two times that the scheduler's memory of them is cleared

_SAY_AFTER = 60.0  # seconds without a worker that a run cannot do without

# The order in which a worker begins the tasks that wait on it, by kind. Tasks of one kind begin in the order of their
# submission, whichever run submitted them: a run that began later does not overtake an earlier run that is far ahead,
# and versions are learned in their order.
_ROLLOUT, _LEARN, _JOIN, _FORGET = range(4)
_BEFORE = 1e10  # seconds; more than the clock will show in this century

_DEATHS = 10  # workers that may die under one rollout before it is taken for their killer


@dataclass
class _Worker:
    """A Dask worker as the pool knows it."""

    address: str
    name: str
    threads: int
    learner_resource: bool
    info: Introduction | None = None  # what it said when it joined
    refused: str | None = None
    draining: bool = False  # about to be closed
    status: str = paused.RUNNING  # Dask's
    memory: paused.Memory = paused.UNKNOWN

    @property
    def takes_tasks(self) -> bool:
        return paused.takes_tasks(self.status)


@dataclass
class _Flight:
    task: Task | None  # None: to join
    future: Future[Any]
    address: str
    weights_version: int | None = None
    answered: bool = False  # elsewhere


class DaskPool:
    """Runs tasks on the workers of a Dask cluster.

    The learner runs on a worker with the resource ``learner`` or ``GPU``, and waits for it where the client's cluster
    has set one apart. Where no worker offers it, the learner has a process beside the driver's, and says so. Where that
    is not possible, it runs on the worker that has been there longest, which then gets rollouts only while it is alone.

    A worker that Dask pauses gets nothing until it runs again, and what waited there goes to others.

    Parameters
    ----------
    client : connected to the cluster. The pool opens a connection of its own beside it.
    """

    def __init__(self, plan: Plan, client: Client) -> None:
        from distributed import Client

        from daskrl.pools.scaling import install

        self.plan, self.token = plan, uuid.uuid4().hex[:8]
        self.held: set[int] = set()
        self.in_flight: set[Task] = set()
        self.arithmetic = plan.arithmetic
        self.promise_off: list[str] = []
        self.notes: list[Record] = []
        given = (self.token, plan.layout, plan.algorithm, plan.factory, plan.options)
        self._payload = session.pickled(*given)
        self._probe = f".commits/.{self.token}.partial"  # removed by the next driver at the latest
        self._known: dict[str, _Worker] = {}
        self._learner: str | None = None
        self._beside: Nanny | None = None  # what learns beside the driver
        self._may_be_beside = True
        self._homes: dict[int, str] = {}
        self._flights: dict[str, _Flight] = {}
        self._taken_back: dict[str, _Flight] = {}  # those of them that had begun are finished all the same
        self._weights: dict[int, _Flight] = {}  # weights version -> the task that has it as its result
        self._evaluators: dict[int, str] = {}  # weights version -> the worker that has begun to evaluate it
        self._deaths: Counter[Task] = Counter()
        self._submitted = 0
        self._rechecks: dict[Recheck, int] = {}  # not answered -> commits when asked for
        self._asked: tuple[int, str | None, list[str]] | None = None
        self._cluster = client.cluster
        self._since: dict[str, float] = {}  # when it was found that something is missing
        self._said: set[str] = set()
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._address: str = client.scheduler_info(n_workers=0)["address"]
        self._client = Client(
            self._address, security=client.security, set_as_default=False, name=f"daskrl-{self.token}"
        )
        self._client.subscribe_topic("all", lambda event: self._queue.put(("worker", event[1])))
        self._client.subscribe_topic(self._topic, lambda event: self._queue.put(("told", event[1])))
        self._client.subscribe_topic(demand.DRAINING, lambda event: self._queue.put(("draining", event[1])))
        self._client.subscribe_topic(demand.STATUS, lambda event: self._queue.put(("status", event[1])))
        try:
            if plan.layout.config.torch_threads > 1 and self._address.startswith("inproc"):
                raise _shared_process(plan.layout.config.torch_threads, "every worker of this cluster")
            session.offer(self._payload, given)
            plan.layout.storage.put(self._probe, b"")
            install(self._client)
            self._reconcile()
        except BaseException:
            self.close()
            raise

    @property
    def _topic(self) -> str:
        return f"daskrl-{self.token}"

    @property
    def _name_beside(self) -> str:
        return f"{demand.BESIDE_DRIVER}{self.token}"

    # -- submitting ---------------------------------------------------------------------------------------

    def submit_rollouts(self, ready: Sequence[Rollout], head: int) -> None:
        slots = self._slots()
        self._homes = schedule.homes(self.plan.layout.config.schedule.streams, slots, self._homes)
        load = self._load()
        for task in ready:
            address = self._homes.get(task.stream)
            if address is not None and load[address] < 2 * slots[address]:
                load[address] += 1
                weights = self._weights[task.weights_version].future
                args = (self.token, weights, task.stream, task.round, head)
                self._start("rollout", task, address, rollout.rollout, args, _ROLLOUT, task.weights_version)

    def submit_learns(self, ready: Sequence[Learn], head: int, keep: Callable[[int], tuple[bool, bool]]) -> None:
        from daskrl.tasks import ahead

        self._choose_learner()
        if self._learner is None or self.arithmetic is None or not self._known[self._learner].takes_tasks:
            return
        # Two in flight keep one thread busy; with more threads they would run at once, out of order.
        room = 2 if self._known[self._learner].threads == 1 else 1
        busy = sum(isinstance(flight.task, Learn) for flight in self._flights.values())
        for task in ready[: max(0, room - busy)]:
            args = (self.token, task.version, head, self.arithmetic["device"], *keep(task.version))
            self._start(ahead.prefix(task.version, head), task, self._learner, ahead.learn, args, _LEARN)

    def submit_recheck(self, task: Recheck, head: int) -> None:
        self._rechecks[task] = head
        self._start_rechecks()

    def _start_rechecks(self) -> None:
        """Start those that are on no worker: new ones, and those that were lost with theirs. The driver asks once."""
        flying = {flight.task for flight in self._flights.values()}
        for task, head in self._rechecks.items():
            weights = None if task.environment is not None else self._weights.get(task.weights_version)
            if task in flying:
                continue
            if task.environment is None and weights is None:
                self.in_flight.discard(task)  # they may be learned again; `release` drops it where they will not
                continue
            self.in_flight.add(task)  # a run is not over before it is made
            if slots := self._slots():
                record = json.loads(task.record)
                address = min(slots, key=lambda address: (address == self._homes.get(record["stream"]), address))
                if weights is None:
                    args = (self.token, record, task.environment, head)
                    self._start("recheck", task, address, rollout.retrace, args, _ROLLOUT)
                else:
                    args = (self.token, weights.future, record, head)
                    self._start("recheck", task, address, rollout.recheck, args, _ROLLOUT, task.weights_version)

    def submit_evaluations(self, due: Sequence[Evaluate], kept: Mapping[int, WrittenFile], urgent: bool) -> None:
        flying = {flight.task: flight.address for flight in self._flights.values() if isinstance(flight.task, Evaluate)}
        waiting = [task for task in due if task not in flying]
        if not waiting:
            return
        slots, load = self._slots(), self._load()
        room = [a for a in slots if a not in flying.values() and (urgent or load[a] < slots[a])]
        for task in waiting:
            home = self._evaluators.get(task.version)
            if home in slots and home not in room:
                continue  # it waits for the worker that has begun it
            if home not in slots:
                home = min(room, key=lambda address: (load[address] / slots[address], address), default=None)
            if home is None:
                return
            room.remove(home)
            self._evaluators[task.version] = home
            args = (self.token, task.version, kept[task.version], self.plan.options.evaluate_episodes)
            self._start("evaluate", task, home, evaluations.evaluate, args, _ROLLOUT)

    def _load(self) -> Counter[str]:
        """How many tasks each worker has that are neither the learner's nor a short while of an evaluation."""
        tasks = self._flights.values()
        return Counter(flight.address for flight in tasks if not isinstance(flight.task, Learn | Evaluate))

    def submit_checkpoint(self, kept: int) -> None:
        # After what is being learned now: also a worker with several threads does it then, as it waits for the result.
        learning = {f.task.version: f for f in self._flights.values() if isinstance(f.task, Learn)}
        learned = {**learning, **self._weights}
        if self._learner is not None and self._known[self._learner].takes_tasks and learned:
            version = max(learned)
            args = (self.token, learned[version].future, kept)
            self._start("checkpoint", Checkpoint(), self._learner, learner.checkpoint, args, _LEARN, version)

    def _start(
        self,
        prefix: str,
        task: Task | None,
        address: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kind: int,
        weights_version: int | None = None,
    ) -> None:
        self._submitted += 1
        if self._submitted % _TRIM_EVERY == 0 and self._client.status == "running":
            with contextlib.suppress(OSError, TimeoutError):  # the scheduler is lost: `wait` will say so
                self._client.run_on_scheduler(trim_spans)
        key = f"{prefix}-{self.token}-{self._submitted}"
        future = self._client.submit(
            tell,
            self._topic,
            key,
            function,
            *args,
            key=key,
            workers=[address],
            allow_other_workers=False,
            pure=False,
            priority=kind * _BEFORE - time.time(),  # Dask's own order is not that of submission within 0.1 s
        )
        self._flights[key] = _Flight(task, future, address, weights_version)
        if task is not None:
            self.in_flight.add(task)
        future.add_done_callback(lambda done: self._queue.put(("done", done.key)))

    def _slots(self) -> dict[str, int]:
        """Threads of each worker that may run rollouts."""
        able = [w for w in self._known.values() if w.info is not None and w.refused is None and w.takes_tasks]
        others = [w for w in able if w.address != self._learner and not w.learner_resource]
        staying = [w for w in others if not w.draining]
        return {w.address: w.threads for w in (staying or others or able)}

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self) -> list[Outcome]:
        events = []
        try:
            event = self._queue.get(timeout=5.0)
            while event[0] == "done" and event[1] not in self._flights:  # it has told already: nothing is new
                event = self._queue.get(timeout=5.0)
            events.append(event)
            while True:
                events.append(self._queue.get_nowait())
        except queue.Empty:
            if not events:
                self._reconcile()  # an event may have been missed while the connection was down
        outcomes: list[Outcome] = []
        joined = False
        for kind, value in events:
            if kind == "told" and "memory" in value:
                self._say_paused(value["worker"], paused.Memory(**value["memory"]))
            elif kind == "told" and value["key"] in self._taken_back:
                self._told_all_the_same(self._taken_back.pop(value["key"]), json.loads(value["record"]), outcomes)
            elif kind == "told" and value["key"] in self._flights:
                self._told(self._flights.pop(value["key"]), json.loads(value["record"]), outcomes)
            elif kind == "done" and value in self._flights:
                self._silent(self._flights.pop(value))
            elif kind == "draining":
                for address in self._known.keys() & set(value["workers"]):
                    self._known[address].draining = True
            elif kind == "status":
                self._has_status(value["worker"], value["status"])
            elif kind == "worker" and isinstance(value, dict):
                if value.get("action") == "remove-worker":
                    self._left(value["worker"])
                joined = joined or value.get("action") == "add-worker"
        if joined:
            self._reconcile()
        self._take_back()
        self._start_rechecks()
        self._say_what_is_missing()
        return outcomes

    def _told(self, flight: _Flight, record: Any, outcomes: list[Outcome]) -> None:
        """A task has told what came of it: a `daskrl.records.Result`, or of joining an `Introduction`."""
        if flight.task is None:
            self._joined(flight.address, record)
            return
        self.in_flight.discard(flight.task)
        if isinstance(flight.task, Learn):
            self._weights[flight.task.version] = flight
            self.held.add(flight.task.version)
        for other in self._taken_back.values():
            other.answered = other.answered or other.task == flight.task
        self._forget_answered()
        if isinstance(flight.task, Recheck):
            self._rechecks.pop(flight.task, None)
        if record["kind"] == "evaluation":
            self._evaluators.pop(record["version"], None)
        outcomes.append(Outcome(flight.task, record))
        self._ease_again(flight)

    def _told_all_the_same(self, flight: _Flight, record: Any, outcomes: list[Outcome]) -> None:
        """What was taken back had begun: its worker is done with it, and nobody else need be."""
        if flight.answered:
            self._ease_again(flight)
            return
        for key, other in list(self._flights.items()):
            if other.task == flight.task:
                self._flights.pop(key).future.release()
        self._told(flight, record, outcomes)

    def _ease_again(self, flight: _Flight) -> None:
        """A worker that was paused on the way keeps the environments of what it had begun before."""
        if isinstance(flight.task, Rollout | Evaluate) and not self._known[flight.address].takes_tasks:
            self._ease([flight.address], forget=False)

    def _forget_answered(self) -> None:
        """Of what was taken back and is answered, keep what a worker that takes no tasks may still be at."""
        self._taken_back = {
            key: flight
            for key, flight in self._taken_back.items()
            if not (flight.answered and self._known[flight.address].takes_tasks)
        }

    def _given_back(self, flight: _Flight) -> None:
        if flight.task is not None:
            self.in_flight.discard(flight.task)

    def _silent(self, flight: _Flight) -> None:
        """A future is done and its task told nothing: it raised, or what it told was lost on the way."""
        self._given_back(flight)
        if flight.future.status == "error":
            self._failed(flight)
        elif flight.future.status != "finished" and flight.address in self._known:
            # Not by us, and its worker is there: the scheduler has forgotten it.
            self._scheduler_lost()
        elif flight.task is None and flight.address in self._known:
            self._ask_to_join(self._known[flight.address])
        # Else the driver finds the task ready again.

    def _scheduler_lost(self) -> NoReturn:
        raise SchedulerLostError(
            f"the Dask scheduler at {self._address} forgot this run's tasks: it, or the connection to it, is gone. "
            f"Everything committed is kept. Type: daskrl resume {self.plan.layout.storage}"
        )

    def _failed(self, flight: _Flight) -> None:
        error = flight.future.exception()
        worker = self._known.get(flight.address)
        if type(error).__name__ == "KilledWorker":
            self._died_under(flight.task)
        elif isinstance(error, session.NotJoinedError):
            if worker is not None:
                worker.info = None
                self._ask_to_join(worker)
        elif flight.task is None:
            if worker is not None:
                needs = "" if isinstance(error, DaskrlError) else ". It needs the run's packages."
                self._refuse(worker, f"failed to join: {type(error).__name__}: {error}{needs}")
        else:
            raise error

    # -- workers ------------------------------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Compare the workers known with those the scheduler has."""
        if self._client.status != "running":
            if not self._flights and self._client.status == "connecting":
                return
            self._scheduler_lost()
        present = self._client.scheduler_info(n_workers=-1)["workers"]
        short: list[_Worker] = []
        for address in [a for a in self._known if a not in present]:
            self._left(address)
        for address, info in present.items():
            name = str(info.get("name", address))
            anothers = name.startswith(demand.BESIDE_DRIVER) and name != self._name_beside
            status = info.get("status", paused.RUNNING)
            if address not in self._known and not anothers:
                learns = demand.has_learner_resource(info.get("resources"))
                memory = paused.Memory.of(info)
                worker = _Worker(address, name, info["nthreads"], learns, status=status, memory=memory)
                self._known[address] = worker
                self._ask_to_join(worker)
                short += [worker] * (status == paused.PAUSED)  # it keeps nothing of this run yet
            if address in self._known:
                self._has_status(address, status)
        for worker in short:
            self._say_paused(worker.address, worker.memory)

    def _has_status(self, address: str, status: str) -> None:
        """Dask has said whether a worker takes tasks."""
        worker = self._known.get(address)
        if worker is None or worker.status == status:
            return
        worker.status = status
        self._forget_answered()
        if status == paused.PAUSED:
            self._ease([address], forget=False)

    def _ease(self, addresses: list[str], *, forget: bool) -> None:
        """Have workers let go of what they keep for the run, also those that take no tasks. Waits for none of them."""
        with contextlib.suppress(OSError, TimeoutError):  # the scheduler is lost: `wait` will say so
            self._client.run_on_scheduler(ease, self._topic, self.token, addresses, forget, wait=False)

    def _take_back(self) -> None:
        """Rollouts on workers that take no tasks go to the others, if there are any: the driver finds them ready."""
        stopped = {worker.address for worker in self._known.values() if not worker.takes_tasks}
        others = bool(stopped and self._slots())
        for key, flight in list(self._flights.items()):
            if flight.address not in stopped:
                continue
            match flight.task:
                case Rollout() | Recheck():
                    goes = others
                case Checkpoint() | Evaluate():
                    goes = True
                case Learn() | None:
                    goes = False
                case _:
                    assert_never(flight.task)
            if goes:
                self._take_back_one(key)

    def _take_back_one(self, key: str) -> None:
        flight = self._flights.pop(key)
        self._given_back(flight)
        flight.future.release()
        if isinstance(flight.task, Rollout | Recheck | Evaluate):
            flight.answered = isinstance(flight.task, Evaluate)  # of which this was a short while
            self._taken_back[key] = flight

    def _say_paused(self, address: str, memory: paused.Memory) -> None:
        worker = self._known.get(address)
        if worker is None:
            return
        worker.memory = memory
        key = f"paused {worker.name}"
        if worker.status == paused.PAUSED and key not in self._said:
            self._said.add(key)
            learns = address == self._learner or worker.learner_resource
            instead: str | bool = any(w.takes_tasks and w.refused is None for w in self._known.values())
            if learns:
                now = self._known.get(self._learner or "")
                instead = now.name if now is not None and now.takes_tasks else False
            pause = paused.Pause(worker.name, address, memory, learns, instead, self._has_window)
            warnings.warn(str(pause), stacklevel=3)

    @property
    def _has_window(self) -> bool:
        return hasattr(self.plan.algorithm, "window")

    def _ask_to_join(self, worker: _Worker) -> None:
        self._start("join", None, worker.address, session.join, (self._payload, self._probe), _JOIN)

    def _joined(self, address: str, info: Introduction) -> None:
        if address in self._known:
            self._known[address].info = info
            self._judge(self._known[address])

    def _judge(self, worker: _Worker) -> None:
        if worker.info is None or self.arithmetic is None:
            return
        problem = fingerprint.mismatch(worker.info, self.arithmetic, learns=False) or self._other_bytecode(worker.info)
        if problem is None:
            note_versions(self.notes, worker.info, self.arithmetic, f"worker {worker.name}", self._said)
            return
        if self.plan.options.strict:
            self._refuse(worker, f"has {problem} Or accept it with strict=False; the store will say so.")
        else:
            self.promise_off.append(refuse_or_warn(f"worker {worker.name} has {problem}", strict=False))

    def _other_bytecode(self, info: Introduction) -> str | None:
        """Why the run's code cannot be run there, if it travels by value, as what stands in a notebook does."""
        if info.get("bytecode", session.BYTECODE) == session.BYTECODE or not session.carries_code(self._payload):
            return None
        return (
            f"another Python ({info['versions']['python']}), to which this one cannot send code. Use the driver's "
            f"there ({session.versions()['python']}), or have environment and algorithm in an installed package."
        )

    def _require_own_process(self, worker: _Worker) -> None:
        """Refuse to learn with several torch threads beside other tasks: rollouts compute with one.

        Raises
        ------
        ConfigError
        """
        threads, info = self.plan.layout.config.torch_threads, worker.info
        if threads == 1 or info is None:
            return
        place = (info.get("host"), info.get("pid"))
        beside = [w for w in self._known.values() if w is not worker and w.info is not None]
        shared = any((w.info["host"], w.info["pid"]) == place for w in beside if w.info is not None)
        if worker.threads > 1 or shared or place == (socket.gethostname(), os.getpid()):
            raise _shared_process(threads, f"worker {worker.name}")

    def _refuse(self, worker: _Worker, problem: str) -> None:
        worker.refused = problem
        message = f"worker {worker.name} ({worker.address}) gets no rollouts: it {problem}"
        expected = len(getattr(self._cluster, "worker_spec", ()))  # those of jobs that wait in a queue too
        if len(self._known) >= expected and all(other.refused is not None for other in self._known.values()):
            raise WorkerMismatchError(f"no worker can take part in this run. {message}")
        warnings.warn(message, stacklevel=2)

    def _is_expected(self) -> bool:
        """Whether to wait for a learner's worker that is not there."""
        if self._beside is not None:  # its nanny starts it again
            return not any(w.refused for w in self._known.values() if w.name == self._name_beside)
        set_apart = demand.LEARNER in getattr(self._cluster, "worker_spec", ())
        return set_apart if self.plan.options.learner_timeout is None else not self._gives_up_waiting()

    def _gives_up_waiting(self) -> bool:
        timeout = self.plan.options.learner_timeout
        return timeout is not None and self._without_learner() >= timeout

    def _learn_beside(self, other: _Worker) -> None:
        """Have a process beside this one for the learner, if it can be."""
        self._may_be_beside = False
        if self._address.startswith("inproc"):
            return  # only threads of this process reach the scheduler
        where = f"beside the driver, in a process on {socket.gethostname()}"
        try:
            self._beside = workers.learner_beside(
                self._client, self._name_beside, self.plan.layout.config.torch_threads, other.address
            )
        except (OSError, RuntimeError) as error:
            where = f"on a rollout worker, as none could be had {where}: {type(error).__name__}: {error}"
        warnings.warn(
            f"no worker offers the resource learner: it learns {where}. To have it learn elsewhere, start a worker "
            "there with --resources learner=1.",
            stacklevel=2,
        )
        self._reconcile()

    def _end_beside(self) -> None:
        beside, self._beside = self._beside, None
        if beside is not None:
            with contextlib.suppress(Exception):  # it is of no use any more, whatever becomes of it
                self._client.sync(beside.close)

    def _missing(self, what: str, found: bool) -> float:
        """Seconds for which it has not been found."""
        if found:
            self._since.pop(what, None)
            self._said.discard(what)
            return 0.0
        return time.monotonic() - self._since.setdefault(what, time.monotonic())

    def _without_learner(self) -> float:
        learner = self._known.get(self._learner or "")
        return self._missing("learner", learner is not None and learner.takes_tasks)

    def _say_what_is_missing(self) -> None:
        timeout = self.plan.options.learner_timeout
        then = "waiting on" if timeout is None else f"after {timeout:.0f} s it learns beside the driver"
        there = [w for w in self._known.values() if w.refused is None]
        stopped = [w for w in there if not w.takes_tasks]
        able = [w for w in there if w.info is not None and w.takes_tasks]
        without_learner = self._without_learner()
        if self._missing("running", not stopped or len(stopped) < len(there)) > _SAY_AFTER:
            self._say(
                "running",
                "a worker that takes tasks",
                f"The run waits. To have it go on, {paused.MORE_MEMORY}; or start more workers.",
                stopped,
            )
        elif without_learner > _SAY_AFTER:
            self._say(
                "learner",
                "the learner's worker" if self._known else "any worker",
                f"The run is {then}; interrupted, it may be resumed with learner_timeout= to learn beside the driver.",
                [w for w in stopped if w.learner_resource or w.address == self._learner],
            )
        if self._missing("rollouts", not able or not all(w.learner_resource for w in able)) > _SAY_AFTER:
            self._say(
                "rollouts",
                "a rollout worker",
                "The learner's worker rolls out as well until there is one.",
                [w for w in stopped if not w.learner_resource],
            )

    def _say(self, key: str, what: str, then: str, stopped: list[_Worker]) -> None:
        if key not in self._said:
            self._said.add(key)
            why = paused.why_stopped((w.name, w.status, w.memory) for w in stopped)
            warnings.warn(
                f"{_SAY_AFTER:.0f} s without {what}: "
                f"{why or 'its job waits in the queue, or ends as it starts (see its log)'}. {then}",
                stacklevel=2,
            )

    def _choose_learner(self) -> None:
        there = [w for w in self._known.values() if w.refused is None]
        joined = [w for w in there if w.info is not None and w.takes_tasks]
        tagged = [w for w in there if w.learner_resource and w.takes_tasks]
        if tagged and all(w.info is None for w in tagged):
            return  # it is about to join
        if not tagged and any(w.learner_resource for w in there) and not self._gives_up_waiting():
            return  # it will take tasks again, with all that it keeps
        if not tagged and self._is_expected():
            return
        if not tagged and joined and self._may_be_beside:
            self._learn_beside(joined[0])
            if self._beside is not None:
                return
        current = self._known.get(self._learner or "")
        meant = [w for w in joined if w.learner_resource]
        from_elsewhere = [w for w in meant if w.name != self._name_beside and self._could_take_over(w)]
        candidates = from_elsewhere or meant or [w for w in joined if w is current] or joined
        if not candidates:
            if current is None or current.takes_tasks:  # else it goes on when Dask lets it
                self._learner = None
            return
        chosen = next((w for w in candidates if w is current), candidates[0])
        assert chosen.info is not None
        self._require_own_process(chosen)
        if self.arithmetic is None:
            self.arithmetic = fingerprint.reference(chosen.info, self.plan.layout.config.device)
            for worker in self._known.values():
                self._judge(worker)
        if self.arithmetic["device"] == "cuda" and chosen.address != self._learner:
            problem = fingerprint.mismatch(chosen.info, self.arithmetic, learns=True)
            if problem is not None:
                self.promise_off.append(
                    refuse_or_warn(f"the learner's worker {chosen.name} has {problem}", self.plan.options.strict)
                )
        if chosen.address != self._learner:
            warn_of_window(self.plan, chosen.info, self.arithmetic["device"], paused.pauses_at(chosen.memory))
        if current is not None and chosen is not current and not current.takes_tasks:
            for key in [key for key, flight in self._flights.items() if flight.address == current.address]:
                if isinstance(self._flights[key].task, Learn):
                    self._take_back_one(key)
        self._learner = chosen.address
        if self._beside is not None and chosen.name != self._name_beside:  # the one that was waited for has come
            self._end_beside()
            self._may_be_beside = True

    def _could_take_over(self, worker: _Worker) -> bool:
        """Whether it would learn with the bits of the process beside the driver, if there is one."""
        if self._beside is None or self.arithmetic is None or worker.info is None:
            return True
        return fingerprint.mismatch(worker.info, self.arithmetic, learns=True) is None

    def _left(self, address: str) -> None:
        """A worker is gone: what was on it is given up, and the driver finds it ready again."""
        worker = self._known.pop(address, None)
        if worker is None:
            return
        if address == self._learner:
            self._learner = None
        self._taken_back = {key: flight for key, flight in self._taken_back.items() if flight.address != address}
        # Weights may be on the worker that learned them only, and rollouts that wait for them would wait for ever.
        # It need not be the learner of now: that moves when a worker with the resource joins.
        lost = {version for version, made in self._weights.items() if made.address == address}
        for version in lost:
            self._weights.pop(version).future.release()
        self.held -= lost
        for key, flight in list(self._flights.items()):
            if flight.address == address or flight.weights_version in lost:
                del self._flights[key]
                self._given_back(flight)
                flight.future.release()
                if flight.address == address:
                    self._died_under(flight.task)

    def _died_under(self, task: Task | None) -> None:
        if task is None or isinstance(task, Checkpoint):
            return
        self._deaths[task] += 1
        if self._deaths[task] <= _DEATHS:
            return
        shape, again = self.plan.layout.config.schedule, ""
        match task:
            case Learn():
                raise DaskrlError(
                    f"{_DEATHS} workers died while they learned version {task.version}: the learner probably needs "
                    f"more memory than its worker has. Everything committed is kept. Either {paused.MORE_FOR_LEARNER} "
                    f"and type: daskrl resume {self.plan.layout.storage} -- or {paused.smaller_run(self._has_window)}."
                )
            case Evaluate():
                raise EnvironmentFailure(
                    f"{_DEATHS} workers died while they evaluated version {task.version}: its environment probably "
                    "kills its process. Everything committed is kept. Resume the run without evaluations, "
                    "evaluate_every=0 (--evaluate-every 0)."
                )
            case Rollout():
                slot = shape.slot(task.stream, task.round)
            case Recheck():
                slot, again = task.slot, " a second time"
            case _:
                assert_never(task)
        round_, stream = divmod(slot, shape.streams)
        raise EnvironmentFailure(
            f"{_DEATHS} workers died while they had fragment {slot} (stream {stream}, round {round_}){again}: its "
            f"environment probably kills its process. Type: daskrl reproduce {self.plan.layout.storage} "
            f"--fragment {slot}"
        )

    # -- ending -------------------------------------------------------------------------------------------

    def release(self, needed: set[int]) -> None:
        self.held &= needed
        in_use = {flight.weights_version for flight in self._flights.values()}
        in_use |= {task.weights_version for task in self._rechecks if task.environment is None}
        for version in [v for v in self._weights if v not in needed and v not in in_use]:
            self._weights.pop(version).future.release()
        for recheck in [task for task in self._rechecks if task.environment is None]:
            if recheck.weights_version not in needed and recheck.weights_version not in self._weights:
                del self._rechecks[recheck]  # they were lost, and nobody learns them again
        for task in [t for t in self._deaths if t not in self.in_flight]:
            if len(self._deaths) > 1000:
                del self._deaths[task]

    def want(self, slots: int) -> None:
        refused = [w.address for w in self._known.values() if w.refused is not None or w.status == paused.PAUSED]
        asked = (slots, self._learner, refused)
        if asked != self._asked and self._client.status == "running":
            message = {"client": self._client.id, "slots": slots, "learner": self._learner, "refused": refused}
            with contextlib.suppress(OSError, TimeoutError):  # the scheduler is lost: `wait` will say so
                self._client.log_event(demand.ASKED, message)
            self._asked = asked

    def workers(self) -> int:
        return sum(
            w.info is not None and w.refused is None and w.takes_tasks and w.address != self._learner
            for w in self._known.values()
        ) or len(self._slots())

    def wake(self) -> None:
        self._queue.put(("wake", None))

    def close(self) -> None:
        from distributed import fire_and_forget, wait

        for flight in [*self._flights.values(), *self._weights.values()]:
            flight.future.release()
        self._flights.clear()
        self._weights.clear()
        # Whatever goes wrong from here on must not hide how the run ended.
        with contextlib.suppress(Exception), self._client.as_current():
            if self._client.status == "running":
                self._client.unsubscribe_topic("all")
                self._client.unsubscribe_topic(self._topic)
                self._client.unsubscribe_topic(demand.DRAINING)
                self._client.unsubscribe_topic(demand.STATUS)
                # A task, not client.run: that would wait half a minute for a worker that is just going. What of ours
                # waits there has been given up above; a worker that is at something forgets once that is done.
                forgets = [
                    self._client.submit(
                        session.forget,
                        self.token,
                        key=f"forget-{self.token}-{i}",
                        workers=[address],
                        priority=_FORGET * _BEFORE,
                    )
                    for i, address in enumerate(a for a, worker in self._known.items() if worker.takes_tasks)
                ]
                stopped = [address for address, worker in self._known.items() if not worker.takes_tasks]
                if stopped:
                    self._ease(stopped, forget=True)
                self._client.run_on_scheduler(forget_topic, self._topic)
                with contextlib.suppress(TimeoutError):
                    wait(forgets, timeout=5)  # asks the current client, which is not always the user's
                fire_and_forget([future for future in forgets if future.status == "pending"])
        self._end_beside()
        session.withdraw(self._payload)
        self._client.close(timeout=5)
        with contextlib.suppress(OSError):
            self.plan.layout.storage.delete(self._probe)


def tell(topic: str, key: str, function: Callable[..., Any], *args: Any) -> Any:
    """Every task on a Dask worker: call a function and tell the driver its record.

    The record goes beside the result, as an event: it arrives before the future is done, costs no request, and
    is not lost with the worker. The result itself is the weights, or nothing.
    """
    from distributed import get_worker

    result = function(*args)
    weights = isinstance(result, tuple)
    # As text: the scheduler, which passes it on, would take in every number of every episode.
    get_worker().log_event(topic, {"key": key, "record": json.dumps(result[0] if weights else result)})
    return result if weights else None


async def ease(topic: str, token: str, addresses: list[str], forget: bool, dask_scheduler: Any) -> None:
    """On the scheduler: call `ease_here` on workers."""
    from distributed.protocol.pickle import dumps

    call = {"op": "run", "function": dumps(ease_here), "args": dumps((topic, token, forget)), "wait": True}
    await dask_scheduler.broadcast(msg=call, workers=addresses, on_error="ignore")


async def ease_here(topic: str, token: str, forget: bool, dask_worker: Any) -> None:
    """On a worker, also one that takes no tasks: let go of what is kept for a run; before, tell the driver its memory.

    Before, as environments may fail to close, or never end to.
    """
    manager = dask_worker.memory_manager
    memory = paused.Memory(
        dask_worker.monitor.get_process_memory(), getattr(manager, "memory_limit", None), dask_worker.state.nbytes
    )
    if not forget:
        dask_worker.log_event(topic, {"worker": dask_worker.address, "memory": dataclasses.asdict(memory)})
    # Beside the event loop: environments may take a while to close.
    await asyncio.to_thread(session.forget if forget else session.ease, token)


def trim_spans(dask_scheduler: Any) -> None:
    """On the scheduler: forget what each submission was for, which Dask's spans otherwise keep for ever."""
    for span in dask_scheduler.extensions["spans"].spans.values() if "spans" in dask_scheduler.extensions else ():
        if span._metadata is not None:
            span._metadata["collections"].clear()


def forget_topic(topic: str, dask_scheduler: Any) -> None:
    """On the scheduler: drop the newest records of a run that has ended, which Dask otherwise keeps for ever."""
    dask_scheduler._broker._topics.pop(topic, None)


def _shared_process(threads: int, who: str) -> ConfigError:
    return ConfigError(
        f"torch_threads={threads} needs a learner in a process of its own: {who} runs other tasks beside it, which "
        "compute with one. Use processes=True or daskrl.clusters.local(), start the learner's worker with --nthreads 1 "
        "--resources learner=1, or train with torch_threads=1."
    )
