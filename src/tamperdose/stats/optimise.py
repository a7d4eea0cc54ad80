"""Roots and minima: scipy.optimize behind typed names, as `distributions` is for scipy.special."""

# pyright: reportMissingTypeStubs=false, reportArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

_OPTIONS = {"maxiter": 500, "ftol": 1e-11, "gtol": 1e-7}


def root(function: Callable[[float], float], low: float, high: float, *, xtol: float) -> float:
    """Where a function is 0 between two arguments at which its signs differ, to within `xtol`.

    >>> round(root(lambda x: x**2 - 2, 0.0, 2.0, xtol=1e-9), 6)
    1.414214
    """
    return float(optimize.brentq(function, low, high, xtol=xtol))


def minimum(
    loss: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    start: NDArray[np.float64],
    bounds: Sequence[tuple[float | None, float | None]],
) -> tuple[NDArray[np.float64], float]:
    """Argument and value of the minimum of a smooth function that returns its gradient beside its value (L-BFGS-B).

    >>> best, least = minimum(lambda x: (float(x @ x), 2 * x), np.array([3.0]), [(1.0, None)])
    >>> best.tolist(), least
    ([1.0], 1.0)
    """
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=_OPTIONS)
    return np.asarray(found.x, dtype=np.float64), float(found.fun)
