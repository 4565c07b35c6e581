"""Files of other nodes that are committed and come late: tasks on workers look again, readers of a store do not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskrl import clusters
from daskrl.errors import DamagedError
from daskrl.store import late
from daskrl.store.files import read_checked
from daskrl.store.layout import Layout
from daskrl.store.posix import Posix
from daskrl.store.store import Store
from tests.promise import start

PATIENT = 60.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return start(tmp_path_factory.mktemp("one") / "run").wait().store


@pytest.fixture
def layout(store: Store) -> Layout:
    return Layout(store.storage, store.config, store.spec, store.columns, store.run_id, PATIENT)


def never(seconds: float) -> None:
    raise AssertionError("it waited")


READS: dict[str, tuple[Callable[[Store], Path], Callable[[Layout, Store], Any]]] = {
    "a chunk": (
        lambda store: store.root / "reward" / store.columns["reward"].chunk_name(3),
        lambda layout, store: {name: value.tobytes() for name, value in layout.read(store.fragments()[3]).items()},
    ),
    "a learner's chunk": (
        lambda store: store.root / "observation" / store.columns["observation"].chunk_name(5),
        lambda layout, store: layout.read_transitions(store.fragments()[5])["observation"].tobytes(),
    ),
    "a commit": (lambda store: Path(store.log.where(2)), lambda layout, store: list(layout.log.backwards(4))),
    "the attributes": (lambda store: store.root / "zarr.json", lambda layout, store: layout.require_same_run()),
    "weights": (
        lambda store: store.root / store.fragments_weights[0],  # type: ignore[attr-defined]
        lambda layout, store: read_checked(layout.storage, store.fragments_weights, layout.patience),  # type: ignore[attr-defined]
    ),
}


@pytest.fixture(params=READS)
def file(request: pytest.FixtureRequest, store: Store) -> Iterator[tuple[Path, Callable[[Layout], Any]]]:
    """A file of the store, and what reads it; put back as it was."""
    kept = next(record["weights"] for record in store.records("learn") if record["weights"])
    store.fragments_weights = kept  # type: ignore[attr-defined]
    where, read = READS[request.param]
    path = where(store)
    records, whole = store.fragments(), path.read_bytes()
    store.fragments = lambda: records  # type: ignore[method-assign]
    yield path, lambda layout: read(layout, store)
    path.write_bytes(whole)
    del store.fragments


def test_a_file_that_comes_late_is_read_once_it_is_there_whole(
    file: tuple[Path, Callable[[Layout], Any]], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = file
    whole, expected = path.read_bytes(), read(layout)
    seen = [whole[:-1] if path.name.startswith("c.") else whole[: len(whole) // 2], b"", whole]
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) > 3:
            path.write_bytes(seen[len(pauses) - 4])

    monkeypatch.setattr(late, "pause_for", pause)
    path.unlink()
    assert read(layout) == expected
    assert len(pauses) == 6
    assert pauses == sorted(pauses)  # ever longer


def test_a_file_that_does_not_come_is_named_with_how_long_it_was_waited_for(
    file: tuple[Path, Callable[[Layout], Any]], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = file
    now, pauses = [0.0], list[float]()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(late, "pause_for", pause)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path.unlink()
    with pytest.raises(DamagedError, match=rf"{path.name} .*missing.* It was waited for, 60 s") as raised:
        read(layout)
    assert type(raised.value) is DamagedError
    assert 60 <= sum(pauses) <= 62
    assert max(pauses) == 2.0


@pytest.mark.parametrize("file", ["a chunk", "a commit", "weights"], indirect=True)
def test_wrong_bytes_are_damage_at_once(
    file: tuple[Path, Callable[[Layout], Any]], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(late, "pause_for", never)
    with pytest.raises(DamagedError, match=path.name):
        read(layout)


def test_who_reads_a_store_is_told_of_a_missing_file_at_once(
    file: tuple[Path, Callable[[Layout], Any]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = file
    monkeypatch.setattr(late, "pause_for", never)
    path.unlink()
    with pytest.raises(DamagedError, match=path.name) as raised:
        read(store.layout)
    assert "waited" not in str(raised.value)


def every_file_comes_late(root: str) -> None:
    """In this process, from now on: each file of a store is missing, then cut short, and only then there."""
    real, asked = Posix.get, dict[str, int]()

    def get(storage: Posix, key: str) -> bytes:
        path = storage.where(key)
        if not path.startswith(root):
            return real(storage, key)
        asked[path] = asked.get(path, 0) + 1
        if asked[path] == 1:
            raise FileNotFoundError(2, "No such file or directory", path)
        data = real(storage, key)
        return data[: len(data) // 2] if asked[path] == 2 else data

    Posix.get = get  # type: ignore[assignment, method-assign]
    late.pause_for = lambda seconds: None
    late.asked = asked  # type: ignore[attr-defined]


def test_a_run_whose_files_all_come_late_on_every_worker_has_the_same_digest(tmp_path: Path, store: Store) -> None:
    with clusters.local(2) as cluster, Client(cluster) as client:
        client.run(every_file_comes_late, str(tmp_path / "run"))
        run = start(tmp_path / "run", client=client)
        for report in run:
            if report.weights_version == 5:
                found = client.scheduler_info(n_workers=-1)["workers"]
                rollout = next(address for address, info in found.items() if not info["resources"])
                (pid,) = client.run(os.getpid, workers=[rollout]).values()
                os.kill(pid, signal.SIGKILL)  # its streams are rebuilt, on the worker beside it too
        late_ones = client.run(lambda: getattr(late, "asked", {}))
    assert run.store.digest() == store.digest()
    asked = {name for seen in late_ones.values() for name, times in seen.items() if times >= 2}
    for part in (
        "reward",
        ".commits",
        "zarr.json",
        ".partial",
    ):  # what a learner, a rebuilding and a joining worker read
        assert any(part in name for name in asked), part
