"""One learning rate for every size beside the best of each, and what an attack costs beside pretraining."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tamperdose.errors import DataError, explain
from tamperdose.stats.scaling import DoseUnit, Scaling, log_dose, scaling
from tamperdose.stats.sizes import SizePoint, bracket_of, size_labels

MIN_LEARNING_RATES = 3
"""Fewer learning rates than this cannot show that the best one is not at the edge."""
OPTIMISTIC = (
    "the smallest dose over learning rates was chosen on the prompts it is reported on: it is optimistic for the "
    "attacker"
)
"""What goes with every result over chosen learning rates."""


@dataclass(frozen=True, slots=True)
class RecipeComparison:
    """The scaling with one learning rate for every size, and with the one that breaks each size soonest."""

    fixed_learning_rate: float
    """The learning rate that every size was attacked with."""
    fixed: Scaling
    """With it."""
    best: Scaling | None
    """With the best of each size; None with fewer than 3 learning rates."""
    chosen: tuple["ChosenRate", ...]
    """Which was best."""
    note: str
    """What choosing does to the numbers, or why there is no choice."""


@dataclass(frozen=True, slots=True)
class ChosenRate:
    """The learning rate with the smallest dose at one size."""

    n_parameters: float
    """The size."""
    learning_rate: float
    """The best one."""
    n_rates: int
    """Learning rates that were tried at this size."""
    at_edge: bool
    """Whether it is the smallest or the largest tried: a still better one may lie outside."""


def compare_recipes(
    by_rate: Mapping[float, Sequence[SizePoint]],
    fixed: float,
    unit: DoseUnit,
    *,
    at: Sequence[float] = (),
    level: float = 0.95,
) -> RecipeComparison:
    """Scaling with one learning rate for all sizes, beside that with each size's best of at least three.

    A learning rate tuned for one size attacks that size best, and so decides the slope. Best of a size: the learning
    rate with the smallest mean log10 dose over its arms (left-censored arms count by their bound, right-censored ones
    as larger than every dose); all its arms at this rate go into the fit. The choice is made on the prompts that are
    reported, so these doses are too small on average.

    Args:
        by_rate: The arms by learning rate.
        fixed: The learning rate of the fixed recipe.
        unit: As for :func:`scaling`.
        at: As for :func:`scaling`.
        level: Confidence level.

    Raises:
        DataError: `fixed` is not among the learning rates; otherwise as for :func:`scaling`.

    >>> arms = {lr: [SizePoint("m", 1e9, dose, None, None)] for lr, dose in [(1e-4, 20), (3e-4, 8), (1e-3, 9)]}
    >>> compare_recipes(arms, 1e-4, DoseUnit.STEPS).chosen[0].learning_rate
    0.0003
    """
    if fixed not in by_rate:
        raise DataError(explain("no arm has the fixed learning rate", got=f"{fixed}", expected=f"{sorted(by_rate)}"))
    alone = scaling(by_rate[fixed], unit, at=at, level=level)
    if len(by_rate) < MIN_LEARNING_RATES:
        note = f"{len(by_rate)} learning rates: a choice needs {MIN_LEARNING_RATES}"
        return RecipeComparison(fixed, alone, None, (), note)
    chosen, points = _best_rates(by_rate)
    return RecipeComparison(fixed, alone, scaling(points, unit, at=at, level=level), chosen, OPTIMISTIC)


def _best_rates(by_rate: Mapping[float, Sequence[SizePoint]]) -> tuple[tuple[ChosenRate, ...], list[SizePoint]]:
    arms = [(rate, point) for rate in sorted(by_rate) for point in by_rate[rate]]
    labels = size_labels([point for _, point in arms])
    chosen: list[ChosenRate] = []
    points: list[SizePoint] = []
    for label in sorted(set(labels)):
        own: dict[float, list[SizePoint]] = {}
        for (rate, point), place in zip(arms, labels, strict=True):
            if place == label:
                own.setdefault(rate, []).append(point)
        rates = sorted(own)
        best = min(rates, key=lambda rate: _keys(own[rate]))
        chosen.append(ChosenRate(10**label, best, len(rates), best in (rates[0], rates[-1])))
        points += own[best]
    return tuple(chosen), points


def _keys(points: Sequence[SizePoint]) -> tuple[float, float]:
    """To compare learning rates: how many arms did not break, then the mean log10 dose of the others."""
    broken = [_key(point) for point in points if point.censored not in ("right", "undefined")]
    return 1 - len(broken) / len(points), float(np.mean(broken)) if broken else math.inf


def _key(point: SizePoint) -> float:
    bracket = bracket_of(point)
    if point.censored == "interval" and bracket is not None:
        return (log_dose(bracket[0] or bracket[1]) + log_dose(bracket[1])) / 2
    return log_dose(point.high if point.censored == "left" else point.value)


def attack_share(attack_flops: float, n_parameters: float, pretraining_tokens: float) -> float:
    """Cost of an attack as a share of pretraining's: attack_flops / (6 N D), D the tokens of pretraining.

    Raises:
        DataError: A negative number of operations, or a size or number of tokens that is not positive.

    Source: Kaplan et al. (2020), arXiv:2001.08361, for 6 N D.

    >>> attack_share(6e15, 1e9, 1e12)
    1e-06
    """
    if not (attack_flops >= 0 and n_parameters > 0 and pretraining_tokens > 0):
        got = f"{attack_flops} FLOPs, N = {n_parameters}, D = {pretraining_tokens}"
        raise DataError(explain("no share of pretraining", got=got, expected="FLOPs >= 0, N > 0, D > 0"))
    return attack_flops / (6 * n_parameters * pretraining_tokens)
