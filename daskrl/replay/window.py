"""The window: the newest rounds of the replay in memory, on the learner's device.

Rounds are learned in order and whole, so the window is a grid: one row for each time step of the run, one
*lane* for each environment of each stream, used as a ring. The next observation of row ``t`` is row ``t + 1``;
each frame is held once; n-step returns, and where the frames of its observations are, are worked out once, when a row's
last reward has arrived.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from daskrl.config import Schedule
from daskrl.envs.spaces import Leaf, SpaceSpec, final_name
from daskrl.errors import ConfigError
from daskrl.records import Array

Positions = np.ndarray[Any, np.dtype[np.int64]]
_Where = Any  # Positions on the host, a tensor of them on another device


@dataclass
class Batch:
    """What an algorithm learns from in one update. B transitions, on the learner's device.

    Attributes
    ----------
    observation, next_observation : leaf name -> ``[B, *leaf]``, or ``[B, K, *leaf]`` under frame stacking.
        The next observation is ``n`` steps on, or the last one of an episode that ended before.
    action : ``[B]`` int64, counted from 0, for a discrete space; else ``[B, *leaf]``. A tensor where the action has one
        leaf, else leaf name -> tensor.
    reward : ``[B]`` float32, the discounted sum of up to n rewards.
    discount : ``[B]`` float32, what to multiply the next value with: 0 at termination, else
        ``discount ** steps``; a truncated episode bootstraps.
    weight : ``[B]`` float32 importance weights, or None for uniform sampling.
    positions : ``[B]`` where the transitions are in the window.
    memory : the window's own: what `Window.gather` writes into.
    """

    observation: Mapping[str, torch.Tensor]
    action: Any  # torch.Tensor, or Mapping[str, torch.Tensor]
    reward: torch.Tensor
    discount: torch.Tensor
    next_observation: Mapping[str, torch.Tensor]
    weight: torch.Tensor | None
    positions: Positions
    memory: Mapping[Any, Any] = field(default_factory=dict, repr=False)

    def rows(self, some: slice) -> Batch:
        """Some of its transitions, in the same memory."""
        return Batch(
            {name: value[some] for name, value in self.observation.items()},
            each_leaf(self.action, lambda value: value[some]),
            self.reward[some],
            self.discount[some],
            {name: value[some] for name, value in self.next_observation.items()},
            None if self.weight is None else self.weight[some],
            self.positions[some],
        )


@dataclass
class Steps:
    """Transitions at positions of any shape ``[...]``.

    Attributes
    ----------
    action : ``[...]`` int64, counted from 0, for a discrete space; else ``[..., *leaf]``. As in `Batch`.
    reward, discount : ``[...]`` as in `Batch`, over n steps.
    ended, terminated : ``[...]`` bool, on the host: an episode's last step, and whether it has no value beyond.
    final : ``[...]`` int64, on the host: the position of the last observation, where an episode was truncated.
    """

    action: Any  # torch.Tensor, or Mapping[str, torch.Tensor]
    reward: torch.Tensor
    discount: torch.Tensor
    ended: Array
    terminated: Array
    final: Array


class Staged(list[Mapping[str, Array]]):
    """The fragments of a round, and what is large in them again, where a GPU copies it from by itself.

    Attributes
    ----------
    columns : leaf name -> ``[N or N + 1, lanes, *leaf]``: actions and observations, all streams side by side.
    """

    def __init__(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        super().__init__(fragments)
        self.columns: dict[str, torch.Tensor] = {}


class Window:
    """The last ``capacity`` transitions of a run.

    Parameters
    ----------
    capacity : transitions; rounded down to whole rounds.
    frame_stack : K, frames in one observation.
    n_step, discount : of the n-step return.
    reward_clip : rewards are clipped to ``[-reward_clip, reward_clip]`` here; the store keeps them as they came.
    device : where observations, actions and returns are held.

    Attributes
    ----------
    rows, rounds : that have come so far, of ``lanes`` transitions and of ``fragment_steps`` rows each.
    first : the oldest row that may be sampled. Under frame stacking, older frames must still be there.
    stop : one past the newest row that may be sampled: its n rewards have all arrived.
    """

    def __init__(
        self,
        spec: SpaceSpec,
        schedule: Schedule,
        *,
        capacity: int,
        frame_stack: int = 1,
        n_step: int = 1,
        discount: float = 0.99,
        reward_clip: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_capacity(capacity, n_step, schedule, frame_stack)
        rounds = capacity // schedule.round_steps
        self.spec, self.schedule = spec, schedule
        self.n_step, self.discount, self.frame_stack = n_step, discount, frame_stack
        self.reward_clip = reward_clip
        self.device = torch.device(device)
        self.stages = self.device.type != "cpu"
        self.lanes = schedule.lanes
        self.window_rows = rounds * schedule.fragment_steps
        # One round more than the window: the newest observation lies one row beyond the last transition.
        self.ring_rows = self.window_rows + schedule.fragment_steps
        self.ring = self.ring_rows * self.lanes
        self._arrived(0)

        self._action = {leaf.name: self._zeros((self.ring, *leaf.shape), _action_dtype(leaf)) for leaf in spec.action}
        self._action_start = {leaf.name: leaf.start[0] for leaf in spec.action if leaf.kind == "discrete"}
        self._value = self._zeros((self.ring, 2), torch.float32)  # n-step return, discount: always read together
        # Where in the pool the frames are: of the observation and of the next one, oldest first, each once.
        frames = 1 if frame_stack == 1 else frame_stack + 1 if self._shares_frames else 2 * frame_stack
        self._frames = self._zeros((self.ring, frames), torch.int64)
        # Raw columns stay on the host: what is gathered is worked out with NumPy.
        grid = (self.ring_rows, self.lanes)
        self._reward = np.zeros(grid, np.float32)
        self._terminated = np.zeros(grid, np.bool_)
        self._ended = np.zeros(grid, np.bool_)
        self._final = np.zeros(grid, np.int64)  # pool position of the last observation of an episode ended here
        # The pool: the ring's observations, then a second ring of last observations of truncated episodes.
        self._finals_capacity = max(64, self.lanes)
        self._finals_start, self._finals_count = 0, 0
        self._finals_of_round: deque[int] = deque()
        self._pool = {
            leaf.name: self._zeros((self.ring + self._finals_capacity, *leaf.shape), _torch_dtype(leaf.dtype))
            for leaf in spec.observation
        }
        # Position of the frame before, in the same episode; itself for an episode's first.
        self._previous = np.zeros(self.ring + self._finals_capacity, np.int64)
        self._readers()

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if self.device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        # NumPy asks the kernel for huge pages, torch does not: rows read at random are then found 1.3x faster.
        try:
            return torch.from_numpy(np.zeros(shape, torch.empty(0, dtype=dtype).numpy().dtype))
        except MemoryError as error:
            raise ConfigError(
                f"window: {self.window_rows * self.lanes} transitions do not fit into the memory of the learner's "
                f"machine: {error}. Type: -s window=..., with a smaller number, for a new run."
            ) from error

    def _readers(self) -> None:
        """Make the functions that read rows of each column; again whenever a column was allocated."""
        self._read_value = _reader(self._value)
        self._read_action = _reader_of_leaves({name: _reader(column) for name, column in self._action.items()})
        self._read_pool = {name: _reader(pool) for name, pool in self._pool.items()}

    # -- what may be sampled ------------------------------------------------------------------------------

    def _arrived(self, rounds: int) -> None:
        """Take in that so many rounds have come."""
        self.rounds, self.rows = rounds, rounds * self.schedule.fragment_steps
        oldest = max(0, self.rows - self.window_rows)
        self.first = oldest + (self.frame_stack - 1 if oldest else 0)
        self.stop = max(self.first, self.rows - self.n_step + 1)

    def __len__(self) -> int:
        """How many transitions may be sampled."""
        return (self.stop - self.first) * self.lanes

    def positions(self, index: Positions) -> Positions:
        """Positions of the ``index``-th transitions, counted from the oldest that may be sampled."""
        return (index + self.first * self.lanes) % self.ring

    def positions_of_rows(self, first: int, stop: int) -> Positions:
        """Positions of all transitions of some rows."""
        return np.arange(first * self.lanes, stop * self.lanes, dtype=np.int64) % self.ring

    def skip(self, rounds: int) -> None:
        """Begin as if that many rounds had come and gone."""
        self._arrived(rounds)

    @property
    def observation_bytes(self) -> int:
        """How large the observations of one transition are in a batch."""
        frames = 2 if self.frame_stack == 1 else self._frames.shape[1]
        return frames * sum(pool[0].numel() * pool.element_size() for pool in self._pool.values())

    # -- filling ------------------------------------------------------------------------------------------

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        """Add one round.

        Parameters
        ----------
        fragments : the columns of one fragment of every stream, in the streams' order, each with
            ``episode_step`` ``[N]`` (steps taken in each environment's episode when the fragment began) and
            ``continues`` (False where the environments do not stand where the fragment before left them); or what
            `stage` made of them.
        """
        fragments = self.stage(fragments)
        steps = self.schedule.fragment_steps
        first = self.rows % self.ring_rows
        here = slice(first, first + steps)
        if len(self._finals_of_round) * steps >= self.window_rows:
            self._drop_finals()

        def side_by_side(name: str) -> Array:
            return np.concatenate([fragment[name] for fragment in fragments], axis=1)

        ended_before = self._cut_lanes(fragments)
        terminated, truncated = side_by_side("terminated"), side_by_side("truncated")
        reward = side_by_side("reward")
        if self.reward_clip is not None:
            reward = np.clip(reward, -self.reward_clip, self.reward_clip)
        self._reward[here], self._terminated[here] = reward, terminated
        self._ended[here] = terminated | truncated
        for name, column in self._action.items():
            self._put(column, first, fragments, name, slice(steps))
            if start := self._action_start.get(name):
                self._grid(column)[here] -= start

        begins = np.empty((steps + 1, self.lanes), np.bool_)  # rows whose observation is an episode's first
        begins[0] = np.concatenate([np.asarray(fragment["episode_step"]) for fragment in fragments]) == 0
        begins[0] |= ended_before
        begins[1:] = self._ended[here]
        head = (first + steps) % self.ring_rows
        for name, pool in self._pool.items():
            self._put(pool, first, fragments, name, slice(steps))
            self._put(pool, head, fragments, name, slice(steps, None))
        self._link(first, begins[:steps])
        self._link(head, begins[steps:])

        self._add_finals(first, fragments, truncated & ~terminated)
        self._arrived(self.rounds + 1)
        oldest = max(self.rows - steps - self.n_step, self.rows - self.window_rows, 0)
        self._returns(oldest, self.rows - self.n_step + 1)

    def _grid(self, column: torch.Tensor) -> torch.Tensor:
        """A column as ``[ring_rows, lanes, *leaf]``, without the last observations behind the ring."""
        return column[: self.ring].view(self.ring_rows, self.lanes, *column.shape[1:])

    def stage(self, fragments: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
        """What `append` may be given instead, so that it need not copy on the host. In any thread.

        On the CPU that is the fragments themselves: they are copied once, to where they are sampled.
        """
        if isinstance(fragments, Staged) or not self.stages:
            return fragments
        staged = Staged(fragments)
        for name, column in (*self._action.items(), *self._pool.items()):
            streams = self._streams(fragments, name)
            staged.columns[name] = _pinned((len(streams[0]), self.lanes, *column.shape[1:]), column.dtype)
            _beside(streams, staged.columns[name].numpy())
        return staged

    def _streams(self, fragments: Sequence[Mapping[str, Array]], name: str) -> list[Array]:
        """Of every stream, the rows of a column that are new; of observations one more."""
        older = 0 if name in self._action else self.frame_stack - 1
        return [fragment[name][older:] for fragment in fragments]

    def _put(
        self, column: torch.Tensor, first: int, fragments: Sequence[Mapping[str, Array]], name: str, rows: slice
    ) -> None:
        """Write some rows of a round into a column, from its row ``first`` on."""
        if isinstance(fragments, Staged):
            staged = fragments.columns[name][rows]
            self._grid(column)[first : first + len(staged)].copy_(staged, non_blocking=True)  # kept until it was copied
        else:
            streams = [stream[rows] for stream in self._streams(fragments, name)]
            _beside(streams, self._grid(column)[first : first + len(streams[0])].numpy())

    def _link(self, first: int, begins: Array) -> None:
        if self.frame_stack == 1:
            return
        here = np.arange(first * self.lanes, first * self.lanes + begins.size, dtype=np.int64)
        self._previous[here[0] : here[0] + len(here)] = np.where(begins.ravel(), here, (here - self.lanes) % self.ring)

    def _drop_finals(self) -> None:
        # One round leaves the ring with each that comes; so do the last observations it had.
        gone = self._finals_of_round.popleft()
        self._finals_start = (self._finals_start + gone) % self._finals_capacity
        self._finals_count -= gone

    def _add_finals(self, first: int, fragments: Sequence[Mapping[str, Array]], truncated: Array) -> None:
        # In a fragment, final observations lie in the order of its endings: by time, then by environment.
        per_stream = self.schedule.envs_per_stream
        added = 0
        for stream, fragment in enumerate(fragments):
            lanes = slice(stream * per_stream, (stream + 1) * per_stream)
            wanted = truncated[:, lanes]
            if not wanted.any():
                continue
            ended = fragment["terminated"] | fragment["truncated"]
            order = np.cumsum(ended.ravel()).reshape(ended.shape) - 1
            time, env = np.nonzero(wanted)
            rows = {name: fragment[final_name(name)][order[time, env]] for name in self._pool}
            self._store_finals(first + time, stream * per_stream + env, rows)
            added += len(time)
        self._finals_of_round.append(added)

    def _store_finals(self, rows: Array, lanes: Array, values: Mapping[str, Array]) -> None:
        count = len(rows)
        while self._finals_count + count > self._finals_capacity:
            self._grow_finals()
        slots = (self._finals_start + self._finals_count + np.arange(count)) % self._finals_capacity
        where = to_device(self.ring + slots, self.device)
        for name, pool in self._pool.items():
            pool[where] = to_device(np.ascontiguousarray(values[name]), self.device).to(pool.dtype)
        self._final[rows, lanes] = self.ring + slots
        self._previous[self.ring + slots] = rows * self.lanes + lanes
        self._finals_count += count

    def _grow_finals(self) -> None:
        old, new = self._finals_capacity, 2 * self._finals_capacity
        order = (self._finals_start + np.arange(old)) % old
        moved = np.empty(old, np.int64)
        moved[order] = np.arange(old)
        source = to_device(self.ring + order, self.device)

        def grown(column: torch.Tensor) -> torch.Tensor:
            larger = self._zeros((self.ring + new, *column.shape[1:]), column.dtype)
            larger[: self.ring] = column[: self.ring]
            larger[self.ring : self.ring + old] = column[source]
            return larger

        self._pool = {name: grown(pool) for name, pool in self._pool.items()}
        ring, finals = np.split(self._previous, [self.ring])
        self._previous = np.concatenate([ring, finals[order], np.zeros(new - old, np.int64)])
        where = self._final >= self.ring
        self._final[where] = self.ring + moved[self._final[where] - self.ring]
        last, table = self._frames >= self.ring, to_device(self.ring + moved, self.device)
        self._frames[last] = table[self._frames[last] - self.ring]
        self._finals_capacity, self._finals_start = new, 0
        self._readers()

    def _cut_lanes(self, fragments: Sequence[Mapping[str, Array]]) -> Array:
        """Where a fragment does not continue the one before, end those episodes as truncated."""
        per_stream = self.schedule.envs_per_stream
        cut = np.repeat([not bool(fragment.get("continues", True)) for fragment in fragments], per_stream)
        if self.rows == 0 or not cut.any():
            return np.zeros(self.lanes, np.bool_)
        if not self._finals_of_round:
            return cut  # the row before is not in the window
        last, head = (self.rows - 1) % self.ring_rows, self.rows % self.ring_rows
        open_ = np.flatnonzero(cut & ~self._ended[last])
        where = to_device(head * self.lanes + open_, self.device)
        values = {name: pool[where].cpu().numpy() for name, pool in self._pool.items()}
        self._store_finals(np.full(len(open_), last), open_, values)
        self._finals_of_round[-1] += len(open_)
        self._ended[last, open_] = True
        return cut

    def _returns(self, first: int, stop: int) -> None:
        """Work out the n-step return of rows ``[first, stop)``; all their rewards have arrived.

        ``G = sum_{k<m} discount**k r_{t+k}`` with ``m = n``, or fewer where the episode ends (Sutton and
        Barto 2018, equation 7.1).
        """
        if stop <= first:
            return
        count = stop - first
        shape = (count, self.lanes)
        returns, discount = np.zeros(shape, np.float32), np.empty(shape, np.float32)
        ahead = np.arange(first + self.n_step, stop + self.n_step) % self.ring_rows
        following = ahead[:, None] * self.lanes + np.arange(self.lanes)
        alive = np.ones(shape, np.bool_)
        for k in range(self.n_step):
            reward, ended, terminated = (
                self._span(column, first + k, count) for column in (self._reward, self._ended, self._terminated)
            )
            returns += np.where(alive, np.float32(self.discount**k) * reward, np.float32(0))
            ends = alive & ended
            if ends.any():
                stops = terminated & ends
                goes_on = ends & ~stops
                discount[ends] = np.float32(self.discount ** (k + 1))
                discount[stops] = 0
                following[goes_on] = self._span(self._final, first + k, count)[goes_on]
                row, lane = np.nonzero(stops)
                following[row, lane] = (first + k + row) % self.ring_rows * self.lanes + lane  # of no use: discount 0
                alive &= ~ends
        discount[alive] = np.float32(self.discount**self.n_step)
        self._write(self._value, first, np.stack([returns, discount], axis=2))
        self._write(self._frames, first, np.stack(self._frames_of(first, following), axis=2))

    def _frames_of(self, first: int, following: Positions) -> list[Positions]:
        """Where the frames are, each ``[rows, lanes]``, of rows from ``first`` on and of the observations following."""
        if self.frame_stack == 1:
            return [following]
        rows = np.arange(first, first + len(following)) % self.ring_rows
        own = self._stack(rows[:, None] * self.lanes + np.arange(self.lanes))
        return [*own, following] if self._shares_frames else [*own, *self._stack(following)]

    def _span(self, grid: Array, first: int, count: int) -> Array:
        """Some rows of a ``[ring_rows, ...]`` column, a view of it unless they go round its end."""
        begin = first % self.ring_rows
        if begin + count <= self.ring_rows:
            return grid[begin : begin + count]
        return np.concatenate([grid[begin:], grid[: begin + count - self.ring_rows]])

    def _write(self, column: torch.Tensor, first: int, rows: Array) -> None:
        """Write some rows into a column, which may go round its end."""
        grid, begin = self._grid(column), first % self.ring_rows
        before_end = min(len(rows), self.ring_rows - begin)
        for at, part in ((begin, rows[:before_end]), (0, rows[before_end:])):
            grid[at : at + len(part)].copy_(to_device(part, self.device))

    # -- sampling -----------------------------------------------------------------------------------------

    def gather(self, positions: Positions, weight: Array | None = None, out: Batch | None = None) -> Batch:
        """The transitions at some positions, copied.

        Parameters
        ----------
        out : an earlier batch of the same size whose tensors are written over and returned; fresh ones cost as
            much again as the copying.
        """
        where: Any = positions if self.device.type == "cpu" else to_device(positions, self.device)
        batch = self._empty(len(positions)) if out is None else out
        into = batch.memory
        self._read_action(where, into["action"])
        self._read_value(where, into["value"])
        for kind, frames in self._frames_at(where):
            for name, read in self._read_pool.items():
                read(frames, into[kind, name])
        if weight is None:
            batch.weight = None
        elif batch.weight is None:
            batch.weight = torch.tensor(weight, device=self.device)
        else:
            batch.weight.copy_(to_device(weight, self.device))
        batch.positions = positions
        return batch

    def observations(self, positions: Array) -> dict[str, torch.Tensor]:
        """The observations at some positions, ``[*positions, *leaf]`` or ``[*positions, K, *leaf]``; last ones too."""
        where, lead = positions.ravel(), positions.shape
        if self.frame_stack > 1:
            where, lead = np.stack(self._stack(where), 1).ravel(), (*lead, self.frame_stack)
        index = to_device(where, self.device)
        return {name: pool.index_select(0, index).view(*lead, *pool.shape[1:]) for name, pool in self._pool.items()}

    def steps(self, positions: Array) -> Steps:
        """What happened at some positions, and where their endings are kept."""
        row, lane = np.divmod(positions, self.lanes)
        where = to_device(positions.ravel(), self.device)

        def at(column: torch.Tensor) -> torch.Tensor:
            return column.index_select(0, where).view(*positions.shape, *column.shape[1:])

        value = at(self._value)
        return Steps(
            action=_of_leaves({name: at(column) for name, column in self._action.items()}),
            reward=value[..., 0],
            discount=value[..., 1],
            ended=self._ended[row, lane],
            terminated=self._terminated[row, lane],
            final=self._final[row, lane],
        )

    def _frames_at(self, where: _Where) -> list[tuple[str, _Where]]:
        """Where in the pool the frames are that make the observations of some transitions, by what they make."""
        frames = _rows(self._frames, where)
        if self.frame_stack == 1:
            return [("observation", where), ("next_observation", frames.ravel())]
        if self._shares_frames:
            return [("both", frames.ravel())]
        own, following = frames[:, : self.frame_stack], frames[:, self.frame_stack :]
        return [("observation", own.ravel()), ("next_observation", following.ravel())]

    def _stack(self, where: Positions) -> list[Positions]:
        """Where the K frames of some observations are, the oldest first."""
        frames = [where]
        for _ in range(self.frame_stack - 1):
            frames.append(self._previous[frames[-1]])
        return frames[::-1]

    @property
    def _shares_frames(self) -> bool:
        # One step on, all frames but the newest are the same: K + 1 are copied instead of 2 K. (Not so after a
        # termination, where nothing follows: the discount is 0, and the next observation has no meaning.)
        return self.frame_stack > 1 and self.n_step == 1

    def _empty(self, size: int) -> Batch:
        """A batch to be written into."""
        memory: dict[Any, Any] = {}

        def rows(key: Any, column: torch.Tensor, frames: int = 1) -> torch.Tensor:
            made = column.new_empty((size * frames, *column.shape[1:]))
            memory[key] = made.numpy() if made.device.type == "cpu" else _words(made)
            return made if frames == 1 else made.view(size, frames, *column.shape[1:])

        value = rows("value", self._value)
        action = _of_leaves({name: rows(("action", name), column) for name, column in self._action.items()})
        memory["action"] = _of_leaves({name: memory.pop(("action", name)) for name in self._action})
        if self._shares_frames:
            both = {name: rows(("both", name), pool, self.frame_stack + 1) for name, pool in self._pool.items()}
            observation = {name: frames[:, :-1] for name, frames in both.items()}
            following = {name: frames[:, 1:] for name, frames in both.items()}
        else:
            observation, following = (
                {name: rows((kind, name), pool, self.frame_stack) for name, pool in self._pool.items()}
                for kind in ("observation", "next_observation")
            )
        nowhere = np.empty(0, np.int64)
        return Batch(observation, action, value[:, 0], value[:, 1], following, None, nowhere, memory)


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def _beside(streams: Sequence[Array], into: Array) -> None:
    """Copy the rows of every stream side by side."""
    lane = 0
    for rows in streams:
        into[:, lane : lane + rows.shape[1]] = rows
        lane += rows.shape[1]


def _reader(column: torch.Tensor) -> Callable[[_Where, Any], object]:
    """A function that copies some rows of a column. On the host NumPy does it, in half of torch's time."""
    if column.device.type != "cpu":
        words = _words(column)
        return lambda where, out: torch.index_select(words, 0, where, out=out)
    take = column.numpy().take
    # No position is ever outside; with mode "raise" NumPy would fill a copy of ``out`` first.
    return lambda where, out: take(where, 0, out, "clip")


def _words(rows: torch.Tensor) -> torch.Tensor:
    """The same memory, each row as words of 8 bytes if it can be: a GPU copies words, not bytes, one by one."""
    if rows.dim() < 2 or rows[0].numel() * rows.element_size() % 8:
        return rows
    return rows.view(len(rows), -1).view(torch.int64)


def _rows(column: torch.Tensor, where: _Where) -> _Where:
    """Some rows of a column of positions, as positions are held: an array on the host, a tensor elsewhere."""
    if column.device.type == "cpu":
        return column.numpy().take(where, 0)
    return column.index_select(0, where)


def needed_bytes(spec: SpaceSpec, schedule: Schedule, *, capacity: int, frame_stack: int = 1, n_step: int = 1) -> int:
    """Bytes that a `Window` of these settings takes once it is full, with room for the first few last observations."""
    rows = capacity // schedule.round_steps * schedule.fragment_steps + schedule.fragment_steps
    ring, finals = rows * schedule.lanes, max(64, schedule.lanes)

    def size(leaf: Leaf, dtype: torch.dtype) -> int:
        return math.prod(leaf.shape) * dtype.itemsize

    frames = 1 if frame_stack == 1 else frame_stack + 1 if n_step == 1 else 2 * frame_stack
    transition = sum(size(leaf, _action_dtype(leaf)) for leaf in spec.action)
    transition += 2 * 4 + 8 * frames + 4 + 1 + 1 + 8  # of value, frames, reward, terminated, ended and final
    observation = sum(size(leaf, _torch_dtype(leaf.dtype)) for leaf in spec.observation) + 8  # and previous
    return ring * transition + (ring + finals) * observation


def check_capacity(capacity: int, n_step: int, schedule: Schedule, frame_stack: int = 1) -> None:
    """Raise `ConfigError` unless a window of ``capacity`` transitions can be sampled."""
    rounds = capacity // schedule.round_steps
    if rounds < 1:
        raise ConfigError(
            f"window: expected at least one round ({schedule.round_steps} transitions = streams x "
            f"envs_per_stream x fragment_steps), got {capacity}."
        )
    if n_step > schedule.fragment_steps * rounds:
        raise ConfigError(f"n_step: {n_step} steps do not fit a window of {capacity} transitions.")
    if n_step + frame_stack - 1 > schedule.fragment_steps * rounds:
        raise ConfigError(
            f"window: {capacity} transitions are {schedule.fragment_steps * rounds} steps of each environment, too "
            f"few for {n_step} steps behind {frame_stack} stacked frames."
        )


def each_leaf(action: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """A function of the tensor of an action with one leaf, or of each of several, by name."""
    if isinstance(action, Mapping):
        return {name: function(value) for name, value in action.items()}
    return function(action)


def _of_leaves(parts: dict[str, Any]) -> Any:
    """An action as algorithms see it: what there is of each leaf by name; where it has one leaf, that itself."""
    return parts if len(parts) > 1 else next(iter(parts.values()))


def _reader_of_leaves(readers: Mapping[str, Callable[[_Where, Any], object]]) -> Callable[[_Where, Any], object]:
    """A function that copies some rows of an action: with one leaf its own reader, which is called for every batch."""
    if len(readers) == 1:
        return next(iter(readers.values()))

    def read(where: _Where, out: Mapping[str, Any]) -> None:
        for name, leaf in readers.items():
            leaf(where, out[name])

    return read


def action_columns(action: Any) -> dict[str, torch.Tensor]:
    """The tensors of an action by the name of a column: ``action``, or those of its leaves."""
    return dict(action) if isinstance(action, Mapping) else {"action": action}


def _action_dtype(leaf: Leaf) -> torch.dtype:
    return torch.int64 if leaf.kind == "discrete" else _torch_dtype(leaf.dtype)


def _torch_dtype(name: str) -> torch.dtype:
    wider = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}.get(name, name)
    dtype: torch.dtype = getattr(torch, wider)
    return dtype


def to_device(array: Array, device: torch.device | str) -> torch.Tensor:
    """An array as a tensor. A GPU gets a copy of what is in it now, and does not finish its work first.

    On the CPU it is the array's own memory.
    """
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # torch keeps pinned memory until it was copied
