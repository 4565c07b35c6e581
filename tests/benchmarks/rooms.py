"""Rollouts, store writes and learner updates of this working tree, beside another commit.

    python tests/benchmarks/rooms.py --before REV [--pairs 9]

Processes come in pairs, one of each tree, and the tree that goes first alternates. Each process warms up, then carries
out three small runs in its own process through the public interface, which both trees have:

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

CHILD = """
import json, sys, tempfile, time
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
found = {}
with tempfile.TemporaryDirectory() as place:
    for name, (algorithm, env, steps, shape) in CASES.items():
        given = {**SHAPE, **shape}
        round_ = given["streams"] * given["envs_per_stream"] * given["fragment_steps"]
        daskrl.train(algorithm, env, store=f"{place}/{name}-warm", env_steps=2 * round_, **given).wait()
        run = daskrl.train(algorithm, env, store=f"{place}/{name}", env_steps=steps, **given)
        cpu, wall = time.process_time(), time.perf_counter()
        run.wait()
        found[name] = [time.process_time() - cpu, time.perf_counter() - wall]
print(json.dumps(found))
"""


def once(tree: Path) -> dict[str, list[float]]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tree)], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{tree}:\n{done.stderr}")
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="REV", help="the commit to compare with")
    parser.add_argument("--pairs", type=int, default=9)
    given = parser.parse_args()
    ratios: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as place:
        other = Path(place).resolve() / "before"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", other, given.before], check=True)
        try:
            begun = time.perf_counter()
            for pair in range(given.pairs):
                trees = [ROOT, other] if pair % 2 else [other, ROOT]
                took = {tree: once(tree) for tree in trees}
                for name, here in took[ROOT].items():
                    ratios.setdefault(name, []).append(np.array(here) / np.array(took[other][name]))
                print(f"pair {pair + 1} of {given.pairs}, {time.perf_counter() - begun:.0f} s", file=sys.stderr)
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
