"""The figure of defences, drawn from a run's files alone: ED50 under each, times the undefended one, and its price."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tamperdose.audit.findings import Audit, Claim
from tamperdose.records import Scope
from tamperdose.report.captions import audit_text
from tamperdose.report.defences import key_of, lost_defences, read_defences, why_unsupported
from tamperdose.report.drawing import Frame, Key, line_handle, table_of, unsupported_handle
from tamperdose.report.select import NO_AUDITS, Audits, headline_judge
from tamperdose.report.style import BLACK, BLUE, GREY, ORANGE, SKY, LineStyle, drawable, house_style, save_both
from tamperdose.report.text import shorten
from tamperdose.run.compare_schema import Row
from tamperdose.run.defences import COST_METRICS, DOSE_METRICS, RECIPE

COLUMNS = ("breaking dose (ED50)", "times the undefended", "price before any attack")
"""The panels of each attack."""
MAX_ROWS = 8
"""Attacks and models that are shown; beyond, the caption says how many there are."""
BARE = "none"
"""What the undefended model's row is called."""

_DOSE = LineStyle(BLUE, "o", "-")
_COSTS = {
    "over_refusal_rise": ("over-refusal, rise", LineStyle(SKY, "v", "-")),
    "perplexity_loss": ("perplexity, relative loss", LineStyle(ORANGE, "s", "-")),
    "utility_accuracy_loss": ("accuracy, relative loss", LineStyle(BLACK, "D", "-")),
}
Lost = Mapping[tuple[str, ...], tuple[str, ...]]
"""The failed checks by model, defence and attack: see `lost_defences`."""


def draw_defences(run_dir: Path, audits: Audits = NO_AUDITS) -> list[Path]:
    """Draw `defences` into `run_dir/figures`, where defences are compared.

    Raises:
        DataError: A file of the run is missing or damaged.
        RunError: The folder cannot be written.
    """
    judge = headline_judge(run_dir)
    rows = read_defences(run_dir, judge)
    if not any(row["metric"] in DOSE_METRICS for row in rows):
        return []
    audit: Audit | None = next(iter(audits.values()), None)
    lost = lost_defences(run_dir, judge, audit)
    return save_both(defences_figure(rows, lost, audits), run_dir / "figures" / "defences")


def defences_figure(rows: Sequence[Row], lost: Lost | None = None, audits: Audits = NO_AUDITS) -> Figure:
    """A row of panels for each model and attack: ED50 by defence, its ratio, what the defence costs at dose 0."""
    cells = list(dict.fromkeys(_group(row) for row in rows if row["metric"] in DOSE_METRICS))
    shown, hollow = cells[:MAX_ROWS], lost or {}
    handles, names = [line_handle(look) for _, look in _COSTS.values()], [name for name, _ in _COSTS.values()]
    if any(why_unsupported(row, hollow) for row in rows if row["metric"] in DOSE_METRICS):
        handles, names = [*handles, unsupported_handle()], [*names, "hollow: not supported by the audit"]
    more = f" The first {MAX_ROWS} of {len(cells)} attacks are shown." if len(cells) > MAX_ROWS else ""
    around = Frame(
        "Defences: what they hold and what they cost", _caption(rows, audits) + more, Key((*handles,), (*names,))
    )
    titles = [_title(cell, cells) for cell in shown]
    with house_style():
        figure, grid = table_of(titles, COLUMNS, around)
        for cell, (doses, ratios, costs) in zip(shown, grid, strict=True):
            mine = [row for row in rows if row["model"] == cell[0] and (_group(row) == cell or _is_cost(row))]
            _draw_attack(mine, hollow, (doses, ratios, costs))
    return figure


def _draw_attack(rows: Sequence[Row], lost: Lost, panels: tuple[Axes, Axes, Axes]) -> None:
    doses, ratios, costs = panels
    names = list(dict.fromkeys(str(row["defence"]) for row in rows if row["metric"] in DOSE_METRICS))
    places = {name: len(names) - k - 1 for k, name in enumerate(names)}
    without, defended, times = DOSE_METRICS
    bare = next(row for row in rows if row["metric"] == without)
    _draw_bounded(doses, bare, len(names), hollow=bool(why_unsupported(bare, lost)))
    for row in rows:
        name, metric = str(row["defence"]), row["metric"]
        if metric in (defended, times):
            hollow = bool(why_unsupported(row, lost))
            _draw_bounded(doses if metric == defended else ratios, row, places[name], hollow=hollow)
        elif metric in _COSTS and name in places:
            _draw_cost(costs, row, places[name])
    for axes in (doses, ratios):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    ratios.axvline(1, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    costs.axvline(0, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    for axes, label in zip(panels, ("optimizer steps", "ratio of ED50", "share"), strict=True):
        axes.set_ylim(-0.7, len(names) + 0.5)
        axes.set_yticks([*places.values(), len(names)], [""] * (len(names) + 1))
        axes.set_xlabel(label)
    doses.set_yticklabels([shorten(drawable(name), 24) for name in [*places, BARE]])


def _draw_bounded(axes: Axes, row: Row, height: float, *, hollow: bool) -> None:
    """A dose or a ratio with its interval; where it is bounded alone, an open triangle at the bound."""
    low, high, value = (_number(row[name]) for name in ("low", "high", "value"))
    bracket = _number(row["bracket_low"]), _number(row["bracket_high"])
    ends = [end for end in (low, *bracket, value, high) if end]
    if not ends:
        axes.text(0.5, height, "undefined", transform=axes.get_yaxis_transform(), ha="center", va="center", color=GREY)
        return
    if low is not None:
        axes.plot([low or min(ends) / 2, high or max(ends) * 2], [height] * 2, color=_DOSE.colour, linewidth=1.0)
        for end, mark, at in ((low, "<", min(ends) / 2), (high, ">", max(ends) * 2)):
            if not end:
                axes.plot([at], [height], mark, color=_DOSE.colour, markersize=3.5)
    if bracket[0] and bracket[1]:
        axes.plot([bracket[0], bracket[1]], [height] * 2, color=_DOSE.colour, linewidth=3.2, alpha=0.6)
    mark = {"right": ">", "left": "<"}.get(str(row["censored"]), _DOSE.marker)
    at = {"right": bracket[0], "left": bracket[1]}.get(str(row["censored"]), value)
    face = "white" if hollow or row["censored"] else _DOSE.colour
    if at:
        axes.plot([at], [height], mark, color=_DOSE.colour, markerfacecolor=face, markersize=5, zorder=4)


def _draw_cost(axes: Axes, row: Row, height: float) -> None:
    value, low, high = (_number(row[name]) for name in ("value", "low", "high"))
    place = height + 0.22 * (1 - list(_COSTS).index(str(row["metric"])))
    look = _COSTS[str(row["metric"])][1]
    if value is None:
        return
    if low is not None and high is not None:
        axes.plot([low, high], [place] * 2, color=look.colour, linewidth=1.0)
    axes.plot([value], [place], look.marker, color=look.colour, markersize=3.8, zorder=4)


def _group(row: Row) -> tuple[str, ...]:
    """Model and attack: what a row of panels is of."""
    model, _, *recipe = key_of(row)
    return (model, *recipe)


def _is_cost(row: Row) -> bool:
    return row["metric"] in COST_METRICS


def _title(cell: tuple[str, ...], cells: Sequence[tuple[str, ...]]) -> str:
    """The model and the attack, with the settings in which attacks differ."""
    differing = [k for k, name in enumerate(RECIPE, 1) if name != "attack" and len({each[k] for each in cells}) > 1]
    settings = [f"{RECIPE[k - 1].replace('_', ' ')} {cell[k]}" for k in differing]
    return ", ".join([cell[0], cell[1], *settings])


def _caption(rows: Sequence[Row], audits: Audits) -> str:
    ratio = next(row for row in rows if row["metric"] == DOSE_METRICS[2])
    level = f"{100 * float(str(ratio['level'])):g} %"
    over = f"{ratio['n_seeds']} seeds x {ratio['n_orders']} data orders of the attack"
    speaks = "for other seeds" if ratio["scope"] == Scope.ATTACK.value else "not defined below three seeds"
    parts = [
        f"Dots: geometric means over {over}; thick: brackets between measured doses; thin: {level} intervals, "
        f"{speaks}. Open triangles: bounds, where the curve has not come down at the last dose or is down at the "
        "first; arrows at the end of a line: open. Dashed: no difference. Each defence was trained once.",
        "Price: against the undefended model, on the same prompts, texts and questions; above 0 is worse; intervals "
        "for other items.",
        f"Judge: {drawable(str(ratio['judge']))}.",
        audit_text(audits, (Claim.LOSS,)) if audits else "",
    ]
    return " ".join(part for part in parts if part)


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))
