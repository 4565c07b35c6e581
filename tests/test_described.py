"""What algorithms can be set to is listed, with what each setting means."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import daskrl
from daskrl.algorithms import BUILT_IN, described
from tests.typed import Here

OWN = '''
from dataclasses import dataclass
import daskrl

@dataclass(frozen=True)
class Own(daskrl.DQN):
    """My DQN. It is better.

    Parameters
    ----------
    boldness : float, optional
        How bold
        it is.
    low, high : int
        Bounds of something.
    """

    boldness: float = 0.5
    low: int = 1
    high: int = 2
    batch_size: int = 8

class Plain(daskrl.QLearning):
    "A table."

    def __init__(self, colour: str, weight: float = 2.0, **settings: float):
        """Make one.

        Args:
            colour: Of the table.
        """
        super().__init__(**settings)
'''


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_setting_of_every_algorithm_has_a_meaning_in_a_docstring(name: str) -> None:
    settings = described.settings_of(BUILT_IN[name])
    fields = {field.name: field for field in dataclasses.fields(BUILT_IN[name])}
    assert [setting.name for setting in settings] == list(fields)
    for setting in settings:
        assert setting.type == fields[setting.name].type
        assert setting.default == repr(fields[setting.name].default)
        assert len(setting.meaning.split()) > 1 or setting.meaning == "gamma.", f"{name}: {setting}"
    assert described.summary_of(BUILT_IN[name]).endswith(".")


@pytest.mark.parametrize("name", BUILT_IN)
def test_docstrings_name_no_setting_that_there_is_not(name: str) -> None:
    for cls in BUILT_IN[name].__mro__:
        if dataclasses.is_dataclass(cls):
            assert set(described.meanings_of(cls)) <= {field.name for field in dataclasses.fields(cls)}


def test_an_inherited_default_that_a_class_changes_is_its_own() -> None:
    settings = {setting.name: setting for setting in described.settings_of(daskrl.Rainbow)}
    assert settings["n_step"] == described.Setting("n_step", "int", "3", "steps of the n-step return.")
    assert settings["epsilon_end"].default == "0.0"
    assert settings["epsilon_end"].meaning.startswith("epsilon_start, epsilon_end, epsilon_steps: the chance of")


def test_the_actions_an_algorithm_takes_are_found_by_asking_it() -> None:
    taken = {entry["name"]: entry["actions"] for entry in described.built_in()}
    both = {"ppo", "impala"}
    assert {name for name, actions in taken.items() if actions == ["Discrete", "Box"]} == both
    assert {name for name, actions in taken.items() if actions == ["Box"]} == {"sac", "td3"}
    assert all(actions == ["Discrete"] for name, actions in taken.items() if name not in both | {"sac", "td3"})


@pytest.mark.usefixtures("here")
class TestTyped:
    def test_algorithms_lists_all_with_actions_and_a_line(self, tmp_path: Path, here: Here) -> None:
        said = here("algorithms", cwd=tmp_path).stdout
        for name, cls in BUILT_IN.items():
            (line,) = [line for line in said.splitlines() if f" {name} " in line]
            assert described.summary_of(cls)[:60] in line
        listed = json.loads(here("algorithms", "--json", cwd=tmp_path).stdout)
        assert [entry["name"] for entry in listed] == list(BUILT_IN)

    @pytest.mark.parametrize("typed", [["algorithms", "ppo"], ["train", "--algorithm", "ppo", "--help"],
                                       ["train", "CartPole-v1", "--algorithm=PPO", "-h"]])  # fmt: skip
    def test_the_settings_of_one_are_listed_with_type_default_and_meaning(
        self, tmp_path: Path, here: Here, typed: list[str]
    ) -> None:  # fmt: skip
        said = " ".join(here(*typed, cwd=tmp_path).stdout.split())
        assert "gae_lambda │ float │ 0.95 │ lambda of generalised advantage estimation" in said
        assert "hidden │ tuple[int, ...] │ (64, 64) │ sizes of the hidden layers" in said
        for setting in described.settings_of(daskrl.PPO):
            assert f"│ {setting.name} │ {setting.type} │ {setting.default} │" in said
        assert ("--env-steps" in said) == (typed[0] == "train")

    def test_ones_own_is_listed_too_whatever_its_docstring_is_written_like(
        self, tmp_path: Path, here: Here
    ) -> None:  # fmt: skip
        (tmp_path / "own.py").write_text(OWN)
        shown = json.loads(here("algorithms", "own.py:Own", "--json", cwd=tmp_path).stdout)
        settings = {setting["name"]: setting for setting in shown["settings"]}
        assert (shown["class"], shown["description"], shown["actions"]) == (
            "Own",
            "My DQN. It is better.",
            ["Discrete"],
        )
        assert settings["boldness"] == {
            "name": "boldness",
            "type": "float",
            "default": "0.5",
            "meaning": "How bold it is.",
        }
        assert settings["low"]["meaning"] == settings["high"]["meaning"] == "low, high: Bounds of something."
        assert (settings["batch_size"]["default"], settings["discount"]["meaning"]) == ("8", "gamma.")
        shown = json.loads(here("algorithms", "own:Plain", "--json", cwd=tmp_path).stdout)
        settings = {setting["name"]: setting for setting in shown["settings"]}
        assert list(settings)[:3] == ["colour", "weight", "learning_rate"]
        assert settings["colour"] == {"name": "colour", "type": "str", "default": None, "meaning": "Of the table."}
        assert settings["weight"]["meaning"] == ""
        assert "(required)" in here("algorithms", "own:Plain", cwd=tmp_path).stdout

    def test_what_there_is_not_is_an_error(self, tmp_path: Path, here: Here) -> None:
        for typed in (["algorithms", "dqnn"], ["train", "--algorithm", "dqnn", "--help"]):
            assert "Did you mean dqn?" in here(*typed, cwd=tmp_path, code=2).stderr

    @pytest.mark.parametrize("given", ["hidden=32", "hidden=32,", "hidden=(32,)", "hidden=[32]", "hidden=3.2e1"])
    def test_a_tuple_of_one_is_typed_as_a_number(self, given: str) -> None:
        from daskrl.cli import given as typed

        assert typed.made("dqn", typed.settings("dqn", [given, "window=1e5", "batch-size=64.0"])) == daskrl.DQN(
            hidden=(32,)
        )
