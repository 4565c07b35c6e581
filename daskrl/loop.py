"""The main loop. `drive` is all of it; `daskrl.run.Run` is its face for notebooks, scripts and the command line."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator
from typing import assert_never

from daskrl import schedule
from daskrl.config import RunConfig
from daskrl.errors import NondeterministicError
from daskrl.pools.base import Plan, Pool
from daskrl.pools.demand import Demand
from daskrl.records import FragmentRecord, PromiseOffRecord, RecheckResult, Record, Report, Result, checkpoints
from daskrl.schedule import Checkpoint, Recheck
from daskrl.store.progress import Progress
from daskrl.store.store import Store
from daskrl.store.weights import CHECKPOINTS, checkpoint_key, version_in
from daskrl.tasks.rollout import GO_ON, own
from daskrl.watching.callbacks import Told


def drive(
    plan: Plan, store: Store, pool: Pool, progress: Progress, rounds: int, stop: threading.Event, told: Told
) -> Iterator[Report]:  # fmt: skip
    """Take a run from where its store stands to ``rounds`` rounds, or until ``stop`` is set and the pool woken.

    Yields a report for each new version, and for each evaluation. The loop submits whatever the schedule finds ready,
    waits, and commits what finished. All that lasts is in the store: it may stop at any point, and another driver goes
    on from there. ``told``: callbacks, which hear of every task and record. ``progress`` says which learner is driven.
    """
    config, options, learner, began = store.config, plan.options, progress.learner, time.monotonic()
    at_start, demand = progress.published, Demand(config.schedule)

    def keep(version: int) -> tuple[bool, bool]:
        new, last = version > progress.published, version == rounds
        return (
            new
            and (
                last
                or version % options.weights_every == 0
                or schedule.to_evaluate(options.evaluate_every, rounds, version)
            ),
            new and version > 0 and (last or version % options.checkpoint_every == 0),
        )

    def evaluations() -> list[schedule.Evaluate]:
        every = options.evaluate_every
        return schedule.evaluations_due(every, rounds, progress.published, progress.kept, progress.evaluated, learner)

    to_play = evaluations()
    while not stop.is_set() and (progress.published < rounds or to_play or pool.in_flight):
        # What is ready now?
        learns = schedule.learns_ready(
            config.schedule, rounds, progress.committed, progress.published, pool.held[learner], pool.in_flight, learner
        )
        held = schedule.held_of_all(pool.held)
        rollouts = schedule.rollouts_ready(config.schedule, rounds, progress.committed, held, pool.in_flight)
        with told.submitting(pool.in_flight):
            pool.submit_learns(learns, store.head, keep, learner)
            pool.submit_rollouts(rollouts, store.head)
            # One after the other where rollouts leave room: when the next is due, at the latest, with their priority.
            pool.submit_evaluations(to_play, progress.kept, urgent=len(to_play) > 1 or progress.published >= rounds)
        pool.want(demand.slots)

        # What finished?
        outcomes = pool.wait()
        records = to_commit(store, plan, pool, progress, [outcome.record for outcome in outcomes])
        if not records:
            continue

        # Commit it; from here on it is part of the run.
        store.commit(records)
        published, evaluated = progress.published, len(progress.evaluated)
        for record in records:
            progress.take(record)
            demand.take(record)
        for due, alone in () if progress.environment_off else progress.due:
            pool.submit_recheck(Recheck(due["slot"], due["weights_version"], json.dumps(due), alone), store.head)
        progress.due.clear()
        if progress.published > published:
            _drop_old_checkpoints(store, records, progress.published, learner)
        told.committed(records)
        if progress.published > published or len(progress.evaluated) > evaluated:
            to_play = evaluations()
            yield _report(config, plan, pool, progress, rounds, time.monotonic() - began, at_start)
        pool.release(schedule.kept(config.schedule, rounds, progress.committed, progress.published), learner)


def conclude(plan: Plan, store: Store, pool: Pool, progress: Progress, told: Told) -> None:
    """Stopped on the way: have a learner write where it stands, so that whoever resumes learns nothing again.

    The weights it reached are kept, so that what was learned can be used.
    """
    pool.submit_checkpoint(max(progress.kept, default=-1), progress.learner)
    while any(isinstance(task, Checkpoint) for task in pool.in_flight):
        records = to_commit(store, plan, pool, progress, [outcome.record for outcome in pool.wait()])
        if records:
            store.commit(records)
        for record in records:
            progress.take(record)
        if records:
            told.committed(records)


def to_commit(store: Store, plan: Plan, pool: Pool, progress: Progress, finished: list[Result]) -> list[Record]:
    """The records to commit for what finished: nothing twice, and nothing that breaks the promise silently."""
    records: list[Record] = []
    others: list[Record] = []
    published = progress.published
    if pool.arithmetic is not None and progress.arithmetic is None:
        records.append(pool.arithmetic)
    for result in finished:
        match result["kind"]:
            case "fragment":
                records.append(result)
                others.extend(_of_environment(result, progress))
            case "learn":
                if result["version"] > published:  # else it was lost and learned again, or overtaken elsewhere
                    records.append(result)
                    published = result["version"]
            case "evaluation":
                if result["version"] not in progress.evaluated:
                    records.append(result)
                    if "error" in result:
                        warnings.warn(
                            f"version {result['version']} could not be evaluated, and the run goes on: "
                            f"{result['error']}",
                            stacklevel=2,
                        )
            case "checkpoint":
                if (result["checkpoint"] or result.get("weights")) and result["version"] <= published:
                    records.append(result)
            case "recheck":
                records.extend(_of_recheck(result, store, plan, progress))
            case "republished" | "evaluating":
                pass
            case other:
                assert_never(other)
    records.extend(others)
    records.extend({"kind": "promise_off", "reason": reason} for reason in pool.promise_off)
    records.extend(pool.notes)
    pool.promise_off.clear()
    pool.notes.clear()
    return records


def _of_recheck(result: RecheckResult, store: Store, plan: Plan, progress: Progress) -> list[PromiseOffRecord]:
    """What follows from a fragment that was run a second time."""
    if result["problem"] is None:
        return []
    if plan.options.strict:
        raise NondeterministicError(
            f"{result['problem']} {GO_ON}\n  Type: daskrl reproduce {store.storage} --fragment {result['slot']}"
            f"{own(store.config)}"
        )
    if progress.environment_off:
        return []
    progress.environment_off = True
    warnings.warn(f"{result['problem']} Going on without the promise.", stacklevel=3)
    return [environment_breaks_promise(result["problem"])]


def _of_environment(record: FragmentRecord, progress: Progress) -> list[PromiseOffRecord]:
    """What a fragment shows of its environments, beside its transitions."""
    if record.get("out_of_bounds") and not progress.out_of_bounds:
        progress.out_of_bounds = True
        warnings.warn(
            f"{record['out_of_bounds'][0]}. It is stored as it is, and this is said once a run. Correct the "
            "space, or clip the observation; with strict_bounds=True (--strict-bounds) it is an error.",
            stacklevel=3,
        )
    if record["continues"]:
        return []
    return [
        environment_breaks_promise(
            f"fragment {record['slot']} starts new episodes: its environments could not be rebuilt"
        )
    ]


def environment_breaks_promise(reason: str) -> PromiseOffRecord:
    return {"kind": "promise_off", "reason": reason, "environment": True}


def _report(
    config: RunConfig, plan: Plan, pool: Pool, progress: Progress, rounds: int, seconds: float, at_start: int,
) -> Report:  # fmt: skip
    steps = config.schedule.fragment_steps * config.schedule.envs_per_stream
    env_steps = sum(progress.committed) * steps
    newest = max(progress.committed) - 1
    newest_evaluated, best = progress.evaluation or (None, None), progress.best or (None, None)
    done = progress.published - max(at_start, 0)
    return Report(
        weights_version=progress.published,
        env_steps=env_steps,
        learner_updates=progress.learner_updates,
        episode_return=sum(progress.returns) / len(progress.returns) if progress.returns else None,
        episodes=progress.episodes,
        loss=progress.loss,
        policy_lag=newest - config.schedule.weights_version(newest) if newest >= 0 else 0,
        replay_ratio=progress.learner_updates * plan.transitions_per_update / env_steps if env_steps else 0.0,
        workers=pool.workers(),
        seconds=seconds,
        time_left=seconds / done * (rounds - progress.published) if done > 0 else None,
        evaluation_version=newest_evaluated[0],
        evaluation_return=newest_evaluated[1],
        best_version=best[0],
        best_return=best[1],
    )


def _drop_old_checkpoints(store: Store, records: list[Record], published: int, learner: str) -> None:
    """Keep a learner's newest checkpoint, and the one to start from where weights that streams still need are lost."""
    if any(True for _ in checkpoints(records, learner)):
        # Later files than ``published`` may be there already: a learner is up to two versions ahead of us.
        oldest = published - max(1, store.config.schedule.lag)
        versions = sorted(
            v for name in store.storage.names(CHECKPOINTS) if (v := version_in(name, learner)) is not None
        )
        for old in [version for version in versions if version <= oldest][:-1]:
            store.storage.delete(checkpoint_key(old, learner))
