"""Environments: stepping one stream of them.

A stream resets every environment itself, at each episode, with a seed of its own; so an episode is known by
(seed, stream, environment, episode) and the actions since, and can be rebuilt anywhere.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from daskrl import seeding
from daskrl.arithmetic import zeros
from daskrl.envs import isolation
from daskrl.envs.actions import Action, Actions
from daskrl.envs.source import Environment, EnvironmentFactory
from daskrl.envs.spaces import SpaceSpec, final_name, state_name, value_at
from daskrl.envs.values import RefusedError, as_ending, as_reward, taker
from daskrl.errors import EnvironmentRaisedError, NondeterministicError, NonFiniteError
from daskrl.records import Array

Fragment = dict[str, Array]
State = dict[str, Array]
Policy = Callable[[Mapping[str, Array], State, int], tuple[Action, Mapping[str, Array]]]
"""Observation (see `Stream.seen`), recurrent state (which it writes the next into) and step to actions and further
columns."""

_BY_POLICY = (
    " It comes from the policy of weights version {}, not from the environment: learning has diverged, and earlier "
    "versions of the weights are kept. Lower learning_rate or clip rewards (reward_clip), and start a new run."
)


@dataclass(eq=False)
class Stream:
    """The live environments of one stream and where each of them stands.

    Attributes
    ----------
    observation : leaf name -> array ``[N, K, *leaf]``: the newest K frames of each environment, oldest first;
        frames before the episode's first are copies of it.
    seen : the same memory as policies see it, see `unstacked`.
    actions : how environments take what was chosen.
    episode : ``[N]`` index of each environment's current episode, counted from 0.
    age : ``[N]`` steps taken in the current episode.
    episode_return : ``[N]`` sum of the rewards of the current episode.
    state : name -> ``[N, *shape]`` float32, the policy's recurrent state; zeros at an episode's first step.
    where, weights_version : what is being rolled out, and with which weights, for messages.
    first : which of the run's stream its first environment is: 0, unless one is stepped again by itself.
    outside : of each column of the newest fragment that left the bounds of its space, a sentence on the first value.
    claimed : what `daskrl.envs.isolation` knows as in use by it.
    """

    seed: int
    index: int
    spec: SpaceSpec
    envs: list[Environment]
    observation: dict[str, Array]
    episode: Array
    age: Array
    episode_return: Array
    state: State
    where: str = ""
    weights_version: int = 0
    first: int = 0
    outside: list[str] = field(default_factory=list)
    claimed: list[Environment] = field(default_factory=list)

    def __post_init__(self) -> None:
        stacks = [(leaf, self.observation[leaf.name]) for leaf in self.spec.observation]
        self._stacks = [(leaf, stack, stack[:, -1]) for leaf, stack in stacks]
        # What environments returned and is not pushed yet. A policy sees the memory of ``observation``.
        self._taken_rows = {leaf.name: np.zeros_like(newest) for leaf, _, newest in self._stacks}
        self._take = taker([(leaf, self._taken_rows[leaf.name]) for leaf, _, _ in self._stacks])
        self.seen = unstacked(self.observation, stacks[0][1].shape[1])
        self._reset_seeds = [0] * len(self.envs)
        self.actions = Actions(self.spec.action, self.envs[0].action_space, len(self.envs))
        self._observed_bounds = [
            (leaf, box.low, box.high)
            for leaf in self.spec.observation
            if leaf.kind == "box" and _excludes(box := value_at(self.envs[0].observation_space, leaf))
        ]
        self._turns, self._own = isolation.turns(self.envs[0]), threading.Lock()
        self._returned: list[Any] = [None] * len(self.envs)  # the newest observation of each, as it was

    @classmethod
    def make(
        cls,
        factory: EnvironmentFactory,
        spec: SpaceSpec,
        *,
        seed: int,
        index: int,
        count: int,
        frame_stack: int,
        episode: Sequence[int] | None = None,
        state: Mapping[str, tuple[int, ...]] | None = None,
        first: int = 0,
        alive: Callable[[], None] = lambda: None,
    ) -> Stream:
        """Make ``count`` environments and reset each at the start of its given episode (default 0).

        Parameters
        ----------
        alive : called after each.

        Raises
        ------
        EnvironmentRaisedError
        ConfigError
            An environment, or one that it holds, is in use by another one of this process.
        """
        envs: list[Environment] = []
        claimed: list[Environment] = []
        try:
            for _ in range(count):
                try:
                    envs.append(factory())
                except Exception as error:
                    raise EnvironmentRaisedError(
                        f"making an environment for stream {index} raised {type(error).__name__}: {error}"
                    ) from error
                claimed.extend(isolation.claim(envs[-1]))
                alive()
            stream = cls(
                seed=seed,
                index=index,
                spec=spec,
                envs=envs,
                observation={
                    leaf.name: zeros((count, frame_stack, *leaf.shape), leaf.dtype) for leaf in spec.observation
                },
                episode=np.array(episode if episode is not None else [0] * count, np.int64),
                age=np.zeros(count, np.int64),
                episode_return=np.zeros(count, np.float64),
                state={name: zeros((count, *shape), np.float32) for name, shape in (state or {}).items()},
                first=first,
                claimed=claimed,
            )
            for env in range(count):
                stream.reset(env)
                alive()
            stream._turns.saw(stream, stream._returned, stepped=False)
        except BaseException:
            isolation.release(claimed)
            raise
        return stream

    def seed_of(self, env: int) -> int:
        """The seed ``env`` was reset with at the start of its current episode."""
        return seeding.environment_seed(self.seed, self.index, self.first + env, int(self.episode[env]))

    def reset(self, env: int, seed: int | None = None) -> None:
        """Start the current episode of one environment, from its own seed unless another is given."""
        self._reset_seeds[env] = self.seed_of(env) if seed is None else seed
        try:
            with self._turns.turn(self._own):
                value, _ = self.envs[env].reset(seed=self._reset_seeds[env])
                self._take(env, value)
            self._returned[env] = value
        except (Exception, SystemExit) as error:
            raise EnvironmentRaisedError(self._failure(env, "reset", error)) from error
        for leaf, stack, _ in self._stacks:
            stack[env] = self._taken_rows[leaf.name][env]
        self.age[env] = 0
        self.episode_return[env] = 0.0
        for value in self.state.values():
            value[env] = 0

    def step(self, env: int, action: Any) -> tuple[float, bool, bool]:
        """Step one environment and push its observation; the caller resets it when the episode ended.

        Raises
        ------
        EnvironmentRaisedError, NonFiniteError
        """
        try:
            with self._turns.turn(self._own):
                value, reward, terminated, truncated, _ = self.envs[env].step(action)
                self._take(env, value)
                result = as_reward(reward), as_ending("terminated", terminated), as_ending("truncated", truncated)
        except (Exception, SystemExit) as error:
            raise EnvironmentRaisedError(self._failure(env, "step", error)) from error
        self._push(env)
        floats = [(leaf.name, newest[env]) for leaf, _, newest in self._stacks if newest.dtype.kind == "f"]
        for name, value in (("reward", np.float64(result[0])), *floats):
            if not np.isfinite(value).all():
                problem = RefusedError(f"{name} holds a value that is NaN or infinite: {value.tolist()}")
                raise NonFiniteError(self._failure(env, "step", problem))
        self.age[env] += 1
        return result

    def _push(self, env: int | slice) -> None:
        """Make the observations that were taken the newest frames of one or all environments."""
        for leaf, stack, newest in self._stacks:
            if stack.shape[1] > 1:
                stack[env, :-1] = stack[env, 1:]
            newest[env] = self._taken_rows[leaf.name][env]

    def _failure(self, env: int, what: str, error: BaseException) -> str:
        did = (
            f"returned in {what} what cannot be stored"
            if isinstance(error, RefusedError)
            else (f"raised {type(error).__name__} in {what}")
        )
        return f"the environment {did}: {error}\n  {self.where or f'stream {self.index}'}, {self._at(env)}"

    def _at(self, env: int) -> str:
        return (
            f"environment {self.first + env} ({self._called(env)}), episode {int(self.episode[env])}, step "
            f"{int(self.age[env])}, reset seed {self._reset_seeds[env]}"
        )

    def _called(self, env: int) -> str:
        with contextlib.suppress(Exception):  # a wrapper copies the arguments it was made with
            if (spec := self.envs[env].spec) is not None:
                return spec.id
        return type(self.envs[env].unwrapped).__name__

    def rollout(self, policy: Policy, steps: int) -> tuple[Fragment, list[tuple[int, float, int]]]:
        """Take ``steps`` steps of every environment.

        Returns
        -------
        fragment : the columns of one fragment, see FORMAT.md. Every row is a transition that happened: an
            episode that ends is reset at once, and its last observation goes to ``final_observation``.
        episodes : ``(environment, return, length)`` of each episode that ended, in order.

        Raises
        ------
        EnvironmentRaisedError, NonFiniteError
        """
        count = len(self.envs)
        some = next(iter(self.observation.values()))
        frames = some.shape[1]
        observation = {
            name: np.empty((steps + frames, count, *stack.shape[2:]), stack.dtype)
            for name, stack in self.observation.items()
        }
        for name, stack in self.observation.items():
            observation[name][:frames] = np.swapaxes(stack, 0, 1)
        final = {
            name: np.zeros((steps * count, *stack.shape[2:]), stack.dtype) for name, stack in self.observation.items()
        }
        reward = np.empty((steps, count), np.float32)
        terminated, truncated = np.zeros((2, steps, count), np.bool_)
        chosen: Any = None
        extras: dict[str, Array] = {}
        episodes: list[tuple[int, float, int]] = []
        before = {name: value.copy() for name, value in self.state.items()}
        first_episode, first_age = self.episode.copy(), self.age.copy()
        convert, every, step_of = self.actions.given, range(count), [env.step for env in self.envs]
        take, everyone = self._take, slice(None)
        turn, returned = self._turns.turn(self._own), self._returned
        one = np.ones(count, np.int64)  # adding a Python 1 costs three times as much

        for t in range(steps):
            action, extra = policy(self.seen, self.state, t)
            if t == 0:
                chosen = self.actions.room(action, steps)
                extras = {name: np.empty((steps, *value.shape), value.dtype) for name, value in extra.items()}
            given = convert(action)
            chosen[t] = action
            for name, value in extra.items():
                extras[name][t] = value
            rewards, endings = [], []
            try:
                with turn:  # once for all environments: taken for each, it costs a few percent of a rollout
                    for env, step, taken in zip(every, step_of, given, strict=True):
                        value, got, over, cut, _ = step(taken)
                        take(env, value)
                        rewards.append(got if type(got) is float else as_reward(got))
                        if over or cut:
                            terminated[t, env] = as_ending("terminated", over)
                            truncated[t, env] = as_ending("truncated", cut)
                            endings.append(env)
                        returned[env] = value
            except (Exception, SystemExit) as error:
                seen = all(np.isfinite(stack[env]).all() for _, stack, _ in self._stacks)
                if seen and (bad := self.actions.not_finite(action, env)) is not None:
                    cause = _BY_POLICY.format(self.weights_version)
                    raise self._not_finite(bad[0], (t, env), bad[1], cause) from error
                raise EnvironmentRaisedError(self._failure(env, "step", error)) from error
            if t == 0:
                self._turns.saw(self, returned, stepped=True)
                turn = self._turns.turn(self._own)
            self._push(everyone)
            self.age += one
            reward[t] = got_now = np.array(rewards)
            self.episode_return += got_now
            for env in endings:
                for leaf, _, newest in self._stacks:
                    final[leaf.name][len(episodes)] = newest[env]
                episodes.append((env, float(self.episode_return[env]), int(self.age[env])))
                self.episode[env] += 1
                self.reset(env)
            for leaf, _, newest in self._stacks:
                observation[leaf.name][frames + t] = newest

        fragment: Fragment = dict(observation)
        fragment.update({final_name(name): rows for name, rows in final.items()})
        fragment.update({state_name(name): np.stack([before[name], value]) for name, value in self.state.items()})
        fragment.update(self.actions.columns(chosen))
        fragment.update(reward=reward, terminated=terminated, truncated=truncated, **extras)
        when = _When(self, fragment, episodes, first_episode, first_age)
        self._check_finite(fragment, when)
        self.outside = self._out_of_bounds(fragment, len(episodes), when)
        return fragment, episodes

    def _out_of_bounds(self, fragment: Fragment, episodes: int, when: _When) -> list[str]:
        """Of each column that left the bounds of its Box, a sentence on the first value."""
        said = []
        for leaf, low, high in self._observed_bounds:
            observed, last = fragment[leaf.name], fragment[final_name(leaf.name)][:episodes]
            for name, values, axes in ((leaf.name, observed, (0, 1)), (final_name(leaf.name), last, (0,))):
                if not len(values) or not ((values.min(axes) < low) | (values.max(axes) > high)).any():
                    continue
                place = tuple(int(i) for i in np.argwhere((values < low) | (values > high))[0])
                found = when.final(place[0]) if axes == (0,) else when.observation(place[0], place[1])
                said.append(_outside(name, values[place].item(), place[len(axes) :], low, high, found))
        return said

    def left_bounds(self, env: int) -> str | None:
        """A sentence on the first value of an environment's newest observation that is outside of its space."""
        for leaf, low, high in self._observed_bounds:
            value = self._taken_rows[leaf.name][env]
            outside = (value < low) | (value > high)
            if outside.any():
                place = tuple(int(i) for i in np.argwhere(outside)[0])
                return _outside(leaf.name, value[place].item(), place, low, high, self._at(env))
        return None

    def _check_finite(self, fragment: Fragment, when: _When) -> None:
        bad = {
            name: np.argwhere(~np.isfinite(column))[0]
            for name, column in fragment.items()
            if column.dtype.kind == "f" and not np.isfinite(column).all()
        }
        if not bad:
            return
        frames, steps = self._stacks[0][1].shape[1], len(fragment["reward"])
        finals = {final_name(name) for name in self.observation}
        stepless = finals | {state_name(name) for name in self.state}
        by_environment = {"reward", *self.observation, *finals}

        def order(name: str) -> tuple[int, int]:
            # What was first is the cause: a policy sees an observation, acts, and gets a reward.
            if name in self.observation:
                return int(bad[name][0]) - frames + 1, 0
            if name in stepless:
                return steps, 0
            return int(bad[name][0]), 2 if name == "reward" else 1

        name = min(bad, key=order)
        place = tuple(int(i) for i in bad[name])
        value = fragment[name][place]
        if name not in by_environment:
            raise self._not_finite(name, place, value, _BY_POLICY.format(self.weights_version))
        if name == "reward":
            found = when.reward(*place)
        else:
            found = when.final(place[0]) if name in finals else when.observation(place[0], place[1])
        raise self._not_finite(name, place, value, f"\n  It is from {found}.")

    def _not_finite(self, name: str, place: tuple[int, ...], value: Any, cause: str) -> NonFiniteError:
        return NonFiniteError(
            f"{name} of {self.where or f'stream {self.index}'} holds a value that is NaN or infinite, "
            f"first at {place}: {value}. The fragment was not committed; no learner saw it.{cause}"
        )

    def retrace(self, env: int, stored: Mapping[str, Array], start: int, where: str) -> None:
        """Step one environment through what a fragment recorded of it, and compare all that it holds of it.

        Parameters
        ----------
        stored : columns of the fragment: observations, action, reward and endings; and final observations, if the
            environment's episode ends in it.
        start : the first step to take. The environment stands there, at its episode's first if that is above 0.
        where : what is being done, for messages.

        Raises
        ------
        NondeterministicError
            Something differs. It says what, at which step of which episode.
        """
        lane, steps = self.first + env, len(stored["reward"])
        ended = stored["terminated"] | stored["truncated"]
        action_at = self.actions.recorded(stored, lane)
        older = [(leaf, newest, stored[leaf.name], stack.shape[1] - 1) for leaf, stack, newest in self._stacks]

        def compare(name: str, now: Any, then: Any) -> None:
            now, then = np.asarray(now), np.asarray(then)
            if now.tobytes() == then.tobytes():  # 0 is not -0
                return
            raise NondeterministicError(
                f"{where}: {name} of environment {lane} ({self._called(env)}) differs at step {int(self.age[env])} of "
                f"episode {int(self.episode[env])}: {_shown(then, now)} was stored, and now it is "
                f"{_shown(now, then)}, from the same seed and the same actions. {self.nondeterminism()}"
            )

        if self.age[env] == 0:
            for leaf, newest, column, k in older:
                compare(leaf.name, newest[env], column[start + k, lane])
        rewards, overs, cuts = (stored[name][:, lane].tolist() for name in ("reward", "terminated", "truncated"))
        for t in range(start, steps):
            reward, terminated, truncated = self.step(env, action_at(t))
            if not (0 != np.float32(reward).item() == rewards[t]):
                compare("reward", np.float32(reward), stored["reward"][t, lane])
            if (terminated, truncated) != (overs[t], cuts[t]):
                compare("terminated", terminated, stored["terminated"][t, lane])
                compare("truncated", truncated, stored["truncated"][t, lane])
            self.episode_return[env] += reward
            if terminated or truncated:
                row = int(ended[:t].sum() + ended[t, :lane].sum())
                for leaf, newest, _, _ in older:
                    compare(final_name(leaf.name), newest[env], stored[final_name(leaf.name)][row])
                self.episode[env] += 1
                self.reset(env)
            for leaf, newest, column, k in older:
                compare(leaf.name, newest[env], column[t + 1 + k, lane])

    def nondeterminism(self, acted: bool = False) -> str:
        """What to say of environments that gave something else from the same seed and actions; or of other actions."""
        known = isolation.remembers(self.envs[0])
        if known is None:
            known = (
                "Look for what outlives an episode (running statistics, a count, a curriculum), for what environments "
                "share (an object, an array, a cache) and for generators that reset(seed) does not seed."
                f"{isolation.in_common(self.envs)}"
            )
        act = ", or the algorithm's act draws from another generator than moment.random" * acted
        return f"The environment is not deterministic given reset(seed) and its actions{act}. {known}"

    def close(self) -> None:
        self._turns.gone(self)
        isolation.release(self.claimed)
        for env in self.envs:
            env.close()


@dataclass
class _When:
    """Of which environment, episode and step a value of a fragment is, in words.

    Attributes
    ----------
    first_episode, first_age : ``[N]``, where the environments stood before the fragment.
    """

    stream: Stream
    fragment: Fragment
    episodes: Sequence[tuple[int, float, int]]
    first_episode: Array
    first_age: Array

    def observation(self, row: int, env: int) -> str:
        """Of a row of an observation's column."""
        steps = len(self.fragment["reward"])
        taken = max(0, row + 1 - (len(self.fragment[self.stream.spec.observation[0].name]) - steps))
        return self._after(taken, taken, env)

    def reward(self, step: int, env: int) -> str:
        """Of a row of a column of steps."""
        return self._after(step + 1, step, env)

    def final(self, row: int) -> str:
        """Of a row of a column of last observations."""
        env, _, length = self.episodes[row]
        return self._said(env, sum(other == env for other, _, _ in self.episodes[:row]), length)

    def _after(self, taken: int, before: int, env: int) -> str:
        """After some steps of the fragment, in the episode that went on after those before."""
        ended = self.fragment["terminated"][:before, env] | self.fragment["truncated"][:before, env]
        ends = np.flatnonzero(ended)
        return self._said(env, len(ends), taken - (int(ends[-1]) + 1 if len(ends) else -int(self.first_age[env])))

    def _said(self, env: int, since: int, step: int) -> str:
        stream, episode = self.stream, int(self.first_episode[env]) + since
        seed = seeding.environment_seed(stream.seed, stream.index, stream.first + env, episode)
        called = stream._called(env)
        return f"environment {stream.first + env} ({called}), episode {episode}, step {step}, reset seed {seed}"


def _outside(name: str, value: Any, element: tuple[int, ...], low: Array, high: Array, when: str) -> str:
    return (
        f"{name} is {value!r}{f' at {list(element)}' if element else ''}, outside of [{low[element].item()!r}, "
        f"{high[element].item()!r}] that its space says: {when}"
    )


def _excludes(space: gymnasium.spaces.Box) -> bool:
    """Whether the bounds of a space leave out numbers that its dtype has."""
    kind = np.dtype(space.dtype)
    least, most = (-np.inf, np.inf) if kind.kind == "f" else (0, 1)
    if kind.kind in "iu":
        limits = np.iinfo(kind.name)
        least, most = limits.min, limits.max
    return bool((space.low > least).any() or (space.high < most).any())


def _shown(value: Array, other: Array) -> str:
    """The value; of an array the first element in which it differs from another."""
    if value.ndim == 0 or value.shape != other.shape:
        return repr(value.tolist())
    place = np.argwhere((value != other) & ~((value != value) & (other != other)))
    first = tuple(int(i) for i in place[0]) if len(place) else (0,) * value.ndim
    return f"{value[first].item()!r} at {list(first)}"


def unstacked(observation: Mapping[str, Array], frames: int) -> Mapping[str, Array]:
    """Observations as networks see them: with an axis for K ``frames`` only where K > 1. The memory is the same."""
    if frames > 1:
        return observation
    return {name: stack[:, 0] for name, stack in observation.items()}
