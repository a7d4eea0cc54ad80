"""Refusals of all models at all doses at once: what a decade of attack does, and what a decade of size does.

Needs statsmodels' GEE, the one slow import of this package: no other module here imports this one when it runs.
"""

# pyright: reportMissingTypeStubs=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import statsmodels.api as sm
from numpy.typing import ArrayLike, NDArray
from statsmodels.tools.sm_exceptions import ModelWarning

from tamperdose.errors import DataError, explain
from tamperdose.stats.clusters import finite_vector, same_length, template_codes
from tamperdose.stats.distributions import t_quantile
from tamperdose.stats.rates import check_level, unit_vector
from tamperdose.stats.sizes import SAME_SIZE

GEE = "gee_binomial_independence_robust_t"
"""Name of the intervals of :func:`pooled_effects`."""
FEW_CLUSTERS = 50
"""Below this many templates the covariance is the bias-reduced one."""
COLLINEAR = 0.95
"""From this correlation of log10 N and log10 tokens on their effects are not told apart."""
SEPARATED = 20.0
"""An effect beyond this many log odds a decade is no estimate: some doses or sizes have one outcome only."""

_Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Effect:
    """A change of the log odds of refusal, with two intervals."""

    value: float | None
    """Log odds for one decade; None where it cannot be had."""
    low: float | None
    """Lower end over templates: speaks for these models and new prompts."""
    high: float | None
    """Upper end of it."""
    sizes_low: float | None
    """Lower end over templates and sizes: speaks for new sizes too; None below 3 sizes."""
    sizes_high: float | None
    """Upper end of it."""


NO_EFFECT = Effect(None, None, None, None, None)
"""Where there is none."""


@dataclass(frozen=True, slots=True)
class Pooled:
    """RRR on log10 N and log10 attack tokens, all models and doses together."""

    tokens: Effect
    """A decade of attack tokens at fixed size."""
    size: Effect
    """A decade of parameters at fixed tokens."""
    difference: Effect
    """|effect of tokens| - |effect of size|: above 0 where attack compute matters more."""
    level: float
    """Confidence level."""
    method: str
    """`gee_binomial_independence_robust_t`; `_bias_reduced` is added below 50 templates."""
    n: int
    """Outcomes."""
    n_templates: int
    """Clusters."""
    n_sizes: int
    """Sizes."""
    reason: str
    """Why there are no effects, or no interval over sizes; empty where there are both."""


@dataclass(frozen=True, slots=True)
class _Fit:
    beta: _Vector
    covariance: _Vector


def pooled_effects(
    refused: ArrayLike, n_parameters: ArrayLike, tokens: ArrayLike, *, templates: Sequence[str], level: float = 0.95
) -> Pooled:
    """Logistic GEE of refusal on log10 N and log10 attack tokens, clustered by template.

    log odds(refused) = a + b_N log10 N + b_T log10 tokens. Independence working correlation, so that the point
    estimates are those of logistic regression; sandwich covariance over templates (a template's prompts, models and
    doses are one cluster), Mancl and DeRouen's bias-reduced one below 50 templates; t with K - 3 degrees of freedom.
    `difference` is |b_T| - |b_N| = min(|b_T| - b_N, |b_T| + b_N), |b_T| by the sign of the estimate; its interval is
    (min of the two lower ends, min of the two upper ends), so it needs no sign of b_N.
    Over sizes: variance = that over templates + the delete-a-size jackknife's, (k - 1) / k sum (b_(i) - mean)^2, with
    t and k - 2 degrees of freedom. The two parts share some noise, so it errs on the wide side; with 3 sizes it is very
    wide. Rows at dose 0 have no logarithm and are refused: they belong to the start. Unreadable rows are left out by
    the caller. No effects (None, with a reason): fewer than 5 templates, fewer than 2 sizes or 2 token counts, sizes
    and tokens that rise together (|r| >= 0.95), outcomes all alike, or separated.

    Args:
        refused: 1 or True where refused, or a mean over seeds in [0, 1], shape (n,).
        n_parameters: Parameters of each row's model, shape (n,).
        tokens: Attack tokens of each row's dose, above 0, shape (n,).
        templates: The template of each row's prompt, length n; one prompt's rows must share it.
        level: Confidence level.

    Raises:
        DataError: NaN, a value outside [0, 1], a size or token count that is not positive, lengths that differ.

    Source: Liang & Zeger (1986), doi:10.1093/biomet/73.1.13; Mancl & DeRouen (2001),
    doi:10.1111/j.0006-341X.2001.00126.x; Efron & Stein (1981), doi:10.1214/aos/1176345462 (jackknife). The interval of
    the difference of magnitudes and the sum of the two variances are ours.

    >>> rng = np.random.default_rng(0)
    >>> n, t = np.repeat([1e8, 1e9], 400), np.tile(np.repeat([1e3, 1e4], 200), 2)
    >>> refused = rng.random(800) < np.where(t < 5e3, 0.8, 0.3)
    >>> found = pooled_effects(refused, n, t, templates=[str(i % 20) for i in range(800)])
    >>> found.tokens.high < 0, found.difference.low > 0, found.tokens.sizes_low
    (True, True, None)
    """
    y = unit_vector(refused, "refused")
    log_n, log_t = _logarithm(n_parameters, "n_parameters"), _logarithm(tokens, "tokens")
    for name, length in (("n_parameters", len(log_n)), ("tokens", len(log_t)), ("templates", len(templates))):
        same_length(name, length, n_rows=len(y))
    codes = template_codes(templates)
    n_templates, n_sizes = len(set(codes.tolist())), len(set(_size_codes(log_n).tolist()))
    counts = (len(y), n_templates, n_sizes)
    reason = _why_not(y, log_n, log_t, n_templates)
    fit = None if reason else _fit(y, log_n, log_t, codes)
    if fit is None:
        return _pooled(
            (NO_EFFECT,) * 3, check_level(level), counts, reason or "separated: an effect has no finite value"
        )
    t = t_quantile((1 + check_level(level)) / 2, n_templates - 3)
    effects = _effects(fit.beta, fit.covariance, t)
    wide, reason = _over_sizes(fit, (y, log_n, log_t), codes, level)
    if wide is not None:
        effects = tuple(
            replace(one, sizes_low=other.low, sizes_high=other.high) for one, other in zip(effects, wide, strict=True)
        )
    return _pooled(effects, level, counts, reason)


def _logarithm(values: ArrayLike, what: str) -> _Vector:
    vector = finite_vector(values, what)
    if len(vector) and vector.min() <= 0:
        raise DataError(explain(f"{what} must be positive", got=f"{vector.min()}", expected="doses above 0"))
    return np.log10(vector)


def _pooled(effects: tuple[Effect, ...], level: float, counts: tuple[int, int, int], reason: str) -> Pooled:
    method = GEE + ("_bias_reduced" if counts[1] < FEW_CLUSTERS else "")
    return Pooled(
        *effects, level=level, method=method, n=counts[0], n_templates=counts[1], n_sizes=counts[2], reason=reason
    )


def _why_not(y: _Vector, log_n: _Vector, log_t: _Vector, n_templates: int) -> str:
    if n_templates < 5:
        return f"{n_templates} templates: the clusters must be at least 5"
    for what, column in (("size", log_n), ("token count", log_t)):
        if np.ptp(column) == 0:
            return f"one {what} only"
    r = float(np.corrcoef(log_n, log_t)[0, 1])
    if abs(r) >= COLLINEAR:
        return f"log10 N and log10 tokens correlate by {r:.2f}: their effects are not told apart"
    return "all outcomes are alike" if np.ptp(y) == 0 else ""


def _fit(y: _Vector, log_n: _Vector, log_t: _Vector, codes: NDArray[np.intp]) -> _Fit | None:
    """Coefficients (a, b_N, b_T) and their covariance; None where they run away."""
    # Centred, the columns do not fight the constant.
    design = np.column_stack([np.ones_like(y), log_n - log_n.mean(), log_t - log_t.mean()])
    kind = "bias_reduced" if len(set(codes.tolist())) < FEW_CLUSTERS else "robust"
    order = np.argsort(codes, kind="stable")
    with warnings.catch_warnings():
        # Separation shows in the coefficients, which are looked at below.
        warnings.simplefilter("ignore", ModelWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        model = sm.GEE(y[order], design[order], groups=codes[order], family=sm.families.Binomial())
        found: Any = model.fit(cov_type=kind)
    beta = np.asarray(found.params, dtype=np.float64)
    covariance = np.asarray(found.cov_params(), dtype=np.float64)
    sound = np.isfinite(beta).all() and np.isfinite(covariance).all() and np.abs(beta).max() < SEPARATED
    return _Fit(beta, covariance) if sound and bool(found.converged) else None


def _effects(beta: _Vector, covariance: _Vector, t: float) -> tuple[Effect, Effect, Effect]:
    """Effects of tokens and size, and the difference of their magnitudes."""
    sign = 1.0 if beta[2] >= 0 else -1.0
    tokens, size = (
        _effect(beta, covariance, np.array([0, 0, 1.0]), t),
        _effect(beta, covariance, np.array([0, 1.0, 0]), t),
    )
    less, more = (_effect(beta, covariance, np.array([0, other, sign]), t) for other in (-1.0, 1.0))
    difference = Effect(
        abs(float(beta[2])) - abs(float(beta[1])),
        min(less.low or 0.0, more.low or 0.0),
        min(less.high or 0.0, more.high or 0.0),
        None,
        None,
    )
    return tokens, size, difference


def _effect(beta: _Vector, covariance: _Vector, contrast: _Vector, t: float) -> Effect:
    value = float(contrast @ beta)
    reach = t * math.sqrt(max(0.0, float(contrast @ covariance @ contrast)))
    return Effect(value, value - reach, value + reach, None, None)


def _over_sizes(
    fit: _Fit, columns: tuple[_Vector, _Vector, _Vector], codes: NDArray[np.intp], level: float
) -> tuple[tuple[Effect, Effect, Effect] | None, str]:
    y, log_n, log_t = columns
    sizes = _size_codes(log_n)
    k = len(set(sizes.tolist()))
    if k < 3:
        return None, f"{k} sizes: an interval that speaks for new sizes needs 3"
    rest = [_fit_kept(y, log_n, log_t, codes, sizes != size) for size in range(k)]
    betas = np.array([one.beta for one in rest if one is not None])
    if len(betas) < k:
        return None, "without one of the sizes an effect has no finite value: no interval that speaks for new sizes"
    away = betas - betas.mean(axis=0)
    covariance = fit.covariance + (k - 1) / k * away.T @ away
    return _effects(fit.beta, covariance, t_quantile((1 + level) / 2, k - 2)), ""


def _size_codes(log_n: _Vector) -> NDArray[np.intp]:
    """Number of each row's size: models linked by steps of at most `SAME_SIZE` decades are of one size."""
    values = np.unique(log_n)
    groups = np.concatenate([[0], np.cumsum(np.diff(values) > SAME_SIZE)]) if len(values) else np.zeros(0)
    return groups[np.searchsorted(values, log_n)].astype(np.intp)


def _fit_kept(
    y: _Vector, log_n: _Vector, log_t: _Vector, codes: NDArray[np.intp], keep: NDArray[np.bool_]
) -> _Fit | None:
    """The coefficients without one size; the covariance of these is not used."""
    if _why_not(y[keep], log_n[keep], log_t[keep], FEW_CLUSTERS):
        return None
    return _fit(y[keep], log_n[keep], log_t[keep], codes[keep])
