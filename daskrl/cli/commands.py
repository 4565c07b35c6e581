"""The command line: ``daskrl train``, ``resume``, ``evaluate``, ``export``, ``info``, ``digest`` and others.

Each command is a function; its help is its signature and docstring.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from cyclopts import CycloptsError
from rich.table import Table

from daskrl.cli import given
from daskrl.cli.app import app, console, say, show_settings
from daskrl.cli.options import AsJson
from daskrl.cli.packing import pack, unpack
from daskrl.cli.questions import replay
from daskrl.cli.reading import digest, evaluate, export, info, reproduce, watch
from daskrl.cli.running import resume, train
from daskrl.cli.study import study
from daskrl.errors import DaskrlError

__all__ = [
    "algorithms", "digest", "evaluate", "export", "info", "jobs", "main", "pack", "replay", "reproduce", "resume",
    "study", "train", "unpack", "watch",
]  # fmt: skip


@app.command
def algorithms(name: str | None = None, *, as_json: AsJson = False) -> None:
    """List the algorithms, or the settings of one: what -s NAME=VALUE takes.

    Parameters
    ----------
    name
        q-learning, dqn, ..., or module:Class or FILE.py:Class for your own; all without it.
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
        say("For the settings of one type: daskrl algorithms NAME")
        return
    entry = described.described(name, given.algorithm_class(name))
    if as_json:
        print(json.dumps(entry))
    else:
        show_settings(entry)


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
        words = [*(sys.argv[1:] if typed is None else typed)]
        with contextlib.ExitStack() as after:
            if (asked := _asked(words)) is not None:
                after.callback(show_settings, asked)
            app(words, exit_on_error=False, print_error=True)
    except CycloptsError:  # has been printed
        sys.exit(2)
    except DaskrlError as error:
        say("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]))
        sys.exit(2)
    except KeyboardInterrupt:  # outside of a run, which has its own message
        say("\nInterrupted.")
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
            return described(name, given.algorithm_class(name))
    return None


if __name__ == "__main__":
    main()
