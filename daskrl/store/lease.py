"""The lease of the process that drives a store in an object store, which has no lock that a death would release.

The object ``.commits/driver.lease`` says who holds the lease, and has a counter that the holder raises every few
seconds. A process that waits takes the lease over once the counter has stood still, by its own clock, for as long as
the holder promised. The lease decides which driver may begin. Which driver may commit is decided by the log: each
number is given to one commit (`daskrl.store.log`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import Any

from daskrl.errors import DamagedError, StoreError, StoreLockedError
from daskrl.store.storage import ChangedError, Lock, Tag, Tagged

_LOG = logging.getLogger("daskrl")
SECONDS = 20.0  # without a sign of life until another driver takes over
_RENEWALS = 5  # in that time


class Lease(Lock):
    """The lease of one driver; a thread renews it while it is held."""

    key = ".commits/driver.lease"

    def __init__(self, storage: Tagged) -> None:
        self._storage = storage
        self._owner = ""
        self._mine: dict[str, Any] = {}
        self._tag: Tag = None
        self._lost, self._took_over = False, False
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def held(self) -> bool:
        return self._thread is not None and not self._lost

    @property
    def took_over(self) -> bool:
        return self._took_over

    def acquire(self) -> None:
        who = f"process {os.getpid()} on {socket.gethostname()}"
        self._mine = {"owner": uuid.uuid4().hex, "driver": who, "epoch": 0, "counter": 0, "seconds": SECONDS}
        self._lost, self._took_over = False, False
        self._tag = self._taken()
        self._done.clear()
        self._thread = threading.Thread(target=self._renew, name="daskrl-lease", daemon=True)
        self._thread.start()

    def _taken(self) -> Tag:
        """Take the lease as soon as it is free, or its holder dead."""
        storage, mine, watched, since, looked = self._storage, self._mine, None, 0.0, 0.0
        while True:
            try:
                data, tag = storage.tagged(self.key)
            except FileNotFoundError:
                try:
                    return storage.put_tagged(self.key, _bytes(mine))
                except FileExistsError:
                    continue
            other, now = self._read(data), time.monotonic()
            free, step = other["owner"] is None, other["seconds"] / _RENEWALS
            if watched is not None and tag != watched and not free:
                raise self._locked(other["driver"])
            if watched is None or now - looked > 2 * step:  # while the server is away nobody can give a sign of life
                watched, since = tag, now
            if free or now - since >= other["seconds"]:
                mine["epoch"] = other["epoch"] + 1
                try:
                    taken = storage.replace(self.key, _bytes(mine), tag)
                except ChangedError:
                    continue
                self._took_over = not free
                return taken
            if looked == 0.0:
                _LOG.warning(
                    "%s was being written by %s. Its run is taken over if there is no sign of it for %.0f s.",
                    storage, other["driver"], other["seconds"],
                )  # fmt: skip
            looked = now
            time.sleep(step / 4)

    def _read(self, data: bytes) -> dict[str, Any]:
        try:
            found = json.loads(data)
            kept = {"owner": found["owner"], "driver": str(found["driver"]), "epoch": int(found["epoch"])}
            return {**kept, "seconds": float(found["seconds"])}
        except (ValueError, KeyError, TypeError):
            raise DamagedError(
                f"{self._storage.where(self.key)} is no lease of a driver. Delete it, if none is at work."
            ) from None

    def _locked(self, driver: str) -> StoreLockedError:
        return StoreLockedError(
            f"{self._storage} is being written by {driver}. A store has one driver at a time; stop that one (its run "
            "can be resumed) or use another store."
        )

    def _renew(self) -> None:
        while not self._done.wait(SECONDS / _RENEWALS):
            self._mine["counter"] += 1
            try:
                self._tag = self._storage.replace(self.key, _bytes(self._mine), self._tag)
            except ChangedError:
                self._lost = True
                return
            except StoreError:  # no answer: whoever waits sees none either
                continue

    def require(self) -> None:
        if self._lost:
            raise StoreLockedError(
                f"another driver has taken over {self._storage}, as there was no sign of this one for {SECONDS:.0f} s. "
                f"This one stops; nothing is lost. Type: daskrl info {self._storage}"
            )

    def release(self) -> None:
        if self._stopped():
            with contextlib.suppress(ChangedError, StoreError):
                self._storage.replace(self.key, _bytes({**self._mine, "owner": None}), self._tag)

    def drop(self) -> None:
        """Release the lease of a place where nothing is to stay: its object goes while nobody may take it over yet."""
        if self._stopped():
            with contextlib.suppress(StoreError):
                self._storage.delete(self.key)

    def _stopped(self) -> bool:
        """Whether it was held, and nobody renews it any more."""
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        self._done.set()
        thread.join(1.0)
        return not (self._lost or thread.is_alive())  # it waits for an answer: the lease ends by itself


def _bytes(lease: dict[str, Any]) -> bytes:
    return json.dumps(lease).encode()
