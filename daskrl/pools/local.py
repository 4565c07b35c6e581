"""Tasks run in this process, one after the other, when the loop waits for them."""

from __future__ import annotations

import functools
import json
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from daskrl.errors import DaskrlError
from daskrl.pools.base import Outcome, Plan, refuse_or_warn, take_note, warn_of_window
from daskrl.records import ArithmeticRecord, Introduction, Record, Result, WrittenFile
from daskrl.schedule import Checkpoint, Evaluate, Learn, Recheck, Rollout, Task
from daskrl.tasks import evaluations, fingerprint, learner, rollout, session


class InProcessPool:
    """Runs each task when the driver waits for it: the same functions, the same bits, no Dask."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.token = plan, uuid.uuid4().hex[:8]
        self.held: set[int] = set()
        self.in_flight: set[Task] = set()
        self.promise_off: list[str] = []
        self.notes: list[Record] = []
        self._weights: dict[int, session.Published] = {}
        self._tasks: deque[tuple[Task, Callable[[], Result]]] = deque()
        here = session.Session(self.token, plan.layout, plan.algorithm, plan.factory, plan.options)
        self.arithmetic: ArithmeticRecord | None = plan.arithmetic
        try:
            info: Introduction = {**session.fingerprinted(), **session.begin(here)}
            self.arithmetic = plan.arithmetic or fingerprint.reference(info, plan.layout.config.device)
            warn_of_window(plan, info, self.arithmetic["device"])
            problem = fingerprint.mismatch(info, self.arithmetic, learns=True)
            if problem is not None:
                self.promise_off.append(refuse_or_warn(f"this process has {problem}", plan.options.strict))
            if (note := fingerprint.note_on(info, self.arithmetic, "this process")) is not None:
                take_note(self.notes, note, "this process")
        except BaseException:
            self.close()
            raise

    def submit_rollouts(self, ready: Sequence[Rollout], head: int) -> None:
        for task in ready:
            weights = self._weights[task.weights_version]
            call = functools.partial(rollout.rollout, self.token, weights, task.stream, task.round, head)
            self._add(task, call)

    def submit_learns(self, ready: Sequence[Learn], head: int, keep: Callable[[int], tuple[bool, bool]]) -> None:
        for task in ready[:1]:
            self._add(task, functools.partial(self._learn, task, head, *keep(task.version)))

    def submit_recheck(self, task: Recheck, head: int) -> None:
        record = json.loads(task.record)
        if task.environment is not None:
            self._add(task, functools.partial(rollout.retrace, self.token, record, task.environment, head))
        elif (weights := self._weights.get(task.weights_version)) is not None:
            self._add(task, functools.partial(rollout.recheck, self.token, weights, record, head))

    def submit_evaluations(self, due: Sequence[Evaluate], kept: Mapping[int, WrittenFile], urgent: bool) -> None:
        if not any(isinstance(task, Evaluate) for task in self.in_flight):
            for task in due[:1]:
                args = (self.token, task.version, kept[task.version], self.plan.options.evaluate_episodes)
                self._add(task, functools.partial(evaluations.evaluate, *args))

    def submit_checkpoint(self, kept: int) -> None:
        if self._weights:
            newest = self._weights[max(self._weights)]
            self._add(Checkpoint(), functools.partial(learner.checkpoint, self.token, newest, kept))
            self._tasks.rotate()  # before all others: they are given up

    def _learn(self, task: Learn, head: int, keep: bool, checkpoint: bool) -> Result:
        assert self.arithmetic is not None
        weights = learner.learn(self.token, task.version, head, self.arithmetic["device"], keep, checkpoint)
        self._weights[task.version] = weights
        self.held.add(task.version)
        return weights[0]

    def _add(self, task: Task, call: Callable[[], Result]) -> None:
        self.in_flight.add(task)
        self._tasks.append((task, call))

    def wait(self) -> list[Outcome]:
        if not self._tasks:
            raise DaskrlError("the schedule has no task left, yet the run is not finished: a defect of daskrl.")
        task, call = self._tasks.popleft()
        record = call()
        self.in_flight.discard(task)
        return [Outcome(task, record)]

    def release(self, needed: set[int]) -> None:
        self.held &= needed
        self._weights = {version: weights for version, weights in self._weights.items() if version in needed}

    def want(self, slots: int) -> None:
        pass

    def workers(self) -> int:
        return 0

    def wake(self) -> None:
        pass

    def close(self) -> None:
        session.forget(self.token)
