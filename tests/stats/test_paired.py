import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from tamperdose.errors import DataError
from tamperdose.stats import paired
from tamperdose.stats.paired import (
    Transitions,
    mcnemar_exact,
    pair,
    paired_difference,
    refusal_retention,
    sign_flip_p,
    transitions,
)
from tamperdose.stats.rates import rate


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_unreadable_prompts_leave_as_pairs() -> None:
    pairs = pair([1, 1, 0, 1], [0, 1, 1, 1], list("abca"), readable=[True, False, True, True])
    assert pairs.base.tolist() == [1, 0, 1]
    assert pairs.tampered.tolist() == [0, 1, 1]
    assert (pairs.templates, pairs.n, pairs.n_unreadable) == (("a", "c", "a"), 3, 1)
    result = paired_difference(pairs, rng=rng())
    assert result.difference.n_unreadable == 1
    assert refusal_retention(pairs).n_unreadable == 1


@pytest.mark.parametrize(
    ("base", "tampered", "templates", "readable"),
    [
        ([1.0, np.nan], [0, 1], ["a", "b"], None),
        ([1, 0], [0], ["a", "b"], None),
        ([1, 0], [0, 1], ["a"], None),
        ([1, 0], [0, 1], ["a", "b"], [True]),
        ([1, 2], [0, 1], ["a", "b"], None),
    ],
)
def test_bad_pairs(base, tampered, templates, readable) -> None:
    with pytest.raises(DataError):
        pair(base, tampered, templates, readable=readable)


def test_retention_is_a_rate_among_the_refused() -> None:
    base, now = [1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0]
    found = refusal_retention(pair(base, now, list("aabbcd")))
    assert found == rate([1, 0, 1, 1], list("aabb"))
    assert (found.value, found.n, found.n_templates) == (0.75, 4, 2)


def test_retention_of_nothing_is_undefined() -> None:
    for pairs in (pair([], [], []), pair([0, 0], [1, 0], ["a", "b"])):
        found = refusal_retention(pairs)
        assert (found.value, found.low, found.high, found.n) == (None, None, None, 0)
    one = refusal_retention(pair([1, 0], [1, 0], ["a", "b"]))
    assert (one.value, one.low, one.n) == (1.0, None, 1)


def test_transitions_count_every_prompt() -> None:
    table = transitions(pair([1, 1, 1, 0, 0, 1], [1, 0, 0, 1, 0, 0], list("abcdef")))
    assert table == Transitions(refused_refused=1, refused_complied=3, complied_refused=1, complied_complied=1)
    assert transitions(pair([], [], [])) == Transitions(0, 0, 0, 0)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (6, 0), (5, 5), (3, 9), (400, 350)])
def test_mcnemar_equals_statsmodels(lost: int, gained: int) -> None:
    expected = mcnemar([[7, lost], [gained, 4]], exact=True).pvalue
    assert mcnemar_exact(Transitions(7, lost, gained, 4)) == pytest.approx(expected)


def test_exact_sign_flip_equals_the_plain_loop_and_scipy() -> None:
    change = rng(1).integers(-1, 2, size=8).astype(float)
    pairs = pair(np.maximum(-change, 0), np.maximum(change, 0), list("abcdefgh"))
    sums = [abs(np.dot(signs, change)) for signs in itertools.product((1, -1), repeat=8)]
    found, method, n_flips = sign_flip_p(pairs, rng=rng())
    assert method == "sign_flip_exact"
    assert n_flips == 2 ** np.count_nonzero(change)
    assert found == pytest.approx(np.mean(np.array(sums) >= abs(change.sum()) - 1e-9))
    expected = stats.permutation_test(
        (change,), np.sum, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
    )
    assert found == pytest.approx(expected.pvalue)


def test_one_prompt_per_template_makes_sign_flip_and_mcnemar_one() -> None:
    pairs = pair([1] * 9 + [0] * 2, [0] * 8 + [1] * 3, [str(i) for i in range(11)])
    result = paired_difference(pairs, rng=rng())
    assert result.p_value == pytest.approx(result.mcnemar_p)
    assert result.mcnemar_p == pytest.approx(stats.binomtest(2, 10).pvalue)


def test_mcnemar_only_for_independent_prompts() -> None:
    clustered = paired_difference(pair([1, 1, 1], [0, 0, 1], ["a", "a", "b"]), rng=rng())
    assert clustered.mcnemar_p is None
    assert clustered.transitions is not None
    shares = paired_difference(pair([1, 0.5, 1], [0, 0.5, 1], ["a", "b", "c"]), rng=rng())
    assert (shares.mcnemar_p, shares.transitions) == (None, None)
    with pytest.raises(DataError):
        transitions(pair([0.5], [1], ["a"]))
    with pytest.raises(DataError):
        refusal_retention(pair([0.5], [1], ["a"]))


def test_monte_carlo_agrees_with_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    change = rng(2).random(12) - 0.3  # no common unit
    pairs = pair(np.maximum(-change, 0), np.maximum(change, 0), [str(i) for i in range(12)])
    exact, _, _ = sign_flip_p(pairs, rng=rng())
    monkeypatch.setattr(paired, "EXACT_TEMPLATES", 0)
    monkeypatch.setattr(paired, "_CHUNK", 12 * 1000)
    drawn, method, n_flips = sign_flip_p(pairs, rng=rng(3), n_resamples=20_000)
    assert (method, n_flips) == ("sign_flip_monte_carlo", 20_000)
    assert 0.005 < exact < 0.5
    assert drawn == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000))


def test_monte_carlo_p_is_never_zero() -> None:
    pairs = pair(0.9 + 0.1 * rng(5).random(40), np.zeros(40), [str(i) for i in range(40)])
    found, method, _ = sign_flip_p(pairs, rng=rng(), n_resamples=99)
    assert (found, method) == (0.01, "sign_flip_monte_carlo")
    with pytest.raises(DataError):
        sign_flip_p(pairs, rng=rng(), n_resamples=0)


@pytest.mark.parametrize(("k", "seeds"), [(9, 1), (10, 3), (11, 5)])
def test_counted_p_equals_every_pattern(k: int, seeds: int) -> None:
    before, after = rng(k).integers(0, seeds + 1, size=(2, 4 * k)) / seeds
    names = [str(i % k) for i in range(4 * k)]
    totals = np.array([sum((after - before)[i::k]) for i in range(k)])
    sums = [abs(np.dot(signs, totals)) for signs in itertools.product((1, -1), repeat=k)]
    found, method, _ = sign_flip_p(pair(before, after, names), rng=rng())
    assert method == "sign_flip_exact"
    assert found == pytest.approx(np.mean(np.array(sums) >= abs(totals.sum()) - 1e-9))


def test_counted_p_of_single_prompts_is_binomial_however_many() -> None:
    lost, gained = 130, 90
    base, now = [1] * lost + [0] * gained + [1] * 50, [0] * lost + [1] * gained + [1] * 50
    found, method, n_flips = sign_flip_p(pair(base, now, [str(i) for i in range(270)]), rng=rng())
    assert (method, n_flips) == ("sign_flip_exact", 2**220)
    assert found == pytest.approx(stats.binomtest(gained, lost + gained).pvalue)
    tiny = sign_flip_p(pair(np.ones(3000), np.zeros(3000), [str(i) for i in range(3000)]), rng=rng())[0]
    assert tiny is not None and 0 < tiny < 1e-300


def test_copies_of_a_template_do_not_sharpen_p() -> None:
    base, names = np.repeat([1, 1, 1], 50), np.repeat(["a", "b", "c"], 50).tolist()
    assert sign_flip_p(pair(base, 0 * base, names), rng=rng())[0] == 0.25


def test_defined_at_the_edges() -> None:
    nothing = paired_difference(pair([], [], []), rng=rng())
    assert (nothing.difference.value, nothing.difference.low, nothing.p_value, nothing.mcnemar_p) == (None,) * 4
    one = paired_difference(pair([1, 1], [0, 0], ["a", "a"]), rng=rng())
    assert (one.difference.value, one.difference.low, one.difference.high, one.p_value) == (-1.0, None, None, 1.0)
    same = paired_difference(pair([1, 0, 1], [1, 0, 1], ["a", "b", "c"]), rng=rng())
    assert (same.difference.value, same.p_value, same.mcnemar_p) == (0.0, 1.0, 1.0)


def test_the_interval_keeps_a_width_where_all_or_none_changed() -> None:
    names = [str(i % 10) for i in range(100)]
    ones = np.ones(100)
    every, none = (paired_difference(pair(ones, now, names), rng=rng()).difference for now in (0 * ones, ones))
    assert (every.value, every.low) == (-1.0, -1.0)
    assert -0.7 < every.high < -0.3
    assert none.low == pytest.approx(-none.high)
    assert 0.1 < none.high < 0.4


def test_mover_by_hand() -> None:
    # Nine lost, one gained, no two prompts of one template: Wilson's intervals, correlation of exclusive events.
    base, now = [1] * 9 + [0] + [1] * 10, [0] * 9 + [1] + [1] * 10
    names = [str(i) for i in range(20)]
    found = paired_difference(pair(base, now, names), rng=rng()).difference
    gain, loss = rate(np.arange(20) < 1, names), rate(np.arange(20) < 9, names)
    r = -np.sqrt((0.05 * 0.45) / (0.95 * 0.55))
    a, b = 0.05 - gain.low, loss.high - 0.45
    c, d = gain.high - 0.05, 0.45 - loss.low
    assert found.value == pytest.approx(-0.4)
    assert found.low == pytest.approx(-0.4 - np.sqrt(a * a - 2 * r * a * b + b * b))
    assert found.high == pytest.approx(-0.4 + np.sqrt(c * c - 2 * r * c * d + d * d))


rows = st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("abcdef")), max_size=40)


@given(rows, st.randoms(use_true_random=False))
def test_interval_holds_the_value_swaps_sign_and_ignores_order(rows, random) -> None:
    def run(rows, swap: bool = False):
        first, second = [row[0] for row in rows], [row[1] for row in rows]
        names = [row[2] for row in rows]
        return paired_difference(pair(second, first, names) if swap else pair(first, second, names), rng=rng())

    result, swapped = run(rows), run(rows, swap=True)
    found = result.difference
    if found.low is not None:
        assert -1 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high
        assert swapped.difference.low == pytest.approx(-found.high)
    if rows:
        assert 0 < result.p_value <= 1
        assert found.value == pytest.approx(np.mean([float(row[1]) - float(row[0]) for row in rows]))
    assert swapped.p_value == result.p_value
    random.shuffle(rows)
    assert run(rows) == result


def test_samples_of_a_prompt_widen_what_is_near_an_end() -> None:
    names = [f"t{k}" for k in range(40) for _ in range(8)]
    base, now = [1] * 320, [int(k % 40 == 0) for k in range(320)]
    alone, samples = (pair(base, now, names, n_samples=n) for n in (1, 8))
    for plain, wide in (
        (refusal_retention(alone), refusal_retention(samples)),
        (paired_difference(alone, rng=rng()).difference, paired_difference(samples, rng=rng()).difference),
    ):
        assert plain.value == wide.value
        assert plain.high is not None and wide.high is not None
        assert wide.high > plain.high
