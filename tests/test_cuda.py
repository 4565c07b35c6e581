"""What a learner on a GPU adds to the promise; skipped where there is no CUDA device.

There the other tests' learners are on it as well, as ``device="auto"`` takes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distributed import Client

import daskrl
from daskrl import clusters
from daskrl.algorithms import by_name
from daskrl.errors import DivergedError
from tests.cases import CASES
from tests.promise import kill_every_worker_at, records

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

IMAGES: dict[str, tuple[dict[str, Any], str, int]] = {
    "dqn": (
        {"hidden": (32,), "learning_starts": 64, "batch_size": 8, "replay_ratio": 2.0, "window": 640}, "ALE/Pong-v5", 1
    ),
    "ppo": ({"epochs": 2, "batch_size": 32}, "ALE/Pong-v5", 0),
}  # fmt: skip


def train(store: Path, case: tuple[dict[str, Any], str, int], name: str, env_steps: int, **options: Any) -> daskrl.Run:
    settings, env, lag = case
    of_run = {key: options.pop(key) for key in ("device", "client", "frame_stack") if key in options}
    return daskrl.train(
        by_name(name)(**{**settings, **options}), env, store=store, env_steps=env_steps, seed=5, streams=2,
        envs_per_stream=2, fragment_steps=16, lag=lag, checkpoint_every=3, progress=False, **of_run,
    )  # fmt: skip


def resumes_to_the_same_bits(path: Path, case: tuple[dict[str, Any], str, int], name: str, **options: Any) -> None:
    whole = train(path / "whole", case, name, 256, **options).wait()
    assert whole.report is not None
    assert whole.report.learner_updates > 0
    train(path / "part", case, name, 128, **options).wait()
    torch._dynamo.reset()  # as in another process
    again = daskrl.resume(path / "part", env_steps=256, progress=False).wait()
    assert again.store.digest() == whole.store.digest()
    assert [record["device"] for record in records(path / "whole") if record["kind"] == "arithmetic"] == ["cuda"]


@pytest.mark.parametrize("name", [name for name in CASES if name != "q-learning"])
def test_a_run_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    resumes_to_the_same_bits(tmp_path, CASES[name], name, device="cuda")


@pytest.mark.parametrize("convolutions", ["nature", "impala"])
@pytest.mark.parametrize("name", list(IMAGES))
def test_a_run_on_images_resumes_to_the_same_bits(name: str, convolutions: str, tmp_path: Path) -> None:
    resumes_to_the_same_bits(tmp_path, IMAGES[name], name, frame_stack=2, convolutions=convolutions)


GRAPHS = ["dqn", "c51", "qr-dqn", "rainbow", "sac", "td3"]


@pytest.mark.parametrize("name", GRAPHS)
def test_cuda_graphs_of_every_kind_of_update_give_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, env, lag = CASES[name]
    case = ({**settings, **({} if name in ("sac", "td3") else {"target_update": 5})}, env, lag)
    schedule = {"learning_rate_end": 1e-4, "learning_rate_updates": 40}
    eager = train(tmp_path / "eager", case, name, 512, **schedule).wait()
    recorded: list[Any] = []
    make = torch.cuda.CUDAGraph

    def made() -> Any:
        recorded.append(make())
        return recorded[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", made)
    train(tmp_path / "graphs", case, name, 256, **schedule, cuda_graphs=True).wait()
    graphs = daskrl.resume(tmp_path / "graphs", env_steps=512, progress=False).wait()
    assert graphs.store.digest() == eager.store.digest()
    assert len(recorded) >= (1 if name == "sac" else 2)  # before and after it was resumed


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_graphs_on_images_give_the_same_bits(precision: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"frame_stack": 2, "precision": precision, "target_update": 5}
    eager = train(tmp_path / "eager", IMAGES["dqn"], "dqn", 512, **how).wait()
    graphs = train(tmp_path / "graphs", IMAGES["dqn"], "dqn", 512, **how, cuda_graphs=True).wait()
    assert graphs.store.digest() == eager.store.digest()


@pytest.mark.parametrize("name", ["dqn", "rainbow", "r2d2", "ppo"])
def test_compiled_networks_resume_to_the_same_bits(name: str, tmp_path: Path) -> None:
    resumes_to_the_same_bits(tmp_path, CASES[name], name, compiled=True)


def test_compiled_networks_in_cuda_graphs_resume_to_the_same_bits(tmp_path: Path) -> None:
    resumes_to_the_same_bits(tmp_path, IMAGES["dqn"], "dqn", compiled=True, cuda_graphs=True, frame_stack=2)


@pytest.mark.parametrize("name", ["dqn", "ppo", "sac"])
def test_the_weights_are_those_of_the_cpu_up_to_rounding(name: str, tmp_path: Path) -> None:
    steps = {"dqn": 128, "ppo": 64, "sac": 128}[name]  # later ones act otherwise
    there = train(tmp_path / "there", CASES[name], name, steps, device="cuda").wait().store.weights()[1]
    here = train(tmp_path / "here", CASES[name], name, steps, device="cpu").wait().store.weights()[1]
    for array in here:
        np.testing.assert_allclose(there[array], here[array], atol=1e-3)


def test_sigkill_to_every_worker_of_a_run_with_cuda_graphs(tmp_path: Path) -> None:
    expected = train(tmp_path / "one", CASES["dqn"], "dqn", 512).wait()
    with clusters.local(2) as cluster, Client(cluster) as client:
        client.wait_for_workers(3, timeout=60)
        run = train(tmp_path / "many", CASES["dqn"], "dqn", 512, cuda_graphs=True, client=client)
        assert kill_every_worker_at(4, run, client) == 3
    assert run.store.digest() == expected.store.digest()


def test_a_loss_that_is_not_finite_stops_the_run_with_the_batch(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="safetensors"):
        train(tmp_path, CASES["dqn"], "dqn", 512, learning_rate=1e38, device="cuda").wait()
    assert list((tmp_path / ".diverged").iterdir())
