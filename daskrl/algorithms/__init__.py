"""Algorithms: one file each. `daskrl.algorithms.base` says what one must have."""

from __future__ import annotations

from daskrl.algorithms.base import Algorithm
from daskrl.algorithms.dqn import DQN
from daskrl.errors import ConfigError

BUILT_IN: dict[str, type[Algorithm]] = {"dqn": DQN}


def by_name(name: str) -> type[Algorithm]:
    """A built-in algorithm's class by its name in lower case."""
    try:
        return BUILT_IN[name.lower()]
    except KeyError:
        raise ConfigError(f"algorithm: expected one of {sorted(BUILT_IN)}, got {name!r}.") from None


__all__ = ["BUILT_IN", "DQN", "Algorithm", "by_name"]
