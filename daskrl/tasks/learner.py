"""The learner task: consumes whole rounds in order; what it returns are the published weights.

A pure function of (run config, what is committed). The worker's learner state is used when it stands at or
before the version wanted; otherwise it is the newest checkpoint, and the rounds since are learned again.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from daskrl import seeding
from daskrl.algorithms.base import Weights, staged
from daskrl.arithmetic import aligned_all, pinned, undrawn
from daskrl.errors import DamagedError, DivergedError
from daskrl.records import Array, Record
from daskrl.store.columns import Table, pack, unpack
from daskrl.store.initial import Initial
from daskrl.store.store import Layout, read_checked, write_checked
from daskrl.store.weights import belongs_to, safetensors
from daskrl.tasks import initial
from daskrl.tasks.session import Published, Session, find, get

_PUBLISHED = "published/"  # before the names of older weights in a checkpoint


def learn(token: str, version: int, head: int, device: str, keep: bool, checkpoint: bool) -> Published:
    """Learn all rounds before ``version``; the result is that version of the weights.

    Called by the driver's pool on the learner's worker, in the order of versions; again for the same version
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
            return _learn(session, version, head, device, keep, checkpoint)
        finally:
            if session.learner is None:  # it failed; what reads for it would keep its window
                session.reader = None


def _learn(session: Session, version: int, head: int, device: str, keep: bool, checkpoint: bool) -> Published:
    if version in session.published:
        return session.published[version]
    standing, session.learner = session.learner, None
    if standing is None or (standing.version > version and version not in standing.published):
        standing = Standing(session, device)
        standing.restore(version, head)
    if version < standing.version:  # the checkpoint had it
        session.learner = standing
        return {"kind": "learn", "version": version}, *standing.published[version]
    began, updates = time.time(), standing.learner.updates
    standing.advance(version, head)
    if keep or checkpoint:
        session.layout.require_same_run()
    meta: dict[str, Any] = {
        "kind": "learn",
        "version": version,
        "learner_updates": standing.learner.updates,
        "loss": standing.loss,
        "seconds": time.time() - began,
        "updates": standing.learner.updates - updates,
        "device": device,
        "weights": save_weights(session.layout, version, standing.learner.weights()) if keep else None,
        "checkpoint": standing.save_checkpoint() if checkpoint else None,
    }
    weights = (meta, *standing.published[version])
    session.learner = standing
    session.published[version] = weights
    for old in sorted(session.published)[: -(session.config.schedule.lag + 2)]:
        del session.published[old]
    return weights


def checkpoint(token: str, newest: Published, kept: int) -> Record:
    """Write where the learner of this process stands, so that nothing is learned again, and the weights it reached.

    Called by the driver's pool on the learner's worker when a run is stopped on the way. Where the learner does not
    stand at ``newest`` or after it, because learning was interrupted or the learner is lost, the record has no
    checkpoint, and the weights are ``newest``.

    Parameters
    ----------
    newest : the newest weights published.
    kept : the newest version whose weights are in the store; they are not written again.
    """
    session = get(token)
    meta, table, flat = newest
    with session.learning:
        standing = session.learner
        version, loss, written = meta["version"], meta.get("loss"), None
        if meta.get("weights"):
            kept = max(kept, version)
        session.layout.require_same_run()
        if standing is not None and standing.version >= version:
            version, loss = standing.version, standing.loss
            table, flat = standing.published[version]
            written = standing.save_checkpoint() if version else None
        weights = save_weights(session.layout, version, unpack(table, flat)) if version > kept else None
        return {"kind": "checkpoint", "version": version, "loss": loss, "checkpoint": written, "weights": weights}


def read_ahead(token: str, version: int, head: int) -> None:
    """Begin to read the round that ``version`` will learn. From any thread.

    Called on the learner's worker when the task for ``version`` has come and waits for its turn.
    """
    session = find(token)
    reader = None if session is None else session.reader
    if reader is not None:
        reader.begin(version - 1, head)


Fragments = Sequence[Mapping[str, Array]]
"""The columns of one fragment of every stream, in the streams' order."""


class Reader:
    """Reads committed rounds in order: the next one in a thread, while one is learned.

    Parameters
    ----------
    learner : its ``stage``, where it has one, is given what was read; in the thread that read it.
    device : where it learns.
    """

    def __init__(self, session: Session, learner: Any, device: str) -> None:
        self.session, self.learner, self.device = session, learner, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="daskrl-reader")
        self._begun: dict[int, Future[Fragments]] = {}

    def begin(self, round_: int, head: int) -> None:
        """Begin to read a round that is wanted next. It may fail: `rounds` then reads it again."""
        if round_ >= 0 and round_ not in self._begun:
            self._begun[round_] = self._thread.submit(lambda: self._read(round_, self._records([round_], head)))

    def rounds(self, rounds: range, head: int) -> Iterator[Fragments]:
        """Some rounds in order, as ``append`` takes them."""
        for passed in [begun for begun in list(self._begun) if begun < rounds.start]:
            del self._begun[passed]
        records = self._records([round_ for round_ in rounds if round_ not in self._begun], head)
        for round_ in rounds:
            taken = [self._take(round_, records, head)]
            if round_ + 1 in rounds and round_ + 1 not in self._begun:
                self._begun[round_ + 1] = self._thread.submit(self._read, round_ + 1, records)
            yield taken.pop()  # not kept here while it is learned

    def _take(self, round_: int, records: Mapping[int, Record], head: int) -> Fragments:
        begun = self._begun.pop(round_, None)
        if begun is None:
            return self._read(round_, records)
        return begun.result() if begun.exception() is None else self._read(round_, self._records([round_], head))

    def _records(self, rounds: Sequence[int], head: int) -> dict[int, Record]:
        schedule = self.session.config.schedule
        slots = [schedule.slot(stream, round_) for round_ in rounds for stream in range(schedule.streams)]
        return self.session.layout.find(slots, head)

    def _read(self, round_: int, records: Mapping[int, Record]) -> Fragments:
        schedule = self.session.config.schedule
        slots = (schedule.slot(stream, round_) for stream in range(schedule.streams))
        layout = self.session.layout
        fragments = [_read(layout, records[slot]) for slot in slots]
        if round_ == 0 and (layout.config.init or {}).get("replay"):
            for fragment in fragments:  # its episodes are not those of the run that the memory begins with
                fragment["continues"] = np.asarray(False)
        return self._staged(fragments)

    def first(self, rounds: Sequence[Sequence[Record]]) -> Iterator[Fragments]:
        """Rounds of the run that this one's memory begins with, as ``append`` takes them."""
        layout = self.session.layout
        copied = dataclasses.replace(layout, storage=layout.storage.folder(".init"))
        for records in rounds:
            yield self._staged([_read(copied, record) for record in records])

    def _staged(self, fragments: Fragments) -> Fragments:
        with pinned(self.session.config.torch_threads, self.device):
            return staged(self.learner, fragments)


class Standing:
    """A learner and where it stands. Made, and used, within `daskrl.arithmetic.pinned`.

    Attributes
    ----------
    learner : the algorithm's.
    reader : of the rounds it learns.
    version : rounds learned so far; the version of its weights.
    loss : mean loss of the last round that had updates, or None.
    published : weights as made by `daskrl.store.columns.pack`, of this version and those that streams may still act
        with.
    """

    def __init__(self, session: Session, device: str) -> None:
        self.session, self.layout = session, session.layout
        random = seeding.generator(session.config.seed, "initialise")
        with undrawn():
            self.learner = session.algorithm.learner(session.setup(device), random)
        session.reader = self.reader = Reader(session, self.learner, device)
        if session.config.init is not None:
            initial.begin(self.learner, Initial.from_bytes(session.layout.initial()))
        self._first, self._remembers = session.layout.first_replay(), False
        self.version = 0
        self.loss: float | None = None
        self.published: dict[int, tuple[Table, Array]] = {0: pack(self.learner.weights())}

    # -- learning -----------------------------------------------------------------------------------------

    def advance(self, version: int, head: int) -> None:
        """Learn the rounds from where the state stands up to ``version``."""
        if not self._remembers and version > self.version:
            self._remember(head)
        for fragments in self.reader.rounds(range(self.version, version), head):
            self.learner.append(fragments)
            del fragments  # the next ones are being read
            random = seeding.generator(self.session.config.seed, "learn", self.version)
            self.version += 1
            try:
                loss = self.learner.learn(random)
            except DivergedError as error:  # a sampler's, of TD errors
                raise self._diverged(f"learning version {self.version}: {str(error).rstrip('.')}", head) from error
            if loss is not None:
                self.loss = loss
                if not np.isfinite(loss):
                    raise self._diverged(f"the loss of version {self.version} is {loss}", head)
            weights = self.learner.weights()
            bad = self._not_finite(weights)
            if bad:  # the loss was finite: it was that of the weights before
                raise self._diverged(f"weights of version {self.version} are NaN or infinite: {', '.join(bad)}", head)
            # A copy: what is returned by reference changes before other workers fetch it.
            self.published[self.version] = pack(weights)
            self.published.pop(self.version - self.session.config.schedule.lag - 1, None)

    def _not_finite(self, weights: Mapping[str, Array]) -> list[str]:
        """Names of published arrays, and of what else the learner learns, that hold NaN or infinite values."""
        arrays = {name: np.asarray(weights[name]) for name in sorted(weights)}
        bad = [name for name, value in arrays.items() if value.dtype.kind in "fc" and not np.isfinite(value).all()]
        others = getattr(self.learner, "not_finite", list)
        return bad or list(others())

    def _diverged(self, what: str, head: int) -> DivergedError:
        kept = ""
        batch = getattr(self.learner, "last_batch", None)
        if batch is not None:
            storage, key = self.layout.storage, f".diverged/{self.version:08d}.safetensors"
            storage.make_folder(".diverged")
            storage.put(key, safetensors(batch(), {"version": str(self.version)}))
            kept = f" The batch is in {storage.where(key)} (safetensors.numpy.load_file)."
        checkpoints = (r["version"] for r in self.layout.log.backwards(head) if r.get("checkpoint"))
        newest = next(checkpoints, None)
        where = "no checkpoint was made before" if newest is None else f"the last good checkpoint is that of {newest}"
        return DivergedError(
            f"{what}; {where}. Everything up to it is kept.{kept} Lower "
            "learning_rate, clip rewards (reward_clip), or check the environment's reward scale, and start a new run."
        )

    # -- checkpoints --------------------------------------------------------------------------------------

    def save_checkpoint(self) -> list[Any]:
        """Write everything the replay does not hold: networks, optimizer, priorities, older weights still in use."""
        older = {
            f"{_PUBLISHED}{version}/{name}": value
            for version, weights in self.published.items()
            if version < self.version
            for name, value in unpack(*weights).items()
        }
        data = safetensors({**self.learner.state(), **older})
        return write_checked(self.layout.storage, f".checkpoints/{self.version:08d}.safetensors", data)

    def restore(self, version: int, head: int) -> None:
        """Take the newest committed checkpoint that leads to ``version`` and give the learner its memory back.

        It stands at or before ``version``, or after it and has its weights.
        """
        from safetensors.numpy import load

        newest = version + self.session.config.schedule.lag
        self.layout.storage.look_anew(".checkpoints/of another node")
        for record in self.layout.log.backwards(head):
            if not record.get("checkpoint") or record["version"] > newest:
                continue
            if not self.layout.storage.exists(record["checkpoint"][0]):
                continue  # only the newest few are kept
            try:
                arrays = aligned_all(load(read_checked(self.layout.storage, record["checkpoint"])))
            except DamagedError as error:
                warnings.warn(f"{error} Learning again from an older checkpoint.", stacklevel=2)
                continue
            older = _take_published(arrays)
            if record["version"] <= version or version in older:
                self._restore(record, arrays, head)
                self.published.update(older)
                return

    def _remember(self, head: int) -> None:
        """Give the learner its memory: rounds of the run that this one began with come before its own."""
        self._remembers, before = True, len(self._first)
        first = max(0, before + self.version - self.learner.memory)
        # Where these are not that run's first rounds, what is stacked with their first frames is not among them: as if
        # one more round had come and gone, which leaves out the steps that need it.
        self.learner.skip(first + (before > 0 and self._first[0][0]["round"] > 0))
        for fragments in self.reader.first(self._first[first:]):
            self.learner.append(fragments)
        for fragments in self.reader.rounds(range(max(0, first - before), self.version), head):
            self.learner.append(fragments)

    def _restore(self, record: Record, arrays: dict[str, Array], head: int) -> None:
        self.version, self.loss = record["version"], record["loss"]
        self._remember(head)
        self.learner.restore(arrays)
        self.published = {self.version: pack(self.learner.weights())}


def save_weights(layout: Layout, version: int, weights: Weights) -> list[Any]:
    """Write published weights, each array by name, as safetensors."""
    data = safetensors(weights, belongs_to(layout.config, layout.spec, layout.run_id, version))
    return write_checked(layout.storage, f".weights/{version:08d}.safetensors", data)


def _take_published(arrays: dict[str, Array]) -> dict[int, tuple[Table, Array]]:
    """Out of the arrays of a checkpoint, the older weights in it by version."""
    found: dict[int, dict[str, Array]] = {}
    for key in [key for key in arrays if key.startswith(_PUBLISHED)]:
        version, _, name = key.removeprefix(_PUBLISHED).partition("/")
        found.setdefault(int(version), {})[name] = arrays.pop(key)
    return {version: pack(weights) for version, weights in found.items()}


def _read(layout: Layout, record: Record) -> dict[str, Array]:
    fragment = layout.read_transitions(record)
    fragment["episode_step"] = np.asarray(record["episode_step"])
    fragment["continues"] = np.asarray(record["continues"])
    return aligned_all(fragment)
