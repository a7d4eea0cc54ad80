"""LoRA adapters as safetensors files: writing, reading, and merging them for a while or for good.

Hu et al. 2021: a linear layer's weight W becomes W + (alpha / rank) B A. An adapter file holds the A and B
matrices under peft's names, with rank and alpha in its metadata.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tamperdose.errors import ModelError, explain
from tamperdose.files import canonical_json, write_atomic

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LoraShape:
    """The size of an adapter."""

    lora_rank: int
    """Rank of the update."""
    lora_alpha: float
    """The update is scaled by alpha / rank."""

    @property
    def scaling(self) -> float:
        """Alpha / rank."""
        return self.lora_alpha / self.lora_rank


def save_adapter(path: Path, tensors: dict[str, torch.Tensor], shape: LoraShape) -> Path:
    """Write an adapter's A and B matrices atomically, in float32."""
    stored = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in an order that differs from process to process.
    metadata = {"lora": canonical_json(asdict(shape))}
    return write_atomic(path, lambda temporary: save_file(stored, temporary, metadata=metadata))


def load_adapter(path: Path) -> tuple[dict[str, torch.Tensor], LoraShape]:
    """Read an adapter file.

    Raises:
        ModelError: Missing, not safetensors, or not an adapter of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        shape = LoraShape(**json.loads(metadata["lora"]))
        _require_pairs(tensors, shape.lora_rank)
        return tensors, shape
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(
            explain(
                f"cannot read the adapter {path}",
                got=f"{type(error).__name__}: {error}",
                remedy="remove the file; the stage that makes it runs again",
            )
        ) from error


def _require_pairs(tensors: dict[str, torch.Tensor], lora_rank: int) -> None:
    """Refuse matrices that do not come in pairs of this rank, with an error that `load_adapter` explains."""
    if lora_rank < 1:
        raise ValueError(f"rank {lora_rank}")
    for name, matrix in tensors.items():
        if name.endswith(".lora_A.weight"):
            other = tensors[name.replace(".lora_A.", ".lora_B.")]
            if (matrix.shape[0], other.shape[1]) != (lora_rank, lora_rank):
                raise ValueError(f"{name} and its B are not of rank {lora_rank}")


def weight_updates(path: Path) -> dict[str, torch.Tensor]:
    """Return (alpha / rank) B A for every adapted layer, by the layer's name; shapes (outputs, inputs), float32."""
    tensors, shape = load_adapter(path)
    updates: dict[str, torch.Tensor] = {}
    for name, matrix_a in tensors.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            matrix_b = tensors[f"{layer}.lora_B.weight"]
            updates[layer.removeprefix(_PREFIX)] = shape.scaling * (matrix_b @ matrix_a)
    return updates


def merge(model: Any, path: Path) -> None:
    """Add an adapter to a model's weights for good."""
    with torch.no_grad():
        for name, update in weight_updates(path).items():
            _add(model.get_submodule(name).weight, update)


@contextmanager
def merged(model: Any, path: Path | None) -> Iterator[None]:
    """Add an adapter to a model's weights while the block runs, then restore every bit; None changes nothing.

    The original weights are kept as copies (in main memory when the model is on an accelerator): subtracting the
    update again would leave rounding errors behind. 4-bit weights cannot be added to, so there the adapter stays
    beside them as separate matrices, which is slower.
    """
    if path is None:
        yield
    elif getattr(model, "is_loaded_in_4bit", False):
        with _attached(model, path):
            yield
    else:
        updates = weight_updates(path)
        originals = {name: model.get_submodule(name).weight.detach().to("cpu", copy=True) for name in updates}
        try:
            with torch.no_grad():
                for name, update in updates.items():
                    _add(model.get_submodule(name).weight, update)
            yield
        finally:
            with torch.no_grad():
                for name, original in originals.items():
                    model.get_submodule(name).weight.copy_(original)


def _add(weight: torch.Tensor, update: torch.Tensor) -> None:
    # In float32, so that a bfloat16 weight is rounded once.
    weight.copy_(weight.float() + update.to(weight.device))


@contextmanager
def _attached(model: Any, path: Path) -> Iterator[None]:
    from peft import LoraConfig, get_peft_model
    from peft.utils import set_peft_model_state_dict

    tensors, shape = load_adapter(path)
    config = LoraConfig(
        r=shape.lora_rank,
        lora_alpha=shape.lora_alpha,  # pyright: ignore[reportArgumentType] - peft divides it, a float is fine
        target_modules="all-linear",
    )
    wrapped = get_peft_model(model, config)
    try:
        set_peft_model_state_dict(wrapped, tensors)
        wrapped.eval()
        yield
    finally:
        wrapped.unload()
