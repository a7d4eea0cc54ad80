"""The quantiles and distribution functions that the intervals need: scipy.special behind typed names.

scipy ships no types; this module is the one place where that matters.
"""

# pyright: reportMissingTypeStubs=false
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv, betaln, gammaincinv, log_ndtr, ndtr, ndtri, stdtrit


def normal_quantile(p: float) -> float:
    """Quantile of the standard normal distribution at p in (0, 1).

    >>> round(normal_quantile(0.975), 4)
    1.96
    """
    return float(ndtri(p))


def normal_cdf(z: float) -> float:
    """Probability that a standard normal variable is at most z.

    >>> normal_cdf(0.0)
    0.5
    """
    return float(ndtr(z))


def log_normal_cdf(z: ArrayLike) -> NDArray[np.float64]:
    """Logarithms of the probabilities that a standard normal variable is at most z, in the shape of `z`.

    >>> log_normal_cdf([0.0, -40.0]).round(2).tolist()
    [-0.69, -804.61]
    """
    return np.asarray(log_ndtr(np.asarray(z, dtype=np.float64)), dtype=np.float64)


def t_quantile(p: float, df: int) -> float:
    """Quantile of Student's t with df >= 1 degrees of freedom at p in (0, 1).

    >>> round(t_quantile(0.975, 9), 4)
    2.2622
    """
    return float(stdtrit(df, p))


def beta_quantile(p: float, a: float, b: float) -> float:
    """Quantile of the beta distribution with shapes a, b > 0 at p in [0, 1].

    >>> round(beta_quantile(0.5, 2.0, 2.0), 4)
    0.5
    """
    return float(betaincinv(a, b, p))


def binomial_cdf(k: int, n: int, p: float) -> float:
    """Probability that at most k of n trials of probability p succeed, 0 <= k <= n.

    >>> binomial_cdf(1, 2, 0.5)
    0.75
    """
    return float(bdtr(float(k), n, p))


def t_quantiles(p: float, df: ArrayLike) -> NDArray[np.float64]:
    """Quantiles of Student's t at p in (0, 1), one for each number of degrees of freedom >= 1, in the shape of `df`.

    >>> t_quantiles(0.975, [1, 9]).round(4)
    array([12.7062,  2.2622])
    """
    return np.asarray(stdtrit(np.asarray(df, dtype=np.float64), p), dtype=np.float64)


def chi2_quantile(p: float, df: int) -> float:
    """Quantile of the chi-squared distribution with df >= 1 degrees of freedom at p in [0, 1).

    >>> round(chi2_quantile(0.95, 1), 4)
    3.8415
    """
    return 2 * float(gammaincinv(df / 2, p))


def beta_binomial_none(size: int, rate: float, icc: float) -> float:
    """Probability that none of `size` trials succeeds, each of probability `rate`, any two with correlation `icc`.

    B(a, b + size) / B(a, b) with a = rate (1 / icc - 1), b = (1 - rate) (1 / icc - 1); (1 - rate)^size at icc = 0, and
    1 - rate at icc = 1. `rate` and `icc` lie in [0, 1]; size = 0 gives 1.

    >>> round(beta_binomial_none(2, 0.5, 0.0), 4), round(beta_binomial_none(2, 0.5, 0.5), 4)
    (0.25, 0.375)
    """
    if size == 0 or rate in (0, 1):
        return 1.0 if size == 0 or rate == 0 else 0.0
    if icc in (0, 1):
        return float((1 - rate) ** (size if icc == 0 else 1))
    units = 1 / icc - 1
    a, b = rate * units, (1 - rate) * units
    return float(np.exp(betaln(a, b + size) - betaln(a, b)))
