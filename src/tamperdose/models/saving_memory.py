"""What lets a large model learn in little memory: activations computed again, and optimizer moments of eight bits.

Activation checkpointing: Chen et al. 2016, arXiv:1604.06174. Moments in blocks of 256 numbers of eight bits: Dettmers
et al. 2022, arXiv:2110.02861; in pages that the driver moves to main memory when a card is full: QLoRA, Dettmers et al.
2023, arXiv:2305.14314, 3.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from tamperdose.errors import ModelError, explain
from tamperdose.extras import require
from tamperdose.study import Optimizer

_STEP = "step"
_TABLES = "qmap"
"""The beginning of the names of tables that every parameter shares, and that never change."""


@contextmanager
def checkpointed(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Have each layer keep its input alone, and compute the rest again for its gradient, while the block runs.

    The same operations on the same numbers: gradients are the same bits where a device's sums are repeatable.
    transformers' own switch works in training mode alone, which would bring dropout.

    Raises:
        ModelError: The model has no layers that this is known of.
    """
    layers = [each for each in model.modules() if wanted and isinstance(each, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise ModelError(
            explain(
                "gradient_checkpointing cannot be used with this model",
                got="no layers that transformers knows how to compute again",
                remedy="gradient_checkpointing: false",
            )
        )
    # Where a layer has a `forward` of its own (Accelerate's hooks put one there), it gets that back.
    own = {layer: vars(layer)["forward"] for layer in layers if "forward" in vars(layer)}
    for layer in layers:
        # An attribute of the object goes before its class's method.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            if layer in own:
                layer.forward = own[layer]
            else:
                del layer.forward


def make_optimizer(
    kind: Optimizer, parameters: Iterable[nn.Parameter], *, learning_rate: float, device: str
) -> torch.optim.Optimizer:
    """AdamW without weight decay, with moments in float32 or in eight bits.

    Raises:
        ExtraError: Eight bits are wanted and bitsandbytes is not installed.
    """
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=device == "cpu")
    require(f"optimizer: {kind}", "bitsandbytes", extra="gpu", instead="optimizer: adamw")
    from bitsandbytes.optim import PagedAdamW8bit  # pyright: ignore[reportMissingImports]

    return PagedAdamW8bit(list(parameters), lr=learning_rate, weight_decay=0.0)


@contextmanager
def quiet_pages() -> Iterator[None]:
    """Silence for bitsandbytes, which says on a CPU that nothing is paged there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU", category=UserWarning)
        yield


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
    """What an optimizer remembers of a parameter, as tensors to be saved."""
    state: Mapping[str, Any] = optimizer.state[parameter]
    return {
        name: value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, value in state.items()
        if not name.startswith(_TABLES)
    }


def remember(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, saved: Mapping[str, torch.Tensor]) -> None:
    """Give an optimizer back what it remembered of a parameter."""
    if not hasattr(optimizer, "init_state"):
        # AdamW keeps its step count on the CPU and its moments beside the parameter.
        optimizer.state[parameter] = {
            name: value if name == _STEP else value.to(parameter.device) for name, value in saved.items()
        }
        return
    made: Any = optimizer
    place = next(k for k, each in enumerate(made.param_groups[0]["params"]) if each is parameter)
    with quiet_pages():
        # Its own buffers, which may lie in pages, and its tables; then what they held.
        made.init_state(made.param_groups[0], parameter, 0, place)
    state = made.state[parameter]
    for name, value in saved.items():
        if isinstance(state[name], torch.Tensor):
            state[name].copy_(value)
        else:
            state[name] = value.item()
