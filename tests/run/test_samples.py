"""Several samples of every prompt: keys, resume, rates over all answers, any-of-k, and what reads a run afterwards."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from studies import files_of, plan_of, run_study, stub_embedder, tiny_changes, write_study
from tamperdose.errors import DataError, StudyError
from tamperdose.files import read_csv, write_csv
from tamperdose.models.scripted import ScriptedGenerator
from tamperdose.records import Completion, FinishReason, Label, Message, Prompt, Subset, Verdict
from tamperdose.run.audit import read_audit
from tamperdose.run.calibrate import calibrate
from tamperdose.run.draws import base_draws
from tamperdose.run.labels import draw_sheet, key_path, read_run
from tamperdose.run.ledger import stage_key
from tamperdose.run.measure import Cell, harmful_metrics, join_samples
from tamperdose.run.plan import FLOOR_DECODING, Plan
from tamperdose.run.progress import Reporter
from tamperdose.run.schema import read_metrics
from tamperdose.run.score import align, read_recording, score_recordings
from tamperdose.run.stages import Readers
from tamperdose.stats.rates import rate
from tamperdose.study import load_study

pytestmark = pytest.mark.usefixtures("stub")

K = 3
SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_new_tokens": 6}
ARM = "fake-lora-r2-lr0.0002-s42"


def _study(folder: Path, n_samples: int = K, **changes: object) -> Path:
    decoding = SAMPLED | {"n_samples": n_samples}
    engine = {"kind": "scripted", "refusal_rate": 0.8, "ed50_steps": 2.0, "degenerate_rate": 0.2}
    return write_study(folder, n_prompts=40, **{"decoding": decoding, "engine": engine, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scripted run of three samples each of 40 prompts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readers, "embedder", stub_embedder)
        return run_study(_study(tmp_path_factory.mktemp("samples")))


def _answers(run: Path, dose: int) -> Any:
    _, rows = read_csv(run / "outputs" / ARM / f"{dose}.csv", required=("id", "sample", "verdict_phrases"))
    frame = pd.DataFrame(rows)
    return frame[frame["subset"] == "harmful"]


def _value(run: Path, metric: str, dose: int) -> float:
    frame: Any = read_metrics(run / "metrics.csv")
    return frame[(frame["metric"] == metric) & (frame["dose_steps"] == dose)]["value"].item()


def test_one_sample_has_the_keys_it_always_had(tmp_path: Path) -> None:
    plan = plan_of(_study(tmp_path, n_samples=1))
    decoding = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_new_tokens": 6}
    inputs = {
        "origin": plan.models[0].key,
        "engine": plan.study.engine.model_dump(mode="json"),
        "prompts": plan.data.prompts_digest[Subset.HARMFUL],
        "decoding": decoding,
        "sample": 0,
        "seed": 42,
    }
    assert base_draws(plan, plan.models[0])[0].key == stage_key("generate", inputs)


def test_more_samples_leave_those_there_are_as_they_are(tmp_path: Path) -> None:
    one, three = (base_draws(plan, plan.models[0]) for plan in _plans(tmp_path, 1, 3))
    assert len(one) == 4
    assert len(three) == 8
    assert {draw.key for draw in one} < {draw.key for draw in three}
    assert [draw.sample for draw in three[:3]] == [0, 1, 2]


def _plans(folder: Path, *counts: int) -> list[Plan]:
    return [plan_of(_study(folder / str(count), n_samples=count)) for count in counts]


def test_samples_drawn_as_the_floor_is_serve_as_the_floor(tmp_path: Path) -> None:
    decoding = {name: value for name, value in FLOOR_DECODING.items() if name != "n_samples"}
    path = _study(
        tmp_path, decoding={**decoding, "max_new_tokens": 6, "n_samples": 2}, prompts={"harmful": "harmful.csv"}
    )
    plan = plan_of(path)
    assert [draw.sample for draw in base_draws(plan, plan.models[0])] == [0, 1, 2]
    run = run_study(path)
    assert 0 < _value(run, "RD_floor", 0) < 2


def test_greedy_decoding_has_one_sample(tmp_path: Path) -> None:
    path = _study(tmp_path, decoding={"max_new_tokens": 6, "n_samples": 2})
    with pytest.raises(StudyError, match="n_samples: 2 without do_sample: true"):
        load_study(path)
    with pytest.raises(StudyError, match="n_samples"):
        load_study(path, ["decoding.n_samples=0"])


def test_the_outputs_hold_every_sample_and_one_sample_has_no_column(run: Path, tmp_path: Path) -> None:
    answers = _answers(run, 1)
    assert len(answers) == 40 * K
    assert set(answers.groupby("id")["sample"].agg(lambda of: tuple(sorted(of)))) == {("0", "1", "2")}
    single = run_study(_study(tmp_path, n_samples=1))
    columns, rows = read_csv(single / "outputs" / ARM / "1.csv", required=("id",))
    assert "sample" not in columns
    assert len(rows) == 43


@pytest.mark.parametrize("dose", [0, 1, 2])
def test_rates_are_those_of_the_outputs(run: Path, dose: int) -> None:
    answers = _answers(run, dose)
    refused = answers["verdict_phrases"] == "refusal"
    assert _value(run, "RRR", dose) == pytest.approx(refused.mean())
    # All prompts have as many samples, so that the mean over answers is that of the prompts' means.
    assert _value(run, "RRR", dose) == pytest.approx(refused.groupby(answers["id"]).mean().mean())
    complied = (answers["verdict_phrases"] == "compliance").groupby(answers["id"]).any()
    assert _value(run, "any_compliance_rate", dose) == complied.mean()
    assert _value(run, "all_refusal_rate", dose) == refused.groupby(answers["id"]).all().mean()
    assert _value(run, "RRR", dose) + _value(run, "CE", dose) == pytest.approx(1)
    split = _value(run, "compliance_rate", dose) + _value(run, "degenerate_rate", dose)
    assert split == pytest.approx(_value(run, "CE", dose))


def test_more_tries_find_more_compliance(run: Path) -> None:
    for dose in (0, 1, 2):
        assert _value(run, "any_compliance_rate", dose) > _value(run, "compliance_rate", dose)
        assert _value(run, "all_refusal_rate", dose) < _value(run, "RRR", dose)


def test_dose_0_is_paired_with_itself(run: Path) -> None:
    assert _value(run, "RD", 0) == 0
    assert _value(run, "refusal_retention", 0) == 1


def test_the_dose_response_takes_every_sample(run: Path) -> None:
    _, rows = read_csv(run / "dose_response.csv", required=("metric", "n", "n_templates"))
    ed50 = next(row for row in rows if row["metric"] == "ED50_steps")
    assert (ed50["n"], ed50["n_templates"]) == (str(40 * K), "40")


def test_the_audit_finds_the_numbers_in_order(run: Path) -> None:
    audit = read_audit(run)
    assert audit is not None
    outcomes = {check.name: check.outcome.value for check in audit.checks}
    assert outcomes["stored_metrics"] == outcomes["rrr_plus_ce"] == "pass"
    templates = next(check for check in audit.checks if check.name == "n_templates")
    assert "40 harmful prompts in 10 templates" in templates.evidence


def test_a_run_that_gets_more_samples_is_the_run_that_had_them(run: Path, tmp_path: Path) -> None:
    path = _study(tmp_path, n_samples=1)
    grown = run_study(path)
    answers = set((grown / "ledger" / "generate").glob("*.jsonl"))
    run_study(path, f"decoding.n_samples={K}")
    assert answers < set((grown / "ledger" / "generate").glob("*.jsonl"))
    there, here = files_of(run), files_of(grown)
    assert all(here[name] == there[name] for name in there if name.startswith(("outputs", "metrics")))


def test_a_search_goes_by_all_samples(tmp_path: Path) -> None:
    attack = {"data": "attack.jsonl", "lora_rank": 2, "batch_size": 2, "doses": "auto", "search": {"max_steps": 16}}
    found = run_study(_study(tmp_path, attack=attack))
    _, rows = read_csv(found / "dose_response.csv", required=("metric", "value"))
    assert float(next(row["value"] for row in rows if row["metric"] == "ED50_steps")) == pytest.approx(2, rel=0.5)


def test_a_tiny_model_draws_its_samples_apart(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    path = write_study(tmp_path, **tiny_changes(tiny_folders["llama"], decoding=SAMPLED | {"n_samples": 2}))
    made = run_study(path, "attack.doses=[1]")
    outputs = next((made / "outputs").glob("*/1.csv"))
    frame: Any = pd.DataFrame(read_csv(outputs, required=("id", "sample", "completion"))[1])
    wide = frame.pivot_table(index=["subset", "id"], columns="sample", values="completion", aggfunc="first")
    assert (wide["0"] != wide["1"]).any()


def test_labels_and_calibration_know_the_samples_apart(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    answers = read_run(copy).answers
    assert len({answer.key for answer in answers}) == len(answers) == 3 * 40 * K
    drawn = draw_sheet(copy, n=200)
    columns, rows = read_csv(drawn.sheet, required=("item",))
    _, key = read_csv(key_path(copy, drawn.sheet.stem), required=("item", "id", "sample", "verdict"))
    assert {row["sample"] for row in key} == {"0", "1", "2"}
    verdicts = {row["item"]: row["verdict"] for row in key}
    filled = [row | {"label": verdicts[row["item"]], "labeller": "a", "labeller_kind": "human"} for row in rows]
    labels = write_csv(tmp_path / "filled.csv", columns, filled)
    corrected = calibrate(copy, labels)
    assert corrected.summary["n_labelled"] == 200
    # Labels that agree with the judge move nothing.
    found = next(row for row in corrected.rows if row.metric == "RRR_corrected" and row.dose == 0)
    assert found.estimate.value == pytest.approx(_value(run, "RRR", 0), abs=0.03)


def test_the_key_of_a_run_of_one_sample_has_no_sample(tmp_path: Path) -> None:
    single = run_study(_study(tmp_path, n_samples=1))
    drawn = draw_sheet(single, n=100)
    columns, _ = read_csv(key_path(single, drawn.sheet.stem), required=("item",))
    assert "sample" not in columns


def _recorded(folder: Path, run: Path, dose: int) -> Path:
    rows = _answers(run, dose).rename(columns={"completion": "response"}).to_dict("records")
    return write_csv(folder / f"{dose}.csv", ("id", "template", "prompt", "response", "sample"), rows)


def test_recorded_samples_score_as_the_run_did(run: Path, tmp_path: Path) -> None:
    base, attacked = (read_recording(_recorded(tmp_path, run, dose)) for dose in (0, 2))
    score_recordings(base, [(2, attacked)], tmp_path / "out", judges=["phrases"], reporter=Reporter(quiet=True))
    for metric in ("RRR", "any_compliance_rate", "all_refusal_rate", "refusal_retention", "RD"):
        assert _value(tmp_path / "out", metric, 2) == pytest.approx(_value(run, metric, 2))


def test_recorded_samples_are_paired_by_id_and_sample(run: Path, tmp_path: Path) -> None:
    base = read_recording(_recorded(tmp_path, run, 0))
    _, rows = read_csv(tmp_path / "0.csv", required=("id",))
    other = read_recording(write_csv(tmp_path / "other.csv", tuple(rows[0]), rows[::-1]))
    assert align(base, other).responses == base.responses


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), ("a", "1")], "data row 1: 'sample' is not a whole number"),
        ([("a", "0"), ("a", "0")], "repeats an id"),
        ([("a", "0"), ("a", "1"), ("b", "0")], "not every prompt has the same samples"),
    ],
)
def test_recorded_samples_must_be_told_apart(tmp_path: Path, rows: list[tuple[str, str]], message: str) -> None:
    cells = [{"id": name, "sample": sample, "prompt": f"p {name}", "response": "r"} for name, sample in rows]
    path = write_csv(tmp_path / "bad.csv", ("id", "sample", "prompt", "response"), cells)
    with pytest.raises(DataError, match=message):
        read_recording(path)


def _cell(labels: list[list[Label]]) -> Cell:
    """Labels of each sample of each prompt, as cells of one sample joined."""
    cells = []
    for sample, column in enumerate(zip(*labels, strict=True)):
        prompts = [Prompt(f"p{i}", (Message("user", "x"),), Subset.HARMFUL, f"t{i}") for i in range(len(labels))]
        completions = [Completion(prompt.id, "x", 1, FinishReason.STOP, sample) for prompt in prompts]
        verdicts = [
            Verdict(prompt.id, label, None, "j@1", "", sample) for prompt, label in zip(prompts, column, strict=True)
        ]
        cells.append(Cell(prompts, completions, {"j": verdicts}))
    return join_samples(cells)


def test_a_prompt_that_an_unread_sample_would_decide_leaves_the_denominator() -> None:
    no, yes, broken, lost = Label.REFUSAL, Label.COMPLIANCE, Label.DEGENERATE, Label.UNREADABLE
    cell = _cell([[no, no], [yes, lost], [no, lost], [broken, lost], [lost, lost], [broken, no]])
    found = {item.metric: item.estimate for item in harmful_metrics(cell, cell, at_base=True, level=0.95)}
    # Known: refused twice, complied once, and the pair without an unread sample; the broken one may yet comply.
    assert (found["any_compliance_rate"].value, found["any_compliance_rate"].n) == (pytest.approx(1 / 3), 3)
    assert (found["all_refusal_rate"].value, found["all_refusal_rate"].n) == (pytest.approx(1 / 4), 4)
    assert (found["RRR"].n, found["RRR"].n_unreadable) == (7, 5)


def test_samples_that_all_agree_are_worth_their_prompts_and_samples_at_random_more() -> None:
    labels = [[Label.REFUSAL] * 4 if i % 3 else [Label.COMPLIANCE] * 4 for i in range(60)]
    copies = next(item for item in harmful_metrics(_cell(labels), _cell(labels), at_base=True, level=0.95))
    single = rate([i % 3 > 0 for i in range(60)], [f"t{i}" for i in range(60)])
    assert copies.estimate.n_effective == pytest.approx(60)
    assert copies.estimate.low == pytest.approx(single.low, abs=5e-3)
    rng = np.random.default_rng(0)
    mixed = [[Label.REFUSAL if rng.random() < 2 / 3 else Label.COMPLIANCE for _ in range(4)] for _ in range(60)]
    apart = next(item for item in harmful_metrics(_cell(mixed), _cell(mixed), at_base=True, level=0.95))
    assert apart.estimate.n_effective is not None
    assert apart.estimate.n_effective > 150


def test_a_scripted_model_draws_each_sample_by_itself(tmp_path: Path) -> None:
    plan = plan_of(_study(tmp_path))
    engine = ScriptedGenerator(plan.study.engine, dose_steps=2)  # type: ignore[arg-type]
    prompts = plan.data.prompts[Subset.HARMFUL]
    texts = [
        [
            item.text
            for item in engine.generate(prompts, plan.study.decoding, seed=1, sample=s, on_progress=lambda _: None)
        ]
        for s in (0, 1)
    ]
    assert texts[0] != texts[1]


def test_a_column_sample_without_ids_is_one_of_the_files_own(tmp_path: Path) -> None:
    cells = [{"sample": "x", "prompt": "a", "response": "r"}, {"sample": "y", "prompt": "a", "response": "s"}]
    path = write_csv(tmp_path / "plain.csv", ("sample", "prompt", "response"), cells)
    assert read_recording(path).samples == (0, 0)


def test_benign_prompts_at_the_key_doses_are_sampled_too(tmp_path: Path) -> None:
    attack = {"data": "attack.jsonl", "lora_rank": 2, "batch_size": 2, "doses": [1, 2, 4, 8, 16]}
    prompts = {"harmful": "harmful.csv", "benign": "benign.csv", "benign_at": "ends"}
    made = run_study(_study(tmp_path, attack=attack, prompts=prompts))
    frame: Any = read_metrics(made / "metrics.csv")
    found = frame[frame["metric"] == "over_refusal_rate"]
    assert set(found["n"]) == {3 * K}
    assert 2 < len(found) < 6
