"""Device time and money: what each dose took, and the breaking doses in both."""

from pathlib import Path

import pytest

from observations import DOSES, arm
from tamperdose.report.responses import response_lines
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.costs import COST_COLUMNS, Clock, write_costs
from tamperdose.run.response import fit_arms, write_dose_response

SECONDS = {steps: 2.0 * steps for steps in DOSES}


def priced(folder: Path, arms: list[list], clocks: dict[str, Clock], price: float | None) -> list[Row]:
    observations = [seen for one in arms for seen in one]
    fits = fit_arms(observations, level=0.95)
    write_dose_response(folder, fits, level=0.95)
    return read_rows(write_costs(folder, observations, fits, clocks, price=price, level=0.95), COST_COLUMNS)


def test_doses_and_breaking_doses_are_priced_by_the_device_hour(tmp_path: Path) -> None:
    seen = arm(6.0)
    name = str(seen[0].setting["arm"])
    rows = priced(tmp_path, [seen], {name: Clock("cuda", SECONDS)}, 1.8)
    spent = {(row["metric"], row["dose_steps"]): row["value"] for row in rows if row["dose_steps"] is not None}
    assert spent["attack_seconds", 16] == 32
    assert spent["attack_usd", 16] == pytest.approx(32 / 3600 * 1.8)
    assert spent["attack_seconds", 0] == 0
    found = {str(row["metric"]): row for row in rows if row["dose_steps"] is None}
    steps = fit_arms(seen, level=0.95)[0].fit.ed50
    assert steps.value is not None
    assert found["ED50_seconds"]["value"] == pytest.approx(2 * steps.value)
    assert found["ED50_usd"]["value"] == pytest.approx(2 * steps.value / 3600 * 1.8)
    assert found["ED50_seconds"]["bracket_high"] == 16
    assert found["ED50_usd"]["low"] == pytest.approx(2 * steps.low / 3600 * 1.8)
    line = next(line for line in response_lines(tmp_path, "truth") if "training time" in line)
    assert "on cuda" in line
    assert "USD" in line


def test_without_a_price_nothing_is_said_of_money(tmp_path: Path) -> None:
    seen = arm(6.0)
    rows = priced(tmp_path, [seen], {str(seen[0].setting["arm"]): Clock("cpu", SECONDS)}, None)
    assert {str(row["metric"]).split("_")[1] for row in rows} == {"seconds"}
    assert "USD" not in "\n".join(response_lines(tmp_path, "truth"))


@pytest.mark.parametrize("timed", [{}, {0: 0.0, 1: 2.0, 32: 64.0}], ids=["never", "in part"])
def test_an_arm_that_was_not_timed_has_no_breaking_dose_in_seconds(tmp_path: Path, timed: dict[int, float]) -> None:
    seen = arm(6.0)
    rows = priced(tmp_path, [seen], {str(seen[0].setting["arm"]): Clock("cpu", timed)} if timed else {}, 2.0)
    assert {row["dose_steps"] for row in rows} == set(timed)
    assert all("training time" not in line for line in response_lines(tmp_path, "truth"))


def test_seeds_are_priced_each_by_its_own_clock(tmp_path: Path) -> None:
    arms = [arm(6.0, seed=seed) for seed in (1, 2, 3)]
    clocks = {
        str(one[0].setting["arm"]): Clock("cuda", {steps: speed * steps for steps in DOSES})
        for one, speed in zip(arms, (1.0, 2.0, 4.0), strict=True)
    }
    rows = priced(tmp_path, arms, clocks, 1.0)
    over = next(row for row in rows if row["metric"] == "ED50_seconds" and row["scope"] == "attack")
    each = [row["value"] for row in rows if row["metric"] == "ED50_seconds" and row["scope"] == "trajectory"]
    product = 1.0
    for value in each:
        product *= float(str(value))
    assert over["n_seeds"] == 3
    assert over["value"] == pytest.approx(product ** (1 / 3), rel=0.05)
