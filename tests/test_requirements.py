"""What daskrl asks for, and the image and the script that install it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import google_crc32c
import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import daskrl

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [
    Requirement(line)
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def floors() -> dict[str, str]:
    """Of each package asked for, the oldest version that is taken."""
    asked = [Requirement(line) for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
    return {
        canonicalize_name(one.name): each.version for one in asked for each in one.specifier if each.operator == ">="
    }


def test_constraints_name_each_package_once_and_in_order() -> None:
    names = [canonicalize_name(pin.name) for pin in PINS]
    assert len(set(names)) == len(names)
    assert [str(pin.specifier)[:2] for pin in PINS] == ["=="] * len(PINS)


def test_no_package_is_pinned_below_its_floor() -> None:
    pins = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in PINS}
    for name, floor in floors().items():
        assert name not in pins or Version(pins[name]) >= Version(floor), name


def test_floors_are_those_that_the_other_packages_allow_and_that_are_fast() -> None:
    """cyclopts needs rich 13.6, and google-crc32c 1.5 computes in Python where it has no wheel."""
    assert Version(floors()["rich"]) >= Version("13.6")
    assert Version(floors()["google-crc32c"]) >= Version("1.6")
    assert google_crc32c.implementation == "c"


def test_a_store_is_opened_by_xarray_without_a_warning(tmp_path: Path) -> None:
    store = daskrl.train(
        daskrl.DQN(hidden=(8,), window=64), "CartPole-v1", store=tmp_path / "run", env_steps=32, streams=2,
        envs_per_stream=2, fragment_steps=8, progress=False,
    ).wait().store  # fmt: skip
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = set(store.to_xarray().data_vars)
        assert set(xarray.open_zarr(store.root, consolidated=False).data_vars) == names
    for page in ("README.md", "FORMAT.md"):
        assert "consolidated=False" in (REPOSITORY / page).read_text()


# -- the image ----------------------------------------------------------------------------------------------


DOCKERFILE = REPOSITORY / "cluster" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", "", DOCKERFILE.read_text()).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line and not line.startswith("#")]


def given(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


def test_the_dockerfile_passes_the_linter() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("no hadolint here")
    done = subprocess.run([linter, "--format", "json", DOCKERFILE], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == []
    assert done.returncode == 0


def test_what_the_dockerfile_copies_is_there_and_is_what_the_build_is_given() -> None:
    copied = [source for line in given("COPY") for source in shlex.split(line)[:-1]]
    assert all((REPOSITORY / source).exists() for source in copied)
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split("\n")
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    assert {"pyproject.toml", "constraints.txt", "daskrl", PROJECT["readme"]} <= set(copied)


def test_the_image_is_installed_as_the_readme_says_on_a_python_daskrl_is_for() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert ".venv/bin/pip install -q -c constraints.txt -e '.[test]'" in readme
    (install,) = given("RUN")
    words = shlex.split(install)
    assert words[:2] == ["pip", "install"]
    assert words[words.index("-c") + 1] == "constraints.txt"
    assert words[-1] == ".[${EXTRAS}]"
    (extras,) = given("ARG")
    assert set(extras.removeprefix("EXTRAS=").split(",")) <= set(EXTRAS)
    (base,) = given("FROM")
    found = re.fullmatch(r"python:(3\.\d+)-slim-\w+", base)
    assert found
    assert Version(found[1]) in Requirement(f"python{PROJECT['requires-python']}").specifier


def test_the_image_has_the_name_and_runs_the_commands_of_the_kubernetes_manifests() -> None:
    """The pods give their whole command as arguments, so the image may have no entry point."""
    text = "".join((REPOSITORY / "cluster" / name).read_text() for name in ("kubernetes.yaml", "kubernetes-job.yaml"))
    (image,) = set(re.findall(r"^ +image: (\S+)$", text, re.MULTILINE))
    for page in ("Dockerfile", "README.md"):
        assert f"docker build -f cluster/Dockerfile -t {image} ." in (DOCKERFILE.parent / page).read_text()
    assert image.endswith(f":{PROJECT['version']}")
    assert not given("ENTRYPOINT")
    documents = list(yaml.safe_load_all(text.replace("\napiVersion: batch", "\n---\napiVersion: batch")))

    def first_words(node: object) -> set[str]:
        if isinstance(node, dict):
            own = {str(node["args"][0])} if "image" in node else set()
            return own.union(*map(first_words, node.values()))
        return set().union(*map(first_words, node)) if isinstance(node, list) else set()

    assert first_words(documents) == {"dask", "python", "daskrl"}
    assert "daskrl" in PROJECT["scripts"]


# -- other Pythons ------------------------------------------------------------------------------------------


NEWEST = REPOSITORY / "tests" / "newest.sh"


def test_newest_says_how_it_is_called_and_the_readme_names_it() -> None:
    done = subprocess.run(["bash", NEWEST], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "tests/newest.sh python3.13 python3.12" in done.stdout
    assert "set -uo" not in done.stdout
    assert "tests/newest.sh python3.13 python3.12" in (REPOSITORY / "README.md").read_text()


def test_the_quick_tests_are_there() -> None:
    named = re.findall(r"tests/test_\w+\.py", NEWEST.read_text())
    assert len(named) >= 10
    assert all((REPOSITORY / name).exists() for name in named)


def test_newest_says_which_python_cannot_be_installed_and_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", NEWEST, str(tmp_path / "python4")], capture_output=True, text=True, check=False,
        env={**os.environ, "REFERENCE": sys.executable, "ENVIRONMENTS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{tmp_path / 'python4'}: cannot be installed" in done.stdout
    assert re.search(r"^digest Python 3\.\d+\.\d+: [0-9a-f]{64}$", done.stdout, re.MULTILINE)
