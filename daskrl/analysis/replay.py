"""The replay of runs as a dataset: episodes, transitions, and questions in SQL."""

from __future__ import annotations

import copy
import dataclasses
import os
import re
import time
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import extras
from daskrl.analysis import catalog, labelled, query, reading, rows, scan, tables
from daskrl.analysis import episodes as episodes_
from daskrl.analysis.catalog import Damage
from daskrl.analysis.transitions import Transitions
from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError, DamagedError, DamagedWarning, StoreError
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.shown import html_table
from daskrl.store.finding import runs
from daskrl.store.packed import Packed
from daskrl.store.store import Store

if TYPE_CHECKING:
    import duckdb
    import pandas
    import xarray

Runs = str | os.PathLike[str] | Store
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


class Replay:
    """The replay of one run or of many, to be asked: which episodes there were, and what happened in each.

    A replay is what was committed when it was opened: all of its answers agree. `refresh` has what came since. Nothing
    is read before it is asked for. `at`, `between` and `of` are replays of a part of it, and compose.

        replay = daskrl.Replay("runs/a")
        replay.episodes()
        replay.sql("SELECT weights_version, avg(return) FROM episodes GROUP BY 1 ORDER BY 1")
        replay.of(workers="tcp://10.0.0.3:41093").transitions(columns=["observation", "action"]).to_arrow()

    Needs ``daskrl[analysis]``.

    Parameters
    ----------
    store : a run: its directory, also of a packed one, a URL, a `Store` or a `Run`. A study, a directory of runs, or a
        pattern as `daskrl.runs` takes one (``"studies/lr/**"``): all runs there. Or a list of these.
    memory : bytes that an answer may take while it is made, as ``"1GiB"`` or a number. What DuckDB sorts and groups
        beyond that goes to temporary files; a table that is larger is refused.

    Raises
    ------
    StoreMismatchError
        There is no run, or its format is a later one's.
    DamagedError
        The run's attributes cannot be read. Of several runs, such a one is left out, with a warning.
    """

    @suggests
    def __init__(self, store: Runs | Sequence[Runs], *, memory: int | str = "1GiB") -> None:
        self._memory = _nbytes(memory)
        self._unread: list[Damage] = []
        self._met: dict[tuple[str, str], Damage] = {}
        stores = self._open(store)
        if not stores:
            raise StoreError(f"none of the runs can be read: {self._unread[0].problem}")
        self._opened = time.time()
        self._catalogs = {label: catalog.read(one, label) for label, one in stores.items()}
        self._parts = tuple(rows.Part(one, np.arange(len(one))) for one in self._catalogs.values())
        for one in self._catalogs.values():
            for damage in one.damage:
                self._report(damage)

    def _open(self, given: Runs | Sequence[Runs]) -> dict[str, Store]:
        every: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        if not every:
            raise ConfigError("store: expected that of a run, or those of several, got none.")
        stores: dict[str, Store] = {}
        for one in every:
            one = getattr(one, "store", one)
            if isinstance(one, Store):
                storage = one.storage
                stores[str(storage.base if isinstance(storage, Packed) else storage)] = one
                continue
            text = os.fspath(one) if isinstance(one, str | os.PathLike) else None
            if not isinstance(text, str):
                raise ConfigError(f"store: expected the path or URL of a run, or a list, got {one!r:.200}.")
            paths = runs(text)
            for path in paths:
                try:
                    stores[path] = Store.open(path)
                except (DamagedError, StoreError) as error:
                    if len(every) == len(paths) == 1:
                        raise
                    self._unread.append(Damage(path, path, None, None, str(error)))
                    warnings.warn(f"{path} is left out: {error}", DamagedWarning, stacklevel=4)
        return stores

    # -- what there is ------------------------------------------------------------------------------------

    @property
    def runs(self) -> tuple[str, ...]:
        """What tables call the runs: the path of each, as it was given or found."""
        return tuple(part.catalog.label for part in self._parts)

    @property
    def stores(self) -> dict[str, Store]:
        """The store of each run."""
        return {part.catalog.label: part.catalog.store for part in self._parts}

    @property
    def versions(self) -> tuple[int, ...]:
        """The weights versions that some transition was acted with, in order."""
        found = [part.catalog.weights_version[part.rows] for part in self._parts]
        return tuple(np.unique(np.concatenate(found)).tolist())

    @property
    def damaged(self) -> pandas.DataFrame:
        """What could not be read so far, a row each: ``run``, ``file``, ``fragment``, ``column``, ``problem``.

        Transitions of a chunk that cannot be read are left out. `check` reads everything.
        """
        with extras.needed("analysis", "a table needs pandas"):
            import pandas
        found = [vars(one) for one in (*self._unread, *self._met.values())]
        return pandas.DataFrame(found, columns=["run", "file", "fragment", "column", "problem"]).astype(
            {"fragment": "Int64"}
        )

    def check(self) -> pandas.DataFrame:
        """Read every chunk of the transitions in view and compare it with its checksum; what is `damaged`."""
        for part in self._parts:
            for name in part.catalog.store.columns:
                of = part.catalog.store.columns[name]
                nbytes = int(np.prod(of.shape)) * np.dtype(of.dtype).itemsize
                step = max(1, self._block // nbytes)
                for low in range(0, len(part.rows), step):
                    reading.column(part.catalog, part.rows[low : low + step], name, self._report)
        return self.damaged

    def _report(self, damage: Damage) -> None:
        key = (damage.file, damage.problem)
        if key not in self._met:
            self._met[key] = damage
            warnings.warn(
                f"{damage.problem} What is in that file is left out; see .damaged.", DamagedWarning, stacklevel=2
            )

    @property
    def _block(self) -> int:
        return min(1 << 25, self._memory // 16)

    @property
    def _table(self) -> scan.Table:
        return scan.Table(self._parts, self._block)

    # -- views --------------------------------------------------------------------------------------------

    def refresh(self) -> Replay:
        """The same with what was committed since; only that is read. Of a view, the view anew."""
        made = copy.copy(self)
        made._opened, made._met = time.time(), dict(self._met)
        made._catalogs = {label: catalog.refreshed(one) for label, one in self._catalogs.items()}
        made._parts = tuple(rows.Part(one, np.arange(len(one))) for one in made._catalogs.values())
        for one in made._catalogs.values():
            for damage in one.damage:
                made._report(damage)
        made._chosen = ()
        for name, given in self._chosen:
            made = getattr(made, name)(**given)
        return made

    _chosen: tuple[tuple[str, dict[str, Any]], ...] = ()

    def _view(self, name: str, given: dict[str, Any], parts: Iterable[rows.Part]) -> Replay:
        made = copy.copy(self)
        made._parts = tuple(parts)
        made._chosen = (*self._chosen, (name, given))
        return made

    def at(self, version: int) -> Replay:
        """What was acted with one version of the weights.

        An episode belongs to the version of its last step.
        """
        version = plain(version)
        known = self.versions
        if version not in known:
            raise ConfigError(
                f"version: expected one that transitions were acted with, {_some(known)}; got {version!r}."
            )
        return self._view("at", {"version": version}, self._of_versions(version, version))

    def between(self, first: int | None = None, last: int | None = None) -> Replay:
        """What was acted with versions from ``first`` to ``last``, both of them included; None is without a bound."""
        first, last = plain(first), plain(last)
        for name, value in (("first", first), ("last", last)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ConfigError(f"{name}: expected a version of the weights, got {value!r}.")
        if not any(
            (first is None or first <= version) and (last is None or version <= last) for version in self.versions
        ):
            raise ConfigError(
                f"between: no transition was acted with a version from {first} to {last}; there are "
                f"{_some(self.versions)}."
            )
        return self._view("between", {"first": first, "last": last}, self._of_versions(first, last))

    def _of_versions(self, first: int | None, last: int | None) -> list[rows.Part]:
        def chosen(part: rows.Part) -> Array:
            version = part.catalog.weights_version[part.rows]
            keep = np.ones(len(version), np.bool_)
            keep &= version >= (0 if first is None else first)
            if last is not None:
                keep &= version <= last
            return keep

        return [dataclasses.replace(part, rows=part.rows[chosen(part)]) for part in self._parts]

    @suggests
    def of(
        self,
        *,
        runs: str | Iterable[str] | None = None,
        streams: int | Iterable[int] | None = None,
        envs: int | Iterable[int] | None = None,
        workers: str | Iterable[str] | None = None,
        episodes: int | Iterable[int] | None = None,
    ) -> Replay:
        """What is of some runs, streams, environments of a stream, workers or episodes, by name or number.

        Of several arguments, what is of all of them. In `episodes` an episode is where its last step is.
        """
        given = {
            name: _each(value)
            for name, value in {
                "runs": runs, "streams": streams, "envs": envs, "workers": workers, "episodes": episodes,
            }.items()
            if value is not None
        }  # fmt: skip
        if not given:
            raise ConfigError("of: expected some of runs=, streams=, envs=, workers=, episodes=.")
        return self._view("of", given, tables.chosen(self._parts, given, self._report))

    # -- tables -------------------------------------------------------------------------------------------

    def episodes(self) -> pandas.DataFrame:
        """The episodes, one row each, by run and number.

        Returns
        -------
        run : which; see `runs`.
        episode : its number in the run, which stays the same as the run goes on:
            ``(number among those of its environment * streams + stream) * envs_per_stream + env``. There may be gaps.
        stream, env : where it was played.
        seed : of its reset.
        return, length : so far, of one that did not end. Return is the sum of rewards.
        terminated, truncated : how it ended. Neither is true of an episode that goes on, or was cut: where the run
            was stopped, or its environment could not be rebuilt after a worker was lost.
        first_version, weights_version : of the weights at its first and at its last step.
        worker, wall_time : who wrote the fragment of the last step, and when that began, in seconds since 1970.
        """
        return self._episodes().to_pandas()

    def _episodes(self, columns: Collection[str] = episodes_.COLUMNS) -> Any:
        return tables.episodes(self._parts, self._table.texts, self._report, columns)

    @suggests
    def transitions(
        self, columns: Sequence[str] | str | None = None, where: str | None = None, *, stacked: bool = False
    ) -> Transitions:
        """The transitions, one row each, read when they are asked for.

            replay.transitions(["observation", "reward"], where="reward > 1").to_pandas()

        Rows are in the order in which fragments are stored; those of an episode are in the order of its steps.

        Parameters
        ----------
        columns : names, by default those here and what else the algorithm stored, as ``behavior_log_prob``.
            ``run``, ``episode`` (its number, as of `episodes`), ``step`` (in the episode, from 0).
            ``observation``, ``action``, ``next_observation``: what the environment gave, took, and gave then, also at
            the end of an episode; of Dict and Tuple spaces a column for each part, ``observation.key``. Of stacked
            frames the newest, unless ``stacked``.
            ``reward``; ``terminated``, ``truncated``; ``discount``: the algorithm's, 0 where the episode terminated.
            ``weights_version``: that acted; ``policy_lag``: rounds that it was behind.
            Only to who asks: ``stream``, ``env``, ``fragment``, ``time`` (step in the fragment), ``worker``,
            ``wall_time`` (when the fragment began, in seconds since 1970).
        where : a condition on any of these, in SQL; a name with a dot stands in double quotes. Only rows for which the
            condition holds are read whole. It may ask the tables of `sql`, too:
            ``"episode IN (SELECT episode FROM episodes WHERE return > 20)"``.
        stacked : give observations as the algorithm saw them where it stacks frames: ``[K, ...]``, the oldest first.
        """
        table = self._table
        if stacked:
            table = dataclasses.replace(table, parts=tuple(dataclasses.replace(p, stacked=True) for p in table.parts))
        return Transitions(table, columns, where, self._memory, self._report, self._tables)

    @suggests
    def to_xarray(
        self, columns: Sequence[str] | str | None = None, *, fragments_per_chunk: int | None = None
    ) -> xarray.Dataset:
        """The transitions as labelled arrays ``[fragment, time, env, ...]``, read where and when they are computed.

        Only committed fragments are there. Coordinates are, of each fragment, ``run``, ``stream``, ``worker``,
        ``weights_version``, ``policy_lag`` and ``wall_time``; of each transition ``episode`` and ``step``.

            replay.to_xarray().reward.groupby("weights_version").mean(...)
            replay.to_xarray().to_zarr("transitions.zarr")

        ``episode`` lies in memory, for ``groupby`` to know the groups, where it takes at most a 64th of ``memory``. Of
        more transitions give them: ``groupby(episode=xarray.groupers.UniqueGrouper(labels=LABELS))``, of the
        column ``episode`` of `episodes`.

        Parameters
        ----------
        columns : as of `transitions`.
        fragments_per_chunk : of the Dask arrays; by default what takes 16 MiB of the widest column.

        Raises
        ------
        ConfigError
            Runs have fragments of different sizes, or the view is one of some episodes.
        """
        if fragments_per_chunk is not None:
            require_integer("fragments_per_chunk", fragments_per_chunk := plain(fragments_per_chunk), 1)
        names = (columns,) if isinstance(columns, str) else columns
        damaged = {(one.run, one.fragment) for one in self._met.values() if one.fragment is not None}
        return labelled.dataset(self._table, names, fragments_per_chunk, damaged, self._memory // 64)

    # -- SQL ----------------------------------------------------------------------------------------------

    def _tables(self) -> dict[str, Any]:
        texts = self._table.texts
        return {
            "episodes": query.of_table(tables.episodes_schema(), self._episodes),
            "transitions": query.of_transitions(self._table, self._report),
            "runs": query.of_table(tables.runs_schema(), lambda _: tables.runs(self._parts)),
            "versions": query.of_table(tables.versions_schema(), lambda _: tables.versions(self._parts, texts)),
        }

    def sql(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pandas.DataFrame:
        """Ask in SQL, of DuckDB, what the tables ``episodes``, ``transitions``, ``runs`` and ``versions`` say.

        Of transitions only the columns that the query names are read, and only fragments in which its conditions may
        hold. A name with a dot stands in double quotes: ``"observation.camera"``.

            replay.sql("SELECT weights_version, avg(return) FROM episodes GROUP BY 1 ORDER BY 1")
            replay.sql('SELECT * FROM transitions WHERE episode = ? ORDER BY step', [37])

        Parameters
        ----------
        parameters : the values of ``?``, or by name those of ``$name``.

        Returns
        -------
        The answer as a table of pandas. `connection` has DuckDB's own ways.

        Raises
        ------
        ConfigError
            DuckDB refuses the query; names the columns of the tables. Or the answer takes too much memory.
        """
        known = self._tables()
        if not isinstance(sql, str):
            raise ConfigError(f"sql: expected a query as text, got {sql!r:.200}.")
        connection = query.connect(known, self._memory)
        with connection, query.explained("sql", known):
            return query.answer(connection, sql, parameters, self._memory)

    def connection(self) -> duckdb.DuckDBPyConnection:
        """A connection of DuckDB of its own, in which the tables of `sql` are known, as they are now."""
        return query.connect(self._tables(), self._memory, shared=False)

    # -- for people ---------------------------------------------------------------------------------------

    def summary(self) -> dict[str, Any]:
        """What the replay holds and how fresh it is, name -> value."""
        last = max((part.catalog.newest for part in self._parts if len(part.rows)), default=float("nan"))
        going = [part.catalog.label for part in self._parts if not part.catalog.finished]
        age = self._opened - last
        damaged = len(self._unread) + len(self._met)
        return {
            "runs": self.runs[0] if len(self._parts) == 1 else len(self._parts),
            "transitions": len(self.transitions(("run",))),
            "episodes": self._episodes(("episode",)).num_rows,
            "weights_versions": f"{self.versions[0]} to {self.versions[-1]}" if self.versions else "none",
            **({"of": " ".join(f".{name}(...)" for name, _ in self._chosen)} if self._chosen else {}),
            "state": "finished"
            if not going
            else f"{len(going)} of {len(self._parts)} unfinished; newest fragment {_ago(age)} before this was opened",
            **({"damaged": f"{damaged} files; see .damaged"} if damaged else {}),
        }

    def __repr__(self) -> str:
        said = ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in self.summary().items())
        return f"<daskrl.Replay: {said}>"

    def _repr_html_(self) -> str:
        return html_table("daskrl replay", self.summary())


def _nbytes(memory: int | str) -> int:
    value: Any = plain(memory)
    if isinstance(value, str) and (found := _BYTES.fullmatch(value)):
        base = 1024 if found[3] or not found[2] else 1000
        value = int(float(found[1]) * base ** " KMGT".index(found[2].upper() or " "))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 << 20:
        raise ConfigError(f"memory: expected bytes, at least 1 MiB, as '1GiB' or a number, got {memory!r}.")
    return value


def _each(value: Any) -> list[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [plain(value)]
    return [plain(one) for one in value]


def _some(values: Sequence[Any]) -> str:
    from daskrl.shown import shown

    return shown(list(values)) if values else "none"


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _ago(seconds: float) -> str:
    if not seconds >= 0:
        return "none"
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
