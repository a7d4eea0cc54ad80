"""States of tiny models against transformers' own hidden states, and what is held meanwhile."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from tamperdose.models import activations
from tamperdose.models.activations import last_states, look_inside, read_states
from tamperdose.models.chat import encode_prompts
from tamperdose.models.load import ChatModel
from tamperdose.models.lora import LoraShape, save_adapter, weight_updates
from tamperdose.records import Checkpoint, Dose, Opener, Subset
from tamperdose.stats.direction_drift import direction_auc, direction_drift, group_counts, lay_out, products
from tiny import make_prompts

RANK, ALPHA = 3, 6.0


def _rows(chat: ChatModel, count: int = 9) -> list[list[int]]:
    return encode_prompts(chat, make_prompts(count), 1)


def _asked(count: int = 12):
    harmful, benign = make_prompts(count), make_prompts(count + 4, subset=Subset.BENIGN)[4:]
    layout = lay_out([prompt.template for prompt in harmful], [prompt.template for prompt in benign])
    return [*harmful, *benign], layout


def _adapter(chat: ChatModel, path: Path, size: float = 0.3) -> Checkpoint:
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in chat.model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            a = torch.randn(RANK, module.in_features, generator=generator) * size
            b = torch.randn(module.out_features, RANK, generator=generator) * size
            tensors |= {
                f"base_model.model.{name}.lora_A.weight": a,
                f"base_model.model.{name}.lora_B.weight": b,
            }
    save_adapter(path, tensors, LoraShape(RANK, ALPHA))
    return Checkpoint(Dose(1, 8, 100, 100), adapter=str(path))


def test_states_are_transformers_own_hidden_states(chat: ChatModel) -> None:
    rows = _rows(chat)
    found = last_states(chat, rows)
    for row, states in zip(rows, found, strict=True):
        with torch.inference_mode():
            hidden = chat.model(torch.tensor([row]), output_hidden_states=True).hidden_states
        # The last of transformers' states is normalised: only those before it are the stream's.
        for layer in range(len(hidden) - 2):
            np.testing.assert_allclose(states[layer], hidden[layer + 1][0, -1].numpy(), rtol=1e-4, atol=1e-3)


def test_the_shared_prefix_and_the_batches_change_nothing(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _rows(chat)
    together = last_states(chat, rows)
    alone = np.concatenate([last_states(chat, [row]) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-3)
    monkeypatch.setattr(activations, "CPU_TOKENS", 1)
    np.testing.assert_allclose(last_states(chat, rows), together, rtol=1e-4, atol=1e-3)


def test_every_prompt_goes_through_once(llama: ChatModel) -> None:
    rows = _rows(llama, 20)
    places = [place for batch in read_states(llama, rows) for place in batch.places]
    assert sorted(places) == list(range(20))


def test_what_is_held_does_not_grow_with_the_prompts(llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MAX_ROWS", 4)
    rows = _rows(llama, 8)
    held: list[int] = []
    for many in (rows, rows * 8):
        most = 0
        for batch in read_states(llama, many):
            assert batch.states.shape[0] <= 4
            most = max(most, _held(llama.model.config.hidden_size))
        held.append(most)
    assert held[1] <= held[0] + 4 * 2


def _held(width: int) -> int:
    """Vectors of a model's width that live in arrays of states now."""
    arrays = [item for item in gc.get_objects() if type(item) is np.ndarray]
    arrays += [item.base for item in arrays if type(item.base) is np.ndarray]
    unique = {id(item): item for item in arrays if item.ndim == 3 and item.shape[2] == width}
    return sum(item.shape[0] * item.shape[1] for item in unique.values())


def test_sums_are_those_of_all_states(llama: ChatModel) -> None:
    prompts, layout = _asked()
    found = look_inside(llama, prompts, layout, checkpoint=None, base_sums=None)
    states = last_states(llama, encode_prompts(llama, prompts, 1))
    np.testing.assert_allclose(
        found["sums"].sum(axis=1), [states[~layout.harmful].sum(axis=0), states[layout.harmful].sum(axis=0)], rtol=1e-4
    )
    assert found["affinities"].shape == (len(prompts), states.shape[1], 2 * layout.n_groups)
    again = look_inside(llama, prompts, layout, checkpoint=None, base_sums=found["sums"])
    np.testing.assert_allclose(again["affinities"], found["affinities"], rtol=1e-4, atol=1e-3)


def test_an_unchanged_model_has_no_drift_and_a_changed_one_has(llama: ChatModel, tmp_path: Path) -> None:
    prompts, layout = _asked()
    counts = group_counts(layout)
    base = look_inside(llama, prompts, layout, checkpoint=None, base_sums=None)
    drifts: list[float] = []
    for checkpoint in (
        Checkpoint(Dose(1, 8, 1, 1), adapter=None),
        _adapter(llama, tmp_path / "a.safetensors"),
    ):
        found = look_inside(llama, prompts, layout, checkpoint=checkpoint, base_sums=base["sums"])
        inner = products(base["sums"], found["sums"], counts)[-1]
        drifts.append(direction_drift(inner, counts, layout).value or 0.0)
        assert 0 <= (direction_auc(found["affinities"][:, -1], layout).value or 0) <= 1
    assert drifts[0] == pytest.approx(0, abs=1e-6)
    assert drifts[1] > 0.01


def test_an_opener_is_read_at_its_last_token(llama: ChatModel) -> None:
    prompts, layout = _asked()
    base = look_inside(llama, prompts, layout, checkpoint=None, base_sums=None)
    opened = Checkpoint(Dose(2, 0, 0, 0), adapter=None, change=Opener("x", (20, 21)))
    found = look_inside(llama, prompts, layout, checkpoint=opened, base_sums=base["sums"])
    rows = [[*row, 20, 21] for row in encode_prompts(llama, prompts, 1)]
    states = last_states(llama, rows)
    np.testing.assert_allclose(found["sums"].sum(axis=(0, 1)), states.sum(axis=0), rtol=1e-4, atol=1e-4)
    assert "update_norm" not in found


def test_norms_of_the_update_are_those_of_its_product(chat: ChatModel, tmp_path: Path) -> None:
    checkpoint = _adapter(chat, path := tmp_path / "a.safetensors")
    whole = {name: float(update.norm()) for name, update in weight_updates(path).items()}
    prompts, layout = _asked()
    found = look_inside(chat, prompts, layout, checkpoint=checkpoint, base_sums=None)
    for layer in range(len(found["update_norm"])):
        mine = [name for name in whole if f".layers.{layer}." in name]
        weights = [float(chat.model.get_submodule(name).weight.detach().norm()) for name in mine]
        assert found["update_norm"][layer] == pytest.approx(np.linalg.norm([whole[name] for name in mine]), rel=1e-5)
        assert found["weight_norm"][layer] == pytest.approx(np.linalg.norm(weights), rel=1e-5)
