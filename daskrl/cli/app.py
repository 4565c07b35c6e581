"""The command line's app, and how commands print: tables, sentences to standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from cyclopts import App, Parameter, convert
from rich.console import Console
from rich.table import Table


def _converted(type_: Any, tokens: Sequence[Any]) -> Any:
    """Typed words as a value of that type. cyclopts rounds 9.5 to an integer, and does not take 1e6 for an integer."""
    if type_ not in (int, int | None):
        return convert(type_, tokens)
    (token,) = tokens
    with contextlib.suppress(ValueError):
        return int(token.value)
    with contextlib.suppress(ValueError):
        if (number := float(token.value)).is_integer():
            return int(number)
    raise ValueError(f"expected an integer, got {token.value}")


def _own_version() -> str:
    import daskrl

    return daskrl.__version__


app = App(
    name="daskrl",
    version=_own_version,
    default_parameter=Parameter(converter=_converted),
    help="Reinforcement learning on Dask: elastic in wall-clock, invariant in results.",
)
console = Console()


def say(message: str) -> None:
    """To standard error: as it is, so that a line to type can be copied."""
    Console(stderr=True, soft_wrap=True).print(message, highlight=False, markup=False)


def table(title: str, rows: dict[str, Any]) -> None:
    from daskrl.shown import shown

    drawn = Table(title=title, show_header=False, title_justify="left")
    for key, value in rows.items():
        drawn.add_row(key.replace("_", " "), shown(value))
    console.print(drawn)


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], most: int = 40) -> None:
    """Rows of the same keys as a table of these."""
    from rich.text import Text

    from daskrl.shown import shown

    drawn = Table(*rows[0] if rows else (), title=Text(title), title_justify="left")
    for row in rows[:most]:
        drawn.add_row(*(Text("" if value is None else shown(value)) for value in row.values()))
    console.print(drawn)
    if len(rows) > most:
        say(f"and {len(rows) - most:,} more; --json has all")


def show_settings(entry: dict[str, Any]) -> None:
    """A table of an algorithm's settings; ``entry`` is what `daskrl.algorithms.described.described` returns."""
    from rich.text import Text

    drawn = Table("setting", "type", "default", "meaning", title=f"settings of {entry['name']}", title_justify="left")
    for setting in entry["settings"]:
        default = "(required)" if setting["default"] is None else setting["default"]
        drawn.add_row(*(Text(text) for text in (setting["name"], setting["type"], default, setting["meaning"])))
    console.print(Text(f"{entry['class']}: {entry['description']}"), drawn, sep="\n")
    console.print("Give them as -s NAME=VALUE, any number of times.", highlight=False)
