"""The command ``replay``: questions to the replay of a run, or of many."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

from cyclopts import Parameter

from daskrl.cli.app import app, print_rows, say
from daskrl.cli.options import AsJson
from daskrl.errors import ConfigError


@app.command
def replay(
    store: str,
    *,
    sql: str | None = None,
    episode: int | None = None,
    memory: Annotated[str, Parameter(help="What an answer may take.")] = "1GiB",
    as_json: AsJson = False,
) -> None:
    """Show the episodes of a run, or of many, or ask what happened in SQL. Needs daskrl[analysis].

    Without --sql and --episode it lists the episodes.

    Parameters
    ----------
    store
        Directory of the run, packed or not, which may be being written; a URL; a study; or a pattern, 'studies/lr/**'.
    sql
        A query of DuckDB over the tables episodes, transitions, runs and versions, as "SELECT weights_version,
        avg(return) FROM episodes GROUP BY 1 ORDER BY 1".
    episode
        The transitions of the episode of that number, by step.
    """
    from daskrl.analysis.replay import Replay

    if sql is not None and episode is not None:
        raise ConfigError("daskrl replay: expected one of --sql and --episode.")
    opened = Replay(store, memory=memory)
    if sql is not None:
        title, found = store, opened.sql(sql)
    elif episode is not None:
        title, found = f"{store}, episode {episode}", opened.of(episodes=episode).transitions().to_pandas()
    else:
        found = opened.episodes()
        title = f"{store}: {len(found):,} episodes" + (f", the last {_MOST} of them" if len(found) > _MOST else "")
    if as_json:
        print(json.dumps(_rows(found), allow_nan=False))
        return
    if sql is None:
        found = found.tail(_MOST) if episode is None else found
        shown = [_of_people(row, len(opened.runs) > 1) for row in _rows(found)]
    else:
        shown = _rows(found)
    print_rows(title, [{name: _short(name, value) for name, value in row.items()} for row in shown], len(shown))
    for problem in opened.damaged["problem"]:
        say(f"left out: {problem}")


_NUMBERS = ("episode", "seed", "step", "weights_version", "first_version")
_MOST = 40  # episodes in a table
_LEFT_OUT = (
    "seed",
    "terminated",
    "truncated",
    "first_version",
    "weights_version",
    "discount",
    "policy_lag",
    "wall_time",
)


def _rows(table: Any) -> list[dict[str, Any]]:
    return [{str(name): _plain(value) for name, value in row.items()} for row in table.to_dict("records")]


def _of_people(row: dict[str, Any], several: bool) -> dict[str, Any]:
    """An episode, or a transition of one, in fewer columns."""
    kept = {
        name: value
        for name, value in row.items()
        if name not in _LEFT_OUT and not name.startswith("next_") and (several or name != "run")
    }
    kept["ended"] = "terminated" if row["terminated"] else "truncated" if row["truncated"] else None
    if "first_version" in row:
        first, last = row["first_version"], row["weights_version"]
        kept["versions"] = str(first) if first == last else f"{first} to {last}"
    else:
        kept["version"] = str(row["weights_version"])
    return kept


def _plain(value: Any) -> Any:
    """As JSON has it: lists for arrays, null for what is no number."""
    import numpy as np

    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value != value or (isinstance(value, float) and not math.isfinite(value)):
        return None  # no number, and no time
    return value if isinstance(value, bool | int | float | str) else str(value)


def _short(name: str, value: Any) -> Any:
    """As a table shows it: numbers that name something as they are, a time as one, of an array the beginning."""
    if name == "wall_time" and isinstance(value, float):
        import datetime

        return f"{datetime.datetime.fromtimestamp(value, datetime.UTC):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool):
        return str(value).lower()
    if name in _NUMBERS and isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        text = ", ".join(f"{one:.3g}" if isinstance(one, float) else str(one) for one in value[:6])
        return f"[{text}{', ...' if len(value) > 6 else ''}]"
    return value
