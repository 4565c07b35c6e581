"""Rounds of numbered frames, and an oracle of the window that walks the episodes one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from daskrl.replay.window import Window

SCHEDULE = Schedule(streams=2, envs_per_stream=2, fragment_steps=4)


ROUND = 16  # transitions: 2 streams x 2 environments x 4 steps


GAMMA = 0.9


OBSERVATION = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (2,), np.float32), "b": spaces.Discrete(256)})


SPEC = spec_of(OBSERVATION, spaces.Discrete(5))


@dataclass(frozen=True)
class Step:
    """A transition; an observation is known by the numbers of its K frames, oldest first."""

    stack: tuple[int, ...]
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_stack: tuple[int, ...]


class Lane:
    """One environment whose frames are numbered, each number used once."""

    def __init__(self, number: int, frame_stack: int) -> None:
        self.following, self.frame_stack = 100_000 * number, frame_stack
        self.steps: list[Step] = []
        self.begin()

    def frame(self) -> int:
        self.following += 1
        return self.following

    def begin(self) -> None:
        self.stack, self.age = (self.frame(),) * self.frame_stack, 0

    def cut(self) -> None:
        """Begin anew in the middle of an episode, whose last step then counts as truncated."""
        last = self.steps[-1]
        if not last.terminated and not last.truncated:
            self.steps[-1] = replace(last, truncated=True)
        self.begin()


class NumberedRounds:
    """Makes the rounds a window is given, and knows what really happened in each lane."""

    def __init__(self, *, frame_stack: int = 1, ends: float = 0.3, kinds: str = "both", seed: int = 0) -> None:
        self.random, self.frame_stack, self.ends, self.kinds = np.random.default_rng(seed), frame_stack, ends, kinds
        self.lanes = [Lane(number, frame_stack) for number in range(SCHEDULE.lanes)]

    def round(self, cut: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """One fragment of every stream; the streams of ``cut`` begin new episodes first."""
        return [self.fragment(stream, stream in cut) for stream in range(SCHEDULE.streams)]

    def fragment(self, stream: int, cut: bool) -> dict[str, Any]:
        count, steps, k = SCHEDULE.envs_per_stream, SCHEDULE.fragment_steps, self.frame_stack
        lanes = self.lanes[stream * count : (stream + 1) * count]
        for lane in lanes if cut else ():
            lane.cut()
        frames = np.zeros((steps + k, count), np.int64)
        frames[:k] = np.array([lane.stack for lane in lanes]).T
        action, reward = np.zeros((steps, count), np.uint8), np.zeros((steps, count), np.float32)
        ended = np.zeros((2, steps, count), np.bool_)
        final: list[int] = []
        age = [lane.age for lane in lanes]
        for t in range(steps):
            for env, lane in enumerate(lanes):
                terminated, truncated = self.ending()
                action[t, env], reward[t, env] = self.random.integers(5), self.random.normal()
                last = lane.frame()
                lane.steps.append(
                    Step(
                        lane.stack, int(action[t, env]), float(reward[t, env]), terminated, truncated,
                        (*lane.stack[1:], last),
                    )
                )  # fmt: skip
                lane.stack, lane.age = (*lane.stack[1:], last), lane.age + 1
                if terminated or truncated:
                    ended[:, t, env] = terminated, truncated
                    final.append(last)
                    lane.begin()
                frames[k + t, env] = lane.stack[-1]
        finals = np.zeros(steps * count, np.int64)
        finals[: len(final)] = final
        return {
            **columns_of(frames, "observation"),
            **columns_of(finals, "final_observation"),
            "action": action,
            "reward": reward,
            "terminated": ended[0],
            "truncated": ended[1],
            "episode_step": np.array(age),
            "continues": np.asarray(not cut),
        }

    def ending(self) -> tuple[bool, bool]:
        if self.random.random() >= self.ends:
            return False, False
        kind = self.random.integers(3) if self.kinds == "both" else 1
        return kind != 1, kind != 0  # terminated; truncated; both at once


def columns_of(frames: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    """Frame ``i`` is ``a = [i, -i]`` and ``b = i % 256``."""
    return {
        f"{prefix}.a": np.stack([frames, -frames], axis=-1).astype(np.float32),
        f"{prefix}.b": (frames % 256).astype(np.uint8),
    }


def naive(steps: list[Step], at: int, n: int) -> tuple[float, float, tuple[int, ...]]:
    """The n-step return of a transition, what to discount the next value with, and the next observation."""
    total = 0.0
    for k in range(n):
        step = steps[at + k]
        total += GAMMA**k * step.reward
        if step.terminated:
            return total, 0.0, step.next_stack
        if step.truncated:
            return total, GAMMA ** (k + 1), step.next_stack
    return total, GAMMA**n, step.next_stack


def check(window: Window, replay: NumberedRounds) -> int:
    """Compare every transition that may be sampled with what happened; how many there are."""
    batch = window.gather(window.positions_of_rows(window.first, window.stop))
    wanted = [
        (lane.steps[row], *naive(lane.steps, row, window.n_step))
        for row in range(window.first, window.stop)
        for lane in replay.lanes
    ]
    assert len(wanted) == len(window) == len(batch.action)
    assert batch.action.tolist() == [step.action for step, *_ in wanted]
    np.testing.assert_allclose(batch.reward, [value for _, value, *_ in wanted], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(batch.discount, np.float32([discount for _, _, discount, _ in wanted]))
    compare(batch.observation, [step.stack for step, *_ in wanted], window.frame_stack)
    alive = [i for i, (_, _, discount, _) in enumerate(wanted) if discount]
    following = {name: value[alive] for name, value in batch.next_observation.items()}
    compare(following, [wanted[i][3] for i in alive], window.frame_stack)
    return len(wanted)


def compare(observation: Mapping[str, torch.Tensor], stacks: list[tuple[int, ...]], frame_stack: int) -> None:
    frames = np.array(stacks, np.int64).reshape(len(stacks), frame_stack)
    for name, expected in columns_of(frames, "observation").items():
        values = observation[name].numpy()
        np.testing.assert_array_equal(values, expected if frame_stack > 1 else expected[:, 0])


def allocated(window: Window) -> int:
    """Bytes of a window's arrays."""
    values = [*vars(window).values()]
    values += [array for value in values if isinstance(value, dict) for array in value.values()]
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor | np.ndarray))


def make(capacity: int, *, n: int = 1, frame_stack: int = 1, **settings: Any) -> Window:
    return Window(SPEC, SCHEDULE, capacity=capacity, n_step=n, frame_stack=frame_stack, discount=GAMMA, **settings)
