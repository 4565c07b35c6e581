"""A study with 200 SIGKILLs of its workers and its driver on the way, against the same study in one process.

    python tests/benchmarks/kills.py [--kills 200] [--drivers 0.2] [--seed 0] [--keep DIRECTORY]

The study is a real one: DQN on CartPole under ASHA, so that runs wait at rungs and go on. Scheduler and workers
(`daskrl.clusters.local`), and the driver, are processes of their own. Who is killed at which moment is drawn from the
seed: after so many commits of runs and of the study, and at moments that are worse than others: as a run is opened,
while it is scored, while it is packed, when its task is over and the study does not know it yet, and right after a
commit of the study. Nannies start workers again, this script the driver.

Work is the time that workers spend on tasks of runs. Lost of it is, for each task that was killed, the time since the
last commit of its run; for each task that goes on with such a run, the time until the run is where it was, and gets on:
opening it, reading its replay, learning again what came after its checkpoint; and the tasks whose result was there
already, from their scoring on. The time until a killed worker is back is told apart: nobody works in it.

How much is lost follows from the work between two kills: ``--work``. On two cores 200 kills take half an hour, and the
study in one process, which ``--keep`` has only once, somewhat longer; ``--kills 10 --work 2000`` takes two minutes.

Ends with exit code 1 where the promise is broken, or more is lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from _table import parser, show, verdict
from _told import OF_TASKS, Clock, Telling, Told, cost, listening, processor_seconds
from distributed import Client

SHARE = 2.0  # percent of worker-seconds that may be lost
SPACE = {"learning_rate": [1e-4, 3e-4, 1e-3, 3e-3], "n_step": [1, 3]}
SILENCE = 300.0  # seconds without any sign of life until the benchmark gives up
MOMENTS = (*OF_TASKS, "decided")
"""Of a run's task: it has begun, it scores, it packs, it is over; of the driver: it committed to the study's log."""


def study(path: Path, seeds: int, env_steps: int) -> Any:
    import daskrl

    return daskrl.Study(
        path, algorithm=daskrl.DQN(learning_starts=500), env="CartPole-v1", space=SPACE, seeds=seeds,
        env_steps=env_steps, search=daskrl.study.ASHA(rungs=(env_steps // 4, env_steps // 2), reduction=2), streams=2,
        envs_per_stream=2, fragment_steps=16,
    )  # fmt: skip


def size_of(work: int, longest: int) -> tuple[int, int]:
    """Seeds of the study and env steps of a run, for about so many env steps in all.

    Of 8 settings ASHA takes about 5 to the second rung and 3 to the end: for each seed 5 times a run's env steps.
    """
    seeds = max(1, round(work / (5 * longest)))
    return seeds, min(longest, max(2000, work // (5 * seeds) // 1000 * 1000))


def drive(given: Any) -> None:
    """Be the driver."""
    Telling(given.to).begin("driver")
    with Client(given.drive) as client:
        study(given.study, given.seeds, given.env_steps).run(client, progress=False)


SCHEDULER = """
import sys
from daskrl import clusters
if __name__ == "__main__":
    with clusters.local(int(sys.argv[1]) - 1) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def scheduler(workers: int) -> Iterator[str]:
    """Scheduler and nannies in a process of their own; the address."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "scheduler.py"
        script.write_text(SCHEDULER)
        process = subprocess.Popen(
            [sys.executable, str(script), str(workers)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(60)


# -- the harm -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """Whom to kill at the first ``moment`` after so many commits; ``share`` draws one of several workers."""

    after: int
    driver: bool
    moment: str
    share: float


def plan_of(seed: int, kills: int, commits: int, drivers: float) -> list[Kill]:
    """``kills``, spread evenly over the commits; of them a share of the driver, and half at the worse moments."""
    random = np.random.default_rng(seed)
    spans = np.linspace(1, 0.95 * commits, kills + 1)
    of_driver = np.zeros(kills, bool)
    of_driver[random.permutation(kills)[: round(kills * drivers)]] = True
    return [
        Kill(
            int(random.uniform(low, high)), bool(whom),
            "commit" if random.random() < 0.5 else str(random.choice(MOMENTS)), float(random.random()),
        )
        for low, high, whom in zip(spans[:-1], spans[1:], of_driver, strict=True)
    ]  # fmt: skip


@dataclass
class Harm:
    """A kill that was done; ``moment``: when; ``back``: when its victim was there again."""

    kill: Kill
    moment: str
    pid: int
    at: Clock
    back: float | None = None


class Chaos:
    """Kills by a plan, and starts drivers again, until one comes to the end."""

    def __init__(self, here: socket.socket, plan: list[Kill], start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.here, self.start = here, start
        self.plan = list(plan)  # to be done yet
        self.told, self.harms, self.workers = Told(), list[Harm](), list[int]()
        self.patience = plan[-1].after // 40  # commits

    def carry_on(self) -> None:
        while (driver := self.start()) and (code := self.watch(driver)) != 0:
            if code != -signal.SIGKILL:
                raise SystemExit(f"the driver ended with {code}")

    def watch(self, driver: subprocess.Popen[bytes]) -> int:
        """Until a driver ends; how."""
        handle = os.pidfd_open(driver.pid)
        try:
            while ready := select.select([self.here, handle], [], [], SILENCE)[0]:
                if self.here in ready:
                    self.hear(json.loads(self.here.recv(1 << 20)), driver)
                else:
                    return driver.wait()
        finally:
            os.close(handle)
        driver.kill()
        raise SystemExit(f"no sign of life in {SILENCE:g} s: the study stands still")

    def hear(self, said: dict[str, Any], driver: subprocess.Popen[bytes]) -> None:
        self.told.take(said)
        event = said["event"]
        if event == "worker":
            self.workers.append(said["pid"])
        if event in ("worker", "driver"):
            away = (harm for harm in self.harms if harm.back is None and harm.kill.driver == (event == "driver"))
            if harm := next(away, None):
                harm.back = said["at"][0]
        for kill in self.plan:
            if kill.after > self.told.commits:
                return
            # A moment that does not come is replaced by a commit.
            late = event == "commit" and self.told.commits > kill.after + self.patience
            if (event == kill.moment or late) and (victim := self.victim(kill, said, driver)) is not None:
                self.plan.remove(kill)
                with contextlib.suppress(ProcessLookupError, OSError):
                    at = time.monotonic(), processor_seconds(victim)
                    os.kill(victim, signal.SIGKILL)
                    self.harms.append(Harm(kill, event, victim, at))
                if not kill.driver:
                    self.workers.remove(victim)
                return

    def victim(self, kill: Kill, said: dict[str, Any], driver: subprocess.Popen[bytes]) -> int | None:
        """The driver; the worker that said what happened, if it was one; or any worker. None while there is none."""
        if kill.driver:
            return driver.pid if all(harm.pid != driver.pid for harm in self.harms) else None
        own = said["pid"] if said["event"] in OF_TASKS else None
        there = [pid for pid in self.workers if own in (None, pid)]
        return there[int(kill.share * len(there))] if there else None


# -- all of it ------------------------------------------------------------------------------------------------


def alone(path: Path, seeds: int, env_steps: int) -> tuple[Any, Told, float]:
    """The study in this process, what happened, and its seconds."""
    with listening() as (here, to):
        told, over = Told(), False
        began = time.monotonic()
        call = [sys.executable, __file__, "--to", to, "--study", str(path), "--alone", *sizes(seeds, env_steps)]
        process = subprocess.Popen(call)
        handle = os.pidfd_open(process.pid)
        while not over:
            ready, _, _ = select.select([here, handle], [], [], SILENCE)
            if here in ready:
                told.take(json.loads(here.recv(1 << 20)))
            else:
                over = True
        if process.wait() != 0:
            raise SystemExit("the study in one process failed")
        return study(path, seeds, env_steps), told, time.monotonic() - began


def sizes(seeds: int, env_steps: int) -> list[str]:
    return ["--seeds", str(seeds), "--env-steps", str(env_steps)]


def run_alone(given: Any) -> None:
    """Be the process in which the study is carried out undisturbed."""
    Telling(given.to).begin("driver")
    study(given.study, given.seeds, given.env_steps).run(progress=False)


def trial_records(path: Any) -> Counter[tuple[str, int]]:
    """How often the study's log has a result of each run."""
    from daskrl.store.log import CommitLog
    from daskrl.store.places import place

    records = CommitLog(place(path)).forwards()
    return Counter((record["trial"], record["env_steps"]) for record in records if record["kind"] == "trial")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--drivers", type=float, default=0.2, help="share of the kills")
    options.add_argument("--seed", type=int, default=0, help="of the kills")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--work", type=int, default=14_000, help="env steps of the study for each kill, about")
    options.add_argument("--env-steps", type=int, default=20_000, help="of a run that goes all its way, at most")
    options.add_argument("--keep", type=Path, help="keep both studies there; an undisturbed one of this size is used")
    options.add_argument("--each", action="store_true", help="print every kill as well")
    for own in ("--drive", "--to"):
        options.add_argument(own, help="of this script's own processes")
    options.add_argument("--study", type=Path, help="of this script's own processes")
    options.add_argument("--seeds", type=int, help="of this script's own processes")
    options.add_argument("--alone", action="store_true", help="of this script's own processes")
    given = options.parse_args()
    if given.drive:
        return drive(given)
    if given.alone:
        return run_alone(given)
    if not given.seeds:
        given.seeds, given.env_steps = size_of(given.kills * given.work, given.env_steps)
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        sys.exit(compare(folder, given))


def compare(folder: Path, given: Any) -> int:
    name = f"alone-{given.seeds}-{given.env_steps}"
    undisturbed, kept = folder / name, folder / f"{name}.json"
    if kept.exists():
        said = json.loads(kept.read_text())
        one = study(undisturbed, given.seeds, given.env_steps)
    else:
        one, told, seconds = alone(undisturbed, given.seeds, given.env_steps)
        said = {"seconds": seconds, "commits": told.commits, "fragments": told.fragments, "updates": told.updates}
        kept.write_text(json.dumps(said))
    print(f"one process: {one.digest()}, {said}", flush=True)

    path = folder / f"killed-{int(time.time())}"
    plan = plan_of(given.seed, given.kills, said["commits"], given.drivers)
    with listening() as (here, to), scheduler(given.workers) as address:
        call = [sys.executable, __file__, "--to", to, "--study", str(path), "--drive", address]
        call += sizes(given.seeds, given.env_steps)

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(call, start_new_session=True)

        with Client(address) as client:
            client.wait_for_workers(given.workers)
            cloudpickle.register_pickle_by_value(sys.modules[Telling.__module__])
            client.register_plugin(Telling(to))
            chaos = Chaos(here, plan, start)
            began = time.monotonic()
            chaos.carry_on()
            seconds = time.monotonic() - began
    return report(given, one, said, path, chaos, seconds)


def report(given: Any, one: Any, said: dict[str, Any], path: Path, chaos: Chaos, seconds: float) -> int:
    from daskrl.study.table import OF_THE_POOL

    killed = study(path, given.seeds, given.env_steps)
    logical = [name for name in one.table() if name not in OF_THE_POOL]
    same = killed.digest() == one.digest() and killed.table()[logical].equals(one.table()[logical])
    records, expected = trial_records(path), trial_records(one.log.storage)
    lost = len(set(expected) - set(records))
    doubled = sum(count - 1 for count in records.values()) + len(set(records) - set(expected))
    again = len({trial for (trial, *_), count in chaos.told.rounds.items() if count > 1})
    died = {harm.pid: harm.at for harm in chaos.harms if not harm.kill.driver}
    counted = {result["seconds"] for result in killed.log.results.values()}
    tasks = list(chaos.told.tasks.values())
    wall, busy = (cost(tasks, died, counted, clock) for clock in (0, 1))
    drivers = [harm for harm in chaos.harms if harm.kill.driver]
    workers = [harm for harm in chaos.harms if not harm.kill.driver]
    if given.each:
        for harm in chaos.harms:
            print(harm)

    def back(harms: list[Harm]) -> str:
        found = [harm.back - harm.at[0] for harm in harms if harm.back is not None]
        return f"{statistics.median(found):.1f} / {sum(found):.0f}" if found else "-"

    table = [
        ["SIGKILLs of workers / of drivers", f"{len(workers)} / {len(drivers)} of {given.kills}"],
        *([f"  at {moment}", f"{n}"] for moment, n in sorted(Counter(h.moment for h in chaos.harms).items())),
        ["runs lost / doubled / begun again", f"{lost} / {doubled} / {again}"],
        ["the same table", "yes" if same else "NO"],
        ["fragments rolled out, of those in the table", f"{chaos.told.fragments} of {said['fragments']}"],
        ["updates, of those in the table", f"{chaos.told.updates} of {said['updates']}"],
        *(
            [what, f"{getattr(wall, name):.1f} / {getattr(busy, name):.1f}"]
            for what, name in (
                ("worker-seconds on tasks of runs, of the clock / of the processor", "work"),
                ("  lost: since the last commit of a killed task", "destroyed"),
                ("  lost: until the run got on", "regained"),
                ("  lost: for results that were there", "doubled"),
            )
        ),
        ["percent of worker-seconds lost, of the processor", f"{busy.percent:.2f}"],
        ["percent of worker-seconds lost", verdict(wall.percent, SHARE, at_least=False)],
        ["s until a worker was back, median / sum", back(workers)],
        ["s until a driver was back, median / sum", back(drivers)],
        ["s of the study; in one process", f"{seconds:.0f}; {said['seconds']:.0f}"],
    ]
    runs, each = len(one.table()), max(1, len(chaos.harms))
    lost_each = (busy.destroyed + busy.regained + busy.doubled) / each
    show(
        f"{runs} runs of up to {given.env_steps:,} env steps, {given.workers} workers, seed {given.seed}",
        ["what", "measured"],
        table,
        packages=("distributed", "torch"),
        note=f"A kill lost {lost_each:.2f} s of the processor; there was one every {busy.work / each:.1f} s of work.",
    )
    broken = not same or lost or doubled or again or len(chaos.harms) < given.kills
    return 1 if broken or wall.percent > SHARE else 0


if __name__ == "__main__":
    main()
