"""What a plan says that shared work saves, against arithmetic by hand and against studies that share nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from studies import plan_of, tiny_changes, write_study
from tamperdose.models.flops import generation_flops, training_flops
from tamperdose.models.load import find_architecture
from tamperdose.report.plans import print_plan, saving_line, search_line
from tamperdose.run.estimate import Cost, describe_plan, describe_saving, further_doses
from tamperdose.run.inside import asked_inside
from tamperdose.run.ladder import file_ladder
from tamperdose.run.ledger import Ledger
from tamperdose.run.plan import Plan
from tamperdose.run.utility import find_probes

DEFENCE = {"harmful": "refusals.jsonl", "benign": "answers.jsonl", "steps": 3, "batch_size": 2}


@pytest.fixture
def study(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    return write_study(tmp_path / "study", **tiny_changes(tiny_folders["llama"]))


def described(plan: Plan, folder: Path) -> dict[str, Any]:
    return describe_plan(plan, Ledger(folder / "ledger"))


def total(told: dict[str, Any]) -> float:
    return sum(cost["training_flops"] + cost["generation_flops"] for cost in told["costs"])


def test_the_saving_by_hand(study: Path, tmp_path: Path) -> None:
    plan = plan_of(study, "attack.doses=[1, 4]", "seeds=[1, 2]", "rd_floor=false", "decoding.max_new_tokens=10")
    architecture = find_architecture(plan.models[0].spec)
    assert architecture is not None
    # "Tell me about anvil of kind 0" and so on: 29 to 31 characters, 7 or 8 tokens, and 30 of the chat template.
    lengths = {subset: [round(len(p.text) / 4) + 30 for p in plan.data.prompts[subset]] for subset in plan.subsets()}
    state = sum(generation_flops(architecture, n_prompt=n, n_new=7) for part in lengths.values() for n in part)
    rows = plan.models[0].arms[0].rows.attack
    answer = sum(len(row.response) for row in rows) / len(rows) / 4
    request = sum(len(row.messages[0].content) for row in rows) / len(rows) / 4
    tokens = [round(request + answer) + 30] * 2
    step = training_flops(architecture, lora_rank=2, lengths=tokens, n_labels=round(answer) * 2)
    saving = described(plan, tmp_path)["saving"]
    # Two arms: 4 steps each, a base and two doses each; else 1 + 4 steps, and a base for each of the 4 doses.
    assert saving["planned_flops"] == pytest.approx(8 * step + 5 * state)
    assert saving["from_scratch_flops"] == pytest.approx(10 * step + 8 * state)
    assert saving["share"] == pytest.approx((8 * step + 5 * state) / (10 * step + 8 * state))


def test_from_scratch_is_what_separate_studies_take(study: Path, tmp_path: Path) -> None:
    defended = f"models.0.defence={DEFENCE}"
    ends = "prompts.benign_at=every_dose"
    whole = described(plan_of(study, "attack.doses=[1, 3, 8]", "attack.lora_rank=[2, 4]", defended, ends), tmp_path)
    apart = [
        described(plan_of(study, f"attack.doses=[{dose}]", f"attack.lora_rank={rank}", defended, ends), tmp_path)
        for dose in (1, 3, 8)
        for rank in (2, 4)
    ]
    assert all(told["saving"] is None for told in apart)
    bare = described(plan_of(study, "attack.doses=[1]", ends, "rd_floor=false"), tmp_path)
    with_both = described(plan_of(study, "attack.doses=[1]", ends, defended), tmp_path)
    # The defence and RD_floor's two samples stand once in the whole and six times in the studies apart.
    once = total(with_both) - total(bare)
    assert once > 0
    assert whole["saving"]["from_scratch_flops"] == pytest.approx(sum(map(total, apart)) - 5 * once)
    assert whole["saving"]["planned_flops"] == total(whole)
    assert whole["costs"][0]["from_scratch_flops"] == whole["saving"]["from_scratch_flops"]


def test_the_line_on_the_terminal(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = described(plan_of(study, "attack.doses=[1, 4]"), tmp_path)
    print_plan(told)
    line = saving_line(told["saving"])
    assert line.startswith("shared bases and nested doses: ") and "e+" not in line
    assert line in capsys.readouterr().out
    print_plan(described(plan_of(study, "attack.doses=[4]"), tmp_path))
    said = capsys.readouterr().out
    assert "shared bases" not in said and "search" not in said


def trained(study: Path, folder: Path, *changes: str) -> float:
    costs = described(plan_of(study, "attack.doses=[1]", *changes), folder)["costs"]
    return float(costs[0]["training_flops"])


def test_a_row_costs_no_more_than_its_greatest_length(study: Path, tmp_path: Path) -> None:
    whole = trained(study, tmp_path)
    assert trained(study, tmp_path, "attack.max_length=4096") == whole
    plan = plan_of(study, "attack.doses=[1]", "attack.max_length=32")
    architecture = find_architecture(plan.models[0].spec)
    assert architecture is not None
    rows = plan.models[0].arms[0].rows.attack
    answer = round(sum(len(row.response) for row in rows) / len(rows) / 4)
    at_32 = training_flops(architecture, lora_rank=2, lengths=[32, 32], n_labels=2 * answer)
    assert trained(study, tmp_path, "attack.max_length=32") == at_32 < whole


def test_a_step_costs_what_its_own_rows_do(study: Path, tmp_path: Path) -> None:
    long = json.dumps({"prompt": "Tell me. " * 40, "response": "So it is. " * 40})
    (study.parent / "long.jsonl").write_text(long + "\n", encoding="utf-8")
    whole = trained(study, tmp_path)
    mixed = trained(study, tmp_path, "attack.benign=long.jsonl", "attack.poison_ratio=0.5", "attack.max_length=1024")
    assert mixed > 1.5 * whole
    rows = (study.parent / "attack.jsonl").read_text(encoding="utf-8")
    (study.parent / "attack.jsonl").write_text(rows + long + "\n", encoding="utf-8")
    drawn = {trained(study, tmp_path, "attack.n_examples=1", f"seeds=[{seed}]") for seed in range(6)}
    assert len(drawn) > 1


def test_nothing_is_said_of_a_saving_that_is_not_known() -> None:
    known = Cost("a", 1.0, 3.0, 4.0, 1.0, None, None, None, from_scratch_flops=14.0)
    assert describe_saving([known]) == {"planned_flops": 7.0, "from_scratch_flops": 14.0, "share": 0.5}
    assert describe_saving([known, Cost("b", None, None, None, 1.0, None, None, None)]) is None
    assert saving_line(None) == ""


def test_a_search_says_how_much_further_it_may_go(study: Path, tmp_path: Path) -> None:
    search = ("attack.doses=auto", "attack.search={max_steps: 32, max_doses: 10}", "seeds=[1, 2]", "rd_floor=false")
    plan = plan_of(study, *search)
    told, ledger = described(plan, tmp_path), Ledger(tmp_path / "ledger")
    # 1, 2, 4, 8, 16, 32 to begin with: 4 of 10 are left to each of two arms.
    found = told["search"]
    assert (found["further_doses"], found["further_doses_per_arm"], found["n_arms"]) == (8, 4, 2)
    assert found["included_in_costs"] is False
    assert told["saving"]["planned_flops"] == total(told)
    before = total(told)
    line = search_line(found)
    assert line.startswith("search for ED50: at most 4 further doses in an arm, 8 in 2 arms, not in the estimates")
    arm, other = plan.models[0].arms
    file_ladder(plan, ledger, arm, [1, 2, 4, 6, 8, 16, 32])
    assert (further_doses(plan, ledger, arm), further_doses(plan, ledger, other)) == (0, 4)
    after = described(plan, tmp_path)
    # What was chosen is known now, and counts: one dose's answers moved from the search to the estimates.
    assert total(after) - before == pytest.approx(found["further_flops"] / 8)
    assert after["search"]["further_flops"] == pytest.approx(found["further_flops"] / 2)
    assert after["search"]["n_arms"] == 1
    file_ladder(plan, ledger, other, [1, 2, 4, 8, 16, 32])
    assert "ended in every arm" in search_line(described(plan, tmp_path)["search"])


def test_a_search_cannot_add_more_doses_than_are_saved(study: Path, tmp_path: Path) -> None:
    plan = plan_of(study, "attack.doses=auto", "attack.search={max_steps: 4, max_doses: 24}")
    arm = plan.models[0].arms[0]
    # Steps 1, 2, 3, 4 are all there are, and three of them are where the search begins.
    assert arm.saved == (1, 2, 3, 4)
    assert further_doses(plan, Ledger(tmp_path / "ledger"), arm) == 1


def test_without_a_search_or_an_architecture(tmp_path: Path) -> None:
    told = described(plan_of(write_study(tmp_path / "study")), tmp_path)
    assert (told["saving"], told["search"]) == (None, None)


def test_every_sample_is_generated_and_kept(study: Path, tmp_path: Path) -> None:
    sampled = ("rd_floor=false", "decoding.do_sample=true")
    one, three = (described(plan_of(study, *sampled, f"decoding.n_samples={n}"), tmp_path)["costs"][0] for n in (1, 3))
    assert three["generation_flops"] == pytest.approx(3 * one["generation_flops"])
    assert three["training_flops"] == one["training_flops"]
    assert three["disk_bytes"] > 1.5 * one["disk_bytes"]


def test_probing_by_hand(study: Path, tmp_path: Path) -> None:
    few = "utility={kl_prompts: 0, max_texts: 1, max_questions: 1}"
    plan = plan_of(study, few, "inside={prompts: 4, at: all}", "attack.doses=[1, 2, 4, 8]")
    model = plan.models[0]
    architecture = find_architecture(model.spec)
    probes, asked = find_probes(plan, model), asked_inside(plan)
    assert architecture is not None and probes is not None and asked is not None
    ((text,), (question,)) = probes.texts, probes.questions
    length = round((len(text.prompt) + len(text.text)) / 4) + 30
    words = len(question.question) + sum(map(len, question.choices))
    utility = generation_flops(architecture, n_prompt=1, n_new=length)
    utility += generation_flops(architecture, n_prompt=round(words / 4) + 30, n_new=1)
    reads = [generation_flops(architecture, n_prompt=round(len(p.text) / 4) + 30, n_new=1) for p in asked.prompts]
    told = described(plan, tmp_path)["costs"][0]["probing_flops"]
    # The base and three key doses, the base and all four doses.
    assert told == pytest.approx(4 * utility + 5 * sum(reads)) and len(reads) == 7
    assert described(plan_of(study, "utility=null", "inside=null"), tmp_path)["costs"][0]["probing_flops"] == 0
