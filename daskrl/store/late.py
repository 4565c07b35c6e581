"""Files of other nodes that are committed and not seen yet: network file systems cache what a directory holds.

NFS, by its defaults, may show a file up to a minute late. No event tells when the file appears, so a task on a worker
looks again, ever less often. It waits for files that are missing or short; a wrong checksum is damage at once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from daskrl.errors import DamagedError
from daskrl.store.storage import Storage

T = TypeVar("T")

PATIENCE = 60.0  # seconds: acdirmax of NFS
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 2.0


class LateError(DamagedError):
    """A file is missing or short. Only within `patiently`: whoever calls that sees `DamagedError`."""


def content(
    storage: Storage, key: str, where: str, missing: str = "is committed but missing.", nbytes: int | None = None
) -> bytes:
    """An object's bytes; `LateError` where it is missing, or shorter than ``nbytes``. Messages call it ``where``."""
    try:
        data = storage.get(key)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
        raise LateError(f"{where} {missing}") from None
    if nbytes is not None and len(data) < nbytes:
        raise LateError(f"{where} has {len(data)} bytes, {nbytes} were committed.")
    return data


def patiently(look: Callable[[], T], storage: Storage, key: str, patience: float) -> T:
    """What ``look`` returns, called again while it raises `LateError`.

    Parameters
    ----------
    storage, key : the object it looks at.
    patience : seconds to go on for; 0 looks once.

    Raises
    ------
    DamagedError
        What it raised last.
    """
    began, pause = time.monotonic(), _FIRST_PAUSE
    while True:
        try:
            return look()
        except LateError as error:
            if time.monotonic() - began >= patience:
                waited = f" It was waited for, {patience:.0f} s." if patience else ""
                raise DamagedError(f"{error}{waited}") from None
        pause_for(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
        storage.look_anew(key)


def pause_for(seconds: float) -> None:
    time.sleep(seconds)
