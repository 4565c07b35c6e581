"""The Python face: a run is a loop that can be left and entered again."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib as mpl
import numpy as np
import pytest

import daskrl
from daskrl import errors
from daskrl.algorithms.base import Setup, transitions_per_update
from daskrl.config import Schedule
from daskrl.envs.spaces import spec_of
from tests.walks import ROUND, STEPS, start

mpl.use("agg")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Run:
    return start(tmp_path_factory.mktemp("api") / "run", weights_every=4).wait()


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (daskrl.DQN(batch_size=32), 32),
        (daskrl.R2D2(batch_size=4, unroll=2), 4 * 2 * 16),  # sequences of two fragments
        (daskrl.PPO(batch_size=50), 128 / 3),  # 2.56 minibatches become 3
        (daskrl.PPO(batch_size=32, lstm=8), 128 / 4),  # two whole environments
        (daskrl.IMPALA(batch_lanes=3), 128 / 2),  # 8 environments in 2 parts
        (daskrl.QLearning(), 1),
    ],
)
def test_a_replay_ratio_counts_the_transitions_of_an_update(algorithm: Any, expected: float) -> None:
    spec = spec_of(gymnasium.spaces.Box(-1, 1, (4,)), gymnasium.spaces.Discrete(2))
    setup = Setup(spec, Schedule(streams=2, envs_per_stream=4, fragment_steps=16))
    assert transitions_per_update(algorithm, setup) == pytest.approx(expected)


def test_reports_follow_every_version_and_add_up(tmp_path: Path, whole: daskrl.Run) -> None:
    run = start(tmp_path / "run")
    reports = list(run)
    assert [report.weights_version for report in reports] == list(range(11))
    assert reports[-1].env_steps == STEPS
    assert reports[-1].learner_updates == max(r["learner_updates"] for r in run.store.records("learn"))
    assert reports[-1].replay_ratio == pytest.approx(reports[-1].learner_updates * 8 / STEPS)
    assert {report.policy_lag for report in reports[3:]} == {1}
    assert reports[-1].time_left == 0
    assert run.report == reports[-1]
    assert run.finished
    assert list(run) == []  # there is nothing left to do
    assert run.store.digest() == whole.store.digest()


def test_leaving_the_loop_and_entering_it_again_goes_on_where_it_was(tmp_path: Path, whole: daskrl.Run) -> None:
    run = start(tmp_path / "run")
    for report in run:
        if report.weights_version == 3:
            break
    assert not run.finished
    following = [report.weights_version for report in run]
    assert following[0] > 3
    assert following[-1] == 10
    assert run.store.digest() == whole.store.digest()


def test_an_error_in_the_loop_leaves_the_run_resumable_while_its_traceback_is_still_held(
    tmp_path: Path, whole: daskrl.Run
) -> None:
    def cell() -> None:
        for report in start(tmp_path / "run"):
            if report.weights_version == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:  # a notebook keeps the last traceback, too
        cell()
    assert daskrl.resume(tmp_path / "run", progress=False).wait().store.digest() == whole.store.digest()
    assert raised.tb is not None


def test_a_larger_budget_on_resume_gives_the_digest_of_a_run_made_with_it(tmp_path: Path, whole: daskrl.Run) -> None:
    start(tmp_path / "run", env_steps=3 * ROUND + 1).wait()
    assert daskrl.Store.open(tmp_path / "run").summary()["env_steps"] == 4 * ROUND  # whole rounds
    more = daskrl.resume(tmp_path / "run", env_steps=STEPS, checkpoint_every=7, progress=False)
    assert not more.finished
    assert more.wait().store.digest() == whole.store.digest()
    assert daskrl.resume(tmp_path / "run").env_steps == STEPS  # it is kept


def test_every_fragment_is_reproduced_bit_for_bit_also_where_its_weights_are_not_kept(whole: daskrl.Run) -> None:
    kept = set(whole.store.weights_versions())
    acted_with = set()
    for record in whole.store.fragments():
        result = daskrl.reproduce(whole.store, record["slot"])
        assert (result.fragment, result.stream, result.round) == (record["slot"], record["stream"], record["round"])
        assert result.committed
        assert result.differs == ()
        acted_with.add(result.weights_version)
    assert acted_with - kept  # some were learned again
    assert acted_with & kept


def test_a_fragment_beyond_the_newest_weights_cannot_be_reproduced(whole: daskrl.Run) -> None:
    for fragment in (-1, 1000):
        with pytest.raises(errors.ConfigError, match=f"fragment: .* {fragment} is round"):
            daskrl.reproduce(whole.store, fragment)


def test_reproducing_writes_nothing(whole: daskrl.Run) -> None:
    def files() -> dict[str, int]:
        root = whole.store.root
        return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    before = files()
    daskrl.reproduce(whole.store, 5)
    assert files() == before


# -- looking at it ----------------------------------------------------------------------------------------


def test_the_learning_curve_holds_every_finished_episode(whole: daskrl.Run) -> None:
    curve = daskrl.learning_curve(whole.store.root)
    ended = whole.store.summary()["episodes"]
    assert curve.env_steps.shape == curve.episode_return.shape == curve.length.shape == (ended,)
    assert (np.diff(curve.env_steps) >= 0).all()
    columns = [(record["round"], whole.store.read(record)) for record in whole.store.fragments()]
    ends = [
        round_ * ROUND + (int(t) + 1) * 4  # four environments in all
        for round_, values in columns
        for t, _ in np.argwhere(values["terminated"] | values["truncated"])
    ]
    assert sorted(ends) == curve.env_steps.tolist()
    naive = [np.mean(curve.episode_return[max(0, i - 4) : i + 1]) for i in range(ended)]
    np.testing.assert_allclose(curve.smoothed(5), naive)


def test_plotting_is_one_call_and_returns_axes_with_the_data(whole: daskrl.Run) -> None:
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    curve = daskrl.learning_curve(whole.store)
    ax = whole.plot()
    (line,) = ax.get_lines()
    np.testing.assert_array_equal(line.get_xdata(), curve.env_steps)
    np.testing.assert_allclose(line.get_ydata(), curve.smoothed())
    assert len(np.asarray(ax.collections[0].get_offsets())) == len(curve.env_steps)
    assert ax.get_xlabel() == "env steps"
    assert "Walk-v0" in ax.get_title()
    assert ax.figure in map(pyplot.figure, pyplot.get_fignums())  # so that Jupyter shows it
    pyplot.close(ax.figure)  # type: ignore[arg-type]

    mine = Figure().subplots()
    assert daskrl.plot_learning_curve(whole.store.root, ax=mine, color="red") is mine
    assert mine.get_lines()[0].get_color() == "red"
    assert pyplot.get_fignums() == []


def test_a_run_without_an_episode_can_be_plotted(tmp_path: Path) -> None:
    fresh = start(tmp_path / "run")
    assert daskrl.learning_curve(fresh.store).episode_return.shape == (0,)
    assert len(fresh.plot(mpl.figure.Figure().subplots()).get_lines()) == 1


def test_several_runs_on_one_axes_have_a_colour_and_a_label_each(tmp_path: Path, whole: daskrl.Run) -> None:
    other = start(tmp_path / "other", seed=4, env_steps=4 * ROUND).wait()
    fresh = start(tmp_path / "fresh", seed=5)
    names = [f"DQN on tests.environments:Walk-v0, seed {seed}" for seed in (3, 4, 5)]
    together = daskrl.plot_learning_curve([whole, other.store, str(fresh.store.root)], mpl.figure.Figure().subplots())
    ax = mpl.figure.Figure().subplots()
    for run in (whole, other, fresh):
        assert run.plot(ax) is ax
    for drawn in (together, ax):
        legend = drawn.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == names
        assert legend.get_title().get_text() == "mean of 100 episodes"
        lines = drawn.get_lines()
        assert len({line.get_color() for line in lines}) == 3
        for line, points, run in zip(lines, drawn.collections, (whole, other, fresh), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), daskrl.learning_curve(run.store).env_steps)
            assert mpl.colors.same_color(np.asarray(points.get_facecolor())[0][:3], line.get_color())
        assert drawn.get_title() == ""  # it would be one run's


def test_labels_and_styles_of_several_runs_are_ones_own(tmp_path: Path, whole: daskrl.Run) -> None:
    again = start(tmp_path / "again", env_steps=ROUND).wait()
    ax = daskrl.plot_learning_curve([whole, again], mpl.figure.Figure().subplots(), labels=["a", "b"], linewidth=3)
    assert [(line.get_label(), line.get_linewidth()) for line in ax.get_lines()] == [("a", 3), ("b", 3)]
    ax = daskrl.plot_learning_curve((whole, again), mpl.figure.Figure().subplots())  # the same run but for its length
    named = [str(line.get_label()) for line in ax.get_lines()]
    assert [name.endswith(f"{run.store.root.name})") for name, run in zip(named, (whole, again), strict=True)] == [
        True
    ] * 2
    assert whole.plot(mpl.figure.Figure().subplots(), label="mine").get_lines()[0].get_label() == "mine"
    for labels in (["a"], "ab"):
        with pytest.raises(errors.ConfigError, match="labels: expected 2 of them, one for each run"):
            daskrl.plot_learning_curve([whole, again], ax, labels=labels)
    with pytest.raises(errors.ConfigError, match=r"ax: expected matplotlib's Axes, .* given as a list"):
        daskrl.plot_learning_curve(whole, again)  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigError, match="expected that of a run, or those of several, got none"):
        daskrl.plot_learning_curve([], ax)
    with pytest.raises(errors.UnknownNameError, match=r"episode.*Did you mean episodes\?"):
        daskrl.plot_learning_curve(whole, ax, episode=5)


def test_a_run_stands_for_its_store(tmp_path: Path, whole: daskrl.Run) -> None:
    played = {"episodes": 1, "progress": False}
    assert daskrl.evaluate(whole, **played).returns == daskrl.evaluate(whole.store, **played).returns  # type: ignore[arg-type]
    assert daskrl.reproduce(whole, 0).differs == ()  # type: ignore[arg-type]
    begun = start(tmp_path / "begun", init=whole)
    assert begun.store.config.init is not None
    assert begun.store.config.init["run_id"] == whole.store.run_id


def test_what_is_no_path_is_no_store(tmp_path: Path) -> None:
    for take in (daskrl.evaluate, daskrl.resume, daskrl.Store.open, daskrl.learning_curve):
        with pytest.raises(errors.ConfigError, match=r"expected the directory of a run's store, or a URL .*, got 5"):
            take(5)  # type: ignore[operator]
    with pytest.raises(errors.ConfigError, match=r"init: expected a run's store, a file .* got 5"):
        start(tmp_path / "run", init=5)
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_not_begun_has_no_weights_yet(tmp_path: Path) -> None:
    fresh = start(tmp_path / "run")
    for take in (daskrl.evaluate, daskrl.Store.weights, daskrl.Store.policy):
        with pytest.raises(errors.ConfigError, match=r"has no weights yet.*Type: daskrl resume"):
            take(fresh.store)  # type: ignore[operator]


@pytest.mark.parametrize("episodes", [1, 7, 10_000, 25.0])
def test_the_mean_is_of_any_number_of_episodes(whole: daskrl.Run, episodes: Any) -> None:
    returns = daskrl.learning_curve(whole.store).episode_return
    count = int(episodes)
    naive = [returns[max(0, end - count) : end].mean() for end in range(1, len(returns) + 1)]
    (line,) = whole.plot(mpl.figure.Figure().subplots(), episodes=episodes).get_lines()
    np.testing.assert_allclose(np.asarray(line.get_ydata()), naive)


@pytest.mark.parametrize("episodes", [0, -1, 2.5, "100"])
def test_a_mean_of_no_episodes_is_refused(whole: daskrl.Run, episodes: Any) -> None:
    for call in (
        daskrl.learning_curve(whole).smoothed,
        lambda n: whole.plot(mpl.figure.Figure().subplots(), episodes=n),
    ):
        with pytest.raises(errors.ConfigError, match="episodes: expected an integer >= 1"):
            call(episodes)


@pytest.mark.parametrize("what", ["run", "store", "evaluation"])
def test_html_shows_what_it_is_and_escapes_markup(tmp_path: Path, what: str) -> None:
    def make() -> Any:
        from tests.environments import Walk

        return Walk()

    make.__qualname__ = "<script>alert(1)</script>"
    run = start(tmp_path / "<b>run", env=make, env_steps=ROUND).wait()
    result = daskrl.evaluate(run.store, episodes=2, env=make)
    html = {"run": run, "store": run.store, "evaluation": result}[what]._repr_html_()  # type: ignore[attr-defined]
    assert "<table>" in html
    assert "<script>" not in html
    assert "<b>" not in html
    if what == "evaluation":
        assert "median" in html
    else:
        assert "&lt;script&gt;" in html
        assert "&lt;b&gt;run" in html
    assert "daskrl" in repr(run)
    assert str(run.store.root) in repr(run.store)


def test_what_a_report_holds_is_documented() -> None:
    for field in dataclasses.fields(daskrl.Report):
        assert f"\n{field.name} : " in (inspect.getdoc(daskrl.Report) or "")  # Python 3.13 takes the indentation itself


def test_everything_public_can_be_imported_and_is_documented() -> None:
    for name in daskrl.__all__:
        assert (getattr(daskrl, name).__doc__ or "").strip(), name
    with pytest.raises(AttributeError, match="no attribute 'PPP'"):
        daskrl.PPP  # noqa: B018
