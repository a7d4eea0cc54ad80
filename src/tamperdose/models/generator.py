"""What every engine that answers prompts offers, and what all of them share."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tamperdose.files import digest
from tamperdose.records import Completion, Prompt
from tamperdose.study import Decoding

OnProgress = Callable[[int], None]
"""Called with the number of prompts finished since the last call."""


class Generator(Protocol):
    """Answers prompts. Base and tampered models go through the same one, so they share its settings."""

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, *, seed: int, sample: int = 0, on_progress: OnProgress
    ) -> list[Completion]:
        """Answer each prompt once, in the order given.

        Under sampling, the draw for a prompt depends on (seed, prompt id, sample) alone: not on the batch,
        nor on the order of the prompts.
        """
        ...


def in_full(prompt_id: str, share: float) -> bool:
    """Whether a prompt is of the share whose answers are written to their end, though others are stopped.

    Drawn by its id alone: the same at every dose, and whatever prompts are beside it.
    """
    return int(digest(["in full", prompt_id]), 16) % 1_000_000 < share * 1_000_000


def prompt_rng(seed: int, prompt_id: str, sample: int) -> np.random.Generator:
    """A random generator for one prompt's sample, the same whatever else is generated beside it."""
    return np.random.default_rng(int(digest([seed, prompt_id, sample]), 16))
