"""The commit log and the driver's lock: damage is named, and two drivers never write one store."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import daskrl
from daskrl.errors import DamagedError, StoreError, StoreFullError, StoreLockedError
from daskrl.records import Record
from daskrl.store.files import crc32c
from daskrl.store.log import CommitLog
from daskrl.store.posix import DriverLock, Posix
from tests.promise import start

RECORDS = [
    [{"kind": "budget", "env_steps": 100, "options": {"strict": True}}],
    [{"kind": "fragment", "slot": 0, "episodes": [[0, 1.5, 3]]}, {"kind": "learn", "version": 0, "loss": None}],
    [{"kind": "promise_off", "reason": 'brackets ] [ and quotes " and é in a reason'}],
]


@pytest.fixture
def log(tmp_path: Path) -> CommitLog:
    (tmp_path / ".commits").mkdir()
    made = CommitLog(Posix(tmp_path))
    for number, records in enumerate(RECORDS):
        made.append(number, records)
    return made


def test_what_was_appended_is_read_in_order_and_backwards(log):
    assert log.head() == 3
    everything = [record for records in RECORDS for record in records]  # type: ignore[attr-defined]
    assert list(log.forwards()) == everything
    assert list(log.forwards(1)) == everything[1:]
    assert list(log.forwards(0, 1)) == everything[:1]
    assert list(log.backwards(3)) == everything[::-1]
    assert list(log.backwards(1)) == everything[:1]


def test_a_segment_is_one_line_of_json_with_the_checksum_of_its_list(log):
    data = Path(log.where(1)).read_bytes()
    whole = json.loads(data)
    body = data[data.index(b"[") : data.rindex(b"]") + 1]
    assert whole["records"] == RECORDS[1]
    assert whole["crc32c"] == f"{crc32c(body):08x}"
    assert data.endswith(b"}\n")
    assert data.count(b"\n") == 1


def test_crc32c_is_the_castagnoli_polynomial():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4
    assert crc32c(bytes(32)) == 0x8A9136AA


def outcome(log: CommitLog, number: int) -> tuple[list[Record] | None, str]:
    """What a segment says, or what the error about it says."""
    try:
        return log.read(number), ""
    except DamagedError as error:
        return None, str(error)


@pytest.mark.parametrize("number", range(3))
def test_every_damaged_byte_of_a_segment_is_found_or_changes_nothing(log, number):
    path = Path(log.where(number))
    data = path.read_bytes()
    found = 0
    for place in range(len(data)):
        for flip in (0x01, 0x20, 0x80):
            damaged = bytearray(data)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            read, says = outcome(log, number)
            assert read == RECORDS[number] or str(path) in says
            found += read is None
    assert found > 2.5 * (len(data) - len('{"crc32c":"","records":}\n') - 8)


def test_a_truncated_segment_is_named_at_every_length(log):
    path = Path(log.where(1))
    data = path.read_bytes()
    for length in range(len(data) - 1):  # without the newline a segment is still whole
        path.write_bytes(data[:length])
        with pytest.raises(DamagedError, match=path.name):
            log.read(1)


def test_a_missing_segment_is_named_by_whoever_lists_or_reads_it(log):
    Path(log.where(1)).unlink()
    for ask in (log.head, lambda: list(log.forwards()), lambda: list(log.backwards(3)), lambda: log.read(1)):
        with pytest.raises(DamagedError, match=r"00000001\.json is missing"):
            ask()


def test_files_that_are_no_segments_do_not_count(log):
    for name in ("zarr.json", "driver.lock", ".00000003.json.abc.partial", "notes.json", "00000001.json.orig"):
        (log.storage.root / ".commits" / name).write_text("{}")
    assert log.head() == 3


def test_a_number_can_be_committed_once(log):
    before = Path(log.where(2)).read_bytes()
    with pytest.raises(StoreLockedError, match=r"another driver committed .*00000002\.json"):
        log.append(2, [{"kind": "learn", "version": 9}])
    assert Path(log.where(2)).read_bytes() == before
    assert log.head() == 3
    assert sorted(path.name for path in (log.storage.root / ".commits").iterdir()) == [
        f"{n:08d}.json" for n in range(3)
    ]


NO_LINKS = ["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV", "EINVAL"]


@pytest.fixture
def without_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    number = getattr(errno, request.param)

    def link(source: Any, target: Any) -> None:
        raise OSError(number, os.strerror(number), source, None, target)

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("without_links", NO_LINKS, indirect=True)
def test_a_file_system_without_hard_links_holds_a_log_and_a_number_is_committed_once(without_links, tmp_path):
    (tmp_path / ".commits").mkdir()
    log = CommitLog(Posix(tmp_path))
    for number, records in enumerate(RECORDS):
        log.append(number, records)
    assert [log.read(number) for number in range(3)] == RECORDS
    before = Path(log.where(2)).read_bytes()
    with pytest.raises(StoreLockedError, match=r"another driver committed .*00000002\.json"):
        log.append(2, [{"kind": "learn", "version": 9}])
    assert Path(log.where(2)).read_bytes() == before
    assert sorted(path.name for path in (log.storage.root / ".commits").iterdir()) == [  # type: ignore[attr-defined]
        f"{n:08d}.json" for n in range(3)
    ]


@pytest.mark.parametrize("without_links", ["EPERM"], indirect=True)
@pytest.mark.parametrize("moment", ["claims", "looks", "renames"])
def test_of_two_drivers_without_links_and_without_locks_one_commits_a_number_wherever_the_other_comes_between(
    without_links, tmp_path, monkeypatch, moment
):
    (tmp_path / ".commits").mkdir()
    mine, other = [{"kind": "learn", "version": 1}], [{"kind": "learn", "version": 2}]
    said: list[str] = []

    def come_between() -> None:
        monkeypatch.undo()
        monkeypatch.setattr(os, "link", refuse)
        try:
            CommitLog(Posix(tmp_path)).append(0, other)
        except StoreLockedError as error:
            said.append(str(error))

    def refuse(source: Any, target: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    place, name = {"claims": (os, "open"), "looks": (Path, "exists"), "renames": (os, "replace")}[moment]
    real = getattr(place, name)

    def between(*args: Any, **kwargs: Any) -> Any:
        if "json" in str(args[0]) and (moment != "claims" or "claim" in str(args[0])):
            come_between()
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, between)
    try:
        CommitLog(Posix(tmp_path)).append(0, mine)
    except StoreLockedError as error:
        said.append(str(error))
    assert len(said) == 1
    assert CommitLog(Posix(tmp_path)).read(0) == (other if moment == "claims" else mine)
    assert [path.name for path in (tmp_path / ".commits").iterdir()] == ["00000000.json"]


@pytest.mark.slow
@pytest.mark.parametrize("without_links", ["EPERM"], indirect=True)
def test_a_run_on_a_file_system_without_hard_links_is_the_same_and_goes_on_after_a_driver_died_at_a_commit(
    without_links, tmp_path
):
    run = start(tmp_path / "run")
    digest = start(tmp_path / "whole").wait().store.digest()
    for report in run:
        if report.weights_version == 3:
            break
    (
        tmp_path / "run" / ".commits" / f".{run.store.log.head():08d}.json.claim.partial"
    ).touch()  # as a killed one leaves
    assert daskrl.resume(tmp_path / "run", progress=False).wait().store.digest() == digest


def test_what_else_a_link_fails_with_is_raised_as_it_is(log, monkeypatch):
    def link(source: Any, target: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="Input/output error"):
        log.append(3, RECORDS[0])
    assert log.head() == 3


HOLDER = """
import sys
from pathlib import Path
from daskrl.store.posix import DriverLock
lock = DriverLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def holder(root: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its standard input ends, or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_who_holds_the_store(log):
    with holder(log.storage.root) as process:
        with pytest.raises(StoreLockedError, match=f"is being written by process {process.pid} on ") as caught:
            DriverLock(log.storage.root).acquire()
        assert str(log.storage.root) in str(caught.value)
        process.communicate()
    mine = DriverLock(log.storage.root)
    mine.acquire()
    mine.release()


def test_a_killed_process_no_longer_holds_the_store(log):
    with holder(log.storage.root) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    mine = DriverLock(log.storage.root)
    mine.acquire()
    mine.release()


def test_a_lock_is_held_against_the_same_process_too(log):
    first, second = DriverLock(log.storage.root), DriverLock(log.storage.root)
    first.acquire()
    with pytest.raises(StoreLockedError):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    second.release()  # twice is as good as once


def open_files(path: Path) -> int:
    """How often this process has a file open."""
    links = [entry.path for entry in os.scandir("/proc/self/fd")]
    return sum(os.path.realpath(link) == str(path.resolve()) for link in links)


def failing(number: int) -> Any:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_a_lock_that_another_has_is_said_to_be_held(log, monkeypatch, number):
    lock = DriverLock(log.storage.root)
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with pytest.raises(StoreLockedError, match="is being written by another process"):
        lock.acquire()
    assert open_files(lock.path) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EPERM])
def test_a_file_system_without_locks_is_said_to_have_none(log, monkeypatch, number):
    lock = DriverLock(log.storage.root)
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with pytest.raises(StoreError, match=rf"driver\.lock: {os.strerror(number)}\. .*Mount this one") as caught:
        lock.acquire()
    assert not isinstance(caught.value, StoreLockedError)
    assert open_files(lock.path) == 0
    monkeypatch.undo()
    lock.acquire()
    assert open_files(lock.path) == 1
    lock.release()


@pytest.mark.parametrize("call", ["ftruncate", "write"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_lock_on_a_full_disk_says_so_and_is_not_kept(log, monkeypatch, call, number):
    lock = DriverLock(log.storage.root)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing(number))
        with pytest.raises(StoreFullError, match=r"driver\.lock: .*make room and type: daskrl resume") as caught:
            lock.acquire()
    assert caught.value.errno == number
    assert open_files(lock.path) == 0
    other = DriverLock(log.storage.root)
    other.acquire()
    assert lock.path.read_text().startswith(f"process {os.getpid()} on ")
    other.release()


def test_errors_of_a_store_are_standard_exceptions_too():
    assert issubclass(DamagedError, StoreError)
    assert issubclass(DamagedError, ValueError)
    assert issubclass(StoreLockedError, BlockingIOError)
