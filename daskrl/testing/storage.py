"""What every kind of place for a store must do, as tests for the author of one."""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from daskrl.algorithms.dqn import DQN
from daskrl.errors import StoreLockedError, StoreMismatchError
from daskrl.run import train
from daskrl.store.pack import pack
from daskrl.store.storage import Packable, Storage
from daskrl.store.store import Store


class ReadableStorageTests:
    """Of a place that can only be read. In a file that pytest collects, as of `StorageTests`."""

    def holding(self, objects: dict[str, bytes]) -> Storage:
        """A place with these objects."""
        raise NotImplementedError

    def test_every_object_is_read_back(self) -> None:
        objects = {"data/none": b"", "data/one": b"x", "zarr.json": bytes(range(256)) * 4096, "data/more/c.0": b"y"}
        storage = self.holding(objects)
        again = pickle.loads(pickle.dumps(storage))
        assert again == storage
        for key, data in objects.items():
            assert storage.get(key) == data
            assert again.get(key) == data
            assert storage.exists(key)

    def test_what_is_not_there_is_a_missing_file_also_for_readers(self) -> None:
        storage = self.holding({"data/first": b"1"})
        for key in ("data/none", "data", "none/first"):
            _refused(FileNotFoundError, lambda key=key: storage.get(key))  # type: ignore[misc]
            assert not storage.exists(key) or key == "data"

    def test_a_folder_lists_the_names_that_are_held_in_order(self) -> None:
        storage = self.holding({f"data/{name}": b"" for name in ("00000010", "00000002", "first", "00000004")})
        assert storage.names("data") == ["00000002", "00000004", "00000010", "first"]
        assert storage.names("data", "00000004") == ["00000010", "first"]
        assert storage.names("nothing") == []

    def test_a_folder_is_a_place_of_its_own_for_readers(self) -> None:
        folder = self.holding({"data/first": b"1", "data/more/c.0": b"2", "other": b"3"}).folder("data")
        assert folder.get("first") == b"1"
        assert folder.folder("more").get("c.0") == b"2"
        assert folder.names("more") == ["c.0"]
        assert not folder.exists("other")

    def test_many_threads_read_at_once(self) -> None:
        objects = {f"data/{number}": b"%d" % number * number for number in range(200)}
        storage, told = self.holding(objects), list[bool]()

        def all_of_them() -> None:
            told.append(all(storage.get(key) == data for key, data in objects.items()))

        _together([all_of_them] * 4)
        assert told == [True] * 4
        assert list(storage.at_once(storage.get, objects)) == list(objects.values())

    def test_a_store_is_where_its_first_commit_is(self) -> None:
        assert self.holding({"zarr.json": b"{}", ".commits/00000000.json": b"[]"}).holds_store()


class StorageTests:
    """In a file that pytest collects::

    class TestMine(daskrl.testing.StorageTests):
        def place(self):
            return Mine(...)  # a new one each time
    """

    def place(self) -> Storage:
        """A place where nothing is, another one each time."""
        raise NotImplementedError

    def _made(self) -> Storage:
        """A place with a folder ``data``, as a store has one."""
        storage = self.place()
        with storage.making(False) as making:
            making.put("data/first", b"1")
            making.put(".commits/00000000.json", b"[]")
        return storage

    def test_what_is_put_is_what_is_got(self) -> None:
        storage = self._made()
        for data in (b"", b"x", bytes(range(256)) * 4096):
            storage.put("data/one", data)
            assert storage.get("data/one") == data
        storage.put("data/one", b"ab", memoryview(b"cd"))
        assert storage.get("data/one") == b"abcd"
        assert pickle.loads(pickle.dumps(storage)) == storage
        assert pickle.loads(pickle.dumps(storage)).get("data/one") == b"abcd"

    def test_what_is_not_there_is_a_missing_file(self) -> None:
        storage = self._made()
        _refused(FileNotFoundError, lambda: storage.get("data/none"))
        assert not storage.exists("data/none")
        storage.delete("data/none")
        storage.delete("data/first")
        assert not storage.exists("data/first")

    def test_a_folder_lists_its_names_in_order(self) -> None:
        storage = self._made()
        for number in (10, 2, 33, 4):
            storage.put(f"data/{number:08d}", b"")
        assert storage.names("data") == [*(f"{number:08d}" for number in (2, 4, 10, 33)), "first"]
        assert storage.names("data", f"{10:08d}") == [f"{33:08d}", "first"]
        assert storage.names("nothing") == []

    def test_of_many_who_put_a_new_object_exactly_one_does(self) -> None:
        storage = self._made()
        for turn in range(10):
            key, together, won = f"data/{turn}", threading.Barrier(6), list[bytes]()

            def race(mine: bytes, key: str = key, together: Any = together, won: Any = won) -> None:
                together.wait()
                with contextlib.suppress(FileExistsError):
                    storage.put_new(key, mine)
                    won.append(mine)

            _together([lambda number=number: race(b"%d" % number) for number in range(6)])  # type: ignore[misc]
            assert len(won) == 1
            assert storage.get(key) == won[0]

    def test_what_is_done_at_once_comes_in_order(self) -> None:
        storage = self._made()
        keys = [f"data/{number}" for number in range(50)]
        assert list(storage.at_once(lambda key: storage.put(key, key.encode()), keys)) == [None] * 50
        assert list(storage.at_once(storage.get, keys)) == [key.encode() for key in keys]

    def test_an_object_of_the_driver_is_written_again_and_again(self) -> None:
        storage, known = self._made(), dict[str, Any]()
        for data in (b"1", b"2", b"2", b"3"):
            storage.rewrite("data/mine", data, known)
            assert storage.get("data/mine") == data

    def test_a_store_is_made_whole_or_not_at_all(self) -> None:
        storage = self.place()
        assert not storage.holds_store()

        def half() -> None:
            with storage.making(False) as making:
                making.put("data/first", b"1")
                raise ZeroDivisionError

        _refused(ZeroDivisionError, half)
        assert not storage.holds_store()
        with storage.making(False) as making:
            making.put(".commits/00000000.json", b"[]")
        assert storage.holds_store()
        assert not storage.exists("data/first")

    def test_where_a_store_is_none_is_made_unless_it_is_overwritten(self) -> None:
        storage = self._made()
        _refused(StoreMismatchError, lambda: storage.making(False).__enter__())
        assert storage.get("data/first") == b"1"
        with storage.making(True) as making:
            making.put(".commits/00000000.json", b"[]")
        assert not storage.exists("data/first")

    def test_there_is_one_driver_at_a_time(self) -> None:
        storage = self._made()
        first, second = storage.lock(), storage.lock()
        first.acquire()
        assert first.held
        _refused(StoreLockedError, second.acquire)
        first.require()
        first.release()
        second.acquire()
        assert second.held
        assert not second.took_over
        second.release()

    def test_a_folder_is_a_place_of_its_own(self) -> None:
        storage = self._made()
        assert storage.folder("data").get("first") == b"1"

    def test_a_run_in_a_folder_is_packed_there_and_read_as_it_was(self) -> None:
        storage = self._made()
        run = _run(storage.folder("runs").folder("one"), env_steps=64)
        digest, columns = run.digest(), sorted(run.zarr())
        if isinstance(storage, Packable):
            packed = pack(run)
            assert storage.names("runs") == ["one.zip"]
            assert Store.open(storage.folder("runs").folder("one")).digest() == digest
            assert sorted(packed.zarr()) == columns

    def test_a_run_has_the_digest_it_has_in_a_directory(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            mine, other = _run(self.place()), _run(f"{folder}/run")
            assert mine.digest() == other.digest()
            assert [list(record) for record in mine.fragments()] == [list(record) for record in other.fragments()]
            rewards: list[Any] = [made.zarr()["reward"] for made in (mine, other)]
            assert np.array_equal(rewards[0][:], rewards[1][:])


def _run(place: Any, env_steps: int = 256) -> Store:
    algorithm = DQN(hidden=(8,), learning_starts=32, batch_size=8, window=256)
    return train(
        algorithm, "CartPole-v1", store=place, env_steps=env_steps, streams=2, envs_per_stream=2, fragment_steps=16,
        checkpoint_every=2, progress=False,
    ).wait().store  # fmt: skip


def _refused(error: type[Exception], call: Callable[[], object]) -> None:
    try:
        got = call()
    except error:
        return
    raise AssertionError(f"expected {error.__name__}, got {got!r}")


def _together(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
