"""Figures of breaking doses, drawn from a run's files alone: fitted curves, ED50 against size, rates by size and dose.

Each is saved as PNG and as SVG.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from tamperdose.audit.findings import Claim, withheld
from tamperdose.records import Scope
from tamperdose.report.captions import audit_text
from tamperdose.report.drawing import Frame, Key, grid_of, line_handle, unsupported_handle
from tamperdose.report.lost_doses import Fits, lost_arms, why_lost
from tamperdose.report.marginals import factor_name
from tamperdose.report.responses import read_fits, read_json, read_responses, well_formed
from tamperdose.report.scalings import different_settings, line_fit, n_censored, slope_text
from tamperdose.report.select import (
    NO_AUDITS,
    Arm,
    Audits,
    arm_labels,
    dose_label,
    dose_units,
    headline_judge,
    list_arms,
    load_run,
    metric_rows,
    panel_name,
)
from tamperdose.report.style import BLACK, BLUE, GREY, MARKERS, LineStyle, dose_axis, house_style, line_style, save_both
from tamperdose.run.compare_schema import Row
from tamperdose.run.response import SETTINGS
from tamperdose.run.scale import SCALING_JSON
from tamperdose.run.schema import column
from tamperdose.stats.gate import Gate

MAX_PANELS = 24
"""Panels that a figure shows; beyond, its caption says how many there are."""
RATES = {"RRR": "scaling_rrr", "CE": "scaling_ce", "RD": "scaling_rd"}
"""The metrics that have a figure by size and dose, and the files' names."""

_UNITS = {"steps": "optimizer steps", "tokens": "training tokens", "flops": "floating-point operations"}
Cells = dict[tuple[float, int], list[tuple[float, float]]]
"""(amount, value) of the runs of each (parameters, steps)."""

_NULL = LineStyle(GREY, "", (0, (2, 2)))
_UNSUPPORTED = "hollow: not supported by the audit"
_FIT = LineStyle(BLUE, "", "-")


def draw_responses(run_dir: Path, audits: Audits = NO_AUDITS) -> list[Path]:
    """Draw `fitted_curves`, and where there are several sizes `ed50_scaling` and `scaling_*`, into `figures`.

    What the audits leave without support is hollow, or in the figures by size and dose crossed out.

    Raises:
        DataError: A file of the run is missing or damaged.
        RunError: The folder cannot be written.
    """
    with well_formed(run_dir):
        return _drawn_responses(run_dir, audits)


def _drawn_responses(run_dir: Path, audits: Audits) -> list[Path]:
    judge, folder = headline_judge(run_dir), run_dir / "figures"
    fits, frame = read_fits(run_dir, judge), load_run(run_dir)
    drawn = save_both(fitted_figure(fits, frame, audits), folder / "fitted_curves") if fits else []
    recipes = read_json(run_dir / SCALING_JSON).get("recipes", [])
    if any(has_several_sizes(recipe) for recipe in recipes):
        responses = read_responses(run_dir, judge)
        lost = {arm for audit in audits.values() for arm in lost_arms(fits, audit)}
        drawn += save_both(scaling_figure(recipes, responses, lost=lost, audits=audits), folder / "ed50_scaling")
    return drawn + draw_rates(frame, folder, audits)


def draw_rates(frame: pd.DataFrame, folder: Path, audits: Audits = NO_AUDITS) -> list[Path]:
    """Draw `scaling_rrr`, `scaling_ce` and `scaling_rd` where the frame holds models of two sizes or more."""
    if column(frame, "params_b").dropna().nunique() < 2:
        return []
    drawn: list[Path] = []
    for metric, name in RATES.items():
        if not metric_rows(frame, metric).empty:
            drawn += save_both(rates_figure(frame, metric, audits), folder / name)
    return drawn


def fitted_figure(fits: Fits, frame: pd.DataFrame, audits: Audits = NO_AUDITS) -> Figure:
    """A panel for each model: measured rates, the fitted curve with its band, and ED50 with its interval or bracket."""
    arms = {arm.name: arm for arm in list_arms(frame)}
    known = [fit for fit in fits if fit["arm"] in arms]
    models = list(dict.fromkeys(panel_name(arms[fit["arm"]], "model") for fit in known))
    panels, looks = models[:MAX_PANELS], _looks_of(known, arms)
    kinds = [dict(arms[fit["arm"]].settings).get("attack") for fit in known]
    parts = (
        "Points: RRR as measured, with intervals. Line and band: the fit that gives ED50 (log-logistic, or isotonic "
        "where that is refuted), pointwise intervals. Bar at the bottom: interval of ED50 for this run; thick: the two "
        "measured doses that the half lies between; arrow: open.",
        f"The first {MAX_PANELS} of {len(models)} models are shown." if len(models) > MAX_PANELS else "",
        gate_text(known),
        dose_units(kinds),
        audit_text(audits, (Claim.RRR, Claim.LOSS)),
    )
    text = " ".join(part for part in parts if part)
    lost = {fit["arm"]: _hollow_doses(fit, arms[fit["arm"]], audits) for fit in known}
    key = _key_of(looks, hollow=any(doses or ed50 for doses, ed50 in lost.values()))
    with house_style():
        figure, grid = grid_of(panels, Frame("Fitted dose-response (RRR)", text, key))
        for panel, axes in zip(panels, grid, strict=True):
            shown = [fit for fit in known if panel_name(arms[fit["arm"]], "model") == panel]
            for place, fit in enumerate(shown):
                _draw_fit(axes, fit, looks[fit["arm"]][1], place, *lost[fit["arm"]])
            dose_axis(axes, [int(dose) for dose in sorted({dose for fit in shown for dose in fit["doses"]})])
            axes.set_ylim(-0.06 - 0.05 * len(shown), 1.03)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
            axes.set_xlabel(dose_label(kinds))
            axes.set_ylabel("RRR, share refused")
    return figure


def gate_text(fits: Fits) -> str:
    """Say how many of the ED50 that there are passed the gate, and how the others ended.

    >>> gate_text([{"gate": "passed"}, {"gate": "broken"}, {"gate": ""}])
    'Gate at ED50: 1 of 2 passed, 1 broken.'
    """
    ends = Counter(str(fit.get("gate", "")) for fit in fits)
    ends.pop("", None)
    if not ends:
        return ""
    others = [f"{count} {name.replace('_', ' ')}" for name, count in sorted(ends.items()) if name != Gate.PASSED.value]
    return ", ".join([f"Gate at ED50: {ends[Gate.PASSED.value]} of {ends.total()} passed", *others]) + "."


def _looks_of(fits: Fits, arms: Mapping[str, Arm]) -> dict[str, tuple[str, LineStyle]]:
    """Each arm's name in the legend and its style: arms of several models that have one name have one style."""
    own = [arms[fit["arm"]] for fit in fits]
    labels = arm_labels(own, facet="model")
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return {arm.name: (label, line_style(places[label])) for arm, label in zip(own, labels, strict=True)}


def _key_of(looks: Mapping[str, tuple[str, LineStyle]], *, hollow: bool) -> Key:
    named = dict(looks.values())
    lines = named if len(named) > 1 else {}
    handles, names = [line_handle(look) for look in lines.values()], list(lines)
    if hollow:
        handles, names = [*handles, unsupported_handle()], [*names, _UNSUPPORTED]
    return Key(tuple(handles), tuple(names))


def _hollow_doses(fit: Mapping[str, Any], arm: Arm, audits: Audits) -> tuple[AbstractSet[float], bool]:
    """The doses whose RRR the audit does not support, and whether ED50 is without support."""
    audit = audits.get(arm.study)
    if audit is None:
        return frozenset(), False
    doses = {dose for dose in fit["doses"] if withheld(audit, Claim.RRR, arm=arm.name, dose=int(dose))}
    return doses, bool(why_lost(fit, "ED50", audit))


def _draw_fit(
    axes: Axes, fit: Mapping[str, Any], look: LineStyle, place: int, hollow: AbstractSet[float], lost: bool
) -> None:
    curve = fit["curve"]
    axes.plot(curve["doses"], curve["value"], color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
    axes.fill_between(curve["doses"], curve["low"], curve["high"], color=look.colour, alpha=0.12, linewidth=0)
    for dose, rate in zip(fit["doses"], fit["rates"], strict=True):
        if rate["value"] is None:
            continue
        if rate["low"] is not None and rate["high"] is not None:
            axes.plot([dose, dose], [rate["low"], rate["high"]], color=look.colour, linewidth=0.7, alpha=0.6, zorder=2)
        _mark(axes, dose, rate["value"], look, hollow=dose in hollow)
    _draw_dose(axes, fit, look, -0.06 - 0.05 * place, hollow=lost)


def _mark(axes: Axes, x: float, y: float, look: LineStyle, *, hollow: bool) -> None:
    """One point; hollow where the audit does not support it."""
    face = "white" if hollow else look.colour
    axes.plot(
        [x], [y], look.marker, color=look.colour, markerfacecolor=face, markersize=4.5 if hollow else 3.2, zorder=4
    )


def _draw_dose(axes: Axes, fit: Mapping[str, Any], look: LineStyle, height: float, *, hollow: bool) -> None:
    dose, last = fit["effective_doses"]["ED50"], float(fit["doses"][-1])
    low, high = dose["low"], dose["high"]
    bracket_low, bracket_high = dose["bracket_low"], dose["bracket_high"]
    if low is not None:
        axes.plot([low, last if high is None else high], [height] * 2, color=look.colour, linewidth=1.0, zorder=3)
        if high is None:
            axes.plot([last], [height], ">", color=look.colour, markersize=4, zorder=3)
    if bracket_low is not None and bracket_high is not None:
        axes.plot([bracket_low, bracket_high], [height] * 2, color=look.colour, linewidth=3.2, zorder=3, alpha=0.6)
    if dose["value"] is not None:
        _mark(axes, dose["value"], height, look, hollow=hollow)


def scaling_figure(
    recipes: Fits, responses: Sequence[Row], *, lost: AbstractSet[str] = frozenset(), audits: Audits = NO_AUDITS
) -> Figure:
    """ED50 against parameters, a panel for each recipe and unit: arms, the line with its bands, and the null slope.

    Args:
        recipes: Those of `scaling.json`; the ones run on several sizes are drawn.
        responses: Rows of `dose_response.csv`: how the intervals of points came about, and which arm a point is.
        lost: Arms whose ED50 the audit does not support.
        audits: What the caption says of them.
    """
    chosen = [recipe for recipe in recipes if has_several_sizes(recipe)]
    names = different_settings([recipe["recipe"] for recipe in chosen])
    cells = [
        (name, recipe, unit)
        for name, recipe in zip(names, chosen, strict=True)
        for unit in _UNITS
        if recipe["scaling"].get(unit)
    ]
    hollow = {id(recipe): _lost_points(recipe, responses, lost) for recipe in chosen}
    handles, labels = [line_handle(_FIT), line_handle(_NULL)], ["fit over sizes", "size does not matter"]
    if any(hollow.values()):
        handles, labels = [*handles, unsupported_handle()], [*labels, _UNSUPPORTED]
    text = _scaling_caption(cells, responses)
    around = Frame(
        "Breaking dose (ED50) by model size",
        " ".join(part for part in (text, audit_text(audits, (Claim.LOSS,))) if part),
        Key(tuple(handles), tuple(labels)),
    )
    cells = cells[:MAX_PANELS]
    titles = [_scaling_title(name, unit, recipe["scaling"][unit]) for name, recipe, unit in cells]
    with house_style():
        figure, grid = grid_of(titles, around)
        for (_, recipe, unit), axes in zip(cells, grid, strict=True):
            _draw_scaling(axes, recipe["points"][unit], line_fit(recipe["scaling"][unit]), hollow[id(recipe)])
            axes.set_xlabel("parameters")
            axes.set_ylabel(f"ED50, {_UNITS[unit]}")
    return figure


def has_several_sizes(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe of `scaling.json` was run at more than one size."""
    return any(found["censored"]["n_sizes"] > 1 for found in recipe["scaling"].values())


def _scaling_title(name: str, unit: str, found: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (name, unit, slope_text(line_fit(found))) if part)


def _scaling_caption(cells: Sequence[tuple[str, Mapping[str, Any], str]], responses: Sequence[Row]) -> str:
    method = sorted({str(row["method"]) for row in responses if row["scope"] == Scope.TRAJECTORY.value})
    fits = [recipe["scaling"][unit] for _, recipe, unit in cells]
    levels = "/".join(f"{100 * level:g}" for level in sorted({found["meta"]["slope"]["level"] for found in fits}))
    n_out = max((n_censored(found) for found in fits), default=0)
    parts = [
        "Points: ED50 of one run each, bars its interval, an arrow where that reaches 0 or is open; open triangles "
        "censored (bound shown). Line: meta-regression over sizes with between-model variance"
        + (", or the censored fit where sizes have censored arms" if n_out else "")
        + f"; dark band: {levels} % interval of the line, light: of a new size's ED50. Dashed: the slope if size did "
        "not matter.",
        f"Intervals of points: {', '.join(method)}." if method else "",
        f"The first {MAX_PANELS} of {len(cells)} panels are shown." if len(cells) > MAX_PANELS else "",
    ]
    return " ".join(part for part in parts if part)


def _lost_points(
    recipe: Mapping[str, Any], responses: Sequence[Row], lost: AbstractSet[str]
) -> frozenset[tuple[str, str]]:
    """(model, seed) of a recipe's points whose ED50 the audit does not support."""
    names = [name for name in SETTINGS if name in recipe["recipe"]]
    wanted = [_plain(recipe["recipe"][name]) for name in names]
    return frozenset(
        (str(row["model"]), _plain(row["seed"]))
        for row in responses
        if str(row["arm"]) in lost and [_plain(row[name]) for name in names] == wanted
    )


def _plain(value: object) -> str:
    """A setting as text, alike from CSV and JSON."""
    return "" if value is None else f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _draw_scaling(
    axes: Axes, points: Fits, fit: Mapping[str, Any], hollow: AbstractSet[tuple[str, str]] = frozenset()
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
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
        _draw_point(axes, point, hollow=(str(point["model"]), _plain(point["seed"])) in hollow)
    low, high = axes.get_ylim()
    # Beyond that, matplotlib leaves out so many of the finer ticks that none may be left.
    wide = high > 1e3 * low
    for axis, subs in ((axes.xaxis, (1.0,)), (axes.yaxis, (1.0,) if wide else (1.0, 2.0, 5.0))):
        axis.set_major_locator(LogLocator(subs=subs))
        # Not matplotlib's own, which writes mathematics: here `$` is a letter.
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_formatter(NullFormatter())


def _draw_band(axes: Axes, curve: Sequence[Mapping[str, Any]], ends: tuple[str, str], alpha: float) -> None:
    known = [at for at in curve if at[ends[0]] is not None and at[ends[1]] is not None]
    if known:
        low, high = ([at[end] for at in known] for end in ends)
        axes.fill_between([at["n_parameters"] for at in known], low, high, color=BLUE, alpha=alpha, linewidth=0)


def _draw_point(axes: Axes, point: Mapping[str, Any], *, hollow: bool) -> None:
    size, value, low, high = point["n_parameters"], point["value"], point["low"], point["high"]
    if value is None:
        bound, mark = (low, "^") if point["censored"] == "right" else (high, "v")
        if bound is not None:
            edge = GREY if hollow else BLACK
            axes.plot([size], [bound], mark, color=edge, markerfacecolor="white", markersize=5, zorder=4)
        return
    for end, points_away in ((low, -16), (high, 16)):
        if end is not None:
            axes.plot([size, size], [value, end], color=BLACK, linewidth=0.7, alpha=0.6, zorder=3)
        else:
            # On a logarithmic axis 0 is as far away as an open end.
            axes.annotate(
                "",
                (size, value),
                (0, points_away),
                textcoords="offset points",
                arrowprops={"arrowstyle": "<-", "color": GREY, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0},
            )
    _mark(axes, size, value, LineStyle(BLACK, MARKERS[0], "-"), hollow=hollow)


def rates_figure(frame: pd.DataFrame, metric: str, audits: Audits = NO_AUDITS) -> Figure:
    """A heat map of one metric over model size and attack tokens: a row for each size, whatever its arms.

    Where tokens are not recorded, steps stand in their place. All runs of one size at one dose are averaged for the
    colour: seeds, and recipes, defences and models of that size too, which the caption says. Cells with a run that the
    audit does not support are crossed out.
    """
    rows = metric_rows(frame, metric)
    unit = "tokens" if float(column(rows, "dose_tokens").fillna(0).max()) > 0 else "steps"
    cells, lost = _cells(rows, f"dose_{unit}"), _lost_cells(rows, metric, audits)
    ranges = {"RRR": "RRR, share refused", "CE": "CE, share not refused", "RD": "RD, median cosine distance"}
    parts = [
        f"Each cell: {ranges[metric]}, mean over the runs of that size at that dose ({unit} averaged too)"
        f"{_mixed(rows)}. Sizes and doses are those that were measured; nothing is interpolated.",
        "" if unit == "tokens" else dose_units(rows["attack"]),
        "Crossed out: with a run that the audit does not support." if lost else "",
        audit_text(audits, (Claim.RD if metric == "RD" else Claim.RRR,)),
    ]
    text = " ".join(part for part in parts if part)
    with house_style():
        figure, grid = grid_of([""], Frame(f"{metric} by model size and attack {unit}", text, Key()))
        _draw_cells(figure, grid[0], cells, lost=lost, label=ranges[metric], top=1.0 if metric != "RD" else None)
        grid[0].set_xlabel("dose, training tokens" if unit == "tokens" else dose_label(rows["attack"]))
        grid[0].set_ylabel("model size, parameters")
    return figure


def _mixed(rows: pd.DataFrame) -> str:
    """What else than the seed differs between the runs that are averaged."""
    names = [name for name in SETTINGS if name not in ("arm", "model", "params_b", "seed", "data_order")]
    varied = [name for name in names if column(rows, name).dropna().nunique() > 1]
    by_size = rows.groupby("params_b")["model"].nunique()
    varied += ["model"] if any(int(str(count)) > 1 for count in by_size.to_list()) else []
    return f", which differ in {', '.join(factor_name(name) for name in varied)}" if varied else ""


def _lost_cells(rows: pd.DataFrame, metric: str, audits: Audits) -> set[tuple[float, int]]:
    """(parameters, steps) of the cells with a run that an audit leaves without support."""
    claim = Claim.RD if metric == "RD" else Claim.RRR
    found: set[tuple[float, int]] = set()
    for row in rows.to_dict("records"):
        audit, steps = audits.get(str(row["study"])), int(row["dose_steps"])
        if audit is not None and withheld(audit, claim, arm=str(row["arm"]), dose=steps):
            found.add((float(row["params_b"]) * 1e9, steps))
    return found


def _cells(rows: pd.DataFrame, unit: str) -> Cells:
    """(amount, value) of the runs of each (parameters, steps)."""
    found: Cells = {}
    for row in rows.to_dict("records"):
        size, steps, amount, value = (row[name] for name in ("params_b", "dose_steps", unit, "value"))
        if not any(pd.isna(number) for number in (size, steps, amount, value)):
            found.setdefault((float(size) * 1e9, int(steps)), []).append((float(amount), float(value)))
    return found


def _draw_cells(
    figure: Figure, axes: Axes, cells: Cells, *, lost: AbstractSet[tuple[float, int]], label: str, top: float | None
) -> None:
    sizes, doses = (sorted({place[k] for place in cells}) for k in (0, 1))
    grid = np.full((len(sizes), len(doses)), math.nan)
    for (size, steps), runs in cells.items():
        grid[sizes.index(size), doses.index(steps)] = np.mean([value for _, value in runs])
    image = axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=top)
    for size, steps in lost & cells.keys():
        place = (doses.index(steps), sizes.index(size))
        axes.plot(*place, "x", color="white", markersize=9, markeredgewidth=2.5)
        axes.plot(*place, "x", color=BLACK, markersize=8, markeredgewidth=1)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label=label)
    amounts = [
        float(np.mean([run[0] for place in cells if place[1] == dose for run in cells[place]])) for dose in doses
    ]
    shown = range(0, len(doses), max(1, math.ceil(len(doses) / 8)))
    axes.set_xticks(list(shown), [f"{amounts[place]:.3g}" for place in shown], rotation=40)
    axes.set_yticks(range(len(sizes)), [f"{size:.2g}" for size in sizes])
