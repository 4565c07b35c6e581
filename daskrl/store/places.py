"""Where a store lies, by its path or URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from daskrl.errors import ConfigError
from daskrl.store.objects import SCHEMES, Objects
from daskrl.store.posix import Posix
from daskrl.store.storage import Storage

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_COLLAPSED = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)")


Place = str | os.PathLike[str] | Storage
"""A directory, or a URL."""


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
