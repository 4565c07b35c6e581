"""A study as a user has it: many runs that answer one question, on one elastic pool. `Study.run` is its loop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from daskrl.errors import ConfigError, EarlyRungsWarning
from daskrl.records import Array
from daskrl.shown import html_table
from daskrl.store.places import Place
from daskrl.study import confirming, exports, scores
from daskrl.study import definition as definitions
from daskrl.study import table as tables
from daskrl.study.budget import Budget
from daskrl.study.compare import Comparison, compare
from daskrl.study.definition import Preparing
from daskrl.study.early import early
from daskrl.study.executors import Executor, InProcess, OnWorkers
from daskrl.study.log import Asked, Entry, StudyLog, setting_of, study_record
from daskrl.study.making import Making
from daskrl.study.search import WAIT, Ask, Segment, Wait, counting, decidable, mean_score
from daskrl.study.trial import Job
from daskrl.study.winner import Optimism

if TYPE_CHECKING:
    import optuna
    import pandas
    from distributed import Client

    from daskrl.study.live import Live

_AHEAD = 256  # runs that are looked at before there is room for them


class Study:
    """Many runs: settings out of a space, each in every environment and from every seed.

        study = daskrl.Study("studies/lr", algorithm=daskrl.DQN, env="CartPole-v1",
                             space={"learning_rate": [1e-4, 1e-3]}, seeds=10, env_steps=50_000)
        study.run(client)
        study.table()

    What runs, and what each gives, is decided by what is given here alone: the table is the same, bit for bit, on any
    pool, after any kill, resumed or not. Making the same study again opens it; with more seeds, values or env steps it
    is extended, and what is there is not run again.

    Parameters
    ----------
    path : its directory, or a URL; holds the study's log and the stores of its runs.
    algorithm : a class of algorithms, or an instance whose settings are the defaults; or several, by name in a dict.
    env : a Gymnasium id or a callable, as `daskrl.train` takes it; or several, by name in a dict. Every setting is
        tried in each of them.
    space : name of a setting -> a list of values, `Range`, `When`, or a distribution of Optuna's. Settings of the
        algorithm, those of a run (``streams``, ``envs_per_stream``, ``fragment_steps``, ``lag``, ``frame_stack``,
        ``torch_threads``), and arguments of the environment as ``env.NAME``.
    seeds : how many, or which.
    env_steps : transitions of each run.
    score : what a run is judged by, more is better: ``"last"`` or ``"best"`` (20 greedy episodes of those weights),
        ``"auc"``, one of `Greedy`, `AreaUnderCurve` and `StepsTo`, or a function of a `daskrl.Store`.
    search : what is tried in which order; `Grid` where all settings have lists.
    study_seed : what the search draws is derived from it.
    given : what else `daskrl.train` takes, for all runs.

    Attributes
    ----------
    definition, log : what it was given, and what it wrote down.
    warned : sentences about what makes its results doubtful from the start, each an `EarlyRungsWarning`, too.

    Raises
    ------
    ConfigError
        Something cannot work; nothing was made.
    StoreMismatchError
        The directory holds another study, or something else.
    """

    def __init__(
        self,
        path: Place,
        *,
        algorithm: Any,
        env: Any,
        space: Mapping[str, Any] | None = None,
        seeds: int | Iterable[int] = 10,
        env_steps: int,
        score: Any = "last",
        search: Any = None,
        study_seed: int = 0,
        **given: Any,
    ) -> None:
        self.definition = definitions.define(
            algorithm=algorithm, env=env, space=space, seeds=seeds, env_steps=env_steps, score=score, search=search,
            study_seed=study_seed, given=given,
        )  # fmt: skip
        self._preparing = Preparing(self.definition)
        self._said = self.definition.to_json()
        self._judged = hashlib.sha256(json.dumps(self._said["score"], sort_keys=True).encode()).hexdigest()[:20]
        self._stop = threading.Event()
        self._executor: Executor | None = None
        self._extends = False
        if StudyLog.exists(path):
            self.log = StudyLog.open(path)
            self._extends = definitions.require_same(self.log.definition, self._said, str(self.log.storage))
            self.warned = self._early() if self._extends else self.log.warned
        else:
            self._preparing.try_some(_AHEAD)
            self.warned = self._early()
            self.log = StudyLog.make(path, self._said, self.warned)
        for sentence in self.warned:
            warnings.warn(sentence, EarlyRungsWarning, stacklevel=2)

    def _early(self) -> list[str]:
        return [*filter(None, [early(self.definition, self._preparing)])]

    # -- carrying on ---------------------------------------------------------------------------------------

    def run(
        self, client: Client | None = None, *, progress: bool = True, retry_failed: bool = False, grain: str = "auto",
        seconds: float | None = None, worker_hours: float | None = None, updates: int | None = None,
        pack: bool = True,
    ) -> Study:  # fmt: skip
        """Carry the study on to its end, or until `stop`; it may be interrupted and gone on with, anywhere.

        Parameters
        ----------
        client : of Dask; each run is one task of a worker. None carries out one after the other in this process. The
            results are the same.
        progress : show a bar of runs, and in Jupyter a table of settings, updated once a second at most. With a client
            the table is in Dask's dashboard in any case, at ``/daskrl``.
        retry_failed : runs that failed are tried again.
        grain : with a client, ``"task"``: each run is one task of a worker, and has a checkpoint every 256 env steps at
            the latest. ``"spread"``: each run's rollouts are spread over the workers, as those of `daskrl.train`.
            ``"auto"``: a run of 200,000 env steps or more is spread where fewer are left than workers have threads. The
            results are the same.
        seconds, worker_hours, updates : once so much is spent no run is begun and nothing is asked for any more; runs
            that were begun are finished. ``seconds`` are of this call; ``worker_hours`` and ``updates`` (of learners)
            are of all results of the study. Running it again goes on. A budget decides how far the study comes, never
            what is asked for or what a run gives: those results that are there are the ones it has without a budget.
        pack : each run that went all its env steps becomes one file, see `daskrl.pack`; a study has many.

        Raises
        ------
        StoreLockedError
            Another process carries the study on.
        """
        if grain not in ("auto", "task", "spread"):
            raise ConfigError(f"grain: expected 'auto', 'task' or 'spread', got {grain!r}.")
        budget = Budget(seconds, worker_hours, updates)
        self._stop.clear()
        self.log.lock()
        try:
            if self._extends:
                self.log.append([study_record(self._said, self.warned)])
                self._extends = False
            failed = sorted({record["trial"] for record in self.log.results.values() if "error" in record})
            if retry_failed and failed:
                self.log.append([{"kind": "retry", "trials": failed}])
            self._executor = executor = InProcess() if client is None else OnWorkers(client, grain)
            try:
                if self.log.arithmetic is None:
                    packages = self.definition.packages()
                    device = self.definition.shape.get("device", "auto")
                    executor.want(1)  # of a cluster that has no worker yet
                    self.log.append([executor.introduce(packages, device)])
                with _bar(self, progress, client) as bar:
                    self._drive(executor, bar, budget, pack)
            finally:
                self._executor = None
                executor.close()
        finally:
            self.log.unlock()
        return self

    def stop(self) -> None:
        """End `run` from another thread or a signal handler.

        A run that this process carries on ends at its next commit; runs on their way keep what they committed, and go
        on from there when the study does.
        """
        self._stop.set()
        if self._executor is not None:
            self._executor.wake()

    def _drive(self, executor: Executor, bar: Live, budget: Budget, pack: bool) -> None:
        """The loop: decide what is asked, have its runs carried out, commit what they gave."""
        definition, search, log = self.definition, self.definition.search, self.log
        making = Making(definition, self._preparing, log, executor, self._judged, pack)
        asked: list[Ask | Wait] = []
        missing: list[int] = []  # of each ask, runs without a result
        told: dict[int, float] = {}
        awaited: dict[tuple[str, int], list[int]] = {}  # of each run on its way, the asks that are for it
        ready: deque[Job] = deque()
        entries: list[Entry] = []
        complete, in_flight, over = 0, 0, False

        def take(ask: Ask | Wait, trials: list[list[Any]], given: Mapping[str, Any] | None = None) -> None:
            number = len(asked)
            asked.append(ask)
            missing.append(0)
            if isinstance(ask, Wait):
                return
            for environment, seed, trial in trials:
                if (trial, ask.env_steps) in log.results:
                    continue
                missing[number] += 1
                awaiting = awaited.setdefault((trial, ask.env_steps), [])
                awaiting.append(number)
                if len(awaiting) > 1:
                    continue
                if given is None:
                    given = making.given(ask)
                ready.append(making.job(ask, environment, seed, trial, given))

        def settle() -> None:
            nonlocal complete
            while complete < len(asked) and not missing[complete]:
                ask = asked[complete]
                if isinstance(ask, Ask):
                    told[complete] = self._score(complete)
                complete += 1

        for kept in log.asks:
            take(_ask(kept), [] if kept is None else kept["trials"])
        bar.update(len(log.results) - bar.n)
        while not self._stop.is_set():
            settle()
            spent = budget.spent(log.results.values())
            while not (over or spent) and len(ready) < _AHEAD and decidable(search, len(asked), complete):
                number = len(asked)
                ask = search.next(
                    definition.space, definition.env_steps, definition.study_seed, asked, counting(search, number, told)
                )
                idle = search.width is not None and complete == number
                if ask is None or (ask is WAIT and idle and all(one is WAIT for one in asked[-(search.width or 1) :])):
                    over = True
                    break
                record, given = making.record(number, ask)
                entries.append(record)
                log.asks.append(record["asked"])
                take(ask, [] if record["asked"] is None else record["asked"]["trials"], given)
                settle()
            while ready and not spent and executor.room() > 0:
                job = ready.popleft()
                executor.submit(job, len(ready))
                in_flight += 1
            executor.want(0 if spent else len(ready))
            if not in_flight and (spent or not ready):
                bar.over = over and not ready
                break
            results = executor.wait()
            in_flight -= len(results)
            if results:
                log.append([*entries, *results])
                entries.clear()
                bar.update(len(results))
            for result in results:
                for number in awaited.pop((result["trial"], result["env_steps"])):
                    missing[number] -= 1
        if entries:
            log.append(entries)

    def _score(self, number: int) -> float:
        """The score of an ask that is complete; NaN where a run of it failed."""
        kept = self.log.asks[number]
        assert kept is not None
        by_environment: dict[str, list[float]] = {}
        for environment, _, trial in kept["trials"]:
            score = self.log.results[trial, kept["env_steps"]]["score"]
            by_environment.setdefault(environment, []).append(float("nan") if score is None else score)
        return mean_score(list(by_environment.values()))

    # -- looking at it -------------------------------------------------------------------------------------

    def table(self) -> pandas.DataFrame:
        """A row a run, in the order of settings, environments and seeds; see `daskrl.study.table.table`."""
        return tables.table(self.log)

    def lineage(self) -> pandas.DataFrame:
        """Of a population: a row a member and round, and what each goes back to; see `daskrl.study.lineage.lineage`."""
        from daskrl.study.lineage import lineage

        return lineage(self.log)

    def compare(self, by: str | Sequence[str], **given: Any) -> Comparison:
        """Which values of some settings are better, by how much, and how sure that is.

        Parameters
        ----------
        by : a setting of the space, or several, whose values make the groups; or ``"algorithm"``.
        given : as of `daskrl.study.compare.compare`: ``normalise``, ``pairs``, ``failed`` and others.
        """
        axes = list(self.definition.space.axes)
        return compare(self.table(), by, **{"settings": axes, "unit": scores.unit(self.definition.score), **given})

    def report(self, path: str | os.PathLike[str] | None = None, **given: Any) -> str:
        """Write one self-contained HTML page, or a PDF, of this study, finished or not; gives the path.

        Parameters
        ----------
        path : of the file; by default ``report.html`` in the study's directory. One that ends with ``.pdf`` is a PDF.
        given : as of `daskrl.study.report.report`: ``episodes``.
        """
        from daskrl.study.report import report

        return report(self.log, path, **given)

    def to_optuna(self, storage: Any = None, *, name: str | None = None) -> optuna.Study:
        """One of Optuna's studies, a trial for each setting; see `daskrl.study.exports.to_optuna`."""
        return exports.to_optuna(self.log, storage, name=name)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the table to a Parquet file; see `daskrl.study.exports.to_parquet`."""
        exports.to_parquet(self.log, path)

    def to_rliable(self, by: str | Sequence[str] | None = None) -> dict[str, Array]:
        """Scores as rliable takes them: group -> ``[runs, environments]``; see `daskrl.study.exports.to_rliable`."""
        return exports.to_rliable(self.log, by)

    def to_mlflow(self, experiment: str | None = None, *, tracking_uri: str | None = None) -> int:
        """Log runs to MLflow; see `daskrl.study.exports.to_mlflow`."""
        return exports.to_mlflow(self.log, experiment, tracking_uri=tracking_uri)

    def to_wandb(self, project: str = "daskrl", **given: Any) -> int:
        """Log runs to Weights & Biases; see `daskrl.study.exports.to_wandb`."""
        return exports.to_wandb(self.log, project, **given)

    def confirm(self, client: Client | None = None, *, seeds: int = 10, **given: Any) -> Optimism:
        """Run the winner again from seeds that the study has not seen, and say how much better it looked before.

        The best of many settings looks better than it is, as it was chosen by the luck of its seeds, too. The runs are
        a study of their own, in ``confirmed/`` below this one's directory: it goes on where it was interrupted. What
        was found stands in this study's log and report; `confirmed` has it in any later process.

        Parameters
        ----------
        client, given : as of `run`.
        seeds : how many, those that follow the study's largest; more where more were run before.

        Raises
        ------
        ConfigError
            Nothing is finished yet, or the study is a population.
        StoreLockedError
            Another process carries the study on.
        """
        return confirming.confirm(self.log, self.definition, type(self), client, seeds, given)

    def confirmed(self) -> Optimism | None:
        """What the last `confirm` found, in whichever process; None where there was none."""
        return confirming.confirmed(self.log)

    def digest(self) -> str:
        """SHA-256 over the table without what a pool decides: seconds, workers."""
        return tables.digest(self.log)

    def summary(self) -> dict[str, Any]:
        """How far the study is, name -> value."""
        return tables.summary(self.log)

    def more(self) -> list[str]:
        """What was given of more than the study has that is there: of ``seeds``, ``space``, ``env_steps`` and others.

        `run` begins by extending the study by that.
        """
        kept = self.log.definition
        return [name for name, said in self._said.items() if said != kept.get(name)] if self._extends else []

    def __repr__(self) -> str:
        said = self.summary()
        how = f"{said['finished']} of {said['runs']} runs finished, {said['failed']} failed"
        return f"<daskrl.Study {said['study']}: {how}>"

    def _repr_html_(self) -> str:
        return html_table("daskrl study", self.summary())


def _ask(kept: Asked | None) -> Ask | Wait:
    if kept is None:
        return WAIT
    segment = Segment(**kept["segment"]) if "segment" in kept else None
    return Ask(kept["number"], setting_of(kept), kept["env_steps"], kept.get("note", {}), segment)


def _bar(study: Study, shown: bool, client: Client | None) -> contextlib.AbstractContextManager[Live]:
    from daskrl.study.live import live

    definition = study.definition
    total = None
    if definition.search.width is None and definition.space.is_grid and type(definition.search).__name__ == "Grid":
        total = sum(1 for _ in definition.space.grid()) * len(definition.environments) * len(definition.seeds)
    return live(study.log, total, shown, client)
