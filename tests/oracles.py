"""Toy environments, and naive readers written without daskrl's own code, that the tests compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

Arrays = Mapping[str, np.ndarray]


def reset_seed(seed: int, stream: int, env: int, episode: int) -> int:
    """The seed of an episode, as FORMAT.md defines it."""
    words = np.random.SeedSequence([seed, 0, stream, env, episode // 64]).generate_state(64, np.uint32)
    return int(words[episode % 64]) >> 1


class Scripted(gymnasium.Env):
    """Episodes of 1 to 5 steps: how long, and whether terminated or truncated, follows from the reset seed.

    The observation is ``[seed % 1000, step]``, the reward ``10 * step + action``.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.seeds.append(seed)
        self.seed, self.step_ = seed, 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.step_ += 1
        ended = self.step_ == length(self.seed)
        terminated = ended and is_terminal(self.seed)
        return self._observe(), 10.0 * self.step_ + action, terminated, ended and not terminated, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.seed % 1000, self.step_], np.float32)


def length(seed: int) -> int:
    """Steps of the episode of `Scripted` that begins with a seed."""
    return 1 + seed % 5


def is_terminal(seed: int) -> bool:
    """Whether that episode is terminated, not truncated."""
    return seed % 3 != 0


class Sampled(gymnasium.Env):
    """Observations drawn from any space, from the reset seed; episodes of 3 to 6 steps."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any] | None = None) -> None:
        self.observation_space = copy.deepcopy(observation)  # it holds the random state
        self.action_space = action if action is not None else spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed)
        self.seed, self.step_ = int(seed or 0), 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.step_ += 1
        ended = self.step_ == 3 + self.seed % 4
        terminated = ended and self.seed % 2 == 0
        return self.observation_space.sample(), float(self.step_), terminated, ended and not terminated, {}


@dataclass(frozen=True)
class Transition:
    """One thing that happened in one environment."""

    observation: Any
    action: Any
    reward: float
    terminated: bool
    truncated: bool
    next_observation: Any
    episode: int
    step: int


def play(
    make: Callable[[], gymnasium.Env], actions: Sequence[Any], *, seed: int, stream: int, env: int
) -> Iterator[Transition]:
    """Step one environment through some actions, resetting it at each end with the seed of the next episode."""
    made, episode, step = make(), 0, 0
    seen, _ = made.reset(seed=reset_seed(seed, stream, env, 0))
    for action in actions:
        following, reward, terminated, truncated, _ = made.step(action)
        yield Transition(seen, action, float(reward), terminated, truncated, following, episode, step)
        seen, step = following, step + 1
        if terminated or truncated:
            episode, step = episode + 1, 0
            seen, _ = made.reset(seed=reset_seed(seed, stream, env, episode))


def leaf(value: Any, path: Sequence[str | int]) -> Any:
    """The part of a nested observation under some keys."""
    for key in path:
        value = value[key]
    return value


def stored_transitions(
    fragments: Sequence[Arrays], env: int, name: str, frame_stack: int = 1
) -> Iterator[tuple[np.ndarray, bool, bool, np.ndarray]]:
    """``(stack, terminated, truncated, next stack)`` of one environment, read row by row as FORMAT.md says.

    Parameters
    ----------
    fragments : the columns of one stream's fragments, in order.
    name : an observation column.
    """
    k = frame_stack
    for columns in fragments:
        rows, final = columns[name][:, env], columns[f"final_{name}"]
        ended = columns["terminated"] | columns["truncated"]
        start = None  # step of this fragment at which the present episode began, if it began within it
        for t in range(len(ended)):
            first = 0 if start is None else start + k - 1
            stack = [rows[max(t + j, first)] for j in range(k)]
            if ended[t, env]:
                number = int(ended[:t].sum() + ended[t, :env].sum())
                following = [*stack[1:], final[number]]
                start = t + 1
            else:
                following = [*stack[1:], rows[t + k]]
            yield (
                np.stack(stack),
                bool(columns["terminated"][t, env]),
                bool(columns["truncated"][t, env]),
                np.stack(following),
            )
