"""A cluster follows what the learners of its runs ask for: real processes, over TCP."""

from __future__ import annotations

import queue
import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import psutil  # type: ignore[import-untyped]
import pytest
from distributed import Client, Event, Future, LocalCluster, get_worker

import daskrl
from daskrl import clusters
from daskrl.errors import ConfigError
from daskrl.pools import demand, workers
from daskrl.tasks import preload
from tests.promise import SETTINGS, start


@pytest.fixture
def client() -> Iterator[Client]:
    with clusters.local(1) as cluster, Client(cluster) as made:
        yield made


class Seen:
    """Events on the scheduler, waited for one by one."""

    def __init__(self, client: Client, topic: str) -> None:
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        client.subscribe_topic(topic, lambda event: self.events.put(event[1]))

    def next(self, **wanted: Any) -> dict[str, Any]:
        while True:
            event: dict[str, Any] = self.events.get(timeout=60)
            if wanted.items() <= event.items():
                return event


def ask(client: Client, slots: int, learner: str | None = None, refused: Collection[str] = ()) -> None:
    learners = [learner] if learner else []
    message = {"client": client.id, "run": client.id, "slots": slots, "learners": learners, "refused": list(refused)}
    client.log_event(demand.ASKED, message)


def addresses(client: Client, *, learn: bool) -> set[str]:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {address for address, info in workers.items() if bool(info["resources"]) == learn}


def wait_for(client: Client, rollouts: int) -> None:
    client.wait_for_workers(rollouts + 1, timeout=60)
    assert len(addresses(client, learn=False)) == rollouts


def closable(client: Client, count: int) -> set[str]:
    """Whom the scheduler would name if that many workers were to be closed."""
    return set(client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.workers_to_close(n=count)))


def blocked(started: str, go: str, ran: str) -> str:
    """Take long, until told; and say where it ran, in a file."""
    with Path(ran).open("a") as file:
        file.write("ran\n")
    Event(started).set()
    Event(go).wait()
    return str(get_worker().address)


def test_workers_come_and_go_as_asked_and_the_learner_stays(client: Client) -> None:
    seen = Seen(client, "all")
    learner = addresses(client, learn=True)
    clusters.adapt(client.cluster, minimum=1, maximum=3, interval=0.1, patience=0.3)
    ask(client, 2)
    wait_for(client, 2)
    ask(client, 50)  # more than the maximum
    wait_for(client, 3)
    ask(client, 1)
    left = {seen.next(action="remove-worker")["worker"] for _ in range(2)}
    assert not left & learner
    assert addresses(client, learn=True) == learner
    assert len(addresses(client, learn=False)) == 1


def test_a_worker_finishes_what_it_has_before_it_is_closed(client: Client, tmp_path: Path) -> None:
    seen, draining = Seen(client, "all"), Seen(client, demand.DRAINING)
    clusters.adapt(client.cluster, minimum=1, maximum=2, interval=0.1, patience=0.3)
    ask(client, 2)
    wait_for(client, 2)
    files = {address: tmp_path / str(i) for i, address in enumerate(addresses(client, learn=False))}
    futures: dict[str, Future[str]] = {
        address: client.submit(blocked, f"started {file}", "go", str(file), workers=[address])
        for address, file in files.items()
    }
    for file in files.values():
        Event(f"started {file}", client=client).wait()

    ask(client, 1)
    (going,) = draining.next()["workers"]
    assert addresses(client, learn=False) == set(files)  # both are busy, so both are still there
    Event("go", client=client).set()
    assert futures[going].result() == going
    assert seen.next(action="remove-worker")["worker"] == going
    assert [file.read_text() for file in files.values()] == ["ran\n", "ran\n"]


async def end_lifetime(dask_worker: Any) -> None:
    """What a worker does some time before its lifetime ends."""
    dask_worker.loop.add_callback(preload.leave, dask_worker, 60.0)


def test_a_worker_whose_lifetime_ends_finishes_what_it_has_before_it_closes(client: Client, tmp_path: Path) -> None:
    clusters.adapt(client.cluster, minimum=1, maximum=1, interval=3600)
    seen, draining = Seen(client, "all"), Seen(client, demand.DRAINING)
    (address,), file = addresses(client, learn=False), tmp_path / "ran"
    future = client.submit(blocked, "started", "go", str(file), workers=[address])
    Event("started", client=client).wait()
    client.run(end_lifetime, workers=[address])
    assert list(draining.next()["workers"]) == [address]
    assert addresses(client, learn=False) == {address}  # it is busy, so it is still there
    Event("go", client=client).set()
    assert future.result() == address
    assert seen.next(action="remove-worker")["worker"] == address
    assert file.read_text() == "ran\n"


def test_what_learns_beside_a_driver_listens_where_the_scheduler_is(client: Client) -> None:
    (address,) = addresses(client, learn=False)
    nanny = workers.learner_beside(client, f"{demand.BESIDE_DRIVER}test", 1, address)
    try:
        sockets = psutil.Process(nanny.pid).net_connections("inet")
        assert {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        assert nanny.address.startswith("tcp://127.0.0.1:")
    finally:
        client.sync(nanny.close)


def test_what_a_run_asked_for_is_forgotten_when_its_client_goes(client: Client) -> None:
    seen = Seen(client, "all")
    clusters.adapt(client.cluster, minimum=1, maximum=3, interval=0.1, patience=0.3)
    other = Client(client.cluster)
    ask(other, 2)
    ask(client, 1)  # both together: 3
    wait_for(client, 3)
    other.close()
    for _ in range(2):
        seen.next(action="remove-worker")
    assert len(addresses(client, learn=False)) == 1


def test_a_learner_among_the_others_is_never_named_for_closing(tmp_path: Path) -> None:
    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None, "processes": False}
    with LocalCluster(n_workers=3, **options) as cluster, Client(cluster) as client:
        adaptive = clusters.adapt(cluster, minimum=1, maximum=3, interval=3600)
        everyone = addresses(client, learn=False)
        assert closable(client, 3) == everyone
        for learner in everyone:
            ask(client, 1, learner)
            assert closable(client, 3) == everyone - {learner}
        assert cluster.sync(adaptive.target) == 2  # one slot, and the learner
        ask(client, 1, learner, everyone - {learner})  # those two are of no use: a third beside them
        assert cluster.sync(adaptive.target) == 4
        ask(client, 9, learner)
        assert cluster.sync(adaptive.target) == 4


@pytest.mark.parametrize("set_apart", [True, False], ids=["a learner set apart", "a plain LocalCluster"])
def test_a_run_on_a_pool_that_follows_it_has_the_digest_of_one_process(tmp_path: Path, set_apart: bool) -> None:
    expected = start(tmp_path / "one").wait().store.digest()
    options: dict[str, Any] = {"threads_per_worker": 1, "dashboard_address": None, "processes": True}
    made = clusters.local(1) if set_apart else LocalCluster(n_workers=1, **options)
    with made as cluster, Client(cluster) as client:
        clusters.adapt(cluster, minimum=1, maximum=3, interval=0.1, patience=0.1)
        says = nullcontext() if set_apart else pytest.warns(UserWarning, match="it learns beside the driver")
        with says:
            run = start(tmp_path / "run", client=client).wait()
        assert run.store.digest() == expected
        asked = [event for _, event in client.get_events(demand.ASKED)]
    assert asked[0]["slots"] == 4  # all streams, before anything was measured
    assert any(event["learners"] for event in asked)


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole of which a fragment takes longer than a learner takes for a round that is not sluggish."""

    def step(self, action: Any) -> Any:
        time.sleep(0.004)
        return super().step(action)


@dataclass(frozen=True)
class Sluggish(daskrl.DQN):  # type: ignore[misc, valid-type]
    """DQN whose updates take long while a file exists."""

    while_exists: str = ""

    def update(self, learner: Any, batch: Any) -> Any:
        time.sleep(0.3 if Path(self.while_exists).exists() else 0.0)
        return super().update(learner, batch)


def test_the_pool_of_a_run_shrinks_while_its_learner_is_slow_and_grows_again(client: Client, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    algorithm = Sluggish(**{**SETTINGS, "replay_ratio": 1.0}, while_exists=str(slow))
    given = {
        "env": lambda: Slow(gymnasium.make("CartPole-v1")),
        "algorithm": algorithm,
        "env_steps": 1600,
        "streams": 2,
    }
    expected = start(tmp_path / "one", **given).wait().store.digest()
    slow.touch()
    seen = Seen(client, "all")
    clusters.adapt(client.cluster, minimum=1, maximum=2, interval=0.1, patience=0.3)
    changes = []
    run = start(tmp_path / "run", client=client, **given)
    for report in run:
        if report.weights_version == 6:  # by now the run has asked for less
            changes.append(seen.next(action="remove-worker"))
            slow.unlink()
        if report.weights_version == 20:
            changes.append(seen.next(action="add-worker"))
    assert len(changes) == 2
    assert run.store.digest() == expected


class ScalesItself:
    """As a cluster of dask-kubernetes does, by an operator elsewhere."""

    def adapt(self, minimum: int, maximum: int) -> None:
        raise AssertionError("not to be called")


def test_a_cluster_that_cannot_be_told_how_to_scale_is_named() -> None:
    with pytest.raises(ConfigError, match=r"ScalesItself decides by itself .* cluster\.scale\(\)"):
        clusters.adapt(ScalesItself())  # type: ignore[arg-type]


def test_bounds_that_make_no_sense_are_named() -> None:
    with pytest.raises(ConfigError, match="maximum"):
        clusters.adapt(None, minimum=3, maximum=2)
