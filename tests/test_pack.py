"""A packed run is one file that opens, resumes and analyses as the directory did; whoever is killed on the way leaves
a run that opens.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import xarray
import zarr

import daskrl
from daskrl.errors import (
    ConfigError,
    DamagedError,
    StoreFullError,
    StoreLockedError,
    StoreMismatchError,
    StorePackedError,
    StoreUnreachableError,
)
from daskrl.store import late
from daskrl.store.packed import Packed
from daskrl.store.places import found, place
from daskrl.store.storage import Packable, Storage
from daskrl.testing import ReadableStorageTests
from tests import objects
from tests.typed import Here
from tests.walks import ROUND, STEPS, start


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return start(tmp_path_factory.mktemp("whole") / "run").wait().store.digest()


@pytest.fixture
def run(tmp_path: Path) -> daskrl.Run:
    return start(tmp_path / "runs" / "abc").wait()


def beside(run: daskrl.Run) -> list[str]:
    """What lies in the folder of the run."""
    return sorted(os.listdir(place(run.store.storage.beside("x")).root.parent))  # type: ignore[attr-defined]


class TestPacked(ReadableStorageTests):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder_of_test = tmp_path

    def holding(self, objects: dict[str, bytes]) -> Storage:
        with zipfile.ZipFile(self.folder_of_test / "run.zip", "w") as made:
            for key, data in objects.items():
                made.writestr(key, data)
        return found(self.folder_of_test / "run.zip")


class TestPackedInMemory(ReadableStorageTests):
    def holding(self, objects: dict[str, bytes]) -> Storage:
        base = place(f"memory://tests-of-packs/{id(self)}")
        assert isinstance(base, Packable)
        pack = Packed(base)
        with pack.parent.writing(pack.key) as file, zipfile.ZipFile(file, "w") as made:
            for key, data in objects.items():
                made.writestr(key, data)
        return pack


# -- one file -------------------------------------------------------------------------------------------------


def test_a_packed_run_is_one_file_of_the_same_digest(run: daskrl.Run, digest: str) -> None:
    path = run.store.root
    packed = daskrl.pack(path)
    assert beside(run) == ["abc.zip"]
    assert packed.digest() == digest
    assert daskrl.Store.open(path).digest() == digest
    assert daskrl.Store.open(f"{path}.zip").digest() == digest


def test_packing_the_same_run_twice_gives_the_same_bytes(run: daskrl.Run) -> None:
    path = run.store.root
    daskrl.pack(run)
    first = path.with_name("abc.zip").read_bytes()
    daskrl.unpack(run)
    daskrl.pack(run)
    assert path.with_name("abc.zip").read_bytes() == first


def test_the_file_is_a_zip_whose_members_are_stored_in_order_and_without_locks(run: daskrl.Run) -> None:
    root = run.store.root
    (root / ".commits" / ".left.partial").write_bytes(b"x")
    before = {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in (".left.partial", "driver.lock")
    }
    daskrl.pack(run)
    with zipfile.ZipFile(root.with_name("abc.zip")) as file:
        assert file.namelist() == sorted(before)
        assert {member.compress_type for member in file.infolist()} == {zipfile.ZIP_STORED}
        assert {member.date_time for member in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {name: file.read(name) for name in file.namelist()} == before


def test_zarr_and_xarray_read_the_file_without_daskrl(run: daskrl.Run) -> None:
    rewards = np.asarray(run.store.zarr()["reward"][:])  # type: ignore[index]
    path = str(run.store.root)
    daskrl.pack(run)
    with zarr.storage.ZipStore(f"{path}.zip", mode="r") as store:
        assert np.array_equal(np.asarray(zarr.open_group(store, mode="r")["reward"][:]), rewards)  # type: ignore[index]
        data = xarray.open_zarr(store, consolidated=False)
        assert np.array_equal(data["reward"].to_numpy(), rewards)


def test_a_store_and_a_run_that_are_packed_go_on_to_be_read(run: daskrl.Run, digest: str) -> None:
    assert daskrl.pack(run) is run.store
    assert run.store.digest() == digest
    assert run.finished
    assert list(run) == []
    assert beside(run) == ["abc.zip"]  # there was nothing to do, so it is packed still


def test_packing_what_is_packed_and_unpacking_what_is_not_changes_nothing(run: daskrl.Run, digest: str) -> None:
    path = run.store.root
    assert daskrl.unpack(path).storage == place(path)
    daskrl.pack(path)
    assert daskrl.pack(path).digest() == digest
    assert daskrl.pack(f"{path}.zip").digest() == digest
    assert beside(run) == ["abc.zip"]
    assert daskrl.unpack(f"{path}.zip").digest() == digest
    assert beside(run) == ["abc"]


# -- all who read ---------------------------------------------------------------------------------------------


def test_everything_that_reads_a_run_reads_a_packed_one(run: daskrl.Run) -> None:
    path = run.store.root

    def read() -> list[Any]:
        store = daskrl.Store.open(path)
        version, weights = store.weights()
        curve = daskrl.learning_curve(store)
        policy = store.policy()
        observation = next(iter(store.read(store.fragments()[0], ("observation",)).values()))[0]
        return [
            {**store.summary(), "store": None}, version, {name: value.tobytes() for name, value in weights.items()},
            np.asarray(daskrl.evaluate(store, episodes=3).returns).tolist(),
            np.asarray(policy.predict(observation)[0]).tolist(),
            daskrl.reproduce(store, 3).differs, {name: values.tolist() for name, values in vars(curve).items()},
            float(store.to_xarray()["reward"].sum()), sorted(store.zarr()),
        ]  # fmt: skip

    before = read()
    daskrl.pack(path)
    assert read() == before


@pytest.mark.parametrize("command", ["info", "digest", "watch", "evaluate --episodes 2", "reproduce --fragment 2"])
def test_commands_take_the_path_the_run_had_and_that_of_its_pack(run: daskrl.Run, command: str, here: Here) -> None:
    path, said = str(run.store.root), []
    name, *rest = command.split()
    for at in (path, path, f"{path}.zip"):
        said.append({**json.loads(here(name, at, *rest, "--json", cwd=Path.cwd()).stdout), "store": None})
        daskrl.pack(path)
    assert said[1:] == [said[0]] * 2


def test_a_run_begins_with_the_weights_and_the_replay_of_a_packed_one(run: daskrl.Run, tmp_path: Path) -> None:
    given: dict[str, Any] = {"init": run.store.root, "init_replay": True, "env_steps": 2 * ROUND}
    expected = start(tmp_path / "first", **given).wait().store.digest()
    daskrl.pack(run)
    second = start(tmp_path / "second", **given).wait()
    assert second.store.digest() == expected
    assert daskrl.pack(second).digest() == expected  # with what it began with
    assert daskrl.unpack(second).digest() == expected


def test_a_packed_store_travels_to_other_processes(run: daskrl.Run, digest: str) -> None:
    storage = daskrl.pack(run).storage
    again = pickle.loads(pickle.dumps(storage))
    assert again == storage
    assert daskrl.Store.open(again).digest() == digest
    data = pickle.loads(pickle.dumps(run.store.to_xarray()))
    assert float(data["reward"].sum()) == float(run.store.to_xarray()["reward"].sum())


def test_a_watcher_of_a_run_that_is_packed_goes_on(run: daskrl.Run) -> None:
    from daskrl.watching.watch import Reader

    reader = Reader(daskrl.Store.open(run.store.root))
    before = reader.read()
    daskrl.pack(run.store.root)
    assert reader.read() == before


# -- going on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True])
def test_a_packed_run_is_resumed_to_the_digest_of_a_run_never_packed(
    tmp_path: Path, digest: str, stopped: bool
) -> None:
    run = start(tmp_path / "run", env_steps=STEPS if stopped else 4 * ROUND)
    for report in run:
        if stopped and report.weights_version == 4:
            break
    daskrl.pack(run)
    assert os.listdir(tmp_path) == ["run.zip"]
    resumed = daskrl.resume(tmp_path / "run", env_steps=STEPS, progress=False).wait()
    assert os.listdir(tmp_path) == ["run"]
    assert resumed.store.digest() == digest
    assert daskrl.pack(resumed).digest() == digest


def test_train_with_resume_goes_on_with_a_packed_run_and_leaves_a_finished_one_packed(
    tmp_path: Path, digest: str
) -> None:
    run = start(tmp_path / "run")
    next(iter(run))
    run.stop()
    daskrl.pack(run)
    assert start(tmp_path / "run", resume=True).wait().store.digest() == digest
    assert os.listdir(tmp_path) == ["run"]
    daskrl.pack(tmp_path / "run")
    again = start(tmp_path / "run", resume=True).wait()
    assert again.store.digest() == digest
    assert os.listdir(tmp_path) == ["run.zip"]


def test_a_run_is_not_made_where_a_packed_one_is_unless_it_is_overwritten(run: daskrl.Run, digest: str) -> None:
    path = run.store.root
    daskrl.pack(run)
    with pytest.raises(StoreMismatchError, match=r"abc\.zip already holds a run\. Type: daskrl resume"):
        start(path)
    with pytest.raises(StoreMismatchError, match="already holds a run"):
        start(f"{path}.zip")  # type: ignore[arg-type]
    assert start(path, overwrite=True, seed=4).wait().store.digest() != digest
    assert beside(run) == ["abc"]


def test_a_run_is_not_made_by_the_name_of_a_pack(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"choose store='.*run'"):
        start(tmp_path / "run.zip")
    assert os.listdir(tmp_path) == []


def test_a_packed_run_is_not_written(run: daskrl.Run) -> None:
    store = daskrl.pack(run)
    for write in (lambda: store.storage.put("a", b""), store.lock, lambda: store.storage.delete("zarr.json")):
        with pytest.raises(StorePackedError, match=r"daskrl resume .*daskrl unpack"):
            write()
    assert pickle.loads(pickle.dumps(StorePackedError("one sentence"))).args == ("one sentence",)


# -- refused --------------------------------------------------------------------------------------------------


def test_a_run_with_a_driver_is_not_packed_and_the_driver_is_named(tmp_path: Path, digest: str) -> None:
    run = start(tmp_path / "run")
    reports = iter(run)
    next(reports)
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()}"):
        daskrl.pack(tmp_path / "run")
    assert os.listdir(tmp_path) == ["run"]
    for _ in reports:
        pass
    assert daskrl.pack(tmp_path / "run").digest() == digest


def test_a_damaged_run_is_not_packed_and_its_file_named(run: daskrl.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(late, "PATIENCE", 0.0)  # of a file that other nodes wrote just now
    root = run.store.root
    for name, change in (("reward/c.3.0.0", b"1234"), ("action/c.2.0.0", None)):
        kept = (root / name).read_bytes()
        (root / name).unlink() if change is None else (root / name).write_bytes(change)
        with pytest.raises(DamagedError, match=name):
            daskrl.pack(run)
        assert beside(run) == ["abc"]
        (root / name).write_bytes(kept)
    daskrl.pack(run)


def test_a_damaged_pack_is_not_unpacked_and_stays(run: daskrl.Run) -> None:
    pack = run.store.root.with_name("abc.zip")
    daskrl.pack(run)
    whole = pack.read_bytes()
    at = whole.index(b"reward/c.3.0.0") + 20
    for data, said in ((whole[:at] + b"XXXX" + whole[at + 4 :], "reward/c.3.0.0"), (whole[: len(whole) // 2], "ZIP")):
        pack.write_bytes(data)
        with pytest.raises(DamagedError, match=said):
            daskrl.unpack(pack)
        assert beside(run) == ["abc.zip"]


def test_what_is_there_by_the_packs_name_and_is_not_the_runs_is_kept(run: daskrl.Run) -> None:
    other = run.store.root.with_name("abc.zip")
    with zipfile.ZipFile(other, "w") as made:
        made.writestr("mine", b"data")
    kept = other.read_bytes()
    assert daskrl.Store.open(run.store.root).storage == run.store.storage
    with pytest.raises(StoreMismatchError, match="is not this run"):
        daskrl.pack(run)
    assert other.read_bytes() == kept
    assert beside(run) == ["abc", "abc.zip"]


def test_a_full_disk_leaves_the_directory_whole(run: daskrl.Run, digest: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for do, there in ((daskrl.pack, "abc"), (daskrl.unpack, "abc.zip")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises(StoreFullError, match="make room"):
                do(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert beside(run) == [there]
        assert daskrl.Store.open(run.store.storage).digest() == digest
        daskrl.pack(run)


# -- whoever is killed ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import daskrl.store.pack as packing

moments = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
do, path = getattr(packing, sys.argv[1]), sys.argv[2]
count, at = 0, int(sys.argv[3])

def hook(event, given):
    global count
    if event in moments and given and os.path.dirname(path) in str(given[0]):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
do(path)
print(count)
"""


def child(what: str, path: Path, at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", KILLED, what, str(path), str(at)], capture_output=True, text=True)


@pytest.mark.parametrize("what", ["pack", "unpack"])
def test_whoever_is_killed_at_any_moment_leaves_a_run_that_opens(tmp_path: Path, what: str) -> None:
    runs = tmp_path / "runs"
    path = runs / "abc"
    store = start(path, env_steps=2 * ROUND).wait().store
    expected, begin, do, end = store.digest(), daskrl.unpack, daskrl.pack, ["abc.zip"]
    if what == "unpack":
        begin, do, end = do, begin, ["abc"]
    begin(path)
    done = child(what, path, 0)
    assert done.returncode == 0, done.stderr
    moments = int(done.stdout)
    assert moments > 50
    halves = set()
    # Every moment about the rename of the whole, and some of those between: each file is opened, and removed.
    for at in sorted({1, 2, *range(1, moments, 31), moments - 1, moments}):
        begin(path)
        assert child(what, path, at).returncode < 0
        halves.add(frozenset(name for name in os.listdir(runs) if not name.startswith(".")))
        assert daskrl.Store.open(path).digest() == expected
        do(path)
        assert os.listdir(runs) == end
        assert daskrl.Store.open(path).digest() == expected
    assert frozenset(["abc"]) in halves
    assert frozenset(["abc.zip"]) in halves


def test_a_directory_beside_a_whole_pack_counts_and_whoever_drives_it_removes_the_pack(
    tmp_path: Path, digest: str
) -> None:
    path = tmp_path / "run"
    start(path, env_steps=4 * ROUND).wait()
    daskrl.pack(path)
    older = (tmp_path / "run.zip").read_bytes()
    daskrl.unpack(path)
    (tmp_path / "run.zip").write_bytes(older)  # as if who packed had been killed before the directory was removed
    assert daskrl.Store.open(path).storage == place(path)
    assert daskrl.resume(path, env_steps=STEPS, progress=False).wait().store.digest() == digest
    assert os.listdir(tmp_path) == ["run"]


def test_of_many_who_unpack_at_once_one_does_and_the_others_wait_or_are_told(run: daskrl.Run, digest: str) -> None:
    path = run.store.root
    daskrl.pack(run)
    together, told = threading.Barrier(4), list[BaseException]()

    def one() -> None:
        together.wait()
        try:
            assert daskrl.unpack(path).run_id == run.store.run_id
        except StoreLockedError as error:
            told.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) < 4
    assert daskrl.Store.open(path).digest() == digest
    assert beside(run) == ["abc"]


# -- in an object store ---------------------------------------------------------------------------------------


@pytest.fixture
def url() -> str:
    return f"memory://packs/{os.urandom(8).hex()}"


def test_a_run_in_an_object_store_is_packed_into_one_object_and_back(url: str, digest: str) -> None:
    run = start(url, env_steps=4 * ROUND).wait()  # type: ignore[arg-type]
    before = run.store.digest()
    storage = run.store.storage
    assert isinstance(storage, Packable)
    assert daskrl.pack(url).digest() == before
    assert storage.keys() == []
    assert str(daskrl.Store.open(url).storage) == f"{url}.zip"
    assert daskrl.Store.open(f"{url}.zip").digest() == before
    assert daskrl.Store.open(url).to_xarray()["reward"].shape[0] == 8
    resumed = daskrl.resume(url, env_steps=STEPS, progress=False).wait()
    assert resumed.store.digest() == digest
    assert not Packed(storage).there()


@pytest.mark.s3
def test_a_run_on_s3_is_one_object_that_zarr_reads_and_that_is_resumed(
    s3: objects.SeaweedFS, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{objects.BUCKET}/packs/abc"
    run = start(url, env_steps=4 * ROUND).wait()  # type: ignore[arg-type]
    before, rewards = run.store.digest(), run.store.to_xarray()["reward"].to_numpy()
    daskrl.pack(url)
    listed = obstore.list(objects.client(s3.endpoint), "packs").collect()
    assert [found["path"] for found in listed] == ["packs/abc.zip"]
    packed = daskrl.Store.open(url)
    assert packed.digest() == before
    assert np.array_equal(packed.to_xarray()["reward"].to_numpy(), rewards)
    assert daskrl.resume(f"{url}.zip", env_steps=STEPS, progress=False).wait().store.digest() == digest
    assert daskrl.pack(url).digest() == digest


def test_an_object_store_that_fails_at_any_request_keeps_a_run_that_opens(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daskrl.store import lease
    from daskrl.store.client import Client

    monkeypatch.setattr(lease, "SECONDS", 0.05)
    expected = start(url, env_steps=2 * ROUND).wait().store.digest()  # type: ignore[arg-type]
    left, real = [10**9], {name: getattr(Client, name) for name in ("write", "write_file", "delete")}

    def dying(name: str) -> Any:
        def request(self: Client, *given: Any, **named: Any) -> Any:
            renewing = threading.current_thread().name == "daskrl-lease"
            left[0] -= not renewing
            if left[0] < 0:
                if renewing:
                    raise StoreUnreachableError("dead")
                raise KeyboardInterrupt  # nothing that it would do afterwards reaches the server
            return real[name](self, *given, **named)

        return request

    for name in real:
        monkeypatch.setattr(Client, name, dying(name))
    counts = []
    for do in (daskrl.pack, daskrl.unpack):
        left[0] = 10**9
        do(url)
        counts.append(10**9 - left[0])
    assert min(counts) > 50
    died = 0
    for do, undo, count in ((daskrl.pack, daskrl.unpack, counts[0]), (daskrl.unpack, daskrl.pack, counts[1])):
        for at in sorted({*range(4), *range(5, count, 23), count - 2}):
            left[0] = at
            with contextlib.suppress(KeyboardInterrupt):
                do(url)
            died += left[0] < 0
            left[0] = 10**9
            assert daskrl.Store.open(url).digest() == expected
            assert do(url).digest() == expected
            undo(url)
        do(url)
    assert died > 8
