"""What came of a run, kept in its own store until the study's log has it: nobody scores a run a second time.

The worker keeps it before it tells the driver, who may be dead by then. FORMAT.md, section 12, says what the file is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from daskrl.store.files import EMPTY_GROUP, crc32c
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
    body = json.dumps([{**record, "judged": judged}], separators=(",", ":")).encode()
    storage.make_folder(SCORED)
    storage.put(f"{SCORED}/zarr.json", EMPTY_GROUP)
    storage.put(_key(record["env_steps"]), b'{"crc32c":"%08x","records":%s}\n' % (crc32c(body), body))


def kept(storage: Storage, trial: str, env_steps: int, judged: str) -> dict[str, Any] | None:
    """The record of a run at so many env steps; None where there is none that is whole and of this score."""
    try:
        data = storage.get(_key(env_steps))
        said = json.loads(data)
        if crc32c(data[data.find(b"[") : data.rfind(b"]") + 1]) != int(said["crc32c"], 16):
            return None
        record: Any = dict(said["records"][0])
    except (FileNotFoundError, ValueError, KeyError, TypeError, IndexError):
        return None
    mine = record.pop("judged", None) == judged and (record.get("trial"), record.get("env_steps")) == (trial, env_steps)
    return record if mine else None
