"""Samplers against a naive cumulative sum and the formulas of the paper."""

from __future__ import annotations

import numpy as np
import pytest

from daskrl.config import Schedule
from daskrl.errors import DivergedError
from daskrl.replay import samplers
from daskrl.replay.samplers import Prioritized, SumTree, Uniform
from daskrl.replay.window import Window
from tests.lanes import ROUND, SCHEDULE, SPEC, NumberedRounds
from tests.naive import naive_find

SIZES = [1, 15, 16, 17, 256, 257, 5000]


@pytest.mark.parametrize("size", SIZES)
def test_a_mass_falls_on_the_leaf_under_it(size):
    random = np.random.default_rng(size)
    tree = SumTree(size)
    leaves = random.integers(0, 5, size)
    leaves[random.integers(size)] = 3  # at least one is not empty
    tree.rebuild(leaves)
    assert tree.sums()[-1] == leaves.sum()
    masses = np.unique(np.concatenate([random.integers(0, tree.sums()[-1], 50), [0, tree.sums()[-1] - 1]]))
    assert tree.find(masses, tree.sums()).tolist() == [naive_find(leaves, mass) for mass in masses.tolist()]


@pytest.mark.parametrize("size", SIZES)
def test_a_leaf_is_found_as_often_as_its_value_says(size):
    leaves = np.arange(size) % 4
    leaves[0] = 2
    tree = SumTree(size)
    tree.rebuild(leaves)
    found = tree.find(np.arange(tree.sums()[-1]), tree.sums())
    np.testing.assert_array_equal(np.bincount(found, minlength=size), leaves)


@pytest.mark.parametrize("size", SIZES)
def test_a_tree_updated_many_times_is_the_one_built_from_its_leaves(size):
    random = np.random.default_rng(size)
    tree, expected = SumTree(size), np.zeros(size, np.int64)
    for _ in range(50):
        index = random.integers(0, size, 20)
        value = random.integers(0, 2**40, 20)
        for i, v in zip(index.tolist(), value.tolist(), strict=True):  # of an index given twice the last counts
            expected[i] = v
        tree.set(index, value)
    again = SumTree(size)
    again.rebuild(expected)
    assert all((a == b).all() for a, b in zip(tree.levels, again.levels, strict=True))
    np.testing.assert_array_equal(tree.leaves[:size], expected)
    assert tree.sums()[-1] == int(expected.sum())


def filled(rounds: int, *, alpha: float = 0.6, n: int = 1, capacity: int = 3 * ROUND) -> tuple[Window, Prioritized]:
    window = Window(SPEC, SCHEDULE, capacity=capacity, n_step=n)
    sampler, replay = Prioritized(window.ring, alpha=alpha), NumberedRounds()
    for _ in range(rounds):
        add(window, sampler, replay)
    return window, sampler


def add(window: Window, sampler: samplers.Sampler, replay: NumberedRounds) -> None:
    before = (window.first, window.stop)
    window.append(replay.round())
    sampler.appended(window, before)


def test_new_transitions_all_have_the_same_probability():
    window, sampler = filled(2)
    positions = window.positions_of_rows(window.first, window.stop)
    assert set(sampler.tree.leaves[positions].tolist()) == {sampler.largest}
    assert sampler.tree.sums()[-1] == sampler.largest * len(window)


def test_probabilities_are_those_of_equation_1_of_the_paper():
    alpha, epsilon = 0.6, 1e-6
    window, sampler = filled(3, alpha=alpha)
    positions = window.positions_of_rows(window.first, window.stop)
    td = np.random.default_rng(0).normal(size=len(positions))
    sampler.update(positions, td.astype(np.float64))
    priority = (np.abs(td) + epsilon) ** alpha
    expected = priority / priority.sum()
    np.testing.assert_allclose(sampler.tree.leaves[positions] / sampler.tree.sums()[-1], expected, rtol=1e-4)


def test_draws_are_stratified_one_from_each_equal_share_of_the_mass():
    window, sampler = filled(3)
    positions = window.positions_of_rows(window.first, window.stop)
    sampler.update(positions, np.arange(1, len(positions) + 1) / 10)
    for seed in range(20):
        drawn, _ = sampler.draw(window, 8, np.random.default_rng(seed), 0.4)
        edges = np.cumsum(sampler.tree.leaves)
        share = sampler.tree.sums()[-1] / 8
        for i, position in enumerate(drawn.tolist()):
            low, high = edges[position] - sampler.tree.leaves[position], edges[position]
            assert low < (i + 1) * share
            assert high > i * share


def test_importance_weights_are_those_of_section_3_4():
    window, sampler = filled(3, alpha=0.7)
    positions = window.positions_of_rows(window.first, window.stop)
    sampler.update(positions, np.random.default_rng(0).normal(size=len(positions)))
    drawn, weight = sampler.draw(window, 16, np.random.default_rng(1), 0.5)
    probability = sampler.tree.leaves[drawn] / sampler.tree.leaves.sum()
    expected = (1 / (len(window) * probability)) ** 0.5
    assert weight is not None
    np.testing.assert_allclose(weight, expected / expected.max(), rtol=1e-6)
    assert weight.dtype == np.float32
    assert weight.max() == 1


def test_with_beta_zero_all_weights_are_one():
    window, sampler = filled(2)
    sampler.update(window.positions_of_rows(0, 1), np.array([3.0, 0.1, 0.0, 9.0]))
    _, weight = sampler.draw(window, 16, np.random.default_rng(1), 0.0)
    assert weight is not None
    assert weight.tolist() == [1.0] * 16


def test_a_transition_without_error_can_still_be_drawn():
    window, sampler = filled(1)
    positions = window.positions_of_rows(window.first, window.stop)
    sampler.update(positions, np.zeros(len(positions)))
    assert (sampler.tree.leaves[positions] > 0).all()


@pytest.mark.parametrize("n", [1, 3])
def test_what_leaves_the_window_is_never_drawn_and_what_comes_is(n):
    window, sampler = filled(0, n=n)
    replay = NumberedRounds()
    for _ in range(11):  # several times around the ring
        add(window, sampler, replay)
        allowed = window.positions_of_rows(window.first, window.stop)
        np.testing.assert_array_equal(np.flatnonzero(sampler.tree.leaves), np.sort(allowed))
        if len(window):
            drawn, _ = sampler.draw(window, 64, np.random.default_rng(0), 0.4)
            assert np.isin(drawn, allowed).all()
            sampler.update(drawn, np.random.default_rng(1).normal(size=64))


def test_new_transitions_come_with_the_largest_priority_seen_so_far():
    window, sampler = filled(1, alpha=1.0)
    replay = NumberedRounds()
    sampler.update(window.positions_of_rows(0, 1), np.array([4.0, 7.0, 0.5, 0.1]))
    rows = window.stop
    add(window, sampler, replay)
    new = sampler.tree.leaves[window.positions_of_rows(rows, window.stop)]
    assert set(new.tolist()) == {sampler.tree.leaves[1]}
    assert sampler.tree.leaves[1] == pytest.approx(7.0 * 2**20, rel=1e-6)


def test_a_restored_sampler_draws_what_the_first_one_draws():
    window, sampler = filled(5)
    for seed in range(5):
        drawn, _ = sampler.draw(window, 16, np.random.default_rng(seed), 0.4)
        sampler.update(drawn, np.random.default_rng(seed).normal(size=16))
    restored = Prioritized(window.ring)
    restored.restore({name: value.copy() for name, value in sampler.state().items()})
    assert restored.largest == sampler.largest
    assert all((a == b).all() for a, b in zip(sampler.tree.levels, restored.tree.levels, strict=True))
    for made in (sampler, restored):
        made.update(window.positions_of_rows(window.first, window.first + 1), np.ones(4))
    one, other = (s.draw(window, 32, np.random.default_rng(9), 0.4) for s in (sampler, restored))
    assert (one[0] == other[0]).all()
    assert one[1].tobytes() == other[1].tobytes()


def test_the_state_of_a_sampler_is_a_copy():
    window, sampler = filled(2)
    state = sampler.state()
    kept = {name: value.copy() for name, value in state.items()}
    sampler.update(window.positions_of_rows(0, 2), np.full(8, 100.0))
    assert all((state[name] == kept[name]).all() for name in kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_error_that_is_no_number_stops_learning(bad):
    window, sampler = filled(1)
    with pytest.raises(DivergedError, match="NaN or infinite"):
        sampler.update(window.positions_of_rows(0, 1), np.array([1.0, bad, 1.0, 1.0]))


def test_uniform_sampling_draws_every_transition_of_the_window_and_no_other():
    window = Window(SPEC, SCHEDULE, capacity=3 * ROUND, n_step=3)
    sampler, replay = Uniform(), NumberedRounds()
    for _ in range(7):
        add(window, sampler, replay)
    drawn, weight = sampler.draw(window, 5000, np.random.default_rng(0), 0.4)
    assert weight is None
    np.testing.assert_array_equal(np.unique(drawn), np.sort(window.positions_of_rows(window.first, window.stop)))


def test_a_priority_exponent_chooses_the_sampler():
    window = Window(SPEC, Schedule(1, 1, 2), capacity=4)
    assert isinstance(samplers.make(window.ring, None), Uniform)
    made = samplers.make(window.ring, 0.5)
    assert isinstance(made, Prioritized)
    assert made.alpha == 0.5
