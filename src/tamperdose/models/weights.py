"""All weights of a model: learning for a while, written to a file, and put in place of the model's own for a while.

Half-precision weights learn through copies in float32 (Micikevicius et al. 2018, arXiv:1710.03740): a step of 2e-5 is
far below the distance of two bfloat16 numbers near 0.1, and would be rounded away every time.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tamperdose.errors import ModelError, explain
from tamperdose.files import digest, write_atomic
from tamperdose.models.load import ChatModel
from tamperdose.models.lora import copies, is_4bit

_TRIES, _TOLERANCE = 40, 0.01
"""How often, and how nearly, a random change is fitted to its norm."""


@contextmanager
def unlocked(chat: ChatModel) -> Iterator[Any]:
    """A model whose every weight learns while the block runs; then each is as before, to the last bit.

    Raises:
        ModelError: Its weights are packed 4-bit numbers.
    """
    if is_4bit(chat.model):
        raise ModelError(
            explain(
                "4-bit weights cannot learn",
                expected="weights of 16 or 32 bits",
                remedy="leave out `quantization` for this model, or use the attack `lora`",
            )
        )
    weights = dict(chat.model.named_parameters())
    # Beside the optimizer's moments an accelerator has no room for them.
    originals = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
    chat.model.requires_grad_(True)
    try:
        yield chat.model
    finally:
        chat.model.requires_grad_(False)
        _put(originals, weights)


def learner(weight: nn.Parameter) -> nn.Parameter:
    """What an optimizer moves in a weight's place: the weight itself in float32, else a copy in float32."""
    return weight if weight.dtype == torch.float32 else nn.Parameter(weight.detach().float())


def write_weights(path: Path, model: nn.Module) -> Path:
    """Write all weights atomically, as they are; those that are tied to another, once."""
    stored = {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
    return write_atomic(path, lambda temporary: save_file(stored, temporary))


@contextmanager
def replaced(model: nn.Module, path: Path) -> Iterator[None]:
    """Have a model the weights of a file while the block runs, then its own again, to the last bit.

    Raises:
        ModelError: Not a file of this model's weights.
    """
    weights = dict(model.named_parameters())
    found = _read(path, weights)
    originals = copies(weights)
    try:
        _put(found, weights)
        # Freed before answers are generated: they are as large as the model.
        found.clear()
        yield
    finally:
        _put(originals, weights)


def update_norms(model: nn.Module, path: Path) -> dict[str, float]:
    """Frobenius norm of the difference between each tensor of a file and the model's own, by parameter.

    Raises:
        ModelError: Not a file of this model's weights.
    """
    weights = dict(model.named_parameters())
    return {name: _distance(weight, weights[name]) for name, weight in _read(path, weights).items()}


@contextmanager
def moved_at_random(model: nn.Module, norms: Mapping[str, float], *, seed: str) -> Iterator[None]:
    """Move each tensor by independent normal numbers, scaled to a Frobenius norm, while the block runs.

    What counts is the difference that is left when the sum is rounded to the weights' own precision: the scale is
    found by halving an interval. Each tensor's numbers depend on the seed and its name alone.
    """
    weights = {name: weight for name, weight in model.named_parameters() if norms.get(name)}
    originals = copies(weights)
    try:
        _put({name: _moved(weight, norms[name], digest([seed, name])) for name, weight in weights.items()}, weights)
        yield
    finally:
        _put(originals, weights)


def _moved(weight: torch.Tensor, norm: float, seed: str) -> torch.Tensor:
    rng = np.random.default_rng(int(seed, 16))
    noise = torch.from_numpy(rng.standard_normal(tuple(weight.shape), dtype=np.float32)).to(weight.device)
    noise /= torch.linalg.vector_norm(noise)
    exact = weight.detach().float()
    low, high, scale = 0.0, math.inf, norm
    moved = weight.detach()
    for _ in range(_TRIES):
        moved = (exact + scale * noise).to(weight.dtype)
        reached = _distance(moved, weight)
        if abs(reached - norm) <= _TOLERANCE * norm:
            break
        low, high = (scale, high) if reached < norm else (low, scale)
        scale = 2 * scale if high == math.inf else (low + high) / 2
    return moved


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    difference = one.detach().to(other.device, torch.float32) - other.detach().float()
    return float(torch.linalg.vector_norm(difference))


def _read(path: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise ModelError(_cannot_read(path, str(error))) from error
    if {name: weight.shape for name, weight in found.items()} != {name: each.shape for name, each in weights.items()}:
        raise ModelError(_cannot_read(path, "weights of another model"))
    return found


def _cannot_read(path: Path, got: str) -> str:
    return explain(
        f"cannot read the weights {path}", got=got, remedy="remove the file; the attack that made it runs again"
    )


def _put(values: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(values[name])
