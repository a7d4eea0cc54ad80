import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from tamperdose.errors import DataError
from tamperdose.stats.clusters import effective_size, group, template_codes


def reference_icc(values: np.ndarray, templates: list[str]) -> float:
    """The same estimator from statsmodels' analysis of variance."""
    frame = pd.DataFrame({"y": values, "t": templates})
    table = anova_lm(ols("y ~ C(t)", frame).fit())
    between, within = table["mean_sq"]["C(t)"], table["mean_sq"]["Residual"]
    sizes = frame.groupby("t").size().to_numpy()
    n_0 = (len(frame) - (sizes**2).sum() / len(frame)) / (len(sizes) - 1)
    return (between - within) / (between + (n_0 - 1) * within)


@pytest.mark.parametrize("sizes", [(5, 5, 5, 5), (1, 2, 9, 4), (30, 1, 1)])
def test_icc_equals_statsmodels(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    templates = [f"t{k}" for k, size in enumerate(sizes) for _ in range(size)]
    values = np.repeat(rng.normal(0, 3, len(sizes)), sizes) + rng.normal(size=sum(sizes))
    found = effective_size(values, templates)
    mean_size = sum(size**2 for size in sizes) / sum(sizes)
    assert found.icc == pytest.approx(min(1.0, max(0.0, reference_icc(values, templates))))
    assert found.mean_size == pytest.approx(mean_size)
    assert found.n_effective == pytest.approx(sum(sizes) / (1 + (mean_size - 1) * found.icc))


@pytest.mark.parametrize(
    ("values", "templates", "n_effective", "icc"),
    [
        ([], [], 0, None),
        ([1], ["a"], 1, None),
        ([1, 0], ["a", "a"], 1, None),
        ([1, 1, 1, 1], ["a", "a", "b", "b"], 2, None),
        ([0.1] * 7, ["a", "a", "b", "b", "b", "b", "b"], 2, None),
        ([1, 1, 0, 0], ["a", "a", "b", "b"], 2, 1.0),
        ([1, 0, 1, 0], ["a", "a", "b", "b"], 4, 0.0),
        ([1, 1, 0], ["a", "b", "c"], 3, None),
        ([1, 1, 1], ["a", "b", "c"], 3, None),
    ],
)
def test_defined_at_the_edges(values: list[float], templates: list[str], n_effective: float, icc: float | None) -> None:
    found = effective_size(values, templates)
    assert found.n == len(values)
    assert found.n_templates == len(set(templates))
    assert found.n_effective == pytest.approx(n_effective)
    assert found.icc == icc


@pytest.mark.parametrize(
    ("values", "templates"),
    [([1.0, np.nan], ["a", "b"]), ([np.inf], ["a"]), ([1.0], ["a", "b"]), ([[1.0]], ["a"])],
)
def test_bad_input_is_a_data_error(values: list[float], templates: list[str]) -> None:
    with pytest.raises(DataError):
        effective_size(values, templates)


def test_the_message_names_the_row_and_the_remedy() -> None:
    with pytest.raises(DataError, match=r"(?s)nan in row 1.*n_unreadable"):
        effective_size([1.0, np.nan], ["a", "b"])


rows = st.lists(st.tuples(st.floats(-1e6, 1e6), st.sampled_from("abcd")), min_size=1, max_size=40)


@given(rows, st.randoms(use_true_random=False))
def test_bounds_and_order(rows: list[tuple[float, str]], random) -> None:
    found = effective_size([value for value, _ in rows], [name for _, name in rows])
    assert found.n / found.mean_size <= found.n_effective * (1 + 1e-12) or found.icc is None
    assert 1 <= found.n_effective <= found.n
    random.shuffle(rows)
    assert effective_size([value for value, _ in rows], [name for _, name in rows]) == found


def test_groups_are_sorted_by_template_then_value() -> None:
    groups = group([3.0, 1.0, 2.0, 0.0], ["b", "a", "b", "c"])
    assert groups.values.tolist() == [1.0, 2.0, 3.0, 0.0]
    assert groups.codes.tolist() == [0, 1, 1, 2]


def test_codes_follow_the_alphabet_and_are_nobody_s_to_change() -> None:
    assert (
        template_codes(["b", "a", "b", "c"]).tolist() == template_codes(("b", "a", "b", "c")).tolist() == [1, 0, 1, 2]
    )
    codes = template_codes(["b", "a", "b", "c"])
    with pytest.raises(ValueError, match="read-only"):
        codes[0] = 7
