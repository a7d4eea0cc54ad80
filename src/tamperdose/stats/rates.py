"""Rates of clustered yes-or-no outcomes, with intervals that hold near 0 and 1."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate, Scope
from tamperdose.stats.clusters import Clustering, event_clustering, finite_vector, group
from tamperdose.stats.distributions import normal_quantile, t_quantile

WILSON_KORN_GRAUBARD = "wilson_korn_graubard"
"""Name of the interval of :func:`rate`."""


def check_level(level: float) -> float:
    """Return the confidence level if it lies in (0, 1).

    Raises:
        DataError: It does not.

    >>> check_level(0.95)
    0.95
    """
    if not 0 < level < 1:
        raise DataError(explain("level is not a confidence level", got=f"{level}", expected="0 < level < 1"))
    return level


def wilson(p: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share p of n units; n need not be whole.

    The roots of (p - x)^2 = z^2 x (1 - x) / n. They lie in [0, 1] and enclose p; at p = 0 the low end is exactly 0,
    at p = 1 the high end is exactly 1. n must be positive: the interval tends to (0, 1) as n tends to 0.

    Raises:
        DataError: `level` outside (0, 1), p outside [0, 1], or n not positive.

    Source: Wilson (1927), doi:10.1080/01621459.1927.10502953.

    >>> [round(end, 4) for end in wilson(0.2, 100)]
    [0.1334, 0.2888]
    """
    if not (0 <= p <= 1 and n > 0):
        raise DataError(explain("no share of a sample", got=f"p = {p}, n = {n}", expected="0 <= p <= 1 and n > 0"))
    z2 = normal_quantile((1 + check_level(level)) / 2) ** 2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) + z2 / (4 * n)) / n) / (1 + z2 / n)
    # At the ends of the range the two terms are equal; rounding must not move the interval off p.
    low = 0.0 if p == 0 else min(p, max(0.0, centre - half))
    high = 1.0 if p == 1 else max(p, min(1.0, centre + half))
    return low, high


def degrees_of_freedom_size(sample: Clustering, level: float = 0.95) -> float:
    """Effective size after paying for a variance that was estimated from few clusters.

    n* = n_effective (t_{n-1} / t_{K-1})^2, both t quantiles at (1 + level) / 2, K the number of templates.
    With one row per template n* = n_effective = n. The formula has t_{n-1} above, as the paper has; Dean & Pagano
    (2015) put z there, which is the same for large n. Defined from n = 2 and K = 2 on.

    Raises:
        DataError: Fewer than two templates, or `level` outside (0, 1).

    Source: Korn & Graubard (1998), Survey Methodology 24(2), 193-201; Dean & Pagano (2015),
    doi:10.1093/jssam/smv024.

    >>> from tamperdose.stats.clusters import effective_size
    >>> round(degrees_of_freedom_size(effective_size([1, 1, 0, 0], ["a", "a", "b", "b"])), 3)
    0.125
    """
    if sample.n_templates < 2:
        raise DataError(explain("an interval needs two templates", got=f"{sample.n_templates}", expected="2 or more"))
    quantile = (1 + check_level(level)) / 2
    shrinkage = t_quantile(quantile, sample.n - 1) / t_quantile(quantile, sample.n_templates - 1)
    return sample.n_effective * shrinkage**2


def rate(
    events: ArrayLike,
    templates: Sequence[str],
    *,
    n_unreadable: int = 0,
    level: float = 0.95,
    scope: Scope = Scope.TRAJECTORY,
    n_samples: int = 1,
) -> Estimate:
    """Share of events among judged prompts, with Wilson's interval on the effective size.

    value = mean(events); interval = :func:`wilson` at (value, n*), n* of :func:`degrees_of_freedom_size`, with the
    clustering of `event_clustering`.
    In [0, 1]. Unreadable items are not among the rows: they are only counted, see :func:`unreadable_bounds`.
    n = 0: the value is None. Fewer than two rows or two templates: the interval is None.
    No variance (all true or all false): n_effective = the number of templates.

    Args:
        events: One judged prompt each, True or 1 where the event happened, shape (n,). A prompt's mean over seeds,
            in [0, 1], will do: its variance is at most p (1 - p), so the interval then errs on the wide side.
        templates: The template of each prompt, length n.
        n_unreadable: Prompts left out because no verdict could be had.
        level: Confidence level.
        scope: What the interval speaks for.
        n_samples: Rows that each prompt has where all its samples are rows: they share its template, so that a prompt
            whose samples agree counts once, and they are too few events to show it where their prompts are.

    Raises:
        DataError: NaN, a value outside [0, 1], lengths that differ, a negative count, `level` outside (0, 1).

    Source: as for :func:`wilson`, :func:`degrees_of_freedom_size` and `effective_size`.

    >>> estimate = rate([True, False, True, True], ["a", "b", "c", "d"])
    >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
    (0.75, 0.301, 0.954)
    """
    groups = group(unit_vector(events, "events"), templates)
    sample = event_clustering(groups, n_samples=n_samples)
    value = float(groups.values.mean()) if sample.n else None
    low, high = _interval(value, sample, check_level(level))
    return Estimate(
        value=value,
        low=low,
        high=high,
        level=level,
        method=WILSON_KORN_GRAUBARD,
        n=sample.n,
        n_templates=sample.n_templates,
        n_effective=sample.n_effective,
        n_unreadable=check_count(n_unreadable, "n_unreadable"),
        scope=scope,
    )


def _interval(value: float | None, sample: Clustering, level: float) -> tuple[float | None, float | None]:
    if value is None or sample.n_templates < 2:
        return None, None
    return wilson(value, degrees_of_freedom_size(sample, level), level)


def unit_vector(values: ArrayLike, what: str) -> NDArray[np.float64]:
    """Take values in [0, 1], booleans included, as a vector of float64, shape (n,).

    Raises:
        DataError: Not a vector, NaN, or a value outside [0, 1].

    >>> unit_vector([True, False], "events")
    array([1., 0.])
    """
    vector = finite_vector(values, what)
    outside = np.flatnonzero((vector < 0) | (vector > 1))
    if outside.size:
        row = outside[0]
        raise DataError(
            explain(f"{what} must lie in [0, 1]", got=f"{vector[row]} in row {row}", expected="booleans or shares")
        )
    return vector


def check_count(count: int, what: str) -> int:
    """Return a count if it is not negative.

    Raises:
        DataError: It is negative.

    >>> check_count(0, "n_unreadable")
    0
    """
    if count < 0:
        raise DataError(explain(f"{what} must not be negative", got=f"{count}", expected="0 or more"))
    return count


def unreadable_bounds(n_events: int, n_judged: int, n_unreadable: int) -> tuple[float | None, float | None]:
    """Bounds of the rate had every unreadable item been read: none of them an event, or all of them.

    (n_events / N, (n_events + n_unreadable) / N) with N = n_judged + n_unreadable. In [0, 1]; equal when nothing is
    unreadable. These are identification bounds, not a confidence interval. N = 0 gives (None, None).

    Raises:
        DataError: A negative count, or more events than judged items.

    Source: Manski (1989), doi:10.2307/145818.

    >>> unreadable_bounds(3, 8, 2)
    (0.3, 0.5)
    """
    for count, what in ((n_events, "n_events"), (n_judged, "n_judged"), (n_unreadable, "n_unreadable")):
        check_count(count, what)
    if n_events > n_judged:
        raise DataError(explain("more events than judged items", got=f"{n_events}", expected=f"at most {n_judged}"))
    total = n_judged + n_unreadable
    if total == 0:
        return None, None
    return n_events / total, (n_events + n_unreadable) / total
