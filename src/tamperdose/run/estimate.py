"""What a study will cost before anything is loaded: FLOPs, memory, time and disk, each a stated approximation."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tamperdose.models.flops import generation_flops, linears, lora_parameters, n_parameters, training_flops
from tamperdose.models.load import find_architecture
from tamperdose.models.organisms import training_seconds
from tamperdose.records import Example, Prompt, Subset
from tamperdose.run.costs import SECONDS_PER_HOUR
from tamperdose.run.ladder import arm_doses
from tamperdose.run.ledger import Ledger
from tamperdose.run.local import base_draws, dose_draws, missing_doses, untrained
from tamperdose.run.plan import ModelPlan, Plan
from tamperdose.stats.power import detectable_fall
from tamperdose.study import Architecture

CHARACTERS_PER_TOKEN = 4.0
"""English text under common tokenizers; `plan` loads no tokenizer."""
TEMPLATE_TOKENS = 30
"""Tokens a chat template adds to a prompt, about."""
ANSWER_SHARE = 0.7
"""Share of max_new_tokens that an answer takes on average, about: refusals end early."""
EFFICIENCY = 0.5
"""Share of the measured matrix-product rate that training and generation reach, about."""
LIBRARIES_BYTES = 900e6
"""Resident memory of Python, torch and transformers with the sentence encoder, about."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one model of a study takes from start to end."""

    model: str
    """Its name."""
    params_b: float | None
    """Parameters in billions; None when its architecture is not known without loading it."""
    training_flops: float | None
    """Defence and all trajectories."""
    generation_flops: float | None
    """All answers."""
    remaining_share: float
    """Share of the answers still to be generated, in [0, 1]."""
    memory_bytes: float | None
    """Peak memory of the device (on a CPU: of the process)."""
    disk_bytes: float | None
    """Ledger and outputs; while training, also adapters and optimizer state."""
    seconds: float | None
    """Time still to go on this machine; None where its speed is not known."""
    base_training_s: float | None = None
    """Of that, for training an organism that is not in the cache yet; None for every other model."""
    usd: float | None = None
    """Of the time still to go, at the study's price of a device-hour; None without one, or without a time."""


def estimate_costs(plan: Plan, ledger: Ledger) -> list[Cost]:
    """Estimate every model of a plan."""
    return [_estimate(plan, model, ledger) for model in plan.models]


def _estimate(plan: Plan, model: ModelPlan, ledger: Ledger) -> Cost:
    architecture = None if model.source is None else find_architecture(model.spec)
    share = _remaining_share(plan, model, ledger)
    if architecture is None:
        return Cost(model.spec.label, None, None, None, share, None, None, None)
    training = _training_flops(plan, model, architecture)
    generating = _generation_flops(plan, model, architecture)
    rate = _matmul_rate(model.device, model.dtype)
    organism = untrained(model) if share else None
    first = None if organism is None else training_seconds(organism)
    seconds = None if rate is None else (first or 0.0) + share * (training + generating) / (EFFICIENCY * rate)
    price = plan.study.price_per_device_hour
    return Cost(
        model=model.spec.label,
        params_b=n_parameters(architecture) / 1e9,
        training_flops=training,
        generation_flops=generating,
        remaining_share=share,
        memory_bytes=_memory_bytes(plan, model, architecture),
        disk_bytes=_disk_bytes(plan, model, architecture),
        seconds=seconds,
        base_training_s=first,
        usd=None if price is None or seconds is None else price * seconds / SECONDS_PER_HOUR,
    )


def _remaining_share(plan: Plan, model: ModelPlan, ledger: Ledger) -> float:
    draws = base_draws(plan, model)
    for arm in model.arms:
        draws += [draw for steps in arm_doses(plan, ledger, arm) for draw in dose_draws(plan, arm, steps)]
    return sum(ledger.find("generate", draw.key) is None for draw in draws) / len(draws)


def _training_flops(plan: Plan, model: ModelPlan, architecture: Architecture) -> float:
    attack, defence = plan.study.attack, model.spec.defence
    total = 0.0
    for arm in model.arms:
        rank = int(arm.attack.identity()["lora_rank"])
        total += arm.doses[-1] * _step_flops(plan.data.attack.attack, rank, attack.batch_size, architecture)
    if defence is not None:
        rows = [*plan.data.defences[defence.harmful], *plan.data.defences[defence.benign]]
        total += defence.steps * _step_flops(rows, defence.lora_rank, defence.batch_size, architecture)
    return total


def _step_flops(rows: Sequence[Example], lora_rank: int, batch_size: int, architecture: Architecture) -> float:
    answer = sum(len(row.response) for row in rows) / len(rows) / CHARACTERS_PER_TOKEN
    prompt = sum(len(turn.content) for row in rows for turn in row.messages) / len(rows) / CHARACTERS_PER_TOKEN
    lengths = [round(prompt + answer) + TEMPLATE_TOKENS] * batch_size
    n_labels = max(1, round(answer)) * batch_size
    return float(training_flops(architecture, lora_rank=lora_rank, lengths=lengths, n_labels=n_labels))


def _generation_flops(plan: Plan, model: ModelPlan, architecture: Architecture) -> float:
    n_new = max(1, round(ANSWER_SHARE * plan.study.decoding.max_new_tokens))
    states = [0, *(steps for arm in model.arms for steps in arm.doses)]
    total = 0.0
    for subset in plan.subsets():
        n_draws = sum(subset in plan.subsets_at(steps) for steps in states) + (
            2 if plan.study.rd_floor and subset is Subset.HARMFUL else 0
        )
        prompts = plan.data.prompts[subset]
        total += n_draws * sum(
            generation_flops(architecture, n_prompt=_prompt_tokens(prompt), n_new=n_new) for prompt in prompts
        )
    return total


def _prompt_tokens(prompt: Prompt) -> int:
    return round(sum(len(turn.content) for turn in prompt.messages) / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS


def _memory_bytes(plan: Plan, model: ModelPlan, architecture: Architecture) -> float:
    """Weights, the copy kept while an adapter is merged (in main memory), and the larger of decoding and training."""
    size = {"float32": 4, "bfloat16": 2, "float16": 2}[model.dtype]
    weights = n_parameters(architecture) * (0.55 if model.spec.quantization else size)
    sizes = linears(architecture)
    longest = max((_prompt_tokens(p) for part in plan.data.prompts.values() for p in part), default=0)
    columns = longest + plan.study.decoding.max_new_tokens
    rows = min(128, max(len(part) for part in plan.data.prompts.values()))
    cache = 2 * rows * columns * architecture.num_hidden_layers * architecture.num_key_value_heads
    decoding = cache * architecture.head_dim * size + rows * architecture.vocab_size * (size + 4)
    on_cpu = model.device == "cpu"
    copy = sizes.n_layers * sizes.per_layer * size if on_cpu and not model.spec.quantization else 0
    tokens = plan.study.attack.batch_size * min(plan.study.attack.max_length, 128)
    per_token = architecture.num_hidden_layers * (16 * architecture.hidden_size + 4 * architecture.intermediate_size)
    adapter = 16.0 * max(lora_parameters(architecture, rank) for rank in plan.study.attack.lora_rank)
    training = tokens * (per_token + architecture.vocab_size) * 4 + adapter
    return weights + max(copy + decoding, training) + (LIBRARIES_BYTES if on_cpu else 0)


def _disk_bytes(plan: Plan, model: ModelPlan, architecture: Architecture) -> float:
    n_states = 1 + sum(len(arm.doses) for arm in model.arms)
    n_prompts = sum(len(plan.data.prompts[subset]) for subset in plan.subsets())
    per_answer = 4 * plan.study.decoding.max_new_tokens * 3 + 2 * 384 * 4 + 1000
    adapters = 4.0 * max(lora_parameters(architecture, rank) for rank in plan.study.attack.lora_rank)
    return n_states * n_prompts * per_answer + adapters * (len(plan.study.attack.saved_steps) + 3)


def _matmul_rate(device: str, dtype: str) -> float | None:
    """Floating-point operations per second of a large matrix product, measured now; None without the device."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return None
    size = 4096 if device.startswith("cuda") else 768
    matrix = torch.ones((size, size), device=device, dtype=getattr(torch, dtype))
    repeats, seconds = 0, 0.0
    start = time.monotonic()
    while seconds < 0.3:
        product = matrix @ matrix
        repeats += 1
        # Reading one number waits for an accelerator to finish.
        float(product[0, 0])
        seconds = time.monotonic() - start
    return 2.0 * size**3 * repeats / seconds


def describe_detectable(plan: Plan) -> dict[str, Any]:
    """The smallest fall of RRR the harmful prompts can show over an arm's ladder, as plain values."""
    prompts = plan.data.prompts[Subset.HARMFUL]
    sizes = sorted(Counter(prompt.template for prompt in prompts).values())
    n_tests, level = len(plan.study.attack.doses), plan.study.level
    found = asdict(detectable_fall(sizes, n_tests=n_tests, level=level))
    at_zero = detectable_fall(sizes, icc=0.0, n_tests=n_tests, level=level)
    return found | {"fall_at_icc_0": None if found["n"] == found["n_templates"] else at_zero.fall}


def describe_plan(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """Everything `tamperdose plan` shows, as plain values."""
    return {
        "study": plan.study.name,
        "prompts": {subset.value: len(plan.data.prompts[subset]) for subset in plan.subsets()},
        "arms": [
            {
                "arm": arm.id,
                "model": model.spec.label,
                "doses": list(arm_doses(plan, ledger, arm)),
                "doses_done": done,
            }
            for model in plan.models
            for arm, done in zip(model.arms, _doses_done(plan, model, ledger), strict=True)
        ],
        "costs": [asdict(cost) for cost in estimate_costs(plan, ledger)],
        "detectable": describe_detectable(plan),
    }


def _doses_done(plan: Plan, model: ModelPlan, ledger: Ledger) -> list[list[int]]:
    missing = [set(missing_doses(plan, ledger, arm)) for arm in model.arms]
    return [
        [steps for steps in arm_doses(plan, ledger, arm) if steps not in left]
        for arm, left in zip(model.arms, missing, strict=True)
    ]
