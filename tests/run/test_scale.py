"""Claims, scaling fits and predictions of `scaling.json`, from arms whose truth is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from observations import arm
from tamperdose.run.observed import Observation
from tamperdose.run.response import fit_arms
from tamperdose.run.scale import SCALING_JSON, write_scaling
from tamperdose.stats.gate import DoseGate, Verdict

LONG = (0, 1, 2, 4, 6, 8, 10, 12, 16, 32, 500, 1000, 2000)


def sizes(ed50s: dict[float, float], *, doses: Sequence[int] = LONG, **more: Any) -> list[Observation]:
    return [
        seen for n, ed50 in ed50s.items() for seen in arm(ed50, model=f"m{n:g}", params_b=n / 1e9, doses=doses, **more)
    ]


def told_of(folder: Path, observations: Sequence[Observation], **more: Any) -> dict[str, Any]:
    write_scaling(folder, fit_arms(observations, level=0.95), level=more.pop("level", 0.95), **more)
    return json.loads((folder / SCALING_JSON).read_text())


def claim(entry: dict[str, Any], number: int) -> dict[str, Any]:
    return next(one for one in entry["claims"] if one["number"] == number)


def part(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in claim(entry, 2)["parts"] if one["name"] == name)


def test_sizes_that_never_broke_are_not_left_out_of_the_claim_about_size(tmp_path: Path) -> None:
    flat = {1e8: 10.0, 3e8: 10.3, 1e9: 9.8, 1e10: 10.1}
    told = told_of(tmp_path, sizes(flat))["recipes"][0]
    steps = told["scaling"]["steps"]
    assert (steps["decides"], steps["n_sizes_left_out"]) == ("meta", 0)
    assert part(told, "slope of ED50 in steps")["answer"] == "supported"
    told = told_of(tmp_path, sizes(flat | {1e11: 1e5, 5e11: 1e5}))["recipes"][0]
    steps = told["scaling"]["steps"]
    assert (steps["decides"], steps["n_sizes_left_out"]) == ("censored", 2)
    assert steps["meta"]["n_sizes"] == 4
    alike = part(told, "slope of ED50 in steps")
    assert alike["answer"] == "contradicted"
    assert alike["effect"] == pytest.approx(steps["censored"]["slope"]["value"])
    assert "censored" in alike["reason"]


def test_where_training_fixed_the_start_it_is_not_tested(tmp_path: Path) -> None:
    observations = sizes({1e8: 8.0, 1e9: 8.0, 1e10: 8.0})
    free = told_of(tmp_path, observations)["recipes"][0]
    assert "training" not in part(free, "slope of RRR at dose 0")["reason"]
    fixed = told_of(tmp_path, observations, trained_to_refuse={"m1e+08", "m1e+09", "m1e+10"})["recipes"][0]
    start = part(fixed, "slope of RRR at dose 0")
    assert start["answer"] == "not testable"
    assert "training to refuse" in start["reason"]


def test_the_first_claim_is_tested_for_one_model_too(tmp_path: Path) -> None:
    told = told_of(tmp_path, arm(6.0, doses=(0, 500, 1000, 2000)))
    assert told["recipes"] == []
    entry = told["one_size"][0]
    assert entry["recipe"]["learning_rate"] == 1e-3
    assert [(one["number"], one["answer"]) for one in entry["claims"]] == [(1, "supported")]
    kept = told_of(tmp_path, arm(1e5, doses=(0, 500, 1000, 2000)))["one_size"][0]
    assert claim(kept, 1)["answer"] == "contradicted"


def test_claims_keep_their_level_whatever_the_study_reports_at(tmp_path: Path) -> None:
    told = told_of(tmp_path, sizes({1e8: 8.0, 1e9: 8.0, 1e10: 8.0}), level=0.5)
    assert told["level"] == 0.5
    levels = {one["level"] for number in (1, 3) for one in claim(told["recipes"][0], number)["parts"]}
    assert levels == {0.95}
    assert part(told["recipes"][0], "slope of RRR at dose 0")["level"] == 0.95
    assert told["recipes"][0]["pooled"]["level"] == 0.5


def test_a_size_that_was_not_run_is_predicted(tmp_path: Path) -> None:
    told = told_of(tmp_path, sizes({1e8: 8.0, 1e9: 8.0, 1e10: 8.0}))["recipes"][0]
    for fit in ("meta", "censored"):
        (found,) = told["scaling"]["steps"][fit]["predictions"]
        assert found["n_parameters"] == 1e11
        assert found["predict_low"] < 8 < found["predict_high"]


def test_the_fixed_learning_rate_is_the_first_listed(tmp_path: Path) -> None:
    observations = [
        seen
        for rate, ed50 in ((3e-4, 9.0), (1e-4, 20.0), (1e-3, 5.0))
        for seen in sizes({1e8: ed50, 1e9: ed50, 1e10: ed50}, learning_rate=rate, doses=LONG[:10])
    ]
    comparison = told_of(tmp_path, observations)["learning_rates"][0]["comparison"]
    assert comparison["fixed_learning_rate"] == 3e-4
    assert comparison["fixed"]["meta"]["predictions"][0]["n_parameters"] == 1e11


def test_a_broken_model_does_not_support_the_first_claim(tmp_path: Path) -> None:
    observations = sizes({1e9: 4.0})
    entry = told_of(tmp_path, observations)["one_size"][0]
    assert claim(entry, 1)["answer"] == "supported"
    name, judge = str(observations[0].setting["arm"]), next(iter(observations[0].labels))
    for verdict, answer in ((Verdict.BROKEN, "undecided"), (Verdict.REMOVED, "supported")):
        gates = {(name, judge): {500: DoseGate((), verdict, "")}}
        entry = told_of(tmp_path, observations, gates=gates)["one_size"][0]
        assert claim(entry, 1)["answer"] == answer
    assert f"{name} at 500 steps" not in claim(entry, 1)["reason"]
