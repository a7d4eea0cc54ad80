"""How a model's inside is looked at: the refusal direction, and where."""

from typing import Annotated, Literal

from pydantic import Field

from tamperdose.study.parts import Frozen


class Inside(Frozen):
    """States at the last prompt token: how far the refusal direction turns and what it still tells, layer by layer."""

    at: Literal["key", "all"] = "key"
    """At the key doses of an arm, or at every measured one."""
    prompts: Annotated[int, Field(ge=4, lt=2**31, strict=True)] = 60
    """Prompts of each kind at most, harmful and benign."""
