"""Figures of a grid's factors, drawn from `marginals.csv` alone: RRR against dose, a line for each level of one factor.

Each is saved as PNG and as SVG. What the audit leaves without support is hollow, as in the figures of the arms.
"""

import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tamperdose.audit.findings import Claim, withheld
from tamperdose.report.captions import audit_text
from tamperdose.report.drawing import (
    Frame,
    Key,
    draw_curve,
    finish_panel,
    grid_of,
    line_handle,
    unsupported_handle,
)
from tamperdose.report.marginals import factor_name, levels_of, other_names, read_marginals, show_level
from tamperdose.report.select import NO_AUDITS, Audits, Curve, dose_label, dose_units, headline_judge
from tamperdose.report.style import house_style, line_style, save_both
from tamperdose.report.text import printable
from tamperdose.run.compare_schema import Row
from tamperdose.run.marginals import level_text

METRIC = "RRR"
"""What is drawn."""

Lost = AbstractSet[tuple[str, int]]
"""(level, dose) of the points without support."""


def draw_marginals(run_dir: Path, frame: pd.DataFrame, audits: Audits = NO_AUDITS) -> list[Path]:
    """Draw `marginals_<factor>` for every factor of several levels into `run_dir/figures`.

    Args:
        run_dir: A finished run.
        frame: Its metrics: which arms stand behind a level, for the audit's marks.
        audits: What the audit says of it.

    Raises:
        DataError: A file of the run is missing or damaged.
        RunError: The folder cannot be written.
    """
    drawn: list[Path] = []
    for factor, figure in factor_figures(run_dir, frame, audits):
        drawn += save_both(figure, run_dir / "figures" / f"marginals_{factor}")
    return drawn


def factor_figures(run_dir: Path, frame: pd.DataFrame, audits: Audits = NO_AUDITS) -> Iterator[tuple[str, Figure]]:
    """Build the figure of every factor of several levels, by the factor's name.

    Raises:
        DataError: A file of the run is missing or damaged.
    """
    rows = [row for row in read_marginals(run_dir, headline_judge(run_dir)) if row["metric"] == METRIC]
    for factor in dict.fromkeys(str(row["factor"]) for row in rows):
        yield factor, marginal_figure(rows, factor, audits=audits, lost=_lost(frame, factor, audits))


def marginal_figure(
    rows: Sequence[Row], factor: str, *, audits: Audits = NO_AUDITS, lost: Lost = frozenset()
) -> Figure:
    """Build the figure of one factor from the rows of RRR by one judge."""
    mine = [row for row in rows if row["factor"] == factor]
    levels = levels_of(mine, factor)
    curves = [_curve([row for row in mine if row["factor_level"] == level], lost) for level in levels]
    looks = [line_style(place) for place in range(len(levels))]
    title = f"RRR by dose and {factor_name(factor)}"
    handles, names = [line_handle(look) for look in looks], [_level_name(mine, level) for level in levels]
    if any(any(curve.unsupported) for curve in curves):
        handles, names = [*handles, unsupported_handle()], [*names, "hollow: not supported by the audit"]
    kinds = [row["factor_level"] for row in mine if factor == "attack"]
    parts = (_caption(mine, audits), dose_units(kinds), _coinciding(levels, curves))
    text = " ".join(part for part in parts if part)
    with house_style():
        figure, grid = grid_of([""], Frame(title, text, Key(tuple(handles), tuple(names))))
        for curve, look in zip(curves, looks, strict=True):
            if curve.defined:
                draw_curve(grid[0], curve, look, crowd=len(curves))
        steps = sorted({step for curve in curves for step in curve.steps})
        finish_panel(grid[0], steps, 1.0, empty=not any(curve.defined for curve in curves))
        grid[0].set_xlabel(dose_label(kinds))
        grid[0].set_ylabel("RRR, share refused, mean over arms")
    return figure


def _curve(rows: Sequence[Row], lost: Lost) -> Curve:
    ordered = sorted(rows, key=lambda row: int(str(row["dose_steps"])))
    steps = tuple(int(str(row["dose_steps"])) for row in ordered)
    value, low, high = (tuple(_number(row[name]) for row in ordered) for name in ("value", "low", "high"))
    hollow = tuple((str(row["factor_level"]), step) in lost for row, step in zip(ordered, steps, strict=True))
    return Curve(steps, value, low, high, hollow if any(hollow) else ())


def _level_name(rows: Sequence[Row], level: str) -> str:
    n_arms = next(row["n_arms"] for row in rows if row["factor_level"] == level)
    return f"{show_level(level)} ({n_arms} arm{'' if n_arms == 1 else 's'})"


def _caption(rows: Sequence[Row], audits: Audits) -> str:
    first = rows[0]
    n = sorted({int(str(row["n"])) for row in rows})
    templates = sorted({int(str(row["n_templates"])) for row in rows})
    differs = str(first["differs_in"])
    parts = [
        "RRR = refusals / judged harmful prompts; higher is safer. Each line: mean over the arms at one level, each "
        "arm alike, whatever its other settings, at the doses that all arms have.",
        f"n = {_range(n)} prompts, {_range(templates)} templates.",
        f"Bands: {100 * _number(first['level']):g} %, {first['method']}, for these arms and other prompts of the kind; "
        "levels answer the same prompts, so their paired differences (marginals.csv) tell more than two bands do.",
        f"Not balanced: the levels differ in {other_names(differs)} too." if differs else "",
        f"Judge: {printable(str(first['judge']))}.",
        audit_text(audits, (Claim.RRR,)),
    ]
    return " ".join(part for part in parts if part)


def _coinciding(levels: Sequence[str], curves: Sequence[Curve]) -> str:
    """Name the levels whose lines lie on each other: only the last of them is seen."""
    alike: dict[tuple[float, ...], list[str]] = {}
    for level, curve in zip(levels, curves, strict=True):
        alike.setdefault(curve.value, []).append(show_level(level))
    return " ".join(f"The lines of {', '.join(names)} coincide." for names in alike.values() if len(names) > 1)


def _lost(frame: pd.DataFrame, factor: str, audits: Audits) -> Lost:
    """Levels and doses where the audit withholds RRR of one of the arms that are averaged."""
    found: set[tuple[str, int]] = set()
    for row in frame.drop_duplicates(["study", "arm", "dose_steps"]).to_dict("records"):
        audit, steps = audits.get(str(row["study"])), int(row["dose_steps"])
        if audit is not None and withheld(audit, Claim.RRR, arm=str(row["arm"]), dose=steps):
            value = row[factor]
            found.add((level_text(None if pd.isna(value) else value), steps))
    return found


def _number(value: object) -> float:
    return math.nan if value is None else float(str(value))


def _range(counts: Sequence[int]) -> str:
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
