"""Policies to be used elsewhere: what a run learned, acting on observations as its environment gives them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from daskrl import seeding
from daskrl.algorithms.base import Algorithm, Moment, Setup, Weights, recurrent_state, shown
from daskrl.arithmetic import aligned_all, pinned, undrawn
from daskrl.config import plain
from daskrl.envs import source as sources
from daskrl.envs.actions import Action, require_fits
from daskrl.envs.spaces import Leaf, assembler, by_leaf, value_at
from daskrl.envs.stream import unstacked
from daskrl.envs.values import RefusedError, as_stored
from daskrl.errors import ConfigError
from daskrl.identity import same_algorithm, same_environment
from daskrl.names import suggests
from daskrl.records import Array
from daskrl.shown import html_table
from daskrl.store.storage import Storage
from daskrl.store.store import Store
from daskrl.store.weights import belongs_to

if TYPE_CHECKING:
    from daskrl.algorithms.greedy import GreedyModule
    from daskrl.analysis.export import Exported

Bounds = tuple[Array, Array]


@dataclass(frozen=True)
class PolicyState:
    """What a policy remembers of an episode. Given back to `Policy.predict` with the next observation.

    Attributes
    ----------
    frames : leaf -> ``[N, K, *leaf]``, the newest frames under frame stacking; else empty.
    recurrent : name -> ``[N, *shape]`` float32, of an LSTM; else empty.
    """

    frames: Mapping[str, Array]
    recurrent: Mapping[str, Array]


class Policy:
    """One version of a run's weights, to act with: made by `daskrl.Store.policy`.

    Attributes
    ----------
    algorithm, setup : the run's.
    weights : name -> array.
    weights_version : which version they are.
    about : what the weights belong to, as it stands in their file: name -> text, some of it JSON (see FORMAT.md).
    bounds : ``(low, high)`` of the action's Box, or None; of an action with several leaves that of each, by name.
    network : what the algorithm's ``policy`` made, with the weights; of torch's algorithms a ``torch.nn.Module``.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        setup: Setup,
        weights: Weights,
        *,
        weights_version: int,
        about: Mapping[str, str],
        bounds: Bounds | Mapping[str, Bounds | None] | None,
        seen: Callable[[int], dict[str, Array]] | None = None,
    ) -> None:
        self.algorithm, self.setup, self.weights = algorithm, setup, aligned_all(weights)
        self.weights_version, self.about, self.bounds = weights_version, dict(about), bounds
        with pinned(), undrawn():
            self.network = algorithm.policy(setup)
            algorithm.load(self.network, self.weights)
        self._recurrent = recurrent_state(algorithm, setup)
        self._seen = seen

    # -- acting -------------------------------------------------------------------------------------------

    def predict(
        self,
        observation: Any,
        state: PolicyState | None = None,
        *,
        episode_start: Any = None,
        deterministic: bool = True,
        random: np.random.Generator | None = None,
    ) -> tuple[Any, PolicyState | None]:
        """What to do, as in the evaluations of the run, whatever torch's switches.

        Parameters
        ----------
        observation : one as the environment gives it, or several with a leading axis, each array of a Dict or Tuple
            with its own. Frames are stacked here: give the newest alone.
        state : what came with the action before; None at an episode's first step.
        episode_start : ``[N]``, or one bool: whose state is forgotten because an episode begins.
        deterministic : with False, explore as the run did with these weights; needs ``random``.
        random : where exploration draws its numbers from.

        Returns
        -------
        action : as the environment takes it: of Discrete an ``np.int64`` from the space's start on, of a Box an array
            within its bounds, of a Dict or Tuple one of these; of several observations each array has a leading axis.
        state : to be given with the next observation; None where the policy needs none.

        Raises
        ------
        ConfigError
            The observation is not one of the run's space, or the state is of another number of observations.
        """
        if not deterministic and random is None:
            raise ConfigError(
                "deterministic=False draws numbers. Type: predict(..., deterministic=False, "
                "random=np.random.default_rng(seed)), with one generator for all steps."
            )
        if random is not None and not isinstance(random, np.random.Generator):
            raise ConfigError(f"random: expected a generator, e.g. np.random.default_rng(seed), got {random!r:.200}.")
        import torch

        newest, many = self._rows(observation)
        frames, recurrent = self._begun(newest, state, episode_start)
        frames, recurrent = aligned_all(frames), aligned_all(recurrent)
        moment = Moment(
            aligned_all(unstacked(frames, self.setup.frame_stack)),
            seeding.generator(1, "evaluate") if random is None else random,
            env_steps=self.weights_version * self.setup.schedule.round_steps,
            greedy=deterministic,
            state=recurrent,
        )
        with pinned(), torch.inference_mode():
            chosen = self.algorithm.act(self.network, moment)
        after = None
        if self.setup.frame_stack > 1 or recurrent:
            after = PolicyState(frames if self.setup.frame_stack > 1 else {}, recurrent)
        chosen = chosen[0] if isinstance(chosen, tuple) else chosen
        return self._action(chosen, len(next(iter(newest.values()))), many), after

    def _rows(self, observation: Any) -> tuple[dict[str, Array], bool]:
        """Leaf -> ``[N, *leaf]`` as it is stored, and whether several observations were given."""
        rows: dict[str, Array] = {}
        counts = set()
        for leaf in self.setup.spec.observation:
            try:
                value = np.asarray(value_at(observation, leaf))
            except (LookupError, TypeError, ValueError):
                raise ConfigError(
                    f"observation: {leaf.name} is missing or no array in {observation!r:.200}. Expected "
                    f"{self._expected()}."
                ) from None
            several = value.ndim == len(leaf.shape) + 1
            try:
                found = [as_stored(leaf, one) for one in (value if several else [value])]
            except RefusedError as error:
                raise ConfigError(f"observation: {error}. Expected {self._expected()}.") from None
            counts.add(len(found) if several else None)
            rows[leaf.name] = np.array(found, leaf.dtype).reshape(len(found), *leaf.shape)
        if len(counts) > 1 or 0 in counts:
            raise ConfigError(
                f"observation: expected one, or several with the same leading axis for each of {', '.join(rows)}, got "
                f"{sorted('none' if count is None else str(count) for count in counts)} rows."
            )
        return rows, counts != {None}

    def _expected(self) -> str:
        return f"{shown(self.setup.spec.observation)}, or several of it with a leading axis"

    def _begun(
        self, newest: dict[str, Array], state: PolicyState | None, episode_start: Any
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Frames with the newest pushed, and recurrent states, both new arrays."""
        count, depth = len(next(iter(newest.values()))), self.setup.frame_stack
        begins = np.full(count, state is None)
        if episode_start is not None:
            starts = np.asarray(episode_start)
            if starts.dtype != np.bool_ or starts.shape not in ((), (count,)):
                raise ConfigError(
                    f"episode_start: expected a bool, or {count} of them, one for each observation; got "
                    f"{episode_start!r:.200}."
                )
            begins |= starts
        frames = {name: np.repeat(rows[:, None], depth, axis=1) for name, rows in newest.items()}
        recurrent = {name: np.zeros((count, *shape), np.float32) for name, shape in self._recurrent.items()}
        if state is None:
            return frames, recurrent
        if not isinstance(state, PolicyState):
            raise ConfigError(
                f"state: expected None at an episode's first step, else what came with the action before it, a "
                f"PolicyState; got {state!r:.200}."
            )
        for given, made in ((state.frames, frames if depth > 1 else {}), (state.recurrent, recurrent)):
            if {name: x.shape for name, x in given.items()} != {name: x.shape for name, x in made.items()}:
                raise ConfigError(
                    f"state: expected that of {count} observations of this policy, got one of "
                    f"{ {name: x.shape for name, x in given.items()} }. Give what came with their last actions."
                )
        for name, given_frames in state.frames.items():
            frames[name][~begins, :-1] = given_frames[~begins, 1:]
        for name, before in state.recurrent.items():
            recurrent[name][~begins] = before[~begins]
        return frames, recurrent

    def taken(self, chosen: Action) -> Action:
        """What an algorithm chose, see `daskrl.Algorithm.act`, in the numbers that the environment takes."""
        leaves = self.setup.spec.action
        both = zip(by_leaf(leaves, chosen), by_leaf(leaves, self.bounds), strict=True)
        taken = {leaf.name: _taken(leaf, values, bounds) for (leaf, values), (_, bounds) in both}
        return taken if len(taken) > 1 else taken[leaves[0].name]

    def _action(self, chosen: Action, count: int, many: bool) -> Any:
        leaves = self.setup.spec.action
        if len(leaves) > 1:
            require_fits(leaves, chosen, count)
        taken = by_leaf(leaves, self.taken(chosen))
        return assembler(leaves)([values if many else values[0] for _, values in taken])

    # -- elsewhere ----------------------------------------------------------------------------------------

    @functools.cached_property
    def module(self) -> GreedyModule:
        """The greedy policy as a ``torch.nn.Module`` of tensors; see `daskrl.algorithms.greedy.GreedyModule`.

        Raises
        ------
        ConfigError
            The algorithm does not use torch, or has no method ``outputs``; or the action has several leaves.
        """
        from torch import nn

        if len(self.setup.spec.action) > 1:
            raise ConfigError(
                f"expected an action of one leaf, to be given as one tensor; this run's are "
                f"{shown(self.setup.spec.action)}. Use predict(), or policy.network itself, or export the weights "
                "alone: --format safetensors."
            )
        from daskrl.algorithms.greedy import GreedyModule

        name = type(self.algorithm).__name__
        if not isinstance(self.network, nn.Module):
            raise ConfigError(
                f"{name} acts by a {type(self.network).__name__}, no torch.nn.Module. Use predict(), or policy.network "
                "itself; its weights can be exported: --format safetensors."
            )
        if not callable(getattr(self.algorithm, "outputs", None)):
            raise ConfigError(
                f"{name} has no method outputs(policy, observation, state), which says what it decides by when it is "
                "greedy; see daskrl.Algorithm. Write one, use predict() or policy.network itself, or export its "
                "weights alone: --format safetensors."
            )
        return GreedyModule(self.algorithm, self.network, self.setup, list(self._recurrent))

    def export(self, path: str | os.PathLike[str], format: str | None = None) -> Exported:
        """Write the policy to a file for ONNX Runtime or for torch without daskrl, or its weights alone."""
        from daskrl.analysis.export import export

        return export(self, Path(path), format)

    def seen(self, count: int) -> dict[str, Array]:
        """Observations that the run stored, as networks see them: leaf -> ``[N, (K,) *leaf]``, at most ``count``.

        Where there are none, zeros.
        """
        found = {} if self._seen is None else self._seen(count)
        if found:
            return found
        depth = () if self.setup.frame_stack == 1 else (self.setup.frame_stack,)
        return {leaf.name: _least(leaf, (1, *depth)) for leaf in self.setup.spec.observation}

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The recurrent state of one environment, name -> shape."""
        return dict(self._recurrent)

    def _what(self) -> dict[str, Any]:
        return {
            "algorithm": type(self.algorithm).__name__,
            "weights_version": self.weights_version,
            "observation": shown(self.setup.spec.observation),
            "action": shown(self.setup.spec.action),
            "frame_stack": self.setup.frame_stack,
            "recurrent": ", ".join(self._recurrent) or "no",
        }

    def __repr__(self) -> str:
        return f"<Policy: {', '.join(f'{name} {value}' for name, value in self._what().items())}>"

    def _repr_html_(self) -> str:
        return html_table("policy", self._what())


def _taken(leaf: Leaf, chosen: Array, bounds: Bounds | None) -> Array:
    if leaf.kind == "discrete":
        return chosen.astype(np.int64) + leaf.start[0]
    action = chosen.astype(leaf.dtype)
    return action if bounds is None else np.clip(action, *bounds)


def _least(leaf: Leaf, lead: tuple[int, ...]) -> Array:
    least = np.zeros(leaf.shape, leaf.dtype)
    if leaf.start:
        least = np.reshape(leaf.start, leaf.shape).astype(leaf.dtype)
    return np.broadcast_to(least, (*lead, *leaf.shape)).copy()


@suggests
def policy(
    store: Store,
    version: int | str | None = None,
    *,
    env: str | sources.EnvironmentFactory | None = None,
    algorithm: Algorithm | None = None,
) -> Policy:
    """One version of the weights, to act with: `Policy`.

    Parameters
    ----------
    version : the newest kept by default, with a warning where a newer one was published; ``"best"`` is that of
        `Store.best`.
    env : again the callable the run was made with; only needed where the action's Box is not bounded on all sides, for
        its bounds.
    algorithm : again the instance the run was made with, where not built in.

    Raises
    ------
    ConfigError
        The version is not kept.
    StoreMismatchError
        Another environment or algorithm than the run's.
    """
    algorithm = same_algorithm(store, algorithm)
    found, weights = store.weights(plain(version))
    setup = Setup(store.spec, store.config.schedule, store.config.frame_stack)
    return Policy(
        algorithm,
        setup,
        weights,
        weights_version=found,
        about=belongs_to(store.config, store.spec, store.run_id, found),
        bounds=_bounds(store, env),
        seen=functools.partial(_stored, store.storage),
    )


def _bounds(store: Store, env: Any) -> Bounds | dict[str, Bounds | None] | None:
    """Of each Box of the action, as the environment's space has them; None where there are none."""
    leaves = store.spec.action
    found: dict[str, Bounds | None] = dict.fromkeys(leaf.name for leaf in leaves)
    for leaf in leaves:
        if leaf.low:
            low, high = (np.array(bound, leaf.dtype).reshape(leaf.shape) for bound in (leaf.low, leaf.high))
            found[leaf.name] = low, high
    unsaid = [leaf for leaf in leaves if leaf.kind == "box" and not leaf.low]
    if unsaid:
        made = same_environment(store, env).factory()
        try:
            whole = made.action_space
        finally:
            made.close()
        for leaf in unsaid:
            space = value_at(whole, leaf)
            assert isinstance(space, gymnasium.spaces.Box)
            if space.bounded_below.any() or space.bounded_above.any():
                found[leaf.name] = space.low, space.high
    return found if len(leaves) > 1 else found[leaves[0].name]


def _stored(storage: Storage, count: int) -> dict[str, Array]:
    """Observations out of the newest fragment of a store, spread over its steps."""
    store = Store.open(storage)
    progress = store.progress()
    if not progress.slots:
        return {}
    record = store.layout.find([progress.slots - 1], progress.commits)[progress.slots - 1]
    depth, names = store.config.frame_stack, tuple(leaf.name for leaf in store.spec.observation)
    columns = store.read(record, names)
    steps, lanes = columns[names[0]].shape[0] - depth + 1, columns[names[0]].shape[1]
    places = np.unique(np.linspace(0, steps * lanes - 1, num=count).astype(int))
    found = {}
    for name in names:
        column = columns[name]
        stacks = [column[p // lanes : p // lanes + depth, p % lanes] for p in places]
        found[name] = np.array(stacks) if depth > 1 else np.array(stacks)[:, 0]
    return found


Store.policy = policy  # here, as the store knows no algorithms
