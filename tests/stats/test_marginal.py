"""Averages over arms: by hand, against `rate`, and by simulated coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tamperdose.errors import DataError
from tamperdose.records import Scope
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.marginal import arms_dose, arms_rate, level_pairs
from tamperdose.stats.paired import paired_difference
from tamperdose.stats.rates import rate

NAN = math.nan
FACTS = (None, None, 0.95, (1.0, 9.0), "", None, "isotonic", "m", Scope.TRAJECTORY, 9, 4, 1)


def dose(value: float | None, censored: str = "") -> EffectiveDose:
    return replace(EffectiveDose(0.5, value, *FACTS), censored=censored)


def test_a_mean_over_arms_is_the_rate_of_the_prompts_means() -> None:
    events = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [NAN, 1, 1]]
    found = arms_rate(events, list("aabbc"))
    expected = rate([2 / 3, 1 / 3, 0, 1, 1], list("aabbc"))
    assert found.value == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.n, found.n_templates, found.n_unreadable, found.scope) == (5, 3, 1, Scope.ARMS)


def test_many_arms_with_a_few_verdicts_missing_keep_their_prompts() -> None:
    rng = np.random.default_rng(3)
    events = (rng.random((100, 24)) < 0.4).astype(float)
    whole = arms_rate(events, [str(k) for k in range(100)])
    events[rng.random(events.shape) < 0.02] = NAN
    found = arms_rate(events, [str(k) for k in range(100)])
    assert (found.n, found.n_unreadable) == (100, int(np.isnan(events).sum()))
    assert found.value == pytest.approx(whole.value, abs=0.01)
    assert level_pairs(events[:, :12], events[:, 12:], [str(k) for k in range(100)]).n == 100


def test_one_arm_is_that_arm() -> None:
    events = [1, 0, 1, 1]
    found, alone = arms_rate([[event] for event in events], list("abcd")), rate(events, list("abcd"))
    assert replace(found, scope=Scope.TRAJECTORY) == alone


def test_nothing_read_and_no_arms() -> None:
    nothing = arms_rate([[NAN, NAN], [NAN, NAN]], ["a", "b"])
    assert (nothing.value, nothing.low, nothing.n, nothing.n_unreadable) == (None, None, 0, 4)
    with pytest.raises(DataError, match="do not fit"):
        arms_rate(np.zeros((2, 0)), ["a", "b"])
    with pytest.raises(DataError, match="do not fit"):
        arms_rate([[1.0]], ["a", "b"])
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        arms_rate([[2.0], [0.0]], ["a", "b"])


def test_pairs_of_levels_leave_out_what_either_could_not_read() -> None:
    pairs = level_pairs([[1, 0], [1, 1], [NAN, 1], [0, 0]], [[1], [0], [1], [NAN]], list("abcd"))
    assert pairs.base.tolist() == [0.5, 1.0, 1.0]
    assert pairs.tampered.tolist() == [1.0, 0.0, 1.0]
    assert (pairs.templates, pairs.n_unreadable) == (("a", "b", "c"), 1)
    found = paired_difference(pairs, rng=np.random.default_rng(0), scope=Scope.ARMS)
    assert (found.difference.value, found.difference.scope) == (pytest.approx(-0.5 / 3), Scope.ARMS)


def test_a_geometric_mean_only_of_what_all_arms_have() -> None:
    found = arms_dose([dose(2.0), dose(4.0), dose(27.0)])
    assert found.value == pytest.approx(6.0)
    assert (found.low, found.high, found.method, found.censored) == (None, None, "geometric_mean", "")
    assert (found.n, found.n_templates, found.n_unreadable) == (9, 4, 3)
    some = arms_dose([dose(2.0), dose(None, "right"), dose(None, "left"), dose(None, "right")])
    assert (some.value, some.censored) == (None, "left right")
    assert arms_dose([]).value is None
    with pytest.raises(DataError, match="different kinds"):
        arms_dose([dose(2.0), replace(dose(2.0), fraction=0.1)])


@pytest.mark.parametrize(("share", "icc"), [(0.5, 0.3), (0.1, 0.3), (0.02, 0.05), (0.8, 0.7)])
def test_the_interval_holds_the_mean_of_these_arms_over_other_prompts(share: float, icc: float) -> None:
    """15 templates of 6 prompts, 4 arms of different rates: templates are drawn anew, the arms stay."""
    rng = np.random.default_rng(7)
    held, n_draws = 0, 400
    rates = share * np.array([0.8, 0.95, 1.05, 1.2])
    templates = [f"t{k // 6}" for k in range(90)]
    for _ in range(n_draws):
        spread = 1 / icc - 1
        by_template = rng.beta(rates * spread, (1 - rates) * spread, size=(15, 4)).repeat(6, axis=0)
        found = arms_rate(rng.random((90, 4)) < by_template, templates)
        assert found.low is not None and found.high is not None
        held += found.low <= share <= found.high
    assert held / n_draws >= 0.93
