import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tamperdose.errors import DataError
from tamperdose.records import Scope
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.dose_seeds import attack_dose, lowest_end


def seed(value: float | None, bracket: tuple, ends: tuple | None = None, censored: str = "") -> EffectiveDose:
    low, high = ends or bracket
    return EffectiveDose(
        0.5, value, low, high, 0.95, bracket, censored, bracket, "isotonic", "m", Scope.TRAJECTORY, 100, 20, 1
    )


def test_without_brackets_and_chance_it_is_students_interval_of_the_logs() -> None:
    values = [4.0, 7.0, 5.0, 11.0]
    found = attack_dose([seed(value, (value, value * (1 + 1e-12))) for value in values])
    logs = np.log(values)
    low, high = stats.t.interval(0.95, 3, loc=logs.mean(), scale=stats.sem(logs))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-6)
    assert found.value == pytest.approx(math.exp(logs.mean()))
    assert (found.scope, found.n_seeds, found.n, found.n_unreadable) == (Scope.ATTACK, 4, 100, 4)


def test_seeds_in_one_bracket_are_not_taken_for_equal() -> None:
    found = attack_dose([seed(7.0, (5.0, 10.0))] * 3)
    assert found.bracket == pytest.approx((5.0, 10.0))
    assert found.value == pytest.approx(7.0)
    assert found.low < 5.0 < 10.0 < found.high
    wider = attack_dose([seed(7.0, (5.0, 10.0), (2.0, 20.0))] * 3)
    assert wider.low < found.low < found.high < wider.high


def test_lowest_end_is_the_least_of_all_corners() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        low = rng.normal(size=5)
        boxes = list(zip(low, low + rng.random(5), strict=True)) + [(0.0, 1.0)] * 2
        corners = np.array(list(itertools.product(*boxes)))
        expected = np.min(corners.mean(axis=1) - 0.9 * corners.std(axis=1, ddof=1))
        assert lowest_end(boxes, 0.9) == pytest.approx(expected)
    many = [(x, x + 0.5) for x in np.linspace(0, 1, 30)]
    corner = np.array([low for low, _ in many])
    assert lowest_end(many, 0.4) <= corner.mean() - 0.4 * corner.std(ddof=1)


def test_censored_seeds() -> None:
    plain, right, left = seed(7.0, (5.0, 10.0)), seed(None, (20.0, None), censored="right"), None
    left = seed(None, (0.0, 1.0), censored="left")
    one = attack_dose([plain, plain, right])
    assert (one.value, one.censored, one.high) == (pytest.approx(7.0), "", None)
    assert one.low < 7
    most = attack_dose([plain, right, right])
    assert (most.value, most.censored, most.high, most.bracket) == (None, "right", None, (20.0, None))
    every = attack_dose([right] * 3)
    assert every.low is not None
    assert every.low <= 20
    down = attack_dose([left, left, plain])
    assert (down.value, down.censored, down.low, down.bracket) == (None, "left", 0.0, (0.0, 1.0))
    assert down.high > 1


def test_with_a_censored_seed_the_bracket_is_that_of_the_middle_seed() -> None:
    seeds = [seed(5.0, (4.0, 6.0)), seed(5.5, (5.0, 6.0)), seed(None, (2000.0, None), censored="right")]
    found = attack_dose(seeds, first=1.0)
    assert (found.value, found.bracket, found.high) == (pytest.approx(5.5), pytest.approx((5.0, 6.0)), None)
    # The seeds differ too much for any dose to be surely too small; a low of 0.003 was never measured.
    assert found.low == 0
    assert 0 < attack_dose(seeds).low < 1
    low = seed(None, (0.0, 1.0), censored="left")
    found = attack_dose([low, seed(55.0, (50.0, 60.0)), seed(55.0, (50.0, 60.0))], first=1.0)
    assert (found.value, found.bracket) == (pytest.approx(55.0), pytest.approx((50.0, 60.0)))
    near = attack_dose([seed(7.0, (5.0, 10.0))] * 3, first=1.0)
    assert 1 < near.low < 5


def test_an_even_number_of_seeds_has_two_in_the_middle() -> None:
    right = seed(None, (20.0, None), censored="right")
    found = attack_dose([right, seed(4.0, (2.0, 8.0)), seed(7.0, (5.0, 10.0)), right])
    # The median lies between 7 and something above 20: above 10 = sqrt(5 x 20) for sure, above 20 it need not.
    assert (found.value, found.censored, found.bracket) == (None, "right", (pytest.approx(10.0), None))


def test_undefined_seeds_and_seeds_without_interval() -> None:
    plain = seed(7.0, (5.0, 10.0))
    nothing = EffectiveDose(
        0.5, None, None, None, 0.95, None, "undefined", None, "isotonic", "m", Scope.TRAJECTORY, 9, 9, 0
    )
    found = attack_dose([plain, plain, replace(nothing, reason="why")])
    assert (found.censored, found.reason) == ("undefined", "why")
    bare = EffectiveDose(0.5, 7.0, None, None, 0.95, (5.0, 10.0), "", None, "isotonic", "m", Scope.TRAJECTORY, 9, 1, 0)
    found = attack_dose([plain, plain, bare])
    assert (found.low, found.high, found.value) == (None, None, pytest.approx(7.0))


def test_too_few_or_unlike_seeds() -> None:
    plain = seed(7.0, (5.0, 10.0))
    with pytest.raises(DataError, match="too few seeds"):
        attack_dose([plain, plain])
    with pytest.raises(DataError, match="different kinds"):
        attack_dose([plain, plain, attack_dose([plain] * 3)])
