"""What learners that use torch share."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces

from daskrl.algorithms.base import Setup
from daskrl.algorithms.torch_learner import MakeOptimizer, TorchLearner, TorchSettings, adam
from daskrl.config import Schedule
from daskrl.spaces import spec_of

SETUP = Setup(spec_of(spaces.Box(-1, 1, (2,)), spaces.Discrete(2)), Schedule(1, 1, 8))
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "Adam": adam(1e-3),
    "SGD": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9),
}


def learner_with(make: MakeOptimizer) -> TorchLearner:
    learner = TorchLearner(TorchSettings(), SETUP, np.random.default_rng(0), torch.nn.Linear(2, 1, bias=False))
    learner.optimize(make)
    return learner


def smallest(learner: TorchLearner) -> float:
    """The smallest number but 0 that a learner's optimizer keeps for each weight."""
    kept = np.abs(np.concatenate([array for name, array in learner.state().items() if array.shape == (16,)]))
    return float(kept[kept > 0].min())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_an_optimizer_keeps_of_a_gradient_that_became_0_does_not_become_subnormal(make: MakeOptimizer) -> None:
    learner, other = learner_with(make), learner_with(make)
    normal = torch.finfo(torch.float32).smallest_normal
    inputs = torch.tensor(np.random.default_rng(1).standard_normal((1520, 2), np.float32))
    inputs[20:, 1] = 0  # the second weight has no gradient any more
    lows = []
    for x in inputs:
        for one in (learner, other):
            one.minimise((one.online(x) - 1).square().sum())
        learner.count_update()
        assert smallest(learner) >= normal
        lows.append(smallest(other))
    assert min(lows) < normal  # that of a learner that counts no updates does
    np.testing.assert_array_equal(learner.weights()["weight"], other.weights()["weight"])


def test_numbers_that_are_not_finite_stay_in_what_an_optimizer_keeps() -> None:
    learner = learner_with(adam(1e-3))
    for _ in range(16):
        learner.minimise(learner.online(torch.tensor([1.0, torch.nan])).sum())
        learner.count_update()
    assert np.isnan(learner.state()["optimizer..exp_avg"][:2]).tolist() == [False, True]


def test_adam_takes_the_steps_of_torchs_and_keeps_what_it_keeps() -> None:
    random = np.random.default_rng(2)
    first = torch.tensor(random.standard_normal(1003, np.float32))
    mine, torchs = torch.nn.Parameter(first.clone()), torch.nn.Parameter(first.clone())
    optimizers = [adam(1e-2, eps=1e-6)([mine]), torch.optim.Adam([torchs], lr=1e-2, eps=1e-6, fused=True)]
    for i in range(50):
        gradient = torch.tensor(random.standard_normal(1003, np.float32))
        for one, weights in zip(optimizers, (mine, torchs), strict=True):
            one.param_groups[0]["lr"] = 0.01 / (1 + i)
            weights.grad = gradient.clone()
            one.step()
            if i == 25:
                one.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(mine.detach().numpy(), torchs.detach().numpy())
    states = [one.state_dict()["state"][0] for one in optimizers]
    assert set(states[0]) == set(states[1])
    for name, value in states[0].items():
        np.testing.assert_array_equal(value.numpy(), states[1][name].numpy(), err_msg=name)
    assert type(optimizers[0]) is not torch.optim.Adam


def test_options_of_torchs_adam_are_torchs() -> None:
    assert type(adam(1e-3, weight_decay=0.1)([torch.zeros(3)])) is torch.optim.Adam
