"""Updates per second of the learner against the bare PyTorch loop of the same network, batch and optimizer.

The learner draws, gathers and learns as `Learner.learn_round` does, from a window of CartPole transitions; the
bare loop makes the same update (forward of both networks, Huber loss, backward, clipping, fused Adam) on one batch
that never changes, with module parameters.

    python tests/benchmarks/learner.py [--batches 64 256] [--threads 1] [--rounds R]
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from _table import interleaved, parser, show, verdict
from gymnasium import spaces
from sampling import filled
from torch import nn

from daskrl import DQN
from daskrl.algorithms.base import Setup
from daskrl.config import Schedule
from daskrl.spaces import spec_of
from daskrl.window import Batch


def ours(algorithm: DQN, setup: Setup, random: np.random.Generator) -> tuple[Callable[[], None], Batch]:
    learner = algorithm.learner(setup, random)
    window, sampler = filled(learner.window, 100_000, random), learner.sampler
    sampler.appended(window, (window.first, window.first))
    batch = window.gather(*sampler.draw(window, algorithm.batch_size, random, 0.4))

    def update() -> None:
        positions, weight = sampler.draw(window, algorithm.batch_size, random, algorithm.beta(learner.updates))
        _, td_error = learner.update(learner, window.gather(positions, weight, batch))
        learner.updates += 1
        if weight is not None and td_error is not None:
            sampler.update(positions, td_error.numpy())

    return update, window.gather(*sampler.draw(window, algorithm.batch_size, random, 0.4))


def bare(algorithm: DQN, setup: Setup, batch: Batch) -> Callable[[], None]:
    online, target = (algorithm.policy(setup) for _ in range(2))
    optimizer = torch.optim.Adam(online.parameters(), lr=algorithm.learning_rate, fused=True)
    observation, following = dict(batch.observation), dict(batch.next_observation)
    action, reward, discount = batch.action.unsqueeze(1), batch.reward.clone(), batch.discount.clone()
    updates = 0

    def update() -> None:
        nonlocal updates
        with torch.no_grad():
            q_t = target(following)
            if algorithm.double:
                v_t = q_t.gather(1, online(following).argmax(dim=1, keepdim=True)).squeeze(1)
            else:
                v_t = q_t.amax(dim=1)
            wanted = reward + discount * v_t
        loss = nn.functional.smooth_l1_loss(online(observation).gather(1, action).squeeze(1), wanted)
        optimizer.zero_grad()
        loss.backward()
        if algorithm.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(online.parameters(), algorithm.max_grad_norm)
        optimizer.step()
        updates += 1
        if updates % algorithm.target_update == 0:
            target.load_state_dict(online.state_dict())

    return update


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    arguments.add_argument("--threads", type=int, nargs="+", default=[1], help="torch threads")
    arguments.add_argument("--rounds", type=int, default=9)
    given = arguments.parse_args()
    random = np.random.default_rng(0)
    spec = spec_of(spaces.Box(-1, 1, (4,)), spaces.Discrete(2))
    schedule = Schedule(streams=8, envs_per_stream=4, fragment_steps=32)
    setup = Setup(spec, schedule)
    rows = []
    for threads in given.threads:
        torch.set_num_threads(threads)
        for size in given.batches:
            for name, settings in (("", {"double": False}), ("double", {}), ("prioritised", {"priority_alpha": 0.6})):
                algorithm = DQN(batch_size=size, **settings)
                update, batch = ours(algorithm, setup, random)
                calls = {"learner": update, "bare": bare(algorithm, setup, batch)}
                seconds = interleaved(
                    calls, rounds=given.rounds, clock=time.process_time if threads == 1 else time.perf_counter
                )
                ratio = seconds["bare"] / seconds["learner"]
                per_second = [f"{1 / seconds[name]:,.0f}" for name in ("learner", "bare")]
                rows.append([f"DQN {name}".strip(), str(size), str(threads), *per_second, verdict(ratio, 0.9)])
    show(
        "Updates per second, network [256, 256]",
        ["", "batch", "torch threads", "learner", "bare PyTorch", "learner / bare"],
        rows,
        packages=["torch"],
        note="The bare loop of prioritised replay is that of double DQN: it neither draws nor weighs.",
    )


if __name__ == "__main__":
    main()
