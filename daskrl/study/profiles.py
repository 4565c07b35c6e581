"""The picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from daskrl import extras
from daskrl.errors import ConfigError
from daskrl.study.statistics import FEW
from daskrl.study.summaries import GroupSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BANDS = 6  # groups beyond which bands would hide each other


def draw(
    groups: Sequence[GroupSummary],
    thresholds: Sequence[float],
    ax: Axes | Sequence[Axes] | None,
    *,
    title: str,
    unit: str,
) -> tuple[Axes, ...]:
    """Draw a comparison; see the method ``plot`` of `daskrl.study.compare.Comparison`."""
    with extras.needed("study", "plots need matplotlib"):
        import matplotlib as mpl
    colormap = mpl.colormaps["tab10"] if len(groups) <= 10 else mpl.colormaps["turbo"].resampled(len(groups))
    colors = [colormap(number) for number in range(len(groups))]
    if any(group.seeds < FEW for group in groups):
        title += f"\nhollow and dashed: fewer than {FEW} seeds"
    axes = _axes(ax, title, len(groups))
    if len(axes) == 2:
        _intervals(groups, axes[0], colors, unit)
    _profiles(groups, thresholds, axes[-1], colors, unit)
    if ax is None:
        axes[0].figure.legend(
            *axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small", frameon=False
        )
    else:
        axes[-1].legend(loc="best", fontsize="small", title=title, title_fontsize="small")
    return axes


def _axes(ax: Axes | Sequence[Axes] | None, title: str, groups: int) -> tuple[Axes, ...]:
    if ax is None:
        from matplotlib import pyplot

        size = 11, max(3.4, 1.4 + 0.32 * groups) + 0.13 * (groups + 2)
        figure, made = pyplot.subplots(1, 2, figsize=size, layout="constrained", width_ratios=(1, 1.2))
        figure.suptitle(title, fontsize="medium")
        return tuple(made)
    axes = (ax,) if callable(getattr(ax, "plot", None)) else tuple(np.ravel(np.asarray(ax, object)))
    if len(axes) not in (1, 2) or not all(callable(getattr(each, "plot", None)) for each in axes):
        raise ConfigError(f"ax: expected matplotlib's Axes, or two of them, got {ax!r:.200}.")
    return axes


def _intervals(groups: Sequence[GroupSummary], ax: Axes, colors: Sequence[Any], unit: str) -> None:
    for row, (group, color) in enumerate(zip(groups, colors, strict=True)):
        value, low, high = group.iqm
        ax.hlines(row, low, high, color=color, linewidth=7, alpha=0.35)  # nothing where there is no interval
        ax.plot(value, row, "o", color=color, markerfacecolor=color if group.seeds >= FEW else "white", markersize=7)
    ax.set_yticks(range(len(groups)), [group.label.replace(", ", "\n") for group in groups])
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.set(xlabel=f"interquartile mean of the {unit}")
    ax.set_title("IQM and 95 % interval", fontsize="medium")
    ax.grid(axis="x", alpha=0.3)


def _profiles(
    groups: Sequence[GroupSummary], thresholds: Sequence[float], ax: Axes, colors: Sequence[Any], unit: str
) -> None:
    banded = len(groups) <= BANDS
    for group, color in zip(groups, colors, strict=True):
        share = 100 * np.array([[each.value, each.low, each.high] for each in group.profile]).reshape(-1, 3)
        style = "-" if group.seeds >= FEW else "--"
        ax.plot(thresholds, share[:, 0], style, color=color, label=_label(group))
        if banded:
            ax.fill_between(thresholds, share[:, 1], share[:, 2], color=color, alpha=0.15, linewidth=0)
    ax.set(xlabel=f"{unit} τ", ylabel="runs with a score above τ [%]", ylim=(-2, 102))
    ax.set_title(f"performance profile{' and 95 % band' * banded}", fontsize="medium")
    ax.grid(alpha=0.3)


def _label(group: GroupSummary) -> str:
    runs, seeds = f"{group.runs:,} run{'s' * (group.runs != 1)}", f"{group.seeds:,} seed{'s' * (group.seeds != 1)}"
    lost = f", {group.failed:,} failed" if group.failed else ""
    return f"{group.label} (n = {runs}, {seeds}{lost}{', few' if group.seeds < FEW else ''})"
