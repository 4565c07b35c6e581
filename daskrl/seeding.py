"""All randomness is derived from (seed, purpose, place), never carried from one task to the next.

Each task builds its own generator, so a task that runs twice, late, or elsewhere draws the same numbers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Purpose = Literal["environment", "act", "learn", "initialise", "evaluate", "evaluate_environment"]

# Part of every stored result: a number here is never changed or reused.
_PURPOSES: dict[str, int] = {
    "environment": 0,
    "act": 1,
    "learn": 2,
    "initialise": 3,
    "evaluate": 4,
    "evaluate_environment": 5,
}


def sequence(seed: int, purpose: Purpose, *place: int) -> np.random.SeedSequence:
    """The seed sequence of one purpose at one place, e.g. ``("act", stream, round)``."""
    return np.random.SeedSequence([seed, _PURPOSES[purpose], *place])


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """A generator (PCG64) of one purpose at one place."""
    return np.random.Generator(np.random.PCG64(sequence(seed, purpose, *place)))


def environment_seed(seed: int, stream: int, env: int, episode: int, purpose: Purpose = "environment") -> int:
    """The seed given to ``env.reset`` at the start of one episode, in ``[0, 2**31)``."""
    return int(sequence(seed, purpose, stream, env, episode).generate_state(1, np.uint32)[0] >> np.uint32(1))
