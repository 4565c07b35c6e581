"""Studies by their directories: the settings of one are compared, or several with each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from daskrl import extras
from daskrl.errors import ConfigError
from daskrl.names import did_you_mean
from daskrl.store.places import Place
from daskrl.study import scores, table
from daskrl.study.compare import Comparison, compare
from daskrl.study.log import StudyLog

STUDY = "study"
"""The column that names the study of a run."""


def compared(paths: Sequence[Place], by: Sequence[str] = (), **given: Any) -> Comparison:
    """Compare the settings of one study, or studies over equal settings, environments and seeds.

    Parameters
    ----------
    paths : of the studies.
    by : settings whose values make the groups; of several studies, beside the study.
    given : as of `daskrl.study.compare.compare`.

    Raises
    ------
    ConfigError
        One study and nothing to compare by, a name that a study does not have, or studies of different scores.
    """
    logs = [StudyLog.open(path) for path in paths]
    if not logs:
        raise ConfigError("compare: expected the directory of a study, or several, got none.")
    shared = [name for name in logs[0].definition["space"] if all(name in log.definition["space"] for log in logs)]
    for name in by:
        if name not in (*shared, "algorithm", "environment"):
            has = ", ".join(shared) or "no settings"
            every = "" if len(logs) == 1 else "every one "
            raise ConfigError(f"by: expected settings that {every}has, got {name!r}; there are {has}."
                              f"{did_you_mean(name, shared)}")  # fmt: skip
    if len(logs) == 1:
        if not by:
            has = ", ".join(shared) or "no settings: give a second study"
            raise ConfigError(f"by: expected settings to compare by. {logs[0].storage} has {has}.")
        settings = {"settings": shared, "unit": unit(logs[0])}
        return compare(table.table(logs[0]), list(by), **{**settings, **given})
    _require_one_score(logs)
    with extras.needed("study", "comparisons need pandas"):
        import pandas
    names = [log.storage.name for log in logs]
    if len(set(names)) < len(names):
        names = [str(log.storage) for log in logs]
    if len(set(names)) < len(names):
        raise ConfigError("compare: expected different studies, got one twice.")
    rows = [{STUDY: name, **row} for name, log in zip(names, logs, strict=True) for row in table.rows(log)]
    settings = {"settings": shared, "unit": unit(logs[0])}
    return compare(pandas.DataFrame(rows), [STUDY, *by], **{**settings, **given})


def unit(log: StudyLog) -> str:
    """What the scores of a study are, in words."""
    said = dict(log.definition["score"])
    cls = getattr(scores, str(said.pop("kind", "")), None)
    if dataclasses.is_dataclass(cls) and isinstance(cls, type):
        names = {field.name for field in dataclasses.fields(cls)}
        made: Any = cls(**{name: value for name, value in said.items() if name in names})
        return scores.unit(made)
    return str(said.get("function", "score")).rpartition(".")[2].strip("<>")


def _require_one_score(logs: Sequence[StudyLog]) -> None:
    first = logs[0]
    for other in logs[1:]:
        if other.definition["score"] != first.definition["score"]:
            one, two = unit(first), unit(other)
            same = " of other code" if one == two else ""
            raise ConfigError(
                f"{first.storage} and {other.storage} have different scores: {one}, and {two}{same}. Their numbers "
                "cannot be compared."
            )
