"""A store in a directory: files, hard links, renames and flock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import socket
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from daskrl.errors import StoreError, StoreFullError, StoreLockedError, StoreMismatchError
from daskrl.store.storage import ChangedError, Data, Lock, Packable, Storage, Tag

# Of link() where there are no hard links: FAT and exFAT, many FUSE file systems, some of object stores.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)
_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk without room, or of a quota used up
# In the names of files being written: processes on other machines may write the same file.
_PROCESS, _COUNTER = uuid.uuid4().hex[:12], itertools.count()


@dataclass(frozen=True)
class Posix(Packable):
    """A directory, by its absolute path."""

    root: Path

    late = True
    unsure = False

    def __str__(self) -> str:
        return str(self.root)

    def get(self, key: str) -> bytes:
        with open(f"{self.root}/{key}", "rb", buffering=0) as file:
            return file.read()

    def put(self, key: str, *parts: Data) -> None:
        write_atomic(f"{self.root}/{key}", *parts)

    def put_new(self, key: str, data: bytes) -> None:
        path = self.root / key
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.write_bytes(data)
            _name(partial, path)
        except OSError as error:
            if error.errno in FULL:
                raise StoreFullError(
                    error.errno,
                    f"cannot write in {path.parent}: {os.strerror(error.errno)}. Everything committed so far is kept; "
                    f"make room and type: daskrl resume {self.root}",
                ) from error
            raise
        finally:
            partial.unlink(missing_ok=True)

    def rewrite(self, key: str, data: bytes, known: dict[str, Tag]) -> None:
        self.put(key, data)  # who holds the flock is alone

    def exists(self, key: str) -> bool:
        return os.path.exists(f"{self.root}/{key}")

    def names(self, folder: str, after: str = "") -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.root / folder) if name > after)
        except FileNotFoundError:
            return []

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def look_anew(self, key: str) -> None:
        """Have the system ask the server for the directory again: it does where one is opened."""
        path = self.root / key
        for folder in (path.parent.parent, path.parent):
            with contextlib.suppress(OSError):
                os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))

    def holds_store(self) -> bool:
        return (self.root / ".commits").is_dir()

    @contextlib.contextmanager
    def making(self, overwrite: bool) -> Iterator[Storage]:
        """The directory appears complete or not at all: it is made beside its place, and renamed."""
        root = self.root
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            if not self.holds_store():
                raise StoreMismatchError(f"{root} exists and is not a daskrl store. Choose another store=.")
            if not overwrite:
                raise StoreMismatchError(self.holds_a_run())
            lock = DriverLock(root)
            lock.acquire()
            shutil.rmtree(root)
            lock.release()
        root.parent.mkdir(parents=True, exist_ok=True)
        with self._filled(root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")) as making:
            yield making

    @contextlib.contextmanager
    def filling(self) -> Iterator[Storage]:
        root = self.root
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StoreMismatchError(f"{root} exists and is not a daskrl store. Move it away.")
        self.remove_left()
        with self._filled(self._unpacking) as making:
            yield making

    @contextlib.contextmanager
    def _filled(self, making: Path) -> Iterator[Storage]:
        try:
            making.mkdir()
            yield _Making(making)
            if self.root.exists():
                self.root.rmdir()
            os.replace(making, self.root)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise

    def make_folder(self, name: str) -> None:
        (self.root / name).mkdir(exist_ok=True)

    def lock(self) -> Lock:
        return DriverLock(self.root)

    def tidy(self) -> None:
        for partial in self.root.glob("*/.*.partial"):  # nobody refers to them
            partial.unlink(missing_ok=True)

    def folder(self, name: str) -> Storage:
        return type(self)(self.root / name)

    # -- packing ------------------------------------------------------------------------------------------

    def measured(self, key: str) -> tuple[int, Tag]:
        found = os.stat(f"{self.root}/{key}")
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a file", f"{self.root}/{key}")
        return found.st_size, _tag(found)

    def part(self, key: str, start: int, nbytes: int, tag: Tag) -> bytes:
        with self.parts(key, tag) as part:
            return part(start, nbytes)

    @contextlib.contextmanager
    def parts(self, key: str, tag: Tag) -> Iterator[Callable[[int, int], bytes]]:
        file = os.open(f"{self.root}/{key}", os.O_RDONLY | os.O_CLOEXEC)

        def part(start: int, nbytes: int) -> bytes:
            parts = []
            while nbytes and (read := os.pread(file, nbytes, start)):
                parts.append(read)
                start, nbytes = start + len(read), nbytes - len(read)
            return parts[0] if len(parts) == 1 else b"".join(parts)

        try:
            if _tag(os.fstat(file)) != tag:
                raise ChangedError(self.where(key))
            yield part
        finally:
            os.close(file)

    def aside(self) -> Posix:
        return Posix(self.root.parent)

    def keys(self) -> list[str]:
        found = []
        for folder, _, names in os.walk(self.root, followlinks=True, onerror=_raised):
            below = os.path.relpath(folder, self.root)
            found += [name if below == "." else f"{below}/{name}" for name in names if not name.endswith(".partial")]
        return sorted(found)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The directory's lock, where it is there, and one on the pack, where that is."""
        with contextlib.ExitStack() as held:
            if self.holds_store():
                lock = DriverLock(self.root)
                lock.acquire()
                held.callback(lock.release)
            held.enter_context(_alone_with(self.root.with_name(f"{self.root.name}.zip")))
            yield

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        path = self.root / key
        partial = path.with_name(f".{path.name}.partial")  # there is one writer: who is alone
        try:
            with open(partial, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _flush(path.parent)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in FULL and not isinstance(error, StoreFullError):
                raise StoreFullError(
                    error.errno, f"cannot write {path}: {os.strerror(error.errno)}. Nothing was changed; make room."
                ) from error
            raise

    # Who is alone writes these, under names that the next one removes.

    @property
    def _gone(self) -> Path:
        return self.root.with_name(f".{self.root.name}.packed.partial")

    @property
    def _unpacking(self) -> Path:
        return self.root.with_name(f".{self.root.name}.unpacked.partial")

    def remove(self) -> None:
        self.remove_left()
        os.rename(self.root, self._gone)
        _flush(self.root.parent)
        self.remove_left()

    def remove_left(self) -> None:
        self.root.with_name(f".{self.root.name}.zip.partial").unlink(missing_ok=True)
        for folder in (self._gone, self._unpacking):
            if folder.is_symlink():  # the directory was a link to another place
                shutil.rmtree(folder.resolve(), ignore_errors=True)
                folder.unlink(missing_ok=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)

    # -- for reading, and for people ----------------------------------------------------------------------

    def zarr(self) -> Any:
        return self.root

    @property
    def typed(self) -> str:
        return os.path.relpath(self.root)

    @property
    def name(self) -> str:
        return self.root.name

    def beside(self, name: str) -> str:
        return str(self.root.with_name(name))


def _tag(found: os.stat_result) -> Tag:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _raised(error: OSError) -> None:
    raise error


def _flush(folder: Path) -> None:
    """Have a rename in a folder outlast a power failure, where the file system can."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _alone_with(pack: Path) -> Iterator[None]:
    """Hold a lock on a packed run, if there is one."""
    try:
        file = open(pack, "r+b")  # noqa: SIM115  NFS locks only what can be written
    except FileNotFoundError:
        yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(pack))
        except FileNotFoundError:
            same = False
        except OSError as error:
            if error.errno not in _HELD:
                raise
            same = False
        if not same:
            raise StoreLockedError(f"another process unpacks, packs or deletes {pack}. Try again when it is done.")
        yield


class _Making(Posix):
    """A directory that nobody knows yet: its files need not appear whole, and its folders are made as they come."""

    def put(self, key: str, *parts: Data) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(parts))


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


def write_atomic(path: Path | str, *parts: bytes | memoryview) -> None:
    """Write a file so that it has its old content or its new one, whatever happens to this process.

    Two processes may write the same path at the same time; each has a temporary file of its own.

    Parameters
    ----------
    parts : what to write, one after the other.
    """
    # os and strings, not open and Path: they cost as much again as making a small file.
    folder, name = os.path.split(path)
    partial = f"{folder}/.{name}.{os.getpid()}-{next(_COUNTER)}-{_PROCESS}.partial"
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for part in parts:
                view = memoryview(part)
                while view:  # a write may take only a part, and only the next one says why
                    view = view[os.write(file, view) :]
        finally:
            os.close(file)
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        if error.errno in FULL:
            raise StoreFullError(
                error.errno,
                f"cannot write {path}: {os.strerror(error.errno)}. Nothing committed was lost; make room and "
                "type: daskrl resume DIR",
            ) from error
        raise


class DriverLock(Lock):
    """Held by the one driver of a store while it lives; the kernel releases it when the process dies."""

    key = ".commits/driver.lock"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / self.key
        self._file: TextIO | None = None

    @property
    def held(self) -> bool:
        return self._file is not None

    @property
    def took_over(self) -> bool:
        return False  # who held it before has released it, or is dead

    def require(self) -> None:
        """Nobody takes it away."""

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
