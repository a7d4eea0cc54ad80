"""Averages over the arms of a grid that share a level of one factor, and the pairs behind differences of levels."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate, Scope
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.paired import Pairs, pair
from tamperdose.stats.rates import check_level, rate

GEOMETRIC_MEAN = "geometric_mean"
"""Name of the method of :func:`arms_dose`."""


def arms_rate(events: ArrayLike, templates: Sequence[str], *, level: float = 0.95) -> Estimate:
    """Mean share of events over arms that answer the same prompts, with an interval over the prompts. Scope `arms`.

    value = mean over prompts of y_i, y_i the mean of prompt i's events over the arms in which it was read. Interval:
    that of `rate` for the y_i, by template; it takes y_i for a yes or no and so errs on the wide side. It speaks for
    these arms and the population of prompts: what other arms (seeds, say) would do is not in it.
    In [0, 1]. A prompt that was read in no arm is left out. n_unreadable counts verdicts, over all arms. Prompts that
    lack an arm are kept: with many arms hardly a prompt is read in all of them. No prompt left: the value is None;
    fewer than two prompts or templates: the interval is None.

    Args:
        events: 1 where the event happened, 0 where not, NaN where no verdict could be had, shape (n, A), A >= 1.
        templates: The template of each prompt, length n.
        level: Confidence level.

    Raises:
        DataError: No arm, another shape, a value outside [0, 1], `level` outside (0, 1).

    Source: as for `rate`.

    >>> found = arms_rate([[1, 0], [1, 1], [0, 0], [float("nan"), 1]], list("abcd"))
    >>> found.value, found.n, found.n_unreadable, found.scope.value
    (0.625, 4, 1, 'arms')
    """
    table = _table(events, templates)
    read = _read(table)
    names = [name for name, keep in zip(templates, read.tolist(), strict=True) if keep]
    n_unreadable = int(np.isnan(table).sum())
    return rate(_means(table[read]), names, n_unreadable=n_unreadable, level=level, scope=Scope.ARMS)


def level_pairs(first: ArrayLike, other: ArrayLike, templates: Sequence[str]) -> Pairs:
    """Pair the prompts' averages over the arms at two levels of a factor, for `paired_difference`: other less first.

    `base` holds the means over the arms at the first level in which a prompt was read, `tampered` those at the other. A
    prompt that was read in no arm of one of them is left out and counted.

    Args:
        first: As `events` of :func:`arms_rate`, shape (n, A).
        other: The same prompts at the other level, shape (n, B); B need not be A.
        templates: The template of each prompt, length n.

    Raises:
        DataError: As :func:`arms_rate`.

    >>> pairs = level_pairs([[1, 1], [1, 0]], [[0], [1]], ["a", "b"])
    >>> pairs.base, pairs.tampered
    (array([1. , 0.5]), array([0., 1.]))
    """
    tables = [_table(events, templates) for events in (first, other)]
    read = np.logical_and(*(_read(table) for table in tables))
    before, after = (_means(table) for table in tables)
    return pair(before, after, templates, readable=read)


def arms_dose(doses: Sequence[EffectiveDose], *, level: float = 0.95) -> Estimate:
    """Geometric mean over arms of their effective doses, without an interval. Scope `arms`.

    value = exp(mean log dose) where every arm has one; None where an arm is censored or undefined (a mean of the others
    would be too small or too large), and for no arms. `censored` then names the kinds there are, `left`, `right`,
    `undefined`, in this order, parted by spaces. n and n_templates are the arms' largest, n_unreadable their sum.

    Args:
        doses: One for each arm, same fraction.
        level: Stands in the record; there is no interval.

    Raises:
        DataError: `level` outside (0, 1), or fractions that differ.

    >>> from tamperdose.stats.dose import EffectiveDose
    >>> facts = (None, None, 0.95, (1.0, 9.0), "", None, "isotonic", "m", Scope.TRAJECTORY, 9, 9, 0)
    >>> arms_dose([EffectiveDose(0.5, 2.0, *facts), EffectiveDose(0.5, 8.0, *facts)]).value
    4.0
    """
    if len({dose.fraction for dose in doses}) > 1:
        got = ", ".join(f"{dose.fraction:g}" for dose in doses)
        raise DataError(explain("effective doses of different kinds", got=got, expected="one fraction"))
    values = [dose.value for dose in doses if dose.value is not None]
    complete = 0 < len(values) == len(doses)
    kinds = [kind for kind in ("left", "right", "undefined") if any(dose.censored == kind for dose in doses)]
    return Estimate(
        value=math.exp(math.fsum(map(math.log, values)) / len(values)) if complete else None,
        low=None,
        high=None,
        level=check_level(level),
        method=GEOMETRIC_MEAN,
        n=max((dose.n for dose in doses), default=0),
        n_templates=max((dose.n_templates for dose in doses), default=0),
        n_effective=None,
        n_unreadable=sum(dose.n_unreadable for dose in doses),
        scope=Scope.ARMS,
        censored=" ".join(kinds),
    )


def _table(events: ArrayLike, templates: Sequence[str]) -> NDArray[np.float64]:
    table = np.asarray(events, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != len(templates) or table.shape[1] == 0:
        raise DataError(
            explain("events do not fit", got=f"shape {table.shape}", expected=f"({len(templates)}, 1 arm or more)")
        )
    return table


def _read(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Prompts read in an arm or more, shape (n,)."""
    return np.any(~np.isnan(table), axis=1)


def _means(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each prompt's mean over the arms in which it was read, 0 where in none, shape (n,)."""
    counts = np.sum(~np.isnan(table), axis=1)
    return np.nansum(table, axis=1) / np.maximum(counts, 1)
