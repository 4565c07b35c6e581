"""The best setting of a search, and how much of its lead was luck.

The best of many settings is best partly by chance: the score that made a setting win is too high an estimate of the
setting. So the winner is run again on seeds that the search has not seen, and the difference, the optimism, is shown.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError, FewSeedsWarning
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.study import groups as grouping
from daskrl.study import statistics, summaries, words
from daskrl.study.groups import Failed, Group, Groups, Normalise
from daskrl.study.statistics import Estimate


@dataclass(frozen=True)
class Winner:
    """The best setting of a table.

    Attributes
    ----------
    settings : column -> value, of the columns that make the groups.
    label : the same for people.
    iqm : the interquartile mean of its scores.
    runs, seeds : it rests on; ``seeds`` are the fewest in any environment.
    ties : labels of further settings of the same interquartile mean.
    left_out : labels of settings that could not win: those without a score in each environment of the table, or all of
        whose runs were stopped early.
    """

    settings: Mapping[str, Any]
    label: str
    iqm: float
    runs: int
    seeds: int
    ties: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Optimism:
    """How much better the winner looked in the search than on unseen seeds.

    Attributes
    ----------
    label, settings : of the winner.
    search, test : interquartile means on the seeds of the search and on unseen ones.
    optimism : their difference, search minus test. Above zero, the search was too hopeful.
    seeds : the fewest in any environment, in the search and in the test.
    scale : what scores are, in words.
    notes : what to know before concluding anything.
    """

    label: str
    settings: Mapping[str, Any]
    search: Estimate
    test: Estimate
    optimism: Estimate
    seeds: tuple[int, int]
    scale: str
    notes: tuple[str, ...]

    def rows(self) -> dict[str, str]:
        """What tables show, name -> value."""
        return {
            "winner": self.label,
            "IQM in the search": f"{words.shown(self.search)}, {words.seeds(self.seeds[0])} seeds",
            "IQM on unseen seeds": f"{words.shown(self.test)}, {words.seeds(self.seeds[1])} seeds",
            "optimism (search minus unseen)": words.shown(self.optimism),
        }

    def __repr__(self) -> str:
        rows = [{"": name, " ": value} for name, value in self.rows().items()]
        notes = (f"\n! {note}" for note in self.notes)
        return "\n".join([f"{self.scale}; [95 % bootstrap intervals]", words.text_table(rows), *notes])

    def _repr_html_(self) -> str:
        rows = [{"": name, " ": value} for name, value in self.rows().items()]
        notes = "".join(f"<p>&#9888; {html.escape(note)}</p>" for note in self.notes)
        title = html.escape(f"{self.scale}; [95 % bootstrap intervals]")
        return f"<div><strong>{title}</strong>{words.html_table(rows)}{notes}</div>"


@suggests
def winner(
    table: Any, by: str | Sequence[str] = "setting", *, normalise: Normalise = "auto", failed: Failed = "lowest"
) -> Winner:
    """The setting with the highest interquartile mean among those with a score in each environment of the table.

    Where the table has ``env_steps``, the runs with the most of them count: others were stopped early.
    Of settings with the same interquartile mean that with the higher mean wins, and of those the first in the order of
    their values (for numbers of settings, the lowest).

    Parameters
    ----------
    table, by, normalise : as `daskrl.study.compare.compare` has them; ``by`` are the columns that tell settings apart.
    failed : as there; by default failed runs count as the lowest score of their environment, for a setting must not win
        by the runs that survived.

    Raises
    ------
    ConfigError : where no setting has a score in each environment.
    """
    best, ties, left_out = _best(grouping.read(table, by, normalise=normalise, failed=failed, longest=True))
    return Winner(
        best.settings, best.label, statistics.iqm(np.concatenate(best.columns())), best.runs, best.seeds, ties, left_out
    )


@suggests
def optimism(
    search: Any,
    test: Any,
    by: str | Sequence[str] = "setting",
    *,
    normalise: Normalise = "auto",
    failed: Failed = "lowest",
    reps: int = 2_000,
) -> Optimism:
    """The winner of a search on unseen seeds: its score in the search minus its score in the test, with intervals.

    The interval is of runs drawn again and again in both. It knows nothing of how the winner was chosen, which is what
    the difference shows. Scores of the test are put on the scale of the search.

    Parameters
    ----------
    search : the table that the winner is taken from.
    test : a table with runs of the winner, on other seeds, in the same environments; other settings are let be.
    by, normalise, failed, reps : as `winner` and `daskrl.study.compare.compare` have them.

    Raises
    ------
    ConfigError : where the test lacks the winner or an environment, or has a seed that the search has.
    """
    reps = plain(reps)
    require_integer("reps", reps, 1)
    statistics.require()
    searched = grouping.read(search, by, normalise=normalise, failed=failed, longest=True)
    chosen, ties, left_out = _best(searched)
    tested = grouping.read(
        test, by, normalise=None, failed=failed, longest=True, scale=searched.scale, lowest=grouping.lowest(searched)
    )
    again = _same(chosen, searched, tested)
    names = chosen.environments
    before, after = (summaries.of_iqm(group, reps) for group in (chosen, again))
    (difference,) = statistics.estimates(
        [*chosen.columns(names), *again.columns(names)],
        _difference(len(names)),
        statistics.state("optimism", chosen.key),
        reps=reps,
    )
    seeds = chosen.seeds, again.seeds
    if min(seeds) < 2:
        difference = Estimate(difference.value)
    few = ""
    if min(seeds) < statistics.FEW:
        few = (
            f"What rests on fewer than {statistics.FEW} seeds may be chance ({chosen.label}: {seeds[0]:,} in the "
            f"search, {seeds[1]:,} unseen): run more, as with seeds=range({statistics.FEW}) and as many others."
        )
        warnings.warn(few, FewSeedsWarning, stacklevel=3)
    lost = len(chosen.failed) + len(again.failed)
    how = "counted as the lowest score" if failed == "lowest" else "left out"
    notes = [
        few,
        f"{lost:,} of its runs failed: {how}." if lost else "",
        f"As good in the search: {words.named(ties)}." if ties else "",
        f"Could not win, without a score in each environment after all env steps: {words.named(left_out)}."
        if left_out
        else "",
    ]
    return Optimism(
        chosen.label, chosen.settings, before, after, difference, seeds, words.of_scale(searched),
        tuple(note for note in notes if note),
    )  # fmt: skip


def _best(groups: Groups) -> tuple[Group, tuple[str, ...], tuple[str, ...]]:
    whole = [group for group in groups if group.environments == groups.environments]
    if not whole:
        raise ConfigError(
            f"table: expected a setting with a score in each of {', '.join(groups.environments)}; none of the "
            f"{len(groups.groups):,} has."
        )

    def rank(group: Group) -> tuple[float, float]:
        iqm, mean = statistics.aggregates(0.0)(*group.columns())[:2]
        return float(iqm), float(mean)

    ranks = [rank(group) for group in whole]
    best = ranks.index(max(ranks))  # the first of the highest
    ties = tuple(
        group.label for number, group in enumerate(whole) if number != best and ranks[number][0] == ranks[best][0]
    )
    return whole[best], ties, (*(group.label for group in groups if group not in whole), *groups.shorter)


def _same(chosen: Group, searched: Groups, tested: Groups) -> Group:
    """The winner in the test."""
    found = [group for group in tested if group.key == chosen.key]
    if not found or not found[0].scores:
        has = ", ".join(group.label for group in tested)
        raise ConfigError(f"test: expected runs of the winner, {chosen.label}; the table has {has}.")
    (again,) = found
    if again.environments != chosen.environments:
        raise ConfigError(
            f"test: expected the environments of the search, {', '.join(chosen.environments)}, got "
            f"{', '.join(again.environments)}."
        )
    old = {(place.environment, place.seed) for group in searched for place in (*group.scores, *group.failed)}
    seen = sorted({str(place) for place in (*again.scores, *again.failed) if (place.environment, place.seed) in old})
    if seen:
        raise ConfigError(f"test: expected seeds that the search has not seen, got {', '.join(seen[:6])}.")
    return again


def _difference(environments: int) -> Callable[..., Array]:
    def of(*columns: Array) -> Array:
        search, test = columns[:environments], columns[environments:]
        return np.array([statistics.iqm(np.concatenate(search)) - statistics.iqm(np.concatenate(test))])

    return of
