"""The tasks of one run on a Dask worker pool that grows and shrinks: this module acts, others decide.

`daskrl.pools.members` and `daskrl.pools.election` decide which workers take part and which of them learn,
`daskrl.pools.placing` which task goes where. A task whose worker left is dropped quietly: the driver finds it ready
again.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from daskrl.errors import SchedulerLostError
from daskrl.pools import connection, demand, election, instructions, members, paused, placing, remote, workers
from daskrl.pools.base import Outcome, Plan, refuse_or_warn, take_note, warn_of_window
from daskrl.pools.connection import FORGET, JOIN, LEARN, ROLLOUT
from daskrl.pools.instructions import Instruction, Worker
from daskrl.pools.placing import Flight
from daskrl.records import ArithmeticRecord, Record, WrittenFile
from daskrl.schedule import Checkpoint, Evaluate, Learn, Recheck, Rollout, Task
from daskrl.tasks import evaluations, rollout, session
from daskrl.tasks import learner as learning

if TYPE_CHECKING:
    from distributed import Client, Future, Nanny

TRIM_EVERY = 1000  # submissions between two times that the scheduler's memory of them is cleared


class DaskPool:
    """Runs the tasks of a run on the workers of a Dask cluster.

    Who learns is said in `daskrl.pools.election`. A learner's worker gets rollouts only where there is no other.

    A worker that Dask pauses gets nothing until it runs again, and what waited there goes to others.

    All runs of a client in one process share a connection beside it, and know of each other's workers: each is
    fingerprinted once.

    Parameters
    ----------
    client : connected to the cluster.
    """

    def __init__(self, plan: Plan, client: Client) -> None:
        self.plan, self.token = plan, uuid.uuid4().hex[:8]
        self.promise_off: list[str] = []
        self.notes: list[Record] = []
        given = (self.token, plan.layout, plan.algorithm, plan.factory, plan.options)
        self._payload = session.pickled(*given)
        self._probe = f".commits/.{self.token}.partial"  # removed by the next driver at the latest
        self._cluster = client.cluster
        self._beside: Nanny | None = None  # what learns beside the driver
        self._submitted = 0
        self._futures: dict[str, Future[Any]] = {}
        self._joins: dict[str, Worker] = {}  # by the key of the task that joins it
        self._asked: dict[str, Any] | None = None
        self._queue: connection.Queue = queue.SimpleQueue()
        self._connection = connection.shared(client)
        self._client = self._connection.client
        self.placing = placing.Placing(plan.layout.config.schedule.streams, plan.layout.learners)
        self.roster = members.Roster(self._terms(), plan.arithmetic, self._planned)
        self.election = election.Election(self.roster)
        self._client.subscribe_topic(self._topic, lambda event: self._queue.put(("told", event[1])))
        try:
            threads = plan.layout.config.torch_threads
            if threads > 1 and self._connection.address.startswith("inproc"):
                raise election.shared_process(threads, "every worker of this cluster")
            session.offer(self._payload, given)
            plan.layout.storage.put(self._probe, b"")
            self._require_scheduler()
            self._connection.begin(self.roster, self._queue)
            self._take_all([])
        except BaseException:
            self.close()
            raise

    def _terms(self) -> members.Terms:
        config, options = self.plan.layout.config, self.plan.options
        return members.Terms(
            self.token,
            options.strict,
            config.device,
            config.torch_threads,
            options.learner_timeout,
            hasattr(self.plan.algorithm, "window"),
            session.BYTECODE if session.carries_code(self._payload) else None,
            session.versions()["python"],
            (socket.gethostname(), os.getpid()),
            not self._connection.address.startswith("inproc"),  # else only threads of this process reach the scheduler
            self.plan.layout.learners,
        )

    def _planned(self) -> Sequence[str]:
        return list(getattr(self._cluster, "worker_spec", ()))  # those of jobs that wait in a queue too

    @property
    def _topic(self) -> str:
        return f"daskrl-{self.token}"

    @property
    def held(self) -> Mapping[str, set[int]]:
        return self.placing.held

    @property
    def in_flight(self) -> set[Task]:
        return self.placing.in_flight

    @property
    def arithmetic(self) -> ArithmeticRecord | None:
        return self.roster.arithmetic

    def _slots(self) -> dict[str, int]:
        with self._connection.lock:
            return self.roster.slots()

    # -- submitting ---------------------------------------------------------------------------------------

    def submit_rollouts(self, ready: Sequence[Rollout], head: int) -> None:
        with self._connection.lock:
            slots, others = self.roster.slots(), self.roster.all.streams(but=self.token)
        for task, address in self.placing.rollouts(ready, slots, others):
            learned = self.placing.acts_with(task.weights_version)
            args = (self.token, task.stream, task.round, head, *self._weights(learned))
            self._start("rollout", task, address, rollout.rollout, args, ROLLOUT, learned)
        self.roster.homes, self.roster.load = self.placing.homes, self.placing.load()

    def submit_learns(
        self, ready: Sequence[Learn], head: int, keep: Callable[[int], tuple[bool, bool]], learner: str = ""
    ) -> None:
        from dask.base import annotate

        from daskrl.tasks import ahead

        chosen = self._elect(learner)
        if chosen is None or self.arithmetic is None:
            return
        for task in self.placing.learns(ready, chosen.threads, learner):
            args = (self.token, task.version, head, self.arithmetic["device"], *keep(task.version), learner)
            with annotate(**{ahead.READ_AHEAD: [self.token, task.version, head, learner]}):
                self._start("learn", task, chosen.address, ahead.learn, args, LEARN)

    def _elect(self, learner: str) -> Worker | None:
        """The worker of a learner now, if there can be one."""
        while True:
            with self._connection.lock:
                told = self.election.hold(time.monotonic(), learner)
            self._act(told)
            if not any(isinstance(each, instructions.LearnBeside) for each in told):
                with self._connection.lock:
                    return self.roster.learns_now(learner)

    def submit_recheck(self, task: Recheck, head: int) -> None:
        self.placing.recheck(task, head)
        self._start_rechecks()

    def _start_rechecks(self) -> None:
        for task, head, address in self.placing.rechecks(self._slots()):
            record = json.loads(task.record)
            if task.environment is not None:
                args: tuple[Any, ...] = (self.token, record, task.environment, head)
                self._start("recheck", task, address, rollout.retrace, args, ROLLOUT)
            else:
                learned = self.placing.acts_with(task.weights_version)
                args = (self.token, record, head, *self._weights(learned))
                self._start("recheck", task, address, rollout.recheck, args, ROLLOUT, learned)

    def submit_evaluations(self, due: Sequence[Evaluate], kept: Mapping[int, WrittenFile], urgent: bool) -> None:
        if not due:
            return
        with self._connection.lock:
            slots, others = self.roster.slots(), self.roster.all.load(but=self.token)
        for task, address in self.placing.evaluations(due, slots, others, urgent):
            args = (self.token, task.version, kept[task.version], self.plan.options.evaluate_episodes, task.learner)
            self._start("evaluate", task, address, evaluations.evaluate, args, ROLLOUT)

    def submit_checkpoint(self, kept: int, learner: str = "") -> None:
        # After what is being learned now: also a worker with several threads does it then, as it waits for the result.
        with self._connection.lock:
            chosen = self.roster.learns_now(learner)
        newest = self.placing.newest(learner)
        if chosen is not None and newest is not None:
            learned, key = newest
            args = (self.token, self._futures[key], kept)
            task = Checkpoint(learner)
            self._start("checkpoint", task, chosen.address, learning.checkpoint, args, LEARN, (learned,))

    def _weights(self, learned: Sequence[Learn]) -> list[Future[Any]]:
        """The futures of weights, which a task is given one by one: Dask would look for them in what holds them."""
        return [self._futures[self.placing.made[task].key] for task in learned]

    def _start(
        self,
        prefix: str,
        task: Task,
        address: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kind: int,
        weights: tuple[Learn, ...] = (),
    ) -> None:
        self.placing.start(Flight(self._submit(prefix, address, function, args, kind), task, address, weights))

    def _submit(self, prefix: str, address: str, function: Callable[..., Any], args: tuple[Any, ...], kind: int) -> str:
        """Have a worker call a function; the key of its future."""
        self._submitted += 1
        if self._submitted % TRIM_EVERY == 0 and self._client.status == "running":
            with contextlib.suppress(OSError, TimeoutError):  # the scheduler is lost: `wait` will say so
                self._client.run_on_scheduler(remote.trim_spans)
        key = f"{prefix}-{self.token}-{self._submitted}"
        future = self._connection.submit(self._topic, key, kind, address, function, *args)
        self._futures[key] = future
        future.add_done_callback(lambda done: self._queue.put(("done", done.key)))
        return key

    def _release(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._futures.pop(key).release()

    # -- waiting ------------------------------------------------------------------------------------------

    def wait(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        try:
            event = self._queue.get(timeout=5.0)
            while event[0] == "done" and event[1] not in self._futures:  # it has told already: nothing is new
                event = self._queue.get(timeout=5.0)
            self._take(*event, outcomes)
        except queue.Empty:
            self._compare()  # an event may have been missed while the connection was down
        self._take_all(outcomes)
        with self._connection.lock:
            stopped, missing = self.roster.stopped(), self.election.missing(time.monotonic())
            others = bool(stopped and self.roster.slots())
        self._release(self.placing.take_back(stopped, others))
        self._start_rechecks()
        self.roster.load = self.placing.load()
        self._act(missing)
        return outcomes

    def _take_all(self, outcomes: list[Outcome]) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._take(*self._queue.get_nowait(), outcomes)

    def _take(self, kind: str, value: Any, outcomes: list[Outcome]) -> None:
        if kind == "do":
            self._act([value])
        elif kind == "compare":
            self._compare(value)
        elif kind == "told" and "memory" in value:
            with self._connection.lock:
                told = self.roster.has_memory(value["worker"], paused.Memory(**value["memory"]))
            self._act(told)
        elif kind == "told":
            self._told(value["key"], json.loads(value["record"]), outcomes)
        elif kind == "done" and value in self._futures:
            self._silent(value)

    def _told(self, key: str, record: Any, outcomes: list[Outcome]) -> None:
        """A task has told what came of it: a `daskrl.records.Result`, or what a worker said when it joined."""
        if key in self._joins:
            self._release([key])
            with self._connection.lock:
                told = self.roster.joined(self._joins.pop(key), record)
            self._act(told)
        elif key in self.placing.flights or key in self.placing.taken_back:
            with self._connection.lock:
                stopped = self.roster.stopped()
            outcome, release, keeps = self.placing.told(key, record, stopped)
            self._release(release)
            if outcome is not None:
                outcomes.append(outcome)
                if not isinstance(outcome.task, Learn):  # whose result is the weights
                    self._futures.pop(key, None)
            if keeps is not None:
                self._ease([keeps], forget=False)

    def _silent(self, key: str) -> None:
        """A future is done and its task told nothing: it raised, or what it told was lost on the way."""
        if key not in self._joins and key not in self.placing.flights:
            return  # weights
        future = self._futures.pop(key)
        worker = self._joins.pop(key, None)
        flight = self.placing.silent(key) if worker is None else None
        address = worker.address if worker is not None else flight.address if flight is not None else ""
        error = future.exception() if future.status == "error" else None
        with self._connection.lock:
            there, told = address in self.roster.members, list[Instruction]()
            if error is None and future.status == "finished" and worker is not None:
                told = self.roster.ask_again(worker)
            elif isinstance(error, session.NotJoinedError):
                told = self.roster.lost_session(address)
            elif error is not None and worker is not None and type(error).__name__ != "KilledWorker":
                told = self.roster.not_joined(worker, connection.why_not_joined(error))
        self._act(told)
        if error is None:
            if future.status != "finished" and there:  # not by us: the scheduler has forgotten it
                self._scheduler_lost()
        elif flight is not None and type(error).__name__ == "KilledWorker":
            self._died(flight.task)
        elif flight is not None and not isinstance(error, session.NotJoinedError):
            raise error
        # Else the driver finds the task ready again.

    def _died(self, task: Task) -> None:
        if not isinstance(task, Checkpoint) and self.placing.died(task):
            raise placing.killer(self.plan, task)

    def _require_scheduler(self) -> None:
        if self._client.status != "running" and (self.placing.flights or self._client.status != "connecting"):
            self._scheduler_lost()

    def _scheduler_lost(self) -> NoReturn:
        raise SchedulerLostError(
            f"the Dask scheduler at {self._connection.address} forgot this run's tasks: it, or the connection to it, "
            f"is gone. Everything committed is kept. Type: daskrl resume {self.plan.layout.storage}"
        )

    # -- workers ------------------------------------------------------------------------------------------

    def _compare(self, new: str | None = None) -> None:
        """Compare the workers known with those the scheduler has; for a new one, unless another run has done so."""
        self._require_scheduler()
        if self._client.status == "running" and not (new is not None and self._connection.knows(new)):
            self._connection.compare()

    def _act(self, told: Sequence[Instruction]) -> None:
        """Carry instructions out."""
        for each in told:
            if isinstance(each, instructions.Join):
                args = (self._payload, self._probe)
                self._joins[self._submit("join", each.worker.address, session.join, args, JOIN)] = each.worker
            elif isinstance(each, instructions.GiveUp):
                self._give_up(each.address)
            elif isinstance(each, instructions.Ease):
                self._ease([each.address], forget=False)
            elif isinstance(each, instructions.TakeBackLearns):
                self._release(self.placing.take_back_learns(each.address, each.learner))
            elif isinstance(each, instructions.CheckWindow):
                warn_of_window(self.plan, each.info, each.device, each.limit)
            elif isinstance(each, instructions.LearnBeside):
                self._learn_beside(each.reached_from)
            elif isinstance(each, instructions.EndBeside):
                self._end_beside()
            elif isinstance(each, instructions.Say):
                warnings.warn(each.text, stacklevel=3)
            elif isinstance(each, instructions.Note):
                take_note(self.notes, each.record, each.who)
            elif isinstance(each, instructions.Break):
                self.promise_off.append(refuse_or_warn(each.problem, self.plan.options.strict))
            elif isinstance(each, instructions.Fail):
                raise each.error

    def _give_up(self, address: str) -> None:
        keys, died = self.placing.left(address)
        joins = [key for key, worker in self._joins.items() if worker.address == address]
        for key in joins:
            del self._joins[key]
        self._release([*keys, *joins])
        for task in died:
            self._died(task)

    def _ease(self, addresses: list[str], *, forget: bool) -> None:
        """Have workers let go of what they keep for the run, also those that take no tasks. Waits for none of them."""
        with contextlib.suppress(OSError, TimeoutError):  # the scheduler is lost: `wait` will say so
            self._client.run_on_scheduler(remote.ease, self._topic, self.token, addresses, forget, wait=False)

    def _learn_beside(self, reached_from: str) -> None:
        """Have a process beside this one for learners, if it can be."""
        where = f"beside the driver, in a process on {socket.gethostname()}"
        name, threads = self.roster.terms.name_beside, self.plan.layout.config.torch_threads
        try:
            self._beside = workers.learner_beside(self._client, name, threads, reached_from)
        except (OSError, RuntimeError) as error:
            where = f"on a rollout worker, as none could be had {where}: {type(error).__name__}: {error}"
        warnings.warn(
            f"no worker offers the resource learner: it learns {where}. To have it learn elsewhere, start a worker "
            "there with --resources learner=1.",
            stacklevel=3,
        )
        self.election.beside_is(self._beside is not None)
        self._compare()

    def _end_beside(self) -> None:
        beside, self._beside = self._beside, None
        if beside is not None:
            with contextlib.suppress(Exception):  # it is of no use any more, whatever becomes of it
                self._client.sync(beside.close)

    # -- ending -------------------------------------------------------------------------------------------

    def release(self, needed: set[int], learner: str = "") -> None:
        self._release(self.placing.release(needed, learner))

    def want(self, slots: int) -> None:
        with self._connection.lock:
            learners = sorted(address for address in self.roster.learners.values() if address)
            asked = {"slots": slots, "learners": learners, "refused": self.roster.unusable()}
        if asked != self._asked and self._client.status == "running":
            self._ask(asked)

    def _ask(self, asked: dict[str, Any]) -> None:
        with contextlib.suppress(OSError, TimeoutError):  # the scheduler is lost: `wait` will say so
            self._client.log_event(demand.ASKED, {"client": self._client.id, "run": self.token, **asked})
        self._asked = asked

    def workers(self) -> int:
        with self._connection.lock:
            return self.roster.workers()

    def wake(self) -> None:
        self._queue.put(("wake", None))

    def close(self) -> None:
        from distributed import fire_and_forget, wait

        self._release(list(self._futures))
        self.placing.flights.clear()
        self.placing.made.clear()
        self._joins.clear()
        with self._connection.lock:
            there, stopped = list(self.roster.members), self.roster.stopped()
        self._connection.end(self.token)
        # Whatever goes wrong from here on must not hide how the run ended.
        with contextlib.suppress(Exception), self._client.as_current():
            if self._client.status == "running":
                self._client.unsubscribe_topic(self._topic)
                if self._asked is not None:
                    self._ask({**self._asked, "slots": 0, "learners": [], "refused": [], "ended": True})
                # A task, not client.run: that would wait half a minute for a worker that is just going. What of ours
                # waits there has been given up above; a worker that is at something forgets once that is done.
                last, key = connection.priority(FORGET), f"forget-{self.token}"
                forgets = [
                    self._client.submit(session.forget, self.token, key=f"{key}-{i}", workers=[address], priority=last)
                    for i, address in enumerate(address for address in there if address not in stopped)
                ]
                if stopped:
                    self._ease(sorted(stopped), forget=True)
                self._client.run_on_scheduler(remote.forget_topic, self._topic)
                with contextlib.suppress(TimeoutError):
                    wait(forgets, timeout=5)  # asks the current client, which is not always the user's
                fire_and_forget([future for future in forgets if future.status == "pending"])
        self._end_beside()
        session.withdraw(self._payload)
        self._connection.leave()
        with contextlib.suppress(OSError):
            self.plan.layout.storage.delete(self._probe)
