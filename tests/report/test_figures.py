import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from PIL import Image

from tamperdose.errors import DataError
from tamperdose.report import figures
from tamperdose.report.drawing import MAX_LEGEND
from tamperdose.report.figures import ce_figure, dose_response_figure, draw_run, rd_figure, rrr_figure

BUILDERS = (rrr_figure, ce_figure, rd_figure, dose_response_figure)
HOSTILE = (
    "_$x_{1$",
    "$\\frac{1}{0}$",
    "=cmd|' /C calc'!A0",
    "<b>\x1b[31m\u202e",
    "千问" + "very-long-name-" * 20,
    "^%&~#",
)


def lay_out(figure: Figure) -> None:
    FigureCanvasAgg(figure).draw()


def pixels(figure: Figure) -> np.ndarray:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=60)
    return np.asarray(Image.open(stream).convert("L"))


def data_lines(axes: Axes) -> list[Any]:
    return [line for line in axes.lines if len(line.get_xdata()) and line.get_transform() == axes.transData]


def bands(axes: Axes) -> list[PolyCollection]:
    return [each for each in axes.collections if isinstance(each, PolyCollection)]


def bars(axes: Axes) -> list[LineCollection]:
    return [each for each in axes.collections if isinstance(each, LineCollection)]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []


def test_rrr_line_is_the_csv(synthetic: Any) -> None:
    frame = synthetic.frame(synthetic.rows(synthetic.arm()))
    axes = rrr_figure(frame).axes[0]
    rows = frame[frame["metric"] == "RRR"]
    (line,) = data_lines(axes)
    assert list(line.get_xdata()) == rows["dose_steps"].tolist()
    assert list(line.get_ydata()) == rows["value"].tolist()
    assert axes.get_ylim() == (0, 1)
    assert axes.get_xlabel() == "dose, optimizer steps" and "RRR" in axes.get_ylabel()


def test_rrr_band_is_the_interval(synthetic: Any) -> None:
    frame = synthetic.frame(synthetic.rows(synthetic.arm()))
    (band,) = bands(rrr_figure(frame).axes[0])
    drawn = {(float(x), float(y)) for x, y in band.get_paths()[0].vertices}
    rows = frame[frame["metric"] == "RRR"]
    expected = {(float(s), y) for s, *ys in rows[["dose_steps", "low", "high"]].itertuples(index=False) for y in ys}
    assert expected <= drawn


def test_zero_has_a_tick_apart_from_the_first_dose(synthetic: Any) -> None:
    axes = rrr_figure(synthetic.frame(synthetic.rows(synthetic.arm()))).axes[0]
    lay_out(axes.figure)
    labels = [tick.get_text() for tick in axes.get_xticklabels()]
    assert labels == ["0", "1", "2", "4", "8", "16"]
    places = [axes.transData.transform((dose, 0))[0] for dose in (0, 1, 2)]
    assert places[1] - places[0] > 0.1 * axes.bbox.width
    assert places[2] - places[1] > 0.1 * axes.bbox.width
    assert "//" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("doses", [(0,), (0, 4), (4,), (2, 4), (0, 1, 1000, 100_000), tuple(range(60))])
def test_any_ladder_draws(synthetic: Any, doses: tuple[int, ...]) -> None:
    frame = synthetic.frame(synthetic.rows(synthetic.arm(), doses))
    for build in BUILDERS:
        figure = build(frame)
        lay_out(figure)
        for axes in figure.axes:
            low, high = axes.get_xlim()
            assert low < min(doses) <= max(doses) < high
            shown = [tick for tick in axes.get_xticklabels() if tick.get_text()]
            boxes = sorted((tick.get_window_extent() for tick in shown), key=lambda box: box.x0)
            assert all(one.x1 < two.x0 for one, two in pairwise(boxes))


def test_missing_value_breaks_the_line_and_lone_interval_is_a_bar(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm())
    for row in rows:
        if row["dose_steps"] == 2:
            row.update(value="", low="", high="")
        if row["dose_steps"] == 0:
            row.update(low="", high="")
    axes = rrr_figure(synthetic.frame(rows)).axes[0]
    assert np.isnan(data_lines(axes)[0].get_ydata()).tolist() == [False, False, True, False, False, False]
    (bar,) = bars(axes)
    assert [segment[0][0] for segment in bar.get_segments()] == [1.0]


def test_no_interval_at_all_draws_no_band(synthetic: Any) -> None:
    rows = [row | {"low": "", "high": ""} for row in synthetic.rows(synthetic.arm())]
    figure = rrr_figure(synthetic.frame(rows))
    assert all(not len(path.vertices) for band in bands(figure.axes[0]) for path in band.get_paths())
    assert not bars(figure.axes[0])
    assert "No interval is defined" in figure.get_supxlabel().replace("\n", " ")


def test_undefined_metric_says_so(synthetic: Any) -> None:
    rows = [row for row in synthetic.rows(synthetic.arm()) if not row["metric"].startswith("RD")]
    figure = rd_figure(synthetic.frame(rows))
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text() != "//"] == ["undefined"]


def test_caption_carries_n_templates_interval_judge(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm())
    rows[0]["n_unreadable"] = 3
    caption = rrr_figure(synthetic.frame(rows)).get_supxlabel().replace("\n", " ")
    for part in ("n = 155 prompts", "31 templates", "95 %", "wilson_korn_graubard", "trajectory", "classifier@1"):
        assert part in caption
    assert "up to 3 unreadable" in caption and "lr 0.001" in caption


def test_each_arm_has_a_line_and_a_distinct_look(synthetic: Any) -> None:
    figure = rrr_figure(synthetic.frame(synthetic.three_models()))
    assert texts(figure)[:2] == ["TinyLlama-1.1B seed=42", "TinyLlama-1.1B seed=43"] and len(texts(figure)) == 6
    lines = data_lines(figure.axes[0])
    looks = {(line.get_marker(), str(line._dash_pattern)) for line in lines}
    assert len(lines) == 6 and len(looks) == 6
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()


def test_many_arms_share_panels_and_keep_their_values(synthetic: Any) -> None:
    rows = [
        row
        for rank in (4, 8, 16, 32)
        for rate in (1e-4, 2e-4, 5e-4)
        for seed in (1, 2)
        for row in synthetic.rows(
            synthetic.arm(rank=rank, seed=seed, learning_rate=rate, arm=f"{rank}/{rate}/{seed}"), half_dose=rank
        )
    ]
    frame = synthetic.frame(rows)
    figure = rrr_figure(frame)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["lr=0.0001", "lr=0.0002", "lr=0.0005"]
    assert [len(data_lines(axes)) for axes in figure.axes] == [8, 8, 8]
    assert len(texts(figure)) == 8 <= MAX_LEGEND
    split = ce_figure(frame)
    assert len(split.axes) == 24
    lay_out(split)
    legend = split.legends[0].get_window_extent()
    assert all(axes.get_tightbbox().x1 <= legend.x0 for axes in split.axes)


def test_long_legend_is_capped_and_says_so(synthetic: Any) -> None:
    rows = [row for seed in range(40) for row in synthetic.rows(synthetic.arm(seed=seed), (0, 4))]
    figure = rrr_figure(synthetic.frame(rows))
    assert len(texts(figure)) == MAX_LEGEND + 1
    assert texts(figure)[-1] == "and 14 more"
    assert len(data_lines(figure.axes[0])) == 40


def test_ce_panels_stack_up_to_ce(synthetic: Any) -> None:
    axes = ce_figure(synthetic.frame(synthetic.rows(synthetic.arm()))).axes[0]
    compliance, degenerate = bands(axes)
    ce = data_lines(axes)[0].get_ydata()
    assert compliance.get_paths()[0].vertices[:, 1].min() == 0
    assert degenerate.get_paths()[0].vertices[:, 1].max() == pytest.approx(max(ce))
    assert degenerate.get_hatch()
    assert len(bars(axes)[0].get_segments()) == len(synthetic.doses)


def test_ce_without_its_split_still_shows_ce(synthetic: Any) -> None:
    rows = [row for row in synthetic.rows(synthetic.arm()) if row["metric"] == "CE"]
    axes = ce_figure(synthetic.frame(rows)).axes[0]
    assert len(data_lines(axes)[0].get_xdata()) == len(synthetic.doses)


def test_rd_floor_is_a_reference_line(synthetic: Any) -> None:
    figure = rd_figure(synthetic.frame(synthetic.rows(synthetic.arm())))
    heights = [line.get_ydata() for line in figure.axes[0].lines if line not in data_lines(figure.axes[0])]
    assert [list(each) for each in heights] == [[0.21, 0.21]]
    assert any("RD floor" in text for text in texts(figure))
    assert figure.axes[0].get_ylim()[0] == 0 and 0.62 < figure.axes[0].get_ylim()[1] <= 2


def test_overview_shows_rates_above_and_rd_below(synthetic: Any) -> None:
    figure = dose_response_figure(synthetic.frame(synthetic.rows(synthetic.arm())))
    upper, lower = figure.axes
    assert len(data_lines(upper)) == 4 and len(data_lines(lower)) == 1
    assert upper.get_ylim() == (0, 1)
    assert lower.get_xlabel() == "dose, optimizer steps" and upper.get_xlabel() == ""
    assert upper.get_position().height > lower.get_position().height


def test_overview_has_a_column_per_model_and_says_what_it_leaves_out(synthetic: Any) -> None:
    assert len(dose_response_figure(synthetic.frame(synthetic.three_models())).axes) == 6
    rows = [row for k in range(6) for row in synthetic.rows(synthetic.arm(f"m{k}"), (0, 2))]
    figure = dose_response_figure(synthetic.frame(rows))
    assert len(figure.axes) == 8
    assert "first 4 of 6 models" in figure.get_supxlabel().replace("\n", " ")


def test_hostile_names_are_drawn_as_letters(synthetic: Any) -> None:
    rows = [row for name in HOSTILE for row in synthetic.rows(synthetic.arm(name), (0, 2, 4))]
    frame = synthetic.frame(rows)
    for build in BUILDERS:
        figure = build(frame)
        assert pixels(figure).std() > 0
        assert not any("\x1b" in text or "\u202e" in text for text in texts(figure))
    shown = texts(rrr_figure(frame))
    assert shown[:2] == ["_$x_{1$", "$\\frac{1}{0}$"] and len(shown) == len(HOSTILE)
    assert all(len(text) <= 44 for text in shown)


def test_lines_differ_in_grey(synthetic: Any) -> None:
    dark = pixels(rrr_figure(synthetic.frame(synthetic.three_models()))) < 170
    assert dark.mean() > 0.01


def test_several_judges_are_refused(synthetic: Any) -> None:
    rows = synthetic.rows(synthetic.arm())
    frame = synthetic.frame(rows + [row | {"judge": "phrases@1"} for row in rows if row["judge"]])
    with pytest.raises(DataError, match="select one judge"):
        rrr_figure(frame)


def test_draw_run_writes_the_same_bytes_twice(synthetic: Any) -> None:
    run = synthetic.run(synthetic.rows(synthetic.arm()), synthetic.folder / "run")
    first = {path.name: path.read_bytes() for path in draw_run(run)}
    assert sorted(first) == ["CE_compare.png", "RD_compare.png", "RRR_compare.png", "dose_response.png"]
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "text.parse_math": True}):
        second = {path.name: path.read_bytes() for path in draw_run(run)}
    assert first == second
    for path in (run / "figures").iterdir():
        with Image.open(path) as image:
            image.verify()
            assert "Software" not in image.info


def test_without_drift_there_is_no_figure_of_it(synthetic: Any) -> None:
    rows = [row for row in synthetic.rows(synthetic.arm()) if not row["metric"].startswith("RD")]
    run = synthetic.run(rows, synthetic.folder / "run")
    left = run / "figures" / "RD_compare.png"
    left.parent.mkdir()
    left.write_bytes(b"of an earlier run")
    assert sorted(path.name for path in draw_run(run)) == ["CE_compare.png", "RRR_compare.png", "dose_response.png"]
    assert not left.exists()


def test_draw_run_uses_the_headline_judge(synthetic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = synthetic.rows(synthetic.arm())
    others = [row | {"judge": "phrases@1", "value": 0.25, "low": "", "high": ""} for row in rows if row["judge"]]
    run = synthetic.run(rows + others, synthetic.folder / "run", "phrases@1")
    drawn: dict[str, Figure] = {}

    def keep(figure: Figure, path: Path) -> Path:
        drawn[path.name] = figure
        return path

    monkeypatch.setattr(figures, "save_png", keep)
    draw_run(run)
    assert set(data_lines(drawn["RRR_compare.png"].axes[0])[0].get_ydata()) == {0.25}


def test_pyplot_is_not_loaded() -> None:
    assert "tamperdose.report.figures" in sys.modules
    assert "matplotlib.pyplot" not in sys.modules
