from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression, minimize
from scipy.special import xlogy

from tamperdose.errors import DataError
from tamperdose.stats.dose_curve import antitonic, check_doses, crossings, interpolated
from tamperdose.stats.dose_fit import fit_log_logistic

DOSES = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128.0])


def curve(c: float, d: float, e: float, b: float) -> np.ndarray:
    return c + (d - c) / (1 + (DOSES / e) ** b)


def deviance(theta: np.ndarray, p: np.ndarray, n: float) -> float:
    c, d, log_e, log_b = theta
    with np.errstate(divide="ignore", over="ignore"):
        f = c + (d - c) / (1 + np.exp(np.exp(log_b) * (np.log(DOSES) - log_e)))
    f = np.clip(f, 1e-9, 1 - 1e-9)
    return float(2 * n * np.sum(xlogy(p, p) + xlogy(1 - p, 1 - p) - p * np.log(f) - (1 - p) * np.log1p(-f)))


@pytest.mark.parametrize("truth", [(0, 0.98, 10, 2), (0.1, 0.9, 10, 1), (0, 1, 20, 8), (0.3, 0.95, 5, 1.5)])
def test_fit_reaches_the_likelihood_of_a_general_optimiser(truth: tuple[float, float, float, float]) -> None:
    rates = np.random.default_rng(0).binomial(120, curve(*truth), size=(6, 9)) / 120
    found = fit_log_logistic(DOSES, rates, np.full(rates.shape, 120.0))
    bounds = [(0, 1), (0, 1), (np.log(0.25), np.log(512)), (np.log(0.25), np.log(12))]
    starts = [(0.05, 0.95, np.log(e), np.log(b)) for e in (5, 10, 30) for b in (1, 3)]
    for rate, reached in zip(rates, found.deviance, strict=True):
        best = min(minimize(deviance, start, (rate, 120), "L-BFGS-B", bounds=bounds).fun for start in starts)
        assert reached <= best + 1e-3
    assert found.converged.all()


def test_fit_recovers_the_curve_and_its_levels() -> None:
    truth = (0.1, 0.9, 10.0, 1.7)
    found = fit_log_logistic(DOSES, [curve(*truth)], [np.full(9, 1e4)])
    for name, value in zip(("lower", "upper", "midpoint", "slope"), truth, strict=True):
        assert getattr(found, name)[0] == pytest.approx(value, rel=1e-3)
    at = found.falls_to(0.5 * found.upper)
    assert found.at(at)[0, 0] == pytest.approx(0.45, abs=1e-4)
    assert at[0] == pytest.approx(10 * (0.45 / 0.35) ** (1 / 1.7), rel=1e-3)
    assert found.at([0.0])[0, 0] == found.upper[0]


@pytest.mark.parametrize(("rate", "dose"), [(1.0, np.inf), (0.6, np.inf)])
def test_level_that_is_never_reached(rate: float, dose: float) -> None:
    found = fit_log_logistic(DOSES, [np.full(9, rate)], [np.full(9, 50.0)])
    assert found.falls_to(0.5 * found.upper)[0] > 128
    assert found.at(DOSES)[0] == pytest.approx(np.full(9, rate), abs=0.01)
    assert dose == np.inf


def test_the_complement_of_a_curve_reaches_the_complement_of_a_level() -> None:
    falling = fit_log_logistic(DOSES, [0.9 / (1 + (DOSES / 10) ** 2)], [np.full(9, 50.0)])
    rising = replace(falling, upper=1 - falling.upper, lower=1 - falling.lower)
    at = falling.falls_to(np.array([0.3]))
    assert 0 < at[0] < np.inf
    assert rising.falls_to(np.array([0.7])) == pytest.approx(at)
    assert rising.falls_to(1 - falling.upper - 0.01)[0] == 0
    assert rising.falls_to(np.array([1.2]))[0] == np.inf


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), min_size=1, max_size=12))
def test_antitonic_is_scipys_isotonic_regression(rows: list[tuple[float, int]]) -> None:
    rates, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    expected = isotonic_regression(rates, weights=weights, increasing=False).x
    np.testing.assert_allclose(antitonic(rates, weights), expected, atol=1e-9)


def test_doses_of_no_weight_take_a_neighbours_value() -> None:
    found = antitonic([[1.0, 0.3, 0.2, 0.9]], [[5, 0, 5, 0]])
    np.testing.assert_allclose(found, [[1.0, 0.2, 0.2, 0.2]])


def test_crossings_by_hand() -> None:
    doses = [0, 2, 8, 32]
    found = crossings(doses, [[1, 0.9, 0.5, 0.1], [1, 0.5, 0.1, 0], [0.8, 0.8, 0.8, 0.6], [0.4, 0.4, 0, 0]], [0.5] * 4)
    assert found.below.tolist() == [2, 0, 32, 0]
    assert found.above.tolist() == [8, 2, np.inf, 2]
    assert found.at.tolist() == pytest.approx([8, 0, np.inf, 0])


def test_interpolation_is_exact_at_the_doses() -> None:
    values = np.array([[1.0, 0.9, 0.5, 0.1]])
    np.testing.assert_allclose(interpolated([0, 2, 8, 32], values, [0, 2, 8, 32]), values)
    assert interpolated([0, 2, 8, 32], values, [4])[0, 0] == pytest.approx(0.7)
    assert interpolated([0, 5], [[1.0, 0.2]], [0, 1, 5])[0].tolist() == [1.0, 1.0, 0.2]


@pytest.mark.parametrize("doses", [[], [0], [1, 2], [0, 2, 2], [0, np.nan], [[0, 1]]])
def test_no_ladder(doses: list[float]) -> None:
    with pytest.raises(DataError):
        check_doses(doses)
