"""The user's own algorithms and environments by name: ``module:name``, or ``FILE.py:name``.

A file needs to be on no path: it is imported as a module of its own, and travels to workers by value, as do the modules
beside it that it imports.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from daskrl.errors import ConfigError
from daskrl.names import did_you_mean

LOADED: dict[Path, ModuleType] = {}  # once its folder is on the path, a file may have another name to Python


def split(path: str) -> tuple[str, str]:
    """``module:name`` or ``FILE.py:name`` as two; the second is empty where there is no colon."""
    module, colon, name = path.rpartition(":")
    return (module, name) if colon else (path, "")


def is_file(module: str) -> bool:
    """Whether what stands before the colon is a file, not a module."""
    return module.endswith(".py")


def imported(path: str) -> Any:
    """The object of that name.

    Raises
    ------
    ConfigError
        There is no such module or file, or it has no such name; the message says what it has.
    """
    name, wanted = split(path)
    if not name or not wanted:
        raise ConfigError(f"{path!r}: expected MODULE:NAME or FILE.py:NAME.")
    try:
        found = module(name)
    except ImportError as error:
        raise ConfigError(f"{path!r}: expected MODULE:NAME or FILE.py:NAME, but {str(error).rstrip('.')}.") from error
    if not hasattr(found, wanted):
        raise no_such_name(found, name, wanted)
    return getattr(found, wanted)


def no_such_name(found: ModuleType, name: str, wanted: str) -> ConfigError:
    """For a module that has not what is wanted."""
    own = sorted(
        key
        for key, value in vars(found).items()
        if not key.startswith("_") and callable(value) and getattr(value, "__module__", None) == found.__name__
    )
    has = f"it has {', '.join(own)}" if own else "it has no function or class of its own"
    return ConfigError(f"{name}:{wanted}: {name} has no {wanted!r}; {has}.{did_you_mean(wanted, own)}")


def module(name: str) -> ModuleType:
    """A module by its name, or by its file's.

    Raises
    ------
    ImportError
        There is no such module.
    ConfigError
        There is no such file, or what is in it raised.
    """
    try:
        return _of_file(Path(name)) if is_file(name) else importlib.import_module(name)
    except (ImportError, ConfigError):
        raise
    except Exception as error:
        raise ConfigError(f"importing {name!r} raised {type(error).__name__}: {error}.") from error


def _of_file(path: Path) -> ModuleType:
    file = path.expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"{path}: expected a file, there is none at {file}.")
    if file in LOADED:
        return LOADED[file]
    name = _name(file)
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:  # last: what is beside it hides nothing
        sys.path.append(str(file.parent))
    import cloudpickle

    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "of a name that ends with .py"
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # before it runs: dataclasses look themselves up
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[name]
        raise
    for new in set(sys.modules) - before:
        if (own := local(new)) is not None and Path(str(own.__file__)).resolve().is_relative_to(file.parent):
            cloudpickle.register_pickle_by_value(own)
    LOADED[file] = made
    return made


def option(which: str, qualname: str) -> str:
    """How the user's own is named on the command line, for messages: ``--env MODULE:make``.

    A lambda, or what is defined within a function, has no name that can be imported: then how it gets one.

    Parameters
    ----------
    which : ``"env"`` or ``"algorithm"``.
    qualname : as stores keep it.
    """
    if "<" not in qualname:
        return f"--{which} MODULE:{qualname}"
    return (
        f"--{which} FILE.py:NAME, where it is defined at the top of a file (a lambda, or within a function, it is not)"
    )


def local(name: str) -> ModuleType | None:
    """The loaded module of that name if it is the user's own: a file of no installed package, nor of daskrl."""
    if name == "__main__" or name.partition(".")[0] == "daskrl" or name not in sys.modules:
        return None
    file = getattr(sys.modules[name], "__file__", None)
    if file is None:
        return None
    installed = {sysconfig.get_path(key) for key in ("purelib", "platlib", "stdlib")}
    return None if any(Path(file).is_relative_to(path) for path in installed) else sys.modules[name]


def _name(file: Path) -> str:
    """Of a file's module: its own where Python finds this very file by it, else one that no other file has."""
    name = file.stem
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
    else:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        origin = None if spec is None else spec.origin
    if origin is not None and Path(origin).resolve() == file:
        return name
    return f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
