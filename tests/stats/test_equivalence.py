"""Agreement of two engines: counts, intervals against statsmodels, and every limit by itself."""

import math
from dataclasses import replace

import pytest
from statsmodels.stats.proportion import proportion_confint

from tamperdose.errors import DataError
from tamperdose.stats.equivalence import Agreement, Reading, agreement, effect, shortcomings
from tamperdose.study import Equivalence

LIMITS = Equivalence()


def reading(n: int, *, off: float = 0.0, wrong: int = 0) -> Reading:
    first = tuple(k + (k < wrong) * 1000 for k in range(n))
    return Reading(first, tuple((-1.0 - off, -2.0 + off, -0.5) for _ in range(n)))


@pytest.mark.parametrize("wrong", [0, 3, 128])
def test_shares_have_wilsons_interval_and_differences_are_absolute(wrong: int) -> None:
    found = agreement(reading(128), reading(128, off=0.3, wrong=wrong))
    assert (found.n_prompts, found.n_same, found.n_near, found.n_tokens) == (128, 128 - wrong, 128 - wrong, 384)
    expected = proportion_confint(128 - wrong, 128, method="wilson")
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.mean_difference == pytest.approx(0.2)
    assert found.max_difference == pytest.approx(0.3)


def test_what_is_not_of_the_same_tokens_is_refused() -> None:
    one = Reading((1,), ((-1.0,),))
    for other in (Reading((1,), ((-1.0, -1.0),)), Reading((1, 2), ((-1.0,),)), Reading((1, 2), ((-1.0,), (-1.0,)))):
        with pytest.raises(DataError, match="not of the same tokens"):
            agreement(one, other)
    with pytest.raises(DataError, match="nothing to compare"):
        agreement(Reading((), ()), Reading((), ()))
    with pytest.raises(DataError, match="nothing to compare"):
        agreement(Reading((1,), ((),)), Reading((1,), ((),)))


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_number_that_is_none_fails_every_limit(bad: float) -> None:
    found = agreement(Reading((1,), ((-1.0,),)), Reading((1,), ((bad,),)))
    assert found.mean_difference == found.max_difference == math.inf


def _short(found: Agreement, *, acts: float = 1.0) -> list[str]:
    return list(shortcomings({"base": found}, LIMITS, reference_effect=1.0, engine_effect=acts))


def test_each_limit_fails_by_itself_and_nothing_else_does() -> None:
    good = agreement(reading(128), reading(128, off=0.05, wrong=3))
    assert _short(good) == []
    assert "first tokens" in _short(agreement(reading(128), reading(128, wrong=20)))[0]
    assert "in the mean" in _short(replace(good, mean_difference=0.11))[0]
    assert "one log-probability" in _short(replace(good, max_difference=2.1))[0]
    assert "does not act as there" in _short(good, acts=0.89)[0]
    assert "does not act as there" in _short(good, acts=1.11)[0]
    assert _short(good, acts=0.92) == _short(good, acts=1.08) == []
    assert "does not act" in _short(good, acts=math.nan)[0]
    assert all(len(_short(bad)) == 1 for bad in (replace(good, mean_difference=0.11), replace(good, low=0.9)))


def test_first_tokens_that_rounding_turns_count_as_the_same() -> None:
    turned, own = reading(128, off=0.064, wrong=12), reading(128)
    assert "first tokens" in _short(agreement(own, turned))[0]
    near = tuple(frozenset({k, k + 1000}) if k < 12 else frozenset({k}) for k in range(128))
    found = agreement(replace(own, near=near), turned)
    assert (found.n_same, found.n_near, found.share, _short(found)) == (116, 128, 1.0, [])
    # A tie of the reference's excuses only the tokens that are tied.
    assert agreement(replace(own, near=near), reading(128, wrong=20)).n_near == 120
    assert agreement(replace(own, near=(frozenset({7, 8}),) * 128), turned).n_near == 116


def test_few_prompts_cannot_show_agreement() -> None:
    assert _short(agreement(reading(15), reading(15))) == [
        "base: 15 of 15 first tokens are the same or within 0.5 nats of it, 1.000 [0.796, 1.000], more than 0.9 wanted"
    ]
    assert _short(agreement(reading(64), reading(64))) == []


def test_an_effect_is_a_mean_over_tokens() -> None:
    assert effect([[-1.0], [-2.0, -4.0]], [[-2.0], [-2.0, -2.0]]) == pytest.approx(1.0)
    assert effect([], []) == 0.0


def test_what_is_said_token_by_token_must_be_what_is_read_at_once() -> None:
    own, engine = reading(128), reading(128, off=0.05)
    good = agreement(own, replace(engine, own=(((-1.0, -1.04), (-0.5, -0.5)),) * 128))
    assert (good.n_decoded, good.decoded_max) == (256, pytest.approx(0.04))
    assert good.decoded_mean == pytest.approx(0.02)
    assert _short(good) == []
    for bad in (0.3, 4.0, math.nan):
        told = _short(agreement(own, replace(engine, own=(((-1.0, -1.0 - bad), (-0.5, -0.5)),) * 128)))
        assert len(told) == 1 and "token by token" in told[0]
