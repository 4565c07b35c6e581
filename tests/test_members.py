"""Which workers take part in the runs of a client, and which of them learns: decided from events, with no cluster."""

from __future__ import annotations

from typing import Any

import pytest

from daskrl.errors import DaskrlError, WorkerMismatchError
from daskrl.pools import demand, paused
from daskrl.pools.election import Election
from daskrl.pools.instructions import (
    Break,
    CheckWindow,
    Ease,
    EndBeside,
    Fail,
    GiveUp,
    Introduce,
    Join,
    LearnBeside,
    Say,
    TakeBackLearns,
    Worker,
)
from daskrl.pools.members import Member, Roster, State, Terms, Workers
from daskrl.records import Joined

INFO: dict[str, Any] = {
    "versions": {"torch": "2"}, "cpu": "bits", "cuda": None, "cuda_name": None, "settings": {}, "host": "h", "pid": 1,
    "probes": {}, "free": {}, "used": 0,
}  # fmt: skip
ODD: Any = {**INFO, "cpu": "other bits"}
TAKES_PART: Joined = {"versions": {"torch": "2"}, "free": {}, "used": 3}


class Cluster:
    """Workers and runs, as events make them."""

    def __init__(self, *runs: str, **terms: Any) -> None:
        self.workers, self.found = Workers(), dict[str, dict[str, Any]]()
        self.rosters = {run: Roster(Terms(run, **terms), None, tuple) for run in runs}
        self.elections = {run: Election(roster) for run, roster in self.rosters.items()}
        for roster in self.rosters.values():
            assert self.workers.begin(roster) == []

    def come(self, *names: str, threads: int = 1, **resources: float) -> list[Any]:
        """Workers come; what is to be done."""
        for name in names:
            self.found[name] = {"name": name, "nthreads": threads, "resources": resources}
        return self.workers.present(self.found)

    def join(self, *names: str, info: dict[str, Any] = INFO, **made: Any) -> None:
        """Workers come, say what they compute, and take part in every run."""
        self.come(*names, **made)
        for name in names:
            worker = self.workers.there[name]
            assert self.workers.introduced(worker, info) == []
            for roster in self.rosters.values():
                roster.joined(worker, info)

    def leave(self, name: str) -> list[Any]:
        del self.found[name]
        return self.workers.left(name)

    def learners(self, now: float = 0.0) -> list[str | None]:
        """Hold the elections; who learns for each run."""
        for election in self.elections.values():
            election.hold(now)
        return [roster.learners[""] for roster in self.rosters.values()]


def test_a_worker_is_asked_once_what_it_computes_and_by_each_run_to_take_part() -> None:
    cluster = Cluster("one", "other")
    told = cluster.come("a")
    a = cluster.workers.there["a"]
    assert told == [("", Introduce(a)), ("one", Join(a)), ("other", Join(a))]
    assert cluster.come() == []  # it is known
    late = Roster(Terms("late"), None, tuple)
    assert cluster.workers.begin(late) == [("late", Join(a))]  # and has been asked
    assert cluster.workers.introduced(a, INFO) == []
    later = Roster(Terms("later"), None, tuple)
    assert cluster.workers.begin(later) == [("later", Join(a))]


@pytest.mark.parametrize("introduced_first", [True, False])
def test_a_worker_has_joined_once_it_takes_part_and_what_it_computes_is_known(introduced_first: bool) -> None:
    cluster = Cluster("run")
    cluster.come("a")
    a, roster = cluster.workers.there["a"], cluster.rosters["run"]
    events = [lambda: cluster.workers.introduced(a, INFO), lambda: roster.joined(a, TAKES_PART)]
    first, second = events if introduced_first else reversed(events)
    first()
    assert roster.slots() == {}
    second()
    assert roster.slots() == {"a": 1}
    assert roster.members["a"].info == {**INFO, **TAKES_PART}


def test_an_answer_that_was_lost_is_asked_for_again_and_a_process_that_cannot_answer_is_refused_by_every_run() -> None:
    cluster = Cluster("one", "other")
    cluster.come("a", "b")
    a, b = cluster.workers.there.values()
    assert cluster.workers.not_introduced(a, None) == [("", Introduce(a))]
    assert cluster.rosters["one"].ask_again(a) == [Join(a)]
    told = cluster.workers.not_introduced(b, "failed to join: ImportError: no torch")
    said = Say("worker b (b) gets no rollouts: it failed to join: ImportError: no torch")
    assert told == [("one", said), ("other", said)]
    assert cluster.rosters["one"].not_joined(b, "failed to join, too") == []  # it is refused already
    assert cluster.rosters["one"].joined(b, TAKES_PART) == []
    late = Roster(Terms("late"), None, tuple)  # may find it mended
    assert ("", Introduce(b)) in cluster.workers.begin(late)


def test_a_worker_at_the_address_of_one_that_left_is_another_worker() -> None:
    cluster = Cluster("run")
    cluster.come("a")
    before, roster = cluster.workers.there["a"], cluster.rosters["run"]
    assert cluster.leave("a") == [("run", GiveUp("a"))]
    assert cluster.workers.left("a") == []
    cluster.come("a")
    assert roster.joined(before, TAKES_PART) == []
    cluster.workers.introduced(before, INFO)
    assert roster.ask_again(before) == []
    assert roster.members["a"].state is State.JOINING
    assert roster.members["a"].worker is not before
    assert cluster.workers.there["a"].fingerprint is None


def test_a_worker_whose_leaving_was_missed_is_given_up_where_the_workers_are_compared() -> None:
    cluster = Cluster("run")
    cluster.join("a", "b")
    del cluster.found["a"]
    assert cluster.come() == [("run", GiveUp("a"))]
    assert cluster.rosters["run"].slots() == {"b": 1}


def test_a_worker_that_lost_the_session_joins_again_once_however_many_tasks_say_so() -> None:
    cluster = Cluster("run")
    cluster.join("a")
    a, roster = cluster.workers.there["a"], cluster.rosters["run"]
    assert roster.lost_session("a") == [Join(a)]
    assert roster.lost_session("a") == []
    assert roster.slots() == {}
    roster.joined(a, TAKES_PART)  # what it computes is known since before
    assert roster.slots() == {"a": 1}


def test_a_transition_that_cannot_be_is_an_error_with_the_story_of_the_worker() -> None:
    cluster = Cluster("run")
    cluster.join("a")
    a, roster = cluster.workers.there["a"], cluster.rosters["run"]
    said = (
        r"worker a \(a\) is joined and cannot be introducing .*a defect of daskrl\. Its story: joining: it came; "
        r"introducing: it takes part; joined: what its process computes is known\."
    )
    with pytest.raises(DaskrlError, match=said):
        roster.joined(a, TAKES_PART)


@pytest.mark.parametrize("state", list(State))
def test_a_worker_that_was_refused_stays_so(state: State) -> None:
    member = Member(Worker("a", "a", 1, learner_resource=False), State.REFUSED)
    with pytest.raises(DaskrlError, match="is refused and cannot be"):
        member.go(state, "a test")


def test_arithmetic_is_judged_by_each_run_for_itself_and_the_last_that_is_refused_ends_the_run() -> None:
    cluster = Cluster("one", "other")
    cluster.join("a")
    cluster.join("odd", info=ODD)
    one, other = cluster.rosters.values()
    assert cluster.learners() == ["a", "odd"]  # each run computes as its learner does
    assert one.members["odd"].refused
    assert not other.members["odd"].refused
    assert other.members["a"].refused
    (failed,) = one.not_joined(cluster.workers.there["a"], "failed")
    assert isinstance(failed, Fail)
    assert isinstance(failed.error, WorkerMismatchError)
    lenient = Cluster("run", strict=False)
    lenient.join("a")
    lenient.learners()
    lenient.come("odd")
    odd = lenient.workers.there["odd"]
    lenient.workers.introduced(odd, ODD)
    (told,) = lenient.rosters["run"].joined(odd, ODD)
    assert isinstance(told, Break)
    assert lenient.rosters["run"].slots() == {"odd": 1}


def test_two_runs_learn_on_two_workers_where_there_are_two() -> None:
    cluster = Cluster("one", "other", "third")
    cluster.join("a", "b")
    assert cluster.learners() == ["a", "b", "a"]
    assert cluster.learners() == ["a", "b", "a"]  # and stay there
    cluster.leave("a")
    assert cluster.learners() == ["b", "b", "b"]


@pytest.mark.parametrize("resource", ["learner", "GPU"])
def test_two_runs_learn_on_two_of_the_workers_that_are_meant_for_it(resource: str) -> None:
    cluster = Cluster("one", "other")
    cluster.join("r")
    cluster.join("k", "l", **{resource: 1})
    assert cluster.learners() == ["k", "l"]
    cluster.workers.end("one")
    cluster.leave("l")
    assert cluster.learners()[1] == "k"


@pytest.mark.parametrize("resources", [{"learner": 1}, {}], ids=["meant for it", "any"])
def test_a_run_waits_for_a_worker_that_is_about_to_join_rather_than_learn_where_another_run_does(
    resources: dict[str, float],
) -> None:
    cluster = Cluster("one", "other")
    cluster.join("k", **resources)
    cluster.come("l", **resources)
    assert cluster.learners() == ["k", None]
    cluster.join("l", **resources)
    assert cluster.learners() == ["k", "l"]
    cluster.leave("l")
    assert cluster.learners() == ["k", "k"]  # now nobody else is coming


def test_rollouts_keep_off_the_learners_of_all_runs_while_there_are_others() -> None:
    cluster = Cluster("one", "other")
    cluster.join("a", "b", "c")
    cluster.learners()
    one, other = cluster.rosters.values()
    assert one.slots() == other.slots() == {"c": 1}
    cluster.workers.drain(["c"])
    assert one.slots() == {"c": 1}  # there is no other
    cluster.leave("c")
    assert one.slots() == {"b": 1}  # the other run's learner rather than its own
    assert other.slots() == {"a": 1}
    cluster.leave("b")
    assert one.slots() == {"a": 1}


def test_runs_know_what_the_others_have_on_each_worker() -> None:
    cluster = Cluster("one", "other")
    cluster.rosters["one"].homes = {0: "a", 1: "b", 2: "a"}
    cluster.rosters["one"].load.update(a=4, b=1)
    assert cluster.workers.streams(but="other") == {"a": 2, "b": 1}
    assert cluster.workers.load(but="other") == {"a": 4, "b": 1}
    assert cluster.workers.load(but="one") == {}
    cluster.workers.end("one")
    assert cluster.workers.load(but="other") == {}


def test_a_paused_worker_lets_go_for_every_run_and_is_given_nothing() -> None:
    cluster = Cluster("one", "other")
    cluster.join("a", "b")
    assert cluster.workers.has_status("a", paused.PAUSED) == [("one", Ease("a")), ("other", Ease("a"))]
    assert cluster.workers.has_status("a", paused.PAUSED) == []
    one = cluster.rosters["one"]
    assert one.stopped() == {"a"}
    assert one.unusable() == ["a"]
    assert one.slots() == {"b": 1}
    (said,) = one.has_memory("a", paused.Memory(900, 1000, 3))
    assert isinstance(said, Say)
    assert "900 B used of 1000 B" in said.text
    assert one.has_memory("a", paused.Memory(900, 1000, 3)) == []  # once
    late = Roster(Terms("late"), None, tuple)
    told = [instruction for _, instruction in cluster.workers.begin(late)]
    assert any(isinstance(each, Say) and "900 B used" in each.text for each in told)  # also to who comes later
    assert cluster.workers.has_status("a", paused.RUNNING) == []
    assert one.slots() == {"a": 1, "b": 1}


def test_a_learner_that_is_paused_is_waited_for_until_another_meant_for_it_is_there() -> None:
    cluster = Cluster("run")
    cluster.join("a")
    cluster.join("l", learner=1)
    assert cluster.learners() == ["l"]
    cluster.found["l"]["status"] = paused.PAUSED
    assert cluster.come() == [("run", Ease("l"))]  # an event was missed
    election, roster = cluster.elections["run"], cluster.rosters["run"]
    assert election.hold(1.0) == []
    assert (roster.learners, roster.learns_now()) == ({"": "l"}, None)
    cluster.join("k", learner=1)
    assert TakeBackLearns("l") in election.hold(2.0)
    assert roster.learns_now() is cluster.workers.there["k"]


def test_the_process_beside_the_driver_is_of_one_run_and_ends_when_a_worker_meant_for_learners_comes() -> None:
    cluster = Cluster("run", "other", beside=True)
    cluster.join("a")
    election, name = cluster.elections["run"], f"{demand.BESIDE_DRIVER}run"
    assert election.hold(0.0) == [LearnBeside("a")]
    election.beside_is(True)
    cluster.join(name, learner=1)
    assert name not in cluster.rosters["other"].members
    (checked,) = election.hold(1.0)
    assert isinstance(checked, CheckWindow)
    assert cluster.rosters["run"].learners[""] == name
    cluster.join("l", learner=1)
    assert EndBeside() in election.hold(2.0)
    assert cluster.rosters["run"].learners[""] == "l"


def test_where_there_can_be_none_beside_the_driver_a_rollout_worker_learns() -> None:
    cluster = Cluster("run", beside=True)
    cluster.join("a")
    election = cluster.elections["run"]
    election.hold(0.0)
    election.beside_is(False)
    election.hold(0.0)
    assert cluster.rosters["run"].learners[""] == "a"


def test_what_is_missing_is_said_after_a_minute_and_once() -> None:
    cluster = Cluster("run")
    election = cluster.elections["run"]
    assert election.missing(0.0) == []
    assert election.missing(60.0) == []
    (said,) = election.missing(61.0)
    assert isinstance(said, Say)
    assert said.text.startswith("60 s without any worker: its job waits in the queue")
    assert election.missing(200.0) == []
    cluster.join("a")
    cluster.learners(201.0)
    assert election.missing(201.0) == []
    cluster.leave("a")
    assert election.missing(202.0) == []
    assert len(election.missing(300.0)) == 1  # anew, as it was there meanwhile


# -- several learners of one run --------------------------------------------------------------------------

TWO: dict[str, Any] = {"learners": ("a", "b")}


def elected(cluster: Cluster, now: float = 0.0) -> dict[str, str | None]:
    """Hold the elections of all learners of the run; where each learns."""
    roster = cluster.rosters["run"]
    for key in roster.learners:
        cluster.elections["run"].hold(now, key)
    return dict(roster.learners)


def test_two_learners_of_a_run_learn_on_two_workers_and_rollouts_keep_off_both() -> None:
    cluster = Cluster("run", "other", **TWO)
    cluster.join("k", "l", "m", "n", "o")
    assert elected(cluster) == {"a": "k", "b": "l"}
    cluster.elections["other"].hold(0.0, "a")
    cluster.elections["other"].hold(0.0, "b")
    assert cluster.rosters["other"].learners == {"a": "m", "b": "n"}  # where no other run learns
    assert elected(cluster) == {"a": "k", "b": "l"}  # and they stay
    assert cluster.rosters["run"].slots() == cluster.rosters["other"].slots() == {"o": 1}
    assert cluster.rosters["run"].workers() == 3
    assert cluster.workers.learn_on("k", but="other") == 1


def test_a_worker_that_leaves_takes_the_learners_that_it_had_and_no_others() -> None:
    cluster = Cluster("run", **TWO)
    cluster.join("k", "l")
    assert elected(cluster) == {"a": "k", "b": "l"}
    roster = cluster.rosters["run"]
    cluster.leave("k")
    assert roster.learners == {"a": None, "b": "l"}
    assert roster.learns_now("a") is None
    assert roster.learns_now("b") is cluster.workers.there["l"]
    assert elected(cluster) == {"a": "l", "b": "l"}  # there is no other
    assert roster.learn_at("l") == ["a", "b"]
    cluster.leave("l")
    assert roster.learners == {"a": None, "b": None}


@pytest.mark.parametrize("resource", ["learner", "GPU"])
def test_two_learners_share_the_only_worker_that_is_meant_for_learners(resource: str) -> None:
    cluster = Cluster("run", **TWO)
    cluster.join("r")
    cluster.join("l", **{resource: 1})
    assert elected(cluster) == {"a": "l", "b": "l"}
    cluster.join("k", **{resource: 1})
    assert elected(cluster) == {"a": "l", "b": "l"}  # what moves learns again
    cluster.leave("l")
    assert elected(cluster) == {"a": "k", "b": "k"}


def test_of_two_learners_on_a_worker_that_is_paused_each_is_taken_back_for_itself() -> None:
    cluster = Cluster("run", **TWO)
    cluster.join("r")
    cluster.join("l", learner=1)
    elected(cluster)
    cluster.found["l"]["status"] = paused.PAUSED
    cluster.join("k", learner=1)
    election, roster = cluster.elections["run"], cluster.rosters["run"]
    assert TakeBackLearns("l", "a") in election.hold(1.0, "a")
    assert roster.learners == {"a": "k", "b": "l"}
    assert TakeBackLearns("l", "b") in election.hold(1.0, "b")
    assert roster.learners == {"a": "k", "b": "k"}


def test_the_process_beside_the_driver_ends_once_the_last_learner_has_left_it() -> None:
    cluster = Cluster("run", beside=True, **TWO)
    cluster.join("r")
    election, name = cluster.elections["run"], f"{demand.BESIDE_DRIVER}run"
    assert election.hold(0.0, "a") == [LearnBeside("r")]
    election.beside_is(True)
    assert election.hold(0.0, "b") == []  # it is coming, and enough for both
    cluster.join(name, learner=1)
    assert elected(cluster, 1.0) == {"a": name, "b": name}
    cluster.join("l", learner=1)
    assert EndBeside() not in election.hold(2.0, "a")
    assert EndBeside() in election.hold(2.0, "b")
    assert cluster.rosters["run"].learners == {"a": "l", "b": "l"}


def test_a_learner_without_a_worker_is_named_where_a_run_has_several() -> None:
    cluster = Cluster("run", **TWO)
    cluster.join("k", "l")
    elected(cluster)
    cluster.leave("l")
    election = cluster.elections["run"]
    assert election.missing(0.0) == []
    (said,) = election.missing(61.0)
    assert isinstance(said, Say)
    assert said.text.startswith("60 s without learner b's worker: ")
    assert election.missing(200.0) == []  # once
