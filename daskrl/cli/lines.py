"""What to type to make a run again: ``daskrl train`` with the settings of a store."""

from __future__ import annotations

import inspect
import shlex
from typing import Any

from daskrl.algorithms import BUILT_IN
from daskrl.algorithms.base import settings
from daskrl.algorithms.described import parameters
from daskrl.cli import given
from daskrl.codec import decoded
from daskrl.errors import ConfigError
from daskrl.store.store import Store
from daskrl.study.verifying import Again

_OF_THE_SCHEDULE = ("streams", "envs_per_stream", "fragment_steps", "lag")
_OF_THE_CONFIG = ("device", "torch_threads", "recheck_every")
_OF_THE_BUDGET = (
    "checkpoint_every", "weights_every", "evaluate_every", "evaluate_episodes", "rollout_timeout", "learner_timeout",
    "strict", "strict_bounds",
)  # fmt: skip


def train_line(store: Store, again: Again, path: str, *, env_kwargs: list[str] | None = None) -> str:
    """The ``daskrl train`` line that makes the run of a store in ``path``: the same digest.

    Parameters
    ----------
    env_kwargs : as they were typed, of a function.

    Raises
    ------
    ConfigError
        A setting cannot be typed, or the run began with the weights of another, as members of a population do.
    """
    from daskrl.cli.running import train

    config, budget = store.config, store.budget()
    if config.init is not None:
        raise ConfigError(
            f"{store.storage} began with the weights of another run: no line makes it anew. To begin where that run "
            f"ended, type: daskrl train ... --init {store.storage.typed}"
        )
    defaults = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    defaults["lag"] = getattr(again.algorithm, "lag", 1)
    environment = config.environment
    words = ["daskrl", "train", again.own_environment or environment["id"], "--store", path]
    words += ["--env-steps", str(budget["env_steps"])]
    if environment["kind"] == "id":
        kwargs = {name: decoded(value) for name, value in environment["kwargs"].items()}
        env_kwargs = [f"{name}={_typed(name, value)}" for name, value in kwargs.items()]
    for pair in env_kwargs or []:
        words += ["--env-kwargs", pair]
    words += ["--algorithm", again.own_algorithm or _built_in(config.algorithm["name"])]
    words += ["--seed", str(config.seed)]
    for name, value in settings(again.algorithm).items():
        known = parameters(type(again.algorithm)).get(name)
        if known is not None and not _equal(value, known.default):
            words += ["-s", f"{name}={_typed(name, value)}"]
    said = {name: getattr(config.schedule, name) for name in _OF_THE_SCHEDULE}
    said |= {name: getattr(config, name) for name in _OF_THE_CONFIG}
    said |= {name: budget["options"][name] for name in _OF_THE_BUDGET if name in budget["options"]}
    if config.frame_stack != again.source.default_frame_stack:
        said["frame_stack"] = config.frame_stack
    for name, value in said.items():
        if value != defaults[name]:
            option = name.replace("_", "-")
            words += [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) \
                else [f"--{option}", str(value)]  # fmt: skip
    return shlex.join(words)


def _built_in(name: str) -> str:
    return next(typed for typed, cls in BUILT_IN.items() if cls.__name__ == name)


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _typed(name: str, value: Any) -> str:
    """A value as ``NAME=VALUE`` has it."""
    for text in (str(value), repr(value)):
        if _equal(given.value(text), value):
            return text
    raise ConfigError(f"{name}={value!r:.100} cannot be typed on the command line. Give it in Python: daskrl.train.")
