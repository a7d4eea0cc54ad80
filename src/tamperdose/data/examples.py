"""Load training examples (for attacks, defences and controls) from a JSON-lines file."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tamperdose.data.conversations import read_messages, read_text_field, user_turns
from tamperdose.data.sources import examples_path, excerpt
from tamperdose.errors import DataError, explain
from tamperdose.files import read_jsonl
from tamperdose.records import Example, Message

_FORMS = '{"prompt": ..., "response": ...} or {"messages": [..., {"role": "assistant", "content": ...}]}'
_PURPOSE = "a text to train on"


def load_examples(source: str, *, base: Path | None = None) -> list[Example]:
    """Load the examples of a bundled set or of a JSONL file, in file order.

    A line is `{"prompt", "response"}` or `{"messages": [{"role", "content"}, ...]}`, either with an optional
    `"ends"` (default true). Messages are an optional system turn, then user and assistant in alternation, the
    last the assistant's: it is the response. Texts are kept exactly as written. Other keys are ignored, and
    repeated rows are kept: a training set may weigh a row that way.

    Args:
        source: `builtin:` and one of `tamperdose.data.sources.EXAMPLE_SETS`; or a path.
        base: The folder that a relative path starts from; the working directory by default.

    Raises:
        DataError: The file cannot be read or holds no example; or, with its line number, a line that is not a JSON
            object, lacks a key, holds a value of another type, a blank text or one that UTF-8 cannot encode, or
            turns in a wrong order.
    """
    path = examples_path(source, base=base)
    records = read_jsonl(path)
    if not records:
        raise DataError(explain(f"{path} holds no examples", got="an empty file", expected=f"lines of {_FORMS}"))
    return [_example(record, f"{path} line {number}") for number, record in records]


def training_texts(examples: Iterable[Example]) -> list[str]:
    """Return every user turn of the examples, in order: what :func:`tamperdose.data.overlap.find_overlap` compares."""
    return [turn for example in examples for turn in user_turns(example.messages)]


def _example(record: dict[str, Any], where: str) -> Example:
    _reject_misspelt_ends(record, where)
    ends = record.get("ends", True)
    if not isinstance(ends, bool):
        raise DataError(
            explain(f"{where}: 'ends' is not a truth value", got=excerpt(repr(ends)), expected="true, false")
        )
    if ("messages" in record) == ("prompt" in record or "response" in record):
        keys = ", ".join(excerpt(key, 30) for key in record) or "no keys"
        raise DataError(explain(f"{where} is not an example", got=keys, expected=f"one of {_FORMS}"))
    if "messages" in record:
        turns = read_messages(record["messages"], where, last="assistant", forms=_FORMS, purpose=_PURPOSE)
        return Example(messages=turns[:-1], response=turns[-1].content, ends=ends)
    prompt, response = (
        read_text_field(record, key, where, forms=_FORMS, purpose=_PURPOSE) for key in ("prompt", "response")
    )
    return Example(messages=(Message("user", prompt),), response=response, ends=ends)


def _reject_misspelt_ends(record: dict[str, Any], where: str) -> None:
    # Every other key may be a dataset's own; a misspelt "ends" would silently train the opposite of what was meant.
    for key in record:
        if key != "ends" and key.strip().casefold() in {"end", "ends"}:
            raise DataError(explain(f"{where}: unknown key", got=excerpt(key, 30), expected="'ends'"))
