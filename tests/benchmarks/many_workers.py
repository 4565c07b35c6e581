"""The driver and the scheduler with hundreds of rollout workers: how busy they keep them, and what it costs.

Simulated workers are threads of a few processes, and their environments sleep; scheduler and driver are the real ones,
each a process of its own. Every round publishes weights, which each worker fetches: with two streams a worker every two
tasks' times, with one, in a shorter run beside, every task's time.

    python tests/benchmarks/many_workers.py [--workers N] [--tasks N] [--task-seconds T] [--sizes N ...] [--profile]
"""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import functools
import itertools
import logging
import multiprocessing
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
from _table import parser, show, verdict
from distributed import Client, Worker, WorkerPlugin
from elasticity import Commits, Idle, Sleeping, spread, until

import daskrl
from daskrl.pools.demand import LEARNER
from daskrl.pools.workers import LOG_LENGTH, LOGGED, QUIET, THREADS, UNWATCHED

SETTINGS = {LOG_LENGTH: LOGGED, **QUIET, **UNWATCHED}  # as in daskrl.clusters
REST = 8.0  # seconds before a run in which workers only tell that they live
FULL = 0.8  # of one core: where a scheduler ends
PACKAGES = ("dask", "distributed")


# -- the cluster ------------------------------------------------------------------------------------------


class Fetches(WorkerPlugin):
    """Notes when a worker asks another for weights, and when it has them."""

    def __init__(self) -> None:
        self.asked: dict[str, float] = {}
        self.found: list[tuple[str, float, float]] = []  # key, times

    def transition(self, key: Any, start: str, finish: str, **others: Any) -> None:
        if str(key).startswith("learn-"):
            if finish in ("fetch", "flight"):
                self.asked.setdefault(key, time.time())
            elif finish == "memory" and key in self.asked:
                self.found.append((key, self.asked.pop(key), time.time()))


def simulate(pipe: Any, scheduler: str, names: Sequence[str], resources: dict[str, float], folder: str) -> None:
    """A process with these workers, until told to end; then it tells what they fetched."""
    from daskrl import networks

    networks.fingerprint = functools.cache(networks.fingerprint)  # joining: once in a process is enough
    networks.fingerprint("cpu")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)

    async def live() -> None:
        fetches = [Fetches() for _ in names]
        workers = [
            Worker(
                scheduler, name=name, nthreads=1, resources=resources, memory_limit=0, dashboard=False,
                local_directory=folder, plugins=[plugin],
            )
            for name, plugin in zip(names, fetches, strict=True)
        ]  # fmt: skip
        await asyncio.gather(*workers)
        pipe.send("ready")
        await asyncio.to_thread(pipe.recv)
        pipe.send([found for plugin in fetches for found in plugin.found])
        await asyncio.gather(*(worker.close(nanny=False) for worker in workers))

    with dask.config.set(SETTINGS), contextlib.suppress(EOFError):
        asyncio.run(live())


@dataclass
class Simulated:
    address: str
    scheduler: psutil.Process
    hosts: list[psutil.Process]  # of the workers, the learner's first
    pipes: list[Any]

    def fetched(self) -> list[tuple[str, float, float]]:
        """End the workers; what they fetched."""
        for pipe in self.pipes:
            pipe.send("end")
        return [found for pipe in self.pipes for found in pipe.recv()]


@contextlib.contextmanager
def simulated(workers: int, processes: int, folder: str) -> Iterator[Simulated]:
    """A scheduler, a learner's worker and rollout workers; all end with the context."""
    file = Path(folder, "scheduler.json")
    command = [sys.executable, "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    names = {key: "DASK_" + key.upper().replace(".", "__").replace("-", "_") for key in SETTINGS}
    scheduler = subprocess.Popen(
        [*command, "--scheduler-file", str(file)], stderr=subprocess.DEVNULL,
        env={**os.environ, **{names[key]: str(value) for key, value in SETTINGS.items()}},
    )  # fmt: skip
    context, hosts, pipes = multiprocessing.get_context("spawn"), [], []
    try:
        until(file.exists, "scheduler")
        with Client(scheduler_file=str(file)) as client:
            address = client.scheduler.address
        shares = [[f"rollout-{n}" for n in range(workers)][first::processes] for first in range(processes)]
        for share in [[LEARNER], *filter(None, shares)]:
            ours, theirs = context.Pipe()
            learns = {LEARNER: 1.0} if share == [LEARNER] else {}
            host = context.Process(target=simulate, args=(theirs, address, share, learns, folder), daemon=True)
            host.start()
            theirs.close()
            hosts.append(host)
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        yield Simulated(address, psutil.Process(scheduler.pid), [psutil.Process(host.pid) for host in hosts], pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for host in hosts:
            host.join(20)
            if host.is_alive():
                host.terminate()
        scheduler.terminate()
        scheduler.wait()


# -- measuring --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    at: float
    driver: float  # CPU seconds
    driver_rss: float  # MiB
    scheduler: float
    scheduler_rss: float
    hosts: float


class Sampler(threading.Thread):
    """CPU time and memory of this process and the scheduler, once a second; and of this process's threads."""

    def __init__(self, cluster: Simulated) -> None:
        super().__init__(name="sampler", daemon=True)
        self._scheduler, self._hosts, self._enough = cluster.scheduler, cluster.hosts, threading.Event()
        self.samples: list[Sample] = []
        self.threads: dict[str, float] = {}

    def run(self) -> None:
        me, before = psutil.Process(), None
        while not self._enough.wait(1.0):
            numbers = []
            for process in (me, self._scheduler):
                times = process.cpu_times()
                numbers += [times.user + times.system, process.memory_info().rss / 2**20]
            hosts = [host.cpu_times() for host in self._hosts]
            self.samples.append(Sample(time.time(), *numbers, sum(times.user + times.system for times in hosts)))
            names = {thread.native_id: thread.name for thread in threading.enumerate()}
            threads: dict[str, float] = defaultdict(float)
            for thread in me.threads():
                threads[names.get(thread.id, "others")] += thread.user_time + thread.system_time
            before = before or dict(threads)
            self.threads = {name: value - before.get(name, 0.0) for name, value in threads.items()}

    def end(self) -> None:
        self._enough.set()
        self.join()


@dataclass(frozen=True)
class Measured:
    workers: int
    rollouts: int
    per_second: float
    busy: float  # share of the slots' time, by what fragments took
    slept: float  # the same, by what their environments slept
    driver: tuple[float, float]  # CPU share, first and second half
    driver_rss: tuple[float, float]  # mean MiB
    scheduler: tuple[float, float]
    scheduler_rss: tuple[float, float]
    hosts: tuple[float, float]  # of the workers' processes together
    resting: dict[str, float]  # CPU share of scheduler and driver before the run
    apart: list[float]  # seconds between two publications
    first_start: list[float]  # of each version: seconds from publication
    last_start: list[float]
    fetches: list[float]  # seconds a worker waited for weights
    reached: list[float]  # of each version: seconds from the first request for it until the last worker has it
    threads: dict[str, float]


class Profiling(daskrl.Callback):
    """Prints where the time of the driver's loop went, and that of its connection's thread."""

    def __init__(self, rounds: int) -> None:
        self._last = rounds - 1
        self._driver, self._connection = cProfile.Profile(), cProfile.Profile()

    def begin(self, run: daskrl.Run) -> None:
        assert run.client is not None
        self._loop = run.client.loop
        self._loop.add_callback(self._connection.enable)
        self._driver.enable()

    def reported(self, run: daskrl.Run, report: daskrl.Report) -> None:
        if report.weights_version == self._last:
            self._loop.add_callback(self._connection.disable)

    def end(self, run: daskrl.Run, error: BaseException | None) -> None:
        self._driver.disable()
        for name, profile in {"the driver's loop": self._driver, "its connection": self._connection}.items():
            print(f"\n{name}:")
            pstats.Stats(profile).sort_stats("tottime").print_stats(22)


def measure(
    workers: int, tasks: int, seconds: float, megabytes: float, each: int, processes: int, profile: bool = False
) -> Measured:
    streams = each * workers
    rounds = max(4, -(-tasks // streams))
    with tempfile.TemporaryDirectory() as folder, simulated(workers, processes, folder) as cluster:
        with Client(cluster.address) as client:
            client.wait_for_workers(workers + 1)
            sampler = Sampler(cluster)
            run = daskrl.train(
                Idle(parameters=max(1, round(megabytes * 1e6 / 4))), lambda: Sleeping(seconds), store=f"{folder}/run",
                env_steps=rounds * streams, client=client, streams=streams, envs_per_stream=1, fragment_steps=1,
                recheck_every=0, checkpoint_every=10**6, weights_every=10**6, progress=False,
            )  # fmt: skip
            sampler.start()
            time.sleep(REST)
            begun = len(sampler.samples)
            if profile:
                for _ in run.reports(callbacks=[Profiling(rounds)]):
                    pass
            else:
                run.wait()
            sampler.end()
        fetched = cluster.fetched()
        commits = Commits(run)
        records = commits.look()
    fragments = [record for _, record in records if record["kind"] == "fragment"]
    # From when all streams have begun to when the first begins its last round.
    start = max(record["wall_time"] for record in fragments if record["round"] == 0)
    stop = min(record["wall_time"] for record in fragments if record["round"] == rounds - 1)
    spans = [(max(r["wall_time"], start), min(r["wall_time"] + r["seconds"], stop)) for r in fragments]
    inside = sum(max(0.0, last - first) for first, last in spans)
    count = sum(max(0.0, last - first) / r["seconds"] for (first, last), r in zip(spans, fragments, strict=True))
    slots = workers * (stop - start)

    def halves(what: str, rate: bool) -> tuple[float, float]:
        times = [sample.at for sample in sampler.samples]
        values = [getattr(sample, what) for sample in sampler.samples]
        edges = np.linspace(start, stop, 3)
        if rate:
            ends = np.interp(edges, times, values)
            return tuple(np.diff(ends) / np.diff(edges))  # type: ignore[return-value]
        inside = [[v for t, v in zip(times, values, strict=True) if a <= t <= b] for a, b in itertools.pairwise(edges)]
        return tuple(statistics.fmean(half) if half else float("nan") for half in inside)  # type: ignore[return-value]

    published = {record["version"]: at for at, record in records if record["kind"] == "learn"}
    starts: dict[int, list[float]] = defaultdict(list)
    for record in fragments:
        starts[record["weights_version"]].append(record["wall_time"])
    used = [version for version in sorted(starts) if 0 < version in published]
    by_key: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for key, asked, there in fetched:
        by_key[key].append((asked, there))
    first, last = sampler.samples[0], sampler.samples[max(1, begun - 1)]
    return Measured(
        workers=workers,
        rollouts=len(fragments),
        per_second=count / (stop - start),
        busy=inside / slots,
        slept=count * seconds / slots,
        driver=halves("driver", True),
        driver_rss=halves("driver_rss", False),
        scheduler=halves("scheduler", True),
        scheduler_rss=halves("scheduler_rss", False),
        hosts=halves("hosts", True),
        resting={
            who: (getattr(last, who) - getattr(first, who)) / (last.at - first.at) for who in ("scheduler", "driver")
        },
        apart=[b - a for a, b in itertools.pairwise(sorted(at for at in published.values() if start <= at <= stop))],
        first_start=[min(starts[version]) - published[version] for version in used],
        last_start=[max(starts[version]) - published[version] for version in used],
        fetches=[there - asked for _, asked, there in fetched],
        reached=[max(there for _, there in each) - min(asked for asked, _ in each) for each in by_key.values()],
        threads=sampler.threads,
    )


# -- tables -----------------------------------------------------------------------------------------------


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--workers", type=int, default=256)
    arguments.add_argument("--tasks", type=int, default=20_000)
    arguments.add_argument("--task-seconds", type=float, default=5.0)
    arguments.add_argument("--megabytes", type=float, default=10.0, help="of weights, published once a round")
    arguments.add_argument("--streams-per-worker", type=int, default=2)
    arguments.add_argument("--fewer-streams", type=int, default=1, help="a worker in a shorter run; 0 for no such run")
    arguments.add_argument("--fewer-rollouts", type=int, default=16, help="of each worker in it")
    arguments.add_argument("--processes", type=int, default=4, help="that simulate the workers")
    arguments.add_argument("--sizes", type=int, nargs="*", default=[32, 64, 128], help="workers of shorter runs beside")
    arguments.add_argument("--size-rollouts", type=int, default=12, help="of each worker in these")
    arguments.add_argument("--profile", action="store_true", help="cProfile of the driver; it is slower then")
    given = arguments.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))

    def run(workers: int, tasks: int, streams: int = given.streams_per_worker, profile: bool = False) -> Measured:
        found = measure(workers, tasks, given.task_seconds, given.megabytes, streams, given.processes, profile)
        print(f"{workers} workers, {streams} streams each: {found.per_second:.1f} tasks/s, busy {found.busy:.3f}")
        sys.stdout.flush()
        return found

    dask.config.set(SETTINGS)
    found = [run(workers, given.size_rollouts * workers) for workers in given.sizes]
    many = run(given.workers, given.tasks, profile=given.profile)
    found.append(many)
    slots = {given.streams_per_worker: many}
    if given.fewer_streams not in (0, given.streams_per_worker):
        slots[given.fewer_streams] = run(given.workers, given.fewer_rollouts * given.workers, given.fewer_streams)

    def half(values: tuple[float, float], unit: str) -> list[str]:
        first, second = values
        return [f"{first:.3g} {unit}", f"{second:.3g} {unit}", f"{second / first:.2f}"]

    show(
        f"{many.workers} workers, {many.rollouts:,} tasks of {given.task_seconds:g} s: {many.per_second:.1f} tasks/s",
        ["what", "first half", "second half", "second over first"],
        [
            ["driver: share of a core", *half(many.driver, "")],
            ["driver: RSS", *half(many.driver_rss, "MiB")],
            ["scheduler: share of a core", *half(many.scheduler, "")],
            ["scheduler: RSS", *half(many.scheduler_rss, "MiB")],
            ["simulated workers: cores", *half(many.hosts, "")],
            ["target: RSS and share of the driver flat", "", "", verdict(
                max(many.driver[1] / many.driver[0], many.driver_rss[1] / many.driver_rss[0]), 1.05, at_least=False
            )],
        ],
        packages=PACKAGES,
        note="The driver's CPU seconds by thread: "
        + ", ".join(f"{name} {value:.1f}" for name, value in sorted(many.threads.items(), key=lambda t: -t[1])[:6]),
    )  # fmt: skip
    show(
        f"Slots, and weights of {given.megabytes:g} MB at {many.workers} workers",
        ["value, or median / worst", *(f"{n} stream{'s' * (n > 1)} a worker" for n in slots)],
        [
            ["rollouts", *(f"{m.rollouts:,}" for m in slots.values())],
            ["busy share of the slots' time, by what fragments took", *(f"{m.busy:.3f}" for m in slots.values())],
            ["the same, by what their environments slept", *(f"{m.slept:.3f}" for m in slots.values())],
            ["versions used", *(f"{len(m.last_start)}" for m in slots.values())],
            ["s between two publications", *(spread(m.apart) for m in slots.values())],
            ["s from publication to the first rollout with it", *(spread(m.first_start) for m in slots.values())],
            ["s from publication to the last rollout with it", *(spread(m.last_start) for m in slots.values())],
            ["s from the first request to the last worker's having it", *(spread(m.reached) for m in slots.values())],
            ["s that one worker waits for it", *(spread(m.fetches, 3) for m in slots.values())],
            ["target: what environments slept", *(verdict(m.slept, 0.95) for m in slots.values())],
        ],
        packages=PACKAGES,
        note="Round r acts with version r - 1: by the schedule alone, with n streams a worker, the last rollout starts "
        "up to 2 n - 1 tasks' times after the publication. With two streams a worker fetches weights while it is at "
        "the task before; with one it has nothing else to do.",
    )  # fmt: skip
    rows = []
    for who in ("scheduler", "driver"):
        for size in found:
            share, resting = statistics.fmean(getattr(size, who)), size.resting[who]
            each = max(1e-9, share - resting) / size.per_second
            rows.append([
                who, f"{size.workers}", f"{size.rollouts:,}", f"{size.per_second:.1f}", f"{size.busy:.3f}",
                f"{resting:.3f}", f"{share:.3f}", f"{1000 * each:.2f}", f"{(FULL - resting) / each:.0f}",
            ])  # fmt: skip
    show(
        "Where one scheduler and one driver end",
        [
            "process", "workers", "rollouts", "rollouts/s", "slots busy", "share of a core at rest", "in the run",
            "ms a rollout", f"rollouts/s at {FULL:.0%} of a core",
        ],
        rows,
        packages=PACKAGES,
        note="CPU time of each process. At rest: workers are there, but no run; what a rollout takes comes on top. "
        "Simulated workers are in other processes and not counted.",
        width=130,
    )  # fmt: skip


if __name__ == "__main__":
    main()
