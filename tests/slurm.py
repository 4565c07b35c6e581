"""A real Slurm on this machine, on loopback, without systemd: one node, its two GPUs plain files."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CONFIGURATION = """
ClusterName=daskrl-test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
KillWait=5
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 RealMemory=16000 Gres=gpu:2
PartitionName=cpu Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


def installed() -> bool:
    return all(shutil.which(name) for name in ("munged", "slurmctld", "slurmd", "sbatch"))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """Start it and set ``SLURM_CONF``; stop it by its processes' ids. Its files are in the folder given."""
    host, before = socket.gethostname().partition(".")[0], os.environ.get("SLURM_CONF")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "state").mkdir()
        for gpu in range(2):
            (place / f"nvidia{gpu}").touch()
        text = CONFIGURATION.format(place=place, host=host, user=place.owner(), ports=[free_port(), free_port()])
        (place / "slurm.conf").write_text(text)
        (place / "gres.conf").write_text(f"AutoDetect=off\nNodeName={host} Name=gpu File={place}/nvidia[0-1]\n")
        key = place / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        os.environ["SLURM_CONF"] = str(place / "slurm.conf")
        try:
            munge = {"key-file": key, "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
            files = [f"--{option}={place / file}" for option, file in {**munge, "seed-file": "munged.seed"}.items()]
            call("munged", "--force", *files)
            call("slurmctld")
            call("slurmd", "-N", host)
            for _ in range(300):  # srun waits until the node is there, and fails while the controller is not
                if subprocess.run(["srun", "-t", "1", "true"], capture_output=True, check=False).returncode == 0:
                    break
            yield place
        finally:
            subprocess.run(["scancel", "--user", place.owner()], capture_output=True, check=False)
            for pid in ("slurmd.pid", "slurmctld.pid", "munged.pid"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    stop(int((place / pid).read_text()))
            os.environ.pop("SLURM_CONF")
            if before is not None:
                os.environ["SLURM_CONF"] = before


def stop(pid: int) -> None:
    """End a process that is no child of ours, and wait for it."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        select.select([process], [], [], 30)
    finally:
        os.close(process)


def until(condition: Callable[[], object], meaning: str, seconds: float = 300.0) -> None:
    """Ask again and again, as Slurm tells nobody by itself; fail where it takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{seconds:g} s, and not yet: {meaning}; jobs {jobs('all')}"


def call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def jobs(state: str = "RUNNING") -> dict[str, str]:
    """Partitions of the jobs in a state, by id."""
    lines = call("squeue", "--noheader", "--states", state, "--format", "%i %P").splitlines()
    return dict(line.split() for line in lines)
