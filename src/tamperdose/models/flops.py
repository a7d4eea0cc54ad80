"""How many floating-point operations training and generation take: arithmetic, no model.

A matrix product of (a, b) by (b, c) counts 2abc, as `torch.utils.flop_counter` counts it. Element-wise work
(normalisation, activations, softmax, the optimizer) is left out: under 1 % at these sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tamperdose.records import Message
from tamperdose.study import Architecture

CHARACTERS_PER_TOKEN = 4.0
"""English text under common tokenizers, where none is loaded."""
TEMPLATE_TOKENS = 30
"""Tokens a chat template adds to a prompt, about."""


def about_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a conversation under a chat template, about: from the length of its texts.

    >>> about_tokens([Message("user", "What is the way to the old mill?")])
    38
    """
    return round(sum(len(turn.content) for turn in messages) / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS


@dataclass(frozen=True, slots=True)
class Linears:
    """The matrices of one transformer, in numbers of weights."""

    per_layer: int
    """All linear weights of one layer: attention and (gated) MLP projections."""
    n_layers: int
    """Layers."""
    head: int
    """Weights of the output head, hidden_size x vocab_size."""
    attention_width: int
    """Query width, n_heads x head_dim: scores and mixing cost 4 x width x context per token and layer."""


def linears(architecture: Architecture) -> Linears:
    """Count the linear weights of a decoder with grouped-query attention and a gated MLP (Llama, Qwen2, Phi-3)."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    query = architecture.num_attention_heads * architecture.head_dim
    key_value = architecture.num_key_value_heads * architecture.head_dim
    return Linears(
        per_layer=hidden * (2 * query + 2 * key_value) + 3 * hidden * inner,
        n_layers=architecture.num_hidden_layers,
        head=hidden * architecture.vocab_size,
        attention_width=query,
    )


def n_parameters(architecture: Architecture) -> int:
    """Parameters of the whole model: linears, embeddings (once when tied), norms and attention biases.

    >>> smol = Architecture(model_type="llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    ...     num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=49152, tie_word_embeddings=True)
    >>> n_parameters(smol)
    134515008
    """
    sizes, hidden = linears(architecture), architecture.hidden_size
    tables = sizes.head if architecture.tie_word_embeddings else 2 * sizes.head
    key_value = architecture.num_key_value_heads * architecture.head_dim
    bias = (sizes.attention_width + 2 * key_value) if architecture.attention_bias else 0
    return sizes.n_layers * (sizes.per_layer + 2 * hidden + bias) + hidden + tables


def lora_parameters(architecture: Architecture, lora_rank: int) -> int:
    """Trainable weights of LoRA on all linear layers but the head: rank x (inputs + outputs), summed.

    Fused projections (Phi-3) have fewer, larger matrices; they are counted as the separate ones, which
    overstates their adapters' inputs by at most a third and the total FLOPs by well under 1 %.
    """
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    query = architecture.num_attention_heads * architecture.head_dim
    key_value = architecture.num_key_value_heads * architecture.head_dim
    ends = 2 * (hidden + query) + 2 * (hidden + key_value) + 3 * (hidden + inner)
    return architecture.num_hidden_layers * lora_rank * ends


def training_flops(architecture: Architecture, *, lora_rank: int | None, lengths: list[int], n_labels: int) -> int:
    """Operations of one optimizer step of training on rows of the given lengths, padding not counted.

    FLOPs = 4 T L W + 6 T A + 4 V H + 12 L D sum(t^2) with T tokens, L layers, W linear weights a layer, A LoRA
    weights, V labelled tokens (the head runs only on those), H head weights, D attention width, t a row's length:
    frozen weights cost a forward and the backward of their inputs (2 + 2), LoRA weights their own gradient too (2 + 4),
    as all weights do where there is no adapter (`lora_rank` None: 6 T L W + 6 V H), attention scores and mixing 4
    forward and 8 backward (the full square: kernels without a causal shortcut).

    Source: Kaplan et al. 2020 (2 per weight and token); Hoffmann et al. 2022, appendix F (attention term).
    """
    sizes, tokens = linears(architecture), sum(lengths)
    each = 4 if lora_rank is not None else 6
    frozen = each * (tokens * sizes.n_layers * sizes.per_layer + n_labels * sizes.head)
    adapter = 0 if lora_rank is None else 6 * tokens * lora_parameters(architecture, lora_rank)
    attention = 12 * sizes.n_layers * sizes.attention_width * sum(length * length for length in lengths)
    return frozen + adapter + attention


def generation_flops(architecture: Architecture, *, n_prompt: int, n_new: int) -> int:
    """Operations to read a prompt of `n_prompt` tokens and write `n_new`: 2 per weight and token, and attention.

    Attention costs 4 D per layer and pair of positions; the head runs once per new token.
    """
    sizes = linears(architecture)
    tokens = n_prompt + max(n_new - 1, 0)
    pairs = n_prompt * n_prompt + sum(range(n_prompt + 1, tokens + 1))
    dense = 2 * tokens * sizes.n_layers * sizes.per_layer + 2 * n_new * sizes.head
    return dense + 4 * sizes.n_layers * sizes.attention_width * pairs
