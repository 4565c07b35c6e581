"""The command line: ``daskrl train``, ``resume``, ``evaluate``, ``export``, ``info``, ``digest`` and others.

Each command is a function; its help is its signature and docstring.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import itertools
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter, convert
from rich.console import Console
from rich.table import Table

from daskrl.code import modules
from daskrl.config import MAX_EPISODE_STEPS, require_integer
from daskrl.errors import ConfigError, DaskrlError, EnvironmentFailure, SchedulerLostError
from daskrl.names import did_you_mean

if TYPE_CHECKING:
    from distributed import Client

    from daskrl.records import Report
    from daskrl.run import Run


def _converted(type_: Any, tokens: Sequence[Any]) -> Any:
    """What was typed as what is wanted. cyclopts rounds 9.5 to an integer, and takes 1e6 for none."""
    if type_ not in (int, int | None):
        return convert(type_, tokens)
    (token,) = tokens
    with contextlib.suppress(ValueError):
        return int(token.value)
    with contextlib.suppress(ValueError):
        if (number := float(token.value)).is_integer():
            return int(number)
    raise ValueError(f"expected an integer, got {token.value}")


def _own_version() -> str:
    import daskrl

    return daskrl.__version__


app = App(
    name="daskrl",
    version=_own_version,
    default_parameter=Parameter(converter=_converted),
    help="Reinforcement learning on Dask: elastic in wall-clock, invariant in results.",
)
console = Console()


@app.command
def train(
    env: str,
    *,
    store: str,
    env_steps: int,
    algorithm: str = "dqn",
    seed: int = 0,
    workers: int | None = None,
    scheduler: str | None = None,
    cluster: str | None = None,
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
    tensorboard: Path | None = None,
    mlflow: str | None = None,
    prometheus: int | None = None,
    csv: Path | None = None,
    wandb: str | None = None,
    episodes: int = 20,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
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
    workers
        Rollout workers of a Dask cluster on this machine, beside one for the learner; 0 runs in this process. 2 unless
        said. With --cluster, the most there may be.
    scheduler
        Address of a running Dask scheduler to use instead.
    cluster
        slurm, pbs, sge, lsf, htcondor, or a site file: submit jobs that do the work. See daskrl jobs. Or mpi: the
        processes that mpirun started do it.
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
    tensorboard
        Directory for TensorBoard, which gets the numbers of the run as it goes on. Needs daskrl[tensorboard].
    mlflow
        MLflow experiment that gets them; a run that is resumed goes on in its MLflow run. Needs daskrl[mlflow].
    prometheus
        Port of this machine, on loopback, that serves them to Prometheus. Needs daskrl[prometheus].
    csv
        CSV file that gets a row of them for each version of the weights; a run that is resumed goes on in it.
    wandb
        Weights & Biases project that gets them; a run that is resumed goes on in its W&B run. Needs daskrl[wandb].
    episodes
        Greedy episodes played for the table at the end; 0 for none.
    as_json
        Print the summary as JSON.
    """
    import daskrl

    made = _made(algorithm, _settings(algorithm, set_ or []))
    through = _sinks(tensorboard, mlflow, prometheus, csv, wandb)

    environment, kwargs = _with_kwargs(_environment(env), _env_kwargs(env_kwargs))

    def begin(client: Client | None) -> Run:
        return daskrl.train(
            made, environment, store=store, env_kwargs=kwargs, env_steps=env_steps, seed=seed, client=client,
            streams=streams, envs_per_stream=envs_per_stream, fragment_steps=fragment_steps, lag=lag,
            frame_stack=frame_stack, device=device, torch_threads=torch_threads, recheck_every=recheck_every,
            checkpoint_every=checkpoint_every, weights_every=weights_every, rollout_timeout=rollout_timeout,
            evaluate_every=evaluate_every, evaluate_episodes=evaluate_episodes,
            learner_timeout=learner_timeout, strict=strict, strict_bounds=strict_bounds, overwrite=overwrite,
            resume=resume, init_replay=init_replay, **_init(init),
        )  # fmt: skip

    on = _client(workers, scheduler, cluster, torch_threads)
    with _carried_out(on, begin, through, env, algorithm, env_kwargs) as run:
        _show(run, episodes, as_json)


@app.command
def resume(
    store: str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    cluster: str | None = None,
    env_steps: int | None = None,
    strict: bool | None = None,
    strict_bounds: bool | None = None,
    rollout_timeout: float | None = None,
    learner_timeout: float | None = None,
    evaluate_every: int | None = None,
    evaluate_episodes: int | None = None,
    env: str | None = None,
    env_kwargs: Annotated[list[str] | None, Parameter(name="--env-kwargs", negative="")] = None,
    algorithm: str | None = None,
    tensorboard: Path | None = None,
    mlflow: str | None = None,
    prometheus: int | None = None,
    csv: Path | None = None,
    wandb: str | None = None,
    episodes: int = 20,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Go on with a run from its store, on whatever workers.

    SIGTERM and SIGUSR1 stop it with a checkpoint and exit code 75, not finished: type the same again. The weights it
    reached are kept, also after Ctrl-C, for daskrl evaluate. While the greedy episodes are played, the exit code is 75
    too.

    Parameters
    ----------
    store
        Directory of the run.
    workers
        Rollout workers of a Dask cluster on this machine; 0 runs in this process. 2 unless said. With --cluster, the
        most there may be.
    scheduler
        Address of a running Dask scheduler to use instead.
    cluster
        slurm, pbs, sge, lsf, htcondor, or a site file: submit jobs that do the work. See daskrl jobs. Or mpi: the
        processes that mpirun started do it.
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
    env
        Again the module:function or FILE.py:function the run was made with, where it was one.
    env_kwargs
        Again the arguments of that function, NAME=VALUE, any number of times.
    algorithm
        Again the module:Class or FILE.py:Class the run was made with, where it was your own.
    tensorboard
        Directory for TensorBoard, which gets the numbers of the run as it goes on. Needs daskrl[tensorboard].
    mlflow
        MLflow experiment that gets them; a run that is resumed goes on in its MLflow run. Needs daskrl[mlflow].
    prometheus
        Port of this machine, on loopback, that serves them to Prometheus. Needs daskrl[prometheus].
    csv
        CSV file that gets a row of them for each version of the weights; a run that is resumed goes on in it.
    wandb
        Weights & Biases project that gets them; a run that is resumed goes on in its W&B run. Needs daskrl[wandb].
    episodes
        Greedy episodes played for the table at the end; 0 for none.
    as_json
        Print the summary as JSON.
    """
    import daskrl

    opened = daskrl.Store.open(store)
    given = _given(store, env, algorithm, env_kwargs)
    through = _sinks(tensorboard, mlflow, prometheus, csv, wandb)

    def begin(client: Client | None) -> Run:
        return daskrl.resume(
            store, client=client, env_steps=env_steps, strict=strict, strict_bounds=strict_bounds,
            rollout_timeout=rollout_timeout, learner_timeout=learner_timeout, evaluate_every=evaluate_every,
            evaluate_episodes=evaluate_episodes, **given,
        )  # fmt: skip

    on = _client(workers, scheduler, cluster, opened.config.torch_threads)
    with _carried_out(on, begin, through, env, algorithm, env_kwargs) as run:
        _show(run, episodes, as_json)


@app.command
def evaluate(
    store: str,
    *,
    episodes: int = 100,
    seed: int = 1,
    version: str | None = None,
    env: str | None = None,
    env_kwargs: Annotated[list[str] | None, Parameter(name="--env-kwargs", negative="")] = None,
    algorithm: str | None = None,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    video: Path | None = None,
    video_episodes: int = 3,
    render_mode: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Play greedy episodes with a stored version of the weights.

    Parameters
    ----------
    store
        Directory of the run.
    episodes
        How many.
    seed
        Of the episodes; not that of the training.
    version
        Weights version, or best: that with the highest mean return of those evaluated while the run went on
        (--evaluate-every). The newest kept by default, with a warning where a newer one was published.
    env
        Again the module:function or FILE.py:function the run was made with, where it was one. Or another environment of
        the same spaces: Gymnasium id, module:Id, module:function or FILE.py:function.
    env_kwargs
        Arguments of that environment, or others than the run's own, NAME=VALUE, any number of times.
    algorithm
        Again the module:Class or FILE.py:Class the run was made with, where it was your own.
    max_episode_steps
        Steps after which an episode is cut that has not ended; 0 for any number.
    video
        Directory for clips of the first episodes, version-V-episode-N.mp4. Needs daskrl[video].
    video_episodes
        How many episodes are recorded.
    render_mode
        human: show the first of the environments that are played side by side in a window.
    as_json
        Print {"mean": ..., "median": ..., "returns": [...], ...}.
    """
    import daskrl

    result = daskrl.evaluate(
        store, episodes=episodes, seed=seed, version=_version(version), max_episode_steps=max_episode_steps or None,
        video=video, video_episodes=video_episodes, render_mode=render_mode,
        **{**_given(store, None, algorithm), **_played_in(env, env_kwargs)},
    )  # fmt: skip
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        _table(f"{store}, weights version {result.weights_version}", result.rows())


@app.command
def export(
    store: str,
    *,
    format: str,
    output: Path | None = None,
    version: str | None = None,
    env: str | None = None,
    env_kwargs: Annotated[list[str] | None, Parameter(name="--env-kwargs", negative="")] = None,
    algorithm: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Write the greedy policy to a file for other programs. The file is read back and compared before it counts.

    Parameters
    ----------
    store
        Directory of the run.
    format
        onnx for ONNX Runtime (needs daskrl[export]), torchscript for torch without daskrl, safetensors for the weights
        alone. What goes in and out, with any number of observations, is printed.
    output
        The file; STORE-version-V.onnx, .pt or .safetensors beside the store unless said.
    version
        Weights version, or best: that with the highest mean return of those evaluated while the run went on
        (--evaluate-every). The newest kept by default.
    env
        Again the module:function or FILE.py:function the run was made with, where actions are bounded on one side only.
    env_kwargs
        Again the arguments of that function, NAME=VALUE, any number of times.
    algorithm
        Again the module:Class or FILE.py:Class the run was made with, where it was your own.
    as_json
        Print JSON.
    """
    from daskrl.analysis import policies
    from daskrl.analysis.export import FORMATS
    from daskrl.store.store import Store

    if format not in FORMATS:
        raise ConfigError(f"--format {format}: expected one of {', '.join(FORMATS)}.")
    opened = Store.open(store)
    policy = policies.policy(opened, _version(version), **_given(store, env, algorithm, env_kwargs))
    name = f"{opened.storage.name}-version-{policy.weights_version}{FORMATS[format]}"
    done = policy.export(output or opened.storage.beside(name), format)
    if as_json:
        print(json.dumps(done.to_json()))
    else:
        _table(str(done.path), done.rows())


@app.command
def info(store: str, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Show what a store holds and how far its run is.

    Parameters
    ----------
    store
        Directory of the run; it may be being written.
    as_json
        Print JSON.
    """
    from daskrl.store.store import Store

    opened = Store.open(store)
    if as_json:
        print(json.dumps(opened.summary()))
    else:
        _table(str(store), opened.rows())


@app.command
def digest(store: str, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Print the SHA-256 of every committed transition and the newest weights. Reads everything.

    Parameters
    ----------
    store
        Directory of the run.
    as_json
        Print JSON.
    """
    from daskrl.store.store import Store

    value = Store.open(store).digest()
    print(json.dumps({"digest": value}) if as_json else value)


@app.command
def reproduce(
    store: str,
    *,
    fragment: int,
    debug: bool = False,
    env: str | None = None,
    env_kwargs: Annotated[list[str] | None, Parameter(name="--env-kwargs", negative="")] = None,
    algorithm: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Run one rollout again in this process and compare it with the store, bit for bit.

    Exits with 0 if it is the same, 1 if it differs.

    Parameters
    ----------
    store
        Directory of the run.
    fragment
        Its number, as error messages and the store name it.
    debug
        Stop in the debugger (pdb) where the rollout raises.
    env
        Again the module:function or FILE.py:function the run was made with, where it was one.
    env_kwargs
        Again the arguments of that function, NAME=VALUE, any number of times.
    algorithm
        Again the module:Class or FILE.py:Class the run was made with, where it was your own.
    as_json
        Print JSON.
    """
    import daskrl

    try:
        result = daskrl.reproduce(store, fragment, **_given(store, env, algorithm, env_kwargs))
    except EnvironmentFailure as error:
        if debug:
            import pdb
            import traceback

            traceback.print_exc()
            cause = error.__cause__ or error
            pdb.post_mortem(cause.__traceback__)
        raise
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        said = "not committed: nothing to compare" if not result.committed else "the same, bit for bit"
        if result.differs:
            said = f"DIFFERS in {', '.join(result.differs)}"
        console.print(
            f"fragment {result.fragment} (stream {result.stream}, round {result.round}, weights version "
            f"{result.weights_version}): {said}",
            highlight=False,
        )
    if result.differs:
        sys.exit(1)


@app.command
def watch(
    store: str,
    *,
    interval: float = 2.0,
    once: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Show how a run is doing that another process drives, until it is finished.

    Ctrl-C ends the watching; the run goes on. In a pipe it shows the run once.

    Parameters
    ----------
    store
        Directory of the run.
    interval
        Seconds between two looks.
    once
        Show it once and end.
    as_json
        Print JSON, once.
    """
    from daskrl.store.store import Store
    from daskrl.watching.watch import Reader, show

    reader = Reader(Store.open(store))
    if as_json:
        print(json.dumps({"store": str(reader.store.storage), **reader.read().to_json()}))
    else:
        show(reader, None if once or not sys.stdout.isatty() else interval)


@app.command
def algorithms(
    name: str | None = None, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False
) -> None:
    """List the algorithms, or the settings of one: what -s NAME=VALUE takes.

    Parameters
    ----------
    name
        q-learning, dqn, ..., or module:Class or FILE.py:Class for your own; all without it.
    as_json
        Print JSON.
    """
    from daskrl.algorithms import described

    if name is None:
        listed = described.built_in()
        if as_json:
            print(json.dumps(listed))
            return
        table = Table("algorithm", "actions", "", title="algorithms", title_justify="left")
        for entry in listed:
            table.add_row(entry["name"], ", ".join(entry["actions"]), entry["description"])
        console.print(table)
        _say("For the settings of one type: daskrl algorithms NAME")
        return
    entry = described.described(name, _algorithm(name))
    if as_json:
        print(json.dumps(entry))
    else:
        _show_settings(entry)


@app.command
def jobs(cluster: str) -> None:
    """Print the scripts of the jobs that --cluster would submit. Submits nothing, on any machine.

    Parameters
    ----------
    cluster
        slurm, pbs, sge, lsf, htcondor, or a site file.
    """
    from daskrl.clusters import jobs as clusters

    print(clusters.job_scripts(cluster))


# -- helpers ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _client(
    workers: int | None, scheduler: str | None, cluster: str | None, torch_threads: int
) -> Iterator[Client | None]:
    """The Dask client asked for: none, of a scheduler that runs already, of jobs, or of a cluster of our own."""
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
        with clusters.local(count, learner_threads=torch_threads) as local, Client(local) as client:
            yield client


_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: to be tried again


def _sinks(
    tensorboard: Path | None, mlflow: str | None, prometheus: int | None, csv: Path | None, wandb: str | None
) -> Callable[[Iterable[Report]], Iterable[Report]]:
    """What passes a run's reports through the sinks asked for. A package that is missing is named now."""
    from daskrl.watching import sinks

    def through(reports: Iterable[Report]) -> Iterable[Report]:
        if tensorboard is not None:
            reports = sinks.tensorboard(reports, tensorboard)
        if csv is not None:
            reports = sinks.csv(reports, csv)
        if wandb is not None:
            reports = sinks.wandb(reports, wandb)
        if mlflow is not None:
            reports = sinks.mlflow(reports, mlflow, resume=True)
        if prometheus is not None:
            reports = sinks.prometheus(reports, prometheus)
        return reports

    through([])  # imports what they need, and writes nothing before reports are taken
    return through


@contextlib.contextmanager
def _carried_out(
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
            command = _command(run, env, algorithm, env_kwargs)
            _carry_out(run, through, command)
            rest.enter_context(_given_up_at_signals(command))
        yield run


def _carry_out(run: Run, through: Callable[[Iterable[Report]], Iterable[Report]], command: str) -> None:
    came = False

    def stop() -> None:
        nonlocal came
        came = True
        run.stop()

    with _at_signals(stop):
        try:
            for _ in through(run):
                pass
        except KeyboardInterrupt:
            _say(f"\nInterrupted; everything committed is kept. Type: {command}")
            sys.exit(130)
    if not run.finished:
        _say(f"Stopped by a signal; everything learned is kept. Type: {command}")
        sys.exit(_STOPPED)
    if came:  # too late to stop the run
        _leave_evaluation(command)


def _leave_evaluation(command: str) -> NoReturn:
    _say(f"Stopped by a signal; everything is learned, the evaluation is not finished. Type: {command}")
    sys.exit(_STOPPED)


class _GivenUp(BaseException):  # no Exception: what environments raise is
    """A signal came while the run was shown."""


@contextlib.contextmanager
def _given_up_at_signals(command: str) -> Iterator[None]:
    """What comes after a run is left at a signal, to be done again."""

    def give_up() -> None:
        raise _GivenUp

    try:
        with _at_signals(give_up):
            yield
    except _GivenUp:
        _leave_evaluation(command)


@contextlib.contextmanager
def _at_signals(act: Callable[[], None]) -> Iterator[None]:
    """Batch systems send these some time before they kill. The second one does what it did before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def handle(number: int, _: Any) -> None:
        signal.signal(number, before[signal.Signals(number)])
        act()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(run: Run, env: str | None, algorithm: str | None, env_kwargs: list[str] | None) -> str:
    """What to type to go on."""
    command = ["daskrl", "resume", run.store.storage.typed]
    if env is not None and (run.source.identity["kind"] == "callable" or modules.is_file(modules.split(env)[0])):
        command += ["--env", env]
        if run.source.identity["kind"] == "callable":
            command += [word for pair in env_kwargs or [] for word in ("--env-kwargs", pair)]
    if algorithm is not None and run.store.config.algorithm["source_sha256"] is not None:
        command += ["--algorithm", algorithm]
    return shlex.join(command)


def _say(message: str) -> None:
    """To standard error: as it is, so that a line to type can be copied."""
    Console(stderr=True, soft_wrap=True).print(message, highlight=False, markup=False)


def _show(run: Run, episodes: int, as_json: bool) -> None:
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
        _say(f"no learning curve: {error}")
    else:
        summary["learning_curve"] = picture
    if as_json:
        print(json.dumps(summary))
    else:
        _table("run", summary)


def _show_settings(entry: dict[str, Any]) -> None:
    """A table of an algorithm's settings; ``entry`` is what `daskrl.algorithms.described.described` returns."""
    from rich.text import Text

    table = Table("setting", "type", "default", "meaning", title=f"settings of {entry['name']}", title_justify="left")
    for setting in entry["settings"]:
        default = "(required)" if setting["default"] is None else setting["default"]
        table.add_row(*(Text(text) for text in (setting["name"], setting["type"], default, setting["meaning"])))
    console.print(Text(f"{entry['class']}: {entry['description']}"), table, sep="\n")
    console.print("Give them as -s NAME=VALUE, any number of times.", highlight=False)


def _callable(run: Run) -> Any:
    return run.source.factory if run.source.identity["kind"] == "callable" else None


def _table(title: str, rows: dict[str, Any]) -> None:
    from daskrl.shown import shown

    table = Table(title=title, show_header=False, title_justify="left")
    for key, value in rows.items():
        table.add_row(key.replace("_", " "), shown(value))
    console.print(table)


def _algorithm(name: str) -> Any:
    """An algorithm's class by its name, or ``module:Class`` or ``FILE.py:Class`` of the user's own."""
    from daskrl.algorithms import by_name

    if ":" not in name and not modules.is_file(name):
        return by_name(name)
    found = modules.imported(name)
    if not isinstance(found, type):
        raise ConfigError(f"--algorithm {name}: expected a class with the methods of daskrl.Algorithm, got {found!r}.")
    return found


def _made(algorithm: str, settings: dict[str, Any]) -> Any:
    try:
        return _algorithm(algorithm)(**settings)
    except ConfigError:
        raise
    except TypeError as error:  # a value of another type than the setting's
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ConfigError(f"--algorithm {algorithm} cannot be made with {given}: {error}.") from None


def _environment(env: str) -> Any:
    """A callable by its name; or the id of an environment: ``module:Id`` is left to Gymnasium."""
    name, wanted = modules.split(env)
    if modules.is_file(name):
        if not wanted:
            raise modules.no_such_name(modules.module(name), name, wanted)
        return _of_file(name, wanted)
    if not wanted:
        return env
    try:
        found = getattr(modules.module(name), wanted, None)
    except ImportError:
        return env
    return found if callable(found) else env


def _of_file(file: str, wanted: str) -> Any:
    """A callable of a file, or an id that it registers."""
    import gymnasium

    module = modules.module(file)
    found = getattr(module, wanted, None)
    if callable(found):
        return found
    if wanted in gymnasium.registry:
        return wanted
    raise modules.no_such_name(module, file, wanted)


def _init(init: str | None) -> dict[str, Any]:
    """``STORE``, ``STORE@VERSION`` or a file, as `daskrl.train` takes it."""
    if init is None or Path(init).exists():
        return {"init": init}
    path, at, version = init.rpartition("@")
    if not at:
        return {"init": init}
    return {"init": path, "init_version": _version(version)}


def _version(text: str | None) -> int | str | None:
    """A version of the weights, as it was typed."""
    if text is None or text == "best":
        return text
    if not text.isdecimal():
        raise ConfigError(f"version: expected a number or 'best', got {text!r}.")
    return int(text)


def _given(store: str, env: str | None, algorithm: str | None, env_kwargs: list[str] | None = None) -> dict[str, Any]:
    """``env`` and ``algorithm`` of a run that was made with the user's own."""
    from daskrl.identity import stored_settings
    from daskrl.store.store import Store

    result: dict[str, Any] = {}
    kwargs = _env_kwargs(env_kwargs)
    if env is not None:
        found = _environment(env)
        kept = Store.open(store).config.environment.get("id")
        if kept is None or found != kept:  # an id that the file of the run's registers is all that is needed
            same = isinstance(found, str) and kept is not None and found.rpartition(":")[2] == kept.rpartition(":")[2]
            found = found if callable(found) or same else modules.imported(env)
            result["env"], kwargs = _with_kwargs(found, kwargs)
    if kwargs:
        raise ConfigError(
            "--env-kwargs go with --env MODULE:FUNCTION; those of an id are in the store. Add --env, or leave them out."
        )
    if algorithm is not None:
        result["algorithm"] = _made(algorithm, stored_settings(Store.open(store), _algorithm(algorithm)))
    return result


def _settings(algorithm: str, pairs: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` strings as keyword arguments of an algorithm."""
    from daskrl.algorithms.described import parameters

    known = set(parameters(_algorithm(algorithm)))
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.replace("-", "_")
        if not equals or name not in known:
            raise ConfigError(
                f"--set {pair}: expected NAME=VALUE with NAME one of {', '.join(sorted(known))}."
                f"{did_you_mean(name, known)}"
            )
        settings[name] = _value(text)
    return settings


def _value(text: str) -> Any:
    """What was typed as a Python literal; a word is a string."""
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        return text  # where it should not be one, whoever takes it says so


def _played_in(env: str | None, pairs: list[str] | None) -> dict[str, Any]:
    found, kwargs = _with_kwargs(None if env is None else _environment(env), _env_kwargs(pairs))
    return {"env": found, "env_kwargs": kwargs}


def _env_kwargs(pairs: list[str] | None) -> dict[str, Any]:
    """``NAME=VALUE`` strings as keyword arguments of an environment."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--env-kwargs {pair}: expected NAME=VALUE, e.g. --env-kwargs size=3.")
        found[name] = _value(text)
    return found


def _with_kwargs(env: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A callable that has its arguments, or an id and those that are for ``gymnasium.make``."""
    return (functools.partial(env, **kwargs), {}) if callable(env) and kwargs else (env, kwargs)


def main(typed: Sequence[str] | None = None) -> None:
    """The entry point: an error daskrl raises on purpose is one message, not a traceback.

    Parameters
    ----------
    typed : the arguments; those of the process by default.
    """
    # Where `python -m` looks, `module:Id` and `module:function` are looked up by the installed script too.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        given = [*(sys.argv[1:] if typed is None else typed)]
        with contextlib.ExitStack() as after:
            if (asked := _asked(given)) is not None:
                after.callback(_show_settings, asked)
            app(given, exit_on_error=False, print_error=True)
    except CycloptsError:  # has been printed
        sys.exit(2)
    except DaskrlError as error:
        _say(f"{type(error).__name__}: {error}")
        sys.exit(2)
    except KeyboardInterrupt:  # outside of a run, which has its own message
        _say("\nInterrupted.")
        sys.exit(130)


def _asked(typed: Sequence[str]) -> dict[str, Any] | None:
    """The algorithm whose settings ``daskrl train --algorithm NAME --help`` shows beside its own."""
    if typed[:1] != ["train"] or not {"--help", "-h"} & {*typed}:
        return None
    for one, following in itertools.pairwise([*typed, ""]):
        option, equals, value = one.partition("=")
        if option == "--algorithm":
            from daskrl.algorithms.described import described

            name = value if equals else following
            return described(name, _algorithm(name))
    return None


if __name__ == "__main__":
    main()
