"""What a study's report says, without how it looks: out of the study's log and its runs' stores."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskrl.codec import decoded
from daskrl.errors import ConfigError, DaskrlError, FailedTrialsWarning, FewSeedsWarning
from daskrl.study import again, confirming, curves, exports, groups, pictures, scores, statistics, words
from daskrl.study import table as tables
from daskrl.study.compare import MOST, Comparison, compare
from daskrl.study.log import StudyLog
from daskrl.study.pictures import Picture
from daskrl.study.ties import doubts
from daskrl.study.winner import winner

if TYPE_CHECKING:
    import pandas

CURVES = 8  # settings whose learning curves are drawn
_VALUES = 6  # of a setting, beyond which its values are not compared


@dataclass(frozen=True)
class Content:
    """What a report says, without how it looks.

    Attributes
    ----------
    title : the study's name.
    state : "finished", or how far it is.
    asked, cost, versions : name -> value.
    warnings : what to know before concluding anything.
    best, best_said : the best setting, and what that rests on; empty where none has a score.
    confirmed : the winner on unseen seeds, name -> value; empty where it was not run there.
    confirmed_said : what to know of that, or that there is none.
    settings : the comparison of settings, of the best ones where there are many; None where no run has a score.
    left_out : why some are not in there; empty where all are.
    values : a comparison of each setting's values.
    learned : a picture of the learning curves in each environment.
    curves_said : what they are, and what is missing.
    importance : of hyper-parameters; None where it cannot be told.
    importance_said : the evaluator, or why there is none.
    slices : a picture for each hyper-parameter.
    table : a row a run.
    failed : run, error and trace of each run that failed.
    digest : of the table.
    code : what makes the study again.
    """

    title: str
    state: str
    asked: Mapping[str, str]
    cost: Mapping[str, str]
    versions: Mapping[str, str]
    warnings: Sequence[str]
    best: str
    best_said: str
    confirmed: Mapping[str, str]
    confirmed_said: Sequence[str]
    settings: Comparison | None
    left_out: str
    values: Sequence[Comparison]
    learned: Sequence[Picture]
    curves_said: str
    importance: Picture | None
    importance_said: str
    slices: Sequence[Picture]
    table: pandas.DataFrame
    failed: Sequence[Mapping[str, str]]
    digest: str
    code: str


def contents(log: StudyLog, episodes: int = 100) -> Content:
    """Look at a study."""
    statistics.require()
    rows = tables.rows(log)
    if not rows:
        raise ConfigError(f"{log.storage} asked for no run yet: there is nothing to report. Type: study.run()")
    said, table = tables.summary(log), tables.table(log)
    axes = list(log.definition["space"]) or ["algorithm"]
    unit = scores.unit_of(log.definition["score"])
    scored = table[table["score"].notna()]
    full = scored[scored["env_steps"] == scored["env_steps"].max()] if len(scored) else scored
    notes: list[str] = []
    best, best_said, found, left_out = "", "", None, ""
    values: list[Comparison] = []
    ranked: list[str] = []
    if len(full):
        ranked, best, best_said = _ranked(table, axes)
        found, left_out = _settings(table, axes, ranked, unit)
        values = _values(table, axes, unit)
        notes = [*doubts(log), *_warned(said, found)]
    labels = _labels(rows, axes)
    chosen = [number for label in ranked for number, known in labels.items() if known == label][:CURVES]
    of, missing = curves.curves(
        log.storage.folder("runs"), rows, {number: labels[number] for number in sorted(chosen)}, episodes=episodes
    )
    importance, importance_said, slices = _importance(log, unit)
    confirmed, confirmed_said = _confirmed(log, best, said)
    return Content(
        title=log.storage.name,
        state=_state(said),
        asked=_asked(log, unit),
        cost=_cost(rows, said),
        versions=log.definition["versions"],
        warnings=notes,
        best=best,
        best_said=best_said,
        confirmed=confirmed,
        confirmed_said=confirmed_said,
        settings=found,
        left_out=left_out,
        values=values,
        learned=pictures.of_curves(of, episodes),
        curves_said=_curves_said(len(chosen), len(labels), missing),
        importance=importance,
        importance_said=importance_said,
        slices=slices,
        table=table,
        failed=_failed(log, rows),
        digest=tables.digest(log),
        code=again.code(log),
    )


def _state(said: Mapping[str, Any]) -> str:
    parts = [f"{said['finished']:,} of {said['runs']:,} runs finished"]
    if said["failed"]:
        parts.append(f"{said['failed']:,} failed")
    if said["waiting"]:
        parts.append(f"{said['waiting']:,} to come: this study is not finished")
    return ", ".join(parts)


def _warned(said: Mapping[str, Any], found: Comparison) -> list[str]:
    """What stands at the top; each comparison has the rest below it."""
    notes = []
    few = [group.label for group in found.groups if group.seeds < statistics.FEW]
    if few:
        notes.append(f"Fewer than {statistics.FEW} seeds, so that it may be chance: {words.named(few)}.")
    if said["failed"]:
        notes.append(
            f"{said['failed']:,} runs failed: comparisons leave them out, and the best setting counts them as lowest."
        )
    return notes


def _confirmed(log: StudyLog, best: str, said: Mapping[str, Any]) -> tuple[Mapping[str, str], Sequence[str]]:
    """The winner on unseen seeds, and what to know of that."""
    found = confirming.confirmed(log)
    if found is None:
        several = best and said["settings"] > 1 and log.definition["search"]["kind"] != "Population"
        return {}, [confirming.UNTESTED] if several else []
    return found.rows(), [f"{found.scale}; [95 % bootstrap intervals].".capitalize(), *found.notes]


def _labels(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> dict[int, str]:
    """Number of a setting -> its label, as comparisons have it."""
    first = {row["setting"]: row for row in reversed(rows)}
    return {number: groups.label(axes, [first[number][name] for name in axes]) for number in sorted(first)}


def _ranked(table: pandas.DataFrame, axes: Sequence[str]) -> tuple[list[str], str, str]:
    """The labels of settings after all env steps, the best first; the best, and what that rests on."""
    read = groups.read(table, axes, failed="lowest", longest=True)
    order = sorted((group for group in read if group.scores), key=lambda group: -statistics.iqm(_all(group.columns())))
    try:
        won = winner(table, axes)
    except DaskrlError:  # no setting has a score in each environment
        return [group.label for group in order], "", ""
    ties = f" As good: {words.named(won.ties)}." if won.ties else ""
    runs = f"IQM {words.number(won.iqm)} over {won.runs:,} runs, {words.seeds(won.seeds)} seeds"
    return [group.label for group in order], won.label, f": {runs}; {words.of_scale(read)}.{ties}"


def _all(columns: Sequence[Any]) -> Any:
    import numpy as np

    return np.concatenate(columns)


def _settings(table: pandas.DataFrame, axes: Sequence[str], ranked: Sequence[str], unit: str) -> tuple[Comparison, str]:
    """The comparison of settings after all env steps: of all, or of the best of many."""
    read = groups.read(table, axes, longest=True)
    full = table[table["env_steps"] == table.loc[table["score"].notna(), "env_steps"].max()]
    names = list(ranked[:MOST])
    label = [groups.label(axes, values) for values in full[list(axes)].itertuples(index=False, name=None)]
    kept = full[[name in names for name in label]]
    count = len({*label})
    parts = []
    if count > len(names):
        parts.append(f"The best {len(names)} of {count:,} settings by their interquartile mean; the table has all.")
    if read.shorter:
        parts.append(f"{len(read.shorter):,} settings were stopped after fewer env steps.")
    return _compared(kept, list(axes), unit, read.scale), " ".join(parts)


def _values(table: pandas.DataFrame, axes: Sequence[str], unit: str) -> list[Comparison]:
    """A comparison by each setting that has few values, where there are several settings."""
    full = table[table["env_steps"] == table.loc[table["score"].notna(), "env_steps"].max()]
    if len(axes) < 2:
        return []
    made = []
    for name in axes:
        values = {repr(value) for value in full[name]}
        if 1 < len(values) <= _VALUES and len({*map(repr, full["setting"])}) > len(values):
            made.append(_compared(full, [name], unit, None, axes))
    return made


def _compared(
    table: pandas.DataFrame, by: Sequence[str], unit: str, scale: Any, settings: Sequence[str] = ()
) -> Comparison:
    with warnings.catch_warnings():  # its notes say the same
        warnings.simplefilter("ignore", FewSeedsWarning)
        warnings.simplefilter("ignore", FailedTrialsWarning)
        normalise: Any = "auto" if scale is None else scale
        return compare(table, list(by), normalise=normalise, settings=list(settings), unit=unit)


def _importance(log: StudyLog, unit: str) -> tuple[Picture | None, str, list[Picture]]:
    study = exports.to_optuna(log, name="report")
    import optuna

    complete = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    named = [name for name in log.definition["space"] if len({repr(t.params.get(name)) for t in complete}) > 1]
    if len(complete) < 2 or not named:
        return None, "Importance and slices need two settings that are finished in all environments and seeds.", []
    everywhere = [name for name in named if all(name in trial.params for trial in complete)]
    slices = pictures.of_slices(study, named, "score")
    mean = "the mean over environments of the mean score over seeds" if len(log.definition["environments"]) > 1 else (
        "the mean score over seeds"
    )  # fmt: skip
    if not everywhere:
        return None, "No setting is there in all finished settings: importance cannot be told.", slices
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=everywhere)
        except (ValueError, RuntimeError) as error:
            return None, f"Optuna cannot tell importance here: {error}", slices
    conditional = [name for name in named if name not in everywhere]
    text = (
        f"Evaluator: PED-ANOVA (Watanabe et al. 2023; Optuna {optuna.__version__}, its default), over "
        f"{len(complete):,} finished settings, of {mean}. Shares add up to 1. "
        + ("Of so few settings they say little. " if len(complete) < 20 else "")
        + (f"Not in all settings, and not evaluated: {', '.join(conditional)}. " if conditional else "")
    )
    return pictures.of_importance(dict(shares), text.strip()), text.strip(), slices


def _asked(log: StudyLog, unit: str) -> dict[str, str]:
    said = log.definition
    space = {name: axis(value) for name, value in said["space"].items()}
    seeds = said["seeds"]
    row = seeds == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    shown = f"{seeds[0]} to {seeds[-1]}" if row else ", ".join(map(str, seeds))
    return {
        "algorithms": ", ".join(said["algorithms"]),
        "environments": ", ".join(said["environments"]),
        **{f"space: {name}": value for name, value in space.items()},
        "search": again.search(said["search"]).replace("daskrl.study.", ""),
        "seeds": f"{len(seeds):,} ({shown})",
        "env steps a run": f"{said['env_steps']:,}",
        "score": unit,
        "study seed": str(said["study_seed"]),
        "all runs": ", ".join(f"{name}={value}" for name, value in said["shape"].items()) or "as daskrl.train has it",
    }


def axis(said: Any) -> str:
    """A setting of the space, for people."""
    if isinstance(said, list):
        return ", ".join(str(decoded(value)) for value in said)
    if "when" in said:
        others = " and ".join(f"{name} is {decoded(value)}" for name, value in said["when"].items())
        return f"{axis(said['values'])}, where {others}"
    if "range" in said:
        of = said["range"]
        return f"{of['low']:g} to {of['high']:g}{', evenly in the logarithm' if of['log'] else ''}"
    of = {**said["optuna"]}
    return f"{of.pop('kind')}({', '.join(f'{name}={value}' for name, value in of.items())})"


def _cost(rows: Sequence[Mapping[str, Any]], said: Mapping[str, Any]) -> dict[str, str]:
    seconds = sorted(row["seconds"] for row in rows if row["seconds"] is not None)
    workers = {row["worker"] for row in rows if row["worker"]}
    steps = sum(row["env_steps"] for row in rows if row["state"] == "finished")
    found = {"worker-hours": f"{said['worker_hours']:,.3g}"}
    if seconds:
        found["seconds a run"] = _spread(seconds)
    found["env steps of finished runs"] = f"{steps:,}"
    found["workers that finished runs"] = f"{len(workers):,}"
    waited = sorted(row["queued"] for row in rows if row["queued"] is not None)
    found["queue time"] = f"{sum(waited) / 3600:,.3g} hours" if waited else "not recorded"
    if waited:
        found["seconds a run was queued"] = _spread(waited)
    return found


def _spread(ordered: Sequence[float]) -> str:
    return f"median {ordered[len(ordered) // 2]:,.3g}, {ordered[0]:,.3g} to {ordered[-1]:,.3g}"


def _curves_said(drawn: int, settings: int, missing: Sequence[str]) -> str:
    parts = [f"Of the best {drawn:,} of {settings:,} settings." if drawn < settings else "Of all settings."]
    if not drawn:
        parts = ["No run is finished."]
    if missing:
        parts.append(f"Without those whose stores cannot be read: {words.named(missing)}.")
    return " ".join(parts)


def _failed(log: StudyLog, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    found = []
    for row in rows:
        if row["state"] == "failed":
            result = log.results[row["run"].rpartition("/")[2], row["env_steps"]]
            store = str(log.storage.folder("runs").folder(result["trial"]))
            found.append(
                {
                    "run": f"setting {row['setting']}, {row['environment']}, seed {row['seed']}",
                    "error": str(row["error"]),
                    "trace": str(result.get("trace", "")),
                    "again": str(result.get("reproduce", f"daskrl resume {store}")),
                }
            )
    return found


def cell(value: Any) -> str:
    """A value of the table, for people."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value)
