"""The promise for every algorithm: on real processes, with all of them killed on the way, the digest of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

import daskrl
from daskrl import clusters
from daskrl.algorithms import BUILT_IN, by_name
from tests.cases import CASES
from tests.promise import kill_every_worker_at


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with clusters.local(2) as cluster, Client(cluster) as made:
        yield made


def start(store: Path, name: str, client: Client | None = None) -> daskrl.Run:
    settings, env, lag = CASES[name]
    return daskrl.train(
        by_name(name)(**settings), env, store=store, env_steps=10 * 128, seed=5, streams=4, envs_per_stream=2,
        fragment_steps=16, lag=lag, checkpoint_every=3, weights_every=4, recheck_every=5, client=client,
        progress=False,
    )  # fmt: skip


def test_every_built_in_algorithm_is_here() -> None:
    assert set(CASES) == set(BUILT_IN)


@pytest.mark.parametrize("name", list(CASES))
def test_sigkill_to_the_learner_and_to_every_rollout_worker(client: Client, tmp_path: Path, name: str) -> None:
    expected = start(tmp_path / "one", name).wait()
    assert expected.report is not None
    assert expected.report.learner_updates > 0
    client.wait_for_workers(3, timeout=60)
    run = start(tmp_path / "many", name, client)
    assert kill_every_worker_at(4, run, client) == 3
    assert run.store.digest() == expected.store.digest()
