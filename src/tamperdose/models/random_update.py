"""Random adapters as large as an attack's, module by module: a control for what any change of that size does."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tamperdose.files import digest
from tamperdose.models.lora import LoraShape, load_adapter, save_adapter

_ENDS = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class UpdateSize:
    """How large an adapter's update of one layer is."""

    n_inputs: int
    """Columns of the layer's weight."""
    n_outputs: int
    """Rows of the layer's weight."""
    rank: int
    """Rank of the update."""
    norm: float
    """Frobenius norm of (alpha / rank) B A."""


def update_sizes(path: Path) -> dict[str, UpdateSize]:
    """The size of every layer's update in an adapter file, by the layer's name in the file.

    Raises:
        ModelError: The file cannot be read.
    """
    tensors, shape = load_adapter(path)
    layers = sorted(name.removesuffix(_ENDS[0]) for name in tensors if name.endswith(_ENDS[0]))
    return {layer: _size(tensors[layer + _ENDS[0]], tensors[layer + _ENDS[1]], shape) for layer in layers}


def write_random_adapter(path: Path, sizes: Mapping[str, UpdateSize], *, seed: str) -> Path:
    """Write an adapter whose update of each layer is random, of the rank and the Frobenius norm given for it.

    B and A have independent standard normal entries, so the update's row and column spaces are uniform; B is then
    scaled. Each layer's numbers depend on the seed and its name alone.

    Args:
        path: Where to write.
        sizes: Of `update_sizes`.
        seed: What tells one draw from another: a digest.
    """
    tensors: dict[str, torch.Tensor] = {}
    for layer, size in sizes.items():
        rng = np.random.default_rng(int(digest([seed, layer]), 16))
        a = torch.from_numpy(rng.standard_normal((size.rank, size.n_inputs), dtype=np.float32))
        b = torch.from_numpy(rng.standard_normal((size.n_outputs, size.rank), dtype=np.float32))
        tensors[layer + _ENDS[0]] = a
        tensors[layer + _ENDS[1]] = b * (size.norm / product_norm(a, b))
    rank = max(size.rank for size in sizes.values())
    return save_adapter(path, tensors, LoraShape(rank, float(rank)))


def product_norm(a: torch.Tensor, b: torch.Tensor) -> float:
    """Frobenius norm of B A, with A of shape (r, inputs) and B of shape (outputs, r), by r x r matrices alone.

    ||B A||^2 = tr(A^T B^T B A) = sum of (B^T B) * (A A^T), elementwise. In float64.

    >>> product_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]]))
    10.0
    """
    a, b = a.double(), b.double()
    return math.sqrt(max(0.0, float(((b.T @ b) * (a @ a.T)).sum())))


def write_random_direction(path: Path, size: int, *, seed: str) -> Path:
    """Write a random unit vector of a length: a control for taking out any direction."""
    from tamperdose.models.changes import write_direction

    vector = np.random.default_rng(int(digest([seed, "direction"]), 16)).standard_normal(size)
    return write_direction(path, torch.from_numpy(vector / np.linalg.norm(vector)))


def _size(a: torch.Tensor, b: torch.Tensor, shape: LoraShape) -> UpdateSize:
    return UpdateSize(a.shape[1], b.shape[0], shape.lora_rank, shape.scaling * product_norm(a, b))
