"""Policies used elsewhere: they act as evaluations do, and what is exported acts as they do."""

from __future__ import annotations

import functools
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from safetensors import safe_open

import daskrl
from daskrl import errors, seeding
from daskrl.algorithms.base import Moment
from daskrl.store.weights import safetensors
from tests import environments
from tests.examples import example
from tests.typed import daskrl_

SHAPE: dict[str, Any] = {"streams": 1, "envs_per_stream": 2, "fragment_steps": 8, "progress": False}


class Shelf(gymnasium.Env[Any, Any]):
    """Every kind of space at once; an episode has as many steps as its seed says. Actions are 3, 4 or 5, masked."""

    def __init__(self) -> None:
        self.observation_space = spaces.Dict({
            "box": spaces.Box(-1, 1, (3,), np.float64),
            "one": spaces.Discrete(4, start=2),
            "many": spaces.MultiDiscrete([2, 3]),
            "bits": spaces.MultiBinary(2),
            "picture": spaces.Box(0, 255, (9, 8), np.uint8),
            "both": spaces.Tuple((spaces.Discrete(2), spaces.Box(-1, 1, (), np.float32))),
            "action_mask": spaces.MultiBinary(3),
        })  # fmt: skip
        self.action_space = spaces.Discrete(3, start=3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        self.left = int(self.np_random.integers(3, 12))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert type(action) in (int, np.int64)
        assert self.mask[action - 3]
        self.left -= 1
        return self._seen(), float(action) / (1 + self.left), self.left == 0, False, {}

    def _seen(self) -> Any:
        seen = self.observation_space.sample()
        if not seen["action_mask"].any():
            seen["action_mask"][1] = 1
        self.mask = seen["action_mask"]
        return seen


class HalfOpen(gymnasium.Env[Any, Any]):
    """An action bounded on one side only: its bounds are not in the store. Rewards tell what came."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Box(np.array([[0.2], [0.3]], np.float32), np.inf, (2, 1), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 5
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.shape == (2, 1)
        assert action.dtype == np.float32
        self.left -= 1
        return self._seen(), float(action.sum()), self.left == 0, False, {}

    def _seen(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


REPLAY: dict[str, Any] = {"learning_starts": 8, "batch_size": 4, "window": 256, "replay_ratio": 4.0, "hidden": (8,)}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dqn": (daskrl.DQN(**REPLAY, dueling=True), "CartPole-v1", {}),
    "dqn of every space": (daskrl.DQN(**REPLAY), Shelf, {"frame_stack": 2}),
    "dqn of pictures": (daskrl.DQN(**REPLAY, convolutions="impala"), "MinAtar/Breakout-v1", {}),
    "c51": (daskrl.C51(**REPLAY, atoms=5, noisy=True), "CartPole-v1", {}),
    "c51 of every space": (daskrl.C51(**REPLAY, atoms=5, dueling=True), Shelf, {}),
    "qr-dqn": (daskrl.QRDQN(**REPLAY, quantiles=5), "CartPole-v1", {}),
    "rainbow": (daskrl.Rainbow(**REPLAY, atoms=5), "CartPole-v1", {}),
    "r2d2": (daskrl.R2D2(learning_starts=8, batch_size=2, window=256, hidden=(8,), lstm=6), "CartPole-v1", {}),
    "r2d2 of every space": (daskrl.R2D2(learning_starts=8, batch_size=2, window=256, hidden=(8,), lstm=6), Shelf, {}),
    "ppo": (daskrl.PPO(hidden=(8,), normalise_observation=True), "CartPole-v1", {}),
    "ppo of every space, lstm": (daskrl.PPO(hidden=(8,), lstm=6), Shelf, {"frame_stack": 3}),
    "ppo in a box, lstm": (daskrl.PPO(hidden=(8,), lstm=6), "Pendulum-v1", {}),
    "ppo in a half-open box": (daskrl.PPO(hidden=(8,)), HalfOpen, {}),
    "impala": (daskrl.IMPALA(hidden=(8,)), "CartPole-v1", {}),
    "impala, lstm": (daskrl.IMPALA(hidden=(8,), lstm=6), "CartPole-v1", {}),
    "sac": (daskrl.SAC(**REPLAY), "Pendulum-v1", {}),
    "td3": (daskrl.TD3(**REPLAY), "Pendulum-v1", {}),
    "q-learning": (daskrl.QLearning(), "CliffWalking-v1", {}),
}
TORCH = [name for name in CASES if name != "q-learning"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> the finished run's store, made when first asked for."""
    place, made = tmp_path_factory.mktemp("policies"), dict[str, daskrl.Store]()

    def get(name: str) -> daskrl.Store:
        if name not in made:
            algorithm, env, given = CASES[name]
            folder = place / name.replace(" ", "-")
            made[name] = daskrl.train(algorithm, env, store=folder, env_steps=64, **SHAPE, **given).wait().store
        return made[name]

    return get


def again(name: str) -> dict[str, Any]:
    env = CASES[name][1]
    return {"env": env} if callable(env) else {}


def make(name: str) -> gymnasium.Env[Any, Any]:
    from daskrl.envs.source import source

    return source(CASES[name][1]).factory()


def policy_of(stores: Any, name: str) -> daskrl.Policy:
    policy: daskrl.Policy = stores(name).policy(**again(name))
    return policy


# -- acting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_an_episode_played_with_predict_is_the_one_that_evaluate_plays(stores: Any, name: str) -> None:
    policy, env = policy_of(stores, name), make(name)
    seed = seeding.environment_seed(7, 0, 0, 0, "evaluate_environment")
    observation, _ = env.reset(seed=seed)
    state, total, steps, over = None, 0.0, 0, False
    while not over and steps < 60:
        action, state = policy.predict(observation, state)
        assert env.action_space.contains(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    env.close()
    played = daskrl.evaluate(stores(name), episodes=1, seed=7, max_episode_steps=60, **again(name))
    assert (played.returns, played.lengths) == ((total,), (steps,))


@pytest.mark.parametrize("name", CASES)
def test_several_observations_are_acted_on_as_each_alone(stores: Any, name: str) -> None:
    policy, env = policy_of(stores, name), make(name)
    seen = [env.reset(seed=seed)[0] for seed in range(4)]
    env.close()
    alone, states = zip(*(policy.predict(one) for one in seen), strict=True)
    together, state = policy.predict(stack(seen))
    same(together, alone)
    following = list(reversed(seen))
    alone = [policy.predict(one, before)[0] for one, before in zip(following, states, strict=True)]  # type: ignore[assignment]
    together, after = policy.predict(stack(following), state)
    same(together, alone)
    assert (after is None) == (state is None) == (states[0] is None)


def stack(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: stack([value[key] for value in values]) for key in values[0]}
    if isinstance(values[0], tuple):
        return tuple(stack(list(parts)) for parts in zip(*values, strict=True))
    return np.array(values)


def same(together: Any, alone: Any) -> None:
    if np.asarray(together).dtype.kind == "i":
        assert together.tolist() == [int(one) for one in alone]
        assert all(type(one) is np.int64 for one in alone)
    else:
        np.testing.assert_allclose(together, np.array(alone), rtol=1e-5, atol=1e-6)  # a batch has bits of its own


def parts(state: Any) -> dict[str, Any]:
    """Everything in a state by name, copied."""
    return {name: value.copy() for name, value in [*state.frames.items(), *state.recurrent.items()]}


@pytest.mark.parametrize("name", ["ppo of every space, lstm", "r2d2"])
def test_a_state_is_not_written_to_and_an_episode_that_starts_forgets_its_own(stores: Any, name: str) -> None:
    policy, env = policy_of(stores, name), make(name)
    first, second = (stack([env.reset(seed=seed)[0] for seed in seeds]) for seeds in ((1, 2), (3, 4)))
    _, state = policy.predict(first)
    kept = parts(state)
    _, after = policy.predict(second, state, episode_start=[False, True])
    np.testing.assert_equal(parts(state), kept)
    _, fresh = policy.predict(second)
    goes_on, begun = parts(after), parts(fresh)
    for key, value in begun.items():
        np.testing.assert_array_equal(goes_on[key][1], value[1])
    assert any(not np.array_equal(goes_on[key][0], value[0]) for key, value in begun.items())
    with pytest.raises(errors.ConfigError, match="state: expected that of 1 observations"):
        policy.predict(env.reset(seed=1)[0], state)
    env.close()


def test_exploring_needs_a_generator_and_is_repeated_by_it(stores: Any) -> None:
    policy = policy_of(stores, "dqn")
    many = np.zeros((200, 4), np.float32)
    with pytest.raises(errors.ConfigError, match=r"random=np.random.default_rng\(seed\)"):
        policy.predict(many, deterministic=False)
    drawn = [policy.predict(many, deterministic=False, random=np.random.default_rng(s))[0] for s in (1, 1, 2)]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    assert len(set(policy.predict(many)[0].tolist())) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.zeros(3), r"shape \(3,\), expected \(4,\)"),
        (np.zeros((2, 3, 4)), r"expected \(4,\)"),
        (np.zeros((0, 4)), "'0'"),
        ("up", "observation"),
        (np.array(["a"] * 4), "observation"),
    ],
)
def test_an_observation_of_another_space_is_refused(stores: Any, wrong: Any, says: str) -> None:
    with pytest.raises(errors.ConfigError, match=says):
        policy_of(stores, "dqn").predict(wrong)


def test_a_key_that_is_missing_and_a_number_outside_of_its_space_are_named(stores: Any) -> None:
    policy, env = policy_of(stores, "dqn of every space"), make("dqn of every space")
    seen, _ = env.reset(seed=1)
    for change, says in (({"one": 9}, "observation.one is 9"), ({"both": 1}, "observation.both.0 is missing")):
        with pytest.raises(errors.ConfigError, match=says):
            policy.predict({**seen, **change})
    with pytest.raises(errors.ConfigError, match="leading axis"):
        policy.predict({**stack([seen, seen]), "one": 3})


def test_bounds_that_the_store_does_not_have_are_those_of_the_environment_given_again(stores: Any) -> None:
    store = stores("ppo in a half-open box")
    with pytest.raises(errors.StoreMismatchError, match="env=HalfOpen"):
        store.policy()
    action, _ = store.policy(env=HalfOpen).predict(np.zeros(2, np.float32))
    assert (action >= [[np.float32(0.2)], [np.float32(0.3)]]).all()


def test_older_versions_and_what_they_belong_to(stores: Any) -> None:
    store = stores("dqn")
    first = store.policy(version=0)
    assert first.weights_version == 0
    assert first.about["version"] == "0"
    assert first.about["algorithm"] == "DQN"
    assert "weights_version 0" in repr(first)
    assert "<table>" in first._repr_html_()
    with pytest.raises(errors.ConfigError, match="keeps weights versions"):
        store.policy(version=3)


@pytest.mark.parametrize("name", ["dqn", "ppo of every space, lstm", "q-learning"])
def test_a_policy_goes_to_other_processes(stores: Any, name: str) -> None:
    policy, env = policy_of(stores, name), make(name)
    seen, _ = env.reset(seed=3)
    env.close()
    sent = pickle.loads(pickle.dumps(policy))
    assert sent.predict(seen)[0] == policy.predict(seen)[0]
    assert sent.seen(5).keys() == policy.seen(5).keys()


def test_the_threads_of_the_process_are_as_before(stores: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        policy_of(stores, "dqn").predict(np.zeros(4, np.float32))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# -- the module -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCH)
def test_the_module_decides_as_the_algorithm_acts(stores: Any, name: str) -> None:
    policy = policy_of(stores, name)
    seen = policy.seen(16)
    rows = len(next(iter(seen.values())))
    state = {key: np.zeros((rows, *shape), np.float32) for key, shape in policy.state_shapes.items()}
    given = [torch.tensor({**seen, **state}[key]) for key in policy.module.inputs]
    with torch.no_grad():
        result = policy.module(*given)
    moment = Moment(seen, np.random.default_rng(0), greedy=True, state={k: v.copy() for k, v in state.items()})
    with torch.inference_mode():
        acted = policy.algorithm.act(policy.network, moment)
    acted = acted[0] if isinstance(acted, tuple) else acted
    decided = result[0] if state else result
    discrete = policy.setup.action.kind == "discrete"
    np.testing.assert_array_equal((decided.argmax(dim=1) if discrete else decided).numpy(), acted)
    if state:
        np.testing.assert_array_equal(result[1].numpy(), moment.state["lstm"])


def test_an_algorithm_without_a_torch_module_says_what_is_possible(stores: Any, tmp_path: Path) -> None:
    policy = policy_of(stores, "q-learning")
    with pytest.raises(errors.ConfigError, match=r"no torch.nn.Module.*safetensors"):
        policy.export(tmp_path / "q.onnx")
    written = policy.export(tmp_path / "q.safetensors")
    assert written.same_actions == written.compared > 0

    class Plain(daskrl.QLearning):  # type: ignore[misc, valid-type]
        def policy(self, setup: Any) -> Any:
            return torch.nn.Linear(1, 1)

        def load(self, policy: Any, weights: Any) -> None:
            pass

    own = daskrl.Policy(Plain(), policy.setup, {}, weights_version=0, about={}, bounds=None)
    with pytest.raises(errors.ConfigError, match="no method outputs"):
        own.module  # noqa: B018


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TORCH)
def test_onnx_runtime_acts_as_the_policy_for_batches_of_any_size(stores: Any, tmp_path: Path, name: str) -> None:
    policy = policy_of(stores, name)
    done = policy.export(tmp_path / "policy.onnx")
    assert done.same_actions == done.compared
    assert done.largest_difference <= done.tolerance
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    known = {one.name for one in session.get_inputs()}

    def run(inputs: dict[str, Any]) -> list[Any]:
        outputs: list[Any] = session.run(None, {key: value for key, value in inputs.items() if key in known})
        return outputs

    check(policy, run, done)
    about = {entry.key: entry.value for entry in onnx.load(tmp_path / "policy.onnx").metadata_props}
    assert about["daskrl.algorithm"] == type(policy.algorithm).__name__
    assert json.loads(about["daskrl.observation"])[0]["name"].startswith("observation")


@pytest.mark.parametrize("name", TORCH)
def test_torch_alone_acts_as_the_policy_for_batches_of_any_size(stores: Any, tmp_path: Path, name: str) -> None:
    policy = policy_of(stores, name)
    done = policy.export(tmp_path / "policy.pt")
    assert done.same_actions == done.compared
    assert done.largest_difference == 0  # the same library
    loaded = torch.jit.load(tmp_path / "policy.pt")
    check(policy, lambda inputs: [x.numpy() for x in loaded(*(torch.tensor(inputs[n]) for n in done.inputs))], done)


def check(policy: daskrl.Policy, run: Any, done: Any) -> None:
    """Step through stored observations by hand, the state going from each step to the next."""
    seen = policy.seen(12)
    for rows in (1, 3):
        state = {name: np.zeros((rows, *shape), np.float32) for name, shape in policy.state_shapes.items()}
        own = {name: value.copy() for name, value in state.items()}
        for at in range(2):
            observation = {name: value[at : at + rows] for name, value in seen.items()}
            given = dict(zip(done.outputs, run({**observation, **state}), strict=True))
            moment = Moment(observation, np.random.default_rng(0), greedy=True, state=own)
            with torch.inference_mode():
                acted = policy.algorithm.act(policy.network, moment)
            acted = policy.taken(acted[0] if isinstance(acted, tuple) else acted)
            assert given["action"].dtype == acted.dtype
            np.testing.assert_allclose(given["action"], acted, rtol=1e-4, atol=1e-5)
            state = {name: given[f"after.{name}"] for name in state}
            for name, value in own.items():
                np.testing.assert_allclose(state[name], value, rtol=1e-4, atol=1e-5)


def test_an_exported_file_needs_no_daskrl(stores: Any, tmp_path: Path) -> None:
    policy_of(stores, "ppo in a box, lstm").export(tmp_path / "policy.pt")
    code = (
        "import sys, json, torch; extra = {'daskrl.json': ''}; m = torch.jit.load('policy.pt', _extra_files=extra)\n"
        "a, out, after = m(torch.zeros(5, 3), torch.zeros(5, 2, 6))\n"
        "print(json.loads(extra['daskrl.json'])['algorithm'],"
        " list(a.shape), list(after.shape), 'daskrl' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["PPO", "[5,", "1]", "[5,", "2,", "6]", "False"]


def test_what_acts_otherwise_when_it_is_read_back_is_not_written(stores: Any, tmp_path: Path) -> None:
    class Contrary(daskrl.DQN):  # type: ignore[misc, valid-type]
        def outputs(self, policy: Any, observation: Any, state: Any) -> Any:
            values, after = super().outputs(policy, observation, state)
            return -values, after

    policy = policy_of(stores, "dqn")
    contrary = daskrl.Policy(
        Contrary(**REPLAY, dueling=True), policy.setup, policy.weights, weights_version=0, about={}, bounds=None,
        seen=policy.seen,
    )  # fmt: skip
    with pytest.raises(errors.ExportError, match="actions differ"):
        contrary.export(tmp_path / "policy.pt")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(errors.ConfigError, match="expected one of onnx, torchscript, safetensors"):
        policy.export(tmp_path / "policy.h5")


def test_a_missing_package_names_the_extra(stores: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(errors.ConfigError, match=r"pip install 'daskrl\[export\]'"):
        policy_of(stores, "dqn").export(tmp_path / "policy.onnx")


def test_weights_files_say_what_they_belong_to(stores: Any, tmp_path: Path) -> None:
    store = stores("dqn of every space")
    exported = tmp_path / "weights.safetensors"
    store.policy(algorithm=CASES["dqn of every space"][0]).export(exported)
    newest = max((store.root / ".weights").glob("*.safetensors"))
    assert exported.read_bytes() == newest.read_bytes()
    with safe_open(newest, "np") as opened:
        about = opened.metadata()
    assert about["version"] == str(store.weights_versions()[-1])
    assert about["run_id"] == store.run_id
    assert about["algorithm"] == "DQN"
    assert json.loads(about["settings"]) == store.config.algorithm["settings"]
    assert json.loads(about["observation"]) == json.loads(json.dumps(store.spec.to_json()["observation"]))
    assert json.loads(about["action"])[0]["sizes"] == [3]
    assert about["frame_stack"] == "2"


def test_a_weights_file_has_the_same_bytes_in_every_process() -> None:
    arrays = {"b": np.arange(3, dtype=np.float32), "a": np.zeros((2, 2), np.int64), "ü": np.ones(1, np.bool_)}
    about = {"version": "3", "zeta": "ö", "alpha": "{}", "run_id": "x", "settings": '{"a":1}'}
    code = (
        "import sys, numpy as np; from daskrl.store.weights import safetensors\n"
        f"sys.stdout.buffer.write(safetensors({{'b': np.arange(3, dtype=np.float32), 'a': np.zeros((2, 2), np.int64), "
        f"'ü': np.ones(1, np.bool_)}}, {about!r}))"
    )
    ours = safetensors(arrays, about)
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == ours
    from safetensors.numpy import load

    back = load(ours)
    assert {name: value.tolist() for name, value in back.items()} == {n: v.tolist() for n, v in arrays.items()}  # type: ignore[attr-defined]


def test_algorithms_of_ones_own_in_any_framework_can_be_used(tmp_path: Path) -> None:
    cql = example("discrete_cql").DiscreteCQL
    algorithm = cql(learning_starts=8, batch_size=4, window=256, hidden=(8,))
    store = daskrl.train(algorithm, environments.walk, store=tmp_path / "run", env_steps=32, **SHAPE).wait().store
    with pytest.raises(errors.StoreMismatchError, match="DiscreteCQL"):
        store.policy()
    policy = store.policy(algorithm=algorithm)
    assert policy.predict(np.zeros(2, np.float32))[0] in (0, 1)
    assert policy.export(tmp_path / "own.onnx").same_actions > 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"state": 3}, "state: expected None at an episode's first step"),
        ({"state": (None, None)}, "PolicyState"),
        ({"episode_start": [True, False]}, "episode_start: expected a bool, or 1 of them"),
        ({"episode_start": "yes"}, "episode_start: expected a bool"),
        ({"deterministic": False, "random": 0}, "random: expected a generator"),
    ],
)
def test_what_is_no_state_start_or_generator_is_refused_by_name(stores: Any, given: Any, says: str) -> None:
    policy = policy_of(stores, "ppo in a box, lstm")
    with pytest.raises(errors.ConfigError, match=says):
        policy.predict(np.zeros(3, np.float32), **given)


@pytest.mark.parametrize("name", ["q.onnx", "q.pt", "q.safetensors"])
def test_a_path_where_no_file_can_be_written_is_refused_by_name(stores: Any, tmp_path: Path, name: str) -> None:
    policy = policy_of(stores, "dqn")
    (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / name, tmp_path / "file" / name):
        with pytest.raises(errors.ConfigError, match="expected a path where a file can be written"):
            policy.export(path)


# -- the command line -----------------------------------------------------------------------------------------


def test_the_command_exports_and_says_how_it_compared(stores: Any, tmp_path: Path) -> None:
    root = str(stores("r2d2").root)
    typed = ("export", root, "--format", "onnx", "--output", "r.onnx", "--json")
    printed = json.loads(daskrl_(*typed, cwd=tmp_path).stdout)
    assert printed["same_actions"] == printed["compared"] > 0
    assert printed["inputs"] == ["observation", "lstm"]
    assert printed["outputs"] == ["action", "output", "after.lstm"]
    assert (tmp_path / "r.onnx").exists()
    said = " ".join(daskrl_("export", root, "--format", "safetensors", "--version", "0", cwd=tmp_path).stdout.split())
    assert "18 of 18 stored observations" in said
    assert Path(f"{root}-version-0.safetensors").exists()
    refused = daskrl_("export", root, "--format", "h5", cwd=tmp_path, code=2)
    assert "onnx, torchscript, safetensors" in " ".join(refused.stderr.split())


def half_open(number: int = 0) -> HalfOpen:
    return HalfOpen()


def test_the_command_exports_the_best_version_of_an_environment_with_arguments(tmp_path: Path) -> None:
    algorithm, env = daskrl.PPO(hidden=(8,)), functools.partial(half_open, number=2)
    given = {**SHAPE, "evaluate_every": 1, "evaluate_episodes": 1}
    store = daskrl.train(algorithm, env, store=tmp_path / "run", env_steps=48, **given).wait().store
    best = store.best()
    assert best is not None
    again = ("--env", f"{__name__}:half_open", "--env-kwargs")
    typed = ("export", str(store.root), "--format", "torchscript", "--version", "best", *again)
    cwd = Path(__file__).parent.parent
    printed = json.loads(daskrl_(*typed, "number=2", "--json", cwd=cwd).stdout)
    assert printed["path"].endswith(f"run-version-{best.version}.pt")
    assert "number: 3 (store: 2)" in " ".join(daskrl_(*typed, "number=3", cwd=cwd, code=2).stderr.split())
    assert store.policy("best", env=env).weights_version == best.version
