"""The transitions of a replay, read when they are asked for: as pandas, Arrow, Dask or torch have tables."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import extras
from daskrl.analysis import arrow, query, scan
from daskrl.analysis.catalog import Damage
from daskrl.analysis.reading import Report
from daskrl.analysis.rows import Block, Kind, Part
from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError, DamagedWarning
from daskrl.records import Array

if TYPE_CHECKING:
    import dask.dataframe
    import pandas
    import pyarrow
    import torch

_PARTITION = 1 << 26  # bytes of a partition of Dask, about


class Transitions:
    """Transitions that are read when they are asked for; made by `daskrl.Replay.transitions`.

    A loop over it gives blocks of rows, each a dict of arrays ``[B, ...]`` by column.

    Attributes
    ----------
    columns : names, in order.
    where : the condition in SQL, or None.
    """

    def __init__(
        self, table: scan.Table, columns: Sequence[str] | str | None, where: str | None, memory: int,
        report: Report, others: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:  # fmt: skip
        self._table, self._memory, self._report, self._others = table, memory, report, others
        self.columns, self.where = table.columns(columns), where
        self._rows: Array | None = None
        if where is not None:
            if not isinstance(where, str) or not where.strip():
                raise ConfigError(f"where: expected a condition in SQL, like 'reward > 1', got {where!r:.200}.")
            self._asked(f"SELECT _row FROM transitions WHERE false AND ({where}\n)")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Name, dtype and shape of each column."""
        of = self._table.kinds
        return tuple(of[name] for name in self.columns)

    @property
    def schema(self) -> pyarrow.Schema:
        """Arrow's, of what `to_arrow` gives."""
        return arrow.schema(self.kinds)

    def _asked(self, sql: str) -> Array:
        numbered = query.of_transitions(self._table, self._report, numbered=True)
        known = {**self._others(), "transitions": numbered}
        connection = query.connect(known, self._memory)
        with connection, query.explained("where", known):
            found = connection.execute(sql).fetchnumpy()["_row"]
            return np.sort(np.asarray(found, np.int64))

    @property
    def _picked(self) -> Array | None:
        if self.where is not None and self._rows is None:
            self._rows = self._asked(f"SELECT _row FROM transitions WHERE ({self.where}\n)")
        return self._rows

    def _blocks(self) -> Iterator[Block]:
        picked = self._picked
        if picked is None:
            return self._table.blocks(self.columns, self._report)
        return self._table.picked(self.columns, picked, self._report)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        texts = {name: np.array(found, object) for name, found in self._table.texts.items()}
        for found in self._blocks():
            values = found.values
            yield {name: texts[name][values[name]] if name in texts else values[name] for name in self.columns}

    def __len__(self) -> int:
        if self._picked is not None:
            return len(self._picked)
        if all(part.envs is None and part.episodes is None for part in self._table.parts):
            return self._table.rows
        return sum(found.count for found in self._table.blocks((), self._report))

    def head(self, rows: int = 5) -> pandas.DataFrame:
        """The first rows, as of `to_pandas`."""
        with extras.needed("analysis", "a table of transitions needs pandas"):
            import pandas
        require_integer("rows", rows := plain(rows), 0)
        found: list[Block] = []
        for block in self._blocks():
            found.append(block)
            if sum(one.count for one in found) >= rows:
                break
        return _frame(pandas, self, found).head(rows)

    def to_arrow(self) -> pyarrow.RecordBatchReader:
        """A reader of record batches, each read when it is asked for. ``.read_all()`` has all of them as a table."""
        return scan.reader(self._table, self.columns, self._blocks())

    def to_pandas(self) -> pandas.DataFrame:
        """All rows as a table, with an array in each row of a column whose values have a shape.

        Raises
        ------
        ConfigError
            They take more memory than the replay may.
        """
        with extras.needed("analysis", "a table of transitions needs pandas"):
            import pandas
        each = self._table.nbytes(self.columns) + sum(100 for kind in self.kinds if kind.shape)  # an object in each row
        count, most = len(self), self._memory // 2  # pandas copies
        if count * each > most:
            raise ConfigError(
                f"transitions: {count:,} rows of these columns take about {count * each / 2**20:,.1f} MiB, and half of "
                f"memory= is {most / 2**20:,.1f} MiB. Ask for fewer columns= or rows (where=, .at, .between, .of), use "
                "to_arrow() or to_dask(), or open Replay(..., memory=...) with more."
            )
        return _frame(pandas, self, list(self._blocks()))

    def to_dask(self, rows: int | None = None) -> dask.dataframe.DataFrame:
        """A Dask DataFrame, whose partitions are read where they are computed. A ``where=`` is asked here.

        Parameters
        ----------
        rows : of a partition, about; by default what takes 64 MiB. They are whole fragments.
        """
        with extras.needed("analysis", "a Dask DataFrame needs dask[dataframe]"):
            import dask
            import dask.dataframe
            import pandas
        if rows is not None:
            require_integer("rows", rows := plain(rows), 1)
        rows = rows or max(1, _PARTITION // max(1, self._table.nbytes(self.columns)))
        texts, table = self._table.texts, self._table
        picked, pieces, begun = self._picked, list[tuple[Part, Array | None]](), 0
        for part in table.parts:
            step = max(1, rows // part.catalog.size)
            for low in range(0, len(part.rows), step):
                some = part.only(slice(low, low + step))
                own = None
                if picked is not None:
                    own = picked[slice(*np.searchsorted(picked, [begun, begun + some.most]))] - begun
                begun += some.most
                if own is None or len(own):
                    pieces.append((some, own))
        if not pieces:
            pieces.append((table.parts[0].only(slice(0, 0)), None))
        given = {"block": table.block, "columns": self.columns}
        with dask.config.set({"dataframe.convert-string": False}):  # it takes arrays for texts
            made: dask.dataframe.DataFrame = dask.dataframe.from_map(  # type: ignore[no-untyped-call]
                _partition, pieces, **given, texts=texts, meta=_frame(pandas, self, [])
            )
        return made

    def to_torch(self, batch_size: int = 256) -> Iterator[dict[str, torch.Tensor]]:
        """Batches in the order of the rows, each a dict of tensors ``[B, ...]``; the last may be smaller.

        Columns of texts, ``run`` and ``worker``, are their numbers.
        """
        import torch

        batch_size = plain(batch_size)
        require_integer("batch_size", batch_size, 1)
        left: list[dict[str, Array]] = []
        for found in self._blocks():
            left.append(found.values)
            held = sum(len(next(iter(values.values()))) for values in left)
            if held < batch_size:
                continue
            joined = {name: np.concatenate([values[name] for values in left]) for name in self.columns}
            whole = held - held % batch_size
            for low in range(0, whole, batch_size):
                yield {name: torch.from_numpy(values[low : low + batch_size]) for name, values in joined.items()}
            left = [{name: values[whole:] for name, values in joined.items()}] if held > whole else []
        if left:
            yield {name: torch.from_numpy(np.concatenate([values[name] for values in left])) for name in self.columns}

    def __repr__(self) -> str:
        where = f", where {self.where!r}" if self.where else ""
        return f"<daskrl transitions: {', '.join(self.columns)}{where}>"


def _frame(pandas: Any, of: Transitions, found: Sequence[Block]) -> pandas.DataFrame:
    columns: dict[str, Any] = {}
    texts = of._table.texts
    for kind in of.kinds:
        parts = [one.values.pop(kind.name) for one in found]
        values = np.concatenate(parts) if parts else np.empty((0, *kind.shape), kind.dtype)
        if kind.texts:
            columns[kind.name] = pandas.Categorical.from_codes(values, texts[kind.name])
        elif kind.shape:
            columns[kind.name] = pandas.Series(list(values), dtype=object)
        else:
            columns[kind.name] = values
    return pandas.DataFrame(columns, copy=False)


def _partition(
    piece: tuple[Part, Array | None], block: int, columns: Sequence[str], texts: Mapping[str, Sequence[str]]
) -> pandas.DataFrame:
    """In a task: some fragments of one run, or some of their rows."""
    import pandas

    part, picked = piece
    own = Transitions(scan.Table((part,), block), columns, None, 0, warn)
    own._rows = picked
    frame = _frame(pandas, own, list(own._blocks()))
    for name in texts.keys() & frame.columns:
        frame[name] = frame[name].cat.set_categories(texts[name])
    return frame


def warn(damage: Damage) -> None:
    """Say that something of a run cannot be read, and is left out."""
    warnings.warn(f"{damage.problem} Its transitions are left out.", DamagedWarning, stacklevel=2)
