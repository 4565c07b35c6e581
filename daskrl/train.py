"""The main loop. `drive` is all of it; `Run` is its face for notebooks, scripts and the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskrl import extras, schedule, sources
from daskrl.algorithms.base import Algorithm, Setup, recurrent_state
from daskrl.commits import Record
from daskrl.config import Options, RunConfig, Schedule, plain, require_integer
from daskrl.dashboard import telling
from daskrl.demand import Demand
from daskrl.errors import ConfigError, NondeterministicError, StoreFullError
from daskrl.identity import (
    algorithm_identity,
    require_algorithm,
    require_known_keys,
    require_same_run,
    require_same_spec,
    same_algorithm,
    same_environment,
    try_algorithm,
)
from daskrl.initial import Init
from daskrl.initial import take as take_initial
from daskrl.names import suggests
from daskrl.pools import Checkpoint, DaskPool, InProcessPool, Plan, Pool, Recheck
from daskrl.rollout import GO_ON, own
from daskrl.session import versions
from daskrl.store import Progress, Store, html_table

if TYPE_CHECKING:
    from distributed import Client
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Report:
    """What is known after a version of the weights was published.

    Attributes
    ----------
    weights_version : rounds learned.
    env_steps : transitions committed.
    learner_updates : gradient updates made.
    episode_return : mean return of the newest 100 finished episodes; None before the first.
    episodes : finished episodes.
    loss : mean loss of the round; None before the first update.
    policy_lag : rounds between the newest committed fragment and the weights it acted with.
    replay_ratio : how often a transition was learned from, in the mean so far: gradient updates x transitions in each,
        per transition.
    workers : workers running rollouts now; 0 in-process.
    seconds : since this driver started.
    time_left : seconds to go at this driver's pace; None at first.
    evaluation_version : the newest version that was evaluated (``evaluate_every``); None before the first.
    evaluation_return : the mean return of its greedy episodes.
    best_version : the version with the highest such mean.
    best_return : its mean.
    """

    weights_version: int
    env_steps: int
    learner_updates: int
    episode_return: float | None
    episodes: int
    loss: float | None
    policy_lag: int
    replay_ratio: float
    workers: int
    seconds: float
    time_left: float | None
    evaluation_version: int | None = None
    evaluation_return: float | None = None
    best_version: int | None = None
    best_return: float | None = None


def drive(
    plan: Plan, store: Store, pool: Pool, progress: Progress, rounds: int, stop: threading.Event,
    committed: Callable[[list[Record]], None],
) -> Iterator[Report]:  # fmt: skip
    """Take a run from where its store stands to ``rounds`` rounds, or until ``stop`` is set and the pool woken.

    Yields a report for each new version, and for each evaluation. The loop submits whatever the schedule finds ready,
    waits, and commits what finished. All that lasts is in the store: it may stop at any point, and another driver goes
    on from there.
    ``committed`` is told every record.
    """
    config, options, began = store.config, plan.options, time.monotonic()
    at_start, demand = progress.published, Demand(config.schedule)

    def keep(version: int) -> tuple[bool, bool]:
        new, last = version > progress.published, version == rounds
        return (
            new
            and (
                last
                or version % options.weights_every == 0
                or schedule.to_evaluate(options.evaluate_every, rounds, version)
            ),
            new and version > 0 and (last or version % options.checkpoint_every == 0),
        )

    def evaluations() -> list[schedule.Evaluate]:
        every = options.evaluate_every
        return schedule.evaluations_due(every, rounds, progress.published, progress.kept, progress.evaluated)

    to_play = evaluations()
    while not stop.is_set() and (progress.published < rounds or to_play or pool.in_flight):
        # What is ready now?
        learns = schedule.learns_ready(
            config.schedule, rounds, progress.committed, progress.published, pool.held,
            {task for task in pool.in_flight if isinstance(task, schedule.Learn)},
        )  # fmt: skip
        rollouts = schedule.rollouts_ready(
            config.schedule, rounds, progress.committed, pool.held,
            {task for task in pool.in_flight if isinstance(task, schedule.Rollout)},
        )  # fmt: skip
        pool.submit_learns(learns, store.head, keep)
        pool.submit_rollouts(rollouts, store.head)
        # One after the other where rollouts leave room: when the next is due, at the latest, with their priority.
        pool.submit_evaluations(to_play, progress.kept, urgent=len(to_play) > 1 or progress.published >= rounds)
        pool.want(demand.slots)

        # What finished?
        outcomes = pool.wait()
        records = _records(store, plan, pool, progress, [(o.task, o.record) for o in outcomes])
        if not records:
            continue

        # Commit it; from here on it is part of the run.
        store.commit(records)
        committed(records)
        published, evaluated = progress.published, len(progress.evaluated)
        for record in records:
            progress.take(record)
            demand.take(record)
        for due, alone in () if progress.environment_off else progress.due:
            pool.submit_recheck(Recheck(due["slot"], due["weights_version"], json.dumps(due), alone), store.head)
        progress.due.clear()
        if progress.published > published:
            _drop_old_checkpoints(store, records, progress.published)
        if progress.published > published or len(progress.evaluated) > evaluated:
            to_play = evaluations()
            yield _report(config, plan, pool, progress, rounds, time.monotonic() - began, at_start)
        pool.release(schedule.kept(config.schedule, rounds, progress.committed, progress.published))


def conclude(plan: Plan, store: Store, pool: Pool, progress: Progress) -> None:
    """Stopped on the way: have the learner write where it stands, so that whoever resumes learns nothing again.

    The weights it reached are kept, so that what was learned can be used.
    """
    pool.submit_checkpoint(max(progress.kept, default=-1))
    while any(isinstance(task, Checkpoint) for task in pool.in_flight):
        records = _records(store, plan, pool, progress, [(o.task, o.record) for o in pool.wait()])
        if records:
            store.commit(records)
        for record in records:
            progress.take(record)


def _records(
    store: Store, plan: Plan, pool: Pool, progress: Progress, finished: list[tuple[Any, Record]]
) -> list[Record]:
    """The records to commit for what finished: nothing twice, and nothing that breaks the promise silently."""
    records: list[Record] = []
    published = progress.published
    if pool.arithmetic is not None and progress.arithmetic is None:
        records.append(pool.arithmetic)
    for task, record in finished:
        if isinstance(task, schedule.Rollout):
            records.append(record)
        elif isinstance(task, schedule.Learn):
            if task.version > published:  # else it was lost and learned again, or overtaken on another worker
                records.append(record)
                published = task.version
        elif isinstance(task, schedule.Evaluate):
            if record.get("kind") == "evaluation" and task.version not in progress.evaluated:
                records.append(record)
                if "error" in record:
                    warnings.warn(
                        f"version {task.version} could not be evaluated, and the run goes on: {record['error']}",
                        stacklevel=2,
                    )
        elif isinstance(task, Checkpoint):
            if (record["checkpoint"] or record["weights"]) and record["version"] <= published:
                records.append(record)
        elif isinstance(task, Recheck) and record["problem"] is not None:
            if plan.options.strict:
                raise NondeterministicError(
                    f"{record['problem']} {GO_ON}\n  Type: daskrl reproduce {store.root} --fragment {task.slot}"
                    f"{own(store.config)}"
                )
            if not progress.environment_off:
                progress.environment_off = True
                warnings.warn(f"{record['problem']} Going on without the promise.", stacklevel=2)
                records.append(_environment_breaks_promise(record["problem"]))
    for task, record in finished:
        if isinstance(task, schedule.Rollout) and not record["continues"]:
            records.append(
                _environment_breaks_promise(
                    f"fragment {record['slot']} starts new episodes: its environments could not be rebuilt"
                )
            )
        if record.get("out_of_bounds") and not progress.out_of_bounds:
            progress.out_of_bounds = True
            warnings.warn(
                f"{record['out_of_bounds'][0]}. It is stored as it is, and this is said once a run. Correct the "
                "space, or clip the observation; with strict_bounds=True (--strict-bounds) it is an error.",
                stacklevel=2,
            )
    records.extend({"kind": "promise_off", "reason": reason} for reason in pool.promise_off)
    records.extend(pool.notes)
    pool.promise_off.clear()
    pool.notes.clear()
    return records


def _environment_breaks_promise(reason: str) -> Record:
    return {"kind": "promise_off", "reason": reason, "environment": True}


def _report(
    config: RunConfig, plan: Plan, pool: Pool, progress: Progress, rounds: int, seconds: float, at_start: int,
) -> Report:  # fmt: skip
    steps = config.schedule.fragment_steps * config.schedule.envs_per_stream
    env_steps = sum(progress.committed) * steps
    newest = max(progress.committed) - 1
    newest_evaluated, best = progress.evaluation or (None, None), progress.best or (None, None)
    done = progress.published - max(at_start, 0)
    return Report(
        weights_version=progress.published,
        env_steps=env_steps,
        learner_updates=progress.learner_updates,
        episode_return=sum(progress.returns) / len(progress.returns) if progress.returns else None,
        episodes=progress.episodes,
        loss=progress.loss,
        policy_lag=newest - config.schedule.weights_version(newest) if newest >= 0 else 0,
        replay_ratio=progress.learner_updates * plan.transitions_per_update / env_steps if env_steps else 0.0,
        workers=pool.workers(),
        seconds=seconds,
        time_left=seconds / done * (rounds - progress.published) if done > 0 else None,
        evaluation_version=newest_evaluated[0],
        evaluation_return=newest_evaluated[1],
        best_version=best[0],
        best_return=best[1],
    )


def _drop_old_checkpoints(store: Store, records: list[Record], published: int) -> None:
    """Keep the newest checkpoint, and the one to start from where weights that streams still need are lost."""
    if any(record.get("checkpoint") for record in records):
        # Later files than ``published`` may be there already: the learner is up to two versions ahead of us.
        oldest = published - max(1, store.config.schedule.lag)
        files = sorted((store.root / ".checkpoints").glob("*.safetensors"))
        for old in [file for file in files if int(file.stem) <= oldest][:-1]:
            old.unlink(missing_ok=True)


class Run:
    """A run: ``for report in run`` or ``run.wait()`` carries it on, and either may be interrupted.

    With a client the work goes on in the background while a report is looked at; leaving the loop (``break``,
    an interrupted cell, Ctrl-C) stops it as `stop` does: the weights that it reached are kept, and can be evaluated.
    Looping again, `daskrl.resume` later, or another machine goes on.

    Attributes
    ----------
    store : the run's `Store`.
    report : the newest `Report`, or None.
    """

    def __init__(
        self,
        store: Store,
        algorithm: Algorithm,
        source: sources.EnvironmentSource,
        options: Options,
        env_steps: int,
        client: Client | None,
        progress: bool = True,
    ) -> None:
        self.store, self.algorithm, self.source, self.options = store, algorithm, source, options
        self.env_steps, self.client, self._show = env_steps, client, progress
        self.report: Report | None = None
        self._pool: Pool | None = None
        self._stop = threading.Event()

    @property
    def finished(self) -> bool:
        """Whether every version up to the budget is committed, and every evaluation that is due."""
        progress = Progress([0] * self.store.config.schedule.streams)
        for record in self.store.records():
            progress.take(record)
        return self._over(progress)

    def _over(self, progress: Progress) -> bool:
        every, rounds = self.options.evaluate_every, self._rounds
        due = schedule.evaluations_due(every, rounds, progress.published, progress.kept, progress.evaluated)
        return progress.published >= rounds and not due

    @property
    def _rounds(self) -> int:
        return self.store.config.schedule.rounds(self.env_steps)

    def wait(self) -> Run:
        """Carry the run on to its end."""
        for _ in self:
            pass
        return self

    def stop(self) -> None:
        """End the loop that carries the run on; from within it, another thread or a signal handler.

        The learner first writes a checkpoint of where it stands, so that whoever resumes learns nothing again, and the
        weights it reached, so that they can be evaluated. Where no loop goes on, the next one ends at once.
        """
        self._stop.set()
        if self._pool is not None:
            self._pool.wake()

    def __iter__(self) -> Iterator[Report]:
        reports = self._reports() if self.client is None else self._in_background()
        return self._shown(reports)

    def _reports(self) -> Iterator[Report]:
        """Hold the store's lock and a pool, and drive."""
        progress = self.store.lock()
        try:
            plan = Plan(self.store.layout, self.algorithm, self.source.factory, self.options, progress.arithmetic)
            if self._over(progress):
                return
            reason = self.source.remembers
            if reason is not None and not progress.environment_off:  # and strict=False, or there were no run
                warnings.warn(f"{reason} Going on without the promise.", stacklevel=2)
                record = _environment_breaks_promise(reason)
                self.store.commit([record])
                progress.take(record)
            self._pool = pool = InProcessPool(plan) if self.client is None else DaskPool(plan, self.client)
            try:
                with telling(self.client, self.store, plan.transitions_per_update) as committed:
                    try:
                        for report in drive(plan, self.store, pool, progress, self._rounds, self._stop, committed):
                            self.report = report
                            yield report
                    except (GeneratorExit, KeyboardInterrupt):  # in this process: whoever took the reports left
                        with contextlib.suppress(Exception):  # there is nobody to take it
                            self._conclude(plan, pool, progress)
                        raise
                self._conclude(plan, pool, progress)
            finally:
                self._pool = None
                pool.close()
        finally:
            self._stop.clear()
            self.store.unlock()

    def _conclude(self, plan: Plan, pool: Pool, progress: Progress) -> None:
        if progress.published < self._rounds:
            conclude(plan, self.store, pool, progress)

    def _in_background(self) -> Iterator[Report]:
        """Drive in a thread, so that workers never wait for whoever reads the reports."""
        reports: queue.SimpleQueue[Report | BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                for report in self._reports():
                    reports.put(report)
                reports.put(None)
            except BaseException as error:
                reports.put(error)

        thread = threading.Thread(target=work, name="daskrl driver", daemon=True)
        thread.start()
        try:
            while (item := reports.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.stop()
            thread.join()
            self._stop.clear()

    def _shown(self, reports: Iterator[Report]) -> Iterator[Report]:
        """Pass the reports on beside a progress bar: on a terminal or in Jupyter, not in a pipe."""
        tqdm = _bar()

        size = self.store.config.schedule.round_steps
        total = self._rounds * size
        with tqdm(total=total, unit="step", unit_scale=True, disable=None if self._show else True) as bar:
            bar.set_description(self.source.name)
            try:
                for report in reports:
                    if bar.n == 0:
                        bar.initial = report.env_steps  # a resumed run's pace is that of now
                    bar.n = report.env_steps
                    value = report.episode_return
                    bar.set_postfix(
                        {
                            "return": "-" if value is None else f"{value:.1f}",
                            "lag": report.policy_lag,
                            "replay": f"{report.replay_ratio:.1f}",
                            "workers": report.workers or "in-process",
                        }
                    )
                    yield report
            finally:
                reports.close()  # type: ignore[attr-defined]

    def plot(self, ax: Axes | None = None, **given: Any) -> Axes:
        """The learning curve so far; see `daskrl.plot_learning_curve`, which takes what else is given."""
        from daskrl.analysis import plot_learning_curve

        return plot_learning_curve(self.store, ax=ax, **given)

    def __repr__(self) -> str:
        where = "in-process" if self.client is None else f"on {self.client!r}"
        return f"<daskrl.Run {self.algorithm.__class__.__name__} {self.source.name} {where}, {self.store.root}>"

    def _repr_html_(self) -> str:
        return html_table("daskrl run", self.store.rows())


def _bar() -> Any:
    """tqdm's bar for where this runs; in Jupyter without widgets its text, and a warning that names the extra."""
    from tqdm.std import TqdmWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TqdmWarning)
        from tqdm.auto import tqdm
    if any(issubclass(warning.category, TqdmWarning) for warning in said):
        warnings.warn(
            f"the progress bar is text: Jupyter has no ipywidgets. {extras.install('notebook')}", stacklevel=2
        )
    return tqdm


@suggests
def train(
    algorithm: Algorithm,
    env: str | sources.EnvironmentFactory,
    *,
    store: str | os.PathLike[str],
    env_steps: int,
    seed: int = 0,
    client: Client | None = None,
    streams: int = 8,
    envs_per_stream: int = 4,
    fragment_steps: int = 32,
    lag: int | None = None,
    frame_stack: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    device: str = "auto",
    torch_threads: int = 1,
    recheck_every: int = 256,
    checkpoint_every: int = 50,
    weights_every: int = 10,
    rollout_timeout: float = 600.0,
    learner_timeout: float | None = None,
    strict: bool = True,
    strict_bounds: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    init: Init | None = None,
    init_version: int | str | None = None,
    init_replay: bool = False,
    evaluate_every: int = 0,
    evaluate_episodes: int = 10,
    progress: bool = True,
) -> Run:
    """Make a new run. It checks everything and creates the store; iterating or ``wait()`` carries it out.

    Parameters
    ----------
    algorithm : its settings, e.g. ``daskrl.DQN(n_step=3)``.
    env : a Gymnasium id, ``module:Id``, or a callable that returns an environment, also from a notebook cell.
    store : directory of the run; must not exist or be empty.
    env_steps : transitions to take, rounded up to whole rounds.
    seed : the only source of randomness.
    client : Dask client; None runs in this process, with the same bits.
    streams, envs_per_stream, fragment_steps, lag : see `Schedule`. Part of the experiment. ``lag`` is the
        algorithm's own by default: 0 for PPO, else 1.
    frame_stack : frames an observation is made of; 4 for ``ALE/*``, else 1.
    env_kwargs : given to ``gymnasium.make``.
    device : of the learner; ``"auto"`` takes CUDA where its worker has it.
    torch_threads : of the learner.
    recheck_every : every how many fragments one is run twice and compared, in the long run: the first are sooner. 0 for
        never.
    checkpoint_every, weights_every : rounds between checkpoints, and between weights kept on disk.
    rollout_timeout : seconds a fragment may take for its own steps; making an environment, and each recorded fragment
        that is stepped through again, may take as long.
    learner_timeout : seconds to wait for a worker that offers the resource ``learner`` or ``GPU``; then it learns
        beside the driver. None waits as long as it takes where the cluster has set one apart, elsewhere not at all.
    strict : with False, go on where the promise cannot be kept: the result may then be another one each time, and the
        store says so.
    strict_bounds : an observation outside the bounds of its space is an error; else one warning a run.
    overwrite : delete the run that is in ``store``.
    resume : go on with the run that is in ``store``, if it is this very run: what starts a job may start it again.
    init : begin with these weights instead of drawn ones: another run's store, a file of safetensors, or arrays by
        name. They are copied into the new store, which needs the other no more, and must be those of this algorithm and
        its settings. Of a store, what else was learned (SAC's and TD3's critics, running moments) is taken from the
        checkpoint of that version where it is there, as it is of the version that a finished or stopped run reached;
        without one, critics begin as drawn. Optimizers, priorities and counts of visits begin anew. The other run's
        digest is recorded, which reads all of it.
    init_version : of the store's weights; the newest kept by default, and ``"best"`` is that of `Store.best`.
    init_replay : begin with the store's newest rounds in the learner's window, too, as if they had come before the
        first round: learning starts at once. They are copied, as many as the window takes; streams, envs_per_stream,
        fragment_steps, frame_stack and the spaces must be the same.
    evaluate_every : rounds between two versions that are evaluated while the run goes on, by tasks of the same workers
        for which no rollout waits; the last version is, too. 0 for none. It changes no bit of the run.
    evaluate_episodes : greedy episodes of each evaluation, those of ``daskrl.evaluate(store, version=, episodes=)``.
    progress : show a progress bar.

    Raises
    ------
    ConfigError, UnknownEnvironmentError, UnsupportedSpaceError, StoreMismatchError
        Before anything is queued.
    """
    require_algorithm(algorithm)
    _require_client(client)
    env_steps = plain(env_steps)
    require_integer("env_steps", env_steps, 1)
    lag = getattr(algorithm, "lag", 1) if lag is None else lag
    shape = Schedule(streams, envs_per_stream, fragment_steps, lag)
    source = sources.source(env, **sources.arguments(env_kwargs))
    config = RunConfig(
        seed=seed,
        environment=source.identity,
        algorithm=algorithm_identity(algorithm),
        schedule=shape,
        frame_stack=source.default_frame_stack if frame_stack is None else frame_stack,
        torch_threads=torch_threads,
        recheck_every=recheck_every,
        device=device,
    )
    if init is None and (init_version is not None or init_replay):
        name, value = ("init_replay", True) if init_replay else ("init_version", init_version)
        raise ConfigError(f"{name}: expected with init, got {value!r} alone.")
    options = Options(
        checkpoint_every, weights_every, rollout_timeout, strict, learner_timeout, strict_bounds, evaluate_every,
        evaluate_episodes,
    )  # fmt: skip
    _require_forgetful(source, options)
    setup = Setup(source.spec, shape, config.frame_stack)
    try_algorithm(algorithm, setup)
    going_on = resume and Store.exists(store)
    initial = None
    if init is not None:
        initial = take_initial(init, init_version, algorithm, setup, replay=init_replay, digest=not going_on)
        if initial.replay is not None and overwrite and initial.replay.root == Path(store).absolute():
            raise ConfigError(
                "init_replay: the run in store= would be deleted before it is copied. Choose another store=."
            )
        config = dataclasses.replace(config, init=initial.identity)
    if going_on:
        opened = Store.open(store)
        require_same_run(opened, config, algorithm)
        require_same_spec(opened, source)
        return _resumed(opened, algorithm, source, env_steps, vars(options), client, progress)
    try:
        made = Store.create(
            store, config, source.spec, extras=getattr(algorithm, "columns", {}),
            state=recurrent_state(algorithm, setup), env_steps=env_steps, options=options,
            versions=versions(config.packages), overwrite=overwrite,
            initial=initial,
        )  # fmt: skip
    except OSError as error:  # of the files of the arrays
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or isinstance(error, StoreFullError):
            raise
        why = os.strerror(error.errno)
        raise StoreFullError(
            error.errno, f"cannot make {os.fspath(store)}: {why}. Nothing was created; make room."
        ) from error
    return Run(made, algorithm, source, options, env_steps, client, progress)


@suggests
def resume(
    store: str | os.PathLike[str],
    *,
    client: Client | None = None,
    env_steps: int | None = None,
    algorithm: Algorithm | None = None,
    env: sources.EnvironmentFactory | None = None,
    checkpoint_every: int | None = None,
    weights_every: int | None = None,
    rollout_timeout: float | None = None,
    learner_timeout: float | None = None,
    strict: bool | None = None,
    strict_bounds: bool | None = None,
    evaluate_every: int | None = None,
    evaluate_episodes: int | None = None,
    progress: bool = True,
) -> Run:
    """Go on with a run from its store, wherever it was stopped and on whatever workers.

    Parameters
    ----------
    env_steps : a larger budget; the result is that of a run started with it.
    algorithm, env : again the class instance or callable the run was made with, where they were not built in;
        their settings and the hash of their source are checked. Nothing is pickled in a store.
    checkpoint_every, weights_every, rollout_timeout, learner_timeout, strict, strict_bounds : change these options.
    evaluate_every, evaluate_episodes : so do these. Versions that are due and not evaluated yet are made up for, where
        their weights are kept.
    client, progress : as in `train`.

    Raises
    ------
    StoreMismatchError
        Not a store, another format, or another environment or algorithm than the store was made with.
    """
    _require_client(client)
    opened = Store.open(store)
    require_known_keys(opened)
    source = same_environment(opened, env)
    algorithm = same_algorithm(opened, algorithm)
    changes = {
        "checkpoint_every": checkpoint_every, "weights_every": weights_every,
        "rollout_timeout": rollout_timeout, "learner_timeout": learner_timeout, "strict": strict,
        "strict_bounds": strict_bounds,
        "evaluate_every": evaluate_every, "evaluate_episodes": evaluate_episodes,
    }  # fmt: skip
    return _resumed(opened, algorithm, source, env_steps, changes, client, progress)


def _resumed(
    store: Store,
    algorithm: Algorithm,
    source: sources.EnvironmentSource,
    env_steps: int | None,
    changes: dict[str, Any],
    client: Client | None,
    progress: bool,
) -> Run:
    """Go on, with another budget and other options where they are not None."""
    budget = store.budget()
    before = Options.from_json(budget["options"])
    options = dataclasses.replace(before, **{name: v for name, v in changes.items() if v is not None})
    _require_forgetful(source, options)
    steps = budget["env_steps"] if env_steps is None else plain(env_steps)
    require_integer("env_steps", steps, budget["env_steps"])
    if options != before or steps != budget["env_steps"]:
        store.lock()
        try:
            store.commit([{"kind": "budget", "env_steps": steps, "options": dataclasses.asdict(options)}])
        finally:
            store.unlock()
    return Run(store, algorithm, source, options, steps, client, progress)


def _require_forgetful(source: sources.EnvironmentSource, options: Options) -> None:
    if source.remembers is not None and options.strict:
        raise ConfigError(f"env: {source.remembers} {GO_ON}")


def _require_client(client: object) -> None:
    if client is None:
        return
    from distributed import Client

    if not isinstance(client, Client) or client.asynchronous:
        raise ConfigError(
            f"client: expected None or a connected distributed.Client (not an asynchronous one), got {client!r}. "
            "Type: from distributed import Client; client = Client(cluster)"
        )
