"""How many slots a run can use, with numbers worked out by hand."""

from __future__ import annotations

import pytest

from daskrl.config import Schedule
from daskrl.pools.demand import Demand, slots_wanted


@pytest.mark.parametrize(
    ("streams", "rollout", "learn", "expected"),
    [
        (8, 1.0, 0.0, 8),  # nothing is learned yet: every stream a slot of its own
        (8, 1.0, 0.9, 8),  # the learner waits for rounds however many there are
        (8, 1.0, 2.0, 4),  # two streams a slot make a round in 2 s
        (8, 1.0, 3.5, 3),  # three streams a slot, of which the last has two
        (8, 1.0, 7.9, 2),
        (8, 1.0, 8.0, 1),  # one slot makes all eight
        (8, 1.0, 100.0, 1),
        (1, 1.0, 5.0, 1),
        (7, 0.5, 1.0, 4),
        (256, 0.0, 0.001, 1),  # too fast to be measured
    ],
)
def test_the_fewest_slots_that_keep_the_learner_busy(streams: int, rollout: float, learn: float, expected: int) -> None:
    assert slots_wanted(streams, rollout, learn, headroom=1.0) == expected


def test_headroom_asks_for_rounds_that_much_faster() -> None:
    assert slots_wanted(8, 1.0, 2.0, headroom=1.2) == 8
    assert slots_wanted(8, 1.0, 2.4, headroom=1.2) == 4


def test_no_slots_fewer_keep_up() -> None:
    for streams in (1, 3, 8, 64):
        for learn in (0.3, 1.0, 2.5, 7.0, 40.0):
            slots = slots_wanted(streams, 1.0, learn, headroom=1.0)
            most = -(-streams // slots)  # streams of the fullest slot
            assert most <= max(1.0, learn)
            if slots > 1:
                assert -(-streams // (slots - 1)) > learn or most == 1


def fragment(seconds: float) -> dict[str, object]:
    return {"kind": "fragment", "seconds": seconds}


def learned(version: int, seconds: float) -> dict[str, object]:
    return {"kind": "learn", "version": version, "seconds": seconds}


def test_demand_follows_the_newest_times() -> None:
    demand = Demand(Schedule(4, 1, 8, 1))
    assert demand.slots == 4
    for _ in range(4):
        demand.take(fragment(1.0))
    demand.take(learned(0, 9.0))  # the first weights: nothing was learned
    demand.take({"kind": "budget", "env_steps": 1, "options": {}})
    assert demand.slots == 4
    demand.take(learned(1, 4.8))
    assert demand.slots == 1
    demand.take(learned(2, 2.4))  # faster: more are wanted at once
    assert demand.slots == 2
    demand.take(learned(3, 4.8))  # slower, but perhaps only this once
    assert demand.slots == 2
    demand.take(learned(4, 4.8))
    assert demand.slots == 1
    for _ in range(8):  # two rounds: older ones are forgotten
        demand.take(fragment(2.0))
    assert demand.slots == 2


def test_one_round_learned_again_after_a_loss_changes_nothing() -> None:
    demand = Demand(Schedule(4, 1, 8, 1))
    demand.take(fragment(1.0))
    for version, seconds in enumerate((0.5, 0.5, 60.0, 0.5), 1):
        demand.take(learned(version, seconds))
    assert demand.slots == 4
