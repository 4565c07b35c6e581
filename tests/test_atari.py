"""ALE's and MinAtar's environments: the same whichever way they are named, and what is given to them acts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import daskrl
from daskrl.envs.source import source
from daskrl.errors import ConfigError


def play(env: gymnasium.Env[Any, Any], steps: int = 20) -> tuple[list[Any], list[float]]:
    observations, rewards = [env.reset(seed=3)[0]], []
    actions = np.random.default_rng(0)
    for _ in range(steps):
        action = env.action_space.low if isinstance(env.action_space, gymnasium.spaces.Box) else actions.integers(3)
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        rewards.append(float(reward))
    return observations, rewards


@pytest.mark.parametrize("id", ["ale_py:ALE/Pong-v5", "ale_py:PongNoFrameskip-v4", "PongNoFrameskip-v4", "Pong-v4"])
def test_an_atari_game_is_preprocessed_whichever_way_it_is_named(id: str) -> None:
    found = source(id)
    expected = source("ALE/Pong-v5", repeat_action_probability=0.25 if id.endswith("v5") else 0.0)
    assert found.spec == expected.spec
    assert found.spec.observation[0].shape == (84, 84)
    assert found.default_frame_stack == expected.default_frame_stack == 4
    seen, rewards = play(found.factory())
    others, its = play(expected.factory())
    assert rewards == its
    np.testing.assert_array_equal(seen, others)


@pytest.mark.parametrize(
    ("id", "other"),
    [
        ("ale_py:ALE/Pong-v5", "ALE/Pong-v5"),
        ("minatar:MinAtar/Asterix-v1", "MinAtar/Asterix-v1"),
        ("minatar.gym:MinAtar/Asterix-v1", "MinAtar/Asterix-v1"),
    ],
)
def test_a_run_is_the_same_whichever_way_its_environment_is_named(id: str, other: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "env_steps": 32, "streams": 2, "envs_per_stream": 1, "fragment_steps": 8, "progress": False,
    }  # fmt: skip
    algorithm = daskrl.DQN(hidden=(8,), learning_starts=16, batch_size=4, replay_ratio=1.0, window=64)
    stores = [
        daskrl.train(algorithm, name, store=tmp_path / str(i), **given).wait().store
        for i, name in enumerate((id, other))
    ]
    assert stores[0].digest() == stores[1].digest()
    daskrl.train(algorithm, other, store=tmp_path / "0", resume=True, **given)
    assert type(source(id).factory()) is type(source(other).factory())


def test_the_memory_of_the_console_is_that_of_the_very_frames_that_are_seen(tmp_path: Path) -> None:
    pictures, memory = source("ALE/Pong-v5"), source("ALE/Pong-v5", obs_type="ram")
    assert memory.spec.observation[0].shape == (128,)
    assert memory.default_frame_stack == 1
    screen, ram = pictures.factory(), memory.factory()
    screen.reset(seed=3)
    seen, _ = ram.reset(seed=3)
    for action in (2, 3, 0, 2, 2, 3):
        np.testing.assert_array_equal(seen, screen.unwrapped.ale.getRAM())  # type: ignore[attr-defined]
        assert ram.observation_space.contains(seen)
        screen.step(action)
        kept = seen
        seen = ram.step(action)[0]
        assert not np.array_equal(kept, seen)
    run = daskrl.train(
        daskrl.PPO(hidden=(8,), epochs=1, normalise_observation=True), "ALE/Pong-v5", env_kwargs={"obs_type": "ram"},
        store=tmp_path / "run", env_steps=32, streams=2, envs_per_stream=1, fragment_steps=8, progress=False,
    ).wait()  # fmt: skip
    assert run.store.spec.observation[0].shape == (128,)
    assert daskrl.evaluate(run.store, episodes=1, max_episode_steps=20).lengths == (20,)


@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [
        ({"obs_type": "rgb"}, (84, 84, 3)),
        ({"frameskip": 1}, (84, 84)),
        ({"frameskip": 8}, (84, 84)),
        ({"frameskip": np.int64(8)}, (84, 84)),
        ({"repeat_action_probability": 0.0}, (84, 84)),
        ({"mode": 4}, (84, 84)),
        ({"difficulty": 1}, (84, 84)),
        ({"full_action_space": True}, (84, 84)),
        ({"continuous": True}, (84, 84)),
        ({"obs_type": "ram", "continuous": True}, (128,)),
    ],
    ids=str,
)
def test_what_is_given_to_an_atari_game_acts(kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    plain, given = source("ALE/Breakout-v5"), source("ALE/Breakout-v5", **kwargs)
    assert given.spec.observation[0].shape == shape
    if shape == (84, 84) and given.spec == plain.spec:
        one, other = (play(made.factory())[0] for made in (plain, given))
        assert not np.array_equal(one, other)
    else:
        play(given.factory())
    if "full_action_space" in kwargs:
        assert given.spec.action[0].sizes == (18,)
    if "continuous" in kwargs:
        assert given.spec.action[0].shape == (3,)


@pytest.mark.parametrize(
    ("name", "value"), [("frameskip", (2, 5)), ("frameskip", 0), ("sound_obs", True), ("obs_type", "depth")]
)
def test_what_the_preprocessing_has_no_place_for_is_refused_by_name(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^env_kwargs {name}=.*lambda: gymnasium\.make\('ALE/Pong-v5', {name}="):
        daskrl.train(daskrl.DQN(), "ALE/Pong-v5", env_kwargs={name: value}, store=tmp_path / "run", env_steps=9)
    assert not (tmp_path / "run").exists()


def test_grey_is_what_a_game_shows_without_being_asked() -> None:
    assert source("ALE/Pong-v5", obs_type="grayscale").spec == source("ALE/Pong-v5").spec
    np.testing.assert_array_equal(
        *(play(made.factory())[0] for made in (source("ALE/Pong-v5"), source("ALE/Pong-v5", obs_type="grayscale")))
    )
