"""Files of a store that a commit record names with their size and CRC-32C."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import google_crc32c

from daskrl.errors import DamagedError
from daskrl.records import Array
from daskrl.store.late import content, patiently
from daskrl.store.storage import Storage

EMPTY_GROUP = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()
"""The ``zarr.json`` of a folder that holds no arrays: without it zarr warns of the folder."""


def crc32c(data: bytes | Array) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    return int(google_crc32c.value(data))


def write_checked(storage: Storage, name: str, data: bytes) -> list[Any]:
    """Write a file of the store and return ``[name, nbytes, crc32c]`` for its commit record."""
    storage.put(name, data)
    return [name, len(data), crc32c(data)]


def read_checked(storage: Storage, written: Sequence[Any], patience: float = 0.0) -> bytes:
    """Read a file that `write_checked` wrote; raises `DamagedError` naming it."""
    name, nbytes, crc = written
    where = storage.where(name)
    data = patiently(lambda: content(storage, name, where, nbytes=nbytes), storage, name, patience)
    if len(data) != nbytes or crc32c(data) != crc:
        raise DamagedError(f"{where} is not the file that was committed: size or CRC-32C differs.")
    return data
