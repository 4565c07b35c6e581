"""What defines a run: the settings that decide its bits, and those that only decide how it is carried out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from daskrl.errors import ConfigError
from daskrl.names import suggests

MAX_EPISODE_STEPS = 27_000
"""Steps of an episode before it is cut: the 108,000 frames of ALE's games, in fours (Machado et al. 2018,
https://arxiv.org/abs/1709.06009, table 5)."""


@suggests
@dataclass(frozen=True)
class Schedule:
    """The fixed shape of a run. Nothing here is ever derived from the workers of the moment.

    Parameters
    ----------
    streams : number of independent vectors of environments; the unit of parallelism. A run wants about four
        for each worker slot it may ever get.
    envs_per_stream : environments in one stream (N).
    fragment_steps : steps of each environment in one fragment (T).
    lag : round ``r`` acts with weights version ``max(0, r - lag)``. 0 is synchronous; 1 overlaps acting with
        learning at a constant policy lag of one round.
    """

    streams: int = 8
    envs_per_stream: int = 4
    fragment_steps: int = 32
    lag: int = 1

    def __post_init__(self) -> None:
        plain_fields(self)
        for name, low in (("streams", 1), ("envs_per_stream", 1), ("fragment_steps", 1), ("lag", 0)):
            require_integer(name, getattr(self, name), low)

    @property
    def lanes(self) -> int:
        """Environments of all streams."""
        return self.streams * self.envs_per_stream

    @property
    def round_steps(self) -> int:
        """Transitions in one round: streams x envs_per_stream x fragment_steps."""
        return self.lanes * self.fragment_steps

    def rounds(self, env_steps: int) -> int:
        """Whole rounds needed for at least ``env_steps`` transitions."""
        return -(-env_steps // self.round_steps)

    def weights_version(self, round_: int) -> int:
        """The version that round ``round_`` acts with."""
        return max(0, round_ - self.lag)

    def slot(self, stream: int, round_: int) -> int:
        """The place of a fragment in the store; the same for every execution of its rollout."""
        return round_ * self.streams + stream


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the bits of a run, as it stands in the store.

    Parameters
    ----------
    seed : the only source of randomness, ``>= 0``.
    environment : how the environment is named: ``{"kind": "id", ...}`` or ``{"kind": "callable", ...}``.
    algorithm : ``{"name": ..., "settings": {...}, "source_sha256": ..., "packages": [...], "captured": {...}}``.
    schedule : see `Schedule`.
    frame_stack : newest frames an algorithm sees as one observation; each is stored once.
    torch_threads : torch threads of the learner. Rollouts always use one.
    recheck_every : every how many fragments one is run a second time, from its recorded seeds, and compared, in the
        long run: the first are sooner (`daskrl.schedule.Rechecks`); 0 for none.
    device : where the learner computes: ``"cpu"`` or ``"cuda"``, two different computations, or ``"auto"``:
        what the first learner has. The store records which it was, and resuming needs the same.
    init : what the first weights are, where they are not drawn: ``{"sha256": of the arrays, "checkpoint": whether what
        else was learned is among them}``, and of another run's ``run_id``, ``version`` and ``digest``.
    """

    seed: int
    environment: Mapping[str, Any]
    algorithm: Mapping[str, Any]
    schedule: Schedule
    frame_stack: int = 1
    torch_threads: int = 1
    recheck_every: int = 256
    device: str = "auto"
    init: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        require_integer("seed", self.seed, 0)
        require_integer("frame_stack", self.frame_stack, 1)
        require_integer("torch_threads", self.torch_threads, 1)
        require_integer("recheck_every", self.recheck_every, 0)
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device: expected 'auto', 'cpu' or 'cuda', got {self.device!r}.")

    @property
    def packages(self) -> list[str]:
        """Distributions, besides those of all runs, whose versions may decide what the run computes."""
        return sorted({*self.environment["packages"], *self.algorithm.get("packages", ())})

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunConfig:
        """From a store, without the keys of a later daskrl: see `daskrl.store.store.Store.unknown_keys`."""
        known = known_keys(cls, data)
        return cls(**{**known, "schedule": Schedule(**known_keys(Schedule, known["schedule"]))})


@dataclass(frozen=True)
class Options:
    """How a run is carried out. None of these changes a bit of what a run with the promise gives.

    A run that one of them stops, as ``strict``, ``strict_bounds`` or ``rollout_timeout`` may, has them up to there.
    What goes on without the promise, as with ``strict=False`` where it cannot be kept, is another result, and the store
    says so.

    Parameters
    ----------
    checkpoint_every : rounds between two checkpoints of the learner; what a lost learner has to learn again.
    weights_every : rounds between two versions of the weights kept on disk. The newest at the end always is.
    rollout_timeout : seconds a fragment may take for its own steps; making an environment, and each recorded fragment
        that is stepped through again, may take as long.
    strict : with False, a run goes on where the promise cannot be kept (an environment that is not
        deterministic, workers with other arithmetic or packages), and the store says so.
    learner_timeout : seconds to wait for a worker that offers the resource ``learner`` or ``GPU``; then it learns
        beside the driver. None waits as long as it takes where the cluster has set one apart, elsewhere not at all.
    strict_bounds : an observation outside the bounds of its space is an error; else one warning a run.
    evaluate_every : rounds between two versions that are evaluated while the run goes on; 0 for none. The last one
        always is, then. Their weights are kept on disk.
    evaluate_episodes : greedy episodes of one evaluation: the first so many that `daskrl.evaluate` plays.
    """

    checkpoint_every: int = 50
    weights_every: int = 10
    rollout_timeout: float = 600.0
    strict: bool = True
    learner_timeout: float | None = None
    strict_bounds: bool = False
    evaluate_every: int = 0
    evaluate_episodes: int = 10

    def __post_init__(self) -> None:
        plain_fields(self)
        require_integer("evaluate_every", self.evaluate_every, 0)
        require_integer("evaluate_episodes", self.evaluate_episodes, 1)
        require_integer("checkpoint_every", self.checkpoint_every, 1)
        require_integer("weights_every", self.weights_every, 1)
        if not self.rollout_timeout > 0:
            raise ConfigError(f"rollout_timeout: expected seconds > 0, got {self.rollout_timeout!r}.")
        if self.learner_timeout is not None and not self.learner_timeout >= 0:
            raise ConfigError(f"learner_timeout: expected None or seconds >= 0, got {self.learner_timeout!r}.")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Options:
        """From a store, without the keys of a later daskrl."""
        return cls(**known_keys(cls, data))


def known_keys(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """What a store says that is a field of a dataclass: later versions of daskrl may say more."""
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in data.items() if name in names}


def require_integer(name: str, value: object, low: int) -> None:
    """Raise `ConfigError` unless ``value`` is an int of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}: expected an integer >= {low}, got {value!r}.")


# What fields of a dataclass of settings may be annotated with, and how it is called. Others are not checked.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "int": ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": (
        "a finite number",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
    ),
    "str": ("a string", lambda value: isinstance(value, str)),
    "tuple[int, ...]": (
        "an integer or a tuple of them, e.g. 64 or (64, 64)",
        lambda value: isinstance(value, tuple) and all(map(_TYPES["int"][1], value)),
    ),
}
_RANGES: dict[str, Callable[[Any], bool]] = {
    "> 0": lambda value: value > 0,
    ">= 0": lambda value: value >= 0,
    ">= 1": lambda value: value >= 1,
    ">= 2": lambda value: value >= 2,
    "in [0, 1]": lambda value: 0 <= value <= 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
}


def plain(value: Any, kind: str = "int") -> Any:
    """A number, or a tuple of numbers, as Python's own types; any other value as it is.

    NumPy's scalars become Python's. Where integers are wanted, a float that is an integer (``1e6``) becomes that
    integer; where a tuple of integers is wanted, a list, an array, or a number alone (``hidden=32``) becomes one.
    """
    import numpy as np  # the command line's help needs none

    if isinstance(value, np.generic):
        value = value.item()
    if kind == "tuple[int, ...]":
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = (value,)
        return tuple(map(plain, value)) if isinstance(value, tuple | list) else value
    return int(value) if kind == "int" and isinstance(value, float) and value.is_integer() else value


def plain_fields(settings: Any) -> None:
    """Make the fields of a frozen dataclass `plain`."""
    for field in dataclasses.fields(settings):
        kind = _annotation(field).partition(" | None")[0]
        if kind in _TYPES:
            object.__setattr__(settings, field.name, plain(getattr(settings, field.name), kind))


def require_types(settings: Any) -> None:
    """Raise `ConfigError` unless the fields of a frozen dataclass are of their types, and its numbers finite.

    They are made `plain`.
    """
    given = dict(vars(settings))
    plain_fields(settings)
    for field in dataclasses.fields(settings):
        kind, optional, _ = _annotation(field).partition(" | None")
        value = getattr(settings, field.name)
        if kind not in _TYPES or (optional and value is None):
            continue
        expected, is_one = _TYPES[kind]
        if not is_one(value):
            name, or_none = field.name, " or None" * bool(optional)
            raise ConfigError(f"{name}: expected {expected}{or_none}, got {given.get(name, value)!r}.")


def require_range(settings: Any, range_: str, *names: str) -> None:
    """Raise `ConfigError` unless these settings, those that are not None, are in a range, as ``"> 0"``."""
    kinds = {field.name: _annotation(field) for field in dataclasses.fields(settings)}
    for name in names:
        value = getattr(settings, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(number is None or _RANGES[range_](number) for number in numbers):
            kind = "a number" if kinds[name].startswith("float") else "an integer"
            each = f"{kind} {range_}" if numbers is not value else f"integers {range_}"
            raise ConfigError(f"{name}: expected {each}, got {value!r}.")


def _annotation(field: dataclasses.Field[Any]) -> str:
    return field.type.__name__ if isinstance(field.type, type) else str(field.type)
