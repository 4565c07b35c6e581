"""What processes of a study say of themselves as it happens, in datagrams, and what kills cost by that."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import WorkerPlugin

Clock = tuple[float, float]
"""Seconds of the clock, and of the processor's time of one process."""

OF_TASKS = ("opened", "scoring", "packing", "over")  # said by the worker that it happens to


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    """A socket for what is said, and its address."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
        to = str(Path(folder) / "told")
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        here.bind(to)
        yield here, to


def processor_seconds(pid: int) -> float:
    """Of a process that lives: the clock ids of Linux are computed from process ids."""
    return time.clock_gettime((~pid << 3) | 2)


class Telling(WorkerPlugin):
    """Has a process say what happens in it: a worker, which takes it as a plugin of Dask's, or a driver."""

    name, idempotent = "telling", True

    def __init__(self, to: str) -> None:
        self.to = to

    def setup(self, worker: Any) -> None:
        self.begin("worker")

    def begin(self, kind: str) -> None:
        """From here on; ``kind`` is what this process says first."""
        from daskrl.store import pack
        from daskrl.store.log import CommitLog
        from daskrl.study import executors, trial
        from daskrl.tasks import learner_state, rollout

        if hasattr(CommitLog, "told"):
            return
        here, at, numbers = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), threading.local(), itertools.count()
        here.connect(self.to)

        def say(event: str, **what: Any) -> None:
            said = {"event": event, "pid": os.getpid(), "at": (time.monotonic(), time.process_time())}
            here.send(json.dumps({**said, "task": getattr(at, "task", None), **what}).encode())

        append, roll, advance = CommitLog.append, rollout.rollout, learner_state.LearnerState.advance
        carry_out, record_of, packed = trial.carry_out, trial.record_of, pack.pack

        @functools.wraps(carry_out)
        def carried_out(job: Any, *others: Any) -> Any:
            at.task = next(numbers)
            say("opened", trial=job.trial, env_steps=job.env_steps)
            outcome = carry_out(job, *others)
            say("over", kind=outcome["kind"], seconds=outcome.get("seconds"))
            at.task = None
            return outcome

        def scoring(*args: Any) -> Any:
            say("scoring")
            return record_of(*args)

        def packing(*args: Any) -> Any:
            say("packing")
            return packed(*args)

        def appended(log: Any, number: int, records: Any) -> Any:
            made = append(log, number, records)
            rounds = [(record["stream"], record["round"]) for record in records if record["kind"] == "fragment"]
            learned = [record["version"] for record in records if record["kind"] == "learn"]
            decided = any(record["kind"] == "ask" or "trial" in record for record in records) and at_study(log)
            say("decided" if decided else "commit", rounds=rounds, learned=learned)
            return made

        def at_study(log: Any) -> bool:
            return bool(log.storage.exists("study.json"))

        def rolled(*args: Any) -> Any:
            made = roll(*args)
            say("rolled")
            return made

        def advanced(state: Any, version: int) -> None:
            before = state.learner.updates
            advance(state, version)
            say("updated", updates=state.learner.updates - before)

        CommitLog.append, CommitLog.told = appended, True  # type: ignore[method-assign, attr-defined]
        rollout.rollout, learner_state.LearnerState.advance = rolled, advanced  # type: ignore[assignment, method-assign]
        trial.carry_out = executors.carry_out = carried_out
        trial.record_of, pack.pack = scoring, packing
        say(kind)


@dataclass
class Task:
    """One execution of a run's task, from what was said.

    Attributes
    ----------
    lasting : when the run last got on: the commit of a round or of a version, or that of its score.
    first : when the run first got on, or was scored.
    seconds : as the record says that it gave.
    """

    trial: str
    env_steps: int
    pid: int
    began: Clock
    lasting: Clock | None = None
    first: Clock | None = None
    scoring: Clock | None = None
    ended: Clock | None = None
    kind: str = "killed"
    seconds: float | None = None


@dataclass
class Told:
    """All that was said.

    Attributes
    ----------
    rounds : how often a round of a stream of a run was committed.
    fragments, updates, commits : how many were rolled out, made, and committed.
    """

    tasks: dict[tuple[int, int], Task] = field(default_factory=dict)
    rounds: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    fragments: int = 0
    updates: int = 0
    commits: int = 0

    def take(self, said: dict[str, Any]) -> None:
        event, at = said["event"], tuple(said["at"])
        self.commits += event in ("commit", "decided")
        self.fragments += event == "rolled"
        self.updates += said.get("updates", 0)
        if said["task"] is None:
            return
        key = said["pid"], said["task"]
        if event == "opened":
            self.tasks[key] = Task(said["trial"], said["env_steps"], said["pid"], at)
        task = self.tasks[key]
        if event == "commit" and (said["rounds"] or said["learned"] or task.scoring):
            self.rounds.update((task.trial, *each) for each in said["rounds"])
            task.lasting = at
            task.first = task.first or at
        elif event in ("scoring", "packing"):
            task.scoring = task.scoring or at
            task.first = task.first or at
        elif event == "over":
            task.ended, task.kind, task.seconds = at, said["kind"], said["seconds"]


@dataclass(frozen=True)
class Cost:
    """Seconds of workers: of all tasks; and of that what was destroyed, what it took runs to get on again, and what was
    done for results that were there.
    """

    work: float = 0.0
    destroyed: float = 0.0
    regained: float = 0.0
    doubled: float = 0.0

    @property
    def percent(self) -> float:
        return 100 * (self.destroyed + self.regained + self.doubled) / self.work


def cost(tasks: list[Task], died: dict[int, Clock], counted: set[float], clock: int) -> Cost:
    """What kills cost.

    Parameters
    ----------
    died : a worker's process -> when it was killed.
    counted : the ``seconds`` of the records that the study's log has, which tell the tasks of one run apart.
    clock : 0 for the seconds of the clock, 1 for those of the processor.
    """
    work = destroyed = regained = doubled = 0.0
    begun: set[tuple[str, int]] = set()
    for task in sorted(tasks, key=lambda each: each.began):
        end = (task.ended or died[task.pid])[clock]
        began, first = task.began[clock], (task.first or task.ended or died[task.pid])[clock]
        work += end - began
        again = (task.trial, task.env_steps) in begun
        begun.add((task.trial, task.env_steps))
        if task.kind not in ("trial", "killed"):  # the run was in other hands
            doubled += end - began
            continue
        if task.kind == "killed":
            destroyed += end - (task.lasting or task.began)[clock]
        elif task.seconds not in counted:  # another task's result counts
            doubled += end - (task.scoring or task.began)[clock]
        if again and not (task.kind == "killed" and task.lasting is None):
            regained += first - began
    return Cost(work, destroyed, regained, doubled)
