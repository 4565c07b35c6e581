"""Values as people read them, in text and in the tables of Jupyter."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any


def html_table(title: str, rows: Mapping[str, Any]) -> str:
    """A small table for Jupyter; every value escaped."""
    body = "".join(
        f"<tr><th style='text-align:left'>{html.escape(key.replace('_', ' '))}</th>"
        f"<td style='text-align:left'>{html.escape(shown(value))}</td></tr>"
        for key, value in rows.items()
    )
    return f"<div><strong>{html.escape(title)}</strong><table>{body}</table></div>"


def shown(value: Any) -> str:
    """A value as people read it."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list) and len(value) > 8:
        return f"{value[0]} … {value[-1]} ({len(value)})"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)
