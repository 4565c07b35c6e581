"""What all runs of a client have in common in this process: a connection of their own, and the `Workers` they share.

Events of the scheduler come in on the connection's thread and go to the core at once. The core answers with
instructions; each is put in the queue of the run that is to carry it out, and the run's driver takes it from there.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from daskrl.errors import DaskrlError
from daskrl.pools import demand, remote
from daskrl.pools.instructions import Addressed, Introduce, Worker
from daskrl.pools.members import Roster, Workers
from daskrl.tasks import session

if TYPE_CHECKING:
    from distributed import Client, Future

# The order in which a worker begins the tasks that wait on it, by kind. Tasks of one kind begin in the order of their
# submission, whichever run submitted them: a run that began later does not overtake an earlier run that is far ahead,
# and versions are learned in their order.
ROLLOUT, LEARN, JOIN, FORGET = range(4)
_BEFORE = 1e10  # seconds; more than the clock will show in this century

Queue = queue.SimpleQueue[tuple[str, Any]]

_SHARED: weakref.WeakKeyDictionary[Client, Connection] = weakref.WeakKeyDictionary()
_SHARING = threading.Lock()


class Connection:
    """A connection to the scheduler of a client, and the workers there. Made by `shared`.

    Attributes
    ----------
    lock : held around what is asked or told of ``workers``.
    """

    def __init__(self, client: Client) -> None:
        from distributed import Client

        from daskrl.pools.scaling import install

        self.token, self.lock, self.workers = uuid.uuid4().hex[:8], threading.RLock(), Workers()
        self.address: str = client.scheduler_info(n_workers=0)["address"]
        self.users = 0
        self._heard = 0  # events after which a list of workers that was asked for before is not to be trusted
        self._queues: dict[str, Queue] = {}
        self._asked: dict[str, tuple[Worker, Future[Any]]] = {}  # by the key of the task that introduces a worker
        self.client = Client(self.address, security=client.security, set_as_default=False, name=f"daskrl-{self.token}")
        try:
            self.client.subscribe_topic("all", self._hear(self._worker))
            self.client.subscribe_topic(demand.DRAINING, self._hear(self._drain))
            self.client.subscribe_topic(demand.STATUS, self._hear(self._status))
            self.client.subscribe_topic(self._topic, self._hear(self._told))
            install(self.client)
        except BaseException:
            self.client.close(timeout=5)
            raise

    def leave(self) -> None:
        """The last run that leaves closes the connection."""
        with _SHARING:
            self.users -= 1
            if self.users:
                return
            for client in [client for client, made in _SHARED.items() if made is self]:
                del _SHARED[client]
        for _, future in self._asked.values():
            future.release()
        with contextlib.suppress(Exception):
            if self.client.status == "running":
                for topic in ("all", demand.DRAINING, demand.STATUS, self._topic):
                    self.client.unsubscribe_topic(topic)
                self.client.run_on_scheduler(remote.forget_topic, self._topic)
        self.client.close(timeout=5)

    @property
    def _topic(self) -> str:
        return f"daskrl-{self.token}"

    # -- runs ---------------------------------------------------------------------------------------------

    def begin(self, roster: Roster, run_queue: Queue) -> None:
        """A run begins; what it is to do comes in its queue, as ``("do", instruction)``."""
        with self.lock:
            self._queues[roster.terms.run] = run_queue
            self._pass_on(self.workers.begin(roster))
        self.compare()

    def end(self, run: str) -> None:
        """A run ends."""
        with self.lock:
            self.workers.end(run)
            self._queues.pop(run, None)

    def knows(self, address: str) -> bool:
        """Whether a worker that has come is known by now."""
        with self.lock:
            return address in self.workers.there

    def compare(self) -> None:
        """Compare the workers known with those the scheduler has: an event may have been missed."""
        while True:
            with self.lock:
                heard = self._heard
            present = self.client.scheduler_info(n_workers=-1)["workers"]
            with self.lock:
                if heard == self._heard:
                    self._pass_on(self.workers.present(present))
                    return

    def submit(self, topic: str, key: str, kind: int, address: str, function: Any, *args: Any) -> Future[Any]:
        """Have a worker call a function and tell its record as an event of the topic."""
        return self.client.submit(
            remote.tell,
            topic,
            key,
            function,
            *args,
            key=key,
            workers=[address],
            allow_other_workers=False,
            pure=False,
            priority=priority(kind),
        )

    # -- events -------------------------------------------------------------------------------------------

    def _hear(self, take: Callable[[Any], None]) -> Callable[[tuple[float, Any]], None]:
        def handler(event: tuple[float, Any]) -> None:
            with self.lock:
                take(event[1])

        return handler

    def _worker(self, event: Any) -> None:
        if not isinstance(event, dict):
            return
        if event.get("action") == "remove-worker":
            self._heard += 1
            self._pass_on(self.workers.left(event["worker"]))
        elif event.get("action") == "add-worker":
            for run_queue in self._queues.values():
                run_queue.put(("compare", event["worker"]))  # which asks the scheduler: not for this thread to wait for

    def _drain(self, event: Any) -> None:
        self.workers.drain(event["workers"])

    def _status(self, event: Any) -> None:
        self._heard += 1
        self._pass_on(self.workers.has_status(event["worker"], event["status"]))

    def _told(self, event: Any) -> None:
        asked = self._asked.pop(event["key"], None)
        if asked is not None:
            asked[1].release()
            self._pass_on(self.workers.introduced(asked[0], json.loads(event["record"])))

    def _pass_on(self, told: Addressed) -> None:
        for run, instruction in told:
            if isinstance(instruction, Introduce):
                self._introduce(instruction.worker)
            elif run in self._queues:
                self._queues[run].put(("do", instruction))

    def _introduce(self, worker: Worker) -> None:
        key = f"introduce-{self.token}-{uuid.uuid4().hex[:8]}"
        future = self.submit(self._topic, key, JOIN, worker.address, session.fingerprinted)
        self._asked[key] = worker, future
        future.add_done_callback(self._introduced)

    def _introduced(self, future: Future[Any]) -> None:
        """It is done, and has told, unless it raised or what it told was lost on the way."""
        with self.lock:
            asked = self._asked.pop(str(future.key), None)
            if asked is None or future.status not in ("error", "finished"):
                return  # or the scheduler is lost, as runs find out
            problem = why_not_joined(future.exception()) if future.status == "error" else None
            self._pass_on(self.workers.not_introduced(asked[0], problem))


def shared(client: Client) -> Connection:
    """The connection of all runs of a client in this process. Whoever takes it leaves it."""
    with _SHARING:
        made = _SHARED.get(client)
        if made is None or made.client.status != "running":
            made = _SHARED[client] = Connection(client)
        made.users += 1
        return made


def priority(kind: int) -> float:
    """Of a task that is submitted now. Dask's own order is not that of submission within 0.1 s."""
    return kind * _BEFORE - time.time()


def why_not_joined(error: BaseException | None) -> str:
    """A clause for a worker on which joining raised this."""
    needs = "" if isinstance(error, DaskrlError) else ". It needs the run's packages."
    return f"failed to join: {type(error).__name__}: {error}{needs}"
