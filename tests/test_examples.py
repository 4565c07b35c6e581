"""The examples run, briefly: what is written in them is what a user would write, so they must not rot."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import daskrl
from daskrl.cli.studyfile import StudyFile
from daskrl.testing import AlgorithmTests
from tests.examples import EXAMPLES, example


def test_discrete_cql_trains_and_plays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mean = example("discrete_cql").main(["--workers", "0", "--env-steps", "3000", "--store", str(tmp_path / "run")])
    assert 8 <= mean <= 500
    assert "greedy mean return" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "package", "steps", "least", "most"),
    [
        ("robotics", "mujoco", 600, -300.0, 0.0),  # 50 steps, a cost each
        ("driving", "highway_env", 240, 0.0, 30.0),  # 30 decisions, at most 1 each
        ("trading", "gym_anytrading", 2048, -600.0, 2000.0),
    ],
)
def test_real_environments_train_and_play(
    name: str, package: str, steps: int, least: float, most: float, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(package)
    greedy = example("real_environments").main([name, "--workers", "0", "--env-steps", str(steps)])
    printed = capsys.readouterr().out
    assert least <= greedy <= most
    assert f"greedy: {greedy:.2f}\nrandom: " in printed
    assert ("holding: 543.75\n" in printed) == (name == "trading")  # what the stock rose on the days it is played on


def test_the_keras_example_learns_without_torch_and_the_same_in_processes(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    keras = example("keras_q_learning")
    assert "torch" not in keras.__dict__
    arguments = ["--env-steps", "3000", "--store"]
    keras.main([*arguments, str(tmp_path / "here"), "--workers", "0"])
    keras.main([*arguments, str(tmp_path / "there"), "--workers", "1"])
    here, there = (daskrl.Store.open(tmp_path / name) for name in ("here", "there"))
    assert here.summary()["learner_updates"] > 500
    assert here.digest() == there.digest()
    for store in (here, there):  # what workers' versions are compared with
        (record,) = store.records("arithmetic")
        for versions in (store.summary()["versions"], record["versions"]):
            assert versions["keras"] == metadata.version("keras")
            assert tensorflow.__version__ in {versions["tensorflow"], versions["tensorflow_cpu"]}


def test_the_keras_example_passes_the_tests_of_algorithms() -> None:
    pytest.importorskip("tensorflow")
    algorithm = example("keras_q_learning").KerasQLearning

    class Suite(AlgorithmTests):
        def make(self) -> Any:
            return algorithm(hidden=(64,), n_step=1, replay_ratio=16, learning_starts=200, epsilon_steps=2000)

    Suite().run()


def test_an_own_algorithm_is_one_cell_of_a_notebook_and_passes_the_tests_of_algorithms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASKRL_QUICK", "1")
    notebook = nbformat.read(EXAMPLES / "own_algorithm.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert max(len(cell.source.splitlines()) for cell in code) < 60
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises where a cell does
    assert "test_it_learns" in str(code[-2].outputs)


def test_the_worked_example_of_a_study_runs_whole_and_the_study_of_its_file_is_the_notebooks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASKRL_QUICK", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(EXAMPLES / "dqn_parts" / "study.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises where a cell does
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "1 runs again, 0 differ" in said
    assert (tmp_path / "studies" / "dqn_parts" / "report.html").stat().st_size > 100_000

    arguments = StudyFile(str(EXAMPLES / "dqn_parts" / "study.toml")).arguments()
    made = daskrl.Study(
        tmp_path / "studies" / "dqn_parts", **{**arguments, "env": "CartPole-v1", "seeds": 1, "env_steps": 1024}
    )
    assert made.more() == []
    assert made.summary()["finished"] == 16
