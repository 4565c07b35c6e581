"""A study for other programs: Optuna, pandas and Arrow (Parquet), rliable, MLflow, Weights & Biases.

Each function reads the study's log alone, so a study that goes on can be exported, too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import extras
from daskrl.codec import decoded
from daskrl.errors import ConfigError
from daskrl.records import Array
from daskrl.study import table as tables
from daskrl.study.log import StudyLog
from daskrl.study.search import mean_score

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalChoiceType

_TRIAL_TAG = "daskrl.trial"  # of an MLflow run
_STUDY_TAG = "daskrl.study"


# -- Optuna -----------------------------------------------------------------------------------------------


def to_optuna(log: StudyLog, storage: Any = None, *, name: str | None = None) -> optuna.Study:
    """The study as one of Optuna's: a trial for each setting, in their order; higher is better.

    The value of a trial is the mean over environments of the mean over seeds, which is what a search is told. A setting
    of which a run failed has failed, one with runs to come is waiting, and one that has no score after all env steps is
    pruned (while the study goes on, it may yet be taken further). Where a setting was scored after fewer env steps
    before, those scores are its intermediate values, by env steps. What Optuna's trials have no place for is in their
    user attributes: ``env_steps``, ``seeds``, ``scores``, ``digests``, ``seconds``, each a list with an entry a run.

    Parameters
    ----------
    storage : of Optuna's (``"sqlite:///study.db"``, a ``JournalStorage``); in memory by default.
    name : of Optuna's study; the directory's by default.

    Raises
    ------
    ConfigError
        The storage has a study of that name already.
    """
    with extras.needed("study", "to_optuna needs Optuna"):
        import optuna
    name = name or log.storage.name
    with _quiet(optuna):
        try:
            made = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        except optuna.exceptions.DuplicatedStudyError:
            raise ConfigError(
                f"name: the storage has a study {name!r} already. Give another, as name={name + '-2'!r}."
            ) from None
        made.set_user_attr("daskrl", {"study": str(log.storage), "digest": tables.digest(log)})
        made.add_trials(_trials(log))
    return made


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna says on standard error that a study was made."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _trials(log: StudyLog) -> list[Any]:
    from optuna.trial import TrialState, create_trial

    distributions = {name: _distribution(said) for name, said in log.definition["space"].items()}
    rows: dict[int, list[dict[str, Any]]] = {}
    for row in tables.rows(log):
        rows.setdefault(row["setting"], []).append(row)
    settings = {asked["number"]: asked["setting"] for asked in log.asks if asked is not None}
    scores = _told(log)
    trials = []
    for number in sorted(rows):
        mine = rows[number]
        params = {key: _choice(decoded(value)) for key, value in settings[number].items()}
        states = {row["state"] for row in mine}
        told = scores[number]
        attributes = {
            name: [row[key] for row in mine]
            for name, key in (
                ("env_steps", "env_steps"), ("environments", "environment"), ("seeds", "seed"), ("scores", "score"),
                ("digests", "digest"), ("seconds", "seconds"), ("errors", "error"),
            )
        }  # fmt: skip
        whole = states == {"finished"} and bool(told)
        state = TrialState.FAIL if "failed" in states else TrialState.COMPLETE if whole else TrialState.WAITING
        if whole and max(told) < log.definition["env_steps"]:
            state = TrialState.PRUNED
        trials.append(
            create_trial(
                state=state,
                value=told[max(told)] if whole else None,
                params=params,
                distributions={key: distributions[key] for key in params},
                user_attrs={"setting": number, **attributes},
                intermediate_values={} if state is TrialState.WAITING else told,
            )
        )
    return trials


def _told(log: StudyLog) -> dict[int, dict[int, float]]:
    """Setting -> env steps -> its score there, where all runs have one."""
    found: dict[int, dict[int, float]] = {}
    for asked in log.asks:
        if asked is None:
            continue
        mine = found.setdefault(asked["number"], {})
        by_environment: dict[str, list[float]] = {}
        for environment, _, trial in asked["trials"]:
            result = log.results.get((trial, asked["env_steps"]))
            score = None if result is None else result["score"]
            by_environment.setdefault(environment, []).append(math.nan if score is None else score)
        if by_environment and math.isfinite(number := float(mean_score(list(by_environment.values())))):
            mine[asked["env_steps"]] = number
    return found


def _distribution(said: Any) -> BaseDistribution:
    """The distribution of a setting, of what a study's log says of it."""
    from optuna import distributions as of

    if isinstance(said, list):
        return of.CategoricalDistribution([_choice(decoded(value)) for value in said])
    if "when" in said:
        return _distribution(said["values"])
    if "range" in said:
        low, high, log = said["range"]["low"], said["range"]["high"], said["range"]["log"]
        if isinstance(low, int) and isinstance(high, int):
            return of.IntDistribution(low, high, log=log)
        return of.FloatDistribution(low, high, log=log)
    kind = {**said["optuna"]}
    made: BaseDistribution = getattr(of, kind.pop("kind"))(**kind)
    return made


def _choice(value: Any) -> CategoricalChoiceType:
    """A value that Optuna's storages can keep: what JSON has no number, text or truth for is its text."""
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


# -- tables -----------------------------------------------------------------------------------------------


def to_parquet(log: StudyLog, path: str | os.PathLike[str]) -> None:
    """Write the study's table to a Parquet file, a row a run; see `daskrl.study.table.table`.

    Needs ``daskrl[parquet]``. A setting whose values are of several types, as ``[1, "auto"]``, or are lists, is a
    column of JSON text. The file's metadata have the study's definition and digest, as ``daskrl.definition`` and
    ``daskrl.digest``.
    """
    frame = tables.table(log)
    with extras.needed("parquet", "to_parquet needs pyarrow"):
        import pyarrow
        import pyarrow.parquet
    for column in log.definition["space"]:
        values = frame[column].dropna() if column in frame else []
        kinds = {int if isinstance(value, int) and not isinstance(value, bool) else type(value) for value in values}
        if not (kinds <= {int, float} or len(kinds) == 1) or not kinds <= {int, float, bool, str}:
            frame[column] = [None if value is None else json.dumps(value, default=repr) for value in frame[column]]
    for column in ("digest", "promise", "error", "worker", "state", "environment", "algorithm", "run"):
        if column in frame:
            frame[column] = frame[column].astype("string")
    for column in ("round", "member", "parent", "setting", "seed", "env_steps", "episodes", "learner_updates"):
        if column in frame:
            frame[column] = frame[column].astype("Int64")
    made = pyarrow.Table.from_pandas(frame, preserve_index=False)
    said = {"daskrl.definition": json.dumps(log.definition), "daskrl.digest": tables.digest(log)}
    made = made.replace_schema_metadata({**(made.schema.metadata or {}), **said})
    pyarrow.parquet.write_table(made, os.fspath(path))


def to_rliable(log: StudyLog, by: str | Sequence[str] | None = None) -> dict[str, Array]:
    """The scores as rliable takes them: name of a group -> ``[runs, environments]``.

    Rows are runs with the same seed (and the same settings beyond ``by``), columns are environments, in the study's
    order. rliable needs a whole rectangle: a row counts where each environment has its score after all env steps.
    Groups without a row, as those that were stopped early, are left out.

    Parameters
    ----------
    by : the settings whose values make the groups; by default all, or the algorithm where there are none.

    Raises
    ------
    ConfigError
        No group has a row that is whole, or there is no such setting.
    """
    axes = list(log.definition["space"])
    columns = ([by] if isinstance(by, str) else list(by)) if by is not None else axes or ["algorithm"]
    for name in columns:
        if name not in (*axes, "algorithm"):
            raise ConfigError(f"by: expected settings of the study, {', '.join([*axes, 'algorithm'])}, got {name!r}.")
    environments, env_steps = list(log.definition["environments"]), log.definition["env_steps"]
    found: dict[str, dict[tuple[int, int], dict[str, float]]] = {}
    for row in tables.rows(log):
        label = ", ".join(f"{name}={row[name]}" for name in columns)
        group = found.setdefault(label, {})
        if row["score"] is not None and row["env_steps"] == env_steps:
            group.setdefault((row["setting"], row["seed"]), {})[row["environment"]] = row["score"]
    made: dict[str, Array] = {}
    for label, group in found.items():
        whole = [
            [scores[name] for name in environments] for scores in group.values() if len(scores) == len(environments)
        ]
        if whole:
            made[label] = np.array(whole, np.float64)
    if not made:
        raise ConfigError(
            f"rliable: no setting has a seed with a score in each of {', '.join(environments)} after {env_steps:,} env "
            "steps. Finish the study."
        )
    return made


# -- trackers ---------------------------------------------------------------------------------------------


def to_mlflow(log: StudyLog, experiment: str | None = None, *, tracking_uri: str | None = None) -> int:
    """Log each run that is over to MLflow, as an MLflow run; gives how many. Needs ``daskrl[mlflow]``.

    Settings, environment and seed are parameters; score, return, seconds and what else is a number are metrics, at
    their env steps; digest and error are tags. What was logged before is not logged again.

    Parameters
    ----------
    experiment : is made if there is none of that name; by default that of the study's directory.
    tracking_uri : MLflow's own setting (``MLFLOW_TRACKING_URI``) by default.
    """
    with extras.needed("mlflow", "to_mlflow needs MLflow"):
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient
    client = MlflowClient(tracking_uri)
    experiment = experiment or log.storage.name
    found = client.get_experiment_by_name(experiment)
    place = client.create_experiment(experiment) if found is None else found.experiment_id
    known = set()
    token: str | None = None
    while True:
        page = client.search_runs([place], max_results=1000, page_token=token)
        known |= {run.data.tags.get(_TRIAL_TAG) for run in page}
        token = page.token
        if not token:
            break
    logged = 0
    for row in _over(log):
        id_ = _id(row)
        if id_ in known:
            continue
        tags = {_TRIAL_TAG: id_, _STUDY_TAG: str(log.storage)}
        tags |= {name: str(row[name]) for name in ("digest", "error") if row[name] is not None}
        run = client.create_run(place, run_name=_title(row), tags={_STUDY_TAG: tags[_STUDY_TAG]})
        numbers = [Metric(name, value, 0, row["env_steps"]) for name, value in _numbers(row).items()]
        params = [Param(name, str(value)) for name, value in _params(log, row).items()]
        client.log_batch(run.info.run_id, metrics=numbers, params=params)
        client.set_terminated(run.info.run_id, "FINISHED" if row["state"] == "finished" else "FAILED")
        for name, value in tags.items():  # the trial's last: a run without it is half a run
            client.set_tag(run.info.run_id, name, value[:5000])
        logged += 1
    return logged


def to_wandb(
    log: StudyLog,
    project: str = "daskrl",
    *,
    entity: str | None = None,
    mode: str | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> int:
    """Log each run that is over to Weights & Biases, as a run in a group of the study; gives how many.

    Settings are the run's config; score, return, seconds and what else is a number are logged at their env steps, and
    stand in the summary with digest and error. A run's id is that of the trial, so that what is exported again is the
    same W&B run. Each takes W&B a second or two. Needs ``daskrl[wandb]``.

    Parameters
    ----------
    project, entity : of W&B.
    mode : ``"online"``, ``"offline"`` or ``"disabled"``; W&B's own setting (``WANDB_MODE``) by default.
    directory : of W&B's own files; its own setting (``WANDB_DIR``) by default.
    """
    with extras.needed("wandb", "to_wandb needs wandb"):
        import wandb
    if mode not in (None, "online", "offline", "disabled"):
        raise ConfigError(f"mode: expected 'online', 'offline' or 'disabled', got {mode!r}.")
    if directory is not None:
        os.makedirs(directory, exist_ok=True)  # W&B takes a temporary one else
    logged = 0
    for row in _over(log):
        run = wandb.init(
            project=project, entity=entity, mode=mode, dir=directory, id=_id(row), name=_title(row),  # type: ignore[arg-type]
            group=log.storage.name, config=_params(log, row), resume="allow", reinit="create_new",
            settings=wandb.Settings(console="off"),
        )  # fmt: skip
        run.log(_numbers(row), step=row["env_steps"])
        run.summary.update({name: row[name] for name in ("state", "digest", "error") if row[name] is not None})
        run.finish(0 if row["state"] == "finished" else 1)
        logged += 1
    return logged


def _over(log: StudyLog) -> Iterator[dict[str, Any]]:
    return (row for row in tables.rows(log) if row["state"] in ("finished", "failed"))


def _id(row: Mapping[str, Any]) -> str:
    """Of a run for trackers: taken further, it is another entry."""
    return f"{row['run'].rpartition('/')[2]}-{row['env_steps']}"


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['environment']} setting {row['setting']} seed {row['seed']}"


def _params(log: StudyLog, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ["setting", "algorithm", "environment", *log.definition["space"], "seed", "env_steps"]
    return {name: _choice(row[name]) for name in dict.fromkeys(names) if row[name] is not None}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    names = ("score", "return_last_100", "episodes", "learner_updates", "seconds")
    return {name: float(row[name]) for name in names if row[name] is not None}
