"""While the learner's worker learns a version, it reads the round of the next."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from distributed import Client

import daskrl
from daskrl import clusters
from daskrl.errors import DamagedError
from daskrl.pools.base import Plan
from daskrl.pools.local import InProcessPool
from daskrl.replay import rounds
from daskrl.tasks import ahead, learner, session
from tests.promise import SETTINGS, start

ROUNDS = 12


class Waiting(daskrl.DQN):
    """On a worker, learns no round before the next one was read in another thread."""

    def learner(self, setup: Any, random: np.random.Generator) -> Any:
        made = super().learner(setup, random)
        stage, learn, was_read = made.stage, made.learn, threading.Event()

        def staged(fragments: Any) -> Any:
            if threading.current_thread().name.startswith("daskrl-reader"):
                was_read.set()
            return stage(fragments)

        def learned(random: np.random.Generator) -> Any:
            if made.window.rounds < ROUNDS:
                assert was_read.wait(60)
                was_read.clear()
            return learn(random)

        made.stage, made.learn = staged, learned
        return made


def test_on_a_worker_every_round_is_read_while_the_one_before_is_learned(tmp_path: Path) -> None:
    expected = start(tmp_path / "expected").wait().store.digest()
    with clusters.local(1) as cluster, Client(cluster) as client:
        run = start(tmp_path / "run", algorithm=Waiting(**SETTINGS), client=client).wait()
    assert run.store.digest() == expected


@pytest.fixture
def run(tmp_path: Path) -> daskrl.Run:
    return start(tmp_path / "run").wait()


@pytest.fixture
def token(run: daskrl.Run) -> Iterator[str]:
    """A session of a run that is through, which has learned version 4 of it."""
    pool = InProcessPool(Plan(run.store.layout, run.algorithm, run.source.factory, run.options))
    for checkpoint in (run.store.root / ".checkpoints").iterdir():
        checkpoint.unlink()
    learn(pool.token, 4, run)
    yield pool.token
    pool.close()


def learn(token: str, version: int, run: daskrl.Run) -> session.Published:
    return learner.learn(token, version, run.store.log.head(), "cpu", False, False)


def begin(token: str, version: int, run: daskrl.Run) -> None:
    """As when the version's task comes while another is being learned; returns when its round was read."""
    learner.read_ahead(token, version, run.store.log.head())
    reader = session.get(token).learners[""].reader
    assert reader is not None
    reader.begun[version - 1].exception()


def last_weights(token: str) -> dict[str, bytes]:
    state = session.get(token).learners[""].state
    assert state is not None
    return {name: np.asarray(array).tobytes() for name, array in state.learner.weights().items()}


def weights_of(run: daskrl.Run) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in run.store.weights()[1].items()}


def test_a_round_that_was_read_ahead_is_not_read_again(
    run: daskrl.Run, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, bool]] = []  # round, ahead
    read_fragment, main = rounds.read_committed, threading.main_thread()

    def counted(layout: Any, record: Any) -> Any:
        read.append((record["round"], threading.current_thread() is not main))
        return read_fragment(layout, record)

    monkeypatch.setattr(rounds, "read_committed", counted)
    begin(token, 5, run)
    begin(token, 5, run)
    assert read == [(4, True)] * 4
    learn(token, 5, run)
    learn(token, 6, run)
    assert read == [(4, True)] * 4 + [(5, False)] * 4


def test_what_was_read_ahead_and_is_learned_elsewhere_is_dropped(run: daskrl.Run, token: str) -> None:
    learn(token, 9, run)
    begin(token, 7, run)
    reader = session.get(token).learners[""].reader
    assert reader is not None
    assert set(reader.begun) == {6}
    learn(token, 10, run)
    assert not reader.begun


def test_the_weights_are_those_of_rounds_read_when_they_are_learned(run: daskrl.Run, token: str) -> None:
    reader = session.get(token).learners[""].reader
    assert reader is not None
    for version in (5, 6):
        begin(token, version, run)
        learn(token, version, run)
        assert not reader.begun  # taken
    learn(token, ROUNDS, run)  # the others at once
    assert last_weights(token) == weights_of(run)


@pytest.fixture
def damaged(run: daskrl.Run) -> Path:
    """A chunk of round 4 that is not the one committed; that one is beside it, as ``kept``."""
    slot = run.store.config.schedule.slot(2, 4)
    chunk = run.store.root / "observation" / run.store.columns["observation"].chunk_name(slot)
    kept = chunk.with_name("kept")
    kept.write_bytes(chunk.read_bytes())
    chunk.write_bytes(b"x" + kept.read_bytes()[1:])
    return chunk


def test_a_damaged_chunk_found_ahead_is_the_error_of_the_version_that_needs_it(
    run: daskrl.Run, token: str, damaged: Path
) -> None:
    begin(token, 5, run)
    reader = session.get(token).learners[""].reader
    assert reader is not None
    assert isinstance(reader.begun[4].exception(), DamagedError)
    with pytest.raises(DamagedError, match="observation"):
        learn(token, 5, run)


def test_what_could_not_be_read_ahead_is_read_when_it_is_learned(run: daskrl.Run, token: str, damaged: Path) -> None:
    begin(token, 5, run)
    damaged.with_name("kept").replace(damaged)
    learn(token, 5, run)
    learn(token, ROUNDS, run)
    assert last_weights(token) == weights_of(run)


def test_a_learner_that_failed_is_not_kept(run: daskrl.Run, token: str, damaged: Path) -> None:
    state = session.get(token).learners[""].state
    assert state is not None
    window, state = weakref.ref(state.learner.window), None  # type: ignore[attr-defined]
    with pytest.raises(DamagedError):
        learn(token, 5, run)
    gc.collect()
    assert window() is None


def test_a_session_that_learns_nothing_reads_nothing(run: daskrl.Run) -> None:
    learner.read_ahead("0000ffff", 5, run.store.log.head())  # gone, or of another worker
    pool = InProcessPool(Plan(run.store.layout, run.algorithm, run.source.factory, run.options))
    learner.read_ahead(pool.token, 5, run.store.log.head())
    assert session.get(pool.token).learners[""].reader is None
    pool.close()


def test_a_task_says_what_is_to_be_read_for_it_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(learner, "read_ahead", lambda *of: asked.append(of))
    plugin = ahead.ReadAhead()
    waits = SimpleNamespace(annotations={ahead.READ_AHEAD: ["00abcd12", 17, 300]})
    tasks = {"learn": waits, "rollout": SimpleNamespace(annotations=None), ("t", 4): SimpleNamespace(annotations={})}
    plugin.setup(SimpleNamespace(state=SimpleNamespace(tasks=tasks)))
    for state in ("waiting", "executing", "memory", "ready"):
        plugin.transition("learn", "released", state, stimulus_id="")
    for other in ("rollout", ("t", 4), "gone"):
        plugin.transition(other, "waiting", "ready", stimulus_id="")
    assert asked == [("00abcd12", 17, 300)]
