"""The figures of a run, from its `metrics.csv` and `audit.json` alone: RRR, CE and RD against dose, and an overview.

Every function that takes a frame expects one judge's rows (`select_judge`, `load_run`). Figures are `Figure` objects
without pyplot, so drawing leaves no global state and works without a display.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from tamperdose.audit.findings import Claim
from tamperdose.files import remove
from tamperdose.report.attack_figures import draw_attacks
from tamperdose.report.captions import audit_text, caption
from tamperdose.report.defence_figures import draw_defences
from tamperdose.report.drawing import (
    Frame,
    Key,
    draw_curve,
    draw_curve_with_bars,
    draw_floors,
    draw_stack,
    finish_panel,
    floor_handle,
    grid_of,
    label_outer,
    line_handle,
    stack_handles,
    two_rows_of,
    unsupported_handle,
)
from tamperdose.report.inside_figures import draw_inside
from tamperdose.report.marginal_figures import draw_marginals
from tamperdose.report.response_figures import draw_responses
from tamperdose.report.select import (
    NO_AUDITS,
    Arm,
    Audits,
    Curve,
    arm_labels,
    choose_facet,
    curve,
    dose_label,
    list_arms,
    load_run,
    panel_name,
)
from tamperdose.report.style import (
    BLACK,
    BLUE,
    MAX_DASHES,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    LineStyle,
    house_style,
    line_style,
    repeat_style,
    save_png,
)
from tamperdose.run.audit import read_audit
from tamperdose.run.schema import column

MAX_PANELS = 96
"""Panels that CE_compare shows; beyond, its caption says how many arms there are."""

MAX_MODELS = 4
"""Columns of the overview; beyond, its caption says how many models there are."""

TITLES = {
    "RRR": "Refusal Robustness Rate (RRR) by dose",
    "CE": "Compliance Error (CE) by dose",
    "RD": "Representation Distance (RD) by dose",
}
"""The titles of the three figures that compare arms."""

Y_LABELS = {"RRR": "RRR, share refused", "CE": "CE, share not refused", "RD": "RD, median cosine distance"}
"""What stands on their y axes."""

_FLOOR_NAME = "RD floor: two samples of the base"
_UNSUPPORTED_NAME = "hollow: not supported by the audit"
_CE_LOOK = LineStyle(BLACK, "o", "-")
_SPLIT = ("compliance_rate", "degenerate_rate", "CE")

# Drawn in this order, so that RRR lies on top.
_RATES: dict[str, tuple[str, LineStyle]] = {
    "over_refusal_rate": ("over-refusal, benign prompts", LineStyle(SKY, "v", (0, (5, 1.5, 1, 1.5)))),
    "degenerate_rate": ("degenerate, harmful prompts", LineStyle(ORANGE, "D", (0, (1, 1.2)))),
    "compliance_rate": ("complied, harmful prompts", LineStyle(VERMILLION, "^", (0, (5, 1.5)))),
    "RRR": ("refused (RRR), harmful prompts", LineStyle(BLUE, "o", "-")),
}
_DRIFT = ("RD, median cosine distance", LineStyle(PURPLE, "s", "-"))


@dataclass(frozen=True, slots=True)
class Trace:
    """One line of a figure."""

    label: str
    """Its name in the legend; equal labels in different panels share one style."""
    panel: str
    """The title of the panel it is drawn in."""
    curve: Curve
    """The points and their intervals."""
    repeat: str = ""
    """The label's end that names the seed, when it has one: arms that differ in it alone share colour and marker."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """What surrounds the lines of a figure."""

    title: str
    """The figure's title."""
    y_label: str
    """The label of the y axis, with its unit."""
    caption: str
    """The text below the panels."""
    y_max: float
    """The top of the y axis; the bottom is 0."""
    x_label: str
    """The label of the dose axis."""
    floors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Heights of reference lines by panel."""


def draw_run(run_dir: Path) -> list[Path]:
    """Draw the figures of a finished run into `run_dir/figures` from its own files alone.

    Raises:
        DataError: `metrics.csv` or `manifest.json` is missing or not valid, or `audit.json` is damaged.
        RunError: The folder cannot be written.
    """
    frame = load_run(run_dir)
    folder = run_dir / "figures"
    audits = dict.fromkeys(frame["study"].unique(), read_audit(run_dir))
    overview = dose_response(frame, folder / "dose_response.png", audits)
    return [
        *draw_compare(frame, folder, audits),
        overview,
        *draw_responses(run_dir, audits),
        *draw_defences(run_dir, audits),
        *draw_marginals(run_dir, frame, audits),
        *draw_inside(run_dir),
        *draw_attacks(frame, folder, audits),
    ]


def draw_compare(frame: pd.DataFrame, folder: Path, audits: Audits = NO_AUDITS) -> list[Path]:
    """Draw RRR_compare.png, CE_compare.png and RD_compare.png into a folder, with what the audits withhold marked.

    Where RD was not measured its figure is left out, and one of an earlier run removed.
    """
    drift = folder / "RD_compare.png"
    drawn = [
        rrr_compare(frame, folder / "RRR_compare.png", audits),
        ce_compare(frame, folder / "CE_compare.png", audits),
    ]
    if bool((column(frame, "metric") == "RD").any()):
        return [*drawn, rd_compare(frame, drift, audits)]
    remove(drift)
    return drawn


def rrr_compare(frame: pd.DataFrame, path: Path, audits: Audits = NO_AUDITS) -> Path:
    """Draw RRR against dose, one line per arm with its interval band, into a PNG file."""
    return save_png(rrr_figure(frame, audits), path)


def ce_compare(frame: pd.DataFrame, path: Path, audits: Audits = NO_AUDITS) -> Path:
    """Draw CE against dose, one panel per arm with CE split into compliance and degeneration, into a PNG file."""
    return save_png(ce_figure(frame, audits), path)


def rd_compare(frame: pd.DataFrame, path: Path, audits: Audits = NO_AUDITS) -> Path:
    """Draw RD against dose, one line per arm with its interval band and the floor, into a PNG file."""
    return save_png(rd_figure(frame, audits), path)


def dose_response(frame: pd.DataFrame, path: Path, audits: Audits = NO_AUDITS) -> Path:
    """Draw the overview, one column per model, into a PNG file."""
    return save_png(dose_response_figure(frame, audits), path)


def rrr_figure(frame: pd.DataFrame, audits: Audits = NO_AUDITS) -> Figure:
    """Build the figure of RRR against dose.

    Raises:
        DataError: No rows, or several values for one dose.
    """
    sheet = Sheet(TITLES["RRR"], Y_LABELS["RRR"], caption(frame, "RRR", audits), 1.0, dose_label(frame["attack"]))
    return lines_figure(_traces(frame, "RRR", audits), sheet)


def rd_figure(frame: pd.DataFrame, audits: Audits = NO_AUDITS) -> Figure:
    """Build the figure of RD against dose, with RD_floor as a reference line where it was measured.

    Raises:
        DataError: No rows, or several values for one dose.
    """
    arms = list_arms(frame)
    floors = _floors(frame, arms, choose_facet(arms))
    traces = _traces(frame, "RD", audits)
    top = rd_top([trace.curve for trace in traces], floors)
    text, x_label = caption(frame, "RD", audits), dose_label(frame["attack"])
    return lines_figure(traces, Sheet(TITLES["RD"], Y_LABELS["RD"], text, top, x_label, floors))


def lines_figure(traces: Sequence[Trace], sheet: Sheet) -> Figure:
    """Build a figure of lines with bands, in as many panels as the traces name; a single label needs no legend."""
    panels = list(dict.fromkeys(trace.panel for trace in traces))
    looks = _looks([trace for trace in traces if trace.curve.defined])
    key = _with_floor(_key(looks) if len(looks) > 1 else Key(), shown=bool(sheet.floors))
    key = _with_unsupported(key, [trace.curve for trace in traces])
    with house_style():
        figure, grid = grid_of(panels, Frame(sheet.title, sheet.caption, key))
        steps = _all_steps([trace.curve for trace in traces])
        for panel, axes in zip(panels, grid, strict=True):
            shown = [trace for trace in traces if trace.panel == panel and trace.curve.defined]
            for trace in shown:
                draw_curve(axes, trace.curve, looks[trace.label], crowd=len(shown))
            draw_floors(axes, sheet.floors.get(panel, ()))
            finish_panel(axes, steps, sheet.y_max, empty=not shown)
        label_outer(grid, [sheet.y_label] * len(panels), sheet.x_label)
    return figure


def ce_figure(frame: pd.DataFrame, audits: Audits = NO_AUDITS) -> Figure:
    """Build the figure of CE against dose: one panel per arm, compliance and degenerate answers stacked up to CE.

    Raises:
        DataError: No rows, or several values for one dose.
    """
    arms = list_arms(frame)
    splits = [{metric: curve(frame, arm, metric, audits) for metric in _SPLIT} for arm in arms][:MAX_PANELS]
    more = f" The first {MAX_PANELS} of {len(arms)} arms are shown." if len(arms) > MAX_PANELS else ""
    key = Key((line_handle(_CE_LOOK), *stack_handles()), ("CE, with interval", "compliance", "degenerate"))
    key = _with_unsupported(key, [split["CE"] for split in splits])
    around = Frame(TITLES["CE"], caption(frame, "CE", audits) + more, key)
    with house_style():
        figure, grid = grid_of(arm_labels(arms)[:MAX_PANELS], around)
        steps = _all_steps([each for split in splits for each in split.values()])
        for split, axes in zip(splits, grid, strict=True):
            draw_stack(axes, split["compliance_rate"], split["degenerate_rate"])
            draw_curve_with_bars(axes, split["CE"], _CE_LOOK, crowd=1)
            finish_panel(axes, steps, 1.0, empty=not any(each.defined for each in split.values()))
        label_outer(grid, [Y_LABELS["CE"]] * len(grid), dose_label(frame["attack"]))
    return figure


def dose_response_figure(frame: pd.DataFrame, audits: Audits = NO_AUDITS) -> Figure:
    """Build the overview: a column per model, the judged rates above (RRR with its band), RD below.

    Each metric has one style; several arms of a model are as many lines of that style.

    Raises:
        DataError: No rows, or several values for one dose.
    """
    arms = list_arms(frame)
    models = list(dict.fromkeys(arm.model for arm in arms))[:MAX_MODELS]
    curves = {metric: [curve(frame, arm, metric, audits) for arm in arms] for metric in (*_RATES, "RD")}
    floors = _floors(frame, arms, "model")
    used = [_RATES[metric] for metric in reversed(_RATES) if any(each.defined for each in curves[metric])]
    used += [_DRIFT] if any(each.defined for each in curves["RD"]) else []
    key = _with_floor(_key(dict(used)), shown=bool(floors))
    key = _with_unsupported(key, [each for group in curves.values() for each in group])
    steps, top = _all_steps([each for group in curves.values() for each in group]), rd_top(curves["RD"], floors)
    with house_style():
        around = Frame("Dose-response of refusals to fine-tuning", _overview_caption(frame, arms, audits), key)
        figure, upper, lower = two_rows_of(models, around)
        for model, rates, drift in zip(models, upper, lower, strict=True):
            mine = [k for k, arm in enumerate(arms) if arm.model == model]
            for metric, (_, look) in _RATES.items():
                draw = draw_curve if metric == "RRR" else draw_curve_with_bars
                for k in mine:
                    if curves[metric][k].defined:
                        draw(rates, curves[metric][k], look, crowd=len(mine))
            for k in mine:
                if curves["RD"][k].defined:
                    draw_curve(drift, curves["RD"][k], _DRIFT[1], crowd=len(mine))
            draw_floors(drift, floors.get(panel_name(arms[mine[0]], "model"), ()))
            finish_panel(rates, steps, 1.0, empty=not any(curves[metric][k].defined for metric in _RATES for k in mine))
            finish_panel(drift, steps, top, empty=not any(curves["RD"][k].defined for k in mine))
        label_outer([*upper, *lower], ["share of prompts", "RD, cosine distance"], dose_label(frame["attack"]))
    return figure


def rd_top(curves: Sequence[Curve], floors: Mapping[str, Sequence[float]]) -> float:
    """Choose the top of an RD axis: the next tenth above every point, interval and floor, from 0.1 to 2."""
    ends = [x for each in curves for x in (*each.value, *each.high) if not math.isnan(x)]
    ends += [height for heights in floors.values() for height in heights]
    return min(2.0, max(0.1, math.ceil(max(ends) * 10.5) / 10)) if ends else 1.0


def _traces(frame: pd.DataFrame, metric: str, audits: Audits) -> list[Trace]:
    arms = list_arms(frame)
    facet = choose_facet(arms)
    labels = arm_labels(arms, facet=facet)
    return [
        Trace(
            label, panel_name(arm, facet), curve(frame, arm, metric, audits), f"seed={dict(arm.settings).get('seed')}"
        )
        for arm, label in zip(arms, labels, strict=True)
    ]


def _floors(frame: pd.DataFrame, arms: Sequence[Arm], facet: str) -> dict[str, list[float]]:
    floors: dict[str, list[float]] = {}
    for arm in arms:
        values = [value for value in curve(frame, arm, "RD_floor").value if not math.isnan(value)]
        if values:
            seen = floors.setdefault(panel_name(arm, facet), [])
            # The floor belongs to the model and is repeated in each of its arms and doses.
            seen.extend(value for value in dict.fromkeys(values) if value not in seen)
    return floors


def _looks(traces: Sequence[Trace]) -> dict[str, LineStyle]:
    """Give each label a style: colour and marker by what is not the seed, dashes by the seed."""
    groups: dict[str, int] = {}
    repeats: dict[str, int] = {}
    looks: dict[str, LineStyle] = {}
    for trace in traces:
        group = trace.label.removesuffix(trace.repeat)
        repeat = trace.label[len(group) :]
        place = groups.setdefault(group, len(groups)), repeats.setdefault(repeat, len(repeats))
        looks.setdefault(trace.label, repeat_style(*place))
    # Without repeats, or with more than there are dashes, every line has a style of its own.
    if len(groups) == len(looks) or len(repeats) > MAX_DASHES:
        return {label: line_style(k) for k, label in enumerate(looks)}
    return looks


def _key(looks: Mapping[str, LineStyle]) -> Key:
    return Key(tuple(line_handle(look) for look in looks.values()), tuple(looks))


def _with_floor(key: Key, *, shown: bool) -> Key:
    return Key((*key.handles, floor_handle()), (*key.names, _FLOOR_NAME)) if shown else key


def _with_unsupported(key: Key, curves: Sequence[Curve]) -> Key:
    if not any(any(each.unsupported) for each in curves):
        return key
    return Key((*key.handles, unsupported_handle()), (*key.names, _UNSUPPORTED_NAME))


def _all_steps(curves: Sequence[Curve]) -> list[int]:
    return sorted({step for each in curves for step in each.steps}) or [0]


def _overview_caption(frame: pd.DataFrame, arms: Sequence[Arm], audits: Audits) -> str:
    n_models = len({arm.model for arm in arms})
    parts = [caption(frame, "RRR"), audit_text(audits, (Claim.RRR, Claim.RD, Claim.OVER_REFUSAL))]
    if len(arms) > n_models:
        parts.append(f"One line per arm ({len(arms)} arms).")
    if n_models > MAX_MODELS:
        parts.append(f"The first {MAX_MODELS} of {n_models} models are shown.")
    return " ".join(part for part in parts if part)
