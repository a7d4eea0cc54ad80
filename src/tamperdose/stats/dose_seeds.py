"""Effective doses of several seeds of one attack: an interval that speaks for the attack."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Scope
from tamperdose.stats.distributions import t_quantile
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.rates import check_level
from tamperdose.stats.seeds import MIN_SEEDS

MOVER_SEEDS = "mover_prompts_seeds_bracket_t"
"""Name of the interval of :func:`attack_dose`."""
NO_INTERVAL = "geometric_mean"
"""Stands in place of that name where there is no interval: see :func:`runs_dose`."""

Box = tuple[float, float]
Floats = NDArray[np.float64]


def attack_dose(seeds: Sequence[EffectiveDose], *, level: float = 0.95, first: float | None = None) -> EffectiveDose:
    """The dose of the attack: the mean of log ED over seeds, with an interval for seeds and prompts. Scope `attack`.

    value = exp(mean of log values). Of seed s only the bracket (l_s, u_s) between measured doses is known, in logs, and
    its trajectory's interval (L_s, U_s), which holds the bracket. low = mean(l) - hypot(A, B), A = mean(l - L), the
    prompts' part, taken whole since all seeds answer the same prompts; B = mean(l) - min(mean(x) - t_{S-1} s(x) /
    sqrt(S)), the seeds' part: Student's interval for the worst x_s in the brackets. high alike. Seeds that all fall
    into one bracket so get an interval wider than it: their spread is unknown, not 0.

    A seed that is right-censored counts as at the last dose or, for the seeds' part, one bracket beyond (the widest
    ratio of a bracket among the seeds, 2 if there is none), and leaves the upper end open (None); left-censored alike
    below, the lower end being 0. With any censored seed the value is the median over seeds, which is censored itself
    when the middle seeds are. An undefined seed makes the result undefined. A seed without interval: no interval.
    A lower end in front of the first measured dose is 0: nothing was measured there.

    Bracket: geometric means of the ends of the brackets of the seeds that make the value: all of them, or with any
    censored seed the middle ones. It holds the value, and its ends need not be measured doses. Where the value is
    right-censored it lies above the lower end, where left-censored below the upper one.

    Args:
        seeds: One effective dose for each seed, scope `trajectory`, same fraction, the same prompts; three or more.
        level: Confidence level; A is at the seeds' own.
        first: The smallest positive dose that was measured; None: not known.

    Raises:
        DataError: Fewer than three seeds, another scope, or fractions that differ.

    Source: Student's interval of log ED over independent runs; Zou & Donner (2008), doi:10.1002/sim.3095, for the
    combination; the worst case over the brackets is interval arithmetic (Manski 1989, doi:10.2307/145818).
    """
    _check(seeds, check_level(level))
    result = replace(runs_dose(seeds, level=level), method=MOVER_SEEDS, scope=Scope.ATTACK)
    brackets = [seed.bracket for seed in seeds if seed.bracket is not None]
    if result.bracket is None:
        return result
    low, high = _ends(seeds, brackets, level)
    if low is not None and result.value is not None:
        low, high = min(low, result.value), None if high is None else max(high, result.value)
    if low is not None and first is not None and low < first:
        low = 0.0
    return replace(result, low=low, high=high)


def runs_dose(runs: Sequence[EffectiveDose], *, level: float = 0.95) -> EffectiveDose:
    """Value, bracket and censoring of :func:`attack_dose` without an interval, for any number of runs. Scope `arms`.

    Raises:
        DataError: No runs, or runs of another scope or of fractions that differ.
    """
    _require_one_kind(runs)
    result = replace(
        runs[0],
        low=None,
        high=None,
        level=check_level(level),
        method=NO_INTERVAL,
        scope=Scope.ARMS,
        sampling=None,
        n=max(run.n for run in runs),
        n_templates=max(run.n_templates for run in runs),
        n_unreadable=sum(run.n_unreadable for run in runs),
        n_seeds=len(runs),
    )
    if any(run.bracket is None for run in runs):
        reason = next(run.reason for run in runs if run.bracket is None)
        return replace(result, value=None, bracket=None, censored="undefined", reason=reason)
    value, censored = _middle(runs)
    return replace(result, value=value, censored=censored, bracket=_bracket(runs, censored))


def _check(seeds: Sequence[EffectiveDose], level: float) -> None:
    if len(seeds) < MIN_SEEDS:
        raise DataError(
            explain(
                "too few seeds to speak for an attack",
                got=f"{len(seeds)} seed(s) at level {level:g}",
                expected=f"{MIN_SEEDS} or more",
                remedy="report each trajectory by itself",
            )
        )
    _require_one_kind(seeds)


def _require_one_kind(seeds: Sequence[EffectiveDose]) -> None:
    kinds = {(seed.fraction, seed.scope) for seed in seeds}
    if len(kinds) != 1 or {scope for _, scope in kinds} != {Scope.TRAJECTORY}:
        raise DataError(
            explain("seeds of different kinds", got=f"{sorted(kinds)}", expected="one fraction, scope trajectory")
        )


def _middle(seeds: Sequence[EffectiveDose]) -> tuple[float | None, str]:
    """Mean of the logs; with a censored seed the median."""
    logs = [_log_value(seed) for seed in _deciding(seeds)]
    if math.inf in logs:
        return None, "right"
    if -math.inf in logs:
        return None, "left"
    return math.exp(sum(logs) / len(logs)), ""


def _deciding(seeds: Sequence[EffectiveDose]) -> Sequence[EffectiveDose]:
    """The seeds that make the value: all, or with a censored one the middle one or two."""
    if not any(seed.censored for seed in seeds):
        return seeds
    ordered = sorted(seeds, key=_rank)
    return ordered[(len(seeds) - 1) // 2 : len(seeds) // 2 + 1]


def _rank(seed: EffectiveDose) -> tuple[float, float]:
    """Order by value; seeds censored alike by their bound."""
    low, high = seed.bracket or (0.0, None)
    return _log_value(seed), low if high is None else high


def _log_value(seed: EffectiveDose) -> float:
    if seed.value is not None:
        return math.log(seed.value)
    return math.inf if seed.censored == "right" else -math.inf


def _bracket(seeds: Sequence[EffectiveDose], censored: str) -> tuple[float, float | None]:
    """Geometric means of the ends: they hold the geometric mean of what the brackets hold."""
    brackets = [seed.bracket for seed in _deciding(seeds) if seed.bracket is not None]
    lower, upper = [low for low, _ in brackets], [high for _, high in brackets if high is not None]
    low = 0.0 if censored == "left" or 0 in lower else _geometric_mean(lower)
    return low, None if censored == "right" or len(upper) < len(brackets) else _geometric_mean(upper)


def _geometric_mean(ends: Sequence[float]) -> float:
    # Ends that agree are kept to the bit: they are measured doses.
    return ends[0] if len(set(ends)) == 1 else math.exp(math.fsum(map(math.log, ends)) / len(ends))


def _ends(
    seeds: Sequence[EffectiveDose], brackets: Sequence[tuple[float, float | None]], level: float
) -> tuple[float | None, float | None]:
    lows = [seed.low for seed in seeds if seed.low is not None]
    if len(lows) < len(seeds):
        return None, None
    reach = t_quantile((1 + level) / 2, len(seeds) - 1) / math.sqrt(len(seeds))
    boxes = _boxes(brackets)
    low = 0.0 if 0 in lows else math.exp(_lower_end(boxes, [math.log(end) for end in lows], reach))
    highs = [seed.high for seed in seeds if seed.high is not None]
    if len(highs) < len(seeds):
        return low, None
    mirrored = [(-upper, -lower) for lower, upper in boxes]
    return low, math.exp(-_lower_end(mirrored, [-math.log(end) for end in highs], reach))


def _boxes(brackets: Sequence[tuple[float, float | None]]) -> list[Box]:
    """The brackets in logs, open ones given the width of the widest that is closed."""
    widths = [math.log(high / low) for low, high in brackets if high is not None and low > 0]
    width = max(widths, default=math.log(2))
    boxes: list[Box] = []
    for low, high in brackets:
        upper = math.log(low) + width if high is None else math.log(high)
        boxes.append((math.log(low) if low > 0 else upper - width, upper))
    return boxes


def _lower_end(boxes: Sequence[Box], ends: Sequence[float], reach: float) -> float:
    lower = sum(low for low, _ in boxes) / len(boxes)
    prompts = sum(low - end for (low, _), end in zip(boxes, ends, strict=True)) / len(boxes)
    return lower - math.hypot(max(0.0, prompts), lower - lowest_end(boxes, reach))


def lowest_end(boxes: Sequence[Box], reach: float) -> float:
    """Least of mean(x) - reach s(x) over x_s in the boxes.

    It is concave in x, so it lies at a corner; corners that differ only by which of two equal boxes is at its upper end
    are one. With more than 2^16 of them left, the boxes are replaced by their mean bounds and the largest spread those
    and the boxes' own ends allow: a bound below the least.

    >>> round(lowest_end([(0.0, 1.0)] * 3, 2.0), 3)
    -0.821
    """
    kinds = sorted(Counter(boxes).items())
    if math.prod(count + 1 for _, count in kinds) > 2**16:
        n, spread = len(boxes), max(high for _, high in boxes) - min(low for low, _ in boxes)
        return sum(low for low, _ in boxes) / n - reach * spread / 2 * math.sqrt(n / (n - 1))
    counts = np.array(list(itertools.product(*(range(count + 1) for _, count in kinds))), dtype=np.float64)
    low, high = (np.array([box[end] for box, _ in kinds]) for end in (0, 1))
    held = np.array([count for _, count in kinds]) - counts
    n = len(boxes)
    mean = (held @ low + counts @ high) / n
    squares = _squares(held, counts, (low, high), mean)
    return float(np.min(mean - reach * np.sqrt(squares / (n - 1))))


def _squares(held: Floats, counts: Floats, ends: tuple[Floats, Floats], mean: Floats) -> Floats:
    low, high = ends
    return np.sum(held * (low - mean[:, None]) ** 2 + counts * (high - mean[:, None]) ** 2, axis=1)
