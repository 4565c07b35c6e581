"""Pictures of a study's report: matplotlib's figures, as SVG that lives in a page, or on pages of a PDF.

In a page, text and axes have the page's own colour, light or dark, and points say what they are.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from daskrl import extras
from daskrl.study import profiles, words
from daskrl.study.compare import Comparison
from daskrl.study.curves import Curve
from daskrl.study.statistics import FEW, Estimate

if TYPE_CHECKING:
    import optuna
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK = "#123457"  # of text and axes in figures: becomes the page's colour
_EVERY = 2  # of the points of a curve that say what they are
_BANDS = 6  # curves beyond which bands would hide each other
_MOST = 9  # slices in a row of a figure


class Dot(NamedTuple):
    """A point of a figure that says what it is."""

    ax: Axes
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure with a heading, and what its points say."""

    heading: str
    said: str
    figure: Figure
    dots: Sequence[Dot] = field(default=())

    def svg(self, key: str) -> str:
        """For a page; ``key`` tells its ids from those of other pictures."""
        import matplotlib as mpl

        self.figure.set_dpi(72)  # that of SVG
        _colour(self.figure)
        out = io.StringIO()
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "daskrl"}):
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = out.getvalue()
        text = text[text.index("<svg") :].replace(_INK, "currentColor")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'\bid="', f'id="{key}-', text)
        text = re.sub(r'href="#', f'href="#{key}-', text)
        text = re.sub(r"url\(#", f"url(#{key}-", text)
        width, height = (72 * inches for inches in self.figure.get_size_inches())
        text = re.sub(
            r'width="[^"]*pt" height="[^"]*pt"', f'role="img" style="min-width:{0.8 * width:.0f}px"', text, count=1
        )
        text = re.sub(r"<svg ", f'<svg aria-label="{html.escape(self.heading)}" ', text, count=1)
        dots = []
        for dot in self.dots:
            x, y = dot.ax.transData.transform((dot.x, dot.y))
            title = f"<title>{html.escape(dot.text)}</title>"
            dots.append(f'<circle class="dot" cx="{x:.1f}" cy="{height - y:.1f}" r="5">{title}</circle>')
        return text.replace("</svg>", "".join(dots) + "</svg>")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _colour(figure: Figure) -> None:
    texts: list[Any] = figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
    for text in texts:
        text.set_color(_INK)
    for ax in figure.axes:
        ax.set_facecolor("none")
        ax.tick_params(color=_INK, labelcolor=_INK)
        for spine in ax.spines.values():
            spine.set_edgecolor(_INK)
    for legend in [*figure.legends, *(ax.get_legend() for ax in figure.axes)]:
        if legend is not None:
            legend.get_frame().set_facecolor("none")
            legend.get_frame().set_edgecolor("none")


def _figure(width: float, height: float) -> Figure:
    with extras.needed("study", "reports need matplotlib"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def _colors(count: int) -> list[Any]:
    import matplotlib as mpl

    colormap = mpl.colormaps["tab10"] if count <= 10 else mpl.colormaps["turbo"].resampled(count)
    return [colormap(number) for number in range(count)]


def of_curves(curves: Sequence[Curve], episodes: int) -> list[Picture]:
    """A picture of each environment."""
    made = []
    labels = list(dict.fromkeys(curve.label for curve in curves))
    for environment in dict.fromkeys(curve.environment for curve in curves):
        colors = dict(zip(labels, _colors(len(labels)), strict=True)) if labels else {}
        mine = [curve for curve in curves if curve.environment == environment]
        figure = _figure(9.0, 3.8 + 0.22 * ((len(mine) + 1) // 2))
        ax = figure.subplots()
        dots = []
        for curve in mine:
            seeds = f"{curve.seeds:,} seed{'s' * (curve.seeds != 1)}{', few' if curve.seeds < FEW else ''}"
            style = "-" if curve.seeds >= FEW else "--"
            color = colors[curve.label]
            ax.plot(curve.env_steps, curve.value, style, color=color, label=f"{curve.label} ({seeds})")
            if len(mine) <= _BANDS:
                ax.fill_between(curve.env_steps, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
            for x, *ends in list(zip(curve.env_steps, curve.value, curve.low, curve.high, strict=True))[::_EVERY]:
                text = f"{curve.label}\n{x:,.0f} env steps: {words.shown(Estimate(*ends))}"
                dots.append(Dot(ax, x, ends[0], text))
        ax.set(xlabel="env steps", ylabel=f"return, mean of {episodes} episodes")
        ax.set_xlim(left=0)
        ax.grid(alpha=0.3)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _legend(figure, ax)
        banded = " and its 95 % band" if len(mine) <= _BANDS else ""
        made.append(
            Picture(environment, f"Interquartile mean over seeds{banded}, at the same env steps.", figure, dots)
        )
    return made


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        wide = max(map(len, labels)) > 60
        figure.legend(
            handles, labels, loc="outside lower left", ncols=1 if wide else 2, fontsize="small", frameon=False
        )


def of_comparison(found: Comparison) -> Picture:
    """Interquartile means with their intervals beside performance profiles."""
    wide = max((len(group.label) for group in found.groups), default=0) > 40
    size = len(found.groups) * (0.22 * max(2, 1 + found.groups[0].label.count(", "))) if found.groups else 1
    figure = _figure(11.0, max(3.4, 1.4 + size) + 0.2 * len(found.groups) / (1 if wide else 2))
    axes = figure.subplots(1, 2, width_ratios=(1, 1.2))
    profiles.draw(found.groups, found.thresholds, axes, title="", unit=found.unit)
    axes[-1].get_legend().remove()
    _legend(figure, axes[-1])
    dots = []
    for row, group in enumerate(found.groups):
        text = f"{group.label}\nIQM {words.shown(group.iqm)}, {group.runs:,} runs, {words.seeds(group.seeds)} seeds"
        if group.iqm.value == group.iqm.value:
            dots.append(Dot(axes[0], group.iqm.value, row, text))
        for threshold, share in list(zip(found.thresholds, group.profile, strict=True))[:: 2 * _EVERY]:
            if share.value == share.value:
                said = f"{group.label}\n{100 * share.value:.0f} % of runs above {words.number(threshold)}"
                dots.append(Dot(axes[1], threshold, 100 * share.value, said))
    said = f"{found.scale}. 95 % bootstrap intervals; hollow and dashed: fewer than {FEW} seeds."
    return Picture(f"by {', '.join(found.by)}", said[0].upper() + said[1:], figure, dots)


def of_importance(importance: dict[str, float], evaluator: str) -> Picture:
    """A bar for each setting, the most important first."""
    names = list(importance)
    figure = _figure(8.0, 1.1 + 0.36 * len(names))
    ax = figure.subplots()
    ax.barh(names[::-1], [importance[name] for name in names[::-1]], color="#1f77b4", height=0.6)
    ax.set(xlabel="importance", xlim=(0, max(1.0, *importance.values()) * 1.08))
    for row, name in enumerate(names[::-1]):
        ax.text(importance[name] + 0.01, row, f"{importance[name]:.2f}", va="center", fontsize="small")
    ax.grid(axis="x", alpha=0.3)
    return Picture("Importance", evaluator, figure)


def of_slices(study: optuna.Study, names: Sequence[str], unit: str) -> list[Picture]:
    """Optuna's slice plots: the score of each setting against each of its values."""
    import matplotlib as mpl
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as drawing

    made = []
    for name in names[:_MOST]:
        with mpl.rc_context(), _quiet():
            ax: Any = drawing.plot_slice(study, params=[name], target=_value, target_name=unit)
            figure = ax.figure
            pyplot.close(figure)
        figure.set_size_inches(5.2, 3.4)
        figure.set_layout_engine("tight")
        for points in ax.collections:
            points.set_edgecolor(_INK)  # some are as dark as a dark page
        for each in figure.axes:
            each.set_title("")
            each.grid(color="#888888", alpha=0.3)
        for text in list(figure.texts):
            text.remove()
        if figure._suptitle is not None:
            figure.suptitle("")
        made.append(Picture(name, "", figure))
    return made


def _value(trial: Any) -> float:
    return float(trial.value)
