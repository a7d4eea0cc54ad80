"""How much memory a study will take at its peak: weights and the largest of decoding and training, term by term."""

import math
import os
from dataclasses import replace

from tamperdose.models.flops import about_tokens, linears, lora_parameters, n_parameters
from tamperdose.run.plan import ModelPlan, Plan
from tamperdose.run.room import DTYPE_BYTES
from tamperdose.run.trainings import Training, attack_training, defence_training, mean_row, trainings
from tamperdose.study import Architecture, ModelEngine, VllmEngine

LIBRARIES_BYTES = 900e6
"""Resident memory of Python, torch and transformers with the sentence encoder, about."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a 4-bit weight: its own, one for the scale of 64, four for the scale of 256 scales."""

EIGHT_BIT_MOMENTS = 2 + 2 * 4 / 256
"""Bytes of a weight's two moments in eight bits, each block of 256 with its scale in float32."""

SERVED_ROWS = 16
"""Answers that vLLM must have room for at once to be worth its start."""
SERVING_BYTES = 3e9
"""What vLLM takes of a card beside weights and cache: the context, CUDA graphs, activations. Assumed, not measured."""

GATHERED_LAYERS = 3
"""Layers whose weights lie whole beside the shards: the one that computes, the next, and the buffer it arrives in."""

DRAWING_BYTES = 40.0
"""Bytes per row and token of the vocabulary while tokens are drawn: probabilities, their order and sums."""


def memory_bytes(plan: Plan, model: ModelPlan, architecture: Architecture, *, room: int | None = None) -> float:
    """Peak memory: the weights and the larger of decoding and training, each at its own worst moment.

    `room` is the memory of the card; None: of the device here, where it is a card. Of a model that is sharded it is
    that of each card; the first process has the whole model in main memory while it loads, which is not in it.
    """
    size = DTYPE_BYTES[model.dtype]
    weights = weight_bytes(model, architecture, size)
    n_cards = shards(plan, model)
    if model.device == "cpu":
        trained = [_cpu_training(training, architecture) for training in trainings(plan, model)]
        working = max(_cpu_decoding(plan, architecture, size), *trained, 0.0)
        # Each process brings its libraries; shards lie beside what is still to be sent.
        processes = 0.0 if n_cards == 1 else n_cards * LIBRARIES_BYTES + weights
        return LIBRARIES_BYTES + weights + working + processes
    if n_cards > 1:
        return _sharded(plan, model, architecture, n_cards=n_cards, room=room)
    # A packed matrix is unpacked for each product.
    unpacked = architecture.hidden_size * architecture.intermediate_size * size if model.spec.quantization else 0
    trained = [_gpu_training(training, architecture, size) for training in trainings(plan, model)]
    engine = plan.study.engine
    if not isinstance(engine, VllmEngine):
        return weights + unpacked + max(_gpu_decoding(plan, model, architecture, room), *trained, 0.0)
    # There transformers decodes for the comparison alone, with an adapter merged.
    compared = _gpu_decoding(_comparing(plan, engine), model, architecture, room)
    room = device_bytes(model.device) if room is None else room
    return _beside(
        engine, weights + unpacked + max(compared, *trained, 0.0), served_bytes(plan, model, architecture), room
    )


def shards(plan: Plan, model: ModelPlan) -> int:
    """Cards over which a model is sharded while it is attacked, and spread while transformers measures it."""
    engine = plan.study.engine
    return engine.shards(model.spec) if isinstance(engine, ModelEngine) else 1


def _sharded(plan: Plan, model: ModelPlan, architecture: Architecture, *, n_cards: int, room: int | None) -> float:
    """Memory of one of several cards: the larger of sharded training, and of measuring with its share of the layers.

    The embeddings and the head are gathered for a whole step. Measuring, layers lie on one card or another, with their
    cache; copies of merged weights go to main memory, and one layer more on a card than on another is counted.
    """
    size, sizes = DTYPE_BYTES[model.dtype], linears(architecture)
    whole = weight_bytes(model, architecture, size)
    layer = float(sizes.per_layer * size)
    around = whole - sizes.n_layers * layer
    attacks = [training for arm in model.arms if (training := attack_training(arm)) is not None]
    attacked = [_sharded_training(training, architecture, size, n_cards) for training in attacks]
    training = max((GATHERED_LAYERS * layer + around + each for each in attacked), default=0.0)
    defence = defence_training(plan, model)
    # On the whole model, spread.
    defended = 0.0 if defence is None else _gpu_training(defence, architecture, size)
    engine, share = plan.study.engine, whole / n_cards + layer
    if not isinstance(engine, VllmEngine):
        measuring = max(_gpu_decoding(plan, model, architecture, room, n_cards=n_cards), defended)
        return max(whole / n_cards + training, share + measuring)
    compared = _gpu_decoding(_comparing(plan, engine), model, architecture, room, n_cards=n_cards)
    room = device_bytes(model.device) if room is None else room
    both = _beside(engine, share + max(compared, defended), served_bytes(plan, model, architecture), room)
    # The engine has ended while the processes train.
    return max(whole / n_cards + training, both)


def _beside(engine: VllmEngine, transformers: float, least: float, room: int | None) -> float:
    """Memory of the first card with transformers' model and the engine on it, at once or in turn.

    The engine takes its share whatever it needs; where the share does not hold what it needs, a card that is larger by
    as much would do.
    """
    share = least if room is None else max(least, engine.gpu_memory_utilization * room)
    at_once = transformers + share if engine.keep_both else max(transformers, share)
    return max(at_once, least / engine.gpu_memory_utilization)


def served_bytes(plan: Plan, model: ModelPlan, architecture: Architecture) -> float:
    """What the engine `vllm` needs of each card, at least: its part of weights and cache, and what it works with."""
    engine, size = plan.study.engine, DTYPE_BYTES[model.dtype]
    if not isinstance(engine, VllmEngine):
        return 0.0
    cards = engine.cards(model.spec)
    heads = max(1.0, architecture.num_key_value_heads / cards)
    rows = min(SERVED_ROWS, max(len(part) for part in plan.data.prompts.values()))
    cache = 2.0 * rows * _columns(plan) * architecture.num_hidden_layers * heads * architecture.head_dim * size
    return weight_bytes(model, architecture, size) / cards + cache + SERVING_BYTES


def _comparing(plan: Plan, engine: VllmEngine) -> Plan:
    limits = engine.equivalence
    decoding = plan.study.decoding.model_copy(update={"max_new_tokens": limits.n_tokens, "do_sample": False})
    return replace(plan, study=plan.study.model_copy(update={"decoding": decoding, "rd_floor": False}))


def weight_bytes(model: ModelPlan, architecture: Architecture, size: int) -> float:
    """All parameters; in nf4 the linears alone are packed, embeddings and head keep the dtype."""
    sizes = linears(architecture)
    packed = sizes.n_layers * sizes.per_layer if model.spec.quantization else 0
    return (n_parameters(architecture) - packed) * size + packed * NF4_BYTES


def _columns(plan: Plan) -> int:
    longest = max((about_tokens(p.messages) for part in plan.data.prompts.values() for p in part), default=0)
    return longest + plan.study.decoding.max_new_tokens


def _cpu_decoding(plan: Plan, architecture: Architecture, size: int) -> float:
    """Cache and logits, and the weights' copy kept while an adapter is merged."""
    sizes = linears(architecture)
    rows = min(128, max(len(part) for part in plan.data.prompts.values()))
    cache = 2 * rows * _columns(plan) * architecture.num_hidden_layers * architecture.num_key_value_heads
    logits = rows * architecture.vocab_size * (size + 4)
    return sizes.n_layers * sizes.per_layer * size + cache * architecture.head_dim * size + logits


def _cpu_training(training: Training, architecture: Architecture) -> float:
    """Activations kept for the backward pass, logits, and what learns."""
    tokens = training.batch_size * min(training.max_length, 128)
    layer = 16 * architecture.hidden_size + 4 * architecture.intermediate_size
    per_token = _kept_per_token(training, architecture, layer=4.0 * layer, size=4)
    return tokens * (per_token + architecture.vocab_size * 4) + _learning_bytes(training, architecture)


def _kept_per_token(training: Training, architecture: Architecture, *, layer: float, size: int) -> float:
    """Bytes that all layers keep of a token for the backward pass, where one keeps `layer`.

    Computed again, each keeps its input alone, and one at a time all else.
    """
    if not training.gradient_checkpointing:
        return architecture.num_hidden_layers * layer
    return architecture.num_hidden_layers * size * architecture.hidden_size + layer


def _learning_bytes(training: Training, architecture: Architecture) -> float:
    """What learns with its gradient and two moments in float32: 16 bytes each; with moments of eight bits 10.

    Where all weights learn also the second lane's gradient, and the weights as they were: at most 4 bytes each. Moments
    of eight bits lie in pages, and may be in main memory when a card is full: that is not counted on.
    """
    each = 16.0 - (0.0 if training.optimizer == "adamw" else 8.0 - EIGHT_BIT_MOMENTS)
    if training.lora_rank is None:
        return (each + 8.0) * n_parameters(architecture)
    return each * lora_parameters(architecture, training.lora_rank)


def _gpu_decoding(
    plan: Plan, model: ModelPlan, architecture: Architecture, room: int | None, *, n_cards: int = 1
) -> float:
    """The cache of a full batch, what one layer needs beside it, and copies of merged weights where they have room.

    Of a model that is spread over several cards, each has the cache of its layers, and none the copies.
    """
    from tamperdose.models.cache import BLOCK
    from tamperdose.models.hf import GPU_PREFILL_TOKENS
    from tamperdose.models.lora import copies_fit

    size, sizes = DTYPE_BYTES[model.dtype], linears(architecture)
    rows = min(gpu_rows(plan), max(len(part) for part in plan.data.prompts.values()))
    columns = _columns(plan)
    width = architecture.num_key_value_heads * architecture.head_dim
    # A buffer grows by a block, and its largest size is what counts.
    cache = 2.0 * rows * (columns // BLOCK + 1) * BLOCK * architecture.num_hidden_layers * width * size
    repeated = 2.0 * rows * columns * sizes.attention_width * size if sizes.attention_width > width else 0.0
    # Reading the prompts: three gated MLP tensors and the hidden states of all tokens at once.
    prompt_tokens = min(rows * (columns - plan.study.decoding.max_new_tokens), GPU_PREFILL_TOKENS)
    reading = prompt_tokens * 3.0 * (architecture.intermediate_size + architecture.hidden_size) * size
    drawn = plan.study.decoding.do_sample or plan.study.rd_floor
    logits = rows * architecture.vocab_size * (DRAWING_BYTES if drawn else 2.0 * size)
    copies = 0.0 if model.spec.quantization or n_cards > 1 else float(sizes.n_layers * sizes.per_layer * size)
    weights = weight_bytes(model, architecture, size)
    room = device_bytes(model.device) if room is None else room
    kept = copies if room is not None and copies_fit(copies, room - weights) else 0.0
    return kept + cache / n_cards + max(reading, repeated + logits)


def gpu_rows(plan: Plan) -> int:
    """Rows that a GPU decodes together to begin with."""
    from tamperdose.models.hf import GPU_BATCH

    engine = plan.study.engine
    return engine.batch_size if isinstance(engine, ModelEngine) and engine.batch_size != "auto" else GPU_BATCH


def _sharded_training(training: Training, architecture: Architecture, size: int, n_ranks: int) -> float:
    """What one of several processes works with: its share of a batch, the adapter, its gradient twice for the sum."""
    n_rows = math.ceil(training.batch_size / n_ranks)
    summed = 8.0 * lora_parameters(architecture, training.lora_rank or 0)
    return _gpu_training(training, architecture, size, n_rows=n_rows) + summed


def _gpu_training(training: Training, architecture: Architecture, size: int, *, n_rows: int | None = None) -> float:
    """What a packed sequence leaves for its backward pass, the logits of its labels, and the adapter.

    Per layer and token, with H hidden, Q query and I inner width, in bytes: the two norms keep their input in float32
    (8 H); adapters are float32, so in half precision each of the seven linears keeps a float32 copy of its input
    (20 H + 4 Q + 4 I), in float32 the inputs themselves (8 H + 4 I; the output of attention is kept anyway); attention
    keeps queries, keys, values (repeated for all heads) and its output (4 Q), the gated MLP three tensors (3 I), in the
    weights' dtype. A label costs three float32 rows of the vocabulary at the loss.
    """
    from tamperdose.models.train import PACKED_TOKENS

    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    query = linears(architecture).attention_width
    inputs = 20 * hidden + 4 * query + 4 * inner if size < 4 else 8 * hidden + 4 * inner
    layer = 8 * hidden + inputs + size * (4 * query + 3 * inner)
    per_token = _kept_per_token(training, architecture, layer=float(layer), size=size)
    length, answer = mean_row(training)
    tokens = min((n_rows or training.batch_size) * length, max(PACKED_TOKENS, length))
    labels = tokens * answer / length
    return tokens * per_token + labels * architecture.vocab_size * 12.0 + _learning_bytes(training, architecture)


def device_bytes(device: str) -> int | None:
    """Memory of a CUDA device; None without one."""
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(device).total_memory


def physical_bytes() -> int | None:
    """Memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
