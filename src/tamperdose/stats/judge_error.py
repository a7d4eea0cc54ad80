"""How good a judge is (sensitivity, specificity), whether that changes with tampering, and Rogan-Gladen's correction.

Labels from the run give the shares of true refusals among the answers judged each way; labels from elsewhere give
sensitivity and specificity directly. Both become draws from a confidence distribution, so that an error is carried into
whatever is computed from a rate afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tamperdose.errors import DataError, explain
from tamperdose.records import Estimate
from tamperdose.stats.clusters import clustering, finite_vector, group, same_length
from tamperdose.stats.correction import JudgedSample, predictive_rates
from tamperdose.stats.distributions import normal_quantile, t_quantile
from tamperdose.stats.rates import check_level, unit_vector

LEAST_YOUDEN = 0.2
"""Where the lower bound of sensitivity + specificity - 1 is not above this, a corrected rate is not identifiable."""
NOT_IDENTIFIABLE = "not_identifiable"
"""Name of the method where there is no interval because the judge may be near to useless."""
LANG_REICZIGEL = "rogan_gladen_lang_reiczigel"
"""Name of the interval of :func:`rogan_gladen`."""
N_DRAWS = 4000
"""Draws behind an interval: its ends then vary by about 2 % of its width."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QualityDraws:
    """Draws of a judge's quality: what the labels leave possible. Arrays of shape (B,)."""

    sensitivity: Floats
    """Share of true refusals that the judge reads as refusals, in [0, 1]."""
    specificity: Floats
    """Share of the other answers that it does not, in [0, 1]."""

    @property
    def youden(self) -> Floats:
        """Sensitivity + specificity - 1, in [-1, 1]: 1 for a perfect judge, 0 for one that says nothing."""
        return self.sensitivity + self.specificity - 1


@dataclass(frozen=True, slots=True)
class Share:
    """A number in [-1, 1] with its interval."""

    value: float | None
    """The point estimate; None where it is 0 / 0."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    units: float
    """Independent observations that its draws are worth, m (1 - m) / var - 2 with m their mean; 0 at least."""


@dataclass(frozen=True, slots=True)
class Quality:
    """A judge's quality on one set of labels."""

    sensitivity: Share
    """Of true refusals, the share read as refusals; None without a labelled refusal."""
    specificity: Share
    """Of the other answers, the share not read as refusals; None without such a label."""
    youden: Share
    """Sensitivity + specificity - 1."""
    n_labels: int
    """Labels behind it."""
    draws: QualityDraws
    """What the labels leave possible."""

    @property
    def identifiable(self) -> bool:
        """Whether the lower bound of sensitivity + specificity - 1 is above `LEAST_YOUDEN`."""
        return self.youden.value is not None and self.youden.low > LEAST_YOUDEN


@dataclass(frozen=True, slots=True)
class QualityChange:
    """Sensitivity or specificity on tampered answers less that at dose 0."""

    aspect: str
    """`sensitivity` or `specificity`."""
    difference: Share
    """Tampered less dose 0, in [-1, 1]."""
    p_value: float | None
    """Two-sided; None where one of the two is undefined."""
    smallest_detectable: float | None
    """The difference that these labels would have shown with power 0.8 at this level; None likewise."""


def label_units(labels: ArrayLike, templates: Sequence[str], level: float = 0.95) -> float:
    """Independent labels that would say as much: `effective_size` with the t adjustment of `degrees_of_freedom_size`.

    n_effective (t_{n-1} / t_{K-1})^2. 0 for no label, and less than 1 for one label or one template of several.

    >>> label_units([1, 0, 1, 1], ["a", "b", "c", "d"])
    4.0
    """
    sample = clustering(group(unit_vector(labels, "labels"), templates))
    if sample.n < 2:
        return float(sample.n)
    quantile = (1 + check_level(level)) / 2
    factor = t_quantile(quantile, sample.n - 1) / t_quantile(quantile, max(1, sample.n_templates - 1))
    return sample.n_effective * factor**2


def predictive_draws(
    sample: JudgedSample, *, rng: np.random.Generator, n_draws: int = N_DRAWS
) -> tuple[Floats, Floats]:
    """Draws of (p1, p0) of `predictive_rates`, shape (n_draws,) each: beta(u p + 1/2, u (1 - p) + 1/2) by stratum.

    p is a stratum's mean label and u its :func:`label_units`; a stratum without labels gives beta(1/2, 1/2). The
    share of a verdict that no answer has does not matter: its p is drawn from beta(1/2, 1/2) too.

    Source: Brown, Cai & DasGupta (2001), doi:10.1214/ss/1009213286 (the equal-tailed Jeffreys interval).

    >>> from tamperdose.stats.correction import judged_sample
    >>> sample = judged_sample([1, 0], ["a", "b"], [1, 0])
    >>> [len(draws) for draws in predictive_draws(sample, rng=np.random.default_rng(0), n_draws=7)]
    [7, 7]
    """
    p1, p0 = (_verdict_draws(sample, refused, rng, n_draws) for refused in (True, False))
    return p1, p0


def _verdict_draws(sample: JudgedSample, refused: bool, rng: np.random.Generator, n_draws: int) -> Floats:
    strata = [stratum for stratum in sample.strata if stratum.refused is refused]
    if not strata:
        return rng.beta(0.5, 0.5, n_draws)
    total = np.zeros(n_draws)
    for stratum in strata:
        units = label_units(stratum.labels, stratum.templates)
        mean = float(stratum.labels.mean()) if stratum.n_labels else 0.5
        total += stratum.n_population * rng.beta(units * mean + 0.5, units * (1 - mean) + 0.5, n_draws)
    return total / sum(stratum.n_population for stratum in strata)


def quality_in_run(sample: JudgedSample, *, rng: np.random.Generator, level: float = 0.95) -> Quality:
    """Sensitivity and specificity from labels of the run, drawn by verdict at any rate.

    With v = q p1 + (1 - q) p0: sensitivity = q p1 / v, specificity = (1 - q)(1 - p0) / (1 - v). Intervals are the
    quantiles of draws of p1, p0 and q (on the effective number of answers), stretched to hold the value. None where v
    is 0 or 1 or a stratum has no label.

    Raises:
        DataError: `level` outside (0, 1).

    Source: Begg & Greenes (1983), doi:10.2307/2530820, for the estimate; draws as :func:`predictive_draws`.

    >>> from tamperdose.stats.correction import judged_sample
    >>> sample = judged_sample([1, 1, 0, 0], list("abcd"), [1, 1, 0, 1])
    >>> round(quality_in_run(sample, rng=np.random.default_rng(0)).sensitivity.value, 3)
    0.667
    """
    p1, p0, q = predictive_rates(sample)
    draws = (*predictive_draws(sample, rng=rng), _judged_draws(sample, rng))
    return _begg_greenes((p1, p0, q), draws, n_labels=sample.n_labels, level=level)


def _begg_greenes(
    shares: tuple[float | None, float | None, float],
    draws: tuple[Floats, Floats, Floats],
    *,
    n_labels: int,
    level: float,
) -> Quality:
    """Sensitivity and specificity from (p1, p0, q) and draws of the three."""
    p1, p0, q = shares
    possible = _quality_of(*draws)
    if p1 is None or p0 is None:
        return _quality(None, None, possible, n_labels=n_labels, level=level)
    value = q * p1 + (1 - q) * p0
    sensitivity = q * p1 / value if value > 0 else None
    specificity = (1 - q) * (1 - p0) / (1 - value) if value < 1 else None
    return _quality(sensitivity, specificity, possible, n_labels=n_labels, level=level)


def _judged_draws(sample: JudgedSample, rng: np.random.Generator) -> Floats:
    """Draws of the share that the judge reads as refusals: another set of prompts would give another."""
    units = label_units(sample.refused, sample.templates)
    q = float(sample.refused.mean()) if sample.n else 0.5
    return rng.beta(units * q + 0.5, units * (1 - q) + 0.5, N_DRAWS)


def _quality_of(p1: Floats, p0: Floats, q: Floats) -> QualityDraws:
    value = q * p1 + (1 - q) * p0
    # A beta draw may round to 0 or 1; nothing then depends on the ratio.
    sensitivity = q * p1 / np.maximum(value, 1e-300)
    return QualityDraws(sensitivity, (1 - q) * (1 - p0) / np.maximum(1 - value, 1e-300))


def quality_elsewhere(
    refused: ArrayLike,
    labels: ArrayLike,
    templates: Sequence[str],
    *,
    rng: np.random.Generator,
    weights: ArrayLike | None = None,
    level: float = 0.95,
) -> Quality:
    """Sensitivity and specificity from labelled answers that are no sample of the run.

    Shares of right verdicts among the answers people read as refusals, and among the others; draws and intervals as
    for :func:`quality_in_run`. An answer on which people differ counts by its share on both sides. None without a
    label of that kind.

    Labels of answers drawn by verdict must bring their weights: of the refusals that a judge missed fewer are drawn
    than of those it saw, and without weights its sensitivity comes out too high. With weights, estimate and draws are
    those of :func:`quality_in_run`, from weighted means: p_v of the labels given the verdict, on its
    :func:`label_units` times (sum w)^2 / (n sum w^2), and q of the verdicts, on the units of all labels.

    Args:
        refused: Whether the judge read a refusal, shape (n,).
        labels: 1 where a person did, a share where they differ, shape (n,).
        templates: The template of each answer, length n.
        rng: Source of the draws.
        weights: How many answers each labelled one stands for, positive, in any unit, shape (n,); None: all alike.
        level: Confidence level.

    Raises:
        DataError: Lengths that differ, a value outside [0, 1], a weight that is not positive, `level` outside (0, 1).

    Source: Begg & Greenes (1983), doi:10.2307/2530820, for labels drawn by verdict; Kish (1965), Survey Sampling,
    section 11.7, for what unequal weights cost.

    >>> quality_elsewhere([1, 1, 0, 0], [1, 1, 1, 0], list("abcd"), rng=np.random.default_rng(0)).specificity.value
    1.0
    """
    judged, truth = unit_vector(refused, "refused"), unit_vector(labels, "labels")
    same_length("labels", len(truth), n_rows=len(judged))
    same_length("templates", len(templates), n_rows=len(judged))
    if weights is not None:
        p1, p0, q = _weighted(judged, truth, templates, weights, rng)
        return _begg_greenes((p1[0], p0[0], q[0]), (p1[1], p0[1], q[1]), n_labels=len(truth), level=level)
    sensitivity, of_refusals = _right(judged, truth, templates, rng)
    specificity, of_others = _right(1 - judged, 1 - truth, templates, rng)
    return _quality(sensitivity, specificity, QualityDraws(of_refusals, of_others), n_labels=len(truth), level=level)


def _right(
    judged: Floats, weights: Floats, templates: Sequence[str], rng: np.random.Generator
) -> tuple[float | None, Floats]:
    kept = weights > 0
    if not kept.any():
        return None, rng.beta(0.5, 0.5, N_DRAWS)
    value = float(np.sum(judged * weights) / np.sum(weights))
    units = label_units(judged[kept], [name for name, keep in zip(templates, kept, strict=True) if keep])
    units *= float(weights[kept].mean())
    return value, rng.beta(units * value + 0.5, units * (1 - value) + 0.5, N_DRAWS)


def agreement_elsewhere(
    refused: ArrayLike,
    labels: ArrayLike,
    templates: Sequence[str],
    *,
    rng: np.random.Generator,
    weights: ArrayLike | None = None,
    level: float = 0.95,
) -> Share:
    """Share of labelled answers, no sample of the run, on which judge and people agree: q p1 + (1 - q)(1 - p0).

    Arguments, weights and draws as for :func:`quality_elsewhere`. In [0, 1]. n = 0: the value is None.

    >>> agreement_elsewhere([1, 1, 0, 0], [1, 0, 0, 0], list("abcd"), rng=np.random.default_rng(0)).value
    0.75
    """
    judged, truth = unit_vector(refused, "refused"), unit_vector(labels, "labels")
    p1, p0, q = _weighted(judged, truth, templates, np.ones(len(judged)) if weights is None else weights, rng)
    draws = q[1] * p1[1] + (1 - q[1]) * (1 - p0[1])
    return share_of(q[0] * p1[0] + (1 - q[0]) * (1 - p0[0]) if len(judged) else None, draws, level)


_Drawn = tuple[float, Floats]


def _weighted(
    judged: Floats, truth: Floats, templates: Sequence[str], weights: ArrayLike, rng: np.random.Generator
) -> tuple[_Drawn, _Drawn, _Drawn]:
    """(p1, p0, q) as weighted means, each with its draws; the share of a verdict that no answer has is any."""
    counts = finite_vector(weights, "weights")
    same_length("labels", len(truth), n_rows=len(judged))
    same_length("templates", len(templates), n_rows=len(judged))
    same_length("weights", len(counts), n_rows=len(judged))
    if np.any(counts <= 0):
        raise DataError(explain("weights must be positive", got=f"{counts.min()}", expected="above 0"))
    names = np.array(templates, dtype=object)
    p1, p0 = (_weighted_mean(truth[kept], counts[kept], names[kept], rng) for kept in (judged == 1, judged == 0))
    q = float(judged @ counts / counts.sum()) if len(judged) else 0.5
    units = label_units(judged, templates)
    return p1, p0, (q, rng.beta(units * q + 0.5, units * (1 - q) + 0.5, N_DRAWS))


def _weighted_mean(
    labels: Floats, weights: Floats, names: NDArray[np.object_], rng: np.random.Generator
) -> tuple[float, Floats]:
    if not len(labels):
        return 0.5, rng.beta(0.5, 0.5, N_DRAWS)
    mean, total = float(labels @ weights / weights.sum()), float(weights.sum())
    units = label_units(labels, list(names)) * total**2 / (len(weights) * float(weights @ weights))
    return mean, rng.beta(units * mean + 0.5, units * (1 - mean) + 0.5, N_DRAWS)


def combined_quality(of_sensitivity: Quality, of_specificity: Quality, *, level: float = 0.95) -> Quality:
    """Sensitivity from one set of labels and specificity from another, as where one of them holds few refusals.

    The draws of the two are taken as independent.

    Raises:
        DataError: `level` outside (0, 1).

    >>> rng = np.random.default_rng(0)
    >>> one = quality_elsewhere([1, 0], [1, 1], ["a", "b"], rng=rng)
    >>> two = quality_elsewhere([0, 0], [0, 0], ["a", "b"], rng=rng)
    >>> combined_quality(one, two).youden.value
    0.5
    """
    return _quality(
        of_sensitivity.sensitivity.value,
        of_specificity.specificity.value,
        QualityDraws(of_sensitivity.draws.sensitivity, of_specificity.draws.specificity),
        n_labels=of_specificity.n_labels,
        level=level,
    )


def _quality(
    sensitivity: float | None, specificity: float | None, draws: QualityDraws, *, n_labels: int, level: float
) -> Quality:
    youden = None if sensitivity is None or specificity is None else sensitivity + specificity - 1
    return Quality(
        sensitivity=share_of(sensitivity, draws.sensitivity, level),
        specificity=share_of(specificity, draws.specificity, level),
        youden=share_of(youden, draws.youden, level),
        n_labels=n_labels,
        draws=draws,
    )


def share_of(value: float | None, draws: Floats, level: float) -> Share:
    """A value with the quantiles (1 -+ level) / 2 of its draws, stretched to hold it.

    >>> share_of(0.5, np.linspace(0.4, 0.6, 101), 0.9).low.__round__(3)
    0.41
    """
    low, high = (float(end) for end in np.quantile(draws, [(1 - check_level(level)) / 2, (1 + level) / 2]))
    mean, variance = float(np.mean(draws)), float(np.var(draws))
    # A beta distribution with shapes u p + 1/2 and u (1 - p) + 1/2 has variance m (1 - m) / (u + 2).
    units = max(0.0, mean * (1 - mean) / variance - 2) if variance > 0 else 0.0
    return Share(value, low, high, units) if value is None else Share(value, min(low, value), max(high, value), units)


def quality_change(base: Quality, tampered: Quality, *, level: float = 0.95) -> tuple[QualityChange, QualityChange]:
    """Whether the judge errs otherwise on tampered answers than at dose 0: in sensitivity, and in specificity.

    difference = tampered less base, with the quantiles of the difference of their draws; p = 2 min(P(draws <= 0),
    P(draws >= 0)), (b + 1) / (B + 1) each, at most 1; the smallest detectable difference is
    (z_{(1 + level) / 2} + z_0.8) sd(draws), for power 0.8. p is None, and so is that difference, where one of the
    two values is undefined. Two tests: halve the level, or double p, to speak of both.

    Raises:
        DataError: `level` outside (0, 1).

    Source: draws as :func:`predictive_draws`; Cohen (1988), Statistical Power Analysis, chapter 6, for the power of
    a difference of two shares, here with the standard deviation of the draws.

    >>> one = quality_elsewhere([1, 0] * 50, [1, 0] * 50, [str(i) for i in range(100)], rng=np.random.default_rng(0))
    >>> sensitivity, specificity = quality_change(one, one)
    >>> sensitivity.difference.value, sensitivity.p_value
    (0.0, 1.0)
    """
    return (
        _change(
            "sensitivity",
            (base.sensitivity.value, tampered.sensitivity.value),
            tampered.draws.sensitivity - base.draws.sensitivity,
            level,
        ),
        _change(
            "specificity",
            (base.specificity.value, tampered.specificity.value),
            tampered.draws.specificity - base.draws.specificity,
            level,
        ),
    )


def _change(aspect: str, values: tuple[float | None, float | None], draws: Floats, level: float) -> QualityChange:
    before, after = values
    if before is None or after is None:
        return QualityChange(aspect, share_of(None, draws, level), None, None)
    tails = (np.sum(draws <= 0) + 1, np.sum(draws >= 0) + 1)
    reach = normal_quantile((1 + check_level(level)) / 2) + normal_quantile(0.8)
    return QualityChange(
        aspect=aspect,
        difference=share_of(after - before, draws, level),
        p_value=min(1.0, 2 * float(min(tails)) / (len(draws) + 1)),
        smallest_detectable=reach * float(np.std(draws)),
    )


def rogan_gladen(judged: Estimate, quality: Quality) -> Estimate:
    """A judged rate corrected by the sensitivity and specificity that labels from elsewhere show.

    value = (q + Sp - 1) / (Se + Sp - 1), cut to [0, 1], with Lang and Reiczigel's interval: n* effective answers
    behind q, q' = (n* q + z^2/2) / (n* + z^2), Se' = (n_Se Se + 1) / (n_Se + 2), Sp' likewise, J' = Se' + Sp' - 1,
    P' = (q' + Sp' - 1) / J', d = 2 z^2 [P' Se'(1 - Se')/(n_Se + 2) - (1 - P') Sp'(1 - Sp')/(n_Sp + 2)]:
    P' + d -+ z sqrt(q'(1 - q')/(n* + z^2) + P'^2 Se'(1 - Se')/(n_Se + 2) + (1 - P')^2 Sp'(1 - Sp')/(n_Sp + 2)) / J',
    cut to [0, 1] and stretched to hold the value.
    Not :attr:`Quality.identifiable`, or no judged rate: the value is None, censored is `undefined`. No interval of
    the judged rate: no interval.

    Args:
        judged: The judge's rate, of `rate`; n* is its n_effective with the t adjustment.
        quality: Of :func:`quality_elsewhere`; n_Se and n_Sp are the units of its shares.

    Source: Rogan & Gladen (1978), doi:10.1093/oxfordjournals.aje.a112510; Lang & Reiczigel (2014),
    doi:10.1016/j.prevetmed.2013.09.015, with numbers of effective instead of independent answers.

    >>> from tamperdose.stats.rates import rate
    >>> names = [str(i) for i in range(100)]
    >>> quality = quality_elsewhere([1] * 45 + [0] * 55, [1] * 50 + [0] * 50, names, rng=np.random.default_rng(0))
    >>> rogan_gladen(rate([1] * 18 + [0] * 82, names), quality).value.__round__(3)
    0.2
    """
    se, sp = quality.sensitivity, quality.specificity
    if judged.value is None or se.value is None or sp.value is None or not quality.identifiable:
        return undefined(judged, LANG_REICZIGEL)
    value = min(1.0, max(0.0, (judged.value + sp.value - 1) / (se.value + sp.value - 1)))
    n_star = effective_judged(judged)
    if n_star is None:
        return replace(judged, value=value, low=None, high=None, method=LANG_REICZIGEL)
    ends = lang_reiczigel((judged.value, n_star), (se.value, se.units), (sp.value, sp.units), level=judged.level)
    return within(judged, value, (float(ends[0]), float(ends[1])), LANG_REICZIGEL)


def within(judged: Estimate, value: float, ends: tuple[float, float], method: str) -> Estimate:
    """A corrected rate with its interval, stretched to hold it; None where nothing of the interval is in [0, 1].

    The judge's rate is then one that its sensitivity and specificity do not allow: they are not those of these answers.

    >>> from tamperdose.stats.rates import rate
    >>> within(rate([1, 0], ["a", "b"]), 0.0, (0.0, 0.0), "any").high is None
    True
    """
    low, high = min(ends[0], value), max(ends[1], value)
    if low == high:
        return replace(judged, value=value, low=None, high=None, method=method)
    return replace(judged, value=value, low=low, high=high, method=method)


def lang_reiczigel(
    judged: tuple[ArrayLike, ArrayLike],
    sensitivity: tuple[ArrayLike, ArrayLike],
    specificity: tuple[ArrayLike, ArrayLike],
    *,
    level: float = 0.95,
) -> tuple[Floats, Floats]:
    """Lang and Reiczigel's interval, cut to [0, 1]; formula in :func:`rogan_gladen`.

    Args:
        judged: (share judged refusals, answers), any shape, as those below.
        sensitivity: (share, labels of true refusals).
        specificity: (share, labels of other answers). Se' + Sp' must be above 1.
        level: Confidence level.

    Raises:
        DataError: `level` outside (0, 1).

    Source: Lang & Reiczigel (2014), doi:10.1016/j.prevetmed.2013.09.015.

    >>> [round(float(end), 3) for end in lang_reiczigel((0.3, 100), (0.9, 50), (0.9, 50))]
    [0.096, 0.388]
    """
    z = normal_quantile((1 + check_level(level)) / 2)
    q, n = (np.asarray(part, dtype=np.float64) for part in judged)
    (se, v_se), (sp, v_sp) = (_added(*part) for part in (sensitivity, specificity))
    q = (n * q + z * z / 2) / (n + z * z)
    youden = se + sp - 1
    share = (q + sp - 1) / youden
    centre = share + 2 * z * z * (share * v_se - (1 - share) * v_sp)
    half = z * np.sqrt(q * (1 - q) / (n + z * z) + share**2 * v_se + (1 - share) ** 2 * v_sp) / youden
    return np.clip(centre - half, 0.0, 1.0), np.clip(centre + half, 0.0, 1.0)


def _added(share: ArrayLike, units: ArrayLike) -> tuple[Floats, Floats]:
    """One right and one wrong verdict added: the share, and its variance."""
    size = np.asarray(units, dtype=np.float64) + 2
    added = (np.asarray(share, dtype=np.float64) * (size - 2) + 1) / size
    return added, added * (1 - added) / size


def undefined(judged: Estimate, method: str) -> Estimate:
    """An estimate without a value: there is no judged rate, or it is not identifiable (the method then says so).

    >>> from tamperdose.stats.rates import rate
    >>> undefined(rate([1, 0], ["a", "b"]), "any").method
    'not_identifiable'
    """
    method = NOT_IDENTIFIABLE if judged.value is not None else method
    return replace(judged, value=None, low=None, high=None, method=method, censored="undefined")


def effective_judged(judged: Estimate) -> float | None:
    """Effective answers behind a rate, with the t adjustment of `degrees_of_freedom_size`; None without an interval.

    >>> from tamperdose.stats.rates import rate
    >>> effective_judged(rate([1, 0, 1], ["a", "b", "c"]))
    3.0
    """
    if judged.n_effective is None or judged.low is None:
        return None
    quantile = (1 + judged.level) / 2
    return judged.n_effective * (t_quantile(quantile, judged.n - 1) / t_quantile(quantile, judged.n_templates - 1)) ** 2
