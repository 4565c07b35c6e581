"""What growing, shrinking and losing workers costs a run, in seconds and in fragments.

Environments and learners sleep, so that neither is held up by the number of cores; workers are processes. The clock is
that of one machine: the scheduler's for workers that come and go, the file system's for commits.

    python tests/benchmarks/elasticity.py [--tables up down retire kill] [--repeats N] [--kills N] [--task-seconds T]
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium
import numpy as np
from _table import parser, show, verdict
from distributed import Client, SpecCluster

import daskrl
from daskrl import clusters
from daskrl.algorithms.base import Moment, Setup
from daskrl.pools.demand import DRAINING, LEARNER
from daskrl.pools.workers import PRELOAD, PRELOAD_VARIABLE, THREADS
from daskrl.testing import Kill, chaos

HEAVY = "torch, gymnasium, zarr, daskrl.tasks.rollout"
PACKAGES = ("torch", "gymnasium", "zarr", "dask", "distributed")
PATIENCE = 300.0  # seconds to wait for what has to happen
SHARE = 0.95
TABLES = ["up", "down", "retire", "kill"]


def note(file: str, what: str, number: int) -> None:
    """Add a line to a file that many processes write to, if there is one."""
    if file:
        with open(file, "a") as notes:
            notes.write(f"{what} {number} {os.getpid()} {time.time()!r}\n")


@dataclass(frozen=True)
class Note:
    what: str  # "begins", "ends": a fragment, by the seed of its episode; "restored", "learned": rounds learned
    number: int
    pid: int
    at: float


def noted(folder: str) -> list[Note]:
    lines = map(str.split, Path(folder, "notes").read_text().splitlines())
    return [Note(what, int(number), int(pid), float(at)) for what, number, pid, at in lines]


class Sleeping(gymnasium.Env[Any, Any]):
    """One step is one episode, and takes its time. When it begins and ends is noted in a file, if there is one."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, seconds: float, notes: str = "") -> None:
        self.seconds, self.notes, self.episode, self.nothing = seconds, notes, -1, np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.episode = -1 if seed is None else seed
        return self.nothing, {}

    def step(self, action: Any) -> Any:
        note(self.notes, "begins", self.episode)
        time.sleep(self.seconds)
        note(self.notes, "ends", self.episode)
        return self.nothing, 0.0, False, True, {}


@dataclass(frozen=True)
class Idle:
    """Acts alike whatever it sees, learns nothing, and takes its time for that."""

    seconds: float = 0.0
    parameters: int = 1
    notes: str = ""

    def check(self, setup: Setup) -> None:
        pass

    def policy(self, setup: Setup) -> dict[str, Any]:
        return {}

    def load(self, policy: dict[str, Any], weights: Mapping[str, Any]) -> None:
        policy.update(weights)

    def act(self, policy: dict[str, Any], moment: Moment) -> Any:
        return np.zeros(len(moment.observation["observation"]), np.int64)

    def learner(self, setup: Setup, random: np.random.Generator) -> Any:
        return IdleLearner(self)


class IdleLearner:
    memory = 0

    def __init__(self, settings: Idle) -> None:
        self.settings, self.updates = settings, 0

    def skip(self, rounds: int) -> None:
        pass

    def append(self, fragments: Sequence[Mapping[str, Any]]) -> None:
        pass

    def learn(self, random: np.random.Generator) -> float:
        time.sleep(self.settings.seconds)
        self.updates += 1
        note(self.settings.notes, "learned", self.updates)
        return 0.0

    def weights(self) -> dict[str, Any]:
        return {"w": np.full(self.settings.parameters, self.updates, np.float32)}

    def state(self) -> dict[str, Any]:
        return {"updates": np.array([self.updates])}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"][0])
        note(self.settings.notes, "restored", self.updates)


def sleeping_run(
    folder: str, client: Client, *, streams: int, task: float, rounds: int = 10**6, learn: float = 0.0,
    checkpoint_every: int = 10**6,
) -> daskrl.Run:  # fmt: skip
    """A run whose fragments are one sleep each; what its environments do is noted in ``folder``."""
    notes = f"{folder}/notes"
    return daskrl.train(
        Idle(learn, notes=notes), lambda: Sleeping(task, notes), store=f"{folder}/run", env_steps=rounds * streams,
        client=client, streams=streams, envs_per_stream=1, fragment_steps=1, recheck_every=0,
        checkpoint_every=checkpoint_every, weights_every=10**6, progress=False,
    )  # fmt: skip


class Commits:
    """The records of a run that goes on, and when each was committed."""

    def __init__(self, run: daskrl.Run) -> None:
        self._log, self._seen = run.store.log, 0
        self.records: list[tuple[float, dict[str, Any]]] = []

    def fragments(self) -> list[tuple[float, dict[str, Any]]]:
        return [(at, record) for at, record in self.look() if record["kind"] == "fragment"]

    def look(self) -> list[tuple[float, dict[str, Any]]]:
        while (path := Path(self._log.where(self._seen))).exists():
            at = path.stat().st_mtime
            self.records.extend((at, record) for record in self._log.read(self._seen))
            self._seen += 1
        return self.records

    def first_of(self, pid: int) -> tuple[float, dict[str, Any]] | None:
        return next(((at, record) for at, record in self.fragments() if worker_pid(record) == pid), None)


def worker_pid(record: Mapping[str, Any]) -> int:
    return int(record["worker"].rpartition(":")[2])


class Coming:
    """When the scheduler had workers come and go, by its own clock."""

    def __init__(self, client: Client, cluster: SpecCluster) -> None:
        self._cluster = cluster
        self.came: dict[str, tuple[float, int, Any]] = {}  # address -> time, process id, name
        self.left: dict[str, float] = {}
        self.drained: list[float] = []
        self.learners: list[float] = []  # arrivals
        self._client = client
        client.subscribe_topic("all", self._take)
        client.subscribe_topic(DRAINING, lambda event: self.drained.append(event[0]))
        for address, worker in cluster.scheduler.workers.items():
            self.came[address] = (0.0, worker.pid, worker.name)

    def __enter__(self) -> Coming:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.unsubscribe_topic("all")
        self._client.unsubscribe_topic(DRAINING)

    def _take(self, event: Any) -> None:
        at, what = event
        if not isinstance(what, dict):
            return
        if what.get("action") == "add-worker":
            worker = self._cluster.scheduler.workers.get(what["worker"])
            if worker is not None:
                self.came[worker.address] = (at, worker.pid, worker.name)
                if worker.name == LEARNER:
                    self.learners.append(at)
        elif what.get("action") == "remove-worker":
            self.left[what["worker"]] = at


def until(what: Callable[[], Any], meaning: str) -> Any:
    """Wait until it returns something; that."""
    stop = time.monotonic() + PATIENCE
    while not (found := what()):
        if time.monotonic() > stop:
            raise TimeoutError(f"{PATIENCE:g} s and no {meaning}")
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def going_on(run: daskrl.Run) -> Iterator[Commits]:
    """The run goes on in a thread while the context lasts, from its first commit of a fragment on."""
    errors: list[BaseException] = []

    def carry_on() -> None:
        try:
            run.wait()
        except BaseException as error:
            errors.append(error)

    thread, commits = threading.Thread(target=carry_on), Commits(run)
    thread.start()
    try:
        until(lambda: commits.fragments() or errors, "fragment")
        yield commits
    finally:
        run.stop()
        thread.join()
        if errors:
            raise errors[0]


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} / {max(values):.{digits}f}" if values else "-"


# -- scale-up ---------------------------------------------------------------------------------------------


def forked(cluster: SpecCluster) -> Callable[[], None]:
    """One more worker of the cluster's own; returned is what takes it away again."""
    size = len(cluster.worker_spec)
    cluster.scale(size + 1)
    return lambda: cluster.scale(size)


def started(cluster: SpecCluster, *arguments: str, **variables: str) -> Callable[[], None]:
    """One more worker, by the command line and with these environment variables."""
    command = [sys.executable, "-m", "dask", "worker", cluster.scheduler_address, "--nthreads", "1", "--no-dashboard"]
    process = subprocess.Popen(
        [*command, *arguments], env={**os.environ, **dict.fromkeys(THREADS, "1"), **variables},
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def end() -> None:
        process.terminate()
        process.wait(PATIENCE)

    return end


KINDS: dict[str, Callable[[SpecCluster], Callable[[], None]]] = {
    "local(): a fork": forked,
    "dask worker": started,
    "dask worker --preload": lambda cluster: started(cluster, f"--preload={PRELOAD}"),
}


def import_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {HEAVY}"], check=True)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Grown:
    """Seconds: until the worker arrived, until its first fragment began, for that, and from its end to its commit."""

    coming: float
    beginning: float
    fragment: float
    committing: float

    @property
    def beyond(self) -> float:
        return self.beginning + self.committing


def grow(cluster: SpecCluster, coming: Coming, commits: Commits, kind: str) -> Grown:
    known, asked = set(coming.came), time.time()
    end = KINDS[kind](cluster)
    try:
        address = until(lambda: next(iter(set(coming.came) - known), None), f"worker ({kind})")
        arrived, pid, _ = coming.came[address]
        committed, record = until(lambda: commits.first_of(pid), f"fragment ({kind})")
    finally:
        end()
    until(lambda: address in coming.left, f"end ({kind})")
    began, took = record["wall_time"], record["seconds"]
    return Grown(arrived - asked, began - arrived, took, committed - began - took)


def scale_up(repeats: int, workers: int, task: float) -> None:
    imports: list[float] = []
    found: dict[str, list[Grown]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder, clusters.local(workers) as cluster, Client(cluster) as client:
        run = sleeping_run(folder, client, streams=4 * (workers + 1), task=task)
        with Coming(client, cluster) as coming, going_on(run) as commits:
            for _ in range(repeats):
                imports.append(import_seconds())
                for kind, times in found.items():
                    times.append(grow(cluster, coming, commits, kind))
                    time.sleep(2 * task)
    imported = statistics.median(imports)
    rows = []
    for kind, times in found.items():
        allowed = round(1 + (imported if kind == "dask worker" else 0.0), 2)
        rows.append([
            kind, spread([g.coming for g in times]), spread([g.beyond + g.fragment for g in times]),
            spread([g.beginning for g in times]), spread([g.fragment for g in times]),
            spread([g.committing for g in times], 3), spread([g.beyond for g in times]),
            verdict(statistics.median(g.beyond for g in times), allowed, at_least=False),
        ])  # fmt: skip
    show(
        f"A worker more, {repeats} times each: seconds, median / worst",
        [
            "worker", "asked for to arrived", "arrived to first commit", "until it begins", "the fragment",
            "until committed", "beyond the fragment", "median, target",
        ],
        rows,
        packages=PACKAGES,
        note="Arrived: the scheduler's time stamp of add-worker. The fragment's own seconds are subtracted in the last "
        f"two columns. import {HEAVY} in a fresh process, in turn with the workers: {spread(imports)} s. The target is "
        "1 s, and on top the import's median where nothing is imported before the worker arrives. Preloaded: "
        f"{PRELOAD}.",
        width=140,
    )  # fmt: skip


# -- scale-down and retirement ----------------------------------------------------------------------------

WAYS = {
    "adapt": "clusters.adapt: drained",
    "scale": "cluster.scale: not drained",
    "lifetime": "dask worker --lifetime: drains itself",
    "retire": "client.retire_workers: not drained",
}


@dataclass(frozen=True)
class Shrunk:
    """What became of a run on fewer workers. Throughput is over what the workers of the moment can do."""

    begun: int  # fragments, by the workers that left
    lost: int  # of them, not finished there
    again: int  # fragments of all that were begun a second time
    ended: float  # seconds from the order until the last of them left
    before: float  # throughput
    lowest: float  # in the worst window of one task's time after the order, over what those that stay can do
    after: float
    recovered: float  # seconds from the order to the end of the last such window below `SHARE` of that before


def shrink(how: str, workers: int, fewer: int, task: float) -> Shrunk:
    quiet, going = 12 * task, workers - fewer
    lifetime = 4 / 3 * (quiet + 10)  # seconds; in its last quarter the worker drains, the run starts when it is there
    own = workers - going if how == "lifetime" else workers
    with (
        tempfile.TemporaryDirectory() as folder, clusters.local(own) as cluster, Client(cluster) as client,
        Coming(client, cluster) as coming, contextlib.ExitStack() as stack,
    ):  # fmt: skip
        if how == "adapt":
            adaptive = clusters.adapt(cluster, workers, workers, interval=0.2, patience=0.2)
            stack.callback(adaptive.stop)
        elif how == "lifetime":
            for _ in range(going):
                stack.callback(started(cluster, "--lifetime", f"{lifetime}s", **{PRELOAD_VARIABLE: PRELOAD}))
            until(lambda: len(coming.came) == workers + 1, "workers")
        run = sleeping_run(folder, client, streams=2 * math.lcm(workers, fewer), task=task)
        with going_on(run) as commits:
            if how != "lifetime":
                time.sleep(quiet)
            ordered = time.time()
            if how == "adapt":
                adaptive.minimum = adaptive.maximum = fewer
            elif how == "scale":
                cluster.scale(fewer + 1)
            elif how == "retire":
                rollout = [address for address, (_, _, name) in coming.came.items() if name != LEARNER]
                client.retire_workers(rollout[-going:])
            else:
                ordered = max(arrived for arrived, _, _ in coming.came.values()) + lifetime
            until(lambda: len(coming.left) == going, "end of workers")
            if how in ("adapt", "lifetime") and coming.drained:
                ordered = coming.drained[0]
            time.sleep(quiet)
            done, settled = commits.fragments(), time.time() - task
            notes = noted(folder)
    gone = {coming.came[address][1] for address in coming.left}
    begun = [note for note in notes if note.what == "begins" and note.pid in gone]
    finished = {(note.number, note.pid) for note in notes if note.what == "ends"}

    def share(start: float, window: float, slots: int) -> float:
        """Of fragments that were rolled out, the parts in a window of time, over what that many workers can do."""
        spans = [(record["wall_time"], record["wall_time"] + record["seconds"]) for _, record in done]
        return sum(max(0.0, min(last, start + window) - max(first, start)) for first, last in spans) / (window * slots)

    before, step = share(ordered - 0.8 * quiet, 0.8 * quiet, workers), task / 10
    after = {start: share(start, task, fewer) for start in np.arange(ordered, settled - 2 * task, step)}
    low = [start for start, value in after.items() if value < SHARE * before]
    return Shrunk(
        begun=len(begun),
        lost=sum((note.number, note.pid) not in finished for note in begun),
        again=sum(count - 1 for count in Counter(note.number for note in notes if note.what == "begins").values()),
        ended=max(coming.left.values()) - ordered,
        before=before,
        lowest=min(after.values()),
        after=share(max(coming.left.values()), 0.8 * quiet, fewer),
        recovered=max(low) + step - ordered if low else 0.0,
    )


def scale_down(drained: str, not_drained: str, repeats: int, workers: int, fewer: int, task: float) -> None:
    found = {how: [shrink(how, workers, fewer, task) for _ in range(repeats)] for how in (drained, not_drained)}
    rows = [
        [
            WAYS[how], f"{sum(s.lost for s in each)} of {sum(s.begun for s in each)}", f"{sum(s.again for s in each)}",
            spread([s.ended for s in each]), f"{statistics.median(s.before for s in each):.2f}",
            f"{min(s.lowest for s in each):.2f}", f"{statistics.median(s.after for s in each):.2f}",
            spread([s.recovered / task for s in each]),
        ]
        for how, each in found.items()
    ]  # fmt: skip
    lost, again = (sum(getattr(s, what) for s in found[drained]) for what in ("lost", "again"))
    recovered = max(s.recovered / task for s in found[drained])
    none = [f"0: {'MISSED' if count else 'yes'}" for count in (lost, again)]
    rows.append(["target where drained", *none, "", "", "", "", verdict(recovered, 2, at_least=False)])
    show(
        f"{workers} workers to {fewer}, {repeats} times each, tasks of {task:g} s: median / worst",
        [
            "how", "begun, not finished by those that left", "rolled out again", "s to the last one's end",
            "throughput before", "lowest after", "after", f"tasks' time to {SHARE:.0%}",
        ],
        rows,
        packages=PACKAGES,
        note="Throughput is over what the workers of the moment can do, from the seconds that fragments took; the "
        "lowest is that of one task's time after the order, over what those that stay can do. Time to "
        f"{SHARE:.0%} runs from the order, to drain, to scale or to retire, to the end of the last such window below "
        f"{SHARE:.0%} of the throughput before. A worker with a lifetime is a dask worker with {PRELOAD} preloaded; "
        "its order is the beginning of its drain, or where there was none its lifetime's end.",
        width=130,
    )  # fmt: skip


# -- kills ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kills_noted() -> Iterator[list[float]]:
    """When SIGKILL is sent from this process."""
    sent, send = [], signal.pidfd_send_signal

    def noting(handle: int, what: int, *others: Any) -> None:
        if what == signal.SIGKILL:
            sent.append(time.time())
        send(handle, what, *others)

    with mock.patch.object(signal, "pidfd_send_signal", noting):
        yield sent


def kill(kills: int, workers: int, task: float, learn: float, every: int, apart: int) -> None:
    """``kills`` of each kind in turn, ``apart`` versions from one another."""
    plan = [Kill(at=apart * (1 + n), learner=n % 2 == 1) for n in range(2 * kills)]
    streams = math.lcm(workers, max(1, workers - 1))
    with tempfile.TemporaryDirectory() as folder, clusters.local(workers) as cluster, Client(cluster) as client:
        run = sleeping_run(
            folder, client, streams=streams, task=task, rounds=apart * (2 * kills + 1), learn=learn,
            checkpoint_every=every,
        )  # fmt: skip
        with Coming(client, cluster) as coming, kills_noted() as sent:
            report = chaos(run, plan)
        commits, notes = Commits(run), noted(folder)
        commits.look()
    committed = {record["environment_seed"][0]: at for at, record in commits.fragments()}
    learned = [(at, record) for at, record in commits.records if record["kind"] == "learn" and record["version"] > 0]
    fragment = statistics.median(record["seconds"] for _, record in commits.fragments())
    once = statistics.median(record["seconds"] for _, record in learned)
    times: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {False: [], True: []})
    for harm, at in zip(report.harms, sent, strict=True):
        learner = harm.fault.learner  # type: ignore[attr-defined]
        pid = int(harm.victim.rpartition("(")[2].rstrip(")"))

        def add(what: str, seconds: float, learner: bool = learner) -> None:
            times[what][learner].append(seconds)

        address = next(address for address, (_, other, _) in coming.came.items() if other == pid)
        arrived, new, _ = min(came for came in coming.came.values() if came[0] > at)
        add("lost", math.nan if harm.lost is None else harm.lost)
        add("detected", coming.left[address] - at)
        add("arrived", arrived - at)
        add("again", harm.rolled_out_again)
        if learner:
            restored = next(n for n in notes if n.pid == new and n.what == "restored")
            there = next(n for n in notes if n.pid == new and n.number >= harm.version)
            add("rounds", harm.version - restored.number)
            add("restored", restored.at - arrived)
            add("caught up", there.at - restored.at)
            continue
        add("begins", next(n.at for n in notes if n.pid == new) - arrived)
        begun = [n for n in notes if n.what == "begins" and n.pid == pid]
        if (pid, begun[-1].number) not in {(n.pid, n.number) for n in notes if n.what == "ends"}:
            add("delayed", committed[begun[-1].number] - (begun[-1].at + fragment))

    def both(what: str, digits: int = 2) -> list[str]:
        return [spread(values, digits) for values in times[what].values()]

    def judged(learner: bool, allowed: float) -> str:
        return verdict(statistics.median(times["lost"][learner]), round(allowed, 2), at_least=False)

    detected = statistics.median(times["detected"][False])
    restore = sum(statistics.median(times[what][True]) for what in ("arrived", "restored"))
    interval = every * (report.pace or math.nan)
    show(
        f"{kills} SIGKILLs each, {workers} rollout workers, {streams} streams: seconds, median / worst",
        ["what", "rollout worker", "learner"],
        [
            ["lost by the run", *both("lost")],
            ["the fragment it was at: committed later by", *both("delayed")],
            ["detection: SIGKILL to the scheduler's remove-worker", *both("detected", 3)],
            ["SIGKILL to the arrival of the next one", *both("arrived")],
            ["arrival to its first fragment's beginning / to restored", both("begins")[0], both("restored")[1]],
            ["restored to where it was", *both("caught up")],
            ["rounds since the newest checkpoint", *both("rounds", 1)],
            ["fragments rolled out again, of each kill", *both("again", 0)],
            ["a fragment / learning a round", f"{fragment:.2f}", f"{once:.2f}"],
            [
                "target for the median", f"task + detection: {judged(False, fragment + detected)}",
                f"checkpoint interval + restore: {judged(True, interval + restore)}",
            ],
        ],
        packages=PACKAGES,
        note=f"{report.pace or math.nan:.2f} s a version without kills, a checkpoint every {every} versions: an "
        f"interval of {interval:.2f} s. Restore: SIGKILL to restored. {report.committed:,} of {report.expected:,} "
        f"transitions committed, {report.lost} lost, {report.duplicated} duplicated.",
        width=130,
    )  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    arguments.add_argument("--repeats", type=int, default=5, help="of scale-up, each kind, and of each way down")
    arguments.add_argument("--kills", type=int, default=6, help="of rollout workers, and as many of the learner")
    arguments.add_argument("--workers", type=int, default=6, help="rollout workers before some go; one retires")
    arguments.add_argument(
        "--fewer", type=int, default=4, help="after it, and where workers are killed; half where they are added"
    )
    arguments.add_argument("--task-seconds", type=float, default=0.6)
    arguments.add_argument("--learn-seconds", type=float, default=0.3, help="of a round, where workers are killed")
    arguments.add_argument("--checkpoint-every", type=int, default=5)
    given = arguments.parse_args()
    task = given.task_seconds
    if "up" in given.tables:
        scale_up(given.repeats, max(1, given.fewer // 2), task)
    if "down" in given.tables:
        scale_down("adapt", "scale", given.repeats, given.workers, given.fewer, task)
    if "retire" in given.tables:
        scale_down("lifetime", "retire", given.repeats, given.workers, given.workers - 1, task)
    if "kill" in given.tables:
        kill(given.kills, given.fewer, task, given.learn_seconds, given.checkpoint_every, 12)


if __name__ == "__main__":
    main()
