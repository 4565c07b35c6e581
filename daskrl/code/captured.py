"""What a callable or an object carries besides its own source, by value: a table of path -> text.

The table lists what decides how a function, a class or an instance behaves: default arguments, closure cells, arguments
of `functools.partial`, attributes; and the code and the values of the user's own that any of these refer to,
recursively. Installed packages are named, not looked into: their versions are recorded elsewhere. The table is the same
in every process: no text holds an address, and sets are in an order of their own. Dicts keep theirs, since a loop over
one depends on it.

Short values are written out, so that a message can say which one differs; long ones as a SHA-256.
"""

from __future__ import annotations

import copyreg
import ctypes
import dataclasses
import datetime
import enum
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, NoReturn

import gymnasium
import numpy as np

from daskrl.code.source import is_generated, is_own_file, is_own_module, reads, source_of_class, source_of_code, written
from daskrl.errors import ConfigError

Rows = dict[str, str]

_SHORT = 60  # characters of a text that is written out
_PARTS = 64  # of a dict or an instance that are written one by one
_ITEMS = 8  # of a list
_DEPTH = 4  # of containers within containers whose parts are
_ROWS = 256  # of a table; the rows of a function or a class are then taken together
_SECRET = re.compile(r"secret|token|passw|api_?key|credential", re.IGNORECASE)
_PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), type(...), type(NotImplemented))
_DATES = (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone)
_LOCKS = (type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Semaphore)
_NEW = vars(copyreg)["__newobj__"]
_OF_CLASSES = {"_abc_impl", "_abc_registry", "_abc_cache"}
_WRITES = {"append", "appendleft", "extend", "add", "put", "put_nowait"}
CHANGES = "changes when an environment is made"
_DRAWS = re.compile(r"(Generator|RandomState|Random)\b")


class _NotComparableError(Exception):
    """A value that no other process can compare."""


def differences(given: Mapping[str, str], kept: Mapping[str, str]) -> list[str]:
    """What differs between two tables, as messages say it: values first, then code."""
    state = [name for table in (given, kept) for name, text in table.items() if text == CHANGES]
    changed = [
        name
        for name in {**given, **kept}
        if given.get(name) != kept.get(name)
        and not _is_within(name, state)
        and not (any(_is_within(path, [name]) for path in state) and _are_dicts(given.get(name), kept.get(name)))
    ]
    code = [name for name in changed if all(_is_code(table.get(name)) for table in (given, kept))]
    values = [name for name in changed if name not in code]
    return [
        *(f"{name}: {given.get(name, 'not there')} (store: {kept.get(name, 'not there')})" for name in values),
        *(f"the source of {name}" for name in code),
    ]


def _are_dicts(*texts: str | None) -> bool:
    return all(text is not None and re.fullmatch(r"\{\}|dict of \d+", text) for text in texts)


def _is_within(name: str, paths: list[str]) -> bool:
    return any(name == path or name.startswith((f"{path}[", f"{path}:")) for path in paths)


def changing(before: Rows, after: Rows) -> Rows:
    """The table ``before``, with what is another in ``after`` as state: a cache that is filled, a counter.

    State says nothing about which run it is, as it depends on how many environments were made before in this process.
    A generator of random numbers is none: where making an environment draws, it is another environment each time.
    """
    draws = [name for name, text in before.items() if _DRAWS.match(text)]
    changed = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    state: list[str] = []
    for name in changed:
        if not _is_within(name, [*state, *draws]):
            state.append(name)
    kept = {name: text for name, text in before.items() if not _is_within(name, state)}
    return dict(sorted({**kept, **dict.fromkeys(state, CHANGES)}.items()))


def _is_code(text: str | None) -> bool:
    return text is not None and text.startswith(("function, sha256 ", "class, sha256 "))


def _sha256(text: str | bytes | memoryview) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).hexdigest()


def _module_of(obj: Any) -> str:
    obj = obj if isinstance(obj, type | FunctionType) else getattr(obj, "func", getattr(obj, "__func__", type(obj)))
    return str(getattr(obj, "__module__", ""))


def _smaller(table: Rows) -> Rows:
    """A table of not too many rows, in the order of their names."""
    table = dict(sorted(table.items()))
    for cut in (r"(?<=.)[.\[].*", r".*"):
        if len(table) <= _ROWS:
            break
        groups: dict[str, Rows] = {}
        for name, text in table.items():
            groups.setdefault(re.sub(cut, "", name, count=1), {})[name] = text
        table = {name or "all": f"{len(rows)} values, sha256 {_sha256(repr(rows))}" for name, rows in groups.items()}
    return table


class Captured:
    """The table of some objects.

    Parameters
    ----------
    named : name, as paths begin, and object.
    lenient : know by its type alone what no other process can compare.

    Raises
    ------
    ConfigError
        A value that no other process can compare: an open file, a lock, a socket. The message has its path.
    """

    def __init__(self, named: Mapping[str, Any], *, lenient: bool = False) -> None:
        self._rows: Rows = {}
        # Names go without these modules: a script is ``__main__`` or not.
        self._known = {_module_of(obj) for obj in named.values()}
        self._forms: dict[int, tuple[Any, str]] = {}  # the objects are kept: an id may be another's later
        self._above: dict[int, str] = {}
        self._code: dict[int, tuple[Any, str]] = {}
        self._followed: set[str] = set()
        self._imports: list[tuple[str, tuple[str, ...]]] = []
        self._lenient = int(lenient)  # above 0: what cannot be compared is known by its type alone
        try:
            for name, obj in named.items():
                self.record(name, obj)
        except RecursionError:
            raise ConfigError(
                f"{next(iter(named))}: what it holds is nested too deeply to be compared. Build it within the function."
            ) from None

    @property
    def table(self) -> Rows:
        return _smaller(self._rows)

    def ran(self, *classes: type) -> None:
        """Add what was imported when the objects ran, and what code of the user's own these classes are of.

        Once they ran: nothing is imported for the table.
        """
        for cls in classes:
            self._class(cls)
        self._imported()

    # -- rows ---------------------------------------------------------------------------------------------

    def record(self, path: str, value: Any, depth: int = 0) -> None:
        """Make the row of a value, or rows of its parts where one would say little."""
        text = self.form(path, value)
        built_in = type(value) in (dict, list, tuple)
        parts = self._parts(path, value) if depth < _DEPTH and (len(text) > _SHORT or not built_in) else []
        if id(value) in self._above or text in (f"function {path}", f"class {path}"):
            return
        if not parts:
            if path in self._rows:  # of the code that the value holds
                path += ".<value>"
            hide = _SECRET.search(path) and type(value) in (str, bytes)
            self._rows[path] = text if len(text) <= _SHORT and not hide else _hashed(value, text)
            return
        self._rows.setdefault(path, _brief(value))
        self._above[id(value)] = path
        for name, part in parts:
            self.record(name, part, depth + 1)
        del self._above[id(value)]

    def _parts(self, path: str, value: Any) -> list[tuple[str, Any]]:
        if type(value) in (list, tuple):
            return [(f"{path}[{i}]", part) for i, part in enumerate(value)] if len(value) <= _ITEMS else []
        if type(value) is dict:
            if len(value) > _PARTS or not all(type(key) in (str, int) for key in value):
                return []
            order = [] if list(value) == sorted(value, key=repr) else [(f"{path}: order of keys", list(value))]
            return [*((f"{path}[{key!r}]", part) for key, part in value.items()), *order]
        if isinstance(value, functools.partial):
            return [
                (f"{path}.<func>", value.func),
                *((f"{path}.<args>[{i}]", part) for i, part in enumerate(value.args)),
                *((f"{path}.{name}", part) for name, part in sorted(value.keywords.items())),
            ]
        if isinstance(value, MethodType):
            return [(f"{path}.<self>", value.__self__), (f"{path}.<func>", value.__func__)]
        state = self._state(value)
        return [] if state is None else [(f"{path}.{name}", part) for name, part in sorted(state.items())]

    def _state(self, value: Any) -> dict[str, Any] | None:
        """The attributes of an instance that has nothing else."""
        if isinstance(value, type | ModuleType | FunctionType | np.ndarray | gymnasium.Space):
            return None
        if not hasattr(value, "__dict__") or type(value).__module__.partition(".")[0] == "pandas":  # see _pandas
            return None
        try:
            parts: Any = _reduced(value)
        except Exception:
            return None
        if not isinstance(parts, tuple) or parts[0] is not _NEW or len(parts[1]) != 1 or any(parts[3:]):
            return None
        state = parts[2]
        if not isinstance(state, dict) or not 0 < len(state) <= _PARTS:
            return None
        return _kept(value, state)

    # -- texts --------------------------------------------------------------------------------------------

    def form(self, path: str, value: Any) -> str:
        """The text of a value: alike for equal values of one type, and only for these."""
        kind = type(value)
        if kind in _PLAIN or kind in _DATES or isinstance(value, type | PurePath | ModuleType | np.dtype | np.generic):
            return self._leaf(path, value)
        if id(value) in self._forms:
            return self._forms[id(value)][1]
        if id(value) in self._above and self._above[id(value)] != path:
            return f"<itself: {self._above[id(value)]}>"
        mine = id(value) not in self._above
        self._above.setdefault(id(value), path)
        try:
            text = self._compound(path, value)
        except _NotComparableError:
            if not self._lenient:
                raise
            text = f"a {kind.__module__}.{kind.__qualname__}, not compared"
        finally:
            if mine:
                del self._above[id(value)]
        self._forms[id(value)] = (value, text)
        return text

    def _leaf(self, path: str, value: Any) -> str:
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, np.dtype):
            return f"dtype({value.descr if value.fields else value.str})"
        if type(value) is int and abs(value) >= 1 << 64:
            return hex(value)  # Python refuses to write a long one in decimal
        if isinstance(value, np.generic):
            return f"{value.dtype.type.__name__}({self._array(path, np.asarray(value))})"
        if isinstance(value, PurePath):
            return f"Path({str(value)!r})"
        return repr(value)

    def _compound(self, path: str, value: Any) -> str:
        kind = type(value)
        if kind in (list, tuple):
            items = [self._short(f"{path}[{i}]", item) for i, item in enumerate(value)]
            text = ", ".join(items)
            return f"[{text}]" if kind is list else f"({text}{',' * (len(items) == 1)})"
        if kind in (set, frozenset):
            return f"{kind.__name__}({{{', '.join(sorted(self._short(path + '{}', item) for item in value))}}})"
        if kind in (dict, MappingProxyType):
            return f"{{{', '.join(self._items(path, value))}}}"
        if kind is slice or kind is range:
            return f"{kind.__name__}({value.start!r}, {value.stop!r}, {value.step!r})"
        if isinstance(value, enum.Enum):
            return self._enum(path, value)
        if kind is np.ndarray:
            return self._array(path, value)
        if isinstance(value, FunctionType):
            return self._function(path, value)
        if isinstance(value, functools.partial):
            keywords = dict(sorted(value.keywords.items()))
            func = self._short(f"{path}.<func>", value.func)
            args, named = self.form(f"{path}.<args>", value.args), self._named(path, keywords)
            return f"partial({func}, {args}, {named}, {self._named(path, vars(value))})"
        if isinstance(value, MethodType):
            owner = self._short(f"{path}.<self>", value.__self__)
            return f"({owner}).{self._short(f'{path}.<func>', value.__func__)}"
        if isinstance(value, BuiltinFunctionType):
            return self._builtin(path, value)
        if isinstance(value, staticmethod | classmethod):
            return f"{kind.__name__} {self._short(path, value.__func__)}"
        if isinstance(value, property | functools.cached_property):
            each = [getattr(value, name, None) for name in ("fget", "fset", "fdel", "func")]
            return f"{kind.__name__} {', '.join(self._short(path, function) for function in each if function)}"
        if hasattr(value, "__wrapped__") and hasattr(value, "cache_parameters"):
            return f"lru_cache {value.cache_parameters()!r} {self._short(path, value.__wrapped__)}"
        library = kind.__module__.partition(".")[0]
        if library == "torch" and hasattr(value, "untyped_storage"):
            return self._tensor(value, path)
        if library == "pandas" and hasattr(value, "to_numpy") and hasattr(value, "__len__"):  # a Timestamp has none
            return self._pandas(path, value)
        return self._instance(path, value)

    def _short(self, path: str, value: Any) -> str:
        """The text of a part: a long one by its hash, so that no text grows without bound."""
        text = self.form(path, value)
        return text if len(text) <= 4 * _SHORT else f"sha256 {_sha256(text)}"

    def _items(self, path: str, value: Mapping[Any, Any]) -> Iterator[str]:
        for key, item in value.items():
            text = self._short(f"{path}.<keys>", key)  # the ``repr`` of a key may hold an address
            yield f"{text}: {self._short(f'{path}[{text}]', item)}"

    def _named(self, path: str, value: Mapping[str, Any]) -> str:
        """Attributes: their order is that in which they were set, and decides nothing."""
        return ", ".join(
            f"{name}={self._short(f'{path}.{name}', item)}"
            for name, item in sorted(value.items(), key=lambda x: str(x[0]))
        )

    def _array(self, path: str, value: Any) -> str:
        kind = value.dtype.str if value.dtype.fields is None else repr(value.dtype.descr)
        if value.dtype.hasobject:
            return f"array {kind} {value.shape} of {self._short(path, value.tolist())}"
        if value.dtype.fields is not None:  # between the fields may be bytes that nobody wrote
            parts = [self._array(path, np.ascontiguousarray(value[name])) for name in value.dtype.names]
            return f"array {kind} {value.shape} of {parts}"
        text = repr(value.tolist()) if value.size <= 8 and value.dtype.kind in "biufSU" else ""
        if 0 < len(text) <= _SHORT:
            return text if value.ndim == 0 else f"array {kind} {value.shape} {text}"
        flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)  # without a copy: it may be larger than memory
        return f"array {kind} {value.shape} sha256 {_sha256(flat.data)}"

    def _tensor(self, value: Any, path: str) -> str:
        torch = sys.modules["torch"]
        flat = value.detach().cpu().contiguous().reshape(-1)
        data = flat.resolve_conj().resolve_neg().view(torch.uint8).numpy()
        kind = f"{type(value).__name__} {value.dtype} {tuple(value.shape)} {value.requires_grad}"
        if value.numel() <= 8 and value.dtype.is_floating_point:
            return f"{kind} {flat.double().tolist()!r}"
        return f"{kind} {self._array(path, data)}"

    def _pandas(self, path: str, value: Any) -> str:
        kind = type(value).__name__
        if hasattr(value, "columns"):
            columns = [self._series(path, value.iloc[:, i]) for i in range(value.shape[1])]
            names = self._short(path, value.columns)
            return f"{kind} {value.shape} {names} {self._short(path, value.index)} {columns}"
        index = self._short(path, value.index) if hasattr(value, "index") else ""
        return f"{kind} {index} {self._series(path, value)}"

    def _series(self, path: str, value: Any) -> str:
        data = value.to_numpy()
        named = [str(value.dtype), getattr(value, "name", None), list(getattr(value, "names", ()))]
        levels = [str(level) for level in getattr(value.dtype, "categories", ())]
        return f"{self._short(path, named)} {levels} {self._array(path, data)}"

    def _enum(self, path: str, value: enum.Enum) -> str:
        return f"{self._class(type(value))} {value!s}={self._short(path, value._value_)}"

    # -- instances ----------------------------------------------------------------------------------------

    def _instance(self, path: str, value: Any) -> str:
        if isinstance(value, _LOCKS):
            if self._lenient:
                return f"a {type(value).__name__}"
            self._refuse(path, value)
        if isinstance(value, ctypes._SimpleCData | ctypes.Structure | ctypes.Array | ctypes.CDLL):
            self._refuse(path, value)
        try:
            parts: Any = _reduced(value)
        except Exception as error:
            self._refuse(path, value, error)
        if isinstance(parts, str):
            return f"{type(value).__module__}.{parts}"
        function, arguments, state, items, pairs = (*parts, None, None, None)[:5]
        if function is _NEW:
            made = f"{self.form(path, arguments[0])}{self._short(path, arguments[1:])}"
        else:
            made = f"{self._short(path, function)}{self._short(path, arguments)}"
        said = []
        if isinstance(state, dict) and all(isinstance(name, str) for name in state):
            said.append(self._named(path, _kept(value, state)))
        elif isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # of __slots__
            said += [self._named(path, part) for part in state if isinstance(part, dict)]
        elif state is not None:
            said.append(self._short(f"{path}.<state>", state))
        if items is not None:
            said.append(self._short(path, list(items)))
        if pairs is not None:
            said.append(self._short(path, dict(pairs)))
        return f"{made} {'; '.join(said)}"

    def _refuse(self, path: str, value: Any, error: Exception | None = None) -> NoReturn:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        if self._lenient:
            raise _NotComparableError
        why = f" ({error})" if error is not None else ""
        raise ConfigError(
            f"{path}: holds a value of the type {kind}, which cannot be compared when the run goes on in another "
            f"process{why}. Make the value within the function, from what can be: numbers, texts, arrays, a path to "
            "open; or leave it out of what its class pickles (__getstate__)."
        )

    def _builtin(self, path: str, value: Any) -> str:
        owner = value.__self__
        if owner is None or isinstance(owner, ModuleType):
            return f"function {value.__module__}.{value.__qualname__}"
        return f"({self._short(f'{path}.<self>', owner)}).{value.__name__}"

    # -- code ---------------------------------------------------------------------------------------------

    def _module(self, module: ModuleType) -> str:
        name = module.__name__
        if not is_own_module(name):
            return f"module {name}"
        try:
            source = inspect.getsource(module)
        except (OSError, TypeError):
            return f"module {name}"
        self._rows.setdefault(f"module {name}", f"module, sha256 {_sha256(source)}")
        return f"module {name}"

    def _key(self, obj: FunctionType | type, path: str) -> str:
        """How the table names code: a class, and a function that its module has, by its own name, else by the path."""
        found: Any = sys.modules.get(obj.__module__ or "")
        for name in obj.__qualname__.split("."):
            found = getattr(found, name, None)
        if isinstance(obj, type) or getattr(found, "__func__", found) is obj:
            path = self._named_in(obj.__module__, obj.__qualname__)
        while path in self._rows:  # of a function that was called twice, and made another class each time
            path += "'"
        return path

    def _named_in(self, module: str, name: str) -> str:
        return name if module in self._known else f"{module}.{name}"

    def _function(self, path: str, function: FunctionType, *, in_class: bool = False) -> str:
        code = function.__code__
        own = is_own_file(code.co_filename)
        if id(function) in self._code:
            return self._code[id(function)][1]
        if {"registry", "dispatch", "_clear_cache"} <= set(vars(function)):  # its cache says what was called before
            return f"singledispatch {self._short(path, dict(vars(function)['registry']))}"
        if not own and not function.__closure__:
            return f"function {function.__module__}.{function.__qualname__}"
        key = path if in_class else self._key(function, path)
        text = f"function {key}" if own else f"function {code.co_qualname} at {key}"
        self._code[id(function)] = (function, text)
        if own and not in_class:
            self._rows[key] = f"function, sha256 {_sha256(source_of_code(code))}"
        self._defaults(key, function)
        read = reads(code)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if name == "__class__":
                continue
            try:
                value = cell.cell_contents
            except ValueError:  # empty
                continue
            self._follow(f"{key}.<closure>.{name}", value, read.cells.get(name, {()}))
        for name, value in sorted(vars(function).items()):
            self.record(f"{key}.{name}", value)
        if own:
            self._outside(function, read.globals, read.imports)
        return text

    def _defaults(self, key: str, function: FunctionType) -> None:
        positional = function.__code__.co_varnames[: function.__code__.co_argcount]
        values = function.__defaults__ or ()
        named = dict(zip(positional[len(positional) - len(values) :], values, strict=True))
        for name, value in {**named, **(function.__kwdefaults__ or {})}.items():
            self.record(f"{key}.<defaults>.{name}", value)

    def _outside(self, function: FunctionType, names: Mapping[str, Any], imports: list[Any]) -> None:
        """What a function of the user's own reads of its module and of others."""
        space = function.__globals__
        module = str(space.get("__name__"))
        self._lenient += 1
        try:
            for name, chains in sorted(names.items()):
                # No identifiers are what pytest writes into the tests' own modules: @pytest_ar.
                if name in space and not name.startswith("__") and name.isidentifier():
                    self._follow(self._named_in(module, name), space[name], chains)
        finally:
            self._lenient -= 1
        for name, level, taken in imports:
            if level:
                package = str(space.get("__package__") or module.rpartition(".")[0])
                name = importlib.util.resolve_name("." * level + name, package)
            self._imports.append((name, taken))

    def _follow(self, path: str, value: Any, chains: set[tuple[str, ...]]) -> None:
        """Record what is read of a value: the attributes alone, where these are plain and nothing else is used."""
        for chain in sorted(chains):
            name, found = path, value
            for attribute in chain:
                if isinstance(found, ModuleType):
                    if not is_own_module(found.__name__):
                        break
                    name, found = self._named_in(found.__name__, attribute), getattr(found, attribute, None)
                elif not isinstance(found, type) and attribute in getattr(found, "__dict__", {}):
                    name, found = f"{name}.{attribute}", vars(found)[attribute]
                else:
                    break
            if chain and chain[-1] in _WRITES and isinstance(found, list | deque | set):
                continue  # is written, not read
            if name not in self._followed:
                self._followed.add(name)
                self.record(name, found)

    def _imported(self) -> None:
        """Record what functions import of the user's own modules."""
        while self._imports:
            name, taken = self._imports.pop(0)
            module = sys.modules.get(name)
            if module is None or not is_own_module(name):
                continue
            self._lenient += 1
            for attribute in taken:
                self._follow(name, module, {(attribute,)})
            if not taken:
                self._module(module)
            self._lenient -= 1

    def _class(self, cls: type) -> str:
        if not is_own_module(cls.__module__):
            return f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
        if id(cls) in self._code:
            return self._code[id(cls)][1]
        key = self._key(cls, "")
        text = f"class {key}"
        self._code[id(cls)] = (cls, text)
        try:
            self._rows[key] = f"class, sha256 {_sha256(source_of_class(cls).strip())}"
            in_source = set(written(cls))
        except OSError:
            self._rows[key], in_source = "class without source", set()
        self._rows[f"{key}.<bases>"] = ", ".join(self._class(base) for base in cls.__bases__)
        if type(cls) is not type:
            self._class(type(cls))
        self._lenient += 1
        try:
            for name, value in sorted(self._attributes(cls).items()):
                function = getattr(value, "__func__", value)
                if isinstance(function, FunctionType) and function in in_source:
                    self._function(f"{key}.{name}", function, in_class=True)
                else:
                    self.record(f"{key}.{name}", value)
        finally:
            self._lenient -= 1
        return text

    def _attributes(self, cls: type) -> dict[str, Any]:
        if issubclass(cls, enum.Enum):
            members = {name: member._value_ for name, member in cls.__members__.items()}
            return {**members, **{n: v for n, v in vars(cls).items() if isinstance(v, FunctionType) and n[0] != "_"}}
        found = {}
        generated = {f.name: f for f in vars(cls).get("__dataclass_fields__", {}).values()}
        for name, field in generated.items():
            for value in (field.default, field.default_factory):
                if not isinstance(value, type(dataclasses.MISSING)):  # what was pickled is another one
                    found[name] = value
        for name, value in vars(cls).items():
            function = getattr(value, "__func__", value)
            if isinstance(value, MemberDescriptorType | GetSetDescriptorType) or name in _OF_CLASSES:
                continue
            if name.startswith("__") and name.endswith("__") and not isinstance(function, FunctionType):
                continue
            if isinstance(function, FunctionType) and is_generated(cls, name, function):
                continue
            found[name] = value
        return found


def _kept(value: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The attributes that are part of what an instance is: a space draws its own generator when it is first sampled."""
    if isinstance(value, gymnasium.Space):
        return {name: part for name, part in state.items() if name != "_np_random"}
    cached = {
        n for cls in type(value).__mro__ for n, v in vars(cls).items() if isinstance(v, functools.cached_property)
    }
    return {name: part for name, part in state.items() if name not in cached}


def _reduced(value: Any) -> Any:
    """What pickle takes an object apart into."""
    reduce = copyreg.dispatch_table.get(type(value))
    return value.__reduce_ex__(4) if reduce is None else reduce(value)


def _brief(value: Any) -> str:
    kind = type(value).__qualname__
    return f"{kind} of {len(value)}" if isinstance(value, dict | list | tuple) else kind


def _hashed(value: Any, text: str) -> str:
    size = f" of {len(value)}" if isinstance(value, str | bytes | dict | list | tuple | set) else ""
    head = re.match(r"array \S+ \([^)]*\)", text)
    return f"{head.group() if head else type(value).__qualname__ + size}, sha256 {_sha256(text)}"
