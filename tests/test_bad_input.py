"""Bad input gets a clear error, in time, and nothing that was committed is lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from safetensors.numpy import load_file

import daskrl
from daskrl import errors
from daskrl.algorithms.base import Moment
from daskrl.tasks import learner, rollout, session
from daskrl.testing.harm import fill_disk
from tests import environments
from tests.promise import mounted
from tests.walks import ROUND, SETTINGS, STEPS, WALK, faulty, start


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the walk without faults, never interrupted."""
    return start(tmp_path_factory.mktemp("whole") / "run").wait().store.digest()


def commits(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store / ".commits").glob("*.json"))}


def says(error: pytest.ExceptionInfo[BaseException], *parts: str) -> None:
    """The message names each of these parts."""
    message = str(error.value)
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"


# -- before anything is created ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "error", "parts"),
    [
        ("CartPool-v1", errors.UnknownEnvironmentError, ("CartPool", "CartPole", "pprint_registry")),
        ("no_such_package:Walk-v0", errors.UnknownEnvironmentError, ("no_such_package", "PYTHONPATH")),
        ("tests.environments:Run-v0", errors.UnknownEnvironmentError, ("Run", "pprint_registry")),
        ("tests.environments:TextWalk-v0", errors.UnsupportedSpaceError, ("observation", "Text", "Box", "wrapper")),
        ("tests.environments:PushedWalk-v0", errors.UnsupportedSpaceError, ("Discrete", "box[1]", "sac", "wrap")),
        (lambda: "not an environment", errors.UnknownEnvironmentError, ("gymnasium.Env", "str")),
        (lambda: 1 // 0, errors.ConfigError, ("ZeroDivisionError", "when it was made")),
        (7, errors.ConfigError, ("env", "CartPole-v1", "7")),
    ],
    ids=[
        "unknown id", "missing package", "id its module lacks", "text observation", "continuous action for DQN",
        "not an environment", "raises when made", "a number",
    ],
)  # fmt: skip
def test_an_environment_that_cannot_work_is_refused_before_anything_is_created(
    tmp_path: Path, env: Any, error: type[Exception], parts: tuple[str, ...]
) -> None:
    with pytest.raises(error) as raised:
        start(tmp_path / "run", env)
    says(raised, *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_not_installed_is_named_with_the_extra_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(errors.UnknownEnvironmentError) as raised:
        start(tmp_path / "run", "ALE/Pong-v5")
    says(raised, "ale_py", "pip install 'daskrl[atari]'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("algorithm", "parts"),
    [(daskrl.DQN, ("instance", "DQN()")), ("dqn", ("daskrl.DQN()", "'dqn'")), (None, ("daskrl.DQN()", "None"))],
    ids=["the class", "its name", "None"],
)
def test_what_is_not_an_algorithm_is_refused_and_the_message_shows_one(
    tmp_path: Path, algorithm: Any, parts: tuple[str, ...]
) -> None:
    with pytest.raises(errors.ConfigError) as raised:
        daskrl.train(algorithm, WALK, store=tmp_path / "run", env_steps=STEPS)
    says(raised, *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"streams": 0}, ("streams", ">= 1", "0")),
        ({"envs_per_stream": 1.5}, ("envs_per_stream", "integer", "1.5")),
        ({"seed": -1}, ("seed", ">= 0", "-1")),
        ({"seed": True}, ("seed", "integer", "True")),
        ({"env_steps": 0}, ("env_steps", ">= 1", "0")),
        ({"lag": -1}, ("lag", ">= 0", "-1")),
        ({"fragment_steps": 0}, ("fragment_steps", ">= 1", "0")),
        ({"checkpoint_every": 0}, ("checkpoint_every", ">= 1", "0")),
        ({"rollout_timeout": 0}, ("rollout_timeout", "> 0", "0")),
        ({"rollout_timeout": float("nan")}, ("rollout_timeout", "> 0", "nan")),
        ({"frame_stack": 0}, ("frame_stack", ">= 1", "0")),
        ({"device": "tpu"}, ("device", "'cuda'", "'tpu'")),
        ({"algorithm": daskrl.DQN(window=ROUND - 1)}, ("window", f"{ROUND} transitions", str(ROUND - 1))),
        ({"algorithm": daskrl.DQN(window=ROUND, n_step=9)}, ("n_step", "9", "window")),
        ({"env": environments.walk, "env_kwargs": {"at": 3}}, ("env_kwargs", "at", "lambda")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_number_is_refused_with_what_was_expected_and_what_came(
    tmp_path: Path, given: dict[str, Any], parts: tuple[str, ...]
) -> None:
    with pytest.raises(errors.ConfigError) as raised:
        start(tmp_path / "run", **given)
    says(raised, *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n_step", 0), ("batch_size", 0), ("learning_rate", 0.0), ("replay_ratio", -1.0), ("discount", 1.5),
     ("epsilon_end", 2.0), ("window", 0)],
)  # fmt: skip
def test_a_wrong_setting_of_the_algorithm_is_refused_when_it_is_made(setting: str, value: Any) -> None:
    with pytest.raises(errors.ConfigError) as raised:
        daskrl.DQN(**{setting: value})
    says(raised, setting, "expected", str(value))


def test_a_directory_that_is_something_else_is_left_alone_even_with_overwrite(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("five years of work")
    for overwrite in (False, True):
        with pytest.raises(errors.StoreMismatchError) as raised:
            start(tmp_path, overwrite=overwrite)
        says(raised, str(tmp_path), "not a daskrl store", "another store=")
    with pytest.raises(errors.StoreMismatchError):
        start(thesis, overwrite=True)
    assert thesis.read_text() == "five years of work"
    assert list(tmp_path.iterdir()) == [thesis]


def test_a_store_that_holds_a_run_is_kept_and_the_message_says_how_to_resume(tmp_path: Path) -> None:
    run = start(tmp_path / "run", env_steps=ROUND).wait()
    before = commits(run.store.root)
    with pytest.raises(errors.StoreMismatchError) as raised:
        start(tmp_path / "run")
    says(raised, "already holds a run", f"daskrl resume {tmp_path / 'run'}", "overwrite=True")
    assert commits(run.store.root) == before


def test_overwrite_deletes_the_run_that_was_there(tmp_path: Path, expected: str) -> None:
    start(tmp_path / "run", seed=99, env_steps=ROUND).wait()
    assert start(tmp_path / "run", overwrite=True).wait().store.digest() == expected


def test_what_outlives_a_run_that_was_overwritten_writes_nothing_into_the_next(tmp_path: Path) -> None:
    old = start(tmp_path / "run", seed=99)
    session.put(session.Session("outlives", old.store.layout, old.algorithm, old.source.factory, old.options))
    try:
        weights = learner.learn("outlives", 0, old.store.log.head(), "cpu", False, False)
        start(tmp_path / "run", overwrite=True)
        with pytest.raises(errors.StoreMismatchError, match="holds another run now"):
            rollout.rollout("outlives", 0, 0, 1, weights)
    finally:
        session.forget("outlives")
    assert not list((tmp_path / "run").glob("reward/c.*"))


# -- resuming something else ------------------------------------------------------------------------------


def stopped(store: Path, reports: int = 4, **given: Any) -> Path:
    """A run that was left after some versions."""
    for report in start(store, **given):
        if report.weights_version >= reports:
            break
    return store


def test_a_path_without_a_store_is_named_with_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(tmp_path / "nothing")
    says(raised, "nothing", "not a daskrl store", "daskrl train")
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(tmp_path)
    says(raised, "no daskrl attributes")


def test_a_store_of_another_format_version_is_refused_with_the_versions_that_wrote_it(tmp_path: Path) -> None:
    store = stopped(tmp_path / "run")
    path = store / "zarr.json"
    kept = path.read_text()
    path.write_text(re.sub(r'"format_version": \d+', '"format_version": 1000', kept))
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store)
    says(raised, "version 1000", "this daskrl reads", "Install", "torch")
    path.write_text(kept)
    daskrl.resume(store)


def test_a_store_is_resumed_only_with_the_settings_it_was_made_with(tmp_path: Path, expected: str) -> None:
    store = stopped(tmp_path / "run")
    before = commits(store)
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store, algorithm=daskrl.DQN(**{**SETTINGS, "n_step": 5}))
    says(raised, "n_step: 5", "store: 1")
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store, env=environments.walk)
    says(raised, WALK, "leave env= out")
    with pytest.raises(errors.ConfigError) as config:
        daskrl.resume(store, env_steps=ROUND)
    says(config, "env_steps", f">= {STEPS}", str(ROUND))
    assert commits(store) == before
    again = daskrl.resume(store, algorithm=daskrl.DQN(**SETTINGS), progress=False)
    assert again.wait().store.digest() == expected


def test_a_store_whose_environment_has_other_spaces_by_now_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stopped(tmp_path / "run")
    made = environments.Walk.__init__

    def with_one_action_more(self: environments.Walk, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.action_space = gymnasium.spaces.Discrete(3)

    monkeypatch.setattr(environments.Walk, "__init__", with_one_action_more)
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store)
    says(raised, WALK, "has changed", "install the version")


def test_a_callable_environment_is_given_again_on_resume_and_its_source_is_checked(
    tmp_path: Path, expected: str
) -> None:
    store = stopped(tmp_path / "run", env=environments.walk)
    before = commits(store)
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store)
    says(raised, "'walk'", "Nothing is pickled", "env=walk", "--env MODULE:walk")

    def walk() -> environments.Walk:
        return environments.Walk(fault="raise", at=1)

    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store, env=walk)
    says(raised, "source", "walk", "same code", "new run")
    assert commits(store) == before
    again = daskrl.resume(store, env=environments.walk, progress=False)
    assert again.wait().store.digest() == expected


def test_an_algorithm_of_the_users_own_is_given_again_on_resume_and_its_source_is_checked(
    tmp_path: Path, expected: str
) -> None:
    def first() -> Any:
        class Mine(daskrl.DQN):  # type: ignore[misc, valid-type]
            """The same as DQN."""

        return Mine

    def second() -> Any:
        class Mine(daskrl.DQN):  # type: ignore[misc, valid-type]
            """Something else."""

        return Mine

    store = stopped(tmp_path / "run", algorithm=first()(**SETTINGS))
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store)
    says(raised, "Mine", "Nothing is pickled", "algorithm=", "--algorithm MODULE:")
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store, algorithm=second()(**SETTINGS))
    says(raised, "source of Mine")
    with pytest.raises(errors.StoreMismatchError) as raised:
        daskrl.resume(store, algorithm=first()(**{**SETTINGS, "batch_size": 9}))
    says(raised, "batch_size: 9", "store: 8")
    again = daskrl.resume(store, algorithm=first()(**SETTINGS), progress=False)
    assert again.wait().store.digest() == expected


# -- on the way -------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 2 MB of its own."""
    with mounted(tmp_path / "disk", "2m") as disk:
        yield disk


def fill(disk: Path) -> Path:
    """Leave no byte free."""
    ballast = disk / "ballast"
    fill_disk(ballast)
    return ballast


def test_a_disk_that_fills_up_stops_the_run_and_with_room_again_it_goes_on(small_disk: Path, expected: str) -> None:
    store = small_disk / "run"
    reports = iter(start(store))
    while next(reports).weights_version < 4:
        pass
    ballast = fill(small_disk)
    with pytest.raises(errors.StoreFullError) as raised:
        list(reports)
    says(raised, "No space left", "make room", "daskrl resume")
    assert raised.value.errno == errno.ENOSPC
    before = commits(store)
    with pytest.raises(errors.StoreFullError):  # and again, while it is full
        daskrl.resume(store, progress=False).wait()
    assert commits(store) == before
    ballast.unlink()
    assert daskrl.resume(store, progress=False).wait().store.digest() == expected


def test_a_run_is_not_half_made_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(errors.StoreFullError) as raised:
        start(small_disk / "run")
    says(raised, "No space left", "Nothing was created", "make room")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("refused", ["chunk", "commit"])
def test_wherever_the_file_system_refuses_a_write_the_run_can_be_resumed(
    tmp_path: Path, expected: str, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    run = start(tmp_path / "run")
    reports = iter(run)
    while next(reports).weights_version < 5:
        pass
    with monkeypatch.context() as patch:

        def full(*_: Any) -> Any:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        patch.setattr(os, "replace" if refused == "chunk" else "link", full)
        with pytest.raises(errors.StoreFullError) as raised:
            list(reports)
    says(raised, os.strerror(errno.EDQUOT), "daskrl resume")
    assert not list((tmp_path / "run").glob("**/.*.partial"))
    assert daskrl.resume(tmp_path / "run", progress=False).wait().store.digest() == expected


@pytest.fixture
def trouble(tmp_path: Path) -> Path:
    """The faults last while this file exists."""
    path = tmp_path / "trouble"
    path.touch()
    return path


@pytest.mark.parametrize(
    ("fault", "column"),
    [("nan_reward", "reward"), ("inf_reward", "reward"), ("nan_observation", "observation")],
)
def test_what_is_not_finite_is_never_committed_nor_learned_from(
    tmp_path: Path, expected: str, trouble: Path, fault: str, column: str
) -> None:
    run = faulty(tmp_path / "run", fault, trouble)
    with pytest.raises(errors.NonFiniteError) as raised:
        run.wait()
    says(raised, column, "fragment", "NaN or infinite", "not committed", "daskrl reproduce")
    assert run.report is not None  # there was something to lose
    trouble.unlink()
    assert daskrl.resume(tmp_path / "run", progress=False).wait().store.digest() == expected


def test_an_environment_that_raises_is_named_with_fragment_seed_and_the_line_that_shows_it_again(
    tmp_path: Path, expected: str, trouble: Path
) -> None:
    store = tmp_path / "run"
    run = faulty(store, "raise", trouble)
    with pytest.raises(errors.EnvironmentRaisedError) as raised:
        run.wait()
    says(raised, "RuntimeError in step: the motor is jammed", "step 11", "reset seed")
    assert isinstance(raised.value.__cause__, RuntimeError)
    message = str(raised.value)
    slot = int(re.search(r"fragment (\d+) \(stream", message)[1])  # type: ignore[index]
    seed = int(re.search(r"reset seed (\d+)", message)[1])  # type: ignore[index]
    line = re.search(r"Type: daskrl (.*)", message)[1]  # type: ignore[index]
    assert line == f"reproduce {store} --fragment {slot}"
    assert run.report is not None
    before = commits(store)

    # The seed alone shows it as well: the episode is at most `at` steps long.
    env = environments.Walk("raise", 12, str(trouble))
    env.reset(seed=seed)
    with pytest.raises(RuntimeError, match="jammed"):
        [env.step(0) for _ in range(12)]

    # The line from the message raises the same, and --debug stops where it does.
    typed = [sys.executable, "-m", "daskrl.cli", *line.split()]
    again = subprocess.run(typed, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert " ".join(again.stderr.split()) == "EnvironmentRaisedError: " + " ".join(message.split())
    debugged = subprocess.run(
        [*typed, "--debug"], capture_output=True, text=True, check=False, input="p self.count\nq\n"
    )
    assert "(Pdb) 12" in debugged.stdout
    assert "environments.py" in debugged.stdout

    assert commits(store) == before
    trouble.unlink()
    assert daskrl.resume(store, progress=False).wait().store.digest() == expected


def test_an_environment_that_raises_at_its_first_step_leaves_a_store_that_can_be_resumed(
    tmp_path: Path, expected: str, trouble: Path
) -> None:
    with pytest.raises(errors.EnvironmentRaisedError) as raised:
        faulty(tmp_path / "run", "raise", trouble, at=1).wait()
    says(raised, "fragment 0 (stream 0, round 0)")
    trouble.unlink()
    assert daskrl.resume(tmp_path / "run", progress=False).wait().store.digest() == expected


def test_a_policy_that_draws_from_elsewhere_is_found_and_named(tmp_path: Path) -> None:
    elsewhere = np.random.default_rng(0)

    class Own(daskrl.DQN):  # type: ignore[misc, valid-type]
        def act(self, policy: Any, moment: Any) -> Any:
            return elsewhere.integers(0, 2, len(moment.observation["observation"]))

    with pytest.raises(errors.NondeterministicError) as raised:
        start(tmp_path / "run", algorithm=Own(**SETTINGS), recheck_every=1).wait()
    says(raised, "fragment 0", "action", "or the algorithm's act draws from another generator than moment.random")


def test_an_environment_that_is_not_deterministic_is_found_by_running_a_fragment_twice(
    tmp_path: Path, trouble: Path
) -> None:
    run = faulty(tmp_path / "run", "drift", trouble, at=2, recheck_every=256)
    with pytest.raises(errors.NondeterministicError) as raised:
        run.wait()
    says(raised, "fragment 0", "observation", "reward", "not deterministic", "strict=False", "daskrl reproduce")


def test_an_environment_that_is_not_deterministic_is_found_when_a_stream_is_rebuilt(
    tmp_path: Path, trouble: Path
) -> None:
    for report in faulty(tmp_path / "run", "drift", trouble, at=2):
        if report.weights_version == 3:
            break
    with pytest.raises(errors.NondeterministicError) as raised:
        daskrl.resume(tmp_path / "run", progress=False).wait()
    says(raised, "rebuilding stream", "not deterministic", "strict=False", "--no-strict", "daskrl reproduce")


@pytest.mark.parametrize("recheck_every", [256, 0], ids=["found by the second run", "found on rebuilding"])
@pytest.mark.filterwarnings("ignore:.*without the promise:UserWarning", "ignore:.*new episodes:UserWarning")
def test_without_the_promise_the_run_goes_on_and_the_store_says_why(
    tmp_path: Path, trouble: Path, recheck_every: int
) -> None:
    store = tmp_path / "run"
    for report in faulty(store, "drift", trouble, at=2, strict=False, recheck_every=recheck_every):
        if report.weights_version == 3:
            break
    run = daskrl.resume(store, progress=False).wait()
    assert run.finished
    reasons = run.store.promise_off()
    assert any("could not be rebuilt" in reason for reason in reasons)
    if recheck_every:
        assert any("second time" in reason and "not deterministic" in reason for reason in reasons)
    assert run.store.summary()["promise"] == reasons
    info = [sys.executable, "-m", "daskrl.cli", "info", str(store)]
    shown = subprocess.run(info, capture_output=True, text=True, check=True).stdout
    assert "could not be rebuilt" in " ".join(shown.replace("│", " ").split())
    asked = subprocess.run([*info, "--json"], capture_output=True, text=True, check=True).stdout
    assert json.loads(asked)["promise"] == reasons


def test_an_environment_that_hangs_is_given_up_after_the_timeout(tmp_path: Path, expected: str, trouble: Path) -> None:
    run = faulty(tmp_path / "run", "hang", trouble, rollout_timeout=1)
    with pytest.raises(errors.EnvironmentTimeoutError) as raised:
        run.wait()
    says(raised, "fragment", "rollout_timeout = 1 s", "Raise rollout_timeout", "daskrl reproduce")
    trouble.unlink()
    again = daskrl.resume(tmp_path / "run", rollout_timeout=600, progress=False)
    assert again.wait().store.digest() == expected


def test_two_drivers_of_one_store_are_refused_and_the_first_goes_on(tmp_path: Path, expected: str) -> None:
    store = tmp_path / "run"
    reports = iter(start(store))
    next(reports)
    with pytest.raises(errors.StoreLockedError) as raised:
        daskrl.resume(store, progress=False).wait()
    says(raised, f"process {os.getpid()}", "one driver at a time")
    typed = [sys.executable, "-m", "daskrl.cli", "resume", str(store), "--workers", "0"]
    other = subprocess.run(typed, capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert f"process {os.getpid()}" in other.stderr
    with pytest.raises(errors.StoreLockedError):
        start(store, overwrite=True)
    for _ in reports:
        pass
    assert daskrl.Store.open(store).digest() == expected


@pytest.mark.parametrize("how", ["learning rate", "reward"])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_learned(
    tmp_path: Path, trouble: Path, how: str
) -> None:
    store = tmp_path / "run"
    if how == "learning rate":
        algorithm = daskrl.DQN(**{**SETTINGS, "learning_rate": 1e30})
        run = start(store, algorithm=algorithm)
    else:
        run = faulty(store, "huge_reward", trouble)
    with pytest.raises(errors.DivergedError) as raised:
        run.wait()
    says(raised, "loss of version", "checkpoint", "learning_rate", "reward_clip", "new run")
    (batch,) = (store / ".diverged").iterdir()
    says(raised, str(batch))
    assert len(load_file(batch)["action"]) == SETTINGS["batch_size"]
    assert run.report is not None
    assert run.report.loss is None or abs(run.report.loss) < float("inf")
    with pytest.warns(UserWarning, match="weights version 0 is the newest kept"):
        assert daskrl.evaluate(store, episodes=2).weights_version == 0
    with pytest.raises(errors.DivergedError):  # the same settings diverge again, after every version kept
        daskrl.resume(store, progress=False).wait()


@dataclasses.dataclass(frozen=True)
class Diverged(daskrl.DQN):
    """Its policy gives NaN from the second round on."""

    columns: ClassVar[dict[str, str]] = {"score": "float32"}

    def act(self, policy: Any, moment: Moment) -> Any:
        score = np.full(len(moment.observation["observation"]), np.nan if moment.env_steps >= ROUND else 0.0)
        return super().act(policy, moment), {"score": score.astype(np.float32)}


def test_a_policy_that_gives_nan_is_told_from_an_environment_that_does(tmp_path: Path) -> None:
    run = start(tmp_path / "run", algorithm=Diverged(**SETTINGS))
    with pytest.raises(errors.NonFiniteError, match="score of fragment") as raised:
        run.wait()
    says(raised, "from the policy", "learning has diverged", "learning_rate", "reproduce")


@dataclasses.dataclass(frozen=True)
class Poisoned(daskrl.DQN):
    """An update that leaves a NaN among the weights, and a finite loss."""

    at: int = 24  # the last of the 8 updates that version 4 makes

    def update(self, learner: Any, batch: Any) -> Any:
        result = super().update(learner, batch)
        if learner.updates + 1 == self.at:
            next(learner.online.parameters()).data[0] = float("nan")
        return result


@dataclasses.dataclass(frozen=True)
class PoisonedCritic(daskrl.TD3):
    """The same in the critics: the actor, which is published, is not updated with them."""

    def update(self, learner: Any, batch: Any) -> Any:
        result = super().update(learner, batch)
        if learner.updates + 1 == 24:
            next(learner.online.critics.parameters()).data[0] = float("nan")
        return result


@pytest.mark.parametrize("env_steps", [4 * ROUND, STEPS], ids=["in the last round", "on the way"])
@pytest.mark.parametrize(
    ("algorithm", "env", "named"),
    [
        (Poisoned(**SETTINGS), WALK, "advantage.0.weight"),
        (PoisonedCritic(**SETTINGS, policy_delay=5), "Pendulum-v1", "critics"),
    ],
    ids=["published", "not published"],
)
def test_weights_that_are_not_finite_stop_the_run_before_they_are_published(
    tmp_path: Path, algorithm: Any, env: str, named: str, env_steps: int
) -> None:
    store = tmp_path / "run"
    run = start(store, env, algorithm, env_steps=env_steps)
    with pytest.raises(errors.DivergedError) as raised:
        run.wait()
    says(raised, "version 4", "NaN or infinite", named, "last good checkpoint is that of 2", "learning_rate", "new run")
    (batch,) = (store / ".diverged").iterdir()
    says(raised, str(batch))
    assert len(load_file(batch)["action"]) == SETTINGS["batch_size"]
    assert run.report is not None
    assert run.report.weights_version == 3
    for _, weights in (run.store.weights(version) for version in run.store.weights_versions()):
        assert all(np.isfinite(value).all() for value in weights.values())


@dataclasses.dataclass(frozen=True)
class BadPriorities(daskrl.DQN):
    """TD errors of NaN beside a finite loss."""

    def update(self, learner: Any, batch: Any) -> Any:
        loss, td_error = super().update(learner, batch)
        return loss, td_error * float("nan") if learner.updates + 1 == 24 else td_error


def test_a_td_error_that_is_not_finite_stops_the_run_as_a_loss_does(tmp_path: Path) -> None:
    store = tmp_path / "run"
    with pytest.raises(errors.DivergedError) as raised:
        start(store, algorithm=BadPriorities(**SETTINGS, priority_alpha=0.6)).wait()
    says(
        raised, "version 4", "TD error", "last good checkpoint is that of 2", "learning_rate", "reward_clip", "new run"
    )
    (batch,) = (store / ".diverged").iterdir()
    says(raised, str(batch))
    assert len(load_file(batch)["action"]) == SETTINGS["batch_size"]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_ppo_that_diverges_names_the_version_and_what_to_lower(tmp_path: Path, seed: int) -> None:
    run = daskrl.train(
        daskrl.PPO(learning_rate=10.0, epochs=4, batch_size=32), "Pendulum-v1", store=tmp_path / "run", seed=seed,
        env_steps=100 * 128, streams=2, envs_per_stream=2, fragment_steps=32, checkpoint_every=2, progress=False,
    )  # fmt: skip
    with pytest.raises((errors.DivergedError, errors.NonFiniteError)) as raised:
        run.wait()
    assert run.report is not None
    reached = run.report.weights_version
    says(raised, "diverged", "Lower learning_rate", "new run")
    if isinstance(raised.value, errors.DivergedError):
        says(raised, f"version {reached + 1}", "checkpoint", ".diverged")
    else:
        says(raised, f"version {reached}", "policy")


@dataclasses.dataclass(frozen=True)
class Wide(daskrl.PPO):
    """Its weights stay finite, but from version 2 on no float holds the deviation of its actions."""

    def update(self, learner: Any, round_: Any, random: Any) -> float:
        loss = super().update(learner, round_, random)
        if learner.window.rounds == 2:
            learner.online.log_std.data.fill_(200.0)
        return loss


def test_a_policy_of_finite_weights_that_gives_nan_is_named_with_their_version(tmp_path: Path) -> None:
    with pytest.raises(errors.NonFiniteError) as raised:
        start(tmp_path / "run", "Pendulum-v1", Wide(epochs=1, batch_size=16)).wait()
    says(raised, "policy", "version 2", "diverged", "Lower learning_rate", "new run", "daskrl reproduce")


def test_an_observation_of_nan_is_the_environments_also_where_the_policy_passes_it_on(
    tmp_path: Path, trouble: Path
) -> None:
    with pytest.raises(errors.NonFiniteError, match=r"^observation of fragment") as raised:
        faulty(tmp_path / "run", "nan_observation", trouble, algorithm=daskrl.PPO(epochs=1, batch_size=16)).wait()
    assert "policy" not in str(raised.value)


@dataclasses.dataclass(frozen=True)
class NanActions(daskrl.TD3):
    """Acts with NaN from the second round on."""

    def act(self, policy: Any, moment: Moment) -> Any:
        return super().act(policy, moment) * (np.float32("nan") if moment.env_steps >= ROUND else 1)


class Strict(environments.PushedWalk):
    """Raises where an action is no number."""

    def step(self, action: Any) -> Any:
        if np.isnan(action).any():
            raise ValueError("the motor is told nan")
        return super().step(action[0] > 0)


@pytest.mark.parametrize("env", ["Pendulum-v1", Strict], ids=["passes it on", "raises"])
def test_an_action_of_nan_is_the_policys_whatever_the_environment_makes_of_it(tmp_path: Path, env: Any) -> None:
    with pytest.raises(errors.NonFiniteError, match=r"^action of fragment") as raised:
        start(tmp_path / "run", env, NanActions(**SETTINGS)).wait()
    says(raised, "from the policy of weights version 0", "learning has diverged", "learning_rate", "reproduce")


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        (daskrl.C51(**SETTINGS, atoms=11), "CartPole-v1"),
        (daskrl.R2D2(**{**SETTINGS, "window": 16 * ROUND, "replay_ratio": 16.0}, lstm=4, n_step=2), "CartPole-v1"),
        (daskrl.PPO(batch_size=16), "CartPole-v1"),
        (daskrl.IMPALA(), "CartPole-v1"),
        (daskrl.SAC(**SETTINGS), "Pendulum-v1"),
        (daskrl.TD3(**SETTINGS), "Pendulum-v1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_loss_that_is_not_finite_stops_every_algorithm_and_its_batch_is_kept(
    tmp_path: Path, algorithm: Any, env: str
) -> None:
    run = daskrl.train(
        dataclasses.replace(algorithm, learning_rate=1e30), env, store=tmp_path / "run", env_steps=20 * ROUND, seed=0,
        streams=2, envs_per_stream=2, fragment_steps=8, progress=False,
    )  # fmt: skip
    with pytest.raises(errors.DivergedError, match="loss of version") as raised:
        run.wait()
    (batch,) = (tmp_path / "run" / ".diverged").iterdir()
    says(raised, str(batch))
    kept = load_file(batch)
    assert {"observation", "action", "reward", "discount"} <= set(kept)


def test_every_error_survives_pickling_and_is_also_a_standard_exception() -> None:
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.DaskrlError):
            error = cls(28, "full") if issubclass(cls, OSError) else cls("what happened")
            again = pickle.loads(pickle.dumps(error))
            assert (type(again), again.args) == (cls, error.args), name
    assert issubclass(errors.StoreFullError, OSError)
    assert issubclass(errors.EnvironmentTimeoutError, TimeoutError)
