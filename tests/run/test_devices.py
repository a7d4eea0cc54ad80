"""What arms take on cards that are not here: against arithmetic by hand, and what would make them fit."""

from pathlib import Path
from typing import Any

import pytest

from studies import QWEN2_7B, plan_of, write_study
from tamperdose.errors import StudyError
from tamperdose.run.devices import CARDS, DECODING_TIMES, TRAINING_SHARE, USABLE, describe_cards
from tamperdose.run.estimate import arm_step_flops
from tamperdose.run.ledger import Ledger
from tamperdose.run.plan import Plan

PARAMETERS = 7_615_616_512
QWEN2_72B = QWEN2_7B | {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
LONG = {"max_new_tokens": 2000}


def plan_with(folder: Path, architecture: dict[str, Any] = QWEN2_7B, **more: Any) -> Plan:
    model = {"id": "org/qwen", "revision": "abc", "architecture": architecture, **more.pop("model", {})}
    changes = {"models": [model], "engine": {"kind": "hf"}, "judges": ["phrases"], "rd_floor": False, "controls": None}
    return plan_of(write_study(folder, n_prompts=300, **changes, **more))


def on(plan: Plan, folder: Path, *cards: str) -> list[dict[str, Any]]:
    return describe_cards(plan, Ledger(folder / "ledger"), cards or tuple(CARDS))


def test_time_and_money_by_hand(tmp_path: Path) -> None:
    plan = plan_with(tmp_path, decoding={"max_new_tokens": 100}, seeds=[1, 2])
    lines = on(plan, tmp_path, "h100")
    assert [line["card"] for line in lines] == ["h100"] * 2
    arm, card = plan.models[0].arms[0], CARDS["h100"]
    architecture = plan.models[0].spec.architecture
    assert architecture is not None
    training = arm.doses[-1] * max(arm_step_flops(arm, architecture) / (TRAINING_SHARE * card.flops), 28 * 4e-3)
    # 300 harmful prompts in two batches, and 3 harmless ones with them in the count: bytes bound each step.
    step = max(2 * PARAMETERS / card.bytes_per_s, 256 * 2 * PARAMETERS / card.flops)
    answers = len(arm.doses) * 2 * 70 * max(step * DECODING_TIMES[None], 28e-3)
    assert lines[0]["seconds"] == pytest.approx(training + answers)
    assert lines[0]["usd"] == pytest.approx(card.usd_per_hour * lines[0]["seconds"] / 3600)
    dear = plan_with(tmp_path / "dear", decoding={"max_new_tokens": 100}, price_per_device_hour=30.0)
    assert on(dear, tmp_path, "h100")[0]["usd"] == pytest.approx(10 * lines[0]["usd"])


def test_what_would_make_it_fit(tmp_path: Path) -> None:
    small = {line["card"]: line for line in on(plan_with(tmp_path / "a", decoding=LONG), tmp_path)}
    assert (small["h100"]["fits"], small["h100"]["remedy"]) == (True, "")
    assert not small["4090"]["fits"]
    assert small["4090"]["remedy"].startswith("quantization: nf4")
    assert small["4090"]["memory_bytes"] > USABLE * CARDS["4090"].memory_bytes
    large = {line["card"]: line for line in on(plan_with(tmp_path / "b", QWEN2_72B), tmp_path)}
    assert large["h100"]["remedy"].startswith("quantization: nf4")
    assert large["4090"]["remedy"] == "none"
    attack = {"kind": "full", "data": "attack.jsonl", "doses": [1]}
    whole = {line["card"]: line for line in on(plan_with(tmp_path / "c", attack=attack), tmp_path)}
    assert [line["remedy"] for line in whole.values()] == ["none"] * 3


def test_what_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"unknown card 'h10' \(did you mean 'h100'"):
        on(plan_with(tmp_path / "a"), tmp_path, "h10")
    with pytest.raises(StudyError, match="runs no model"):
        on(plan_of(write_study(tmp_path / "b")), tmp_path)
