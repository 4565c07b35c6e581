"""Scaling a Dask cluster to what the learners of its runs can use.

A plugin on the scheduler knows what each run asks for and which workers learn; `LearnerDemand` acts on it where the
cluster is. Any number of runs may share a cluster: what they ask for is added up.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distributed import Adaptive, SchedulerPlugin

from daskrl.pools.demand import ASKED, BESIDE_DRIVER, DRAINING, LEARNER, STATUS, has_learner_resource

if TYPE_CHECKING:
    from distributed import Client, Scheduler
    from distributed.scheduler import WorkerState

_LOOK_EVERY = 0.05  # seconds, at workers that drain


class Demands(SchedulerPlugin):
    """On the scheduler: what runs ask for; and it tells runs which workers Dask pauses.

    What a run asks for is forgotten when its client goes. No worker that learns is ever named for closing, also where
    Dask's own ``adapt`` decides.
    """

    name = "daskrl-demands"
    idempotent = True

    def __init__(self) -> None:
        self.asked: dict[str, dict[str, Any]] = {}  # by run

    async def start(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        scheduler.handlers.update(daskrl_demand=self.demand, daskrl_drain=self.drain)

    def log_event(self, topic: str, msg: Any) -> None:
        if topic == ASKED:
            self.asked[msg["run"]] = msg
            if msg.get("ended"):
                del self.asked[msg["run"]]
        elif isinstance(msg, dict) and msg.get("action") == "worker-status-change":  # its topic is the worker's alone
            self.scheduler.log_event(STATUS, {"worker": topic, "status": msg["status"]})

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        self.asked = {run: asked for run, asked in self.asked.items() if asked["client"] != client}

    def valid_workers_downscaling(self, scheduler: Scheduler, workers: list[WorkerState]) -> list[WorkerState]:
        return [worker for worker in workers if not self._learns(worker)]

    def _learns(self, worker: WorkerState) -> bool:
        chosen = {address for asked in self.asked.values() for address in asked["learners"]}
        return worker.address in chosen or has_learner_resource(worker.resources)

    def demand(self) -> dict[str, int]:
        """Of all runs: rollout slots wanted, workers that learn, those of them set apart, threads of another worker.

        Workers that a run refused are there, and of no use to it: they are counted, to have others beside them.
        What learns beside a driver is not the cluster's, and counted apart.
        """
        everyone = list(self.scheduler.workers.values())
        workers = [worker for worker in everyone if not str(worker.name).startswith(BESIDE_DRIVER)]
        refused = {address for asked in self.asked.values() for address in asked["refused"]}
        rollouts = [worker.nthreads for worker in workers if not self._learns(worker)]
        return {
            "runs": len(self.asked),
            "slots": sum(asked["slots"] for asked in self.asked.values()),
            "learners": sum(self._learns(worker) for worker in workers),
            "set_apart": sum(has_learner_resource(worker.resources) for worker in workers),
            "threads": min(rollouts, default=1),
            "refused": sum(worker.address in refused and not self._learns(worker) for worker in workers),
            "beside_drivers": len(everyone) - len(workers),
        }

    async def drain(self, names: Iterable[Any], timeout: float) -> None:
        """Have runs place nothing more on these workers, and wait until they are idle, for so many seconds at most."""
        names = set(names)
        going = [address for address, worker in self.scheduler.workers.items() if worker.name in names]
        self.scheduler.log_event(DRAINING, {"workers": going})
        deadline = asyncio.get_running_loop().time() + timeout
        while any(self._busy(address) for address in going):
            if asyncio.get_running_loop().time() > deadline:
                return  # its tasks run again elsewhere, to the same bits
            await asyncio.sleep(_LOOK_EVERY)

    def _busy(self, address: str) -> bool:
        worker = self.scheduler.workers.get(address)
        return worker is not None and bool(worker.processing)


def install(client: Client) -> None:
    """Have the scheduler know what runs ask for; once is enough, more does no harm."""
    client.register_plugin(Demands())


class LearnerDemand(Adaptive):
    """Scales to the slots that runs ask for. Use it through `daskrl.clusters.adapt`.

    Parameters
    ----------
    minimum, maximum : rollout workers; learners come on top.
    drain_timeout : seconds that a worker may take to finish what it has before it is closed all the same.
    """

    def __init__(self, cluster: Any, *, drain_timeout: float, **options: Any) -> None:
        self.drain_timeout = drain_timeout
        super().__init__(cluster, **options)

    async def target(self) -> int:
        """Workers that should exist, learners among them."""
        demand = await self.scheduler.daskrl_demand()
        wanted = math.ceil(demand["slots"] / demand["threads"]) if demand["runs"] else self.minimum
        learners: int = max(LEARNER in self.plan, demand["set_apart"]) or demand["learners"]
        return int(min(max(wanted, self.minimum) + demand["refused"], self.maximum)) + learners

    async def safe_target(self) -> int:
        return await self.target()  # within the bounds already, which do not count learners

    async def recommendations(self, target: int) -> dict[str, Any]:
        found = await super().recommendations(target)
        if found["status"] == "down":
            # What has not arrived is closed first: that may be a learner that is just coming back.
            found["workers"] = [name for name in found["workers"] if name != LEARNER]
        return found

    async def workers_to_close(self, target: int) -> list[str]:
        demand = await self.scheduler.daskrl_demand()
        names: list[str] = await super().workers_to_close(target + demand["beside_drivers"])
        return names

    async def scale_down(self, workers: Any) -> None:
        if workers:
            await self.scheduler.daskrl_drain(names=workers, timeout=self.drain_timeout)
        await super().scale_down(workers)
