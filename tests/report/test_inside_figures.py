"""The heat maps hold the numbers they were given, in grey too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure

from tamperdose.files import write_csv
from tamperdose.report.inside_figures import MAX_RECIPES, draw_inside, inside_figure
from tamperdose.report.insides import inside_lines, read_inside_rows
from tamperdose.run.inside_results import AUC, DRIFT, INSIDE_COLUMNS, UPDATE

DOSES, N_LAYERS = (0, 2, 4, 16), 30


def planted_rows(n_arms: int = 1, seeds: tuple[int, ...] = (42,)) -> list[dict[str, Any]]:
    """Drift that rises with layer and dose, and an AUC that the last layers lose at the last dose."""
    rows: list[dict[str, Any]] = []
    for arm in range(n_arms):
        for seed in seeds:
            for dose in DOSES:
                for layer in range(1, N_LAYERS + 1):
                    drift = 0.9 * layer / N_LAYERS * np.log1p(dose) / np.log(17)
                    lost = dose == 16 and layer > 24
                    auc = 0.5 if lost else 1 - drift / 4
                    state = (
                        "the untampered model's direction no longer separates: AUC 0.50 [0.40, 0.60]" if lost else ""
                    )
                    values = {DRIFT: drift, AUC: auc} | ({UPDATE: 0.001 * dose} if dose else {})
                    rows += [
                        {
                            **dict.fromkeys(INSIDE_COLUMNS, ""),
                            "study": "planted",
                            "arm": f"m{arm}-lora-r8-s{seed}",
                            "model": f"m{arm}",
                            "seed": seed,
                            "dose_steps": dose,
                            "layer": layer,
                            "metric": metric,
                            "value": value,
                            "n": 120,
                            "n_templates": 110,
                            "state": state if metric != UPDATE else "",
                        }
                        for metric, value in values.items()
                    ]
    return rows


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_csv(tmp_path / "inside.csv", INSIDE_COLUMNS, planted_rows())
    return tmp_path


def _images(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]


def test_every_cell_holds_its_number(run: Path) -> None:
    drift, auc, update = _images(inside_figure(read_inside_rows(run)))[:3]
    assert drift.shape == (N_LAYERS, len(DOSES))
    assert drift[-1, -1] == pytest.approx(0.9)
    assert drift[0, 0] == 0
    assert auc[-1, -1] == pytest.approx(0.5)
    assert update.shape == (N_LAYERS, len(DOSES) - 1)


def test_what_no_longer_separates_is_crossed_and_nothing_else(run: Path) -> None:
    figure = inside_figure(read_inside_rows(run))
    panels = [axes for axes in figure.axes if axes.images and axes.get_title(loc="left")]
    crossed = [sum(line.get_color() != "white" for line in axes.lines) for axes in panels]
    assert crossed == [6, 6, 0]


def test_seeds_are_averaged_and_recipes_counted() -> None:
    rows = planted_rows(n_arms=MAX_RECIPES + 1, seeds=(1, 2))
    figure = inside_figure(rows)
    panels = [axes for axes in figure.axes if axes.images and axes.get_ylabel() != ""]
    assert len([axes for axes in panels if axes.get_ylabel() == "layer"]) == MAX_RECIPES
    text = figure._supxlabel.get_text().replace("\n", " ")
    assert f"The first {MAX_RECIPES} of {MAX_RECIPES + 1} recipes" in text
    assert "up to 2 seeds" in text


def test_colours_can_be_told_apart_in_grey() -> None:
    grey = colormaps["cividis"](np.linspace(0, 1, 9))[:, :3] @ [0.299, 0.587, 0.114]
    assert np.min(np.diff(grey)) > 0.05


def test_the_same_rows_give_the_same_bytes(run: Path) -> None:
    first = [path.read_bytes() for path in draw_inside(run)]
    assert first == [path.read_bytes() for path in draw_inside(run)]


def test_the_lines_name_the_layers_that_lost_it(run: Path) -> None:
    lines = inside_lines(run)
    assert "at dose 16 the refusal direction has turned by 0.4" in lines[0]
    assert "no longer separates: layer 25 AUC 0.50 [0.40, 0.60]" in lines[1]
    assert "and 3 layers more" in lines[1]
