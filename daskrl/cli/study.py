"""``daskrl study``: carry a study on, look at it, compare, verify, and how its winner is trained."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import App, Parameter
from rich.table import Table

from daskrl.cli import given
from daskrl.cli.app import app, console, say, table
from daskrl.cli.options import AsJson, Cluster, Scheduler
from daskrl.cli.running import connected
from daskrl.cli.signals import STOPPED, at_signals
from daskrl.errors import ConfigError, FewSeedsWarning, FailedTrialsWarning, StoreMismatchError
from daskrl.shown import shown

if TYPE_CHECKING:
    from daskrl.study.study import Study

study = App(name="study", help="Studies: many runs that answer one question, and what they say.")
app.command(study)

Directory = Annotated[str, Parameter(help="Directory of the study, or its URL.")]
Own = Annotated[list[str] | None, Parameter(
    name="--algorithm", negative="",
    help="Again the module:Class or FILE.py:Class of the study, where it has your own; any number of times.",
)]  # fmt: skip
OwnEnvs = Annotated[list[str] | None, Parameter(
    name="--env", negative="",
    help="Again the module:function or FILE.py:function of the study, where it has such; any number of times.",
)]  # fmt: skip


@study.command
def run(
    file: str,
    *,
    workers: Annotated[int | None, Parameter(
        help="Workers of a Dask cluster on this machine, each with one run at a time; 0 runs in this process. 2 unless "
        "said. With --cluster, the most there may be."
    )] = None,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    retry_failed: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Carry on the study that a TOML file describes, to its end, then show it.

    Ctrl-C, SIGTERM and SIGUSR1 stop it: runs keep what they committed. Type the same again, and it goes on, on whatever
    workers; its table is the same. Exit codes: 0 finished; 1 finished, and runs failed; 75 stopped by a signal; 130
    Ctrl-C; 2 an error.

    A study that is there is gone on with if the file still says the same; where the file says more (seeds, values, env
    steps) the study is extended by that; where it says something else, that is an error.

    The file::

        path = "studies/lr"              # beside the file, by its name, unless said
        env = ["CartPole-v1", "mine.py:make"]
        env_steps = 50_000
        seeds = 10                       # or which: [0, 1, 2]
        score = "last"                   # best, auc, {kind = "StepsTo", score = 195}, "mine.py:function"
        search = {kind = "random", settings = 20}    # where the space has ranges; else all its values are combined
        streams = 8                      # and what else daskrl train takes: lag, device, evaluate_every, ...

        [algorithm]                      # or algorithm = "dqn"; or several: ["dqn", "ppo"], [algorithms.LABEL]
        name = "dqn"
        hidden = [64, 64]

        [space]
        learning_rate = {low = 1e-4, high = 1e-2, log = true}
        n_step = [1, 3]
        priority_beta = {when = {prioritised = true}, values = [0.4, 0.6]}
        env.size = [3, 5]                # an argument of the environment

    Parameters
    ----------
    file
        Names in it, like FILE.py:function, and the path are looked up from the current directory.
    resume
        Only go on with what is there: an extended file is an error, so that a job which starts again never takes up
        what was written into the file since. Where there is no study yet, one begins.
    retry_failed
        Runs that failed are tried again.
    """
    from daskrl.cli.studyfile import StudyFile

    said = StudyFile(file)
    made = said.study()
    if resume and (more := made.more()):
        raise ConfigError(
            f"{file} has more {', '.join(more)} than the study in {made.log.storage}, and --resume goes on with what is "
            "there. Leave --resume out to extend it."
        )
    threads = made.definition.shape.get("torch_threads", 1)
    command = shlex.join(["daskrl", "study", "run", file])
    with connected(workers, scheduler, cluster, threads, beside=False) as client:
        _carry_on(made, client, command, retry_failed=retry_failed)
    _show(made.log, as_json)
    if failed := made.summary()["failed"]:
        say(f"{failed:,} runs failed. To try them again, type: {command} --retry-failed")
        sys.exit(1)


def _carry_on(made: Study, client: Any, command: str, *, retry_failed: bool) -> None:
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        made.stop()
        if client is None:  # the run in this process keeps what it reached, as at Ctrl-C
            raise KeyboardInterrupt

    try:
        with at_signals(stop):
            made.run(client, retry_failed=retry_failed)
    except KeyboardInterrupt:
        if not stopped:
            say(f"\nInterrupted; everything committed is kept. Type: {command}")
            sys.exit(130)
    if stopped:
        _left(command)


def _left(command: str) -> NoReturn:
    say(f"Stopped by a signal; everything committed is kept. Type: {command}")
    sys.exit(STOPPED)


@study.command
def show(directory: Directory, *, as_json: AsJson = False) -> None:
    """Show a study: how far it is, a row a setting, best first, and what failed."""
    from daskrl.study.log import StudyLog

    _show(StudyLog.open(directory), as_json)


def _show(log: Any, as_json: bool) -> None:
    from daskrl.study import table as tables

    summary, rows = tables.summary(log), tables.rows(log)
    if as_json:
        print(json.dumps({**summary, "digest": tables.digest(log), "rows": rows}, default=str))
        return
    table("study", summary)
    _print(f"settings of {log.storage}, best first", _settings(log, rows))
    failed = [row for row in rows if row["state"] == "failed"]
    if failed:
        _print("failed", [{"run": row["run"], "error": row["error"]} for row in failed[:10]])


def _settings(log: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a setting, that with the best mean score first."""
    several = [name for name in ("algorithm", "environment") if len(log.definition[f"{name}s"]) > 1]
    axes = [name for name in log.definition["space"] if name != "algorithm"]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["setting"], *(row[name] for name in several)), []).append(row)
    found = []
    for members in groups.values():
        scores = [row["score"] for row in members if row["score"] is not None]
        found.append({
            "setting": members[0]["setting"],
            **{name: members[0][name] for name in (*several, *axes)},
            "env_steps": max(row["env_steps"] for row in members),
            "runs": f"{sum(row['state'] == 'finished' for row in members)}/{len(members)}",
            "score": sum(scores) / len(scores) if scores else None,
            "lowest": min(scores, default=None),
            "highest": max(scores, default=None),
        })  # fmt: skip
    return sorted(found, key=lambda row: (row["score"] is None, -(row["score"] or 0.0)))


def _print(title: str, rows: list[dict[str, Any]], most: int = 40) -> None:
    """Rows as a table of their keys."""
    drawn = Table(*(name.replace("_", " ") for name in rows[0]) if rows else (), title=title, title_justify="left")
    for row in rows[:most]:
        drawn.add_row(*("" if value is None else shown(value) for value in row.values()))
    console.print(drawn, markup=False)
    if len(rows) > most:
        say(f"and {len(rows) - most:,} more; --json has all")


@study.command
def compare(
    *directories: str,
    by: Annotated[list[str] | None, Parameter(negative="")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the settings of a study, or studies with each other: which is better, and how sure that is.

    Needs daskrl[study].

    Parameters
    ----------
    directories
        Of one study, with --by; or of several: they are compared over equal settings, environments and seeds.
    by
        A setting whose values are compared, any number of times; algorithm for algorithms.
    """
    from daskrl.study import comparing
    from daskrl.study.compare import Comparison

    found: Comparison
    with warnings.catch_warnings():
        for kind in (FewSeedsWarning, FailedTrialsWarning):  # they are among its notes
            warnings.simplefilter("ignore", kind)
        found = comparing.compared(directories, by or [])
    if as_json:
        groups, pairs = (json.loads(one.to_json(orient="records")) for one in (found.table(), found.pair_table()))
        print(json.dumps({"by": found.by, "groups": groups, "pairs": pairs, "notes": found.notes}))
    else:
        console.print(repr(found), highlight=False, markup=False, soft_wrap=True)


@study.command
def verify(
    directory: Directory,
    *,
    sample: str = "5%",
    algorithm: Own = None,
    env: OwnEnvs = None,
    env_kwargs: Annotated[list[str] | None, Parameter(
        name="--env-kwargs", negative="", help="Again the arguments of those functions, NAME=VALUE.",
    )] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Run some finished runs of a study again, here, in a temporary directory, and compare digests.

    Exits with 0 if all are the same, 1 if one differs.

    Parameters
    ----------
    sample
        How many, as 5% or 20. At least one. Which ones is derived from the runs: the same each time, and a larger
        sample has those of a smaller one.
    """
    from daskrl.study import verifying

    own = [given.algorithm_class(name) for name in algorithm or []]
    envs = [given.with_keywords(given.environment(name), given.keywords(env_kwargs))[0] for name in env or []]
    results = []
    for result in verifying.verified(directory, sample, algorithms=own, envs=envs):
        results.append(result)
        said = "the same" if result.same else f"DIFFERS: {result.found} (study: {result.kept})"
        if not as_json:
            console.print(f"{result.run} {result.label}: {said}", highlight=False, markup=False, soft_wrap=True)
    differ = [result for result in results if not result.same]
    if as_json:
        print(json.dumps({"verified": len(results), "differ": len(differ), "runs": [vars(one) for one in results]}))
    else:
        console.print(f"{len(results):,} runs again, {len(differ):,} differ", highlight=False)
    if differ:
        sys.exit(1)


@study.command
def best(
    directory: Directory, *, algorithm: Own = None, env: OwnEnvs = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Print what to type to train with the best setting of a study: a line for each environment.

    The best is the setting with the highest interquartile mean; see daskrl.study.winner. The line with the study's
    first seed is that of a run in the study: it has the same digest.
    """
    from daskrl.cli.typing_ import lines
    from daskrl.study.log import StudyLog
    from daskrl.study.table import table as table_of
    from daskrl.study.winner import winner

    log = StudyLog.open(directory)
    rows = table_of(log)
    found = winner(rows, by="setting")
    (first,) = rows.setting[rows.setting == found.settings["setting"]].unique()
    typed = lines(log, rows[rows.setting == first], algorithm or [], env or [])
    if as_json:
        print(json.dumps({"setting": int(first), "iqm": found.iqm, "seeds": found.seeds, "commands": typed}))
        return
    for line in typed:
        print(line)
    say(f"Setting {int(first)}: IQM {found.iqm:.6g} over {found.runs} runs, {found.seeds} seeds.")
