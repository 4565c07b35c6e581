"""Suites that an addition inherits, and harm on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskrl.names import lazily

if TYPE_CHECKING:
    from daskrl.testing.algorithms import AlgorithmTests, Corridor, Reach
    from daskrl.testing.faults import FillDisk, Kill, Partition, Slow, Stop
    from daskrl.testing.harm import ChaosReport, Harm, chaos, plan_of_kills
    from daskrl.testing.rounds import RoundsTests
    from daskrl.testing.storage import ReadableStorageTests, StorageTests

__all__ = [
    "AlgorithmTests", "ChaosReport", "Corridor", "FillDisk", "Harm", "Kill", "Partition", "Reach",
    "ReadableStorageTests", "RoundsTests", "Slow", "Stop", "StorageTests", "chaos", "plan_of_kills",
]  # fmt: skip

__getattr__, __dir__ = lazily(
    __name__,
    {
        "daskrl.testing.algorithms": ["AlgorithmTests", "Corridor", "Reach"],
        "daskrl.testing.faults": ["FillDisk", "Kill", "Partition", "Slow", "Stop"],
        "daskrl.testing.harm": ["ChaosReport", "Harm", "chaos", "plan_of_kills"],
        "daskrl.testing.rounds": ["RoundsTests"],
        "daskrl.testing.storage": ["ReadableStorageTests", "StorageTests"],
    },
)
