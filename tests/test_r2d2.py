"""R2D2: TD errors of sequences against a walk over the stored transitions, one step and one sequence at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import daskrl
from daskrl.algorithms import R2D2
from daskrl.algorithms.base import Setup
from tests.oracles import Scripted

STREAMS, COUNT, STEPS = 2, 2, 4
LANES = STREAMS * COUNT
SETTINGS: dict[str, Any] = {
    "hidden": (6, 5), "lstm": 7, "learning_starts": 48, "batch_size": 4, "replay_ratio": 2.0, "window": 16 * 6,
    "discount": 0.9, "target_update": 3, "n_step": 3,
}  # fmt: skip


def start(store: Path, **settings: Any) -> daskrl.Run:
    return daskrl.train(
        R2D2(**{**SETTINGS, **settings}), Scripted, store=store, env_steps=16 * 12, seed=2, streams=STREAMS,
        envs_per_stream=COUNT, fragment_steps=STEPS, checkpoint_every=4, weights_every=3, recheck_every=3,
        progress=False,
    )  # fmt: skip


def filled(run: daskrl.Run) -> tuple[Any, list[list[dict[str, np.ndarray]]]]:
    """A learner that was given every round of a run, with other weights online than in the target; and the rounds."""
    store = run.store
    setup = Setup(store.spec, store.config.schedule)
    learner = run.algorithm.learner(setup, np.random.default_rng(0))
    learner.flat_target.weights.add_(0.05)  # type: ignore[attr-defined]
    records = {(f["round"], f["stream"]): f for f in store.fragments()}
    rounds = []
    for r in range(12):
        fragments = []
        for s in range(STREAMS):
            fragment = dict(store.read(records[r, s]))
            fragment["episode_step"] = np.array(records[r, s]["episode_step"])
            fragments.append(fragment)
        learner.append(fragments)
        rounds.append(fragments)
    return learner, rounds


class Lane:
    """One environment's transitions in order, with its recurrent state at the beginning of each fragment."""

    def __init__(self, rounds: list[list[dict[str, np.ndarray]]], lane: int) -> None:
        stream, env = divmod(lane, COUNT)
        self.rows: list[dict[str, Any]] = []
        self.states = []
        for fragments in rounds:
            columns = fragments[stream]
            self.states.append(columns["recurrent_state.lstm"][0, env])
            endings = np.argwhere(columns["terminated"] | columns["truncated"]).tolist()
            for t in range(STEPS):
                ended = bool(columns["terminated"][t, env] or columns["truncated"][t, env])
                last = columns["final_observation"][endings.index([t, env])] if ended else None
                self.rows.append(
                    {
                        "observation": columns["observation"][t, env],
                        "action": int(columns["action"][t, env]),
                        "reward": float(columns["reward"][t, env]),
                        "terminated": bool(columns["terminated"][t, env]),
                        "ended": ended,
                        "last": last,
                    }
                )
        self.rows.append({"observation": columns["observation"][STEPS, env]})  # the newest: nothing was done there yet


def rescaled(x: float, eps: float | None) -> float:
    """h of section 2.3 of the paper."""
    return x if eps is None else math.copysign(math.sqrt(abs(x) + 1) - 1, x) + eps * x


def scaled_back(y: float, eps: float | None) -> float:
    """Its inverse, by halving an interval."""
    low, high = -1e5, 1e5
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if rescaled(middle, eps) < y else (low, middle)
    return low


def naive_td_errors(algorithm: R2D2, learner: Any, lane: Lane, round_: int) -> list[float]:
    """The TD errors of the sequence that begins with a round, one step after the other."""
    burn_in, unroll = algorithm.burn_in * STEPS, algorithm.unroll * STEPS
    first = round_ * STEPS

    def step(net: Any, observation: np.ndarray, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            q, after = net({"observation": torch.tensor(observation[None])}, state)
        return q[0], after

    values: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = []
    states = {name: torch.from_numpy(lane.states[round_][None].copy()) for name in ("online", "target")}
    for t in range(burn_in + unroll + algorithm.n_step):
        row = lane.rows[first + t]
        if t and lane.rows[first + t - 1]["ended"]:
            states = {name: torch.zeros_like(state) for name, state in states.items()}
        now = {}
        for name, net in (("online", learner.online), ("target", learner.target)):
            q, states[name] = step(net, row["observation"], states[name])
            now[name] = (q, states[name])
        values.append(now)

    def bootstrap(online: torch.Tensor, target: torch.Tensor) -> float:
        chosen = target[online.argmax()] if algorithm.double else target.max()
        return scaled_back(float(chosen), algorithm.rescale)

    errors = []
    for t in range(burn_in, burn_in + unroll):
        total, factor = 0.0, 1.0
        following: float | None = None
        for k in range(algorithm.n_step):
            row = lane.rows[first + t + k]
            total += factor * row["reward"]
            factor *= algorithm.discount
            if row["ended"]:
                following = 0.0
                if not row["terminated"]:
                    pair = [
                        step(net, row["last"], values[t + k][name][1])[0]
                        for name, net in (("online", learner.online), ("target", learner.target))
                    ]
                    following = bootstrap(*pair)
                break
        if following is None:
            later = values[t + algorithm.n_step]
            following = bootstrap(later["online"][0], later["target"][0])
        target = rescaled(total + factor * following, algorithm.rescale)
        action = lane.rows[first + t]["action"]
        errors.append(target - float(values[t]["online"][0][action]))
    return errors


@pytest.mark.parametrize(
    "settings",
    [{"n_step": 1}, {"n_step": 3}, {"n_step": 3, "burn_in": 0, "unroll": 2}, {"n_step": 4, "double": False},
     {"n_step": 2, "rescale": None, "dueling": False}],
    ids=["1 step", "3 steps", "without burn-in", "not double", "without rescaling"],
)  # fmt: skip
def test_td_errors_are_those_of_a_walk_over_the_stored_transitions(tmp_path: Path, settings: dict[str, Any]) -> None:
    run = start(tmp_path / "run", **settings).wait()
    learner, rounds = filled(run)
    algorithm, index = run.algorithm, learner.index
    lanes = [Lane(rounds, lane) for lane in range(LANES)]
    truncated = 0
    for round_ in range(index.first, index.stop):
        positions = index.positions_of_rows(round_, round_ + 1)
        sequences = learner.gather(positions)
        truncated += sum(len(lasts.step) for lasts in sequences.truncated)
        with torch.no_grad():
            found = algorithm.td_errors(learner, sequences).numpy()  # type: ignore[attr-defined]
        expected = np.array([naive_td_errors(algorithm, learner, lane, round_) for lane in lanes]).T
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    assert truncated > 0  # else nothing tested the last observations


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eta", [0.9, 0.3])
def test_an_update_minimises_half_the_squared_td_errors_and_priorities_mix_their_largest_and_mean(
    tmp_path: Path, eta: float, weighted: bool
) -> None:
    run = start(tmp_path / "run", priority_eta=eta, unroll=2, max_grad_norm=None).wait()
    learner, _ = filled(run)
    algorithm, index = run.algorithm, learner.index
    weight = np.float32([1.0, 0.5, 0.25, 0.1]) if weighted else None
    positions = index.positions_of_rows(index.first, index.first + 1)  # a sequence of each of the four lanes
    loss, priority = algorithm.update(learner, learner.gather(positions, weight))  # type: ignore[attr-defined]
    learner, rounds = filled(run)  # as it was before the update
    expected, priorities = 0.0, []
    for lane in range(LANES):
        errors = naive_td_errors(algorithm, learner, Lane(rounds, lane), index.first)
        assert len(errors) == 2 * STEPS
        share = 1.0 if weight is None else float(weight[lane])
        expected += share * sum(0.5 * error**2 for error in errors) / len(errors) / LANES
        sizes = [abs(error) for error in errors]
        priorities.append(eta * max(sizes) + (1 - eta) * sum(sizes) / len(sizes))
    assert float(loss) == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(priority.numpy(), priorities, rtol=1e-3)


def test_only_sequences_whose_steps_are_all_there_are_drawn(tmp_path: Path) -> None:
    run = start(tmp_path / "run").wait()
    learner, _ = filled(run)
    index = learner.index
    # 12 rounds of which the window holds 6; a sequence is 2 fragments, and the last round lacks n-step returns.
    assert (index.first, index.stop) == (6, 10)
    drawn = {
        int(position)
        for _ in range(200)
        for position in learner.sampler.draw(index, 4, np.random.default_rng(_), 0.5)[0]
    }
    allowed = {((round_ % index.rounds) * LANES + lane) for round_ in range(6, 10) for lane in range(LANES)}
    assert drawn == allowed


def test_rescaled_values_come_back() -> None:
    algorithm = R2D2()
    x = torch.linspace(-300, 300, 1001, dtype=torch.float64)
    torch.testing.assert_close(algorithm.h_inverse(algorithm.h(x)), x, rtol=1e-9, atol=1e-9)
    assert float(algorithm.h(torch.tensor(3.0, dtype=torch.float64))) == pytest.approx(1 + 3e-3)


def test_a_run_stopped_and_resumed_is_the_one_never_stopped(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole").wait()
    run = start(tmp_path / "stopped")
    for at in (5, 9):
        for report in run:
            if report.weights_version == at:
                break
        run = daskrl.resume(tmp_path / "stopped", env=Scripted, progress=False)
    run.wait()
    assert run.store.digest() == whole.store.digest()
    assert whole.report is not None
    assert whole.report.learner_updates > 0
