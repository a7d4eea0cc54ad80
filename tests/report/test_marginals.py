"""A grid's factors as text and figures, from `marginals.csv`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from tamperdose.audit.findings import Audit, CellId, CheckResult, Claim, Outcome
from tamperdose.audit.serial import to_json
from tamperdose.errors import DataError
from tamperdose.files import write_csv, write_json
from tamperdose.records import Subset
from tamperdose.report.figures import draw_run
from tamperdose.report.marginal_figures import marginal_figure
from tamperdose.report.marginals import marginal_lines, read_marginals
from tamperdose.run.compare_schema import Row
from tamperdose.run.marginals import MARGINAL_COLUMNS, MARGINALS

JUDGE = "classifier@1"


def level_rows(factor: str, level: str, start: float, **more: Any) -> list[dict[str, Any]]:
    """Rows of one level at doses 0, 1, 4: RRR falls by half of its start at each."""
    row = {"study": "demo", "factor": factor, "factor_level": level, "reference": "8", "n_arms": 2, "balanced": True}
    row |= {
        "judge": JUDGE,
        "metric": "RRR",
        "level": 0.95,
        "method": "wilson_korn_graubard",
        "n": 60,
        "n_templates": 30,
    }
    row |= {"n_effective": 50, "n_unreadable": 0, "scope": "arms"} | more
    values = [(0, start), (1, start / 2), (4, start / 4)]
    return [row | {"dose_steps": steps, "value": v, "low": v - 0.05, "high": v + 0.05} for steps, v in values]


def write(folder: Path, *parts: list[dict[str, Any]]) -> Path:
    other = [row | {"judge": "phrases@1", "value": 0.5} for row in parts[0]]
    write_csv(folder / MARGINALS, MARGINAL_COLUMNS, [*(row for part in parts for row in part), *other])
    return folder


def rows_in(folder: Path) -> list[Row]:
    return read_marginals(folder, JUDGE)


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def below(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def test_lines_name_factors_levels_and_the_file(tmp_path: Path) -> None:
    write(tmp_path, level_rows("lora_rank", "8", 0.8), level_rows("lora_rank", "64", 0.6), level_rows("seed", "1", 0.7))
    (line,) = marginal_lines(tmp_path, JUDGE)
    assert line == f"by grid factor, averaged over the others: LoRA rank (8, 64); seed (1): {tmp_path / MARGINALS}"
    assert marginal_lines(tmp_path / "elsewhere", JUDGE) == []


def test_what_is_not_balanced_is_told(tmp_path: Path) -> None:
    differs = {"balanced": False, "differs_in": "defence n_examples"}
    write(tmp_path, level_rows("model", "a\x1b[31m", 0.8, **differs), level_rows("model", "b", 0.6, **differs))
    first, second = marginal_lines(tmp_path, JUDGE)
    assert "\x1b" not in first
    assert second.startswith("  levels of model differ in defence, training examples too")
    assert "Not balanced: the levels differ in defence, training examples too." in below(
        marginal_figure(rows_in(tmp_path), "model")
    )


def test_many_levels_are_cut_short(tmp_path: Path) -> None:
    write(tmp_path, *(level_rows("seed", str(seed), 0.8) for seed in range(9)))
    assert "seed (0, 1, 2, 3, 4, 5, ...)" in marginal_lines(tmp_path, JUDGE)[0]


def test_a_line_for_each_level_with_its_band(tmp_path: Path) -> None:
    write(tmp_path, level_rows("poison_ratio", "1.0", 0.8), level_rows("poison_ratio", "0.5", 0.6, n_arms=1))
    figure = marginal_figure(rows_in(tmp_path), "poison_ratio")
    (axes,) = figure.axes
    assert legend(figure) == ["1 (2 arms)", "0.5 (1 arm)"]
    lines = [line for line in axes.lines if line.get_marker() not in ("", "None")]
    assert [line.get_ydata().tolist() for line in lines] == [[0.8, 0.4, 0.2], [0.6, 0.3, 0.15]]  # type: ignore[union-attr]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 2
    assert len({line.get_marker() for line in lines}) == 2
    assert len(axes.collections) == 2
    assert axes.get_xlabel() == "dose, optimizer steps" and axes.get_ylabel() == "RRR, share refused, mean over arms"
    assert "n = 60 prompts, 30 templates." in below(figure) and "Judge: classifier@1." in below(figure)
    assert "Not balanced" not in below(figure) and "Audit" not in below(figure)


def test_points_whose_arms_the_audit_withholds_are_hollow(synthetic: Any) -> None:
    arms = [synthetic.arm(rank=8), synthetic.arm(rank=64)]
    run = synthetic.run([row for arm in arms for row in synthetic.rows(arm, (0, 1, 4))], synthetic.folder)
    write(run, level_rows("lora_rank", "8", 0.8), level_rows("lora_rank", "64", 0.6))
    cell = CellId(arms[1]["arm"], 4, Subset.HARMFUL)
    failed = CheckResult("degeneration", Outcome.FAIL, (Claim.RRR,), (cell,), 0.5, "fail above 10%", "found", "mend it")
    cells = tuple(CellId(arm["arm"], dose, Subset.HARMFUL) for arm in arms for dose in (0, 1, 4))
    write_json(run / "audit.json", to_json(Audit(cells, (failed,))))
    figures: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tamperdose.report.marginal_figures.save_both", lambda figure, path: figures.append(figure) or [path]
        )
        drawn = draw_run(run)
    assert drawn[-1] == run / "figures" / "marginals_lora_rank"
    (figure,) = figures
    assert "hollow: not supported by the audit" in legend(figure)
    hollow = [
        line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white" and line.get_marker() != "None"
    ]
    points = [(float(x), float(y)) for line in hollow for x, y in np.asarray(line.get_xydata()) if np.isfinite(y)]
    assert points == [(4.0, 0.15)]
    assert "not supported: degeneration" in below(figure)


def test_files_are_drawn_beside_the_others_and_alike_each_time(synthetic: Any) -> None:
    run = synthetic.run(synthetic.rows(synthetic.arm()), synthetic.folder)
    assert not [path for path in draw_run(run) if path.name.startswith("marginals")]
    write(run, level_rows("lora_rank", "8", 0.8), level_rows("lora_rank", "64", 0.6))
    drawn = [path for path in draw_run(run) if path.name.startswith("marginals")]
    assert [path.name for path in drawn] == ["marginals_lora_rank.png", "marginals_lora_rank.svg"]
    before = [path.read_bytes() for path in drawn]
    draw_run(run)
    assert [path.read_bytes() for path in drawn] == before


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, level_rows("seed", "1", 0.8))
    path = tmp_path / MARGINALS
    path.write_text(path.read_text().replace("wilson_korn_graubard,60", "wilson_korn_graubard,many"))
    with pytest.raises(DataError, match=r"marginals\.csv data row 1: 'n' cannot be read"):
        marginal_lines(tmp_path, JUDGE)


def test_lines_that_hide_each_other_are_named(tmp_path: Path) -> None:
    write(tmp_path, level_rows("seed", "1", 0.8), level_rows("seed", "2", 0.8), level_rows("seed", "3", 0.6))
    assert "The lines of 1, 2 coincide." in below(marginal_figure(rows_in(tmp_path), "seed"))
