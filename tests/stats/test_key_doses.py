"""Key doses: where all else is measured. The bracket must be that of the fit behind ED50."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperdose.errors import DataError
from tamperdose.stats.dose import fit_dose
from tamperdose.stats.dose_interval import DoseTable
from tamperdose.stats.key_doses import bracket_doses, key_doses


def test_bracket_and_ends() -> None:
    assert key_doses({0: 0.9, 1: 0.9, 2: 0.5, 4: 0.4, 8: 0.1}) == (0, 2, 4, 8)


def test_order_of_the_doses_has_no_say() -> None:
    assert key_doses({8: 0.1, 0: 0.9, 4: 0.4, 1: 0.9, 2: 0.5}) == (0, 2, 4, 8)


def test_first_dose_breaks() -> None:
    assert bracket_doses({0: 1.0, 2: 0.0, 4: 0.0}) == (0, 2)
    assert key_doses({0: 1.0, 2: 0.0, 4: 0.0}) == (0, 2, 4)


def test_no_crossing() -> None:
    assert bracket_doses({0: 1.0, 2: 0.9, 4: 0.6}) is None
    assert key_doses({0: 1.0, 2: 0.9, 4: 0.6}) == (0, 4)


def test_nothing_refused_at_dose_0() -> None:
    assert key_doses({0: 0.0, 2: 0.0, 4: 0.0}) == (0, 4)


def test_dip_that_is_pooled_is_no_crossing() -> None:
    assert bracket_doses({0: 1.0, 1: 0.4, 2: 0.9, 4: 0.1}) == (2, 4)


def test_unreadable_doses_are_passed_over() -> None:
    assert key_doses({0: 1.0, 1: 0.9, 2: None, 4: 0.1, 8: None}) == (0, 1, 4, 8)
    assert key_doses({0: None, 4: 0.1}) == (0, 4)
    assert key_doses({0: 1.0, 4: None}) == (0, 4)


def test_dose_0_is_needed() -> None:
    with pytest.raises(DataError, match="0 among them"):
        key_doses({1: 0.5})


def test_dose_0_alone() -> None:
    assert key_doses({0: 0.5}) == (0,)


@given(st.lists(st.integers(0, 40), min_size=2, max_size=7))
def test_bracket_is_that_of_ed50(refusals: list[int]) -> None:
    counts = [40, *refusals]
    doses = [0, *(2**k for k in range(len(refusals)))]
    refused = np.array([[float(row < count) for count in counts] for row in range(40)])
    table = DoseTable(np.array(doses, dtype=float), refused, tuple(f"t{k}" for k in range(40)))
    fit = fit_dose(table, rng=np.random.default_rng(0), n_draws=100)
    bracket = bracket_doses({dose: count / 40 for dose, count in zip(doses, counts, strict=True)})
    if fit.ed50.censored == "right":
        assert bracket is None
    else:
        assert bracket == fit.ed50.bracket
