"""Ratios of breaking doses: by hand, at the ends of the ladder, and by simulation over seeds."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tamperdose.errors import DataError
from tamperdose.records import Scope
from tamperdose.stats.defences import (
    OPEN_BOTH_WAYS,
    Run,
    RunPair,
    Tally,
    compare_doses,
    dose_ratio,
    over_orders,
    tally,
)
from tamperdose.stats.distributions import t_quantile
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.dose_seeds import attack_dose

LADDER = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def known(
    value: float | None,
    bracket: tuple[float, float | None] | None,
    *,
    ends: tuple[float | None, float | None] | None = None,
    censored: str = "",
    fraction: float = 0.5,
) -> EffectiveDose:
    """A dose whose interval is its bracket, unless `ends` say otherwise."""
    low, high = ends or bracket or (None, None)
    return EffectiveDose(
        fraction=fraction,
        value=value,
        low=low,
        high=high,
        level=0.95,
        bracket=bracket,
        censored=censored,
        sampling=None,
        fit="isotonic",
        method="m",
        scope=Scope.TRAJECTORY,
        n=50,
        n_templates=40,
        n_unreadable=1,
        reason="nothing" if bracket is None else "",
    )


def on_ladder(dose: float, ladder: Sequence[float] = LADDER) -> EffectiveDose:
    """What measuring on a ladder tells of a dose."""
    below = [step for step in ladder if step < dose]
    above = [step for step in ladder if step >= dose]
    if not above:
        return known(None, (ladder[-1], None), censored="right")
    if not below:
        return known(None, (0.0, above[0]), censored="left")
    return known(math.sqrt(below[-1] * above[0]), (below[-1], above[0]))


UNDEFINED = known(None, None, censored="undefined")
BEYOND, BEFORE = on_ladder(99.0), on_ladder(0.5)


def test_a_ratio_is_known_up_to_the_quotients_of_the_brackets_ends() -> None:
    found = dose_ratio(known(12.0, (8.0, 16.0)), known(3.0, (2.0, 4.0)))
    assert (found.value, found.bracket, found.censored) == (4.0, (2.0, 8.0), "")
    # Intervals no wider than the brackets add nothing.
    assert (found.low, found.high) == pytest.approx((2.0, 8.0))
    assert (found.n, found.n_unreadable, found.scope) == (50, 2, Scope.TRAJECTORY)


def test_chance_in_the_prompts_is_combined_as_of_two_independent_errors() -> None:
    defended = known(12.0, (8.0, 16.0), ends=(4.0, 16.0))
    without = known(3.0, (2.0, 4.0), ends=(2.0, 8.0))
    found = dose_ratio(defended, without)
    assert found.low == pytest.approx(2.0 * math.exp(-math.hypot(math.log(2), math.log(2))))
    assert found.high == pytest.approx(8.0)
    mirrored = dose_ratio(without, defended)
    assert mirrored.low == pytest.approx(1 / 8.0)
    assert mirrored.high == pytest.approx(1 / (found.low or math.nan))


@pytest.mark.parametrize(
    ("defended", "without", "censored", "bracket"),
    [
        (BEYOND, known(3.0, (2.0, 4.0)), "right", (8.0, None)),
        (known(3.0, (2.0, 4.0)), BEFORE, "right", (2.0, None)),
        (BEYOND, BEFORE, "right", (32.0, None)),
        (BEFORE, known(3.0, (2.0, 4.0)), "left", (0.0, 0.5)),
        (known(3.0, (2.0, 4.0)), BEYOND, "left", (0.0, 0.125)),
        (BEFORE, BEYOND, "left", (0.0, 1 / 32)),
    ],
)
def test_a_dose_beyond_the_ladder_leaves_a_bound(
    defended: EffectiveDose, without: EffectiveDose, censored: str, bracket: tuple[float, float | None]
) -> None:
    found = dose_ratio(defended, without)
    assert (found.value, found.censored, found.bracket) == (None, censored, bracket)
    if censored == "right":
        assert found.high is None
        assert found.low == pytest.approx(bracket[0])
    else:
        assert found.low == 0
        assert found.high == pytest.approx(bracket[1])


@pytest.mark.parametrize("both", [BEYOND, BEFORE])
def test_two_doses_beyond_the_same_end_say_nothing(both: EffectiveDose) -> None:
    found = dose_ratio(both, both)
    assert (found.value, found.low, found.high, found.bracket) == (None, None, None, None)
    assert (found.censored, found.reason) == ("undefined", OPEN_BOTH_WAYS)


def test_an_undefined_dose_makes_the_ratio_undefined() -> None:
    assert dose_ratio(UNDEFINED, BEYOND).reason == "nothing"
    assert dose_ratio(BEYOND, UNDEFINED).reason == "without it: nothing"
    without_interval = known(3.0, (2.0, 4.0), ends=(None, None))
    found = dose_ratio(known(12.0, (8.0, 16.0)), without_interval)
    assert (found.value, found.low, found.high) == (4.0, None, None)
    with pytest.raises(DataError, match="different kinds"):
        dose_ratio(known(12.0, (8.0, 16.0), fraction=0.1), without_interval)


def test_orders_are_averaged_within_a_seed() -> None:
    one, two = known(3.0, (2.0, 4.0), ends=(1.0, 8.0)), known(12.0, (8.0, 16.0))
    found = over_orders([one, two])
    assert found.value == pytest.approx(6.0)
    assert found.bracket == pytest.approx((4.0, 8.0))
    assert (found.low, found.high) == pytest.approx((8.0**0.5, 128.0**0.5))
    assert over_orders([one]) is one
    beyond = over_orders([one, BEYOND])
    assert (beyond.value, beyond.censored, beyond.high) == (None, "right", None)
    assert beyond.bracket == (pytest.approx(8.0), None)
    before = over_orders([two, BEFORE])
    assert (before.value, before.censored, before.bracket) == (None, "left", (0.0, 4.0))
    assert over_orders([BEFORE, BEYOND]).censored == "undefined"
    assert over_orders([one, UNDEFINED]).reason == "nothing"
    with pytest.raises(DataError, match="different kinds"):
        over_orders([])


def test_over_seeds_the_ratio_has_students_interval_in_the_limit_of_a_fine_ladder() -> None:
    ratios = np.array([2.0, 3.0, 5.0])
    pairs = {
        (seed, None): RunPair(known(10.0, (10.0, 10.0)), known(10 * r, (10 * r, 10 * r)))
        for seed, r in enumerate(ratios.tolist())
    }
    found = compare_doses(pairs).ratio
    logs = np.log(ratios)
    reach = t_quantile(0.975, 2) * logs.std(ddof=1) / 3**0.5
    assert found.value == pytest.approx(math.exp(logs.mean()))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.mean() - reach), math.exp(logs.mean() + reach)))
    assert (found.scope, found.n_seeds) == (Scope.ATTACK, 3)


def test_doses_of_one_order_are_those_of_the_attack() -> None:
    without = [on_ladder(3.0), on_ladder(5.0), on_ladder(3.5)]
    defended = [on_ladder(9.0), on_ladder(20.0), BEYOND]
    pairs: dict[Run, RunPair] = {
        (seed, None): RunPair(then, now) for seed, (then, now) in enumerate(zip(without, defended, strict=True))
    }
    found = compare_doses(pairs)
    assert found.without == attack_dose(without)
    assert found.defended == attack_dose(defended)
    # The middle seed of three decides where one is censored; the upper end is open.
    assert (found.ratio.censored, found.ratio.high) == ("", None)
    assert found.ratio.value == pytest.approx(math.sqrt(128) / math.sqrt(8))
    assert (found.tally, found.n_pairs, found.n_orders) == (Tally(3, 0, 0), 3, 1)


def test_most_seeds_beyond_the_ladder_give_a_lower_bound_alone() -> None:
    pairs: dict[Run, RunPair] = {
        (seed, order): RunPair(on_ladder(3.0), BEYOND if seed else on_ladder(20.0))
        for seed in range(3)
        for order in (1, 2)
    }
    found = compare_doses(pairs).ratio
    assert (found.value, found.censored, found.bracket) == (None, "right", (8.0, None))
    assert found.low is not None
    assert 0 < found.low < 8.0
    assert found.high is None


def test_below_three_seeds_there_is_no_interval_and_it_is_said() -> None:
    pairs: dict[Run, RunPair] = {(seed, None): RunPair(on_ladder(3.0), on_ladder(10.0)) for seed in range(2)}
    found = compare_doses(pairs)
    assert (found.ratio.value, found.ratio.bracket) == (pytest.approx(4.0), (2.0, 8.0))
    assert (found.ratio.low, found.ratio.high, found.ratio.scope) == (None, None, Scope.ARMS)
    assert found.without.low is None
    with pytest.raises(DataError, match="no pairs"):
        compare_doses({})


def test_pairs_are_counted_by_brackets_that_do_not_overlap() -> None:
    one, two, three = on_ladder(3.0), on_ladder(5.0), on_ladder(9.0)
    pairs = [RunPair(one, two), RunPair(three, one), RunPair(two, two), RunPair(three, BEYOND), RunPair(BEYOND, BEYOND)]
    assert tally([*pairs, RunPair(one, UNDEFINED), RunPair(BEFORE, one), RunPair(one, BEFORE)]) == Tally(3, 2, 3)


@pytest.mark.parametrize(("ratio", "sd"), [(1.0, 0.15), (3.0, 0.4), (2.0, 0.8)])
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_the_interval_covers_the_ratio_over_seeds(ratio: float, sd: float, n_seeds: int) -> None:
    """Seeds spread alike on both sides, orders within them; doses are known up to a coarse ladder."""
    rng = np.random.default_rng([round(10 * ratio), round(100 * sd), n_seeds])
    held = n_defined = 0
    for _ in range(400):
        pairs: dict[Run, RunPair] = {}
        for seed in range(n_seeds):
            centres = np.log([5.0, 5.0 * ratio]) + rng.normal(0, sd, 2)
            for order in (1, 2):
                doses = np.exp(centres + rng.normal(0, 0.1, 2)).tolist()
                pairs[seed, order] = RunPair(on_ladder(doses[0]), on_ladder(doses[1]))
        found = compare_doses(pairs).ratio
        # Undefined where both runs of a seed leave the ladder at one end: rare, and then nothing is claimed.
        if found.low is not None:
            n_defined += 1
            held += found.low <= ratio and (found.high is None or ratio <= found.high)
    assert n_defined > 320
    # 0.95 less three standard errors of the simulation.
    assert held / n_defined >= 0.917
