"""Env steps per second of the whole pipeline over those of the bare loop in the same number of processes.

The bare loop is the same policy (network, exploration) over the same environments, twice: as a plain Python loop and
as Gymnasium's SyncVectorEnv; the faster one counts. It runs before and after the pipeline, so that a load from
outside meets both. The pipeline's rate is taken from the commit log, without the first and the last round.

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
import torch
from _table import interleaved, parser, show, verdict

import daskrl
from daskrl import clusters, envs, seeding
from daskrl.algorithms.base import Moment, Setup
from daskrl.config import Schedule
from daskrl.networks import initialise

ALGORITHM = daskrl.DQN(
    double=False, replay_ratio=1e-6, window=1_000_000, epsilon_start=0.1, epsilon_end=0.1, learning_starts=1000
)


def bare_loop(kind: str, name: str, count: int, seconds: float, process: int, ready: Any, out: Any) -> None:
    torch.set_num_threads(1)
    source = envs.source(name)
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
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            observation, *_ = vector.step(act(observation))
            steps += count
    else:
        made = [make() for _ in range(count)]
        observation = np.stack([env.reset(seed=100 * process + i)[0] for i, env in enumerate(made)])
        episode = 0
        ready.wait()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            action = act(observation)
            for i, env in enumerate(made):
                observation[i], _, terminated, truncated, _ = env.step(int(action[i]))
                if terminated or truncated:
                    episode += 1
                    observation[i], _ = env.reset(seed=episode)
            steps += count
    out.put(steps / seconds)


def bare(kind: str, name: str, count: int, seconds: float, processes: int) -> float:
    context = multiprocessing.get_context("spawn")
    ready, out = context.Barrier(processes), context.Queue()
    started = [
        context.Process(target=bare_loop, args=(kind, name, count, seconds, i, ready, out)) for i in range(processes)
    ]
    for process in started:
        process.start()
    rates = [out.get() for _ in started]
    for process in started:
        process.join()
    return sum(rates)


def pipeline(name: str, count: int, steps: int, rounds: int, workers: int, streams: int) -> tuple[float, float, float]:
    """Env steps per second, median seconds of a rollout, and the share of time that workers spent in rollouts."""
    size = count * steps
    with tempfile.TemporaryDirectory() as directory, clusters.local(workers) as cluster, cluster.get_client() as client:
        run = daskrl.train(
            ALGORITHM, name, store=Path(directory) / "run", env_steps=rounds * streams * size, client=client,
            streams=streams, envs_per_stream=count, fragment_steps=steps, progress=False,
        )  # fmt: skip
        run.wait()
        records = list(run.store.records("fragment"))
    ends = sorted(record["wall_time"] + record["seconds"] for record in records)
    first, last = ends[streams - 1], ends[-streams]
    inside = sum(
        min(r["wall_time"] + r["seconds"], last) - max(r["wall_time"], first)
        for r in records
        if r["wall_time"] < last and r["wall_time"] + r["seconds"] > first
    )
    rate = (len(ends) - 2 * streams + 1) * size / (last - first)
    return rate, median(r["seconds"] for r in records), inside / (workers * (last - first))


def on_one_core(name: str, count: int, steps: int = 256) -> float:
    """Processor's time of the bare Python loop over that of the same steps as a stream takes them, in one process.

    Load from outside hardly touches it. Times the share that workers are in rollouts, it estimates the efficiency of
    a machine with nothing else to do.
    """
    torch.set_num_threads(1)
    source = envs.source(name)
    policy = initialise(ALGORITHM.policy(Setup(source.spec, Schedule())), seeding.generator(0, "initialise"))
    moment = Moment({}, np.random.default_rng(0))

    def act(observation: Any) -> Any:
        moment.observation = {"observation": observation}
        with torch.inference_mode():
            return ALGORITHM.act(policy, moment)

    made = [gymnasium.make(name, disable_env_checker=True) for _ in range(count)]
    observation = np.stack([env.reset(seed=i)[0] for i, env in enumerate(made)])
    seeds = iter(range(100, 10**9))

    def loop() -> None:
        for _ in range(steps):
            action = act(observation)
            for i, env in enumerate(made):
                observation[i], _, terminated, truncated, _ = env.step(int(action[i]))
                if terminated or truncated:
                    observation[i], _ = env.reset(seed=next(seeds))

    stream = envs.Stream.make(source.factory, source.spec, seed=0, index=0, count=count, frame_stack=1, episode=None)

    def ours() -> None:
        stream.rollout(lambda seen, state, t: (act(seen["observation"]), {}), steps)

    found = interleaved({"loop": loop, "ours": ours}, rounds=7, seconds=1, clock=time.process_time)
    return found["loop"] / found["ours"]


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
    kinds = ("Python loop", "SyncVectorEnv")
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    found = []
    for repeat in range(given.repeats + 1):
        for kind in kinds:
            rates[kind].append(bare(kind, given.env, given.envs_per_stream, given.seconds, given.workers))
        if repeat < given.repeats:
            found.append(
                pipeline(
                    given.env, given.envs_per_stream, given.fragment_steps, given.rounds, given.workers, given.streams
                )
            )
    rate = mean(one[0] for one in found)
    best = max(kinds, key=lambda kind: mean(rates[kind]))
    busy, core = mean(one[2] for one in found), on_one_core(given.env, given.envs_per_stream)
    rows = [
        ["daskrl, whole pipeline", f"{rate:,.0f}", verdict(rate / mean(rates[best]), 0.9)],
        *([kind, f"{mean(rates[kind]):,.0f}", f"{rate / mean(rates[kind]):.2f}"] for kind in kinds),
    ]
    show(
        f"{given.env}: {given.workers} rollout workers, rollouts of {median(one[1] for one in found):.2f} s",
        ["", "env steps/s", "daskrl over it"],
        rows,
        packages=("torch", "gymnasium", "distributed"),
        note=f"Workers were in rollouts {busy:.2f} of the time; the bare loop takes {core:.2f} of a stream's processor "
        f"time: {busy * core:.2f} on a machine with nothing else to do. A ratio above 1 only says that others used it.",
    )


if __name__ == "__main__":
    main()
