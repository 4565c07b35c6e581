"""The runs and studies that lie below some directory: what there is, and how far each is."""

from __future__ import annotations

import fnmatch
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskrl import extras
from daskrl.errors import ConfigError, DaskrlError
from daskrl.store.packed import SUFFIX, Packed
from daskrl.store.places import place
from daskrl.store.posix import Posix
from daskrl.store.storage import Storage
from daskrl.store.store import Store
from daskrl.study import table
from daskrl.study.log import StudyLog

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "path", "study", "algorithm", "environment", "seed", "env_steps", "state", "packed", "return_last_100",
)  # fmt: skip
_WILD = re.compile(r"[*?\[]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def runs(pattern: str | os.PathLike[str] = "**") -> pandas.DataFrame:
    """A row for each run that lies where a pattern says, those of studies among them; needs ``daskrl[study]``.

        daskrl.runs("studies/**")

    It opens no arrays and computes no digest: of a run it reads how far the run is, of a study its log alone.

    Parameters
    ----------
    pattern : a directory, for all below it, or with ``*``, ``?``, ``[...]`` in the names of directories; ``**`` are any
        directories. A study that the pattern names is there with all of its runs. Of URLs that of one run or study.

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
    if _URL.match(text):
        return _at_url(text)
    parts = Path(text).parts
    fixed = next((number for number, part in enumerate(parts) if _WILD.search(part)), len(parts))
    root, wanted = Path(*parts[:fixed]), parts[fixed:] or ("**",)
    if fixed == len(parts) and not root.is_dir() and Store.exists(root):
        return [_of_run(root)]  # it is packed
    if not root.is_dir():
        raise ConfigError(f"runs: {root} is no directory. Expected one, or a pattern like 'studies/**'.")
    found: list[dict[str, Any]] = []
    for kind, path in _below(root, None if "**" in wanted else len(wanted), set()):
        below = path.relative_to(root).parts
        if kind == "run":
            if _matches(below, wanted):
                found.append(_of_run(path))
        else:
            of_study = _of_study(Posix(path.absolute()), str(path))
            every = _matches(below, wanted)
            found += [
                row for row in of_study if every or _matches(Path(row["path"]).relative_to(root).parts, wanted)
            ]  # fmt: skip
    return found


def many(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a pattern, or a directory that is neither a run nor a study but holds something."""
    path = os.fspath(path)
    if _URL.match(path):
        return False
    if _WILD.search(path):
        return not os.path.exists(path)
    folder = Path(path)
    return folder.is_dir() and not (folder / ".commits").exists() and any(folder.iterdir())


def _at_url(text: str) -> list[dict[str, Any]]:
    if StudyLog.exists(text):
        return _of_study(place(text), text)
    if _WILD.search(text) or not Store.exists(text):
        raise ConfigError(f"runs: expected the URL of a run or a study, without a pattern, got {text!r}.")
    return [_of_run(text)]


def _below(folder: Path, depth: int | None, seen: set[tuple[int, int]]) -> Iterator[tuple[str, Path]]:
    """``("run" or "study", path)`` of all that lies in a folder, itself among it; what is within them is not looked at.

    Parameters
    ----------
    depth : how many folders deep, None for any.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        about = os.stat(folder)
    except OSError:  # not ours to read, or gone since
        return
    if (about.st_dev, about.st_ino) in seen:  # a link to a folder above
        return
    seen.add((about.st_dev, about.st_ino))
    names = {entry.name for entry in entries}
    if ".commits" in names and "study.json" in names:
        yield "study", folder
    elif ".commits" in names:
        yield "run", folder
    elif depth is None or depth > 0:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _below(Path(entry.path), None if depth is None else depth - 1, seen)
            elif (
                entry.name.endswith(SUFFIX)
                and entry.name.removesuffix(SUFFIX) not in names
                and Store.exists(entry.path)
            ):
                yield "run", folder / entry.name.removesuffix(SUFFIX)


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[skipped:], wanted[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _of_run(path: str | Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row["path"] = str(path)
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
