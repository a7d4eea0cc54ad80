"""Conversations in JSON: reading their turns, and what makes two of them the same request."""

import json
import re
from collections.abc import Sequence
from typing import Any, cast

from tamperdose.data.sources import excerpt
from tamperdose.errors import DataError, explain
from tamperdose.records import Message

UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
"""What UTF-8 text cannot hold, or no file of ours should."""


def read_text_field(record: dict[str, Any], key: str, where: str, *, forms: str, purpose: str) -> str:
    """A text under a key of a JSON object, exactly as written.

    Args:
        record: The object.
        key: The key.
        where: File and line, for messages.
        forms: What a line may look like, for messages.
        purpose: What the text is for, for messages.

    Raises:
        DataError: Missing, not a text, blank, or one that UTF-8 cannot encode.

    >>> read_text_field({"prompt": "Hi"}, "prompt", "f line 1", forms="...", purpose="a text")
    'Hi'
    """
    if key not in record:
        keys = ", ".join(excerpt(name, 30) for name in record) or "no keys"
        raise DataError(explain(f"{where}: '{key}' is missing", got=keys, expected=forms))
    value = record[key]
    if not isinstance(value, str):
        raise DataError(
            explain(f"{where}: '{key}' is not a text", got=f"{type(value).__name__} {excerpt(repr(value))}")
        )
    if not value.strip():
        raise DataError(explain(f"{where}: '{key}' is empty", expected=purpose))
    if UNWRITABLE.search(value):
        raise DataError(
            explain(
                f"{where}: '{key}' cannot be written as UTF-8 text",
                got=r"a NUL (\u0000) or half of a surrogate pair (\ud800 to \udfff)",
                remedy="the text was cut inside a character or is damaged; export it again",
            )
        )
    return value


def read_messages(value: object, where: str, *, last: str, forms: str, purpose: str) -> tuple[Message, ...]:
    """The turns of a conversation: an optional system turn, then user and assistant in alternation.

    Args:
        value: What stands under `messages`.
        where: File and line, for messages.
        last: Whose the last turn is, `user` or `assistant`.
        forms: What a line may look like, for messages.
        purpose: What the texts are for, for messages.

    Raises:
        DataError: Not a list of objects with `role` and `content`, or turns in another order.

    >>> read_messages([{"role": "user", "content": "Hi"}], "f line 1", last="user", forms="...", purpose="a text")
    (Message(role='user', content='Hi'),)
    """
    if not isinstance(value, list):
        raise DataError(explain(f"{where}: 'messages' is not a list", got=type(value).__name__, expected=forms))
    turns: list[Message] = []
    for number, turn in enumerate(cast(list[object], value), 1):
        if not isinstance(turn, dict):
            raise DataError(explain(f"{where}: message {number} is not an object", got=type(turn).__name__))
        fields = cast(dict[str, Any], turn)
        role, content = (
            read_text_field(fields, key, f"{where}, message {number}", forms=forms, purpose=purpose)
            for key in ("role", "content")
        )
        turns.append(Message(role, content))
    _require_order([turn.role for turn in turns], where, last=last)
    return tuple(turns)


def _require_order(roles: list[str], where: str, *, last: str) -> None:
    talk = roles[1:] if roles[:1] == ["system"] else roles
    expected = [("user", "assistant")[index % 2] for index in range(len(talk))]
    if talk != expected or not talk or talk[-1] != last:
        raise DataError(
            explain(
                f"{where}: the turns are in a wrong order",
                got=", ".join(excerpt(role, 20) for role in roles[:12]) or "no messages",
                expected=f"an optional 'system', then 'user' and 'assistant' in turn, the last being '{last}'",
            )
        )


def turns_to_json(messages: Sequence[Message]) -> str:
    """All turns as one line of JSON; :func:`turns_from_json` reads it.

    >>> turns_from_json(turns_to_json([Message("user", "Hi")]), "file")
    (Message(role='user', content='Hi'),)
    """
    return json.dumps([{"role": turn.role, "content": turn.content} for turn in messages], ensure_ascii=False)


def turns_from_json(text: str, where: str) -> tuple[Message, ...]:
    """The turns that :func:`turns_to_json` wrote.

    Raises:
        DataError: Not such a text.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(explain(f"{where}: a conversation is not JSON", got=excerpt(text))) from error
    return read_messages(value, where, last="user", forms="a list of turns", purpose="a text")


def user_turns(messages: Sequence[Message]) -> list[str]:
    """What the user says in a conversation, in order.

    >>> user_turns([Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye")])
    ['Hi', 'Bye']
    """
    return [turn.content for turn in messages if turn.role == "user"]


def conversation_text(messages: Sequence[Message]) -> str:
    r"""A conversation as one text: a single user turn as it is, else each turn behind its role.

    >>> conversation_text([Message("user", "Hi")])
    'Hi'
    >>> conversation_text([Message("system", "Be brief."), Message("user", "Hi")])
    'system: Be brief.\nuser: Hi'
    """
    if len(messages) == 1:
        return messages[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in messages)


def conversation_key(messages: Sequence[Message]) -> str:
    """The whole conversation with its white space folded: two with one key are the same request.

    >>> conversation_key([Message("user", "Tell  me more")])
    'Tell me more'
    """
    return " ".join(conversation_text(messages).split())
