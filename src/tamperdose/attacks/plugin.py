"""The attack kind `plugin`: an attack of another installed package that leaves the weights alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamperdose.attacks.attack import OnStep, TrainingRows
from tamperdose.errors import StudyError, explain
from tamperdose.files import digest
from tamperdose.models.load import ChatModel
from tamperdose.records import Change, Checkpoint, Dose, Opener, Reworded
from tamperdose.study.plugins import make_plugin, plugin_origin


@dataclass(frozen=True)
class PluginAttack:
    """One arm of a plug-in: an object with `change(dose)`, which says what is done to every request at a dose."""

    plugin: str
    settings: Mapping[str, Any]
    seed: int
    training: None = None

    @property
    def kind(self) -> str:
        """The plug-in's name, behind a word that tells it from the attacks that come with tamperdose."""
        return f"plugin-{self.plugin}"

    @property
    def label(self) -> str:
        """A few digits that tell one arm of it from another."""
        return digest(self.identity())[:6]

    def identity(self) -> dict[str, Any]:
        """The plug-in, the package it is from, and its settings; nothing in it may be random."""
        origin = plugin_origin("attacks", self.plugin)
        return {"kind": "plugin", "plugin": self.plugin, "origin": origin, "settings": dict(self.settings)}

    def run(
        self, chat: ChatModel, rows: TrainingRows, *, doses: Sequence[int], folder: Path, on_step: OnStep
    ) -> Iterator[Checkpoint]:
        """Ask the plug-in for its change at every dose.

        Raises:
            StudyError: It cannot be had, or gives something else than a change of the request or of the answer's start.
        """
        attack = make_plugin("attacks", self.plugin, dict(self.settings))
        for dose in doses:
            on_step(dose, 0.0)
            yield Checkpoint(Dose(dose, 0, 0, 0), None, change=_checked(self.plugin, attack.change(dose), chat))


def _checked(plugin: str, change: object, chat: ChatModel) -> Change:
    """A rewording as it is, an opener with the model's own tokens of its text."""
    if isinstance(change, Opener):
        return Opener(change.text, tuple(chat.tokenizer(change.text, add_special_tokens=False)["input_ids"]))
    if isinstance(change, Reworded) and len(re.findall(re.escape("{prompt}"), change.pattern)) == 1:
        return change
    raise StudyError(
        explain(
            f"the plug-in '{plugin}' gives no change that an attack may make",
            got=repr(change)[:80],
            expected="Reworded, whose pattern holds {prompt} once, or Opener",
        )
    )
