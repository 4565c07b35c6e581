"""zarr's store of any storage, for reading. It is imported with zarr, so only by who asks for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any, Protocol

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype


class Readings(Protocol):
    """What a packed store can, of `daskrl.store.packed.Packed`."""

    def get(self, key: str) -> bytes: ...
    def exists(self, key: str) -> bool: ...
    def members(self) -> list[str]: ...
    def put(self, key: str) -> None: ...
    def delete(self, key: str) -> None: ...


class Readable(Store):
    """A packed store as zarr and xarray read it; it can be pickled."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, storage: Readings) -> None:
        super().__init__(read_only=True)
        self._storage = storage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Readable) and other._storage == self._storage

    def __str__(self) -> str:
        return str(self._storage)

    def with_read_only(self, read_only: bool = False) -> Readable:
        if not read_only:
            self._storage.put("")  # says that it cannot be
        return self

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        try:
            data = await asyncio.to_thread(self._storage.get, key)
        except FileNotFoundError:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data[_slice(byte_range)])

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, wanted) for key, wanted in key_ranges]

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self._storage.exists, key)

    async def set(self, key: str, value: Buffer) -> None:
        self._storage.put(key)

    async def delete(self, key: str) -> None:
        self._storage.delete(key)

    async def list(self) -> AsyncIterator[str]:
        for key in await asyncio.to_thread(self._storage.members):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        begins, seen = f"{prefix.strip('/')}/".lstrip("/"), set[str]()
        async for key in self.list_prefix(begins):
            name = key.removeprefix(begins).partition("/")[0]
            if name not in seen:
                seen.add(name)
                yield name


def _slice(wanted: Any) -> slice:
    if isinstance(wanted, RangeByteRequest):
        return slice(wanted.start, wanted.end)
    if isinstance(wanted, OffsetByteRequest):
        return slice(wanted.offset, None)
    if isinstance(wanted, SuffixByteRequest):
        return slice(-wanted.suffix, None)
    return slice(None)
