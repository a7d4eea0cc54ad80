"""Curves that do not rise with the dose, for many data sets at once: isotonic, and where they cross a level.

Arrays are (B, D): B data sets (or resamples) at D doses. Doses increase and start at 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain

Floats = NDArray[np.float64]
TOLERANCE = 1e-9
"""Rates are shares of whole prompts: closer than this they are equal."""


@dataclass(frozen=True, slots=True)
class Crossings:
    """Where B curves fall to a level for the first time."""

    below: Floats
    """Last dose above the level, shape (B,); 0 where the first positive dose is at the level already."""
    above: Floats
    """First dose at or below it; infinity where no measured dose is."""
    at: Floats
    """Between the two, linear in log dose; 0 where `below` is 0, infinity where `above` is."""


def check_doses(doses: ArrayLike) -> Floats:
    """Return the doses as a vector if they start at 0 and increase; at least one positive dose.

    Raises:
        DataError: They do not.

    >>> check_doses([0, 1, 2])
    array([0., 1., 2.])
    """
    vector = np.asarray(doses, dtype=np.float64)
    sound = vector.ndim == 1 and len(vector) > 1 and vector[0] == 0 and np.all(np.isfinite(vector))
    if not sound or not np.all(np.diff(vector) > 0):
        raise DataError(
            explain("no ladder of doses", got=f"{vector.tolist()}", expected="0 and then one increasing dose or more")
        )
    return vector


def antitonic(rates: ArrayLike, weights: ArrayLike) -> Floats:
    """Weighted least-squares fit that never rises: pooled adjacent violators, by the min-max formula.

    f_j = min over s <= j of max over t >= j of the weighted mean of rates s..t. Shape (B, D) or (D,); as the rates, in
    their range. It is the maximum likelihood fit of binomial counts too, with the counts as weights. A dose of weight 0
    takes no part and gets the value of a neighbour.

    Args:
        rates: Shape (B, D) or (D,).
        weights: Not negative, same shape; in each row one positive at least.

    Source: Barlow, Bartholomew, Bremner & Brunk (1972), Statistical Inference under Order Restrictions, 1.2, for
    the estimator and the min-max formula.

    >>> antitonic([1.0, 0.25, 0.75, 0.0], [1, 1, 1, 1]).tolist()
    [1.0, 0.5, 0.5, 0.0]
    """
    values, mass = np.asarray(rates, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if values.ndim == 1:
        return antitonic(values[None], mass[None])[0]
    count, n_doses = values.shape
    zero = np.zeros((count, 1))
    total = np.concatenate([zero, np.cumsum(mass, axis=1)], axis=1)
    events = np.concatenate([zero, np.cumsum(mass * values, axis=1)], axis=1)
    fit = np.full((count, n_doses), np.inf)
    for start in range(n_doses):
        between = total[:, start + 1 :] - total[:, [start]]
        mean = np.where(between > 0, events[:, start + 1 :] - events[:, [start]], -np.inf)
        mean = mean / np.where(between > 0, between, 1)
        highest = np.maximum.accumulate(mean[:, ::-1], axis=1)[:, ::-1]
        # A start whose doses are all without weight has no mean to give.
        fit[:, start:] = np.where(np.isneginf(highest), fit[:, start:], np.minimum(fit[:, start:], highest))
    return np.where(np.isinf(fit), np.take_along_axis(fit, _last_finite(fit), axis=1), fit)


def _last_finite(fit: Floats) -> NDArray[np.intp]:
    places = np.asarray(np.isfinite(fit) * np.arange(fit.shape[1]), dtype=np.intp)
    return np.maximum.accumulate(places, axis=1)


def crossings(doses: ArrayLike, fit: ArrayLike, level: ArrayLike) -> Crossings:
    """First dose at which curves given at the doses fall to a level, and the two doses it lies between.

    Between two positive doses the curve is linear in log dose. Between dose 0 and the first positive dose nothing is
    said but that. A curve at the level at dose 0 crosses in front of the first positive dose too.

    Args:
        doses: Of :func:`check_doses`, shape (D,).
        fit: Curves that do not rise, shape (B, D).
        level: One for each curve, shape (B,).

    >>> found = crossings([0, 1, 10, 100], [[1.0, 1.0, 0.75, 0.25], [1, 0.2, 0.2, 0.2], [1, 1, 1, 0.8]], [0.5] * 3)
    >>> found.below.tolist(), found.above.tolist(), found.at.round(1).tolist()
    ([10.0, 0.0, 100.0], [100.0, 1.0, inf], [31.6, 0.0, inf])
    """
    ladder, curves = check_doses(doses), np.asarray(fit, dtype=np.float64)
    levels = np.asarray(level, dtype=np.float64)
    under = curves <= levels[:, None] + TOLERANCE
    reached = under.any(axis=1)
    place = np.maximum(np.argmax(under, axis=1), 1)
    below = np.where(reached, ladder[place - 1], ladder[-1])
    above = np.where(reached, ladder[place], np.inf)
    before, after = (np.take_along_axis(curves, where[:, None], axis=1)[:, 0] for where in (place - 1, place))
    fall = np.where(before > after, before - after, 1.0)
    share = np.clip((before - levels) / fall, 0.0, 1.0)
    inside = reached & (below > 0)
    log_below, log_above = np.log(np.where(inside, below, 1.0)), np.log(np.where(inside, above, 1.0))
    at = np.where(inside, np.exp(log_below + share * (log_above - log_below)), np.where(reached, 0.0, np.inf))
    return Crossings(below, above, at)


def interpolated(doses: ArrayLike, fit: ArrayLike, grid: ArrayLike) -> Floats:
    """Curves given at the doses, read at other doses: linear in log dose; constant in front of the first positive one.

    In front of the first positive dose the curve is drawn at its value at dose 0: nothing was measured there. Shape
    (B, G). `grid` must lie within the doses.

    >>> interpolated([0, 1, 100], [[1.0, 0.8, 0.4]], [0, 0.5, 1, 10]).round(3).tolist()
    [[1.0, 1.0, 0.8, 0.6]]
    """
    ladder, curves, at = check_doses(doses), np.asarray(fit, dtype=np.float64), np.asarray(grid, dtype=np.float64)
    if len(ladder) == 2:
        return np.where(at < ladder[1], curves[:, [0]], curves[:, [1]])
    logs = np.log(ladder[1:])
    x = np.log(np.maximum(at, ladder[1]))
    place = np.clip(np.searchsorted(logs, x, side="right") - 1, 0, len(logs) - 2)
    share = (x - logs[place]) / (logs[place + 1] - logs[place])
    between = curves[:, 1 + place] * (1 - share) + curves[:, 2 + place] * share
    return np.where(at < ladder[1], curves[:, [0]], between)
