"""A stream of environments: every stored row is a transition that happened, from a derived seed."""

from __future__ import annotations

import itertools

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from daskrl import seeding
from daskrl.envs import source as sources
from daskrl.envs.spaces import spec_of
from daskrl.envs.stream import Stream
from daskrl.errors import (
    ConfigError,
    EnvironmentRaisedError,
    NondeterministicError,
    NonFiniteError,
    UnknownEnvironmentError,
    UnsupportedSpaceError,
)
from tests.oracles import Scripted, Transition, is_terminal, length, play, reset_seed, stored_transitions

SEED, STREAM, COUNT, STEPS = 5, 2, 3, 7


def make_stream(factory=Scripted, *, count=COUNT, frame_stack=1, episode=None):
    probe = factory()
    spec = spec_of(probe.observation_space, probe.action_space)
    return Stream.make(factory, spec, seed=SEED, index=STREAM, count=count, frame_stack=frame_stack, episode=episode)


def counting_policy(observation, state, t):
    count = len(next(iter(observation.values())))
    return (np.arange(count) + t) % 3, {}


def roll(stream, fragments, policy=counting_policy, steps=STEPS):
    """Some fragments in a row: the columns and the finished episodes of each."""
    columns, episodes = zip(*(stream.rollout(policy, steps) for _ in range(fragments)), strict=True)
    return list(columns), list(episodes)


def naive(factory, columns, env) -> list[Transition]:
    actions = [int(a) for fragment in columns for a in fragment["action"][:, env]]
    return list(play(factory, actions, seed=SEED, stream=STREAM, env=env))


def test_the_reset_seed_of_an_episode_is_the_one_of_format_md():
    for place in ((0, 0, 0, 0), (7, 3, 1, 12), (7, 3, 1, 63), (7, 3, 1, 64), (2**40, 0, 5, 1000)):
        assert seeding.environment_seed(*place) == reset_seed(*place)
        assert 0 <= seeding.environment_seed(*place) < 2**31


def test_the_reset_seed_of_an_episode_never_changes_between_versions():
    assert [seeding.environment_seed(0, 0, 0, episode) for episode in (0, 1, 64)] == [1878776328, 1009188246, 336614359]


def test_two_purposes_at_the_same_place_draw_different_numbers():
    purposes = ("environment", "act", "learn", "initialise", "evaluate", "evaluate_environment", "statistics")
    assert len({seeding.generator(0, purpose, 1, 2).random() for purpose in purposes}) == len(purposes)


def test_environments_are_reset_with_the_derived_seeds_in_order():
    stream = make_stream()
    roll(stream, 4)
    for env, made in enumerate(stream.envs):
        assert made.seeds == [reset_seed(SEED, STREAM, env, episode) for episode in range(len(made.seeds))]
        assert len(made.seeds) > 5


def test_every_stored_row_is_a_transition_that_happened():
    columns, _ = roll(make_stream(), 4)
    endings = set()
    for env in range(COUNT):
        happened = naive(Scripted, columns, env)
        stored = list(stored_transitions(columns, env, "observation"))
        assert len(stored) == len(happened) == 4 * STEPS
        for (seen, terminated, truncated, following), expected in zip(stored, happened, strict=True):
            np.testing.assert_array_equal(seen[0], expected.observation)
            np.testing.assert_array_equal(following[0], expected.next_observation)
            assert (terminated, truncated) == (expected.terminated, expected.truncated)
        rewards = np.concatenate([fragment["reward"][:, env] for fragment in columns])
        np.testing.assert_array_equal(rewards, np.float32([t.reward for t in happened]))
        endings |= {(t.terminated, t.truncated) for t in happened}
    assert endings == {(False, False), (True, False), (False, True)}


def test_a_fragment_begins_with_the_observation_the_one_before_ended_with():
    columns, _ = roll(make_stream(), 3)
    for before, after in itertools.pairwise(columns):
        np.testing.assert_array_equal(before["observation"][-1], after["observation"][0])


def test_final_observations_are_the_last_ones_ordered_by_time_then_environment():
    columns, _ = roll(make_stream(), 3)
    happened = [naive(Scripted, columns, env) for env in range(COUNT)]
    for number, fragment in enumerate(columns):
        expected = [
            happened[env][number * STEPS + t].next_observation
            for t in range(STEPS)
            for env in range(COUNT)
            if fragment["terminated"][t, env] or fragment["truncated"][t, env]
        ]
        final = fragment["final_observation"]
        np.testing.assert_array_equal(final[: len(expected)], np.array(expected))
        assert not final[len(expected) :].any()
        assert final.shape == (STEPS * COUNT, 2)


def test_finished_episodes_have_their_whole_return_and_length_across_fragments():
    columns, episodes = roll(make_stream(), 6, steps=2)
    for env in range(COUNT):
        found = [(value, steps) for fragment in episodes for which, value, steps in fragment if which == env]
        happened = naive(Scripted, columns, env)
        expected = []
        for episode in range(happened[-1].episode + 1):
            mine = [t for t in happened if t.episode == episode]
            if mine[-1].terminated or mine[-1].truncated:
                expected.append((sum(t.reward for t in mine), len(mine)))
        assert found == expected
        assert [steps for _, steps in found] == [length(reset_seed(SEED, STREAM, env, e)) for e in range(len(found))]


def test_a_scripted_episode_ends_as_its_seed_says():
    columns, _ = roll(make_stream(), 4)
    for env in range(COUNT):
        ends = [(t.episode, t.terminated) for t in naive(Scripted, columns, env) if t.terminated or t.truncated]
        assert ends == [(e, is_terminal(reset_seed(SEED, STREAM, env, e))) for e, _ in ends]


class Frames(gymnasium.Env):
    """9 x 8 bytes that count: frame ``(seed + step) % 251``; episodes of 2 to 6 steps."""

    observation_space = spaces.Box(0, 255, (9, 8), np.uint8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self.seed, self.step_ = seed, 0
        return self._frame(), {}

    def step(self, action):
        self.step_ += 1
        ended = self.step_ == 2 + self.seed % 5
        return self._frame(), 1.0, ended and self.seed % 2 == 0, ended and self.seed % 2 == 1, {}

    def _frame(self):
        return np.full((9, 8), (self.seed + 7 * self.step_) % 251, np.uint8)


def test_stacks_rebuilt_from_frames_stored_once_are_the_stacks_the_policy_saw():
    seen = []

    def watching(observation, state, t):
        seen.append(observation["observation"].copy())
        return counting_policy(observation, state, t)

    columns, _ = roll(make_stream(Frames, frame_stack=4), 5, watching)
    assert columns[0]["observation"].shape == (STEPS + 4, COUNT, 9, 8)
    for env in range(COUNT):
        rebuilt = [stack for stack, *_ in stored_transitions(columns, env, "observation", 4)]
        np.testing.assert_array_equal(rebuilt, [stack[env] for stack in seen])


def test_an_episode_that_begins_within_a_fragment_sees_its_first_frame_repeated():
    columns, _ = roll(make_stream(Frames, frame_stack=4), 5)
    checked = 0
    for env in range(COUNT):
        began = False
        for stack, terminated, truncated, following in stored_transitions(columns, env, "observation", 4):
            if began:
                assert all((frame == stack[-1]).all() for frame in stack)
                checked += 1
            began = terminated or truncated
            if not began:
                np.testing.assert_array_equal(following[:-1], stack[1:])
    assert checked > 10


def retrace(stream, columns, ages):
    """Step each environment through the newest of its steps: those of its current episode."""
    for i, fragment in enumerate(columns):
        for env, age in enumerate(ages):
            start = (len(columns) - i) * STEPS - int(age)
            if start <= STEPS:
                stream.retrace(env, fragment, max(0, start), "the test")


def test_a_stream_rebuilt_by_recorded_actions_stands_where_the_first_one_stood():
    first = make_stream(Frames, frame_stack=4)
    columns, _ = roll(first, 2)
    again = make_stream(Frames, frame_stack=4, episode=first.episode.tolist())
    retrace(again, columns, first.age)
    for name in first.observation:
        np.testing.assert_array_equal(first.observation[name], again.observation[name])
    np.testing.assert_array_equal(first.age, again.age)
    np.testing.assert_array_equal(first.episode_return, again.episode_return)


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_an_environment_stepped_again_by_itself_gives_all_that_is_stored_of_it_endings_included(frame_stack):
    columns, _ = roll(make_stream(Frames, frame_stack=frame_stack), 4)
    for env in range(COUNT):
        alone = Stream.make(
            Frames, spec_of(Frames.observation_space, Frames.action_space), seed=SEED, index=STREAM, count=1,
            frame_stack=frame_stack, first=env,
        )  # fmt: skip
        for fragment in columns:
            alone.retrace(0, fragment, 0, "the test")
        assert alone.episode[0] > 1


@pytest.mark.parametrize("column", ["observation", "final_observation", "reward", "terminated", "truncated"])
def test_whatever_column_is_not_as_stored_is_named_with_step_and_episode(column):
    (fragment,), _ = roll(make_stream(count=1), 1)
    end = length(reset_seed(SEED, STREAM, 0, 0))
    assert end <= STEPS
    changed = {name: values.copy() for name, values in fragment.items()}
    row = {"observation": (2, 0), "final_observation": (0,), "reward": (1, 0)}.get(column, (end - 1, 0))
    changed[column][row] = ~changed[column][row] if changed[column].dtype == bool else changed[column][row] + 1
    step = end if column in ("final_observation", "terminated", "truncated") else 2
    with pytest.raises(
        NondeterministicError, match=rf"the test: {column} .*differs at step {step} of episode 0: .*stored"
    ):
        make_stream(count=1).retrace(0, changed, 0, "the test")


class StartsAtTwo(Scripted):
    """Takes actions 2, 3 and 4."""

    action_space = spaces.Discrete(3, start=2)

    def step(self, action):
        assert isinstance(action, np.int64)
        assert action in (2, 3, 4)
        return super().step(action)


def test_a_discrete_space_with_a_start_is_acted_in_and_stored_as_the_environment_counts():
    columns, _ = roll(make_stream(StartsAtTwo, count=1), 1)
    assert columns[0]["action"].dtype == np.uint8
    assert columns[0]["action"][:, 0].tolist() == [2, 3, 4, 2, 3, 4, 2]


class Bad(Scripted):
    """Goes wrong in a way of its own at its fourth observation."""

    wrong = "reward"

    def __init__(self):
        super().__init__()
        self.made = 0

    def step(self, action):
        value, reward, terminated, truncated, info = super().step(action)
        self.made += 1
        if self.made == 4:
            if self.wrong == "raises":
                raise ZeroDivisionError("by the test")
            if self.wrong == "reward":
                reward = float("nan")
            if self.wrong == "observation":
                value = np.float32([np.inf, 0])  # type: ignore[assignment]
            if self.wrong == "shape":
                value = np.zeros(3, np.float32)
        return value, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ("raises", EnvironmentRaisedError, "ZeroDivisionError in step: by the test"),
        ("reward", NonFiniteError, r"reward .* first at \(3, 0\): nan"),
        ("observation", NonFiniteError, r"observation .*inf"),
        ("shape", EnvironmentRaisedError, r"observation has shape \(3,\), expected \(2,\)"),
    ],
)
def test_an_environment_that_goes_wrong_is_named_with_what_it_did(wrong, error, says):
    stream = make_stream(type("Wrong", (Bad,), {"wrong": wrong}), count=1)
    with pytest.raises(error, match=says) as caught:
        stream.rollout(counting_policy, STEPS)
    assert f"stream {STREAM}" in str(caught.value)
    if error is EnvironmentRaisedError:
        assert f"reset seed {stream.seed_of(0)}" in str(caught.value)


def test_numbers_that_the_declared_space_cannot_hold_are_refused_not_cut_off():
    class Mistaken(Frames):
        def _frame(self):
            return super()._frame() / 255

    with pytest.raises(EnvironmentRaisedError, match="observation is float64, its space says uint8"):
        make_stream(Mistaken)


def test_an_environment_that_raises_when_it_is_made_is_named():
    def broken():
        raise OSError("no simulator here")

    with pytest.raises(ConfigError, match="OSError when it was made: no simulator here"):
        sources.source(broken)


def test_unknown_environments_are_refused_by_name():
    with pytest.raises(UnknownEnvironmentError, match="NoSuchThing-v0"):
        sources.source("NoSuchThing-v0")
    with pytest.raises(UnknownEnvironmentError, match="no_such_module"):
        sources.source("no_such_module:Thing-v0")
    with pytest.raises(UnknownEnvironmentError, match=r"must return a gymnasium\.Env, returned int"):
        sources.source(lambda: 3)  # type: ignore[return-value]
    with pytest.raises(ConfigError, match="bind them"):
        sources.source(Scripted, size=3)
    with pytest.raises(ConfigError, match="expected a Gymnasium id"):
        sources.source(7)  # type: ignore[arg-type]


def test_an_unsupported_space_is_refused_when_the_environment_is_looked_at():
    class Texts(Scripted):
        observation_space = spaces.Text(5)  # type: ignore[assignment]

    with pytest.raises(UnsupportedSpaceError, match="Text spaces are not supported"):
        sources.source(Texts)


def test_a_callable_is_known_by_its_name_and_the_hash_of_its_source():
    def other() -> gymnasium.Env:
        return Scripted()

    first, second = sources.source(Scripted), sources.source(other)
    assert first.identity["kind"] == "callable"
    assert first.name == "Scripted"
    assert first.identity["source_sha256"] == sources.source_sha256(Scripted)
    assert first.identity["source_sha256"] != second.identity["source_sha256"]
