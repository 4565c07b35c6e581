"""Where rounds come from: every source passes the same tests, and a learner learns from any of them the same."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import daskrl
from daskrl.algorithms.base import Setup, updates_after
from daskrl.arithmetic import pinned
from daskrl.config import Schedule
from daskrl.errors import ConfigError, DivergedError
from daskrl.replay.rounds import CommittedRounds, Fragments, RoundsInMemory
from daskrl.schedule import Budget
from daskrl.store.initial import Initial
from daskrl.store.store import Store
from daskrl.tasks.learner_state import LearnerState
from daskrl.testing import RoundsTests
from tests.promise import SETTINGS, start

REPLAY: dict[str, Any] = {"hidden": (16,), "learning_starts": 128, "batch_size": 16, "replay_ratio": 2.0, "window": 640}


# -- every source passes the suite ----------------------------------------------------------------------------


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="daskrl-rounds-"))


@functools.cache
def run() -> daskrl.Run:
    return start(folder() / "run").wait()


@functools.cache
def begun_with_its_replay() -> daskrl.Run:
    return start(folder() / "after", init=run().store, init_replay=True, env_steps=5 * 128).wait()


@pytest.fixture(scope="module", autouse=True)
def _removed() -> Iterator[None]:
    yield
    shutil.rmtree(folder())


def committed(store: Store) -> CommittedRounds:
    return CommittedRounds(store.layout, store.log.head())


def in_memory(source: CommittedRounds) -> RoundsInMemory:
    """The same rounds, in copies that have nothing to do with the store."""

    def copies(rounds: range) -> list[Fragments]:
        return [
            [{name: value.copy() for name, value in fragment.items()} for fragment in fragments]
            for fragments in source.read(rounds)
        ]

    return RoundsInMemory(copies(range(source.count())), copies(range(-source.before, 0)), source.cut)


class TestCommittedRounds(RoundsTests):
    def make(self) -> CommittedRounds:
        return committed(run().store)


class TestCommittedRoundsAfterThoseOfAnotherRun(RoundsTests):
    def make(self) -> CommittedRounds:
        return committed(begun_with_its_replay().store)


class TestRoundsInMemory(RoundsTests):
    def make(self) -> RoundsInMemory:
        return in_memory(committed(run().store))


class TestRoundsInMemoryAfterOthers(RoundsTests):
    def make(self) -> RoundsInMemory:
        return in_memory(committed(begun_with_its_replay().store))


class Faulty(RoundsInMemory):
    """Rounds of two environments with a fault."""

    def __init__(self, fault: str) -> None:
        def fragment(round_: int) -> dict[str, Any]:
            steps = np.arange(8.0, dtype=np.float32).reshape(4, 2) + 10 * round_
            no, yes = np.zeros((4, 2), np.bool_), np.asarray(True)
            made = {"reward": steps, "terminated": no, "truncated": no, "episode_step": np.zeros(2), "continues": yes}
            return {name: value for name, value in made.items() if name != fault}

        super().__init__([[fragment(round_)] * (2 if (fault, round_) == ("streams", 2) else 1) for round_ in range(5)])
        self.fault, self.reads = fault, 0

    def count(self) -> int:
        return 5

    def read(self, rounds: range) -> Iterator[Fragments]:
        self.reads += 1
        if self.fault == "order" and len(rounds) > 1:
            rounds = rounds[::-1]
        if self.fault == "end":
            rounds = range(rounds.start, min(rounds.stop, 5))
        for fragments in super().read(rounds):
            if self.fault == "changes" and self.reads > 1:
                fragments = [{**fragments[0], "reward": fragments[0]["reward"] + self.reads}]
            if self.fault == "alignment":
                fragments = [{**fragments[0], "reward": np.zeros(9, np.float32)[1:].reshape(4, 2)}]
            yield fragments


@pytest.mark.parametrize(
    ("fault", "test", "says"),
    [
        ("continues", "rounds_are_of_one_shape", "round 0, stream 0 has no continues"),
        ("streams", "rounds_are_of_one_shape", "round 2 has other streams"),
        ("alignment", "rounds_are_of_one_shape", "reward does not begin at a multiple of 64 bytes"),
        ("order", "rounds_come_in_order_however_many_are_asked_for", "read alone, rounds are others"),
        ("changes", "a_round_is_the_same_whenever_it_is_read", "read again, rounds differ"),
        ("end", "rounds_end_with_an_error", "round 5 is given"),
    ],
)
def test_each_fault_of_a_source_is_found_by_its_test(fault: str, test: str, says: str) -> None:
    class Suite(RoundsTests):
        def make(self) -> Faulty:
            return Faulty(fault)

    with pytest.raises(AssertionError, match=says):
        getattr(Suite(), f"test_{test}")()


def test_a_source_without_a_fault_passes_without_pytest() -> None:
    class Suite(RoundsTests):
        def make(self) -> Faulty:
            return Faulty("")

    assert len(Suite().run()) == 7


def test_rounds_of_a_run_that_goes_on_are_counted_up_to_what_is_known_of(tmp_path: Path) -> None:
    source: CommittedRounds | None = None
    counted = []
    for report in start(tmp_path / "run"):
        store = Store.open(tmp_path / "run")
        source = source or CommittedRounds(store.layout, 1)
        counted.append(source.count())
        source.reach(store.log.head())
        assert source.count() >= report.weights_version
        source.reach(1)  # a task that comes late
    assert counted[0] == 0
    assert counted == sorted(counted)
    assert source is not None
    assert source.count() == 12


# -- a learner needs nothing but rounds -----------------------------------------------------------------------


ALGORITHMS: dict[str, tuple[Callable[[], Any], str, dict[str, Any]]] = {
    "dqn": (lambda: daskrl.DQN(**SETTINGS), "CartPole-v1", {}),
    "stacked": (lambda: daskrl.DQN(**REPLAY, n_step=3), "CartPole-v1", {"frame_stack": 3}),
    "r2d2": (lambda: daskrl.R2D2(hidden=(16,), learning_starts=128, batch_size=4, window=640), "CartPole-v1", {}),
    "ppo": (lambda: daskrl.PPO(hidden=(16,), lstm=8), "CartPole-v1", {"lag": 0}),
    "impala": (lambda: daskrl.IMPALA(hidden=(16,), batch_lanes=2), "CartPole-v1", {}),
    "sac": (lambda: daskrl.SAC(**REPLAY), "Pendulum-v1", {}),
    "q": (daskrl.QLearning, "FrozenLake-v1", {}),
}


def state_of(
    made: daskrl.Run, rounds: RoundsInMemory, algorithm: Any, begin_with: Initial | None = None
) -> LearnerState[RoundsInMemory]:
    config = made.store.config
    setup = Setup(made.store.spec, config.schedule, config.frame_stack)
    return LearnerState(algorithm, setup, rounds, seed=config.seed, begin_with=begin_with)


def bits(weights: Any) -> dict[str, bytes]:
    return {name: np.asarray(array).tobytes() for name, array in weights.items()}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_learner_given_the_rounds_of_a_run_has_its_weights_when_the_store_is_gone(name: str, tmp_path: Path) -> None:
    make, env, options = ALGORITHMS[name]
    made = start(tmp_path / "run", env, make(), env_steps=7 * 128, **options).wait()
    version, weights = made.store.weights()
    expected, updates = bits(weights), made.store.summary()["learner_updates"]
    rounds = in_memory(committed(made.store))
    shutil.rmtree(tmp_path / "run")
    with pinned():
        state = state_of(made, rounds, make())
        state.learn(Budget(transitions=10**9))
        assert (state.version, state.learner.updates) == (version, updates)
        assert bits(state.learner.weights()) == expected
        other = state_of(made, rounds, make())
        other.advance(3)
        again = state_of(made, rounds, make())
        again.restore(other.version, other.loss, other.checkpoint())
        again.advance(version)
        assert bits(again.learner.weights()) == expected
        assert again.loss == state.loss


def test_a_learner_whose_memory_begins_with_another_runs_rounds_has_the_weights_of_that_run() -> None:
    made = begun_with_its_replay()
    source = committed(made.store)
    assert source.before == 5
    assert source.cut
    version, weights = made.store.weights()
    assert version == 5
    initial = Initial.from_bytes(made.store.layout.initial())
    with pinned():
        state = state_of(made, in_memory(source), daskrl.DQN(**SETTINGS), initial)
        state.advance(5)
        assert state.learner.updates == made.store.summary()["learner_updates"] > 0
        assert bits(state.learner.weights()) == bits(weights)
        without = state_of(made, RoundsInMemory(list(source.read(range(5)))), daskrl.DQN(**SETTINGS), initial)
        without.advance(5)
        assert bits(without.learner.weights()) != bits(weights)  # the other run's rounds are learned from


def test_learning_from_memory_imports_neither_dask_nor_zarr(tmp_path: Path) -> None:
    made = run()
    rounds = in_memory(committed(made.store))
    setup = Setup(made.store.spec, made.store.config.schedule)
    data = tmp_path / "rounds"
    data.write_bytes(pickle.dumps((daskrl.DQN(**SETTINGS), setup, list(rounds.read(range(12))), 7)))
    code = f"""if True:
        import pathlib, pickle, sys, zlib
        from daskrl.arithmetic import pinned
        from daskrl.replay.rounds import RoundsInMemory
        from daskrl.tasks.learner_state import LearnerState
        algorithm, setup, rounds, seed = pickle.loads(pathlib.Path({str(data)!r}).read_bytes())
        with pinned():
            state = LearnerState(algorithm, setup, RoundsInMemory(rounds), seed=seed)
            state.advance(12)
        print(*[name for name in ("dask", "distributed", "zarr") if name in sys.modules])
        print({{name: zlib.crc32(value.tobytes()) for name, value in sorted(state.learner.weights().items())}})
    """
    code += "\n"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import zlib

    weights = made.store.weights()[1]
    crcs = {name: zlib.crc32(weights[name].tobytes()) for name in sorted(weights)}
    assert ran.stdout.splitlines() == ["", repr(crcs)]


def test_a_learner_that_diverges_says_so_without_a_store() -> None:
    rounds = in_memory(committed(run().store))
    algorithm = daskrl.DQN(**{**SETTINGS, "priority_alpha": None, "learning_rate": 1e30, "learning_rate_end": None})
    with pinned(), pytest.raises(DivergedError, match=r"version \d+ (is|are) .*\. Lower learning_rate"):
        state_of(run(), rounds, algorithm).advance(12)


# -- budgets --------------------------------------------------------------------------------------------------

SCHEDULE = Schedule(streams=2, envs_per_stream=2, fragment_steps=8)  # 32 transitions a round


@pytest.mark.parametrize(
    ("updates", "rounds"), [(1, 3), (4, 3), (5, 4), (8, 4), (9, 5), (400, 102)], ids=lambda value: str(value)
)
def test_a_budget_in_updates_is_the_fewest_rounds_that_make_them(updates: int, rounds: int) -> None:
    """The first 64 transitions make none, each round after that makes four."""
    assert Budget(updates=updates).rounds(SCHEDULE, lambda transitions: max(0, transitions - 64) // 8) == rounds


@pytest.mark.parametrize("transitions", [1, 31, 32, 33, 64, 1000])
def test_a_budget_in_transitions_is_the_rounds_of_a_run_with_as_many(transitions: int) -> None:
    assert Budget(transitions=transitions).rounds(SCHEDULE, lambda _: 0) == SCHEDULE.rounds(transitions)


def test_a_budget_that_is_none_or_never_reached_is_refused() -> None:
    for given in ({}, {"transitions": 1, "updates": 1}, {"updates": 0}, {"transitions": -1}, {"updates": 1.5}):
        with pytest.raises(ConfigError):
            Budget(**given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="do not make 3 updates"):
        Budget(updates=3).rounds(SCHEDULE, lambda transitions: 2)
    setup = Setup(run().store.spec, SCHEDULE)
    with pytest.raises(ConfigError, match=r"QLearning does not say .*updates_after\(env_steps, setup\)"):
        updates_after(daskrl.QLearning(), setup)


@pytest.mark.parametrize("name", ["dqn", "ppo", "impala", "sac"])
def test_a_learner_ends_with_the_round_that_a_budget_in_updates_says(name: str, tmp_path: Path) -> None:
    make, env, options = ALGORITHMS[name]
    made = start(tmp_path / "run", env, make(), env_steps=5 * 128, **options).wait()
    rounds = in_memory(committed(made.store))
    with pinned():
        state = state_of(made, rounds, make())
        after = updates_after(make(), state.setup)
        for updates in (1, 15, 16, 20):
            state.learn(Budget(updates=updates))
            assert state.version == Budget(updates=updates).rounds(state.setup.schedule, after)
            assert state.learner.updates == after(state.version * state.setup.schedule.round_steps) >= updates
        state.learn(Budget(updates=20))  # reached
        before = state.version
        state.learn(Budget(updates=1))
        assert state.version == before
        state.learn(Budget(updates=10**6))  # the rounds end first
        assert state.version == rounds.count()


def test_settings_of_a_budget_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Budget(updates=1).updates = 2  # type: ignore[misc]
