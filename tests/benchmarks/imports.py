"""What importing the package and asking the command line for help take, beside another commit.

Processes come in pairs, one of each commit in turn, so that whatever else the machine does meets both. The processor's
time of a process is compared, and its wall clock beside it. What a Python that does nothing takes is part of both.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _table import parser, show, verdict

HERE = Path(__file__).resolve().parents[2]
COMMANDS = {
    "import daskrl": ["-c", "import daskrl"],
    "daskrl --help": ["-m", "daskrl", "--help"],
}


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A worktree of a commit of this repository, for as long as it is needed."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "tree"
        subprocess.run(["git", "-C", HERE, "worktree", "add", "-q", "--detach", tree, revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", tree], check=True)


def seconds(tree: Path, command: list[str]) -> tuple[float, float]:
    """The processor's time, and the wall clock, of one process that has the package of ``tree``."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} in {tree} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - began


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--before", required=True, help="the commit to compare with")
    options.add_argument("--pairs", type=int, default=15, help="of processes, for each command")
    options.add_argument("--target", type=float, default=0.5, help="of the time before")
    args = options.parse_args()
    rows = []
    with checked_out(args.before) as before:
        for name, command in COMMANDS.items():
            for tree in (before, HERE):  # compiles what changed, and reads it from the disk
                seconds(tree, command)
            pairs = [(seconds(before, command), seconds(HERE, command)) for _ in range(args.pairs)]
            medians = [statistics.median(pair[side][clock] for pair in pairs) for side in (0, 1) for clock in (0, 1)]
            ratios = [statistics.median(pair[1][clock] / pair[0][clock] for pair in pairs) for clock in (0, 1)]
            rows.append([
                name, f"{medians[0]:.3f} / {medians[1]:.3f}", f"{medians[2]:.3f} / {medians[3]:.3f}",
                verdict(ratios[0], args.target, at_least=False), f"{ratios[1]:.2f}",
            ])  # fmt: skip
    show(
        f"Processes that import, of {args.pairs} pairs",
        ["", f"s before ({args.before}): CPU / wall", "s now: CPU / wall", "ratio of CPU times", "of wall times"],
        rows,
        packages=["cyclopts", "rich"],
        note="Ratios are medians of those of the pairs.",
    )


if __name__ == "__main__":
    main()
