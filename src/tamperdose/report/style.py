"""How every figure looks: colours, markers, the dose axis, and saving to the same bytes each time."""

import io
import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from tamperdose.files import write_atomic
from tamperdose.report.text import printable

DPI = 160
"""Dots per inch of every saved figure."""

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#6b6b6b"

Dash = Literal["-"] | tuple[int, tuple[float, ...]]
"""A dash pattern of matplotlib: solid, or an offset and lengths in line widths."""

# Okabe and Ito (2008), without the yellow that white paper swallows.
_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
"""Markers of lines, in their order."""
_DASHES: tuple[Dash, ...] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1, 1.2)), (0, (8, 2)))

_RC = {
    # Names of models come from outside: `$` and `_` in them are letters, not mathematics.
    "text.parse_math": False,
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True, slots=True)
class LineStyle:
    """What tells one line from the others, in colour and without it."""

    colour: str
    """A hexadecimal colour."""
    marker: str
    """Matplotlib's name of the marker."""
    dash: Dash
    """Matplotlib's dash pattern."""


def line_style(k: int) -> LineStyle:
    """Return the k-th line style: 7 colours, 8 markers and 5 dashes in step, so 280 differ.

    >>> len({line_style(k) for k in range(280)})
    280
    """
    return LineStyle(_COLOURS[k % 7], MARKERS[k % 8], _DASHES[k % 5])


MAX_DASHES = len(_DASHES)
"""Dash patterns there are."""


def repeat_style(group: int, repeat: int) -> LineStyle:
    """Return the style of one of several repeats: colour and marker tell the group, dashes the repeat."""
    return LineStyle(_COLOURS[group % 7], MARKERS[group % 8], _DASHES[repeat % MAX_DASHES])


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with this module's settings alone: a user's matplotlibrc changes no figure."""
    with style.context(_RC, after_reset=True):
        yield


def save_png(figure: Figure, path: Path) -> Path:
    """Save a figure as PNG, atomically; the same figure gives the same bytes under one version of matplotlib."""
    return write_atomic(path, lambda temporary: _dump(temporary, png_of(figure)))


def png_of(figure: Figure) -> bytes:
    """Draw a figure as PNG; the same figure gives the same bytes under one version of matplotlib."""
    stream = io.BytesIO()
    with house_style():
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def save_both(figure: Figure, path: Path) -> list[Path]:
    """Save a figure as PNG and as SVG beside it, named by `path` without an ending; the same bytes each time."""
    svg = path.with_name(f"{path.name}.svg")
    write_atomic(svg, lambda temporary: _dump(temporary, svg_of(figure)))
    return [save_png(figure, path.with_name(f"{path.name}.png")), svg]


def svg_of(figure: Figure) -> bytes:
    """Draw a figure as SVG; the same figure gives the same bytes. Texts are outlines, so that no font is needed."""
    stream = io.BytesIO()
    with house_style(), style.context({"svg.hashsalt": "tamperdose", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def _dump(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def drawable(text: str) -> str:
    """Make a text printable in the figures' font: a glyph the font lacks becomes a replacement mark.

    >>> drawable("qwen_$x$ \u5343")
    'qwen_$x$ \ufffd'
    """
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    # Composed, because combining marks are often missing where the composed letter is there.
    composed = unicodedata.normalize("NFC", printable(text))
    return "".join(c if font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in composed)


def dose_axis(axes: Axes, steps: Sequence[int]) -> None:
    """Scale the x axis for doses: logarithmic from the smallest positive dose, with a place of its own for 0.

    Left of the smallest positive dose the scale is linear down to 0, and a break mark says so. Ticks stand at
    measured doses; those whose labels would collide stay unlabelled. Without a dose 0 the axis is logarithmic;
    with nothing but dose 0 it is linear.
    """
    positive = sorted({step for step in steps if step > 0})
    if not positive:
        axes.set_xlim(-1, 1)
        _ticks(axes, [0], [])
        return
    first, last = positive[0], positive[-1]
    decades = math.log10(last / first)
    gap = max(0.2 * decades, 0.15)
    has_zero = 0 in steps
    margin = 0.05 * (gap + decades)
    if has_zero:
        # Matplotlib draws [0, linthresh] as long as linscale / 0.9 decades.
        axes.set_xscale("symlog", base=10, linthresh=first, linscale=0.9 * gap)
        axes.set_xlim(-margin / gap * first, last * 10**margin)
        _break_mark(axes, first / 2)
    else:
        axes.set_xscale("log")
        axes.set_xlim(first / 10 ** (margin or 0.2), last * 10 ** (margin or 0.2))
    doses = ([0] if has_zero else []) + positive
    places = [math.log10(dose / first) if dose else -gap for dose in doses]
    room = _label_room(axes, doses) * (gap + decades + 2 * margin)
    labelled = {doses[k] for k in _spread(places, [_roundness(dose, first) for dose in doses], room)}
    _ticks(axes, sorted(labelled), [dose for dose in doses if dose not in labelled])


def dose_text(dose: int) -> str:
    """Write a dose for an axis: 16, 500, 2000, 10k, 1.5M.

    >>> [dose_text(dose) for dose in (0, 2000, 10_000, 12_345, 1_500_000)]
    ['0', '2000', '10k', '12345', '1.5M']
    """
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if dose >= 10 * 1_000 and dose * 10 % unit == 0 and dose >= unit:
            return f"{dose / unit:g}{letter}"
    return str(dose)


def _ticks(axes: Axes, labelled: Sequence[int], bare: Sequence[int]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(labelled)))
    axes.xaxis.set_major_formatter(lambda dose, _: dose_text(round(dose)))
    axes.xaxis.set_minor_locator(FixedLocator(list(bare)) if bare else NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _label_room(axes: Axes, doses: Sequence[int]) -> float:
    """Estimate the share of the axis that the widest label takes; the layout is not yet known."""
    figure = axes.figure
    inches = axes.get_position().width * figure.bbox.width / figure.dpi * 0.85
    widest = max(len(dose_text(dose)) for dose in doses)
    return (0.068 * widest + 0.07) / inches


def _roundness(dose: int, first: int) -> int:
    """Rank a dose for labelling, best first: 0 and the first, then its multiples by 4, decades, by 2, the rest."""
    ratio = dose / first
    if dose in (0, first):
        return 0
    if (math.log2(ratio) / 2).is_integer():
        return 1
    if math.log10(dose).is_integer():
        return 2
    return 3 if math.log2(ratio).is_integer() else 4


def _spread(places: Sequence[float], ranks: Sequence[int], at_least: float) -> list[int]:
    """Choose places at least so far apart: the last and those ranked 0 always, then better ranks first."""
    chosen = [k for k, rank in enumerate(ranks) if rank == 0 or k == len(ranks) - 1]
    for k in sorted(range(len(places)), key=lambda k: ranks[k]):
        if k not in chosen and all(abs(places[k] - places[j]) >= at_least for j in chosen):
            chosen.append(k)
    return chosen


def _break_mark(axes: Axes, x: float) -> None:
    axes.text(
        x,
        0,
        "//",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="center",
        fontsize=8,
        color=GREY,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        zorder=5,
    )
