"""The workers of a client, and what each of its runs has of them: a core that takes events and returns instructions.

It does no I/O, knows no clock and starts no thread. All runs of a client in one process share one `Workers`; each has a
`Roster` in it. Whoever tells them of events holds one lock, and carries out the instructions that come back
(`daskrl.pools.connection`, `daskrl.pools.dask`). A worker is fingerprinted once, whatever the number of runs; it joins
each of them.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from daskrl.errors import DaskrlError, WorkerMismatchError
from daskrl.pools import demand, paused
from daskrl.pools.instructions import (
    Addressed,
    Break,
    Ease,
    Fail,
    GiveUp,
    Instruction,
    Introduce,
    Join,
    Note,
    Say,
    Worker,
)
from daskrl.records import ArithmeticRecord, Fingerprint, Introduction, Joined
from daskrl.tasks import fingerprint


class State(enum.Enum):
    """Of a worker in one run."""

    JOINING = "joining"  # it has been asked to take part
    INTRODUCING = "introducing"  # it takes part; what its process computes is not known yet
    JOINED = "joined"
    REFUSED = "refused"  # for good


_MAY_FOLLOW = {
    State.JOINING: {State.INTRODUCING, State.REFUSED},
    State.INTRODUCING: {State.JOINED, State.REFUSED},
    State.JOINED: {State.JOINING, State.REFUSED},
    State.REFUSED: set[State](),
}


@dataclass(eq=False)
class Member:
    """A worker in one run.

    Attributes
    ----------
    record : what it said when it joined.
    """

    worker: Worker
    state: State = State.JOINING
    record: Joined | None = None
    story: deque[str] = field(default_factory=lambda: deque(["joining: it came"], maxlen=20))

    @property
    def info(self) -> Introduction | None:
        """What the worker computes the run with, once it has joined."""
        if self.state is not State.JOINED or self.record is None or self.worker.fingerprint is None:
            return None
        return {**self.worker.fingerprint, **self.record}

    @property
    def refused(self) -> bool:
        return self.state is State.REFUSED

    @property
    def able(self) -> bool:
        """Whether it can be given tasks now."""
        return self.state is State.JOINED and self.worker.takes_tasks

    def go(self, state: State, why: str) -> None:
        """Change the state.

        Raises
        ------
        DaskrlError
            That change cannot be.
        """
        if state not in _MAY_FOLLOW[self.state]:
            raise DaskrlError(
                f"worker {self.worker.name} ({self.worker.address}) is {self.state.value} and cannot be {state.value} "
                f"({why}): a defect of daskrl. Its story: {'; '.join(self.story)}."
            )
        self.state = state
        self.story.append(f"{state.value}: {why}")


# -- all runs ---------------------------------------------------------------------------------------------


class Workers:
    """The workers that are there, and the runs that share them."""

    def __init__(self) -> None:
        self.there: dict[str, Worker] = {}
        self.rosters: dict[str, Roster] = {}

    def begin(self, roster: Roster) -> Addressed:
        """A run begins."""
        self.rosters[roster.terms.run] = roster
        roster.all = self
        return self._come(self.there.values(), [roster])

    def end(self, run: str) -> None:
        """A run ends."""
        self.rosters.pop(run, None)

    def present(self, found: Mapping[str, Mapping[str, Any]]) -> Addressed:
        """These are the workers that the scheduler has, as it describes them, by address."""
        told: Addressed = []
        for address in [address for address in self.there if address not in found]:
            told += self.left(address)
        new = []
        for address, info in found.items():
            status = info.get("status", paused.RUNNING)
            if address not in self.there:
                learns = demand.has_learner_resource(info.get("resources"))
                name, memory = str(info.get("name", address)), paused.Memory.of(info)
                new.append(Worker(address, name, info["nthreads"], learns, status, memory))
                self.there[address] = new[-1]
            told += self.has_status(address, status)
        return told + self._come(new, self.rosters.values())

    def _come(self, workers: Iterable[Worker], rosters: Iterable[Roster]) -> Addressed:
        told: Addressed = []
        rosters = list(rosters)
        wanted = [(worker, [r for r in rosters if r.wants(worker)]) for worker in workers]
        for worker, takers in wanted:
            if takers and worker.fingerprint is None and not worker.asked:
                worker.asked = True
                told.append(("", Introduce(worker)))
            for roster in takers:
                roster.members[worker.address] = Member(worker)
                told.append((roster.terms.run, Join(worker)))
        for worker, takers in wanted:
            told += [(roster.terms.run, said) for roster in takers for said in roster.is_paused(worker.address)]
        return told

    def left(self, address: str) -> Addressed:
        """A worker is gone."""
        self.there.pop(address, None)
        return [(run, GiveUp(address)) for run, roster in self.rosters.items() if roster.left(address)]

    def has_status(self, address: str, status: str) -> Addressed:
        """Dask has said whether a worker takes tasks."""
        worker = self.there.get(address)
        if worker is None or worker.status == status:
            return []
        worker.status = status
        if status != paused.PAUSED:
            return []
        return [(run, Ease(address)) for run, roster in self.rosters.items() if address in roster.members]

    def drain(self, addresses: Collection[str]) -> None:
        """Those workers are about to be closed."""
        for address in self.there.keys() & set(addresses):
            self.there[address].draining = True

    def introduced(self, worker: Worker, record: Fingerprint) -> Addressed:
        """A worker's process has said what it computes."""
        worker.fingerprint = record
        return [(run, said) for run, roster in self.rosters.items() for said in roster.introduced(worker)]

    def not_introduced(self, worker: Worker, problem: str | None) -> Addressed:
        """It could not, for that reason; or its answer was lost."""
        worker.asked = False
        if self.there.get(worker.address) is not worker or worker.fingerprint is not None:
            return []
        if problem is None:
            worker.asked = True
            return [("", Introduce(worker))]
        return [(run, said) for run, roster in self.rosters.items() for said in roster.not_joined(worker, problem)]

    def learn_on(self, address: str, but: str) -> int:
        """How many learners of other runs than that learn there."""
        others = [roster.learners.values() for run, roster in self.rosters.items() if run != but]
        return sum(learns == address for learners in others for learns in learners)

    def load(self, but: str) -> Counter[str]:
        """Tasks that other runs than that have on each worker."""
        return sum((roster.load for run, roster in self.rosters.items() if run != but), Counter())

    def streams(self, but: str) -> Counter[str]:
        """Streams that other runs than that have on each worker."""
        return Counter(a for run, roster in self.rosters.items() if run != but for a in roster.homes.values())


# -- one run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Terms:
    """What a run asks of its workers.

    Attributes
    ----------
    run : its token.
    device : of the config.
    learner_timeout : seconds after which it learns without a worker meant for it; None to wait where one is expected.
    window : whether its algorithm has one.
    bytecode, python : of the code that travels to workers, and of this Python; None where no code does.
    here : host and process id of the driver.
    beside : whether a process beside the driver's would reach the scheduler.
    learners : keys of its learners.
    """

    run: str
    strict: bool = True
    device: str = "auto"
    torch_threads: int = 1
    learner_timeout: float | None = None
    window: bool = True
    bytecode: str | None = None
    python: str = ""
    here: tuple[str, int] = ("", 0)
    beside: bool = False
    learners: tuple[str, ...] = ("",)

    @property
    def name_beside(self) -> str:
        """Of the worker beside the driver."""
        return f"{demand.BESIDE_DRIVER}{self.run}"


class Roster:
    """The workers of one run, and which of them learn.

    Parameters
    ----------
    arithmetic : what the run computes with, if it is known.
    planned : names of the workers that the cluster is to have, those whose jobs wait in a queue too; empty if unknown.

    Attributes
    ----------
    learners : key of a learner -> address of its worker, None while there is none; for each learner of the run.
    homes : stream -> address of its worker; replaced, never changed.
    load : tasks in flight on each worker; replaced, never changed.
    """

    def __init__(
        self, terms: Terms, arithmetic: ArithmeticRecord | None, planned: Callable[[], Collection[str]]
    ) -> None:
        self.terms, self.arithmetic, self.planned = terms, arithmetic, planned
        self.all = Workers()
        self.members: dict[str, Member] = {}
        self.learners: dict[str, str | None] = dict.fromkeys(terms.learners)
        self.homes: Mapping[int, str] = {}
        self.load: Counter[str] = Counter()
        self._said: set[str] = set()

    def wants(self, worker: Worker) -> bool:
        """Whether a worker is for this run: one that learns beside another driver is not."""
        return worker.name == self.terms.name_beside or not worker.name.startswith(demand.BESIDE_DRIVER)

    def takes_tasks(self, address: str) -> bool:
        member = self.members.get(address)
        return member is not None and member.worker.takes_tasks

    def learns_now(self, learner: str = "") -> Worker | None:
        """The worker of a learner, if it takes tasks."""
        member = self.members.get(self.learners[learner] or "")
        return member.worker if member is not None and member.worker.takes_tasks else None

    def learn_at(self, address: str) -> list[str]:
        """Keys of the learners whose worker this is."""
        return [learner for learner, learns in self.learners.items() if learns == address]

    def stopped(self) -> set[str]:
        """Addresses of the workers that take no tasks."""
        return {address for address, member in self.members.items() if not member.worker.takes_tasks}

    def unusable(self) -> list[str]:
        """Addresses of workers that are there and of no use."""
        return [a for a, m in self.members.items() if m.refused or m.worker.status == paused.PAUSED]

    def slots(self) -> dict[str, int]:
        """Threads of each worker that may run rollouts.

        Those that learn for this run or are meant for learners only where there are no others; those that learn for
        another run only where this one's would have to.
        """
        able = [member.worker for member in self.members.values() if member.able]
        learn = self.learners.values()
        others = [worker for worker in able if worker.address not in learn and not worker.learner_resource]
        free = [worker for worker in others if not self.all.learn_on(worker.address, but=self.terms.run)]
        staying = [worker for worker in free or others if not worker.draining]
        return {worker.address: worker.threads for worker in (staying or free or others or able)}

    def workers(self) -> int:
        """How many workers run rollouts."""
        learn = self.learners.values()
        return sum(m.able and a not in learn for a, m in self.members.items()) or len(self.slots())

    # -- joining ------------------------------------------------------------------------------------------

    def joined(self, worker: Worker, record: Joined) -> list[Instruction]:
        """A worker takes part."""
        member = self.members.get(worker.address)
        if member is None or member.worker is not worker or member.refused:
            return []
        member.go(State.INTRODUCING, "it takes part")
        member.record = record
        return self.introduced(worker)

    def introduced(self, worker: Worker) -> list[Instruction]:
        """A worker's process may have said what it computes."""
        member = self.members.get(worker.address)
        if (
            member is None
            or member.worker is not worker
            or member.state is not State.INTRODUCING
            or worker.fingerprint is None
        ):
            return []
        member.go(State.JOINED, "what its process computes is known")
        return self._judge(member)

    def not_joined(self, worker: Worker, problem: str) -> list[Instruction]:
        """A worker cannot take part."""
        member = self.members.get(worker.address)
        if member is None or member.worker is not worker or member.refused:
            return []
        return self._refuse(member, problem)

    def ask_again(self, worker: Worker) -> list[Instruction]:
        """The answer of a worker that was asked to join is lost."""
        member = self.members.get(worker.address)
        return [Join(worker)] if member is not None and member.worker is worker else []

    def lost_session(self, address: str) -> list[Instruction]:
        """A worker no longer knows the run, though it had joined."""
        member = self.members.get(address)
        if member is None or member.state in (State.REFUSED, State.JOINING):
            return []
        member.go(State.JOINING, "it lost the session")
        member.record = None
        return [Join(member.worker)]

    def left(self, address: str) -> bool:
        """Forget a worker; whether it was there."""
        for learner in self.learn_at(address):
            self.learners[learner] = None
        return self.members.pop(address, None) is not None

    def computes(self, arithmetic: ArithmeticRecord) -> list[Instruction]:
        """What the run computes with is known now."""
        self.arithmetic = arithmetic
        return [said for member in self.members.values() for said in self._judge(member)]

    def _judge(self, member: Member) -> list[Instruction]:
        info, worker = member.info, member.worker
        if info is None or self.arithmetic is None:
            return []
        problem = fingerprint.mismatch(info, self.arithmetic, learns=False) or self._other_bytecode(info)
        if problem is None:
            note = fingerprint.note_on(info, self.arithmetic, f"worker {worker.name}")
            if note is None or str(note["alike"]) in self._said:
                return []
            self._said.add(str(note["alike"]))
            return [Note(note, f"worker {worker.name}")]
        if not self.terms.strict:
            return [Break(f"worker {worker.name} has {problem}")]
        return self._refuse(member, f"has {problem} Or accept it with strict=False; the store will say so.")

    def _other_bytecode(self, info: Introduction) -> str | None:
        """Why the run's code cannot be run there, if it travels by value, as what stands in a notebook does."""
        if self.terms.bytecode is None or info.get("bytecode", self.terms.bytecode) == self.terms.bytecode:
            return None
        return (
            f"another Python ({info['versions']['python']}), to which this one cannot send code. Use the driver's "
            f"there ({self.terms.python}), or have environment and algorithm in an installed package."
        )

    def _refuse(self, member: Member, problem: str) -> list[Instruction]:
        member.go(State.REFUSED, problem)
        message = f"worker {member.worker.name} ({member.worker.address}) gets no rollouts: it {problem}"
        if len(self.members) >= len(self.planned()) and all(other.refused for other in self.members.values()):
            return [Fail(WorkerMismatchError(f"no worker can take part in this run. {message}"))]
        return [Say(message)]

    # -- paused -------------------------------------------------------------------------------------------

    def has_memory(self, address: str, memory: paused.Memory) -> list[Instruction]:
        """A worker that was paused has told of its memory."""
        if address in self.members:
            self.members[address].worker.memory = memory
        return self.is_paused(address)

    def is_paused(self, address: str) -> list[Instruction]:
        """Say so of a worker, once, if it is."""
        member = self.members.get(address)
        if member is None or member.worker.status != paused.PAUSED:
            return []
        worker, said = member.worker, f"paused {member.worker.name}"
        if said in self._said:
            return []
        self._said.add(said)
        here = self.learn_at(address)
        learns = bool(here) or worker.learner_resource
        instead: str | bool = any(m.worker.takes_tasks and not m.refused for m in self.members.values())
        if learns:
            elsewhere = [learning.name for key in self.learners if (learning := self.learns_now(key)) is not None]
            instead = elsewhere[0] if elsewhere and not here else False
        return [Say(str(paused.Pause(worker.name, address, worker.memory, learns, instead, self.terms.window)))]
