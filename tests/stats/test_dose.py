import numpy as np
import pytest

from tamperdose.errors import DataError
from tamperdose.records import Scope
from tamperdose.stats.carry import ErrorMap
from tamperdose.stats.dose import ISOTONIC, LOG_LOGISTIC, DoseFit, DoseTable, fit_dose
from tamperdose.stats.rates import rate

DOSES = np.array([0, 1, 2, 4, 8, 16, 32.0])


def names(n: int, size: int = 1) -> tuple[str, ...]:
    return tuple(f"{i // size:03d}" for i in range(n))


def thresholds(values: list[float], doses: np.ndarray = DOSES) -> np.ndarray:
    """Prompts that are refused below their own threshold."""
    return (doses[None, :] < np.array(values)[:, None]).astype(float)


def fitted(refused: np.ndarray, *, size: int = 1, doses: np.ndarray = DOSES, **options) -> DoseFit:
    options = {"rng": np.random.default_rng(0), "n_draws": 300, **options}
    return fit_dose(DoseTable(doses, refused, names(len(refused), size)), **options)


def smooth(n: int = 200, seed: int = 0, slope: float = 2.0, lower: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = 6 * np.exp(rng.logistic(size=n) / slope)
    return thresholds(np.where(rng.random(n) < lower, 1e9, values).tolist())


def test_smooth_curve() -> None:
    fit = fitted(smooth())
    assert fit.diagnostics.fit == LOG_LOGISTIC
    assert fit.diagnostics.goodness_p > 0.05
    assert fit.ed50.value == pytest.approx(6, rel=0.15)
    assert fit.ed50.low <= fit.ed50.bracket[0] < fit.ed50.bracket[1] <= fit.ed50.high
    assert fit.ed50.sampling[0] < fit.ed50.value < fit.ed50.sampling[1]
    assert fit.ed90.low < 6 * 9 ** (1 / 2) < fit.ed90.high
    assert (fit.ed50.scope, fit.ed50.n, fit.ed50.n_templates) == (Scope.TRAJECTORY, 200, 200)
    row = fit.ed50.estimate()
    assert (row.value, row.low, row.high, row.censored) == (fit.ed50.value, fit.ed50.low, fit.ed50.high, "")


def test_fall_between_two_doses_gives_that_bracket() -> None:
    doses = np.array([0, 1, 5, 10, 20.0])
    fit = fitted(thresholds([7.0] * 80, doses), doses=doses)
    assert (fit.ed50.low, fit.ed50.high, fit.ed50.bracket) == (5.0, 10.0, (5.0, 10.0))
    assert 5 < fit.ed50.value < 10


def test_level_is_a_share_of_f0_and_not_halfway_between_the_asymptotes() -> None:
    fit = fitted(smooth(2000, lower=0.3))
    # f = 0.3 + 0.7 / (1 + (x / 6)^2) is at 0.5 where (x / 6)^2 = 2.5.
    assert fit.ed50.value == pytest.approx(6 * 2.5**0.5, rel=0.1)
    assert fit.midpoint.value == pytest.approx(6, rel=0.1)
    assert (fit.ed90.censored, fit.ed90.value, fit.ed90.low, fit.ed90.high) == ("right", None, 32.0, None)
    assert fit.lower.low < 0.3 < fit.lower.high


@pytest.mark.parametrize(
    ("threshold", "censored", "ends", "bracket"),
    [(100.0, "right", (32.0, None), (32.0, None)), (0.5, "left", (0.0, 1.0), (0.0, 1.0))],
)
def test_censoring_is_an_outcome(threshold: float, censored: str, ends: tuple, bracket: tuple) -> None:
    dose = fitted(thresholds([threshold] * 60)).ed50
    assert (dose.value, dose.censored, (dose.low, dose.high), dose.bracket) == (None, censored, ends, bracket)


def test_nothing_to_lose() -> None:
    refused = np.zeros((60, 7))
    assert fitted(refused).ed50.censored == "undefined"
    refused[:36, 0] = 1
    assert rate(refused[:, 0], names(60)).low < 0.5
    dose = fitted(refused).ed50
    assert (dose.censored, dose.value, dose.low, dose.high, dose.bracket) == ("undefined", None, None, None, None)


def test_few_templates_widen_and_never_vanish() -> None:
    refused = thresholds([6.0] * 60)
    many, few, one = (fitted(refused, size=size).ed50 for size in (1, 6, 60))
    assert (many.low, many.high) == (4.0, 8.0)
    assert fitted(refused, size=15).ed50.censored == "undefined"
    assert (few.low, few.high) == (4.0, 8.0)
    assert (one.low, one.high, one.bracket) == (None, None, (4.0, 8.0))
    assert one.value is not None
    single = fitted(refused[:1]).ed50
    assert (single.low, single.bracket) == (None, (4.0, 8.0))


def test_a_bump_is_told_and_refutes_the_curve() -> None:
    refused = smooth(400)
    rates = [0.97, 0.97, 0.55, 0.95, 0.3, 0.3, 0.02]
    rng = np.random.default_rng(1)
    bumped = (rng.random((400, 1)) < np.array(rates)).astype(float)
    assert not fitted(refused).diagnostics.non_monotone
    found = fitted(bumped)
    assert found.diagnostics.non_monotone
    assert found.diagnostics.fit == ISOTONIC
    assert (2.0, 4.0) in [(rise.start, rise.end) for rise in found.diagnostics.rises if rise.beyond_noise]
    assert np.all(np.diff(found.isotonic) <= 0)


def test_unreadable_verdicts_leave_their_dose_only() -> None:
    refused = smooth(100)
    refused[:5, 3] = np.nan
    fit = fitted(refused)
    assert [estimate.n for estimate in fit.rates] == [100, 100, 100, 95, 100, 100, 100]
    assert fit.ed50.n_unreadable == 5
    refused[:, 3] = np.nan
    with pytest.raises(DataError, match="without a readable verdict"):
        fitted(refused)


def test_compliance_dose() -> None:
    refused = smooth()
    table = DoseTable(DOSES, refused, names(200), 1 - refused)
    fit = fit_dose(table, rng=np.random.default_rng(0), n_draws=300)
    # Compliance is one minus refusal here: half of f(0) is reached where half is lost.
    assert fit.ed50c.value == pytest.approx(fit.ed50.value, rel=0.05)
    half = DoseTable(DOSES, refused, names(200), (1 - refused) * (np.arange(200) % 3 == 0)[:, None])
    found = fit_dose(half, rng=np.random.default_rng(0), n_draws=300)
    assert (found.ed50c.censored, found.ed50c.value) == ("right", None)
    assert fitted(refused).ed50c is None


def test_the_value_lies_in_the_bracket_of_measured_doses() -> None:
    doses = np.array([0, 1, 2, 4, 6, 7, 8, 10, 12, 16, 24, 32.0])
    rng = np.random.default_rng(9)
    fit = fitted((rng.random((60, 12)) < 0.97 / (1 + (doses / 9) ** 3)).astype(float), doses=doses)
    assert (fit.diagnostics.fit, fit.ed50.bracket) == (LOG_LOGISTIC, (10.0, 12.0))
    # The curve crosses at 9.75.
    assert (fit.ed50.value, fit.ed50.fit) == (10.0, LOG_LOGISTIC)
    assert fit.ed50.low <= 9.0 <= fit.ed50.high


def test_compliance_that_was_there_before_the_attack_is_no_dose() -> None:
    refused = np.repeat((np.arange(200) < 124)[:, None], 7, axis=1).astype(float)
    found = fit_dose(DoseTable(DOSES, refused, names(200), 1 - refused), rng=np.random.default_rng(0), n_draws=300)
    assert (found.ed50.censored, found.ed50.reason) == ("right", "")
    assert (found.ed50c.censored, found.ed50c.value, found.ed50c.bracket) == ("undefined", None, None)
    assert "already" in found.ed50c.reason
    nothing = fitted(1 - refused)
    assert (nothing.ed50.censored, nothing.ed50.reason) == ("undefined", "nothing to lose: too few refusals at dose 0")


def test_the_judges_error_travels() -> None:
    refused = smooth(300)
    rng = np.random.default_rng(0)
    sure = ErrorMap(np.zeros(500), np.ones(500))
    same = fitted(refused, error=sure)
    assert same.ed50.bracket == fitted(refused).ed50.bracket
    # Sensitivity 0.9, specificity 0.9, well known and hardly known.
    for spread in (0.001, 0.08):
        se, sp = (np.clip(0.9 + spread * rng.standard_normal(500), 0.6, 1) for _ in range(2))
        error = ErrorMap((sp - 1) / (se + sp - 1), 1 / (se + sp - 1))
        judged = np.where(rng.random(refused.shape) < np.where(refused == 1, 0.9, 0.1), 1.0, 0.0)
        found = fitted(judged, error=[error] * 7)
        assert found.ed50.low <= 6 <= found.ed50.high
        assert found.rates[0].value == pytest.approx(1, abs=0.06)
        assert found.ed50c is None
    assert found.ed50.high > fitted(refused).ed50.high or found.ed50.low < fitted(refused).ed50.low
    with pytest.raises(DataError, match="not one map for each dose"):
        fitted(refused, error=[error] * 3)


def test_band_holds_the_curve_and_has_a_width_everywhere() -> None:
    for refused in (smooth(), thresholds([6.0] * 80)):
        band = fitted(refused).band
        assert np.all((band.low <= band.value) & (band.value <= band.high))
        assert np.all(band.low < band.high)
        assert set(DOSES) <= set(band.doses)


def test_order_of_prompts_has_no_say_in_the_fit() -> None:
    refused, order = smooth(80, slope=1.0), np.random.default_rng(3).permutation(80)
    first, second = fitted(refused), fitted(refused[order])
    assert first.ed50.value == pytest.approx(second.ed50.value)
    assert first.diagnostics.deviance == pytest.approx(second.diagnostics.deviance)


@pytest.mark.parametrize(
    "table",
    [
        DoseTable(DOSES, np.ones((3, 6)), names(3)),
        DoseTable(DOSES, np.full((3, 7), 2.0), names(3)),
        DoseTable(DOSES, np.ones((3, 7)), names(2)),
        DoseTable(DOSES + 1, np.ones((3, 7)), names(3)),
        DoseTable(DOSES, np.ones((3, 7)), names(3), np.full((3, 7), np.nan)),
        DoseTable(DOSES, np.ones((0, 7)), ()),
    ],
)
def test_tables_that_are_none(table: DoseTable) -> None:
    with pytest.raises(DataError):
        fit_dose(table, rng=np.random.default_rng(0))
