"""What those who look on know of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from daskrl.algorithms.base import Algorithm
from daskrl.records import Report
from daskrl.store.store import Store


class Watched(ABC):
    """A run whose reports may be passed on; `daskrl.Run` is one.

    Attributes
    ----------
    progress : whether a loop over the run shows a progress bar.
    """

    store: Store
    algorithm: Algorithm
    progress: bool

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether every version up to the budget is committed, and every evaluation that is due."""

    @abstractmethod
    def __iter__(self) -> Iterator[Report]:
        """Carry the run on."""
