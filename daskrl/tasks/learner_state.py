"""A learner and where it stands: it learns the rounds of a source in order, wherever they come from.

No environment, no store and no Dask: what `daskrl.tasks.learner` does for a run on its learner's worker, anything else
that has rounds may do for them, with the same weights. Import-light: what is called imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic

import numpy as np

from daskrl import seeding
from daskrl.algorithms.base import Algorithm, Setup, staged
from daskrl.arithmetic import pinned, undrawn
from daskrl.errors import DivergedError
from daskrl.names import require_key
from daskrl.records import Array
from daskrl.replay.rounds import Fragments, RoundReader, Source
from daskrl.schedule import Budget
from daskrl.store.initial import Initial
from daskrl.tasks import initial
from daskrl.tasks.published import Places, pack, unpack

ADVICE = (
    "Lower learning_rate, clip rewards (reward_clip), or check the environment's reward scale, and start a new run."
)
"""The end of the message of the `DivergedError` that `LearnerState.advance` raises."""

_PUBLISHED = "published/"  # before the names of older weights in a checkpoint


class LearnerState(Generic[Source]):
    """A learner and where it stands. Made, and used, within `daskrl.arithmetic.pinned`, by one thread at a time.

    Parameters
    ----------
    setup : also says on which device it learns.
    rounds : what it learns.
    seed : the run's; with the rounds it decides every bit of the weights.
    torch_threads : torch's, where rounds are prepared for the learner in a thread that reads ahead.
    begin_with : weights to begin with instead of those drawn.
    key : of the learner, where a run has several: each draws numbers of its own. "" is that of a run with one.

    Attributes
    ----------
    learner : the algorithm's.
    reader : of the rounds it learns.
    version : rounds learned so far; the version of its weights.
    loss : mean loss of the last round that had updates, or None.
    published : weights as made by `daskrl.tasks.published.pack`, of this version and those that streams may still act
        with.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        setup: Setup,
        rounds: Source,
        *,
        seed: int,
        torch_threads: int = 1,
        begin_with: Initial | None = None,
        key: str = "",
    ) -> None:
        require_key("learner", key)
        self.setup, self.rounds, self.seed, self.key = setup, rounds, seed, key
        with undrawn():
            learner = self.learner = algorithm.learner(setup, seeding.generator(seed, "initialise", key=key))
        if begin_with is not None:
            initial.begin(learner, begin_with)

        def prepare(fragments: Fragments) -> Fragments:
            with pinned(torch_threads, setup.device):
                return staged(learner, fragments)

        self.reader = RoundReader(rounds, prepare)
        self._remembers = False
        self.version = 0
        self.loss: float | None = None
        self.published: dict[int, tuple[Places, Array]] = {0: pack(learner.weights())}

    # -- learning -----------------------------------------------------------------------------------------

    def learn(self, budget: Budget) -> None:
        """Go on until a budget is used up, counted from version 0, or the source has no more rounds.

        Rounds are learned whole: it ends after the first with which the budget is reached.
        """
        size = self.setup.schedule.round_steps
        while not budget.reached(self.version * size, self.learner.updates):
            count = self.rounds.count()
            if self.version >= count:
                return
            for wanted in range(self.version, min(self.version + 2, count)):
                self.reader.begin(wanted)
            self.advance(self.version + 1)

    def advance(self, version: int) -> None:
        """Learn the rounds from where the state stands up to ``version``.

        Raises
        ------
        DivergedError
            The loss, a TD error or a weight is NaN or infinite. The message ends with `ADVICE`.
        """
        if not self._remembers and version > self.version:
            self._remember()
        for fragments in self.reader.read(range(self.version, version)):
            self.learner.append(fragments)
            del fragments  # the next ones are being read
            random = seeding.generator(self.seed, "learn", self.version, key=self.key)
            self.version += 1
            try:
                loss = self.learner.learn(random)
            except DivergedError as error:  # a sampler's, of TD errors
                raise _diverged(f"learning version {self.version}: {str(error).rstrip('.')}") from error
            if loss is not None:
                self.loss = loss
                if not np.isfinite(loss):
                    raise _diverged(f"the loss of version {self.version} is {loss}")
            weights = self.learner.weights()
            bad = self._not_finite(weights)
            if bad:  # the loss was finite: it was that of the weights before
                raise _diverged(f"weights of version {self.version} are NaN or infinite: {', '.join(bad)}")
            # A copy: what is returned by reference changes before other workers fetch it.
            self.published[self.version] = pack(weights)
            self.published.pop(self.version - self.setup.schedule.lag - 1, None)

    def _not_finite(self, weights: Mapping[str, Array]) -> list[str]:
        """Names of published arrays, and of what else the learner learns, that hold NaN or infinite values."""
        arrays = {name: np.asarray(weights[name]) for name in sorted(weights)}
        bad = [name for name, value in arrays.items() if value.dtype.kind in "fc" and not np.isfinite(value).all()]
        others = getattr(self.learner, "not_finite", list)
        return bad or list(others())

    def _remember(self) -> None:
        """Give the learner its memory, of which the first may be rounds that come before those learned."""
        self._remembers, before = True, self.rounds.before
        first = max(-before, self.version - self.learner.memory)
        # Where more came before the source's first, what is stacked with the first frames is not among them: as if one
        # more round had come and gone, which leaves out the steps that need it.
        self.learner.skip(before + first + self.rounds.cut)
        for fragments in self.reader.read(range(first, self.version)):
            self.learner.append(fragments)

    # -- checkpoints --------------------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Array]:
        """Everything the rounds do not hold: networks, optimizer, priorities, older weights still in use."""
        older = {
            f"{_PUBLISHED}{version}/{name}": value
            for version, weights in self.published.items()
            if version < self.version
            for name, value in unpack(*weights).items()
        }
        return {**self.learner.state(), **older}

    def restore(self, version: int, loss: float | None, arrays: Mapping[str, Array]) -> None:
        """Stand where the state did whose `checkpoint` this is. Before anything was learned."""
        arrays = dict(arrays)
        older = _take_published(arrays)
        self.version, self.loss = version, loss
        self._remember()
        self.learner.restore(arrays)
        self.published = {version: pack(self.learner.weights()), **older}


def published_in(arrays: Mapping[str, Array]) -> set[int]:
    """Of which older versions the arrays of a checkpoint hold the weights."""
    return {int(name.removeprefix(_PUBLISHED).partition("/")[0]) for name in arrays if name.startswith(_PUBLISHED)}


def _take_published(arrays: dict[str, Array]) -> dict[int, tuple[Places, Array]]:
    """Out of the arrays of a checkpoint, the older weights in it by version."""
    found: dict[int, dict[str, Array]] = {}
    for key in [key for key in arrays if key.startswith(_PUBLISHED)]:
        version, _, name = key.removeprefix(_PUBLISHED).partition("/")
        found.setdefault(int(version), {})[name] = arrays.pop(key)
    return {version: pack(weights) for version, weights in found.items()}


def _diverged(what: str) -> DivergedError:
    return DivergedError(f"{what}. {ADVICE}")
