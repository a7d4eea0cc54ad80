"""The figure of a run's inside, drawn from `inside.csv` alone: layers x dose, for drift, AUC and the update's norm.

Saved as PNG and as SVG. Colours are told apart in grey too; what no longer separates is crossed.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from tamperdose.report.drawing import Frame, Key, table_of
from tamperdose.report.insides import read_inside_rows
from tamperdose.report.select import dose_label, dose_units
from tamperdose.report.style import BLACK, dose_text, house_style, save_both
from tamperdose.run.compare_schema import Row
from tamperdose.run.inside_results import AUC, DRIFT, UPDATE

MAX_RECIPES = 6
"""Rows of panels that the figure shows; beyond, its caption says how many there are."""
NAME = "inside_layers"
"""The files' name in `figures`."""

_TITLES = {
    DRIFT: "drift of the direction",
    AUC: "AUC along the base's direction",
    UPDATE: "norms, update / weights",
}
_LABELS = {DRIFT: "1 - cos", AUC: "AUC", UPDATE: "ratio of norms"}
_TICKS = 8

_Recipe = tuple[str, list[Row]]


def draw_inside(run_dir: Path) -> list[Path]:
    """Draw `inside_layers` into `figures` where the run looked inside.

    Raises:
        DataError: `inside.csv` is damaged.
        RunError: The folder cannot be written.
    """
    rows = [row for row in read_inside_rows(run_dir) if row["value"] is not None]
    if not any(int(str(row["dose_steps"])) > 0 for row in rows):
        return []
    return save_both(inside_figure(rows), run_dir / "figures" / NAME)


def inside_figure(rows: Sequence[Row]) -> Figure:
    """A row of heat maps for each recipe, its seeds averaged: a cell for each layer and measured dose.

    Args:
        rows: Of `inside.csv`, values defined.
    """
    recipes = _recipes(rows)
    shown = recipes[:MAX_RECIPES]
    kinds = [row["attack"] for _, mine in shown for row in mine]
    metrics = [metric for metric in _TITLES if any(row["metric"] == metric for _, mine in shown for row in mine)]
    with house_style():
        text = f"{_caption(rows, recipes)} {dose_units(kinds)}".rstrip()
        around = Frame("Inside the model: layers by dose", text, Key())
        figure, grid = table_of([name for name, _ in shown], [_TITLES[metric] for metric in metrics], around)
        for column, metric in enumerate(metrics):
            panels = [row[column] for row in grid]
            low, high = _limits(metric, shown)
            image = None
            for axes, (_, mine) in zip(panels, shown, strict=True):
                image = _draw(axes, [row for row in mine if row["metric"] == metric], low, high)
                axes.set_ylabel("layer" if column == 0 else "")
            panels[-1].set_xlabel(dose_label(kinds))
            if image is not None:
                figure.colorbar(image, ax=panels, label=_LABELS[metric])
    return figure


def _recipes(rows: Sequence[Row]) -> list[_Recipe]:
    """The rows of each recipe: arms that differ in the seed alone go together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["arm"]).removesuffix(f"-s{row['seed']}"), []).append(row)
    return list(found.items())


def _caption(rows: Sequence[Row], recipes: Sequence[_Recipe]) -> str:
    drift = next(row for row in rows if row["metric"] == DRIFT)
    n_seeds = max(len({row["seed"] for row in mine}) for _, mine in recipes)
    parts = [
        "Direction: mean state of harmful less benign prompts at the last prompt token, after each block. Drift: "
        "1 - cos between the untampered and the tampered model's; exactly 0 at dose 0. AUC: how well states of the "
        "tampered model, projected on the untampered model's direction (found on other templates), tell harmful from "
        "benign; 0.5 tells nothing.",
        f"{drift['n']} prompts in {drift['n_templates']} templates.",
        f"Means over up to {n_seeds} seeds." if n_seeds > 1 else "",
        "Crossed: does not separate (the interval of the AUC reaches 0.5), or has no direction beyond noise, in any "
        "seed."
        if any(row["state"] for row in rows)
        else "",
        "Doses and layers are those that were measured; nothing is interpolated. Intervals: inside.csv.",
        f"The first {MAX_RECIPES} of {len(recipes)} recipes are shown." if len(recipes) > MAX_RECIPES else "",
    ]
    return " ".join(part for part in parts if part)


def _limits(metric: str, recipes: Sequence[_Recipe]) -> tuple[float, float]:
    values = [_number(row["value"]) for _, mine in recipes for row in mine if row["metric"] == metric]
    if metric == AUC:
        return min(0.5, *values), 1.0
    return 0.0, max(values) or 1.0


def _draw(axes: Axes, rows: Sequence[Row], low: float, high: float) -> AxesImage:
    layers, doses = (sorted({int(str(row[name])) for row in rows}) for name in ("layer", "dose_steps"))
    values, lost = _cells(rows, layers, doses)
    image = axes.imshow(values, aspect="auto", origin="lower", cmap="cividis", vmin=low, vmax=high)
    for layer, dose in np.argwhere(lost):
        axes.plot(dose, layer, "x", color="white", markersize=6, markeredgewidth=2.0)
        axes.plot(dose, layer, "x", color=BLACK, markersize=5, markeredgewidth=0.9)
    axes.grid(visible=False)
    _ticks(axes, layers, doses)
    return image


def _cells(
    rows: Sequence[Row], layers: Sequence[int], doses: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Mean over seeds of each (layer, dose), NaN where there is none, and where every seed has something to say."""
    runs: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        place = layers.index(int(str(row["layer"]))), doses.index(int(str(row["dose_steps"])))
        runs.setdefault(place, []).append(row)
    values = np.full((len(layers), len(doses)), math.nan)
    lost = np.zeros(values.shape, dtype=np.bool_)
    for place, mine in runs.items():
        values[place] = np.mean([_number(row["value"]) for row in mine])
        lost[place] = all(row["state"] for row in mine)
    return values, lost


def _ticks(axes: Axes, layers: Sequence[int], doses: Sequence[int]) -> None:
    places = _shown(len(doses))
    axes.set_xticks(places, [dose_text(doses[place]) for place in places])
    places = _shown(len(layers))
    axes.set_yticks(places, [str(layers[place]) for place in places])


def _shown(count: int) -> list[int]:
    """The places that are labelled: evenly spread, the first and the last among them.

    >>> _shown(18)
    [0, 2, 5, 7, 10, 12, 15, 17]
    """
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, _TICKS))})


def _number(value: object) -> float:
    return float(str(value))
