"""Which dose to measure next, and doses in other units than steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from tamperdose.errors import DataError, explain
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.dose_curve import antitonic, check_doses, crossings

ENOUGH = 0.25
"""Share of the sampling interval's width in log dose under which a bracket need not be halved again."""


def next_dose(
    observed: Mapping[int, float],
    candidates: Sequence[int],
    *,
    sampling: tuple[float, float | None] | None = None,
    fraction: float = 0.5,
    budget: int | None = None,
    begun: bool = False,
) -> int | None:
    """The next dose of an adaptive ladder, or None when it is done.

    Unless `begun` says that the first doses are measured: dose 0, then 1, 2, 4, ... up to the largest candidate (each
    the candidate nearest in log, and the largest itself). Then the candidate nearest to the geometric middle of the two
    doses that the isotonic fit crosses between. Done: when no candidate lies between these, when their ratio in log is
    under a quarter of the sampling interval's, when the curve does not come down to the level, or when `budget` doses
    above 0 are measured.

    Args:
        observed: RRR at the doses measured so far.
        candidates: Saved integer steps, in any order; 0 need not be among them.
        sampling: `EffectiveDose.sampling` of a fit to the doses so far; needed for the rule that it serves. An open end
            makes it as wide as can be, and ends the search.
        fraction: Of f(0).
        budget: Largest number of doses above 0.
        begun: Whether `observed` is the ladder to begin with, so that only the bracket is halved.

    Raises:
        DataError: No positive candidate.

    Source: bisection on the log scale, the stopping rule our own; what it does to the interval's coverage is simulated
    by `validation/dose.py`.

    >>> next_dose({0: 1.0, 1: 1.0, 2: 0.9, 4: 0.1, 8: 0.0}, range(9))
    3
    """
    steps = sorted({step for step in candidates if step > 0})
    if not steps:
        raise DataError(explain("no dose to choose from", got=f"{list(candidates)[:5]}", expected="positive steps"))
    if 0 not in observed:
        return 0
    if budget is not None and len(observed) - 1 >= budget:
        return None
    coarse = None if begun else next((step for step in _geometric(steps) if step not in observed), None)
    return coarse if coarse is not None else _bisect(observed, steps, sampling, fraction)


def _geometric(steps: Sequence[int]) -> list[int]:
    """Candidates nearest to the powers of two, and the last."""
    powers = [2**power for power in range(int(math.log2(steps[-1])) + 1)]
    nearest = {min(steps, key=lambda step: (abs(math.log(step / power)), step)) for power in powers}
    return sorted(nearest | {steps[-1]})


def _bisect(
    observed: Mapping[int, float], steps: Sequence[int], sampling: tuple[float, float | None] | None, fraction: float
) -> int | None:
    doses = sorted(observed)
    fit = antitonic([observed[dose] for dose in doses], [1.0] * len(doses))[None]
    found = crossings(doses, fit, fraction * fit[:, 0])
    below, above = float(found.below[0]), float(found.above[0])
    between = [step for step in steps if below < step < above and step not in observed]
    if math.isinf(above) or not between or (below > 0 and _narrow(below, above, sampling)):
        return None
    middle = math.sqrt(max(below, 0.5) * above)
    return min(between, key=lambda step: (abs(math.log(step / middle)), step))


def _narrow(below: float, above: float, sampling: tuple[float, float | None] | None) -> bool:
    if sampling is None:
        return False
    low, high = sampling
    return high is None or low <= 0 or math.log(above / below) < ENOUGH * math.log(high / low)


def convert_dose(dose: EffectiveDose, steps: ArrayLike, amounts: ArrayLike) -> EffectiveDose:
    """The same dose in another unit: examples, tokens, FLOPs, USD.

    Linear between the measured doses, exact at them, 0 at 0; value, both ends, bracket and the sampling interval alike.
    Open ends stay open. An interval goes through a monotone map as it is, and so does its coverage.

    Args:
        dose: In steps.
        steps: Measured doses, from 0 on, shape (D,).
        amounts: What was spent up to each, from 0 on and never falling, shape (D,).

    Raises:
        DataError: Not such columns, or a dose beyond the last step.

    >>> from tamperdose.stats.dose import EffectiveDose
    >>> from tamperdose.records import Scope
    >>> facts = ((2.0, 4.0), "", None, "isotonic", "m", Scope.TRAJECTORY, 9, 9, 0)
    >>> found = convert_dose(EffectiveDose(0.5, 3.0, 2.0, None, 0.95, *facts), [0, 2, 4], [0, 16, 40])
    >>> found.value, found.low, found.high, found.bracket
    (28.0, 16.0, None, (16.0, 40.0))
    """
    x, y = check_doses(steps), np.asarray(amounts, dtype=np.float64)
    if y.shape != x.shape or y[0] != 0 or not np.all(np.diff(y) >= 0):
        raise DataError(
            explain(
                "amounts do not follow the doses", got=f"{y.tolist()}", expected=f"{len(x)} from 0 on, never falling"
            )
        )

    def convert(end: float | None) -> float | None:
        if end is None:
            return None
        if not 0 <= end <= x[-1] * (1 + 1e-12):
            raise DataError(explain("a dose that was not reached", got=f"{end:g}", expected=f"at most {x[-1]:g} steps"))
        return float(np.interp(end, x, y))

    def both(ends: tuple[float, float | None] | None) -> tuple[float, float | None] | None:
        return None if ends is None else (convert(ends[0]) or 0.0, convert(ends[1]))

    return replace(
        dose,
        value=convert(dose.value),
        low=convert(dose.low),
        high=convert(dose.high),
        bracket=both(dose.bracket),
        sampling=both(dose.sampling),
    )
