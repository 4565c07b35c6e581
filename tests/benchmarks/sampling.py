"""Batches from the window against SB3's, cpprb's and TorchRL's replay buffers.

Every candidate gives observation, next observation, action, reward and what says that an episode ended, in its
own kind of array: SB3, TorchRL and daskrl torch tensors, cpprb NumPy arrays.

    python tests/benchmarks/sampling.py [--transitions N] [--frames N] [--batch B] [--rounds R]
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from _table import interleaved, parser, show, verdict
from gymnasium import spaces

from daskrl.config import Schedule
from daskrl.envs.spaces import final_name, spec_of
from daskrl.records import Array
from daskrl.replay import samplers
from daskrl.replay.window import Window

warnings.filterwarnings("ignore")
OBS, ACT = 27, 8


def filled(window: Window, transitions: int, random: np.random.Generator) -> Window:
    """The window after rounds of random fragments; an episode is terminated every 250 steps."""
    schedule, leaf, action = window.schedule, window.spec.observation[0], window.spec.action[0]
    shape = (schedule.fragment_steps, schedule.envs_per_stream)
    rows = schedule.fragment_steps + window.frame_stack
    for _ in range(transitions // schedule.round_steps):
        fragments = []
        for _ in range(schedule.streams):
            fragment: dict[str, Array] = {
                leaf.name: _values(random, (rows, schedule.envs_per_stream, *leaf.shape), leaf.dtype),
                final_name(leaf.name): np.zeros((shape[0] * shape[1], *leaf.shape), leaf.dtype),
                action.name: random.integers(0, action.sizes[0], shape).astype(action.dtype)
                if action.kind == "discrete"
                else _values(random, (*shape, *action.shape), action.dtype),
                "reward": random.standard_normal(shape).astype(np.float32),
                "terminated": random.random(shape) < 1 / 250,
                "truncated": np.zeros(shape, np.bool_),
                "episode_step": np.ones(shape[1], np.int64),
                "continues": np.asarray(True),
            }
            fragments.append(fragment)
        window.append(fragments)
    return window


def _values(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    if dtype == "uint8":
        return random.integers(0, 4, size=shape, dtype=np.uint8)
    return random.standard_normal(shape, dtype=np.float32)


def held(thing: object) -> int:
    """Bytes of all arrays and tensors that an object holds."""
    seen: dict[int, int] = {}

    def look(value: object) -> None:
        if isinstance(value, torch.Tensor):
            value = value.numpy()
        if isinstance(value, np.ndarray):
            seen[value.__array_interface__["data"][0]] = value.nbytes
        elif isinstance(value, dict):
            for item in value.values():
                look(item)
        elif isinstance(value, list | tuple):
            for item in value:
                look(item)

    look(vars(thing))
    return sum(seen.values())


def low_dimensional(n: int, batch: int, rounds: int) -> None:
    import cpprb
    from stable_baselines3.common.buffers import ReplayBuffer
    from tensordict import TensorDict
    from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import RandomSampler

    random = np.random.default_rng(0)
    observation = spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action = spaces.Box(-1, 1, (ACT,), np.float32)
    schedule = Schedule(streams=8, envs_per_stream=8, fragment_steps=128)
    n -= n % schedule.round_steps
    window = filled(Window(spec_of(observation, action), schedule, capacity=n), n, random)
    uniform = samplers.make(window.ring, None)

    columns = {
        "obs": random.standard_normal((n, OBS), dtype=np.float32),
        "act": random.standard_normal((n, ACT), dtype=np.float32),
        "rew": random.standard_normal((n, 1), dtype=np.float32),
        "next_obs": random.standard_normal((n, OBS), dtype=np.float32),
        "done": (random.random((n, 1)) < 1 / 250).astype(np.float32),
    }
    sb3 = ReplayBuffer(n, observation, action, device="cpu")
    for ours, theirs in zip(
        columns.values(), (sb3.observations, sb3.actions, sb3.rewards, sb3.next_observations, sb3.dones), strict=True
    ):
        theirs[:] = ours.reshape(theirs.shape)
    sb3.full = True

    shapes = {"obs": {"shape": OBS}, "act": {"shape": ACT}, "rew": {}, "next_obs": {"shape": OBS}, "done": {}}
    buffer, prioritized = cpprb.ReplayBuffer(n, shapes), cpprb.PrioritizedReplayBuffer(n, shapes, alpha=0.6)
    for begin in range(0, n, 8192):
        part = {name: values[begin : begin + 8192] for name, values in columns.items()}
        buffer.add(**part)
        prioritized.add(**part)

    def torchrl(storage: object) -> Callable[[], object]:
        made = TensorDictReplayBuffer(storage=storage, sampler=RandomSampler(), batch_size=batch)
        data = {
            "observation": torch.from_numpy(columns["obs"]),
            "action": torch.from_numpy(columns["act"]),
            "next": {
                "observation": torch.from_numpy(columns["next_obs"]),
                "reward": torch.from_numpy(columns["rew"]),
                "done": torch.from_numpy(columns["done"] > 0),
            },
        }
        made.extend(TensorDict(data, batch_size=[n]))
        return made.sample

    ours_batch = window.gather(*uniform.draw(window, batch, random, 0.4))

    def ours() -> None:
        window.gather(
            *uniform.draw(window, batch, random, 0.4), ours_batch
        )  # into the same tensors, as the learner does

    seconds = interleaved(
        {
            "daskrl window, uniform": ours,
            "SB3 ReplayBuffer": lambda: sb3.sample(batch),
            "cpprb ReplayBuffer": lambda: buffer.sample(batch),
            "TorchRL LazyTensorStorage": torchrl(LazyTensorStorage(n)),
            "TorchRL LazyMemmapStorage": torchrl(LazyMemmapStorage(n)),
        },
        rounds=rounds,
        clock=time.process_time,
    )
    targets = {"SB3 ReplayBuffer": 2.0, "cpprb ReplayBuffer": 1.5, "TorchRL": 3.0}
    best_torchrl = min((name for name in seconds if name.startswith("TorchRL")), key=lambda name: seconds[name])
    rows = []
    for name, value in seconds.items():
        ratio = value / seconds["daskrl window, uniform"]
        target = targets.get("TorchRL" if name == best_torchrl else name)
        rows.append(
            [name, f"{1 / value:,.0f}", f"{value * 1e6:,.0f}", verdict(ratio, target) if target else f"{ratio:.2f}"]
        )
    packages = ("torch", "stable-baselines3", "cpprb", "torchrl")
    show(
        f"Uniform: batch {batch} of {n:,} transitions, {OBS} + {ACT} floats",
        ["", "batches/s", "us", "daskrl is faster by"],
        rows,
        packages=packages,
    )

    prioritised = samplers.make(window.ring, 0.6)
    prioritised.appended(window, (window.first, window.first))
    td_error = np.abs(random.standard_normal((64, batch))).astype(np.float32)
    turn = iter(range(10**9))
    # Both begin with spread-out priorities, as in the middle of a run.
    for begin in range(0, n - n % batch, batch):
        error = td_error[next(turn) % 64]
        prioritised.update(window.positions(np.arange(begin, begin + batch)), error)
        prioritized.update_priorities(np.arange(begin, begin + batch), error)

    def ours_prioritised() -> None:
        positions, weight = prioritised.draw(window, batch, random, 0.4)
        window.gather(positions, weight, ours_batch)
        prioritised.update(positions, td_error[next(turn) % 64])

    def theirs_prioritised() -> None:
        drawn = prioritized.sample(batch, beta=0.4)
        prioritized.update_priorities(drawn["indexes"], td_error[next(turn) % 64])

    seconds = interleaved(
        {"daskrl window, prioritised": ours_prioritised, "cpprb PrioritizedReplayBuffer": theirs_prioritised},
        rounds=rounds,
        clock=time.process_time,
    )
    first, second = seconds.values()
    show(
        f"Prioritised: draw, gather and update, batch {batch} of {n:,} transitions",
        ["", "batches/s", "us", "time over cpprb's"],
        [
            [name, f"{1 / value:,.0f}", f"{value * 1e6:,.0f}", verdict(first / second, 1.2, at_least=False)]
            if value == first
            else [name, f"{1 / value:,.0f}", f"{value * 1e6:,.0f}", "1"]
            for name, value in seconds.items()
        ],
        packages=packages,
    )


def frames(n: int, batch: int, rounds: int) -> None:
    from stable_baselines3.common.buffers import ReplayBuffer

    random = np.random.default_rng(0)
    schedule = Schedule(streams=8, envs_per_stream=4, fragment_steps=32)
    n -= n % schedule.round_steps
    one, stacked = (spaces.Box(0, 255, shape, np.uint8) for shape in ((84, 84), (4, 84, 84)))
    action = spaces.Discrete(6)
    window = filled(Window(spec_of(one, action), schedule, capacity=n, frame_stack=4), n, random)
    uniform = samplers.make(window.ring, None)
    buffers = {
        "SB3 ReplayBuffer": ReplayBuffer(n, stacked, action, handle_timeout_termination=False),
        "SB3 optimize_memory_usage": ReplayBuffer(
            n, stacked, action, optimize_memory_usage=True, handle_timeout_termination=False
        ),
    }
    for buffer in buffers.values():
        for begin in range(0, n, 1024):
            rows = _values(random, buffer.observations[begin : begin + 1024].shape, "uint8")
            buffer.observations[begin : begin + 1024] = rows
            if not buffer.optimize_memory_usage:
                buffer.next_observations[begin : begin + 1024] = rows
        buffer.full = True
    ours = window.gather(*uniform.draw(window, batch, random, 0.4))
    seconds = interleaved(
        {
            "daskrl window": lambda: window.gather(*uniform.draw(window, batch, random, 0.4), ours),
            **{name: lambda buffer=buffer: buffer.sample(batch) for name, buffer in buffers.items()},
        },
        rounds=rounds,
        seconds=0.3,
        clock=time.process_time,
    )
    memory = {"daskrl window": held(window), **{name: held(buffer) for name, buffer in buffers.items()}}
    faster = min(buffers, key=lambda name: seconds[name])
    rows_ = []
    for name, value in seconds.items():
        ratio, share = value / seconds["daskrl window"], memory["daskrl window"] / memory[name]
        compared = name == faster
        rows_.append(
            [
                name,
                f"{1 / value:,.0f}",
                f"{value * 1e6:,.0f}",
                verdict(ratio, 2.0) if compared else f"{ratio:.2f}",
                f"{memory[name] / 2**20:,.0f}",
                f"{share:.3f}",
            ]
        )
    show(
        f"Frames: batch {batch} of {n:,} transitions, 4 stacked frames of 84 x 84 bytes",
        ["", "batches/s", "us", "daskrl is faster by", "MiB", "daskrl's share of it (target 0.25)"],
        rows_,
        packages=("torch", "stable-baselines3"),
    )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--transitions", type=int, default=1_000_000, help="0 leaves the part out")
    arguments.add_argument("--frames", type=int, default=20_000, help="0 leaves the part out")
    arguments.add_argument("--batch", type=int, default=256)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--threads", type=int, default=1, help="torch threads")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    if given.transitions:
        low_dimensional(given.transitions, given.batch, given.rounds)
    if given.frames:
        frames(given.frames, given.batch, given.rounds)


if __name__ == "__main__":
    main()
