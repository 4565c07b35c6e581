"""Every space as named columns, stored and read back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from gymnasium import spaces

import daskrl
from daskrl.envs.spaces import Leaf, SpaceSpec, spec_of, value_at
from daskrl.envs.stream import Stream
from daskrl.errors import UnsupportedSpaceError
from tests.oracles import Sampled, leaf, play, stored_transitions

NESTED = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (9, 10, 3), np.uint8),
        "arm": spaces.Tuple((spaces.Box(-1, 1, (3,), np.float64), spaces.Discrete(4, start=-2))),
        "flags": spaces.MultiBinary([2, 2]),
        "inner": spaces.Dict({"dial": spaces.MultiDiscrete([[2, 3], [4, 5]])}),
    }
)
OBSERVATIONS = {
    "box float32": spaces.Box(-1, 1, (4,), np.float32),
    "box float64": spaces.Box(-1, 1, (2, 3), np.float64),
    "box without axes": spaces.Box(0, 1, (), np.float32),
    "box uint16": spaces.Box(0, 60_000, (3,), np.uint16),
    "box int8": spaces.Box(-100, 100, (3,), np.int8),
    "image": spaces.Box(0, 255, (10, 9, 3), np.uint8),
    "discrete": spaces.Discrete(7),
    "discrete from -3": spaces.Discrete(7, start=-3),
    "discrete of 1000": spaces.Discrete(1000),
    "multi-discrete": spaces.MultiDiscrete([3, 4, 5]),
    "multi-discrete from 2": spaces.MultiDiscrete([3, 4], start=[2, 5]),
    "multi-binary": spaces.MultiBinary(5),
    "dict": spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32))),
    "nested": NESTED,
}
ALGORITHM = daskrl.DQN(hidden=(8,), learning_starts=0, batch_size=8, replay_ratio=1, window=1000, epsilon_steps=0)


def run(directory: Path, observation: spaces.Space, action: spaces.Space | None = None, frame_stack: int = 1):
    def make() -> Sampled:
        return Sampled(observation, action)

    made = daskrl.train(
        ALGORITHM, make, store=directory / "run", env_steps=60, seed=3, frame_stack=frame_stack,
        streams=2, envs_per_stream=2, fragment_steps=5, progress=False,
    )  # fmt: skip
    return made.wait().store


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_a_whole_run_in_a_space_is_read_back_bit_for_bit(name, tmp_path):
    store = run(tmp_path, OBSERVATIONS[name])
    group = zarr.open_group(store.root, mode="r")
    records = store.fragments()
    assert len(records) == 6
    assert store.summary()["learner_updates"] > 0
    for stream in range(2):
        mine = [record for record in records if record["stream"] == stream]
        fragments = [{column: group[column][record["slot"]] for column in store.columns} for record in mine]
        for env in range(2):
            actions = [int(a) for columns in fragments for a in columns["action"][:, env]]  # type: ignore[call-overload]
            happened = list(play(lambda: Sampled(OBSERVATIONS[name]), actions, seed=3, stream=stream, env=env))
            for part in store.spec.observation:
                stored = list(stored_transitions(fragments, env, part.name))
                assert len(stored) == len(happened) == 15
                for (seen, terminated, truncated, following), expected in zip(stored, happened, strict=True):
                    before, after = (leaf(v, part.path) for v in (expected.observation, expected.next_observation))
                    assert seen[0].tobytes() == np.asarray(before).astype(part.dtype).tobytes()
                    assert following[0].tobytes() == np.asarray(after).astype(part.dtype).tobytes()
                    np.testing.assert_array_equal(seen[0], before)
                    assert (terminated, truncated) == (expected.terminated, expected.truncated)


@pytest.mark.parametrize("name", ["image", "nested", "discrete from -3"])
def test_a_run_with_frame_stacking_stores_each_frame_once(name, tmp_path):
    store = run(tmp_path, OBSERVATIONS[name], frame_stack=4)
    mine = [store.read(record) for record in store.fragments() if record["stream"] == 1]
    for part in store.spec.observation:
        assert store.columns[part.name].shape == (5 + 4, 2, *part.shape)
        actions = [int(a) for columns in mine for a in columns["action"][:, 0]]
        happened = list(play(lambda: Sampled(OBSERVATIONS[name]), actions, seed=3, stream=1, env=0))
        for (stack, *_, following), expected in zip(stored_transitions(mine, 0, part.name, 4), happened, strict=True):
            episode = [t for t in happened if t.episode == expected.episode and t.step <= expected.step]
            frames = [leaf(t.observation, part.path) for t in episode]
            padded = [*[frames[0]] * 3, *frames]
            np.testing.assert_array_equal(stack, padded[-4:])
            after = [*padded, leaf(expected.next_observation, part.path)]
            np.testing.assert_array_equal(following, after[-4:])


def test_a_nested_space_becomes_one_column_a_leaf():
    spec = spec_of(NESTED, spaces.Discrete(2))
    assert {part.name: (part.kind, part.shape, part.dtype) for part in spec.observation} == {
        "observation.arm.0": ("box", (3,), "float64"),
        "observation.arm.1": ("discrete", (), "int64"),
        "observation.camera": ("box", (9, 10, 3), "uint8"),
        "observation.flags": ("multi_binary", (2, 2), "bool"),
        "observation.inner.dial": ("multi_discrete", (2, 2), "int64"),
    }
    assert spec.action == (Leaf("action", "discrete", (), "uint8", (2,), (0,), ()),)


def test_a_value_is_taken_apart_by_the_paths_of_its_leaves():
    value = NESTED.sample()
    parts = {part.name: value_at(value, part) for part in spec_of(NESTED, spaces.Discrete(2)).observation}
    assert parts["observation.arm.1"] == value["arm"][1]
    assert parts["observation.inner.dial"] is value["inner"]["dial"]


def test_the_vector_a_network_sees_is_as_long_as_the_one_hot_values():
    spec = spec_of(NESTED, spaces.Discrete(2))
    sizes = {part.name: part.flat_size for part in spec.observation}
    assert sizes == {
        "observation.arm.0": 3,
        "observation.arm.1": 4,
        "observation.camera": 270,
        "observation.flags": 4,
        "observation.inner.dial": 2 + 3 + 4 + 5,
    }


def test_small_discrete_values_are_stored_in_a_byte_and_others_in_eight():
    def dtype(space):
        return spec_of(space, spaces.Discrete(2)).observation[0].dtype

    assert dtype(spaces.Discrete(256)) == "uint8"
    assert dtype(spaces.Discrete(200, start=56)) == "uint8"
    assert dtype(spaces.Discrete(257)) == "int64"
    assert dtype(spaces.Discrete(2, start=255)) == "int64"
    assert dtype(spaces.Discrete(2, start=-1)) == "int64"


def test_a_spec_survives_json():
    spec = spec_of(NESTED, spaces.MultiDiscrete([2, 3]))

    assert SpaceSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (spaces.Text(4), "observation: Text spaces are not supported"),
        (spaces.Sequence(spaces.Discrete(2)), "observation: Sequence spaces"),
        (spaces.Graph(spaces.Discrete(2), None), "observation: Graph spaces"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Text(3)})}), r"observation\.a\.b: Text"),
        (spaces.Dict({"a.b": spaces.Discrete(2)}), "without '.' and '/', got 'a.b'"),
        (spaces.Dict({"a/b": spaces.Discrete(2)}), "without '.' and '/', got 'a/b'"),
        (spaces.Dict({}), "no values"),
        (spaces.Tuple(()), "no values"),
        (spaces.Box(0, 1, (3, 0), np.float32), "no values"),
    ],
)
def test_a_space_that_cannot_be_stored_is_refused_with_the_name_of_its_leaf(space, says):
    with pytest.raises(UnsupportedSpaceError, match=says):
        spec_of(space, spaces.Discrete(2))


@pytest.mark.parametrize(
    "action",
    [
        spaces.Box(-1, 1, (2,), np.float32),
        spaces.MultiDiscrete([2, 3]),
        spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))),
    ],
)
def test_dqn_refuses_actions_it_cannot_choose_before_anything_is_made(action, tmp_path):
    with pytest.raises(UnsupportedSpaceError, match="DQN acts in a Discrete action space"):
        run(tmp_path, spaces.Discrete(3), action)
    assert not (tmp_path / "run").exists()


class Told(Sampled):
    """Keeps what it is told to do."""

    def __init__(self, *given):
        super().__init__(*given)
        self.told = []

    def step(self, action):
        self.told.append(action["a"] if isinstance(action, dict) else action)
        return super().step(action)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        ([0, 0], [1, np.inf], [[0, 0], [1, 5]]),
        ([-np.inf, 0], [np.inf, np.inf], [[-3, 0], [4, 5]]),
        ([-np.inf, -np.inf], [1, np.inf], [[-3, -2], [1, 5]]),
        ([-1, -1], [1, 1], [[-1, -1], [1, 1]]),
        ([-np.inf, -np.inf], [np.inf, np.inf], [[-3, -2], [4, 5]]),
    ],
    ids=["bounded below, one above", "one bounded below", "one bounded above", "bounded", "unbounded"],
)
@pytest.mark.parametrize("nested", [False, True], ids=["box", "box in a dict"])
def test_actions_are_clipped_where_their_box_is_bounded_and_stored_as_they_are(low, high, told, nested):
    box = spaces.Box(np.float32(low), np.float32(high))
    observation, action = spaces.Discrete(3), spaces.Dict({"a": box}) if nested else box
    spec = spec_of(observation, action)
    chosen = np.float32([[[-3, -2]], [[4, 5]]])  # [T, N, 2]
    stream = Stream.make(lambda: Told(observation, action), spec, seed=0, index=0, count=1, frame_stack=1)
    fragment, _ = stream.rollout(lambda seen, state, t: (chosen[t], {}), 2)
    np.testing.assert_array_equal(stream.envs[0].told, told)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(fragment[spec.action[0].name], chosen)


def test_a_policy_of_unbounded_actions_never_leaves_a_box_that_is_bounded_on_one_side(tmp_path):
    """Its environment raises where an action is not in its space, so the runs would stop."""
    box = spaces.Box(np.float32([0, 0]), np.float32([1, np.inf]))
    for name, algorithm in (("ppo", daskrl.PPO(epochs=1, batch_size=16)), ("impala", daskrl.IMPALA())):
        store = daskrl.train(
            algorithm, lambda: Sampled(spaces.Discrete(3), box), store=tmp_path / name, env_steps=64, seed=3, streams=2,
            envs_per_stream=2, fragment_steps=8, progress=False,
        ).wait().store  # fmt: skip
        chosen = np.concatenate([store.read(record)["action"].reshape(-1, 2) for record in store.fragments()])
        assert (chosen < 0).any(axis=0).all()
        assert (chosen[:, 0] > 1).any()


def test_discrete_actions_with_a_start_go_through_a_whole_run(tmp_path):
    store = run(tmp_path, spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(3, start=5))
    taken = np.concatenate([store.read(record)["action"].ravel() for record in store.fragments()])
    assert set(taken.tolist()) <= {5, 6, 7}


def test_a_discrete_action_inside_a_dict_and_a_tuple_reaches_the_environment_as_it_wants_it(tmp_path):
    action = spaces.Dict({"a": spaces.Tuple((spaces.Discrete(3, start=1),))})
    store = run(tmp_path, spaces.Discrete(4), action)
    taken = np.concatenate([store.read(record)["action.a.0"].ravel() for record in store.fragments()])
    assert set(taken.tolist()) <= {1, 2, 3}
