"""Of a population: where each member stood in each round, and what it goes back to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daskrl import extras
from daskrl.codec import decoded
from daskrl.errors import ConfigError
from daskrl.study.log import StudyLog

if TYPE_CHECKING:
    import pandas


def rows(log: StudyLog) -> list[dict[str, Any]]:
    """A row for each member and round that was asked for."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for asked in log.asks:
        if asked is None or (segment := asked.get("segment")) is None:
            continue
        round_, member = segment["round"], segment["member"]
        copied, parent = segment["parent"] is not None and segment["began"] == round_, member
        if copied:
            other = log.asks[segment["parent"]]
            assert other is not None
            parent = other["segment"]["member"]
        before = found.get((round_ - 1, parent))
        scores: list[float | None] = [
            result["score"]
            for _, _, trial in asked["trials"]
            if (result := log.results.get((trial, asked["env_steps"])))
        ]
        found[round_, member] = {
            "round": round_,
            "member": member,
            "parent": parent if copied else None,
            "founder": member if before is None else before["founder"],
            "copies": 0 if before is None else before["copies"] + copied,
            "env_steps": segment["before"] + asked["env_steps"],
            "score": _mean(scores) if len(scores) == len(asked["trials"]) else None,
            **{name: decoded(value) for name, value in asked["setting"].items()},
        }
    return [found[key] for key in sorted(found)]


def _mean(scores: list[float | None]) -> float | None:
    numbers = [score for score in scores if score is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(scores) else None


def lineage(log: StudyLog) -> pandas.DataFrame:
    """A row for each member and round of a population.

    Columns: ``round``, ``member``, ``parent`` (the member that was copied before that round, or None), ``founder``
    (the member of round 0 from which its weights come down), ``copies`` (how many times they were copied since),
    ``env_steps`` (that went into these weights, those of the founders among them), ``score`` (the mean of its runs;
    NaN where one failed or is not over), and a column for each setting.

    Raises
    ------
    ConfigError
        The study is no population.
    """
    found = rows(log)
    if not found:
        raise ConfigError(f"{log.storage} has no lineage: no member of a population was asked for.")
    with extras.needed("study", "a lineage needs pandas"):
        import pandas
    made: pandas.DataFrame = pandas.DataFrame(found)
    return made.astype({"score": "float64"})
