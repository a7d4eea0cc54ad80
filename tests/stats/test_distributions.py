import pytest
from scipy import stats

from tamperdose.stats import distributions


@pytest.mark.parametrize("p", [0.0005, 0.025, 0.5, 0.9, 0.975, 0.9995])
def test_equal_to_scipy_stats(p: float) -> None:
    assert distributions.normal_quantile(p) == pytest.approx(stats.norm.ppf(p))
    assert distributions.normal_cdf(distributions.normal_quantile(p)) == pytest.approx(p)
    for df in (1, 2, 9, 99, 9999):
        assert distributions.t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), abs=1e-9)
    assert distributions.beta_quantile(p, 2.5, 3.5) == pytest.approx(stats.beta.ppf(p, 2.5, 3.5))
    assert distributions.binomial_cdf(3, 10, p) == pytest.approx(stats.binom.cdf(3, 10, p))
