"""The processes of a client's workers on this machine, and what is done to them: signals, and cutting their network."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from daskrl.errors import ConfigError, DaskrlError
from daskrl.pools import demand
from daskrl.testing.faults import Partition, WorkerFault

if TYPE_CHECKING:
    from distributed import Client

PATIENCE = 120.0  # seconds to wait until there is a worker to harm again


@dataclass(frozen=True)
class Process:
    """A worker's process on this machine; ``handle`` is a pidfd, which never comes to mean another process."""

    name: str
    learner: bool
    pid: int
    handle: int

    def ended(self, within: float = 0.0) -> bool:
        """Whether the process has ended, or ends within some seconds."""
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        return bool(poll.poll(1000 * within))

    def send(self, what: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, what)

    def has_network(self) -> bool:
        """Whether the process is in another network namespace than this one."""
        try:
            return os.readlink(f"/proc/{self.pid}/ns/net") != os.readlink("/proc/self/ns/net")
        except OSError:
            return False


class Workers:
    """The processes of a client's workers, those on this machine."""

    def __init__(self, client: Client, seed: int) -> None:
        self._client, self._random = client, np.random.default_rng(seed)
        self._known: dict[tuple[str, str], Process] = {}

    def for_(self, fault: WorkerFault) -> list[Process]:
        """The workers' processes that live and can have this fault, by name."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        # A worker that was started again may have the address of the old one, and a folder of its own.
        listed = {(address, str(info["local_directory"])): info for address, info in workers.items()}
        for key in [key for key in self._known if key not in listed]:
            os.close(self._known.pop(key).handle)
        new = {address: (address, folder) for address, folder in listed if (address, folder) not in self._known}
        if new:
            hosts = self._client.run(socket.gethostname, workers=[*new], on_error="ignore")
            here = [address for address, host in hosts.items() if host == socket.gethostname()]
            pids = self._client.run(os.getpid, workers=here, on_error="ignore") if here else {}
            for address in [address for address, pid in pids.items() if pid != os.getpid()]:
                key, info = new[address], workers[address]
                with contextlib.suppress(ProcessLookupError):
                    handle = os.pidfd_open(pids[address])
                    learns = demand.has_learner_resource(info.get("resources"))
                    self._known[key] = Process(str(info.get("name", address)), learns, pids[address], handle)
        found = [
            process
            for process in self._known.values()
            if process.learner == fault.learner and not process.ended()
            and (process.has_network() or not isinstance(fault, Partition))
        ]  # fmt: skip
        return sorted(found, key=lambda process: process.name)

    def require(self, fault: WorkerFault) -> None:
        found, which = self.for_(fault), f"{'with' if fault.learner else 'without'} the resource learner"
        if not found and isinstance(fault, Partition):
            raise ConfigError(
                f"{fault!r}: the client has no worker {which} in a network namespace of its own. Type: "
                "ip netns exec NAME dask worker tcp://... --nthreads 1"
            )
        if not found:
            raise ConfigError(
                f"{fault!r}: the client has no worker {which} or GPU that is a process of its own on "
                f"{socket.gethostname()}. Type: client = Client(daskrl.clusters.local(2))"
            )
        if isinstance(fault, Partition):
            with Network(found[0]) as network:
                network.links()  # fails here and not on the way

    def draw(self, fault: WorkerFault) -> Process:
        """A process for this fault, drawn with the seed; where all are gone, it is waited for until one is back."""
        share, until = self._random.random(), time.monotonic() + PATIENCE
        while not (found := self.for_(fault)):
            if time.monotonic() > until:
                raise DaskrlError(
                    f"no worker {'with' if fault.learner else 'without'} the resource learner came back within "
                    f"{PATIENCE:g} s. Start workers with nannies, or plan fewer kills. Everything committed is kept."
                )
            time.sleep(0.05)
        return found[int(share * len(found))]

    def close(self) -> None:
        for process in self._known.values():
            os.close(process.handle)
        self._known.clear()


class Pauses(threading.Thread):
    """Stops a process and lets it go on, once or again and again until told that it is enough."""

    def __init__(self, process: Process, stopped: float, running: float | None) -> None:
        super().__init__(name=f"daskrl slows {process.name}", daemon=True)
        self._process = Process(process.name, process.learner, process.pid, os.dup(process.handle))
        self._stopped, self._running, self._enough = stopped, running, threading.Event()

    def run(self) -> None:
        while not self._enough.is_set() and not self._process.ended():
            self._process.send(signal.SIGSTOP)
            self._enough.wait(self._stopped)
            self._process.send(signal.SIGCONT)
            if self._running is None:
                break
            self._enough.wait(self._running)
        os.close(self._process.handle)

    def end(self) -> None:
        self._enough.set()
        self.join()


class Network:
    """The network namespace of a process, held also after the process has ended."""

    def __init__(self, process: Process) -> None:
        self._handle = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def ip(self, *arguments: str, given: bytes = b"", check: bool = True) -> bytes:
        """Run ``ip`` in it."""
        command = ["nsenter", f"--net=/proc/self/fd/{self._handle}", "ip", *arguments]
        try:
            with tempfile.TemporaryFile() as file:  # no pipe: `ip route restore` reads it several times
                file.write(given)
                file.seek(0)
                return subprocess.run(
                    command, stdin=file, capture_output=True, check=check, pass_fds=[self._handle]
                ).stdout  # fmt: skip
        except FileNotFoundError as error:
            raise ConfigError("a partition needs nsenter (util-linux) and ip (iproute2). Install them.") from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip()
            raise ConfigError(f"a partition needs root: {' '.join(arguments)} said {said!r}.") from error

    def links(self) -> list[str]:
        """Names of the links that are up, but for loopback."""
        listed = json.loads(self.ip("-json", "link", "show", "up"))
        return [link["ifname"] for link in listed if "LOOPBACK" not in link["flags"]]

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        links, routes = self.links(), self.ip("route", "save")
        for link in links:
            self.ip("link", "set", "dev", link, "down")
        try:
            yield
        finally:
            for link in links:
                self.ip("link", "set", "dev", link, "up")
            self.ip("route", "restore", given=routes, check=False)  # some come back with their link, and then it fails


class Cut(threading.Thread):
    """Cuts the network of a process for some seconds, or until told that it is enough."""

    def __init__(self, process: Process, seconds: float) -> None:
        super().__init__(name=f"daskrl cuts off {process.name}", daemon=True)
        self._stack, self._seconds, self._enough = contextlib.ExitStack(), seconds, threading.Event()
        self._stack.enter_context(self._stack.enter_context(Network(process)).cut())

    def run(self) -> None:
        with self._stack:
            self._enough.wait(self._seconds)

    def end(self) -> None:
        self._enough.set()
        self.join()
