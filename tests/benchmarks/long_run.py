"""Memory of the driver and tasks on the scheduler over a long run of tiny rollouts on a local cluster.

The driver's process holds the scheduler as well, so a leak in either shows. The slope is taken over the second half:
Dask's own logs (events, transitions) are rings that fill in the first.

    python tests/benchmarks/long_run.py [--rollouts N] [--workers W]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from _table import parser, show, verdict

import daskrl
from daskrl import clusters


def counts(dask_scheduler: Any) -> dict[str, int]:
    topics = getattr(dask_scheduler, "_broker", None)
    logged = sum(len(topic.events) for topic in topics._topics.values()) if topics is not None else -1
    return {
        "tasks": len(dask_scheduler.tasks),
        "prefixes": len(dask_scheduler.task_prefixes),
        "groups": len(dask_scheduler.task_groups),
        "transitions": len(dask_scheduler.transition_log),
        "events": logged,
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rollouts", type=int, default=20_000)
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--every", type=int, default=1000, help="rollouts between two samples")
    given = arguments.parse_args()
    streams, steps = 8, 4
    process = psutil.Process()
    samples: list[tuple[int, float, float, dict[str, int]]] = []
    algorithm = daskrl.DQN(hidden=(16,), batch_size=8, replay_ratio=0.25, learning_starts=100, window=5000)
    with tempfile.TemporaryDirectory() as directory, clusters.local(given.workers) as cluster:
        client = cluster.get_client()
        run = daskrl.train(
            algorithm, "CartPole-v1", store=Path(directory) / "run", env_steps=given.rollouts * steps, client=client,
            streams=streams, envs_per_stream=1, fragment_steps=steps, progress=False,
        )  # fmt: skip
        began, following = time.monotonic(), 0
        for report in run:
            rollouts = report.env_steps // steps
            if rollouts >= following:
                following += given.every
                found = client.run_on_scheduler(counts)
                samples.append((rollouts, time.monotonic() - began, process.memory_info().rss / 2**20, found))
                print("{:,} rollouts, {:.0f} s, {:.1f} MiB".format(*samples[-1]), flush=True)
        client.close()
    half = samples[len(samples) // 2 :]
    per_rollout = np.polyfit([s[0] for s in half], [s[2] for s in half], 1)[0] * 2**20
    growth = (half[-1][2] - half[0][2]) / half[0][2]
    rows = [[f"{n:,}", f"{t:.0f}", f"{rss:.1f}", *(f"{value:,}" for value in c.values())] for n, t, rss, c in samples]
    show(
        f"{given.rollouts:,} rollouts of {steps} steps, {given.workers} workers: driver and scheduler in one process",
        ["rollouts", "s", "RSS MiB", *samples[0][3]],
        rows,
        packages=("dask", "distributed"),
        note=f"Second half: {per_rollout:,.0f} bytes a rollout, {100 * growth:.1f} % in all. "
        f"Tasks at most {max(s[3]['tasks'] for s in samples)}: "
        + verdict(max(s[3]["tasks"] for s in samples), 64, at_least=False),
    )


if __name__ == "__main__":
    main()
