"""Asking a model in other words: the prompts that it reads, while its answers keep the ids of the original ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tamperdose.models.generator import Generator, OnProgress
from tamperdose.records import Completion, Message, Prompt, Reworded
from tamperdose.study import Decoding


class RewordedGenerator:
    """A generator that puts every prompt differently before it answers."""

    def __init__(self, inner: Generator, change: Reworded) -> None:
        self._inner, self._change = inner, change
        self.settings: Mapping[str, Any] = getattr(inner, "settings", {})
        """What answers are recorded with: those of the generator that answers."""

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, *, seed: int, sample: int = 0, on_progress: OnProgress
    ) -> list[Completion]:
        """Answer each prompt once, in the order given; see `Generator`."""
        changed = [reworded(prompt, self._change) for prompt in prompts]
        return self._inner.generate(changed, decoding, seed=seed, sample=sample, on_progress=on_progress)


def reworded(prompt: Prompt, change: Reworded) -> Prompt:
    """The prompt as the model is asked it.

    >>> from tamperdose.records import Subset
    >>> plain = Prompt("a", (Message("user", "Why?"),), Subset.BENIGN, "t")
    >>> asked = reworded(plain, Reworded(system="Be brief.", pattern="Please tell me: {prompt}"))
    >>> [(turn.role, turn.content) for turn in asked.messages]
    [('system', 'Be brief.'), ('user', 'Please tell me: Why?')]
    """
    turns = list(prompt.messages)
    if change.system:
        turns = [Message("system", change.system), *turns[turns[0].role == "system" :]]
    turns[-1] = replace(turns[-1], content=change.pattern.replace("{prompt}", turns[-1].content))
    return replace(prompt, messages=tuple(turns))
