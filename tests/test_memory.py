"""Memory: what a window takes, what is free, and that a window too large is said before a run begins."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
from distributed import Client, LocalCluster
from gymnasium import spaces

import daskrl
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.errors import ConfigError
from daskrl.replay.window import Window, needed_bytes
from daskrl.tasks import memory
from tests.lanes import allocated
from tests.promise import SETTINGS, start

GIB = 1 << 30


@pytest.mark.parametrize(("frame_stack", "n_step"), [(1, 1), (4, 1), (4, 3)])
@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (spaces.Box(-1, 1, (5,), np.float32), spaces.Discrete(3)),
        (spaces.Box(0, 255, (6, 6), np.uint8), spaces.Discrete(3)),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float64), "b": spaces.Discrete(4)}), spaces.Box(-1, 1, (2,))),
    ],
)
def test_a_window_takes_as_much_as_is_said(observation: Any, action: Any, frame_stack: int, n_step: int) -> None:
    spec, shape = spec_of(observation, action), Schedule(4, 2, 8, 1)
    given: dict[str, Any] = {"capacity": 300, "frame_stack": frame_stack, "n_step": n_step}
    made = Window(spec, shape, **given)
    assert needed_bytes(spec, shape, **given) == allocated(made)
    assert needed_bytes(spec, shape, **{**given, "capacity": 10**12}) > 10**12  # nothing is allocated for it


def test_a_window_that_no_machine_has_memory_for_is_refused_by_name() -> None:
    spec = spec_of(spaces.Box(-1, 1, (5,), np.float32), spaces.Discrete(3))
    with pytest.raises(ConfigError, match=r"window: 1\d+ transitions do not fit .* -s window="):
        Window(spec, Schedule(4, 2, 8, 1), capacity=10**15)


def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str]) -> None:
    """Control groups of a process on a machine with 100 GiB free."""
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "OWN", tmp_path / "own")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Seen", (), {"available": 100 * GIB}))


JOB = {
    "job/memory.max": f"{8 * GIB}\n",
    "job/memory.current": f"{5 * GIB}\n",
    "job/memory.stat": f"inactive_file {GIB}\n",
}


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        ("0::/\n", {}, 100),
        ("0::/job/task\n", JOB, 4),  # of the group above: 8 - 5, and 1 that only caches files
        ("0::/job/task\n", {**JOB, "job/memory.max": "max\n"}, 100),
        ("0::/of/the/host\n", {name.removeprefix("job/"): text for name, text in JOB.items()}, 4),  # in a container
        (
            "4:memory,cpu:/job\n1:name=systemd:/\n",
            {
                "memory/job/memory.limit_in_bytes": f"{6 * GIB}\n", "memory/job/memory.usage_in_bytes": f"{5 * GIB}\n",
                "memory/job/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\n",
            },
            2,
        ),
    ],
)  # fmt: skip
def test_the_limit_of_a_job_or_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], free: int
) -> None:
    groups(tmp_path, monkeypatch, own, files)
    assert memory.free() == free * GIB


def said(run: daskrl.Run) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in run:
            break
    return [text for warning in found if "the window takes" in (text := str(warning.message))]


def test_a_window_larger_than_what_is_free_is_said_before_a_run_begins_and_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free", lambda: 50_000)
    algorithm = daskrl.DQN(**{**SETTINGS, "window": 12_800})  # 100 rounds of 128
    run = start(tmp_path / "run", algorithm=algorithm)
    needed = algorithm.window_bytes(daskrl.algorithms.base.Setup(run.store.spec, run.store.config.schedule))
    fits = int(0.9 * 12_800 * 50_000 / needed) // 128 * 128
    assert fits > 0
    (message,) = said(run)
    assert "48.8 KiB are free on " in message
    assert f"window={fits}, on the command line -s window={fits}" in message
    assert said(daskrl.resume(tmp_path / "run", progress=False)) == [message]
    assert said(start(tmp_path / "ppo", algorithm=daskrl.PPO(hidden=(8,)), lag=0)) == []
    monkeypatch.setattr(memory, "free", lambda: needed)
    assert said(start(tmp_path / "fits", algorithm=algorithm)) == []


def test_on_a_cluster_it_is_the_memory_of_the_learners_worker_that_counts(tmp_path: Path) -> None:
    algorithm = daskrl.DQN(**{**SETTINGS, "window": 40_000_000})
    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None, "resources": {"learner": 1}}
    with LocalCluster(n_workers=1, memory_limit="2GiB", **options) as cluster, Client(cluster) as client:
        (message,) = said(start(tmp_path / "run", algorithm=algorithm, client=client))
    assert "before Dask pauses the learner's worker" in message
    assert "-s window=" in message
