"""Which worker learns for each learner of a run, and what is said where none can: from the run's workers and the time.

A worker with the resource ``learner`` or ``GPU`` learns, and is waited for where the cluster has set one apart. Where
no worker offers it, a process beside the driver learns. Where that is not possible, the worker does that has been there
longest. Of several it is the one on which the fewest others learn, of this run and of other runs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from daskrl.errors import ConfigError, DaskrlError
from daskrl.pools import demand, paused
from daskrl.pools.instructions import (
    Break,
    CheckWindow,
    EndBeside,
    Fail,
    Instruction,
    LearnBeside,
    Say,
    TakeBackLearns,
    Worker,
)
from daskrl.pools.members import Member, Roster
from daskrl.records import Introduction
from daskrl.tasks import fingerprint

SAY_AFTER = 60.0  # seconds without a worker that a run cannot do without


class Election:
    """The choice of the workers of one run's learners. `Roster.learners` says who was chosen."""

    def __init__(self, roster: Roster) -> None:
        self.roster, self.terms = roster, roster.terms
        self._beside, self._may_be_beside = False, roster.terms.beside
        self._since: dict[str, float] = {}  # when it was found that something is missing
        self._said: set[str] = set()

    def hold(self, now: float, learner: str = "") -> list[Instruction]:
        """Choose for a learner, or wait for somebody better. After `LearnBeside` was carried out, hold it again."""
        members = self.roster.members
        there = [m for m in members.values() if not m.refused]
        able = [m for m in there if m.able]
        meant = [m for m in there if m.worker.learner_resource and m.worker.takes_tasks]
        if meant and not any(m.able for m in meant):
            return []  # it is about to join
        if not meant and any(m.worker.learner_resource for m in there) and not self._gives_up_waiting(now, learner):
            return []  # it will take tasks again, with all that it keeps
        if not meant and self._is_expected(now, learner):
            return []
        if not meant and able and self._may_be_beside:
            self._may_be_beside = False
            return [LearnBeside(able[0].worker.address)]
        current = members.get(self.roster.learners[learner] or "")
        ready = [m for m in meant if m.able]
        elsewhere = [m for m in ready if m.worker.name != self.terms.name_beside and self._could_take_over(m)]
        candidates = elsewhere or ready or [m for m in able if m is current] or able
        if not candidates:
            if current is None or current.worker.takes_tasks:  # else it goes on when Dask lets it
                self.roster.learners[learner] = None
            return []
        others = functools.partial(self._others, learner)
        chosen = min(candidates, key=lambda m: (m is not current, others(m)))
        coming = [m for m in there if m.worker.takes_tasks and not m.able and (m.worker.learner_resource or not meant)]
        if chosen is not current and others(chosen) and not all(map(others, coming)):
            return []  # one is about to join on which nobody else learns
        return self._choose(learner, chosen, current)

    def _others(self, learner: str, member: Member) -> int:
        """How many others than a learner learn on a worker, of this run and of other runs."""
        address = member.worker.address
        ours = sum(key != learner for key in self.roster.learn_at(address))
        return ours + self.roster.all.learn_on(address, but=self.terms.run)

    def beside_is(self, started: bool) -> None:
        """`LearnBeside` was carried out: there is a process beside the driver now, or there cannot be one."""
        self._beside = started

    def _choose(self, learner: str, chosen: Member, current: Member | None) -> list[Instruction]:
        assert chosen.info is not None
        roster, worker, info = self.roster, chosen.worker, chosen.info
        told: list[Instruction] = []
        try:
            self._require_own_process(worker, info)
            if roster.arithmetic is None:
                told += roster.computes(fingerprint.reference(info, self.terms.device))
        except DaskrlError as error:
            return [Fail(error)]
        assert roster.arithmetic is not None
        device = roster.arithmetic["device"]
        if worker.address != roster.learners[learner]:
            problem = fingerprint.mismatch(info, roster.arithmetic, learns=True) if device == "cuda" else None
            if problem is not None:
                told.append(Break(f"the learner's worker {worker.name} has {problem}"))
            told.append(CheckWindow(info, device, paused.pauses_at(worker.memory)))
        if current is not None and chosen is not current and not current.worker.takes_tasks:
            told.append(TakeBackLearns(current.worker.address, learner))
        roster.learners[learner] = worker.address
        if self._beside and not self._learn_beside():  # who was waited for has come
            self._beside, self._may_be_beside = False, True
            told.append(EndBeside())
        return told

    def _learn_beside(self) -> bool:
        """Whether any learner is in the process beside the driver."""
        workers = [self.roster.members[address].worker for address in self.roster.learners.values() if address]
        return any(worker.name == self.terms.name_beside for worker in workers)

    def _could_take_over(self, member: Member) -> bool:
        """Whether it would learn with the bits of the process beside the driver, if there is one."""
        arithmetic = self.roster.arithmetic
        if not self._beside or arithmetic is None or member.info is None:
            return True
        return fingerprint.mismatch(member.info, arithmetic, learns=True) is None

    def _require_own_process(self, worker: Worker, info: Introduction) -> None:
        """Refuse to learn with several torch threads beside other tasks: rollouts compute with one.

        Raises
        ------
        ConfigError
        """
        if self.terms.torch_threads == 1:
            return
        place = (info["host"], info["pid"])
        others = [m.info for m in self.roster.members.values() if m.worker is not worker and m.info is not None]
        shared = any((other["host"], other["pid"]) == place for other in others)
        if worker.threads > 1 or shared or place == self.terms.here:
            raise shared_process(self.terms.torch_threads, f"worker {worker.name}")

    def _is_expected(self, now: float, learner: str) -> bool:
        """Whether to wait for a worker meant for learners that is not there."""
        if self._beside:  # its nanny starts it again
            return not any(m.refused for m in self.roster.members.values() if m.worker.name == self.terms.name_beside)
        if self.terms.learner_timeout is None:
            return demand.LEARNER in self.roster.planned()
        return not self._gives_up_waiting(now, learner)

    def _gives_up_waiting(self, now: float, learner: str) -> bool:
        timeout = self.terms.learner_timeout
        return timeout is not None and self._without_worker(now, learner) >= timeout

    # -- what is missing ----------------------------------------------------------------------------------

    def _missing(self, what: str, found: bool, now: float) -> float:
        """Seconds for which it has not been found."""
        if found:
            self._since.pop(what, None)
            self._said.discard(what)
            return 0.0
        return now - self._since.setdefault(what, now)

    def _without_worker(self, now: float, learner: str) -> float:
        """Seconds for which a learner has had no worker."""
        return self._missing(_of(learner), self.roster.learns_now(learner) is not None, now)

    def missing(self, now: float) -> list[Instruction]:
        """Say what a run cannot do without and has been without for a minute, and why; each once."""
        timeout = self.terms.learner_timeout
        then = "waiting on" if timeout is None else f"after {timeout:.0f} s it learns beside the driver"
        there = [m for m in self.roster.members.values() if not m.refused]
        stopped = [m.worker for m in there if not m.worker.takes_tasks]
        able = [m.worker for m in there if m.able]
        without = {key: self._without_worker(now, key) for key in self.roster.learners}
        longest = max(without, key=lambda key: without[key])
        told: list[Instruction] = []
        if self._missing("running", not stopped or len(stopped) < len(there), now) > SAY_AFTER:
            told += self._say(
                "running",
                "a worker that takes tasks",
                f"The run waits. To have it go on, {paused.MORE_MEMORY}; or start more workers.",
                stopped,
            )
        elif without[longest] > SAY_AFTER:
            told += self._say(
                _of(longest),
                f"{_of(longest)}'s worker" if self.roster.members else "any worker",
                f"The run is {then}; interrupted, it may be resumed with learner_timeout= to learn beside the driver.",
                [w for w in stopped if w.learner_resource or w.address == self.roster.learners[longest]],
            )
        if self._missing("rollouts", not able or not all(w.learner_resource for w in able), now) > SAY_AFTER:
            told += self._say(
                "rollouts",
                "a rollout worker",
                "The learner's worker rolls out as well until there is one.",
                [w for w in stopped if not w.learner_resource],
            )
        return told

    def _say(self, key: str, what: str, then: str, stopped: Iterable[Worker]) -> list[Instruction]:
        if key in self._said:
            return []
        self._said.add(key)
        why = paused.why_stopped((w.name, w.status, w.memory) for w in stopped)
        why = why or "its job waits in the queue, or ends as it starts (see its log)"
        return [Say(f"{SAY_AFTER:.0f} s without {what}: {why}. {then}")]


def _of(learner: str) -> str:
    """A learner in words."""
    return f"learner {learner}" if learner else "the learner"


def shared_process(threads: int, who: str) -> ConfigError:
    """That a learner with several threads of torch has other tasks beside it."""
    return ConfigError(
        f"torch_threads={threads} needs a learner in a process of its own: {who} runs other tasks beside it, which "
        "compute with one. Use processes=True or daskrl.clusters.local(), start the learner's worker with --nthreads 1 "
        "--resources learner=1, or train with torch_threads=1."
    )
