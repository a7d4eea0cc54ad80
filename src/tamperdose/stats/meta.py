"""A straight line through few estimates of known precision that differ by more than their precision says."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.stats.clusters import finite_vector, same_length
from tamperdose.stats.distributions import t_quantile
from tamperdose.stats.optimise import root

META_REGRESSION = "paule_mandel_knapp_hartung"
"""Name of the interval that :func:`meta_regression` leads to."""
_RELATIVE = 1e-12


@dataclass(frozen=True, slots=True)
class Line:
    """A fitted line value = intercept + slope (x - centre) and how sure it is."""

    intercept: float
    """Value at x = centre."""
    slope: float
    """Change of the value for one unit of x."""
    centre: float
    """The x at which the intercept stands: the mean of the xs."""
    variance_intercept: float
    """Squared standard error of the intercept, to be used with `df`."""
    variance_slope: float
    """Squared standard error of the slope, to be used with `df`."""
    covariance: float
    """Covariance of the two."""
    between_sd: float
    """Standard deviation tau of single true values about the line."""
    df: int
    """Degrees of freedom, k - 2."""
    k: int
    """Units the line rests on."""


def paule_mandel(x: ArrayLike, y: ArrayLike, variance: ArrayLike) -> float:
    """Between-unit variance tau^2 of a line: where the weighted residual sum of squares is what it should be.

    The root of Q(tau^2) = sum (y - a - b x)^2 / (variance + tau^2) = k - 2, a and b fitted with the same weights; 0
    where Q(0) <= k - 2. Q falls with tau^2, so the root is the only one. k = 2: 0, nothing is left to see it by.

    Args:
        x: Shape (k,), k >= 2, not all equal.
        y: The estimates, shape (k,).
        variance: Their squared standard errors, at least 0, shape (k,).

    Raises:
        DataError: As for :func:`meta_regression`.

    Source: Paule & Mandel (1982), doi:10.6028/jres.087.022; DerSimonian & Kacker (2007), doi:10.1016/j.cct.2006.04.004.

    >>> round(paule_mandel([0, 1, 2], [0, 1, 0], [0.1, 0.1, 0.1]), 6)
    0.566667
    """
    design, values, known, _ = _prepare(x, y, variance)
    return _between_variance(design, values, known)


def meta_regression(x: ArrayLike, y: ArrayLike, variance: ArrayLike) -> Line:
    """Random-effects meta-regression of k estimates on one variable, with Knapp and Hartung's variance.

    Weights 1 / (variance + tau^2), tau^2 of :func:`paule_mandel`; covariance = max(1, q) (X'WX)^-1 with
    q = Q(tau^2) / (k - 2), to be used with Student's t and k - 2 degrees of freedom. The truncation at 1 is the ad hoc
    one: without it the interval can be narrower than that of the fixed-effect fit (with this tau^2, q < 1 happens
    where tau^2 = 0). Where every `variance` is 0 it is ordinary least squares.
    k = 2: a line, with df = 0 and no interval to be had from it.

    Args:
        x: Shape (k,), k >= 2, not all equal.
        y: The estimates, shape (k,).
        variance: Their squared standard errors, at least 0 (0: not known, left to tau^2), shape (k,).

    Raises:
        DataError: Fewer than two estimates, all x equal, NaN, a negative variance, lengths that differ.

    Source: Knapp & Hartung (2003), doi:10.1002/sim.1482; the truncation: Roever, Knapp & Friede (2015),
    doi:10.1186/s12874-015-0091-1.

    >>> line = meta_regression([0, 1, 2], [0, 1, 2], [0.1, 0.1, 0.1])
    >>> round(line.slope, 6), round(line.variance_slope, 6), line.between_sd, line.df
    (1.0, 0.05, 0.0, 1)
    """
    design, values, known, centre = _prepare(x, y, variance)
    k = len(values)
    tau2 = _between_variance(design, values, known)
    weights = _weights(known, tau2)
    beta, bread = _solve(design, values, weights)
    q = _q(design, values, weights) / (k - 2) if k > 2 else 1.0
    # Points without any error exactly on a line say nothing of how far off the line may be.
    covariance = (max(1.0, q) if tau2 + known.max() > 0 else 0.0) * bread
    return Line(
        intercept=float(beta[0]),
        slope=float(beta[1]),
        centre=centre,
        variance_intercept=float(covariance[0, 0]),
        variance_slope=float(covariance[1, 1]),
        covariance=float(covariance[0, 1]),
        between_sd=math.sqrt(tau2),
        df=k - 2,
        k=k,
    )


def line_at(line: Line, x: float) -> tuple[float, float]:
    """Value of the line at x and its squared standard error, the scatter about the line not included.

    >>> line = meta_regression([0, 1, 2], [0, 1, 2], [0.1, 0.1, 0.1])
    >>> [round(number, 6) for number in line_at(line, 3)]
    [3.0, 0.233333]
    """
    away = x - line.centre
    variance = line.variance_intercept + 2 * away * line.covariance + away**2 * line.variance_slope
    return line.intercept + away * line.slope, max(0.0, variance)


def slope_interval(line: Line, level: float) -> tuple[float, float] | None:
    """Student's interval of the slope with k - 2 degrees of freedom; None with none left, or without any variance.

    >>> line = meta_regression([0, 1, 2], [0, 1, 2], [0.1, 0.1, 0.1])
    >>> [round(end, 3) for end in slope_interval(line, 0.95)]
    [-1.841, 3.841]
    """
    if line.df < 1 or line.variance_slope == 0:
        return None
    reach = t_quantile((1 + level) / 2, line.df) * math.sqrt(line.variance_slope)
    return line.slope - reach, line.slope + reach


_Vector = NDArray[np.float64]


def _prepare(x: ArrayLike, y: ArrayLike, variance: ArrayLike) -> tuple[_Vector, _Vector, _Vector, float]:
    xs, ys, known = finite_vector(x, "x"), finite_vector(y, "y"), finite_vector(variance, "variance")
    same_length("y", len(ys), n_rows=len(xs))
    same_length("variance", len(known), n_rows=len(xs))
    if len(xs) < 2 or np.ptp(xs) == 0:
        raise DataError(explain("no line through these", got=f"x = {xs.tolist()}", expected="two xs that differ"))
    if known.min() < 0:
        raise DataError(explain("a variance is negative", got=f"{known.min()}", expected="0 or more"))
    centre = float(xs.mean())
    return np.column_stack([np.ones_like(xs), xs - centre]), ys, known, centre


def _weights(variance: _Vector, tau2: float) -> _Vector:
    """Weights; where nothing is known of the scatter they are equal."""
    total = variance + tau2
    if total.max() == 0:
        return np.ones_like(total)
    # An estimate with no error of its own, on a line without scatter, must not outweigh the rest without bound.
    return 1 / np.maximum(total, total.max() * _RELATIVE)


def _solve(design: _Vector, values: _Vector, weights: _Vector) -> tuple[_Vector, _Vector]:
    scale = np.sqrt(weights)
    factor = np.linalg.qr(design * scale[:, None])
    inverse = np.linalg.inv(factor.R)
    return inverse @ (factor.Q.T @ (values * scale)), inverse @ inverse.T


def _q(design: _Vector, values: _Vector, weights: _Vector) -> float:
    beta, _ = _solve(design, values, weights)
    return float(np.sum(weights * (values - design @ beta) ** 2))


def _between_variance(design: _Vector, values: _Vector, variance: _Vector) -> float:
    df = len(values) - 2
    if df == 0:
        return 0.0
    plain = _q(design, values, np.ones_like(values)) / df
    if variance.max() == 0 or plain < np.finfo(float).tiny:
        return plain if variance.max() == 0 else 0.0

    def excess(tau2: float) -> float:
        return _q(design, values, _weights(variance, tau2)) - df

    if excess(0.0) <= 0:
        return 0.0
    # At this tau^2 every weight is below 1 / plain, and the best line leaves no more than the unweighted one.
    return root(excess, 0.0, plain * (1 + 1e-9), xtol=plain * 1e-10)
