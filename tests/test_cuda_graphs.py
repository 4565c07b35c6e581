"""The bookkeeping of CUDA graphs, without a GPU: what is recorded, what is drawn and set before a replay, and refusals.

A graph here is a stand-in that keeps the rules of torch's: nothing is computed while it is recorded, and a replay
computes it from the same memory into the same memory. Real ones are in test_cuda.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import daskrl
from daskrl.algorithms import by_name
from daskrl.algorithms.replay import Kind, ReplayLearner
from daskrl.errors import ConfigError
from tests.played import BOX, DISCRETE, played, setup

SETTINGS: dict[str, Any] = {
    "hidden": (8,), "learning_starts": 0, "batch_size": 8, "replay_ratio": 4.0, "window": 128,
    "learning_rate_end": 1e-4, "learning_rate_updates": 60,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "dqn": {"priority_alpha": 0.6, "target_update": 3},
    "rainbow": {"atoms": 5, "target_update": 3},
    "sac": {},
    "td3": {},
}


class Graph:
    """`torch.cuda.CUDAGraph`, of one learner."""

    learner: ReplayLearner
    kind: Kind
    replays = 0

    def replay(self) -> None:
        learner, kind = self.learner, self.kind
        learner.recording = Kind(unused=iter(kind.normal))
        with learner.precision():
            result = learner.update(learner, learner.batch)
        learner.recording = None
        assert kind.result is not None
        for into, value in zip(kind.result, result, strict=True):
            if into is not None and value is not None:
                into.copy_(value)
        Graph.replays += 1


@contextmanager
def recording(graph: Graph, capture_error_mode: str) -> Iterator[None]:
    """`torch.cuda.graph`: what is made within has not been made afterwards."""
    assert capture_error_mode == "thread_local"  # the next round is staged meanwhile
    learner = graph.learner
    assert learner.recording is not None
    assert learner.flat_target is not None
    assert all(group["capturable"] for group in groups(learner))
    states = [state for optimizer, *_ in learner.optimizers.values() for state in optimizer.state.values()]
    tensors = [learner.flat_online.weights, learner.flat_target.weights, *(x for one in states for x in one.values())]
    graph.kind, before = learner.recording, [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


def groups(learner: ReplayLearner) -> list[dict[str, Any]]:
    return [group for optimizer, *_ in learner.optimizers.values() for group in optimizer.param_groups]


def made(algorithm: Any, monkeypatch: pytest.MonkeyPatch, *, graphs: bool) -> ReplayLearner:
    box = "target_share" in vars(algorithm)
    learner: ReplayLearner = algorithm.learner(setup(BOX if box else DISCRETE), np.random.default_rng(1))
    for group in groups(learner):  # as on a GPU
        group["lr"] = torch.tensor(group["lr"])
    learner.graphs = graphs
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("ItsGraph", (Graph,), {"learner": learner}))
    monkeypatch.setattr(torch.cuda, "graph", recording)
    return learner


def learn(learner: ReplayLearner, rounds: int = 4) -> dict[str, np.ndarray]:
    action = DISCRETE if learner.setup.action.kind == "discrete" else BOX
    for round_ in range(rounds):
        learner.append(played(round_, action))
        assert learner.learn(np.random.default_rng(round_)) is not None
    return {**learner.state(), "target": learner.state().get("target", np.zeros(0))}


@pytest.mark.parametrize("name", list(CASES))
def test_updates_made_by_graphs_are_those_made_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = by_name(name)(**{**SETTINGS, **CASES[name]})
    expected = learn(made(algorithm, monkeypatch, graphs=False))
    monkeypatch.setattr(Graph, "replays", 0)
    learner = made(algorithm, monkeypatch, graphs=True)
    got = learn(learner)
    assert learner.updates == 64
    kinds = 1 if name == "sac" else 2
    assert len(learner.kinds) == kinds
    assert Graph.replays == learner.updates - 3 * kinds
    assert all(kind.normal for kind in learner.kinds.values()) == (name != "dqn")
    for array in expected:
        assert got[array].tobytes() == expected[array].tobytes(), array
    assert not any(group["capturable"] for group in groups(learner))


def test_what_was_restored_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = made(daskrl.DQN(**SETTINGS), monkeypatch, graphs=True)
    learn(learner, 1)
    assert any(kind.graph for kind in learner.kinds.values())
    learner.restore(learner.state())
    assert not learner.kinds


@dataclass(frozen=True)
class OwnRate(daskrl.DQN):
    """Learns at a tenth of the rate."""

    def update(self, learner: ReplayLearner, batch: Any) -> Any:
        loss, td_error = self.loss(learner, batch)
        learner.minimise(loss, learning_rate=learner.learning_rate / 10)
        return loss.detach(), td_error


@dataclass(frozen=True)
class OwnKinds(daskrl.DQN):
    """Does not say of the odd updates what they are."""

    def update_kind(self, updates: int) -> Any:
        return None if updates % 2 else 0


def test_a_rate_or_an_optimizer_that_a_graph_would_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate=learner.learning_rate\) and an optimizer"):
        learn(made(OwnRate(**SETTINGS), monkeypatch, graphs=True))
    learner = made(daskrl.DQN(**SETTINGS), monkeypatch, graphs=True)
    groups(learner)[0]["lr"] = 1e-3
    with pytest.raises(ConfigError, match="whose learning rate is a tensor"):
        learn(learner)


def test_a_batch_elsewhere_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = made(daskrl.DQN(**SETTINGS), monkeypatch, graphs=True)
    gather = learner.window.gather
    monkeypatch.setattr(learner, "gather", lambda positions, weight: gather(positions, weight))
    with pytest.raises(ConfigError, match="expected gather to write over the batch it gave before"):
        learn(learner)


def test_updates_of_no_kind_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Graph, "replays", 0)
    expected = learn(made(OwnKinds(**SETTINGS), monkeypatch, graphs=False))
    learner = made(OwnKinds(**SETTINGS), monkeypatch, graphs=True)
    got = learn(learner)
    assert list(learner.kinds) == [0]
    assert Graph.replays == 32 - 3
    assert got["online"].tobytes() == expected["online"].tobytes()
