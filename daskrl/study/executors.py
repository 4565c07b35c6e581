"""Where the runs of a study are carried out: in this process, or one task each on the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import queue
import threading
import time
import uuid
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from daskrl.errors import SchedulerLostError, StoreLockedError, WorkerMismatchError
from daskrl.pools.demand import ASKED, DRAINING
from daskrl.pools.remote import forget_topic, tell
from daskrl.records import ArithmeticRecord
from daskrl.study.trial import Job, Outcome, TrialRecord, carry_out, failed, introduce, packed, spread_out
from daskrl.tasks import session

if TYPE_CHECKING:
    from distributed import Client

    from daskrl.prepared import Prepared
    from daskrl.run import Run
    from daskrl.study.scores import Score

_DEATHS = 3  # workers that die with a run on them until that counts as the run's own fault
_BUSY = 2.0  # seconds until a run that another process has is looked at again
_LOOK_EVERY = 1.0  # seconds, at which workers there are
_LOST = "the Dask scheduler is gone, or it gave up the study's tasks. Run the study again: it goes on."
LONG = 200_000
"""Env steps from which a run is worth spreading: what that costs in tasks is then small beside the work."""


class Sent(NamedTuple):
    """A job that is a task of a worker; ``only``: which workers it may go to, any where there are none."""

    job: Job
    only: frozenset[str]
    future: Any


class Executor(Protocol):
    """Called by the study's loop only, from one thread."""

    def introduce(self, packages: list[str], device: str) -> ArithmeticRecord:
        """What runs compute with here."""

    def given(self, prepared: Prepared, score: Score) -> bytes | tuple[Prepared, Score]:
        """A run and its score, as a job takes them here."""

    def room(self) -> int:
        """How many more jobs can be submitted now."""

    def want(self, runs: int) -> None:
        """So many more runs could be carried out now, of a cluster that scales."""

    def submit(self, job: Job, others: int) -> None:
        """Have a job carried out; ``others``: how many more could be."""

    def wait(self) -> list[TrialRecord]:
        """Block until something happened; what is over, possibly nothing."""

    def wake(self) -> None:
        """Make `wait` return soon, as the study is to stop. From any thread, and from a signal handler."""

    def close(self) -> None:
        """What is in flight is given up; its runs keep what they committed."""


class InProcess:
    """In this process, one after the other."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._run: Run | None = None
        self._stopped = False

    def introduce(self, packages: list[str], device: str) -> ArithmeticRecord:
        return introduce(packages, device)

    def given(self, prepared: Prepared, score: Score) -> bytes | tuple[Prepared, Score]:
        return prepared, score

    def room(self) -> int:
        return 1 - len(self._jobs)

    def want(self, runs: int) -> None:
        pass

    def submit(self, job: Job, others: int) -> None:
        self._jobs.append(job)

    def wait(self) -> list[TrialRecord]:
        if not self._jobs:
            return []
        job = self._jobs.popleft()
        outcome = carry_out(job, self._began)
        self._run = None
        if outcome["kind"] == "trial":
            return [_queued(job, outcome)]
        if outcome["kind"] == "stopped":
            return []
        if outcome["kind"] == "refused":
            raise WorkerMismatchError(outcome["reason"])
        raise StoreLockedError(
            f"{job.place} is being written by another process: a worker that its driver lost may still carry the run "
            "on. Run the study again when that is over."
        )

    def _began(self, run: Run) -> None:
        self._run = run
        if self._stopped:  # before there was a run
            run.stop()

    def wake(self) -> None:
        self._stopped, run = True, self._run
        if run is not None:
            run.stop()

    def close(self) -> None:
        self._jobs.clear()


def _queued(job: Job, record: TrialRecord) -> TrialRecord:
    """With how long the run had to wait until whoever ended it began. By one clock: those of workers may differ."""
    if record["seconds"]:  # else nobody knows when its task began
        record["queued"] = max(0.0, time.monotonic() - job.ready - record["seconds"])
    return record


class OnWorkers:
    """A run is one task of a worker, or is spread over all of them; workers may come and go.

    Each thread of a worker gets one run at a time: a worker that is about to be closed gets none any more. What a study
    wants is told to the cluster, which may scale by that (`daskrl.clusters.adapt`).

    Parameters
    ----------
    grain : ``"task"``: each run is one task. ``"spread"``: each run is carried on by this process, with its rollouts
        spread over the workers. ``"auto"``: see `spread`. The results are the same.
    """

    def __init__(self, client: Client, grain: str = "auto") -> None:
        self.client, self._grain = client, grain
        self._token = uuid.uuid4().hex[:8]
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs: dict[int, Sent] = {}
        self._spread: dict[str, tuple[threading.Thread, list[Run]]] = {}  # by trial: the run, once it is made
        self._waiting = 0  # for a process that has their store
        self._deaths: dict[str, tuple[int, int]] = {}  # by trial: how often, and at how many commits
        self._refused: dict[str, str] = {}
        self._threads: dict[str, int] = {}  # of the workers that take part
        self._apart: set[str] = set()  # workers that take none: they are about to be closed, or refused
        self._looked, self._told, self._asked = -math.inf, -math.inf, 0
        self._count = itertools.count()
        self._offered: list[bytes] = []
        self._warming: list[Any] = []
        from daskrl.pools import scaling

        scaling.install(client)
        self.client.subscribe_topic(self._topic, lambda event: self._events.put(event[1]))

    @property
    def _topic(self) -> str:
        return f"daskrl-study-{self._token}"

    def introduce(self, packages: list[str], device: str) -> ArithmeticRecord:
        key = ("study-introduce", self._token)
        said = self.client.submit(introduce, packages, device, key=key, pure=False, priority=1)
        # Importing torch takes a worker seconds: all of them begin now, not each with its first run.
        self._warming = [
            self.client.submit(introduce, packages, device, key=(*key, address), pure=False, workers=[address])
            for address in self.client.nthreads()
        ]
        result: ArithmeticRecord = said.result()
        return result

    def given(self, prepared: Prepared, score: Score) -> bytes | tuple[Prepared, Score]:
        payload = packed(prepared, score)
        session.offer(payload, (prepared, score))  # of workers that are threads of this process
        self._offered.append(payload)
        return payload

    # -- what there is room for ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Which workers take part, and how many threads each has."""
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return
        self._looked = time.monotonic()
        draining = {address for _, event in self.client.get_events(DRAINING) or () for address in event["workers"]}
        there = self.client.nthreads()
        self._apart = (draining | set(self._refused)) & set(there)
        self._threads = {address: count for address, count in there.items() if address not in self._apart}
        # Dask keeps a task for the workers it was given, also when all of them are gone.
        for number, sent in list(self._jobs.items()):
            if sent.only and sent.only.isdisjoint(there):
                del self._jobs[number]
                self.client.cancel([sent.future], force=True)
                self._place(sent.job)

    def room(self) -> int:
        self._look()
        # A run that another process has waits in nobody's thread.
        return max(0, sum(self._threads.values()) - len(self._jobs) - len(self._spread))

    def want(self, runs: int) -> None:
        slots, now = runs + len(self._jobs) + self._waiting, time.monotonic()
        new = slots != self._asked and (now - self._told > _LOOK_EVERY or not self._asked or not slots)
        if new and self.client.status == "running":
            self._asked, self._told = slots, now
            asked = {"slots": slots, "learners": [], "refused": sorted(self._refused)}
            self.client.log_event(ASKED, {"client": self.client.id, "run": self._token, **asked})

    # -- carrying out --------------------------------------------------------------------------------------

    def submit(self, job: Job, others: int) -> None:
        if self._grain == "spread" or (
            self._grain == "auto" and spread(job.env_steps, others + 1, sum(self._threads.values()))
        ):
            runs: list[Run] = []
            thread = threading.Thread(target=self._carry_spread, args=(job, runs), name="daskrl study", daemon=True)
            self._spread[job.trial] = thread, runs
            thread.start()
            return
        self._place(job)

    def _place(self, job: Job) -> None:
        # No more runs are given out than there are threads, and Dask gives each to a worker that has none.
        only = frozenset(self._threads) if self._apart else frozenset()
        if self._refused and not only and not set(self.client.nthreads()) - set(self._refused):
            raise WorkerMismatchError(f"no worker can carry on the study: {next(iter(self._refused.values()))}")
        number = next(self._count)
        key = ("study", job.trial, job.env_steps, self._token, number)
        # The outcome comes as an event, as those of a run's tasks: fetching a result waits where its worker is lost.
        told = self._topic, str(number), carry_out, job
        future = self.client.submit(tell, *told, key=key, pure=False, workers=sorted(only) or None)
        self._jobs[number] = Sent(job, only, future)
        future.add_done_callback(lambda _: self._events.put(number))

    def _carry_spread(self, job: Job, runs: list[Run]) -> None:
        """Carry a run on from this process, in a thread of its own."""
        try:
            self._events.put((job, spread_out(job, self.client, runs.append)))
        except BaseException as error:
            self._events.put((job, error))

    def wait(self) -> list[TrialRecord]:
        try:
            events = [self._events.get(timeout=_LOOK_EVERY)]
        except queue.Empty:  # a look at the workers, and on
            if self.client.status not in ("running", "connecting"):
                raise SchedulerLostError(_LOST) from None
            return []
        while not self._events.empty():
            events.append(self._events.get())
        return [record for event in events if (record := self._over(event)) is not None]

    def _over(self, event: Any) -> TrialRecord | None:
        if event is None:  # somebody woke the loop
            return None
        if isinstance(event, Job):
            self._waiting -= 1
            self._place(event)
            return None
        if isinstance(event, tuple):
            job, outcome = event
            self._spread.pop(job.trial, None)
            if isinstance(outcome, BaseException):
                raise outcome
            return self._of_outcome(job, outcome)
        if isinstance(event, dict):
            sent = self._jobs.pop(int(event["key"]), None)
            return None if sent is None else self._of_outcome(sent.job, json.loads(event["record"]))
        sent = self._jobs.pop(event, None)
        if sent is None:
            return None  # it has told already
        status = sent.future.status
        if status in ("cancelled", "lost"):
            raise SchedulerLostError(_LOST)
        if status == "error":
            return self._failed(sent.job, sent.future.exception())
        self._place(sent.job)  # what it told was lost on the way; the run has it
        return None

    def _of_outcome(self, job: Job, outcome: Outcome) -> TrialRecord | None:
        if outcome["kind"] == "trial":
            return _queued(job, outcome)
        if outcome["kind"] == "stopped":  # not by the study, which takes no outcomes any more where it stops
            self._place(job)
            return None
        if outcome["kind"] == "refused":
            worker = outcome["worker"]
            if worker not in self._refused:
                warnings.warn(f"worker {worker} takes no part in the study: {outcome['reason']}", stacklevel=2)
            self._refused[worker] = outcome["reason"]
            self._looked = -math.inf
            self._look()
            self._place(job)
            return None
        self._waiting += 1
        timer = threading.Timer(_BUSY, self._events.put, [job])
        timer.daemon = True
        timer.start()
        return None

    def _failed(self, job: Job, error: BaseException) -> TrialRecord | None:
        from distributed.scheduler import KilledWorker

        if not isinstance(error, KilledWorker):
            raise error
        # Workers that die while the run gets on were taken away; the run did not end them.
        deaths, stood = self._deaths.get(job.trial, (0, -1))
        stands = len(job.place.names(".commits"))
        deaths = deaths + 1 if stands == stood else 1
        self._deaths[job.trial] = deaths, stands
        if deaths >= _DEATHS:
            return failed(job, error, 0.0)
        self._place(job)
        return None

    def wake(self) -> None:
        self._events.put(None)

    def close(self) -> None:
        for thread, runs in list(self._spread.values()):
            while thread.is_alive():  # a run that is just being made is stopped once it is
                for run in list(runs):
                    run.stop()
                thread.join(0.2)
        with contextlib.suppress(Exception):  # whatever goes wrong here must not hide how the study ended
            self.client.unsubscribe_topic(self._topic)
            self.client.cancel([*(sent.future for sent in self._jobs.values()), *self._warming], force=True)
            self.client.run_on_scheduler(forget_topic, self._topic)
            self.want(0)
            ended = {"slots": 0, "learners": [], "refused": [], "ended": True}
            self.client.log_event(ASKED, {"client": self.client.id, "run": self._token, **ended})
        self._jobs.clear()
        for payload in self._offered:
            session.withdraw(payload)


def spread(env_steps: int, runs: int, threads: int) -> bool:
    """Whether a run is spread over all workers: a long one of which there are too few to keep every thread busy.

    Parameters
    ----------
    runs : not begun yet, this one among them.
    threads : of all workers.
    """
    return env_steps >= LONG and runs < threads
