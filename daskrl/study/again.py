"""Python that makes a study again, out of what its log says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from daskrl.codec import decoded
from daskrl.config import Options
from daskrl.errors import DaskrlError
from daskrl.study import table as tables
from daskrl.study.log import StudyLog


def code(log: StudyLog) -> str:
    """Python that makes the study again; what is no literal stands as its name."""
    said = log.definition
    algorithms = {
        label: _call(identity["name"], identity["settings"]) for label, identity in said["algorithms"].items()
    }
    (first, *others) = algorithms.values()
    algorithm = "{" + ", ".join(f"{label!r}: {call}" for label, call in algorithms.items()) + "}" if others else first
    environments = {label: _environment(label, identity) for label, identity in said["environments"].items()}
    env = "{" + ", ".join(f"{label!r}: {call}" for label, call in environments.items()) + "}"
    kwargs = next((of["kwargs"] for of in said["environments"].values() if of.get("kwargs")), None)
    space = ", ".join(
        f"{name!r}: {_axis(value)}" for name, value in said["space"].items() if not (others and name == "algorithm")
    )
    score = {**said["score"]}
    judged = f"{score['function']}" if "function" in score else _call(f"daskrl.study.{score.pop('kind')}", score)
    options = {name: value for name, value in said["options"].items() if value != _options().get(name)}
    given = {**({"env_kwargs": decoded(kwargs)} if kwargs else {}), **said["shape"], **options}
    seeds = said["seeds"]
    packages = " ".join(f"{name}=={version}" for name, version in said["versions"].items() if name != "python")
    lines = [
        f"# pip install {packages}",
        "import daskrl",
        "",
        "study = daskrl.Study(",
        f"    {str(log.storage) + '-again'!r},",
        f"    algorithm={algorithm},",
        f"    env={env},",
        f"    space={{{space}}},",
        f"    seeds={f'range({len(seeds)})' if seeds == list(range(len(seeds))) else seeds},",
        f"    env_steps={said['env_steps']},",
        f"    score={judged},",
        f"    search={search(said['search'])},",
        f"    study_seed={said['study_seed']},",
        *(f"    {name}={value!r}," for name, value in given.items()),
        ")",
        f"assert study.run().digest() == {tables.digest(log)!r}",
    ]
    return "\n".join(lines)


def _options() -> dict[str, Any]:
    return dataclasses.asdict(Options())


def search(said: Mapping[str, Any]) -> str:
    """The call that makes a search, of what a study keeps of it."""
    import daskrl.study

    kind = said["kind"]
    fields = {field.name for field in dataclasses.fields(getattr(daskrl.study, kind))}
    given = (
        f"{name}={search(value) if isinstance(value, dict) and 'kind' in value else _literal(value)}"
        for name, value in said.items()
        if name in fields  # some searches say more, for people
    )
    return f"daskrl.study.{kind}({', '.join(given)})"


def _call(name: str, given: Mapping[str, Any]) -> str:
    name = name if "." in name else f"daskrl.{name}"
    return f"{name}({', '.join(f'{key}={_literal(value)}' for key, value in given.items())})"


def _literal(value: Any) -> str:
    try:
        found = decoded(value)
    except DaskrlError:
        return json.dumps(value)
    return repr(tuple(found)) if isinstance(found, list) else repr(found)


def _environment(label: str, identity: Mapping[str, Any]) -> str:
    return repr(identity.get("id") or label)


def _axis(said: Any) -> str:
    if isinstance(said, list):
        return repr([decoded(value) for value in said])
    if "when" in said:
        others = {name: decoded(value) for name, value in said["when"].items()}
        return f"daskrl.study.When({others!r}, {_axis(said['values'])})"
    if "range" in said:
        return _call("daskrl.study.Range", said["range"])
    of = {**said["optuna"]}
    return _call(f"optuna.distributions.{of.pop('kind')}", of)
