"""Questions to a replay in SQL: its tables as DuckDB reads them, which asks for the columns and rows that it needs."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from daskrl import extras
from daskrl.analysis import arrow, scan
from daskrl.analysis.reading import Report
from daskrl.errors import ConfigError

if TYPE_CHECKING:
    import duckdb
    import pandas

Read = Callable[[Sequence[str], Any], Any]
"""Columns and a condition (an Arrow ``Expression`` or None) to a ``RecordBatchReader`` of these columns."""


def dataset(schema: Any, read: Read) -> Any:
    """A table that is read when it is asked, as a ``pyarrow.dataset.Dataset``: DuckDB, polars and others scan it.

    What is raised while it is read is in its ``failed``: who scans it makes another error of that.
    """
    arrow.imported()
    import pyarrow.dataset

    failed: list[Exception] = []

    class Scanner(pyarrow.dataset.Scanner):  # type: ignore[misc]
        def __init__(self, columns: Sequence[str] | None, condition: Any) -> None:
            self.columns, self.condition = list(schema.names if columns is None else columns), condition
            self.failed = failed

        @property
        def projected_schema(self) -> Any:
            return arrow.imported().schema([schema.field(name) for name in self.columns])

        def to_reader(self) -> Any:
            try:
                found = read(self.columns, self.condition)
                return arrow.imported().RecordBatchReader.from_batches(found.schema, self._each(found))
            except Exception as error:
                self.failed.append(error)
                raise

        def _each(self, found: Any) -> Iterator[Any]:
            try:
                yield from found
            except Exception as error:
                self.failed.append(error)
                raise

    class Asked(pyarrow.dataset.Dataset):  # type: ignore[misc]
        def __init__(self) -> None:
            self.failed = failed

        @property
        def schema(self) -> Any:
            return schema

        def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> Scanner:
            return Scanner(columns, filter)

    return Asked()


def of_transitions(table: scan.Table, report: Report, numbered: bool = False) -> Any:
    """The transitions as a dataset; ``numbered`` with the numbers of its rows."""
    of = {**table.kinds, **({scan.ROW.name: scan.ROW} if numbered else {})}

    def read(columns: Sequence[str], condition: Any) -> Any:
        return scan.reader(table, columns, table.blocks(columns, report, condition, coded=True), coded=True)

    return dataset(arrow.schema(list(of.values()), coded=True), read)


def of_table(schema: Any, make: Callable[[Collection[str]], Any]) -> Any:
    """A small table, made when it is asked for, as a dataset.

    Parameters
    ----------
    make : given names of columns, the table of these, and perhaps of others.
    """

    def read(columns: Sequence[str], condition: Any) -> Any:
        said = str(condition)  # which names columns, too
        table = make([name for name in schema.names if name in columns or name in said])
        table = table if condition is None else table.filter(condition)
        return table.select(columns).to_reader()

    return dataset(schema, read)


def connect(tables: Mapping[str, Any], memory: int, shared: bool = True) -> duckdb.DuckDBPyConnection:
    """A connection of DuckDB in which the tables are known by their names.

    Parameters
    ----------
    memory : bytes that an answer may take. DuckDB takes half of them; what it needs beyond lies in the directory for
        temporary files while it works.
    shared : whether the database is that of others, too, in which nothing can be made.
    """
    with extras.needed("analysis", "SQL needs duckdb"):
        import duckdb
    key = os.getpid(), max(32, memory // 2**21)
    with _LOCK:
        base = _OPEN.get(key) if shared else None
        if base is None:
            base = duckdb.connect(":memory:")
            spill = os.path.join(tempfile.gettempdir(), f"daskrl-{uuid.uuid4().hex}")  # DuckDB makes and removes it
            base.execute("SET temp_directory = '" + spill.replace("'", "''") + "'")
            base.execute("SET autoinstall_known_extensions = false")
            if shared:
                _OPEN[key] = base
        connection = base.cursor() if shared else base
    connection.execute(f"SET memory_limit = '{key[1]}MiB'")  # again: a query may have set another
    connection.execute("SET enable_progress_bar = false")  # it prints among what a script prints
    for name, table in tables.items():
        connection.register(name, table)  # known to this connection alone
    if shared:
        connection.execute("BEGIN TRANSACTION READ ONLY")
    return connection


# By process and memory: a database takes 50 ms to open, more than most questions. It holds no table.
_OPEN: dict[tuple[int, int], duckdb.DuckDBPyConnection] = {}
_LOCK = threading.Lock()


def answer(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Any, memory: int) -> pandas.DataFrame:
    """What DuckDB answers, as a table; raises `ConfigError` where it takes more than a quarter of the memory."""
    import pandas

    connection.execute(sql, parameters)
    chunks, taken = [], 0
    while True:
        chunk = connection.fetch_df_chunk(_VECTORS)
        chunks.append(chunk)
        taken += _nbytes(chunk)
        if taken > memory // 4:
            raise ConfigError(
                f"sql: the answer takes more than {memory // 2**22} MiB, a quarter of memory=. Ask for fewer rows or "
                "columns, or for figures of them; open Replay(..., memory=...) with more; or take it batch by batch: "
                "replay.connection().execute(SQL).to_arrow_reader()."
            )
        if not len(chunk):
            break
    return pandas.concat(chunks[:-1], ignore_index=True) if len(chunks) > 1 else chunks[0]


_VECTORS = 16  # of 2,048 rows


def _nbytes(table: pandas.DataFrame) -> int:
    taken = int(table.memory_usage(index=False).sum())
    for name in range(table.shape[1]):
        column = table.iloc[:, name]
        if column.dtype == object and len(column):  # all are about as large as the first
            value = column.iloc[0]
            taken += len(column) * (int(getattr(value, "nbytes", 0)) + sys.getsizeof(value))
    return taken


@contextlib.contextmanager
def explained(what: str, tables: Mapping[str, Any]) -> Iterator[None]:
    """Around what DuckDB does: its errors become `ConfigError`, with the tables' columns."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        _explain(what, tables, error)


def _explain(what: str, tables: Mapping[str, Any], error: Exception) -> NoReturn:
    import duckdb

    if failed := [one for table in tables.values() for one in table.failed]:
        raise failed[0] from None
    if isinstance(error, duckdb.OutOfMemoryException):
        raise ConfigError(f"{what}: {error} DuckDB may take half of memory=: open Replay(..., memory=...) with more.") \
            from error  # fmt: skip
    said = str(error).strip()
    known = "".join(f"{os.linesep}{name}: {', '.join(_named(table))}" for name, table in tables.items())
    raise ConfigError(f"{what}: {said}{os.linesep}The tables and their columns are{known}") from error


def _named(table: Any) -> list[str]:
    return [name for name in table.schema.names if name != scan.ROW.name]
