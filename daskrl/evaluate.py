"""Evaluation: whole greedy episodes with any stored version of the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import envs
from daskrl.config import require_integer
from daskrl.rollout import unstacked
from daskrl.spaces import Array
from daskrl.store import Store, html_table
from daskrl.train import same_algorithm, same_environment

if TYPE_CHECKING:
    from daskrl.algorithms.base import Algorithm


@dataclass(frozen=True)
class Evaluation:
    """Returns of whole episodes.

    Attributes
    ----------
    returns, lengths : of each episode, in the order of their seeds.
    weights_version : what was evaluated.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    weights_version: int

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
        }

    def _repr_html_(self) -> str:
        return html_table(
            f"evaluation of version {self.weights_version}",
            {"episodes": len(self.returns), "mean": self.mean, "median": self.median,
             "lowest": min(self.returns), "highest": max(self.returns)},
        )  # fmt: skip


def evaluate(
    store: str | os.PathLike[str] | Store,
    *,
    episodes: int = 100,
    seed: int = 1,
    version: int | None = None,
    env: envs.EnvironmentFactory | None = None,
    algorithm: Algorithm | None = None,
) -> Evaluation:
    """Play whole episodes greedily, each from a seed of its own that training never used.

    Parameters
    ----------
    episodes : how many; episode ``i`` starts from a seed derived from (``seed``, i).
    version : a stored version of the weights; the newest by default.
    env, algorithm : again the callable or instance the run was made with, where not built in.

    Returns
    -------
    Evaluation
        The same for the same arguments, in any process of the same arithmetic.

    Raises
    ------
    ConfigError
        The version is not kept in the store; the message lists those that are.
    """
    import torch

    from daskrl.networks import Flat, to_tensors

    require_integer("episodes", episodes, 1)
    require_integer("seed", seed, 0)
    opened = store if isinstance(store, Store) else Store.open(store)
    source, algorithm = same_environment(opened, env), same_algorithm(opened, algorithm)
    found, weights = opened.weights(version)
    frames = opened.config.frame_stack
    flat = Flat(algorithm.network(opened.spec, frames))
    flat.load_named(weights)
    tensors: dict[str, torch.Tensor] = {}

    def policy(observation: Mapping[str, Array]) -> Array:
        seen = unstacked(observation, frames)
        with torch.inference_mode():
            return algorithm.greedy(flat.module, to_tensors(seen, tensors))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        played = sorted(
            envs.evaluate_episodes(
                source.factory, opened.spec, policy, episodes=episodes, seed=seed, frame_stack=frames
            )
        )
    finally:
        torch.set_num_threads(threads)
    return Evaluation(
        returns=tuple(episode[1] for episode in played),
        lengths=tuple(episode[2] for episode in played),
        weights_version=found,
    )
