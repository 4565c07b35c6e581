"""What sinks wrote, read by the tools they wrote it for."""

from __future__ import annotations

import csv
import json
import re
import urllib.request
from pathlib import Path
from typing import Any


def scalars(directory: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    read = EventAccumulator(str(directory))
    read.Reload()
    return sorted((event.step, event.value) for event in read.Scalars(name))  # files of one second come in any order


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        found = re.findall(r"^(\w+) (\S+)$", page.read().decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def logged(directory: Path) -> list[dict[str, Any]]:
    """The runs that W&B wrote offline, oldest first, as its own records say. Its file is LevelDB's kind of log."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    wandb.teardown()  # the process that writes them ends, and what it read of the environment is forgotten
    runs = []
    for path in sorted(directory.glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns):
        data, at, parts = path.read_bytes(), 7, b""  # W&B's own seven bytes come first
        found: dict[str, Any] = {"history": [], "exit_code": None}
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # no header is split over two blocks
                at += 32768 - at % 32768
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = Record.FromString(parts)
                parts = b""
                if record.HasField("run"):
                    config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                    found |= {"id": record.run.run_id, "project": record.run.project, "config": config}
                if record.HasField("history"):
                    values = {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in record.history.item
                    }
                    found["history"].append(values)
                if record.HasField("exit"):
                    found["exit_code"] = record.exit.exit_code
        runs.append(found)
    return runs


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
