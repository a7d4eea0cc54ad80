"""The products of an adapted layer in fewer passes over its rows.

PEFT computes W x + s B (A x) as separate tensors of the layer's full width: the update, its scaled copy, the sum, and
the same again for gradients. Here the scale goes to the narrow side, and the update is added where it is computed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Have adapted layers compute their products together while the block runs; sums agree to rounding.

    Only plain linear layers whose one adapter has their dtype and no dropout; others stay as PEFT computes them.
    """
    changed: list[nn.Module] = []
    try:
        for module in model.modules():
            if isinstance(module, LoraLinear) and (parts := _parts(module)) is not None:
                module.forward = partial(_forward, *parts)
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _parts(module: LoraLinear) -> tuple[nn.Linear, nn.Linear, nn.Linear, float] | None:
    base = module.get_base_layer()
    if type(base) is not nn.Linear or len(module.active_adapters) != 1:
        return None
    name = module.active_adapters[0]
    down, up = module.lora_A[name], module.lora_B[name]
    if not isinstance(down, nn.Linear) or not isinstance(up, nn.Linear):
        return None
    is_plain = isinstance(module.lora_dropout[name], nn.Identity) and not module.use_dora[name]
    is_alike = base.weight.dtype == down.weight.dtype == up.weight.dtype
    return (base, down, up, float(module.scaling[name])) if is_plain and is_alike else None


def _forward(base: nn.Linear, down: nn.Linear, up: nn.Linear, scale: float, x: torch.Tensor) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return _Adapted.apply(rows, base.weight, base.bias, down.weight, up.weight, scale).view(*x.shape[:-1], -1)


class _Adapted(torch.autograd.Function):
    """y = x W' + b + s (x A') B' for rows x (m, in), frozen W (out, in), A (r, in) and B (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *adapter: Any) -> Any:
        down, up, scale = adapter
        narrow = x @ down.t()
        ctx.save_for_backward(x, weight, down, up, narrow)
        ctx.scale = scale
        return nn.functional.linear(x, weight, bias).addmm_(narrow, up.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        x, weight, down, up, narrow = ctx.saved_tensors
        through = (gradient @ up) * ctx.scale
        to_x = (gradient @ weight).addmm_(through, down) if ctx.needs_input_grad[0] else None
        return to_x, None, None, through.t() @ x, (gradient.t() @ narrow).mul_(ctx.scale), None
