"""The snapshot beside the commit log: it spares reading, and what it says is never believed against the log."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import daskrl
from daskrl.config import Options, RunConfig, Schedule
from daskrl.envs.spaces import spec_of
from daskrl.errors import DamagedError, StoreFullError
from daskrl.store import snapshot
from daskrl.store.files import crc32c
from daskrl.store.log import CommitLog, Segment
from daskrl.store.posix import Posix
from daskrl.store.progress import Progress
from daskrl.store.store import Store
from tests.oracles import Scripted
from tests.promise import start

STREAMS = 3
COMMITS = 90
COUNT = itertools.count()


def commit(number: int) -> list[Any]:
    """What commit ``number`` says: a fragment, what was learned of a round, and now and then something rare."""
    round_, stream = divmod(number, STREAMS)
    said: list[Any] = [
        {
            "kind": "fragment", "slot": number, "stream": stream, "round": round_, "weights_version": round_,
            "continues": True, "episodes": [[0, number / 7, 5]] * (number % 3), "first_episode": [number],
            "episode_step": [0], "environment_seed": [number], "columns": {}, "wall_time": float(number),
            "seconds": 0.1, "worker": "host:1",
        }
    ]  # fmt: skip
    if stream == STREAMS - 1:
        weights = [f".weights/{round_ + 1:08d}.safetensors", 8, round_] if round_ % 5 == 0 else None
        said.append(
            {"kind": "learn", "version": round_ + 1, "learner_updates": 4 * round_, "loss": 1 / (round_ + 1),
             "weights": weights, "checkpoint": None}
        )  # fmt: skip
    if number % 31 == 0:
        said.append({"kind": "evaluation", "version": number, "returns": [number / 3, 1.0], "limited": number % 2})
    if number == 50:
        said.append({"kind": "promise_off", "reason": 'because of ] } and " in it', "environment": True})
        said.append({"kind": "budget", "env_steps": 777, "options": {}})
        said.append({"kind": "of a later version", "with": {"more": [1]}})
    return said


def made(path: Any, commits: int = COMMITS) -> Store:
    """A store of so many commits after the first, which its driver has left."""
    spec = spec_of(Scripted.observation_space, Scripted.action_space)
    config = RunConfig(0, {"kind": "id", "id": "X-v0"}, {"name": "DQN"}, Schedule(STREAMS, 1, 1))
    store = Store.create(path, config, spec, env_steps=1, options=Options(), versions={})
    store.lock()
    for number in range(commits):
        store.commit(commit(number))
    store.unlock()
    return store


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made(tmp_path_factory.mktemp("original") / "run")


@pytest.fixture
def store(original: Store, tmp_path: Path) -> Store:
    return Store.open(shutil.copytree(original.root, tmp_path / "run"))


@pytest.fixture(params=["directory", "object store"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return made(tmp_path / "run" if request.param == "directory" else f"memory://snapshots/run-{next(COUNT)}")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the commits that are read from now on."""
    numbers: list[int] = []
    segment = CommitLog.segment

    def counted(log: CommitLog, number: int) -> Segment:
        numbers.append(number)
        return segment(log, number)

    monkeypatch.setattr(CommitLog, "segment", counted)
    return numbers


def of(store: Store) -> Path:
    return store.root / snapshot.KEY


def counted(store: Store, commits: int | None = None) -> Progress:
    """The progress by the log alone, up to so many commits."""
    progress = Progress([0] * STREAMS)
    for segment in store.log.segments(0, commits):
        progress.take_commit(segment)
    return progress


def resealed(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A snapshot with other content and the checksum that goes with it."""
    held = json.loads(data)["snapshot"]
    change(held)
    body = json.dumps(held).encode()
    return b'{"crc32c":"%08x","snapshot":%s}\n' % (crc32c(body), body)


def test_a_driver_that_leaves_writes_one_which_says_what_the_log_says(anywhere):
    assert snapshot.load(anywhere.log, anywhere.run_id, STREAMS) == counted(anywhere)
    assert Store.open(anywhere.storage).progress() == counted(anywhere)


def test_what_is_counted_is_what_was_committed(store):
    progress = store.progress()
    numbers = range(COMMITS)
    assert progress.commits == COMMITS + 1
    assert progress.fragments == progress.slots == COMMITS
    assert progress.episodes == sum(number % 3 for number in numbers)
    assert list(progress.returns) == [number / 7 for number in numbers for _ in range(number % 3)][-100:]
    assert (progress.published, progress.learner_updates) == (30, 4 * 29)
    assert sorted(progress.kept) == [1, 6, 11, 16, 21, 26]
    assert progress.evaluated == {0: 0.5, 31: (31 / 3 + 1) / 2, 62: (62 / 3 + 1) / 2}
    assert progress.budget == {"kind": "budget", "env_steps": 777, "options": {}}
    assert [record["reason"] for record in progress.off] == ['because of ] } and " in it']
    assert progress.environment_off


def test_with_one_opening_reads_what_is_new_since(anywhere, read):
    older = anywhere.storage.get(snapshot.KEY)
    anywhere.lock()
    for number in range(COMMITS, COMMITS + 5):
        anywhere.commit(commit(number))
    anywhere.unlock()
    anywhere.storage.put(snapshot.KEY, older)  # as if the driver had been killed
    read.clear()
    reader = Store.open(anywhere.storage)
    assert reader.summary()["fragments"] == COMMITS + 5
    # Commit 0, whose checksum is that of the attributes; the newest that the snapshot has; and those it does not have.
    assert read == [0, COMMITS, *range(COMMITS + 1, COMMITS + 6)]
    read.clear()
    assert reader.summary()["fragments"] == COMMITS + 5
    assert read == [COMMITS + 5]  # which shows that it is the same log still


def test_an_object_store_is_asked_for_no_more_than_what_is_new(monkeypatch):
    store = made(f"memory://snapshots/run-{next(COUNT)}")
    listed: list[str] = []
    names = type(store.storage).names
    monkeypatch.setattr(
        type(store.storage), "names", lambda self, folder, after="": listed.append(after) or names(self, folder, after)
    )
    Store.open(store.storage).summary()
    assert listed == [f"{COMMITS:08d}.json"]


def test_without_one_each_commit_is_read_once_and_one_is_written(anywhere, read):
    expected = anywhere.summary()
    anywhere.storage.delete(snapshot.KEY)
    read.clear()
    assert Store.open(anywhere.storage).summary() == expected
    assert sorted(read) == [0, *range(COMMITS + 1)]  # commit 0 also by opening
    assert snapshot.load(anywhere.log, anywhere.run_id, STREAMS) == counted(anywhere)


def test_the_digest_reads_each_commit_once_and_reproduce_passes_over_the_log_once(tmp_path, read, monkeypatch):
    store = start(tmp_path / "run").wait().store
    head = store.log.head()
    read.clear()
    store.digest()
    assert read == list(range(head))
    passes: list[int] = []
    segments = CommitLog.segments
    monkeypatch.setattr(CommitLog, "segments", lambda log, *given: passes.append(1) or segments(log, *given))
    assert daskrl.reproduce(store, 5).differs == ()
    assert len(passes) == 1


def test_a_store_of_few_commits_has_none(tmp_path):
    few = made(tmp_path / "run", commits=snapshot.WORTH - 2)
    Store.open(few.root).summary()
    assert not of(few).exists()
    made(tmp_path / "more", commits=snapshot.WORTH - 1)
    assert (tmp_path / "more" / snapshot.KEY).exists()


def test_a_driver_writes_one_now_and_then(tmp_path):
    store = made(tmp_path / "run", commits=0)
    store.lock()
    for number in range(255):
        store.commit(commit(number))
    assert json.loads(of(store).read_bytes())["snapshot"]["commits"] == 256
    store.unlock()


def test_a_cut_one_changes_nothing(store):
    data, expected = of(store).read_bytes(), counted(store)
    for size in range(0, len(data), 7):
        of(store).write_bytes(data[:size])
        assert Store.open(store.root).progress() == expected
        assert of(store).read_bytes() == data  # and it is whole again


def test_no_damaged_byte_changes_anything(store):
    data, expected = of(store).read_bytes(), counted(store)
    for place, mask in itertools.product(range(0, len(data), 5), (0x01, 0x80)):
        of(store).write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
        assert Store.open(store.root).progress() == expected, place


FORGERIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "of another run": lambda held: held.update(run_id="0" * 32, episodes=1),
    "of another version": lambda held: held.update(version=snapshot.VERSION + 1, episodes=1),
    "of commits to come": lambda held: held.update(commits=COMMITS + 50, episodes=1),
    "of fewer commits than it counted": lambda held: held.update(commits=10, episodes=1),
    "of another newest commit": lambda held: held.update(newest_crc32c=held["newest_crc32c"] ^ 1, episodes=1),
    "of no commit": lambda held: held.update(commits=0, episodes=1),
    "of less than none": lambda held: held.update(commits=-1, episodes=1),
    "of other streams": lambda held: held.update(committed=[1] * (STREAMS + 1), episodes=1),
    "without a key": lambda held: held.pop("kept"),
    "with a list for a mapping": lambda held: held.update(kept=[1, 2], episodes=1),
    "with a word for a number": lambda held: held.update(commits="many", episodes=1),
    "with a number for a list": lambda held: held.update(committed=3, episodes=1),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_of_one_that_is_not_of_this_log_nothing_is_taken(store, forgery):
    data, expected = of(store).read_bytes(), counted(store)
    of(store).write_bytes(resealed(data, FORGERIES[forgery]))
    assert Store.open(store.root).progress() == expected
    assert of(store).read_bytes() == data  # it was made anew


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"{{}}", b'{"snapshot":{}}', b"\xff" * 99, b"[" * 9999])
def test_what_is_no_snapshot_at_all_changes_nothing(store, data):
    of(store).write_bytes(data)
    assert Store.open(store.root).progress() == counted(store)


def test_one_of_a_log_that_went_another_way_is_not_taken(store, tmp_path):
    """Two drivers carried on two copies of a store, and then the snapshot of one came to the other."""
    other = Store.open(shutil.copytree(store.root, tmp_path / "other"))
    for one, worker in ((store, "here:1"), (other, "there:1")):
        one.lock()
        for number in range(COMMITS, COMMITS + 9):
            one.commit([record | {"worker": worker} for record in commit(number)])
        one.commit([{"kind": "budget", "env_steps": len(worker), "options": {}}])
        one.unlock()
    shutil.copy(of(other), of(store))
    assert Store.open(store.root).budget()["env_steps"] == len("here:1")


def test_a_run_put_in_the_place_of_another_is_not_mixed_with_it(store, tmp_path):
    store.progress()
    shutil.rmtree(store.root)
    shutil.copytree(made(tmp_path / "other", commits=3).root, store.root)
    assert store.progress().fragments == 3


def test_who_has_to_be_certain_does_not_believe_one_that_was_forged_well(tmp_path):
    """Whoever may write to a store can make a snapshot of false counts; the digest, and drivers, read the log."""
    run = start(tmp_path / "run").wait()
    digest, right = run.store.digest(), run.store.whole()[0]
    false = {**right.to_json(), "kept": {}, "episodes": 1, "committed": [0] * len(right.committed)}
    forged = Progress.from_json(json.loads(json.dumps(false)))
    body = json.dumps({"version": snapshot.VERSION, "run_id": run.store.run_id, **forged.to_json()}).encode()
    of(run.store).write_bytes(b'{"crc32c":"%08x","snapshot":%s}\n' % (crc32c(body), body))
    deceived = Store.open(run.store.root)
    assert deceived.progress() == forged
    assert deceived.digest() == digest
    assert daskrl.reproduce(deceived, 5).differs == ()
    progress = deceived.lock()
    assert progress.committed == right.committed
    deceived.unlock()


def test_damage_that_a_snapshot_covers_is_found_by_who_reads_the_log(store):
    path = Path(store.log.where(5))
    path.write_bytes(path.read_bytes().replace(b"host:1", b"host:2"))
    assert Store.open(store.root).summary()["fragments"] == COMMITS
    for ask in (store.digest, store.lock, store.fragments):
        with pytest.raises(DamagedError, match="00000005"):
            ask()


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(30, "read-only"), StoreFullError(28, "full")])
def test_a_reader_that_may_not_write_reads(store, monkeypatch, error):
    def refuse(*_: Any) -> None:
        raise error

    of(store).unlink()
    monkeypatch.setattr(Posix, "put", refuse)
    assert Store.open(store.root).summary()["fragments"] == COMMITS
    assert not of(store).exists()


def test_readers_and_a_driver_write_at_once_and_each_reads_what_was_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "WORTH", 1)  # everybody writes, all the time
    store = made(tmp_path / "run", commits=2)
    expected = {n + 1: sum(number % 3 for number in range(n)) for n in range(COMMITS + 1)}
    store.lock()

    def look(_: int) -> list[tuple[int, int]]:
        found = [Store.open(store.root).progress() for _ in range(20)]
        return [(progress.commits, progress.episodes) for progress in found]

    with ThreadPoolExecutor(4) as threads:
        looks = threads.map(look, range(4))
        for number in range(2, COMMITS):
            store.commit(commit(number))
            store.progress()
        for seen in looks:
            assert all(expected[commits] == episodes for commits, episodes in seen)
            assert [commits for commits, _ in seen] == sorted(commits for commits, _ in seen)
    store.unlock()
    assert Store.open(store.root).progress() == counted(store)
