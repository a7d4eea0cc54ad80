"""Activations computed again, and moments of eight bits: the same training, resumed the same, in less memory."""

import importlib.util
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_layers import GradientCheckpointingLayer

import fake_bitsandbytes
from tamperdose.errors import ExtraError, ModelError
from tamperdose.models.load import ChatModel
from tamperdose.models.saving_memory import checkpointed, make_optimizer, moments, remember
from tamperdose.models.train import Recipe, Source, train_trajectory
from tamperdose.records import Checkpoint
from tiny import make_examples

RECIPE = Recipe(learning_rate=3e-3, batch_size=4, warmup_steps=0, lora_rank=4, lora_alpha=8.0, max_length=128, seed=11)


class KilledError(Exception):
    """Stands for a process that ends."""


def train(chat: ChatModel, folder: Path, recipe: Recipe, on_step: Any = lambda _step, _loss: None) -> list[Checkpoint]:
    source = Source(make_examples(10), recipe.batch_size)
    return list(train_trajectory(chat, [source], recipe, doses=[2, 5], folder=folder, on_step=on_step))


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return load_file(str(checkpoint.adapter or checkpoint.weights))


def same(ours: list[Checkpoint], theirs: list[Checkpoint]) -> bool:
    pairs = [(tensors(one), tensors(other)) for one, other in zip(ours, theirs, strict=True)]
    return all(torch.equal(one[name], other[name]) for one, other in pairs for name in one | other)


@pytest.mark.parametrize("lora_rank", [4, None], ids=["adapter", "all weights"])
def test_what_is_computed_again_is_the_same_to_the_bit(chat: ChatModel, tmp_path: Path, lora_rank: int | None) -> None:
    recipe = replace(RECIPE, lora_rank=lora_rank, learning_rate=1e-3)
    whole = train(chat, tmp_path / "whole", recipe)
    again = train(chat, tmp_path / "again", replace(recipe, gradient_checkpointing=True))
    assert same(whole, again)
    assert [one.dose for one in whole] == [one.dose for one in again]
    assert [one.mean_loss for one in whole] == [one.mean_loss for one in again]
    # The layers are as they were.
    assert not [each for each in chat.model.modules() if "forward" in vars(each)]


def test_layers_keep_their_inputs_alone(llama: ChatModel) -> None:
    def kept_bytes(wanted: bool) -> int:
        seen: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        embedded = llama.model.get_input_embeddings()(torch.arange(6, 206).unsqueeze(0)).requires_grad_()
        own = {weight.untyped_storage().data_ptr() for weight in llama.model.parameters()}
        with (
            checkpointed(llama.model, wanted=wanted),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            llama.model(inputs_embeds=embedded, use_cache=False)
        return sum(size for place, size in seen.items() if place not in own)

    n_layers = sum(isinstance(each, GradientCheckpointingLayer) for each in llama.model.modules())
    assert n_layers == 2
    assert kept_bytes(wanted=True) < 0.5 * kept_bytes(wanted=False)


def test_layers_with_a_forward_of_their_own_get_it_back(llama: ChatModel) -> None:
    layers = [each for each in llama.model.modules() if isinstance(each, GradientCheckpointingLayer)]
    hooked = partial(layers[0].forward)
    layers[0].forward = hooked
    try:
        with checkpointed(llama.model, wanted=True):
            assert layers[0].forward is not hooked
        assert layers[0].forward is hooked
        assert "forward" not in vars(layers[1])
    finally:
        del layers[0].forward


def test_a_model_without_known_layers_is_refused() -> None:
    with (
        pytest.raises(ModelError, match="gradient_checkpointing: false"),
        checkpointed(torch.nn.Linear(2, 2), wanted=True),
    ):
        pass


def test_eight_bits_come_near_and_resume_to_the_bit(
    llama: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bitsandbytes.install(monkeypatch)
    recipe = replace(RECIPE, optimizer="paged_adamw_8bit")
    losses: dict[str, list[float]] = {"eight": [], "full": []}
    whole = train(llama, tmp_path / "whole", recipe, lambda _step, loss: losses["eight"].append(loss))
    full = train(llama, tmp_path / "full", RECIPE, lambda _step, loss: losses["full"].append(loss))
    assert losses["eight"] == pytest.approx(losses["full"], rel=0.02)
    assert losses["eight"][1:] != losses["full"][1:]
    assert not same(whole, full)

    def die(step: int, _loss: float) -> None:
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(llama, tmp_path / "resumed", recipe, die)
    taken: list[int] = []
    resumed = train(llama, tmp_path / "resumed", recipe, lambda step, _loss: taken.append(step))
    assert taken == [3, 4, 5]
    assert same(whole, resumed)


def test_a_trajectory_of_another_optimizer_is_not_gone_on_with(
    llama: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_bitsandbytes.install(monkeypatch)
    train(llama, tmp_path, RECIPE)
    taken: list[int] = []
    train(llama, tmp_path, replace(RECIPE, optimizer="paged_adamw_8bit"), lambda step, _loss: taken.append(step))
    assert taken == [1, 2, 3, 4, 5]


def test_shared_tables_are_not_saved_and_counts_stay_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_bitsandbytes.install(monkeypatch)
    large, small = (torch.nn.Parameter(torch.randn(n, 8)) for n in (16, 2))

    def made() -> torch.optim.Optimizer:
        return make_optimizer("paged_adamw_8bit", [large, small], learning_rate=1e-2, device="cpu")

    optimizer = made()
    for _ in range(3):
        large.grad, small.grad = torch.randn_like(large), torch.randn_like(small)
        optimizer.step()
    saved = {name: moments(optimizer, each) for name, each in (("large", large), ("small", small))}
    assert set(saved["large"]) == {"step", "state1", "state2", "absmax1", "absmax2"}
    assert saved["large"]["state1"].dtype == torch.uint8
    other = made()
    for name, each in (("large", large), ("small", small)):
        remember(other, each, saved[name])
        assert other.state[each]["step"] == 3
        assert type(other.state[each]["step"]) is int
        assert all(
            torch.equal(other.state[each][key], optimizer.state[each][key]) for key in saved[name] if key != "step"
        )


def test_without_bitsandbytes_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ExtraError, match=r"tamperdose\[gpu\]"):
        make_optimizer("paged_adamw_8bit", [torch.nn.Parameter(torch.ones(2))], learning_rate=1e-3, device="cpu")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes itself, where it is there")
def test_bitsandbytes_own_optimizer_resumes_to_the_bit(llama: ChatModel, tmp_path: Path) -> None:
    recipe = replace(RECIPE, optimizer="paged_adamw_8bit", lora_rank=64, lora_alpha=64.0)
    whole = train(llama, tmp_path / "whole", recipe)

    def die(step: int, _loss: float) -> None:
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(llama, tmp_path / "resumed", recipe, die)
    assert same(whole, train(llama, tmp_path / "resumed", recipe))
