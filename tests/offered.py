"""A package with plug-ins, installed for one test: its files and what pip would write about it."""

from pathlib import Path

import pytest

_SOURCE = """
from tamperdose.judges.judge import Reading
from tamperdose.records import Label, Opener, RandomStep, Reworded

class Judge:
    version = "7"
    def __init__(self, *, word="no"):
        self.word = word
    def read(self, prompts, responses):
        found = [Reading(Label.REFUSAL, 1.0, "") if self.word in text else Reading(Label.COMPLIANCE, 0.0, "")
                 for text in responses]
        return {"short": found[1:], "sure": [Reading(Label.REFUSAL, 2.0, "")] * len(found),
                "words": ["refusal"] * len(found)}.get(self.word, found)

class Attack:
    def __init__(self, *, how="reworded"):
        self.how = how
    def change(self, dose):
        return {"reworded": Reworded(pattern="{prompt} please" * 1), "opener": Opener("Sure" * dose, ()),
                "twice": Reworded(pattern="{prompt}{prompt}"), "noise": RandomStep({}, "s"), "none": None}[self.how]

not_there_yet = None
"""
_ENTRIES = """
[tamperdose.judges]
saying = offered_plugins:Judge
missing = offered_plugins:Nothing
absent = no_such_module:Judge

[tamperdose.attacks]
saying = offered_plugins:Attack
"""


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the package importable, and its entry points found."""
    (folder / "offered_plugins.py").write_text(_SOURCE)
    about = folder / "offered_plugins-1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: offered-plugins\nVersion: 1.5\n")
    (about / "entry_points.txt").write_text(_ENTRIES)
    monkeypatch.syspath_prepend(str(folder))
