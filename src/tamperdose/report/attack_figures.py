"""One figure for all attacks on a model: RRR against what an attack spends, drawn from `metrics.csv` alone.

A step of one attack is not a step of another; a floating-point operation is. Saved as PNG and as SVG.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from tamperdose.audit.findings import Claim
from tamperdose.report.captions import audit_text
from tamperdose.report.drawing import Frame, Key, floor_handle, grid_of, line_handle, unsupported_handle
from tamperdose.report.select import (
    NO_AUDITS,
    Arm,
    Audits,
    Curve,
    arm_labels,
    arm_rows,
    common_settings,
    curve,
    list_arms,
    metric_rows,
)
from tamperdose.report.style import GREY, LineStyle, house_style, line_style, save_both
from tamperdose.run.controls import Control
from tamperdose.run.schema import column

FIGURE = "attacks_by_flops"
"""Name of the figure's files."""
CONTROLS = tuple(control.value for control in Control if control is not Control.BENIGN)
"""What stands in the column `attack` without being one: it is not drawn."""
BAND = 0.28
"""Share of the axis that attacks without training or search have for themselves."""
MAX_PANELS = 12
"""Panels that the figure shows; beyond, its caption says how many there are."""


@dataclass(frozen=True, slots=True)
class Spent:
    """One arm's RRR by what was spent on it."""

    points: Curve
    """RRR at the doses above 0."""
    flops: tuple[float, ...]
    """What was spent up to each; all 0 where nothing is trained or searched for."""

    @property
    def is_free(self) -> bool:
        """Whether nothing was spent at any dose."""
        return not any(self.flops)


def draw_attacks(frame: pd.DataFrame, folder: Path, audits: Audits = NO_AUDITS) -> list[Path]:
    """Draw `attacks_by_flops` where a run has more than one kind of attack; controls are none.

    Raises:
        RunError: The folder cannot be written.
    """
    return save_both(attacks_figure(frame, audits), folder / FIGURE) if compares_attacks(frame) else []


def compares_attacks(frame: pd.DataFrame) -> bool:
    """Whether a run has more than one kind of attack."""
    return len({_setting(arm, "attack") for arm in _attacking(frame)}) > 1


def attacks_figure(frame: pd.DataFrame, audits: Audits = NO_AUDITS) -> Figure:
    """A panel for each model and defence: RRR of every arm against FLOPs of training or search, with intervals."""
    arms = _attacking(frame)
    spent = {arm.name: _spent(frame, arm, audits) for arm in arms}
    labels = _labels(arms)
    styles = {label: line_style(place) for place, label in enumerate(dict.fromkeys(labels))}
    looks = {arm.name: styles[label] for arm, label in zip(arms, labels, strict=True)}
    panels = list(dict.fromkeys(_panel(arm, arms) for arm in arms))
    more = f"The first {MAX_PANELS} of {len(panels)} panels are shown." if len(panels) > MAX_PANELS else ""
    free = any(each.is_free for each in spent.values())
    parts = [_caption(arms, free=free), more, audit_text(audits, (Claim.RRR,))]
    hollow = any(any(each.points.unsupported) for each in spent.values())
    with house_style():
        around = Frame("RRR by what an attack spends", " ".join(filter(None, parts)), _key(styles, hollow=hollow))
        figure, grid = grid_of(panels[:MAX_PANELS], around)
        for panel, axes in zip(panels, grid, strict=False):
            shown = [arm for arm in arms if _panel(arm, arms) == panel]
            _draw_base(axes, curve(frame, shown[0], "RRR"))
            _draw_panel(axes, [(spent[arm.name], looks[arm.name]) for arm in shown])
    return figure


def _attacking(frame: pd.DataFrame) -> list[Arm]:
    return [arm for arm in list_arms(frame) if _setting(arm, "attack") not in CONTROLS]


def _setting(arm: Arm, name: str) -> str:
    return dict(arm.settings).get(name, "")


def _labels(arms: Sequence[Arm]) -> list[str]:
    """Each arm's kind of attack, with the settings in which arms of that kind differ on a model."""
    kinds = [_setting(arm, "attack") for arm in arms]
    more: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        alike = [arm for arm in arms if _setting(arm, "attack") == kind]
        # What differs by model or defence alone is told by the panel.
        several = len({_own(arm) for arm in alike}) > 1
        texts = arm_labels(alike, facet="model") if several else [""] * len(alike)
        more |= {arm.name: _without_defence(text) for arm, text in zip(alike, texts, strict=True)}
    return [f"{kind} {more[arm.name]}".strip() for kind, arm in zip(kinds, arms, strict=True)]


def _own(arm: Arm) -> tuple[tuple[str, str], ...]:
    return tuple(setting for setting in arm.settings if setting[0] != "defence")


def _without_defence(label: str) -> str:
    return " ".join(part for part in label.split() if not part.startswith("defence="))


def _panel(arm: Arm, arms: Sequence[Arm]) -> str:
    several = len({_setting(other, "defence") for other in arms if other.model == arm.model}) > 1
    return f"{arm.model}, defence {_setting(arm, 'defence')}" if several else arm.model


def _spent(frame: pd.DataFrame, arm: Arm, audits: Audits) -> Spent:
    whole = curve(frame, arm, "RRR", audits)
    rows = metric_rows(arm_rows(frame, arm), "RRR").sort_values("dose_steps")
    keep = [place for place, step in enumerate(whole.steps) if step > 0]
    unsupported = tuple(whole.unsupported[place] for place in keep) if whole.unsupported else ()
    steps = tuple(whole.steps[place] for place in keep)
    value, low, high = (tuple(part[place] for place in keep) for part in (whole.value, whole.low, whole.high))
    flops = [0.0 if math.isnan(each) else float(each) for each in column(rows, "dose_flops")]
    return Spent(Curve(steps, value, low, high, unsupported), tuple(flops[place] for place in keep))


def _caption(arms: Sequence[Arm], *, free: bool) -> str:
    parts = [
        "Points: doses, left to right; bars: intervals. Operations: of training, of finding the direction, or of "
        "answering all harmful prompts in every wording tried; answers that are measured are not counted.",
        "At the left: attacks without training or search, in the order of their doses." if free else "",
        f"All arms: {shared}." if (shared := common_settings(arms)) else "",
    ]
    return " ".join(part for part in parts if part)


def _key(styles: Mapping[str, LineStyle], *, hollow: bool) -> Key:
    handles, names = [*map(line_handle, styles.values()), floor_handle()], [*styles, "untampered"]
    if hollow:
        handles, names = [*handles, unsupported_handle()], [*names, "hollow: not supported by the audit"]
    return Key(tuple(handles), tuple(names))


def _draw_base(axes: Axes, whole: Curve) -> None:
    """The untampered model: a line across, with the band of its interval."""
    if whole.steps and whole.steps[0] == 0 and not math.isnan(whole.value[0]):
        axes.axhspan(whole.low[0], whole.high[0], color=GREY, alpha=0.13, linewidth=0, zorder=0)
        axes.axhline(whole.value[0], color=GREY, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)


def _draw_panel(axes: Axes, arms: Sequence[tuple[Spent, LineStyle]]) -> None:
    positive = [flops for each, _ in arms for flops in each.flops if flops > 0]
    low, high = (min(positive), max(positive)) if positive else (1.0, 1.0)
    free = [each for each, _ in arms if each.is_free]
    decades = max(1.0, math.log10(high / low))
    left = decades * BAND / (1 - BAND) if free else 0.0
    axes.set_xscale("log")
    axes.set_xlim(low / 10 ** (left + 0.12 * decades), high * 10 ** (0.06 * decades))
    for each, look in arms:
        xs = each.flops
        if each.is_free:
            # Their order alone is shown: a place each, between the axis and the least that was spent.
            places = np.linspace(left + 0.04 * decades, 0.16 * decades, len(each.flops) + 2)[1:-1]
            xs = tuple(low / 10**place for place in places)
        _draw_arm(axes, xs, each.points, look)
    _finish(axes, low, free=bool(free), decades=decades, positive=bool(positive))


def _draw_arm(axes: Axes, xs: Sequence[float], points: Curve, look: LineStyle) -> None:
    axes.plot(xs, points.value, color=look.colour, linestyle=look.dash, linewidth=1.4, zorder=3)
    axes.vlines(xs, points.low, points.high, color=look.colour, linewidth=0.8, alpha=0.6, zorder=2)
    for place, (x, value) in enumerate(zip(xs, points.value, strict=True)):
        hollow = bool(points.unsupported) and points.unsupported[place]
        axes.plot(
            [x],
            [value],
            look.marker,
            color=look.colour,
            markerfacecolor="white" if hollow else look.colour,
            markeredgecolor=look.colour if hollow else "white",
            markersize=5.2,
            markeredgewidth=0.9 if hollow else 0.4,
            clip_on=False,
            zorder=4,
        )


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two amounts; where there are fewer than three, their multiples by 2 and 5 too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for factors in ((1,), (1, 2, 5)):
        every = [factor * 10.0**power for power in powers for factor in factors]
        found = [tick for tick in every if low / 1.01 <= tick <= high]
        if len(found) > 2:
            break
    return found


def _finish(axes: Axes, low: float, *, free: bool, decades: float, positive: bool) -> None:
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_ylabel("RRR, share refused")
    axes.set_xlabel("operations of training or search, FLOPs")
    axes.xaxis.set_major_locator(FixedLocator(_ticks(low, axes.get_xlim()[1]) if positive else []))
    axes.xaxis.set_major_formatter(lambda flops, _: f"{flops:.0e}".replace("e+", "e"))
    axes.xaxis.set_minor_locator(NullLocator())
    if free:
        edge = low / 10 ** (0.09 * decades)
        axes.axvspan(axes.get_xlim()[0], edge, color="#f4f4f4", linewidth=0, zorder=-1)
        axes.axvline(edge, color=GREY, linewidth=0.7, zorder=1)
        middle = math.sqrt(axes.get_xlim()[0] * edge)
        where = axes.get_xaxis_transform()
        axes.text(middle, -0.035, "none", transform=where, ha="center", va="top", fontsize=7.5)
