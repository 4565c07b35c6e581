"""Episodes that are seen: clips of what is played, windows, and other environments of the same spaces."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import nbformat
import numpy as np
import pytest
from gymnasium import spaces
from nbclient import NotebookClient

import daskrl
from daskrl import errors
from daskrl.envs import video
from daskrl.envs.source import ActionMask
from tests import environments
from tests.typed import daskrl_

QUICK: dict[str, Any] = {"streams": 1, "envs_per_stream": 2, "fragment_steps": 8, "progress": False}


class Painted(gymnasium.Env[Any, Any]):
    """Episodes of as many steps as the seed says; the frame's colour is the step. Takes no ``render_mode``."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self.rendered = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.length, self.count = int(self.np_random.integers(3, 9)), 0
        return self._seen(), {"action_mask": [1, 1]}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._seen(), float(action), self.count == self.length, False, {"action_mask": [1, self.count % 2]}

    def render(self) -> Any:
        assert self.render_mode == "rgb_array"
        return np.full((40, 41, 3), 20 * self.count, np.uint8)

    def _seen(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def painted() -> gymnasium.Env[Any, Any]:
    return Painted()


def masked() -> gymnasium.Env[Any, Any]:
    return ActionMask(Painted())


def frames(path: str | Path) -> list[Any]:
    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]


def trained(place: Path, algorithm: Any, env: Any, **given: Any) -> Path:
    daskrl.train(algorithm, env, store=place, env_steps=32, **QUICK, **given).wait()
    return place


def dqn() -> daskrl.DQN:
    return daskrl.DQN(hidden=(8,), learning_starts=8, batch_size=4, window=256)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("video") / "run", dqn(), painted)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("video") / "run", dqn(), "CartPole-v1")


def test_the_first_episodes_are_recorded_whole_and_played_as_they_are_without(store: Path, tmp_path: Path) -> None:
    plain = daskrl.evaluate(store, env=painted, episodes=20)
    seen = daskrl.evaluate(store, env=painted, episodes=20, video=tmp_path / "clips", video_episodes=18)
    assert (seen.returns, seen.lengths) == (plain.returns, plain.lengths)
    names = [f"version-{plain.weights_version}-episode-{i}.mp4" for i in range(18)]
    assert [Path(path).name for path in seen.videos] == names
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == sorted(names)
    for path, steps in zip(seen.videos, seen.lengths, strict=False):
        colours = [round(float(frame.mean()) / 20) for frame in frames(path)]
        assert colours == list(range(steps + 1))  # from the reset to the last observation
    assert plain.videos == ()


@pytest.mark.parametrize(
    ("algorithm", "env", "given"),
    [
        (dqn(), masked, {}),
        (dqn(), "CartPole-v1", {"frame_stack": 3}),
        (daskrl.PPO(hidden=(8,), lstm=4), "LunarLander-v3", {}),
        (daskrl.SAC(hidden=(8,), learning_starts=8, batch_size=4, replay_ratio=4, window=256), "Pendulum-v1", {}),
        (daskrl.QLearning(), "CliffWalking-v1", {}),
        (dqn(), "MinAtar/Breakout-v1", {}),
        (daskrl.DQN(hidden=(8,), learning_starts=100, window=256), "ALE/Pong-v5", {}),
    ],
    ids=["ActionMask", "frame_stack", "LSTM", "Pendulum", "a table", "MinAtar", "Pong"],
)
def test_rendering_changes_no_bit_of_what_is_played(tmp_path: Path, algorithm: Any, env: Any, given: Any) -> None:
    place = trained(tmp_path / "run", algorithm, env, **given)
    again = {"env": env} if callable(env) else {}
    plain, seen = (
        daskrl.evaluate(place, episodes=3, max_episode_steps=25, **again, **shown)
        for shown in ({}, {"video": tmp_path / "clips", "video_episodes": 2})
    )
    assert (seen.returns, seen.lengths, seen.limited) == (plain.returns, plain.lengths, plain.limited)
    assert [len(frames(path)) for path in seen.videos] == [steps + 1 for steps in plain.lengths[:2]]
    assert len({frame.tobytes() for frame in frames(seen.videos[0])}) > 1 or env == "CliffWalking-v1"


def test_small_pictures_are_drawn_larger_and_shades_of_grey_and_fractions_are_pictures_too() -> None:
    grid = np.zeros((10, 20, 3))
    grid[2, 5] = (1.0, 0.5, 0.0)
    large = video.picture(grid)
    assert (large.shape, large.dtype) == ((240, 480, 3), np.uint8)
    assert large[2 * 24 + 23, 5 * 24].tolist() == [255, 128, 0]
    assert video.picture(np.full((200, 300), 7, np.uint8)).shape == (200, 300, 3)
    assert video.picture(np.full((200, 300, 4), 7, np.uint8)).shape == (200, 300, 3)
    odd = video.picture(np.arange(201 * 301, dtype=np.uint8).reshape(201, 301))  # no such clip is shown by browsers
    assert odd.shape == (202, 302, 3)
    assert (odd[201] == odd[200]).all()
    assert (odd[:, 301] == odd[:, 300]).all()
    with pytest.raises(errors.ConfigError, match="height x width x 3, got str"):
        video.picture("a frame")


def test_what_cannot_be_rendered_is_refused_before_anything_is_played(tmp_path: Path) -> None:
    place = trained(tmp_path / "run", dqn(), environments.walk)
    with pytest.raises(errors.ConfigError, match=r"'walk' cannot be rendered as 'rgb_array': its .* \[\]"):
        daskrl.evaluate(place, env=environments.walk, video=tmp_path / "clips")
    assert not (tmp_path / "clips").exists()


def test_a_file_where_clips_are_to_go_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").write_text("a file")
    with pytest.raises(errors.ConfigError, match="video: expected a directory"):
        daskrl.evaluate(store, env=painted, video=tmp_path / "clips")


def test_a_missing_encoder_names_the_extra(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(errors.ConfigError, match=r"pip install 'daskrl\[video\]'"):
        daskrl.evaluate(store, env=painted, video=tmp_path / "clips")


def test_rendering_that_needs_a_missing_package_or_fails_says_so(store: Path, tmp_path: Path) -> None:
    class NoPygame(Painted):
        def render(self) -> Any:
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed")

    class Broken(Painted):
        def render(self) -> Any:
            raise RuntimeError("no display")

    with pytest.raises(errors.ConfigError, match=r"pygame is not installed. Type: pip install 'daskrl\[video\]'"):
        daskrl.evaluate(store, env=NoPygame, video=tmp_path / "clips")
    with pytest.raises(errors.ConfigError, match="cannot be rendered: RuntimeError: no display"):
        daskrl.evaluate(store, env=Broken, video=tmp_path / "clips")


def test_a_window_shows_one_of_the_environments_and_clips_are_not_made_of_it(store: Path, tmp_path: Path) -> None:
    windows: list[Painted] = []

    def made(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        env = Painted(render_mode)
        windows.extend([env] if render_mode == "human" else [])
        return env

    plain = daskrl.evaluate(store, env=painted, episodes=4)
    assert daskrl.evaluate(store, env=made, episodes=4, render_mode="human").returns == plain.returns
    assert len(windows) == 1
    with pytest.raises(errors.ConfigError, match="render_mode"):
        daskrl.evaluate(store, env=painted, render_mode="human", video=tmp_path / "clips")


# -- other environments ---------------------------------------------------------------------------------------


def test_another_environment_of_the_same_spaces_is_played_and_the_result_says_so(cartpole: Path) -> None:
    def short() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1", max_episode_steps=5)

    own = daskrl.evaluate(cartpole, episodes=3)
    assert (own.environment, own.other_environment) == ("CartPole-v1", False)
    assert "environment" not in repr(own)
    for other in (
        daskrl.evaluate(cartpole, episodes=3, env=short),
        daskrl.evaluate(cartpole, episodes=3, env="CartPole-v1", env_kwargs={"max_episode_steps": 5}),
        daskrl.evaluate(cartpole, episodes=3, env_kwargs={"max_episode_steps": 5}),
    ):
        assert other.lengths == (5, 5, 5)
        assert other.other_environment
        assert other.to_json()["other_environment"] is True
        for said in (repr(other), other._repr_html_()):
            assert "not the one the run learned in" in said
    for same in (
        daskrl.evaluate(cartpole, episodes=3, env="CartPole-v1"),
        daskrl.evaluate(cartpole, episodes=3, env_kwargs={"render_mode": "rgb_array"}),
    ):
        assert (same.returns, same.other_environment) == (own.returns, False)


def test_other_code_is_another_environment_where_the_run_was_made_with_a_callable(store: Path) -> None:
    assert not daskrl.evaluate(store, env=painted, episodes=1).other_environment
    assert daskrl.evaluate(store, env=Painted, episodes=1).other_environment
    with pytest.raises(errors.StoreMismatchError, match="env=painted"):
        daskrl.evaluate(store, episodes=1)
    with pytest.raises(errors.ConfigError, match="env_kwargs go with an id"):
        daskrl.evaluate(store, episodes=1, env_kwargs={"a": 1})


def test_an_environment_of_other_spaces_is_refused_by_name(cartpole: Path) -> None:
    with pytest.raises(
        errors.StoreMismatchError,
        match=r"'Acrobot-v1' has other spaces than the run .*: observation: box\[6\] \(run: observation: box\[4\]\); "
        r"action: discrete\[\] of \[3\] \(run: action: discrete\[\] of \[2\]\)\.",
    ):
        daskrl.evaluate(cartpole, env="Acrobot-v1")


def test_resume_and_reproduce_stay_strict(cartpole: Path) -> None:
    with pytest.raises(errors.StoreMismatchError, match="leave env= out"):
        daskrl.resume(cartpole, env=painted)
    with pytest.raises(errors.StoreMismatchError, match="leave env= out"):
        daskrl.reproduce(cartpole, 0, env=painted)


def test_the_command_line_records_and_plays_in_another_environment(cartpole: Path, tmp_path: Path) -> None:
    typed = ("evaluate", str(cartpole), "--episodes", "2", "--video", "clips", "--video-episodes", "1", "--json")
    printed = json.loads(daskrl_(*typed, cwd=tmp_path).stdout)
    assert len(printed["videos"]) == 1
    assert len(frames(tmp_path / printed["videos"][0])) == printed["lengths"][0] + 1
    assert (printed["environment"], printed["other_environment"]) == ("CartPole-v1", False)
    typed = ("evaluate", str(cartpole), "--episodes", "2", "--env", "CartPole-v0")  # type: ignore[assignment]
    said = " ".join(daskrl_(*typed, cwd=tmp_path).stdout.split())
    assert "CartPole-v0, not the one the run learned in" in said


# -- in a notebook --------------------------------------------------------------------------------------------


def test_a_notebook_shows_the_clips_below_the_cell(cartpole: Path, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [
        nbformat.v4.new_code_cell(f"import daskrl\ndaskrl.evaluate({str(cartpole)!r}, episodes=2, video='clips')")
    ]
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    (output,) = [one for one in notebook.cells[0].outputs if one.output_type == "execute_result"]
    found = re.findall(r'<video [^>]*src="data:video/mp4;base64,([^"]+)"', output["data"]["text/html"])
    assert len(found) == 2
    assert [base64.b64decode(one) for one in found] == [
        path.read_bytes() for path in sorted((tmp_path / "clips").iterdir())
    ]


def test_clips_too_large_for_a_page_are_named(tmp_path: Path) -> None:
    small, large = tmp_path / "small.mp4", tmp_path / "<large>.mp4"
    small.write_bytes(b"x" * 10)
    with large.open("wb") as file:
        file.truncate(1 << 30)
    said = video.shown_in_html((str(large), str(small)))
    assert said.count("<video") == 1
    assert "&lt;large&gt;.mp4" in said
