"""How many files finished runs are, as directories and packed, with the same digests.

Each run is one of CartPole-v1 with daskrl's own streams, in this process. All of them are read by ``Store.digest``
twice: as directories, and packed.

    python tests/benchmarks/files.py [--runs N] [--env-steps K] [--directory DIR]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _table import parser, show, verdict

import daskrl

SHARE = 5.0  # percent of the files that the directories have


def timed(do: Callable[[], list[str]]) -> tuple[list[str], float]:
    began = time.perf_counter()
    result = do()
    return result, time.perf_counter() - began


def size(folder: Path) -> tuple[int, int]:
    """Files and their bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return len(files), sum(path.stat().st_size for path in files)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=30)
    options.add_argument("--env-steps", type=int, default=6000)
    options.add_argument("--directory", type=Path, help="for the runs; a temporary one unless said")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.directory) as made:
        folder = Path(made)
        paths = [folder / f"{seed:04d}" for seed in range(given.runs)]
        for seed, path in enumerate(paths):
            daskrl.train(
                daskrl.DQN(), "CartPole-v1", store=path, env_steps=given.env_steps, seed=seed, progress=False
            ).wait()  # fmt: skip

        def digests() -> list[str]:
            return [daskrl.Store.open(path).digest() for path in paths]

        digests()  # from here on all of it is in the system's memory
        before, read = timed(digests)
        files, nbytes = size(folder)
        _, packing = timed(lambda: [str(daskrl.pack(path).storage) for path in paths])
        after, packed_read = timed(digests)
        packed_files, packed_bytes = size(folder)
    same = before == after
    show(
        f"{given.runs} runs of {given.env_steps} env steps of CartPole-v1",
        ["", "files", "MB", "digests, s", "packing, s"],
        [
            ["directories", f"{files}", f"{nbytes / 1e6:.2f}", f"{read:.2f}", ""],
            ["packed", f"{packed_files}", f"{packed_bytes / 1e6:.2f}", f"{packed_read:.2f}", f"{packing:.2f}"],
            ["target: % of the files", verdict(100 * packed_files / files, SHARE, at_least=False), "", "", ""],
        ],
        note=f"digests {'equal' if same else 'DIFFER'}; each is a pass over all that is in a store",
    )
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
