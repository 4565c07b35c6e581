"""What a run begins with instead of weights drawn at random: those of another run, or any named arrays."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from daskrl import seeding
from daskrl.algorithms.base import Algorithm, Setup, recurrent_state
from daskrl.arithmetic import aligned_all, pinned, undrawn
from daskrl.errors import ConfigError
from daskrl.records import Array, ReadFragment, checkpoints
from daskrl.store.columns import columns
from daskrl.store.files import read_checked
from daskrl.store.initial import FirstReplay, Initial
from daskrl.store.store import Store

Init = str | os.PathLike[str] | Store | Mapping[str, Any]
"""A store, a file of safetensors, or arrays by name."""

_OPTIMIZER = "optimizer."  # before the names of what optimizers keep, in a checkpoint
_NOT_OTHERS = ("sampler.", "published/")  # of a checkpoint: they belong to how that run went on


def begin(learner: Any, initial: Initial) -> None:
    """Have a new learner begin with these weights. Called wherever one is made, before it is given a round."""
    begin_with = getattr(learner, "begin_with", None)
    if begin_with is None:
        raise ConfigError(
            f"init: the learner {type(learner).__name__} has no method begin_with(weights, others), which takes "
            "another run's weights for its own. Add it (see daskrl.Learner), or leave init out."
        )
    begin_with(initial.weights, initial.others)


def take(
    init: Init, version: int | str | None, algorithm: Algorithm, setup: Setup, *, replay: bool, digest: bool
) -> Initial:
    """Read what a run is to begin with, and try it on a learner.

    Parameters
    ----------
    version : of a store's weights; None for the newest kept.
    replay : begin with the newest rounds of the store's replay, too, as many as the learner's window takes.
    digest : record that of the store, which reads all of it.

    Raises
    ------
    ConfigError
        There is nothing at that path, or it is not what this algorithm has: the message names the arrays.
    """
    init = getattr(init, "store", init)  # of a `daskrl.Run`
    fits, learner = _tried(_found(init, version, algorithm, digest), algorithm, setup)
    if not replay:
        return fits
    return dataclasses.replace(fits, replay=_replay(init, algorithm, setup, learner))


def standing(store: Store, version: int, algorithm: Algorithm) -> Initial:
    """What another run is to begin with to go on where this one stands: its newest version, of which it wrote a
    checkpoint. What its optimizers keep is among the others.
    """
    _, weights = store.weights(version)
    return Initial(weights, _others(store, version, algorithm, optimizer=True), {})


def handed_over(found: Initial, algorithm: Algorithm, setup: Setup, store: Store | None, rounds: int) -> Initial:
    """What `standing` gave, tried on a learner.

    Parameters
    ----------
    store : of the run that stood there, to begin with its replay, too: that of its first ``rounds``.
    """
    fits, learner = _tried(found, algorithm, setup)
    if store is None:
        return fits
    return dataclasses.replace(fits, replay=_replay(store, algorithm, setup, learner, rounds))


def without_optimizers(found: Initial) -> Initial:
    """What `standing` gave, but for what optimizers keep."""
    others = {name: value for name, value in found.others.items() if not name.startswith(_OPTIMIZER)}
    return dataclasses.replace(found, others=others)


def _tried(found: Initial, algorithm: Algorithm, setup: Setup) -> tuple[Initial, Any]:
    """In the types of the algorithm's weights; and a learner that began with it."""
    with pinned(), undrawn():
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
    return fits, learner


def _replay(init: Init, algorithm: Algorithm, setup: Setup, learner: Any, rounds: int | None = None) -> FirstReplay:
    """The newest rounds that are committed whole, of the first ``rounds``, as far as the learner looks back."""
    from daskrl.algorithms.actor_critic import RoundLearner

    if isinstance(learner, RoundLearner) or learner.memory < 1:
        raise ConfigError(
            f"init_replay: {type(algorithm).__name__} learns from no replay: it has no window. Leave init_replay out."
        )
    if isinstance(init, Mapping) or (not isinstance(init, Store) and not Store.exists(init)):
        raise ConfigError("init_replay: expected init to be a run's store. Weights alone have no replay.")
    store = init if isinstance(init, Store) else Store.open(init)
    shape, other = setup.schedule, store.config.schedule
    wanted = columns(
        setup.spec, shape, setup.frame_stack, getattr(algorithm, "columns", {}), recurrent_state(algorithm, setup)
    )
    differs = [
        f"{name} {getattr(other, name)} (this run: {getattr(shape, name)})"
        for name in ("streams", "envs_per_stream", "fragment_steps")
        if getattr(other, name) != getattr(shape, name)
    ]
    if store.config.frame_stack != setup.frame_stack:
        differs.append(f"frame_stack {store.config.frame_stack} (this run: {setup.frame_stack})")
    if not differs:
        differs = [f"the column {name}" for name, column in wanted.items() if store.columns.get(name) != column]
    if store.spec != setup.spec:
        differs.append("the spaces of its environment")
    if differs:
        raise ConfigError(
            f"init_replay: {store.storage} differs in {', '.join(differs)}. Begin with its weights alone."
        )
    fragments = {record["slot"]: record for record in store.fragments()}
    complete = 0
    while complete != rounds and all(shape.slot(stream, complete) in fragments for stream in range(shape.streams)):
        complete += 1
    slots = range(shape.slot(0, max(0, complete - learner.memory)), shape.slot(0, complete))
    return FirstReplay(store.storage, store.columns, [_as_read(fragments[slot]) for slot in slots])


def _as_read(record: ReadFragment) -> ReadFragment:
    return {
        "slot": record["slot"], "stream": record["stream"], "round": record["round"],
        "episode_step": record["episode_step"], "continues": record["continues"], "columns": record["columns"],
    }  # fmt: skip


def _found(init: Init, version: int | str | None, algorithm: Algorithm, digest: bool) -> Initial:
    if isinstance(init, Mapping):
        if version is not None:
            raise ConfigError(f"init_version: expected with a store alone, got {version!r} with arrays. Leave it out.")
        return Initial({str(name): np.asarray(value) for name, value in init.items()}, {}, {})
    if not isinstance(init, Store):
        if not isinstance(init, str | os.PathLike):
            raise ConfigError(
                "init: expected a run's store, a file of safetensors, or a mapping of names to arrays, got "
                f"{init!r:.200}."
            )
        if os.path.isfile(init):
            if version is not None:
                raise ConfigError(f"init_version: expected with a store alone, got {version!r} with a file.")
            return Initial(_file(Path(init)), {}, {})
        if not Store.exists(init):
            raise ConfigError(
                f"init: expected a run's store, a file of safetensors, or a mapping of names to arrays; "
                f"{os.fspath(init)} is none of them."
            )
        init = Store.open(init)
    found, weights = init.weights(version)
    origin: dict[str, Any] = {"run_id": init.run_id, "version": found}
    if digest:
        origin["digest"] = init.digest()
    return Initial(weights, _others(init, found, algorithm, optimizer=False), origin)


def _file(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, Array] = aligned_all(load(path.read_bytes()))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ConfigError(f"init: {path} cannot be read as safetensors of NumPy's types: {error}.") from error
    return arrays


def _others(store: Store, version: int, algorithm: Algorithm, optimizer: bool) -> dict[str, Array]:
    """What the checkpoint of that version holds beside the weights, where it is one of the same algorithm."""
    from safetensors.numpy import load

    if store.config.algorithm["name"] != type(algorithm).__name__:
        return {}
    for record, written in checkpoints(store.records()):
        if record["version"] == version and store.storage.exists(written[0]):
            arrays: dict[str, Array] = aligned_all(load(read_checked(store.storage, written)))
            left_out = _NOT_OTHERS if optimizer else (*_NOT_OTHERS, _OPTIMIZER)
            return {name: value for name, value in arrays.items() if not name.startswith(left_out)}
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
