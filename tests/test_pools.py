"""The pool on a Dask cluster, against a scripted one: every event comes when the test says so."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import distributed
import pytest

import daskrl
from daskrl import schedule
from daskrl.errors import DaskrlError, EnvironmentFailure, SchedulerLostError, WorkerMismatchError
from daskrl.loop import to_commit
from daskrl.pools import dask as pools
from daskrl.pools import demand, placing, remote
from daskrl.pools.base import Plan
from daskrl.pools.local import InProcessPool
from daskrl.store.progress import Progress
from daskrl.tasks import fingerprint, rollout, session
from tests import environments
from tests.promise import start

INFO: dict[str, Any] = {
    "versions": {"torch": "2"}, "cpu": "bits", "cuda": None, "cuda_name": None, "settings": {}, "host": "h", "pid": 1,
    "probes": {}, "free": {},
}  # fmt: skip
GPU = {**INFO, "cuda": "gpu-bits", "cuda_name": "GPU"}


class Future:
    def __init__(self, key: str) -> None:
        self.key, self.status, self.released = key, "pending", False
        self.error: BaseException | None = None
        self.callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def done(self, status: str, error: BaseException | None = None) -> None:
        self.status, self.error = status, error
        for callback in self.callbacks:
            callback(self)

    def exception(self) -> BaseException | None:
        return self.error

    def release(self) -> None:
        self.released = True


class Cluster:
    """Stands in for `distributed.Client`: the pool's and the user's at once."""

    def __init__(self) -> None:
        self.status, self.security = "running", None
        self.workers: dict[str, dict[str, Any]] = {}
        self.handlers: dict[str, Callable[[Any], None]] = {}  # by topic
        self.tasks: list[tuple[Future, str, Any, tuple[Any, ...]]] = []
        self.priorities: dict[str, float] = {}  # by key
        self.on_scheduler: list[tuple[Any, ...]] = []
        self.left_to_the_scheduler: list[Future] = []
        self.logged: list[tuple[str, Any]] = []
        self.closed = False
        self.id = "client"
        self.cluster: Any = None
        self.address = "inproc://scheduler"  # so that no learner can be beside the driver

    def __call__(self, address: str, **options: Any) -> Cluster:
        return self

    def scheduler_info(self, n_workers: int = -1) -> dict[str, Any]:
        return {"address": self.address, "workers": dict(self.workers)}

    def subscribe_topic(self, topic: str, handler: Callable[[Any], None]) -> None:
        self.handlers[topic] = handler

    def unsubscribe_topic(self, topic: str) -> None:
        del self.handlers[topic]

    def submit(self, function: Any, *args: Any, key: str, workers: list[str], **options: Any) -> Future:
        future = Future(key)
        self.tasks.append((future, workers[0], args[2] if function is remote.tell else function, args))
        self.priorities[key] = options["priority"]
        return future

    def run_on_scheduler(self, *call: Any, wait: bool = True) -> None:
        self.on_scheduler.append(call)

    def register_plugin(self, plugin: Any) -> None:
        pass

    def log_event(self, topic: str, message: Any) -> None:
        self.logged.append((topic, message))

    @contextlib.contextmanager
    def as_current(self) -> Iterator[None]:
        yield

    def close(self, timeout: float) -> None:
        self.closed = True

    def sync(self, function: Any, **options: Any) -> Any:
        return function()

    # -- what a test does ---------------------------------------------------------------------------------

    def add(self, name: str, threads: int = 1, **resources: float) -> None:
        self.workers[name] = {"name": name, "nthreads": threads, "resources": resources}
        self.handlers["all"]((0.0, {"action": "add-worker", "worker": name}))

    def has_status(self, name: str, status: str, used: int = 900 << 20) -> None:
        """Dask pauses a worker, or has it run again; one that is paused tells of its memory."""
        self.workers[name]["status"] = status
        self.handlers[demand.STATUS]((0.0, {"worker": name, "status": status}))
        if status == "paused":
            memory = {"used": used, "limit": 1 << 30, "managed": 3 << 20}
            _, *runs = (t for t in self.handlers if t not in ("all", demand.DRAINING, demand.STATUS))
            for run in runs:  # the first is of what they share
                self.handlers[run]((0.0, {"worker": name, "memory": memory}))

    def remove(self, name: str) -> None:
        del self.workers[name]
        self.handlers["all"]((0.0, {"action": "remove-worker", "worker": name}))

    def tell(self, task: Future, record: dict[str, Any]) -> None:
        for topic, handler in self.handlers.items():
            if topic not in ("all", demand.DRAINING, demand.STATUS):
                handler((0.0, {"key": task.key, "record": json.dumps(record)}))
        task.done("finished")

    def joins(self, name: str, info: dict[str, Any]) -> None:
        """A worker says what it computes, if it is asked, and takes part."""
        for task in [*self.pending("introduce", name), *self.pending("join", name)[-1:]]:
            self.tell(task, info)

    def pending(self, prefix: str, worker: str | None = None) -> list[Future]:
        return [
            future
            for future, address, _, _ in self.tasks
            if future.key.startswith(prefix) and worker in (None, address) and future.status == "pending"
            and not future.released
        ]  # fmt: skip


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(distributed, "Client", made)
    monkeypatch.setattr(distributed, "wait", lambda futures, timeout: None)
    monkeypatch.setattr(distributed, "fire_and_forget", made.left_to_the_scheduler.extend)
    return made


def pool_on(cluster: Cluster, tmp_path: Path, arithmetic: Any = None, **options: Any) -> pools.DaskPool:
    run = start(tmp_path / "run", **options)
    plan = Plan(run.store.layout, run.algorithm, run.source.factory, run.options, arithmetic)
    return pools.DaskPool(plan, cluster)  # type: ignore[arg-type]


def join(cluster: Cluster, pool: pools.DaskPool, name: str, info: dict[str, Any] | None = None, **made: Any) -> None:
    """A worker comes and takes part."""
    cluster.add(name, **made)
    pool.wait()
    cluster.joins(name, info or INFO)
    pool.wait()


def learn(cluster: Cluster, pool: pools.DaskPool, version: int, told: bool = True) -> Future:
    """Submit the learning of one version; and have it told."""
    pool.submit_learns([schedule.Learn(version)], 1, lambda version: (False, False))
    task = cluster.pending("learn")[-1]
    if told:
        cluster.tell(task, {"kind": "learn", "version": version})
        assert [outcome.task for outcome in pool.wait()] == [schedule.Learn(version)]
    return task


def say_what_is_missing(pool: pools.DaskPool) -> None:
    pool.wake()
    pool.wait()


def rollouts(streams: int = 4) -> list[schedule.Rollout]:
    return [schedule.Rollout(0, stream, 0) for stream in range(streams)]


def acting(cluster: Cluster, tmp_path: Path) -> pools.DaskPool:
    """A pool with worker "a", version 0 learned, and one rollout in flight."""
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(1), 1)
    return pool


def test_without_workers_nothing_is_submitted_and_the_first_that_joins_does_everything(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pool_on(cluster, tmp_path)
    pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    pool.submit_rollouts([], 1)
    assert not cluster.tasks
    join(cluster, pool, "a")
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(), 1)
    assert len(cluster.pending("rollout", "a")) == 2  # two for its one thread


def test_a_learners_worker_gets_no_rollouts_while_there_are_others(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    join(cluster, pool, "l", learner=1)
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(), 1)
    assert not cluster.pending("rollout", "l")
    assert len(cluster.pending("rollout", "a")) == 2
    assert pool.workers() == 1


def test_a_worker_that_leaves_before_it_joined_is_forgotten(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    cluster.add("a", learner=1)
    pool.wait()
    join(cluster, pool, "b")
    pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    assert not pool.in_flight  # the learner's worker is about to join
    cluster.remove("a")
    pool.wait()
    assert not cluster.pending("join")
    learn(cluster, pool, 0)
    assert pool.held[""] == {0}


def test_two_learners_learn_on_two_workers_and_a_fragment_is_given_the_weights_of_both(
    cluster: Cluster, tmp_path: Path
) -> None:
    run = start(tmp_path / "run")
    layout = dataclasses.replace(run.store.layout, agents={"left": "a", "right": "b"})
    pool = pools.DaskPool(Plan(layout, run.algorithm, run.source.factory, run.options), cluster)  # type: ignore[arg-type]
    for name in ("k", "l", "r"):
        join(cluster, pool, name)
    made = {}
    for key in "ab":
        pool.submit_learns([schedule.Learn(0, key)], 1, lambda version: (False, False), key)
        made[key] = cluster.pending("learn")[-1]
    assert [address for future, address, *_ in cluster.tasks if future in made.values()] == ["k", "l"]
    assert [args[-1] for future, _, _, args in cluster.tasks if future in made.values()] == ["a", "b"]
    cluster.tell(made["a"], {"kind": "learn", "version": 0, "learner": "a"})
    pool.wait()
    assert pool.held == {"a": {0}, "b": set()}
    cluster.tell(made["b"], {"kind": "learn", "version": 0, "learner": "b"})
    pool.wait()
    assert schedule.held_of_all(pool.held) == {0}
    pool.submit_rollouts(rollouts(1), 1)
    ((address, args),) = ((address, args) for _, address, call, args in cluster.tasks if call is rollout.rollout)
    assert (address, args[-2:]) == ("r", (made["a"], made["b"]))
    pool.want(4)
    assert cluster.logged[-1][1]["learners"] == ["k", "l"]
    pool.submit_checkpoint(-1, "b")
    assert cluster.pending("checkpoint", "l")
    cluster.remove("k")  # and the weights of "a" with it
    pool.wait()
    assert pool.held == {"a": set(), "b": {0}}
    assert not cluster.pending("rollout")
    assert pool.in_flight == {schedule.Checkpoint("b")}
    pool.close()


def test_what_was_on_a_worker_that_left_is_given_up_at_once(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    for name in ("l", "a", "b"):
        join(cluster, pool, name, **({"learner": 1} if name == "l" else {}))
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(), 1)
    assert len(pool.in_flight) == 4
    cluster.remove("a")
    pool.wait()
    assert len(pool.in_flight) == 2
    assert not cluster.pending("rollout", "a")
    pool.submit_rollouts([task for task in rollouts() if task not in pool.in_flight], 1)
    assert len(cluster.pending("rollout", "b")) == 2  # and no more until one of them is done


def test_with_the_learner_go_its_weights_and_all_that_waits_for_them(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    join(cluster, pool, "l", learner=1)
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(2), 1)
    cluster.remove("l")
    pool.wait()
    assert not pool.held[""]
    assert not pool.in_flight
    assert learn(cluster, pool, 0) in [future for future, address, _, _ in cluster.tasks if address == "a"]


def test_weights_go_with_the_worker_that_learned_them_also_after_the_learner_moved(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Dask would make them again, on an address that nobody has: their rollouts would wait for ever.
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    join(cluster, pool, "b")
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(2), 1)
    join(cluster, pool, "l", learner=1)
    learn(cluster, pool, 1)
    assert pool.held[""] == {0, 1}
    cluster.remove("a")
    pool.wait()
    assert pool.held[""] == {1}
    assert not pool.in_flight
    learn(cluster, pool, 0)
    assert pool.held[""] == {0, 1}


def test_the_learner_moves_to_a_worker_with_the_resource(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    learn(cluster, pool, 0)
    join(cluster, pool, "l", GPU=1)
    task = learn(cluster, pool, 1, told=False)
    assert cluster.pending("learn", "l") == [task]


def test_a_learner_with_several_threads_gets_one_version_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    for threads, room in ((1, 2), (4, 1)):
        pool = pool_on(cluster, tmp_path / str(threads))
        join(cluster, pool, f"l{threads}", threads=threads, learner=1)
        pool.submit_learns([schedule.Learn(v) for v in range(3)], 1, lambda version: (False, False))
        assert len(pool.in_flight) == room
        cluster.remove(f"l{threads}")


def test_a_worker_that_lost_its_session_joins_again(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    learn(cluster, pool, 0, told=False).done("error", session.NotJoinedError("gone"))
    pool.wait()
    assert not pool.in_flight
    pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    assert not pool.in_flight  # not before it has joined
    cluster.joins("a", INFO)
    pool.wait()
    learn(cluster, pool, 0)


def test_a_join_whose_answer_was_lost_is_asked_for_again(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    cluster.add("a")
    pool.wait()
    cluster.pending("join", "a")[-1].done("finished")
    pool.wait()
    cluster.joins("a", INFO)
    pool.wait()
    assert pool.workers() == 1


def test_a_rollout_whose_answer_was_lost_is_ready_again(cluster: Cluster, tmp_path: Path) -> None:
    pool = acting(cluster, tmp_path)
    cluster.pending("rollout")[-1].done("finished")
    assert pool.wait() == []
    assert not pool.in_flight


def test_an_answer_counts_once(cluster: Cluster, tmp_path: Path) -> None:
    pool = acting(cluster, tmp_path)
    task = cluster.pending("rollout")[-1]
    for _ in range(2):
        cluster.tell(task, {"kind": "fragment"})
    assert len(pool.wait()) == 1
    assert not pool.in_flight


def test_the_error_of_a_task_is_raised_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    pool = acting(cluster, tmp_path)
    cluster.pending("rollout")[-1].done("error", EnvironmentFailure("the motor is jammed"))
    with pytest.raises(EnvironmentFailure, match="the motor is jammed"):
        pool.wait()


def test_tasks_forgotten_by_the_scheduler_end_the_run(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    learn(cluster, pool, 0, told=False).done("cancelled")
    with pytest.raises(SchedulerLostError, match="daskrl resume"):
        pool.wait()


def test_a_rollout_that_kills_its_workers_ends_the_run_and_one_that_was_there_does_not(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "l", learner=1)
    learn(cluster, pool, 0)
    for death in range(10):
        join(cluster, pool, f"w{death}")
        pool.submit_rollouts(rollouts(1), 1)
        cluster.remove(f"w{death}")
        pool.wait()
    join(cluster, pool, "last")
    pool.submit_rollouts(rollouts(1), 1)
    cluster.remove("last")
    with pytest.raises(EnvironmentFailure, match=r"fragment 0 .*daskrl reproduce"):
        pool.wait()


# -- workers that Dask pauses -----------------------------------------------------------------------------


def pausing(cluster: Cluster, tmp_path: Path, *others: str, **options: Any) -> pools.DaskPool:
    """A pool with the learner's worker "l", rollout workers "a" and others, and four rollouts in flight or ready."""
    pool = pool_on(cluster, tmp_path, **options)
    join(cluster, pool, "l", learner=1)
    for name in ("a", *others):
        join(cluster, pool, name)
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(), 1)
    return pool


def test_the_streams_of_a_paused_worker_go_on_elsewhere_and_what_to_change_is_said_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pausing(cluster, tmp_path, "b")
    mine = cluster.pending("rollout", "a")
    tasks = [pool.placing.flights[future.key].task for future in mine]
    cluster.has_status("a", "paused")
    said = (
        r"Dask has paused worker a \(a\), .*: 900 MiB used of 1.0 GiB \(88%\), 3.0 MiB of it for results .*"
        r"Its streams go on on other workers; .*memory_limit=.*fragment_steps.*what grows in the environment"
    )
    with pytest.warns(UserWarning, match=said):
        pool.wait()
    assert [future.released for future in mine] == [True, True]
    assert len(pool.in_flight) == 2
    assert pool.workers() == 1
    assert cluster.on_scheduler[-1] == (remote.ease, f"daskrl-{pool.token}", pool.token, ["a"], False)
    for future in cluster.pending("rollout", "b"):
        cluster.tell(future, {"kind": "fragment"})
    assert len(pool.wait()) == 2
    pool.submit_rollouts(tasks, 1)
    assert not cluster.pending("rollout", "a")
    assert len(cluster.pending("rollout", "b")) == 2
    cluster.has_status("a", "running")
    pool.wait()
    pool.submit_rollouts([schedule.Rollout(1, stream, 0) for stream in range(4)], 1)
    assert len(cluster.pending("rollout", "a")) == 2  # it is back
    cluster.has_status("a", "paused")
    pool.wait()  # and a second time is not told


def test_a_rollout_that_had_begun_on_a_worker_that_was_paused_counts_once_wherever_it_ends_first(
    cluster: Cluster, tmp_path: Path
) -> None:
    for first in ("a", "b"):
        place = tmp_path / first
        pool = pausing(cluster, place, "b")
        begun = cluster.pending("rollout", "a")[0]
        (task,) = (flight.task for key, flight in pool.placing.flights.items() if key == begun.key)
        cluster.has_status("a", "paused")
        with pytest.warns(UserWarning, match="paused worker a"):
            pool.wait()
        for future in cluster.pending("rollout", "b"):
            cluster.tell(future, {"kind": "fragment"})
        pool.wait()
        pool.submit_rollouts([task], 1)
        (again,) = cluster.pending("rollout", "b")
        eased = len(cluster.on_scheduler)
        cluster.tell(begun if first == "a" else again, {"kind": "fragment", "from": first})
        (outcome,) = pool.wait()
        assert (outcome.task, dict(outcome.record)["from"]) == (task, first)
        assert task not in pool.in_flight
        assert again.released == (first == "a")
        assert len(cluster.on_scheduler) == eased + (first == "a")  # its worker keeps the environments again
        cluster.tell(again if first == "a" else begun, {"kind": "fragment"})
        assert pool.wait() == []
        pool.close()
        for name in ("l", "a", "b"):
            cluster.workers.pop(name)
        cluster.tasks.clear()


def eased(cluster: Cluster, name: str) -> int:
    """How often a worker was asked to let go of what it keeps."""
    return sum(call[0] is remote.ease and call[3] == [name] and call[4] is False for call in cluster.on_scheduler)


def test_what_a_paused_worker_keeps_once_its_rollout_was_made_elsewhere_is_let_go_of_too(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pausing(cluster, tmp_path, "b")
    begun, waiting = cluster.pending("rollout", "a")
    tasks = [pool.placing.flights[future.key].task for future in (begun, waiting)]
    cluster.has_status("a", "paused")
    with pytest.warns(UserWarning, match="paused worker a"):
        pool.wait()
    for future in cluster.pending("rollout", "b"):
        cluster.tell(future, {"kind": "fragment"})
    pool.wait()
    pool.submit_rollouts(tasks, 1)
    for future in cluster.pending("rollout", "b"):
        cluster.tell(future, {"kind": "fragment"})
    assert {outcome.task for outcome in pool.wait()} == set(tasks)
    assert eased(cluster, "a") == 1
    cluster.tell(begun, {"kind": "fragment"})
    assert pool.wait() == []
    assert eased(cluster, "a") == 2
    cluster.has_status("a", "running")
    pool.wait()
    assert not pool.placing.taken_back  # what had not begun will never be told of
    assert eased(cluster, "a") == 2


def test_what_the_only_worker_keeps_of_a_rollout_that_ended_while_it_was_paused_is_let_go_of(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = acting(cluster, tmp_path)
    cluster.has_status("a", "paused")
    with pytest.warns(UserWarning, match="paused the learner's worker a"):
        pool.wait()
    cluster.tell(cluster.pending("rollout", "a")[0], {"kind": "fragment"})
    assert len(pool.wait()) == 1
    assert eased(cluster, "a") == 2


def test_an_evaluation_that_a_paused_worker_was_at_is_let_go_of_and_made_elsewhere(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pausing(cluster, tmp_path, "b")
    (address,) = evaluating(cluster, pool, [5], urgent=True)
    other = ({"a", "b"} - {address}).pop()
    (begun,) = cluster.pending("evaluate")
    cluster.has_status(address, "paused")
    with pytest.warns(UserWarning, match=f"paused worker {address}"):
        pool.wait()
    assert evaluating(cluster, pool, [5], urgent=True) == {other: 5}
    cluster.tell(begun, {"kind": "evaluating", "version": 5})
    assert pool.wait() == []
    assert eased(cluster, address) == 2
    (again,) = cluster.pending("evaluate", other)
    cluster.tell(again, {"version": 5, "kind": "evaluation"})
    assert [outcome.task for outcome in pool.wait()] == [schedule.Evaluate(5)]


@pytest.mark.parametrize(
    ("algorithm", "advice"),
    [(None, "smaller window (-s window=...)."), (daskrl.IMPALA(), "smaller rounds (streams, envs_per_stream, frag")],
    ids=["window", "none"],
)
def test_what_to_change_for_a_learner_short_of_memory_is_something_it_has(
    cluster: Cluster, tmp_path: Path, algorithm: Any, advice: str
) -> None:
    pool = pausing(cluster, tmp_path, algorithm=algorithm)
    task = learn(cluster, pool, 1, told=False)
    cluster.has_status("l", "paused")
    with pytest.warns(UserWarning, match=f"paused the learner's worker l .*{re.escape(advice)}"):
        pool.wait()
    pool.placing.deaths[schedule.Learn(1)] = placing.DEATHS
    task.done("error", type("KilledWorker", (Exception,), {})())
    with pytest.raises(DaskrlError, match=f"memory than its worker has.*daskrl resume .*{re.escape(advice)}"):
        pool.wait()


def test_a_cluster_of_one_paused_worker_says_why_nothing_moves_and_goes_on_where_it_stopped(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pool = acting(cluster, tmp_path)
    before = set(pool.in_flight)
    cluster.has_status("a", "paused")
    with pytest.warns(UserWarning, match=r"paused the learner's worker a \(a\).* 900 MiB used of 1.0 GiB"):
        pool.wait()
    pool.submit_rollouts([schedule.Rollout(0, 1, 0)], 1)
    pool.submit_learns([schedule.Learn(1)], 1, lambda version: (False, False))
    assert pool.in_flight == before  # nothing new, and nothing given up: there is nobody else
    now = 161.0
    said = (
        r"60 s without a worker that takes tasks: Dask has paused worker a, .* 900 MiB used .* The run waits.*memory_"
    )
    with pytest.warns(UserWarning, match=said):
        say_what_is_missing(pool)
    say_what_is_missing(pool)  # once
    cluster.has_status("a", "running")
    pool.wait()
    cluster.tell(cluster.pending("rollout", "a")[0], {"kind": "fragment"})
    assert len(pool.wait()) == 1
    learn(cluster, pool, 1)


def test_a_worker_that_comes_takes_the_streams_of_one_that_was_paused_before(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    join(cluster, pool, "l", learner=1)
    learn(cluster, pool, 0)
    cluster.has_status("l", "paused")
    with pytest.warns(UserWarning, match="paused the learner's worker l"):
        pool.wait()
    pool.submit_rollouts(rollouts(2), 1)
    cluster.has_status("a", "paused", used=1000 << 20)
    with pytest.warns(UserWarning, match=r"worker a .* 1000 MiB used .* There is no other worker for its streams"):
        pool.wait()
    assert len(pool.in_flight) == 2
    join(cluster, pool, "b")
    assert not pool.in_flight
    pool.submit_rollouts(rollouts(2), 1)
    assert len(cluster.pending("rollout", "b")) == 2


@pytest.mark.parametrize("status", ["closing_gracefully", "closing"])
def test_a_worker_that_dask_is_closing_gets_nothing_more_and_is_not_said_to_be_paused(
    cluster: Cluster, tmp_path: Path, status: str
) -> None:
    pool = pausing(cluster, tmp_path, "b")
    cluster.has_status("a", status)
    pool.wait()
    assert len(pool.in_flight) == 2
    assert not cluster.pending("rollout", "a")


def test_a_pause_whose_event_was_missed_is_found_where_the_workers_are_compared(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pausing(cluster, tmp_path, "b")
    memory = {"memory_limit": 1 << 30, "metrics": {"memory": 1 << 29, "managed_bytes": 0}}
    cluster.workers["a"].update(status="paused", **memory)
    cluster.handlers["all"]((0.0, {"action": "add-worker", "worker": "c"}))  # which is gone again
    pool.wait()
    assert len(pool.in_flight) == 2
    assert not cluster.pending("rollout", "a")


def test_a_worker_that_was_paused_before_a_run_began_is_said_with_its_memory(cluster: Cluster, tmp_path: Path) -> None:
    memory = {"memory_limit": 1 << 30, "metrics": {"memory": 900 << 20, "managed_bytes": 0}}
    for name, status in (("a", "paused"), ("b", "running")):
        cluster.workers[name] = {"name": name, "nthreads": 1, "resources": {}, "status": status, **memory}
    said = r"paused worker a .* 900 MiB used of 1.0 GiB .* Its streams go on on other workers"
    with pytest.warns(UserWarning, match=said):
        pool = pool_on(cluster, tmp_path)
    cluster.joins("b", INFO)
    pool.wait()
    assert pool.workers() == 1


def test_a_learner_that_is_paused_is_waited_for_with_its_tasks_and_its_weights(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pool = pausing(cluster, tmp_path)
    task = learn(cluster, pool, 1, told=False)
    cluster.has_status("l", "paused")
    said = r"paused the learner's worker l .*Nothing is learned until .*rollouts go on .* smaller window \(-s window="
    with pytest.warns(UserWarning, match=said):
        pool.wait()
    assert not task.released
    assert pool.held[""] == {0}  # workers fetch weights from it all the same
    pool.submit_learns([schedule.Learn(2)], 1, lambda version: (False, False))
    assert schedule.Learn(2) not in pool.in_flight
    pool.submit_checkpoint(0)  # of a run that is stopped: nobody would wait for it in vain
    assert schedule.Checkpoint() not in pool.in_flight
    now = 161.0
    with pytest.warns(
        UserWarning, match=r"60 s without the learner's worker: Dask has paused worker l, .*learner_time"
    ):
        say_what_is_missing(pool)
    cluster.has_status("l", "running")
    pool.wait()
    cluster.tell(task, {"kind": "learn", "version": 1})
    pool.wait()
    assert pool.held[""] == {0, 1}
    learn(cluster, pool, 2)


def test_another_worker_that_is_meant_for_it_learns_on_for_one_that_is_paused(cluster: Cluster, tmp_path: Path) -> None:
    pool = pausing(cluster, tmp_path)
    join(cluster, pool, "k", learner=1)
    task = learn(cluster, pool, 1, told=False)
    assert cluster.pending("learn", "l") == [task]
    cluster.has_status("l", "paused")
    with pytest.warns(UserWarning, match="paused the learner's worker l"):
        pool.wait()
    pool.submit_learns([], 1, lambda version: (False, False))
    assert task.released
    assert learn(cluster, pool, 1) in [future for future, address, *_ in cluster.tasks if address == "k"]


def test_a_learner_that_stays_paused_is_given_up_after_learner_timeout(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pool = pausing(cluster, tmp_path, learner_timeout=30.0)
    cluster.has_status("l", "paused")
    with pytest.warns(UserWarning, match="paused the learner's worker l"):
        pool.wait()
    pool.submit_learns([schedule.Learn(1)], 1, lambda version: (False, False))
    assert not cluster.pending("learn")
    now = 131.0
    task = learn(cluster, pool, 1)
    assert task in [future for future, address, *_ in cluster.tasks if address == "a"]


def test_a_checkpoint_that_waits_on_a_paused_learner_is_not_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    pool = pausing(cluster, tmp_path)
    pool.submit_checkpoint(0)
    cluster.has_status("l", "paused")
    with pytest.warns(UserWarning, match="paused the learner's worker l"):
        pool.wait()
    assert schedule.Checkpoint() not in pool.in_flight


def test_a_recheck_on_a_worker_that_is_paused_is_made_on_another(cluster: Cluster, tmp_path: Path) -> None:
    pool = pausing(cluster, tmp_path, "b")
    recheck = schedule.Recheck(0, 0, json.dumps({"stream": 0}))
    pool.submit_recheck(recheck, 7)
    (address,) = {address for future, address, *_ in cluster.tasks if future.key.startswith("recheck")}
    cluster.has_status(address, "paused")
    with pytest.warns(UserWarning, match=f"paused worker {address}"):
        pool.wait()
    (again,) = cluster.pending("recheck")
    (args,) = (args for future, _, _, args in cluster.tasks if future is again)
    assert 7 in args
    assert recheck in pool.in_flight


def rechecking(cluster: Cluster, pool: pools.DaskPool, environment: int | None) -> tuple[schedule.Recheck, str]:
    """A recheck that has begun, and the worker that it is on."""
    recheck = schedule.Recheck(0, 0, json.dumps({"stream": 0}), environment)
    pool.submit_recheck(recheck, 7)
    return recheck, rechecked_on(cluster)


def rechecked_on(cluster: Cluster) -> str:
    """The worker of the one recheck under way, which looks at as many commits as the driver said."""
    (future,) = cluster.pending("recheck")
    ((address, args),) = ((address, args) for other, address, _, args in cluster.tasks if other is future)
    assert 7 in args
    return address


@pytest.mark.parametrize("environment", [None, 1], ids=["whole", "alone"])
def test_a_recheck_that_is_lost_with_its_worker_is_made_on_another(
    cluster: Cluster, tmp_path: Path, environment: int | None
) -> None:
    pool = pausing(cluster, tmp_path, "b")
    recheck, address = rechecking(cluster, pool, environment)
    cluster.remove(address)
    pool.wait()
    assert rechecked_on(cluster) == ({"a", "b"} - {address}).pop()
    assert recheck in pool.in_flight
    answer = {"kind": "recheck", "slot": 0, "problem": None}
    cluster.tell(cluster.pending("recheck")[0], answer)
    assert [outcome.record for outcome in pool.wait() if outcome.task == recheck] == [answer]
    cluster.remove(({"a", "b"} - {address}).pop())
    pool.wait()
    assert not cluster.pending("recheck")  # it is answered
    assert recheck not in pool.in_flight


def test_a_recheck_waits_for_a_worker_and_a_run_is_not_over_before_it_is_made(cluster: Cluster, tmp_path: Path) -> None:
    pool = pausing(cluster, tmp_path)
    recheck, _ = rechecking(cluster, pool, 1)
    cluster.remove("a")
    cluster.has_status("l", "paused")
    with pytest.warns(UserWarning, match="paused the learner's worker l"):
        pool.wait()
    assert recheck in pool.in_flight
    assert not cluster.pending("recheck")
    join(cluster, pool, "b")
    assert rechecked_on(cluster) == "b"


@pytest.mark.parametrize("lost", ["answer", "session"])
def test_a_recheck_whose_answer_or_session_was_lost_is_made_again(cluster: Cluster, tmp_path: Path, lost: str) -> None:
    pool = pausing(cluster, tmp_path)
    recheck, _ = rechecking(cluster, pool, 1)
    (task,) = cluster.pending("recheck")
    if lost == "answer":
        task.done("finished")
    else:
        task.done("error", session.NotJoinedError("no session"))
    pool.wait()
    assert cluster.pending("recheck") != [task]
    assert rechecked_on(cluster) == ("a" if lost == "answer" else "l")
    assert recheck in pool.in_flight


def test_a_recheck_whose_weights_are_lost_waits_for_them_and_is_given_up_where_nobody_learns_them_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pausing(cluster, tmp_path)
    recheck, _ = rechecking(cluster, pool, None)
    cluster.remove("l")
    pool.wait()
    assert not cluster.pending("recheck")
    assert recheck not in pool.in_flight  # a run that is over does not wait for it
    pool.release({0, 1})
    weights = learn(cluster, pool, 0)
    assert rechecked_on(cluster) == "a"
    pool.release({1})  # nobody acts with them any more, and the recheck does
    assert not weights.released
    cluster.remove("a")
    pool.wait()
    pool.release({1})
    join(cluster, pool, "b")
    learn(cluster, pool, 0)
    assert not cluster.pending("recheck")


def test_a_recheck_under_which_workers_die_is_named_with_what_to_type(cluster: Cluster, tmp_path: Path) -> None:
    pool = pausing(cluster, tmp_path)
    rechecking(cluster, pool, 1)
    for i in range(placing.DEATHS):
        join(cluster, pool, f"more-{i}")
        cluster.remove(rechecked_on(cluster))
        pool.wait()
    cluster.remove(rechecked_on(cluster))
    with pytest.raises(EnvironmentFailure, match=r"had fragment 0 \(stream 0, round 0\) a second time.*--fragment 0"):
        pool.wait()


def test_others_are_asked_for_beside_a_paused_worker(cluster: Cluster, tmp_path: Path) -> None:
    pool = pausing(cluster, tmp_path)
    pool.want(2)
    cluster.has_status("a", "paused")
    with pytest.warns(UserWarning, match="paused worker a"):
        pool.wait()
    pool.want(2)
    assert [message["refused"] for topic, message in cluster.logged if topic == demand.ASKED] == [[], ["a"]]


def test_a_paused_worker_forgets_the_run_at_its_end_and_nobody_waits_for_it(cluster: Cluster, tmp_path: Path) -> None:
    pool = pausing(cluster, tmp_path)
    cluster.has_status("a", "paused")
    with pytest.warns(UserWarning, match="paused worker a"):
        pool.wait()
    pool.close()
    assert [address for _, address, function, _ in cluster.tasks if function is session.forget] == ["l"]
    assert (remote.ease, f"daskrl-{pool.token}", pool.token, ["a"], True) in cluster.on_scheduler


class Planned:
    """A cluster whose specification has a worker set apart for learning."""

    def __init__(self, *names: str) -> None:
        self.worker_spec = dict.fromkeys(names)


def test_a_learner_that_the_cluster_has_set_apart_is_waited_for(cluster: Cluster, tmp_path: Path) -> None:
    cluster.cluster = Planned(demand.LEARNER, "0")
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    assert not cluster.pending("learn")
    join(cluster, pool, "l", learner=1)
    learn(cluster, pool, 0)
    cluster.remove("l")
    pool.wait()
    pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    assert not cluster.pending("learn")
    del cluster.cluster.worker_spec[demand.LEARNER]  # given up by whoever scales
    assert cluster.tasks[-1][1] != "a"
    learn(cluster, pool, 0)
    assert cluster.tasks[-1][1] == "a"


@pytest.mark.parametrize("planned", [Planned(demand.LEARNER), None], ids=["set apart", "a cluster not known"])
def test_a_learner_is_waited_for_until_learner_timeout(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: Planned | None
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    cluster.cluster = planned
    pool = pool_on(cluster, tmp_path, learner_timeout=90.0)
    join(cluster, pool, "a")
    pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    now = 161.0
    said = r"60 s without the learner's worker: .* after 90 s it learns beside the driver"
    with pytest.warns(UserWarning, match=said):
        say_what_is_missing(pool)
    say_what_is_missing(pool)  # once only
    assert not cluster.pending("learn")
    now = 191.0
    learn(cluster, pool, 0)
    assert cluster.tasks[-1][1] == "a"


def test_a_learners_worker_that_rolls_out_as_well_for_want_of_others_is_said(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "l", learner=1)
    learn(cluster, pool, 0)
    now = 161.0
    with pytest.warns(UserWarning, match=r"60 s without a rollout worker: its job waits .* rolls out as well"):
        learn(cluster, pool, 1)
    join(cluster, pool, "a")  # and nothing is said while there is one, or no learner's worker is set apart
    now = 300.0
    cluster.remove("l")
    pool.wait()
    learn(cluster, pool, 0)
    now = 400.0
    learn(cluster, pool, 1)


def test_tasks_are_served_as_they_were_submitted_however_far_ahead_their_run_is(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "time", lambda: now)
    pool = acting(cluster, tmp_path)
    now = 101.0
    pool.submit_rollouts([schedule.Rollout(100_000, 1, 0)], 1)
    now = 102.0
    learn(cluster, pool, 1)
    now = 103.0
    learn(cluster, pool, 100_000)
    rollout, later = (cluster.priorities[f.key] for f, *_ in cluster.tasks if f.key.startswith("rollout"))
    _, version, last = (cluster.priorities[f.key] for f, *_ in cluster.tasks if f.key.startswith("learn"))
    assert (rollout - later, version - last) == (1.0, 1.0)
    assert min(version, last) > max(rollout, later)


class Beside:
    """Stands in for the nanny of a worker beside the driver, and for what starts it."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.cluster, self.error, self.started, self.closed = cluster, error, list[tuple[Any, ...]](), False
        cluster.address = "tcp://scheduler"
        monkeypatch.setattr(pools.workers, "learner_beside", self)  # type: ignore[attr-defined]

    def __call__(self, client: Any, name: str, threads: int, reached_from: str) -> Beside:
        self.started.append((name, threads, reached_from))
        if self.error is not None:
            raise self.error
        self.cluster.add(name, learner=1)
        return self

    def close(self) -> None:
        self.closed = True


def test_where_no_worker_offers_the_resource_the_learner_has_a_process_beside_the_driver_which_says_so(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside(cluster, monkeypatch)
    pool = pool_on(cluster, tmp_path)
    pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    assert not beside.started  # a worker with the resource may be the first that comes
    join(cluster, pool, "a")
    with pytest.warns(UserWarning, match=r"learns beside the driver, in a process on .*--resources learner=1"):
        pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    name = f"{demand.BESIDE_DRIVER}{pool.token}"
    assert beside.started == [(name, 1, "a")]
    assert not cluster.pending("learn")  # it joins first
    pool.wait()
    cluster.joins(name, INFO)
    pool.wait()
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(2), 1)
    assert not cluster.pending("rollout", name)
    cluster.remove(name)  # its nanny starts it again
    pool.wait()
    pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    assert not cluster.pending("learn")
    join(cluster, pool, name, learner=1)
    learn(cluster, pool, 0)
    assert len(beside.started) == 1
    pool.close()
    assert beside.closed


def learn_beside(cluster: Cluster, pool: pools.DaskPool, info: dict[str, Any]) -> None:
    """Nobody else learns, so a process beside the driver is started, joins, and learns the first version."""
    with pytest.warns(UserWarning, match="learns beside the driver"):
        pool.submit_learns([schedule.Learn(0)], 1, lambda version: (False, False))
    pool.wait()
    cluster.joins(f"{demand.BESIDE_DRIVER}{pool.token}", info)
    pool.wait()
    learn(cluster, pool, 0)


def test_a_learners_worker_that_comes_late_takes_over_from_the_process_beside_the_driver(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside(cluster, monkeypatch)
    pool = pool_on(cluster, tmp_path, learner_timeout=0.0)
    name = f"{demand.BESIDE_DRIVER}{pool.token}"
    join(cluster, pool, "a")
    for times in (1, 2):
        learn_beside(cluster, pool, INFO)
        assert len(beside.started) == times
        assert not beside.closed
        join(cluster, pool, "l", learner=1)
        late = learn(cluster, pool, 1, told=False)
        assert cluster.pending("learn", "l") == [late]
        assert beside.closed
        cluster.remove(name)
        pool.wait()
        assert not pool.held[""]  # what only that process had is learned again
        cluster.remove("l")  # and once it is gone again, and waited for in vain, there is another one beside the driver
        pool.wait()
        beside.closed = False


def test_a_learners_worker_of_another_kind_does_not_take_over(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside(cluster, monkeypatch)
    pool = pool_on(cluster, tmp_path, learner_timeout=0.0)
    name = f"{demand.BESIDE_DRIVER}{pool.token}"
    join(cluster, pool, "a")
    learn_beside(cluster, pool, GPU)
    join(cluster, pool, "l", {**GPU, "cuda": "other bits"}, learner=1)
    task = learn(cluster, pool, 1, told=False)
    assert cluster.pending("learn", name) == [task]
    assert not beside.closed


def test_where_none_can_be_beside_the_driver_a_rollout_worker_learns_and_says_so(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside(cluster, monkeypatch, RuntimeError("a does not reach it"))
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    with pytest.warns(UserWarning, match="on a rollout worker, .* a does not reach it"):
        learn(cluster, pool, 0)
    assert cluster.tasks[-1][1] == "a"
    learn(cluster, pool, 1)
    assert len(beside.started) == 1


def test_the_learner_beside_another_driver_is_left_alone(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    cluster.add(f"{demand.BESIDE_DRIVER}other", learner=1)
    pool.wait()
    assert not cluster.pending("join")
    join(cluster, pool, "a")
    learn(cluster, pool, 0)
    assert cluster.tasks[-1][1] == "a"


def test_a_checkpoint_is_asked_of_the_learner_and_of_nobody_before_there_is_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    pool.submit_checkpoint(-1)
    assert pool.in_flight == set()
    join(cluster, pool, "l", learner=1)
    learn(cluster, pool, 0)
    pool.submit_checkpoint(-1)
    assert pool.in_flight == {schedule.Checkpoint()}
    cluster.remove("l")  # lost with its worker: nobody waits for it
    pool.wait()
    assert pool.in_flight == set()


KEPT: dict[int, list[Any]] = {version: [f".weights/{version}", 1, 1] for version in (0, 5, 10)}


def evaluating(cluster: Cluster, pool: pools.DaskPool, due: list[int], urgent: bool = False) -> dict[str, int]:
    """Ask for evaluations; which worker has which."""
    pool.submit_evaluations([schedule.Evaluate(version) for version in due], KEPT, urgent)
    pending = cluster.pending("evaluate")
    return {address: args[4] for future, address, _, args in cluster.tasks if future in pending}


def test_an_evaluation_goes_where_no_rollout_waits_for_a_slot_and_takes_none_from_them(
    cluster: Cluster, tmp_path: Path
) -> None:
    pool = pool_on(cluster, tmp_path)
    for name in ("l", "a", "b"):
        join(cluster, pool, name, **({"learner": 1} if name == "l" else {}))
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(1), 1)
    assert len(cluster.pending("rollout", "a")) == 1
    assert evaluating(cluster, pool, [0]) == {"b": 0}
    assert evaluating(cluster, pool, [0, 5]) == {"b": 0}  # one at a time on one worker
    pool.submit_rollouts(rollouts()[1:], 1)
    assert len(cluster.pending("rollout", "a")) == 2
    assert len(cluster.pending("rollout", "b")) == 2  # as many as without
    cluster.tell(cluster.pending("evaluate")[0], {"kind": "evaluating", "version": 0})
    (outcome,) = pool.wait()
    assert outcome.task == schedule.Evaluate(0)
    assert pool.in_flight.isdisjoint({schedule.Evaluate(0)})
    assert evaluating(cluster, pool, [0]) == {}  # now both have rollouts
    assert evaluating(cluster, pool, [0, 5], urgent=True) == {"b": 0, "a": 5}  # where it was begun; and elsewhere


def test_an_evaluation_is_begun_anew_elsewhere_when_its_worker_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    join(cluster, pool, "b")
    assert evaluating(cluster, pool, [5]) == {"a": 5}
    cluster.remove("a")
    pool.wait()
    assert schedule.Evaluate(5) not in pool.in_flight
    assert evaluating(cluster, pool, [5]) == {"b": 5}
    cluster.tell(cluster.pending("evaluate")[0], {"kind": "evaluation", "version": 5, "returns": [1.0]})
    assert [outcome.record["kind"] for outcome in pool.wait()] == ["evaluation"]


def test_an_evaluation_under_which_workers_die_is_named_with_what_to_type(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    for number in range(placing.DEATHS):
        evaluating(cluster, pool, [5])
        join(cluster, pool, f"w{number}")
        cluster.remove(min(cluster.workers))
        pool.wait()
    evaluating(cluster, pool, [5])
    cluster.remove(min(cluster.workers))
    with pytest.raises(EnvironmentFailure, match=r"evaluated version 5.*evaluate_every=0"):
        pool.wait()


def test_a_worker_that_cannot_join_is_refused_and_named(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    cluster.add("b")
    pool.wait()
    cluster.pending("join", "b")[-1].done("error", ImportError("no torch"))
    with pytest.warns(UserWarning, match="worker b .* failed to join: ImportError: no torch"):
        pool.wait()
    assert pool.workers() == 1


def test_no_worker_that_can_take_part_ends_the_run(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path, fingerprint.reference(INFO, "cpu"))
    with pytest.raises(WorkerMismatchError, match="other arithmetic"):
        join(cluster, pool, "odd", {**INFO, "cpu": "other bits"})


def test_workers_that_cannot_take_part_do_not_end_a_run_whose_cluster_has_others_on_their_way(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.cluster = Planned("0", "1")
    pool = pool_on(cluster, tmp_path, fingerprint.reference(INFO, "cpu"))
    odd = {**INFO, "cpu": "other bits"}
    with pytest.warns(UserWarning, match="worker 0 .* gets no rollouts: it has other arithmetic"):
        join(cluster, pool, "0", odd)
    with pytest.raises(WorkerMismatchError, match="no worker can take part"):
        join(cluster, pool, "1", odd)


def test_another_gpu_that_was_accepted_is_told_of_once(cluster: Cluster, tmp_path: Path) -> None:
    pool = pool_on(cluster, tmp_path, fingerprint.reference(GPU, "cuda"), strict=False)
    join(cluster, pool, "l", {**GPU, "cuda": "other bits", "cuda_name": "Other"}, learner=1)
    with pytest.warns(UserWarning, match="another GPU computation"):
        learn(cluster, pool, 0)
    learn(cluster, pool, 1)
    assert len(pool.promise_off) == 1


def test_closing_leaves_nothing_behind_and_never_hides_how_a_run_ended(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_on(cluster, tmp_path)
    join(cluster, pool, "a")
    learn(cluster, pool, 0)
    pool.submit_rollouts(rollouts(2), 1)

    def lost(futures: Any, timeout: float) -> None:
        raise distributed.client.FuturesCancelledError([])

    monkeypatch.setattr(distributed, "wait", lost)
    told = [topic for topic in cluster.handlers if topic not in ("all", demand.DRAINING, demand.STATUS)]
    pool.close()
    assert cluster.closed
    assert not cluster.handlers
    assert all(future.released for future, *_ in cluster.tasks if future.key.startswith(("rollout", "learn")))
    assert [args for future, _, function, args in cluster.tasks if function is session.forget] == [(pool.token,)]
    assert f"daskrl-{pool.token}" in told
    assert cluster.on_scheduler == [(remote.forget_topic, topic) for topic in reversed(told)]


def test_a_worker_that_is_busy_at_the_end_forgets_the_run_when_it_can(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_on(cluster, tmp_path)
    for name in ("a", "b"):
        join(cluster, pool, name)

    def only_one(futures: list[Future], timeout: float) -> None:
        futures[0].done("finished")
        raise TimeoutError

    monkeypatch.setattr(distributed, "wait", only_one)
    pool.close()
    (left,) = cluster.left_to_the_scheduler
    assert [address for future, address, *_ in cluster.tasks if future is left] == ["b"]
    assert cluster.priorities[left.key] == max(cluster.priorities.values())


def test_a_pool_that_cannot_begin_closes_its_connection(cluster: Cluster, tmp_path: Path) -> None:
    cluster.status = "closed"
    with pytest.raises(SchedulerLostError):
        pool_on(cluster, tmp_path)
    assert cluster.closed


def test_a_process_that_is_refused_keeps_no_session(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    other = {**fingerprint.reference(INFO, "cpu"), "versions": {}}
    plan = Plan(run.store.layout, run.algorithm, run.source.factory, run.options, other)
    before = set(session.SESSIONS)
    with pytest.raises(WorkerMismatchError):
        InProcessPool(plan)
    assert set(session.SESSIONS) == before


# -- what a driver and a process keep ---------------------------------------------------------------------


def test_a_version_overtaken_on_another_worker_is_not_published_after_it(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    plan = Plan(run.store.layout, run.algorithm, run.source.factory, run.options)

    class Silent:
        arithmetic, promise_off, notes = None, list[str](), list[Any]()

    finished: list[Any] = [{"kind": "learn", "version": version} for version in (6, 5, 7)]
    progress = Progress([7, 7, 7, 7], published=4)
    kept = to_commit(run.store, plan, Silent(), progress, finished)  # type: ignore[arg-type]
    assert kept == [finished[0], finished[2]]


def test_two_runs_packed_at_once_both_take_their_environment_by_value(tmp_path: Path) -> None:
    runs = [start(tmp_path / str(i), environments.walk) for i in range(2)]
    both = threading.Barrier(2)

    def pack(run: Any) -> list[bytes]:
        both.wait()
        return [
            session.pickled("token", run.store.layout, run.algorithm, run.source.factory, run.options)
            for _ in range(50)
        ]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            packed = [data for some in threads.map(pack, runs) for data in some]
    finally:
        sys.setswitchinterval(interval)
    assert all(b"PushedWalk" not in data and b"np_random" in data for data in packed)  # its code is in it
    assert environments.__name__ not in cloudpickle.list_registry_pickle_by_value()


def test_a_module_the_user_takes_by_value_stays_so(tmp_path: Path) -> None:
    run = start(tmp_path / "run", environments.walk)
    cloudpickle.register_pickle_by_value(environments)
    try:
        session.pickled("token", run.store.layout, run.algorithm, run.source.factory, run.options)
        assert environments.__name__ in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(environments)


class Live:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_environments_are_closed_when_another_execution_or_the_end_replaces_them(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    made = session.Session("token", run.store.layout, run.algorithm, run.source.factory, run.options)
    first, second, late = Live(), Live(), Live()
    made.streams.keep(0, session.At(3, first))  # type: ignore[arg-type]
    made.streams.keep(0, session.At(3, second))  # type: ignore[arg-type]
    assert (first.closed, second.closed) == (True, False)
    made.close()
    made.streams.keep(0, session.At(4, late))  # type: ignore[arg-type]
    assert second.closed
    assert late.closed
    assert made.streams.take(0) is None


def _remembered(dask_scheduler: Any) -> int:
    spans = dask_scheduler.extensions["spans"].spans.values()
    return max((len(span._metadata["collections"]) for span in spans if span._metadata), default=0)


def test_the_scheduler_does_not_remember_what_every_task_was_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = {"threads_per_worker": 1, "dashboard_address": None, "processes": False}
    with distributed.LocalCluster(n_workers=2, **options) as cluster, distributed.Client(cluster) as client:
        remembered = []
        for every in (10**9, 10):
            monkeypatch.setattr(pools, "TRIM_EVERY", every)
            start(tmp_path / str(every), client=client).wait()
            remembered.append(client.run_on_scheduler(_remembered))
    assert remembered[0] > 40  # else Dask does it by itself now, and trim_spans can go
    assert remembered[1] <= 20


def _new_pages() -> int:
    """How many pages a process is given for arrays that it had, and freed, before."""
    import resource

    import numpy as np

    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        _ = [np.ones(3 << 20, np.uint8) for _ in range(8)]
        del _
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
@pytest.mark.parametrize(("asked", "kept"), [("65536", True), ("65537", False)])  # the first is Dask's default
def test_workers_keep_the_memory_they_free_unless_they_were_asked_not_to(
    asked: str, kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert dask.config.get("distributed.nanny.pre-spawn-environ")["MALLOC_TRIM_THRESHOLD_"] == 65536
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", asked)
    options = {"threads_per_worker": 1, "dashboard_address": None, "processes": True, "resources": {"learner": 1}}
    with distributed.LocalCluster(n_workers=1, **options) as cluster, distributed.Client(cluster) as client:
        assert [pages > 4000 for pages in client.run(_new_pages).values()] == [True]  # of 4 KiB, for 24 MiB
        start(tmp_path / "run", client=client, env_steps=128).wait()
        assert [pages < 400 for pages in client.run(_new_pages).values()] == [kept]


PRINTING = """
import logging

import distributed
from daskrl import clusters

def say():
    log = logging.getLogger("distributed.worker")
    log.error("Compute Failed\\nKey: %s", "it")
    log.error("Failed to communicate with scheduler during heartbeat.")
    log.error("Another: %s", "it")

if __name__ == "__main__":
    with clusters.local(1) as cluster, distributed.Client(cluster) as client:
        client.run(say)
"""


def test_a_worker_does_not_print_what_the_driver_says(tmp_path: Path) -> None:
    # In a process of its own: workers print where the process did that was first to start some.
    script = tmp_path / "printing.py"
    script.write_text(PRINTING)
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stderr
    assert printed.count("Another: it") == 2
    assert "Failed" not in printed
