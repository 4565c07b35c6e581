"""The share of time in which a learner waits for data, where its updates are an accelerator's work.

What stands in for the accelerator is a wait: in a round's updates the learner's process has nothing to do, as while a
GPU computes. All else is a run as it is: rollout workers, replay on disk, a learner that reads, checks and appends each
round of 84 x 84 frames and publishes 1.7 million weights. Rollouts act at random, in a fraction of the updates' time.
Beside it the same with a learner that reads a round when it is to learn it.

    python tests/benchmarks/waiting.py [--seconds S ...] [--rounds R]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from _table import parser, show, verdict
from distributed import Client, WorkerPlugin
from gymnasium import spaces

import daskrl
from daskrl import DQN, clusters
from daskrl.tasks.ahead import ReadAhead

STREAMS, FIRST = 12, 10  # rounds of 3,072 transitions; those that are not counted


class Frames(gymnasium.Env[Any, Any]):
    """A square that moves over stripes, and noise."""

    observation_space = spaces.Box(0, 255, (84, 84), np.uint8)
    action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.stripes = 0, np.zeros((84, 84), np.uint8)
        self.stripes[10:70, 5:80], self.stripes[::7] = 87, 40
        return self._frame(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._frame(), float(action == 2), self.steps >= 400, False, {}

    def _frame(self) -> Any:
        frame = self.stripes.copy()
        y, x = self.steps * 3 % 80, self.steps * 5 % 80
        frame[y : y + 4, x : x + 4] = 236
        frame[self.np_random.integers(80) :, 2:4] = 92
        return frame


@dataclass(frozen=True)
class StandIn(DQN):  # type: ignore[misc, valid-type]
    """Waits for as long as the updates of a round take."""

    seconds: float = 0.7

    def act(self, policy: Any, moment: Any) -> Any:
        return moment.random.integers(0, 6, len(moment.observation["observation"]))

    def learner(self, setup: Any, random: np.random.Generator) -> Any:
        made, seconds = super().learner(setup, random), self.seconds

        def learn(random: np.random.Generator) -> float:
            time.sleep(seconds)
            made.updates += 1
            return 0.0

        made.learn = learn
        return made


class Blind(WorkerPlugin):
    """In the place of the plugin that reads ahead."""

    name = ReadAhead.name


def waited(seconds: float, rounds: int, client: Client) -> list[str]:
    """Of a round, the seconds in the learner's task and until the next; the share of them that are no updates."""
    ended: list[float] = []
    with tempfile.TemporaryDirectory() as store:
        run = daskrl.train(
            StandIn(hidden=(512,), window=10_000, seconds=seconds), Frames, store=store, client=client, device="cpu",
            env_steps=rounds * STREAMS * 256, streams=STREAMS, envs_per_stream=8, frame_stack=4, progress=False,
        )  # fmt: skip
        ended.extend(report.seconds for report in run)
        learned = [record["seconds"] for record in run.store.records("learn") if record["version"] > FIRST]
    each = (ended[-1] - ended[FIRST]) / (len(ended) - 1 - FIRST)  # the first is version 0
    share = verdict(1 - seconds / each, 0.05, at_least=False)
    return [f"{statistics.median(learned):.3f}", f"{each:.3f}", share]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, nargs="+", default=[0.5, 0.7, 1.0])
    arguments.add_argument("--rounds", type=int, default=60)
    given = arguments.parse_args()
    rows = []
    with (
        clusters.local(2) as cluster, Client(cluster) as client,
        clusters.local(2) as other, Client(other, set_as_default=False) as blind,
    ):  # fmt: skip
        blind.register_plugin(Blind())
        for seconds in given.seconds:
            for how, its in (("", client), ("without reading ahead", blind)):
                rows.append([f"{seconds:.2f}", how, *waited(seconds, given.rounds, its)])
    show(
        "Seconds of a round of 3,072 frames",
        ["updates", "", "learner's task", "from one to the next", "share of time waiting for data"],
        rows, packages=["torch", "distributed"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
