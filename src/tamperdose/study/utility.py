"""What a study measures of its models besides refusals."""

from typing import Annotated

from pydantic import Field

from tamperdose.study.parts import Frozen, PositiveInt, Source

AUTO = "auto"
"""The bundled set in the model's language."""


class Utility(Frozen):
    """What the models can do besides refusing, measured at dose 0 and the key doses; see docs/methods.md.

    Nothing is measured with the scripted engine, which has no model.
    """

    texts: Source = AUTO
    """Held-out texts for perplexity: a JSONL file, or `auto`: `builtin:utility_texts`, for organisms
    `builtin:organism_utility_texts`."""
    questions: Source = AUTO
    """Multiple-choice questions: a JSONL file, or `auto`: `builtin:utility_questions`, for organisms
    `builtin:organism_utility_questions`."""
    max_texts: PositiveInt | None = 24
    """Only so many texts, evenly over the file; null for all."""
    max_questions: PositiveInt | None = None
    """Only so many questions, evenly over the file; null for all."""
    kl_prompts: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 24
    """How many of the study's benign prompts the divergence from the base is taken on; 0 for none."""
    kl_tokens: PositiveInt = 8
    """At how many tokens of the base's own answers, the first included."""
