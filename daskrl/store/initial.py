"""What a new run begins with, as files of its store: another run's weights, and the first content of the window."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from daskrl.arithmetic import aligned_all
from daskrl.records import Array, ReadFragment
from daskrl.store.columns import Column
from daskrl.store.storage import Storage

_WEIGHTS, _OTHERS = "weights/", "others/"  # before the names of arrays in the file


@dataclass(frozen=True)
class Initial:
    """What the learner of a new run begins with.

    Attributes
    ----------
    weights : published weights, name -> array.
    others : what else the learner of the other run had learned by then (critics, counts of what was observed), as its
        checkpoint of that version names it; empty where there is none, or it is of another algorithm.
    origin : of a store ``run_id``, ``version``, ``digest``.
    replay : the first content of the learner's window; None for none.
    """

    weights: dict[str, Array]
    others: dict[str, Array]
    origin: dict[str, Any]
    replay: FirstReplay | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """As the config of the run has it: a hash of all arrays, and where they are from."""
        sha = hashlib.sha256()
        for name, value in sorted(self._named().items()):
            sha.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
            sha.update(np.ascontiguousarray(value).tobytes())
        replay = {} if self.replay is None else {"replay": self.replay.identity}
        return {"sha256": sha.hexdigest(), "checkpoint": bool(self.others), **self.origin, **replay}

    def _named(self) -> dict[str, Array]:
        weights = {f"{_WEIGHTS}{name}": value for name, value in self.weights.items()}
        return {**weights, **{f"{_OTHERS}{name}": value for name, value in self.others.items()}}

    def to_bytes(self) -> bytes:
        """As safetensors."""
        from safetensors.numpy import save

        data: bytes = save({name: np.asarray(value, order="C") for name, value in self._named().items()})
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Initial:
        from safetensors.numpy import load

        arrays = aligned_all(load(data))

        def under(prefix: str) -> dict[str, Array]:
            return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

        return cls(under(_WEIGHTS), under(_OTHERS), {})


@dataclass(frozen=True)
class FirstReplay:
    """Committed fragments of whole rounds of another run, in the order of their slots.

    Attributes
    ----------
    storage, layout : where the other run's store lies, and its columns.
    """

    storage: Storage
    layout: Mapping[str, Column]
    records: list[ReadFragment]

    @property
    def identity(self) -> dict[str, Any]:
        """What the config of a run says of its first replay: the checksums of all chunks are in the records."""
        return {"fragments": len(self.records), "sha256": hashlib.sha256(self.to_bytes()).hexdigest()}

    def to_bytes(self) -> bytes:
        """The records, as JSON."""
        return json.dumps(self.records, sort_keys=True, separators=(",", ":")).encode()

    def copy(self, to: Storage) -> None:
        """Copy the chunks."""
        for record in self.records:
            for name, (nbytes, _) in record["columns"].items():
                if nbytes:
                    key = f"{name}/{self.layout[name].chunk_name(record['slot'])}"
                    to.put(key, self.storage.get(key))
