"""What the audit leaves without support is marked in the figures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tamperdose.audit.findings import Audit, CellId, CheckResult, Claim, Outcome
from tamperdose.audit.serial import to_json
from tamperdose.errors import DataError
from tamperdose.files import write_json
from tamperdose.records import Subset
from tamperdose.report import figures
from tamperdose.report.captions import audit_text
from tamperdose.report.combined import combine
from tamperdose.report.figures import ce_figure, dose_response_figure, draw_run, rd_figure, rrr_figure
from tamperdose.report.select import curve, list_arms

BUILDERS = (rrr_figure, ce_figure, rd_figure, dose_response_figure)
HOLLOW = "hollow: not supported by the audit"


def check(outcome: Outcome, *claims: Claim, cells: tuple[CellId, ...] = (), name: str = "degeneration") -> CheckResult:
    return CheckResult(name, outcome, claims, cells, 0.5, "fail above 10%", "found", "mend it")


def audited(arm: str, *checks: CheckResult, doses: tuple[int, ...]) -> Audit:
    return Audit(tuple(CellId(arm, dose, Subset.HARMFUL) for dose in doses), checks)


def broken_from(arm: str, first: int, *, doses: tuple[int, ...], claims: tuple[Claim, ...] = (Claim.RRR,)) -> Audit:
    cells = tuple(CellId(arm, dose, Subset.HARMFUL) for dose in doses if dose >= first)
    return audited(arm, check(Outcome.FAIL, *claims, cells=cells), doses=doses)


def hollow_points(axes: Axes) -> list[float]:
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white" and line.get_marker() != "None"]
    return [float(x) for line in hollow for x, y in np.asarray(line.get_xydata()) if np.isfinite(y)]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def below(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def test_points_without_support_are_hollow_and_the_caption_says_why(synthetic: Any) -> None:
    arm = synthetic.arm()
    audit = broken_from(arm["arm"], 8, doses=synthetic.doses)
    figure = rrr_figure(synthetic.frame(synthetic.rows(arm)), {"demo": audit})
    assert hollow_points(figure.axes[0]) == [8, 16]
    assert HOLLOW in legend(figure)
    assert "Audit: RRR at doses 8, 16 not supported: degeneration." in below(figure)


def test_ce_falls_with_rrr_and_rd_does_not(synthetic: Any) -> None:
    arm = synthetic.arm()
    frame = synthetic.frame(synthetic.rows(arm))
    audits = {"demo": broken_from(arm["arm"], 8, doses=synthetic.doses)}
    assert hollow_points(ce_figure(frame, audits).axes[0]) == [8, 16]
    drift = rd_figure(frame, audits)
    assert hollow_points(drift.axes[0]) == []
    assert HOLLOW not in legend(drift)
    assert "Audit: nothing that bears on this." in below(drift)


def test_the_overview_names_every_claim(synthetic: Any) -> None:
    arm = synthetic.arm()
    audit = broken_from(arm["arm"], 8, doses=synthetic.doses, claims=(Claim.RRR, Claim.RD))
    figure = dose_response_figure(synthetic.frame(synthetic.rows(arm)), {"demo": audit})
    assert "RRR at doses 8, 16 not supported: degeneration; RD at doses 8, 16 not supported" in below(figure)
    assert set(hollow_points(figure.axes[1])) == {8, 16}


@pytest.mark.parametrize("build", BUILDERS)
def test_a_sound_run_has_no_mark_and_says_its_warnings(build: Callable[..., Figure], synthetic: Any) -> None:
    arm = synthetic.arm()
    frame = synthetic.frame(synthetic.rows(arm))
    warned = check(Outcome.WARN, Claim.ATTACK, name="seeds")
    figure = build(frame, {"demo": audited(arm["arm"], warned, doses=synthetic.doses)})
    assert "Audit: 1 warning." in below(figure)
    assert HOLLOW not in legend(figure)
    assert all(hollow_points(axes) == [] for axes in figure.axes)
    assert "Audit" not in below(build(frame))


def test_other_arms_and_studies_keep_their_marks_apart(synthetic: Any) -> None:
    one, two = synthetic.arm(seed=1), synthetic.arm(seed=2)
    frame = synthetic.frame([*synthetic.rows(one), *synthetic.rows(two)])
    audits = {"demo": broken_from(one["arm"], 4, doses=synthetic.doses)}
    marks = [curve(frame, arm, "RRR", audits).unsupported for arm in list_arms(frame)]
    assert marks == [(False, False, False, True, True, True), ()]
    elsewhere = {"another": broken_from(one["arm"], 4, doses=synthetic.doses)}
    assert all(curve(frame, arm, "RRR", elsewhere).unsupported == () for arm in list_arms(frame))


def test_captions_of_several_studies_name_them() -> None:
    fail = broken_from("a", 0, doses=(0, 4))
    assert (
        audit_text({"x": fail, "y": None}, [Claim.RRR])
        == "Audit of x: RRR not supported: degeneration. Audit of y: none."
    )
    assert (
        audit_text({"x": Audit((), (check(Outcome.PASS),)), "y": Audit((), (check(Outcome.PASS),))}, [])
        == "Audit: pass."
    )
    assert audit_text({}, [Claim.RRR]) == ""


def captions_drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def keep(figure: Figure, path: Path) -> Path:
        seen.append(below(figure))
        return path

    monkeypatch.setattr(figures, "save_png", keep)
    return seen


def test_figures_of_a_run_carry_the_audit_that_lies_in_it(
    synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = synthetic.arm()
    run = synthetic.run(synthetic.rows(arm), tmp_path)
    seen = captions_drawn(monkeypatch)
    draw_run(run)
    assert len(seen) == 4
    assert all("Audit: none." in text for text in seen)
    seen.clear()
    write_json(run / "audit.json", to_json(broken_from(arm["arm"], 8, doses=synthetic.doses)))
    draw_run(run)
    assert sum("not supported: degeneration" in text for text in seen) == 3
    seen.clear()
    combine([run], tmp_path / "combined")
    assert sum("not supported: degeneration" in text for text in seen) == 2


def test_a_damaged_audit_is_no_absent_one(synthetic: Any, tmp_path: Path) -> None:
    run = synthetic.run(synthetic.rows(synthetic.arm()), tmp_path)
    (run / "audit.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(DataError, match="audit"):
        draw_run(run)
