"""What importing the package, and asking for help, may bring: everything else waits until it is needed."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest

import daskrl
from daskrl import clusters, envs, testing
from daskrl.names import lazily

# Libraries that take a tenth of a second, or one, to import.
HEAVY = (
    "numpy", "torch", "gymnasium", "zarr", "numcodecs", "xarray", "matplotlib", "distributed", "dask", "tornado",
    "bokeh", "safetensors", "cloudpickle", "tqdm", "IPython", "asyncio",
)  # fmt: skip


def brought(code: str) -> set[str]:
    """The modules of a fresh interpreter that ran this."""
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('\\n', *sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {*ran.stdout.rpartition("\n \n")[2].rpartition("\n ")[2].split()}


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] == "daskrl"}


def test_importing_the_package_brings_its_names_and_its_errors_only() -> None:
    modules = brought("import daskrl")
    assert ours(modules) == {"daskrl", "daskrl.names", "daskrl.errors"}
    assert modules.isdisjoint({*HEAVY, "cyclopts", "rich", "inspect", "dataclasses"})


@pytest.mark.parametrize("asked", ["--help", "train --help", "resume --help", "evaluate --help", "export --help"])
def test_help_brings_the_command_line_and_none_of_what_runs(asked: str) -> None:
    modules = brought(
        f"import contextlib\nfrom daskrl.cli import main\nwith contextlib.suppress(SystemExit): main({asked.split()})"
    )
    assert {"daskrl.cli.commands", "cyclopts", "rich"} <= modules
    rooms = {".".join(name.split(".")[:2]) for name in ours(modules)}
    assert rooms <= {"daskrl", "daskrl.names", "daskrl.errors", "daskrl.config", "daskrl.code", "daskrl.cli"}
    assert modules.isdisjoint(HEAVY)


@pytest.mark.parametrize("package", [daskrl, clusters, envs, testing], ids=lambda package: package.__name__)
def test_what_a_package_imports_when_it_is_asked_for_is_listed(package: types.ModuleType) -> None:
    assert {*package.__all__} <= {*dir(package)}
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("module", ["algorithms", "clusters", "envs", "errors", "networks", "sinks", "testing"])
def test_modules_that_users_have_need_no_import_of_their_own(module: str) -> None:
    assert module in dir(daskrl)
    ran = subprocess.run(
        [sys.executable, "-c", f"import daskrl; print(daskrl.{module}.__doc__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() != "None"


@pytest.mark.parametrize("first", ["daskrl.Store", "daskrl.Run", "daskrl.train"])
def test_a_store_gives_its_policy_wherever_it_came_from(first: str) -> None:
    code = f"import daskrl; {first}; from daskrl.store.store import Store; print(Store.policy.__module__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["daskrl.analysis.policies"]


def test_a_name_that_is_not_there_is_an_error_that_says_which_one_may_be_meant() -> None:
    get, everything = lazily("daskrl", {"daskrl.config": ["Schedule"]}, {"errors": "daskrl.errors"})
    assert get("Schedule") is daskrl.Schedule
    assert get("errors") is sys.modules["daskrl.errors"]
    assert {"Schedule", "errors", "__version__"} <= {*everything()}
    with pytest.raises(AttributeError, match=r"no attribute 'Shedule'\. Did you mean Schedule\?"):
        get("Shedule")
    with pytest.raises(AttributeError, match=r"no attribute 'error'\. Did you mean errors\?"):
        get("error")
