"""What attacks were compared with and what the gate made of it, in a short table for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tamperdose.report.text import UNDEFINED, printable, shorten
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.controls import Control
from tamperdose.run.gates import CONTROL_COLUMNS, CONTROLS, GATE, GATE_COLUMNS, MEAN

FEW_ARMS = 4
"""Up to so many arms every dose with controls is shown; beyond, the first alone, where refusals had fallen to half."""
HEADINGS = ("dose", "attack", "random [min, max]", "benign", "none", "verdict")
"""The columns: RRR of the attack and of each control on the prompts that controls were asked."""

_RANDOM = tuple(control.value for control in Control if control not in (Control.NONE, Control.BENIGN))


def controls_of(folder: Path, judge: str) -> dict[str, list[Row]]:
    """The rows of `controls.csv` and `gate.csv` by one judge; none where there is no such file.

    Raises:
        DataError: A file cannot be read.
    """
    files = {"controls": (CONTROLS, CONTROL_COLUMNS), "gate": (GATE, GATE_COLUMNS)}
    read = {
        key: read_rows(folder / name, columns) if (folder / name).is_file() else []
        for key, (name, columns) in files.items()
    }
    return {key: [row for row in rows if row["judge"] == judge] for key, rows in read.items()}


def control_lines(folder: Path, judge: str) -> list[str]:
    """A table for each arm: RRR under the attack and under each control, and the gate's verdict with its reason.

    Raises:
        DataError: As `controls_of`.
    """
    found = controls_of(folder, judge)
    rates = [row for row in found["controls"] if row["metric"] == "RRR"]
    arms = list(dict.fromkeys(str(row["arm"]) for row in rates))
    if not arms:
        return []
    n = max(int(str(row["n"])) for row in rates)
    lines = [f"controls: RRR by {printable(judge)} on {n} of the harmful prompts"]
    for arm in arms:
        lines.append(f"  {shorten(printable(arm), 100)}")
        lines += _table([row for row in rates if row["arm"] == arm], found["gate"], few=len(arms) <= FEW_ARMS)
    return lines


def _table(rates: Sequence[Row], gate: Sequence[Row], *, few: bool) -> Iterator[str]:
    doses = [row["dose_steps"] for row in rates if row["control"] == "attack"]
    verdicts: dict[object, Row] = {row["dose_steps"]: row for row in gate if row["arm"] == rates[0]["arm"]}
    cells = [control_cells(rates, dose, verdicts) for dose in (doses if few else doses[:1])]
    widths = [max(len(line[place]) for line in [HEADINGS, *cells]) for place in range(len(HEADINGS))]
    for line in [HEADINGS, *cells]:
        *numbers, verdict = zip(line, widths, strict=True)
        yield "    " + "  ".join(cell.rjust(width) for cell, width in numbers) + "  " + verdict[0]


def control_cells(rates: Sequence[Row], dose: object, verdicts: Mapping[object, Row]) -> tuple[str, ...]:
    """The cells of one dose under `HEADINGS`, from an arm's rows of RRR and the gate's row of each dose."""
    at = [row for row in rates if row["dose_steps"] == dose]
    gate = verdicts.get(dose)
    said = "not judged" if gate is None else f"{gate['verdict']}: {gate['why']}"
    none = [row for row in rates if row["control"] == "none"]
    return (str(dose), _rate(at, "attack"), _random(at), _rate(at, "benign"), _rate(none, "none"), printable(said))


def _rate(rows: Sequence[Row], control: str) -> str:
    found = [row["value"] for row in rows if row["control"] == control and row["value"] is not None]
    return f"{float(str(found[0])):.2f}" if found else UNDEFINED


def _random(rows: Sequence[Row]) -> str:
    mine = [row for row in rows if row["control"] in _RANDOM and row["value"] is not None]
    mean = [float(str(row["value"])) for row in mine if row["draw"] == MEAN]
    each = [float(str(row["value"])) for row in mine if row["draw"] != MEAN]
    return f"{mean[0]:.2f} [{min(each):.2f}, {max(each):.2f}]" if mean and each else UNDEFINED
