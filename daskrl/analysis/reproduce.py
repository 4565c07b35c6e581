"""Run one rollout of a run again, in this process, and compare it with what is stored."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl.algorithms.base import Algorithm
from daskrl.arithmetic import pinned
from daskrl.config import Options
from daskrl.envs import stream as envs
from daskrl.envs.source import EnvironmentFactory
from daskrl.errors import ConfigError
from daskrl.identity import require_known_keys, same_algorithm, same_environment
from daskrl.names import suggests
from daskrl.records import Republished
from daskrl.store.progress import Progress
from daskrl.store.store import Store
from daskrl.store.store import opened as opened_store
from daskrl.store.weights import read_weights
from daskrl.tasks import fingerprint, learner, rollout, session
from daskrl.tasks.published import pack


@dataclass(frozen=True)
class Reproduction:
    """What came of running a fragment again.

    Attributes
    ----------
    fragment, stream, round, weights_version : which.
    committed : whether the store holds the fragment; if not, there is nothing to compare with.
    differs : columns whose bytes differ; empty is what daskrl promises.
    data : the columns computed here.
    """

    fragment: int
    stream: int
    round: int
    weights_version: int
    committed: bool
    differs: tuple[str, ...]
    data: envs.Fragment

    def to_json(self) -> dict[str, Any]:
        return {
            "fragment": self.fragment,
            "stream": self.stream,
            "round": self.round,
            "weights_version": self.weights_version,
            "committed": self.committed,
            "differs": list(self.differs),
        }


@suggests
def reproduce(
    store: str | os.PathLike[str] | Store,
    fragment: int,
    *,
    env: EnvironmentFactory | None = None,
    algorithm: Algorithm | None = None,
) -> Reproduction:
    """Run the rollout of one fragment again and compare it bit for bit; nothing is written.

    Where the weights it acts with are not kept, they are learned again from the newest checkpoint before.

    Parameters
    ----------
    fragment : its slot, ``round * streams + stream``; also one whose rollout failed and was never committed.
    env, algorithm : again the callable or instance the run was made with, where not built in.

    Raises
    ------
    EnvironmentFailure
        Whatever the rollout raised, here, where a debugger can look at it.
    ConfigError
        The fragment lies beyond what the store can act out.
    """
    opened = opened_store(store)
    require_known_keys(opened)
    source, algorithm = same_environment(opened, env), same_algorithm(opened, algorithm)
    schedule = opened.config.schedule
    round_, stream = divmod(fragment, schedule.streams)
    version = schedule.weights_version(round_)
    progress, fragments = opened.whole()
    records, committed = {record["slot"]: record for record in fragments}, progress.committed
    if fragment < 0 or round_ > committed[stream] or version > min(committed):
        raise ConfigError(
            f"fragment: {opened.storage} can act out fragments of rounds up to {min(committed) + schedule.lag}, as far "
            f"as each stream is committed; {fragment} is round {round_} of stream {stream}."
        )
    assert progress.budget is not None  # in commit 0
    options = dataclasses.replace(Options.from_json(progress.budget["options"]), strict=True)
    token = f"reproduce-{os.getpid()}"
    made = session.Session(token, opened.layout, algorithm, source.factory, options)
    weights = _weights(opened, made, version, progress)
    data, _ = rollout.run(made, rollout.by_learner([weights]), stream, round_, progress.commits, use_cache=False)
    differs: tuple[str, ...] = ()
    if fragment in records:
        stored = opened.read(records[fragment])
        differs = tuple(name for name in stored if stored[name].tobytes() != np.ascontiguousarray(data[name]).tobytes())
    return Reproduction(fragment, stream, round_, version, fragment in records, differs, data)


def _weights(store: Store, made: session.Session, version: int, progress: Progress) -> session.Published:
    meta: Republished = {"kind": "republished", "version": version}
    if version in progress.kept:
        return (meta, *pack(read_weights(store.storage, progress.kept[version])))
    arithmetic = progress.arithmetic or fingerprint.reference(session.introduction(store.layout), store.config.device)
    device, head = arithmetic["device"], progress.commits
    with pinned(store.config.torch_threads, device):
        state = learner.begin(made, head, device)
        learner.restore(store.layout, state, version, head)
        state.advance(version)
        return (meta, *pack(state.learner.weights()))
