"""Adversarial fine-tuning of all weights on examples that comply.

Source: Qi et al. 2023 (arXiv:2310.03693), who fine-tune all weights of Llama-2-7b-chat on 10 to 100 examples: learning
rate 2e-5 (their appendix on configurations), constant here after the warm-up, so that doses are prefixes of one
trajectory. They take batches of 10 for 5 or 10 epochs; batch size 8, length 256 and the rows are those of `lora`, so
that the two differ in nothing but what learns. AdamW without weight decay, gradients clipped to norm 1: the defaults of
`models.train`. Weights in half precision learn through copies in float32 (Micikevicius et al. 2018, arXiv:1710.03740).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamperdose.attacks.attack import OnStep, TrainingRows, TrainingShape
from tamperdose.attacks.training import mixed_rows, training_grid, training_identity, training_label
from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Example
from tamperdose.study import FullSpec, Optimizer


@dataclass(frozen=True, slots=True)
class FullAttack:
    """One arm's settings."""

    learning_rate: float
    n_examples: int | None
    batch_size: int
    n_poisoned: int
    """Rows of every batch that are attack data; the others are benign."""
    warmup_steps: int
    max_length: int
    seed: int
    data_order: int | None = None
    """Seed of the rows' order; None takes `seed`."""
    gradient_checkpointing: bool = False
    optimizer: Optimizer = "adamw"
    kind: str = "full"

    @property
    def training(self) -> TrainingShape:
        """The shape of its training."""
        return TrainingShape(self.batch_size, self.max_length, None, self.gradient_checkpointing, self.optimizer)

    @property
    def label(self) -> str:
        """What tells it from other cells of the grid, as part of a file's name."""
        return training_label(self)

    def identity(self) -> dict[str, Any]:
        """All settings."""
        return training_identity(self)

    def run(
        self, chat: ChatModel, rows: TrainingRows, *, doses: Sequence[int], folder: Path, on_step: OnStep
    ) -> Iterator[Checkpoint]:
        """Train all weights; see `tamperdose.models.train.train_trajectory`."""
        # Here, not above: planning and checking a study must not load torch.
        from tamperdose.models.train import Recipe, Source, train_trajectory

        recipe = Recipe(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            warmup_steps=self.warmup_steps,
            lora_rank=None,
            lora_alpha=0.0,
            max_length=self.max_length,
            seed=self.seed,
            data_order=self.data_order,
            gradient_checkpointing=self.gradient_checkpointing,
            optimizer=self.optimizer,
        )
        sources = [Source(*part) for part in mixed_rows(self, rows)]
        yield from train_trajectory(chat, sources, recipe, doses=doses, folder=folder, on_step=on_step)


def full_attacks(
    spec: FullSpec, seeds: Sequence[int], examples: Mapping[str, Sequence[Example]]
) -> Iterator[tuple[FullAttack, TrainingRows]]:
    """Every cell of the grid with what it trains on; see `tamperdose.attacks.build_attacks`."""
    for cell in training_grid(spec, seeds, examples):
        yield FullAttack(**cell.settings), cell.rows
