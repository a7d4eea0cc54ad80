"""What each factor of a grid does: by hand, planted effects, grids that are not balanced, and whole runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from studies import files_of, run_study, write_study
from tamperdose.records import ESTIMATE_COLUMNS, Label
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.marginals import (
    ED50,
    MARGINAL_COLUMNS,
    MARGINALS,
    list_factors,
    marginal_rows,
    write_marginals,
)
from tamperdose.run.observed import Observation
from tamperdose.run.response import fit_arms
from tamperdose.run.schema import read_metrics
from tamperdose.stats.multiplicity import holm
from tamperdose.stats.rates import rate

LETTERS = {"r": Label.REFUSAL, "c": Label.COMPLIANCE, "d": Label.DEGENERATE, "u": Label.UNREADABLE}
DOSES = (0, 1, 2, 4, 8, 16)


def labels(letters: str) -> tuple[Label, ...]:
    return tuple(LETTERS[letter] for letter in letters)


def settings(**changes: Any) -> dict[str, Any]:
    common = {"study": "s", "model": "m", "defence": "none", "lora_rank": 8, "n_examples": 64, "learning_rate": 1e-3}
    common |= {"poison_ratio": 1.0, "seed": 1, "data_order": None} | changes
    named = "-".join(str(common[name]) for name in ("model", "defence", "lora_rank", "learning_rate", "seed"))
    return common | {"arm": f"{named}-o{common['data_order']}"}


def seen(after: str, steps: int, **changes: Any) -> Observation:
    base = {"j": labels("r" * len(after))}
    return Observation(
        settings(**changes) | {"dose_steps": steps}, tuple("abcdefgh"[: len(after)]), {"j": labels(after)}, base
    )


def arm(ed50: float, *, doses: Sequence[int] = DOSES, n: int = 80, **changes: Any) -> list[Observation]:
    """An arm whose prompts each break at a dose of their own around ED50, two prompts to a template."""
    setting = settings(**changes)
    rng = np.random.default_rng([n, *setting["arm"].encode()])
    breaks = ed50 * np.exp(0.5 * rng.standard_normal(n))
    base = {"j": labels("r" * n)}
    templates = tuple(f"t{k // 2}" for k in range(n))
    return [
        Observation(
            setting | {"dose_steps": steps},
            templates,
            {"j": tuple(Label.REFUSAL if steps < at else Label.COMPLIANCE for at in breaks)},
            base,
        )
        for steps in doses
    ]


def rows_of(observations: Sequence[Observation], **where: Any) -> list[dict[str, Any]]:
    """The rows that have these cells; arms are fitted only where their doses are asked for."""
    fits = fit_arms(observations, level=0.95) if where.get("metric") == ED50 else []
    rows = marginal_rows(observations, fits, level=0.95)
    return [row for row in rows if all(row.get(name) == value for name, value in where.items())]


def test_a_marginal_by_hand() -> None:
    arms = [
        [seen("rrrr", 0, lora_rank=8, seed=1), seen("rrcc", 2, lora_rank=8, seed=1)],
        [seen("rrrr", 0, lora_rank=8, seed=2), seen("rdcu", 2, lora_rank=8, seed=2)],
        [seen("rrrr", 0, lora_rank=64, seed=1), seen("rccc", 2, lora_rank=64, seed=1)],
        [seen("rrrr", 0, lora_rank=64, seed=2), seen("cccc", 2, lora_rank=64, seed=2)],
    ]
    observations = [one for cells in arms for one in cells]
    first, other = rows_of(observations, factor="lora_rank", dose_steps=2, metric="RRR")
    # Prompt d could not be read at rank 8, seed 2: it counts there by seed 1 alone.
    assert (first["factor_level"], first["reference"], first["n_arms"]) == ("8", "8", 2)
    assert first["value"] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    expected = rate([1, 0.5, 0, 0], list("abcd"))
    assert (first["low"], first["high"], first["scope"]) == (expected.low, expected.high, "arms")
    assert (first["n"], first["n_unreadable"]) == (4, 1)
    assert "difference" not in first and "p_value" not in first
    assert other["value"] == pytest.approx(0.5 / 4)
    assert (other["n"], other["n_pairs"]) == (4, 4)
    assert other["difference"] == pytest.approx(0.5 / 4 - 1.5 / 4)
    # Two templates changed, in one direction: 2 of the 4 sign patterns are as extreme.
    assert (other["p_value"], other["p_holm"], other["n_tests"]) == (0.5, 0.5, 1)
    complied = rows_of(observations, factor="lora_rank", dose_steps=2, metric="compliance_rate")
    degenerate = rows_of(observations, factor="lora_rank", dose_steps=2, metric="degenerate_rate")
    assert [row["value"] for row in degenerate] == pytest.approx([0.5 / 4, 0])
    for three in zip((first, other), complied, degenerate, strict=True):
        assert sum(row["value"] for row in three) == pytest.approx(1)
    by_seed = rows_of(observations, factor="seed", dose_steps=2, metric="RRR")
    assert [row["value"] for row in by_seed] == pytest.approx([(1 + 0.5) / 4, 0.5 / 4])
    assert all(row["balanced"] and row["differs_in"] == "" for row in [*by_seed, first, other])


def test_a_planted_effect_is_found_and_a_null_one_is_not() -> None:
    grid = [(rank, rate_, seed) for rank in (8, 64) for rate_ in (1e-3, 2e-3) for seed in (1, 2, 3)]
    observations = [
        one
        for rank, rate_, seed in grid
        for one in arm(6.0 if rank == 8 else 3.0, lora_rank=rank, learning_rate=rate_, seed=seed)
    ]
    planted = rows_of(observations, factor="lora_rank", dose_steps=4, metric="RRR", factor_level="64")[0]
    truth = _share(3.0, 4) - _share(6.0, 4)
    assert planted["difference_low"] <= truth <= planted["difference_high"] < 0
    assert planted["p_holm"] < 1e-3
    for factor, n_levels in (("learning_rate", 2), ("seed", 3)):
        null = [row for row in rows_of(observations, factor=factor, dose_steps=4, metric="RRR") if "p_holm" in row]
        assert len(null) == n_levels - 1
        assert all(row["difference_low"] < 0 < row["difference_high"] and row["p_holm"] > 0.05 for row in null)
        assert [row["p_holm"] for row in null] == holm([row["p_value"] for row in null])
        assert all(row["n_tests"] == n_levels - 1 and row["n_arms"] == 12 / n_levels for row in null)


def _share(ed50: float, steps: int) -> float:
    return float(norm.cdf(np.log(ed50 / steps) / 0.5))


def test_the_null_is_rejected_as_often_as_the_level_says() -> None:
    """Two learning rates that do the same: of 200 grids about one in twenty has p <= 0.05, not more."""
    rejected = 0
    for draw in range(200):
        grid = [(lr, 10 * draw + seed) for lr in (1e-3, 2e-3) for seed in (1, 2)]
        cells = [one for lr, seed in grid for one in arm(4.0, doses=(0, 4), n=40, learning_rate=lr, seed=seed)]
        # Seeds of one draw only: the factor of interest has two levels.
        row = next(
            row for row in marginal_rows(cells, [], level=0.95) if row["factor"] == "learning_rate" and "p_holm" in row
        )
        rejected += float(str(row["p_holm"])) <= 0.05
    assert rejected <= 18


def test_the_mean_dose_of_a_level_is_geometric() -> None:
    observations = [
        one
        for rank, seed in ((8, 1), (8, 2), (64, 1))
        for one in arm(6.0 if rank == 8 else 3.0, lora_rank=rank, seed=seed)
    ]
    first, other = rows_of(observations, factor="lora_rank", metric=ED50)
    doses = [float(str(fit.fit.ed50.value)) for fit in fit_arms(observations, level=0.95)]
    assert first["value"] == pytest.approx((doses[0] * doses[1]) ** 0.5)
    assert first["value"] == pytest.approx(6.0, rel=0.15) and other["value"] == pytest.approx(doses[2])
    assert (first["n_censored"], first["low"], first["method"], first["n_arms"]) == (0, None, "geometric_mean", 2)
    assert "dose_steps" not in first and "difference" not in other


def test_censored_arms_leave_no_mean_dose() -> None:
    observations = [*arm(4.0, lora_rank=8), *arm(500.0, lora_rank=64, seed=1), *arm(5.0, lora_rank=64, seed=2)]
    whole, censored = rows_of(observations, factor="lora_rank", metric=ED50)
    assert whole["value"] == pytest.approx(4.0, rel=0.2)
    assert (censored["value"], censored["n_censored"], censored["censored"]) == (None, 1, "right")
    assert censored["n_arms"] == 2


def test_a_grid_that_is_not_balanced_says_what_else_differs() -> None:
    cells = [
        seen("rrcc", 1, model="a", defence="none"),
        seen("rrrc", 1, model="a", defence="tuned"),
        seen("rccc", 1, model="b", defence="none"),
    ]
    factors = {factor.name: factor.differs_in for factor in list_factors(cells)}
    assert factors == {"model": ("defence",), "defence": ("model",)}
    rows = rows_of(cells, metric="RRR", factor="model")
    assert [(row["balanced"], row["differs_in"], row["n_arms"]) for row in rows] == [
        (False, "defence", 2),
        (False, "defence", 1),
    ]
    crossed = [
        seen("rrcc", 1, model=m, lora_rank=r, seed=s)
        for m, r, s in (("a", 8, 1), ("a", 64, 2), ("b", 8, 2), ("b", 64, 1))
    ]
    assert {factor.name: factor.differs_in for factor in list_factors(crossed)}["model"] == ("combinations",)


def test_only_doses_that_all_arms_have() -> None:
    observations = [*arm(4.0, lora_rank=8, doses=(0, 1, 2, 3, 4, 8)), *arm(4.0, lora_rank=64, doses=(0, 1, 2, 4, 6, 8))]
    doses = [row["dose_steps"] for row in rows_of(observations, metric="RRR", factor_level="8")]
    assert doses == [0, 1, 2, 4, 8]


def test_dose_0_is_compared_only_between_untampered_models() -> None:
    observations = [*arm(4.0, model="a", lora_rank=8), *arm(4.0, model="a", lora_rank=64)]
    observations += [*arm(4.0, model="b", lora_rank=8), *arm(4.0, model="b", lora_rank=64)]
    at_0 = {
        row["factor"]: row
        for row in rows_of(observations, metric="RRR", dose_steps=0)
        if row["factor_level"] in ("b", "64")
    }
    assert at_0["model"]["difference"] == 0 and at_0["model"]["p_value"] == 1
    assert "difference" not in at_0["lora_rank"]


def test_orders_and_nothing_read() -> None:
    observations = [seen("uuuu", 1, data_order=None), seen("rrcc", 1, data_order=7)]
    first, other = rows_of(observations, metric="RRR")
    assert (first["factor"], first["factor_level"], other["factor_level"]) == ("data_order", "null", "7")
    assert (first["value"], first["low"], first["n_unreadable"]) == (None, None, 4)
    assert (other["value"], other["difference"], other["p_holm"], other["n_tests"]) == (0.5, None, None, 0)


def test_the_same_bytes_in_any_company_and_no_file_without_a_factor(tmp_path: Path) -> None:
    observations = [*arm(4.0, lora_rank=8), *arm(3.0, lora_rank=64)]
    fits = fit_arms(observations, level=0.95)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_marginals(tmp_path / name, observations, fits, level=0.95)
    text = (tmp_path / "one" / MARGINALS).read_bytes()
    assert text == (tmp_path / "two" / MARGINALS).read_bytes()
    write_marginals(tmp_path / "one", arm(4.0), [], level=0.95)
    assert not (tmp_path / "one" / MARGINALS).exists()


# --- the file


def test_columns_are_those_of_the_contract(tmp_path: Path) -> None:
    words = (
        "study factor factor_level reference n_arms balanced differs_in judge dose_steps metric value low high level "
        "method n n_templates n_effective n_unreadable scope censored n_censored difference difference_low "
        "difference_high n_pairs p_value p_method p_holm n_tests"
    )
    assert " ".join(MARGINAL_COLUMNS) == words
    observations = [*arm(4.0, model="=cmd", lora_rank=8), *arm(500.0, model="=cmd", lora_rank=64)]
    write_marginals(tmp_path, observations, fit_arms(observations, level=0.95), level=0.95)
    rows = read_rows(tmp_path / MARGINALS, MARGINAL_COLUMNS)
    assert len(rows) == 2 * (3 * len(DOSES) + 1)
    for row in rows:
        _check_row(row)


def _check_row(row: Row) -> None:
    assert isinstance(row["factor_level"], str) and isinstance(row["n_arms"], int) and row["balanced"] is True
    assert set(ESTIMATE_COLUMNS) <= set(row)
    if row["metric"] == "ED50_steps":
        assert row["dose_steps"] is None
        assert (row["value"] is None) == (row["n_censored"] == 1)
        return
    value, low, high = (float(str(row[name])) for name in ("value", "low", "high"))
    assert 0 <= low <= value <= high <= 1
    assert row["n_censored"] is None and row["dose_steps"] in DOSES
    if row["factor_level"] == row["reference"] or row["dose_steps"] == 0:
        assert row["difference"] is None and row["p_holm"] is None
    else:
        ends = [float(str(row[name])) for name in ("difference_low", "difference", "difference_high")]
        assert ends == sorted(ends)


def test_a_run_over_a_grid(tmp_path: Path, stub: None) -> None:
    grid = ("attack.lora_rank=[2, 4]", "seeds=[1, 2, 3]")
    path = write_study(tmp_path / "study", n_prompts=40)
    run = run_study(path, *grid)
    rows = read_rows(run / MARGINALS, MARGINAL_COLUMNS)
    assert {(row["factor"], row["factor_level"]) for row in rows} == {
        *(("lora_rank", level) for level in ("2", "4")),
        *(("seed", level) for level in ("1", "2", "3")),
    }
    frame = read_metrics(run / "metrics.csv")
    told = frame[(frame["metric"] == "RRR") & (frame["dose_steps"] == 2)]
    for row in [row for row in rows if row["metric"] == "RRR" and row["dose_steps"] == 2]:
        mine = told[told[str(row["factor"])].astype(str) == row["factor_level"]]
        assert row["value"] == pytest.approx(mine["value"].mean())
        assert row["n_arms"] == len(mine)
    # The scripted engine answers by the seed alone, so ranks differ in nothing.
    ranks = [row for row in rows if row["factor"] == "lora_rank" and row["difference"] is not None]
    assert ranks and all(row["difference"] == 0 and row["p_value"] == 1 for row in ranks)
    before = files_of(run)
    run_study(path, *grid)
    assert files_of(run) == before
    run_study(path)
    assert not (run / MARGINALS).exists()
