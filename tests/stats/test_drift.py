import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial.distance import cosine

from tamperdose.errors import DataError
from tamperdose.stats import drift
from tamperdose.stats.drift import cosine_distances, definition_zero, iqr_drift, mean_drift, median_drift


def singles(n: int) -> list[str]:
    return [f"{i:05d}" for i in range(n)]


def test_cosine_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    base, tampered = rng.normal(size=(2, 20, 7))
    expected = [cosine(a, b) for a, b in zip(base, tampered, strict=True)]
    np.testing.assert_allclose(cosine_distances(base, tampered), expected, atol=1e-14)


def test_identical_rows_are_exactly_zero_in_float32_too() -> None:
    rows = np.random.default_rng(1).normal(size=(500, 384)).astype(np.float32)
    assert np.all(cosine_distances(rows, rows.copy()) == 0.0)
    assert cosine_distances(np.zeros((0, 384)), np.zeros((0, 384))).shape == (0,)


@pytest.mark.parametrize(
    ("base", "tampered"),
    [
        ([[0.0, 0.0]], [[1.0, 0.0]]),
        ([[0.0, 0.0]], [[0.0, 0.0]]),
        ([[1.0, np.nan]], [[1.0, 0.0]]),
        ([[1.0, 0.0]], [[1.0, np.inf]]),
        ([[1.0, 0.0]], [[1.0, 0.0, 0.0]]),
        ([1.0, 0.0], [1.0, 0.0]),
        (np.ones((2, 0)), np.ones((2, 0))),
    ],
)
def test_no_direction_no_distance(base: list[list[float]], tampered: list[list[float]]) -> None:
    with pytest.raises(DataError):
        cosine_distances(base, tampered)


vectors = arrays(np.float64, (4, 3), elements=st.floats(-1e300, 1e300, allow_subnormal=False)).filter(
    lambda a: np.all(np.any(a != 0, axis=1))
)


@given(vectors, vectors)
def test_distances_stay_in_range_and_are_symmetric(base: np.ndarray, tampered: np.ndarray) -> None:
    found = cosine_distances(base, tampered)
    assert np.all((found >= 0) & (found <= 2))
    np.testing.assert_allclose(found, cosine_distances(tampered, base), atol=1e-12)
    np.testing.assert_allclose(found, cosine_distances(base / 4, tampered), atol=1e-12)
    np.testing.assert_allclose(cosine_distances(base, -base), 2.0)


@pytest.mark.parametrize("n", [6, 7, 25, 100, 501])
def test_median_interval_of_independent_prompts_is_the_exact_binomial_one(n: int) -> None:
    values = np.random.default_rng(n).random(n)
    found = median_drift(values, singles(n))
    ordered = np.sort(values)
    share = stats.binomtest(n // 2, n).proportion_ci(0.95).low if n % 2 == 0 else None
    rank = int(np.searchsorted(ordered, found.low)) + 1
    assert found.high == ordered[n - rank]
    # The order statistics of this rank cover at least 95 %.
    assert 1 - 2 * stats.binom.cdf(rank - 1, n, 0.5) >= 0.95
    if share is not None:
        assert rank == max(1, int(share * n))


@pytest.mark.parametrize(
    ("values", "templates", "value"),
    [
        ([], [], None),
        ([0.4], ["a"], 0.4),
        ([0.2, 0.4], ["a", "a"], 0.3),
        ([0.1, 0.2, 0.3, 0.4, 0.5], list("abcde"), 0.3),
    ],
)
def test_no_median_interval_where_none_can_hold_the_level(
    values: list[float], templates: list[str], value: float | None
) -> None:
    for found in (median_drift(values, templates), iqr_drift(values, templates, rng=np.random.default_rng(0))):
        assert found.low is None
        assert found.high is None
    found = median_drift(values, templates)
    assert found.value == (None if value is None else pytest.approx(value))
    assert found.n_templates == len(set(templates))


def test_a_lower_level_needs_fewer_prompts() -> None:
    found = median_drift([0.1, 0.2, 0.3, 0.4, 0.5], list("abcde"), level=0.9)
    assert (found.low, found.high) == (0.1, 0.5)


def test_ten_copies_of_ten_prompts_count_ten() -> None:
    values = np.random.default_rng(2).random(10)
    once, many = (
        median_drift(values, singles(10)),
        median_drift(np.repeat(values, 10), np.repeat(singles(10), 10).tolist()),
    )
    assert many.n_effective == pytest.approx(10)
    ordered = np.sort(values)
    # Of ten values the second to the ninth cover the median with 0.979, the third to the eighth with 0.891.
    assert once.low <= many.low <= ordered[1]
    assert ordered[8] <= many.high <= once.high


def test_nothing_changed() -> None:
    zeros, names = np.zeros(100), np.repeat(singles(10), 10).tolist()
    found = median_drift(zeros, names)
    assert (found.value, found.low, found.high, found.n_effective) == (0.0, 0.0, 0.0, 10)
    mean, spread = mean_drift(zeros, names), iqr_drift(zeros, names, rng=np.random.default_rng(0))
    assert (mean.value, mean.low, mean.high) == (0.0, None, None)
    assert (spread.value, spread.low, spread.high) == (0.0, None, None)


def test_values_are_numpys() -> None:
    values = np.random.default_rng(3).random(37) * 2
    names = [str(i % 8) for i in range(37)]
    assert median_drift(values, names).value == np.median(values)
    assert mean_drift(values, names).value == pytest.approx(values.mean())
    found = iqr_drift(values, names, rng=np.random.default_rng(0))
    assert found.value == pytest.approx(stats.iqr(values))
    assert found.low <= found.value <= found.high


def test_resampled_iqr_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    values, names = rng.random(23), [str(i % 7) for i in range(23)]
    groups = drift.group(values, names)
    # Small pieces, so that the seams between them are tried.
    monkeypatch.setattr(drift, "_CHUNK", 23 * 300)
    monkeypatch.setattr(drift, "N_RESAMPLES", 700)
    found = drift._resampled_iqr(groups, np.random.default_rng(5))
    again, expected = np.random.default_rng(5), []
    for start in range(0, drift.N_RESAMPLES, 300):
        for draw in again.integers(7, size=(min(300, drift.N_RESAMPLES - start), 7)):
            expected.append(stats.iqr(np.concatenate([groups.values[groups.codes == code] for code in draw])))
    np.testing.assert_allclose(found, expected, atol=1e-12)


rows = st.lists(st.tuples(st.floats(0, 2), st.sampled_from("abcdefgh")), min_size=1, max_size=50)


@given(rows, st.randoms(use_true_random=False))
def test_median_lies_inside_and_order_has_no_say(rows: list[tuple[float, str]], random) -> None:
    found = median_drift([value for value, _ in rows], [name for _, name in rows])
    if found.low is not None:
        assert 0 <= found.low <= found.value <= found.high <= 2
    random.shuffle(rows)
    assert median_drift([value for value, _ in rows], [name for _, name in rows]) == found


def test_iqr_interval_ignores_order_and_repeats_under_a_seed() -> None:
    rng = np.random.default_rng(6)
    values, names = rng.random(60), np.array([str(i % 12) for i in range(60)])
    order = rng.permutation(60)
    first = iqr_drift(values, names.tolist(), rng=np.random.default_rng(7))
    assert iqr_drift(values[order], names[order].tolist(), rng=np.random.default_rng(7)) == first
    assert iqr_drift(values, names.tolist(), rng=np.random.default_rng(8)) != first


@pytest.mark.parametrize("bad", [[0.1, np.nan], [0.1, 2.1], [-0.1, 0.2], [0.1]])
def test_bad_distances(bad: list[float]) -> None:
    for function in (median_drift, mean_drift):
        with pytest.raises(DataError):
            function(bad, ["a", "b"])
    with pytest.raises(DataError):
        iqr_drift(bad, ["a", "b"], rng=np.random.default_rng(0))


def test_dose_zero_is_a_definition() -> None:
    found = definition_zero(["a", "a", "b"], level=0.9)
    assert (found.value, found.low, found.high, found.method) == (0.0, None, None, "definition")
    assert (found.n, found.n_templates, found.n_effective, found.level) == (3, 2, None, 0.9)
    assert definition_zero([]).value is None
