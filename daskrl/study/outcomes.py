"""What came of a run, kept in its own store until the study's log has it: nobody scores a run a second time.

The worker keeps it before it tells the driver, who may be dead by then. FORMAT.md, section 12, says what the file is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from daskrl.store.files import EMPTY_GROUP
from daskrl.store.log import intact, parsed, serialised
from daskrl.store.storage import Storage

SCORED = ".scored"


def _key(env_steps: object) -> str:
    return f"{SCORED}/{env_steps}.json"


def keep(storage: Storage, record: Mapping[str, object], judged: str) -> None:
    """Keep a record in the run's store.

    Parameters
    ----------
    judged : what the score is known by: a study of another score takes no notice of the record.
    """
    storage.make_folder(SCORED)
    storage.put(f"{SCORED}/zarr.json", EMPTY_GROUP)
    storage.put(_key(record["env_steps"]), serialised([{**record, "judged": judged}])[0])


def kept(storage: Storage, trial: str, env_steps: int, judged: str) -> dict[str, Any] | None:
    """The record of a run at so many env steps; None where there is none that is whole and of this score."""
    try:
        data = storage.get(_key(env_steps))
        found = parsed(data)
        record: Any = dict(found.records[0])
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        return None
    of_run = (record.pop("judged", None), record.get("trial"), record.get("env_steps"))
    return record if intact(data, found) and of_run == (judged, trial, env_steps) else None
