"""Figures of breaking doses, drawn from a run's files alone: fitted curves, ED50 against size, rates by size and dose.

Each is saved as PNG and as SVG.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from tamperdose.records import Scope
from tamperdose.report.drawing import Frame, Key, grid_of, line_handle
from tamperdose.report.responses import read_json, read_responses
from tamperdose.report.select import Arm, arm_labels, headline_judge, list_arms, load_run, metric_rows, panel_name
from tamperdose.report.style import BLACK, BLUE, GREY, MARKERS, LineStyle, dose_axis, house_style, line_style, save_both
from tamperdose.run.compare_schema import Row
from tamperdose.run.response import DOSE_RESPONSE_JSON
from tamperdose.run.scale import SCALING_JSON
from tamperdose.run.schema import column

MAX_PANELS = 24
"""Models that the figure of fitted curves shows."""
RATES = {"RRR": "scaling_rrr", "CE": "scaling_ce", "RD": "scaling_rd"}
"""The metrics that have a figure by size and dose, and the files' names."""

_UNITS = {"steps": "optimizer steps", "tokens": "training tokens", "flops": "floating-point operations"}
Cells = dict[tuple[float, int], list[tuple[float, float]]]
"""(amount, value) of the runs of each (parameters, steps)."""

_NULL = LineStyle(GREY, "", (0, (2, 2)))
_FIT = LineStyle(BLUE, "", "-")


def draw_responses(run_dir: Path) -> list[Path]:
    """Draw `fitted_curves`, and where there are several sizes `ed50_scaling` and `scaling_*`, into `figures`.

    Raises:
        DataError: A file of the run is missing or damaged.
        RunError: The folder cannot be written.
    """
    judge, folder = headline_judge(run_dir), run_dir / "figures"
    fits = [fit for fit in read_json(run_dir / DOSE_RESPONSE_JSON).get("fits", []) if fit.get("judge") == judge]
    frame = load_run(run_dir)
    drawn = save_both(fitted_figure(fits, frame), folder / "fitted_curves") if fits else []
    recipes = read_json(run_dir / SCALING_JSON).get("recipes", [])
    if recipes:
        drawn += save_both(scaling_figure(recipes, read_responses(run_dir, judge)), folder / "ed50_scaling")
    return drawn + draw_rates(frame, folder)


def draw_rates(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw `scaling_rrr`, `scaling_ce` and `scaling_rd` where the frame holds models of two sizes or more."""
    if column(frame, "params_b").dropna().nunique() < 2:
        return []
    drawn: list[Path] = []
    for metric, name in RATES.items():
        if not metric_rows(frame, metric).empty:
            drawn += save_both(rates_figure(frame, metric), folder / name)
    return drawn


def fitted_figure(fits: Sequence[Mapping[str, Any]], frame: pd.DataFrame) -> Figure:
    """A panel for each model: measured rates, the fitted curve with its band, and ED50 with its interval or bracket."""
    arms = {arm.name: arm for arm in list_arms(frame)}
    known = [fit for fit in fits if fit["arm"] in arms]
    panels = list(dict.fromkeys(panel_name(arms[fit["arm"]], "model") for fit in known))[:MAX_PANELS]
    text = (
        "Points: RRR as measured, with intervals. Line and band: the fit that gives ED50 (log-logistic, or isotonic "
        "where that is refuted), pointwise intervals. Bar at the bottom: interval of ED50 for this run; thick: the two "
        "measured doses that the half lies between; arrow: open."
    )
    with house_style():
        figure, grid = grid_of(panels, Frame("Fitted dose-response (RRR)", text, _key_of(known, arms)))
        for panel, axes in zip(panels, grid, strict=True):
            shown = [fit for fit in known if panel_name(arms[fit["arm"]], "model") == panel]
            for place, fit in enumerate(shown):
                _draw_fit(axes, fit, line_style(place), place)
            dose_axis(axes, [int(dose) for dose in sorted({dose for fit in shown for dose in fit["doses"]})])
            axes.set_ylim(-0.06 - 0.05 * len(shown), 1.03)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
            axes.set_xlabel("dose, optimizer steps")
            axes.set_ylabel("RRR, share refused")
    return figure


def _key_of(fits: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm]) -> Key:
    """Names of the lines of the fullest panel; lines stand in the same order in every panel."""
    panels: dict[str, list[Arm]] = {}
    for fit in fits:
        panels.setdefault(panel_name(arms[fit["arm"]], "model"), []).append(arms[fit["arm"]])
    fullest = max(panels.values(), key=len, default=[])
    if len(fullest) < 2:
        return Key()
    names = arm_labels(fullest, facet="model")
    return Key(tuple(line_handle(line_style(k)) for k in range(len(fullest))), tuple(names))


def _draw_fit(axes: Axes, fit: Mapping[str, Any], look: LineStyle, place: int) -> None:
    curve, doses = fit["curve"], np.array(fit["doses"])
    rates = [rate["value"] for rate in fit["rates"]]
    axes.plot(curve["doses"], curve["value"], color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
    axes.fill_between(curve["doses"], curve["low"], curve["high"], color=look.colour, alpha=0.12, linewidth=0)
    axes.plot(doses, rates, look.marker, color=look.colour, markersize=3.2, linestyle="none", zorder=4)
    _draw_dose(axes, fit["effective_doses"]["ED50"], look, -0.06 - 0.05 * place, last=float(doses[-1]))


def _draw_dose(axes: Axes, dose: Mapping[str, Any], look: LineStyle, height: float, *, last: float) -> None:
    low, high = dose["low"], dose["high"]
    bracket_low, bracket_high = dose["bracket_low"], dose["bracket_high"]
    if low is not None:
        axes.plot([low, last if high is None else high], [height] * 2, color=look.colour, linewidth=1.0, zorder=3)
        if high is None:
            axes.plot([last], [height], ">", color=look.colour, markersize=4, zorder=3)
    if bracket_low is not None and bracket_high is not None:
        axes.plot([bracket_low, bracket_high], [height] * 2, color=look.colour, linewidth=3.2, zorder=3, alpha=0.6)
    if dose["value"] is not None:
        axes.plot([dose["value"]], [height], look.marker, color=look.colour, markersize=4, zorder=4)


def scaling_figure(recipes: Sequence[Mapping[str, Any]], responses: Sequence[Row]) -> Figure:
    """ED50 against parameters, a panel for each unit: arms, the line with its bands, and the slope of no effect."""
    recipe = max(recipes, key=lambda entry: len(entry["points"]["steps"]))
    units = [unit for unit in _UNITS if recipe["scaling"].get(unit)]
    method = {str(row["method"]) for row in responses if row["scope"] == Scope.TRAJECTORY.value}
    text = (
        "Points: ED50 of one run each, bars its interval, open triangles censored (bound shown). Line: meta-regression "
        "over sizes with between-model variance; dark band: 95 % interval of the line, light: of a new size's ED50. "
        f"Dashed: the slope if size did not matter. Intervals of points: {', '.join(sorted(method))}."
    )
    key = Key((line_handle(_FIT), line_handle(_NULL)), ("fit over sizes", "size does not matter"))
    panels = [f"{unit}: {_slope(recipe['scaling'][unit]['meta'])}" for unit in units]
    with house_style():
        figure, grid = grid_of(panels, Frame("Breaking dose (ED50) by model size", text, key))
        for unit, axes in zip(units, grid, strict=True):
            _draw_scaling(axes, recipe["points"][unit], recipe["scaling"][unit]["meta"])
            axes.set_xlabel("parameters")
            axes.set_ylabel(f"ED50, {_UNITS[unit]}")
    return figure


def _slope(fit: Mapping[str, Any]) -> str:
    slope = fit["slope"]
    if slope["value"] is None:
        return str(fit["reason"])
    ends = "" if slope["low"] is None else f" [{slope['low']:.2f}, {slope['high']:.2f}]"
    return f"slope {slope['value']:.2f}{ends}"


def _draw_scaling(axes: Axes, points: Sequence[Mapping[str, Any]], fit: Mapping[str, Any]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, subs in ((axes.xaxis, (1.0,)), (axes.yaxis, (1.0, 2.0, 5.0))):
        axis.set_major_locator(LogLocator(subs=subs))
        # Not matplotlib's own, which writes mathematics: here `$` is a letter.
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_formatter(NullFormatter())
    curve = fit["curve"]
    if curve:
        sizes = [at["n_parameters"] for at in curve]
        _draw_band(axes, curve, ("predict_low", "predict_high"), 0.10)
        _draw_band(axes, curve, ("low", "high"), 0.20)
        axes.plot(sizes, [at["value"] for at in curve], color=BLUE, linewidth=1.4, zorder=3)
        middle = curve[len(curve) // 2]
        null = [middle["value"] * (n / middle["n_parameters"]) ** fit["slope"]["null"] for n in sizes]
        axes.plot(sizes, null, color=GREY, linestyle=(0, (2, 2)), linewidth=1.0, zorder=2)
    for point in points:
        _draw_point(axes, point)


def _draw_band(axes: Axes, curve: Sequence[Mapping[str, Any]], ends: tuple[str, str], alpha: float) -> None:
    known = [at for at in curve if at[ends[0]] is not None and at[ends[1]] is not None]
    if known:
        low, high = ([at[end] for at in known] for end in ends)
        axes.fill_between([at["n_parameters"] for at in known], low, high, color=BLUE, alpha=alpha, linewidth=0)


def _draw_point(axes: Axes, point: Mapping[str, Any]) -> None:
    size, value, low, high = point["n_parameters"], point["value"], point["low"], point["high"]
    if value is None:
        bound, mark = (low, "^") if point["censored"] == "right" else (high, "v")
        if bound is not None:
            axes.plot([size], [bound], mark, color=BLACK, markerfacecolor="white", markersize=5, zorder=4)
        return
    if low is not None and high is not None:
        axes.plot([size, size], [low, high], color=BLACK, linewidth=0.7, alpha=0.6, zorder=3)
    axes.plot([size], [value], MARKERS[0], color=BLACK, markersize=3.2, zorder=4)


def rates_figure(frame: pd.DataFrame, metric: str) -> Figure:
    """A heat map of one metric over model size and attack tokens; arms of one model side by side in one row.

    Where tokens are not recorded, steps stand in their place. Seeds of one cell are averaged for the colour.
    """
    rows = metric_rows(frame, metric)
    unit = "tokens" if float(column(rows, "dose_tokens").fillna(0).max()) > 0 else "steps"
    cells = _cells(rows, f"dose_{unit}")
    ranges = {"RRR": "RRR, share refused", "CE": "CE, share not refused", "RD": "RD, median cosine distance"}
    text = (
        f"Each cell: {ranges[metric]}, mean over the runs of that size at that dose ({unit} averaged too). Sizes and "
        "doses are those that were measured; nothing is interpolated."
    )
    with house_style():
        figure, grid = grid_of([""], Frame(f"{metric} by model size and attack {unit}", text, Key()))
        _draw_cells(figure, grid[0], cells, label=ranges[metric], top=1.0 if metric != "RD" else None)
        grid[0].set_xlabel(f"attack dose, {'training tokens' if unit == 'tokens' else 'optimizer steps'}")
        grid[0].set_ylabel("model size, parameters")
    return figure


def _cells(rows: pd.DataFrame, unit: str) -> Cells:
    """(amount, value) of the runs of each (parameters, steps)."""
    found: Cells = {}
    for row in rows.to_dict("records"):
        size, steps, amount, value = (row[name] for name in ("params_b", "dose_steps", unit, "value"))
        if not any(pd.isna(number) for number in (size, steps, amount, value)):
            found.setdefault((float(size) * 1e9, int(steps)), []).append((float(amount), float(value)))
    return found


def _draw_cells(figure: Figure, axes: Axes, cells: Cells, *, label: str, top: float | None) -> None:
    sizes, doses = (sorted({place[k] for place in cells}) for k in (0, 1))
    grid = np.full((len(sizes), len(doses)), math.nan)
    for (size, steps), runs in cells.items():
        grid[sizes.index(size), doses.index(steps)] = np.mean([value for _, value in runs])
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=top)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label=label)
    amounts = [
        float(np.mean([run[0] for place in cells if place[1] == dose for run in cells[place]])) for dose in doses
    ]
    shown = range(0, len(doses), max(1, math.ceil(len(doses) / 8)))
    axes.set_xticks(list(shown), [f"{amounts[place]:.3g}" for place in shown], rotation=40)
    axes.set_yticks(range(len(sizes)), [f"{size:.2g}" for size in sizes])
