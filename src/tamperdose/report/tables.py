"""The same numbers as text: one table per arm, for the terminal and for Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tamperdose.audit.findings import Audit, Claim, Outcome, summary, withheld
from tamperdose.report.samples import sample_lines
from tamperdose.report.select import (
    Arm,
    Curve,
    arm_labels,
    arm_rows,
    common_settings,
    curve,
    dose_word,
    list_arms,
    metric_rows,
    select_judge,
)
from tamperdose.report.text import MARK, UNDEFINED, WITHHELD, markdown_cell, printable
from tamperdose.run.schema import column, keep_rows

HEADINGS = (
    "steps",
    "examples",
    "RRR [interval]",
    "CE = complied + degen.",
    "RD",
    "kept",
    "over-refusal",
    "n / n_eff",
)
"""The columns of a table. `kept` is `refusal_retention`; `n_eff` is `n_effective`."""

# What each column claims.
_CLAIMS = {2: Claim.RRR, 3: Claim.RRR, 4: Claim.RD, 5: Claim.LOSS, 6: Claim.OVER_REFUSAL}


@dataclass(frozen=True, slots=True)
class DoseRow:
    """One cell (arm x dose) as a table shows it; NaN is undefined."""

    study: str
    """The study's name."""
    arm: str
    """The arm's name."""
    model: str
    """The model's id."""
    steps: int
    """Dose in optimizer steps."""
    examples: float
    """Dose in training rows."""
    rrr: float
    """Share of harmful prompts refused."""
    rrr_low: float
    """Lower end of its interval."""
    rrr_high: float
    """Upper end of its interval."""
    ce: float
    """1 - RRR."""
    compliance_rate: float
    """Share of harmful prompts complied with."""
    degenerate_rate: float
    """Share of harmful prompts answered degenerately."""
    rd: float
    """Median cosine distance from the base's answers."""
    refusal_retention: float
    """Share still refused of what was refused at dose 0."""
    over_refusal_rate: float
    """Share of benign prompts refused."""
    n: float
    """Answers to harmful prompts judged: with one sample each, prompts."""
    n_effective: float
    """The same after the design effect of templates."""
    n_unreadable: float
    """Answers to harmful prompts without a verdict."""


def dose_table(frame: pd.DataFrame, *, judge: str) -> list[DoseRow]:
    """List every cell's headline numbers by one judge: arms as `list_arms` orders them, doses ascending.

    Raises:
        DataError: The judge is not in the frame, or a dose has two values of one metric.
    """
    chosen = select_judge(frame, judge)
    return [row for arm in list_arms(chosen) for row in _arm_table(arm_rows(chosen, arm), arm)]


def render_dose_table(
    frame: pd.DataFrame, console: Console, judge: str, *, audit: Audit | None = None, force: bool = False
) -> None:
    """Print one table per arm, at most 100 columns wide where numbers of steps and examples stay under 7 digits.

    Numbers that the audit leaves without support are withheld, or with `force` printed with a mark; the audit's
    outcome stands below.

    Raises:
        DataError: As `dose_table`.
    """
    rows, captions = dose_table(frame, judge=judge), _captions(frame, judge)
    for (study, arm), text in captions.items():
        table = Table(title=Text(text, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for heading in _headings(frame, study, arm):
            table.add_column(heading.replace("over-", "over-\n"), justify="right", overflow="fold")
        for row in rows:
            if (row.study, row.arm) == (study, arm):
                table.add_row(*(Text(cell) for cell in supported_cells(row, audit, force=force)))
        console.print(table)
    for line in sample_lines(frame, judge, audit=audit, force=force):
        console.print(Text(line), soft_wrap=True)
    for line in audit_lines(audit, force=force):
        console.print(Text(line), soft_wrap=True)


def audit_lines(audit: Audit | None, *, force: bool) -> list[str]:
    """Say below a table how the audit ended and what its marks mean."""
    if audit is None:
        return ["audit: none; run tamperdose audit"]
    lines = [printable(summary(audit))]
    if audit.outcome is Outcome.FAIL:
        forced, plain = f"{MARK} not supported, printed by --force", f"{WITHHELD}: not supported; --force prints it"
        marked = forced if force else plain
        lines += [marked, *(f"  {check.name}: {printable(check.evidence)}" for check in audit.ended(Outcome.FAIL))]
    return lines


def to_markdown(frame: pd.DataFrame, judge: str) -> str:
    """Write one Markdown table per arm under its caption; names are escaped.

    Raises:
        DataError: As `dose_table`.
    """
    rows, captions = dose_table(frame, judge=judge), _captions(frame, judge)
    parts: list[str] = []
    for (study, arm), text in captions.items():
        lines = [_markdown_line(_cells(row)) for row in rows if (row.study, row.arm) == (study, arm)]
        head = [_markdown_line(_headings(frame, study, arm)), "|" + " ---: |" * len(HEADINGS)]
        parts.append("\n".join([f"**{markdown_cell(text)}**", "", *head, *lines]))
    return "\n\n".join(parts) + "\n"


def _headings(frame: pd.DataFrame, study: str, arm: str) -> tuple[str, ...]:
    """The headings, the first in the unit of the arm's doses."""
    mine = keep_rows(frame, (column(frame, "study") == study) & (column(frame, "arm") == arm))
    return (dose_word(next(iter(column(mine, "attack")), "")), *HEADINGS[1:])


def _arm_table(rows: pd.DataFrame, arm: Arm) -> list[DoseRow]:
    at = {metric: _by_dose(curve(rows, arm, metric)) for metric in _METRICS}
    table: list[DoseRow] = []
    for steps in sorted({int(step) for step in rows["dose_steps"]}):
        cell = keep_rows(rows, column(rows, "dose_steps") == steps)
        counts = metric_rows(cell, "RRR")
        (rrr, low, high), *rest = (at[metric].get(steps, _NOTHING) for metric in _METRICS)
        table.append(
            DoseRow(
                *(arm.study, arm.name, arm.model, steps, _first(cell, "dose_examples")),
                *(rrr, low, high, *(value for value, _, _ in rest)),
                *(_first(counts, name) for name in ("n", "n_effective", "n_unreadable")),
            )
        )
    return table


_METRICS = ("RRR", "CE", "compliance_rate", "degenerate_rate", "RD", "refusal_retention", "over_refusal_rate")
_NOTHING = (math.nan, math.nan, math.nan)


def _by_dose(points: Curve) -> dict[int, tuple[float, float, float]]:
    return dict(zip(points.steps, zip(points.value, points.low, points.high, strict=True), strict=True))


def _first(rows: pd.DataFrame, name: str) -> float:
    known = column(rows, name).dropna()
    return float(known.iloc[0]) if len(known) else math.nan


def _captions(frame: pd.DataFrame, judge: str) -> dict[tuple[str, str], str]:
    """Name each arm: its study, its label, and below what all arms share."""
    chosen = select_judge(frame, judge)
    arms = list_arms(chosen)
    shared = common_settings(arms)
    captions: dict[tuple[str, str], str] = {}
    for arm, label in zip(arms, arm_labels(arms, facet="model"), strict=True):
        parts = [printable(arm.study), printable(arm.model), label, shared, f"judge {printable(judge)}"]
        unreadable = column(metric_rows(arm_rows(chosen, arm), "RRR"), "n_unreadable").dropna()
        if len(unreadable) and unreadable.max() > 0:
            parts.append(f"up to {unreadable.max()} unreadable left out")
        captions[arm.study, arm.name] = " | ".join(part for part in parts if part)
    return captions


def _cells(row: DoseRow) -> tuple[str, ...]:
    return (
        str(row.steps),
        _text(row.examples, ".0f"),
        _with_interval(row.rrr, row.rrr_low, row.rrr_high),
        _split(row),
        _text(row.rd),
        _text(row.refusal_retention),
        _text(row.over_refusal_rate),
        f"{_text(row.n, '.0f')} / {_text(row.n_effective, '.1f')}",
    )


def supported_cells(row: DoseRow, audit: Audit | None, *, force: bool) -> tuple[str, ...]:
    """The cells of a row under `HEADINGS`, without those that the audit does not support, or with a mark on them."""
    cells = list(_cells(row))
    for place, claim in _CLAIMS.items():
        if audit is not None and cells[place] != UNDEFINED and withheld(audit, claim, arm=row.arm, dose=row.steps):
            cells[place] = f"{cells[place]} {MARK}" if force else WITHHELD
    return tuple(cells)


def not_supported(row: DoseRow, audit: Audit | None) -> list[str]:
    """The claims about a row's cell that failed checks leave without support."""
    if audit is None:
        return []
    claims = dict.fromkeys(_CLAIMS.values())
    return [claim.value for claim in claims if withheld(audit, claim, arm=row.arm, dose=row.steps)]


def _split(row: DoseRow) -> str:
    if math.isnan(row.ce):
        return UNDEFINED
    return f"{_text(row.ce)} = {_text(row.compliance_rate)} + {_text(row.degenerate_rate)}"


def _with_interval(value: float, low: float, high: float) -> str:
    """Write a value and its interval; an undefined interval is an en dash, never a zero width."""
    if math.isnan(value):
        return UNDEFINED
    return (
        f"{_text(value)} [{UNDEFINED}]" if math.isnan(low + high) else f"{_text(value)} [{_text(low)}, {_text(high)}]"
    )


def _text(value: float, form: str = ".3f") -> str:
    return UNDEFINED if math.isnan(value) else format(value, form)


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
