"""Where runs and studies lie below some directory, by a pattern."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.store.packed import SUFFIX
from daskrl.store.places import found, place
from daskrl.store.storage import Storage

_WILD = re.compile(r"[*?\[]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    return bool(_URL.match(text))


def is_wild(text: str) -> bool:
    """Whether there is a wildcard in it."""
    return bool(_WILD.search(text))


def split(pattern: str) -> tuple[Path, tuple[str, ...], bool]:
    """The directory that a pattern begins with, the patterns of the names below it, and whether there are any."""
    parts = Path(pattern).parts
    fixed = next((number for number, part in enumerate(parts) if _WILD.search(part)), len(parts))
    return Path(*parts[:fixed]), parts[fixed:] or ("**",), fixed < len(parts)


def below(folder: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """``("run" or "study", path)`` of all that lies in a folder, itself among it; what is within them is not looked at.

    Parameters
    ----------
    wanted : patterns of names, which say how deep to look.
    """
    return _below(folder, None if "**" in wanted else len(wanted), set())


def _below(folder: Path, depth: int | None, seen: set[tuple[int, int]]) -> Iterator[tuple[str, Path]]:
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
                and found(entry.path).holds_store()
            ):
                yield "run", folder / entry.name.removesuffix(SUFFIX)


def matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the names of a path are those of a pattern; ``**`` are any names."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(matches(parts[skipped:], wanted[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and matches(parts[1:], wanted[1:])


def many(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a pattern, or a directory that is neither a run nor a study but holds something."""
    path = os.fspath(path)
    if _URL.match(path):
        return False
    if _WILD.search(path):
        return not os.path.exists(path)
    folder = Path(path)
    return folder.is_dir() and not (folder / ".commits").exists() and any(folder.iterdir())


def holds_study(storage: Storage) -> bool:
    """Whether a study was made in a place. Its log lies as that of a run does."""
    return storage.holds_store() and storage.exists("study.json")


def runs(pattern: str) -> list[str]:
    """The paths of the runs of a pattern, or of a run, a study, or a directory of any number of these; sorted.

    Parameters
    ----------
    pattern : as `daskrl.runs` takes one. Of URLs that of one run or study.

    Raises
    ------
    StoreMismatchError
        There is none.
    ConfigError
        It is the URL of neither a run nor a study.
    """
    if is_url(pattern):
        if is_wild(pattern) and not found(pattern).holds_store():
            raise ConfigError(f"expected the URL of a run or of a study, without a pattern, got {pattern!r}.")
        storage = place(pattern)
        return _of_study(storage, pattern) if holds_study(storage) else [pattern]
    if os.path.exists(pattern):  # a name may look like a pattern
        root, wild = Path(pattern), False
        wanted: tuple[str, ...] = ("**",)
    else:
        root, wanted, wild = split(pattern)
    if not wild and (not root.is_dir() or (root / ".commits").is_dir()) and not (root / "study.json").exists():
        return [pattern]  # a run, which may be packed; or nothing at all, which whoever opens it says
    paths: list[str] = []
    for kind, path in below(root, wanted):
        every = matches(path.relative_to(root).parts, wanted)
        if kind == "run":
            paths += [str(path)] * every
        else:
            found_ = _of_study(place(path.absolute()), str(path))
            paths += [one for one in found_ if every or matches(Path(one).relative_to(root).parts, wanted)]
    if not paths:
        raise StoreMismatchError(f"no run lies where {pattern!r} says. Type: daskrl info {root}")
    return sorted(paths)


def _of_study(storage: Storage, path: str) -> list[str]:
    """Of a study those of its runs that were begun."""
    names = {name.removesuffix(SUFFIX) for name in storage.names("runs") if not name.startswith(".")}
    return [f"{path}/runs/{name}" for name in sorted(names) if found(f"{path}/runs/{name}").holds_store()]
