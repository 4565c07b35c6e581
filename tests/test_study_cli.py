"""``daskrl study``: studies from a file, carried on, compared, verified, listed."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

import daskrl
from daskrl.cli.study import run
from daskrl.cli.studyfile import StudyFile
from daskrl.errors import ConfigError
from daskrl.store.pack import pack, unpack
from daskrl.study import Greedy, Random, Study
from daskrl.study.definition import define
from daskrl.study.log import StudyLog
from tests.typed import Here, Terminal, daskrl_

FILE = """
env = "CartPole-v1"
env_steps = 256
seeds = 2
score = {kind = "greedy", episodes = 2}
streams = 2
envs_per_stream = 2
fragment_steps = 16

[algorithm]
name = "dqn"
hidden = [8]
learning_starts = 64
batch_size = 16
window = 1024

[space]
learning_rate = [1e-4, 1e-3]
"""
QUICK = daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=16, window=1024)
SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 16}


def write(place: Path, file: str = "lr.toml", **changed: str) -> None:
    """The file with some of its lines changed, by their key."""
    lines = [
        f"{key} = {changed.pop(key)}" if (key := line.partition(" =")[0]) in changed else line
        for line in FILE.splitlines()
    ]
    (place / file).write_text("\n".join([*(f"{key} = {value}" for key, value in changed.items()), *lines]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the file of a study, and the study that another process carried out from it."""
    place = tmp_path_factory.mktemp("study")
    write(place)
    daskrl_("study", "run", "lr.toml", "--workers", "0", cwd=place)
    return place


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The same study, made in Python."""
    study = Study(
        tmp_path_factory.mktemp("python") / "lr", algorithm=QUICK, env="CartPole-v1",
        space={"learning_rate": [1e-4, 1e-3]}, seeds=2, env_steps=256, score=Greedy(2), **SHAPE,
    )  # fmt: skip
    return study.run(progress=False)


def test_a_study_from_a_file_has_the_table_of_the_study_made_in_python(made: Path, python: Study, here: Here) -> None:
    said = json.loads(here("study", "show", "lr", "--json", cwd=made).stdout)
    assert said["digest"] == python.digest()
    assert [row["score"] for row in said["rows"]] == python.table().score.tolist()


def test_show_has_the_best_setting_first(made: Path, python: Study, here: Here) -> None:
    said = here("study", "show", "lr", cwd=made).stdout
    means = python.table().groupby("learning_rate").score.mean()
    best, worst = means.idxmax(), means.idxmin()
    assert said.index(f" {best} ") < said.index(f" {worst} ")
    assert "2/2" in said


def test_the_same_line_again_runs_nothing_and_a_larger_file_extends_the_study(
    made: Path, tmp_path: Path, here: Here
) -> None:
    write(tmp_path, path=f'"{made / "lr"}"')
    before = [*(made / "lr" / ".commits").iterdir()]
    here("study", "run", "lr.toml", "--workers", "0", cwd=tmp_path)
    here("study", "run", "lr.toml", "--workers", "0", "--resume", cwd=tmp_path)
    assert [*(made / "lr" / ".commits").iterdir()] == before
    write(tmp_path, "small.toml", seeds="[0]", env_steps="64")
    small = json.loads(here("study", "run", "small.toml", "--workers", "0", "--json", cwd=tmp_path).stdout)
    write(tmp_path, "small.toml", seeds="[0, 5]", env_steps="64")
    refused = here("study", "run", "small.toml", "--workers", "0", "--resume", cwd=tmp_path, code=2)
    assert "small.toml has more seeds than the study in" in refused.stderr
    larger = json.loads(here("study", "run", "small.toml", "--workers", "0", "--json", cwd=tmp_path).stdout)
    assert [row["seed"] for row in larger["rows"]] == [0, 5, 0, 5]
    assert [row["digest"] for row in larger["rows"][::2]] == [row["digest"] for row in small["rows"]]


def test_a_file_that_says_something_else_is_refused_by_what_differs(made: Path, tmp_path: Path, here: Here) -> None:
    write(tmp_path, path=f'"{made / "lr"}"', batch_size="8")
    said = here("study", "run", "lr.toml", "--workers", "0", cwd=tmp_path, code=2)
    assert "is another study; it differs in algorithms.DQN" in said.stderr


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seds": "3"}, "lr.toml, line 1: seds: there is no such key. Did you mean seeds?"),
        ({"hidden": "[8]\nbatchsize = 3"}, "line 13: algorithm.batchsize: there is no such key. Did you mean batch_s"),
        ({"name": '"dqm"'}, "line 10: algorithm: "),
        ({"hidden": "-1"}, "line 12: "),
        ({"learning_rate": "[]"}, "line 18: space: learning_rate has no values"),
        ({"learning_rate": "[-1.0]"}, "line 18: "),
        ({"learning_rate": "[1e-3]\nn_stepp = [1, 3]"}, "line 19: space: no algorithm of this study has a setting 'n"),
        ({"learning_rate": "{low = 1e-3, hihg = 1.0}"}, "line 18: space.learning_rate.hihg: there is no such key. Did"),
        ({"learning_rate": "{low = 1e-3}"}, "line 18: space.learning_rate: high is missing"),
        ({"learning_rate": "{low = 1e-3, high = 1e-4}"}, "line 18: space.learning_rate: Range: expected finite"),
        ({"learning_rate": "{low = 1e-4, high = 1e-3}"}, "line 18: space.learning_rate: a range, so how many"),
        ({"env": '"CartPool-v1"'}, "lr.toml, line 2: "),
        ({"env": '"mine.py:make"'}, "line 2: env: mine.py: expected a file"),
        ({"env": '["CartPole-v1", "CartPole-v1"]'}, "line 2: env: two are called 'CartPole-v1'"),
        ({"env_steps": '"many"'}, "line 3: env_steps"),
        ({"score": '{kind = "greddy"}'}, "line 5: score: expected a kind, one of "),
        ({"score": '"lats"'}, "line 5: score: expected 'last'"),
        ({"score": '{kind = "greedy", episode = 1}'}, "line 5: score.episode: there is no such key. Did you mean e"),
        ({"search": '{kind = "random", settings = 0}'}, "line 1: settings"),
        ({"streams": "0"}, "line 6: "),
        ({"env": ""}, "lr.toml is no TOML: Invalid value (at line 2"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named_by_its_line_and_nothing_is_made(
    tmp_path: Path, here: Here, changed: dict[str, str], said: str
) -> None:
    write(tmp_path, **changed)
    assert said in here("study", "run", "lr.toml", "--workers", "0", cwd=tmp_path, code=2).stderr
    assert not (tmp_path / "lr").exists()


def test_the_file_in_the_help_is_one_that_works(tmp_path: Path) -> None:
    text = inspect.getdoc(run) or ""
    (tmp_path / "help.toml").write_text(text[text.index("    path =") : text.index("Parameters\n")])
    arguments = StudyFile(str(tmp_path / "help.toml")).arguments()
    definition = define(**{"study_seed": 0, "given": {"streams": arguments.pop("streams")}, **arguments})
    assert {**definition.search.next(definition.space, 50_000, 0, [], {}).setting}.keys() >= {"learning_rate"}


def test_none_in_a_file_is_pythons_none(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        'env = "CartPole-v1"\nenv_steps = 100\nlearner_timeout = "none"\n'
        '[algorithm]\nname = "dqn"\nmax_grad_norm = "none"\n[space]\npriority_alpha = ["none", 0.6]\n'
    )
    arguments = StudyFile(str(tmp_path / "a.toml")).arguments()
    assert arguments["algorithm"].max_grad_norm is None
    assert arguments["space"] == {"priority_alpha": [None, 0.6]}
    assert arguments["learner_timeout"] is None


def test_a_file_says_all_that_a_study_takes(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import daskrl, gymnasium\n\n"
        "def make(length):\n    return gymnasium.make('CartPole-v1', max_episode_steps=length)\n\n"
        "class Mine(daskrl.DQN):\n    'The same as DQN.'\n\n"
        "def longest(store):\n    return float(store.summary()['env_steps'])\n"
    )
    (tmp_path / "all.toml").write_text(
        'path = "out/all"\nenv_steps = 1e2\nseeds = [4]\nscore = "mine.py:longest"\nstreams = 2\n'
        "envs_per_stream = 2\nframe_stack = 2\nevaluate_every = 2\n"
        'search = {kind = "random", settings = 3}\nstudy_seed = 1\n'
        '[algorithms.a]\nname = "mine.py:Mine"\nhidden = [8]\n[algorithms.b]\nname = "ppo"\nhidden = [8]\n'
        '[envs]\nshort = {name = "mine.py:make", length = 9}\nlong = "Acrobot-v1"\n'
        "[space]\nlearning_rate = {low = 1e-4, high = 1e-3, log = true}\nfragment_steps = [8, 16]\n"
        'n_step = {when = {algorithm = "a"}, values = [1, 2]}\n'
    )
    monkeypatch.chdir(tmp_path)
    definition = StudyFile("all.toml").study().definition
    assert [*definition.algorithms] == ["a", "b"]
    assert [*definition.environments] == ["short", "long"]
    assert (definition.seeds, definition.env_steps, definition.study_seed) == ((4,), 100, 1)
    assert definition.shape == {"streams": 2, "envs_per_stream": 2, "frame_stack": 2}
    assert definition.options.evaluate_every == 2
    assert definition.search == Random(3)
    assert definition.environments["short"]().spec.max_episode_steps == 9
    rows = json.loads(here("study", "run", "all.toml", "--workers", "0", "--json", cwd=tmp_path).stdout)["rows"]
    assert [row["score"] for row in rows] == [128.0 for row in rows]


def test_compare_says_which_setting_and_which_study_is_better(made: Path, tmp_path: Path, here: Here) -> None:
    said = here("study", "compare", "lr", "--by", "learning_rate", cwd=made).stdout
    assert "learning_rate=0.0001" in said
    assert "difference in score, A minus B" in said
    write(tmp_path, "other.toml", discount="0.5\nbatch_size = 8", score='"auc"')
    assert "learning_rate" in here("study", "compare", "lr", cwd=made, code=2).stderr
    said = here("study", "compare", "lr", "--by", "learning_rat", cwd=made, code=2).stderr
    assert "Did you mean learning_rate?" in said


def test_two_studies_are_compared_over_equal_settings_and_seeds(made: Path, tmp_path: Path, here: Here) -> None:
    write(tmp_path, "other.toml", batch_size="8", seeds="[1, 2]")
    here("study", "run", "other.toml", "--workers", "0", cwd=tmp_path)
    said = json.loads(here("study", "compare", "other", str(made / "lr"), "--json", cwd=tmp_path).stdout)
    (pair,) = said["pairs"]
    assert {pair["a"], pair["b"]} == {"study=lr", "study=other"}
    scores = {
        (name, row["learning_rate"], row["seed"]): row["score"]
        for name, where in (("lr", made), ("other", tmp_path))
        for row in json.loads(here("study", "show", name, "--json", cwd=where).stdout)["rows"]
    }
    differences = [scores[pair["a"][6:], rate, 1] - scores[pair["b"][6:], rate, 1] for rate in (1e-4, 1e-3)]
    assert pair["pairs"] == 1  # one environment, and seed 1
    assert pair["difference"] == sum(differences) / 2
    write(tmp_path, "auc.toml", score='"auc"', seeds="1", env_steps="64")
    here("study", "run", "auc.toml", "--workers", "0", cwd=tmp_path)
    refused = here("study", "compare", "auc", "other", cwd=tmp_path, code=2).stderr
    assert "different scores: mean return over training, and return of 2 greedy episodes, last weights" in refused


def test_verify_runs_a_derived_sample_again_and_finds_what_differs(made: Path, tmp_path: Path, here: Here) -> None:
    said = json.loads(here("study", "verify", "lr", "--sample", "50%", "--json", cwd=made).stdout)
    assert (said["verified"], said["differ"]) == (2, 0)
    kept = {
        row["run"]: row["digest"] for row in json.loads(here("study", "show", "lr", "--json", cwd=made).stdout)["rows"]
    }
    assert all(kept[run["run"]] == run["found"] for run in said["runs"])
    one = here("study", "verify", "lr", "--sample", "1", cwd=made).stdout
    assert one.startswith(said["runs"][0]["run"])
    assert "1 runs again, 0 differ" in one
    assert "expected a share" in here("study", "verify", "lr", "--sample", "half", cwd=made, code=2).stderr


def test_the_line_that_best_prints_makes_the_run_of_the_study(made: Path, python: Study, here: Here) -> None:
    line = here("study", "best", "lr", cwd=made).stdout.strip()
    here(*shlex.split(line)[1:], "--workers", "0", "--episodes", "0", cwd=made)
    digest = here("digest", "lr-best", cwd=made).stdout.strip()
    table = python.table()
    best = table.groupby("learning_rate").score.mean().idxmax()
    (expected,) = table[(table.learning_rate == best) & (table.seed == 0)].digest
    assert digest == expected


def test_the_best_setting_is_confirmed_on_unseen_seeds_and_whoever_looks_later_sees_it(
    made: Path, tmp_path: Path, here: Here
) -> None:
    for name in ("lr.toml", "lr"):
        (shutil.copytree if (made / name).is_dir() else shutil.copy)(made / name, tmp_path / name)
    assert "Not tested on seeds that it was not chosen by" in here("study", "best", "lr", cwd=tmp_path).stderr
    assert json.loads(here("study", "show", "lr", "--json", cwd=tmp_path).stdout)["confirmed"] is None
    typed = ("study", "confirm", "lr.toml", "--seeds", "1", "--workers", "0", "--json")
    found = json.loads(here(*typed, cwd=tmp_path).stdout)
    (again,) = (tmp_path / "lr" / "confirmed").iterdir()
    (row,) = json.loads(here("study", "show", str(again), "--json", cwd=tmp_path).stdout)["rows"]
    assert (row["seed"], row["score"]) == (2, found["test"][0])
    assert found["optimism"][0] == found["search"][0] - found["test"][0]
    for command in ("show", "best"):
        assert json.loads(here("study", command, "lr", "--json", cwd=tmp_path).stdout)["confirmed"] == found
        said = here("study", command, "lr", cwd=tmp_path)
        assert "IQM on unseen seeds" in said.stdout + said.stderr
    before = [*again.rglob("*")]
    assert json.loads(here(*typed, cwd=tmp_path).stdout) == found
    assert [*again.rglob("*")] == before


def test_runs_lists_runs_and_studies_wherever_they_are(
    made: Path, python: Study, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "lr").symlink_to(made / "lr")
    (tmp_path / "studies" / "again").symlink_to(tmp_path / "studies")  # a circle
    (tmp_path / "notes.txt").touch()
    run = daskrl.train(QUICK, "CartPole-v1", store="single/one", env_steps=256, seed=7, progress=False, **SHAPE)
    for _ in run:
        break
    unfinished = {
        "path": "single/one", "study": None, "algorithm": "DQN", "environment": "CartPole-v1", "seed": 7,
        "env_steps": 256, "state": "unfinished", "packed": False,
    }  # fmt: skip
    (row,) = daskrl.runs("single").to_dict("records")
    assert {name: row[name] for name in unfinished} == unfinished
    run.wait()
    (row,) = daskrl.runs("*/one").to_dict("records")
    assert row["state"] == "finished"
    assert row["return_last_100"] == run.store.summary()["return_last_100"]
    table = daskrl.runs("studies/**")
    expected = python.table()
    assert table.path.tolist() == [f"studies/lr/{path}" for path in expected.run]
    assert table.return_last_100.tolist() == expected.return_last_100.tolist()
    assert set(table.state) == {"finished"}
    assert set(table.study) == {"studies/lr"}
    assert len(daskrl.runs(tmp_path)) == len(daskrl.runs("**")) == len(daskrl.runs("**/*")) == 5
    assert len(daskrl.runs("*/*")) == 5  # a study that is named is there with all its runs
    assert daskrl.runs("**/runs/*").path.tolist() == table.path.tolist()
    assert daskrl.runs("studies/l?").path.tolist() == table.path.tolist()
    assert daskrl.runs("*").empty
    with pytest.raises(ConfigError, match="nowhere is no directory"):
        daskrl.runs("nowhere")
    pack(run.store)
    assert not (tmp_path / "single" / "one").exists()
    for pattern in ("single", "single/*", "single/one"):
        assert daskrl.runs(pattern).to_dict("records") == [{**row, "packed": True}]
    unpack("single/one")
    (tmp_path / "single" / "one" / "zarr.json").write_text("{")
    with pytest.warns(UserWarning, match="single/one cannot be read"):
        assert daskrl.runs("single").state.tolist() == ["unreadable"]


def test_info_shows_a_study_with_its_newest_runs_and_lists_a_directory_of_many(made: Path, here: Here) -> None:
    said = here("info", "lr", cwd=made).stdout
    assert "newest first" in said
    assert json.loads(here("info", "lr", "--json", cwd=made).stdout)["newest"][0]["seed"] == 1
    run = json.loads(here("study", "show", "lr", "--json", cwd=made).stdout)["rows"][0]["run"]
    assert f"lr/{run}" in here("info", "**", cwd=made).stdout
    listed = json.loads(here("info", ".", "--json", cwd=made).stdout)
    assert f"lr/{run}" in [row["path"] for row in listed]


LONG = "2_000"


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a study of longer runs, never stopped."""
    place = tmp_path_factory.mktemp("long")
    write(place, path=f'"{place}/lr"', env_steps=LONG)
    return StudyFile(str(place / "lr.toml")).study().run(progress=False).digest()


@pytest.mark.parametrize(
    ("workers", "harm", "code", "said"),
    [
        ("0", "SIGTERM", 75, "Stopped by a signal; everything committed is kept. Type: daskrl study run lr.toml"),
        ("0", "Ctrl-C", 130, "Interrupted; everything committed is kept. Type: daskrl study run lr.toml"),
        ("2", "SIGUSR1", 75, "Stopped by a signal; everything committed is kept. Type: daskrl study run lr.toml"),
    ],
)
def test_a_signal_or_ctrl_c_stops_a_study_and_the_same_line_goes_on(
    tmp_path: Path, here: Here, long: str, workers: str, harm: str, code: int, said: str
) -> None:
    write(tmp_path, env_steps=LONG)
    terminal = Terminal("study", "run", "lr.toml", "--workers", workers, cwd=tmp_path)
    terminal.until(r"1/4")
    if harm == "Ctrl-C":
        terminal.press_ctrl_c()
    else:
        os.kill(terminal.pid, getattr(signal, harm))
    assert terminal.exit_code() == code, terminal.text
    assert said in terminal.text
    assert "Traceback" not in terminal.text
    before = {row["run"]: row["seconds"] for row in shown(tmp_path, here) if row["state"] == "finished"}
    assert 1 <= len(before) < 4
    begun = {path.stem: daskrl.Store.open(path).run_id for path in (tmp_path / "lr" / "runs").iterdir()}
    done = json.loads(here("study", "run", "lr.toml", "--workers", "0", "--json", cwd=tmp_path).stdout)
    assert done["digest"] == long
    assert {row["run"]: row["seconds"] for row in done["rows"] if row["run"] in before} == before
    after = {path.stem: daskrl.Store.open(path).run_id for path in (tmp_path / "lr" / "runs").iterdir()}
    assert {name: after[name] for name in begun} == begun  # those on their way went on


def shown(place: Path, here: Here) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(here("study", "show", "lr", "--json", cwd=place).stdout)["rows"]
    return rows


MINE = """
import daskrl, gymnasium

def make(length=500):
    return gymnasium.make("CartPole-v1", max_episode_steps=length)

class Mine(daskrl.DQN):
    "The same as DQN."
"""


def test_verify_and_best_say_what_to_type_where_a_study_has_the_users_own(tmp_path: Path, here: Here) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    write(tmp_path, name='"mine.py:Mine"', env='"mine.py:make"', env_kwargs="{length = 20}", seeds="1")
    rows = json.loads(here("study", "run", "lr.toml", "--workers", "0", "--json", cwd=tmp_path).stdout)["rows"]
    given = ["--algorithm", "mine.py:Mine", "--env", "mine.py:make", "--env-kwargs", "length=20"]
    for command in ("verify", "best"):
        said = here("study", command, "lr", cwd=tmp_path, code=2).stderr
        assert f"Type: daskrl study {command} lr --algorithm FILE.py:Mine" in said
        said = here("study", command, "lr", *given[:2], cwd=tmp_path, code=2).stderr
        assert f"Type: daskrl study {command} lr --algorithm mine.py:Mine --env FILE.py:make" in said
        said = here("study", command, "lr", *given[:4], cwd=tmp_path, code=2).stderr
        assert "what differs: " in said  # the length
    assert "2 runs again, 0 differ" in here("study", "verify", "lr", "--sample", "100%", *given, cwd=tmp_path).stdout
    line = here("study", "best", "lr", *given, cwd=tmp_path).stdout.strip()
    here(*shlex.split(line)[1:], "--workers", "0", "--episodes", "0", cwd=tmp_path)
    best = max(rows, key=lambda row: row["score"])
    assert here("digest", "lr-best", cwd=tmp_path).stdout.strip() == best["digest"]


def test_verify_finds_a_run_whose_bits_are_others(made: Path, tmp_path: Path, here: Here) -> None:
    shutil.copytree(made / "lr", tmp_path / "lr")
    log = StudyLog.open(tmp_path / "lr")
    record = next(iter(log.results.values()))
    log.lock()
    log.append([{**record, "digest": "0" * 64}])
    log.unlock()
    done = here("study", "verify", "lr", "--sample", "100%", cwd=tmp_path, code=1).stdout
    assert f"DIFFERS: {record['digest']} (study: {'0' * 64})" in done
    assert "4 runs again, 1 differ" in done


def test_a_study_whose_runs_failed_says_so_and_tries_them_again_when_asked(tmp_path: Path, here: Here) -> None:
    (tmp_path / "luck.py").write_text(
        "import pathlib\n\ndef score(store):\n"
        "    if store.config.seed == 1 and not pathlib.Path(store.root.parents[2] / 'mended').exists():\n"
        "        raise RuntimeError('out of luck')\n    return 1.0\n"
    )
    write(tmp_path, score='"luck.py:score"', env_steps="64")
    done = here("study", "run", "lr.toml", "--workers", "0", cwd=tmp_path, code=1)
    assert "2 runs failed. To try them again, type: daskrl study run lr.toml --retry-failed" in done.stderr
    assert "RuntimeError: out of luck" in done.stdout
    (tmp_path / "mended").touch()
    here("study", "run", "lr.toml", "--workers", "0", cwd=tmp_path, code=1)
    here("study", "run", "lr.toml", "--workers", "0", "--retry-failed", cwd=tmp_path)


@pytest.mark.parametrize(
    ("search", "runs"),
    [
        ('{kind = "asha", inner = {kind = "random", settings = 3}, rungs = 128, reduction = 2}', 3),
        ('{kind = "population", members = 2, interval = 128}', 3),
    ],
    ids=["rungs", "population"],
)
def test_runs_that_were_paused_and_runs_that_copied_another_are_verified(
    tmp_path: Path, here: Here, search: str, runs: int
) -> None:
    write(tmp_path, search=search, seeds="1", learning_rate="{low = 1e-4, high = 1e-3, log = true}")
    ran = here("study", "run", "lr.toml", "--workers", "0", cwd=tmp_path)
    shown = here("study", "show", "lr", cwd=tmp_path)
    for said in (ran.stderr, shown.stderr):
        assert "after 128 env steps a run (learning_rate=" in said
        assert "has had updates in 1 rounds of 64 transitions" in said
    said = here("study", "verify", "lr", "--sample", "100%", cwd=tmp_path).stdout
    assert f"{runs} runs again, 0 differ" in said
