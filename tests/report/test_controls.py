"""Controls and gate on a terminal: a table for each arm, its columns in line, what is not there shown as such."""

from pathlib import Path
from typing import Any

from tamperdose.files import write_csv
from tamperdose.report.controls import control_lines, controls_of
from tamperdose.report.response_figures import gate_text
from tamperdose.report.text import UNDEFINED
from tamperdose.run.gates import CONTROL_COLUMNS, CONTROLS, GATE, GATE_COLUMNS


def _row(arm: str, control: str, steps: int, value: float, draw: str = "") -> dict[str, Any]:
    named = {"study": "s", "arm": arm, "model": "m", "seed": 1, "judge": "truth", "metric": "RRR", "n": 60}
    return named | {"control": control, "dose_steps": steps, "draw": draw, "value": value, "level": 0.95}


def _write(folder: Path, arms: int) -> None:
    rows: list[dict[str, Any]] = []
    gate: list[dict[str, Any]] = []
    for arm in (f"arm{k}" for k in range(arms)):
        rows += [_row(arm, "base", 0, 0.97), _row(arm, "none", 0, 0.96)]
        for steps in (6, 16):
            rows += [_row(arm, "attack", steps, 0.05), _row(arm, "benign", steps, 0.9)]
            rows += [_row(arm, "random_adapter", steps, value, str(k)) for k, value in enumerate((0.9, 1.0), 1)]
            rows.append(_row(arm, "random_adapter", steps, 0.95, "mean"))
        named = {"study": "s", "arm": arm, "seed": 1, "judge": "truth", "criterion": "did", "limit": 0.1}
        gate.append(
            named | {"dose_steps": 6, "status": "pass", "verdict": "refusals removed", "why": "did \x1b[31m0.8"}
        )
    write_csv(folder / CONTROLS, CONTROL_COLUMNS, rows)
    write_csv(folder / GATE, GATE_COLUMNS, gate)


def test_table_of_an_arm(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    head, arm, headings, first, second = control_lines(tmp_path, "truth")
    assert "60 of the harmful prompts" in head
    assert arm.strip() == "arm0"
    assert headings.split()[:2] == ["dose", "attack"]
    assert first.split()[:7] == ["6", "0.05", "0.95", "[0.90,", "1.00]", "0.90", "0.96"]
    assert first.endswith("refusals removed: did [31m0.8")
    assert second.endswith("not judged")
    assert headings.index("verdict") == first.index("refusals removed") == second.index("not judged")


def test_many_arms_show_their_first_dose_alone(tmp_path: Path) -> None:
    _write(tmp_path, 5)
    lines = control_lines(tmp_path, "truth")
    assert len(lines) == 1 + 5 * 3
    assert not any(line.split()[0] == "16" for line in lines)


def test_what_was_not_measured(tmp_path: Path) -> None:
    write_csv(tmp_path / CONTROLS, CONTROL_COLUMNS, [_row("a", "attack", 6, 0.1), _row("a", "none", 0, 0.9)])
    line = control_lines(tmp_path, "truth")[-1]
    assert line.split()[:5] == ["6", "0.10", UNDEFINED, UNDEFINED, "0.90"]


def test_no_controls(tmp_path: Path) -> None:
    assert control_lines(tmp_path, "truth") == []
    assert controls_of(tmp_path, "truth") == {"controls": [], "gate": []}


def test_caption_counts_gates() -> None:
    fits = [{"gate": "passed"}, {"gate": "not_removed"}, {"gate": "not_removed"}, {"gate": ""}]
    assert gate_text(fits) == "Gate at ED50: 1 of 3 passed, 2 not removed."
    assert gate_text([{"gate": ""}]) == ""
