"""A learner's updates per second on a GPU, and the share of time in which it waits for data.

DQN (double; the convolutions of Mnih et al. 2015 and a layer of 512) on batches of 84 x 84 frames, four stacked, from a
window on the device. All with torch's deterministic algorithms, as daskrl learns.

- learner: rounds are appended to the window and learned from, as in a run: drawing, gathering and all else counts. The
  next round is staged in a thread meanwhile, as it is in a run.
- updates alone: the same learner's updates on one batch that never changes.
- bare PyTorch: the same updates as one writes them by hand, on one batch; also without deterministic algorithms.

With ``--env`` a run follows: rollout workers, a learner that takes what they commit, and replay on disk. What it does
not spend in updates (by their time alone) it waits for data, in whatever way: its task reads, appends and publishes,
and between two tasks it waits for rollouts, whose own time stands beside.

    python tests/benchmarks/gpu.py [--device cuda] [--env ALE/Pong-v5 --workers 12]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from _table import interleaved, parser, show, verdict
from distributed import Client
from gymnasium import spaces
from learner import ROWS, ours, prepared, q_learning, rounds

import daskrl
from daskrl import DQN, clusters
from daskrl.algorithms.base import Setup
from daskrl.algorithms.replay import ReplayLearner
from daskrl.arithmetic import pinned
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.replay.window import Batch

HOW: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compiled": True},
    "CUDA graphs": {"cuda_graphs": True},
    "compiled, CUDA graphs": {"compiled": True, "cuda_graphs": True},
    "bfloat16, compiled, CUDA graphs": {"precision": "bfloat16", "compiled": True, "cuda_graphs": True},
}
UPDATES = 64  # in one call


def algorithm(batch_size: int, window: int, replay_ratio: float = 32.0, **how: Any) -> DQN:
    return DQN(
        hidden=(512,), batch_size=batch_size, window=window, learning_starts=0, target_update=1000, learning_rate=1e-4,
        epsilon_steps=100_000, replay_ratio=replay_ratio, **how,
    )  # fmt: skip


@contextlib.contextmanager
def not_deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def one_batch(learner: ReplayLearner, batch: Batch) -> Iterator[None]:
    """Under it a learner neither draws nor gathers: every update is from one batch."""
    learner.batches = lambda updates: itertools.repeat((batch.positions, None, batch), updates)
    try:
        yield
    finally:
        del learner.batches


def updates_per_second(name: str, batch_size: int, window: int, device: str, repeats: int) -> dict[str, float]:
    """Of each candidate."""
    random, how = np.random.default_rng(0), HOW[name]
    schedule = Schedule(streams=8, envs_per_stream=8, fragment_steps=32)
    setup = Setup(spec_of(spaces.Box(0, 255, (84, 84), np.uint8), spaces.Discrete(6)), schedule, 4, device)
    dqn = algorithm(batch_size, window, UPDATES * batch_size / schedule.round_steps, **how)
    learner = dqn.learner(setup, random)
    following = itertools.cycle(rounds(dqn, setup, 8 * schedule.round_steps, random))
    for _ in range(window // schedule.round_steps):
        learner.append(next(following))
    batch = learner.gather(*learner.sampler.draw(learner.items, batch_size, random, 0.4))
    learner.batch = batch  # the memory it gathers into
    loop = q_learning(dqn, learner, batch, random)

    reader = ThreadPoolExecutor(1)
    ahead = [reader.submit(learner.stage, next(following))]

    def learn() -> None:
        learner.append(ahead.pop().result())
        ahead.append(reader.submit(learner.stage, next(following)))
        learner.learn(random)

    def alone() -> None:
        with one_batch(learner, batch):
            learner.learn(random)

    def by_hand() -> None:
        with learner.precision():
            next(loop)

    graph = torch.cuda.CUDAGraph() if dqn.cuda_graphs and device == "cuda" else None
    if graph is not None:
        for _ in range(3):
            by_hand()
        with torch.cuda.graph(graph):
            by_hand()

    def bare() -> None:
        for _ in range(UPDATES):
            by_hand() if graph is None else graph.replay()

    def free() -> None:
        with not_deterministic():
            bare()

    calls: dict[str, Callable[[], None]] = {"learner": learn, "alone": alone, "bare": bare}
    if not how:  # what is compiled or recorded stays as it was
        calls["free"] = free

    def finished(call: Callable[[], None]) -> Callable[[], None]:
        def timed() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        return timed

    timed = {who: finished(call) for who, call in calls.items()}
    for call in timed.values():  # compile, record
        call()
    return {who: UPDATES / seconds for who, seconds in interleaved(timed, rounds=repeats).items()}


def vectors(name: str, device: str, repeats: int) -> list[str]:
    """Updates per second of an algorithm on vectors, by default and in CUDA graphs."""
    random, schedule = np.random.default_rng(0), Schedule(streams=8, envs_per_stream=4, fragment_steps=32)
    box = name in ("SAC", "TD3")
    action: spaces.Space[Any] = spaces.Box(-1, 1, (6,)) if box else spaces.Discrete(2)
    setup = Setup(spec_of(spaces.Box(-1, 1, (17 if box else 4,)), action), schedule, device=device)
    kind, _ = prepared(ROWS[name][0], 256, schedule)
    learners = [ours(replace(kind, cuda_graphs=graphs), setup, random) for graphs in (False, True)]
    (eager, _, learn), (_, _, record) = learners
    learn()
    made = eager.updates  # in one call
    for _ in range(8):
        record()
    calls = {how: learn for how, (*_, learn) in zip(("eager", "graphs"), learners, strict=True)}
    rate = {how: made / seconds for how, seconds in interleaved(calls, rounds=repeats).items()}
    return [name, f"{rate['eager']:,.0f}", f"{rate['graphs']:,.0f}", f"{rate['graphs'] / rate['eager']:.1f}"]


def run(how: str, alone: float, given: argparse.Namespace) -> list[str]:
    """A run on this machine; ``alone`` is how many updates a second its learner makes when all data are there."""
    learns = algorithm(given.batch, given.window, **HOW[how])
    began: daskrl.Report | None = None
    with clusters.local(given.workers) as cluster, Client(cluster) as client, tempfile.TemporaryDirectory() as store:
        made = daskrl.train(
            learns, given.env, store=store, env_steps=given.env_steps, seed=0, frame_stack=4, streams=given.workers,
            envs_per_stream=8, fragment_steps=32, client=client, device=given.device, progress=False,
        )  # fmt: skip
        for report in made:
            if began is None and report.env_steps >= given.env_steps // 3:
                began = report
        parts = spent(made.store, alone)
    assert began is not None
    seconds = report.seconds - began.seconds
    rate = (report.learner_updates - began.learner_updates) / seconds
    steps = (report.env_steps - began.env_steps) / seconds
    share = verdict(1 - rate / alone, 0.05, at_least=False)
    return [how, f"{steps:,.0f}", f"{rate:,.0f}", f"{alone:,.0f}", share, *parts]


def spent(store: daskrl.Store, alone: float) -> list[str]:
    """Seconds of a round in the last two thirds of a run: in the learner's task, in its updates alone, in a rollout."""
    third = store.config.schedule.rounds(store.budget()["env_steps"]) // 3
    learned = [record for record in store.records("learn") if record["version"] > third]
    rolled = [record for record in store.fragments() if record["round"] >= third]
    task, rollout = (statistics.median(record["seconds"] for record in records) for records in (learned, rolled))
    updates = statistics.median(record["updates"] for record in learned)
    return [f"{task:.3f}", f"{updates / alone:.3f}", f"{rollout:.3f}"]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--how", nargs="+", default=list(HOW), choices=list(HOW))
    names = ["DQN", "DQN prioritised", "C51", "QR-DQN", "Rainbow", "SAC", "TD3"]
    arguments.add_argument("--vectors", nargs="*", default=names, choices=names)
    arguments.add_argument("--batch", type=int, default=256)
    arguments.add_argument("--window", type=int, default=100_000)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--env", help="also carry out a run, e.g. ALE/Pong-v5")
    arguments.add_argument("--workers", type=int, default=12)
    arguments.add_argument("--env-steps", type=int, default=150_000)
    given = arguments.parse_args()
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    rows, runs = [], []
    for how in given.how:
        with pinned(device=given.device):
            rate = updates_per_second(how, given.batch, given.window, given.device, given.rounds)
        rows.append([
            how, *(f"{rate[who]:,.0f}" if who in rate else "" for who in ("learner", "alone", "bare", "free")),
            verdict(rate["learner"] / rate["bare"], 0.9), f"{1 - rate['learner'] / rate['alone']:.1%}",
        ])  # fmt: skip
        if given.env:
            runs.append(run(how, rate["alone"], given))
    show(
        f"Updates per second, batches of {given.batch}, {name}",
        ["", "learner", "updates alone", "bare PyTorch", "not deterministic", "learner / bare", "data"],
        rows, packages=["torch"], width=130,
    )  # fmt: skip
    if runs:
        show(
            f"A run on {given.env}, {given.workers} workers, {name}",
            [
                "", "transitions/s", "updates/s", "updates alone", "share of time waiting for data",
                "s a round: learner's task", "its updates", "a rollout",
            ],
            runs, packages=["torch", "ale-py"], width=160,
        )  # fmt: skip
    with pinned(device=given.device):
        of_vectors = [vectors(which, given.device, given.rounds) for which in given.vectors]
    show(
        f"Updates per second of whole learners on vectors, batches of 256, {name}",
        ["", "eager", "CUDA graphs", "ratio"],
        of_vectors, packages=["torch"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
