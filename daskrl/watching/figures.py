"""What the committed records of a run say: counted without I/O, and as a table and curves in HTML.

Only records of fragments have times, by the clocks of their workers. A commit is taken to have happened when the latest
fragment committed by then had ended. Clocks of workers that differ by a second blur the figures by as much.
"""

from __future__ import annotations

import dataclasses
import html
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from daskrl.config import RunConfig, Schedule
from daskrl.records import FragmentRecord, Record
from daskrl.schedule import evaluations_due
from daskrl.shown import shown
from daskrl.store.progress import Progress

LINGER = 10.0  # seconds, or two rounds if longer, that a worker counts as one of the run's after its newest fragment
RECENT = 60.0  # seconds that rates, the learner's share and the estimated end are taken over
_POINTS = 400  # of a curve, at most

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Figures:
    """What the records say of a run.

    Attributes
    ----------
    env_steps, env_steps_budget : transitions committed, and how many are wanted.
    finished : every round of the budget is learned.
    weights_version, learner_updates, episodes, episode_return, loss, policy_lag : as of `daskrl.Report`.
    replay_ratio : as of `daskrl.Report`; None where the algorithm is not daskrl's own and was not given.
    workers : that rolled out in the newest 10 s, or two rounds if these take longer.
    learner_busy, learner_waiting : shares of the time, together 1; None before the second round is learned, as all
        that follow from the pace.
    fragments_per_second, env_steps_per_second : over the rounds learned in the newest minute.
    seconds : from the first fragment's begin to the newest's end, stops of the run included.
    seconds_left, end : to go at this pace, and when that is in seconds since 1970.
    newest : when the newest fragment ended, in seconds since 1970.
    learning_curve : ``(env_steps, episode_return)``, at most some 400 of them.
    workers_over_time : ``(seconds, workers)`` from when on there were so many.
    evaluation_version, evaluation_return, best_version, best_return : as of `daskrl.Report`.
    evaluation_limited, best_limited : of those evaluations, how many episodes did not end, but were cut.
    """

    env_steps: int
    env_steps_budget: int
    finished: bool
    weights_version: int
    learner_updates: int
    episodes: int
    episode_return: float | None
    loss: float | None
    policy_lag: int
    replay_ratio: float | None
    workers: int
    learner_busy: float | None
    learner_waiting: float | None
    fragments_per_second: float | None
    env_steps_per_second: float | None
    seconds: float
    seconds_left: float | None
    end: float | None
    newest: float | None
    learning_curve: tuple[tuple[int, float], ...]
    workers_over_time: tuple[tuple[float, int], ...]
    evaluation_version: int | None = None
    evaluation_return: float | None = None
    best_version: int | None = None
    best_return: float | None = None
    evaluation_limited: int = 0
    best_limited: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class _Learned(NamedTuple):
    time: float
    version: int
    fragments: int
    seconds: float


@dataclass
class Tally:
    """Counts committed records, in their order.

    What it keeps does not grow with their number, only with that of the worker processes that take part: two moments
    for each time that one came.

    Parameters
    ----------
    schedule : of the run.
    per_update : transitions that a gradient update learns from; None if not known.
    """

    schedule: Schedule
    per_update: float | None = None
    progress: Progress = field(init=False)
    env_steps_budget: int = field(init=False, default=0)
    evaluate_every: int = field(init=False, default=0)
    loss: float | None = field(init=False, default=None)
    began: float | None = field(init=False, default=None)
    newest: float | None = field(init=False, default=None)
    _last: tuple[int, int] = field(init=False, default=(0, 0))  # round and weights version of the newest fragment
    _learned: deque[_Learned] = field(init=False, default_factory=deque)
    _curve: list[tuple[int, float]] = field(init=False, default_factory=list)
    _apart: float = field(init=False, default=0.0)  # env steps between two points of the curve
    _there: dict[str, list[tuple[float, float]]] = field(init=False, default_factory=dict)  # worker -> from, until

    def __post_init__(self) -> None:
        self.progress = Progress([0] * self.schedule.streams)

    @property
    def fragments(self) -> int:
        return sum(self.progress.committed)

    @property
    def env_steps(self) -> int:
        return self.fragments * self.schedule.envs_per_stream * self.schedule.fragment_steps

    def take(self, record: Record) -> None:
        """Count one committed record in."""
        self.progress.take(record)
        if record["kind"] == "budget":
            self.env_steps_budget = record["env_steps"]
            self.evaluate_every = record.get("options", {}).get("evaluate_every", 0)
        elif record["kind"] == "fragment":
            self._fragment(record)
        elif record["kind"] == "learn":
            self.loss = record["loss"] if record["loss"] is not None else self.loss
            if self.newest is not None:
                self._learned.append(_Learned(self.newest, record["version"], self.fragments, record["seconds"]))
                while len(self._learned) > 2 and self._learned[0].time < self.newest - RECENT:
                    self._learned.popleft()

    def _fragment(self, record: FragmentRecord) -> None:
        begin, end = record["wall_time"], record["wall_time"] + record["seconds"]
        self.began = begin if self.began is None else min(self.began, begin)
        self.newest = end if self.newest is None else max(self.newest, end)
        self._last = max(self._last, (record["round"], record["weights_version"]))
        times, until = self._there.setdefault(record["worker"], []), end + self._linger()
        if times and begin <= times[-1][1]:
            times[-1] = (min(begin, times[-1][0]), max(until, times[-1][1]))
        else:
            times.append((begin, until))
        if record["episodes"]:
            if not self._curve or self.env_steps - self._curve[-1][0] >= self._apart:
                self._curve.append((self.env_steps, self._episode_return()))
            if len(self._curve) > _POINTS:
                del self._curve[1::2]
                self._apart = 2 * self.env_steps / _POINTS

    def _linger(self) -> float:
        """Streams wait for weights between two rounds, and a worker with them."""
        if len(self._learned) < 2:
            return LINGER
        first, *_, last = self._learned
        return max(LINGER, 2 * (last.time - first.time) / (last.version - first.version))

    def _episode_return(self) -> float:
        return sum(self.progress.returns) / len(self.progress.returns)

    def figures(self) -> Figures:
        """What the records so far say."""
        progress, rounds = self.progress, self.schedule.rounds(self.env_steps_budget)
        finished = progress.published >= rounds and not evaluations_due(
            self.evaluate_every, rounds, progress.published, progress.kept, progress.evaluated
        )
        evaluation, best = progress.evaluation or (None, None), progress.best or (None, None)
        curve = list(self._curve)
        if curve and curve[-1][1] != self._episode_return():
            curve.append((self.env_steps, self._episode_return()))
        over_time = _workers_over_time([time for times in self._there.values() for time in times], self.newest)
        busy = per_second = left = None
        if len(self._learned) > 1 and (seconds := self._learned[-1].time - self._learned[0].time) > 0:
            first, *others = self._learned
            busy = min(1.0, sum(learned.seconds for learned in others) / seconds)
            per_second = (others[-1].fragments - first.fragments) / seconds
            left = (rounds - progress.published) * seconds / (others[-1].version - first.version)
        left = 0.0 if finished else left
        each = self.schedule.envs_per_stream * self.schedule.fragment_steps
        ratio = None
        if self.per_update is not None:
            ratio = progress.learner_updates * self.per_update / self.env_steps if self.fragments else 0.0
        return Figures(
            env_steps=self.env_steps,
            env_steps_budget=self.env_steps_budget,
            finished=finished,
            weights_version=progress.published,
            learner_updates=progress.learner_updates,
            episodes=progress.episodes,
            episode_return=self._episode_return() if progress.returns else None,
            loss=self.loss,
            policy_lag=self._last[0] - self._last[1],
            replay_ratio=ratio,
            workers=over_time[-1][1] if over_time else 0,
            learner_busy=busy,
            learner_waiting=None if busy is None else 1 - busy,
            fragments_per_second=per_second,
            env_steps_per_second=None if per_second is None else per_second * each,
            seconds=0.0 if self.newest is None or self.began is None else self.newest - self.began,
            seconds_left=left,
            end=None if left is None or self.newest is None else self.newest + left,
            newest=self.newest,
            learning_curve=tuple(curve),
            workers_over_time=over_time,
            evaluation_version=evaluation[0],
            evaluation_return=evaluation[1],
            best_version=best[0],
            best_return=best[1],
            evaluation_limited=0 if evaluation[0] is None else progress.limited[evaluation[0]],
            best_limited=0 if best[0] is None else progress.limited[best[0]],
        )


def _workers_over_time(times: Iterable[tuple[float, float]], now: float | None) -> tuple[tuple[float, int], ...]:
    """How many of some intervals hold each moment up to ``now``: a point where it changes, and one for now."""
    if now is None:
        return ()
    changes: dict[float, int] = {}
    for begin, until in times:
        changes[begin] = changes.get(begin, 0) + 1
        if until <= now:
            changes[until] = changes.get(until, 0) - 1
    start, count, points = min(changes), 0, list[tuple[float, int]]()
    for moment in sorted(changes):
        count += changes[moment]
        points.append((moment - start, count))
    every = -(-len(points) // _POINTS)
    return (*points[::every], (now - start, count))


# -- showing ----------------------------------------------------------------------------------------------


def run_title(config: RunConfig) -> str:
    """What a run is, in a few words."""
    name = config.environment.get("id") or config.environment["name"]
    return f"{config.algorithm['name']} on {name}, seed {config.seed}"


def rows(figures: Figures, now: float) -> dict[str, str]:
    """The figures as people read them. ``now``: seconds since 1970."""

    def unless_none(value: float | None, text: Callable[[float], str]) -> str:
        return "-" if value is None else text(value)

    def share(value: float) -> str:
        return f"{value:.0%}"

    state = "finished" if figures.finished else "no fragment yet"
    if not figures.finished and figures.newest is not None:
        state = f"newest fragment {duration(max(0.0, now - figures.newest))} ago"
    return {
        "run": state,
        "env steps": f"{figures.env_steps:,} of {figures.env_steps_budget:,}",
        "return": unless_none(figures.episode_return, shown),
        "episodes": f"{figures.episodes:,}",
        "loss": unless_none(figures.loss, shown),
        "weights version": f"{figures.weights_version:,}",
        **_evaluated(figures),
        "learner updates": f"{figures.learner_updates:,}",
        "replay ratio": unless_none(figures.replay_ratio, shown),
        "policy lag": f"{figures.policy_lag}",
        "rollout workers": f"{figures.workers:,}",
        "learner busy": unless_none(figures.learner_busy, share),
        "learner waiting": unless_none(figures.learner_waiting, share),
        "fragments/s": unless_none(figures.fragments_per_second, shown),
        "env steps/s": unless_none(figures.env_steps_per_second, shown),
        "so far": duration(figures.seconds),
        "to go": unless_none(figures.seconds_left, duration),
        "ended" if figures.finished else "ends about": unless_none(
            figures.end, lambda end: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(end))
        ),
    }  # fmt: skip


def _evaluated(figures: Figures) -> dict[str, str]:
    """Rows of a run that is evaluated as it goes on."""
    if figures.evaluation_return is None or figures.best_return is None:
        return {}

    def said(mean: float, version: int | None, limited: int) -> str:
        return f"{shown(mean)} (version {version}{f', {limited} episodes cut' * bool(limited)})"

    return {
        "evaluation": said(figures.evaluation_return, figures.evaluation_version, figures.evaluation_limited),
        "best": said(figures.best_return, figures.best_version, figures.best_limited),
    }


def duration(seconds: float) -> str:
    """Two units of time: ``3 min 20 s``."""
    whole = round(seconds)
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small}"
    return f"{whole} s"


def halves(said: list[tuple[str, str]]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Names and values for a table that has them side by side."""
    half = -(-len(said) // 2)
    return list(zip(said[:half], [*said[half:], *[("", "")] * (2 * half - len(said))], strict=True))


def page(figures: Figures, title: str, now: float) -> str:
    """The figures as HTML that stands alone: curves in SVG and a table, in the colours of what is around it."""
    curve = _chart(figures.learning_curve, "return, mean of 100 episodes", "env steps", shown)
    stairs = [
        point
        for (x, y), (following, _) in zip(
            figures.workers_over_time, (*figures.workers_over_time[1:], *figures.workers_over_time[-1:]), strict=True
        )
        for point in ((x, y), (following, y))
    ]
    workers = _chart(stairs, "rollout workers", "", duration, low=0.0)
    body = "".join(
        f"<tr>{_cells(*left)}{_cells(*right)}</tr>" for left, right in halves(list(rows(figures, now).items()))
    )
    return (
        f"<div><strong>{html.escape(title)}</strong>"
        f'<div style="display:flex;flex-wrap:wrap;gap:1em">{curve}{workers}</div>'
        f"<table><tbody>{body}</tbody></table></div>"
    )


def _cells(name: str, value: str) -> str:
    return (
        f'<td style="text-align:left;padding-right:1em;opacity:0.75">{html.escape(name)}</td>'
        f'<td style="text-align:left;padding-right:2em">{html.escape(value)}</td>'
    )


def _chart(points: Points, title: str, along: str, text: Callable[[float], str], low: float | None = None) -> str:
    """A line as SVG. ``text`` writes the values along the horizontal axis; ``low`` is the least vertical value."""
    width, height, left, right, top, bottom = 380, 190, 56, 12, 26, 22
    inner = (
        f'<text x="{left}" y="16" font-weight="bold">{html.escape(title)}</text>'
        f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="currentColor" opacity="0.5"/>'
    )
    if points:
        x0, x1 = points[0][0], points[-1][0]
        y0 = min(y for _, y in points) if low is None else low
        y1 = max(y for _, y in points)
        across, up = (x1 - x0) or 1, (y1 - y0) or 1
        places = [
            (
                left + (width - left - right) * (x - x0) / across,
                height - bottom - (height - top - bottom - 6) * (y - y0) / up,
            )
            for x, y in points
        ]
        last_x, last_y = places[-1]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        ends = [(left - 4, height - bottom, "end", shown(y0)), (left, height - 6, "start", text(x0))]
        if y1 > y0:
            ends.append((left - 4, top + 10, "end", shown(y1)))
        if x1 > x0:
            ends.append((width - right, height - 6, "end", f"{text(x1)} {along}".strip()))
        inner += f'<polyline points="{drawn}" fill="none" stroke="#3b82f6" stroke-width="2"/>'
        inner += f'<circle cx="{last_x:.1f}" cy="{last_y:.1f}" r="3" fill="#3b82f6"/>'
        inner += "".join(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>' for x, y, anchor, words in ends
        )
    else:
        inner += f'<text x="{left + 12}" y="{height // 2}" opacity="0.75">nothing yet</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-size="11" font-family="sans-serif" fill="currentColor">'
        f"<title>{html.escape(title)}</title>{inner}</svg>"
    )
