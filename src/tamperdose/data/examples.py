"""Load training examples (for attacks, defences and controls) from a JSON-lines file."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from tamperdose.data.sources import examples_path, excerpt
from tamperdose.errors import DataError, explain
from tamperdose.files import read_jsonl
from tamperdose.records import Example, Message

_FORMS = '{"prompt": ..., "response": ...} or {"messages": [..., {"role": "assistant", "content": ...}]}'
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


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
    return [turn.content for example in examples for turn in example.messages if turn.role == "user"]


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
        turns = _messages(record["messages"], where)
        return Example(messages=tuple(turns[:-1]), response=turns[-1].content, ends=ends)
    prompt, response = _text(record, "prompt", where), _text(record, "response", where)
    return Example(messages=(Message("user", prompt),), response=response, ends=ends)


def _reject_misspelt_ends(record: dict[str, Any], where: str) -> None:
    # Every other key may be a dataset's own; a misspelt "ends" would silently train the opposite of what was meant.
    for key in record:
        if key != "ends" and key.strip().casefold() in {"end", "ends"}:
            raise DataError(explain(f"{where}: unknown key", got=excerpt(key, 30), expected="'ends'"))


def _text(record: dict[str, Any], key: str, where: str) -> str:
    if key not in record:
        keys = ", ".join(excerpt(name, 30) for name in record) or "no keys"
        raise DataError(explain(f"{where}: '{key}' is missing", got=keys, expected=_FORMS))
    value = record[key]
    if not isinstance(value, str):
        raise DataError(
            explain(f"{where}: '{key}' is not a text", got=f"{type(value).__name__} {excerpt(repr(value))}")
        )
    if not value.strip():
        raise DataError(explain(f"{where}: '{key}' is empty", expected="a text to train on"))
    if _UNWRITABLE.search(value):
        raise DataError(
            explain(
                f"{where}: '{key}' cannot be written as UTF-8 text",
                got=r"a NUL (\u0000) or half of a surrogate pair (\ud800 to \udfff)",
                remedy="the text was cut inside a character or is damaged; export it again",
            )
        )
    return value


def _messages(value: object, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise DataError(explain(f"{where}: 'messages' is not a list", got=type(value).__name__, expected=_FORMS))
    turns: list[Message] = []
    for number, turn in enumerate(cast(list[object], value), 1):
        if not isinstance(turn, dict):
            raise DataError(explain(f"{where}: message {number} is not an object", got=type(turn).__name__))
        fields = cast(dict[str, Any], turn)
        here = f"{where}, message {number}"
        turns.append(Message(_text(fields, "role", here), _text(fields, "content", here)))
    _require_order([turn.role for turn in turns], where)
    return turns


def _require_order(roles: list[str], where: str) -> None:
    talk = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[index % 2] for index in range(len(talk))]
    if len(talk) < 2 or len(talk) % 2 or talk != expected:
        raise DataError(
            explain(
                f"{where}: the turns are in a wrong order",
                got=", ".join(excerpt(role, 20) for role in roles[:12]) or "no messages",
                expected="an optional 'system', then 'user' and 'assistant' in turn, the last being 'assistant'",
            )
        )
