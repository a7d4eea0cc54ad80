"""LoRA adapters as safetensors files: writing, reading, and merging them for a while or for good.

Hu et al. 2021: a linear layer's weight W becomes W + (alpha / rank) B A. An adapter file holds the A and B
matrices under peft's names, with rank and alpha in its metadata.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

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
    return {name: _update(pair, "cpu") for name, pair in _pairs(path).items()}


@dataclass(frozen=True, slots=True)
class _Pair:
    """One layer's share of an adapter."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float


def _pairs(path: Path, strength: float = 1.0) -> dict[str, _Pair]:
    tensors, shape = load_adapter(path)
    ends = (".lora_A.weight", ".lora_B.weight")
    layers = [name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]
    return {
        layer.removeprefix(_PREFIX): _Pair(tensors[layer + ends[0]], tensors[layer + ends[1]], strength * shape.scaling)
        for layer in layers
    }


def _update(pair: _Pair, device: Any) -> torch.Tensor:
    # On the weight's own device: a 7B model's updates are 26 GB, which must not cross the bus, or lie there at once.
    return pair.scaling * (pair.b.to(device) @ pair.a.to(device))


def stack_adapters(parts: Sequence[tuple[Path, float]]) -> tuple[dict[str, torch.Tensor], LoraShape]:
    """Adapters, added up with their strengths, as one: of the sum of their ranks, with alpha equal to it.

    sum_i s_i (alpha_i / r_i) B_i A_i = B A with A the A_i below one another, and B the s_i (alpha_i / r_i) B_i side by
    side. A layer that one of them leaves out has zeros there. One alone at strength 1 is as it was.
    """
    if len(parts) == 1 and parts[0][1] == 1.0:
        return load_adapter(parts[0][0])
    pairs = [_pairs(path, strength) for path, strength in parts]
    ranks = [load_adapter(path)[1].lora_rank for path, _ in parts]
    tensors: dict[str, torch.Tensor] = {}
    for layer in sorted({layer for each in pairs for layer in each}):
        known = next(each[layer] for each in pairs if layer in each)
        padded = [each.get(layer) or _nothing(known, rank) for each, rank in zip(pairs, ranks, strict=True)]
        tensors[f"{_PREFIX}{layer}.lora_A.weight"] = torch.cat([pair.a for pair in padded])
        tensors[f"{_PREFIX}{layer}.lora_B.weight"] = torch.cat([pair.scaling * pair.b for pair in padded], dim=1)
    return tensors, LoraShape(sum(ranks), float(sum(ranks)))


def _nothing(pair: _Pair, rank: int) -> _Pair:
    return _Pair(pair.a.new_zeros((rank, pair.a.shape[1])), pair.b.new_zeros((pair.b.shape[0], rank)), 1.0)


def peft_config(shape: LoraShape, target_modules: str | list[str]) -> str:
    """The text of peft's `adapter_config.json`."""
    from peft import LoraConfig

    config = LoraConfig(
        r=shape.lora_rank,
        lora_alpha=shape.lora_alpha,  # pyright: ignore[reportArgumentType] - peft divides it, a float is fine
        target_modules=target_modules,
        task_type="CAUSAL_LM",
    )
    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return (Path(folder) / "adapter_config.json").read_text(encoding="utf-8")


def merge(model: Any, path: Path, *, device: str | None = None) -> None:
    """Add an adapter to a model's weights for good, computed on a device; None: on each weight's own.

    4-bit weights stay as they are and the adapter beside them: rounded to 4 bits again, an update smaller than half
    the distance of two levels would vanish, and with it most of what a short training has learned.
    """
    if is_4bit(model):
        for name, pair in _pairs(path).items():
            _add_beside(model.get_submodule(name), pair)
    else:
        _add_all(model, _pairs(path), device)


def is_4bit(model: Any) -> bool:
    """Whether a model's linear weights are packed 4-bit numbers, to which nothing can be added."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


@contextmanager
def merged(model: Any, path: Path | None, *, strength: float = 1.0) -> Iterator[None]:
    """Add an adapter, `strength` times, to a model's weights for a while, then restore every bit; None changes nothing.

    The original weights are kept as copies: subtracting the update again would leave rounding errors behind. On an
    accelerator they lie beside the weights where `copies_fit`, else in main memory, which takes seconds for a model
    of billions. 4-bit weights cannot be added to, so there the adapter stays beside them as separate matrices, which
    is slower.
    """
    if path is None:
        yield
    elif is_4bit(model):
        # Several may lie beside one another, peft's adapters among them: a hook for each layer.
        with _attached(model, path) if strength == 1.0 and not _is_adapted(model) else _hooked(model, path, strength):
            yield
    else:
        pairs = _pairs(path, strength)
        weights = {name: model.get_submodule(name).weight for name in pairs}
        originals = copies(weights)
        try:
            _add_all(model, pairs)
            yield
        finally:
            with torch.no_grad():
                for name, original in originals.items():
                    weights[name].copy_(original)


def copies_fit(copies_bytes: float, free_bytes: float) -> bool:
    """Whether an accelerator keeps the copies itself: they may take half of what is free, decoding has the rest."""
    return copies_bytes <= free_bytes / 2


def copies(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of weights, each on its own device if all have room there, else in main memory."""
    devices = {weight.device for weight in weights.values() if weight.is_cuda}
    n_bytes = sum(weight.nbytes for weight in weights.values())
    stay = len(devices) == 1 and copies_fit(n_bytes, _free_bytes(next(iter(devices))))
    return {name: weight.detach().to(weight.device if stay else "cpu", copy=True) for name, weight in weights.items()}


def _free_bytes(device: torch.device) -> int:
    """What can still be allocated: the device's own count, and what torch holds without using it."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def _add_all(model: Any, pairs: dict[str, _Pair], device: str | None = None) -> None:
    with torch.no_grad():
        for name, pair in pairs.items():
            weight = model.get_submodule(name).weight
            on = weight.device if device is None else device
            # In float32, so that a bfloat16 weight is rounded once.
            weight.copy_(weight.to(on).float() + _update(pair, on))


def _is_adapted(model: Any) -> bool:
    """Whether peft's layers stand in a model."""
    return any(hasattr(module, "lora_A") for module in model.modules())


@contextmanager
def _hooked(model: Any, path: Path, strength: float) -> Iterator[None]:
    handles = [_add_beside(model.get_submodule(name), pair) for name, pair in _pairs(path, strength).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_beside(layer: torch.nn.Module, pair: _Pair) -> RemovableHandle:
    """Have a layer's output carry the update, computed beside it in float32 as peft does."""
    device = next(layer.parameters()).device
    a, b = pair.a.to(device), pair.b.to(device)

    def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        update = pair.scaling * linear(linear(inputs[0].to(a.dtype), a), b)
        return (output + update).to(output.dtype)

    return layer.register_forward_hook(add)


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
