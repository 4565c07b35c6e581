"""The schedule, with numbers: what is ready, what is needed, where streams live, and what any order leads to."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from daskrl.config import Schedule
from daskrl.schedule import Learn, Rechecks, Rollout, homes, kept, learns_ready, needed, rollouts_ready


def shape(streams: int = 3, lag: int = 1) -> Schedule:
    return Schedule(streams=streams, envs_per_stream=2, fragment_steps=4, lag=lag)


# -- rollouts ---------------------------------------------------------------------------------------------


def test_a_round_acts_with_the_version_lag_rounds_before_it() -> None:
    assert [shape(lag=0).weights_version(r) for r in range(4)] == [0, 1, 2, 3]
    assert [shape(lag=1).weights_version(r) for r in range(4)] == [0, 0, 1, 2]
    assert [shape(lag=4).weights_version(r) for r in range(7)] == [0, 0, 0, 0, 0, 1, 2]


def test_no_stream_starts_before_version_0_is_held() -> None:
    assert rollouts_ready(shape(), 5, [0, 0, 0], set(), set()) == []
    assert rollouts_ready(shape(), 5, [0, 0, 0], {0}, set()) == [Rollout(0, s, 0) for s in range(3)]


def test_the_stream_furthest_behind_comes_first() -> None:
    ready = rollouts_ready(shape(), 9, [3, 1, 2], {0, 1, 2}, set())
    assert ready == [Rollout(1, 1, 0), Rollout(2, 2, 1), Rollout(3, 0, 2)]


def test_a_stream_has_one_rollout_in_flight() -> None:
    busy = {Rollout(1, 0, 0), Rollout(0, 2, 0)}
    assert rollouts_ready(shape(), 9, [1, 1, 0], {0}, busy) == [Rollout(1, 1, 0)]


def test_a_stream_waits_for_its_weights_and_for_no_others() -> None:
    assert rollouts_ready(shape(), 9, [2, 1, 1], {0}, set()) == [Rollout(1, 1, 0), Rollout(1, 2, 0)]
    assert rollouts_ready(shape(), 9, [2, 1, 1], {1}, set()) == [Rollout(2, 0, 1)]


def test_nothing_is_rolled_out_beyond_the_last_round() -> None:
    assert rollouts_ready(shape(), 2, [2, 1, 2], {0, 1}, set()) == [Rollout(1, 1, 0)]
    assert rollouts_ready(shape(), 2, [2, 2, 2], {0, 1, 2}, set()) == []


# -- learning ---------------------------------------------------------------------------------------------


def test_version_0_needs_no_round() -> None:
    assert learns_ready(shape(), 5, [0, 0, 0], -1, set(), set()) == [Learn(0)]


def test_a_version_waits_for_the_slowest_stream() -> None:
    assert learns_ready(shape(), 5, [2, 1, 0], 0, {0}, set()) == []
    assert learns_ready(shape(), 5, [2, 1, 1], 0, {0}, set()) == [Learn(1)]


def test_several_rounds_are_learned_in_their_order_each_once() -> None:
    assert learns_ready(shape(lag=4), 9, [4, 3, 3], 0, {0}, set()) == [Learn(1), Learn(2), Learn(3)]
    assert learns_ready(shape(lag=4), 9, [4, 3, 3], 0, {0}, {Learn(1)}) == [Learn(2), Learn(3)]


def test_lost_weights_are_learned_again_where_a_stream_still_acts_with_them() -> None:
    # Published up to 3 and all lost with the learner; streams act with 2 (after 3 rounds) and 3 (after 4) next.
    assert learns_ready(shape(), 9, [4, 3, 3], 3, set(), set()) == [Learn(2), Learn(3)]
    assert learns_ready(shape(), 9, [4, 3, 3], 3, {2, 3}, set()) == []
    assert learns_ready(shape(), 9, [4, 4, 4], 3, set(), set()) == [Learn(3), Learn(4)]


def test_nothing_is_learned_again_once_all_rounds_are_committed() -> None:
    assert learns_ready(shape(), 4, [4, 4, 4], 4, set(), set()) == []
    assert learns_ready(shape(), 4, [4, 4, 4], 3, set(), set()) == [Learn(4)]


def test_needed_are_the_versions_of_each_streams_next_round() -> None:
    assert needed(shape(lag=1), 9, [0, 0, 0]) == {0}
    assert needed(shape(lag=1), 9, [5, 4, 4]) == {4, 3}
    assert needed(shape(lag=4), 9, [5, 4, 8]) == {1, 0, 4}
    assert needed(shape(lag=0), 5, [5, 5, 4]) == {4}
    assert needed(shape(lag=0), 5, [5, 5, 5]) == set()


def test_versions_between_the_oldest_needed_and_the_newest_are_kept_for_the_rounds_to_come() -> None:
    assert kept(shape(lag=4), 20, [9, 9, 9], published=9) == {5, 6, 7, 8, 9}
    assert kept(shape(lag=1), 20, [9, 9, 9], published=8) == {8}
    assert kept(shape(lag=0), 20, [9, 9, 9], published=9) == {9}
    assert kept(shape(lag=1), 9, [9, 9, 9], published=9) == {9}
    assert kept(shape(lag=1), 9, [0, 0, 0], published=-1) == set()


# -- homes ------------------------------------------------------------------------------------------------


def loads(placed: dict[int, str]) -> dict[str, int]:
    return dict(Counter(placed.values()))


def test_without_workers_streams_have_no_home() -> None:
    assert homes(4, {}, {0: "a"}) == {}


def test_streams_are_spread_evenly() -> None:
    assert loads(homes(8, {"a": 1, "b": 1}, {})) == {"a": 4, "b": 4}
    assert sorted(loads(homes(8, {"a": 1, "b": 1, "c": 1}, {})).values()) == [2, 3, 3]
    assert sorted(homes(8, {"a": 1}, {})) == list(range(8))


def test_streams_are_spread_by_threads() -> None:
    assert loads(homes(8, {"a": 3, "b": 1}, {})) == {"a": 6, "b": 2}
    assert loads(homes(12, {"a": 4, "b": 1, "c": 1}, {})) == {"a": 8, "b": 2, "c": 2}


def test_streams_stay_while_their_worker_is_there() -> None:
    first = homes(8, {"a": 1, "b": 1}, {})
    assert homes(8, {"a": 1, "b": 1}, first) == first
    assert homes(8, {"b": 1, "a": 1}, first) == first


def test_a_worker_that_joins_takes_its_share_and_no_other_stream_moves() -> None:
    before = homes(8, {"a": 1, "b": 1}, {})
    after = homes(8, {"a": 1, "b": 1, "c": 1, "d": 1}, before)
    assert loads(after) == {"a": 2, "b": 2, "c": 2, "d": 2}
    assert all(after[s] == before[s] or after[s] in "cd" for s in range(8))
    assert sum(after[s] != before[s] for s in range(8)) == 4


def test_a_worker_that_leaves_gives_its_streams_to_the_others_and_no_other_stream_moves() -> None:
    before = homes(12, {"a": 1, "b": 1, "c": 1}, {})
    after = homes(12, {"a": 1, "c": 1}, before)
    assert loads(after) == {"a": 6, "c": 6}
    assert all(after[s] == before[s] for s in range(12) if before[s] != "b")


def test_all_workers_may_change_at_once() -> None:
    before = homes(6, {"a": 1, "b": 1}, {})
    assert loads(homes(6, {"c": 1, "d": 1}, before)) == {"c": 3, "d": 3}


def test_more_workers_than_streams_leave_some_idle() -> None:
    assert sorted(loads(homes(2, {"a": 1, "b": 1, "c": 1}, {})).values()) == [1, 1]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_workers_do_no_thread_has_more_than_the_largest_share_and_few_streams_move(seed: int) -> None:
    random_ = random.Random(seed)
    placed: dict[int, str] = {}
    for _ in range(50):
        slots = {name: random_.randint(1, 4) for name in random_.sample("abcdefgh", random_.randint(1, 6))}
        before, placed = placed, homes(16, slots, placed)
        assert sorted(placed) == list(range(16))
        share = {name: -(-16 * n // sum(slots.values())) for name, n in slots.items()}
        most = max(share[name] / slots[name] for name in slots)
        assert max(load / slots[name] for name, load in loads(placed).items()) <= most
        moved = [s for s in before if before[s] in slots and placed[s] != before[s]]
        crowded = sum(max(0, load - share[name]) for name, load in loads(before).items() if name in slots)
        assert len(moved) <= crowded  # only those there was no room for


# -- any order of completions -----------------------------------------------------------------------------


@dataclass
class Simulation:
    """The driver's loop without anything around it: tasks finish in any order, and weights may be lost."""

    schedule: Schedule
    rounds: int
    random: random.Random
    losses: float = 0.0
    committed: list[int] = field(default_factory=list)
    published: int = -1
    held: set[int] = field(default_factory=set)
    flying: set[Rollout | Learn] = field(default_factory=set)
    acted: dict[tuple[int, int], int] = field(default_factory=dict)
    learned: list[int] = field(default_factory=list)
    widest: int = 0

    def run(self, room: int) -> None:
        self.committed = [0] * self.schedule.streams
        for _ in range(100_000):
            self.submit(room)
            if not self.flying:
                return
            self.finish(self.random.choice(sorted(self.flying, key=str)))
            if self.random.random() < self.losses:
                self.lose()
        raise AssertionError("the run does not end")

    def submit(self, room: int) -> None:
        learns = {task for task in self.flying if isinstance(task, Learn)}
        rollouts = {task for task in self.flying if isinstance(task, Rollout)}
        self.flying |= set(
            learns_ready(self.schedule, self.rounds, self.committed, self.published, self.held, learns)[:1]
            if not learns
            else []
        )
        ready = rollouts_ready(self.schedule, self.rounds, self.committed, self.held, rollouts)
        self.flying |= set(ready[: max(0, room - len(rollouts))])

    def finish(self, task: Rollout | Learn) -> None:
        self.flying.discard(task)
        if isinstance(task, Learn):
            assert min(self.committed) >= task.version, "a version is learned from whole rounds only"
            self.held.add(task.version)
            self.learned.append(task.version)
            self.published = max(self.published, task.version)
        else:
            assert task.weights_version in self.held
            assert task.round == self.committed[task.stream], "rounds of a stream come in order"
            assert (task.round, task.stream) not in self.acted, "no fragment is written twice"
            self.acted[task.round, task.stream] = task.weights_version
            self.committed[task.stream] += 1
            self.widest = max(self.widest, max(self.committed) - min(self.committed))
        self.held &= kept(self.schedule, self.rounds, self.committed, self.published)
        assert len(self.held) <= self.schedule.lag + 1

    def lose(self) -> None:
        """The learner's worker dies, and with it all weights and what waits for them."""
        self.held.clear()
        self.flying.clear()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", [1, 3, 16])
@pytest.mark.parametrize("lag", [0, 1, 4])
def test_whatever_finishes_first_the_run_is_the_same_run_and_ends(lag: int, room: int, seed: int) -> None:
    schedule = shape(streams=5, lag=lag)
    simulation = Simulation(schedule, 12, random.Random(seed))
    simulation.run(room)
    assert simulation.acted == {(r, s): max(0, r - lag) for r in range(12) for s in range(5)}
    assert simulation.published == 12
    assert simulation.learned == list(range(13))  # each version once, in order
    assert simulation.widest <= lag + 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lag", [0, 1, 4])
def test_with_weights_lost_on_the_way_it_still_is(lag: int, seed: int) -> None:
    simulation = Simulation(shape(streams=5, lag=lag), 12, random.Random(seed), losses=0.1)
    simulation.run(room=4)
    assert simulation.acted == {(r, s): max(0, r - lag) for r in range(12) for s in range(5)}
    assert simulation.published == 12
    assert len(simulation.learned) > 13
    assert simulation.widest <= lag + 1


def test_a_slow_stream_holds_the_others_back_after_lag_plus_one_rounds() -> None:
    for lag, ahead in ((0, 1), (1, 2), (4, 5)):
        schedule = shape(streams=3, lag=lag)
        committed, held = [0, 0, 0], {0}  # stream 0 never finishes, so no version after 0 is ever learned
        while ready := rollouts_ready(schedule, 50, committed, held, {Rollout(0, 0, 0)}):
            committed[ready[0].stream] += 1
        assert committed == [0, ahead, ahead]


# -- rechecks ---------------------------------------------------------------------------------------------


def fragments(streams: int, rounds: int, ends_every: int, steps: int = 32) -> list[dict[str, Any]]:
    """Records of a run of two environments a stream whose episodes all take ``ends_every`` steps."""
    return [
        {
            "slot": round_ * streams + stream,
            "first_episode": [round_ * steps // ends_every] * 2,
            "episode_step": [round_ * steps % ends_every] * 2,
        }
        for round_ in range(rounds)
        for stream in range(streams)
    ]


def rechecked(streams: int, every: int, records: list[dict[str, Any]]) -> list[tuple[int, int | None]]:
    checks = Rechecks(Schedule(streams=streams, envs_per_stream=2), every)
    return [(record["slot"], alone) for each in records for record, alone in checks.take(each)]


def test_fragments_of_short_episodes_are_checked_early_and_then_ever_more_rarely() -> None:
    due = rechecked(8, 256, fragments(8, 200, ends_every=20))
    assert [slot for slot, alone in due if alone is None] == [0, 8, 256, 512, 768, 1024, 1280, 1536]
    assert [slot for slot, alone in due if alone == 0] == [9, 11, 15, 23, 39, 71, 135, 263, 519, 775, 1031, 1287, 1543]


def test_what_outlives_an_episode_is_looked_for_right_after_the_first_ending() -> None:
    due = rechecked(8, 256, fragments(8, 10, ends_every=200))
    assert due == [(0, None), (8, None), (56, 0), (57, 0), (59, 0), (63, 0)]
    # 200 steps are 6 rounds and 8 steps: round 7 has them behind it. Rounds 8 and 9 are more than one from the ending.


def test_the_environment_whose_episode_is_youngest_is_stepped_again() -> None:
    first = {"slot": 0, "first_episode": [0, 0, 0], "episode_step": [0, 0, 0]}
    second = {"slot": 1, "first_episode": [0, 2, 1], "episode_step": [32, 9, 4]}
    third = {"slot": 2, "first_episode": [0, 2, 1], "episode_step": [64, 41, 36]}  # none is new
    fourth = {"slot": 3, "first_episode": [1, 2, 2], "episode_step": [5, 73, 30]}
    assert rechecked(1, 256, [first, second, third, fourth]) == [(0, None), (1, None), (3, 0)]


def test_a_check_of_a_whole_fragment_waits_for_one_whose_environments_are_soon_rebuilt() -> None:
    # Episodes of 200 steps: environments are 64, 96, ... steps old in rounds 2, 3, ..., and 24, 16 and 8 in rounds 7,
    # 13 and 19. Two are cheap if that is at most 64, and 8 more for each fragment waited: after a check in round
    # 0 one is due in round 2, where 128 > 64; in round 3, 192 > 128; ...; in round 7, 48 < 384.
    due = rechecked(8, 16, fragments(8, 20, ends_every=200))
    assert [slot for slot, alone in due if alone is None] == [0, 8, 7 * 8, 13 * 8, 19 * 8]


def test_episodes_that_never_end_are_not_stepped_again_from_their_beginning() -> None:
    assert rechecked(4, 16, fragments(4, 100, ends_every=10**9)) == [(0, None), (4, None)]
    assert rechecked(4, 0, fragments(4, 12, ends_every=5)) == []


def test_what_is_checked_does_not_depend_on_the_order_in_which_streams_arrive() -> None:
    records = fragments(4, 6, ends_every=20)
    by_stream = sorted(records, key=lambda record: (record["slot"] % 4, record["slot"]))
    assert rechecked(4, 256, by_stream) == rechecked(4, 256, records)
    assert rechecked(4, 256, records[::-1]) == rechecked(4, 256, records)


def test_checks_of_a_long_run_cost_less_than_a_hundredth_of_its_steps() -> None:
    records = fragments(8, 1000, ends_every=200)
    again = sum(
        sum(records[slot]["episode_step"]) + 64 if alone is None else records[slot]["episode_step"][alone] + 32
        for slot, alone in rechecked(8, 256, records)
    )
    assert again < 0.01 * len(records) * 64
