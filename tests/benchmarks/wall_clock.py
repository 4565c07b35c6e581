"""Time of a whole CartPole run against Stable-Baselines3 with the settings of its zoo, cluster start included.

50,000 steps and about 25,000 updates of a [256, 256] network with batch 64 in each. Every candidate is a process of
its own, one after the other; its time is from after the imports of this script's own libraries to the end of
training. The final policy then plays 20 greedy episodes, outside the time.

    python tests/benchmarks/wall_clock.py [--candidates ...] [--repeats R] [--env-steps N]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from _table import parser, show, verdict

CANDIDATES = ("SB3, 1 thread", "SB3, default threads", "daskrl, in-process", "daskrl, local(1)", "daskrl, local(2)")


def sb3(env_steps: int, seed: int, threads: int) -> dict[str, float]:
    import gymnasium
    import torch
    from stable_baselines3 import DQN
    from stable_baselines3.common.evaluation import evaluate_policy

    if threads:
        torch.set_num_threads(threads)
    began = time.monotonic()
    model = DQN(
        "MlpPolicy", gymnasium.make("CartPole-v1"), learning_rate=2.3e-3, batch_size=64, buffer_size=100_000,
        learning_starts=1000, gamma=0.99, target_update_interval=10, train_freq=256, gradient_steps=128,
        exploration_fraction=0.16, exploration_final_eps=0.04, policy_kwargs={"net_arch": [256, 256]}, seed=seed,
        device="cpu",
    )  # fmt: skip
    model.learn(env_steps)
    seconds = time.monotonic() - began
    mean, _ = evaluate_policy(model, gymnasium.make("CartPole-v1"), n_eval_episodes=20, warn=False)
    return {"seconds": seconds, "updates": model._n_updates, "mean": float(mean)}


def ours(env_steps: int, seed: int, workers: int) -> dict[str, float]:
    import daskrl
    from daskrl import clusters

    algorithm = daskrl.DQN(
        double=False, hidden=(256, 256), batch_size=64, learning_rate=2.3e-3, replay_ratio=32, learning_starts=1000,
        window=100_000, target_update=128, epsilon_steps=8000, epsilon_end=0.04,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        store = Path(directory) / "run"
        began = time.monotonic()
        cluster = clusters.local(workers) if workers else None
        client = cluster.get_client() if cluster is not None else None
        run = daskrl.train(
            algorithm, "CartPole-v1", store=store, env_steps=env_steps, seed=seed, client=client, progress=False
        )
        first = 0.0
        for _ in run:
            first = first or time.monotonic() - began
        seconds = time.monotonic() - began
        if client is not None and cluster is not None:
            client.close()
            cluster.close()
        mean = daskrl.evaluate(store, episodes=20).mean
    return {
        "seconds": seconds,
        "updates": run.report.learner_updates if run.report else 0,
        "mean": float(mean),
        "first": first,
    }


def run_one(candidate: str, env_steps: int, seed: int) -> dict[str, float]:
    name, _, how = candidate.partition(", ")
    if name == "SB3":
        return sb3(env_steps, seed, 1 if how == "1 thread" else 0)
    return ours(env_steps, seed, 0 if how == "in-process" else int(how[len("local(") : -1]))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=CANDIDATES)
    arguments.add_argument("--repeats", type=int, default=1, help="with seeds 0, 1, ...; medians are shown")
    arguments.add_argument("--env-steps", type=int, default=50_000)
    arguments.add_argument("--one", help="run one candidate in this process and print JSON")
    arguments.add_argument("--seed", type=int, default=0)
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(run_one(given.one, given.env_steps, given.seed)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in given.candidates}
    for seed in range(given.repeats):
        for name in given.candidates:
            threads = {} if "default" in name else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
            settings = ["--env-steps", str(given.env_steps), "--seed", str(seed)]
            command = [sys.executable, __file__, "--one", name, *settings]
            done = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, check=True, text=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {name: median(result["seconds"] for result in found) for name, found in results.items()}
    best = min((value for name, value in seconds.items() if name.startswith("SB3")), default=None)
    rows = []
    for name, found in results.items():
        ratio = "" if best is None else f"{best / seconds[name]:.2f}"
        if best is not None and name.startswith("daskrl, local"):
            ratio = verdict(best / seconds[name], 1.0)
        first = f"{median(r['first'] for r in found):.1f}" if "first" in found[0] else ""
        means = ", ".join(f"{result['mean']:.0f}" for result in found)
        rows.append([name, f"{seconds[name]:.1f}", first, f"{found[0]['updates']:,.0f}", means, ratio])
    show(
        f"CartPole-v1, {given.env_steps:,} steps, DQN with SB3 zoo's settings",
        ["", "seconds", "until weights 0", "updates", "mean return of 20 episodes", "SB3's faster / this (aim 2)"],
        rows,
        packages=("torch", "stable-baselines3", "distributed", "gymnasium"),
    )


if __name__ == "__main__":
    main()
