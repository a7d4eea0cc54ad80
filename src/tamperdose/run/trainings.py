"""What a plan trains: which rows in what batches, before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from tamperdose.models.flops import CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS
from tamperdose.records import Example
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan
from tamperdose.study import Optimizer, TunedDefence


@dataclass(frozen=True, slots=True)
class Training:
    """What one training's operations and memory depend on."""

    sources: Sequence[tuple[Sequence[Example], int]]
    """Rows, and how many of a batch are drawn from them."""
    batch_size: int
    max_length: int
    lora_rank: int | None
    """None where all weights learn."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again."""
    optimizer: Optimizer = "adamw"
    """What moves the weights."""


def trainings(plan: Plan, model: ModelPlan) -> list[Training]:
    """Every training of a model: its arms' and its defence's."""
    found = [*map(attack_training, model.arms), defence_training(plan, model)]
    return [training for training in found if training is not None]


def attack_training(arm: ArmPlan) -> Training | None:
    """The rows that this arm draws, and the benign ones that it mixes in; None where it trains nothing."""
    from tamperdose.attacks.training import draw_examples

    shape, settings = arm.attack.training, arm.attack.identity()
    if shape is None:
        return None
    size, n_poisoned = shape.batch_size, int(settings.get("n_poisoned", shape.batch_size))
    drawn = draw_examples(arm.rows.attack, settings.get("n_examples"), seed=arm.attack.seed)
    mixed = [(arm.rows.benign, size - n_poisoned)] if n_poisoned < size else []
    return Training(
        [(drawn, n_poisoned), *mixed],
        size,
        shape.max_length,
        shape.lora_rank,
        shape.gradient_checkpointing,
        shape.optimizer,
    )


def defence_training(plan: Plan, model: ModelPlan) -> Training | None:
    """What a model's defence trains on; None where it trains nothing."""
    defence = model.spec.defence
    if not isinstance(defence, TunedDefence):
        return None
    rows = [*plan.data.examples[defence.harmful], *plan.data.examples[defence.benign]]
    return Training([(rows, defence.batch_size)], defence.batch_size, defence.max_length, defence.lora_rank)


def mean_row(training: Training) -> tuple[float, float]:
    """Tokens of a mean row of a batch, the template's included, and of its answer; no row is longer than max_length."""
    length = answer = 0.0
    for rows, count in training.sources:
        share = count / training.batch_size / len(rows)
        for row in rows:
            labels = len(row.response) / CHARACTERS_PER_TOKEN
            prompt = sum(len(turn.content) for turn in row.messages) / CHARACTERS_PER_TOKEN
            # Training cuts the beginning of the prompt, never the answer.
            length += share * min(prompt + labels + TEMPLATE_TOKENS, float(training.max_length))
            answer += share * min(labels, float(training.max_length))
    return length, min(max(answer, 1.0), length)
