"""The figures of a run as parts of a page: the ones that `tamperdose figures` draws, with a text for each."""

import base64
from collections.abc import Iterator

from matplotlib.figure import Figure

from tamperdose.report.attack_figures import attacks_figure, compares_attacks
from tamperdose.report.defence_figures import defences_figure
from tamperdose.report.defences import lost_defences, read_defences
from tamperdose.report.figures import ce_figure, dose_response_figure, rd_figure
from tamperdose.report.inside_figures import inside_figure
from tamperdose.report.insides import read_inside_rows
from tamperdose.report.lost_doses import lost_arms
from tamperdose.report.marginal_figures import factor_figures
from tamperdose.report.marginals import factor_name
from tamperdose.report.page.blocks import Picture
from tamperdose.report.page.facts import Facts
from tamperdose.report.response_figures import fitted_figure, has_several_sizes, scaling_figure
from tamperdose.report.responses import read_fits, read_json, read_responses, well_formed
from tamperdose.report.select import Audits, curve
from tamperdose.report.style import png_of, svg_of
from tamperdose.report.text import UNDEFINED, WITHHELD
from tamperdose.run.defences import DOSE_METRICS
from tamperdose.run.scale import SCALING_JSON

MAX_SVG = 150_000
"""Bytes of an SVG beyond which a PNG stands in, where that is smaller: many panels are many outlines."""
_TOLD = 4
# Of an inch: texts in figures come out as large as those in tables.
_PIXELS = 116


def overview(facts: Facts) -> Picture:
    """All rates and the drift against dose."""
    alt = "Curves of the rates of refused, complied and degenerate answers and of drift, by dose. "
    return _picture(dose_response_figure(facts.frame, _audits(facts)), alt + _told(facts, "RRR"))


def fitted(facts: Facts) -> Iterator[Picture]:
    """The fitted curves with the breaking doses."""
    with well_formed(facts.folder):
        fits = read_fits(facts.folder, facts.judge)
        if fits:
            alt = "Measured shares of refused prompts by dose with the fitted curves and their bands. "
            yield _picture(fitted_figure(fits, facts.frame, _audits(facts)), alt + _told(facts, "RRR"))


def split(facts: Facts) -> Picture:
    """CE split into complied and degenerate answers."""
    alt = "Stacked shares of complied and degenerate answers by dose, a panel for each arm. "
    return _picture(ce_figure(facts.frame, _audits(facts)), alt + _told(facts, "CE"), folded=True)


def drift(facts: Facts) -> Picture:
    """RD against dose."""
    alt = "Curves of the median distance between tampered and untampered answers by dose. "
    return _picture(rd_figure(facts.frame, _audits(facts)), alt + _told(facts, "RD"))


def inside(facts: Facts) -> Iterator[Picture]:
    """Layers against doses: how far the refusal direction has turned."""
    rows = [row for row in read_inside_rows(facts.folder) if row["value"] is not None]
    if any(int(str(row["dose_steps"])) > 0 for row in rows):
        alt = "Heat maps of layers against doses: drift of the refusal direction, its AUC, size of the update. "
        yield _picture(inside_figure(rows), alt + "The lines beside it say what it shows at the last dose.")


def sizes(facts: Facts) -> Iterator[Picture]:
    """Breaking dose against size, where there are several sizes."""
    with well_formed(facts.folder):
        recipes = read_json(facts.folder / SCALING_JSON).get("recipes", [])
        if any(has_several_sizes(recipe) for recipe in recipes):
            lost = set(lost_arms(read_fits(facts.folder, facts.judge), facts.audit))
            responses = read_responses(facts.folder, facts.judge)
            figure = scaling_figure(recipes, responses, lost=lost, audits=_audits(facts))
            yield _picture(figure, "Breaking doses (ED50) of every arm against the number of parameters, with fits.")


def others(facts: Facts) -> Iterator[Picture]:
    """What only some runs have: attacks on one axis, defences, factors of a grid."""
    if compares_attacks(facts.frame):
        yield _picture(
            attacks_figure(facts.frame, _audits(facts)), "RRR of every arm against the operations its attack spends."
        )
    defences = read_defences(facts.folder, facts.judge)
    if any(row["metric"] in DOSE_METRICS for row in defences):
        lost = lost_defences(facts.folder, facts.judge, facts.audit)
        figure = defences_figure(defences, lost, _audits(facts))
        yield _picture(figure, "ED50 under each defence, how many times as long it holds, and what it costs.")
    for factor, figure in factor_figures(facts.folder, facts.frame, _audits(facts)):
        alt = f"RRR against dose, a line for each level of {factor_name(factor)}, averaged over the other settings."
        yield _picture(figure, alt, folded=True)


def _audits(facts: Facts) -> Audits:
    return dict.fromkeys(facts.frame["study"].unique(), facts.audit)


def _picture(figure: Figure, alt: str, *, folded: bool = False) -> Picture:
    """A figure as an image: as one, what it holds can neither run nor clash with the page's own names."""
    kind, data = "svg+xml", svg_of(figure)
    if len(data) > MAX_SVG and len(points := png_of(figure)) < len(data):
        kind, data = "png", points
    text = base64.b64encode(data).decode("ascii")
    title = " ".join(figure.get_suptitle().split())
    width, height = (round(_PIXELS * float(inches)) for inches in figure.get_size_inches())
    return Picture(f"data:image/{kind};base64,{text}", alt.strip(), title, width, height, folded)


def _told(facts: Facts, metric: str) -> str:
    """The ends of the first curves, in words."""
    said: list[str] = []
    for arm in facts.arms[:_TOLD]:
        points = curve(facts.frame, arm, metric, _audits(facts))
        if points.defined:
            lost = points.unsupported or (False,) * len(points.steps)
            ends = [
                f"{WITHHELD if gone and not facts.force else _number(value)} at {step}"
                for step, value, gone in list(zip(points.steps, points.value, lost, strict=True))[
                    :: max(1, len(lost) - 1)
                ]
            ]
            name = "" if len(facts.arms) == 1 else f"{facts.labels[arm.name]}: "
            said.append(f"{name}{metric} {', '.join(ends)}")
    more = f" and {len(facts.arms) - _TOLD} arms more" if len(facts.arms) > _TOLD else ""
    return "; ".join(said) + more + "." if said else ""


def _number(value: float) -> str:
    return UNDEFINED if value != value else f"{value:.2f}"
