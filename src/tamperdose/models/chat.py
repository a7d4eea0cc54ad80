"""How conversations become tokens: the model's chat template, always, and nothing in a text that could forge a turn."""

from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError

from tamperdose.errors import DataError, ModelError, explain
from tamperdose.models.load import ChatModel
from tamperdose.records import Message, Prompt


def encode_chat(chat: ChatModel, messages: Sequence[Message]) -> list[int]:
    """Tokens of a conversation under the model's chat template, up to where the assistant is to speak.

    Raises:
        ModelError: The template refuses the conversation, or makes nothing of it.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ModelError(_template_message(messages, got=str(error)[:200])) from error
    tokens = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise ModelError(_template_message(messages, got="no text"))
    return tokens


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """The texts that a tokenizer reads as control tokens: special ones, and added ones that the template uses.

    `all_special_tokens` holds only those with a role (begin, end, padding); a template's marks of turns need not be
    among them.
    """
    added = [(str(token.content), bool(token.special)) for token in tokenizer.added_tokens_decoder.values()]
    template = str(getattr(tokenizer, "chat_template", None) or "")
    used = {text for text, special in added if special or text in template}
    return frozenset(text for text in {*tokenizer.all_special_tokens, *used} if text.strip())


def require_plain(chat: ChatModel, conversations: Iterable[Sequence[Message]]) -> None:
    """Refuse conversations that hold one of the model's control tokens.

    Raises:
        DataError: One does.
    """
    control = sorted(control_tokens(chat.tokenizer))
    for message in (message for messages in conversations for message in messages):
        found = next((token for token in control if token in message.content), None)
        if found is not None:
            raise DataError(
                explain(
                    f"a text holds the model's control token '{found}'",
                    got=repr(message.content[:80]),
                    expected="plain text: a control token could forge a turn of the conversation",
                    remedy="remove it from the prompts or the training rows",
                )
            )


def _template_message(messages: Sequence[Message], *, got: str) -> str:
    roles = ", ".join(message.role for message in messages)
    return explain(
        "the model's chat template cannot render a conversation",
        got=f"{got} for the roles {roles}: {messages[-1].content[:80]!r}",
        expected="a template that renders these turns and asks the assistant to speak",
        remedy="use other roles (some templates know no system turn), or mend the model's chat template",
    )


def encode_prompts(chat: ChatModel, prompts: Sequence[Prompt], max_new_tokens: int) -> list[list[int]]:
    """Tokens of every prompt, checked against the model's context before any time is spent.

    Raises:
        DataError: A prompt and its answer would not fit, the longest is named; or a prompt holds one of the template's
            control tokens, with which it could forge other turns.
    """
    require_plain(chat, (prompt.messages for prompt in prompts))
    encoded = [encode_chat(chat, prompt.messages) for prompt in prompts]
    room = getattr(chat.model.config, "max_position_embeddings", None)
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i]), default=None)
    if room is not None and longest is not None and len(encoded[longest]) + max_new_tokens > room:
        raise DataError(
            explain(
                f"prompt '{prompts[longest].id}' does not fit the model's context",
                got=f"{len(encoded[longest])} tokens and {max_new_tokens} new ones",
                expected=f"at most {room} together",
                remedy="shorten or remove the prompt, or lower decoding.max_new_tokens",
            )
        )
    return encoded


def end_tokens(chat: ChatModel) -> frozenset[int]:
    """The tokens that end an answer: those of the generation config and the tokenizer."""
    configured = chat.model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*listed, chat.tokenizer.eos_token_id] if token is not None)
