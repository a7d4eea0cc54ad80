"""Planted states of known truth: a rotation, equal and separated kinds, and simulated coverage."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, norm

from tamperdose.errors import DataError
from tamperdose.stats.direction_drift import (
    Layout,
    add_states,
    affinities,
    direction_auc,
    direction_drift,
    group_counts,
    hanley_mcneil,
    lay_out,
    longer_than_noise,
    newcombe,
    products,
)

Floats = NDArray[np.float64]
RNG = np.random.default_rng(0)
D = 24


def _layout(n: int = 40, k: int = 20) -> Layout:
    return lay_out([f"h{i % k}" for i in range(n)], [f"b{i % k}" for i in range(n)])


def _sums(states: Floats, layout: Layout) -> Floats:
    """Sums of states (n, hidden), as one layer."""
    sums = np.zeros((*group_counts(layout).shape, 1, states.shape[1]))
    add_states(sums, states[:, None], range(len(states)), layout)
    return sums


def _inner(base: Floats, tampered: Floats, layout: Layout) -> Floats:
    return products(_sums(base, layout), _sums(tampered, layout), group_counts(layout))[0]


def _along(states: Floats, base: Floats, layout: Layout) -> Floats:
    return affinities(states[:, None], _sums(base, layout), group_counts(layout))[:, 0]


def _planted(rng: np.random.Generator, layout: Layout, shift: float, noise: float = 1.0) -> Floats:
    """States around a common mean; harmful ones are shifted along the first axis."""
    states = noise * rng.normal(size=(len(layout.templates), D)) + 10 * np.eye(D)[5]
    states[layout.harmful, 0] += shift
    return states


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 2, 2.5, np.pi])
def test_a_rotation_by_a_known_angle_is_that_drift(angle: float) -> None:
    layout = _layout()
    base = _planted(RNG, layout, 4.0, noise=0.0)
    turn = np.eye(D)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = direction_drift(_inner(base, base @ turn.T, layout), group_counts(layout), layout)
    assert found.value == pytest.approx(1 - np.cos(angle), abs=1e-9)
    # Without noise there is nothing to make an interval of.
    assert (found.low, found.high) == (None, None) or found.low <= found.value <= found.high


def test_a_rotation_under_noise_lies_in_the_interval() -> None:
    layout, angle = _layout(60, 60), 0.7
    base = _planted(RNG, layout, 5.0)
    turn = np.eye(D)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found = direction_drift(_inner(base, base @ turn.T, layout), group_counts(layout), layout)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 1 - np.cos(angle) <= found.high
    assert found.high - found.low < 0.2


def test_length_alone_is_no_drift() -> None:
    layout = _layout()
    base = _planted(RNG, layout, 3.0)
    found = direction_drift(_inner(base, 0.1 * base + 7, layout), group_counts(layout), layout)
    assert found.value == pytest.approx(0, abs=1e-9)


def test_dose_0_is_0_by_definition() -> None:
    layout = _layout()
    found = direction_drift(np.ones((1, 3)), group_counts(layout), layout, at_base=True)
    assert (found.value, found.low, found.method) == (0.0, None, "definition")


def test_equal_means_have_no_direction_and_no_nan() -> None:
    layout = _layout()
    base = _planted(RNG, layout, 3.0)
    level = np.ones_like(base)
    found = direction_drift(_inner(base, level, layout), group_counts(layout), layout)
    assert (found.value, found.low, found.high) == (None, None, None)
    auc = direction_auc(_along(level, base, layout), layout)
    assert auc.value == 0.5
    assert auc.low is not None
    assert auc.low < 0.5 < (auc.high or 0)


def test_a_direction_that_is_noise_may_point_anywhere() -> None:
    layout = _layout()
    inner = _inner(_planted(RNG, layout, 6.0), _planted(RNG, layout, 0.0), layout)
    assert not longer_than_noise(inner)
    found = direction_drift(inner, group_counts(layout), layout)
    assert (found.low, found.high) == (0.0, 2.0)
    assert longer_than_noise(_inner(_planted(RNG, layout, 6.0), _planted(RNG, layout, 6.0), layout))


def test_shuffled_labels_give_half_and_separated_ones_give_one() -> None:
    layout, values = _layout(60, 60), []
    for _ in range(60):
        base = _planted(RNG, layout, 0.0)
        values.append(direction_auc(_along(base, base, layout), layout).value or 0)
    assert np.mean(values) == pytest.approx(0.5, abs=0.04)
    far = _planted(RNG, layout, 40.0)
    found = direction_auc(_along(far, far, layout), layout)
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.9 < (found.low or 0) < 1
    swapped = far.copy()
    swapped[:, 0] *= -1
    assert direction_auc(_along(swapped, far, layout), layout).value == 0.0


def test_the_same_prompts_would_flatter_where_other_templates_do_not() -> None:
    """Without a difference, a direction tested on the prompts that made it separates them all the same."""
    layout = _layout(30, 30)
    states = RNG.normal(size=(60, 200))
    direction = states[layout.harmful].mean(axis=0) - states[~layout.harmful].mean(axis=0)
    naive = mannwhitneyu((states @ direction)[layout.harmful], (states @ direction)[~layout.harmful]).statistic / 900
    fair = direction_auc(_along(states, states, layout), layout).value or 0
    assert naive > 0.95
    assert abs(fair - 0.5) < 0.3


def test_within_one_fold_it_is_mann_whitneys_share() -> None:
    layout = lay_out([f"h{i}" for i in range(30)], [f"b{i}" for i in range(24)])
    base = _planted(RNG, layout, 1.5)
    won = pairs = 0.0
    for fold in range(layout.n_folds):
        kept = layout.folds != fold
        direction = base[kept & layout.harmful].mean(axis=0) - base[kept & ~layout.harmful].mean(axis=0)
        mine, other = ((base @ direction)[~kept & which] for which in (layout.harmful, ~layout.harmful))
        won += mannwhitneyu(mine, other).statistic
        pairs += len(mine) * len(other)
    assert direction_auc(_along(base, base, layout), layout).value == pytest.approx(won / pairs)


def test_the_order_of_templates_in_a_kind_has_no_part_of_another_kinds() -> None:
    layout = lay_out(["a", "b", "c"] * 4, ["a", "b"] * 3)
    found = direction_auc(_along(base := _planted(RNG, layout, 3.0), base, layout), layout)
    assert (found.n, found.n_templates) == (18, 5)


def test_too_few_templates_are_refused() -> None:
    with pytest.raises(DataError, match="too few templates"):
        lay_out(["a", "a"], ["b", "c"])
    with pytest.raises(DataError, match="not one row"):
        direction_auc(np.ones((3, 2)), lay_out(["a", "b"], ["c", "d"]))


def test_hanley_mcneil_at_half_is_mann_whitneys_null_variance() -> None:
    assert hanley_mcneil(0.5, 200, 200) == pytest.approx(401 / (12 * 200 * 200), rel=0.01)


@pytest.mark.parametrize("value", [0.0, 0.2, 0.5, 0.97, 1.0])
def test_newcombes_interval_holds_the_value_and_keeps_a_width(value: float) -> None:
    low, high = newcombe(value, 12.5, 30)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.05
    mirrored = newcombe(1 - value, 12.5, 30)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-6)


def _sampled(rng: np.random.Generator, templates: Sequence[str], *, icc: float) -> Floats:
    codes = np.unique(templates, return_inverse=True)[1]
    shared = rng.normal(size=(codes.max() + 1, D))[codes]
    return np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.normal(size=(len(templates), D))


@pytest.mark.parametrize(("k", "icc"), [(60, 0.0), (20, 0.5)])
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_coverage(k: int, icc: float, shift: float) -> None:
    """Prompts are drawn anew; the tampered states share half of their noise with the base's and turned by 60 deg."""
    rng, layout = np.random.default_rng(5), _layout(60, k)
    turned = shift * np.array([0.5, np.sqrt(0.75), *[0.0] * (D - 2)])
    held, drift_held, n = 0, 0, 120
    truth = norm.cdf(0.5 * shift / np.sqrt(2))
    for _ in range(n):
        noise = _sampled(rng, layout.templates, icc=icc)
        base, tampered = noise.copy(), np.sqrt(0.5) * (noise + _sampled(rng, layout.templates, icc=icc))
        base[layout.harmful, 0] += 4 * shift
        tampered[layout.harmful] += turned
        auc = direction_auc(_along(tampered, base, layout), layout)
        held += (auc.low or 0) <= truth <= (auc.high or 0)
        drift = direction_drift(_inner(base, tampered, layout), group_counts(layout), layout)
        drift_held += (drift.low or 0) <= 0.5 <= (drift.high or 0)
    # 0.93, less three standard errors of a simulated share.
    assert held / n >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / n)
    assert drift_held / n >= 0.9 - 3 * np.sqrt(0.9 * 0.1 / n)
