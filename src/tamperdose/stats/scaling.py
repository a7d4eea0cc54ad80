"""How the dose that breaks a model grows with the model's size: a line in log10 dose on log10 parameters.

Two fits side by side, since neither does everything: a meta-regression that knows how sure each size's dose is, and a
fit to censored arms that also uses those that never broke, or broke before the first dose.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import numpy as np

from tamperdose.errors import DataError, explain
from tamperdose.stats.aft import AFT_LOGNORMAL, CensoredLine, censored_line_at, censored_regression
from tamperdose.stats.distributions import t_quantile
from tamperdose.stats.meta import META_REGRESSION, Line, line_at, meta_regression, slope_interval
from tamperdose.stats.rates import check_level
from tamperdose.stats.sizes import (
    LeftOut,
    Size,
    SizePoint,
    bracket_of,
    check_point,
    log_standard_error,
    size_labels,
    sizes_of,
    standard_error,
)


class DoseUnit(StrEnum):
    """What a dose is counted in."""

    STEPS = "steps"
    """Optimizer steps."""
    EXAMPLES = "examples"
    """Training rows seen."""
    TOKENS = "tokens"
    """Training tokens."""
    FLOPS = "flops"
    """Floating-point operations of the attack."""


NULL_SLOPES = {DoseUnit.STEPS: 0.0, DoseUnit.EXAMPLES: 0.0, DoseUnit.TOKENS: 0.0, DoseUnit.FLOPS: 1.0}
"""Slope where size does not matter: a step costs N times as many operations, so in FLOPs that is 1 and not 0."""
MIN_SIZES, MIN_DECADES = 4, 1.0
"""Below these a fit says that its sizes span too little."""
GRID_POINTS = 13
"""Sizes at which the line is drawn."""


@dataclass(frozen=True, slots=True)
class Slope:
    """Decades of dose for one decade of parameters."""

    value: float | None
    """The slope; None below two sizes."""
    low: float | None
    """Lower end; None below three sizes, or where it has no end."""
    high: float | None
    """Upper end; None below three sizes, or where it has no end."""
    level: float
    """Confidence level."""
    df: int
    """Degrees of freedom, sizes - 2; 0 where there is no interval."""
    null: float
    """The slope where size does not matter: 0, in FLOPs 1."""
    excludes_null: bool | None
    """Whether the interval leaves that slope out; None without an interval."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The line at one size, and what a model of that size may have."""

    n_parameters: float
    """The size, N."""
    value: float
    """Dose on the line."""
    low: float | None
    """Lower end of the line's interval; None where undefined."""
    high: float | None
    """Upper end of it."""
    predict_low: float | None
    """Lower end of the prediction interval of a new size's dose; None where undefined."""
    predict_high: float | None
    """Upper end of it."""


@dataclass(frozen=True, slots=True)
class SizeValue:
    """A size as the fit sees it."""

    n_parameters: float
    """Geometric mean of its models' parameters."""
    value: float | None
    """Geometric mean dose; None where an arm of it is censored."""
    standard_error: float | None
    """Of log10 of the dose, decades."""
    models: tuple[str, ...]
    """Its models."""
    n_points: int
    """Arms of it."""


@dataclass(frozen=True, slots=True)
class ScalingFit:
    """One fit of dose on size."""

    method: str
    """`paule_mandel_knapp_hartung` or `aft_lognormal_profile_likelihood`."""
    slope: Slope
    """Decades of dose for one decade of parameters."""
    between_sd: float | None
    """Scatter of sizes about the line, decades: tau; of the censored fit the residual, errors of measurement in it."""
    n_sizes: int
    """Sizes used."""
    n_points: int
    """Arms used."""
    sizes: tuple[SizeValue, ...]
    """The sizes used."""
    left_out: tuple[LeftOut, ...]
    """Arms not used, each with the reason."""
    reason: str
    """Why there is no slope or no interval; empty where there are both."""
    cautions: tuple[str, ...]
    """What makes the fit say less than it seems to, such as sizes that span too little."""
    predictions: tuple[Prediction, ...]
    """At the sizes that were asked for."""
    curve: tuple[Prediction, ...]
    """On a grid over the sizes, for drawing."""


@dataclass(frozen=True, slots=True)
class LeftOutSize:
    """A size's own dose against what the other sizes predict."""

    n_parameters: float
    """The size."""
    observed: float
    """Its dose."""
    predicted: float
    """From the line through the others."""
    low: float | None
    """Lower end of the prediction interval, the size's own error of measurement included; None below 3 other sizes."""
    high: float | None
    """Upper end of it."""
    inside: bool | None
    """Whether the observed dose lies in it; None without one."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a dose grows with size, by both fits."""

    unit: DoseUnit
    """What the dose is counted in."""
    meta: ScalingFit
    """Meta-regression of the sizes without censored arms."""
    censored: ScalingFit
    """Fit that uses censored arms by their bounds."""
    decides: str
    """`censored` where an arm is censored, since the sizes that never broke tell of the slope too; else `meta`."""
    n_sizes_left_out: int
    """Sizes that `meta` leaves out for a censored arm."""
    leave_one_out: tuple[LeftOutSize, ...]
    """Each size against the others, by meta-regression; empty below 3 sizes."""

    @property
    def decisive(self) -> ScalingFit:
        """The fit that `decides` names: the one to conclude from."""
        return self.censored if self.decides == "censored" else self.meta


def scaling(
    points: Sequence[SizePoint],
    unit: DoseUnit,
    *,
    at: Sequence[float] = (),
    level: float = 0.95,
    brackets: bool = True,
) -> Scaling:
    """Fit log10 dose = a + b log10 N over sizes, twice, with intervals that count sizes and nothing else.

    `meta`: :func:`meta_regression` of the sizes' means (`sizes_of`), t with k - 2 degrees of freedom. A size with a
    censored arm is left out of it whole: the mean of the other arms would be too small, or too large.
    `censored`: :func:`censored_regression`, each arm with weight 1 / (arms of its size), so that a size counts once.
    Prediction of the dose of a size that was not run: meta, line -+ t_{k-2} sqrt(var(line) + tau^2); censored,
    line - sqrt((line - low)^2 + (t sd)^2), high alike. Below 2 sizes no slope; below 3 no interval.
    Arms that are `undefined` are left out and counted. `decides` names the fit to conclude from: without the sizes that
    never broke a slope may look flat that is not.

    Args:
        points: One per arm: ED50 or another dose, in one unit.
        unit: That unit; it sets the slope that stands for no effect of size.
        at: Sizes to predict, parameters.
        level: Confidence level.
        brackets: Whether the censored fit takes an interpolated dose by its bracket, where one is given.

    Raises:
        DataError: A point that says what it cannot, `level` outside (0, 1).

    Source: as for :func:`meta_regression` and :func:`censored_regression`; Higgins, Thompson & Spiegelhalter (2009),
    doi:10.1111/j.1467-985X.2008.00552.x, for the prediction interval.

    >>> arms = [SizePoint(f"m{n}", n, dose, dose / 1.5, dose * 1.5) for n, dose in [(1e8, 5), (1e9, 6), (1e10, 10)]]
    >>> found = scaling(arms, DoseUnit.STEPS, at=[1e11])
    >>> round(found.meta.slope.value, 3), found.meta.slope.df, found.meta.cautions[0]
    (0.151, 1, '3 sizes: fewer than 4')
    """
    frame, defined = _frame(points, unit, at, level=level)
    sizes, left_out = _uncensored(defined, _log_value, log_standard_error)
    n_sizes = len(set(size_labels(defined))) if defined else 0
    return Scaling(
        unit=unit,
        meta=_meta_fit(sizes, left_out, frame),
        censored=_censored_fit(defined, frame, brackets=brackets),
        decides="censored" if left_out else "meta",
        n_sizes_left_out=n_sizes - len(sizes),
        leave_one_out=leave_one_out(sizes, level=level),
    )


def meta_scaling(
    points: Sequence[SizePoint], unit: DoseUnit, *, at: Sequence[float] = (), level: float = 0.95
) -> ScalingFit:
    """The meta-regression of :func:`scaling` alone.

    >>> arms = [SizePoint(f"m{n}", n, dose, None, None) for n, dose in [(1e8, 5), (1e9, 50)]]
    >>> found = meta_scaling(arms, DoseUnit.FLOPS)
    >>> round(found.slope.value, 6), found.reason
    (1.0, '2 sizes with a value: an interval needs 3')
    """
    frame, defined = _frame(points, unit, at, level=level)
    return _meta_fit(*_uncensored(defined, _log_value, log_standard_error), frame)


def _frame(
    points: Sequence[SizePoint], unit: DoseUnit, at: Sequence[float], *, level: float
) -> tuple["_Frame", list[SizePoint]]:
    """What both fits need, and the arms that something is known of."""
    for point in points:
        check_point(point, positive=True)
    defined = [point for point in points if point.censored != "undefined"]
    undefined = tuple(
        LeftOut(point.model, point.seed, "undefined: nothing to lose")
        for point in points
        if point.censored == "undefined"
    )
    return _Frame(NULL_SLOPES[unit], check_level(level), _sizes_to_draw(defined), tuple(at), undefined), defined


@dataclass(frozen=True, slots=True)
class _Frame:
    null: float
    level: float
    grid: tuple[float, ...]
    at: tuple[float, ...]
    undefined: tuple[LeftOut, ...]


def _sizes_to_draw(points: Sequence[SizePoint]) -> tuple[float, ...]:
    if not points:
        return ()
    logs = [math.log10(point.n_parameters) for point in points]
    return tuple(float(10**log) for log in np.linspace(min(logs), max(logs), GRID_POINTS))


def _log_value(point: SizePoint) -> float:
    return math.log10(point.value) if point.value else math.nan


def _uncensored(
    points: Sequence[SizePoint], value: Callable[[SizePoint], float], error: Callable[[SizePoint], float]
) -> tuple[tuple[Size, ...], tuple[LeftOut, ...]]:
    """The sizes whose arms all have a value, and the arms of the others."""
    if not points:
        return (), ()
    labels = size_labels(points)
    spoilt = {label for label, point in zip(labels, points, strict=True) if point.censored or point.value is None}
    kept = [point for label, point in zip(labels, points, strict=True) if label not in spoilt]
    left_out = tuple(
        LeftOut(p.model, p.seed, f"{p.censored}-censored" if p.censored else "another arm of its size is censored")
        for label, p in zip(labels, points, strict=True)
        if label in spoilt
    )
    return sizes_of(kept, [value(p) for p in kept], [error(p) for p in kept]) if kept else (), left_out


def _meta_fit(sizes: Sequence[Size], left_out: tuple[LeftOut, ...], frame: _Frame) -> ScalingFit:
    line = _meta_line(sizes)

    def predict(n: float) -> Prediction:
        assert_line = _given(line)
        value, variance = line_at(assert_line, math.log10(n))
        if slope_interval(assert_line, frame.level) is None:
            return _prediction(n, value)
        t = t_quantile((1 + frame.level) / 2, assert_line.df)
        near, far = t * math.sqrt(variance), t * math.sqrt(variance + assert_line.between_sd**2)
        return _prediction(n, value, (value - near, value + near), (value - far, value + far))

    ends = None if line is None else slope_interval(line, frame.level)
    return ScalingFit(
        method=META_REGRESSION,
        slope=_slope(None if line is None else line.slope, ends or (None, None), line.df if line else 0, frame),
        between_sd=line.between_sd if line is not None and line.df else None,
        n_sizes=len(sizes),
        n_points=sum(size.n_points for size in sizes),
        sizes=tuple(SizeValue(10**s.log_n, 10**s.value, math.sqrt(s.variance), s.models, s.n_points) for s in sizes),
        left_out=(*frame.undefined, *left_out),
        reason=_reason(len(sizes), has_interval=ends is not None),
        cautions=_cautions([size.log_n for size in sizes]),
        predictions=tuple(predict(n) for n in frame.at) if line else (),
        curve=tuple(predict(n) for n in frame.grid) if line else (),
    )


def _given(line: Line | None) -> Line:
    if line is None:
        raise DataError(explain("no line", expected="two sizes"))
    return line


def _meta_line(sizes: Sequence[Size]) -> Line | None:
    if len(sizes) < 2:
        return None
    return meta_regression([s.log_n for s in sizes], [s.value for s in sizes], [s.variance for s in sizes])


def _prediction(
    n: float,
    value: float,
    line: tuple[float | None, float | None] = (None, None),
    predict: tuple[float | None, float | None] = (None, None),
) -> Prediction:
    """From log10 back to doses."""
    return Prediction(n, 10**value, *(None if end is None else 10**end for end in (*line, *predict)))


def _slope(value: float | None, ends: tuple[float | None, float | None], df: int, frame: _Frame) -> Slope:
    low, high = ends
    # An end that is not there lies beyond every slope.
    excludes = (
        None
        if low is None and high is None
        else not ((low is None or low <= frame.null) and (high is None or frame.null <= high))
    )
    return Slope(value, low, high, frame.level, df, frame.null, excludes)


def _reason(n_sizes: int, *, has_interval: bool) -> str:
    if n_sizes < 2:
        return f"{n_sizes} size{'' if n_sizes == 1 else 's'} with a value: a slope needs 2"
    if n_sizes < 3:
        return "2 sizes with a value: an interval needs 3"
    return "" if has_interval else "the values have no scatter and no error: no interval can be had"


def _cautions(log_sizes: Sequence[float]) -> tuple[str, ...]:
    if not log_sizes:
        return ()
    n, span = len(set(log_sizes)), max(log_sizes) - min(log_sizes)
    few = [f"{n} size{'' if n == 1 else 's'}: fewer than {MIN_SIZES}"] if n < MIN_SIZES else []
    short = [f"the sizes span {span:.2f} decades: less than {MIN_DECADES:g}"] if span < MIN_DECADES else []
    return (*few, *short)


def _censored_fit(points: Sequence[SizePoint], frame: _Frame, *, brackets: bool) -> ScalingFit:
    labels = size_labels(points) if points else []
    bounds = [_bounds(point, brackets=brackets) for point in points]
    counts = {label: labels.count(label) for label in labels}
    seen = {
        label for label, (low, high) in zip(labels, bounds, strict=True) if math.isfinite(low) and math.isfinite(high)
    }
    line: CensoredLine | None = None
    if len(seen) >= 2:
        lows, highs = zip(*bounds, strict=True)
        weights = [1 / counts[label] for label in labels]
        line = censored_regression(labels, lows, highs, weights=weights, level=frame.level)
    ends = (None, None) if line is None else (line.low, line.high)
    has_interval = ends != (None, None)
    return ScalingFit(
        method=AFT_LOGNORMAL,
        slope=_slope(None if line is None else line.slope, ends, line.df if line else 0, frame),
        between_sd=line.sd if line is not None and line.df else None,
        n_sizes=len(counts),
        n_points=len(points),
        sizes=_censored_sizes(points, labels),
        left_out=frame.undefined,
        reason=_reason(min(len(seen), line.k) if line else len(seen), has_interval=has_interval),
        cautions=_cautions(labels),
        predictions=tuple(_censored_prediction(line, n) for n in frame.at) if line else (),
        curve=tuple(_censored_prediction(line, n) for n in frame.grid) if line else (),
    )


def _bounds(point: SizePoint, *, brackets: bool) -> tuple[float, float]:
    """What is known of log10 of the dose."""
    bracket = bracket_of(point)
    if point.censored == "left":
        return -math.inf, log_dose(point.high)
    if point.censored == "right":
        return log_dose(point.low), math.inf
    if bracket is not None and (brackets or point.censored == "interval"):
        return (log_dose(bracket[0]) if bracket[0] > 0 else -math.inf), log_dose(bracket[1])
    return log_dose(point.value), log_dose(point.value)


def log_dose(dose: float | None) -> float:
    """log10 of a dose.

    Raises:
        DataError: It is missing or not positive.

    >>> log_dose(100.0)
    2.0
    """
    if dose is None or dose <= 0:
        raise DataError(explain("a dose or bound is not positive", got=f"{dose}", expected="a dose above 0"))
    return math.log10(dose)


def _censored_sizes(points: Sequence[SizePoint], labels: Sequence[float]) -> tuple[SizeValue, ...]:
    found: list[SizeValue] = []
    for label in sorted(set(labels)):
        arms = [point for point, own in zip(points, labels, strict=True) if own == label]
        known = not any(point.censored for point in arms)
        value = 10 ** float(np.mean([_log_value(point) for point in arms])) if known else None
        models = tuple(dict.fromkeys(point.model for point in arms))
        found.append(SizeValue(10**label, value, None, models, len(arms)))
    return tuple(found)


def _censored_prediction(line: CensoredLine, n: float) -> Prediction:
    value, low, high = censored_line_at(line, math.log10(n))
    if line.df == 0:
        return _prediction(n, value)
    scatter = t_quantile((1 + line.level) / 2, line.df) * line.sd
    return _prediction(
        n,
        value,
        (low, high),
        (
            None if low is None else value - math.hypot(value - low, scatter),
            None if high is None else value + math.hypot(high - value, scatter),
        ),
    )


def leave_one_out(sizes: Sequence[Size], *, level: float = 0.95) -> tuple[LeftOutSize, ...]:
    """Each size's own dose against the meta-regression of the others.

    Interval: line -+ t_{k-3} sqrt(var(line) + tau^2 + variance of the size), k the sizes. Below 3 sizes: empty; with 3
    a prediction without an interval.

    >>> sizes = [Size(x, y, 0.01, ("m",), 1) for x, y in [(8, 1.0), (9, 1.1), (10, 1.2), (11, 9.5)]]
    >>> leave_one_out(sizes)[3].inside
    False
    """
    if len(sizes) < 3:
        return ()
    return tuple(_left_out(sizes, i, level) for i in range(len(sizes)))


def _left_out(sizes: Sequence[Size], i: int, level: float) -> LeftOutSize:
    own, line = sizes[i], _given(_meta_line([*sizes[:i], *sizes[i + 1 :]]))
    value, variance = line_at(line, own.log_n)
    if slope_interval(line, level) is None:
        return LeftOutSize(10**own.log_n, 10**own.value, 10**value, None, None, None)
    reach = t_quantile((1 + level) / 2, line.df) * math.sqrt(variance + line.between_sd**2 + own.variance)
    inside = abs(own.value - value) <= reach
    return LeftOutSize(10**own.log_n, 10**own.value, 10**value, 10 ** (value - reach), 10 ** (value + reach), inside)


def rate_slope(points: Sequence[SizePoint], *, level: float = 0.95) -> tuple[Slope, str]:
    """Slope of a rate, such as RRR at dose 0, on log10 N: meta-regression over sizes; and why there is none.

    Change of the rate for one decade of parameters, t with k - 2 degrees of freedom, sizes as in :func:`scaling`.
    Points without a value are left out.

    Raises:
        DataError: As for :func:`scaling`.

    >>> start = [SizePoint(f"m{n}", n, rate, rate - 0.1, rate + 0.1) for n, rate in [(1e8, 0.2), (1e9, 0.6)]]
    >>> round(rate_slope(start)[0].value, 3)
    0.4
    """
    kept = [point for point in points if point.value is not None and not point.censored]
    for point in kept:
        check_point(point, positive=False)
    sizes, _ = _uncensored(kept, lambda point: point.value or 0.0, standard_error)
    line = _meta_line(sizes)
    ends = None if line is None else slope_interval(line, level)
    frame = _Frame(0.0, check_level(level), (), (), ())
    slope = _slope(None if line is None else line.slope, ends or (None, None), line.df if line else 0, frame)
    return slope, _reason(len(sizes), has_interval=ends is not None)


def to_dict(record: Any) -> dict[str, Any]:
    """A record of this package as plain values for JSON: nested dicts, lists, strings and numbers; not finite: None.

    >>> to_dict(SizePoint("m", 1e9, None, 2.0, float("inf"), censored="right"))["high"] is None
    True
    """
    return {field.name: _plain(getattr(record, field.name)) for field in dataclasses.fields(record)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        items: list[Any] = list(cast("Sequence[Any]", value))
        return [_plain(item) for item in items]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
