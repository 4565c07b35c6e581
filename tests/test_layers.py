"""The map of the layers: data flows one way, and imports point down only."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import daskrl

PACKAGE = Path(daskrl.__file__).parent

# The house, from the ground up. A room is a folder, or a module that lies in none. A room imports from itself, and from
# rooms before it in this list.
HOUSE = [
    "errors",
    "extras",
    "names",
    "shown",
    "records",
    "arithmetic",
    "seeding",
    "codec",
    "config",
    "schedule",
    "code",
    "envs",
    "store",
    "replay",
    "algorithms",
    "identity",
    "tasks",
    "prepared",
    "pools",
    "watching",
    "clusters",
    "analysis",
    "loop",
    "run",
    "study",
    "testing",
    "cli",
    "__init__",
    "__main__",
]

# Each heavy library has its own room: where it may be imported at all, lazily or not.
ROOMS = {
    "zarr": {"store", "tasks.preload"},
    "xarray": {"store", "analysis"},
    "matplotlib": {"analysis", "run", "study"},
    "pandas": {"study", "analysis"},
    "scipy": {"study"},
    "arch": {"study.statistics"},
    "optuna": {"study"},
    "jinja2": {"study.report"},
    "pyarrow": {"study.exports", "analysis"},
    "duckdb": {"analysis"},
    "distributed": {"pools", "clusters", "tasks", "watching", "run", "study", "testing", "cli"},
    "dask": {"pools", "clusters", "analysis", "cli"},
    "tornado": {"watching.dashboard"},
    "safetensors": {"store", "tasks", "analysis.export"},
    "rich": {"cli", "watching.watch"},
    "cyclopts": {"cli"},
    "psutil": {"tasks.memory"},
    "imageio_ffmpeg": {"envs.video"},
    "obstore": {"store.client"},
    "onnx": {"analysis.export"},
    "onnxruntime": {"analysis.export"},
}

# torch is imported when these are; elsewhere only within functions.
TORCH = {"replay", "algorithms", "tasks.preload", "analysis.export"}
NO_TORCH = {"algorithms", "algorithms.base", "algorithms.described", "algorithms.q_learning", "replay", "replay.rounds"}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name below it; a package is its ``__init__.py``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = path
    return found


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """``(module, within a function)`` of every import, those under ``TYPE_CHECKING`` and in functions included."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path.name} uses a relative import; write it out"
                yield child.module or "", lazy
                yield from ((f"{child.module}.{alias.name}", lazy) for alias in child.names)
            else:
                typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, lazy or typing or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return list(walk(ast.parse(path.read_text()), False))


def own(name: str, path: Path) -> set[str]:
    """The modules of the package that a module imports: at its top, within a function, or for its types."""
    known = modules()
    found = {name.removeprefix("daskrl.") for name, _ in imports(path) if name.startswith("daskrl.")}
    # A package's own file gives names of the modules in it.
    return {other for other in found if other in known and not name.startswith(f"{other}.")} - {name}


def room(module: str) -> str:
    return module.partition(".")[0]


def within(module: str, rooms: Iterable[str]) -> bool:
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"
FRAME = re.compile("(?<=<!-- map -->\n).*(?=<!-- end of map -->)", re.DOTALL)


def drawn() -> str:
    """The map: a line for each room, from the roof down, with the rooms that it imports from."""
    below: dict[str, set[str]] = {name: set() for name in HOUSE}
    for name, path in modules().items():
        below[room(name)] |= {room(other) for other in own(name, path)} - {room(name)}
    rooms = [name for name in reversed(HOUSE) if not name.startswith("__")]
    lines = [f"{name:<11}{' '.join(other for other in HOUSE if other in below[name])}".rstrip() for name in rooms]
    return "```\n" + "\n".join(lines) + "\n```\n"


def test_the_map_for_newcomers_is_the_one_of_the_real_imports():
    assert FRAME.findall(CONTRIBUTING.read_text()) == [drawn()], "draw it again: python -m tests.test_layers"


def test_every_room_has_its_place_in_the_house():
    assert sorted(HOUSE) == sorted({room(name) for name in modules()})


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down_only(module):
    for name in own(module, modules()[module]):
        assert HOUSE.index(room(name)) <= HOUSE.index(room(module)), f"{module} imports {name}, which lies above it"


def test_no_module_imports_itself_through_others():
    graph = {name: own(name, path) for name, path in modules().items() if path.name != "__init__.py"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("library", ROOMS)
def test_each_heavy_library_is_imported_in_its_own_room_only(library):
    for module, path in modules().items():
        if library in {name.partition(".")[0] for name, _ in imports(path)}:
            assert within(module, ROOMS[library]), f"{module} imports {library}"


def test_torch_is_imported_at_the_top_of_the_learning_modules_only():
    for module, path in modules().items():
        if ("torch", False) in {(name.partition(".")[0], lazy) for name, lazy in imports(path)}:
            assert within(module, TORCH), f"{module} imports torch"
            assert module not in NO_TORCH, f"{module} imports torch"


def fresh(code: str) -> list[str]:
    """What a fresh interpreter printed."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.split()


@pytest.mark.parametrize("module", ["daskrl", "daskrl.pools.dask", "daskrl.tasks.rollout", "daskrl.tasks.learner"])
def test_what_the_scheduler_imports_brings_neither_torch_nor_zarr(module):
    heavy = ("torch", "zarr", "xarray", "matplotlib", "distributed", "dask", "tornado", "bokeh", "safetensors",
             "cyclopts", "rich")  # fmt: skip
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    assert fresh(code) == []


if __name__ == "__main__":
    CONTRIBUTING.write_text(FRAME.sub(lambda found: drawn(), CONTRIBUTING.read_text()))
