"""The progress bar of a run: on a terminal or in Jupyter, not in a pipe."""

from __future__ import annotations

import warnings
from typing import Any

from daskrl import extras
from daskrl.records import Report
from daskrl.watching.callbacks import Callback
from daskrl.watching.watched import Watched


class Bar(Callback):
    """A bar of env steps with the newest numbers beside it.

    Parameters
    ----------
    name : of the environment.
    total : env steps of the whole run.
    shown : with False there is none.
    """

    def __init__(self, name: str, total: int, shown: bool) -> None:
        self._name, self._total, self._shown = name, total, shown

    def begin(self, run: Watched) -> None:
        disable = None if self._shown else True  # tqdm takes None for: where there is a terminal
        self._bar = tqdm()(total=self._total, unit="step", unit_scale=True, disable=disable)
        self._bar.set_description(self._name)

    def reported(self, run: Watched, report: Report) -> None:
        bar, value = self._bar, report.episode_return
        if bar.n == 0:
            bar.initial = report.env_steps  # a resumed run's pace is that of now
        bar.n = report.env_steps
        bar.set_postfix(
            {
                "return": "-" if value is None else f"{value:.1f}",
                "lag": report.policy_lag,
                "replay": f"{report.replay_ratio:.1f}",
                "workers": report.workers if run.client is not None else "in-process",
            }
        )

    def end(self, run: Watched, error: BaseException | None) -> None:
        self._bar.close()


def tqdm() -> Any:
    """tqdm's bar for where this runs; in Jupyter without widgets its text, and a warning that names the extra."""
    from tqdm.std import TqdmWarning

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", TqdmWarning)
        from tqdm.auto import tqdm
    if any(issubclass(warning.category, TqdmWarning) for warning in said):
        warnings.warn(
            f"the progress bar is text: Jupyter has no ipywidgets. {extras.install('notebook')}", stacklevel=2
        )
    return tqdm
