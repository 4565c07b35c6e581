"""A population: who copies whom is decided by scores and derived numbers alone, and a copy begins bit for bit."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, LocalCluster
from safetensors.numpy import load

import daskrl
from daskrl import seeding
from daskrl.errors import ConfigError
from daskrl.study import Population, Range, Study, When
from daskrl.study.population import moved
from daskrl.study.search import WAIT, Ask, Wait, counting, decidable
from daskrl.study.space import Space, values_of

NAN = math.nan
QUICK: dict[str, Any] = {"hidden": (8,), "learning_starts": 64, "batch_size": 16, "window": 1024}
SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 16}


def make(path: Path | str, **changed: Any) -> Study:
    population = Population(members=3, interval=128, **changed.pop("population", {}))
    given: dict[str, Any] = {
        "algorithm": daskrl.DQN(**QUICK), "env": "CartPole-v1",
        "space": {"learning_rate": Range(1e-4, 1e-1, log=True)}, "seeds": 1, "env_steps": 384, "score": "auc",
        "search": population, **SHAPE, **changed,
    }  # fmt: skip
    return Study(path, **given)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A population that was carried out in this process."""
    return make(tmp_path_factory.mktemp("population") / "here").run(progress=False)


# -- who copies whom ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exploit", "scores", "replaced", "copied"),
    [
        (0.2, [3, 1, 4, 5, 2], {1}, {3}),  # 20 % of 5 is 1
        (0.4, [3, 1, 4, 5, 2], {1, 4}, {2, 3}),
        (0.2, [1, 2, 3, 4, 5, 6, 7, 8], {0, 1}, {6, 7}),  # of 8: 1.6, which is 2
        (0.2, [7, 3], {1}, {0}),  # at least one
        (0.5, [7, 3, 5], {1}, {0}),  # at most half
        (0.2, [5, 5, 5, 5], {3}, {0}),  # of equals the first is the better
        (0.2, [3, NAN, 4, 5, 2], {1}, {3}),  # one that failed is the worst
        (0.2, [NAN, NAN, 4, 5, NAN], {0, 1, 4}, {3}),  # and all that failed are replaced
        (0.4, [NAN, NAN, NAN, NAN, 2], {0, 1, 2, 3}, {4}),
        (0.0, [3, 1, 4, 5, 2], set(), set()),
        (0.0, [3, NAN, 4], {1}, {2}),
    ],
)
def test_the_worst_copy_the_best_and_the_others_go_on(
    exploit: float, scores: list[float], replaced: set[int], copied: set[int]
) -> None:
    members, found = range(len(scores)), set()
    for round_ in range(1, 30):  # what is drawn differs from round to round
        chosen = [Population(exploit=exploit).chosen(scores, 7, round_, member) for member in members]
        assert {member for member in members if chosen[member] != member} == replaced
        found |= {chosen[member] for member in replaced}
    assert found == copied


def test_where_all_have_failed_there_is_nobody_to_copy() -> None:
    assert Population().chosen([NAN, NAN], 0, 1, 0) is None


optuna = pytest.importorskip("optuna")


@pytest.mark.parametrize(
    ("values", "value", "factor", "expected"),
    [
        (Range(0.0, 1.0), 0.5, 0.8, 0.4),
        (Range(0.0, 1.0), 0.5, 1.2, 0.6),
        (Range(0.0, 1.0), 0.9, 1.2, 1.0),
        (Range(1e-4, 1e-1, log=True), 1.1e-4, 0.8, 1e-4),
        (Range(1, 100), 50, 1.2, 60),
        (Range(1, 100), 2, 1.2, 3),  # an integer moves by one at least
        (Range(1, 100), 2, 0.8, 1),
        (Range(1, 100), 1, 0.8, 1),
        ([1, 3, 5], 3, 0.8, 1),
        ([1, 3, 5], 3, 1.2, 5),
        ([1, 3, 5], 5, 1.2, 5),
        ([True, 1, "a"], 1, 1.2, "a"),  # True is another value
        (optuna.distributions.IntDistribution(10, 50, step=10), 20, 1.2, 30),
        (optuna.distributions.IntDistribution(10, 50, step=10), 50, 1.2, 50),
        (optuna.distributions.FloatDistribution(0.0, 1.0), 0.5, 1.2, 0.6),
        (optuna.distributions.FloatDistribution(0.0, 1.0, step=0.25), 0.5, 0.8, 0.25),
    ],
)
def test_a_setting_is_moved_and_stays_what_it_may_be(values: Any, value: Any, factor: float, expected: Any) -> None:
    axis = Space({"x": values}).axes["x"]
    got = moved(values_of(axis), value, factor)
    assert got == pytest.approx(expected) if isinstance(expected, float) else got == expected
    assert type(got) is type(expected)


def test_settings_are_perturbed_drawn_anew_or_kept() -> None:
    space = Space({"a": Range(0.0, 1.0), "b": Range(0.0, 1.0), "frame_stack": [1, 2]})
    setting = {"a": 0.5, "b": 0.5, "frame_stack": 2}

    def found(**given: Any) -> list[Any]:
        population = Population(**given)
        return [population.explored(space, setting, seeding.generator(seed, "study")) for seed in range(200)]

    assert {one["a"] for one in found(resample=0.0)} == {0.4, 0.6}
    assert {one["b"] for one in found(keep="b")} == {0.5}
    assert {one["frame_stack"] for one in found()} == {2}
    anew = [one["a"] not in (0.4, 0.6) for one in found(resample=0.25)]
    assert 30 <= sum(anew) <= 70
    assert len({one["a"] for one in found(resample=1.0)}) == 200


def test_a_setting_that_goes_by_another_comes_and_goes_with_it() -> None:
    space = Space({"dueling": [False, True], "rate": When({"dueling": True}, Range(0.0, 1.0))})
    for seed in range(20):
        found = Population(resample=0.5).explored(space, {"dueling": False}, seeding.generator(seed, "study"))
        assert ("rate" in found) == found["dueling"]
        back = Population(resample=0.5).explored(space, {**found, "dueling": True}, seeding.generator(seed, "study"))
        assert ("rate" in back) == back["dueling"]


def naive(population: Population, rounds: int, scores: Sequence[Sequence[float]]) -> list[list[int]]:
    """Of each round and member 100 times the round in which its run began, and the member: by loops in plain words."""
    size = len(scores[0])
    count = min(max(1, int(size * population.exploit + 0.5)), size // 2)
    runs = [list(range(size))]
    for round_ in range(1, rounds):
        ranking = sorted(range(size), key=lambda member: -scores[round_ - 1][member])
        runs.append(
            [100 * round_ + member if member in ranking[-count:] else runs[-1][member] for member in range(size)]
        )
    return runs


def test_rounds_are_those_of_a_naive_loop_and_later_results_decide_nothing() -> None:
    space, members, rounds, seed = Space({"a": Range(0.0, 1.0)}), 5, 6, 3
    scores = np.random.default_rng(0).random((rounds, members))
    population = Population(members=members, interval=10, exploit=0.4)
    asked: list[Ask | Wait] = []
    told: dict[int, float] = {}
    while True:
        number = len(asked)
        assert decidable(population, number, number)
        if number % (2 * members - 1) == 0 and number:  # the last result of a round is needed for the next
            assert not decidable(population, number, number - members)
        ask = population.next(space, 10 * rounds, seed, asked, counting(population, number, told))
        everything = population.next(space, 10 * rounds, seed, asked, {**told, number: 9.0, number + 1: 9.0})
        assert ask == everything
        if ask is None:
            break
        asked.append(ask)
        if isinstance(ask, Ask):
            assert ask.segment is not None
            told[number] = float(scores[ask.segment.round, ask.segment.member])
    found: dict[tuple[int, int], Ask] = {}
    for ask in asked:
        if isinstance(ask, Ask):
            assert ask.segment is not None
            found[ask.segment.round, ask.segment.member] = ask
    runs = naive(population, rounds, scores.tolist())
    assert len(found) == rounds * members
    numbers: dict[int, set[int]] = {}
    for (round_, member), ask in found.items():
        assert ask.segment is not None
        began = runs[round_][member] // 100
        assert (ask.segment.began, ask.segment.before) == (began, 10 * began)
        assert ask.env_steps == 10 * (round_ - began + 1)
        numbers.setdefault(ask.number, set()).add(runs[round_][member])
        if ask.segment.parent is not None:
            parent = asked[ask.segment.parent]
            assert isinstance(parent, Ask)
            assert parent.segment is not None
            assert parent.segment.round == began - 1
            ranking = sorted(range(members), key=lambda one: -scores[began - 1][one])
            assert parent.segment.member in ranking[:2]
    assert all(len(one) == 1 for one in numbers.values())  # each run has a setting of its own
    assert len({ask.segment.seed(0, 0) for ask in found.values() if ask.segment}) == len(numbers)


# -- real runs ---------------------------------------------------------------------------------------------


def test_a_population_on_workers_is_that_of_one_process(here: Study, tmp_path: Path, client: Client) -> None:
    study = make(tmp_path / "study").run(client, progress=False)
    assert study.digest() == here.digest()
    assert study.lineage().equals(here.lineage())


def test_a_killed_worker_changes_nothing(here: Study, tmp_path: Path, client: Client) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()

    def score(store: daskrl.Store) -> float:
        kind = killed / ("founder" if store.config.init is None else "copy")
        if not kind.exists():  # one of each; the run goes on where it was
            kind.write_text(store.run_id)
            os.kill(os.getpid(), signal.SIGKILL)
        return daskrl.study.AreaUnderCurve()(store, None, None)  # type: ignore[arg-type]

    study = make(tmp_path / "study", score=score).run(client, progress=False)
    columns = ["round", "member", "parent", "learning_rate", "state", "score", "digest"]
    assert study.table()[columns].equals(here.table()[columns])
    ids = {daskrl.Store.open(tmp_path / "study" / run).run_id for run in study.table().run}
    assert {path.name for path in killed.iterdir() if path.read_text() in ids} == {"founder", "copy"}


def test_a_population_stopped_after_every_run_is_the_same(here: Study, tmp_path: Path) -> None:
    def one_more(study: Study) -> Study:
        append = study.log.append

        def stop(records: Any) -> None:
            append(records)
            if any(record["kind"] == "trial" for record in records):
                study.stop()

        study.log.append = stop  # type: ignore[method-assign]
        return study.run(progress=False)

    for finished in range(1, 10):  # each time as another process would
        assert len(one_more(make(tmp_path / "study")).log.results) == finished
    assert make(tmp_path / "study").run(progress=False).digest() == here.digest()


def test_the_table_has_a_row_for_each_round_of_a_member(here: Study) -> None:
    table = here.table()
    assert table[["round", "member"]].to_numpy().tolist() == [[r, m] for r in range(3) for m in range(3)]
    assert set(table.state) == {"finished"}
    for round_ in (1, 2):
        before = table[table["round"] == round_ - 1].sort_values(["score", "member"], ascending=[False, True])
        now = table[table["round"] == round_].set_index("member")
        assert now.parent.dropna().to_dict() == {before.member.iloc[-1]: before.member.iloc[0]}
    lineage = here.lineage()
    assert lineage.env_steps.tolist() == [128] * 3 + [256] * 3 + [384] * 3
    assert lineage.learning_rate.tolist() == table.learning_rate.tolist()
    assert lineage.score.tolist() == table.score.tolist()


def copied(study: Study) -> tuple[daskrl.Store, daskrl.Store, int]:
    """Of the first copy: the parent's store, its own, and the env steps at which the parent stood."""
    root, table = Path(str(study.log.storage)), study.table()
    child = table[table.parent.notna()].iloc[0]
    parent = table[(table["round"] == child["round"] - 1) & (table.member == child.parent)].iloc[0]
    return daskrl.Store.open(root / parent.run), daskrl.Store.open(root / child.run), int(parent.env_steps)


def test_a_copy_begins_with_the_weights_and_the_optimizer_of_the_other_bit_for_bit(here: Study, tmp_path: Path) -> None:
    parent, child, env_steps = copied(here)
    rounds = env_steps // 64
    assert parent.progress().published > rounds  # the other went on meanwhile
    for name, value in parent.weights(rounds)[1].items():
        assert child.weights(0)[1][name].tobytes() == value.tobytes()
    settings = parent.config.algorithm["settings"]
    again = daskrl.train(
        daskrl.DQN(**QUICK, learning_rate=settings["learning_rate"]), "CartPole-v1", store=tmp_path / "again",
        env_steps=env_steps, seed=parent.config.seed, progress=False, **SHAPE,
    ).wait()  # fmt: skip
    (checkpoint,) = [path for path in (again.store.root / ".checkpoints").iterdir() if path.suffix == ".safetensors"]
    there, begun = load(checkpoint.read_bytes()), load((child.root / ".init/weights.safetensors").read_bytes())
    kept = [name for name in there if name.startswith("optimizer.")]
    assert len(kept) == 3  # Adam's step and two averages
    for name in kept:
        assert begun[f"others/{name}"].tobytes() == there[name].tobytes()
    assert child.config.init is not None
    assert child.config.init["at"] == child.config.init["env_steps"] == env_steps


def test_without_the_optimizer_the_weights_alone_are_copied(here: Study, tmp_path: Path) -> None:
    study = make(tmp_path / "study", population={"optimizer": False}, env_steps=256).run(progress=False)
    _, child, _ = copied(study)
    begun = load((child.root / ".init/weights.safetensors").read_bytes())
    assert "others/online" in begun
    assert not any("optimizer" in name for name in begun)
    assert child.digest() != copied(here)[1].digest()


def test_a_member_that_goes_on_unchanged_is_a_run_never_paused(here: Study, tmp_path: Path) -> None:
    row = next(row for row in here.table().itertuples() if row.env_steps == 384)
    store = daskrl.Store.open(Path(str(here.log.storage)) / str(row.run))
    alone = daskrl.train(
        daskrl.DQN(**QUICK, learning_rate=float(row.learning_rate)), "CartPole-v1",  # type: ignore[arg-type]
        store=tmp_path / "alone", env_steps=384, seed=store.config.seed, progress=False, **SHAPE,
    ).wait()  # fmt: skip
    assert alone.store.digest() == row.digest


def test_with_a_shared_replay_a_copy_learns_at_once_from_what_the_other_took(tmp_path: Path) -> None:
    study = make(tmp_path / "study", population={"share_replay": True}, env_steps=256).run(progress=False)
    parent, child, _ = copied(study)
    assert child.config.init is not None
    assert child.config.init["replay"]["fragments"] == 4  # two rounds of two streams
    began = (child.root / ".init/replay.json").read_text()
    assert all(f'"slot":{record["slot"]},' in began for record in parent.fragments()[:4])
    learned = [record["updates"] for record in child.records("learn")]
    assert learned[1] > 0
    assert make(tmp_path / "study", population={"share_replay": True}, env_steps=256).digest() == study.digest()


def test_epsilon_goes_on_in_a_copy(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    class Counted(daskrl.DQN):
        def act(self, policy: Any, moment: Any) -> Any:
            if not moment.greedy:
                (seen / str(moment.env_steps)).touch()
            return super().act(policy, moment)

    make(tmp_path / "study", algorithm=Counted(**QUICK), env_steps=256, population={"exploit": 0.5}).run(progress=False)
    assert max(int(path.name) for path in seen.iterdir()) == 252
    study = make(tmp_path / "two", algorithm=Counted(**QUICK), env_steps=256).run(progress=False)
    _, child, _ = copied(study)
    assert child.config.init is not None
    assert child.config.init["env_steps"] == 128


def test_a_member_that_failed_is_replaced_and_the_population_goes_on(tmp_path: Path) -> None:
    def score(store: daskrl.Store) -> float:
        rate = store.config.algorithm["settings"]["learning_rate"]
        if rate > 1e-3 and store.config.init is None:
            raise RuntimeError("too fast")
        return -float(rate)

    study = make(tmp_path / "study", score=score, env_steps=256).run(progress=False)
    table = study.table()
    failed = table[table.state == "failed"]
    assert set(failed["round"]) == {0}
    assert 1 <= len(failed) <= 2
    now = table[table["round"] == 1].set_index("member")
    assert all(now.parent[member] not in failed.member.tolist() for member in failed.member)
    assert now.parent[failed.member.tolist()].notna().all()
    assert study.lineage().score.isna().sum() == len(failed)


def test_where_all_fail_the_study_ends_and_says_so(tmp_path: Path) -> None:
    study = make(tmp_path / "study", score=lambda store: NAN).run(progress=False)
    assert study.summary()["failed"] == study.summary()["runs"] == 3


def test_more_env_steps_extend_a_population(here: Study, tmp_path: Path) -> None:
    make(tmp_path / "study", env_steps=256).run(progress=False)
    assert make(tmp_path / "study").run(progress=False).digest() == here.digest()


def test_several_seeds_are_one_score_and_each_copies_its_own(tmp_path: Path) -> None:
    study = make(tmp_path / "study", seeds=2, env_steps=256).run(progress=False)
    table = study.table()
    assert len(table) == 12
    assert table.groupby(["round", "member"]).learning_rate.nunique().max() == 1
    children = table[table.parent.notna()]
    assert children.seed.tolist() == [0, 1]
    for child in children.itertuples():
        store = daskrl.Store.open(tmp_path / "study" / str(child.run))
        parent = table[(table["round"] == 0) & (table.member == child.parent) & (table.seed == child.seed)].iloc[0]
        assert store.config.init is not None
        assert f"runs/{store.config.init['trial']}" == parent.run


def test_weights_that_do_not_fit_say_what_to_keep(tmp_path: Path) -> None:
    def score(store: daskrl.Store) -> float:
        return float(sum(store.config.algorithm["settings"]["hidden"]))

    given: dict[str, Any] = {"space": {"hidden": [(8,), (16,)]}, "env_steps": 256, "study_seed": 1, "score": score}
    perturbed = {"resample": 0.0, "factors": (0.8,)}
    (error,) = make(tmp_path / "study", **given, population=perturbed).run(progress=False).table().error.dropna()
    assert "weights are not of this algorithm" in error
    assert "Population(keep=...)" in error
    kept = make(tmp_path / "kept", **given, population={**perturbed, "keep": "hidden"}).run(progress=False)
    assert set(kept.table().state) == {"finished"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"env_steps": 200}, "multiple of interval=128, got 200. Type 256"),
        ({"space": {}}, "nothing in which members differ"),
        ({"population": {"exploit": 0.7}}, "exploit: expected a share from 0 to 0.5"),
        ({"population": {"resample": -1}}, "resample"),
        ({"population": {"factors": ()}}, "factors"),
        ({"population": {"factors": (0.8, math.inf)}}, "factors"),
        ({"population": {"keep": ("learning_rat",)}}, "keep: 'learning_rat' is not in the space"),
        ({"population": {"share_replay": True}, "algorithm": daskrl.PPO(hidden=(8,))}, "PPO learns from no replay"),
    ],
)
def test_what_cannot_work_is_refused_before_there_is_a_population(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        make(tmp_path / "study", **changed)
    assert not (tmp_path / "study").exists()


def test_a_study_that_is_no_population_has_no_lineage(tmp_path: Path) -> None:
    study = make(tmp_path / "study", search=None, space={"learning_rate": [1e-3]})
    with pytest.raises(ConfigError, match="no lineage"):
        study.lineage()


def test_asks_that_wait_are_not_runs(here: Study) -> None:
    waits = [number for number, ask in enumerate(here.log.asks) if ask is None]
    assert waits == [3, 4, 8, 9]
    assert Population(members=3, interval=128).next(Space({"a": [1]}), 384, 0, [WAIT] * 13, {}) is None
