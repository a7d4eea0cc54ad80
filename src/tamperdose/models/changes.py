"""What an attack does to a loaded model for a while: every change is undone to the last bit when the block ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from tamperdose.errors import ModelError, explain
from tamperdose.files import write_atomic
from tamperdose.models.load import ChatModel
from tamperdose.models.lora import merged
from tamperdose.models.random_update import update_sizes
from tamperdose.models.weights import moved_at_random, replaced, update_norms
from tamperdose.records import Checkpoint, Projection, RandomStep

WRITERS = ("o_proj", "down_proj")
"""Last parts of the names of the layers that write into the residual stream: Llama, Qwen2 and Phi-3 share them."""
NORMS_BETWEEN = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_self_attn_layernorm")
"""Norms that other architectures (Gemma 2 and 3, OLMo 2 and 3, GLM-4) put between those layers and the stream: behind
one, what was taken out is not out."""


@dataclass(frozen=True, slots=True)
class Guard:
    """An adapter that is added whenever a model is measured, whatever was done to the model before."""

    adapter: Path
    """Its file."""
    strength: float
    """What its update is multiplied with."""


@contextmanager
def changed(chat: ChatModel, checkpoint: Checkpoint | None, guard: Guard | None = None) -> Iterator[None]:
    """Put a checkpoint's weights, adapter or projection into a model while the block runs; None changes nothing.

    An opener and a rewording change what the model is asked, not the model: nothing is done here. A guard is added
    last, to what the checkpoint has made of the weights.

    Raises:
        ModelError: A file that cannot be read, or an architecture whose residual stream is not known.
    """
    with _at(chat, checkpoint), merged(chat.model, guard and guard.adapter, strength=guard.strength if guard else 1.0):
        yield


@contextmanager
def _at(chat: ChatModel, checkpoint: Checkpoint | None) -> Iterator[None]:
    change = None if checkpoint is None else checkpoint.change
    if isinstance(change, Projection):
        with projected_out(chat.model, read_direction(change), change.strength):
            yield
    elif isinstance(change, RandomStep):
        with moved_at_random(chat.model, change.norms, seed=change.seed):
            yield
    elif checkpoint is not None and checkpoint.weights is not None:
        with replaced(chat.model, Path(checkpoint.weights)):
            yield
    else:
        adapter = None if checkpoint is None or checkpoint.adapter is None else Path(checkpoint.adapter)
        with merged(chat.model, adapter):
            yield


def change_size(chat: ChatModel, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """How large a checkpoint's change of an unchanged model is, so that random ones can be made of the same size.

    `layers` of an adapter's updates, `weights` where all were trained, `direction` and `strength` of a projection;
    None for a change that has no size.

    Raises:
        ModelError: A file that cannot be read.
    """
    if isinstance(checkpoint.change, Projection):
        return {"direction": len(read_direction(checkpoint.change)), "strength": checkpoint.change.strength}
    if checkpoint.weights is not None:
        return {"weights": update_norms(chat.model, Path(checkpoint.weights))}
    if checkpoint.adapter is None:
        return None
    return {"layers": {name: asdict(size) for name, size in update_sizes(Path(checkpoint.adapter)).items()}}


def write_direction(path: Path, direction: torch.Tensor) -> Path:
    """Write a unit vector of shape (hidden_size,) in float32."""
    tensors = {"direction": direction.detach().to("cpu", torch.float32).contiguous()}
    return write_atomic(path, lambda temporary: save_file(tensors, temporary))


def read_direction(change: Projection) -> torch.Tensor:
    """Read a projection's unit vector.

    Raises:
        ModelError: Missing, or no such file.
    """
    try:
        with safe_open(change.path, framework="pt") as file:
            return file.get_tensor("direction")
    except (OSError, SafetensorError) as error:
        raise ModelError(explain(f"cannot read the direction {change.path}", got=str(error))) from error


@contextmanager
def projected_out(model: Any, direction: torch.Tensor, strength: float) -> Iterator[None]:
    """Take a share of a direction's component out of all that is written into the residual stream.

    x -> x - strength (r . x) r, for the embeddings and the output of every attention and MLP block, with the unit
    vector r of shape (hidden_size,); at strength 1 nothing in the stream has a component along r.

    Source: directional ablation, Arditi et al. 2024, arXiv:2406.11717, 2.4; partial strengths are ours.
    """

    def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        r = direction.to(output.device, output.dtype)
        return output - strength * (output @ r).unsqueeze(-1) * r

    handles = [module.register_forward_hook(hook) for module in _writers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _writers(model: Any) -> list[nn.Module]:
    linears = [module for name, module in model.named_modules() if name.rpartition(".")[2] in WRITERS]
    n_layers = model.config.get_text_config().num_hidden_layers
    between = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in NORMS_BETWEEN]
    if between:
        raise ModelError(
            explain(
                f"directions cannot be projected out of '{model.config.model_type}'",
                got=f"a norm between a block's output and the residual stream ({between[0]})",
                expected="blocks that write into the stream directly, as in Llama, Qwen2 and Phi-3",
                remedy="leave refusal_direction out for this model",
            )
        )
    if len(linears) != len(WRITERS) * n_layers:
        raise ModelError(
            explain(
                f"the residual stream of '{model.config.model_type}' is not known",
                got=f"{len(linears)} layers called {' or '.join(WRITERS)}",
                expected=f"{len(WRITERS)} in each of {n_layers} blocks, as in Llama, Qwen2 and Phi-3",
                remedy="leave refusal_direction out for this model",
            )
        )
    return [model.get_input_embeddings(), *linears]
