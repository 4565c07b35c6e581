"""What this project keeps to where it writes tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

HERE = Path(__file__).parent
FILES = sorted(path.relative_to(HERE).as_posix() for path in HERE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that a file imports, and every name that a file takes from a module, with the module's."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES)
def test_what_tests_share_lies_in_a_module_without_tests(file: str) -> None:
    """A test module that imports another is collected with its fixtures and breaks with its tests."""
    taken = {name for name in imported(HERE / file) if any(part.startswith("test_") for part in name.split("."))}
    assert not taken, f"tests/{file} imports {taken}: move the names to conftest.py or to a helper module of tests/"


PRIVATE = re.compile(r"_(?!_)\w*(?<!_)")


def ours() -> set[str]:
    """Every private name that a module of the package defines."""
    found = set()
    for path in (HERE.parent / "daskrl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {name for name in found if PRIVATE.fullmatch(name)}


def looked_at(path: Path, private: set[str]) -> set[str]:
    """The private names of the package that a test module uses; those of its own classes aside."""
    tree = ast.parse(path.read_text())
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (node.attr in own and ast.unparse(node.value) in ("self", "cls", "super()")):
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("daskrl"):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call):  # monkeypatch.setattr(daskrl.x, "_name", ...) or ("daskrl.x._name", ...)
            texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found |= {text.rpartition(".")[2] for text in texts}
    return found & private


@pytest.fixture(scope="module")
def private() -> set[str]:
    return ours()


@pytest.mark.parametrize("file", FILES)
def test_tests_use_public_names(file: str, private: set[str]) -> None:
    """A private name may change at any time, and what a test needs either shows from outside or should be public."""
    assert "_driven" in private
    found = looked_at(HERE / file, private)
    assert not found, f"tests/{file} looks at {found}: use what is public, or make the name public within its room"


def test_a_look_at_a_private_name_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "test_x.py"
    path.write_text("""if True:
        from daskrl.loop import _one
        class Env:
            def _own(self): return self._own() + self._two
        run.store._three, super()._own()
        monkeypatch.setattr(store, "_four", None)
        monkeypatch.setattr("daskrl.store._five", None)
        text = "_six"
    """)
    private = {"_one", "_own", "_two", "_three", "_four", "_five", "_six"}
    assert looked_at(path, private) == {"_one", "_two", "_three", "_four", "_five"}


def test_before_a_commit_the_same_is_checked_as_before_a_change_lands() -> None:
    root = HERE.parent
    hooks = [
        hook
        for repo in yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repo["hooks"]
    ]
    checks = re.findall(r"^\.venv/bin/(?:ruff|mypy).*$", (root / ".ci" / "run").read_text(), re.MULTILINE)
    assert [hook["entry"] for hook in hooks] == checks
    assert len(checks) == 3
