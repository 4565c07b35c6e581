"""What the algorithms learn, and how soon, beside Stable-Baselines3 and the exact optimum.

    python tests/benchmarks/learning.py run cartpole ppo-acrobot     # daskrl; results are added to scores.jsonl
    python tests/benchmarks/learning.py run sb3-dqn-cartpole         # what it is compared with
    python tests/benchmarks/learning.py table                        # the table of all results in scores.jsonl

Seconds are the processor's, on one thread, so that they can be compared whatever else the machine did; with workers
they are the wall's.

Tasks, references and their settings stand in `tasks.py`. Every result names the digest of its run: the same command
gives the same digest on any machine of the same arithmetic.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cyclopts
import numpy as np
import torch
from _table import hardware, show
from tasks import ENVIRONMENTS, PROBLEMS, REFERENCES, TASKS, Problem, Reference, Task

import daskrl
from daskrl.algorithms import by_name
from daskrl.envs import source as sources

SCORES = Path(__file__).with_name("scores.jsonl")
EVALUATION_SEED = 1

app = cyclopts.App(help=__doc__)
Result = dict[str, Any]


@app.command
def run(
    *names: str, seeds: int | None = None, first_seed: int = 0, workers: int = 0, scores: Path = SCORES,
    store: Path | None = None, settings: str = "{}", env_steps: int | None = None,
    target: float | None = None,
) -> None:  # fmt: skip
    """Train, evaluate greedily, and add the results to a file.

    Parameters
    ----------
    names
        Tasks or references of tasks.py.
    seeds, first_seed
        How many, from which; as many as the task says by default.
    workers
        Rollout workers; 0 is in-process. The result does not depend on it.
    scores
        The file of results. A seed that is there already is run again and compared.
    store
        Keep the runs in this directory.
    settings, env_steps, target
        A Python dict of other settings of the algorithm, another budget, and another mean return of training episodes
        to take the time to; nothing is added to the file.
    """
    torch.set_num_threads(1)
    trial = settings != "{}" or env_steps is not None or target is not None
    for name in names:
        task = {**TASKS, **REFERENCES}[name]
        problem = PROBLEMS[task.problem]
        problem = replace(problem, env_steps=env_steps or problem.env_steps)
        if target is not None:
            problem = replace(problem, training_target=target)
        for seed in range(first_seed, first_seed + (seeds or task.seeds)):
            if isinstance(task, Reference):
                result = optimum(problem) if task.algorithm == "optimum" else reference(task, problem, seed)
            else:
                result = ours(task, problem, seed, workers, store, eval(settings))
            result = {"task": name, "seed": seed, **result, "hardware": hardware().partition(", load")[0]}
            print(json.dumps({key: value for key, value in result.items() if key != "hardware"}), flush=True)
            if not trial:
                keep(result, scores)


def keep(result: Result, scores: Path) -> None:
    """Add a result, unless the same seed is there: then their digests, or means, have to be equal."""
    for before in read(scores):
        if (before["task"], before["seed"]) == (result["task"], result["seed"]):
            compared = "digest" if "digest" in result else "mean"  # references have no digest
            same = before[compared] == result[compared]
            print(f"{compared} as before" if same else f"DIFFERS from {scores}: {before}", flush=True)
            return
    with scores.open("a") as file:
        file.write(json.dumps(result) + "\n")


def read(scores: Path) -> list[Result]:
    return [json.loads(line) for line in scores.read_text().splitlines()] if scores.exists() else []


def ours(task: Task, problem: Problem, seed: int, workers: int, store: Path | None, settings: Result) -> Result:
    algorithm = by_name(task.method)(**{**task.settings, **settings})
    env = ENVIRONMENTS.get(problem.env, problem.env)
    with TemporaryDirectory() as temporary:
        place = (store or Path(temporary)) / f"{task.method}-{task.problem}-{seed}"
        clock = time.perf_counter if workers else time.process_time
        began = clock()
        cluster = client = None
        if workers:
            from daskrl import clusters

            cluster = clusters.local(workers)
            client = cluster.get_client()
        training = daskrl.train(
            algorithm, env, store=place, seed=seed, env_steps=problem.env_steps, client=client,
            overwrite=True, progress=False, weights_every=10**9, **task.schedule,
        )  # fmt: skip
        times = [(0, 0.0)]
        for report in training:
            times.append((report.env_steps, clock() - began))
        seconds = clock() - began
        if client is not None and cluster is not None:
            client.close()
            cluster.close()
        curve = daskrl.learning_curve(place)
        steps = steps_to_target(curve.env_steps, curve.episode_return, problem)
        own = ENVIRONMENTS.get(problem.env)
        returns = daskrl.evaluate(place, episodes=problem.episodes, seed=EVALUATION_SEED, env=own).returns
        digest = daskrl.Store.open(place).digest()
    reached = None if steps is None else float(np.interp(steps, *np.array(times).T))
    return {**summary(returns, seconds, steps, reached), "digest": digest}


def steps_to_target(env_steps: Any, returns: Any, problem: Problem) -> int | None:
    """Env steps when the mean return of the newest ``smoothing`` training episodes first was what is wanted."""
    count = problem.smoothing
    if len(returns) < count:
        return None
    mean = np.convolve(returns, np.ones(count) / count, "valid")
    found = np.flatnonzero(mean >= problem.training_target)
    return int(env_steps[found[0] + count - 1]) if len(found) else None


def summary(returns: Any, seconds: float | None, steps: int | None, reached: float | None) -> Result:
    return {
        "mean": round(float(np.mean(returns)), 3),
        "median": round(float(np.median(returns)), 3),
        "lowest": round(float(np.min(returns)), 3),
        "seconds": None if seconds is None else round(seconds, 1),
        "steps_to_target": steps,
        "seconds_to_target": None if reached is None else round(reached, 1),
    }


def reference(task: Reference, problem: Problem, seed: int) -> Result:
    """SB3 or SB3-contrib on the same problem."""
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    source = sources.source(ENVIRONMENTS.get(problem.env, problem.env))
    gamma = task.settings.get("gamma", 0.99)
    began = time.process_time()
    training = make_vec_env(source.factory, n_envs=task.envs, seed=seed)
    if task.normalise:
        training = VecNormalize(training, gamma=gamma)
    algorithm = getattr(stable_baselines3, task.algorithm, None) or getattr(sb3_contrib, task.algorithm)
    model = algorithm(task.policy, training, seed=seed, device="cpu", **_sb3_settings(task, problem))
    episodes: list[tuple[int, float, float]] = []

    class Episodes(BaseCallback):
        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    episodes.append((self.num_timesteps, info["episode"]["r"], time.process_time() - began))
            return True

    model.learn(problem.env_steps, callback=Episodes())
    seconds = time.process_time() - began
    test = make_vec_env(source.factory, n_envs=1, seed=10_000 + seed)
    if task.normalise:
        test = VecNormalize(test, training=False, norm_reward=False)
        test.obs_rms = training.obs_rms  # type: ignore[attr-defined]
    returns, _ = evaluate_policy(model, test, n_eval_episodes=problem.episodes, return_episode_rewards=True, warn=False)
    table = np.array(episodes).reshape(-1, 3)
    steps = steps_to_target(table[:, 0], table[:, 1], problem)
    reached = None if steps is None else float(table[table[:, 0] >= steps][0, 2])
    return summary(returns, seconds, steps, reached)


def _sb3_settings(task: Reference, problem: Problem) -> Result:
    """Arguments for SB3's class: names of this file turned into objects."""
    import gymnasium
    from stable_baselines3.common.noise import NormalActionNoise
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import nn

    class MinAtarFeatures(BaseFeaturesExtractor):
        """The convolution of daskrl's network: 16 filters of 3 x 3."""

        def __init__(self, observation_space: gymnasium.Space[Any]) -> None:
            height, width, channels = observation_space.shape  # type: ignore[misc]
            super().__init__(observation_space, 16 * (height - 2) * (width - 2))
            self.layers = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten())

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layers(observations.permute(0, 3, 1, 2).float())
            return features

    settings = dict(task.settings)
    for name, value in settings.items():
        if isinstance(value, tuple) and value[0] == "linear":
            settings[name] = lambda left, first=value[1]: first * left
    if "noise" in settings:
        actions = gymnasium.make(problem.env).action_space.shape
        deviation = settings.pop("noise") * np.ones(actions)  # type: ignore[arg-type]
        settings["action_noise"] = NormalActionNoise(np.zeros_like(deviation), deviation)
    policy = dict(settings.get("policy_kwargs", {}))
    if policy.pop("features", None) == "minatar":
        policy["features_extractor_class"] = MinAtarFeatures
    if "activation" in policy:
        policy["activation_fn"] = getattr(nn, policy.pop("activation"))
    return {**settings, "policy_kwargs": policy}


def optimum(problem: Problem) -> Result:
    """The largest expected return of an episode with its step limit, by dynamic programming."""
    import gymnasium

    env = gymnasium.make(problem.env)
    known: Any = env.unwrapped
    states, actions = known.observation_space.n, known.action_space.n
    reward, following = np.zeros((states, actions)), np.zeros((states, actions, states))
    for state in range(states):
        for action in range(actions):
            for probability, after, gain, terminated in known.P[state][action]:
                reward[state, action] += probability * gain
                following[state, action, after] += probability * (not terminated)
    value = np.zeros(states)
    assert env.spec is not None
    assert env.spec.max_episode_steps is not None
    for _ in range(env.spec.max_episode_steps):
        value = (reward + following @ value).max(axis=1)
    best = float(known.initial_state_distrib @ value)
    return summary([best], None, None, None)


@app.command
def table(*, scores: Path = SCORES, problem: str | None = None) -> None:
    """Interquartile means over seeds with 95 % bootstrap intervals, and medians of times.

    Parameters
    ----------
    scores
        The file of results.
    problem
        Only this one of tasks.py.
    """
    results: dict[str, list[Result]] = {}
    for result in read(scores):
        results.setdefault(result["task"], []).append(result)
    intervals = aggregate({name: [result["mean"] for result in found] for name, found in results.items()})
    rows = []
    for key, one in PROBLEMS.items():
        if problem not in (None, key):
            continue
        for name, task in {**TASKS, **REFERENCES}.items():
            if task.problem == key and name in results:
                rows.append(_row(name, task, one, results, intervals))
    show(
        "Greedy mean return of 100 episodes (1000 on toy text), over seeds",
        ["task", "environment", "env steps", "seeds", "IQM", "95 %", "reach", "beside", "seconds", "to score", "score"],
        rows,
        packages=("torch", "gymnasium", "stable-baselines3", "sb3-contrib", "arch"),
        width=190,
        note="reach: seeds whose mean is at least that. beside: whether the IQM lies in the interval of the same "
        "algorithm, or the nearest. seconds: the processor's, median of training. to score: median env steps and "
        "seconds until the mean return of the newest training episodes was the score, and in how many seeds it was.",
    )


def _row(
    name: str, task: Task | Reference, problem: Problem, results: dict[str, list[Result]], intervals: dict[str, Any]
) -> list[str]:
    found, (middle, low, high) = results[name], intervals[name]
    beside = []
    for other in task.against if isinstance(task, Task) else ():
        if other in intervals:
            _, least, most = intervals[other]
            verdict = "below" if middle < least else "above" if middle > most else "in"
            beside.append(f"{verdict} {other}")
    return [
        name, problem.env, f"{problem.env_steps:,}", str(len(found)), f"{middle:.2f}", f"[{low:.2f}, {high:.2f}]",
        f"{sum(result['mean'] >= problem.target for result in found)} of {len(found)}: {problem.target:g}",
        ", ".join(beside), _median(found, "seconds"),
        f"{_median(found, 'steps_to_target')} / {_median(found, 'seconds_to_target')} s",
        f"{problem.training_target:g}, {sum(r['steps_to_target'] is not None for r in found)} of {len(found)}",
    ]  # fmt: skip


def _median(results: list[Result], name: str) -> str:
    values = [result[name] for result in results if result[name] is not None]
    return f"{np.median(values):,.0f}" if values else "-"


def aggregate(scores: dict[str, list[float]], *, reps: int = 50_000) -> dict[str, tuple[float, float, float]]:
    """Interquartile mean and the ends of its 95 % interval of each list of scores, one of a seed each."""
    from daskrl.study import statistics

    found = {}
    for name, values in scores.items():
        draws = np.random.RandomState(0)  # for each anew: a task that is added moves no other's interval
        (found[name],) = statistics.estimates(
            [np.array(values)], lambda column: np.array([statistics.iqm(column)]), draws, reps=reps
        )
    return found


if __name__ == "__main__":
    app()
