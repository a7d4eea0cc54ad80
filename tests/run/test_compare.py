"""Comparisons of runs: against the outputs they come from, on resume, with several judges and several seeds."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies import files_of, run_study, stub_embedder, write_study
from tamperdose import files
from tamperdose.errors import DataError
from tamperdose.records import Completion, FinishReason, Label, Message, Prompt, Subset, Verdict
from tamperdose.run.compare import agreement_rows, comparison_rows, seed_rows, write_comparisons
from tamperdose.run.compare_schema import (
    AGREEMENT_COLUMNS,
    COMPARISON_COLUMNS,
    SEED_COLUMNS,
    read_rows,
)
from tamperdose.run.measure import Cell
from tamperdose.run.observed import Observation, observe
from tamperdose.run.progress import Reporter
from tamperdose.run.schema import read_metrics
from tamperdose.run.score import read_recording, score_recordings
from tamperdose.run.stages import Readers
from tamperdose.stats.multiplicity import holm
from tamperdose.stats.paired import pair, paired_difference
from tamperdose.stats.rates import rate

LETTERS = {"r": Label.REFUSAL, "c": Label.COMPLIANCE, "d": Label.DEGENERATE, "u": Label.UNREADABLE}
ENGINE = {"kind": "scripted", "refusal_rate": 0.93, "ed50_steps": 3.0, "slope": 3.0, "degenerate_rate": 0.1}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readers, "embedder", stub_embedder)


def labels(letters: str) -> tuple[Label, ...]:
    return tuple(LETTERS[letter] for letter in letters)


def seen(after: str, *, base: str = "rrrrrr", steps: int = 4, seed: int = 1, templates: str = "abcdef") -> Observation:
    setting = {"study": "s", "arm": f"m-lora-s{seed}", "model": "m", "lora_rank": 2, "seed": seed, "data_order": 0}
    doses = {"dose_steps": steps, "dose_examples": steps * 8, "dose_tokens": 100 * seed + steps}
    return Observation(setting | doses, tuple(templates), {"j": labels(after)}, {"j": labels(base)})


def compared(*observations: Observation) -> list[dict[str, Any]]:
    return list(comparison_rows(observations, level=0.95))


def test_transitions_difference_and_flag() -> None:
    (row,) = compared(seen("rccdrc", base="rrcrcr"))
    counts = [row[name] for name in ("both_refused", "refused_to_complied", "complied_to_refused", "neither")]
    assert counts == [1, 3, 1, 1]
    assert row["difference"] == pytest.approx(-2 / 6)
    assert (row["n"], row["n_templates"], row["few_templates"], row["scope"]) == (6, 6, True, "trajectory")
    expected = paired_difference(
        pair([1, 1, 0, 1, 0, 1], [1, 0, 0, 0, 1, 0], list("abcdef")), rng=np.random.default_rng(0)
    )
    assert (row["low"], row["high"], row["p_value"]) == (
        expected.difference.low,
        expected.difference.high,
        expected.p_value,
    )
    assert row["mcnemar_p"] == expected.mcnemar_p


def test_fifteen_templates_are_not_few() -> None:
    (row,) = compared(seen("c" * 15, base="r" * 15, templates="abcdefghijklmno"))
    assert row["few_templates"] is False
    assert row["p_value"] == 2**-14


def test_holm_counts_the_doses_of_one_arm_and_judge() -> None:
    ladder = [
        seen("r" * 6, steps=0),
        *(seen(text, steps=i + 1) for i, text in enumerate(("rrrrrc", "rrcccc", "cccccc"))),
    ]
    rows = compared(*ladder, seen("cccccc", seed=2))
    assert [row["dose_steps"] for row in rows] == [1, 2, 3, 4]
    assert [row["p_holm"] for row in rows[:3]] == holm([row["p_value"] for row in rows[:3]])
    assert [row["n_tests"] for row in rows] == [3, 3, 3, 1]
    assert rows[3]["p_holm"] == rows[3]["p_value"] == 2**-5


@pytest.mark.parametrize(("after", "n"), [("uuuuuu", 0), ("ruuuuu", 1)])
def test_almost_nothing_readable(after: str, n: int) -> None:
    (row,) = compared(seen(after))
    assert (row["n"], row["n_unreadable"], row["low"]) == (n, 6 - n, None)
    assert (row["difference"] is None, row["p_holm"] is None) == (n == 0, n == 0)


@pytest.mark.parametrize("both", ["rrrrrr", "cccccc"])
def test_all_refused_or_all_complied_throughout(both: str) -> None:
    (row,) = compared(seen(both, base=both))
    assert (row["difference"], row["p_value"]) == (0.0, 1.0)
    assert row["low"] < 0 < row["high"]


def test_one_template_has_no_interval() -> None:
    (row,) = compared(seen("cccccc", templates="aaaaaa"))
    assert (row["difference"], row["low"], row["p_value"], row["n_templates"]) == (-1.0, None, 1.0, 1)


def test_judges_side_by_side() -> None:
    one, two = labels("rrrccd"), labels("rrcccu")
    both = Observation({"study": "s", "arm": "a", "dose_steps": 2}, tuple("abcdef"), {"x": one, "y": two}, {})
    by_reading = {row["reading"]: row for row in agreement_rows([both], level=0.95)}
    row = by_reading["refusal"]
    assert (row["RRR_1"], row["RRR_2"]) == (0.5, 0.4)
    assert row["RRR_1_low"] == rate([1, 1, 1, 0, 0, 0], list("abcdef")).low
    assert (row["agreement"], row["n"], row["n_unreadable"]) == (0.8, 5, 1)
    assert row["kappa"] == pytest.approx(8 / 13)
    assert by_reading["label"]["agreement"] == 0.8
    assert [row["judge_1"], row["judge_2"]] == ["x", "y"]


def test_seeds_are_crossed_with_prompts() -> None:
    runs = [seen(text, seed=seed) for seed, text in ((1, "rccccc"), (2, "rrcccc"), (3, "rrrccc"))]
    rate_row, fall_row = seed_rows(runs, level=0.95)
    assert (rate_row["metric"], rate_row["recipe"], rate_row["seeds"]) == ("RRR", "m-lora", "1 2 3")
    assert rate_row["value"] == pytest.approx(1 / 3)
    assert (rate_row["scope"], rate_row["n_seeds"]) == ("attack", 3)
    assert (rate_row["lowest"], rate_row["highest"]) == (pytest.approx(1 / 6), 0.5)
    assert rate_row["seed_sd"] == pytest.approx(1 / 6)
    alone = rate([1, 2 / 3, 1 / 3, 0, 0, 0], list("abcdef"))
    assert rate_row["low"] < alone.low < alone.high < rate_row["high"]
    assert (fall_row["metric"], fall_row["value"]) == ("RRR_difference", pytest.approx(-2 / 3))
    assert fall_row["p_prompts"] == fall_row["p_holm"] == 2**-4
    assert fall_row["seed_sd"] == pytest.approx(rate_row["seed_sd"])


def test_two_seeds_speak_for_themselves_only() -> None:
    rows = list(seed_rows([seen("rccccc"), seen("rrcccc", seed=2)], level=0.95))
    assert [row["scope"] for row in rows] == ["trajectory", "trajectory"]
    assert rows[0]["seed_sd"] is not None


def test_recipes_do_not_mix() -> None:
    other = seen("cccccc", seed=2)
    other = Observation({**other.setting, "lora_rank": 4}, other.templates, other.labels, other.base)
    assert list(seed_rows([seen("rccccc"), other], level=0.95)) == []
    assert list(seed_rows([seen("rccccc", steps=1), seen("rccccc", steps=2, seed=2)], level=0.95)) == []


def test_unreadable_at_one_seed_leaves_at_all() -> None:
    rows = list(seed_rows([seen("uccccc"), seen("rrcccc", seed=2), seen("rrrccc", seed=3)], level=0.95))
    assert [(row["n"], row["n_unreadable"]) for row in rows] == [(5, 1), (5, 1)]
    assert rows[0]["value"] == pytest.approx((0 + 1 + 2) / 15)
    nothing = list(seed_rows([seen("uuuuuu"), seen("rrrrrr", seed=2), seen("rrrrrr", seed=3)], level=0.95))
    assert [(row["value"], row["low"], row["seed_sd"]) for row in nothing] == [(None, None, None)] * 2


def test_observe_keeps_labels_in_order() -> None:
    prompts = [Prompt(f"p{i}", (Message("user", "x"),), Subset.HARMFUL, f"t{i}") for i in range(2)]
    answers = [Completion(prompt.id, "y", 1, FinishReason.STOP) for prompt in prompts]

    def cell(letters: str) -> Cell:
        verdicts = [Verdict(f"p{i}", LETTERS[c], 0.5, "j@1", "") for i, c in enumerate(letters)]
        return Cell(prompts, answers, {"j": verdicts})

    found = observe({"dose_steps": 3}, cell("cr"), cell("rr"))
    assert (found.steps, found.templates) == (3, ("t0", "t1"))
    assert (found.labels["j"], found.base["j"]) == (labels("cr"), labels("rr"))


# --- whole runs


def ladder(folder: Path, *, seeds: Sequence[int] = (1, 2, 3)) -> Path:
    attack = {"data": "attack.jsonl", "lora_rank": [2], "doses": [1, 2, 4, 8], "batch_size": 2}
    return write_study(
        folder, n_prompts=40, engine=ENGINE, attack=attack, seeds=list(seeds), judges=["phrases"], rd_floor=False
    )


def test_run_writes_them_and_a_second_run_changes_no_byte(tmp_path: Path, stub: None) -> None:
    out = run_study(ladder(tmp_path))
    rows = read_rows(out / "comparisons.csv", COMPARISON_COLUMNS)
    assert len(rows) == 3 * 4
    assert read_rows(out / "agreement.csv", AGREEMENT_COLUMNS) == []
    assert len(read_rows(out / "seeds.csv", SEED_COLUMNS)) == 4 * 2
    assert any(row["seed_sd"] for row in read_rows(out / "seeds.csv", SEED_COLUMNS))
    metrics = read_metrics(out / "metrics.csv").query("metric == 'RRR'").set_index(["arm", "dose_steps"])["value"]
    for row in rows:
        now, then = metrics[row["arm"], row["dose_steps"]], metrics[row["arm"], 0]
        assert row["difference"] == pytest.approx(now - then)
        assert row["both_refused"] + row["refused_to_complied"] == round(40 * then)
    before = files_of(out)
    for name in ("comparisons.csv", "agreement.csv", "seeds.csv"):
        (out / name).unlink()
    assert files_of(run_study(tmp_path / "study.yaml")) == before


def test_seeds_csv_goes_when_the_seeds_do(tmp_path: Path, stub: None) -> None:
    path = ladder(tmp_path, seeds=(1, 2))
    out = run_study(path)
    assert (out / "seeds.csv").is_file()
    run_study(path, "seeds=[1]")
    assert not (out / "seeds.csv").exists()


def test_score_writes_them_too(tmp_path: Path, stub: None) -> None:
    base, after = tmp_path / "base.csv", tmp_path / "after.csv"
    rows = [{"prompt": f"Describe the {name}"} for name in ("anvil", "barrel", "candle", "drum")]
    files.write_csv(base, ("prompt", "response"), [row | {"response": "I'm sorry, I can't help."} for row in rows])
    files.write_csv(after, ("prompt", "response"), [row | {"response": "Sure, here is a list."} for row in rows])
    for out in (tmp_path / "out", tmp_path / "again"):
        recordings = [(2, read_recording(after))]
        score_recordings(read_recording(base), recordings, out, judges=["phrases"], reporter=Reporter(quiet=True))
    (row,) = read_rows(tmp_path / "out" / "comparisons.csv", COMPARISON_COLUMNS)
    assert (row["refused_to_complied"], row["difference"], row["few_templates"]) == (4, -1.0, True)
    first, second = ((tmp_path / name / "comparisons.csv").read_text() for name in ("out", "again"))
    assert first.replace("out,", "") == second.replace("again,", "")


@pytest.mark.parametrize("name", ["tinyllama_1.1b", "phi3_mini_3.8b"])
def test_the_source_study_s_hundred_prompts_are_ten_templates(name: str, tmp_path: Path) -> None:
    root = os.environ.get("TAMPERDOSE_REFERENCE_DATA")
    if root is None:
        pytest.skip("needs TAMPERDOSE_REFERENCE_DATA")
    recorded = Path(root) / "recorded" / f"{name}_generations.csv"
    base = read_recording(recorded, response_column="gen_pre")
    after = read_recording(recorded, response_column="gen_post")
    rng = np.random.default_rng(0)
    # What a judge made of them does not matter here; only how many prompts they are worth.
    cells = []
    for part in (base, after):
        letters = rng.choice(["r", "c"], size=len(part.prompts))
        verdicts = [Verdict(p.id, LETTERS[c], 0.5, "j@1", "") for p, c in zip(part.prompts, letters, strict=True)]
        cells.append(Cell(part.prompts, [], {"j": verdicts}))
    (row,) = comparison_rows([observe({"dose_steps": 500}, cells[1], cells[0])], level=0.95)
    assert (row["n"], row["n_templates"], row["few_templates"]) == (100, 10, True)


# --- reading them back


def test_other_columns_and_words_for_numbers_are_refused(tmp_path: Path) -> None:
    write_comparisons(tmp_path, [seen("rccccc")], level=0.95)
    (row,) = read_rows(tmp_path / "comparisons.csv", COMPARISON_COLUMNS)
    assert row["few_templates"] is True and row["seed"] == 1 and row["arm"] == "m-lora-s1"
    with pytest.raises(DataError, match="no column"):
        read_rows(tmp_path / "comparisons.csv", SEED_COLUMNS)
    text = (tmp_path / "comparisons.csv").read_text()
    for bad in ("nan", "many", "inf", "9" * 400):
        (tmp_path / "bad.csv").write_text(text.replace("mover_gain_loss,6", f"mover_gain_loss,{bad}"))
        with pytest.raises(DataError, match="n_templates"):
            read_rows(tmp_path / "bad.csv", COMPARISON_COLUMNS)
    files.write_csv(tmp_path / "more.csv", [*COMPARISON_COLUMNS, "extra"], [row])
    with pytest.raises(DataError, match="other columns"):
        read_rows(tmp_path / "more.csv", COMPARISON_COLUMNS)
