"""What an algorithm's settings are: names, types and defaults from its class, meanings from docstrings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docstring_parser
import gymnasium

from daskrl.algorithms import BUILT_IN
from daskrl.algorithms.base import Setup
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter.

    Attributes
    ----------
    name, type : as in Python.
    default : as in Python; None where one has to be given.
    meaning : from a docstring; empty where none says it. Where it is that of several, it begins with their names.
    """

    name: str
    type: str
    default: str | None
    meaning: str


def settings_of(cls: type) -> list[Setting]:
    """What an algorithm's class can be made with, what it inherits included, in its order."""
    said = meanings(cls)
    return [
        Setting(
            parameter.name,
            inspect.formatannotation(parameter.annotation).strip("'") if parameter.annotation is not _NONE else "",
            None if parameter.default is _NONE else repr(parameter.default),
            said.get(parameter.name, ""),
        )
        for parameter in parameters(cls).values()
    ]


_NONE = inspect.Parameter.empty


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Those of the class, and of the next one's it derives from for as long as it takes any name (``**settings``)."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        _, *own = inspect.signature(vars(base)["__init__"]).parameters.values()
        for parameter in own:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return found


def meanings(cls: type) -> dict[str, str]:
    """What docstrings say of the parameters of a class and of those it derives from, by name."""
    found: dict[str, str] = {}
    for base in cls.__mro__:
        found = {**meanings_of(base), **found}
    return found


def meanings_of(cls: type) -> dict[str, str]:
    """What its own docstring says, and that of its ``__init__``."""
    docs = (vars(cls).get("__doc__"), getattr(vars(cls).get("__init__"), "__doc__", None))
    return {name: meaning for doc in docs for name, meaning in _meanings(doc or "")}


def _meanings(doc: str) -> Iterator[tuple[str, str]]:
    for entry in _parsed(doc).params:
        # After "name :" stands a type, or, as here, what it means.
        first, rest = entry.type_name or "", entry.description or ""
        is_type = bool(rest) and len(first.split()) <= 3
        meaning = " ".join((rest if is_type else f"{first} {rest}").split()).replace("``", "")
        names = [name.strip() for name in entry.arg_name.split(",")]
        for name in names:
            yield name, f"{', '.join(names)}: {meaning}" if len(names) > 1 else meaning


def summary_of(cls: type) -> str:
    """The first sentence of its docstring."""
    doc = vars(cls).get("__doc__") or ""
    if dataclasses.is_dataclass(cls) and doc.startswith(f"{cls.__name__}("):
        return ""  # made by dataclass
    return " ".join((_parsed(doc).short_description or "").split())


def _parsed(doc: str) -> docstring_parser.Docstring:
    try:
        return docstring_parser.parse(inspect.cleandoc(doc))
    except docstring_parser.ParseError:
        return docstring_parser.Docstring()


def actions_of(cls: type) -> list[str]:
    """The kinds of action spaces that it takes with its defaults: found by asking it."""
    spaces = gymnasium.spaces
    try:
        made: Any = cls()
    except Exception:  # its settings have no defaults
        return []
    found = []
    for name, action in (("Discrete", spaces.Discrete(2)), ("Box", spaces.Box(-1, 1, (1,)))):
        for observation in (spaces.Box(-1, 1, (4,)), spaces.Discrete(4)):
            try:
                made.check(Setup(spec_of(observation, action), Schedule(lag=getattr(made, "lag", 1))))
            except ConfigError:
                continue
            found.append(name)
            break
    return found


def described(name: str, cls: type) -> dict[str, Any]:
    """An algorithm for JSON."""
    return {
        "name": name,
        "class": cls.__name__,
        "actions": actions_of(cls),
        "description": summary_of(cls),
        "settings": [dataclasses.asdict(setting) for setting in settings_of(cls)],
    }


def built_in() -> list[dict[str, Any]]:
    """All algorithms of daskrl."""
    return [described(name, cls) for name, cls in BUILT_IN.items()]
