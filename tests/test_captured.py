"""What code holds is hashed by value: equal in every process, different where anything that decides differs."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from daskrl.code.captured import Captured, differences
from daskrl.envs import source as sources
from daskrl.errors import ConfigError
from tests import held


def table(obj: Any) -> dict[str, str]:
    return Captured({"make": obj}).table


@pytest.fixture
def own() -> Any:
    """The module once more: what a test changes in it is nobody else's."""
    spec = importlib.util.spec_from_file_location("held_again", held.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["held_again"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["held_again"]


@pytest.mark.parametrize("place", held.PLACES)
@pytest.mark.parametrize("kind", ["float", "middle of a large array", "enum", "dataclass", "lambda"])
def test_a_value_counts_wherever_it_is_held(place: str, kind: str) -> None:
    one, other = (table(held.PLACES[place](value)) for value in held.VALUES[kind])
    assert one == table(held.PLACES[place](held.VALUES[kind][0]))
    assert differences(other, one)


@pytest.mark.parametrize("kind", held.VALUES)
def test_two_values_of_a_kind_are_told_apart(kind: str) -> None:
    one, other = (table(held.in_closure(value)) for value in held.VALUES[kind])
    assert one == table(held.in_closure(held.VALUES[kind][0]))
    assert differences(other, one)


def test_every_value_is_the_same_in_every_new_process_whatever_seed_python_hashes_with() -> None:
    printed = []
    for seed in ("1", "2"):
        path = os.pathsep.join([str(Path(held.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        ran = subprocess.run(
            [sys.executable, held.__file__],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        printed.append(json.loads(ran.stdout))
    assert printed[0] == printed[1]  # and of a script, ``__main__``, the same as of a module
    assert printed[0] == json.loads(json.dumps({name: held.table(name) for name in held.VALUES}))


def test_the_table_names_the_value_that_differs_and_both_its_values() -> None:
    assert differences(table(held.in_closure(5.0)), table(held.in_closure(1.0))) == [
        "make.<closure>.held: 5.0 (store: 1.0)"
    ]
    assert differences(table(held.in_keyword({"a": [1, 2], "long": "x" * 99})),
                       table(held.in_keyword({"a": [1, 3], "long": "x" * 99}))) == [
        "make.held['a']: [1, 2] (store: [1, 3])"
    ]  # fmt: skip


def scaled(held_: float = 0.0) -> Any:
    return held.Scaled(held_)


def test_arguments_of_a_partial_count_where_the_function_has_the_name_of_the_path() -> None:
    one, other = (Captured({"scaled": functools.partial(scaled, held_=value)}).table for value in (1.0, 5.0))
    assert differences(other, one) == ["scaled.held_: 5.0 (store: 1.0)"]


def test_a_secret_is_not_written_out() -> None:
    def of(api_key: str) -> Any:
        return lambda: held.Scaled(api_key)

    assert "hunter2" not in json.dumps(table(of("hunter2")))
    assert differences(table(of("hunter2")), table(of("hunter3")))


def test_two_lambdas_of_one_line_are_two() -> None:
    both = [lambda: held.Scaled(1.0), lambda: held.Scaled(5.0)]
    assert differences(table(both[0]), table(both[1]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REWARD", 2.0), ("WEIGHTS", {"distance": 0.6, "time": [1, 2, 3]}), ("reward_of", lambda distance: 0.0),
    ],
)  # fmt: skip
def test_what_a_function_reads_of_its_module_counts_also_through_the_functions_it_calls(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch, own: Any
) -> None:
    before = table(own.in_closure(1.0))
    assert "REWARD" in before
    monkeypatch.setattr(own, name, value)
    assert differences(table(own.in_closure(1.0)), before)


ON_DEMAND = """
import collections, functools, itertools
import numpy as np
from tests.held import Base

CACHE, DATA, COUNT, LOG, KINDS, TABLE = {}, None, 0, [], itertools.count(), collections.defaultdict(list)
RNG = np.random.default_rng(SEED)

def cache():
    if "x" not in CACHE:
        CACHE["x"] = np.arange(99)
    return Base()

def _data():
    global DATA
    if DATA is None:
        DATA = np.arange(99)
    return DATA

def data():
    return Base() if _data() is not None else None

def count():
    global COUNT
    COUNT += 1
    return Base()

def log():
    LOG.append(1)
    return Base() if len(LOG) else None

def kinds():
    next(KINDS)
    return Base()

def table():
    TABLE["made"].append(1)
    return Base()

def own():
    own.calls = getattr(own, "calls", 0) + 1
    return Base()

class Class(Base):
    bonus = SCALE
    data, made, cache = None, 0, {}
    def __init__(self):
        Class.made += 1
        self.cache["x"] = type(self).late = 1
        if Class.data is None:
            Class.data = np.arange(99)

def within():
    return (lambda: Class)()()

class Made:
    def __init__(self):
        self.data, self.scale = None, SCALE
    def __call__(self):
        self.data = np.arange(99) if self.data is None else self.data
        return Base()

made = Made()

def by_type():
    return _by_type(1)

@functools.singledispatch
def _by_type(x):
    return Base()

_by_type.register(int, lambda x: Base())

def draws():
    RNG.integers(9)
    return Base()
"""


@pytest.mark.parametrize(
    "name", ["cache", "data", "count", "log", "kinds", "table", "own", "Class", "within", "made", "by_type"]
)
def test_what_is_made_on_demand_and_counted_makes_no_other_run(name: str, scripted: Any) -> None:
    make = scripted("SEED, SCALE = 1, 1.0" + ON_DEMAND, name)
    first = sources.source(make).identity["captured"]
    for _ in range(2):
        used = sources.source(make).identity["captured"]  # in the process that made some already
        assert not differences(used, first)
        assert not differences(first, used)


@pytest.mark.parametrize("name", ["Class", "within", "made"])
def test_what_is_not_changed_counts_beside_what_is(name: str, scripted: Any) -> None:
    one, other = (sources.source(scripted(f"SEED, SCALE = 1, {scale}{ON_DEMAND}", name)) for scale in (1.0, 5.0))
    told = differences(other.identity["captured"], one.identity["captured"])
    assert any("5.0 (store: 1.0)" in each for each in told)


def test_a_generator_that_a_factory_draws_from_counts(scripted: Any) -> None:
    one, other = (
        sources.source(scripted(f"SEED, SCALE = {seed}, 1.0{ON_DEMAND}", "draws")).identity["captured"]
        for seed in (1, 2)
    )
    assert any("RNG" in each for each in differences(other, one))


@pytest.fixture
def scripted(tmp_path: Path) -> Any:
    """A function that runs a text as a module and gives one of its names."""
    names = []

    def get(text: str, name: str) -> Any:
        file = tmp_path / str(len(names)) / "on_demand.py"
        file.parent.mkdir()
        file.write_text(text)
        spec = importlib.util.spec_from_file_location("on_demand", file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["on_demand"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        names.append(module)
        return getattr(module, name)

    yield get
    sys.modules.pop("on_demand", None)


def test_of_an_object_only_the_attributes_that_are_read_count(monkeypatch: pytest.MonkeyPatch, own: Any) -> None:
    before = table(own.in_closure(1.0))
    monkeypatch.setattr(own.SETTINGS, "store", "runs/2")
    assert table(own.in_closure(1.0)) == before
    monkeypatch.setattr(own.SETTINGS, "scale", 3.0)
    assert differences(table(own.in_closure(1.0)), before) == ["SETTINGS.scale: 3.0 (store: 2.0)"]


def test_a_base_class_of_the_users_own_counts(monkeypatch: pytest.MonkeyPatch, own: Any) -> None:
    before = table(own.Scaled)
    monkeypatch.setattr(own.Base, "bonus", 0.75)
    assert differences(table(own.Scaled), before) == ["Base.bonus: 0.75 (store: 0.5)"]


def test_code_that_a_factory_imports_when_it_is_called_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "imported_late.py"

    def make() -> Any:
        from imported_late import SCALE, build  # type: ignore[import-not-found]

        return build(SCALE)

    tables = []
    for scale, body in ((1.0, "held"), (2.0, "held"), (1.0, "held + 0")):
        file.write_text(
            f"from tests.held import Scaled\nSCALE = {scale}\ndef build(held):\n    return Scaled({body})\n"
        )
        sys.modules.pop("imported_late", None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        tables.append(sources.source(make).identity["captured"])
    sys.modules.pop("imported_late")
    assert differences(tables[1], tables[0]) == ["imported_late.SCALE: 2.0 (store: 1.0)"]
    assert differences(tables[2], tables[0]) == ["the source of imported_late.build"]


@pytest.mark.parametrize("place", held.PLACES)
def test_what_no_other_process_can_compare_is_refused_with_its_path(place: str) -> None:
    if place == "in_class":  # of a class, as of a module, it is known by its type alone
        assert table(held.in_class(threading.Lock()))
        return
    with open(os.devnull) as file:
        for value in (threading.Lock(), file, (x for x in "ab"), threading.local()):
            with pytest.raises(
                ConfigError, match=r"^make.*: holds a value of the type .*Make the value within"
            ) as raised:
                table(held.PLACES[place](value))
            assert "0x" not in str(raised.value)


def test_a_lock_of_a_module_is_no_reason_to_refuse_code_that_uses_it(monkeypatch: pytest.MonkeyPatch, own: Any) -> None:
    monkeypatch.setattr(own, "REWARD", threading.Lock())
    assert table(own.in_closure(1.0))["REWARD"] == "a lock"


def test_an_object_may_leave_out_of_its_state_what_cannot_be_compared() -> None:
    class Logged:
        def __init__(self, scale: float) -> None:
            self.scale, self.lock = scale, threading.Lock()

        def __getstate__(self) -> dict[str, Any]:
            return {"scale": self.scale}

    one, other = table(held.in_closure(Logged(1.0))), table(held.in_closure(Logged(2.0)))
    assert one == table(held.in_closure(Logged(1.0)))
    assert differences(other, one)


def test_values_that_hold_themselves_and_each_other_end() -> None:
    def of(depth: int) -> Any:
        loop: list[Any] = []
        loop.append({"again": loop, "depth": depth})
        node = held.Slotted(loop, None)
        node.b = node
        return lambda: (loop, node)

    assert table(of(1)) == table(of(1)) != table(of(2))
    wide: Any = 1
    for _ in range(60):
        wide = [wide, wide]  # 2**60 paths
    assert table(lambda: wide)
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested too deeply"):
        table(lambda: deep)


def test_a_space_is_the_same_after_it_was_sampled() -> None:
    space = gymnasium.spaces.Box(0, 1, (2,))
    before = table(lambda: space)
    space.sample()
    assert table(lambda: space) == before


def test_installed_packages_are_named_and_not_looked_into() -> None:
    assert table(lambda: gymnasium.make("CartPole-v1")) == {
        "make": table(lambda: gymnasium.make("CartPole-v1"))["make"],
        "tests.test_captured.gymnasium": "module gymnasium",
    } or set(table(lambda: gymnasium.make("CartPole-v1"))) == {"make", "gymnasium"}


def test_a_table_of_much_code_stays_small() -> None:
    large = {f"k{i}": {f"j{j}": "x" * 70 + str(j) for j in range(60)} for i in range(60)}
    one = table(lambda: large)
    assert len(one) <= 256
    large["k3"]["j7"] = "y"
    assert differences(table(lambda: large), one)


def executed(source: str, name: str, module: str) -> Any:
    space: dict[str, Any] = {"__name__": module, "gymnasium": gymnasium, "np": np, "random": random}
    exec(compile(source, "<string>", "exec"), space)
    return space[name]


MADE = (
    "class Slotted(gymnasium.Env):\n    def reset(self, *, seed=None, options=None):\n        return np.{0}(2), {{}}\n"
)


def test_a_class_made_by_exec_is_known_by_its_compiled_code_and_not_by_lines_of_another() -> None:
    # tests.held has a class of this name: Python before 3.13 gives that one's source, and 3.13 any lines there are.
    zeros, ones, again = (executed(MADE.format(name), "Slotted", "tests.held") for name in ("zeros", "ones", "zeros"))
    assert sources.source_sha256(zeros) == sources.source_sha256(again) != sources.source_sha256(ones)
    assert sources.source_sha256(zeros) != sources.source_sha256(held.Slotted)
    assert table(zeros) == table(again)
    assert differences(table(ones), table(zeros))


def test_source_that_is_of_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    from daskrl.code import source as code

    made = executed("class Other(gymnasium.Env):\n    def step(self, action): return 1\n", "Other", "tests.held")
    monkeypatch.setattr(inspect, "getsource", lambda obj: "REWARD = 1.0\nWEIGHTS = {}\n")
    with pytest.raises(OSError, match="no source of Other"):
        code.source_of_class(made)
    assert sources.source_sha256(made)


def test_functions_made_by_exec_are_known_by_their_compiled_code() -> None:
    source = "def make():\n    return [lambda: {0}][0]()\n"
    one, other, again = (executed(source.format(n), "make", "tests.held") for n in (1, 2, 1))
    assert table(one) == table(again)
    assert differences(table(other), table(one)) == ["the source of make"]
