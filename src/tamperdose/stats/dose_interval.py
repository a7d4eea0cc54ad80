"""Intervals for the dose at which a curve falls to a level, from resampled templates and from tests at each dose.

Nothing here assumes the shape of the curve, only that it does not rise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate
from tamperdose.stats.carry import ErrorMap, corrected_difference, corrected_draws, prompt_covariance
from tamperdose.stats.clusters import template_codes
from tamperdose.stats.distributions import normal_cdf, t_quantile
from tamperdose.stats.dose_curve import Crossings, Floats, antitonic, check_doses, crossings
from tamperdose.stats.judge_error import effective_judged
from tamperdose.stats.rates import rate


@dataclass(frozen=True, slots=True)
class DoseTable:
    """The verdicts of one trajectory: every prompt at every dose."""

    doses: Floats
    """Optimizer steps, increasing, the first one 0, shape (D,)."""
    refused: Floats
    """1 refused, 0 not, NaN unreadable; a prompt's mean over samples will do. Shape (n, D)."""
    templates: tuple[str, ...]
    """The template of each prompt, length n."""
    complied: Floats | None = None
    """The same for compliance, NaN in the same places, for ED50c; None where it is not wanted."""
    n_samples: int = 1
    """Rows of each prompt, where its samples are rows of their own."""

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Where a verdict could be had, shape (n, D)."""
        return ~np.isnan(self.refused)


def check_table(table: DoseTable) -> DoseTable:
    """Return the table if its parts fit and every dose has a readable verdict; n may be 1, not 0.

    Raises:
        DataError: Shapes that differ, values outside [0, 1], a dose without readable verdict, no ladder of doses.

    >>> check_table(DoseTable(np.array([0.0, 1.0]), np.array([[1.0, 0.0]]), ("a",))).readable.sum()
    np.int64(2)
    """
    doses = check_doses(table.doses)
    shape = (len(table.templates), len(doses))
    for name in ("refused", "complied"):
        values = getattr(table, name)
        if values is None:
            continue
        if values.shape != shape:
            raise DataError(explain(f"{name} does not fit", got=f"shape {values.shape}", expected=f"{shape}"))
        if not np.all(np.isnan(values) | ((values >= 0) & (values <= 1))):
            raise DataError(explain(f"{name} must lie in [0, 1]", expected="0, 1, or NaN where unreadable"))
        if not np.array_equal(np.isnan(values), np.isnan(table.refused)):
            raise DataError(
                explain("complied and refused are unreadable in different places", expected="the same ones")
            )
    empty = np.flatnonzero(~table.readable.any(axis=0))
    if empty.size:
        raise DataError(
            explain(
                "a dose without a readable verdict",
                got=f"dose {doses[empty[0]]:g}",
                expected="one verdict at each dose or more",
                remedy="leave the dose out",
            )
        )
    return replace(table, doses=doses)


@dataclass(frozen=True, slots=True)
class Resamples:
    """Rates of B resamples of whole templates; a prompt brings its verdicts at all doses."""

    refusal: Floats
    """Corrected where there is a map, shape (B, D)."""
    compliance: Floats | None
    """Shape (B, D); None where not asked for or where the rates are corrected."""
    weights: Floats
    """Readable prompts behind each rate, shape (B, D)."""


def resample(
    table: DoseTable, *, rng: np.random.Generator, n_draws: int, error: Sequence[ErrorMap] | None = None
) -> Resamples:
    """Resample K templates of K with replacement, as multinomial counts.

    A dose without any readable prompt in a resample has weight 0 there and the rate of the table.

    Args:
        table: Of :func:`check_table`.
        rng: Source of the resamples.
        n_draws: Resamples, B.
        error: One map for each dose; draw b (counted round) of every map goes to resample b.

    Source: Davison & Hinkley (1997), Bootstrap Methods and their Application, 3.8: whole clusters.

    >>> table = DoseTable(np.array([0.0, 1.0]), np.array([[1.0, 0.0], [1.0, 1.0]]), ("a", "b"))
    >>> resample(table, rng=np.random.default_rng(0), n_draws=4).refusal[:, 0].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    codes = template_codes(table.templates)
    n_templates = int(codes.max()) + 1
    counts = rng.multinomial(n_templates, np.full(n_templates, 1 / n_templates), size=n_draws).astype(np.float64)
    readable = _by_template(table.readable.astype(np.float64), codes, n_templates)
    weights = counts @ readable
    refusal = _rates(counts, table.refused, weights, codes)
    if error is not None:
        corrected = [
            corrected_draws(column, _cycled(line, n_draws)) for column, line in zip(refusal.T, error, strict=True)
        ]
        return Resamples(np.stack(corrected, axis=1), None, weights)
    compliance = None if table.complied is None else _rates(counts, table.complied, weights, codes)
    return Resamples(refusal, compliance, weights)


def _by_template(values: Floats, codes: NDArray[np.intp], n_templates: int) -> Floats:
    sums = np.zeros((n_templates, values.shape[1]))
    np.add.at(sums, codes, values)
    return sums


def _rates(counts: Floats, values: Floats, weights: Floats, codes: NDArray[np.intp]) -> Floats:
    sums = counts @ _by_template(np.nan_to_num(values), codes, counts.shape[1])
    return np.where(weights > 0, sums / np.where(weights > 0, weights, 1.0), np.nanmean(values, axis=0))


def _cycled(line: ErrorMap, n_draws: int) -> ErrorMap:
    index = np.arange(n_draws) % len(line.slope)
    return ErrorMap(line.intercept[index], line.slope[index])


def tail(n_templates: int, level: float) -> float:
    """Share of resamples beyond each end: Phi(-sqrt(K / (K - 1)) t_{K-1}), less than (1 - level) / 2 for few templates.

    Source: Hesterberg (2015), doi:10.1080/00031305.2015.1089789, the expanded percentile interval.

    >>> round(tail(100, 0.95), 4), round(tail(5, 0.95), 4)
    (0.0231, 0.001)
    """
    t = t_quantile((1 + level) / 2, n_templates - 1)
    return normal_cdf(-math.sqrt(n_templates / (n_templates - 1)) * t)


def percentiles(values: Floats, share: float) -> tuple[float, float]:
    """Quantiles at `share` and 1 - `share`, at values that occur, outwards: infinities are allowed.

    >>> percentiles(np.array([1.0, 2.0, 3.0, np.inf]), 0.25)
    (1.0, inf)
    """
    ordered = np.sort(values)
    place = max(0, math.ceil(share * len(ordered)) - 1)
    return float(ordered[place]), float(ordered[len(ordered) - 1 - place])


def bracket_percentiles(found: Crossings, share: float) -> tuple[float, float]:
    """Percentile interval of the brackets: low from their lower ends, high from their upper ends."""
    return percentiles(found.below, share)[0], percentiles(found.above, share)[1]


@dataclass(frozen=True, slots=True)
class Contrasts:
    """Of each dose, how far the rate is above the level: its estimate and interval. Arrays of shape (D,)."""

    value: Floats
    """Estimate."""
    low: Floats
    """Lower end; -infinity where undefined."""
    high: Floats
    """Upper end; infinity where undefined."""


def step_down(doses: Floats, contrasts: Contrasts) -> tuple[float, float]:
    """Interval of the crossing by tests at each dose: from the doses surely above the level to those surely under it.

    low = the last dose of the unbroken run from dose 0 whose contrast is above 0 with its whole interval; high = the
    first dose of the unbroken run up to the last one whose contrast is below 0 with its whole interval, infinity when
    the last dose is not. The tests need no adjustment for their number: low is wrong only if the first dose behind the
    crossing is called above, high only if the last dose in front of it is called under, one test each. It holds
    whatever the shape, if the curve does not rise, and always contains the bracket of measured doses.

    Source: Hsu & Berger (1999), doi:10.1080/01621459.1999.10474141: stepwise confidence intervals without multiplicity
    adjustment for dose-response studies.

    >>> low, high = np.array([0.4, 0.2, -0.1, -0.5]), np.array([1, 1, 0.1, -0.2])
    >>> step_down(np.array([0.0, 1, 2, 4]), Contrasts((low + high) / 2, low, high))
    (1.0, 4.0)
    """
    above, under = contrasts.low > 0, contrasts.high < 0
    first_open = int(np.argmin(above)) if not above.all() else len(doses)
    n_under = int(np.argmin(under[::-1])) if not under.all() else len(doses)
    low = doses[max(first_open - 1, 0)]
    high = np.inf if n_under == 0 else doses[max(len(doses) - n_under, 1)]
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class DoseRates:
    """The rate at each dose with its own interval."""

    estimates: tuple[Estimate, ...]
    """Of `rate`, or the corrected ones."""
    slopes: tuple[float, ...]
    """Of the lines from the judge's rates to these; 1 where nothing is corrected."""
    values: Floats
    """0 or 1 for each prompt, NaN unreadable, shape (n, D)."""


def dose_rates(
    values: Floats,
    templates: Sequence[str],
    *,
    level: float,
    rng: np.random.Generator,
    error: Sequence[ErrorMap] | None,
    n_samples: int = 1,
) -> DoseRates:
    """The rate at each dose; with maps, the median of the corrected draws and their quantiles.

    The draws of the judged rate are beta(n* q + 1/2, n* (1 - q) + 1/2), as in `transported_rate`.
    """
    estimates: list[Estimate] = []
    for place, column in enumerate(values.T):
        read = ~np.isnan(column)
        names = [name for name, has in zip(templates, read, strict=True) if has]
        judged = rate(column[read], names, n_unreadable=int(np.sum(~read)), level=level, n_samples=n_samples)
        estimates.append(judged if error is None else _corrected(judged, error[place], rng))
    slopes = tuple(1.0 if error is None else float(np.median(error[place].slope)) for place in range(values.shape[1]))
    return DoseRates(tuple(estimates), slopes, values)


def _corrected(judged: Estimate, line: ErrorMap, rng: np.random.Generator) -> Estimate:
    q = judged.value or 0.0
    value = float(np.median(corrected_draws(np.full(len(line.slope), q), line)))
    size = effective_judged(judged)
    if size is None:
        return replace(judged, value=value, low=None, high=None)
    draws = corrected_draws(rng.beta(size * q + 0.5, size * (1 - q) + 0.5, len(line.slope)), line)
    low, high = np.quantile(draws, [(1 - judged.level) / 2, (1 + judged.level) / 2])
    return replace(judged, value=value, low=min(value, float(low)), high=max(value, float(high)))


def contrasts(
    curve: DoseRates, base: DoseRates, templates: Sequence[str], *, fraction: float, rising: bool = False
) -> Contrasts:
    """Rate at each dose less `fraction` of the refusal rate at dose 0, or, for a rising curve, the other way round.

    The interval recovers the variances of the two rates' own intervals with their covariance through shared prompts
    (`corrected_difference`), so that it keeps a width where all prompts agree. At dose 0 of the refusal rate itself
    the contrast is (1 - fraction) times the rate. The judge's error is taken as that of two judges, though doses may
    share one; shared errors move both rates the same way, so the interval errs on the wide side.
    """
    places = range(len(curve.estimates))
    found = np.array([contrast((curve, place), (base, 0), templates, fraction=fraction) for place in places])
    if rising:
        found = np.stack([-found[:, 0], -found[:, 2], -found[:, 1]], axis=1)
    return Contrasts(*found.T)


def contrast(
    tampered: tuple[DoseRates, int], base: tuple[DoseRates, int], templates: Sequence[str], *, fraction: float
) -> tuple[float, float, float]:
    """Rate at one dose less `fraction` of that at another: value, low, high; infinite ends where undefined."""
    (later, place), (earlier, start) = tampered, base
    first, second = earlier.estimates[start], later.estimates[place]
    if first.value is None or second.value is None or first.low is None or first.high is None:
        return 0.0, -np.inf, np.inf
    if later is earlier and place == start:
        return (1 - fraction) * first.value, (1 - fraction) * first.low, (1 - fraction) * first.high
    scaled = replace(first, value=fraction * first.value, low=fraction * first.low, high=fraction * first.high)
    shared = ~np.isnan(earlier.values[:, start]) & ~np.isnan(later.values[:, place])
    names = [name for name, has in zip(templates, shared, strict=True) if has]
    slopes = (fraction * earlier.slopes[start], later.slopes[place])
    pair = earlier.values[shared, start], later.values[shared, place]
    result = corrected_difference(scaled, second, covariance=prompt_covariance(*pair, names, slopes=slopes))
    if result.value is None or result.low is None or result.high is None:
        return result.value or 0.0, -np.inf, np.inf
    return result.value, result.low, result.high


@dataclass(frozen=True, slots=True)
class Target:
    """What the curve must fall to, and which curve."""

    fraction: float
    """Of f(0), in (0, 1): 0.5 for ED50, 0.1 for ED90."""
    rising: bool = False
    """The compliance rate reaches the level, instead of the refusal rate falling to it."""


@dataclass(frozen=True, slots=True)
class CrossingInterval:
    """Where a trajectory's curve crosses its level, by the isotonic fit, with what is known of it."""

    point: Crossings
    """Of the table itself, arrays of shape (1,)."""
    low: float
    """Lower end; 0 where no positive dose is surely in front of the crossing."""
    high: float
    """Upper end; infinity where no dose is surely behind it."""
    sampling: tuple[float, float]
    """Percentile interval of the interpolated crossing: chance in the prompts alone, the bracket left out."""


def isotonic_crossings(doses: Floats, rates: Resamples, target: Target) -> Crossings:
    """Crossings of the isotonic fits of B tables (or resamples), f(0) being the fit's own value at dose 0."""
    falling = antitonic(rates.refusal, rates.weights)
    level = target.fraction * falling[:, 0]
    if not target.rising:
        return crossings(doses, falling, level)
    if rates.compliance is None:
        raise DataError(explain("no compliance to cross a level", expected="a table with `complied`"))
    return crossings(doses, antitonic(-rates.compliance, rates.weights), -level)


def crossing_interval(
    table: DoseTable, resamples: Resamples, rates: tuple[DoseRates, DoseRates], *, target: Target, level: float
) -> CrossingInterval:
    """The union of two intervals that err in different places, and of the bracket of the table itself.

    One is the expanded percentile interval of the resampled brackets, the other that of :func:`step_down`. The
    bootstrap fails where all prompts agree (every resample is then the same) and with few templates; the tests keep a
    width there. Needs two templates.

    Args:
        table: Of :func:`check_table`.
        resamples: Of :func:`resample`.
        rates: Of :func:`dose_rates` for the curve that crosses and for refusal (the same one, but for ED50c).
        target: The level.
        level: Confidence level.
    """
    doses, share = table.doses, tail(len(set(table.templates)), level)
    point = isotonic_crossings(doses, whole(table, rates), target)
    drawn = isotonic_crossings(doses, resamples, target)
    curve, base = rates
    tested = step_down(doses, contrasts(curve, base, table.templates, fraction=target.fraction, rising=target.rising))
    spread = bracket_percentiles(drawn, share)
    low = min(tested[0], spread[0], float(point.below[0]))
    high = max(tested[1], spread[1], float(point.above[0]))
    return CrossingInterval(point, low, high, percentiles(drawn.at, share))


def whole(table: DoseTable, rates: tuple[DoseRates, DoseRates]) -> Resamples:
    """The table's own rates in the form of one resample."""
    curve, base = ([[estimate.value or 0.0 for estimate in side.estimates]] for side in rates)
    weights = table.readable.sum(axis=0, keepdims=True).astype(np.float64)
    return Resamples(np.array(base), np.array(curve), weights)
