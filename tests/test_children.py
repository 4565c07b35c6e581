"""Environments that have a process of their own: on any worker, and gone when their worker is."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from distributed import Client, LocalCluster

from daskrl import clusters
from tests.promise import start


def _serve(pipe: Any) -> None:
    env = gymnasium.make("CartPole-v1", disable_env_checker=True)
    while True:
        name, args, kwargs = pipe.recv()
        pipe.send(getattr(env, name)(*args, **kwargs))


class Remote(gymnasium.Env[Any, Any]):
    """CartPole in a child process, which notes its number."""

    def __init__(self, notes: str) -> None:
        env = gymnasium.make("CartPole-v1")
        self.observation_space, self.action_space = env.observation_space, env.action_space
        context = multiprocessing.get_context("fork")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there,), daemon=True)
        self.process.start()
        Path(notes, f"{os.getpid()}-{self.process.pid}").touch()

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self.pipe.send((name, args, kwargs))
        return self.pipe.recv()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._ask("reset", seed=seed)

    def step(self, action: Any) -> Any:
        return self._ask("step", action)

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return start(tmp_path_factory.mktemp("one") / "run").wait().store.digest()


@pytest.fixture(params=["clusters.local", "LocalCluster"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    plain = {"threads_per_worker": 1, "dashboard_address": None}
    made: Any = clusters.local(2) if request.param == "clusters.local" else LocalCluster(n_workers=2, **plain)
    with made as cluster, Client(cluster) as client:
        yield client


def _ended(pid: int) -> bool:
    """Wait for the end of any process."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 60)[0])
    finally:
        os.close(handle)


@pytest.mark.filterwarnings("ignore:no worker offers the resource learner")
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="of Linux")
def test_environments_have_child_processes_on_workers_and_they_end_when_their_worker_is_killed(
    client: Client, tmp_path: Path, digest: str
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    run = start(tmp_path / "run", lambda: Remote(str(notes)), client=client, recheck_every=0)
    for path in notes.iterdir():
        path.unlink()  # of children of this process, which asked an environment for its spaces
    killed = 0
    for report in run:
        if report.weights_version == 3:
            # Of a rollout worker: it alone has made environments.
            worker = next(path.name for path in notes.iterdir()).partition("-")[0]
            killed = int(worker)
            os.kill(killed, signal.SIGKILL)
    assert run.store.digest() == digest
    children = [int(path.name.split("-")[1]) for path in notes.iterdir() if path.name.startswith(f"{killed}-")]
    assert len(children) >= 2
    assert all(_ended(child) for child in children)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="of Linux")
def test_what_a_worker_forked_ends_with_a_worker_that_ends_by_itself(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    with clusters.local(1) as cluster, Client(cluster) as client:
        run = start(tmp_path / "run", lambda: Unclosed(str(notes)), client=client, env_steps=128)
        for path in notes.iterdir():
            path.unlink()
        run.wait()
    children = [int(path.name.split("-")[1]) for path in notes.iterdir()]
    assert children
    assert all(_ended(child) for child in children)


class Unclosed(Remote):
    def close(self) -> None:
        pass
