"""How much memory a process may still take: of its machine, and of the control group of its job or container."""

from __future__ import annotations

import os
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def free() -> int:
    """Bytes that this process could still take before something is killed."""
    import psutil  # type: ignore[import-untyped]

    found: list[int] = [psutil.virtual_memory().available]
    for folder, limit, used in _limits():
        try:
            most = int((folder / limit).read_text())
            found.append(most - int((folder / used).read_text()) + _reclaimable(folder))
        except (OSError, ValueError):  # not there, or "max": no limit
            continue
    return max(0, min(found))


def used() -> int:
    """Bytes that this process has taken."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def _limits() -> list[tuple[Path, str, str]]:
    """Control groups of this process and those they are in: folder, and the names of its limit and its usage."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return []
    found: list[tuple[Path, str, str]] = []
    for line in lines:
        number, controllers, name = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root, files = (GROUPS, ("memory.max", "memory.current"))
        if number != "0":
            root, files = GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        place = Path(os.path.normpath(f"{root}/{name}"))
        # In a container the path is that of the host, and its own group is the root.
        found += [(folder, *files) for folder in (place, *place.parents) if folder.is_relative_to(root)]
    return found


def _reclaimable(folder: Path) -> int:
    """Bytes of a group's usage that are files kept in memory: they go where memory is wanted."""
    rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
