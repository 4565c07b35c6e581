"""Every kind of place for a store does what a store needs of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from daskrl.store.places import place
from daskrl.store.storage import Storage
from daskrl.testing import StorageTests
from tests import objects

COUNT = itertools.count()


class TestDirectory(StorageTests):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder_of_test = tmp_path

    def place(self) -> Storage:
        return place(self.folder_of_test / f"run-{next(COUNT)}")


class TestMemory(StorageTests):
    def place(self) -> Storage:
        return place(f"memory://tests/run-{next(COUNT)}")


@pytest.mark.s3
class TestS3(StorageTests):
    @pytest.fixture(autouse=True)
    def _reach(self, s3: objects.SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)

    def place(self) -> Storage:
        return place(f"s3://{objects.BUCKET}/storage/run-{next(COUNT)}")
