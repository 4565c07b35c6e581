"""A population against as many independent random settings, on two tasks.

    python tests/benchmarks/population.py [--members 8] [--rounds 10] [--interval 5120] [--study-seeds 5] [--workers 2]

Both have the same first settings and the same env steps: the independent runs are members of a population in which
nobody copies (``exploit=0``), so their settings, seeds and rounds are those of the population's founders. PPO's
learning rate and clip range are searched. A study's result is what a user would take from it: the greedy return, over
20 episodes, of the member that was best in the last round. That number is chosen as the largest, so both are flattered
alike. Printed is each study seed's, and the mean of the paired differences.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from _table import hardware
from distributed import Client, LocalCluster

import daskrl
from daskrl.study import Greedy, Population, Range, Study

TASKS = ("CartPole-v1", "Acrobot-v1")
SPACE = {"learning_rate": Range(1e-5, 3e-2, log=True), "clip": Range(0.05, 0.5)}
SHAPE = {"streams": 2, "envs_per_stream": 4, "fragment_steps": 64}


def best(path: Path, task: str, exploit: float, study_seed: int, given: argparse.Namespace, client: Client) -> float:
    """The score of the best member of the last round."""
    study = Study(
        path, algorithm=daskrl.PPO(), env=task, space=SPACE, seeds=1, env_steps=given.rounds * given.interval,
        score=Greedy(20), study_seed=study_seed, **SHAPE,
        search=Population(members=given.members, interval=given.interval, exploit=exploit),
    )  # fmt: skip
    lineage = study.run(client, progress=False).lineage()
    shutil.rmtree(path)
    return float(lineage[lineage["round"] == given.rounds - 1].score.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--interval", type=int, default=5120, help="env steps of a round")
    parser.add_argument("--study-seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print(hardware())
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=given.workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for task in TASKS:
            differences = []
            for study_seed in range(given.study_seeds):
                path = Path(folder) / f"{task}-{study_seed}"
                population = best(path, task, 0.2, study_seed, given, client)
                independent = best(path, task, 0.0, study_seed, given, client)
                differences.append(population - independent)
                print(
                    f"{task}, study seed {study_seed}: population {population:.1f}, independent {independent:.1f}",
                    flush=True,
                )
            spread = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
            print(
                f"{task}: population minus independent {statistics.mean(differences):+.1f} +- {spread:.1f} (standard "
                f"error), better on {sum(one > 0 for one in differences)} and worse on "
                f"{sum(one < 0 for one in differences)} of {len(differences)} study seeds",
                flush=True,
            )
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
