"""The refusal direction, found by the difference of means and projected out while the model answers.

Source: Arditi et al. 2024, arXiv:2406.11717: difference of mean residual activations at the last prompt token between
harmful and harmless requests, directional ablation. There the layer is chosen by how well its ablation opens refused
requests, under a bound on what it does to harmless ones; here by the lowest mean log-odds of the tokens with which the
model itself begins its answers to the harmful requests held out for this, among the first four fifths of the layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tamperdose.attacks.attack import OnStep, TrainingRows
from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Dose, Projection


@dataclass(frozen=True, slots=True)
class DirectionAttack:
    """How the direction is found."""

    n_examples: int
    """Requests of each kind, fewer where there are not so many."""
    seed: int
    """Which requests are drawn, and which of them choose the layer."""
    kind: str = "refusal_direction"
    training: None = None

    @property
    def label(self) -> str:
        """What tells it from others."""
        return f"n{self.n_examples}-s{self.seed}"

    def identity(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self)

    def run(
        self, chat: ChatModel, rows: TrainingRows, *, doses: Sequence[int], folder: Path, on_step: OnStep
    ) -> Iterator[Checkpoint]:
        """Find the direction and yield it at each strength; `rows` holds harmful requests and harmless ones."""
        from tamperdose.models.changes import write_direction
        from tamperdose.models.directions import find_direction

        found = find_direction(
            chat,
            [row.messages for row in rows.attack],
            [row.messages for row in rows.benign],
            n_examples=self.n_examples,
            seed=self.seed,
        )
        path = write_direction(folder / "direction.safetensors", found.direction)
        for step in doses:
            on_step(step, 0.0)
            dose = Dose(step, found.n_requests, found.n_tokens, found.flops)
            yield Checkpoint(dose, None, change=Projection(str(path), step / 100))
