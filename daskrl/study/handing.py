"""Of a population: what a run leaves for others to begin with when it is over, and how another begins with that.

Import-light: the scheduler unpickles it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskrl.store.storage import Storage

if TYPE_CHECKING:
    from daskrl.algorithms.base import Algorithm
    from daskrl.prepared import Prepared
    from daskrl.store.store import Store


@dataclass(frozen=True)
class Begins:
    """With which run another begins.

    Attributes
    ----------
    trial, env_steps : that run, as it stood when it had taken so many.
    before : transitions that the new run counts as taken before its first.
    handed : where it left what others begin with.
    optimizer : take what its optimizers keep, too.
    replay : its store, where the new run begins with its replay, too.
    sha256 : of what it left, as the study's log has it; None where it left nothing.
    """

    trial: str
    env_steps: int
    before: int
    handed: Storage
    optimizer: bool
    replay: Storage | None
    sha256: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the bits that the new run begins with."""
        return {
            "trial": self.trial, "at": self.env_steps, "env_steps": self.before, "optimizer": self.optimizer,
            "replay": self.replay is not None,
        }  # fmt: skip

    @property
    def origin(self) -> dict[str, Any]:
        """What the config of the new run says of it."""
        return {name: value for name, value in self.identity.items() if name != "replay"}


def _name(trial: str, env_steps: int) -> str:
    return f"{trial}-{env_steps}.safetensors"


def hand_on(store: Store, algorithm: Algorithm, trial: str, env_steps: int, to: Storage) -> str:
    """Leave what other runs may begin with: weights, critics and the like, optimizers. Its hash.

    The store itself has it no more once its run goes on: it keeps the newest checkpoints.
    """
    from daskrl.tasks.initial import standing

    left = standing(store, store.config.schedule.rounds(env_steps), algorithm)
    to.put(_name(trial, env_steps), left.to_bytes())
    return str(left.identity["sha256"])


def begun(prepared: Prepared, begins: Begins) -> Prepared:
    """The run, begun with what another left.

    Raises
    ------
    DamagedError
        That is not there, or is not what the study's log says.
    """
    from daskrl.errors import ConfigError, DamagedError
    from daskrl.store.initial import Initial
    from daskrl.store.store import Store
    from daskrl.tasks.initial import handed_over, without_optimizers

    name = _name(begins.trial, begins.env_steps)
    where = begins.handed.where(name)
    try:
        left = Initial.from_bytes(begins.handed.get(name))
    except FileNotFoundError:
        raise DamagedError(f"{where} is not there, with which this run begins. Run the study anew elsewhere.") from None
    if left.identity["sha256"] != begins.sha256:
        raise DamagedError(f"{where} is not what the run left that this run begins with: its SHA-256 differs.")
    if not begins.optimizer:
        left = without_optimizers(left)
    other = None if begins.replay is None else Store.open(begins.replay)
    rounds = 0 if other is None else other.config.schedule.rounds(begins.env_steps)
    try:
        found = handed_over(left, prepared.algorithm, prepared.setup, other, rounds)
    except ConfigError as error:
        raise ConfigError(
            f"{error} In a population: settings that weights or a replay must fit are copied as they are if they are "
            "named in Population(keep=...)."
        ) from error
    return prepared.begun_with(dataclasses.replace(found, origin=begins.origin))


def require_begun(store: Store, prepared: Prepared, begins: Begins) -> Prepared:
    """The run as its store has it, which began with what it is to begin with.

    Raises
    ------
    StoreMismatchError
        It began with something else.
    """
    from daskrl.errors import StoreMismatchError

    its = dict(store.config.init or {})
    if any(its.get(name) != value for name, value in begins.origin.items()) or ("replay" in its) != bool(begins.replay):
        raise StoreMismatchError(f"{store.storage} began otherwise than this run of the study. Move it elsewhere.")
    return dataclasses.replace(prepared, config=dataclasses.replace(prepared.config, init=store.config.init))
