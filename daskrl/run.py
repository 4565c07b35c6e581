"""A run as a user has it: `train` and `resume` make a `Run`, and a loop over the `Run` carries it on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from daskrl import schedule
from daskrl.algorithms.base import Algorithm
from daskrl.analysis import policies  # noqa: F401  gives the store its method `policy`
from daskrl.config import Options, plain, require_integer
from daskrl.envs import source as sources
from daskrl.errors import ConfigError
from daskrl.identity import (
    require_known_keys,
    require_same_run,
    require_same_spec,
    same_algorithm,
    same_environment,
)
from daskrl.loop import conclude, drive, environment_breaks_promise
from daskrl.names import suggests
from daskrl.pools.base import Plan, Pool
from daskrl.pools.dask import DaskPool
from daskrl.pools.local import InProcessPool
from daskrl.prepared import prepare, require_forgetful
from daskrl.records import Report
from daskrl.shown import html_table
from daskrl.store.pack import unpack
from daskrl.store.packed import Packed
from daskrl.store.places import found
from daskrl.store.progress import Progress
from daskrl.store.store import Store
from daskrl.tasks.initial import Init
from daskrl.tasks.initial import take as take_initial
from daskrl.watching.bar import Bar
from daskrl.watching.callbacks import Callback, Told, passed, require_callbacks
from daskrl.watching.watched import Watched

if TYPE_CHECKING:
    from distributed import Client
    from matplotlib.axes import Axes


class Run(Watched):
    """A run: ``for report in run`` or ``run.wait()`` carries it on, and either may be interrupted.

    With a client the work goes on in the background while a report is looked at; leaving the loop (``break``,
    an interrupted cell, Ctrl-C) stops it as `stop` does: the weights that it reached are kept, and can be evaluated.
    Looping again, `daskrl.resume` later, or another machine goes on.

    Attributes
    ----------
    store : the run's `Store`.
    report : the newest `Report`, or None.
    callbacks : a list of what is told of the run as it goes on, see `Callback`. A loop takes those that are in it when
        it begins.
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
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.callbacks = require_callbacks(callbacks)
        self.store, self.algorithm, self.source, self.options = store, algorithm, source, options
        self.env_steps, self.client, self.progress = env_steps, client, progress
        self.report: Report | None = None
        self._pool: Pool | None = None
        self._stop = threading.Event()

    @property
    def finished(self) -> bool:
        """Whether every version up to the budget is committed, and every evaluation that is due."""
        return self._over(self.store.progress())

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

    def reports(self, *, progress: bool | None = None, callbacks: Sequence[Callback] = ()) -> Iterator[Report]:
        """Carry the run on, as ``for report in run`` does.

        Parameters
        ----------
        progress : whether there is a progress bar this time; what the run was made with by default.
        callbacks : further ones for this time.
        """
        everybody = [*require_callbacks(self.callbacks), *require_callbacks(callbacks)]
        if self.client is not None:  # without a scheduler there is no page: copies for nobody
            from daskrl.watching.dashboard import Telling  # brings distributed

            everybody.insert(0, Telling())
        bar = Bar(
            self.source.name,
            self._rounds * self.store.config.schedule.round_steps,
            self.progress if progress is None else progress,
        )
        told = Told(self, everybody)
        return passed(self._driven(told) if self.client is None else self._in_background(told), bar, self)

    def _driven(self, told: Told) -> Iterator[Report]:
        """Hold the store's lock and a pool, and drive."""
        if isinstance(self.store.storage, Packed):
            if self.finished:
                return
            unpack(self.store)
        progress = self.store.lock()
        try:
            plan = Plan(self.store.layout, self.algorithm, self.source.factory, self.options, progress.arithmetic)
            if self._over(progress):
                return
            reason = self.source.remembers
            if reason is not None and not progress.environment_off:  # and strict=False, or there were no run
                warnings.warn(f"{reason} Going on without the promise.", stacklevel=2)
                record = environment_breaks_promise(reason)
                self.store.commit([record])
                progress.take(record)
            self._pool = pool = InProcessPool(plan) if self.client is None else DaskPool(plan, self.client)
            try:
                with told:
                    try:
                        for report in drive(plan, self.store, pool, progress, self._rounds, self._stop, told):
                            self.report = report
                            told.reported(report)
                            yield report
                    except BaseException as error:
                        # In this process whoever took the reports left; or a callback ended the loop.
                        if isinstance(error, GeneratorExit | KeyboardInterrupt) or error is told.error:
                            with contextlib.suppress(Exception):  # there is nobody to take it
                                self._conclude(plan, pool, progress, told)
                        raise
                    self._conclude(plan, pool, progress, told)
            finally:
                self._pool = None
                pool.close()
        finally:
            self._stop.clear()
            self.store.unlock()

    def _conclude(self, plan: Plan, pool: Pool, progress: Progress, told: Told) -> None:
        if progress.published < self._rounds:
            conclude(plan, self.store, pool, progress, told)

    def _in_background(self, told: Told) -> Iterator[Report]:
        """Drive in a thread, so that workers never wait for whoever reads the reports."""
        reports: queue.SimpleQueue[Report | BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                for report in self._driven(told):
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

    def plot(self, ax: Axes | None = None, **given: Any) -> Axes:
        """The learning curve so far; see `daskrl.plot_learning_curve`, which takes what else is given."""
        from daskrl.analysis.curve import plot_learning_curve

        return plot_learning_curve(self.store, ax=ax, **given)

    def __repr__(self) -> str:
        where = "in-process" if self.client is None else f"on {self.client!r}"
        return f"<daskrl.Run {self.algorithm.__class__.__name__} {self.source.name} {where}, {self.store.storage}>"

    def _repr_html_(self) -> str:
        return html_table("daskrl run", self.store.rows())


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
    callbacks: Sequence[Callback] = (),
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
    resume : go on with the run that is in ``store``, if it is this very run: what starts a job may start it again. A
        packed run (`daskrl.pack`) that is to go on is unpacked first; a finished one stays packed.
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
    callbacks : objects that are told of the run as it goes on, see `Callback`. They change no bit of it.

    Raises
    ------
    ConfigError, UnknownEnvironmentError, UnsupportedSpaceError, StoreMismatchError
        Before anything is queued.
    """
    _require_client(client)
    require_callbacks(callbacks)
    options = Options(
        checkpoint_every, weights_every, rollout_timeout, strict, learner_timeout, strict_bounds, evaluate_every,
        evaluate_episodes,
    )  # fmt: skip
    prepared = prepare(
        algorithm, env, env_steps=env_steps, seed=seed, streams=streams, envs_per_stream=envs_per_stream,
        fragment_steps=fragment_steps, lag=lag, frame_stack=frame_stack, env_kwargs=env_kwargs, device=device,
        torch_threads=torch_threads, recheck_every=recheck_every, options=options,
    )  # fmt: skip
    if init is None and (init_version is not None or init_replay):
        name, value = ("init_replay", True) if init_replay else ("init_version", init_version)
        raise ConfigError(f"{name}: expected with init, got {value!r} alone.")
    going_on = resume and Store.exists(store)
    if init is not None:
        initial = take_initial(
            init, init_version, algorithm, prepared.setup, replay=init_replay, digest=not going_on
        )  # fmt: skip
        if initial.replay is not None and overwrite and initial.replay.storage == found(store):
            raise ConfigError(
                "init_replay: the run in store= would be deleted before it is copied. Choose another store=."
            )
        prepared = prepared.begun_with(initial)
    if going_on:
        opened = Store.open(store)
        require_same_run(opened, prepared.config, algorithm, prepared.source)
        require_same_spec(opened, prepared.source)
        steps = prepared.env_steps
        return _resumed(opened, algorithm, prepared.source, steps, vars(options), client, progress, callbacks)
    made = prepared.create(store, overwrite=overwrite)
    return Run(made, algorithm, prepared.source, options, prepared.env_steps, client, progress, callbacks)


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
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Go on with a run from its store, wherever it was stopped and on whatever workers.

    A packed run (`daskrl.pack`) is unpacked first, where there is something to do: its directory is there again.

    Parameters
    ----------
    env_steps : a larger budget; the result is that of a run started with it.
    algorithm, env : again the class instance or callable the run was made with, where they were not built in;
        their settings and the hash of their source are checked. Nothing is pickled in a store.
    checkpoint_every, weights_every, rollout_timeout, learner_timeout, strict, strict_bounds : change these options.
    evaluate_every, evaluate_episodes : so do these. Versions that are due and not evaluated yet are made up for, where
        their weights are kept.
    client, progress, callbacks : as in `train`.

    Raises
    ------
    StoreMismatchError
        Not a store, another format, or another environment or algorithm than the store was made with.
    """
    _require_client(client)
    require_callbacks(callbacks)
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
    return _resumed(opened, algorithm, source, env_steps, changes, client, progress, callbacks)


def _resumed(
    store: Store,
    algorithm: Algorithm,
    source: sources.EnvironmentSource,
    env_steps: int | None,
    changes: dict[str, Any],
    client: Client | None,
    progress: bool,
    callbacks: Sequence[Callback],
) -> Run:
    """Go on, with another budget and other options where they are not None."""
    budget = store.budget()
    before = Options.from_json(budget["options"])
    options = dataclasses.replace(before, **{name: v for name, v in changes.items() if v is not None})
    require_forgetful(source, options)
    steps = budget["env_steps"] if env_steps is None else plain(env_steps)
    require_integer("env_steps", steps, budget["env_steps"])
    if options != before or steps != budget["env_steps"]:
        unpack(store)
        store.lock()
        try:
            store.commit([{"kind": "budget", "env_steps": steps, "options": dataclasses.asdict(options)}])
        finally:
            store.unlock()
    return Run(store, algorithm, source, options, steps, client, progress, callbacks)


def _require_client(client: object) -> None:
    if client is None:
        return
    from distributed import Client

    if not isinstance(client, Client) or client.asynchronous:
        raise ConfigError(
            f"client: expected None or a connected distributed.Client (not an asynchronous one), got {client!r}. "
            "Type: from distributed import Client; client = Client(cluster)"
        )
