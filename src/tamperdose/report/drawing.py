"""The pieces of a figure: its grid of panels, its title, caption and legend, and the marks of one curve."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tamperdose.report.select import Curve
from tamperdose.report.style import GREY, LineStyle, dose_axis, drawable
from tamperdose.report.text import shorten

MAX_LEGEND = 26
"""Entries a legend shows; beyond, it says how many more there are."""

# Curves in one panel that still leave room for wide lines and bars.
_FEW = 6
_FLOOR_DASH = (0, (2, 2))
_COMPLIANCE_COLOUR, _DEGENERATE_COLOUR, _HATCH_COLOUR = "#e8926a", "#ececec", "#7a7a7a"


@dataclass(frozen=True, slots=True)
class Key:
    """The entries of a legend."""

    handles: tuple[Line2D | Patch, ...] = ()
    """What is shown; as many as names."""
    names: tuple[str, ...] = ()
    """What it is called; hostile text."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What surrounds the panels of a figure."""

    title: str
    """The figure's title."""
    caption: str
    """The text below the panels."""
    key: Key
    """The legend on the right."""


def grid_of(panels: Sequence[str], around: Frame) -> tuple[Figure, list[Axes]]:
    """Make a figure with a grid of titled panels, row by row, and its title, caption and legend."""
    columns = _columns(len(panels))
    rows = math.ceil(len(panels) / columns)
    width, height = {1: (4.6, 2.9), 2: (3.1, 2.4), 3: (2.6, 2.1)}.get(columns, (2.1, 1.65))
    names = [_panel_title(panel, width) for panel in panels]
    title_height = 0.14 * max(len(name.splitlines()) for name in names)
    figure = _figure(columns * width, rows * (height + title_height), around)
    grid = [figure.add_subplot(rows, columns, k + 1) for k in range(len(panels))]
    for name, axes in zip(names, grid, strict=True):
        axes.set_title(name, color="#333333")
    return figure, grid


def two_rows_of(panels: Sequence[str], around: Frame) -> tuple[Figure, list[Axes], list[Axes]]:
    """Make a figure with two rows, the upper higher, and a titled column for each panel."""
    width = 4.8 if len(panels) == 1 else 2.7
    names = [_panel_title(panel, width) for panel in panels]
    figure = _figure(len(panels) * width, 4.0 + 0.14 * max(len(name.splitlines()) for name in names), around)
    grid = figure.subplots(2, len(panels), squeeze=False, height_ratios=[1.7, 1])
    for name, axes in zip(names, grid[0], strict=True):
        axes.set_title(name, color="#333333")
    return figure, list(grid[0]), list(grid[1])


def table_of(rows: Sequence[str], columns: Sequence[str], around: Frame) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure with a row of panels for each name of `rows`, one in each column; the columns are titled."""
    names = [_panel_title(row, 2.7 * len(columns)) for row in rows]
    figure = _figure(2.9 * len(columns), 2.4 * len(rows), around)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for k, name in enumerate(names):
        for place, column in enumerate(columns):
            parts = [name if place == 0 else "", column if k == 0 else ""]
            grid[k][place].set_title("\n".join(part for part in parts if part), color="#333333")
    return figure, [list(row) for row in grid]


def draw_curve(axes: Axes, points: Curve, look: LineStyle, *, crowd: int) -> None:
    """Draw a curve with its interval band; `crowd` is how many share the panel, and more are drawn thinner.

    A missing value breaks the line. An interval whose neighbours have none shows as a bar. Points that the audit leaves
    without support are hollow, and the band is fainter.
    """
    _draw_values(axes, points, look, few=crowd <= _FEW)
    low, high = np.array(points.low), np.array(points.high)
    shade = min(0.16, max(0.02, 0.45 / crowd)) / (2 if any(points.unsupported) else 1)
    axes.fill_between(points.steps, low, high, color=look.colour, alpha=shade, linewidth=0, zorder=1)
    _draw_bars(axes, points, look, where=_isolated(low, high))


def draw_curve_with_bars(axes: Axes, points: Curve, look: LineStyle, *, crowd: int) -> None:
    """Draw a curve with a bar for each interval; a crowded panel gets no bars."""
    _draw_values(axes, points, look, few=crowd <= _FEW)
    if crowd <= _FEW:
        _draw_bars(axes, points, look, where=np.isfinite(points.low) & np.isfinite(points.high))


def draw_stack(axes: Axes, compliance: Curve, degenerate: Curve) -> None:
    """Fill from 0 to the compliance rate, and from there by the degenerate rate; doses without both stay empty."""
    extra = dict(zip(degenerate.steps, degenerate.value, strict=True))
    steps, low = np.array(compliance.steps), np.array(compliance.value)
    high = low + np.array([extra.get(step, math.nan) for step in compliance.steps])
    axes.fill_between(steps, 0, low, facecolor=_COMPLIANCE_COLOUR, linewidth=0, zorder=1)
    axes.fill_between(
        steps, low, high, facecolor=_DEGENERATE_COLOUR, edgecolor=_HATCH_COLOUR, hatch="////", linewidth=0, zorder=1
    )
    alone = _isolated(low, high)
    if alone.any():
        axes.vlines(steps[alone], 0, low[alone], color=_COMPLIANCE_COLOUR, linewidth=9, zorder=1)
        axes.vlines(steps[alone], low[alone], high[alone], color="#bdbdbd", linewidth=9, zorder=1)


def draw_floors(axes: Axes, heights: Sequence[float]) -> None:
    """Draw reference lines across a panel."""
    for height in heights:
        axes.axhline(height, color=GREY, linewidth=1.0, linestyle=_FLOOR_DASH, zorder=2)


def finish_panel(axes: Axes, steps: Sequence[int], y_max: float, *, empty: bool) -> None:
    """Scale both axes, and say so where there is nothing to show."""
    dose_axis(axes, steps)
    axes.set_ylim(0, y_max)
    if empty:
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", va="center", color=GREY)


def label_outer(grid: Sequence[Axes], y_labels: Sequence[str], x_label: str) -> None:
    """Label the axes at the edges of the grid alone, as its panels share their scales; one y label for each row."""
    specs = {axes: spec for axes in grid if (spec := axes.get_subplotspec()) is not None}
    places = {(spec.rowspan.start, spec.colspan.start) for spec in specs.values()}
    for axes, spec in specs.items():
        row, column = spec.rowspan.start, spec.colspan.start
        below = (row + 1, column) in places
        axes.tick_params(labelbottom=not below, labelleft=column == 0)
        axes.set_xlabel("" if below else x_label)
        axes.set_ylabel(y_labels[row] if column == 0 else "")


def line_handle(look: LineStyle) -> Line2D:
    """Make the legend's picture of a curve."""
    return Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.dash, markersize=4.2, linewidth=1.3)


def floor_handle() -> Line2D:
    """Make the legend's picture of a reference line."""
    return Line2D([], [], color=GREY, linewidth=1.0, linestyle=_FLOOR_DASH)


def unsupported_handle() -> Line2D:
    """Make the legend's picture of a point that the audit leaves without support."""
    return Line2D([], [], linestyle="none", marker="o", markersize=5, markerfacecolor="white", markeredgecolor=GREY)


def stack_handles() -> tuple[Patch, Patch]:
    """Make the legend's pictures of the compliance and the degenerate fill."""
    degenerate = Patch(facecolor=_DEGENERATE_COLOUR, edgecolor=_HATCH_COLOUR, hatch="////", linewidth=0)
    return Patch(facecolor=_COMPLIANCE_COLOUR, linewidth=0), degenerate


def _draw_values(axes: Axes, points: Curve, look: LineStyle, *, few: bool) -> None:
    axes.plot(
        points.steps,
        points.value,
        color=look.colour,
        marker=look.marker,
        linestyle=look.dash,
        linewidth=1.4 if few else 0.9,
        markersize=4.2 if few else 3,
        markeredgecolor="white",
        markeredgewidth=0.4,
        clip_on=False,
        zorder=3,
    )
    if any(points.unsupported):
        _hollow(axes, points, look)


def _hollow(axes: Axes, points: Curve, look: LineStyle) -> None:
    """Draw over the points without support, and over the line into and out of them."""
    lost = np.array(points.unsupported)
    beside = lost.copy()
    beside[1:] |= lost[:-1]
    beside[:-1] |= lost[1:]
    value = np.array(points.value)
    line = np.where(beside, value, math.nan)
    axes.plot(points.steps, line, color="white", alpha=0.6, linewidth=1.8, clip_on=False, zorder=3)
    axes.plot(
        points.steps,
        np.where(lost, value, math.nan),
        linestyle="none",
        marker=look.marker,
        markersize=5,
        markerfacecolor="white",
        markeredgecolor=look.colour,
        markeredgewidth=0.9,
        clip_on=False,
        zorder=4,
    )


def _draw_bars(axes: Axes, points: Curve, look: LineStyle, *, where: np.ndarray) -> None:
    if where.any():
        steps, low, high = (np.array(each)[where] for each in (points.steps, points.low, points.high))
        axes.vlines(steps, low, high, color=look.colour, linewidth=1.0, alpha=0.8, capstyle="butt", zorder=2)


def _isolated(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Mark the intervals that no band can show, because neither neighbour has one."""
    defined = np.isfinite(low) & np.isfinite(high)
    padded = np.concatenate([[False], defined, [False]])
    return defined & ~padded[:-2] & ~padded[2:]


def _columns(n_panels: int) -> int:
    for most, columns in ((3, n_panels), (4, 2), (6, 3), (8, 4), (10, 5), (12, 4), (15, 5)):
        if n_panels <= most:
            return columns
    return 6


def _panel_title(name: str, inches: float) -> str:
    width = int(inches / 0.075)
    return "\n".join(textwrap.wrap(shorten(drawable(name), 2 * width - 8), width, break_on_hyphens=False))


def _figure(width: float, height: float, around: Frame) -> Figure:
    """Make an empty figure whose panels take about this space, with its title, caption and legend around it."""
    names = [shorten(drawable(name), 44) for name in around.key.names]
    total = width + (0.062 * max(map(len, names)) + 0.6 if names else 0.0)
    title = "\n".join(textwrap.wrap(around.title, max(20, int(total / 0.092))))
    text = "\n".join(textwrap.wrap(drawable(around.caption), max(30, int(total / 0.058))))
    extra = 0.35 + 0.17 * (title.count("\n") + 1) + 0.125 * (text.count("\n") + 1)
    figure = Figure(figsize=(total, height + extra), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.07))
    figure.suptitle(title, x=0.09 / total, ha="left", fontsize=10, fontweight="bold")
    figure.supxlabel(text, x=0.09 / total, ha="left", fontsize=7, color=GREY)
    _legend(figure, list(around.key.handles), names)
    return figure


def _legend(figure: Figure, handles: Sequence[Line2D | Patch], names: Sequence[str]) -> None:
    if not names:
        return
    shown, texts = list(handles[:MAX_LEGEND]), list(names[:MAX_LEGEND])
    if len(names) > MAX_LEGEND:
        shown.append(Line2D([], [], linestyle="none"))
        texts.append(f"and {len(names) - MAX_LEGEND} more")
    # A label that starts with `_` would be left out of the legend: the texts are set afterwards.
    legend = figure.legend(shown, ["."] * len(shown), loc="outside right upper", handlelength=2.8, labelspacing=0.55)
    for entry, text in zip(legend.get_texts(), texts, strict=True):
        entry.set_text(text)
