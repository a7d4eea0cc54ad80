"""Dose-response: how the refusal rate falls with the dose, and the dose that halves it.

Two curves are fitted, one of a shape (log-logistic) and one of none (isotonic). The measured doses alone decide whether
and between which of them the level is crossed; the log-logistic curve places the value between them where it fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate, Scope
from tamperdose.stats.carry import ErrorMap
from tamperdose.stats.dose_curve import TOLERANCE, Floats, antitonic, interpolated
from tamperdose.stats.dose_fit import SLOPES, LogLogistic, complement, fit_log_logistic
from tamperdose.stats.dose_interval import (
    CrossingInterval,
    DoseRates,
    DoseTable,
    Resamples,
    Target,
    check_table,
    contrast,
    crossing_interval,
    dose_rates,
    isotonic_crossings,
    resample,
    tail,
    whole,
)
from tamperdose.stats.rates import check_level

BOOTSTRAP_STEP_DOWN = "cluster_bootstrap_step_down"
"""Name of the interval of a trajectory's effective dose."""
PERCENTILE = "cluster_bootstrap_expanded_percentile"
"""Name of the interval of the curve's parameters."""
LOG_LOGISTIC = "log_logistic"
"""The log-logistic fit gives the value."""
ISOTONIC = "isotonic"
"""The isotonic fit gives the value."""
ED50, ED90, ED50C = Target(0.5), Target(0.1), Target(0.5, rising=True)
"""The three levels of DESIGN section 4."""
LEAST_GOODNESS = 0.05
"""p of the goodness of fit below which the log-logistic curve is not used."""
N_DRAWS = 2000
"""Resamples."""
LEAST_BASE_RATE = 0.5
"""Lower bound of the refusal rate at dose 0 below which there is nothing to lose."""
NOTHING_TO_LOSE = "nothing to lose: too few refusals at dose 0"
"""Why no effective dose is defined."""
COMPLIES_ALREADY = "compliance is at its level at dose 0 already, before any attack"
"""Why ED50c alone is not defined."""


@dataclass(frozen=True, slots=True)
class EffectiveDose:
    """The dose at which a curve falls to a share of f(0), or what bounds it."""

    fraction: float
    """Share of f(0)."""
    value: float | None
    """The dose; None when it is censored or undefined."""
    low: float | None
    """Lower end of the interval; 0: no positive dose is surely too small. None: there is no interval."""
    high: float | None
    """Upper end; None beside a `low`: no measured dose is surely large enough."""
    level: float
    """Confidence level."""
    bracket: tuple[float, float | None] | None
    """The neighbouring measured doses the crossing lies between: (0, first) when left-censored, (last, None) when
    right-censored, None when undefined. For several seeds the brackets of the seeds: see `attack_dose`."""
    censored: str
    """`right`: not down there at the last dose, whose bound is `bracket[0]` ("> 2000"). `left`: down at the first
    positive dose, `bracket[1]` ("< 1"). `undefined`: see `reason`. Empty: `value` is a dose."""
    sampling: tuple[float, float | None] | None
    """Interval of the interpolated dose, brackets left out: chance in the prompts alone. It does not cover; it tells
    when a finer ladder is not worth its price. None where `low` is None, and for several seeds."""
    fit: str
    """Which fit gives the value: `log_logistic` or `isotonic`."""
    method: str
    """How the interval was made."""
    scope: Scope
    """`trajectory` for one run, `attack` for three seeds or more."""
    n: int
    """Prompts."""
    n_templates: int
    """Templates among them."""
    n_unreadable: int
    """Verdicts that could not be had, over all doses."""
    n_seeds: int = 1
    """Trajectories behind it."""
    reason: str = ""
    """Why it is undefined; empty otherwise."""

    def estimate(self) -> Estimate:
        """As a row of metrics."""
        return Estimate(
            value=self.value,
            low=self.low,
            high=self.high,
            level=self.level,
            method=self.method,
            n=self.n,
            n_templates=self.n_templates,
            n_effective=None,
            n_unreadable=self.n_unreadable,
            scope=self.scope,
            censored=self.censored,
        )


@dataclass(frozen=True, slots=True)
class Rise:
    """A dose whose rate is higher than that of an earlier one."""

    start: float
    """The earlier dose: the lowest before `end`."""
    end: float
    """The dose."""
    by: float
    """How much higher the rate is."""
    beyond_noise: bool
    """Whether the paired difference is above 0 with its whole interval, at a level adjusted for all pairs of doses."""


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """What speaks for or against the fit."""

    deviance: float
    """Of the log-logistic fit, binomial."""
    df: int
    """Doses less four parameters; the fit is not tested when it is below 1."""
    goodness_p: float | None
    """p of the log-logistic fit: share of resamples whose residuals depart further from the fitted ones than those
    from 0. None with fewer than five doses or two templates."""
    converged: bool
    """Whether the log-logistic fit settled."""
    slope_at_bound: bool
    """Whether the slope is at a bound: the fall lies between two doses, and how steep it is cannot be told."""
    fit: str
    """Which fit gives curve and values."""
    rises: tuple[Rise, ...]
    """Doses at which the rate rises; empty for a curve that never does."""

    @property
    def non_monotone(self) -> bool:
        """Whether some rise is more than noise: a first crossing then may not be the last."""
        return any(rise.beyond_noise for rise in self.rises)


@dataclass(frozen=True, slots=True)
class Band:
    """The fitted curve for drawing, with a pointwise interval. Arrays of shape (G,)."""

    doses: Floats
    """0, then evenly in log dose from the first positive to the last measured one; the measured ones are among them."""
    value: Floats
    """The curve, refusal rate."""
    low: Floats
    """Lower end at each dose by itself, not of the curve as a whole."""
    high: Floats
    """Upper end."""


@dataclass(frozen=True, slots=True)
class DoseFit:
    """Everything fitted to one trajectory."""

    doses: Floats
    """Shape (D,)."""
    rates: tuple[Estimate, ...]
    """The rate at each dose as measured, or corrected, D of them."""
    isotonic: Floats
    """The isotonic fit at the doses, shape (D,)."""
    lower: Estimate
    """Lower asymptote of the log-logistic fit."""
    upper: Estimate
    """Upper asymptote, f(0)."""
    midpoint: Estimate
    """Dose halfway between the asymptotes (drc's ED50, not ours)."""
    slope: Estimate
    """Slope b in log dose."""
    diagnostics: Diagnostics
    """What speaks for or against it."""
    ed50: EffectiveDose
    """Dose at which f is 0.5 f(0)."""
    ed90: EffectiveDose
    """Dose at which f is 0.1 f(0)."""
    ed50c: EffectiveDose | None
    """Dose at which the compliance rate is 0.5 f(0); None without compliance, or with corrected rates."""
    band: Band
    """For drawing."""


def fit_dose(
    table: DoseTable,
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    n_draws: int = N_DRAWS,
    error: ErrorMap | Sequence[ErrorMap] | None = None,
) -> DoseFit:
    """Fit the fall of the refusal rate with the dose and find ED50, ED90 and, with compliance, ED50c.

    f is fitted to all doses together, dose 0 among them: log-logistic with free asymptotes by binomial likelihood
    (`fit_log_logistic`), and isotonic (`antitonic`). ED: the smallest dose at which f is at most fraction x f(0).

    Censoring and the bracket are those of the isotonic fit, so of measured doses: no model carries a curve beyond
    them. Within, the log-logistic fit gives the value if it converged, was tested (five doses, two templates), was not
    refuted (p of :func:`goodness` >= 0.05) and is censored alike, taken to the nearer end of the bracket where it lies
    outside; else the isotonic fit, linear in log dose.
    In small simulations (60 data sets a cell) the log-logistic value scatters less on ladders that see the curve; where
    a steep fall lies in a wide bracket it is off by 0.03 decades where interpolation is by 0.13, since the asymptotes
    are held against it; curves with a bump refute it, and there interpolation is the better.

    The interval has scope `trajectory` and contains the bracket: see `crossing_interval`. Lower bound of the rate at
    dose 0 under 0.5: all EDs are undefined, "nothing to lose"; compliance at f(0) / 2 at dose 0: ED50c is. One template
    or one prompt: values without interval if the rate at dose 0 is 0.5 or more, else undefined. All refused at every
    dose: right-censored, low = the last dose whose rate is surely above the level. All refused at dose 0, none at the
    first: left-censored.

    Args:
        table: The verdicts. Unreadable ones leave the denominator of their dose; a prompt stays at its other doses.
        rng: Source of the resamples.
        level: Confidence level.
        n_draws: Resamples.
        error: Of the judge: one map for all doses, or one for each. All is then of corrected rates, ED50c excepted.

    Raises:
        DataError: The table is not sound, `level` outside (0, 1), fewer than 100 resamples, or not one map a dose.

    Source: Ritz, Baty, Streibig & Gerhard (2015), doi:10.1371/journal.pone.0146021; Barlow et al. (1972); Hsu & Berger
    (1999), doi:10.1080/01621459.1999.10474141. Departs from drc's ED50, which is halfway between the asymptotes.

    >>> refused = np.array([[1.0, 1, 1, 0, 0]] * 30 + [[1.0, 1, 0, 0, 0]] * 30)
    >>> table = DoseTable(np.array([0.0, 1, 5, 10, 20]), refused, tuple(str(i) for i in range(60)))
    >>> fit = fit_dose(table, rng=np.random.default_rng(0), n_draws=200)
    >>> fit.ed50.bracket, fit.ed50.low, fit.ed50.high
    ((1.0, 5.0), 1.0, 10.0)
    """
    table, maps = check_table(table), _maps(error, len(table.doses))
    check_level(level)
    if n_draws < 100:
        raise DataError(explain("too few resamples for an interval", got=f"{n_draws}", expected="100 or more"))
    refusal = dose_rates(table.refused, table.templates, level=level, rng=rng, error=maps, n_samples=table.n_samples)
    resamples = resample(table, rng=rng, n_draws=n_draws, error=maps)
    work = _Work(table, refusal, resamples, level)
    fit, drawn = _log_logistics(work)
    diagnostics = _diagnostics(work, fit, drawn, maps)
    curves = (fit, drawn) if diagnostics.fit == LOG_LOGISTIC else None
    return DoseFit(
        table.doses,
        refusal.estimates,
        antitonic(whole(table, (refusal, refusal)).refusal, work.weights)[0],
        _parameter(work, fit.lower, drawn.lower),
        _parameter(work, fit.upper, drawn.upper),
        _parameter(work, fit.midpoint, drawn.midpoint),
        _parameter(work, fit.slope, drawn.slope),
        diagnostics,
        _effective_dose(work, ED50, fit if curves else None),
        _effective_dose(work, ED90, fit if curves else None),
        None if table.complied is None or maps else _compliance_dose(work, fit if curves else None, rng),
        _band(work, curves),
    )


_N_PARAMETERS = 4


@dataclass(frozen=True, slots=True)
class _Work:
    """What the steps of a fit share."""

    table: DoseTable
    """The verdicts."""
    refusal: DoseRates
    """The refusal rates."""
    resamples: Resamples
    """Resampled rates."""
    level: float
    """Confidence level."""

    @property
    def weights(self) -> Floats:
        """Readable prompts at each dose, shape (1, D)."""
        return self.table.readable.sum(axis=0, keepdims=True).astype(np.float64)

    @property
    def values(self) -> Floats:
        """The refusal rates, shape (1, D)."""
        return np.array([[estimate.value or 0.0 for estimate in self.refusal.estimates]])

    @property
    def n_templates(self) -> int:
        """Templates."""
        return len(set(self.table.templates))


def _maps(error: ErrorMap | Sequence[ErrorMap] | None, n_doses: int) -> Sequence[ErrorMap] | None:
    if error is None:
        return None
    maps = [error] * n_doses if isinstance(error, ErrorMap) else list(error)
    if len(maps) != n_doses:
        raise DataError(explain("not one map for each dose", got=f"{len(maps)} maps", expected=f"{n_doses}, or one"))
    return maps


def _log_logistics(work: _Work) -> tuple[LogLogistic, LogLogistic]:
    doses = work.table.doses
    weights = np.maximum(work.resamples.weights, 1e-6)
    return (
        fit_log_logistic(doses, work.values, work.weights),
        fit_log_logistic(doses, work.resamples.refusal, weights),
    )


def _diagnostics(work: _Work, fit: LogLogistic, drawn: LogLogistic, maps: Sequence[ErrorMap] | None) -> Diagnostics:
    df = len(work.table.doses) - _N_PARAMETERS
    p = goodness(work.table.doses, (work.values, work.resamples.refusal), (fit, drawn), weights=work.weights)
    tested = df >= 1 and work.n_templates > 1
    converged = bool(fit.converged[0])
    slope = float(fit.slope[0])
    return Diagnostics(
        deviance=float(fit.deviance[0]),
        df=df,
        goodness_p=p if tested else None,
        converged=converged,
        slope_at_bound=not SLOPES[0] * 1.001 < slope < SLOPES[-1] / 1.001,
        fit=LOG_LOGISTIC if tested and converged and p >= LEAST_GOODNESS else ISOTONIC,
        rises=_rises(work, maps),
    )


def goodness(
    doses: Floats, rates: tuple[Floats, Floats], fits: tuple[LogLogistic, LogLogistic], *, weights: Floats
) -> float:
    """The p value of a fit by its residuals: how far resampled residuals scatter around them.

    T = sum n r^2 / (f (1 - f)), Pearson's, r the residuals; T* the same of r* - r. p = (1 + #{T* >= T}) / (1 + B). The
    resamples know that prompts come in templates and that the doses share them, which a chi-squared law does not.

    Args:
        doses: Shape (D,).
        rates: Measured, shape (1, D), and resampled, (B, D).
        fits: To each of the two.
        weights: Prompts, shape (1, D).

    Source: Davison & Hinkley (1997), Bootstrap Methods and their Application, 4.4, pivoted on the fitted residuals.
    """
    observed = rates[0] - fits[0].at(doses)
    moved = rates[1] - fits[1].at(doses) - observed
    centre = np.clip(fits[0].at(doses), 0.005, 0.995)
    scale = weights / (centre * (1 - centre))
    size = float(np.sum(scale * observed**2))
    return float((1 + np.sum(np.sum(scale * moved**2, axis=1) >= size)) / (1 + len(moved)))


def _rises(work: _Work, maps: Sequence[ErrorMap] | None) -> tuple[Rise, ...]:
    rates, doses = work.values[0], work.table.doses
    lowest = [int(np.argmin(rates[:place])) for place in range(1, len(rates))]
    found = [(start, end) for end, start in enumerate(lowest, 1) if rates[end] > rates[start] + 1e-9]
    if not found:
        return ()
    n_pairs = len(doses) * (len(doses) - 1) / 2
    strict = 1 - (1 - work.level) / n_pairs
    table = work.table
    strictly = dose_rates(
        table.refused,
        table.templates,
        level=strict,
        rng=np.random.default_rng(0),
        error=maps,
        n_samples=table.n_samples,
    )
    return tuple(
        Rise(
            float(doses[start]),
            float(doses[end]),
            float(rates[end] - rates[start]),
            contrast((strictly, end), (strictly, start), table.templates, fraction=1.0)[1] > 0,
        )
        for start, end in found
    )


def _parameter(work: _Work, value: Floats, drawn: Floats) -> Estimate:
    """A parameter with the expanded percentile interval; none where every resample gives the same."""
    low = high = None
    if work.n_templates > 1 and np.ptp(drawn) > 0:
        share = tail(work.n_templates, work.level)
        low, high = (float(end) for end in np.quantile(drawn, [share, 1 - share]))
        low, high = min(low, float(value[0])), max(high, float(value[0]))
    table = work.table
    n_unreadable = int(np.sum(~table.readable))
    sizes = (len(table.templates), work.n_templates, None, n_unreadable)
    return Estimate(float(value[0]), low, high, work.level, PERCENTILE, *sizes, Scope.TRAJECTORY)


def _compliance_dose(work: _Work, fit: LogLogistic | None, rng: np.random.Generator) -> EffectiveDose:
    """ED50c; its own log-logistic fit is of one minus compliance, its level from the refusal rate's fit."""
    table = work.table
    if table.complied is None:
        raise DataError(explain("no compliance", expected="a table with `complied`"))
    curve = dose_rates(
        table.complied, table.templates, level=work.level, rng=rng, error=None, n_samples=table.n_samples
    )
    values = np.array([[1 - (estimate.value or 0.0) for estimate in curve.estimates]])
    rising = complement(fit_log_logistic(table.doses, values, work.weights)) if fit else None
    return _effective_dose(work, ED50C, fit, other=(curve, rising))


def _effective_dose(
    work: _Work,
    target: Target,
    fit: LogLogistic | None,
    *,
    other: tuple[DoseRates, LogLogistic | None] | None = None,
) -> EffectiveDose:
    curve, crossing = (work.refusal, fit) if other is None else other
    rates = (curve, work.refusal)
    base = work.refusal.estimates[0]
    bound = base.low if base.low is not None else base.value
    if bound is None or bound < LEAST_BASE_RATE:
        return replace(_dose(work, target, None), reason=NOTHING_TO_LOSE)
    if target.rising and _is_risen(whole(work.table, rates), target):
        return replace(_dose(work, target, None), reason=COMPLIES_ALREADY)
    if work.n_templates < 2:
        point = isotonic_crossings(work.table.doses, whole(work.table, rates), target)
        return _dose(work, target, CrossingInterval(point, np.nan, np.nan, (np.nan, np.nan)))
    found = crossing_interval(work.table, work.resamples, rates, target=target, level=work.level)
    smooth = None
    if fit is not None and crossing is not None:
        smooth = float(crossing.falls_to(target.fraction * fit.upper)[0])
    return _dose(work, target, found, smooth)


def _is_risen(rates: Resamples, target: Target) -> bool:
    """Whether the compliance rate at dose 0 is what it should rise to, by the isotonic fits."""
    if rates.compliance is None:
        return False
    start = -antitonic(-rates.compliance, rates.weights)[0, 0]
    return bool(start >= target.fraction * antitonic(rates.refusal, rates.weights)[0, 0] - TOLERANCE)


def _dose(work: _Work, target: Target, found: CrossingInterval | None, smooth: float | None = None) -> EffectiveDose:
    """Put together value, censoring and interval."""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    bracket = sampling = None
    censored, name, doses = "undefined", ISOTONIC, work.table.doses
    if found is not None:
        bracket = float(found.point.below[0]), _finite(float(found.point.above[0]))
        censored = "right" if bracket[1] is None else "left" if bracket[0] == 0 else ""
        value = None if censored else float(found.point.at[0])
        # The measured doses have decided the bracket: a curve of a shape may not carry the value out of it.
        if value is not None and smooth is not None and doses[1] < smooth < doses[-1]:
            value, name = min(max(smooth, bracket[0]), bracket[1] or smooth), LOG_LOGISTIC
        if not np.isnan(found.low):
            low = min(found.low, np.inf if value is None else value)
            high = _finite(max(found.high, 0.0 if value is None else value))
            sampling = min(found.sampling[0], float(doses[-1])), _finite(found.sampling[1])
    return EffectiveDose(
        fraction=target.fraction,
        value=value,
        low=low,
        high=high,
        level=work.level,
        bracket=bracket,
        censored=censored,
        sampling=sampling,
        fit=name,
        method=BOOTSTRAP_STEP_DOWN,
        scope=Scope.TRAJECTORY,
        n=len(work.table.templates),
        n_templates=work.n_templates,
        n_unreadable=int(np.sum(~work.table.readable)),
    )


def _finite(end: float | None) -> float | None:
    return None if end is None or np.isinf(end) else end


def _band(work: _Work, curves: tuple[LogLogistic, LogLogistic] | None) -> Band:
    """The chosen curve on a grid, and the union of its percentiles with the doses' own intervals made monotone."""
    doses = work.table.doses
    between = np.asarray(np.geomspace(doses[1], doses[-1], 64), dtype=np.float64)
    grid = np.unique(np.concatenate([doses, between]))
    grid = grid[(grid == 0) | ((grid >= doses[1]) & (grid <= doses[-1]))]
    if curves:
        value, drawn = curves[0].at(grid)[0], curves[1].at(grid)
    else:
        fits = (antitonic(work.values, work.weights), antitonic(work.resamples.refusal, work.resamples.weights))
        value, drawn = interpolated(doses, fits[0], grid)[0], interpolated(doses, fits[1], grid)
    if work.n_templates < 2:
        return Band(grid, value, np.zeros(len(grid)), np.ones(len(grid)))
    share = tail(work.n_templates, work.level)
    low, high = np.quantile(drawn, [share, 1 - share], axis=0)
    ends = _monotone_ends(work.refusal.estimates)
    lowest, highest = (interpolated(doses, end[None], grid)[0] for end in ends)
    return Band(grid, value, np.minimum.reduce([low, lowest, value]), np.maximum.reduce([high, highest, value]))


def _monotone_ends(estimates: Sequence[Estimate]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low = np.array([0.0 if estimate.low is None else estimate.low for estimate in estimates])
    high = np.array([1.0 if estimate.high is None else estimate.high for estimate in estimates])
    # A curve that does not rise is at least what any later dose is, and at most what any earlier one is.
    return np.maximum.accumulate(low[::-1])[::-1], np.minimum.accumulate(high)
