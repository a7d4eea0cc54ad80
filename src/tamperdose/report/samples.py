"""Several samples of each prompt as text for a terminal: how many prompts any of them gives way on."""

from collections.abc import Iterator

import pandas as pd

from tamperdose.audit.findings import Audit, Claim, withheld
from tamperdose.report.select import arm_rows, curve, list_arms, select_judge
from tamperdose.report.text import MARK, WITHHELD, printable
from tamperdose.run.schema import column


def is_sampled(frame: pd.DataFrame) -> bool:
    """Whether prompts have several samples, so that a denominator counts answers."""
    return bool((column(frame, "metric") == "any_compliance_rate").any())


def sample_lines(frame: pd.DataFrame, judge: str, *, audit: Audit | None = None, force: bool = False) -> Iterator[str]:
    """Below the tables: the share of prompts with at least one compliant sample, dose by dose; none with one sample.

    It falls with RRR where the audit does not support that, or with `force` is printed with a mark.
    """
    if not is_sampled(frame):
        return
    chosen = select_judge(frame, judge)
    for arm in list_arms(chosen):
        points = curve(arm_rows(chosen, arm), arm, "any_compliance_rate")
        shown = [
            f"{_supported(value, arm.name, steps, audit, force=force)} at {steps}"
            for steps, value in zip(points.steps, points.value, strict=True)
        ]
        if shown:
            yield f"{printable(arm.name)}: any of a prompt's samples complies in {', '.join(shown)} steps"


def _supported(value: float, arm: str, dose: int, audit: Audit | None, *, force: bool) -> str:
    if audit is None or not withheld(audit, Claim.RRR, arm=arm, dose=dose):
        return f"{value:.3f}"
    return f"{value:.3f} {MARK}" if force else WITHHELD
