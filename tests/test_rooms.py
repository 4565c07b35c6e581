"""One small run in this process, from its beginning to what people see of it: every room of the house has a part."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import daskrl
from daskrl import clusters, testing
from daskrl.study.winner import winner
from tests.typed import Here
from tests.walks import ROUND, start

PACKAGE = Path(daskrl.__file__).parent
ROOMS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
# These have no functions, but for `python -m daskrl`, which is a process of its own.
ELSEWHERE = {"__init__", "__main__", "errors", "records"}


@contextlib.contextmanager
def entered() -> Iterator[set[str]]:
    """The rooms of which a function runs meanwhile, in any thread that begins meanwhile too."""
    found: set[str] = set()

    def called(frame: FrameType, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        if event == "call" and frame.f_code.co_name != "<module>" and path.startswith(f"{PACKAGE}/"):
            found.add(path[len(f"{PACKAGE}/") :].partition("/")[0].removesuffix(".py"))

    before = sys.getprofile()
    sys.setprofile(called)
    threading.setprofile(called)
    try:
        yield found
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


def test_a_small_run_and_what_people_see_of_it_go_through_every_room(tmp_path: Path, here: Here) -> None:
    with entered() as rooms:
        start(tmp_path / "run", env_steps=ROUND).wait()
        resumed = daskrl.resume(tmp_path / "run", env_steps=2 * ROUND, progress=False).wait()
        whole = start(tmp_path / "whole", env_steps=2 * ROUND).wait()
        info = here("info", "run", "--json", cwd=tmp_path).stdout
        here("info", "run", cwd=tmp_path)
        evaluation = daskrl.evaluate(tmp_path / "run", episodes=1)
        best = winner([{"environment": "Corridor", "seed": 0, "score": evaluation.mean, "setting": 0}])
        testing.Corridor().reset(seed=0)
        with pytest.raises(daskrl.errors.UnknownNameError):
            daskrl.DQN(hiden=(8,))  # type: ignore[call-arg]
        with pytest.raises(daskrl.errors.ConfigError):
            clusters.from_file(tmp_path / "none.yaml")
    assert resumed.store.digest() == whole.store.digest()
    assert json.loads(info)["env_steps"] == 2 * ROUND
    assert len(evaluation.returns) == 1
    assert best.iqm == evaluation.mean
    assert ROOMS - ELSEWHERE - rooms == set()
