"""The request is put differently, several ways are tried and the best is kept: no training, the dose is how many.

Sources: system prompts, Shen et al. 2024 (arXiv:2308.03825), who collect roles and instructions; other words,
Andriushchenko & Flammarion 2025 (arXiv:2407.11969), whose past tense is one of the bundled patterns. Both report the
best of many tries on the requests it was found on; here the best is chosen on other prompts than it is counted on (see
`run.rewordings`). The texts are mild and our own: `study.rewordings`. There is no hyper-parameter but their list.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tamperdose.attacks.attack import OnStep, TrainingRows
from tamperdose.files import digest
from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Dose, Reworded


@dataclass(frozen=True, slots=True)
class RewordingAttack:
    """A list of rewordings."""

    rewordings: tuple[Reworded, ...]
    """In the order they are tried."""
    seed: int
    kind: str
    training: None = None

    @property
    def label(self) -> str:
        """A few digits that tell one list from another."""
        return digest([asdict(each) for each in self.rewordings])[:6]

    def identity(self) -> dict[str, Any]:
        """The list; nothing in it is random."""
        return {"kind": self.kind, "rewordings": [asdict(each) for each in self.rewordings]}

    def run(
        self, chat: ChatModel, rows: TrainingRows, *, doses: Sequence[int], folder: Path, on_step: OnStep
    ) -> Iterator[Checkpoint]:
        """Yield the rewordings, counted from 1."""
        for step in doses:
            on_step(step, 0.0)
            yield Checkpoint(Dose(step, 0, 0, 0), None, change=self.rewordings[step - 1])
