"""The command line."""

from __future__ import annotations

from collections.abc import Sequence


def main(typed: Sequence[str] | None = None) -> None:
    """The command ``daskrl``."""
    from daskrl.cli.commands import main

    main(typed)
