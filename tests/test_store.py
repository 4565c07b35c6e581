"""A store read by plain zarr and by xarray, and damage to any of its files."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from safetensors.numpy import load_file

import daskrl
from daskrl.config import Options, RunConfig, Schedule
from daskrl.envs.spaces import spec_of
from daskrl.errors import ConfigError, DamagedError, StoreError, StoreLockedError, StoreMismatchError
from daskrl.store import arrays
from daskrl.store.columns import columns, decode, encode, write_fragment
from daskrl.store.files import crc32c
from daskrl.store.store import Store
from daskrl.tasks.session import versions
from tests.oracles import Scripted, play, reset_seed, stored_transitions

ALGORITHM = daskrl.DQN(hidden=(16,), learning_starts=0, batch_size=8, replay_ratio=1, window=1000)
SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 8}
ROUND = 32


def train(path: Path, **changes: Any) -> daskrl.Run:
    settings = {"env": "CartPole-v1", "env_steps": 6 * ROUND, "seed": 1, **SHAPE, **changes}
    return daskrl.train(
        settings.pop("algorithm", ALGORITHM), settings.pop("env"), store=path, progress=False, **settings
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Store:
    """A finished run of six rounds; not to be changed."""
    path = tmp_path_factory.mktemp("store") / "run"
    return train(path, weights_every=2, checkpoint_every=2).wait().store


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Store:
    """A finished run of 201 fragments; not to be changed."""
    path = tmp_path_factory.mktemp("long") / "run"
    shape = {"streams": 3, "envs_per_stream": 2, "fragment_steps": 4}
    return train(path, algorithm=daskrl.QLearning(), env="FrozenLake-v1", env_steps=67 * 24, **shape).wait().store


@pytest.fixture
def copied(finished, tmp_path) -> Store:
    """The same run at another path, to be damaged."""
    shutil.copytree(finished.root, tmp_path / "copy")
    return Store.open(tmp_path / "copy")


# -- other readers ----------------------------------------------------------------------------------------


def test_plain_zarr_reads_every_column_of_every_fragment_bit_for_bit(finished):
    group = zarr.open_group(finished.root, mode="r")
    for record in finished.fragments():
        values = finished.read(record)
        assert set(values) == {
            "observation", "final_observation", "action", "reward", "terminated", "truncated",
        }  # fmt: skip
        for name, value in values.items():
            other = group[name][record["slot"]]
            assert other.dtype == value.dtype
            assert other.tobytes() == value.tobytes()


def test_xarray_reads_every_column_of_every_fragment_bit_for_bit(finished):
    data = xarray.open_zarr(finished.root, consolidated=False)
    for record in finished.fragments():
        for name, value in finished.read(record).items():
            other = data[name].isel(fragment=record["slot"])
            assert other.dims == finished.columns[name].dims
            assert other.to_numpy().dtype == value.dtype
            assert other.to_numpy().tobytes() == value.tobytes()


def test_a_fragment_without_an_ending_has_no_chunk_of_last_observations_and_reads_as_zeros(finished):
    group = zarr.open_group(finished.root, mode="r")
    seen = set()
    for record in finished.fragments():
        values = finished.read(record)
        ended = bool(values["terminated"].any() or values["truncated"].any())
        chunk = finished.root / "final_observation" / f"c.{record['slot']}.0.0"
        assert chunk.exists() == ended
        assert (record["columns"]["final_observation"] == [0, 0]) == (not ended)
        if not ended:
            assert not values["final_observation"].any()
            assert not group["final_observation"][record["slot"]].any()
        seen.add(ended)
    assert seen == {True, False}


def test_neither_zarr_nor_xarray_warns_of_a_store(finished):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = {name for name, _ in zarr.open_group(finished.root, mode="r").arrays()}
        assert {"observation", "fragment.round"} < names
        assert set(xarray.open_zarr(finished.root, consolidated=False).data_vars) == names
        assert set(finished.zarr()) == {*names, ".commits", ".weights", ".checkpoints"}


def test_xarray_opens_a_store_as_it_is(finished):
    with pytest.warns(RuntimeWarning, match="consolidated"):  # of a live store it would go stale
        data = xarray.open_zarr(finished.root)
    assert data.sizes["obs_time"] == data.sizes["time"] + 1 == 9
    assert data.attrs["format"] == "daskrl.replay"


def test_the_index_columns_say_what_the_commit_log_says(finished):
    check_index(finished)


def check_index(store: Store) -> None:
    group = zarr.open_group(store.root, mode="r")
    index = {name: group[f"fragment.{name}"][:] for name in INDEX}
    workers = group["fragment.worker"].attrs["workers"]
    records = {record["slot"]: record for record in store.fragments()}
    for slot, record in records.items():
        for name in INDEX[:-1]:
            assert index[name][slot].tolist() == dict(record)[name], name
        assert workers[index["worker"][slot]] == record["worker"]
    for slot in set(range(len(index["stream"]))) - set(records):
        assert index["stream"][slot] == index["round"][slot] == index["worker"][slot] == -1
        assert np.isnan(index["wall_time"][slot])


INDEX = [
    "stream", "round", "weights_version", "environment_seed", "first_episode", "episode_step", "continues",
    "wall_time", "worker",
]  # fmt: skip


def test_the_record_of_a_fragment_says_where_its_environments_stood(finished):
    for stream in range(2):
        mine = [record for record in finished.fragments() if record["stream"] == stream]
        assert [record["round"] for record in mine] == list(range(6))
        assert [record["weights_version"] for record in mine] == [0, 0, 1, 2, 3, 4]
        assert [record["slot"] for record in mine] == [2 * r + stream for r in range(6)]
        episode, age = np.zeros(2, int), np.zeros(2, int)
        for record in mine:
            assert record["first_episode"] == episode.tolist()
            assert record["episode_step"] == age.tolist()
            assert record["environment_seed"] == [reset_seed(1, stream, env, int(episode[env])) for env in range(2)]
            values = finished.read(record)
            finished_here = []
            for ended in values["terminated"] | values["truncated"]:
                age = age + 1
                finished_here += [[env, float(age[env]), int(age[env])] for env in range(2) if ended[env]]
                age, episode = np.where(ended, 0, age), episode + ended
            assert record["episodes"] == finished_here  # CartPole pays 1 a step


def test_a_cartpole_stepped_through_the_stored_actions_gives_the_stored_rows(finished):
    import gymnasium

    for stream in range(2):
        fragments = [finished.read(record) for record in finished.fragments() if record["stream"] == stream]
        for env in range(2):
            actions = [int(a) for fragment in fragments for a in fragment["action"][:, env]]
            happened = play(lambda: gymnasium.make("CartPole-v1"), actions, seed=1, stream=stream, env=env)
            stored = stored_transitions(fragments, env, "observation")
            for (seen, terminated, truncated, following), expected in zip(stored, happened, strict=True):
                assert seen[0].tobytes() == expected.observation.tobytes()
                assert following[0].tobytes() == expected.next_observation.tobytes()
                assert (terminated, truncated) == (expected.terminated, expected.truncated)


def test_to_xarray_is_lazy_and_ends_at_the_newest_fragment(finished):
    data = finished.to_xarray(fragments_per_chunk=5)
    assert data.sizes["fragment"] == 12
    assert data["reward"].chunks[0] == (5, 5, 2)
    assert data["fragment.round"].to_numpy().tolist() == [slot // 2 for slot in range(12)]
    expected = sum(float(finished.read(record)["reward"].sum()) for record in finished.fragments())
    assert float(data["reward"].sum()) == expected == 6 * ROUND  # CartPole pays 1 a step


@pytest.mark.parametrize("per_chunk", [1, 10, 64, 1000])
def test_what_to_xarray_gives_is_written_by_to_zarr_at_any_size_and_read_back_equal(long, tmp_path, per_chunk):
    data = long.to_xarray(fragments_per_chunk=per_chunk)
    data.to_zarr(tmp_path / "copy", consolidated=False)
    again = xarray.open_zarr(tmp_path / "copy", consolidated=False)
    assert again.identical(long.to_xarray())
    assert again["reward"].chunks[0][0] == min(per_chunk, 201)
    assert again.attrs["config"] == long.config.to_json()
    assert again["fragment.worker"].attrs["workers"] == data["fragment.worker"].attrs["workers"]


def test_a_part_of_it_is_written_too_and_as_netcdf(long, tmp_path):
    data = long.to_xarray()
    part = data[["reward", "fragment.round"]].isel(fragment=slice(0, 130))
    part.to_zarr(tmp_path / "part", consolidated=False)
    assert xarray.open_zarr(tmp_path / "part", consolidated=False).identical(part)
    data.drop_attrs().to_netcdf(tmp_path / "copy.nc")
    assert xarray.open_dataset(tmp_path / "copy.nc").equals(data)


def test_to_xarray_reads_no_chunk_before_it_is_asked_to(long, monkeypatch):
    read = []
    get = zarr.storage.LocalStore.get

    async def counted(self, key, *given, **named):
        read.append(key)
        return await get(self, key, *given, **named)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    data = long.to_xarray()
    assert not [key for key in read if "/c." in key]
    data["reward"][64:128].load()
    assert len([key for key in read if "reward/c." in key]) == 64


def test_a_run_without_fragments_is_written_too(tmp_path):
    data = train(tmp_path / "run").store.to_xarray()
    data.to_zarr(tmp_path / "copy", consolidated=False)
    assert xarray.open_zarr(tmp_path / "copy", consolidated=False).sizes["fragment"] == 0


@pytest.mark.parametrize("per_chunk", [0, -1, 2.5, "64"])
def test_fragments_per_chunk_is_a_number_of_them(long, per_chunk):
    with pytest.raises(ConfigError, match="fragments_per_chunk: expected an integer >= 1"):
        long.to_xarray(fragments_per_chunk=per_chunk)


def test_a_summary_is_for_json_and_says_what_each_of_its_keys_is(long):
    summary = long.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["config"] == long.config.to_json()
    described = re.findall(r"^([a-z_0-9, ]+) : ", inspect.getdoc(daskrl.Store.summary), re.MULTILINE)
    assert {name for names in described for name in names.split(", ")} - {"begun_with"} == set(summary)
    assert set(summary) - set(long.rows()) == {"config", "newest_stored_weights"}


def test_to_xarray_of_a_run_without_fragments_is_empty(tmp_path):
    assert train(tmp_path / "run").store.to_xarray().sizes["fragment"] == 0


# -- growing ----------------------------------------------------------------------------------------------


def test_arrays_grow_in_blocks_while_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "GROW", 8)
    store = train(tmp_path / "run").wait().store
    group = zarr.open_group(store.root, mode="r")
    assert {array.shape[0] for _, array in group.arrays()} == {16}
    assert [record["slot"] for record in store.fragments()] == list(range(12))
    for record in store.fragments():
        for name, value in store.read(record).items():
            assert group[name][record["slot"]].tobytes() == value.tobytes()
    check_index(store)


def test_a_fragment_beyond_the_first_1024_is_read_as_any_other(tmp_path):
    store = empty_store(tmp_path / "run", streams=1500)
    store.lock()
    random = np.random.default_rng(0)
    for stream in (0, 1023, 1024, 1499):
        fragment = {
            name: random.integers(0, 2, column.shape).astype(column.dtype) for name, column in store.columns.items()
        }
        record = fragment_record(store.config, 0, stream)
        record["columns"] = write_fragment(store.storage, store.columns, record["slot"], fragment)
        store.commit([record])
        group, data = zarr.open_group(store.root, mode="r"), xarray.open_zarr(store.root, consolidated=False)
        assert {array.shape[0] for _, array in group.arrays()} == {1024 if stream < 1024 else 2048}
        for name, value in store.read(record).items():
            if record["columns"][name] != [0, 0]:
                assert value.tobytes() == fragment[name].tobytes()
            assert group[name][stream].tobytes() == value.tobytes()
            assert data[name].isel(fragment=stream).to_numpy().tobytes() == value.tobytes()
    store.unlock()


def empty_store(path: Path, streams: int) -> Store:
    spec = spec_of(Scripted.observation_space, Scripted.action_space)
    config = RunConfig(0, {"kind": "id", "id": "X-v0"}, {"name": "DQN"}, Schedule(streams, 1, 1))
    return Store.create(path, config, spec, env_steps=1, options=Options(), versions=versions())


def fragment_record(config: RunConfig, round_: int, stream: int) -> Any:
    slot = config.schedule.slot(stream, round_)
    return {
        "kind": "fragment", "slot": slot, "stream": stream, "round": round_, "weights_version": round_,
        "continues": True, "episodes": [], "first_episode": [slot], "episode_step": [0],
        "environment_seed": [slot], "columns": {}, "wall_time": float(slot), "seconds": 0.0,
        "worker": f"host:{slot % 3}",
    }  # fmt: skip


def test_the_index_is_right_when_rounds_are_longer_than_its_chunks_and_overlap(tmp_path):
    store = empty_store(tmp_path / "run", streams=9000)  # an index chunk has 4,096 fragments
    store.lock()
    for first in range(0, 9000, 1500):  # the first half of the streams runs a round ahead of the others
        store.commit([fragment_record(store.config, 0, s) for s in range(first, first + 1500) if s < 4500])
        store.commit([fragment_record(store.config, 1, s) for s in range(first, first + 1500) if s < 4500])
    store.commit([fragment_record(store.config, 0, s) for s in range(8999, 4499, -1)])
    store.unlock()
    check_index(store)
    assert store.array_length() == 14336  # slots up to 13,499, in blocks of 1,024


def test_the_index_of_a_killed_driver_is_written_by_the_next_one(copied):
    for name in INDEX:
        for chunk in (copied.root / f"fragment.{name}").glob("c.*"):
            chunk.unlink()
    copied.lock()
    copied.unlock()
    check_index(copied)


def test_a_driver_killed_while_it_grew_the_arrays_is_followed_by_one_that_can_go_on(tmp_path):
    store = empty_store(tmp_path / "run", streams=1025)
    path = store.root / "reward" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["shape"][0] = 2048
    path.write_text(json.dumps(metadata))
    store.lock()
    assert store.array_length() == 1024
    store.commit([fragment_record(store.config, 0, s) for s in range(1025)])
    store.unlock()
    assert {array.shape[0] for _, array in store.zarr().arrays()} == {2048}


def test_files_left_by_killed_writers_go_when_a_driver_comes(copied):
    left = [copied.root / name / ".x.partial" for name in (".commits", ".weights", "reward")]
    for path in left:
        path.write_bytes(b"half")
    copied.lock()
    copied.unlock()
    assert not any(path.exists() for path in left)


# -- making and opening -----------------------------------------------------------------------------------


def test_a_store_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*args: Any) -> None:
        args[0].put("reward/zarr.json", b"{}")
        raise OSError("no space")

    monkeypatch.setattr(arrays, "create", full)
    with pytest.raises(OSError, match="no space"):
        train(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_is_refused(tmp_path, copied):
    with pytest.raises(StoreMismatchError, match=r"has no zarr\.json"):
        Store.open(tmp_path / "nothing")
    with pytest.raises(StoreMismatchError, match=r"has no zarr\.json"):
        Store.open(copied.root / "zarr.json")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(StoreMismatchError, match="no daskrl attributes"):
        Store.open(tmp_path / "other")
    (tmp_path / "other" / "zarr.json").write_text("{")
    with pytest.raises(StoreMismatchError, match="no daskrl attributes"):
        Store.open(tmp_path / "other")


def test_another_version_of_the_format_is_refused_with_what_wrote_it(copied):
    path = copied.root / "zarr.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(StoreMismatchError, match=r"'daskrl\.replay' version 2; this daskrl reads .*1.*'daskrl': '"):
        Store.open(copied.root)


def test_a_run_is_not_overwritten_unless_asked(copied):
    with pytest.raises(StoreMismatchError, match="already holds a run"):
        train(copied.root)
    assert copied.digest()
    again = train(copied.root, overwrite=True).store
    assert again.fragments() == []


def test_a_run_with_a_driver_is_not_overwritten_even_if_asked(copied):
    copied.lock()
    with pytest.raises(StoreLockedError):
        train(copied.root, overwrite=True)
    copied.unlock()
    assert len(copied.fragments()) == 12


def test_a_directory_that_is_no_store_is_never_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(StoreMismatchError, match="is not a daskrl store"):
            train(tmp_path / "thesis", overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_moved_store_has_the_same_digest(finished, copied):
    assert copied.root != finished.root
    assert copied.digest() == finished.digest()


# -- damage -----------------------------------------------------------------------------------------------

COLUMNS = ["observation", "final_observation", "action", "reward", "terminated", "truncated"]


def chunk_of(store: Store, column: str, number: int = -1) -> Path:
    """A committed chunk of a column: of the newest fragment that has one, or another."""
    record = [record for record in store.fragments() if record["columns"][column] != [0, 0]][number]
    return store.root / column / store.columns[column].chunk_name(record["slot"])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


def damages(path: Path) -> Iterator[str]:
    """Damage a file in one way after another, putting it right in between."""
    data = path.read_bytes()
    for place in (0, len(data) // 2, len(data) - 1):
        flip(path, place)
        yield f"byte {place} flipped"
        path.write_bytes(data)
    for length in (0, 3, len(data) - 1):
        path.write_bytes(data[:length])
        yield f"cut to {length} bytes"
        path.write_bytes(data)
    path.write_bytes(data + b"\0")
    yield "a byte longer"
    path.unlink()
    yield "missing"
    path.write_bytes(data)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_damaged_chunk_is_named_by_read_and_by_digest(copied, column):
    before, path = copied.digest(), chunk_of(copied, column)
    record = next(r for r in copied.fragments() if copied.columns[column].chunk_name(r["slot"]) == path.name)
    for _ in damages(path):
        with pytest.raises(DamagedError) as read:
            copied.read(record)
        with pytest.raises(DamagedError) as digest:
            copied.digest()
        for caught in (read, digest):
            assert str(path) in str(caught.value)
            assert f"fragment {record['slot']}, column {column}" in str(caught.value)
    assert copied.digest() == before


@pytest.mark.parametrize("column", ["observation", "reward", "action"])
def test_two_chunks_swapped_are_named_although_each_is_whole(copied, column):
    one, other = chunk_of(copied, column, 0), chunk_of(copied, column, -1)
    if one.read_bytes() == other.read_bytes():
        values = np.full(copied.columns[column].shape, 7, copied.columns[column].dtype)
        other.write_bytes(encode(copied.columns[column], values))
    else:
        kept = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(kept)
    with pytest.raises(DamagedError, match=r"(not the chunk that was|were) committed"):
        copied.digest()


def test_a_column_that_was_not_asked_for_is_not_read(copied):
    chunk_of(copied, "observation").unlink()
    assert set(copied.read(copied.fragments()[-1], only=("reward", "action"))) == {"reward", "action"}


def test_damaged_weights_are_named_by_digest_and_by_whoever_asks_for_them(copied):
    assert copied.weights_versions() == [0, 2, 4, 6]
    for version in (2, 6):
        path = copied.root / ".weights" / f"{version:08d}.safetensors"
        for _ in damages(path):
            with pytest.raises(DamagedError, match=path.name):
                copied.weights(version)
            with pytest.raises(DamagedError, match=path.name):
                copied.digest()
    assert copied.weights()[0] == 6


def test_a_learner_never_learns_from_a_damaged_chunk(copied):
    path = chunk_of(copied, "reward", 0)
    flip(path, 5)
    before = copied.log.head()
    run = daskrl.resume(copied.root, env_steps=8 * ROUND, progress=False)
    with pytest.raises(DamagedError) as caught:
        run.wait()
    assert str(path) in str(caught.value)
    assert max(record["version"] for record in copied.records("learn")) == 6
    assert copied.log.head() > before


def test_a_damaged_segment_is_named_by_everything_that_needs_the_log(copied):
    path = Path(copied.log.where(3))
    flip(path, 40)
    for ask in (copied.digest, copied.fragments, copied.lock, copied.summary, copied.weights):
        with pytest.raises(DamagedError) as caught:
            ask()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": 1', '"seed": 9'),
        ('"discount": 0.99', '"discount": 0.98'),
        ('"dtype": "float32"', '"dtype": "float64"'),
    ],
)
def test_attributes_that_are_not_those_of_the_run_are_found_when_it_is_opened(copied, old, new):
    path = copied.root / "zarr.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DamagedError, match=r"zarr\.json does not hold the attributes"):
        Store.open(copied.root)


def test_attributes_of_ones_own_may_be_added_to_a_store(copied):
    zarr.open_group(copied.root, mode="a").attrs["note"] = "the good one"
    assert Store.open(copied.root).attributes["note"] == "the good one"
    assert daskrl.resume(copied.root, progress=False).finished


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"node_type": "group"}'])
def test_damaged_metadata_of_an_array_is_named_before_anything_is_written(copied, damage):
    path = copied.root / "action" / "zarr.json"
    path.write_text(damage)
    with pytest.raises(DamagedError, match=r"action/zarr\.json is missing, or is not the metadata"):
        copied.lock()


def test_a_lock_that_found_damage_is_given_back(copied):
    flip(Path(copied.log.where(3)), 40)
    with pytest.raises(DamagedError):
        copied.lock()
    flip(Path(copied.log.where(3)), 40)
    assert copied.lock().published == 6
    copied.unlock()


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_without_its_newest_checkpoint_the_learner_takes_an_older_one_and_ends_the_same(finished, tmp_path, damage):
    run = train(tmp_path / "run", weights_every=2, checkpoint_every=2)
    for report in run:
        if report.weights_version == 5:
            break
    newest = max((tmp_path / "run" / ".checkpoints").glob("*.safetensors"))
    assert newest.name == "00000005.safetensors"  # of where it was left
    if damage == "flipped":
        flip(newest, 300)
    elif damage == "cut":
        newest.write_bytes(newest.read_bytes()[:-1])
    else:
        newest.unlink()
    says = pytest.warns(UserWarning, match=r"00000005\.safetensors .*\. Learning again from an older checkpoint")
    with contextlib.nullcontext() if damage == "missing" else says:
        daskrl.resume(tmp_path / "run", progress=False).wait()
    assert Store.open(tmp_path / "run").digest() == finished.digest()


def test_commits_of_a_stream_out_of_order_are_refused(tmp_path):
    store = empty_store(tmp_path / "run", streams=2)
    store.lock()
    store.commit([fragment_record(store.config, 1, 0)])
    store.unlock()
    with pytest.raises(DamagedError, match="stream 0 are out of order"):
        store.lock()


# -- weights ----------------------------------------------------------------------------------------------


def test_weights_are_plain_safetensors(finished):
    for version in (0, 2, 4, 6):
        kept, weights = finished.weights(version)
        other = load_file(finished.root / ".weights" / f"{version:08d}.safetensors")
        assert kept == version
        assert {name: value.dtype for name, value in weights.items()} == dict.fromkeys(other, np.dtype("float32"))
        assert all(weights[name].tobytes() == other[name].tobytes() for name in other)


def test_a_version_that_was_not_kept_is_refused_with_those_that_were(finished):
    with pytest.raises(ConfigError, match=r"keeps weights versions \[0, 2, 4, 6\], not 3"):
        finished.weights(3)


def test_the_newest_two_checkpoints_are_kept(finished):
    names = sorted(path.name for path in (finished.root / ".checkpoints").glob("*.safetensors"))
    assert names == ["00000004.safetensors", "00000006.safetensors"]


def test_the_digest_changes_with_a_seed_and_not_with_the_clock_or_the_worker(finished, tmp_path):
    again, other = train(tmp_path / "a", weights_every=2).wait(), train(tmp_path / "b", seed=2).wait()
    assert again.store.digest() == finished.digest()
    assert other.store.digest() != finished.digest()


def test_how_often_weights_are_kept_does_not_change_the_digest(finished, tmp_path):
    assert train(tmp_path / "a", weights_every=1, checkpoint_every=1).wait().store.digest() == finished.digest()


def test_a_chunk_of_the_wrong_shape_or_dtype_is_never_written():
    spec = spec_of(Scripted.observation_space, Scripted.action_space)
    reward = columns(spec, Schedule(1, 2, 3), 1)["reward"]
    with pytest.raises(StoreError, match=r"expected float32\[3, 2\], got float64\[3, 2\]"):
        encode(reward, np.zeros((3, 2)))
    with pytest.raises(StoreError, match=r"got float32\[2, 2\]"):
        encode(reward, np.zeros((2, 2), np.float32))


@pytest.mark.parametrize("name", ["reward", "action"])
def test_bytes_that_are_no_chunk_are_damage_whatever_they_are(name):
    spec = spec_of(Scripted.observation_space, Scripted.action_space)
    column = columns(spec, Schedule(1, 2, 3), 1)[name]
    values = np.arange(6).reshape(3, 2).astype(column.dtype)
    data = encode(column, values)
    assert (decode(column, data, "here") == values).all()
    other = b"neither zstd nor of the right length"
    with_checksum = other + crc32c(other).to_bytes(4, "little")
    for damaged in (b"", b"abc", data[:-1], data[1:], data + b"\0", with_checksum):
        with pytest.raises(DamagedError, match="here"):
            decode(column, damaged, "here")
