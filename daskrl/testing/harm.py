"""Harm on purpose: carry out a run while workers are killed, stopped, slowed down, cut off, and its disk fills up.

    from daskrl.testing import Kill, Slow, chaos

    report = chaos(run, [Kill(at=4), Kill(at=7, learner=True), Slow(at=9, factor=5)])
    print(report)
    assert report.digest == digest  # of the same run in one process

A fault happens when a version of the weights is published, never at a time of the clock. Meanwhile the driver waits,
so the run is where the plan says. Victims are processes on this machine.
"""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daskrl.config import require_integer
from daskrl.errors import ConfigError, DaskrlError, StoreFullError
from daskrl.records import Report
from daskrl.run import Run
from daskrl.schedule import Learn, Rollout, Task
from daskrl.testing import victims
from daskrl.testing.faults import Fault, FillDisk, Kill, Partition, Slow, Stop, WorkerFault
from daskrl.testing.victims import Cut, Pauses, Workers
from daskrl.watching.callbacks import Callback
from daskrl.watching.watched import Watched

_PERIOD = 0.2  # seconds from one stop of a slow worker to the next


@dataclass(frozen=True)
class Harm:
    """What one fault did.

    Attributes
    ----------
    fault : as planned.
    version : of the weights when it happened.
    victim : name and process id of the worker, or the directory.
    waited : seconds the driver stood still until there was a worker to harm, and it was harmed.
    seconds : from then until the next version was published; None where none was to come.
    lost : seconds longer than without faults, over the versions that can have been held up by it: up to two and the
        run's lag after its end, or up to the next fault. None where no version came or the pace is not known.
    rolled_out_again, learned_again : fragments and versions that were begun a second time, up to the next fault.
    """

    fault: Fault
    version: int
    victim: str
    waited: float
    seconds: float | None
    lost: float | None
    rolled_out_again: int
    learned_again: int


@dataclass(frozen=True)
class ChaosReport:
    """What became of the run.

    Attributes
    ----------
    harms : what each fault did, in order.
    seed : the victims were drawn with.
    seconds : it took in all.
    pace : median seconds for a version, of those that no fault can have held up; None if there were none.
    expected, committed, duplicated, lost : transitions: those of the budget; those in the commit log; those in it more
        than once; and those not in it.
    digest : as from `Store.digest`.
    """

    harms: tuple[Harm, ...]
    seed: int
    seconds: float
    pace: float | None
    expected: int
    committed: int
    duplicated: int
    lost: int
    digest: str

    def __str__(self) -> str:
        rows = [(
            "fault", "version", "victim", "waited, s", "next, s", "lost, s", "rolled out again", "learned again",
        )]  # fmt: skip
        for harm in self.harms:
            rows.append((
                repr(harm.fault), str(harm.version), harm.victim, _number(harm.waited), _number(harm.seconds),
                _number(harm.lost), str(harm.rolled_out_again), str(harm.learned_again),
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([
            *lines,
            f"{self.seconds:.1f} s, {_number(self.pace)} s a version without faults; seed {self.seed}",
            f"transitions: {self.committed} of {self.expected} committed, {self.lost} lost, {self.duplicated} "
            "duplicated",
            f"digest: {self.digest}",
        ])  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def plan_of_kills(seed: int, kills: int, versions: int, *, learner_share: float = 0.2) -> list[Kill]:
    """Kills at random versions, at most one at each.

    Parameters
    ----------
    seed : the only source of randomness.
    versions : the run's; the first kill is at 1 or later, the last before the last version.
    learner_share : of the kills, in the mean, that are the learner's.
    """
    require_integer("seed", seed, 0)
    require_integer("kills", kills, 0)
    require_integer("versions", versions, 1)
    if kills > versions - 1:
        raise ConfigError(
            f"kills: at most one at each of versions 1 to {versions - 1}, got {kills}. Make the run longer."
        )
    if not 0 <= learner_share <= 1:
        raise ConfigError(f"learner_share: expected a number in [0, 1], got {learner_share!r}.")
    random = np.random.default_rng(seed)
    moments = sorted(random.choice(np.arange(1, versions), kills, replace=False).tolist())
    return [Kill(at, learner=bool(random.random() < learner_share)) for at in moments]


def chaos(run: Run, plan: Sequence[Fault], *, seed: int = 0) -> ChaosReport:
    """Carry a run on to its end, with harm on the way.

    Parameters
    ----------
    run : made with a client whose workers are processes on this machine, e.g. of `daskrl.clusters.local`.
    plan : `Kill`, `Stop`, `Slow`, `Partition` and `FillDisk`, in any order.
    seed : victims are drawn with it from the workers of the moment, sorted by name.

    Raises
    ------
    ConfigError
        Before anything is queued: no client, a version that does not come, or nothing that could be the victim.
    """
    faults = _check(run, plan)
    require_integer("seed", seed, 0)
    with _Scene(run, faults, seed) as scene:
        while True:
            try:
                for _ in run.reports(callbacks=[scene]):
                    pass
                break
            except StoreFullError:
                if not scene.make_room():
                    raise
        return scene.report(seed)


def _check(run: Run, plan: Sequence[Fault]) -> list[Fault]:
    if not isinstance(run, Run):
        raise ConfigError(f"run: expected what daskrl.train or daskrl.resume returns, got {run!r}.")
    if run.client is None:
        raise ConfigError(
            "run: it has no client, so there are no workers to harm. Type: client = Client(daskrl.clusters.local(2)); "
            "daskrl.train(..., client=client)"
        )
    faults = list(plan)
    for fault in faults:
        if not isinstance(fault, Kill | Stop | Slow | Partition | FillDisk):
            raise ConfigError(
                f"plan: expected Kill, Stop, Slow, Partition and FillDisk of daskrl.testing, got {fault!r}."
            )
    known = max((record["version"] for record in run.store.records("learn")), default=-1)
    last = run.store.config.schedule.rounds(run.env_steps)
    for fault in faults:
        if not known < fault.at < last:
            raise ConfigError(
                f"{fault!r}: this run still publishes versions {known + 1} to {last}, and the last one is its end. "
                f"Type at={known + 1} to at={last - 1}, or a larger env_steps."
                if known + 1 < last
                else f"{fault!r}: this run publishes no version that others follow. Type a larger env_steps."
            )
        if isinstance(fault, FillDisk):
            _require_small_disk(run.store.root, fault)
    return sorted(faults, key=lambda fault: fault.at)


def _require_small_disk(store: Path, fault: FillDisk) -> None:
    disk = os.statvfs(store)
    size = disk.f_blocks * disk.f_frsize
    if size > fault.limit:
        raise ConfigError(
            f"{fault!r}: {store} is on a file system of {size:,} bytes, larger than limit={fault.limit:,}. Put the "
            "store on a small one of its own, e.g.: mount -t tmpfs -o size=16m tmpfs DIR"
        )
    if os.stat(store).st_dev != os.stat(store.parent).st_dev:
        raise ConfigError(f"{fault!r}: {store} is where a file system is mounted. Put the store into a folder of it.")


@dataclass
class _Doing:
    """A fault that happened. ``until`` is the newest version at which it was not over."""

    fault: Fault
    version: int
    victim: str
    due: float
    done: float
    again: tuple[int, int]
    until: int
    lasting: Pauses | Cut | None = None
    ballast: Path | None = None

    def goes_on(self, version: int) -> bool:
        if isinstance(self.fault, Slow) and version >= self.version + self.fault.for_versions:
            self.end()
        return self.ballast is not None or (self.lasting is not None and self.lasting.is_alive())

    def end(self) -> None:
        if self.lasting is not None:
            self.lasting.end()
            self.lasting = None
        if self.ballast is not None:
            self.ballast.unlink(missing_ok=True)
            self.ballast = None


class _Scene(Callback):
    """What is due, what goes on, and what was seen. The run waits while harm is done."""

    def __init__(self, run: Run, faults: list[Fault], seed: int) -> None:
        assert run.client is not None
        self._run, self._due, self._began = run, faults, time.monotonic()
        self._workers = Workers(run.client, seed)
        self._happened: list[_Doing] = []
        self._versions: list[tuple[int, float]] = []
        self._begun: set[Any] = set()
        self._again = [0, 0]

    def __enter__(self) -> _Scene:
        try:
            # One fault of each kind: a worker that is being restarted is looked for when its turn comes.
            kinds = {(type(fault), fault.learner): fault for fault in self._due if isinstance(fault, WorkerFault)}
            for fault in kinds.values():
                self._workers.require(fault)
        except BaseException:
            self._workers.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for doing in self._happened:
            doing.end()
        self._workers.close()

    def reported(self, run: Watched, report: Report) -> None:
        """Note a version; end what lasted until it, and do what is due. Again for an evaluation, which is none."""
        version = report.weights_version
        if self._versions and self._versions[-1][0] == version:
            return
        self._versions.append((version, time.monotonic()))
        for doing in self._happened:
            if doing.goes_on(version):
                doing.until = version
                if doing.ballast is not None:
                    fill_disk(doing.ballast)  # old checkpoints were deleted
        while self._due and self._due[0].at <= version:
            self._do(self._due.pop(0), version)

    def _do(self, fault: Fault, version: int) -> None:
        due = time.monotonic()
        doing = _Doing(fault, version, "", due, due, (self._again[0], self._again[1]), version)
        self._happened.append(doing)
        if isinstance(fault, WorkerFault):
            victim = self._workers.draw(fault)
            doing.victim = f"{victim.name} ({victim.pid})"
            if isinstance(fault, Stop):
                doing.lasting = Pauses(victim, fault.seconds, None)
            elif isinstance(fault, Slow):
                doing.lasting = Pauses(victim, _PERIOD * (1 - 1 / fault.factor), _PERIOD / fault.factor)
            elif isinstance(fault, Partition):
                doing.lasting = Cut(victim, fault.seconds)
            else:
                victim.send(signal.SIGKILL)
                if not victim.ended(within=victims.PATIENCE):  # else the next fault could take it for one that lives
                    raise DaskrlError(f"SIGKILL did not end worker {doing.victim}: it hangs in the kernel.")
            if doing.lasting is not None:
                doing.lasting.start()
        else:
            folder = self._run.store.root.parent
            doing.victim, doing.ballast = str(folder), folder / ".daskrl-ballast"
            fill_disk(doing.ballast)
        doing.done = time.monotonic()

    def make_room(self) -> bool:
        """Free the disk, and return whether a fault of this plan had filled it."""
        ours = [doing for doing in self._happened if doing.ballast is not None]
        for doing in ours:
            doing.end()
        return bool(ours)

    def submitted(self, run: Watched, tasks: Set[Task]) -> None:
        """Count what is begun a second time."""
        for task in tasks:
            if isinstance(task, Rollout | Learn):
                self._again[isinstance(task, Learn)] += task in self._begun
                self._begun.add(task)

    def report(self, seed: int) -> ChaosReport:
        store, shape = self._run.store, self._run.store.config.schedule
        seconds = time.monotonic() - self._began
        slots = [record["slot"] for record in store.records("fragment")]
        size = shape.round_steps // shape.streams
        expected = shape.rounds(self._run.env_steps) * shape.round_steps
        spans = [(doing.version, doing.until, doing.done) for doing in self._happened]
        pace, times = time_lost(self._versions, spans, shape.lag)
        counts = [*(doing.again for doing in self._happened[1:]), tuple(self._again)]
        harms = tuple(
            Harm(
                doing.fault, doing.version, doing.victim, doing.done - doing.due, *time,
                following[0] - doing.again[0], following[1] - doing.again[1],
            )
            for doing, time, following in zip(self._happened, times, counts, strict=False)
        )  # fmt: skip
        return ChaosReport(
            harms=harms,
            seed=seed,
            seconds=seconds,
            pace=pace,
            expected=expected,
            committed=len(set(slots)) * size,
            duplicated=(len(slots) - len(set(slots))) * size,
            lost=expected - len(set(slots)) * size,
            digest=store.digest(),
        )


def time_lost(
    versions: Sequence[tuple[int, float]], faults: Sequence[tuple[int, int, float]], lag: int
) -> tuple[float | None, list[tuple[float | None, float | None]]]:
    """The pace without faults, and of each fault the seconds to the next version and those lost.

    Parameters
    ----------
    versions : version and time of each publication.
    faults : of each, in order: version when it happened, version when it was over, and time when it was done.
    lag : when version ``v`` is published, rounds to ``v + lag`` may be committed already, so that version
        ``v + lag + 2`` is the first that a fault then surely holds up.
    """
    quiet = []
    for (before, began), (version, ended) in itertools.pairwise(versions):
        if all(before < at or version > until + lag + 2 for at, until, _ in faults):
            quiet.append((ended - began) / (version - before))
    pace = statistics.median(quiet) if quiet else None
    found: list[tuple[float | None, float | None]] = []
    for number, (at, until, done) in enumerate(faults):
        later = [(version, moment) for version, moment in versions if version > at]
        seconds = later[0][1] - done if later else None
        end = min([until + lag + 2, *(other for other, _, _ in faults[number + 1 : number + 2])])
        lost = None
        if later and end > at and pace is not None:
            version, moment = next((v for v in later if v[0] >= end), later[-1])
            lost = moment - done - (version - at) * pace
        found.append((seconds, lost))
    return pace, found


def fill_disk(ballast: Path) -> None:
    """Write to a file until no byte is free on its file system."""
    with open(ballast, "ab", buffering=0) as file:
        size = 1 << 16
        while size:
            try:
                if not file.write(bytes(size)):
                    size //= 2
            except OSError:
                size //= 2
