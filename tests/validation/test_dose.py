"""The simulated intervals are those of the package, and the simulated verdicts have the rates they should."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tamperdose.stats.dose import ED50, fit_dose
from validation import dose


def test_the_trials_interval_is_that_of_the_package() -> None:
    table = dose.measured(dose.answers(60, 2, np.random.default_rng(0)), dose.CURVES["middling"], "2 x")
    one = dose.as_dose(dose.trial(table, np.random.default_rng(1)))
    fit = fit_dose(table, rng=np.random.default_rng(1), n_draws=dose.N_DRAWS).ed50
    assert (one.low, one.high, one.bracket) == (fit.low, fit.high, fit.bracket)


@pytest.mark.parametrize("name", list(dose.CURVES))
def test_population_rates_are_the_curve(name: str) -> None:
    curve = dose.CURVES[name]
    doses = [0.0, 8.0, 64.0]
    found = dose.answers(40_000, 1, np.random.default_rng(0)).at(curve, doses).mean(axis=0)
    np.testing.assert_allclose(found, curve(np.array(doses)), atol=0.015)
    at = dose.truth(curve)
    assert curve(np.array([at * 1.001]))[0] <= ED50.fraction * curve(np.zeros(1))[0] + 1e-9
    assert curve(np.array([at * 0.99]))[0] > ED50.fraction * curve(np.zeros(1))[0]


def test_adaptive_ladder_brackets_a_step_exactly() -> None:
    table = dose.measured(dose.answers(100, 1, np.random.default_rng(0)), dose.CURVES["step"], dose.AUTO)
    assert {12.0, 13.0} <= set(table.doses)


def test_an_interval_that_misses_is_counted() -> None:
    assert dose._held([(1, 2), (3, np.inf), (5, 6)], 4) == pytest.approx(1 / 3)
    assert np.isinf(dose._decades([(1, np.inf), (1, np.inf), (1, 2)]))
