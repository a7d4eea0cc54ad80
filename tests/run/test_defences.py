"""Defences in whole runs: what is measured, what is restored, what a kill leaves, and the table that compares them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from studies import files_of, plan_of, run_study, tiny_changes, write_study
from tamperdose.errors import ModelError
from tamperdose.models import train
from tamperdose.models.changes import Guard, changed
from tamperdose.models.load import ChatModel
from tamperdose.models.lora import LoraShape, save_adapter, weight_updates
from tamperdose.models.train import Recipe, Source, Turns, train_trajectory
from tamperdose.records import Checkpoint, Dose
from tamperdose.report.defences import defence_lines, defences_of, read_defences
from tamperdose.run.backends import HfBackend, open_backend
from tamperdose.run.checks import run_checks
from tamperdose.run.defences import COST_METRICS, DEFENCES, DOSE_METRICS
from tamperdose.run.estimate import describe_plan
from tamperdose.run.ledger import Ledger
from tamperdose.run.schema import read_metrics
from tamperdose.stats.utility import relative_loss
from tiny import load_tiny, make_examples, save_tiny

pytestmark = pytest.mark.usefixtures("stub")

TUNED = {"harmful": "refusals.jsonl", "benign": "answers.jsonl", "steps": 4, "batch_size": 2, "lora_rank": 2}
SHAPE = LoraShape(lora_rank=2, lora_alpha=4.0)


def _study(folder: Path, model: Path, hardened: Path, **more: Any) -> Path:
    defences = [
        None,
        TUNED | {"mixing": "steps", "name": "apart"},
        TUNED | {"kind": "safety_adapter", "strength": 1.5},
        {"kind": "checkpoint", "id": str(hardened), "name": "hard"},
    ]
    changes = tiny_changes(model)
    changes["models"][0]["defence"] = defences
    return write_study(folder, **changes | {"utility": {"max_texts": 4, "max_questions": 4}, "inside": None} | more)


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("hardened") / "llama", "llama", seed=5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path], hardened: Path) -> Path:
    from studies import stub_embedder
    from tamperdose.run.stages import Readers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readers, "embedder", stub_embedder)
        return run_study(_study(tmp_path_factory.mktemp("defended"), tiny_folders["llama"], hardened))


def _random_adapter(model: Any, path: Path, *, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and not name.startswith("lm_head"):
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=generator)
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=generator)
    return save_adapter(path, tensors, SHAPE)


def _weights(chat: ChatModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in chat.model.state_dict().items()}


def test_a_guard_is_added_to_what_a_checkpoint_made_and_taken_off_to_the_bit(
    tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    chat = load_tiny(tiny_folders["llama"], dtype="bfloat16")
    attack = _random_adapter(chat.model, tmp_path / "attack.safetensors", seed=1)
    safety = _random_adapter(chat.model, tmp_path / "safety.safetensors", seed=2)
    before = _weights(chat)
    for checkpoint in (None, Checkpoint(Dose(1, 1, 1, 1), str(attack))):
        with changed(chat, checkpoint):
            attacked = _weights(chat)
        with changed(chat, checkpoint, Guard(safety, 0.5)):
            for name, update in weight_updates(safety).items():
                expected = (attacked[f"{name}.weight"].float() + 0.5 * update).to(torch.bfloat16)
                torch.testing.assert_close(chat.model.get_submodule(name).weight, expected, rtol=0.01, atol=0.02)
                assert not torch.equal(chat.model.get_submodule(name).weight, attacked[f"{name}.weight"])
        assert all(torch.equal(tensor, before[name]) for name, tensor in chat.model.state_dict().items())


def test_a_guard_stands_beside_4_bit_weights_with_an_attack(
    tiny_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be added to such weights; plain ones stand in for them here."""
    chat = load_tiny(tiny_folders["llama"])
    attack = _random_adapter(chat.model, tmp_path / "attack.safetensors", seed=1)
    safety = _random_adapter(chat.model, tmp_path / "safety.safetensors", seed=2)
    checkpoint = Checkpoint(Dose(1, 1, 1, 1), str(attack))
    tokens = torch.tensor([[7, 8, 9, 10]])

    def logits(at: Checkpoint | None, guard: Guard | None) -> torch.Tensor:
        with torch.inference_mode(), changed(chat, at, guard):
            return chat.model(tokens).logits

    merged = [logits(at, Guard(safety, strength)) for at in (None, checkpoint) for strength in (1.0, 0.5)]
    plain, before = logits(None, None), _weights(chat)
    monkeypatch.setattr(chat.model, "is_loaded_in_4bit", True, raising=False)
    beside = [logits(at, Guard(safety, strength)) for at in (None, checkpoint) for strength in (1.0, 0.5)]
    for one, other in zip(merged, beside, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert torch.equal(logits(None, None), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in chat.model.state_dict().items())


def test_batches_of_one_kind_take_turns(tiny_folders: dict[str, Path]) -> None:
    chat = load_tiny(tiny_folders["llama"])
    parts = [train._encode_rows(chat, make_examples(count), 128) for count in (5, 7)]
    owner = {id(row): place for place, part in enumerate(parts) for row in part}
    sources = [Source((), 4, Turns(0.25, own=False)), Source((), 4, Turns(0.25, own=True))]
    plan = train._BatchPlan(parts, sources, 3)
    kinds = [{owner[id(row)] for row in plan.batch(step)} for step in range(1, 13)]
    assert [sorted(kind) for kind in kinds] == [[0], [0], [0], [1]] * 3
    assert all(len(plan.batch(step)) == 4 for step in range(1, 13))
    # Every row of a kind once an epoch, whatever stands between its batches.
    first = [id(row) for step in (1, 2, 3) for row in plan.batch(step)]
    assert len(set(first[:5])) == 5
    assert len(set(first[5:10])) == 5
    second = [id(row) for step in (4, 8) for row in plan.batch(step)]
    assert len(set(second[:7])) == 7


def test_interleaved_training_resumes_to_the_same_bits(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    chat = load_tiny(tiny_folders["llama"])
    recipe = Recipe(1e-3, 2, 0, 2, 4.0, 128, 0, decay_steps=6)
    rows = make_examples(9)
    sources = [Source(rows[:5], 2, Turns(0.5, own=False)), Source(rows[5:], 2, Turns(0.5, own=True))]

    def trained(folder: Path, *, stop_after: int | None = None) -> dict[str, torch.Tensor]:
        def on_step(step: int, _loss: float) -> None:
            if step == stop_after:
                raise InterruptedError

        steps = train_trajectory(chat, sources, recipe, doses=[3, 6], folder=folder, on_step=on_step)
        return load_file(str(list(steps)[-1].adapter))

    whole = trained(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        trained(tmp_path / "cut", stop_after=4)
    resumed = trained(tmp_path / "cut")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.items())
    # And it is another training than one whose batches hold both kinds.
    mixed = [Source(rows[:5], 1), Source(rows[5:], 1)]
    other = list(train_trajectory(chat, mixed, recipe, doses=[6], folder=tmp_path / "m", on_step=lambda *_: None))
    found = load_file(str(other[-1].adapter))
    assert any(not torch.equal(tensor, whole[name]) for name, tensor in found.items())


def test_every_defence_is_attacked_under_three_seeds_and_two_orders(finished: Path) -> None:
    frame = read_metrics(finished / "metrics.csv")
    arms = frame.drop_duplicates("arm")
    assert arms.groupby("defence").size().to_dict() == {"none": 6, "apart": 6, "safety_adapter": 6, "hard": 6}
    assert sorted(set(arms["seed"].astype(int))) == [1, 2, 3]
    assert sorted(set(arms["data_order"])) == ["1", "2"]


def test_a_defended_base_is_the_model_with_its_adapter_once_or_more_often(finished: Path, tiny_folders: Any) -> None:
    plan = plan_of(finished.parent / "study.yaml")
    ledger = Ledger(finished / "ledger")
    bare = _weights(load_tiny(tiny_folders["llama"]))
    for model, times in zip(plan.models[1:3], (1.0, 2.5), strict=True):
        adapter = ledger.find("defend", model.key)
        assert adapter is not None
        backend = open_backend(plan.study, model)
        assert isinstance(backend, HfBackend)
        backend.use_defence(adapter)
        attacked = _weights(backend.chat)
        for name, update in weight_updates(adapter).items():
            with backend.generator(None):
                measured = backend.chat.model.get_submodule(name).weight.clone()
            torch.testing.assert_close(measured, bare[f"{name}.weight"] + times * update, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(attacked[f"{name}.weight"], bare[f"{name}.weight"] + update)
        assert all(torch.equal(tensor, attacked[name]) for name, tensor in backend.chat.model.state_dict().items())


def test_a_hardened_checkpoint_answers_in_the_models_place(finished: Path, hardened: Path, tmp_path: Path) -> None:
    """Its answers are those of a study that names it as the model."""
    study = write_study(tmp_path, **tiny_changes(hardened, utility=None, inside=None))
    alone = run_study(study)
    (arm,) = (alone / "outputs").iterdir()
    (place,) = [
        path for path in (finished / "outputs").iterdir() if "-hard-" in path.name and path.name.endswith("o1-s1")
    ]
    assert (place / "0.csv").read_bytes() == (arm / "0.csv").read_bytes()
    manifest = json.loads((finished / "manifest.json").read_text())
    assert [model["id"] for model in manifest["models"]][-1] == str(hardened)
    assert manifest["models"][-1]["identity"] != manifest["models"][0]["identity"]


def test_the_table_has_every_metric_of_every_defence(finished: Path) -> None:
    rows = read_defences(finished, "phrases")
    assert [row["metric"] for row in rows] == [*DOSE_METRICS, *COST_METRICS] * 3
    assert list(dict.fromkeys(row["defence"] for row in rows)) == ["apart", "safety_adapter", "hard"]
    rates = read_metrics(finished / "metrics.csv")
    for row in rows:
        if row["metric"] in ("RRR_with", "RRR_without"):
            defence = row["defence"] if row["metric"] == "RRR_with" else "none"
            chosen = rates[(rates["metric"] == "RRR") & (rates["dose_steps"] == 0) & (rates["defence"] == defence)]
            assert set(chosen["value"]) == {row["value"]}
        if row["metric"] == DOSE_METRICS[2]:
            assert (row["n_pairs"], row["n_seeds"], row["n_orders"]) == (6, 3, 2)
    lines = defence_lines(finished, "phrases")
    assert lines[0].startswith("defences of tiny against lora: 6 pairs of runs, 3 seeds x 2 data orders")
    assert any(line.strip().startswith("safety_adapter") for line in lines)
    told = defences_of(finished, "phrases", None)
    assert len(told) == len(rows)


def test_costs_are_paired_with_the_undefended_model(finished: Path) -> None:
    from tamperdose.run.utility import read_scores

    plan, ledger = plan_of(finished.parent / "study.yaml"), Ledger(finished / "ledger")
    scores = [read_scores(plan, ledger, model) for model in plan.models]
    rows = [row for row in read_defences(finished, "phrases") if row["metric"] == "perplexity_loss"]
    for row, found in zip(rows, scores[1:], strict=True):
        assert scores[0] is not None
        assert found is not None
        expected = relative_loss(scores[0].texts, found.texts)
        assert (row["value"], row["low"]) == pytest.approx((expected.value, expected.low))
    assert len({row["value"] for row in rows}) == 3


def test_running_again_changes_no_byte(finished: Path) -> None:
    before = files_of(finished)
    run_study(finished.parent / "study.yaml")
    assert files_of(finished) == before


def test_a_killed_defence_goes_on(
    tmp_path: Path, tiny_folders: dict[str, Path], hardened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _study(tmp_path / "cut", tiny_folders["llama"], hardened, seeds=[1])
    whole = run_study(path, out=tmp_path / "whole")
    real = train._Trainer.step

    def cut(self: Any, batch: Any) -> float:
        if self.dose.steps == 2:
            raise InterruptedError
        loss = real(self, batch)
        self.saved_at = -np.inf
        return loss

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(train._Trainer, "step", cut)
        run_study(path, out=tmp_path / "resumed")
    run_study(path, out=tmp_path / "resumed")
    assert files_of(tmp_path / "resumed") == files_of(whole)


def test_no_defence_no_table(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    run = run_study(path)
    (run / DEFENCES).write_text("old")
    run_study(path, "decoding.max_new_tokens=5")
    assert not (run / DEFENCES).exists()
    assert describe_plan(plan_of(path), Ledger(tmp_path / "l"))["defences"] is None


def test_plan_and_check_say_what_is_compared_without_loading(
    tmp_path: Path, tiny_folders: dict[str, Path], hardened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HfBackend, "chat", property(lambda _: pytest.fail("a model was loaded")))
    path = _study(tmp_path, tiny_folders["llama"], hardened)
    told = describe_plan(plan_of(path), Ledger(tmp_path / "l"))["defences"]
    assert told == {
        "models": {"tiny": ["none", "apart", "safety_adapter", "hard"]},
        "seeds": [1, 2, 3],
        "data_orders": [1, 2],
        "by_default": True,
    }
    lines = {line["check"]: line["detail"] for line in run_checks(path, [])}
    assert str(hardened) in lines["model tiny, defence hard"]
    hub = {"kind": "checkpoint", "id": "org/hardened"}
    online = _study(tmp_path / "hub", tiny_folders["llama"], hardened)
    checked = run_checks(online, [f"models.0.defence={json.dumps(hub)}"])
    assert ("model tiny, defence checkpoint", "not checked") in [(line["check"], line["state"]) for line in checked]
    missing = {"kind": "checkpoint", "id": str(tmp_path / "nowhere" / "x")}
    with pytest.raises(ModelError, match="no model at"):
        run_checks(online, [f"models.0.defence={json.dumps(missing)}"])


def test_another_architecture_is_no_hardened_checkpoint(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    other = save_tiny(tmp_path / "deep", "llama", num_hidden_layers=3)
    path = _study(tmp_path / "study", tiny_folders["llama"], other)
    with pytest.raises(ModelError, match=r"not of the architecture(?s:.)*num_hidden_layers: there 3, here 2"):
        run_checks(path, [])
    with pytest.raises(ModelError, match="num_hidden_layers"):
        run_study(path)


def test_a_pickled_checkpoint_is_not_read(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="pickled weights"):
        plan_of(_study(tmp_path / "study", tiny_folders["llama"], folder))
