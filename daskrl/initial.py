"""What a run begins with instead of weights drawn at random: those of another run, or any named arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from daskrl import seeding
from daskrl.algorithms.base import Algorithm, Setup
from daskrl.arithmetic import aligned_all, pinned
from daskrl.errors import ConfigError
from daskrl.spaces import Array
from daskrl.store import Store, read_checked

Init = str | os.PathLike[str] | Store | Mapping[str, Any]
"""A store, a file of safetensors, or arrays by name."""

_WEIGHTS, _OTHERS = "weights/", "others/"  # before the names of arrays in the file
_NOT_OTHERS = ("optimizer.", "sampler.", "published/")  # of a checkpoint: they belong to how that run went on


@dataclass(frozen=True)
class Initial:
    """What the learner of a new run begins with.

    Attributes
    ----------
    weights : published weights, name -> array.
    others : what else the learner of the other run had learned by then (critics, counts of what was observed), as its
        checkpoint of that version names it; empty where there is none, or it is of another algorithm.
    origin : of a store ``run_id``, ``version``, ``digest``.
    """

    weights: dict[str, Array]
    others: dict[str, Array]
    origin: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """As the config of the run has it: a hash of all arrays, and where they are from."""
        sha = hashlib.sha256()
        for name, value in sorted(self._named().items()):
            sha.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
            sha.update(np.ascontiguousarray(value).tobytes())
        return {"sha256": sha.hexdigest(), "checkpoint": bool(self.others), **self.origin}

    def _named(self) -> dict[str, Array]:
        weights = {f"{_WEIGHTS}{name}": value for name, value in self.weights.items()}
        return {**weights, **{f"{_OTHERS}{name}": value for name, value in self.others.items()}}

    def to_bytes(self) -> bytes:
        """As safetensors."""
        from safetensors.numpy import save

        data: bytes = save({name: np.asarray(value, order="C") for name, value in self._named().items()})
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Initial:
        from safetensors.numpy import load

        arrays = aligned_all(load(data))

        def under(prefix: str) -> dict[str, Array]:
            return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

        return cls(under(_WEIGHTS), under(_OTHERS), {})


def begin(learner: Any, initial: Initial) -> None:
    """Have a new learner begin with these weights. Called wherever one is made, before it is given a round."""
    begin_with = getattr(learner, "begin_with", None)
    if begin_with is None:
        raise ConfigError(
            f"init: the learner {type(learner).__name__} has no method begin_with(weights, others), which takes "
            "another run's weights for its own. Add it (see daskrl.Learner), or leave init out."
        )
    begin_with(initial.weights, initial.others)


def take(init: Init, version: int | str | None, algorithm: Algorithm, setup: Setup, *, digest: bool = True) -> Initial:
    """Read what a run is to begin with, and try it on a learner.

    Parameters
    ----------
    version : of a store's weights; None for the newest kept.
    digest : record that of the store, which reads all of it.

    Raises
    ------
    ConfigError
        There is nothing at that path, or it is not what this algorithm has: the message names the arrays.
    """
    found = _found(init, version, algorithm, digest)
    with pinned():
        learner = algorithm.learner(setup, seeding.generator(0, "initialise"))
        fits = Initial(_fitting(found.weights, learner.weights()), found.others, found.origin)
        begin(learner, fits)
        begun = learner.weights()
        differ = [name for name, value in fits.weights.items() if np.asarray(begun[name]).tobytes() != value.tobytes()]
    if differ:
        raise ConfigError(
            f"init: after begin_with, {type(learner).__name__}.weights() has other values of {', '.join(differ)} than "
            "it was given. A run's first weights are those it was given: mend begin_with."
        )
    return fits


def _found(init: Init, version: int | str | None, algorithm: Algorithm, digest: bool) -> Initial:
    if isinstance(init, Mapping):
        if version is not None:
            raise ConfigError(f"init_version: expected with a store alone, got {version!r} with arrays. Leave it out.")
        return Initial({str(name): np.asarray(value) for name, value in init.items()}, {}, {})
    if not isinstance(init, Store):
        path = Path(init)
        if path.is_file():
            if version is not None:
                raise ConfigError(f"init_version: expected with a store alone, got {version!r} with a file.")
            return Initial(_file(path), {}, {})
        if not Store.exists(path):
            raise ConfigError(
                f"init: expected a run's store, a file of safetensors, or a mapping of names to arrays; {path} is none "
                "of them."
            )
        init = Store.open(path)
    found, weights = init.weights(version)
    origin: dict[str, Any] = {"run_id": init.run_id, "version": found}
    if digest:
        origin["digest"] = init.digest()
    return Initial(weights, _others(init, found, algorithm), origin)


def _file(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, Array] = aligned_all(load(path.read_bytes()))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ConfigError(f"init: {path} cannot be read as safetensors of NumPy's types: {error}.") from error
    return arrays


def _others(store: Store, version: int, algorithm: Algorithm) -> dict[str, Array]:
    """What the checkpoint of that version holds beside the weights, where it is one of the same algorithm."""
    from safetensors.numpy import load

    if store.config.algorithm["name"] != type(algorithm).__name__:
        return {}
    for record in store.records():
        written = record.get("checkpoint")
        if written and record["version"] == version and (store.root / written[0]).exists():
            arrays: dict[str, Array] = aligned_all(load(read_checked(store.root, written)))
            return {name: value for name, value in arrays.items() if not name.startswith(_NOT_OTHERS)}
    return {}


def _fitting(given: Mapping[str, Array], wanted: Mapping[str, Any]) -> dict[str, Array]:
    """The given arrays in the wanted types, where they fit without a change of a value."""
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is not one of the algorithm's" for name in given if name not in wanted]
    fitting = {}
    for name in sorted(given.keys() & wanted.keys()):
        value, like = given[name], np.asarray(wanted[name])
        if value.shape != like.shape:
            problems.append(f"{name} has shape {value.shape}, not {like.shape}")
        elif value.dtype.kind not in "biuf" or not np.array_equal(cast := value.astype(like.dtype), value):
            problems.append(f"{name} is {value.dtype} with values that {like.dtype} does not hold, or not finite")
        elif not np.isfinite(cast).all():
            problems.append(f"{name} has values that are not finite")
        else:
            fitting[name] = cast
    if problems:
        raise ConfigError(
            f"init: these weights are not of this algorithm, its settings and these spaces: {'; '.join(problems)}. "
            "Give the algorithm the settings that the weights were learned with."
        )
    return fitting
