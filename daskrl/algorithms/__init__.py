"""Algorithms: one file each. `daskrl.algorithms.base` says what an algorithm must have.

Importing this package imports neither an algorithm nor torch: a class is imported when it is asked for, or by
`by_name`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from daskrl.errors import ConfigError
from daskrl.names import did_you_mean

if TYPE_CHECKING:
    from daskrl.algorithms.c51 import C51
    from daskrl.algorithms.dqn import DQN
    from daskrl.algorithms.impala import IMPALA
    from daskrl.algorithms.ppo import PPO
    from daskrl.algorithms.q_learning import QLearning
    from daskrl.algorithms.qr_dqn import QRDQN
    from daskrl.algorithms.r2d2 import R2D2
    from daskrl.algorithms.rainbow import Rainbow
    from daskrl.algorithms.sac import SAC
    from daskrl.algorithms.td3 import TD3

# Name on the command line -> module, class.
_WHERE = {
    "q-learning": ("q_learning", "QLearning"),
    "dqn": ("dqn", "DQN"),
    "c51": ("c51", "C51"),
    "qr-dqn": ("qr_dqn", "QRDQN"),
    "rainbow": ("rainbow", "Rainbow"),
    "r2d2": ("r2d2", "R2D2"),
    "ppo": ("ppo", "PPO"),
    "impala": ("impala", "IMPALA"),
    "sac": ("sac", "SAC"),
    "td3": ("td3", "TD3"),
}


class _BuiltIn(Mapping[str, Any]):
    """Built-in algorithms by their names on the command line; each is imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        module, cls = _WHERE[name]
        return getattr(importlib.import_module(f"daskrl.algorithms.{module}"), cls)

    def __iter__(self) -> Iterator[str]:
        return iter(_WHERE)

    def __len__(self) -> int:
        return len(_WHERE)


BUILT_IN: Mapping[str, Any] = _BuiltIn()


def by_name(name: str) -> Any:
    """A built-in algorithm's class by its name on the command line, e.g. ``"qr-dqn"``."""
    try:
        return BUILT_IN[name.lower().replace("_", "-")]
    except KeyError:
        meant = did_you_mean(name, BUILT_IN)
        raise ConfigError(f"algorithm: expected one of {sorted(BUILT_IN)}, got {name!r}.{meant}") from None


def by_class_name(name: str) -> Any:
    """A built-in algorithm's class by its own name, as stores keep it."""
    for key, (_, cls) in _WHERE.items():
        if cls == name:
            return BUILT_IN[key]
    raise ConfigError(
        f"algorithm: this daskrl has no built-in {name!r}; it has {sorted(c for _, c in _WHERE.values())}."
    )


def __getattr__(name: str) -> Any:
    if name in {cls for _, cls in _WHERE.values()}:
        return by_class_name(name)
    raise AttributeError(
        f"module 'daskrl.algorithms' has no attribute {name!r}.{did_you_mean(name, __all__)}", name=name
    )


__all__ = [
    "BUILT_IN", "C51", "DQN", "IMPALA", "PPO", "QRDQN", "R2D2", "SAC", "TD3", "QLearning", "Rainbow", "by_class_name",
    "by_name",
]  # fmt: skip
