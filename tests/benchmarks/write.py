"""Writing fragments to the store and taking them into the window, against zarr-python with its defaults.

zarr-python gets the same columns of the same fragments, one chunk a fragment, and whatever codecs and chunk names it
chooses. Ingest is what the learner does: reading a committed fragment (checksums tested; last observations only where
an episode was truncated) and appending it to the window; zarr-python's is reading all columns and appending them to a
window of the same kind. The last table is the share of a rollout's time
that goes into writing its fragment.

    python tests/benchmarks/write.py [--rounds R] [--directory DIR]
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import zarr
from _table import interleaved, parser, show, verdict
from gymnasium import spaces

from daskrl import DQN, seeding
from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.networks import initialise
from daskrl.config import Schedule
from daskrl.envs import source as sources
from daskrl.envs.spaces import SpaceSpec, final_name, spec_of
from daskrl.envs.stream import Stream
from daskrl.records import Array
from daskrl.replay.window import Window
from daskrl.store.columns import columns, encode, read_transitions, write_fragment
from daskrl.store.posix import Posix

SLOTS = 4096  # never twice the same one while writing is timed: ext4 flushes a file that replaces another
PACKAGES = ("zarr", "numcodecs", "google-crc32c")


def fragment_of(spec: SpaceSpec, schedule: Schedule, frames: int, random: np.random.Generator) -> dict[str, Array]:
    """A fragment as a rollout makes it: an episode ends every 250 steps, frames change a little."""
    shape = (schedule.fragment_steps, schedule.envs_per_stream)
    leaf, action = spec.observation[0], spec.action[0]
    rows = (shape[0] + frames, shape[1], *leaf.shape)
    if leaf.dtype == "uint8":
        observation = np.zeros(rows, np.uint8)
        for _ in range(12):  # sprites on a plain ground
            y, x = random.integers(0, 76, 2)
            observation[:, :, y : y + 8, x : x + 8] = random.integers(60, 255)
        observation[:, :, :4] = random.integers(0, 255, (*rows[:2], 4, rows[3]))
    else:
        observation = random.standard_normal(rows).astype(np.float32)
    terminated = random.random(shape) < 1 / 250
    final = np.zeros((shape[0] * shape[1], *leaf.shape), leaf.dtype)
    final[: terminated.sum()] = observation[1, 0]
    return {
        leaf.name: observation,
        final_name(leaf.name): final,
        action.name: random.integers(0, 6, shape).astype(action.dtype)
        if action.kind == "discrete"
        else random.uniform(-1, 1, (*shape, *action.shape)).astype(np.float32),
        "reward": random.standard_normal(shape).astype(np.float32),
        "terminated": terminated,
        "truncated": np.zeros(shape, np.bool_),
    }


def store_and_ingest(name: str, spec: SpaceSpec, schedule: Schedule, frames: int, rounds: int, root: Path) -> None:
    random = np.random.default_rng(0)
    layout = columns(spec, schedule, frames)
    fragments = [fragment_of(spec, schedule, frames, random) for _ in range(4)]
    shutil.rmtree(root, ignore_errors=True)
    for column in layout:
        for folder in ("daskrl", "bound"):
            (root / folder / column).mkdir(parents=True)
    group = zarr.create_group(root / "zarr")
    arrays = {
        column.name: group.create_array(
            column.name, shape=(SLOTS, *column.shape), chunks=(1, *column.shape), dtype=column.dtype
        )
        for column in layout.values()
    }
    turn = iter(range(10**9))

    def write() -> None:
        n = next(turn)
        write_fragment(Posix(root / "daskrl"), layout, n % SLOTS, fragments[n % 4])

    def write_zarr() -> None:
        n = next(turn)
        for column, array in arrays.items():
            array[n % SLOTS] = fragments[n % 4][column]

    encoded = [{column.name: encode(column, one[column.name]) for column in layout.values()} for one in fragments]

    def write_bytes() -> None:
        n = next(turn)
        for column, data in encoded[n % 4].items():
            partial = f"{root}/bound/{column}/.{n % SLOTS}"
            file = os.open(partial, os.O_WRONLY | os.O_CREAT)
            os.write(file, data)
            os.close(file)
            os.rename(partial, f"{root}/bound/{column}/{n % SLOTS}")

    calls = {"daskrl": write, "zarr-python": write_zarr, "bound": write_bytes}
    seconds = interleaved(calls, rounds=rounds, seconds=0.2)
    moved = schedule.fragment_steps * schedule.envs_per_stream

    records = []
    for slot in range(64):
        written = write_fragment(Posix(root / "daskrl"), layout, slot, fragments[slot % 4])
        records.append({"slot": slot, "columns": written})
        for column, array in arrays.items():
            array[slot] = fragments[slot % 4][column]
    windows = [Window(spec, schedule, capacity=8 * moved, frame_stack=frames) for _ in range(2)]
    place = {"episode_step": np.ones(schedule.envs_per_stream, np.int64), "continues": np.asarray(True)}

    def read() -> dict[str, Array]:
        return read_transitions(Posix(root / "daskrl"), layout, records[next(turn) % 64])

    def read_zarr() -> dict[str, Any]:
        slot = next(turn) % 64
        return {column: array[slot] for column, array in arrays.items()}

    def ingest(reader: Callable[[], dict[str, Array]], window: Window) -> Callable[[], None]:
        return lambda: window.append([{**reader(), **place}])

    seconds_in = interleaved(
        {
            "read, daskrl": read,
            "read, zarr-python": read_zarr,
            "ingest, daskrl": ingest(read, windows[0]),
            "ingest, zarr-python": ingest(read_zarr, windows[1]),
        },
        rounds=rounds,
        seconds=0.3,
    )
    rows = []
    for what, fast, slow, target in (
        ("write", seconds["daskrl"], seconds["zarr-python"], 6.0),
        ("read (checksums tested)", seconds_in["read, daskrl"], seconds_in["read, zarr-python"], None),
        ("read and append to window", seconds_in["ingest, daskrl"], seconds_in["ingest, zarr-python"], 8.0),
    ):
        ratio = slow / fast
        rows.append(
            [
                what,
                f"{fast * 1e3:.2f}",
                f"{slow * 1e3:.2f}",
                f"{moved / fast / 1e6:.2f}",
                f"{moved / slow / 1e6:.2f}",
                verdict(ratio, target) if target else f"{ratio:.2f}",
            ]
        )
    shutil.rmtree(root)
    show(
        f"{name}: {moved:,} transitions a fragment, {sum(a.nbytes for a in fragments[0].values()) / 2**20:.1f} MiB",
        ["", "daskrl ms", "zarr-python ms", "M transitions/s", "zarr-python's", "daskrl is faster by"],
        rows,
        packages=PACKAGES,
        note=f"Making the same files of ready bytes takes {seconds['bound'] * 1e3:.2f} ms: "
        f"{seconds['zarr-python'] / seconds['bound']:.2f} is the most that any writer could be faster by.",
    )


def share_of_rollout(environments: list[str], root: Path, fragments: int) -> None:
    schedule, algorithm = Schedule(envs_per_stream=4, fragment_steps=1024), DQN()
    rows = []
    for name in environments:
        source = sources.source(name)
        if source.spec.action[0].kind != "discrete":
            action = source.spec.action[0]
            rng = np.random.default_rng(0)
            policy_name = "uniform random"

            def policy(observation: Any, state: Any, t: int, action: Any = action, rng: Any = rng) -> Any:
                drawn = rng.uniform(-1, 1, (4, *action.shape))
                return drawn.astype(action.dtype), {}
        else:
            acting = initialise(algorithm.policy(Setup(source.spec, schedule)), seeding.generator(0, "initialise"))
            moment, policy_name = Moment({}, np.random.default_rng(0)), "DQN [256, 256]"

            def policy(observation: Any, state: Any, t: int, acting: Any = acting, moment: Any = moment) -> Any:
                moment.observation = observation
                with torch.inference_mode():
                    return algorithm.act(acting, moment), {}

        stream = Stream.make(
            source.factory, source.spec, seed=0, index=0, count=schedule.envs_per_stream, frame_stack=1, episode=None
        )
        layout = columns(source.spec, schedule, 1)
        shutil.rmtree(root, ignore_errors=True)
        for column in layout:
            (root / column).mkdir(parents=True)
        acting, writing = [], []
        for slot in range(fragments):
            began = time.perf_counter()
            fragment, _ = stream.rollout(policy, schedule.fragment_steps)
            between = time.perf_counter()
            write_fragment(Posix(root), layout, slot, fragment)
            acting.append(between - began)
            writing.append(time.perf_counter() - between)
        stream.close()
        share = 100 * median(writing) / (median(acting) + median(writing))
        rows.append(
            [
                f"{name}, {policy_name}",
                f"{median(acting) * 1e3:.1f}",
                f"{median(writing) * 1e3:.2f}",
                verdict(share, 3.0, at_least=False) + " %",
            ]
        )
    shutil.rmtree(root)
    show(
        "Share of a rollout's time that is writing: 4 environments, 1024 steps",
        ["", "act ms", "write ms", "share"],
        rows,
        packages=("torch", "gymnasium"),
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--fragments", type=int, default=12, help="of each environment, for the share")
    arguments.add_argument("--environments", nargs="+", default=["CartPole-v1", "LunarLander-v3", "HalfCheetah-v5"])
    arguments.add_argument("--directory", help="where to write; a temporary directory by default")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp(dir=given.directory))
    low = spec_of(spaces.Box(-np.inf, np.inf, (27,), np.float32), spaces.Box(-1, 1, (8,), np.float32))
    images = spec_of(spaces.Box(0, 255, (84, 84), np.uint8), spaces.Discrete(6))
    try:
        low_schedule = Schedule(streams=1, envs_per_stream=8, fragment_steps=1024)
        store_and_ingest("27 + 8 floats", low, low_schedule, 1, given.rounds, root / "low")
        image_schedule = Schedule(streams=1, envs_per_stream=4, fragment_steps=128)
        store_and_ingest("84 x 84 bytes, stack of 4", images, image_schedule, 4, given.rounds, root / "images")
        share_of_rollout(given.environments, root / "share", given.fragments)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
