"""Evaluation: whole greedy episodes with any stored version of the weights."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daskrl.algorithms.base import Algorithm, Setup
from daskrl.algorithms.base import shown as leaves_shown
from daskrl.config import MAX_EPISODE_STEPS, plain, require_integer
from daskrl.envs import source as sources
from daskrl.envs import video as clips
from daskrl.envs.spaces import Leaf
from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.identity import same_algorithm, same_environment
from daskrl.names import suggests
from daskrl.shown import html_table, shown
from daskrl.store.store import Store
from daskrl.store.store import opened as opened_store
from daskrl.tasks import playing


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Returns of whole episodes.

    Attributes
    ----------
    returns, lengths : of each episode, in the order of their seeds.
    weights_version : what was evaluated.
    limited : how many of the episodes did not end, but were cut after ``max_episode_steps``. ``returns``, ``mean`` and
        ``median`` include them, with the rewards until then.
    max_episode_steps : the limit; None for none.
    published_version : the newest version that the run had published; it is not the one evaluated where another was
        asked for, or where the newest is not kept (a run that goes on, or whose driver was killed).
    environment : what was played; ``other_environment``: it is not the one the run learned in.
    videos : the clips written, in the order of their episodes.
    caveat : why the episodes may score other than those of training did, where the environment keeps something beyond
        an episode; else empty.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    weights_version: int
    limited: int = 0
    max_episode_steps: int | None = MAX_EPISODE_STEPS
    published_version: int | None = None
    environment: str = ""
    other_environment: bool = False
    videos: tuple[str, ...] = ()
    caveat: str = ""

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def median(self) -> float:
        return float(np.median(self.returns))

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "median": self.median,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "weights_version": self.weights_version,
            "limited": self.limited,
            "max_episode_steps": self.max_episode_steps,
            "published_version": self.published_version,
            "environment": self.environment,
            "other_environment": self.other_environment,
            "videos": list(self.videos),
            "caveat": self.caveat,
        }

    def rows(self) -> dict[str, Any]:
        """What tables show, name -> value. What is out of the ordinary has a row where there is some of it."""
        rows: dict[str, Any] = {} if not self.other_environment else {
            "environment": f"{self.environment}, not the one the run learned in"
        }  # fmt: skip
        rows |= {
            "episodes": len(self.returns), "mean return": self.mean, "median return": self.median,
            "lowest": min(self.returns), "highest": max(self.returns),
        }  # fmt: skip
        if self.limited:
            rows["cut episodes"] = self.cut
        if self.published_version is not None and self.weights_version < self.published_version:
            rows["newest version"] = f"{self.published_version}, not the one evaluated"
        if self.videos:
            rows["clips"] = ", ".join(self.videos)
        if self.caveat:
            rows["caveat"] = self.caveat
        return rows

    @property
    def cut(self) -> str:
        """How many episodes were cut, in words; empty where none was."""
        if not self.limited:
            return ""
        return f"{self.limited} of {len(self.returns)}, after {self.max_episode_steps:,} steps; the mean includes them"

    def __repr__(self) -> str:
        rows = ", ".join(f"{name} {shown(value)}" for name, value in self.rows().items())
        return f"<Evaluation of version {self.weights_version}: {rows}>"

    def _repr_html_(self) -> str:
        table = html_table(f"evaluation of version {self.weights_version}", self.rows())
        return table + clips.shown_in_html(self.videos)


@suggests
def evaluate(
    store: str | os.PathLike[str] | Store,
    *,
    episodes: int = 100,
    seed: int = 1,
    version: int | str | None = None,
    env: str | sources.EnvironmentFactory | None = None,
    algorithm: Algorithm | None = None,
    max_episode_steps: int | None = MAX_EPISODE_STEPS,
    env_kwargs: Mapping[str, Any] | None = None,
    render_mode: str | None = None,
    video: str | os.PathLike[str] | None = None,
    video_episodes: int = 3,
    progress: bool = True,
) -> Evaluation:
    """Play whole episodes greedily, each from a seed of its own that training never used.

    Parameters
    ----------
    store : of the run, by its directory or opened, or the `daskrl.Run` itself.
    episodes : how many; episode ``i`` starts from a seed derived from (``seed``, i).
    version : a stored version of the weights; the newest kept by default, with a warning where a newer one was
        published. ``"best"`` is that of `Store.best`.
    env : again the callable the run was made with, where it was one. Or another environment of the same spaces, an id
        or a callable: the result then says so.
    algorithm : again the instance the run was made with, where not built in.
    max_episode_steps : an episode that has not ended by then is cut, and counted in ``limited``: a greedy policy may
        never end one. The default is that of ALE's games, 108,000 frames in fours; None is no limit.
    env_kwargs : given to ``gymnasium.make`` with the id ``env``, or with the run's own id beside what it was given.
    render_mode : ``"human"`` shows the first of the environments played side by side in a window.
    video : directory for clips, ``version-V-episode-N.mp4``; in Jupyter they are below the cell. What is recorded is
        played as it is without. Needs ``daskrl[video]``.
    video_episodes : the first so many episodes are recorded.
    progress : show a progress bar where this takes more than two seconds; on a terminal only.

    Returns
    -------
    Evaluation
        The same for the same arguments, in any process of the same arithmetic.

    Raises
    ------
    ConfigError
        The version is not kept in the store; the message lists those that are. Or the environment cannot be rendered.
    StoreMismatchError
        The environment has other spaces than the run's.
    """
    episodes, seed, max_episode_steps = plain(episodes), plain(seed), plain(max_episode_steps)
    video_episodes = plain(video_episodes)
    require_integer("episodes", episodes, 1)
    require_integer("seed", seed, 0)
    require_integer("video_episodes", video_episodes, 1)
    if max_episode_steps is not None:
        require_integer("max_episode_steps", max_episode_steps, 1)
    opened = opened_store(store)
    source, other = _environment(opened, env, env_kwargs)
    algorithm = same_algorithm(opened, algorithm)
    caveat = _caveat(opened, source)
    if caveat:
        warnings.warn(caveat, stacklevel=2)
    found, weights = opened.weights(version)
    setup = Setup(opened.spec, opened.config.schedule, opened.config.frame_stack)
    shown = _shown(source, render_mode, video, f"version-{found}", video_episodes)
    left: list[str] = []
    played = _played(
        algorithm, setup, source, weights, progress, shown, episodes=episodes, seed=seed, limit=max_episode_steps,
        outside=playing.forbid_outside if opened.budget()["options"].get("strict_bounds") else left.append,
    )  # fmt: skip
    for said in left:
        warnings.warn(
            f"{said}. It was played as it is, and this is said once an evaluation. Correct the space, or clip the "
            "observation.",
            stacklevel=2,
        )
    return Evaluation(
        returns=tuple(episode.episode_return for episode in played),
        lengths=tuple(episode.length for episode in played),
        weights_version=found,
        limited=sum(episode.limited for episode in played),
        max_episode_steps=max_episode_steps,
        published_version=opened.published(),
        environment=source.name,
        other_environment=other,
        videos=() if shown is None else shown.written(),
        caveat=caveat,
    )


def _caveat(store: Store, source: sources.EnvironmentSource) -> str:
    known = source.remembers
    if known is None:
        known = next((r["reason"] for r in store.progress().off if r.get("environment")), None)
    if known is None:
        return ""
    return (
        "These episodes are played in new environments, which know nothing of those that trained: the scores may be "
        f"others than training's. {known}"
    )


def _environment(
    store: Store, env: str | sources.EnvironmentFactory | None, env_kwargs: Mapping[str, Any] | None
) -> tuple[sources.EnvironmentSource, bool]:
    """What to play in, and whether it is another environment than the run's."""
    kept, given = store.config.environment, sources.arguments(env_kwargs)
    if env is None and not given:
        return same_environment(store, None), False
    if env is None and kept["kind"] != "id":
        bound = f"{kept['name'].rpartition('.')[2].replace('<lambda>', '...')}({', '.join(f'{n}=...' for n in given)})"
        raise ConfigError(
            f"env_kwargs go with an id; the run was made with the callable {kept['name']!r}. Bind them: "
            f"env=lambda: {bound}"
        )
    if env is None:
        own = same_environment(store, None)
        source = sources.source(kept["id"], **{**clips.kwargs_of(own), **given})
    elif isinstance(env, str) or given:
        source = sources.source(env, **given)
    else:
        try:
            return same_environment(store, env), False
        except StoreMismatchError:
            source = sources.source(env)
    if not source.spec.is_stored_as(store.spec):
        differs = "; ".join(
            f"{said} (run: {kept})"
            for name in ("observation", "action")
            for said, kept in [_differing(getattr(source.spec, name), getattr(store.spec, name))]
            if said != kept
        )
        raise StoreMismatchError(
            f"env: {source.name!r} has other spaces than the run in {store.storage}: {differs}. Expected an "
            "environment of the same spaces; wrap it."
        )
    ids = source.identity["kind"] == kept["kind"] == "id"
    return source, not ids or _named(source.identity) != _named(kept)


def _differing(played: Sequence[Leaf], kept: Sequence[Leaf]) -> tuple[str, str]:
    """Two spaces as messages name them: in short where that says how they differ."""

    def short(leaves: Sequence[Leaf]) -> str:
        return leaves_shown(leaves) + "".join(f" of {list(leaf.sizes)}" for leaf in leaves if leaf.sizes)

    said = short(played), short(kept)
    return said if said[0] != said[1] else (str(list(played)), str(list(kept)))


def _named(identity: Mapping[str, Any]) -> str:
    """The id of an environment and what it is made with, but for how it is rendered."""
    kwargs = {name: value for name, value in identity["kwargs"].items() if name != "render_mode"}
    return json.dumps([identity["id"].rpartition(":")[2], kwargs], sort_keys=True, default=repr)


def _shown(
    source: sources.EnvironmentSource,
    render_mode: str | None,
    video: str | os.PathLike[str] | None,
    prefix: str,
    episodes: int,
) -> clips.Clips | None:
    if render_mode is None and video is None:
        return None
    if video is not None and render_mode not in (None, "rgb_array"):
        raise ConfigError(f"render_mode: clips are made of 'rgb_array', got {render_mode!r}. Leave it or video= out.")
    folder = None if video is None else Path(video)
    return clips.clips(source, render_mode or "rgb_array", folder, prefix, episodes)


def _played(
    algorithm: Algorithm, setup: Setup, source: sources.EnvironmentSource, weights: Any, progress: bool,
    shown: clips.Clips | None, *, episodes: int, seed: int, limit: int | None, outside: playing.Outside,
) -> list[playing.Played]:  # fmt: skip
    """Play beside a progress bar: of a slow environment, or of a policy that never ends its episodes."""
    from tqdm import tqdm

    with tqdm(total=episodes, unit="episode", delay=2, disable=None if progress else True) as bar:
        bar.set_description(f"evaluating {source.name}", refresh=False)

        def note(over: int, steps: int) -> None:
            bar.set_postfix_str(f"{steps:,} steps", refresh=False)
            bar.update(over - bar.n)

        return playing.play(
            algorithm, setup, source.factory, weights, episodes=episodes, seed=seed, limit=limit, note=note,
            shown=shown, outside=outside,
        )  # fmt: skip
