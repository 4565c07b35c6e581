"""Functions that pools have workers and the scheduler call."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from daskrl.pools.paused import Memory
from daskrl.tasks import session


def tell(topic: str, key: str, function: Callable[..., Any], *args: Any) -> Any:
    """Every task on a Dask worker: call a function and tell the driver its record.

    The record goes beside the result, as an event: it arrives before the future is done, costs no request, and
    is not lost with the worker. The result itself is the weights, or nothing.
    """
    from distributed import get_worker

    result = function(*args)
    weights = isinstance(result, tuple)
    # As text: the scheduler, which passes it on, would take in every number of every episode.
    get_worker().log_event(topic, {"key": key, "record": json.dumps(result[0] if weights else result)})
    return result if weights else None


def forget_topic(topic: str, dask_scheduler: Any) -> None:
    """On the scheduler: drop the newest records of a run that has ended, which Dask otherwise keeps for ever."""
    dask_scheduler._broker._topics.pop(topic, None)


async def ease(topic: str, token: str, addresses: list[str], forget: bool, dask_scheduler: Any) -> None:
    """On the scheduler: call `ease_here` on workers."""
    from distributed.protocol.pickle import dumps

    call = {"op": "run", "function": dumps(ease_here), "args": dumps((topic, token, forget)), "wait": True}
    await dask_scheduler.broadcast(msg=call, workers=addresses, on_error="ignore")


async def ease_here(topic: str, token: str, forget: bool, dask_worker: Any) -> None:
    """On a worker, also one that takes no tasks: let go of what is kept for a run; before, tell the driver its memory.

    Before, as environments may fail to close, or never end to.
    """
    manager = dask_worker.memory_manager
    memory = Memory(
        dask_worker.monitor.get_process_memory(), getattr(manager, "memory_limit", None), dask_worker.state.nbytes
    )
    if not forget:
        dask_worker.log_event(topic, {"worker": dask_worker.address, "memory": dataclasses.asdict(memory)})
    # Beside the event loop: environments may take a while to close.
    await asyncio.to_thread(session.forget if forget else session.ease, token)


def trim_spans(dask_scheduler: Any) -> None:
    """On the scheduler: forget what each submission was for, which Dask's spans otherwise keep for ever."""
    for span in dask_scheduler.extensions["spans"].spans.values() if "spans" in dask_scheduler.extensions else ():
        if span._metadata is not None:
            span._metadata["collections"].clear()
