"""Imports what takes seconds before a worker arrives; and has a worker with a lifetime leave when it is idle.

For a worker of your own: ``DASK_DISTRIBUTED__WORKER__PRELOAD=daskrl.tasks.preload dask worker ...``
"""

# ruff: noqa: F401
from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

import gymnasium.envs
import safetensors.numpy
import torch._dynamo  # which Adam imports
import zarr

import daskrl.algorithms.dqn
import daskrl.tasks.learner
import daskrl.tasks.rollout
from daskrl.tasks import session

if TYPE_CHECKING:
    from distributed import Worker

for _name in ("daskrl.run", "daskrl.study.trial", "daskrl.study.scores"):  # of a study, whose rooms lie above this one
    importlib.import_module(_name)

# Seconds before the end of its lifetime (``dask worker --lifetime``) in which a worker gets nothing more to do.
DRAIN = 60.0


def dask_setup(worker: Worker) -> None:
    """Called by Dask as the worker starts: what takes a process longer the first time is done before a run waits."""
    session.fingerprinted()
    if worker.lifetime:
        margin = min(DRAIN, worker.lifetime / 4)
        worker.loop.call_later(worker.lifetime - margin, leave, worker, margin)


async def leave(worker: Worker, margin: float) -> None:
    """Have runs place nothing more on it, let it finish what it has for so many seconds at most, and close it.

    Dask itself closes a worker at the end of its lifetime with what it is at.
    """
    with contextlib.suppress(Exception):  # no run was ever on this scheduler: there is nothing to finish
        await worker.scheduler.daskrl_drain(names=[worker.name], timeout=margin)
        await worker.close_gracefully(reason="daskrl-drained")
