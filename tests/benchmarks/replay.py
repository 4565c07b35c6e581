"""Questions to a replay (`daskrl.Replay`) beside DuckDB on Parquet of the same data: live and packed, and their memory.

The store is made here through the store's own writer, without a learner: transitions of 27 + 8 floats, episodes of 50
to 400 steps on eight streams. Each question is asked of a replay that was opened anew, in turns with the others. Memory
is that of a process which asks all questions once.

    python tests/benchmarks/replay.py [--transitions 1e7] [--fragment-steps T] [--directory DIR]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _table import interleaved, parser, show, verdict
from gymnasium import spaces

import daskrl
from daskrl import seeding
from daskrl.config import Options, RunConfig, Schedule
from daskrl.envs.spaces import spec_of
from daskrl.store.columns import write_fragment
from daskrl.store.store import Store

STREAMS, ENVS = 8, 8
PACKAGES = ("duckdb", "pyarrow", "zarr")
BY_VERSION = "SELECT weights_version, avg(reward) AS mean FROM {} GROUP BY 1 ORDER BY 1"
ABOVE = "SELECT episode, return FROM {} WHERE return > ? ORDER BY 1"


def make(path: Path, transitions: int, steps: int) -> Store:
    """A finished run of at least that many transitions."""
    spec = spec_of(spaces.Box(-np.inf, np.inf, (27,), np.float32), spaces.Box(-1, 1, (8,), np.float32))
    schedule = Schedule(STREAMS, ENVS, steps, 1)
    environment = {"kind": "callable", "name": "replay:none", "source_sha256": "0", "packages": [], "captured": {}}
    algorithm = {"name": "SAC", "settings": {"discount": 0.99}, "source_sha256": None, "packages": [], "captured": {}}
    config = RunConfig(0, environment, algorithm, schedule)
    rounds = schedule.rounds(transitions)
    store = Store.create(
        path, config, spec, env_steps=rounds * schedule.round_steps, options=Options(), versions={"python": "3"}
    )
    store.lock()
    random = np.random.default_rng(0)
    observation = random.standard_normal((4, steps + 1, ENVS, 27)).astype(np.float32)
    action = random.uniform(-1, 1, (4, steps, ENVS, 8)).astype(np.float32)
    episode, age = np.zeros((2, STREAMS, ENVS), np.int64)
    length = random.integers(50, 400, (STREAMS, ENVS))
    total = np.zeros((STREAMS, ENVS))
    for round_ in range(rounds):
        records = []
        for stream in range(STREAMS):
            slot = schedule.slot(stream, round_)
            first, began = episode[stream].tolist(), age[stream].tolist()
            reward = random.standard_normal((steps, ENVS)).astype(np.float32)
            endings, ended = np.zeros((2, steps, ENVS), np.bool_), []
            for env in range(ENVS):
                start, gone = 0, int(age[stream, env])
                while (end := start + int(length[stream, env]) - gone) <= steps:
                    endings[int(episode[stream, env] % 3 == 0), end - 1, env] = True
                    got = total[stream, env] + float(reward[start:end, env].sum(dtype=np.float64))
                    ended.append((end - 1, env, got, int(length[stream, env])))
                    episode[stream, env] += 1
                    length[stream, env] = random.integers(50, 400)
                    start, gone, total[stream, env] = end, 0, 0.0
                age[stream, env] = gone + steps - start
                total[stream, env] += float(reward[start:, env].sum(dtype=np.float64))
            ended.sort()
            final = np.zeros((steps * ENVS, 27), np.float32)
            final[: len(ended)] = slot
            fragment = {
                "observation": observation[slot % 4], "final_observation": final, "action": action[slot % 4],
                "reward": reward, "terminated": endings[0], "truncated": endings[1],
            }  # fmt: skip
            records.append({
                "kind": "fragment", "slot": slot, "stream": stream, "round": round_,
                "weights_version": schedule.weights_version(round_), "continues": True,
                "episodes": [list(one[1:]) for one in ended], "first_episode": first, "episode_step": began,
                "environment_seed": seeding.environment_seeds(0, stream, first),
                "columns": write_fragment(store.storage, store.columns, slot, fragment),
                "wall_time": 1e9 + round_, "seconds": 1.0, "worker": f"tcp://10.0.0.{stream}:40000",
            })  # fmt: skip
        learned: Any = {
            "kind": "learn", "version": round_ + 1, "learner_updates": round_, "loss": 0.0, "seconds": 0.1,
            "updates": 1, "device": "cpu", "weights": None, "checkpoint": None,
        }  # fmt: skip
        store.commit([*records, learned])
    store.progress()  # which leaves the snapshot that a driver leaves
    store.unlock()
    return store


def to_parquet(replay: daskrl.Replay, folder: Path) -> None:
    """As DuckDB writes it, in row groups of its own size."""
    with replay.connection() as connection:
        for name in ("transitions", "episodes"):
            connection.execute(f"COPY {name} TO '{folder / name}.parquet'")


def questions(path: Path) -> dict[str, Callable[[], Any]]:
    """Each of a replay that is opened before, and not counted in what `seconds` measures."""

    def fresh() -> daskrl.Replay:
        return daskrl.Replay(path)

    return {
        "open": lambda _: fresh(),
        "episodes()": lambda replay: replay.episodes(),
        "mean reward by weights version": lambda replay: replay.sql(BY_VERSION.format("transitions")),
        "episodes with a return above 20": lambda replay: replay.sql(ABOVE.format("episodes"), [20]),
        "one episode": lambda replay: replay.transitions(where="episode = 1000").to_pandas(),
    }


def seconds(path: Path, rounds: int) -> dict[str, float]:
    """The median of each question; a replay is opened for each, so that nothing is kept from the one before."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, ask in questions(path).items():
            replay = daskrl.Replay(path)
            began = time.perf_counter()
            ask(replay)
            found.setdefault(name, []).append(time.perf_counter() - began)
    return {name: float(np.median(times)) for name, times in found.items()}


def of_parquet(folder: Path, replay: daskrl.Replay, rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of the replay and of DuckDB on Parquet, in turns; the answers are compared."""
    import duckdb

    connection = duckdb.connect()

    def parquet(sql: str, name: str, *given: Any) -> Any:
        return connection.execute(sql.format(f"'{folder / name}.parquet'"), given or None).df()

    made = {}
    for what, sql, name, given in (
        ("mean reward by weights version", BY_VERSION, "transitions", ()),
        ("episodes with a return above 20", ABOVE, "episodes", (20,)),
    ):
        one, other = replay.sql(sql.format(name), list(given) or None), parquet(sql, name, *given)
        assert len(one) == len(other) > 0
        assert np.allclose(one.to_numpy(float), other.to_numpy(float), rtol=1e-5)
        taken = interleaved(
            {
                "replay": lambda sql=sql, name=name, given=given: replay.sql(sql.format(name), list(given) or None),
                "parquet": lambda sql=sql, name=name, given=given: parquet(sql, name, *given),
            },
            rounds=rounds, seconds=0.3,
        )  # fmt: skip
        made[what] = (taken["replay"], taken["parquet"])
    return made


def of_torchrl(path: Path, folder: Path) -> list[list[str]]:
    """The episodes with a return above 20 in TorchRL's memmap of the same transitions, which has their numbers, too."""
    import torch
    from tensordict import TensorDict
    from torchrl.collectors.utils import split_trajectories
    from torchrl.data import LazyMemmapStorage, ReplayBuffer

    replay = daskrl.Replay(path)
    storage = LazyMemmapStorage(len(replay.transitions("run")), scratch_dir=folder / "memmap")
    buffer = ReplayBuffer(storage=storage)
    columns = ["observation", "action", "reward", "next_observation", "terminated", "truncated", "episode"]
    for batch in replay.transitions(columns).to_torch(1 << 16):
        buffer.extend(TensorDict(batch, batch_size=[len(batch["reward"])]))

    def split() -> int:
        """By its own means: trajectories that are interleaved are sorted before."""
        rows = storage[: len(storage)].select("episode", "reward", "terminated", "truncated").clone()
        rows = rows[torch.argsort(rows["episode"], stable=True)]
        rows["done"] = rows["terminated"] | rows["truncated"]
        apart = split_trajectories(rows.select("episode", "reward", "done"), trajectory_key="episode", done_key="done")
        return int(((apart["reward"] * apart["mask"]).sum(-1) > 20).sum())

    def summed() -> int:
        """By hand."""
        rows = storage[: len(storage)]
        numbers, place = torch.unique(rows["episode"], return_inverse=True)
        return int((torch.zeros(len(numbers)).scatter_add_(0, place, rows["reward"]) > 20).sum())

    def ours() -> int:
        return len(daskrl.Replay(path).sql(ABOVE.format("episodes"), [20]))

    assert split() == summed() == ours()
    taken = interleaved({"split": split, "summed": summed, "ours": ours}, rounds=3, seconds=0.3)
    return [
        ["split_trajectories", f"{taken['split']:.2f}", verdict(taken["split"] / taken["ours"], 10)],
        ["unique and scatter_add, by hand", f"{taken['summed']:.3f}", f"{taken['summed'] / taken['ours']:.2f}"],
        ["daskrl, opened anew each time", f"{taken['ours']:.3f}", ""],
    ]


def memory(path: Path) -> tuple[float, float]:
    """MiB that a process takes at most, and those that it has before it asks."""
    code = (
        "import re, sys; sys.path.insert(0, sys.argv[2])\n"
        "import replay, daskrl, duckdb, pandas, pyarrow.dataset\n"
        "def most(): return int(re.search('VmHWM:\\\\s*(\\\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        "before = most()\n"
        "from pathlib import Path\n"
        "for ask in replay.questions(Path(sys.argv[1])).values(): ask(daskrl.Replay(sys.argv[1]))\n"
        "one = daskrl.Replay(sys.argv[1])\n"
        "said = 'avg(observation[3]), avg(next_observation[5]), max(action[2])'\n"
        "one.sql('SELECT ' + said + ' FROM transitions WHERE step > 7')\n"
        "print(before, most())"
    )
    asked = [sys.executable, "-c", code, str(path), str(Path(__file__).parent)]
    ran = subprocess.run(asked, capture_output=True, text=True, check=True)
    before, most = map(float, ran.stdout.split()[-2:])
    return most, before


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--transitions", type=float, default=1e6)
    args.add_argument("--fragment-steps", type=int, default=1024, help="times 8 environments is a fragment")
    args.add_argument("--rounds", type=int, default=5)
    args.add_argument(
        "--directory", type=Path, default=None, help="where the store is made; a temporary one by default"
    )
    given = args.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.directory))
    try:
        path = folder / "run"
        began = time.perf_counter()
        store = make(path, int(given.transitions), given.fragment_steps)
        replay = daskrl.Replay(path)
        to_parquet(replay, folder)
        print(f"{replay!r}\nmade, and as Parquet, in {time.perf_counter() - began:.0f} s")
        live, beside_live = seconds(path, given.rounds), of_parquet(folder, replay, given.rounds)
        daskrl.pack(store)
        packed = seconds(path, given.rounds)
        beside = of_parquet(folder, daskrl.Replay(path), given.rounds)
        most, before = memory(path)
        targets = {"open": 0.5, "episodes()": 1.0, "mean reward by weights version": 0.4}
        if given.transitions <= 1e6:
            targets["episodes with a return above 20"] = 0.1
        rows = []
        for name in packed:
            target = targets.get(name)
            parquet = "" if name not in beside else f"{beside[name][1]:.3f}"
            ratio = "" if name not in beside else f"{beside[name][0] / beside[name][1]:.2f}"
            if name == "mean reward by weights version":
                ratio = verdict(beside[name][0] / beside[name][1], 1.5, at_least=False)
            of_live = verdict(live[name], 5 * target, at_least=False) if target else f"{live[name]:.3f}"
            of_packed = verdict(packed[name], target, at_least=False) if target else f"{packed[name]:.3f}"
            rows.append([name, of_packed, of_live, parquet, ratio])
        of_live_mean = beside_live["mean reward by weights version"]
        rows.append(["memory, MiB", verdict(most, 1024, at_least=False), f"before: {before:.0f}", "", ""])
        show(
            f"{len(replay.transitions('run')):,} transitions in {len(store.fragments()):,} fragments",
            ["seconds", "packed", "live layout", "DuckDB on Parquet", "packed / Parquet"], rows, packages=PACKAGES,
            note=f"live layout / Parquet of the mean: {of_live_mean[0] / of_live_mean[1]:.2f}",
        )  # fmt: skip
        if given.transitions <= 2e6:
            show(
                "episodes with a return above 20, beside TorchRL's memmap",
                ["", "seconds", "daskrl is faster by"],
                of_torchrl(path, folder),
                packages=("torch", "torchrl"),
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
