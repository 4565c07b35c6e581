"""What holds for any input: targets, projections, the sum tree and the window, with inputs searched by Hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from daskrl.algorithms import R2D2
from daskrl.algorithms.c51 import project
from daskrl.algorithms.impala import vtrace
from daskrl.algorithms.ppo import gae
from daskrl.algorithms.qr_dqn import quantile_huber_loss
from daskrl.replay.samplers import SumTree
from tests.lanes import ROUND, SCHEDULE, NumberedRounds, check, make
from tests.naive import GAMMA, LAMBDA, LANES, STEPS, naive_find, naive_projection, naive_vtrace, tensors

same = settings(deadline=None, derandomize=True)  # the same inputs each time; how long one takes says nothing
number = st.floats(-50, 50, allow_subnormal=False)


@st.composite
def rounds(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """A round of an actor-critic: whatever ends wherever, and ratios of policies from one end to the other."""
    shape = (STEPS, LANES)
    ending = draw(arrays.arrays(np.int8, shape, elements=st.integers(0, 2)))
    value, cut, reward = (draw(arrays.arrays(np.float64, shape, elements=number)) for _ in range(3))
    following = np.where(ending > 0, cut, np.concatenate([value[1:], cut[-1:]]))
    return {
        "reward": reward,
        "discount": np.where(ending == 1, 0.0, GAMMA),
        "ended": ending > 0,
        "value": value,
        "next_value": following,
        "log_rho": draw(arrays.arrays(np.float64, shape, elements=st.floats(-4, 4))),
    }


@same
@given(rounds(), st.floats(0.1, 5), st.floats(0.1, 2), st.floats(0, 1))
def test_vtrace_is_the_double_loop(found: dict[str, Any], rho_clip: float, c_clip: float, lambda_: float) -> None:
    names = ("log_rho", "reward", "discount", "ended", "value", "next_value")
    result = vtrace(*tensors(found, *names), rho_clip=rho_clip, c_clip=c_clip, lambda_=lambda_)
    target, advantage = naive_vtrace(found, rho_clip, c_clip, lambda_)
    np.testing.assert_allclose(result.value.numpy(), target, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result.advantage.numpy(), advantage, rtol=1e-9, atol=1e-9)


@same
@given(rounds())
def test_advantages_of_gae_are_vtraces_errors_where_the_policy_that_acted_is_the_one_that_learns(
    found: dict[str, Any],
) -> None:
    """With ratios of 1, V-trace's target minus the value is the advantage of Schulman et al. (2016), equation 16."""
    found["log_rho"][:] = 0
    names = ("log_rho", "reward", "discount", "ended", "value", "next_value")
    traced = vtrace(*tensors(found, *names), lambda_=LAMBDA)
    advantage = gae(*tensors(found, "reward", "discount", "ended", "value", "next_value"), GAMMA * LAMBDA)  # type: ignore[call-arg]
    np.testing.assert_allclose(traced.value.numpy() - found["value"], advantage.numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@same
@given(st.data(), st.integers(2, 30), st.floats(-100, 50), st.floats(0.5, 150))
def test_the_projection_keeps_the_mass_and_within_its_ends_the_mean(
    data: st.DataObject, atoms: int, low: float, width: float
) -> None:
    z = np.linspace(low, low + width, atoms)
    mass = data.draw(arrays.arrays(np.float64, (3, atoms), elements=st.floats(0.01, 1)))
    p = mass / mass.sum(axis=1, keepdims=True)
    reward = data.draw(arrays.arrays(np.float64, 3, elements=st.floats(-width, width)))
    discount = data.draw(arrays.arrays(np.float64, 3, elements=st.floats(0, 1)))
    result = project(*(torch.from_numpy(x) for x in (p, reward, discount)), torch.from_numpy(z)).numpy()  # type: ignore[call-arg]
    np.testing.assert_allclose(result, naive_projection(p, reward, discount, z), atol=1e-9)
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-9)
    assert (result >= 0).all()
    moved = reward[:, None] + discount[:, None] * z
    inside = ((moved >= z[0]) & (moved <= z[-1])).all(axis=1)
    np.testing.assert_allclose((result @ z)[inside], (p * moved).sum(axis=1)[inside], atol=1e-6)


@same
@given(st.data(), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 10))
def test_the_quantile_loss_is_never_negative_and_zero_only_where_every_quantile_is_every_sample(
    data: st.DataObject, quantiles: int, samples: int, kappa: float
) -> None:
    whole = st.integers(-20, 20).map(float)
    theta = torch.from_numpy(data.draw(arrays.arrays(np.float64, (4, quantiles), elements=whole)))
    target = torch.from_numpy(data.draw(arrays.arrays(np.float64, (4, samples), elements=whole)))
    loss = quantile_huber_loss(theta, target, kappa)
    equal = (theta[:, :, None] == target[:, None, :]).all(dim=2).all(dim=1)
    assert (loss >= 0).all()
    assert ((loss == 0) == equal).all()


@same
@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_rescaled_values_come_back_and_keep_their_order(one: float, other: float) -> None:
    algorithm = R2D2()
    x = torch.tensor([one, other, -one], dtype=torch.float64)
    rescaled = algorithm.h(x)
    torch.testing.assert_close(algorithm.h_inverse(rescaled), x, rtol=1e-6, atol=1e-6)
    assert (rescaled[0] <= rescaled[1]) == (one <= other) or one == other
    assert rescaled[2] == -rescaled[0]


@same
@given(st.data(), st.integers(1, 600))
def test_a_mass_falls_on_the_leaf_under_it_whatever_was_set(data: st.DataObject, size: int) -> None:
    place, value = st.integers(0, size - 1), st.integers(0, 2**40)
    tree, leaves = SumTree(size), np.zeros(size, np.int64)
    for changes in data.draw(st.lists(st.lists(st.tuples(place, value), min_size=1), min_size=1, max_size=4)):
        index, values = (np.array(column, np.int64) for column in zip(*changes, strict=True))
        tree.set(index, values)
        for i, v in changes:
            leaves[i] = v
    sums = tree.sums()
    np.testing.assert_array_equal(tree.leaves[:size], leaves)
    total = int(leaves.sum())
    assert sums[-1] == total
    if total:
        masses = np.array(data.draw(st.lists(st.integers(0, total - 1), min_size=1, max_size=5)), np.int64)
        assert tree.find(masses, sums).tolist() == [naive_find(leaves, mass) for mass in masses.tolist()]


class Drawn(NumberedRounds):
    """Rounds whose endings were drawn: 0 goes on, 1 terminated, 2 truncated, 3 both."""

    def __init__(self, endings: list[int], frame_stack: int) -> None:
        super().__init__(frame_stack=frame_stack)
        self.endings = iter(endings)

    def ending(self) -> tuple[bool, bool]:
        kind = next(self.endings)
        return kind in (1, 3), kind in (2, 3)


@same
@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_every_transition_has_its_return_and_next_observation_wherever_episodes_end(
    data: st.DataObject, n: int, frame_stack: int, held: int
) -> None:
    """N-step returns over terminations, truncations and streams begun anew, around the ring."""
    assume(n + frame_stack - 1 <= held * SCHEDULE.fragment_steps)  # else the window refuses
    made = held + 3
    cuts = data.draw(st.lists(st.sets(st.integers(0, 1)), min_size=made, max_size=made))
    cuts[0] = set()
    kinds = st.sampled_from([0, 0, 0, 1, 2, 3])
    replay = Drawn(data.draw(st.lists(kinds, min_size=made * ROUND, max_size=made * ROUND)), frame_stack)
    window = make(held * ROUND + data.draw(st.integers(0, ROUND - 1)), n=n, frame_stack=frame_stack)
    for cut in cuts:
        window.append(replay.round(cut=tuple(cut)))
        check(window, replay)
