"""What learners that use torch share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from daskrl.algorithms.base import Setup
from daskrl.algorithms.torch_learner import MakeOptimizer, TorchLearner, TorchSettings, adam
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from tests.cases import TORCH, train

SETUP = Setup(spec_of(spaces.Box(-1, 1, (2,)), spaces.Discrete(2)), Schedule(1, 1, 8))
FEATURES = 32
NORMAL = torch.finfo(torch.float32).smallest_normal
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "Adam": adam(1e-3),
    "SGD": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9),
}


def learner_with(make: MakeOptimizer) -> TorchLearner:
    learner = TorchLearner(TorchSettings(), SETUP, np.random.default_rng(0), torch.nn.Linear(FEATURES, 1, bias=False))
    learner.optimize(make)
    return learner


def kept_by(learner: TorchLearner) -> dict[str, np.ndarray]:
    """What a learner's optimizer keeps of each weight."""
    state = {name: array for name, array in learner.state().items() if name.startswith("optimizer.")}
    return {name.removeprefix("optimizer.."): array for name, array in state.items() if array.size > 1}


def smallest(learner: TorchLearner) -> float:
    """The smallest number but 0 that a learner's optimizer keeps."""
    kept = np.abs(np.concatenate(list(kept_by(learner).values())))
    return float(kept[kept > 0].min())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_an_optimizer_keeps_of_a_gradient_that_became_0_does_not_become_subnormal(make: MakeOptimizer) -> None:
    learner, other = learner_with(make), learner_with(make)
    inputs = torch.tensor(np.random.default_rng(1).standard_normal((1520, FEATURES), np.float32))
    for i in range(1, FEATURES):
        inputs[20 + i :, i] = 0  # a weight after the other has no gradient any more
    lows = []
    for x in inputs:
        for one in (learner, other):
            one.minimise((one.online(x) - 1).square().sum())
        learner.count_update()
        assert smallest(learner) >= NORMAL
        lows.append(smallest(other))
    assert min(lows) < NORMAL  # that of a learner that counts no updates does
    np.testing.assert_array_equal(learner.weights()["weight"], other.weights()["weight"])


def test_every_16th_update_counted_sets_what_fell_to_1e_36_to_0_and_nothing_else() -> None:
    learner = learner_with(adam(1e-3))
    learner.minimise(learner.online(torch.ones(FEATURES)).sum())
    planted = np.zeros(FEATURES, np.float32)
    planted[:8] = [0.9e-36, -0.9e-36, 1.1e-36, -1.1e-36, np.nan, np.inf, -np.inf, 1]
    learner.restore({**learner.state(), "optimizer..exp_avg": planted, "updates": np.array(30)})
    learner.count_update()
    np.testing.assert_array_equal(kept_by(learner)["exp_avg"], planted)
    learner.count_update()
    planted[:2] = 0
    np.testing.assert_array_equal(kept_by(learner)["exp_avg"], planted)


def test_an_optimizer_may_keep_what_is_no_number() -> None:
    class Marked(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            (weights,) = self.param_groups[0]["params"]
            self.state[weights]["moved"] = weights.grad != 0
            return super().step(closure)

    learner = learner_with(partial(Marked, lr=1e-3))
    for _ in range(16):
        learner.minimise(learner.online(torch.ones(FEATURES)).sum())
        learner.count_update()
    assert kept_by(learner)["moved"].all()


@pytest.mark.parametrize("name", TORCH)
def test_every_update_of_an_algorithm_is_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, count = [], TorchLearner.count_update
    monkeypatch.setattr(TorchLearner, "count_update", lambda learner: (counted.append(1), count(learner)))
    report = train(tmp_path, name, 256).report
    assert report is not None
    assert len(counted) == report.learner_updates > 0


# -- Adam ------------------------------------------------------------------------------------------------------


def test_adam_takes_the_steps_of_torchs_and_keeps_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    first = torch.tensor(random.standard_normal(1003, np.float32))
    mine, torchs = torch.nn.Parameter(first.clone()), torch.nn.Parameter(first.clone())
    optimizer = adam(1e-2, eps=1e-6)([mine])
    other = torch.optim.Adam([torchs], lr=1e-2, eps=1e-6, fused=True)
    torchs_step = torch.optim.Adam.step
    for i in range(50):
        gradient = torch.tensor(random.standard_normal(1003, np.float32))
        for one, weights in ((optimizer, mine), (other, torchs)):
            one.param_groups[0]["lr"] = 0.01 / (1 + i)
            weights.grad = gradient.clone()
        with monkeypatch.context() as patch:
            if i:  # torch's own step makes the state, and is not called any more
                patch.delattr(torch.optim.Adam, "step")
            optimizer.step()
        torchs_step(other)
        if i == 25:
            for one in (optimizer, other):
                one.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(mine.detach().numpy(), torchs.detach().numpy())
    state, torchs_state = (one.state_dict()["state"][0] for one in (optimizer, other))
    assert set(state) == set(torchs_state)
    for name, value in state.items():
        np.testing.assert_array_equal(value.numpy(), torchs_state[name].numpy(), err_msg=name)


def test_adam_with_options_or_several_parameters_is_torchs() -> None:
    one, two = torch.zeros(3), torch.zeros(4)
    assert type(adam(1e-3, weight_decay=0.1)([one])) is torch.optim.Adam
    assert type(adam(1e-3)([one, two])) is torch.optim.Adam
