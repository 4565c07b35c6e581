"""Studies whose runs are numbers known in advance: they arrive in an order that a test chooses, and nothing is run."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import daskrl
from daskrl.study import Study
from daskrl.study.search import WAIT, Ask, Search, counting, decidable
from daskrl.study.space import Space

Scored = Callable[[dict[str, Any], int], float]
"""Setting, env steps -> score."""


class Killed(Exception):
    """The driver died."""


class Numbers:
    """An executor: of ``workers`` jobs in the air any may be over next; after ``lives`` results the driver dies."""

    def __init__(self, scored: Callable[[Any, int, int], float], workers: int, order: int, lives: int) -> None:
        self.scored, self.workers, self.lives = scored, workers, lives
        self.order, self.random, self.jobs = order, random.Random(order), []
        self.carried: list[tuple[str, int]] = []

    def introduce(self, packages: list[str], device: str) -> Any:
        assert "optuna" not in packages  # workers need not have it
        return {"kind": "arithmetic", "versions": {}}

    def given(self, prepared: Any, score: Any) -> Any:
        return prepared, score

    def room(self) -> int:
        return self.workers - len(self.jobs)

    def want(self, runs: int) -> None:
        pass

    def submit(self, job: Any, *others: int) -> None:
        assert (job.trial, job.env_steps) not in self.carried  # nothing is run twice
        self.carried.append((job.trial, job.env_steps))
        self.jobs.append(job)

    def wait(self) -> list[Any]:
        if not self.lives:
            raise Killed
        self.lives -= 1
        job = self.jobs.pop(self.random.randrange(len(self.jobs)))
        score = self.scored(job.given[0], job.seed, job.env_steps)
        record = {
            "kind": "trial", "trial": job.trial, "env_steps": job.env_steps, "score": score, "seconds": 1.0,
            "queued": 0.5 + self.order, "worker": "none", "digest": f"{job.trial} at {job.env_steps}",
        }  # fmt: skip
        return [record if score == score else {**record, "score": None, "error": "it is NaN"}]

    def wake(self) -> None:
        pass

    def close(self) -> None:
        self.jobs.clear()


def carried(
    monkeypatch: pytest.MonkeyPatch, path: Path, scored: Callable[[Any, int, int], float], *, workers: int = 1,
    order: int = 0, lives: int = 10**9, spending: dict[str, Any] | None = None, **given: Any,
) -> Study:  # fmt: skip
    """A study carried on by `Numbers` to its end, or until the driver died."""
    made: dict[str, Any] = {"env": "CartPole-v1", "algorithm": daskrl.DQN(hidden=(8,), learning_starts=64), **given}
    shape = {"streams": 1, "envs_per_stream": 1, "fragment_steps": 8}
    study = Study(path, **{"env_steps": 900, "seeds": 1, **shape, **made})
    executor = Numbers(scored, workers, order, lives)
    monkeypatch.setattr("daskrl.study.study.InProcess", lambda: executor)
    return study.run(progress=False, **(spending or {}))


def killed(
    monkeypatch: pytest.MonkeyPatch, path: Path, scored: Callable[[Any, int, int], float], *, lives: int, **given: Any
) -> tuple[Study, int]:
    """The same by drivers that die after so many results each, one after the other; and how many died."""
    for deaths in range(100):
        with contextlib.suppress(Killed):
            return carried(monkeypatch, path, scored, order=deaths, lives=lives, **given), deaths
    raise AssertionError("the study does not end")


def played(search: Search, space: dict[str, Any], scored: Scored, env_steps: int, seed: int = 0) -> list[Ask]:
    """What a search asks for where each result is there as soon as it may count."""
    axes = Space(space)
    search.check(axes, env_steps)
    asked: list[Any] = []
    told: dict[int, float] = {}
    for number in range(10_000):
        assert decidable(search, number, number)
        ask = search.next(axes, env_steps, seed, asked, counting(search, number, told))
        if ask is None:
            return [one for one in asked if one is not WAIT]
        if isinstance(ask, Ask):
            told[number] = scored(dict(ask.setting), ask.env_steps)
        asked.append(ask)
    raise AssertionError("the search does not end")
