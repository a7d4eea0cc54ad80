"""Fused products of adapted layers: PEFT's own numbers, and nothing left behind."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tamperdose.models.lora_products import fused
from tiny import CLASSES, make_model


def _adapted(model: nn.Module, **changes: Any) -> Any:
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **changes)
    wrapped = get_peft_model(model, config)  # pyright: ignore[reportArgumentType] - any module does
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            # Zeros to begin with, which would hide every mistake in the other half.
            parameter.data = 0.3 * torch.randn_like(parameter)
    return wrapped.eval()


def _gradients(wrapped: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    wrapped.zero_grad()
    loss = wrapped(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in wrapped.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", CLASSES)
def test_loss_and_gradients_are_those_of_peft(kind: str) -> None:
    wrapped = _adapted(make_model(kind))
    tokens = torch.randint(0, 300, (3, 17), generator=torch.Generator().manual_seed(2))
    loss, plain = _gradients(wrapped, tokens)
    with fused(wrapped):
        fused_loss, found = _gradients(wrapped, tokens)
    torch.testing.assert_close(fused_loss, loss)
    assert found.keys() == plain.keys()
    assert len(plain) >= 16
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)
    assert not any("forward" in vars(module) for module in wrapped.modules())


def test_the_numbers_are_right_to_the_last_digits() -> None:
    """In float64 against numerical derivatives, and with a bias."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double()
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["0", "1"]), autocast_adapter_dtype=False)  # pyright: ignore[reportArgumentType]
    for parameter in wrapped.parameters():
        parameter.data = torch.randn_like(parameter)
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    inner: Any = wrapped.base_model.model
    before = wrapped(x)
    with fused(wrapped):
        assert all("forward" in vars(inner[place]) for place in (0, 1))
        torch.testing.assert_close(wrapped(x), before)
        assert torch.autograd.gradcheck(wrapped, (x,))


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.1}, {"use_dora": True}], ids=str)
def test_other_kinds_of_adapter_stay_as_peft_computes_them(changes: dict[str, Any]) -> None:
    wrapped = _adapted(make_model("llama"), **changes)
    with fused(wrapped):
        assert not any("forward" in vars(module) for module in wrapped.modules())


def test_a_base_of_another_dtype_stays_as_peft_computes_it() -> None:
    wrapped = _adapted(copy.deepcopy(make_model("llama")).to(torch.bfloat16))
    with fused(wrapped):
        assert not any("forward" in vars(module) for module in wrapped.modules())


def test_an_error_within_leaves_nothing_behind() -> None:
    wrapped = _adapted(make_model("llama"))
    with pytest.raises(RuntimeError, match="stop"), fused(wrapped):
        assert any("forward" in vars(module) for module in wrapped.modules())
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in wrapped.modules())
