"""A run that is watched: figures from hand-made records, and what a terminal, a pipe and a notebook show."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import daskrl
from daskrl.cli import commands as cli
from daskrl.errors import ConfigError, StoreMismatchError
from daskrl.watching.figures import duration, page, rows
from daskrl.watching.watch import Reader, bars, follow, line, sampled
from tests.typed import Terminal, daskrl_
from tests.watched import budget, fragment, learned, tally

ROOT = Path(__file__).parents[1]
SMALL = daskrl.DQN(hidden=(16,), batch_size=8, learning_starts=32, replay_ratio=2.0, window=160)
SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 8}


def small(store: Path, env_steps: int = 320, **given: Any) -> daskrl.Run:
    """A run of 32 steps a round."""
    return daskrl.train(SMALL, "CartPole-v1", store=store, env_steps=env_steps, progress=False, **SHAPE, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Run:
    return small(tmp_path_factory.mktemp("watch") / "run").wait()


# -- figures, by hand: two streams of one environment, fragments of 10 steps --------------------------------


TWO_ROUNDS = (
    {"kind": "created"},
    budget(95),  # five rounds of 20
    learned(0, 0.1),
    fragment(0, 0, 1000.0, 1001.0, "a", (3.0, 5.0)),
    fragment(1, 0, 1000.0, 1002.0, "b"),
    learned(1, 0.5, 10, 0.25),
    fragment(0, 1, 1002.0, 1004.0, "a", (10.0,)),
    fragment(1, 1, 1002.0, 1006.0, "b"),
    learned(2, 1.0, 20, 0.125),
)


def test_figures_count_what_is_committed() -> None:
    figures = tally(*TWO_ROUNDS).figures()
    assert (figures.env_steps, figures.env_steps_budget, figures.finished) == (40, 95, False)
    assert (figures.weights_version, figures.learner_updates, figures.loss) == (2, 20, 0.125)
    assert (figures.episodes, figures.episode_return) == (3, 6.0)
    assert figures.policy_lag == 1
    assert figures.replay_ratio == 20 * 4 / 40
    assert figures.workers == 2


def test_pace_is_that_between_the_first_and_the_last_learned_round_by_the_clock_of_the_fragments() -> None:
    figures = tally(*TWO_ROUNDS).figures()  # version 1 at 1002, version 2 at 1006
    assert figures.fragments_per_second == 2 / 4
    assert figures.env_steps_per_second == 20 / 4
    assert (figures.learner_busy, figures.learner_waiting) == (1 / 4, 3 / 4)
    assert figures.seconds == 6.0
    assert figures.seconds_left == 3 * 4.0  # three rounds of five to go
    assert (figures.newest, figures.end) == (1006.0, 1018.0)


def test_pace_is_not_known_before_the_second_round_is_learned() -> None:
    for count in range(len(TWO_ROUNDS)):
        figures = tally(*TWO_ROUNDS[:count]).figures()
        assert figures.fragments_per_second is figures.env_steps_per_second is figures.learner_busy is None
        assert figures.learner_waiting is figures.end is None
    assert "-" in line(tally(budget(95)).figures())


def test_pace_forgets_what_is_older_than_a_minute() -> None:
    counted = tally(budget(10_000))
    begin = 0.0
    for round_ in range(20):
        seconds = 20.0 if round_ < 10 else 10.0  # twice as fast since 200
        for stream in (0, 1):
            counted.take(fragment(stream, round_, begin, begin + seconds))
        begin += seconds
        counted.take(learned(round_ + 1, seconds / 5))
    figures = counted.figures()
    assert figures.env_steps_per_second == 2.0
    assert figures.learner_busy == pytest.approx(0.2)


def test_the_last_two_rounds_make_the_pace_where_a_round_takes_longer_than_a_minute() -> None:
    counted = tally(budget(80))
    for round_ in range(3):
        for stream in (0, 1):
            counted.take(fragment(stream, round_, round_ * 500.0, round_ * 500.0 + 400.0))
        counted.take(learned(round_ + 1, 50.0))
    figures = counted.figures()
    assert figures.env_steps_per_second == 20 / 500
    assert figures.learner_busy == 0.1
    assert figures.seconds_left == 500.0


def test_a_learner_that_made_up_for_a_loss_is_busy_all_the_time_and_not_more() -> None:
    figures = tally(*TWO_ROUNDS[:-1], learned(2, 9.0)).figures()
    assert (figures.learner_busy, figures.learner_waiting) == (1.0, 0.0)


def test_a_run_is_finished_when_its_last_round_is_learned_and_goes_on_with_a_larger_budget() -> None:
    figures = tally(*TWO_ROUNDS, budget(40)).figures()
    assert figures.finished
    assert figures.seconds_left == 0.0
    assert not tally(*TWO_ROUNDS, budget(40), budget(41)).figures().finished


def test_a_worker_counts_from_its_first_fragment_until_ten_seconds_after_its_last() -> None:
    counted = tally(
        budget(1000),
        fragment(0, 0, 1000.0, 1001.0, "a"),
        fragment(1, 0, 1000.0, 1001.0, "b"),  # is killed
        fragment(0, 1, 1001.0, 1010.0, "a"),
        fragment(0, 2, 1010.0, 1020.0, "a"),
    )
    assert counted.figures().workers == 1
    assert counted.figures().workers_over_time == ((0.0, 2), (11.0, 1), (20.0, 1))
    counted.take(fragment(1, 1, 1015.0, 1019.0, "c"))  # takes its place
    assert counted.figures().workers == 2
    assert counted.figures().workers_over_time == ((0.0, 2), (11.0, 1), (15.0, 2), (20.0, 2))


def test_a_worker_that_was_silent_for_longer_was_away() -> None:
    figures = tally(
        budget(1000),
        fragment(0, 0, 1000.0, 1001.0),
        fragment(0, 1, 1100.0, 1101.0),
    ).figures()
    assert figures.workers_over_time == ((0.0, 1), (11.0, 0), (100.0, 1), (101.0, 1))


def test_the_learning_curve_is_the_mean_of_the_newest_hundred_episodes() -> None:
    counted = tally(budget(1000))
    counted.take(fragment(0, 0, 0.0, 1.0, returns=tuple(float(i) for i in range(100))))
    counted.take(fragment(1, 0, 0.0, 1.0))
    counted.take(fragment(0, 1, 1.0, 2.0, returns=tuple(100.0 for _ in range(50))))
    expected = (sum(range(50, 100)) + 50 * 100.0) / 100
    assert counted.figures().learning_curve == ((10, 49.5), (30, expected))
    assert counted.figures().episode_return == expected


def test_a_long_run_keeps_a_few_hundred_points_of_its_curve_evenly_and_the_newest() -> None:
    counted = tally(budget(1_000_000))
    for round_ in range(5_000):
        for stream in (0, 1):
            counted.take(fragment(stream, round_, round_, round_ + 1.0, returns=(float(round_),)))
    curve = counted.figures().learning_curve
    assert 150 < len(curve) <= 402
    steps = [x for x, _ in curve]
    assert max(b - a for a, b in itertools.pairwise(steps)) <= 100_000 / 150
    assert curve[-1] == (100_000, sum(range(4950, 5000)) / 50)


def test_figures_are_those_of_the_reports(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    reader = Reader(run.store, SMALL)
    for report in run:
        figures = reader.read()
        for name in ("weights_version", "env_steps", "learner_updates", "episode_return", "episodes", "loss",
                     "policy_lag", "replay_ratio"):  # fmt: skip
            assert getattr(figures, name) == getattr(report, name), name
        assert figures.workers == (1 if report.env_steps else 0)
    assert figures.finished


# -- reading ----------------------------------------------------------------------------------------------


def test_a_reader_reads_each_commit_once(finished: daskrl.Run, tmp_path: Path) -> None:
    shutil.copytree(finished.store.root, tmp_path / "run")
    store = daskrl.Store.open(tmp_path / "run")
    commits = sorted((tmp_path / "run" / ".commits").glob("0*.json"))
    later = {path: path.read_bytes() for path in commits[len(commits) // 2 :]}
    for path in later:
        path.unlink()
    reader = Reader(store)
    assert not reader.read().finished
    for path in commits[: len(commits) // 2]:
        path.write_text("read again")
    for path, data in later.items():
        path.write_bytes(data)
    assert reader.read() == Reader(finished.store).read()


def test_the_store_of_another_run_in_the_same_place_is_not_taken_for_the_one_watched(tmp_path: Path) -> None:
    reader = Reader(small(tmp_path / "run").store)
    reader.read()
    small(tmp_path / "run", overwrite=True)
    with pytest.raises(StoreMismatchError, match="holds another run"):
        reader.read()
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(StoreMismatchError, match="was deleted"):
        reader.read()


def test_following_ends_with_the_run(finished: daskrl.Run) -> None:
    assert [figures.finished for figures in follow(Reader(finished.store), 1.0)] == [True]


@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan")])
def test_an_interval_is_more_than_no_time(finished: daskrl.Run, interval: float) -> None:
    with pytest.raises(ConfigError, match="interval: expected seconds > 0"):
        next(follow(Reader(finished.store), interval))
    with pytest.raises(ConfigError, match="interval: expected seconds >= 1"):
        daskrl.watch(finished.store, interval=interval)


def test_the_replay_ratio_of_an_algorithm_that_is_not_known_here_is_left_out(tmp_path: Path) -> None:
    class Mine(daskrl.DQN):
        """The same as DQN."""

    run = daskrl.train(
        Mine(**vars(SMALL)), "CartPole-v1", store=tmp_path / "run", env_steps=64, progress=False, **SHAPE
    ).wait()
    assert Reader(daskrl.Store.open(tmp_path / "run")).read().replay_ratio is None
    assert Reader(run.store, run.algorithm).read().replay_ratio == run.report.replay_ratio  # type: ignore[union-attr]


# -- showing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7_380, "2 h 3 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_have_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_curve_is_sampled_at_places_evenly_apart() -> None:
    assert sampled([(0, 1.0), (10, 2.0), (40, 3.0)], 4) == [2.0, 2.0, 2.0, 3.0]
    assert sampled([(7, 5.0)], 3) == [5.0, 5.0, 5.0]


def test_bars_fill_their_lines_from_below() -> None:
    assert bars([0, 1, 2, 3], 0, 3, 1, " .:|X") == [".:|X"]
    assert bars([0, 3, 7], 0, 7, 2, " .:|X") == ["  X", ".XX"]
    assert bars([5, 5], 5, 5, 2, " .:|X") == ["  ", "XX"]
    assert bars([0.0, 0.0], 0, 0) == ["██"]


def test_rows_say_what_is_not_known() -> None:
    said = rows(tally(budget(95)).figures(), now=2000.0)
    assert said["run"] == "no fragment yet"
    assert said["env steps"] == "0 of 95"
    assert {said[name] for name in ("return", "loss", "learner busy", "fragments/s", "to go", "ends about")} == {"-"}
    said = rows(tally(*TWO_ROUNDS).figures(), now=1066.0)
    assert said["run"] == "newest fragment 1 min 0 s ago"
    assert (said["learner busy"], said["learner waiting"], said["to go"]) == ("25%", "75%", "12 s")


SVG = "{http://www.w3.org/2000/svg}"


def test_the_page_is_well_formed_has_no_script_and_takes_the_colours_around_it() -> None:
    text = page(tally(*TWO_ROUNDS).figures(), "DQN on <b>&'\"", 1006.0)
    tree = ElementTree.fromstring(text)
    assert tree.findtext("strong") == "DQN on <b>&'\""
    assert "script" not in text
    assert {"currentColor", "none", "#3b82f6"} == {
        element.get(paint) for element in tree.iter() for paint in ("fill", "stroke") if element.get(paint)
    }
    assert not any("background" in element.get("style", "") for element in tree.iter())
    cells = [cell.text for cell in tree.iter("td")]
    assert cells[cells.index("env steps/s") + 1] == "5"
    assert all(len(row) == 4 for row in tree.iter("tr"))


def test_the_page_draws_the_curve_from_the_lower_left_to_the_upper_right() -> None:
    tree = ElementTree.fromstring(page(tally(*TWO_ROUNDS).figures(), "run", 1006.0))
    curve, workers = tree.iter(f"{SVG}svg")
    assert curve.findtext(f"{SVG}title") == "return, mean of 100 episodes"
    line_ = curve.find(f"{SVG}polyline")
    assert line_ is not None
    assert line_.get("points") == "56.0,168.0 368.0,32.0"  # (10, 4.0), (30, 6.0)
    assert {"4", "6", "10", "30 env steps"} <= {text.text for text in curve.iter(f"{SVG}text")}
    assert {"0", "2", "0 s", "6 s"} <= {text.text for text in workers.iter(f"{SVG}text")}


def test_the_page_of_a_run_that_has_not_begun_says_so() -> None:
    tree = ElementTree.fromstring(page(tally(budget(95)).figures(), "run", 0.0))
    assert [text.text for text in tree.iter(f"{SVG}text")].count("nothing yet") == 2


def type_(*typed: str) -> int:
    """Type ``daskrl ...`` in this process; the exit code."""
    with pytest.raises(SystemExit) as exited:
        cli.main(typed)
    return int(exited.value.code or 0)


# -- a run that another process drives --------------------------------------------------------------------

DRIVER = """
import sys, daskrl

dqn = daskrl.DQN(hidden=(16,), batch_size=8, learning_starts=32, replay_ratio=2.0, window=160)
shape = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 8}
for report in daskrl.train(dqn, "CartPole-v1", store=sys.argv[1], env_steps=320, progress=False, **shape):
    if report.weights_version == 4:
        print(report.env_steps, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process that drives ``tmp_path / "run"`` and waits for a line at version 4; how far it says it then is."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True) as driver:
        assert driver.stdout is not None
        try:
            yield f"{driver.stdout.readline().strip()} of 320", driver
        finally:
            driver.kill()


def test_watch_shows_a_run_that_another_process_drives(
    tmp_path: Path,
    driven: tuple[str, subprocess.Popen[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    far, driver = driven
    run = str(tmp_path / "run")
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert type_("watch", run, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["env_steps"], printed["weights_version"], printed["finished"]) == (int(far.split()[0]), 4, False)
    assert printed["learning_curve"][-1][1] == printed["episode_return"]
    assert printed["replay_ratio"] > 0
    assert type_("watch", run) == 0  # in a pipe: once, though the run goes on
    table = capsys.readouterr().out
    assert table.count(far) == 1
    assert "newest fragment" in table
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert type_("watch", run, "--once") == 0
    assert capsys.readouterr().out.count(far) == 1
    assert driver.poll() is None

    terminal = Terminal("watch", "run", cwd=tmp_path)
    terminal.until(far)
    terminal.press_ctrl_c()
    assert terminal.exit_code() == 0
    assert "Traceback" not in terminal.text
    assert driver.poll() is None  # the watching ended, not the run


def test_watch_in_a_terminal_follows_the_run_to_its_end(
    tmp_path: Path, driven: tuple[str, subprocess.Popen[str]]
) -> None:
    far, driver = driven
    terminal = Terminal("watch", "run", "--interval", "0.05", cwd=tmp_path)
    terminal.until(far)
    assert "finished" not in terminal.text
    driver.communicate("\n")
    assert terminal.exit_code() == 0
    assert "320 of 320" in terminal.text
    assert "finished" in terminal.text
    assert "█" in terminal.text
    printed = json.loads(daskrl_("watch", "run", "--json", cwd=tmp_path).stdout)
    assert (printed["env_steps"], printed["weights_version"], printed["finished"]) == (320, 10, True)


@pytest.mark.parametrize("option", [[], ["--json"], ["--once"]])
def test_watching_what_is_no_store_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert type_("watch", str(tmp_path), *option) == 2
    said = capsys.readouterr()
    assert said.err.startswith("StoreMismatchError: ")
    assert "daskrl train" in said.err
    assert said.out == ""


# -- scripts and notebooks --------------------------------------------------------------------------------


def test_the_reports_of_a_watched_run_are_its_own_and_lines_of_text_go_to_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: 0.0})
    monkeypatch.setattr(sys.modules["daskrl.watching.watch"], "time", clock)
    run = small(tmp_path / "run")
    assert [report.weights_version for report in daskrl.watch(run)] == list(range(11))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # the clock stood still: one at the start and one at the end
    assert lines[-1].startswith("320 of 320 env steps, return ")

    hours = iter(range(0, 10**6, 3600))
    clock.monotonic = lambda: next(hours)
    assert len(list(daskrl.watch(small(tmp_path / "other", env_steps=96)))) == 4
    assert len(capsys.readouterr().err.splitlines()) == 5


def test_leaving_a_watched_run_stops_it_as_leaving_the_run_does(tmp_path: Path) -> None:
    run = small(tmp_path / "run")
    for report in daskrl.watch(run):
        if report.weights_version == 3:
            break
    run.store.lock()  # nobody has it
    run.store.unlock()
    assert [report.weights_version for report in daskrl.watch(run)] == list(range(4, 11))


def test_on_a_terminal_a_watched_run_keeps_its_own_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    run = daskrl.train(SMALL, "CartPole-v1", store=tmp_path / "run", env_steps=64, **SHAPE)
    assert len(list(daskrl.watch(run))) == 3
    shown = capsys.readouterr().err
    assert "CartPole-v1: " in shown
    assert "env steps/s" not in shown


def test_a_path_is_followed_as_figures(finished: daskrl.Run, capsys: pytest.CaptureFixture[str]) -> None:
    (figures,) = daskrl.watch(finished.store.root)
    assert figures == Reader(finished.store).read()
    assert capsys.readouterr().err == f"{line(figures)}\n"


CELLS = [
    """
import daskrl
dqn = daskrl.DQN(hidden=(16,), batch_size=8, learning_starts=32, replay_ratio=2.0, window=160)
run = daskrl.train(dqn, "CartPole-v1", store="run", env_steps=320, streams=2, envs_per_stream=2, fragment_steps=8)
""",
    """
for report in daskrl.watch(run):
    if report.weights_version == 4:
        break
""",
    "for report in daskrl.watch(run):\n    pass\nprint(report.env_steps)",
    "(figures,) = daskrl.watch('run')",
]


def test_a_notebook_has_one_display_that_is_kept_up_to_date(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    _, left, carried, followed = (cell.outputs for cell in notebook.cells)
    assert [output.output_type for output in carried if output.output_type != "display_data"] == ["stream"]
    pages = []
    for outputs in (left, carried, followed):
        (shown,) = [output for output in outputs if output.output_type == "display_data"]  # and no progress bar
        pages.append(ElementTree.fromstring(shown.data["text/html"]))
        curve, workers = pages[-1].iter(f"{SVG}svg")
        assert curve.find(f"{SVG}polyline") is not None
        assert workers.find(f"{SVG}polyline") is not None
    said = [[cell.text for cell in tree.iter("td")] for tree in pages]
    assert "320 of 320" not in said[0]
    assert ["320 of 320" in cells and "finished" in cells for cells in said[1:]] == [True, True]
