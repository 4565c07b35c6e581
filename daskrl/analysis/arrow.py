"""NumPy's columns as Arrow's: arrays of a fixed shape are lists of a fixed size, nested as deep as the shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import extras
from daskrl.analysis.rows import Each, Kind
from daskrl.records import Array

if TYPE_CHECKING:
    import pyarrow


def imported() -> Any:
    """pyarrow, or an error that says how to install it."""
    with extras.needed("analysis", "tables of a replay need pyarrow"):
        import pyarrow
    return pyarrow


def schema(kinds: Sequence[Kind], coded: bool = False) -> pyarrow.Schema:
    """The schema of some columns; with ``coded`` what is the same in all rows of a fragment is a dictionary's."""
    pa = imported()
    return pa.schema([(kind.name, _type(pa, kind, coded)) for kind in kinds])


def _type(pa: Any, kind: Kind, coded: bool) -> Any:
    if kind.texts:
        return pa.dictionary(pa.int32(), pa.string())
    made = pa.from_numpy_dtype(np.dtype(kind.dtype))
    if coded and kind.each:
        return pa.dictionary(pa.uint16(), made)
    for size in reversed(kind.shape):
        made = pa.list_(made, size)
    return made


def array(kind: Kind, values: Array | Each, texts: Sequence[str] = (), coded: bool = False) -> Any:
    """One column; of texts ``values`` are codes."""
    pa = imported()
    if isinstance(values, Each):
        if coded:
            return pa.DictionaryArray.from_arrays(pa.array(values.codes), pa.array(values.of))
        values = values.all()
    if kind.texts:
        return pa.DictionaryArray.from_arrays(pa.array(values, pa.int32()), pa.array(texts, pa.string()))
    made = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(kind.shape):
        made = pa.FixedSizeListArray.from_arrays(made, size)
    return made


def batch(
    kinds: Sequence[Kind], values: Mapping[str, Array | Each], texts: Mapping[str, Sequence[str]], count: int,
    coded: bool = False,
) -> Any:  # fmt: skip
    """Some rows as a record batch."""
    pa = imported()
    if not kinds:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * count, pa.struct([])))
    columns = [array(kind, values[kind.name], texts.get(kind.name, ()), coded) for kind in kinds]
    return pa.RecordBatch.from_arrays(columns, schema=schema(kinds, coded))
