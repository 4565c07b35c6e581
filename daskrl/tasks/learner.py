"""The task of a learner: consumes whole rounds in order; what it returns are the published weights.

A pure function of (run config, what is committed). The state that the worker keeps of that learner is used when it
stands at or before the version wanted; otherwise it is the newest checkpoint, and the rounds since are learned again.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from daskrl.algorithms.base import Weights
from daskrl.arithmetic import aligned_all, pinned
from daskrl.errors import DamagedError, DivergedError
from daskrl.records import CheckpointRecord, LearnRecord, Republished, WrittenFile, checkpoints, learner_of
from daskrl.replay.rounds import CommittedRounds
from daskrl.store.files import read_checked, write_checked
from daskrl.store.initial import Initial
from daskrl.store.layout import Layout
from daskrl.store.weights import DIVERGED, belongs_to, checkpoint_key, diverged_key, safetensors, weights_key
from daskrl.tasks.learner_state import ADVICE, LearnerState, published_in
from daskrl.tasks.published import unpack
from daskrl.tasks.session import Published, Session, find, get


def learn(
    token: str, version: int, head: int, device: str, keep: bool, checkpoint: bool, learner: str = ""
) -> Published:
    """Learn all rounds before ``version``; the result is that version of a learner's weights.

    Called by the driver's pool on the worker of that learner, in the order of versions; again for the same version
    after a failure, which gives the same weights.

    Parameters
    ----------
    head : commits that exist at least; they hold every round before ``version``.
    device : where to compute, ``"cpu"`` or ``"cuda"``; fixed for a run.
    keep : write the weights to the store.
    checkpoint : write a checkpoint.

    Raises
    ------
    DivergedError
        The loss, a TD error or a weight is NaN or infinite.
    DamagedError
        A chunk of the replay is not the one committed; nothing was learned from it.
    """
    session = get(token)
    with session.learning, pinned(session.config.torch_threads, device):
        try:
            return _learn(session, version, head, device, keep, checkpoint, learner)
        finally:
            here = session.learners[learner]
            if here.state is None:  # it failed; what reads for it would keep its window
                here.reader = None


def _learn(
    session: Session, version: int, head: int, device: str, keep: bool, checkpoint: bool, learner: str
) -> Published:
    layout, here = session.layout, session.learners[learner]
    if version in here.published:
        return here.published[version]
    state, here.state = here.state, None
    if state is None or (state.version > version and version not in state.published):
        state = begin(session, head, device, learner)
        restore(layout, state, version, head)
    state.rounds.reach(head)
    if version < state.version:  # the checkpoint had it
        here.state = state
        again: Republished = {"kind": "republished", "version": version}
        if learner:
            again["learner"] = learner
        return again, *state.published[version]
    began, updates = time.time(), state.learner.updates
    try:
        state.advance(version)
    except DivergedError as error:
        raise _diverged(layout, state, error, head) from error
    if keep or checkpoint:
        layout.require_same_run()
    record: LearnRecord = {
        "kind": "learn",
        "version": version,
        "learner_updates": state.learner.updates,
        "loss": state.loss,
        "seconds": time.time() - began,
        "updates": state.learner.updates - updates,
        "device": device,
        "weights": save_weights(layout, version, state.learner.weights(), learner) if keep else None,
        "checkpoint": save_checkpoint(layout, state) if checkpoint else None,
    }
    if learner:
        record["learner"] = learner
    weights = (record, *state.published[version])
    here.state = state
    here.published[version] = weights
    for old in sorted(here.published)[: -(session.config.schedule.lag + 2)]:
        del here.published[old]
    return weights


def begin(session: Session, head: int, device: str, learner: str = "") -> LearnerState[CommittedRounds]:
    """A learner of the run at version 0, and what reads for it. Within `daskrl.arithmetic.pinned`."""
    config, layout = session.config, session.layout
    state = LearnerState(
        session.algorithm,
        session.setup(device),
        CommittedRounds(layout, head),
        seed=config.seed,
        torch_threads=config.torch_threads,
        begin_with=None if config.init is None else Initial.from_bytes(layout.initial()),
        key=learner,
    )
    session.learners[learner].reader = state.reader
    return state


def checkpoint(token: str, newest: Published, kept: int) -> CheckpointRecord:
    """Write where a learner of this process stands, so that nothing is learned again, and the weights it reached.

    Called by the driver's pool on the learner's worker when a run is stopped on the way. Where the learner does not
    stand at ``newest`` or after it, because learning was interrupted or the learner is lost, the record has no
    checkpoint, and the weights are ``newest``.

    Parameters
    ----------
    newest : the newest weights published, whose record says of which learner.
    kept : the newest version of that learner whose weights are in the store; they are not written again.
    """
    session = get(token)
    record, table, flat = newest
    learner = learner_of(record)
    with session.learning:
        state = session.learners[learner].state
        version, loss, written = record["version"], None, None
        if record["kind"] == "learn":
            loss = record["loss"]
            kept = max(kept, version) if record["weights"] else kept
        session.layout.require_same_run()
        if state is not None and state.version >= version:
            version, loss = state.version, state.loss
            table, flat = state.published[version]
            written = save_checkpoint(session.layout, state) if version else None
        weights = save_weights(session.layout, version, unpack(table, flat), learner) if version > kept else None
        made: CheckpointRecord = {
            "kind": "checkpoint", "version": version, "loss": loss, "checkpoint": written, "weights": weights
        }  # fmt: skip
        if learner:
            made["learner"] = learner
        return made


def read_ahead(token: str, version: int, head: int, learner: str = "") -> None:
    """Begin to read the round that ``version`` of a learner will learn. From any thread.

    Called on the learner's worker when the task for ``version`` has come and waits for its turn.
    """
    session = find(token)
    reader = None if session is None else session.learners[learner].reader
    if reader is not None:
        reader.rounds.reach(head)
        reader.begin(version - 1)


def save_weights(layout: Layout, version: int, weights: Weights, learner: str = "") -> WrittenFile:
    """Write published weights, each array by name, as safetensors."""
    data = safetensors(weights, belongs_to(layout.config, layout.spec, layout.run_id, version, learner))
    return write_checked(layout.storage, weights_key(version, learner), data)


def save_checkpoint(layout: Layout, state: LearnerState[Any]) -> WrittenFile:
    """Write everything the replay does not hold."""
    data = safetensors(state.checkpoint())
    return write_checked(layout.storage, checkpoint_key(state.version, state.key), data)


def restore(layout: Layout, state: LearnerState[Any], version: int, head: int) -> None:
    """Have a new state stand at the newest committed checkpoint of its learner that leads to ``version``.

    It then stands at or before ``version``, or after it and has its weights.
    """
    from safetensors.numpy import load

    newest = version + layout.config.schedule.lag
    layout.storage.look_anew(".checkpoints/of another node")
    for record, written in checkpoints(layout.log.backwards(head), state.key):
        if record["version"] > newest:
            continue
        if not layout.storage.exists(written[0]):
            continue  # only the newest few are kept
        try:
            arrays = aligned_all(load(read_checked(layout.storage, written)))
        except DamagedError as error:
            warnings.warn(f"{error} Learning again from an older checkpoint.", stacklevel=2)
            continue
        if record["version"] <= version or version in published_in(arrays):
            state.restore(record["version"], record["loss"], arrays)
            return


def _diverged(layout: Layout, state: LearnerState[Any], error: DivergedError, head: int) -> DivergedError:
    """The error, and where to go on from; the batch that was learned from last is kept, to be looked at."""
    what, kept = str(error).removesuffix(f". {ADVICE}"), ""
    batch = getattr(state.learner, "last_batch", None)
    if batch is not None:
        storage, key = layout.storage, diverged_key(state.version, state.key)
        storage.make_folder(DIVERGED)
        storage.put(key, safetensors(batch(), {"version": str(state.version)}))
        kept = f" The batch is in {storage.where(key)} (safetensors.numpy.load_file)."
    newest = next((record["version"] for record, _ in checkpoints(layout.log.backwards(head), state.key)), None)
    where = "no checkpoint was made before" if newest is None else f"the last good checkpoint is that of {newest}"
    return DivergedError(f"{what}; {where}. Everything up to it is kept.{kept} {ADVICE}")
