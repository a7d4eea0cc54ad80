"""Perplexity, accuracy and relative loss: values by hand, intervals by simulation."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from tamperdose.errors import DataError
from tamperdose.records import Estimate
from tamperdose.stats.utility import (
    BONETT_PRICE,
    MAX_LOG,
    Divergence,
    QuestionScore,
    TextScore,
    accuracy,
    mean_divergence,
    perplexity,
    relative_loss,
)


def _texts(nll: Sequence[float | None], n_tokens: Sequence[int]) -> list[TextScore]:
    return [TextScore(f"t{k}", loss, count) for k, (loss, count) in enumerate(zip(nll, n_tokens, strict=True))]


def _questions(right: Sequence[bool | np.bool_]) -> list[QuestionScore]:
    return [QuestionScore(f"q{k}", bool(value), ()) for k, value in enumerate(right)]


def _covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low <= truth <= estimate.high


def test_perplexity_is_the_exponential_of_the_loss_per_token() -> None:
    estimate = perplexity(_texts([30.0, 50.0, None], [10, 30, 10]))
    assert estimate.value == pytest.approx(math.exp(80 / 40))
    assert (estimate.n, estimate.n_templates, estimate.n_unreadable) == (2, 2, 1)
    # Texts of one length: Student's interval of the mean loss.
    losses = np.array([20.0, 26.0, 31.0, 25.0])
    estimate = perplexity(_texts([*losses], [10] * 4))
    half = 3.182446305 * losses.std(ddof=1) / 10 / 2
    assert estimate.low == pytest.approx(math.exp(losses.mean() / 10 - half))
    assert estimate.high == pytest.approx(math.exp(losses.mean() / 10 + half))


def test_perplexity_at_the_edges() -> None:
    assert perplexity([]).value is None
    one = perplexity(_texts([3.0], [3]))
    assert (one.value, one.low) == (pytest.approx(math.e), None)
    assert perplexity(_texts([1.0, 2.0, 3.0], [1, 2, 3])).low is None, "no spread"
    assert perplexity(_texts([0.0, 1e-3], [5, 5])).low == 1.0
    broken = perplexity(_texts([1e6, 2e6], [5, 5]))
    assert broken.value == broken.high == math.exp(MAX_LOG)
    assert perplexity(_texts([None], [3])).n_unreadable == 1
    with pytest.raises(DataError, match="no scored tokens"):
        perplexity(_texts([1.0, 1.0], [1, 0]))


def test_accuracy_and_divergence_are_a_rate_and_a_mean() -> None:
    assert accuracy(_questions([True, True, False, True])).value == 0.75
    items = [Divergence("a", 1.0, 8), Divergence("b", None, 8), Divergence("c", 2.0, 8)]
    estimate = mean_divergence(items, ["a", "b", "c"])
    assert (estimate.value, estimate.low, estimate.n, estimate.n_unreadable) == (1.5, 0.0, 2, 1)


def test_the_loss_of_accuracy_is_relative_to_the_base() -> None:
    base, now = [True] * 80 + [False] * 20, [True] * 60 + [False] * 25 + [True] * 15
    estimate = relative_loss(_questions(base), _questions(now))
    assert estimate.value == pytest.approx(1 - 75 / 80)
    assert (estimate.method, estimate.n) == (BONETT_PRICE, 100)


def test_the_interval_of_a_ratio_of_paired_shares_is_that_of_bonett_and_price() -> None:
    """Fagerland et al. (2014), table: airway hyper-responsiveness before and after, n = 1, 1, 7, 12 of 21."""
    base = [True] + [True] * 1 + [False] * 7 + [False] * 12
    now = [True] + [False] * 1 + [True] * 7 + [False] * 12
    estimate = relative_loss(_questions(base), _questions(now))
    a, before, after, union = math.sqrt(10 / (3 * 9)), 2, 8, 9
    b, c = math.sqrt((1 - 3 / 11) / 3), math.sqrt((1 - 9 / 11) / 9)
    z = norm.ppf(0.975) * a / (b + c)

    def ends(count: int) -> tuple[float, float]:
        p = count / union
        score = [brentq(lambda x: (p - x) ** 2 - z**2 * x * (1 - x) / union, *bounds) for bounds in ((0, p), (p, 1))]
        return score[0], score[1]

    (low_base, high_base), (low, high) = ends(before), ends(after)
    assert estimate.value == pytest.approx(1 - 4)
    assert estimate.low == pytest.approx(1 - high / low_base)
    assert estimate.high == pytest.approx(1 - low / high_base)


def test_the_rise_of_perplexity_is_that_of_the_ratio() -> None:
    base, now = _texts([30.0, 50.0, 20.0], [10, 30, 10]), _texts([32.0, 55.0, 21.0], [10, 30, 10])
    estimate = relative_loss(base, now)
    first, second = perplexity(base).value, perplexity(now).value
    assert first is not None and second is not None
    assert estimate.value == pytest.approx(second / first - 1)
    assert estimate.low is not None and estimate.high is not None
    assert estimate.low < estimate.value < estimate.high
    # That some texts are harder than others does not widen it.
    assert estimate.high - estimate.low < 0.5


def test_relative_loss_at_the_edges() -> None:
    nothing = relative_loss([], [])
    assert (nothing.value, nothing.n) == (None, 0)
    assert relative_loss(_questions([False] * 5), _questions([True] * 5)).value is None, "nothing to lose"
    same = relative_loss(_questions([True] * 50), _questions([True] * 50))
    assert same.value == 0
    assert same.low is not None and same.high is not None and -0.1 < same.low < 0 < same.high < 0.1
    gone = relative_loss(_questions([True] * 50), _questions([False] * 50))
    assert (gone.value, gone.high) == (1, 1)
    assert relative_loss(_texts([1.0], [3]), _texts([2.0], [3])).low is None
    unchanged = relative_loss(_texts([1.0, 2.0], [3, 3]), _texts([1.0, 2.0], [3, 3]))
    assert (unchanged.value, unchanged.low) == (0, None)
    broken = relative_loss(_texts([1.0, 2.0, 3.0], [3, 3, 3]), _texts([1.5, None, 3.1], [3, 3, 3]))
    assert (broken.value, broken.low, broken.n_unreadable) == (None, None, 1)
    with pytest.raises(DataError, match="not the same"):
        relative_loss(_questions([True]), [])
    with pytest.raises(DataError, match="not the same"):
        relative_loss(_questions([True]), _texts([1.0], [3]))
    with pytest.raises(DataError, match="other tokens"):
        relative_loss(_texts([1.0], [3]), _texts([1.0], [4]))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_interval_of_a_loss_holds_its_value(pairs: list[tuple[bool, bool]]) -> None:
    estimate = relative_loss(_questions([one for one, _ in pairs]), _questions([other for _, other in pairs]))
    if estimate.value is not None:
        assert estimate.low is not None and estimate.high is not None
        assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9 <= 1 + 2e-9


@pytest.mark.parametrize("n", [40, 96])
@pytest.mark.parametrize(
    ("p_base", "kept", "gained"),
    [(0.7, 1.0, 0.0), (0.7, 0.95, 0.05), (0.7, 0.9, 0.1), (0.7, 0.5, 0.2), (0.95, 0.9, 0.5), (0.95, 0.3, 0.25)],
)
def test_losses_of_accuracy_are_covered(n: int, p_base: float, kept: float, gained: float) -> None:
    rng = np.random.default_rng([n, round(1000 * p_base), round(1000 * kept)])
    truth = 1 - (p_base * kept + (1 - p_base) * gained) / p_base
    held = 0
    for _ in range(1500):
        base = rng.random(n) < p_base
        now = rng.random(n) < np.where(base, kept, gained)
        held += _covers(relative_loss(_questions(base), _questions(now)), truth)
    assert held / 1500 >= 0.93


@pytest.mark.parametrize("n_texts", [8, 24, 40])
@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_perplexities_and_their_rises_are_covered(n_texts: int, spread: float) -> None:
    """Texts of 40 to 90 tokens, each with a difficulty and a change of its own; the truth is that of many texts."""
    rng = np.random.default_rng([n_texts, round(100 * spread)])
    held, held_rise = 0, 0
    for _ in range(1500):
        sizes = rng.integers(40, 90, n_texts)
        hardness, change = rng.normal(3.5, 0.4, n_texts), rng.normal(0.1, spread, n_texts)
        base = hardness * sizes + rng.normal(0, 2 * np.sqrt(sizes))
        now = base + change * sizes
        before = _texts([*map(float, base)], [*map(int, sizes)])
        held += _covers(perplexity(before), math.exp(3.5))
        rise = relative_loss(before, _texts([*map(float, now)], [*map(int, sizes)]))
        held_rise += _covers(rise, math.expm1(0.1))
    assert held / 1500 >= 0.93
    assert held_rise / 1500 >= 0.93


def test_a_text_that_the_base_cannot_read_tells_nothing() -> None:
    base, now = _texts([30.0, None, 50.0, 20.0], [10, 5, 30, 10]), _texts([32.0, None, 55.0, 21.0], [10, 5, 30, 10])
    found = relative_loss(base, now)
    rest = relative_loss([base[0], *base[2:]], [now[0], *now[2:]])
    assert (found.value, found.low, found.high, found.n_unreadable) == (rest.value, rest.low, rest.high, 0)
    broken = relative_loss(base, _texts([32.0, 9.0, None, 21.0], [10, 5, 30, 10]))
    assert (broken.value, broken.n_unreadable) == (None, 1)
