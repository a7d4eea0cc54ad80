"""Means of clustered values, and the binary entropy of a judge's probability."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate, Scope
from tamperdose.stats.clusters import Groups, clustering, group
from tamperdose.stats.distributions import t_quantile
from tamperdose.stats.rates import check_count, check_level, unit_vector

CLUSTER_ROBUST_T = "cluster_robust_t"
"""Name of the interval of :func:`mean_estimate`."""


def cluster_residuals(groups: Groups) -> NDArray[np.float64]:
    """Linearised residuals of the mean, one per template: z_k = n_k (mean_k - mean) / n, shape (K,); they sum to 0.

    The cluster-robust variance of the mean is K / (K - 1) sum z_k^2. All values equal: exactly 0. n must be positive.

    Source: Korn & Graubard (1999), Analysis of Health Surveys, section 2.4 (Taylor linearisation of a ratio mean).

    >>> cluster_residuals(group([0.0, 1.0, 1.0], ["a", "b", "b"])).round(3)
    array([-0.222,  0.222])
    """
    # The data lie within rounding of a constant when they are one; no variance must come of it.
    if np.ptp(groups.values) == 0:
        return np.zeros(groups.n_templates)
    return np.bincount(groups.codes, weights=groups.values - groups.values.mean()) / groups.n


def standard_error(residuals: NDArray[np.float64]) -> float:
    """Cluster-robust standard error from the K >= 2 residuals of :func:`cluster_residuals`.

    sqrt(K / (K - 1) sum z_k^2); with one row per template it is s / sqrt(n).

    Raises:
        DataError: Fewer than two templates.

    >>> standard_error(cluster_residuals(group([0.0, 1.0], ["a", "b"])))
    0.5
    """
    k = len(residuals)
    if k < 2:
        raise DataError(explain("a standard error needs two templates", got=f"{k}", expected="2 or more"))
    return float(np.sqrt(k / (k - 1) * np.sum(residuals**2)))


def mean_estimate(
    values: ArrayLike,
    templates: Sequence[str],
    *,
    support: tuple[float, float] | None = None,
    n_unreadable: int = 0,
    level: float = 0.95,
    scope: Scope = Scope.TRAJECTORY,
) -> Estimate:
    """Mean of clustered values with a cluster-robust t interval.

    value = mean over rows; interval = value -+ t_{K-1} se, se of :func:`standard_error`, K the number of templates,
    cut to `support`. n = 0: the value is None. Fewer than two rows or two templates, or no variance between the
    templates: the interval is None, since the formula would give it no width.

    Args:
        values: One per prompt, shape (n,).
        templates: The template of each prompt, length n.
        support: Range the variable cannot leave, e.g. (0, ln 2).
        n_unreadable: Prompts left out.
        level: Confidence level.
        scope: What the interval speaks for.

    Raises:
        DataError: NaN or infinity, lengths that differ, a value outside `support`, a bad count or level.

    Source: Liang & Zeger (1986), doi:10.1093/biomet/73.1.13, for the variance; t with K - 1 degrees of freedom as in
    Cameron & Miller (2015), doi:10.3368/jhr.50.2.317.

    >>> estimate = mean_estimate([0.0, 1.0, 2.0], ["a", "b", "c"])
    >>> estimate.value, round(estimate.low, 3), round(estimate.high, 3)
    (1.0, -1.484, 3.484)
    """
    groups = group(values, templates)
    sample = clustering(groups)
    value = float(groups.values.mean()) if groups.n else None
    low, high = _t_interval(groups, check_level(level))
    if support is not None:
        _check_support(groups.values, support)
        low = None if low is None else max(support[0], low)
        high = None if high is None else min(support[1], high)
    return Estimate(
        value=value,
        low=low,
        high=high,
        level=level,
        method=CLUSTER_ROBUST_T,
        n=sample.n,
        n_templates=sample.n_templates,
        n_effective=sample.n_effective,
        n_unreadable=check_count(n_unreadable, "n_unreadable"),
        scope=scope,
    )


def _t_interval(groups: Groups, level: float) -> tuple[float | None, float | None]:
    if groups.n_templates < 2:
        return None, None
    se = standard_error(cluster_residuals(groups))
    if se == 0:
        return None, None
    mean = float(groups.values.mean())
    reach = t_quantile((1 + level) / 2, groups.n_templates - 1) * se
    return mean - reach, mean + reach


def _check_support(values: NDArray[np.float64], support: tuple[float, float]) -> None:
    outside = values[(values < support[0]) | (values > support[1])]
    if outside.size:
        raise DataError(
            explain("a value lies outside its range", got=f"{outside[0]}", expected=f"{support[0]} to {support[1]}")
        )


def binary_entropy(p: ArrayLike) -> NDArray[np.float64]:
    """Entropy of a yes-or-no answer of probability p: -p ln p - (1 - p) ln(1 - p), nats.

    Shape (n,) to shape (n,); in [0, ln 2], 0 at p = 0 and p = 1 (0 ln 0 = 0), greatest at p = 1/2. n may be 0.
    `judge_entropy` is :func:`mean_estimate` of it with support (0, ln 2).

    Raises:
        DataError: NaN, or p outside [0, 1].

    Source: Shannon (1948), doi:10.1002/j.1538-7305.1948.tb01338.x.

    >>> binary_entropy([0.0, 0.5, 1.0]).round(4)
    array([0.    , 0.6931, 0.    ])
    """
    vector = unit_vector(p, "p")
    certain = (vector == 0) | (vector == 1)
    inner = np.where(certain, 0.5, vector)
    entropy = -inner * np.log(inner) - (1 - inner) * np.log1p(-inner)
    return np.where(certain, 0.0, np.minimum(entropy, np.log(2)))
