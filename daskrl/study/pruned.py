"""Optuna's pruners as they are, as the search of a study."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daskrl.errors import ConfigError
from daskrl.study.rungs import Deciding
from daskrl.study.samplers import described, imported, new_study, quiet, trial_of
from daskrl.study.search import Ask, Asked, Told
from daskrl.study.space import Space


@dataclass(frozen=True)
class Pruned(Deciding):
    """Settings of another search, whose runs a pruner of Optuna's stops at rungs.

        search=daskrl.study.Pruned(Random(50), rungs=(1_000, 3_000), pruner=optuna.pruners.MedianPruner())

    A setting that gets to a rung reports its score there, with the env steps as Optuna's step; reports come in the
    order of asks, so a pruner says the same on any pool. A setting that it stops is a pruned trial for those after.

    With several environments it is refused: a pruner compares scores as they are, and those of several environments
    have no common scale that does not change as results come. `ASHA` and `MedianStopping` take them.

    Parameters
    ----------
    inner, rungs, reduction, width : as of `daskrl.study.ASHA`; ``reduction`` only spaces the rungs.
    pruner : a pruner of Optuna's. It is copied for each decision.
    """

    pruner: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        pruners = imported().pruners
        if not isinstance(self.pruner, pruners.BasePruner):
            raise ConfigError(
                f"pruner: expected one of Optuna's, as pruner=optuna.pruners.MedianPruner(), got {self.pruner!r:.200}."
            )
        if isinstance(self.pruner, pruners.WilcoxonPruner):
            raise ConfigError(
                "pruner: WilcoxonPruner compares trials on equal problem instances, and a rung is none. Type: "
                "pruner=optuna.pruners.MedianPruner()"
            )

    one_environment = "a pruner of Optuna's compares scores as they are; use ASHA or MedianStopping, which rank them"

    @property
    def packages(self) -> list[str]:
        return sorted({"optuna", *super().packages})

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), **described("pruner", self.pruner)}

    @property
    def stops(self) -> str:
        return f"{type(self.pruner).__name__} of Optuna's"

    def _goes_on(
        self, space: Space, env_steps: int, asked: Asked, told: Told, places: list[int], before: list[Any]
    ) -> tuple[bool, Any]:
        with quiet() as optuna:
            study, states = new_study(optuna), optuna.trial.TrialState
            reports: dict[int, dict[int, float]] = {}
            state: dict[int, Any] = {}
            notes: dict[int, Mapping[str, Any]] = {}
            for place, decided in zip(places, [*before, None], strict=True):
                ask = asked[place]
                assert isinstance(ask, Ask)
                number, score = ask.number, told[place]
                reports.setdefault(number, {})
                if score == score:
                    reports[number][ask.env_steps] = float(score)
                over = states.COMPLETE if ask.env_steps >= env_steps else states.PRUNED
                on = decided is None or decided[0]
                state[number] = states.FAIL if score != score else states.RUNNING if on else over
                if decided is not None and decided[1]:
                    notes[number] = decided[1]
            settings = {ask.number: ask.setting for ask in asked if isinstance(ask, Ask)}
            for number in sorted(reports):
                steps = reports[number]
                ended = state[number] in (states.COMPLETE, states.PRUNED)
                study.add_trial(
                    trial_of(optuna, space, settings[number], state[number], steps, notes.get(number, {}),
                             steps[max(steps)] if ended else None)
                )  # fmt: skip
            mine = asked[places[-1]]
            assert isinstance(mine, Ask)
            trial = study.get_trials()[sorted(reports).index(mine.number)]
            stopped = bool(copy.deepcopy(self.pruner).prune(study, trial))
            noted = study.get_trials()[sorted(reports).index(mine.number)].system_attrs
        return not stopped, noted
