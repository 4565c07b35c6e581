"""Playing whole greedy episodes with given weights: a pure function of its arguments, in any process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from daskrl import seeding
from daskrl.algorithms.base import Algorithm, Moment, Setup, Weights, recurrent_state
from daskrl.arithmetic import pinned, undrawn
from daskrl.config import MAX_EPISODE_STEPS, require_integer
from daskrl.envs.actions import Action
from daskrl.envs.source import Environment, EnvironmentFactory
from daskrl.envs.spaces import SpaceSpec
from daskrl.envs.stream import State, Stream
from daskrl.errors import EnvironmentRaisedError
from daskrl.records import Array

_LANES = 16  # environments stepped side by side
_NOTE_EVERY = 256  # steps of all of them between two notes on how far they are

GreedyPolicy = Callable[[Mapping[str, Array], State], Action]
"""Observation (see `Stream.seen`) and recurrent state (which it writes the next into) to actions, one a row."""

Note = Callable[[int, int], None]
"""Called with the episodes finished and the steps taken so far, now and then."""

Outside = Callable[[str], None]
"""Called with a sentence on the first observation that leaves the bounds of its space."""


def forbid_outside(said: str) -> None:
    """An `Outside`: that of a run with ``strict_bounds``."""
    raise EnvironmentRaisedError(
        f"{said}. Correct the space, or clip the observation (gymnasium.wrappers.TransformObservation), or resume the "
        "run with strict_bounds=False (--no-strict-bounds)."
    )


class Shown(Protocol):
    """What renders some of the environments that are stepped side by side; see `daskrl.envs.video.Clips`."""

    def environment(self, lane: int) -> Environment | None:
        """The environment to play in the place of a lane's own, where the lane is rendered."""

    def begin(self, lane: int, episode: int) -> None:
        """A lane will be reset for an episode."""


class Played(NamedTuple):
    """One episode.

    Attributes
    ----------
    episode : its number, from 0.
    episode_return, length : the sum of its rewards, and its steps.
    limited : it did not end, but was cut when it had taken as many steps as it may.
    """

    episode: int
    episode_return: float
    length: int
    limited: bool


@dataclass
class Playing:
    """An evaluation on its way.

    Attributes
    ----------
    steps : see `play_steps`.
    seconds : that it took so far.
    """

    steps: Generator[Played | None]
    played: list[Played] = field(default_factory=list)
    seconds: float = 0.0

    def close(self) -> None:
        self.steps.close()


def play(
    algorithm: Algorithm,
    setup: Setup,
    factory: EnvironmentFactory,
    weights: Weights,
    *,
    episodes: int,
    seed: int,
    limit: int | None = MAX_EPISODE_STEPS,
    note: Note | None = None,
    shown: Shown | None = None,
    outside: Outside | None = None,
) -> list[Played]:
    """Play whole episodes greedily, on one torch thread, whatever the process's own settings of torch are.

    Called in any process, any number of times: the same arguments give the same episodes.

    Parameters
    ----------
    factory : makes the environment, of the spaces in ``setup``.
    episodes, seed : how many; episode ``i`` starts from a seed derived from (``seed``, i), which training never uses.
    limit : steps an episode may take; None for any number.
    note, outside : see `Note` and `Outside`.
    shown : renders some of the environments.

    Returns
    -------
    list of Played
        In the order of episodes.
    """
    with pinned():
        policy = greedy_policy(algorithm, setup, weights, seed)
        steps = play_steps(
            factory, setup.spec, policy, episodes=episodes, seed=seed, frame_stack=setup.frame_stack,
            state=recurrent_state(algorithm, setup), limit=limit, note=note, shown=shown, outside=outside,
        )  # fmt: skip
        return sorted(finished(steps))


def greedy_policy(algorithm: Algorithm, setup: Setup, weights: Weights, seed: int) -> GreedyPolicy:
    """How an algorithm acts greedily with some weights; an algorithm that draws numbers draws them from ``seed``.

    Called, as is what it returns, within `daskrl.arithmetic.pinned`.
    """
    import torch

    with undrawn():
        acting = algorithm.policy(setup)
    algorithm.load(acting, weights)
    moment = Moment({}, seeding.generator(seed, "evaluate"), greedy=True)

    def policy(observation: Mapping[str, Array], state: State) -> Action:
        moment.observation, moment.state = observation, state
        with torch.inference_mode():
            chosen = algorithm.act(acting, moment)
        return chosen[0] if isinstance(chosen, tuple) else chosen

    return policy


def finished(steps: Generator[Played | None]) -> Iterator[Played]:
    """The episodes that `play_steps` plays, each when it is over."""
    with contextlib.closing(steps):
        for played in steps:
            if played is not None:
                yield played


def play_steps(
    factory: EnvironmentFactory,
    spec: SpaceSpec,
    policy: GreedyPolicy,
    *,
    episodes: int,
    seed: int,
    frame_stack: int,
    state: Mapping[str, tuple[int, ...]] | None = None,
    lanes: int = _LANES,
    limit: int | None = None,
    note: Note | None = None,
    shown: Shown | None = None,
    alive: Callable[[], None] = lambda: None,
    outside: Outside | None = None,
) -> Generator[Played | None]:
    """Play whole episodes, step by step: yields an episode when it is over, and None after each step of all.

    Whoever takes them may pause at any of them.

    Episode ``i`` is played from a seed of its own. ``alive`` is called after each environment that is made or reset
    before the first step.

    The batch given to the policy always has ``min(episodes, lanes)`` rows: the shape of a matrix product can
    decide its last bits, and a finished environment is therefore stepped no further but still fills its row.
    """
    require_integer("episodes", episodes, 1)
    if limit is not None:
        require_integer("max_episode_steps", limit, 1)
    count = min(episodes, lanes)
    stream = Stream.make(
        factory, spec, seed=seed, index=0, count=count, frame_stack=frame_stack, state=state, alive=alive
    )
    stream.where = "evaluation"
    convert = stream.actions.given

    def begin(env: int, episode: int) -> None:
        if shown is not None:
            shown.begin(env, episode)
        stream.episode[env] = episode
        stream.reset(env, seeding.environment_seed(seed, 0, 0, episode, "evaluate_environment"))
        look(env)

    def look(env: int) -> None:
        nonlocal outside
        if outside is not None and (said := stream.left_bounds(env)) is not None:
            say, outside = outside, None
            say(said)

    try:
        for env in range(count):
            rendered = None if shown is None else shown.environment(env)
            if rendered is not None:
                stream.envs[env].close()
                stream.envs[env] = rendered
                stream.reset(env)  # as the other environments were
        for env in range(count):
            begin(env, env)
            alive()
        following, active, over, steps = count, set(range(count)), 0, 0
        while active:
            actions = convert(policy(stream.seen, stream.state))
            for env in sorted(active):
                reward, terminated, truncated = stream.step(env, actions[env])
                look(env)
                stream.episode_return[env] += reward
                length = int(stream.age[env])
                ended = terminated or truncated
                if ended or length == limit:
                    yield Played(int(stream.episode[env]), float(stream.episode_return[env]), length, not ended)
                    over += 1
                    if following < episodes:
                        begin(env, following)
                        following += 1
                    else:
                        active.discard(env)
            steps += count
            yield None
            if note is not None and steps % (_NOTE_EVERY * count) == 0:
                note(over, steps)
    finally:
        stream.close()
