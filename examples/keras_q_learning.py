"""Another framework: deep Q-learning whose network and optimizer are Keras's, on TensorFlow.

Nothing in daskrl is told about TensorFlow. An algorithm gives actions and named arrays; what makes them is its own
affair. What the promise asks of it is below: draw from the generators given, compute the same bits again, and hand out
everything that learning depends on as arrays.

pip install tensorflow-cpu
python examples/keras_q_learning.py               on a Dask cluster on this machine
python examples/keras_q_learning.py --workers 0   in this process: the same bits
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import daskrl
from daskrl.algorithms.base import Moment, Setup, Weights, require_discrete
from daskrl.records import Array
from daskrl.replay.window import Window, check_capacity


def tensorflow() -> Any:
    """TensorFlow, on one thread and with deterministic operations: settings of the process, made before it computes."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() != 1:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.experimental.enable_op_determinism()
    return tf


@dataclass(frozen=True)
class KerasQLearning:
    """Double DQN (van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461) for vectors of numbers.

    Parameters
    ----------
    hidden : sizes of the hidden layers.
    discount, n_step : of the n-step return.
    learning_rate : of Adam.
    batch_size : transitions in one update.
    replay_ratio : gradient updates x batch_size for each transition.
    learning_starts : transitions before the first update.
    window : newest transitions an update may draw from.
    target_update : updates between two copies of the online to the target network.
    epsilon_end, epsilon_steps : the chance of a random action falls linearly from 1 to the first over that many
        transitions.
    """

    hidden: tuple[int, ...] = (128, 128)
    discount: float = 0.99
    n_step: int = 3
    learning_rate: float = 1e-3
    batch_size: int = 64
    replay_ratio: float = 32.0
    learning_starts: int = 1000
    window: int = 100_000
    target_update: int = 128
    epsilon_end: float = 0.04
    epsilon_steps: int = 8000

    # What decides its bits besides torch and NumPy, by the names of distributions: all processes of a run must have the
    # same versions. TensorFlow has two; that the other is not installed is recorded, too. No annotation: not a setting.
    packages = ("keras", "tensorflow", "tensorflow_cpu")

    def check(self, setup: Setup) -> None:
        require_discrete(setup, "KerasQLearning")
        check_capacity(self.window, self.n_step, setup.schedule, setup.frame_stack)

    def policy(self, setup: Setup) -> Any:
        """Action values, ``[N, F] -> [N, A]``."""
        tensorflow()
        import keras

        inputs = sum(leaf.flat_size for leaf in setup.spec.observation) * setup.frame_stack
        # Names are given, for Keras's own go on counting with every network. The weights come from `learner`.
        zeros = {"kernel_initializer": "zeros", "bias_initializer": "zeros"}
        layers = [
            keras.layers.Dense(size, activation="relu", name=f"hidden_{i}", **zeros)
            for i, size in enumerate(self.hidden)
        ]
        last = keras.layers.Dense(setup.actions, name="q", **zeros)
        return keras.Sequential([keras.Input((inputs,)), *layers, last], name="network")

    def load(self, policy: Any, weights: Weights) -> None:
        assign(policy.variables, weights)

    def act(self, policy: Any, moment: Moment) -> Array:
        q = policy(flat(moment.observation), training=False).numpy()  # [N, A]
        best: Array = q.argmax(axis=1)
        if moment.greedy:
            return best
        epsilon = 1 + min(1.0, moment.env_steps / self.epsilon_steps) * (self.epsilon_end - 1)
        explore = moment.random.random(len(q)) < epsilon
        return np.where(explore, moment.random.integers(0, q.shape[1], len(q)), best)

    def learner(self, setup: Setup, random: np.random.Generator) -> KerasLearner:
        return KerasLearner(self, setup, random)


class KerasLearner:
    """Draws batches from the window, and makes each update in one compiled function."""

    def __init__(self, settings: KerasQLearning, setup: Setup, random: np.random.Generator) -> None:
        tensorflow()
        import keras

        self.settings, self.setup = settings, setup
        self.online, self.target = settings.policy(setup), settings.policy(setup)
        for kernel, bias in zip(self.online.variables[::2], self.online.variables[1::2], strict=True):
            bound = kernel.shape[0] ** -0.5
            for variable in (kernel, bias):
                variable.assign(random.uniform(-bound, bound, variable.shape).astype(np.float32))
        self.target.set_weights(self.online.get_weights())
        self.optimizer = keras.optimizers.Adam(settings.learning_rate, global_clipnorm=10.0, name="adam")
        self.optimizer.build(self.online.trainable_variables)  # now: its variables are part of the state
        self.window = Window(
            setup.spec, setup.schedule, capacity=settings.window, frame_stack=setup.frame_stack,
            n_step=settings.n_step, discount=settings.discount,
        )  # fmt: skip
        self.memory = self.window.window_rows // setup.schedule.fragment_steps
        self.updates = 0
        self.update = self._compiled()

    def _compiled(self) -> Any:
        import keras
        import tensorflow as tf

        @tf.function(autograph=False)
        def update(observation: Any, action: Any, reward: Any, discount: Any, following: Any) -> Any:
            a_t = tf.argmax(self.online(following), axis=1)  # [B]
            q_t = self.target(following)  # [B, A]
            target = reward + discount * tf.gather(q_t, a_t, axis=1, batch_dims=1)
            with tf.GradientTape() as tape:
                q_tm1 = tf.gather(self.online(observation), action, axis=1, batch_dims=1)  # [B]
                loss = keras.losses.Huber()(target, q_tm1)
            variables = self.online.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        return update

    def skip(self, rounds: int) -> None:
        self.window.skip(rounds)

    def append(self, fragments: Sequence[Mapping[str, Array]]) -> None:
        self.window.append(fragments)

    def learn(self, random: np.random.Generator) -> float | None:
        settings, steps, rounds = self.settings, self.setup.schedule.round_steps, self.window.rounds
        due = self._updates_after(rounds * steps) - self._updates_after((rounds - 1) * steps)
        if not due or not len(self.window):
            return None
        losses, batch = [], None
        for _ in range(due):
            positions = self.window.positions(random.integers(0, len(self.window), settings.batch_size))
            batch = self.window.gather(positions, out=batch)
            pair = (batch.observation, batch.next_observation)
            x, following = (flat({name: value.numpy() for name, value in part.items()}) for part in pair)
            reward, discount = batch.reward.numpy().copy(), batch.discount.numpy().copy()
            losses.append(self.update(x, batch.action.numpy(), reward, discount, following))
            self.updates += 1
            if self.updates % settings.target_update == 0:
                self.target.set_weights(self.online.get_weights())
        return float(np.mean([loss.numpy() for loss in losses]))

    def _updates_after(self, env_steps: int) -> int:
        """Updates made in all once so many transitions are in: a number fixed by the settings."""
        learned = max(0, env_steps - self.settings.learning_starts)
        return int(learned * self.settings.replay_ratio / self.settings.batch_size)

    def weights(self) -> Weights:
        return arrays(self.online.variables)

    def state(self) -> dict[str, Array]:
        parts = {"online": self.online, "target": self.target, "optimizer": self.optimizer}
        named = {f"{part}.{n}": v for part, of in parts.items() for n, v in arrays(of.variables).items()}
        return {**named, "updates": np.array(self.updates)}

    def restore(self, state: Mapping[str, Array]) -> None:
        for part, of in (("online", self.online), ("target", self.target), ("optimizer", self.optimizer)):
            assign(of.variables, {n.removeprefix(f"{part}."): v for n, v in state.items()})
        self.updates = int(state["updates"])


def arrays(variables: Sequence[Any]) -> dict[str, Array]:
    """Keras variables by name, as copies."""
    return {variable.path: np.array(variable.numpy()) for variable in variables}


def assign(variables: Sequence[Any], values: Mapping[str, Array]) -> None:
    for variable in variables:
        variable.assign(values[variable.path])


def flat(observation: Mapping[str, Array]) -> Array:
    """Observations as one float vector each, ``[B, F]``: a copy."""
    columns = [value.reshape(len(value), -1) for value in observation.values()]
    return np.concatenate(columns, axis=1).astype(np.float32)


def main(arguments: list[str] | None = None) -> float:
    """Train on CartPole and play; the mean return of 100 greedy episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="rollout workers; 0 runs in this process")
    parser.add_argument("--env-steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", default=None, help="directory of the run; a temporary one by default")
    given = parser.parse_args(arguments)

    algorithm = KerasQLearning()
    store = given.store or tempfile.mkdtemp() + "/keras"
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
