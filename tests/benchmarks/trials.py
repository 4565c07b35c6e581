"""What a study adds to its runs: 10,000 trials that do nothing, and opening the finished study.

    python tests/benchmarks/trials.py [--trials 10000] [--workers 2]

The study is a real one (1,000 settings of DQN, 10 seeds each), on real workers; only what a task does is left out: it
gives back a score at once. So the time is that of deciding, checking each setting, sending the task, and committing its
result. Then a new process opens the study and makes its table.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _table import parser, show, verdict

OPEN = """
import sys, time
import pandas
from daskrl.study.log import StudyLog
from daskrl.study.table import table
began = time.perf_counter()
log = StudyLog.open(sys.argv[1])
opened = time.perf_counter()
rows = table(log)
made = time.perf_counter()
assert (rows.state == "finished").all() and len(rows) == int(sys.argv[2])
print(opened - began, made - opened)
"""


def nothing(job: Any) -> dict[str, Any]:
    """In the place of a run."""
    record = {"kind": "trial", "trial": job.trial, "env_steps": job.env_steps, "score": float(job.seed)}
    return {**record, "digest": "0" * 64, "seconds": 0.0, "worker": "nothing"}


def main() -> None:
    given = parser(__doc__)
    given.add_argument("--trials", type=int, default=10_000)
    given.add_argument("--workers", type=int, default=2)
    options = given.parse_args()

    from distributed import Client, LocalCluster

    import daskrl
    from daskrl.study import executors

    executors.carry_out = nothing
    rates = [1e-5 * (1 + place) for place in range(options.trials // 10)]
    with (
        tempfile.TemporaryDirectory() as directory,
        LocalCluster(n_workers=options.workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        study = daskrl.Study(
            Path(directory) / "study", algorithm=daskrl.DQN, env="CartPole-v1", space={"learning_rate": rates},
            seeds=10, env_steps=6000,
        )  # fmt: skip
        began = time.perf_counter()
        study.run(client, progress=False)
        seconds = time.perf_counter() - began
        files = sum(1 for path in (Path(directory) / "study").rglob("*") if path.is_file())
        call = [sys.executable, "-c", OPEN, str(Path(directory) / "study"), str(options.trials)]
        opening, table = map(float, subprocess.run(call, capture_output=True, text=True, check=True).stdout.split())
    each = 1000 * seconds / options.trials
    rows = [
        ["milliseconds for each trial", verdict(each, 25, at_least=False)],
        ["files for each trial", verdict(files / options.trials, 1, at_least=False)],
        ["opening the study, s", verdict(opening, 2, at_least=False)],
        ["its table, s", verdict(table, 1, at_least=False)],
    ]
    show(f"{options.trials:,} trials that do nothing, {options.workers} workers", ["", "measured"], rows)


if __name__ == "__main__":
    main()
