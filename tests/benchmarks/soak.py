"""One run with hundreds of SIGKILLs on the way, compared with the same run in one process.

A small DQN on CartPole on a local cluster. The kills come at random versions of the weights, of the learner and of
rollout workers, all from one seed; nannies start what was killed again. Ends with exit code 1 where the promise is
broken.

    python tests/benchmarks/soak.py [--kills N] [--seed S] [--versions V] [--workers W] [--learner-share P]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from _table import parser, show
from distributed import Client

import daskrl
from daskrl import clusters
from daskrl.testing import chaos, plan_of_kills

SHAPE: dict[str, Any] = {"streams": 4, "envs_per_stream": 2, "fragment_steps": 32}
ROUND = 4 * 2 * 32


def start(store: Path, versions: int, seed: int, client: Client | None) -> daskrl.Run:
    algorithm = daskrl.DQN(
        hidden=(64,), n_step=3, priority_alpha=0.6, batch_size=32, replay_ratio=2.0, learning_starts=1000,
        window=20_000, target_update=100,
    )  # fmt: skip
    return daskrl.train(
        algorithm, "CartPole-v1", store=store, env_steps=versions * ROUND, seed=seed, client=client,
        checkpoint_every=20, weights_every=100, progress=False, **SHAPE,
    )  # fmt: skip


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} / {statistics.fmean(values):.2f}" if values else "-"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kills", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0, help="of the kills and of the run")
    arguments.add_argument("--versions", type=int, default=0, help="of the weights; 0 for five a kill")
    arguments.add_argument("--workers", type=int, default=2, help="rollout workers")
    arguments.add_argument("--learner-share", type=float, default=0.2)
    arguments.add_argument("--each", action="store_true", help="print every kill as well")
    given = arguments.parse_args()
    versions = given.versions or 5 * given.kills + 20
    plan = plan_of_kills(given.seed, given.kills, versions, learner_share=given.learner_share)
    with tempfile.TemporaryDirectory() as folder:
        alone = start(Path(folder) / "alone", versions, given.seed, None).wait().store.digest()
        print(f"one process: {alone}", flush=True)
        with clusters.local(given.workers) as cluster, Client(cluster) as client:
            report = chaos(start(Path(folder) / "killed", versions, given.seed, client), plan, seed=given.seed)
    if given.each:
        print(report)
    learners = [harm for harm in report.harms if harm.fault.learner]  # type: ignore[attr-defined]
    rollouts = [harm for harm in report.harms if not harm.fault.learner]  # type: ignore[attr-defined]
    same, whole = report.digest == alone, report.lost == 0 and report.duplicated == 0
    done = len(report.harms) == given.kills
    known = [[harm.lost for harm in harms if harm.lost is not None] for harms in (rollouts, learners)]
    pace = report.pace
    slower = "-" if pace is None else f"{(report.seconds - versions * pace) / max(given.kills, 1):.2f}"
    show(
        f"{versions:,} versions, {report.expected:,} transitions, {given.workers} rollout workers, seed {given.seed}",
        ["what", "rollout workers", "learner", "all"],
        [
            ["SIGKILLs", f"{len(rollouts)}", f"{len(learners)}", f"{len(report.harms)} of {given.kills}"],
            [
                "fragments rolled out again", f"{sum(h.rolled_out_again for h in rollouts)}",
                f"{sum(h.rolled_out_again for h in learners)}", f"{sum(h.rolled_out_again for h in report.harms)}",
            ],
            [
                "versions learned again", f"{sum(h.learned_again for h in rollouts)}",
                f"{sum(h.learned_again for h in learners)}", f"{sum(h.learned_again for h in report.harms)}",
            ],
            ["s to the next version, median / mean", *(
                spread([h.seconds for h in harms if h.seconds is not None])
                for harms in (rollouts, learners, report.harms)
            )],
            ["s lost by the versions held up, median / mean", *map(spread, [*known, known[0] + known[1]])],
            ["s lost in all, by kill", "", "", slower],
            ["transitions committed", "", "", f"{report.committed:,}"],
            ["transitions lost", "", "", f"{report.lost:,}"],
            ["transitions duplicated", "", "", f"{report.duplicated:,}"],
            ["digest as in one process", "", "", "yes" if same else "NO"],
        ],
        packages=("torch", "dask", "distributed"),
        note=f"{report.seconds:.0f} s in all, {'-' if pace is None else f'{pace:.2f}'} s a version without kills. "
        f"{report.digest}",
    )  # fmt: skip
    if not (same and whole and done):
        sys.exit("The promise is broken.")


if __name__ == "__main__":
    main()
