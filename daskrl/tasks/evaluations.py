"""The evaluation task: greedy episodes with one version of the weights, beside a run's rollouts.

A pure function of (weights, episodes, seed): the returns are those of `daskrl.evaluate`. It is played a short while at
a time, so that no rollout waits long for it; what it has played so far is a cache of the worker, and lost with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from daskrl.algorithms.base import recurrent_state
from daskrl.arithmetic import pinned
from daskrl.config import MAX_EPISODE_STEPS
from daskrl.errors import StoreMismatchError
from daskrl.records import Evaluating, EvaluationRecord
from daskrl.store.weights import read_weights
from daskrl.tasks import playing, rollout
from daskrl.tasks.playing import Played, Playing
from daskrl.tasks.session import Session, get

SEED = 1  # that of `daskrl.evaluate` unless another is asked for: all versions play the same episodes
AT_A_TIME = 0.1  # seconds


def evaluate(
    token: str, version: int, written: Sequence[Any], episodes: int, learner: str = ""
) -> EvaluationRecord | Evaluating:
    """Play on, for a tenth of a second.

    Called by the driver's pool on any worker, again and again until what it returns is the record of the evaluation.
    Whatever goes wrong in the episodes is in the record as ``error``: a run goes on without.

    Parameters
    ----------
    written : the file of the weights, as its commit record names it.
    """
    session = get(token)
    under_way = session.evaluations.take((learner, version))

    def play_on(alive: Callable[[], None]) -> EvaluationRecord | Evaluating:
        made = under_way if under_way is not None else _begin(session, written, episodes, alive)
        began = time.monotonic()
        for played in made.steps:
            alive()
            if played is not None:
                made.played.append(played)
            if time.monotonic() - began > AT_A_TIME:
                made.seconds += time.monotonic() - began
                session.evaluations.keep((learner, version), made)
                on_its_way: Evaluating = {"kind": "evaluating", "version": version}
                if learner:
                    on_its_way["learner"] = learner
                return on_its_way
        return _record(version, sorted(made.played), made.seconds + time.monotonic() - began, learner)

    where = f"the evaluation of version {version}"
    try:
        session.layout.require_same_run()
        with pinned():
            return rollout.within(session.options.rollout_timeout, play_on, where)
    except StoreMismatchError:
        raise
    except Exception as error:
        return {**_record(version, [], 0.0, learner), "error": f"{type(error).__name__}: {error}"}


def _begin(session: Session, written: Sequence[Any], episodes: int, alive: Callable[[], None]) -> Playing:
    weights = read_weights(session.layout.storage, written, session.layout.patience)
    setup = session.setup()
    policy = playing.greedy_policy(session.algorithm, setup, weights, SEED)
    return Playing(
        playing.play_steps(
            session.factory, setup.spec, policy, episodes=episodes, seed=SEED, frame_stack=setup.frame_stack,
            state=recurrent_state(session.algorithm, setup), limit=MAX_EPISODE_STEPS, alive=alive,
            outside=playing.forbid_outside if session.options.strict_bounds else None,
        )
    )  # fmt: skip


def _record(version: int, played: Sequence[Played], seconds: float, learner: str) -> EvaluationRecord:
    record: EvaluationRecord = {
        "kind": "evaluation",
        "version": version,
        "returns": [one.episode_return for one in played],
        "lengths": [one.length for one in played],
        "limited": sum(one.limited for one in played),
        "max_episode_steps": MAX_EPISODE_STEPS,
        "seed": SEED,
        "seconds": seconds,
    }
    if learner:
        record["learner"] = learner
    return record
