"""What a study gave, as a table: out of its log alone, in logical order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from daskrl import extras
from daskrl.study.log import StudyLog, setting_of
from daskrl.study.ties import ties
from daskrl.study.trial import TrialRecord

if TYPE_CHECKING:
    import pandas

OF_THE_POOL = ("seconds", "queued", "worker")
"""Columns that differ from one execution to the next; all others are the same on any pool."""

_NOT_DIGESTED = (*OF_THE_POOL, "tied")  # which follows from the scores


def rows(log: StudyLog) -> list[dict[str, Any]]:
    """A row for each run that was asked for: how far it was taken, of those env steps that have a result.

    Of a population a row for each round of a member, in the order of rounds and members.
    """
    found: dict[str, dict[str, Any]] = {}
    whole, stops = log.definition["env_steps"], log.definition["search"].get("stops")
    tied, population = dict[str, list[str]](), log.definition["search"]["kind"] == "Population"
    for (trial, steps), when in ties(log).items():
        tied.setdefault(f"{trial}-{steps}" if population else trial, []).append(when)
    seconds, queued = dict[str, float](), dict[str, float]()
    for (trial, steps), one in log.results.items():
        part = f"{trial}-{steps}" if population else trial
        seconds[part] = seconds.get(part, 0.0) + one["seconds"]
        if "queued" in one:
            queued[part] = queued.get(part, 0.0) + one["queued"]
    for number, setting, environment, seed, trial, env_steps, segment in _asked(log):
        result = log.results.get((trial, env_steps))
        key = trial if segment is None else f"{trial}-{env_steps}"
        if key in found and (result is None or env_steps < found[key]["env_steps"]):
            continue  # it goes on: what it gave so far stands
        found[key] = {
            **({} if segment is None else _of_segment(log, segment)),
            "setting": found.get(key, {}).get("setting", number),  # a search may suggest a setting again
            "algorithm": setting.get("algorithm", next(iter(log.definition["algorithms"]))),
            "environment": environment,
            **{name: setting.get(name) for name in log.definition["space"] if name != "algorithm"},
            "seed": seed,
            "env_steps": env_steps,
            **_of_result(result, seconds.get(key), queued.get(key)),
            **({"stopped": _stopped(env_steps, whole, stops, result)} if stops else {}),
            **({"tied": "; ".join(tied.get(key, [])) or None} if tied else {}),
            "run": f"runs/{trial}",
        }
    labels = {label: place for place, label in enumerate(log.definition["environments"])}

    def place(row: dict[str, Any]) -> tuple[int, ...]:
        of_population = (row["round"], row["member"]) if "round" in row else ()
        return *of_population, row["setting"], labels[row["environment"]], row["seed"]

    return sorted(found.values(), key=place)


def _of_segment(log: StudyLog, segment: Mapping[str, Any]) -> dict[str, Any]:
    parent = None
    if segment["parent"] is not None and segment["began"] == segment["round"]:
        parent = (log.asks[segment["parent"]] or {})["segment"]["member"]
    return {"round": segment["round"], "member": segment["member"], "parent": parent}


def _asked(log: StudyLog) -> Iterator[tuple[int, dict[str, Any], str, int, str, int, dict[str, Any] | None]]:
    for asked in log.asks:
        if asked is not None:
            setting = setting_of(asked)
            for environment, seed, trial in asked["trials"]:
                yield asked["number"], setting, environment, seed, trial, asked["env_steps"], asked.get("segment")


def _stopped(env_steps: int, whole: int, stops: str, result: TrialRecord | None) -> str | None:
    return f"at {env_steps:,}: {stops}" if env_steps < whole and result and "error" not in result else None


def _of_result(result: TrialRecord | None, seconds: float | None, queued: float | None) -> dict[str, Any]:
    if result is None:
        return {
            "state": "waiting", "score": None, "return_last_100": None, "episodes": None, "learner_updates": None,
            "digest": None, "promise": None, "error": None, "seconds": None, "queued": None,
            "worker": None,
        }  # fmt: skip
    return {
        "state": "failed" if "error" in result else "finished",
        "score": result["score"],
        "return_last_100": result.get("return_last_100"),
        "episodes": result.get("episodes"),
        "learner_updates": result.get("learner_updates"),
        "digest": result.get("digest"),
        "promise": "; ".join(result["promise"]) if "promise" in result else "kept",
        "error": result.get("error"),
        "seconds": seconds,
        "queued": queued,
        "worker": result["worker"],
    }


def table(log: StudyLog) -> pandas.DataFrame:
    """A row a run.

    Columns: ``setting`` (its number), ``algorithm``, ``environment``, one for each setting of the space, ``seed``,
    ``env_steps`` (asked), ``state`` (finished, failed, waiting), ``score``, ``return_last_100``, ``episodes``,
    ``learner_updates``, ``digest``, ``promise``, ``error``, ``seconds`` (of all executions with a result), ``queued``
    (seconds that these had to wait, from when the study had asked for the run until somebody began with it), ``worker``
    (of the last), ``run`` (its store, below the study's directory). Where a search stops runs early: ``stopped``, at
    which env steps a run did and why, as far as the search is; None where it has all env steps. Where settings that
    were compared all had the same score: ``tied``, how many and when. Of a population a row for each round of a member,
    with ``round``, ``member`` and ``parent`` (the member that was copied before that round, or None) first, with
    ``env_steps`` that are those of the member's present run, and the ``seconds`` of the round.
    """
    with extras.needed("study", "a study's table needs pandas"):
        import pandas
    made: pandas.DataFrame = pandas.DataFrame(rows(log))
    numbers = [name for name in ("score", "return_last_100", "seconds", "queued") if name in made]
    return made.astype(dict.fromkeys(numbers, "float64"))


def digest(log: StudyLog) -> str:
    """SHA-256 over what is the same on any pool."""
    sha = hashlib.sha256()
    for row in rows(log):
        said = {name: value for name, value in row.items() if name not in _NOT_DIGESTED}
        sha.update(json.dumps(said, sort_keys=True, default=str).encode() + b"\n")
    return sha.hexdigest()


def summary(log: StudyLog) -> dict[str, Any]:
    """How far a study is."""
    found = rows(log)
    states = [row["state"] for row in found]
    scored = [row for row in found if row["score"] is not None]
    return {
        "study": str(log.storage),
        "algorithms": list(log.definition["algorithms"]),
        "environments": list(log.definition["environments"]),
        "settings": len({row["setting"] for row in found}),
        "seeds": len(log.definition["seeds"]),
        "env_steps": log.definition["env_steps"],
        "runs": len(found),
        "finished": states.count("finished"),
        "failed": states.count("failed"),
        "waiting": states.count("waiting"),
        "best_score": max((row["score"] for row in scored), default=None),
        "worker_hours": sum(row["seconds"] or 0.0 for row in found) / 3600,
    }
