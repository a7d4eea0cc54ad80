from pathlib import Path

import pytest

from tamperdose.records import Label
from tamperdose.report.comparisons import comparison_lines, comparisons_of
from tamperdose.report.plans import detectable_line
from tamperdose.run.compare import write_comparisons
from tamperdose.run.observed import Observation

R, C = Label.REFUSAL, Label.COMPLIANCE


def seen(n_refused: int, steps: int, *, seed: int = 1, other: int | None = None, arm: str = "m") -> Observation:
    n, base = 20, tuple([R] * 20)
    setting = {"study": "s", "arm": f"{arm}-s{seed}", "model": "m", "seed": seed, "dose_steps": steps}
    labels = {"phrases": tuple([R] * n_refused + [C] * (n - n_refused))}
    if other is not None:
        labels["classifier"] = tuple([R] * other + [C] * (n - other))
    return Observation(setting, tuple(f"t{i}" for i in range(n)), labels, dict.fromkeys(labels, base))


def lines(folder: Path, *observations: Observation) -> list[str]:
    write_comparisons(folder, observations, level=0.95)
    return comparison_lines(folder, "phrases")


def test_the_largest_fall_and_its_holm_p(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, seen(20, 0), seen(18, 1), seen(4, 2), seen(4, 4))
    assert line.startswith("m-s1: largest fall of RRR 0.800 [0.")
    assert "at dose 2 (16 refused -> not refused, 0 back, 20 pairs)" in line
    assert f"Holm p {3 * 2**-15:.2g} over 3 doses, p <= 0.05 first at dose 2" in line
    assert "templates" not in line


def test_few_templates_are_told(tmp_path: Path) -> None:
    one = seen(0, 1)
    few = Observation(one.setting, tuple(f"t{i % 10}" for i in range(20)), one.labels, one.base)
    (line,) = lines(tmp_path, few)
    assert "20 pairs; only 10 templates" in line and "at dose 1 (" in line


def test_no_fall(tmp_path: Path) -> None:
    assert lines(tmp_path, seen(20, 1), seen(20, 2)) == ["m-s1: RRR fell at no dose"]


def test_nothing_significant(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, seen(19, 1))
    assert line.endswith("Holm p 1 over 1 doses, p <= 0.05 at no dose")


def test_judges_side_by_side(tmp_path: Path) -> None:
    _, line = lines(tmp_path, seen(20, 0, other=20), seen(4, 2, other=6), seen(2, 4, other=8))
    assert line.startswith(
        "  RRR by judge: phrases 1.000 -> 0.100, classifier 1.000 -> 0.400; they agree least at dose 4"
    )
    assert "0.700, kappa 0.286 [" in line


def test_seeds_side_by_side(tmp_path: Path) -> None:
    *_, line = lines(tmp_path, *(seen(4 + 2 * seed, 2, seed=seed) for seed in (1, 2, 3)))
    assert line.startswith("m: 3 seeds lie furthest apart at dose 2: RRR 0.300 to 0.500, SD 0.100 [0.0")
    assert line.endswith("for the attack")
    *_, same = lines(tmp_path, *(seen(4, 2, seed=seed) for seed in (1, 2, 3)))
    assert same == "m: 3 seeds have the same RRR at every dose"
    *_, two = lines(tmp_path, *(seen(4 + 2 * seed, 2, seed=seed) for seed in (1, 2)))
    assert two.endswith("for these runs only (fewer than 3 seeds)")


def test_hostile_names_stay_one_line(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, seen(4, 2, arm="a\x1b[31m\nb"))
    assert line.startswith("a [31m b-s1: ")


def test_a_run_without_them_has_no_lines(tmp_path: Path) -> None:
    assert comparison_lines(tmp_path, "phrases") == []
    assert comparisons_of(tmp_path, "phrases") == {"comparisons": [], "agreement": [], "seeds": []}


@pytest.mark.parametrize(("at_0", "tail"), [(0.1, "ICC 0.3 assumed; 0.10 at ICC 0)"), (None, "ICC 0.3 assumed)")])
def test_plan_s_line(at_0: float | None, tail: str) -> None:
    found = {"fall": 0.214, "fall_at_icc_0": at_0, "power": 0.8, "level": 0.95, "n_tests": 8, "n": 100}
    line = detectable_line(found | {"n_templates": 10, "icc": 0.3, "reason": ""})
    assert line.startswith("smallest fall of RRR this set can show: 0.21 (power 80%, 5% two-sided, Holm over 8 doses;")
    assert line.endswith(tail)
