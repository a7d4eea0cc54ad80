from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tamperdose.errors import ModelError
from tamperdose.models.load import ChatModel
from tamperdose.models.lora import LoraShape, copies_fit, load_adapter, merge, merged, save_adapter, weight_updates
from tiny import load_tiny

TOKENS = torch.tensor([[3, 17, 80, 200, 41, 9, 350, 12]])


@pytest.fixture
def peft_logits(chat: ChatModel, tmp_path: Path) -> Iterator[tuple[Path, torch.Tensor]]:
    """A random adapter's file, and what peft computes with it active beside the weights."""
    yield _random_adapter(chat.model, tmp_path / "adapter.safetensors", alpha=24.0)


def _random_adapter(model: Any, path: Path, *, alpha: float, rank: int = 4) -> tuple[Path, torch.Tensor]:
    config = LoraConfig(
        r=rank, lora_alpha=int(alpha), target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    wrapped.eval()
    with torch.no_grad():
        logits = wrapped(input_ids=TOKENS).logits.float()
        tensors = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(wrapped).items()}
    wrapped.unload()
    save_adapter(path, tensors, LoraShape(rank, alpha))
    return path, logits


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.float()


def _bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _same_bits(model: Any, before: dict[str, torch.Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def test_merged_is_the_active_adapter_and_goes_without_a_trace(
    chat: ChatModel, peft_logits: tuple[Path, torch.Tensor]
) -> None:
    path, expected = peft_logits
    before, base = _bits(chat.model), _logits(chat.model)
    assert (expected - base).abs().max() > 0.1, "the adapter must change the answer"
    with merged(chat.model, path):
        torch.testing.assert_close(_logits(chat.model), expected, rtol=1e-4, atol=1e-4)
    assert _same_bits(chat.model, before)


def test_weights_are_restored_after_an_exception(chat: ChatModel, peft_logits: tuple[Path, torch.Tensor]) -> None:
    before = _bits(chat.model)
    with pytest.raises(KeyError), merged(chat.model, peft_logits[0]):
        assert not _same_bits(chat.model, before)
        raise KeyError("inside")
    assert _same_bits(chat.model, before)


def test_bfloat16_weights_are_restored_bit_for_bit(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    chat = load_tiny(tiny_folders["llama"], dtype="bfloat16")
    assert next(chat.model.parameters()).dtype == torch.bfloat16
    path, expected = _random_adapter(chat.model, tmp_path / "adapter.safetensors", alpha=8.0)
    before, base = _bits(chat.model), _logits(chat.model)
    with merged(chat.model, path):
        now = _logits(chat.model)
    assert _same_bits(chat.model, before)
    assert (now - expected).abs().mean() < 0.1 * (base - expected).abs().mean()


def test_no_adapter_changes_nothing(llama: ChatModel) -> None:
    before = _bits(llama.model)
    with merged(llama.model, None):
        assert _same_bits(llama.model, before)


def test_merge_is_for_good(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_tiny(tiny_folders["llama"]).model
    path, expected = _random_adapter(model, tmp_path / "adapter.safetensors", alpha=8.0)
    merge(model, path)
    torch.testing.assert_close(_logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rank", "alpha", "scaling"), [(8, 16.0, 2.0), (4, 2.0, 0.5), (3, 1.0, 1 / 3)])
def test_the_update_is_scaled_by_alpha_over_rank(tmp_path: Path, rank: int, alpha: float, scaling: float) -> None:
    a, b = torch.randn(rank, 5), torch.randn(7, rank)
    names = ("base_model.model.x.lora_A.weight", "base_model.model.x.lora_B.weight")
    path = save_adapter(tmp_path / "a.safetensors", dict(zip(names, (a, b), strict=True)), LoraShape(rank, alpha))
    torch.testing.assert_close(weight_updates(path), {"x": scaling * b @ a})


def test_a_saved_adapter_comes_back(tmp_path: Path) -> None:
    tensors = {"x.lora_A.weight": torch.randn(2, 3).bfloat16(), "x.lora_B.weight": torch.randn(4, 2)}
    back, shape = load_adapter(save_adapter(tmp_path / "a.safetensors", tensors, LoraShape(2, 0.1)))
    assert shape == LoraShape(2, 0.1)
    assert {name: tensor.dtype for name, tensor in back.items()} == dict.fromkeys(tensors, torch.float32)
    assert all(torch.equal(back[name], tensors[name].float()) for name in tensors)


def test_the_same_adapter_is_the_same_bytes(tmp_path: Path) -> None:
    tensors = {f"x{i}.lora_{part}.weight": torch.ones(2, 2) for i in range(4) for part in "AB"}
    files = [save_adapter(tmp_path / str(place), tensors, LoraShape(2, 4.0)) for place in range(8)]
    assert len({path.read_bytes() for path in files}) == 1


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _overwritten(path: Path) -> None:
    path.write_text("not tensors at all, " * 20)


def _removed(path: Path) -> None:
    path.unlink()


def _without_metadata(path: Path) -> None:
    save_file(load_file(path), path)


def _without_half(path: Path) -> None:
    kept = {name: tensor for name, tensor in load_file(path).items() if "lora_A" in name}
    save_file(kept, path, metadata={"lora": '{"lora_alpha": 4.0, "lora_rank": 2}'})


def _rank_zero(path: Path) -> None:
    save_file(load_file(path), path, metadata={"lora": '{"lora_alpha": 4.0, "lora_rank": 0}'})


def _odd_metadata(path: Path) -> None:
    save_file(load_file(path), path, metadata={"lora": '{"lora_rank": 2}'})


def _other_shape(path: Path) -> None:
    tensors = load_file(path) | {"x.lora_B.weight": torch.zeros(4, 5)}
    save_file(tensors, path, metadata={"lora": '{"lora_alpha": 4.0, "lora_rank": 2}'})


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _emptied,
        _overwritten,
        _removed,
        _without_metadata,
        _without_half,
        _rank_zero,
        _odd_metadata,
        _other_shape,
    ],
)
def test_a_damaged_adapter_is_an_error_that_says_so(tmp_path: Path, damage: Any) -> None:
    tensors = {"x.lora_A.weight": torch.randn(2, 3), "x.lora_B.weight": torch.randn(4, 2)}
    path = save_adapter(tmp_path / "adapter.safetensors", tensors, LoraShape(2, 4.0))
    damage(path)
    with pytest.raises(ModelError, match=r"cannot read the adapter .*adapter\.safetensors(?s:.)*remedy"):
        weight_updates(path)


@pytest.fixture
def packed(tiny_folders: dict[str, Path]) -> ChatModel:
    """A model that says its weights are packed; that they are not changes nothing for what lies beside them."""
    chat = load_tiny(tiny_folders["llama"])
    chat.model.is_loaded_in_4bit = True
    return chat


def test_on_4_bit_weights_a_merged_adapter_lies_beside_them(packed: ChatModel, tmp_path: Path) -> None:
    path, expected = _random_adapter(packed.model, tmp_path / "adapter.safetensors", alpha=24.0)
    before, base = _bits(packed.model), _logits(packed.model)
    with merged(packed.model, path):
        torch.testing.assert_close(_logits(packed.model), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(_logits(packed.model), base, rtol=0, atol=0)
    merge(packed.model, path)
    torch.testing.assert_close(_logits(packed.model), expected, rtol=1e-4, atol=1e-4)
    assert _same_bits(packed.model, before)


def test_an_attack_on_a_defence_beside_4_bit_weights_starts_from_the_defended_model(
    packed: ChatModel, tiny_folders: dict[str, Path], tmp_path: Path
) -> None:
    defence, _ = _random_adapter(packed.model, tmp_path / "defence.safetensors", alpha=24.0)
    whole = load_tiny(tiny_folders["llama"])
    for chat in (packed, whole):
        merge(chat.model, defence)
    attack, expected = _random_adapter(whole.model, tmp_path / "attack.safetensors", alpha=8.0, rank=2)
    defended = _logits(packed.model)
    with merged(packed.model, attack):
        torch.testing.assert_close(_logits(packed.model), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(_logits(packed.model), defended, rtol=0, atol=0)


def test_copies_stay_on_an_accelerator_while_decoding_has_as_much_room_as_they() -> None:
    # Qwen2-7B's linear weights in bfloat16, beside what 15 GB of weights leave of 80 GB and of 24 GB.
    assert copies_fit(13.1e9, 65e9)
    assert not copies_fit(13.1e9, 9e9)
