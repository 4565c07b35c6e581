"""`Storage`: the place of one store, as whole objects by key; all that a kind of place has to be able to do.

A key is ``NAME``, or ``FOLDER/NAME``; that of a fragment's chunk is ``reward/c.3.0.0``. An object that is put appears
whole or not at all. `daskrl.store.places` finds the `Storage` of a path or URL; `daskrl.testing.StorageTests` says what
each must do.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Protocol, TypeVar

Data = bytes | memoryview
Tag = Any
"""What an object is known by until it is replaced; only its own storage can read it."""

T = TypeVar("T")
A = TypeVar("A")


class ChangedError(Exception):
    """The object is not the one with that tag any more. Only for who calls `Tagged.replace`."""


class Lock(ABC):
    """The lock that the one driver of a store holds."""

    @property
    @abstractmethod
    def held(self) -> bool:
        """Whether the lock was acquired, not released, and not taken over."""

    @property
    @abstractmethod
    def took_over(self) -> bool:
        """Whether a driver had it that is believed dead: that one must find a commit which it does not know."""

    @abstractmethod
    def acquire(self) -> None:
        """Take the lock.

        Raises
        ------
        StoreLockedError
            Another driver holds it. Names the process.
        """

    @abstractmethod
    def require(self) -> None:
        """Raise `StoreLockedError` where another driver is known to have taken it over."""

    @abstractmethod
    def release(self) -> None:
        """Let another driver have it. Does nothing where it is not held."""


class Storage(ABC):
    """A place for one store. A small value that can be compared and pickled: no connection, and no secret.

    ``str(storage)`` is what people call it: a path or a URL.

    Attributes
    ----------
    late : committed objects may be seen late from other nodes (`daskrl.store.late`).
    unsure : the answer to a put may be lost, so what is given to `put_new` must be like no other driver's.
    """

    late: bool
    unsure: bool

    # -- objects ------------------------------------------------------------------------------------------

    @abstractmethod
    def get(self, key: str) -> bytes:
        """An object's bytes; raises `FileNotFoundError`."""

    @abstractmethod
    def put(self, key: str, *parts: Data) -> None:
        """Write an object, one part after the other, whatever there was."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> None:
        """Write an object that is not there; of all who try exactly one does, the others get `FileExistsError`.

        Where `unsure`, who tries again with the same bytes succeeds again.
        """

    @abstractmethod
    def rewrite(self, key: str, data: bytes, known: dict[str, Tag]) -> None:
        """Write an object that only the driver writes, again and again.

        Parameters
        ----------
        known : the driver's notes of what it wrote, by key; empty when it begins.

        Raises
        ------
        StoreLockedError
            Another driver wrote it since.
        """

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object."""

    @abstractmethod
    def names(self, folder: str, after: str = "") -> list[str]:
        """The names of the objects in a folder, sorted; those behind ``after`` alone. A folder not there is empty."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""

    @abstractmethod
    def make_folder(self, name: str) -> None:
        """Have a folder in which objects can be put, where a kind of place needs one."""

    @abstractmethod
    def look_anew(self, key: str) -> None:
        """Have what other nodes wrote be seen as soon as possible."""

    def at_once(self, do: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
        """What ``do`` returns for each item, in order. Where an answer takes long, several are waited for at once."""
        return map(do, items)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[str], bytes]]:
        """`get`, for many objects within the block: what they lie in may be kept open meanwhile. Any threads may."""
        yield self.get

    # -- a store ------------------------------------------------------------------------------------------

    @abstractmethod
    def holds_store(self) -> bool:
        """Whether a store was made here."""

    @abstractmethod
    def making(self, overwrite: bool) -> contextlib.AbstractContextManager[Storage]:
        """To make a store: what is put into it is a store here when the block ends. Its first commit is put last.

        Parameters
        ----------
        overwrite : delete the store that is there.

        Raises
        ------
        StoreMismatchError
            There is something here.
        StoreLockedError
            There is something here, and it is being written.
        """

    @abstractmethod
    def lock(self) -> Lock:
        """The lock of the store's one driver, which is not acquired yet."""

    @abstractmethod
    def tidy(self) -> None:
        """Remove what killed writers left. Called by who holds the lock."""

    @abstractmethod
    def folder(self, name: str) -> Storage:
        """A folder of this place, as a place of its own."""

    @abstractmethod
    def zarr(self) -> Any:
        """The place as zarr and xarray open it, for reading."""

    # -- for people ---------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def typed(self) -> str:
        """The place as typed on a command line."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its path."""

    @abstractmethod
    def beside(self, name: str) -> str:
        """The path of a file for people next to it; in the current directory where it is no directory itself."""

    def where(self, key: str) -> str:
        """What messages call an object."""
        return f"{self}/{key}"

    def holds_a_run(self) -> str:
        """Says that no store can be made here, as there is one."""
        return (
            f"{self} already holds a run. Type: daskrl resume {self} (or daskrl.resume), choose another store=, or "
            "pass overwrite=True to delete it."
        )


class Packable(Storage):
    """A place whose store can be packed into one object beside it, see `daskrl.store.packed`."""

    @abstractmethod
    def measured(self, key: str) -> tuple[int, Tag]:
        """An object's size in bytes and its tag; raises `FileNotFoundError`."""

    @abstractmethod
    def part(self, key: str, start: int, nbytes: int, tag: Tag) -> bytes:
        """Some of an object's bytes, fewer where it ends before.

        Raises
        ------
        FileNotFoundError
            There is no such object.
        ChangedError
            The object is not the one with that tag any more.
        """

    @contextlib.contextmanager
    def parts(self, key: str, tag: Tag) -> Iterator[Callable[[int, int], bytes]]:
        """`part` of one object, for many parts within the block: the object may be kept open. Any threads may."""
        yield lambda start, nbytes: self.part(key, start, nbytes, tag)

    @abstractmethod
    def aside(self) -> Packable:
        """The place in which this one lies: its pack is there, an object of the same name and ``.zip``."""

    @abstractmethod
    def keys(self) -> list[str]:
        """The keys of all objects here, sorted; without what is being written."""

    @abstractmethod
    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Within the block nobody else drives, packs, unpacks or overwrites the store; raises `StoreLockedError`."""

    @abstractmethod
    def writing(self, key: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file whose content is the object when the block ends without an error, whole and lasting.

        Raises
        ------
        StoreFullError
            There is no room.
        """

    @abstractmethod
    def filling(self) -> contextlib.AbstractContextManager[Storage]:
        """What is put within the block is a store here when it ends. The first commit is put last. Called `alone`.

        Raises
        ------
        StoreMismatchError
            There is something else here.
        """

    @abstractmethod
    def remove(self) -> None:
        """Remove the store here: from one moment to the next there is none. Called `alone`."""

    @abstractmethod
    def remove_left(self) -> None:
        """Remove what killed processes left that packed or unpacked. Called where the store is packed."""


class Tagged(Protocol):
    """Of a `Storage` whose objects are replaced only by who knows the newest."""

    def tagged(self, key: str) -> tuple[bytes, Tag]:
        """An object's bytes and its tag; raises `FileNotFoundError`."""

    def put_tagged(self, key: str, data: bytes) -> Tag:
        """As `Storage.put_new`."""

    def replace(self, key: str, data: bytes, tag: Tag) -> Tag:
        """Write an object in the place of the one with that tag; raises `ChangedError`."""

    def delete(self, key: str) -> None:
        """As `Storage.delete`."""

    def where(self, key: str) -> str:
        """As of `Storage`."""
