"""What a process has besides a run: a user's settings change no bit of it, and are there afterwards."""

from __future__ import annotations

import contextlib
import importlib
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import gymnasium
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

import daskrl
from daskrl import arithmetic, clusters
from daskrl.algorithms.networks import fingerprint
from daskrl.config import Options
from daskrl.errors import EnvironmentRaisedError
from daskrl.pools import workers
from daskrl.tasks import rollout, session

TINY: dict[str, Any] = {
    "streams": 2, "envs_per_stream": 2, "fragment_steps": 8, "seed": 3, "env_steps": 128, "progress": False,
}  # fmt: skip


def dqn() -> daskrl.DQN:
    return daskrl.DQN(hidden=(17,), learning_starts=32, batch_size=11, replay_ratio=2.0, window=128)


def of_process() -> dict[str, Any]:
    """What torch and NumPy are set to here."""
    precisions = {
        (backend, operation): torch._C._get_fp32_precision_getter(backend, operation)
        for backend, operation, _ in arithmetic.PRECISIONS
    }
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "precisions": precisions,
        "denormals": float(np.float64(5e-324) * 1),
        "errors": np.geterr(),
        "buffer": np.getbufsize(),
    }


def threads() -> None:
    torch.set_num_threads(3)


def default_dtype() -> None:
    torch.set_default_dtype(torch.float64)


def default_device() -> None:
    torch.set_default_device("meta")


def deterministic() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)


def no_gradients() -> None:
    torch.set_grad_enabled(False)


def flushed_denormals() -> None:
    torch.set_flush_denormal(True)


def no_mkldnn() -> None:
    torch.backends.mkldnn.set_flags(False)


def cudnn_benchmark() -> None:
    torch.backends.cudnn.benchmark = True


def medium_precision() -> None:
    torch.set_float32_matmul_precision("medium")


def precision_of_everything() -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]


def precision_of_products() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]


def errors_raised() -> None:
    np.seterr(all="raise")


def small_buffer() -> None:
    np.setbufsize(64)


@contextlib.contextmanager
def set_by(setting: Callable[[], None] | None) -> Iterator[None]:
    """In a process of a user who has set something. Puts back what it was, as that is all that is tested here."""
    before = of_process()
    if setting is not None:
        setting()
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_num_threads(before["threads"])
        torch.set_default_dtype(before["dtype"])
        torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warn only"])
        torch.set_grad_enabled(before["gradients"])
        torch.set_flush_denormal(False)
        torch.backends.mkldnn.set_flags(before["mkldnn"])
        torch.backends.cudnn.benchmark = before["cudnn"][0]
        torch.set_float32_matmul_precision("highest")
        for (backend, operation), value in before["precisions"].items():
            torch._C._set_fp32_precision_setter(backend, operation, value)
        np.seterr(**before["errors"])
        np.setbufsize(before["buffer"])


SETTINGS = [
    threads, default_dtype, default_device, deterministic, no_gradients, flushed_denormals, no_mkldnn, cudnn_benchmark,
    medium_precision, precision_of_everything, precision_of_products, errors_raised, small_buffer,
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, tuple[float, ...]]:
    """Digest, store and evaluation of a run in a process where nothing was set."""
    store = tmp_path_factory.mktemp("plain") / "run"
    run = daskrl.train(dqn(), "CartPole-v1", store=store, **TINY).wait()
    return run.store.digest(), store, daskrl.evaluate(store, episodes=3).returns


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_users_setting_neither_changes_a_bit_of_a_run_nor_is_lost(
    setting: Callable[[], None], plain: tuple[str, Path, tuple[float, ...]], tmp_path: Path
) -> None:
    digest, store, returns = plain
    with set_by(setting):
        before = of_process()
        run = daskrl.train(dqn(), "CartPole-v1", store=tmp_path / "run", **TINY).wait()
        evaluated = daskrl.evaluate(store, episodes=3).returns
        reproduced = daskrl.reproduce(store, 3)
        after = of_process()
    assert after == before
    assert run.store.digest() == digest
    assert evaluated == returns
    assert reproduced.differs == ()


@pytest.mark.parametrize(
    "within",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")],
    ids=["no_grad", "inference_mode", "autocast", "device"],
)
def test_a_run_within_a_mode_of_torch_has_the_bits_of_one_without(
    within: Callable[[], Any], plain: tuple[str, Path, tuple[float, ...]], tmp_path: Path
) -> None:
    with within():
        before = of_process()
        run = daskrl.train(dqn(), "CartPole-v1", store=tmp_path / "run", **TINY).wait()
        evaluated = daskrl.evaluate(plain[1], episodes=3).returns
        assert of_process() == before
    assert (run.store.digest(), evaluated) == (plain[0], plain[2])


@pytest.mark.parametrize(
    ("algorithm", "env"),
    [
        (dqn(), "CartPole-v1"), (daskrl.PPO(hidden=(8,), lstm=4), "CartPole-v1"), (daskrl.QLearning(), "FrozenLake-v1"),
        (daskrl.SAC(hidden=(8,), learning_starts=32, batch_size=11, replay_ratio=0.1, window=128), "Pendulum-v1"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_run_draws_nothing_from_the_global_generators(algorithm: Any, env: str, tmp_path: Path) -> None:
    def drawn() -> tuple[bytes, bytes, Any]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()  # noqa: NPY002

    before = drawn()
    store = daskrl.train(algorithm, env, store=tmp_path / "run", evaluate_every=1, **TINY).wait().store
    daskrl.evaluate(store, episodes=1)
    daskrl.reproduce(store, 3)
    store.policy().export(tmp_path / "weights.safetensors")
    daskrl.train(algorithm, env, store=tmp_path / "next", init=store, **TINY)
    fingerprint()
    assert drawn() == before


def test_whoever_reads_a_report_has_the_settings_of_the_process(tmp_path: Path) -> None:
    with set_by(default_dtype):
        threads()
        before = of_process()
        for _ in daskrl.train(dqn(), "CartPole-v1", store=tmp_path / "run", **TINY):
            assert of_process() == before
            break
        assert of_process() == before


class Fails(gymnasium.Wrapper):  # type: ignore[type-arg]
    """CartPole that raises at its fifth step."""

    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps == 5:
            raise RuntimeError("it broke")
        return super().step(action)


def failing() -> Any:
    return Fails(gymnasium.make("CartPole-v1"))


class Interrupted(daskrl.DQN):
    """DQN whose learner is interrupted, as by Ctrl-C."""

    def learner(self, setup: Any, random: Any) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("algorithm", "env", "error"),
    [(dqn(), failing, EnvironmentRaisedError), (Interrupted(), "CartPole-v1", KeyboardInterrupt)],
    ids=["fails", "interrupted"],
)
def test_settings_are_put_back_when_a_run_ends_badly(algorithm: Any, env: Any, error: Any, tmp_path: Path) -> None:
    with set_by(default_dtype):
        threads()
        before = of_process()
        with pytest.raises(error):
            daskrl.train(algorithm, env, store=tmp_path / "run", **TINY).wait()
        assert of_process() == before


def test_a_rollout_that_hangs_leaves_no_setting_behind() -> None:
    go_on = threading.Event()

    before = of_process()
    with set_by(threads), pytest.raises(daskrl.errors.EnvironmentTimeoutError), arithmetic.pinned():
        rollout.within(0.05, lambda alive: go_on.wait(60), "fragment 0")
    go_on.set()
    assert of_process() == before
    with set_by(threads):  # and whoever comes next is the first again
        before = of_process()
        with arithmetic.pinned():
            assert of_process() != before
        assert of_process() == before


def test_the_last_to_leave_puts_back_what_the_first_found() -> None:
    """A enters, B enters, A leaves, B leaves: B's exit must not bring A's settings back."""
    entered, left = threading.Event(), threading.Event()
    seen: dict[str, Any] = {}

    def other() -> None:
        with arithmetic.pinned():
            entered.set()
            left.wait(30)
            seen["inside"] = (torch.get_default_dtype(), torch.get_num_threads())
        seen["after"] = (torch.get_default_dtype(), torch.get_num_threads())

    with set_by(default_dtype):
        threads()
        thread = threading.Thread(target=other)
        with arithmetic.pinned(device="cuda"):
            assert torch.are_deterministic_algorithms_enabled()
            thread.start()
            assert entered.wait(30)
        assert torch.get_num_threads() == 3  # this thread's own
        left.set()
        thread.join()
        assert seen == {"inside": (torch.float32, 1), "after": (torch.float64, 3)}
        assert torch.get_default_dtype() == torch.float64
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_setting_that_a_user_makes_while_a_run_computes_stays() -> None:
    with set_by(None):
        with arithmetic.pinned():
            torch.use_deterministic_algorithms(True)
        assert torch.are_deterministic_algorithms_enabled()


def test_a_fingerprint_is_that_of_no_setting_and_leaves_them() -> None:
    expected = fingerprint()
    for setting in SETTINGS:
        with set_by(setting):
            before = of_process()
            assert fingerprint() == expected, setting
            assert of_process() == before, setting


def test_an_algorithms_tests_pass_under_a_users_settings() -> None:
    import daskrl.testing

    class OfDqn(daskrl.testing.AlgorithmTests):
        def make(self) -> Any:
            return daskrl.DQN(hidden=(8,), learning_starts=64, batch_size=8, replay_ratio=1.0)

    with set_by(default_dtype):
        no_gradients()
        before = of_process()
        OfDqn().test_actions_fit_the_action_space()
        assert of_process() == before


# -- threads ---------------------------------------------------------------------------------------------------------


def test_runs_in_six_threads_of_one_process_have_the_digests_of_runs_alone(
    plain: tuple[str, Path, tuple[float, ...]], tmp_path: Path
) -> None:
    def run(number: int) -> str:
        return daskrl.train(dqn(), "CartPole-v1", store=tmp_path / str(number), **TINY).wait().store.digest()

    before = of_process()
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(run, range(6))) == {plain[0]}
    assert of_process() == before
    assert not session.SESSIONS


def test_sessions_come_and_go_in_many_threads(plain: tuple[str, Path, tuple[float, ...]], tmp_path: Path) -> None:
    opened = daskrl.Store.open(plain[1])
    together, stores = threading.Barrier(6), 40

    class Root:
        """A layout of which a session needs its place and the keys of its learners alone."""

        learners = ("",)

        def __init__(self, root: Path) -> None:
            self.storage = root

    def work(number: int) -> None:
        together.wait(30)
        for i in range(300):
            token = f"{number}-{i}"
            layout: Any = Root(tmp_path / str(i % stores))
            session.put(session.Session(token, layout, dqn(), lambda: None, Options()))  # type: ignore[arg-type, return-value]
            session.find(token)
            if i % 3:
                session.forget(token)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    roots = [kept.layout.storage for kept in session.SESSIONS.values()]
    session.SESSIONS.clear()
    assert len(roots) == len(set(roots)) <= stores
    assert opened.root == plain[1]


def test_threads_of_one_process_as_workers_leave_its_settings_alone(
    plain: tuple[str, Path, tuple[float, ...]], tmp_path: Path
) -> None:
    with (
        set_by(default_dtype),
        LocalCluster(n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        threads()
        before = of_process()
        run = daskrl.train(dqn(), "CartPole-v1", store=tmp_path / "run", client=client, **TINY).wait()
        digest = run.store.digest()
        assert of_process() == before
    assert digest == plain[0]


OWN = """
import daskrl
from tests.environments import Walk

BONUS = 0.0

class Game(Walk):
    def bonus(self):
        return BONUS

class Own(daskrl.DQN):
    def bonus(self):
        return BONUS

def make():
    return Game()
"""


@pytest.mark.parametrize("protocol", ["inproc", "tcp"])
def test_threads_of_one_process_as_workers_leave_the_users_classes_alone(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"own_{protocol}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module(f"own_{protocol}")
    methods = own.Game.bonus, own.Own.bonus
    algorithm = own.Own(hidden=(17,), learning_starts=32, batch_size=11, window=128)
    options: dict[str, Any] = {"processes": False, "protocol": protocol, "dashboard_address": None}
    options["resources"] = {"learner": 1}  # else the learner has a process of its own, where it can
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
        kept = set(session.OFFERED)
        run = daskrl.train(algorithm, own.make, store=tmp_path / "run", client=client, **TINY)
        run.wait()
        assert set(session.OFFERED) == kept  # nothing is kept of a run that has ended
    own.BONUS = 5.0  # type: ignore[attr-defined]
    assert (own.Game.bonus, own.Own.bonus) == methods
    assert (own.Game().bonus(), algorithm.bonus()) == (5.0, 5.0)
    again = daskrl.train(algorithm, own.make, store=tmp_path / "again", **TINY).wait()
    assert again.store.digest() == run.store.digest()


# -- Dask's configuration --------------------------------------------------------------------------------------------


def test_a_cluster_leaves_dasks_configuration_as_it_was(tmp_path: Path) -> None:
    before = dask.config.serialize(dask.config.config)
    with clusters.local(2) as cluster, cluster.get_client() as client:
        daskrl.train(dqn(), "CartPole-v1", store=tmp_path / "run", client=client, **TINY).wait()
    assert dask.config.serialize(dask.config.config) == before


def test_the_last_of_two_clusters_puts_dasks_configuration_back() -> None:
    name = workers.LOG_LENGTH
    before = dask.config.get(name)
    one, other = workers.held({name: 20}), workers.held({name: 20})
    one.close()
    assert dask.config.get(name) == 20
    other.close()
    other.close()  # does nothing more
    assert dask.config.get(name) == before


def test_dasks_configuration_keeps_what_a_user_set_meanwhile() -> None:
    name = workers.LOG_LENGTH
    before = dask.config.get(name)
    held = workers.held({name: 20})
    dask.config.set({name: 77})
    held.close()
    assert dask.config.get(name) == 77
    dask.config.set({name: before})


def test_a_run_in_this_process_leaves_the_classes_of_its_environment_as_they_are(tmp_path: Path) -> None:
    # Sent and received in one process, their methods would be replaced by others that see no later change.
    (tmp_path / "tuned.py").write_text(TUNED)
    script = tmp_path / "script.py"
    script.write_text(CHANGED)
    told = [sys.executable, str(script)]
    printed = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["1.0", "2.0"]


TUNED = """
import daskrl, gymnasium

SCALE = 1.0

class Env(gymnasium.Wrapper):
    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))

    def step(self, action):
        observation, reward, *rest = self.env.step(action)
        return observation, reward * SCALE, *rest
"""
CHANGED = """
import daskrl, tuned

def highest(store):
    algorithm = daskrl.DQN(hidden=8, learning_starts=999)
    shape = {"streams": 1, "envs_per_stream": 1, "fragment_steps": 4, "env_steps": 8, "progress": False}
    run = daskrl.train(algorithm, tuned.Env, store=store, **shape).wait()
    return run.store.read(run.store.fragments()[0])["reward"].max()

print(highest("one"))
tuned.SCALE = 2.0
print(highest("two"))
"""
