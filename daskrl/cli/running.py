"""Commands that carry a run on: ``daskrl train`` and ``daskrl resume``."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from daskrl.cli import given
from daskrl.cli.app import app, say, table
from daskrl.cli.options import (
    NO_SINKS,
    Cluster,
    Env,
    Episodes,
    Keywords,
    OwnAlgorithm,
    Scheduler,
    Sinks,
    StorePath,
    SummaryAsJson,
    Workers,
)
from daskrl.cli.signals import carry_out, given_up_at_signals
from daskrl.code import modules
from daskrl.config import require_integer
from daskrl.errors import ConfigError, SchedulerLostError

if TYPE_CHECKING:
    from distributed import Client

    from daskrl.records import Report
    from daskrl.run import Run


@app.command
def train(
    env: str,
    *,
    store: str,
    env_steps: int,
    algorithm: str = "dqn",
    seed: int = 0,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    set_: Annotated[list[str] | None, Parameter(name=["--set", "-s"], negative="")] = None,
    env_kwargs: Annotated[list[str] | None, Parameter(name="--env-kwargs", negative="")] = None,
    streams: int = 8,
    envs_per_stream: int = 4,
    fragment_steps: int = 32,
    lag: int | None = None,
    frame_stack: int | None = None,
    device: str = "auto",
    torch_threads: int = 1,
    recheck_every: int = 256,
    checkpoint_every: int = 50,
    weights_every: int = 10,
    evaluate_every: int = 0,
    evaluate_episodes: int = 10,
    rollout_timeout: float = 600.0,
    learner_timeout: float | None = None,
    strict: bool = True,
    strict_bounds: bool = False,
    overwrite: bool = False,
    resume: Annotated[bool, Parameter(negative="")] = False,
    init: str | None = None,
    init_replay: Annotated[bool, Parameter(negative="")] = False,
    sinks: Sinks = NO_SINKS,
    episodes: Episodes = 20,
    as_json: SummaryAsJson = False,
) -> None:
    """Train, then show a table and save the learning curve beside the store, as STORE.png.

    SIGTERM and SIGUSR1 stop it with a checkpoint and exit code 75, not finished: type the same with --resume. The
    weights it reached are kept, also after Ctrl-C, for daskrl evaluate. While the greedy episodes are played, the exit
    code is 75 too.

    Parameters
    ----------
    env
        Gymnasium id, module:Id, or module:function or FILE.py:function for a function that returns an environment.
    store
        Directory of the run; must not exist yet.
    env_steps
        Transitions to take, rounded up to whole rounds.
    algorithm
        q-learning, dqn, c51, qr-dqn, rainbow, r2d2, ppo, impala, sac, td3, or for your own module:Class or
        FILE.py:Class. With --help the settings of that one are listed; see daskrl algorithms.
    seed
        The only source of randomness.
    set_
        A setting of the algorithm, NAME=VALUE, any number of times: -s n_step=3 -s learning_rate=1e-3
        -s hidden=64,64 -s precision=bfloat16.
    env_kwargs
        An argument of the environment, NAME=VALUE, any number of times: --env-kwargs size=3 --env-kwargs goal=(2,0).
        Given to gymnasium.make, or to module:function.
    streams
        Vectors of environments: the unit of parallelism, part of the experiment.
    envs_per_stream
        Environments in a stream.
    fragment_steps
        Steps of each environment in one rollout task.
    lag
        Rounds between acting and the weights acted with; 0 is synchronous. 0 for ppo, else 1.
    frame_stack
        Frames an observation is made of; 4 for ALE games, else 1.
    device
        Of the learner: auto, cpu or cuda.
    torch_threads
        Of the learner.
    recheck_every
        Every how many fragments one is run twice and compared, in the long run: the first are sooner. 0 for never.
    checkpoint_every
        Rounds between checkpoints.
    weights_every
        Rounds between weights kept on disk.
    evaluate_every
        Rounds between versions of the weights that are evaluated as the run goes on, by the same workers where no
        rollout waits for them; 0 for none. The last version is, too, and all of them are kept on disk.
    evaluate_episodes
        Greedy episodes of each such evaluation.
    rollout_timeout
        Seconds a rollout may take for its own steps; making an environment, and a recorded fragment stepped through
        again, may take as long each.
    learner_timeout
        Seconds to wait for a worker with the resource learner or GPU; then it learns beside the driver. Unless said, as
        long as it takes where the cluster has set one apart, elsewhere not at all.
    strict
        With --no-strict, go on where the promise cannot be kept: the result may differ each time. The store says so.
    strict_bounds
        An observation outside the bounds of its space is an error; else one warning a run.
    overwrite
        Delete the run that is in the store's directory.
    resume
        Go on with the run that is in the store's directory, if it is this very run.
    init
        Begin with the weights of another run instead of drawn ones: its store, STORE@VERSION or STORE@best; the newest
        kept unless said. Or with a file of safetensors.
    init_replay
        Begin with the newest rounds of that store in the learner's window, too.
    """
    import daskrl

    made = given.made(algorithm, given.settings(algorithm, set_ or []))
    through = through_sinks(sinks)

    environment, kwargs = given.with_keywords(given.environment(env), given.keywords(env_kwargs))

    def begin(client: Client | None) -> Run:
        return daskrl.train(
            made, environment, store=store, env_kwargs=kwargs, env_steps=env_steps, seed=seed, client=client,
            streams=streams, envs_per_stream=envs_per_stream, fragment_steps=fragment_steps, lag=lag,
            frame_stack=frame_stack, device=device, torch_threads=torch_threads, recheck_every=recheck_every,
            checkpoint_every=checkpoint_every, weights_every=weights_every, rollout_timeout=rollout_timeout,
            evaluate_every=evaluate_every, evaluate_episodes=evaluate_episodes,
            learner_timeout=learner_timeout, strict=strict, strict_bounds=strict_bounds, overwrite=overwrite,
            resume=resume, init_replay=init_replay, **given.initial(init),
        )  # fmt: skip

    on = connected(workers, scheduler, cluster, torch_threads)
    with carried_out(on, begin, through, env, algorithm, env_kwargs) as run:
        show(run, episodes, as_json)


@app.command
def resume(
    store: StorePath,
    *,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    env_steps: int | None = None,
    strict: bool | None = None,
    strict_bounds: bool | None = None,
    rollout_timeout: float | None = None,
    learner_timeout: float | None = None,
    evaluate_every: int | None = None,
    evaluate_episodes: int | None = None,
    env: Env = None,
    env_kwargs: Keywords = None,
    algorithm: OwnAlgorithm = None,
    sinks: Sinks = NO_SINKS,
    episodes: Episodes = 20,
    as_json: SummaryAsJson = False,
) -> None:
    """Go on with a run from its store, on whatever workers.

    SIGTERM and SIGUSR1 stop it with a checkpoint and exit code 75, not finished: type the same again. The weights it
    reached are kept, also after Ctrl-C, for daskrl evaluate. While the greedy episodes are played, the exit code is 75
    too.

    Parameters
    ----------
    env_steps
        A larger budget; the result is that of a run started with it.
    strict
        With --no-strict, go on where the promise cannot be kept: the result may differ each time. The store says so.
    strict_bounds
        An observation outside the bounds of its space is an error from here on.
    rollout_timeout
        Seconds a rollout may take for its own steps; making an environment, and a recorded fragment stepped through
        again, may take as long each.
    learner_timeout
        Seconds to wait for a worker with the resource learner or GPU; then it learns beside the driver.
    evaluate_every
        Rounds between versions of the weights that are evaluated from here on; 0 for none. Those that are due and kept
        on disk are made up for.
    evaluate_episodes
        Greedy episodes of each such evaluation.
    """
    import daskrl

    opened = daskrl.Store.open(store)
    own = given.again(store, env, algorithm, env_kwargs)
    through = through_sinks(sinks)

    def begin(client: Client | None) -> Run:
        return daskrl.resume(
            store, client=client, env_steps=env_steps, strict=strict, strict_bounds=strict_bounds,
            rollout_timeout=rollout_timeout, learner_timeout=learner_timeout, evaluate_every=evaluate_every,
            evaluate_episodes=evaluate_episodes, **own,
        )  # fmt: skip

    on = connected(workers, scheduler, cluster, opened.config.torch_threads)
    with carried_out(on, begin, through, env, algorithm, env_kwargs) as run:
        show(run, episodes, as_json)


@contextlib.contextmanager
def connected(
    workers: int | None, scheduler: str | None, cluster: str | None, torch_threads: int, *, beside: bool = True
) -> Iterator[Client | None]:
    """The Dask client asked for: none, of a scheduler that runs already, of jobs, or of a cluster of our own.

    Parameters
    ----------
    beside : whether a cluster of our own has a learner's worker beside those; else it is one of them.
    """
    if scheduler is not None and cluster is not None:
        raise ConfigError("--scheduler and --cluster: expected one of them.")
    if cluster is not None and workers == 0:
        raise ConfigError("--workers 0 --cluster: expected one of them; 0 runs in this process. Leave one of them out.")
    if cluster is not None and workers is not None:
        require_integer("--workers", workers, 1)
    if scheduler is None and workers == 0:
        yield None
        return
    from distributed import Client

    from daskrl.clusters import jobs as clusters

    if scheduler is not None:
        try:
            connected = Client(scheduler)
        except (OSError, ValueError) as error:
            raise SchedulerLostError(
                f"no Dask scheduler answers at {scheduler}: {error} Expected an address like tcp://host:8786. "
                "To start one type: dask scheduler"
            ) from error
        with connected as client:
            yield client
    elif cluster == "mpi":
        with clusters.mpi() as client:
            yield client
    elif cluster is not None:
        made, bounds = clusters.from_file(cluster)
        if workers is not None:
            bounds = {**bounds, "minimum": min(bounds.get("minimum", 1), workers), "maximum": workers}
        with made, Client(made) as client:
            clusters.adapt(made, **bounds)
            yield client
    else:
        count = 2 if workers is None else workers
        rollouts = count if beside else max(count - 1, 1)
        with clusters.local(rollouts, learner_threads=torch_threads) as local, Client(local) as client:
            if not beside and count == 1:
                local.scale(1)  # the learner's stays
            yield client


def through_sinks(wanted: Sinks) -> Callable[[Iterable[Report]], Iterable[Report]]:
    """A function that passes a run's reports through the sinks asked for. A missing package is an error now."""
    from daskrl.watching import sinks

    def through(reports: Iterable[Report]) -> Iterable[Report]:
        if wanted.tensorboard is not None:
            reports = sinks.tensorboard(reports, wanted.tensorboard)
        if wanted.csv is not None:
            reports = sinks.csv(reports, wanted.csv)
        if wanted.wandb is not None:
            reports = sinks.wandb(reports, wanted.wandb)
        if wanted.mlflow is not None:
            reports = sinks.mlflow(reports, wanted.mlflow, resume=True)
        if wanted.prometheus is not None:
            reports = sinks.prometheus(reports, wanted.prometheus)
        return reports

    through([])  # imports what they need, and writes nothing before reports are taken
    return through


@contextlib.contextmanager
def carried_out(
    on: AbstractContextManager[Client | None], begin: Callable[[Client | None], Run],
    through: Callable[[Iterable[Report]], Iterable[Report]], env: str | None, algorithm: str | None,
    env_kwargs: list[str] | None,
) -> Iterator[Run]:  # fmt: skip
    """Begin a run on a client, carry the run out, and give the finished run to the caller.

    A signal ends the work that the caller does with the finished run; the printed command does that work again.
    """
    with contextlib.ExitStack() as rest:
        with on as client:
            run = begin(client)
            command = to_go_on(run, env, algorithm, env_kwargs)
            carry_out(run, through, command)
            rest.enter_context(given_up_at_signals(command))
        yield run


def to_go_on(run: Run, env: str | None, algorithm: str | None, env_kwargs: list[str] | None) -> str:
    """What to type to go on."""
    command = ["daskrl", "resume", run.store.storage.typed]
    if env is not None and (run.source.identity["kind"] == "callable" or modules.is_file(modules.split(env)[0])):
        command += ["--env", env]
        if run.source.identity["kind"] == "callable":
            command += [word for pair in env_kwargs or [] for word in ("--env-kwargs", pair)]
    if algorithm is not None and run.store.config.algorithm["source_sha256"] is not None:
        command += ["--algorithm", algorithm]
    return shlex.join(command)


def show(run: Run, episodes: int, as_json: bool) -> None:
    import daskrl
    from daskrl.analysis.curve import save_learning_curve

    summary = run.store.summary() if as_json else run.store.rows()
    if episodes:
        result = daskrl.evaluate(run.store, episodes=episodes, env=_callable(run), algorithm=run.algorithm)
        summary[f"greedy_return_{episodes}_episodes"] = result.mean
        if result.limited:
            summary["cut_episodes"] = result.cut
    picture = run.store.storage.beside(f"{run.store.storage.name}.png")  # not in it: zarr warns of strangers
    try:
        save_learning_curve(run.store, picture)
    except ConfigError as error:
        say(f"no learning curve: {error}")
    else:
        summary["learning_curve"] = picture
    if as_json:
        print(json.dumps(summary))
    else:
        table("run", summary)


def _callable(run: Run) -> Any:
    return run.source.factory if run.source.identity["kind"] == "callable" else None
