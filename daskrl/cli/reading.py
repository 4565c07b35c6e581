"""Commands about a run that is there: ``evaluate``, ``export``, ``info``, ``digest``, ``reproduce``, ``watch``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from daskrl.cli import given
from daskrl.cli.app import app, console, print_rows, table
from daskrl.cli.options import AsJson, Env, Keywords, OwnAlgorithm, StorePath, Version
from daskrl.config import MAX_EPISODE_STEPS
from daskrl.errors import ConfigError, EnvironmentFailure


@app.command
def evaluate(
    store: StorePath,
    *,
    episodes: int = 100,
    seed: int = 1,
    version: Version = None,
    env: str | None = None,
    env_kwargs: Annotated[list[str] | None, Parameter(name="--env-kwargs", negative="")] = None,
    algorithm: OwnAlgorithm = None,
    max_episode_steps: int = MAX_EPISODE_STEPS,
    video: Path | None = None,
    video_episodes: int = 3,
    render_mode: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Play greedy episodes with a stored version of the weights.

    Parameters
    ----------
    episodes
        How many.
    seed
        Of the episodes; not that of the training.
    env
        Again the module:function or FILE.py:function the run was made with, where it was one. Or another environment of
        the same spaces: Gymnasium id, module:Id, module:function or FILE.py:function.
    env_kwargs
        Arguments of that environment, or others than the run's own, NAME=VALUE, any number of times.
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
        store, episodes=episodes, seed=seed, version=given.weights_version(version),
        max_episode_steps=max_episode_steps or None, video=video, video_episodes=video_episodes,
        render_mode=render_mode,
        **{**given.again(store, None, algorithm), **given.played_in(env, env_kwargs)},
    )  # fmt: skip
    if as_json:
        print(json.dumps(result.to_json()))
    else:
        table(f"{store}, weights version {result.weights_version}", result.rows())


@app.command
def export(
    store: StorePath,
    *,
    format: str,
    output: Path | None = None,
    version: Version = None,
    env: str | None = None,
    env_kwargs: Keywords = None,
    algorithm: OwnAlgorithm = None,
    as_json: AsJson = False,
) -> None:
    """Write the greedy policy to a file for other programs. The file is read back and compared before it counts.

    Parameters
    ----------
    format
        onnx for ONNX Runtime (needs daskrl[export]), torchscript for torch without daskrl, safetensors for the weights
        alone. What goes in and out, with any number of observations, is printed.
    output
        The file; STORE-version-V.onnx, .pt or .safetensors beside the store unless said.
    env
        Again the module:function or FILE.py:function the run was made with, where actions are bounded on one side only.
    """
    from daskrl.analysis import policies
    from daskrl.analysis.export import FORMATS
    from daskrl.store.store import Store

    if format not in FORMATS:
        raise ConfigError(f"--format {format}: expected one of {', '.join(FORMATS)}.")
    opened = Store.open(store)
    policy = policies.policy(opened, given.weights_version(version), **given.again(store, env, algorithm, env_kwargs))
    name = f"{opened.storage.name}-version-{policy.weights_version}{FORMATS[format]}"
    done = policy.export(output or opened.storage.beside(name), format)
    if as_json:
        print(json.dumps(done.to_json()))
    else:
        table(str(done.path), done.rows())


@app.command
def info(store: str, *, as_json: AsJson = False) -> None:
    """Show what a store holds and how far its run is; or a study; or list the runs and studies below a directory.

    Parameters
    ----------
    store
        Directory of the run, which may be being written, of a study, or of many; or a pattern, 'studies/**'.
    """
    from daskrl.cli.study import newest
    from daskrl.store.finding import many
    from daskrl.store.store import Store
    from daskrl.study.listing import rows
    from daskrl.study.log import StudyLog

    if many(store):
        found = rows(store)
        if as_json:
            print(json.dumps(found))
        else:
            print_rows(f"{len(found):,} runs in {store}", found)
    elif StudyLog.exists(store):
        newest(StudyLog.open(store), as_json)
    else:
        opened = Store.open(store)
        if as_json:
            print(json.dumps(opened.summary()))
        else:
            table(str(store), opened.rows())


@app.command
def digest(store: StorePath, *, as_json: AsJson = False) -> None:
    """Print the SHA-256 of every committed transition and the newest weights. Reads everything."""
    from daskrl.store.store import Store

    value = Store.open(store).digest()
    print(json.dumps({"digest": value}) if as_json else value)


@app.command
def reproduce(
    store: StorePath,
    *,
    fragment: int,
    debug: bool = False,
    env: Env = None,
    env_kwargs: Keywords = None,
    algorithm: OwnAlgorithm = None,
    as_json: AsJson = False,
) -> None:
    """Run one rollout again in this process and compare it with the store, bit for bit.

    Exits with 0 if it is the same, 1 if it differs.

    Parameters
    ----------
    fragment
        Its number, as error messages and the store name it.
    debug
        Stop in the debugger (pdb) where the rollout raises.
    """
    import daskrl

    try:
        result = daskrl.reproduce(store, fragment, **given.again(store, env, algorithm, env_kwargs))
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
    store: StorePath,
    *,
    interval: float = 2.0,
    once: Annotated[bool, Parameter(negative="")] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Show how a run is doing that another process drives, until it is finished.

    Ctrl-C ends the watching; the run goes on. In a pipe it shows the run once.

    Parameters
    ----------
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
