"""Small runs of the walk in `tests.environments`, which fails on cue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import daskrl

SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 8}


ROUND = 32


STEPS = 10 * ROUND


SETTINGS: dict[str, Any] = {
    "hidden": (16,), "batch_size": 8, "learning_starts": ROUND, "replay_ratio": 2.0, "window": 5 * ROUND,
}  # fmt: skip


WALK = "tests.environments:Walk-v0"


def start(store: Path, env: Any = WALK, algorithm: Any = None, **given: Any) -> daskrl.Run:
    settings = {"env_steps": STEPS, "seed": 3, "checkpoint_every": 2, "recheck_every": 0, "progress": False, **SHAPE}
    return daskrl.train(algorithm or daskrl.DQN(**SETTINGS), env, store=store, **{**settings, **given})


def faulty(store: Path, fault: str, trouble: Path, at: int = 12, **given: Any) -> daskrl.Run:
    kwargs = {"fault": fault, "at": at, "while_exists": str(trouble)}
    return start(store, env_kwargs=kwargs, **given)
