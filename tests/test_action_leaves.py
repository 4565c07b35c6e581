"""Actions of several leaves, from the policy to the environment, the store and the window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from distributed import Client
from gymnasium import spaces
from torch import nn

import daskrl
from daskrl import clusters
from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.replay import ReplayLearner, ReplaySettings
from daskrl.algorithms.torch_learner import adam
from daskrl.config import Schedule
from daskrl.envs.spaces import SpaceSpec, spec_of
from daskrl.envs.stream import Stream
from daskrl.errors import ConfigError, NondeterministicError, NonFiniteError, UnsupportedSpaceError
from daskrl.replay.window import Window, needed_bytes
from daskrl.store.columns import columns, read_fragment, write_fragment
from daskrl.store.places import place
from daskrl.testing import AlgorithmTests
from tests.environments import Picky
from tests.promise import Once, kill_self

SEEN = spaces.Box(-np.inf, np.inf, (2,), np.float32)
NESTED = spaces.Dict(
    {
        "move": spaces.Tuple((spaces.Discrete(3, start=-1), spaces.Box(-1, 1, (2,), np.float32))),
        "keys": spaces.Dict({"held": spaces.MultiBinary(3), "dial": spaces.MultiDiscrete([2, 4], start=[0, 5])}),
        "wait": spaces.Discrete(4, start=2),
        "push": spaces.Box(0, np.inf, (), np.float64),
    }
)
NAMES = ["action.keys.dial", "action.keys.held", "action.move.0", "action.move.1", "action.push", "action.wait"]
SCHEDULE = Schedule(streams=2, envs_per_stream=3, fragment_steps=5)


class Recording(Picky):
    """Keeps what it is given; the observation is a sum over all leaves."""

    def __init__(self, action: spaces.Space[Any] = NESTED) -> None:
        super().__init__(action)
        self.given: list[Any] = []

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        _, _, terminated, truncated, info = super().step(action)
        self.given.append(action)
        flat = float(sum(np.sum(value) for value in flattened(action)))
        return np.array([flat, self.count], np.float32), flat, terminated, truncated, info


def flattened(value: Any) -> list[Any]:
    if isinstance(value, dict | tuple):
        return [leaf for part in (value.values() if isinstance(value, dict) else value) for leaf in flattened(part)]
    return [value]


def chosen(random: np.random.Generator, count: int = 3) -> dict[str, Any]:
    """What an algorithm might choose: a Discrete counted from 0, a Box beyond its bounds now and then."""
    return {
        "action.keys.dial": random.integers([0, 5], [2, 9], (count, 2)),
        "action.keys.held": random.integers(0, 2, (count, 3)),
        "action.move.0": random.integers(0, 3, count),
        "action.move.1": random.normal(size=(count, 2)),
        "action.push": random.normal(size=count),
        "action.wait": random.integers(0, 4, count),
    }


def naive_taken(action: Mapping[str, Any], env: int) -> Any:
    """The nested action of one environment, written out by hand."""
    part = {name: values[env] for name, values in action.items()}
    return {
        "keys": {
            "dial": np.asarray(part["action.keys.dial"], np.int64),
            "held": np.asarray(part["action.keys.held"], np.int8),
        },
        "move": (np.int64(part["action.move.0"] - 1), np.clip(part["action.move.1"].astype(np.float32), -1, 1)),
        "push": np.maximum(part["action.push"], 0),
        "wait": np.int64(part["action.wait"] + 2),
    }


def stream(spec: SpaceSpec, count: int = 3, **given: Any) -> Stream:
    return Stream.make(Recording, spec, seed=0, index=0, count=count, frame_stack=1, **given)


def played(seed: int = 0) -> tuple[Stream, dict[str, Any], list[dict[str, Any]]]:
    """A stream that took five steps, their fragment, and what was chosen."""
    random = np.random.default_rng(seed)
    acted = [chosen(random) for _ in range(5)]
    live = stream(spec_of(SEEN, NESTED))
    fragment, _ = live.rollout(lambda seen, state, t: (acted[t], {}), 5)
    return live, fragment, acted


def test_the_leaves_of_an_action_are_named_as_those_of_an_observation() -> None:
    assert [leaf.name for leaf in spec_of(SEEN, NESTED).action] == NAMES


def test_each_environment_is_given_the_nested_action_its_space_would_sample() -> None:
    live, _, acted = played()
    for env, taker in enumerate(live.envs):
        assert len(taker.given) == 5  # type: ignore[attr-defined]
        for t, action in enumerate(taker.given):  # type: ignore[attr-defined]
            wanted = naive_taken(acted[t], env)
            assert list(action) == list(wanted)
            for one, other in zip(flattened(action), flattened(wanted), strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_fragment_has_a_column_for_each_leaf_as_it_was_chosen() -> None:
    _, fragment, acted = played()
    layout = columns(spec_of(SEEN, NESTED), SCHEDULE, 1)
    assert sorted(name for name in fragment if name.startswith("action")) == NAMES
    start = {"action.move.0": -1, "action.wait": 2}
    for name in NAMES:
        stored = fragment[name]
        assert (stored.dtype.name, stored.shape) == (layout[name].dtype, layout[name].shape)
        wanted = np.stack([step[name] for step in acted]) + start.get(name, 0)
        np.testing.assert_array_equal(stored, wanted.astype(stored.dtype))


def test_a_fragment_is_read_as_it_was_written(tmp_path: Path) -> None:
    _, fragment, _ = played()
    layout, storage = columns(spec_of(SEEN, NESTED), SCHEDULE, 1), place(tmp_path)
    for name in layout:
        (tmp_path / name).mkdir()
    record: Any = {"slot": 3, "columns": write_fragment(storage, layout, 3, fragment)}
    back = read_fragment(storage, layout, record)
    assert {name: back[name].tobytes() for name in layout} == {name: fragment[name].tobytes() for name in layout}


@pytest.mark.parametrize("env", range(3))
def test_an_environment_stepped_through_the_stored_leaves_gets_the_same_actions(env: int) -> None:
    live, fragment, _ = played()
    alone = stream(spec_of(SEEN, NESTED), 1, first=env)
    alone.retrace(0, fragment, 0, "here")
    given, again = (made.given for made in (live.envs[env], alone.envs[0]))  # type: ignore[attr-defined]
    assert [[np.asarray(x).tobytes() for x in flattened(a)] for a in again] == [
        [np.asarray(x).tobytes() for x in flattened(a)] for a in given
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action.wait": None}, r"6 leaves.*'action\.wait'.*got \['action.keys.dial'.*'action.push'\]"),
        ({"action.jump": np.zeros(3)}, r"6 leaves.*got .*'action\.jump'"),
        (
            {"action.wait": np.zeros((3, 1), int)},
            r"action\.wait: expected integers \[3\] .* got int64\[3, 1\]",
        ),
        ({"action.wait": np.zeros(3)}, r"action\.wait: expected integers \[3\] from 0 to 3, got float64\[3\]"),
        ({"action.wait": np.array([0, 4, 0])}, r"action\.wait: .* from 0 to 3, got 4"),
        ({"action.keys.dial": np.full((3, 2), 1)}, r"action\.keys\.dial: .* from \[0, 5\] to \[1, 8\], got 1"),
        ({"action.push": [0.0, 0.0, 0.0]}, r"action\.push: expected floats \[3\], got list"),
    ],
)
@pytest.mark.parametrize("at", [0, 3])
def test_an_action_that_does_not_fit_is_refused_by_the_name_of_its_leaf(change: Any, said: str, at: int) -> None:
    def policy(seen: Any, state: Any, t: int) -> Any:
        action = chosen(np.random.default_rng(t)) | (change if t == at else {})
        return {name: values for name, values in action.items() if values is not None}, {}

    with pytest.raises(ConfigError, match=said):
        stream(spec_of(SEEN, NESTED)).rollout(policy, 5)


def test_one_array_for_several_leaves_and_a_mapping_for_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"6 leaves.*got ndarray"):
        stream(spec_of(SEEN, NESTED)).rollout(lambda *_: (np.zeros(3), {}), 5)
    one = Stream.make(
        lambda: Picky(spaces.Discrete(3)), spec_of(SEEN, spaces.Discrete(3)), seed=0, index=0, count=3, frame_stack=1
    )
    with pytest.raises(ConfigError, match="one array integers"):
        one.rollout(lambda *_: ({"action": np.zeros(3, int)}, {}), 5)


def test_a_leaf_that_is_not_finite_is_named() -> None:
    bad = chosen(np.random.default_rng(0))
    bad["action.push"][1] = np.nan
    with pytest.raises(NonFiniteError, match=r"action\.push .* NaN or infinite, first at \(0, 1\).*diverged"):
        stream(spec_of(SEEN, NESTED)).rollout(lambda *_: (bad, {}), 5)


@pytest.mark.parametrize("empty", [spaces.Dict({}), spaces.Tuple(())])
def test_an_empty_part_of_an_action_space_is_refused(empty: Any) -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"action\.1: an empty"):
        spec_of(SEEN, spaces.Tuple((spaces.Discrete(2), empty)))


def fragments(random: np.random.Generator) -> list[dict[str, Any]]:
    """A round in which no episode ends."""
    start, made = {"action.move.0": -1, "action.wait": 2}, []
    for _ in range(2):
        steps = [chosen(random) for _ in range(5)]
        acted = {name: np.stack([step[name] for step in steps]) + start.get(name, 0) for name in NAMES}
        layout = columns(spec_of(SEEN, NESTED), SCHEDULE, 1)
        made.append(
            {name: values.astype(layout[name].dtype) for name, values in acted.items()}
            | {
                "observation": random.normal(size=(6, 3, 2)).astype(np.float32),
                "reward": np.zeros((5, 3), np.float32),
                "terminated": np.zeros((5, 3), bool),
                "truncated": np.zeros((5, 3), bool),
                "episode_step": np.ones(3, int),
                "continues": np.asarray(True),
            }
        )
    return made


def test_a_window_gathers_every_leaf_of_an_action() -> None:
    """Three times around the ring; Discrete leaves are counted from 0."""
    random = np.random.default_rng(0)
    window = Window(spec_of(SEEN, NESTED), SCHEDULE, capacity=60)
    rounds: list[list[dict[str, Any]]] = []
    for _ in range(7):
        rounds.append(fragments(random))
        window.append(rounds[-1])
        positions = window.positions_of_rows(window.first, window.stop)
        batch, steps = window.gather(positions), window.steps(positions)
        for name in NAMES:
            start = {"action.move.0": -1, "action.wait": 2}.get(name, 0)
            lanes = [np.concatenate([stream[name] for stream in made], axis=1) for made in rounds]
            wanted = np.concatenate(lanes)[window.first : window.stop].astype(float) - start
            wanted = wanted.reshape(-1, *wanted.shape[2:])
            np.testing.assert_array_equal(batch.action[name].numpy(), wanted)
            np.testing.assert_array_equal(steps.action[name].numpy(), wanted)
            np.testing.assert_array_equal(batch.rows(slice(2, 5)).action[name].numpy(), wanted[2:5])
    assert batch.action["action.wait"].dtype == torch.int64
    reused = window.gather(positions[::-1].copy(), out=window.gather(positions))
    np.testing.assert_array_equal(reused.action["action.push"].numpy(), batch.action["action.push"].numpy()[::-1])


def test_the_memory_of_a_window_counts_every_leaf() -> None:
    def size(space: spaces.Space[Any]) -> int:
        return needed_bytes(spec_of(SEEN, space), SCHEDULE, capacity=60)

    two = spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32)))
    assert size(two) - size(spaces.Discrete(3)) == 90 * 2 * 4  # three rounds of 30 transitions in the ring


ALGORITHMS = [
    daskrl.DQN, daskrl.C51, daskrl.QRDQN, daskrl.Rainbow, daskrl.R2D2, daskrl.PPO, daskrl.IMPALA, daskrl.SAC,
    daskrl.TD3, daskrl.QLearning,
]  # fmt: skip


@pytest.mark.parametrize("make", ALGORITHMS)
def test_built_in_algorithms_refuse_several_leaves_before_anything_is_made(make: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"(acts|Discrete).*action\.keys\.dial: multi_discrete.*wrapper"):
        daskrl.train(make(), Recording, store=tmp_path / "run", env_steps=96, progress=False)
    assert not (tmp_path / "run").exists()


# -- whole runs of an algorithm of one's own -----------------------------------------------------------------


class TwoLeaves(gymnasium.Env[Any, Any]):
    """A target is seen; the reward is for turning to its side and for pushing as far as it is."""

    def __init__(self, once: Once | None = None) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Dict(
            {"turn": spaces.Discrete(2, start=1), "push": spaces.Box(-1, 1, (1,), np.float32)}
        )
        self.once, self.steps = once, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return self.look(), {}

    def look(self) -> Any:
        self.seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.seen

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.once is not None and self.steps == 40 and self.once():
            kill_self()
        assert self.action_space.contains(action)
        right = int(action["turn"]) - 1 == int(self.seen[0] > 0)
        reward = float(right) - abs(float(action["push"][0]) - float(self.seen[1]))
        self.age += 1
        return self.look(), reward, False, self.age == 11, {}


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn, self.push = nn.Linear(2, 2), nn.Linear(2, 1)


@dataclass(frozen=True)
class TwoHeads(ReplaySettings):
    """Linear: values of the turn by regression on the reward, pushes towards those that were rewarded most."""

    window: int = 320
    batch_size: int = 16
    learning_starts: int = 32
    replay_ratio: float = 4.0
    learning_rate: float = 0.02

    def policy(self, setup: Setup) -> nn.Module:
        return Heads()

    def act(self, policy: nn.Module, moment: Moment) -> dict[str, Any]:
        seen = torch.tensor(moment.observation["observation"])
        turn, push = policy.turn(seen).argmax(1).numpy(), policy.push(seen).numpy()
        if not moment.greedy:
            turn = np.where(moment.random.random(len(turn)) < 0.3, moment.random.integers(0, 2, len(turn)), turn)
            push = push + moment.random.normal(scale=0.3, size=push.shape).astype(np.float32)
        return {"action.turn": turn, "action.push": push}

    def learner(self, setup: Setup, random: np.random.Generator) -> ReplayLearner:
        learner = ReplayLearner(self, setup, random, self.update, online=self.policy(setup))
        learner.optimize(adam(self.learning_rate))
        return learner

    def update(self, learner: ReplayLearner, batch: Any) -> tuple[torch.Tensor, None]:
        seen, turn = batch.observation["observation"], batch.action["action.turn"]
        values = learner.online.turn(seen)  # type: ignore[operator]
        miss = learner.online.push(seen) - batch.action["action.push"]  # type: ignore[operator]
        better = torch.softmax(4 * batch.reward, 0)[:, None]
        value = values.gather(1, turn[:, None])[:, 0]
        loss = (value - batch.reward).square().mean() + (better * miss.square()).sum()
        learner.minimise(loss, learning_rate=learner.learning_rate)
        return loss.detach(), None


RUN: dict[str, Any] = {
    "env_steps": 960, "streams": 4, "envs_per_stream": 2, "fragment_steps": 8, "seed": 5, "checkpoint_every": 3,
    "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Store:
    """The run in this process."""
    return daskrl.train(TwoHeads(), TwoLeaves, store=tmp_path_factory.mktemp("here") / "run", **RUN).wait().store


@pytest.mark.slow
def test_a_killed_rollout_worker_changes_no_bit_of_a_run_with_two_leaves(here: daskrl.Store, tmp_path: Path) -> None:
    once = Once(tmp_path / "killed")

    def make() -> TwoLeaves:
        return TwoLeaves(once)

    with clusters.local(2) as cluster, Client(cluster) as client:
        there = daskrl.train(TwoHeads(), make, store=tmp_path / "there", client=client, **RUN).wait()
    assert (tmp_path / "killed").exists()
    assert there.store.digest() == here.digest()


@pytest.mark.slow
def test_a_run_with_two_leaves_that_was_stopped_goes_on_to_the_same_bits(here: daskrl.Store, tmp_path: Path) -> None:
    daskrl.train(TwoHeads(), TwoLeaves, store=tmp_path / "run", **RUN | {"env_steps": 448}).wait()
    again = daskrl.resume(tmp_path / "run", env=TwoLeaves, algorithm=TwoHeads(), env_steps=960, progress=False).wait()
    assert again.store.digest() == here.digest()


@pytest.mark.slow
def test_the_two_heads_learn_what_is_rewarded(here: daskrl.Store) -> None:
    returns = [
        daskrl.evaluate(here, episodes=10, env=TwoLeaves, algorithm=TwoHeads(), version=version).mean
        for version in (0, None)
    ]
    assert returns[1] > returns[0]


@pytest.mark.slow
@pytest.mark.parametrize("slot", [0, 27])
def test_a_fragment_with_two_leaves_is_reproduced(here: daskrl.Store, slot: int) -> None:
    assert daskrl.reproduce(here, slot, env=TwoLeaves, algorithm=TwoHeads()).differs == ()


@pytest.mark.slow
def test_every_fragment_with_two_leaves_may_be_checked_again(here: daskrl.Store, tmp_path: Path) -> None:
    run = daskrl.train(TwoHeads(), TwoLeaves, store=tmp_path / "run", recheck_every=1, **RUN).wait()
    assert run.store.digest() == here.digest()


class OwnGenerator(TwoHeads):
    """Pushes at random by a generator of its own."""

    def act(self, policy: nn.Module, moment: Moment) -> dict[str, Any]:
        noise = np.random.default_rng().normal(size=(len(moment.observation["observation"]), 1))
        return super().act(policy, moment) | {"action.push": noise}


@pytest.mark.slow
def test_a_check_names_the_leaf_that_differs(tmp_path: Path) -> None:
    with pytest.raises(NondeterministicError, match=r"differs in action\.push"):
        daskrl.train(OwnGenerator(), TwoLeaves, store=tmp_path / "run", recheck_every=1, **RUN).wait()


@pytest.mark.slow
def test_a_store_is_read_leaf_by_leaf(here: daskrl.Store) -> None:
    store = daskrl.Store.open(here.storage)
    one = store.read(next(iter(store.fragments())))
    assert (one["action.turn"].dtype, one["action.turn"].shape) == (np.uint8, (8, 2))
    assert (one["action.push"].dtype, one["action.push"].shape) == (np.float32, (8, 2, 1))
    assert set(np.unique(one["action.turn"])) == {1, 2}  # as the space has them
    data = store.to_xarray()
    assert data["action.turn"].dims == ("fragment", "time", "env")
    assert data["action.push"].dims == ("fragment", "time", "env", "action.push_0")
    np.testing.assert_array_equal(data["action.push"][0], one["action.push"])


@pytest.mark.slow
def test_a_policy_gives_the_nested_action_of_one_observation_and_of_several(here: daskrl.Store) -> None:
    policy = here.policy(env=TwoLeaves, algorithm=TwoHeads())
    action, _ = policy.predict(np.array([0.5, -3.0], np.float32))
    assert TwoLeaves().action_space.contains({"push": action["push"], "turn": np.int64(action["turn"])})
    many, _ = policy.predict(np.array([[0.5, -3.0]] * 3, np.float32))
    assert many["turn"].tolist() == [int(action["turn"])] * 3
    np.testing.assert_array_equal(many["push"], [action["push"]] * 3)


@pytest.mark.slow
def test_several_leaves_are_no_module_of_one_tensor_but_their_weights_are_exported(
    here: daskrl.Store, tmp_path: Path
) -> None:
    policy = here.policy(env=TwoLeaves, algorithm=TwoHeads())
    with pytest.raises(ConfigError, match=r"one leaf.*action\.push: box\[1\], action\.turn: discrete.*safetensors"):
        policy.export(tmp_path / "policy.onnx")
    assert policy.export(tmp_path / "policy.safetensors").same_actions > 1


@pytest.mark.slow
class TestTwoHeads(AlgorithmTests):
    """What `daskrl.testing` asks of every algorithm."""

    env = TwoLeaves
    score = 5.0  # of at most 11; acting at random earns about -2

    def make(self) -> TwoHeads:
        return TwoHeads()
