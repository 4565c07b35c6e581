"""Env steps per second of the whole pipeline over those of the bare loop in the same number of processes.

The bare loop is the same policy (network, exploration) over the same environments, twice: as a plain Python loop and
as Gymnasium's SyncVectorEnv; the faster one counts. It runs before and after the pipeline, so that a load from
outside meets both. The pipeline's rate is taken from the commit log, without the first and the last round.

Where others use the machine too, rates say little. So the processor's time of a step is compared as well, for the
pipeline of all its processes: driver and scheduler, learner, rollout workers.

    python tests/benchmarks/rollout_efficiency.py [--env ID] [--fragment-steps T] [--rounds R] [--workers W]
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import gymnasium
import numpy as np
import psutil
import torch
from _table import parser, show, verdict

import daskrl
from daskrl import clusters, seeding
from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.networks import initialise
from daskrl.config import Schedule
from daskrl.envs import source as sources

ALGORITHM = daskrl.DQN(
    double=False, replay_ratio=1e-6, window=1_000_000, epsilon_start=0.1, epsilon_end=0.1, learning_starts=1000
)


def bare_loop(kind: str, name: str, count: int, seconds: float, process: int, ready: Any, out: Any) -> None:
    torch.set_num_threads(1)
    source = sources.source(name)
    make = functools.partial(gymnasium.make, name, disable_env_checker=True)
    policy = initialise(ALGORITHM.policy(Setup(source.spec, Schedule())), seeding.generator(0, "initialise"))
    moment = Moment({}, np.random.default_rng(process))

    def act(observation: Any) -> Any:
        moment.observation = {"observation": observation}
        with torch.inference_mode():
            return ALGORITHM.act(policy, moment)

    steps = 0
    if kind == "SyncVectorEnv":
        vector = gymnasium.vector.SyncVectorEnv([make] * count, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
        observation, _ = vector.reset(seed=process)
        ready.wait()
        began, end = time.process_time(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            observation, *_ = vector.step(act(observation))
            steps += count
    else:
        made = [make() for _ in range(count)]
        observation = np.stack([env.reset(seed=100 * process + i)[0] for i, env in enumerate(made)])
        episode = 0
        ready.wait()
        began, end = time.process_time(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            action = act(observation)
            for i, env in enumerate(made):
                observation[i], _, terminated, truncated, _ = env.step(int(action[i]))
                if terminated or truncated:
                    episode += 1
                    observation[i], _ = env.reset(seed=episode)
            steps += count
    out.put((steps / seconds, (time.process_time() - began) / steps))


def bare(kind: str, name: str, count: int, seconds: float, processes: int) -> tuple[float, float]:
    """Env steps per second of all processes, and seconds of the processor for one."""
    context = multiprocessing.get_context("spawn")
    ready, out = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=bare_loop, args=(kind, name, count, seconds, i, ready, out)) for i in range(processes)
    ]
    for process in started:
        process.start()
    rates, costs = zip(*(out.get() for _ in started), strict=True)
    for process in started:
        process.join()
    return sum(rates), mean(costs)


def pipeline(name: str, count: int, steps: int, rounds: int, workers: int, streams: int) -> tuple[float, float, float]:
    """Env steps per second, seconds of the processor for one, and the median seconds of a rollout."""
    size = count * steps
    with tempfile.TemporaryDirectory() as directory, clusters.local(workers) as cluster, cluster.get_client() as client:
        run = daskrl.train(
            ALGORITHM, name, store=Path(directory) / "run", env_steps=rounds * streams * size, client=client,
            streams=streams, envs_per_stream=count, fragment_steps=steps, progress=False,
        )  # fmt: skip
        # Every round has one report; around the first and the last, not all workers are busy.
        spent = [(report.env_steps, processor_seconds()) for report in run][1:-1]
        records = list(run.store.records("fragment"))
    ends = sorted(record["wall_time"] + record["seconds"] for record in records)
    first, last = ends[streams - 1], ends[-streams]
    rate = (len(ends) - 2 * streams + 1) * size / (last - first)
    cost = (spent[-1][1] - spent[0][1]) / (spent[-1][0] - spent[0][0])
    return rate, cost, median(r["seconds"] for r in records)


def processor_seconds() -> float:
    """Of this process and all it started."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--env", default="CartPole-v1")
    arguments.add_argument("--envs-per-stream", type=int, default=8)
    arguments.add_argument("--fragment-steps", type=int, default=2048)
    arguments.add_argument("--streams", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--seconds", type=float, default=8, help="of each bare loop")
    arguments.add_argument("--repeats", type=int, default=2)
    given = arguments.parse_args()
    kinds, shape = ("Python loop", "SyncVectorEnv"), (given.env, given.envs_per_stream)
    loops: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    found = []
    for repeat in range(given.repeats + 1):
        for kind in kinds:
            loops[kind].append(bare(kind, *shape, given.seconds, given.workers))
        if repeat < given.repeats:
            found.append(pipeline(*shape, given.fragment_steps, given.rounds, given.workers, given.streams))
    rates, costs = ({kind: mean(one[i] for one in loops[kind]) for kind in kinds} for i in (0, 1))
    rate, cost, seconds = (mean(one[i] for one in found) for i in range(3))
    best, cheapest = max(rates.values()), min(costs.values())
    rows = [
        ["daskrl, whole pipeline", f"{rate:,.0f}", verdict(rate / best, 0.9), f"{cost * 1e6:.1f}",
         verdict(cheapest / cost, 0.9)],
        *([kind, f"{rates[kind]:,.0f}", f"{rate / rates[kind]:.2f}", f"{costs[kind] * 1e6:.1f}",
           f"{costs[kind] / cost:.2f}"] for kind in kinds),
    ]  # fmt: skip
    show(
        f"{given.env}: {given.workers} rollout workers, rollouts of {seconds:.2f} s",
        ["", "env steps/s", "daskrl over it", "processor's us a step", "over daskrl's"],
        rows,
        packages=("torch", "gymnasium", "distributed"),
    )


if __name__ == "__main__":
    main()
