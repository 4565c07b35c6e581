"""Where runs and studies lie below some directory, by a pattern."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.store.objects import Objects
from daskrl.store.packed import SUFFIX
from daskrl.store.places import found, place
from daskrl.store.storage import Storage

_WILD = re.compile(r"[*?\[]")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
STUDY = "study.json"
"""The file that tells a study from a run."""
Names = tuple[str, ...]


def split(pattern: str) -> tuple[str, Names, bool]:
    """The directory or URL that a pattern begins with, the patterns of names below it, and whether there are any."""
    if pattern.startswith("file://"):
        pattern = unquote(urlsplit(pattern).path)
    url = _URL.match(pattern)
    if not url and os.path.exists(pattern):  # a name may look like a pattern
        return pattern, ("**",), False
    parts = tuple(filter(None, pattern[url.end() :].split("/"))) if url else Path(pattern).parts
    fixed = next((number for number, part in enumerate(parts) if _WILD.search(part)), len(parts))
    root = url[0] + "/".join(parts[:fixed]) if url else str(Path(*parts[:fixed]))
    return root, parts[fixed:] or ("**",), fixed < len(parts)


def join(root: str, names: Names) -> str:
    """The path or URL of something below one."""
    return "/".join([root, *names]) if _URL.match(root) else str(Path(root, *names))


def is_directory(root: str) -> bool:
    """Whether something may lie below; of a URL that is not asked."""
    return bool(_URL.match(root)) or Path(root).is_dir()


def below(root: str, wanted: Names) -> Iterator[tuple[str, Names]]:
    """``("run" or "study", names)`` of all that lies below, the root itself among it, without what is within these.

    Parameters
    ----------
    root : a directory, or the URL of a bucket or of something in it.
    wanted : patterns of names, which say how deep to look.
    """
    level = _in_bucket(root) if _URL.match(root) else _in_directory(root)
    return _below(root, level, (), None if "**" in wanted else len(wanted))


Level = Callable[[Names], tuple[list[str], list[str]]]
"""Of a folder below a root the names of its folders, and of what else lies in it, sorted."""


def _below(root: str, level: Level, at: Names, depth: int | None) -> Iterator[tuple[str, Names]]:
    folders, others = level(at)
    if ".commits" in folders:
        yield "study" if STUDY in others else "run", at
        return
    if depth == 0:
        return
    packed = {name.removesuffix(SUFFIX) for name in others if name.endswith(SUFFIX)}
    for name in sorted({*folders, *packed}):
        if name.startswith("."):
            continue
        inside = []
        if name in folders:
            inside = list(_below(root, level, (*at, name), None if depth is None else depth - 1))
            yield from inside
        # Some object stores go on to list a folder of which nothing is left.
        if name in packed and not inside and found(join(root, (*at, name))).holds_store():
            yield "run", (*at, name)


def _in_directory(root: str) -> Level:
    seen: set[tuple[int, int]] = set()

    def level(at: Names) -> tuple[list[str], list[str]]:
        folder = Path(root, *at)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            about = os.stat(folder)
        except OSError:  # not ours to read, or gone since
            return [], []
        if (about.st_dev, about.st_ino) in seen:  # a link to a folder above
            return [], []
        seen.add((about.st_dev, about.st_ino))
        folders = [entry.name for entry in entries if entry.is_dir()]
        return folders, [entry.name for entry in entries if not entry.is_dir()]

    return level


def _in_bucket(root: str) -> Level:
    if urlsplit(root).scheme == "memory":
        raise ConfigError(f"{root}: runs in memory are found by their own URL alone, without a pattern.")
    place(f"{root}/any")  # raises where the URL is none
    storage = Objects.of(root, bucket=True)
    return lambda at: storage.level("/".join(at))


def matches(parts: Names, wanted: Names) -> bool:
    """Whether the names of a path are those of a pattern; ``**`` are any names."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(matches(parts[skipped:], wanted[1:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and matches(parts[1:], wanted[1:])


def many(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a pattern, or a directory that is neither a run nor a study but holds something."""
    path = os.fspath(path)
    if _URL.match(path) and not path.startswith("file://"):
        root, _, wild = split(path)
        parts = urlsplit(path)
        one = parts.path.strip("/") and not parts.query  # a name may look like a pattern
        if parts.scheme == "memory" or (one and found(path).holds_store()):
            return False
        return wild or any(_in_bucket(root)(()))
    if _WILD.search(path) and not os.path.exists(path):
        return True
    folder = Path(path)
    return folder.is_dir() and not (folder / ".commits").exists() and any(folder.iterdir())


def holds_study(storage: Storage) -> bool:
    """Whether a study was made in a place. Its log lies as that of a run does."""
    return storage.holds_store() and storage.exists(STUDY)  # else a prefix may hold what was never finished


def runs(pattern: str) -> list[str]:
    """The paths of the runs of a pattern, or of a run, a study, or a directory of any number of these; sorted.

    Parameters
    ----------
    pattern : as `daskrl.runs` takes one.

    Raises
    ------
    StoreMismatchError
        There is none.
    """
    if not many(pattern):
        if os.path.exists(pattern) or _URL.match(pattern):
            storage = place(pattern)
            return sorted(_of_study(storage, pattern)) if holds_study(storage) else [pattern]
        return [pattern]  # a run, which may be packed; or nothing at all, which whoever opens it says
    root, wanted, _ = split(pattern)
    paths: list[str] = []
    for kind, names in below(root, wanted):
        path, every = join(root, names), matches(names, wanted)
        if kind == "run":
            paths += [path] * every
        else:
            found_ = _of_study(place(path), path)
            paths += [one for one in found_ if every or matches((*names, *one.split("/")[-2:]), wanted)]
    if not paths:
        raise StoreMismatchError(f"no run lies where {pattern!r} says. Type: daskrl info {root}")
    return sorted(paths)


def _of_study(storage: Storage, path: str) -> list[str]:
    """Of a study those of its runs that were begun."""
    names = {name.removesuffix(SUFFIX) for name in storage.names("runs") if not name.startswith(".")}
    return [f"{path}/runs/{name}" for name in sorted(names) if found(f"{path}/runs/{name}").holds_store()]
