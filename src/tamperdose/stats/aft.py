"""A straight line through values of which some are only known to lie above, below or between bounds.

On the log scale of a dose this is the log-normal accelerated-failure-time model of survival analysis.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.stats.clusters import same_length
from tamperdose.stats.distributions import log_normal_cdf, t_quantile
from tamperdose.stats.optimise import minimum, root
from tamperdose.stats.rates import check_level

AFT_LOGNORMAL = "aft_lognormal_profile_likelihood"
"""Name of the interval that :func:`censored_regression` leads to."""
SD_FLOOR = 0.01
"""Smallest residual standard deviation looked for, in units of the value: wide brackets may all hold one line."""
SD_CEILING = 100.0
"""Largest one."""
FARTHEST = 64.0
"""How far from the estimate, in units of the slope, an end of its interval is looked for."""

_Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bounded:
    """Values known exactly (low = high) or by bounds, each with an x and a weight."""

    x: NDArray[np.float64]
    """Shape (n,)."""
    low: NDArray[np.float64]
    """Lower bounds, -infinity where there is none, shape (n,)."""
    high: NDArray[np.float64]
    """Upper bounds, infinity where there is none, shape (n,)."""
    weights: NDArray[np.float64]
    """What each row counts for, shape (n,)."""

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Rows whose value is known, shape (n,)."""
        return self.low == self.high

    @property
    def two_sided(self) -> NDArray[np.bool_]:
        """Rows with both bounds, exact ones among them, shape (n,)."""
        return np.isfinite(self.low) & np.isfinite(self.high)


@dataclass(frozen=True, slots=True)
class CensoredLine:
    """A fitted line value = intercept + slope (x - centre) and the profile-likelihood interval of its slope."""

    intercept: float
    """Value at x = centre."""
    slope: float
    """Change of the value for one unit of x."""
    centre: float
    """The weighted mean of the xs."""
    low: float | None
    """Lower end of the slope's interval; None where undefined or without end."""
    high: float | None
    """Upper end; None where undefined or without end."""
    level: float
    """Confidence level."""
    sd: float
    """Residual standard deviation, that of maximum likelihood times sqrt(k / df)."""
    df: int
    """Degrees of freedom, k - 2."""
    k: int
    """Units with a value bounded on both sides."""
    log_likelihood: float
    """At the maximum, weighted."""
    data: Bounded
    """What it was fitted on."""


def censored_regression(
    x: ArrayLike, low: ArrayLike, high: ArrayLike, *, weights: ArrayLike | None = None, level: float = 0.95
) -> CensoredLine:
    """Line with normal residuals through values known exactly (low = high) or by bounds, by maximum likelihood.

    log L = sum of weight x [log phi(z) - log sd] where the value is known, of weight x log[Phi(z_high) - Phi(z_low)]
    where it is not; z = (bound - a - b x) / sd, low = -infinity for left-, high = infinity for right-censored values.
    The standard deviation is at least `SD_FLOOR`. Units: an x counts as one, however many rows it has, if their
    weights sum to 1. k is the sum of weights of rows bounded on both sides (exact or bracketed), rounded down, and
    df = k - 2.
    Interval of the slope: all b with 2 [max log L - max_{a, sd} log L(b)] <= k log(1 + t_df^2 / df). Without censoring
    this is Student's interval of ordinary least squares; with k going to infinity the cut-off becomes chi-squared's.
    df < 1: no interval. An end farther than 64 from the estimate is given as None.

    Args:
        x: Shape (n,).
        low: Lower bounds, -infinity where there is none, shape (n,).
        high: Upper bounds, infinity where there is none, shape (n,).
        weights: Weight of each row, above 0; None: 1 each.
        level: Confidence level of the slope's interval.

    Raises:
        DataError: Fewer than two xs with a value bounded on both sides, NaN, low above high, a weight of 0 or less,
            lengths that differ.

    Source: Lawless (2003), Statistical Models and Methods for Lifetime Data, 6.3 (model); Burridge (1981),
    doi:10.1111/j.2517-6161.1981.tb01151.x (the likelihood in (a / sd, b / sd, 1 / sd) has one maximum). The cut-off,
    the degrees of freedom and the weights are ours.

    >>> fit = censored_regression([0, 1, 2, 3], [0, 1.1, 1.9, 2.5], [0, 1.1, 1.9, float("inf")])
    >>> round(fit.slope, 2), fit.df
    (0.95, 1)
    """
    data = _checked(x, low, high, weights)
    seen = data.x[data.two_sided]
    if len(set(seen.tolist())) < 2:
        raise DataError(explain("no line through these", got=f"x = {seen.tolist()}", expected="two xs with a value"))
    k = math.floor(float(data.weights[data.two_sided].sum()) + 1e-9)
    df, centre = max(0, k - 2), float(np.average(data.x, weights=data.weights))
    theta, top = _maximise(np.column_stack([np.ones_like(data.x), data.x - centre]), data)
    sd = 1 / float(theta[-1])
    intercept, slope = float(theta[0]) * sd, float(theta[1]) * sd
    low_end, high_end = None, None
    if df:
        away, target = data.x - centre, top - _cut_off(k, level) / 2
        step = sd / float(np.ptp(data.x))
        low_end, high_end = _profile_ends(data, away, np.ones_like(away), target=target, centre=slope, step=step)
    return CensoredLine(
        intercept=intercept,
        slope=slope,
        centre=centre,
        low=low_end,
        high=high_end,
        level=check_level(level),
        sd=sd * math.sqrt(k / df) if df else sd,
        df=df,
        k=k,
        log_likelihood=top,
        data=data,
    )


def censored_line_at(line: CensoredLine, x: float) -> tuple[float, float | None, float | None]:
    """Value of the line at x and its profile-likelihood interval, by the cut-off of :func:`censored_regression`.

    The scatter about the line is not included. No ends where df = 0; an end that is not found is None.

    >>> line = censored_regression([0, 1, 2], [0, 1, 1], [0, 1, 1])
    >>> [round(number, 2) for number in censored_line_at(line, 1.0)]
    [0.67, -2.33, 3.66]
    """
    value = line.intercept + line.slope * (x - line.centre)
    if line.df == 0:
        return value, None, None
    data = line.data
    target = line.log_likelihood - _cut_off(line.k, line.level) / 2
    # With the line written from x on, its value there is the constant: that is held, the slope is free.
    ends = _profile_ends(data, np.ones_like(data.x), data.x - x, target=target, centre=value, step=line.sd)
    return value, *ends


def _checked(x: ArrayLike, low: ArrayLike, high: ArrayLike, weights: ArrayLike | None) -> Bounded:
    xs, lows, highs = (np.asarray(values, dtype=np.float64) for values in (x, low, high))
    share = np.ones_like(xs) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, column in (("low", lows), ("high", highs), ("weights", share)):
        same_length(name, len(column), n_rows=len(xs))
    for what, held in (
        ("x and weights must be finite", np.isfinite(xs).all() and np.isfinite(share).all()),
        ("weights must be positive", (share > 0).all()),
        ("low must not lie above high", (lows <= highs).all()),
        ("a bound has no direction", (lows < np.inf).all() and (highs > -np.inf).all()),
        ("a row has no bound at all", (np.isfinite(lows) | np.isfinite(highs)).all()),
    ):
        if not held:
            raise DataError(explain(what, got=f"x {xs.tolist()}, low {lows.tolist()}, high {highs.tolist()}"))
    return Bounded(xs, lows, highs, share)


def _terms(design: _Vector, data: Bounded, theta: _Vector) -> tuple[float, _Vector]:
    """Log likelihood and its gradient at theta = (a / sd, b / sd, ..., 1 / sd)."""
    delta, scale = theta[:-1], float(theta[-1])
    mean = design @ delta
    exact = data.exact
    z_low, z_high = scale * data.low - mean, scale * data.high - mean
    z = np.where(exact, z_low, 0.0)
    # Both ends are put into the lower tail, where differences of probabilities keep their digits.
    flip = z_low > 0
    upper = np.where(flip, -z_low, z_high)
    lower = np.where(flip, -z_high, z_low)
    log_upper, log_lower = log_normal_cdf(upper), log_normal_cdf(lower)
    gap = np.where(exact, -1.0, log_lower - log_upper)
    log_mass = log_upper + np.log(-np.expm1(np.minimum(gap, -1e-300)))
    value = np.where(exact, math.log(scale) - 0.5 * z**2 - _LOG_ROOT_2PI, log_mass)
    ratio_low, ratio_high = _density_ratio(z_low, log_mass), _density_ratio(z_high, log_mass)
    by_mean = np.where(exact, z, ratio_low - ratio_high)
    finite_low, finite_high = (np.where(np.isfinite(bound), bound, 0.0) for bound in (data.low, data.high))
    by_scale = np.where(exact, 1 / scale - z * finite_low, ratio_high * finite_high - ratio_low * finite_low)
    gradient = np.append(design.T @ (data.weights * by_mean), data.weights @ by_scale)
    return float(data.weights @ value), gradient


def _density_ratio(z: _Vector, log_mass: _Vector) -> _Vector:
    """phi(z) / mass, 0 at infinity."""
    return np.where(np.isfinite(z), np.exp(-0.5 * z**2 - _LOG_ROOT_2PI - log_mass), 0.0)


_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


def _start(design: _Vector, data: Bounded) -> _Vector:
    """Least squares through the middles of the bounds."""
    # A bound that is not there is replaced by the other one.
    lower, upper = (np.where(np.isfinite(a), a, b) for a, b in ((data.low, data.high), (data.high, data.low)))
    middle = (lower + upper) / 2
    beta = np.linalg.lstsq(design * np.sqrt(data.weights)[:, None], middle * np.sqrt(data.weights))[0]
    spread = float(np.sqrt(np.average((middle - design @ beta) ** 2, weights=data.weights)))
    scale = 1 / min(max(spread, 10 * SD_FLOOR), SD_CEILING)
    return np.append(beta * scale, scale)


def _maximise(design: _Vector, data: Bounded, start: _Vector | None = None) -> tuple[_Vector, float]:
    """The maximum in theta; the likelihood is concave there, so any start will do."""

    def loss(theta: _Vector) -> tuple[float, _Vector]:
        value, gradient = _terms(design, data, theta)
        return -value, -gradient

    bounds = [(None, None)] * design.shape[1] + [(1 / SD_CEILING, 1 / SD_FLOOR)]
    theta, least = minimum(loss, _start(design, data) if start is None else start, bounds)
    return theta, -least


def _cut_off(k: int, level: float) -> float:
    t = t_quantile((1 + level) / 2, k - 2)
    return k * math.log1p(t**2 / (k - 2))


def _profile_ends(
    data: Bounded, held: _Vector, free: _Vector, *, target: float, centre: float, step: float
) -> tuple[float | None, float | None]:
    """Where the log likelihood falls to `target` as the coefficient of the column `held` leaves `centre`.

    The coefficient of the column `free` and the standard deviation are refitted at each value.
    """
    design = free[:, None]
    last: list[_Vector | None] = [None]

    def excess(value: float) -> float:
        shifted = replace(data, low=data.low - value * held, high=data.high - value * held)
        # Neighbouring values have neighbouring maxima.
        last[0], top = _maximise(design, shifted, last[0])
        return target - top

    start = max(step, SD_FLOOR)
    return _end(excess, centre, -start), _end(excess, centre, start)


def _end(excess: Callable[[float], float], centre: float, step: float) -> float | None:
    """Where the profile crosses the cut-off, going from the estimate in steps that double."""
    inner = centre
    while abs(step) <= FARTHEST:
        if excess(centre + step) > 0:
            return root(excess, inner, centre + step, xtol=1e-5)
        inner, step = centre + step, 2 * step
    return None
