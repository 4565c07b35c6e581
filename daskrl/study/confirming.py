"""The winner of a study, run again from seeds that the study has not seen; what that gave stands in the study's log."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from daskrl.codec import decoded, encoded
from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError
from daskrl.study import table as tables
from daskrl.study.definition import Definition
from daskrl.study.log import ConfirmedRecord, StudyLog, setting_of
from daskrl.study.space import ALGORITHM, Setting, key
from daskrl.study.statistics import Estimate
from daskrl.study.winner import Optimism, optimism, winner

if TYPE_CHECKING:
    from distributed import Client

Made = Callable[..., Any]
"""`daskrl.Study`, which imports this module."""
CONFIRMED = "confirmed"
UNTESTED = (
    "Not tested on seeds that it was not chosen by: the best of many settings looks better than it is. Type: "
    "study.confirm(), or daskrl study confirm FILE"
)
_EARLIER = "Of an earlier state of the study, which has other results now. Confirm it again."


def confirm(
    log: StudyLog, definition: Definition, make: Made, client: Client | None, seeds: int, given: Mapping[str, Any]
) -> Optimism:
    """As `daskrl.Study.confirm` says."""
    seeds = plain(seeds)
    require_integer("seeds", seeds, 1)
    log.lock()  # which is the winner is to stay as it is
    try:
        if log.definition["search"]["kind"] == "Population":
            raise ConfigError(
                f"{log.storage} is a population: its members' settings change on the way, so that none of them can be "
                "run again alone. Make the population again with another study_seed."
            )
        table, axes = tables.table(log), definition.space.axes
        if not len(table) or not (table.state == "finished").any():
            raise ConfigError(f"{log.storage} has no finished run yet, so there is no winner. Type: study.run()")
        number = int(winner(table).settings["setting"])
        again = _study(log, definition, make, number, seeds).run(client, **given)
        if again.summary()["waiting"]:
            raise ConfigError(f"{again} is to come to its end before it says anything. Type again: study.confirm()")
        test = again.table()
        columns = [ALGORITHM, *(name for name in axes if name != ALGORITHM)]
        for name in columns:
            if name not in test:
                test[name] = None  # a setting that the winner does not have
        found = optimism(table, test, by=columns)
        record = _record(log, number, again.log, found)
        if record != log.confirmed:
            log.append([record])
        return found
    finally:
        log.unlock()


def _study(log: StudyLog, definition: Definition, make: Made, number: int, seeds: int) -> Any:
    """The study of one setting, from seeds that follow those of all."""
    setting = setting_of(next(ask for ask in log.asks if ask is not None and ask["number"] == number))
    label = setting.get(ALGORITHM, next(iter(definition.algorithms)))
    first = max(definition.seeds) + 1
    place = log.storage.folder(CONFIRMED).folder(_name(setting, first))
    if StudyLog.exists(place):  # seeds that were run stay
        seeds = max(seeds, len(StudyLog.open(place).definition["seeds"]))
    return make(
        place, algorithm={label: definition.algorithms[label]}, env=definition.environments,
        space={name: [value] for name, value in setting.items() if name != ALGORITHM},
        seeds=range(first, first + seeds), env_steps=definition.env_steps, score=definition.score,
        **definition.shape, **vars(definition.options),
    )  # fmt: skip


def _name(setting: Setting, first: int) -> str:
    """Of the directory of a setting's runs from some first seed on."""
    return hashlib.sha256(f"{key(setting)} from {first}".encode()).hexdigest()[:12]


def confirmed(log: StudyLog) -> Optimism | None:
    """What the last `daskrl.Study.confirm` of a study found; None where there was none. Runs and computes nothing."""
    record = log.confirmed
    if record is None:
        return None
    said = {**record["found"]}
    for name in ("search", "test", "optimism"):
        said[name] = Estimate(*(math.nan if end is None else end for end in said[name]))
    earlier = [] if record["digest"] == tables.digest(log) else [_EARLIER]
    said |= {"settings": decoded(said["settings"]), "seeds": tuple(said["seeds"])}
    return Optimism(**{**said, "notes": (*earlier, *said["notes"])})


def _record(log: StudyLog, number: int, again: StudyLog, found: Optimism) -> ConfirmedRecord:
    study, digest = f"{CONFIRMED}/{again.storage.name}", tables.digest(log)
    return {"kind": "confirmed", "digest": digest, "setting": number, "study": study, "found": to_json(found)}


def to_json(found: Optimism) -> dict[str, Any]:
    """As the log keeps it; the ends of an interval that there is not are None."""
    said = dataclasses.asdict(found)
    for name in ("search", "test", "optimism"):
        said[name] = [None if math.isnan(end) else end for end in said[name]]
    said["settings"] = {name: encoded(plain(value, "float"), name) for name, value in found.settings.items()}
    made: dict[str, Any] = json.loads(json.dumps(said))
    return made
