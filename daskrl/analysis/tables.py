"""The small tables of a replay, episodes, runs and versions, as Arrow's; and which parts of runs a view has."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from daskrl.analysis import arrow, reading
from daskrl.analysis import episodes as episodes_
from daskrl.analysis.rows import Kind, Part
from daskrl.errors import ConfigError
from daskrl.store.packed import Packed

_EPISODES = (
    Kind("run", "int32", texts=True), Kind("episode", "int64"), Kind("stream", "int64"), Kind("env", "int64"),
    Kind("seed", "int64"), Kind("return", "float64"), Kind("length", "int64"), Kind("terminated", "bool"),
    Kind("truncated", "bool"), Kind("first_version", "int64"), Kind("weights_version", "int64"),
    Kind("worker", "int32", texts=True), Kind("wall_time", "float64"),
)  # fmt: skip


_SCHEDULE = ("streams", "envs_per_stream", "fragment_steps", "lag")


def episodes_schema() -> Any:
    """The schema of the episodes."""
    return arrow.schema(_EPISODES)


def _schema(**types: str) -> Any:
    pa = arrow.imported()
    known = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.schema([(name, known[kind]) for name, kind in types.items()])


def runs_schema() -> Any:
    """The schema of the runs."""
    return _schema(
        run="text", run_id="text", environment="text", algorithm="text", seed="int", settings="text", env_steps="int",
        env_steps_budget="int", fragments="int", episodes="int", weights_version="int", finished="bool", packed="bool",
        streams="int", envs_per_stream="int", fragment_steps="int", lag="int", created="text",
    )  # fmt: skip


def versions_schema() -> Any:
    """The schema of the versions."""
    return _schema(
        run="text", weights_version="int", learner_updates="int", updates="int", loss="float", seconds="float",
        device="text", kept="bool", evaluated_return="float", env_steps="int",
    )  # fmt: skip


def episodes(
    parts: Sequence[Part], texts: Mapping[str, Sequence[str]], report: reading.Report,
    columns: Collection[str] = episodes_.COLUMNS,
) -> Any:  # fmt: skip
    """Some columns of the episodes of some parts of runs, by run and number; what costs reading only if wanted."""
    wanted = [kind for kind in _EPISODES if kind.name in columns]
    pa = arrow.imported()
    codes = {name: code for code, name in enumerate(texts["worker"])}
    made = []
    for number, part in enumerate(parts):
        found = episodes_.episodes(part, report, columns)
        own = np.array([codes[name] for name in part.catalog.workers], np.int32)
        found["run"] = np.full(len(found["run"]), number, np.int32)
        found["worker"] = own[found["worker"]]
        made.append(arrow.batch(wanted, found, texts, len(found["run"])))
    return pa.Table.from_batches(made, arrow.schema(wanted))


def runs(parts: Sequence[Part]) -> Any:
    """The runs, one row each, with what is committed of them, whatever a view has."""
    rows = []
    for part in parts:
        catalog = part.catalog
        store, config = catalog.store, catalog.store.config
        rows.append({
            "run": catalog.label, "run_id": store.run_id,
            "environment": config.environment.get("id") or config.environment["name"],
            "algorithm": config.algorithm["name"], "seed": config.seed,
            "settings": json.dumps(config.algorithm.get("settings")),
            "env_steps": len(catalog) * catalog.size, "env_steps_budget": catalog.budget,
            "fragments": len(catalog), "episodes": len(catalog.ended_row), "weights_version": catalog.published,
            "finished": catalog.finished, "packed": isinstance(store.storage, Packed),
            **{name: getattr(config.schedule, name) for name in _SCHEDULE},
            "created": store.attributes["created"],
        })  # fmt: skip
    return arrow.imported().Table.from_pylist(rows, runs_schema())


def versions(parts: Sequence[Part], texts: Mapping[str, Sequence[str]]) -> Any:
    """The published versions of the weights, one row each."""
    rows = []
    for part in parts:
        catalog = part.catalog
        steps = catalog.store.config.schedule.round_steps
        for record in catalog.learned:
            version = record["version"]
            rows.append({
                "run": catalog.label, "weights_version": version,
                **{name: record[name] for name in ("learner_updates", "updates", "loss", "seconds", "device")},
                "kept": version in catalog.kept, "evaluated_return": catalog.evaluated.get(version),
                "env_steps": version * steps,
            })  # fmt: skip
    return arrow.imported().Table.from_pylist(rows, versions_schema())


def chosen(parts: Sequence[Part], given: Mapping[str, Sequence[Any]], report: reading.Report) -> list[Part]:
    """The parts of parts that are of some runs, streams, environments, workers and episodes.

    Raises
    ------
    ConfigError
        One of those that are named is not there; names what is.
    """
    known: dict[str, Any] = {
        "runs": [part.catalog.label for part in parts],
        "streams": sorted({*np.concatenate([part.catalog.stream[part.rows] for part in parts]).tolist()}),
        "envs": range(max(part.catalog.envs for part in parts)),
        "workers": sorted(
            {part.catalog.workers[code] for part in parts for code in np.unique(part.catalog.worker[part.rows])}
        ),
    }
    for name, values in given.items():
        if name in known:
            for value in values:
                if value not in known[name]:
                    raise ConfigError(f"{name}: expected some of {_listed(known[name])}; got {value!r}.")
    made = [_chosen(part, given) for part in parts if part.catalog.label in given.get("runs", known["runs"])]
    if "episodes" in given:
        made = _of_episodes(made, given["episodes"], report)
    return made


def _chosen(part: Part, given: Mapping[str, Sequence[Any]]) -> Part:
    catalog, rows = part.catalog, part.rows
    if "streams" in given:
        rows = rows[np.isin(catalog.stream[rows], given["streams"])]
    if "workers" in given:
        codes = [code for code, name in enumerate(catalog.workers) if name in given["workers"]]
        rows = rows[np.isin(catalog.worker[rows], codes)]
    envs = part.envs
    if "envs" in given:
        envs = np.isin(np.arange(catalog.envs), given["envs"])
        envs = envs if part.envs is None else envs & part.envs
    return dataclasses.replace(part, rows=rows, envs=envs)


def _of_episodes(parts: Sequence[Part], numbers: Sequence[Any], report: reading.Report) -> list[Part]:
    wanted = np.unique(np.array(numbers))
    if wanted.dtype.kind != "i":
        raise ConfigError(f"episodes: expected numbers of episodes, got {list(numbers)!r:.200}.")
    made, seen = [], np.zeros(len(wanted), np.bool_)
    for part in parts:
        catalog = part.catalog
        every = episodes_.episodes(Part(catalog, np.arange(len(catalog))), report, ())
        found = np.isin(every["episode"], wanted)
        seen |= np.isin(wanted, every["episode"])
        last = catalog.round[every["row"][found]]
        streams = every["stream"][found]
        # The rounds that an episode's steps lie in: its last step's, and as many before as its length reaches back.
        steps = catalog.fragment_steps
        first = last - -(-every["length"][found] // steps)
        begin = np.zeros((catalog.store.config.schedule.streams, int(catalog.round.max(initial=0)) + 2), np.int64)
        np.add.at(begin, (streams, np.maximum(first, 0)), 1)
        np.add.at(begin, (streams, last + 1), -1)
        inside = (np.cumsum(begin, axis=1) > 0)[catalog.stream, catalog.round]
        own = wanted if part.episodes is None else np.intersect1d(wanted, part.episodes)
        made.append(dataclasses.replace(part, rows=part.rows[inside[part.rows]], episodes=own))
    if not seen.all():
        every_number = np.unique(np.concatenate([episodes_.episodes(part, report, ())["episode"] for part in parts]))
        near = every_number[np.argsort(np.abs(every_number - wanted[~seen][0]), kind="stable")[:6]]
        raise ConfigError(
            f"episodes: there is no episode {wanted[~seen][0]}; the nearest are {_listed(sorted(near.tolist()))}, of "
            f"{len(every_number):,}."
        )
    return made


def _listed(values: Any) -> str:
    every = list(values)
    shown = ", ".join(str(value) for value in every[:20])
    return f"{shown}, ... ({len(every)})" if len(every) > 20 else shown or "none"
