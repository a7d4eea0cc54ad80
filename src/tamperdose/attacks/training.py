"""What attacks by fine-tuning share, whatever learns: the cells of their grid, their rows and their names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np

from tamperdose.attacks.attack import TrainingRows
from tamperdose.records import Example
from tamperdose.study import TrainingSpec


class TrainingSettings(Protocol):
    """The settings of one cell of a grid that all trainings have."""

    @property
    def learning_rate(self) -> float: ...  # noqa: D102 - named as in a study
    @property
    def n_examples(self) -> int | None: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def n_poisoned(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def data_order(self) -> int | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class TrainingCell:
    """One cell of a grid: what every training is set by, and what it reads."""

    settings: Mapping[str, Any]
    """Keyword arguments of the attack."""
    rows: TrainingRows
    """What there is to train on."""


def training_grid(
    spec: TrainingSpec, seeds: Sequence[int], examples: Mapping[str, Sequence[Example]]
) -> Iterator[TrainingCell]:
    """Every cell of the grid; see `tamperdose.attacks.build_attacks`."""
    rows = examples[spec.data]
    grid = product(spec.learning_rate, spec.n_examples, spec.poison_ratio, spec.data_order, seeds)
    for learning_rate, n_examples, poison_ratio, data_order, seed in grid:
        n_poisoned = spec.n_poisoned(poison_ratio)
        settings = {
            "learning_rate": learning_rate,
            "n_examples": None if n_examples is None else min(n_examples, len(rows)),
            "batch_size": spec.batch_size,
            "n_poisoned": n_poisoned,
            "warmup_steps": spec.warmup_steps,
            "max_length": spec.max_length,
            "seed": seed,
            "data_order": data_order,
            "gradient_checkpointing": spec.gradient_checkpointing,
            "optimizer": spec.optimizer,
        }
        mixed = examples[spec.benign] if spec.benign is not None and n_poisoned < spec.batch_size else ()
        yield TrainingCell(settings, TrainingRows(rows, mixed))


def training_identity(attack: Any) -> dict[str, Any]:
    """All settings of a training, for its digest; those that go without saying are left out.

    So what was measured before there was a choice keeps its key.
    """
    unsaid = {"gradient_checkpointing": False, "optimizer": "adamw"}
    return {name: value for name, value in asdict(attack).items() if unsaid.get(name, ...) != value}


def training_label(attack: TrainingSettings) -> str:
    """What tells a training from other cells of its grid, as part of a file's name."""
    poison_ratio = attack.n_poisoned / attack.batch_size
    parts = [
        f"lr{attack.learning_rate!r}",
        "" if attack.n_examples is None else f"n{attack.n_examples}",
        "" if poison_ratio == 1 else f"p{poison_ratio:g}",
        "" if attack.data_order is None else f"o{attack.data_order}",
        f"s{attack.seed}",
    ]
    return "-".join(part for part in parts if part)


def mixed_rows(attack: TrainingSettings, rows: TrainingRows) -> list[tuple[Sequence[Example], int]]:
    """The rows that a batch is drawn from, and how many of it come from each."""
    drawn = draw_examples(rows.attack, attack.n_examples, seed=attack.seed)
    n_benign = attack.batch_size - attack.n_poisoned
    return [(drawn, attack.n_poisoned), *([(rows.benign, n_benign)] if n_benign else [])]


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
