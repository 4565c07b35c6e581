"""Where the runs of a study are carried out: in this process, or one task each on the workers of a Dask cluster."""

from __future__ import annotations

import itertools
import queue
import threading
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from daskrl.errors import SchedulerLostError, StoreLockedError, WorkerMismatchError
from daskrl.records import ArithmeticRecord
from daskrl.study.trial import Job, Outcome, TrialRecord, carry_out, failed, introduce, packed
from daskrl.tasks import session

if TYPE_CHECKING:
    from distributed import Client

    from daskrl.prepared import Prepared
    from daskrl.study.scores import Score

_DEATHS = 3  # workers that die with a run on them until that counts as the run's own fault
_BUSY = 2.0  # seconds until a run that another process has is looked at again
_READY = 64  # runs given to the scheduler where it has few workers: a cluster that scales sees what there is to do


class Executor(Protocol):
    """Called by the study's loop only, from one thread."""

    def introduce(self, packages: list[str], device: str) -> ArithmeticRecord:
        """What runs compute with here."""

    def given(self, prepared: Prepared, score: Score) -> bytes | tuple[Prepared, Score]:
        """A run and its score, as a job takes them here."""

    def room(self) -> int:
        """How many more jobs can be submitted now."""

    def submit(self, job: Job) -> None:
        """Have a job carried out."""

    def wait(self) -> list[TrialRecord]:
        """Block until something happened; what is over, possibly nothing."""

    def wake(self) -> None:
        """Make `wait` return. From any thread."""

    def close(self) -> None:
        """What is in flight is given up; its runs keep what they committed."""


class InProcess:
    """In this process, one after the other."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def introduce(self, packages: list[str], device: str) -> ArithmeticRecord:
        return introduce(packages, device)

    def given(self, prepared: Prepared, score: Score) -> bytes | tuple[Prepared, Score]:
        return prepared, score

    def room(self) -> int:
        return 1 - len(self._jobs)

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def wait(self) -> list[TrialRecord]:
        if not self._jobs:
            return []
        job = self._jobs.popleft()
        outcome = carry_out(job)
        if outcome["kind"] == "trial":
            return [outcome]
        if outcome["kind"] == "refused":
            raise WorkerMismatchError(outcome["reason"])
        raise StoreLockedError(
            f"{job.place} is being written by another process: a worker that its driver lost may still carry the run "
            "on. Run the study again when that is over."
        )

    def wake(self) -> None:
        pass

    def close(self) -> None:
        self._jobs.clear()


class OnWorkers:
    """A run is one task of a worker; workers may come and go."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._jobs: dict[Any, Job] = {}
        self._waiting = 0  # for a process that has their store
        self._deaths: dict[str, int] = {}
        self._refused: dict[str, str] = {}
        self._count = itertools.count()
        self._offered: list[bytes] = []

    def introduce(self, packages: list[str], device: str) -> ArithmeticRecord:
        key = ("study-introduce", next(self._count))
        said: ArithmeticRecord = self.client.submit(introduce, packages, device, key=key, pure=False).result()
        return said

    def given(self, prepared: Prepared, score: Score) -> bytes | tuple[Prepared, Score]:
        payload = packed(prepared, score)
        session.offer(payload, (prepared, score))  # of workers that are threads of this process
        self._offered.append(payload)
        return payload

    def room(self) -> int:
        threads = sum(count for address, count in self.client.nthreads().items() if address not in self._refused)
        return int(max(_READY, 2 * threads) - len(self._jobs) - self._waiting)

    def submit(self, job: Job) -> None:
        workers = None
        if self._refused:
            workers = [address for address in self.client.nthreads() if address not in self._refused]
            if not workers:
                raise WorkerMismatchError(f"no worker can carry on the study: {next(iter(self._refused.values()))}")
        key = ("study", job.trial, job.env_steps, next(self._count))
        future = self.client.submit(carry_out, job, key=key, pure=False, workers=workers)
        self._jobs[future] = job
        future.add_done_callback(self._events.put)

    def wait(self) -> list[TrialRecord]:
        events = [self._events.get()]
        while not self._events.empty():
            events.append(self._events.get())
        return [record for event in events if (record := self._over(event)) is not None]

    def _over(self, event: Any) -> TrialRecord | None:
        if event is None:  # somebody woke the loop
            return None
        if isinstance(event, Job):
            self._waiting -= 1
            self.submit(event)
            return None
        if (job := self._jobs.pop(event, None)) is None:
            return None
        if event.status in ("cancelled", "lost"):
            raise SchedulerLostError(
                "the Dask scheduler is gone, or it gave up the study's tasks. Run the study again: it goes on."
            )
        if event.status == "error":
            return self._failed(job, event.exception())
        outcome: Outcome = event.result()
        if outcome["kind"] == "trial":
            return outcome
        if outcome["kind"] == "refused":
            if outcome["worker"] not in self._refused:
                warnings.warn(
                    f"worker {outcome['worker']} takes no part in the study: {outcome['reason']}", stacklevel=2
                )
            self._refused[outcome["worker"]] = outcome["reason"]
            self.submit(job)
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
        self._deaths[job.trial] = self._deaths.get(job.trial, 0) + 1
        if self._deaths[job.trial] >= _DEATHS:
            return failed(job, error, 0.0)
        self.submit(job)
        return None

    def wake(self) -> None:
        self._events.put(None)

    def close(self) -> None:
        self.client.cancel(list(self._jobs), force=True)
        self._jobs.clear()
        for payload in self._offered:
            session.withdraw(payload)
