"""What ASHA needs of a grid's env steps, and the interquartile mean of the setting that each finds.

Both studies try the same eight settings of DQN on CartPole-v1 from the same seeds; a run is judged by its mean return
over training. Winners are compared by their interquartile means over seeds at all env steps, which a run that waited at
a rung has bit for bit as one that did not.

    python tests/benchmarks/asha.py [--seeds N] [--env-steps K] [--workers W]
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from _table import parser, show, verdict

import daskrl
from daskrl.study import ASHA, Study, SuccessiveHalving
from daskrl.study.statistics import iqm

SHARE = 40.0  # percent of the grid's env steps
SPACE = {"learning_rate": [3e-5, 1e-4, 3e-4, 1e-3], "n_step": [1, 3]}


def best(study: Study) -> tuple[int, float, int]:
    """The setting with the highest interquartile mean at all env steps, that, and the env steps of all runs."""
    table = study.table()
    whole = table[table.env_steps == study.definition.env_steps]
    means = {int(number): float(iqm(rows.score.to_numpy())) for number, rows in whole.groupby("setting")}
    found = max(means, key=lambda number: means[number])
    return found, means[found], int(table.env_steps.sum())


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--env-steps", type=int, default=6000)
    options.add_argument("--workers", type=int, default=0, help="of a cluster on this machine; 0: in this process")
    given = options.parse_args()
    rungs = (given.env_steps // 5, given.env_steps // 2)
    searches: dict[str, Any] = {
        "grid": None,
        "ASHA": ASHA(rungs=rungs, reduction=4, width=8),
        "successive halving": SuccessiveHalving(rungs=rungs, reduction=4, width=8),
    }
    found: dict[str, tuple[int, float, int]] = {}
    rows = []
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        client = None
        if given.workers:
            from distributed import Client, LocalCluster

            cluster = stack.enter_context(LocalCluster(n_workers=given.workers, threads_per_worker=1))
            client = stack.enter_context(Client(cluster))
        for name, search in searches.items():
            began = time.perf_counter()
            study = Study(
                Path(made) / name, algorithm=daskrl.DQN(learning_starts=500), env="CartPole-v1", space=SPACE,
                seeds=given.seeds, env_steps=given.env_steps, score="auc", search=search, streams=2, envs_per_stream=2,
                fragment_steps=16,  # rounds of 64: with the 1,024 of `train` all settings score the same at a rung
            ).run(client, progress=False)  # fmt: skip
            found[name] = best(study)
            seconds = time.perf_counter() - began
            number, mean, steps = found[name]
            share = 100 * steps / found["grid"][2]
            rows.append([name, f"{number}", f"{mean:.2f}", f"{steps:,}", f"{share:.1f} %", f"{seconds:.0f}"])
            print(name, rows[-1], flush=True)
    show(
        f"8 settings x {given.seeds} seeds x {given.env_steps:,} env steps, rungs {rungs}",
        ["search", "best setting", "its IQM", "env steps", "of the grid's", "seconds"],
        rows,
    )
    for name in ("ASHA", "successive halving"):
        reached = found[name][1] >= found["grid"][1]
        share = 100 * found[name][2] / found["grid"][2]
        said = verdict(share, SHARE, at_least=False) if reached else "missed: another setting"
        print(
            f"{name}: the grid's best IQM {'reached' if reached else 'not reached'}, {share:.1f} % of its steps, {said}"
        )


if __name__ == "__main__":
    main()
