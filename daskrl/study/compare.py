"""Which settings are better, by how much, and how sure that is: statistics of a tidy table of runs."""

from __future__ import annotations

import html
import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl.config import plain, require_integer
from daskrl.errors import FailedTrialsWarning, FewSeedsWarning
from daskrl.names import suggests
from daskrl.study import groups as grouping
from daskrl.study import profiles, statistics, summaries, words
from daskrl.study.groups import Failed, Normalise
from daskrl.study.summaries import GroupSummary, PairSummary

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

THRESHOLDS = 101  # of a performance profile
MOST = 12  # groups that are paired without being asked for


@dataclass(frozen=True)
class Comparison:
    """Groups of runs side by side; what `compare` gives. Shown as a table, in Jupyter as HTML.

    Attributes
    ----------
    by : the columns whose values make the groups.
    groups : a summary of each, ordered by its settings.
    pairs : a summary of each two.
    thresholds : ``[T]`` of the performance profiles.
    scale : what scores are, in words.
    unit : what a score is, for axes: as `compare` was given it, "normalised" before it where it is.
    notes : what to know before concluding anything: few seeds, failed runs, runs without a partner.
    """

    by: tuple[str, ...]
    groups: tuple[GroupSummary, ...]
    pairs: tuple[PairSummary, ...]
    thresholds: tuple[float, ...]
    scale: str
    unit: str
    notes: tuple[str, ...]

    def table(self) -> pandas.DataFrame:
        """A row for each group: its settings, counts, and each statistic with the ends of its 95 % interval."""
        rows = [
            {**group.settings, "runs": group.runs, "seeds": group.seeds, "failed": group.failed,
             "unfinished": group.unfinished, **words.spread(group, "iqm", "mean", "median", "optimality_gap")}
            for group in self.groups
        ]  # fmt: skip
        return words.frame(rows)

    def pair_table(self) -> pandas.DataFrame:
        """A row for each two groups, A and B; differences are in score, A minus B."""
        rows = [
            {"a": pair.a, "b": pair.b, "pairs": pair.pairs, "seeds": pair.seeds, "unpaired": len(pair.unpaired),
             **words.spread(pair, "difference", "difference_iqm"), "p": pair.test.p, "p_holm": pair.p_holm,
             "p_least": pair.test.least, "test": f"Wilcoxon signed-rank, {pair.test.method}",
             **words.spread(pair, "improvement"), "seeds_needed": pair.seeds_needed, "still_needed": pair.still_needed}
            for pair in self.pairs
        ]  # fmt: skip
        return words.frame(rows)

    def profile_table(self) -> pandas.DataFrame:
        """A row for each group and threshold: the share of scores above it, with the ends of its interval."""
        rows = [
            {**group.settings, "threshold": threshold, "share": share.value, "low": share.low, "high": share.high}
            for group in self.groups
            for threshold, share in zip(self.thresholds, group.profile, strict=True)
        ]
        return words.frame(rows)

    def plot(self, ax: Axes | Sequence[Axes] | None = None) -> tuple[Axes, ...]:
        """Draw interquartile means with their intervals, and performance profiles; needs ``daskrl[study]``.

        Parameters
        ----------
        ax : two axes, for the means and the profiles; or one, for the profiles alone. By default two of a new pyplot
            figure, which Jupyter shows by itself.

        Returns
        -------
        The axes that were drawn in.
        """
        title = f"by {', '.join(self.by)}: {self.scale}"
        return profiles.draw(self.groups, self.thresholds, ax, title=title, unit=self.unit)

    def __repr__(self) -> str:
        parts = [f"{self._title()}\n", words.text_table(self.group_rows())]
        if self.pairs:
            parts += ["\ndifference in score, A minus B\n", words.text_table(self.pair_rows())]
        return "\n".join([*parts, *(f"\n! {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        parts = [f"<strong>{html.escape(self._title())}</strong>", words.html_table(self.group_rows())]
        if self.pairs:
            parts += ["<strong>difference in score, A minus B</strong>", words.html_table(self.pair_rows())]
        parts += [f"<p>&#9888; {html.escape(note)}</p>" for note in self.notes]
        return f"<div>{''.join(parts)}</div>"

    def _title(self) -> str:
        return f"comparison by {', '.join(self.by)}: {self.scale}; [95 % bootstrap intervals]"

    def group_rows(self) -> list[dict[str, str]]:
        """What tables for people show of each group."""
        return [
            {"group": group.label, "runs": f"{group.runs:,}", "seeds": words.seeds(group.seeds),
             "failed": f"{group.failed:,}",
             "IQM": words.shown(group.iqm), "mean": words.shown(group.mean),
             "median": words.shown(group.median),
             "optimality gap": words.shown(group.optimality_gap)}
            for group in self.groups
        ]  # fmt: skip

    def pair_rows(self) -> list[dict[str, str]]:
        """What tables for people show of each two groups."""
        return [
            {"A": pair.a, "B": pair.b, "pairs": f"{pair.pairs:,}", "seeds": words.seeds(pair.seeds),
             "mean": words.shown(pair.difference), "IQM": words.shown(pair.difference_iqm),
             "P(A > B)": words.shown(pair.improvement), "p (Wilcoxon)": words.p(pair.test),
             "p (Holm)": words.number(pair.p_holm), "seeds still needed": pair.still_needed}
            for pair in self.pairs
        ]  # fmt: skip


@suggests
def compare(
    table: Any,
    by: str | Sequence[str],
    *,
    normalise: Normalise = "auto",
    failed: Failed = "leave out",
    settings: Sequence[str] = (),
    reps: int = 2_000,
    pairs: bool | None = None,
    unit: str = "score",
) -> Comparison:
    """Compare groups of runs: averages, performance profiles, probability of improvement, paired differences.

    Intervals are 95 % percentile intervals of the bootstrap that resamples runs within each environment (Agarwal et al.
    2021, https://arxiv.org/abs/2108.13264). They are derived from the group's settings: equal tables give equal
    intervals bit for bit, whatever order rows are in, and whichever other groups there are, unless those change the
    scale. They take runs of one group to be independent; a group that holds several settings holds several runs of a
    seed, which are less than that. NumPy's global random state is neither read nor changed.

    Of few seeds such intervals are too narrow: those of 3 seeds held the true interquartile mean in 63 to 74 of 100
    tables, of 5 in 81 to 92, of 10 and more in 93 to 96 (``python tests/benchmarks/coverage.py``).

    Parameters
    ----------
    table : a row for each run, with the columns ``environment``, ``seed`` and ``score``, where higher is better (give
        costs with a minus), and any that name settings. Runs should have the same budget. A column ``state`` tells runs
        that failed (``"failed"``, or ``"finished"`` without a score) from those that have no score yet.
    by : the columns whose values make the groups.
    normalise : what of each environment becomes 0 and 1. ``{environment: (low, high)}``, as a random policy's score and
        a good one's; ``"range"``: the lowest and the highest score of that environment in this table, so that numbers
        can be read beside those of this table only, and change when a run outside the range joins; None: scores as they
        are. ``"auto"`` is None for one environment and ``"range"`` for several.
    failed : runs whose score is NaN or infinite are counted and named, and then left out, with a warning; or count as
        the ``"lowest"`` score of their environment in this table.
    settings : further columns that name settings. Partners in a pair have the same values there, too.
    reps : resamples for each interval.
    pairs : whether to compare each two groups; by default where there are at most 12. Each pair takes about 0.2 s.
    unit : what a score is, for the axes of pictures, as ``"return of greedy episodes"``.

    Raises
    ------
    ConfigError : for a table without rows or without one of the columns, and scales that cannot be.
    """
    reps = plain(reps)
    require_integer("reps", reps, 1)
    statistics.require()
    read = grouping.read(table, by, normalise=normalise, failed=failed, settings=settings)
    scores = np.concatenate([column for group in read for column in group.columns()] or [np.zeros(0)])
    best = 1.0 if read.scale is not None else float(scores.max(initial=-math.inf))
    thresholds = np.linspace(scores.min(), scores.max(), THRESHOLDS) if scores.size else np.zeros(0)
    in_groups = tuple(summaries.of_group(group, best, thresholds, reps) for group in read)
    paired = len(read.groups) <= MOST if pairs is None else pairs
    two = [summaries.of_pair(a, b, reps) for a, b in itertools.combinations(read, 2)] if paired else []
    adjusted = statistics.holm([pair.test.p for pair in two])
    in_pairs = tuple(replace(pair, p_holm=p) for pair, p in zip(two, adjusted, strict=True))
    few, lost = words.few_seeds(read, in_pairs), words.failed_trials(read, failed)
    if lost and failed == "leave out":
        warnings.warn(lost, FailedTrialsWarning, stacklevel=3)
    if few:
        warnings.warn(few, FewSeedsWarning, stacklevel=3)
    skipped = (
        "" if paired or pairs is not None else f"{len(read.groups):,} groups are not compared in pairs: pairs=True."
    )
    notes = tuple(note for note in (few, lost, *words.other_notes(read, in_pairs), skipped) if note)
    unit = unit if read.scale is None else f"normalised {unit}"
    return Comparison(read.by, in_groups, in_pairs, tuple(thresholds.tolist()), words.of_scale(read), unit, notes)
