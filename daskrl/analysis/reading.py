"""Columns of many committed fragments at once, each chunk checked against its record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from daskrl.analysis.catalog import Catalog, Damage
from daskrl.errors import DamagedError, StoreError
from daskrl.records import Array
from daskrl.store.columns import Column, decode_into
from daskrl.store.pack import where_now
from daskrl.store.store import Store

Report = Callable[[Damage], None]


def read(catalog: Catalog, rows: Array, names: Iterable[str], report: Report) -> tuple[dict[str, Array], Array]:
    """Some columns of some fragments.

    Parameters
    ----------
    rows : ``[F]`` of the catalog.
    report : is told of each chunk that cannot be read.

    Returns
    -------
    name -> ``[F, *shape of a fragment]``, and ``[F]`` whether all of the fragment's chunks were read; the values of
    others mean nothing.
    """
    arrays, good = {}, np.ones(len(rows), np.bool_)
    for name in names:
        arrays[name], read_ = column(catalog, rows, name, report)
        good &= read_
    return arrays, good


def column(catalog: Catalog, rows: Array, name: str, report: Report) -> tuple[Array, Array]:
    """One column of some fragments, as of `read`."""
    met: list[Damage] = []
    found = _column(catalog, rows, name, met.append)
    if met and _moved(catalog.store):  # packed, or unpacked, since it was opened
        met.clear()
        found = _column(catalog, rows, name, met.append)
    for damage in met:
        report(damage)
    return found


def _moved(store: Store) -> bool:
    before = store.storage
    try:
        return where_now(store).storage != before
    except StoreError:
        return False


def _column(catalog: Catalog, rows: Array, name: str, report: Report) -> tuple[Array, Array]:
    store, column_ = catalog.store, catalog.store.columns[name]
    number = list(store.columns).index(name)
    values = np.empty((len(rows), *column_.shape), column_.dtype)
    good = np.ones(len(rows), np.bool_)
    slots, nbytes, crcs = catalog.slot[rows].tolist(), catalog.nbytes[rows, number].tolist(), catalog.crc[rows, number]
    ending = column_.chunk_name(0).removeprefix("c.0")
    with store.storage.reading() as get:

        def one(place: int) -> DamagedError | None:
            if column_.optional and not nbytes[place]:
                values[place] = 0
                return None
            key = f"{name}/c.{slots[place]}{ending}"
            try:
                _take(get, key, column_, nbytes[place], int(crcs[place]), values[place], store.storage.where)
            except DamagedError as error:
                return error
            return None

        for place, problem in enumerate(store.storage.at_once(one, range(len(rows)))):
            if problem is not None:
                good[place] = False
                where = store.storage.where(f"{name}/c.{slots[place]}{ending}")
                report(Damage(catalog.label, where, slots[place], name, str(problem)))
    return values, good


def _take(
    get: Callable[[str], Any], key: str, column_: Column, nbytes: int, crc: int, out: Array, where: Callable[[str], str]
) -> None:
    try:
        data = get(key)
    except OSError as error:
        raise DamagedError(f"{where(key)} is committed but cannot be read: {error.strerror or error}.") from None
    if len(data) != nbytes:
        raise DamagedError(f"{where(key)} has {len(data)} bytes, {nbytes} were committed.")
    decode_into(column_, data, crc, out, lambda: where(key))
