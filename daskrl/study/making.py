"""From what is asked for to runs: what the log keeps of an ask, and the jobs that carry its runs out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daskrl.codec import encoded
from daskrl.prepared import Prepared
from daskrl.study.definition import Definition, Preparing
from daskrl.study.executors import Executor
from daskrl.study.handing import Begins
from daskrl.study.log import Asked, AskRecord, StudyLog
from daskrl.study.search import Ask, Segment, Wait
from daskrl.study.trial import Job, trial_key

RUNS, HANDED = "runs", "handed"


@dataclass(frozen=True)
class Making:
    """Of one study, and what carries its runs out.

    Attributes
    ----------
    judged : what the score is known by.
    pack : whether runs are packed once they have all env steps.
    """

    definition: Definition
    preparing: Preparing
    log: StudyLog
    executor: Executor
    judged: str
    pack: bool

    def job(self, ask: Ask, environment: str, seed: int, trial: str, given: Mapping[str, Any]) -> Job:
        """What is to be carried out of a run; ``given``: see `given`."""
        assert self.log.arithmetic is not None
        runs = self.log.storage.folder(RUNS).folder(trial)
        whole = self.pack and ask.env_steps == self.definition.env_steps  # else it may go on
        job = Job(trial, runs, seed, ask.env_steps, self.log.arithmetic, whole, given[environment], self.judged)
        return job if ask.segment is None else self._of_member(job, ask.segment, environment)

    def given(self, ask: Ask) -> dict[str, Any]:
        """The run of an ask in each environment, as jobs take them."""
        return self._given(self._prepared(ask))

    def _prepared(self, ask: Ask) -> dict[str, Prepared]:
        return {label: self.preparing.prepared(ask.setting, label) for label in self.definition.environments}

    def _given(self, prepared: Mapping[str, Prepared]) -> dict[str, Any]:
        score = self.definition.score
        return {environment: self.executor.given(run, score) for environment, run in prepared.items()}

    def record(self, number: int, ask: Ask | Wait) -> tuple[AskRecord, dict[str, Any] | None]:
        """What the log keeps of an ask; and its runs, as jobs take them."""
        if isinstance(ask, Wait):
            return {"kind": "ask", "ask": number, "asked": None}, None
        trials: list[list[Any]] = []
        runs = self._prepared(ask)
        for environment, prepared in runs.items():
            for seed in self.definition.seeds:
                its, begins = seed, None
                if ask.segment is not None:
                    its = ask.segment.seed(self.definition.study_seed, seed)
                    begins = self._begins(ask.segment, environment, seed)
                trials.append([environment, seed, trial_key(prepared.with_seed(its), begins)])
        setting = {name: encoded(value, name) for name, value in ask.setting.items()}
        asked: Asked = {"number": ask.number, "setting": setting, "env_steps": ask.env_steps, "trials": trials}
        if ask.note:
            asked["note"] = dict(ask.note)
        if ask.segment is not None:
            asked["segment"] = dataclasses.asdict(ask.segment)
        return {"kind": "ask", "ask": number, "asked": asked}, self._given(runs)

    def _begins(self, segment: Segment, environment: str, seed: int) -> Begins | None:
        """What a member's run begins with."""
        if segment.parent is None:
            return None
        kept = self.log.asks[segment.parent]
        assert kept is not None
        trial = next(trial for label, its, trial in kept["trials"] if (label, its) == (environment, seed))
        runs = self.log.storage.folder(RUNS).folder(trial)
        return Begins(
            trial, kept["env_steps"], segment.before, self.log.storage.folder(HANDED), segment.optimizer,
            runs if segment.replay else None,
        )  # fmt: skip

    def _of_member(self, job: Job, segment: Segment, environment: str) -> Job:
        """The job of a member of a population."""
        begins = self._begins(segment, environment, job.seed)
        if begins is not None:
            begins = dataclasses.replace(begins, sha256=self.log.results[begins.trial, begins.env_steps].get("handed"))
        seed = segment.seed(self.definition.study_seed, job.seed)
        self.log.storage.make_folder(HANDED)
        return dataclasses.replace(job, seed=seed, begins=begins, hands_to=self.log.storage.folder(HANDED))
