"""What an algorithm is: frozen settings that say how to act, and how to make a learner.

`Algorithm` and `Learner` are protocols: an algorithm is any object with these methods, in one file or one
notebook cell, registered nowhere. Nothing here knows a framework; weights are named arrays. What most
algorithms share is in `daskrl.algorithms.replay` (learning from batches of the window) and
`daskrl.algorithms.actor_critic` (learning from each round once), both for torch.

Acting and learning both run again on other machines. So an algorithm draws randomness only from the generators
it is given, and keeps nothing on itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from daskrl.config import Schedule
from daskrl.envs.actions import Action
from daskrl.envs.spaces import Leaf, SpaceSpec
from daskrl.errors import ConfigError, UnsupportedSpaceError
from daskrl.records import Array

Weights = Mapping[str, Array]
"""What decides how a policy acts: name -> array of any shape and number type."""


@dataclass(frozen=True)
class Setup:
    """What a run tells its algorithm.

    Attributes
    ----------
    spec : the leaves of the environment's observation and action.
    schedule : streams, environments, steps of a fragment, lag.
    frame_stack : K, frames in one observation.
    device : where learning computes, ``"cpu"`` or ``"cuda"``. Acting is on the CPU.
    """

    spec: SpaceSpec
    schedule: Schedule
    frame_stack: int = 1
    device: str = "cpu"

    @property
    def action(self) -> Leaf:
        """The leaf of an action that has one; raises `UnsupportedSpaceError` where it has several."""
        return self.spec.one_action

    @property
    def actions(self) -> int:
        """How many actions a discrete space has."""
        return self.action.sizes[0]


@dataclass
class Moment:
    """One step of N environments, as a policy sees it.

    Attributes
    ----------
    observation : leaf name -> ``[N, *leaf]``, or ``[N, K, *leaf]`` under frame stacking. To be read only.
    random : the fragment's own generator; every draw comes from it.
    env_steps : transitions that all streams took before this step; with those of the runs it goes on from, of a member
        of a population.
    greedy : no exploration: an evaluation.
    state : name -> ``[N, *shape]`` float32, the recurrent state where the algorithm has one: zeros at an episode's
        first step. ``act`` writes the next one into these arrays.
    """

    observation: Mapping[str, Array]
    random: np.random.Generator
    env_steps: int = 0
    greedy: bool = False
    state: dict[str, Array] = field(default_factory=dict)


class Learner(Protocol):
    """What learns: it stands at a version of the weights. In the learner's process, called by one thread.

    ``append`` then ``learn``, once for each round and in order. After a restart a new one is made, ``append`` is
    called for the last ``memory`` rounds, then ``restore``; it must then go on to the same bits.

    Also called, where they are there:

    - ``stage(fragments)``: what ``append`` is given instead of a round's fragments. In any thread, also while
      ``append`` or ``learn`` goes on: it may read nothing that they change;
    - ``not_finite()``: names of what is learned and not published that is NaN or infinite; after each ``learn``;
    - ``begin_with(weights, others)``: begin with the weights that another run published (``init`` of `daskrl.train`)
      instead of those drawn; ``others`` is what its `state` held at that version, names that begin with
      ``optimizer.`` left out (except in a population), and empty where its checkpoint is not there. Before the first
      ``skip`` or ``append``; ``weights()`` then returns what was given;
    - ``last_batch()``: name -> array, what the newest update learned from; kept in the store when learning diverged.
    """

    updates: int
    """Gradient updates made so far."""
    memory: int
    """Rounds before the present one that learning may still look at."""

    def skip(self, rounds: int) -> None:
        """Rounds that are not appended when learning goes on from a checkpoint. Before the first ``append``."""

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        """A round is in: the columns of one fragment of every stream, in the streams' order. To be read only."""

    def learn(self, random: np.random.Generator) -> float | None:
        """Make the updates due after the round; their mean loss, or None where none was due."""

    def weights(self) -> Weights:
        """What is published: a copy, or arrays that are not written to again.

        A NaN or infinite number in it stops the run with `DivergedError`, as does such a loss.
        """

    def state(self) -> Mapping[str, Array]:
        """Everything that is not in the replay, for a checkpoint."""

    def restore(self, state: Mapping[str, Array]) -> None:
        """Take back what `state` returned."""


class Algorithm(Protocol):
    """Settings and behaviour of a method. Also read, where they are there:

    - ``columns``: name -> dtype of columns that ``act`` adds to the store, each ``(time, env)``;
    - ``recurrent_state(setup)``: name -> shape of the recurrent state of one environment;
    - ``packages``: distributions whose versions decide what it computes, e.g. ``("tensorflow_cpu", "keras")``; all
      processes of a run must have the same. (torch and NumPy are always among them.)
    - ``window_bytes(setup)``: bytes that what it keeps of the replay takes where the learner computes, to be compared
      with what is free there;
    - ``lag``: the schedule's lag unless one is asked for;
    - ``outputs(policy, observation, state)``: of algorithms that use torch, what ``act`` decides by when it is greedy,
      as a function of tensors: ``{leaf: [N, ...]}``, ``{name: [N, *shape]}`` to ``[N, A]``, of which the largest is
      taken, or actions ``[N, *leaf]``; and the recurrent state after it. For `daskrl.analysis.policies.Policy.module`,
      and to export a policy;
    - ``transitions_per_update(setup)``, else ``batch_size``: what replay ratios are counted with;
    - ``updates_after(env_steps, setup)``: gradient updates due in all once so many transitions, which are whole rounds,
      are in, where the settings decide that: what tells how many rounds a budget in updates takes.
    """

    def check(self, setup: Setup) -> None:
        """Raise `UnsupportedSpaceError` or `ConfigError` unless the run can work. Driver, before anything is made."""

    def policy(self, setup: Setup) -> Any:
        """A new policy; what its weights are does not matter. Any process, any number of times."""

    def load(self, policy: Any, weights: Weights) -> None:
        """Make a policy act with some published weights."""

    def act(self, policy: Any, moment: Moment) -> Action | tuple[Action, Mapping[str, Array]]:
        """Actions ``[N, ...]`` (those of a Discrete counted from 0), and the values of ``columns``, each ``[N]``.

        Where the action space is a Dict or a Tuple of several leaves (``setup.spec.action``), actions are a mapping
        with an array for each, ``{"action.move": [N, ...], "action.fire": [N, ...]}``: the names of the leaves, of
        the store's columns, and of the tensors in ``Batch.action``, which is then a mapping, too. A name too few or
        too many, another shape, floats for integers, or a number that a discrete leaf does not have stops the run
        with a `ConfigError` that names the leaf.

        Actions beyond the bounds of a Box, also of one bounded on one side only, are stored as they are, and given to
        the environment clipped.

        Rollout tasks and evaluations, under ``torch.inference_mode``, once for each step.
        """

    def learner(self, setup: Setup, random: np.random.Generator) -> Learner:
        """A learner at version 0, its first weights drawn from ``random``."""


def recurrent_state(algorithm: object, setup: Setup) -> dict[str, tuple[int, ...]]:
    """The recurrent state of an algorithm, name -> shape; empty where it has none."""
    declared = getattr(algorithm, "recurrent_state", None)
    return {} if declared is None else dict(declared(setup))


def staged(learner: Any, fragments: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
    """What ``append`` is given of a round: what ``stage`` makes of the fragments, where the learner has it."""
    stage = getattr(learner, "stage", None)
    return fragments if stage is None else cast("Sequence[Mapping[str, Array]]", stage(fragments))


def transitions_per_update(algorithm: object, setup: Setup) -> float:
    """Transitions that one gradient update learns from."""
    declared = getattr(algorithm, "transitions_per_update", None)
    return float(getattr(algorithm, "batch_size", 1) if declared is None else declared(setup))


def updates_after(algorithm: object, setup: Setup) -> Callable[[int], int]:
    """Transitions of whole rounds -> gradient updates due in all once they are in.

    Raises
    ------
    ConfigError
        The algorithm does not say: a budget is then in transitions, or counted while it learns.
    """
    declared = getattr(algorithm, "updates_after", None)
    if declared is None:
        raise ConfigError(
            f"updates: {type(algorithm).__name__} does not say how many it makes. Give the class a method "
            "updates_after(env_steps, setup), or ask for transitions."
        )
    return lambda env_steps: int(declared(env_steps, setup))


def settings(algorithm: object) -> dict[str, Any]:
    """The settings of an algorithm by name: a dataclass's fields, and its other public attributes.

    An attribute that a class without ``@dataclass`` adds to a built-in algorithm is one, too. What
    `functools.cached_property` keeps is none, nor are names that begin with ``_``.
    """
    is_dataclass = dataclasses.is_dataclass(algorithm) and not isinstance(algorithm, type)
    fields = [field.name for field in dataclasses.fields(algorithm)] if is_dataclass else []  # type: ignore[arg-type]
    cls = type(algorithm)
    slots = [name for base in cls.__mro__ for name in _slots(base) if hasattr(algorithm, name)]
    others = [
        name
        for name in [*slots, *getattr(algorithm, "__dict__", {})]
        if not name.startswith("_") and not isinstance(getattr(cls, name, None), functools.cached_property)
    ]
    return {name: getattr(algorithm, name) for name in dict.fromkeys([*fields, *others])}


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def linear(start: float, end: float, over: int, at: int) -> float:
    """What falls or rises linearly from ``start`` to ``end`` while ``at`` goes from 0 to ``over``, and stays there."""
    done = min(1.0, at / over) if over else 1.0
    return start + done * (end - start)


def require_discrete(setup: Setup, who: str) -> None:
    """Raise `UnsupportedSpaceError` unless actions are one ``Discrete``."""
    leaves = setup.spec.action
    if len(leaves) != 1 or leaves[0].kind != "discrete":
        raise UnsupportedSpaceError(
            f"{who} acts in a Discrete action space, this environment has {shown(leaves)}. {what_fits(leaves)}"
        )


def require_box(setup: Setup, who: str) -> None:
    """Raise `UnsupportedSpaceError` unless actions are one ``Box`` of floats with finite bounds."""
    leaves = setup.spec.action
    if not is_float_box(leaves) or not leaves[0].low:
        raise UnsupportedSpaceError(
            f"{who} acts in a Box of floats with finite bounds, this environment has {shown(leaves)}. "
            f"{what_fits(leaves)}"
        )


def is_float_box(leaves: Sequence[Leaf]) -> bool:
    """Whether the leaves of an action are one ``Box`` of floats."""
    return len(leaves) == 1 and leaves[0].kind == "box" and np.dtype(leaves[0].dtype).kind == "f"


def what_fits(leaves: Sequence[Leaf]) -> str:
    """The algorithms that act in some action space, or what makes it one in which some do; for messages."""
    if len(leaves) == 1 and leaves[0].kind == "discrete":
        return "Use dqn, c51, qr-dqn, rainbow, r2d2, ppo or impala."
    if not is_float_box(leaves):
        return "Make it one Discrete or one Box of floats in a wrapper (gymnasium.wrappers.TransformAction)."
    if leaves[0].low:
        return "Use sac, td3, ppo or impala, or wrap it so that it has a fixed list of actions."
    return (
        "It has no finite bounds: use ppo or impala, or give it some: gymnasium.wrappers.TransformAction(env, "
        "lambda action: action, gymnasium.spaces.Box(LOW, HIGH))"
    )


def shown(leaves: Sequence[Leaf]) -> str:
    """Leaves as messages name them."""
    return ", ".join(f"{leaf.name}: {leaf.kind}{list(leaf.shape)}" for leaf in leaves)
