"""A run that was checked and is not made yet: all that decides its bits, and what is needed to carry it on.

`daskrl.run.train` makes a store of one at once; a study prepares many, and has workers make their stores.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from dataclasses import dataclass
from typing import Any

from daskrl.algorithms.base import Algorithm, Setup, recurrent_state
from daskrl.config import Options, RunConfig, Schedule, plain, require_integer
from daskrl.envs import source as sources
from daskrl.errors import ConfigError, StoreFullError
from daskrl.identity import algorithm_identity, require_algorithm, try_algorithm
from daskrl.store.initial import Initial
from daskrl.store.places import Place
from daskrl.store.store import Store
from daskrl.tasks.rollout import GO_ON
from daskrl.tasks.session import versions


@dataclass(frozen=True)
class Prepared:
    """What `prepare` checked.

    Attributes
    ----------
    versions : of the packages that decide the run's bits, here.
    initial : what the run begins with, where ``config.init`` says so.
    """

    config: RunConfig
    algorithm: Algorithm
    source: sources.EnvironmentSource
    options: Options
    env_steps: int
    versions: dict[str, str]
    initial: Initial | None = None

    @property
    def setup(self) -> Setup:
        return Setup(self.source.spec, self.config.schedule, self.config.frame_stack)

    def begun_with(self, initial: Initial) -> Prepared:
        """The same run, begun with given weights."""
        config = dataclasses.replace(self.config, init=initial.identity)
        return dataclasses.replace(self, config=config, initial=initial)

    def with_seed(self, seed: int) -> Prepared:
        """The same run from another seed."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, seed=seed))

    def create(self, store: Place, *, overwrite: bool = False) -> Store:
        """Make the run's store; raises as `daskrl.store.store.Store.create`, or `StoreFullError`."""
        try:
            return Store.create(
                store, self.config, self.source.spec, extras=getattr(self.algorithm, "columns", {}),
                state=recurrent_state(self.algorithm, self.setup), env_steps=self.env_steps, options=self.options,
                versions=self.versions, overwrite=overwrite, initial=self.initial,
            )  # fmt: skip
        except OSError as error:  # of the files of the arrays
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, StoreFullError):
                raise
            why, where = os.strerror(error.errno), store if isinstance(store, str | os.PathLike) else str(store)
            raise StoreFullError(
                error.errno, f"cannot make {os.fspath(where)}: {why}. Nothing was created; make room."
            ) from error


def prepare(
    algorithm: Algorithm,
    env: str | sources.EnvironmentFactory | sources.EnvironmentSource,
    *,
    env_steps: int,
    seed: int = 0,
    streams: int = 8,
    envs_per_stream: int = 4,
    fragment_steps: int = 32,
    lag: int | None = None,
    frame_stack: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    device: str = "auto",
    torch_threads: int = 1,
    recheck_every: int = 256,
    options: Options | None = None,
) -> Prepared:
    """Check all that a run is given, as far as that can be done before there is a store. See `daskrl.train`.

    Parameters
    ----------
    env : as of `daskrl.train`; or what `daskrl.envs.source.source` made of it, with the ``env_kwargs``.
    """
    require_algorithm(algorithm)
    options = options or Options()
    env_steps = plain(env_steps)
    require_integer("env_steps", env_steps, 1)
    shape = Schedule(streams, envs_per_stream, fragment_steps, getattr(algorithm, "lag", 1) if lag is None else lag)
    source = env
    if not isinstance(source, sources.EnvironmentSource):
        source = sources.source(source, **sources.arguments(env_kwargs))
    config = RunConfig(
        seed=seed,
        environment=source.identity,
        algorithm=algorithm_identity(algorithm),
        schedule=shape,
        frame_stack=source.default_frame_stack if frame_stack is None else frame_stack,
        torch_threads=torch_threads,
        recheck_every=recheck_every,
        device=device,
    )
    require_forgetful(source, options)
    prepared = Prepared(config, algorithm, source, options, env_steps, versions(config.packages))
    try_algorithm(algorithm, prepared.setup)
    return prepared


def require_forgetful(source: sources.EnvironmentSource, options: Options) -> None:
    """Raise `ConfigError` for an environment that keeps something beyond an episode, unless the options allow that."""
    if source.remembers is not None and options.strict:
        raise ConfigError(f"env: {source.remembers} {GO_ON}")
