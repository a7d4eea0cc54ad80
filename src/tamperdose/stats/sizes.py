"""The sizes of a scaling fit: arms of one size are brought together, for the size is the sampling unit.

Seeds, and models of one size, tell how sure that size's value is. They are never further sizes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tamperdose.errors import DataError, explain
from tamperdose.stats.distributions import normal_quantile, t_quantile
from tamperdose.stats.rates import check_level

SAME_SIZE = 0.05
"""Models whose neighbours in size are at most this many decades away (12 %) are of one size."""
CENSORING = ("", "left", "right", "interval", "undefined")
"""What `SizePoint.censored` may be."""


@dataclass(frozen=True, slots=True)
class SizePoint:
    """What one arm found: a dose such as ED50, or a rate, at one size."""

    model: str
    """The model's name; seeds of one model share it."""
    n_parameters: float
    """Parameters of the model, N."""
    value: float | None
    """The number; None where it is only known by bounds or not at all."""
    low: float | None
    """Lower end of its interval; where censored, the lower bound (right: the last dose that was measured)."""
    high: float | None
    """Upper end of its interval; where censored, the upper bound (left: the first dose above 0)."""
    censored: str = ""
    """Empty, `left`, `right`, `interval` (only the bounds are known) or `undefined` (nothing to lose)."""
    seed: int | None = None
    """The arm's seed, for the record: arms of one model count as its seeds whatever this is."""
    bracket: tuple[float, float] | None = None
    """The two measured doses that the value lies between, where it was interpolated; used by the censored fit."""
    level: float = 0.95
    """Confidence level of low and high, where they are an interval."""
    df: int | None = None
    """Degrees of freedom of the t quantile behind the interval; None: normal."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An arm that a fit does not use."""

    model: str
    """Its model."""
    seed: int | None
    """Its seed."""
    reason: str
    """Why."""


@dataclass(frozen=True, slots=True)
class Size:
    """One size: the mean over its models of the means over their seeds."""

    log_n: float
    """log10 of the parameters, mean over its models."""
    value: float
    """Mean of the transformed values."""
    variance: float
    """Squared standard error of it."""
    models: tuple[str, ...]
    """Its models."""
    n_points: int
    """Arms."""


def check_point(point: SizePoint, *, positive: bool) -> None:
    """Refuse a point that says what it cannot.

    Raises:
        DataError: No size, an unknown censoring, a bound that is missing, a value that is not finite, or not positive
            where it must be.

    >>> check_point(SizePoint("m", 1e9, 8.0, 6.0, 10.0), positive=True)
    """
    numbers = [point.value, point.low, point.high, *(point.bracket or ())]
    given = [number for number in numbers if number is not None]
    bound = {"left": point.high, "right": point.low, "interval": bracket_of(point), "": point.value}
    for what, held, expected in (
        ("n_parameters is no size", 0 < point.n_parameters < math.inf, "a positive number"),
        (f"unknown censoring {point.censored!r}", point.censored in CENSORING, "one of " + ", ".join(CENSORING[1:])),
        ("a number is not finite", all(math.isfinite(number) for number in given), "numbers"),
        ("nothing is known of an arm", bound.get(point.censored, "undefined") is not None, "its value, or its bound"),
        ("a dose is not positive", not positive or point.value is None or point.value > 0, "a dose above 0"),
        ("a bound is out of order", _ordered(point), "low <= high"),
    ):
        if not held:
            raise DataError(explain(f"{what} ({point.model}, seed {point.seed})", got=f"{point}", expected=expected))
    check_level(point.level)


def _ordered(point: SizePoint) -> bool:
    pairs = [(point.low, point.high), point.bracket or (None, None)]
    return all(low is None or high is None or low <= high for low, high in pairs)


def bracket_of(point: SizePoint) -> tuple[float, float] | None:
    """The two doses between which an arm's value lies; None where they were not given.

    >>> bracket_of(SizePoint("m", 1e9, None, 4.0, 6.0, censored="interval"))
    (4.0, 6.0)
    """
    if point.bracket is not None:
        return point.bracket
    if point.censored == "interval" and point.low is not None and point.high is not None:
        return point.low, point.high
    return None


def log_standard_error(point: SizePoint) -> float:
    """Standard error of log10 of a dose: (log10 high - log10 low) / (2 quantile); 0 where there is no interval.

    The quantile is normal's, or Student's with `df`, at (1 + level) / 2. With one end only, the distance from the value
    to it counts for half the interval. 0 leaves the error to the scatter between sizes.

    >>> round(log_standard_error(SizePoint("m", 1e9, 10.0, 5.0, 20.0)), 4)
    0.1536
    """
    ends = [point.low if point.low else None, point.high]
    logs = [None if end is None else math.log10(end) for end in ends]
    return _half_width(point, None if not point.value else math.log10(point.value), logs, widest=False)


def standard_error(point: SizePoint) -> float:
    """Standard error of a rate: the longer arm of its interval / quantile, since it may end at 0 or 1; 0 without one.

    >>> round(standard_error(SizePoint("m", 1e9, 1.0, 0.95, 1.0)), 4)
    0.0255
    """
    return _half_width(point, point.value, [point.low, point.high], widest=True)


def _half_width(point: SizePoint, value: float | None, ends: Sequence[float | None], *, widest: bool) -> float:
    if value is None:
        return 0.0
    quantile = (1 + check_level(point.level)) / 2
    reach = normal_quantile(quantile) if point.df is None else t_quantile(quantile, point.df)
    arms = [abs(value - end) for end in ends if end is not None]
    if not arms:
        return 0.0
    return (max(arms) if widest else sum(arms) / len(arms)) / reach


def size_labels(points: Sequence[SizePoint]) -> list[float]:
    """The size of each arm, log10 N: the mean over the models that are linked by steps of at most `SAME_SIZE` decades.

    >>> [round(size, 3) for size in size_labels([SizePoint(m, n, 1, 1, 1) for m, n in [("a", 1e9), ("b", 1.1e9)]])]
    [9.021, 9.021]
    """
    sizes = {point.model: math.log10(point.n_parameters) for point in points}
    for point in points:
        if sizes[point.model] != math.log10(point.n_parameters):
            raise DataError(explain(f"model {point.model!r} has two sizes", expected="one n_parameters for each model"))
    groups: list[list[str]] = []
    for model in sorted(sizes, key=lambda name: (sizes[name], name)):
        if groups and sizes[model] - sizes[groups[-1][-1]] <= SAME_SIZE:
            groups[-1].append(model)
        else:
            groups.append([model])
    means = {model: float(np.mean([sizes[name] for name in group])) for group in groups for model in group}
    return [means[point.model] for point in points]


def sizes_of(points: Sequence[SizePoint], values: Sequence[float], errors: Sequence[float]) -> tuple[Size, ...]:
    """Bring arms together: seeds into their model's mean, models into their size's mean, each counting alike.

    variance of a size = mean(errors^2) + s^2 / m. The first term is not divided by the number of arms: they answer the
    same prompts, so their errors go together. s^2 is the variance between models of a size, pooled over the sizes that
    have several, and m the size's models; where no size has several models it is that between seeds of a model, pooled,
    and m the seeds; where nothing is repeated it is 0 and what a run differs by falls to the scatter between sizes.

    Args:
        points: Arms with a value.
        values: Their values, transformed.
        errors: The standard errors of these.

    >>> arms = [SizePoint("a", 1e9, 1, None, None), SizePoint("a", 1e9, 3, None, None), SizePoint("b", 1e10, 5, 5, 5)]
    >>> [(size.value, round(size.variance, 2)) for size in sizes_of(arms, [1.0, 3.0, 5.0], [0.0, 0.0, 0.0])]
    [(2.0, 1.0), (5.0, 2.0)]
    """
    labels = size_labels(points)
    tree: dict[float, dict[str, list[int]]] = {}
    for row, (label, point) in enumerate(zip(labels, points, strict=True)):
        tree.setdefault(label, {}).setdefault(point.model, []).append(row)
    means = {
        label: [float(np.mean([values[row] for row in rows])) for rows in models.values()]
        for label, models in tree.items()
    }
    between_models = _pooled(list(means.values()))
    seeds = [[values[row] for row in rows] for models in tree.values() for rows in models.values()]
    between_seeds = _pooled(seeds)
    return tuple(
        Size(
            log_n=label,
            value=float(np.mean(means[label])),
            variance=_known(tree[label], errors) + _repeats(tree[label], between_models, between_seeds),
            models=tuple(tree[label]),
            n_points=sum(len(rows) for rows in tree[label].values()),
        )
        for label in sorted(tree)
    )


def _known(models: Mapping[str, Sequence[int]], errors: Sequence[float]) -> float:
    return float(np.mean([np.mean([errors[row] ** 2 for row in rows]) for rows in models.values()]))


def _repeats(models: Mapping[str, Sequence[int]], between_models: float | None, between_seeds: float | None) -> float:
    n = len(models)
    if between_models is not None:
        return between_models / n
    return (between_seeds or 0.0) * sum(1 / len(rows) for rows in models.values()) / n**2


def _pooled(groups: Sequence[Sequence[float]]) -> float | None:
    """Pooled variance within groups; None where none has two members."""
    df = sum(len(group) - 1 for group in groups)
    return sum(float(np.var(group)) * len(group) for group in groups) / df if df else None
