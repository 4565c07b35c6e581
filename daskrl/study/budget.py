"""How much a study may take: once that is spent nothing more is begun."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from daskrl.config import plain
from daskrl.errors import ConfigError
from daskrl.study.trial import TrialRecord


@dataclass(frozen=True)
class Budget:
    """Of `daskrl.Study.run`, which says what each is; None has no end."""

    seconds: float | None = None
    worker_hours: float | None = None
    updates: int | None = None
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for name in ("seconds", "worker_hours", "updates"):
            value = plain(getattr(self, name))
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if value is not None and (not number or value <= 0):
                raise ConfigError(f"{name}: expected a number above 0, or None, got {value!r}.")

    def spent(self, results: Iterable[TrialRecord]) -> bool:
        """Whether nothing more is to be begun."""
        if self.seconds is not None and time.monotonic() - self.began >= self.seconds:
            return True
        if self.worker_hours is None and self.updates is None:
            return False
        seconds, updates = 0.0, dict[str, int]()
        for result in results:
            seconds += result["seconds"]
            updates[result["trial"]] = max(updates.get(result["trial"], 0), result.get("learner_updates", 0))
        return (self.worker_hours is not None and seconds >= self.worker_hours * 3600) or (
            self.updates is not None and sum(updates.values()) >= self.updates
        )
