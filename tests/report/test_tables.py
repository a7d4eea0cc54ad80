import io
import math
from typing import Any

import pytest
from rich.console import Console

from tamperdose.errors import DataError
from tamperdose.report.tables import HEADINGS, dose_table, render_dose_table, to_markdown

JUDGE = "classifier@1"


def rendered(frame: Any, width: int = 100) -> str:
    stream = io.StringIO()
    render_dose_table(frame, Console(file=stream, width=width, color_system=None), JUDGE)
    return stream.getvalue()


def test_rows_are_the_csv(synthetic: Any) -> None:
    rows = dose_table(synthetic.frame(synthetic.rows(synthetic.arm())), judge=JUDGE)
    assert [row.steps for row in rows] == list(synthetic.doses)
    third = rows[2]
    assert third.rrr == pytest.approx(0.752) and third.rrr_low == pytest.approx(0.672)
    assert third.compliance_rate + third.degenerate_rate == pytest.approx(third.ce)
    assert (third.examples, third.n, third.n_effective) == (16, 155, 88.25)
    assert third.over_refusal_rate == pytest.approx(0.2 * 0.752)
    assert third.refusal_retention == pytest.approx(0.8)


def test_terminal_table_fits_100_columns_in_one_line_per_dose(synthetic: Any) -> None:
    text = rendered(synthetic.frame(synthetic.rows(synthetic.arm(), (0, 500, 100_000))))
    assert max(map(len, text.splitlines())) <= 100
    assert "0.940 [0.860, 1.000]" in text and "0.060 = 0.060 + 0.000" in text and "155 / 88.2" in text
    assert "demo | builtin:smollm2-135m-instruct" in text


def test_undefined_is_an_en_dash(synthetic: Any) -> None:
    arm = synthetic.arm()
    frame = synthetic.frame([synthetic.cell(arm, 0, "RRR", 0.5), synthetic.cell(arm, 2, "RRR", None)])
    first, second = dose_table(frame, judge=JUDGE)
    assert first.rrr == 0.5 and math.isnan(first.rrr_low) and math.isnan(second.rrr)
    lines = to_markdown(frame, JUDGE).splitlines()
    assert lines[4] == "| 0 | 0 | 0.500 [–] | – | – | – | – | 155 / 88.2 |"
    assert lines[5] == "| 2 | 16 | – | – | – | – | – | 155 / 88.2 |"


def test_one_table_per_arm_with_its_caption(synthetic: Any) -> None:
    text = to_markdown(synthetic.frame(synthetic.three_models()), JUDGE)
    assert text.count("| --- |") == 0 and text.count("| steps |") == 6
    assert text.count("seed=42") == 3 and text.count("TinyLlama-1.1B") == 2
    assert all(line.count("|") == len(HEADINGS) + 1 for line in text.splitlines() if line.startswith("|"))


def test_hostile_names_stay_text(synthetic: Any) -> None:
    frame = synthetic.frame(synthetic.rows(synthetic.arm("[red]x[/red]\x1b[31m|<b>\n# y"), (0,)))
    text = rendered(frame)
    assert "[red]x[/red] [31m|<b> # y" in text and "\x1b" not in text
    markdown = to_markdown(frame, JUDGE)
    assert "<b>" not in markdown and "\n#" not in markdown


def test_unreadable_is_told(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm(), (0, 1))
    for row in rows:
        row["n_unreadable"] = 4 if row["dose_steps"] else 0
    assert "up to 4 unreadable left out" in rendered(synthetic.frame(rows)).replace("\n", " ")


def test_unknown_judge_names_those_there(synthetic: Any) -> None:
    with pytest.raises(DataError, match="classifier@1"):
        dose_table(synthetic.frame(synthetic.rows(synthetic.arm(), (0,))), judge="llm@1")


def test_repeated_rows_are_refused(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm(), (0,))
    with pytest.raises(DataError, match="more than one"):
        dose_table(synthetic.frame(rows + rows), judge=JUDGE)
