"""The report of a study: one page that needs nothing else, or a PDF."""

from __future__ import annotations

import base64
import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskrl import extras
from daskrl.config import plain, require_integer
from daskrl.errors import ConfigError
from daskrl.study import pictures, printed
from daskrl.study.contents import Content, cell, contents
from daskrl.study.log import StudyLog
from daskrl.study.pictures import Picture

if TYPE_CHECKING:
    import pandas

ROWS = 2_000  # runs in the page's table


def report(log: StudyLog, path: str | os.PathLike[str] | None = None, *, episodes: int = 100) -> str:
    """Write the report of a study, finished or not; gives the path.

    One HTML page without anything else: it needs no network, and can be sent by mail or printed. A path that ends with
    ``.pdf`` gives a PDF instead. Neither needs a browser. Needs ``daskrl[study]``.

    Parameters
    ----------
    path : of the file; by default ``report.html`` in the study's directory.
    episodes : how many the mean return of learning curves is of.

    Raises
    ------
    ConfigError
        The study asked for no run yet, or is not on a file system and there is no path.
    """
    episodes = plain(episodes)
    require_integer("episodes", episodes, 1)
    if path is None:
        directory = str(log.storage)
        if "://" in directory or not os.path.isdir(directory):
            raise ConfigError(f"path: {directory} is no directory of this machine. Type: path='report.html'")
        path = os.path.join(directory, "report.html")
    where = Path(path)
    if where.suffix.lower() not in (".html", ".htm", ".pdf"):
        raise ConfigError(f"path: expected a name that ends with .html or .pdf, got {where.name!r}.")
    content = contents(log, episodes)
    where.parent.mkdir(parents=True, exist_ok=True)
    if where.suffix.lower() == ".pdf":
        printed.pdf(content, where)
    else:
        where.write_text(html(content), encoding="utf-8")
    return str(where)


# -- the page ---------------------------------------------------------------------------------------------


def html(content: Content) -> str:
    """The page."""
    with extras.needed("study", "reports need Jinja2"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    numbers = iter(range(10**6))

    def svg(picture: Picture) -> Any:
        import markupsafe

        return markupsafe.Markup(picture.svg(f"p{next(numbers)}"))

    table = content.table.head(ROWS)
    csv = base64.b64encode(content.table.to_csv(index=False).encode()).decode()
    made: str = environment.get_template("report.html.jinja").render(
        report=content, svg=svg, picture=pictures.of_comparison, cell=cell, columns=_columns(table),
        rows=table.to_dict("records"), more=len(content.table) - len(table), csv=csv,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )  # fmt: skip
    return made


def _columns(table: pandas.DataFrame) -> list[str]:
    """Without those that say nothing."""
    empty = {name for name in ("promise", "error") if name in table and set(table[name].dropna()) <= {"kept"}}
    return [name for name in table.columns if name not in {*empty, "run"}]
