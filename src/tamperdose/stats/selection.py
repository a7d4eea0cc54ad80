"""The worst attacker over a grid, without the winner's curse: chosen on some prompts, reported on others.

Taking the lowest RRR of many candidates and reporting it on the prompts it was chosen on finds the luckiest candidate.
What is estimated here is the procedure: choose on one half, report on the other.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate
from tamperdose.stats.clusters import same_length, template_codes
from tamperdose.stats.distributions import normal_quantile
from tamperdose.stats.rates import check_level, rate
from tamperdose.stats.seeds import over_seeds

CROSS_FITTED = "cross_fitted_by_template"
"""Method of the interval of :func:`worst_case`, followed by that of the rate it is made of."""
MIN_SPLITS = 20
"""Fewest random splits into halves."""
N_SPLITS = 50
"""Splits unless said otherwise."""
MIN_TEMPLATES = 4
"""Below this a half is one template."""
HALVED_SEEDS = 4
"""From this many seeds on they are halved like the templates; below, each in turn is left out of the choice."""

_Table = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WorstCase:
    """What the worst attacker over a grid reaches, chosen and reported on different prompts."""

    estimate: Estimate
    """Rate of the candidate that is chosen, on prompts, and seeds, that had no part in the choice."""
    naive: Estimate
    """The lowest (or highest) rate on the prompts it was chosen on, with the interval of a rate: too good."""
    optimism: float | None
    """naive - estimate: how much choosing and reporting on the same prompts flatters the attacker."""
    chosen: int | None
    """The candidate that all the data choose."""
    shares: tuple[float, ...]
    """How often each candidate was chosen over the splits; they sum to 1."""
    n_splits: int
    """Splits into two halves, each used both ways."""
    n_seeds: int
    """Seeds of each candidate."""
    reason: str
    """Why there is no estimate, or what it does not say; empty otherwise."""


def worst_case(
    outcomes: ArrayLike,
    templates: Sequence[str],
    *,
    rng: np.random.Generator,
    lowest: bool = True,
    n_splits: int = N_SPLITS,
    level: float = 0.95,
) -> WorstCase:
    """Rate that the attacker reaches who tries every candidate of a grid and keeps the worst for the model.

    The estimand is the procedure: choose the candidate with the lowest rate on half of the templates, report it on the
    other half; its expected value over data sets. Random halves of the templates, each split used both ways, so that
    every prompt is reported equally often. With 2 or 3 seeds each in turn is held out: candidates are chosen on the
    other seeds and reported on it; from 4 seeds on the seeds are halved like the templates. The value of a prompt is
    the mean over splits of the outcome of what was then chosen without it; the estimate is the mean over prompts
    (in [0, 1]) with the interval of `rate`, clustered by template, which is wide enough for values that are
    means, and from 3 seeds on that of `over_seeds`; the spread over the splits of the chosen candidates' rates, which
    another data set might have chosen, is added as an independent error. Choosing on half of the data finds a slightly
    less bad candidate than choosing on all: the estimate errs towards the defender by that, never by chance seen twice.
    Ties go to the first candidate. Unreadable outcomes are NaN and leave the means; a candidate without a readable
    outcome in the choosing half cannot be chosen there. One candidate: nothing is chosen, and optimism is about 0.
    Fewer than 4 templates, or no candidate: no estimate. n = 0: none.

    Args:
        outcomes: 1 where the event (refusal) happened, 0 where not, NaN where unreadable; shape (n_prompts,
            n_candidates) or (n_prompts, n_candidates, n_seeds).
        templates: The template of each prompt, length n_prompts.
        rng: Source of the splits.
        lowest: Whether the worst is the lowest rate (RRR) or the highest (compliance_rate).
        n_splits: Splits, at least 20.
        level: Confidence level.

    Raises:
        DataError: Not such a table, a value outside [0, 1], too few splits, lengths that differ, a bad level.

    Source: Stone (1974), doi:10.1111/j.2517-6161.1974.tb00994.x (cross-validatory choice); Varma & Simon (2006),
    doi:10.1186/1471-2105-7-91 (bias of choosing and reporting on the same data); Chernozhukov et al. (2018),
    doi:10.1111/ectj.12097 (cross-fitting over repeated splits). The interval is ours, checked by simulation.

    >>> rng = np.random.default_rng(1)
    >>> found = worst_case(rng.random((60, 12)) < 0.5, [str(i) for i in range(60)], rng=rng)
    >>> round(found.naive.value, 2), round(found.estimate.value, 2), round(found.optimism, 2)
    (0.45, 0.57, -0.12)
    """
    table = _table(outcomes, templates, n_splits)
    check_level(level)
    codes, signed = template_codes(templates), table if lowest else -table
    naive, chosen = _naive(table, signed, templates, level)
    n_templates = len(set(templates))
    if n_templates < MIN_TEMPLATES or chosen is None:
        reason = "no candidate" if chosen is None else f"{n_templates} templates: halves need {MIN_TEMPLATES}"
        nothing = rate([], [], level=level)
        return WorstCase(nothing, naive, None, chosen, (0.0,) * table.shape[1], 0, table.shape[2], reason)
    scores, shares = _cross_fit(table, signed, codes, rng=rng, n_splits=n_splits)
    estimate = _widen(_estimate(scores, templates, level), table, shares)
    optimism = None if estimate.value is None or naive.value is None else naive.value - estimate.value
    n_seeds = table.shape[2]
    reason = "" if n_seeds >= 2 else "one seed: what chance in a run did to the choice is in the estimate"
    return WorstCase(estimate, naive, optimism, chosen, tuple(shares.tolist()), n_splits, n_seeds, reason)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which candidate is kept for each prompt, chosen on the half of the templates that the prompt's is not in."""

    chosen: tuple[int, ...]
    """For each prompt, the candidate that the other half chooses."""
    overall: int
    """The candidate that all prompts choose: for prompts that have no part in the choice."""
    shares: tuple[float, ...]
    """How often each candidate is chosen over many splits into halves; they sum to 1, or to 0 without a choice."""


def choose_by_half(
    outcomes: ArrayLike, templates: Sequence[str], *, rng: np.random.Generator, n_splits: int = N_SPLITS
) -> Choice:
    """Choose for every prompt the candidate with the lowest rate on the templates of the other half.

    The outcome of what was chosen for a prompt was not looked at when it was chosen, nor was that of any prompt of its
    template: over data sets its rate is that of the procedure "try all on some prompts, keep the lowest for others".
    Of candidates that do not differ it is their common rate, whatever their number, while the lowest rate on the
    prompts it was chosen on falls with their number. Ties go to the first candidate, so that one more that changes
    nothing changes no choice. Unlike :func:`worst_case`, which averages over many splits, each prompt keeps one
    candidate, so that there is an answer to read; the price is that another split might have chosen otherwise, which
    :func:`widened` adds to an interval. Halves and not more folds: with those the choices overlap, and the rate varies
    more (simulated: standard deviation 0.052, 0.065 and 0.069 with 2, 5 and 10 folds for 8 equal candidates at 0.6 on
    120 prompts).
    Unreadable outcomes are NaN; a candidate without a readable one in the choosing half is not chosen. Fewer than 4
    templates: no choice, the first candidate. n = 0: none.

    Args:
        outcomes: 1 where the event (refusal) happened, 0 where not, NaN where unreadable; (n_prompts, n_candidates).
        templates: The template of each prompt, length n_prompts.
        rng: Source of the halves.
        n_splits: Splits behind `shares`, at least 20.

    Raises:
        DataError: Not such a table, too few splits, or lengths that differ.

    Source: Stone (1974) and Chernozhukov et al. (2018), as for :func:`worst_case`.

    >>> rng = np.random.default_rng(1)
    >>> table = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [1, 0], [1, 0]])
    >>> choose_by_half(table, list("abcdefgh"), rng=rng)
    Choice(chosen=(1, 1, 1, 1, 1, 1, 1, 1), overall=1, shares=(0.0, 1.0))
    """
    table = _table(outcomes, templates, n_splits)
    n, n_candidates, _ = table.shape
    if len(set(templates)) < MIN_TEMPLATES:
        return Choice((0,) * n, 0, (0.0,) * n_candidates)
    codes = template_codes(templates)
    half = _half(int(codes.max()) + 1, rng)[codes]
    sums, readable = (part[:, :, 0] for part in _sums(table))
    chosen = np.zeros(n, dtype=np.intp)
    for choosing in (half, ~half):
        chosen[~choosing] = _choose(sums[choosing].sum(axis=0), readable[choosing].sum(axis=0)) or 0
    _, shares = _cross_fit(table, table, codes, rng=rng, n_splits=n_splits)
    overall = _choose(sums.sum(axis=0), readable.sum(axis=0)) or 0
    return Choice(tuple(chosen.tolist()), overall, tuple(shares.tolist()))


def widened(estimate: Estimate, outcomes: ArrayLike, shares: Sequence[float]) -> Estimate:
    """Add to a rate's interval what another split or data set would have chosen, as :func:`worst_case` does.

    Each arm becomes the root of its square plus (z s)^2, s the standard deviation, weighted by `shares`, of the
    candidates' rates. In simulations of 120 prompts in 80 templates (2 to 8 candidates, alike or not; docs/methods.md)
    the interval of `rate` held the procedure's mean in 0.87 to 0.96 of data sets, this one in 0.93 to 0.98.

    Args:
        estimate: The rate of the outcomes kept, with its interval.
        outcomes: Outcomes of all candidates, (n_prompts, n_candidates); NaN where unreadable or not counted.
        shares: Of :func:`choose_by_half`.

    Raises:
        DataError: Not such a table.
    """
    table = _table(outcomes, [""] * len(np.asarray(outcomes)), MIN_SPLITS)
    weights = np.asarray(shares) * ~np.all(np.isnan(table[:, :, 0]), axis=0)
    return _widen(estimate, table, weights / weights.sum()) if weights.any() else estimate


def _table(outcomes: ArrayLike, templates: Sequence[str], n_splits: int) -> _Table:
    table = np.asarray(outcomes, dtype=np.float64)
    if table.ndim == 2:
        table = table[:, :, None]
    if table.ndim != 3 or table.shape[2] == 0:
        got = f"shape {table.shape}"
        raise DataError(explain("no table of outcomes", got=got, expected="(prompts, candidates) or with seeds"))
    if np.any(np.isinf(table) | (table < 0) | (table > 1)):
        raise DataError(explain("an outcome lies outside [0, 1]", expected="0, 1, a share, or NaN where unreadable"))
    same_length("templates", len(templates), n_rows=len(table))
    if n_splits < MIN_SPLITS:
        raise DataError(explain("too few splits", got=f"{n_splits}", expected=f"{MIN_SPLITS} or more"))
    return table


def _naive(table: _Table, signed: _Table, templates: Sequence[str], level: float) -> tuple[Estimate, int | None]:
    """The candidate that all the data choose, and its rate on them."""
    sums, counts = _sums(signed)
    chosen = _choose(sums.sum(axis=(0, 2)), counts.sum(axis=(0, 2)))
    if chosen is None:
        return rate([], [], level=level), None
    readable = ~np.isnan(table[:, chosen, :])
    kept = np.any(readable, axis=1)
    means = np.nansum(table[kept, chosen, :], axis=1) / readable[kept].sum(axis=1)
    names = _kept(templates, kept)
    found = rate(means, names, level=level, n_unreadable=int((~kept).sum()))
    return found, chosen


def _widen(estimate: Estimate, table: _Table, shares: _Table) -> Estimate:
    """Add what another data set would have chosen: the spread of the rates of the candidates that splits chose."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    used = np.flatnonzero(shares > 0)
    rates = np.array([float(np.nanmean(table[:, candidate, :])) for candidate in used])
    mean = float(shares[used] @ rates)
    reach = normal_quantile((1 + estimate.level) / 2) * math.sqrt(float(shares[used] @ (rates - mean) ** 2))
    return replace(
        estimate,
        low=max(0.0, estimate.value - math.hypot(estimate.value - estimate.low, reach)),
        high=min(1.0, estimate.value + math.hypot(estimate.high - estimate.value, reach)),
    )


def _kept(templates: Sequence[str], kept: NDArray[np.bool_]) -> list[str]:
    return [template for template, keep in zip(templates, kept.tolist(), strict=True) if keep]


def _sums(signed: _Table) -> tuple[_Table, _Table]:
    """Outcomes with 0 for unreadable ones, and 1 where readable."""
    return np.nan_to_num(signed, nan=0.0), (~np.isnan(signed)).astype(np.float64)


def _choose(sums: _Table, counts: _Table) -> int | None:
    """The first candidate with the lowest mean among those that have one."""
    if sums.size == 0 or counts.max() == 0:
        return None
    means = np.where(counts > 0, sums / np.maximum(counts, 1.0), np.inf)
    # Means of the same outcomes may differ in the last digit.
    return int(np.flatnonzero(means <= means.min() + 1e-12)[0])


def _cross_fit(
    table: _Table, signed: _Table, codes: NDArray[np.intp], *, rng: np.random.Generator, n_splits: int
) -> tuple[_Table, _Table]:
    """Mean outcome of what was chosen without the prompt and seed, shape (prompts, seeds), NaN where never readable.

    And how often each candidate was chosen, shape (candidates,).
    """
    n, n_candidates, n_seeds = table.shape
    n_templates = int(codes.max()) + 1
    # Choices only need the totals of templates.
    by_template = [_add_up(part, codes, n_templates) for part in _sums(signed)]
    totals, counts = np.zeros((n, n_seeds)), np.zeros((n, n_seeds))
    times = np.zeros(n_candidates)
    for half, seeds in _parts(n_templates, n_seeds, rng, n_splits):
        others = np.ones(n_seeds, dtype=bool) if n_seeds == 1 else ~seeds
        sums, readable = (part[~half][:, :, others].sum(axis=(0, 2)) for part in by_template)
        chosen = _choose(sums, readable)
        if chosen is None:
            continue
        rows = half[codes]
        outcome = np.where(rows[:, None] & seeds[None, :], table[:, chosen, :], np.nan)
        seen = ~np.isnan(outcome)
        totals += np.where(seen, outcome, 0.0)
        counts += seen
        times[chosen] += 1
    scores = np.where(counts > 0, totals / np.maximum(counts, 1.0), np.nan)
    return scores, times / max(1.0, float(times.sum()))


def _add_up(values: _Table, codes: NDArray[np.intp], n_templates: int) -> _Table:
    found = np.zeros((n_templates, *values.shape[1:]))
    np.add.at(found, codes, values)
    return found


def _parts(
    n_templates: int, n_seeds: int, rng: np.random.Generator, n_splits: int
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Templates and seeds to report on; those to choose on are the others, in both."""
    for _ in range(n_splits):
        first = _half(n_templates, rng)
        seed_sets = [np.eye(n_seeds, dtype=bool)[s] for s in range(n_seeds)]
        if n_seeds >= HALVED_SEEDS:
            some = _half(n_seeds, rng)
            seed_sets = [some, ~some]
        for half in (first, ~first):
            for seeds in seed_sets:
                yield half, seeds


def _half(n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    half = np.zeros(n, dtype=bool)
    # Of an odd number the larger part falls to either side.
    half[rng.permutation(n)[: (n + int(rng.integers(2))) // 2]] = True
    return half


def _estimate(scores: _Table, templates: Sequence[str], level: float) -> Estimate:
    readable = ~np.isnan(scores)
    kept = np.any(readable, axis=1)
    means = np.nansum(scores[kept], axis=1) / readable[kept].sum(axis=1)
    names = _kept(templates, kept)
    # Sums of shares may pass 1 by rounding.
    within = rate(np.clip(means, 0, 1), names, level=level, n_unreadable=int((~kept).sum()))
    by_seed = readable.sum(axis=0)
    seeds = np.nansum(scores, axis=0)[by_seed > 0] / by_seed[by_seed > 0]
    found = over_seeds(within, np.clip(seeds, 0, 1), support=(0.0, 1.0))
    return replace(found, method=f"{CROSS_FITTED}_{found.method}")
