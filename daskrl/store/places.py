"""Where a store lies, by its path or URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.store.objects import SCHEMES, Objects
from daskrl.store.packed import SUFFIX, Packed, run_id_in
from daskrl.store.posix import Posix
from daskrl.store.storage import Packable, Storage

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_COLLAPSED = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")


Place = str | os.PathLike[str] | Storage
"""A directory, or a URL; of a packed run also that of its pack."""


def place(path: Place) -> Storage:
    """The place of a path, of a URL (``s3://``, ``gs://``, ``az://``, ``memory://``, ``file://``), or itself.

    Raises
    ------
    ConfigError
        It is none of them.
    """
    if isinstance(path, Storage):
        return path
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ConfigError(
            f"store: expected the directory of a run's store, or a URL like s3://BUCKET/PREFIX, got {path!r:.200}."
        )
    if _COLLAPSED.match(text):
        raise ConfigError(f"store: {text!r} was a URL before it was made a path. Give the URL as text.")
    if not (found := _URL.match(text)):
        return Posix(Path(text).absolute())
    scheme = found[1].lower()
    if scheme == "file":
        return Posix(Path(unquote(urlsplit(text).path)).absolute())
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(f"store: expected a directory, or a URL that begins with one of {known}; got {scheme}://.")
    return Objects.of(text)


def found(path: Place) -> Storage:
    """Where the run of a path lies: there, or packed beside; `place` where there is none.

    A path that ends in ``.zip`` is that of a pack, unless a store of such a name is there.
    """
    storage = place(path)
    if not isinstance(storage, Packable) or storage.holds_store():
        return storage
    named = unpacked(path)
    pack = Packed(storage if named is None else named)
    return pack if pack.there() and (named is not None or pack.holds_store()) else storage


def unpacked(path: Place) -> Packable | None:
    """The place of the directory of a pack's path; None where it is not one's."""
    if isinstance(path, Storage):
        return path.base if isinstance(path, Packed) else None
    name = os.fspath(path)
    base = place(name.removesuffix(SUFFIX)) if name.endswith(SUFFIX) else None
    return base if isinstance(base, Packable) else None


def to_make(path: Place, overwrite: bool) -> Storage:
    """The place of a new run, with no packed run beside it.

    Raises
    ------
    StoreMismatchError
        There is a packed run, and it is not to be overwritten.
    ConfigError
        The path is that of a pack.
    """
    storage, named = place(path), unpacked(path)
    if not isinstance(storage, Packable):
        return storage
    pack = Packed(storage if named is None else named)
    if not storage.holds_store() and pack.holds_store() and not overwrite:
        raise StoreMismatchError(pack.holds_a_run())
    if named is not None and not storage.holds_store():
        raise ConfigError(
            f"store: {storage} is the name of a packed run. A run is made in a directory, and packed when it ended: "
            f"choose store={str(named)!r}."
        )
    if overwrite and pack.holds_store():
        with storage.alone():
            if run_id_in(storage) in (None, run_id_in(pack)):
                pack.remove()
    return storage
