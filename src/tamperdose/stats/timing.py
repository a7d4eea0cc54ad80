"""Whether the refusal direction turns before, after or while the refusals go: two doses of an arm, compared in logs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Scope
from tamperdose.stats.distributions import t_quantile
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.dose_curve import antitonic, check_doses, crossings
from tamperdose.stats.rates import check_level
from tamperdose.stats.seeds import MIN_SEEDS

MARGIN = 1.5
"""Doses within this factor of one another, interval included, count as the same; fixed beforehand."""
SETTLED = 0.9
"""Share of its value at the last dose that a curve has at the one before where it no longer rises; fixed beforehand."""
STILL_TURNING = "the direction still turns at the last dose"
NOTHING_TURNED = "the direction has not turned at the last dose"

Floats = NDArray[np.float64]
Box = tuple[float, float]


class Order(StrEnum):
    """When the direction turns, set against when the refusals go."""

    PRECEDES = "precedes"
    """At smaller doses: the whole interval of the ratio is below 1."""
    FOLLOWS = "follows"
    """At larger ones: it is above 1."""
    ACCOMPANIES = "accompanies"
    """At the same ones: it lies within a factor of MARGIN of 1."""
    UNDECIDED = "undecided"
    """None of these."""


@dataclass(frozen=True, slots=True)
class HalfDose:
    """The dose at which a curve that rises from 0 has come half of its way."""

    value: float | None
    """Between two measured doses, linear in log dose; None where undefined, or before the first positive dose."""
    low: float | None
    """Lower end of the interval, which holds the bracket; None where undefined, 0 where it is open below."""
    high: float | None
    """Upper end."""
    bracket: tuple[float, float] | None
    """The two measured doses it lies between; None where undefined."""
    reason: str = ""
    """Why it is undefined; empty otherwise."""
    settled: bool = True
    """Whether the curve had come to `SETTLED` of its end at the last dose but one: else it may still rise."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The dose at which the direction has half turned, over the dose at which half of the refusals are gone."""

    ratio: float | None
    """Below 1: the direction turns first. Over seeds the geometric mean; None where undefined."""
    low: float | None
    """Lower end of its interval; 0 where open."""
    high: float | None
    """Upper end; None where open or undefined."""
    level: float
    """Confidence level."""
    order: Order
    """The verdict."""
    scope: Scope
    """Of one trajectory, or of the attack from three seeds on."""
    n_seeds: int
    """Seeds."""
    reason: str = ""
    """Why it is undefined; empty otherwise."""


def half_dose(
    doses: ArrayLike, curve: ArrayLike, left_out: ArrayLike, *, sizes: tuple[int, int], level: float = 0.95
) -> HalfDose:
    """Dose at which a curve that starts at 0 first reaches half of its value at the last dose.

    The curve is made monotone first. "Half" is of what the ladder's last dose shows: a curve that still rises there
    would give a larger dose on a longer ladder. The interval is the two-sample jackknife over groups of templates of
    the log dose, with Student's t for the kind that has fewer groups, stretched to hold the bracket of measured doses;
    it is open below (0) where the half, or a replicate's, lies before the first positive dose. A curve that is not
    above 0 at the last dose, or not in every replicate, has no such dose.

    Args:
        doses: 0 and then increasing, shape (D,).
        curve: At those doses, 0 at the first, shape (D,).
        left_out: The curve with each group left out, the first kind's groups first, shape (sizes[0] + sizes[1], D).
        sizes: Groups of either kind, two or more.
        level: Confidence level.

    Raises:
        DataError: No ladder of doses, shapes that differ, or `level` outside (0, 1).

    Source: Arvesen (1969), doi:10.1214/aoms/1177697287, for the jackknife of two samples.

    >>> half_dose([0, 1, 4, 16], [0.0, 0.25, 0.75, 1.0], [[0.0, 0.25, 0.75, 1.0]] * 4, sizes=(2, 2)).value
    2.0
    """
    ladder, whole = check_doses(doses), np.asarray(curve, dtype=np.float64)
    replicates = np.asarray(left_out, dtype=np.float64)
    if whole.shape != ladder.shape or replicates.shape != (sum(sizes), len(ladder)):
        raise DataError(explain("curves do not fit the doses", got=f"{whole.shape}, {replicates.shape}"))
    curves = np.vstack([whole, replicates])
    if not np.all(np.isfinite(curves)) or np.min(curves[:, -1]) <= 0:
        return HalfDose(None, None, None, None, NOTHING_TURNED)
    rising = -antitonic(-curves, np.ones_like(curves))
    found = crossings(ladder, 1 - rising / rising[:, -1:], np.full(len(curves), 0.5))
    bracket = float(found.below[0]), float(found.above[0])
    settled = bool(rising[0, -2] >= SETTLED * rising[0, -1])
    if bracket[0] == 0 or np.min(found.at) == 0:
        value = float(found.at[0]) or None
        return HalfDose(value, 0.0, max(bracket[1], float(found.at.max())), bracket, settled=settled)
    logs = np.log(found.at)
    spread = _jackknife_se(logs[1:], sizes) * t_quantile((1 + check_level(level)) / 2, min(sizes) - 1)
    low, high = math.exp(logs[0] - spread), math.exp(logs[0] + spread)
    return HalfDose(float(found.at[0]), min(low, bracket[0]), max(high, bracket[1]), bracket, settled=settled)


def _jackknife_se(values: Floats, sizes: tuple[int, int]) -> float:
    parts = np.split(values, [sizes[0]])
    return math.sqrt(sum((len(part) - 1) / len(part) * float(np.sum((part - part.mean()) ** 2)) for part in parts))


def compare_timing(inside: Sequence[HalfDose], behaviour: Sequence[EffectiveDose], *, level: float = 0.95) -> Timing:
    """Say whether the direction's half dose lies before, after or at the dose that halves refusals.

    ratio = half dose of the direction / ED50; over seeds the geometric mean. Of either dose only its bracket of
    measured doses is known, so of each log ratio a box. From three seeds on (scope `attack`): Student's interval of
    the mean log ratio, and beside it, as independent errors that all seeds share, how far the boxes reach beyond the
    ratios and what the intervals over prompts add to the brackets, each on average. Below, of one trajectory: the box,
    widened on either side by what the two intervals over prompts add to their brackets, as independent errors. One end
    is open where a dose is a bound only.
    The interval within a factor of MARGIN of 1: accompanies; else wholly below 1: precedes, above 1: follows; else
    undecided. Where the direction still turns at the last dose of a seed, its half can only come later on a longer
    ladder: "follows" is said all the same, nothing else is.

    Args:
        inside: One for each seed; one, or three and more.
        behaviour: ED50 of the same arms, in the same unit.
        level: Confidence level.

    Raises:
        DataError: Not one of each for each seed, two seeds, or `level` outside (0, 1).

    Source: Student's interval of log ratios over independent runs; Zou & Donner (2008), doi:10.1002/sim.3095, for the
    sum of independent errors.
    """
    n = len(inside)
    check_level(level)
    if n != len(behaviour) or n == 0 or 1 < n < MIN_SEEDS:
        raise DataError(
            explain("not the doses of one arm, or of three seeds", got=f"{n} and {len(behaviour)}", expected="as many")
        )
    scope = Scope.ATTACK if n >= MIN_SEEDS else Scope.TRAJECTORY
    reason = next((dose.reason for dose in (*inside, *behaviour) if dose.bracket is None), None)
    if reason is not None:
        return Timing(None, None, None, level, Order.UNDECIDED, scope, n, reason)
    pairs = list(zip(inside, behaviour, strict=True))
    boxes = [_box(first, second) for first, second in pairs]
    values = [_log_ratio(first, second) for first, second in pairs]
    known = [value for value in values if value is not None]
    wider = [_of_one(box, *pair) for box, pair in zip(boxes, pairs, strict=True)]
    ends = _over_seeds(boxes, values, wider, level) if scope is Scope.ATTACK else wider[0]
    ratio = math.exp(sum(known) / n) if len(known) == n else None
    low, high = (math.exp(end) for end in ends)
    order, high = _order(*ends), None if math.isinf(high) else high
    if order is not Order.FOLLOWS and not all(dose.settled for dose in inside):
        return Timing(ratio, low, high, level, Order.UNDECIDED, scope, n, STILL_TURNING)
    return Timing(ratio, low, high, level, order, scope, n)


def _log_ratio(first: HalfDose, second: EffectiveDose) -> float | None:
    return None if first.value is None or second.value is None else math.log(first.value / second.value)


def _box(first: HalfDose, second: EffectiveDose) -> Box:
    """Least and greatest log ratio that the two brackets allow; infinite where one of them is open."""
    (low, high), (below, above) = first.bracket or (0.0, 0.0), second.bracket or (0.0, None)
    least = math.log(low / above) if low > 0 and above is not None else -math.inf
    return least, math.log(high / below) if below > 0 else math.inf


def _of_one(box: Box, first: HalfDose, second: EffectiveDose) -> Box:
    """The box, widened by what chance in the prompts adds at either end."""
    (low, high), (below, above) = first.bracket or (0.0, 0.0), second.bracket or (0.0, None)
    least = box[0] - math.hypot(_widening(first.low, low), _widening(above, second.high))
    return least, box[1] + math.hypot(_widening(high, first.high), _widening(second.low, below))


def _widening(low: float | None, high: float | None) -> float:
    """How far in logs a lower end lies below another number, or a number below an upper end; infinite where open."""
    return math.inf if not low or high is None else max(0.0, math.log(high / low)) if high > 0 else math.inf


def _over_seeds(boxes: Sequence[Box], values: Sequence[float | None], wider: Sequence[Box], level: float) -> Box:
    # Where a value is a bound, the bound stands for it on the side that it closes; the other side is open.
    ends = [[end for end in box if math.isfinite(end)] for box in boxes]
    if not all(ends):
        return -math.inf, math.inf
    points = np.array([end[-1] if value is None else value for end, value in zip(ends, values, strict=True)])
    seeds = t_quantile((1 + level) / 2, len(points) - 1) * float(points.std(ddof=1)) / math.sqrt(len(points))
    below, above = (float(np.mean(np.abs([box[side] for box in boxes] - points))) for side in (0, 1))
    # All seeds answer the same prompts: their part does not shrink with the number of seeds.
    prompts = [
        float(np.mean([abs(out[side] - box[side]) for out, box in zip(wider, boxes, strict=True)])) for side in (0, 1)
    ]
    middle = float(points.mean())
    return middle - math.hypot(seeds, below, prompts[0]), middle + math.hypot(seeds, above, prompts[1])


def _order(low: float, high: float) -> Order:
    if max(abs(low), abs(high)) <= math.log(MARGIN):
        return Order.ACCOMPANIES
    if high < 0:
        return Order.PRECEDES
    return Order.FOLLOWS if low > 0 else Order.UNDECIDED
