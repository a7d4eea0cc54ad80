"""Do the scaling intervals hold the truth, do the claims' answers err as seldom as they say, does choosing bias?

Data are simulated from lines whose slope, scatter and errors are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri, stdtrit

from tamperdose.stats.aft import censored_line_at, censored_regression
from tamperdose.stats.claims import (
    ALIKE,
    ALPHA,
    COLLAPSE_STEPS,
    COLLAPSED,
    Answer,
    Retention,
    claim_collapse,
    claim_compute,
    claim_start_and_fall,
    family_level,
)
from tamperdose.stats.meta import line_at, meta_regression, slope_interval
from tamperdose.stats.pooled import pooled_effects
from tamperdose.stats.rates import rate
from tamperdose.stats.scaling import DoseUnit, Slope, meta_scaling
from tamperdose.stats.selection import worst_case
from tamperdose.stats.sizes import SizePoint

Array = NDArray[np.float64]

LEVEL = 0.95
SLOPE, NEW = 0.2, 10.5
"""Decades of dose a decade of parameters, and the size (log10) that is predicted: half a decade beyond the largest."""
SIZES = (3, 4, 5, 8)
SCATTERS = (0.0, 0.05, 0.15)
"""Standard deviation of models about the line, decades."""
N_META, N_CENSORED, N_CLAIM, N_COMPUTE, N_SELECTION = 1000, 80, 300, 40, 200
"""Data sets a cell; a quick run takes a twentieth."""


@dataclass(frozen=True, slots=True)
class Held:
    """Shares of data sets whose interval held the truth."""

    slope: float
    """Knapp and Hartung's, or the profile likelihood's."""
    prediction: float
    """The prediction interval of a new size's dose."""
    fixed: float
    """The fixed-effect interval of the slope, z."""
    plain: float
    """Ordinary least squares, t."""


def section(*, quick: bool) -> str:
    """Simulate everything and write it as one section of Markdown."""
    share = 20 if quick else 1
    parts = [
        "## Scaling with size, and the worst case over a grid",
        "Share of simulated data sets whose 95 % interval held the truth, and how often each answer was given."
        + (" A reduced run: its shares are rough." if quick else ""),
        _slopes(N_META // share),
        _censored(max(4, N_CENSORED // share)),
        _collapse(N_CLAIM // share),
        _alike(N_CLAIM // share),
        _compute(max(2, N_COMPUTE // share)),
        _selection(max(4, N_SELECTION // share)),
    ]
    return "\n\n".join(parts) + "\n"


def _error(n: int) -> str:
    return f"{np.sqrt(LEVEL * (1 - LEVEL) / n):.3f}"


# --- slopes and predictions


def slope_cell(k: int, scatter: float, *, n: int) -> Held:
    """Meta-regression of k sizes over two decades, standard errors 0.02 to 0.12 decades."""
    rng, x = np.random.default_rng([1, k, int(1000 * scatter)]), np.linspace(8, 10, k)
    hits = np.zeros(4)
    for _ in range(n):
        se = rng.uniform(0.02, 0.12, k)
        y = 1 + SLOPE * x + scatter * rng.standard_normal(k) + se * rng.standard_normal(k)
        new = 1 + SLOPE * NEW + scatter * rng.standard_normal()
        line = meta_regression(x, y, se**2)
        low, high = slope_interval(line, LEVEL) or (np.nan, np.nan)
        value, variance = line_at(line, NEW)
        reach = stdtrit(k - 2, (1 + LEVEL) / 2) * np.sqrt(variance + line.between_sd**2)
        hits += [low <= SLOPE <= high, abs(new - value) <= reach, _fixed(x, y, se), _plain(x, y)]
    return Held(*(hits / n).tolist())


def _fixed(x: Array, y: Array, se: Array) -> bool:
    weights = 1 / se**2
    away = x - np.average(x, weights=weights)
    total = np.sum(weights * away**2)
    return bool(abs(np.sum(weights * away * y) / total - SLOPE) <= ndtri((1 + LEVEL) / 2) / np.sqrt(total))


def _plain(x: Array, y: Array) -> bool:
    away, df = x - x.mean(), len(x) - 2
    slope = float(away @ y / (away @ away))
    left = y - y.mean() - slope * away
    reach = stdtrit(df, (1 + LEVEL) / 2) * np.sqrt(left @ left / df / (away @ away))
    return bool(abs(slope - SLOPE) <= reach)


def _slopes(n: int) -> str:
    lines: list[str] = []
    for k in SIZES:
        for scatter in SCATTERS:
            held = slope_cell(k, scatter, n=n)
            lines.append(
                f"| {k} | {scatter:g} | {held.slope:.3f} | {held.prediction:.3f} | {held.fixed:.3f} "
                f"| {held.plain:.3f} |"
            )
    head = (
        "| sizes | scatter between sizes | slope | prediction | fixed effect, z | least squares, t |\n"
        "|---|---|---|---|---|---|\n"
    )
    return "\n\n".join(
        [
            "### Slope of log10 ED50 on log10 N (`stats.meta.meta_regression`)",
            f"{n:,} data sets a cell, standard error {_error(n)} at 0.95. Sizes over two decades, standard errors 0.02 "
            "to 0.12 decades; the prediction is of a size half a decade beyond the largest. With few sizes and little "
            "scatter the interval is wider than it need be: the truncation at 1, and t with few degrees of freedom. "
            "Least squares holds its level too; it does not use how sure a size is.",
            head + "\n".join(lines),
        ]
    )


CENSORINGS = {
    "none": (0, np.inf),
    "brackets of a ladder with factor 2": (np.log10(2), np.inf),
    "the same, and nothing above 3.1": (np.log10(2), 3.1),
    "exact, and nothing above 3.1": (0, 3.1),
}
"""Width of the brackets, decades, and the last dose, log10: the line is at 3 at the largest size."""


def censored_cell(kind: str, scatter: float, *, n: int, k: int = 5) -> tuple[Held, float]:
    """The censored fit, and the share of data sets with 3 sizes or more whose dose has both bounds."""
    width, last = CENSORINGS[kind]
    rng, x = np.random.default_rng([2, len(kind), int(1000 * scatter)]), np.linspace(8, 10, k)
    hits, found = np.zeros(2), 0
    for _ in range(n):
        y = 3 + SLOPE * (x - 10) + scatter * rng.standard_normal(k)
        new = 3 + SLOPE * (NEW - 10) + scatter * rng.standard_normal()
        start = rng.uniform(0, width) if width else 0.0
        low = np.floor((y - start) / width) * width + start if width else y
        high = low + width
        low, high = np.where(y > last, last, low), np.where(y > last, np.inf, high)
        if np.isfinite(high).sum() < 3:
            continue
        found += 1
        line = censored_regression(x, low, high, level=LEVEL)
        value, line_low, line_high = censored_line_at(line, NEW)
        reach = stdtrit(line.df, (1 + LEVEL) / 2) * line.sd
        below = np.inf if line_low is None else np.hypot(value - line_low, reach)
        above = np.inf if line_high is None else np.hypot(line_high - value, reach)
        hits += [_within(line.low, SLOPE, line.high), -below <= new - value <= above]
    slope, prediction = (hits / max(1, found)).tolist()
    return Held(slope, prediction, np.nan, np.nan), found / n


def _within(low: float | None, truth: float, high: float | None) -> bool:
    return (low is None or low <= truth) and (high is None or truth <= high)


def _censored(n: int) -> str:
    lines: list[str] = []
    for kind in CENSORINGS:
        for scatter in SCATTERS[1:]:
            held, found = censored_cell(kind, scatter, n=n)
            lines.append(f"| {kind} | {scatter:g} | {held.slope:.3f} | {held.prediction:.3f} | {found:.2f} |")
    head = "| censoring | scatter | slope | prediction | fitted |\n|---|---|---|---|---|\n"
    return "\n\n".join(
        [
            "### The same with censored arms (`stats.aft.censored_regression`)",
            f"{n:,} data sets a cell, standard error {_error(n)}; five sizes, ED50 of 1,000 at the largest. Data sets "
            "with fewer than three sizes of known dose have no interval; `fitted` is the share of the others, among "
            "which coverage is counted.",
            head + "\n".join(lines),
        ]
    )


# --- claims


def _answers(found: Sequence[Answer]) -> str:
    return " | ".join(f"{found.count(answer) / len(found):.3f}" for answer in tuple(Answer)[:3])


_ANSWERS = "supported | contradicted | undecided"


def collapse_answers(truths: Sequence[float], *, n: int, family: bool) -> list[Answer]:
    """Claim 1 for three arms whose retention is the same at each of the three doses; 40 templates x 3 prompts."""
    rng, found = np.random.default_rng([3, int(100 * sum(truths)), len(set(truths))]), list[Answer]()
    names, units = [f"{k:02d}" for k in range(40) for _ in range(3)], 1 / 0.3 - 1
    level = family_level(len(truths) * len(COLLAPSE_STEPS), LEVEL)
    for _ in range(n):
        cells: list[Retention] = []
        for arm, p in enumerate(truths):
            for dose in COLLAPSE_STEPS:
                shares = rng.beta(p * units, (1 - p) * units, 40) if p else np.zeros(40)
                kept = rng.random(120) < np.repeat(shares, 3)
                seen = rate(kept, names, level=LEVEL)
                strict = rate(kept, names, level=level).low if family else None
                cells.append(Retention(str(arm), dose, seen.low, seen.high, seen.value, strict))
        found.append(claim_collapse(cells, arms=[str(arm) for arm in range(len(truths))]).answer)
    return found


def _collapse(n: int) -> str:
    lines: list[str] = []
    for name, truths in {
        "0 everywhere": (0.0, 0.0, 0.0),
        f"{COLLAPSED:g} in one arm, 0 in two": (0.0, 0.0, COLLAPSED),
        f"{COLLAPSED:g} everywhere": (COLLAPSED,) * 3,
        "0.3 in one arm, 0 in two": (0.0, 0.0, 0.3),
    }.items():
        for family in (True, False):
            answers = _answers(collapse_answers(truths, n=n, family=family))
            lines.append(f"| {name} | {'family' if family else 'single cells'} | {answers} |")
    head = f"| retention | contradicted by | {_ANSWERS} |\n|---|---|---|---|---|\n"
    return "\n\n".join(
        [
            '### Claim 1, "refusal collapses regardless of steps" (`stats.claims.claim_collapse`)',
            f"Margin {COLLAPSED:g}; {n:,} data sets a row; three arms x three doses, 40 templates x 3 prompts. "
            "At the margin the claim still holds: `contradicted` is an error there, and `supported` the limit of one.",
            head + "\n".join(lines),
        ]
    )


def alike_answers(slope: float, scatter: float, *, n: int, k: int = 5) -> list[Answer]:
    """The second part of claim 2; standard errors of 0.05 decades."""
    rng, x = np.random.default_rng([4, int(1000 * slope), int(1000 * scatter), k]), np.linspace(8, 10, k)
    start = Slope(None, None, None, LEVEL, 0, 0.0, None)
    found: list[Answer] = []
    reach = 10 ** (0.05 * ndtri((1 + LEVEL) / 2))
    for _ in range(n):
        doses = 10 ** (2 + slope * (x - 9) + np.hypot(scatter, 0.05) * rng.standard_normal(k))
        points = [
            SizePoint(str(i), float(10**size), float(dose), float(dose / reach), float(dose * reach))
            for i, (size, dose) in enumerate(zip(x, doses, strict=True))
        ]
        fit = meta_scaling(points, DoseUnit.STEPS, level=1 - 2 * ALPHA)
        found.append(claim_start_and_fall(start, fit, start_is_fixed=True).parts[1].answer)
    return found


def _alike(n: int) -> str:
    lines: list[str] = []
    for slope in (0.0, ALIKE, 0.3, 0.5):
        for scatter in (0.0, 0.05, 0.15):
            lines.append(f"| {slope:g} | {scatter:g} | {_answers(alike_answers(slope, scatter, n=n))} |")
    head = f"| slope | scatter | {_ANSWERS} |\n|---|---|---|---|---|\n"
    return "\n\n".join(
        [
            '### Claim 2, "... but fall alike" (`stats.claims.claim_start_and_fall`)',
            f"Margin {ALIKE:g} decades a decade, two one-sided tests at {ALPHA:g}; {n:,} data sets a row; five sizes "
            "over two decades, standard errors 0.05. At the margin `supported` and `contradicted` are errors, each of "
            f"at most {ALPHA:g}; beyond it `supported` is.",
            head + "\n".join(lines),
        ]
    )


def compute_answers(effects: tuple[float, float], model_sd: float, *, n: int) -> list[Answer]:
    """Claim 3 for five sizes and five doses; 12 templates x 4 prompts; the two effects are those of N and of tokens."""
    rng = np.random.default_rng([5, int(100 * abs(effects[0])), effects[0] > 0, int(100 * model_sd)])
    sizes, tokens = np.linspace(8, 10, 5), np.linspace(3, 5, 5)
    grid = np.array([(size, token) for size in sizes for token in tokens])
    names = [f"{k:02d}" for k in range(12) for _ in range(4)]
    found: list[Answer] = []
    for _ in range(n):
        models = np.repeat(model_sd * rng.standard_normal(5), 5)
        score = effects[0] * (grid[:, 0] - 9) + effects[1] * (grid[:, 1] - 4) + models
        p = expit(score[:, None] + np.repeat(0.5 * rng.standard_normal(12), 4)[None, :])
        refused = rng.random(p.shape) < p
        n_rows = [np.repeat(10 ** grid[:, column], p.shape[1]) for column in (0, 1)]
        pooled = pooled_effects(refused.ravel(), n_rows[0], n_rows[1], templates=names * len(grid))
        found.append(claim_compute(pooled).answer)
    return found


def _compute(n: int) -> str:
    lines: list[str] = []
    for effects in ((0.2, -1.5), (1.0, -1.0), (-1.0, -1.0), (1.5, -0.2)):
        for model_sd in (0.0, 0.3):
            answers = _answers(compute_answers(effects, model_sd, n=n))
            lines.append(f"| {effects[0]:g} | {effects[1]:g} | {model_sd:g} | {answers} |")
    head = f"| decade of N | decade of tokens | models differ by (SD) | {_ANSWERS} |\n|---|---|---|---|---|---|\n"
    return "\n\n".join(
        [
            '### Claim 3, "attack compute matters more than size" (`stats.claims.claim_compute`)',
            f"{n:,} data sets a row; log odds; five sizes x five doses, 12 templates x 4 prompts. With equal "
            "magnitudes both answers are errors.",
            head + "\n".join(lines),
        ]
    )


# --- selection


@dataclass(frozen=True, slots=True)
class Choice:
    """What choosing does in one design."""

    truth: float
    """Expected rate of what the procedure chooses."""
    crossed: float
    """Mean of the cross-fitted estimates."""
    crossed_error: float
    """Monte-Carlo standard error of mean estimate - truth."""
    naive: float
    """Mean of the naive minima."""
    held: float
    """Share of the intervals that held the truth."""


GRIDS = {
    "20 alike, 40 x 3, one seed": (40, 3, 20, 1, 0.0, 0.0, 0.3),
    "20 apart (SD 0.5), 40 x 3, one seed": (40, 3, 20, 1, 0.5, 0.0, 0.3),
    "20 near, 20 x 5, three seeds": (20, 5, 20, 3, 0.3, 0.3, 0.3),
    "20 near, 20 x 5, five seeds": (20, 5, 20, 5, 0.3, 0.6, 0.3),
    "30 near, 100 x 1, three seeds, rate 0.1": (100, 1, 30, 3, 0.3, 0.3, 0.1),
    "20 near, 40 x 3, one seed, rate 0.04": (40, 3, 20, 1, 0.3, 0.0, 0.04),
}
"""Templates, prompts of each, candidates, seeds, SD of candidates, SD of seeds (log odds), rate."""


def selection_cell(name: str, *, n: int) -> Choice:
    """Candidates of known rates; templates differ by SD 0.7, template x candidate by 0.3."""
    k, m, candidates, seeds, spread, seed_sd, centre = GRIDS[name]
    rng = np.random.default_rng([6, k, candidates, seeds, int(10 * spread), int(100 * centre)])
    base = np.log(centre / (1 - centre)) + spread * rng.standard_normal(candidates)
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    sd = np.sqrt(0.7**2 + 0.3**2 + seed_sd**2)
    rates = expit(base[:, None] + sd * nodes) @ weights / weights.sum()
    names = [f"{number:03d}" for number in range(k) for _ in range(m)]
    rows: list[tuple[float, float, float]] = []
    ends: list[tuple[float, float]] = []
    for _ in range(n):
        shift = 0.7 * rng.standard_normal((k, 1, 1)) + 0.3 * rng.standard_normal((k, candidates, 1))
        score = (
            base[None, :, None] + np.repeat(shift, m, axis=0) + seed_sd * rng.standard_normal((1, candidates, seeds))
        )
        table = (rng.random(score.shape) < expit(score)).astype(np.float64)
        found = worst_case(table, names, rng=rng, n_splits=20)
        expected = float(np.array(found.shares) @ rates)
        rows.append((expected, found.estimate.value or 0.0, found.naive.value or 0.0))
        ends.append((found.estimate.low or 0.0, found.estimate.high or 0.0))
    truth, crossed, naive = np.mean(rows, axis=0).tolist()
    error = float(np.std([row[1] - row[0] for row in rows]) / np.sqrt(n))
    return Choice(truth, crossed, error, naive, float(np.mean([low <= truth <= high for low, high in ends])))


def _selection(n: int) -> str:
    lines: list[str] = []
    for name in GRIDS:
        cell = selection_cell(name, n=n)
        lines.append(
            f"| {name} | {cell.truth:.4f} | {cell.crossed:.4f} ({cell.crossed - cell.truth:+.4f}, "
            f"{cell.crossed_error:.4f}) | {cell.naive:.4f} | {cell.held:.3f} |"
        )
    head = (
        "| candidates, templates x prompts | truth | cross-fitted (bias, its Monte-Carlo error) | naive minimum | "
        "held |\n|---|---|---|---|---|\n"
    )
    return "\n\n".join(
        [
            "### The worst attacker over a grid (`stats.selection.worst_case`)",
            f"{n:,} data sets a row, standard error {_error(n)}. Truth is the expected rate of what is chosen on half "
            "of the templates (and other seeds). To be reached: held >= 0.93.",
            head + "\n".join(lines),
        ]
    )
