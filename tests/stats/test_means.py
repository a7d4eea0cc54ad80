import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tamperdose.errors import DataError
from tamperdose.stats.means import binary_entropy, mean_estimate


def test_single_prompt_templates_give_students_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    found = mean_estimate(values, [str(i) for i in range(12)])
    expected = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.n_effective == 12


def test_clusters_equal_statsmodels_cluster_robust_regression() -> None:
    rng = np.random.default_rng(1)
    sizes = [3, 8, 1, 5, 7]
    codes = np.repeat(np.arange(5), sizes)
    values = rng.normal(size=5)[codes] + rng.normal(size=len(codes))
    fit = sm.OLS(values, np.ones(len(codes))).fit(cov_type="cluster", cov_kwds={"groups": codes}, use_t=True)
    found = mean_estimate(values, [str(code) for code in codes])
    # With one regressor its small-sample factor is K / (K - 1) (n - 1) / (n - 1).
    assert (found.low, found.high) == pytest.approx(tuple(fit.conf_int()[0]))
    assert found.method == "cluster_robust_t"


@pytest.mark.parametrize(
    ("values", "templates", "value"),
    [
        ([], [], None),
        ([0.3], ["a"], 0.3),
        ([0.3, 0.5], ["a", "a"], 0.4),
        ([0.1, 0.1, 0.1], ["a", "b", "c"], 0.1),
        ([0.0, 1.0, 0.0, 1.0], ["a", "a", "b", "b"], 0.5),
    ],
)
def test_no_interval_without_variance_between_templates(
    values: list[float], templates: list[str], value: float | None
) -> None:
    found = mean_estimate(values, templates)
    assert found.value == (None if value is None else pytest.approx(value))
    assert found.low is None
    assert found.high is None


def test_support_cuts_and_checks() -> None:
    found = mean_estimate([0.0, 0.0, 0.6], ["a", "b", "c"], support=(0.0, float(np.log(2))))
    assert (found.low, found.high) == (0.0, float(np.log(2)))
    with pytest.raises(DataError):
        mean_estimate([0.0, 3.0], ["a", "b"], support=(0.0, 2.0))
    with pytest.raises(DataError):
        mean_estimate([0.0, np.nan], ["a", "b"])


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.sampled_from("abcd")), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_mean_lies_inside_and_order_has_no_say(rows: list[tuple[float, str]], random) -> None:
    found = mean_estimate([value for value, _ in rows], [name for _, name in rows])
    if found.low is not None:
        assert found.low < found.value < found.high
    random.shuffle(rows)
    assert mean_estimate([value for value, _ in rows], [name for _, name in rows]) == found


@given(st.lists(st.floats(0, 1), max_size=20))
def test_entropy_equals_scipy(p: list[float]) -> None:
    found = binary_entropy(p)
    assert found.shape == (len(p),)
    assert np.all((found >= 0) & (found <= np.log(2)))
    expected = [stats.entropy([x, 1 - x]) for x in p]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_entropy_at_the_ends() -> None:
    found = binary_entropy([0.0, 1.0, 0.5])
    assert found.tolist() == [0.0, 0.0, float(np.log(2))]
    assert not np.signbit(found).any()
    for bad in ([1.1], [-0.1], [float("nan")]):
        with pytest.raises(DataError):
            binary_entropy(bad)
