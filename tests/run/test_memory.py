"""The estimate of memory, term by term for a model whose sizes are known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studies import QWEN2_7B, plan_of, write_study
from tamperdose.models.flops import about_tokens
from tamperdose.models.hf import GPU_BATCH
from tamperdose.run import memory
from tamperdose.run.plan import Plan

LINEARS = 6_525_288_448
PARAMETERS = 7_615_616_512


def _plan(folder: Path, *, n_prompts: int = 300, quantization: str | None = None, **more: Any) -> Plan:
    """A study of Qwen2-7B on a GPU, planned without one."""
    model = {"id": "org/qwen", "revision": "abc", "architecture": QWEN2_7B, "quantization": quantization}
    changes = {"models": [model], "engine": {"kind": "hf"}, "judges": ["phrases"], "rd_floor": False, **more}
    plan = plan_of(write_study(folder, n_prompts=n_prompts, **changes))
    on_gpu = replace(plan.models[0], device="cuda", dtype="bfloat16")
    return replace(plan, models=(on_gpu,))


def _memory(plan: Plan) -> float:
    architecture = plan.models[0].spec.architecture
    assert architecture is not None
    return memory.memory_bytes(plan, plan.models[0], architecture)


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "device_bytes", lambda _device: None)


def test_weights(tmp_path: Path) -> None:
    whole, packed = _plan(tmp_path / "a"), _plan(tmp_path / "b", quantization="nf4")
    for plan, expected in (
        (whole, 2.0 * PARAMETERS),
        (packed, 2.0 * (PARAMETERS - LINEARS) + (4 + 8 / 64 + 32 / (64 * 256)) / 8 * LINEARS),
    ):
        architecture = plan.models[0].spec.architecture
        assert architecture is not None
        assert memory.weight_bytes(plan.models[0], architecture, 2) == pytest.approx(expected)


def test_a_full_batch_decodes_beside_the_weights(tmp_path: Path) -> None:
    decoding = {"max_new_tokens": 400}
    plan = _plan(tmp_path, decoding=decoding)
    longest = max(about_tokens(prompt.messages) for part in plan.data.prompts.values() for prompt in part)
    columns = longest + 400
    # Two (keys and values) of 4 heads of 128, in 28 layers, two bytes each, in buffers of whole blocks of 64.
    cache = GPU_BATCH * (columns // 64 + 1) * 64 * 2 * 512 * 28 * 2
    repeated, logits = 2 * GPU_BATCH * columns * 3584 * 2, GPU_BATCH * 152_064 * 4
    reading = GPU_BATCH * longest * 3 * (18944 + 3584) * 2
    assert _memory(plan) == pytest.approx(2.0 * PARAMETERS + cache + max(reading, repeated + logits))


def test_copies_of_merged_weights_count_where_they_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan(tmp_path, decoding={"max_new_tokens": 400})
    without = _memory(plan)
    monkeypatch.setattr(memory, "device_bytes", lambda _device: 24 * 2**30)
    assert _memory(plan) == without
    monkeypatch.setattr(memory, "device_bytes", lambda _device: 80 * 2**30)
    assert _memory(plan) - without == pytest.approx(2.0 * LINEARS)


def test_the_engines_own_batch_size_counts(tmp_path: Path) -> None:
    small = _plan(tmp_path / "a", decoding={"max_new_tokens": 2000}, engine={"kind": "hf", "batch_size": 16})
    large = _plan(tmp_path / "b", decoding={"max_new_tokens": 2000})
    assert (_memory(large) - 2.0 * PARAMETERS) / (_memory(small) - 2.0 * PARAMETERS) == pytest.approx(16, rel=0.01)


def test_training_keeps_what_a_packed_sequence_leaves(tmp_path: Path) -> None:
    attack = {"data": "attack.jsonl", "batch_size": 64, "lora_rank": 8, "doses": [1]}
    plan = _plan(tmp_path, n_prompts=2, attack=attack)
    rows = plan.models[0].arms[0].rows.attack
    length = sum(len(row.messages[0].content) + len(row.response) for row in rows) / len(rows) / 4 + 30
    answer = sum(len(row.response) for row in rows) / len(rows) / 4
    per_token = 28 * (28 * 3584 + 12 * 3584 + 10 * 18944)
    labels = 1024 * answer / length
    expected = 2.0 * PARAMETERS + 1024 * per_token + labels * 152_064 * 12 + 16 * 20_185_088
    assert 64 * length > 1024
    assert _memory(plan) == pytest.approx(expected, rel=1e-3)
    shorter = _plan(tmp_path / "b", n_prompts=2, attack=attack | {"batch_size": 2})
    assert _memory(shorter) < _memory(plan)


def test_a_defence_that_trains_larger_batches_sets_the_peak(tmp_path: Path) -> None:
    attack = {"data": "attack.jsonl", "batch_size": 2, "lora_rank": 8, "doses": [1]}
    defence = {"harmful": "refusals.jsonl", "benign": "answers.jsonl", "batch_size": 32}
    model = {"id": "org/qwen", "revision": "abc", "architecture": QWEN2_7B}
    bare = _plan(tmp_path / "a", n_prompts=2, attack=attack)
    defended = _plan(tmp_path / "b", n_prompts=2, attack=attack, models=[model | {"defence": defence}])
    assert _memory(defended) > _memory(bare) + 1e9
