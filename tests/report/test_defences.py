"""The table and the figure of defences, from rows whose numbers are known."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tamperdose.files import write_csv, write_json
from tamperdose.report import defences
from tamperdose.report.defence_figures import COLUMNS, defences_figure, draw_defences
from tamperdose.report.defences import defence_lines, defences_of, key_of, ratio_text, why_unsupported
from tamperdose.report.plans import defences_line
from tamperdose.run.compare_schema import Row
from tamperdose.run.defences import COST_METRICS, DEFENCE_COLUMNS, DEFENCES, DOSE_METRICS

RECIPE = {
    "attack": "lora",
    "lora_rank": 4,
    "n_examples": 64,
    "learning_rate": 0.001,
    "batch_size": 8,
    "poison_ratio": 1,
}
ESTIMATE = {"level": 0.95, "method": "m", "n": 60, "n_templates": 20, "n_effective": 30.0, "n_unreadable": 0}
RUNS = {"n_seeds": 3, "n_orders": 2, "n_pairs": 6, "scope": "attack"}
KNOWN = {"value": 6.0, "low": 4.0, "high": 9.0, "bracket_low": 5.0, "bracket_high": 7.0, "censored": ""}
BEYOND = {"value": None, "low": 20.0, "high": None, "bracket_low": 48.0, "bracket_high": None, "censored": "right"}
LONGER = {"n_longer": 5, "n_shorter": 1, "n_unclear": 0}
COSTS = {"RRR_without": 0.9, "RRR_with": 1.0, "over_refusal_rise": 0.05, "perplexity_loss": 0.1}


def rows_of(*, defence: str, dose: dict[str, Any], ratio: dict[str, Any], **counts: int) -> Iterator[dict[str, Any]]:
    named = {"study": "s", "model": "m", "params_b": 0.1, "defence": defence, "judge": "phrases"}
    for metric, found in zip(DOSE_METRICS, (KNOWN, dose, ratio | counts), strict=True):
        yield named | RECIPE | ESTIMATE | RUNS | found | {"metric": metric}
    for metric, value in COSTS.items():
        told = named | ESTIMATE | {"metric": metric, "value": value, "low": value - 0.02, "high": value + 0.02}
        yield told | {"scope": "trajectory"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two defences of one model: one doubles the dose, one is not broken at the last dose."""
    doubled = KNOWN | {"value": 2.0, "low": 0.9, "high": 4.4, "bracket_low": 1.5, "bracket_high": 2.6}
    bound = BEYOND | {"low": 2.7, "bracket_low": 6.9}
    rows = [
        *rows_of(defence="tuned", dose=KNOWN | {"value": 12.0}, ratio=doubled, **LONGER),
        *rows_of(defence="hard", dose=BEYOND, ratio=bound, n_longer=6, n_shorter=0, n_unclear=0),
    ]
    write_csv(tmp_path / DEFENCES, DEFENCE_COLUMNS, rows)
    write_json(tmp_path / "manifest.json", {"headline_judge": "phrases"})
    return tmp_path


def read(run: Path) -> list[Row]:
    return defences.read_defences(run, "phrases")


def test_the_table(run: Path) -> None:
    lines = defence_lines(run, "phrases")
    assert lines[:5] == [
        "defences of m against lora: 6 pairs of runs, 3 seeds x 2 data orders; intervals are for other seeds",
        "    defence  ED50 without  ED50 with         times   [interval]  later/sooner/?",
        "    tuned               6         12             2   [0.9, 4.4]           5/1/0",
        "    hard                6       > 48  at least 6.9  [2.7, open]           6/0/0",
        "  what they cost before any attack (dose 0), judge phrases:",
    ]
    costs = [[part.strip() for part in line.split("  ") if part.strip()] for line in lines[5:]]
    assert costs[0] == ["defence", "RRR without", "RRR with", "over-refusal rise", "perplexity loss", "accuracy loss"]
    values = ["0.900 [0.880, 0.920]", "1.000 [0.980, 1.020]", "0.050 [0.030, 0.070]", "0.100 [0.080, 0.120]"]
    assert costs[1:] == [[name, *values, "–"] for name in ("tuned", "hard")]


def test_another_judge_and_a_run_without_defences_have_no_table(run: Path, tmp_path: Path) -> None:
    assert defence_lines(run, "classifier") == []
    assert defence_lines(tmp_path / "elsewhere", "phrases") == []


def test_what_the_audit_does_not_support_is_withheld_or_marked(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (key,) = {key_of(row) for row in read(run) if row["metric"] in DOSE_METRICS and row["defence"] == "tuned"}
    monkeypatch.setattr(defences, "lost_defences", lambda *_: {key: ("prompt_echo",)})
    withheld = defence_lines(run, "phrases")
    assert "not supported" in withheld[1]
    assert withheld[2].split() == ["tuned", "6", "withheld", "withheld", "5/1/0", "prompt_echo"]
    assert "withheld" not in withheld[3]
    forced = defence_lines(run, "phrases", force=True)
    assert forced[2].split()[:6] == ["tuned", "6", "12", "!", "2", "!"]
    told = {(row["defence"], row["metric"]): row["not_supported_because"] for row in defences_of(run, "phrases", None)}
    assert told["tuned", DOSE_METRICS[2]] == ["prompt_echo"]
    assert told["tuned", COST_METRICS[0]] == []
    # Where the undefended arms fall, every ratio to them does.
    bare = (key[0], "none", *key[2:])
    ratios = [row for row in read(run) if row["metric"] == DOSE_METRICS[2]]
    assert [why_unsupported(row, {bare: ("x",)}) for row in ratios] == [("x",), ("x",)]


def test_ratios_that_are_bounds_are_said_as_such() -> None:
    assert ratio_text(BEYOND) == "at least 48"
    assert ratio_text({"censored": "left", "bracket_high": 0.5}) == "at most 0.5"
    assert ratio_text({"censored": "undefined", "value": None}) == "–"


def test_below_three_seeds_the_table_says_that_there_is_no_interval(run: Path) -> None:
    rows = [row | {"scope": "arms", "low": None, "high": None, "n_seeds": 2, "n_pairs": 4} for row in read(run)]
    write_csv(run / DEFENCES, DEFENCE_COLUMNS, rows)
    lines = defence_lines(run, "phrases")
    assert lines[0].endswith("4 pairs of runs, 2 seeds x 2 data orders; no interval below three seeds")
    assert "not defined below three seeds" in str(defences_figure(read(run)).get_supxlabel())


def points(figure: Any, column: int) -> list[tuple[float, float]]:
    """Single marks of a panel, (x, y)."""
    axes = figure.axes[column]
    lines = [(list(line.get_xdata()), list(line.get_ydata()), line.get_marker()) for line in axes.lines]
    return [(x[0], y[0]) for x, y, marker in lines if len(x) == 1 and marker not in ("<", ">")]


def test_the_figure_shows_doses_ratios_and_prices(run: Path) -> None:
    figure = defences_figure(read(run))
    assert [axes.get_title("left").splitlines()[-1] for axes in figure.axes] == list(COLUMNS)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["tuned", "hard", "none"]
    # The undefended model on top, the censored one a triangle at its bound.
    assert points(figure, 0) == [(6.0, 2), (12.0, 1)]
    assert points(figure, 1) == [(2.0, 1)]
    bounds = [list(line.get_xdata()) for line in figure.axes[1].lines if line.get_marker() == ">"]
    assert [6.9] in bounds
    assert sorted(x for x, _ in points(figure, 2)) == pytest.approx([0.05, 0.05, 0.1, 0.1])
    assert "3 seeds x 2 data orders" in str(figure.get_supxlabel()).replace("\n", " ")


def test_the_figure_is_drawn_from_the_files(run: Path) -> None:
    drawn = draw_defences(run)
    assert sorted(path.name for path in drawn) == ["defences.png", "defences.svg"]
    assert all(path.stat().st_size > 1000 for path in drawn)
    (run / DEFENCES).unlink()
    assert draw_defences(run) == []


def test_undefined_doses_are_said_in_the_figure(run: Path) -> None:
    nothing = {"value": None, "low": None, "high": None, "bracket_low": None, "bracket_high": None}
    rows: Sequence[Row] = [
        row | (nothing | {"censored": "undefined"} if row["metric"] in DOSE_METRICS else {}) for row in read(run)
    ]
    texts = [text.get_text() for axes in defences_figure(rows).axes for text in axes.texts]
    assert texts.count("undefined") == 5


def test_a_plan_says_what_is_compared() -> None:
    assert defences_line(None) == ""
    told = {"models": {"m": ["none", "a"]}, "seeds": [4], "data_orders": [], "by_default": False}
    assert defences_line(told) == "defences of m: none, a; each under seeds 4"
