"""Statistics as people read them: numbers with their intervals, and what to know before concluding anything."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from daskrl import extras
from daskrl.study import statistics
from daskrl.study.groups import Failed, Groups
from daskrl.study.statistics import Estimate, PairedTest
from daskrl.study.summaries import PairSummary

if TYPE_CHECKING:
    import pandas


def few_seeds(groups: Groups, pairs: Sequence[PairSummary] = ()) -> str:
    """The sentence of the warning about few seeds; empty where none is due."""
    few = statistics.FEW
    found = [
        f"{group.label}: {group.seeds}" + ("" if group.seeds > 1 else ", which gives no interval")
        for group in groups
        if group.seeds < few
    ]
    enough = {group.label for group in groups if group.seeds >= few}
    found += [
        f"{pair.a} against {pair.b}: {pair.seeds} in pairs"
        for pair in pairs
        if {pair.a, pair.b} <= enough and pair.seeds < few
    ]
    if not found:
        return ""
    return f"What rests on fewer than {few} seeds may be chance ({named(found)}): run more, as with seeds=range({few})."


def failed_trials(groups: Groups, failed: Failed) -> str:
    """The sentence about failed runs; empty where there are none."""
    found = [
        f"{len(group.failed):,} of {group.label}: {named(map(str, group.failed))}" for group in groups if group.failed
    ]
    if not found:
        return ""
    count = sum(len(group.failed) for group in groups)
    what = f"{count:,} run{'s' * (count > 1)} failed ({'; '.join(found)})"
    if failed == "lowest":
        return f"{what}: counted as the lowest score of the environment."
    return f'{what}: left out, so that the rest may look too good; failed="lowest" counts them as the lowest score.'


def other_notes(groups: Groups, pairs: Sequence[PairSummary]) -> list[str]:
    """Sentences about what else makes a comparison less than it looks."""
    notes = []
    for group in groups:
        counts = {name: len(column) for name, column in zip(group.environments, group.columns(), strict=True)}
        missing = [name for name in groups.environments if name not in counts]
        if missing:
            notes.append(f"{group.label} has no scores in {named(missing)}: its averages are of other environments.")
        if len(set(counts.values())) > 1:
            each = named(f"{name} {count}" for name, count in counts.items())
            notes.append(
                f"{group.label} has not as many runs in each environment ({each}): an environment of more runs weighs "
                "more in IQM and median."
            )
        if group.unfinished:
            notes.append(
                f"{group.unfinished:,} run{'s' * (group.unfinished > 1)} of {group.label} without a score yet."
            )
    for pair in pairs:
        if pair.unpaired:
            those = named(f"{label}: {place}" for label, place in pair.unpaired)
            notes.append(
                f"{pair.a} against {pair.b}: {len(pair.unpaired):,} without a partner in the other group ({those}), "
                "left out of paired differences."
            )
    if groups.repeated:
        notes.append(f"{groups.repeated:,} rows are in the table already, equal in every column: each counts as a run.")
    if len(groups.budgets) > 1:
        notes.append(f"Runs of different env_steps are compared: {named(f'{budget:,}' for budget in groups.budgets)}.")
    return notes


def of_scale(groups: Groups) -> str:
    """What the scores of a comparison are."""
    if groups.scale is None:
        return "scores as they are"
    if groups.ranged:
        return "scores normalised, 0 and 1 are the lowest and the highest seen in each environment"
    ends = ", ".join(f"{name} {low:g} and {high:g}" for name, (low, high) in groups.scale.items())
    return f"scores normalised, 0 and 1 are {ends}"


def shown(estimate: Estimate) -> str:
    """An estimate with its interval, for people."""
    if math.isnan(estimate.value):
        return "none"
    if math.isnan(estimate.low):
        return f"{number(estimate.value)} [no interval]"
    if estimate.low == estimate.high:
        return f"{number(estimate.value)} [no width]"
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def named(names: Iterable[str], most: int = 6) -> str:
    """The first of some names, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - most:,} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def seeds(count: int) -> str:
    """A number of seeds, and whether they are few."""
    return f"{count:,}" if count >= statistics.FEW else f"{count:,} (few)"


def p(test: PairedTest) -> str:
    """A p-value; with the least that so many pairs can give where that is above 0.05, and ≈ for an approximation."""
    if math.isnan(test.p):
        return "none"
    least = f" (least {test.least:.2g})" if test.least > statistics.ALPHA else ""
    return f"{'' if test.method == 'exact' else '≈ '}{test.p:.2g}{least}"


def number(value: float) -> str:
    """A number with three digits, or all of its integer part."""
    if math.isnan(value):
        return "none"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(summary: Any, *names: str) -> dict[str, float]:
    """Estimates of a summary as columns of a table."""
    found: dict[str, float] = {}
    for name in names:
        estimate = getattr(summary, name)
        found |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found


def frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Rows as pandas has them."""
    with extras.needed("study", "tables need pandas"):
        import pandas
    return pandas.DataFrame(rows)


def text_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows in columns of even width."""
    lines: list[Mapping[str, str]] = [{name: name for name in rows[0]}, *rows]
    wide = {name: max(len(line[name]) for line in lines) for name in rows[0]}
    return "\n".join("  ".join(line[name].ljust(width) for name, width in wide.items()).rstrip() for line in lines)


def html_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows for Jupyter; every value escaped."""
    left = "style='text-align:left'"
    head = "".join(f"<th {left}>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td {left}>{html.escape(value)}</td>' for value in row.values())}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
