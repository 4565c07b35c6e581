"""Q-learning: action values in a table, for environments with few states. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from daskrl.algorithms.base import Moment, Setup, Weights, linear, require_discrete
from daskrl.config import require_range, require_types
from daskrl.envs.spaces import ACTION_MASK, SpaceSpec, final_name
from daskrl.errors import ConfigError, UnsupportedSpaceError
from daskrl.names import Suggesting, suggests
from daskrl.records import Array

_LARGEST = 1_000_000  # values in a table: every version of it is published whole


class Table:
    """The policy: action values.

    Attributes
    ----------
    values : ``[S, A]`` float64.
    """

    def __init__(self, spec: SpaceSpec, initial_value: float) -> None:
        self.spec = spec
        self.values = np.full((states(spec), spec.one_action.sizes[0]), initial_value, np.float64)

    def rows(self, observation: Mapping[str, Array]) -> Array:
        """The row of each of some observations, ``{leaf: [..., *leaf]} -> [...]`` int64."""
        rows: Array = np.zeros((), np.int64)
        for leaf in self.spec.observation:
            values = observation[leaf.name]
            lead = values.shape[: values.ndim - len(leaf.shape)]
            elements = values.reshape(*lead, len(leaf.sizes)).astype(np.int64) - leaf.start
            for i, size in enumerate(leaf.sizes):
                rows = rows * size + elements[..., i]
        return rows


def states(spec: SpaceSpec) -> int:
    """How many observations there are."""
    return math.prod(size for leaf in spec.observation for size in leaf.sizes)


@suggests
@dataclass(frozen=True)
class QLearning(Suggesting):
    """Tabular Q-learning (Watkins and Dayan 1992, https://doi.org/10.1007/BF00992698).

    Every transition is learned from once, in the order of time, then of streams and environments::

        Q(s, a) += alpha * (r + discount * max_a' Q(s', a') - Q(s, a))

    (Sutton and Barto 2018, http://incompleteideas.net/book/the-book-2nd.html, equation 6.8), without the second
    term where the episode terminated.

    Observations are Discrete or MultiDiscrete, or several of these; each combination of values is one state.

    Parameters
    ----------
    learning_rate : alpha, how far an update goes.
    learning_rate_decay : ``alpha = learning_rate / (1 + learning_rate_decay * n)`` after n updates of the same state
        and action. Above 0 the values converge also where the environment is random.
    discount : gamma.
    epsilon_start, epsilon_end, epsilon_steps : the chance of a random action falls linearly from the first
        to the second over that many transitions.
    initial_value : of every state and action.
    """

    learning_rate: float = 0.5
    learning_rate_decay: float = 0.003
    discount: float = 0.99
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_steps: int = 50_000
    initial_value: float = 0.0

    def __post_init__(self) -> None:
        require_types(self)
        require_range(self, ">= 0", "epsilon_steps", "learning_rate_decay")
        require_range(self, "in (0, 1]", "learning_rate")
        require_range(self, "in [0, 1]", "discount", "epsilon_start", "epsilon_end")

    def check(self, setup: Setup) -> None:
        require_discrete(setup, "QLearning")
        for leaf in setup.spec.observation:
            if leaf.name == ACTION_MASK:
                raise UnsupportedSpaceError(
                    "QLearning has no action masks. Leave the mask out of the observation (daskrl.envs.ActionMask puts "
                    "it there), or use dqn."
                )
            if leaf.kind not in ("discrete", "multi_discrete"):
                raise UnsupportedSpaceError(
                    f"QLearning has a table of Discrete or MultiDiscrete observations, this environment has "
                    f"{leaf.name}: {leaf.kind}{list(leaf.shape)}. Use dqn, or cut it into bins in a Gymnasium wrapper."
                )
        values = states(setup.spec) * setup.actions
        if values > _LARGEST:
            raise UnsupportedSpaceError(
                f"QLearning: a table of {states(setup.spec):,} states and {setup.actions} actions has {values:,} "
                f"values, at most {_LARGEST:,} are sensible. Use dqn, which sees each number one-hot."
            )
        if setup.frame_stack != 1:
            raise ConfigError(f"frame_stack: QLearning sees one frame, got {setup.frame_stack}. Use dqn for more.")

    def policy(self, setup: Setup) -> Table:
        return Table(setup.spec, self.initial_value)

    def load(self, policy: Table, weights: Weights) -> None:
        policy.values = np.array(weights["q"])

    def epsilon(self, env_steps: int) -> float:
        """The chance of a random action after ``env_steps`` transitions."""
        return linear(self.epsilon_start, self.epsilon_end, self.epsilon_steps, env_steps)

    def act(self, policy: Table, moment: Moment) -> Array:
        q: Array = policy.values[policy.rows(moment.observation)]  # [N, A]
        if moment.greedy:
            first: Array = q.argmax(axis=1)
            return first
        # Of equal values any: a table begins with all of them equal.
        order = moment.random.random(q.shape)
        best = np.where(q == q.max(axis=1, keepdims=True), order, -1).argmax(axis=1)
        explore = moment.random.random(len(q)) < self.epsilon(moment.env_steps)
        anything = moment.random.integers(0, q.shape[1], size=len(q))
        return np.where(explore, anything, best)

    def learner(self, setup: Setup, random: np.random.Generator) -> QLearner:
        return QLearner(self, self.policy(setup))


class QLearner:
    """Learns each round's transitions once and keeps none of them.

    Attributes
    ----------
    visits : updates made of each state and action, ``[S, A]``.
    """

    memory = 0

    def __init__(self, settings: QLearning, table: Table) -> None:
        self.settings, self.table = settings, table
        self.visits = np.zeros(table.values.shape, np.int64)
        self.updates = 0
        self._round: list[Array] = []

    def skip(self, rounds: int) -> None:
        pass

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        streams = [transitions(self.table, fragment) for fragment in fragments]
        # [T, streams x N] in a row: by time, then by stream, then by environment.
        self._round = [np.concatenate(parts, axis=1).ravel() for parts in zip(*streams, strict=True)]

    def learn(self, random: np.random.Generator) -> float:
        """Sutton and Barto (2018), equation 6.8, for each transition in turn; the mean squared TD error."""
        state, action, reward, following, terminated = self._round
        # Each update may read what the one before wrote, so they are made one by one: in Python, on the rows that the
        # round meets, as lists, whose elements are read several times faster than those of an array.
        rows, place = np.unique(np.concatenate([state, following]), return_inverse=True)
        q, visits = self.table.values[rows].tolist(), self.visits[rows].tolist()
        settings = self.settings
        rate, decay, discount = settings.learning_rate, settings.learning_rate_decay, settings.discount
        total = 0.0
        columns = (place[: len(state)], action, reward, place[len(state) :], terminated)
        for s, a, r, s_next, ends in zip(*(column.tolist() for column in columns), strict=True):
            target = r if ends else r + discount * max(q[s_next])
            error = target - q[s][a]
            q[s][a] += error * rate / (1.0 + decay * visits[s][a])
            visits[s][a] += 1
            total += error * error
        self.table.values[rows], self.visits[rows] = q, visits
        self.updates += len(state)
        return total / len(state)

    def weights(self) -> Weights:
        return {"q": self.table.values.copy()}

    def begin_with(self, weights: Weights, others: Mapping[str, Array]) -> None:
        """Begin with another run's values; none counts as updated."""
        self.table.values = np.array(weights["q"])

    def state(self) -> Mapping[str, Array]:
        return {"q": self.table.values.copy(), "visits": self.visits.copy(), "updates": np.array(self.updates)}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.table.values, self.visits = np.array(state["q"]), np.array(state["visits"])
        self.updates = int(state["updates"])


def transitions(table: Table, fragment: Mapping[str, Array]) -> tuple[Array, Array, Array, Array, Array]:
    """Row, action, reward, next row and whether it terminated, of each transition of a fragment: all ``[T, N]``.

    The next row of a transition that terminated is any.
    """
    seen = table.rows(fragment)  # [T + 1, N]
    following = seen[1:].copy()
    truncated = fragment["truncated"] & ~fragment["terminated"]
    if truncated.any():
        # Last observations lie in the order of the fragment's endings: by time, then by environment.
        ended = fragment["terminated"] | fragment["truncated"]
        ending = np.cumsum(ended.ravel()).reshape(ended.shape) - 1
        names = [leaf.name for leaf in table.spec.observation]
        last = table.rows({name: fragment[final_name(name)] for name in names})  # [T * N]
        following[truncated] = last[ending[truncated]]
    leaf = table.spec.one_action
    action = fragment[leaf.name].astype(np.int64) - leaf.start[0]
    return seen[:-1], action, fragment["reward"].astype(np.float64), following, fragment["terminated"]
