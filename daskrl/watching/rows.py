"""A file of rows, CSV, that several processes may append to one after the other: whole rows only."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence

from daskrl.errors import ConfigError


class RowFile:
    """A CSV file that rows are appended to, whole ones only.

    Attributes
    ----------
    columns : of the file; those of one that is there already, if all of them are known.
    rows : that were there.
    """

    def __init__(self, path: str, columns: Sequence[str]) -> None:
        self.path, self.columns, self.rows = path, columns, list[dict[str, str]]()
        self._torn_at: int | None = None
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "ab+") as file:
            file.seek(0)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            header = self._line(columns)
            if not whole and header.encode().startswith(text):  # new, or cut off in its first line
                file.truncate(0)
                file.write(header.encode())
                return
            read = csv.DictReader(io.StringIO(whole.decode(), newline=""))
            if not read.fieldnames or not {"env_steps", "weights_version"} <= {*read.fieldnames} <= {*columns}:
                found = whole.split(b"\n", 1)[0].decode(errors="replace")
                raise ConfigError(f"expected the columns {header.strip()}, got {found[:200]!r}. Choose another file.")
            self.columns, self.rows = read.fieldnames, list(read)
            file.truncate(len(whole))

    def append(self, values: Mapping[str, object]) -> None:
        """Add a row. What an earlier one left that could not be written whole goes first."""
        if self._torn_at is not None:
            os.truncate(self.path, self._torn_at)
            self._torn_at = None
        row = self._line([values.get(name, "") for name in self.columns]).encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            end = os.fstat(file).st_size
            self._torn_at = end
            while row:
                row = row[os.write(file, row) :]
            self._torn_at = None
        finally:
            os.close(file)

    def _line(self, values: Sequence[object]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue()
