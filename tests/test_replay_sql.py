"""`daskrl.Replay` asked in SQL, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

import daskrl
from daskrl.errors import ConfigError, StoreUnreachableError
from daskrl.store.posix import Posix
from tests.written import SCHEDULE, mixed, write


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Store:
    return mixed(tmp_path_factory.mktemp("mixed") / "run")


@pytest.fixture(scope="module")
def replay(store: daskrl.Store) -> daskrl.Replay:
    return daskrl.Replay(store)


# -- SQL ----------------------------------------------------------------------------------------------------


def test_sql_answers_what_pandas_does(replay) -> None:
    episodes, every = replay.episodes(), replay.transitions(["weights_version", "reward", "step"]).to_pandas()
    given = replay.sql("SELECT weights_version, avg(return) AS mean FROM episodes GROUP BY 1 ORDER BY 1")
    np.testing.assert_allclose(given["mean"], episodes.groupby("weights_version")["return"].mean())
    given = replay.sql(
        "SELECT weights_version, sum(reward) AS total FROM transitions WHERE step > ? GROUP BY 1 ORDER BY 1", [2]
    )
    np.testing.assert_allclose(given["total"], every[every.step > 2].groupby("weights_version")["reward"].sum(), 1e-5)
    given = replay.sql('SELECT count(*) AS n, max("observation.camera"[3][2]) AS most FROM transitions')
    assert given["n"].item() == len(every)
    with pytest.raises(ConfigError, match="read-only"):
        replay.sql("CREATE TABLE mine AS SELECT 1")
    limit = "SELECT current_setting('memory_limit') AS most"
    replay.sql("SET memory_limit = '10GB'")
    assert replay.sql(limit)["most"].item() == "512.0 MiB", "half of what the replay may take, in each query anew"
    with replay.connection() as own:
        own.execute("CREATE TABLE long AS SELECT episode FROM episodes WHERE length > 4")
        assert own.sql("SELECT count(*) FROM long").fetchall() == [((episodes.length > 4).sum(),)]
    joined = replay.sql(
        "SELECT r.seed, v.learner_updates FROM runs r JOIN versions v USING (run) WHERE v.weights_version = 4"
    )
    assert joined.values.tolist() == [[3, 8]]


@pytest.mark.parametrize(
    "condition",
    ["weights_version = 2", "weights_version IN (1, 3) AND stream = 1", "worker = 'worker-2' OR reward > 0.5",
     "NOT (reward IS NULL)", "reward IS NOT NULL AND fragment < 5", "weights_version <> 2 AND NOT terminated",
     "run = 'nothing'", "episode = 7 AND step > 1", "NOT (episode > 3)", "episode < 2 OR episode = 20",
     "worker IN ('worker-1', 'worker-3') AND episode BETWEEN 4 AND 20", "run LIKE '%run'"],
)  # fmt: skip
def test_a_condition_that_only_some_fragments_can_fulfil_gives_what_duckdb_gives_of_all(replay, condition) -> None:
    import duckdb

    every = replay.transitions(["run", *_SIMPLE]).to_arrow().read_all()  # noqa: F841
    wanted = duckdb.sql(f"SELECT {', '.join(_SIMPLE)} FROM every WHERE {condition}").fetchall()
    given = replay.sql(f"SELECT {', '.join(_SIMPLE)} FROM transitions WHERE {condition}")
    assert given.values.tolist() == [list(row) for row in wanted]


_SIMPLE = ("episode", "step", "reward", "weights_version", "stream", "fragment", "worker", "terminated")


def test_what_a_store_raises_while_sql_reads_it_is_raised_as_it_is(replay, monkeypatch) -> None:
    def gone(self: Any) -> Any:
        raise StoreUnreachableError("the bucket is gone")

    monkeypatch.setattr(Posix, "reading", gone)
    for ask in (
        lambda: replay.sql("SELECT avg(reward) FROM transitions"),
        lambda: len(replay.transitions(where="step > 3")),
    ):
        with pytest.raises(StoreUnreachableError, match="the bucket is gone"):
            ask()


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    store = write(tmp_path / "run", schedule=SCHEDULE, rounds=2)
    for name in ("observation.camera", "observation.speed", "action.push", "terminated", "truncated"):
        for chunk in (tmp_path / "run" / name).glob("c.*"):
            chunk.unlink()
    replay = daskrl.Replay(store)
    assert len(replay.sql("SELECT weights_version, avg(reward) FROM transitions GROUP BY 1")) == 2
    assert len(replay.damaged) == 0


# -- the command line ---------------------------------------------------------------------------------------


def test_the_command_line_lists_episodes_and_answers_in_sql(here, store, replay, tmp_path: Path) -> None:
    path = str(store.storage)
    listed = json.loads(here("replay", path, "--json", cwd=tmp_path).stdout)
    assert pandas.DataFrame(listed).equals(replay.episodes().astype({"run": object, "worker": object}))
    table = here("replay", path, cwd=tmp_path).stdout
    assert "34 episodes" in table
    assert table.count("truncated") == replay.episodes()["truncated"].sum()
    one = json.loads(here("replay", path, "--episode", "7", "--json", cwd=tmp_path).stdout)
    assert [row["step"] for row in one] == list(range(len(one)))
    assert np.shape(one[0]["observation.camera"]) == (3, 2)
    asked = "SELECT count(*) AS n, avg(reward) AS mean FROM transitions WHERE step > 1000"
    assert json.loads(here("replay", path, "--sql", asked, "--json", cwd=tmp_path).stdout) == [{"n": 0, "mean": None}]
    assert "goal" in here("replay", path, "--sql", "SELECT goal FROM episodes", cwd=tmp_path, code=2).stderr
