"""The answer is begun for the model: no training, the dose is the number of the opener's tokens.

Source: priming attacks, Vega et al. 2023, arXiv:2312.12321; how deep refusals reach, Qi et al. 2025, arXiv:2406.05946.
What is recorded and judged is what the model adds, not the opener: a judge would take "Sure" for compliance.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamperdose.attacks.attack import OnStep, TrainingRows
from tamperdose.errors import StudyError, explain
from tamperdose.files import digest
from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Dose, Opener


@dataclass(frozen=True, slots=True)
class PrefillAttack:
    """One opener."""

    opener: str
    seed: int
    kind: str = "prefill"
    training: None = None

    @property
    def label(self) -> str:
        """A few digits that tell one opener from another."""
        return digest(self.opener)[:6]

    def identity(self) -> dict[str, Any]:
        """The opener; nothing in it is random."""
        return {"kind": self.kind, "opener": self.opener}

    def run(
        self, chat: ChatModel, rows: TrainingRows, *, doses: Sequence[int], folder: Path, on_step: OnStep
    ) -> Iterator[Checkpoint]:
        """Yield the first tokens of the opener, as many as each dose says.

        Raises:
            StudyError: The opener is shorter than the largest dose.
        """
        tokens = chat.tokenizer(self.opener, add_special_tokens=False)["input_ids"]
        if len(tokens) < doses[-1]:
            raise StudyError(
                explain(
                    "the opener is shorter than the largest dose",
                    got=f"{len(tokens)} tokens for this model, {doses[-1]} wanted",
                    remedy="use a longer `opener`, or smaller `doses`",
                )
            )
        for step in range(1, doses[-1] + 1):
            on_step(step, 0.0)
            if step in doses:
                text = chat.tokenizer.decode(tokens[:step])
                yield Checkpoint(Dose(step, 0, 0, 0), None, change=Opener(text, tuple(tokens[:step])))
