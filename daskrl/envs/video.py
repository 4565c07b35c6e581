"""Rendered environments: clips of episodes as they are played, or a window.

Gymnasium's RecordVideo keeps every frame until the episode is over (0.7 MB each of CartPole, 19 GB of an episode that
never ends) and encodes all then; here each frame is encoded when it comes, to files named alike.
"""

from __future__ import annotations

import base64
import html
import inspect
import math
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from daskrl import extras
from daskrl.envs.source import Environment, EnvironmentFactory, EnvironmentSource, Registered, source
from daskrl.errors import ConfigError
from daskrl.records import Array

_SMALLEST = 240  # pixels of a clip's shorter side: grids of a few pixels are drawn larger
_EMBEDDED = 8 << 20  # bytes of clips in a notebook; larger ones are named

_GL = (
    "MuJoCo renders without a window through EGL or OSMesa. Before Python starts, type: export MUJOCO_GL=egl, or "
    "without a GPU: apt install libosmesa6 && export MUJOCO_GL=osmesa"
)


class Clips:
    """Rendered environments in place of the plain ones, of which the first few episodes are written as they are played.

    Parameters
    ----------
    factory : makes an environment that renders.
    folder : where clips go, ``PREFIX-episode-N.mp4``; None writes none.
    prefix : of the files' names.
    episodes : the first so many are recorded. Without a folder, one environment is rendered.
    """

    def __init__(self, factory: EnvironmentFactory, folder: Path | None, prefix: str, episodes: int) -> None:
        self.factory, self.folder, self.prefix, self.episodes = factory, folder, prefix, episodes
        self.paths: dict[int, Path] = {}
        self._lanes: dict[int, Recording] = {}

    def environment(self, lane: int) -> Environment | None:
        """The environment to play in the place of a lane's own, where the lane is rendered."""
        if self.folder is None:
            return self.factory() if lane == 0 else None
        if lane >= self.episodes:
            return None
        self._lanes[lane] = Recording(self.factory())
        return self._lanes[lane]

    def begin(self, lane: int, episode: int) -> None:
        """A lane will be reset for an episode."""
        recording = self._lanes.get(lane)
        if recording is not None and self.folder is not None:
            recording.finish()
            if episode < self.episodes:
                path = self.folder / f"{self.prefix}-episode-{episode}.mp4"
                recording.begin(path)
                self.paths[episode] = path

    def written(self) -> tuple[str, ...]:
        """The clips, in the order of their episodes."""
        return tuple(str(path) for _, path in sorted(self.paths.items()))


class Recording(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes what an environment renders: from the reset after `begin` until `finish`, `close` or the next `begin`."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._path: Path | None = None
        self._writer: Generator[None, Any, None] | None = None

    def begin(self, path: Path) -> None:
        self.finish()
        self._path = path

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        self._capture()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._capture()
        return result

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._path = self._writer = None

    def close(self) -> None:
        self.finish()
        super().close()

    def _capture(self) -> None:
        if self._path is None:
            return
        frame = picture(self.env.render())
        if self._writer is None:
            self._writer = _writer(self._path, frame, float(self.metadata.get("render_fps") or 30))
        self._writer.send(frame)


def _writer(path: Path, frame: Array, fps: float) -> Generator[None, Any, None]:
    import imageio_ffmpeg

    height, width = frame.shape[:2]
    writer: Generator[None, Any, None] = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    return writer


def picture(frame: Any) -> Array:
    """A rendered frame as ``[H, W, 3]`` bytes, C-contiguous, of even sides; small ones drawn larger, pixel by pixel."""
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3):
        raise ConfigError(
            f"video: expected render() to return an array of height x width x 3, got {type(frame).__name__}."
        )
    if frame.ndim == 2:
        frame = frame[:, :, None]
    frame = frame[:, :, :3] if frame.shape[2] >= 3 else np.repeat(frame[:, :, :1], 3, axis=2)
    if frame.dtype.kind in "fb":  # in [0, 1]
        frame = np.rint(np.clip(frame, 0, 1) * 255.0)
    times = math.ceil(_SMALLEST / min(frame.shape[:2])) if min(frame.shape[:2]) < _SMALLEST // 2 else 1
    frame = frame.astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)
    # H.264 as browsers show it has an even number of rows and columns: the last of an odd number is drawn twice.
    return np.ascontiguousarray(np.pad(frame, ((0, len(frame) % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge"))


def clips(found: EnvironmentSource, mode: str, folder: Path | None, prefix: str, episodes: int) -> Clips:
    """What renders an environment in a mode. An environment that cannot is refused before anything is played.

    Raises
    ------
    ConfigError
        The environment has no such render mode, or rendering, or writing a clip, does not work here.
    """
    if folder is not None:
        _require_encoder()
    plain = found.factory()
    known = list(plain.metadata.get("render_modes") or [])
    plain.close()
    if mode not in known:
        raise ConfigError(
            f"{found.name!r} cannot be rendered as {mode!r}: its render modes are {known}. Give env= an environment of "
            "the same spaces that can, or leave render_mode= and video= out."
        )
    factory = rendered(found, mode)
    if mode != "human":  # a window would open
        _try(found.name, factory, folder is not None)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"video: expected a directory for clips, got {str(folder)!r}: {why}.") from error
    return Clips(factory, folder, prefix, episodes)


def rendered(found: EnvironmentSource, mode: str) -> EnvironmentFactory:
    """A factory of the same environment in a render mode.

    A callable that takes ``render_mode`` is given it. Where it does not, the environment's own ``render_mode`` is set,
    which environments read when they render.
    """
    if found.identity["kind"] == "id":
        return source(found.identity["id"], **{**kwargs_of(found), "render_mode": mode}).factory
    make: Callable[..., Environment] = found.factory

    def made() -> Environment:
        env = make(render_mode=mode) if _takes(make, "render_mode") else make()
        if env.render_mode != mode:
            env.unwrapped.render_mode = mode
        return env

    return made


def kwargs_of(found: EnvironmentSource) -> Mapping[str, Any]:
    """What an environment with an id is made with."""
    assert isinstance(found.factory, Registered)
    return found.factory.kwargs


def _takes(make: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(make).parameters
    except (TypeError, ValueError):  # some built-in callables have none
        return False


def _try(name: str, factory: EnvironmentFactory, recorded: bool) -> None:
    """Make, reset and render one environment."""
    env = factory()
    try:
        env.reset(seed=0)
        frame = env.render()
        if recorded:
            picture(frame)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(
            f"{name!r} cannot be rendered: {str(error).rstrip('.')}. {extras.install('video')}"
        ) from error
    except ConfigError:
        raise
    except Exception as error:
        hint = f" {_GL}" if "mujoco" in type(env.unwrapped).__module__ else ""
        why = str(error).rstrip(".")
        raise ConfigError(f"{name!r} cannot be rendered: {type(error).__name__}: {why}.{hint}") from error
    finally:
        env.close()


def _require_encoder() -> None:
    with extras.needed("video", "clips need imageio-ffmpeg"):
        import imageio_ffmpeg
    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise ConfigError(f"clips need ffmpeg: {str(error).rstrip('.')}. {extras.install('video')}") from error


def shown_in_html(paths: tuple[str, ...]) -> str:
    """Clips for Jupyter: within the page, as long as they are small together; else by name."""
    parts, room = [], _EMBEDDED
    for path in map(Path, paths):
        size = path.stat().st_size if path.exists() else room + 1
        if size > room:
            parts.append(f"<div>{html.escape(str(path))}</div>")
            continue
        room -= size
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<video controls loop muted title="{html.escape(path.name)}" style="max-width:320px" '
            f'src="data:video/mp4;base64,{data}"></video>'
        )
    return "".join(parts)
