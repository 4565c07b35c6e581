"""A study: its table is the same on any pool, after any kill, resumed or not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from distributed import Client, LocalCluster

import daskrl
from daskrl import clusters
from daskrl.errors import ConfigError, FewSeedsWarning, StoreLockedError, StoreMismatchError
from daskrl.store.places import place
from daskrl.study import Greedy, Random, Range, Study, When
from daskrl.study.definition import Preparing
from daskrl.study.executors import LONG, spread
from daskrl.study.trial import Job, introduce, spread_out
from tests.studies import QUICK, SHAPE
from tests.studies import small as make


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with clusters.local(2) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that was carried out in this process."""
    return make(tmp_path_factory.mktemp("study") / "here").run(progress=False)


def test_a_run_of_a_study_is_the_run_that_train_makes(here: Study, tmp_path: Path) -> None:
    row = here.table().iloc[3]
    algorithm = daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=16, window=1024, learning_rate=row.learning_rate)
    alone = daskrl.train(
        algorithm, "CartPole-v1", store=tmp_path / "alone", env_steps=256, seed=int(row.seed), progress=False, **SHAPE
    )
    assert alone.wait().store.digest() == row.digest
    assert daskrl.evaluate(alone, episodes=2).mean == row.score
    assert daskrl.Store.open(here.log.storage.folder("runs").folder(row.run[5:])).digest() == row.digest


def test_the_table_has_a_row_for_each_setting_environment_and_seed(here: Study) -> None:
    table = here.table()
    assert table[["setting", "learning_rate", "seed"]].to_numpy().tolist() == [
        [0, 1e-4, 0], [0, 1e-4, 1], [1, 1e-3, 0], [1, 1e-3, 1],
    ]  # fmt: skip
    assert set(table.state) == {"finished"}
    assert set(table.algorithm) == {"DQN"}
    assert len(set(table.digest)) == 4
    assert here.summary()["finished"] == 4
    assert (table.queued >= 0).all()


def test_workers_give_the_table_of_one_process(here: Study, tmp_path: Path, client: Client) -> None:
    study = make(tmp_path / "study").run(client, progress=False)
    assert study.digest() == here.digest()
    assert all(worker.startswith("tcp://") for worker in study.table().worker)


def test_runs_that_are_spread_over_the_workers_give_the_same_table(here: Study, tmp_path: Path, client: Client) -> None:
    study = make(tmp_path / "study", seeds=1).run(client, progress=False, grain="spread")
    assert study.table().worker.tolist() == ["in-process"] * 2  # which drove them
    fragments = daskrl.Store.open(tmp_path / "study" / study.table().run[0]).fragments()
    assert f"{socket.gethostname()}:{os.getpid()}" not in {record["worker"] for record in fragments}
    assert study.table().digest.tolist() == here.table().digest[here.table().seed == 0].tolist()


@pytest.mark.parametrize(
    ("env_steps", "runs", "threads", "is_spread"),
    [(LONG, 3, 4, True), (LONG, 4, 4, False), (LONG - 1, 1, 64, False), (LONG, 1, 1, False)],
)
def test_a_long_run_is_spread_where_too_few_are_left_for_the_workers(
    env_steps: int, runs: int, threads: int, is_spread: bool
) -> None:
    assert spread(env_steps, runs, threads) is is_spread


def test_a_study_waits_for_the_workers_of_a_cluster_that_has_none(here: Study, tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        clusters.adapt(cluster, minimum=0, maximum=2)
        study = make(tmp_path / "study", seeds=1).run(client, progress=False)
    assert study.table().digest.tolist() == here.table().digest[here.table().seed == 0].tolist()


def test_a_killed_worker_changes_nothing_and_no_run_begins_again(here: Study, tmp_path: Path, client: Client) -> None:
    killed = tmp_path / "killed"

    def score(store: daskrl.Store) -> float:
        if not killed.exists():
            killed.write_text(store.run_id)
            os.kill(os.getpid(), signal.SIGKILL)
        return daskrl.evaluate(store, episodes=2).mean

    study = make(tmp_path / "study", score=score).run(client, progress=False)
    columns = ["setting", "seed", "state", "score", "digest"]
    assert study.table()[columns].equals(here.table()[columns])
    ids = {daskrl.Store.open(path).run_id for path in (tmp_path / "study" / "runs").glob("*.zip")}
    assert killed.read_text() in ids  # the run that lost its worker went on


SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    import daskrl

    def score(store):
        scored = Path(sys.argv[1] + "-scored")
        scored.write_text(scored.read_text() + store.run_id + "\\n" if scored.exists() else store.run_id + "\\n")
        if scored.read_text().count("\\n") == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    daskrl.Study(
        sys.argv[1], algorithm=daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=16, window=1024),
        env="CartPole-v1", space={"learning_rate": [1e-4, 1e-3]}, seeds=2, env_steps=256, score=score, streams=2,
        envs_per_stream=2, fragment_steps=16,
    ).run(progress=False)
"""


def test_a_study_whose_driver_is_killed_goes_on_and_runs_nothing_again(here: Study, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    call = [sys.executable, str(script), str(tmp_path / "study")]
    assert subprocess.run(call, check=False).returncode == -signal.SIGKILL
    subprocess.run(call, check=True)
    scored = (tmp_path / "study-scored").read_text().split()
    assert scored[2] == scored[3]  # the third was scored twice; its run is the same one
    assert len(scored) == 5
    assert len(set(scored)) == 4
    digests = sorted(daskrl.Store.open(path).digest() for path in (tmp_path / "study" / "runs").iterdir())
    assert digests == sorted(here.table().digest)


def test_a_study_that_was_stopped_goes_on(here: Study, tmp_path: Path) -> None:
    studies: list[Study] = []

    def score(store: daskrl.Store) -> float:
        studies[0].stop()
        return daskrl.evaluate(store, episodes=2).mean

    studies.append(make(tmp_path / "study", score=score))
    columns = ["setting", "seed", "score", "digest"]
    for finished in (1, 2, 3, 4):
        studies[0].run(progress=False)
        assert studies[0].summary()["finished"] == finished
    assert studies[0].table()[columns].equals(here.table()[columns])


STEPS: list[Callable[[], Any]] = []  # what each of the next steps of an environment does, the last first


class Interrupted(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment in which things happen at a step."""

    def step(self, action: Any) -> Any:
        if STEPS:
            STEPS.pop()()
        return super().step(action)


def interrupted() -> gymnasium.Env[Any, Any]:
    return Interrupted(gymnasium.make("CartPole-v1"))


def after(steps: int, what: Callable[[], Any]) -> None:
    STEPS[:] = [what, *[lambda: None] * steps]


def ctrl_c() -> None:
    raise KeyboardInterrupt


def test_a_run_on_its_way_stops_at_a_commit_is_kept_and_goes_on(tmp_path: Path) -> None:
    given: dict[str, Any] = {"env": {"pole": interrupted}, "space": {"learning_rate": [1e-3]}, "seeds": 1}
    whole = make(tmp_path / "whole", **given).run(progress=False)
    study = make(tmp_path / "study", **given)
    after(150, study.stop)  # in the third round of four, each of 64 steps
    study.run(progress=False)
    (run,) = (tmp_path / "study" / "runs").iterdir()
    begun = daskrl.Store.open(run)
    assert 0 < begun.published() < 4
    assert study.table().state.tolist() == ["waiting"]
    after(30, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=False)
    assert begun.published() <= daskrl.Store.open(run).published() < 4
    assert study.table().state.tolist() == ["waiting"]  # and none has failed
    study.run(progress=False)
    assert study.digest() == whole.digest()
    assert daskrl.Store.open(run).run_id == begun.run_id


def test_a_run_that_somebody_stopped_has_not_failed(tmp_path: Path) -> None:
    study = make(tmp_path / "study")
    prepared = Preparing(study.definition).prepared({"learning_rate": 1e-3}, "CartPole-v1")
    given = prepared, study.definition.score
    job = Job("run", place(tmp_path / "run"), 0, 256, introduce([], "cpu"), True, given)
    assert spread_out(job, None, lambda run: run.stop()) == {"kind": "stopped"}
    outcome = spread_out(job, None)
    assert outcome["kind"] == "trial"
    assert "error" not in outcome


def test_more_seeds_values_and_env_steps_extend_a_study_and_run_nothing_again(tmp_path: Path) -> None:
    path = tmp_path / "study"
    small = make(path, seeds=1).run(progress=False)
    before = {row.run: row.seconds for row in small.table().itertuples()}
    space = {"learning_rate": [5e-5, 1e-4, 1e-3]}
    larger = make(path, space=space).run(progress=False)
    whole = make(tmp_path / "whole", space=space).run(progress=False)
    assert larger.digest() == whole.digest()
    assert {row.run: row.seconds for row in larger.table().itertuples() if row.run in before} == before
    longer = make(path, space=space, env_steps=512).run(progress=False)
    assert longer.digest() == make(tmp_path / "long", space=space, env_steps=512).run(progress=False).digest()
    ids = {row.run: daskrl.Store.open(path / row.run).run_id for row in longer.table().itertuples()}
    assert set(ids) == {row.run for row in larger.table().itertuples()}  # they went on


def test_each_finished_run_is_one_file(here: Study, tmp_path: Path) -> None:
    files = [path for path in Path(str(here.log.storage), "runs").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == sorted(f"{run[5:]}.zip" for run in here.table().run)
    whole = make(tmp_path / "study").run(progress=False, pack=False)
    assert whole.digest() == here.digest()
    assert (tmp_path / "study" / whole.table().run[0]).is_dir()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": {"learning_rate": [1e-4, 2e-3]}}, "space.learning_rate"),
        ({"algorithm": daskrl.DQN(hidden=(9,), learning_starts=64, batch_size=16, window=1024)}, "algorithms.DQN"),
        ({"env": "Acrobot-v1"}, "environments.CartPole-v1"),
        ({"score": Greedy(3)}, "score.episodes: 3 .study: 2."),
        ({"seeds": [1]}, "seeds"),
        ({"lag": 2}, "shape.lag"),
        ({"env_steps": 128}, "env_steps: 128 .study: 256."),
    ],
)
def test_another_definition_is_refused_by_what_differs(here: Study, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(StoreMismatchError, match=said):
        make(str(here.log.storage), **changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"space": {"learning_rat": [1.0]}}, "Did you mean learning_rate"),
        ({"space": {"learning_rate": []}}, "learning_rate has no values"),
        ({"space": {"learning_rate": [1e-3, 1e-3]}}, "twice"),
        ({"space": {"learning_rate": [-1.0]}}, "learning_rate"),
        ({"space": {"learning_rate": Range(1e-4, 1e-2)}}, "how many settings"),
        ({"space": {"n_step": When({"double": True}, [1])}}, "does not stand before"),
        ({"seeds": []}, "seeds: expected at least one"),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice"),
        ({"seeds": 0}, "seeds"),
        ({"env_steps": 0}, "env_steps"),
        ({"score": "first"}, "score: expected 'last'"),
        ({"streems": 2}, "Did you mean streams"),
        ({"space": {"lag": [0, 1]}, "lag": 1}, "in the space and is given to all"),
        ({"algorithm": [daskrl.DQN, daskrl.DQN]}, "two are called DQN"),
        ({"env": "CartPole-v9"}, "CartPole-v9"),
        ({"search": "random"}, "search: expected"),
    ],
)
def test_what_cannot_work_is_refused_before_there_is_a_study(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make(tmp_path / "study", **changed)
    assert not (tmp_path / "study").exists()


def test_the_winner_is_tested_again_on_seeds_that_were_not_seen(here: Study, tmp_path: Path) -> None:
    shutil.copytree(str(here.log.storage), tmp_path / "study")
    study = make(tmp_path / "study")
    assert study.confirmed() is None
    with pytest.warns(FewSeedsWarning):
        found = study.confirm(seeds=2, progress=False)
    table = here.table()
    best = table.groupby("learning_rate").score.mean().idxmax()
    assert found.settings["learning_rate"] == best
    (again,) = (tmp_path / "study" / "confirmed").iterdir()
    played = Study(again, algorithm={"DQN": QUICK}, env="CartPole-v1", space={"learning_rate": [best]}, seeds=[2, 3],
                   env_steps=256, score=Greedy(2), **SHAPE).table()  # fmt: skip
    assert played.state.tolist() == ["finished"] * 2
    mine = table[table.learning_rate == best].score.mean()
    assert found.optimism.value == pytest.approx(mine - played.score.mean())
    assert study.digest() == here.digest()
    # A later process has it, and a study that goes on since then says so.
    later = make(tmp_path / "study")
    assert repr(later.confirmed()) == repr(found)
    page = Path(later.report(tmp_path / "report.html")).read_text()
    assert "The winner on unseen seeds" in page
    assert str(found.rows()["IQM on unseen seeds"]) in page
    more = make(tmp_path / "study", seeds=3).run(progress=False)
    earlier = more.confirmed()
    assert earlier is not None
    assert earlier.notes[0].startswith("Of an earlier state of the study")
    with pytest.warns(FewSeedsWarning):
        newer = more.confirm(seeds=1, progress=False)  # seed 3 alone, as 2 is one of the study's now
    assert newer.seeds == (3, 1)
    assert repr(more.confirmed()) == repr(newer)


def test_a_setting_that_is_drawn_twice_is_run_once(tmp_path: Path) -> None:
    study = make(tmp_path / "study", seeds=1, env_steps=64, search=Random(5)).run(progress=False)  # of two values
    assert study.summary()["runs"] == 2
    assert len(list((tmp_path / "study" / "runs").iterdir())) == 2


def test_a_study_lies_in_an_object_store_too(here: Study) -> None:
    pytest.importorskip("obstore")
    study = make(f"memory://{uuid.uuid4().hex}/studies/lr").run(progress=False)
    assert study.digest() == here.digest()
    again = make(str(study.log.storage))
    assert again.run(progress=False).digest() == here.digest()


def test_a_second_driver_is_refused(here: Study) -> None:
    here.log.lock()
    try:
        with pytest.raises(StoreLockedError, match="is being written"):
            make(str(here.log.storage)).run(progress=False)
    finally:
        here.log.unlock()


def test_a_run_and_a_study_are_told_apart(here: Study, tmp_path: Path) -> None:
    run = daskrl.train(QUICK, "CartPole-v1", store=tmp_path / "run", env_steps=64, progress=False, **SHAPE)
    with pytest.raises(StoreMismatchError, match="holds a run"):
        make(run.store.root)
    with pytest.raises(StoreMismatchError):
        daskrl.Store.open(str(here.log.storage))


def test_a_run_without_a_whole_episode_says_why_it_has_no_score(tmp_path: Path) -> None:
    study = make(tmp_path / "study", env="Acrobot-v1", space={}, seeds=1, env_steps=64, score="auc")
    error = study.run(progress=False).table().error[0]
    assert "the score is nan" in error
    assert "None of its episodes ended in 64 env steps of 4 environments: choose later rungs" in error


def test_a_run_that_fails_is_in_the_table_and_may_be_tried_again(tmp_path: Path) -> None:
    mended = tmp_path / "mended"

    def score(store: daskrl.Store) -> float:
        if store.config.seed == 1 and not mended.exists():
            raise RuntimeError("out of luck")
        return float("nan") if store.config.seed == 2 and not mended.exists() else 1.0

    study = make(tmp_path / "study", score=score, seeds=3).run(progress=False)
    table = study.table()
    assert table.state.tolist() == ["finished", "failed", "failed"] * 2
    assert table.error[1] == "RuntimeError: out of luck"
    assert "the score is nan" in table.error[2]
    assert make(tmp_path / "study", score=score, seeds=3).run(progress=False).summary()["failed"] == 4
    mended.touch()
    assert study.run(progress=False, retry_failed=True).summary()["finished"] == 6


def test_settings_of_the_run_the_environment_and_one_algorithm_alone(tmp_path: Path) -> None:
    space = {
        "fragment_steps": [8, 16],
        "env.sutton_barto_reward": [True, False],
        "n_step": When({"algorithm": "DQN"}, [1, 3]),
    }
    shape = {name: value for name, value in SHAPE.items() if name != "fragment_steps"}
    study = Study(
        tmp_path / "study", algorithm=[QUICK, daskrl.PPO(hidden=(8,))], env="CartPole-v1", space=space, seeds=1,
        env_steps=32, score="auc", **shape,
    )  # fmt: skip
    table = study.run(progress=False).table()
    assert table.groupby("algorithm").size().to_dict() == {"DQN": 8, "PPO": 4}
    assert table[table.algorithm == "PPO"].n_step.isna().all()
    configs = [daskrl.Store.open(tmp_path / "study" / run).config for run in table.run]
    assert [config.schedule.fragment_steps for config in configs] == table.fragment_steps.tolist()
    assert [config.environment["kwargs"]["sutton_barto_reward"] for config in configs] == [
        *table["env.sutton_barto_reward"]
    ]


def test_random_settings_are_the_first_of_more(tmp_path: Path) -> None:
    def drawn(settings: int) -> list[float]:
        study = make(
            tmp_path / str(settings), space={"learning_rate": Range(1e-4, 1e-2, log=True)}, seeds=1, env_steps=64,
            search=Random(settings),
        )  # fmt: skip
        rates: list[float] = study.run(progress=False).table().learning_rate.tolist()
        return rates

    assert drawn(2) == drawn(3)[:2]
    assert all(1e-4 <= rate <= 1e-2 for rate in drawn(3))
