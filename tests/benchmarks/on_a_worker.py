"""What an update takes on a worker over what it takes in one process: in both the same run, with the same bits.

`learner.py` times a learner by itself. A worker is another process: its memory, its threads and its other work are
Dask's. Runs in one process and with one rollout worker beside the learner's take turns; each round counts by its
task's time, reading its fragments and publishing included.

    python tests/benchmarks/on_a_worker.py [--rows DQN R2D2 ...] [--repeats R]
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from _table import parser, show
from distributed import Client

import daskrl
from daskrl import DQN, IMPALA, PPO, R2D2, SAC, Rainbow, clusters

FRAMES = "ALE/Pong-v5"
ROWS: dict[str, tuple[daskrl.Algorithm, str, int]] = {  # algorithm, environment, rounds
    "DQN": (DQN(learning_starts=256), "CartPole-v1", 40),
    "Rainbow": (Rainbow(learning_starts=256), "CartPole-v1", 15),
    "R2D2": (R2D2(learning_starts=256), "CartPole-v1", 15),
    "PPO": (PPO(), "CartPole-v1", 40),
    "IMPALA": (IMPALA(), "CartPole-v1", 40),
    "SAC": (SAC(learning_starts=256), "Pendulum-v1", 10),
    "DQN, frames": (DQN(learning_starts=256, batch_size=16, replay_ratio=4), FRAMES, 5),
    "PPO, frames": (PPO(), FRAMES, 5),
}
FIRST = 3  # rounds that are not counted


def seconds_of_an_update(name: str, client: Client | None) -> float:
    algorithm, env, rounds = ROWS[name]
    with tempfile.TemporaryDirectory() as store:
        run = daskrl.train(
            algorithm, env, store=store, env_steps=rounds * 256, streams=1, envs_per_stream=8, device="cpu",
            client=client, progress=False,
        ).wait()  # fmt: skip
        learned: list[dict[str, Any]] = [r for r in run.store.records("learn") if r["version"] >= FIRST]
    return statistics.median(record["seconds"] / record["updates"] for record in learned)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    arguments.add_argument("--repeats", type=int, default=3)
    given = arguments.parse_args()
    rows = []
    with clusters.local(1) as cluster, Client(cluster) as client:
        for name in given.rows:
            pairs = [
                (seconds_of_an_update(name, None), seconds_of_an_update(name, client)) for _ in range(given.repeats)
            ]
            ratio = statistics.median(there / here for here, there in pairs)
            here, there = (f"{1000 * min(times):.2f}" for times in zip(*pairs, strict=True))
            rows.append([name, here, there, f"{ratio:.2f}"])
    show(
        "Milliseconds of an update",
        ["", "in one process", "on a worker", "on a worker / in one process"],
        rows, packages=["torch", "distributed", "ale-py"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
