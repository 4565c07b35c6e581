"""Opening a store of many fragments, with and without a snapshot of its log, against another revision of daskrl.

The store has the records of a CartPole run, committed through the commit log; there are no chunks, as nothing here
reads them. ``info`` is the whole command, from the start of its process; ``summary`` is `Store.open` and
`Store.summary` within a process that has imported daskrl. The revisions take turns, and the ratio is the median of
those of all pairs.

    python tests/benchmarks/opening.py [--before REV] [--fragments N] [--per-commit K] [--pairs P] [--directory DIR]
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from _table import parser, show, verdict

import daskrl

HERE = Path(daskrl.__file__).parent.parent
BEFORE = "86f838a"
STREAMS = 8
WITH, WITHOUT = 10.0, 3.0  # times as fast as before: with a snapshot, and without one
SNAPSHOT = Path(".commits", "snapshot.json")
SUMMARY = (
    "import sys, time, daskrl\n"
    "began = time.perf_counter()\n"
    "daskrl.Store.open(sys.argv[1]).summary()\n"
    "print(time.perf_counter() - began)\n"
)


def make(path: Path, fragments: int, per_commit: int) -> int:
    """A store of so many fragments; returns how many commits it has."""
    run = daskrl.train(
        daskrl.DQN(hidden=(16,), learning_starts=10**6), "CartPole-v1", env_steps=2 * STREAMS * 8 * 64, store=path,
        streams=STREAMS, envs_per_stream=8, fragment_steps=64, progress=False,
    ).wait()  # fmt: skip
    store = run.store
    fragment = next(record for record in store.records("fragment") if record["round"] == 1)
    learn = next(record for record in store.records("learn") if record["version"] == 1)
    store.lock()
    try:
        waiting = []
        for slot in range(len(store.fragments()), fragments):
            round_, stream = divmod(slot, STREAMS)
            waiting.append(
                {**fragment, "slot": slot, "stream": stream, "round": round_, "weights_version": max(0, round_ - 1)}
            )
            if stream == STREAMS - 1:
                kept = round_ % 100 == 0
                waiting.append(
                    {**learn, "version": round_ + 1, "weights": learn["weights"] if kept else None, "checkpoint": None}
                )
            if (slot + 1) % per_commit == 0:
                store.commit(waiting)
                waiting = []
        if waiting:
            store.commit(waiting)
    finally:
        store.unlock()
    return store.log.head()


@contextlib.contextmanager
def worktree(revision: str) -> Iterator[Path]:
    """A revision of this repository in a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory, "daskrl")
        git = ["git", "-C", str(HERE)]
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(place), revision], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(place)], check=True)


def info(source: Path, store: Path) -> float:
    """Seconds of the command."""
    began = time.perf_counter()
    run(source, "-m", "daskrl", "info", str(store))
    return time.perf_counter() - began


def summary(source: Path, store: Path) -> float:
    """Seconds of opening and summing up, as the process itself measures."""
    return float(run(source, "-c", SUMMARY, str(store)))


def run(source: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=source, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--before", default=BEFORE, help="the revision compared with")
    arguments.add_argument("--fragments", type=int, default=100_000)
    arguments.add_argument("--per-commit", type=int, default=10, help="fragments in a commit")
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--directory", type=Path, default=None, help="for the store")
    given = arguments.parse_args()
    with worktree(given.before) as before, tempfile.TemporaryDirectory(dir=given.directory) as directory:
        store = Path(directory, "run")
        commits = make(store, given.fragments, given.per_commit)
        rows = []
        for name, measure in (("daskrl info", info), ("Store.open + summary", summary)):
            for with_, target in ((True, WITH), (False, WITHOUT)):
                pairs = []
                for _ in range(given.pairs):
                    one = measure(before, store)
                    if not with_:
                        (store / SNAPSHOT).unlink(missing_ok=True)
                    pairs.append((one, measure(HERE, store)))
                then, now = (median(times) for times in zip(*pairs, strict=True))
                ratio = median(one / other for one, other in pairs)
                kind = "with a snapshot" if with_ else "without"
                rows.append((name, kind, f"{then:.3f} s", f"{now:.3f} s", verdict(ratio, target)))
    show(
        f"Opening a store of {given.fragments:,} fragments in {commits:,} commits",
        ("", "", f"at {given.before}", "now", "times as fast"),
        rows,
        packages=("google-crc32c",),
        note=f"medians of {given.pairs} pairs; without a snapshot the command also writes one",
    )


if __name__ == "__main__":
    main()
