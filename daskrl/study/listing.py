"""The runs and studies that lie below some directory: what there is, and how far each is."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from daskrl import extras
from daskrl.errors import ConfigError, DaskrlError
from daskrl.store import finding
from daskrl.store.packed import SUFFIX, Packed
from daskrl.store.places import place
from daskrl.store.storage import Storage
from daskrl.store.store import Store
from daskrl.study import table
from daskrl.study.log import StudyLog

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "path", "study", "algorithm", "environment", "seed", "env_steps", "state", "packed", "return_last_100",
)  # fmt: skip


def runs(pattern: str | os.PathLike[str] = "**") -> pandas.DataFrame:
    """A row for each run that lies where a pattern says, those of studies among them; needs ``daskrl[study]``.

        daskrl.runs("studies/**")

    It opens no arrays and computes no digest: of a run it reads how far the run is, of a study its log alone.

    Parameters
    ----------
    pattern : a directory, for all below it, or with ``*``, ``?``, ``[...]`` in the names of directories; ``**`` are any
        directories. A study that the pattern names is there with all of its runs. Or a URL of one
        run, of one study, or with a pattern, ``s3://bucket/studies/**``.

    Returns
    -------
    ``path`` (as `daskrl.Store.open` takes it), ``study`` (None for a run of none), ``algorithm``, ``environment``,
    ``seed``, ``env_steps`` (of the budget), ``state`` (finished, unfinished, failed; unreadable, with a warning),
    ``packed``, ``return_last_100``. Sorted by path; runs of a study are in the order of its table.
    """
    with extras.needed("study", "a list of runs needs pandas"):
        import pandas
    return pandas.DataFrame(rows(pattern), columns=list(COLUMNS))


def rows(pattern: str | os.PathLike[str] = "**") -> list[dict[str, Any]]:
    """The rows of `runs`, as dicts."""
    text = os.fspath(pattern)
    if not isinstance(text, str):
        raise ConfigError(f"runs: expected a directory or a pattern like 'studies/**', got {pattern!r:.200}.")
    if not finding.many(text):  # one run, which may be packed, or one study
        if StudyLog.exists(text):
            return _of_study(place(text), text)
        if Store.exists(text):
            return [_of_run(text)]
    root, wanted, _ = finding.split(text)
    if not finding.is_directory(root):
        raise ConfigError(f"runs: {root} is no directory. Expected one, or a pattern like 'studies/**'.")
    found: list[dict[str, Any]] = []
    for kind, names in finding.below(root, wanted):
        path, every = finding.join(root, names), finding.matches(names, wanted)
        if kind == "run":
            found += [_of_run(path)] if every else []
        else:
            of_study = _of_study(place(path), path)
            found += [row for row in of_study if every or finding.matches((*names, *_names(row)), wanted)]
    return found


def _names(row: dict[str, Any]) -> tuple[str, ...]:
    """Of a run of a study below the study's directory."""
    return "runs", row["path"].rpartition("/")[2]


def _of_run(path: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["path"] = path
    try:
        store = Store.open(path)
        config, progress = store.config, store.progress()
        assert progress.budget is not None, "in commit 0"
        steps = progress.budget["env_steps"]
        finished = progress.published >= config.schedule.rounds(steps)
        row |= {
            "algorithm": config.algorithm["name"],
            "environment": config.environment.get("id") or config.environment["name"],
            "seed": config.seed,
            "env_steps": steps,
            "state": "finished" if finished else "unfinished",
            "packed": isinstance(store.storage, Packed),
            "return_last_100": sum(progress.returns) / len(progress.returns) if progress.returns else None,
        }
    except (DaskrlError, OSError, KeyError, ValueError) as error:
        warnings.warn(f"{path} cannot be read: {error}", stacklevel=2)
        row["state"] = "unreadable"
    return row


def _of_study(storage: Storage, path: str) -> list[dict[str, Any]]:
    """Out of the study's log alone, and the names of what is packed."""
    log = StudyLog.open(storage)
    packed = {name.removesuffix(SUFFIX) for name in storage.names("runs") if name.endswith(SUFFIX)}
    states = {"finished": "finished", "failed": "failed"}
    return [
        {
            "path": f"{path}/{row['run']}",
            "study": path,
            "algorithm": row["algorithm"],
            "environment": row["environment"],
            "seed": row["seed"],
            "env_steps": row["env_steps"],
            "state": states.get(row["state"], "unfinished"),
            "packed": row["run"].rpartition("/")[2] in packed,
            "return_last_100": row["return_last_100"],
        }
        for row in table.rows(log)
    ]
