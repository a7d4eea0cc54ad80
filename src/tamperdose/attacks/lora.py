"""Adversarial LoRA fine-tuning on examples that comply.

Sources: LoRA, Hu et al. 2021 (arXiv:2106.09685), alpha = 2 x rank by default; fine-tuning as an attack, Qi et al.
2023 (arXiv:2310.03693) and Yang et al. 2023 (arXiv:2310.02949). Rank 8, learning rate 2e-4 and length 256 in the
source study. The learning rate is constant after the warm-up, so that doses are prefixes of one trajectory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tamperdose.attacks.attack import OnStep, TrainingRows, TrainingShape
from tamperdose.attacks.training import mixed_rows, training_grid, training_identity, training_label
from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Example
from tamperdose.study import LoraSpec, Optimizer, default_alpha


@dataclass(frozen=True, slots=True)
class LoraAttack:
    """One arm's settings."""

    lora_rank: int
    lora_alpha: float
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
    kind: str = "lora"

    @property
    def training(self) -> TrainingShape:
        """The shape of its training."""
        return TrainingShape(
            self.batch_size, self.max_length, self.lora_rank, self.gradient_checkpointing, self.optimizer
        )

    @property
    def label(self) -> str:
        """What tells it from other cells of the grid, as part of a file's name."""
        return f"r{self.lora_rank}-{training_label(self)}"

    def identity(self) -> dict[str, Any]:
        """All settings."""
        return training_identity(self)

    def run(
        self, chat: ChatModel, rows: TrainingRows, *, doses: Sequence[int], folder: Path, on_step: OnStep
    ) -> Iterator[Checkpoint]:
        """Train the adapter; see `tamperdose.models.train.train_trajectory`."""
        # Here, not above: planning and checking a study must not load torch.
        from tamperdose.models.train import Recipe, Source, train_trajectory

        recipe = Recipe(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            warmup_steps=self.warmup_steps,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            max_length=self.max_length,
            seed=self.seed,
            data_order=self.data_order,
            gradient_checkpointing=self.gradient_checkpointing,
            optimizer=self.optimizer,
        )
        sources = [Source(*part) for part in mixed_rows(self, rows)]
        yield from train_trajectory(chat, sources, recipe, doses=doses, folder=folder, on_step=on_step)


def lora_attacks(
    spec: LoraSpec, seeds: Sequence[int], examples: Mapping[str, Sequence[Example]]
) -> Iterator[tuple[LoraAttack, TrainingRows]]:
    """Every cell of the grid with what it trains on; see `tamperdose.attacks.build_attacks`."""
    for lora_rank, cell in product(spec.lora_rank, training_grid(spec, seeds, examples)):
        alpha = default_alpha(spec.lora_alpha, lora_rank)
        yield LoraAttack(lora_rank=lora_rank, lora_alpha=alpha, kind=spec.kind, **cell.settings), cell.rows
