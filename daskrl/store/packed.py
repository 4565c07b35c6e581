"""A store in one object: a ZIP of what its directory held, not compressed, that is read where it lies.

``runs/abc`` is packed into ``runs/abc.zip`` beside it. Where both are, the directory counts: packing makes the pack
first, whole, and removes the directory then; unpacking has the directory first. So there is a run at any moment, the
directory is at least as new, and whoever drives it next removes a pack that was left. Format: FORMAT.md, section 11.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from daskrl.errors import DamagedError, StorePackedError
from daskrl.store.storage import ChangedError, Data, Lock, Packable, Storage, Tag

T = TypeVar("T")
A = TypeVar("A")

SUFFIX = ".zip"
_FIRST_COMMIT = ".commits/00000000.json"
_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of its name and of what follows that
_ZIP64 = 20  # bytes that a member's header may have more than the directory says of it
_END = 1 << 16  # bytes read at once: a small pack's directory of members is among them


class _Members:
    """The members of a pack, read once; pickled without them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.tag: Tag = None
        self.by_key: dict[str, zipfile.ZipInfo] | None = None
        self.folders: dict[str, list[str]] = {}

    def __reduce__(self) -> Any:
        return _Members, ()

    def take(self, found: Iterable[zipfile.ZipInfo], tag: Tag) -> dict[str, zipfile.ZipInfo]:
        by_key = {member.filename: member for member in found if not member.is_dir()}
        folders: dict[str, list[str]] = {}
        for key in sorted(by_key):
            folder, _, name = key.rpartition("/")
            folders.setdefault(folder, []).append(name)
        self.tag, self.by_key, self.folders = tag, by_key, folders
        return by_key


@dataclass(frozen=True)
class Packed(Storage):
    """A packed store, for reading. Any number of threads may.

    Attributes
    ----------
    base : where its directory was, and will be. The pack lies beside that.
    under : what the keys begin with, of a folder of the store.
    """

    base: Packable
    under: str = ""
    _members: _Members = field(default_factory=_Members, compare=False, repr=False)

    late = False
    unsure = False

    def __str__(self) -> str:
        return f"{self.base}{SUFFIX}"

    @property
    def parent(self) -> Packable:
        """The place that the pack is an object of."""
        return self.base.aside()

    @property
    def key(self) -> str:
        """The name of that object."""
        return f"{self.base.name}{SUFFIX}"

    def there(self) -> bool:
        """Whether there is an object of that name."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.parent.measured(self.key)
            return True
        return False

    # -- objects ------------------------------------------------------------------------------------------

    def _index(self, forget: Tag = None) -> tuple[dict[str, zipfile.ZipInfo], Tag]:
        """The members by key, and the tag of the object they are in; anew where it is the one to forget."""
        held = self._members
        with held.lock:
            if held.by_key is not None and (forget is None or held.tag != forget):
                return held.by_key, held.tag
            size, tag = self.parent.measured(self.key)
            try:
                with zipfile.ZipFile(_Part(self, size, tag)) as file:
                    found = file.infolist()
            except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
                raise DamagedError(f"{self} is no ZIP, or was cut: {error}") from None
            return held.take(found, tag), tag

    def get(self, key: str) -> bytes:
        forget = None
        while True:
            by_key, tag = self._index(forget)
            member = by_key.get(f"{self.under}{key}")
            if member is None:
                raise FileNotFoundError(errno.ENOENT, "not in the pack", self.where(key))
            try:
                return self._read(member, tag)
            except ChangedError:  # it was unpacked, and packed again
                forget = tag

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[str], bytes]]:
        by_key, tag = self._index()
        with contextlib.ExitStack() as stack:
            try:
                part = stack.enter_context(self.parent.parts(self.key, tag))
            except (ChangedError, FileNotFoundError):  # it was unpacked meanwhile
                yield self.get
                return

            def get(key: str) -> bytes:
                member = by_key.get(f"{self.under}{key}")
                if member is None:
                    raise FileNotFoundError(errno.ENOENT, "not in the pack", self.where(key))
                try:
                    return self._taken(member, part)
                except ChangedError:
                    return self.get(key)

            yield get

    def _read(self, member: zipfile.ZipInfo, tag: Tag) -> bytes:
        return self._taken(member, lambda start, nbytes: self.parent.part(self.key, start, nbytes, tag))

    def _taken(self, member: zipfile.ZipInfo, part: Callable[[int, int], bytes]) -> bytes:
        nbytes, where = member.file_size, self.where(member.filename.removeprefix(self.under))
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or nbytes != member.compress_size:
            raise DamagedError(f"{where} is compressed or encrypted: not packed by daskrl pack. Type: unzip {self}")
        ahead = _HEADER.size + len(member.filename.encode()) + len(member.extra) + _ZIP64
        data = part(member.header_offset, ahead + nbytes)
        signature, name, extra = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (b"", 0, 0)
        if signature != b"PK\3\4":
            raise DamagedError(f"{where} is not where the ZIP says.")
        begin = _HEADER.size + name + extra
        if (short := begin + nbytes - len(data)) > 0:
            data += part(member.header_offset + len(data), short)
        return data[begin : begin + nbytes]

    def exists(self, key: str) -> bool:
        return f"{self.under}{key}" in self._index()[0]

    def names(self, folder: str, after: str = "") -> list[str]:
        self._index()
        return [name for name in self._members.folders.get(f"{self.under}{folder}", ()) if name > after]

    def members(self) -> list[str]:
        """All keys, sorted."""
        found = self._index()[0]
        return sorted(key.removeprefix(self.under) for key in found if key.startswith(self.under))

    def look_anew(self, key: str) -> None:
        """All of it was there at once."""

    def at_once(self, do: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
        return self.parent.at_once(do, items)

    def check(self) -> None:
        """Read every member; raises `DamagedError` naming the first that fails its CRC-32."""
        by_key, _ = self._index()
        for key, good in zip(by_key, self.at_once(self._is_whole, list(by_key)), strict=True):
            if not good:
                raise DamagedError(f"{self.where(key)} fails its CRC-32.")

    def _is_whole(self, key: str) -> bool:
        by_key, tag = self._index()
        return zlib.crc32(self._read(by_key[key], tag)) == by_key[key].CRC

    # -- what cannot be done ------------------------------------------------------------------------------

    def _refuse(self) -> NoReturn:
        raise StorePackedError(
            f"{self} is a packed run: it is read, not written. To go on with its run type: daskrl resume "
            f"{self.typed}; for its directory: daskrl unpack {self.typed}"
        )

    def put(self, key: str, *parts: Data) -> None:
        self._refuse()

    def put_new(self, key: str, data: bytes) -> None:
        self._refuse()

    def rewrite(self, key: str, data: bytes, known: dict[str, Tag]) -> None:
        self._refuse()

    def delete(self, key: str) -> None:
        self._refuse()

    def make_folder(self, name: str) -> None:
        self._refuse()

    def making(self, overwrite: bool) -> contextlib.AbstractContextManager[Storage]:
        self._refuse()

    def tidy(self) -> None:
        self._refuse()

    def lock(self) -> Lock:
        return _NoLock(self._refuse)

    # -- a store ------------------------------------------------------------------------------------------

    def holds_store(self) -> bool:
        return self.there() and self.exists(_FIRST_COMMIT)

    def remove(self) -> None:
        """Delete the pack. Called by who is alone with the store."""
        self.parent.delete(self.key)

    def folder(self, name: str) -> Storage:
        return replace(self, under=f"{self.under}{name}/")

    def zarr(self) -> Any:
        from daskrl.store.zarr_reading import Readable

        return Readable(self)

    # -- for people ---------------------------------------------------------------------------------------

    @property
    def typed(self) -> str:
        return f"{self.base.typed}{SUFFIX}"

    @property
    def name(self) -> str:
        return self.base.name

    def beside(self, name: str) -> str:
        return self.base.beside(name)

    def where(self, key: str) -> str:
        return f"{self}/{self.under}{key}"


def run_id_in(storage: Storage) -> str | None:
    """Of the run in a place, packed or not, where there is one."""
    with contextlib.suppress(OSError, DamagedError, ValueError, KeyError, TypeError):
        return str(json.loads(storage.get("zarr.json"))["attributes"]["run_id"])
    return None


def left(storage: Storage, run_id: str) -> Packed | None:
    """The pack of the run that is unpacked in a place: whoever packed or unpacked was killed."""
    if not isinstance(storage, Packable):
        return None
    pack = Packed(storage)
    return pack if pack.there() and run_id_in(pack) == run_id else None


class _NoLock(Lock):
    """Of what has no driver."""

    held = False
    took_over = False

    def __init__(self, refuse: Callable[[], NoReturn]) -> None:
        self._refuse = refuse

    def acquire(self) -> None:
        self._refuse()

    def require(self) -> None:
        self._refuse()

    def release(self) -> None:
        """Nobody holds it."""


class _Part(io.RawIOBase):
    """An object as a file, for who reads its end."""

    def __init__(self, pack: Packed, size: int, tag: Tag) -> None:
        self._pack, self._size, self._tag, self._at = pack, size, tag, 0
        self._start = max(0, size - _END)
        self._end = pack.parent.part(pack.key, self._start, size - self._start, tag)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = (0, self._at, self._size)[whence] + offset
        if at < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._at = at
        return at

    def read(self, nbytes: int = -1) -> bytes:
        stop = self._size if nbytes is None or nbytes < 0 else min(self._size, self._at + nbytes)
        if stop <= self._at:
            return b""
        if self._at >= self._start:
            data = self._end[self._at - self._start : stop - self._start]
        else:
            data = self._pack.parent.part(self._pack.key, self._at, stop - self._at, self._tag)
        self._at += len(data)
        return data
