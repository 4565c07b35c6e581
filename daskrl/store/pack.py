"""Packing a store into one object, and unpacking it; see `daskrl.store.packed`."""

from __future__ import annotations

import os
import zipfile
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

from daskrl.errors import DamagedError, StoreError, StoreFullError, StoreMismatchError
from daskrl.names import suggests
from daskrl.records import ReadFragment
from daskrl.store import late
from daskrl.store.columns import SUFFIX
from daskrl.store.files import crc32c
from daskrl.store.lease import Lease
from daskrl.store.packed import Packed, left, run_id_in
from daskrl.store.places import found
from daskrl.store.posix import FULL, DriverLock
from daskrl.store.storage import Packable
from daskrl.store.store import Store

_LEFT_OUT = (Lease.key, DriverLock.key)
_FIRST_COMMIT = ".commits/00000000.json"
_TIME = (1980, 1, 1, 0, 0, 0)  # of every member, the first that a ZIP can say: the same run gives the same bytes
_MODE = 0o100644 << 16


@suggests
def pack(store: Any) -> Store:
    """Pack a run into one file, ``PATH.zip`` beside its directory, and remove the directory.

    The run opens, is evaluated and analysed as before, by the path it had as well as by that of the file; to go on with
    it, `daskrl.resume` and ``train(resume=True)`` unpack it first. The file is an uncompressed ZIP that zarr's
    ``ZipStore`` reads. A store in an object store is packed into one object. A run that is packed already is left so.

    Every file that was committed is checked on the way, and the directory goes only when the pack is whole: whoever is
    killed on the way leaves a run that opens.

    Parameters
    ----------
    store : path or URL, `Store` or `Run`. A `Store` that is given reads from the pack afterwards, others that were
        opened before have to be opened again.

    Returns
    -------
    The packed store.

    Raises
    ------
    StoreLockedError
        The run has a driver. Names the process.
    DamagedError
        A file that was committed is missing or damaged; the directory stays as it is.
    StoreFullError
        There is no room for the pack; so it does.
    StoreMismatchError
        No run is there, or there is another thing of the pack's name.
    """
    opened = where_now(store)
    storage = opened.storage
    if isinstance(storage, Packed):
        storage.base.remove_left()
        return opened
    base = _packable(opened)
    target = Packed(base)
    with base.alone():
        if target.there() and run_id_in(target) != opened.run_id:
            raise StoreMismatchError(f"{target} exists and is not this run. Move it away, then pack {base} again.")
        with target.parent.writing(target.key) as file:
            _write(file, opened, base)
        base.remove()
    opened.lie_in(target)
    return opened


@suggests
def unpack(store: Any) -> Store:
    """Have the directory of a packed run again, and remove the pack. A run that is not packed is left so.

    Parameters
    ----------
    store : path or URL, of the run or of its pack; `Store` or `Run`, as of `pack`.

    Returns
    -------
    The store.

    Raises
    ------
    StoreLockedError
        Another process unpacks it.
    DamagedError
        The pack is damaged; it stays as it is.
    StoreFullError
        There is no room for the directory; so it does.
    """
    opened = where_now(store)
    storage = opened.storage
    if not isinstance(storage, Packed):
        if (pack := left(storage, opened.run_id)) is not None:
            with pack.base.alone():
                pack.remove()
        return opened
    base = storage.base
    with base.alone():
        storage = found(base)  # another process may have unpacked it, and packed it again
        if isinstance(storage, Packed):
            try:
                storage.check()
                with base.filling() as filling:
                    rest = [key for key in storage.members() if key != _FIRST_COMMIT]
                    deque(base.at_once(lambda key: filling.put(key, storage.get(key)), rest), maxlen=0)
                    filling.put(_FIRST_COMMIT, storage.get(_FIRST_COMMIT))
            except OSError as error:
                if error.errno not in FULL or isinstance(error, StoreError):
                    raise
                raise StoreFullError(
                    error.errno,
                    f"cannot unpack {storage}: {os.strerror(error.errno)}. It stays packed; make room and try again.",
                ) from error
            storage.remove()
            base.remove_left()
    opened.lie_in(base)
    return opened


def where_now(store: Any) -> Store:
    """The store where it lies now: it may have been packed, or unpacked, since it was opened.

    Raises
    ------
    StoreMismatchError
        No run is there, or another one.
    """
    store = getattr(store, "store", store)
    if not isinstance(store, Store):
        return Store.open(store)
    storage = store.storage.base if isinstance(store.storage, Packed) else store.storage
    now = Store.open(storage)
    if now.run_id != store.run_id:
        raise StoreMismatchError(f"{storage} holds another run now. Open it again.")
    if now.storage != store.storage:
        store.lie_in(now.storage)
    return store


def _packable(store: Store) -> Packable:
    if not isinstance(store.storage, Packable):
        raise StoreError(f"{store.storage} is of a kind that is not packed: expected a directory, or an object store.")
    return store.storage


def _write(file: IO[bytes], store: Store, base: Packable) -> None:
    """Write the members, in the order of their keys, and see that all can be read back."""
    committed = dict(_committed(store))
    keys = sorted({*base.keys(), *committed} - {*_LEFT_OUT})

    def read(key: str) -> bytes:
        if key not in committed:
            return base.get(key)
        (nbytes, crc, suffix), where = committed[key], base.where(key)
        patience = late.PATIENCE if base.late else 0.0  # a listing may not have what other nodes wrote just now
        data = late.patiently(lambda: late.content(base, key, where, nbytes=nbytes), base, key, patience)
        if len(data) != nbytes or crc32c(data[: nbytes - suffix]) != crc:
            raise DamagedError(f"{where} is not what was committed: size or CRC-32C differs. Nothing was packed.")
        return data

    with zipfile.ZipFile(file, "w") as made:
        for key, data in zip(keys, base.at_once(read, keys), strict=True):
            member = zipfile.ZipInfo(key, _TIME)
            member.create_system, member.external_attr = 3, _MODE
            made.writestr(member, data, zipfile.ZIP_STORED)
    with zipfile.ZipFile(file) as made:
        if made.namelist() != keys or (bad := made.testzip()) is not None:
            raise DamagedError(f"{base} was packed, but cannot be read back ({bad}). Nothing was changed.")


def _committed(store: Store) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """The key of each file that the log names and that must be there; its size, CRC-32C, and bytes not covered by that.

    The checksum of a chunk is its own last bytes.
    """
    progress, fragments = store.whole()
    named = list(progress.kept.values())
    for record in store.log.read(0):
        if record["kind"] == "init":
            named += [written for written in (record["arrays"], record["replay"]) if written is not None]
    for key, nbytes, crc in named:
        yield key, (nbytes, crc, 0)
    first = [record for round_ in store.layout.first_replay() for record in round_]
    begun: list[tuple[str, ReadFragment]] = [*(("", record) for record in fragments), *((".init/", r) for r in first)]
    for folder, fragment in begun:
        for name, (nbytes, crc) in fragment["columns"].items():
            if nbytes:
                yield f"{folder}{name}/{store.columns[name].chunk_name(fragment['slot'])}", (nbytes, crc, SUFFIX)
