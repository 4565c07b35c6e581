"""The episodes of a run, one row each, out of its log: endings are known without the data, but for their kind."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from daskrl import seeding
from daskrl.analysis import reading
from daskrl.analysis.rows import Part
from daskrl.records import Array

COLUMNS = (
    "run", "episode", "stream", "env", "seed", "return", "length", "terminated", "truncated", "first_version",
    "weights_version", "worker", "wall_time",
)  # fmt: skip
_BLOCK = 1 << 24  # bytes of endings that are read at once


def episodes(part: Part, report: reading.Report, columns: Collection[str] = COLUMNS) -> dict[str, Array]:
    """The episodes of which the newest step lies in a part, by number.

    Parameters
    ----------
    columns : those that are wanted: how episodes ended, their returns so far, and their seeds are not in the log.

    Returns
    -------
    Of each column an array ``[E]``, also of most that are not wanted; of ``run`` and ``worker`` the codes. Beside those
    of `COLUMNS` ``row``, of the fragment of the last step in the catalog.
    """
    catalog = part.catalog
    endings = "terminated" in columns or "truncated" in columns
    ended, unfinished = _ended(part, report, endings), _unfinished(part, report, "return" in columns)
    joined = {name: np.concatenate([ended[name], unfinished[name]]) for name in ended}
    streams, envs = catalog.stream[joined["row"]], joined["env"]
    number = joined["local"] * catalog.lanes + streams * catalog.envs + envs
    schedule, steps = catalog.store.config.schedule, catalog.fragment_steps
    last = catalog.round[joined["row"]] * steps + joined["time"]
    began = (last - joined["length"] + 1) // steps
    found = catalog.row_of(streams, began)
    computed = np.maximum(0, began - schedule.lag)  # where the record of that fragment cannot be read
    first = np.where(found >= 0, catalog.weights_version[found], computed) if len(catalog) else computed
    made = {
        "run": np.zeros(len(number), np.int32),
        "episode": number,
        "stream": streams,
        "env": envs.astype(np.int64),
        "return": joined["return"],
        "length": joined["length"],
        "terminated": joined["terminated"],
        "truncated": joined["truncated"],
        "first_version": first,
        "weights_version": catalog.weights_version[joined["row"]],
        "worker": catalog.worker[joined["row"]],
        "wall_time": catalog.wall_time[joined["row"]],
        "row": joined["row"],
        "local": joined["local"],
    }
    keep = np.argsort(number, kind="stable")
    if part.envs is not None:
        keep = keep[part.envs[made["env"][keep]]]
    if part.episodes is not None:
        keep = keep[np.isin(number[keep], part.episodes)]
    made = {name: column[keep] for name, column in made.items()}
    local = made.pop("local")
    if "seed" not in columns:
        return made
    made["seed"] = _seeds(catalog.store.config.seed, made["stream"], made["env"], local, schedule.envs_per_stream)
    return made


def _ends(part: Part) -> dict[str, Array]:
    """Where each episode ended that the log of a part's run names, whether in the part or not."""
    catalog = part.catalog
    row, env, length = catalog.ended_row, catalog.ended_env, catalog.ended_length
    # Of one environment in one fragment: the first ended after what was left of it, the next after its length.
    order = np.lexsort((np.arange(len(row)), env, row))
    row, env, length = row[order], env[order], length[order]
    key = row * catalog.envs + env
    new = np.ones(len(key), np.bool_)
    new[1:] = key[1:] != key[:-1]
    start = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    total = np.cumsum(length)
    before = total[start] - length[start] if len(start) else total[:0]
    time = total - before[group] - catalog.episode_step[row, env] - 1
    rank = np.arange(len(row)) - start[group]
    return {
        "row": row, "env": env.astype(np.int64), "time": time, "length": length,
        "return": catalog.ended_return[order], "local": catalog.first_episode[row, env] + rank, "rank": rank,
    }  # fmt: skip


def _in_part(part: Part, row: Array) -> Array:
    inside = np.zeros(len(part.catalog), np.bool_)
    inside[part.rows] = True
    found: Array = inside[row]
    return found


def _ended(part: Part, report: reading.Report, endings: bool) -> dict[str, Array]:
    catalog, ends = part.catalog, _ends(part)
    inside = _in_part(part, ends["row"])
    ends = {name: column[inside] for name, column in ends.items() if name != "rank"}
    order = np.argsort(ends["row"], kind="stable")
    ends = {name: column[order] for name, column in ends.items()}
    terminated, truncated = np.zeros((2, len(ends["row"])), np.bool_)
    good = np.ones(len(ends["row"]), np.bool_)
    rows = np.unique(ends["row"]) if endings else ends["row"][:0]
    at_once = max(1, _BLOCK // (2 * catalog.size))
    for first in range(0, len(rows), at_once):
        some = rows[first : first + at_once]
        arrays, read = reading.read(catalog, some, ("terminated", "truncated"), report)
        low, high = np.searchsorted(ends["row"], [some[0], some[-1] + 1])
        place = np.searchsorted(some, ends["row"][low:high])
        at = (place, ends["time"][low:high], ends["env"][low:high])
        terminated[low:high], truncated[low:high] = arrays["terminated"][at], arrays["truncated"][at]
        good[low:high] = read[place]
    ends |= {"terminated": terminated, "truncated": truncated}
    return {name: column[good] for name, column in ends.items()}


def _unfinished(part: Part, report: reading.Report, returns: bool) -> dict[str, Array]:
    """Episodes of which the newest step is the last of a fragment, and that do not go on in the next one.

    They are those at the end of each stream, and those that were cut where a fragment does not continue the one before.
    """
    catalog = part.catalog
    ends = _ends(part)
    age = catalog.episode_step + catalog.fragment_steps
    local = catalog.first_episode.copy()
    # Assigned in the order of endings, so that the last of each environment in each fragment stays.
    age[ends["row"], ends["env"]] = catalog.fragment_steps - 1 - ends["time"]
    local[ends["row"], ends["env"]] = ends["local"] + 1
    following = _following(catalog.stream)
    goes_on = np.zeros(age.shape, np.bool_)
    known = following >= 0
    after = following[known]
    same = (catalog.first_episode[after] == local[known]) & (catalog.episode_step[after] > 0)
    next_to = catalog.round[after] == catalog.round[known] + 1
    goes_on[known] = same & (catalog.continues[after] | ~next_to)[:, None]
    rows, envs = np.nonzero((age > 0) & ~goes_on)
    inside = _in_part(part, rows)
    rows, envs = rows[inside], envs[inside]
    length = age[rows, envs]
    never = np.zeros(len(rows), np.bool_)
    found = {
        "row": rows, "env": envs, "time": np.full(len(rows), catalog.fragment_steps - 1), "length": length,
        "return": np.zeros(len(rows)), "local": local[rows, envs], "terminated": never, "truncated": never,
    }  # fmt: skip
    if returns:
        found["return"] = _returns_so_far(part, rows, envs, length, report)
    return found


def _following(stream: Array) -> Array:
    """``[F]`` the row of the next fragment of the same stream, -1 without one."""
    following = np.full(len(stream), -1)
    by_stream = np.argsort(stream, kind="stable")
    same = stream[by_stream[1:]] == stream[by_stream[:-1]]
    following[by_stream[:-1][same]] = by_stream[1:][same]
    return following


def _returns_so_far(part: Part, rows: Array, envs: Array, length: Array, report: reading.Report) -> Array:
    """The sum of the rewards of each unfinished episode; NaN where some cannot be read."""
    catalog, steps = part.catalog, part.catalog.fragment_steps
    total = np.zeros(len(rows))
    streams, rounds, left = catalog.stream[rows], catalog.round[rows].copy(), length.copy()
    going = np.arange(len(rows))
    while len(going):
        at = catalog.row_of(streams[going], rounds[going])
        total[going[at < 0]] = np.nan
        going, at = going[at >= 0], at[at >= 0]
        some, place = np.unique(at, return_inverse=True)
        arrays, good = reading.read(catalog, some, ("reward",), report)
        lanes = arrays["reward"][place, :, envs[going]].astype(np.float64)
        first = np.maximum(0, steps - left[going])
        lanes[np.arange(steps) < first[:, None]] = 0
        total[going] += np.where(good[place], lanes.sum(1), np.nan)
        left[going] -= steps
        rounds[going] -= 1
        going = going[left[going] > 0]
    return total


def _seeds(seed: int, streams: Array, envs: Array, local: Array, count: int) -> Array:
    """The reset seed of each episode."""
    sizes = seeding.BLOCK
    block, place = np.divmod(local, sizes)
    keys = (block * (int(streams.max(initial=0)) + 1) + streams) * count + envs
    _, index, inverse = np.unique(keys, return_index=True, return_inverse=True)
    table = np.array(
        [seeding.environment_seed_block(seed, int(streams[i]), int(envs[i]), int(block[i])) for i in index],
        np.int64,
    ).reshape(-1, sizes)
    found: Array = table[inverse, place]
    return found
