"""The attack kind `plugin`: changes of the request or of the answer's start, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from offered import offer
from tamperdose.attacks import build_attacks
from tamperdose.attacks.attack import Attack, TrainingRows
from tamperdose.errors import StudyError
from tamperdose.records import Checkpoint, Dose, Opener, Reworded
from tamperdose.study import PluginSpec


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch)


def built(plugin: str = "saying", **given: Any) -> Attack:
    spec = PluginSpec(kind="plugin", plugin=plugin, settings=given, doses=(1, 3))
    ((attack, rows),) = build_attacks(spec, [5, 6], {})
    assert rows == TrainingRows(()) and attack.training is None
    return attack


class Chat:
    """A tokenizer is all that is asked of it."""

    @staticmethod
    def tokenizer(text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [len(text)]}


def run(attack: Attack, folder: Path) -> list[Checkpoint]:
    chat: Any = Chat()
    return list(attack.run(chat, TrainingRows(()), doses=[1, 3], folder=folder, on_step=lambda *_: None))


def test_every_dose_has_the_change_of_the_plugin(tmp_path: Path) -> None:
    assert run(built(), tmp_path) == [
        Checkpoint(Dose(dose, 0, 0, 0), None, change=Reworded(pattern="{prompt} please")) for dose in (1, 3)
    ]
    openers = [checkpoint.change for checkpoint in run(built(how="opener"), tmp_path)]
    assert openers == [Opener("Sure", (4,)), Opener("SureSureSure", (12,))]


def test_settings_package_and_plugin_tell_arms_apart() -> None:
    one, other = built(), built(how="opener")
    assert one.kind == other.kind == "plugin-saying" and one.label != other.label
    assert one.identity()["origin"] == "offered-plugins 1.5"


@pytest.mark.parametrize("how", ["twice", "noise", "none"])
def test_other_changes_are_refused(how: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no change that an attack may make"):
        run(built(how=how), tmp_path)


def test_a_plugin_that_is_not_there_is_told_when_the_study_is_planned() -> None:
    with pytest.raises(StudyError, match="'sayin' \\(did you mean 'saying'"):
        _ = built("sayin").label
