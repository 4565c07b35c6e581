"""A store in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure, or this process' memory.

Needs ``daskrl[s3]``, which is obstore. Credentials come from the environment of each process, or from a provider that
``DASKRL_CREDENTIALS`` names; they are in no value that is pickled or stored.

An answer may be lost: the server has done what the client asked, and the client asks again. So after a refused
`put_new` or `replace` the client reads the object: if it holds the client's bytes, the first request had succeeded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from daskrl.errors import (
    ConfigError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreMismatchError,
    StoreUnreachableError,
)
from daskrl.store.client import Client, again, client_of, in_order, settings_of
from daskrl.store.lease import Lease
from daskrl.store.posix import FULL
from daskrl.store.storage import ChangedError, Data, Lock, Packable, Storage, Tag

T = TypeVar("T")
A = TypeVar("A")

SCHEMES = ("s3", "gs", "az", "memory")
_FIRST_COMMIT = ".commits/00000000.json"


@dataclass(frozen=True)
class Objects(Packable):
    """A prefix of a bucket.

    Attributes
    ----------
    url : as ``s3://bucket/prefix``.
    under : what all keys begin with, for a folder of a store.
    settings : name and value of what the environment of the process that began says of the server. In a process whose
        own environment has another value that one counts.
    """

    url: str
    under: str = ""
    settings: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    late = False
    unsure = True

    @classmethod
    def of(cls, url: str, *, bucket: bool = False) -> Objects:
        """The place of a URL.

        Parameters
        ----------
        bucket : whether it may be a whole bucket, to look below.

        Raises
        ------
        ConfigError
            It has no bucket, or has more in it than a bucket and a prefix.
        """
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ConfigError(
                f"store: expected {parts.scheme}://BUCKET/PREFIX and nothing else in the URL. Keys and tokens belong "
                "in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ...): a URL is written in logs."
            )
        path = parts.path.strip("/")
        if not parts.netloc or (not path and parts.scheme != "memory" and not bucket):
            raise ConfigError(
                f"store: expected {parts.scheme}://BUCKET/PREFIX, got {url!r}: a run has a prefix of its own."
            )
        if any(part in ("", ".", "..") for part in path.split("/")) and path:
            raise ConfigError(f"store: {url!r} has an empty part, or one of dots alone.")
        made = cls(f"{parts.scheme}://{parts.netloc}/{path}".rstrip("/"))
        return dataclasses.replace(made, settings=tuple(sorted(settings_of(made).items())))

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.url}/{self.under}".rstrip("/")

    @property
    def _client(self) -> Client:
        return client_of(self)

    # -- objects ------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes:
        client = self._client
        return client.ask(self, lambda: client.read(f"{self.under}{key}"))

    def put(self, key: str, *parts: Data) -> None:
        client, data = self._client, parts[0] if len(parts) == 1 else b"".join(parts)
        client.ask(self, lambda: client.write(f"{self.under}{key}", data))

    def put_new(self, key: str, data: bytes) -> None:
        self.put_tagged(key, data)

    def put_tagged(self, key: str, data: bytes) -> Tag:
        """As `put_new`, and its tag."""
        client = self._client
        for _ in again():
            try:
                return client.ask(self, lambda: client.write(f"{self.under}{key}", data, "create"))
            except client.refused:
                pass
            # It may be ours, and the answer was lost; or the server was busy with another's and took neither.
            with contextlib.suppress(FileNotFoundError):
                there, tag = self.tagged(key)
                if there != data:
                    raise FileExistsError(self.where(key))
                return tag
        raise StoreUnreachableError(f"{self} refuses to take {key}, and has no object of that name.")

    def tagged(self, key: str) -> tuple[bytes, Tag]:
        """An object's bytes and its tag; raises `FileNotFoundError`."""
        client = self._client
        return client.ask(self, lambda: client.read_tagged(f"{self.under}{key}"))

    def rewrite(self, key: str, data: bytes, known: dict[str, Tag]) -> None:
        try:
            if key not in known:
                try:
                    known[key] = self.tagged(key)[1]
                except FileNotFoundError:
                    known[key] = self.put_tagged(key, data)
                    return
            known[key] = self.replace(key, data, known[key])
        except (ChangedError, FileExistsError):
            raise StoreLockedError(
                f"another driver wrote {self.where(key)}. This one stops; nothing is lost. Type: daskrl info {self}"
            ) from None

    def replace(self, key: str, data: bytes, tag: Tag) -> Tag:
        """Write an object in the place of the one with that tag; raises `ChangedError`."""
        client = self._client
        for _ in again():
            try:
                return client.ask(self, lambda: client.write(f"{self.under}{key}", data, tag))
            except (*client.refused, FileNotFoundError):
                pass
            try:
                there, now = self.tagged(key)
            except FileNotFoundError:
                break
            if there == data:
                return now
            if now != tag:
                break
        raise ChangedError(self.where(key))

    def exists(self, key: str) -> bool:
        client = self._client
        try:
            client.ask(self, lambda: client.head(f"{self.under}{key}"))
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str, after: str = "") -> list[str]:
        client, begins = self._client, f"{self.under}{folder}/"
        found = client.ask(self, lambda: client.keys(begins, after))
        return [name for name in found if "/" not in name]

    def level(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of what lies in a folder, sorted: those that are a folder themselves, and objects."""
        client, begins = self._client, f"{self.under}{folder}/" if folder else self.under
        return client.ask(self, lambda: client.level(begins))

    def make_folder(self, name: str) -> None:
        """There are none."""

    def delete(self, key: str) -> None:
        client = self._client
        with contextlib.suppress(FileNotFoundError):
            client.ask(self, lambda: client.delete(f"{self.under}{key}"))

    def look_anew(self, key: str) -> None:
        """Nothing to do: an object is seen at once."""

    def at_once(self, do: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
        """Some are on their way at once, and not more than that ahead of who takes them."""
        return in_order(do, items)

    # -- a store ------------------------------------------------------------------------------------------

    def holds_store(self) -> bool:
        return self.exists(_FIRST_COMMIT)

    @contextlib.contextmanager
    def making(self, overwrite: bool) -> Iterator[Storage]:
        """A store is there when its first commit is. Who makes it holds the lease, also of one that is deleted."""
        if not overwrite and self.holds_store():
            raise StoreMismatchError(self.holds_a_run())
        lease = Lease(self)
        if not self._is_free():
            raise StoreMismatchError(f"{self} exists and is not a daskrl store. Choose another store=.")
        lease.acquire()
        try:
            if not overwrite and self.holds_store():
                raise StoreMismatchError(self.holds_a_run())
            with self.filling() as making:
                yield making
        finally:
            lease.release()

    @contextlib.contextmanager
    def filling(self) -> Iterator[Storage]:
        self.remove()
        yield _Making(self.url, self.under, self.settings)

    def _is_free(self) -> bool:
        """Whether there is nothing, a store, or what is left of one that was never finished or is being made."""
        if self.exists(_FIRST_COMMIT) or self.exists(Lease.key):
            return True
        client = self._client
        return not client.ask(self, lambda: client.keys(self.under, "", 1))

    def lock(self) -> Lock:
        return Lease(self)

    def tidy(self) -> None:
        for name in self.names(".commits"):
            if name.startswith(".") and name.endswith(".partial"):
                self.delete(f".commits/{name}")

    def folder(self, name: str) -> Storage:
        return dataclasses.replace(self, under=f"{self.under}{name}/")

    def zarr(self) -> Any:
        return _zarr(self)

    # -- packing ------------------------------------------------------------------------------------------

    def measured(self, key: str) -> tuple[int, Tag]:
        client = self._client
        return client.ask(self, lambda: client.head(f"{self.under}{key}"))

    def part(self, key: str, start: int, nbytes: int, tag: Tag) -> bytes:
        client = self._client
        if not nbytes:
            return b""
        try:
            data, found = client.ask(self, lambda: client.read_part(f"{self.under}{key}", start, start + nbytes, tag))
        except client.refused:
            raise ChangedError(self.where(key)) from None
        if found != tag:
            raise ChangedError(self.where(key))
        return data

    def aside(self) -> Objects:
        if self.under:
            return dataclasses.replace(self, under=self.under[: self.under.rfind("/", 0, -1) + 1])
        return dataclasses.replace(self, url=self.url.rpartition("/")[0])

    def keys(self) -> list[str]:
        client = self._client
        return [key for key in client.ask(self, lambda: client.keys(self.under, "")) if not key.endswith(".partial")]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The lease, also where the store is packed. It is no more than that: of a packed store nothing stays here."""
        lease = Lease(self)
        lease.acquire()
        try:
            yield
        finally:
            if self.holds_store():
                lease.release()
            else:
                lease.drop()

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[IO[bytes]]:
        """On this machine first: what is put has to be read back, checked and, where no answer comes, put again."""
        client = self._client
        try:
            with tempfile.TemporaryFile() as file:
                yield file
                file.flush()
                client.ask(self, lambda: client.write_file(f"{self.under}{key}", file))
                nbytes = file.seek(0, os.SEEK_END)
        except OSError as error:
            if error.errno not in FULL or isinstance(error, StoreError):
                raise
            raise StoreFullError(
                error.errno,
                f"cannot write in {tempfile.gettempdir()}: {os.strerror(error.errno)}. A run is packed there before "
                f"{self.where(key)} is put. Nothing was changed; make room, or set TMPDIR.",
            ) from error
        if (found := self.measured(key)[0]) != nbytes:
            raise StoreUnreachableError(f"{self.where(key)} has {found} bytes, {nbytes} were put. Type the same again.")

    def remove(self) -> None:
        self.delete(_FIRST_COMMIT)  # first: without it there is no store
        client = self._client
        left = client.ask(self, lambda: client.keys(self.under, ""))
        deque(self.at_once(self.delete, [key for key in left if key != Lease.key]), maxlen=0)

    def remove_left(self) -> None:
        if self.exists(Lease.key) and not self.holds_store():
            with self.alone():
                self.remove()

    # -- for people ---------------------------------------------------------------------------------------

    @property
    def typed(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return str(self).rpartition("/")[2]

    def beside(self, name: str) -> str:
        return name


class _Making(Objects):
    """A place where a store is made: whatever is there already was put by another process that makes one."""

    def put(self, key: str, *parts: Data) -> None:
        try:
            self.put_new(key, b"".join(parts))
        except FileExistsError:
            raise StoreLockedError(f"another process makes a run in {self}. Choose another store=.") from None


def _zarr(storage: Objects) -> Any:
    """zarr's store, read-only. Pickled it is made anew from its URL: obstore's own pickles may hold the credentials."""
    from zarr.storage import ObjectStore, StorePath

    class Readable(ObjectStore):  # type: ignore[type-arg]
        def __reduce__(self) -> Any:
            return _zarr, (storage,)

    made = Readable(storage._client.store, read_only=True)
    return StorePath(made, storage.under.rstrip("/")) if storage.under else made
