"""Worker-seconds that a run takes on a pool that follows its learner, on a fixed one, and under Dask's own `adapt`.

In the first half of the time rollouts are the bottleneck, in the second half the learner is. Environments and the
learner sleep, and workers are threads of this process, so that many fit on any machine. The actions are random in the
first half and less and less so in the second, and the returns of training grow. All pools give the same bits, and
with them the same score after the same env step: it is reached when that step was committed.

    python tests/benchmarks/worker_seconds.py [--tables one quarter dask] [--workers N] [--fragment-seconds T]
        [--half-seconds ONE QUARTER DASK] [--score S]

Dask's own keeps one worker, as it looks at tasks that wait and there are none: it takes N times as long for the first
half, and is shown for a short run.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import gymnasium
import numpy as np
from _table import parser, show, verdict
from distributed import Client, Scheduler, SpecCluster, Worker
from elasticity import Commits

import daskrl
import daskrl.tasks.preload
from daskrl import clusters, networks
from daskrl.algorithms.base import Setup
from daskrl.pools.demand import HEADROOM
from daskrl.pools.workers import LOG_LENGTH, LOGGED, quiet

STEPS = 10  # of a fragment
NEWEST = 20  # training episodes whose mean return is the score
MARGIN = 1.1  # fragments take longer than their sleep
AHEAD = 3  # rounds: the last is committed that much before the run ends
MEMORY = Path("/dev/shm")  # stores lie here where it is: a slow disk would only hold threads up
POOLS = {"fixed": "fixed, all", "demand": "follows the learner", "dask": "Dask's adapt()"}
TABLES = ["one", "quarter", "dask"]


class Sleeping(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole in which so many steps take their time, all in the last of them: waking costs a thread more."""

    def __init__(self, seconds: float) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.seconds, self.steps = seconds, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps % STEPS == 0:
            time.sleep(self.seconds)
        return super().step(action)


@dataclass(frozen=True)
class SleepingDQN(daskrl.DQN):
    """DQN that takes ``seconds`` for every round after the first ``fast_rounds``, and acts at random in these."""

    fast_rounds: int = 0
    fast_steps: int = 0  # env steps of these rounds
    seconds: float = 0.0

    def epsilon(self, env_steps: int) -> float:
        return super().epsilon(max(0, env_steps - self.fast_steps))

    def learner(self, setup: Setup, random: np.random.Generator) -> Any:
        made = super().learner(setup, random)
        learn, count = made.learn, 0

        def slowed(random: np.random.Generator) -> Any:
            nonlocal count
            count += 1
            if count > self.fast_rounds:
                time.sleep(self.seconds)
            return learn(random)

        made.learn = slowed  # type: ignore[method-assign]
        return made


def pool(workers: int) -> SpecCluster:
    common = {"nthreads": 1, "dashboard": False, "memory_limit": 0}
    rollout = {"cls": Worker, "options": common}
    learner = {"cls": Worker, "options": {**common, "resources": {"learner": 1}}}
    return SpecCluster(
        workers=dict(enumerate([learner, *[rollout] * workers])), worker=rollout, silence_logs=40,
        scheduler={"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}},
    )  # fmt: skip


@dataclass(frozen=True)
class Spent:
    """Since a run began."""

    seconds: float
    rollout: float  # worker-seconds of rollout workers
    every: float  # the same with the learner's worker


@contextlib.contextmanager
def counted(cluster: SpecCluster) -> Iterator[list[tuple[float, float, float]]]:
    """The time, and the worker-seconds of rollout workers and of all workers up to then, while the context lasts."""
    began, stop = time.time(), threading.Event()
    samples = [(began, 0.0, 0.0)]

    def count() -> None:
        while not stop.wait(0.02):
            now, (last, rollout, every) = time.time(), samples[-1]
            there = len(cluster.scheduler.workers)  # type: ignore[union-attr]
            samples.append((now, rollout + max(0, there - 1) * (now - last), every + there * (now - last)))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Workload:
    workers: int  # and streams
    enough: int  # workers in the second half
    fragment: float  # seconds
    half: float  # seconds of the fixed pool
    ahead: int = AHEAD  # rounds beyond the two halves

    @property
    def learn(self) -> float:
        """Seconds that a round takes the learner in the second half."""
        return HEADROOM * self.workers / self.enough * self.fragment * MARGIN

    @property
    def fast_rounds(self) -> int:
        return round(self.half / (self.fragment * MARGIN))

    @property
    def rounds(self) -> int:
        return self.fast_rounds + max(1, round(self.half / self.learn)) + self.ahead

    @property
    def least(self) -> float:
        """Worker-seconds over the fixed pool's if workers came and went in no time."""
        return (1 + self.enough / self.workers) / 2


@dataclass(frozen=True)
class Measured:
    digest: str
    scores: list[float]  # after each round: mean return of the newest episodes
    committed: list[Spent]  # when a round was
    end: Spent

    def reached(self, score: float) -> int | None:
        """The round with which this score is first reached."""
        return next((round_ for round_, found in enumerate(self.scores) if found >= score), None)


def measure(kind: str, load: Workload) -> Measured:
    steps, slow = load.workers * STEPS, load.rounds - load.fast_rounds
    algorithm = SleepingDQN(
        hidden=(64,), n_step=5, learning_rate=2e-3, replay_ratio=8.0, target_update=50, epsilon_steps=slow * steps,
        fast_rounds=load.fast_rounds, fast_steps=load.fast_rounds * steps, seconds=load.learn,
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        pool(load.workers if kind == "fixed" else 1) as cluster,
    ):
        if kind == "demand":
            clusters.adapt(cluster, 1, load.workers, interval=0.5, patience=1.0)
        elif kind == "dask":
            cluster.adapt(minimum=2, maximum=load.workers + 1)
        with Client(cluster) as client, counted(cluster) as samples:
            run = daskrl.train(
                algorithm, lambda: Sleeping(load.fragment), store=f"{folder}/run", seed=0,
                env_steps=load.rounds * steps, streams=load.workers, envs_per_stream=1, fragment_steps=STEPS,
                client=client, recheck_every=0, checkpoint_every=10**6, weights_every=10**6, progress=False,
            ).wait()  # fmt: skip
            ended = time.time()
        fragments = sorted(Commits(run).fragments(), key=lambda each: int(each[1]["slot"]))
        digest = run.store.digest()

    def spent(at: float) -> Spent:
        times, rollout, every = np.array(samples).T
        return Spent(at - times[0], float(np.interp(at, times, rollout)), float(np.interp(at, times, every)))

    scores, committed, returns, last = [], [], [], 0.0
    for at, record in fragments:  # by round, and in a round by stream
        returns += [episode[1] for episode in record["episodes"]]
        last = max(last, at)
        if record["stream"] == load.workers - 1:
            scores.append(float(np.mean(returns[-NEWEST:])) if len(returns) >= NEWEST else -np.inf)
            committed.append(spent(last))
    return Measured(digest, scores, committed, spent(ended))


def compare(title: str, load: Workload, kinds: list[str], score: float | None = None, *, scored: bool = True) -> None:
    found = {kind: measure(kind, load) for kind in kinds}
    fixed = found["fixed"]
    assert len({each.digest for each in found.values()}) == 1

    def rows(until: str, spent: dict[str, Spent]) -> list[list[str]]:
        base = spent["fixed"]
        return [
            [
                POOLS[kind], until, f"{each.seconds:.0f}", f"{each.rollout:.0f}", f"{each.every:.0f}",
                f"{each.seconds / base.seconds:.2f}", f"{each.rollout / base.rollout:.2f}",
                f"{each.every / base.every:.2f}",
            ]
            for kind, each in spent.items()
        ]  # fmt: skip

    counts = {kind: each.end for kind, each in found.items()}
    table, note = rows("the end", counts), ""
    if scored:
        score = max(fixed.scores) if score is None else score
        reached = fixed.reached(score)
        if reached is not None:
            counts = {kind: each.committed[reached] for kind, each in found.items()}
            table += rows(f"{score:.1f}", counts)
        steps = load.workers * STEPS
        when = "not reached in" if reached is None else f"reached after {(reached + 1) * steps:,} of"
        note = (
            f"The score is the mean return of the newest {NEWEST} training episodes; {score:.1f} is {when} "
            f"{load.rounds * steps:,} env steps. "
        )
    if "demand" in counts:
        ratio = counts["demand"].rollout / counts["fixed"].rollout
        table.append([
            "target", table[-1][1], "", "", "",
            verdict(counts["demand"].seconds / counts["fixed"].seconds, 1.1, at_least=False),
            verdict(ratio, 0.6, at_least=False) if load.least < 0.6 else f"{ratio:.2f} (no pool: < {load.least:.2f})",
            "",
        ])  # fmt: skip
    show(
        f"{title}: {load.workers} streams of {load.fragment:g} s fragments, at most a worker each",
        [
            "pool", "counted to", "seconds", "worker-seconds", "with the learner's", "over the fixed pool's: seconds",
            "worker-seconds", "with the learner's",
        ],
        table,
        packages=("torch", "dask", "distributed"),
        note=f"{note}Rollouts are the bottleneck in the first half of the fixed pool's time, {load.half:g} s; in the "
        f"second the learner is, and {load.enough} of {load.workers} workers are enough: if workers came and went in "
        f"no time, {load.least:.2f} of the fixed pool's worker-seconds. All end with the same digest.",
        width=130,
    )  # fmt: skip


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    arguments.add_argument("--workers", type=int, default=12)
    arguments.add_argument("--fragment-seconds", type=float, default=0.3)
    arguments.add_argument(
        "--half-seconds", type=float, nargs=3, default=[100.0, 30.0, 6.0], metavar=("ONE", "QUARTER", "DASK"),
        help="of the fixed pool, in each table",
    )  # fmt: skip
    arguments.add_argument("--score", type=float, help="counted to; by default the highest of the run")
    given = arguments.parse_args()
    dask.config.set({LOG_LENGTH: LOGGED, **quiet()})  # as in daskrl.clusters
    networks.fingerprint = functools.cache(networks.fingerprint)  # joining: once in a process is enough
    networks.fingerprint("cpu")
    one, quarter, short = (
        Workload(given.workers, enough, given.fragment_seconds, half, ahead)
        for enough, half, ahead in zip(
            (1, max(1, given.workers // 4), 1), given.half_seconds, (AHEAD, AHEAD, 0), strict=True
        )
    )
    if "one" in given.tables:
        compare("The learner can use one worker", one, ["fixed", "demand"], given.score)
    if "quarter" in given.tables:
        compare("The learner can use a quarter of the workers", quarter, ["fixed", "demand"], given.score)
    if "dask" in given.tables:
        compare("Dask's own adapt(), a short run", short, ["fixed", "dask"], scored=False)


if __name__ == "__main__":
    main()
