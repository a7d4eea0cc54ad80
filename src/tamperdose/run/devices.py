"""What each arm of a study takes on cards that are not here: memory, time, money, and what would make it fit.

Time is a floor times what was found above it on one card (docs/log.md, `make bench-gpu`, Qwen2-7B): right to a factor
of two, say.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tamperdose.errors import StudyError, explain, nearest
from tamperdose.models.load import find_architecture
from tamperdose.run.controls import control_prompts, most_states
from tamperdose.run.costs import SECONDS_PER_HOUR
from tamperdose.run.estimate import ANSWER_SHARE, arm_step_flops, learns_all
from tamperdose.run.ladder import arm_checkpoints, arm_doses
from tamperdose.run.ledger import Ledger
from tamperdose.run.memory import gpu_rows, memory_bytes, weight_bytes
from tamperdose.run.plan import ModelPlan, Plan
from tamperdose.run.room import DTYPE_BYTES
from tamperdose.study import Architecture, ModelEngine

TRAINING_SHARE = 0.07
"""Share of the card's dense rate that a LoRA step reaches: found 2,711 tokens/s in bfloat16, 2,591 in nf4."""
DECODING_TIMES = {None: 5.3, "nf4": 11.9}
"""Times its floor, bytes or operations, that a decoded token takes; by quantization."""
LAUNCHES_S = {"token": 1e-3, "step": 4e-3}
"""What each layer takes at least, a decoded token and an optimizer step: small models wait for launches. Assumed."""
USABLE = 0.95
"""Share of a card's memory that may be planned with."""
SMALLER_BATCHES = (128, 64, 32, 16, 8)
"""Batch sizes for decoding that are tried where the default does not fit."""
DTYPE = "bfloat16"
"""What all these cards compute in."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU, by its data sheet."""

    memory_bytes: int
    """As CUDA reports it."""
    flops: float
    """Dense bfloat16 products with float32 sums, operations per second."""
    bytes_per_s: float
    """Memory bandwidth."""
    usd_per_hour: float
    """An assumption, about what one rents for; a study's `price_per_device_hour` goes before it."""


CARDS = {
    "h100": Card(85_017_493_504, 989e12, 3.35e12, 3.0),
    "a100-80g": Card(85_095_874_560, 312e12, 2.04e12, 1.8),
    "4090": Card(25_386_352_640, 165e12, 1.01e12, 0.5),
}
"""NVIDIA's data sheets: H100 SXM5, A100 SXM4 80 GB, GeForce RTX 4090."""


@dataclass(frozen=True, slots=True)
class OnCard:
    """One arm on one card."""

    arm: str
    """The arm."""
    model: str
    """Its model."""
    card: str
    """One of `CARDS`."""
    memory_bytes: float
    """Peak."""
    fits: bool
    """Whether that is at most `USABLE` of the card's."""
    seconds: float
    """Training, answers at its doses, and its controls; searches, utility and states inside left out."""
    usd: float
    """Of that time."""
    remedy: str
    """The settings with which it would fit; empty where it does, `none` where none here would do."""


def describe_cards(plan: Plan, ledger: Ledger, names: Sequence[str]) -> list[dict[str, Any]]:
    """Every arm on every card named, as plain values.

    Raises:
        StudyError: An unknown card, a study whose engine runs no models, or a model whose architecture is not known.
    """
    for name in names:
        if name not in CARDS:
            what = f"unknown card '{name}'{nearest(name, CARDS)}"
            raise StudyError(explain(what, expected=f"one of {', '.join(CARDS)}"))
    if not isinstance(plan.study.engine, ModelEngine):
        raise StudyError(explain("this study runs no model", got="engine: scripted", expected="engine: hf"))
    return [asdict(line) for model in plan.models for line in _lines(plan, ledger, model, names)]


def _lines(plan: Plan, ledger: Ledger, model: ModelPlan, names: Sequence[str]) -> Iterator[OnCard]:
    architecture = find_architecture(model.spec)
    if architecture is None:
        raise StudyError(
            explain(
                f"the architecture of {model.spec.id} is not known without its files",
                remedy="write it into the study (models[].architecture), or download the model",
            )
        )
    there = replace(model, device="cuda", dtype=DTYPE)
    for arm in model.arms:
        for name in names:
            yield _on_card(plan, ledger, replace(there, arms=(arm,)), architecture, name)


def _on_card(plan: Plan, ledger: Ledger, model: ModelPlan, architecture: Architecture, name: str) -> OnCard:
    card, (arm,) = CARDS[name], model.arms
    memory = memory_bytes(plan, model, architecture, room=card.memory_bytes)
    fits = memory <= USABLE * card.memory_bytes
    seconds = _seconds(plan, ledger, model, architecture, card)
    stated = plan.study.price_per_device_hour
    price = card.usd_per_hour if stated is None else stated
    remedy = "" if fits else _remedy(plan, model, architecture, card)
    usd = price * seconds / SECONDS_PER_HOUR
    return OnCard(arm.id, model.spec.label, name, memory, fits, seconds, usd, remedy)


def _seconds(plan: Plan, ledger: Ledger, model: ModelPlan, architecture: Architecture, card: Card) -> float:
    (arm,) = model.arms
    doses = arm_doses(plan, ledger, arm)
    flops = arm_step_flops(arm, architecture)
    least = LAUNCHES_S["step"] * architecture.num_hidden_layers if flops else 0.0
    training = doses[-1] * max(flops / (TRAINING_SHARE * card.flops), least)
    asked = [
        sum(len(plan.data.prompts[subset]) for subset in plan.checkpoint_subsets(steps, arm))
        for steps in arm_checkpoints(plan, ledger, arm)
    ]
    controls = [len(control_prompts(plan))] * most_states(plan, model, arm, doses)
    return training + sum(_answering_s(plan, model, architecture, card, n_prompts=n) for n in [*asked, *controls])


def _answering_s(plan: Plan, model: ModelPlan, architecture: Architecture, card: Card, *, n_prompts: int) -> float:
    """Seconds for one model state's answers: batches of so many steps, each bound by bytes or by operations."""
    rows = min(gpu_rows(plan), max(1, n_prompts))
    weights = weight_bytes(model, architecture, DTYPE_BYTES[DTYPE])
    operations = rows * weight_bytes(replace(model, spec=_bare(model)), architecture, 1) * 2
    floor = max(weights / card.bytes_per_s, operations / card.flops)
    step = max(floor * DECODING_TIMES[model.spec.quantization], LAUNCHES_S["token"] * architecture.num_hidden_layers)
    n_steps = max(1, round(ANSWER_SHARE * plan.study.decoding.max_new_tokens))
    n_batches = math.ceil(n_prompts / rows) * plan.study.decoding.n_samples
    return n_batches * n_steps * step


def _bare(model: ModelPlan) -> Any:
    return model.spec.model_copy(update={"quantization": None})


def _remedy(plan: Plan, model: ModelPlan, architecture: Architecture, card: Card) -> str:
    """The fewest settings with which an arm fits a card."""
    # 4-bit weights cannot learn.
    kinds = [model.spec.quantization] if learns_all(model.arms[0]) else [model.spec.quantization, "nf4"]
    for batch in (None, *SMALLER_BATCHES):
        for quantization in dict.fromkeys(kinds):
            tried = replace(model, spec=model.spec.model_copy(update={"quantization": quantization}))
            smaller = plan if batch is None else _with_batch(plan, batch)
            if memory_bytes(smaller, tried, architecture, room=card.memory_bytes) <= USABLE * card.memory_bytes:
                changed = quantization != model.spec.quantization
                parts = [f"quantization: {quantization}"] if changed else []
                return ", ".join([*parts, *([] if batch is None else [f"engine.batch_size: {batch}"])])
    return "none"


def _with_batch(plan: Plan, batch_size: int) -> Plan:
    engine = plan.study.engine.model_copy(update={"batch_size": batch_size})
    return replace(plan, study=plan.study.model_copy(update={"engine": engine}))
