"""What the terminal says of sizes: the sizes left out, predictions, recipes apart, and the worst attacker."""

from typing import Any

import pytest

from tamperdose.report.scalings import line_fit, n_censored, scaling_lines
from tamperdose.stats.recipes import compare_recipes
from tamperdose.stats.scaling import DoseUnit, scaling, to_dict
from tamperdose.stats.sizes import SizePoint

BROKEN = [
    SizePoint(f"m{n:g}", n, dose, dose / 1.1, dose * 1.1)
    for n, dose in [(1e8, 10.0), (3e8, 10.3), (1e9, 9.8), (1e10, 10.1)]
]
HELD = [SizePoint(f"m{n:g}", n, None, 2000.0, None, censored="right") for n in (1e11, 5e11)]


def recipe(points: list[SizePoint], at: tuple[float, ...] = (), **settings: Any) -> dict[str, Any]:
    found = to_dict(scaling(points, DoseUnit.STEPS, at=at))
    return {
        "recipe": {"defence": "none", "learning_rate": 1e-3} | settings,
        "points": {"steps": [to_dict(point) for point in points]},
        "scaling": {"steps": found},
        "claims": [{"number": 1, "answer": "undecided", "reason": "because"}],
    }


def test_sizes_left_out_as_censored_are_counted_and_the_other_fit_is_printed() -> None:
    told = recipe([*BROKEN, *HELD])
    lines = scaling_lines({"recipes": [told]})
    assert lines[0].startswith("ED50 in steps by size: slope -0.00")
    assert lines[0].endswith("over 4 sizes; 0 if size does not matter; 2 sizes left out of the line: censored")
    slope = told["scaling"]["steps"]["censored"]["slope"]
    assert lines[1].startswith("ED50 in steps by size, censored arms by their bounds: ")
    assert f"slope {slope['value']:.2f} [{slope['low']:.2f}, {slope['high']:.2f}]" in lines[1]
    assert "over 6 sizes" in lines[1]
    assert slope["value"] > 0.5
    assert n_censored(told["scaling"]["steps"]) == 2
    assert line_fit(told["scaling"]["steps"])["slope"] == slope


def test_without_a_censored_size_one_line_is_enough() -> None:
    lines = scaling_lines({"recipes": [recipe(BROKEN)]})
    assert not any("censored" in line for line in lines)
    assert sum("by size" in line for line in lines) == 1


def test_one_size_has_claims_and_no_slope() -> None:
    assert scaling_lines({"recipes": [recipe(BROKEN[:1])]}) == ["claim 1: undecided: because"]
    alone = [{key: recipe(BROKEN[:1], learning_rate=rate)[key] for key in ("recipe", "claims")} for rate in (1.0, 2.0)]
    assert scaling_lines({"recipes": [], "one_size": alone}) == [
        "learning rate 1: claim 1: undecided: because",
        "learning rate 2: claim 1: undecided: because",
    ]


def test_a_size_that_was_not_run_is_predicted_by_the_fit_that_uses_all_sizes() -> None:
    told = recipe([*BROKEN, *HELD], at=(1e12,))
    line = next(line for line in scaling_lines({"recipes": [told]}) if "predicted for" in line)
    at = told["scaling"]["steps"]["censored"]["predictions"][0]
    assert f"a model of 1e+12 parameters, which was not run: {at['value']:.3g} steps [{at['predict_low']:.3g}, " in line


def test_leave_one_out_names_the_sizes_outside() -> None:
    odd = [*BROKEN, SizePoint("odd", 1e9 * 3, 900.0, 890.0, 910.0)]
    line = next(line for line in scaling_lines({"recipes": [recipe(odd)]}) if "from the others" in line)
    assert line == ("each size predicted from the others: 4 of 5 inside the 95 % interval; outside: 3e+09 parameters")
    assert "4 of 4 inside" in "".join(scaling_lines({"recipes": [recipe(BROKEN)]}))


def test_recipes_are_told_apart_by_what_differs() -> None:
    told = {"recipes": [recipe(BROKEN), recipe([*BROKEN[:3]], learning_rate=2e-3)]}
    lines = scaling_lines(told)
    assert {line.split(": ")[0] for line in lines} == {"learning rate 0.001", "learning rate 0.002"}
    assert "defence" not in "".join(lines)


@pytest.mark.parametrize("n_rates", [2, 3])
def test_learning_rates_say_which_is_the_fixed_one(n_rates: int) -> None:
    by_rate = dict.fromkeys((0.001, 0.0001, 0.002)[:n_rates], BROKEN)
    found = to_dict(compare_recipes(by_rate, 1e-3, DoseUnit.STEPS))
    entry = {"recipe": {"learning_rate": sorted(by_rate)}, "comparison": found}
    line = scaling_lines({"learning_rates": [entry]})[0]
    assert "learning rate 0.001 (the first listed) for every size: slope -0.00" in line
    assert found["note"] in line
    assert ("smallest or largest tried at 1e+08, 3e+08" in line) is (n_rates == 3)


def test_the_share_of_pretraining() -> None:
    cost = [
        {"model": "m", "arm": f"a{k}", "value": value, "censored": ""} for k, value in enumerate((2e-6, 1e-6, None))
    ]
    assert scaling_lines({"cost": cost}) == [
        "m: operations up to ED50 as a share of those of pretraining: 1e-06 to 2e-06; 1 of 3 arms censored or undefined"
    ]


def worst(defence: str | None) -> dict[str, Any]:
    doses = [
        {"steps": steps, "reason": "", "estimate": {"value": rate, "low": rate - 0.1, "high": rate + 0.1}}
        | {"naive": {"value": rate - 0.05}}
        for steps, rate in [(2, 0.8), (8, 0.3)]
    ]
    return {"model": "m", "defence": defence, "candidates": [{}, {}], "doses": doses}


def test_the_worst_attacker_has_every_dose_and_its_defence() -> None:
    lines = scaling_lines({"worst_case": [worst("none"), worst("tuned")]})
    assert lines[0].startswith("m, defence none: worst of 2 attacks")
    assert lines[1].startswith("m, defence tuned: worst of 2 attacks")
    assert lines[0].endswith("RRR 0.800 [0.700, 0.900] (0.750) at 2 steps; 0.300 [0.200, 0.400] (0.250) at 8 steps")
    assert scaling_lines({"worst_case": [worst("none")]})[0].startswith("m: worst")
    assert scaling_lines({"worst_case": [worst("tuned")]})[0].startswith("m, defence tuned: ")
