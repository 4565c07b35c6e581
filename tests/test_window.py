"""The window's n-step returns and next observations, against an oracle that walks the episodes one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from daskrl.envs.spaces import spec_of
from daskrl.errors import ConfigError
from daskrl.replay.window import Window, check_capacity
from tests.lanes import OBSERVATION, ROUND, SCHEDULE, NumberedRounds, allocated, check, make


@pytest.mark.parametrize("frame_stack", [1, 4])
@pytest.mark.parametrize("n", [1, 3, 5])
@pytest.mark.parametrize(("ends", "kinds"), [(0.05, "both"), (0.4, "both"), (0.95, "truncated"), (0.0, "both")])
def test_every_transition_has_its_n_step_return_and_next_observation(n, frame_stack, ends, kinds):
    window = make(7 * ROUND + 5, n=n, frame_stack=frame_stack)
    replay = NumberedRounds(frame_stack=frame_stack, ends=ends, kinds=kinds, seed=n)
    checked = 0
    for _ in range(25):  # three times around the ring; 0.95 truncated grows the pool of last observations
        window.append(replay.round())
        checked += check(window, replay)
    assert checked > 1000


@pytest.mark.parametrize(("n", "frame_stack"), [(1, 1), (4, 1), (1, 4), (2, 3)])
def test_a_window_of_one_round_holds_the_newest_one(n, frame_stack):
    window, replay = make(ROUND, n=n, frame_stack=frame_stack), NumberedRounds(frame_stack=frame_stack, ends=0.4)
    for _ in range(9):
        window.append(replay.round())
        check(window, replay)


def test_endings_in_the_last_step_of_a_fragment_are_those_of_their_episode():
    class AtTheBorder(NumberedRounds):
        def ending(self) -> tuple[bool, bool]:
            made = len(self.lanes[0].steps) + len(self.lanes[-1].steps)
            ends = any(len(lane.steps) % 4 == 3 for lane in self.lanes) and made % 3 != 0
            return (False, True) if ends else (False, False)

    window, replay = make(4 * ROUND, n=3), AtTheBorder()
    for _ in range(12):
        window.append(replay.round())
        check(window, replay)
    assert any(lane.steps[3].truncated for lane in replay.lanes)


@pytest.mark.parametrize("frame_stack", [1, 4])
@pytest.mark.parametrize("n", [1, 3, 5])
def test_a_fragment_that_does_not_continue_the_one_before_truncates_its_episodes(n, frame_stack):
    window = make(4 * ROUND, n=n, frame_stack=frame_stack)
    replay = NumberedRounds(frame_stack=frame_stack, ends=0.1, seed=3)
    cuts = {2: (0,), 5: (0, 1), 6: (1,), 11: (1,)}
    for number in range(14):
        window.append(replay.round(cut=cuts.get(number, ())))
        check(window, replay)


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("cuts", [{}, {3: (0,), 10: (1,)}, dict.fromkeys(range(1, 14), (0, 1))])
@pytest.mark.parametrize(("n", "frame_stack"), [(1, 1), (3, 1), (1, 3), (2, 3)])
def test_a_window_restored_from_the_newest_rounds_gathers_what_one_never_interrupted_does(n, frame_stack, cuts, rounds):
    replay = NumberedRounds(frame_stack=frame_stack, ends=0.3, seed=1)
    given = [replay.round(cut=cuts.get(number, ())) for number in range(14)]
    whole = make(rounds * ROUND, n=n, frame_stack=frame_stack)
    for number, fragments in enumerate(given):
        whole.append(fragments)
        restored = make(rounds * ROUND, n=n, frame_stack=frame_stack)
        first = max(0, number + 1 - rounds)
        restored.rounds, restored.rows = first, first * SCHEDULE.fragment_steps
        for again in given[first : number + 1]:
            restored.append(again)
        same(whole, restored)
    # ... and goes on alike.
    for _ in range(rounds + 2):
        fragments = replay.round()
        whole.append(fragments)
        restored.append(fragments)
        same(whole, restored)


def same(one: Window, other: Window) -> None:
    assert (one.first, one.stop, one.rows, one.rounds) == (other.first, other.stop, other.rows, other.rounds)
    positions = one.positions_of_rows(one.first, one.stop)
    np.testing.assert_array_equal(positions, other.positions_of_rows(other.first, other.stop))
    a, b = one.gather(positions), other.gather(positions)
    for name in ("action", "reward", "discount"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    alive = a.discount != 0
    for name in a.observation:
        assert torch.equal(a.observation[name], b.observation[name])
        assert torch.equal(a.next_observation[name][alive], b.next_observation[name][alive])


@pytest.mark.parametrize("frame_stack", [1, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_last_observations_are_found_when_their_ring_grows_after_it_went_round(n, frame_stack):
    window, replay = (
        make(7 * ROUND, n=n, frame_stack=frame_stack),
        NumberedRounds(frame_stack=frame_stack, kinds="truncated"),
    )
    for _ in range(10):
        window.append(replay.round())
    given_up = [step for lane in replay.lanes for step in lane.steps[:12]]  # of the three rounds that left
    assert any(step.truncated for step in given_up)
    before = allocated(window)
    replay.ends = 0.97
    for _ in range(10):
        window.append(replay.round())
        check(window, replay)
    assert allocated(window) > before


@pytest.mark.parametrize("frame_stack", [1, 4])
def test_a_window_given_staged_rounds_is_that_given_the_rounds(frame_stack, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **more: empty(*shape, **more))
    replay = NumberedRounds(frame_stack=frame_stack, ends=0.3)
    plain, staging = (make(3 * ROUND, n=3, frame_stack=frame_stack) for _ in range(2))
    fragments = replay.round()
    assert plain.stage(fragments) is fragments  # on the CPU
    staging.stages = True  # as on a GPU
    for cut in [(), (), (1,), (), (), (0,), ()]:
        plain.append(fragments)
        staged = staging.stage(fragments)
        assert set(staged.columns) == {"action", "observation.a", "observation.b"}  # type: ignore[attr-defined]
        assert staging.stage(staged) is staged
        staging.append(staged)
        same(plain, staging)
        fragments = replay.round(cut)


def test_rows_may_be_sampled_from_when_their_rewards_are_in_until_they_leave_the_window():
    replay = NumberedRounds()
    window = make(3 * ROUND + 7, n=3)  # 3 whole rounds: 12 rows
    assert len(window) == 0
    expected = [(0, 2), (0, 6), (0, 10), (4, 14), (8, 18)]
    for first, stop in expected:
        window.append(replay.round())
        assert (window.first, window.stop) == (first, stop)
        assert len(window) == (stop - first) * 4


def test_under_frame_stacking_the_oldest_rows_lend_their_frames_and_are_not_sampled():
    replay, window = NumberedRounds(frame_stack=4), make(3 * ROUND, frame_stack=4)
    for first, stop in [(0, 4), (0, 8), (0, 12), (7, 16), (11, 20)]:
        window.append(replay.round())
        assert (window.first, window.stop) == (first, stop)


def test_nothing_can_be_sampled_before_n_steps_are_in():
    replay, window = NumberedRounds(), make(3 * ROUND, n=5)
    window.append(replay.round())
    assert len(window) == 0
    window.append(replay.round())
    assert (window.first, window.stop, len(window)) == (0, 4, 16)


def test_positions_count_from_the_oldest_transition():
    replay, window = NumberedRounds(), make(3 * ROUND)
    for _ in range(7):
        window.append(replay.round())
    everything = window.positions(np.arange(len(window)))
    np.testing.assert_array_equal(everything, window.positions_of_rows(window.first, window.stop))
    assert len(set(everything.tolist())) == len(window) == 48


def test_a_truncated_episode_bootstraps_from_its_own_last_observation_and_a_terminated_one_not_at_all():
    fragments = NumberedRounds(ends=0.0).round()
    fragments[0]["terminated"][1, 0] = True
    fragments[0]["truncated"][2, 1] = True
    fragments[0]["final_observation.a"][:2] = [[-1, 1], [-2, 2]]  # environment 0 at step 1, 1 at step 2
    window = make(ROUND, n=1)
    window.append(fragments)
    batch = window.gather(window.positions_of_rows(0, 4))
    discount = batch.discount.numpy().reshape(4, 4)
    assert discount[1, 0] == 0
    assert discount[2, 1] == np.float32(0.9)
    assert batch.next_observation["observation.a"].reshape(4, 4, 2)[2, 1].tolist() == [-2, 2]


def test_rewards_are_clipped_for_the_learner_only_and_before_they_are_summed():
    fragments = NumberedRounds(ends=0.0).round()
    fragments[0]["reward"][:, 0] = [5, -3, 0.5, 0]
    window = make(ROUND, n=3, reward_clip=1.0)
    window.append(fragments)
    batch = window.gather(window.positions_of_rows(0, 1))
    assert batch.reward[0].item() == pytest.approx(1 - 0.9 + 0.81 * 0.5)
    assert fragments[0]["reward"][0, 0] == 5


def test_discrete_actions_are_counted_from_zero_whatever_the_space_starts_at():
    spec = spec_of(OBSERVATION, spaces.Discrete(5, start=3))
    fragments = NumberedRounds(ends=0.0).round()
    stored = [{**fragment, "action": fragment["action"] + np.uint8(3)} for fragment in fragments]
    window = Window(spec, SCHEDULE, capacity=ROUND)
    window.append(stored)
    batch = window.gather(window.positions_of_rows(0, 4))
    expected = np.concatenate([fragment["action"] for fragment in fragments], axis=1)
    assert batch.action.dtype == torch.int64
    np.testing.assert_array_equal(batch.action.numpy().reshape(4, 4), expected)


def test_a_batch_is_a_copy_that_later_rounds_do_not_change():
    replay, window = NumberedRounds(ends=0.4), make(2 * ROUND)
    window.append(replay.round())
    batch = window.gather(window.positions_of_rows(0, 4))
    kept = batch.reward.clone(), {name: value.clone() for name, value in batch.observation.items()}
    for _ in range(6):
        window.append(replay.round())
    assert torch.equal(batch.reward, kept[0])
    assert all(torch.equal(batch.observation[name], kept[1][name]) for name in kept[1])


@pytest.mark.parametrize("frame_stack", [1, 4])
@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_written_over_an_earlier_one_is_what_a_fresh_one_would_be(n, frame_stack):
    replay = NumberedRounds(ends=0.4, frame_stack=frame_stack)
    window = make(4 * ROUND, n=n, frame_stack=frame_stack)
    for _ in range(6):
        window.append(replay.round())
    random = np.random.default_rng(0)
    used = None
    for _ in range(5):
        positions = window.positions(random.integers(0, len(window), 12))
        fresh, used = window.gather(positions), window.gather(positions, out=used)
        for name in ("action", "reward", "discount"):
            assert torch.equal(getattr(fresh, name), getattr(used, name))
        for kind in ("observation", "next_observation"):
            one, other = getattr(fresh, kind), getattr(used, kind)
            assert all(torch.equal(one[name], other[name]) for name in one)
        assert (used.positions == positions).all()


def test_a_window_too_small_for_one_round_or_for_n_steps_is_refused():
    with pytest.raises(ConfigError, match="at least one round \\(16 transitions"):
        check_capacity(15, 1, SCHEDULE)
    with pytest.raises(ConfigError, match="n_step: 9 steps do not fit a window of 32"):
        check_capacity(32, 9, SCHEDULE)
    check_capacity(32, 8, SCHEDULE)


def test_a_window_whose_oldest_rows_all_go_into_stacked_frames_is_refused():
    with pytest.raises(ConfigError, match="too few for 2 steps behind 4 stacked frames"):
        make(ROUND, n=2, frame_stack=4)
    window, replay = make(ROUND, n=1, frame_stack=4), NumberedRounds(frame_stack=4)
    for _ in range(4):
        window.append(replay.round())
        assert len(window) >= SCHEDULE.lanes
