"""What all benchmarks share: interleaved timing, and a table that names the hardware and the versions."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 9,
    seconds: float = 0.15,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds of one call of each candidate, to be compared with each other.

    In each round every candidate is called for about ``seconds`` in turn, and its median call counts, which leaves out
    those that were interrupted. What is compared is each one's share of a round: a machine that is slower for a while
    is so for all of a round, and does not change the shares. Absolute times are then worth little and ratios much. For
    work on one thread without input and output, ``clock=time.process_time`` measures the same and is disturbed less.
    """
    made: list[dict[str, float]] = []
    for call in candidates.values():
        call()
    for _ in range(rounds):
        made.append({})
        for name, call in candidates.items():
            times: list[float] = []
            stop = time.perf_counter() + seconds
            while not times or time.perf_counter() < stop:
                began = clock()
                call()
                times.append(clock() - began)
            made[-1][name] = statistics.median(times)
    total = statistics.median(sum(one.values()) for one in made)
    return {name: total * statistics.median(one[name] / sum(one.values()) for one in made) for name in candidates}


def hardware() -> str:
    """Cores and processor, and the load that other processes put on them."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores of {model}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"


def show(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, packages: Sequence[str] = (), note: str = "",
    width: int = 110,
) -> None:  # fmt: skip
    """Print a table; below it the hardware, the versions of ``packages``, and a note."""
    table = Table(*columns, title=title, title_justify="left")
    for index, row in enumerate(rows):
        table.columns[0].no_wrap = True
        table.add_row(*row, style="bold" if index == len(rows) - 1 and row[0].startswith("target") else None)
    console = Console(width=max(width, Console().width))
    console.print(table)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", *packages))
    console.print(f"{hardware()}\n{versions}", style="dim", highlight=False)
    if note:
        console.print(note, style="dim", highlight=False)


def verdict(value: float, target: float, *, at_least: bool = True) -> str:
    """A ratio beside its target."""
    good = value >= target if at_least else value <= target
    return f"{value:.2f} ({'>=' if at_least else '<='} {target:g}: {'yes' if good else 'MISSED'})"


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser that shows defaults."""
    return argparse.ArgumentParser(
        description=(description or "").partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
