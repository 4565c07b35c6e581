"""Environments are apart from each other, and each episode from those before; what is not is found early, by name."""

from __future__ import annotations

import functools
import itertools
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces, wrappers

import daskrl
from daskrl import clusters, seeding
from daskrl.envs import isolation
from daskrl.envs import source as sources
from daskrl.envs.spaces import spec_of
from daskrl.envs.stream import Stream
from daskrl.errors import ConfigError, EnvironmentTimeoutError, NondeterministicError
from daskrl.store.store import Store
from daskrl.tasks.rollout import within

SMALL = {"hidden": (8,), "learning_starts": 64, "batch_size": 8, "replay_ratio": 0.1, "window": 4096}


def start(env: Any, store: Path, **given: Any) -> daskrl.Run:
    settings = {"env_steps": 10_000, "seed": 3, "progress": False, "checkpoint_every": 1000, "weights_every": 1000}
    return daskrl.train(daskrl.DQN(**SMALL), env, store=store, **{**settings, **given})


class Line(gymnasium.Env):
    """Episodes of ``length`` steps; the reward is what ``worth`` says."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)
    length = 20

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.count = float(self.np_random.normal()), 0
        return self.observation(), {}

    def observation(self):
        return np.array([self.at, self.count], np.float32)

    def step(self, action):
        self.at += (2 * int(action) - 1) * 0.1
        self.count += 1
        return self.observation(), self.worth(), False, self.count == self.length, {}

    def worth(self) -> float:
        return -abs(self.at)


# -- one object for all -----------------------------------------------------------------------------------


@functools.cache
def cached() -> gymnasium.Env:
    return gymnasium.make("CartPole-v1")


class Holds(Line):
    """Not a wrapper, yet it holds an environment in a list of an attribute's attribute."""

    def __init__(self, inner: gymnasium.Env) -> None:
        self.parts = {"cores": [inner]}


ONE = Line()


@pytest.mark.parametrize(
    "factory",
    [
        lambda: ONE,
        cached,
        lambda: wrappers.ClipReward(ONE, 0, 1),
        lambda: wrappers.TimeLimit(wrappers.ClipReward(cached(), 0, 1), 5),
        lambda: Holds(ONE),
    ],
    ids=["object", "cache", "wrapped object", "wrapped cache", "held object"],
)
def test_one_environment_for_all_is_refused_before_anything_is_made(factory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one object for two environments.*Make the environment inside the function"):
        start(factory, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_id_whose_entry_point_gives_one_object_is_refused() -> None:
    gymnasium.register("OneForAll-v0", entry_point=lambda: ONE)
    try:
        with pytest.raises(ConfigError, match="one object for two environments"):
            sources.source("OneForAll-v0")
    finally:
        del gymnasium.registry["OneForAll-v0"]


def test_what_environments_only_read_may_be_shared(tmp_path: Path) -> None:
    prices, settings = np.arange(100.0), {"fee": 0.1}

    class Reads(Line):
        table = prices

        def __init__(self) -> None:
            self.prices, self.settings, self.spaces = prices, settings, Line.action_space

        def worth(self) -> float:
            return float(self.prices[self.count]) - self.settings["fee"]

    assert start(Reads, tmp_path / "run", env_steps=1024).wait().store.promise_off() == []


def test_an_object_that_comes_back_later_is_refused_where_streams_are_made() -> None:
    pool = itertools.cycle([Line() for _ in range(3)])
    spec = spec_of(Line.observation_space, Line.action_space)
    make = functools.partial(Stream.make, lambda: next(pool), spec, seed=0, frame_stack=1)
    first = make(index=0, count=2)
    with pytest.raises(ConfigError, match="one object for two environments"):
        make(index=1, count=2)  # the third, and the first again
    first.close()
    second = make(index=1, count=3)  # all are free again
    second.close()


def test_environments_of_an_evaluation_are_apart_from_those_that_train() -> None:
    spec = spec_of(Line.observation_space, Line.action_space)
    inner = Line()
    training = Stream.make(lambda: inner, spec, seed=0, index=0, count=1, frame_stack=1)
    with pytest.raises(ConfigError, match="one object for two environments"):
        Stream.make(lambda: wrappers.TimeLimit(inner, 3), spec, seed=0, index=0, count=1, frame_stack=1)
    training.close()


# -- found by stepping again ------------------------------------------------------------------------------


class Simulator:
    def __init__(self) -> None:
        self.drift = 0.0


SIMULATOR = Simulator()


class SharesSimulator(Line):
    """Two objects, one simulator, which steps of all move."""

    def __init__(self) -> None:
        self.sim = SIMULATOR

    def worth(self) -> float:
        self.sim.drift += 0.25
        return self.sim.drift

    def reset(self, *, seed=None, options=None):
        self.sim.drift = 0.0
        return super().reset(seed=seed)


class RareVisits(Line):
    """A bonus for places that were rarely visited, counted over all episodes."""

    def __init__(self) -> None:
        self.visits: dict[int, int] = {}

    def worth(self) -> float:
        place = round(self.at)
        self.visits[place] = self.visits.get(place, 0) + 1
        return self.visits[place] ** -0.5


class Curriculum(Line):
    """After each episode the line is longer by a step."""

    def __init__(self) -> None:
        self.length = 20

    def step(self, action):
        *result, cut, info = super().step(action)
        self.length += cut
        return *result, cut, info


class Grows(Line):
    """The observation is scaled by how many episodes there were; its reward is not."""

    episodes = 0

    def reset(self, *, seed=None, options=None):
        self.episodes += 1
        return super().reset(seed=seed)

    def observation(self):
        return super().observation() * np.float32(self.episodes)


class LastOnly(Grows):
    """As `Grows`, but seen in an episode's last observation alone."""

    def observation(self):
        value = Line.observation(self)
        return value * np.float32(self.episodes) if self.count == self.length else value


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        (SharesSimulator, "reward"),
        (RareVisits, "reward"),
        (Curriculum, "truncated"),
        (Grows, "observation"),
        (LastOnly, "final_observation"),
    ],
)
def test_what_outlives_an_episode_or_is_shared_is_found_in_the_first_dozen_fragments(kind, column, tmp_path) -> None:
    run = start(kind, tmp_path / "run")
    with pytest.raises(NondeterministicError, match="not deterministic") as caught:
        run.wait()
    message = str(caught.value)
    assert column in message
    assert "outlives an episode" in message
    assert "strict=False" in message
    assert re.search(r"Type: daskrl reproduce \S+ --fragment \d+ --env MODULE:" + kind.__name__, message)
    if kind is SharesSimulator:
        assert "Its environments have in common: sim (Simulator)" in message
    assert len(Store.open(tmp_path / "run").fragments()) <= 16  # those in flight when it was found included


def test_one_environment_a_stream_that_shares_with_other_streams_is_found(tmp_path: Path) -> None:
    with pytest.raises(NondeterministicError, match="reward"):
        start(SharesSimulator, tmp_path / "run", envs_per_stream=1).wait()


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1", "MountainCar-v0"])
def test_a_run_of_ten_thousand_steps_finds_statistics_of_its_environments(env: str, tmp_path: Path) -> None:
    class Normalised(gymnasium.Wrapper):  # nothing that is known by name
        def __init__(self, env):
            super().__init__(env)
            self.sum, self.steps = 0.0, 0

        def step(self, action):
            observation, reward, *rest = self.env.step(action)
            self.sum, self.steps = self.sum + float(observation[0]), self.steps + 1
            return observation, float(reward) - self.sum / self.steps, *rest

    algorithm = daskrl.SAC(**SMALL) if env == "Pendulum-v1" else daskrl.DQN(**SMALL)
    run = daskrl.train(
        algorithm, lambda: Normalised(gymnasium.make(env)), store=tmp_path / "run", env_steps=10_000, progress=False
    )
    with pytest.raises(NondeterministicError, match=f"reward of environment .*{env}.* differs|differs in .*reward"):
        run.wait()


def test_without_the_promise_such_a_run_goes_on_and_the_store_says_why_once(tmp_path: Path) -> None:
    run = start(RareVisits, tmp_path / "run", env_steps=2048, strict=False)
    with pytest.warns(UserWarning, match="Going on without the promise") as said:
        run.wait()
    assert run.finished
    reasons = run.store.promise_off()
    assert len([one for one in said if "without the promise" in str(one.message)]) == len(reasons) == 1
    assert "reward" in reasons[0]
    with pytest.warns(UserWarning, match="played in new environments, which know nothing of those that trained"):
        daskrl.evaluate(run.store, env=RareVisits, episodes=2)


def test_the_same_is_found_on_workers(tmp_path: Path) -> None:
    with clusters.local(2) as cluster, cluster.get_client() as client:
        run = start(RareVisits, tmp_path / "run", client=client)
        with pytest.raises(NondeterministicError, match="reward"):
            run.wait()


def test_checks_change_no_bit(tmp_path: Path) -> None:
    digests = {
        start(Line, tmp_path / str(every), env_steps=4096, recheck_every=every).wait().store.digest()
        for every in (0, 3, 256)
    }
    assert len(digests) == 1


# -- known by name ----------------------------------------------------------------------------------------

KNOWN = {
    "NormalizeReward": (lambda: wrappers.NormalizeReward(gymnasium.make("CartPole-v1")), "normalise_reward=True"),
    "NormalizeObservation": (
        lambda: wrappers.TimeLimit(wrappers.NormalizeObservation(gymnasium.make("CartPole-v1")), 50),
        "normalise_observation=True",
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_wrapper_known_to_remember_is_refused_with_what_to_use_instead(name: str, tmp_path: Path) -> None:
    factory, instead = KNOWN[name]
    with pytest.raises(ConfigError) as caught:
        start(factory, tmp_path / "run")
    assert name in str(caught.value)
    assert instead in str(caught.value)
    assert "strict=False" in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not hasattr(daskrl.DQN(), instead.partition("=")[0])
    assert hasattr(daskrl.PPO(), instead.partition("=")[0])


def test_without_the_promise_it_trains_and_neither_store_nor_evaluation_is_silent(tmp_path: Path) -> None:
    factory, _ = KNOWN["NormalizeReward"]
    with pytest.warns(UserWarning, match="NormalizeReward keeps statistics.*Going on without the promise"):
        run = start(factory, tmp_path / "run", env_steps=1024, strict=False).wait()
    (reason,) = run.store.promise_off()
    assert "NormalizeReward" in reason
    with pytest.warns(UserWarning, match=r"played in new environments.*NormalizeReward keeps statistics"):
        result = daskrl.evaluate(run.store, env=factory, episodes=2)
    assert "NormalizeReward" in result.rows()["caveat"]
    with pytest.warns(UserWarning, match="played in new environments"):  # also of an environment without it
        daskrl.evaluate(run.store, env="CartPole-v1", episodes=2)
    with pytest.raises(ConfigError, match="NormalizeReward"):
        daskrl.resume(tmp_path / "run", env=factory, env_steps=2048, strict=True, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrapped = wrappers.NormalizeObservation(gymnasium.make("CartPole-v1"))
        assert isolation.remembers(wrapped) is not None
        wrapped.update_running_mean = False
        assert isolation.remembers(wrapped) is None  # statistics that stay as they are
        for harmless in (wrappers.RecordEpisodeStatistics, wrappers.TimeAwareObservation):
            assert isolation.remembers(harmless(gymnasium.make("CartPole-v1"))) is None


# -- threads ----------------------------------------------------------------------------------------------


class Hands(gymnasium.Env):
    """Writes its observation to an array that all of its kind return."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)
    shared = np.zeros(2, np.float32)
    apart = False
    inside, most = 0, 0
    counting = threading.Lock()

    def _observation(self):
        cls = type(self)
        with cls.counting:
            cls.inside += 1
            cls.most = max(cls.most, cls.inside)
        if self.apart:
            self.shared = np.zeros(2, np.float32)
        self.shared[:] = self.number, self.count
        threading.Event().wait(0.001)  # the other threads go on
        with cls.counting:
            cls.inside -= 1
        return self.shared

    def reset(self, *, seed=None, options=None):
        gymnasium.Env.reset(self, seed=seed)
        self.number, self.count = seed % 1000, 0
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        return self._observation(), 0.0, self.count == 5, False, {}


class HandsApart(Hands):
    apart = True


class HandsInDict(Hands):
    observation_space = spaces.Dict({"a": spaces.Tuple([Hands.observation_space])})  # type: ignore[assignment]

    def _observation(self):
        return {"a": (super()._observation()[:],)}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", [Hands, HandsInDict, HandsApart])
def test_threads_of_one_process_take_turns_where_environments_return_the_same_array(kind: Any, count: int) -> None:
    space = kind.observation_space
    spec = spec_of(space, kind.action_space)
    name = spec.observation[0].name

    def act(observation, state, t):
        return np.zeros(count, np.int64), {}

    def rollouts(index: int) -> None:
        stream = Stream.make(kind, spec, seed=3, index=index, count=count, frame_stack=1)
        for _ in range(3):
            fragment, _ = stream.rollout(act, 6)
            numbers = fragment[name][..., 0].T
            seeds = [
                {seeding.environment_seed(3, index, env, episode) % 1000 for episode in range(9)}
                for env in range(count)
            ]
            wrong.extend(set(map(int, row)) - own for row, own in zip(numbers, seeds, strict=True))
        stream.close()

    wrong: list[set[int]] = []
    kind.inside = kind.most = 0
    threads = [threading.Thread(target=rollouts, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 3 * 3 * count
    assert not any(wrong)
    if kind is HandsApart:
        assert kind.most > 1  # they go on side by side


def test_an_environment_that_hangs_while_it_is_its_turn_keeps_no_other_waiting() -> None:
    go_on = threading.Event()

    class Hangs(Hands):
        hang = True

        def step(self, action):
            if self.hang:
                go_on.wait()
            return super().step(action)

    def act(observation, state, t):
        return np.zeros(2, np.int64), {}

    spec = spec_of(Hangs.observation_space, Hangs.action_space)
    first, second = (Stream.make(Hangs, spec, seed=3, index=i, count=2, frame_stack=1) for i in range(2))
    with pytest.raises(EnvironmentTimeoutError):
        within(0.2, lambda alive: first.rollout(act, 3), "here")
    Hangs.hang = False
    within(60, lambda alive: second.rollout(act, 3), "there")
    go_on.set()
