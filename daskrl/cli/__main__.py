"""``python -m daskrl.cli``, the same as the command ``daskrl``."""

from daskrl.cli.commands import main

main()
