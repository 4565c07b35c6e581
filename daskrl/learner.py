"""The learner task: consumes whole rounds in order; what it returns are the published weights.

A pure function of (run config, what is committed). The worker's learner state is used when it stands at or
before the version wanted; otherwise it is the newest checkpoint, and the rounds since are learned again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import seeding
from daskrl.columns import read_transitions
from daskrl.commits import Record
from daskrl.errors import DamagedError, DivergedError
from daskrl.session import Session, Weights, get
from daskrl.spaces import Array
from daskrl.store import read_checked, write_checked

if TYPE_CHECKING:
    from torch import Tensor

    from daskrl.window import Batch


def learn(token: str, version: int, head: int, device: str, keep: bool, checkpoint: bool) -> Weights:
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
        The loss is NaN or infinite.
    DamagedError
        A chunk of the replay is not the one committed; nothing was learned from it.
    """
    session = get(token)
    with session.learning:
        return _learn(session, version, head, device, keep, checkpoint)


def _learn(session: Session, version: int, head: int, device: str, keep: bool, checkpoint: bool) -> Weights:
    if version in session.published:
        return session.published[version]
    learner, session.learner = session.learner, None
    if learner is None or learner.version > version:
        learner = Learner(session, device)
        learner.restore(version, head)
    began, updates = time.time(), learner.state.updates
    learner.advance(version, head)
    made = learner.state.updates - updates
    if keep or checkpoint:
        session.layout.require_same_run()
    meta: dict[str, Any] = {
        "kind": "learn",
        "version": version,
        "learner_updates": learner.state.updates,
        "loss": learner.loss,
        "seconds": time.time() - began,
        "updates": made,
        "device": str(learner.device),
        "weights": learner.save_weights() if keep else None,
        "checkpoint": learner.save_checkpoint() if checkpoint else None,
    }
    # A copy: what is returned by reference changes before other workers fetch it.
    weights = (meta, np.array(learner.state.online.weights.detach().cpu().numpy()))
    session.learner = learner
    session.published[version] = weights
    for old in sorted(session.published)[: -(session.config.schedule.lag + 2)]:
        del session.published[old]
    return weights


class Learner:
    """The learner's state between two versions.

    Attributes
    ----------
    version : rounds learned so far; the version of ``state.online``.
    loss : mean loss of the last round that had updates, or None.
    """

    def __init__(self, session: Session, device: str) -> None:
        import torch

        from daskrl import samplers
        from daskrl.networks import Flat, deterministic, initialise
        from daskrl.window import Window

        self.session, self.algorithm = session, session.algorithm
        self.layout, config = session.layout, session.config
        deterministic(device)
        self.device = torch.device(device)
        random = seeding.generator(config.seed, "initialise")
        online, target = (Flat(self.algorithm.network(self.layout.spec, config.frame_stack)) for _ in range(2))
        initialise(online.module, random)
        target.weights.copy_(online.weights)
        if self.device.type != "cpu":
            online, target = (_moved(flat, session, self.device) for flat in (online, target))
        self.state = self.algorithm.learner(online, target)
        self.window = Window(
            self.layout.spec,
            config.schedule,
            capacity=self.algorithm.window,
            frame_stack=config.frame_stack,
            n_step=self.algorithm.n_step,
            discount=self.algorithm.discount,
            reward_clip=self.algorithm.reward_clip,
            device=self.device,
        )
        self.sampler = samplers.make(self.window, self.algorithm.priority_alpha)
        self.version = 0
        self.loss: float | None = None

    # -- learning -----------------------------------------------------------------------------------------

    def advance(self, version: int, head: int) -> None:
        """Learn the rounds from where the state stands up to ``version``."""
        import torch

        torch.set_num_threads(self.session.config.torch_threads)
        for fragments in self.read_ahead(range(self.version, version), head):
            self.learn_round(fragments)

    def learn_round(self, fragments: list[dict[str, Array]]) -> None:
        """Add one round to the window and make the updates that are due after it."""
        import torch

        config, algorithm = self.session.config, self.algorithm
        before = (self.window.first, self.window.stop)
        self.window.append(fragments)
        self.sampler.appended(self.window, before)
        random = seeding.generator(config.seed, "learn", self.version)
        steps = config.schedule.round_steps
        due = algorithm.updates_after((self.version + 1) * steps) - algorithm.updates_after(self.version * steps)
        total: Tensor | None = None
        batch: Batch | None = None
        with torch.enable_grad():
            for _ in range(due if len(self.window) else 0):
                positions, weight = self.sampler.draw(
                    self.window, algorithm.batch_size, random, algorithm.beta(self.state.updates)
                )
                batch = self.window.gather(positions, weight, batch)
                for group in self.state.optimizer.param_groups:
                    group["lr"] = algorithm.learning_rate_after(self.state.updates)
                loss, td_error = algorithm.update(self.state, batch)
                if weight is not None and td_error is not None:
                    self.sampler.update(positions, td_error.cpu().numpy())
                total = loss if total is None else total + loss
        self.version += 1
        if total is not None:
            self.loss = float(total) / due
            if not np.isfinite(self.loss):
                raise DivergedError(
                    f"the loss of version {self.version} is {self.loss}. Everything up to it is kept. Lower "
                    "learning_rate, clip rewards (reward_clip), or check the environment's reward scale, and "
                    "start a new run."
                )

    def read_ahead(self, rounds: range, head: int) -> Iterator[list[dict[str, Array]]]:
        """The fragments of some rounds, in order; the next round is read while one is learned."""
        if len(rounds) == 0:
            return
        schedule, layout = self.session.config.schedule, self.layout
        slots = [schedule.slot(stream, r) for r in rounds for stream in range(schedule.streams)]
        records = layout.find(slots, head)

        def read(round_: int) -> list[dict[str, Array]]:
            return [_read(self.session, records[schedule.slot(s, round_)]) for s in range(schedule.streams)]

        if len(rounds) == 1:
            yield read(rounds[0])
            return
        with ThreadPoolExecutor(1, thread_name_prefix="daskrl-read-ahead") as reader:
            ahead = reader.submit(read, rounds[0])
            for following in [*rounds[1:], None]:
                fragments = ahead.result()
                if following is not None:
                    ahead = reader.submit(read, following)
                yield fragments

    # -- checkpoints --------------------------------------------------------------------------------------

    def save_weights(self) -> list[Any]:
        """Write the online network, each parameter by name, as safetensors."""
        from safetensors.numpy import save

        data = save(self.state.online.named(), metadata={"version": str(self.version)})
        return write_checked(self.layout.root, f".weights/{self.version:08d}.safetensors", data)

    def save_checkpoint(self) -> list[Any]:
        """Write everything the replay does not hold: networks, optimizer, priorities."""
        from safetensors.torch import save

        tensors = {
            **{f"state.{name}": value for name, value in self.state.state().items()},
            **{f"sampler.{name}": value for name, value in self.sampler.state().items()},
        }
        data = save({name: value.contiguous().clone() for name, value in tensors.items()})
        return write_checked(self.layout.root, f".checkpoints/{self.version:08d}.safetensors", data)

    def restore(self, version: int, head: int) -> None:
        """Take the newest committed checkpoint at or before ``version`` and fill the window behind it."""
        for record in self.layout.log.backwards(head):
            if record["kind"] != "learn" or not record.get("checkpoint") or record["version"] > version:
                continue
            if not (self.layout.root / record["checkpoint"][0]).exists():
                continue  # only the newest few are kept
            try:
                data = read_checked(self.layout.root, record["checkpoint"])
            except DamagedError as error:
                warnings.warn(f"{error} Learning again from an older checkpoint.", stacklevel=2)
                continue
            self._restore(record, data, head)
            return

    def _restore(self, record: Record, data: bytes, head: int) -> None:
        from safetensors.torch import load

        tensors = load(data)
        steps = self.session.config.schedule.fragment_steps
        self.version = record["version"]
        self.loss = record["loss"]
        first = max(0, self.version - self.window.window_rows // steps)
        self.window.rounds, self.window.rows = first, first * steps
        for fragments in self.read_ahead(range(first, self.version), head):
            self.window.append(fragments)
        self.state.restore(_under("state.", tensors))
        self.sampler.restore(_under("sampler.", tensors))


def _read(session: Session, record: Record) -> dict[str, Array]:
    fragment = read_transitions(session.layout.root, session.layout.columns, record)
    fragment["episode_step"] = np.asarray(record["episode_step"])
    fragment["continues"] = np.asarray(record["continues"])
    return fragment


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _moved(flat: Any, session: Session, device: Any) -> Any:
    from daskrl.networks import Flat

    moved = Flat(session.algorithm.network(session.layout.spec, session.config.frame_stack).to(device), device)
    moved.weights.copy_(flat.weights)
    return moved
