"""An algorithm of one's own in one file: conservative Q-learning for discrete actions.

CQL (Kumar et al. 2020, https://arxiv.org/abs/2006.04779) was made for fixed data, where it keeps the values of actions
that the data do not show from being overrated. Here its data are the replay of a run.

python examples/discrete_cql.py               on a Dask cluster on this machine
python examples/discrete_cql.py --workers 0   in this process: the same bits
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from dataclasses import dataclass

import torch

import daskrl
from daskrl.algorithms.replay import ReplayLearner
from daskrl.replay.window import Batch


@dataclass(frozen=True)
class DiscreteCQL(daskrl.DQN):
    """DQN whose loss also has CQL(H), the first term of equation 4 in the paper.

    ``alpha * (logsumexp_a q(s, a) - q(s, a_taken)) + loss of DQN``, in the mean over a batch.

    Parameters
    ----------
    alpha : how conservative; 0 is DQN.
    """

    alpha: float = 0.1

    def loss(self, learner: ReplayLearner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        loss, td_error = super().loss(learner, batch)
        q = learner.online(batch.observation)  # [B, A]
        taken = q.gather(1, batch.action.unsqueeze(1)).squeeze(1)  # [B]
        return loss + self.alpha * (q.logsumexp(dim=1) - taken).mean(), td_error


def main(arguments: list[str] | None = None) -> float:
    """Train on CartPole and play; the mean return of 100 greedy episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="rollout workers; 0 runs in this process")
    parser.add_argument("--env-steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", default=None, help="directory of the run; a temporary one by default")
    given = parser.parse_args(arguments)

    algorithm = DiscreteCQL(n_step=3)
    store = given.store or tempfile.mkdtemp() + "/cql"
    with contextlib.ExitStack() as stack:
        client = None
        if given.workers:
            from distributed import Client

            from daskrl import clusters

            client = stack.enter_context(Client(stack.enter_context(clusters.local(given.workers))))
        run = daskrl.train(
            algorithm, "CartPole-v1", store=store, env_steps=given.env_steps, seed=given.seed, client=client
        )
        run.wait()
    evaluation = daskrl.evaluate(run.store, algorithm=algorithm)
    print(f"greedy mean return over 100 episodes: {evaluation.mean:.1f}")
    print(f"digest {run.store.digest()}")
    return evaluation.mean


if __name__ == "__main__":
    main()
