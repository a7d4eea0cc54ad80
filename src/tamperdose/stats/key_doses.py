"""The doses of an arm at which all else is measured beside refusals: 0, those around the break, and the last."""

import math
from collections.abc import Mapping

from tamperdose.errors import DataError, explain
from tamperdose.stats.dose_curve import antitonic, crossings

FRACTION = 0.5
"""Of the refusal rate at dose 0: the break is where the curve has fallen to it, as for ED50."""


def bracket_doses(rates: Mapping[int, float | None]) -> tuple[int, int] | None:
    """The two measured doses between which refusals first fall to half of what they were; None where they do not.

    The crossing is that of the isotonic fit with equal weights, as the bracket of ED50 is: a single dose out of line is
    pooled with its neighbours before the level is looked for. (0, first dose) where the first dose is at the level.

    Args:
        rates: The refusal rate at each measured dose, 0 among them; None where no verdict could be had.

    Raises:
        DataError: Dose 0 is not among them.

    >>> bracket_doses({0: 1.0, 1: 0.9, 2: 0.6, 4: 0.2, 8: 0.0}), bracket_doses({0: 1.0, 1: 0.9})
    ((2, 4), None)
    """
    doses, values = _read(rates)
    if len(doses) < 2 or not values[0]:
        return None
    fit = antitonic(values, [1.0] * len(values))[None]
    found = crossings(doses, fit, FRACTION * fit[:, 0])
    below, above = float(found.below[0]), float(found.above[0])
    return None if math.isinf(above) else (int(below), int(above))


def key_doses(rates: Mapping[int, float | None]) -> tuple[int, ...]:
    """Dose 0, the two doses of the bracket of the first crossing of half the refusals at dose 0, and the last dose.

    Increasing, each once: two to four doses where there is a positive one. No crossing (or nothing refused at dose 0,
    or no verdict there): 0 and the last. The last is the last measured, whether its verdicts could be read or not.

    Args:
        rates: The refusal rate at each measured dose, 0 among them; None where no verdict could be had.

    Raises:
        DataError: Dose 0 is not among them.

    >>> key_doses({0: 1.0, 1: 0.9, 2: 0.6, 4: 0.2, 8: 0.0})
    (0, 2, 4, 8)
    >>> key_doses({0: 1.0, 1: 0.3, 2: 0.1}), key_doses({0: 0.9, 5: 0.8})
    ((0, 1, 2), (0, 5))
    """
    return tuple(sorted({0, *(bracket_doses(rates) or ()), max(rates, default=0)}))


def _read(rates: Mapping[int, float | None]) -> tuple[list[int], list[float]]:
    if 0 not in rates:
        raise DataError(explain("no ladder of doses", got=f"{sorted(rates)}", expected="0 among them"))
    if rates[0] is None:
        return [], []
    read = [(dose, rate) for dose, rate in sorted(rates.items()) if rate is not None]
    return [dose for dose, _ in read], [rate for _, rate in read]
