"""Stores whose fragments are written without a learner, by stepping environments; and naive readers of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from daskrl import seeding
from daskrl.config import Options, RunConfig, Schedule
from daskrl.envs.spaces import spec_of, value_at
from daskrl.envs.stream import Stream
from daskrl.store.columns import write_fragment
from daskrl.store.store import Store
from tests.oracles import reset_seed

ENVIRONMENT = {"kind": "callable", "name": "tests.written:Mixed", "source_sha256": "0", "packages": [], "captured": {}}
ALGORITHM = {"name": "Drawn", "settings": {"discount": 0.75}, "source_sha256": "0", "packages": [], "captured": {}}


class Mixed(gymnasium.Env[Any, Any]):
    """Images, numbers and choices; episodes of 1 to 9 steps, of which a third are cut by a time limit."""

    observation_space = spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (3, 2), np.uint8),
            "place": spaces.Discrete(5, start=2),
            "speed": spaces.Box(-np.inf, np.inf, (3,), np.float32),
        }
    )
    action_space = spaces.Dict({"push": spaces.Box(-1, 1, (2,), np.float32), "turn": spaces.Discrete(3, start=1)})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.random, self.seed, self.count = np.random.default_rng(seed), int(seed or 0), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        over = self.count == 1 + self.seed % 9
        reward = float(action["push"].sum()) + 0.1 * float(action["turn"])
        cut = self.seed % 3 == 0
        return self._observe(), reward, over and not cut, over and cut, {}

    def _observe(self) -> Any:
        draw = self.random
        return {
            "camera": draw.integers(0, 256, (3, 2), np.uint8),
            "place": np.int64(draw.integers(2, 7)),
            "speed": draw.normal(size=3).astype(np.float32),
        }


def drawn(spec: Any, count: int, random: np.random.Generator) -> Any:
    """Actions of ``count`` environments."""
    made = {}
    for leaf in spec.action:
        if leaf.kind == "discrete":
            made[leaf.name] = random.integers(0, leaf.sizes[0], count)
        else:
            made[leaf.name] = random.uniform(-1, 1, (count, *leaf.shape)).astype(leaf.dtype)
    return made if len(made) > 1 else next(iter(made.values()))


SCHEDULE = Schedule(streams=3, envs_per_stream=2, fragment_steps=4, lag=1)


def mixed(path: Path | str) -> Store:
    """Five rounds of three streams, of which two fragments do not continue the one before."""
    return write(path, schedule=SCHEDULE, rounds=5, cut=[(1, 2), (2, 1)])


def write(
    path: Path | str, make: Callable[[], Any] = Mixed, *, schedule: Schedule, rounds: int, seed: int = 3,
    frame_stack: int = 1, cut: Sequence[tuple[int, int]] = (), ahead: bool = True, from_round: int = 0,
) -> Store:  # fmt: skip
    """A store of that many rounds, in which streams go on at their own pace.

    Parameters
    ----------
    cut : (stream, round) that does not continue the fragment before.
    ahead : whether stream 0 is a round further than the others.
    from_round : the first round to write, of a store that has those before.
    """
    env = make()
    spec = spec_of(env.observation_space, env.action_space)
    if from_round:
        store = Store.open(path)
    else:
        config = RunConfig(seed, ENVIRONMENT, ALGORITHM, schedule, frame_stack)
        versions = {"python": "3"}
        store = Store.create(
            path, config, spec, extras={"behavior_log_prob": "float32"}, env_steps=rounds * schedule.round_steps,
            options=Options(), versions=versions,
        )  # fmt: skip
    store.lock()
    for stream in range(schedule.streams):
        live, continues = stream_of(store, make, stream, None), True
        for round_ in range(rounds + (ahead and stream == 0)):
            if (stream, round_) in cut:
                live, continues = stream_of(store, make, stream, (live.episode + 1).tolist()), False
            random = seeding.generator(seed, "act", stream, round_)

            def policy(seen: Any, state: Any, t: int, random: Any = random) -> Any:
                count = schedule.envs_per_stream
                return drawn(spec, count, random), {"behavior_log_prob": random.normal(size=count).astype(np.float32)}

            slot = schedule.slot(stream, round_)
            record: Any = {
                "kind": "fragment", "slot": slot, "stream": stream, "round": round_,
                "weights_version": schedule.weights_version(round_), "continues": continues,
                "first_episode": live.episode.tolist(), "episode_step": live.age.tolist(),
                "wall_time": 1e9 + 10 * slot, "seconds": 2.5, "worker": f"worker-{(slot // 3) % 4}",
            }  # fmt: skip
            record["environment_seed"] = seeding.environment_seeds(seed, stream, record["first_episode"])
            fragment, episodes = live.rollout(policy, schedule.fragment_steps)
            continues = True
            if round_ < from_round:
                continue
            record["episodes"] = [list(episode) for episode in episodes]
            record["columns"] = write_fragment(store.storage, store.columns, slot, fragment)
            store.commit([record])
        live.close()
    versions_ = range(from_round, rounds + 1)
    store.commit([
        {"kind": "learn", "version": version, "learner_updates": 2 * version, "loss": 0.5, "seconds": 1.0,
         "updates": 2, "device": "cpu", "weights": None, "checkpoint": None}
        for version in versions_ if version or not from_round
    ])  # fmt: skip
    store.unlock()
    return Store.open(path)


def stream_of(store: Store, make: Callable[[], Any], stream: int, episode: Any) -> Stream:
    config = store.config
    return Stream.make(
        make, store.spec, seed=config.seed, index=stream, count=config.schedule.envs_per_stream,
        frame_stack=config.frame_stack, episode=episode,
    )  # fmt: skip


def stepped(store: Store, make: Callable[[], Any] = Mixed) -> Iterator[dict[str, Any]]:
    """Each transition, by stepping the environments again through the actions stored: a row, by slot, time and env.

    Of the store only actions, behaviour and the fragments' records are taken.
    """
    config, schedule = store.config, store.config.schedule
    live: dict[tuple[int, int], Any] = {}
    for record in store.fragments():
        data = store.read(record)
        stream = record["stream"]
        for t in range(schedule.fragment_steps):
            for n in range(schedule.envs_per_stream):
                lane = (stream, n)
                if lane not in live or (not record["continues"] and t == 0):
                    env = make()
                    number = record["first_episode"][n]
                    seen, _ = env.reset(seed=reset_seed(config.seed, stream, n, number))
                    live[lane] = {"env": env, "number": number, "step": 0, "seen": seen}
                now = live[lane]
                action = action_of(store, data, t, n)
                following, reward, terminated, truncated, _ = now["env"].step(action)
                yield {
                    "episode": (now["number"] * schedule.streams + stream) * schedule.envs_per_stream + n,
                    "step": now["step"], "seen": now["seen"], "action": action, "reward": reward,
                    "following": following, "terminated": terminated, "truncated": truncated,
                    "weights_version": record["weights_version"], "fragment": record["slot"], "time": t,
                    "policy_lag": record["round"] - record["weights_version"], "stream": stream, "env": n,
                    "behavior_log_prob": data["behavior_log_prob"][t, n] if "behavior_log_prob" in data else None,
                    "worker": record["worker"],
                    "wall_time": record["wall_time"],
                    "seed": reset_seed(config.seed, stream, n, now["number"]),
                }  # fmt: skip
                now["step"] += 1
                now["seen"] = following
                if terminated or truncated:
                    now["number"] += 1
                    now["step"] = 0
                    now["seen"], _ = now["env"].reset(seed=reset_seed(config.seed, stream, n, now["number"]))


def action_of(store: Store, data: Any, t: int, n: int) -> Any:
    """The action that an environment was given, out of the columns of its leaves."""
    leaves = store.spec.action
    if not leaves[0].path:
        return data[leaves[0].name][t, n]
    assert all(len(leaf.path) == 1 for leaf in leaves)
    return {leaf.path[0]: data[leaf.name][t, n] for leaf in leaves}


def leaf_of(value: Any, leaf: Any) -> np.ndarray:
    return np.asarray(value_at(value, leaf), leaf.dtype)


def episodes_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The episodes of some transitions, in a loop."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["episode"] not in found:
            found[row["episode"]] = {
                "episode": row["episode"], "stream": row["stream"], "env": row["env"], "seed": row["seed"],
                "return": 0.0, "length": 0, "first_version": row["weights_version"],
            }  # fmt: skip
        episode = found[row["episode"]]
        episode["return"] += row["reward"]
        episode["length"] += 1
        for name in ("terminated", "truncated", "weights_version", "worker", "wall_time"):
            episode[name] = row[name]
    return [found[number] for number in sorted(found)]
