"""Verdicts on a difference: by where its interval lies against the margin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperdose.errors import DataError
from tamperdose.records import Estimate, Scope
from tamperdose.stats.paired import pair, paired_difference
from tamperdose.stats.reproduction import Reproduction, judge_all, judge_difference


def between(low: float | None, high: float | None) -> Estimate:
    value = None if low is None or high is None else (low + high) / 2
    return Estimate(value, low, high, 0.95, "m", 50, 50, 50.0, 0, Scope.TRAJECTORY)


@given(low=st.floats(-1, 1), width=st.floats(0, 1), margin=st.floats(0.01, 0.5))
def test_the_three_verdicts_part_all_intervals(low: float, width: float, margin: float) -> None:
    high = min(1.0, low + width)
    found = judge_difference(between(low, high), between(low, high), margin)
    if found is Reproduction.REPRODUCES:
        assert -margin < low and high < margin
    elif found is Reproduction.DIFFERS:
        assert low > margin or high < -margin
    else:
        assert low <= -margin or high >= margin
    mirrored = judge_difference(between(-high, -low), between(-high, -low), margin)
    assert mirrored is found


def test_no_interval_decides_nothing() -> None:
    assert judge_difference(between(None, None), between(None, None), 0.1) is Reproduction.UNDECIDED


def test_the_wide_interval_decides_that_it_differs() -> None:
    assert judge_difference(between(0.11, 0.3), between(0.09, 0.32), 0.1) is Reproduction.UNDECIDED


@pytest.mark.parametrize("margin", [0.0, 1.0, -0.1, float("nan")])
def test_a_margin_outside_its_range_is_refused(margin: float) -> None:
    with pytest.raises(DataError, match="not a margin"):
        judge_difference(between(0, 0), between(0, 0), margin)


def test_a_whole_is_judged_by_its_parts() -> None:
    yes, no, open_ = Reproduction.REPRODUCES, Reproduction.DIFFERS, Reproduction.UNDECIDED
    assert judge_all([yes, yes]) is yes and judge_all([yes, open_]) is open_
    assert judge_all([open_, no]) is no and judge_all([]) is open_


@pytest.mark.parametrize(("shift", "wrong"), [(0.1, Reproduction.REPRODUCES), (0.1, Reproduction.DIFFERS)])
def test_at_the_margin_neither_is_said_often(shift: float, wrong: Reproduction) -> None:
    """A true difference of just the margin: each verdict is wrong, and may come in at most about one run of forty."""
    rng = np.random.default_rng(11)
    ends = []
    for _ in range(300):
        a, b = rng.random(200) < 0.4, rng.random(200) < 0.4 + shift
        found = paired_difference(pair(a, b, [str(k) for k in range(200)]), rng=rng).difference
        ends.append(judge_difference(found, found, 0.1))
    assert ends.count(wrong) <= 300 * 0.05
