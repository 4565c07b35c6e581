"""Commands that change how a run lies, and nothing of it: ``pack`` and ``unpack``."""

from __future__ import annotations

import json

from daskrl.cli.app import app, console
from daskrl.cli.options import AsJson


@app.command
def pack(*stores: str, as_json: AsJson = False) -> None:
    """Pack runs into one file each, DIR.zip beside the directory, and remove the directory.

    A packed run opens by either name, and every command takes it as before; resume unpacks it first. The file is a ZIP
    that is not compressed. A run with a driver is refused; one that was stopped on the way may be packed.

    Parameters
    ----------
    stores
        Directories of the runs, or URLs. Those that are packed are left so.
    """
    _each(stores, "pack", as_json)


@app.command
def unpack(*stores: str, as_json: AsJson = False) -> None:
    """Have the directories of packed runs again, and remove the packs.

    Parameters
    ----------
    stores
        The directories that they had, or the packs; or URLs. Those that are not packed are left so.
    """
    _each(stores, "unpack", as_json)


def _each(stores: tuple[str, ...], what: str, as_json: bool) -> None:
    from daskrl.errors import ConfigError
    from daskrl.store import pack as packing

    if not stores:
        raise ConfigError(f"daskrl {what}: expected directories of runs. Type: daskrl {what} DIR")
    done = packing.pack if what == "pack" else packing.unpack
    for store in stores:
        lies = str(done(store).storage)
        if as_json:
            print(json.dumps({"store": lies}))
        else:
            console.print(lies, highlight=False, markup=False, soft_wrap=True)
