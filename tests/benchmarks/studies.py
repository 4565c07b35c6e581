"""A study of CartPole runs on two workers against the same runs by hand, and against Optuna and Ray Tune with SB3.

    python tests/benchmarks/studies.py [--runs 100] [--env-steps 6000] [--candidates ...] [--ray PYTHON]

Each candidate is a process of its own, one after the other, and its time is all of that process: imports, starting
workers, training, and 20 greedy episodes with the last weights of each run. In all of them a run has the same env
steps, the same updates of the same network, and there are two processes that train.

- by hand: two processes that were started by hand, each with half of the runs in a loop;
- study: `daskrl.Study` on a `LocalCluster` of two workers of one thread;
- Optuna: two processes of joblib that share a study in a journal file, each trial an SB3 run;
- Ray Tune: two trials at a time, each an SB3 run.

``--ray`` names a Python, in an environment of its own, that has ``ray[tune]``, Optuna, joblib and SB3.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _table import parser, show, verdict

CANDIDATES = ("by hand", "study", "Optuna", "Ray Tune")
RATES = (2.3e-3, 1e-3)

SB3 = """
import gymnasium, torch
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy

def trained(rate, seed, env_steps):
    torch.set_num_threads(1)
    model = DQN(
        "MlpPolicy", gymnasium.make("CartPole-v1"), learning_rate=rate, batch_size=64, buffer_size=100_000,
        learning_starts=1000, gamma=0.99, target_update_interval=10, train_freq=256, gradient_steps=128,
        exploration_fraction=0.16, exploration_final_eps=0.04, policy_kwargs={"net_arch": [256, 256]}, seed=seed,
        device="cpu",
    )
    model.learn(env_steps)
    mean, _ = evaluate_policy(model, gymnasium.make("CartPole-v1"), n_eval_episodes=20, warn=False)
    return float(mean), int(model._n_updates)
"""

OURS = """
import daskrl

def algorithm(rate):
    return daskrl.DQN(
        double=False, hidden=(256, 256), batch_size=64, learning_rate=rate, replay_ratio=32, learning_starts=1000,
        window=100_000, target_update=128, epsilon_steps=960, epsilon_end=0.04,
    )
"""

SCRIPTS = {
    "by hand": OURS
    + """
import json, sys
directory, runs, env_steps, rates, part = json.loads(sys.argv[1])
for run in range(part, runs, 2):
    made = daskrl.train(algorithm(rates[run % 2]), "CartPole-v1", store=f"{directory}/{run}", env_steps=env_steps,
                        seed=run // 2, progress=False).wait()
    daskrl.evaluate(made, episodes=20)
    updates = made.report.learner_updates
print(updates)
""",
    "study": OURS
    + """
import json, sys
from distributed import Client, LocalCluster
if __name__ == "__main__":
    directory, runs, env_steps, rates, part = json.loads(sys.argv[1])
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        study = daskrl.Study(f"{directory}/study", algorithm=algorithm(1e-3), env="CartPole-v1",
                             space={"learning_rate": rates}, seeds=runs // 2, env_steps=env_steps)
        study.run(client, progress=False)
    assert study.summary()["finished"] == runs, study
    print(int(study.table().learner_updates.max()))
""",
    "Optuna": SB3
    + """
import json, sys
import joblib, optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

def work(part):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directory, runs, env_steps, rates, _ = json.loads(sys.argv[1])
    storage = JournalStorage(JournalFileBackend(f"{directory}/journal"))
    study = optuna.create_study(storage=storage, study_name="study", load_if_exists=True,
                                sampler=optuna.samplers.RandomSampler(seed=part))
    found = []
    def objective(trial):
        score, updates = trained(trial.suggest_categorical("rate", rates), trial.number, env_steps)
        found.append(updates)
        return score
    study.optimize(objective, n_trials=runs // 2)
    return found[-1]

if __name__ == "__main__":
    print(max(joblib.Parallel(n_jobs=2)(joblib.delayed(work)(part) for part in range(2))))
""",
    "Ray Tune": SB3
    + """
import json, sys
import ray
from ray import tune

if __name__ == "__main__":
    directory, runs, env_steps, rates, _ = json.loads(sys.argv[1])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    def trial(config):
        score, updates = trained(config["rate"], config["seed"], env_steps)
        return {"score": score, "updates": updates}
    space = {"rate": tune.grid_search(rates), "seed": tune.grid_search(list(range(runs // 2)))}
    tuner = tune.Tuner(tune.with_resources(trial, {"cpu": 1}), param_space=space,
                       run_config=tune.RunConfig(storage_path=directory, verbose=0))
    results = tuner.fit()
    assert len(results) == runs and not results.errors, results.errors
    print(max(result.metrics["updates"] for result in results))
""",
}


def seconds(name: str, python: str, runs: int, env_steps: int) -> tuple[float, int]:
    """What a candidate took, and the updates of one of its runs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "script.py"
        script.write_text(SCRIPTS[name])
        began = time.perf_counter()
        processes = [
            subprocess.Popen(
                [python, str(script), json.dumps([directory, runs, env_steps, RATES, part])],
                env=environment, stdout=subprocess.PIPE, text=True,
            )
            for part in range(2 if name == "by hand" else 1)
        ]  # fmt: skip
        said = [process.communicate()[0] for process in processes]
        took = time.perf_counter() - began
        if any(process.returncode for process in processes):
            sys.exit(f"{name} failed")
    return took, int(said[0].split()[-1])


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=100)
    arguments.add_argument("--env-steps", type=int, default=6000)
    arguments.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=CANDIDATES)
    arguments.add_argument("--ray", metavar="PYTHON", default=sys.executable)
    given = arguments.parse_args()
    took = {}
    for name in given.candidates:
        python = given.ray if name in ("Optuna", "Ray Tune") else sys.executable
        took[name] = seconds(name, python, given.runs, given.env_steps)
        print(f"{name}: {took[name][0]:.1f} s", file=sys.stderr)
    ours = took["study"][0] if "study" in took else float("nan")
    rows = []
    for name, (elapsed, updates) in took.items():
        ratio = "" if name == "study" else verdict(elapsed / ours, 0.92 if name == "by hand" else 2.0)
        rows.append([name, f"{elapsed:.1f}", str(updates), ratio])
    columns = ["", "seconds", "updates a run", "study's throughput over this one's"]
    show(f"{given.runs} CartPole runs of {given.env_steps:,} env steps, two processes", columns, rows)


if __name__ == "__main__":
    main()
