"""Where a search had to compare settings that all had the same score: what went on then went by numbers alone."""

from __future__ import annotations

from typing import Any

from daskrl.study.log import Asked, StudyLog


def ties(log: StudyLog) -> dict[tuple[str, int], str]:
    """Run, and env steps that it was taken to -> how many had the same score, and when."""
    search, whole = log.definition["search"], log.definition["env_steps"]
    interval = search.get("interval")
    if not search.get("stops") and not interval:
        return {}
    levels: dict[int, list[tuple[Asked, list[float]]]] = {}
    for asked in filter(None, log.asks):
        level = (asked["segment"]["round"] + 1) * interval if "segment" in asked else asked["env_steps"]
        scores = _scores(log, asked)
        if level < whole and scores is not None:
            levels.setdefault(level, []).append((asked, scores))
    return {
        (trial, asked["env_steps"]): f"all {len(here):,} at {level:,}"
        for level, here in levels.items()
        if len(here) > 1 and all(scores == here[0][1] for _, scores in here)
        for asked, _ in here
        for _, _, trial in asked["trials"]
    }


def _scores(log: StudyLog, asked: Asked) -> list[float] | None:
    """Mean over seeds, of each environment; None where a run failed or is to come."""
    found: dict[str, list[float]] = {}
    for environment, _, trial in asked["trials"]:
        result: Any = log.results.get((trial, asked["env_steps"]), {})
        if result.get("score") is None:
            return None
        found.setdefault(environment, []).append(result["score"])
    return [sum(each) / len(each) for each in found.values()]


def doubts(log: StudyLog) -> list[str]:
    """What there is to know of a study's search: it compares runs too early, or found them all alike."""
    alike = list(dict.fromkeys(ties(log).values()))
    if not alike:
        return [*log.warned]
    return [
        *log.warned,
        f"Settings that were compared had the same score ({', '.join(alike)} env steps): those of lower numbers count "
        "as better there, which says nothing of them.",
    ]
