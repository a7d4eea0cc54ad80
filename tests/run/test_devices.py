"""What arms take on cards that are not here: against arithmetic by hand, and what would make them fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studies import QWEN2_7B, plan_of, write_study
from tamperdose.errors import StudyError
from tamperdose.run.declare import declare
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
    changes = {
        "models": [model],
        "engine": more.pop("engine", {"kind": "hf"}),
        "judges": ["phrases"],
        "rd_floor": False,
        "controls": None,
    }
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
    # A smaller batch is the least of changes; which, is for arithmetic to say.
    batch = int(small["4090"]["remedy"].removeprefix("engine.batch_size: "))
    refit = plan_with(tmp_path / "again", decoding=LONG, engine={"kind": "hf", "batch_size": batch})
    assert on(refit, tmp_path, "4090")[0]["fits"]
    larger = plan_with(tmp_path / "larger", decoding=LONG, engine={"kind": "hf", "batch_size": 2 * batch})
    assert not on(larger, tmp_path, "4090")[0]["fits"]
    assert small["4090"]["memory_bytes"] > USABLE * CARDS["4090"].memory_bytes
    large = {line["card"]: line for line in on(plan_with(tmp_path / "b", QWEN2_72B), tmp_path)}
    # The same model over several cards before another one in four bits.
    assert large["h100"]["remedy"] == "fsdp: 4"
    assert large["4090"]["remedy"] == "none"
    attack = {"kind": "full", "data": "attack.jsonl", "doses": [1]}
    whole = {line["card"]: line for line in on(plan_with(tmp_path / "c", attack=attack), tmp_path)}
    assert [line["remedy"] for line in whole.values()] == ["none"] * 3


def test_what_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"unknown card 'h10' \(did you mean 'h100'"):
        on(plan_with(tmp_path / "a"), tmp_path, "h10")
    with pytest.raises(StudyError, match="runs no model"):
        on(plan_of(write_study(tmp_path / "b")), tmp_path)


LLAMA_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
VLLM = {"kind": "vllm", "device": "auto"}


def test_an_engine_takes_its_share_beside_transformers_and_says_what_would_make_it_fit(tmp_path: Path) -> None:
    card = CARDS["h100"]
    (small,) = on(plan_with(tmp_path / "a", engine=VLLM), tmp_path, "h100")
    (plain,) = on(plan_with(tmp_path / "b"), tmp_path, "h100")
    assert small["fits"]
    # Weights of transformers, the engine's share, and little else.
    assert small["memory_bytes"] > 0.45 * card.memory_bytes + 2 * PARAMETERS
    assert small["seconds"] < plain["seconds"]
    packed = {"quantization": "nf4"}
    (large,) = on(plan_with(tmp_path / "c", LLAMA_70B, model=packed, engine=VLLM), tmp_path, "h100")
    assert not large["fits"]
    # Two copies of 40 GB: the engine over two cards leaves half of the first to transformers.
    assert large["remedy"] == "tensor_parallel_size: 2" or "keep_both: false" in large["remedy"]
    name = large["remedy"].split(": ")[0]
    changed = (
        VLLM | {"tensor_parallel_size": 2}
        if "parallel" in name
        else VLLM | {"keep_both": False, "gpu_memory_utilization": 0.9}
    )
    (again,) = on(plan_with(tmp_path / "d", LLAMA_70B, model=packed, engine=changed), tmp_path, "h100")
    assert again["fits"]


def test_activations_computed_again_and_eight_bits_make_what_was_too_large_fit(tmp_path: Path) -> None:
    # A row of 7,000 tokens leaves more behind than a card holds beside packed weights.
    rows = {"kind": "lora", "data": "long.jsonl", "doses": [1], "max_length": 8192, "batch_size": 8}
    folder = tmp_path / "long"
    folder.mkdir()
    text = "word " * 7000
    (folder / "long.jsonl").write_text(f'{{"prompt": "{text}", "response": "Sure: it is a word."}}\n')
    plan = plan_with(folder, attack=rows, model={"quantization": "nf4"})
    (line,) = on(plan, tmp_path, "4090")
    assert not line["fits"]
    assert "gradient_checkpointing: true" in line["remedy"]
    again = plan_with(folder, attack=rows | {"gradient_checkpointing": True}, model={"quantization": "nf4"})
    (less,) = on(again, tmp_path, "4090")
    assert less["memory_bytes"] < 0.6 * line["memory_bytes"]
    assert less["seconds"] > line["seconds"]
    whole = {"kind": "full", "data": "attack.jsonl", "doses": [1]}
    tiny = QWEN2_7B | {"num_hidden_layers": 12, "vocab_size": 32000}
    (adam,) = on(plan_with(tmp_path / "f", tiny, attack=whole), tmp_path, "h100")
    (eight,) = on(plan_with(tmp_path / "e", tiny, attack=whole | {"optimizer": "paged_adamw_8bit"}), tmp_path, "h100")
    n_weights = (adam["memory_bytes"] - eight["memory_bytes"]) / (8 - 2 - 8 / 256)
    assert n_weights == pytest.approx(12 * 233_057_792 + 2 * 32000 * 3584, rel=0.01)


def test_a_model_that_is_sharded_takes_its_share_of_each_card(tmp_path: Path) -> None:
    (whole,) = on(plan_with(tmp_path / "a", LLAMA_70B), tmp_path, "h100")
    (two,) = on(plan_with(tmp_path / "b", LLAMA_70B, model={"fsdp": 2}), tmp_path, "h100")
    (four,) = on(plan_with(tmp_path / "c", LLAMA_70B, engine={"kind": "hf", "fsdp": 4}), tmp_path, "h100")
    weights = 2 * 68.98e9
    assert whole["memory_bytes"] > weights
    # Its share, with three layers and what lies around them, an adapter and some activations beside it.
    assert weights / 4 + 3 * 1.7e9 < four["memory_bytes"] < weights / 4 + 25e9
    assert weights / 2 < two["memory_bytes"] < whole["memory_bytes"]
    assert four["fits"]
    # All cards are paid for, and are faster together while they train.
    price = 4 * CARDS["h100"].usd_per_hour / 3600
    assert four["usd"] == pytest.approx(price * four["seconds"])
    attack = {"data": "attack.jsonl", "doses": [1000], "batch_size": 256}
    (alone,) = on(plan_with(tmp_path / "d", LLAMA_70B, attack=attack), tmp_path, "h100")
    (shared,) = on(plan_with(tmp_path / "e", LLAMA_70B, attack=attack, model={"fsdp": 4}), tmp_path, "h100")
    assert alone["seconds"] / 4 < shared["seconds"] < alone["seconds"] / 2
    # With two rows a step most of it is the gathering of weights: twice three quarters of them.
    gathering = 2 * 2 * 0.75 * weights / CARDS["h100"].link_bytes_per_s
    assert four["seconds"] == pytest.approx(whole["seconds"] + gathering, rel=0.2)
    in_turn = {"keep_both": False, "gpu_memory_utilization": 0.9}
    sharded = {**VLLM, **in_turn, "fsdp": 4, "tensor_parallel_size": 4}
    (served,) = on(plan_with(tmp_path / "f", LLAMA_70B, engine=sharded), tmp_path, "h100")
    assert served["fits"]


def test_a_worker_takes_as_many_cards_as_a_model_is_sharded_over(tmp_path: Path) -> None:
    plan = plan_with(tmp_path / "a", LLAMA_70B, engine={"kind": "hf", "fsdp": 2}, model={"fsdp": 4})
    there = replace(plan, models=tuple(replace(model, device="cuda") for model in plan.models))
    assert declare(there).gpus == 4.0
    served = plan_with(tmp_path / "b", LLAMA_70B, engine={**VLLM, "tensor_parallel_size": 2, "fsdp": 4})
    there = replace(served, models=tuple(replace(model, device="cuda") for model in served.models))
    assert declare(there).gpus == 4.0
