"""The map of the layers: data flows one way, and imports point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import daskrl

PACKAGE = Path(daskrl.__file__).parent

# A module imports only from lines above its own, or from its own line what is named before it.
LAYERS = [
    ["errors"],
    ["extras", "names"],
    ["modules"],
    ["config", "seeding", "spaces", "planes", "codec", "code", "captured"],
    ["arithmetic"],
    ["algorithms"],
    ["algorithms.base"],
    ["values", "isolation", "sources", "envs", "networks"],
    ["playing", "video"],
    ["described"],
    ["schedule"],
    ["late"],
    ["columns"],
    ["commits"],
    ["fingerprint"],
    ["store"],
    ["window"],
    ["samplers"],
    ["algorithms.torch_learner"],
    ["algorithms.actor_critic"],
    ["algorithms.ppo", "algorithms.impala"],
    ["algorithms.replay"],
    ["algorithms.dqn"],
    ["algorithms.r2d2"],
    ["algorithms.continuous"],
    ["algorithms.sac", "algorithms.td3"],
    ["algorithms.q_learning", "algorithms.c51"],
    ["algorithms.qr_dqn", "algorithms.rainbow"],
    ["identity"],
    ["greedy"],
    ["export"],
    ["policies"],
    ["initial"],
    ["children", "memory"],
    ["session"],
    ["rollout", "learner"],
    ["evaluations"],
    ["preload"],
    ["demand", "figures", "members"],
    ["dashboard"],
    ["ahead", "scaling", "workers"],
    ["pools"],
    ["clusters"],
    ["analysis"],
    ["train"],
    ["evaluate", "reproduce"],
    ["faults"],
    ["victims"],
    ["chaos"],
    ["watch", "sinks"],
    ["testing"],
    ["cli"],
    ["__init__", "__main__"],
]

# Each heavy library has its own room: where it may be imported at all, lazily or not.
ROOMS = {
    "zarr": {"store", "preload"},
    "xarray": {"store"},
    "matplotlib": {"analysis"},
    "distributed": {"ahead", "dashboard", "scaling", "workers", "pools", "clusters", "train", "cli"},
    "dask": {"workers", "pools", "clusters", "cli"},
    "tornado": {"dashboard"},
    "safetensors": {"store", "initial", "learner", "preload", "export"},
    "rich": {"cli", "watch"},
    "cyclopts": {"cli"},
    "psutil": {"memory"},
    "imageio_ffmpeg": {"video"},
    "onnx": {"export"},
    "onnxruntime": {"export"},
}

# torch is imported when these are; elsewhere only within functions.
TORCH = {
    "greedy",
    "export",
    "preload",
    "networks",
    "window",
    "samplers",
    "algorithms.torch_learner",
    "algorithms.actor_critic",
    "algorithms.ppo",
    "algorithms.impala",
    "algorithms.replay",
    "algorithms.dqn",
    "algorithms.r2d2",
    "algorithms.continuous",
    "algorithms.sac",
    "algorithms.td3",
    "algorithms.c51",
    "algorithms.qr_dqn",
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below it; a package is its ``__init__.py``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = path
    return found


def imports(path: Path, *, typing: bool = False) -> Iterator[tuple[str, bool]]:
    """``(module, within a function)`` of every import, those under ``TYPE_CHECKING`` only if asked for."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path.name} uses a relative import; write it out"
                yield child.module or "", lazy
                yield from ((f"{child.module}.{alias.name}", lazy) for alias in child.names)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                if typing:
                    yield from walk(child, lazy)
            else:
                yield from walk(child, lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(path.read_text()), False)


def own(path: Path) -> set[str]:
    """The modules of the package that a module imports, at its top or within a function."""
    known = modules()
    names = {name.removeprefix("daskrl.") for name, _ in imports(path) if name.startswith("daskrl.")}
    return {name for name in names if name in known}


def test_every_module_has_its_place_in_the_map():
    assert sorted(name for layer in LAYERS for name in layer if name != "__main__") == sorted(
        name for name in modules() if name != "__main__"
    )


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_point_down_only(module):
    order = [name for layer in LAYERS for name in layer]
    place = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for name in own(modules()[module]) - {module}:
        below = place[name] < place[module] or (
            place[name] == place[module] and order.index(name) < order.index(module)
        )
        assert below, f"{module} imports {name}, which lies above it"


@pytest.mark.parametrize("library", ROOMS)
def test_each_heavy_library_is_imported_in_its_own_room_only(library):
    rooms = {
        module for module, path in modules().items() for name, _ in imports(path) if name.partition(".")[0] == library
    }
    assert rooms <= ROOMS[library]


def test_torch_is_imported_at_the_top_of_the_learning_modules_only():
    top = {
        module
        for module, path in modules().items()
        for name, lazy in imports(path)
        if name.partition(".")[0] == "torch" and not lazy
    }
    assert top <= TORCH


def fresh(code: str) -> list[str]:
    """What a fresh interpreter printed."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.split()


@pytest.mark.parametrize("module", ["daskrl", "daskrl.pools", "daskrl.rollout", "daskrl.learner"])
def test_what_the_scheduler_imports_brings_neither_torch_nor_zarr(module):
    heavy = ("torch", "zarr", "xarray", "matplotlib", "distributed", "dask", "tornado", "bokeh", "safetensors",
             "cyclopts", "rich")  # fmt: skip
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    assert fresh(code) == []
