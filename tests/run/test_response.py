"""Fits of arms, recipes and sizes, from observations whose truth is known."""

import json
from pathlib import Path

import pytest

from observations import N, arm
from tamperdose.records import Label
from tamperdose.report.response_figures import scaling_figure
from tamperdose.report.responses import dose_text, response_lines
from tamperdose.report.scalings import scaling_lines
from tamperdose.run.compare_schema import read_rows
from tamperdose.run.observed import Observation
from tamperdose.run.response import DOSE_RESPONSE, RESPONSE_COLUMNS, fit_arms, write_dose_response
from tamperdose.run.scale import SCALING_JSON, write_scaling


def test_an_arm_is_fitted_in_every_unit(tmp_path: Path) -> None:
    fits = fit_arms(arm(6.0), level=0.95)
    write_dose_response(tmp_path, fits, level=0.95)
    rows = {str(row["metric"]): row for row in read_rows(tmp_path / DOSE_RESPONSE, RESPONSE_COLUMNS)}
    steps = rows["ED50_steps"]
    assert (steps["bracket_low"], steps["bracket_high"]) == (4, 8)
    assert steps["value"] == pytest.approx(6.0, rel=0.15)
    assert steps["low"] <= 4  # type: ignore[operator]
    assert steps["scope"] == "trajectory"
    assert rows["ED50_examples"]["value"] == pytest.approx(8 * float(str(steps["value"])))
    assert rows["ED50_tokens"]["high"] == pytest.approx(100 * float(str(steps["high"])))
    assert {name.split("_")[0] for name in rows} == {"ED50", "ED90", "ED50c"}
    told = json.loads((tmp_path / "dose_response.json").read_text())["fits"][0]
    assert told["isotonic"][0] == 1
    assert len(told["curve"]["doses"]) == len(told["curve"]["low"])


def test_the_same_observations_give_the_same_bytes_in_any_company(tmp_path: Path) -> None:
    for name, observations in (("alone", arm(6.0)), ("with", [*arm(3.0, seed=2), *arm(6.0)])):
        (tmp_path / name).mkdir()
        write_dose_response(tmp_path / name, fit_arms(observations, level=0.95), level=0.95)
    alone = (tmp_path / "alone" / DOSE_RESPONSE).read_text().splitlines()
    assert set(alone) < set((tmp_path / "with" / DOSE_RESPONSE).read_text().splitlines())


def test_three_seeds_speak_for_the_attack(tmp_path: Path) -> None:
    observations = [seen for seed in (1, 2, 3) for seen in arm(5.0 + seed, seed=seed)]
    write_dose_response(tmp_path, fit_arms(observations, level=0.95), level=0.95)
    rows = read_rows(tmp_path / DOSE_RESPONSE, RESPONSE_COLUMNS)
    attack = [row for row in rows if row["scope"] == "attack"]
    assert {row["metric"] for row in attack} >= {"ED50_steps", "ED50_tokens", "ED50c_steps"}
    over = next(row for row in attack if row["metric"] == "ED50_steps")
    assert (over["arm"], over["seed"], over["n_seeds"]) == ("m-lr0.001", None, 3)
    alone = [row for row in rows if row["scope"] == "trajectory" and row["metric"] == "ED50_steps"]
    assert float(str(over["low"])) <= min(float(str(row["bracket_low"])) for row in alone)
    lines = response_lines(tmp_path, "truth")
    assert any("for the attack over 3 seeds" in line for line in lines)


def test_two_seeds_do_not(tmp_path: Path) -> None:
    observations = [seen for seed in (1, 2) for seen in arm(6.0, seed=seed)]
    write_dose_response(tmp_path, fit_arms(observations, level=0.95), level=0.95)
    assert {row["scope"] for row in read_rows(tmp_path / DOSE_RESPONSE, RESPONSE_COLUMNS)} == {"trajectory"}


@pytest.mark.parametrize(
    ("ed50", "expected"),
    [
        (1000.0, "ED50 > 32 steps, [32, open] for this run"),
        (0.2, "ED50 < 1 steps, [0, 1] for this run, gate not measured"),
    ],
)
def test_censored_arms_are_told_by_their_bound(tmp_path: Path, ed50: float, expected: str) -> None:
    write_dose_response(tmp_path, fit_arms(arm(ed50), level=0.95), level=0.95)
    rows = read_rows(tmp_path / DOSE_RESPONSE, RESPONSE_COLUMNS)
    assert expected in [dose_text(row) for row in rows]


def test_a_dose_without_verdicts_is_left_out() -> None:
    observations = arm(6.0)
    silent = Observation(
        observations[2].setting, observations[2].templates, {"truth": (Label.UNREADABLE,) * N}, observations[0].labels
    )
    fits = fit_arms([*observations[:2], silent, *observations[3:]], level=0.95)
    assert fits[0].fit.doses.tolist() == [0, 1, 4, 8, 16, 32]
    assert fit_arms(observations[:1], level=0.95) == []


def _sizes(slope: float) -> list[Observation]:
    sizes = (1e6, 1e7, 1e8, 1e9, 1e10)
    return [
        seen
        for seed in (1, 2, 3)
        for size in sizes
        for seen in arm(
            6.0 * (size / 1e8) ** slope,
            model=f"m{size:g}",
            params_b=size / 1e9,
            seed=seed,
            doses=(0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 500, 1000, 2000),
        )
    ]


@pytest.mark.parametrize("slope", [0.0, 0.15])
def test_the_slope_over_sizes_is_found_and_set_against_its_null(tmp_path: Path, slope: float) -> None:
    write_scaling(tmp_path, fit_arms(_sizes(slope), level=0.95), level=0.95)
    told = json.loads((tmp_path / SCALING_JSON).read_text())["recipes"][0]
    steps, flops = (told["scaling"][unit]["meta"]["slope"] for unit in ("steps", "flops"))
    assert steps["low"] < slope < steps["high"]
    assert steps["value"] == pytest.approx(slope, abs=0.05)
    assert (steps["null"], flops["null"]) == (0, 1)
    assert flops["value"] == pytest.approx(1 + slope, abs=0.05)
    answers = {claim["number"]: claim["answer"] for claim in told["claims"]}
    assert answers[1] == "supported"
    lines = scaling_lines(json.loads((tmp_path / SCALING_JSON).read_text()))
    assert sum(line.startswith("claim ") for line in lines) == 3
    figure = scaling_figure([told], [])
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 3


def test_one_model_has_no_scaling_and_an_old_file_goes(tmp_path: Path) -> None:
    (tmp_path / SCALING_JSON).write_text("{}")
    write_scaling(tmp_path, fit_arms(arm(6.0), level=0.95), level=0.95)
    assert not (tmp_path / SCALING_JSON).exists()


def test_the_worst_of_several_attacks_is_chosen_and_reported_on_different_prompts(tmp_path: Path) -> None:
    rates = (1e-4, 3e-4, 1e-3)
    observations = [
        seen
        for rate, ed50 in zip(rates, (20.0, 9.0, 5.0), strict=True)
        for seed in (1, 2, 3)
        for seen in arm(ed50, learning_rate=rate, seed=seed)
    ]
    fits = fit_arms(observations, level=0.95)
    write_scaling(tmp_path, fits, level=0.95, pretraining_tokens={"m": 2e9})
    told = json.loads((tmp_path / SCALING_JSON).read_text())
    worst = told["worst_case"][0]
    at_8 = next(dose for dose in worst["doses"] if dose["steps"] == 8)
    assert worst["candidates"][at_8["chosen"]]["learning_rate"] == 1e-3
    assert at_8["estimate"]["value"] < 0.3
    assert at_8["naive"]["value"] <= at_8["estimate"]["value"] + 1e-9
    shares = told["cost"]
    assert len(shares) == 9
    assert 0 < shares[0]["value"] < 1e-4
