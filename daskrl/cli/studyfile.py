"""The file of a study: TOML, read into what `daskrl.Study` takes. An error names the file, the line and the key."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskrl.cli import given
from daskrl.cli.app import say
from daskrl.code import modules
from daskrl.config import Options
from daskrl.errors import ConfigError, EarlyRungsWarning
from daskrl.names import did_you_mean

if TYPE_CHECKING:
    from daskrl.study.study import Study

Path_ = tuple[str, ...]
"""Of a key: the names of its tables, and its own."""

_OF_A_STUDY = (
    "path", "algorithm", "algorithms", "env", "envs", "env_kwargs", "env_steps", "seeds", "space", "score", "search",
    "study_seed",
)  # fmt: skip
_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_NAMES = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_TABLE = re.compile(rf"\s*\[\s*({_NAMES})\s*\]\s*(?:#.*)?$")
_KEY = re.compile(rf"\s*({_NAMES})\s*=")


class StudyFile:
    """A study as a file says it.

    Raises
    ------
    ConfigError
        There is no such file, it is no TOML, or has a key that no study has.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        try:
            self._text = Path(file).read_text()
            self.said: dict[str, Any] = _with_none(tomllib.loads(self._text))
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"{file}: {why}. Expected a TOML file that says what a study is, see: daskrl study run --help"
            ) from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file} is no TOML: {error}.") from None
        self._lines = _lines(self._text)
        self._require_known((), self.said, _known())
        for one, several in (("algorithm", "algorithms"), ("env", "envs")):
            if one in self.said and several in self.said:
                raise self._error((several,), f"{one} and {several}: expected one of them.")
            if one not in self.said and several not in self.said:
                raise ConfigError(f"{file}: {one} is missing. Type, for example, {_EXAMPLE[one]}")
        if "env_steps" not in self.said:
            raise ConfigError(f"{file}: env_steps is missing: transitions of each run. Type, for example, {_STEPS}")
        for several in ("algorithms", "envs", "env_kwargs", "space"):
            if not isinstance(self.said.get(several, {}), dict):
                raise self._error((several,), f"expected a table, as [{several}], got {self.said[several]!r:.100}.")

    @property
    def path(self) -> str:
        """Where the study lies; beside the file, by its name, unless the file says otherwise."""
        path = self.said.get("path", str(Path(self.file).with_suffix("")))
        if not isinstance(path, str):
            raise self._error(("path",), f"expected a directory or URL as text, got {path!r:.100}.")
        return path

    def study(self) -> Study:
        """Make the study, or open it where it is there, and say what it warns of."""
        from daskrl.study.study import Study

        arguments = self.arguments()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EarlyRungsWarning)
            try:
                made = Study(self.path, **arguments)
            except ConfigError as error:
                raise self._located(error) from error
        for sentence in made.warned:
            say(f"! {self.file}: {sentence}")
        return made

    def arguments(self) -> dict[str, Any]:
        """What `daskrl.Study` takes beside the path."""
        from daskrl.study.space import Range

        said = {name: value for name, value in self.said.items() if name != "path"}
        said["algorithm"] = self._algorithms(said.pop("algorithms", None), said.pop("algorithm", None))
        envs, kwargs = self._environments(said.pop("envs", None), said.pop("env", None)), said.pop("env_kwargs", {})
        if kwargs and all(map(callable, envs.values())):
            envs, kwargs = {label: functools.partial(env, **kwargs) for label, env in envs.items()}, {}
        said["env"] = envs
        if kwargs:
            said["env_kwargs"] = kwargs
        said["space"] = dict(self._space(said.get("space", {}), ("space",)))
        for name in ("score", "search"):
            if name in said:
                said[name] = self._chosen(said[name], (name,), name)
        if isinstance(said["env_steps"], float) and said["env_steps"].is_integer():
            said["env_steps"] = int(said["env_steps"])  # 1e6
        ranges = [name for name, axis in said["space"].items() if isinstance(getattr(axis, "values", axis), Range)]
        if ranges and "search" not in said:
            raise self._error(
                ("space", ranges[0]), "a range, so how many settings are to be drawn? Type, for example, search = "
                '{kind = "random", settings = 20}',
            )  # fmt: skip
        return said

    # -- its parts -----------------------------------------------------------------------------------------

    def _algorithms(self, several: Any, one: Any) -> Any:
        if several is not None:
            return {label: self._algorithm(what, ("algorithms", label)) for label, what in several.items()}
        if isinstance(one, list):
            return [self._algorithm(what, ("algorithm",)) for what in one]
        return self._algorithm(one, ("algorithm",))

    def _algorithm(self, what: Any, path: Path_) -> Any:
        from daskrl.algorithms.described import parameters

        name, settings = self._named(what, path, 'as "dqn" or {name = "dqn", n_step = 3}')
        with self._at(path):
            cls = given.algorithm_class(name)
        self._require_known(path, settings, [*parameters(cls), "name"])
        if not settings:
            return cls
        try:
            return cls(**settings)
        except (ConfigError, TypeError) as error:
            raise self._located(error, path) from error

    def _environments(self, several: Any, one: Any) -> dict[str, Any]:
        if several is not None:
            return {label: self._environment(what, ("envs", label)) for label, what in several.items()}
        found: dict[str, Any] = {}
        for what in one if isinstance(one, list) else [one]:
            env = self._environment(what, ("env",))
            typed = what["name"] if isinstance(what, dict) else what
            label = typed.rpartition(":")[2] if callable(env) else typed
            if label in found:
                raise self._error(("env",), f"two are called {label!r}. Give them names, as [envs] does: a = {typed!r}")
            found[label] = env
        return found

    def _environment(self, what: Any, path: Path_) -> Any:
        name, kwargs = self._named(what, path, 'as "CartPole-v1" or "FILE.py:function"')
        with self._at(path):
            env = given.environment(name)
        if not kwargs:
            return env
        if not callable(env):
            raise self._error(path, "arguments of an id go into [env_kwargs], the same for all, or into the space.")
        return functools.partial(env, **kwargs)

    def _named(self, what: Any, path: Path_, example: str) -> tuple[str, dict[str, Any]]:
        """A name, and what stands beside it."""
        rest = dict(what) if isinstance(what, dict) else {}
        name = rest.pop("name", None) if isinstance(what, dict) else what
        if not isinstance(name, str):
            raise self._error(path, f"expected a name, {example}, got {what!r:.100}.")
        return name, rest

    def _space(self, table: Mapping[str, Any], path: Path_) -> Iterator[tuple[str, Any]]:
        for name, what in table.items():
            if path == ("space",) and name == "env" and isinstance(what, dict) and not _AXIS & {*what}:
                yield from ((f"env.{key}", axis) for key, axis in self._space(what, (*path, name)))
            else:
                yield name, self._axis(what, (*path, name))

    def _axis(self, what: Any, path: Path_) -> Any:
        from daskrl.study.space import Range, When

        if not isinstance(what, dict):
            return what
        self._require_known(path, what, sorted(_AXIS))
        if ("values" in what) == ("low" in what or "high" in what):
            raise self._error(path, "expected either values = [...], or low = ... and high = ...")
        if "values" in what:
            if "log" in what:
                raise self._error(path, "log: expected with low and high, not with values.")
            axis = what["values"]
        else:
            missing = [end for end in ("low", "high") if end not in what]
            if missing:
                raise self._error(path, f"{missing[0]} is missing.")
            with self._at(path):
                axis = Range(what["low"], what["high"], what.get("log", False))
        if "when" not in what:
            return axis
        if not isinstance(what["when"], dict):
            raise self._error(path, f"when: expected other settings, as {{double = true}}, got {what['when']!r:.100}.")
        return When(what["when"], axis)

    def _chosen(self, what: Any, path: Path_, role: str) -> Any:
        """A score or a search: by its kind and settings, or the user's own by MODULE:NAME."""
        if isinstance(what, str) and ":" in what:
            with self._at(path):
                return modules.imported(what)
        if isinstance(what, str) and _plain(what) not in _kinds(role):
            return what  # "last", or what the study refuses
        kind, settings = (what, {}) if isinstance(what, str) else (what.get("kind"), dict(what)) \
            if isinstance(what, dict) else (None, {})  # fmt: skip
        settings.pop("kind", None)
        kinds = _kinds(role)
        if not isinstance(kind, str) or (":" not in kind and _plain(kind) not in kinds):
            names = [cls.__name__ for cls in kinds.values()]
            meant = did_you_mean(kind, names) if isinstance(kind, str) else ""
            raise self._error(path, f"expected a kind, one of {', '.join(names)}, got {what!r:.100}.{meant}")
        with self._at(path):
            cls = modules.imported(kind) if ":" in kind else kinds[_plain(kind)]
        if dataclasses.is_dataclass(cls):
            self._require_known(path, settings, [*(field.name for field in dataclasses.fields(cls)), "kind"])
        made = {
            name: self._chosen(value, (*path, name), role) if isinstance(value, dict) and "kind" in value else value
            for name, value in settings.items()
        }
        try:
            return cls(**made)
        except (ConfigError, TypeError) as error:
            raise self._located(error, path) from error

    # -- errors --------------------------------------------------------------------------------------------

    def _require_known(self, path: Path_, table: Mapping[str, Any], known: list[str]) -> None:
        for name in table:
            if name not in known:
                raise self._error(
                    (*path, name), f"there is no such key.{did_you_mean(name, known)} Expected any of "
                    f"{', '.join(known)}.",
                )  # fmt: skip

    def _where(self, path: Path_) -> str:
        """The file, and the line of a key or of the table that it is in."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._lines:
                return f"{self.file}, line {self._lines[path[:end]]}"
        return self.file

    def _error(self, path: Path_, message: str) -> ConfigError:
        return ConfigError(f"{self._where(path)}: {'.'.join(path)}: {message}")

    @contextlib.contextmanager
    def _at(self, path: Path_) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            raise type(error)(f"{self._where(path)}: {'.'.join(path)}: {error}") from error

    def _located(self, error: Exception, within: Path_ = ()) -> ConfigError:
        """The error with the line of the key that its message speaks of."""
        message = " ".join([str(error), *getattr(error, "__notes__", ())])
        words, head = set(re.findall(r"\w+", message)), re.split(r"\W", message, maxsplit=1)[0]
        quoted = set(re.findall(r"'([^']+)'", message))
        spoken = [path for path in self._lines if path[-1] in words and path[: len(within)] == within]
        path = max(
            spoken, key=lambda path: (path[-1] in quoted, head in (path[0], path[-1]), len(path)), default=within
        )  # fmt: skip
        kind = type(error) if isinstance(error, ConfigError) else ConfigError
        if not path:  # it may speak of a value
            lines = enumerate(self._text.splitlines(), 1)
            found = next((number for number, line in lines if any(f'"{word}"' in line for word in quoted)), None)
            return kind(f"{self.file}, line {found}: {message}" if found else f"{self.file}: {message}")
        return kind(f"{self._where(path)}: {message}")


_AXIS = {"low", "high", "log", "values", "when"}
_EXAMPLE = {"algorithm": 'algorithm = "dqn"', "env": 'env = "CartPole-v1"'}
_STEPS = "env_steps = 50_000"


def _known() -> list[str]:
    from daskrl.study.space import OF_THE_RUN

    options = [field.name for field in dataclasses.fields(Options)]
    return [*_OF_A_STUDY, *OF_THE_RUN, "device", "recheck_every", *options]


def _kinds(role: str) -> dict[str, Any]:
    """The classes of scores, or of searches, by their plain names."""
    from daskrl import study

    found = [getattr(study, name) for name in study.__all__]
    classes = [one for one in found if isinstance(one, type) and dataclasses.is_dataclass(one)]
    method = "next" if role == "search" else "__call__"
    return {_plain(one.__name__): one for one in classes if any(method in vars(base) for base in one.__mro__)}


def _with_none(said: Any) -> Any:
    """TOML has no null: the word "none" is None, as it is on the command line."""
    if isinstance(said, dict):
        return {name: _with_none(value) for name, value in said.items()}
    if isinstance(said, list):
        return [_with_none(value) for value in said]
    return None if said == "none" else said


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _lines(text: str) -> dict[Path_, int]:
    """The line of each key and table that begins one."""
    found: dict[Path_, int] = {}
    table: Path_ = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            path = table = _parts(header[1])
        elif key := _KEY.match(line):
            path = (*table, *_parts(key[1]))
        else:
            continue
        for end in range(1, len(path) + 1):
            found.setdefault(path[:end], number)
    return found


def _parts(dotted: str) -> Path_:
    return tuple(part.strip("\"'") for part in re.findall(_NAME, dotted))
