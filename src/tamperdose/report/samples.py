"""Several samples of each prompt as text for a terminal: how many prompts any of them gives way on."""

from collections.abc import Iterator

import pandas as pd

from tamperdose.report.select import arm_rows, curve, list_arms, select_judge
from tamperdose.report.text import printable
from tamperdose.run.schema import column


def is_sampled(frame: pd.DataFrame) -> bool:
    """Whether prompts have several samples, so that a denominator counts answers."""
    return bool((column(frame, "metric") == "any_compliance_rate").any())


def sample_lines(frame: pd.DataFrame, judge: str) -> Iterator[str]:
    """Below the tables: the share of prompts with at least one compliant sample, dose by dose; none with one sample."""
    if not is_sampled(frame):
        return
    chosen = select_judge(frame, judge)
    for arm in list_arms(chosen):
        points = curve(arm_rows(chosen, arm), arm, "any_compliance_rate")
        shown = [f"{value:.3f} at {steps}" for steps, value in zip(points.steps, points.value, strict=True)]
        if shown:
            yield f"{printable(arm.name)}: any of a prompt's samples complies in {', '.join(shown)} steps"
