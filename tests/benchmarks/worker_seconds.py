"""Worker-seconds that a run takes on a pool that follows its learner, on a fixed one, and under Dask's own `adapt`.

In the first half of the time rollouts are the bottleneck, in the second half the learner is. Environments and the
learner sleep, and workers are threads of this process, so that many fit on any machine. The runs' results are the
same bits, whatever score they are wanted for: all three are counted to the same env step.

    python tests/benchmarks/worker_seconds.py [--workers N] [--fragment-seconds T] [--half-seconds H] [--pools ...]

Dask's own keeps one worker, as it looks at tasks that wait and there are none: it takes N times as long.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from _table import parser, show
from distributed import Client, Scheduler, SpecCluster, Worker

import daskrl
from daskrl import clusters
from daskrl.algorithms.base import Setup
from daskrl.demand import HEADROOM

STEPS = 10  # of a fragment
POOLS = {"fixed": "fixed, all", "demand": "follows the learner", "dask": "Dask's adapt()"}


class Sleeping(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole whose every step takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.seconds = seconds

    def step(self, action: Any) -> Any:
        time.sleep(self.seconds)
        return super().step(action)


@dataclass(frozen=True)
class SleepingDQN(daskrl.DQN):
    """DQN that takes ``seconds`` for every round after the first ``fast_rounds``."""

    fast_rounds: int = 0
    seconds: float = 0.0

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


@contextlib.contextmanager
def counted(cluster: SpecCluster) -> Iterator[list[float]]:
    """Worker-seconds of rollout workers while the context lasts."""
    total, stop = [0.0], threading.Event()

    def count() -> None:
        last = time.perf_counter()
        while not stop.wait(0.02):
            now = time.perf_counter()
            total[0] += (len(cluster.scheduler.workers) - 1) * (now - last)  # type: ignore[union-attr]
            last = now

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield total
    finally:
        stop.set()
        thread.join()


def measure(kind: str, workers: int, fragment: float, half: float) -> tuple[float, float, str]:
    """Seconds, worker-seconds, and the digest."""
    fast, slow = round(half / fragment), HEADROOM * workers * fragment * 1.02
    rounds = fast + round(half / slow)
    algorithm = SleepingDQN(hidden=(8,), batch_size=8, replay_ratio=1.0, fast_rounds=fast, seconds=slow)
    with tempfile.TemporaryDirectory() as folder, pool(workers if kind == "fixed" else 1) as cluster:
        if kind == "demand":
            clusters.adapt(cluster, 1, workers, interval=0.5, patience=2.0)
        elif kind == "dask":
            cluster.adapt(minimum=2, maximum=workers + 1)
        with Client(cluster) as client, counted(cluster) as total:
            began = time.perf_counter()
            run = daskrl.train(
                algorithm, lambda: Sleeping(fragment / STEPS), store=f"{folder}/run", seed=0,
                env_steps=rounds * workers * STEPS, streams=workers, envs_per_stream=1, fragment_steps=STEPS,
                client=client, recheck_every=0, checkpoint_every=100, weights_every=10**6, progress=False,
            ).wait()  # fmt: skip
            seconds = time.perf_counter() - began
        return seconds, total[0], run.store.digest()


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--workers", type=int, default=16)
    arguments.add_argument("--fragment-seconds", type=float, default=0.4)
    arguments.add_argument("--half-seconds", type=float, default=150.0)
    arguments.add_argument("--pools", nargs="+", choices=list(POOLS), default=["fixed", "demand"])
    given = arguments.parse_args()
    found = {
        kind: measure(kind, given.workers, given.fragment_seconds, given.half_seconds)
        for kind in dict.fromkeys(["fixed", *given.pools])
    }
    assert len({digest for _, _, digest in found.values()}) == 1
    fixed_seconds, fixed_work, _ = found["fixed"]
    show(
        f"One run, {given.workers} streams of {given.fragment_seconds:g} s fragments, at most a worker each",
        ["pool", "seconds", "worker-seconds", "of the fixed pool's time", "worker-seconds"],
        [
            [POOLS[kind], f"{seconds:.0f}", f"{work:.0f}", f"{seconds / fixed_seconds:.2f}", f"{work / fixed_work:.2f}"]
            for kind, (seconds, work, _) in found.items()
        ],
        note="Rollouts are the bottleneck in the first half of the fixed pool's time, the learner in the second. All "
        "end with the same digest.",
    )


if __name__ == "__main__":
    main()
