"""Which tasks to submit now: pure functions of what is committed, tested with numbers.

A round is one fragment of every stream. Round ``r`` acts with weights version ``max(0, r - lag)``; version
``v`` has learned all rounds before ``v``. A stream goes on as soon as its own fragment is committed and the
weights it needs are there: no barrier, and the policy lag is a constant.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from daskrl.config import Schedule


@dataclass(frozen=True, order=True)
class Rollout:
    """Write the fragment of (round, stream) with that version of the weights."""

    round: int
    stream: int
    weights_version: int


@dataclass(frozen=True, order=True)
class Learn:
    """Learn all rounds before ``version``."""

    version: int


def rollouts_ready(
    schedule: Schedule,
    rounds: int,
    committed: Sequence[int],
    held: Collection[int],
    in_flight: Collection[Rollout],
) -> list[Rollout]:
    """The rollouts that could run now, lowest round first.

    Parameters
    ----------
    rounds : rounds the run is to have.
    committed : rounds committed of each stream.
    held : weights versions that workers can be given now.
    in_flight : rollouts already submitted.
    """
    busy = {task.stream for task in in_flight}
    ready = [
        Rollout(done, stream, schedule.weights_version(done))
        for stream, done in enumerate(committed)
        if done < rounds and stream not in busy and schedule.weights_version(done) in held
    ]
    return sorted(ready)


def learns_ready(
    schedule: Schedule,
    rounds: int,
    committed: Sequence[int],
    published: int,
    held: Collection[int],
    in_flight: Collection[Learn],
) -> list[Learn]:
    """The versions that could be learned now, in order: new ones, and lost ones that a stream still needs."""
    possible = min(committed)
    wanted = set(range(published + 1, possible + 1)) | needed(schedule, rounds, committed)
    ready = {Learn(version) for version in wanted if version <= possible and version not in held}
    return sorted(ready - set(in_flight))


def needed(schedule: Schedule, rounds: int, committed: Sequence[int]) -> set[int]:
    """Weights versions that streams act with next."""
    return {schedule.weights_version(done) for done in committed if done < rounds}


def kept(schedule: Schedule, rounds: int, committed: Sequence[int], published: int) -> set[int]:
    """Weights versions not to let go: from the oldest that a stream acts with next to the newest."""
    return set(range(min(needed(schedule, rounds, committed), default=published), published + 1))


def homes(streams: int, slots: Mapping[str, int], current: Mapping[int, str]) -> dict[int, str]:
    """Where each stream lives: on the worker it is on while that is alive, balanced by the workers' threads.

    Parameters
    ----------
    slots : worker address -> threads.
    current : stream -> address of its home so far; addresses that left are ignored.

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
            address = min(load, key=lambda a: ((load[a] + 1) / slots[a], a))
            result[stream] = address
            load[address] += 1
    return result
