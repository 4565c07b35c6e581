"""What environments return is stored unchanged, or refused by environment, seed, step and column."""

from __future__ import annotations

import warnings
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from daskrl import seeding
from daskrl.envs.spaces import Leaf, spec_of
from daskrl.envs.stream import Stream
from daskrl.envs.values import RefusedError, as_ending, as_reward, as_stored
from daskrl.errors import EnvironmentRaisedError, NonFiniteError
from daskrl.tasks.playing import play_steps


def leaf(kind: str, dtype: str, shape: tuple[int, ...] = (), sizes=(), start=()) -> Leaf:
    return Leaf("observation", kind, shape, dtype, sizes, start)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", 300), ("uint8", -1), ("uint8", 0.9), ("uint8", float("nan")), ("uint8", float("inf")),
        ("uint8", 256.0),
        ("int8", np.uint8(200)), ("uint8", np.int8(-1)), ("uint64", -1), ("int64", 2**63), ("int64", 2**70),
        ("int64", 1e20),
        ("bool", 2), ("bool", -1), ("bool", 0.5), ("bool", float("nan")),
        ("float32", 2**24 + 1), ("float64", 2**53 + 1), ("float32", 1j), ("float32", None), ("float32", "1"),
        ("uint8", [1]), ("float32", {"a": 1}),
    ],
)  # fmt: skip
def test_what_a_dtype_cannot_hold_without_change_is_refused(dtype: str, value: object) -> None:
    with pytest.raises(RefusedError, match="observation"):
        as_stored(leaf("box", dtype), value)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", 255), ("uint8", 3.0), ("uint8", True), ("uint8", np.int64(0)), ("int8", -128.0),
        ("int64", np.uint8(7)),
        ("int64", -(2**63)), ("uint64", 2**64 - 1), ("bool", 1), ("bool", 0.0), ("bool", np.int8(1)),
        ("float32", 2**24), ("float32", True), ("float64", 2**53), ("float32", np.float16(0.1)),
    ],
)  # fmt: skip
def test_what_a_dtype_holds_is_stored_as_it_is(dtype: str, value: object) -> None:
    stored = as_stored(leaf("box", dtype), value)
    assert stored.dtype == np.dtype(dtype)
    assert stored.item() == value


def test_floating_point_numbers_are_rounded_to_the_dtype_of_the_space() -> None:
    assert as_stored(leaf("box", "float32"), 0.1).item() == np.float32(0.1)


@pytest.mark.parametrize("value", [5, -1, 300, 2.5, np.int8(-1), np.uint8(5), float("nan")])
def test_a_value_that_a_discrete_space_does_not_have_is_refused(value: object) -> None:
    with pytest.raises(RefusedError, match="observation"):
        as_stored(leaf("discrete", "uint8", (), (5,), (0,)), value)


def test_a_discrete_space_has_the_values_from_its_start() -> None:
    from_three = leaf("discrete", "uint8", (), (2,), (3,))
    assert [as_stored(from_three, value).item() for value in (3, 4)] == [3, 4]
    for value in (2, 5):
        with pytest.raises(RefusedError, match=f"observation is {value}, its space has the values 3 to 4"):
            as_stored(from_three, value)
    below_zero = leaf("discrete", "int64", (), (4,), (-2,))
    assert as_stored(below_zero, np.int32(-2)).item() == -2


def test_a_value_that_a_multi_discrete_space_does_not_have_is_refused_with_its_place() -> None:
    several = leaf("multi_discrete", "int64", (2, 2), (2, 3, 4, 5), (0, 0, 0, 1))
    assert as_stored(several, [[1, 2], [3, 5]]).tolist() == [[1, 2], [3, 5]]
    with pytest.raises(RefusedError, match=r"observation is 4 at \[1, 0\], its space has the values 0 to 3"):
        as_stored(several, np.array([[1, 2], [4, 5]]))
    with pytest.raises(RefusedError, match=r"observation is 0 at \[1, 1\], its space has the values 1 to 5"):
        as_stored(several, np.array([[1, 2], [3, 0]]))


def test_a_reward_is_one_real_number() -> None:
    given = (1, True, np.float32(0.5), np.int64(-3), np.array(2.0), np.array([4.0]))
    assert [as_reward(value) for value in given] == [1.0, 1.0, 0.5, -3.0, 2.0, 4.0]
    for value in (None, 1j, np.complex64(1), "1.5", [1.0, 2.0], np.zeros(2), {}):
        with pytest.raises(RefusedError, match="reward is"):
            as_reward(value)


def test_an_ending_is_true_or_false() -> None:
    given = (True, False, np.True_, 0, 1, np.array(True), np.array([0]), None)
    assert [as_ending("terminated", value) for value in given] == [True, False, True, False, True, True, False, False]
    for value in (2, float("nan"), "no", [True, False]):
        with pytest.raises(RefusedError, match="terminated is"):
            as_ending("terminated", value)


class Says(gymnasium.Env):
    """Returns what it is told: ``first`` on reset, then ``then`` at each step."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space, first: object, then: object, reward: object = 0.0) -> None:
        self.observation_space, self.first, self.then, self.reward = space, first, then, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.first, {}

    def step(self, action):
        return self.then, self.reward, False, False, {}


def stream_of(factory, count: int = 2, frame_stack: int = 1) -> Stream:
    probe = factory()
    spec = spec_of(probe.observation_space, probe.action_space)
    return Stream.make(factory, spec, seed=1, index=3, count=count, frame_stack=frame_stack)


def zeros(observation, state, t):
    return np.zeros(len(next(iter(observation.values()))), np.int64), {}


BYTES = spaces.Box(0, 255, (2,), np.uint8)


@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize("of", [None, "dict", "tuple"])
def test_reset_step_and_rollout_refuse_the_same_values_with_environment_seed_step_and_column(of, frame_stack) -> None:
    good, bad = np.array([1, 2]), np.array([1, 300])
    space: spaces.Space = BYTES
    column = "observation"
    if of == "dict":
        space, column = spaces.Dict({"x": spaces.Dict({"y": BYTES})}), "observation.x.y"
        good, bad = {"x": {"y": good}}, {"x": {"y": bad}}  # type: ignore[assignment]
    if of == "tuple":
        space, column = spaces.Tuple((spaces.Discrete(2), BYTES)), "observation.1"
        good, bad = (1, good), (1, bad)  # type: ignore[assignment]
    says = rf"{column} is int64, its space says uint8, which cannot hold 300 at \[1\]"
    where = r"environment 0 \(Says\), episode 0, step 0, reset seed \d+"
    with pytest.raises(EnvironmentRaisedError, match=f"returned in reset .*{says}\n.*{where}"):
        stream_of(lambda: Says(space, bad, good), frame_stack=frame_stack)
    for act in (lambda s: s.step(0, 0), lambda s: s.rollout(zeros, 4)):
        with pytest.raises(EnvironmentRaisedError, match=f"returned in step .*{says}\n.*{where}"):
            act(stream_of(lambda: Says(space, good, bad), frame_stack=frame_stack))


def test_a_part_of_an_observation_that_is_missing_is_named() -> None:
    space = spaces.Dict({"x": BYTES, "y": BYTES})
    with pytest.raises(EnvironmentRaisedError, match=r"observation\.y is missing"):
        stream_of(lambda: Says(space, {"x": np.zeros(2)}, None))


def test_a_discrete_observation_out_of_range_is_an_error_before_any_policy_sees_it() -> None:
    with pytest.raises(EnvironmentRaisedError, match=r"observation is 5, its space has the values 0 to 4\n.*\(Says\)"):
        stream_of(lambda: Says(spaces.Discrete(5), 4, 5)).rollout(zeros, 4)


@pytest.mark.parametrize("reward", [None, 1j, "2", [1.0, 2.0]])
def test_a_reward_that_is_no_number_is_refused_wherever_environments_are_stepped(reward) -> None:
    good = np.zeros(2, np.uint8)
    for act in (lambda s: s.step(0, 0), lambda s: s.rollout(zeros, 4)):
        with pytest.raises(EnvironmentRaisedError, match=r"reward is .*expected one real number"):
            act(stream_of(lambda: Says(BYTES, good, good, reward)))


@pytest.mark.parametrize(("dtype", "value"), [("float16", 70000.0), ("float16", np.float32(1e6)), ("float32", 1e300)])
def test_a_floating_point_number_too_large_for_the_dtype_is_refused_with_its_place(dtype: str, value: float) -> None:
    space = spaces.Box(-np.inf, np.inf, (2,), dtype)  # type: ignore[call-overload]
    place = r"which cannot hold .* at \[1\]\n.*environment 0 \(Says\), episode 0, step 0, reset seed \d+"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EnvironmentRaisedError, match=place):
            stream_of(lambda: Says(space, np.zeros(2), np.array([0, value]))).rollout(zeros, 4)


class NotFinite(gymnasium.Env):
    """Episodes of five steps; at the third of its second episode a column is not finite."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, column: str) -> None:
        self.column, self.episode = column, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.seed, self.count = self.episode + 1, seed, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.count += 1
        last = 5 if self.column == "final_observation" else 3
        bad = np.nan if (self.episode, self.count) == (1, last) else 0.0
        observed = 0.0 if self.column == "reward" else bad
        reward = bad if self.column == "reward" else 0.0
        return np.array([0, observed], np.float32), reward, self.count == 5, False, {}


@pytest.mark.parametrize("frame_stack", [1, 3])
@pytest.mark.parametrize(("column", "step"), [("observation", 3), ("final_observation", 5), ("reward", 3)])
def test_what_is_not_finite_is_named_by_environment_episode_step_and_seed(column, step, frame_stack) -> None:
    stream = stream_of(lambda: NotFinite(column), frame_stack=frame_stack)
    with pytest.raises(NonFiniteError) as caught:
        stream.rollout(zeros, 16)
    seed = seeding.environment_seed(1, 3, 0, 1)
    assert str(caught.value).startswith(f"{column} of stream 3 holds a value that is NaN or infinite")
    assert f"environment 0 (NotFinite), episode 1, step {step}, reset seed {seed}." in str(caught.value)


def test_an_evaluation_names_the_seed_that_it_reset_with() -> None:
    seeds = []

    class Breaks(Says):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed)

    spec = spec_of(BYTES, Says.action_space)
    episodes = play_steps(
        lambda: Breaks(BYTES, np.zeros(2, np.uint8), np.array([0, 300])), spec,
        lambda observation, state: np.zeros(1, np.int64), episodes=1, seed=1, frame_stack=1,
    )  # fmt: skip
    with pytest.raises(EnvironmentRaisedError) as caught:
        list(episodes)
    assert str(caught.value).endswith(f"reset seed {seeds[-1]}")


@pytest.mark.parametrize(("column", "reward", "first"), [("reward", np.inf, 0.0), ("observation", 0.0, np.nan)])
def test_an_evaluation_does_not_go_on_with_what_is_not_finite(column, reward, first) -> None:
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def make():
        return Says(space, np.zeros(1, np.float32), np.array([first], np.float32), reward)

    spec = spec_of(space, Says.action_space)
    episodes = play_steps(
        make, spec, lambda observation, state: np.zeros(2, np.int64), episodes=2, seed=1, frame_stack=1
    )
    with pytest.raises(NonFiniteError, match=rf"{column} holds a value that is NaN or infinite(.|\n)*evaluation"):
        list(episodes)


BUFFER = np.zeros(2, np.float32)
BUFFERS = {"array": lambda: BUFFER, "views": lambda: BUFFER[:], "parts": lambda: BUFFER[:2], "list": lambda: LIST}  # type: ignore[has-type]
LIST = [0.0, 0.0]


class Counts(gymnasium.Env):
    """Observes (its number, steps so far) in an array that all of its kind write to."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    made, how = 0, "array"

    def __init__(self) -> None:
        self.number = Counts.made
        Counts.made += 1

    def _observation(self):
        buffer = BUFFERS[self.how]()
        buffer[0], buffer[1] = self.number, self.count
        return buffer

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        return self._observation(), 0.0, self.count == 3, False, {}


class CountsInDict(Counts):
    observation_space = spaces.Dict({"a": Counts.observation_space})  # type: ignore[assignment]
    shared: ClassVar[dict] = {}

    def _observation(self):
        self.shared["a"] = super()._observation()
        return self.shared


@pytest.mark.parametrize("frame_stack", [1, 2])
@pytest.mark.parametrize("how", [*BUFFERS, "dict"])
def test_each_environment_keeps_its_own_numbers_where_all_return_the_same_array(how: str, frame_stack: int) -> None:
    kind = CountsInDict if how == "dict" else type("Counts", (Counts,), {"how": how})
    stream = stream_of(kind, count=3, frame_stack=frame_stack)
    numbers = [env.number for env in stream.envs]  # type: ignore[attr-defined]
    name = "observation.a" if how == "dict" else "observation"
    fragment, _ = stream.rollout(zeros, 8)
    stored = fragment[name][frame_stack - 1 :]
    counts = [0, 1, 2, 0, 1, 2, 0, 1, 2]  # episodes of three steps
    np.testing.assert_array_equal(stored, [[[number, count] for number in numbers] for count in counts])
    last = fragment[f"final_{name}"][:6]
    np.testing.assert_array_equal(last, [[number, 3] for _ in range(2) for number in numbers])


class Clips(gymnasium.Env):
    """Changes the action it was given, and keeps it to change it once more at the next step."""

    action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.kept = np.zeros(2, np.float32)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        np.clip(action, -1, 1, out=action)
        self.kept[:] = 77
        self.kept = action
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_an_action_that_an_environment_changes_is_stored_as_it_was_chosen() -> None:
    chosen = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    fragment, _ = stream_of(Clips, count=3).rollout(lambda observation, state, t: (chosen[t], {}), 2)
    np.testing.assert_array_equal(fragment["action"], np.arange(12).reshape(2, 3, 2))
    np.testing.assert_array_equal(chosen, np.arange(12).reshape(2, 3, 2))
