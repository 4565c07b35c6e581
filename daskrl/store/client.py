"""Asking an object store: a client of one place, what its server said in words, and several requests at once.

Credentials come from the environment of each process, or from a provider that ``DASKRL_CREDENTIALS`` names; they are in
no value that is pickled or stored.
"""

from __future__ import annotations

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
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from daskrl import extras
from daskrl.errors import ConfigError, StoreUnreachableError
from daskrl.store.storage import Data, Tag

T = TypeVar("T")
A = TypeVar("A")

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
_LOG = logging.getLogger("daskrl")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
_REFUSED = re.compile(r"status code: 40[13]\b")
# Without credentials obstore asks the machine for its role, at an address that clouds alone have.
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal")
_SAYS = (re.compile(r"<Message>(.*?)</Message>", re.S), re.compile(r"status code: (\d+[^:\n<]*)"))


class Asked(Protocol):
    """A place that has a client. ``str()`` of it is what messages call it."""

    @property
    def url(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def settings(self) -> tuple[tuple[str, str], ...]: ...


class Client:
    """obstore's client of one place, made once a process: that takes 40 ms."""

    def __init__(self, storage: Asked, settings: Mapping[str, str]) -> None:
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

    def write_file(self, key: str, file: IO[bytes]) -> None:
        file.seek(0)
        self._obstore.put(self.store, key, file)

    def head(self, key: str) -> tuple[int, Tag]:
        """Size and tag."""
        found = self._obstore.head(self.store, key)
        return int(found["size"]), _tag(found)

    def read_part(self, key: str, start: int, end: int, tag: Tag) -> tuple[bytes, Tag]:
        """Some bytes of the object, which is to be the one with that tag, and the tag that it has."""
        wanted: Any = {"range": (start, end), **({"if_match": tag["e_tag"]} if "e_tag" in tag else {})}
        found = self._obstore.get(self.store, key, options=wanted)
        return bytes(found.bytes()), _tag(found.meta)

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

    def level(self, begins: str) -> tuple[list[str], list[str]]:
        """What follows ``begins``, up to the next ``/``, in keys that begin with it: folders and objects, sorted."""
        found = self._obstore.list_with_delimiter(self.store, begins.rstrip("/") or None)
        folders = (path.removeprefix(begins) for path in found["common_prefixes"])
        return sorted(folders), sorted(meta["path"].removeprefix(begins) for meta in found["objects"])

    def ask(self, storage: Asked, request: Callable[[], T]) -> T:
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

    def _given_up(self, storage: Asked, error: Exception, waited: float = 0.0) -> StoreUnreachableError:
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


_CLIENTS: dict[Any, Client] = {}
_CLIENTS_LOCK = threading.Lock()


def client_of(storage: Asked) -> Client:
    settings = settings_of(storage)
    key = (storage.url, tuple(sorted(settings.items())))
    with _CLIENTS_LOCK:
        if key not in _CLIENTS:
            _CLIENTS[key] = Client(storage, settings)
        return _CLIENTS[key]


def _forget(client: Client) -> None:
    with _CLIENTS_LOCK:
        for key in [key for key, other in _CLIENTS.items() if other is client]:
            del _CLIENTS[key]


def settings_of(storage: Asked) -> dict[str, str]:
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


def in_order(do: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
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


def again() -> Iterator[None]:
    """Until a server that has been asked has made up its mind: it took neither our object nor another's."""
    began, pause = time.monotonic(), _FIRST_PAUSE
    while time.monotonic() - began < OUTAGE:
        yield
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
