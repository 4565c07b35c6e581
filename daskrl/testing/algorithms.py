"""Tests that an algorithm of your own inherits: it learns, and it keeps the promise.

In a file that pytest collects::

    import daskrl.testing
    from mine import Mine

    class TestMine(daskrl.testing.AlgorithmTests):
        def make(self):
            return Mine(learning_starts=200)  # settings with which the toy is learned in ``env_steps``

    class TestMineWithContinuousActions(daskrl.testing.AlgorithmTests):
        env, env_steps, score = daskrl.testing.Reach, 6000, -1.5  # or "CartPole-v1", 20_000, 150.0
        ...

The suite needs no pytest: each method takes no arguments and raises AssertionError, so that a method can be called in
a debugger, and all of them in a notebook: ``TestMine().run()``.

The toys are `Corridor` for discrete actions, the default, and `Reach` for continuous ones.
"""

from __future__ import annotations

import functools
import inspect
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import cloudpickle
import gymnasium
import numpy as np
from gymnasium import spaces

from daskrl import seeding
from daskrl.algorithms.base import Algorithm, Learner, Moment, Setup, Weights, recurrent_state, settings, staged
from daskrl.analysis.evaluate import evaluate
from daskrl.arithmetic import pinned
from daskrl.config import Options, Schedule
from daskrl.envs import stream as envs
from daskrl.envs.actions import Action
from daskrl.envs.source import source
from daskrl.envs.spaces import Leaf, by_leaf
from daskrl.records import Array
from daskrl.run import Run, resume, train
from daskrl.tasks import session
from daskrl.testing.faults import FillDisk, Kill, Partition, Slow, Stop  # noqa: F401
from daskrl.testing.harm import ChaosReport, Harm, chaos, plan_of_kills  # noqa: F401


class Corridor(gymnasium.Env[Any, Any]):
    """Seven cells, a prize at one end and a trap at the other; the observation says where one is and where the prize.

    Actions are left, stay and right. Begins in one of the three cells in the middle. The prize is worth 1, the trap
    -1, each step costs 0.01; cut after 20 steps. The best mean return is 0.97, that of chance about -0.2.

    Parameters
    ----------
    numbered : the observation is one number below 14, for algorithms with a table; else ``[place, side]`` in [-1, 1].
    """

    def __init__(self, numbered: bool = False) -> None:
        self.numbered = numbered
        self.observation_space = spaces.Discrete(14) if numbered else spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(2, 5)), 0
        self.right = bool(self.np_random.integers(2))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += int(action) - 1
        self.steps += 1
        ended = self.place in (0, 6)
        end = (1.0 if (self.place == 6) == self.right else -1.0) if ended else 0.0
        return self._observation(), end - 0.01, ended, not ended and self.steps == 20, {}

    def _observation(self) -> Any:
        if self.numbered:
            return 7 * self.right + self.place
        return np.array([self.place / 3 - 1, 2 * self.right - 1], np.float32)


class Reach(gymnasium.Env[Any, Any]):
    """A point on a line that is to be brought to a target; the observation is ``[point, target]`` in [-1, 1].

    The action, in [-1, 2], moves it by a fifth of itself, so that what scales actions wrongly is found out. Each of
    ten steps costs the distance. The best mean return is about -0.9, that of chance about -7; -1.5 is a good ``score``.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.point, self.target = self.np_random.uniform(-1, 1, 2)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.point = float(np.clip(self.point + 0.2 * float(action[0]), -1, 1))
        self.steps += 1
        return self._observation(), -abs(self.point - self.target), False, self.steps == 10, {}

    def _observation(self) -> Any:
        return np.array([self.point, self.target], np.float32)


class AlgorithmTests:
    """What every algorithm must do. Inherit, and say in ``make`` what to test.

    Attributes
    ----------
    env : what it learns: a Gymnasium id or a function that makes an environment, both deterministic.
    env_steps : transitions it may take for that.
    score : greedy mean return it must then reach.
    shape : of the schedule.
    seed : of everything.
    explores : acts at random at first, other than greedily; set it to False where it never does.
    """

    env: Any = Corridor
    env_steps: int = 4096
    score: float = 0.9
    shape: Mapping[str, int] = {"streams": 2, "envs_per_stream": 4, "fragment_steps": 16}
    seed: int = 0
    explores: bool = True

    def make(self) -> Algorithm:
        """The algorithm: a new instance, of the same settings each time."""
        raise NotImplementedError("define make(self): it returns an instance of your algorithm")

    def run(self) -> list[str]:
        """Call every test, without pytest; the names of those that passed, where all did."""
        names = [name for name in dir(self) if name.startswith("test_")]
        for name in names:
            getattr(self, name)()
        return names

    # -- runs -----------------------------------------------------------------------------------------------

    def test_it_learns(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = self._train(f"{folder}/run", self.env_steps).wait()
            assert run.report is not None
            assert run.store.summary()["learner_updates"] > 0, _no_updates(self.env_steps)
            mean = evaluate(run.store, episodes=32, seed=1, **self._again()).mean
        assert mean >= self.score, f"greedy mean return after {self.env_steps} steps: {mean:.3f}, below {self.score}"

    def test_a_run_stopped_and_resumed_has_the_digest_of_one_never_stopped(self) -> None:
        steps = self.env_steps // 2
        with tempfile.TemporaryDirectory() as folder:
            whole = self._train(f"{folder}/whole", steps).wait().store
            assert whole.summary()["learner_updates"] > 0, _no_updates(steps)
            for report in self._train(f"{folder}/stopped", steps):
                if report.env_steps > 0.7 * steps:
                    break
            resumed = resume(f"{folder}/stopped", progress=False, **self._again()).wait().store
            assert resumed.digest() == whole.digest(), (
                "the resumed run's transitions or weights differ. What does a learner, or act, keep that is neither in "
                "its state(), nor in weights(), nor worked out again from the rounds appended?"
            )

    # -- the learner ----------------------------------------------------------------------------------------

    def test_a_learner_lost_and_restored_from_a_checkpoint_goes_on_to_the_same_weights(self) -> None:
        with pinned():
            game = _Game(self).learn()
            before, state = game.version, _copy(game.learner.state())
            expected = []
            for _ in range(4):
                game.round()
                expected.append(_copy(game.learner.weights()))

            other = game.new_learner()
            first = max(0, before - other.memory)
            other.skip(first)
            for fragments in game.rounds[first:before]:
                other.append(staged(other, fragments))
            other.restore(state)
            for version, weights in enumerate(expected, before):
                _learn(other, game.rounds[version], self.seed, version)
                differ = _differences(weights, other.weights())
                assert not differ, (
                    f"restored at version {before}, version {version + 1} differs in {differ}: state() lacks something "
                    "that learning depends on, restore() does not take it back, or memory is too small"
                )
        assert other.updates == game.learner.updates, "updates is not restored"

    def test_first_weights_follow_from_the_generator(self) -> None:
        with pinned():
            one, other = (_Game(self).learner.weights() for _ in range(2))
        differ = _differences(one, other)
        assert not differ, f"two learners from equal generators differ in {differ}: draw them from ``random``"

    def test_weights_and_state_are_numeric_arrays_with_the_same_names_and_shapes_at_every_version(self) -> None:
        with pinned():
            game = _Game(self)
            first = _described(game.learner.weights(), "weights()")
            game.learn()
            assert _described(game.learner.weights(), "weights()") == first, "names, shapes or types change"
            _described(game.learner.state(), "state()")

    def test_what_was_published_or_saved_is_not_written_to_again(self) -> None:
        with pinned():
            game = _Game(self).learn()
            weights, state = game.learner.weights(), game.learner.state()
            kept = _copy(weights), _copy(state)
            game.round()
        assert not _differences(kept[0], weights), "learning writes to what weights() returned; return a copy"
        assert not _differences(kept[1], state), "learning writes to what state() returned; return a copy"

    # -- acting ---------------------------------------------------------------------------------------------

    def test_acting_follows_from_weights_observations_and_the_generator(self) -> None:
        with pinned():
            game = _Game(self)
            first = game.learner.weights()
            newest = game.learn().learner.weights()
            policy, other = game.policy(newest), game.policy(first)
            once = game.play(policy)
            differ = _differences(once, game.play(policy))
            assert not differ, f"the same policy, asked again, differs in {differ}: draw only from moment.random"
            game.play(other)
            game.algorithm.load(other, newest)
            differ = _differences(once, game.play(other))
            assert not differ, f"another policy with the same weights differs in {differ}"

    def test_greedy_acting_does_not_depend_on_the_generator(self) -> None:
        with pinned():
            game = _Game(self).learn()
            policy = game.policy(game.learner.weights())
            one, other = (game.play(policy, seed=seed, greedy=True) for seed in (1, 2))
        assert not _differences(one, other), "two generators, two ways to act greedily: draw nothing where greedy"

    def test_exploring_draws_from_the_generator(self) -> None:
        if not self.explores:
            return
        with pinned():
            game = _Game(self)
            policy = game.policy(game.learner.weights())
            one, other = (game.play(policy, seed=seed) for seed in (1, 2))
        assert _differences(one, other), (
            "two generators give the same actions, so all streams explore alike: draw from moment.random, or set "
            "explores = False where it never acts at random"
        )

    def test_acting_leaves_observations_and_weights_as_they_are(self) -> None:
        with pinned():
            game = _Game(self).learn()
            weights = game.learner.weights()
            kept, policy = _copy(weights), game.policy(weights)
            for greedy in (False, True):
                for moment in game.moments(policy, greedy=greedy):
                    before = _copy(moment.observation)
                    game.act(policy, moment)
                    assert not _differences(before, moment.observation), "act writes to the observation it was given"
        assert not _differences(kept, weights), "acting writes to the weights that were loaded"

    def test_actions_fit_the_action_space(self) -> None:
        with pinned():
            game = _Game(self)
            columns = dict(getattr(game.algorithm, "columns", {}))
            for _ in range(2):
                policy = game.policy(game.learner.weights())
                for greedy in (False, True):
                    for moment in game.moments(policy, greedy=greedy):
                        action, extras = game.act(policy, moment)
                        game.require_fits(action)
                        shapes = {name: np.shape(value) for name, value in extras.items()}
                        wanted = dict.fromkeys(columns, (game.count,))
                        assert greedy or shapes == wanted, f"act returns {shapes} for the store, expected {wanted}"
                game.learn()

    # -- both -----------------------------------------------------------------------------------------------

    def test_global_random_states_are_left_alone(self) -> None:
        import torch

        def states() -> dict[str, Any]:
            numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - to see that nobody draws from it
            return {
                "random": random.getstate(),
                "numpy.random": (numpy["state"]["key"].tobytes(), numpy["state"]["pos"], numpy["has_gauss"]),
                "torch": torch.get_rng_state().numpy().tobytes(),
            }

        with pinned():
            game = _Game(self).learn()
            policy = game.policy(game.learner.weights())
            before = states()
            game.play(policy)
            game.play(policy, greedy=True)
            acted = states()
            touched = [name for name in before if before[name] != acted[name]]
            assert not touched, f"act draws from the global generator of {', '.join(touched)}: draw from moment.random"
            _learn(game.learner, game.play_round(policy), self.seed, game.version)
            learned = states()
            touched = [name for name in before if acted[name] != learned[name]]
            assert not touched, f"learn draws from the global generator of {', '.join(touched)}: draw from ``random``"

    def test_it_reaches_workers_as_a_few_bytes(self) -> None:
        algorithm = self.make()
        before = settings(algorithm)
        data = session.pickled("test", cast(Any, None), algorithm, Corridor, Options())
        assert len(data) < 100_000, f"pickled, it has {len(data)} bytes: keep arrays and networks out of it"
        arrived = cloudpickle.loads(data)[2]
        assert repr(settings(arrived)) == repr(before), "its settings are others after pickling"
        with pinned():
            game, there = _Game(self), _Game(self, arrived)
            assert not _differences(game.learner.weights(), there.learner.weights()), "it is another after pickling"

    # -- what they share ------------------------------------------------------------------------------------

    def _env(self) -> Any:
        # A function that is a class attribute would be bound as a method.
        env = inspect.getattr_static(self, "env")
        return env.__func__ if isinstance(env, staticmethod) else env

    def _train(self, store: str, env_steps: int) -> Run:
        options: dict[str, Any] = {"checkpoint_every": 3, "recheck_every": 8, "progress": False, **self.shape}
        return train(self.make(), self._env(), store=store, env_steps=env_steps, seed=self.seed, **options)

    def _again(self) -> dict[str, Any]:
        """What a store of a run must be given again."""
        env = self._env()
        return {"algorithm": self.make(), "env": None if isinstance(env, str) else env}


class _Game:
    """A run in memory: rounds are acted and learned in turns, without a store and without tasks.

    Attributes
    ----------
    version : rounds learned so far.
    rounds : the fragments of each of them.
    count : environments of a stream.
    """

    def __init__(self, tests: AlgorithmTests, algorithm: Algorithm | None = None) -> None:
        self.algorithm = algorithm if algorithm is not None else tests.make()
        self.source = source(tests._env())
        schedule = Schedule(**tests.shape, lag=getattr(self.algorithm, "lag", 1))
        self.setup = Setup(self.source.spec, schedule, self.source.default_frame_stack)
        self.algorithm.check(self.setup)
        self.seed, self.count = tests.seed, schedule.envs_per_stream
        self.enough = schedule.rounds(tests.env_steps)
        self.version = 0
        self.rounds: list[Sequence[Mapping[str, Array]]] = []
        self.learner = self.new_learner()

    def new_learner(self) -> Learner:
        return self.algorithm.learner(self.setup, seeding.generator(self.seed, "initialise"))

    def policy(self, weights: Weights) -> Any:
        policy = self.algorithm.policy(self.setup)
        self.algorithm.load(policy, weights)
        return policy

    # -- acting -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def streams(self) -> list[envs.Stream]:
        """The live environments that rounds are played in."""
        return [self.stream(index) for index in range(self.setup.schedule.streams)]

    def stream(self, index: int = 0) -> envs.Stream:
        return envs.Stream.make(
            self.source.factory, self.setup.spec, seed=self.seed, index=index, count=self.count,
            frame_stack=self.setup.frame_stack, state=recurrent_state(self.algorithm, self.setup),
        )  # fmt: skip

    def act(self, policy: Any, moment: Moment) -> tuple[Action, Mapping[str, Array]]:
        import torch

        with torch.inference_mode():
            chosen = self.algorithm.act(policy, moment)
        return chosen if isinstance(chosen, tuple) else (chosen, {})

    def fragment(
        self, policy: Any, stream: envs.Stream, random: np.random.Generator, env_steps: int = 0, greedy: bool = False
    ) -> Mapping[str, Array]:
        moment = Moment({}, random, greedy=greedy)

        def choose(
            observation: Mapping[str, Array], state: dict[str, Array], t: int
        ) -> tuple[Action, Mapping[str, Array]]:
            moment.observation, moment.state = observation, state
            moment.env_steps = env_steps + t * self.setup.schedule.lanes
            return self.act(policy, moment)

        age = stream.age.copy()
        columns, _ = stream.rollout(choose, self.setup.schedule.fragment_steps)
        for column in columns.values():
            column.flags.writeable = False  # as they are when read from a store
        return {**columns, "episode_step": age, "continues": np.asarray(True)}

    def play(self, policy: Any, *, seed: int = 1, greedy: bool = False) -> Mapping[str, Array]:
        """A fragment of new environments."""
        stream = self.stream()
        try:
            return self.fragment(policy, stream, seeding.generator(seed, "act"), greedy=greedy)
        finally:
            stream.close()

    def moments(self, policy: Any, *, greedy: bool) -> Iterator[Moment]:
        """Moments of a fragment, each with observations of its own."""
        columns, frames = self.play(policy, greedy=greedy), self.setup.frame_stack
        random = seeding.generator(self.seed, "act")
        shapes = recurrent_state(self.algorithm, self.setup)
        state = {name: np.zeros((self.count, *shape), np.float32) for name, shape in shapes.items()}
        for t in range(self.setup.schedule.fragment_steps):
            stacks = {
                leaf.name: np.swapaxes(columns[leaf.name][t : t + frames], 0, 1).copy()
                for leaf in self.setup.spec.observation
            }
            yield Moment(envs.unstacked(stacks, frames), random, t * self.setup.schedule.lanes, greedy, state)

    def require_fits(self, action: Any) -> None:
        leaves = self.setup.spec.action
        if len(leaves) > 1:
            assert isinstance(action, Mapping), f"act returns {type(action).__name__}, expected a mapping by leaf"
            assert set(action) == {leaf.name for leaf in leaves}, f"act returns the leaves {sorted(action)}"
        for leaf, values in by_leaf(leaves, action):
            self._require_leaf(leaf, values)

    def _require_leaf(self, leaf: Leaf, action: Array) -> None:
        shape = (self.count, *leaf.shape)
        assert isinstance(action, np.ndarray), f"act returns {type(action).__name__}, expected a NumPy array"
        assert action.shape == shape, f"act returns actions of shape {action.shape}, expected {shape}"
        if leaf.kind == "box":
            # Those beyond the bounds are clipped for the environment, and stored as they are.
            assert np.isfinite(action).all(), "act returns actions that are NaN or infinite"
            return
        assert action.dtype.kind in "biu", f"act returns {action.dtype}, expected integers"
        if leaf.kind == "discrete":
            low, high = 0, leaf.sizes[0]
            assert ((action >= low) & (action < high)).all(), f"act returns {action}, expected numbers below {high}"

    # -- learning -----------------------------------------------------------------------------------------------

    def play_round(self, policy: Any) -> Sequence[Mapping[str, Array]]:
        before = self.version * self.setup.schedule.round_steps
        return [
            self.fragment(policy, stream, seeding.generator(self.seed, "act", index, self.version), before)
            for index, stream in enumerate(self.streams)
        ]

    def round(self) -> None:
        """Act for a round with the newest weights, and learn it."""
        fragments = self.play_round(self.policy(self.learner.weights()))
        self.rounds.append(fragments)
        _learn(self.learner, fragments, self.seed, self.version)
        self.version += 1

    def learn(self) -> _Game:
        """Three rounds beyond the first that had updates."""
        while not self.learner.updates:
            assert self.version < self.enough, _no_updates(self.version * self.setup.schedule.round_steps)
            self.round()
        for _ in range(3):
            self.round()
        return self


def _learn(learner: Learner, fragments: Sequence[Mapping[str, Array]], seed: int, version: int) -> None:
    learner.append(staged(learner, fragments))
    loss = learner.learn(seeding.generator(seed, "learn", version))
    assert loss is None or np.isfinite(loss), f"the loss of version {version + 1} is {loss}"


def _no_updates(env_steps: int) -> str:
    return f"no update in {env_steps} steps: in make(), lower what puts it off (learning_starts), or raise env_steps"


def _copy(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(value) for name, value in arrays.items()}


def _differences(one: Mapping[str, Array], other: Mapping[str, Array]) -> list[str]:
    """Names of what is not the same, bit for bit."""

    def bits(arrays: Mapping[str, Array], name: str) -> Any:
        value = arrays.get(name)
        return None if value is None else (np.asarray(value).dtype, np.shape(value), np.asarray(value).tobytes())

    return sorted(name for name in {*one, *other} if bits(one, name) != bits(other, name))


def _described(arrays: Mapping[str, Array], what: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each, which must be ones that can be stored."""
    assert arrays, f"{what} is empty"
    for name, value in arrays.items():
        assert isinstance(name, str), f"{what} has the name {name!r}, expected a str"
        assert isinstance(value, np.ndarray), f"{name} of {what} is a {type(value).__name__}, expected a NumPy array"
        stored = value.dtype.kind in "biuf" and value.dtype.itemsize <= 8
        assert stored, f"{name} of {what} is {value.dtype}, expected numbers or bits of at most 64 bits"
    return {name: (value.shape, value.dtype.str) for name, value in arrays.items()}
