"""A store in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure, or this process' memory.

Needs ``daskrl[s3]``, which is obstore. Credentials come from the environment of each process, or from a provider that
``DASKRL_CREDENTIALS`` names; they are in no value that is pickled or stored.

An answer may be lost: the server has done what the client asked, and the client asks again. So after a refused
`put_new` or `replace` the client reads the object: if it holds the client's bytes, the first request had succeeded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import itertools
import logging
import os
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from daskrl import extras
from daskrl.errors import ConfigError, StoreLockedError, StoreMismatchError, StoreUnreachableError
from daskrl.store.lease import Lease
from daskrl.store.storage import ChangedError, Data, Lock, Storage, Tag

T = TypeVar("T")
A = TypeVar("A")

SCHEMES = ("s3", "gs", "az", "memory")
CREDENTIALS = "DASKRL_CREDENTIALS"
OUTAGE = 300.0  # seconds for which a server may be away while a run goes on
FIRST = 10.0  # seconds for which it may be at first: the address is likely wrong
AT_ONCE = 16  # requests
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_TIMEOUT, _CONNECT = "120s", "5s"  # of one request
# What a driver's environment says of where the server is, and workers must know, too. None of them is a secret.
_FORWARDED = {
    "s3": (
        "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
        "AWS_SKIP_SIGNATURE", CREDENTIALS,
    ),
    "gs": ("GOOGLE_SKIP_SIGNATURE", CREDENTIALS),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", CREDENTIALS),
}  # fmt: skip
_FIRST_COMMIT = ".commits/00000000.json"
_LOG = logging.getLogger("daskrl")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
_REFUSED = re.compile(r"status code: 40[13]\b")
# Without credentials obstore asks the machine for its role, at an address that clouds alone have.
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal")
_SAYS = (re.compile(r"<Message>(.*?)</Message>", re.S), re.compile(r"status code: (\d+[^:\n<]*)"))


@dataclass(frozen=True)
class Objects(Storage):
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
    def of(cls, url: str) -> Objects:
        """The place of a URL.

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
        if not parts.netloc or (not path and parts.scheme != "memory"):
            raise ConfigError(
                f"store: expected {parts.scheme}://BUCKET/PREFIX, got {url!r}: a run has a prefix of its own."
            )
        if any(part in ("", ".", "..") for part in path.split("/")) and path:
            raise ConfigError(f"store: {url!r} has an empty part, or one of dots alone.")
        made = cls(f"{parts.scheme}://{parts.netloc}/{path}".rstrip("/"))
        return dataclasses.replace(made, settings=tuple(sorted(_settings(made).items())))

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.url}/{self.under}".rstrip("/")

    @property
    def _client(self) -> _Client:
        return _client(self)

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
        for _ in _again():
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
        for _ in _again():
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

    def make_folder(self, name: str) -> None:
        """There are none."""

    def delete(self, key: str) -> None:
        client = self._client
        with contextlib.suppress(FileNotFoundError):
            client.ask(self, lambda: client.delete(f"{self.under}{key}"))

    def look_anew(self, key: str) -> None:
        """Nothing to do: an object is seen at once."""

    def at_once(self, do: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
        """`AT_ONCE` are on their way at once, and not more than that ahead of who takes them."""
        return _in_order(do, items)

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
            self.delete(_FIRST_COMMIT)  # first: without it there is no store
            client = self._client
            left = client.ask(self, lambda: client.keys(self.under, ""))
            deque(self.at_once(self.delete, [key for key in left if key != lease.key]), maxlen=0)
            yield _Making(self.url, self.under, self.settings)
        finally:
            lease.release()

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

    @property
    def typed(self) -> str:
        return self.url

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


# -- asking -----------------------------------------------------------------------------------------------


class _Client:
    """obstore's client of one place, made once a process: that takes 40 ms."""

    def __init__(self, storage: Objects, settings: Mapping[str, str]) -> None:
        with extras.needed("s3", f"a store in {storage} needs obstore"):
            import obstore
            from obstore import exceptions, store
        self._obstore, self._exceptions = obstore, exceptions
        self.refused = (exceptions.AlreadyExistsError, exceptions.PreconditionError)
        self.reached = False
        if storage.scheme == "memory":
            self.store: Any = store.MemoryStore()
            return
        config = {name.lower(): value for name, value in settings.items() if name != CREDENTIALS}
        plain = any(value.startswith("http://") for value in config.values())
        given = {} if CREDENTIALS not in settings else {"credential_provider": _provider(settings[CREDENTIALS])}
        try:
            self.store = store.from_url(  # type: ignore[call-overload]
                storage.url,
                config=config,
                client_options={"timeout": _TIMEOUT, "connect_timeout": _CONNECT, "allow_http": plain},
                retry_config={"max_retries": 0},  # by `ask`
                **given,
            )
        except (exceptions.BaseError, ValueError, TypeError) as error:
            raise ConfigError(f"store: {storage} cannot be used: {_said(error)}.") from None

    def read(self, key: str) -> bytes:
        return bytes(self._obstore.get(self.store, key).bytes())

    def read_tagged(self, key: str) -> tuple[bytes, Tag]:
        found = self._obstore.get(self.store, key)
        return bytes(found.bytes()), _tag(found.meta)

    def write(self, key: str, data: Data, mode: Any = "overwrite") -> Tag:
        return _tag(self._obstore.put(self.store, key, data, mode=mode))

    def head(self, key: str) -> None:
        self._obstore.head(self.store, key)

    def delete(self, key: str) -> None:
        self._obstore.delete(self.store, key)

    def keys(self, begins: str, after: str, most: int | None = None) -> list[str]:
        """What follows ``begins`` in the keys that begin with it, sorted; ``most`` of them, or all."""
        found = self._obstore.list(
            self.store,
            begins.rstrip("/") or None,
            offset=f"{begins}{after}" if after else None,
            chunk_size=most or 1000,
        )
        keys = (meta["path"].removeprefix(begins) for page in found for meta in page)
        return sorted(itertools.islice(keys, most))

    def ask(self, storage: Objects, request: Callable[[], T]) -> T:
        """What ``request`` returns, asked again while the server does not answer.

        Raises
        ------
        StoreUnreachableError
            No bucket, no permission, or no answer.
        FileNotFoundError, obstore's AlreadyExistsError and PreconditionError
            As the server says.
        """
        exceptions = self._exceptions
        began, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                answer = request()
            except (FileNotFoundError, *self.refused) as error:
                if any(name in str(error) for name in _NO_BUCKET):
                    raise self._given_up(storage, error) from None
                self.reached = True
                if isinstance(error, FileNotFoundError):
                    raise FileNotFoundError(errno.ENOENT, _said(error), str(storage)) from None
                raise
            except exceptions.BaseError as error:
                patience = OUTAGE if self.reached else FIRST
                waited = time.monotonic() - began
                if waited >= patience or not _may_pass(error, exceptions):
                    raise self._given_up(storage, error, waited) from None
                if waited < 1 <= waited + pause:
                    _LOG.warning(
                        "%s does not answer: %s. It is asked again for %.0f s.", storage, _said(error), patience
                    )
            else:
                self.reached = True
                return answer
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _given_up(self, storage: Objects, error: Exception, waited: float = 0.0) -> StoreUnreachableError:
        """The error to raise where asking again did not help, in words; the next request has a new client."""
        _forget(self)
        text, said = str(error), _said(error)
        host = socket.gethostname()
        if any(name in text for name in _NO_BUCKET):
            bucket = urlsplit(storage.url).netloc
            return StoreUnreachableError(
                f"{storage}: there is no bucket {bucket!r} ({said}). Make it first: daskrl makes no buckets."
            )
        if any(name in text for name in _NO_CREDENTIALS):
            return StoreUnreachableError(
                f"{storage}: {host} has no credentials for it. Put them in the environment of each process, also of "
                f"workers (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ...), or name a provider in {CREDENTIALS}."
            )
        if not _may_pass(error, self._exceptions):
            return StoreUnreachableError(
                f"{storage} refuses {host}: {said}. Check the credentials in the environment of each process, what "
                "they permit, and the address of the server (AWS_ENDPOINT_URL)."
            )
        lasting = "Everything committed is kept; when the server is back, type: daskrl resume " + storage.url
        first = "Check the address of the server (AWS_ENDPOINT_URL, AWS_REGION) and the network."
        return StoreUnreachableError(
            f"{storage} does not answer {host}: {said}. It was asked for {waited:.0f} s. "
            f"{lasting if self.reached else first}"
        )


def _tag(of: Mapping[str, Any]) -> Tag:
    return {name: value for name in ("e_tag", "version") if (value := of[name]) is not None}


_CLIENTS: dict[Any, _Client] = {}
_CLIENTS_LOCK = threading.Lock()


def _client(storage: Objects) -> _Client:
    settings = _settings(storage)
    key = (storage.url, tuple(sorted(settings.items())))
    with _CLIENTS_LOCK:
        if key not in _CLIENTS:
            _CLIENTS[key] = _Client(storage, settings)
        return _CLIENTS[key]


def _forget(client: _Client) -> None:
    with _CLIENTS_LOCK:
        for key in [key for key, other in _CLIENTS.items() if other is client]:
            del _CLIENTS[key]


def _settings(storage: Objects) -> dict[str, str]:
    """Where the server is: as this process' environment says, else as that of the process which began."""
    own = {name: value for name in _FORWARDED.get(storage.scheme, ()) if (value := os.environ.get(name))}
    for name, value in own.items():
        if "@" in value or "?" in value:  # what is forwarded is pickled
            raise ConfigError(
                f"{name}: expected an address without a user, a password or a token in it. Keys belong in variables of "
                "their own (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ...)."
            )
    return {**dict(storage.settings), **own}


def _provider(name: str) -> Any:
    """What gives credentials: a callable without arguments, or a class whose instances are such."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{CREDENTIALS}: expected MODULE:NAME of what gives credentials (see obstore.auth), got {name!r}: {error}."
        ) from error
    return found() if isinstance(found, type) else found


def _may_pass(error: Exception, exceptions: Any) -> bool:
    """Whether asking again may help: not where the server says that it knows us and refuses."""
    refusals = (
        exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, exceptions.NotSupportedError,
        exceptions.InvalidPathError, exceptions.UnknownConfigurationKeyError,
    )  # fmt: skip
    text = str(error)
    return not (
        isinstance(error, refusals) or _REFUSED.search(text) or any(n in text for n in (*_NO_BUCKET, *_NO_CREDENTIALS))
    )


def _said(error: Exception) -> str:
    """The server's own words, or the first line of obstore's without the address, which may hold a signature."""
    text = str(error)
    for pattern in _SAYS:
        if found := pattern.search(text):
            return found[1].strip().rstrip(".")
    return re.sub(r"\?\S+", "", text.partition("\n")[0]).strip().rstrip(".")


_THREADS = "daskrl-store"
_POOL: list[ThreadPoolExecutor] = []


def _in_order(do: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
    """What ``do`` returns for each item, in their order, while `AT_ONCE` of them are on their way."""
    if threading.current_thread().name.startswith(_THREADS):  # they would wait for each other
        yield from map(do, items)
        return
    if not _POOL:
        _POOL.append(ThreadPoolExecutor(AT_ONCE, _THREADS))
    ahead: deque[Future[T]] = deque()
    try:
        for item in items:
            ahead.append(_POOL[0].submit(do, item))
            if len(ahead) == AT_ONCE:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        for future in ahead:
            future.cancel()


def _again() -> Iterator[None]:
    """Until a server that has been asked has made up its mind: it took neither our object nor another's."""
    began, pause = time.monotonic(), _FIRST_PAUSE
    while time.monotonic() - began < OUTAGE:
        yield
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _zarr(storage: Objects) -> Any:
    """zarr's store, read-only. Pickled it is made anew from its URL: obstore's own pickles may hold the credentials."""
    from zarr.storage import ObjectStore

    class Readable(ObjectStore):  # type: ignore[type-arg]
        def __reduce__(self) -> Any:
            return _zarr, (storage,)

    return Readable(storage._client.store, read_only=True)
