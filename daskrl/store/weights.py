"""Files of weights: safetensors with what they belong to in their metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from daskrl.arithmetic import aligned_all
from daskrl.config import RunConfig
from daskrl.envs.spaces import SpaceSpec
from daskrl.names import require_key
from daskrl.records import Array
from daskrl.store.files import read_checked
from daskrl.store.storage import Storage

WEIGHTS, CHECKPOINTS, DIVERGED = ".weights", ".checkpoints", ".diverged"
_SUFFIX = ".safetensors"


def weights_key(version: int, learner: str = "") -> str:
    """Where a store keeps that version of a learner's weights; the learner "" is the only one of a run that has one."""
    return f"{WEIGHTS}/{_stem(version, learner)}{_SUFFIX}"


def checkpoint_key(version: int, learner: str = "") -> str:
    """Where a store keeps the checkpoint of a learner at that version."""
    return f"{CHECKPOINTS}/{_stem(version, learner)}{_SUFFIX}"


def diverged_key(version: int, learner: str = "") -> str:
    """Where a store keeps, for people, the batch with which a learner diverged at that version."""
    return f"{DIVERGED}/{_stem(version, learner)}{_SUFFIX}"


def version_in(name: str, learner: str = "") -> int | None:
    """The version that a file's name in either folder says; None where it is no file of this learner."""
    stem = name.removesuffix(_SUFFIX)
    version = stem.removeprefix(f"{learner}.") if learner else stem
    is_one = name.endswith(_SUFFIX) and version.isdecimal() and _stem(int(version), learner) == stem
    return int(version) if is_one else None


def _stem(version: int, learner: str) -> str:
    require_key("learner", learner)
    return f"{learner}.{version:08d}" if learner else f"{version:08d}"


def belongs_to(config: RunConfig, spec: SpaceSpec, run_id: str, version: int, learner: str = "") -> dict[str, str]:
    """What weights belong to, as text by name, for the metadata of their file; see FORMAT.md, section 6."""
    spaces = spec.to_json()

    def text(value: Any) -> str:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    return {
        "version": str(version),
        "run_id": run_id,
        "algorithm": str(config.algorithm["name"]),
        "settings": text(config.algorithm["settings"]),
        "environment": text(config.environment),
        "observation": text(spaces["observation"]),
        "action": text(spaces["action"]),
        "frame_stack": str(config.frame_stack),
        **({"learner": learner} if learner else {}),
    }


def safetensors(arrays: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Arrays by name as safetensors: the same bytes in every process."""
    from safetensors.numpy import save

    data: bytes = save(
        {name: np.asarray(value, order="C") for name, value in arrays.items()},
        metadata=None if metadata is None else dict(metadata),
    )
    if metadata is None:
        return data
    # The library writes the metadata in the order of a hash table, which is another in every process.
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    written = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)
    return len(written).to_bytes(8, "little") + written + data[8 + size :]


def read_weights(storage: Storage, written: Sequence[Any], patience: float = 0.0) -> dict[str, Array]:
    """The arrays of a file of weights, by name; raises `DamagedError` naming it."""
    from safetensors.numpy import load

    return aligned_all(load(read_checked(storage, written, patience)))


def older_weights(version: int, published: int) -> str:
    """Says that a version of the weights is not the newest, and how the newest can be had."""
    return (
        f"weights version {version} is the newest kept, version {published} the newest published: the run goes on, or "
        "its driver was killed. To have the newest, resume the run and stop it (Run.stop, Ctrl-C, SIGTERM), which "
        "keeps the weights it reached, or have more versions kept (weights_every)."
    )
