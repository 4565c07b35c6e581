"""What a store says of itself: the attributes of its zarr group, with a checksum in its first commit."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from daskrl.config import RunConfig, Schedule
from daskrl.envs.spaces import Leaf, SpaceSpec
from daskrl.errors import DamagedError, StoreMismatchError
from daskrl.store.columns import Column
from daskrl.store.files import crc32c
from daskrl.store.log import CommitLog
from daskrl.store.places import Place
from daskrl.store.storage import Storage

FORMAT = "daskrl.replay"
FORMAT_VERSION = 1
_ATTRIBUTES = ("format", "format_version", "run_id", "created", "config", "spec", "columns", "versions")
_ENVIRONMENT = {"kind", "id", "kwargs", "name", "source_sha256", "packages", "captured"}
_ALGORITHM = {"name", "settings", "source_sha256", "packages", "captured"}


def made(config: RunConfig, spec: SpaceSpec, columns: Iterable[Column], versions: Mapping[str, str]) -> dict[str, Any]:
    """The attributes of a new run."""
    attributes = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run_id": uuid.uuid4().hex,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config.to_json(),
        "spec": spec.to_json(),
        "columns": [vars(column) for column in columns],
        "versions": dict(versions),
    }
    said: dict[str, Any] = json.loads(json.dumps(attributes))
    return said


def read(storage: Storage, path: Place) -> dict[str, Any]:
    """The attributes of the store at ``path``; raises as `Store.open` does."""
    try:
        attributes: dict[str, Any] = json.loads(storage.get("zarr.json"))["attributes"]
        format_, version = attributes["format"], attributes["format_version"]
    except (FileNotFoundError, NotADirectoryError):
        raise StoreMismatchError(
            f"{storage} is not a daskrl store: it has no zarr.json. Type: daskrl train ENV --store {path}"
        ) from None
    except DamagedError:  # of a pack
        raise
    except (ValueError, KeyError, TypeError):
        raise StoreMismatchError(f"{storage} is not a daskrl store: its zarr.json has no daskrl attributes.") from None
    if format_ != FORMAT or version != FORMAT_VERSION:
        raise StoreMismatchError(
            f"{storage} has format {format_!r} version {version!r}; this daskrl reads {FORMAT!r} version "
            f"{FORMAT_VERSION}. Install the daskrl it was written with: {attributes.get('versions')}."
        )
    for record in CommitLog(storage).read(0):
        if record["kind"] == "created" and record["attributes_crc32c"] != checksum(attributes):
            raise DamagedError(f"{storage.where('zarr.json')} does not hold the attributes the store was made with.")
    return attributes


def _names(cls: Any) -> set[str]:
    return {field.name for field in fields(cls)}


def unknown_keys(attributes: Mapping[str, Any]) -> list[str]:
    """What the attributes say that this daskrl does not know, as ``config.schedule.NAME``: of a later version."""
    config, spec = attributes["config"], attributes["spec"]
    known: list[tuple[str, Mapping[str, Any], set[str]]] = [
        ("config", config, _names(RunConfig)),
        ("config.schedule", config["schedule"], _names(Schedule)),
        ("config.environment", config["environment"], _ENVIRONMENT),
        ("config.algorithm", config["algorithm"], _ALGORITHM),
        ("spec", spec, _names(SpaceSpec)),
        *((f"spec.{side}", leaf, _names(Leaf)) for side in ("observation", "action") for leaf in spec[side]),
        *(("columns", column, _names(Column)) for column in attributes["columns"]),
    ]
    return sorted({f"{where}.{name}" for where, data, names in known for name in data if name not in names})


def checksum(attributes: Mapping[str, Any]) -> int:
    """CRC-32C of those that may not change: others may be added."""
    kept = {name: attributes.get(name) for name in _ATTRIBUTES}
    return crc32c(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode())
