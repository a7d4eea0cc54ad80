"""One figure for all attacks: what stands on its axis, and that it is drawn where there is something to compare."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

from tamperdose.report.attack_figures import attacks_figure, draw_attacks


def attack_rows(synthetic: Any, kind: str, *, flops: float, **more: Any) -> list[dict[str, Any]]:
    rows = synthetic.rows(synthetic.arm(arm=f"{kind}-arm", attack=kind, **more))
    return [row | {"dose_flops": flops * int(row["dose_steps"])} for row in rows]


def frame_of(synthetic: Any, *parts: list[dict[str, Any]]) -> pd.DataFrame:
    return synthetic.frame([row for part in parts for row in part])


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


@pytest.fixture
def frame(synthetic: Any) -> pd.DataFrame:
    return frame_of(
        synthetic,
        attack_rows(synthetic, "lora", flops=1e12),
        attack_rows(synthetic, "full", flops=2e12),
        attack_rows(synthetic, "prefill", flops=0.0),
    )


def test_every_attack_has_its_place(frame: pd.DataFrame) -> None:
    figure = attacks_figure(frame)
    (axes,) = figure.axes
    assert legend(figure) == ["lora", "full", "prefill", "untampered"]
    lines = {
        line.get_color(): [float(x) for x in line.get_xdata()] for line in axes.lines if len(line.get_xdata()) == 5
    }
    xs = sorted(lines.values(), key=lambda line: line[0])
    # What costs nothing stands left of the cheapest dose, in order, within the axis.
    assert axes.get_xlim()[0] < xs[0][0] < xs[0][-1] < 1e12
    assert xs[0] == sorted(xs[0])
    assert xs[1] == [1e12, 2e12, 4e12, 8e12, 16e12]
    assert xs[2] == [2e12, 4e12, 8e12, 16e12, 32e12]
    assert "none" in [text.get_text() for text in axes.texts]


def test_without_free_attacks_there_is_no_band(synthetic: Any) -> None:
    parts = [attack_rows(synthetic, kind, flops=1e12) for kind in ("lora", "full")]
    figure = attacks_figure(frame_of(synthetic, *parts))
    assert "none" not in [text.get_text() for text in figure.axes[0].texts]
    assert "At the left" not in figure.get_supxlabel()


def test_it_is_drawn_where_there_are_several_attacks(tmp_path: Path, synthetic: Any, frame: pd.DataFrame) -> None:
    drawn = draw_attacks(frame, tmp_path / "figures")
    assert sorted(path.name for path in drawn) == ["attacks_by_flops.png", "attacks_by_flops.svg"]
    before = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in draw_attacks(frame, tmp_path / "figures")] == before
    parts = [attack_rows(synthetic, kind, flops=1e12) for kind in ("lora", "random_adapter")]
    one = frame_of(synthetic, *parts)
    assert draw_attacks(one, tmp_path / "figures") == []


def test_models_and_defences_have_panels(synthetic: Any) -> None:
    parts = [attack_rows(synthetic, "lora", flops=1e12), attack_rows(synthetic, "prefill", flops=0.0)]
    other = [[row | {"arm": f"x-{row['arm']}", "defence": "none"} for row in part] for part in parts]
    figure = attacks_figure(frame_of(synthetic, *parts, *other))
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "builtin:smollm2-135m-instruct, defence\nrefusal_tuning",
        "builtin:smollm2-135m-instruct, defence\nnone",
    ]


def test_arms_of_one_kind_are_told_apart(synthetic: Any) -> None:
    slow = [row | {"arm": "slow", "learning_rate": 1e-4} for row in attack_rows(synthetic, "full", flops=1e12)]
    parts = [attack_rows(synthetic, kind, flops=1e12) for kind in ("lora", "full")]
    names = legend(attacks_figure(frame_of(synthetic, *parts, slow)))
    assert names[:3] == ["lora", "full lr=0.001", "full lr=0.0001"]


def test_only_free_attacks(synthetic: Any) -> None:
    parts = [attack_rows(synthetic, kind, flops=0.0) for kind in ("prefill", "other")]
    figure = attacks_figure(frame_of(synthetic, *parts))
    assert figure.axes[0].get_xlim()[0] > 0
