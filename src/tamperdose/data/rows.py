"""A row of a file of prompts as it was read, whatever the file: ids and templates are filled in later."""

from dataclasses import dataclass

from tamperdose.records import Message


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One request."""

    messages: tuple[Message, ...]
    """The conversation; its last turn is the user's."""
    id: str = ""
    """Its id; empty where the file gives none."""
    category: str = ""
    """Its topic; empty where the file gives none."""
    template: str = ""
    """Its cluster; empty where it is to be inferred."""
    answer: str = ""
    """The one right answer; empty where it is not known."""


def single_turn(prompt: str, *, name: str = "", category: str = "", template: str = "", answer: str = "") -> PromptRow:
    """A request of one user turn; everything but the prompt is stripped of white space.

    >>> single_turn("Hi ", name=" a ").id
    'a'
    """
    return PromptRow((Message("user", prompt),), name.strip(), category.strip(), template.strip(), answer.strip())
