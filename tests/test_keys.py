"""Learners and agents have keys: "" is that of a run with one, and a second is a second key. Format 1 shows none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from daskrl import schedule, seeding
from daskrl.config import Schedule
from daskrl.envs.spaces import agent_column, spec_of
from daskrl.errors import UnsupportedSpaceError
from daskrl.records import checkpoints
from daskrl.schedule import Evaluate, Learn
from daskrl.store.columns import columns
from daskrl.store.progress import Progress
from daskrl.store.weights import checkpoint_key, version_in, weights_key

SHAPE = Schedule(streams=2, envs_per_stream=1, fragment_steps=4, lag=1)
SPEC = spec_of(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))


def learned(version: int, learner: str | None = None) -> Any:
    name = "" if learner is None else f"{learner}."
    written = [f".weights/{name}{version:08d}.safetensors", 8, 1]
    record = {
        "kind": "learn", "version": version, "learner_updates": 10 * version, "loss": 0.5, "seconds": 1.0,
        "updates": 10, "device": "cpu", "weights": written, "checkpoint": written,
    }  # fmt: skip
    return record if learner is None else {**record, "learner": learner}


def test_files_of_a_run_with_one_learner_are_those_of_format_1() -> None:
    assert weights_key(12) == ".weights/00000012.safetensors"
    assert checkpoint_key(12) == ".checkpoints/00000012.safetensors"
    assert version_in("00000012.safetensors") == 12


def test_a_second_learner_has_files_of_its_own() -> None:
    assert weights_key(12, "left") == ".weights/left.00000012.safetensors"
    assert checkpoint_key(12, "left") == ".checkpoints/left.00000012.safetensors"
    assert version_in("left.00000012.safetensors", "left") == 12


@pytest.mark.parametrize("name", ["left.00000012.safetensors", "zarr.json", ".00000012.x.partial", "12.safetensors"])
def test_other_files_are_not_taken_for_those_of_the_only_learner(name: str) -> None:
    assert version_in(name) is None
    assert version_in("00000012.safetensors", "left") is None


def test_a_progress_counts_what_is_of_its_learner() -> None:
    only, left = Progress([0, 0]), Progress([0, 0], learner="left")
    played: Any = {"kind": "evaluation", "version": 3, "learner": "left", "returns": [2.0]}
    for record in (learned(0), learned(0, "left"), learned(1, "left"), learned(2, "left"), learned(1), played):
        only.take(record)
        left.take(record)
    assert (only.published, only.learner_updates, sorted(only.kept), only.evaluated) == (1, 10, [0, 1], {})
    assert (left.published, left.learner_updates, sorted(left.kept), left.evaluated) == (2, 20, [0, 1, 2], {3: 2.0})
    assert only.kept[1][0] == weights_key(1)
    assert left.kept[1][0] == weights_key(1, "left")
    assert left.copy().learner == "left"


def test_checkpoints_are_found_by_learner() -> None:
    log = [learned(1), learned(2, "left")]
    assert [record["version"] for record, _ in checkpoints(log)] == [1]
    assert [record["version"] for record, _ in checkpoints(log, "left")] == [2]


def test_each_learner_has_its_own_tasks() -> None:
    learns = schedule.learns_ready(SHAPE, 4, [2, 2], 0, {0}, [Learn(1)], learner="left")
    assert learns == [Learn(1, "left"), Learn(2, "left")]
    assert schedule.learns_ready(SHAPE, 4, [2, 2], 0, {0}, [Learn(1, "left")]) == [Learn(1), Learn(2)]
    assert schedule.evaluations_due(1, 4, 1, [1], [], learner="left") == [Evaluate(1, "left")]
    assert schedule.evaluations_due(1, 4, 1, [1], []) == [Evaluate(1)]


def test_a_second_agent_has_columns_of_its_own() -> None:
    alone, left = columns(SPEC, SHAPE, 1), columns(SPEC, SHAPE, 1, agent="left")
    assert list(alone)[:3] == ["observation", "final_observation", "action"]
    assert list(left) == [f"agent.left.{name}" for name in alone]
    assert left["agent.left.reward"].shape == alone["reward"].shape
    assert left["agent.left.action"].name == agent_column("action", "left")


@pytest.mark.parametrize("agent", ["a.b", "a/b"])
def test_an_agent_whose_name_is_none_of_a_column_is_refused(agent: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match="as of a column"):
        agent_column("reward", agent)


def test_a_second_key_draws_other_numbers_and_the_default_those_of_before() -> None:
    drawn = [seeding.generator(3, "learn", 5, key=key).integers(0, 2**62, 4).tolist() for key in ("", "a", "b")]
    assert (
        drawn[0]
        == np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, 2, 5]))).integers(0, 2**62, 4).tolist()
    )
    assert len({str(numbers) for numbers in drawn}) == 3
