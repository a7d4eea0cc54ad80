"""Do the intervals of ED50 hold the truth: for one trajectory, and for an attack of several seeds?

Verdicts come from normal scores: template and prompt each keep a score along the whole trajectory, and each answer has
one of its own, so that any two verdicts of a prompt, and of a template, go together. The refusal rate of the population
at each dose is exactly the curve.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from tamperdose.records import Scope
from tamperdose.stats.carry import error_map
from tamperdose.stats.dose import ED50, ED90, LOG_LOGISTIC, EffectiveDose, fit_dose
from tamperdose.stats.dose_fit import fit_log_logistic
from tamperdose.stats.dose_interval import (
    CrossingInterval,
    DoseTable,
    Target,
    crossing_interval,
    dose_rates,
    isotonic_crossings,
    percentiles,
    resample,
)
from tamperdose.stats.dose_seeds import attack_dose
from tamperdose.stats.judge_error import QualityDraws
from tamperdose.stats.ladder import next_dose

Array = NDArray[np.float64]
Curve = Callable[[Array], Array]

N_FULL, N_QUICK = 120, 4
"""Data sets for each cell."""
N_DRAWS = 300
"""Resamples of each."""
CELL_BAR = 0.93
"""Coverage that every cell must reach."""
LEVEL = 0.95
LARGEST = 256
"""Last step of every ladder."""
DESIGNS = ((50, 1), (100, 2), (100, 5), (400, 5))
"""Prompts, and prompts of each template."""
SHARED = (0.3, 0.3)
"""Variance of the scores that a template and a prompt keep along the trajectory; the rest is each answer's own."""


def log_logistic(lower: float, upper: float, midpoint: float, slope: float) -> Curve:
    """A curve of the family that is fitted."""
    return lambda x: lower + (upper - lower) / (1 + (x / midpoint) ** slope)


def step(x: Array) -> Array:
    """Everything is lost at one dose."""
    return np.where(x < 13, 0.97, 0.02)


def bump(x: Array) -> Array:
    """A dip before the fall, and a rise after it that stays under half of f(0): not monotone, of no fitted family."""
    logs = np.log(np.maximum(x, 1e-9))
    dip, rise = (np.exp(-((logs - np.log(at)) ** 2) / (2 * wide**2)) for at, wide in ((5, 0.4), (60, 0.3)))
    return 0.97 / (1 + (x / 20) ** 2) - 0.1 * dip + 0.18 * rise


CURVES: dict[str, Curve] = {
    "steep": log_logistic(0, 0.97, 13, 6),
    "middling": log_logistic(0.01, 0.95, 13, 2),
    "shallow": log_logistic(0, 0.95, 13, 0.9),
    "step": step,
    "lower asymptote 0.3": log_logistic(0.3, 0.95, 9, 2),
    "bump": bump,
}
LADDERS = {
    "4 x": [0, 1, 4, 16, 64, 256],
    "2 x": [0, 1, 2, 4, 8, 16, 32, 64, 128, 256],
    "dense": [0, *sorted({round(dose) for dose in np.geomspace(1, LARGEST, 20)})],
}
AUTO = "auto"
"""The adaptive ladder: `next_dose` over every step."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One simulated data set."""

    found: CrossingInterval
    """What the package says."""
    naive: tuple[float, float]
    """Plain percentile interval of the interpolated ED50 over resampled prompts."""
    n_doses: int
    """Doses measured."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One design."""

    row: str
    """Curve."""
    column: str
    """Ladder and prompts."""
    coverage: float
    """Share of the intervals that held the truth."""
    naive: float
    """The same for the naive one."""
    width: float
    """Median width in decades; infinite when more than half are open."""
    naive_width: float
    """The same for the naive one."""


def section(*, quick: bool) -> str:
    """Simulate everything and write it as one section of Markdown."""
    n = N_QUICK if quick else N_FULL
    error = np.sqrt(LEVEL * (1 - LEVEL) / n)
    introduction = (
        f"ED50 over curves, ladders up to {LARGEST} steps and prompts; {n} data sets a cell (Monte-Carlo standard "
        f"error {error:.3f} at 0.95), {N_DRAWS} resamples. To be reached: {CELL_BAR} in every cell; more where the "
        "bracket of doses is what limits. A template and a prompt each keep 0.3 of their scores' variance along the "
        "trajectory. Naive: the percentile interval of the interpolated ED50 over resampled prompts."
    )
    parts = ["## Dose-response (`stats.dose`)", introduction]
    if quick:
        parts.append("A reduced run: cells of so few data sets decide nothing.")
    return "\n\n".join([*parts, _trajectories(n), _other_levels(n), _values(n // 4), _attacks(n)]) + "\n"


# --- data sets


@dataclass(frozen=True, slots=True)
class Answers:
    """What every prompt would answer at every step, made when asked for."""

    templates: tuple[str, ...]
    """Template of each prompt."""
    shared: Array
    """Score that a prompt keeps, shape (n,)."""
    rng: np.random.Generator
    """Source of the rest."""

    def at(self, curve: Curve, doses: Sequence[float]) -> Array:
        """Refusals, shape (n, D)."""
        own = np.sqrt(1 - sum(SHARED)) * self.rng.standard_normal((len(self.shared), len(doses)))
        rates = np.clip(curve(np.asarray(doses, dtype=np.float64)), 1e-12, 1 - 1e-12)
        return (self.shared[:, None] + own < ndtri(rates)).astype(np.float64)


def answers(n: int, size: int, rng: np.random.Generator) -> Answers:
    """New prompts."""
    codes = np.arange(n) // size
    shared = np.sqrt(SHARED[0]) * rng.standard_normal(codes[-1] + 1)[codes]
    return Answers(tuple(f"{code:03d}" for code in codes), shared + np.sqrt(SHARED[1]) * rng.standard_normal(n), rng)


def truth(curve: Curve, target: Target = ED50) -> float:
    """First dose at which the population's curve is down at the level; infinite if it never is."""
    # Whole steps too: a curve may fall exactly at one, and an interval that ends there holds it.
    grid = np.union1d(np.geomspace(0.01, LARGEST, 400_000), np.arange(1.0, LARGEST + 1))
    under = curve(grid) <= target.fraction * float(curve(np.zeros(1))[0])
    return float(grid[np.argmax(under)]) if under.any() else np.inf


def measured(prompts: Answers, curve: Curve, ladder: str) -> DoseTable:
    """A table at the doses of a ladder, or of the adaptive one."""
    if ladder != AUTO:
        doses = np.array(LADDERS.get(ladder, [0, 1, 2, 4, 8, 16]), dtype=np.float64)
        return DoseTable(doses, prompts.at(curve, list(doses)), prompts.templates)
    columns: dict[int, Array] = {}
    sampling = None
    while True:
        rates = {dose: float(column.mean()) for dose, column in columns.items()}
        dose = next_dose(rates, range(1, LARGEST + 1), sampling=sampling, budget=16)
        if dose is None:
            return _table(columns, prompts)
        columns[dose] = prompts.at(curve, [dose])[:, 0]
        if len(columns) >= len(LADDERS["2 x"]):
            table = _table(columns, prompts)
            drawn = isotonic_crossings(table.doses, resample(table, rng=prompts.rng, n_draws=200), ED50).at
            low, high = percentiles(drawn, (1 - LEVEL) / 2)
            sampling = (min(low, LARGEST), None if np.isinf(high) else high)


def _table(columns: dict[int, Array], prompts: Answers) -> DoseTable:
    doses = sorted(columns)
    return DoseTable(
        np.array(doses, dtype=np.float64), np.stack([columns[dose] for dose in doses], axis=1), prompts.templates
    )


def trial(table: DoseTable, rng: np.random.Generator, target: Target = ED50) -> Trial:
    """The interval as `fit_dose` makes it, and the naive one."""
    rates = dose_rates(table.refused, table.templates, level=LEVEL, rng=rng, error=None)
    found = crossing_interval(
        table, resample(table, rng=rng, n_draws=N_DRAWS), (rates, rates), target=target, level=LEVEL
    )
    alone = DoseTable(table.doses, table.refused, tuple(map(str, range(len(table.templates)))))
    drawn = isotonic_crossings(table.doses, resample(alone, rng=rng, n_draws=N_DRAWS), target).at
    return Trial(found, percentiles(drawn, (1 - LEVEL) / 2), len(table.doses))


# --- one trajectory


def _cell(names: tuple[str, str, tuple[int, int]], n: int, target: Target = ED50) -> tuple[Cell, float]:
    curve_name, ladder, design = names
    curve, trials = CURVES[curve_name], []
    for number in range(n):
        rng = np.random.default_rng([6, number, *design, len(ladder), list(CURVES).index(curve_name)])
        trials.append(trial(measured(answers(*design, rng), curve, ladder), rng, target))
    at = truth(curve, target)
    ends = [(one.found.low, one.found.high) for one in trials]
    naive = [one.naive for one in trials]
    column = f"{ladder}, {design[0]} by {design[1]}"
    cell = Cell(curve_name, column, _held(ends, at), _held(naive, at), _decades(ends), _decades(naive))
    return cell, float(np.mean([one.n_doses for one in trials]))


def _held(ends: Sequence[tuple[float, float]], at: float) -> float:
    return float(np.mean([low <= at and (at <= high) for low, high in ends]))


def _decades(ends: Sequence[tuple[float, float]]) -> float:
    """Median width; the first positive dose stands for a lower end of 0."""
    widths = [np.inf if np.isinf(high) else np.log10(max(high, 1.0) / max(low, 1.0)) for low, high in ends]
    return float(np.median(widths))


def trajectory_cells(n: int) -> Iterator[tuple[Cell, float]]:
    """Every curve, ladder and set of prompts; with the mean number of doses."""
    for curve in CURVES:
        for ladder in (*LADDERS, AUTO):
            # The adaptive ladder asks for many fits: a third as many data sets.
            yield from (_cell((curve, ladder, design), n if ladder != AUTO else max(n // 3, 2)) for design in DESIGNS)


def _trajectories(n: int) -> str:
    cells = list(trajectory_cells(n))
    tables = []
    for ladder in (*LADDERS, AUTO):
        mine = [(cell, doses) for cell, doses in cells if cell.column.startswith(f"{ladder},")]
        average = float(np.mean([doses for _, doses in mine]))
        tables.append(f"Ladder `{ladder}` ({average:.1f} doses on average):\n\n{_grid([cell for cell, _ in mine])}")
    return "\n\n".join(
        [
            f"### One trajectory, scope `{Scope.TRAJECTORY}` (`crossing_interval`)",
            _verdict([cell for cell, _ in cells], judged=n >= N_FULL),
            "Coverage, in brackets that of the naive interval; then the median widths of the two in decades. `100 by "
            "5`: 100 prompts, five of each template.",
            *tables,
        ]
    )


def _grid(cells: Sequence[Cell]) -> str:
    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = list(dict.fromkeys(cell.column.split(", ")[1] for cell in cells))
    by_place = {(cell.row, cell.column.split(", ")[1]): cell for cell in cells}
    lines = [f"| {row} | {' | '.join(_text(by_place[row, column]) for column in columns)} |" for row in rows]
    return "\n".join([f"| curve | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}", *lines])


def _text(cell: Cell) -> str:
    return f"{cell.coverage:.3f} ({cell.naive:.2f}); {_width(cell.width)}, {_width(cell.naive_width)}"


def _width(width: float) -> str:
    return "open" if np.isinf(width) else f"{width:.2f}"


def _verdict(cells: Sequence[Cell], *, judged: bool) -> str:
    covered = np.array([cell.coverage for cell in cells])
    naive = np.array([cell.naive for cell in cells])
    under = int(np.sum(covered < CELL_BAR))
    worst = cells[int(np.argmin(covered))]
    word = ("**Missed**" if under else "Met") if judged else "Reduced run"
    return (
        f"{word}: mean {covered.mean():.3f}, least {covered.min():.3f} ({worst.row}, {worst.column}) over {len(cells)} "
        f"cells; {under} below {CELL_BAR}. Naive: mean {naive.mean():.3f}, least {naive.min():.3f}."
    )


# --- ED90, and corrected rates


def _other_levels(n: int) -> str:
    designs = [(curve, "2 x", (100, 2)) for curve in CURVES]
    cells = [_cell(design, n // 2, ED90)[0] for design in designs]
    lines = [f"| {cell.row} | {_text(cell)} |" for cell in cells]
    corrected = ", ".join(f"{share:.3f} ({name})" for name, share in _corrected(n // 2))
    return (
        "### ED90, and ED50 of corrected rates\n\n"
        f"ED90, ladder `2 x`, 100 prompts by 2. {_verdict(cells, judged=n >= N_FULL)} With a lower asymptote of 0.3 it "
        "is never reached, and an interval holds that when it is open.\n\n| curve | ED90 |\n|---|---|\n"
        + "\n".join(lines)
        + "\n\nA judge of sensitivity 0.9 and specificity 0.9, each known from 100 labels, and its error carried: the "
        f"interval of the corrected ED50 held the true one in {corrected}."
    )


def _corrected(n: int) -> Iterator[tuple[str, float]]:
    for name in ("middling", "shallow", "lower asymptote 0.3"):
        yield name, float(np.mean([_corrected_trial(name, number) for number in range(n)]))


def _corrected_trial(name: str, number: int) -> bool:
    rng = np.random.default_rng([7, number])
    table = measured(answers(100, 2, rng), CURVES[name], "2 x")
    wrong = rng.random(table.refused.shape) < 0.1
    judged = DoseTable(table.doses, np.where(wrong, 1 - table.refused, table.refused), table.templates)
    quality = [rng.beta(hits + 0.5, 100 - hits + 0.5, 1000) for hits in rng.binomial(100, 0.9, 2)]
    maps = [error_map(QualityDraws(*quality))] * len(table.doses)
    rates = dose_rates(judged.refused, judged.templates, level=LEVEL, rng=rng, error=maps)
    drawn = resample(judged, rng=rng, n_draws=N_DRAWS, error=maps)
    found = crossing_interval(judged, drawn, (rates, rates), target=ED50, level=LEVEL)
    return found.low <= truth(CURVES[name]) <= found.high


# --- the value


def _values(n: int) -> str:
    lines = [_value_line(curve, ladder, max(n, 4)) for curve in CURVES for ladder in LADDERS]
    return "\n\n".join(
        [
            "### The value: which fit",
            f"Median error and standard deviation of log10 ED50, 100 prompts by 2, {max(n, 4)} data sets: the value of "
            "`fit_dose`, and those of either fit alone. Chosen: share of data sets in which the log-logistic fit was "
            "not refuted. Within a bracket no fit can place a step: its error there is the bracket's.",
            "| curve | ladder | chosen | value | log-logistic | isotonic |\n|---|---|---|---|---|---|\n"
            + "\n".join(lines),
        ]
    )


def _value_line(name: str, ladder: str, n: int) -> str:
    curve, at = CURVES[name], truth(CURVES[name])
    found: list[tuple[float, float, float]] = []
    chosen = 0
    for number in range(n):
        rng = np.random.default_rng([8, number, len(ladder)])
        table = measured(answers(100, 2, rng), curve, ladder)
        fit = fit_dose(table, rng=rng, n_draws=200)
        chosen += fit.diagnostics.fit == LOG_LOGISTIC
        rates, weights = table.refused.mean(axis=0)[None], np.full((1, len(table.doses)), 100.0)
        smooth = fit_log_logistic(table.doses, rates, weights)
        one = dose_rates(table.refused, table.templates, level=LEVEL, rng=rng, error=None)
        point = crossing_interval(
            table, resample(table, rng=rng, n_draws=1), (one, one), target=ED50, level=LEVEL
        ).point
        found.append((fit.ed50.value or np.nan, float(smooth.falls_to(0.5 * smooth.upper)[0]), float(point.at[0])))
    errors = np.log10(np.array(found).T / at)
    texts = [_error_text(row[np.isfinite(row)]) for row in errors]
    return f"| {name} | {ladder} | {chosen / n:.2f} | {' | '.join(texts)} |"


def _error_text(errors: Array) -> str:
    return f"{np.median(errors):+.3f}, {errors.std():.3f}" if errors.size else "none"


# --- several seeds

SHORT = "to 16"
"""A ladder that ends soon behind the truth, so that seeds are right-censored."""
SPREADS = (0.0, 0.3)
"""Standard deviation of log10 ED50 over seeds, decades."""


def _attacks(n: int) -> str:
    cells: list[Cell] = []
    lines: list[str] = []
    for curve in ("steep", "shallow", "step"):
        for ladder in (*LADDERS, SHORT):
            row = [
                _attack_cell((curve, ladder), spread, n_seeds, max(n // 3, 2))
                for n_seeds in (3, 5)
                for spread in SPREADS
            ]
            cells += [cell for cell, _ in row]
            texts = [f"{cell.coverage:.3f} ({cell.naive:.2f}, {one:.2f}); {_width(cell.width)}" for cell, one in row]
            lines.append(f"| {curve} | {ladder} | {' | '.join(texts)} |")
    heads = [f"{n_seeds} seeds, SD {spread:g}" for n_seeds in (3, 5) for spread in SPREADS]
    return "\n\n".join(
        [
            f"### Several seeds, scope `{Scope.ATTACK}` (`stats.dose_seeds.attack_dose`)",
            _verdict(cells, judged=n >= N_FULL),
            "Seeds shift the curve by a normal number of decades; 100 prompts by 2, the same for every seed, keep half "
            f"of what they keep along a trajectory. {max(n // 3, 2)} data sets a cell. In brackets Student's interval "
            "of the interpolated values (censored seeds left out), and the naive interval of the first seed; then the "
            f"median width in decades. `{SHORT}`: doses 1, 2, 4, 8, 16, beyond which the ED50 of many seeds lies.",
            f"| curve | ladder | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}\n" + "\n".join(lines),
        ]
    )


def _attack_cell(names: tuple[str, str], spread: float, n_seeds: int, n: int) -> tuple[Cell, float]:
    at = truth(CURVES[names[0]])
    runs = [_attack_trial(names, spread, n_seeds, number) for number in range(n)]
    found, student, naive = (list(column) for column in zip(*runs, strict=True))
    column = f"{names[1]}, {n_seeds} seeds, SD {spread:g}"
    cell = Cell(names[0], column, _held(found, at), _held(student, at), _decades(found), _decades(student))
    return cell, _held(naive, at)


def _attack_trial(
    names: tuple[str, str], spread: float, n_seeds: int, number: int
) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    rng = np.random.default_rng([9, number, n_seeds, int(100 * spread)])
    prompts, curve = answers(100, 2, rng), CURVES[names[0]]
    trials: list[Trial] = []
    for shift in spread * rng.standard_normal(n_seeds):
        own = Answers(
            prompts.templates, np.sqrt(0.5) * prompts.shared + np.sqrt(0.5) * answers(100, 2, rng).shared, rng
        )
        trials.append(trial(measured(own, _shifted(curve, 10**shift), names[1]), rng))
    whole = attack_dose([as_dose(one) for one in trials], level=LEVEL)
    low, high = whole.low or 0.0, np.inf if whole.high is None else whole.high
    return (low, high), student([float(one.found.point.at[0]) for one in trials]), trials[0].naive


def _shifted(curve: Curve, factor: float) -> Curve:
    return lambda x: curve(x / factor)


def as_dose(one: Trial) -> EffectiveDose:
    """The record of a trial, with the isotonic value."""
    point = one.found.point
    below, above, at = (float(column[0]) for column in (point.below, point.above, point.at))
    censored = "right" if np.isinf(above) else "left" if below == 0 else ""
    ends = [None if np.isinf(end) else end for end in (above, one.found.high)]
    facts = (censored, None, "isotonic", "simulated", Scope.TRAJECTORY, 100, 50, 0)
    return EffectiveDose(0.5, None if censored else at, one.found.low, ends[1], LEVEL, (below, ends[0]), *facts)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval of the logs, censored seeds left out."""
    logs = np.log([value for value in values if np.isfinite(value) and value > 0])
    if len(logs) < 2:
        return np.inf, np.inf
    reach = stdtrit(len(logs) - 1, (1 + LEVEL) / 2) * logs.std(ddof=1) / np.sqrt(len(logs))
    return float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))
