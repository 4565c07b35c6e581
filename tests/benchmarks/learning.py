"""What an algorithm learns: seeds of one task, each evaluated greedily on 100 episodes.

    python tests/benchmarks/learning.py cartpole --seeds 5

Each task's settings stand in `TASKS`; the table names the hardware.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cyclopts
import numpy as np
from rich.console import Console
from rich.table import Table

import daskrl
from daskrl.algorithms import by_name

# Settings are those of RL Zoo where it has some; schedules are daskrl's defaults unless named.
TASKS: dict[str, dict[str, Any]] = {
    "cartpole": {
        "env": "CartPole-v1",
        "env_steps": 50_000,
        "target": 475,
        "algorithm": {"n_step": 3, "learning_rate_end": 1e-4, "learning_rate_updates": 24_000},
    },
    "minatar-breakout": {
        "env": "MinAtar/Breakout-v1",
        "env_steps": 200_000,
        "target": 5,
        "algorithm": {
            "batch_size": 32, "learning_rate": 2.5e-4, "window": 100_000, "replay_ratio": 8.0, "hidden": (128,),
            "learning_starts": 5000, "target_update": 250, "epsilon_steps": 100_000, "epsilon_end": 0.02,
        },
    },
    "lunarlander": {
        "env": "LunarLander-v3",
        "env_steps": 300_000,
        "target": 200,
        "algorithm": {
            "n_step": 3, "learning_rate": 6.3e-4, "batch_size": 128, "window": 150_000, "replay_ratio": 32.0,
            "target_update": 250, "epsilon_steps": 60_000, "epsilon_end": 0.05, "discount": 0.99,
        },
    },
    "ppo-cartpole": {
        "method": "ppo",
        "env": "CartPole-v1",
        "env_steps": 100_000,
        "target": 475,
        "algorithm": {
            "discount": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3, "anneal_steps": 100_000, "clip_anneal": True,
            "epochs": 20, "batch_size": 256,
        },
        "schedule": {"streams": 2, "envs_per_stream": 4, "fragment_steps": 32},
    },
    "impala-cartpole": {
        "method": "impala",
        "env": "CartPole-v1",
        "env_steps": 200_000,
        "target": 475,
        "algorithm": {},
        "schedule": {"streams": 4, "envs_per_stream": 8, "fragment_steps": 32},
    },
    "sac-pendulum": {
        "method": "sac",
        "env": "Pendulum-v1",
        "env_steps": 20_000,
        "target": -200,
        "algorithm": {"learning_rate": 1e-3, "batch_size": 128, "replay_ratio": 128, "learning_starts": 500},
        "schedule": {"streams": 1, "envs_per_stream": 4, "fragment_steps": 16},
    },
    "td3-pendulum": {
        "method": "td3",
        "env": "Pendulum-v1",
        "env_steps": 20_000,
        "target": -200,
        "algorithm": {"discount": 0.98, "batch_size": 128, "replay_ratio": 128, "learning_starts": 500},
        "schedule": {"streams": 1, "envs_per_stream": 4, "fragment_steps": 16},
    },
}  # fmt: skip


def main(
    task: str, *, seeds: int = 5, first_seed: int = 0, workers: int = 0, episodes: int = 100,
    store: Path | None = None, settings: str = "{}", env_steps: int | None = None,
) -> None:  # fmt: skip
    """Train and evaluate.

    Parameters
    ----------
    task
        One of the names in TASKS.
    seeds, first_seed
        How many, from which.
    workers
        Rollout workers; 0 is in-process. The result does not depend on it.
    episodes
        Greedy episodes of each evaluation.
    store
        Keep the runs in this directory.
    settings
        A Python dict of other settings of the algorithm, to try.
    env_steps
        Another budget.
    """
    chosen = TASKS[task]
    algorithm = by_name(chosen.get("method", "dqn"))(**{**chosen["algorithm"], **eval(settings)})
    table = Table(title=f"{chosen['env']}, {env_steps or chosen['env_steps']} env steps, {algorithm}")
    for column in ("seed", "mean", "median", "lowest", f">= {chosen['target']}", "seconds"):
        table.add_column(column)
    means = []
    with TemporaryDirectory() as temporary:
        for seed in range(first_seed, first_seed + seeds):
            began = time.perf_counter()
            run = daskrl.train(
                algorithm, chosen["env"], store=(store or Path(temporary)) / f"{task}-{seed}", seed=seed,
                env_steps=env_steps or chosen["env_steps"], overwrite=True, **chosen.get("schedule", {}),
            )  # fmt: skip
            if workers:
                from distributed import Client

                from daskrl import clusters

                with clusters.local(workers) as cluster, Client(cluster) as client:
                    run.client = client
                    run.wait()
            else:
                run.wait()
            result = daskrl.evaluate(run.store, episodes=episodes, seed=1)
            means.append(result.mean)
            row = [str(seed), f"{result.mean:.1f}", f"{result.median:.1f}", f"{min(result.returns):.1f}"]
            passed = "yes" if result.mean >= chosen["target"] else "no"
            table.add_row(*row, passed, f"{time.perf_counter() - began:.0f}")
            print(table.rows and " ".join([*row, passed]), flush=True)
    Console().print(table)
    reached = sum(mean >= chosen["target"] for mean in means)
    print(f"{reached} of {seeds} seeds reach {chosen['target']}; mean {np.mean(means):.1f}")
    print(f"hardware: {os.cpu_count()} cores, {_processor()}")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")


if __name__ == "__main__":
    cyclopts.run(main)
