"""Evaluation: whole greedy episodes with any stored version of the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl import envs, seeding
from daskrl.algorithms.base import Algorithm, Moment, Setup, recurrent_state
from daskrl.config import require_integer
from daskrl.identity import same_algorithm, same_environment
from daskrl.spaces import Array
from daskrl.store import Store, html_table


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

    require_integer("episodes", episodes, 1)
    require_integer("seed", seed, 0)
    opened = store if isinstance(store, Store) else Store.open(store)
    source, algorithm = same_environment(opened, env), same_algorithm(opened, algorithm)
    found, weights = opened.weights(version)
    setup = Setup(opened.spec, opened.config.schedule, opened.config.frame_stack)
    acting = algorithm.policy(setup)
    algorithm.load(acting, weights)
    moment = Moment({}, seeding.generator(seed, "evaluate"), greedy=True)

    def policy(observation: Mapping[str, Array], state: dict[str, Array]) -> Array:
        moment.observation, moment.state = observation, state
        with torch.inference_mode():
            chosen = algorithm.act(acting, moment)
        return chosen[0] if isinstance(chosen, tuple) else chosen

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        played = sorted(
            envs.evaluate_episodes(
                source.factory,
                opened.spec,
                policy,
                episodes=episodes,
                seed=seed,
                frame_stack=setup.frame_stack,
                state=recurrent_state(algorithm, setup),
            )
        )
    finally:
        torch.set_num_threads(threads)
    return Evaluation(
        returns=tuple(episode[1] for episode in played),
        lengths=tuple(episode[2] for episode in played),
        weights_version=found,
    )
