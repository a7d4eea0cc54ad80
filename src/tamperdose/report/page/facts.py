"""What a page is made from: a finished run's files, read once. Nothing is computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tamperdose.audit.findings import Audit, Claim, withheld
from tamperdose.errors import DataError, explain
from tamperdose.report.responses import read_json
from tamperdose.report.select import Arm, arm_labels, common_settings, dose_word, headline_judge, list_arms, load_run
from tamperdose.report.text import MARK, UNDEFINED, WITHHELD, printable
from tamperdose.run.audit import AUDIT_FILE, read_audit


@dataclass(frozen=True, slots=True)
class Facts:
    """A run's folder and what every part of a page asks of it."""

    folder: Path
    """The run's."""
    manifest: Mapping[str, Any]
    """Its `manifest.json`; empty in a folder that holds an audit alone."""
    audit: Audit | None
    """Its audit, if it has one."""
    judge: str
    """The headline judge; empty where nothing was measured."""
    frame: pd.DataFrame
    """The headline judge's metrics; no rows where nothing was measured."""
    arms: tuple[Arm, ...]
    """The arms, small models first."""
    labels: Mapping[str, str]
    """What each arm is called here, by its name."""
    force: bool
    """Whether numbers that the audit does not support are shown, with a mark."""
    show_text: bool
    """Whether the texts of answers to harmful prompts are shown."""

    @property
    def name(self) -> str:
        """The study's name."""
        found = self.manifest.get("study")
        return printable(found if isinstance(found, str) and found else self.folder.resolve().name)

    @property
    def shared(self) -> str:
        """The settings that all arms share, in words."""
        return common_settings(self.arms) if self.arms else ""

    def lost(self, claim: Claim, arm: str, dose: int) -> bool:
        """Whether failed checks leave a claim about one arm and dose without support."""
        return self.audit is not None and bool(withheld(self.audit, claim, arm=arm, dose=dose))

    def supported(self, text: str, claim: Claim, arm: str, dose: int) -> str:
        """A number as the audit lets it stand."""
        if text == UNDEFINED or not self.lost(claim, arm, dose):
            return text
        return f"{text} {MARK}" if self.force else WITHHELD

    def unit(self, arm: Arm) -> str:
        """What a dose of an arm counts."""
        return dose_word(dict(arm.settings).get("attack", ""))


def read_facts(folder: Path, *, force: bool, show_text: bool) -> Facts:
    """Read a folder that `run`, `score` or `audit` wrote.

    Raises:
        DataError: No such folder, it holds neither metrics nor an audit, or a file of it is damaged.
    """
    if not folder.is_dir():
        raise DataError(explain(f"no such folder: {folder}", expected="the folder of a run, of score or of audit"))
    audit = read_audit(folder)
    if not (folder / "metrics.csv").is_file():
        if audit is None:
            raise DataError(
                explain(
                    f"{folder} holds nothing to report",
                    got=f"neither metrics.csv nor {AUDIT_FILE}",
                    expected="the folder of a finished run, of score or of audit",
                    remedy="let the run finish: the same command goes on where it stopped",
                )
            )
        return Facts(folder, {}, audit, "", pd.DataFrame(), (), {}, force, show_text)
    frame = load_run(folder)
    arms = tuple(list_arms(frame))
    labels = dict(zip((arm.name for arm in arms), arm_labels(arms), strict=True))
    manifest = read_json(folder / "manifest.json")
    return Facts(folder, manifest, audit, headline_judge(folder), frame, arms, labels, force, show_text)
