"""A study's report on paper: a PDF of matplotlib's, with the pictures and tables of the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from daskrl.study import pictures, words
from daskrl.study.contents import Content, cell

_SIZE = (11.7, 8.3)  # inches: A4, landscape
_LINES, _WIDE = 58, 160  # of a page of text
_SHORT = {"worker", "run", "error", "promise", "digest"}


def pdf(content: Content, path: Path) -> None:
    """Write the report. Tables are text, and lines that are too long go on in the next."""
    from matplotlib.backends.backend_pdf import PdfPages

    with PdfPages(path, metadata={"Title": content.title, "Creator": "daskrl"}) as pages:
        for page in _paged(_said(content)):
            pages.savefig(_page(page))
        compared = [found for found in (content.settings, *content.values) if found is not None]
        drawn = [*map(pictures.of_comparison, compared), *content.learned]
        drawn += [content.importance] if content.importance is not None else []
        for picture in [*drawn, *content.slices]:
            picture.figure.suptitle(picture.heading, fontsize="medium")
            pages.savefig(picture.figure)
        for page in _paged(_tables(content)):
            pages.savefig(_page(page))


def _said(content: Content) -> Iterator[str]:
    yield from (
        content.title,
        content.state,
        "",
        f"Best setting: {content.best}{content.best_said}" if content.best else "No setting is best yet.",
        "",
    )
    yield from (f"! {note}" for note in content.warnings)
    yield from ("", *(f"{name:<40}{value}" for name, value in content.confirmed.items()), *content.confirmed_said)
    for heading, rows in (("WHAT WAS ASKED", content.asked), ("COST", content.cost), ("VERSIONS", content.versions)):
        yield from ("", heading, *(f"{name:<28}{value}" for name, value in rows.items()))
    yield from ("", content.left_out, content.curves_said, content.importance_said)
    yield from ("", "DIGEST OF THE TABLE, AND HOW TO RUN THIS AGAIN", content.digest, "", *content.code.splitlines())


def _tables(content: Content) -> Iterator[str]:
    if content.settings is not None:
        yield from ("SETTINGS", *words.text_table(content.settings.group_rows()).splitlines(), "")
        if content.settings.pairs:
            yield from ("DIFFERENCES, A MINUS B", *words.text_table(content.settings.pair_rows()).splitlines(), "")
    for each in content.failed:
        yield from ("FAILED", each["run"], each["error"], f"to go on: {each['again']}", "")
    rows = [
        {name: cell(value) for name, value in row.items() if name not in _SHORT}
        for row in content.table.to_dict("records")
    ]
    yield from ("RUNS", *words.text_table(rows).splitlines())


def _paged(lines: Iterable[str]) -> Iterator[list[str]]:
    wrapped = [part for line in lines for part in (_wrapped(line) or [""])]
    for start in range(0, len(wrapped), _LINES):
        yield wrapped[start : start + _LINES]


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDE, subsequent_indent="    ", drop_whitespace=False, replace_whitespace=False)


def _page(lines: list[str]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE)
    figure.text(
        0.04, 0.96, "\n".join(lines), family="monospace", fontsize=7.2, va="top", linespacing=1.3, parse_math=False
    )
    return figure
