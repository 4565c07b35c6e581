"""What the benchmarks compute themselves, beside what they time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("_table", "tasks", "learning"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def _state() -> Any:
    kind, keys, *others = np.random.get_state()  # noqa: NPY002
    return kind, keys.tobytes(), others  # type: ignore[attr-defined]


def test_two_calls_give_the_same_intervals_whatever_else_is_in_the_table(benchmarks: None) -> None:
    from learning import aggregate  # type: ignore[import-not-found]

    scores = {"one": [1.0, 2.0, 4.0, 8.0], "other": [3.0, 5.0, 9.0, 1.0]}
    before = _state()
    first = aggregate(scores, reps=200)
    np.random.rand()  # noqa: NPY002
    second = aggregate({"other": scores["other"], "more": [0.0, 1.0, 2.0, 7.0], "one": scores["one"]}, reps=200)
    assert {name: second[name] for name in first} == first
    assert _state() != before  # what was drawn here, and nothing else
