from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tamperdose.errors import DataError
from tamperdose.files import write_csv
from tamperdose.report import combined
from tamperdose.report.combined import combine, combined_names, combined_rows, draw_combined
from tamperdose.report.select import list_arms
from tamperdose.run.schema import COMBINED_COLUMNS, read_combined, read_metrics

FIGURES = {"RRR_compare.png", "CE_compare.png", "RD_compare.png"}


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combined, "draw_compare", lambda frame, folder, audits: [folder / "RRR_compare.png"])


def test_combined_rows_are_the_headline_values(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm("Qwen2-7B"))
    others = [row | {"judge": "phrases@1", "value": 0.25, "low": "", "high": ""} for row in rows if row["judge"]]
    run = synthetic.run(rows + others, synthetic.folder / "run")
    out = synthetic.folder / "out"
    written = combine([run], out)
    assert {path.name for path in written} == FIGURES | {"demo.csv", "combined_results_standardized.csv"}
    table = read_combined(out / "metrics/combined_results_standardized.csv")
    assert table["Model"].unique().tolist() == ["Qwen2-7B"]
    assert table["Steps"].tolist() == list(synthetic.doses)
    expected = [row["value"] for row in rows if row["metric"] == "RRR"]
    assert table["RRR"].tolist() == expected
    assert table["RD"].iloc[0] == 0


@pytest.mark.usefixtures("no_figures")
def test_copy_holds_every_row(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm(lora_rank="", params_b=""))
    rows[0]["value"] = rows[0]["low"] = rows[0]["high"] = ""
    run = synthetic.run(rows, synthetic.folder / "run")
    combine([run], synthetic.folder / "out")
    copy = read_metrics(synthetic.folder / "out/metrics/demo.csv")
    assert copy.equals(read_metrics(run / "metrics.csv"))


def test_several_arms_of_a_model_are_named_not_averaged(synthetic: Any) -> None:
    rows = synthetic.three_models() + synthetic.rows(synthetic.arm("lone", params_b=70))
    names = list(combined_names(list_arms(synthetic.frame(rows))).values())
    assert names[:2] == ["TinyLlama-1.1B [seed=42]", "TinyLlama-1.1B [seed=43]"]
    assert names[-1] == "lone"


@pytest.mark.usefixtures("no_figures")
def test_same_arm_of_two_studies_is_told_apart(synthetic: Any) -> None:
    one = synthetic.run(synthetic.rows(synthetic.arm("m"), (0, 1)), synthetic.folder / "one")
    two = synthetic.run(synthetic.rows(synthetic.arm("m", study="other"), (0, 1)), synthetic.folder / "two")
    combine([one, two], synthetic.folder / "out")
    table = read_combined(synthetic.folder / "out/metrics/combined_results_standardized.csv")
    assert sorted(table["Model"].unique()) == ["m [demo]", "m [other]"]


@pytest.mark.usefixtures("no_figures")
def test_each_run_keeps_its_own_headline_judge(synthetic: Any) -> None:
    one = synthetic.run(synthetic.rows(synthetic.arm("m"), (0, 1)), synthetic.folder / "one")
    rows = [row | {"judge": row["judge"] and "llm@2"} for row in synthetic.rows(synthetic.arm("k", study="other"))]
    two = synthetic.run(rows, synthetic.folder / "two", "llm@2")
    combine([one, two], synthetic.folder / "out")
    table = read_combined(synthetic.folder / "out/metrics/combined_results_standardized.csv")
    assert table["RRR"].notna().all() and set(table["Model"]) == {"m", "k"}


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("study", ["../../escape", "/etc/passwd", "..", "a\\b", "x" * 400, "=cmd", "千"])
def test_study_names_stay_in_the_folder(synthetic: Any, study: str) -> None:
    run = synthetic.run(synthetic.rows(synthetic.arm("m", study=study), (0,)), synthetic.folder / "run")
    written = combine([run], synthetic.folder / "out")
    assert all(path.resolve().parent.parent == (synthetic.folder / "out").resolve() for path in written)


@pytest.mark.parametrize("study", ["demo", "DEMO", "combined_results_standardized"])
def test_names_that_meet_are_refused_before_anything_is_written(synthetic: Any, study: str) -> None:
    one = synthetic.run(synthetic.rows(synthetic.arm("m"), (0,)), synthetic.folder / "one")
    two = synthetic.run(synthetic.rows(synthetic.arm("m", study=study), (0,)), synthetic.folder / "two")
    with pytest.raises(DataError, match="would overwrite"):
        combine([one, two], synthetic.folder / "out")
    assert not (synthetic.folder / "out").exists()


def test_no_runs_and_mixed_studies_are_refused(synthetic: Any) -> None:
    with pytest.raises(DataError, match="no runs"):
        combine([], synthetic.folder)
    rows = synthetic.rows(synthetic.arm("m"), (0,)) + synthetic.rows(synthetic.arm("m", study="other"), (0,))
    with pytest.raises(DataError, match="exactly one study"):
        combine([synthetic.run(rows, synthetic.folder / "run")], synthetic.folder / "out")


def test_combined_table_redraws_the_figures_to_the_same_bytes(synthetic: Any) -> None:
    frame = synthetic.frame(synthetic.three_models())
    table = write_csv(synthetic.folder / "combined.csv", COMBINED_COLUMNS, combined_rows(frame))
    first = draw_combined(table, synthetic.folder / "a")
    second = draw_combined(table, synthetic.folder / "b")
    assert {path.name for path in first} == FIGURES
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
        with Image.open(one) as image:
            image.verify()


def test_combined_table_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("Model,Steps,RRR,CE,RD\n")
    with pytest.raises(DataError, match="no rows"):
        draw_combined(tmp_path / "c.csv", tmp_path)
