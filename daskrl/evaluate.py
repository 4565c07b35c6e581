"""Evaluation: whole greedy episodes with any stored version of the weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl import envs, playing
from daskrl.algorithms.base import Algorithm, Setup
from daskrl.config import plain, require_integer
from daskrl.identity import same_algorithm, same_environment
from daskrl.names import suggests
from daskrl.playing import MAX_EPISODE_STEPS
from daskrl.store import Store, html_table, shown


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
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    weights_version: int
    limited: int = 0
    max_episode_steps: int | None = MAX_EPISODE_STEPS
    published_version: int | None = None

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
        }

    def rows(self) -> dict[str, Any]:
        """What tables show, name -> value. Cut episodes have a row where there are some."""
        rows: dict[str, Any] = {
            "episodes": len(self.returns), "mean return": self.mean, "median return": self.median,
            "lowest": min(self.returns), "highest": max(self.returns),
        }  # fmt: skip
        if self.limited:
            rows["cut episodes"] = self.cut
        if self.published_version is not None and self.weights_version < self.published_version:
            rows["newest version"] = f"{self.published_version}, not the one evaluated"
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
        return html_table(f"evaluation of version {self.weights_version}", self.rows())


@suggests
def evaluate(
    store: str | os.PathLike[str] | Store,
    *,
    episodes: int = 100,
    seed: int = 1,
    version: int | None = None,
    env: envs.EnvironmentFactory | None = None,
    algorithm: Algorithm | None = None,
    max_episode_steps: int | None = MAX_EPISODE_STEPS,
    progress: bool = True,
) -> Evaluation:
    """Play whole episodes greedily, each from a seed of its own that training never used.

    Parameters
    ----------
    episodes : how many; episode ``i`` starts from a seed derived from (``seed``, i).
    version : a stored version of the weights; the newest kept by default, with a warning where a newer one was
        published.
    env, algorithm : again the callable or instance the run was made with, where not built in.
    max_episode_steps : an episode that has not ended by then is cut, and counted in ``limited``: a greedy policy may
        never end one. The default is that of ALE's games, 108,000 frames in fours; None is no limit.
    progress : show a progress bar where this takes more than two seconds; on a terminal only.

    Returns
    -------
    Evaluation
        The same for the same arguments, in any process of the same arithmetic.

    Raises
    ------
    ConfigError
        The version is not kept in the store; the message lists those that are.
    """
    episodes, seed, max_episode_steps = plain(episodes), plain(seed), plain(max_episode_steps)
    require_integer("episodes", episodes, 1)
    require_integer("seed", seed, 0)
    if max_episode_steps is not None:
        require_integer("max_episode_steps", max_episode_steps, 1)
    opened = store if isinstance(store, Store) else Store.open(store)
    source, algorithm = same_environment(opened, env), same_algorithm(opened, algorithm)
    found, weights = opened.weights(version)
    setup = Setup(opened.spec, opened.config.schedule, opened.config.frame_stack)
    played = _played(algorithm, setup, source, weights, progress, episodes=episodes, seed=seed, limit=max_episode_steps)
    return Evaluation(
        returns=tuple(episode.episode_return for episode in played),
        lengths=tuple(episode.length for episode in played),
        weights_version=found,
        limited=sum(episode.limited for episode in played),
        max_episode_steps=max_episode_steps,
        published_version=opened.published(),
    )


def _played(
    algorithm: Algorithm, setup: Setup, source: envs.EnvironmentSource, weights: Any, progress: bool,
    *, episodes: int, seed: int, limit: int | None,
) -> list[playing.Played]:  # fmt: skip
    """Play beside a progress bar: of a slow environment, or of a policy that never ends its episodes."""
    from tqdm import tqdm

    with tqdm(total=episodes, unit="episode", delay=2, disable=None if progress else True) as bar:
        bar.set_description(f"evaluating {source.name}", refresh=False)

        def note(over: int, steps: int) -> None:
            bar.set_postfix_str(f"{steps:,} steps", refresh=False)
            bar.update(over - bar.n)

        return playing.play(
            algorithm, setup, source.factory, weights, episodes=episodes, seed=seed, limit=limit, note=note
        )
