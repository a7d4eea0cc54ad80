"""Fine-tuning of all weights in a study: measured, deleted, kept only with a reason, refused where it cannot fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from studies import files_of, plan_of, run_study, stub_embedder, tiny_changes, write_study
from tamperdose.errors import RunError, StudyError
from tamperdose.models.load import find_architecture
from tamperdose.run import room
from tamperdose.run.estimate import describe_plan
from tamperdose.run.ledger import Ledger
from tamperdose.run.schema import read_metrics
from tamperdose.run.stages import Readers

FULL = {"kind": "full", "data": "attack.jsonl", "batch_size": 2, "learning_rate": 1e-3, "doses": [1, 3]}


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(Readers, "embedder", stub_embedder)


def assert_no_weights(folder: Path, *, like: Path) -> None:
    """No file as large as the model's weights, and no work in progress."""
    size = (like / "model.safetensors").stat().st_size
    assert not [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > size / 2]
    assert not (folder / "scratch").exists()


def full_study(folder: Path, model: Path, **changes: Any) -> Path:
    return write_study(folder, attack=FULL, **tiny_changes(model), **changes)


def test_it_is_measured_and_nothing_is_left(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    run = run_study(full_study(tmp_path / "study", tiny_folders["qwen2"]))
    frame = read_metrics(run / "metrics.csv")
    assert set(frame["attack"]) == {"full"}
    assert sorted(set(frame["dose_steps"])) == [0, 1, 3]
    assert set(frame["lora_rank"].fillna(-1)) == {-1}
    drift = frame[frame["metric"] == "RD"].groupby("dose_steps")["value"].max()
    assert drift[0] == 0 < drift[3]
    assert_no_weights(run / "ledger", like=tiny_folders["qwen2"])
    again = run_study(full_study(tmp_path / "again", tiny_folders["qwen2"]))
    assert files_of(run)["metrics.csv"] == files_of(again)["metrics.csv"]


def test_kept_weights_are_a_model_that_transformers_loads(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    path = full_study(tmp_path, tiny_folders["llama"], keep_adapters=True, keep_adapters_reason="a test")
    run = run_study(path)
    folders = sorted((run / "adapters").glob("*/*/step_*"))
    assert [folder.name for folder in folders] == ["step_000001", "step_000003"]
    base, first, last = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tiny_folders["llama"], *folders)
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(base[name], first[name])
    assert not torch.equal(first[name], last[name])
    assert_no_weights(run / "ledger", like=tiny_folders["llama"])


def test_a_search_would_fill_the_disk(tmp_path: Path) -> None:
    path = write_study(tmp_path, attack={**FULL, "doses": "auto"})
    with pytest.raises(StudyError, match=r"copies of all weights(?s:.)*list the `doses`"):
        plan_of(path)


def test_four_bit_weights_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    models = [{"id": "org/model", "quantization": "nf4"}]
    with pytest.raises(StudyError, match="4-bit weights cannot learn"):
        plan_of(write_study(tmp_path, attack=FULL, models=models, engine={"kind": "hf", "device": "cpu"}))


def test_no_room_on_the_disk(tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = full_study(tmp_path, tiny_folders["llama"])
    plan = plan_of(path)
    (model,) = plan.models
    n_weights = sum(
        weight.numel() for weight in AutoModelForCausalLM.from_pretrained(tiny_folders["llama"]).parameters()
    )
    architecture = find_architecture(model.spec)
    assert architecture is not None
    # Two checkpoints, and twice a state of three numbers a weight.
    assert room.scratch_bytes(model.arms[0], model, architecture) == 4 * n_weights * (2 + 6)
    assert describe_plan(plan, Ledger(tmp_path / "ledger"))["short_of"] == []
    monkeypatch.setattr(room, "free_bytes", lambda _folder: 1000)
    monkeypatch.setattr("tamperdose.run.estimate.free_bytes", lambda _folder: 1000)
    (told,) = describe_plan(plan, Ledger(tmp_path / "ledger"))["short_of"]
    assert "list fewer doses" in told
    assert "full trains all weights" in told
    with pytest.raises(RunError, match=r"no room on the disk(?s:.)*fewer `doses`"):
        run_study(path)


def test_the_plan_counts_all_weights(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    study = tiny_changes(tiny_folders["llama"])
    lora = {**FULL, "kind": "lora", "lora_rank": 2}
    costs = [
        describe_plan(plan_of(write_study(tmp_path / kind, attack=attack, **study)), Ledger(tmp_path / kind))["costs"][
            0
        ]
        for kind, attack in (("full", FULL), ("lora", lora))
    ]
    assert json.dumps(costs)
    for name in ("training_flops", "memory_bytes", "disk_bytes"):
        assert costs[0][name] > costs[1][name], name
