"""What makes two runs the same run: what was captured, settings, arguments, and ids that a script registered."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pandas
import pytest
from distributed import Client, LocalCluster

import daskrl
from daskrl import codec
from daskrl.envs import source as sources
from daskrl.errors import ConfigError, StoreMismatchError, UnknownEnvironmentError
from daskrl.store import attributes
from daskrl.store.files import crc32c
from daskrl.store.store import Store
from tests import held

pytestmark = pytest.mark.filterwarnings("ignore:no worker offers the resource learner")

SHAPE: dict[str, Any] = {"streams": 2, "envs_per_stream": 2, "fragment_steps": 8, "progress": False}
SMALL: dict[str, Any] = {"hidden": (8,), "learning_starts": 0, "batch_size": 4, "replay_ratio": 0.5, "window": 100}
ROUND = 2 * 2 * 8


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two processes, over TCP."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as made,
    ):
        yield made


def dqn() -> Any:
    return daskrl.DQN(**SMALL)


def begun(store: Path, env: Any, algorithm: Any = None, **options: Any) -> Path:
    """A run that was stopped after its first version."""
    run = daskrl.train(algorithm or dqn(), env, store=store, env_steps=4 * ROUND, **SHAPE, **options)
    for report in run:
        if report.weights_version >= 1:
            break
    return store


def finished(store: Path, env: Any, algorithm: Any = None, **options: Any) -> str:
    run = daskrl.train(algorithm or dqn(), env, store=store, env_steps=4 * ROUND, **SHAPE, **options)
    return run.wait().store.digest()


def python(code: str, *arguments: object, folder: Path) -> str:
    """What another process printed."""
    script = folder / "script.py"
    script.write_text(textwrap.dedent(code))
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "random"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def without_captured(store: Path) -> Path:
    """As a store of a daskrl that did not look at values."""
    path = store / "zarr.json"
    metadata = json.loads(path.read_text())
    attributes = metadata["attributes"]
    for part in ("environment", "algorithm"):
        attributes["config"][part].pop("captured")
    changed(store, metadata)
    return store


def changed(store: Path, metadata: dict[str, Any]) -> None:
    """Attributes as if the store had been made with them."""
    (store / "zarr.json").write_text(json.dumps(metadata))
    commit = store / ".commits" / "00000000.json"
    records = json.loads(commit.read_text())["records"]
    records[0]["attributes_crc32c"] = attributes.checksum(metadata["attributes"])
    body = json.dumps(records)
    commit.write_text(f'{{"crc32c":"{crc32c(body.encode()):08x}","records":{body}}}')


# -- captured values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["in_closure", "in_partial", "in_method"])  # others: tests/test_captured.py
def test_a_run_stopped_on_one_reward_scale_is_not_resumed_with_another(tmp_path: Path, place: str) -> None:
    make = held.PLACES[place]
    store = begun(tmp_path / "run", make(1.0))
    for again in (daskrl.resume, daskrl.evaluate) if place == "in_closure" else (daskrl.resume,):
        given: dict[str, Any] = {"episodes": 1} if again is daskrl.evaluate else {}
        if again is daskrl.resume:
            with pytest.raises(StoreMismatchError, match=r"5\.0 \(store: 1\.0\).*start a new run"):
                again(store, env=make(5.0), **given)
        again(store, env=make(1.0), **given)
    with pytest.raises(StoreMismatchError, match=r"5\.0 \(store: 1\.0\)"):
        daskrl.train(dqn(), make(5.0), store=store, env_steps=4 * ROUND, resume=True, **SHAPE)
    assert daskrl.train(dqn(), make(1.0), store=store, env_steps=4 * ROUND, resume=True, **SHAPE).wait().finished


def test_a_large_array_that_differs_in_its_middle_is_another_and_so_told(tmp_path: Path) -> None:
    one, other = held.VALUES["middle of a large array"]
    store = begun(tmp_path / "run", functools.partial(held.Scaled, one))
    with pytest.raises(StoreMismatchError, match=r"array <f8 \(100000,\), sha256 \w+ \(store: array <f8"):
        daskrl.resume(store, env=functools.partial(held.Scaled, other))
    daskrl.resume(store, env=functools.partial(held.Scaled, one.copy()))


AGAIN = """
    import sys
    import daskrl
    from tests import held

    make = getattr(held, sys.argv[2])
    for value in (5.0, 1.0):
        try:
            print(daskrl.resume(sys.argv[1], env=make(value), progress=False).wait().store.digest())
        except daskrl.errors.StoreMismatchError as error:
            print("refused:", error)
"""


@pytest.mark.parametrize(
    ("make", "said"), [("in_object", "scale: 5.0 (store: 1.0)"), ("in_frame", "df: DataFrame, sha256")]
)
def test_an_object_without_a_repr_and_a_frame_are_the_same_in_a_new_process_and_others_are_not(
    tmp_path: Path, make: str, said: str
) -> None:
    expected = finished(tmp_path / "whole", getattr(held, make)(1.0))
    store = begun(tmp_path / "run", getattr(held, make)(1.0))
    refused, resumed = python(AGAIN, store, make, folder=tmp_path).splitlines()
    assert refused.startswith("refused:")
    assert said in refused
    assert resumed == expected


def test_what_cannot_be_compared_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with open(os.devnull) as handle:

        def make() -> Any:
            return held.Scaled(handle)

        with pytest.raises(ConfigError, match=r"^make\.<closure>\.handle: holds a value of the type _io\.Text"):
            daskrl.train(dqn(), make, store=tmp_path / "run", env_steps=ROUND, **SHAPE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "env", [held.Scaled, held.in_closure(1.0), held.in_partial(1.0)], ids=["class", "lambda", "partial"]
)
def test_a_store_made_before_values_counted_is_resumed_by_the_source_alone(tmp_path: Path, env: Any) -> None:
    expected = finished(tmp_path / "whole", env)
    store = begun(tmp_path / "run", env)
    path = store / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["config"]["environment"]["source_sha256"] = sources.old_source_sha256(env)
    path.write_text(json.dumps(metadata))
    changed(store, metadata)
    without_captured(store)
    assert daskrl.resume(store, env=env, progress=False).wait().store.digest() == expected


def test_a_class_made_by_a_call_with_no_method_of_its_own_is_known_by_its_values(tmp_path: Path) -> None:
    def made(bonus: float) -> Any:
        return type("Made", (held.Base,), {"bonus": bonus})

    store = begun(tmp_path / "run", made(0.25))
    with pytest.raises(StoreMismatchError, match=r"bonus: 2\.0 \(store: 0\.25\)"):
        daskrl.resume(store, env=made(2.0))
    daskrl.resume(store, env=made(0.25))


# -- algorithms -------------------------------------------------------------------------------------------


class Plain(daskrl.DQN):  # type: ignore[misc, valid-type]
    """No dataclass of its own."""

    def __init__(self, foo: Any = 1.0, **settings: Any) -> None:
        super().__init__(**{**SMALL, **settings})
        object.__setattr__(self, "foo", foo)


class Private(daskrl.DQN):  # type: ignore[misc, valid-type]
    def __init__(self, foo: Any = 1.0) -> None:
        super().__init__(**SMALL)
        object.__setattr__(self, "_foo", foo)


@dataclasses.dataclass(frozen=True)
class Declared(daskrl.DQN):  # type: ignore[misc, valid-type]
    foo: Any = 1.0
    hidden: tuple[int, ...] = (8,)
    learning_starts: int = 0
    batch_size: int = 4
    window: int = 100


class Below(Declared):
    def __init__(self, foo: Any = 1.0) -> None:
        super().__init__()
        self.__dict__["foo"] = foo


class BelowPPO(daskrl.PPO):  # type: ignore[misc, valid-type]
    def __init__(self, foo: Any = 1.0) -> None:
        super().__init__(hidden=(8,))
        object.__setattr__(self, "foo", foo)


OWN = [Plain, Private, Declared, Below, BelowPPO]


@pytest.mark.parametrize(
    ("cls", "values_"),
    [*((cls, (1.0, 5.0)) for cls in OWN), (Plain, ((1, 2), [1, 2])), (Private, (held.Config(3), held.Config(4))),
     (Declared, (np.arange(9), np.arange(1, 10))), (Below, (abs, len))],
    ids=repr,
)  # fmt: skip
def test_an_own_algorithm_is_resumed_only_with_the_values_it_was_made_with(
    tmp_path: Path, cls: Any, values_: tuple[Any, Any]
) -> None:
    one, other = values_
    store = begun(tmp_path / "run", held.Scaled, cls(foo=one))
    with pytest.raises(StoreMismatchError, match="foo"):
        daskrl.resume(store, env=held.Scaled, algorithm=cls(foo=other))
    with pytest.raises(StoreMismatchError, match="foo"):
        daskrl.train(cls(foo=other), held.Scaled, store=store, env_steps=4 * ROUND, resume=True, **SHAPE)
    daskrl.resume(store, env=held.Scaled, algorithm=cls(foo=one))


def test_the_settings_of_a_plain_subclass_stand_in_the_store(tmp_path: Path) -> None:
    store = begun(tmp_path / "run", held.Scaled, Plain(foo=(1, 2), n_step=2))
    kept = Store.open(store).config.algorithm["settings"]
    assert kept["foo"] == {"$tuple": [1, 2]}
    assert kept["n_step"] == 2
    assert kept["hidden"] == [8]  # declared a tuple, and written as it always was


def test_a_class_attribute_of_an_own_algorithm_counts_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Plain):
        bonus = float(np.float64(0.5))

    store = begun(tmp_path / "run", held.Scaled, Own())
    monkeypatch.setattr(Own, "bonus", 0.25)
    with pytest.raises(StoreMismatchError, match=r"bonus: 0\.25 \(store: 0\.5\)"):
        daskrl.resume(store, env=held.Scaled, algorithm=Own())


def test_a_method_that_an_own_base_class_has_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Plain):
        pass

    store = begun(tmp_path / "run", held.Scaled, Own())

    def check(self: Any, setup: Any) -> None:
        daskrl.DQN.check(self, setup)

    monkeypatch.setattr(Plain, "check", check, raising=False)
    with pytest.raises(StoreMismatchError, match="check"):
        daskrl.resume(store, env=held.Scaled, algorithm=Own())


def test_a_setting_that_is_a_whole_number_is_the_same_as_its_float(tmp_path: Path) -> None:
    store = begun(tmp_path / "run", held.Scaled, daskrl.DQN(**SMALL, reward_clip=1))
    daskrl.resume(store, env=held.Scaled, algorithm=daskrl.DQN(**SMALL, reward_clip=1.0))
    with pytest.raises(StoreMismatchError, match=r"reward_clip: 2 \(store: 1\.0\)|reward_clip: 2\.0 \(store: 1\.0\)"):
        daskrl.resume(store, env=held.Scaled, algorithm=daskrl.DQN(**SMALL, reward_clip=2))


class Buffered(held.Base):
    """All of its kind write their observations to one array, and keep them in one dict."""

    buffer = np.zeros(1, np.float32)
    last: ClassVar[dict[str, Any]] = {}
    scale = 1.0

    def step(self, action: Any) -> Any:
        observation, reward, over, cut, info = super().step(action)
        self.buffer[:] = observation
        self.last["observation"] = self.buffer
        return self.buffer, reward * self.scale, over, cut, info


@pytest.mark.parametrize("default", [None, np.zeros(1, np.float32)], ids=["class", "default argument"])
def test_an_array_that_steps_write_to_makes_no_other_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: Any
) -> None:
    class Own(Buffered):
        def step(self, action: Any, out: Any = default) -> Any:
            observation, *rest = super().step(action)
            if out is not None:
                out[:] = observation
            return observation if out is None else out, *rest

    expected = finished(tmp_path / "whole", Own)
    store = begun(tmp_path / "run", Own)
    assert not daskrl.evaluate(store, env=Own, episodes=2).other_environment
    assert not daskrl.reproduce(store, 0, env=Own).differs
    daskrl.resume(store, env=Own)
    daskrl.resume(store, env=Own)
    if default is not None:
        default[:] = 9  # as in a process that stepped another number of times
    Own.last.clear()
    run = daskrl.train(dqn(), Own, store=store, env_steps=4 * ROUND, resume=True, **SHAPE)
    assert run.wait().store.digest() == expected
    monkeypatch.setattr(Buffered, "scale", 2.0)
    with pytest.raises(StoreMismatchError, match=r"scale: 2\.0 \(store: 1\.0\)") as caught:
        daskrl.resume(store, env=Own)
    assert "buffer" not in str(caught.value)


# -- env_kwargs -------------------------------------------------------------------------------------------


class Told(held.Base):
    """Its reward says what it was given."""

    def __init__(self, goal: Any = None, **more: Any) -> None:
        self.goal, self.more = goal, more

    def step(self, action: Any) -> Any:
        observation, _, over, cut, info = super().step(action)
        kinds = repr((self.goal, [type(item) for item in self.goal] if isinstance(self.goal, tuple) else "", self.more))
        return observation, float(sum(kinds.encode()) % 10_007), over, cut, info


gymnasium.register("Told-v0", entry_point=Told)

ARGUMENTS: dict[str, Any] = {
    "tuple": {"goal": (2, 0)},
    "keys that are numbers": {"goal": {0: 5.0}},
    "NumPy": {"goal": (np.float32(0.5), np.arange(3)), "size": np.int64(3)},
    "nested": {"goal": {"a": [(1, {2: {"b"}})]}, "slice": slice(1, 2)},
    "not finite": {"goal": (float("inf"), float("nan"), -0.0)},
}


@pytest.mark.parametrize("kwargs", ARGUMENTS.values(), ids=list(ARGUMENTS))
def test_env_kwargs_come_back_as_they_were_given(tmp_path: Path, kwargs: Any) -> None:
    expected = finished(tmp_path / "whole", "Told-v0", env_kwargs=kwargs)
    assert expected != finished(tmp_path / "other", "Told-v0")
    store = begun(tmp_path / "run", "Told-v0", env_kwargs=kwargs)
    scores = daskrl.evaluate(store, episodes=2).returns
    direct = gymnasium.make("Told-v0", **kwargs)
    direct.reset()
    assert scores[0] == 5 * direct.step(0)[1]
    assert not daskrl.reproduce(store, 0).differs
    assert daskrl.resume(store, progress=False).wait().store.digest() == expected
    daskrl.train(dqn(), "Told-v0", store=store, env_steps=4 * ROUND, env_kwargs=kwargs, resume=True, **SHAPE)
    with pytest.raises(StoreMismatchError, match=r"env_kwargs goal: \[2, 0\] \(store: "):
        daskrl.train(dqn(), "Told-v0", store=store, env_steps=4 * ROUND, env_kwargs={**kwargs, "goal": [2, 0]},
                     resume=True, **SHAPE)  # fmt: skip


def test_env_kwargs_are_the_same_on_workers(tmp_path: Path, client: Client) -> None:
    kwargs = {"goal": (2, 0), "table": {0: np.arange(3)}}
    expected = finished(tmp_path / "here", "Told-v0", env_kwargs=kwargs)
    assert finished(tmp_path / "there", "Told-v0", env_kwargs=kwargs, client=client) == expected


def test_each_environment_has_env_kwargs_of_its_own(tmp_path: Path) -> None:
    made = sources.source("Told-v0", goal=np.arange(3)).factory
    one, other = made().unwrapped, made().unwrapped
    one.goal[0] = 7  # type: ignore[attr-defined]
    assert other.goal[0] == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        (["goal"], r"env_kwargs: expected a dict .* got \['goal'\]"),
        ({0: 5.0}, r"env_kwargs: expected a dict .* got \{0: 5\.0\}"),
        ("goal=1", "env_kwargs: expected a dict .* got 'goal=1'"),
        ({"id": 1}, "env_kwargs id: .*Leave it out"),
        ({"disable_env_checker": True}, "env_kwargs disable_env_checker: .*Leave it out"),
    ],
)
def test_env_kwargs_that_are_no_arguments_are_refused_before_anything_is_made(
    tmp_path: Path, kwargs: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        begun(tmp_path / "run", "Told-v0", env_kwargs=kwargs)
    assert not (tmp_path / "run").exists()
    store = begun(tmp_path / "told", "Told-v0")
    with pytest.raises(ConfigError, match=said):
        daskrl.evaluate(store, episodes=1, env_kwargs=kwargs)


def test_an_environment_may_have_an_argument_named_env(tmp_path: Path) -> None:
    assert begun(tmp_path / "run", "Told-v0", env_kwargs={"env": (1,), "kwargs": 2, "factory": 3}).exists()


FRAME = pandas.DataFrame({name: np.linspace(1, 2, 40) + i for i, name in enumerate(["Open", "High", "Low", "Close"])})


def test_a_frame_is_refused_by_name_with_a_callable_as_the_way_out(tmp_path: Path) -> None:
    import gym_anytrading  # type: ignore[import-untyped]  # noqa: F401 - registers stocks-v0

    given = {"df": FRAME, "window_size": 5, "frame_bound": (5, 40)}
    with pytest.raises(
        ConfigError, match=r"env_kwargs: df: .*DataFrame.*lambda: gymnasium\.make\('stocks-v0', df=df, w"
    ):
        daskrl.train(dqn(), "stocks-v0", store=tmp_path / "run", env_steps=ROUND, env_kwargs=given, **SHAPE)
    assert not (tmp_path / "run").exists()


# -- ids that a script registered -------------------------------------------------------------------------

SCRIPT = """
    import json, sys
    import gymnasium
    from distributed import Client
    from gymnasium.envs.registration import WrapperSpec
    import daskrl
    from tests.held import Scaled

    BONUS = {bonus}

    class Here(Scaled):
        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, reward + BONUS, *rest

    class Doubled(gymnasium.RewardWrapper):
        def reward(self, reward):
            return 2 * reward

    doubled = WrapperSpec("Doubled", f"{{__name__}}:Doubled", {{}})
    for number, entry in enumerate([Here, f"{{__name__}}:Here", lambda **kwargs: Here(**kwargs)]):
        gymnasium.register(f"Here-v{{number}}", entry_point=entry, max_episode_steps={steps}, kwargs={{"held": 2.0}},
                           additional_wrappers=(doubled,))

    def digest(store, id, client=None, *, stop=False):
        shape = dict(streams=2, envs_per_stream=2, fragment_steps=8, progress=False)
        dqn = daskrl.DQN(hidden=(8,), learning_starts=0, batch_size=4, replay_ratio=0.5, window=100)
        run = daskrl.train(dqn, id, store=store, env_steps=128, client=client, resume=True, **shape)
        for report in run:
            if stop and report.weights_version >= 1:
                break
        return run.store.digest()

    if __name__ == "__main__":
        name, __file__ = __file__, None  # workers have no such __main__, as those of a notebook or of other machines
        with daskrl.clusters.local(2) as cluster, Client(cluster) as client:
            __file__ = name
            ids = [f"Here-v{{number}}" for number in range(3)]
            here = [digest(f"{{id}}-here", id) for id in ids]
            there = [digest(f"{{id}}-there", id, client) for id in ids]
            digest("stopped", "Here-v0", client, stop=True)
        print(json.dumps([here, there, daskrl.evaluate("Here-v0-there", episodes=1).returns]))
"""


def script(*, bonus: float = 1.0, steps: int = 3) -> str:
    return textwrap.dedent(SCRIPT.format(bonus=bonus, steps=steps))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str], list[float]]:
    """Where a script has run, and the digests of its runs in its process and on workers: class, name and lambda."""
    folder = tmp_path_factory.mktemp("scripted")
    return (folder, *json.loads(python(script(), folder=folder)))


def test_ids_registered_in_a_script_are_trained_on_workers_with_the_same_bits(
    scripted: tuple[Path, list[str], list[str], list[float]],
) -> None:
    _, here, there, returns = scripted
    assert there == here
    assert len(returns) == 1


def test_an_id_registered_in_a_script_is_resumed_with_the_same_registration_alone(
    tmp_path: Path, scripted: tuple[Path, list[str], list[str], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here, *_ = scripted
    store = folder / "stopped"
    monkeypatch.syspath_prepend(tmp_path)
    for number in range(3):
        monkeypatch.delitem(gymnasium.registry, f"Here-v{number}", raising=False)
    with pytest.raises(UnknownEnvironmentError, match=r"Register it here, too, .*--env MODULE:Here-v0"):
        daskrl.resume(store)
    for module, changes, said in (
        ("other_bonus", {"bonus": 2.0}, r"BONUS: 2\.0 \(store: 1\.0\)"),
        ("other_steps", {"steps": 4}, r"registered\.max_episode_steps: 4 \(store: 3\)"),
    ):
        (tmp_path / f"{module}.py").write_text(script(**changes))
        with pytest.raises(StoreMismatchError, match=said):
            daskrl.resume(store, env=f"{module}:Here-v0")
    (tmp_path / "my_script.py").write_text(script())
    assert daskrl.evaluate(store, env="my_script:Here-v0", episodes=1).returns
    assert daskrl.resume(store, env="my_script:Here-v0", progress=False).wait().store.digest() == here[0]


def test_an_id_whose_registration_was_changed_is_told_from_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(tmp_path / "run", "CartPole-v1")
    monkeypatch.setattr(gymnasium.spec("CartPole-v1"), "max_episode_steps", 7)
    with pytest.raises(StoreMismatchError, match=r"registered\.max_episode_steps: 7 \(store: 500\)"):
        daskrl.resume(store)
    other = finished(tmp_path / "other", "CartPole-v1")
    assert max(daskrl.evaluate(tmp_path / "other", episodes=4).lengths) <= 7
    monkeypatch.undo()
    assert other != finished(tmp_path / "third", "CartPole-v1")
    daskrl.resume(store)


def test_a_changed_registration_reaches_workers(
    tmp_path: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gymnasium.spec("CartPole-v1"), "max_episode_steps", 7)
    here = finished(tmp_path / "here", "CartPole-v1")
    assert finished(tmp_path / "there", "CartPole-v1", client=client) == here


def test_the_code_of_a_registered_environment_of_the_users_own_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = begun(tmp_path / "run", "tests.environments:Walk-v0")
    from tests import environments

    monkeypatch.setattr(environments.Walk, "step", held.Base.step)
    with pytest.raises(StoreMismatchError, match="Walk"):
        daskrl.resume(store)


# -- what a later daskrl says -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["config.exploration", "config.schedule.jitter", "config.environment.wrappers", "config.algorithm.parts",
     "spec.observation.unit", "columns.unit"],
)  # fmt: skip
def test_a_store_of_a_later_daskrl_is_read_and_not_gone_on_with(tmp_path: Path, path: str) -> None:
    store = begun(tmp_path / "run", "CartPole-v1")
    metadata = json.loads((store / "zarr.json").read_text())
    place: Any = metadata["attributes"]
    for name in path.split(".")[:-1]:
        place = place[name]
        place = place[0] if isinstance(place, list) else place
    place[path.rpartition(".")[2]] = 3
    changed(store, metadata)
    opened = Store.open(store)
    assert opened.summary()["fragments"] > 0
    assert opened.digest()
    assert daskrl.evaluate(store, episodes=1).returns
    for again in (
        lambda: daskrl.resume(store),
        lambda: daskrl.reproduce(store, 0),
        lambda: daskrl.train(dqn(), "CartPole-v1", store=store, env_steps=4 * ROUND, resume=True, **SHAPE),
    ):
        with pytest.raises(StoreMismatchError, match=rf"does not know: {path}\..*pip install"):
            again()


def test_a_setting_of_a_later_daskrl_is_refused_by_name(tmp_path: Path) -> None:
    store = begun(tmp_path / "run", "CartPole-v1")
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["config"]["algorithm"]["settings"]["temperature"] = 3
    changed(store, metadata)
    with pytest.raises(StoreMismatchError, match=r"temperature: not there \(store: 3\)"):
        daskrl.resume(store)


def test_an_option_of_a_later_daskrl_is_left_alone(tmp_path: Path) -> None:
    store = begun(tmp_path / "run", "CartPole-v1")
    commits = sorted((store / ".commits").glob("0*.json"))
    record = Store.open(store).budget()
    record["options"] = {**record["options"], "colour": "blue"}
    body = json.dumps([record])
    path = store / ".commits" / f"{len(commits):08d}.json"
    path.write_text(f'{{"crc32c":"{crc32c(body.encode()):08x}","records":{body}}}')
    assert daskrl.resume(store, progress=False).wait().finished
    assert not daskrl.reproduce(store, 0).differs


def test_the_store_holds_what_format_md_says_of_values() -> None:
    said = (Path(__file__).parents[1] / "FORMAT.md").read_text()
    for tag in codec.DECODERS:
        assert f"`{tag}`" in said, tag
