"""How many rollout slots a run can use: from measured times, without I/O, tested with numbers.

A learner needs a round's fragments as fast as it learns a round. Fewer slots keep it waiting for rounds; more wait
for its weights.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping

from daskrl.config import Schedule
from daskrl.records import Record, learner_of

LEARNER = "learner"  # the name of the worker that is set apart for learning, and the resource it offers
BESIDE_DRIVER = "daskrl-beside-driver-"  # how the names of workers begin that learn for one driver only

# What runs and clusters tell one another, as events on the scheduler: topics.
ASKED = "daskrl-demand"  # {"client", "run", "slots", "learners", "refused"} of a run; "ended" where it asks no more
DRAINING = "daskrl-draining"  # {"workers"}: addresses that are about to be closed
STATUS = "daskrl-status"  # {"worker", "status"}: an address, and Dask's word for whether it takes tasks

# What a task costs beside its work, and how uneven fragments are: so much faster than the learner rollouts should be.
HEADROOM = 1.2


def slots_wanted(streams: int, rollout_seconds: float, learn_seconds: float, headroom: float = HEADROOM) -> int:
    """The fewest rollout slots, of one fragment at a time, whose rounds take no longer than learning one.

    A slot has whole streams, ``k`` of them, and takes ``k * rollout_seconds`` for a round. With ``lag >= 1`` rounds and
    learning overlap, and the learner is then kept busy. With ``lag = 0`` they alternate, and slots are busy half of the
    time or more.

    Parameters
    ----------
    rollout_seconds : of one fragment.
    learn_seconds : of one round.

    Returns
    -------
    Between 1 and ``streams``.
    """
    each = max(1, math.floor(learn_seconds / (headroom * max(rollout_seconds, 1e-9))))
    return math.ceil(streams / min(each, streams))


def has_learner_resource(resources: Mapping[str, float] | None) -> bool:
    """Whether a worker that offers these is meant for learners."""
    return any((resources or {}).get(name) for name in (LEARNER, "GPU"))


class Demand:
    """The slots that a run wants, as its records come in. All its streams until times are known.

    A fragment takes the mean of the newest two rounds, learning the shorter time of the newest two: more slots are
    wanted at once, fewer only when it is clear, and a learner that made up for a loss changes nothing.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.streams = schedule.streams
        self._rollouts: deque[float] = deque(maxlen=2 * schedule.streams)
        self._learns: dict[str, deque[float]] = {}  # by learner

    def take(self, record: Record) -> None:
        """Any committed record; those of fragments and learned rounds have seconds."""
        if record["kind"] == "fragment":
            self._rollouts.append(record["seconds"])
        elif record["kind"] == "learn" and record["version"] > 0:
            self._learns.setdefault(learner_of(record), deque(maxlen=2)).append(record["seconds"])

    @property
    def slots(self) -> int:
        if not self._rollouts or not self._learns:
            return self.streams
        slowest = max(map(min, self._learns.values()))  # for whose weights rollouts wait
        return slots_wanted(self.streams, statistics.fmean(self._rollouts), slowest)
