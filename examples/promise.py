"""The promise, seen: one seed in one process, and on workers that are killed on the way. The digests are equal.

python examples/promise.py
"""

import os
import signal
import tempfile
from pathlib import Path

from distributed import Client

import daskrl
from daskrl import clusters


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    settings = {"env_steps": 10_000, "seed": 0, "checkpoint_every": 3}

    alone = daskrl.train(daskrl.DQN(), "CartPole-v1", store=folder / "alone", **settings).wait()
    print("one process:                     ", alone.store.digest())

    with clusters.local(3) as cluster, Client(cluster) as client:
        run = daskrl.train(daskrl.DQN(), "CartPole-v1", store=folder / "killed", client=client, **settings)
        for report in run:
            if report.weights_version in (3, 6):
                pids = client.run(os.getpid)  # the learner's worker among them
                for pid in list(pids.values())[: report.weights_version // 3 + 1]:
                    os.kill(pid, signal.SIGKILL)
                    print(f"version {report.weights_version}: SIGKILL to worker process {pid}")
    print("four workers, killed on the way: ", run.store.digest())


if __name__ == "__main__":
    main()
