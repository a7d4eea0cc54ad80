"""The log-logistic curve, fitted to many data sets at once by binomial likelihood."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.stats.dose_curve import Floats, check_doses

MAX_STEPS = 40
"""Steps of the fit; what has not settled by then has not converged."""
SLOPES = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0, 12.0)
"""Slopes from which the fit starts; the first and last bound it. At 12 nine tenths of the fall take a factor 1.4."""
_SETTLED = 1e-7
_EDGE = 1e-5
"""Rates nearer to 0 or 1 weigh as if they were this far away."""


@dataclass(frozen=True, slots=True)
class LogLogistic:
    """B curves f(x) = c + (d - c) / (1 + (x / e)^b). Arrays of shape (B,)."""

    lower: Floats
    """Lower asymptote c, in [0, d]."""
    upper: Floats
    """Upper asymptote d = f(0), in [0, 1]."""
    midpoint: Floats
    """e, the dose halfway between the asymptotes: drc's ED50, not ours."""
    slope: Floats
    """b, in [SLOPES[0], SLOPES[-1]]."""
    deviance: Floats
    """Binomial deviance, 2 sum n [p ln(p / f) + (1 - p) ln((1 - p) / (1 - f))]."""
    converged: NDArray[np.bool_]
    """Whether the last step changed the deviance by less than 1e-7 of itself."""

    def at(self, doses: ArrayLike) -> Floats:
        """The curves at these doses, 0 included, shape (B, G)."""
        x = np.asarray(doses, dtype=np.float64)
        return self.lower[:, None] + (self.upper - self.lower)[:, None] * _share(x, self.midpoint, self.slope)

    def falls_to(self, level: ArrayLike) -> Floats:
        """The dose at which each curve is at a level, shape (B,); 0 where it starts there, infinity where it never is.

        x = e ((d - level) / (level - c))^(1 / b). Curves may rise, as the complement of one that falls does.
        """
        target = np.asarray(level, dtype=np.float64)
        above, below = self.upper - target, target - self.lower
        inside = above * below > 0
        # Past its start already, on the side that the curve goes to.
        past = np.where(self.upper < self.lower, above >= 0, above <= 0)
        ratio = np.where(inside, above, 1.0) / np.where(inside, below, 1.0)
        with np.errstate(over="ignore"):
            x = self.midpoint * np.exp(np.log(ratio) / self.slope)
        return np.where(inside, x, np.where(past, 0.0, np.inf))


def fit_log_logistic(doses: ArrayLike, rates: ArrayLike, weights: ArrayLike) -> LogLogistic:
    """Fit a falling log-logistic curve with both asymptotes free to each row: binomial likelihood, c <= d in [0, 1].

    At dose 0 the curve is d: the log dose is minus infinity there. A grid over (e, b), with the asymptotes by weighted
    least squares, gives the start; Fisher scoring with Levenberg's damping and an active set at the bounds follows. e
    is bounded by a quarter of the first positive dose and four times the last. The rows are fitted together, so a
    thousand resamples cost a fraction of a second.

    Args:
        doses: Of `check_doses`, shape (D,).
        rates: In [0, 1], shape (B, D); any shares, not only counts.
        weights: Prompts behind each rate, shape (B, D).

    Source: Ritz, Baty, Streibig & Gerhard (2015), doi:10.1371/journal.pone.0146021: their LL.4 with type "binomial",
    whose e is reported as ED50.

    >>> x = np.array([0, 1, 2, 4, 8, 16, 32.0])
    >>> fit = fit_log_logistic(x, [0.1 + 0.8 / (1 + (x / 5) ** 2)], [np.full(7, 1000.0)])
    >>> fit.midpoint.round(2).tolist(), fit.falls_to(0.5 * fit.upper).round(2).tolist()
    ([5.0], [5.67])
    """
    x, p = check_doses(doses), np.asarray(rates, dtype=np.float64)
    n = np.broadcast_to(np.asarray(weights, dtype=np.float64), p.shape)
    theta = _start(x, p, n)
    deviance = _deviance(p, n, _value(x, theta))
    damping, settled = np.full(len(p), 1e-3), np.zeros(len(p), dtype=np.bool_)
    bounds = _bounds(x)
    for _ in range(MAX_STEPS):
        rows = np.flatnonzero(~settled)
        if not rows.size:
            break
        tried = _step(x, (p[rows], n[rows]), theta[rows], damping[rows], bounds)
        found = _deviance(p[rows], n[rows], _value(x, tried))
        better = found <= deviance[rows]
        settled[rows] = (np.abs(deviance[rows] - found) <= _SETTLED * (1 + found)) | (damping[rows] > 1e8)
        kept = rows[better]
        theta[kept], deviance[kept] = tried[better], found[better]
        damping[rows] = np.clip(np.where(better, damping[rows] / 5, damping[rows] * 8), 1e-9, 1e9)
    lower, upper, log_e, log_b = theta.T
    return LogLogistic(lower, upper, np.exp(log_e), np.exp(log_b), deviance, settled)


def complement(fit: LogLogistic) -> LogLogistic:
    """The curves 1 - f, which rise: for a rate that grows with the dose, fitted as one minus it."""
    return replace(fit, lower=1 - fit.lower, upper=1 - fit.upper)


def _share(x: Floats, midpoint: Floats, slope: Floats) -> Floats:
    """1 / (1 + (x / e)^b), shape (B, D): 1 at dose 0."""
    logs = np.log(np.where(x > 0, x, 1.0))
    with np.errstate(over="ignore"):
        share = 1 / (1 + np.exp(slope[:, None] * (logs - np.log(midpoint)[:, None])))
    return np.where(x > 0, share, 1.0)


def _value(x: Floats, theta: Floats) -> Floats:
    lower, upper, log_e, log_b = theta.T
    return lower[:, None] + (upper - lower)[:, None] * _share(x, np.exp(log_e), np.exp(log_b))


def _deviance(p: Floats, n: Floats, f: Floats) -> Floats:
    inside = np.clip(f, 1e-9, 1 - 1e-9)
    fitted = p * np.log(inside) + (1 - p) * np.log1p(-inside)
    return 2 * np.sum(n * (_entropy_terms(p) - fitted), axis=1)


def _entropy_terms(p: Floats) -> Floats:
    safe, rest = np.where(p > 0, p, 1.0), np.where(p < 1, 1 - p, 1.0)
    return p * np.log(safe) + (1 - p) * np.log(rest)


def _bounds(x: Floats) -> tuple[Floats, Floats]:
    low = np.array([0.0, 0.0, np.log(x[1] / 4), np.log(SLOPES[0])])
    high = np.array([1.0, 1.0, np.log(x[-1] * 4), np.log(SLOPES[-1])])
    return low, high


def _start(x: Floats, p: Floats, n: Floats) -> Floats:
    """The best of a grid of (e, b) by weighted squares, asymptotes in closed form, shape (B, 4)."""
    low, high = _bounds(x)
    n_places = int(np.clip(4 * (high[2] - low[2]), 12, 40))
    places = np.asarray(np.linspace(float(low[2]), float(high[2]), n_places), dtype=np.float64)
    log_e, slopes = np.repeat(places, len(SLOPES)), np.tile(SLOPES, n_places)
    g = _share(x, np.exp(log_e), slopes)
    # Sums over the doses for each data set and place of the grid, (B, G).
    gg, gh, hh = (n @ term.T for term in (g * g, g * (1 - g), (1 - g) ** 2))
    pg, ph = ((n * p) @ term.T for term in (g, 1 - g))
    determinant = gg * hh - gh**2
    regular = determinant > 1e-9 * gg * hh
    safe = np.where(regular, determinant, 1.0)
    upper = np.where(regular, (pg * hh - ph * gh) / safe, pg / np.maximum(gg, 1e-12))
    upper = np.clip(upper, 0.0, 1.0)
    lower = np.clip((ph - upper * gh) / np.maximum(hh, 1e-12), 0.0, upper)
    upper = np.clip((pg - lower * gh) / np.maximum(gg, 1e-12), lower, 1.0)
    squares = -2 * (upper * pg + lower * ph) + upper**2 * gg + 2 * upper * lower * gh + lower**2 * hh
    best = np.argmin(squares, axis=1)[:, None]
    picked = [np.take_along_axis(a, best, axis=1)[:, 0] for a in (lower, upper)]
    return np.stack([*picked, log_e[best[:, 0]], np.log(slopes[best[:, 0]])], axis=1)


def _step(
    x: Floats, data: tuple[Floats, Floats], theta: Floats, damping: Floats, bounds: tuple[Floats, Floats]
) -> Floats:
    """One damped step of Fisher scoring, cut to the bounds; parameters pressed against one stay where they are."""
    p, n = data
    lower, upper, log_e, log_b = theta.T
    g = _share(x, np.exp(log_e), np.exp(log_b))
    drop = (upper - lower)[:, None] * g * (1 - g) * np.exp(log_b)[:, None]
    logs = np.log(np.where(x > 0, x, 1.0)) - log_e[:, None]
    jacobian = np.stack([1 - g, g, drop, -drop * np.where(x > 0, logs, 0.0)], axis=2)
    f = np.clip(lower[:, None] + (upper - lower)[:, None] * g, _EDGE, 1 - _EDGE)
    weight = n / (f * (1 - f))
    gradient = np.einsum("bd,bdk->bk", weight * (p - f), jacobian)
    information = np.einsum("bd,bdk,bdl->bkl", weight, jacobian, jacobian)
    floors, ceilings = _box(theta, bounds)
    held = ((theta <= floors) & (gradient <= 0)) | ((theta >= ceilings) & (gradient >= 0))
    diagonal = np.einsum("bkk->bk", information)
    free = ~held
    information = information * (free[:, :, None] & free[:, None, :])
    index = np.arange(4)
    information[:, index, index] = np.where(
        held, 1.0, diagonal * (1 + damping[:, None]) + 1e-9 * (1 + damping[:, None])
    )
    column = np.where(held, 0.0, gradient)[:, :, None]
    move = np.asarray(np.linalg.solve(information, column), dtype=np.float64)[:, :, 0]
    # No step moves e or b by more than a factor: far away the curve is flat and would not call it back.
    move[:, 2:] = np.clip(move[:, 2:], -1.5, 1.5)
    tried = np.clip(theta + move, bounds[0], bounds[1])
    tried[:, 0] = np.minimum(tried[:, 0], tried[:, 1])
    return tried


def _box(theta: Floats, bounds: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    floors, ceilings = (np.broadcast_to(end, theta.shape).copy() for end in bounds)
    ceilings[:, 0] = theta[:, 1]
    floors[:, 1] = theta[:, 0]
    return floors, ceilings
