"""Environments: their spaces, their names and sources, and stepping a stream of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daskrl.names import lazily

if TYPE_CHECKING:
    from daskrl.envs.isolation import NewWorld
    from daskrl.envs.source import ActionMask, Environment, EnvironmentFactory, EnvironmentSource, MinAtarReset, atari

_OF_SOURCE = ["ActionMask", "Environment", "EnvironmentFactory", "EnvironmentSource", "MinAtarReset", "atari"]

__all__ = [
    "ActionMask", "Environment", "EnvironmentFactory", "EnvironmentSource", "MinAtarReset", "NewWorld", "atari",
]  # fmt: skip

__getattr__, __dir__ = lazily(__name__, {"daskrl.envs.source": _OF_SOURCE, "daskrl.envs.isolation": ["NewWorld"]})
