"""What a run of a study is judged by: a number, out of its finished store."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl.algorithms.base import Setup
from daskrl.analysis.curve import learning_curve
from daskrl.config import plain, require_integer
from daskrl.envs.source import EnvironmentSource
from daskrl.errors import ConfigError
from daskrl.store.store import Store
from daskrl.tasks import playing
from daskrl.tasks.evaluations import SEED

Score = Callable[..., float]


@dataclass(frozen=True)
class Greedy:
    """The mean return of greedy episodes, those of ``daskrl.evaluate(store, version=..., episodes=...)``.

    Parameters
    ----------
    episodes : how many.
    version : ``"last"``: the newest weights; ``"best"``: those that scored best while the run went on, which needs
        ``evaluate_every`` in the study's options.
    """

    episodes: int = 20
    version: str = "last"

    def __post_init__(self) -> None:
        require_integer("episodes", plain(self.episodes), 1)
        if self.version not in ("last", "best"):
            raise ConfigError(f"version: expected 'last' or 'best', got {self.version!r}.")

    def __call__(self, store: Store, algorithm: Any, source: EnvironmentSource) -> float:
        # The episodes of `daskrl.evaluate`, which a worker cannot call: a class that travelled by value has no source.
        _, weights = store.weights(None if self.version == "last" else "best")
        setup = Setup(store.spec, store.config.schedule, store.config.frame_stack)
        played = playing.play(algorithm, setup, source.factory, weights, episodes=self.episodes, seed=SEED)
        return float(np.mean([episode.episode_return for episode in played]))


@dataclass(frozen=True)
class AreaUnderCurve:
    """The mean return of the training episodes, each counted for the env steps from it to the next.

    Before the first episode ends there is no return, and those env steps count nothing. NaN where none ended.
    """

    def __call__(self, store: Store, algorithm: Any, source: EnvironmentSource) -> float:
        curve = learning_curve(store)
        if not len(curve.env_steps):
            return math.nan
        ends = np.append(curve.env_steps[1:], max(int(store.summary()["env_steps"]), int(curve.env_steps[-1]) + 1))
        spans = (ends - curve.env_steps).astype(np.float64)
        return float(np.average(curve.episode_return, weights=spans)) if spans.sum() else math.nan


@dataclass(frozen=True)
class StepsTo:
    """Minus the env steps until the mean return of the newest episodes first reaches a score: more is better.

    A run that does not reach it scores minus all of its env steps.

    Parameters
    ----------
    score : the mean return to reach.
    episodes : how many episodes the mean is of.
    """

    score: float
    episodes: int = 100

    def __call__(self, store: Store, algorithm: Any, source: EnvironmentSource) -> float:
        curve = learning_curve(store)
        means = curve.smoothed(self.episodes)
        reached = np.flatnonzero((means >= self.score) & (np.arange(1, len(means) + 1) >= self.episodes))
        return -float(curve.env_steps[reached[0]] if len(reached) else store.summary()["env_steps"])


_NAMED: dict[str, Score] = {"last": Greedy(), "best": Greedy(version="best"), "auc": AreaUnderCurve()}


def score_of(given: Any) -> Score:
    """What a study was given for ``score``."""
    if isinstance(given, str) and given in _NAMED:
        return _NAMED[given]
    if isinstance(given, str) or not callable(given) or isinstance(given, type):
        raise ConfigError(
            f"score: expected 'last', 'best' or 'auc', daskrl.study.Greedy(), AreaUnderCurve() or StepsTo(195), or a "
            f"function of a Store that returns a number, got {given!r:.200}."
        )
    return given  # type: ignore[no-any-return]


def unit(score: Score) -> str:
    """What a score is, for axes."""
    if isinstance(score, Greedy):
        return f"return of {score.episodes} greedy episodes, {score.version} weights"
    if isinstance(score, AreaUnderCurve):
        return "mean return over training"
    if isinstance(score, StepsTo):
        return f"minus env steps to a return of {score.score:g}"
    return str(getattr(score, "__name__", "score")).strip("<>")


def own(score: Score) -> bool:
    """Whether a score is a user's function of a store alone."""
    return not isinstance(score, Greedy | AreaUnderCurve | StepsTo)


def to_json(score: Score) -> dict[str, Any]:
    """What a study keeps of its score: a function by its name and the hash of its source."""
    if own(score):
        from daskrl.code.captured import Captured
        from daskrl.envs.source import source_sha256

        name = str(getattr(score, "__qualname__", type(score).__qualname__))
        return {"function": name, "source_sha256": source_sha256(score), "captured": Captured({name: score}).table}
    fields: Any = score
    return {"kind": type(score).__name__, **dataclasses.asdict(fields)}


def unit_of(said: Mapping[str, Any]) -> str:
    """`unit`, of what a study keeps of its score."""
    if "function" in said:
        return str(said["function"]).rpartition(".")[2].strip("<>")
    kinds = {kind.__name__: kind for kind in (Greedy, AreaUnderCurve, StepsTo)}
    made: Any = kinds[said["kind"]]
    return unit(made(**{name: value for name, value in said.items() if name != "kind"}))


def scored(score: Score, store: Store, algorithm: Any, source: EnvironmentSource) -> float:
    """The score of a finished run, as a float."""
    found = score(store) if own(score) else score(store, algorithm, source)
    try:
        return float(found)
    except (TypeError, ValueError):
        raise ConfigError(
            f"score: expected a number for {store.storage}, the function returned {found!r:.200}."
        ) from None
