"""Names: of one that is mistyped an error says which may have been meant; keys of learners and agents are checked."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar

from daskrl.errors import ConfigError, UnknownNameError

_Made = TypeVar("_Made", bound=Callable[..., Any])

# What other libraries call what is called otherwise here, and not alike.
_ELSEWHERE = {
    "gamma": "discount", "lr": "learning_rate", "buffersize": "window", "cliprange": "clip", "vfcoef": "value_coef",
    "totaltimesteps": "env_steps", "netarch": "hidden", "nenvs": "envs_per_stream",
}  # fmt: skip


_LONGEST_KEY = 64  # in names of files, which may have 255 bytes, and of columns
_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def require_key(what: str, key: str) -> None:
    """Raise `ConfigError` for what cannot be the key of a ``what``: a learner or an agent; see FORMAT.md, section 5.

    Files and columns are named by keys. The key "" is the default, which is written nowhere.
    """
    if isinstance(key, str) and (not key or (len(key) <= _LONGEST_KEY and _KEY.fullmatch(key))):
        return
    came = f"{key!r}" if not isinstance(key, str) or len(key) <= _LONGEST_KEY else f"{len(key)} characters, {key!r}"
    plain = re.sub(r"[^A-Za-z0-9]+", "_", str(key)).strip("_")[:_LONGEST_KEY]
    raise ConfigError(
        f"{what} key: expected at most {_LONGEST_KEY} letters (a-z, A-Z), digits, '_' and '-', got {came}."
        + (f" Type, for example, {plain!r}." if plain else "")
    )


def require_keys(what: str, keys: Iterable[str]) -> None:
    """Raise `ConfigError` for keys of a run's learners or agents that cannot be, or that a file system may confuse."""
    known: dict[str, str] = {}
    for key in keys:
        require_key(what, key)
        other = known.setdefault(key.lower(), key)
        if other != key:
            raise ConfigError(
                f"{what} keys: expected keys that differ in more than upper and lower case, as some file systems tell "
                f"no others apart, got {other!r} and {key!r}. Type, for example, {key[: _LONGEST_KEY - 2] + '_2'!r}."
            )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean learning_rate?`` for what is close to a known name, else nothing."""
    import difflib

    plain = {_plain(other): other for other in known}
    meant = _ELSEWHERE.get(_plain(name))
    if meant not in plain.values():
        close = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.7)
        meant = plain[close[0]] if close else None
    return f" Did you mean {meant}?" if meant else ""


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def lazily(
    package: str, homes: Mapping[str, Sequence[str]], modules: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``: a name is imported from its home when somebody asks for it.

    Parameters
    ----------
    homes : module -> the names it gives.
    modules : name -> the module that goes by it.
    """
    home = {name: module for module, names in homes.items() for name in names}
    places = dict(modules or {})

    def get(name: str) -> Any:
        if name in places:
            return importlib.import_module(places[name])
        if name not in home:
            known = [*home, *places]
            raise AttributeError(f"module {package!r} has no attribute {name!r}.{did_you_mean(name, known)}", name=name)
        return getattr(importlib.import_module(home[name]), name)

    def everything() -> list[str]:
        return sorted({*vars(sys.modules[package]), *home, *places})

    return get, everything


def require_known(who: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise `UnknownNameError`, which is a ``TypeError`` too, for the first argument of ``who`` that is not known."""
    names = list(known)
    for name in given:
        if name not in names:
            raise UnknownNameError(
                f"{who} has no argument {name!r}.{did_you_mean(name, names)} Expected any of {', '.join(names)}."
            )


def suggests(made: _Made) -> _Made:
    """Have a function, or the ``__init__`` of a class, say which argument a mistyped one may mean.

    Its signature, name and docstring stay. Functions that take any name (``**options``) are left as they are.
    """
    if isinstance(made, type):
        init: Any = made.__dict__["__init__"]
        setattr(made, "__init__", _checked(init, made.__name__))  # noqa: B010  mypy: it is unsound, of a subclass
        return made
    checked: _Made = _checked(made, made.__qualname__)
    return checked


def _checked(function: Any, who: str) -> Any:
    known = keywords(function)
    if known is None:
        return function

    @functools.wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        require_known(who, named, known)
        return function(*given, **named)

    return checked


def keywords(function: Any) -> list[str] | None:
    """The names that a function can be given arguments by, in its order; None where it takes any."""
    import inspect

    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in named if name != "self"]


class Suggesting:
    """Whose subclasses, dataclasses of somebody else's too, say which argument a mistyped one may mean."""

    __slots__ = ()

    def __new__(cls, *given: Any, **named: Any) -> Self:
        if named and (known := keywords(cls.__init__)) is not None:
            require_known(cls.__name__, named, known)
        return super().__new__(cls)
