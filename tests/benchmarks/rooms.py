"""Rollouts, store writes and learner updates of this working tree, beside another commit.

    python tests/benchmarks/rooms.py --before REV [--pairs 25] [--processes 5]

Two processes, one of each tree, take turns: a pair is one small run here and the same run there, right after each
other, so that what else the machine does weighs on both. Which goes first alternates. After a fifth of the pairs
(``--processes``) both begin anew, as a process has speeds of its own (addresses, hashes). The runs are in-process and
through the public interface, which both trees have:

- rollouts: CartPole without an update, so that acting and stepping take the time;
- writes: observations of 256 KiB from an environment that does nothing, so that storing takes the time;
- updates: DQN with 64 updates a round, so that learning takes the time.

Printed is the median over the pairs of (seconds here / seconds before), of processor time and of wall clock, with the
quartiles. On a machine that does other work at the same time only the processor time says anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
CASES = ("rollouts", "writes", "updates")

CHILD = """
import json, shutil, sys, tempfile, time
from pathlib import Path
import gymnasium, numpy as np
import daskrl

assert Path(daskrl.__file__).parents[1] == Path(sys.argv[1]), daskrl.__file__

class Wide(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (256, 1024), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    picture = np.random.default_rng(0).integers(0, 256, (256, 1024), np.uint8)

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return self.picture, {}

    def step(self, action):
        self.count += 1
        return self.picture, 0.0, self.count == 100, False, {}

SHAPE = dict(streams=2, envs_per_stream=4, fragment_steps=64, progress=False, seed=1, recheck_every=0)
TABULAR = daskrl.DQN(hidden=(8,), learning_starts=10**9, window=1024)
LEARNS = daskrl.DQN(learning_starts=512, batch_size=128, replay_ratio=16.0, window=8192)
CASES = {
    "rollouts": (TABULAR, "CartPole-v1", 40 * 512, {}),
    "writes": (TABULAR, Wide, 256, dict(streams=1, envs_per_stream=1, fragment_steps=16)),
    "updates": (LEARNS, "CartPole-v1", 24 * 512, {}),
}
with tempfile.TemporaryDirectory() as place:

    def carry_out(name, store, rounds=None):
        algorithm, env, steps, shape = CASES[name]
        given = {**SHAPE, **shape}
        if rounds is not None:
            steps = rounds * given["streams"] * given["envs_per_stream"] * given["fragment_steps"]
        run = daskrl.train(algorithm, env, store=f"{place}/{store}", env_steps=steps, **given)
        cpu, wall = time.process_time(), time.perf_counter()
        run.wait()
        took = [time.process_time() - cpu, time.perf_counter() - wall]
        shutil.rmtree(f"{place}/{store}")
        return took

    for name in CASES:
        carry_out(name, f"{name}-warm", rounds=2)
    for count, line in enumerate(sys.stdin):
        print(json.dumps(carry_out(line.strip(), count)), flush=True)
"""


class Tree:
    """A process that imports daskrl from a tree, and carries out runs on request."""

    def __init__(self, tree: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tree)],
            cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def seconds(self, name: str) -> np.ndarray:
        """What a run took, of the processor and of the wall clock."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return np.array(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="REV", help="the commit to compare with")
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--processes", type=int, default=5, help="how often both begin anew")
    given = parser.parse_args()
    ratios: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as place:
        other = Path(place).resolve() / "before"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", other, given.before], check=True)
        try:
            begun = time.perf_counter()
            for several in np.array_split(np.arange(given.pairs), given.processes):
                here, there = Tree(ROOT), Tree(other)
                for pair in several:
                    for name in CASES:
                        order = [here, there] if pair % 2 else [there, here]
                        took = {tree: tree.seconds(name) for tree in order}
                        ratios.setdefault(name, []).append(took[here] / took[there])
                here.close()
                there.close()
                print(f"pair {several[-1] + 1} of {given.pairs}, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", other], check=True)
    print(f"seconds here / seconds at {given.before}, medians of {given.pairs} pairs [quartiles]")
    print(f"{'':10}{'processor':>24}{'wall clock':>24}")
    for name, values in ratios.items():
        low, middle, high = np.quantile(np.array(values), [0.25, 0.5, 0.75], axis=0)
        cells = (f"{m:.3f} [{a:.3f} {b:.3f}]" for a, m, b in zip(low, middle, high, strict=True))
        print(f"{name:10}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
