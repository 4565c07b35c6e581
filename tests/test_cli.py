"""The command line, run as its users run it: as processes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import dask
import distributed  # before its settings are changed: importing it reads their defaults
import pytest

import daskrl
from daskrl import clusters, sinks
from daskrl.cli import commands, running, signals
from daskrl.clusters import jobs
from tests.promise import start
from tests.read_back import logged, metrics, scalars, table
from tests.slurm import free_port
from tests.typed import Here, Terminal, daskrl_, steps
from tests.walks import faulty

ROOT = Path(__file__).parents[1]
WATCHED = """
import daskrl

class Watched(daskrl.DQN):
    "DQN that says when it plays greedily, which only an evaluation does."

    def act(self, policy, moment):
        if moment.greedy:
            print("plays greedily", flush=True)
        return super().act(policy, moment)
"""
MINE = """
import daskrl, gymnasium

def env():
    return gymnasium.make("CartPole-v1")

class Mine(daskrl.DQN):
    "The same as DQN."

gymnasium.register("Pole-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=500)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A directory with a store ``run``, and what ``train --json`` printed."""
    place = tmp_path_factory.mktemp("cli")
    done = daskrl_("train", "CartPole-v1", "--store", "run", "--episodes", "3", "--json", *steps(320), cwd=place)
    return place, json.loads(done.stdout)


def test_train_ends_with_a_summary_and_a_saved_learning_curve(trained: tuple[Path, dict[str, Any]]) -> None:
    place, summary = trained
    assert summary["env_steps"] == summary["env_steps_budget"] == 320
    assert summary["weights_version"] == 10
    assert summary["promise"] == "kept"
    assert summary["greedy_return_3_episodes"] == daskrl.evaluate(place / "run", episodes=3).mean
    picture = Path(summary["learning_curve"]).read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_train_prints_a_table_for_people(tmp_path: Path, here: Here) -> None:
    done = here("train", "CartPole-v1", "--store", "run", "--episodes", "0", *steps(320), cwd=tmp_path)
    for part in ("env steps", "320", "DQN", "promise", "kept", "learning curve"):
        assert part in done.stdout
    assert "it/s" not in done.stderr  # no progress bar in a pipe


def test_evaluate_prints_mean_median_and_every_return(trained: tuple[Path, dict[str, Any]], here: Here) -> None:
    place, _ = trained
    printed = json.loads(daskrl_("evaluate", "run", "--episodes", "4", "--json", cwd=place).stdout)
    expected = daskrl.evaluate(place / "run", episodes=4)
    assert (printed["mean"], printed["median"]) == (expected.mean, expected.median)
    assert printed["returns"] == list(expected.returns)
    table = here("evaluate", "run", "--episodes", "4", "--version", "0", "--seed", "9", cwd=place).stdout
    assert "weights version 0" in table
    assert "mean return" in table


def test_info_shows_what_the_store_holds(trained: tuple[Path, dict[str, Any]], here: Here) -> None:
    place, summary = trained
    printed = json.loads(daskrl_("info", "run", "--json", cwd=place).stdout)
    assert printed == daskrl.Store.open(place / "run").summary()
    assert {
        key: printed[key] for key in ("environment", "algorithm", "seed", "env_steps", "fragments", "versions")
    } == {key: summary[key] for key in ("environment", "algorithm", "seed", "env_steps", "fragments", "versions")}
    assert printed["config"]["algorithm"]["settings"]["hidden"] == [16]
    assert "CartPole-v1" in here("info", "run", cwd=place).stdout


def test_digest_is_one_line(trained: tuple[Path, dict[str, Any]], here: Here) -> None:
    place, _ = trained
    line = daskrl_("digest", "run", cwd=place).stdout
    assert re.fullmatch(r"[0-9a-f]{64}\n", line)
    assert json.loads(here("digest", "run", "--json", cwd=place).stdout) == {"digest": line.strip()}
    assert daskrl.Store.open(place / "run").digest() == line.strip()


def test_reproduce_says_that_a_fragment_is_the_same(trained: tuple[Path, dict[str, Any]], here: Here) -> None:
    place, _ = trained
    assert "the same, bit for bit" in daskrl_("reproduce", "run", "--fragment", "7", cwd=place).stdout
    printed = json.loads(here("reproduce", "run", "--fragment", "7", "--json", cwd=place).stdout)
    assert printed == {
        "fragment": 7, "stream": 1, "round": 3, "weights_version": 2, "committed": True, "differs": [],
    }  # fmt: skip


def test_reproduce_exits_with_1_where_a_fragment_differs(tmp_path: Path, here: Here) -> None:
    trouble = tmp_path / "trouble"
    trouble.touch()
    faulty(tmp_path / "run", "drift", trouble, at=2, env_steps=64).wait()
    done = daskrl_("reproduce", str(tmp_path / "run"), "--fragment", "0", cwd=ROOT, code=1)
    assert "DIFFERS in" in done.stdout
    assert "reward" in done.stdout
    done = here("reproduce", str(tmp_path / "run"), "--fragment", "0", "--json", cwd=ROOT, code=1)  # type: ignore[assignment]
    assert "reward" in json.loads(done.stdout)["differs"]


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("train CartPole-v1", ("--store",)),
        ("trane CartPole-v1", ("trane", "train")),
        ("train CartPole-v1 --store new --env-steps many", ("--env-steps", "an integer", "many")),
        ("train CartPole-v1 --store new --env-steps 9.5", ("--env-steps", "an integer", "9.5")),
        ("train CartPole-v1 --store new --env-step 9", ("Did you mean", "--env-steps")),
        ("train CartPool-v1 --store new --env-steps 9 --workers 0", ("UnknownEnvironmentError", "CartPole")),
        (
            "train nowhere:env --store new --env-steps 9 --workers 0",
            ("UnknownEnvironmentError", "nowhere", "PYTHONPATH"),
        ),
        ("train mine:missing --store new --env-steps 9 --workers 0", ("UnknownEnvironmentError", "missing")),
        ("train broken:env --store new --env-steps 9 --workers 0", ("ConfigError", "broken", "ZeroDivisionError")),
        ("train CartPole-v1 --algorithm ppp --store new --env-steps 9 --workers 0", ("ConfigError", "dqn", "ppp")),
        ("train CartPole-v1 --algorithm mine:No --store new --env-steps 9 --workers 0", ("ConfigError", "mine:No")),
        ("train CartPole-v1 --algorithm mine:env --store new --env-steps 9 --workers 0", ("ConfigError", "mine:env")),
        (
            "train CartPole-v1 -s n_steps=3 --store new --env-steps 9 --workers 0",
            ("ConfigError", "n_steps=3", "n_step,", "Did you mean n_step?"),
        ),
        ("train CartPole-v1 -s n_step --store new --env-steps 9 --workers 0", ("ConfigError", "NAME=VALUE")),
        ("train CartPole-v1 -s n_step=fast --store new --env-steps 9 --workers 0", ("ConfigError", "'fast'")),
        ("train CartPole-v1 -s n_step=0 --store new --env-steps 9 --workers 0", ("ConfigError", "n_step", ">= 1", "0")),
        (
            "train CartPole-v1 -s hidden=3.5 --store new --env-steps 9 --workers 0",
            ("ConfigError", "hidden", "(64, 64)", "3.5"),
        ),
        (
            "train CartPole-v1 -s precision=float16 --store new --env-steps 9 --workers 0",
            ("ConfigError", "precision", "bfloat16", "'float16'"),
        ),
        (
            "train CartPole-v1 -s double=FALSE --store new --env-steps 9 --workers 0",
            ("ConfigError", "double", "'FALSE'"),
        ),
        ("train CartPole-v1 --seed -1 --store new --env-steps 9 --workers 0", ("ConfigError", "seed", ">= 0", "-1")),
        ("train CartPole-v1 --workers -1 --store new --env-steps 9", ("ConfigError", "workers", "-1")),
        ("train CartPole-v1 --workers 0 --cluster slurm --store new --env-steps 9", ("ConfigError", "--workers 0")),
        ("train CartPole-v1 --workers 0 --cluster mpi --store new --env-steps 9", ("ConfigError", "--workers 0")),
        ("train CartPole-v1 --workers -1 --cluster slurm --store new --env-steps 9", ("ConfigError", "workers", "-1")),
        ("resume run --workers 0 --cluster site.yaml", ("ConfigError", "--workers 0")),
        ("train CartPole-v1 --scheduler tcp://127.0.0.1:9 --store new --env-steps 9", ("127.0.0.1:9", "scheduler")),
        ("train CartPole-v1 --store run --env-steps 9 --workers 0", ("StoreMismatchError", "daskrl resume")),
        ("resume new", ("StoreMismatchError", "daskrl train")),
        ("info new", ("StoreMismatchError", "daskrl train")),
        ("digest new", ("StoreMismatchError", "daskrl train")),
        ("evaluate run --version 3", ("ConfigError", "[0, 10]", "3")),
        ("evaluate run --episodes 0", ("ConfigError", "episodes", ">= 1")),
        ("reproduce run --fragment 3 --env mine:env", ("StoreMismatchError", "CartPole-v1", "env=")),
        ("reproduce run --fragment 4000", ("ConfigError", "4000", "round 2000")),
        ("reproduce run --fragment -1", ("ConfigError", "-1")),
    ],
)
def test_an_error_is_one_message_and_exits_with_2(
    trained: tuple[Path, dict[str, Any]], here: Here, typed: str, parts: tuple[str, ...]
) -> None:
    place, _ = trained
    (place / "mine.py").write_text(MINE)
    (place / "broken.py").write_text("1 / 0\n")
    with dask.config.set({"distributed.comm.timeouts.connect": "100ms"}):
        done = here(*shlex.split(typed), cwd=place, code=2)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    missing = [part for part in parts if part not in done.stderr]
    assert not missing, done.stderr
    assert not (place / "new").exists()


def test_an_error_on_a_worker_is_one_message_too(tmp_path: Path) -> None:
    line = "train CartPole-v1 -s learning_rate=1e20 --env-steps 3000 --workers 1 --store run --episodes 0"
    done = daskrl_(*shlex.split(line), cwd=tmp_path, code=2)
    assert "DivergedError: the loss of version" in done.stderr
    assert "Compute Failed" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("file", "workers", "least", "most"),
    [
        ({"minimum": 4, "maximum": 64}, None, 4, 64), ({"minimum": 4, "maximum": 64}, 2, 2, 2),
        ({"minimum": 4, "maximum": 64}, 100, 4, 100), ({"minimum": 0}, 3, 0, 3), ({}, 3, 1, 3),
    ],
)  # fmt: skip
def test_workers_are_the_most_jobs_there_may_be_of_a_site_file(
    monkeypatch: pytest.MonkeyPatch, file: dict[str, int], workers: int | None, least: int, most: int
) -> None:
    asked = []
    empty = distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None)
    monkeypatch.setattr(jobs, "from_file", lambda path: (empty, file))
    monkeypatch.setattr(jobs, "adapt", lambda cluster, **bounds: asked.append(bounds))
    with running.connected(workers, None, "site.yaml", 1):
        assert asked == [{"minimum": least, "maximum": most}]


def test_an_error_is_no_traceback_in_a_process_of_its_own_either(tmp_path: Path) -> None:
    done = daskrl_("train", "CartPool-v1", "--store", "new", "--env-steps", "9", cwd=tmp_path, code=2)
    assert done.stderr.startswith("UnknownEnvironmentError: 'CartPool-v1'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["train", "resume", "evaluate", "info", "digest", "reproduce", "watch", "jobs"])
def test_help_is_the_docstring_of_the_command_and_names_every_parameter(
    tmp_path: Path, here: Here, command: str
) -> None:
    shown = here(command, "--help", cwd=tmp_path).stdout
    function = getattr(commands, command)
    said = inspect.getdoc(function) or ""
    assert said.splitlines()[0] in shown
    described = re.findall(r"^([a-z_, ]+)\n    (\S.*)$", said, re.MULTILINE)
    names = {name for names, _ in described for name in names.split(", ")}
    hints = get_type_hints(function, include_extras=True)
    del hints["return"]
    for name in [name for name, hint in hints.items() if dataclasses.is_dataclass(hint)]:  # options that go together
        hints.update(get_type_hints(hints.pop(name), include_extras=True))
    shared = {  # options of several commands say it in their types
        name: said.help for name, hint in hints.items() for said in getattr(hint, "__metadata__", ()) if said.help
    }
    assert not names & set(shared)
    assert names | set(shared) == set(hints)
    for text in [*(text for _, text in described), *shared.values()]:
        assert " ".join(text.split()[:4]).rstrip(".") in shown


@pytest.mark.parametrize("module", ["daskrl", "daskrl.cli"])
def test_the_version_is_daskrls_whatever_it_is_started_as(tmp_path: Path, module: str) -> None:
    typed = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == daskrl.__version__


def test_the_installed_script_is_the_same_program(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("daskrl")
    done = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == daskrl.__version__


@pytest.mark.parametrize("workers", [0, 1], ids=["in this process", "on a cluster"])
def test_ctrl_c_says_how_to_go_on_and_resume_gives_the_digest_of_a_run_never_stopped(
    tmp_path: Path, here: Here, workers: int
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    settings = ["train", "mine:env", "--episodes", "0", "--algorithm", "mine:Mine"]
    here(*settings, *steps(3200), "--store", "whole", cwd=tmp_path)
    expected = here("digest", "whole", cwd=tmp_path).stdout

    terminal = Terminal(*settings, *steps(3200, workers), "--store", "run", cwd=tmp_path)
    terminal.until(r"return=")  # the progress bar after the first learned version
    terminal.press_ctrl_c()
    assert terminal.exit_code() == 130, terminal.text
    assert "Traceback" not in terminal.text
    line = re.search(r"Interrupted; everything committed is kept. Type: daskrl (.*?)\r?\n", terminal.text)
    assert line is not None, terminal.text
    assert line[1] == "resume run --env mine:env --algorithm mine:Mine"
    assert daskrl.Store.open(tmp_path / "run").weights_versions()[-1] < 100

    done = daskrl_(*shlex.split(line[1]), "--workers", "0", "--episodes", "0", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["env_steps"] == 3200
    assert here("digest", "run", cwd=tmp_path).stdout == expected
    mine = ["--env", "mine:env", "--algorithm", "mine:Mine"]
    assert "mean return" in here("evaluate", "run", "--episodes", "2", *mine, cwd=tmp_path).stdout
    assert "the same" in here("reproduce", "run", "--fragment", "9", *mine, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("workers", "number"), [(0, signal.SIGUSR1), (1, signal.SIGTERM)], ids=["in this process", "on a cluster"]
)
def test_a_signal_leaves_a_checkpoint_and_exit_code_75_and_the_same_line_goes_on(
    tmp_path: Path, here: Here, workers: int, number: signal.Signals
) -> None:
    here("train", "CartPole-v1", "--episodes", "0", *steps(3200), "--store", "whole", cwd=tmp_path)
    expected = here("digest", "whole", cwd=tmp_path).stdout

    typed = ["train", "CartPole-v1", "--episodes", "0", "--resume", "--store", "run"]
    terminal = Terminal(*typed, *steps(3200, workers), cwd=tmp_path)
    terminal.until(r"return=\d")
    os.kill(terminal.pid, number)
    assert terminal.exit_code() == 75, terminal.text
    assert "Stopped by a signal; everything learned is kept. Type: daskrl resume run" in terminal.text
    stopped = daskrl.Store.open(tmp_path / "run")
    *_, learned = stopped.records("learn")
    (made,) = stopped.records("checkpoint")
    assert made["version"] == learned["version"]

    daskrl_(*typed, *steps(3200, workers), cwd=tmp_path)
    assert here("digest", "run", cwd=tmp_path).stdout == expected
    done = daskrl_(*typed, *steps(3200, workers), "--json", cwd=tmp_path)  # finished: nothing to do
    assert json.loads(done.stdout)["env_steps"] == 3200


@pytest.mark.parametrize(
    ("workers", "number"), [(0, signal.SIGTERM), (1, signal.SIGUSR1)], ids=["in this process", "on a cluster"]
)
def test_a_signal_while_the_run_is_evaluated_is_exit_code_75_and_the_same_line_goes_on(
    tmp_path: Path, here: Here, workers: int, number: signal.Signals
) -> None:
    (tmp_path / "watched.py").write_text(WATCHED)
    typed = ["train", "CartPole-v1", "--algorithm", "watched:Watched", "--resume", "--store", "run", "--episodes"]
    terminal = Terminal(*typed, "1000000000", *steps(64, workers), cwd=tmp_path)
    terminal.until("plays greedily")
    os.kill(terminal.pid, number)
    assert terminal.exit_code() == 75, terminal.text[-2000:]
    assert "Traceback" not in terminal.text
    line = re.search(
        r"Stopped by a signal; everything is learned, the evaluation is not finished. Type: daskrl (.*?)\r?\n",
        terminal.text,
    )
    assert line is not None, terminal.text[-2000:]
    assert line[1] == "resume run --algorithm watched:Watched"
    for again in ([*typed, "2", *steps(64)], [*shlex.split(line[1]), "--workers", "0", "--episodes", "2"]):
        assert "greedy return 2 episodes" in here(*again, cwd=tmp_path).stdout


def test_a_signal_that_comes_too_late_to_stop_a_run_is_not_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def signalled(reports: Iterable[daskrl.Report]) -> Iterator[daskrl.Report]:
        yield from reports
        signal.raise_signal(signal.SIGTERM)

    run = start(tmp_path / "run", env_steps=128)
    with pytest.raises(SystemExit) as exit_:
        signals.carry_out(run, signalled, "daskrl resume run")
    assert exit_.value.code == 75
    assert "everything is learned, the evaluation is not finished. Type: daskrl resume run" in capsys.readouterr().err


def test_runs_pass_through_the_sinks_asked_for_also_when_they_are_stopped_and_resumed(
    tmp_path: Path,
    here: Here,
    tracked: Any,
    offline: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port, served = free_port(), dict[str, float]()
    written = sinks.mlflow

    def stopped(reports: daskrl.Run, *given: Any, **named: Any) -> Iterator[daskrl.Report]:
        for report in written(reports, *given, **named):
            yield report
            if report.weights_version == 4:  # asked for the next one: the sinks around this have written it
                served.update(metrics(port))
                signal.raise_signal(signal.SIGTERM)

    into = ["--tensorboard", "events", "--mlflow", "poles", "--prometheus", str(port), "--episodes", "0"]
    into += ["--csv", "run.csv", "--wandb", "poles"]
    with monkeypatch.context() as patch:
        patch.setattr(sinks, "mlflow", stopped)
        here("train", "CartPole-v1", "--store", "run", *into, *steps(320), cwd=tmp_path, code=75)
    assert served["daskrl_weights_version"] == 4
    experiment = tracked.get_experiment_by_name("poles").experiment_id
    (run,) = tracked.search_runs([experiment])
    assert run.info.status == "KILLED"
    here("resume", "run", "--workers", "0", *into, cwd=tmp_path)
    (run,) = tracked.search_runs([experiment])
    assert run.info.status == "FINISHED"
    history = tracked.get_metric_history(run.info.run_id, "weights_version")
    assert [metric.value for metric in history] == list(range(11))
    assert [value for _, value in scalars(tmp_path / "events", "weights_version")] == list(range(11))
    assert [row["weights_version"] for row in table(tmp_path / "run.csv")] == [str(n) for n in range(11)]
    parts = logged(offline)
    assert [part["id"] for part in parts] == [daskrl.Store.open(tmp_path / "run").run_id] * 2
    assert [values["weights_version"] for part in parts for values in part["history"]] == list(range(11))


@pytest.mark.parametrize("command", ["train CartPole-v1 --store new --env-steps 9", "resume run"])
@pytest.mark.parametrize(
    ("typed", "module", "message"),
    [
        ("--tensorboard events", "torch.utils.tensorboard", r"pip install 'daskrl\[tensorboard\]'"),
        ("--mlflow poles", "mlflow.entities", r"pip install 'daskrl\[mlflow\]'"),
        ("--prometheus 8000", "prometheus_client", r"pip install 'daskrl\[prometheus\]'"),
        ("--wandb poles", "wandb", r"pip install 'daskrl\[wandb\]'"),
        ("--prometheus 70000", "nothing", "port: expected a port from 1 to 65535, got 70000"),
    ],
)
def test_a_sink_that_cannot_be_is_named_before_there_is_a_cluster_or_a_store(
    trained: tuple[Path, dict[str, Any]], here: Here, monkeypatch: pytest.MonkeyPatch, command: str, typed: str,
    module: str, message: str,
) -> None:  # fmt: skip
    place, _ = trained
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(clusters, "local", lambda *_, **__: pytest.fail("a cluster was made"))
    done = here(*shlex.split(command), *shlex.split(typed), cwd=place, code=2)
    assert re.search(message, done.stderr), done.stderr
    assert not (place / "new").exists()


def test_resume_of_another_run_is_refused_with_what_differs(trained: tuple[Path, dict[str, Any]], here: Here) -> None:
    place, _ = trained
    before = daskrl.Store.open(place / "run").digest()
    other = shlex.join(steps(320)).replace("--seed 3", "--seed 4 --frame-stack 2")
    done = here("train", "CartPole-v1", "--store", "run", "--resume", *shlex.split(other), cwd=place, code=2)
    assert "holds another run; it differs in seed: 4 (store: 3); frame_stack: 2 (store: 1)." in done.stderr
    assert daskrl.Store.open(place / "run").digest() == before


def test_module_id_is_looked_up_where_the_command_is_typed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    script = str(Path(sys.executable).with_name("daskrl"))
    typed = [script, "train", "mine:Pole-v0", "--store", "run", "--episodes", "2", "--json", *steps(320)]
    summary = json.loads(subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert summary["environment"] == "mine:Pole-v0"
    again = [script, "reproduce", "run", "--fragment", "3"]
    assert "the same" in subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, check=True).stdout


def test_resume_with_a_larger_budget_gives_the_digest_of_a_run_made_with_it(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, here: Here
) -> None:
    here("train", "CartPole-v1", "--store", "run", "--episodes", "0", *steps(160), cwd=tmp_path)
    here("resume", "run", "--workers", "0", "--episodes", "0", "--env-steps", "320", cwd=tmp_path)
    place, _ = trained
    assert daskrl.Store.open(tmp_path / "run").digest() == daskrl.Store.open(place / "run").digest()


SCALED = """
import gymnasium

def env(scale, goal=None):
    return gymnasium.wrappers.TransformReward(gymnasium.make("CartPole-v1"), lambda reward: reward * scale)
"""


def test_arguments_of_an_environment_are_typed_as_values(tmp_path: Path, here: Here) -> None:
    lake = ["--env-kwargs", "is_slippery=False", "--env-kwargs", "map_name=8x8"]
    here("train", "FrozenLake-v1", *lake, "--store", "run", "--episodes", "0", *steps(320), cwd=tmp_path)
    store = daskrl.Store.open(tmp_path / "run")
    assert store.config.environment["kwargs"] == {"is_slippery": False, "map_name": "8x8"}
    assert store.spec.observation[0].sizes == (64,)
    other = [*lake, "--env-kwargs", "is_slippery=True"]
    typed = ["train", "FrozenLake-v1", *other, "--store", "run", "--resume", *steps(320)]
    assert "env_kwargs is_slippery: True (store: False)" in here(*typed, cwd=tmp_path, code=2).stderr
    said = here("train", "FrozenLake-v1", "--env-kwargs", "map", "--store", "new", *steps(320), cwd=tmp_path, code=2)
    assert "expected NAME=VALUE" in said.stderr
    assert not (tmp_path / "new").exists()


def test_a_run_on_a_function_with_arguments_goes_on_with_the_same_alone(tmp_path: Path, here: Here) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    given = ["--env-kwargs", "scale=2.0", "--env-kwargs", "goal=(2, 0)"]
    here("train", "scaled:env", *given, "--store", "run", "--episodes", "0", *steps(160), cwd=tmp_path)
    fragment = daskrl.Store.open(tmp_path / "run")
    assert fragment.read(fragment.fragments()[0])["reward"].max() == 2.0
    again = ["resume", "run", "--env", "scaled:env", "--workers", "0", "--episodes", "0", "--env-steps", "320"]
    other = here(*again, "--env-kwargs", "scale=3.0", "--env-kwargs", "goal=(2, 0)", cwd=tmp_path, code=2)
    assert "scale: 3.0 (store: 2.0)" in other.stderr
    here(*again, *given, cwd=tmp_path)
    here("train", "scaled:env", *given, "--store", "whole", "--episodes", "0", *steps(320), cwd=tmp_path)
    digests = [daskrl.Store.open(tmp_path / name).digest() for name in ("run", "whole")]
    assert digests[0] == digests[1]
    assert "the same" in here("reproduce", "run", "--fragment", "3", "--env", "scaled:env", *given, cwd=tmp_path).stdout
