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
from daskrl.tasks import evaluations, fingerprint, rollout, session
from daskrl.tasks import learner as learning


class InProcessPool:
    """Runs each task when the driver waits for it: the same functions, the same bits, no Dask."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.token = plan, uuid.uuid4().hex[:8]
        self.held: dict[str, set[int]] = {key: set() for key in plan.layout.learners}
        self.in_flight: set[Task] = set()
        self.promise_off: list[str] = []
        self.notes: list[Record] = []
        self._weights: dict[Learn, session.Published] = {}
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
            weights = [self._weights[learned] for learned in self._acts_with(task.weights_version)]
            call = functools.partial(rollout.rollout, self.token, task.stream, task.round, head, *weights)
            self._add(task, call)

    def _acts_with(self, version: int) -> list[Learn]:
        """What made the weights of a version, of each learner."""
        return [Learn(version, key) for key in self.held]

    def submit_learns(
        self, ready: Sequence[Learn], head: int, keep: Callable[[int], tuple[bool, bool]], learner: str = ""
    ) -> None:
        for task in ready[:1]:
            self._add(task, functools.partial(self._learn, task, head, *keep(task.version)))

    def submit_recheck(self, task: Recheck, head: int) -> None:
        record = json.loads(task.record)
        if task.environment is not None:
            self._add(task, functools.partial(rollout.retrace, self.token, record, task.environment, head))
        elif all(learned in self._weights for learned in self._acts_with(task.weights_version)):
            weights = [self._weights[learned] for learned in self._acts_with(task.weights_version)]
            self._add(task, functools.partial(rollout.recheck, self.token, record, head, *weights))

    def submit_evaluations(self, due: Sequence[Evaluate], kept: Mapping[int, WrittenFile], urgent: bool) -> None:
        if not any(isinstance(task, Evaluate) for task in self.in_flight):
            for task in due[:1]:
                episodes = self.plan.options.evaluate_episodes
                args = (self.token, task.version, kept[task.version], episodes, task.learner)
                self._add(task, functools.partial(evaluations.evaluate, *args))

    def submit_checkpoint(self, kept: int, learner: str = "") -> None:
        learned = [task for task in self._weights if task.learner == learner]
        if learned:
            newest = self._weights[max(learned)]
            self._add(Checkpoint(learner), functools.partial(learning.checkpoint, self.token, newest, kept))
            self._tasks.rotate()  # before all others: they are given up

    def _learn(self, task: Learn, head: int, keep: bool, checkpoint: bool) -> Result:
        assert self.arithmetic is not None
        device = self.arithmetic["device"]
        weights = learning.learn(self.token, task.version, head, device, keep, checkpoint, task.learner)
        self._weights[task] = weights
        self.held[task.learner].add(task.version)
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

    def release(self, needed: set[int], learner: str = "") -> None:
        self.held[learner] &= needed
        for task in [task for task in self._weights if task.learner == learner and task.version not in needed]:
            del self._weights[task]

    def want(self, slots: int) -> None:
        pass

    def workers(self) -> int:
        return 0

    def wake(self) -> None:
        pass

    def close(self) -> None:
        session.forget(self.token)
