"""Runs of a study again, somewhere else: do they give the same bits?"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskrl.algorithms.base import Algorithm
from daskrl.code import modules
from daskrl.config import Options, known_keys
from daskrl.envs import source as sources
from daskrl.errors import ConfigError, WorkerMismatchError
from daskrl.identity import same_algorithm, same_environment, stored_settings
from daskrl.prepared import Prepared
from daskrl.store.initial import Initial
from daskrl.store.places import Place, place
from daskrl.store.store import Store
from daskrl.study import table
from daskrl.study.log import StudyLog
from daskrl.study.space import shown
from daskrl.study.trial import Job, carry_out
from daskrl.tasks.session import versions

RUNS = "runs"


@dataclass(frozen=True)
class Verified:
    """A run that was carried out again.

    Attributes
    ----------
    run : its path below the study's directory.
    label : what was run, for people.
    kept, found : the digest that the study has, and that of now; or why the run failed now.
    """

    run: str
    label: str
    kept: str
    found: str

    @property
    def same(self) -> bool:
        return self.kept == self.found


@dataclass(frozen=True)
class Own:
    """What no store can keep, by what it is called where it is given: classes, and callables.

    Attributes
    ----------
    algorithms, environments : name -> class; name -> callable that returns an environment.
    """

    algorithms: Mapping[str, type] = dataclasses.field(default_factory=dict)
    environments: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Again:
    """What a run of a study was made with.

    Attributes
    ----------
    own_algorithm, own_environment : the names in `Own` of what was needed from there, or None.
    """

    algorithm: Algorithm
    source: sources.EnvironmentSource
    own_algorithm: str | None
    own_environment: str | None


def made_with(store: Store, own: Own, command: str) -> Again:
    """The algorithm and the environment of a run; of the user's own those that are given.

    Parameters
    ----------
    command : what was typed, for messages.

    Raises
    ------
    ConfigError
        The run was made with the user's own, which is not given.
    StoreMismatchError
        What is given is not what the run was made with.
    """
    algorithm, environment = None, None
    kept = store.config.algorithm
    if kept["source_sha256"] is not None:
        algorithm = next((name for name, cls in own.algorithms.items() if cls.__name__ == kept["name"]), None)
        if algorithm is None:
            what = f"the algorithm {kept['name']!r} of your own"
            raise _not_given(store, what, modules.option("algorithm", kept["name"]), command)
    if store.config.environment["kind"] == "callable":
        wanted = store.config.environment["name"]
        environment = next((name for name, env in own.environments.items() if _called(env, wanted)), None)
        if environment is None:
            raise _not_given(store, f"the callable {wanted!r}", modules.option("env", wanted), command)
    made = None
    if algorithm is not None:
        cls = own.algorithms[algorithm]
        made = cls(**stored_settings(store, cls))
    env = None if environment is None else own.environments[environment]
    return Again(same_algorithm(store, made), same_environment(store, env), algorithm, environment)


def _called(env: Callable[[], Any], wanted: str) -> bool:
    inner = env.func if isinstance(env, functools.partial) else env
    return wanted.rpartition(".")[2] == getattr(inner, "__name__", type(inner).__name__)


def _not_given(store: Store, what: str, option: str, command: str) -> ConfigError:
    return ConfigError(
        f"{store.storage} was made with {what}. Nothing is pickled in a store, so name it again. Type: {command} "
        f"{option.replace('MODULE:', 'FILE.py:')}"
    )


def sampled(trials: list[str], sample: str) -> list[str]:
    """Some of a study's runs: derived from what they are known by, so the same each time, and in each larger sample.

    Parameters
    ----------
    sample : a share, as ``"5%"``, rounded up, or a number, as ``"20"``.

    Raises
    ------
    ConfigError
        It is neither.
    """
    text = sample.strip()
    try:
        number = float(text.removesuffix("%"))
        wanted = math.ceil(len(trials) * number / 100 - 1e-9) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        number = wanted = 0
    if not number > 0 or (text.endswith("%") and number > 100):
        raise ConfigError(f"sample: expected a share of the finished runs, as 5%, or a number, as 20; got {sample!r}.")
    return sorted(trials, key=lambda trial: hashlib.sha256(f"verify {trial}".encode()).digest())[:wanted]


def verified(path: Place, sample: str = "5%", *, own: Own | None = None, command: str = "") -> Iterator[Verified]:
    """Carry out some finished runs of a study again, in this process, in a temporary directory.

    Runs that do not keep the promise (``strict=False``) are not among them, nor are members of a population that began
    with another's replay, which a warning says. Those that began with another's weights begin with their copy of them.

    Parameters
    ----------
    sample : see `sampled`.
    own : the user's own algorithms and callables.
    command : what was typed, for messages.

    Raises
    ------
    ConfigError
        There is no such run, or one was made with the user's own, which is not given. Before any is carried out.
    WorkerMismatchError
        This machine computes otherwise than the study's runs do.
    """
    log = StudyLog.open(path)
    command = command or f"daskrl study verify {log.storage}"
    found = {row["run"].rpartition("/")[2]: row for row in table.rows(log)
             if row["state"] == "finished" and row["promise"] == "kept"}  # fmt: skip
    if not found:
        raise ConfigError(f"{log.storage} has no finished run to verify.")
    chosen = sampled(list(found), sample)
    stores = {trial: Store.open(log.storage.folder(RUNS).folder(trial)) for trial in chosen}
    taught = [trial for trial, store in stores.items() if "replay" in (store.config.init or {})]
    if taught:
        chosen = [trial for trial in chosen if trial not in taught]
        warnings.warn(f"{len(taught):,} runs of the sample began with another run's replay: left out.", stacklevel=2)
    again = {trial: made_with(store, own or Own(), command) for trial, store in stores.items()}
    return (_verified(log, trial, found[trial], stores[trial], again[trial]) for trial in chosen)


def _verified(log: StudyLog, trial: str, row: Mapping[str, Any], store: Store, again: Again) -> Verified:
    assert log.arithmetic is not None, "of a study with a finished run"
    options = Options(**{**known_keys(Options, store.budget()["options"]), "evaluate_every": 0})
    prepared = Prepared(
        store.config, again.algorithm, again.source, options, row["env_steps"], versions(store.config.packages),
        None if store.config.init is None else Initial.from_bytes(store.layout.initial()),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="daskrl-verify-") as here:
        given = prepared, _no_score
        job = Job(trial, place(Path(here) / trial), store.config.seed, row["env_steps"], log.arithmetic, False, given)
        outcome = carry_out(job)
    if outcome["kind"] == "refused":
        raise WorkerMismatchError(outcome["reason"])
    assert outcome["kind"] == "trial", "nobody else has the directory"
    axes = [name for name in log.definition["space"] if row[name] is not None]
    label = f"{row['environment']}, {shown({name: row[name] for name in axes})}, seed {row['seed']}"
    return Verified(row["run"], label, row["digest"], outcome.get("digest") or outcome.get("error", "failed"))


def _no_score(store: Store) -> float:
    return 0.0
