"""The source of functions and classes: whether it is the user's own, what it says, and which names it reads."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import linecache
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

# What `dataclasses` compiles into a class, from a text that no file has.
_GENERATED = {
    "__init__", "__repr__", "__eq__", "__hash__", "__lt__", "__le__", "__gt__", "__ge__", "__setattr__", "__delattr__",
    "__replace__", "__getstate__", "__setstate__",
}  # fmt: skip


@functools.lru_cache(maxsize=4096)
def is_own_file(name: str) -> bool:
    """Whether a file is the user's own: neither of an installed package, nor of Python, nor of daskrl."""
    if not name or name.startswith("<frozen"):
        return False
    if name.startswith("<"):  # typed in, or made by ``exec``
        return True
    if {"site-packages", "dist-packages"} & set(Path(name).parts):
        return False
    paths = sysconfig.get_paths()
    installed = [Path(paths[key]) for key in ("purelib", "platlib", "stdlib", "platstdlib")]
    return not any(Path(name).is_relative_to(folder) for folder in (*installed, Path(__file__).parent))


def is_own_module(name: str | None) -> bool:
    """Whether a module is the user's own."""
    if not name or name.partition(".")[0] in {"daskrl", *sys.stdlib_module_names} - {"__main__"}:
        return False
    if name == "__main__":
        return True
    parts = name.split(".")  # a part of an extension module has no file of its own
    packages = (sys.modules.get(".".join(parts[:n])) for n in range(len(parts), 0, -1))
    file = next((file for package in packages if (file := getattr(package, "__file__", None))), None)
    return file is None or is_own_file(file)


def source_of_class(cls: type) -> str:
    """The source of a class; raises `OSError` where there is none: it was made by ``exec``, or by a call."""
    functions = written(cls)
    try:
        text = inspect.getsource(cls)
    except (OSError, TypeError):
        text = ""
    # Of a class made by ``exec`` Python 3.13 gives the lines of that number in the module's file, whatever they are,
    # and older ones a class of the same name.
    if _defines(text, cls.__name__) and all(_lines(function.__code__.co_filename) for function in functions):
        return text
    # Python does not find a class of a notebook cell; its methods know in which cell they were written.
    for function in functions:
        cell = "".join(_lines(function.__code__.co_filename))
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                return ast.get_source_segment(cell, node) or ""
    raise OSError(f"there is no source of {cls.__qualname__}")


def written(cls: type) -> list[FunctionType]:
    """The functions that stand in the body of a class."""
    found = []
    for name, value in vars(cls).items():
        function = inspect.unwrap(value) if inspect.isfunction(value) else getattr(value, "__func__", None)
        if not inspect.isfunction(function) or function.__qualname__ != f"{cls.__qualname__}.{name}":
            continue
        if not is_generated(cls, name, function):
            found.append(function)
    return found


def is_generated(cls: type, name: str, function: FunctionType) -> bool:
    """Whether `dataclasses` made a function of a class: the fields say the same."""
    if name not in _GENERATED or "__dataclass_fields__" not in vars(cls):
        return False
    file = function.__code__.co_filename
    return file == "<string>" or not is_own_file(file)


def _lines(file: str) -> list[str]:
    return linecache.getlines(file)


def _defines(text: str, name: str) -> bool:
    try:
        body = ast.parse(textwrap.dedent(text)).body
    except SyntaxError:  # the lines of a string may be indented less than the code
        return re.search(rf"^\s*(class|(async\s+)?def)\s+{re.escape(name)}\b", text, re.MULTILINE) is not None
    return bool(body) and getattr(body[0], "name", None) == name


def source_of_code(code: CodeType) -> str:
    """What compiled code says: its source, of a lambda only its own part of the line; else the code as compiled."""
    try:
        if code.co_name == "<lambda>":
            return _source_of_lambda(code)
        text = inspect.getsource(code)
    except (OSError, TypeError, SyntaxError, IndexError):
        return compiled(code)
    return textwrap.dedent(text).strip() if _defines(text, code.co_name) else compiled(code)


def _source_of_lambda(code: CodeType) -> str:
    text = "".join(_lines(code.co_filename))
    places = [(line, column) for line, _, column, _ in code.co_positions() if line and column is not None]
    found = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Lambda)
        and node.lineno == code.co_firstlineno
        and all(_start(node) <= place <= _end(node) for place in places if place != (code.co_firstlineno, 0))
    ]
    if not found:
        raise OSError("no lambda stands there")
    node = max(found, key=_start)  # the innermost
    return ast.get_source_segment(text, node) or ""


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or node.col_offset


def compiled(code: CodeType) -> str:
    """Compiled code as text; of another minor version of Python it is another."""

    def constant(value: Any) -> str:
        if isinstance(value, CodeType):
            return compiled(value)
        if isinstance(value, frozenset):
            return f"frozenset({sorted(map(constant, value))})"
        return repr(tuple(map(constant, value))) if isinstance(value, tuple) else repr(value)

    constants = [constant(value) for value in code.co_consts]
    return repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants))


@dataclass
class Reads:
    """The names that code reads beyond its own.

    Attributes
    ----------
    globals, cells : name -> the attributes read of it, each as a chain: ``cfg.env.scale`` is ``("env", "scale")``;
        the empty chain where the value itself is used.
    imports : modules imported within, and the names taken from each; none for the module itself.
    """

    globals: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    cells: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    imports: list[tuple[str, int, tuple[str, ...]]] = field(default_factory=list)


_WAITING = {"CACHE", "EXTENDED_ARG", "PUSH_NULL", "NOP", "PRECALL", "NOT_TAKEN"}


def reads(code: CodeType) -> Reads:
    """What code reads, functions and classes within it included."""
    found = Reads()
    for part in _all_code(code):
        instructions = [each for each in dis.get_instructions(part) if each.opname not in _WAITING]
        for i, instruction in enumerate(instructions):
            name, value = instruction.opname, instruction.argval
            if name.startswith("LOAD_") and name.endswith(("GLOBAL", "GLOBALS", "NAME", "DEREF")):
                chain = []
                for following in instructions[i + 1 :]:
                    if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                        break
                    chain.append(following.argval)
                where = found.cells if name.endswith("DEREF") else found.globals
                where.setdefault(value, set()).add(tuple(chain))
            elif name == "IMPORT_NAME":
                names = []
                for following in instructions[i + 1 :]:
                    if following.opname == "IMPORT_FROM":
                        names.append(following.argval)
                    elif not following.opname.startswith("STORE_"):
                        break
                found.imports.append((value, _level(instructions, i), tuple(names)))
    return found


def _level(instructions: list[dis.Instruction], at: int) -> int:
    level = instructions[at - 2].argval if at >= 2 else 0
    return level if isinstance(level, int) else 0


def _all_code(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all_code(constant)
