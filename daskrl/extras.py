"""Optional packages: an extra of daskrl installs each, and messages name that extra.

with extras.needed("plot", "plots need matplotlib"):
    from matplotlib import pyplot
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

from daskrl.errors import ConfigError

# Modules of environments and what those import, by the first names, and the extra that installs them.
_OF_ENVIRONMENTS = {
    "ale_py": "atari", "cv2": "atari", "minatar": "minatar", "Box2D": "box2d", "gymnasium.envs.box2d": "box2d",
    "mujoco": "mujoco", "gymnasium.envs.mujoco": "mujoco", "highway_env": "driving", "gym_anytrading": "trading",
}  # fmt: skip


@contextlib.contextmanager
def needed(extra: str, what: str) -> Iterator[None]:
    """Around imports of what an extra installs: one that fails is a `ConfigError` that says how to install it.

    That also goes for a package which the missing one's importer needs: the import's own message names it.

    Parameters
    ----------
    extra : of daskrl.
    what : a clause for the message, as ``"plots need matplotlib"``.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{what}: {str(error).rstrip('.')}. {install(extra)}") from error


def install(extra: str) -> str:
    """What to type for an extra, as a sentence of a message."""
    return f"Type: pip install 'daskrl[{extra}]'"


def of_environment(error: BaseException) -> str | None:
    """The extra that has what an environment could not import; None where no extra does.

    Gymnasium and others raise errors of their own after an ``ImportError``, so causes are looked at, too; and a package
    of an extra may lack another that it needs, so the modules that were importing are.
    """
    cause: BaseException | None = error
    while cause is not None:
        names = [cause.name or ""] if isinstance(cause, ImportError) else []
        names += [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(cause.__traceback__)]
        for name in names:
            for module, extra in _OF_ENVIRONMENTS.items():
                if f"{name}.".startswith(f"{module}."):
                    return extra
        cause = cause.__cause__ or cause.__context__
    return None
