"""``daskrl study``: carry a study on, look at it, compare, verify, and how its winner is trained."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import App, Parameter

from daskrl.cli import given
from daskrl.cli.app import app, console, print_rows, say, table
from daskrl.cli.options import AsJson, Cluster, Keywords, Scheduler
from daskrl.cli.running import connected
from daskrl.cli.signals import STOPPED, at_signals
from daskrl.errors import ConfigError, FailedTrialsWarning, FewSeedsWarning

if TYPE_CHECKING:
    from daskrl.study import verifying
    from daskrl.study.log import StudyLog
    from daskrl.study.study import Study
    from daskrl.study.winner import Optimism

study = App(name="study", help="Studies: many runs that answer one question, and what they say.")
app.command(study)

Directory = Annotated[str, Parameter(help="Directory of the study, or its URL.")]
OwnAlgorithms = Annotated[list[str] | None, Parameter(
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

    What the file says, for example:

        path = "studies/lr"           # beside the file, by its name, unless said
        env = "CartPole-v1"           # several: ["CartPole-v1", "mine.py:make"]
        env_steps = 50_000
        seeds = 10                    # or which: [0, 1, 2]
        score = "last"                # "best", "auc", "mine.py:function", or
                                      # {kind = "StepsTo", score = 195}
        search = {kind = "random", settings = 20}   # without: all combinations
        streams = 8                   # lag, device, evaluate_every, ...: what
                                      # else daskrl train takes, for all runs
        [algorithm]                   # or algorithm = "dqn"; several: a list,
        name = "dqn"                  # or tables [algorithms.LABEL]
        hidden = [64, 64]

        [space]                       # values, or a range
        learning_rate = {low = 1e-4, high = 1e-2, log = true}
        double = [true, false]
        priority_alpha = ["none", 0.6]  # None: TOML has no null
        n_step = {when = {double = true}, values = [1, 3]}
        fragment_steps = [16, 32]     # of the run; env.NAME of the environment

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
            f"{file} has more {', '.join(more)} than the study in {made.log.storage}, and --resume goes on with what "
            "is there. Leave --resume out to extend it."
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

    try:
        with at_signals(stop):
            made.run(client, retry_failed=retry_failed)
    except KeyboardInterrupt:
        say(f"\nInterrupted; everything committed is kept. Type: {command}")
        sys.exit(130)
    if stopped:
        _left(command)


def _left(command: str) -> NoReturn:
    say(f"Stopped by a signal; everything committed is kept. Type: {command}")
    sys.exit(STOPPED)


@study.command
def confirm(
    file: str,
    *,
    seeds: int = 10,
    workers: Annotated[int | None, Parameter(help="As of daskrl study run.")] = None,
    scheduler: Scheduler = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Run the best setting of a file's study again from seeds that it was not chosen by, and say how lucky it was.

    What was found stands in the study's log, its report, and in what show and best print. Interrupted, it goes on when
    the same is typed again. Needs daskrl[study].

    Parameters
    ----------
    seeds
        How many, those that follow the study's largest.
    """
    from daskrl.cli.studyfile import StudyFile
    from daskrl.study import confirming

    made = StudyFile(file).study()
    threads = made.definition.shape.get("torch_threads", 1)
    with connected(workers, scheduler, cluster, threads, beside=False) as client, _warned_in_notes():
        found = made.confirm(client, seeds=seeds)
    if as_json:
        print(json.dumps(confirming.to_json(found), default=str))
    else:
        _show_confirmed(found)


@study.command
def show(directory: Directory, *, as_json: AsJson = False) -> None:
    """Show a study: how far it is, a row a setting, best first, the winner on unseen seeds, and what failed."""
    from daskrl.study.log import StudyLog

    _show(StudyLog.open(directory), as_json)


def _show(log: StudyLog, as_json: bool) -> None:
    from daskrl.study import confirming
    from daskrl.study import table as tables
    from daskrl.study.ties import doubts

    summary, rows, confirmed = tables.summary(log), tables.rows(log), confirming.confirmed(log)
    if as_json:
        said = {"doubts": doubts(log), "confirmed": confirmed and confirming.to_json(confirmed), "rows": rows}
        print(json.dumps({**summary, "digest": tables.digest(log), **said}, default=str))
        return
    table("study", summary)
    print_rows(f"settings of {log.storage}, best first", _settings(log, rows))
    for sentence in doubts(log):
        say(f"! {sentence}")
    if confirmed:
        _show_confirmed(confirmed)
    failed = [row for row in rows if row["state"] == "failed"]
    if failed:
        print_rows("failed", [{"run": row["run"], "error": row["error"]} for row in failed[:10]])


def _show_confirmed(found: Optimism) -> None:
    table("the winner on unseen seeds", found.rows())
    for note in found.notes:
        say(f"! {note}")


def _settings(log: StudyLog, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a setting: of those that went furthest that with the best mean score first."""
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
    return sorted(found, key=lambda row: (row["score"] is None, -row["env_steps"], -(row["score"] or 0.0)))


def newest(log: StudyLog, as_json: bool, most: int = 10) -> None:
    """Show how far a study is, and the runs that ended last."""
    from daskrl.study import table as tables

    summary, rows = tables.summary(log), {(row["run"], row["env_steps"]): row for row in tables.rows(log)}
    ended = [row for trial, steps in reversed(log.results) if (row := rows.get((f"runs/{trial}", steps))) is not None]
    if as_json:
        print(json.dumps({**summary, "newest": ended[:most]}, default=str))
        return
    table("study", summary)
    left_out = ("episodes", "learner_updates", "digest", "promise", "error", "worker")
    print_rows("newest first", [
        {name: value for name, value in row.items() if name not in left_out} for row in ended[:most]
    ])  # fmt: skip


@study.command
def report(
    directory: Directory,
    *,
    output: Annotated[str | None, Parameter(name=["--output", "-o"])] = None,
    episodes: int = 100,
) -> None:
    """Write the report of a study, finished or not: one HTML page that needs no network, or a PDF.

    Needs daskrl[study].

    Parameters
    ----------
    output
        File to write, that ends with .html or .pdf; report.html in the study's directory unless said.
    episodes
        How many the mean return of learning curves is of.
    """
    from daskrl.study.log import StudyLog
    from daskrl.study.report import report as written

    console.print(written(StudyLog.open(directory), output, episodes=episodes), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _warned_in_notes() -> Iterator[None]:
    """What there is to warn of stands among the notes that are printed."""
    with warnings.catch_warnings():
        for kind in (FewSeedsWarning, FailedTrialsWarning):
            warnings.simplefilter("ignore", kind)
        yield


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
    with _warned_in_notes():
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
    algorithm: OwnAlgorithms = None,
    env: OwnEnvs = None,
    env_kwargs: Keywords = None,
    as_json: AsJson = False,
) -> None:
    """Run some finished runs of a study again, here, in a temporary directory, and compare digests.

    Exits with 0 if all are the same, 1 if one differs.

    Parameters
    ----------
    sample
        How many, as 5% or 20. At least one. Which ones is derived from the runs: the same each time, and a larger
        sample has those of a smaller one.
    """
    from daskrl.study import verifying

    results = []
    own, command = _own(algorithm, env, env_kwargs), _command("verify", directory, algorithm, env, env_kwargs)
    for result in verifying.verified(directory, sample, own=own, command=command):
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
    directory: Directory,
    *,
    algorithm: OwnAlgorithms = None,
    env: OwnEnvs = None,
    env_kwargs: Keywords = None,
    as_json: AsJson = False,
) -> None:
    """Print what to type to train with the best setting of a study: a line for each environment.

    The best is the setting with the highest interquartile mean, see daskrl.study.winner. A line has the study's first
    seed: typed as it is, it makes the run that the study has, with the same digest. It also says how good that setting
    is on seeds that it was not chosen by, see daskrl study confirm. Needs daskrl[study].
    """
    from daskrl.cli.lines import train_line
    from daskrl.store.store import Store
    from daskrl.study import confirming, space
    from daskrl.study import table as tables
    from daskrl.study.log import StudyLog
    from daskrl.study.verifying import made_with
    from daskrl.study.winner import winner

    log = StudyLog.open(directory)
    found = winner(tables.table(log))
    number = found.settings["setting"]
    own, command = _own(algorithm, env, env_kwargs), _command("best", directory, algorithm, env, env_kwargs)
    lines: dict[str, str] = {}
    settings: dict[str, Any] = {}
    for row in tables.rows(log):
        label = row["environment"]
        if row["setting"] != number or label in lines or row["state"] != "finished":
            continue
        settings = {name: row[name] for name in ("algorithm", *log.definition["space"])}
        store = Store.open(log.storage.folder("runs").folder(row["run"].rpartition("/")[2]))
        several = "" if len(log.definition["environments"]) == 1 else f"-{re.sub(r'[^A-Za-z0-9.-]+', '-', label)}"
        path = log.storage.beside(f"{log.storage.name}-best{several}")
        path = os.path.relpath(path) if os.path.isabs(path) else path
        lines[label] = train_line(store, made_with(store, own, command), path, env_kwargs=env_kwargs)
    confirmed = confirming.confirmed(log)
    if as_json:
        said = {"setting": number, "settings": settings, "iqm": found.iqm, "runs": found.runs, "seeds": found.seeds}
        said |= {"ties": found.ties, "left_out": found.left_out, "commands": lines}
        print(json.dumps({**said, "confirmed": confirmed and confirming.to_json(confirmed)}, default=str))
        return
    for line in lines.values():
        print(line)
    say(f"Setting {number} ({space.shown(settings)}): IQM {found.iqm:.6g} over {found.runs} runs, {found.seeds} seeds.")
    for what, labels in (("As good", found.ties), ("Could not win, without a score everywhere", found.left_out)):
        if labels:
            say(f"{what}: {', '.join(labels)}.")
    if confirmed is None:
        say(confirming.UNTESTED)
        return
    for name, value in confirmed.rows().items():
        say(f"{name}: {value}")
    for note in confirmed.notes:
        say(f"! {note}")


def _own(algorithms: list[str] | None, envs: list[str] | None, env_kwargs: list[str] | None) -> verifying.Own:
    """The user's own as they were typed."""
    from daskrl.study.verifying import Own

    found = {name: given.with_keywords(given.environment(name), given.keywords(env_kwargs))[0] for name in envs or []}
    for name, env in found.items():
        if not callable(env):
            raise ConfigError(f"--env {name}: expected a function, as FILE.py:function; ids are in the study.")
    return Own({name: given.algorithm_class(name) for name in algorithms or []}, found)


def _command(
    name: str, directory: str, algorithms: list[str] | None, envs: list[str] | None, env_kwargs: list[str] | None
) -> str:
    """What was typed."""
    words = ["daskrl", "study", name, directory]
    for option, values in (("--algorithm", algorithms), ("--env", envs), ("--env-kwargs", env_kwargs)):
        words += [word for value in values or [] for word in (option, value)]
    return shlex.join(words)
