"""The three claims: what supports, contradicts and leaves them open; the pooled effects behind the third."""

import sys
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm

sys.path.insert(0, str(Path(__file__).parents[2]))

from tamperdose.errors import DataError
from tamperdose.stats.claims import ALPHA, Answer, Retention, claim_collapse, claim_compute, claim_start_and_fall
from tamperdose.stats.pooled import pooled_effects
from tamperdose.stats.scaling import DoseUnit, Slope, meta_scaling
from tamperdose.stats.sizes import SizePoint
from validation import scaling as validation

ARMS, DOSES = ["a", "b"], [500, 1000, 2000]


def cells(low: float, high: float) -> list[Retention]:
    return [Retention(arm, dose, low, high) for arm in ARMS for dose in DOSES]


def fall(slope: float, spread: float = 1.05) -> object:
    doses = [10 * 10 ** (slope * i) for i in range(6)]
    points = [SizePoint(str(i), 10.0 ** (8 + i), dose, dose / spread, dose * spread) for i, dose in enumerate(doses)]
    return meta_scaling(points, DoseUnit.STEPS, level=1 - 2 * ALPHA)


def start(low: float | None, high: float | None) -> Slope:
    value = None if low is None or high is None else (low + high) / 2
    return Slope(value, low, high, 0.95, 3, 0.0, None)


def test_collapse() -> None:
    assert claim_collapse(cells(0, 0.1), arms=ARMS).answer == Answer.SUPPORTED
    assert claim_collapse(cells(0, 0.11), arms=ARMS).answer == Answer.UNDECIDED
    assert claim_collapse([*cells(0, 0.1)[:-1], Retention("b", 2000, 0.2, 0.4)], arms=ARMS).answer == (
        Answer.CONTRADICTED
    )
    assert claim_collapse(cells(0, 0.1)[:-1], arms=ARMS).answer == Answer.UNDECIDED
    assert claim_collapse([Retention("a", 16, 0, 0.01)], arms=ARMS).answer == Answer.NOT_TESTABLE
    assert claim_collapse([Retention("a", 16, 0, 0.01)], arms=["a"], doses=[16]).answer == Answer.SUPPORTED
    assert claim_collapse([Retention("a", 16, None, None)], arms=["a"], doses=[16]).answer == Answer.UNDECIDED
    spared = [Retention("a", 16, 0.12, 0.4, family_low=0.09)]
    assert claim_collapse(spared, arms=["a"], doses=[16]).answer == Answer.UNDECIDED


@pytest.mark.parametrize(
    ("began", "slope", "fixed", "answer"),
    [
        (start(0.05, 0.2), 0.0, False, Answer.SUPPORTED),
        (start(-0.1, 0.2), 0.0, False, Answer.UNDECIDED),
        (start(-0.2, -0.1), 0.0, False, Answer.CONTRADICTED),
        (start(0.05, 0.2), 0.5, False, Answer.CONTRADICTED),
        (start(0.05, 0.2), 0.15, False, Answer.UNDECIDED),
        (start(0.05, 0.2), 0.0, True, Answer.NOT_TESTABLE),
        (start(0.05, 0.2), -0.5, True, Answer.CONTRADICTED),
        (start(None, None), 0.0, False, Answer.NOT_TESTABLE),
    ],
)
def test_start_and_fall(began: Slope, slope: float, fixed: bool, answer: Answer) -> None:
    claim = claim_start_and_fall(began, fall(slope), start_is_fixed=fixed)
    assert claim.answer == answer
    assert claim.reason


def test_equivalence_needs_its_level() -> None:
    points = [SizePoint("m", 1e9, 1.0, None, None)]
    with pytest.raises(DataError, match="equivalence"):
        claim_start_and_fall(start(0, 1), meta_scaling(points, DoseUnit.STEPS), start_is_fixed=True)
    with pytest.raises(DataError, match="equivalence"):
        claim_start_and_fall(start(0, 1), meta_scaling(points, DoseUnit.FLOPS, level=0.9), start_is_fixed=True)


def rows(effect_n: float, effect_t: float, *, n_templates: int = 12, sizes: int = 4) -> tuple:
    rng = np.random.default_rng(3)
    grid = [(n, t) for n in np.linspace(8, 10, sizes) for t in np.linspace(3, 5, 4)]
    names = [f"{k:02d}" for k in range(n_templates) for _ in range(5)]
    n, t = (np.repeat([10 ** point[i] for point in grid], len(names)) for i in (0, 1))
    score = effect_n * (np.log10(n) - 9) + effect_t * (np.log10(t) - 4)
    return rng.random(len(n)) < 1 / (1 + np.exp(-score)), n, t, names * len(grid)


def test_point_estimates_are_those_of_logistic_regression() -> None:
    refused, n, t, names = rows(0.3, -1.5)
    found = pooled_effects(refused, n, t, templates=names)
    design = sm.add_constant(np.column_stack([np.log10(n), np.log10(t)]))
    plain = sm.GLM(refused.astype(float), design, family=sm.families.Binomial()).fit()
    np.testing.assert_allclose([found.size.value, found.tokens.value], plain.params[1:], rtol=1e-5)
    assert found.difference.value == pytest.approx(abs(plain.params[2]) - abs(plain.params[1]), rel=1e-5)
    assert found.tokens.sizes_low < found.tokens.low < found.tokens.high < found.tokens.sizes_high
    assert claim_compute(found).answer == Answer.SUPPORTED


def test_more_size_than_compute_contradicts() -> None:
    refused, n, t, names = rows(2.0, -0.1)
    assert claim_compute(pooled_effects(refused, n, t, templates=names)).answer == Answer.CONTRADICTED


def test_designs_that_cannot_tell() -> None:
    refused, n, t, names = rows(0.3, -1.5)
    for found, word in (
        (pooled_effects(refused, np.full(len(n), 1e9), t, templates=names), "one size"),
        (pooled_effects(refused, n, n / 1e5, templates=names), "correlate"),
        (pooled_effects(np.zeros(len(n)), n, t, templates=names), "alike"),
        (pooled_effects(refused, n, t, templates=["a"] * len(n)), "templates"),
        (pooled_effects(np.log10(t) < 4, n, t, templates=names), "finite"),
    ):
        assert word in found.reason
        assert found.difference.value is None
        assert claim_compute(found).answer == Answer.NOT_TESTABLE
    refused, n, t, names = rows(0.3, -1.5, sizes=2)
    two = pooled_effects(refused, n, t, templates=names)
    assert two.tokens.low is not None
    assert claim_compute(two).answer == Answer.NOT_TESTABLE
    with pytest.raises(DataError, match="positive"):
        pooled_effects([1, 0], [1e9, 1e9], [0, 1], templates=["a", "b"])


def test_error_rates_at_the_margins() -> None:
    at_margin = validation.alike_answers(0.15, 0.05, n=200)
    assert at_margin.count(Answer.SUPPORTED) <= 0.09 * 200
    assert at_margin.count(Answer.CONTRADICTED) <= 0.09 * 200
    assert validation.alike_answers(0.5, 0.0, n=60).count(Answer.CONTRADICTED) > 50
    kept = validation.collapse_answers((0.1, 0.1, 0.1), n=60, family=True)
    assert kept.count(Answer.CONTRADICTED) <= 6
