"""A small study, for tests that begin processes of their own, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daskrl
from daskrl.study import Greedy, Study

QUICK = daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=16, window=1024)
SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 16}


def small(path: Path | str, **changed: Any) -> Study:
    """Two settings from two seeds each, of four rounds."""
    given: dict[str, Any] = {
        "algorithm": QUICK, "env": "CartPole-v1", "space": {"learning_rate": [1e-4, 1e-3]}, "seeds": 2,
        "env_steps": 256, "score": Greedy(2), **SHAPE, **changed,
    }  # fmt: skip
    return Study(path, **given)
