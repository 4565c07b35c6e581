"""`daskrl.Replay`: episodes and transitions against loops that step the environments again, views, and damage."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pandas
import pytest

import daskrl
from daskrl.config import Schedule
from daskrl.envs.spaces import Leaf
from daskrl.errors import ConfigError, DamagedError, DamagedWarning, StoreMismatchError
from tests import objects
from tests.oracles import Scripted
from tests.written import SCHEDULE, episodes_of, leaf_of, mixed, stepped, write


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Store:
    return mixed(tmp_path_factory.mktemp("mixed") / "run")


@pytest.fixture(scope="module")
def wanted(store: daskrl.Store) -> list[dict[str, Any]]:
    return list(stepped(store))


@pytest.fixture(scope="module")
def replay(store: daskrl.Store) -> daskrl.Replay:
    return daskrl.Replay(store)


def compare(replay: daskrl.Replay, leaves: tuple[tuple[Leaf, ...], tuple[Leaf, ...]], wanted: Any) -> None:
    """All columns of all rows with those that a loop found."""
    given = replay.transitions(
        [*replay.transitions().columns, "stream", "env", "fragment", "time", "worker", "wall_time"]
    ).to_pandas()
    assert len(given) == len(wanted) > 0
    for name in (
        "episode", "step", "terminated", "truncated", "weights_version", "policy_lag", "stream", "env", "fragment",
        "time", "worker", "wall_time", "behavior_log_prob",
    ):  # fmt: skip
        assert given[name].tolist() == [row[name] for row in wanted], name
    assert given["reward"].tolist() == [np.float32(row["reward"]) for row in wanted]
    assert given["discount"].tolist() == [0.0 if row["terminated"] else 0.75 for row in wanted]
    observation, action = leaves
    for leaf in observation:
        for name, key in ((leaf.name, "seen"), (f"next_{leaf.name}", "following")):
            np.testing.assert_array_equal(np.stack(given[name]), np.stack([leaf_of(row[key], leaf) for row in wanted]))
    for leaf in action:
        np.testing.assert_array_equal(
            np.stack(given[leaf.name]), np.stack([leaf_of(row["action"], leaf) for row in wanted])
        )


def compare_episodes(given: Any, wanted: Any) -> None:
    expected = episodes_of(wanted)
    assert len(given) == len(expected) > 0
    for name in (
        "episode", "stream", "env", "seed", "length", "terminated", "truncated", "first_version", "weights_version",
        "worker", "wall_time",
    ):  # fmt: skip
        assert given[name].tolist() == [row[name] for row in expected], name
    np.testing.assert_allclose(given["return"], [row["return"] for row in expected], rtol=1e-6)


def test_transitions_are_those_of_the_environments_stepped_again(replay, store, wanted) -> None:
    assert sum(row["truncated"] for row in wanted) > 5
    compare(replay, (store.spec.observation, store.spec.action), wanted)


def test_episodes_are_those_of_a_loop_over_the_transitions(replay, wanted) -> None:
    given = replay.episodes()
    compare_episodes(given, wanted)
    assert (~given.terminated & ~given.truncated).sum() > 3, "some were cut, and some go on"
    assert (given.length > 4).any(), "some lie in several fragments"


def test_columns_are_named_as_documented(replay) -> None:
    assert list(replay.episodes()) == [
        "run", "episode", "stream", "env", "seed", "return", "length", "terminated", "truncated", "first_version",
        "weights_version", "worker", "wall_time",
    ]  # fmt: skip
    assert replay.transitions().columns == (
        "run", "episode", "step", "observation.camera", "observation.place", "observation.speed", "action.push",
        "action.turn", "reward", "next_observation.camera", "next_observation.place", "next_observation.speed",
        "terminated", "truncated", "discount", "weights_version", "policy_lag", "behavior_log_prob",
    )  # fmt: skip


def test_stacked_frames_are_given_one_by_one_or_as_the_algorithm_saw_them(tmp_path: Path) -> None:
    schedule = Schedule(streams=2, envs_per_stream=2, fragment_steps=3)
    store = write(tmp_path / "run", Scripted, schedule=schedule, rounds=4, frame_stack=3)
    rows = list(stepped(store, Scripted))
    compare(daskrl.Replay(store), (store.spec.observation, store.spec.action), rows)
    compare_episodes(daskrl.Replay(store).episodes(), rows)

    given = daskrl.Replay(store).transitions(["observation", "next_observation"], stacked=True).to_pandas()
    seen: dict[int, list[np.ndarray]] = {}  # of each episode
    for row, now, after in zip(rows, given["observation"], given["next_observation"], strict=True):
        frames = seen.setdefault(row["episode"], [row["seen"]] * 2)
        frames.append(row["seen"])
        np.testing.assert_array_equal(now, frames[-3:])
        np.testing.assert_array_equal(after, [*frames[-2:], row["following"]])


KILLED = """
import os, signal, sys, daskrl
run = daskrl.train(
    daskrl.QLearning(), "FrozenLake-v1", store=sys.argv[1], env_steps=256, progress=False,
    streams=2, envs_per_stream=2, fragment_steps=8,
)
for number, report in enumerate(run):
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_that_is_killed_and_resumed_keeps_its_episodes_and_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode == -signal.SIGKILL
    first = daskrl.Replay(path)
    assert "1 of 1 unfinished; newest fragment" in repr(first)
    daskrl.resume(path, progress=False).wait()
    whole = first.refresh()
    store = whole.stores[whole.runs[0]]
    rows = list(stepped(store, lambda: gymnasium.make("FrozenLake-v1")))
    compare_episodes(whole.episodes(), rows)
    before = len(first.transitions())
    assert before < len(whole.transitions()) == 256
    committed = {record["slot"] for record in store.fragments()[: before // 16]}
    compare_episodes(first.episodes(), [row for row in rows if row["fragment"] in committed])
    done = first.episodes().query("terminated or truncated").set_index("episode")
    assert done.astype(str).equals(whole.episodes().set_index("episode").loc[done.index].astype(str))
    assert repr(whole).endswith("finished>")


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_run_in_an_object_store_is_asked_there_packed_too(kind, request, wanted, monkeypatch) -> None:
    url = "memory://replay-questions/run"
    if kind == "s3":
        server = request.getfixturevalue("s3")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{objects.BUCKET}/replay-questions/run"
    store = mixed(url)
    for _ in range(2):
        replay = daskrl.Replay(url)
        compare_episodes(replay.episodes(), wanted)
        rows = replay.sql("SELECT episode, step FROM transitions")
        assert rows.values.tolist() == [[row["episode"], row["step"]] for row in wanted]
        daskrl.pack(store)
    assert replay.sql("SELECT packed FROM runs")["packed"].item()


# -- views --------------------------------------------------------------------------------------------------


def test_views_compose(replay, wanted) -> None:
    view = replay.between(1, 3).of(streams=[0, 2], envs=1)
    assert len(view.transitions()) == sum(
        1 <= row["weights_version"] <= 3 and row["stream"] in (0, 2) and row["env"] == 1 for row in wanted
    )
    assert set(replay.at(2).transitions("weights_version").to_pandas()["weights_version"]) == {2}
    worker = replay.of(workers="worker-1")
    assert worker.episodes().equals(replay.episodes().query("worker == 'worker-1'").reset_index(drop=True))
    every = replay.transitions(["episode", "step", "reward"]).to_pandas()
    some = replay.of(episodes=[3, 7]).transitions(["episode", "step", "reward"]).to_pandas()
    assert some.equals(every[every.episode.isin([3, 7])].reset_index(drop=True))


@pytest.mark.parametrize("memory", ["1MiB", "1GiB"])
@pytest.mark.parametrize(
    ("chosen", "where", "by_hand"),
    [({"envs": 1}, "reward > 0", "env == 1 and reward > 0"),
     ({"streams": [0, 2], "episodes": [0, 4, 8]}, "step > 1", "stream in (0, 2) and episode in (0, 4, 8) and step > 1"),
     ({"workers": "worker-2"}, "episode BETWEEN 4 AND 20", "worker == 'worker-2' and 4 <= episode <= 20"),
     ({"envs": 0, "workers": ["worker-0", "worker-1"]}, "time % 2 = 0 OR weights_version = 2",
      "env == 0 and worker in ('worker-0', 'worker-1') and (time % 2 == 0 or weights_version == 2)")],
)  # fmt: skip
def test_a_condition_in_a_view_leaves_what_a_filter_of_all_rows_leaves(store, memory, chosen, where, by_hand) -> None:
    replay = daskrl.Replay(store, memory=memory)
    columns = ["episode", "step", "reward", "weights_version", "stream", "env", "time", "worker", "discount"]
    wanted = replay.transitions(columns).to_pandas().query(by_hand).reset_index(drop=True)
    view = replay.of(**chosen)
    some = view.transitions(columns, where=where)
    assert some.to_pandas().equals(wanted)
    assert len(some) == len(wanted) > 0
    said = view.sql(f"SELECT {', '.join(columns)} FROM transitions WHERE {where}")
    assert said.astype(object).values.tolist() == wanted.astype(object).values.tolist()


@pytest.mark.parametrize("memory", ["1MiB", "1GiB"])
def test_rows_are_the_same_whatever_is_read_at_once(store, memory, wanted) -> None:
    replay = daskrl.Replay(store, memory=memory)
    rows = [row for block in replay.transitions(["episode", "step"]) for row in zip(*block.values(), strict=True)]
    assert rows == [(row["episode"], row["step"]) for row in wanted]


def test_a_condition_leaves_the_rows_for_which_it_holds(replay, wanted) -> None:
    some = replay.transitions(["episode", "step", "observation.speed"], where="truncated AND reward > 0").to_pandas()
    rows = [row for row in wanted if row["truncated"] and np.float32(row["reward"]) > 0]
    assert some["episode"].tolist() == [row["episode"] for row in rows] != []
    np.testing.assert_array_equal(np.stack(some["observation.speed"]), [row["seen"]["speed"] for row in rows])
    asked = replay.transitions(["episode", "step", "worker"], where="step > 1")
    assert asked.to_dask(rows=16).compute(scheduler="sync").reset_index(drop=True).equals(asked.to_pandas())


def test_pandas_arrow_dask_and_torch_have_the_same_rows(replay) -> None:
    asked = replay.transitions(["run", "episode", "observation.camera", "observation.speed", "reward", "terminated"])
    frame = asked.to_pandas()
    table = asked.to_arrow().read_all()
    assert table.schema == asked.schema
    assert table["episode"].to_pylist() == frame["episode"].tolist()
    assert np.array_equal(np.array(table["observation.camera"].to_pylist()), np.stack(frame["observation.camera"]))
    dask = asked.to_dask(rows=16)
    assert dask.npartitions > 3
    dask = dask.compute(scheduler="processes", num_workers=1).reset_index(drop=True)
    assert np.array_equal(np.stack(dask["observation.speed"]), np.stack(frame["observation.speed"]))
    assert dask.drop(columns=["observation.speed", "observation.camera"]).equals(
        frame.drop(columns=["observation.speed", "observation.camera"])
    )
    batches = list(asked.to_torch(batch_size=50))
    assert [len(batch["reward"]) for batch in batches] == [50, 50, 28]
    assert np.array_equal(np.concatenate([batch["reward"].numpy() for batch in batches]), frame["reward"])
    assert batches[0]["observation.camera"].shape == (50, 3, 2)


def test_arrays_of_xarray_have_labels_and_hold_committed_fragments_only(replay, store, wanted, tmp_path: Path) -> None:
    made = replay.to_xarray(fragments_per_chunk=2)
    assert made.sizes["fragment"] == len(store.fragments()) == len({row["fragment"] for row in wanted})
    assert made.reward.chunks[0] == (2,) * 8
    for name in ("episode", "step", "reward", "terminated", "behavior_log_prob"):
        assert made[name].values.reshape(-1).tolist() == [np.float32(row[name]) for row in wanted], name
    speed = made["next_observation.speed"].values.reshape(-1, 3)
    np.testing.assert_array_equal(speed, [row["following"]["speed"] for row in wanted])
    assert made["worker"].values.tolist() == [record["worker"] for record in store.fragments()]

    def mean(name: str) -> dict[Any, Any]:
        of = {row[name]: [float(np.float32(r["reward"])) for r in wanted if r[name] == row[name]] for row in wanted}
        return {label: pytest.approx(np.mean(rewards), abs=1e-6) for label, rewards in of.items()}

    for name in ("weights_version", "stream", "worker", "episode"):
        grouped = made.reward.groupby(name).mean(...)
        assert dict(zip(grouped[name].values.tolist(), grouped.values.tolist(), strict=True)) == mean(name)
    made.to_zarr(tmp_path / "made.zarr", consolidated=False)
    import xarray

    with xarray.open_zarr(tmp_path / "made.zarr", consolidated=False) as back:
        xarray.testing.assert_identical(back.load(), made.load())
    some = replay.at(2).of(envs=1).to_xarray("reward")
    assert some.sizes == {"fragment": 3, "time": 4, "env": 1}
    with pytest.raises(ConfigError, match="whole fragments"):
        replay.of(episodes=3).to_xarray()


def test_a_condition_may_ask_the_other_tables(replay) -> None:
    asked = (
        "episode IN (SELECT episode FROM episodes WHERE length = 9) AND reward > (SELECT avg(reward) FROM transitions)"
    )
    episodes, every = replay.episodes(), replay.transitions(["episode", "step", "reward"])
    rows = every.to_pandas()
    wanted = rows[rows.episode.isin(episodes[episodes.length == 9].episode) & (rows.reward > rows.reward.mean())]
    some = replay.transitions(["episode", "step", "reward"], where=asked)
    assert some.to_pandas().equals(wanted.reset_index(drop=True))
    assert some.to_dask(rows=8).compute(scheduler="sync").reset_index(drop=True).equals(wanted.reset_index(drop=True))
    assert every.head(3).equals(rows.head(3))


# -- many runs, errors --------------------------------------------------------------------------------------


def test_runs_are_found_by_directory_pattern_list_and_as_packs(tmp_path: Path) -> None:
    schedule = Schedule(streams=1, envs_per_stream=1, fragment_steps=4)
    for number, name in enumerate(("a/one", "a/two", "b/three")):
        write(tmp_path / name, Scripted, schedule=schedule, rounds=2, seed=number, ahead=False)
    daskrl.pack(tmp_path / "a" / "two")
    paths = [str(tmp_path / name) for name in ("a/one", "a/two", "b/three")]
    assert daskrl.Replay(tmp_path).runs == tuple(paths)
    assert daskrl.Replay(f"{tmp_path}/a/*").runs == tuple(paths[:2])
    assert daskrl.Replay([paths[2], paths[0]]).runs == (paths[2], paths[0])
    several = daskrl.Replay(f"{tmp_path}/**")
    assert several.episodes().groupby("run", observed=True)["length"].sum().to_dict() == dict.fromkeys(paths, 8)
    one = daskrl.Replay(paths[1])
    assert (
        several.of(runs=paths[1])
        .transitions(["episode", "reward"])
        .to_pandas()
        .equals(one.transitions(["episode", "reward"]).to_pandas())
    )
    assert several.sql("SELECT run, packed FROM runs ORDER BY 1")["packed"].tolist() == [False, True, False]


def test_a_run_that_is_packed_after_it_was_opened_is_read_on(tmp_path: Path) -> None:
    store = write(tmp_path / "run", Scripted, schedule=Schedule(1, 2, 4), rounds=2, ahead=False)
    replay = daskrl.Replay(tmp_path / "run")
    before = replay.transitions(["episode", "reward"]).to_pandas()
    daskrl.pack(store)
    assert daskrl.Replay(tmp_path / "run").transitions(["episode", "reward"]).to_pandas().equals(before)
    assert replay.transitions(["episode", "reward"]).to_pandas().equals(before)
    assert len(replay.refresh().damaged) == 0


def test_what_is_not_there_is_an_error_that_says_what_is(replay, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"behavior_log_prob.*got 'rewards'. Did you mean reward"):
        replay.transitions("rewards")
    with pytest.raises(ConfigError, match=r"0 … 4|0, 1, 2, 3, 4"):
        replay.at(9)
    with pytest.raises(ConfigError, match=r"worker-0, worker-1, worker-2, worker-3"):
        replay.of(workers="worker-7")
    with pytest.raises(ConfigError, match="nearest are"):
        replay.of(episodes=10_000)
    with pytest.raises(ConfigError, match=r"(?s)foo.*transitions: run, episode, step.*versions: run, weights_version"):
        replay.sql("SELECT foo FROM transitions")
    with pytest.raises(ConfigError, match=r"(?s)foo.*transitions: run, episode"):
        replay.transitions(where="foo = 1")
    with pytest.raises(StoreMismatchError):
        daskrl.Replay(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="got none"):
        replay.transitions([])
    with pytest.raises(StoreMismatchError, match="no run lies"):
        daskrl.Replay(f"{tmp_path}/**")
    large = write(tmp_path / "large", Scripted, schedule=Schedule(1, 8, 1000), rounds=1, ahead=False)
    with pytest.raises(ConfigError, match=r"half of memory= is 0\.5 MiB"):
        daskrl.Replay(large, memory=1 << 20).transitions().to_pandas()
    with pytest.raises(ConfigError, match="a quarter of memory="):
        daskrl.Replay(large, memory=1 << 20).sql("SELECT * FROM transitions")


def test_of_a_damaged_run_the_rest_is_read_and_what_is_not_has_a_name(tmp_path: Path) -> None:
    store = write(tmp_path / "run", schedule=SCHEDULE, rounds=4, ahead=False)
    rows = list(stepped(store))
    chunk = tmp_path / "run" / "reward" / "c.4.0.0"
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(bytes(data))
    commit = next(
        path for path in sorted((tmp_path / "run" / ".commits").glob("0*.json")) if '"slot":6,' in path.read_text()
    )
    commit.write_text(commit.read_text().replace('"slot":6,', '"slot":7,'))
    with pytest.warns(DamagedWarning, match=commit.name):
        replay = daskrl.Replay(tmp_path / "run")
    with pytest.warns(DamagedWarning, match=r"c\.4\.0\.0"):
        given = replay.transitions(["episode", "step", "reward"]).to_pandas()
    left = [row for row in rows if row["fragment"] not in (4, 6)]
    assert given[["episode", "step"]].values.tolist() == [[row["episode"], row["step"]] for row in left]
    ended = {row["episode"]: row for row in episodes_of(rows) if row["terminated"] or row["truncated"]}
    for row in replay.episodes().query("terminated or truncated").to_dict("records"):
        assert row["length"] == ended[row["episode"]]["length"]
        assert row["return"] == pytest.approx(ended[row["episode"]]["return"])
    assert [Path(file).name for file in replay.damaged["file"]] == [commit.name, "c.4.0.0"]
    assert replay.damaged["fragment"].tolist()[1] == 4
    with pytest.raises(DamagedError):
        store.read(store.fragments()[0]) and store.digest()


def test_of_several_runs_one_of_a_later_format_is_left_out_by_name(tmp_path: Path) -> None:
    schedule = Schedule(streams=1, envs_per_stream=1, fragment_steps=4)
    for name in ("good", "later"):
        write(tmp_path / name, Scripted, schedule=schedule, rounds=1, ahead=False)
    said = json.loads((tmp_path / "later" / "zarr.json").read_text())
    said["attributes"]["format_version"] = 99
    (tmp_path / "later" / "zarr.json").write_text(json.dumps(said))
    with pytest.raises(StoreMismatchError, match="version 99"):
        daskrl.Replay(tmp_path / "later")
    with pytest.warns(DamagedWarning, match="later is left out"):
        replay = daskrl.Replay(tmp_path)
    assert replay.runs == (str(tmp_path / "good"),)
    assert replay.damaged[["run", "fragment"]].values.tolist() == [[str(tmp_path / "later"), pandas.NA]]
    assert "damaged 1 files" in repr(replay)


def test_a_run_without_fragments_has_empty_tables(tmp_path: Path) -> None:
    replay = daskrl.Replay(write(tmp_path / "run", Scripted, schedule=SCHEDULE, rounds=0, ahead=False))
    assert len(replay.episodes()) == len(replay.transitions().to_pandas()) == len(replay.transitions().to_dask()) == 0
    assert replay.sql("SELECT count(*) AS n FROM transitions")["n"].item() == 0
    assert list(replay.transitions().to_torch()) == []
    assert replay.to_xarray().sizes["fragment"] == 0


def test_a_replay_says_what_it_holds_and_how_fresh_it_is(replay) -> None:
    said = repr(replay)
    assert "transitions 128" in said
    assert f"episodes {len(replay.episodes())}" in said
    assert "unfinished" not in said
    assert "<table>" in replay._repr_html_()
