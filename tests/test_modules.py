"""Algorithms and environments of the user's own: ``module:name`` or ``FILE.py:name``."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import pytest

import daskrl
from daskrl.code import modules
from daskrl.envs import source as sources
from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.tasks import rollout
from tests.promise import start
from tests.typed import SMALL, Here, daskrl_

HELPER = """
LENGTH = {length}

def unlike():
    return LENGTH
"""
MINE = """
import daskrl, gymnasium
import {helper}

class Mine(daskrl.DQN):
    "The same as DQN."

def env():
    return gymnasium.make("CartPole-v1", max_episode_steps={helper}.unlike())

class Env(gymnasium.Wrapper):
    def __init__(self):
        super().__init__(env())

gymnasium.register("FromAFile-v0", entry_point=env)
"""


def write(
    folder: Path, length: int = 30, name: str = "mine_of_these_tests", helper: str = "beside_these_tests"
) -> Path:
    """A file with an algorithm and environments, and another beside it that it imports."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{helper}.py").write_text(HELPER.format(length=length))
    (folder / f"{name}.py").write_text(MINE.format(helper=helper))
    return folder / f"{name}.py"


def forget() -> None:
    """What these tests imported is imported again."""
    modules.LOADED.clear()
    for name in [*sys.modules]:
        if name.startswith(("mine_of", "beside_")):
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(sys.modules[name])
            del sys.modules[name]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    forget()


def steps(folder: str, *, workers: int = 0) -> list[str]:
    return [*SMALL, "--env-steps", "320", "--workers", str(workers), "--episodes", "0", "--store", folder]


def test_a_file_and_a_module_of_it_are_the_same_run(tmp_path: Path, here: Here) -> None:
    write(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    spelled = {
        "module": (tmp_path, "mine_of_these_tests"), "file": (tmp_path, "mine_of_these_tests.py"),
        "from elsewhere": (tmp_path / "elsewhere", "../mine_of_these_tests.py"),
    }  # fmt: skip
    made = {}
    for how, (place, name) in spelled.items():
        here("train", f"{name}:env", "--algorithm", f"{name}:Mine", *steps(how), cwd=place)
        made[how] = daskrl.Store.open(place / how)
        forget()
    assert len({store.digest() for store in made.values()}) == 1
    assert len({json.dumps(store.config.to_json(), sort_keys=True) for store in made.values()}) == 1


def test_what_was_made_by_one_spelling_goes_on_by_another_wherever_it_is_named(
    tmp_path: Path, here: Here
) -> None:  # fmt: skip
    write(tmp_path)
    here("train", "mine_of_these_tests:Env", "--algorithm", "mine_of_these_tests:Mine", *steps("run"), cwd=tmp_path)
    by_file = shlex.split("--env ./mine_of_these_tests.py:Env --algorithm mine_of_these_tests.py:Mine")
    here("resume", "run", "--env-steps", "352", "--workers", "0", "--episodes", "0", *by_file, cwd=tmp_path)
    assert "mean return" in here("evaluate", "run", "--episodes", "2", *by_file, cwd=tmp_path).stdout
    assert "the same" in here("reproduce", "run", "--fragment", "9", *by_file, cwd=tmp_path).stdout
    again = ["--env", "mine_of_these_tests:Env", "--algorithm", "mine_of_these_tests:Mine"]
    assert "the same" in here("reproduce", "run", "--fragment", "3", *again, cwd=tmp_path).stdout


def test_a_file_reaches_workers_by_value_with_what_it_imports_from_beside_it(tmp_path: Path, here: Here) -> None:
    file = write(tmp_path / "far" / "away")
    (tmp_path / "here").mkdir()
    named = ["--algorithm", f"{file}:Mine"]
    here("train", f"{file}:env", *named, *steps("alone"), cwd=tmp_path / "here")
    daskrl_("train", f"{file}:env", *named, *steps("workers", workers=1), cwd=tmp_path / "here")
    alone, workers = (daskrl.Store.open(tmp_path / "here" / name) for name in ("alone", "workers"))
    assert alone.digest() == workers.digest()
    assert max(episode[2] for record in alone.fragments() for episode in record["episodes"]) == 30


def test_what_is_packed_of_a_file_needs_none_of_its_modules(tmp_path: Path) -> None:
    file = write(tmp_path / "far")
    made, factory = modules.imported(f"{file}:Mine")(), modules.imported(f"{file}:Env")
    packed = cloudpickle.dumps((made, factory))
    code = (
        "import pickle, sys; made, factory = pickle.load(sys.stdin.buffer); env = factory(); env.reset(seed=1); "
        "print(type(made).__name__, env.spec.max_episode_steps, [n for n in sys.modules if 'these_tests' in n])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, input=packed, capture_output=True, check=True)
    assert done.stdout.decode().split() == ["Mine", "30", "[]"]


def test_files_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    one = write(tmp_path / "one", 30, helper="beside_one")
    other = write(tmp_path / "other", 40, helper="beside_other")
    first, second = modules.imported(f"{one}:Env"), modules.imported(f"{other}:Env")
    assert first is not second
    assert (first().spec.max_episode_steps, second().spec.max_episode_steps) == (30, 40)
    assert modules.imported(f"{one.parent}/../one/{one.name}:Env") is first
    assert sources.source_sha256(first) == sources.source_sha256(modules.imported(f"{one}:Env"))


def test_a_file_named_as_a_package_that_is_installed_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("class Mine:\n    pass\n")
    (tmp_path / "statistics.py").write_text("class Mine:\n    pass\n")
    for name in ("numpy", "statistics"):
        assert modules.imported(f"{tmp_path}/{name}.py:Mine").__module__ != name
        assert not hasattr(modules.module(name), "Mine")


def test_no_installed_package_goes_by_value_with_a_file_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda key: str(tmp_path / "venv"))
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "beside_installed.py").write_text("")
    (tmp_path / "beside_own.py").write_text("")
    (tmp_path / "mine_of.py").write_text("import beside_installed, beside_own\n\nclass Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path / "venv")
    modules.imported(f"{tmp_path}/mine_of.py:Mine")
    by_value = cloudpickle.list_registry_pickle_by_value()
    assert "beside_own" in by_value
    assert "beside_installed" not in by_value


def test_an_id_that_a_file_registers_is_an_environment_and_is_found_again(tmp_path: Path, here: Here) -> None:
    write(tmp_path)
    here("train", "mine_of_these_tests.py:FromAFile-v0", *steps("run"), cwd=tmp_path)
    again = ["--env", "mine_of_these_tests.py:FromAFile-v0"]
    assert "the same" in here("reproduce", "run", "--fragment", "3", *again, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "mine_of_these_tests.py:Mien",
            r"mine_of_these_tests.py has no 'Mien'; it has Env, Mine, env. Did you mean Mine\?",
        ),
        ("mine_of_these_tests:Mien", r"mine_of_these_tests has no 'Mien'; it has Env, Mine, env. Did you mean Mine\?"),
        ("nowhere/mine.py:Mine", r"nowhere/mine.py: expected a file, there is none at .*nowhere/mine.py"),
        ("nowhere:Mine", "expected MODULE:NAME or FILE.py:NAME, but No module named 'nowhere'"),
        ("mine_of_these_tests.py", "expected MODULE:NAME or FILE.py:NAME"),
        ("broken.py:Mine", "importing 'broken.py' raised ZeroDivisionError"),
        ("wrong.py:Mine", "importing 'wrong.py' raised SyntaxError"),
        ("empty.py:Mine", "empty.py has no 'Mine'; it has no function or class of its own"),
        ("lacking.py:Mine", "No module named 'nowhere'"),
    ],
)
def test_what_is_not_there_is_an_error_that_says_what_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    write(tmp_path)
    for name, text in {"broken": "1 / 0", "wrong": "def", "empty": "import os", "lacking": "import nowhere"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        modules.imported(path)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("mine_of_these_tests.py:envv", "has no 'envv'; it has Env, Mine, env. Did you mean env?"),
        ("mine_of_these_tests.py:Pole-v7", "has no 'Pole-v7'; it has Env, Mine, env."),
        ("mine_of_these_tests.py", "it has Env, Mine, env."),
        ("missing.py:env", "expected a file"),
        ("CartPole-v1 --algorithm mine_of_these_tests.py:Dqn", "has no 'Dqn'; it has Env, Mine, env."),
        ("CartPole-v1 --algorithm mine_of_these_tests.py", "expected MODULE:NAME or FILE.py:NAME"),
    ],
)
def test_so_it_is_on_the_command_line_before_anything_is_made(
    tmp_path: Path, here: Here, typed: str, message: str
) -> None:  # fmt: skip
    write(tmp_path)
    said = here("train", *shlex.split(typed), *steps("run"), cwd=tmp_path, code=2)
    assert message in said.stderr
    assert "Traceback" not in said.stderr
    assert not (tmp_path / "run").exists()


def test_what_has_no_name_that_can_be_typed_is_not_given_one(tmp_path: Path) -> None:
    def inner() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("CartPole-v1")

    class Inner(daskrl.DQN):  # type: ignore[misc, valid-type]
        """Its name is as hard to type."""

    for number, (env, algorithm) in enumerate([(lambda: gymnasium.make("CartPole-v1"), None), (inner, Inner())]):
        run = start(tmp_path / str(number), env=env, algorithm=algorithm)
        with pytest.raises(StoreMismatchError) as raised:
            daskrl.resume(run.store.root)
        assert "<" not in str(raised.value).replace(repr(env.__qualname__), "")
        assert "on the command line --env FILE.py:NAME, where it is defined at the top of a file" in str(raised.value)
    assert "resume(" in str(raised.value)
    assert "env=inner)" in str(raised.value)
    assert rollout.own(run.store.config).startswith(" --algorithm MODULE:Inner")


def test_the_users_own_modules_are_those_of_no_package() -> None:
    assert modules.local("tests.test_modules") is sys.modules[__name__]
    assert [modules.local(name) for name in ("numpy", "json", "daskrl.train", "__main__", "nowhere")] == [None] * 5
