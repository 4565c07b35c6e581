"""A run that begins with another run's weights: version 0 is what was given, wherever the learner is made."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client
from safetensors.numpy import load_file, save_file

import daskrl
from daskrl import clusters, errors
from daskrl.store.columns import read_fragment
from daskrl.store.posix import Posix
from daskrl.tasks import learner
from daskrl.tasks.learner_state import LearnerState
from daskrl.tasks.session import Session
from tests.promise import TroubledDQN

SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 16, "lag": 1}
REPLAY: dict[str, Any] = {"hidden": (16,), "learning_starts": 64, "batch_size": 8, "replay_ratio": 2.0, "window": 640}
ROUND = 64

ALGORITHMS: dict[str, tuple[Any, str]] = {
    "q-learning": (daskrl.QLearning(), "FrozenLake-v1"),
    "dqn": (daskrl.DQN(**REPLAY, target_update=5), "CartPole-v1"),
    "c51": (daskrl.C51(**REPLAY), "CartPole-v1"),
    "qr-dqn": (daskrl.QRDQN(**REPLAY), "CartPole-v1"),
    "rainbow": (daskrl.Rainbow(**REPLAY), "CartPole-v1"),
    "r2d2": (daskrl.R2D2(hidden=(16,), lstm=8, learning_starts=64, batch_size=4, window=640), "CartPole-v1"),
    "ppo": (daskrl.PPO(hidden=(16,), normalise_observation=True, normalise_reward=True), "CartPole-v1"),
    "ppo-lstm": (daskrl.PPO(hidden=(16,), lstm=8), "CartPole-v1"),
    "impala": (daskrl.IMPALA(hidden=(16,)), "CartPole-v1"),
    "sac": (daskrl.SAC(**REPLAY), "Pendulum-v1"),
    "td3": (daskrl.TD3(**REPLAY), "Pendulum-v1"),
}


def start(store: Path, algorithm: Any, env: Any = "CartPole-v1", rounds: int = 4, **options: Any) -> daskrl.Run:
    given = {"env_steps": rounds * ROUND, "seed": 3, "progress": False, "weights_every": 1, **SHAPE, **options}
    if "lag" not in options:
        del given["lag"]
    return daskrl.train(algorithm, env, store=store, **given)


def bits(weights: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: np.asarray(value).tobytes() for name, value in weights.items()}


@pytest.fixture(scope="module")
def dqn(tmp_path_factory: pytest.TempPathFactory) -> daskrl.Store:
    return start(tmp_path_factory.mktemp("dqn") / "run", ALGORITHMS["dqn"][0]).wait().store


@pytest.mark.parametrize("name", ALGORITHMS)
def test_version_0_of_a_run_is_the_newest_version_of_the_run_it_begins_with(tmp_path: Path, name: str) -> None:
    algorithm, env = ALGORITHMS[name]
    one = start(tmp_path / "one", algorithm, env).wait().store
    two = start(tmp_path / "two", algorithm, env, init=tmp_path / "one", seed=4).wait().store
    version, weights = one.weights()
    assert bits(two.weights(0)[1]) == bits(weights)
    assert bits(two.weights()[1]) != bits(weights)
    assert two.config.init is not None
    assert {key: two.config.init[key] for key in ("run_id", "version", "digest")} == {
        "run_id": one.run_id,
        "version": version,
        "digest": one.digest(),
    }
    played = [
        daskrl.evaluate(store, episodes=4, version=at, max_episode_steps=50) for store, at in ((one, 4), (two, 0))
    ]
    assert played[0].returns == played[1].returns


def test_an_older_version_a_file_and_arrays_do_as_well(tmp_path: Path, dqn: daskrl.Store) -> None:
    algorithm, _ = ALGORITHMS["dqn"]
    _, weights = dqn.weights(2)
    save_file(weights, tmp_path / "weights.safetensors")
    given: list[dict[str, Any]] = [
        {"init": dqn, "init_version": 2},
        {"init": str(dqn.root), "init_version": 2},
        {"init": tmp_path / "weights.safetensors"},
        {"init": weights},
        {"init": {name: torch.from_numpy(value) for name, value in weights.items()}},
        {"init": {name: value.astype(np.float64) for name, value in weights.items()}},  # holds the same numbers
    ]
    stores = [start(tmp_path / str(i), algorithm, **one).wait().store for i, one in enumerate(given)]
    assert all(bits(store.weights(0)[1]) == bits(weights) for store in stores)
    assert len({store.digest() for store in stores}) == 1  # DQN's checkpoint holds nothing more
    assert start(tmp_path / "drawn", algorithm).wait().store.digest() != stores[0].digest()
    assert "digest" not in dict(stores[3].config.init or {})


def test_the_run_needs_the_other_store_no_more_and_a_learner_killed_at_once_begins_with_it_again(
    tmp_path: Path, dqn: daskrl.Store
) -> None:
    """The same digest in this process, and on workers whose learner dies before its first checkpoint."""
    options = {"init": dqn, "rounds": 8, "checkpoint_every": 100, "lag": 1}
    plain = TroubledDQN(**REPLAY, target_update=5)
    expected = start(tmp_path / "here", plain, **options).wait().store.digest()

    shutil.copytree(dqn.root, tmp_path / "other")
    algorithm = TroubledDQN(**REPLAY, target_update=5)
    object.__setattr__(algorithm, "kills", (9, 21))
    object.__setattr__(algorithm, "once_in", str(tmp_path))
    given = {**options, "init": tmp_path / "other"}
    with clusters.local(2) as cluster, Client(cluster) as client:
        run = start(tmp_path / "there", algorithm, client=client, **given)
        shutil.rmtree(tmp_path / "other")
        for report in run:
            if report.weights_version == 5:
                break
        assert (tmp_path / "update-9").exists()
        assert not run.finished
        os.rename(tmp_path / "there", tmp_path / "moved")
        done = daskrl.resume(tmp_path / "moved", algorithm=algorithm, client=client, progress=False).wait()
    assert done.store.digest() == expected


@pytest.mark.parametrize("name", ["sac", "td3", "ppo"])
def test_critics_and_moments_go_on_where_the_version_has_a_checkpoint_and_begin_anew_where_it_has_none(
    tmp_path: Path, name: str
) -> None:
    algorithm, env = ALGORITHMS[name]
    one = start(tmp_path / "one", algorithm, env).wait().store
    begun = {}
    for version, there in ((4, True), (2, False)):
        run = start(tmp_path / f"from-{version}", algorithm, env, init=one, init_version=version)
        assert run.store.config.init is not None
        assert run.store.config.init["checkpoint"] is there
        begun[version] = learner_of(run)
    other = learner_of(daskrl.resume(tmp_path / "one", progress=False), restored=True)
    drawn = learner_of(start(tmp_path / "drawn", algorithm, env))
    if name == "ppo":
        for kept in (begun[4].state(), other.state()):
            assert kept["observed.observation.count"] == kept["returned.count"] == 4 * ROUND
        kept, published = begun[2].state(), one.weights(2)[1]
        assert kept["observed.observation.count"] == ROUND
        assert kept["observed.observation.mean"] == pytest.approx(published["normalise.means.0"])
        deviation = np.sqrt(kept["observed.observation.squares"] / ROUND + 1e-8)
        np.testing.assert_allclose(deviation, published["normalise.deviations.0"], rtol=1e-6)
        return
    assert torch.equal(begun[4].flat_online.weights, other.flat_online.weights)
    target = begun[4].flat_target.weights.clone()
    begun[4].follow()
    assert torch.equal(begun[4].flat_target.weights, target)  # it was there already
    for at, like in ((4, other), (2, drawn)):
        critics = [dict(learner.online.critics.named_parameters()) for learner in (begun[at], like)]
        assert all(torch.equal(critics[0][key], critics[1][key]) for key in critics[0])
    assert not torch.equal(begun[2].flat_online.weights, drawn.flat_online.weights)


def state_of(run: daskrl.Run) -> LearnerState[Any]:
    session = Session("test", run.store.layout, run.algorithm, run.source.factory, run.options)
    return learner.begin(session, run.store.log.head(), "cpu")


def learner_of(run: daskrl.Run, restored: bool = False) -> Any:
    """The learner of a run as its worker makes it."""
    state = state_of(run)
    if restored:
        learner.restore(run.store.layout, state, run.store.published(), run.store.log.head())
    return state.learner


def test_moments_taken_over_stay_what_they_were_after_the_first_round(tmp_path: Path) -> None:
    """Else the policy would see, after one round, observations on another scale than it learned with."""
    algorithm, env = ALGORITHMS["ppo"]
    one = start(tmp_path / "one", algorithm, env, rounds=12).wait().store
    two = start(tmp_path / "two", algorithm, env, init=one, rounds=1).wait().store
    three = start(tmp_path / "three", algorithm, env, rounds=1).wait().store
    before, after, alone = (s.weights()[1]["normalise.deviations.0"] for s in (one, two, three))
    assert np.abs(after / before - 1).max() < 0.1
    assert np.abs(alone / before - 1).max() > np.abs(after / before - 1).max()


WINDOWED = ["dqn", "c51", "r2d2", "sac", "stacked"]


def windowed(name: str) -> tuple[Any, str, dict[str, Any]]:
    """An algorithm with a window of 10 rounds that does not learn before the fourth."""
    settings = {"learning_starts": 4 * ROUND}
    if name == "stacked":
        return daskrl.DQN(**{**REPLAY, **settings}, n_step=3), "CartPole-v1", {"frame_stack": 3}
    algorithm, env = ALGORITHMS[name]
    return dataclasses.replace(algorithm, **settings), env, {}


@pytest.mark.parametrize("name", WINDOWED)
def test_first_replay_is_in_the_window_before_the_first_round_and_learned_from_at_once(
    tmp_path: Path, name: str
) -> None:
    algorithm, env, options = windowed(name)
    one = start(tmp_path / "one", algorithm, env, rounds=13, **options).wait().store
    run = start(tmp_path / "two", algorithm, env, rounds=3, init=one, init_replay=True, seed=4, **options)
    shutil.rmtree(tmp_path / "one" / "reward")  # it is the other run's no more
    state = state_of(run)
    state.restore(0, None, state.checkpoint())
    window, like = state.learner.window, state_of(start(tmp_path / "like", algorithm, env, **options)).learner  # type: ignore[attr-defined]
    like.skip(3)
    for round_ in range(3, 13):
        like.append([fragment_of(run.store.root / ".init", one, stream, round_) for stream in range(2)])
    assert window.rounds == 11
    assert like.window.rounds == 13  # type: ignore[attr-defined]
    assert len(window) == len(like.window)  # type: ignore[attr-defined]
    everything = np.arange(len(window))
    here, there = (of.gather(of.positions(everything)) for of in (window, like.window))  # type: ignore[attr-defined]
    for column in ("action", "reward", "discount"):
        assert torch.equal(getattr(here, column), getattr(there, column)), column
    assert all(torch.equal(here.observation[leaf], there.observation[leaf]) for leaf in here.observation)
    learned = [record["updates"] for record in run.wait().store.records("learn")]
    assert learned[0] == 0
    assert all(learned[1:])
    alone = start(
        tmp_path / "alone", algorithm, env, rounds=3, init=tmp_path / "two", init_version=0, seed=4, **options
    )
    assert not any(record["updates"] for record in alone.wait().store.records("learn"))
    assert run.store.digest() != alone.store.digest()
    assert run.store.config.init is not None
    assert run.store.config.init["replay"]["fragments"] == 20


def fragment_of(root: Path, store: daskrl.Store, stream: int, round_: int) -> dict[str, Any]:
    record = next(r for r in store.fragments() if (r["stream"], r["round"]) == (stream, round_))
    given = {"episode_step": np.asarray(record["episode_step"]), "continues": np.asarray(record["continues"])}
    return {**read_fragment(Posix(root), store.columns, record), **given}


def test_episodes_of_the_first_replay_are_cut_where_the_run_begins(tmp_path: Path) -> None:
    """Else the last transitions of one run would be followed by the first observations of another."""
    algorithm, env, _ = windowed("dqn")
    one = start(tmp_path / "one", algorithm, env, rounds=5).wait().store
    run = start(tmp_path / "two", algorithm, env, rounds=1, init=one, init_replay=True, seed=4).wait()
    state = state_of(run)
    state.advance(1)
    window = state.learner.window  # type: ignore[attr-defined]
    last = window.gather(window.positions_of_rows(79, 80))
    expected = np.concatenate([one.read(record)["observation"][-1] for record in one.fragments()[-2:]])
    ended = np.concatenate([one.read(record)["terminated"][-1] for record in one.fragments()[-2:]])
    assert np.array_equal(last.discount.numpy() == 0, ended)
    assert np.array_equal(last.next_observation["observation"].numpy()[~ended], expected[~ended])


def test_first_replay_gives_the_same_digest_on_workers_killed_and_resumed(tmp_path: Path) -> None:
    given = {"rounds": 8, "checkpoint_every": 5, "lag": 1, "init_replay": True}
    one = start(tmp_path / "one", ALGORITHMS["dqn"][0], rounds=12).wait().store
    plain = TroubledDQN(**REPLAY, target_update=5, priority_alpha=0.6)
    expected = start(tmp_path / "here", plain, init=one, **given).wait().store.digest()
    algorithm = TroubledDQN(**REPLAY, target_update=5, priority_alpha=0.6)
    object.__setattr__(algorithm, "kills", (9,))
    object.__setattr__(algorithm, "once_in", str(tmp_path))
    with clusters.local(2) as cluster, Client(cluster) as client:
        run = start(tmp_path / "there", algorithm, client=client, init=one, **given)
        for report in run:
            if report.weights_version == 6:
                break
    assert (tmp_path / "update-9").exists()
    done = daskrl.resume(tmp_path / "there", algorithm=algorithm, progress=False).wait()
    assert done.store.digest() == expected


def test_a_replay_that_does_not_fit_is_refused_before_anything_is_made(tmp_path: Path, dqn: daskrl.Store) -> None:
    algorithm, _ = ALGORITHMS["dqn"]
    ppo = start(tmp_path / "ppo", ALGORITHMS["ppo"][0], rounds=1).wait().store
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (algorithm, {"init": dqn, "streams": 4}, r"streams 2 \(this run: 4\)"),
        (algorithm, {"init": dqn, "fragment_steps": 32}, r"fragment_steps 16 \(this run: 32\)"),
        (algorithm, {"init": dqn.weights()[1]}, "init_replay: expected init to be a run's store"),
        (algorithm, {}, "init_replay: expected with init"),
        (ALGORITHMS["ppo"][0], {"init": ppo}, "PPO learns from no replay"),
    ]
    for one, given, message in cases:
        with pytest.raises(errors.ConfigError, match=message):
            start(tmp_path / "run", one, init_replay=True, **given)
    assert not (tmp_path / "run").exists()
    shutil.copytree(dqn.root, tmp_path / "same")
    with pytest.raises(errors.ConfigError, match="would be deleted"):
        start(tmp_path / "same", algorithm, init=tmp_path / "same", init_replay=True, overwrite=True)
    assert daskrl.Store.open(tmp_path / "same").digest() == dqn.digest()


def changed(weights: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    merged = {**weights, **{name.replace("__", "."): value for name, value in values.items()}}
    return {name: value for name, value in merged.items() if value is not None}


def test_weights_that_do_not_fit_are_refused_by_name_before_anything_is_made(tmp_path: Path, dqn: daskrl.Store) -> None:
    algorithm, _ = ALGORITHMS["dqn"]
    _, weights = dqn.weights()
    bias, *_ = (name for name in weights if name.endswith("bias"))
    (tmp_path / "text.safetensors").write_text("no")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"init": changed(weights, **{bias: None})}, f"{bias} is missing"),
        ({"init": changed(weights, another=np.zeros(3))}, "another is not one of the algorithm's"),
        ({"init": changed(weights, **{bias: np.zeros(3, np.float32)})}, rf"{bias} has shape \(3,\)"),
        ({"init": changed(weights, **{bias: np.full(weights[bias].shape, 0.1)})}, f"{bias} is float64"),
        ({"init": changed(weights, **{bias: np.full_like(weights[bias], np.nan)})}, f"{bias} .*not finite"),
        ({"init": tmp_path / "nowhere"}, "init: expected a run's store, a file of safetensors"),
        ({"init": tmp_path / "text.safetensors"}, "cannot be read as safetensors"),
        ({"init": dqn, "init_version": 77}, "keeps weights versions"),
        ({"init": weights, "init_version": 2}, "init_version"),
        ({"init_version": 2}, "init_version: expected with init"),
    ]
    for given, message in cases:
        with pytest.raises(errors.ConfigError, match=message):
            start(tmp_path / "run", algorithm, **given)
    wider = daskrl.DQN(**{**REPLAY, "hidden": (32,)})
    with pytest.raises(errors.ConfigError, match="has shape"):
        start(tmp_path / "run", wider, init=dqn)
    with pytest.raises(errors.ConfigError, match="is missing"):
        start(tmp_path / "run", daskrl.PPO(), init=dqn)
    assert not (tmp_path / "run").exists()


class Constant:
    """An algorithm of one's own, whose weights are one number."""

    def check(self, setup: Any) -> None: ...

    def policy(self, setup: Any) -> dict[str, Any]:
        return {}

    def load(self, policy: dict[str, Any], weights: Mapping[str, Any]) -> None:
        policy.update(weights)

    def act(self, policy: dict[str, Any], moment: Any) -> Any:
        return np.full(len(moment.observation["observation"]), int(policy["action"]))

    def learner(self, setup: Any, random: Any) -> Any:
        return ConstantLearner()


class ConstantLearner:
    memory = updates = 0
    action = 0

    def skip(self, rounds: int) -> None: ...

    def append(self, fragments: Any) -> None: ...

    def learn(self, random: Any) -> None:
        return None

    def weights(self) -> dict[str, Any]:
        return {"action": np.array(self.action)}

    def state(self) -> dict[str, Any]:
        return {"action": np.array(self.action)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.action = int(state["action"])


class BeginningLearner(ConstantLearner):
    def begin_with(self, weights: Mapping[str, Any], others: Mapping[str, Any]) -> None:
        self.action = int(weights["action"])


class Beginning(Constant):
    def learner(self, setup: Any, random: Any) -> Any:
        return BeginningLearner()


class Forgetting(Constant):
    def learner(self, setup: Any, random: Any) -> Any:
        learner = ConstantLearner()
        learner.begin_with = lambda weights, others: None  # type: ignore[attr-defined]
        return learner


def test_an_algorithm_of_ones_own_begins_by_one_method_and_without_it_is_refused_by_name(tmp_path: Path) -> None:
    store = start(tmp_path / "run", Beginning(), init={"action": np.array(1)}).wait().store
    assert {int(action) for record in store.fragments() for action in store.read(record)["action"].ravel()} == {1}
    with pytest.raises(errors.ConfigError, match=r"ConstantLearner has no method begin_with\(weights, others\)"):
        start(tmp_path / "refused", Constant(), init={"action": np.array(1)})
    with pytest.raises(errors.ConfigError, match="has other values of action"):
        start(tmp_path / "refused", Forgetting(), init={"action": np.array(1)})
    assert not (tmp_path / "refused").exists()


def test_a_run_is_gone_on_with_by_train_only_with_the_same_first_weights(tmp_path: Path, dqn: daskrl.Store) -> None:
    algorithm, _ = ALGORITHMS["dqn"]
    begun = start(tmp_path / "run", algorithm, init=dqn).wait()
    assert start(tmp_path / "run", algorithm, init=dqn, resume=True).finished
    shutil.copytree(dqn.root, tmp_path / "copy")
    assert start(tmp_path / "run", algorithm, init=tmp_path / "copy", resume=True).store.run_id == begun.store.run_id
    for other in ({}, {"init": dqn, "init_version": 1}):
        with pytest.raises(errors.StoreMismatchError, match="init"):
            start(tmp_path / "run", algorithm, resume=True, **other)


def test_the_file_of_first_weights_is_checked(tmp_path: Path, dqn: daskrl.Store) -> None:
    algorithm, _ = ALGORITHMS["dqn"]
    run = start(tmp_path / "run", algorithm, init=dqn)
    file = tmp_path / "run" / ".init" / "weights.safetensors"
    assert sorted(load_file(file))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(errors.DamagedError, match=r"weights\.safetensors"):
        run.wait()


def test_the_command_line_begins_with_a_version_of_a_store_and_info_shows_it(
    tmp_path: Path, dqn: daskrl.Store, capsys: pytest.CaptureFixture[str]
) -> None:
    from daskrl.cli import commands as cli

    settings = [f"{name}={value}" for name, value in {**REPLAY, "target_update": 5}.items()]
    cli.train(
        "CartPole-v1", store=tmp_path / "run", env_steps=ROUND, workers=0, set_=settings, streams=2, envs_per_stream=2,
        fragment_steps=16, init=f"{dqn.root}@2", episodes=0,
    )  # fmt: skip
    capsys.readouterr()
    made = daskrl.Store.open(tmp_path / "run")
    assert bits(made.weights(0)[1]) == bits(dqn.weights(2)[1])
    cli.info(tmp_path / "run", as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["begun_with"]["version"] == 2
    assert said["begun_with"]["digest"] == dqn.digest()
    cli.info(tmp_path / "run")
    assert "begun with" in capsys.readouterr().out
