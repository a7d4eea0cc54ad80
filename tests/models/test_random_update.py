"""Random adapters: of the attack's size in every layer, of its rank, and the same whenever they are drawn again."""

from pathlib import Path

import pytest
import torch

from tamperdose.models.lora import LoraShape, merged, save_adapter, weight_updates
from tamperdose.models.random_update import update_sizes, write_random_adapter
from tiny import load_tiny

LAYERS = ("base_model.model.model.layers.0.self_attn.q_proj", "base_model.model.model.layers.1.mlp.down_proj")


@pytest.fixture
def attack(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tensors = {}
    for number, layer in enumerate(LAYERS, 1):
        inputs = 64 if layer.endswith("down_proj") else 32
        tensors[f"{layer}.lora_A.weight"] = torch.randn(3, inputs)
        tensors[f"{layer}.lora_B.weight"] = number * torch.randn(32, 3)
    return save_adapter(tmp_path / "attack.safetensors", tensors, LoraShape(3, 12.0))


def test_norms_are_those_of_the_products(attack: Path) -> None:
    updates = weight_updates(attack)
    for layer, size in update_sizes(attack).items():
        assert size.norm == pytest.approx(float(updates[layer.removeprefix("base_model.model.")].norm()), rel=1e-5)
        assert (size.n_outputs, size.n_inputs) == updates[layer.removeprefix("base_model.model.")].shape


def test_random_update_has_size_and_rank(attack: Path, tmp_path: Path) -> None:
    path = write_random_adapter(tmp_path / "random.safetensors", update_sizes(attack), seed="one")
    ours, theirs = weight_updates(path), weight_updates(attack)
    assert ours.keys() == theirs.keys()
    for layer, update in ours.items():
        assert float(update.norm()) == pytest.approx(float(theirs[layer].norm()), rel=1e-5)
        assert torch.linalg.matrix_rank(update) == 3
        cosine = float((update * theirs[layer]).sum() / update.norm() / theirs[layer].norm())
        assert abs(cosine) < 0.2


def test_draws_differ_and_repeat(attack: Path, tmp_path: Path) -> None:
    sizes = update_sizes(attack)
    one, again, other = (
        write_random_adapter(tmp_path / f"{name}.safetensors", sizes, seed=seed).read_bytes()
        for name, seed in (("a", "one"), ("b", "one"), ("c", "two"))
    )
    assert one == again
    assert one != other


def test_layer_of_no_change_stays_unchanged(attack: Path, tmp_path: Path) -> None:
    tensors = {f"{LAYERS[0]}.lora_A.weight": torch.randn(2, 32), f"{LAYERS[0]}.lora_B.weight": torch.zeros(32, 2)}
    still = save_adapter(tmp_path / "still.safetensors", tensors, LoraShape(2, 2.0))
    path = write_random_adapter(tmp_path / "random.safetensors", update_sizes(still), seed="one")
    assert not any(update.any() for update in weight_updates(path).values())


def test_merges_like_any_adapter(attack: Path, tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    chat = load_tiny(tiny_folders["llama"])
    weight = chat.model.model.layers[0].self_attn.q_proj.weight
    before = weight.detach().clone()
    path = write_random_adapter(tmp_path / "random.safetensors", update_sizes(attack), seed="one")
    with merged(chat.model, path):
        assert float((weight - before).norm()) == pytest.approx(update_sizes(attack)[LAYERS[0]].norm, rel=1e-4)
    assert torch.equal(weight, before)
