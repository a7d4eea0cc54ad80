"""Matrix products of a CPU near its peak: weights laid out once for oneDNN while answers are generated.

torch's own product reads a weight matrix as it lies. With the few rows of a decoding step that is far from what the
processor can do; on weights in oneDNN's blocked layout the same sums run up to twice as fast, the vocabulary's head
most of all. Sums come in another order, so results agree to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

MIN_WEIGHTS = 2**16
"""Smaller matrices lie in the processor's caches whole, and a product with them is mostly overhead."""
PACKED_ROWS = 64
"""Rows of the products that the layout is chosen for; others run on it too."""

_OPS = ("_linear_pointwise", "_reorder_linear_weight")


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Have a model's large linear layers compute on packed copies of their weights while the block runs.

    Only float32 weights on a CPU that do not learn; others, and all where torch comes without oneDNN, stay as they are.
    The copies take as much memory as the weights. Neither weights nor gradients may change within the block.
    """
    changed: list[nn.Module] = []
    try:
        for module in model.modules() if _is_supported() else ():
            if type(module) is nn.Linear and _is_packable(module.weight):
                weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), PACKED_ROWS)
                module.forward = partial(_linear, weight, module.bias)
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _is_supported() -> bool:
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in _OPS)


def _is_packable(weight: torch.Tensor) -> bool:
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.layout == torch.strided
    return plain and not weight.requires_grad and weight.numel() >= MIN_WEIGHTS


def _linear(weight: torch.Tensor, bias: torch.Tensor | None, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name in torch
    return torch.ops.mkldnn._linear_pointwise(input.contiguous(), weight, bias, "none", [], "")
