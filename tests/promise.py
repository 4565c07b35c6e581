"""What the tests of the promise share: one small run with every option on, and its digest in one process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from distributed import Client

import daskrl
from daskrl.algorithms.replay import ReplayLearner
from daskrl.replay.window import Batch

SHAPE: dict[str, Any] = {"streams": 4, "envs_per_stream": 2, "fragment_steps": 16, "lag": 1}
STEPS = 12 * 128
SETTINGS: dict[str, Any] = {
    "hidden": (32,), "n_step": 3, "priority_alpha": 0.6, "priority_beta_updates": 400, "dueling": True,
    "learning_starts": 128, "batch_size": 16, "replay_ratio": 4.0, "window": 640, "target_update": 20,
    "learning_rate_end": 1e-4, "learning_rate_updates": 300,
}  # fmt: skip


def start(store: Path, env: Any = "CartPole-v1", algorithm: Any = None, **options: Any) -> daskrl.Run:
    """The run all tests of the promise carry out, one way or another."""
    given = {"env_steps": STEPS, "seed": 7, "checkpoint_every": 3, "weights_every": 4, "progress": False, **SHAPE}
    return daskrl.train(algorithm or daskrl.DQN(**SETTINGS), env, store=store, **{**given, **options})


class Once:
    """True exactly once among all processes that ask: whoever makes the file."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    def __call__(self) -> bool:
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Troubled(gymnasium.Wrapper):  # type: ignore[type-arg]
    """CartPole that does something terrible in the middle of a fragment, once.

    ``after`` counts the steps of this environment object, so the moment is the same in every run.
    """

    def __init__(self, after: int, once: Once, trouble: Any) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.after, self.once, self.trouble, self.steps = after, once, trouble, 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == self.after and self.once():
            self.trouble()
        return super().step(action)


class TroubledDQN(daskrl.DQN):  # type: ignore[misc, valid-type]
    """DQN whose learner kills its process in the middle of a round, once for each of ``kills``."""

    kills: tuple[int, ...] = ()
    once_in: str = ""

    def update(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        if learner.updates in self.kills and Once(f"{self.once_in}/update-{learner.updates}")():
            kill_self()
        return super().update(learner, batch)


def kill_every_worker_at(version: int, run: daskrl.Run, client: Client) -> int:
    """Carry a run out, with SIGKILL to all workers, the learner's among them, once it is there; how many they were."""
    killed = 0
    for report in run:
        if report.weights_version == version:
            for pid in client.run(os.getpid).values():
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


@contextlib.contextmanager
def mounted(disk: Path, size: str) -> Iterator[Path]:
    """A file system of its own of that size, e.g. ``"8m"``; skips the test where it cannot be."""
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def records(store: Path) -> list[dict[str, Any]]:
    return list(daskrl.Store.open(store).records())


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def same_transitions(one: daskrl.Store, other: daskrl.Store) -> bool:
    """Every column of every fragment equal, without the digest's help."""
    pairs = list(zip(one.fragments(), other.fragments(), strict=True))
    return all(
        np.array_equal(a, b)
        for first, second in pairs
        for a, b in zip(one.read(first).values(), other.read(second).values(), strict=True)
    )
