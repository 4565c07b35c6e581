"""What the strict order costs: throughput of the schedule over that of a free-running one.

A discrete-event simulation: the functions of `daskrl.schedule` decide, a simulated clock passes. In the free-running
case every slot takes any stream that is idle, whatever the weights. The learner takes no time: the price is that of
the order alone.

    python tests/benchmarks/elastic_price.py [--slots N] [--rounds R]
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable

import numpy as np
from _table import parser, show

from daskrl import schedule
from daskrl.config import Schedule

Draw = Callable[[np.random.Generator], float]

SPREADS: dict[str, Draw] = {
    "10x, even": lambda random: float(random.uniform(1, 10)),
    # 14x between the 2.5 % and the 97.5 % quantile.
    "14x, log-normal": lambda random: float(np.exp(random.normal(0, np.log(14) / (2 * 1.96)))),
}


def strict(shape: Schedule, slots: int, rounds: int, draw: Draw, random: np.random.Generator, at_home: bool) -> float:
    """Fragments per unit of time under the schedule.

    ``at_home``: every stream stays on one slot, as on a pool that does not change, with two queued at most; else any
    idle slot takes what is ready.
    """
    homes = schedule.homes(shape.streams, {f"{slot:04d}": 1 for slot in range(slots)}, {})
    committed, published, now = [0] * shape.streams, 0, 0.0
    in_flight: set[schedule.Rollout] = set()
    queued: dict[str, list[schedule.Rollout]] = {home: [] for home in homes.values()}
    ends: list[tuple[float, str]] = []
    load: Counter[str] = Counter()

    def start(home: str) -> None:
        heapq.heappush(ends, (now + draw(random), home))

    while min(committed) < rounds:
        held = {published} | schedule.needed(shape, rounds, committed)
        held = {version for version in held if version <= published}
        for task in schedule.rollouts_ready(shape, rounds, committed, held, in_flight):
            home = homes[task.stream] if at_home else min(queued, key=lambda slot: load[slot])
            if load[home] < (2 if at_home else 1):
                load[home] += 1
                in_flight.add(task)
                queued[home].append(task)
                if load[home] == 1:
                    start(home)
        now, home = heapq.heappop(ends)
        task = queued[home].pop(0)
        in_flight.discard(task)
        load[home] -= 1
        committed[task.stream] += 1
        if load[home]:
            start(home)
        for learn in schedule.learns_ready(shape, rounds, committed, published, range(published + 1), ()):
            published = learn.version
    return shape.streams * rounds / now


def free(shape: Schedule, slots: int, rounds: int, draw: Draw, random: np.random.Generator) -> float:
    """Fragments per unit of time when no slot ever waits."""
    ends = [draw(random) for _ in range(slots)]
    heapq.heapify(ends)
    for _ in range(shape.streams * rounds - slots):
        heapq.heapreplace(ends, ends[0] + draw(random))
    return shape.streams * rounds / max(ends)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--slots", type=int, default=32)
    arguments.add_argument("--rounds", type=int, default=60)
    arguments.add_argument("--lags", type=int, nargs="+", default=[0, 1, 2, 4])
    arguments.add_argument("--streams-per-slot", type=int, nargs="+", default=[2, 4])
    given = arguments.parse_args()
    rows = []
    for name, draw in SPREADS.items():
        for per_slot in given.streams_per_slot:
            row = [f"{name}, {per_slot} streams a slot"]
            for lag in given.lags:
                shape = Schedule(streams=per_slot * given.slots, lag=lag)
                setting = (shape, given.slots, given.rounds, draw)
                other = free(*setting, np.random.default_rng(0))
                row += [f"{strict(*setting, np.random.default_rng(0), home) / other:.2f}" for home in (True, False)]
            rows.append(row)
    show(
        f"Throughput of the strict schedule over a free-running one, {given.slots} slots, {given.rounds} rounds",
        ["fragment times vary by", *(f"lag {lag}{where}" for lag in given.lags for where in ("", ", any slot"))],
        rows,
        note="Simulated: the figures depend on no hardware. To be reported, no target. Streams are at home on one slot "
        "each (what the pool does), or move to any idle slot.",
    )


if __name__ == "__main__":
    main()
