"""Adversarial LoRA fine-tuning on examples that comply.

Sources: LoRA, Hu et al. 2021 (arXiv:2106.09685), alpha = 2 x rank by default; fine-tuning as an attack, Qi et al.
2023 (arXiv:2310.03693) and Yang et al. 2023 (arXiv:2310.02949). Rank 8, learning rate 2e-4 and length 256 in the
source study. The learning rate is constant after the warm-up, so that doses are prefixes of one trajectory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tamperdose.attacks.attack import OnStep, TrainingRows, TrainingShape
from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Example
from tamperdose.study import LoraSpec, default_alpha


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
    kind: str = "lora"

    @property
    def poison_ratio(self) -> float:
        """Share of attack data in every batch."""
        return self.n_poisoned / self.batch_size

    @property
    def training(self) -> TrainingShape:
        """The shape of its training."""
        return TrainingShape(self.batch_size, self.max_length, self.lora_rank)

    @property
    def label(self) -> str:
        """What tells it from other cells of the grid, as part of a file's name."""
        parts = [
            f"r{self.lora_rank}",
            f"lr{self.learning_rate!r}",
            "" if self.n_examples is None else f"n{self.n_examples}",
            "" if self.poison_ratio == 1 else f"p{self.poison_ratio:g}",
            "" if self.data_order is None else f"o{self.data_order}",
            f"s{self.seed}",
        ]
        return "-".join(part for part in parts if part)

    def identity(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self)

    def run(
        self, chat: ChatModel, rows: TrainingRows, *, doses: Sequence[int], folder: Path, on_step: OnStep
    ) -> Iterator[Checkpoint]:
        """Train the adapter; see `tamperdose.models.train.train_lora`."""
        # Here, not above: planning and checking a study must not load torch.
        from tamperdose.models.train import Recipe, Source, train_lora

        recipe = Recipe(
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            warmup_steps=self.warmup_steps,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha,
            max_length=self.max_length,
            seed=self.seed,
            data_order=self.data_order,
        )
        sources = [Source(draw_examples(rows.attack, self.n_examples, seed=self.seed), self.n_poisoned)]
        if self.n_poisoned < self.batch_size:
            sources.append(Source(rows.benign, self.batch_size - self.n_poisoned))
        yield from train_lora(chat, sources, recipe, doses=doses, folder=folder, on_step=on_step)


def lora_attacks(
    spec: LoraSpec, seeds: Sequence[int], examples: Mapping[str, Sequence[Example]]
) -> Iterator[tuple[LoraAttack, TrainingRows]]:
    """Every cell of the grid with what it trains on; see `tamperdose.attacks.build_attacks`."""
    rows = examples[spec.data]
    grid = product(spec.lora_rank, spec.learning_rate, spec.n_examples, spec.poison_ratio, spec.data_order, seeds)
    for lora_rank, learning_rate, n_examples, poison_ratio, data_order, seed in grid:
        attack = LoraAttack(
            lora_rank=lora_rank,
            lora_alpha=default_alpha(spec.lora_alpha, lora_rank),
            learning_rate=learning_rate,
            n_examples=None if n_examples is None else min(n_examples, len(rows)),
            batch_size=spec.batch_size,
            n_poisoned=spec.n_poisoned(poison_ratio),
            warmup_steps=spec.warmup_steps,
            max_length=spec.max_length,
            seed=seed,
            data_order=data_order,
            kind=spec.kind,
        )
        mixed = examples[spec.benign] if spec.benign is not None and attack.n_poisoned < attack.batch_size else ()
        yield attack, TrainingRows(rows, mixed)


def draw_examples(examples: Sequence[Example], n_examples: int | None, *, seed: int) -> list[Example]:
    """Draw `n_examples` rows without replacement; nested: a larger draw with the same seed contains a smaller one.

    >>> rows = [Example((), str(i)) for i in range(9)]
    >>> small, large = draw_examples(rows, 2, seed=1), draw_examples(rows, 5, seed=1)
    >>> small == large[:2], len(draw_examples(rows, None, seed=1))
    (True, 9)
    """
    if n_examples is None:
        return list(examples)
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[place] for place in order[:n_examples]]
