"""What every attack offers: one trajectory of checkpoints from one untampered model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Example
from tamperdose.study import Optimizer

OnStep = Callable[[int, float], None]
"""Called after each step with the step (from 1) and the loss."""


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """What there is to train on."""

    attack: Sequence[Example]
    """Rows that comply."""
    benign: Sequence[Example] = ()
    """Harmless rows to mix in."""


@dataclass(frozen=True, slots=True)
class TrainingShape:
    """What a training's cost and memory depend on, its rows aside."""

    batch_size: int
    max_length: int
    lora_rank: int | None
    """None where all weights learn."""
    gradient_checkpointing: bool = False
    """Whether activations are computed again."""
    optimizer: Optimizer = "adamw"
    """What moves the weights."""


class Attack(Protocol):
    """One cell of the attack grid: a frozen description that can be run."""

    @property
    def kind(self) -> str:
        """The attack's name in a study, e.g. `lora`."""
        ...

    @property
    def seed(self) -> int:
        """Seed of everything random in it."""
        ...

    @property
    def training(self) -> TrainingShape | None:
        """The shape of its training; None where nothing is trained."""
        ...

    @property
    def label(self) -> str:
        """What tells it from other cells of its grid, as part of a file's name."""
        ...

    def identity(self) -> dict[str, Any]:
        """All settings that change the trajectory, for its digest."""
        ...

    def run(
        self, chat: ChatModel, rows: TrainingRows, *, doses: Sequence[int], folder: Path, on_step: OnStep
    ) -> Iterator[Checkpoint]:
        """Run the trajectory up to the last dose, yielding the checkpoint at each; resumes in `folder`."""
        ...
