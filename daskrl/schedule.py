"""Which tasks to submit now: pure functions of what is committed, tested with numbers.

A round is one fragment of every stream. Round ``r`` acts with weights version ``max(0, r - lag)``; version
``v`` has learned all rounds before ``v``. A stream goes on as soon as its own fragment is committed and the
weights it needs are there: no barrier, and the policy lag is a constant.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from daskrl.config import Schedule, require_integer
from daskrl.errors import ConfigError
from daskrl.records import FragmentRecord


@dataclass(frozen=True, order=True)
class Rollout:
    """Write the fragment of (round, stream) with that version of the weights, of each learner."""

    round: int
    stream: int
    weights_version: int


@dataclass(frozen=True, order=True)
class Learn:
    """Learn all rounds before ``version``.

    Here and in all that names a learner, "" is the key of the only one of a run that has one.
    """

    version: int
    learner: str = ""


@dataclass(frozen=True, order=True)
class Evaluate:
    """Play greedy episodes with that version of a learner's weights."""

    version: int
    learner: str = ""


@dataclass(frozen=True)
class Recheck:
    """Run the fragment in ``slot`` a second time and compare: all of it, or one environment alone (`schedule.Due`)."""

    slot: int
    weights_version: int
    record: str  # JSON, so that tasks can be members of sets
    environment: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Write a checkpoint of where a learner stands, and the weights it reached."""

    learner: str = ""


Task = Rollout | Learn | Evaluate | Recheck | Checkpoint
"""What a pool is given to do. Whoever treats them by kind ends with ``assert_never``: none is forgotten."""


@dataclass(frozen=True)
class Budget:
    """How long to learn, counted from the beginning: in transitions or in gradient updates, one of the two.

    Rounds are learned whole, so it is reached with the first round that brings as many transitions or updates as were
    asked for: up to a round more of them.
    """

    transitions: int | None = None
    updates: int | None = None

    def __post_init__(self) -> None:
        if (self.transitions is None) == (self.updates is None):
            raise ConfigError("budget: expected either transitions or updates.")
        for name in ("transitions", "updates"):
            if getattr(self, name) is not None:
                require_integer(name, getattr(self, name), 1)

    def reached(self, transitions: int, updates: int) -> bool:
        """Whether so many transitions, and so many updates, are enough."""
        if self.transitions is not None:
            return transitions >= self.transitions
        assert self.updates is not None
        return updates >= self.updates

    def rounds(self, schedule: Schedule, updates_after: Callable[[int], int]) -> int:
        """The fewest rounds that reach it.

        Parameters
        ----------
        updates_after : transitions -> updates made in all once they are in, never fewer for more of them; see
            `daskrl.algorithms.base.updates_after`.
        """

        def reached(rounds: int) -> bool:
            transitions = rounds * schedule.round_steps
            return self.reached(transitions, 0 if self.updates is None else updates_after(transitions))

        most = 1
        while not reached(most):
            most *= 2
            if most > _MOST_ROUNDS:
                raise ConfigError(f"updates: {most} rounds do not make {self.updates} updates. Ask for fewer.")
        return bisect.bisect_left(range(most), True, key=reached)


_MOST_ROUNDS = 1 << 40  # which no run has


Due = tuple[FragmentRecord, int | None]
"""The record of a committed fragment to be run a second time, and how. None: all of it, by its policy, in environments
rebuilt to where it began. A number: that environment alone, stepped through its recorded actions."""


@dataclass
class Rechecks:
    """Which committed fragments are run again: a pure function of their records in the order of slots.

    Fragment 0 is, from fresh environments; the first fragment of round 1, from rebuilt ones; and in the long run one in
    ``every``, the first that is cheap: of its environments fewer steps are to be taken again than a fragment has, and
    for each ``every`` fragments waited those of two more.

    What an environment keeps of earlier episodes shows only once one has ended. So one environment that began a new
    episode in the fragment before is stepped again by itself: in the first fragment that has one, in the first with one
    after 1, 2, 4, 8, ... more fragments, and in the end after ``every`` each time. Just after an ending that is less
    than two fragments of one environment.

    Attributes
    ----------
    every : fragments between two checks of a kind in the long run; 0 for none at all.
    """

    schedule: Schedule
    every: int
    _next: int = 0
    _waiting: dict[int, FragmentRecord] = field(default_factory=dict)
    _whole_from: int = 0
    _alone_from: int = 0
    _gap: int = 1

    def take(self, record: FragmentRecord) -> list[Due]:
        """Count one committed fragment in; what is due now that this one, and all of lower slots, are committed.

        The weights such a fragment acted with are still held: a stream that is behind needs them, or older ones.
        """
        if not self.every:
            return []
        self._waiting[record["slot"]] = record
        due: list[Due] = []
        while self._next in self._waiting:
            due.extend(self._at(self._next, self._waiting.pop(self._next)))
            self._next += 1
        return due

    def _at(self, slot: int, record: FragmentRecord) -> list[Due]:
        lives = enumerate(zip(record["first_episode"], record["episode_step"], strict=True))
        new = [(age, env) for env, (episode, age) in lives if episode > 0 and age < self.schedule.fragment_steps]
        alone = bool(new) and slot >= self._alone_from
        if alone:
            self._alone_from, self._gap = slot + self._gap, min(2 * self._gap, self.every)
        size, waited = self.schedule.fragment_steps * self.schedule.envs_per_stream, slot - self._whole_from
        if waited >= 0 and sum(record["episode_step"]) * self.every <= size * (self.every + 2 * waited):
            self._whole_from = slot + self.every
            return [(record, None)]  # which rebuilds its environments, one by one
        if slot == self.schedule.streams:
            return [(record, None)]
        return [(record, min(new)[1])] if alone else []


def rollouts_ready(
    schedule: Schedule,
    rounds: int,
    committed: Sequence[int],
    held: Collection[int],
    in_flight: Collection[Task],
) -> list[Rollout]:
    """The rollouts that could run now, lowest round first.

    Parameters
    ----------
    rounds : rounds the run is to have.
    committed : rounds committed of each stream.
    held : weights versions that workers can be given now, of every learner; see `held_of_all`.
    in_flight : tasks already submitted.
    """
    busy = {task.stream for task in in_flight if isinstance(task, Rollout)}
    ready = [
        Rollout(done, stream, schedule.weights_version(done))
        for stream, done in enumerate(committed)
        if done < rounds and stream not in busy and schedule.weights_version(done) in held
    ]
    return sorted(ready)


def held_of_all(held: Mapping[str, Collection[int]]) -> set[int]:
    """The weights versions held of every learner: a fragment acts with one version, whosever weights.

    ``held`` : key of a learner -> weights versions that workers can be given now, for each learner of the run.
    """
    return set.intersection(*map(set, held.values()))


def learns_ready(
    schedule: Schedule,
    rounds: int,
    committed: Sequence[int],
    published: int,
    held: Collection[int],
    in_flight: Collection[Task],
    learner: str = "",
) -> list[Learn]:
    """The versions that a learner could learn now, in order: new ones, and lost ones that a stream still needs.

    ``published``, ``held`` : of this learner.
    """
    possible = min(committed)
    wanted = set(range(published + 1, possible + 1)) | needed(schedule, rounds, committed)
    ready = {Learn(version, learner) for version in wanted if version <= possible and version not in held}
    return sorted(ready.difference(in_flight))


def to_evaluate(every: int, rounds: int, version: int) -> bool:
    """Whether a version is to be evaluated: each ``every``-th, and the last; none where ``every`` is 0."""
    return every > 0 and (version % every == 0 or version == rounds)


def evaluations_due(
    every: int, rounds: int, published: int, kept: Collection[int], evaluated: Collection[int], learner: str = ""
) -> list[Evaluate]:
    """The evaluations still to be made of what a learner published and is kept on disk, oldest version first.

    Parameters
    ----------
    kept : versions whose weights are on disk.
    evaluated : versions whose evaluation is committed.
    """
    if not every:
        return []
    wanted = (v for v in kept if v <= published and v not in evaluated and to_evaluate(every, rounds, v))
    return sorted(Evaluate(version, learner) for version in wanted)


def needed(schedule: Schedule, rounds: int, committed: Sequence[int]) -> set[int]:
    """Weights versions that streams act with next."""
    return {schedule.weights_version(done) for done in committed if done < rounds}


def kept(schedule: Schedule, rounds: int, committed: Sequence[int], published: int) -> set[int]:
    """Weights versions not to let go: from the oldest that a stream acts with next to the newest."""
    return set(range(min(needed(schedule, rounds, committed), default=published), published + 1))


def homes(
    streams: int, slots: Mapping[str, int], current: Mapping[int, str], others: Mapping[str, int] | None = None
) -> dict[int, str]:
    """Where each stream lives: on the worker it is on while that is alive, balanced by the workers' threads.

    Parameters
    ----------
    slots : worker address -> threads.
    current : stream -> address of its home so far; addresses that left are ignored.
    others : worker address -> streams of other runs there. Of two that are as good, the one with fewer is taken.

    Returns
    -------
    stream -> address, for all streams; empty without workers. As few streams move as balance allows.
    """
    if not slots:
        return {}
    threads = sum(slots.values())
    most = {address: math.ceil(streams * n / threads) for address, n in slots.items()}
    result: dict[int, str] = {}
    load = dict.fromkeys(slots, 0)
    for stream in range(streams):
        address = current.get(stream)
        if address in load and load[address] < most[address]:
            result[stream] = address
            load[address] += 1
    for stream in range(streams):
        if stream not in result:
            address = min(load, key=lambda a: ((load[a] + 1) / slots[a], (others or {}).get(a, 0) / slots[a], a))
            result[stream] = address
            load[address] += 1
    return result
