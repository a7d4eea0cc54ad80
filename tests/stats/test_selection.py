"""The worst attacker over a grid: no bias where the naive minimum has one, and intervals that hold the truth."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from tamperdose.errors import DataError
from tamperdose.records import Scope
from tamperdose.stats.rates import rate
from tamperdose.stats.selection import Choice, choose_by_half, widened, worst_case
from validation import scaling as validation


def names(n: int, m: int = 1) -> list[str]:
    return [f"{i // m:03d}" for i in range(n)]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_one_candidate_is_its_rate() -> None:
    outcomes = np.array([1, 0, 0, 1, 1, 0, 0, 0.0])
    found = worst_case(outcomes[:, None], names(8), rng=rng())
    plain = rate(outcomes, names(8))
    ends = (found.estimate.value, found.estimate.low, found.estimate.high)
    assert ends == pytest.approx((plain.value, plain.low, plain.high))
    assert found.optimism == 0


def test_a_candidate_far_below_is_always_chosen() -> None:
    table = np.ones((40, 3))
    table[:, 1] = np.arange(40) % 4 == 0
    found = worst_case(table, names(40), rng=rng())
    assert (found.chosen, found.shares, found.estimate.value) == (1, (0.0, 1.0, 0.0), 0.25)
    highest = worst_case(1 - table, names(40), rng=rng(), lowest=False)
    assert (highest.chosen, highest.estimate.value) == (1, 0.75)


def test_unreadable_outcomes_leave_the_means() -> None:
    table = np.ones((40, 2))
    table[:, 0] = 0.0
    table[::5, 0] = np.nan
    found = worst_case(table, names(40), rng=rng())
    assert (found.estimate.value, found.estimate.n, found.estimate.n_unreadable) == (0.0, 32, 8)
    table[:, 0] = np.nan
    assert worst_case(table, names(40), rng=rng()).chosen == 1


def test_a_lucky_seed_is_not_reported_on_itself() -> None:
    """One candidate seems worst in one seed only: held out, that seed is reported by others' choice."""
    table = np.ones((40, 4, 3))
    table[:, 2, 1] = 0.0
    found = worst_case(table, names(40), rng=rng())
    # Seeds 0 and 2 are held out while seed 1 speaks for candidate 2, and it refuses there; seed 1 has candidate 0.
    assert found.estimate.value == 1.0
    assert found.naive.value == pytest.approx(2 / 3)
    assert found.estimate.scope == Scope.ATTACK
    two = worst_case(table[:, :, :2], names(40), rng=rng())
    assert two.estimate.scope == Scope.TRAJECTORY


def test_order_of_prompts_within_templates_has_no_say() -> None:
    table = (np.random.default_rng(1).random((30, 5)) < 0.4).astype(float)
    order = np.arange(30).reshape(10, 3)[:, ::-1].ravel()
    one, other = (worst_case(table[rows], names(30, 3), rng=rng()) for rows in (np.arange(30), order))
    assert one.estimate.value == pytest.approx(other.estimate.value)


def test_what_cannot_be_chosen() -> None:
    found = worst_case(np.ones((6, 2)), names(6, 2), rng=rng())
    assert found.estimate.value is None
    assert "3 templates" in found.reason
    assert worst_case(np.full((6, 2), np.nan), names(6), rng=rng()).reason == "no candidate"
    assert worst_case(np.ones((0, 2)), [], rng=rng()).estimate.value is None
    for bad, kwargs in ((np.ones(4), {}), (np.full((4, 2), 2.0), {}), (np.ones((4, 2)), {"n_splits": 5})):
        with pytest.raises(DataError):
            worst_case(bad, names(4), rng=rng(), **kwargs)


def test_naive_choice_is_biased_and_the_cross_fitted_one_is_not() -> None:
    cell = validation.selection_cell("20 alike, 40 x 3, one seed", n=120)
    assert abs(cell.crossed - cell.truth) < 3.5 * cell.crossed_error
    assert cell.truth - cell.naive > 10 * cell.crossed_error
    assert cell.held >= 0.93


def test_a_choice_by_halves_does_not_profit_from_luck() -> None:
    """Equal candidates: the rate kept is theirs for any number of them, and the interval holds it."""
    data = np.random.default_rng(8)
    templates = [f"t{i % 40:02d}" for i in range(80)]
    kept: dict[int, list[float]] = {1: [], 8: []}
    naive: list[float] = []
    held = 0
    for _ in range(200):
        table = (data.random((80, 8)) < 0.6).astype(float)
        naive.append(float(table.mean(axis=0).min()))
        for k, rates in kept.items():
            choice = choose_by_half(table[:, :k], templates, rng=np.random.default_rng(3))
            outcomes = table[np.arange(80), list(choice.chosen)]
            rates.append(float(outcomes.mean()))
            assert sum(choice.shares) == pytest.approx(1.0)
        found = widened(rate(outcomes, templates), table, choice.shares)
        held += found.low is not None and found.high is not None and found.low <= 0.6 <= found.high
    assert np.mean(kept[1]) == pytest.approx(0.6, abs=0.015)
    assert np.mean(kept[8]) == pytest.approx(0.6, abs=0.02)
    assert np.mean(naive) < 0.54
    assert 0.9 <= held / 200 <= 1.0


def test_a_better_candidate_is_chosen_for_every_prompt() -> None:
    table = np.ones((20, 3))
    table[:, 1] = 0
    choice = choose_by_half(table, [str(i) for i in range(20)], rng=np.random.default_rng(0))
    assert (set(choice.chosen), choice.overall, choice.shares) == ({1}, 1, (0.0, 1.0, 0.0))
    found = rate(table[:, 1], [str(i) for i in range(20)])
    assert widened(found, table, choice.shares) == found


def test_a_prompt_has_no_part_in_its_own_choice() -> None:
    """Turning the outcomes of one half over changes the other half's choice alone."""
    data = np.random.default_rng(2)
    templates = [str(i // 2) for i in range(40)]
    table = (data.random((40, 5)) < 0.5).astype(float)
    before = choose_by_half(table, templates, rng=np.random.default_rng(1)).chosen
    for place in range(40):
        changed = table.copy()
        changed[[i for i in range(40) if templates[i] == templates[place]]] = data.random((2, 5)) < 0.5
        after = choose_by_half(changed, templates, rng=np.random.default_rng(1)).chosen
        assert after[place] == before[place]


def test_choices_without_much_to_choose_on() -> None:
    rng = np.random.default_rng(0)
    assert choose_by_half(np.zeros((0, 2)), [], rng=rng) == Choice((), 0, (0.0, 0.0))
    assert choose_by_half([[1, 0]] * 6, ["a", "b"] * 3, rng=rng) == Choice((0,) * 6, 0, (0.0, 0.0))
    nothing = choose_by_half(np.full((8, 2), np.nan), list("abcdefgh"), rng=rng)
    assert nothing == Choice((0,) * 8, 0, (0.0, 0.0))
    found = rate([], [])
    assert widened(found, np.full((8, 2), np.nan), (0.5, 0.5)) == found
    unread = choose_by_half([[1, np.nan]] * 8, list("abcdefgh"), rng=rng)
    assert (unread.overall, unread.chosen) == (0, (0,) * 8)
