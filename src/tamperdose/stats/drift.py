"""Representation drift: cosine distances between base and tampered answers, and their median, mean and spread."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate, Scope
from tamperdose.stats.clusters import Groups, clustering, finite_vector, group
from tamperdose.stats.distributions import beta_quantile, normal_cdf, t_quantile
from tamperdose.stats.means import mean_estimate
from tamperdose.stats.rates import check_count, check_level, degrees_of_freedom_size

SUPPORT = (0.0, 2.0)
"""Range of a cosine distance."""
WOODRUFF_KORN_GRAUBARD = "woodruff_korn_graubard"
"""Name of the interval of :func:`median_drift`."""
CLUSTER_BOOTSTRAP = "cluster_bootstrap_expanded_percentile"
"""Name of the interval of :func:`iqr_drift`."""
DEFINITION = "definition"
"""Method of a value that holds by definition."""
MIN_BOOTSTRAP_TEMPLATES = 6
"""Below this a cluster bootstrap has too few distinct resamples: at five templates it covered 0.73 to 0.94."""
N_RESAMPLES = 2000
"""Bootstrap resamples of :func:`iqr_drift`."""
_CHUNK = 2_000_000


def cosine_distances(base: ArrayLike, tampered: ArrayLike) -> NDArray[np.float64]:
    """Distance between each base answer and its tampered answer: 1 - cos(base_i, tampered_i).

    Shapes (n, d) and (n, d) to (n,); in [0, 2]. Computed in float64; rows that are equal bit for bit give exactly 0,
    whatever the rounding of their norms. n may be 0.

    Raises:
        DataError: Shapes that differ or are not two-dimensional, NaN or infinity, or a zero vector (it has no angle).

    Source: the definition of the cosine; Reimers & Gurevych (2019), doi:10.18653/v1/D19-1410, for its use on SBERT.

    >>> cosine_distances([[1.0, 0.0], [1.0, 0.0], [2.0, 1.0]], [[0.0, 3.0], [-1.0, 0.0], [2.0, 1.0]])
    array([1., 2., 0.])
    """
    first, second = (np.asarray(rows, dtype=np.float64) for rows in (base, tampered))
    if first.ndim != 2 or first.shape != second.shape:
        raise DataError(
            explain("embeddings do not pair", got=f"{first.shape} and {second.shape}", expected="(n, d) twice")
        )
    if first.size == 0 and len(first) == 0:
        return np.zeros(0)
    cosines = np.sum(_unit_rows(first, "base") * _unit_rows(second, "tampered"), axis=1)
    same = np.all(first == second, axis=1)
    return np.where(same, 0.0, np.clip(1 - cosines, *SUPPORT))


def _unit_rows(rows: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    largest = np.max(np.abs(rows), axis=1, keepdims=True, initial=0.0)
    bad = np.flatnonzero(~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0))
    if bad.size:
        raise DataError(
            explain(
                f"the {what} embedding of row {bad[0]} has no direction",
                got="NaN or infinity" if not np.isfinite(largest[bad[0], 0]) else "a zero vector",
                expected="finite numbers, not all zero",
                remedy="leave that answer out and count it in n_unreadable",
            )
        )
    # Scaled by the largest entry first, so that squaring can neither overflow nor vanish.
    scaled = rows / largest
    return scaled / np.linalg.norm(scaled, axis=1, keepdims=True)


def median_drift(
    distances: ArrayLike,
    templates: Sequence[str],
    *,
    n_unreadable: int = 0,
    level: float = 0.95,
    scope: Scope = Scope.TRAJECTORY,
) -> Estimate:
    """RD: the median of the distances, with Woodruff's interval on the effective size.

    The share below the median is given an exact binomial interval at 1/2 of n* units (Clopper-Pearson, with n* of
    :func:`degrees_of_freedom_size`; the clustering is that of the scores 1[d < median] + 1[d = median] / 2), and the
    interval is read off at the order statistics of those ranks, rounded outwards. In [0, 2].
    n = 0: the value is None. The interval is None below two templates, and where even the range from the least to
    the greatest of n_effective independent distances would not reach `level` (1 - 2^(1 - n_effective); 5.3 units at
    0.95). Many equal distances, as when nothing changed, may give an interval of no width: it then holds
    that more than half of all distances are that very number.

    Args:
        distances: Of :func:`cosine_distances`, shape (n,).
        templates: The template of each prompt, length n.
        n_unreadable: Prompts left out.
        level: Confidence level.
        scope: What the interval speaks for.

    Raises:
        DataError: NaN, a distance outside [0, 2], lengths that differ, a bad count or level.

    Source: Woodruff (1952), doi:10.1080/01621459.1952.10483443, with the interval of Korn & Graubard (1998), Survey
    Methodology 24(2), 193-201, for the share.

    >>> estimate = median_drift([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], list("abcdefg"))
    >>> round(estimate.value, 3), estimate.low, estimate.high
    (0.4, 0.1, 0.7)
    """
    ordered = np.sort(_distances(distances))
    groups = group(distances, templates)
    value = float(np.median(ordered)) if groups.n else None
    sample = clustering(_sign_scores(groups, value))
    low: float | None = None
    high: float | None = None
    if sample.n_templates >= 2 and 1 - 2 ** (1 - sample.n_effective) >= check_level(level):
        rank = _lower_rank(degrees_of_freedom_size(sample, level), sample.n, level)
        low, high = float(ordered[rank - 1]), float(ordered[sample.n - rank])
    return Estimate(
        value=value,
        low=low,
        high=high,
        level=check_level(level),
        method=WOODRUFF_KORN_GRAUBARD,
        n=sample.n,
        n_templates=sample.n_templates,
        n_effective=sample.n_effective,
        n_unreadable=check_count(n_unreadable, "n_unreadable"),
        scope=scope,
    )


def _sign_scores(groups: Groups, median: float | None) -> Groups:
    if median is None:
        return groups
    scores = (groups.values < median) + 0.5 * (groups.values == median)
    # Scores run against the distances; group() sorts ascending within a template, and nothing here needs that.
    return Groups(scores, groups.codes, groups.sizes)


def _lower_rank(n_adjusted: float, n: int, level: float) -> int:
    """Rank, from 1, of the order statistic at the lower Clopper-Pearson limit for a share of one half."""
    share = beta_quantile((1 - level) / 2, n_adjusted / 2, n_adjusted / 2 + 1)
    return max(1, math.floor(share * n))


def mean_drift(
    distances: ArrayLike,
    templates: Sequence[str],
    *,
    n_unreadable: int = 0,
    level: float = 0.95,
    scope: Scope = Scope.TRAJECTORY,
) -> Estimate:
    """RD_mean: the mean of the distances, with the cluster-robust t interval of `mean_estimate` cut to [0, 2].

    n = 0, one template and no variance are as there. Arguments are those of :func:`median_drift`.

    Raises:
        DataError: As :func:`median_drift`.

    Source: as for `mean_estimate`.

    >>> mean_drift([0.1, 0.3], ["a", "b"]).value
    0.2
    """
    return mean_estimate(distances, templates, support=SUPPORT, n_unreadable=n_unreadable, level=level, scope=scope)


def iqr_drift(
    distances: ArrayLike,
    templates: Sequence[str],
    *,
    rng: np.random.Generator,
    n_unreadable: int = 0,
    level: float = 0.95,
    scope: Scope = Scope.TRAJECTORY,
) -> Estimate:
    """RD_iqr: the distance between the quartiles, with a bootstrap of whole templates.

    value = Q(3/4) - Q(1/4), quantiles interpolated linearly (Hyndman & Fan's type 7). In [0, 2].
    The interval runs between the quantiles a and 1 - a of the resampled values, a = Phi(-sqrt(K / (K - 1)) t_{K-1}),
    wider than the plain percentiles, which are too narrow for few templates; it is stretched to hold the value.
    n = 0: the value is None. Below six templates, or where no resample differs from another, the interval is None.
    n_effective is None: no effective size enters.

    Args:
        distances: Of :func:`cosine_distances`, shape (n,).
        templates: The template of each prompt, length n.
        rng: Source of the resamples; the same state gives the same interval whatever the order of the rows.
        n_unreadable: Prompts left out.
        level: Confidence level.
        scope: What the interval speaks for.

    Raises:
        DataError: NaN, a distance outside [0, 2], lengths that differ, a bad count or level.

    Source: Hesterberg (2015), doi:10.1080/00031305.2015.1089789, for the expanded percentile interval; Davison &
    Hinkley (1997), section 3.8, for resampling clusters whole.

    >>> iqr_drift([0.0, 0.25, 0.5, 0.75, 1.0], list("abcde"), rng=np.random.default_rng(0)).value
    0.5
    """
    check_level(level)
    groups = group(_distances(distances), templates)
    value = _iqr(groups.values) if groups.n else None
    low: float | None = None
    high: float | None = None
    if value is not None and groups.n_templates >= MIN_BOOTSTRAP_TEMPLATES:
        low, high = _expanded_percentile(value, _resampled_iqr(groups, rng), groups.n_templates, level)
    return Estimate(
        value=value,
        low=low,
        high=high,
        level=level,
        method=CLUSTER_BOOTSTRAP,
        n=groups.n,
        n_templates=groups.n_templates,
        n_effective=None,
        n_unreadable=check_count(n_unreadable, "n_unreadable"),
        scope=scope,
    )


def _iqr(values: NDArray[np.float64]) -> float:
    lower, upper = np.quantile(values, [0.25, 0.75])
    return float(upper - lower)


def _expanded_percentile(
    value: float, resampled: NDArray[np.float64], n_templates: int, level: float
) -> tuple[float | None, float | None]:
    if np.ptp(resampled) == 0:
        return None, None
    reach = t_quantile((1 + level) / 2, n_templates - 1) * math.sqrt(n_templates / (n_templates - 1))
    tail = normal_cdf(-reach)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return min(float(low), value), max(float(high), value)


def _resampled_iqr(groups: Groups, rng: np.random.Generator) -> NDArray[np.float64]:
    """Interquartile ranges of N_RESAMPLES draws of K templates with replacement, a bounded number at a time."""
    order = np.argsort(groups.values, kind="stable")
    ordered, codes = groups.values[order], groups.codes[order]
    at_once = max(1, _CHUNK // groups.n)
    pieces: list[NDArray[np.float64]] = []
    for start in range(0, N_RESAMPLES, at_once):
        counts = _template_counts(rng, min(at_once, N_RESAMPLES - start), groups.n_templates)
        lower, upper = _weighted_quantiles(ordered, np.take(counts, codes, axis=1), (0.25, 0.75))
        pieces.append(upper - lower)
    return np.concatenate(pieces)


def _template_counts(rng: np.random.Generator, n_resamples: int, n_templates: int) -> NDArray[np.int64]:
    draws = rng.integers(n_templates, size=(n_resamples, n_templates))
    draws += n_templates * np.arange(n_resamples)[:, None]
    return np.bincount(draws.ravel(), minlength=n_resamples * n_templates).reshape(n_resamples, n_templates)


def _weighted_quantiles(
    ordered: NDArray[np.float64], weights: NDArray[np.int64], quantiles: tuple[float, ...]
) -> list[NDArray[np.float64]]:
    """Type 7 quantiles of b resamples that hold the i-th of n ordered values weights[:, i] times, weights (b, n)."""
    # One running count over all resamples, so that a single search serves every row of them.
    ranks = np.cumsum(weights.ravel())
    ends = ranks[len(ordered) - 1 :: len(ordered)]
    before = np.concatenate([[0], ends[:-1]])
    starts = len(ordered) * np.arange(len(weights))
    found: list[NDArray[np.float64]] = []
    for quantile in quantiles:
        position = (ends - before - 1) * quantile
        below, above = np.floor(position).astype(np.int64), np.ceil(position).astype(np.int64)
        lower = ordered[np.searchsorted(ranks, before + below, side="right") - starts]
        upper = ordered[np.searchsorted(ranks, before + above, side="right") - starts]
        found.append(lower + (upper - lower) * (position - below))
    return found


def definition_zero(templates: Sequence[str], *, level: float = 0.95, scope: Scope = Scope.TRAJECTORY) -> Estimate:
    """RD at dose 0: exactly 0 because base and tampered answers are the same texts; nothing is estimated.

    The interval is None, and n_effective too. n = 0: the value is None.

    Raises:
        DataError: `level` outside (0, 1).

    Source: the definition of RD.

    >>> estimate = definition_zero(["a", "a", "b"])
    >>> estimate.value, estimate.low, estimate.n, estimate.n_templates
    (0.0, None, 3, 2)
    """
    return Estimate(
        value=0.0 if len(templates) else None,
        low=None,
        high=None,
        level=check_level(level),
        method=DEFINITION,
        n=len(templates),
        n_templates=len(set(templates)),
        n_effective=None,
        n_unreadable=0,
        scope=scope,
    )


def _distances(distances: ArrayLike) -> NDArray[np.float64]:
    vector = finite_vector(distances, "distances")
    outside = vector[(vector < SUPPORT[0]) | (vector > SUPPORT[1])]
    if outside.size:
        raise DataError(explain("no cosine distance", got=f"{outside[0]}", expected="0 to 2"))
    return vector
