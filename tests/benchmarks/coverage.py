"""How often a 95 % interval of `daskrl.study.compare` holds the true value, by the number of seeds.

Scores are drawn from known distributions, as many as there are seeds, again and again. The share of the intervals that
hold the true interquartile mean should be 95 %: with few seeds it is less, which is why fewer than five are warned of.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from _table import parser, show

from daskrl.study import statistics

Draw = Callable[[np.random.Generator, int], np.ndarray]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed (exponential)": lambda rng, size: rng.exponential(size=size),
    "two thirds near 500, a third far below": lambda rng, size: np.where(
        rng.random(size) < 2 / 3, rng.normal(490, 10, size), rng.uniform(50, 450, size)
    ),
}


def coverage(draw: Draw, seeds: int, *, tables: int, reps: int) -> float:
    """The share of intervals that hold the interquartile mean of the distribution."""
    true = statistics.iqm(draw(np.random.default_rng(0), 2_000_000))
    rng, held = np.random.default_rng(1), 0
    for table in range(tables):
        scores = np.sort(draw(rng, seeds))
        (found,) = statistics.estimates(
            [scores],
            lambda column: np.array([statistics.iqm(column)]),
            statistics.state("coverage", str(table)),
            reps=reps,
        )
        held += found.low <= true <= found.high
    return held / tables


def main() -> None:
    given = parser(__doc__)
    given.add_argument("--tables", type=int, default=500, help="tables drawn for each number")
    given.add_argument("--reps", type=int, default=500, help="resamples for each interval")
    given.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10, 20, 50])
    args = given.parse_args()
    rows = [
        [name, *(f"{coverage(draw, n, tables=args.tables, reps=args.reps):.1%}" for n in args.seeds)]
        for name, draw in DISTRIBUTIONS.items()
    ]
    show(
        "95 % intervals of the interquartile mean that hold the true one",
        ["scores", *(f"{seeds} seeds" for seeds in args.seeds)],
        rows,
        packages=("arch",),
        note=f"{args.tables:,} tables, {args.reps:,} resamples each",
    )


if __name__ == "__main__":
    main()
