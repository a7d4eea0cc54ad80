"""What each arm of a study takes on cards that are not here: memory, time, money, and what would make it fit.

Time is a floor times what was found above it with one model on one card (docs/log.md, `make bench-gpu`: Qwen2-7B, an
H200). How far that holds for other models and cards was not tried.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations, product
from typing import Any, cast

from tamperdose.errors import StudyError, explain, nearest
from tamperdose.models.load import find_architecture
from tamperdose.run.controls import control_prompts, most_states
from tamperdose.run.costs import SECONDS_PER_HOUR
from tamperdose.run.estimate import ANSWER_SHARE, arm_step_flops, learns_all
from tamperdose.run.ladder import arm_checkpoints, arm_doses
from tamperdose.run.ledger import Ledger
from tamperdose.run.memory import gpu_rows, memory_bytes, shards, weight_bytes
from tamperdose.run.plan import ModelPlan, Plan
from tamperdose.run.room import DTYPE_BYTES
from tamperdose.run.trainings import attack_training, mean_row
from tamperdose.study import Architecture, ModelEngine, VllmEngine

TRAINING_SHARE = 0.07
"""Share of the card's dense rate that a LoRA step reaches: found 2,711 tokens/s in bfloat16, 2,591 in nf4."""
DECODING_TIMES = {None: 5.3, "nf4": 11.9}
"""Times its floor, bytes or operations, that a decoded token takes; by quantization."""
LAUNCHES_S = {"token": 1e-3, "step": 4e-3}
"""What each layer takes at least, a decoded token and an optimizer step: small models wait for launches. Assumed."""
AGAIN = 4 / 3
"""Times as long that a step takes whose activations are computed again: one forward pass more."""
SERVED_TIMES, SERVED_LAUNCHES = 2.0, 0.1
"""Times its floor that a token takes which vLLM decodes, and the share of launches that CUDA graphs leave. Assumed."""
CARDS_TOGETHER = (2, 4, 8)
"""Cards over which an engine is split, or a model sharded, that are tried."""
SMALLER_SHARES = (0.4, 0.35, 0.3)
"""Shares of a card for an engine beside transformers that are tried."""
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
    link_bytes_per_s: float
    """What it gets from the cards beside it: NVLink in one direction, or PCIe."""
    usd_per_hour: float
    """An assumption, about what one rents for; a study's `price_per_device_hour` goes before it."""


CARDS = {
    "h100": Card(85_017_493_504, 989e12, 3.35e12, 450e9, usd_per_hour=3.0),
    "a100-80g": Card(85_095_874_560, 312e12, 2.04e12, 300e9, usd_per_hour=1.8),
    "4090": Card(25_386_352_640, 165e12, 1.01e12, 32e9, usd_per_hour=0.5),
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
    """Of that time, on as many cards as the model is split or sharded over."""
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
        raise StudyError(explain("this study runs no model", got="engine: scripted", expected="engine: hf or vllm"))
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
    engine = plan.study.engine
    n_cards = max(shards(plan, model), engine.cards(model.spec) if isinstance(engine, VllmEngine) else 1)
    usd = n_cards * price * seconds / SECONDS_PER_HOUR
    return OnCard(arm.id, model.spec.label, name, memory, fits, seconds, usd, remedy)


def _seconds(plan: Plan, ledger: Ledger, model: ModelPlan, architecture: Architecture, card: Card) -> float:
    (arm,) = model.arms
    doses = arm_doses(plan, ledger, arm)
    flops = arm_step_flops(arm, architecture)
    least = LAUNCHES_S["step"] * architecture.num_hidden_layers if flops else 0.0
    shape = arm.attack.training
    repeated = AGAIN if shape is not None and shape.gradient_checkpointing else 1.0
    part, gathering = _shared_step(plan, model, architecture, card)
    training = doses[-1] * (max(part * repeated * flops / (TRAINING_SHARE * card.flops), least) + gathering)
    asked = [
        sum(len(plan.data.prompts[subset]) for subset in plan.checkpoint_subsets(steps, arm))
        for steps in arm_checkpoints(plan, ledger, arm)
    ]
    controls = [len(control_prompts(plan))] * most_states(plan, model, arm, doses)
    return training + sum(_answering_s(plan, model, architecture, card, n_prompts=n) for n in [*asked, *controls])


def _shared_step(plan: Plan, model: ModelPlan, architecture: Architecture, card: Card) -> tuple[float, float]:
    """The share of a step's operations that falls to a card with most of them, and seconds in which it gathers weights.

    Every sequence gathers what the other cards hold, forwards and again backwards; that it does so while it computes is
    not counted on.
    """
    from tamperdose.models.train import PACKED_TOKENS

    (arm,) = model.arms
    n_ranks, training = shards(plan, model), attack_training(arm)
    if n_ranks == 1 or training is None:
        return 1.0, 0.0
    n_rows = math.ceil(training.batch_size / n_ranks)
    n_passes = math.ceil(n_rows * mean_row(training)[0] / PACKED_TOKENS)
    foreign = (1 - 1 / n_ranks) * weight_bytes(model, architecture, DTYPE_BYTES[DTYPE])
    return n_rows / training.batch_size, 2 * n_passes * foreign / card.link_bytes_per_s


def _answering_s(plan: Plan, model: ModelPlan, architecture: Architecture, card: Card, *, n_prompts: int) -> float:
    """Seconds for one model state's answers: batches of so many steps, each bound by bytes or by operations."""
    rows = min(gpu_rows(plan), max(1, n_prompts))
    weights = weight_bytes(model, architecture, DTYPE_BYTES[DTYPE])
    operations = rows * weight_bytes(replace(model, spec=_bare(model)), architecture, 1) * 2
    floor = max(weights / card.bytes_per_s, operations / card.flops)
    engine, launch = plan.study.engine, LAUNCHES_S["token"] * architecture.num_hidden_layers
    if isinstance(engine, VllmEngine):
        step = max(SERVED_TIMES * floor / engine.cards(model.spec), SERVED_LAUNCHES * launch)
    else:
        step = max(floor * DECODING_TIMES[model.spec.quantization], launch)
    n_steps = max(1, round(ANSWER_SHARE * plan.study.decoding.max_new_tokens))
    n_batches = math.ceil(n_prompts / rows) * plan.study.decoding.n_samples
    return n_batches * n_steps * step


def _bare(model: ModelPlan) -> Any:
    return model.spec.model_copy(update={"quantization": None})


Change = Callable[[Plan, ModelPlan], tuple[Plan, ModelPlan]]
"""A plan and its model with one setting changed."""


def _remedy(plan: Plan, model: ModelPlan, architecture: Architecture, card: Card) -> str:
    """The fewest settings with which an arm fits a card; of as few, those first that change no answer by design."""
    groups = _settings(plan, model)
    for count in range(1, len(groups) + 1):
        for chosen in combinations(groups, count):
            for settings in product(*chosen):
                changes = [change for _, change in settings]
                if not _exclude(settings) and _fits_with(plan, model, architecture, card, changes):
                    return ", ".join(name for name, _ in settings)
            # The last of every group saves most: where those together do not do, fewer will not.
        if count == 1 and not _fits_with(plan, model, architecture, card, [group[-1][1] for group in groups]):
            return "none"
    return "none"


def _exclude(settings: Sequence[tuple[str, Change]]) -> bool:
    """Whether settings exclude one another: 4-bit weights do not come in shards."""
    names = {name.split(":")[0] for name, _ in settings}
    return {"fsdp", "quantization"} <= names


def _fits_with(plan: Plan, model: ModelPlan, architecture: Architecture, card: Card, changes: Sequence[Change]) -> bool:
    for change in changes:
        plan, model = change(plan, model)
    return memory_bytes(plan, model, architecture, room=card.memory_bytes) <= USABLE * card.memory_bytes


def _settings(plan: Plan, model: ModelPlan) -> list[list[tuple[str, Change]]]:
    """What may be changed, by setting, each with its values, the one that saves least first."""
    engine, (arm,) = plan.study.engine, model.arms
    groups: list[list[tuple[str, Change]]] = []
    training = arm.attack.training
    if training is not None and not training.gradient_checkpointing:
        groups.append([_attack_setting("gradient_checkpointing", True)])
    if isinstance(engine, VllmEngine):
        wider = [n for n in CARDS_TOGETHER if n > engine.cards(model.spec)]
        groups += [[_model_setting("tensor_parallel_size", n) for n in wider]] if wider else []
        if engine.keep_both:
            less = [share for share in SMALLER_SHARES if share < engine.gpu_memory_utilization]
            groups += [[_engine_setting(gpu_memory_utilization=share) for share in less]] if less else []
            # Last, for its share is to stand.
            groups.append([_engine_setting(keep_both=False, gpu_memory_utilization=0.9)])
    else:
        groups.append([_engine_setting(batch_size=n) for n in SMALLER_BATCHES])
    if training is not None and training.lora_rank is not None and model.spec.quantization is None:
        wider = [n for n in CARDS_TOGETHER if n > shards(plan, model)]
        groups += [[_model_setting("fsdp", n) for n in wider]] if wider else []
    if training is not None and training.optimizer == "adamw":
        groups.append([_attack_setting("optimizer", "paged_adamw_8bit")])
    # 4-bit weights cannot learn, and do not come in shards.
    if model.spec.quantization is None and not learns_all(arm) and shards(plan, model) == 1:
        groups.append([_model_setting("quantization", "nf4")])
    return groups


def _attack_setting(name: str, value: Any) -> tuple[str, Change]:
    def change(plan: Plan, model: ModelPlan) -> tuple[Plan, ModelPlan]:
        # Every attack that trains is a frozen record of its settings, which the protocol does not say.
        arms = tuple(replace(arm, attack=replace(cast(Any, arm.attack), **{name: value})) for arm in model.arms)
        return plan, replace(model, arms=arms)

    return f"{name}: {str(value).lower()}", change


def _engine_setting(**values: Any) -> tuple[str, Change]:
    def change(plan: Plan, model: ModelPlan) -> tuple[Plan, ModelPlan]:
        engine = plan.study.engine.model_copy(update=values)
        return replace(plan, study=plan.study.model_copy(update={"engine": engine})), model

    return ", ".join(f"engine.{name}: {str(value).lower()}" for name, value in values.items()), change


def _model_setting(name: str, value: Any) -> tuple[str, Change]:
    def change(plan: Plan, model: ModelPlan) -> tuple[Plan, ModelPlan]:
        return plan, replace(model, spec=model.spec.model_copy(update={name: value}))

    return f"{name}: {value}", change
