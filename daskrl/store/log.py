"""The commit log: the only truth about what a store holds.

A segment is one object ``.commits/00000012.json``: ``{"crc32c":"<8 hex digits>","records":[...]}``. The checksum
covers the bytes from the first ``[`` to the last ``]``. Only the driver appends; its storage gives a name to one object
only, so two drivers can never both commit segment 12.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from daskrl.errors import DamagedError, StoreLockedError
from daskrl.records import Record
from daskrl.store.files import crc32c
from daskrl.store.late import LateError, content, patiently
from daskrl.store.storage import Storage


class Segment(NamedTuple):
    """What one commit says."""

    crc32c: int
    records: list[Record]


def serialised(records: Sequence[Any], mark: bytes = b"") -> tuple[bytes, int]:
    """Records as one object has them, and their checksum."""
    body = json.dumps(records, separators=(",", ":"), allow_nan=True).encode()
    crc = crc32c(body)
    return b'{"crc32c":"%08x",%s"records":%s}\n' % (crc, mark, body), crc


def parsed(data: bytes) -> Segment:
    """What such an object says; raises `ValueError`, `KeyError` or `TypeError` where it is none."""
    said = json.loads(data)
    return Segment(int(said["crc32c"], 16), list(said["records"]))


def intact(data: bytes, found: Segment) -> bool:
    """Whether the records of an object are those that were written."""
    return crc32c(data[data.find(b"[") : data.rfind(b"]") + 1]) == found.crc32c


class CommitLog:
    """Append to and read the segments of one store.

    Parameters
    ----------
    storage : where the store lies.
    patience : seconds to wait for a segment that is not seen yet; see `daskrl.store.late`.
    """

    def __init__(self, storage: Storage, patience: float = 0.0) -> None:
        self.storage, self.patience = storage, patience
        # Whoever computes the same commits the same bytes: without it a driver could take another's commit for its own.
        self._mark = f'"driver":"{uuid.uuid4().hex}",'.encode() if storage.unsure else b""

    def key(self, number: int) -> str:
        return f".commits/{number:08d}.json"

    def where(self, number: int) -> str:
        """What messages call a segment."""
        return self.storage.where(self.key(number))

    def numbers(self, start: int = 0) -> list[int]:
        """Those of the segments from ``start`` on that are there, in order."""
        after = f"{start - 1:08d}.json" if start else ""
        names = (name[:-5] for name in self.storage.names(".commits", after) if name.endswith(".json"))
        return sorted(int(name) for name in names if name.isdecimal())

    def head(self, start: int = 0) -> int:
        """How many segments there are, ``start`` of them known. It lists the folder: not for tasks.

        Raises
        ------
        DamagedError
            One behind the known ones is missing. Names the file.
        """
        numbers = self.numbers(start)
        if numbers != list(range(start, start + len(numbers))):
            missing = next(i for i, n in enumerate([*numbers, -1], start) if i != n)
            raise DamagedError(f"{self.where(missing)} is missing, yet later commits exist.")
        return start + len(numbers)

    def segment(self, number: int) -> Segment:
        """One segment.

        Raises
        ------
        DamagedError
            The file is missing or fails its checksum. Names the file.
        """
        key, where = self.key(number), self.where(number)
        missing = f"is missing: {number + 1} commits were made."

        def look() -> tuple[bytes, Segment]:
            data = content(self.storage, key, where, missing)
            try:
                return data, parsed(data)
            except (ValueError, KeyError, TypeError):
                raise LateError(f"{where} is not a commit: it cannot be read as JSON.") from None

        data, found = patiently(look, self.storage, key, self.patience)
        if not intact(data, found):
            raise DamagedError(f"{where} fails its CRC-32C.")
        return found

    def read(self, number: int) -> list[Record]:
        """The records of one segment; raises `DamagedError` as `segment` does."""
        return self.segment(number).records

    def segments(self, start: int = 0, head: int | None = None) -> Iterator[Segment]:
        """The segments from ``start`` to ``head`` (default: all there are), oldest first."""
        return self.storage.at_once(self.segment, range(start, self.head(start) if head is None else head))

    def forwards(self, start: int = 0, head: int | None = None) -> Iterator[Record]:
        """Every record from segment ``start`` to ``head`` (default: all there are), oldest first."""
        for segment in self.segments(start, head):
            yield from segment.records

    def since(self, start: int) -> Iterator[list[Record]]:
        """The segments from ``start`` on, until there is none."""
        # One after the other: a listing while commits are added may have a later one without an earlier one.
        while self.storage.exists(self.key(start)):
            yield self.read(start)
            start += 1

    def backwards(self, head: int) -> Iterator[Record]:
        """Every record before segment ``head``, newest segment first."""
        for records in self.storage.at_once(self.read, reversed(range(head))):
            yield from reversed(records)

    def append(self, number: int, records: Sequence[Record]) -> Segment:
        """Commit some records as segment ``number``, all of them or none.

        Raises
        ------
        StoreLockedError
            Another driver committed this segment.
        """
        data, crc = serialised(records, self._mark)
        try:
            self.storage.put_new(self.key(number), data)
        except FileExistsError:
            raise StoreLockedError(
                f"another driver committed {self.where(number)}. This one stops; nothing is lost. Type: daskrl info "
                f"{self.storage}"
            ) from None
        return Segment(crc, list(records))
