"""States of the residual stream at the last prompt token, a batch at a time, and how much an adapter changes a layer.

One forward pass over each prompt; what all prompts begin with is computed once. Of a batch nothing is kept but one
vector a prompt and layer, so memory grows neither with the length of prompts nor, where the caller sums, with their
number.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tamperdose.errors import ModelError, explain
from tamperdose.models.cache import growing_cache, repeated
from tamperdose.models.changes import Guard, changed
from tamperdose.models.chat import encode_prompts
from tamperdose.models.hf import pad_left, shared_prefix
from tamperdose.models.load import ChatModel
from tamperdose.models.lora import is_4bit
from tamperdose.models.random_update import update_sizes
from tamperdose.models.weights import update_norms
from tamperdose.records import Checkpoint, Opener, Prompt
from tamperdose.stats.direction_drift import Layout, add_states, affinities, group_counts

CPU_TOKENS, GPU_TOKENS = 512, 8192
"""Tokens that go through the model together, padding counted, what they share not."""
MAX_ROWS = 64
"""Prompts that go through together at most."""

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Batch:
    """Some prompts that went through the model together."""

    places: list[int]
    """Their places among all prompts."""
    states: NDArray[np.float32]
    """Residual stream at the last token after each block, shape (b, layers, hidden_size)."""
    logits: torch.Tensor
    """Of the next token, float32 on the CPU, shape (b, vocabulary)."""


def read_states(chat: ChatModel, rows: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Run token rows through the model in batches of about equal length, each row once; in no order of theirs.

    Raises:
        ModelError: An architecture whose blocks are not known.
    """
    shared = shared_prefix(chat, rows) if rows else 0
    limit = CPU_TOKENS if chat.device == "cpu" else GPU_TOKENS
    with torch.inference_mode(), _last_states(chat.model) as kept:
        prefix = _prefix(chat, rows[0][:shared]) if shared else None
        for places in _alike(rows, shared=shared, limit=limit):
            padded = pad_left([rows[place] for place in places], shared=shared, device=chat.device)
            cache = None if prefix is None else repeated(prefix, len(places))
            kept.clear()
            output = chat.model(
                input_ids=padded.tokens,
                attention_mask=padded.mask,
                position_ids=padded.positions,
                past_key_values=cache,
                use_cache=cache is not None,
                # A tensor, not a number: a slice would not lie in one piece, and the head would read it slowly.
                logits_to_keep=torch.tensor([-1], device=chat.index_device),
            )
            # Blocks may lie on several cards.
            states = torch.stack([each.to(chat.device) for each in kept], dim=1).float().cpu().numpy()
            yield Batch(places, states, output.logits[:, -1].float().cpu())


def last_states(chat: ChatModel, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """All states at once, in the rows' order: shape (rows, layers, hidden_size)."""
    batches = list(read_states(chat, rows))
    order = np.argsort([place for batch in batches for place in batch.places])
    return np.concatenate([batch.states for batch in batches])[order]


def look_inside(
    chat: ChatModel,
    prompts: Sequence[Prompt],
    layout: Layout,
    *,
    checkpoint: Checkpoint | None,
    base_sums: NDArray[np.float64] | None,
    guard: Guard | None = None,
) -> dict[str, NDArray[Any]]:
    """Sums of states by group, inner products with the base's sums, and norms of the update, at a checkpoint.

    Where an attack begins the answer, the last token is that of the opener: from there the model goes on.

    Args:
        chat: The untampered model.
        prompts: Harmful ones first, as in the layout.
        layout: Their groups.
        checkpoint: What is done to the model; None: nothing.
        base_sums: Of the untampered model, shape (2, groups, layers, hidden_size); None: this is the untampered model.
        guard: What is added to the model whenever it is measured.

    Returns:
        `sums` (2, groups, layers, hidden_size), `affinities` (n, layers, 2 groups) and, where weights were trained,
        `update_norm` and `weight_norm` (layers,).

    Raises:
        DataError: A prompt that does not fit the model's context.
        ModelError: An architecture whose blocks are not known, or a file that cannot be read.
    """
    change = None if checkpoint is None else checkpoint.change
    opener = list(change.tokens) if isinstance(change, Opener) else []
    rows = [[*tokens, *opener] for tokens in encode_prompts(chat, prompts, len(opener) + 1)]
    norms = {} if checkpoint is None else _norms(chat.model, checkpoint)
    with changed(chat, checkpoint, guard):
        found = _summed(read_states(chat, rows), layout, base_sums)
    return found | norms


def _summed(batches: Iterator[Batch], layout: Layout, base_sums: NDArray[np.float64] | None) -> dict[str, Any]:
    """Sum states and take their inner products; the base's own wait on disk until its sums are whole."""
    sums: NDArray[np.float64] | None = None
    along: list[NDArray[np.float64]] = []
    places: list[int] = []
    sizes: list[int] = []
    counts = group_counts(layout)
    with TemporaryFile() as spool:
        for batch in batches:
            if sums is None:
                sums = np.zeros((*counts.shape, *batch.states.shape[1:]))
            add_states(sums, batch.states, batch.places, layout)
            places += batch.places
            sizes.append(len(batch.places))
            if base_sums is None:
                spool.write(np.ascontiguousarray(batch.states).tobytes())
            else:
                along.append(affinities(batch.states, base_sums, counts))
        if sums is None:
            raise ModelError("there is no prompt to read states of")
        if base_sums is None:
            spool.seek(0)
            along = [affinities(_unspooled(spool, (size, *sums.shape[2:])), sums, counts) for size in sizes]
    return {"sums": sums, "affinities": np.concatenate(along)[np.argsort(places)]}


def _unspooled(spool: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.frombuffer(spool.read(4 * int(np.prod(shape))), dtype=np.float32).reshape(shape)


@contextmanager
def _last_states(model: Any) -> Iterator[list[torch.Tensor]]:
    """While the block runs, a list that each block of the model adds its output at the last token to."""
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        whole = output[0] if isinstance(output, tuple) else output
        # A copy: a view would hold the whole output.
        kept.append(whole[:, -1].clone())

    handles = [block.register_forward_hook(keep) for block in _blocks(model)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _blocks(model: Any) -> Sequence[nn.Module]:
    blocks = getattr(model.get_decoder(), "layers", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(
            explain(
                f"the blocks of '{model.config.model_type}' are not known",
                expected="a decoder with a list `layers`, as in Llama, Qwen2 and Phi-3",
                remedy="set `inside: null` for this model",
            )
        )
    return list(blocks)


def _prefix(chat: ChatModel, tokens: Sequence[int]) -> Any:
    cache = growing_cache(chat.model.config)
    prefix = torch.tensor([list(tokens)], device=chat.device)
    chat.model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _alike(rows: Sequence[Sequence[int]], *, shared: int, limit: int) -> Iterator[list[int]]:
    """Places of rows that go through together, longest first."""
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    start = 0
    while start < len(order):
        own = max(1, len(rows[order[start]]) - shared)
        n_rows = min(MAX_ROWS, max(1, limit // own))
        yield order[start : start + n_rows]
        start += n_rows


def _norms(model: Any, checkpoint: Checkpoint) -> dict[str, NDArray[np.float64]]:
    """Frobenius norms of what was trained and of the weights it changes, by layer; none where nothing was."""
    if checkpoint.weights is not None:
        updates = {
            name.removesuffix(".weight"): norm
            for name, norm in update_norms(model, Path(checkpoint.weights)).items()
            if name.endswith("_proj.weight")
        }
    elif checkpoint.adapter is not None:
        sizes = update_sizes(Path(checkpoint.adapter))
        updates = {name.removeprefix("base_model.model."): size.norm for name, size in sizes.items()}
    else:
        return {}
    n_layers = len(_blocks(model))
    found = {"update_norm": _by_layer(updates, n_layers)}
    if is_4bit(model):
        # Packed numbers are no weights: their norm is not that of what they stand for.
        return found
    weights = {name: _norm(model.get_submodule(name).weight) for name in updates}
    return found | {"weight_norm": _by_layer(weights, n_layers)}


def _by_layer(norms: Mapping[str, float], n_layers: int) -> NDArray[np.float64]:
    """Root of the sum of squares over a layer's modules; modules outside the layers are left out."""
    squares = np.zeros(n_layers)
    for name, norm in norms.items():
        place = _LAYER.search(name)
        if place is not None:
            squares[int(place.group(1))] += norm**2
    return np.sqrt(squares)


def _norm(weight: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32))
