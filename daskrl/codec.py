"""Values in the JSON of a store: each comes back equal and of its own type, or is refused by name. See FORMAT.md.

What JSON has itself (None, bool, int, str, finite float, list, dict with string keys) is written as it is. Others are
objects of one key that begins with ``$``. Nothing is pickled, and reading imports nothing.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from daskrl.errors import ConfigError

LIMIT = 1 << 20  # bytes of JSON; every task reads the attributes of its store
_INT = 10**4000  # Python reads no text of more than 4,300 digits as a number
_DEEPEST = 50  # what holds what holds ...: Python's functions that call themselves end at some hundreds


class NotStoredError(ConfigError):
    """A value that a store cannot keep."""


def encoded(value: Any, where: str) -> Any:
    """A value as JSON; ``where`` is what messages call it.

    Raises
    ------
    NotStoredError
        The value, or one within it, would not come back as it is. The message names it.
    """
    return _encode(value, where, ())


def encoded_arguments(arguments: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Arguments by name as JSON, all of them not larger than `LIMIT`."""
    made = {name: encoded(value, f"{what}: {name}") for name, value in arguments.items()}
    size = len(json.dumps(made))
    if size > LIMIT:
        largest = max(made, key=lambda name: len(json.dumps(made[name])))
        raise NotStoredError(
            f"{what}: {largest} makes them {size:,} bytes in the store, expected at most {LIMIT:,}: every task reads "
            "them."
        )
    return made


def decoded(data: Any) -> Any:
    """The value that `encoded` made ``data`` of.

    Raises
    ------
    ConfigError
        A kind of value that this daskrl does not know.
    """
    if isinstance(data, list):
        return [decoded(item) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1 and (tag := next(iter(data))).startswith("$"):
        if tag not in DECODERS:
            raise ConfigError(f"{tag}: no kind of value that this daskrl reads. Install the daskrl that wrote it.")
        return DECODERS[tag](data[tag])
    return {key: decoded(item) for key, item in data.items()}


def _encode(value: Any, where: str, above: tuple[int, ...]) -> Any:
    kind = type(value)
    if kind is int and abs(value) >= _INT:
        raise NotStoredError(f"{where}: a whole number of more digits than JSON is read with.")
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind in _LEAVES:
        tag, write = _LEAVES[kind]
        return {tag: write(value)}
    if id(value) in above:
        raise NotStoredError(f"{where}: it holds itself.")
    if len(above) == _DEEPEST:
        raise NotStoredError(f"{where:.80}...: nested more than {_DEEPEST} deep.")
    above = (*above, id(value))
    if kind in (list, tuple):
        items = [_encode(item, f"{where}[{i}]", above) for i, item in enumerate(value)]
        return items if kind is list else {"$tuple": items}
    if kind in (set, frozenset):
        items = sorted((_encode(item, f"{where}: an element", above) for item in value), key=json.dumps)
        return {f"${kind.__name__}": items}
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{where}[{key!r}]", above) for key, item in value.items()}
        pairs = [(_encode(k, f"{where}: a key", above), _encode(v, f"{where}[{k!r}]", above)) for k, v in value.items()]
        return {"$dict": [list(pair) for pair in pairs]}
    if kind is slice:
        return {"$slice": [_encode(v, f"{where}.{n}", above) for n, v in _parts(value)]}
    if kind is np.ndarray and value.dtype.kind in _PLAIN:
        return {"$array": {"dtype": value.dtype.str, "shape": list(value.shape), "data": _base64(value.tobytes())}}
    if isinstance(value, np.generic) and value.dtype.kind in _PLAIN and kind is value.dtype.type:
        return {"$scalar": {"dtype": value.dtype.str, "data": _base64(value.tobytes())}}
    if isinstance(value, np.dtype) and value.kind in _PLAIN:
        return {"$dtype": value.str}
    if isinstance(value, type) and issubclass(value, np.generic) and value in _NUMBERS:
        return {"$type": np.dtype(value).name}
    raise NotStoredError(f"{where}: a store cannot keep a value of the type {kind.__module__}.{kind.__qualname__}.")


_PLAIN = "biufcSUmM"  # kinds of NumPy's dtypes that are bytes of one size
_NUMBERS = {np.dtype(code).type for code in "?bBhHiIlLqQefdFD"}


def _parts(value: slice) -> list[tuple[str, Any]]:
    return [("start", value.start), ("stop", value.stop), ("step", value.step)]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _array(data: Mapping[str, Any]) -> Any:
    flat = np.frombuffer(base64.b64decode(data["data"]), np.dtype(data["dtype"]))
    return flat.reshape(data["shape"]).copy()


def _scalar(data: Mapping[str, Any]) -> Any:
    return _array({**data, "shape": ()})[()]


# Exact type -> tag, and what is written. What is read is below, by tag.
_LEAVES: dict[type, tuple[str, Callable[[Any], Any]]] = {
    complex: ("$complex", lambda value: [repr(value.real), repr(value.imag)]),
    bytes: ("$bytes", _base64),
    bytearray: ("$bytearray", lambda value: _base64(bytes(value))),
    range: ("$range", lambda value: [value.start, value.stop, value.step]),
    type(pathlib.Path()): ("$path", str),
    datetime.date: ("$date", datetime.date.isoformat),
    datetime.timedelta: ("$timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
}
DECODERS: dict[str, Callable[[Any], Any]] = {
    "$float": float,
    "$tuple": lambda items: tuple(decoded(item) for item in items),
    "$dict": lambda pairs: {decoded(key): decoded(item) for key, item in pairs},
    "$set": lambda items: {decoded(item) for item in items},
    "$frozenset": lambda items: frozenset(decoded(item) for item in items),
    "$complex": lambda parts: complex(*map(float, parts)),
    "$bytes": base64.b64decode,
    "$bytearray": lambda text: bytearray(base64.b64decode(text)),
    "$range": lambda parts: range(*parts),
    "$slice": lambda parts: slice(*map(decoded, parts)),
    "$path": pathlib.Path,
    "$date": datetime.date.fromisoformat,
    "$timedelta": lambda parts: datetime.timedelta(*parts),
    "$array": _array,
    "$scalar": _scalar,
    "$dtype": np.dtype,
    "$type": lambda name: np.dtype(name).type,
}
