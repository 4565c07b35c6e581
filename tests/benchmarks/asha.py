"""What ASHA needs of a grid's env steps, and the interquartile mean of the setting that each finds.

Both studies try the settings of the worked example (examples/dqn_parts/study.toml): 16 of DQN, on two tasks, of five
seeds; a run is judged by its mean return over training. Winners are compared by interquartile means over tasks and
seeds at all env steps, which a run that waited at a rung has bit for bit as one that did not; 0 and 1 are the lowest
and the highest score of the grid's runs on a task.

    python tests/benchmarks/asha.py [--keep DIR] [--workers W] [--rungs 6144 12288] [--reduction 4] [--halving]
    python tests/benchmarks/asha.py --env CartPole-v1 ...

``--keep``: where the studies are kept, and gone on with; ``DIR/grid`` may be that of the worked example.
``--halving``: successive halving, too. ``--env``: on some of the tasks.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from _table import parser, show, verdict

from daskrl.cli.studyfile import StudyFile
from daskrl.study import ASHA, Study, SuccessiveHalving
from daskrl.study.statistics import iqm

SHARE = 40.0  # percent of the grid's env steps
EXAMPLE = Path(__file__).parents[2] / "examples" / "dqn_parts" / "study.toml"


def best(study: Study, ranges: Any) -> tuple[dict[str, Any], float, int]:
    """The setting with the highest interquartile mean at all env steps, that, and the env steps of all runs."""
    table, axes = study.table(), list(study.definition.space.axes)
    whole = table[table.env_steps == study.definition.env_steps]
    means = {}
    for number, rows in whole.groupby("setting"):
        low, high = (rows.environment.map(ranges[end]).to_numpy() for end in ("min", "max"))
        means[number] = float(iqm((rows.score.to_numpy() - low) / (high - low)))
    if not means:
        return {}, float("nan"), table.env_steps.sum()
    found = max(means, key=lambda number: means[number])
    setting = whole[whole.setting == found].iloc[0][axes].to_dict()
    setting = {name: value if value == value else None for name, value in setting.items()}
    return setting, means[found], table.env_steps.sum()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--keep", metavar="DIR", type=Path)
    options.add_argument("--rungs", type=int, nargs="+", default=[6144, 12288])
    options.add_argument("--reduction", type=int, default=4)
    options.add_argument("--workers", type=int, default=2, help="of a cluster on this machine; 0: in this process")
    options.add_argument("--env", nargs="+")
    options.add_argument("--halving", action="store_true")
    given = options.parse_args()
    how = {"rungs": tuple(given.rungs), "reduction": given.reduction, "width": 8}
    searches: dict[str, Any] = {"grid": None, "ASHA": ASHA(**how)}
    if given.halving:
        searches["successive halving"] = SuccessiveHalving(**how)
    example = StudyFile(str(EXAMPLE)).arguments()
    if given.env:
        example["env"] = given.env
    found: dict[str, tuple[dict[str, Any], float, int]] = {}
    rows = []
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as stack:
        client = None
        if given.workers:
            from distributed import Client, LocalCluster

            cluster = stack.enter_context(LocalCluster(n_workers=given.workers, threads_per_worker=1))
            client = stack.enter_context(Client(cluster))
        for name, search in searches.items():
            began = time.perf_counter()
            study = Study((given.keep or Path(made)) / name, **{**example, "search": search})
            study.run(client, progress=False)
            if name == "grid":
                ranges = study.table().groupby("environment").score.agg(["min", "max"])
            found[name] = best(study, ranges)
            seconds = time.perf_counter() - began
            setting, mean, steps = found[name]
            share = 100 * steps / found["grid"][2]
            said = ", ".join(f"{key} {value}" for key, value in setting.items())
            rows.append([name, said, f"{mean:.3f}", f"{steps:,}", f"{share:.1f} %", f"{seconds:.0f}"])
            print(name, rows[-1], flush=True)
    show(
        f"{EXAMPLE.parent.name}, rungs {how['rungs']}, reduction {given.reduction}",
        ["search", "best setting", "its IQM", "env steps", "of the grid's", "seconds"],
        rows,
    )
    for name in list(searches)[1:]:
        reached = found[name][1] >= found["grid"][1]
        share = 100 * found[name][2] / found["grid"][2]
        said = verdict(share, SHARE, at_least=False) if reached else "missed: another setting"
        print(
            f"{name}: the grid's best IQM {'reached' if reached else 'not reached'}, {share:.1f} % of its steps, {said}"
        )


if __name__ == "__main__":
    main()
