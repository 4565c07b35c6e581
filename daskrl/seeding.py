"""All randomness is derived from (seed, purpose, place), never carried from one task to the next.

Each task builds its own generator, so a task that runs twice, late, or elsewhere draws the same numbers.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

Purpose = Literal[
    "environment", "act", "learn", "initialise", "evaluate", "evaluate_environment", "statistics", "study"
]  # fmt: skip

# Part of every stored result: a number here is never changed or reused.
_PURPOSES: dict[str, int] = {
    "environment": 0,
    "act": 1,
    "learn": 2,
    "initialise": 3,
    "evaluate": 4,
    "evaluate_environment": 5,
    "statistics": 6,
    "study": 7,
}


def sequence(seed: int, purpose: Purpose, *place: int, key: str = "") -> np.random.SeedSequence:
    """The seed sequence of one purpose at one place, e.g. ``("act", stream, round)``.

    ``key`` : of the learner or agent, where a run has several. Each has a sequence of its own; "" is of a run with one.
    """
    words = np.frombuffer(hashlib.sha256(key.encode()).digest(), "<u4").tolist() if key else []
    return np.random.SeedSequence([seed, _PURPOSES[purpose], *place], spawn_key=words)


def generator(seed: int, purpose: Purpose, *place: int, key: str = "") -> np.random.Generator:
    """A generator (PCG64) of one purpose at one place."""
    return np.random.Generator(np.random.PCG64(sequence(seed, purpose, *place, key=key)))


def environment_seed(seed: int, stream: int, env: int, episode: int, purpose: Purpose = "environment") -> int:
    """The seed given to ``env.reset`` at the start of one episode, in ``[0, 2**31)``."""
    block, place = divmod(episode, BLOCK)
    return _environment_seeds(seed, purpose, stream, env, block)[place]


def environment_seeds(seed: int, stream: int, first_episode: Sequence[int]) -> list[int]:
    """The reset seed of each environment's episode at the start of a fragment."""
    return [environment_seed(seed, stream, env, episode) for env, episode in enumerate(first_episode)]


# Seeds of many episodes from one sequence: short episodes need one every few steps, and a sequence costs as much
# as those steps. Part of every stored result, like the purposes.
BLOCK = 64


@functools.lru_cache(maxsize=4096)
def _environment_seeds(seed: int, purpose: Purpose, stream: int, env: int, block: int) -> tuple[int, ...]:
    state = sequence(seed, purpose, stream, env, block).generate_state(BLOCK, np.uint32)
    return tuple((state >> np.uint32(1)).tolist())


def environment_seed_block(seed: int, stream: int, env: int, block: int) -> tuple[int, ...]:
    """The seeds of the episodes from ``block * BLOCK`` on, `BLOCK` of them, as `environment_seed` has each."""
    return _environment_seeds(seed, "environment", stream, env, block)
