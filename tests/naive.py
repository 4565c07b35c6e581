"""Formulas of papers as they are printed: loops in NumPy, slow and plain, that the tests compare with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

GAMMA, LAMBDA = 0.9, 0.7


STEPS, LANES = 9, 4


def tensors(arrays: dict[str, np.ndarray], *names: str) -> Any:
    return [torch.from_numpy(arrays[name]) for name in names]


def naive_vtrace(
    arrays: dict[str, np.ndarray], rho_clip: float, c_clip: float, lambda_: float
) -> tuple[np.ndarray, np.ndarray]:
    """Equation 1 as it is printed: for each step a sum over the steps after it, with its product of traces."""
    rho = np.minimum(np.exp(arrays["log_rho"]), rho_clip)
    c = lambda_ * np.minimum(np.exp(arrays["log_rho"]), c_clip)
    target, advantage = np.empty((STEPS, LANES)), np.empty((STEPS, LANES))
    for lane in range(LANES):
        for s in range(STEPS):
            total = arrays["value"][s, lane]
            for t in range(s, STEPS):
                product = math.prod(c[i, lane] * arrays["discount"][i, lane] for i in range(s, t))
                if any(arrays["ended"][i, lane] for i in range(s, t)):
                    break
                delta = rho[t, lane] * (
                    arrays["reward"][t, lane]
                    + arrays["discount"][t, lane] * arrays["next_value"][t, lane]
                    - arrays["value"][t, lane]
                )
                total += product * delta
            target[s, lane] = total
        for s in range(STEPS):
            last = s == STEPS - 1 or arrays["ended"][s, lane]
            following = arrays["next_value"][s, lane] if last else target[s + 1, lane]
            advantage[s, lane] = rho[s, lane] * (
                arrays["reward"][s, lane] + arrays["discount"][s, lane] * following - arrays["value"][s, lane]
            )
    return target, advantage


def naive_find(leaves: np.ndarray, mass: int) -> int:
    """The first leaf whose running sum exceeds a mass."""
    running = 0
    for index, value in enumerate(leaves.tolist()):
        running += value
        if running > mass:
            return index
    raise AssertionError("the mass is not below the total")


def naive_projection(p: np.ndarray, reward: np.ndarray, discount: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Bellemare et al. (2017), one atom at a time."""
    result = np.zeros_like(p)
    step = (z[-1] - z[0]) / (len(z) - 1)
    for row in range(len(p)):
        for j in range(len(z)):
            place = (min(max(reward[row] + discount[row] * z[j], z[0]), z[-1]) - z[0]) / step
            place = min(place, len(z) - 1)  # where rounding takes the last atom beyond itself
            low, up = math.floor(place), math.ceil(place)
            if low == up:
                result[row, low] += p[row, j]
            else:
                result[row, low] += p[row, j] * (up - place)
                result[row, up] += p[row, j] * (place - low)
    return result
