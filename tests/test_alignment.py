"""Where arrays begin in memory decides bits of products, and is where bytes happened to arrive: never a run's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import daskrl
from daskrl import arithmetic
from daskrl.algorithms.base import Moment, Setup
from daskrl.algorithms.networks import load_named
from daskrl.config import Options
from daskrl.store.store import Store
from daskrl.tasks import rollout, session
from daskrl.tasks.published import pack, unpack
from tests.promise import records

Weights = Mapping[str, Any]
RUN: dict[str, Any] = {"streams": 2, "envs_per_stream": 3, "fragment_steps": 8, "env_steps": 144, "progress": False}


def begins(array: Any) -> int:
    """Bytes from the last multiple of 64 to where an array begins."""
    return int(array.__array_interface__["data"][0] % 64)


def moved(array: Any, offset: int) -> Any:
    """A copy, read-only as what came over a network is, that begins ``offset`` bytes beyond a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    first = -begins(memory) % 64 + offset
    place = memory[first : first + array.nbytes]
    place[...] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    made = place.view(array.dtype).reshape(array.shape)
    made.flags.writeable = False
    assert begins(made) == offset
    return made


class Seventeen(gymnasium.Env[Any, Any]):
    """A walk in 17 dimensions; six actions, each worth another share of where it stands."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (17,), np.float32)
        self.action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.standard_normal(17).astype(np.float32), 0
        return self.place.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += self.np_random.standard_normal(17).astype(np.float32) * np.float32(0.1 + 0.1 * int(action))
        self.steps += 1
        return self.place.copy(), float(self.place[int(action)]), False, self.steps == 11, {}


class OfNumPy:
    """Two layers, 17 to 11 to 6, of NumPy, that learn by adding a share of what they saw: any arithmetic will do.

    The values that it acts by are a column of the store, so that one bit that differs is seen.
    """

    columns: Mapping[str, str] = {"value": "float32"}
    lag = 1

    def check(self, setup: Setup) -> None:
        pass

    def policy(self, setup: Setup) -> dict[str, Any]:
        return {}

    def load(self, policy: dict[str, Any], weights: Weights) -> None:
        assert all(begins(value) == 0 for value in weights.values())
        policy.update(weights)  # views: what arrived is computed with where it lies

    def values(self, policy: Weights, x: Any) -> Any:
        return np.tanh(x @ policy["first"]) @ policy["second"] + policy["bias"]

    def act(self, policy: dict[str, Any], moment: Moment) -> Any:
        x = moment.observation["observation"]
        assert begins(x) == 0
        q = self.values(policy, x)
        return q.argmax(axis=1), {"value": q.max(axis=1).astype(np.float32)}

    def learner(self, setup: Setup, random: np.random.Generator) -> Any:
        return OfNumPyLearner(self, random)


class OfTorch(OfNumPy):
    """The same with torch, on the arrays as they lie: what ``torch.from_numpy`` makes of them shares their memory."""

    def values(self, policy: Weights, x: Any) -> Any:
        x, first, second, bias = map(torch.from_numpy, (x, policy["first"], policy["second"], policy["bias"]))
        return (nn.functional.linear(nn.functional.linear(x, first.T).tanh(), second.T) + bias).numpy()


class OfNumPyLearner:
    memory = 0

    def __init__(self, settings: OfNumPy, random: np.random.Generator) -> None:
        self.settings, self.updates = settings, 0
        shapes = {"first": (17, 11), "second": (11, 6), "bias": (6,)}
        self.held = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
        self.fragments: Any = ()

    def skip(self, rounds: int) -> None:
        pass

    def append(self, fragments: Any) -> None:
        assert all(begins(value) == 0 for fragment in fragments for value in fragment.values() if value.ndim)
        self.fragments = fragments

    def learn(self, random: np.random.Generator) -> float:
        for fragment in self.fragments:
            x = fragment["observation"].reshape(-1, 17)
            self.held["first"] += 1e-3 * x.T @ np.tanh(x @ self.held["first"])
            self.held["bias"] += 1e-3 * self.settings.values(self.held, x).mean(axis=0)
        self.updates += 1
        return 0.0

    def weights(self) -> Weights:
        return {name: value.copy() for name, value in self.held.items()}

    def state(self) -> Weights:
        return {**self.weights(), "updates": np.array(self.updates)}

    def restore(self, state: Weights) -> None:
        assert all(begins(value) == 0 for value in state.values())
        self.held = {name: np.array(state[name]) for name in self.held}
        self.updates = int(state["updates"])


OWN = [OfNumPy(), OfTorch(), daskrl.DQN(hidden=(11,), learning_starts=24, batch_size=11, replay_ratio=1.0, window=144)]


@pytest.fixture(scope="module", params=OWN, ids=lambda algorithm: type(algorithm).__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Store]:
    store = tmp_path_factory.mktemp("run") / "run"
    run = daskrl.train(request.param, Seventeen, store=store, seed=2, checkpoint_every=1, weights_every=1, **RUN).wait()
    return request.param, run.store


@pytest.mark.parametrize("offset", [0, *range(1, 16), 16, 33, 60])
def test_weights_that_arrive_at_any_byte_give_the_same_actions(made: tuple[Any, Store], offset: int) -> None:
    algorithm, store = made
    record = next(record for record in store.fragments() if record["round"] == 2 and record["stream"] == 1)
    table, flat = pack(store.weights(record["weights_version"])[1])
    learned: Any = {"kind": "republished", "version": record["weights_version"]}
    weights = {"": (learned, table, moved(flat, offset))}
    where = session.Session("any", store.layout, algorithm, Seventeen, Options())
    fragment, _ = rollout.run(where, weights, 1, 2, store.log.head(), use_cache=False)
    stored = store.read(record)
    assert {name: stored[name].tobytes() for name in stored} == {name: fragment[name].tobytes() for name in stored}


@pytest.mark.parametrize("offset", [1, 4, 8, 15, 20])
def test_files_that_are_read_to_any_byte_give_the_same_run(
    made: tuple[Any, Store], offset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks, weights and checkpoints, on resuming, evaluating and reproducing."""
    import safetensors.numpy

    algorithm, store = made
    load = safetensors.numpy.load

    def elsewhere(data: bytes) -> dict[str, Any]:
        return {name: moved(value, offset) if value.ndim else value for name, value in load(data).items()}

    monkeypatch.setattr(safetensors.numpy, "load", elsewhere)
    fragment = store.layout.find([3], store.log.head())[3]
    read = store.layout.read(fragment)
    assert {name: begins(value) for name, value in read.items()}  # chunks are where Python put their bytes
    assert daskrl.reproduce(store, 3, env=Seventeen, algorithm=_again(algorithm)).differs == ()
    begun = daskrl.train(
        algorithm, Seventeen, store=tmp_path / "run", seed=2, checkpoint_every=1, weights_every=1,
        **{**RUN, "env_steps": 96},
    ).wait()  # fmt: skip
    assert any(record.get("checkpoint") for record in records(begun.store.root))
    again = daskrl.resume(
        tmp_path / "run", env=Seventeen, algorithm=_again(algorithm), env_steps=144, progress=False
    ).wait()
    assert again.store.digest() == store.digest()
    played = daskrl.evaluate(again.store, episodes=3, env=Seventeen, algorithm=_again(algorithm))
    monkeypatch.undo()
    assert played.returns == daskrl.evaluate(store, episodes=3, env=Seventeen, algorithm=_again(algorithm)).returns


def _again(algorithm: Any) -> Any:
    return None if isinstance(algorithm, daskrl.DQN) else algorithm


@pytest.mark.parametrize(("inputs", "outputs"), [(17, 6), (11, 4), (32, 11)])
@pytest.mark.parametrize("offset", range(16))
def test_a_networks_weights_are_the_same_wherever_they_come_from(inputs: int, outputs: int, offset: int) -> None:
    random = np.random.default_rng(0)
    network, x = nn.Linear(inputs, outputs), torch.from_numpy(random.standard_normal((3, inputs)).astype(np.float32))
    weights = {name: value.detach().numpy().copy() for name, value in network.named_parameters()}
    expected = network(x).detach().numpy().copy()
    table, flat = pack(weights)
    received = unpack(table, moved(flat, offset))
    assert {begins(value) for value in received.values()} == {0}
    load_named(network, received)
    assert network(x).detach().numpy().tobytes() == expected.tobytes()


def test_what_begins_at_a_multiple_of_64_bytes_is_not_copied() -> None:
    array = arithmetic.zeros((3, 5), np.float32)
    assert arithmetic.aligned(array) is array
    table, flat = pack({"a": array, "b": np.ones((), np.int64), "c": np.ones(3, bool)})
    assert begins(flat) == 0
    assert all(np.shares_memory(value, flat) for value in unpack(table, flat).values())
    assert [offset % 64 for *_, offset in table] == [0, 0, 0]


@pytest.mark.parametrize("array", [np.ones((4, 3)).T, np.float32(3), np.array([True]), np.arange(7)])
def test_aligned_has_the_values_the_shape_and_the_type(array: Any) -> None:
    for offset in (0, 1, 12):
        given = moved(np.asarray(array), offset)
        made = arithmetic.aligned(given)
        assert begins(made) == 0
        assert (made.shape, made.dtype, made.tobytes()) == (given.shape, given.dtype, given.tobytes())
        assert not made.flags.writeable
    assert arithmetic.aligned(np.asarray(array).T).tobytes() == np.asarray(array).T.tobytes()
