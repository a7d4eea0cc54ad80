"""Curves whose half doses are known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tamperdose.errors import DataError
from tamperdose.records import Scope
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.timing import HalfDose, Order, compare_timing, half_dose

LADDER = [0, 1, 2, 4, 8, 16]


def _ed50(value: float, low: float, high: float) -> EffectiveDose:
    return EffectiveDose(
        fraction=0.5,
        value=value,
        low=low,
        high=high,
        level=0.95,
        bracket=(low, high),
        censored="",
        sampling=None,
        fit="isotonic",
        method="m",
        scope=Scope.TRAJECTORY,
        n=60,
        n_templates=60,
        n_unreadable=0,
    )


def _half(value: float, width: float = 1.1) -> HalfDose:
    low, high = value / width, value * width
    return HalfDose(value, low, high, (low, high))


def test_half_lies_where_the_curve_has_come_half_way() -> None:
    curve = [0.0, 0.1, 0.2, 0.4, 0.8, 0.8]
    found = half_dose(LADDER, curve, [curve] * 6, sizes=(3, 3))
    assert found.value == pytest.approx(4)
    assert found.bracket == (2, 4)
    assert (found.low, found.high) == pytest.approx((2, 4))


def test_replicates_that_differ_widen_it() -> None:
    curve = np.array([0.0, 0.05, 0.1, 0.4, 0.8, 0.9])
    apart = [curve * 1.0 for _ in range(6)]
    apart[0] = np.array([0.0, 0.2, 0.5, 0.7, 0.8, 0.9])
    found = half_dose(LADDER, curve, apart, sizes=(3, 3))
    assert found.bracket == (4, 8)
    assert (found.low or 0) < 4
    assert (found.high or 0) > 8


def test_a_bump_is_smoothed_before_it_is_crossed() -> None:
    curve = [0.0, 0.6, 0.2, 0.2, 0.2, 1.0]
    found = half_dose(LADDER, curve, [curve] * 4, sizes=(2, 2))
    assert found.bracket == (8, 16)


def test_what_turns_before_the_first_dose_is_open_below() -> None:
    curve = [0.0, 0.9, 0.9, 0.9, 0.9, 0.9]
    found = half_dose(LADDER, curve, [curve] * 4, sizes=(2, 2))
    assert (found.value, found.low, found.bracket) == (None, 0.0, (0, 1))


def test_what_does_not_turn_has_no_half() -> None:
    found = half_dose(LADDER, [0.0] * 6, [[0.0] * 6] * 4, sizes=(2, 2))
    assert (found.value, found.bracket) == (None, None)
    assert "not turned" in found.reason


@pytest.mark.parametrize(("ratio", "order"), [(0.3, Order.PRECEDES), (3.0, Order.FOLLOWS), (1.0, Order.ACCOMPANIES)])
@pytest.mark.parametrize("n", [1, 3])
def test_the_order_of_known_doses_is_found(ratio: float, order: Order, n: int) -> None:
    inside = [_half(5 * ratio * (1 + 0.02 * k)) for k in range(n)]
    found = compare_timing(inside, [_ed50(5.0, 4.8, 5.2)] * n)
    assert found.order is order
    assert found.ratio == pytest.approx(ratio, rel=0.05)
    assert found.low is not None
    assert found.high is not None
    assert found.low < ratio < found.high
    assert found.scope is (Scope.ATTACK if n == 3 else Scope.TRAJECTORY)


def test_seeds_that_disagree_are_undecided() -> None:
    found = compare_timing([_half(1.0), _half(5.0), _half(25.0)], [_ed50(5.0, 4.8, 5.2)] * 3)
    assert found.order is Order.UNDECIDED


def test_doses_in_one_wide_bracket_are_undecided_however_they_are_interpolated() -> None:
    inside = [HalfDose(2.1, 2.0, 8.0, (2.0, 8.0))] * 3
    assert compare_timing(inside, [_ed50(7.9, 2.0, 8.0)] * 3).order is Order.UNDECIDED


@pytest.mark.parametrize("n", [1, 3])
def test_refusals_that_never_go_come_after_a_direction_that_turns(n: int) -> None:
    never = replace(_ed50(1.0, 96.0, 97.0), value=None, low=96.0, high=None, bracket=(96.0, None), censored="right")
    found = compare_timing([_half(5.0)] * n, [never] * n)
    assert (found.ratio, found.low, found.order) == (None, 0.0, Order.PRECEDES)
    assert found.high == pytest.approx(5.5 / 96, rel=0.01)


def test_an_undefined_dose_says_why() -> None:
    nothing = HalfDose(None, None, None, None, "nothing moved")
    found = compare_timing([nothing], [_ed50(5.0, 4.8, 5.2)])
    assert (found.order, found.reason, found.ratio) == (Order.UNDECIDED, "nothing moved", None)


def test_two_seeds_are_no_attack() -> None:
    with pytest.raises(DataError, match="three seeds"):
        compare_timing([_half(1.0)] * 2, [_ed50(5.0, 4.8, 5.2)] * 2)


def test_three_seeds_give_students_interval_where_doses_are_known() -> None:
    values = np.array([1.8, 2.0, 2.4])
    tight = 1 + 1e-9
    found = compare_timing([_half(v, tight) for v in values], [_ed50(1.0, 1 / tight, tight)] * 3)
    logs = np.log(values)
    reach = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx(
        (math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)), 1e-4
    )


def test_three_seeds_that_share_their_prompts_know_no_more_about_them() -> None:
    inside = [HalfDose(10.0, 5.0, 20.0, (9.9, 10.1))] * 3
    behaviour = [replace(_ed50(10.0, 9.9, 10.1), low=6.25, high=16.0)] * 3
    one, three = compare_timing(inside[:1], behaviour[:1]), compare_timing(inside, behaviour)
    assert one.order is three.order is Order.UNDECIDED
    assert (three.low, three.high) == pytest.approx((one.low, one.high), rel=0.05)


def test_a_direction_that_still_turns_can_only_follow() -> None:
    rising = [0.0, 0.05, 0.1, 0.3, 0.6, 1.0]
    found = half_dose(LADDER, rising, [rising] * 4, sizes=(2, 2))
    assert not found.settled
    assert half_dose(LADDER, [0.0, 0.1, 0.2, 0.8, 0.95, 1.0], [rising] * 4, sizes=(2, 2)).settled
    for ratio, order in ((0.3, Order.UNDECIDED), (1.0, Order.UNDECIDED), (3.0, Order.FOLLOWS)):
        said = compare_timing([replace(_half(5 * ratio), settled=False)], [_ed50(5.0, 4.8, 5.2)])
        assert said.order is order
        assert bool(said.reason) is (order is Order.UNDECIDED)
