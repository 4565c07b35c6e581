"""Reading transitions of several runs as one table: only the columns that are asked for, only the rows that pass."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl.analysis import arrow
from daskrl.analysis.reading import Report
from daskrl.analysis.rows import MOST_AT_ONCE, WHERE, Block, Kind, Part, block, kinds, nbytes_of, require_columns
from daskrl.errors import ConfigError
from daskrl.records import Array

ROW = Kind("_row", "int64")
"""The number of a row of the table, which `Table.picked` takes."""


@dataclass(frozen=True)
class Table:
    """The transitions of some parts of runs; a value that can be pickled.

    Attributes
    ----------
    block : bytes that may be read at once, about.
    """

    parts: tuple[Part, ...]
    block: int

    @functools.cached_property
    def kinds(self) -> dict[str, Kind]:
        """The columns that all of the runs have, in their order."""
        of = [kinds(part) for part in self.parts]
        return {name: kind for name, kind in of[0].items() if all(other.get(name) == kind for other in of)}

    @property
    def default(self) -> tuple[str, ...]:
        """The columns that are given to who asks for none."""
        return tuple(name for name in self.kinds if name not in WHERE)

    def columns(self, given: Sequence[str] | str | None) -> tuple[str, ...]:
        """Those asked for, checked."""
        if given is None:
            return self.default
        names = (given,) if isinstance(given, str) else tuple(given)
        if not names:
            raise ConfigError(f"columns: expected some of {', '.join(self.kinds)}; got none.")
        known = self.kinds
        for name in names:
            apart = {part.catalog.label: kinds(part).get(name) for part in self.parts}
            if name not in known and any(apart.values()):
                said = ", ".join(f"{label}: {_words(kind)}" for label, kind in apart.items())
                raise ConfigError(
                    f"column {name!r} is not the same in all runs ({said:.400}). Choose some: .of(runs=...)"
                )
        require_columns(names, list(known))
        if len(set(names)) < len(names):
            raise ConfigError(f"columns: expected each of them once, got {list(names)}.")
        return names

    @functools.cached_property
    def texts(self) -> dict[str, list[str]]:
        """What the codes of columns of texts stand for."""
        workers = dict.fromkeys(name for part in self.parts for name in part.catalog.workers)
        return {"run": [part.catalog.label for part in self.parts], "worker": list(workers)}

    @property
    def rows(self) -> int:
        """Transitions, where no part leaves some of a fragment's out; else at most so many."""
        return sum(part.most for part in self.parts)

    def nbytes(self, names: Sequence[str]) -> int:
        """Bytes of one row of some columns."""
        of = self.kinds
        return sum(of[name].nbytes for name in names)

    def blocks(self, names: Sequence[str], report: Report, pick: Any = None, coded: bool = False) -> Iterator[Block]:
        """All rows, in blocks of whole fragments.

        Parameters
        ----------
        pick : a condition on columns, a pyarrow ``Expression``; None for all rows.
        coded : see `daskrl.analysis.rows.block`.
        """
        of = self.kinds
        asked = [name for name in of if f"{name}" in str(pick)] if pick is not None else []
        first = 0
        for number, part in enumerate(self.parts):
            rows = part.rows if pick is None else part.rows[self._possible(number, part, pick)]
            places = np.arange(len(part.rows)) if pick is None else np.searchsorted(part.rows, rows)
            at_once = self.block // nbytes_of(part, sorted({*asked, *names} & {*of}))
            at_once = min(max(1, at_once), MOST_AT_ONCE)
            for low in range(0, len(rows), at_once):
                some, place = rows[low : low + at_once], places[low : low + at_once]
                numbers = first + place * part.catalog.size
                if pick is None:
                    yield self._numbered(number, block(part, some, _stored(names), report, None, coded), names, numbers)
                    continue
                tested = self._numbered(
                    number, block(part, some, asked, report, None, coded), [*asked, ROW.name], numbers
                )
                passed = self._passed(tested, asked, pick)
                if not len(passed):
                    continue
                kept = passed if tested.kept is None else tested.kept[passed]
                rest = [name for name in _stored(names) if name not in asked]
                found = block(part, some, rest, report, kept, coded)
                if found.count < len(kept):  # of a chunk that is damaged: without what was tested
                    found = block(part, some, _stored(names), report, kept, coded)
                else:
                    found.values.update({name: tested.values[name][passed] for name in asked if name in names})
                yield self._numbered(number, found, names, numbers)
            first += part.most

    def picked(self, names: Sequence[str], picked: Array, report: Report) -> Iterator[Block]:
        """Rows by their numbers, which are sorted; other fragments than theirs are not read."""
        first = 0
        for number, part in enumerate(self.parts):
            low, high = np.searchsorted(picked, [first, first + part.most])
            within = picked[low:high] - first
            fragments = np.unique(within // part.catalog.size)
            at_once = max(1, self.block // nbytes_of(part, _stored(names)))
            for begin in range(0, len(fragments), at_once):
                some = fragments[begin : begin + at_once]
                ends = np.searchsorted(within, [some[0] * part.catalog.size, (some[-1] + 1) * part.catalog.size])
                wanted = within[ends[0] : ends[1]]
                place = np.searchsorted(some, wanted // part.catalog.size)
                kept = place * part.catalog.size + wanted % part.catalog.size
                found = block(part, part.rows[some], _stored(names), report, kept)
                yield self._numbered(number, found, names, first + some * part.catalog.size)
            first += part.most

    def _numbered(self, number: int, found: Block, names: Sequence[str], numbers: Array) -> Block:
        """With codes that hold for all runs, and the numbers of rows where they are asked for."""
        if "run" in names:
            found.values["run"] = np.full(found.count, number, np.int32)
        if "worker" in names and len(self.parts) > 1:
            found.values["worker"] = self._codes(number)[found.values["worker"]]
        if ROW.name in names:
            size = self.parts[number].catalog.size
            every = (numbers[:, None] + np.arange(size)).reshape(-1)
            found.values[ROW.name] = every if found.kept is None else every[found.kept]
        return found

    def _passed(self, tested: Block, asked: Sequence[str], pick: Any) -> Array:
        """Which rows pass, counted within the block."""
        pa, of = arrow.imported(), self.kinds
        table = pa.table(
            {name: arrow.array(of[name], tested.values[name], self.texts.get(name, ())) for name in asked}
            | {"_place": np.arange(tested.count)}
        )
        passed: Array = table.filter(pick)["_place"].to_numpy()
        return passed

    def _possible(self, number: int, part: Part, pick: Any) -> Array:
        """Which fragments may have rows that pass, by what holds for all of a fragment's: no others are read."""
        pa, of, catalog = arrow.imported(), self.kinds, part.catalog
        said = str(pick)
        may = _of_episodes(part, said)
        known = {name for name in ("run", *WHERE, "weights_version", "policy_lag") if name not in ("env", "time")}
        others = [name for name in of if name in said and name not in known]
        # An unknown value is null: what is neither true nor false may pass. Nothing stored is null, so a question for
        # that has an answer that the unknown value's is not.
        if others and re.search(r"is_valid\(|is_null\(|invert\(", said.replace("if_else(is_valid(", "")):
            return may
        rows = part.rows
        values = {
            "run": np.full(len(rows), number, np.int32),
            "worker": self._codes(number)[catalog.worker[rows]],
            "stream": catalog.stream[rows], "fragment": catalog.slot[rows], "wall_time": catalog.wall_time[rows],
            "weights_version": catalog.weights_version[rows],
            "policy_lag": catalog.round[rows] - catalog.weights_version[rows],
        }  # fmt: skip
        table = pa.table(
            {
                name: arrow.array(of[name], values[name], self.texts.get(name, ()))
                if name in known
                else pa.nulls(len(rows), arrow.schema([of[name]]).field(0).type)
                for name in of
                if name in said
            }
            | {"_place": np.arange(len(rows))}
        )
        never = np.zeros(len(rows), np.bool_)
        never[table.filter(~pick)["_place"].to_numpy()] = True
        return may & ~never

    def _codes(self, number: int) -> Array:
        """The codes of a run's workers among those of all runs."""
        codes = {name: code for code, name in enumerate(self.texts["worker"])}
        return np.array([codes[name] for name in self.parts[number].catalog.workers], np.int32)


_COMPARED = re.compile(r"\(episode (==|<=|>=|<|>) (-?\d+)\)")


def _of_episodes(part: Part, said: str) -> Array:
    """Which fragments may have rows of the episodes that a condition asks for, where all of its parts have to hold."""
    may = np.ones(len(part.rows), np.bool_)
    if " or " in said or "invert(" in said or not (compared := _COMPARED.findall(said)):
        return may
    catalog = part.catalog
    ended = np.zeros(catalog.first_episode.shape, np.int64)
    np.add.at(ended, (catalog.ended_row, catalog.ended_env), 1)
    lane = catalog.stream[:, None] * catalog.envs + np.arange(catalog.envs)
    lowest = (catalog.first_episode * catalog.lanes + lane).min(1)[part.rows]
    highest = ((catalog.first_episode + ended) * catalog.lanes + lane).max(1)[part.rows]
    for sign, text in compared:
        number = int(text)
        if sign in ("==", "<=", "<"):
            may &= lowest <= number
        if sign in ("==", ">=", ">"):
            may &= highest >= number
    return may


def _stored(names: Sequence[str]) -> list[str]:
    return [name for name in names if name != ROW.name]


def _words(kind: Kind | None) -> str:
    return "none" if kind is None else f"{kind.dtype}{list(kind.shape)}"


def reader(table: Table, names: Sequence[str], found: Iterator[Block], coded: bool = False) -> Any:
    """Blocks as a ``pyarrow.RecordBatchReader``, which asks for each when it is wanted."""
    pa, of, texts = arrow.imported(), {**table.kinds, ROW.name: ROW}, table.texts
    wanted = [of[name] for name in names]
    every = (arrow.batch(wanted, one.values, texts, one.count, coded) for one in found)
    batches = (one.slice(low, _BATCH) for one in every for low in range(0, one.num_rows, _BATCH))
    return pa.RecordBatchReader.from_batches(arrow.schema(wanted, coded), batches)


_BATCH = 122_880  # rows: as many as a row group of DuckDB, for its threads to work side by side
