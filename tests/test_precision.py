"""How a learner computes: mixed precision and compiled networks, under the promise."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import daskrl
from daskrl.algorithms.base import Setup
from daskrl.algorithms.torch_learner import TorchLearner
from daskrl.config import Schedule
from daskrl.errors import ConfigError
from tests.cases import CASES, TORCH, train


@pytest.mark.parametrize("name", TORCH)
def test_a_run_in_mixed_precision_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", name, 256, precision="bfloat16")
    train(tmp_path / "part", name, 128, precision="bfloat16")
    again = daskrl.resume(tmp_path / "part", env_steps=256, progress=False).wait()
    weights = whole.store.weights()[1]
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in weights.values())
    assert whole.report is not None
    assert whole.report.learner_updates > 0
    assert again.store.digest() == whole.store.digest()


def test_mixed_precision_is_another_computation_with_nearly_the_same_result(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", "dqn", 256).store.weights()[1]
    mixed = train(tmp_path / "mixed", "dqn", 256, precision="bfloat16").store.weights()[1]
    assert any(not np.array_equal(plain[name], mixed[name]) for name in plain)
    for name in plain:
        np.testing.assert_allclose(mixed[name], plain[name], atol=0.02)


def test_under_mixed_precision_networks_multiply_in_bfloat16_and_gradients_are_float32() -> None:
    seen: list[torch.dtype] = []
    algorithm = daskrl.DQN(precision="bfloat16", hidden=(8,), learning_starts=0, batch_size=4, window=64)
    learner, rows = _learner(algorithm, fragment_steps=8)
    learner.online.advantage[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))  # type: ignore[index,operator]
    learner.append([rows])
    loss = learner.learn(np.random.default_rng(0))
    assert loss is not None
    assert set(seen) == {torch.bfloat16}
    assert learner.flat_online.gradient.dtype == torch.float32
    assert learner.flat_online.gradient.abs().sum() > 0


class Bfloat16(TorchFunctionMode):
    """Notes the names of functions that return bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.bfloat16:
            self.names.add(func.__name__)
        return result


@pytest.mark.parametrize("name", TORCH)
def test_under_mixed_precision_only_layers_compute_in_bfloat16(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen, precision = Bfloat16(), TorchLearner.precision

    @contextlib.contextmanager
    def watched(self: TorchLearner) -> Iterator[None]:
        with precision(self), seen:
            yield

    monkeypatch.setattr(TorchLearner, "precision", watched)
    train(tmp_path / "run", name, 256, precision="bfloat16")
    assert "linear" in seen.names
    shapes = {"cat", "view", "squeeze", "unsqueeze", "stack", "flatten", "__getitem__", "transpose", "contiguous", "to"}
    layers = {"linear", "relu", "tanh"} | ({"lstm", "mul"} if "lstm" in CASES[name][0] else set())  # its state x 0 or 1
    assert seen.names - shapes <= layers


def test_an_update_under_mixed_precision_sees_the_weights_of_the_update_before() -> None:
    """Two updates in one context differ from two updates from the same weights: no cast of weights is kept."""
    algorithm = daskrl.DQN(
        precision="bfloat16", hidden=(), double=False, learning_starts=0, batch_size=4, window=64, learning_rate=0.5,
        max_grad_norm=None,
    )  # fmt: skip
    learner, _ = _learner(algorithm, fragment_steps=8)
    x = {"observation": torch.ones(4, 4)}
    with learner.precision():
        before = learner.online(x)
        learner.minimise(before.sum(), learning_rate=0.5)
        after = learner.online(x)
    assert not torch.equal(before, after)


def _learner(algorithm: Any, fragment_steps: int) -> tuple[Any, dict[str, Any]]:
    from gymnasium import spaces

    from daskrl.envs.spaces import spec_of

    spec = spec_of(spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2))
    learner = algorithm.learner(Setup(spec, Schedule(1, 1, fragment_steps)), np.random.default_rng(1))
    random = np.random.default_rng(2)
    rows = {
        "observation": random.random((fragment_steps + 1, 1, 4), np.float32),
        "final_observation": np.zeros((fragment_steps, 4), np.float32),
        "action": random.integers(0, 2, (fragment_steps, 1)),
        "reward": random.random((fragment_steps, 1), np.float32),
        "terminated": np.zeros((fragment_steps, 1), np.bool_),
        "truncated": np.zeros((fragment_steps, 1), np.bool_),
        "episode_step": np.zeros(1, np.int64),
        "continues": np.asarray(True),
    }
    return learner, rows


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ConfigError, match="precision: expected one of float32, bfloat16, got 'float16'"):
        daskrl.PPO(precision="float16")


COMPILES = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@COMPILES
@pytest.mark.parametrize("name", ["dqn", "qr-dqn", "ppo", "sac"])
def test_compiled_networks_learn_the_same_up_to_rounding_and_resume_to_the_same_bits(name: str, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", name, 192)
    whole = train(tmp_path / "whole", name, 192, compiled=True)
    torch._dynamo.reset()  # as in another process
    train(tmp_path / "part", name, 128, compiled=True)
    torch._dynamo.reset()
    again = daskrl.resume(tmp_path / "part", env_steps=192, progress=False).wait()
    assert again.store.digest() == whole.store.digest()
    expected, got = plain.store.weights()[1], whole.store.weights()[1]
    for array in expected:
        np.testing.assert_allclose(got[array], expected[array], atol=1e-4)


@COMPILES
def test_what_was_compiled_before_in_a_process_changes_nothing() -> None:
    """Networks of other widths would use up torch's limit, from which on it compiles nothing."""

    def learned(width: int) -> Any:
        learner, rows = _learner(daskrl.PPO(compiled=True, hidden=(width,), epochs=1), fragment_steps=64)
        learner.append([{**rows, "behavior_log_prob": np.full((64, 1), -0.7, np.float32)}])
        learner.learn(np.random.default_rng(0))
        return learner

    torch._dynamo.reset()
    first = learned(48).weights()
    torch._dynamo.reset()
    others = [learned(width) for width in (8, 16, 24, 32)]
    again = learned(48).weights()
    assert len(others) == 4
    assert all(np.array_equal(again[name], first[name]) for name in first)


def test_a_network_that_is_compiled_has_one_beside_it_that_is_not_with_the_same_parameters() -> None:
    learner, _ = _learner(daskrl.DQN(compiled=True, hidden=(8,), window=64), fragment_steps=8)
    x = {"observation": torch.ones(3, 4)}
    for module in (learner.online, learner.target):
        plain = learner.uncompiled(module)
        assert plain is not module
        learner.flat_online.weights.add_(1.0)
        assert torch.equal(plain(x), type(module).forward(module, x))


def test_cuda_graphs_are_for_updates_that_are_alike(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cuda_graphs: R2D2 does not say which of its updates are alike"):
        train(tmp_path, "r2d2", 256, cuda_graphs=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they are tested in test_cuda.py")
@pytest.mark.parametrize("name", ["dqn", "sac"])
def test_cuda_graphs_change_nothing_on_a_cpu(name: str, tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", name, 256)
    graphs = train(tmp_path / "graphs", name, 256, cuda_graphs=True)
    assert graphs.store.digest() == plain.store.digest()
