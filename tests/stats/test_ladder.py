import numpy as np
import pytest

from tamperdose.errors import DataError
from tamperdose.stats.dose import DoseTable, fit_dose
from tamperdose.stats.ladder import convert_dose, next_dose


def climb(threshold: float, candidates: list[int], **options) -> list[int]:
    """The doses in the order in which they are asked for; all prompts are lost at the threshold."""
    observed: dict[int, float] = {}
    while (dose := next_dose(observed, candidates, **options)) is not None:
        assert dose not in observed
        observed[dose] = float(dose < threshold)
    return list(observed)


def test_geometric_then_bisection_to_neighbouring_steps() -> None:
    asked = climb(11.5, list(range(1, 101)))
    assert asked[:9] == [0, 1, 2, 4, 8, 16, 32, 64, 100]
    assert asked[9:] in ([11, 13, 12], [11, 13, 12])
    assert {11, 12} <= set(asked)


def test_only_saved_steps_are_asked_for() -> None:
    asked = climb(30, [500, 20, 3, 25, 40, 100])
    assert set(asked) <= {0, 3, 20, 25, 40, 100, 500}
    assert {25, 40} <= set(asked)


@pytest.mark.parametrize(("threshold", "extra"), [(1e9, 0), (0.5, 0)])
def test_censored_curves_end_the_search(threshold: float, extra: int) -> None:
    assert len(climb(threshold, list(range(1, 65)))) == 8 + extra


def test_left_of_the_coarse_ladder_the_saved_steps_are_tried() -> None:
    assert 3 in climb(4, [3, 5, 6, 7, 8])


def test_budget_and_sampling_end_the_search() -> None:
    assert len(climb(11.5, list(range(1, 101)), budget=9)) == 10
    assert climb(11.5, list(range(1, 101)), sampling=(0.5, 64.0))[9:] == []
    assert climb(11.5, list(range(1, 101)), sampling=(9.0, None))[9:] == []
    # log 2 = 0.69 is over a quarter of log(20 / 8) = 0.92, a half of it is not... one halving and a half.
    asked = climb(11.5, list(range(1, 101)), sampling=(4.0, 26.0))
    assert len(asked[9:]) == 1


def test_no_candidates() -> None:
    with pytest.raises(DataError):
        next_dose({}, [0])


def test_other_units_are_exact_at_the_doses_and_monotone() -> None:
    doses = np.array([0, 1, 5, 10, 20.0])
    refused = (doses[None, :] < np.linspace(2, 15, 80)[:, None]).astype(float)
    fit = fit_dose(DoseTable(doses, refused, tuple(map(str, range(80)))), rng=np.random.default_rng(0), n_draws=200)
    amounts = np.array([0, 8, 44, 91, 200.0])
    found = convert_dose(fit.ed50, doses, amounts)
    assert found.bracket == (44.0, 91.0)
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(44 + (fit.ed50.value - 5) / 5 * 47)
    assert convert_dose(fit.ed50, doses, doses) == fit.ed50
    for bad in ([0, 1, 2, 3], [1, 2, 3, 4, 5], [0, 3, 2, 4, 5]):
        with pytest.raises(DataError):
            convert_dose(fit.ed50, doses, bad)
    with pytest.raises(DataError, match="not reached"):
        convert_dose(fit.ed50, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
