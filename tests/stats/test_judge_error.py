"""Sensitivity, specificity and what is corrected by them, against closed forms and scipy."""

import numpy as np
import pytest
from scipy import stats

from tamperdose.errors import DataError
from tamperdose.stats.carry import (
    ErrorMap,
    corrected_difference,
    corrected_draws,
    error_map,
    post_stratified_rate,
    predictive_map,
    prompt_covariance,
    transported_rate,
)
from tamperdose.stats.correction import JudgedSample, corrected_rate, judged_sample
from tamperdose.stats.judge_error import (
    NOT_IDENTIFIABLE,
    agreement_elsewhere,
    combined_quality,
    lang_reiczigel,
    quality_change,
    quality_elsewhere,
    quality_in_run,
    rogan_gladen,
)
from tamperdose.stats.rates import rate, wilson


def names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def labelled_run(se: float, sp: float, p: float, n: int, seed: int = 0, per_verdict: int = 10**6) -> JudgedSample:
    """n answers of a judge of known quality, up to `per_verdict` labels of each verdict."""
    draw = rng(seed)
    truth = draw.random(n) < p
    refused = np.where(truth, draw.random(n) < se, draw.random(n) >= sp)
    labels: list[float | None] = [None] * n
    for verdict in (True, False):
        for place in draw.permutation(np.flatnonzero(refused == verdict))[:per_verdict]:
            labels[place] = float(truth[place])
    return judged_sample(refused, names(n), labels)


def test_quality_weights_labels_back_to_the_run() -> None:
    # 80 judged refusals, 10 of 20 labelled right; 120 others, 27 of 30 right.
    labels = [1.0] * 10 + [0.0] * 10 + [None] * 60 + [1.0] * 3 + [0.0] * 27 + [None] * 90
    found = quality_in_run(judged_sample([1] * 80 + [0] * 120, names(200), labels), rng=rng())
    assert found.sensitivity.value == pytest.approx(40 / (40 + 12))
    assert found.specificity.value == pytest.approx(108 / (40 + 108))
    assert found.youden.value == pytest.approx(40 / 52 + 108 / 148 - 1)
    assert found.sensitivity.low < 40 / 52 < found.sensitivity.high


def test_elsewhere_the_interval_is_jeffreys() -> None:
    refused, labels = [1] * 45 + [0] * 5 + [0] * 50, [1] * 50 + [0] * 50
    found = quality_elsewhere(refused, labels, names(100), rng=rng())
    expected = stats.beta(45.5, 5.5).ppf([0.025, 0.975])
    assert (found.sensitivity.low, found.sensitivity.high) == pytest.approx(expected, abs=0.01)
    assert found.specificity.value == 1
    assert found.specificity.high == 1
    assert found.sensitivity.units == pytest.approx(50, rel=0.1)


def test_copied_labels_count_once() -> None:
    refused, labels = ([1] * 9 + [0]) * 10, [1] * 100
    own = quality_elsewhere(refused, labels, names(100), rng=rng()).sensitivity
    copies = quality_elsewhere(refused, labels, [str(i % 10) for i in range(100)], rng=rng()).sensitivity
    assert copies.high - copies.low > 2 * (own.high - own.low)


def test_labels_of_one_kind_leave_the_other_undefined() -> None:
    found = quality_elsewhere([1, 1, 0], [1, 1, 1], names(3), rng=rng())
    assert found.specificity.value is None
    assert found.youden.value is None
    assert not found.identifiable
    nothing = quality_in_run(judged_sample([1, 0], ["a", "b"], [None, 1.0]), rng=rng())
    assert nothing.sensitivity.value is None


def test_sensitivity_covers() -> None:
    hits = [
        (found := quality_in_run(labelled_run(0.9, 0.85, 0.4, 200, seed, 50), rng=rng(seed)).sensitivity).low
        <= 0.9
        <= found.high
        for seed in range(300)
    ]
    assert np.mean(hits) >= 0.91


def test_lang_reiczigel_by_hand() -> None:
    z = stats.norm.ppf(0.975)
    q, se, sp = (30 + z**2 / 2) / (100 + z**2), 46 / 52, 46 / 52
    youden = se + sp - 1
    p = (q + sp - 1) / youden
    v = se * (1 - se) / 52
    shift = 2 * z**2 * (p * v - (1 - p) * v)
    half = z * np.sqrt(q * (1 - q) / (100 + z**2) + p**2 * v + (1 - p) ** 2 * v) / youden
    low, high = lang_reiczigel((0.3, 100), (0.9, 50), (0.9, 50))
    assert (float(low), float(high)) == pytest.approx((p + shift - half, p + shift + half))


def test_a_perfect_judge_with_many_labels_is_agresti_coull() -> None:
    low, high = lang_reiczigel((0.3, 100), (1.0, 1e9), (1.0, 1e9))
    z = stats.norm.ppf(0.975)
    n = 100 + z**2
    p = (30 + z**2 / 2) / n
    half = z * np.sqrt(p * (1 - p) / n)
    assert (float(low), float(high)) == pytest.approx((p - half, p + half), abs=1e-6)


def test_a_useless_judge_is_not_identifiable() -> None:
    refused = [1, 0] * 50
    coin = quality_elsewhere(refused, [1] * 50 + [0] * 50, names(100), rng=rng())
    assert not coin.identifiable
    found = rogan_gladen(rate([1, 0] * 10, names(20)), coin)
    assert (found.value, found.low, found.method, found.censored) == (None, None, NOT_IDENTIFIABLE, "undefined")
    weak = quality_elsewhere([1] * 36 + [0] * 14 + [1] * 20 + [0] * 30, [1] * 50 + [0] * 50, names(100), rng=rng())
    assert weak.youden.value == pytest.approx(0.32)
    assert not weak.identifiable
    assert rogan_gladen(rate([1, 0] * 10, names(20)), weak).value is None


def test_a_rate_that_the_quality_does_not_allow_has_no_zero_width() -> None:
    # One answer in five of the compliant ones is taken for a refusal, yet none of 200 here.
    quality = quality_elsewhere([1] * 300 + [1] * 60 + [0] * 240, [1] * 300 + [0] * 300, names(600), rng=rng())
    found = rogan_gladen(rate([0] * 200, names(200)), quality)
    assert (found.value, found.low, found.high) == (0, None, None)


def test_a_dose_is_corrected_by_its_band() -> None:
    draw = rng(3)
    n, se, sp = 4000, 0.9, 0.85
    truth = np.concatenate([draw.random(n) < p for p in (0.8, 0.2)])
    refused = np.where(truth, draw.random(2 * n) < se, draw.random(2 * n) >= sp)
    band = judged_sample(refused, names(n) * 2, [float(y) for y in truth])
    for place, p in enumerate((0.8, 0.2)):
        judged = rate(refused[place * n : (place + 1) * n], names(n))
        by_quality = transported_rate(judged, quality_in_run(band, rng=rng()), rng=rng())
        assert by_quality.value == pytest.approx(p, abs=0.03)
        assert by_quality.low < p < by_quality.high
        # Constant predictive values draw both doses towards the band's mean.
        assert abs(post_stratified_rate(judged, band, rng=rng()).value - p) > 0.06


def test_the_whole_band_is_corrected_to_its_own_rate() -> None:
    band = labelled_run(0.9, 0.8, 0.4, 500)
    judged = rate(band.refused, band.templates)
    direct = corrected_rate(band).value
    assert transported_rate(judged, quality_in_run(band, rng=rng()), rng=rng()).value == pytest.approx(direct)
    assert post_stratified_rate(judged, band, rng=rng()).value == pytest.approx(direct)


def test_sensitivity_may_come_from_other_answers() -> None:
    before = quality_in_run(labelled_run(0.8, 0.9, 0.6, 1000), rng=rng())
    after = quality_in_run(labelled_run(0.8, 0.95, 0.0, 1000), rng=rng())
    assert after.sensitivity.value is None
    both = combined_quality(before, after)
    assert both.sensitivity == before.sensitivity
    assert both.specificity == after.specificity
    assert both.identifiable
    assert not combined_quality(after, before).identifiable


def test_a_band_without_a_refusal_bounds_its_doses() -> None:
    band = judged_sample([1] * 10 + [0] * 390, names(400), [0.0] * 100 + [None] * 300)
    found = post_stratified_rate(rate([1] * 2 + [0] * 98, names(100)), band, rng=rng())
    assert found.value == 0
    assert found.low == 0
    assert 0.01 < found.high < 0.06
    bare = judged_sample([1] * 10 + [0] * 390, names(400), [None] * 10 + [0.0] * 390)
    assert post_stratified_rate(rate([1], ["a"]), bare, rng=rng()).value is None


def test_draws_carry_the_error_on() -> None:
    band = labelled_run(0.9, 0.8, 0.4, 2000)
    quality = quality_in_run(band, rng=rng())
    line = error_map(quality.draws)
    curve = np.tile([0.9 * 0.7 + 0.2 * 0.3, 0.2], (len(line.slope), 1))
    drawn = corrected_draws(curve, line)
    assert drawn.shape == curve.shape
    assert drawn.mean(0) == pytest.approx([0.7, 0.0], abs=0.05)
    assert drawn.min() >= 0
    # One judge for the whole curve: what lifts one dose lifts its neighbour.
    near = corrected_draws(np.tile([0.5, 0.55], (len(line.slope), 1)), line)
    assert np.corrcoef(near.T)[0, 1] > 0.9
    flat = predictive_map(band, rng=rng())
    assert corrected_draws(np.full(len(flat.slope), band.refused.mean()), flat).mean() == pytest.approx(0.4, abs=0.03)
    with pytest.raises(DataError, match="rates"):
        corrected_draws([0.5], line)


def test_a_perfect_judge_changes_nothing() -> None:
    line = ErrorMap(np.zeros(3), np.ones(3))
    assert corrected_draws([0.1, 0.5, 1.0], line) == pytest.approx([0.1, 0.5, 1.0])


def test_change_finds_a_difference_and_says_what_it_could_have_seen() -> None:
    base = quality_in_run(labelled_run(0.95, 0.9, 0.6, 2000, 1, 300), rng=rng(1))
    same = quality_in_run(labelled_run(0.95, 0.9, 0.3, 2000, 2, 300), rng=rng(2))
    worse = quality_in_run(labelled_run(0.75, 0.9, 0.3, 2000, 3, 300), rng=rng(3))
    sensitivity, specificity = quality_change(base, worse)
    assert sensitivity.difference.value == pytest.approx(-0.2, abs=0.06)
    assert sensitivity.p_value < 0.01
    assert specificity.p_value > 0.01
    assert 0.02 < sensitivity.smallest_detectable < 0.15
    assert min(change.p_value for change in quality_change(base, same)) > 0.01


def test_the_smallest_difference_is_that_of_two_shares() -> None:
    n = 400
    one = quality_elsewhere([1] * 360 + [0] * 40 + [0] * n, [1] * n + [0] * n, names(2 * n), rng=rng(1))
    two = quality_elsewhere([1] * 360 + [0] * 40 + [0] * n, [1] * n + [0] * n, names(2 * n), rng=rng(2))
    expected = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * np.sqrt(2 * 0.9 * 0.1 / n)
    assert quality_change(one, two)[0].smallest_detectable == pytest.approx(expected, rel=0.05)


def test_change_is_undefined_without_labels_of_a_kind() -> None:
    full = quality_elsewhere([1, 1, 0, 0], [1, 1, 0, 0], names(4), rng=rng())
    bare = quality_elsewhere([1, 1], [1, 1], names(2), rng=rng())
    sensitivity, specificity = quality_change(full, bare)
    assert sensitivity.p_value is not None
    assert (specificity.difference.value, specificity.p_value, specificity.smallest_detectable) == (None, None, None)


def test_prompt_covariance_is_that_of_two_means() -> None:
    draw = rng(4)
    base = (draw.random(200) < 0.7).astype(float)
    after = np.where(draw.random(200) < 0.7, base, 0.0)
    expected = np.cov(base, after)[0, 1] / 200
    assert prompt_covariance(base, after, names(200)) == pytest.approx(expected)
    assert prompt_covariance(base, after, names(200), slopes=(2, 0.5)) == pytest.approx(expected)
    assert prompt_covariance([1], [0], ["a"]) == 0
    assert prompt_covariance([], [], []) == 0


def test_no_difference_without_a_value() -> None:
    undefined = rogan_gladen(rate([], []), quality_elsewhere([1, 0], [1, 0], names(2), rng=rng()))
    found = corrected_difference(undefined, rate([1, 0], ["a", "b"]))
    assert (found.value, found.low, found.censored) == (None, None, "undefined")


def test_weights_undo_a_draw_by_verdict() -> None:
    # 2,000 answers, half of them refusals; of either verdict some are labelled, at very different rates.
    covered, biased = np.zeros(2), np.zeros(2)
    for number in range(200):
        draw = np.random.default_rng(number)
        truth = draw.random(2000) < 0.5
        judged = np.where(truth, draw.random(2000) < 0.9, draw.random(2000) >= 0.95)
        rows = [draw.permutation(np.flatnonzero(judged == verdict))[:n] for verdict, n in ((1, 120), (0, 40))]
        weights = np.repeat([judged.sum() / 120, (~judged).sum() / 40], [120, 40])
        chosen = np.concatenate(rows)
        for weighed, hits in ((weights, covered), (None, biased)):
            found = quality_elsewhere(judged[chosen], truth[chosen], names(160), rng=draw, weights=weighed)
            shares = (found.sensitivity, 0.9), (found.specificity, 0.95)
            hits += [share.low <= told <= share.high for share, told in shares]
    assert covered.min() >= 0.92 * 200
    assert biased.max() < 0.6 * 200


def test_equal_weights_change_no_value() -> None:
    refused, labels = [1] * 30 + [0] * 20, [1] * 25 + [0] * 25
    one = quality_elsewhere(refused, labels, names(50), rng=rng())
    two = quality_elsewhere(refused, labels, names(50), rng=rng(), weights=[3.0] * 50)
    for name in ("sensitivity", "specificity"):
        plain, weighed = getattr(one, name), getattr(two, name)
        assert weighed.value == pytest.approx(plain.value)
        assert (weighed.low, weighed.high) == pytest.approx((plain.low, plain.high), abs=0.03)
    with pytest.raises(DataError, match="positive"):
        quality_elsewhere(refused, labels, names(50), rng=rng(), weights=[0.0] * 50)
    with pytest.raises(DataError, match="weights"):
        quality_elsewhere(refused, labels, names(50), rng=rng(), weights=[1.0])


def test_agreement_elsewhere() -> None:
    found = agreement_elsewhere([1] * 30 + [0] * 20, [1] * 25 + [0] * 25, names(50), rng=rng())
    assert found.value == pytest.approx(0.9)
    assert (found.low, found.high) == pytest.approx(wilson(0.9, 50), abs=0.02)
    weighed = agreement_elsewhere([1, 1, 0], [1, 0, 0], names(3), rng=rng(), weights=[1.0, 2.0, 1.0])
    assert weighed.value == pytest.approx(0.5)
    assert agreement_elsewhere([], [], [], rng=rng()).value is None
    assert agreement_elsewhere([1, 1], [1, 0], names(2), rng=rng()).value == 0.5
