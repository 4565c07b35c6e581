"""The report of a study, and what it gives to other programs."""

from __future__ import annotations

import html.parser
import re
import shutil
import textwrap
import warnings
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import daskrl
from daskrl.errors import ConfigError
from daskrl.study import ASHA, Greedy, Random, Range, Study, When
from daskrl.study.contents import Content, contents
from daskrl.study.curves import curves
from daskrl.study.live import page as page_of
from tests.read_back import logged
from tests.typed import Here

QUICK = daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=16, window=1024)
SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 16}
SPACE = {"learning_rate": [1e-4, 1e-3], "n_step": [1, 3]}
MARKUP = "<script>alert('pole')</script>"


def make(path: Path, **changed: Any) -> Study:
    given: dict[str, Any] = {
        "algorithm": QUICK, "env": "CartPole-v1", "space": SPACE, "seeds": 2, "env_steps": 256, "score": Greedy(2),
        **SHAPE, **changed,
    }  # fmt: skip
    return Study(path, **given)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make(tmp_path_factory.mktemp("study") / "poles").run(progress=False)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """With markup in a name and an error: of setting 1 seed 0 failed."""

    def score(store: daskrl.Store) -> float:
        if store.config.seed == 0 and store.config.algorithm["settings"]["n_step"] == 3:
            raise RuntimeError(f"out of {MARKUP}")
        return float(store.config.seed)

    path = tmp_path_factory.mktemp("study") / "failing"
    made = make(path, env={MARKUP: "CartPole-v1"}, space={"n_step": [1, 3]}, score=score, env_steps=64)
    return made.run(progress=False)


class Page(html.parser.HTMLParser):
    """What a page has: tags, ids, what it asks for, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.asked: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data") and not value.startswith(("#", "data:")):
                self.asked.append(value)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells:
            self.cells[-1] += data


def page(study: Study, tmp_path: Path) -> Page:
    return Page(Path(study.report(tmp_path / "report.html")).read_text())


@pytest.fixture(scope="module")
def written(study: Study) -> str:
    """The study's report."""
    with warnings.catch_warnings():  # what there is to warn of stands in the page
        warnings.simplefilter("error")
        path = study.report()
    assert path == str(Path(str(study.log.storage)) / "report.html")
    return Path(path).read_text()


@pytest.fixture(scope="module")
def said(study: Study) -> Content:
    return contents(study.log)


# -- the page ---------------------------------------------------------------------------------------------


def test_a_report_is_one_page_that_asks_for_nothing_else(written: str) -> None:
    read = Page(written)
    assert read.asked == []
    assert "@import" not in written
    assert len(read.ids) == len(set(read.ids))
    assert read.tags.count("svg") == 1 + 2 + 1 + 1 + 2  # settings, two by values, a curve, importance, two slices
    assert len(written) < 500_000


def test_a_report_has_the_table_the_digest_and_what_was_asked(study: Study, written: str) -> None:
    read = Page(written)
    for row in study.table().itertuples():
        assert row.digest[:12] in read.cells
        assert f"{row.score:.5g}" in read.cells
    for part in (study.digest(), "8 of 8 runs finished", "Grid()", "2 (0, 1)", "return of 2 greedy episodes", "torch"):
        assert part in read.text


def test_few_seeds_are_warned_of_in_the_page(written: str) -> None:
    assert "Fewer than 5 seeds, so that it may be chance" in Page(written).text


def test_markup_in_names_and_errors_is_text(failing: Study, tmp_path: Path) -> None:
    text = Path(failing.report(tmp_path / "report.html")).read_text()
    assert MARKUP not in text
    read = Page(text)
    assert read.tags.count("script") == 1  # the page's own
    assert f"RuntimeError: out of {MARKUP}" in read.text


def test_failed_runs_have_their_error_and_how_to_go_on(failing: Study) -> None:
    (failed,) = contents(failing.log).failed
    assert failed["run"] == f"setting 1, {MARKUP}, seed 0"
    assert failed["error"] == f"RuntimeError: out of {MARKUP}"
    assert "in score" in failed["trace"]
    assert failing.table().run[2].rpartition("/")[2] in failed["again"]
    assert "1 failed" in contents(failing.log).state


def test_a_study_that_is_not_finished_says_so(tmp_path: Path) -> None:
    studies: list[Study] = []

    def score(store: daskrl.Store) -> float:
        studies[0].stop()
        return 1.0

    studies.append(make(tmp_path / "study", score=score, env_steps=64))
    with pytest.raises(ConfigError, match="nothing to report"):
        studies[0].report()
    studies[0].run(progress=False)
    read = page(studies[0], tmp_path)
    assert "1 of 8 runs finished, 7 to come: this study is not finished" in read.text
    assert "need two settings that are finished" in read.text


def test_a_study_where_all_failed_has_a_report(tmp_path: Path) -> None:
    def score(store: daskrl.Store) -> float:
        raise ValueError("never")

    made = make(tmp_path / "study", score=score, env_steps=64, space=None).run(progress=False)
    read = page(made, tmp_path)
    assert "No run has a score yet" in read.text
    assert read.text.count("ValueError: never") >= 2


def test_the_code_of_a_report_makes_the_study_again(study: Study, said: Content) -> None:
    code = said.code
    assert f"assert study.run().digest() == '{study.digest()}'" in code
    exec(code.replace("study.run()", "study.run(progress=False)"), {})  # its last line compares the digests


def test_the_best_setting_is_that_of_the_winner(study: Study, said: Content) -> None:
    from daskrl.study.winner import winner

    assert said.best == winner(study.table(), list(SPACE)).label


# -- curves and importance --------------------------------------------------------------------------------


def test_a_point_of_a_curve_is_the_mean_that_one_counts_by_hand(study: Study) -> None:
    labels = {3: "three"}
    ((curve,), missing) = curves(study.log.storage.folder("runs"), study_rows(study), labels, episodes=3)
    assert missing == []
    episodes = []
    for run in study.table().query("setting == 3").run:
        found = daskrl.learning_curve(Path(str(study.log.storage)) / run)
        episodes.append(list(zip(found.env_steps.tolist(), found.episode_return.tolist(), strict=True)))
    grid = [256 * number / 100 for number in range(101)]
    by_hand = {}
    for steps in grid:
        ended = [[value for at, value in of if at <= steps][-3:] for of in episodes]
        if all(ended):
            by_hand[steps] = float(np.mean([np.mean(values) for values in ended]))  # of two runs nothing is trimmed
    assert curve.env_steps.tolist() == pytest.approx(list(by_hand))
    assert curve.value == pytest.approx(list(by_hand.values()))
    assert (curve.low <= curve.value).all()
    assert (curve.value <= curve.high).all()
    assert (curve.label, curve.seeds) == ("three", 2)


def study_rows(study: Study) -> Any:
    return study.table().to_dict("records")


def test_a_curve_says_of_its_points_what_they_are(written: str) -> None:
    titles = re.findall(r"<title>([^<]*env steps: [^<]*)</title>", written)
    assert len(titles) >= 40
    assert any(
        re.fullmatch(r"learning_rate=0.0001, n_step=1\n[\d,]+ env steps: [\d.]+ \[[\d.]+, [\d.]+\]", t) for t in titles
    )


def test_a_run_whose_store_is_gone_is_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    made = make(tmp_path / "study", env_steps=128, space=None).run(progress=False)
    (tmp_path / "study" / f"{made.table().run[0]}.zip").unlink()  # a run is packed when it ends
    said = contents(made.log)
    assert f"Without those whose stores cannot be read: {made.table().run[0]}" in said.curves_said
    assert len(said.learned) == 1


def test_importance_is_that_of_optuna_and_its_evaluator_is_named(study: Study, said: Content) -> None:
    import optuna

    expected = optuna.importance.get_param_importances(study.to_optuna(name="again"))
    ax: Any = said.importance.figure.axes[0]
    names, widths = [text.get_text() for text in ax.get_yticklabels()], [bar.get_width() for bar in ax.patches]
    assert dict(zip(names, widths, strict=True)) == pytest.approx(expected)
    assert widths == sorted(widths)
    assert "PED-ANOVA" in said.importance_said
    assert "Of so few settings" in said.importance_said


def test_a_conditional_setting_has_a_slice_and_no_importance(tmp_path: Path) -> None:
    space = {"double": [True, False], "n_step": When({"double": True}, [1, 3])}
    made = make(tmp_path / "study", space=space, env_steps=64, seeds=1).run(progress=False)
    said = contents(made.log)
    assert "Not in all settings, and not evaluated: n_step" in said.importance_said
    assert [picture.heading for picture in said.slices] == ["double", "n_step"]


def test_a_pdf_has_a_page_for_each_picture_and_the_text(study: Study, tmp_path: Path) -> None:
    data = Path(study.report(tmp_path / "deep" / "report.pdf")).read_bytes()
    assert data.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", data)) >= 7 + 2  # pictures, and a page of text before and after


def test_a_report_of_another_kind_is_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends with \.html or \.pdf"):
        study.report(tmp_path / "report.docx")


def test_a_study_that_stops_runs_early_has_a_report_and_its_code_makes_it_again(tmp_path: Path) -> None:
    from optuna.trial import TrialState

    space = {"learning_rate": Range(1e-4, 1e-2, log=True)}
    search = ASHA(Random(3), rungs=64)
    made = make(tmp_path / "study", space=space, search=search, seeds=1, env_steps=128).run(progress=False)
    said = contents(made.log)
    assert said.left_out == "2 settings were stopped after fewer env steps."
    # Nothing was learned in the first round, so that all settings have the weights of their seed.
    early, alike, *_ = said.warnings
    assert early.startswith("rungs: after 64 env steps a run (learning_rate=")
    assert "same score (all 3 at 64 env steps)" in alike
    queued = sum(record["queued"] for record in made.log.results.values())
    assert said.cost["queue time"] == f"{queued / 3600:,.3g} hours"
    assert said.asked["search"].startswith("ASHA(inner=Random(settings=3), rungs=64")
    states = [trial.state for trial in made.to_optuna().trials]
    assert sorted(states) == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]
    exec(said.code.replace("study.run()", "study.run(progress=False)"), {})


# -- exports ----------------------------------------------------------------------------------------------


def test_optuna_reads_a_trial_for_each_setting_from_its_storage(study: Study, tmp_path: Path) -> None:
    import optuna

    storage = f"sqlite:///{tmp_path}/study.db"
    study.to_optuna(storage)
    read = optuna.load_study(study_name="poles", storage=storage)
    table = study.table()
    assert [trial.params for trial in read.trials] == [
        {"learning_rate": rate, "n_step": n} for rate in (1e-4, 1e-3) for n in (1, 3)
    ]
    for number, trial in enumerate(read.trials):
        mine = table[table.setting == number]
        assert trial.value == pytest.approx(mine.score.mean())
        assert trial.user_attrs["digests"] == mine.digest.tolist()
        assert trial.intermediate_values == {256: trial.value}
    assert read.best_value == max(trial.value for trial in read.trials)
    with pytest.raises(ConfigError, match="has a study 'poles' already"):
        study.to_optuna(storage)


def test_optuna_has_ranges_failures_and_what_is_to_come(failing: Study, tmp_path: Path) -> None:
    from optuna.distributions import FloatDistribution
    from optuna.trial import TrialState

    assert [trial.state for trial in failing.to_optuna().trials] == [TrialState.COMPLETE, TrialState.FAIL]
    studies: list[Study] = []

    def stopping(store: daskrl.Store) -> float:
        studies[0].stop()
        return 1.0

    space = {"learning_rate": Range(1e-4, 1e-2, log=True)}
    made = make(tmp_path / "study", space=space, seeds=1, env_steps=64, search=Random(2)).run(progress=False)
    (first, _) = made.to_optuna().trials
    assert first.distributions == {"learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    assert first.params["learning_rate"] == made.table().learning_rate[0]
    shutil.rmtree(tmp_path / "study")
    studies.append(make(tmp_path / "study", space=space, seeds=1, env_steps=64, search=Random(2), score=stopping))
    studies[0].run(progress=False)
    assert [trial.state for trial in studies[0].to_optuna().trials] == [TrialState.COMPLETE, TrialState.WAITING]


def test_parquet_is_the_table_with_its_types_and_its_definition(study: Study, tmp_path: Path) -> None:
    import json

    import pandas
    import pyarrow.parquet

    study.to_parquet(tmp_path / "study.parquet")
    read = pandas.read_parquet(tmp_path / "study.parquet")
    table = study.table()
    assert list(read) == list(table)
    for column in ("setting", "learning_rate", "n_step", "seed", "score", "digest", "run", "env_steps"):
        assert read[column].tolist() == table[column].tolist()
    metadata = pyarrow.parquet.read_schema(tmp_path / "study.parquet").metadata
    assert metadata[b"daskrl.digest"].decode() == study.digest()
    assert json.loads(metadata[b"daskrl.definition"]) == study.log.definition


def test_parquet_takes_failures_and_settings_that_are_no_numbers(failing: Study, tmp_path: Path) -> None:
    import pandas

    failing.to_parquet(tmp_path / "failing.parquet")
    assert pandas.read_parquet(tmp_path / "failing.parquet").state.tolist() == ["finished"] * 2 + ["failed", "finished"]
    made = make(tmp_path / "study", space={"hidden": [(8,), (8, 8)]}, seeds=1, env_steps=64).run(progress=False)
    made.to_parquet(tmp_path / "hidden.parquet")
    assert pandas.read_parquet(tmp_path / "hidden.parquet").hidden.tolist() == ["[8]", "[8, 8]"]


def test_rliable_takes_what_a_study_gives_and_has_the_iqm_of_its_comparison(study: Study) -> None:
    from rliable import metrics

    found = study.to_rliable()
    assert [scores.shape for scores in found.values()] == [(2, 1)] * 4
    table = study.table()
    assert found["learning_rate=0.001, n_step=3"][:, 0].tolist() == table[table.setting == 3].score.tolist()
    by = study.to_rliable("n_step")
    assert by["n_step=1"].shape == (4, 1)
    with pytest.warns(UserWarning, match="seeds"):
        compared = study.compare("n_step")
    for group in compared.groups:
        assert group.iqm.value == pytest.approx(metrics.aggregate_iqm(by[group.label]))


def test_rliable_has_a_row_only_where_each_environment_has_a_score(failing: Study) -> None:
    found = failing.to_rliable()
    assert found["n_step=1"].tolist() == [[0.0], [1.0]]
    assert found["n_step=3"].tolist() == [[1.0]]
    with pytest.raises(ConfigError, match="expected settings of the study"):
        failing.to_rliable("gamma")


def test_mlflow_has_a_run_for_each_that_is_over_once(failing: Study, tracked: Any) -> None:
    assert failing.to_mlflow("poles") == 4
    assert failing.to_mlflow("poles") == 0
    runs = tracked.search_runs([tracked.get_experiment_by_name("poles").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED"] + ["FINISHED"] * 3
    by = {(int(run.data.params["setting"]), int(run.data.params["seed"])): run for run in runs}
    for row in failing.table().itertuples():
        run = by[row.setting, row.seed]
        assert run.data.params["n_step"] == str(row.n_step)
        if row.state == "finished":
            assert run.data.metrics["score"] == row.score
            assert run.data.tags["digest"] == row.digest
        else:
            assert run.data.tags["error"] == row.error


def test_wandb_has_a_run_for_each_in_the_group_of_the_study(failing: Study, offline: Path) -> None:
    assert failing.to_wandb("poles") == 4
    runs = logged(offline)
    table = failing.table()
    assert {run["id"] for run in runs} == {f"{run.rpartition('/')[2]}-64" for run in table.run}
    assert sorted(run["exit_code"] for run in runs) == [0, 0, 0, 1]
    scores = sorted(values["score"] for run in runs for values in run["history"] if "score" in values)
    assert scores == sorted(table.score.dropna())
    assert {run["config"]["n_step"] for run in runs} == {1, 3}


def test_the_command_line_writes_a_report(study: Study, tmp_path: Path, here: Here) -> None:
    said = here("study", "report", str(study.log.storage), "-o", "lr.html", "--episodes", "5", cwd=tmp_path)
    assert said.stdout.strip() == "lr.html"
    assert "return, mean of 5 episodes" in (tmp_path / "lr.html").read_text()
    refused = here("study", "report", str(study.log.storage), "-o", "lr.txt", cwd=tmp_path, code=2)
    assert "ends with .html or .pdf" in refused.stderr


# -- while it runs ----------------------------------------------------------------------------------------


def test_a_notebook_shows_one_table_of_settings_that_is_kept_up_to_date(tmp_path: Path) -> None:
    code = f"""
        import daskrl
        daskrl.Study(
            {str(tmp_path / "study")!r}, algorithm=daskrl.DQN(hidden=(8,)), env="CartPole-v1", seeds=2,
            space={{"learning_rate": [0.1, 0.2]}}, env_steps=64, streams=1, envs_per_stream=1, fragment_steps=16,
            score=lambda store: 10.0 * store.config.algorithm["settings"]["learning_rate"],
        ).run();
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(code))])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    pages = [
        output["data"]["text/html"]
        for output in notebook.cells[0].outputs
        if output["output_type"] == "display_data" and "runs asked for" in output["data"].get("text/html", "")
    ]
    assert len(pages) == 1
    read = Page(pages[0])
    assert "study: 4 of 4 runs asked for are over" in read.text
    assert read.cells == ["1", "0.2", "2", "0", "0", "2", "0", "0.1", "2", "0", "0", "1"]


def test_the_table_escapes_names_and_counts_failures(failing: Study) -> None:
    read = Page(page_of(failing.log))
    assert read.cells == ["1", "3", "1", "1", "0", "1", "0", "1", "2", "0", "0", "0.5"]
