"""Whether a second measurement gives the same as a first: equivalence within a margin that is stated beforehand."""

import math
from collections.abc import Sequence
from enum import StrEnum

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate


class Reproduction(StrEnum):
    """Does B reproduce A?"""

    REPRODUCES = "reproduces"
    """Surely no further from A than the margin."""
    DIFFERS = "differs"
    """Surely further from A than the margin."""
    UNDECIDED = "undecided"
    """The data do not tell."""


def check_margin(margin: float) -> float:
    """Return the margin if it is a difference of rates that can be had.

    Raises:
        DataError: Not in (0, 1).

    >>> check_margin(0.1)
    0.1
    """
    if not 0 < margin < 1:
        raise DataError(explain("not a margin", got=f"{margin}", expected="a difference of rates in (0, 1)"))
    return margin


def judge_difference(shown: Estimate, wide: Estimate, margin: float) -> Reproduction:
    """Judge one difference B - A by its interval.

    `reproduces` where the whole of the shown interval lies within (-margin, margin): two one-sided tests, each at
    (1 - level) / 2. `differs` where the whole of the wide interval lies beyond the margin on one side. Else, and where
    there is no interval, `undecided`: an interval that leaves out 0 but not the margin tells of a difference, not that
    it matters.

    Args:
        shown: The difference with the interval that is reported.
        wide: The same difference with the interval at level 1 - (1 - level) / m, for m differences that are looked at
            together (Bonferroni): one of many lies beyond the margin by chance the sooner the more they are.
        margin: Differences up to this are the same for the purpose at hand, in (0, 1).

    Raises:
        DataError: The margin is not in (0, 1).

    Source: Schuirmann (1987), doi:10.1007/BF01068419, with the reported interval of 1 - alpha in place of 1 - 2 alpha,
    which errs against "reproduces".

    >>> from tamperdose.records import Scope
    >>> def between(low, high):
    ...     return Estimate((low + high) / 2, low, high, 0.95, "m", 9, 9, 9.0, 0, Scope.TRAJECTORY)
    >>> [judge_difference(each, each, 0.1).value for each in (between(-0.05, 0.09), between(0.12, 0.3))]
    ['reproduces', 'differs']
    >>> judge_difference(between(0.02, 0.2), between(0.02, 0.2), 0.1).value
    'undecided'
    """
    check_margin(margin)
    low, high = _ends(shown)
    if low > -margin and high < margin:
        return Reproduction.REPRODUCES
    low, high = _ends(wide)
    return Reproduction.DIFFERS if low > margin or high < -margin else Reproduction.UNDECIDED


def judge_all(verdicts: Sequence[Reproduction]) -> Reproduction:
    """Judge a whole by its differences: it reproduces where all do, and differs where any does; none: undecided.

    That all must reproduce needs no correction for their number (intersection-union, Berger 1982,
    doi:10.1080/00401706.1982.10487790); that any may differ has it in the wide intervals of `judge_difference`.

    >>> judge_all([Reproduction.REPRODUCES, Reproduction.UNDECIDED]).value
    'undecided'
    """
    if Reproduction.DIFFERS in verdicts:
        return Reproduction.DIFFERS
    return Reproduction.REPRODUCES if set(verdicts) == {Reproduction.REPRODUCES} else Reproduction.UNDECIDED


def _ends(estimate: Estimate) -> tuple[float, float]:
    if estimate.low is None or estimate.high is None:
        return -math.inf, math.inf
    return estimate.low, estimate.high
