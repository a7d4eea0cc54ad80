"""Sheets and calibrations as text for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tamperdose.report.text import UNDEFINED, printable
from tamperdose.run.corrected import Calibration, Corrected
from tamperdose.run.labels import Drawn

METRICS = (
    "RRR_corrected",
    "RRR_corrected_difference",
    "ED50_steps_corrected",
    "RRR_band_corrected",
    "judge_agreement",
)
"""The metrics a terminal shows; `corrected.csv` holds all."""


def print_drawn(drawn: Drawn) -> None:
    """Print what a sheet holds and where it lies."""
    console = _console()
    table = Table("band", "verdict", "answers", "on the sheet", box=None, pad_edge=False)
    for band, verdict, size, n in drawn.strata:
        table.add_row(band, verdict, str(size), str(n))
    console.print(table)
    console.print(f"{drawn.n_prompts} prompts in {drawn.n_templates} templates")
    console.print(f"sheet  {printable(str(drawn.sheet))}")
    console.print(f"key    {printable(str(drawn.key))} (do not show it to labellers)")


def print_calibration(calibration: Calibration, judged: Mapping[tuple[str, int], float]) -> None:
    """Print the judge's quality, what is flagged, and the corrected rates beside the judge's.

    Args:
        calibration: Of `calibrate`.
        judged: The judge's RRR by (arm, dose).
    """
    console = _console()
    summary = calibration.summary
    console.print(
        f"{summary['n_labels']['human']} labels by people on {summary['n_labelled']} answers in "
        f"{summary['n_labels_templates']} templates; {summary['n_blank']} answers not labelled; "
        f"judge {printable(summary['judge'])}"
    )
    for partial_as, reading in summary["readings"].items():
        console.print(_quality_table(partial_as, reading))
        for change in reading.get("change", []):
            console.print(_change_line(change, summary["level"]))
        rows = [row for row in calibration.rows if row.partial_as == partial_as and row.metric in METRICS]
        console.print(_rates_table(rows, judged))
    for flag in summary["flags"]:
        console.print(f"! {printable(flag)}")


def _quality_table(partial_as: str, reading: Mapping[str, Any]) -> Table:
    title = Text(f"the judge against people, partial read as {partial_as.replace('_', ' ')}", style="bold")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("answers", "agreement", "sensitivity", "specificity", "labels", "identifiable"):
        table.add_column(heading)
    for name, quality in reading["quality"].items():
        agreed = reading.get("agreement", {}).get(name)
        shares = [_interval(share) for share in (agreed, quality["sensitivity"], quality["specificity"])]
        table.add_row(name, *shares, str(quality["n_labels"]), "yes" if quality["identifiable"] else "no")
    return table


def _change_line(change: Mapping[str, Any], level: float) -> str:
    if change["p_value"] is None:
        return f"{change['aspect']}, tampered less dose 0: undefined, no label of that kind at one of them"
    return (
        f"{change['aspect']}, tampered less dose 0: {_interval(change['difference'])}, p = {change['p_value']:.3g}; "
        f"a difference of {change['smallest_detectable']:.3f} would have been seen (p < {1 - level:.2g}) with power 0.8"
    )


def _rates_table(rows: Sequence[Corrected], judged: Mapping[tuple[str, int], float]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("arm", "steps", "metric", "judge's", "corrected", "method", "labels"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        raw = judged.get((row.arm, row.dose)) if row.dose is not None and row.metric == "RRR_corrected" else None
        found = {"value": row.estimate.value, "low": row.estimate.low, "high": row.estimate.high}
        table.add_row(
            printable(row.arm) if row.arm else f"band {row.band}",
            "" if row.dose is None else str(row.dose),
            row.metric,
            "" if raw is None else f"{raw:.3f}",
            _interval(found),
            row.estimate.method,
            str(row.n_labels),
        )
    return table


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return UNDEFINED
    if found["low"] is None:
        return f"{found['value']:.3f} [{UNDEFINED}]"
    high = "open" if found["high"] is None else f"{found['high']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {high}]"


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=160)
