"""``python -m daskrl``, the same as the command ``daskrl``."""

from daskrl.cli.commands import main

main()
