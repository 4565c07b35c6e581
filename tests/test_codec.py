"""Values in the JSON of a store: each comes back equal and of its own type, or is refused by name."""

from __future__ import annotations

import datetime
import enum
import json
import math
import pathlib
import threading
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskrl import codec
from daskrl.errors import ConfigError


def again(value: Any) -> Any:
    """What another process reads."""
    return codec.decoded(json.loads(json.dumps(codec.encoded(value, "value"), allow_nan=False)))


def alike(one: Any, other: Any) -> bool:
    """Equal in value and type, all the way down; NaN is itself, and -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, complex):
        return repr(one) == repr(other)
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (
            math.isnan(one) and math.isnan(other)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return all(alike(*pair) for pair in zip(one.items(), other.items(), strict=True))
    return bool(one == other)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 1 << 70, 1.0, -0.0, math.inf, -math.inf, math.nan, "", "a", 1j, complex(-0.0, math.inf),
        b"\x00\xff", bytearray(b"ab"), (2, 0), [], (), [(1,), [2]], {0: 5.0}, {"a": {1: (2,)}}, {(1, 2): "x"}, {},
        {"$tuple": [1]}, {"$": 1}, {"a": {"$set": 1}}, {1, 2, 3}, frozenset({(1, 2)}), set(),
        pytest.param({"a", "b"}, id="set of text"),
        range(1, 9, 2), slice(None, 3), slice(0, 1.5, (1,)), pathlib.Path("a/b"), datetime.date(2024, 2, 29),
        datetime.timedelta(days=-1, microseconds=3), np.float32(0.1), np.float64(0.1), np.int64(3), np.uint8(255),
        np.bool_(True), np.complex64(1j), np.str_("a"), np.datetime64("2024-01-01"), np.arange(6).reshape(2, 3),
        np.zeros((0, 3), np.float32), np.array(2.5), np.array(["a", "bc"]), np.asfortranarray(np.eye(3)),
        np.array([1, 2], ">i4"), np.array([np.nan, np.inf]), np.dtype("float32"), np.dtype(">u2"), np.float32, np.uint8,
        {"goal": (2, 0), 0: np.arange(3), "deep": [{"x": (1, {2: b"3"})}]},
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_comes_back_equal_and_of_its_own_type(value: Any) -> None:
    assert alike(again(value), value)
    assert codec.encoded(again(value), "value") == codec.encoded(value, "value")


_leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.complex_numbers()
    | st.floats(width=32).map(np.float32) | st.integers(-128, 127).map(np.int8)
    | st.lists(st.floats(allow_nan=False), max_size=3).map(np.array)
)  # fmt: skip
_keys = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
_values = st.recursive(
    _leaves,
    lambda each: st.lists(each, max_size=3) | st.lists(each, max_size=3).map(tuple)
    | st.dictionaries(_keys, each, max_size=3) | st.dictionaries(st.text("$ab", max_size=2), each, max_size=2),
    max_leaves=8,
)  # fmt: skip


@given(_values)
@settings(deadline=None, derandomize=True, max_examples=300)
def test_whatever_is_taken_comes_back_equal_and_of_its_own_type(value: Any) -> None:
    assert alike(again(value), value)


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "a", [1, [2]], {"a": {"b": [None]}}], ids=repr)
def test_what_json_has_itself_is_written_as_it_is(value: Any) -> None:
    assert codec.encoded(value, "value") == value


def test_arrays_that_come_back_may_be_written_to() -> None:
    back = again(np.zeros(3))
    back[0] = 1
    assert back.flags.owndata or back.flags.writeable


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (pandas.DataFrame({"a": [1]}), "df", "pandas.core.frame.DataFrame"),
        ({"a": [Colour.RED]}, r"df\['a'\]\[0\]", "Colour"),
        (Level.HIGH, "df", "Level"),
        (Text("a"), "df", "Text"),
        (threading.Lock(), "df", "lock"),
        (print, "df", "builtin_function_or_method"),
        (np.array([None]), "df", "ndarray"),
        (np.ma.masked_array([1], [True]), "df", "Masked"),
        ((1, {2: len}), r"df\[1\]\[2\]", "builtin"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_would_not_come_back_is_refused_by_name(value: Any, path: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{path}: a store cannot keep a value of the type .*{kind}"):
        codec.encoded(value, "df")


def test_what_holds_itself_is_refused() -> None:
    held: list[Any] = []
    held.append({"again": held})
    with pytest.raises(ConfigError, match="holds itself"):
        codec.encoded(held, "kwargs")


def test_what_is_too_large_for_every_task_to_read_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"env_kwargs: big makes them 1,.* at most 1,048,576"):
        codec.encoded_arguments({"small": 1, "big": np.zeros(100_000)}, "env_kwargs")


def test_a_kind_of_value_of_a_later_daskrl_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^\$quaternion: "):
        codec.decoded({"a": [{"$quaternion": [1, 2, 3, 4]}]})


def test_what_json_is_not_read_with_again_is_refused_by_name() -> None:
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(ConfigError, match=r"^env_kwargs: goal\[0\].*nested more than 50 deep"):
        codec.encoded_arguments({"goal": deep}, "env_kwargs")
    with pytest.raises(ConfigError, match=r"^env_kwargs: goal: a whole number of more digits"):
        codec.encoded_arguments({"goal": -(10**5000)}, "env_kwargs")
