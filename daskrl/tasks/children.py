"""Processes that environments start on a worker: they end with the worker, however the worker ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading

_ends: list[int] = []  # of a pipe: to read from, and to write to where that is open


def allow() -> None:
    """Let this process have children, and have what it forks from now on end with it. On a nanny's worker alone.

    Dask's nannies start daemonic processes. Python allows these no children, which would stay when one is killed.
    A process that is forked here waits in a thread for the end of a pipe, which comes with the end of this process.
    Without that it might stay: others that were forked beside it keep open what it would else see closed.

    Another program that a child starts (``exec``) sees the end of its own pipes only.
    """
    if _ends or multiprocessing.parent_process() is None:
        return
    multiprocessing.current_process().daemon = False
    _ends.extend(os.pipe())
    os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    if len(_ends) == 2:  # not of a child's child
        os.close(_ends.pop())
    threading.Thread(target=_end_with_parent, args=(_ends[0],), name="daskrl lifeline", daemon=True).start()


def _end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)
