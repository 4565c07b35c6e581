"""The commit log: the only truth about what a store holds.

A segment is one file ``.commits/00000012.json``: ``{"crc32c":"<8 hex digits>","records":[...]}``. The checksum
covers the bytes from the first ``[`` to the last ``]``. Only the driver appends; it links the finished file to
its name, which fails when the name is taken, so two drivers can never both commit segment 12. Where a file system
has no hard links, the driver that makes an empty file beside it, the claim, renames the finished one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from daskrl.errors import DamagedError, StoreError, StoreFullError, StoreLockedError
from daskrl.records import Record
from daskrl.store.columns import FULL, crc32c
from daskrl.store.late import LateError, content, patiently

# Of link() where there are no hard links: FAT and exFAT, many FUSE file systems, some of object stores.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class CommitLog:
    """Append to and read the segments of one store.

    Parameters
    ----------
    root : the store's directory.
    patience : seconds to wait for a segment that is not seen yet; see `daskrl.store.late`.
    """

    def __init__(self, root: Path, patience: float = 0.0) -> None:
        self.root, self.patience = root, patience
        self.directory = root / ".commits"

    def path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.json"

    def head(self) -> int:
        """How many segments there are. Lists the directory: for drivers and readers, not for tasks."""
        names = (name.removesuffix(".json") for name in os.listdir(self.directory) if name.endswith(".json"))
        numbers = sorted(int(name) for name in names if name.isdecimal())
        if numbers != list(range(len(numbers))):
            missing = next(i for i, n in enumerate([*numbers, -1]) if i != n)
            raise DamagedError(f"{self.path(missing)} is missing, yet later commits exist.")
        return len(numbers)

    def read(self, number: int) -> list[Record]:
        """The records of one segment.

        Raises
        ------
        DamagedError
            The file is missing or fails its checksum. Names the file.
        """
        path = self.path(number)
        missing = f"is missing: {number + 1} commits were made."

        def look() -> tuple[bytes, int, list[Record]]:
            data = content(path, str(path), missing)
            body = data[data.find(b"[") : data.rfind(b"]") + 1]
            try:
                return body, int(json.loads(data)["crc32c"], 16), json.loads(body)
            except (ValueError, KeyError, TypeError):
                raise LateError(f"{path} is not a commit: it cannot be read as JSON.") from None

        body, expected, records = patiently(look, path, self.patience)
        if crc32c(body) != expected:
            raise DamagedError(f"{path} fails its CRC-32C.")
        return records

    def forwards(self, start: int = 0, head: int | None = None) -> Iterator[Record]:
        """Every record from segment ``start`` to ``head`` (default: all there are), oldest first."""
        for number in range(start, self.head() if head is None else head):
            yield from self.read(number)

    def backwards(self, head: int) -> Iterator[Record]:
        """Every record before segment ``head``, newest segment first."""
        for number in reversed(range(head)):
            yield from reversed(self.read(number))

    def append(self, number: int, records: Sequence[Record]) -> None:
        """Commit some records as segment ``number``, all of them or none.

        Raises
        ------
        StoreLockedError
            Another driver committed this segment.
        """
        body = json.dumps(records, separators=(",", ":"), allow_nan=True).encode()
        data = b'{"crc32c":"%08x","records":%s}\n' % (crc32c(body), body)
        path = self.path(number)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.write_bytes(data)
            _name(partial, path)
        except FileExistsError:
            raise StoreLockedError(
                f"another driver committed {path}. This one stops; nothing is lost. Type: daskrl info {self.root}"
            ) from None
        except OSError as error:
            if error.errno in FULL:
                raise StoreFullError(
                    error.errno,
                    f"cannot commit to {self.directory}: {os.strerror(error.errno)}. Everything committed so "
                    f"far is kept; make room and type: daskrl resume {self.root}",
                ) from error
            raise
        finally:
            partial.unlink(missing_ok=True)


def _name(partial: Path, path: Path) -> None:
    """Give a finished file its name; raise `FileExistsError` where that is taken."""
    try:
        os.link(partial, path)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    # A rename would take the name from another driver's file. So only who holds the claim may look and rename; one that
    # was left by a killed driver is removed by the next (`Store.lock`).
    claim = path.with_name(f".{path.name}.claim.partial")
    os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
        os.replace(partial, path)
    finally:
        claim.unlink(missing_ok=True)


class DriverLock:
    """Held by the one driver of a store while it lives; the kernel releases it when the process dies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / ".commits" / "driver.lock"
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        StoreLockedError
            Another process holds it. Names the process.
        StoreFullError
            The disk is full.
        StoreError
            The file system has no locks.
        """
        try:
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115  kept open: closing releases the lock
            try:
                self._lock(file)
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            except BaseException:
                file.close()
                raise
        except OSError as error:
            if error.errno not in FULL:
                raise
            why = os.strerror(error.errno)
            raise StoreFullError(
                error.errno,
                f"cannot write {self.path}: {why}. Everything committed so far is kept; make room and type: "
                f"daskrl resume {self.root}",
            ) from error
        self._file = file

    def _lock(self, file: TextIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise StoreLockedError(
                    f"{self.root} is being written by {holder}. A store has one driver at a time; stop that "
                    "one (its run can be resumed) or use another store."
                ) from None
            raise StoreError(
                f"cannot lock {self.path}: {error.strerror}. A store needs a file system with locks (flock), so that "
                "it has one driver at a time. Mount this one with them (Lustre: the option flock; NFS: without the "
                "option nolock), or choose a directory elsewhere."
            ) from error

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
