"""The rollout task: acts with one version of the weights of each learner for one fragment and writes it.

A pure function of (run config, what is committed, stream, round). The worker's live environments are used
when they stand at the right round; otherwise they are rebuilt from the store.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from daskrl import seeding
from daskrl.algorithms.base import Moment, recurrent_state
from daskrl.arithmetic import of_thread, pinned, undrawn
from daskrl.code import modules
from daskrl.config import RunConfig
from daskrl.envs import isolation
from daskrl.envs.actions import Action
from daskrl.envs.spaces import state_name
from daskrl.envs.stream import Fragment, Policy, Stream
from daskrl.errors import EnvironmentRaisedError, EnvironmentTimeoutError, NondeterministicError
from daskrl.records import Array, FragmentRecord, PlayedFragment, RecheckResult, learner_of
from daskrl.store.columns import checksums, write_fragment
from daskrl.tasks.published import unpack
from daskrl.tasks.session import At, Published, Session, get

T = TypeVar("T")

GO_ON = "Or pass strict=False (--no-strict) to go on without the promise; the store will say so."


ByLearner = Mapping[str, Published]
"""The weights that a fragment acts with: key of a learner -> what it published, of all learners the same version."""


def rollout(token: str, stream: int, round_: int, head: int, *weights: Published) -> FragmentRecord:
    """Write one fragment and return its commit record.

    Called by the driver's pool on any worker, more than once for the same (stream, round) and possibly at the
    same time; every execution writes the same bytes to the same files.

    Parameters
    ----------
    head : commits that exist at least; the task looks no further.
    weights : what each learner published for the round's version.

    Raises
    ------
    EnvironmentFailure
        With the fragment, the seed, and what to type to reproduce it.
    """
    session = get(token)
    began = time.time()
    fragment, played = run(session, by_learner(weights), stream, round_, head, use_cache=True)
    layout = session.layout
    layout.require_same_run()
    return {
        **played,
        "columns": write_fragment(layout.storage, layout.columns, played["slot"], fragment),
        "wall_time": began,
        "seconds": time.time() - began,
        "worker": f"{socket.gethostname()}:{os.getpid()}",
    }


def by_learner(weights: Iterable[Published]) -> ByLearner:
    """Published weights by the learner that their record names."""
    return {learner_of(published[0]): published for published in weights}


def recheck(token: str, record: FragmentRecord, head: int, *weights: Published) -> RecheckResult:
    """Run a committed fragment a second time, from its recorded seeds, and compare it bit for bit.

    Its environments are made anew, and stepped through what is recorded of their episodes before.

    Returns
    -------
    a record of kind ``recheck``: its ``problem`` says what differs and what to look for; None where nothing does.
    """
    session = get(token)
    layout = session.layout
    problem = None
    try:
        of_each, stream, round_ = by_learner(weights), record["stream"], record["round"]
        fragment, _, live = _run(session, of_each, stream, round_, head, use_cache=False)
        columns = checksums(layout.columns, fragment)
        differs = sorted(name for name in columns if columns[name] != list(record["columns"][name]))
        if differs:
            acted = any(name.startswith("action") for name in differs)
            problem = (
                f"fragment {record['slot']} run a second time from the same seed differs in {', '.join(differs)}. "
                f"{live.nondeterminism(acted)}"
            )
    except NondeterministicError as error:
        problem = str(error)
    return {"kind": "recheck", "slot": record["slot"], "problem": problem}


def retrace(token: str, record: FragmentRecord, environment: int, head: int) -> RecheckResult:
    """Step one environment of a committed fragment again, by itself and through its recorded actions, in a new object.

    All that is stored of its episode so far and of the fragment is compared. What an environment keeps of earlier
    episodes, or shares with others, shows.

    Returns
    -------
    a record of kind ``recheck``, as of `recheck`.
    """
    session = get(token)
    layout, config, schedule = session.layout, session.config, session.config.schedule
    stream, round_, steps = record["stream"], record["round"], schedule.fragment_steps
    where = f"stepping fragment {record['slot']} (stream {stream}, round {round_}) again by itself"
    age = record["episode_step"][environment]
    rounds = range(round_ - -(-age // steps), round_ + 1)
    start = (len(rounds) - 1) * steps - age

    def again(alive: Callable[[], None]) -> None:
        live = Stream.make(
            session.factory, layout.spec, seed=config.seed, index=stream, count=1, frame_stack=config.frame_stack,
            episode=[record["first_episode"][environment]], first=environment, alive=alive,
        )  # fmt: skip
        try:
            records = layout.find([schedule.slot(stream, r) for r in rounds], head)
            for i, r in enumerate(rounds):
                alive()
                columns = layout.read(records[schedule.slot(stream, r)])
                live.retrace(0, columns, max(0, start - i * steps), where)
        finally:
            live.close()

    problem = None
    try:
        with pinned():
            within(session.options.rollout_timeout, again, where)
    except NondeterministicError as error:
        problem = str(error)
    return {"kind": "recheck", "slot": record["slot"], "problem": problem}


def run(
    session: Session, weights: ByLearner, stream: int, round_: int, head: int, *, use_cache: bool
) -> tuple[Fragment, PlayedFragment]:
    """The fragment of (stream, round) and its record, without its checksums."""
    fragment, record, _ = _run(session, weights, stream, round_, head, use_cache=use_cache)
    return fragment, record


def _run(
    session: Session, weights: ByLearner, stream: int, round_: int, head: int, *, use_cache: bool
) -> tuple[Fragment, PlayedFragment, Stream]:
    config, schedule, strict = session.config, session.config.schedule, session.options.strict
    slot, version = schedule.slot(stream, round_), next(iter(weights.values()))[0]["version"]
    where = f"fragment {slot} (stream {stream}, round {round_})"
    reproduce = f"\n  Type: daskrl reproduce {session.layout.storage} --fragment {slot}{own(config)}"

    def steps(alive: Callable[[], None]) -> tuple[Fragment, PlayedFragment, Stream]:
        kept = session.streams.take(stream) if use_cache else None
        continues = True
        if kept is not None and kept.round == round_:
            live = kept.stream
        else:
            if kept is not None:
                kept.stream.close()
            live, continues = rebuild(session, stream, round_, head, alive, strict or not use_cache)
        live.where, live.weights_version = where, version
        first_episode, episode_step = live.episode.tolist(), live.age.tolist()
        policy = make_policy(session, weights, stream, round_)
        alive()  # from here on the fragment's own steps are timed
        fragment, episodes = live.rollout(policy, schedule.fragment_steps)
        record: PlayedFragment = {
            "kind": "fragment",
            "slot": slot,
            "stream": stream,
            "round": round_,
            "weights_version": version,
            "continues": continues,
            "episodes": [list(episode) for episode in episodes],
            "first_episode": first_episode,
            "episode_step": episode_step,
            "environment_seed": seeding.environment_seeds(config.seed, stream, first_episode),
        }
        if live.outside:
            record["out_of_bounds"] = live.outside
            if session.options.strict_bounds:
                raise EnvironmentRaisedError(
                    f"{live.outside[0]}. {where} was not committed. Correct the space, or clip the observation "
                    "(gymnasium.wrappers.TransformObservation), or leave strict_bounds out."
                )
        return fragment, record, live

    try:
        with pinned():
            fragment, record, live = within(session.options.rollout_timeout, steps, where)
    except Exception as error:
        # Every failure of an environment names the way to see it again; a recheck's driver says so itself.
        unequal = isinstance(error, NondeterministicError)
        if (
            error.args
            and isinstance(error.args[0], str)
            and reproduce not in error.args[0]
            and (use_cache or not unequal)
        ):
            go_on = f" {GO_ON}" if unequal else ""
            error.args = (error.args[0] + go_on + reproduce, *error.args[1:])
        raise
    if use_cache:
        session.streams.keep(stream, At(round_ + 1, live))
    else:
        live.close()
    return fragment, record, live


def own(config: RunConfig) -> str:
    """What a command must be given again of a run made with the user's own environment or algorithm."""
    env, algorithm = config.environment, config.algorithm
    own = [modules.option("algorithm", algorithm["name"])] if algorithm["source_sha256"] else []
    own += [modules.option("env", env["name"])] if env["kind"] == "callable" else []
    return "".join(f" {option}" for option in own)


def within(seconds: float, function: Callable[[Callable[[], None]], T], where: str) -> T:
    """Call a function in a thread of its own and give up on it when it has not been heard of for some seconds.

    A thread cannot be stopped: one that hangs is left behind, and goes when its process does.

    Parameters
    ----------
    function : is given what it calls whenever it got on; the seconds are then counted anew. So rebuilding may take as
        long as it has steps to take, and is given up as soon as it hangs.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    finished = threading.Event()
    heard = [time.monotonic()]

    def alive() -> None:
        heard[0] = time.monotonic()

    def call() -> None:
        try:
            with of_thread():
                outcome.append(function(alive))
        except BaseException as error:
            failure.append(error)
        finally:
            finished.set()

    thread = threading.Thread(target=call, daemon=True, name=f"daskrl {where}")
    try:
        thread.start()
        while not finished.wait(left := heard[0] + seconds - time.monotonic()) and left > 0:
            pass
    except KeyboardInterrupt:
        finished.wait(10)  # a process that ends while one of its threads is inside torch aborts
        raise
    if failure:
        raise failure[0]
    if not outcome:
        isolation.given_up()
        raise EnvironmentTimeoutError(
            f"{where} took longer than rollout_timeout = {seconds:g} s to take its own steps, to make an environment, "
            "or to step through a recorded fragment again: an environment hangs, or a fragment is too long. Raise "
            "rollout_timeout, or lower fragment_steps in a new run."
        )
    return outcome[0]


def rebuild(
    session: Session, stream: int, round_: int, head: int, alive: Callable[[], None], strict: bool
) -> tuple[Stream, bool]:
    """The environments of a stream as they stand before ``round_``, from what is committed.

    Each is reset with the recorded seed of its episode and stepped through the actions stored since; at most
    one episode. The rewards, endings and observations must be those stored.

    Parameters
    ----------
    alive : called after each environment made, and each of a fragment's that was stepped through.
    strict : raise where something differs.

    Returns
    -------
    stream, and whether it continues the fragment before: False only where the environment turned out not to
    be deterministic and the run goes on without the promise, with fresh episodes.
    """
    layout, config, schedule = session.layout, session.config, session.config.schedule
    steps, count, frames = schedule.fragment_steps, schedule.envs_per_stream, config.frame_stack

    def make(episode: list[int] | None) -> Stream:
        return Stream.make(
            session.factory, layout.spec, seed=config.seed, index=stream, count=count, frame_stack=frames,
            episode=episode, state=recurrent_state(session.algorithm, session.setup()), alive=alive,
        )  # fmt: skip

    if round_ == 0:
        return make(None), True
    where = f"rebuilding stream {stream} before round {round_}"
    last = layout.find([schedule.slot(stream, round_ - 1)], head)[schedule.slot(stream, round_ - 1)]
    needed = tuple(name for name, column in layout.columns.items() if not column.optional)
    columns = layout.read(last, needed)
    ended = columns["terminated"] | columns["truncated"]  # [T, N]
    episode = np.asarray(last["first_episode"]) + ended.sum(axis=0)
    since = steps - 1 - np.where(ended.any(axis=0), steps - 1 - ended[::-1].argmax(axis=0), -1)
    age = np.where(ended.any(axis=0), since, np.asarray(last["episode_step"]) + steps)

    rounds = range(round_ - max(1, -(-int(age.max()) // steps)), round_)
    records = layout.find([schedule.slot(stream, r) for r in rounds], head)
    live = make(episode.tolist())
    try:
        for i, r in enumerate(rounds):
            # One fragment at a time: an episode of frames may be larger than the memory.
            stored = columns if r == round_ - 1 else layout.read(records[schedule.slot(stream, r)], needed)
            for env in range(count):
                start = (len(rounds) - i) * steps - int(age[env])
                if start <= steps:
                    live.retrace(env, stored, max(0, start), where)
                    alive()
    except NondeterministicError as error:
        live.close()
        if strict:
            raise
        warnings.warn(f"{error} Going on with new episodes.", stacklevel=2)
        return make([int(n) + 1 for n in episode]), False
    for name, value in live.state.items():
        value[...] = columns[state_name(name)][1]
    return live, True


def make_policy(session: Session, weights: ByLearner, stream: int, round_: int, agent: str = "") -> Policy:
    """The policy of an agent in one fragment: its learner's weights, its own generator, its place in the schedule."""
    import torch

    config, schedule, act = session.config, session.config.schedule, session.algorithm.act
    policy = acting_policy(session, weights[session.layout.agents[agent]])
    # A run that goes on where another stood goes on with its count: what changes by that does not begin anew.
    before, lanes = round_ * schedule.round_steps + (config.init or {}).get("env_steps", 0), schedule.lanes
    moment = Moment({}, seeding.generator(config.seed, "act", stream, round_, key=agent))

    def choose(observation: Mapping[str, Array], state: dict[str, Array], t: int) -> tuple[Action, Mapping[str, Array]]:
        moment.observation, moment.state, moment.env_steps = observation, state, before + t * lanes
        with torch.inference_mode():
            chosen = act(policy, moment)
        return chosen if isinstance(chosen, tuple) else (chosen, {})

    return choose


def acting_policy(session: Session, weights: Published) -> Any:
    """A policy that acts with the given weights; the newest few are kept."""
    meta, table, flat = weights
    version, policies = int(meta["version"]), session.learners[learner_of(meta)].policies
    with session.lock:
        known = policies.get(version)
    if known is not None:
        return known
    with undrawn():
        made = session.algorithm.policy(session.setup())
    session.algorithm.load(made, unpack(table, flat))
    with session.lock:
        policies[version] = made
        for old in sorted(policies)[: -(session.config.schedule.lag + 2)]:
            del policies[old]
    return made
