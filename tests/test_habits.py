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
