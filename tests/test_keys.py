"""Learners and agents have keys: "" is that of a run with one, and a second is a second key. Format 1 shows none.

How workers are chosen for two learners is tested in `test_members.py`, what a pool does for them in `test_pools.py`.
"""

from __future__ import annotations

import dataclasses
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import daskrl
from daskrl import names, schedule, seeding
from daskrl.algorithms.base import Moment
from daskrl.config import Schedule
from daskrl.envs.spaces import agent_column, spec_of
from daskrl.errors import ConfigError
from daskrl.pools.base import Plan
from daskrl.pools.demand import Demand
from daskrl.pools.local import InProcessPool
from daskrl.pools.placing import Flight, Placing
from daskrl.records import CheckpointRecord, LearnRecord, checkpoints
from daskrl.schedule import Checkpoint, Evaluate, Learn, Recheck, Rollout, Task
from daskrl.store import snapshot
from daskrl.store.columns import columns
from daskrl.store.layout import Layout
from daskrl.store.progress import Progress
from daskrl.store.weights import checkpoint_key, diverged_key, read_weights, version_in, weights_key
from daskrl.tasks import evaluations, learner, rollout, session
from daskrl.tasks.learner_state import LearnerState
from daskrl.tasks.published import pack, unpack
from tests.promise import start

SHAPE = Schedule(streams=2, envs_per_stream=1, fragment_steps=4, lag=1)
SPEC = spec_of(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))


def learned(version: int, learner: str | None = None) -> Any:
    name = "" if learner is None else f"{learner}."
    written = [f".weights/{name}{version:08d}.safetensors", 8, 1]
    record = {
        "kind": "learn", "version": version, "learner_updates": 10 * version, "loss": 0.5, "seconds": 1.0,
        "updates": 10, "device": "cpu", "weights": written, "checkpoint": written,
    }  # fmt: skip
    return record if learner is None else {**record, "learner": learner}


def test_files_of_a_run_with_one_learner_are_those_of_format_1() -> None:
    assert weights_key(12) == ".weights/00000012.safetensors"
    assert checkpoint_key(12) == ".checkpoints/00000012.safetensors"
    assert version_in("00000012.safetensors") == 12


def test_a_second_learner_has_files_of_its_own() -> None:
    assert weights_key(12, "left") == ".weights/left.00000012.safetensors"
    assert checkpoint_key(12, "left") == ".checkpoints/left.00000012.safetensors"
    assert version_in("left.00000012.safetensors", "left") == 12


@pytest.mark.parametrize("name", ["left.00000012.safetensors", "zarr.json", ".00000012.x.partial", "12.safetensors"])
def test_other_files_are_not_taken_for_those_of_the_only_learner(name: str) -> None:
    assert version_in(name) is None
    assert version_in("00000012.safetensors", "left") is None


def test_a_progress_counts_what_is_of_its_learner() -> None:
    only, left = Progress([0, 0]), Progress([0, 0], learner="left")
    played: Any = {"kind": "evaluation", "version": 3, "learner": "left", "returns": [2.0]}
    for record in (learned(0), learned(0, "left"), learned(1, "left"), learned(2, "left"), learned(1), played):
        only.take(record)
        left.take(record)
    assert (only.published, only.learner_updates, sorted(only.kept), only.evaluated) == (1, 10, [0, 1], {})
    assert (left.published, left.learner_updates, sorted(left.kept), left.evaluated) == (2, 20, [0, 1, 2], {3: 2.0})
    assert only.kept[1][0] == weights_key(1)
    assert left.kept[1][0] == weights_key(1, "left")
    assert left.copy().learner == "left"


def test_checkpoints_are_found_by_learner() -> None:
    log = [learned(1), learned(2, "left")]
    assert [record["version"] for record, _ in checkpoints(log)] == [1]
    assert [record["version"] for record, _ in checkpoints(log, "left")] == [2]


def test_each_learner_has_its_own_tasks() -> None:
    learns = schedule.learns_ready(SHAPE, 4, [2, 2], 0, {0}, [Learn(1)], learner="left")
    assert learns == [Learn(1, "left"), Learn(2, "left")]
    assert schedule.learns_ready(SHAPE, 4, [2, 2], 0, {0}, [Learn(1, "left")]) == [Learn(1), Learn(2)]
    assert schedule.evaluations_due(1, 4, 1, [1], [], learner="left") == [Evaluate(1, "left")]
    assert schedule.evaluations_due(1, 4, 1, [1], []) == [Evaluate(1)]


def test_a_second_agent_has_columns_of_its_own() -> None:
    alone, left = columns(SPEC, SHAPE, 1), columns(SPEC, SHAPE, 1, agent="left")
    assert list(alone)[:3] == ["observation", "final_observation", "action"]
    assert list(left) == [f"agent.left.{name}" for name in alone]
    assert left["agent.left.reward"].shape == alone["reward"].shape
    assert left["agent.left.action"].name == agent_column("action", "left")


def test_a_second_key_draws_other_numbers_and_the_default_those_of_before() -> None:
    drawn = [seeding.generator(3, "learn", 5, key=key).integers(0, 2**62, 4).tolist() for key in ("", "a", "b")]
    assert (
        drawn[0]
        == np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, 2, 5]))).integers(0, 2**62, 4).tolist()
    )
    assert len({str(numbers) for numbers in drawn}) == 3


# -- which keys there may be ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "a", "0", "_", "-", "Player_1", "left-wing", "00000012", "x" * 64])
def test_a_key_of_letters_digits_underscores_and_hyphens_names_files_and_columns(key: str) -> None:
    names.require_key("learner", key)
    assert version_in(weights_key(7, key).rpartition("/")[2], key) == 7
    assert version_in(weights_key(7, key).rpartition("/")[2], f"{key}0") is None
    assert agent_column("reward", key) == (f"agent.{key}.reward" if key else "reward")


BAD = [".", "..", "a.b", "a/b", "/", "a\\b", " ", "a b", "a\n", "\n", "a:b", "é", "²", "\0", "x" * 65, None, 3, ("a",)]


@pytest.mark.parametrize("key", BAD, ids=repr)
@pytest.mark.parametrize(
    "enters",
    [
        lambda key: weights_key(1, key), lambda key: checkpoint_key(1, key), lambda key: diverged_key(1, key),
        lambda key: snapshot.key_of(key), lambda key: agent_column("reward", key),
        lambda key: columns(SPEC, SHAPE, 1, agent=key),
        lambda key: LearnerState(None, None, None, seed=0, key=key),  # type: ignore[arg-type, type-var]
        lambda key: layout({key: "a"}), lambda key: layout({"left": key}),
    ],
    ids=["weights", "checkpoint", "batch", "snapshot", "column", "columns", "state", "agent", "learner"],
)  # fmt: skip
def test_any_other_key_is_refused_wherever_one_enters(enters: Callable[[Any], object], key: Any) -> None:
    with pytest.raises(ConfigError, match=r"(learner|agent) key: expected at most 64 letters .*, got ") as raised:
        enters(key)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def layout(agents: dict[str, str]) -> Layout:
    return Layout(None, None, SPEC, {}, "", agents=agents)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["a.b", "red team/1", "é.x", "x" * 65])
def test_the_key_that_a_refusal_proposes_is_one(key: str) -> None:
    with pytest.raises(ConfigError, match="Type, for example") as raised:
        names.require_key("learner", key)
    proposed = str(raised.value).rpartition("for example, ")[2].strip("'.")
    names.require_key("learner", proposed)
    assert proposed


def test_keys_that_differ_in_case_alone_would_be_one_file_on_some_file_systems() -> None:
    said = "learner keys: expected .* got 'left' and 'Left'. Type, for example, 'Left_2'"
    with pytest.raises(ConfigError, match=said):
        layout({"one": "left", "other": "Left"})
    with pytest.raises(ConfigError, match=r"agent keys: .* 'a' and 'A'"):
        layout({"a": "x", "A": "y"})
    assert layout({"a": "x", "b": "x", "c": "X_2", "d": ""}).learners == ("x", "X_2", "")


# -- the schedule -----------------------------------------------------------------------------------------


def test_no_stream_acts_before_every_learner_has_published_what_it_acts_with() -> None:
    held = {"a": {0, 1}, "b": {0}}
    assert schedule.held_of_all(held) == {0}
    assert schedule.held_of_all({"": {3, 4}}) == {3, 4}
    assert schedule.held_of_all({"a": {3}, "b": set()}) == set()
    ready = schedule.rollouts_ready(SHAPE, 9, [2, 1], schedule.held_of_all(held), set())
    assert ready == [Rollout(1, 1, 0)]  # the other stream waits for version 1 of "b"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lag", [0, 1, 4])
def test_whatever_finishes_first_two_learners_learn_each_version_once_from_the_same_rounds(lag: int, seed: int) -> None:
    shape, rounds, choose = dataclasses.replace(SHAPE, streams=3, lag=lag), 6, random.Random(seed)
    log: list[Any] = []
    held: dict[str, set[int]] = {"a": set(), "b": set()}
    flying: set[Task] = set()
    while True:
        of = {key: Progress([0] * 3, learner=key) for key in held}
        for record, progress in ((record, progress) for record in log for progress in of.values()):
            progress.take(record)
        committed = of["a"].committed
        for key, progress in of.items():
            flying.update(
                schedule.learns_ready(shape, rounds, committed, progress.published, held[key], flying, key)[:1]
                if not any(isinstance(task, Learn) and task.learner == key for task in flying)
                else []
            )
        flying.update(schedule.rollouts_ready(shape, rounds, committed, schedule.held_of_all(held), flying))
        if not flying:
            break
        task = choose.choice(sorted(flying, key=str))
        flying.discard(task)
        if isinstance(task, Learn):
            assert task.version <= min(committed)
            held[task.learner].add(task.version)
            log.append(learned(task.version, task.learner))
        elif isinstance(task, Rollout):
            assert all(task.weights_version in versions for versions in held.values())
            fragment = {"kind": "fragment", "stream": task.stream, "round": task.round, "episodes": []}
            log.append({**fragment, "weights_version": task.weights_version})
    versions = {key: [r["version"] for r in log if r["kind"] == "learn" and r["learner"] == key] for key in held}
    assert versions == {"a": list(range(rounds + 1)), "b": list(range(rounds + 1))}
    acted = {(r["round"], r["stream"]): r["weights_version"] for r in log if r["kind"] == "fragment"}
    assert acted == {(r, s): max(0, r - lag) for r in range(rounds) for s in range(3)}


def test_a_run_wants_slots_for_the_slowest_of_its_learners() -> None:
    demand = Demand(dataclasses.replace(SHAPE, streams=12))
    demand.take({"kind": "fragment", "seconds": 1.0})  # type: ignore[typeddict-item, arg-type]
    for key, seconds in (("a", 3.7), ("a", 4.0), ("b", 1.3)):
        demand.take({**learned(1, key), "seconds": seconds})
    assert demand.slots == 4  # three fragments of 1.2 s while "a" learns for 3.7 s; for "b" alone it were 12


# -- tasks ------------------------------------------------------------------------------------------------

AGENTS = {"left": "a", "right": "b"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Run:
    """A run that is through, of which two learners learn the rounds."""
    return start(tmp_path_factory.mktemp("run") / "run", env_steps=6 * 128).wait()


def joined(run: daskrl.Run, agents: dict[str, str] = AGENTS) -> str:
    layout = dataclasses.replace(run.store.layout, agents=agents)
    session.put(session.Session("several", layout, run.algorithm, run.source.factory, run.options))
    return "several"


@pytest.fixture
def token(run: daskrl.Run) -> Iterator[str]:
    yield joined(run)
    session.forget("several")


def learn(run: daskrl.Run, token: str, version: int, key: str, *, write: bool = False) -> session.Published:
    return learner.learn(token, version, run.store.log.head(), "cpu", write, write, key)


def bits(published: session.Published) -> bytes:
    return published[2].tobytes()


def test_two_learners_of_one_process_learn_publish_and_write_side_by_side(run: daskrl.Run, token: str) -> None:
    made = {(key, v): learn(run, token, v, key, write=v == 3) for v in (0, 2, 3, 4) for key in ("a", "b")}
    assert len({bits(published) for published in made.values()}) == 8  # each draws numbers of its own
    assert {key: made[key, 3][0].get("learner") for key in "ab"} == {"a": "a", "b": "b"}
    kept = session.get(token).learners
    assert {key: sorted(kept[key].published) for key in kept} == {"a": [2, 3, 4], "b": [2, 3, 4]}
    assert kept["a"].reader is not kept["b"].reader
    records = [record for published in made.values() if (record := published[0])["kind"] == "learn"]
    for key in "ab":
        (written,) = [r for r in records if r["weights"] and r.get("learner") == key]
        assert written["weights"] is not None
        assert written["weights"][0] == weights_key(3, key)
        arrays = read_weights(run.store.storage, written["weights"])
        assert unpack(*made[key, 3][1:]).keys() == arrays.keys()
        assert all(np.array_equal(arrays[n], value) for n, value in unpack(*made[key, 3][1:]).items())
        assert [record for record, _ in checkpoints(records, key)] == [written]
    alone = LearnerState(run.algorithm, session.get(token).setup(), kept["a"].state.rounds, seed=7)  # type: ignore[union-attr]
    session.forget(token)
    only = learn(run, joined(run, {"": ""}), 0, "")
    assert bits(only) == alone.published[0][1].tobytes()  # as ever
    assert "learner" not in only[0]


def test_a_learner_that_is_lost_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    run = start(tmp_path / "run", env_steps=6 * 128).wait()
    token = joined(run)
    try:
        records: list[Any] = [learn(run, token, 3, key, write=True)[0] for key in "ab"]
        expected = {key: bits(learn(run, token, 5, key)) for key in "ab"}
        stopped: list[CheckpointRecord] = [learner.checkpoint(token, learn(run, token, 5, key), 3) for key in "ab"]
        assert [record.get("learner") for record in stopped] == ["a", "b"]
        assert [record["weights"][0] for record in stopped if record["weights"]] == [weights_key(5, k) for k in "ab"]
        run.store.lock()
        run.store.commit(records)
        run.store.unlock()
        session.forget(token)
        token = joined(run)
        assert {key: bits(learn(run, token, 5, key)) for key in "ab"} == expected
        (run.store.root / checkpoint_key(3, "b")).unlink()
        session.forget(token)
        token = joined(run)
        assert bits(learn(run, token, 5, "b")) == expected["b"]  # from the rounds alone, not from what "a" wrote
    finally:
        session.forget(token)


def test_what_is_read_ahead_is_read_for_the_learner_that_asked(run: daskrl.Run, token: str) -> None:
    for key in "ab":
        learn(run, token, 1, key)
    learner.read_ahead(token, 2, run.store.log.head(), "b")
    of_a, of_b = (session.get(token).learners[key].reader for key in "ab")
    assert of_a is not None
    assert of_b is not None
    assert (sorted(of_a.begun), sorted(of_b.begun)) == ([], [1])


class Named:
    """An algorithm whose policy is the weights themselves, and whose action says whose they are."""

    def policy(self, setup: Any) -> dict[str, Any]:
        return {}

    def load(self, policy: dict[str, Any], weights: dict[str, Any]) -> None:
        policy.update(weights)

    def act(self, policy: dict[str, Any], moment: Moment) -> Any:
        return policy["whose"]


def published(key: str, version: int, whose: float) -> session.Published:
    record: Any = {"kind": "learn", "version": version, **({"learner": key} if key else {})}
    return (record, *pack({"whose": np.array([whose])}))


def test_an_agent_acts_with_the_weights_of_its_learner_and_draws_numbers_of_its_own(run: daskrl.Run) -> None:
    layout = dataclasses.replace(run.store.layout, agents={"left": "a", "right": "b", "keeper": "a"})
    made = session.Session("acting", layout, Named(), run.source.factory, run.options)  # type: ignore[arg-type]
    weights = rollout.by_learner([published("b", 0, 2.0), published("a", 0, 1.0)])
    chosen = {}
    for agent in layout.agents:
        policy = rollout.make_policy(made, weights, 0, 0, agent)
        chosen[agent] = float(policy({}, {}, 0)[0][0])
    assert chosen == {"left": 1.0, "right": 2.0, "keeper": 1.0}
    assert {key: sorted(kept.policies) for key, kept in made.learners.items()} == {"a": [0], "b": [0]}
    for version in range(1, 6):
        rollout.acting_policy(made, published("b", version, 9.0))
    assert {key: sorted(kept.policies) for key, kept in made.learners.items()} == {"a": [0], "b": [3, 4, 5]}


def test_evaluations_of_two_learners_are_played_apart(run: daskrl.Run, token: str) -> None:
    played = {}
    for key in "ab":
        record = learn(run, token, 3, key, write=True)[0]
        assert record["kind"] == "learn"
        played[key] = evaluations.evaluate(token, 3, record["weights"] or [], 2, key)
    for key in "ab":
        while played[key]["kind"] == "evaluating":
            assert played[key].get("learner") == key
            written: Any = [weights_key(3, key), 0, 0]  # not read again
            played[key] = evaluations.evaluate(token, 3, written, 2, key)
        assert "error" not in played[key]
        assert played[key].get("learner") == key


# -- pools ------------------------------------------------------------------------------------------------


def test_a_pool_holds_the_weights_of_each_learner_and_acts_with_all(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    layout = dataclasses.replace(run.store.layout, agents={"": "a", "right": "b"})
    pool = InProcessPool(Plan(layout, run.algorithm, run.source.factory, run.options))
    try:
        assert pool.held == {"a": set(), "b": set()}
        for key in "ab":
            pool.submit_learns([Learn(0, key)], 1, lambda version: (False, False), key)
            (outcome,) = pool.wait()
            assert outcome.task == Learn(0, key)
        assert pool.held == {"a": {0}, "b": {0}}
        pool.submit_rollouts([Rollout(0, 0, 0)], 1)
        (outcome,) = pool.wait()
        assert outcome.record["kind"] == "fragment"
        assert {key: list(k.policies) for key, k in session.get(pool.token).learners.items()} == {"a": [0], "b": []}
        pool.submit_checkpoint(-1, "b")
        (outcome,) = pool.wait()
        assert outcome.task == Checkpoint("b")
        assert outcome.record["kind"] == "checkpoint"
        assert outcome.record["weights"] is not None
        assert (outcome.record.get("learner"), outcome.record["weights"][0]) == ("b", weights_key(0, "b"))
        pool.release(set(), "a")
        assert pool.held == {"a": set(), "b": {0}}
        pool.submit_checkpoint(-1, "a")
        assert not pool.in_flight  # whose weights were let go
    finally:
        pool.close()


def placed(*tasks: tuple[str, Task, str]) -> Placing:
    placing = Placing(2, ("a", "b"))
    for key, task, address in tasks:
        weights = placing.acts_with(task.weights_version) if isinstance(task, Rollout) else ()
        placing.start(Flight(key, task, address, weights))
    return placing


def tell(placing: Placing, key: str) -> Any:
    return placing.told(key, {"kind": "republished", "version": 0}, ())


def test_what_waits_for_the_weights_of_any_learner_goes_with_them() -> None:
    placing = placed(("1", Learn(0, "a"), "one"), ("2", Learn(0, "b"), "two"))
    assert not placing.learns([Learn(1, "a"), Learn(2, "a")], 1, "a")[1:]
    assert placing.learns([Learn(1, "b"), Learn(2, "b")], 1, "b") == [Learn(1, "b")]  # room for two of each
    tell(placing, "1")
    tell(placing, "2")
    assert placing.held == {"a": {0}, "b": {0}}
    for key, task in (("3", Rollout(0, 0, 0)), ("4", Rollout(0, 1, 0))):
        placing.start(Flight(key, task, "three", placing.acts_with(0)))
    placing.start(Flight("5", Learn(1, "b"), "two"))
    released, died = placing.left("one")
    assert sorted(released) == ["1", "3", "4"]
    assert died == []
    assert placing.held == {"a": set(), "b": {0}}
    assert placing.in_flight == {Learn(1, "b")}


def test_a_learner_lets_go_of_its_own_weights_alone() -> None:
    placing = placed(*((f"{key}{v}", Learn(v, key), key) for key in "ab" for v in (0, 1)))
    for key in "ab":
        tell(placing, f"{key}0")
    tell(placing, "b1")
    assert placing.newest("a") == (Learn(1, "a"), "a1")  # being learned
    assert placing.newest("b") == (Learn(1, "b"), "b1")
    assert placing.release({1}, "b") == ["b0"]
    assert placing.held == {"a": {0}, "b": {1}}
    assert placing.take_back_learns("a", "b") == []
    assert placing.take_back_learns("a", "a") == ["a1"]
    placing.start(Flight("r", Rollout(1, 0, 0), "c", placing.acts_with(0)))
    assert placing.release(set(), "a") == []  # a fragment still acts with them
    assert placing.held == {"a": set(), "b": {1}}


def test_a_fragment_is_run_again_once_the_weights_of_every_learner_are_there() -> None:
    placing = placed(("1", Learn(0, "a"), "one"), ("2", Learn(0, "b"), "two"))
    again = Recheck(0, 0, '{"stream":0}')
    placing.recheck(again, 1)
    tell(placing, "1")
    assert placing.rechecks({"one": 1}) == []
    tell(placing, "2")
    assert placing.rechecks({"one": 1}) == [(again, 1, "one")]
    assert placing.release(set(), "a") == placing.release(set(), "b") == []  # what is run again acts with both


def test_each_learners_evaluation_goes_on_where_it_was_begun() -> None:
    placing = Placing(2, ("a", "b"))
    due = [Evaluate(3, "a"), Evaluate(3, "b")]
    first = placing.evaluations(due, {"one": 1, "two": 1}, {}, urgent=False)
    assert first == [(Evaluate(3, "a"), "one"), (Evaluate(3, "b"), "two")]
    assert placing.evaluations(due[::-1], {"one": 1, "two": 1}, {}, urgent=False) == first[::-1]


# -- the snapshot -----------------------------------------------------------------------------------------


def test_each_learner_has_a_snapshot_and_takes_nothing_from_that_of_another(tmp_path: Path) -> None:
    run = start(tmp_path / "run", env_steps=128)
    store, streams = run.store, run.store.config.schedule.streams
    store.lock()
    for version in range(snapshot.WORTH):
        records: list[LearnRecord] = [learned(version), learned(version, "left")] if version % 3 else [learned(version)]
        store.commit(records)
    store.unlock()
    expected = {key: Progress([0] * streams, learner=key) for key in ("", "left")}
    for progress in expected.values():
        for segment in store.log.segments():
            progress.take_commit(segment)
        snapshot.save(store.log, store.run_id, progress)
    for key, progress in expected.items():
        assert snapshot.load(store.log, store.run_id, streams, key) == progress
    assert expected[""].published != expected["left"].published
    assert store.progress() == expected[""]
    left = store.root / snapshot.key_of("left")
    (store.root / snapshot.KEY).write_bytes(left.read_bytes())
    assert snapshot.load(store.log, store.run_id, streams) is None
    assert daskrl.Store.open(store.root).progress() == expected[""]
