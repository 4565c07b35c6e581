"""What callbacks, sinks and views may use of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from daskrl.algorithms.base import Algorithm, Setup, transitions_per_update
from daskrl.records import Report
from daskrl.store.store import Store

if TYPE_CHECKING:
    from distributed import Client


class Watched(ABC):
    """A run whose reports may be passed on; `daskrl.Run` is one.

    Attributes
    ----------
    client : of Dask; None where the run is carried on in this process.
    progress : whether a loop over the run shows a progress bar.
    """

    store: Store
    algorithm: Algorithm
    client: Client | None
    progress: bool

    @property
    def transitions_per_update(self) -> float:
        """What replay ratios are counted with."""
        config = self.store.config
        return transitions_per_update(self.algorithm, Setup(self.store.spec, config.schedule, config.frame_stack))

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether every version up to the budget is committed, and every evaluation that is due."""

    @abstractmethod
    def reports(self, *, progress: bool | None = None) -> Iterator[Report]:
        """Carry the run on, as a loop over it does; ``progress`` says for this time whether there is a progress bar."""

    def __iter__(self) -> Iterator[Report]:
        """Carry the run on."""
        return self.reports()
