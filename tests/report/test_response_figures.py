"""What the figures of breaking doses show of intervals, recipes, open ends and of what the audit does not support."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from observations import arm
from tamperdose.audit.findings import Audit, CellId, CheckResult, Claim, Outcome
from tamperdose.records import Subset
from tamperdose.report import response_figures
from tamperdose.report.response_figures import fitted_figure, rates_figure, scaling_figure
from tamperdose.report.responses import read_fits
from tamperdose.run.response import fit_arms, write_dose_response
from tamperdose.stats.scaling import DoseUnit, scaling, to_dict
from tamperdose.stats.sizes import SizePoint

HOLLOW = "hollow: not supported by the audit"
BROKEN = [
    SizePoint(f"m{n:g}", n, dose, dose / 1.1, dose * 1.1)
    for n, dose in [(1e8, 10.0), (3e8, 10.3), (1e9, 9.8), (1e10, 10.1)]
]
HELD = [SizePoint(f"m{n:g}", n, None, 2000.0, None, censored="right") for n in (1e11, 5e11)]


def below(figure: Figure) -> str:
    return " ".join(figure.get_supxlabel().split())


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def hollow_xs(axes: Axes) -> list[float]:
    lines = [line for line in axes.lines if line.get_markerfacecolor() == "white" and line.get_marker() in ("o", "s")]
    return sorted(float(x) for line in lines for x in np.asarray(line.get_xdata()))


def failed_at(arm: str, *doses: int) -> Audit:
    cells = tuple(CellId(arm, dose, Subset.HARMFUL) for dose in doses)
    claims = (Claim.RRR, Claim.LOSS)
    return Audit(cells, (CheckResult("degeneration", Outcome.FAIL, claims, cells, 0.5, "10%", "found", "mend it"),))


def recipe(points: list[SizePoint], *, level: float = 0.95, **settings: Any) -> dict[str, Any]:
    return {
        "recipe": {"defence": "none", "learning_rate": 1e-3} | settings,
        "points": {"steps": [to_dict(point) for point in points]},
        "scaling": {"steps": to_dict(scaling(points, DoseUnit.STEPS, level=level))},
        "claims": [],
    }


def fitted(synthetic: Any, folder: Path, arms: list[tuple[str, float]], audits: Any = None) -> Figure:
    """One fitted arm for each (model, learning rate), in this order."""
    observations = [
        seen for model, rate in arms for seen in arm(6.0, model=model, learning_rate=rate, params_b=len(model))
    ]
    write_dose_response(folder, fit_arms(observations, level=0.95), level=0.95)
    rows = [
        row
        for model, rate in arms
        for row in synthetic.rows(
            synthetic.arm(model, seed=1, learning_rate=rate, arm=f"{model}-lr{rate}-s1", params_b=len(model)),
            doses=(0, 1),
        )
    ]
    return fitted_figure(read_fits(folder, "truth"), synthetic.frame(rows), *([] if audits is None else [audits]))


def test_measured_rates_have_their_intervals(synthetic: Any, tmp_path: Path) -> None:
    axes = fitted(synthetic, tmp_path, [("m", 1e-3)]).axes[0]
    upright = [line for line in axes.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    assert sorted(line.get_xdata()[0] for line in upright) == [0, 1, 2, 4, 8, 16, 32]


def test_an_arm_has_the_colour_that_the_legend_gives_it(synthetic: Any, tmp_path: Path) -> None:
    figure = fitted(synthetic, tmp_path, [("a", 2e-3), ("bb", 1e-3), ("bb", 2e-3)])
    shown = figure.legends[0]
    colours = {
        text.get_text(): line.get_color() for text, line in zip(shown.get_texts(), shown.get_lines(), strict=True)
    }
    assert list(colours) == ["lr=0.002", "lr=0.001"]
    drawn = [{line.get_color() for line in axes.lines} for axes in figure.axes]
    assert drawn == [{colours["lr=0.002"]}, set(colours.values())]


def test_models_that_have_no_room_are_counted(synthetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_figures, "MAX_PANELS", 1)
    assert "The first 1 of 2 models are shown." in below(fitted(synthetic, tmp_path, [("a", 1e-3), ("bb", 1e-3)]))


def test_fitted_points_and_ed50_without_support_are_hollow(synthetic: Any, tmp_path: Path) -> None:
    name = "m-lr0.001-s1"
    figure = fitted(synthetic, tmp_path, [("m", 1e-3)], {"demo": failed_at(name, 4, 32)})
    assert len(hollow_xs(figure.axes[0])) == 3
    assert {4, 32} < set(hollow_xs(figure.axes[0]))
    assert HOLLOW in legend(figure)
    assert "RRR not supported: degeneration; loss of refusals not supported: degeneration" in below(figure)
    after = fitted(synthetic, tmp_path, [("m", 1e-3)], {"demo": failed_at(name, 32)})
    assert hollow_xs(after.axes[0]) == [32]


def test_each_recipe_has_its_panel_and_its_name() -> None:
    figure = scaling_figure([recipe(BROKEN), recipe(BROKEN, learning_rate=2e-3)], [])
    titles = [" ".join(axes.get_title(loc="left").split()) for axes in figure.axes]
    assert [title.split(": ")[0] for title in titles] == ["learning rate 0.001", "learning rate 0.002"]
    assert scaling_figure([recipe(BROKEN), recipe(BROKEN[:1], learning_rate=2e-3)], []).axes[1:] == []


def test_the_caption_tells_the_level_of_the_file() -> None:
    assert "90 % interval of the line" in below(scaling_figure([recipe(BROKEN, level=0.9)], []))


def test_sizes_left_out_bring_the_censored_line() -> None:
    told = recipe([*BROKEN, *HELD])
    figure = scaling_figure([told], [])
    line = next(line for line in figure.axes[0].lines if len(line.get_xdata()) > 2)
    assert max(line.get_xdata()) == pytest.approx(5e11)
    slope = told["scaling"]["steps"]["censored"]["slope"]["value"]
    assert f"slope {slope:.2f}" in figure.axes[0].get_title(loc="left")
    assert "the censored fit where sizes have censored arms" in below(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()]


@pytest.mark.parametrize(("low", "high", "n_arrows"), [(None, 12.0, 1), (8.0, None, 1), (8.0, 12.0, 0)])
def test_an_end_that_is_open_or_zero_has_an_arrow(low: float | None, high: float | None, n_arrows: int) -> None:
    axes = scaling_figure([recipe([*BROKEN, SizePoint("x", 3e9, 10.0, low, high)])], []).axes[0]
    assert sum(isinstance(child, Annotation) for child in axes.get_children()) == n_arrows


def test_a_size_whose_arm_has_no_support_is_hollow() -> None:
    row: dict[str, Any] = {"scope": "trajectory", "method": "x", "arm": "a", "model": "m1e+09", "seed": None}
    rows = [row | {"defence": "none", "learning_rate": 1e-3}]
    figure = scaling_figure([recipe(BROKEN), recipe(BROKEN, learning_rate=2e-3)], rows, lost={"a"})
    assert [hollow_xs(axes) for axes in figure.axes] == [[1e9], []]
    assert HOLLOW in legend(figure)


def test_rates_by_size_say_what_is_averaged_and_cross_out_what_has_no_support(synthetic: Any) -> None:
    arms = [synthetic.arm("a", params_b=1.0), synthetic.arm("b", params_b=2.0, learning_rate=2e-3)]
    arms += [synthetic.arm("b", params_b=2.0, rank=64)]
    frame = synthetic.frame([row for each in arms for row in synthetic.rows(each)])
    plain = rates_figure(frame, "RRR")
    assert "which differ in LoRA rank, learning rate." in below(plain)
    figure = rates_figure(frame, "RRR", {"demo": failed_at(arms[2]["arm"], 8)})
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert {(int(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in crosses} == {(4, 1)}
    assert "Crossed out" in below(figure)
    assert "Crossed out" not in below(plain)
