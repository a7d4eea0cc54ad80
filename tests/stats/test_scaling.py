"""Lines over sizes against statsmodels and by hand; sizes, not arms, are the units."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.meta_analysis import combine_effects

sys.path.insert(0, str(Path(__file__).parents[2]))

from tamperdose.errors import DataError
from tamperdose.stats.aft import censored_line_at, censored_regression
from tamperdose.stats.meta import line_at, meta_regression, paule_mandel, slope_interval
from tamperdose.stats.recipes import attack_share, compare_recipes
from tamperdose.stats.scaling import DoseUnit, meta_scaling, rate_slope, scaling, to_dict
from tamperdose.stats.sizes import SizePoint, size_labels
from validation import scaling as validation

X = np.array([8.0, 8.5, 9.0, 9.6, 10.0])
NOISE = np.array([0.05, -0.12, 0.03, 0.1, -0.06])
Y = 1 + 0.3 * X + NOISE


def arms(doses: dict[float, float], spread: float = 1.3) -> list[SizePoint]:
    return [SizePoint(f"m{n:g}", n, dose, dose / spread, dose * spread) for n, dose in doses.items()]


def test_without_scatter_it_is_weighted_least_squares() -> None:
    variance = np.array([0.4, 0.1, 0.2, 0.3, 0.1])
    line = meta_regression(X, Y, variance)
    wls = sm.WLS(Y, sm.add_constant(X - X.mean()), weights=1 / variance).fit()
    assert line.between_sd == 0
    np.testing.assert_allclose([line.intercept, line.slope], wls.params)
    np.testing.assert_allclose(line.variance_slope, wls.normalized_cov_params[1, 1])


def test_without_known_errors_it_is_ordinary_least_squares() -> None:
    ols = sm.OLS(Y, sm.add_constant(X - X.mean())).fit()
    line = meta_regression(X, Y, np.zeros(5))
    np.testing.assert_allclose(slope_interval(line, 0.95), ols.conf_int()[1])
    frame = ols.get_prediction(np.array([[1.0, 11 - X.mean()]])).summary_frame()
    value, variance = line_at(line, 11)
    np.testing.assert_allclose([value, np.sqrt(variance)], [frame["mean"][0], frame["mean_se"][0]])


def test_scatter_is_paule_and_mandels() -> None:
    """The equation holds; and where there is no slope to see, it is that of statsmodels with one degree less."""
    variance = np.array([0.002, 0.004, 0.001, 0.003, 0.002])
    tau2 = paule_mandel(X, Y, variance)
    weights = 1 / (variance + tau2)
    fit = sm.WLS(Y, sm.add_constant(X), weights=weights).fit()
    assert tau2 > 0
    assert np.sum(weights * fit.resid**2) == pytest.approx(3)
    # Without a slope to spend a degree of freedom on, the same equation is statsmodels' "iterated".
    tilted = np.array([0.3, -0.1, 0.25, 0.0])
    mirrored = np.concatenate([tilted, tilted])
    both = np.concatenate([np.full(4, 0.01)] * 2)
    found = combine_effects(mirrored, both, method_re="iterated", use_t=True)
    line = meta_regression([-1, -1, -1, -1, 1, 1, 1, 1], mirrored, both)
    assert line.slope == pytest.approx(0, abs=1e-12)
    assert line.intercept == pytest.approx(found.mean_effect_re)
    # Q is the same with 6 degrees of freedom in place of 7.
    total = found.tau2 + 0.01
    assert line.between_sd**2 + 0.01 == pytest.approx(total * 7 / 6, rel=1e-4)


def test_the_truncation_never_makes_it_narrower_than_the_fixed_effect() -> None:
    line = meta_regression(X, 1 + 0.3 * X, np.full(5, 0.01))
    low, high = slope_interval(line, 0.95)
    fixed = 1.96 * np.sqrt(0.01 / np.sum((X - X.mean()) ** 2))
    assert high - low > 2 * fixed


def test_censored_fit_without_censoring_is_least_squares() -> None:
    design = sm.add_constant(X)
    ols = sm.OLS(Y, design).fit()
    line = censored_regression(X, Y, Y)
    assert line.log_likelihood == pytest.approx(ols.llf, abs=1e-6)
    np.testing.assert_allclose([line.low, line.high], ols.conf_int()[1], atol=1e-4)
    frame = ols.get_prediction(np.array([[1.0, 11.0]])).summary_frame()
    expected = [frame[name][0] for name in ("mean", "mean_ci_lower", "mean_ci_upper")]
    np.testing.assert_allclose(censored_line_at(line, 11.0), expected, atol=1e-3)
    assert line.sd == pytest.approx(np.sqrt(ols.scale), rel=1e-4)


def test_censored_arms_pull_the_way_they_should() -> None:
    low, high = Y.copy(), Y.copy()
    high[4], low[4] = np.inf, Y[4] + 1
    up = censored_regression(X, low, high)
    low[4], high[4] = -np.inf, Y[4] - 1
    down = censored_regression(X, low, high)
    assert down.slope < censored_regression(X, Y, Y).slope < up.slope
    assert up.df == 2


def test_doubling_the_rows_of_a_size_adds_no_size() -> None:
    once = censored_regression(X, Y, Y)
    twice = censored_regression(np.tile(X, 2), np.tile(Y, 2), np.tile(Y, 2), weights=np.full(10, 0.5))
    assert (twice.df, twice.k) == (3, 5)
    np.testing.assert_allclose([twice.low, twice.high], [once.low, once.high], atol=1e-4)


@pytest.mark.parametrize("n_seeds", [1, 2, 6])
def test_seeds_are_no_sizes(n_seeds: int) -> None:
    points = [point for point in arms({1e8: 5.0, 1e9: 6.0, 1e10: 9.0, 1e11: 9.0}) for _ in range(n_seeds)]
    found = scaling(points, DoseUnit.STEPS)
    for fit in (found.meta, found.censored):
        assert (fit.n_sizes, fit.slope.df, fit.n_points) == (4, 2, 4 * n_seeds)
    one = meta_scaling(points[::n_seeds], DoseUnit.STEPS)
    assert found.meta.slope.low == pytest.approx(one.slope.low)


def test_models_of_one_size_are_one_size() -> None:
    points = [SizePoint(name, n, 5.0, 4.0, 6.0) for name, n in (("a", 6.9e9), ("b", 7.2e9), ("c", 1e9))]
    assert len(set(size_labels(points))) == 2
    assert meta_scaling(points, DoseUnit.STEPS).n_sizes == 2


def test_few_sizes_say_so() -> None:
    assert meta_scaling([], DoseUnit.STEPS).slope.value is None
    one, two = (scaling(arms(dict.fromkeys(ns, 5.0)), DoseUnit.STEPS) for ns in ([1e9], [1e9, 1e10]))
    for fit in (one.meta, one.censored):
        assert fit.slope.value is None
        assert "needs 2" in fit.reason
    for fit in (two.meta, two.censored):
        assert fit.slope.value == pytest.approx(0, abs=1e-6)
        assert fit.slope.low is None
        assert "needs 3" in fit.reason
    near = meta_scaling(arms({1e9: 5.0, 2e9: 6.0, 4e9: 7.0}), DoseUnit.STEPS)
    assert near.slope.low is not None
    assert near.cautions == ("3 sizes: fewer than 4", "the sizes span 0.60 decades: less than 1")


def test_censored_sizes_leave_the_meta_regression_and_are_counted() -> None:
    points = [
        *arms({1e8: 5.0, 1e9: 7.0, 1e10: 8.0, 1e11: 11.0}),
        SizePoint("m1e+11", 1e11, None, 64.0, None, censored="right", seed=2),
        SizePoint("none", 1e12, None, None, None, censored="undefined"),
    ]
    found = scaling(points, DoseUnit.STEPS, at=[1e12])
    assert (found.meta.n_sizes, found.censored.n_sizes) == (3, 4)
    assert {out.reason for out in found.meta.left_out} == {
        "undefined: nothing to lose",
        "right-censored",
        "another arm of its size is censored",
    }
    assert len(found.censored.left_out) == 1
    assert found.censored.slope.value > found.meta.slope.value
    prediction = found.censored.predictions[0]
    assert prediction.predict_low < prediction.low < prediction.value < prediction.high < prediction.predict_high
    json.dumps(to_dict(found), allow_nan=False)


def test_flops_have_a_null_slope_of_one() -> None:
    points = arms({1e8: 1e15, 1e9: 1.1e16, 1e10: 0.9e17, 1e11: 1e18})
    assert meta_scaling(points, DoseUnit.FLOPS).slope.excludes_null is False
    assert meta_scaling(points, DoseUnit.STEPS).slope.excludes_null is True


def test_a_point_must_say_what_it_can() -> None:
    for bad in (
        SizePoint("m", 0, 1.0, 1.0, 1.0),
        SizePoint("m", 1e9, 0.0, 1.0, 1.0),
        SizePoint("m", 1e9, None, 1.0, 1.0),
        SizePoint("m", 1e9, None, None, 4.0, censored="right"),
        SizePoint("m", 1e9, 1.0, 2.0, 1.0),
        SizePoint("m", 1e9, 1.0, 1.0, 1.0, censored="above"),
    ):
        with pytest.raises(DataError):
            scaling([bad], DoseUnit.STEPS)
    with pytest.raises(DataError, match="two sizes"):
        scaling([SizePoint("m", 1e9, 1.0, None, None), SizePoint("m", 2e9, 1.0, None, None)], DoseUnit.STEPS)


def test_best_learning_rate_of_each_size() -> None:
    doses = {1e-4: (20, 30, 60), 3e-4: (8, 9, 50), 1e-3: (9, 7, 40)}
    by_rate = {rate: arms(dict(zip((1e8, 1e9, 1e10), row, strict=True))) for rate, row in doses.items()}
    found = compare_recipes(by_rate, 1e-4, DoseUnit.STEPS)
    assert [choice.learning_rate for choice in found.chosen] == [3e-4, 1e-3, 1e-3]
    assert [choice.at_edge for choice in found.chosen] == [False, True, True]
    assert found.best is not None
    assert [size.value for size in found.best.meta.sizes] == pytest.approx([8, 7, 40])
    assert "optimistic" in found.note
    del by_rate[1e-3]
    assert compare_recipes(by_rate, 1e-4, DoseUnit.STEPS).best is None
    with pytest.raises(DataError):
        attack_share(1.0, 0.0, 1.0)


def test_start_slope_by_hand() -> None:
    points = [SizePoint(f"m{i}", 10.0 ** (8 + i), rate, None, None) for i, rate in enumerate((0.2, 0.5, 0.5))]
    slope, reason = rate_slope(points)
    assert slope.value == pytest.approx(0.15)
    assert slope.low < 0 < slope.high
    assert reason == ""


@pytest.mark.parametrize(("k", "scatter"), [(5, 0.0), (5, 0.15)])
def test_coverage_of_slope_and_prediction(k: int, scatter: float) -> None:
    held = validation.slope_cell(k, scatter, n=300)
    assert held.slope >= 0.93
    assert held.prediction >= 0.89
    # What the interval is there to mend.
    assert scatter == 0 or held.fixed < 0.7


@pytest.mark.parametrize("kind", list(validation.CENSORINGS))
def test_coverage_under_censoring(kind: str) -> None:
    held, fitted = validation.censored_cell(kind, 0.15, n=20)
    assert held.slope >= 0.8
    assert fitted > 0.8
