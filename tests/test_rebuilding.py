"""A stream is rebuilt in as long as it takes, and given up only when it hangs; what leaves its space is said once."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import daskrl
from daskrl import clusters, seeding
from daskrl.errors import EnvironmentRaisedError, EnvironmentTimeoutError
from daskrl.store.store import Store

SMALL = {"hidden": (8,), "learning_starts": 10**6, "batch_size": 8, "window": 4096}


def start(env: Any, store: Path, **given: Any) -> daskrl.Run:
    settings = {"env_steps": 4096, "seed": 3, "progress": False, "checkpoint_every": 1000, "weights_every": 1000}
    return daskrl.train(daskrl.DQN(**SMALL), env, store=store, **{**settings, **given})


class Slow(gymnasium.Env):
    """An endless episode whose steps take 5 ms; one that is ``hangs_at`` never comes back while the file is there."""

    observation_space = spaces.Box(-np.inf, np.inf, (), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, hangs_at: int | None = None, while_exists: Path | None = None) -> None:
        self.hangs_at, self.while_exists = hangs_at, while_exists

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.float32(0), {}

    def step(self, action):
        threading.Event().wait(0.005)
        self.count += 1
        if self.count == self.hangs_at and self.while_exists is not None and self.while_exists.exists():
            threading.Event().wait()
        return np.float32(self.count), 0.0, False, False, {}


ONE = {"streams": 1, "envs_per_stream": 1, "fragment_steps": 10, "recheck_every": 0}


def stopped(env: Any, store: Path, version: int, **given: Any) -> None:
    for report in start(env, store, **ONE, **given):
        if report.weights_version == version:
            break


def test_a_run_is_resumed_with_a_limit_that_each_fragment_keeps_and_all_of_them_do_not(tmp_path: Path) -> None:
    stopped(Slow, tmp_path / "run", 45, env_steps=480)  # 450 steps take 2.2 s, and 10 of them 0.05 s
    run = daskrl.resume(tmp_path / "run", env=Slow, rollout_timeout=1.0, progress=False)
    assert run.wait().finished


def test_an_environment_that_hangs_while_it_is_rebuilt_is_given_up(tmp_path: Path) -> None:
    trouble = tmp_path / "trouble"

    def make() -> gymnasium.Env:
        return Slow(25, trouble)

    stopped(make, tmp_path / "run", 5, env_steps=80)
    trouble.touch()
    with pytest.raises(EnvironmentTimeoutError, match=r"rollout_timeout = 1 s.*step through a recorded fragment again"):
        daskrl.resume(tmp_path / "run", env=make, rollout_timeout=1.0, progress=False).wait()
    trouble.unlink()
    assert daskrl.resume(tmp_path / "run", env=make, rollout_timeout=600, progress=False).wait().finished


# -- what leaves its space --------------------------------------------------------------------------------


class Leaves(gymnasium.Env):
    """Episodes of 5 steps that observe 0, 1, ... in a space that ends at ``most``."""

    action_space = spaces.Discrete(2)
    most = 3

    def __init__(self) -> None:
        self.observation_space = spaces.Dict(
            {"a": spaces.Box(0, 255, (2,), np.uint8), "b": spaces.Box(0, self.most, (2,), np.int16)}
        )

    def _observation(self) -> dict[str, Any]:
        return {"a": np.full(2, self.count, np.uint8), "b": np.array([0, self.count], np.int16)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        return self._observation(), 0.0, self.count == 5, False, {}


class LeavesLast(Leaves):
    """Only its last observation is outside."""

    most = 4


class Stays(Leaves):
    most = 5


def warned(said: Any) -> list[str]:
    return [str(one.message) for one in said if "outside of" in str(one.message)]


@pytest.mark.parametrize(
    ("kind", "column", "value", "step"),
    [(Leaves, "observation.b", 4, 4), (LeavesLast, "final_observation.b", 5, 5)],
)
def test_what_lies_outside_the_bounds_is_one_warning_a_run_and_stored(kind, column, value, step, tmp_path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for report in start(kind, tmp_path / "run", env_steps=8192):
            if report.weights_version == 3:
                break
        run = daskrl.resume(tmp_path / "run", env=kind, progress=False).wait()
    (message,) = warned(said)
    assert message.startswith(f"{column} is {value} at [1], outside of [0, {kind.most}] that its space says")
    assert f"environment 0 ({kind.__name__}), episode 0, step {step}, reset seed" in message
    assert "strict_bounds=True (--strict-bounds)" in message
    first = run.store.fragments()[0]
    assert run.store.read(first)["observation.b"].max() == 4
    assert first["out_of_bounds"][0] in message
    assert run.store.promise_off() == []


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_what_stays_inside_is_not_mentioned(frame_stack: int, tmp_path: Path) -> None:
    run = start(Stays, tmp_path / "run", env_steps=1024, frame_stack=frame_stack).wait()
    assert not any("out_of_bounds" in record for record in run.store.fragments())


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_under_strict_bounds_it_is_an_error_with_its_place(frame_stack: int, tmp_path: Path) -> None:
    run = start(Leaves, tmp_path / "run", strict_bounds=True, frame_stack=frame_stack)
    with pytest.raises(EnvironmentRaisedError) as caught:
        run.wait()
    assert "observation.b is 4 at [1], outside of [0, 3]" in str(caught.value)
    assert "environment 0 (Leaves), episode 0, step 4, reset seed" in str(caught.value)
    assert "daskrl reproduce" in str(caught.value)
    assert Store.open(tmp_path / "run").fragments() == []


@pytest.mark.parametrize(("kind", "step"), [(Leaves, 4), (LeavesLast, 5)])
def test_an_evaluation_says_once_what_lies_outside_the_bounds(kind, step, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="outside of"):
        run = start(kind, tmp_path / "run", env_steps=1024).wait()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        daskrl.evaluate(run.store, env=kind, episodes=3)
    (message,) = warned(said)
    assert message.startswith(f"observation.b is {step} at [1], outside of [0, {kind.most}] that its space says")
    assert f"environment 0 ({kind.__name__}), episode 0, step {step}, reset seed" in message


class LeavesInEvaluation(Stays):
    """Is outside from the seed alone that the first episode of evaluations begins with."""

    def reset(self, *, seed=None, options=None):
        self.add = 2 * (seed == seeding.environment_seed(1, 0, 0, 0, "evaluate_environment"))
        return super().reset(seed=seed)

    def _observation(self) -> dict[str, Any]:
        return {**super()._observation(), "b": np.array([0, self.count + self.add], np.int16)}


def test_under_strict_bounds_it_is_an_error_of_evaluations_too(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"version 1 could not be evaluated.*observation\.b is 6 at \[1\], outside of"):
        run = start(
            LeavesInEvaluation, tmp_path / "run", env_steps=1024, strict_bounds=True, evaluate_every=1,
            evaluate_episodes=2,
        ).wait()  # fmt: skip
    assert run.finished
    with pytest.raises(EnvironmentRaisedError, match=r"is 6 at \[1\], outside of \[0, 5\].*strict_bounds=False"):
        daskrl.evaluate(run.store, env=LeavesInEvaluation, episodes=1)
    assert daskrl.evaluate(run.store, env=LeavesInEvaluation, episodes=1, seed=2).returns == (0.0,)


def test_workers_say_it_once_as_well(tmp_path: Path) -> None:
    with clusters.local(2) as cluster, cluster.get_client() as client, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start(Leaves, tmp_path / "run", client=client).wait()
    assert len(warned(said)) == 1
